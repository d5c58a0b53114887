//! The JSON of a relay as `pyrycode-relay status` reads it, and what has changed between two of it.

use crate::metrics::snapshot::{Blocked, Count, Drain, Upgrades};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Debug, Clone, Default, Deserialize)]
pub(in crate::control) struct Seen {
    pub(super) process: Process,
    pub(super) metrics: BTreeMap<String, Count>,
    pub(super) workers: Vec<Worker>,
    pub(super) delay: Delay,
    pub(super) warnings: Vec<Warning>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Process {
    pub(super) version: String,
    pub(super) uptime_seconds: u64,
    pub(super) ready: bool,
    pub(super) draining: bool,
    pub(super) drain: Option<Drain>,
    pub(super) blocked: Vec<Blocked>,
    pub(super) allowed_server_ids: Option<u64>,
    pub(super) resident_bytes: u64,
    pub(super) open_descriptors: u64,
    pub(super) max_descriptors: u64,
    pub(super) max_connections: u64,
    pub(super) memory_budget_bytes: u64,
    pub(super) upgrades: Upgrades,
    pub(super) log_lines_lost: u64,
    pub(super) certificate_expires_at_seconds: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Worker {
    pub(super) core: usize,
    pub(super) cpu_seconds: f64,
    pub(super) connections: u64,
    pub(super) messages_forwarded: u64,
    pub(super) metrics: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Delay {
    pub(super) bounds_us: Vec<u64>,
    pub(super) counts: Vec<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Warning {
    pub(super) time: String,
    pub(super) level: String,
    pub(super) event: String,
    pub(super) text: String,
}

impl Seen {
    /// The values of one metric, each with the values of its labels.
    pub(super) fn samples(&self, metric: &str) -> Vec<(Vec<&str>, u64)> {
        self.metrics.get(metric).map(Count::samples).unwrap_or_default()
    }

    /// The value of a metric by these values of its labels; 0 if there is none.
    pub(super) fn value(&self, metric: &str, path: &[&str]) -> u64 {
        self.metrics.get(metric).and_then(|count| count.at(path)).unwrap_or(0)
    }

    /// Connections in whatever state.
    pub(super) fn connections(&self) -> u64 {
        self.samples("connections").iter().map(|(_, value)| value).sum()
    }

    /// Connections that count against the limit: not those that have asked for nothing yet.
    pub(super) fn websockets(&self) -> u64 {
        self.connections().saturating_sub(self.value("connections", &["head"]))
    }

    pub(super) fn charged_bytes(&self) -> u64 {
        self.workers.iter().filter_map(|worker| worker.metrics.get("memory_charged_bytes")).sum()
    }
}

/// Two looks at the same relay.
#[derive(Debug)]
pub(in crate::control) struct Interval {
    pub(in crate::control) before: Seen,
    pub(in crate::control) now: Seen,
    /// How much later the second was.
    pub(in crate::control) seconds: f64,
}

impl Interval {
    /// Something counted, by how much it has grown; by nothing, if the relay was started anew.
    pub(super) fn grown(&self, count: impl Fn(&Seen) -> u64) -> u64 {
        count(&self.now).saturating_sub(count(&self.before))
    }

    pub(super) fn per_second(&self, count: impl Fn(&Seen) -> u64) -> f64 {
        self.grown(count) as f64 / self.seconds.max(0.001)
    }

    pub(super) fn grown_in(&self, metric: &str, path: &[&str]) -> u64 {
        self.grown(|seen| seen.value(metric, path))
    }

    /// CPU time of a worker over time that has passed: 1 is all of a core.
    pub(super) fn load(&self, worker: &Worker) -> f64 {
        let mut all = self.before.workers.iter();
        let before = all.find(|other| other.core == worker.core).map_or(0.0, |it| it.cpu_seconds);
        ((worker.cpu_seconds - before) / self.seconds.max(0.001)).clamp(0.0, 1.0)
    }

    /// Delays of the messages in between, by bucket.
    pub(super) fn delays(&self) -> Delay {
        let before = self.before.delay.counts.iter().copied().chain(std::iter::repeat(0));
        let counts = self.now.delay.counts.iter().zip(before);
        let counts = counts.map(|(now, before)| now.saturating_sub(before)).collect();
        Delay { bounds_us: self.now.delay.bounds_us.clone(), counts }
    }
}

impl Delay {
    pub(super) fn messages(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The delay in microseconds that this share of the messages does not exceed, estimated
    /// within its bucket; the last bound stands for whatever is beyond it. None without messages.
    pub(super) fn percentile(&self, share: f64) -> Option<f64> {
        let messages = self.messages();
        let rank = messages as f64 * share;
        let (mut below, mut lower) = (0.0, 0.0);
        let last = self.bounds_us.last().copied().unwrap_or(0) as f64;
        for (index, count) in self.counts.iter().enumerate() {
            let upper = self.bounds_us.get(index).map_or(last, |bound| *bound as f64);
            let count = *count as f64;
            if count > 0.0 && below + count >= rank {
                return Some(lower + (upper - lower) * (rank - below) / count);
            }
            below += count;
            lower = upper;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_estimated_within_their_bucket() {
        let delay = Delay { bounds_us: vec![10, 20, 100], counts: vec![0, 50, 49, 1] };
        assert_eq!(delay.percentile(0.5), Some(20.0));
        assert_eq!(delay.percentile(0.25), Some(15.0));
        assert_eq!(delay.percentile(0.99), Some(100.0));
        assert_eq!(delay.percentile(1.0), Some(100.0), "as far as the buckets tell");
        assert_eq!(Delay::default().percentile(0.5), None);
    }
}
