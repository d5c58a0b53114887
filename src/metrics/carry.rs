//! Counters go on where a process takes over from another: Prometheus is to see no step.

use super::delay::BOUNDS_US;
use super::series::{FAMILIES, Family, Kind};
use super::{Metrics, PushOutcome, Series, WorkerMetrics};
use crate::handover::process::Counters;

impl Metrics {
    /// What all counters stand at, by their names. Gauges show what is there, wherever that is.
    #[must_use]
    pub fn give_out(&self) -> Counters {
        let push = PushOutcome::ALL
            .map(|outcome| (outcome.label().to_owned(), self.push().total(outcome)));
        Counters {
            workers: self.workers().iter().map(|worker| values(worker)).collect(),
            delays: self.workers().iter().map(|worker| worker.delays().give_out()).collect(),
            push: push.into(),
            ..Counters::default()
        }
    }

    /// Goes on from there. Nobody may count yet. Where there were more workers, what they have counted
    /// goes to others; what is no longer counted is left out.
    pub fn take_in(&self, counters: &Counters) {
        let workers = self.workers().iter().cycle();
        for (worker, values) in workers.clone().zip(&counters.workers) {
            for (name, value) in values {
                match find(name) {
                    Some((Kind::Counter, series)) => worker.add(series, *value),
                    Some((Kind::Gauge, series)) => worker.raise(series, *value),
                    None => {}
                }
            }
        }
        for (worker, (counts, sum_us)) in workers.zip(&counters.delays) {
            worker.delays().take_in(counts, *sum_us);
        }
        for (label, count) in &counters.push {
            if let Some(outcome) = PushOutcome::ALL.into_iter().find(|one| one.label() == label) {
                self.push().add(outcome, *count);
            }
        }
    }
}

/// Counters, and the one gauge that tells the highest value so far.
fn is_carried(family: &Family) -> bool {
    family.kind == Kind::Counter || family.series.iter().any(|(_, s)| *s == Series::CompletionsMax)
}

fn all() -> impl Iterator<Item = (String, Kind, Series)> {
    FAMILIES.iter().filter(|family| is_carried(family)).flat_map(|family| {
        family
            .series
            .iter()
            .map(|(labels, series)| (format!("{}{{{labels}}}", family.name), family.kind, *series))
    })
}

fn values(worker: &WorkerMetrics) -> Vec<(String, u64)> {
    all().map(|(name, _, series)| (name, worker.get(series))).collect()
}

fn find(name: &str) -> Option<(Kind, Series)> {
    all().find(|(known, ..)| known == name).map(|(_, kind, series)| (kind, series))
}

impl super::delay::Delays {
    /// Messages up to each bound, and the sum of their delays.
    fn give_out(&self) -> (Vec<(u64, u64)>, u64) {
        let bounds = BOUNDS_US.into_iter().chain([u64::MAX]);
        (bounds.zip(self.counts()).collect(), self.sum_us())
    }

    /// Goes on from there. What had other bounds is counted in the first bucket that holds all of it.
    fn take_in(&self, counts: &[(u64, u64)], sum_us: u64) {
        for (bound, messages) in counts {
            self.add_counts(*messages, *bound);
        }
        self.add_sum_us(sum_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_goes_on_with_fewer_or_more_workers() {
        for workers in [1, 2, 3] {
            let before = Metrics::new(2);
            before.worker(0).add(Series::Accepted, 5);
            before.worker(1).add(Series::Accepted, 7);
            before.worker(1).add(Series::CloseNormal, 1);
            before.worker(0).raise(Series::CompletionsMax, 9);
            before.worker(1).raise(Series::CompletionsMax, 4);
            before.worker(1).set(Series::ConnectedPhones, 3);
            before.worker(0).delays().record(2, 30);
            before.worker(1).delays().record(1, 99_000_000);
            before.push().count(PushOutcome::Dropped);
            let after = Metrics::new(workers);
            after.take_in(&before.give_out());
            assert_eq!(after.total(Series::Accepted), 12);
            assert_eq!(after.total(Series::CloseNormal), 1);
            assert_eq!(after.worker(0).get(Series::CompletionsMax), 9);
            assert_eq!(after.total(Series::ConnectedPhones), 0, "it shows what is there");
            let sum: u64 = after.workers().iter().map(|worker| worker.delays().sum_us()).sum();
            assert_eq!(sum, 2 * 30 + 99_000_000);
            let counts = |m: &Metrics| -> Vec<u64> {
                let of = m.workers().iter().map(|worker| worker.delays().counts());
                of.reduce(|a, b| std::array::from_fn(|i| a[i] + b[i])).unwrap().into()
            };
            assert_eq!(counts(&after), counts(&before));
            assert_eq!(after.push().total(PushOutcome::Dropped), 1);
        }
    }

    #[test]
    fn what_nobody_counts_any_more_is_left_out() {
        let metrics = Metrics::new(1);
        let mut counters = metrics.give_out();
        counters.workers = vec![vec![("pyrycode_relay_forgotten_total{}".to_owned(), 4)]];
        counters.push = vec![("forgotten".to_owned(), 4)];
        metrics.take_in(&counters);
        assert_eq!(values(&metrics.worker(0)), values(&WorkerMetrics::default()));
    }
}
