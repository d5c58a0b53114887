//! One thing that keeps happening: its first lines, then a count.
//!
//! Plain data without a clock, so that whoever counts can keep it where it costs least: an entry
//! of the registry for what a binary's messages cause, the log's own table for the rest.

/// For how long repetitions are only counted before a line says how many they were, in
/// milliseconds.
pub const TOLD_EVERY_MS: u64 = 60_000;

/// How many lines something may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// At once.
    pub burst: u64,
    /// One more after each of these, in milliseconds.
    pub refill_ms: u64,
}

/// How often something has happened that is logged each time, within its [`Rate`].
///
/// From the first repetition that is left out until the line that says how many were, all are left
/// out: so whatever does not stop costs one line each [`TOLD_EVERY_MS`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repeats {
    /// When all lines of the rate's burst may be written again.
    whole_at_ms: u64,
    /// Left out since `since_ms`, and nobody was told.
    omitted: u64,
    since_ms: u64,
}

impl Repeats {
    /// It has happened `times` more. Whether that is to be logged, in one line; it is counted
    /// otherwise.
    #[inline]
    pub fn admit(&mut self, rate: Rate, now_ms: u64, times: u64) -> bool {
        if self.omitted == 0 {
            let full_by = rate.refill_ms.saturating_mul(rate.burst.saturating_sub(1));
            if self.whole_at_ms.saturating_sub(now_ms) <= full_by {
                self.whole_at_ms = self.whole_at_ms.max(now_ms) + rate.refill_ms;
                return true;
            }
            self.since_ms = now_ms;
        }
        self.omitted = self.omitted.saturating_add(times);
        false
    }

    /// How many were left out, if it is time to say so. The line that does is one of the rate's.
    pub fn take_due(&mut self, rate: Rate, now_ms: u64) -> Option<u64> {
        let is_due = now_ms.saturating_sub(self.since_ms) >= TOLD_EVERY_MS;
        if is_due { self.take(rate, now_ms) } else { None }
    }

    /// How many were left out and not told, if any: there will be no better time to say so.
    pub fn take(&mut self, rate: Rate, now_ms: u64) -> Option<u64> {
        if self.omitted == 0 {
            return None;
        }
        self.whole_at_ms = self.whole_at_ms.max(now_ms) + rate.refill_ms;
        Some(std::mem::take(&mut self.omitted))
    }

    /// As plain data that knows no clock: in how many milliseconds all lines may be written again, how
    /// many were left out, and for how many milliseconds.
    #[must_use]
    pub fn relative(&self, now_ms: u64) -> (u64, u64, u64) {
        let since_ms = if self.omitted == 0 { 0 } else { now_ms.saturating_sub(self.since_ms) };
        (self.whole_at_ms.saturating_sub(now_ms), self.omitted, since_ms)
    }

    /// The opposite of [`Repeats::relative`]. By a clock that began later, the time since they were
    /// left out counts from its beginning.
    #[must_use]
    pub fn absolute(now_ms: u64, (whole_in_ms, omitted, since_ms): (u64, u64, u64)) -> Self {
        let whole_at_ms = now_ms.saturating_add(whole_in_ms);
        Self { whole_at_ms, omitted, since_ms: now_ms.saturating_sub(since_ms) }
    }

    /// Whether some were left out and nobody was told.
    #[must_use]
    pub fn has_omitted(&self) -> bool {
        self.omitted > 0
    }

    /// Whether it is as good as new: forgetting it changes nothing.
    #[must_use]
    pub fn is_idle(&self, now_ms: u64) -> bool {
        self.omitted == 0 && self.whole_at_ms <= now_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { burst: 3, refill_ms: 60_000 };

    #[test]
    fn the_first_are_written_and_the_rest_counted() {
        let mut repeats = Repeats::default();
        let written = (0..1000).filter(|_| repeats.admit(RATE, 5, 1)).count();
        assert_eq!(written, 3);
        assert_eq!(repeats.take_due(RATE, 5 + TOLD_EVERY_MS - 1), None);
        assert_eq!(repeats.take_due(RATE, 5 + TOLD_EVERY_MS), Some(997));
        assert!(!repeats.has_omitted());
        assert_eq!(repeats.take(RATE, 5 + TOLD_EVERY_MS), None);
    }

    #[test]
    fn a_flood_without_an_end_costs_one_line_a_minute() {
        let mut repeats = Repeats::default();
        let (mut written, mut told, mut told_lines) = (0, 0, 0);
        for now_ms in 0..60 * TOLD_EVERY_MS {
            written += u64::from(repeats.admit(RATE, now_ms, 1));
            if let Some(omitted) = repeats.take_due(RATE, now_ms) {
                told += omitted;
                told_lines += 1;
            }
        }
        assert_eq!(written, 3);
        assert_eq!(told_lines, 59);
        told += repeats.take(RATE, 60 * TOLD_EVERY_MS).unwrap();
        assert_eq!(written + told, 60 * TOLD_EVERY_MS, "each is written or told");
    }

    #[test]
    fn what_has_stopped_is_as_good_as_new_after_a_while() {
        let mut repeats = Repeats::default();
        while repeats.admit(RATE, 0, 1) {}
        assert_eq!(repeats.take(RATE, 1), Some(1));
        assert!(!repeats.is_idle(4 * RATE.refill_ms - 1));
        assert!(repeats.is_idle(4 * RATE.refill_ms));
        let now_ms = 4 * RATE.refill_ms;
        assert_eq!((0..10).filter(|_| repeats.admit(RATE, now_ms, 1)).count(), 3);
    }

    #[test]
    fn what_comes_at_its_rate_is_always_written() {
        let mut repeats = Repeats::default();
        while repeats.whole_at_ms < 3 * RATE.refill_ms {
            assert!(repeats.admit(RATE, 0, 1));
        }
        for at in 1..1000 {
            assert!(repeats.admit(RATE, at * RATE.refill_ms, 1), "{at}");
        }
    }

    #[test]
    fn what_counts_many_times_is_counted_so() {
        let mut repeats = Repeats::default();
        assert!(repeats.admit(Rate { burst: 1, ..RATE }, 0, 500), "one line says how many");
        assert!(!repeats.admit(Rate { burst: 1, ..RATE }, 0, 500));
        assert!(!repeats.admit(Rate { burst: 1, ..RATE }, 0, u64::MAX), "and nothing overflows");
        assert_eq!(repeats.take(RATE, 0), Some(u64::MAX));
    }
}
