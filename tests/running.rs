//! PROTOCOL.md, chapter 7: the command line, the start, the logs, the end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    missing_docs
)]

mod common;

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{
    Binary, CLOSE, Phone, Process, Raw, Relay, Request, SOON, Signal, TEXT, close_directive,
    close_frame, command, envelope, masked, open_envelope, run, wait_until,
};

const SHUTTING_DOWN: (u16, &str) = (1001, "shutting down");

/// The flags that chapter 7 names, as far as they are built.
const FLAGS: [&str; 17] = [
    "--insecure-listen",
    "--workers",
    "--memory-budget",
    "--max-phones",
    "--grace",
    "--probe-timeout",
    "--heartbeat-interval",
    "--heartbeat-timeout",
    "--header-timeout",
    "--message-timeout",
    "--write-timeout",
    "--close-timeout",
    "--drain-timeout",
    "--log-format",
    "--log-level",
    "--help",
    "--version",
];

/// The keys that chapter 7 allows, and those of every line.
const KEYS: [&str; 18] = [
    "time",
    "level",
    "event",
    "core",
    "server_id",
    "conn_id",
    "binary_conn_id",
    "device_name",
    "remote",
    "binary_version",
    "err",
    "path",
    "from",
    "to",
    "close_code",
    "token_fp",
    "fcm_message_id",
    "duration",
];

// ---- the command line

#[tokio::test]
async fn help_names_every_flag_and_its_default_on_standard_output() {
    for help in ["--help", "-help", "-h"] {
        let exit = run(&[help]).await;
        assert_eq!(exit.status.code(), Some(0), "{help}: {}", exit.stderr);
        assert_eq!(exit.stderr, "", "{help}");
        for flag in FLAGS {
            assert!(exit.stdout.contains(flag), "{help} does not name {flag}");
        }
        assert!(exit.stdout.contains("ws://127.0.0.1:8080/v1/server"), "how to try it out");
    }
    let long = run(&["--help"]).await.stdout;
    for default in ["30s", "10s", "5s", "127.0.0.1:8080", "[default: 16]", "[default: info]"] {
        assert!(long.contains(default), "{default}");
    }
}

#[tokio::test]
async fn version_is_one_line_on_standard_output() {
    for version in ["--version", "-version", "-V"] {
        let exit = run(&[version]).await;
        assert_eq!(exit.status.code(), Some(0), "{version}: {}", exit.stderr);
        let expected = format!("pyrycode-relay {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!((exit.stdout, exit.stderr), (expected, String::new()), "{version}");
    }
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_with_2_and_one_line_that_says_how_to_mend_it() {
    // The command line, what the line must name, and what it must say.
    let rows: &[(&[&str], &str, &str)] = &[
        (&["--no-such-flag"], "--no-such-flag", "--help"),
        (&["-grcae", "5s"], "-grcae", "--help"),
        (&["serve"], "serve", "--help"),
        (&["--insecure-listen"], "--insecure-listen", "needs a value"),
        (&["--insecure-listen", "8080"], "--insecure-listen", ":8080"),
        (&["--insecure-listen", "127.0.0.1:99999"], "--insecure-listen", "65535"),
        (&["--insecure-listen", "nowhere.invalid:80"], "--insecure-listen", "IP address"),
        (&["--grace", "30"], "--grace", "30s"),
        (&["--grace", "-5s"], "--grace", ""),
        (&["--grace", "soon"], "--grace", "30s"),
        (&["--grace", "25h"], "--grace", "24h"),
        (&["--close-timeout", "0s"], "--close-timeout", "1ms"),
        (&["--memory-budget", "lots"], "--memory-budget", "MiB"),
        (&["--memory-budget", "1"], "--memory-budget", "1MiB"),
        (&["--memory-budget", "999999GiB"], "--memory-budget", "quarter"),
        (&["--memory-budget", "1MiB", "--workers", "64"], "--memory-budget", "--workers"),
        (&["--workers", "0"], "--workers", "1"),
        (&["--workers", "-1"], "--workers", "1"),
        (&["--workers", "many"], "--workers", "1"),
        (&["--workers", "100000"], "--workers", "1024"),
        (&["--max-phones", "0"], "--max-phones", "1"),
        (&["--log-format", "xml"], "--log-format", "json"),
        (&["--log-level", "loud"], "--log-level", "debug"),
    ];
    for (args, names, says) in rows {
        let exit = run(args).await;
        assert_eq!(exit.status.code(), Some(2), "{args:?}: {}", exit.stderr);
        assert_eq!(exit.stdout, "", "{args:?}");
        assert_eq!(exit.stderr.lines().count(), 1, "{args:?}: {}", exit.stderr);
        assert!(exit.stderr.starts_with("pyrycode-relay: "), "{args:?}: {}", exit.stderr);
        assert!(exit.stderr.contains(names), "{args:?}: {}", exit.stderr);
        assert!(exit.stderr.contains(says), "{args:?}: {}", exit.stderr);
    }
}

#[tokio::test]
async fn one_dash_is_as_good_as_two_and_the_last_of_a_flag_given_twice_counts() {
    let args = ["-insecure-listen=127.0.0.1:0", "-log-format", "xml", "--log-format=json"];
    let refused = run(&args).await;
    assert_eq!(refused.status.code(), Some(2), "a value that is not used is checked all the same");
    let args = ["-insecure-listen=127.0.0.1:0", "-log-format", "text", "--log-format=json"];
    let relay = Relay::listening(Process::spawn(command(&args))).await;
    assert!(relay.wait_for_log("listening").await.raw.starts_with('{'), "JSON was the last");
}

// ---- the start

#[tokio::test]
async fn a_bare_run_serves_plain_websocket_on_127_0_0_1_8080_and_says_how_to_try_it_out() {
    // Another process of this machine may have the port: then the relay says so.
    let mut process = Process::spawn(command::<&str>(&[]));
    let end = Instant::now() + SOON;
    while !process.stderr().contains("/v1/client") && !process.has_exited() {
        assert!(Instant::now() < end, "{}", process.stderr());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if process.has_exited() {
        let exit = process.wait_exit(SOON).await;
        assert_eq!(exit.status.code(), Some(1));
        assert!(exit.stderr.contains("127.0.0.1:8080"), "{}", exit.stderr);
        assert!(exit.stderr.contains("another process listens there"), "{}", exit.stderr);
        return;
    }
    for path in ["/v1/server", "/v1/client"] {
        let line = format!("ws://127.0.0.1:8080{path}");
        assert!(process.stderr().contains(&line), "{line}:\n{}", process.stderr());
    }
    let relay = Relay::listening(process).await;
    assert_eq!(relay.addr().to_string(), "127.0.0.1:8080");
    exchange(&relay, "demo").await;
}

/// A binary and a phone of `id` meet, and each hears the other.
async fn exchange(relay: &Relay, id: &str) {
    let mut binary = Binary::connect(relay, id).await;
    let mut phone = Phone::connect(relay, id).await;
    phone.send_text("[1]").await;
    let (conn_id, frame) = open_envelope(&binary.recv_text().await);
    assert_eq!(frame, "[1]");
    binary.send_text(envelope(&conn_id, "[2]")).await;
    assert_eq!(phone.recv_text().await, "[2]");
}

#[tokio::test]
async fn port_0_takes_a_free_port_which_is_logged_and_no_host_means_all_interfaces() {
    for (listen, logged) in [("127.0.0.1:0", "127.0.0.1:"), (":0", "[::]:"), ("[::1]:0", "[::1]:")]
    {
        let args = ["--insecure-listen", listen, "--workers", "2"];
        let relay = Relay::listening(Process::spawn(command(&args))).await;
        let line = relay.wait_for_log("listening").await;
        assert!(line.get("remote").unwrap().starts_with(logged), "{}", line.raw);
        assert_ne!(relay.addr().port(), 0);
        exchange(&relay, "id").await;
        if listen == ":0" {
            for host in ["127.0.0.2", "[::1]"] {
                let addr = format!("{host}:{}", relay.addr().port());
                let mut raw = Raw::connect_any(addr.parse().unwrap()).await;
                raw.send(Request::get("/healthz")).await;
                assert_eq!(raw.response().await.status, 200, "{addr}");
            }
        }
    }
}

#[tokio::test]
async fn an_address_that_cannot_be_had_ends_the_start_with_1_and_says_why() {
    let relay = Relay::start(&[]).await;
    let taken = relay.addr().to_string();
    for (listen, says) in
        [(taken.as_str(), "another process listens there"), ("192.0.2.1:80", "no such address")]
    {
        let exit = run(&["--insecure-listen", listen]).await;
        assert_eq!(exit.status.code(), Some(1), "{}", exit.stderr);
        assert!(exit.stderr.contains(listen) && exit.stderr.contains(says), "{}", exit.stderr);
    }
    exchange(&relay, "id").await;
}

#[tokio::test]
async fn each_worker_is_one_thread_pinned_to_one_cpu() {
    let relay = Relay::start(&["--workers", "3"]).await;
    let pinned = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", relay.pid())).unwrap();
        tasks
            .map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).unwrap())
            .filter(|status| {
                let line = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
                let cpus = line("Cpus_allowed_list:").trim();
                line("Name:").trim().starts_with("worker-") && cpus.parse::<u32>().is_ok()
            })
            .count()
    };
    wait_until("three pinned workers", SOON, async || pinned() == 3).await;
}

#[tokio::test]
async fn the_soft_descriptor_limit_is_raised_to_the_hard_one() {
    let relay = Relay::start_with(&[], |relay| limit_descriptors(relay, 300, 500)).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", relay.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers, ["500", "500"], "{line}");
}

/// Has a command start with these limits on open descriptors.
#[allow(unsafe_code)]
fn limit_descriptors(command: &mut Command, soft: u64, hard: u64) {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = Rlimit { current: Some(soft), maximum: Some(hard) };
    let lower = move || Ok(setrlimit(Resource::Nofile, limit)?);
    // SAFETY: between fork and exec it makes one system call and allocates nothing.
    unsafe { command.pre_exec(lower) };
}

/// Has io_uring_setup(2) fail with `errno` for a command, as a container's seccomp profile does.
#[allow(unsafe_code)]
fn deny_io_uring(command: &mut Command, errno: i32) {
    let instruction = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let deny = libc::SECCOMP_RET_ERRNO | errno as u32;
    let filter = [
        // The system call's number is the first word of what a filter sees.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            libc::SYS_io_uring_setup as u32,
        ),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, deny),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let mut filter = filter;
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        let mode = libc::SECCOMP_MODE_FILTER;
        rustix::thread::set_no_new_privs(true)?;
        // SAFETY: the program and its filter live until the kernel has copied both.
        match unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec it makes two system calls and allocates nothing.
    unsafe { command.pre_exec(install) };
}

#[tokio::test]
async fn without_io_uring_it_says_what_forbids_it_and_how_to_mend_that() {
    for (errno, says) in
        [(libc::ENOSYS, "seccomp"), (libc::EPERM, "kernel.io_uring_disabled"), (libc::ENOMEM, "-l")]
    {
        let mut denied = command(&["--insecure-listen", "127.0.0.1:0"]);
        deny_io_uring(&mut denied, errno);
        let exit = Process::spawn(denied).wait_exit(SOON).await;
        assert_eq!(exit.status.code(), Some(1), "{}", exit.stderr);
        assert_eq!(exit.stderr.lines().count(), 1, "{}", exit.stderr);
        assert!(exit.stderr.contains("io_uring is not to be had"), "{}", exit.stderr);
        assert!(exit.stderr.contains(says), "{}", exit.stderr);
    }
}

// ---- descriptors run out

#[tokio::test]
async fn when_descriptors_run_out_live_connections_go_on_and_accepting_resumes() {
    let relay = Relay::start_with(&["--workers", "2", "--header-timeout", "60s"], |relay| {
        limit_descriptors(relay, 100, 100);
    })
    .await;
    let mut binary = Binary::connect(&relay, "id").await;
    let mut phone = Phone::connect(&relay, "id").await;
    // More than there are descriptors; the kernel completes their handshakes all the same.
    let mut crowd = Vec::new();
    for _ in 0..150 {
        crowd.push(Raw::connect(&relay).await);
    }
    relay.wait_for_log("accept_paused").await;
    let (cpu, since) = (cpu_time(&relay), Instant::now());
    for round in 0..200 {
        phone.send_text(format!("[{round}]")).await;
        let (conn_id, frame) = open_envelope(&binary.recv_text().await);
        assert_eq!(frame, format!("[{round}]"));
        binary.send_text(envelope(&conn_id, &frame)).await;
        assert_eq!(phone.recv_text().await, frame);
    }
    // It does not spin meanwhile: two workers that did would use twice the time that passes.
    wait_until("a second", SOON, async || since.elapsed() > Duration::from_secs(1)).await;
    let used = cpu_time(&relay) - cpu;
    assert!(used < since.elapsed(), "{used:?} of CPU time in {:?}", since.elapsed());
    let said = relay.logs().iter().filter(|line| line.event() == "accept_paused").count();
    assert!(said <= 2, "said {said} times by 2 workers");
    drop(crowd);
    exchange(&relay, "another").await;
    phone.send_text("\"still here\"").await;
    assert_eq!(open_envelope(&binary.recv_text().await).1, "\"still here\"");
}

/// What the process has used of the CPUs so far.
fn cpu_time(relay: &Relay) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", relay.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // USER_HZ is 100 on every Linux that Rust runs on.
    Duration::from_millis(ticks * 10)
}

// ---- the logs

#[tokio::test]
async fn every_line_parses_in_both_formats_and_has_allowed_keys_only() {
    for format in ["json", "text"] {
        let relay = Relay::start(&["--log-format", format, "--log-level", "trace"]).await;
        let events = eventful_life(&relay).await;
        relay.signal(Signal::Term);
        let mut relay = relay;
        relay.wait_exit(SOON).await;
        let lines = relay.logs();
        for line in &lines {
            assert!(!line.fields.is_empty(), "{format}: {}", line.raw);
            for key in line.fields.keys() {
                assert!(KEYS.contains(&key.as_str()), "{format}: {key} in {}", line.raw);
            }
            for key in ["time", "level", "event"] {
                assert!(line.get(key).is_some_and(|v| !v.is_empty()), "{format}: {}", line.raw);
            }
            assert_eq!(line.raw.starts_with('{'), format == "json");
        }
        let seen: BTreeSet<&str> = lines.iter().map(common::LogLine::event).collect();
        for event in events {
            assert!(seen.contains(event), "{format}: no {event} in {seen:?}");
        }
    }
}

/// Does a little of everything; returns the events that this must have logged.
async fn eventful_life(relay: &Relay) -> Vec<&'static str> {
    let mut binary = Raw::binary(relay, "id").await;
    let mut phone = Raw::phone(relay, "id").await;
    phone.send(masked(TEXT, "1")).await;
    let (conn_id, _) = open_envelope(&binary.recv_text().await);
    binary.send(masked(TEXT, envelope("nobody", "1"))).await;
    binary.send(masked(TEXT, "no envelope")).await;
    binary.send(masked(TEXT, close_directive(&conn_id, 4000))).await;
    assert_eq!(phone.closed().await.0, 4000);
    let mut crowd = Vec::new();
    for _ in 0..16 {
        crowd.push(Raw::phone(relay, "id").await);
    }
    assert_eq!(Raw::phone(relay, "id").await.closed().await.0, 4429);
    assert_eq!(Raw::phone(relay, "other").await.closed().await.0, 4404);
    let mut rival = Raw::binary(relay, "id").await;
    binary.recv_ping().await;
    binary.send(masked(TEXT, "any frame is a sign of life")).await;
    assert_eq!(rival.closed().await.0, 4409);
    binary.send(close_frame(1000, "")).await;
    relay.wait_for_log("server_released").await;
    vec![
        "listening",
        "server_claimed",
        "phone_registered",
        "phone_unregistered",
        "phone_register_at_cap",
        "phone_register_no_server",
        "server_id_conflict",
        "server_released",
        "binary_forwarder_unknown_conn_id",
    ]
}

#[tokio::test]
async fn the_level_holds_back_what_is_less_severe() {
    let relay = Relay::start(&["--log-level", "info"]).await;
    exchange(&relay, "id").await;
    relay.wait_for_log("server_claimed").await;
    let args = ["--insecure-listen", "127.0.0.1:0", "--log-level", "error"];
    let mut quiet = Process::spawn(command(&args));
    // It says nothing, so its end is the only event there is.
    let listens = async || {
        let sockets = std::fs::read_dir(format!("/proc/{}/task", quiet.pid())).unwrap();
        let names = sockets.map(|t| std::fs::read_to_string(t.unwrap().path().join("comm")));
        names.flatten().any(|name| name.starts_with("worker-"))
    };
    wait_until("a worker", SOON, listens).await;
    quiet.signal(Signal::Term);
    let exit = quiet.wait_exit(SOON).await;
    assert_eq!(exit.stderr, "");
}

const SECRETS: [&str; 4] = ["tok3n-of-the-phone", "agent/of-somebody", "payl0ad", "c00kie"];

#[tokio::test]
async fn a_hostile_value_cannot_forge_a_line_and_no_secret_is_ever_written() {
    // A header with a control character other than a tab is refused (chapter 1).
    let hostile: [&[u8]; 7] = [
        b"\" event=\"forged\" x=\"",
        b"a level=error event=forged",
        "\u{9b}2J\u{9b}31mred".as_bytes(),
        "\u{2028}\u{202e}\u{85}\u{feff}".as_bytes(),
        b"{\"event\":\"forged\"},",
        b"back\\slash\\\"=\\n\\u000a",
        b"\t tabs\tinside \t",
    ];
    for format in ["json", "text"] {
        let relay = Relay::start(&["--log-format", format, "--log-level", "trace"]).await;
        for (number, value) in hostile.into_iter().enumerate() {
            let id = [b"id ", value, b" end"].concat();
            let binary = Request::server(&id).set("X-Pyrycode-Version", value);
            let mut binary = Raw::connect(&relay).await.upgrade(secretive(binary)).await;
            let phone = Request::client(&id).header("X-Pyrycode-Device-Name", value);
            let mut phone = Raw::connect(&relay).await.upgrade(secretive(phone)).await;
            phone.send(masked(TEXT, format!("\"{}\"", SECRETS[2]))).await;
            binary.recv_text().await;
            binary.send(masked(TEXT, SECRETS[2])).await;
            binary.send(masked(TEXT, envelope(SECRETS[2], "1"))).await;
            phone.send(masked(TEXT, SECRETS[2])).await;
            assert_eq!(phone.closed().await.0, 1000, "{number}");
            phone = Raw::connect(&relay).await.upgrade(secretive(Request::client(value))).await;
            assert_eq!(phone.closed().await.0, 4404, "{number}");
            let bad = secretive(Request::client(&id)).without("X-Pyrycode-Token");
            let mut refused = Raw::connect(&relay).await;
            refused.send(bad.header("Cookie", SECRETS[3])).await;
            assert_eq!(refused.response().await.status, 400);
        }
        relay.signal(Signal::Term);
        let mut relay = relay;
        let stderr = relay.wait_exit(SOON).await.stderr;
        for secret in SECRETS {
            assert!(!stderr.contains(secret), "{format}: {secret} is in\n{stderr}");
        }
        for line in relay.logs() {
            assert!(line.raw.bytes().all(|b| (b' '..=b'~').contains(&b)), "{:?}", line.raw);
            assert!(!line.fields.is_empty(), "{format}: {}", line.raw);
            assert_ne!(line.event(), "forged", "{}", line.raw);
        }
    }
}

/// The request with values that no log may show.
fn secretive(request: Request) -> Request {
    let request = request.set("User-Agent", SECRETS[1]).header("Cookie", SECRETS[3]);
    if request.target == "/v1/client" {
        return request.set("X-Pyrycode-Token", SECRETS[0]);
    }
    request
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_nobody() {
    let mut command = command(&["--insecure-listen", "127.0.0.1:0", "--log-format", "json"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    // One line is read, for the address; then the pipe fills.
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        std::io::Read::read_exact(&mut stderr, &mut byte).unwrap();
        line.push(byte[0]);
    }
    let line = common::LogLine::parse(&String::from_utf8(line).unwrap());
    let addr = line.get("remote").unwrap().parse().unwrap();
    let mut binary = Raw::connect_to(addr).await.upgrade(Request::server("id")).await;
    // Some megabytes of lines, for a pipe of 64 KiB.
    let junk = masked(TEXT, "no envelope").repeat(500);
    for _ in 0..40 {
        binary.send(&*junk).await;
    }
    binary.assert_quiet().await;
    drop(stderr);
    binary.send(&*junk).await;
    binary.assert_quiet().await;
    child.kill().unwrap();
    child.wait().unwrap();
}

// ---- the end

#[tokio::test]
async fn a_signal_closes_everyone_with_1001_at_once_and_exits_0() {
    for signal in [Signal::Term, Signal::Interrupt] {
        let mut relay = Relay::start(&["--workers", "2"]).await;
        let mut peers = Vec::new();
        for number in 0..20 {
            let id = format!("id {number}");
            peers.push(Raw::binary(&relay, &id).await);
            peers.push(Raw::phone(&relay, &id).await);
        }
        let mut head = Raw::connect(&relay).await;
        head.send("GET /v1/client HTTP/1.1\r\n").await;
        relay.signal(signal);
        // At once: each has its close while nobody has answered any.
        for peer in &mut peers {
            let (code, reason) = peer.recv_close().await;
            assert_eq!((code, reason.as_str()), SHUTTING_DOWN);
        }
        head.assert_ended().await;
        assert!(!relay.has_exited(), "it waits for their answers");
        for peer in &mut peers {
            peer.send(close_frame(1001, "")).await;
            peer.assert_ended().await;
        }
        let exit = relay.wait_exit(SOON).await;
        assert_eq!(exit.status.code(), Some(0), "{signal:?}");
    }
}

#[tokio::test]
async fn who_stops_accepts_no_more() {
    let mut relay = Relay::start(&["--close-timeout", "60s", "--drain-timeout", "60s"]).await;
    let mut silent = Raw::binary(&relay, "id").await;
    relay.signal(Signal::Term);
    assert_eq!(silent.recv_close().await.0, 1001);
    let refused = async || tokio::net::TcpStream::connect(relay.addr()).await.is_err();
    wait_until("connections refused", SOON, refused).await;
    silent.send(close_frame(1001, "")).await;
    assert_eq!(relay.wait_exit(SOON).await.status.code(), Some(0));
}

#[tokio::test]
async fn who_does_not_answer_has_the_drain_timeout_and_no_more() {
    let timeout = Duration::from_millis(700);
    let args = ["--close-timeout", "60s", "--drain-timeout", "700ms"];
    let mut relay = Relay::start(&args).await;
    let mut silent = Raw::binary(&relay, "id").await;
    let begun = Instant::now();
    relay.signal(Signal::Term);
    assert_eq!(silent.recv_close().await.0, 1001);
    let exit = relay.wait_exit(SOON).await;
    assert_eq!(exit.status.code(), Some(0));
    assert!(begun.elapsed() >= timeout, "it did not wait: {:?}", begun.elapsed());
    let ended = silent.frame_after_pings().await;
    assert_eq!(ended, None, "one close frame only");
}

#[tokio::test]
async fn a_second_signal_exits_at_once() {
    for second in [Signal::Term, Signal::Interrupt] {
        let args = ["--close-timeout", "60s", "--drain-timeout", "60s"];
        let mut relay = Relay::start(&args).await;
        let mut silent = Raw::binary(&relay, "id").await;
        relay.signal(Signal::Term);
        assert_eq!(silent.recv_close().await.0, 1001);
        assert!(!relay.has_exited());
        relay.signal(second);
        relay.wait_exit(SOON).await;
    }
}

#[tokio::test]
async fn nobody_there_means_nothing_to_wait_for() {
    let mut relay = Relay::start(&["--drain-timeout", "60s"]).await;
    relay.health().await;
    relay.signal(Signal::Term);
    assert_eq!(relay.wait_exit(SOON).await.status.code(), Some(0));
}

#[tokio::test]
async fn the_shutdown_close_is_the_only_one_also_for_who_is_closing_already() {
    let mut relay = Relay::start(&[]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut phone = Raw::phone(&relay, "id").await;
    phone.send(masked(TEXT, "not JSON")).await;
    assert_eq!(phone.recv_close().await.0, 1000);
    relay.signal(Signal::Term);
    let close = loop {
        let frame = binary.frame_after_pings().await.expect("a close");
        if frame.opcode == CLOSE {
            break frame;
        }
    };
    assert_eq!(close.close(), SHUTTING_DOWN);
    phone.send(close_frame(1000, "")).await;
    phone.assert_ended().await;
    binary.send(close_frame(1001, "")).await;
    binary.assert_ended().await;
    assert_eq!(relay.wait_exit(SOON).await.status.code(), Some(0));
}
