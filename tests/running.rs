//! PROTOCOL.md, chapter 7: running the relay.
//!
//! - here: flags, listeners, the end, what is logged, standard streams, the machine
//! - `floods`: what floods cost in the log

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    missing_docs
)]

mod common;

#[path = "running/floods.rs"]
mod floods;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{
    Binary, Exit, LogLine, PONG, Phone, Process, Raw, Relay, Request, SOON, Signal, TEXT,
    close_frame, close_standard_streams, command, deny, envelope, limit_descriptors, masked,
    open_envelope, own_address, run, wait_until,
};

const SHUTTING_DOWN: (u16, &str) = (1001, "shutting down");

/// Every flag that takes a value, and its default as the help tells it.
const FLAGS: [(&str, &str); 43] = [
    ("--domain", ""),
    ("--https-listen", ":443"),
    ("--http-listen", ":80"),
    ("--cert-cache", "$STATE_DIRECTORY/certificates"),
    ("--tls-cert", ""),
    ("--tls-key", ""),
    ("--acme-directory", "Let's Encrypt's"),
    ("--acme-ca", ""),
    ("--https-proxy-protocol", ""),
    ("--proxy-protocol-from", ""),
    ("--trust-x-forwarded-for", ""),
    ("--metrics-listen", "127.0.0.1:9090"),
    ("--control-socket", "control.sock in $RUNTIME_DIRECTORY, none without that"),
    ("--block", ""),
    ("--allow-server-ids", ""),
    ("--token-header", "required"),
    ("--new-connections-rate", "off"),
    ("--drain-spread", "0s"),
    ("--verify-url", ""),
    ("--verify-timeout", "3s"),
    ("--verify-on-failure", "deny"),
    ("--server-id-rate", "off"),
    ("--rate-limit", "20/6s"),
    ("--handshake-rate", "60/1s"),
    ("--max-connections", "what descriptors and memory allow"),
    ("--max-connections-per-address", "a quarter of --max-connections, at least 16"),
    ("--insecure-listen", "127.0.0.1:8080"),
    ("--workers", "the CPUs that this process may use"),
    ("--io-uring-without", ""),
    ("--memory-budget", "a quarter of the memory limit"),
    ("--max-phones", "16"),
    ("--grace", "30s"),
    ("--probe-timeout", "10s"),
    ("--heartbeat-interval", "30s"),
    ("--heartbeat-timeout", "30s"),
    ("--header-timeout", "5s"),
    ("--message-timeout", "30s"),
    ("--write-timeout", "10s"),
    ("--close-timeout", "5s"),
    ("--drain-timeout", "10s"),
    ("--config", ""),
    ("--log-format", "text"),
    ("--log-level", "info"),
];

fn assert_code(exit: &Exit, code: i32, what: &str) {
    assert_eq!(exit.status.code(), Some(code), "{what}: {:?}: {}", exit.status, exit.stderr);
}

/// A refusal is one line on standard error, without anything that could pass for another.
fn assert_one_line(exit: &Exit, what: &str) {
    let line = exit.stderr.strip_suffix('\n').unwrap_or_else(|| panic!("{what}: no line"));
    assert!(line.starts_with("pyrycode-relay: "), "{what}: {line}");
    assert!(!line.contains(char::is_control), "{what}: {line:?}");
    assert_eq!(exit.stdout, "", "{what}");
}

/// The relay's own threads that carry connections, and the CPUs of each.
fn workers(process: &Process) -> BTreeMap<String, String> {
    process.threads().into_iter().filter(|(name, _)| name.starts_with("worker-")).collect()
}

async fn refuses_connections(addr: SocketAddr) -> bool {
    tokio::net::TcpStream::connect(addr).await.is_err()
}

/// A binary and a phone of `id`, and the phone's conn_id.
async fn pair(relay: &Relay, id: &str) -> (Raw, Raw, String) {
    let mut binary = Raw::binary(relay, id).await;
    let mut phone = Raw::phone(relay, id).await;
    phone.send(masked(TEXT, "\"hello\"")).await;
    let (conn_id, frame) = open_envelope(&binary.recv_text().await);
    assert_eq!(frame, "\"hello\"");
    (binary, phone, conn_id)
}

/// One frame each way.
async fn exchange(binary: &mut Raw, phone: &mut Raw, conn_id: &str, number: usize) {
    phone.send(masked(TEXT, format!("[{number}]"))).await;
    let expected = (conn_id.to_owned(), format!("[{number}]"));
    assert_eq!(open_envelope(&binary.recv_text().await), expected);
    binary.send(masked(TEXT, envelope(conn_id, &format!("{{\"n\":{number}}}")))).await;
    assert_eq!(phone.recv_text().await, format!("{{\"n\":{number}}}"));
}

// ---- what a stranger is told

/// The text of each flag in the help.
fn help_sections(help: &str) -> BTreeMap<String, String> {
    let mut sections = BTreeMap::new();
    let mut current: Option<String> = None;
    for line in help.lines() {
        let mut text = line.trim();
        // Text that goes on is indented further, and may begin with the name of another flag.
        let begins = line.find('-').is_some_and(|at| at <= 6) && text.starts_with('-');
        if let Some(at) = text.find("--").filter(|_| begins) {
            let length = text[at..].find([' ', '=', '[']).unwrap_or(text.len() - at);
            current = Some(text[at..at + length].to_owned());
            // Two spaces stand between the flag and its text.
            text = text.split_once("  ").map_or("", |(_, text)| text.trim());
        } else if !text.is_empty() && !line.starts_with("      ") {
            current = None;
        }
        if let Some(name) = &current {
            let section: &mut String = sections.entry(name.clone()).or_default();
            *section += &format!(" {text}");
        }
    }
    sections
}

#[tokio::test]
async fn help_names_every_flag_with_its_default_and_how_to_try_it() {
    let mut texts = BTreeSet::new();
    for flag in ["--help", "-help", "-h"] {
        let exit = run(&[flag]).await;
        assert_code(&exit, 0, flag);
        assert_eq!(exit.stderr, "", "{flag}");
        texts.insert(exit.stdout);
    }
    // -h may be shorter, but it too must name every flag.
    for help in &texts {
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        for says in ["phone", "server-id", "Usage: pyrycode-relay", "500ms", "256MiB", "24h"] {
            assert!(help.contains(says), "{says}:\n{help}");
        }
        for path in ["/v1/server", "/v1/client"] {
            // As a shell reads it: a line that goes on says so.
            let unwrapped = help.replace("\\\n", "");
            let mut lines = unwrapped.lines().filter(|line| line.contains("npx wscat"));
            let line = lines.find(|line| line.contains(path)).expect("a command for each side");
            let (addr, request) = printed_request(line);
            assert_eq!((addr.as_str(), request.headers.len()), ("127.0.0.1:8080", 8), "{line}");
        }
        let sections = help_sections(help);
        let named: BTreeSet<&str> = sections.keys().map(String::as_str).collect();
        let known = FLAGS.iter().map(|(flag, _)| *flag).chain(["--help", "--version"]);
        assert_eq!(named, known.collect(), "{help}");
        for (flag, default) in FLAGS {
            let text = &sections[flag];
            let told = default.is_empty() || text.contains(&format!("[default: {default}"));
            assert!(told, "{flag}: {text}");
            let sense = text.split("[default").next().unwrap();
            assert!(sense.len() > 20, "{flag} is not explained: {text}");
        }
    }
}

#[tokio::test]
async fn version_is_one_line_on_standard_output() {
    for flag in ["--version", "-version"] {
        let exit = run(&[flag]).await;
        assert_code(&exit, 0, flag);
        let commit = env!("PYRYCODE_RELAY_COMMIT");
        assert_eq!(exit.stdout, format!("pyrycode-relay {}+{commit}\n", env!("CARGO_PKG_VERSION")));
        assert_eq!(exit.stderr, "", "{flag}");
    }
}

#[tokio::test]
async fn help_to_a_reader_that_is_gone_is_no_panic() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    for flag in ["--help", "--version"] {
        let writer = writer.try_clone().unwrap();
        let mut process = Process::spawn_with(command(&[flag]), writer, Stdio::piped());
        let exit = process.wait_exit(SOON).await;
        assert_eq!(exit.status.signal(), None, "{flag}: {}", exit.stderr);
        assert_eq!(exit.stderr, "", "{flag}");
    }
}

// ---- refusals

/// What is refused, and what the one line must say: whose fault it is, what is wrong, the mend.
const REFUSALS: &[(&[&str], &[&str])] = &[
    // Durations.
    (&["--grace", "30"], &["--grace", "\"30\" has no unit", "write 30s"]),
    (&["--grace=30"], &["--grace", "has no unit"]),
    (&["-grace", "30"], &["--grace", "has no unit"]),
    (&["--grace", "0s"], &["--grace", "too short", "at least 1ms"]),
    (&["--grace", "-5s"], &["--grace", "\"-5s\"", "write 30s"]),
    (&["--grace", "soon"], &["--grace", "\"soon\"", "write 30s"]),
    (&["--grace", ""], &["--grace", "empty", "write 30s"]),
    (&["--grace="], &["--grace", "empty", "write 30s"]),
    (&["--grace", "5d"], &["--grace", "unknown unit \"d\"", "use ms, s, m or h"]),
    (&["--grace", "5 s"], &["--grace", "unit"]),
    (&["--grace", "25h"], &["--grace", "too long", "at most 24h"]),
    (&["--grace", "99999999999999999999s"], &["--grace", "too long", "at most 24h"]),
    (&["--grace", "1e3s"], &["--grace", "unit"]),
    (&["--grace", "0.0001s"], &["--grace", "milliseconds"]),
    (&["--probe-timeout", "0s"], &["--probe-timeout", "at least 1ms"]),
    (&["--heartbeat-interval", "0s"], &["--heartbeat-interval", "at least 1ms"]),
    (&["--heartbeat-timeout", "0s"], &["--heartbeat-timeout", "at least 1ms"]),
    (&["--header-timeout", "0s"], &["--header-timeout", "at least 1ms"]),
    (&["--message-timeout", "0s"], &["--message-timeout", "at least 1ms"]),
    (&["--write-timeout", "0s"], &["--write-timeout", "at least 1ms"]),
    (&["--close-timeout", "0s"], &["--close-timeout", "at least 1ms"]),
    (&["--drain-timeout", "-1s"], &["--drain-timeout", "0 or more"]),
    (&["--drain-timeout", "0"], &["--drain-timeout", "has no unit"]),
    (&["--drain-timeout", "25h"], &["--drain-timeout", "at most 24h"]),
    // Sizes.
    (&["--memory-budget", "256M"], &["--memory-budget", "write 256MiB or 256MB"]),
    (&["--memory-budget", "much"], &["--memory-budget", "\"much\" is not a size", "256MiB"]),
    (&["--memory-budget", ""], &["--memory-budget", "is not a size"]),
    (&["--memory-budget", "-1MiB"], &["--memory-budget", "is not a size"]),
    (&["--memory-budget", "0"], &["--memory-budget", "too little", "at least 1MiB"]),
    (&["--memory-budget", "1023KiB"], &["--memory-budget", "at least 1MiB"]),
    (&["--memory-budget", "99999999TiB"], &["--memory-budget", "too large", "at most"]),
    (&["--memory-budget", "1000TiB"], &["--memory-budget", "more than the", "memory"]),
    (
        &["--memory-budget", "1MiB", "--workers", "8"],
        &["--memory-budget", "too little for 8 workers", "at least 8MiB", "--workers"],
    ),
    // Counts.
    (&["--workers", "0"], &["--workers", "too few", "at least 1"]),
    (&["--workers", "-1"], &["--workers", "\"-1\"", "from 1 to 1024"]),
    (&["--workers", "1.5"], &["--workers", "\"1.5\"", "from 1 to 1024"]),
    (&["--workers", "two"], &["--workers", "\"two\"", "from 1 to 1024"]),
    (&["--workers", ""], &["--workers", "from 1 to 1024"]),
    (&["--workers", "1025"], &["--workers", "too large", "at most 1024"]),
    (&["--workers", "99999999999999999999"], &["--workers", "too large", "at most 1024"]),
    (&["--max-phones", "0"], &["--max-phones", "at least 1"]),
    (&["--max-phones", "65537"], &["--max-phones", "at most 65536"]),
    // Addresses.
    (&["--insecure-listen", "8080"], &["--insecure-listen", "\"8080\" is not host:port", ":8080"]),
    (&["--insecure-listen", ""], &["--insecure-listen", "is not host:port", ":8080"]),
    (&["--insecure-listen", "127.0.0.1"], &["--insecure-listen", "is not host:port"]),
    (&["--insecure-listen", "127.0.0.1:"], &["--insecure-listen", "no port", ":8080"]),
    (&["--insecure-listen", ":http"], &["--insecure-listen", "no port from 0 to 65535"]),
    (&["--insecure-listen", ":65536"], &["--insecure-listen", "no port from 0 to 65535"]),
    (&["--insecure-listen", ":-1"], &["--insecure-listen", "no port from 0 to 65535"]),
    (&["--insecure-listen", ":+80"], &["--insecure-listen", "no port from 0 to 65535"]),
    (&["--insecure-listen", "127.0.1:80"], &["--insecure-listen", "no valid IP address"]),
    (&["--insecure-listen", "256.0.0.1:80"], &["--insecure-listen", "no valid IP address"]),
    (&["--insecure-listen", "::1:80"], &["--insecure-listen", "no valid IP address", "[::1]"]),
    (&["--insecure-listen", "[::1]"], &["--insecure-listen"]),
    (&["--insecure-listen", "[::1:80"], &["--insecure-listen", "no valid IP address"]),
    (&["--insecure-listen", "[127.0.0.1]:80"], &["--insecure-listen", "no valid IP address"]),
    (&["--insecure-listen", "http://localhost:80"], &["--insecure-listen", "no valid IP address"]),
    (&["--insecure-listen", " :80"], &["--insecure-listen", "no valid IP address"]),
    // Choices.
    (&["--log-format", "xml"], &["--log-format", "\"xml\"", "text, json"]),
    (&["--log-format", "JSON"], &["--log-format", "\"JSON\"", "text, json"]),
    (&["--log-format", ""], &["--log-format", "text, json"]),
    (&["--log-level", "loud"], &["--log-level", "\"loud\"", "error, warn, info, debug, trace"]),
    // What is no flag of this relay, or lacks something.
    (&["--nonsense"], &["--nonsense", "not a flag", "--help"]),
    (&["-nonsense"], &["--nonsense", "not a flag", "--help"]),
    (&["--nonsense=5"], &["--nonsense", "not a flag", "--help"]),
    (&["--worker", "2"], &["--worker ", "did you mean --workers", "--help"]),
    (&["-x"], &["-x", "not a flag", "--help"]),
    (&["junk"], &["junk", "not a flag", "--help"]),
    (&["--workers", "1", "junk"], &["junk", "not a flag", "--help"]),
    (&["--", "junk"], &["junk", "--help"]),
    (&[""], &["not a flag", "--help"]),
    (&["--workers"], &["--workers", "needs a value"]),
    (&["--insecure-listen"], &["--insecure-listen", "needs a value", "HOST:PORT"]),
    (&["--grace", "5s", "--log-format"], &["--log-format", "needs a value", "text, json"]),
    (&["--version=1"], &["--version"]),
    // One bad flag among good ones, and what would forge a second line.
    (&["--workers", "1", "--grace", "x", "--log-format", "json"], &["--grace", "\"x\""]),
    (&["--grace", "5s\nlevel=error event=forged"], &["--grace"]),
    (&["--\u{1b}[31mred\r\n"], &["not a flag", "--help"]),
    (&["junk\u{85}\u{7}\n"], &["not a flag", "--help"]),
    (&["--log-level", "\u{1b}]0;title\u{7}"], &["--log-level", "error, warn"]),
];

#[tokio::test]
async fn what_cannot_be_served_is_refused_in_one_line_that_mends_it() {
    for (args, says) in REFUSALS {
        let what = format!("{args:?}");
        let exit = run(args).await;
        assert_code(&exit, 2, &what);
        assert_one_line(&exit, &what);
        for words in *says {
            assert!(exit.stderr.contains(words), "{what}: no {words:?} in: {}", exit.stderr);
        }
    }
}

#[tokio::test]
async fn an_argument_that_is_no_text_is_refused_in_one_line() {
    for args in [&[b"--workers" as &[u8], b"\xff\xfe"] as &[&[u8]], &[b"\xff"], &[b"--gr\xffce"]] {
        let mut command = command::<&str>(&[]);
        command.args(args.iter().map(|arg| OsStr::from_bytes(arg)));
        let exit = Process::spawn(command).wait_exit(SOON).await;
        assert_code(&exit, 2, &format!("{args:?}"));
        assert_one_line(&exit, &format!("{args:?}"));
    }
}

#[tokio::test]
async fn one_dash_is_as_good_as_two_and_the_last_of_a_flag_counts() {
    let args =
        ["-workers=1", "-insecure-listen", "127.0.0.1:0", "-log-format=json", "--workers", "3"];
    let relay = Relay::listening(Process::spawn(command(&args))).await;
    assert!(relay.logs()[0].raw.starts_with('{'), "{}", relay.stderr());
    assert_eq!(relay.health().await.status, "ok");
    assert_eq!(workers(&relay).len(), 3, "{:?}", relay.threads());
}

// ---- listening

/// The request that a printed `npx wscat` command would make, and where to.
fn printed_request(line: &str) -> (String, Request) {
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[..3], ["npx", "wscat", "-c"], "{line}");
    let (addr, path) = words[3].strip_prefix("ws://").unwrap().split_once('/').unwrap();
    let mut request = Request::upgrade(&format!("/{path}"));
    for header in words[4..].chunks(2) {
        assert_eq!(header[0], "-H", "{line}");
        let (name, value) = header[1].split_once(':').unwrap();
        request = request.set(name, value);
    }
    (addr.to_owned(), request)
}

/// A relay without any listening flag. Its port may be taken, for a while or for good, by what is
/// no business of this test: then the relay must have said so.
async fn start_bare(args: &[&str]) -> Option<Relay> {
    let patience = Instant::now() + Duration::from_secs(3);
    loop {
        let mut process = Process::spawn(command(args));
        let mut exited = false;
        wait_until("a bare relay listens or ends", SOON, async || {
            exited = process.has_exited();
            exited || process.logs().iter().any(|line| line.event() == "listening")
        })
        .await;
        if !exited {
            return Some(Relay::listening(process).await);
        }
        let exit = process.wait_exit(SOON).await;
        assert_code(&exit, 1, "a bare run");
        assert!(exit.stderr.contains("cannot listen on 127.0.0.1:8080"), "{}", exit.stderr);
        if Instant::now() > patience {
            eprintln!("port 8080 is taken: the rest of this test cannot run");
            return None;
        }
    }
}

#[tokio::test]
async fn a_bare_run_serves_loopback_8080_and_prints_two_lines_that_try_it_out() {
    let Some(mut relay) = start_bare(&[]).await else { return };
    assert_eq!(relay.addr(), "127.0.0.1:8080".parse().unwrap());
    wait_until("the two lines", SOON, async || relay.stdout().contains("npx fetches it")).await;
    let said = relay.stdout();
    let (first, commands) = said.split_once('\n').unwrap();
    assert!(first.contains("plain WebSocket on 127.0.0.1:8080"), "{said}");
    let mut peers = Vec::new();
    for line in commands.lines().filter(|line| line.contains("npx wscat")) {
        let (addr, request) = printed_request(line);
        assert_eq!(addr, "127.0.0.1:8080");
        peers.push(Raw::connect(&relay).await.upgrade(request).await);
    }
    let [binary, phone] = &mut peers[..] else { panic!("two lines: {said}") };
    assert!(said.contains("Frames are JSON: type {\"hello\":1} at the phone"), "{said}");
    phone.send(masked(TEXT, "{\"hello\":1}")).await;
    let seen = binary.recv_text().await;
    assert_eq!(open_envelope(&seen).1, "{\"hello\":1}");
    // To answer, that line is pasted.
    binary.send(masked(TEXT, seen)).await;
    assert_eq!(phone.recv_text().await, "{\"hello\":1}");
    // What is meant for people is not among the log's lines.
    assert!(relay.logs().iter().all(|line| !line.event().is_empty()), "{}", relay.stderr());
    drop(peers);
    relay.signal(Signal::Term);
    assert_code(&relay.wait_exit(SOON).await, 0, "SIGTERM");
}

#[tokio::test]
async fn the_bound_address_is_logged_and_nothing_else_is_bound() {
    for format in ["text", "json"] {
        let args = ["--insecure-listen", "127.0.0.1:0", "--log-format", format];
        let relay = Relay::start(&args).await;
        let line = relay.wait_for_log("listening").await;
        let port = relay.addr().port();
        assert_ne!(port, 0);
        assert_eq!(line.get("remote"), Some(format!("127.0.0.1:{port}").as_str()));
        assert_eq!(relay.health().await.status, "ok");
        assert!(refuses_connections(SocketAddr::from(([127, 0, 0, 2], port))).await);
        assert_eq!(relay.stdout(), "", "only a run without a listening flag explains itself");
    }
}

async fn answers(addr: SocketAddr) -> bool {
    let mut raw = Raw::connect_to(addr).await;
    raw.send(Request::get("/healthz")).await;
    raw.response().await.status == 200
}

#[tokio::test]
async fn no_host_means_all_interfaces_of_both_ip_versions() {
    let relay = Relay::start(&["--insecure-listen", ":0"]).await;
    let port = relay.addr().port();
    assert!(answers(SocketAddr::from(([127, 0, 0, 1], port))).await);
    assert!(answers(SocketAddr::from(([127, 9, 9, 9], port))).await);
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        let v6 = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
        let mut stream = common::soon("connect", tokio::net::TcpStream::connect(v6)).await.unwrap();
        let head = Request::get("/healthz").bytes();
        tokio::io::AsyncWriteExt::write_all(&mut stream, &head).await.unwrap();
        let mut start = [0; 12];
        let read = tokio::io::AsyncReadExt::read_exact(&mut stream, &mut start);
        common::soon("an answer", read).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 200");
    }
    let mapped = Binary::connect(&relay, "id").await;
    let line = relay.wait_for_log("server_claimed").await;
    assert!(line.get("remote").unwrap().starts_with("127.0.0.1:"), "{}", line.raw);
    drop(mapped);
}

#[tokio::test]
async fn no_host_means_all_interfaces_where_the_kernel_has_no_ipv6() {
    let relay = Relay::start_with(&["--insecure-listen", ":0"], |command| {
        let ipv6 = u32::try_from(libc::AF_INET6).unwrap();
        deny(command, libc::SYS_socket, Some(ipv6), libc::EAFNOSUPPORT);
    })
    .await;
    assert!(answers(SocketAddr::from(([127, 9, 9, 9], relay.addr().port()))).await);
    let line = relay.wait_for_log("listening").await;
    assert!(line.get("remote").unwrap().starts_with("0.0.0.0:"), "{}", line.raw);
}

#[tokio::test]
async fn a_name_and_an_ipv6_address_can_be_listened_on() {
    let relay = Relay::start(&["--insecure-listen", "localhost:0"]).await;
    assert!(relay.addr().is_ipv4());
    assert_eq!(relay.health().await.status, "ok");
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        let relay = Relay::start(&["--insecure-listen", "[::1]:0"]).await;
        assert!(relay.addr().is_ipv6());
        assert!(tokio::net::TcpStream::connect(relay.addr()).await.is_ok());
    }
}

#[tokio::test]
async fn an_address_that_cannot_be_had_ends_the_relay_with_1() {
    // Another relay shares its port among its own workers, and with nobody else.
    let relay = Relay::start(&[]).await;
    let everywhere = Relay::start(&["--insecure-listen", "0.0.0.0:0"]).await;
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = "another process listens there";
    let cases = [
        (relay.addr().to_string(), taken),
        (format!(":{}", relay.addr().port()), taken),
        (everywhere.addr().to_string(), taken),
        (other.local_addr().unwrap().to_string(), taken),
        ("203.0.113.7:0".to_owned(), "no such address"),
    ];
    for (address, mend) in cases {
        let exit = run(&["--insecure-listen", &address]).await;
        assert_code(&exit, 1, &address);
        assert_one_line(&exit, &address);
        let shown =
            address.strip_prefix(':').map_or(address.clone(), |port| format!("[::]:{port}"));
        assert!(exit.stderr.contains(&format!("cannot listen on {shown}")), "{}", exit.stderr);
        assert!(exit.stderr.contains(mend), "{}", exit.stderr);
    }
    for _ in 0..20 {
        assert_eq!(relay.health().await.status, "ok");
    }
}

// ---- asked to stop

#[tokio::test]
async fn everyone_is_told_at_once_and_the_relay_ends_with_0() {
    for signal in [Signal::Term, Signal::Interrupt] {
        // No deadline that could end the test before the peers do.
        let mut relay = Relay::start(&["--drain-timeout", "1h", "--close-timeout", "1h"]).await;
        let mut peers = Vec::new();
        for id in 0..8 {
            let (binary, phone, _) = pair(&relay, &format!("id-{id}")).await;
            let second = Raw::phone(&relay, &format!("id-{id}")).await;
            peers.extend([binary, phone, second]);
        }
        // Phones of a binary that is gone, and a newcomer that waits for a probe.
        let (lost, orphan, _) = pair(&relay, "in-grace").await;
        lost.abort();
        relay
            .wait_for_log_where("server_released", |l| l.get("server_id") == Some("in-grace"))
            .await;
        peers.push(orphan);
        let mut holder = Raw::binary(&relay, "probed").await;
        let newcomer = Raw::binary(&relay, "probed").await;
        holder.recv_ping().await;
        peers.extend([holder, newcomer]);
        // Nobody answers before everybody has been told.
        relay.signal(signal);
        for peer in &mut peers {
            let (code, reason) = peer.recv_close().await;
            assert_eq!((code, reason.as_str()), SHUTTING_DOWN);
        }
        assert!(!relay.has_exited(), "it waits for their answers");
        for mut peer in peers {
            peer.send(close_frame(SHUTTING_DOWN.0, "")).await;
            peer.assert_ended().await;
        }
        let exit = relay.wait_exit(SOON).await;
        assert_code(&exit, 0, &format!("{signal:?}"));
        assert!(exit.stderr.contains("\"drained\""), "{}", exit.stderr);
    }
}

#[tokio::test]
async fn ordinary_clients_see_an_ordinary_close() {
    let mut relay = Relay::start(&[]).await;
    let mut binary = Binary::connect(&relay, "id").await;
    let mut phone = Phone::connect(&relay, "id").await;
    relay.wait_for_counts(1, 1).await;
    relay.signal(Signal::Term);
    let (one, two) = tokio::join!(binary.recv_close(), phone.recv_close());
    assert_eq!((one.0, one.1.as_str()), SHUTTING_DOWN);
    assert_eq!((two.0, two.1.as_str()), SHUTTING_DOWN);
    drop((binary, phone));
    assert_code(&relay.wait_exit(SOON).await, 0, "SIGTERM");
}

#[tokio::test]
async fn with_nobody_there_it_ends_at_once() {
    for signal in [Signal::Term, Signal::Interrupt] {
        let mut relay = Relay::start(&["--drain-timeout", "1h"]).await;
        relay.signal(signal);
        assert_code(&relay.wait_exit(SOON).await, 0, &format!("{signal:?}"));
    }
}

#[tokio::test]
async fn the_listener_is_closed_and_half_open_heads_are_cut_while_it_drains() {
    // Most workers have no connection and end at once, and still nobody is to reach their listeners.
    let args = ["--drain-timeout", "1h", "--close-timeout", "1h", "--header-timeout", "1h"];
    let mut relay = Relay::start(&[&args[..], &["--workers", "8"]].concat()).await;
    let mut phone = Raw::binary(&relay, "id").await;
    let mut silent = Raw::connect(&relay).await;
    let mut half = Raw::connect(&relay).await;
    half.send("GET /v1/server HTTP/1.1\r\nHost: rel").await;
    let mut kept = Raw::connect(&relay).await;
    kept.send(Request::get("/healthz")).await;
    assert_eq!(kept.response().await.status, 200);
    // All three were accepted once the relay has as many descriptors more.
    let before = relay.descriptors();
    relay.signal(Signal::Term);
    phone.recv_close().await;
    silent.assert_ended().await;
    half.assert_ended().await;
    kept.assert_ended().await;
    wait_until("the listener is closed", SOON, async || refuses_connections(relay.addr()).await)
        .await;
    wait_until("the descriptors are closed", SOON, async || relay.descriptors() < before).await;
    assert!(!relay.has_exited(), "one peer has not answered");
    phone.send(close_frame(SHUTTING_DOWN.0, "")).await;
    phone.assert_ended().await;
    drop(phone);
    assert_code(&relay.wait_exit(SOON).await, 0, "SIGTERM");
}

#[tokio::test]
async fn a_peer_that_does_not_answer_holds_it_up_for_the_drain_timeout_only() {
    let mut relay = Relay::start(&["--drain-timeout", "700ms", "--close-timeout", "1h"]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let asked = Instant::now();
    relay.signal(Signal::Term);
    binary.recv_close().await;
    // Frames are no answer, and a pong is none either.
    binary.send(masked(PONG, "")).await;
    let exit = relay.wait_exit(SOON).await;
    assert!(common::is_over(asked, Duration::from_millis(700)), "{:?}", asked.elapsed());
    assert_code(&exit, 0, "SIGTERM");
    let warned = exit.stderr.lines().map(LogLine::parse).any(|l| l.event() == "drain_timeout");
    assert!(warned, "{}", exit.stderr);
}

#[tokio::test]
async fn a_peer_that_does_not_answer_is_cut_at_the_close_timeout() {
    let mut relay = Relay::start(&["--drain-timeout", "1h", "--close-timeout", "300ms"]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let asked = Instant::now();
    relay.signal(Signal::Term);
    binary.recv_close().await;
    binary.assert_ended().await;
    assert!(common::is_over(asked, Duration::from_millis(300)), "{:?}", asked.elapsed());
    assert_code(&relay.wait_exit(SOON).await, 0, "SIGTERM");
}

#[tokio::test]
async fn a_drain_timeout_of_0s_waits_for_nobody() {
    let mut relay = Relay::start(&["--drain-timeout", "0s", "--close-timeout", "1h"]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    relay.signal(Signal::Term);
    assert_code(&relay.wait_exit(SOON).await, 0, "SIGTERM");
    binary.rest().await;
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    for (first, second) in [
        (Signal::Term, Signal::Term),
        (Signal::Interrupt, Signal::Interrupt),
        (Signal::Term, Signal::Interrupt),
        (Signal::Interrupt, Signal::Term),
    ] {
        let mut relay = Relay::start(&["--drain-timeout", "1h", "--close-timeout", "1h"]).await;
        let mut binary = Raw::binary(&relay, "id").await;
        relay.signal(first);
        binary.recv_close().await;
        assert!(!relay.has_exited());
        relay.signal(second);
        assert_code(&relay.wait_exit(SOON).await, 0, &format!("{first:?}, {second:?}"));
    }
}

/// Shutdown does not wait behind an outbox, and a peer that takes nothing in does not hold it up.
#[tokio::test]
async fn a_peer_that_does_not_read_does_not_hold_it_up() {
    let mut relay = Relay::start(&["--drain-timeout", "1h", "--close-timeout", "500ms"]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut phone = Raw::narrow(&relay, 4096).await.upgrade(Request::client("id")).await;
    phone.send(masked(TEXT, "1")).await;
    let (conn_id, _) = open_envelope(&binary.recv_text().await);
    let frame = format!("\"{}\"", "x".repeat(200_000));
    for _ in 0..10 {
        binary.send(masked(TEXT, envelope(&conn_id, &frame))).await;
    }
    binary.assert_quiet().await;
    relay.signal(Signal::Term);
    let (code, reason) = binary.closed().await;
    assert_eq!((code, reason.as_str()), SHUTTING_DOWN);
    assert_code(&relay.wait_exit(SOON).await, 0, "SIGTERM");
    drop(phone);
}

// ---- logs

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

/// Every line is an event of known keys, and of nothing but printable ASCII.
fn assert_well_formed(lines: &[LogLine], format: &str) {
    assert!(!lines.is_empty());
    for line in lines {
        assert!(line.raw.bytes().all(|b| (b' '..=b'~').contains(&b)), "{:?}", line.raw);
        assert_eq!(line.raw.starts_with('{'), format == "json", "{}", line.raw);
        for key in line.fields.keys() {
            assert!(KEYS.contains(&key.as_str()), "{key}: {}", line.raw);
        }
        for key in ["time", "level", "event"] {
            assert!(line.get(key).is_some(), "no {key}: {}", line.raw);
        }
        let level = line.get("level").unwrap();
        assert!(["error", "warn", "info", "debug", "trace"].contains(&level), "{}", line.raw);
        let event = line.event();
        assert!(event.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", line.raw);
        let time = line.get("time").unwrap();
        assert!(time.len() == 24 && time.ends_with('Z') && time.contains('T'), "{}", line.raw);
    }
}

/// Brings about every event that a peer can bring about quickly.
async fn eventful(relay: &Relay) {
    let (mut binary, mut phone, conn_id) = pair(relay, "id").await;
    // One phone may be there at a time.
    Phone::connect(relay, "id").await.recv_close().await;
    Phone::connect(relay, "nobody").await.recv_close().await;
    // The holder lives.
    let mut second = Raw::binary(relay, "id").await;
    binary.recv_ping().await;
    binary.send(masked(PONG, "")).await;
    assert_eq!(second.closed().await.0, 4409);
    binary.send(masked(TEXT, "no envelope")).await;
    binary.send(masked(TEXT, r#"{"push_wake":{"platform":"fcm","token":"t"}}"#)).await;
    exchange(&mut binary, &mut phone, &conn_id, 1).await;
    phone.send(masked(TEXT, "no json")).await;
    phone.closed().await;
    binary.send(masked(TEXT, envelope(&conn_id, "1"))).await;
    let phone = Raw::phone(relay, "id").await;
    phone.abort();
    relay.wait_for_counts(1, 0).await;
    let mut rude = Raw::binary(relay, "rude").await;
    rude.send(masked(3, "")).await;
    rude.closed().await;
    // The holder is silent.
    let mut holder = Raw::binary(relay, "silent").await;
    let mut newcomer = Raw::binary(relay, "silent").await;
    holder.recv_ping().await;
    assert_eq!(holder.closed().await.0, 1011);
    newcomer.send(close_frame(1000, "")).await;
    newcomer.rest().await;
    binary.send(close_frame(1000, "")).await;
    binary.rest().await;
    relay.wait_for_counts(0, 0).await;
}

const EVENTFUL_FLAGS: [&str; 6] = ["--max-phones", "1", "--probe-timeout", "1s", "--grace", "1h"];

#[tokio::test]
async fn events_have_the_go_relay_s_names_and_the_keys_that_belong_to_them() {
    for format in ["text", "json"] {
        let mut args = EVENTFUL_FLAGS.to_vec();
        args.extend(["--log-format", format, "--log-level", "debug"]);
        let relay = Relay::start(&args).await;
        eventful(&relay).await;
        let expected: [(&str, &str, &[&str]); 14] = [
            ("listening", "info", &["remote"]),
            (
                "server_claimed",
                "info",
                &["server_id", "binary_conn_id", "binary_version", "remote"],
            ),
            ("server_released", "info", &["server_id", "binary_conn_id"]),
            ("server_id_conflict", "warn", &["server_id"]),
            ("server_id_takeover", "warn", &["server_id"]),
            ("phone_registered", "info", &["server_id", "conn_id", "remote"]),
            ("phone_register_no_server", "info", &["server_id", "remote"]),
            ("phone_register_at_cap", "warn", &["server_id", "remote"]),
            ("phone_unregistered", "info", &["server_id", "conn_id", "close_code"]),
            ("binary_forwarder_unknown_conn_id", "warn", &["server_id", "conn_id"]),
            ("binary_forwarder_bad_envelope", "warn", &["server_id", "err"]),
            ("phone_sent_no_json", "info", &["remote", "err"]),
            ("websocket_protocol_error", "info", &["remote", "err", "close_code"]),
            ("push_wake_off", "debug", &[]),
        ];
        for (event, level, keys) in expected {
            let line = relay.wait_for_log(event).await;
            assert_eq!(line.get("level"), Some(level), "{}", line.raw);
            for key in keys {
                assert!(line.get(key).is_some_and(|value| !value.is_empty()), "{}", line.raw);
            }
            // Of the events of a connection, the worker is told.
            let core = line.get("core").and_then(|core| core.parse::<usize>().ok());
            assert_eq!(core.is_some_and(|core| core < 2), event != "listening", "{}", line.raw);
        }
        assert_well_formed(&relay.logs(), format);
    }
}

#[tokio::test]
async fn the_log_level_leaves_out_what_is_less_severe() {
    let levels = ["error", "warn", "info", "debug", "trace"];
    for (rank, level) in levels.into_iter().enumerate() {
        let addr = own_address();
        let addr_text = addr.to_string();
        let mut args = EVENTFUL_FLAGS.to_vec();
        args.extend(["--insecure-listen", &addr_text, "--workers", "2", "--log-level", level]);
        let mut relay = Relay::accepting(Process::spawn(command(&args)), addr).await;
        eventful(&relay).await;
        relay.signal(Signal::Term);
        let exit = relay.wait_exit(SOON).await;
        assert_code(&exit, 0, level);
        let logged: BTreeSet<String> = exit
            .stderr
            .lines()
            .filter_map(|line| LogLine::parse(line).get("level").map(str::to_owned))
            .collect();
        // There is an event of each level from warn to debug, and none of error or trace.
        let expected = levels[1..=rank.min(3)].iter().map(|level| (*level).to_owned()).collect();
        assert_eq!(logged, if rank == 0 { BTreeSet::new() } else { expected }, "{level}");
    }
}

/// Values that a header may carry and that would forge a line or a key in a careless log.
fn forgeries() -> Vec<String> {
    [
        r#"x" event="forged"#,
        r#"x","event":"forged","y":""#,
        "x level=error event=forged",
        "=",
        "event=forged",
        r"back\slash\",
        r#"\" event="forged"#,
        r"x\n{\u0022event\u0022:\u0022forged\u0022}",
        "{\"event\":\"forged\"}",
        "%0d%0aevent=forged",
        "tab\tevent=forged",
        "line\u{2028}event=forged",
        "next\u{85}event=forged",
        "\u{202e}degrof=tneve",
        "\u{9b}31mred",
        "\u{feff}\u{200b}zero width",
        "\u{1f600} \u{e9}",
        "''`$(reboot)`",
    ]
    .map(str::to_owned)
    .into()
}

#[tokio::test]
async fn hostile_values_forge_no_line_and_no_key() {
    for format in ["text", "json"] {
        let relay = Relay::start(&["--log-format", format]).await;
        for value in forgeries() {
            let server = Request::server(&value).set("X-Pyrycode-Version", &value);
            let binary = Raw::connect(&relay).await.upgrade(server).await;
            let client = Request::client(&value).header("X-Pyrycode-Device-Name", &value);
            let mut phone = Raw::connect(&relay).await.upgrade(client).await;
            let is_it = |key: &'static str| {
                let value = value.as_str();
                move |line: &LogLine| line.get(key) == Some(value)
            };
            let claimed = relay.wait_for_log_where("server_claimed", is_it("server_id")).await;
            assert_eq!(claimed.get("binary_version"), Some(value.as_str()), "{}", claimed.raw);
            let line = relay.wait_for_log_where("phone_registered", is_it("server_id")).await;
            assert_eq!(line.get("device_name"), Some(value.as_str()), "{}", line.raw);
            // A conn_id of the binary's own making, and a reason of the phone's.
            let mut binary = binary;
            let conn_id = serde_json::to_string(&value).unwrap();
            binary.send(masked(TEXT, format!(r#"{{"conn_id":{conn_id},"frame":1}}"#))).await;
            let unknown = "binary_forwarder_unknown_conn_id";
            relay.wait_for_log_where(unknown, is_it("server_id")).await;
            phone.send(close_frame(4000, &value)).await;
            phone.rest().await;
        }
        let lines = relay.logs();
        assert_well_formed(&lines, format);
        assert!(lines.iter().all(|line| line.event() != "forged"), "{}", relay.stderr());
    }
}

#[tokio::test]
async fn what_no_header_may_carry_reaches_no_line() {
    let relay = Relay::start(&["--log-format", "text", "--log-level", "trace"]).await;
    let _binary = Raw::binary(&relay, "id").await;
    let bad = ["a\nevent=forged", "a\r\n event=forged", "a\revent=forged", "a\0event=forged"];
    let escape = "a\u{1b}[31mevent=forged";
    for value in bad.into_iter().chain([escape]) {
        for name in
            ["X-Pyrycode-Device-Name", "X-Pyrycode-Server", "X-Pyrycode-Token", "User-Agent"]
        {
            let mut raw = Raw::connect(&relay).await;
            raw.send(Request::client("id").set(name, value)).await;
            let response = raw.response().await;
            assert!([400, 101].contains(&response.status), "{value:?}: {}", response.head);
        }
    }
    // Bytes that are no text at all.
    let request = Request::client("id").header("X-Pyrycode-Device-Name", b"\xff\xfe\x80name");
    let mut raw = Raw::connect(&relay).await;
    raw.send(request).await;
    raw.response().await;
    relay.wait_for_log("phone_registered").await;
    let lines = relay.logs();
    assert_well_formed(&lines, "text");
    assert!(lines.iter().all(|line| line.event() != "forged"), "{}", relay.stderr());
}

#[tokio::test]
async fn a_long_value_makes_no_long_line() {
    for format in ["text", "json"] {
        let relay = Relay::start(&["--log-format", format]).await;
        for value in ["x".repeat(12_000), "\u{1f600}".repeat(3000), "\"".repeat(12_000)] {
            let request = Request::server("id").set("X-Pyrycode-Version", &value);
            let binary = Raw::connect(&relay).await.upgrade(request).await;
            let request = Request::client("id").header("X-Pyrycode-Device-Name", &value);
            let phone = Raw::connect(&relay).await.upgrade(request).await;
            relay.wait_for_counts(1, 1).await;
            binary.abort();
            phone.abort();
            relay.wait_for_counts(0, 0).await;
        }
        let long_id = "\u{1f600}".repeat(64);
        let _binary = Raw::binary(&relay, &long_id).await;
        let is_it = |line: &LogLine| line.get("server_id") == Some(&long_id);
        relay.wait_for_log_where("server_claimed", is_it).await;
        assert_well_formed(&relay.logs(), format);
        for line in relay.logs() {
            assert!(line.raw.len() < 8192, "{} bytes: {}", line.raw.len(), line.raw);
        }
    }
}

#[tokio::test]
// One story, in its order.
#[allow(clippy::too_many_lines)]
async fn token_user_agent_and_payloads_appear_nowhere() {
    for format in ["text", "json"] {
        let mut relay = Relay::start(&["--log-format", format, "--log-level", "trace"]).await;
        let secret = |request: Request| {
            request
                .set("User-Agent", "agent-SECRET")
                .header("Authorization", "Bearer SECRET")
                .header("Cookie", "c=SECRET")
                .header("Origin", "https://SECRET.test")
                .header("X-Forwarded-For", "SECRET")
                .header("X-SECRET", "SECRET")
        };
        let client = || secret(Request::client("id")).set("X-Pyrycode-Token", "token-SECRET");
        let server = || secret(Request::server("id"));
        let mut turned_away = Raw::connect(&relay).await.upgrade(client()).await;
        assert_eq!(turned_away.closed().await.0, 4404);
        drop(turned_away);
        let mut binary = Raw::connect(&relay).await.upgrade(server()).await;
        let mut phone = Raw::connect(&relay).await.upgrade(client()).await;
        phone.send(masked(TEXT, "{\"SECRET\":\"SECRET\"}")).await;
        let (conn_id, _) = open_envelope(&binary.recv_text().await);
        for message in [
            envelope(&conn_id, "\"SECRET\""),
            envelope(&conn_id, "SECRET"),
            envelope("conn-SECRET", "\"SECRET\""),
            "{\"SECRET\"".to_owned(),
            r#"{"conn_id":5,"frame":"SECRET"}"#.to_owned(),
            r#"{"conn_id":"c","close_code":"SECRET"}"#.to_owned(),
            r#"{"push_wake":{"platform":"fcm","token":"SECRET"}}"#.to_owned(),
            r#"{"push_wake":{"platform":"SECRET","token":"SECRET"}}"#.to_owned(),
        ] {
            binary.send(masked(TEXT, message)).await;
        }
        assert_eq!(phone.recv_text().await, "\"SECRET\"");
        // Ways to end: no JSON, no UTF-8, a close reason, a bad frame; and heads that are refused.
        for last in [
            masked(TEXT, "SECRET"),
            masked(TEXT, b"\"SECRET\xff\""),
            close_frame(4000, "SECRET"),
            masked(3, "SECRET"),
        ] {
            let mut phone = Raw::connect(&relay).await.upgrade(client()).await;
            phone.send(last).await;
            phone.recv_close().await;
        }
        for head in [
            client().without("X-Pyrycode-Server"),
            client().method("SECRET"),
            client().version("SECRET"),
            client().set("Sec-WebSocket-Key", "SECRET"),
            client().header("Bad Name SECRET", "SECRET"),
            server().without("X-Pyrycode-Version"),
            secret(Request::get("/healthz")),
        ] {
            let mut raw = Raw::connect(&relay).await;
            raw.send(head).await;
            let response = raw.response().await;
            let all = response.head + &String::from_utf8(response.body).unwrap();
            assert!(!all.contains("SECRET"), "{all}");
        }
        drop((binary, phone));
        relay.signal(Signal::Term);
        let exit = relay.wait_exit(SOON).await;
        assert_code(&exit, 0, "SIGTERM");
        for (stream, text) in [("stdout", &exit.stdout), ("stderr", &exit.stderr)] {
            // The name of a phone that a binary addresses is the relay's own or nobody's: it is
            // the only text of a message that may be logged.
            let told = text.lines().filter(|line| line.contains("SECRET"));
            let told: Vec<&str> = told.filter(|line| !line.contains("conn-SECRET")).collect();
            assert!(told.is_empty(), "{stream}: {told:?}");
        }
        assert!(exit.stderr.contains("binary_forwarder_bad_envelope"), "{}", exit.stderr);
    }
}

// ---- standard streams

#[tokio::test]
async fn it_runs_without_standard_streams() {
    let addr = own_address();
    let mut command = command(&["--insecure-listen", &addr.to_string(), "--workers", "2"]);
    close_standard_streams(&mut command);
    let process = Process::spawn_with(command, Stdio::null(), Stdio::null());
    let mut relay = Relay::accepting(process, addr).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    exchange(&mut binary, &mut phone, &conn_id, 1).await;
    relay.signal(Signal::Term);
    binary.closed().await;
    phone.closed().await;
    drop((binary, phone));
    assert_code(&relay.wait_exit(SOON).await, 0, "SIGTERM");
}

#[tokio::test]
async fn it_survives_the_readers_of_its_output() {
    let addr = own_address();
    let (reader, writer) = std::io::pipe().unwrap();
    let command = command(&["--insecure-listen", &addr.to_string(), "--workers", "2"]);
    let process = Process::spawn_with(command, writer.try_clone().unwrap(), writer);
    let mut relay = Relay::accepting(process, addr).await;
    drop(reader);
    for number in 0..3 {
        let (mut binary, mut phone, conn_id) = pair(&relay, &format!("id-{number}")).await;
        exchange(&mut binary, &mut phone, &conn_id, number).await;
        binary.send(masked(TEXT, "no envelope")).await;
        binary.assert_quiet().await;
    }
    relay.signal(Signal::Term);
    assert_code(&relay.wait_exit(SOON).await, 0, "SIGTERM");
}

#[tokio::test]
async fn a_refusal_that_nobody_can_read_keeps_its_exit_code() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (args, code) in [(["--workers", "0"], 2), (["--insecure-listen", &taken], 1)] {
        let writer = writer.try_clone().unwrap();
        let mut process = Process::spawn_with(command(&args), Stdio::null(), writer);
        assert_code(&process.wait_exit(SOON).await, code, &format!("{args:?}"));
    }
}

// ---- the machine

#[tokio::test]
async fn without_io_uring_it_says_why_and_what_to_do() {
    let seccomp = &["seccomp profile", "io_uring_setup", "io_uring_enter", "io_uring_register"];
    let cases: [(_, _, &[&str]); 4] = [
        (libc::SYS_io_uring_setup, libc::ENOSYS, seccomp),
        (libc::SYS_io_uring_setup, libc::EPERM, seccomp),
        // A filter may let the ring be made and still forbid its use.
        (libc::SYS_io_uring_enter, libc::EPERM, seccomp),
        (libc::SYS_io_uring_register, libc::EPERM, seccomp),
    ];
    for (call, errno, says) in cases {
        let mut command = command(&["--insecure-listen", "127.0.0.1:0", "--workers", "2"]);
        deny(&mut command, call, None, errno);
        let exit = Process::spawn(command).wait_exit(SOON).await;
        let what = format!("call {call}, errno {errno}");
        assert_code(&exit, 1, &what);
        assert_one_line(&exit, &what);
        for words in says.iter().chain(&["io_uring is not available"]) {
            assert!(exit.stderr.contains(words), "{what}: no {words:?} in: {}", exit.stderr);
        }
    }
}

#[tokio::test]
async fn each_worker_is_a_thread_pinned_to_one_cpu() {
    let allowed = std::thread::available_parallelism().unwrap().get();
    for count in [1, 2, 5] {
        let relay = Relay::start(&["--workers", &count.to_string()]).await;
        let mut found = BTreeMap::new();
        wait_until("the workers are pinned", SOON, async || {
            found = workers(&relay);
            found.len() == count && found.values().all(|cpus| cpus.parse::<usize>().is_ok())
        })
        .await;
        let names: Vec<String> = (0..count).map(|number| format!("worker-{number}")).collect();
        assert_eq!(found.keys().cloned().collect::<Vec<_>>(), names);
        // They share the CPUs out among themselves.
        let cpus: BTreeSet<&String> = found.values().collect();
        assert!(cpus.len() >= count.min(allowed), "{found:?}");
    }
}

#[tokio::test]
async fn the_default_is_a_worker_for_each_cpu() {
    let allowed = std::thread::available_parallelism().unwrap().get();
    let relay =
        Relay::listening(Process::spawn(command(&["-insecure-listen", "127.0.0.1:0"]))).await;
    assert_eq!(workers(&relay).len(), allowed);
}

#[tokio::test]
async fn the_soft_descriptor_limit_is_raised_to_the_hard_one() {
    let relay = Relay::start_with(&[], |command| limit_descriptors(command, 64, 300)).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", relay.pid())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let numbers: Vec<&str> = line.split_whitespace().take(2).collect();
    assert_eq!(numbers, ["300", "300"]);
}

#[tokio::test]
async fn descriptors_that_run_out_stop_only_newcomers() {
    const LIMIT: usize = 80;
    let args = ["--max-connections", "1000", "--max-connections-per-address", "off"];
    let relay = Relay::start_with(&args, |command| {
        limit_descriptors(command, LIMIT as u64, LIMIT as u64);
    })
    .await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    let mut crowd = Vec::new();
    // Who is upgraded does not make room for others.
    for number in 0..LIMIT {
        let mut raw = Raw::connect(&relay).await;
        raw.send(Request::server(format!("crowd-{number}"))).await;
        crowd.push(raw);
    }
    relay.wait_for_log("accept_paused").await;
    // A number that the child inherited may be above the limit.
    wait_until("all descriptors are taken", SOON, async || relay.descriptors() >= LIMIT).await;
    // Both workers may have met the limit by now, each once.
    let paused = |relay: &Relay| {
        let logs = relay.logs();
        logs.into_iter().filter(|line| line.event() == "accept_paused").count()
    };
    let before = relay.cpu_time();
    let started = Instant::now();
    let mut number = 0;
    // A stretch of time in which a relay that spins would use up a good part of a CPU.
    while started.elapsed() < Duration::from_millis(600) {
        exchange(&mut binary, &mut phone, &conn_id, number).await;
        number += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let used = relay.cpu_time() - before;
    assert!(used < Duration::from_millis(150), "{used:?} of CPU in {:?}", started.elapsed());
    assert!((1..=2).contains(&paused(&relay)), "said {} times", paused(&relay));
    assert!(relay.descriptors() >= LIMIT);
    // Some are given back: those who wait are let in, and served.
    for raw in crowd.drain(..LIMIT / 2) {
        raw.abort();
    }
    assert_eq!(relay.health().await.connected_phones, 1);
    let (mut others, mut other, other_id) = pair(&relay, "another").await;
    exchange(&mut others, &mut other, &other_id, 0).await;
    for raw in &mut crowd {
        assert_eq!(raw.response().await.status, 101);
    }
    exchange(&mut binary, &mut phone, &conn_id, number).await;
    assert_well_formed(&relay.logs(), "json");
}

/// The binary is a process of its own here, and it is killed.
#[tokio::test]
async fn a_binary_that_is_killed_leaves_its_id_to_the_next() {
    for with_unread in [false, true] {
        let relay = Relay::start(&["--grace", "1h"]).await;
        let (binary, mut phone, _) = pair(&relay, "id").await;
        let socket = OwnedFd::from(binary.into_socket());
        // It holds the only descriptor of the socket, as its standard input.
        let mut holder = Command::new("sleep").arg("1000").stdin(socket).spawn().unwrap();
        if with_unread {
            // Then its kernel says RST, not FIN.
            phone.send(masked(TEXT, "\"never read\"")).await;
            phone.assert_quiet().await;
        }
        holder.kill().unwrap();
        holder.wait().unwrap();
        relay.wait_for_log("server_released").await;
        relay.wait_for_counts(0, 1).await;
        phone.assert_quiet().await;
        let mut next = Raw::binary(&relay, "id").await;
        let (code, reason) = phone.closed().await;
        assert_eq!((code, reason.as_str()), (4404, "binary reclaimed server-id"));
        relay.wait_for_counts(1, 0).await;
        let mut phone = Raw::phone(&relay, "id").await;
        phone.send(masked(TEXT, "\"again\"")).await;
        let (conn_id, _) = open_envelope(&next.recv_text().await);
        exchange(&mut next, &mut phone, &conn_id, 1).await;
    }
}
