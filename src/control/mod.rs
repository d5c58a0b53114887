//! The other plane: one ordinary tokio thread for everything that is slow or standard. It starts
//! the workers, hears the signals, and ends the process.

pub mod acme;
pub mod certificates;
pub mod challenges;
pub mod keeper;
pub mod push;

use crate::config::{Config, Exit};
use crate::metrics::Metrics;
use crate::relay::admission::Admission;
use crate::relay::budget::SharedBudget;
use crate::relay::{Owners, Settings};
use crate::telemetry;
use crate::worker::{self, Mail, ProxyHeaders, Start, listener, ring};
use keeper::Keeper;
use push::Push;
use rustls::ServerConfig;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedSender, channel, unbounded_channel};
use tracing::{error, info, warn};

/// How often lines that the log lost are reported, if there are any.
const LOST_LINES_EVERY: Duration = Duration::from_secs(10);

/// Runs the relay until it is asked to stop.
///
/// # Errors
///
/// How the process is to end, if not with 0: io_uring is not to be had, a listener cannot be
/// bound, or a worker failed.
pub fn run(config: &Config, log: &telemetry::Guard) -> Result<(), Exit> {
    let epoch = Instant::now();
    let keeper = config.https.as_ref().map(Keeper::open).transpose()?;
    let push = Push::from_config(config)?;
    ring::probe().map_err(|error| failure(explain_no_ring(&error)))?;
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
    let ended = runtime.block_on(supervise(config, log, listeners, keeper, push, epoch));
    // Looking up a name blocks a thread of the runtime, maybe for long: the end does not wait.
    runtime.shutdown_background();
    ended
}

/// Starts the workers and waits: for a signal, or for a worker that fails.
async fn supervise(
    config: &Config,
    log: &telemetry::Guard,
    listeners: Vec<socket2::Socket>,
    keeper: Option<Keeper>,
    push: Option<Push>,
    epoch: Instant,
) -> Result<(), Exit> {
    let no_signals = |error| failure(format!("signals cannot be heard: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let tls = keeper.as_ref().map(Keeper::server_config);
    if let Some(keeper) = keeper {
        keeper.start().map_err(|(address, error)| {
            failure(explain_no_listener("--http-listen", address, &error))
        })?;
    }
    let bound = listeners.first().and_then(|listener| listener.local_addr().ok());
    let (ended, mut ends) = unbounded_channel();
    let (ready, mut readies) = unbounded_channel();
    let mailboxes = start_workers(config, listeners, tls, push, epoch, &ready, &ended)?;
    for _ in &mailboxes {
        tokio::select! {
            _ = readies.recv() => {}
            Some(end) = ends.recv() => return Err(worker_failed(end)),
        }
    }
    if let Some(address) = bound.and_then(|address| address.as_socket()) {
        info!(err = config.show_limits(), "limits");
        info!(remote = %address, "listening");
        if config.insecure.is_some_and(|listen| listen.is_default) {
            print_trial(address);
        }
    }
    tokio::select! {
        _ = interrupt.recv() => info!(err = "SIGINT", "shutting_down"),
        _ = terminate.recv() => info!(err = "SIGTERM", "shutting_down"),
        Some(end) = ends.recv() => return Err(worker_failed(end)),
        () = report_lost_lines(log) => {}
    }
    for mailbox in &mailboxes {
        // Fails only where the worker has ended already.
        let _ = mailbox.send(Mail::ShutDown);
    }
    let drained = async {
        for _ in &mailboxes {
            ends.recv().await;
        }
    };
    tokio::select! {
        () = drained => info!("drained"),
        () = tokio::time::sleep(config.drain_timeout) => {
            warn!(err = "some peers did not answer their close in time", "drain_timeout");
        }
        _ = interrupt.recv() => warn!(err = "a second signal", "exit_at_once"),
        _ = terminate.recv() => warn!(err = "a second signal", "exit_at_once"),
    }
    Ok(())
}

/// Says, for ever and now and then, how much the log does not tell.
async fn report_lost_lines(log: &telemetry::Guard) {
    let mut reported = 0;
    loop {
        tokio::time::sleep(LOST_LINES_EVERY).await;
        let lost = log.lost_lines();
        if lost > reported {
            let err = format!("{} lines were not written: too many at once", lost - reported);
            error!(err, "log_lines_lost");
            reported = lost;
        }
    }
}

/// What a worker thread ended with.
type End = io::Result<()>;

fn start_workers(
    config: &Config,
    listeners: Vec<socket2::Socket>,
    tls: Option<Arc<ServerConfig>>,
    push: Option<Push>,
    epoch: Instant,
    ready: &UnboundedSender<()>,
    ended: &UnboundedSender<End>,
) -> Result<Vec<UnboundedSender<Mail>>, Exit> {
    let proxy_headers = match &config.https {
        Some(https) if https.proxy_protocol => ProxyHeaders::Always,
        _ => ProxyHeaders::From(config.proxy_protocol_from.clone()),
    };
    let owners = Owners::new(rand::random(), config.workers);
    let budget = SharedBudget::new(config.memory_budget_bytes, config.workers);
    let admission = Admission::new(config.into(), config.into(), rand::random());
    let metrics = Metrics::new(config.workers);
    let domain = config.https.as_ref().and_then(|https| https.domain.as_deref()).map(Arc::from);
    let (wakes, requests) = channel(push::MAX_WAITING);
    let push_is_on = push.is_some();
    if let Some(push) = push {
        tokio::spawn(push.run(requests, metrics.clone()));
    }
    let (mailboxes, receivers): (Vec<_>, Vec<_>) =
        (0..config.workers).map(|_| unbounded_channel()).unzip();
    for (number, (listener, mailbox)) in listeners.into_iter().zip(receivers).enumerate() {
        let settings = Settings {
            worker: number,
            owners: owners.clone(),
            domain: domain.clone(),
            limits: config.limits,
            budget: budget.clone(),
            admission: admission.clone(),
            metrics: metrics.clone(),
            seed: rand::random(),
            push: push_is_on,
        };
        let cpu = config.cpus.get(number % config.cpus.len().max(1)).copied();
        let mailboxes = mailboxes.clone();
        let (ready, wakes, tls) = (ready.clone(), wakes.clone(), tls.clone());
        let proxy_headers = proxy_headers.clone();
        let start = Start {
            settings,
            listener,
            proxy_headers,
            tls,
            cpu,
            mailbox,
            mailboxes,
            epoch,
            ready,
            wakes,
        };
        let ended = ended.clone();
        std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                // Nobody listens any more only where the process is ending.
                let _ = ended.send(worker::run(start));
            })
            .map_err(|error| failure(format!("worker {number} cannot start: {error}")))?;
    }
    Ok(mailboxes)
}

fn worker_failed(end: End) -> Exit {
    let why = match end {
        Ok(()) => "a worker ended although nobody asked it to".to_owned(),
        Err(error) => format!("a worker failed: {}", explain_no_ring(&error)),
    };
    error!(err = why, "worker_failed");
    failure(why)
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
             use Linux 6.0 or later, and in a container allow the io_uring system calls"
        }
        Some(libc::EPERM | libc::EACCES) => {
            "io_uring is forbidden: set kernel.io_uring_disabled to 0 with sysctl, \
             or, in a container, allow io_uring_setup, io_uring_enter and io_uring_register \
             in its seccomp profile"
        }
        Some(libc::EINVAL) => "this kernel's io_uring is too old; use Linux 6.0 or later",
        Some(libc::ENOMEM) => "raise the limit on locked memory (ulimit -l)",
        _ => "see io_uring_setup(2)",
    };
    format!("io_uring is not to be had: {error}: {mend}")
}
