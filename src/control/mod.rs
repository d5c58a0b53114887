//! The other plane: one ordinary tokio thread for everything that is slow or standard. It starts
//! the workers, hears the signals, and ends the process.

//!
//! - `fleet`: the workers, as they are seen from here
//! - [`keeper`], [`certificates`], [`acme`], [`challenges`]: certificates that look after themselves
//! - [`push`]: wake requests to Firebase Cloud Messaging
//! - [`assets`]: what it brings along for the tools around it
//! - `monitoring`, [`process`]: metrics, health, status
//! - `notify`: what systemd is told
//! - `production`: what must not be in production
//! - `reload`: SIGHUP; `dump`: SIGUSR1

mod dump;
mod fleet;
mod monitoring;
mod notify;
mod production;
mod reload;

pub mod acme;
pub mod assets;
pub mod certificates;
pub mod challenges;
pub mod keeper;
pub mod process;
pub mod push;
pub mod status;

use crate::config::{Config, Exit, MetricsListen};
use crate::telemetry::{self, Log};
use crate::worker::{listener, ring};
use fleet::{Equipment, Fleet};
use keeper::Keeper;
use monitoring::Monitoring;
use push::Push;
use reload::Live;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;
use tracing::{error, info, warn};

/// How often the log is asked for what it did not write.
const UNLOGGED_EVERY: Duration = Duration::from_secs(10);

/// Runs the relay until it is asked to stop.
///
/// # Errors
///
/// How the process is to end, if not with 0: io_uring is not to be had, a listener cannot be
/// bound, or a worker failed.
pub fn run(
    config: &Config,
    log: &telemetry::Guard,
    reread: impl Fn() -> Result<Config, Exit>,
) -> Result<(), Exit> {
    let epoch = Instant::now();
    let (keeper, push) = open(config, false)?;
    raise_descriptor_limit();
    let (flag, address) = match (&config.insecure, &config.https) {
        (Some(listen), _) => ("--insecure-listen", listen.addr),
        (None, Some(https)) => ("--https-listen", https.listen),
        (None, None) => return Err(failure("there is nothing to listen on".to_owned())),
    };
    let listeners = listener::bind(address, config.workers)
        .map_err(|error| failure(explain_no_listener(flag, address, &error)))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failure(format!("the control runtime cannot start: {error}")))?;
    let ended = runtime.block_on(supervise(config, log, listeners, (keeper, push), epoch, reread));
    // Looking up a name blocks a thread of the runtime, maybe for long: the end does not wait.
    runtime.shutdown_background();
    ended
}

/// Refuses what [`run`] would refuse, and warns as it would; listens nowhere, and changes nothing.
///
/// # Errors
///
/// A refusal, or why io_uring is not to be had (exit code 1): what is wrong, and how to mend it.
pub fn check(config: &Config) -> Result<(), Exit> {
    open(config, true)?;
    production::warn_of_privileges(config);
    Ok(())
}

/// All that can be found out before anything listens. A misspelt variable comes first: it may be
/// why the rest is refused. `only_look` changes nothing on disk.
fn open(config: &Config, only_look: bool) -> Result<(Option<Keeper>, Option<Push>), Exit> {
    for variable in &config.unknown_variables {
        let err = "no flag has this name; is it misspelt?";
        warn!(path = variable, err, "unknown_variable");
    }
    production::check(config)?;
    let keeper = config.https.as_ref().map(|https| Keeper::open(https, only_look)).transpose()?;
    let push = Push::from_config(config)?;
    ring::probe().map_err(|error| failure(explain_no_ring(&error)))?;
    Ok((keeper, push))
}

/// How the relay is doing that serves metrics where `config` says, as text.
///
/// # Errors
///
/// There is none, or it does not answer; exit code 1.
pub fn status(config: &Config) -> Result<String, Exit> {
    let Some(MetricsListen { addr, .. }) = config.metrics_listen else {
        return Err(failure("--metrics-listen is empty, so there is nobody to ask".to_owned()));
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failure(error.to_string()))?;
    runtime.block_on(status::status(addr)).map_err(failure)
}

/// Starts the workers and waits: for a signal, or for a worker that fails.
async fn supervise(
    config: &Config,
    log: &telemetry::Guard,
    listeners: Vec<socket2::Socket>,
    (keeper, push): (Option<Keeper>, Option<Push>),
    epoch: Instant,
    reread: impl Fn() -> Result<Config, Exit>,
) -> Result<(), Exit> {
    let no_signals = |error| failure(format!("signals cannot be heard: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(no_signals)?;
    let mut user_1 = signal(SignalKind::user_defined1()).map_err(no_signals)?;
    let metrics_listener = config.metrics_listen.map(bind_metrics).transpose()?.flatten();
    let tls = keeper.as_ref().map(Keeper::server_config);
    let certificates = keeper.as_ref().map(Keeper::certificates);
    if let Some(keeper) = keeper {
        keeper.start().map_err(|(address, error)| {
            failure(explain_no_listener("--http-listen", address, &error))
        })?;
    }
    let bound = listeners.first().and_then(|listener| listener.local_addr().ok());
    let equipment = Equipment { listeners, tls, push, epoch };
    let (fleet, mut ends) = Fleet::start(config, equipment).await?;
    let monitoring = Arc::new(Monitoring {
        fleet: fleet.clone(),
        log: log.log(),
        certificates: certificates.clone(),
        memory_budget_bytes: config.memory_budget_bytes,
        epoch,
        started_at: since_1970(epoch),
        draining: AtomicBool::new(false),
        last_census: Mutex::default(),
    });
    if let Some(listener) = metrics_listener {
        tokio::spawn(monitoring.clone().serve(listener));
    }
    if let Some(address) = bound.and_then(|address| address.as_socket()) {
        production::warn_of_privileges(config);
        info!(err = config.show_limits(), "limits");
        info!(remote = %address, "listening");
        notify::ready(&format!("serving on {address}"));
        if config.insecure.is_some_and(|listen| listen.is_default) {
            print_trial(address);
        }
    }
    let mut live =
        Live { config: config.clone(), fleet: fleet.clone(), certificates, level: log.level() };
    tokio::spawn(report_unlogged(log.log()));
    tokio::spawn(notify::watchdog(fleet.clone()));
    loop {
        tokio::select! {
            _ = interrupt.recv() => break info!(err = "SIGINT", "shutting_down"),
            _ = terminate.recv() => break info!(err = "SIGTERM", "shutting_down"),
            failed = ends.failure() => return Err(failed),
            _ = hang_up.recv() => {
                notify::reloading();
                live.reload(&reread);
                notify::ready("serving, reloaded");
            }
            _ = user_1.recv() => {
                let fleet = fleet.clone();
                tokio::spawn(async move { dump::dump(&fleet).await });
            }
        }
    }
    notify::stopping();
    monitoring.drain();
    fleet.shut_down();
    tokio::select! {
        () = ends.all(&fleet) => info!("drained"),
        () = tokio::time::sleep(live.config.drain_timeout) => {
            warn!(err = "some peers did not answer their close in time", "drain_timeout");
        }
        _ = interrupt.recv() => warn!(err = "a second signal", "exit_at_once"),
        _ = terminate.recv() => warn!(err = "a second signal", "exit_at_once"),
    }
    Ok(())
}

/// When `epoch` was by the wall clock, in seconds since 1970.
fn since_1970(epoch: Instant) -> u64 {
    let started = SystemTime::now().checked_sub(epoch.elapsed());
    let since = started.and_then(|started| started.duration_since(UNIX_EPOCH).ok());
    since.unwrap_or_default().as_secs()
}

/// The listener for metrics. A default that is taken is no reason not to serve: another relay of
/// this machine may have it.
fn bind_metrics(listen: MetricsListen) -> Result<Option<TcpListener>, Exit> {
    let bound = listener::bind(listen.addr, 1).and_then(|mut bound| {
        let socket = bound.pop().ok_or(io::ErrorKind::AddrNotAvailable)?;
        TcpListener::from_std(socket.into())
    });
    match bound {
        Ok(listener) => {
            let address = listener.local_addr().unwrap_or(listen.addr);
            info!(remote = %address, "listening_for_metrics");
            Ok(Some(listener))
        }
        Err(error) if listen.is_default => {
            let err = format!(
                "{error}: there are no metrics and no status page on {}; choose another address \
                 with --metrics-listen",
                listen.addr
            );
            warn!(err, "metrics_not_served");
            Ok(None)
        }
        Err(error) => Err(failure(explain_no_listener("--metrics-listen", listen.addr, &error))),
    }
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
        "pyrycode-relay: no listening flag, so plain WebSocket on {address} for trying it out:\n  \
         {binary}\n  {phone}"
    );
}

/// Each connection needs a descriptor, so take all that we may (PROTOCOL.md, chapter 6).
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(errno) = setrlimit(Resource::Nofile, limit) {
        warn!(err = %errno, "descriptor_limit_not_raised");
    }
}

fn failure(message: String) -> Exit {
    Exit { code: 1, message: format!("pyrycode-relay: {message}"), to_stdout: false }
}

fn explain_no_listener(flag: &str, address: std::net::SocketAddr, error: &io::Error) -> String {
    let mend = match error.kind() {
        io::ErrorKind::AddrInUse => "another process listens there; stop it or choose another port",
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE; grant it or choose another port"
        }
        io::ErrorKind::AddrNotAvailable => "this machine has no such address; choose another",
        _ => "choose another address",
    };
    format!("cannot listen on {address}: {error}: {mend} ({flag})")
}

fn explain_no_ring(error: &io::Error) -> String {
    let mend = match error.raw_os_error() {
        Some(libc::ENOSYS) => {
            "this kernel has no io_uring, or a seccomp filter hides it; \
             use Linux 6.1 or later, and in a container allow the io_uring system calls"
        }
        Some(libc::EPERM | libc::EACCES) => {
            "io_uring is forbidden: set kernel.io_uring_disabled to 0 with sysctl, \
             or, in a container, allow io_uring_setup, io_uring_enter and io_uring_register \
             in its seccomp profile"
        }
        Some(libc::EINVAL) => "this kernel's io_uring is too old; use Linux 6.1 or later",
        Some(libc::ENOMEM) => "raise the limit on locked memory (ulimit -l)",
        _ => "see io_uring_setup(2)",
    };
    format!("io_uring is not to be had: {error}: {mend}")
}
