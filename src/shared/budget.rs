//! The process-wide memory budget for everything queued or half read (PROTOCOL.md, chapter 5).
//!
//! Of the budget each worker has a headroom of its own, for what one event may add before anybody
//! is asked to pay for it. The rest is a pool, which workers lease in chunks from one shared counter,
//! so that it is touched once per chunk, not once per frame.
//!
//! Half of the pool is shared out among the workers from the start, their reserves, and never goes to
//! another: whoever hoards memory on one worker leaves the connections of the others room to work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// The most that one event may add: the longest message with its envelope, in a chunk of its own,
/// and beside it a chunk that grows for a notice.
const EVENT_BYTES: u64 = 256 * 1024 + 64 * 1024;

/// What all workers share: how much is leased, who has the largest backlog, who is short.
pub struct SharedBudget {
    limit_bytes: u64,
    /// What one event may add, for each worker.
    event_bytes: u64,
    headroom_bytes: u64,
    pool_bytes: u64,
    /// What each worker has of the pool, whether it charges it or not.
    reserve_bytes: u64,
    /// The reserves included, from the start.
    leased_bytes: AtomicU64,
    workers: Vec<Standing>,
}

/// How one worker stands, by its own word.
#[derive(Default)]
struct Standing {
    /// The size class of its largest backlog, see [`Backlogs`](crate::relay::backlogs).
    largest_class: AtomicU32,
    /// Bytes that it leases beyond its reserve.
    beyond_bytes: AtomicU64,
    /// Bytes that it has charged and could not lease.
    wanted_bytes: AtomicU64,
    /// It has been asked to shed and has not looked into it yet.
    is_asked: AtomicBool,
    /// It has nothing to give, until it takes more.
    gives_nothing: AtomicBool,
    /// Somebody has its reserve.
    is_taken: AtomicBool,
}

impl SharedBudget {
    /// A budget of `limit_bytes` for `workers` workers.
    #[must_use]
    pub fn new(limit_bytes: u64, workers: usize) -> Arc<Self> {
        let share_bytes = limit_bytes / workers.max(1) as u64;
        Self::for_events_of(EVENT_BYTES.min(share_bytes / 3), limit_bytes, workers)
    }

    /// As [`SharedBudget::new`], where no event adds more than `event_bytes`.
    #[must_use]
    pub fn for_events_of(event_bytes: u64, limit_bytes: u64, workers: usize) -> Arc<Self> {
        // With others, a worker goes on while one of them is asked to pay.
        let headroom_bytes = if workers > 1 { 2 * event_bytes } else { event_bytes };
        let pool_bytes = limit_bytes.saturating_sub(headroom_bytes * workers as u64);
        let reserve_bytes = pool_bytes / workers.max(1) as u64 / 2;
        Arc::new(Self {
            limit_bytes,
            event_bytes,
            headroom_bytes,
            pool_bytes,
            reserve_bytes,
            // No worker comes too late for its reserve, whatever those before it take in.
            leased_bytes: AtomicU64::new(reserve_bytes * workers as u64),
            workers: (0..workers).map(|_| Standing::default()).collect(),
        })
    }

    /// The limit, in bytes.
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// What may be leased in all: the limit less the headrooms.
    #[must_use]
    pub fn pool_bytes(&self) -> u64 {
        self.pool_bytes
    }

    /// Bytes that each worker may charge beyond what it leases.
    #[must_use]
    pub fn headroom_bytes(&self) -> u64 {
        self.headroom_bytes
    }

    /// Bytes that the workers hold leases for: what they have charged, rounded up to chunks, and at
    /// least their reserves.
    #[must_use]
    pub fn leased_bytes(&self) -> u64 {
        self.leased_bytes.load(Ordering::Relaxed)
    }

    /// What one event may add.
    pub(crate) fn event_bytes(&self) -> u64 {
        self.event_bytes
    }

    /// For how many workers it was made.
    pub(crate) fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Whether less is left to lease than the workers want.
    pub(crate) fn is_short(&self) -> bool {
        let wanted = self.workers.iter().map(|w| w.wanted_bytes.load(Ordering::Relaxed));
        wanted.sum::<u64>() > self.pool_bytes.saturating_sub(self.leased_bytes())
    }

    /// Gives a worker its reserve; nothing if somebody has it.
    pub(crate) fn take_reserve(&self, worker: usize) -> u64 {
        let standing = self.workers.get(worker);
        let is_free = standing.is_some_and(|w| !w.is_taken.swap(true, Ordering::Relaxed));
        if is_free { self.reserve_bytes } else { 0 }
    }

    /// Takes back the reserve of a worker that has it.
    pub(crate) fn leave_reserve(&self, worker: usize) {
        self.with(worker, |standing| standing.is_taken.store(false, Ordering::Relaxed));
    }

    /// Leases `bytes`, or nothing.
    pub(crate) fn lease(&self, bytes: u64) -> bool {
        self.leased_bytes
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |leased| {
                let leased = leased.checked_add(bytes)?;
                (leased <= self.pool_bytes).then_some(leased)
            })
            .is_ok()
    }

    /// Leases `bytes` or what is left; returns how much that was.
    pub(crate) fn lease_up_to(&self, bytes: u64) -> u64 {
        let before = self.leased_bytes.try_update(Ordering::Relaxed, Ordering::Relaxed, |leased| {
            let taken = bytes.min(self.pool_bytes.saturating_sub(leased));
            (taken > 0).then_some(leased + taken)
        });
        before.map_or(0, |before| bytes.min(self.pool_bytes.saturating_sub(before)))
    }

    /// Takes back what was leased.
    pub(crate) fn give_back(&self, bytes: u64) {
        self.leased_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A worker leases so much beyond its reserve.
    pub(crate) fn set_beyond(&self, worker: usize, bytes: u64) {
        self.with(worker, |standing| standing.beyond_bytes.store(bytes, Ordering::Relaxed));
    }

    /// A worker has charged so much that it could not lease.
    pub(crate) fn set_wanted(&self, worker: usize, bytes: u64) {
        self.with(worker, |standing| standing.wanted_bytes.store(bytes, Ordering::Relaxed));
    }

    /// The largest backlog of a worker is of this size class.
    pub(crate) fn set_largest_class(&self, worker: usize, class: u32) {
        self.with(worker, |standing| standing.largest_class.store(class, Ordering::Relaxed));
    }

    /// It is no use to ask a worker, or it is again.
    pub(crate) fn set_gives_nothing(&self, worker: usize, gives_nothing: bool) {
        self.with(worker, |standing| {
            standing.gives_nothing.store(gives_nothing, Ordering::Relaxed)
        });
    }

    /// Notes that a worker is asked to shed; false if it was asked before and has not looked into it
    /// yet.
    pub(crate) fn ask(&self, worker: usize) -> bool {
        let standing = self.workers.get(worker);
        standing.is_some_and(|standing| !standing.is_asked.swap(true, Ordering::Relaxed))
    }

    /// A worker looks into what it was asked: the next request may be sent.
    pub(crate) fn take_request(&self, worker: usize) {
        self.with(worker, |standing| standing.is_asked.store(false, Ordering::Relaxed));
    }

    /// The workers but `asking` that hold something beyond their reserves, and may have something to
    /// give: the class of the largest backlog of each, and its number.
    pub(crate) fn beyond_reserves(&self, asking: usize) -> impl Iterator<Item = (u32, usize)> {
        let others = self.workers.iter().enumerate().filter(move |(worker, standing)| {
            *worker != asking
                && standing.beyond_bytes.load(Ordering::Relaxed) > 0
                && !standing.gives_nothing.load(Ordering::Relaxed)
        });
        others.map(|(worker, standing)| (standing.largest_class.load(Ordering::Relaxed), worker))
    }

    #[inline]
    fn with(&self, worker: usize, change: impl FnOnce(&Standing)) {
        if let Some(standing) = self.workers.get(worker) {
            change(standing);
        }
    }
}
