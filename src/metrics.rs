//! Counters that workers write and everyone else reads.
//!
//! Each counter has one writer, its worker, which stores its own value: no read-modify-write
//! stands on the data path. Readers add the workers up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of one worker, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerMetrics {
    connected_binaries: AtomicU64,
    connected_phones: AtomicU64,
}

impl WorkerMetrics {
    /// Connections that hold a server-id, and phones that are registered.
    pub fn set_connected(&self, binaries: u64, phones: u64) {
        self.connected_binaries.store(binaries, Ordering::Relaxed);
        self.connected_phones.store(phones, Ordering::Relaxed);
    }
}

/// What came of a wake request (PROTOCOL.md, chapters 7 and 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushOutcome {
    /// The push service took the message.
    Sent,
    /// The push service no longer knows the phone.
    Unregistered,
    /// The push service did not take the message, or did not answer.
    SendFailed,
    /// There was no access token to send it with.
    TokenFetchFailed,
    /// It was over a limit, or for a push service that is not known, and nothing was sent.
    Dropped,
}

impl PushOutcome {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Sent, Self::Unregistered, Self::SendFailed, Self::TokenFetchFailed, Self::Dropped];

    /// The value of the label `outcome`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Unregistered => "unregistered",
            Self::SendFailed => "send_failed",
            Self::TokenFetchFailed => "token_fetch_failed",
            Self::Dropped => "dropped",
        }
    }
}

/// Wake requests by what came of them. Workers count here too, but only what they drop, and that is
/// no frame.
#[derive(Debug, Default)]
pub struct PushMetrics {
    outcomes: [AtomicU64; PushOutcome::ALL.len()],
}

impl PushMetrics {
    /// Counts one request.
    pub fn count(&self, outcome: PushOutcome) {
        if let Some(counter) = self.outcomes.get(outcome as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Requests that this came of.
    #[must_use]
    pub fn total(&self, outcome: PushOutcome) -> u64 {
        self.outcomes.get(outcome as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }
}

/// The counters of the process.
#[derive(Debug)]
pub struct Metrics {
    workers: Vec<WorkerMetrics>,
    push: PushMetrics,
}

impl Metrics {
    /// Counters at 0 for this many workers.
    #[must_use]
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self {
            workers: (0..workers).map(|_| WorkerMetrics::default()).collect(),
            push: PushMetrics::default(),
        })
    }

    /// The counters of wake requests.
    #[must_use]
    pub fn push(&self) -> &PushMetrics {
        &self.push
    }

    /// The counters of one worker.
    #[must_use]
    pub fn worker(&self, number: usize) -> Option<&WorkerMetrics> {
        self.workers.get(number)
    }

    /// Binaries that hold a server-id; one in grace does not count.
    #[must_use]
    pub fn connected_binaries(&self) -> u64 {
        self.sum(|worker| &worker.connected_binaries)
    }

    /// Phones that are registered, those of an id in grace included.
    #[must_use]
    pub fn connected_phones(&self) -> u64 {
        self.sum(|worker| &worker.connected_phones)
    }

    fn sum(&self, counter: impl Fn(&WorkerMetrics) -> &AtomicU64) -> u64 {
        self.workers.iter().map(|worker| counter(worker).load(Ordering::Relaxed)).sum()
    }
}
