//! Spawns the workers' threads, each with its ring. That comes before anything listens, so that no
//! connection is accepted and then dropped because the kernel refuses a ring.

use super::explain::explain_no_ring;
use super::failure;
use super::locked_memory::{self, Plan, is_short};
use crate::config::{Config, Exit};
use crate::worker::{self, Rings, Start, ring};
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tracing::warn;

/// How long a process that has just ended may keep locked memory that the rings need: the kernel
/// frees its rings a little later.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait before the next attempt.
const PAUSE: Duration = Duration::from_millis(20);

/// What a worker thread ended with.
pub(super) type End = io::Result<()>;

/// How a thread is made possible.
const MEND_THREADS: &str = "raise the limit on processes (ulimit -u; systemd: TasksMax=; docker: \
     --pids-limit), or lower --workers";

/// Why there is no worker.
enum Refused {
    /// The kernel gives it no ring.
    Ring(io::Error),
    /// The kernel gives it no thread.
    Thread(io::Error),
}

/// Threads that have their rings and wait for what they are to serve.
pub(super) struct WorkerThreads {
    pub(super) starts: Vec<Sender<Start>>,
    pub(super) ends: UnboundedReceiver<End>,
}

impl WorkerThreads {
    /// Starts a thread for each worker, one after the other, and has it make its ring. Where locked
    /// memory is short, rings are smaller, or there are fewer of them.
    ///
    /// # Errors
    ///
    /// Not even one can be made: which limit or rule is in the way, and how to mend it.
    pub(super) fn spawn(config: &Config) -> Result<Self, Exit> {
        let Plan { workers, mut entries } = locked_memory::plan(config.workers)?;
        let (ended, ends) = unbounded_channel();
        let mut starts = Vec::new();
        let mut patience = Patience::default();
        while starts.len() < workers {
            match spawn_worker(config, starts.len(), entries, &ended) {
                Ok(start) => starts.push(start),
                Err(Refused::Ring(error)) if is_short(&error) && patience.is_left() => {}
                Err(Refused::Ring(error)) if is_short(&error) && entries > ring::MIN_ENTRIES => {
                    entries /= 2
                }
                Err(Refused::Ring(error)) if is_short(&error) && !starts.is_empty() => break,
                Err(Refused::Ring(error)) => return Err(failure(explain_no_ring(&error))),
                Err(Refused::Thread(error)) => {
                    let fault = format!("a worker's thread cannot start: {error}; {MEND_THREADS}");
                    return Err(failure(fault).about(["--workers"]));
                }
            }
        }
        locked_memory::warn_of(config.workers, &Plan { workers: starts.len(), entries });
        Ok(Self { starts, ends })
    }
}

/// Waits for the kernel to free what others held, once and not for long.
#[derive(Default)]
struct Patience(Option<Instant>);

impl Patience {
    /// Waits a little, and says whether another attempt is worth it.
    fn is_left(&mut self) -> bool {
        let until = *self.0.get_or_insert_with(|| {
            let err = "too little locked memory is free, perhaps because the kernel still holds that \
                       of a process that has just ended; trying again";
            warn!(err, duration = ?PATIENCE, "rings_awaited");
            Instant::now() + PATIENCE
        });
        let is_left = Instant::now() < until;
        if is_left {
            std::thread::sleep(PAUSE);
        }
        is_left
    }
}

/// A thread for worker `number`, once it has its ring.
fn spawn_worker(
    config: &Config,
    number: usize,
    entries: u32,
    ended: &UnboundedSender<End>,
) -> Result<Sender<Start>, Refused> {
    let (start, starts) = channel();
    let (made, makes) = channel();
    let (budget_bytes, workers) = (config.memory_budget_bytes, config.workers);
    let (ended, features) = (ended.clone(), config.ring_features);
    let thread = std::thread::Builder::new().name(format!("worker-{number}"));
    let spawned = thread.spawn(move || {
        let rings = match Rings::make(entries, features, budget_bytes, workers) {
            Ok(rings) => rings,
            Err(error) => return drop(made.send(Err(error))),
        };
        let _ = made.send(Ok(()));
        serve(&starts, rings, &ended);
    });
    spawned.map_err(Refused::Thread)?;
    let made = makes.recv().map_err(|_| Refused::Thread(io::Error::other("it has ended")))?;
    made.map(|()| start).map_err(Refused::Ring)
}

fn serve(starts: &Receiver<Start>, rings: Rings, ended: &UnboundedSender<End>) {
    // Nobody is going to tell it anything where the process ends before it has begun.
    let Ok(start) = starts.recv() else { return };
    let _ = ended.send(worker::run(start, rings));
}
