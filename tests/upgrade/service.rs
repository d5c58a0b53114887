//! A relay that is one process after the other, and peers of it.

use super::common::certs::Folder;
use super::common::{
    End, Exit, Process, Raw, Relay, Request, SOON, TEXT, command, envelope, masked, open_envelope,
    wait_until,
};
use rustix::process::{
    Pid, Signal, WaitOptions, kill_process, kill_process_group, set_child_subreaper, waitpid,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long a command may take, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A relay with a control socket, which serves metrics.
pub(crate) struct Service {
    /// Its first process, and the log of all of them.
    pub(crate) relay: Relay,
    /// The process that serves now.
    pub(crate) pid: u32,
    pub(crate) metrics: SocketAddr,
    pub(crate) socket: PathBuf,
    pub(crate) folder: Folder,
}

impl Service {
    pub(crate) async fn start(args: &[&str]) -> Self {
        Self::start_with(args, |_| {}).await
    }

    /// As [`Service::start`], after `prepare` has seen the command.
    pub(crate) async fn start_with(args: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let (folder, own) = Self::place();
        let args = [args, &[&own[0], &own[1], &own[2], &own[3]]].concat();
        let relay = Relay::start_with(&args, |command| {
            command.process_group(0);
            prepare(command);
        });
        Self::of(relay.await, folder).await
    }

    /// As [`Service::start`], with HTTPS.
    pub(crate) async fn start_tls(args: &[&str]) -> Self {
        let (folder, own) = Self::place();
        let args = [args, &[&own[0], &own[1], &own[2], &own[3]]].concat();
        let relay = Relay::start_tls_with(&args, |command| {
            command.process_group(0);
        });
        Self::of(relay.await, folder).await
    }

    /// One that is configured by this file, but for where its control plane is.
    pub(crate) async fn configured(file: &str) -> Self {
        let (folder, own) = Self::place();
        let mut command = command(&["--config", file, &own[0], &own[1], &own[2], &own[3]]);
        command.process_group(0);
        Self::of(Relay::listening(Process::spawn(command)).await, folder).await
    }

    /// One of the program that is installed at this path.
    pub(crate) async fn installed(program: &Path) -> Self {
        let (folder, own) = Self::place();
        let mut command = Command::new(program);
        command.args(["--insecure-listen", "127.0.0.1:0", "--log-format", "json"]).args(own);
        command.process_group(0);
        Self::of(Relay::listening(Process::spawn(command)).await, folder).await
    }

    fn place() -> (Folder, [String; 4]) {
        // A process whose parent has ended becomes this one's child, which then hears of its end.
        set_child_subreaper(Some(Pid::INIT)).unwrap();
        let folder = Folder::new();
        let socket = folder.path("control.sock").to_str().unwrap().to_owned();
        let own = ["--control-socket", &socket, "--metrics-listen", "127.0.0.1:0"];
        (folder, own.map(str::to_owned))
    }

    async fn of(relay: Relay, folder: Folder) -> Self {
        let line = relay.wait_for_log("listening_for_metrics").await;
        let metrics = line.get("remote").unwrap().parse().unwrap();
        let socket = folder.path("control.sock");
        Self { pid: relay.pid(), relay, metrics, socket, folder }
    }

    /// A command and its flags, which has begun.
    pub(crate) fn begin(&self, args: &[&str]) -> Process {
        let socket = ["--control-socket", self.socket.to_str().unwrap()];
        Process::spawn(command(&[args, &socket].concat()))
    }

    /// A command and its flags, to its end.
    pub(crate) async fn ask(&self, args: &[&str]) -> Exit {
        self.begin(args).wait_exit(PATIENCE).await
    }

    /// What a command says that succeeds.
    pub(crate) async fn told(&self, args: &[&str]) -> String {
        let exit = self.ask(args).await;
        assert_eq!((exit.status.code(), exit.stderr.as_str()), (Some(0), ""), "{args:?}");
        exit.stdout
    }

    /// An upgrade that succeeds; what is told of it.
    pub(crate) async fn upgrade(&mut self, args: &[&str]) -> Value {
        let command = self.begin(&[&["upgrade", "--json"], args].concat());
        self.upgraded_by(command).await
    }

    /// The end of an upgrade that has begun and succeeds.
    pub(crate) async fn upgraded_by(&mut self, mut command: Process) -> Value {
        let exit = command.wait_exit(PATIENCE).await;
        assert_eq!((exit.status.code(), exit.stderr.as_str()), (Some(0), ""), "{}", exit.stdout);
        let report: Value = serde_json::from_str(&exit.stdout).expect("a JSON object");
        let before = self.pid;
        assert_eq!(self.ended(before).await, Some(0), "the old process ends well");
        self.pid = u32::try_from(report["pid"].as_u64().unwrap()).unwrap();
        assert!(is_alive(self.pid), "the process that is told of lives: {report}");
        report
    }

    /// An upgrade that fails; why.
    pub(crate) async fn fails(&self, args: &[&str]) -> String {
        let exit = self.ask(&[&["upgrade"], args].concat()).await;
        self.failed(&exit)
    }

    /// Why an upgrade failed that left the relay as it was.
    pub(crate) fn failed(&self, exit: &Exit) -> String {
        assert_eq!(exit.status.code(), Some(1), "{} {}", exit.stdout, exit.stderr);
        let why = exit.stderr.trim_end().strip_prefix("pyrycode-relay: ");
        assert!(is_alive(self.pid), "the relay goes on");
        why.unwrap_or_else(|| panic!("{}", exit.stderr)).to_owned()
    }

    /// With what a process has ended, which it does soon; none if it was killed.
    pub(crate) async fn ended(&mut self, pid: u32) -> Option<i32> {
        if pid == self.relay.pid() {
            return self.relay.wait_status(SOON).await.code();
        }
        let mut status = None;
        wait_until("the end of a process", SOON, async || {
            // Nobody's, until its parent has ended.
            status = waitpid(Some(as_pid(pid)), WaitOptions::NOHANG).ok().flatten();
            status.is_some()
        })
        .await;
        status.unwrap().1.exit_status()
    }

    /// Every series of `/metrics`.
    pub(crate) async fn metrics(&self) -> BTreeMap<String, f64> {
        let text = self.get_text("/metrics").await;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let series = lines.filter_map(|line| line.rsplit_once(' '));
        series.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
    }

    /// Where a series of `/metrics` stands.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        *self.metrics().await.get(name).unwrap_or_else(|| panic!("no {name}"))
    }

    pub(crate) async fn get_text(&self, path: &str) -> String {
        let mut raw = Raw::connect_to(self.metrics).await;
        raw.send(Request::get(path).set("Host", self.metrics.to_string())).await;
        String::from_utf8(raw.response().await.body).unwrap()
    }

    /// What `connections` shows, by conn-id, without what time changes.
    pub(crate) async fn connections(&self) -> BTreeMap<String, Value> {
        let text = self.told(&["connections", "--json"]).await;
        let rows: Vec<Value> = match serde_json::from_str(&text) {
            Ok(rows) => rows,
            Err(_) => text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        };
        let rows = rows.into_iter().filter(|row| row["conn_id"].is_string());
        rows.map(|mut row| {
            for changing in ["age_s", "core", "held_bytes", "round_trip_ms", "memory_bytes"] {
                row.as_object_mut().unwrap().remove(changing);
            }
            (row["conn_id"].as_str().unwrap().to_owned(), row)
        })
        .collect()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Its successors are of the group that it leads. Nothing is left of it where all have ended.
        let _ = kill_process_group(as_pid(self.relay.pid()), Signal::KILL);
        let _ = waitpid(Some(as_pid(self.pid)), WaitOptions::NOHANG);
    }
}

pub(crate) fn as_pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    kill_process(as_pid(pid), signal).unwrap();
}

/// Whether a process runs: one that has ended and that nobody has heard of does not.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// A binary and its phone, who count what they say.
pub(crate) struct Pair {
    pub(crate) binary: Raw,
    pub(crate) phone: Raw,
    pub(crate) conn_id: String,
    said: u64,
    heard: u64,
}

impl Pair {
    pub(crate) async fn new(relay: &Relay, id: &str) -> Self {
        Self::by(Raw::connect(relay).await, Raw::connect(relay).await, id).await
    }

    /// Over these connections.
    pub(crate) async fn by(binary: Raw, phone: Raw, id: &str) -> Self {
        let mut binary = binary.upgrade(Request::server(id)).await;
        let mut phone = phone.upgrade(Request::client(id)).await;
        phone.send(masked(TEXT, "\"first\"")).await;
        let (conn_id, frame) = open_envelope(&binary.recv_text().await);
        assert_eq!(frame, "\"first\"");
        Self { binary, phone, conn_id, said: 0, heard: 0 }
    }

    /// Each says something to the other.
    pub(crate) async fn say(&mut self) {
        self.said += 1;
        self.phone.send(masked(TEXT, format!("\"up {}\"", self.said))).await;
        let down = envelope(&self.conn_id, &format!("\"down {}\"", self.said));
        self.binary.send(masked(TEXT, down)).await;
    }

    /// Everything that was said arrives, in its order, and nothing else.
    pub(crate) async fn hear(&mut self) {
        while self.heard < self.said {
            self.heard += 1;
            let (conn_id, frame) = open_envelope(&self.binary.recv_text().await);
            assert_eq!((&conn_id, frame), (&self.conn_id, format!("\"up {}\"", self.heard)));
            assert_eq!(self.phone.recv_text().await, format!("\"down {}\"", self.heard));
        }
    }

    pub(crate) async fn talk(&mut self) {
        self.say().await;
        self.hear().await;
    }

    /// Both are cut, as by a crash; what they had been sent before may come first.
    pub(crate) async fn expect_cut(mut self) {
        for end in [self.binary.rest().await.1, self.phone.rest().await.1] {
            assert!(matches!(end, End::Reset | End::Fin | End::Torn), "{end:?}");
        }
    }
}

/// Nobody serves there.
pub(crate) async fn assert_nobody_serves(addr: SocketAddr) {
    wait_until("nobody listens", SOON, async || {
        tokio::net::TcpStream::connect(addr).await.is_err()
    })
    .await;
}
