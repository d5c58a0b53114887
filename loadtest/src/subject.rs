//! What is measured: a relay that this tool starts, or one that runs already.

use crate::Outcome;
use crate::floor::Means;
use crate::launch::{self, Cpus};
use crate::proc::{self, Threads};
use crate::tables::Tables;
use crate::tls::certificate::{self, Certificate};
use crate::tls::{Dialler, Offer, Trust};
use crate::upgrade::{Control, Lineage, Report, Upgrading};
use crate::wire::{Target, Wire};
use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// What times of processes that are gone are known by, among those of threads.
const NO_THREAD: u32 = 0;
/// How long a subject has to listen.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How this project's relay is told where to listen without TLS, and with it.
const PLAIN_ARGUMENTS: [&str; 2] = ["--insecure-listen", "{listen}"];
const TLS_ARGUMENTS: [&str; 6] =
    ["--https-listen", "{listen}", "--tls-cert", "{cert}", "--tls-key", "{key}"];
/// On how many threads, and that it is not to hold this load for an attack.
const RELAY_ARGUMENTS: [&str; 10] = [
    "--rate-limit",
    "off",
    "--handshake-rate",
    "off",
    "--max-connections-per-address",
    "off",
    "--metrics-listen",
    "{metrics}",
    "--control-socket",
    "{control}",
];
/// How many threads it has, and where that stands in a file that can change.
const WORKERS: [&str; 2] = ["--workers", "{workers}"];
const WORKERS_IN_FILE: [&str; 2] = ["--config", "{config}"];

/// A relay by name, by URL or by command line, and how many workers it is to have if not as many as
/// the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    kind: Kind,
    tls: bool,
    pub(crate) workers: Option<usize>,
    /// How many workers it begins with, where that stands in its configuration file; see
    /// [`Running::configure`].
    first_workers: Option<usize>,
    name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// The relay that was built beside this tool.
    This,
    /// The executable of another build of it.
    Build(String),
    /// See [`crate::baseline`].
    Baseline,
    /// See [`crate::floor`].
    Floor(Means),
    /// One that runs already, with its process id if it is on this machine; `name` and `ca` are
    /// what `wss://` has to know of its certificate if it is not the URL's host and the machine's.
    Url { url: String, pid: Option<u32>, name: Option<String>, ca: Option<PathBuf> },
    /// An executable with its arguments; `{listen}` stands for the address, `{workers}` for the
    /// number of threads, `{cert}` and `{key}` for the files of a certificate.
    Command(Vec<String>),
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (text, workers) = match text.rsplit_once('@').map(|(name, n)| (name, n.parse())) {
            Some((name, Ok(workers @ 1..=1024))) => (name, Some(workers)),
            _ => (text, None),
        };
        let (kind, tls) = kind_of(text.trim())?;
        let name = match (&kind, workers) {
            (Kind::Url { url, .. }, _) => url.clone(),
            (_, None) => short(text),
            (_, Some(workers)) => format!("{}@{workers}", short(text)),
        };
        Ok(Self { kind, tls, workers, first_workers: None, name })
    }
}

/// What is named so, and whether over TLS.
fn kind_of(text: &str) -> Result<(Kind, bool), String> {
    let kind = match text {
        "relay" | "relay-tls" => Kind::This,
        "baseline" | "baseline-tls" => Kind::Baseline,
        "floor" => Kind::Floor(Means::Ring),
        "floor-epoll" => Kind::Floor(Means::Epoll),
        url if url.starts_with("ws://") || url.starts_with("wss://") => {
            let (url, pid) = url.split_once('#').unwrap_or((url, ""));
            let pid = match pid {
                "" => None,
                pid => Some(pid.parse().map_err(|_| "after # stands a process id")?),
            };
            let tls = url.starts_with("wss://");
            return Ok((Kind::Url { url: url.to_owned(), pid, name: None, ca: None }, tls));
        }
        "" => {
            let kinds = "relay, baseline, floor, floor-epoll, ws://…, wss://…, or a command line";
            return Err(format!("name a subject: {kinds}"));
        }
        command => {
            let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
            if words.len() == 1 {
                return Ok((Kind::Build(command.to_owned()), false));
            }
            if !command.contains("{listen}") {
                return Err(format!("`{command}` lacks {{listen}}, where it is to listen"));
            }
            return Ok((Kind::Command(words), command.contains("{cert}")));
        }
    };
    Ok((kind, text.ends_with("-tls")))
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

    /// The same, over TLS.
    ///
    /// # Errors
    ///
    /// When there is no such thing.
    pub(crate) fn over_tls(mut self) -> Result<Self, String> {
        if self.tls {
            return Ok(self);
        }
        match &self.kind {
            Kind::Floor(_) => Err("the floor is a bare pipe: there is none over TLS".into()),
            Kind::Url { url, .. } => Err(format!("{url} is not TLS: write wss://")),
            Kind::Command(_) => Err(format!(
                "`{}` lacks {{cert}} and {{key}}, the files of its certificate",
                self.name
            )),
            Kind::This | Kind::Baseline | Kind::Build(_) => {
                let (name, workers) = self.name.split_once('@').unwrap_or((&self.name, ""));
                self.name = match workers {
                    "" => format!("{name}-tls"),
                    workers => format!("{name}-tls@{workers}"),
                };
                Ok(Self { tls: true, ..self })
            }
        }
    }

    /// The same, known by this name and trusted by these certificates, where that is given; as it
    /// is if it is not named by a `wss://` URL.
    pub(crate) fn trusting(mut self, server_name: Option<&str>, file: Option<&Path>) -> Self {
        if let (Kind::Url { name, ca, .. }, true) = (&mut self.kind, self.tls) {
            *name = server_name.map(str::to_owned);
            *ca = file.map(Path::to_owned);
        }
        self
    }

    /// The same, with so many workers by a file, where it is this project's relay.
    pub(crate) fn resizable(self, workers: usize) -> Self {
        Self { first_workers: Some(workers), ..self }
    }

    /// Whether it is spoken to over TLS.
    pub(crate) fn is_tls(&self) -> bool {
        self.tls
    }

    /// Whether it runs already.
    pub(crate) fn is_url(&self) -> bool {
        matches!(self.kind, Kind::Url { .. })
    }

    /// Whether it speaks the relay's protocol.
    pub(crate) fn is_a_relay(&self) -> bool {
        !matches!(self.kind, Kind::Floor(_))
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
        if let Kind::Url { url, pid, name, ca } = &self.kind {
            return find(url, *pid, name.as_deref(), ca.clone());
        }
        let address = free_address()?;
        let folder = Folder::new()?;
        folder.configure(self.first_workers.unwrap_or(workers))?;
        let words = self.words()?;
        let words = match &self.kind {
            Kind::Build(program) => without_unknown(words, &help_of(program)?),
            _ => words,
        };
        let has_metrics = words.iter().any(|word| word.contains("{metrics}"));
        let metrics = has_metrics.then(free_address).transpose()?;
        let certificate = self.tls.then(Certificate::make).transpose()?;
        let (cert, key) = certificate.as_ref().map(Certificate::files).unwrap_or_default();
        let fill = |word: &String| {
            word.replace("{listen}", &address.to_string())
                .replace("{control}", &folder.socket().to_string_lossy())
                .replace("{config}", &folder.config().to_string_lossy())
                .replace("{metrics}", &metrics.map_or(String::new(), |at| at.to_string()))
                .replace("{workers}", &workers.to_string())
                .replace("{cert}", &cert.to_string_lossy())
                .replace("{key}", &key.to_string_lossy())
        };
        let is_controlled = words.iter().any(|word| word.contains("{control}"));
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
        let processes = Lineage::start(command)?;
        let wire = match self.kind {
            Kind::Floor(_) => Wire::Floor { record: size },
            _ => Wire::WebSocket,
        };
        let host = match self.tls {
            true => format!("{}:{}", certificate::NAME, address.port()),
            false => address.to_string(),
        };
        let tls = self.tls.then(|| Trust { name: certificate::NAME.into(), ca: Some(cert) });
        let target = Target { address, host, prefix: String::new(), wire, tls };
        let mut running = Running {
            target,
            metrics,
            pid: Some(processes.pid()),
            processes: Some(processes),
            before: Past::default(),
            control: is_controlled.then(|| Control { program, socket: folder.socket(), to: None }),
            folder: Some(folder),
            name: self.name.clone(),
            _certificate: certificate,
        };
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
                self.relay_words(&relay.to_string_lossy())
            }
            Kind::Build(program) => self.relay_words(program),
            kind => {
                let mode = if matches!(kind, Kind::Floor(_)) { "floor" } else { "baseline" };
                let own = own.to_string_lossy();
                let words = [&own, mode, "--listen", "{listen}", "--workers", "{workers}"];
                let tls = ["--tls-cert", "{cert}", "--tls-key", "{key}"];
                let tls = tls.into_iter().filter(|_| self.tls);
                let epoll = (*kind == Kind::Floor(Means::Epoll)).then_some("--epoll");
                words.into_iter().chain(tls).chain(epoll).map(str::to_owned).collect()
            }
        })
    }

    /// The command line of this project's relay.
    fn relay_words(&self, program: &str) -> Vec<String> {
        let listen: &[&str] = if self.tls { &TLS_ARGUMENTS } else { &PLAIN_ARGUMENTS };
        let workers = if self.first_workers.is_some() { WORKERS_IN_FILE } else { WORKERS };
        let words = [program].into_iter().chain(listen.iter().copied());
        words.chain(workers).chain(RELAY_ARGUMENTS).map(str::to_owned).collect()
    }
}

/// What the build says of its options.
fn help_of(program: &str) -> Outcome<String> {
    let help = Command::new(program).arg("--help").output();
    let help = help.map_err(|err| format!("cannot run {program}: {err}"))?;
    Ok(String::from_utf8_lossy(&help.stdout).into_owned())
}

/// An older build has fewer limits to take off: options (each with its value) that its help does not
/// name are left out.
fn without_unknown(words: Vec<String>, help: &str) -> Vec<String> {
    let (program, options) = words.split_at(1);
    let known =
        options.chunks(2).filter(|option| option.first().is_some_and(|name| help.contains(name)));
    program.iter().chain(known.flatten()).cloned().collect()
}

/// Where a relay has its files: gone with it.
#[derive(Debug)]
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Outcome<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    fn socket(&self) -> PathBuf {
        self.0.path().join("control.sock")
    }

    fn config(&self) -> PathBuf {
        self.0.path().join("relay.toml")
    }

    fn configure(&self, workers: usize) -> Outcome<()> {
        Ok(std::fs::write(self.config(), format!("workers = {workers}\n"))?)
    }
}

/// What processes used that others have taken over from, as far as that was seen.
#[derive(Debug, Clone, Copy, Default)]
struct Past {
    times: proc::Times,
    wakes: u64,
}

/// A subject that listens. One that we started is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) target: Target,
    /// Where it tells how it is doing, if it is this project's relay and we started it.
    metrics: Option<SocketAddr>,
    pid: Option<u32>,
    processes: Option<Lineage>,
    before: Past,
    /// How it is upgraded, if that is known.
    control: Option<Control>,
    folder: Option<Folder>,
    name: String,
    /// Its files are there as long as the relay is.
    _certificate: Option<Certificate>,
}

impl Running {
    /// The times of its threads; empty if its process is not known.
    pub(crate) fn threads(&self) -> Outcome<Threads> {
        let mut threads = self.pid.map_or(Ok(Threads::new()), proc::threads)?;
        if self.before.wakes > 0 {
            threads.insert(NO_THREAD, self.before.times);
        }
        Ok(threads)
    }

    /// CPU time that it has used, if its process is known.
    pub(crate) fn cpu_time(&self) -> Outcome<Option<Duration>> {
        let now = self.pid.map(|pid| proc::times(pid).map(|times| times.cpu)).transpose()?;
        Ok(now.map(|cpu| cpu + self.before.times.cpu))
    }

    /// Its process, if it is known.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// How often its threads slept and were woken, if its process is known.
    pub(crate) fn wakes(&self) -> Outcome<Option<u64>> {
        Ok(self.pid.map(proc::wakes).transpose()?.map(|wakes| wakes + self.before.wakes))
    }

    /// The same, which is upgraded like this.
    pub(crate) fn controlled(mut self, control: Control) -> Self {
        self.control = Some(control);
        self
    }

    /// Whether it is known how it is upgraded.
    pub(crate) fn can_be_upgraded(&self) -> bool {
        self.control.is_some()
    }

    /// How many workers the next process is to have, if it is [resizable](Subject::resizable).
    pub(crate) fn configure(&self, workers: usize) -> Outcome<()> {
        self.folder.as_ref().map_or(Ok(()), |folder| folder.configure(workers))
    }

    /// Has another program take over, in the next upgrades.
    pub(crate) fn upgrade_to(&mut self, program: Option<PathBuf>) {
        if let Some(control) = &mut self.control {
            control.to = program;
        }
    }

    /// Begins an upgrade; [`Self::follow`] is what comes after it.
    pub(crate) fn begin_upgrade(&mut self) -> Outcome<Upgrading> {
        let control = self.control.as_ref().ok_or(
            "it is not known how this relay is upgraded: name its control socket with \
             --control-socket",
        )?;
        if let Some(pid) = self.pid {
            let used = proc::times(pid)?;
            self.before.times.cpu += used.cpu;
            self.before.times.waited += used.waited;
            self.before.wakes += proc::wakes(pid)?;
        }
        control.upgrade()
    }

    /// Another process has taken over.
    pub(crate) fn follow(&mut self, report: &Report) -> Outcome<()> {
        self.pid = self.pid.map(|_| report.pid);
        self.processes.as_mut().map_or(Ok(()), |processes| processes.follow(report.pid))
    }

    /// Upgrades it.
    pub(crate) fn upgrade(&mut self) -> Outcome<Report> {
        let mut upgrading = self.begin_upgrade()?;
        loop {
            if let Some(report) = upgrading.outcome()? {
                self.follow(&report)?;
                return Ok(report);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its resident memory in bytes, if its process is known.
    pub(crate) fn resident_bytes(&self) -> Outcome<Option<u64>> {
        self.pid.map(proc::resident_bytes).transpose()
    }

    /// Its open descriptors, if its process is known.
    pub(crate) fn descriptors(&self) -> Outcome<Option<u64>> {
        self.pid.map(proc::descriptors).transpose()
    }

    /// The sizes of its tables, if it tells them.
    pub(crate) fn tables(&self) -> Outcome<Option<Tables>> {
        self.metrics.map(Tables::read).transpose()
    }

    /// Whether it tells the sizes of its tables.
    pub(crate) fn tells(&self) -> bool {
        self.metrics.is_some()
    }

    /// Whether it still runs, as far as we can tell.
    pub(crate) fn check(&mut self) -> Outcome<()> {
        let ended = self.processes.as_mut().map(Lineage::ended).transpose()?.flatten();
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
            let ended = self.processes.as_mut().map(Lineage::ended).transpose()?.flatten();
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

/// Finds the relay at `url`, which `wss://` expects to prove that it is `name`.
fn find(url: &str, pid: Option<u32>, name: Option<&str>, ca: Option<PathBuf>) -> Outcome<Running> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("ws", url));
    let (host, prefix) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let (bare, port) = split_port(host);
    let usual = if scheme == "wss" { "443" } else { "80" };
    let with_port = format!("{bare}:{}", port.unwrap_or(usual));
    let mut addresses = with_port.to_socket_addrs().map_err(|error| format!("{url}: {error}"))?;
    let address = addresses.next().ok_or_else(|| format!("{url}: its host has no address"))?;
    TcpStream::connect_timeout(&address, START_TIMEOUT)
        .map_err(|error| format!("no relay at {url}: {error}"))?;
    let prefix = prefix.trim_end_matches('/').to_owned();
    let tls = (scheme == "wss")
        .then(|| Trust { name: name.unwrap_or(bare.trim_matches(['[', ']'])).to_owned(), ca });
    if let Some(trust) = &tls {
        // Whom to trust is said here once, rather than by each agent.
        Dialler::new(trust, Offer::default())?;
    }
    let host = match (name, port) {
        (None, _) => host.to_owned(),
        (Some(name), None) => name.to_owned(),
        (Some(name), Some(port)) => format!("{name}:{port}"),
    };
    let target = Target { address, host, prefix, wire: Wire::WebSocket, tls };
    Ok(Running {
        target,
        metrics: None,
        pid,
        processes: None,
        before: Past::default(),
        control: None,
        folder: None,
        name: url.to_owned(),
        _certificate: None,
    })
}

/// A host, in its brackets if it is an IPv6 address, and its port.
fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((bare, port)) if !port.contains(']') => (bare, Some(port)),
        _ => (host, None),
    }
}

/// Ports that no system gives out by itself: not to whoever dials, and not to whoever asks for any.
const UNASSIGNED_PORTS: std::ops::Range<u64> = 10_000..30_000;

/// An address that is free, and that nobody is given by chance before it is used.
pub(crate) fn free_address() -> Outcome<SocketAddr> {
    let count = UNASSIGNED_PORTS.end - UNASSIGNED_PORTS.start;
    for _ in 0..count {
        // Random seeds are all that this is about.
        let random = RandomState::new().build_hasher().finish();
        let port = u16::try_from(UNASSIGNED_PORTS.start + random % count)?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        match TcpListener::bind(address) {
            Ok(_) => return Ok(address),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err("no port is free on 127.0.0.1".into())
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
        assert!(!subject("floor").is_a_relay() && !subject("floor-epoll").is_a_relay());
        let url = Kind::Url { url: "ws://h:1/p".into(), pid: Some(7), name: None, ca: None };
        assert_eq!(subject("ws://h:1/p#7").kind, url);
        assert_eq!(subject("ws://h:1/p").with_pid(Some(7)).kind, url);
        let Kind::Command(words) = subject("/opt/x -l {listen}").kind else { panic!() };
        assert_eq!(words, ["/opt/x", "-l", "{listen}"]);
        let build = Kind::Build("/opt/pyrycode-relay".into());
        assert_eq!(subject("/opt/pyrycode-relay").kind, build);
    }

    #[test]
    fn a_subject_is_over_tls_by_its_name_its_url_its_certificate_or_the_flag() {
        for text in ["relay-tls", "relay-tls@2", "baseline-tls", "wss://h", "/x {listen} {cert}"] {
            let plain = subject(text);
            assert!(plain.is_tls(), "{text}");
            assert_eq!(plain.clone().over_tls(), Ok(plain));
        }
        for (text, named) in
            [("relay", "relay-tls"), ("relay@2", "relay-tls@2"), ("/a/old", "old-tls")]
        {
            assert!(!subject(text).is_tls());
            let secure = subject(text).over_tls().unwrap();
            assert_eq!((secure.to_string().as_str(), secure.is_tls()), (named, true));
        }
        for (text, why) in [("floor", "bare pipe"), ("ws://h", "wss://"), ("/x {listen}", "{cert}")]
        {
            let error = subject(text).over_tls().unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_build_is_told_to_listen_with_a_certificate_or_without() {
        let words = |subject: &Subject| subject.words().unwrap().join(" ");
        let plain = words(&subject("/opt/pyrycode-relay"));
        assert!(plain.starts_with("/opt/pyrycode-relay --insecure-listen {listen} --workers"));
        let secure = words(&subject("/opt/pyrycode-relay").over_tls().unwrap());
        assert!(secure.contains("--https-listen {listen} --tls-cert {cert} --tls-key {key}"));
        assert!(!secure.contains("insecure"));
        let resizable = words(&subject("/opt/pyrycode-relay").resizable(1));
        assert!(resizable.contains("--config {config}") && !resizable.contains("--workers"));
    }

    #[test]
    fn hosts_may_have_ports_and_brackets() {
        assert_eq!(split_port("h:1"), ("h", Some("1")));
        assert_eq!(split_port("h"), ("h", None));
        assert_eq!(split_port("[::1]:1"), ("[::1]", Some("1")));
        assert_eq!(split_port("[::1]"), ("[::1]", None));
    }

    #[test]
    fn only_a_wss_url_is_told_whom_to_trust() {
        let file = Path::new("/ca.pem");
        let trusting = |text| subject(text).trusting(Some("relay.example"), Some(file)).kind;
        assert_eq!(trusting("ws://h"), subject("ws://h").kind);
        assert_eq!(trusting("relay-tls"), Kind::This);
        let Kind::Url { name, ca, .. } = trusting("wss://h") else { panic!() };
        assert_eq!((name.as_deref(), ca.as_deref()), (Some("relay.example"), Some(file)));
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
    fn an_older_build_is_not_given_options_that_it_does_not_know() {
        let words = ["relay", "--workers", "1", "--handshake-rate", "off"].map(str::to_owned);
        assert_eq!(
            without_unknown(words.to_vec(), "  --workers <N>  threads"),
            ["relay", "--workers", "1"]
        );
    }

    #[test]
    fn what_cannot_be_a_subject_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "name a subject"),
            ("/x --flag", "{listen}"),
            ("ws://h#x", "#"),
            ("wss://h#x", "#"),
        ] {
            let error = text.parse::<Subject>().unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
