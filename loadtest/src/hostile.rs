//! One hostile peer of each kind, and what others feel of it: how long the round trips of pairs that
//! are connected take, and new connections; what the relay charges to its memory budget, and what
//! it holds.

mod attacks;
mod bystanders;
mod pump;

use crate::Outcome;
use crate::launch::{self, usable_cpus};
use crate::proc;
use crate::progress::Progress;
use crate::round_trips::RoundTrips;
use crate::subject::{Running, Subject};
use crate::tables::Tables;
use attacks::{ATTACKS, Attack};
use bystanders::Felt;
use rustix::process::{Pid, getpriority_process, setpriority_process};
use serde::Serialize;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// By how much attackers give way to bystanders where both want a CPU of the load's.
const NICE: i32 = 5;

/// What is to be attacked, and how.
#[derive(Debug)]
pub(crate) struct Siege {
    pub(crate) subjects: Vec<Subject>,
    /// Workers of the relay, in turn.
    pub(crate) workers: Vec<usize>,
    /// How long each attack lasts.
    pub(crate) time: Duration,
    /// Those whose names contain one of these; all if there are none.
    pub(crate) attacks: Vec<String>,
}

/// What came of one attack.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcry {
    attack: &'static str,
    subject: String,
    workers: usize,
    established: Times,
    newcomers: Times,
    /// Bystanders that were not served at all, and why the first was not.
    failed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    /// The most that was charged to the memory budget at a time, if the relay tells.
    charged_kib: Option<u64>,
    /// By how much the relay's resident memory grew at its peak.
    resident_kib: Option<u64>,
    /// Mebibytes of the attack that the relay took, or thousands of connections.
    taken_millions: f64,
}

/// How long something took.
#[derive(Debug, Clone, Copy, Serialize)]
struct Times {
    count: u64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Times {
    fn of(times: &RoundTrips) -> Self {
        let ms = |percent| times.at_us(percent) / 1000.0;
        let count = times.pairs().iter().map(|(_, times)| times).sum();
        Self { count, p50_ms: ms(50.0), p99_ms: ms(99.0), max_ms: ms(100.0) }
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, p50_ms, p99_ms, max_ms } = self;
        write!(f, "{count:>6} {p50_ms:>8.1} {p99_ms:>8.1} {max_ms:>8.1}")
    }
}

/// Attacks each subject in each way, with each number of workers.
///
/// # Errors
///
/// When a subject cannot be started, or no attack is meant.
pub(crate) fn run(siege: &Siege, log: Option<&Path>) -> Outcome<Vec<Outcry>> {
    let is_meant = |attack: &&Attack| {
        siege.attacks.is_empty() || siege.attacks.iter().any(|part| attack.name.contains(part))
    };
    let attacks: Vec<&Attack> = ATTACKS.iter().filter(is_meant).collect();
    if attacks.is_empty() {
        let names: Vec<&str> = ATTACKS.iter().map(|attack| attack.name).collect();
        return Err(format!("--attack names none of: {}", names.join(", ")).into());
    }
    let runs = attacks.len() * siege.subjects.len() * siege.workers.len();
    let progress = Progress::new(siege.time * runs as u32)?;
    let mut told = Vec::new();
    for attack in attacks {
        for workers in &siege.workers {
            for subject in &siege.subjects {
                let subject = match attack.needs_tls {
                    true => subject.clone().over_tls()?,
                    false => subject.clone(),
                };
                progress.stage(format!("{subject}: {}", attack.name));
                let mut running = subject.start(*workers, 0, None, log)?;
                let one = endure(attack, &running, *workers, siege.time, &progress);
                // That the relay died explains everything else.
                let one = running.check().and(one);
                let one = one.map_err(|error| format!("{subject}, {}: {error}", attack.name))?;
                told.push(Outcry { subject: subject.to_string(), ..one });
                progress.at(siege.time * told.len() as u32, 0.0, "");
            }
        }
    }
    progress.finish();
    Ok(told)
}

/// One attack on a relay that runs.
fn endure(
    attack: &Attack,
    running: &Running,
    workers: usize,
    time: Duration,
    progress: &Progress,
) -> Outcome<Outcry> {
    let (stop, taken, charged) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let before = running.resident_bytes()?;
    let apart = workers < usable_cpus()?;
    let (to_begin, begun) = std::sync::mpsc::channel::<()>();
    let felt = std::thread::scope(|scope| {
        // The load stays off the relay's CPUs if it can; all of its threads are this one's.
        let (target, stop, taken) = (&running.target, &stop, &taken);
        let load = scope.spawn(move || {
            if apart {
                launch::stay_beyond(workers).map_err(|error| error.to_string())?;
            }
            std::thread::scope(|scope| {
                let felt = bystanders::run(target, stop, || {
                    scope.spawn(|| {
                        give_way();
                        attack.run(target, stop, taken);
                    });
                    // Who waits for it has the end of this thread to wait for, too.
                    let _ = to_begin.send(());
                });
                stop.store(true, Ordering::Relaxed);
                felt.map_err(|error| error.to_string())
            })
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // One that is too busy to tell is asked again.
                if let Ok(Some(Tables { charged_bytes, .. })) = running.tables() {
                    charged.fetch_max(charged_bytes, Ordering::Relaxed);
                }
                std::thread::sleep(LOOK_EVERY);
            }
        });
        // An error says that the bystanders could not be connected.
        let _ = begun.recv();
        let interrupted = progress.sleep(time);
        stop.store(true, Ordering::Relaxed);
        let felt = load.join().map_err(|_| "a thread of this tool has panicked")?;
        interrupted.and(felt.map_err(Into::into))
    })?;
    let peak = running.pid().map(proc::peak_bytes).transpose()?;
    let grown = peak.zip(before).map(|(peak, before)| peak.saturating_sub(before) / 1024);
    let Felt { established, newcomers, failed, why } = felt;
    Ok(Outcry {
        attack: attack.name,
        subject: String::new(),
        workers,
        established: Times::of(&established),
        newcomers: Times::of(&newcomers),
        failed,
        why,
        charged_kib: running.tells().then(|| charged.into_inner() / 1024),
        resident_kib: grown,
        taken_millions: taken.into_inner() as f64 / 1e6,
    })
}

/// This thread, and those that it starts, run when others do not want to.
fn give_way() {
    let own = Pid::from_raw(rustix::thread::gettid().as_raw_nonzero().get());
    // Where it fails, bystanders wait for their own kind.
    let _ = getpriority_process(own).and_then(|nice| setpriority_process(own, nice + NICE));
}

/// The table.
pub(crate) fn print(all: &[Outcry]) {
    let widest = |of: fn(&Outcry) -> usize| all.iter().map(of).max().unwrap_or(0);
    let (attack, subject) = (widest(|one| one.attack.len()), widest(|one| one.subject.len()));
    println!(
        "{:<attack$}  {:<subject$}  W | connected: n, p50, p99, max (ms)  | new: n, p50, p99, max \
         (ms)         | charged  resident +KiB | taken",
        "attack", "relay"
    );
    for one in all {
        let kib = |value: Option<u64>| value.map_or("?".into(), |value| value.to_string());
        println!(
            "{:<attack$}  {:<subject$}  {} | {} | {} | {:>7}  {:>13} | {:.3} M{}",
            one.attack,
            one.subject,
            one.workers,
            one.established,
            one.newcomers,
            kib(one.charged_kib),
            kib(one.resident_kib),
            one.taken_millions,
            match &one.why {
                Some(why) => format!("; {} not served: {why}", one.failed),
                None => String::new(),
            }
        );
    }
}
