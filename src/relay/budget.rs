//! One worker's lease of the memory budget (PROTOCOL.md, chapter 5), so that the counter which all
//! workers share is touched once for each chunk, not once for each frame.

use crate::shared::budget::SharedBudget;
use std::sync::Arc;

/// One worker's lease. What it charges never exceeds what it has leased by more than its headroom,
/// and all leases together never exceed the pool.
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
        let workers = shared.workers().max(1) as u64;
        // Two chunks per worker may lie idle: keep them to a thirty-second of the whole.
        let chunk_bytes = (shared.pool_bytes() / workers / 64).clamp(1, 1024 * 1024);
        // Nothing only for more leases than the budget was made for.
        let reserve_bytes = shared.take_reserve(worker);
        let leased_bytes = reserve_bytes;
        Self { shared, worker, chunk_bytes, reserve_bytes, leased_bytes, charged_bytes: 0 }
    }

    /// Whether `bytes` more may be charged without leasing more.
    #[must_use]
    #[inline]
    pub fn has_leased(&self, bytes: usize) -> bool {
        self.charged_bytes + bytes as u64 <= self.leased_bytes
    }

    /// Whether `bytes` more may be charged, if need be into the headroom.
    #[must_use]
    #[inline]
    pub fn has_room(&mut self, bytes: usize) -> bool {
        if self.has_leased(bytes) {
            return true;
        }
        let wanted = self.charged_bytes + bytes as u64;
        self.lease_for(wanted);
        wanted <= self.leased_bytes + self.shared.headroom_bytes()
    }

    /// Charges `bytes`, of which [`Budget::has_room`] was asked. False if they are beyond the
    /// headroom.
    #[inline]
    pub fn charge(&mut self, bytes: usize) -> bool {
        self.charged_bytes += bytes as u64;
        if self.charged_bytes <= self.leased_bytes {
            return true;
        }
        self.lease_for(self.charged_bytes);
        self.set_gives_nothing(false);
        self.is_within_headroom()
    }

    /// Whether no more is charged than is leased and the headroom.
    #[must_use]
    pub fn is_within_headroom(&self) -> bool {
        self.over_bytes() <= self.shared.headroom_bytes()
    }

    /// Takes back a charge.
    #[inline]
    pub fn release(&mut self, bytes: usize) {
        debug_assert!(self.charged_bytes >= bytes as u64, "released more than was charged");
        self.charged_bytes = self.charged_bytes.saturating_sub(bytes as u64);
        let idle = self.leased_bytes.saturating_sub(self.charged_bytes);
        if idle > 2 * self.chunk_bytes {
            self.give_back(idle - self.chunk_bytes);
        }
    }

    /// Leases what `bytes` need, to the byte, for a worker that takes in what another process had.
    /// False if with that there would be no room for an event.
    #[must_use]
    pub fn make_room_for(&mut self, bytes: u64) -> bool {
        let missing = bytes.saturating_sub(self.leased_bytes);
        self.leased_bytes += self.shared.lease_up_to(missing);
        self.publish_lease();
        bytes <= self.most_bytes()
    }

    /// What could be charged, with all that is free, so that there is room for an event.
    #[must_use]
    pub fn most_bytes(&self) -> u64 {
        let free = self.shared.pool_bytes().saturating_sub(self.shared.leased_bytes());
        let may_wait = self.shared.headroom_bytes() - self.shared.event_bytes();
        self.leased_bytes + free + may_wait
    }

    /// Gives back all that is leased and not charged, but for the reserve.
    pub fn give_back_idle(&mut self) {
        self.give_back(self.leased_bytes.saturating_sub(self.charged_bytes));
    }

    fn give_back(&mut self, bytes: u64) {
        let surplus = bytes.min(self.leased_bytes - self.reserve_bytes);
        if surplus > 0 {
            self.leased_bytes -= surplus;
            self.shared.give_back(surplus);
            self.publish_lease();
        }
    }

    /// Leases what is missing for `wanted` bytes in all, as far as it is to be had.
    fn lease_for(&mut self, wanted: u64) {
        let missing = wanted.saturating_sub(self.leased_bytes);
        if missing == 0 {
            return;
        }
        let rounded = missing.next_multiple_of(self.chunk_bytes);
        if self.shared.lease(rounded) {
            self.leased_bytes += rounded;
        } else {
            self.leased_bytes += self.shared.lease_up_to(missing);
        }
        self.publish_lease();
    }

    fn publish_lease(&self) {
        self.shared.set_beyond(self.worker, self.leased_bytes - self.reserve_bytes);
    }

    /// What this worker has charged.
    #[must_use]
    pub fn charged_bytes(&self) -> u64 {
        self.charged_bytes
    }

    /// What it has charged into its headroom.
    #[must_use]
    #[inline]
    pub fn over_bytes(&self) -> u64 {
        self.charged_bytes.saturating_sub(self.leased_bytes)
    }

    /// Leases what has become free meanwhile, and tells the others what is still wanted. Returns
    /// whether that is nothing.
    pub fn settle(&mut self) -> bool {
        self.lease_for(self.charged_bytes);
        let wanted = self.over_bytes();
        self.shared.set_wanted(self.worker, wanted);
        wanted == 0
    }

    /// Whether another event has room while someone else is asked to pay.
    #[must_use]
    pub fn may_wait(&self) -> bool {
        self.over_bytes() + self.shared.event_bytes() <= self.shared.headroom_bytes()
    }

    /// What all workers share.
    #[must_use]
    pub fn shared(&self) -> &SharedBudget {
        &self.shared
    }

    /// Tells the other workers the size class of this worker's largest backlog.
    pub fn publish_largest_class(&self, class: u32) {
        self.shared.set_largest_class(self.worker, class);
        self.set_gives_nothing(false);
    }

    /// Tells the other workers that it is no use to ask this one, until it takes more. Without that,
    /// two that have nothing to give would ask each other without end.
    pub fn give_nothing(&self) {
        self.set_gives_nothing(true);
    }

    fn set_gives_nothing(&self, gives_nothing: bool) {
        self.shared.set_gives_nothing(self.worker, gives_nothing);
    }

    /// The other worker that holds the largest backlog beyond its reserve, if that is larger than
    /// one of this class. O(workers).
    #[must_use]
    pub fn larger_elsewhere(&self, own_class: u32) -> Option<usize> {
        self.shared
            .beyond_reserves(self.worker)
            .filter(|(class, _)| *class > own_class)
            .max()
            .map(|(_, who)| who)
    }

    fn largest_elsewhere(&self) -> Option<usize> {
        self.shared.beyond_reserves(self.worker).max().map(|(_, worker)| worker)
    }

    /// The other worker that is to pay for what this one, whose largest backlog is of this class, has
    /// charged into its headroom. If all of that lies within what this worker has for itself, it is
    /// whoever holds most beyond a reserve, be that larger or not: nothing is shed here to make up
    /// for what another worker took. O(workers).
    #[must_use]
    pub fn payer(&self, own_class: u32) -> Option<usize> {
        if self.is_within_own() {
            return self.largest_elsewhere();
        }
        self.larger_elsewhere(own_class)
    }

    /// Whether all that is charged lies within the reserve and the part of the headroom in which a
    /// worker may wait: no other worker can take those.
    #[must_use]
    pub fn is_within_own(&self) -> bool {
        let own = self.reserve_bytes + self.shared.headroom_bytes();
        self.charged_bytes + self.shared.event_bytes() <= own
    }

    /// Whether `worker` is to be asked to shed now: not while a request is under way to it.
    #[must_use]
    pub fn ask(&self, worker: usize) -> bool {
        self.shared.ask(worker)
    }

    /// A request of another worker has arrived: the next one may be sent.
    pub fn take_request(&self) {
        self.shared.take_request(self.worker);
    }

    /// Whether a backlog of `bytes`, the largest of this worker, lies beyond the reserve whole.
    #[must_use]
    pub fn can_give(&self, bytes: usize) -> bool {
        bytes > 0 && self.charged_bytes >= self.reserve_bytes + bytes as u64
    }

    /// Whether this worker is to shed a backlog of `bytes` and this class, its largest, for
    /// others: they are short, it can be given, and nobody else who may be asked holds a larger one.
    /// O(workers).
    #[must_use]
    pub fn owes_others(&self, class: u32, bytes: usize) -> bool {
        self.can_give(bytes) && self.shared.is_short() && self.larger_elsewhere(class).is_none()
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.shared.give_back(self.leased_bytes - self.reserve_bytes);
        if self.reserve_bytes > 0 {
            self.shared.leave_reserve(self.worker);
        }
        self.charged_bytes = 0;
        self.leased_bytes = 0;
        self.settle();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_to_the_last_byte_and_a_headroom_beyond() {
        let shared = SharedBudget::for_events_of(50, 1200, 2);
        let (mut a, mut b) = (Budget::new(shared.clone(), 0), Budget::new(shared.clone(), 1));
        assert_eq!((shared.pool_bytes(), shared.headroom_bytes()), (1000, 100));
        assert!(a.charge(600));
        assert!(b.charge(300));
        assert_eq!((a.over_bytes(), b.over_bytes()), (0, 0));
        assert!(b.charge(100));
        assert!(b.settle() && shared.leased_bytes() <= 1000);
        assert!(b.has_room(100) && !b.has_room(101));
        assert!(b.charge(50));
        assert_eq!((b.over_bytes(), b.may_wait()), (50, true));
        assert!(b.charge(1));
        assert!(!b.settle() && !b.may_wait());
        a.release(600);
        // The rest is the reserve of the other worker.
        assert!(b.settle() && b.has_room(399) && !b.has_room(400));
        drop((a, b));
        assert_eq!(shared.leased_bytes(), 1000 / 2, "the reserves");
    }

    #[test]
    fn a_worker_that_takes_in_much_leaves_the_others_their_reserves() {
        let shared = SharedBudget::for_events_of(50, 1200, 2);
        let mut first = Budget::new(shared.clone(), 0);
        assert_eq!(first.most_bytes(), 750 + 50);
        assert!(!first.make_room_for(801), "the rest is the other's reserve");
        assert!(first.make_room_for(800) && first.charge(800));
        assert!(first.may_wait());
        let mut second = Budget::new(shared.clone(), 1);
        assert!(second.make_room_for(300) && !second.make_room_for(301));
        let again = Budget::new(shared.clone(), 1);
        assert!(!again.has_leased(1), "its reserve has somebody");
        drop((first, again));
        assert!(second.make_room_for(800));
        drop(second);
        assert_eq!(shared.leased_bytes(), 500);
    }

    #[test]
    fn idle_leases_stay_small() {
        let shared = SharedBudget::new(64 * 1024 * 1024, 4);
        let mut lease = Budget::new(shared.clone(), 0);
        for _ in 0..500 {
            assert!(lease.charge(60_000));
        }
        assert_eq!(lease.over_bytes(), 0);
        for _ in 0..500 {
            lease.release(60_000);
        }
        let reserves = shared.pool_bytes() / 2;
        assert!(shared.leased_bytes() <= reserves + shared.limit_bytes() / 32 / 4);
        lease.give_back_idle();
        assert_eq!(shared.leased_bytes(), reserves);
    }

    #[test]
    fn only_the_largest_backlog_beyond_a_reserve_pays_for_another_worker() {
        let shared = SharedBudget::for_events_of(50, 1200, 2);
        let (mut hoarder, mut small) = (Budget::new(shared.clone(), 0), Budget::new(shared, 1));
        hoarder.publish_largest_class(5);
        small.publish_largest_class(3);
        assert!(hoarder.charge(700));
        assert!(!hoarder.owes_others(5, 100), "nobody wants anything");
        assert!(small.charge(310));
        assert!(!small.settle(), "10 bytes are wanted");
        assert_eq!(hoarder.larger_elsewhere(5), None);
        assert_eq!(small.larger_elsewhere(3), Some(0));
        assert_eq!(small.larger_elsewhere(5), None, "it is no larger");
        assert!(small.ask(0) && !small.ask(0), "one request is under way");
        hoarder.take_request();
        assert!(small.ask(0));
        assert!(hoarder.owes_others(5, 100));
        assert!(!hoarder.owes_others(2, 100), "the other's is larger");
        assert!(!hoarder.owes_others(5, 451), "it would be taken out of the reserve");
        hoarder.release(100);
        hoarder.give_back_idle();
        assert!(!hoarder.owes_others(5, 100), "there is room again");
        assert!(small.settle());
        hoarder.release(360);
        hoarder.give_back_idle();
        hoarder.publish_largest_class(9);
        assert_eq!(small.larger_elsewhere(3), None, "nothing inside a reserve");
    }

    #[test]
    fn what_a_worker_has_for_itself_is_not_shed_for_what_others_took() {
        let shared = SharedBudget::for_events_of(50, 1200, 2);
        let (mut hoarder, mut small) = (Budget::new(shared.clone(), 0), Budget::new(shared, 1));
        hoarder.charge(750);
        hoarder.publish_largest_class(3);
        // Its one backlog is the largest of all, and in the headroom because the pool is leased.
        small.charge(300);
        assert!(!small.settle());
        assert_eq!(small.payer(5), Some(0));
        small.charge(1);
        assert_eq!(small.payer(5), None, "that is more than it has for itself");
    }
}
