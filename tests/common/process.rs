//! The relay as a child process.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::ops::Deref;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::certs::Folder;
use super::over_tls::OverTls;
use super::tls::{Door, Tls};
use super::{LogLine, Raw, Request, SOON, wait_until};

#[derive(Debug, Clone, Copy)]
pub enum Signal {
    Term,
    Interrupt,
    HangUp,
    User1,
}

/// The relay's binary with `args`, in an environment that does not configure it. `RELAY_CGROUP`
/// names the folder of a cgroup to start it in, such as one with little memory.
pub fn command<S: AsRef<str>>(args: &[S]) -> Command {
    let relay = env!("CARGO_BIN_EXE_pyrycode-relay");
    let mut command = match std::env::var_os("RELAY_CGROUP") {
        None => Command::new(relay),
        Some(cgroup) => {
            let mut shell = Command::new("sh");
            shell.args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec "$@""#]).arg(cgroup);
            shell.arg(relay);
            shell
        }
    };
    command.args(args.iter().map(AsRef::as_ref));
    for (name, _) in std::env::vars_os() {
        let is_ours = |name: &str| name.starts_with("PYRYCODE_RELAY_") || name == "FLY_APP_NAME";
        if name.to_str().is_some_and(is_ours) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs the relay's binary with `args` to its end, which must come by [`SOON`].
pub async fn run(args: &[&str]) -> Exit {
    Process::spawn(command(args)).wait_exit(SOON).await
}

/// How a process ended.
#[derive(Debug)]
pub struct Exit {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// A running relay, listening or not. It is killed and reaped when this is dropped.
pub struct Process {
    child: Child,
    readers: Vec<JoinHandle<()>>,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<Vec<LogLine>>>,
}

impl Process {
    pub fn spawn(command: Command) -> Self {
        Self::spawn_with(command, Stdio::piped(), Stdio::piped())
    }

    /// As [`Process::spawn`], with these for standard output and error; what is not piped is not
    /// collected.
    pub fn spawn_with(
        mut command: Command,
        stdout: impl Into<Stdio>,
        stderr: impl Into<Stdio>,
    ) -> Self {
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        Self::spawn_as_it_is(command)
    }

    /// As [`Process::spawn`], with this for standard input.
    pub fn spawn_on(mut command: Command, stdin: impl Into<Stdio>) -> Self {
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::spawn_as_it_is(command)
    }

    fn spawn_as_it_is(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the relay's binary starts");
        let (stdout, stderr) = (Arc::default(), Arc::default());
        let mut readers = Vec::new();
        readers.extend(child.stdout.take().map(|from| collect_text(from, Arc::clone(&stdout))));
        readers.extend(child.stderr.take().map(|from| collect_lines(from, Arc::clone(&stderr))));
        Self { child, readers, stdout, stderr }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How many descriptors the process has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// The CPU time that the process has used.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // The second field, the program's name in parentheses, may hold anything (proc(5)).
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        // Linux counts them for user space in hundredths of a second.
        Duration::from_millis(ticks * 10)
    }

    /// Of each thread its name and the CPUs that it may run on, as `/proc` shows them.
    pub fn threads(&self) -> Vec<(String, String)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let status = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("status"));
        tasks
            // One that has just ended cannot be read any more.
            .filter_map(|task| status(task.unwrap()).ok())
            .map(|status| {
                let value = |key| status.lines().find_map(|line| line.strip_prefix(key));
                let value = |key| value(key).unwrap().trim().to_owned();
                (value("Name:"), value("Cpus_allowed_list:"))
            })
            .collect()
    }

    /// All lines on standard error so far.
    pub fn logs(&self) -> Vec<LogLine> {
        self.stderr.lock().unwrap().clone()
    }

    /// All lines on standard error so far, as text.
    pub fn stderr(&self) -> String {
        self.logs().iter().map(|line| format!("{}\n", line.raw)).collect()
    }

    /// All of standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.lock().unwrap().clone()
    }

    /// The first line of `event`, once it is there.
    pub async fn wait_for_log(&self, event: &str) -> LogLine {
        self.wait_for_log_where(event, |_| true).await
    }

    /// The first line of `event` for which `matches` holds, once it is there.
    pub async fn wait_for_log_where(
        &self,
        event: &str,
        matches: impl Fn(&LogLine) -> bool,
    ) -> LogLine {
        let end = Instant::now() + SOON;
        loop {
            let logs = self.logs();
            if let Some(line) = logs.into_iter().find(|l| l.event() == event && matches(l)) {
                return line;
            }
            assert!(Instant::now() < end, "no log line {event}; there is:\n{}", self.stderr());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn signal(&self, signal: Signal) {
        let name = match signal {
            Signal::Term => "-TERM",
            Signal::Interrupt => "-INT",
            Signal::HangUp => "-HUP",
            Signal::User1 => "-USR1",
        };
        let status = Command::new("kill").arg(name).arg(self.pid().to_string()).status().unwrap();
        assert!(status.success(), "kill {name} {}", self.pid());
    }

    /// Whether the process has ended.
    pub fn has_exited(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// As [`Process::wait_exit`], where another process may still write what this one's output is
    /// collected from.
    pub async fn wait_status(&mut self, deadline: Duration) -> ExitStatus {
        let end = Instant::now() + deadline;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "still runs after {deadline:?}; it said:\n{}", {
                self.stderr()
            });
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits for the process to end by itself within `deadline`.
    pub async fn wait_exit(&mut self, deadline: Duration) -> Exit {
        let status = self.wait_status(deadline).await;
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        Exit { status, stdout: self.stdout(), stderr: self.stderr() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if the process has ended and been reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let logs = self.logs();
            let skipped = logs.len().saturating_sub(50);
            eprintln!("---- the relay's last lines ({skipped} before them)");
            for line in logs.iter().skip(skipped) {
                eprintln!("{}", line.raw);
            }
        }
    }
}

fn collect_text(mut from: impl Read + Send + 'static, to: Arc<Mutex<String>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut chunk) {
            to.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..length]));
        }
    })
}

fn collect_lines(from: impl Read + Send + 'static, to: Arc<Mutex<Vec<LogLine>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            to.lock().unwrap().push(LogLine::parse(&String::from_utf8_lossy(&line)));
        }
    })
}

/// The numbers of `/healthz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub status: String,
    pub version: String,
    pub connected_binaries: u64,
    pub connected_phones: u64,
    pub uptime_seconds: u64,
}

/// A relay that listens on a port of its own of 127.0.0.1.
pub struct Relay {
    process: Process,
    addr: SocketAddr,
    /// If peers reach it over TLS.
    over_tls: Option<OverTls>,
    /// If it serves HTTPS to peers who know.
    https: Option<(Tls, Folder)>,
}

impl Deref for Relay {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl Relay {
    /// Starts the relay with `args`, and waits until it listens. Unless `args` say otherwise it
    /// has two workers, any free port and logs in JSON,
    /// and neither limits rates nor serves metrics.
    pub async fn start(args: &[&str]) -> Self {
        Self::start_with(args, |_| {}).await
    }

    /// As [`Relay::start`], after `prepare` has seen the command.
    pub async fn start_with(args: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let defaults = [
            ("--insecure-listen", "127.0.0.1:0"),
            ("--workers", "2"),
            ("--log-format", "json"),
            ("--rate-limit", "off"),
            ("--handshake-rate", "off"),
            ("--metrics-listen", ""),
        ];
        let is_https = |arg: &&str| matches!(*arg, "--domain" | "--tls-cert");
        let plain_only = |arg: &&str| matches!(*arg, "--insecure-listen" | "--proxy-protocol-from");
        let over_tls = match args.iter().any(|arg| is_https(arg) || plain_only(arg)) {
            true => None,
            false => OverTls::asked(),
        };
        let mut all = args.to_vec();
        if let Some(tls) = &over_tls {
            all.extend(["--tls-cert", &tls.cert, "--tls-key", &tls.key]);
            all.extend(["--https-listen", "127.0.0.1:0"]);
        }
        let https = all.iter().any(is_https);
        for (flag, value) in defaults {
            if !args.contains(&flag) && (!https || flag != "--insecure-listen") {
                all.extend([flag, value]);
            }
        }
        let mut command = command(&all);
        prepare(&mut command);
        let mut relay = Self::listening(Process::spawn(command)).await;
        relay.addr = over_tls.as_ref().map_or(relay.addr, |tls| tls.bridge(relay.addr));
        relay.over_tls = over_tls;
        relay
    }

    /// Waits until `process` says where it listens.
    pub async fn listening(mut process: Process) -> Self {
        let mut addr = None;
        wait_until("the relay's `listening` line", SOON, async || {
            assert!(!process.has_exited(), "the relay ended at start");
            let logs = process.logs();
            let line = logs.iter().find(|line| line.event() == "listening");
            addr = line.and_then(|line| line.get("remote")?.parse().ok());
            addr.is_some()
        })
        .await;
        Self { process, addr: loopback(addr.unwrap()), over_tls: None, https: None }
    }

    /// Waits until `process`, whose log need not tell it, accepts connections at `addr`.
    pub async fn accepting(mut process: Process, addr: SocketAddr) -> Self {
        wait_until("the relay accepts connections", SOON, async || {
            assert!(!process.has_exited(), "the relay ended at start");
            TcpStream::connect(addr).await.is_ok()
        })
        .await;
        Self { process, addr, over_tls: None, https: None }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The relay, to be reached by `tls`; `files` are what it serves with.
    pub fn serving_https(mut self, tls: Tls, files: Folder) -> Self {
        self.https = Some((tls, files));
        self
    }

    /// The path of a file beside its certificate.
    pub fn https_file(&self, name: &str) -> String {
        let (_, files) = self.https.as_ref().expect("a relay of HTTPS");
        files.path(name).to_str().unwrap().to_owned()
    }

    /// How peers reach it.
    pub fn door(&self) -> Door {
        Door { addr: self.addr, tls: self.https.as_ref().map(|(tls, _)| tls.clone()) }
    }

    /// Waits for the relay to end by itself within `deadline`.
    pub async fn wait_exit(&mut self, deadline: Duration) -> Exit {
        self.process.wait_exit(deadline).await
    }

    /// As [`Relay::wait_exit`], where its successor still writes to the same log.
    pub async fn wait_status(&mut self, deadline: Duration) -> ExitStatus {
        self.process.wait_status(deadline).await
    }

    pub fn has_exited(&mut self) -> bool {
        self.process.has_exited()
    }

    /// What `/healthz` answers.
    pub async fn health(&self) -> Health {
        let mut raw = Raw::connect(self).await;
        raw.send(Request::get("/healthz").set("Connection", "close")).await;
        let response = raw.response().await;
        assert_eq!(response.status, 200);
        let body: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
        let text = |key: &str| body[key].as_str().unwrap().to_owned();
        let number = |key: &str| body[key].as_u64().unwrap();
        Health {
            status: text("status"),
            version: text("version"),
            connected_binaries: number("connected_binaries"),
            connected_phones: number("connected_phones"),
            uptime_seconds: number("uptime_seconds"),
        }
    }

    /// Waits until `/healthz` counts so many binaries and phones.
    pub async fn wait_for_counts(&self, binaries: u64, phones: u64) {
        let mut seen;
        let end = Instant::now() + SOON;
        loop {
            let health = self.health().await;
            seen = (health.connected_binaries, health.connected_phones);
            if seen == (binaries, phones) {
                return;
            }
            assert!(
                Instant::now() < end,
                "(binaries, phones) stay at {seen:?}, not {:?}",
                (binaries, phones)
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Where to dial a relay that listens on all interfaces.
fn loopback(addr: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() { SocketAddr::from(([127, 0, 0, 1], addr.port())) } else { addr }
}
