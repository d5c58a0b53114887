//! The control socket, and the commands that operate a relay while it runs.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::certs::Folder;
use crate::common::{
    Exit, Process, Raw, Relay, Request, Response, SOON, Signal, TEXT, command, masked, run,
    wait_until,
};

/// A relay with a control socket, which serves metrics.
pub(crate) struct Controlled {
    pub(crate) relay: Relay,
    pub(crate) metrics: SocketAddr,
    pub(crate) socket: PathBuf,
    folder: Folder,
}

impl Controlled {
    pub(crate) async fn start(args: &[&str]) -> Self {
        let folder = Folder::new();
        let socket = folder.path("control.sock");
        let relay = start_at(&socket, args).await;
        let line = relay.wait_for_log("listening_for_metrics").await;
        let metrics = line.get("remote").unwrap().parse().unwrap();
        Self { relay, metrics, socket, folder }
    }

    /// A command and its flags, to its end.
    pub(crate) async fn ask(&self, args: &[&str]) -> Exit {
        let socket = ["--control-socket", self.socket.to_str().unwrap()];
        run(&[args, &socket].concat()).await
    }

    /// What a command says that succeeds.
    pub(crate) async fn told(&self, args: &[&str]) -> String {
        let exit = self.ask(args).await;
        assert_eq!((exit.status.code(), exit.stderr.as_str()), (Some(0), ""), "{args:?}");
        exit.stdout
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        let mut raw = Raw::connect_to(self.metrics).await;
        raw.send(Request::get(path).set("Host", self.metrics.to_string())).await;
        raw.response().await
    }

    /// What `status` shows.
    pub(crate) async fn status(&self) -> String {
        run(&["status", "--metrics-listen", &self.metrics.to_string()]).await.stdout
    }

    pub(crate) async fn get_text(&self, path: &str) -> String {
        String::from_utf8(self.get(path).await.body).unwrap()
    }
}

async fn start_at(socket: &std::path::Path, args: &[&str]) -> Relay {
    let own = ["--control-socket", socket.to_str().unwrap(), "--metrics-listen", "127.0.0.1:0"];
    Relay::start(&[&own, args].concat()).await
}

/// The answer to one line, which need not be a request.
fn answer(socket: &std::path::Path, line: &[u8]) -> Value {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    // It may be refused before it is read.
    let _ = stream.write_all(line);
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{answer:?}"))
}

pub(crate) fn failure(exit: &Exit) -> &str {
    assert_eq!(exit.status.code(), Some(1), "{} {}", exit.stdout, exit.stderr);
    let last = exit.stderr.lines().last().unwrap();
    assert!(last.starts_with("pyrycode-relay: "), "{}", exit.stderr);
    last
}

// ---- the socket

#[tokio::test]
async fn the_socket_is_for_its_user_alone_and_goes_with_the_relay() {
    let mut controlled = Controlled::start(&[]).await;
    let file = std::fs::symlink_metadata(&controlled.socket).unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    controlled.relay.signal(Signal::Term);
    assert!(controlled.relay.wait_exit(SOON).await.status.success());
    assert!(!controlled.socket.exists());
}

#[tokio::test]
async fn the_socket_is_where_systemd_gives_the_service_a_folder() {
    let folder = Folder::new();
    let relay = Relay::start_with(&[], |command| {
        command.env("RUNTIME_DIRECTORY", folder.path(""));
    })
    .await;
    relay.wait_for_log("listening").await;
    let mut ask = command(&["drain", "--cancel"]);
    ask.env("RUNTIME_DIRECTORY", folder.path(""));
    let exit = Process::spawn(ask).wait_exit(SOON).await;
    assert_eq!(exit.stdout, "the relay was not being drained\n", "{}", exit.stderr);
}

#[tokio::test]
async fn a_socket_that_a_dead_process_left_is_replaced_and_nothing_else_is() {
    let controlled = Controlled::start(&[]).await;
    let path = controlled.socket.to_str().unwrap().to_owned();
    let refused = ["--insecure-listen", "127.0.0.1:0", "--metrics-listen", ""];
    let refused = [&refused[..], &["--control-socket", &path]].concat();
    for also in [&[][..], &["check"]] {
        let exit = run(&[also, &refused].concat()).await;
        let says = failure(&exit).contains("another process listens on");
        assert!(says && exit.stderr.contains("--control-socket"), "{}", exit.stderr);
    }
    assert!(controlled.told(&["drain", "--cancel"]).await.contains("not being drained"));
    // Killed, it cannot take it away.
    let Controlled { relay, socket, folder, .. } = controlled;
    drop(relay);
    assert!(socket.exists());
    let successor = start_at(&socket, &[]).await;
    successor.wait_for_log("control_socket_replaced").await;
    drop(successor);

    let file = folder.write("a-file", "mine");
    let exit = run(&[&refused[..4], &["--control-socket", &file]].concat()).await;
    assert!(failure(&exit).contains("is no socket"), "{}", exit.stderr);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    let nowhere = folder.path("no/such/folder").to_str().unwrap().to_owned();
    let exit = run(&[&refused[..4], &["--control-socket", &nowhere]].concat()).await;
    assert!(failure(&exit).contains("make its folder first"), "{}", exit.stderr);
    let long = folder.path(&"x".repeat(120)).to_str().unwrap().to_owned();
    let exit = run(&[&refused[..4], &["--control-socket", &long]].concat()).await;
    assert!(failure(&exit).contains("at most 107 bytes"), "{}", exit.stderr);
}

#[tokio::test]
async fn another_user_is_told_that_it_may_not() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: this needs root, to ask as another user");
        return;
    }
    let stage = super::Stage::new("control");
    let socket = stage.folder.join("control.sock");
    let relay = start_at(&socket, &[]).await;
    let ask = || {
        let mut ask = Command::new(stage.folder.join("relay"));
        ask.args(["drain", "--control-socket", socket.to_str().unwrap()]);
        ask.uid(65534).gid(65534).current_dir("/").env_clear();
        Process::spawn(ask)
    };
    // By the file's mode at first, and where somebody has changed that, by who it is.
    let exit = ask().wait_exit(SOON).await;
    assert!(failure(&exit).contains("only root and the user"), "{}", exit.stderr);
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    let exit = ask().wait_exit(SOON).await;
    assert!(failure(&exit).contains("user 65534 may not operate this relay"), "{}", exit.stderr);
    relay.wait_for_log("control_refused").await;
    Raw::binary(&relay, "nobody was drained").await.assert_quiet().await;
}

#[tokio::test]
async fn what_is_no_request_is_told_so() {
    let controlled = Controlled::start(&[]).await;
    let long = [b"{\"command\":\"", "x".repeat(5000).as_bytes(), b"\"}\n"].concat();
    for (line, says) in [
        (&b"hello\n"[..], "same version"),
        (b"{\"command\":\"explode\"}\n", "unknown variant"),
        (b"{\"command\":\"drain\"}\n", "missing field"),
        (&long, "at most 4096 bytes"),
    ] {
        let answer = answer(&controlled.socket, line);
        let why = answer["error"].as_str().unwrap();
        assert!(why.contains(says), "{why}");
    }
    assert!(controlled.told(&["drain", "--cancel"]).await.contains("not being drained"));
}

#[tokio::test]
async fn whoever_asks_for_nothing_keeps_nobody_out_for_long() {
    let controlled = Controlled::start(&[]).await;
    let idle: Vec<UnixStream> =
        (0..16).map(|_| UnixStream::connect(&controlled.socket).unwrap()).collect();
    wait_until("all places are taken", SOON, async || {
        let answer = answer(&controlled.socket, b"{\"command\":\"drain-status\"}\n");
        answer["error"].as_str().is_some_and(|why| why.contains("too many commands"))
    })
    .await;
    for stream in idle {
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        assert!(line.contains("no request within 5 s"), "{line}");
    }
    wait_until("a place is free", SOON, async || {
        answer(&controlled.socket, b"{\"command\":\"drain-status\"}\n")["done"].is_null()
    })
    .await;
}

#[tokio::test]
async fn where_there_is_no_relay_the_command_says_how_to_find_one() {
    let folder = Folder::new();
    let nowhere = folder.path("control.sock").to_str().unwrap().to_owned();
    let exit = run(&["drain", "--control-socket", &nowhere]).await;
    assert!(failure(&exit).contains("start the relay, or name the socket"), "{}", exit.stderr);
    let exit = run(&["drain", "--control-socket", ""]).await;
    assert!(super::refusal(&exit).contains("--control-socket is empty"), "{}", exit.stderr);
    let exit = run(&["drain", "--batch", "many"]).await;
    let says = ["--batch", "many", "is not a number", "COMMAND --help"];
    assert!(says.iter().all(|says| super::refusal(&exit).contains(says)), "{}", exit.stderr);
    let exit = run(&["drain", "--cancel", "--batch", "1"]).await;
    assert!(super::refusal(&exit).contains("cannot be used with"), "{}", exit.stderr);
    let exit = run(&["drain", "--help"]).await;
    assert!(exit.status.success() && exit.stdout.contains("--no-wait"), "{}", exit.stdout);
    let config = folder.write("relay.conf", format!("control-socket = {nowhere}\n"));
    let exit = run(&["drain", "--config", &config]).await;
    assert!(failure(&exit).contains(&nowhere), "{}", exit.stderr);
}

// ---- drain

#[tokio::test]
async fn drain_sends_everybody_away_and_cancel_lets_them_in_again() {
    let controlled = Controlled::start(&["--grace", "1m", "--probe-timeout", "1m"]).await;
    let relay = &controlled.relay;
    let mut peers = Vec::new();
    for number in 0..5 {
        let id = format!("id {number}");
        peers.push(Raw::binary(relay, &id).await);
        peers.push(Raw::phone(relay, &id).await);
    }
    // One whose binary is in grace, and one that is claimed by another.
    let lost = Raw::binary(relay, "lost").await;
    peers.push(Raw::phone(relay, "lost").await);
    lost.abort();
    relay.wait_for_log("server_released").await;
    let mut newcomer = Raw::binary(relay, "id 0").await;
    newcomer.send(masked(TEXT, "{\"ahead\":1}")).await;
    peers.push(newcomer);

    let told =
        controlled.told(&["drain", "--batch", "2", "--every", "20ms", "--delay", "0s"]).await;
    assert!(told.contains("6 server-ids are to be sent away"), "{told}");
    assert!(told.contains("drained: 6 server-ids were sent away"), "{told}");
    for peer in &mut peers {
        assert_eq!(peer.closed().await, (1012, "service restart".to_owned()));
    }
    relay.wait_for_counts(0, 0).await;
    relay.wait_for_log("drained").await;

    let ready = controlled.get("/readyz").await;
    assert_eq!((ready.status, ready.body.as_slice()), (503, &b"draining\n"[..]));
    let mut late = Raw::connect(relay).await;
    late.send(Request::server("id 0")).await;
    let refused = late.response().await;
    assert_eq!((refused.status, refused.header("Retry-After")), (503, Some("5")));
    assert!(refused.body.starts_with(b"the relay is being drained"));
    // A phone is told what is the case: its binary is not here any more.
    let mut late = Raw::connect(relay).await.upgrade(Request::client("id 0")).await;
    assert_eq!(late.recv_close().await.0, 4404);
    for (path, status) in [("/readyz", 503), ("/readyz/404", 404), ("/healthz", 200)] {
        let mut checker = Raw::connect(relay).await;
        checker.send(Request::get(path)).await;
        assert_eq!(checker.response().await.status, status, "{path} on the data port");
    }
    let metrics = controlled.get_text("/metrics").await;
    for line in [
        "pyrycode_relay_draining 1",
        "pyrycode_relay_ready 0",
        "pyrycode_relay_server_ids 0",
        "pyrycode_relay_closes_total{code=\"1012\",reason=\"drained\"} 12",
        "pyrycode_relay_connections_refused_total{cause=\"draining\"} 1",
    ] {
        assert!(metrics.lines().any(|other| other == line), "{line}\n{metrics}");
    }
    let status = controlled.status().await;
    assert!(status.contains("Drained by command: no new binary is let in, and 0"), "{status}");

    assert!(controlled.told(&["drain", "--cancel"]).await.contains("lets everybody in again"));
    assert!(controlled.told(&["drain", "--cancel"]).await.contains("was not being drained"));
    assert_eq!(controlled.get("/readyz").await.status, 200);
    Raw::binary(relay, "id 0").await.assert_quiet().await;
    relay.wait_for_log("drain_cancelled").await;
}

#[tokio::test]
async fn a_drain_takes_its_time_and_can_be_taken_back_amid_it() {
    let controlled = Controlled::start(&[]).await;
    let relay = &controlled.relay;
    let mut binaries = Vec::new();
    for number in 0..8 {
        binaries.push(Raw::binary(relay, &format!("id {number}")).await);
    }
    let begun = Instant::now();
    let args = ["drain", "--batch", "1", "--every", "100ms", "--delay", "300ms", "--no-wait"];
    let told = controlled.told(&args).await;
    assert!(told.contains("8 server-ids are to be sent away"), "{told}");
    // A phone is let in whose binary is still here.
    Raw::phone(relay, "id 7").await.hang_up();
    relay.wait_for_log("phone_registered").await;
    relay.wait_for_log("server_sent_away").await;
    assert!(crate::common::is_over(begun, Duration::from_millis(300)), "{:?}", begun.elapsed());
    let sent_away = |relay: &Relay| {
        relay.logs().iter().filter(|line| line.event() == "server_sent_away").count()
    };
    wait_until("two batches", SOON, async || sent_away(relay) >= 2).await;
    let batches = (begun.elapsed().as_millis() as usize - 300) / 100 + 1;
    assert!(sent_away(relay) <= batches, "{} in {batches}", sent_away(relay));
    // Whoever waits for it hears that it is over.
    let socket = controlled.socket.to_str().unwrap();
    let slow = ["drain", "--batch", "1", "--every", "1m", "--delay", "1m"];
    let mut waiting = Process::spawn(command(&[&slow[..], &["--control-socket", socket]].concat()));
    wait_until("it waits", SOON, async || waiting.stdout().contains("draining: ")).await;
    assert!(controlled.told(&["drain", "--cancel"]).await.contains("is cancelled"));
    assert!(failure(&waiting.wait_exit(SOON).await).contains("the drain was cancelled"));
    let left = 8 - sent_away(relay) as u64;
    relay.wait_for_counts(left, 0).await;
    assert!(left >= 1, "none is left to tell");
}

#[tokio::test]
async fn a_relay_that_is_drained_stops_like_any_other() {
    let mut controlled = Controlled::start(&[]).await;
    let mut binary = Raw::binary(&controlled.relay, "id").await;
    controlled.told(&["drain", "--delay", "1m", "--no-wait"]).await;
    controlled.relay.signal(Signal::Term);
    assert_eq!(binary.closed().await.0, 1001);
    assert!(controlled.relay.wait_exit(SOON).await.status.success());
}
