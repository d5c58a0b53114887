//! How long messages stay with the relay: from the turn of the worker's loop that finds their last
//! byte received, to the end of that turn, when their bytes are with the kernel's queue. Waiting
//! for a peer that does not read is not part of it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds of the buckets, in microseconds; one more bucket holds what is beyond.
pub const BOUNDS_US: [u64; 18] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
    500_000, 1_000_000, 2_500_000, 10_000_000,
];

/// A histogram with one writer.
#[derive(Debug, Default)]
pub struct Delays {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Delays {
    /// So many messages took so long.
    pub fn record(&self, messages: u64, delay_us: u64) {
        self.add_counts(messages, delay_us);
        self.add_sum_us(messages.saturating_mul(delay_us));
    }

    /// Messages in each bucket, not cumulated.
    #[must_use]
    pub fn counts(&self) -> [u64; BOUNDS_US.len() + 1] {
        self.buckets.each_ref().map(|bucket| bucket.load(Ordering::Relaxed))
    }

    /// All delays together are so many microseconds and what they were before.
    pub(super) fn add_sum_us(&self, sum_us: u64) {
        self.sum_us.store(self.sum_us().wrapping_add(sum_us), Ordering::Relaxed);
    }

    /// So many messages are in the bucket of this delay too, which is in the sum already.
    pub(super) fn add_counts(&self, messages: u64, delay_us: u64) {
        let at = BOUNDS_US.partition_point(|bound| *bound < delay_us);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.store(bucket.load(Ordering::Relaxed).wrapping_add(messages), Ordering::Relaxed);
        }
    }

    /// All delays together, in microseconds.
    #[must_use]
    pub fn sum_us(&self) -> u64 {
        self.sum_us.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_counted_in_the_first_bucket_that_holds_it() {
        let delays = Delays::default();
        for (messages, delay_us) in [(1, 0), (2, 25), (3, 26), (4, 10_000_000), (5, 10_000_001)] {
            delays.record(messages, delay_us);
        }
        let counts = delays.counts();
        assert_eq!((counts[0], counts[1], counts[2]), (1, 2, 3));
        assert_eq!((counts[17], counts[18]), (4, 5));
        assert_eq!(delays.sum_us(), 50 + 78 + 40_000_000 + 50_000_005);
    }
}
