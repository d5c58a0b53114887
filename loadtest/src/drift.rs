//! Whether what a relay holds stays the same over a long time.

use crate::sample::Sample;
use serde::Serialize;
use std::fmt;

/// Before that, a relay may still grow into its load: a third of the time.
const SETTLED: f64 = 1.0 / 3.0;
/// What is compared: the median of a sixth of the time from then on, and of the last sixth.
const WINDOW: f64 = 1.0 / 6.0;
/// How much more it may be in the end: peers come and go by chance.
const GROWTH: f64 = 1.05;
/// A shorter time, in seconds, says nothing: in the first minutes a relay grows into its load.
const LEAST_SECONDS: f64 = 300.0;

/// One thing that must not grow.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Drift {
    pub(crate) what: &'static str,
    /// Once settled.
    pub(crate) early: f64,
    /// In the end.
    pub(crate) late: f64,
    pub(crate) is_flat: bool,
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, early, late, is_flat } = self;
        let verdict = if *is_flat { "flat" } else { "NOT FLAT" };
        write!(f, "{what} {early:.1} to {late:.1} ({verdict})")
    }
}

/// How memory, descriptors and tables went; nothing if the run was too short to tell.
pub(crate) fn of(samples: &[Sample]) -> Vec<Drift> {
    if samples.last().is_none_or(|last| last.second < LEAST_SECONDS) {
        return Vec::new();
    }
    let tables = |of: fn(crate::tables::Tables) -> u64| {
        move |sample: &Sample| sample.tables.map(|tables| of(tables) as f64)
    };
    // With what may come on top by chance alone.
    [
        one(samples, "MiB resident", 1.0, |sample| sample.resident_mib),
        one(samples, "descriptors", 16.0, |sample| sample.descriptors.map(|count| count as f64)),
        one(samples, "connections", 16.0, tables(|tables| tables.connections)),
        one(samples, "server-ids", 16.0, tables(|tables| tables.server_ids)),
        one(samples, "timers", 32.0, tables(|tables| tables.timers)),
        // Of a peer that does not read there may be a whole outbox.
        one(samples, "KiB charged", 8192.0, |sample| {
            sample.tables.map(|tables| tables.charged_bytes as f64 / 1024.0)
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn one(
    samples: &[Sample],
    what: &'static str,
    slack: f64,
    value: impl Fn(&Sample) -> Option<f64>,
) -> Option<Drift> {
    let end = samples.last()?.second;
    let median = |from: f64, to: f64| {
        let inside = |sample: &&Sample| (from * end..=to * end).contains(&sample.second);
        let mut values: Vec<f64> = samples.iter().filter(inside).filter_map(&value).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let early = median(SETTLED, SETTLED + WINDOW)?;
    let late = median(1.0 - WINDOW, 1.0)?;
    Some(Drift { what, early, late, is_flat: late <= early * GROWTH + slack })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::Tables;

    fn samples(count: u32, mib_per_second: f64) -> Vec<Sample> {
        let sample = |second: u32| Sample {
            second: f64::from(second),
            resident_mib: Some(20.0 + mib_per_second * f64::from(second)),
            descriptors: Some(1000),
            tables: second.is_multiple_of(5).then(|| Tables { timers: 70, ..Tables::default() }),
            ..Sample::default()
        };
        (1..=count).map(sample).collect()
    }

    #[test]
    fn what_grows_on_is_not_flat() {
        let verdict = |samples: &[Sample]| -> Vec<bool> {
            of(samples).iter().map(|drift| drift.is_flat).collect()
        };
        assert_eq!(verdict(&samples(600, 0.0)), [true; 6]);
        assert_eq!(verdict(&samples(600, 0.02)), [false, true, true, true, true, true]);
        assert_eq!(of(&samples(200, 0.0)), []);
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let mut samples = samples(400, 0.0);
        samples.iter_mut().for_each(|sample| sample.tables = None);
        assert_eq!(of(&samples).len(), 2);
    }
}
