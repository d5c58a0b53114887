//! Histograms of times: recorded in the agents, sent as pairs, merged and read where they meet.

use hdrhistogram::Histogram;
use serde::Serialize;

/// The shortest and longest time that is told apart, in nanoseconds.
const BOUNDS: (u64, u64) = (1_000, 60_000_000_000);
/// Significant digits.
const DIGITS: u8 = 3;

/// Times in nanoseconds, to three digits, from 1 µs to 1 min.
#[derive(Debug, Clone)]
pub(crate) struct RoundTrips(Histogram<u64>);

impl Default for RoundTrips {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(BOUNDS.0, BOUNDS.1, DIGITS);
        Self(histogram.unwrap_or_else(|_| unreachable!("the bounds are constant and valid")))
    }
}

impl RoundTrips {
    /// Counts one time; what is out of bounds counts as the bound.
    pub(crate) fn record(&mut self, nanos: u64) {
        self.0.saturating_record(nanos);
    }

    /// Forgets everything.
    pub(crate) fn reset(&mut self) {
        self.0.reset();
    }

    /// Every time that was seen, in nanoseconds, and how often.
    pub(crate) fn pairs(&self) -> Vec<(u64, u64)> {
        self.0
            .iter_recorded()
            .map(|step| (step.value_iterated_to(), step.count_at_value()))
            .collect()
    }

    /// Adds what another one's [`RoundTrips::pairs`] said.
    pub(crate) fn merge(&mut self, pairs: &[(u64, u64)]) {
        for (nanos, times) in pairs {
            self.0.saturating_record_n(*nanos, *times);
        }
    }

    /// The time that so many percent did not exceed, in microseconds; 0 when nothing was counted.
    pub(crate) fn at_us(&self, percent: f64) -> f64 {
        match self.0.is_empty() {
            true => 0.0,
            false => self.0.value_at_percentile(percent) as f64 / 1000.0,
        }
    }

    /// The usual percentiles.
    pub(crate) fn summary(&self) -> Summary {
        Summary {
            p50_us: self.at_us(50.0),
            p90_us: self.at_us(90.0),
            p99_us: self.at_us(99.0),
            p999_us: self.at_us(99.9),
            max_us: self.at_us(100.0),
        }
    }

    /// The whole curve for a plot: percent, and microseconds.
    pub(crate) fn curve(&self) -> Vec<(f64, f64)> {
        let percents =
            [0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.9, 99.95, 99.99];
        percents.map(|percent| (percent, self.at_us(percent))).to_vec()
    }
}

/// Percentiles in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(times_us: impl Iterator<Item = u64>) -> RoundTrips {
        let mut histogram = RoundTrips::default();
        times_us.for_each(|us| histogram.record(us * 1000));
        histogram
    }

    #[test]
    fn merging_the_pairs_of_parts_gives_the_whole() {
        let whole = of(1..=10_000);
        let mut merged = RoundTrips::default();
        for part in 0..4 {
            let part = of((1..=10_000).filter(|us| us % 4 == part));
            merged.merge(&part.pairs());
        }
        assert_eq!(merged.pairs(), whole.pairs());
        assert_eq!(merged.summary(), whole.summary());
    }

    #[test]
    fn percentiles_are_right_to_three_digits() {
        let summary = of(1..=10_000).summary();
        let close = |got: f64, right: f64| (got - right).abs() <= right / 500.0;
        assert!(close(summary.p50_us, 5_000.0), "{summary:?}");
        assert!(close(summary.p99_us, 9_900.0), "{summary:?}");
        assert!(close(summary.p999_us, 9_990.0), "{summary:?}");
        assert!(close(summary.max_us, 10_000.0), "{summary:?}");
    }

    #[test]
    fn a_rare_stall_shows_in_the_tail_only() {
        let mut histogram = of(std::iter::repeat_n(100, 9_980));
        (0..20).for_each(|_| histogram.record(2_000_000_000));
        let summary = histogram.summary();
        assert!(summary.p99_us < 101.0 && summary.p999_us > 1_900_000.0, "{summary:?}");
    }

    #[test]
    fn nothing_counted_is_no_time() {
        assert_eq!(RoundTrips::default().summary(), Summary::default());
    }

    #[test]
    fn times_beyond_the_bounds_count_as_the_bounds() {
        let summary = of([0, 3_600_000_000].into_iter()).summary();
        assert!(summary.max_us <= 68_719_477.0 && summary.max_us >= 59_000_000.0, "{summary:?}");
    }
}
