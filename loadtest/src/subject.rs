//! What is measured: a relay that this tool starts, or one that runs already.

use crate::Outcome;
use crate::launch::{self, Cpus};
use crate::proc::{self, Threads};
use crate::wire::{Target, Wire};
use std::fmt;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How long a subject has to listen.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How this project's relay is told where to listen, and on how many threads.
const RELAY_ARGUMENTS: [&str; 10] = [
    "--insecure-listen",
    "{listen}",
    "--workers",
    "{workers}",
    "--rate-limit",
    "off",
    "--max-connections-per-address",
    "off",
    "--metrics-listen",
    "",
];

/// A relay by name, by URL or by command line, and how many workers it is to have if not as many as
/// the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    kind: Kind,
    pub(crate) workers: Option<usize>,
    name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// The relay that was built beside this tool.
    This,
    /// See [`crate::baseline`].
    Baseline,
    /// See [`crate::floor`].
    Floor,
    /// One that runs already, with its process id if it is on this machine.
    Url { url: String, pid: Option<u32> },
    /// An executable with its arguments; `{listen}` stands for the address, `{workers}` for the
    /// number of threads.
    Command(Vec<String>),
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (text, workers) = match text.rsplit_once('@').map(|(name, n)| (name, n.parse())) {
            Some((name, Ok(workers @ 1..=1024))) => (name, Some(workers)),
            _ => (text, None),
        };
        let kind = kind_of(text.trim())?;
        let name = match (&kind, workers) {
            (Kind::Url { url, .. }, _) => url.clone(),
            (_, None) => short(text),
            (_, Some(workers)) => format!("{}@{workers}", short(text)),
        };
        Ok(Self { kind, workers, name })
    }
}

fn kind_of(text: &str) -> Result<Kind, String> {
    match text {
        "relay" => Ok(Kind::This),
        "baseline" => Ok(Kind::Baseline),
        "floor" => Ok(Kind::Floor),
        url if url.starts_with("ws://") => {
            let (url, pid) = url.split_once('#').unwrap_or((url, ""));
            let pid = match pid {
                "" => None,
                pid => Some(pid.parse().map_err(|_| "after # stands a process id")?),
            };
            Ok(Kind::Url { url: url.to_owned(), pid })
        }
        url if url.starts_with("wss://") => Err("this tool does not speak wss:// yet".into()),
        "" => Err("name a subject: relay, baseline, floor, ws://…, or a command line".into()),
        command => {
            let mut words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
            if words.len() == 1 {
                words.extend(RELAY_ARGUMENTS.map(str::to_owned));
            } else if !command.contains("{listen}") {
                return Err(format!("`{command}` lacks {{listen}}, where it is to listen"));
            }
            Ok(Kind::Command(words))
        }
    }
}

/// A command line without the folders of its program.
fn short(command: &str) -> String {
    let (program, rest) = command.split_once(' ').unwrap_or((command, ""));
    let name = program.rsplit('/').next().unwrap_or(program);
    format!("{name} {rest}").trim_end().to_owned()
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Subject {
    /// The same, known to be this process.
    pub(crate) fn with_pid(mut self, process: Option<u32>) -> Self {
        if let Kind::Url { pid, .. } = &mut self.kind {
            *pid = process.or(*pid);
        }
        self
    }

    /// Whether it speaks the relay's protocol.
    pub(crate) fn is_a_relay(&self) -> bool {
        self.kind != Kind::Floor
    }

    /// Starts the subject on the first `workers` CPUs, for frames of `size` bytes, or finds it. With
    /// `cgroup`, it runs inside that memory cgroup from its first instruction on; `log` takes what
    /// it writes to standard error.
    pub(crate) fn start(
        &self,
        workers: usize,
        size: usize,
        cgroup: Option<&Path>,
        log: Option<&Path>,
    ) -> Outcome<Running> {
        if let Kind::Url { url, pid } = &self.kind {
            return find(url, *pid);
        }
        let address = free_address()?;
        let words = self.words()?;
        let fill = |word: &String| {
            word.replace("{listen}", &address.to_string())
                .replace("{workers}", &workers.to_string())
        };
        let mut words = words.iter().map(fill);
        let program = PathBuf::from(words.next().ok_or("an empty command line")?);
        if program.components().count() > 1 && !program.exists() {
            return Err(format!("there is no {} to start", program.display()).into());
        }
        let mut command = launch::command(&program, Cpus::First(workers), cgroup)?;
        let log = match log {
            Some(path) => std::fs::File::options().create(true).append(true).open(path)?.into(),
            None => Stdio::null(),
        };
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn()?;
        let wire = match self.kind {
            Kind::Floor => Wire::Floor { record: size },
            _ => Wire::WebSocket,
        };
        let host = address.to_string();
        let target = Target { address, host, prefix: String::new(), wire };
        let name = self.name.clone();
        let mut running = Running { target, pid: Some(child.id()), child: Some(child), name };
        running.await_listener()?;
        Ok(running)
    }

    fn words(&self) -> Outcome<Vec<String>> {
        let own = std::env::current_exe()?;
        Ok(match &self.kind {
            Kind::Command(words) => words.clone(),
            Kind::This => {
                let relay = own.with_file_name("pyrycode-relay");
                if !relay.exists() {
                    return Err(format!(
                        "there is no {}: run `cargo build --release`, or name a relay",
                        relay.display()
                    )
                    .into());
                }
                let relay = relay.to_string_lossy().into_owned();
                [relay].into_iter().chain(RELAY_ARGUMENTS.map(str::to_owned)).collect()
            }
            kind => {
                let mode = if *kind == Kind::Floor { "floor" } else { "baseline" };
                let own = own.to_string_lossy().into_owned();
                let words = [&own, mode, "--listen", "{listen}", "--workers", "{workers}"];
                words.map(str::to_owned).to_vec()
            }
        })
    }
}

/// A subject that listens. One that we started is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) target: Target,
    pid: Option<u32>,
    child: Option<Child>,
    name: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Both fail only if it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Running {
    /// The times of its threads; empty if its process is not known.
    pub(crate) fn threads(&self) -> Outcome<Threads> {
        self.pid.map_or(Ok(Threads::new()), proc::threads)
    }

    /// CPU time that it has used, if its process is known.
    pub(crate) fn cpu_time(&self) -> Outcome<Option<Duration>> {
        self.pid.map(|pid| proc::times(pid).map(|times| times.cpu)).transpose()
    }

    /// Its resident memory in bytes, if its process is known.
    pub(crate) fn resident_bytes(&self) -> Outcome<Option<u64>> {
        self.pid.map(proc::resident_bytes).transpose()
    }

    /// Its open descriptors, if its process is known.
    pub(crate) fn descriptors(&self) -> Outcome<Option<u64>> {
        self.pid.map(proc::descriptors).transpose()
    }

    /// Whether it still runs, as far as we can tell.
    pub(crate) fn check(&mut self) -> Outcome<()> {
        let ended = self.child.as_mut().map(Child::try_wait).transpose()?.flatten();
        match ended {
            Some(status) => Err(format!(
                "the relay's fault: {} ended while it was loaded ({status}); --log FILE keeps what \
                 it says",
                self.name
            )
            .into()),
            None => Ok(()),
        }
    }

    fn await_listener(&mut self) -> Outcome<()> {
        let end = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(self.target.address).is_err() {
            let ended = self.child.as_mut().map(Child::try_wait).transpose()?.flatten();
            let why = match ended {
                Some(status) => format!("it ended at once ({status})"),
                None if Instant::now() > end => {
                    format!("it did not within {} s", START_TIMEOUT.as_secs())
                }
                None => {
                    std::thread::sleep(Duration::from_millis(10));
                    continue;
                }
            };
            return Err(format!(
                "{} was to listen on {}, but {why}; --log FILE keeps what it says",
                self.name, self.target.address
            )
            .into());
        }
        Ok(())
    }
}

fn find(url: &str, pid: Option<u32>) -> Outcome<Running> {
    let rest = url.strip_prefix("ws://").unwrap_or(url);
    let (host, prefix) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let with_port = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut addresses = with_port.to_socket_addrs().map_err(|error| format!("{url}: {error}"))?;
    let address = addresses.next().ok_or_else(|| format!("{url}: its host has no address"))?;
    TcpStream::connect_timeout(&address, START_TIMEOUT)
        .map_err(|error| format!("no relay at {url}: {error}"))?;
    let prefix = prefix.trim_end_matches('/').to_owned();
    let target = Target { address, host: host.to_owned(), prefix, wire: Wire::WebSocket };
    Ok(Running { target, pid, child: None, name: url.to_owned() })
}

fn free_address() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(text: &str) -> Subject {
        text.parse().unwrap()
    }

    #[test]
    fn subjects_are_names_urls_and_command_lines() {
        assert_eq!(subject("relay").kind, Kind::This);
        assert_eq!(subject("baseline").kind, Kind::Baseline);
        assert!(!subject("floor").is_a_relay());
        let url = Kind::Url { url: "ws://h:1/p".into(), pid: Some(7) };
        assert_eq!(subject("ws://h:1/p#7").kind, url);
        assert_eq!(subject("ws://h:1/p").with_pid(Some(7)).kind, url);
        let Kind::Command(words) = subject("/opt/x -l {listen}").kind else { panic!() };
        assert_eq!(words, ["/opt/x", "-l", "{listen}"]);
        let Kind::Command(words) = subject("/opt/pyrycode-relay").kind else { panic!() };
        assert_eq!(words.len(), 1 + RELAY_ARGUMENTS.len());
    }

    #[test]
    fn a_subject_may_have_workers_of_its_own() {
        assert_eq!(subject("relay@2").workers, Some(2));
        assert_eq!(subject("relay@2").to_string(), "relay@2");
        assert_eq!(subject("/a/b/relay@2").to_string(), "relay@2");
        assert_eq!(subject("relay").workers, None);
    }

    #[test]
    fn names_leave_folders_out() {
        assert_eq!(subject("/a/b/relay").to_string(), "relay");
        assert_eq!(subject("/a/b/other --on {listen}").to_string(), "other --on {listen}");
    }

    #[test]
    fn what_cannot_be_a_subject_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "name a subject"),
            ("wss://h", "wss"),
            ("/x --flag", "{listen}"),
            ("ws://h#x", "#"),
        ] {
            let error = text.parse::<Subject>().unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
