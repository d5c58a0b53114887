//! The process-wide memory budget for everything queued or half read (PROTOCOL.md, chapter 5).
//!
//! Workers lease the budget in chunks from one shared counter and charge frames against their own
//! lease, so the shared counter is touched once per chunk, not once per frame.
//!
//! Half of the budget is shared out among the workers from the start and never goes to another:
//! whoever hoards memory on one worker leaves the connections of the others room to work.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What all workers share: how much is leased, and who has the largest backlog.
pub struct SharedBudget {
    limit_bytes: u64,
    leased_bytes: AtomicU64,
    /// Per worker: the size class of its largest backlog, see [`Backlogs`](super::backlogs).
    largest_class: Vec<AtomicU32>,
}

impl SharedBudget {
    /// A budget of `limit_bytes` for `workers` workers.
    #[must_use]
    pub fn new(limit_bytes: u64, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            limit_bytes,
            leased_bytes: AtomicU64::new(0),
            largest_class: (0..workers).map(|_| AtomicU32::new(0)).collect(),
        })
    }

    /// The limit, in bytes.
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Bytes that the workers hold leases for: what they have charged, rounded up to chunks, and at
    /// least their reserves.
    #[must_use]
    pub fn leased_bytes(&self) -> u64 {
        self.leased_bytes.load(Ordering::Relaxed)
    }

    /// Whether less than an eighth is left to lease.
    #[must_use]
    pub fn is_under_pressure(&self) -> bool {
        self.leased_bytes() > self.limit_bytes - self.limit_bytes / 8
    }

    /// The worker that holds the largest backlog, by its own word.
    #[must_use]
    pub fn worker_with_largest_backlog(&self) -> usize {
        let classes = self.largest_class.iter().map(|class| class.load(Ordering::Relaxed));
        classes.enumerate().max_by_key(|(_, class)| *class).map_or(0, |(worker, _)| worker)
    }

    fn lease(&self, bytes: u64) -> bool {
        self.leased_bytes
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |leased| {
                let leased = leased.checked_add(bytes)?;
                (leased <= self.limit_bytes).then_some(leased)
            })
            .is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.leased_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// One worker's lease. What it charges never exceeds what it has leased, and all leases together
/// never exceed the limit.
pub struct Budget {
    shared: Arc<SharedBudget>,
    worker: usize,
    chunk_bytes: u64,
    /// Leased for good, whether it is charged or not.
    reserve_bytes: u64,
    leased_bytes: u64,
    charged_bytes: u64,
}

impl Budget {
    /// The lease of worker number `worker`, which has its reserve and no charge at first.
    #[must_use]
    pub fn new(shared: Arc<SharedBudget>, worker: usize) -> Self {
        let workers = shared.largest_class.len().max(1) as u64;
        // Two chunks per worker may lie idle: keep them to a thirty-second of the whole.
        let chunk_bytes = (shared.limit_bytes / workers / 64).clamp(1, 1024 * 1024);
        let share_bytes = shared.limit_bytes / workers / 2;
        // Refused only to more leases than the budget was made for.
        let reserve_bytes = if shared.lease(share_bytes) { share_bytes } else { 0 };
        let leased_bytes = reserve_bytes;
        Self { shared, worker, chunk_bytes, reserve_bytes, leased_bytes, charged_bytes: 0 }
    }

    /// Charges `bytes`, or changes nothing and returns false: the budget does not hold them.
    #[must_use]
    pub fn try_charge(&mut self, bytes: usize) -> bool {
        let wanted = self.charged_bytes + bytes as u64;
        if wanted > self.leased_bytes {
            let missing = wanted - self.leased_bytes;
            let rounded = missing.next_multiple_of(self.chunk_bytes);
            if self.shared.lease(rounded) {
                self.leased_bytes += rounded;
            } else if self.shared.lease(missing) {
                self.leased_bytes += missing;
            } else {
                return false;
            }
        }
        self.charged_bytes = wanted;
        true
    }

    /// Takes back a charge.
    pub fn release(&mut self, bytes: usize) {
        debug_assert!(self.charged_bytes >= bytes as u64, "released more than was charged");
        self.charged_bytes = self.charged_bytes.saturating_sub(bytes as u64);
        let idle = self.leased_bytes - self.charged_bytes;
        if idle > 2 * self.chunk_bytes {
            let beyond_reserve = self.leased_bytes - self.reserve_bytes;
            let surplus = (idle - self.chunk_bytes).min(beyond_reserve);
            self.leased_bytes -= surplus;
            self.shared.give_back(surplus);
        }
    }

    /// What this worker has charged.
    #[must_use]
    pub fn charged_bytes(&self) -> u64 {
        self.charged_bytes
    }

    /// What all workers share.
    #[must_use]
    pub fn shared(&self) -> &SharedBudget {
        &self.shared
    }

    /// Tells the other workers the size class of this worker's largest backlog.
    pub fn publish_largest_class(&self, class: u32) {
        if let Some(slot) = self.shared.largest_class.get(self.worker) {
            slot.store(class, Ordering::Relaxed);
        }
    }

    /// Which worker to ask for room when memory runs short, if it is another one: the one with
    /// the largest backlog.
    #[must_use]
    pub fn other_worker_to_shed(&self) -> Option<usize> {
        if !self.shared.is_under_pressure() {
            return None;
        }
        let worker = self.shared.worker_with_largest_backlog();
        (worker != self.worker).then_some(worker)
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.shared.give_back(self.leased_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_to_the_last_byte_and_not_beyond() {
        let shared = SharedBudget::new(1000, 2);
        let (mut a, mut b) = (Budget::new(shared.clone(), 0), Budget::new(shared.clone(), 1));
        assert!(a.try_charge(600));
        assert!(b.try_charge(300));
        assert!(!b.try_charge(101));
        assert_eq!((a.charged_bytes(), b.charged_bytes()), (600, 300));
        assert!(shared.leased_bytes() <= 1000);
        a.release(600);
        // The rest is the reserve of the other worker.
        assert!(b.try_charge(400));
        assert!(!b.try_charge(51));
        assert!(a.try_charge(250));
        a.release(250);
        b.release(700);
        drop((a, b));
        assert_eq!(shared.leased_bytes(), 0);
    }

    #[test]
    fn idle_leases_stay_small() {
        let shared = SharedBudget::new(64 * 1024 * 1024, 4);
        let mut lease = Budget::new(shared.clone(), 0);
        for _ in 0..1000 {
            assert!(lease.try_charge(60_000));
        }
        for _ in 0..1000 {
            lease.release(60_000);
        }
        let reserves = shared.limit_bytes() / 2 / 4;
        assert!(shared.leased_bytes() <= reserves + shared.limit_bytes() / 32 / 4);
    }
}
