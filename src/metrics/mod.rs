//! Counters that workers write and everyone else reads (PROTOCOL.md, chapter 7).
//!
//! Each counter has one writer, its worker, which stores its own value: no read-modify-write
//! stands on the data path. Readers add the workers up.
//!
//! - [`series`]: every metric, with its labels, in one table
//! - [`delay`]: a histogram of what the relay itself adds to a message's way
//! - [`push`]: wake requests
//! - `carry`: what a successor process goes on counting from
//! - [`snapshot`]: all of it at one moment, as plain data, and as Prometheus reads it

mod carry;

pub mod delay;
pub mod push;
pub mod series;
pub mod snapshot;

pub use push::{PushMetrics, PushOutcome};
pub use series::Series;

use delay::Delays;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of one worker, on cache lines of their own.
#[derive(Debug)]
#[repr(align(128))]
pub struct WorkerMetrics {
    series: [AtomicU64; Series::COUNT],
    delays: Delays,
}

impl Default for WorkerMetrics {
    fn default() -> Self {
        Self { series: [const { AtomicU64::new(0) }; Series::COUNT], delays: Delays::default() }
    }
}

impl WorkerMetrics {
    /// Counts one event.
    #[inline]
    pub fn count(&self, series: Series) {
        self.add(series, 1);
    }

    /// Counts `amount` at once. Only the worker itself may: it is the counter's one writer.
    #[inline]
    pub fn add(&self, series: Series, amount: u64) {
        if let Some(counter) = self.series.get(series as usize) {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
        }
    }

    /// Sets a gauge.
    #[inline]
    pub fn set(&self, series: Series, value: u64) {
        if let Some(gauge) = self.series.get(series as usize) {
            gauge.store(value, Ordering::Relaxed);
        }
    }

    /// Sets a gauge that tells the highest value so far.
    #[inline]
    pub fn raise(&self, series: Series, value: u64) {
        if value > self.get(series) {
            self.set(series, value);
        }
    }

    /// What it stands at.
    #[must_use]
    pub fn get(&self, series: Series) -> u64 {
        self.series.get(series as usize).map_or(0, |value| value.load(Ordering::Relaxed))
    }

    /// What the relay added to the way of messages.
    #[must_use]
    pub fn delays(&self) -> &Delays {
        &self.delays
    }
}

/// The counters of the process.
#[derive(Debug)]
pub struct Metrics {
    workers: Vec<Arc<WorkerMetrics>>,
    push: PushMetrics,
}

impl Metrics {
    /// Counters at 0 for this many workers.
    #[must_use]
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self {
            workers: (0..workers).map(|_| Arc::default()).collect(),
            push: PushMetrics::default(),
        })
    }

    /// The counters of wake requests.
    #[must_use]
    pub fn push(&self) -> &PushMetrics {
        &self.push
    }

    /// The counters of one worker; of nobody, if there is no worker with this number.
    #[must_use]
    pub fn worker(&self, number: usize) -> Arc<WorkerMetrics> {
        self.workers.get(number).cloned().unwrap_or_default()
    }

    /// The counters of all workers, in their order.
    #[must_use]
    pub fn workers(&self) -> &[Arc<WorkerMetrics>] {
        &self.workers
    }

    /// Binaries that hold a server-id; one in grace does not count.
    #[must_use]
    pub fn connected_binaries(&self) -> u64 {
        self.total(Series::ConnectedBinaries)
    }

    /// Phones that are registered, those of an id in grace included.
    #[must_use]
    pub fn connected_phones(&self) -> u64 {
        self.total(Series::ConnectedPhones)
    }

    /// All workers together.
    #[must_use]
    pub fn total(&self, series: Series) -> u64 {
        self.workers.iter().map(|worker| worker.get(series)).sum()
    }
}
