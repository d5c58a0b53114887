//! How many upgrades the whole process takes in a time: storms after a restart are smoothed.

use crate::clock::Millis;
use crate::config::RateLimit;

/// The latest that somebody is asked to come back.
const MAX_SPREAD_MS: Millis = 60_000;

/// A token bucket for everybody together. Who gets none is told when to come back: each a little
/// later than the one before, so that they do not all come at once again.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    limit: Option<RateLimit>,
    /// When the bucket is full again.
    full_at: Millis,
    /// Until when tokens are promised.
    promised: Millis,
}

impl Arrivals {
    pub(super) fn new(limit: Option<RateLimit>) -> Self {
        Self { limit, full_at: 0, promised: 0 }
    }

    /// Applies another limit from now on.
    pub(super) fn set(&mut self, limit: Option<RateLimit>) {
        if self.limit != limit {
            *self = Self::new(limit);
        }
    }

    /// In how long the bucket is full, and until when tokens are promised.
    pub(super) fn give_out(&self, now: Millis) -> (Millis, Millis) {
        (self.full_at.saturating_sub(now), self.promised.saturating_sub(now))
    }

    /// Goes on from there.
    pub(super) fn take_in(&mut self, now: Millis, (full_in, promised_in): (Millis, Millis)) {
        if self.limit.is_some() {
            self.full_at = now.saturating_add(full_in);
            self.promised = now.saturating_add(promised_in.min(MAX_SPREAD_MS));
        }
    }

    /// Takes a token; where there is none, how long to wait.
    pub(super) fn take(&mut self, now: Millis) -> Result<(), Millis> {
        let Some(RateLimit { burst, refill_ms }) = self.limit else { return Ok(()) };
        let room = Millis::from(burst.saturating_sub(1)) * refill_ms;
        let free_at = self.full_at.saturating_sub(room);
        if free_at <= now {
            self.full_at = self.full_at.max(now) + refill_ms;
            return Ok(());
        }
        let next = self.promised.max(free_at) + refill_ms;
        self.promised = if next - now > MAX_SPREAD_MS { free_at } else { next };
        Err(self.promised - now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_comes_at_once_and_one_more_with_each_refill() {
        let mut arrivals = Arrivals::new(Some(RateLimit { burst: 3, refill_ms: 100 }));
        let let_in =
            |arrivals: &mut Arrivals, now| (0..10).filter(|_| arrivals.take(now).is_ok()).count();
        assert_eq!(let_in(&mut arrivals, 1000), 3);
        assert_eq!(let_in(&mut arrivals, 1099), 0);
        assert_eq!(let_in(&mut arrivals, 1100), 1);
        assert_eq!(let_in(&mut arrivals, 1300), 2);
        assert_eq!(let_in(&mut arrivals, 100_000), 3, "no more than the burst is saved up");
        assert!(Arrivals::new(None).take(0).is_ok());
    }

    #[test]
    fn those_who_are_turned_away_are_told_times_that_spread() {
        let mut arrivals = Arrivals::new(Some(RateLimit { burst: 1, refill_ms: 100 }));
        arrivals.take(1000).unwrap();
        let waits: Vec<Millis> = (0..1200).map(|_| arrivals.take(1000).unwrap_err()).collect();
        assert_eq!(waits[..3], [200, 300, 400]);
        assert!(waits.iter().all(|wait| (1..=MAX_SPREAD_MS).contains(wait)), "{waits:?}");
        let of = |from: Millis| waits.iter().filter(|w| (from..from + 10_000).contains(*w)).count();
        for from in [0, 10_000, 20_000, 30_000, 40_000, 50_000] {
            assert!((150..=250).contains(&of(from)), "{from}: {}", of(from));
        }
    }
}
