//! A token bucket for each address that has asked of late.
//!
//! A bucket is one number: the time at which it is full again. One that is full says no more than
//! none at all, so it is forgotten; and where a spray of addresses fills the table, those go first
//! that are nearest to full, which are the ones that have asked least.

use super::address::Address;
use crate::clock::Millis;
use crate::config::RateLimit;
use ahash::RandomState;
use std::collections::{BTreeSet, HashMap};

/// The most buckets: half of what a hash map of 65,536 slots of 17 bytes holds, so that it never
/// grows beyond that for the traces of those that it has forgotten. With their places in the order
/// they take 1.8 MiB.
const MAX_BUCKETS: usize = 28_672;
/// Full buckets that are forgotten each time a token is asked for: more than are made, so that
/// there are soon no more than addresses that ask.
const FORGOTTEN_PER_TAKE: usize = 2;

/// There is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoToken {
    /// When there will be one, in milliseconds from now, at least 1.
    pub(super) wait_ms: Millis,
}

/// The buckets.
pub(super) struct Rates {
    limit: Option<RateLimit>,
    /// When each is full.
    buckets: HashMap<Address, Millis, RandomState>,
    /// The same buckets, the first to be full first.
    by_full_at: BTreeSet<(Millis, Address)>,
}

impl Rates {
    /// No buckets yet. `hasher` is seeded at random: addresses are chosen by peers.
    #[must_use]
    pub(super) fn new(limit: Option<RateLimit>, hasher: RandomState) -> Self {
        Self { limit, buckets: HashMap::with_hasher(hasher), by_full_at: BTreeSet::new() }
    }

    /// Applies another limit from now on, to what was taken before as well.
    pub(super) fn set(&mut self, limit: Option<RateLimit>) {
        self.limit = limit;
        if limit.is_none() {
            self.buckets = HashMap::with_hasher(self.buckets.hasher().clone());
            self.by_full_at.clear();
        }
    }

    /// How many buckets are remembered.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Takes one token of an address.
    ///
    /// # Errors
    ///
    /// The bucket is empty; it stays as it was.
    pub(super) fn take(&mut self, now: Millis, address: Address) -> Result<(), NoToken> {
        let Some(RateLimit { burst, refill_ms }) = self.limit else { return Ok(()) };
        let empty_at = now + u64::from(burst) * refill_ms;
        self.forget_full(now);
        let mut full_at = now;
        if let Some(before) = self.buckets.get(&address).copied() {
            // It may date from another limit.
            full_at = before.clamp(now, empty_at);
            if full_at + refill_ms > empty_at {
                return Err(NoToken { wait_ms: full_at + refill_ms - empty_at });
            }
            self.by_full_at.remove(&(before, address));
        } else if self.buckets.len() >= MAX_BUCKETS {
            self.forget_first();
        }
        full_at += refill_ms;
        self.by_full_at.insert((full_at, address));
        self.buckets.insert(address, full_at);
        debug_assert_eq!(self.buckets.len(), self.by_full_at.len());
        Ok(())
    }

    /// Each bucket, and in how long it is full.
    pub(super) fn give_out(&self, now: Millis) -> Vec<(Address, Millis)> {
        let left = self.by_full_at.iter().filter(|(full_at, _)| *full_at > now);
        left.map(|(full_at, address)| (*address, full_at - now)).collect()
    }

    /// These are the buckets, as many as there may be.
    pub(super) fn take_in(
        &mut self,
        now: Millis,
        buckets: impl Iterator<Item = (Address, Millis)>,
    ) {
        if self.limit.is_none() {
            return;
        }
        for (address, left) in buckets.take(MAX_BUCKETS) {
            let full_at = now.saturating_add(left);
            if let Some(before) = self.buckets.insert(address, full_at) {
                self.by_full_at.remove(&(before, address));
            }
            self.by_full_at.insert((full_at, address));
        }
    }

    fn forget_full(&mut self, now: Millis) {
        for _ in 0..FORGOTTEN_PER_TAKE {
            match self.by_full_at.first() {
                Some((full_at, _)) if *full_at <= now => self.forget_first(),
                _ => break,
            }
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, address)) = self.by_full_at.pop_first() {
            self.buckets.remove(&address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn rates(burst: u32, refill_ms: u64) -> Rates {
        Rates::new(Some(RateLimit { burst, refill_ms }), RandomState::with_seeds(1, 2, 3, 4))
    }

    fn address(number: u32) -> Address {
        std::net::IpAddr::from(Ipv4Addr::from(number)).into()
    }

    fn waits(rates: &mut Rates, now: Millis, number: u32) -> Option<Millis> {
        rates.take(now, address(number)).err().map(|no_token| no_token.wait_ms)
    }

    #[test]
    fn a_burst_and_then_one_at_a_time() {
        let mut rates = rates(3, 6000);
        for _ in 0..3 {
            assert_eq!(waits(&mut rates, 500, 1), None);
        }
        assert_eq!(waits(&mut rates, 500, 1), Some(6000));
        assert_eq!(waits(&mut rates, 500, 2), None, "another address");
        assert_eq!(waits(&mut rates, 6499, 1), Some(1), "refusals cost nothing");
        assert_eq!(waits(&mut rates, 6500, 1), None);
        assert_eq!(waits(&mut rates, 6500, 1), Some(6000));
        assert_eq!(waits(&mut rates, 18_499, 1), None);
        assert_eq!(waits(&mut rates, 18_499, 1), Some(1));
        for _ in 0..3 {
            assert_eq!(waits(&mut rates, 60_000, 1), None, "no more than a burst is saved up");
        }
        assert_eq!(waits(&mut rates, 60_000, 1), Some(6000));
    }

    #[test]
    fn a_million_addresses_take_no_more_memory_than_the_table_has() {
        let mut rates = rates(20, 6000);
        for _ in 0..20 {
            assert_eq!(waits(&mut rates, 0, 7), None);
        }
        for number in 1000..1_001_000 {
            assert_eq!(waits(&mut rates, u64::from(number) / 1000, number), None);
            assert!(rates.len() <= MAX_BUCKETS);
        }
        assert_eq!(rates.len(), MAX_BUCKETS);
        assert!(rates.buckets.capacity() <= 2 * MAX_BUCKETS, "{}", rates.buckets.capacity());
        assert_eq!(waits(&mut rates, 1001, 7), Some(4999), "who has asked most is remembered");
    }

    #[test]
    fn full_buckets_are_forgotten() {
        let mut rates = rates(20, 10);
        for number in 0..5000 {
            rates.take(0, address(number)).unwrap();
        }
        for turn in 0..3000 {
            rates.take(1_000_000 + turn * 200, address(0)).unwrap();
        }
        assert_eq!(rates.len(), 1);
    }

    #[test]
    fn limits_change_while_it_runs() {
        let mut rates = rates(2, 1000);
        for _ in 0..2 {
            assert_eq!(waits(&mut rates, 0, 1), None);
        }
        rates.set(Some(RateLimit { burst: 5, refill_ms: 1000 }));
        for _ in 0..3 {
            assert_eq!(waits(&mut rates, 0, 1), None);
        }
        assert_eq!(waits(&mut rates, 0, 1), Some(1000));
        rates.set(Some(RateLimit { burst: 1, refill_ms: 100 }));
        assert_eq!(waits(&mut rates, 0, 1), Some(100), "no longer than the new limit says");
        rates.set(None);
        assert_eq!((waits(&mut rates, 0, 1), rates.len()), (None, 0));
        rates.set(Some(RateLimit { burst: 1, refill_ms: 100 }));
        assert_eq!(waits(&mut rates, 0, 1), None);
    }

    proptest! {
        /// Against the bucket as the book describes it: a count that grows with time.
        #[test]
        fn is_a_token_bucket(
            burst in 1u32..6,
            refill_ms in 1u64..50,
            steps in proptest::collection::vec((0u64..120, 0u32..3), 0..200),
        ) {
            let mut rates = rates(burst, refill_ms);
            // In parts of a token: one a millisecond, `refill_ms` to the token.
            let mut parts = [u64::from(burst) * refill_ms; 3];
            let mut now = 0;
            for (pass_ms, number) in steps {
                now += pass_ms;
                for parts in &mut parts {
                    *parts = (*parts + pass_ms).min(u64::from(burst) * refill_ms);
                }
                let parts = &mut parts[number as usize];
                let expected = refill_ms.checked_sub(*parts).filter(|wait| *wait > 0);
                if expected.is_none() {
                    *parts -= refill_ms;
                }
                prop_assert_eq!(waits(&mut rates, now, number), expected);
            }
        }
    }
}
