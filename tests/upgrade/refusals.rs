//! The relay goes on, with everybody who is connected, and says why it does.

use super::common::certs::Folder;
use super::common::{Raw, SOON, TEXT, envelope, masked, wait_until};
use super::puppet::{Puppet, Step, executable, wrapper};
use super::service::{PATIENCE, Pair, Service, is_alive, signal};
use pyrycode_relay::handover::state::VERSION;
use rustix::process::Signal;

const FAILED: &str = "pyrycode_relay_upgrades_total{outcome=\"failed\"}";

fn script(folder: &Folder, name: &str, line: &str) -> String {
    let path = folder.path(name);
    executable(&path, &format!("#!/bin/sh\n{line}\n"));
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_program_that_is_none() {
    let service = Service::start(&[]).await;
    let mut pair = Pair::new(&service.relay, "id").await;
    let folder = &service.folder;
    let missing = folder.path("missing").to_str().unwrap().to_owned();
    let cases = [
        (missing, "cannot be started: No such file or directory"),
        (folder.write("plain", "#!/bin/sh\n"), "cannot be started: Permission denied"),
        (script(folder, "nonsense", "no-such-command"), "the new process has ended"),
        ("/bin/false".to_owned(), "the new process has ended"),
        ("/bin/true".to_owned(), "the new process has ended"),
        // Says what it is told, and anything.
        (script(folder, "echo", "exec cat <&0 >&0"), "the new process"),
        (script(folder, "noise", "exec cat /dev/zero >&0"), "the new process"),
        (script(folder, "closes", "exec sleep 100 <&-"), "the new process has ended"),
    ];
    for (number, (program, says)) in cases.iter().enumerate() {
        pair.say().await;
        let why = service.fails(&["--program", program]).await;
        assert!(why.contains(says), "{program}: {why}");
        pair.talk().await;
        assert_eq!(service.metric(FAILED).await, number as f64 + 1.0);
        let line = service.relay.wait_for_log_where("upgrade_failed", |line| {
            line.get("path") == Some(program.as_str())
        });
        let logged = line.await.get("err").unwrap().to_owned();
        assert_eq!(why, format!("{logged}: the relay goes on as it is"));
    }
}

#[tokio::test]
async fn a_configuration_that_does_not_fit() {
    let folder = Folder::new();
    let write = |more: &str| {
        let common = "log-format = json\nrate-limit = off\nhandshake-rate = off\n";
        folder.write("relay.conf", format!("{common}{more}"))
    };
    let good = "insecure-listen = 127.0.0.1:0\nworkers = 2\n";
    let config = write(good);
    let mut service = Service::configured(&config).await;
    let mut pair = Pair::new(&service.relay, "id").await;
    // Much is queued for a phone that does not read.
    let narrow = Raw::narrow(&service.relay, 4096).await;
    let mut stalled = Pair::by(Raw::connect(&service.relay).await, narrow, "stalled").await;
    let piece = format!("\"{}\"", "j".repeat(60_000));
    for _ in 0..60 {
        let text = masked(TEXT, envelope(&stalled.conn_id, &piece));
        stalled.binary.send(text).await;
    }
    stalled.binary.assert_quiet().await;
    for (more, says) in [
        ("insecure-listen = 127.0.0.1:0\nworkers = many\n", "workers"),
        ("insecure-listen = 127.0.0.1:0\nno-such-key = 1\n", "no-such-key"),
        ("insecure-listen = 127.0.0.2:0\n", "the running relay serves at --insecure-listen"),
        ("insecure-listen = 127.0.0.1:0\nmemory-budget = 1MiB\n", "--memory-budget"),
    ] {
        write(more);
        pair.say().await;
        let why = service.fails(&[]).await;
        assert!(why.contains("the new process refuses: ") && why.contains(says), "{more}: {why}");
        pair.talk().await;
    }
    assert_eq!(service.metric(FAILED).await, 4.0);
    write(good);
    service.upgrade(&[]).await;
    pair.talk().await;
    for _ in 0..60 {
        assert_eq!(stalled.phone.recv_text().await, piece);
    }
}

#[tokio::test]
async fn descriptors_and_rings_that_the_new_process_does_not_get() {
    let mut service = Service::start(&[]).await;
    let mut pair = Pair::new(&service.relay, "id").await;
    let mut others = Vec::new();
    for number in 0..30 {
        others.push(Pair::new(&service.relay, &format!("other {number}")).await);
    }
    for (limit, says) in [(30, "before anybody connects"), (70, "descriptors have run out")] {
        let program = service.folder.path("wrapper");
        wrapper(&program, &format!("ulimit -n {limit}"));
        pair.say().await;
        let why = service.fails(&["--program", program.to_str().unwrap()]).await;
        assert!(why.contains(says) && why.contains("LimitNOFILE="), "{limit}: {why}");
        pair.talk().await;
    }
    let puppet = Puppet::new(&service.folder);
    let mut upgrade = service.begin(&["upgrade", "--program", &puppet.program]);
    let carrier = puppet.started().await.into_successor(Some(libc::EPERM)).release();
    let why = service.failed(&upgrade.wait_exit(PATIENCE).await);
    carrier.join().unwrap();
    assert!(why.contains("io_uring"), "{why}");
    pair.talk().await;
    service.upgrade(&[]).await;
    pair.talk().await;
    for pair in &mut others {
        pair.talk().await;
    }
}

#[tokio::test]
async fn a_program_that_does_not_read_this_version_of_the_state() {
    let service = Service::start(&[]).await;
    let mut pair = Pair::new(&service.relay, "id").await;
    let puppet = Puppet::new(&service.folder);
    let (mut upgrade, mut between) = puppet.held_at(&service, Step::Greeting).await;
    between.greet_as_of(VERSION + 1);
    let carrier = between.release();
    let why = service.failed(&upgrade.wait_exit(PATIENCE).await);
    carrier.join().unwrap();
    assert!(why.contains(&format!("has version {}: restart it instead", VERSION + 1)), "{why}");
    pair.talk().await;
}

#[tokio::test]
async fn a_relay_that_is_drained_or_upgraded_already() {
    let mut service = Service::start(&[]).await;
    let mut pair = Pair::new(&service.relay, "id").await;
    service.told(&["drain", "--delay", "1m", "--no-wait"]).await;
    let why = service.fails(&[]).await;
    assert!(why.contains("is being drained") && why.contains("drain --cancel"), "{why}");
    service.told(&["drain", "--cancel"]).await;

    let puppet = Puppet::new(&service.folder);
    let first = service.begin(&["upgrade", "--json", "--program", &puppet.program]);
    let mut between = puppet.successor().await;
    for step in [Step::Offer, Step::State] {
        between.hold(step);
        let why = service.fails(&[]).await;
        assert!(why.contains("an upgrade is under way already"), "{step:?}: {why}");
        pair.say().await;
    }
    let carrier = between.release();
    service.upgraded_by(first).await;
    carrier.join().unwrap();
    pair.talk().await;
}

// ---- a process that is asked to stop meanwhile

#[tokio::test]
async fn a_relay_that_is_to_stop_before_the_new_process_is_ready_stops() {
    for step in [Step::Greeting, Step::Ready] {
        let mut service = Service::start(&[]).await;
        let pair = Pair::new(&service.relay, "id").await;
        let puppet = Puppet::new(&service.folder);
        let (mut upgrade, between) = puppet.held_at(&service, step).await;
        let (old, new) = (service.pid, between.pid);
        signal(old, Signal::TERM);
        pair.expect_stop().await;
        assert_eq!(service.ended(old).await, Some(0));
        let carrier = between.release();
        wait_until("the new process ends", SOON, async || !is_alive(new)).await;
        carrier.join().unwrap();
        assert_eq!(upgrade.wait_exit(PATIENCE).await.status.code(), Some(1));
        super::service::assert_nobody_serves(service.relay.addr()).await;
    }
}

#[tokio::test]
async fn a_relay_that_is_to_stop_amid_the_move_has_its_successor_stop() {
    for step in [Step::State, Step::Prepared, Step::Commit, Step::Taken, Step::Serving] {
        let mut service = Service::start(&[]).await;
        let pair = Pair::new(&service.relay, "id").await;
        let puppet = Puppet::new(&service.folder);
        let (mut upgrade, between) = puppet.held_at(&service, step).await;
        let (old, new) = (service.pid, between.pid);
        signal(old, Signal::TERM);
        service.relay.wait_for_log("shutting_down").await;
        let carrier = between.release();
        pair.expect_stop().await;
        assert_eq!(service.ended(old).await, Some(0), "{step:?}");
        assert_eq!(service.ended(new).await, Some(0), "{step:?}");
        carrier.join().unwrap();
        assert_eq!(upgrade.wait_exit(PATIENCE).await.status.code(), Some(0), "{step:?}");
        assert!(!service.socket.exists());
    }
}

#[tokio::test]
async fn a_new_process_that_is_asked_to_stop_before_it_serves_does_not_take_over() {
    let service = Service::start(&[]).await;
    let mut pair = Pair::new(&service.relay, "id").await;
    let puppet = Puppet::new(&service.folder);
    for step in [Step::Ready, Step::State] {
        let (mut upgrade, between) = puppet.held_at(&service, step).await;
        signal(between.pid, Signal::TERM);
        let carrier = between.release();
        let why = service.failed(&upgrade.wait_exit(PATIENCE).await);
        assert!(why.contains("asked to stop"), "{step:?}: {why}");
        carrier.join().unwrap();
        pair.talk().await;
    }
}
