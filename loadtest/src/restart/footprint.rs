//! What a relay and the process that takes over from it hold, while there are two of them.

use crate::Outcome;
use crate::proc;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often both are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Resident memory (pages that both have mapped, such as the program's own, count twice) and
/// descriptors.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Footprint {
    pub(crate) before_mib: f64,
    /// Both processes together at their most: as seen meanwhile, and not less than what the one held
    /// before and the other at its most.
    pub(crate) both_mib: f64,
    pub(crate) after_mib: f64,
    pub(crate) descriptors_before: u64,
    pub(crate) descriptors_after: u64,
    pub(crate) descriptor_limit: u64,
}

impl Footprint {
    /// Whether both together held what they may: twice what the one did, and 20 MiB.
    pub(crate) fn is_allowed(&self) -> bool {
        self.both_mib <= 2.0 * self.before_mib + 20.0
    }
}

/// Looks at a relay and whoever it starts, until it is stopped or dropped.
#[derive(Debug)]
pub(super) struct Watch {
    before: u64,
    descriptors: u64,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Watch {
    /// Begins.
    pub(super) fn start(pid: u32) -> Outcome<Self> {
        let (before, descriptors) = (proc::resident_bytes(pid)?, proc::descriptors(pid)?);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut most, mut both) = (0, vec![pid]);
            while !stopped.load(Ordering::Relaxed) {
                let new = proc::children(pid);
                both.extend(
                    new.into_iter().filter(|child| !both.contains(child)).collect::<Vec<_>>(),
                );
                // Of one that has ended nothing is left.
                let held = |pid: &u32| proc::resident_bytes_about(*pid).unwrap_or(0);
                most = most.max(both.iter().map(held).sum());
                std::thread::sleep(LOOK_EVERY);
            }
            most
        });
        Ok(Self { before, descriptors, stop, thread: Some(thread) })
    }

    /// What was seen, now that `pid` serves.
    pub(super) fn stop(mut self, pid: u32) -> Outcome<Footprint> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or("it has been stopped already")?;
        let most = thread.join().map_err(|_| "a thread of this tool has panicked")?;
        let (after, peak) = (proc::resident_bytes(pid)?, proc::peak_bytes(pid)?);
        let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
        Ok(Footprint {
            before_mib: mib(self.before),
            both_mib: mib(most.max(self.before + peak)),
            after_mib: mib(after),
            descriptors_before: self.descriptors,
            descriptors_after: proc::descriptors(pid)?,
            descriptor_limit: proc::descriptor_limit(pid)?,
        })
    }
}
