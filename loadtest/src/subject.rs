//! What is measured: a relay that this tool starts, or one that runs already.

use crate::Outcome;
use crate::net::{Target, Wire};
use crate::proc;
use rustix::thread::CpuSet;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How long a subject has to listen.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A relay by name, by URL or by command line.
#[derive(Debug, Clone)]
pub(crate) enum Subject {
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
        match text {
            "relay" => Ok(Self::This),
            "baseline" => Ok(Self::Baseline),
            "floor" => Ok(Self::Floor),
            url if url.starts_with("ws://") => {
                let (url, pid) = url.split_once('#').unwrap_or((url, ""));
                let pid = match pid {
                    "" => None,
                    pid => Some(pid.parse().map_err(|_| "after # stands a process id")?),
                };
                Ok(Self::Url { url: url.to_owned(), pid })
            }
            url if url.starts_with("wss://") => Err("wss:// is not spoken yet".into()),
            "" => Err("name a subject: relay, baseline, floor, ws://…, or a command line".into()),
            command => {
                let mut words: Vec<String> =
                    command.split_whitespace().map(str::to_owned).collect();
                if words.len() == 1 {
                    words.extend(RELAY_ARGUMENTS.map(str::to_owned));
                }
                Ok(Self::Command(words))
            }
        }
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::This => f.write_str("relay"),
            Self::Baseline => f.write_str("baseline"),
            Self::Floor => f.write_str("floor"),
            Self::Url { url, .. } => f.write_str(url),
            Self::Command(words) => {
                let path = words.first().map(PathBuf::from).unwrap_or_default();
                let name = path.file_name().unwrap_or_default();
                write!(f, "{}", name.to_string_lossy())
            }
        }
    }
}

const RELAY_ARGUMENTS: [&str; 4] = ["--insecure-listen", "{listen}", "--workers", "{workers}"];

/// A subject that listens. One that we started is killed when this is dropped.
pub(crate) struct Running {
    pub(crate) target: Target,
    pub(crate) pid: Option<u32>,
    child: Option<Child>,
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
    pub(crate) fn cpu_time(&self) -> Outcome<Duration> {
        self.pid.map_or(Ok(Duration::ZERO), proc::cpu_time)
    }

    pub(crate) fn resident_bytes(&self) -> Outcome<u64> {
        self.pid.map_or(Ok(0), proc::resident_bytes)
    }

    pub(crate) fn descriptors(&self) -> Outcome<u64> {
        self.pid.map_or(Ok(0), proc::descriptors)
    }

    /// Whether it still runs, as far as we can tell.
    pub(crate) fn check(&mut self) -> Outcome<()> {
        match self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
            Some(status) => Err(format!("the relay ended while it was loaded: {status}").into()),
            None => Ok(()),
        }
    }
}

impl Subject {
    /// Starts the subject on the first `workers` CPUs, for frames of `size` bytes, or finds it. With
    /// `cgroup`, it runs inside that memory cgroup from its first instruction on.
    pub(crate) fn start(
        &self,
        workers: usize,
        size: usize,
        cgroup: Option<&std::path::Path>,
    ) -> Outcome<Running> {
        let own = std::env::current_exe()?.to_string_lossy().into_owned();
        let words: Vec<String> = match self {
            Self::Url { url, pid } => return find(url, *pid),
            Self::Command(words) => words.clone(),
            Self::This => {
                let relay = PathBuf::from(&own).with_file_name("pyrycode-relay");
                if !relay.exists() {
                    return Err(format!(
                        "there is no {}: run `cargo build --release` first, or name a relay",
                        relay.display()
                    )
                    .into());
                }
                let relay = relay.to_string_lossy().into_owned();
                [relay].into_iter().chain(RELAY_ARGUMENTS.map(str::to_owned)).collect()
            }
            Self::Baseline | Self::Floor => {
                let arguments =
                    [&self.to_string(), "--listen", "{listen}", "--workers", "{workers}"];
                [own.as_str()].into_iter().chain(arguments).map(str::to_owned).collect()
            }
        };
        let address = free_address()?;
        let fill = |word: &String| {
            word.replace("{listen}", &address.to_string())
                .replace("{workers}", &workers.to_string())
        };
        let mut words = words.iter().map(fill);
        let program = words.next().ok_or("an empty command line")?;
        let mut command = match cgroup {
            None => Command::new(&program),
            // A shell enters the cgroup and becomes the relay.
            Some(path) => {
                let mut shell = Command::new("sh");
                let script = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
                shell.arg("-c").arg(script).arg(path).arg(&program);
                shell
            }
        };
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = on_cpus(Some(..workers), || command.spawn())
            .map_err(|error| format!("{program} cannot be started: {error}"))?;
        let wire = match self {
            Self::Floor => Wire::Floor { record: size },
            _ => Wire::WebSocket,
        };
        let host = address.to_string();
        let target = Target { address, host, prefix: String::new(), wire };
        let mut running = Running { target, pid: Some(child.id()), child: Some(child) };
        let end = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(address).is_err() {
            running.check()?;
            if Instant::now() > end {
                return Err(format!("{program} does not listen on {address}").into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(running)
    }
}

fn find(url: &str, pid: Option<u32>) -> Outcome<Running> {
    let rest = url.strip_prefix("ws://").unwrap_or(url);
    let (host, prefix) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let with_port = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let address = with_port.to_socket_addrs()?.next().ok_or("the URL's host has no address")?;
    let prefix = prefix.trim_end_matches('/').to_owned();
    let target = Target { address, host: host.to_owned(), prefix, wire: Wire::WebSocket };
    Ok(Running { target, pid, child: None })
}

fn free_address() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Runs `spawn` on some of the CPUs that this process may use, so that its child stays there.
/// `None` stands for those that a subject of one worker leaves free.
fn on_cpus<T>(
    first: Option<std::ops::RangeTo<usize>>,
    spawn: impl FnOnce() -> std::io::Result<T>,
) -> std::io::Result<T> {
    let all = rustix::thread::sched_getaffinity(None)?;
    let usable: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).collect();
    let chosen = match first {
        Some(range) => usable.get(..range.end.min(usable.len())),
        None => usable.get(1..),
    };
    let chosen = chosen.filter(|cpus| !cpus.is_empty()).unwrap_or(&usable);
    let mut set = CpuSet::new();
    chosen.iter().for_each(|cpu| set.set(*cpu));
    rustix::thread::sched_setaffinity(None, &set)?;
    let spawned = spawn();
    rustix::thread::sched_setaffinity(None, &all)?;
    spawned
}

/// Runs `spawn` so that its children stay off the CPU of a subject with one worker.
pub(crate) fn off_the_subjects_cpu<T>(
    workers: usize,
    spawn: impl FnOnce() -> Outcome<T>,
) -> Outcome<T> {
    if workers > 1 {
        return spawn();
    }
    let mut outcome = Err("not run".into());
    on_cpus(None, || {
        outcome = spawn();
        Ok(())
    })?;
    outcome
}
