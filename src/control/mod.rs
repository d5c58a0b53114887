//! The control plane: one ordinary tokio thread for everything that is slow or standard. It starts
//! the workers, handles signals, and ends the process.
//!
//! - `worker_threads`, `locked_memory`: spawns the workers' threads, each with its ring
//! - `fleet`: the workers, as they are seen from here
//! - [`certificate_manager`], [`certificates`], [`acme`], [`challenges`], `pem`: certificates, from
//!   files or by ACME, that are renewed while the relay runs
//! - `verifier`: claims of binaries that somebody outside is asked about
//! - [`push`]: wake requests to Firebase Cloud Messaging
//! - [`assets`]: the systemd unit, the Dockerfile and the like
//! - [`demo`]: a relay with a binary and phones, to look at
//! - [`manual`]: completions for shells, manual pages
//! - [`balancer`]: configurations for HAProxy and nginx in front of several relays
//! - `monitoring`, [`process`]: metrics, health, status
//! - `socket`, `operations`, `operate`: the control socket, what is asked there, and the commands
//! - `connections`: who is connected and what they cost; `log_level`: the log's level, for a while
//! - `watch`: a live view in the terminal; `diagnose`: an archive for a bug report
//! - `upgrade`: gives everything to a new process, or takes it over
//! - `doors`: the control plane's own listeners
//! - `drain`: takes nobody new and sends everybody away
//! - `notify`: systemd's readiness and watchdog protocol
//! - `http`: the client and the accept loop that these share
//! - `listening`, `port_owner`: listeners, and which process has an address that is taken
//! - `production`: settings that are unsafe in production; `explain`: what the kernel refuses
//! - `reload`: SIGHUP; `dump`: SIGUSR1

mod connections;
mod diagnose;
mod doors;
mod drain;
mod dump;
mod explain;
mod fleet;
mod http;
mod listening;
mod locked_memory;
mod log_level;
mod monitoring;
mod notify;
mod operate;
mod operations;
mod pem;
mod port_owner;
mod production;
mod reload;
mod socket;
mod upgrade;
mod verifier;
mod watch;
mod worker_threads;

pub mod acme;
pub mod assets;
pub mod balancer;
pub mod certificate_manager;
pub mod certificates;
pub mod challenges;
pub mod demo;
pub mod manual;
pub mod process;
pub mod push;
pub mod status;

use crate::config::{Config, Exit, MetricsListen, TRIAL};
use crate::telemetry::{self, Log};
use crate::worker::ring;
pub use operate::operate;

use certificate_manager::CertificateManager;
use doors::Doors;
use drain::Drain;
use explain::{MEND_DESCRIPTORS, explain_no_ring};
use fleet::{Ends, Resources, worker_failure};
use log_level::LogLevel;
use monitoring::Monitoring;
use operations::Operations;
use push::Push;
use reload::{Live, Settings};
use socket::listener::{self, Bound};
use socket::server;
use socket2::Socket;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Notify, Semaphore};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};
use upgrade::inheritance::{self, Started};
use upgrade::predecessor::Predecessor;
use upgrade::{Heir, Program, Upgrades};
use worker_threads::WorkerThreads;

/// What begins the URL of a relay that is asked how it is doing.
pub const STATUS_SCHEME: &str = "http://";
/// How long what is left to do may take where another process serves already.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// How long the wake requests may take that workers had made until then.
const LAST_WAKES: Duration = Duration::from_secs(10);
/// How often the log is asked for what it did not write.
const UNLOGGED_EVERY: Duration = Duration::from_secs(10);

/// Runs the relay until it is asked to stop.
///
/// # Errors
///
/// How the process is to end, if not with 0: io_uring is not available, a listener cannot be
/// bound, or a worker failed.
pub fn run(
    config: &Config,
    log: &telemetry::Guard,
    reread: impl Fn() -> Result<Config, Exit>,
    invocation: Invocation,
) -> Result<(), Exit> {
    let epoch = Instant::now();
    let Invocation { args, takes_over } = invocation;
    // Looked up now: once the file is replaced, the kernel tells the path of a deleted one.
    let program = Program { path: std::env::current_exe().unwrap_or_default(), args };
    let mut predecessor = takes_over.then(Predecessor::meet).transpose()?;
    let ended = prepare(config, predecessor.as_ref()).and_then(|prepared| {
        let runtime = runtime()
            .map_err(|error| failure(format!("the control runtime cannot start: {error}")))?;
        let served = supervise(config, log, prepared, (epoch, program), &mut predecessor, reread);
        let ended = runtime.block_on(served);
        // Looking up a name blocks a thread of the runtime, maybe for long: the end does not wait.
        runtime.shutdown_background();
        ended
    });
    if let (Err(exit), Some(predecessor)) = (&ended, &mut predecessor) {
        predecessor.refuse(&exit.reason);
    }
    ended
}

/// Tells the relay that this process was started by that it does not take over, and why.
pub fn decline(exit: &Exit) {
    if let Ok(mut predecessor) = Predecessor::meet() {
        predecessor.refuse(&exit.reason);
    }
}

/// How the program was started.
pub struct Invocation {
    /// Its arguments, without its name.
    pub args: Vec<OsString>,
    /// By a relay, to take its place.
    pub takes_over: bool,
}

/// What there is before anything is served.
struct Prepared {
    manager: Option<CertificateManager>,
    push: Option<Push>,
    threads: WorkerThreads,
    /// Beside those of a predecessor.
    listeners: Vec<Socket>,
}

fn prepare(config: &Config, predecessor: Option<&Predecessor>) -> Result<Prepared, Exit> {
    let (manager, push) = open(config, false)?;
    raise_descriptor_limit(config.workers)?;
    let threads = WorkerThreads::spawn(config)?;
    let (flag, address) = listening::place(config)?;
    let workers = threads.starts.len();
    let listeners = match predecessor {
        None => listening::listen(flag, address, workers)?,
        Some(before) => listening::inherit((flag, address), &before.serving, workers)?,
    };
    Ok(Prepared { manager, push, threads, listeners })
}

/// Refuses what [`run`] would refuse, and warns as it would; listens nowhere, and changes nothing.
///
/// # Errors
///
/// A refusal, or why io_uring is not available (exit code 1): what is wrong, and how to mend it.
pub fn check(config: &Config) -> Result<(), Exit> {
    open(config, true)?;
    let plan = locked_memory::plan(config.workers)?;
    ring::probe().map_err(|error| failure(explain_no_ring(&error)))?;
    locked_memory::warn_of(config.workers, &plan);
    production::warn_of_privileges(config);
    if let Some(path) = &config.control_socket {
        listener::look(path)?;
    }
    // Last, so that whoever looks while the relay runs knows that the rest is in order.
    listening::check(config)
}

/// All that can be found out before anything listens. A misspelt variable comes first: it may be
/// why the rest is refused. `only_look` changes nothing on disk.
fn open(
    config: &Config,
    only_look: bool,
) -> Result<(Option<CertificateManager>, Option<Push>), Exit> {
    for variable in &config.unknown_variables {
        let err = "no flag has this name; is it misspelt?";
        warn!(path = variable, err, "unknown_variable");
    }
    production::check(config)?;
    let manager = config
        .https
        .as_ref()
        .map(|https| CertificateManager::open(https, only_look))
        .transpose()?;
    let push = Push::from_config(config)?;
    Ok((manager, push))
}

/// A runtime of this thread: what is asked of the control plane is never much.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// How the relay is doing that serves metrics where `config` says, as text.
///
/// # Errors
///
/// There is none, or it does not answer; exit code 1.
pub fn status(config: &Config) -> Result<String, Exit> {
    let Some(MetricsListen { addr, .. }) = config.metrics_listen else {
        let reason = "--metrics-listen is empty, so no relay can be asked".to_owned();
        return Err(failure(reason).about(["--metrics-listen"]));
    };
    let runtime = runtime().map_err(|error| failure(error.to_string()))?;
    runtime.block_on(status::status(addr)).map_err(failure)
}

/// How the relays are doing whose metrics listeners have these URLs (`http://HOST:PORT`), in one
/// table; and whether all of them answer.
///
/// # Errors
///
/// A URL is none; exit code 2.
pub fn status_of_all(urls: &[String]) -> Result<(String, bool), Exit> {
    let address = |url: &String| {
        let rest = url.strip_prefix(STATUS_SCHEME).unwrap_or(url).trim_end_matches('/');
        let port =
            rest.rsplit_once(':').filter(|(host, _)| !host.is_empty() && !host.contains('/'));
        match port.and_then(|(_, port)| port.parse::<u16>().ok()) {
            Some(_) => Ok(rest.to_owned()),
            None => Err(Exit::refusal(&format!("{url} is not http://HOST:PORT"))),
        }
    };
    let addresses = urls.iter().map(address).collect::<Result<Vec<_>, _>>()?;
    let runtime = runtime().map_err(|error| failure(error.to_string()))?;
    Ok(runtime.block_on(status::status_of_all(&addresses)))
}

/// Starts the workers and waits: for a signal, or for a worker that fails.
// One list, in its order, of what a process has to do.
#[allow(clippy::too_many_lines)]
async fn supervise(
    config: &Config,
    log: &telemetry::Guard,
    prepared: Prepared,
    (epoch, program): (Instant, Program),
    predecessor: &mut Option<Predecessor>,
    reread: impl Fn() -> Result<Config, Exit>,
) -> Result<(), Exit> {
    let Prepared { manager, push, threads, listeners } = prepared;
    let no_signals = |error| failure(format!("signal handlers cannot be installed: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(no_signals)?;
    let mut user_1 = signal(SignalKind::user_defined1()).map_err(no_signals)?;
    let mut user_2 = signal(SignalKind::user_defined2()).map_err(no_signals)?;
    let lent = predecessor.as_mut().map(|before| std::mem::take(&mut before.lent));
    let Doors { metrics, control_socket, challenges, lends } =
        Doors::open(config, manager.as_ref(), lent.unwrap_or_default())?;
    let tls = manager.as_ref().map(CertificateManager::server_config);
    let certificates = manager.as_ref().map(CertificateManager::certificates);
    let has_tls = tls.is_some();
    let http = verifier::http().map_err(failure)?;
    let resources = Resources { listeners: Vec::new(), tls, push, http, epoch, estate: None };
    let mut stops = [&mut interrupt, &mut terminate];
    let started =
        inheritance::start(config, threads, listeners, resources, predecessor, &mut stops).await?;
    let Started { fleet, mut ends, serving, earlier, record } = started;
    if let Some(manager) = manager {
        manager.start(challenges);
    }
    let drain = Drain::new(fleet.clone());
    let settings = Settings::new(config);
    let monitoring = Arc::new(Monitoring {
        fleet: fleet.clone(),
        settings: settings.clone(),
        drain: drain.clone(),
        log: log.log(),
        certificates: certificates.clone(),
        memory_budget_bytes: config.memory_budget_bytes,
        one_of_many: config.one_of_many,
        epoch,
        started_at_seconds: since_1970(epoch),
        draining: AtomicBool::new(false),
        upgrades: record,
        earlier,
        last_census: Mutex::default(),
    });
    let metrics = metrics.map(|listener| tokio::spawn(monitoring.clone().serve(listener)));
    let address = serving.bound;
    let upgrades = Arc::new(Upgrades {
        fleet: fleet.clone(),
        monitoring: monitoring.clone(),
        drain: drain.clone(),
        program,
        serving,
        lent: lends,
        has_tls,
        place: Semaphore::new(1),
        is_leaving: AtomicBool::new(false),
        stopping: Notify::new(),
        heir: tokio::sync::watch::Sender::new(None),
    });
    let level = LogLevel::new(log.level(), config.log_level);
    let commands = Arc::new(Semaphore::new(server::MAX_CONNECTIONS));
    let given_away = control_socket.as_ref().map(Bound::given_away);
    if let Some(given_away) = &given_away {
        given_away.store(false, Ordering::Relaxed);
    }
    let control = control_socket.map(|bound| {
        let operations = Operations {
            fleet: fleet.clone(),
            monitoring: monitoring.clone(),
            drain: drain.clone(),
            level: level.clone(),
            settings: settings.clone(),
            upgrades: upgrades.clone(),
        };
        tokio::spawn(server::serve(bound, Arc::new(operations), commands.clone()))
    });
    let leaving =
        Leaving { doors: metrics.into_iter().chain(control).collect(), commands, given_away };
    production::warn_of_privileges(config);
    info!(err = config.show_limits(), "limits");
    info!(remote = %address, "listening");
    notify::ready(&format!("serving on {address}"));
    if config.insecure.is_some_and(|listen| listen.is_default) {
        print_trial(address);
    }
    let mut live =
        Live { config: config.clone(), fleet: fleet.clone(), certificates, level, settings };
    tokio::spawn(report_unlogged(log.log()));
    tokio::spawn(notify::watchdog(fleet.clone()));
    loop {
        tokio::select! {
            _ = interrupt.recv() => break info!(err = "SIGINT", "shutting_down"),
            _ = terminate.recv() => break info!(err = "SIGTERM", "shutting_down"),
            heir = upgrades.heir() => return leaving.leave(heir, ends).await,
            end = ends.next() => if !upgrades.is_leaving() {
                return Err(worker_failure(end));
            },
            _ = hang_up.recv() => {
                notify::reloading();
                live.reload(&reread);
                notify::ready("serving, reloaded");
            }
            _ = user_1.recv() => {
                let fleet = fleet.clone();
                tokio::spawn(async move { dump::dump(&fleet).await });
            }
            _ = user_2.recv() => {
                let upgrades = upgrades.clone();
                tokio::spawn(async move { upgrades.upgrade(None).await });
            }
        }
    }
    if let Some(heir) = upgrades.stop().await {
        if let Ok(pid) = heir {
            // Meant for whoever serves.
            pass_on_terminate(pid);
        }
        return leaving.leave(heir, ends).await;
    }
    notify::stopping();
    monitoring.drain();
    let stop = async {
        if !live.config.drain_spread.is_zero() {
            drain.spread(live.config.drain_spread).await;
        }
        fleet.shut_down();
        ends.all().await;
    };
    tokio::select! {
        () = stop => info!("drained"),
        () = tokio::time::sleep(live.config.drain_timeout) => {
            warn!(err = "some peers did not answer their close in time", "drain_timeout");
        }
        _ = interrupt.recv() => warn!(err = "a second signal", "exit_at_once"),
        _ = terminate.recv() => warn!(err = "a second signal", "exit_at_once"),
    }
    Ok(())
}

/// What is left to do for a process that has a successor.
struct Leaving {
    /// What accepts for the control plane.
    doors: Vec<JoinHandle<()>>,
    /// Commands that are under way: one of them has brought this about.
    commands: Arc<Semaphore>,
    /// To be set where the control socket is the successor's.
    given_away: Option<Arc<AtomicBool>>,
}

impl Leaving {
    /// The process `heir` serves: ends, once the commands and the wake requests that are under way have
    /// their answers.
    ///
    /// # Errors
    ///
    /// It has ended, and nobody serves.
    async fn leave(self, heir: Heir, mut ends: Ends) -> Result<(), Exit> {
        if let (Some(given_away), Ok(_)) = (&self.given_away, &heir) {
            given_away.store(true, Ordering::Relaxed);
        }
        self.doors.iter().for_each(JoinHandle::abort);
        if let Ok(pid) = heir {
            notify::taken_over_by(pid);
        }
        let all = self.commands.acquire_many(server::MAX_CONNECTIONS as u32);
        let _ = tokio::time::timeout(LAST_ANSWERS, all).await;
        let _ = tokio::time::timeout(LAST_ANSWERS, ends.all()).await;
        let _ = tokio::time::timeout(LAST_WAKES, ends.last_wakes()).await;
        heir.map(drop).map_err(failure)
    }
}

/// Has the process `pid` stop, as this one was asked to.
fn pass_on_terminate(pid: u32) {
    use rustix::process::{Pid, Signal, kill_process};
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let Some(Err(errno)) = pid.map(|pid| kill_process(pid, Signal::TERM)) {
        warn!(err = %errno, "successor_not_told");
    }
}

/// When a moment was by the wall clock, in seconds since 1970.
fn since_1970(moment: Instant) -> u64 {
    let moment = SystemTime::now().checked_sub(moment.elapsed());
    let since = moment.and_then(|moment| moment.duration_since(UNIX_EPOCH).ok());
    since.unwrap_or_default().as_secs()
}

/// Reports every few seconds how many lines the log has only counted, and how many it has lost.
async fn report_unlogged(log: Log) {
    let mut reported = 0;
    loop {
        tokio::time::sleep(UNLOGGED_EVERY).await;
        log.tell_omitted();
        let lost = log.lost_lines();
        if lost > reported {
            let err = format!(
                "{} lines were dropped because standard error was not read in time",
                lost - reported
            );
            error!(err, "log_lines_lost");
            reported = lost;
        }
    }
}

/// The embedded default says what it is and how to try it out: on standard output, because
/// standard error holds the log, where every line is an event.
fn print_trial(address: std::net::SocketAddr) {
    let [binary, phone] = crate::config::trial_commands(address);
    // Nobody may be there to read it, and that is no reason not to run.
    let _ = writeln!(
        io::stdout(),
        "pyrycode-relay: no listening flag, so plain WebSocket on {address} for trying it out. In \
         two other terminals, play a binary and a phone:\n\n  {binary}\n\n  {phone}\n\n{TRIAL}"
    );
}

/// Descriptors that the process needs beside those of its workers and connections.
const OWN_DESCRIPTORS: u64 = 24;
/// What a worker has of them before anybody connects.
const DESCRIPTORS_PER_WORKER: u64 = 8;

/// Each connection needs a descriptor, so take all that we may (PROTOCOL.md, chapter 6).
///
/// # Errors
///
/// There are too few to begin with.
fn raise_descriptor_limit(workers: usize) -> Result<(), Exit> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(errno) = setrlimit(Resource::Nofile, limit) {
        warn!(err = %errno, "descriptor_limit_not_raised");
    }
    let (has, needs) =
        (process::max_descriptors(), OWN_DESCRIPTORS + DESCRIPTORS_PER_WORKER * workers as u64);
    if has < needs {
        return Err(failure(format!(
            "{workers} workers need {needs} descriptors before anybody connects, and this process \
             may have {has}; {MEND_DESCRIPTORS}"
        ))
        .about(["--workers"]));
    }
    Ok(())
}

fn failure(message: String) -> Exit {
    Exit::failure(message)
}
