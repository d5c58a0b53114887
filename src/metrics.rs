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

/// The counters of the process.
#[derive(Debug)]
pub struct Metrics {
    workers: Vec<WorkerMetrics>,
}

impl Metrics {
    /// Counters at 0 for this many workers.
    #[must_use]
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self { workers: (0..workers).map(|_| WorkerMetrics::default()).collect() })
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
