//! The real binary, started for one test, on a port of its own.

// Each test file uses a part of this.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Every wait of every test ends here; none of them is ever this long on a sound relay.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub const BINARY: &str = env!("CARGO_BIN_EXE_pyrycode-relay");

/// What the relay has logged so far, and a way to wait for more.
#[derive(Clone, Default)]
pub struct Log(Arc<(Mutex<Vec<String>>, Condvar)>);

impl Log {
    fn follow(stderr: impl Read + Send + 'static) -> Self {
        let log = Self::default();
        let lines = log.0.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.0.lock().unwrap().push(line);
                lines.1.notify_all();
            }
        });
        log
    }

    pub fn lines(&self) -> Vec<String> {
        self.0.0.lock().unwrap().clone()
    }

    /// Waits for a line that `wanted` accepts.
    pub fn wait(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + DEADLINE;
        let mut lines = self.0.0.lock().unwrap();
        loop {
            if let Some(line) = lines.iter().find(|line| wanted(line)) {
                return line.clone();
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no log line: {what}; there is: {lines:#?}");
            lines = self.0.1.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Waits for an event by its name.
    pub fn wait_event(&self, event: &str) -> Value {
        let line = self.wait(event, |line| {
            serde_json::from_str::<Value>(line).is_ok_and(|line| line["event"] == event)
        });
        serde_json::from_str(&line).unwrap()
    }

    /// How many lines carry this event.
    pub fn count(&self, event: &str) -> usize {
        let is_it =
            |line: &&String| serde_json::from_str::<Value>(line).is_ok_and(|l| l["event"] == event);
        self.lines().iter().filter(is_it).count()
    }
}

/// `/healthz`, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub connected_binaries: u64,
    pub connected_phones: u64,
}

/// A relay of one test. It is killed when the test is over.
pub struct Relay {
    child: Child,
    address: SocketAddr,
    pub log: Log,
}

impl Relay {
    /// Starts a relay with two workers, JSON logs and these flags, and waits until it listens.
    pub async fn start(flags: &[&str]) -> Self {
        Self::launch(flags)
    }

    pub fn launch(flags: &[&str]) -> Self {
        let mut command = Command::new(BINARY);
        command.args(["--insecure-listen", "127.0.0.1:0", "--log-format", "json"]);
        if !flags.contains(&"--workers") {
            command.args(["--workers", "2"]);
        }
        Self::spawn(command.args(flags))
    }

    /// As `launch`, for a command that is complete.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let log = Log::follow(child.stderr.take().unwrap());
        let listening = log.wait_event("listening");
        let address = listening["remote"].as_str().unwrap().parse().unwrap();
        Self { child, address, log }
    }

    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks `/healthz` on a connection of its own.
    pub async fn health(&self) -> Health {
        let address = self.address;
        tokio::task::spawn_blocking(move || health(address)).await.unwrap()
    }

    /// Waits for an event in the log, by its name.
    pub async fn wait_for_log(&self, event: &'static str) -> Value {
        let log = self.log.clone();
        tokio::task::spawn_blocking(move || log.wait_event(event)).await.unwrap()
    }

    /// Sends a signal, by its name.
    pub fn signal(&self, name: &str) {
        let done = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status();
        assert!(done.unwrap().success(), "kill -s {name}");
    }

    /// Waits until the process has ended by itself.
    pub fn wait_exit(&mut self) -> ExitStatus {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the relay did not end: {:#?}", self.log.lines());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Resident memory, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An HTTP answer, read to the end of the connection or of its announced length.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// A plain TCP connection for bytes of any kind.
pub struct Raw(pub TcpStream);

impl Raw {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self(stream)
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub fn read_exact(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Reads one answer: its head, and a body of the length that it announces. `None` if the
    /// connection ends first.
    pub fn answer(&mut self, has_body: bool) -> Option<Answer> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match self.0.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                Ok(_) => return None,
                Err(error) => {
                    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "no answer in time");
                    return None;
                }
            }
        }
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let mut answer = Answer { status, headers, body: String::new() };
        let length = answer.header("content-length").map_or(0, |n| n.parse().unwrap());
        if has_body {
            answer.body = String::from_utf8(self.read_exact(length)).unwrap();
        }
        Some(answer)
    }

    /// What comes until the connection ends, in any way.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        if let Err(error) = self.0.read_to_end(&mut rest) {
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the connection stays open");
        }
        rest
    }
}

fn health(address: SocketAddr) -> Health {
    let mut raw = Raw::connect(address);
    raw.send(b"GET /healthz HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n");
    let answer = raw.answer(true).unwrap();
    assert_eq!(answer.status, 200);
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    let count = |key: &str| body[key].as_u64().unwrap();
    Health {
        connected_binaries: count("connected_binaries"),
        connected_phones: count("connected_phones"),
    }
}
