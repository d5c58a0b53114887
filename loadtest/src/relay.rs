//! The relay under load: started, watched through `/proc`, and killed at the end.

use crate::Outcome;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

pub(crate) struct Relay {
    // Killed when dropped.
    _child: Child,
    pid: u32,
    address: SocketAddr,
    workers: u16,
}

impl Relay {
    /// Starts a relay and waits until it listens.
    pub(crate) async fn start(path: Option<PathBuf>, workers: u16) -> Outcome<Self> {
        let path = match path {
            Some(path) => path,
            None => std::env::current_exe()?.with_file_name("pyrycode-relay"),
        };
        let mut child = Command::new(&path)
            .args(["--insecure-listen", "127.0.0.1:0", "--log-format", "json"])
            .args(["--workers", &workers.to_string()])
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                format!(
                    "{}: {error}; build the relay first, or name it with --relay",
                    path.display()
                )
            })?;
        let pid = child.id().ok_or("the relay ended at once")?;
        let stderr = child.stderr.take().ok_or("the relay has no stderr")?;
        let mut lines = BufReader::new(stderr).lines();
        let address = loop {
            let line = lines.next_line().await?.ok_or("the relay ended before it listened")?;
            let event: serde_json::Value = serde_json::from_str(&line)?;
            if event.get("event").is_some_and(|event| event == "listening") {
                let address = event.get("remote").and_then(|remote| remote.as_str());
                break address.ok_or("the relay does not say where it listens")?.parse()?;
            }
        };
        // Its log is read on, so that it never has to drop a line.
        tokio::task::spawn_local(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { _child: child, pid, address, workers })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn workers(&self) -> u16 {
        self.workers
    }

    /// CPU time that all its threads have used.
    pub(crate) fn cpu_time(&self) -> Outcome<Duration> {
        let mut nanos = 0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            nanos += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Its resident memory.
    pub(crate) fn resident_bytes(&self) -> Outcome<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no VmRSS")?;
        Ok(kib.parse::<u64>()? * 1024)
    }
}
