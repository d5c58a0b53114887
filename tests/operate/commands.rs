//! Commands that look at connections, end them, keep networks out, and change the log's level.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::control::{Controlled, failure};
use crate::common::{
    Process, Raw, Request, SOON, Signal, TEXT, command, envelope, masked, open_envelope, wait_until,
};

/// What a command prints, line by line.
fn objects(told: &str) -> Vec<Value> {
    told.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn with<'a>(rows: &'a [Value], key: &str, value: &str) -> Vec<&'a Value> {
    rows.iter().filter(|row| row[key] == value).collect()
}

// ---- connections

#[tokio::test]
async fn connections_tell_who_is_there_and_what_they_cost() {
    let controlled = Controlled::start(&["--heartbeat-interval", "50ms"]).await;
    let relay = &controlled.relay;
    let mut binary = Raw::binary(relay, "a \"b\"").await;
    let mut phone = Raw::phone(relay, "a \"b\"").await;
    for number in 0..3 {
        phone.send(masked(TEXT, number.to_string())).await;
        let (conn_id, _) = open_envelope(&binary.recv_text().await);
        if number == 0 {
            binary.send(masked(TEXT, envelope(&conn_id, "[1,2]"))).await;
            assert_eq!(phone.recv_text().await, "[1,2]");
        }
    }
    let _waiting = Raw::connect(relay).await;
    let mut rows = Vec::new();
    wait_until("a round trip", SOON, async || {
        // Pings are answered while something is awaited.
        phone.assert_quiet().await;
        rows = objects(&controlled.told(&["connections", "--json"]).await);
        with(&rows, "state", "phone")[0]["round_trip_ms"].is_u64()
    })
    .await;
    assert_eq!(rows.len(), 3, "{rows:?}");
    let phone = with(&rows, "state", "phone")[0];
    assert_eq!(phone["server_id"], "a \"b\"");
    assert_eq!(phone["conn_id"].as_str().unwrap().len(), 32);
    let traffic = |row: &Value| {
        ["messages_in", "bytes_in", "messages_out", "bytes_out"]
            .map(|key| row[key].as_u64().unwrap())
    };
    assert_eq!(traffic(phone), [3, 3, 1, 5]);
    let enveloped = envelope(phone["conn_id"].as_str().unwrap(), "0").len() as u64;
    let binary = with(&rows, "state", "binary")[0];
    assert_eq!(traffic(binary), [1, enveloped + 4, 3, 3 * enveloped]);
    assert_eq!(with(&rows, "state", "head").len(), 1);

    let sums = objects(&controlled.told(&["connections", "--by", "server-id", "--json"]).await);
    assert_eq!((sums.len(), &sums[0]["connections"]), (1, &2.into()));
    assert_eq!(sums[0]["of"], "a \"b\"");
    let sums = objects(&controlled.told(&["connections", "--by=address", "--json"]).await);
    assert_eq!((sums.len(), &sums[0]["connections"]), (1, &3.into()));
    assert_eq!(sums[0]["of"], "127.0.0.1");
    let table = controlled.told(&["connections", "--by", "bytes", "--top", "1"]).await;
    assert_eq!(table.lines().count(), 2, "{table}");
    assert!(table.lines().nth(1).unwrap().starts_with("binary "), "{table}");
    assert!(!table.contains("any-token"));
}

#[tokio::test]
async fn many_connections_are_listed_at_once_and_nobody_waits_for_it() {
    const PHONES: usize = 1500;
    let args = ["--max-phones", "2000", "--max-connections-per-address", "off"];
    let controlled = Controlled::start(&args).await;
    let relay = &controlled.relay;
    let mut binary = Raw::binary(relay, "id").await;
    let mut phones = Vec::new();
    for _ in 0..PHONES {
        phones.push(Raw::phone(relay, "id").await);
    }
    let listed = async {
        let begun = Instant::now();
        let told = controlled.told(&["connections", "--json"]).await;
        (told.lines().count(), begun.elapsed())
    };
    let trips = async {
        let mut longest = Duration::ZERO;
        for _ in 0..50 {
            let begun = Instant::now();
            binary.assert_quiet().await;
            longest = longest.max(begun.elapsed());
        }
        longest
    };
    let ((count, took), longest) = tokio::join!(listed, trips);
    println!("{count} connections listed in {took:?}; the longest round trip took {longest:?}");
    assert_eq!(count, PHONES + 1);
    // `loadtest` measures; here only what cannot be for want of a machine of one's own.
    assert!(took < SOON && longest < Duration::from_secs(2), "{took:?} {longest:?}");
}

// ---- disconnect

#[tokio::test]
async fn disconnect_ends_those_that_are_meant_in_good_order() {
    let controlled = Controlled::start(&[]).await;
    let relay = &controlled.relay;
    let mut binary = Raw::binary(relay, "a").await;
    let mut phones = [Raw::phone(relay, "a").await, Raw::phone(relay, "a").await];
    let mut other = Raw::binary(relay, "b").await;
    phones[0].send(masked(TEXT, "1")).await;
    let (conn_id, _) = open_envelope(&binary.recv_text().await);

    let told = controlled.told(&["disconnect", "--conn-id", &conn_id, "--code", "4001"]).await;
    assert_eq!(told, "disconnected: 1 connections\n");
    assert_eq!(phones[0].closed().await, (4001, "disconnected by the operator".to_owned()));
    let notice = binary.recv_text().await;
    assert_eq!(notice, crate::common::close_directive(&conn_id, 4001));

    let args = ["disconnect", "--server-id", "a", "--reason", "too much"];
    assert_eq!(controlled.told(&args).await, "disconnected: 2 connections\n");
    assert_eq!(phones[1].closed().await, (1008, "too much".to_owned()));
    // It may hear of its phone first.
    while let Some(frame) = binary.frame_after_pings().await {
        if frame.opcode == crate::common::CLOSE {
            assert_eq!(frame.close(), (1008, "too much"));
            break;
        }
    }
    assert_eq!(controlled.told(&args).await, "disconnected: 0 connections\n");
    // The id is in grace, as after any close.
    relay.wait_for_log("server_released").await;
    other.assert_quiet().await;
    let metrics = controlled.get_text("/metrics").await;
    let ended = "pyrycode_relay_closes_total{code=\"other\",reason=\"asked_by_operator\"} 3";
    assert!(metrics.lines().any(|line| line == ended), "{metrics}");
}

#[tokio::test]
async fn disconnect_by_address_spares_others_and_cuts_who_is_not_upgraded() {
    let controlled = Controlled::start(&[]).await;
    let relay = &controlled.relay;
    let from = |last: u8| Raw::connect_from(relay, IpAddr::from([127, 0, 9, last]));
    let mut binary = from(1).await.upgrade(Request::server("a")).await;
    let mut waiting = from(2).await;
    let mut spared = Raw::binary(relay, "b").await;
    wait_until("all are accepted", SOON, async || {
        controlled.told(&["connections", "--json"]).await.lines().count() == 3
    })
    .await;
    let told = controlled.told(&["disconnect", "--address", "127.0.9.0/24"]).await;
    assert_eq!(told, "disconnected: 2 connections\n");
    assert_eq!(binary.closed().await.0, 1008);
    waiting.assert_ended().await;
    spared.assert_quiet().await;
}

#[tokio::test]
async fn disconnect_wants_to_know_whom_and_what_may_be_said() {
    let controlled = Controlled::start(&[]).await;
    for (args, says) in [
        (&["disconnect"][..], "--server-id <ID>|--conn-id <CONN-ID>|--address <CIDR>"),
        (&["disconnect", "--server-id", "a", "--conn-id", "b"], "cannot be used with"),
        (&["disconnect", "--server-id", "a", "--code", "1005"], "write 1000 to 1003"),
        (&["disconnect", "--address", "10.0.0.1/8"], "write 10.0.0.0/8 for the network"),
        (&["disconnect", "--server-id", "a", "--reason", &"x".repeat(124)], "at most 123"),
    ] {
        let exit = controlled.ask(args).await;
        assert!(super::refusal(&exit).contains(says), "{}", exit.stderr);
    }
    let exit = controlled.ask(&["disconnect", "--conn-id", "b"]).await;
    assert!(failure(&exit).contains("is no conn-id"), "{}", exit.stderr);
}

// ---- block

/// Whether the relay serves this address.
async fn is_served(controlled: &Controlled, address: [u8; 4]) -> bool {
    let Ok(mut raw) = Raw::try_connect_from(&controlled.relay, address.into()).await else {
        return false;
    };
    if raw.try_send(Request::get("/healthz").set("Connection", "close")).await.is_err() {
        return false;
    }
    raw.maybe_response().await.is_some_and(|response| response.status == 200)
}

#[tokio::test]
async fn block_keeps_a_network_out_until_unblock_and_through_a_reload() {
    let controlled = Controlled::start(&[]).await;
    let there = [127, 0, 9, 1];
    let mut before = Raw::connect_from(&controlled.relay, there.into()).await;
    before = before.upgrade(Request::server("a")).await;
    assert!(controlled.told(&["block", "127.0.9.0/24"]).await.contains("is blocked until"));
    assert!(!is_served(&controlled, there).await && is_served(&controlled, [127, 0, 8, 1]).await);
    before.assert_quiet().await;
    controlled.relay.signal(Signal::HangUp);
    controlled.relay.wait_for_log("reloaded").await;
    assert!(!is_served(&controlled, there).await);
    assert_eq!(controlled.told(&["blocked"]).await, "127.0.9.0/24  until `unblock` or a restart\n");

    let metrics = controlled.get_text("/metrics").await;
    for line in [
        "pyrycode_relay_blocked_networks 1",
        "pyrycode_relay_connections_refused_total{cause=\"blocked\"} 2",
    ] {
        assert!(metrics.lines().any(|other| other == line), "{line}\n{metrics}");
    }
    let status = controlled.get_text("/status.json").await;
    assert!(status.contains("127.0.9.0/24"), "{status}");
    let shown = controlled.status().await;
    assert!(shown.contains("Blocked      1 networks, 2 refused"), "{shown}");

    let exit = controlled.ask(&["unblock", "127.0.9.1"]).await;
    assert!(failure(&exit).contains("lies in 127.0.9.0/24"), "{}", exit.stderr);
    controlled.told(&["unblock", "127.0.9.0/24"]).await;
    assert!(is_served(&controlled, there).await);
    let exit = controlled.ask(&["unblock", "127.0.9.0/24"]).await;
    assert!(failure(&exit).contains("is not blocked"), "{}", exit.stderr);
}

#[tokio::test]
async fn a_block_may_be_for_a_while() {
    let controlled = Controlled::start(&[]).await;
    let begun = Instant::now();
    controlled.told(&["block", "127.0.9.1", "--for", "1s"]).await;
    let rows = objects(&controlled.told(&["blocked", "--json"]).await);
    assert_eq!(rows[0]["network"], "127.0.9.1/32");
    if is_served(&controlled, [127, 0, 9, 1]).await {
        assert!(crate::common::is_over(begun, Duration::from_secs(1)), "let in too early");
    }
    wait_until("it is let in", SOON, async || is_served(&controlled, [127, 0, 9, 1]).await).await;
    assert_eq!(controlled.told(&["blocked"]).await, "");
}

#[tokio::test]
async fn the_configuration_may_block_and_a_reload_changes_that() {
    let folder = crate::common::certs::Folder::new();
    let file = folder.write("relay.conf", "block = 127.0.9.0/24\n");
    let controlled = Controlled::start(&["--config", &file]).await;
    assert!(!is_served(&controlled, [127, 0, 9, 1]).await);
    assert_eq!(controlled.told(&["blocked"]).await, "127.0.9.0/24  by --block\n");
    let exit = controlled.ask(&["unblock", "127.0.9.0/24"]).await;
    assert!(failure(&exit).contains("by the configuration"), "{}", exit.stderr);
    folder.write("relay.conf", "block = 127.0.8.0/24\n");
    controlled.relay.signal(Signal::HangUp);
    controlled.relay.wait_for_log_where("reloaded", |l| l.get("path") == Some("block")).await;
    assert!(is_served(&controlled, [127, 0, 9, 1]).await);
    assert!(!is_served(&controlled, [127, 0, 8, 1]).await);
}

#[tokio::test]
async fn who_is_named_by_a_trusted_proxy_is_blocked_too() {
    let args = ["--trust-x-forwarded-for", "127.0.0.1"];
    let controlled = Controlled::start(&args).await;
    controlled.told(&["block", "192.0.2.0/24"]).await;
    for (caller, status) in [("192.0.2.7", 403), ("198.51.100.7", 101)] {
        let mut raw = Raw::connect(&controlled.relay).await;
        raw.send(Request::server("a").header("X-Forwarded-For", caller)).await;
        let answer = raw.response().await;
        assert_eq!(answer.status, status, "{caller}: {}", answer.head);
    }
}

// ---- log-level

#[tokio::test]
async fn the_log_level_changes_for_a_while_or_until_a_reload() {
    let controlled = Controlled::start(&[]).await;
    let relay = &controlled.relay;
    // What is refused is told at debug.
    let refuse = async |path: &str| {
        let mut raw = Raw::connect(relay).await;
        raw.send(Request::get(path)).await;
        assert_eq!(raw.response().await.status, 404);
    };
    let told = |event: &str| relay.logs().iter().filter(|line| line.event() == event).count();
    refuse("/1").await;
    let said = controlled.told(&["log-level", "debug"]).await;
    assert!(said.contains("debug until the next reload; info is configured"), "{said}");
    assert_eq!(told("request_refused"), 0);
    refuse("/2").await;
    relay.wait_for_log("request_refused").await;
    relay.signal(Signal::HangUp);
    relay.wait_for_log("reloaded").await;
    // By the old level that is told, and the next command is heard when the level has changed.
    controlled.told(&["blocked"]).await;
    let before = told("request_refused");
    refuse("/3").await;
    controlled.told(&["log-level", "debug", "--for", "300ms"]).await;
    assert_eq!(told("request_refused"), before);
    let back = relay.wait_for_log("log_level_back").await;
    assert_eq!(back.get("to"), Some("INFO"));
    let before = told("request_refused");
    refuse("/4").await;
    controlled.told(&["blocked"]).await;
    assert_eq!(told("request_refused"), before);
    let exit = controlled.ask(&["log-level", "loud"]).await;
    assert!(super::refusal(&exit).contains("possible values: error"), "{}", exit.stderr);
}

// ---- watch

/// `watch` of a relay, to be spawned.
fn watching(controlled: &Controlled) -> Command {
    command(&["watch", "--control-socket", controlled.socket.to_str().unwrap()])
}

#[tokio::test]
async fn watch_shows_the_relay_each_second_until_a_signal_or_the_relays_end() {
    let controlled = Controlled::start(&[]).await;
    let mut binary = Raw::binary(&controlled.relay, "id").await;
    let mut phone = Raw::phone(&controlled.relay, "id").await;
    let frames = |watch: &Process| watch.stdout().matches("In the last second:").count();
    let mut watch = Process::spawn(watching(&controlled));
    wait_until("two frames", SOON, async || {
        phone.send(masked(TEXT, "1")).await;
        binary.recv_text().await;
        frames(&watch) >= 2
    })
    .await;
    for says in ["All is well.", "binary 1  phone 1", "binary ", "BYTES-OUT"] {
        assert!(watch.stdout().contains(says), "{says}\n{}", watch.stdout());
    }
    assert!(!watch.stdout().contains('\u{1b}'), "it is no terminal");
    watch.signal(Signal::Interrupt);
    assert!(watch.wait_exit(SOON).await.status.success());

    let mut watch = Process::spawn(watching(&controlled));
    wait_until("a frame", SOON, async || frames(&watch) >= 1).await;
    drop(controlled.relay);
    let exit = watch.wait_exit(SOON).await;
    assert!(failure(&exit).contains("start the relay"), "{}", exit.stderr);
}

#[tokio::test]
async fn watch_ends_when_nobody_reads_it() {
    let controlled = Controlled::start(&[]).await;
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut watch =
        Process::spawn_with(watching(&controlled), writer, std::process::Stdio::piped());
    let first = tokio::task::spawn_blocking(move || {
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
    });
    crate::common::soon("a frame", first).await.unwrap();
    assert!(watch.wait_exit(SOON).await.status.success());
}

/// A process that does not outlive its test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn watch_puts_the_terminal_in_order_when_it_ends() {
    if Command::new("script").arg("--version").output().is_err() {
        eprintln!("SKIPPED: script (of util-linux) is not installed");
        return;
    }
    let controlled = Controlled::start(&[]).await;
    let relay = env!("CARGO_BIN_EXE_pyrycode-relay");
    let line = format!(
        "stty -a > before; {relay} watch --control-socket {}; echo ended $?; stty -a > after",
        controlled.socket.display()
    );
    let folder = crate::common::certs::Folder::new();
    // It plays a terminal, and types what it is told.
    let mut terminal = Command::new("script");
    terminal.args(["-q", "-e", "-c", &line, "/dev/null"]).current_dir(folder.path(""));
    terminal.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut terminal = Killed(terminal.spawn().unwrap());
    let mut keys = terminal.0.stdin.take().unwrap();
    let mut screen = terminal.0.stdout.take().unwrap();
    let (done, shown) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let (mut shown, mut chunk) = (String::new(), [0; 4096]);
        let mut is_typed = false;
        while let Ok(length @ 1..) = screen.read(&mut chunk) {
            shown.push_str(&String::from_utf8_lossy(&chunk[..length]));
            if shown.contains("All is well.") && !is_typed {
                is_typed = true;
                keys.write_all(b"xq").unwrap();
            }
        }
        done.send(shown)
    });
    let shown = crate::common::soon("the end of the terminal", shown).await.unwrap();
    terminal.0.wait().unwrap();
    assert!(shown.contains("ended 0"), "{shown:?}");
    let begins = shown.find("\u{1b}[?1049h").expect("a screen of its own");
    let ends = shown.find("\u{1b}[?1049l").expect("the screen from before");
    assert!(begins < ends && shown.contains("\u{1b}[?25h"), "{shown:?}");
    let modes = |name| std::fs::read_to_string(folder.path(name)).unwrap();
    assert_eq!(modes("before"), modes("after"));
}

// ---- diagnose

/// The files of an archive, by their names.
fn unpacked(path: &std::path::Path) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(std::fs::File::open(path).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (name, text)
    });
    entries.collect()
}

#[tokio::test]
async fn diagnose_packs_what_a_bug_report_needs_and_hides_who_is_concerned() {
    let args = [
        "--trust-x-forwarded-for",
        "10.0.0.0/8,127.0.0.1",
        "--max-phones=1",
        "--verify-url=http://verifier.invalid/?key=any-token",
        "--verify-timeout=50ms",
        "--verify-on-failure=allow",
    ];
    let controlled = Controlled::start(&args).await;
    let relay = &controlled.relay;
    let _binary = Raw::binary(relay, "my-server").await;
    let _phone = Raw::phone(relay, "my-server").await;
    // A warning that names an address and a server-id.
    let forwarded = Request::client("my-server").header("X-Forwarded-For", "192.0.2.77");
    let _one_too_many = Raw::connect(relay).await.upgrade(forwarded).await;
    relay.wait_for_log("phone_register_at_cap").await;
    controlled.told(&["block", "198.51.100.0/24"]).await;

    let folder = crate::common::certs::Folder::new();
    let output = folder.path("a.tar");
    let args = ["diagnose", "--output", output.to_str().unwrap()];
    let said = controlled.told(&args).await;
    assert!(said.contains("a.tar is written, with 7 files"), "{said}");
    assert_eq!(std::fs::metadata(&output).unwrap().permissions().mode() & 0o777, 0o600);
    let files = unpacked(&output);
    for (name, says) in [
        ("settings.txt", "max-phones"),
        ("status.json", "\"metrics\""),
        ("metrics.txt", "pyrycode_relay_ready 1"),
        ("warnings.txt", "phone_register_at_cap server_id=[hidden]"),
        ("kernel.txt", "Linux "),
        ("limits.txt", "Max open files"),
        ("io_uring.txt", "fast_poll"),
    ] {
        assert!(files[name].contains(says), "{name}: {}", files[name]);
    }
    for (name, text) in &files {
        for hidden in
            ["192.0.2.77", "my-server", "198.51.100", "10.0.0.0", "verifier.invalid", "any-token"]
        {
            assert!(!text.contains(hidden), "{name} has {hidden}");
        }
    }
    // What is there is not written over.
    let exit = controlled.ask(&args).await;
    assert!(failure(&exit).contains("--output"), "{}", exit.stderr);

    let output = folder.path("b.tar");
    let args = ["diagnose", "--with-addresses", "--output", output.to_str().unwrap()];
    controlled.told(&args).await;
    let files = unpacked(&output);
    assert!(files["warnings.txt"].contains("server_id=my-server"), "{}", files["warnings.txt"]);
    assert!(files["warnings.txt"].contains("192.0.2.77"), "{}", files["warnings.txt"]);
    assert!(files["settings.txt"].contains("10.0.0.0/8"), "{}", files["settings.txt"]);
}
