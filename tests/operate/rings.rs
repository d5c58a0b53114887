//! What the kernel grants before anybody is served: rings, locked memory, descriptors, addresses.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use tokio::net::TcpStream;

use super::Stage;
use super::common::{
    Exit, Process, Raw, Relay, Request, SOON, TEXT, deny, envelope, limit_descriptors,
    limit_locked_memory, masked, open_envelope, own_address, run,
};

/// What a worker's rings take of locked memory, in bytes, if they are as large as they can be.
const RINGS_BYTES: u64 = 220 * 1024;

/// A user that runs nothing else: locked memory is counted by user.
fn own_user() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    700_000 + std::process::id() * 16 + NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The relay of `stage` as `user`, who may lock so many bytes.
fn as_user(stage: &Stage, user: u32, locked_bytes: u64, workers: &str, addr: &str) -> Command {
    let mut command = Command::new(stage.folder.join("relay"));
    command.args(["--insecure-listen", addr, "--metrics-listen", "", "--workers", workers]);
    command.args(["--memory-budget", "64MiB"]).current_dir("/").uid(user).gid(65534);
    limit_locked_memory(&mut command, locked_bytes);
    command
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED: only root can run the relay as another user");
    }
    is_root
}

/// Whether this kernel counts rings as locked memory.
async fn counts_rings(stage: &Stage) -> bool {
    let command = as_user(stage, own_user(), 4096, "1", "127.0.0.1:0");
    let mut process = Process::spawn(command);
    let counts = tokio::time::timeout(SOON, async {
        while !process.has_exited() {
            if process.logs().iter().any(|line| line.event() == "listening") {
                return false;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        true
    });
    let counts = counts.await.expect("it listens or ends");
    if !counts {
        eprintln!("SKIPPED: this kernel does not count rings as locked memory");
    }
    counts
}

fn workers(relay: &Relay) -> usize {
    relay.threads().iter().filter(|(name, _)| name.starts_with("worker-")).count()
}

fn assert_ends_with(exit: &Exit, code: i32, says: &[&str]) {
    assert_eq!(exit.status.code(), Some(code), "{}", exit.stderr);
    let last = exit.stderr.lines().last().unwrap_or_default();
    for words in says {
        assert!(last.contains(words), "no {words:?} in {last}");
    }
}

#[tokio::test]
async fn where_locked_memory_is_short_rings_shrink_then_workers_go_and_everybody_is_served() {
    let stage = Stage::new("locked");
    if !is_root() || !counts_rings(&stage).await {
        return;
    }
    for (bytes, wanted, started, event) in [
        (2 * RINGS_BYTES, "2", 2, None),
        (2 * RINGS_BYTES - 4096, "2", 2, Some("rings_reduced")),
        (8192 << 10, "64", 64, Some("rings_reduced")),
        (100 << 10, "64", 2, Some("workers_reduced")),
    ] {
        let command = as_user(&stage, own_user(), bytes, wanted, "127.0.0.1:0");
        let relay = Relay::listening(Process::spawn(command)).await;
        assert_eq!(workers(&relay), started, "{bytes} bytes, {wanted} workers");
        let logs = relay.logs();
        let said: Vec<&str> =
            logs.iter().map(|l| l.event()).filter(|event| event.ends_with("_reduced")).collect();
        assert_eq!(said, Vec::from_iter(event), "{bytes} bytes, {wanted} workers");
        if let Some(event) = event {
            let line = relay.wait_for_log(event).await;
            assert!(line.get("err").unwrap().contains("ulimit -l"), "{}", line.raw);
        }
        let mut open = Vec::new();
        for _ in 0..300 {
            open.push(TcpStream::connect(relay.addr()).await.unwrap());
        }
        let _binaries = [Raw::binary(&relay, "a").await, Raw::binary(&relay, "b").await];
        assert_eq!(relay.health().await.connected_binaries, 2);
    }
}

#[tokio::test]
async fn a_relay_that_is_killed_is_replaced_at_once() {
    let stage = Stage::new("killed");
    if !is_root() {
        return;
    }
    // All the locked memory there is, and the port: the kernel frees both a little late.
    let (user, addr) = (own_user(), own_address());
    for _ in 0..8 {
        let command = as_user(&stage, user, 2 * RINGS_BYTES, "2", &addr.to_string());
        let relay = Relay::listening(Process::spawn(command)).await;
        assert_eq!(workers(&relay), 2);
        assert!(!relay.logs().iter().any(|line| line.event().ends_with("_reduced")));
        assert_eq!(relay.health().await.status, "ok");
        // Dropped, which kills it and waits for its end.
    }
}

#[tokio::test]
async fn the_limit_that_was_met_is_named_before_anything_listens() {
    let stage = Stage::new("limits");
    let addr = own_address().to_string();
    let args = ["--insecure-listen", &addr, "--metrics-listen", "", "--workers", "2"];
    let relay = || {
        let mut command = Command::new(stage.folder.join("relay"));
        command.args(args);
        command
    };
    let mut command = relay();
    limit_descriptors(&mut command, 20, 20);
    let exit = Process::spawn(command).wait_exit(SOON).await;
    assert_ends_with(&exit, 1, &["descriptors", "ulimit -n", "LimitNOFILE", "--ulimit nofile"]);
    // A filter that has the kernel say of any ring what it says of one too many.
    for (errno, says) in [
        (libc::EMFILE, &["descriptors", "ulimit -n"][..]),
        (libc::EPERM, &["seccomp profile", "io_uring_register"]),
        (libc::ENOSYS, &["seccomp profile", "io_uring_enter"]),
        (libc::ENOMEM, &["locked memory", "ulimit -l", "LimitMEMLOCK", "--ulimit memlock"]),
    ] {
        for words in [&[][..], &["check"]] {
            let mut command = Command::new(stage.folder.join("relay"));
            command.args(words).args(args);
            deny(&mut command, libc::SYS_io_uring_setup, None, errno);
            let exit = Process::spawn(command).wait_exit(SOON).await;
            assert_ends_with(&exit, 1, says);
            assert!(!exit.stderr.contains("event=listening"), "{}", exit.stderr);
        }
    }
}

#[tokio::test]
async fn check_refuses_an_address_that_another_process_holds() {
    let relay = Relay::start(&[]).await;
    let taken = relay.addr().to_string();
    let held = format!("pyrycode-relay with pid {}", relay.pid());
    let free = own_address().to_string();
    for args in [
        ["check", "--insecure-listen", &taken, "--metrics-listen", ""],
        ["check", "--insecure-listen", &free, "--metrics-listen", &taken],
    ] {
        let exit = run(&args).await;
        assert_ends_with(&exit, 1, &["another process listens there", &held, &taken]);
        assert_eq!(exit.stdout, "");
    }
    let taken_by_us = std::net::TcpListener::bind(own_address()).unwrap();
    let held = format!("pid {}", std::process::id());
    let taken: SocketAddr = taken_by_us.local_addr().unwrap();
    let exit = run(&["check", "--insecure-listen", &taken.to_string()]).await;
    assert_ends_with(&exit, 1, &["another process listens there", &held, "to replace it"]);
    assert_eq!(relay.health().await.status, "ok");
}

// ---- what rings make use of

/// Asks and answers `times`, one message at a time.
async fn converse(relay: &Relay, id: &str, times: usize) {
    let mut binary = Raw::binary(relay, id).await;
    let mut phone = Raw::phone(relay, id).await;
    for number in 0..times {
        phone.send(masked(TEXT, number.to_string())).await;
        let (conn_id, asked) = open_envelope(&binary.recv_text().await);
        assert_eq!(asked, number.to_string());
        binary.send(masked(TEXT, envelope(&conn_id, &asked))).await;
        assert_eq!(phone.recv_text().await, asked);
    }
}

#[tokio::test]
async fn it_serves_without_any_feature_of_newer_kernels_and_says_so() {
    let all = "registered-ring,no-iowait,quick-sends";
    for without in all.split(',').chain([all, ""]) {
        let relay = Relay::start(&["--workers", "1", "--io-uring-without", without]).await;
        let line = relay.wait_for_log("io_uring_features").await;
        let said = line.get("err").unwrap();
        let unused = said.split_once("without ").map_or("", |(_, unused)| unused);
        for feature in without.split(',') {
            assert!(unused.contains(feature), "{without:?}: {said}");
        }
        converse(&relay, "features", 50).await;
    }
}

#[tokio::test]
async fn a_wake_takes_one_system_call() {
    let relay = Relay::start(&["--workers", "1", "--metrics-listen", "127.0.0.1:0"]).await;
    let remote = relay.wait_for_log("listening_for_metrics").await;
    let metrics: SocketAddr = remote.get("remote").unwrap().parse().unwrap();
    let count = async |name: &str| -> f64 {
        let mut raw = Raw::connect_to(metrics).await;
        raw.send(Request::get("/metrics").set("Host", "127.0.0.1")).await;
        let answer = raw.response().await;
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        let name = format!("pyrycode_relay_{name}{{core=\"0\"}} ");
        body.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    };
    let (enters, waits) = (count("ring_enters_total").await, count("ring_waits_total").await);
    converse(&relay, "calm", 500).await;
    let enters = count("ring_enters_total").await - enters;
    let waits = count("ring_waits_total").await - waits;
    println!("1,000 messages: {enters} calls of io_uring_enter for {waits} wakes");
    assert!(enters <= 1.1 * waits, "{enters} calls for {waits} wakes");
    assert!(enters <= 1.3 * 1000.0, "{enters} calls for 1,000 messages");
}
