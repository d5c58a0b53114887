//! What is to be measured, as plain data.

use crate::spec::{Play, Shape};
use crate::tls::Offer;
use std::path::PathBuf;
use std::time::Duration;

/// What is to be measured.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) shape: Shape,
    /// Bytes of JSON in each frame.
    pub(crate) size: usize,
    pub(crate) play: Play,
    pub(crate) workers: usize,
    /// Processes that play the peers, at least.
    pub(crate) agents: u32,
    pub(crate) warm_up: Duration,
    pub(crate) time: Duration,
    /// How long an upgrade or a frame may be overdue before it counts as lost.
    pub(crate) patience: Duration,
    /// The agents never sleep.
    pub(crate) spin: bool,
    /// Its system calls are counted, too.
    pub(crate) syscalls: bool,
    /// What the peers offer to a relay that speaks TLS.
    pub(crate) offer: Offer,
    /// The limit of the memory cgroup that the relay is to run in, in bytes.
    pub(crate) cgroup: Option<u64>,
    /// Where the relay's standard error goes.
    pub(crate) log: Option<PathBuf>,
    /// The relay is upgraded meanwhile.
    pub(crate) upgrades: bool,
    /// Peers misbehave beside those that are measured, drawn from this seed; and what the relay
    /// holds must not grow.
    pub(crate) faults: Option<u64>,
}

impl Plan {
    /// How long one measurement takes, but for connecting.
    pub(crate) fn duration(&self) -> Duration {
        self.warm_up + self.time
    }
}
