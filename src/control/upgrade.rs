//! Upgrading without dropping a connection: the program that is installed now is started, and takes
//! over everything that this process has. Whatever goes wrong, this process goes on as if nothing had
//! happened ([`handover`](crate::handover) has the order).
//!
//! - [`successor`]: the process that is started, as it is seen from here
//! - [`predecessor`]: the process that one has been started by
//! - [`inheritance`]: starts the workers with what a predecessor has
//! - [`record`]: how upgrades went
//! - [`lent`]: listeners of the control plane that go from one to the other

pub(super) mod inheritance;
pub(super) mod lent;
pub(super) mod predecessor;
pub(super) mod record;
mod successor;

use super::drain::Drain;
use super::fleet::Fleet;
use super::monitoring::Monitoring;
use crate::handover::messages::{FromPredecessor, Offer, Place, State};
use crate::handover::process::Process;
use crate::relay::timers::Millis;
use crate::worker::GivenOut;
use lent::Lent;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use successor::Successor;
use tokio::sync::{Notify, Semaphore, TryAcquireError, oneshot, watch};
use tokio::time::sleep;
use tracing::{info, warn};

/// How long TLS handshakes may go on once nobody new is accepted: two round trips around the world.
const HANDSHAKES: Duration = Duration::from_millis(300);
/// How long the workers have to become quiet, and to give out what they know.
const QUIET: Duration = Duration::from_secs(5);

/// The program that is started, and with what.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// Where it is installed.
    pub(super) path: PathBuf,
    /// The arguments, without its name.
    pub(super) args: Vec<OsString>,
}

/// What came of an upgrade.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Report {
    /// The process that serves now.
    pub(super) pid: u32,
    /// The version of its program.
    pub(super) version: String,
    /// Connections that it has taken over.
    pub(super) connections: u64,
    /// Server-ids that are held or in grace.
    pub(super) server_ids: u64,
    /// Connections that ended, because they were amid a TLS handshake.
    pub(super) left_out: u64,
    /// How long no worker served, in milliseconds: from when they began to come to rest.
    pub(super) pause_ms: f64,
}

/// What is given away in an upgrade.
pub(super) struct Upgrades {
    pub(super) fleet: Fleet,
    pub(super) monitoring: Arc<Monitoring>,
    pub(super) drain: Arc<Drain>,
    pub(super) program: Program,
    /// Where connections are served.
    pub(super) serving: Place,
    /// The control plane's listeners.
    pub(super) lent: Lent,
    pub(super) has_tls: bool,
    /// One at a time.
    pub(super) place: Semaphore,
    /// The workers have been told to leave everything to a successor.
    pub(super) is_leaving: AtomicBool,
    /// The process is to stop, so none begins, and one that has not come far ends.
    pub(super) stopping: Notify,
    /// What has become of everything, once it is this process's no more.
    pub(super) heir: watch::Sender<Option<Heir>>,
}

/// The process that has taken over; or that one has, and has ended, and how.
pub(super) type Heir = Result<u32, String>;

/// Why an upgrade has come to nothing.
enum Failure {
    /// This process goes on, for this reason.
    Refused(String),
    /// The new process had taken over, and has ended like this: all connections are lost.
    Lost(String),
}

impl Failure {
    fn why(&self) -> &str {
        match self {
            Self::Refused(why) | Self::Lost(why) => why,
        }
    }
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Refused(why)
    }
}

impl Upgrades {
    /// Starts `path`, or the program that is installed, and has it take over. Goes on whether anybody
    /// waits for the outcome or not.
    ///
    /// # Errors
    ///
    /// Why this process goes on.
    pub(super) async fn upgrade(self: &Arc<Self>, path: Option<PathBuf>) -> Result<Report, String> {
        let (done, outcome) = oneshot::channel();
        let upgrades = self.clone();
        tokio::spawn(async move {
            let _ = done.send(upgrades.run(path).await);
        });
        outcome.await.map_err(|_| "the relay stops".to_owned())?
    }

    async fn run(&self, path: Option<PathBuf>) -> Result<Report, String> {
        let _alone = self.place.try_acquire().map_err(|refused| match refused {
            TryAcquireError::NoPermits => "an upgrade is under way already",
            TryAcquireError::Closed => "the relay stops",
        })?;
        let mut program = self.program.clone();
        program.path = path.unwrap_or(program.path);
        let shown = program.path.display().to_string();
        info!(path = shown, "upgrade_begun");
        let outcome = self.try_to(&program).await;
        match &outcome {
            Ok(report) => {
                let err = format!(
                    "process {} has taken over {} connections; this one ends",
                    report.pid, report.connections
                );
                info!(path = shown, err, "upgraded");
                self.heir.send_replace(Some(Ok(report.pid)));
            }
            Err(failure) => {
                warn!(path = shown, err = failure.why(), "upgrade_failed");
                self.monitoring.upgrades.note_failure(failure.why());
                if let Failure::Lost(why) = failure {
                    self.heir.send_replace(Some(Err(why.clone())));
                }
            }
        }
        outcome.map_err(|failure| match failure {
            Failure::Refused(why) => format!("{why}: the relay goes on as it is"),
            Failure::Lost(why) => why,
        })
    }

    async fn try_to(&self, program: &Program) -> Result<Report, Failure> {
        if self.drain.status().is_some() {
            let why = "the relay is being drained: wait until it has ended, or `drain --cancel`";
            return Err(Failure::Refused(why.to_owned()));
        }
        let mut successor = Successor::start(program)?;
        let offer = Offer { serving: self.serving.clone(), others: self.lent.names() };
        let ready = tokio::select! {
            ready = successor.offer(offer, self.lent.descriptors()) => ready,
            () = self.stopping.notified() => Err("the relay was asked to stop".to_owned()),
        };
        let version = match ready {
            Ok(version) => version,
            Err(why) => return Err(successor.give_up(why).await.into()),
        };
        match self.hand_over(&mut successor, version).await {
            Err(Failure::Refused(why)) => {
                let why = successor.give_up(why).await;
                // Only now: until it has ended, nobody else may touch a socket.
                self.fleet.resume();
                Err(why.into())
            }
            outcome => outcome,
        }
    }

    /// From here on the relay stands still, or soon will.
    async fn hand_over(
        &self,
        successor: &mut Successor,
        version: String,
    ) -> Result<Report, Failure> {
        self.fleet.stop_accepting();
        if self.has_tls {
            sleep(HANDSHAKES).await;
        }
        const STUCK: &str = "a worker does not come to rest: its event loop is stuck";
        // From here on peers wait, while workers come to rest and while they give out.
        let still_since_us = now_us();
        if !self.fleet.quiesce(QUIET).await {
            return Err(Failure::Refused(STUCK.to_owned()));
        }
        let given = self.fleet.give_out(QUIET).await.ok_or_else(|| STUCK.to_owned())?;
        let mut report = Report {
            pid: successor.pid(),
            version,
            connections: given.iter().map(|given| given.sockets.len() as u64).sum(),
            server_ids: given.iter().map(|given| given.state.server_ids.len() as u64).sum(),
            left_out: given.iter().map(|given| given.left_out as u64).sum(),
            pause_ms: 0.0,
        };
        let (state, descriptors) = self.state(given, still_since_us);
        successor.prepare(state, descriptors).await?;
        successor.commit().await?;
        self.leave();
        let serving_at_us = successor.serving().await.map_err(Failure::Lost)?;
        report.pause_ms = serving_at_us.saturating_sub(still_since_us) as f64 / 1000.0;
        Ok(report)
    }

    fn leave(&self) {
        self.is_leaving.store(true, Ordering::Relaxed);
        self.fleet.leave();
    }

    /// Whether the workers have been told to leave everything to a successor.
    pub(super) fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Relaxed)
    }

    /// Everything, and the descriptors that go with it.
    fn state(&self, parts: Vec<GivenOut>, still_since_us: u64) -> (FromPredecessor, Vec<RawFd>) {
        let (mut workers, mut sockets, mut listeners) = (Vec::new(), Vec::new(), Vec::new());
        for given in parts {
            workers.push((given.state, given.listeners.len() as u32));
            sockets.extend(given.sockets);
            listeners.extend(given.listeners);
        }
        sockets.extend(listeners);
        let now = self.monitoring.epoch.elapsed().as_millis() as Millis;
        let process = Process {
            owners: self.fleet.owners,
            counters: self.monitoring.counters(),
            admission: self.fleet.admission.give_out(now),
            upgrades: self.monitoring.upgrades.count(),
        };
        let state = State { process, still_since_us, workers };
        (FromPredecessor::State(Box::new(state)), sockets)
    }

    /// The process that has taken over, once one has.
    pub(super) async fn heir(&self) -> Heir {
        let mut heir = self.heir.subscribe();
        match heir.wait_for(Option::is_some).await.map(|heir| heir.clone()) {
            Ok(Some(heir)) => heir,
            // It is `self` that says so.
            _ => std::future::pending().await,
        }
    }

    /// The process is to stop, and begins no upgrade any more: one that has not come far ends, one that
    /// has is waited for; the process that has taken over, if one has.
    pub(super) async fn stop(&self) -> Option<Heir> {
        self.stopping.notify_one();
        drop(self.place.acquire().await);
        self.place.close();
        self.heir.borrow().clone()
    }
}

/// What the clock says that all processes share, in microseconds.
fn now_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec as u64) * 1_000_000 + (now.tv_nsec as u64) / 1000
}

/// Descriptors of a worker that is still, to be sent to another process.
#[allow(unsafe_code)]
fn borrow(descriptors: &[RawFd]) -> Vec<BorrowedFd<'_>> {
    let borrow = |descriptor: &RawFd| {
        // SAFETY: the worker that gave it out is still, and keeps it open, until it is told to go on
        // or to leave, which happens behind the sending. It is not -1: the worker has its socket.
        unsafe { BorrowedFd::borrow_raw(*descriptor) }
    };
    descriptors.iter().filter(|descriptor| **descriptor >= 0).map(borrow).collect()
}
