//! The relays and balancers of a cluster, as processes of their own.

use crate::Outcome;
use crate::launch::{self, Cpus};
use crate::subject::free_address;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a process has to listen, or to end.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long HAProxy learns from others what it does not know, after its start (5 s, and some more).
const RESYNC: Duration = Duration::from_millis(6_500);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A relay of the cluster.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) name: &'static str,
    program: PathBuf,
    pub(super) address: SocketAddr,
    metrics: SocketAddr,
    folder: PathBuf,
    child: Option<Child>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Both fail only if it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Relay {
    /// One that does not run yet; its files are in `folder`.
    pub(super) fn new(name: &'static str, program: &Path, folder: &Path) -> Outcome<Self> {
        Ok(Self {
            name,
            program: program.to_owned(),
            address: free_address()?,
            metrics: free_address()?,
            folder: folder.to_owned(),
            child: None,
        })
    }

    fn control_socket(&self) -> PathBuf {
        self.folder.join(format!("{}.sock", self.name))
    }

    /// Starts it, at the same address each time.
    pub(super) fn start(&mut self) -> Outcome<()> {
        let log = self.folder.join(format!("{}.log", self.name));
        let log = std::fs::File::options().create(true).append(true).open(log)?;
        let mut command = launch::command(&self.program, Cpus::All, None)?;
        command.args(["--insecure-listen", &self.address.to_string()]);
        command.args(["--metrics-listen", &self.metrics.to_string()]);
        command.arg("--control-socket").arg(self.control_socket());
        command.args(["--proxy-protocol-from", "127.0.0.0/8", "--workers", "1"]);
        // Here all peers have one address.
        command.args(["--rate-limit", "off", "--max-connections-per-address", "off"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn()?);
        await_listener(self.address, self.name, self.child.as_mut())
    }

    pub(super) fn signal(&self, signal: Signal) -> Outcome<()> {
        let child = self.child.as_ref().ok_or("the relay does not run")?;
        let pid = Pid::from_raw(child.id().try_into()?).ok_or("a process without a number")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Waits for its end, which it has been asked for.
    pub(super) fn await_end(&mut self) -> Outcome<()> {
        if let Some(mut child) = self.child.take() {
            child.wait()?;
        }
        Ok(())
    }

    /// Has it send everybody away, and waits until it has.
    pub(super) fn drain(&self) -> Outcome<()> {
        let mut command = Command::new(&self.program);
        command.arg("drain").arg("--control-socket").arg(self.control_socket());
        command.args(["--batch", "5", "--every", "200ms"]);
        let output = command.output()?;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into()),
        }
    }
}

/// HAProxy with the configuration that the relay prints.
#[derive(Debug)]
pub(super) struct Balancer {
    name: &'static str,
    program: PathBuf,
    pub(super) address: SocketAddr,
    pub(super) peer: SocketAddr,
    metrics: SocketAddr,
    folder: PathBuf,
    /// Certificate and key in one file; empty for no TLS.
    certificate: String,
    child: Option<Child>,
    /// When the process began that serves now.
    since: Instant,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.end();
    }
}

impl Balancer {
    /// One that does not run yet.
    pub(super) fn new(
        name: &'static str,
        program: &Path,
        folder: &Path,
        certificate: &str,
    ) -> Outcome<Self> {
        Ok(Self {
            name,
            program: program.to_owned(),
            address: free_address()?,
            peer: free_address()?,
            metrics: free_address()?,
            folder: folder.to_owned(),
            certificate: certificate.to_owned(),
            child: None,
            since: Instant::now(),
        })
    }

    fn stats_socket(&self) -> PathBuf {
        self.folder.join(format!("{}.stats", self.name))
    }

    fn file(&self) -> PathBuf {
        self.folder.join(format!("{}.cfg", self.name))
    }

    /// Writes its configuration, for these relays and beside this other balancer.
    pub(super) fn configure(&self, relays: &[&Relay], other: &Self) -> Outcome<()> {
        let mut command = Command::new(&self.program);
        command.arg("haproxy").arg("--stats-socket").arg(self.stats_socket());
        command.args(["--bind", &self.address.to_string(), "--certificate", &self.certificate]);
        command.args(["--metrics", &self.metrics.to_string(), "--max-connections", "4000"]);
        for balancer in [self, other] {
            command.args(["--balancer", &format!("{}={}", balancer.name, balancer.peer)]);
        }
        for relay in relays {
            command.args(["--relay", &format!("{}={}", relay.name, relay.address)]);
        }
        let output = command.output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into());
        }
        Ok(std::fs::write(self.file(), output.stdout)?)
    }

    /// Starts it, as the first of a group of processes, so that all of them end with it.
    pub(super) fn start(&mut self) -> Outcome<()> {
        let log = self.folder.join(format!("{}.log", self.name));
        let log = std::fs::File::options().create(true).append(true).open(log)?;
        let mut command = launch::command(Path::new("haproxy"), Cpus::All, None)?;
        command.arg("-W").arg("-f").arg(self.file());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child =
            command.spawn().map_err(|error| format!("haproxy cannot be started: {error}"))?;
        self.child = Some(child);
        self.since = Instant::now();
        await_listener(self.address, self.name, self.child.as_mut())
    }

    /// Waits until it knows what others know, and could teach it to its successor.
    pub(super) fn await_resync(&self) {
        std::thread::sleep(RESYNC.saturating_sub(self.since.elapsed()));
    }

    pub(super) fn runs(&self) -> bool {
        self.child.is_some()
    }

    fn group(&self) -> Option<Pid> {
        Pid::from_raw(self.child.as_ref()?.id().try_into().ok()?)
    }

    /// Has a new process take over, with the configuration as it now is; see
    /// [`Self::await_resync`] for when.
    pub(super) fn reload(&mut self) -> Outcome<()> {
        let before = self.worker();
        kill_process(self.group().ok_or("the balancer does not run")?, Signal::USR2)?;
        let end = Instant::now() + START_TIMEOUT;
        while self.worker().is_none() || self.worker() == before {
            if Instant::now() > end {
                return Err("HAProxy has not reloaded; see its log (--keep)".into());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        self.since = Instant::now();
        Ok(())
    }

    /// The number of the process that answers now.
    fn worker(&self) -> Option<String> {
        let info = self.ask("show info").ok()?;
        info.lines().find_map(|line| line.strip_prefix("Pid: ").map(str::to_owned))
    }

    /// Kills all of its processes, as the end of its machine would.
    pub(super) fn end(&mut self) {
        if let Some(group) = self.group() {
            // Fails only if all have ended already.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }

    fn ask(&self, question: &str) -> Outcome<String> {
        let mut control = UnixStream::connect(self.stats_socket())?;
        control.set_read_timeout(Some(START_TIMEOUT))?;
        writeln!(control, "{question}")?;
        let mut answer = String::new();
        control.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Which relay each server-id is on, by the SHA-1 of the id in hexadecimal capitals.
    pub(super) fn places(&self) -> Outcome<BTreeMap<String, String>> {
        let table = self.ask("show table relays")?;
        let place = |line: &str| {
            let value = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name));
            Some((value("key=")?.to_owned(), value("server_key=")?.to_owned()))
        };
        Ok(table.lines().filter_map(place).collect())
    }
}

fn await_listener(address: SocketAddr, name: &str, child: Option<&mut Child>) -> Outcome<()> {
    let Some(child) = child else { return Ok(()) };
    let end = Instant::now() + START_TIMEOUT;
    while TcpStream::connect(address).is_err() {
        if let Some(status) = child.try_wait()? {
            return Err(
                format!("{name} ended at once ({status}); its log says why (--keep)").into()
            );
        }
        if Instant::now() > end {
            return Err(format!("{name} does not listen on {address}").into());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
