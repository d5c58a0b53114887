//! The shard of the registry that one worker owns: which server-ids are held, by whom, in grace
//! since when, and with which phones (PROTOCOL.md, chapter 3).
//!
//! An id that is not in the shard is *free*. A free id has no phones and no timer.
//!
//! # Invariants
//!
//! - The timer of an id is armed while the id is in grace or its holder is probed, and only then.
//! - The counts of binaries and phones are those of the entries.
//! - Whoever names an entry names one that exists: a connection that has a part in an id leaves
//!   before the id is free.

use super::Key;
use super::faults::Faults;
use super::invariants::broken;
use super::timers::{Millis, NEVER, TimerId, Wheel};
use super::wakes::WakeAllowance;
use crate::metrics::{Series, WorkerMetrics};
use crate::protocol::ids::ServerId;
use ahash::RandomState;
use slab::Slab;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Names an entry of the shard while the id is held or in grace. Connections keep it, so that a
/// frame finds its way without hashing the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryKey(pub u32);

/// A phone's place among the phones of its id. Another may move there when it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat(pub(super) u32);

/// A newcomer's place in the order of claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimId(pub(super) u64);

/// Who holds an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tenure {
    /// A living connection of the binary.
    Held(Key),
    /// Nobody since the holder left; reclaimable until the entry's timer fires.
    Grace,
    /// A living connection, which has until the entry's timer fires to prove it; `newcomers` wait,
    /// longest waiting first, and there is at least one.
    Probed {
        /// The incumbent that is being pinged.
        holder: Key,
        /// Connections that claim the id.
        newcomers: BTreeMap<ClaimId, Key>,
    },
}

/// A server-id that is not free.
pub struct Entry {
    /// The id.
    pub id: ServerId,
    /// Who holds it.
    pub tenure: Tenure,
    /// Phones that are registered under the id.
    pub phones: Vec<Key>,
    /// Ends grace, or the probe.
    timer: TimerId,
    /// Phones that have sent something while the holder's outbox was full, and may not be read on.
    /// Some may have left since.
    pub congested: Vec<Key>,
    /// What its binary may still ask for.
    pub wakes: WakeAllowance,
    /// What its binary's messages did wrong.
    pub faults: Faults,
}

impl Entry {
    /// The living connection that frames go to, if there is one.
    #[must_use]
    pub fn holder(&self) -> Option<Key> {
        match self.tenure {
            Tenure::Held(holder) | Tenure::Probed { holder, .. } => Some(holder),
            Tenure::Grace => None,
        }
    }
}

/// What a claim came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    /// The id was free and is the claimant's now.
    Granted,
    /// The id was in grace and is the claimant's now; these phones belonged to the connection
    /// before it and are no longer registered.
    Reclaimed(Vec<Key>),
    /// The id has a holder; the claimant waits while it is probed.
    Waiting {
        /// The incumbent.
        holder: Key,
        /// No probe was under way: ping the holder.
        first: bool,
        /// Names the claim until it is decided or withdrawn.
        claim_id: ClaimId,
    },
}

/// What a phone's registration came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Registration {
    /// The phone is registered.
    Registered(EntryKey, Seat),
    /// Nobody holds the id, and it is not in grace.
    NoServer,
    /// The id has as many phones as it may have.
    AtCap,
}

/// What the departure of a holder came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Departure {
    /// It held the id, which is now in grace.
    Grace,
    /// It held the id while others claimed it: the first of them has it now.
    Takeover(Takeover),
    /// It did not hold the id.
    NotHolder,
}

/// A newcomer has taken an id that was held.
#[derive(Debug, PartialEq, Eq)]
pub struct Takeover {
    /// The new holder.
    pub winner: Key,
    /// Other claimants, who came later.
    pub losers: Vec<Key>,
    /// Phones of the connection before; no longer registered.
    pub phones: Vec<Key>,
}

/// A server-id that comes from another process.
pub struct Restored {
    /// The id.
    pub id: ServerId,
    /// Who holds it.
    pub tenure: Tenure,
    /// When grace or the probe ends, else [`NEVER`].
    pub due: Millis,
    /// Its phones, by their seats.
    pub phones: Vec<Key>,
    /// As [`Entry::congested`].
    pub congested: Vec<Key>,
    /// As [`Entry::wakes`].
    pub wakes: WakeAllowance,
    /// As [`Entry::faults`].
    pub faults: Faults,
}

/// What is wrong where an entry is named that does not exist.
const FREE: &str = "a server-id is named that is free";

/// The shard. All its operations are plain bookkeeping; effects are the caller's.
pub struct Registry {
    by_id: HashMap<ServerId, EntryKey, RandomState>,
    entries: Slab<Entry>,
    timers: Wheel<EntryKey>,
    counters: Arc<WorkerMetrics>,
    max_phones: usize,
    /// Claims that had to wait so far.
    claims: u64,
    /// Ids that are held.
    binaries: u64,
    /// Phones of all ids.
    phones: u64,
}

impl Registry {
    /// An empty shard. `hasher` is seeded at random: ids are chosen by peers.
    #[must_use]
    pub fn new(hasher: RandomState, max_phones: usize, counters: Arc<WorkerMetrics>) -> Self {
        Self {
            by_id: HashMap::with_hasher(hasher),
            entries: Slab::new(),
            timers: Wheel::default(),
            counters,
            max_phones,
            claims: 0,
            binaries: 0,
            phones: 0,
        }
    }

    /// What the map of ids makes of `id`.
    #[cfg(test)]
    pub(super) fn hash_of(&self, id: &ServerId) -> u64 {
        std::hash::BuildHasher::hash_one(self.by_id.hasher(), id)
    }

    /// Lets this many phones in for each id from now on; those that are there stay.
    pub fn set_max_phones(&mut self, max_phones: usize) {
        self.max_phones = max_phones;
    }

    /// The entry that a connection's stage or a timer names.
    #[must_use]
    #[inline]
    pub fn entry(&self, key: EntryKey) -> Option<&Entry> {
        let entry = self.entries.get(key.0 as usize);
        if entry.is_none() {
            self.broken();
        }
        entry
    }

    /// As [`Registry::entry`].
    #[inline]
    pub fn entry_mut(&mut self, key: EntryKey) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(key.0 as usize);
        if entry.is_none() {
            broken(&self.counters, FREE);
        }
        entry
    }

    #[cold]
    fn broken(&self) {
        broken(&self.counters, FREE);
    }

    /// The living connection that frames go to, if there is one.
    #[must_use]
    #[inline]
    pub fn holder(&self, key: EntryKey) -> Option<Key> {
        self.entry(key).and_then(Entry::holder)
    }

    /// The id, as it stands in logs.
    #[must_use]
    pub fn name(&self, key: EntryKey) -> Option<&str> {
        self.entry(key).map(|entry| entry.id.as_str())
    }

    /// How many ids are held or in grace.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Keys of entries are less than this.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.entries.capacity()
    }

    /// Whether every id is free.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many timers there are: one for each id that is not free.
    #[must_use]
    pub fn timers(&self) -> usize {
        self.timers.len()
    }

    /// When [`Registry::pop_expired`] should be asked next.
    #[must_use]
    pub fn next_wake_ms(&self) -> Option<Millis> {
        self.timers.next_wake_ms()
    }

    /// An id whose grace or probe is over.
    pub fn pop_expired(&mut self, now: Millis) -> Option<EntryKey> {
        self.timers.pop_expired(now)
    }

    /// Publishes how many binaries and phones there are.
    pub fn publish_counts(&self) {
        self.counters.set(Series::ConnectedBinaries, self.binaries);
        self.counters.set(Series::ConnectedPhones, self.phones);
    }

    /// Claims `id` for `claimant`. If that has to wait, the holder is probed until `probe_due`.
    pub fn claim(&mut self, id: &ServerId, claimant: Key, probe_due: Millis) -> (EntryKey, Claim) {
        if let Some(key) = self.by_id.get(id).copied()
            && let Some(entry) = self.entries.get_mut(key.0 as usize)
        {
            self.claims += 1;
            let claim_id = ClaimId(self.claims);
            let claim = match &mut entry.tenure {
                Tenure::Grace => {
                    entry.tenure = Tenure::Held(claimant);
                    entry.congested = Vec::new();
                    self.timers.arm_at(entry.timer, NEVER);
                    self.binaries += 1;
                    let phones = std::mem::take(&mut entry.phones);
                    self.phones -= phones.len() as u64;
                    Claim::Reclaimed(phones)
                }
                Tenure::Held(holder) => {
                    let holder = *holder;
                    let newcomers = BTreeMap::from([(claim_id, claimant)]);
                    entry.tenure = Tenure::Probed { holder, newcomers };
                    self.timers.arm_at(entry.timer, probe_due);
                    Claim::Waiting { holder, first: true, claim_id }
                }
                Tenure::Probed { holder, newcomers } => {
                    newcomers.insert(claim_id, claimant);
                    Claim::Waiting { holder: *holder, first: false, claim_id }
                }
            };
            return (key, claim);
        }
        (self.grant(id, claimant), Claim::Granted)
    }

    fn grant(&mut self, id: &ServerId, claimant: Key) -> EntryKey {
        let vacant = self.entries.vacant_entry();
        let key = EntryKey(vacant.key() as u32);
        vacant.insert(Entry {
            id: id.clone(),
            tenure: Tenure::Held(claimant),
            phones: Vec::new(),
            timer: self.timers.add(key),
            congested: Vec::new(),
            wakes: WakeAllowance::default(),
            faults: Faults::default(),
        });
        self.by_id.insert(id.clone(), key);
        self.binaries += 1;
        key
    }

    /// Registers a phone. An id in grace lets phones in.
    pub fn register(&mut self, id: &ServerId, phone: Key) -> Registration {
        let Some(key) = self.by_id.get(id).copied() else { return Registration::NoServer };
        let max_phones = self.max_phones;
        let Some(entry) = self.entry_mut(key) else { return Registration::NoServer };
        if entry.phones.len() >= max_phones {
            return Registration::AtCap;
        }
        let seat = Seat(entry.phones.len() as u32);
        entry.phones.push(phone);
        self.phones += 1;
        Registration::Registered(key, seat)
    }

    /// Forgets a phone; its slot is free at once. Another one may move to its seat: then that is
    /// returned, and must be told. O(1).
    pub fn unregister(&mut self, key: EntryKey, phone: Key, seat: Seat) -> Option<Key> {
        let entry = self.entry_mut(key)?;
        let index = seat.0 as usize;
        if entry.phones.get(index) != Some(&phone) {
            broken(&self.counters, "a phone leaves a place that is not its own");
            return None;
        }
        entry.phones.swap_remove(index);
        if entry.phones.is_empty() {
            entry.phones = Vec::new();
        }
        let moved = entry.phones.get(index).copied();
        self.phones -= 1;
        moved
    }

    /// The connection of a binary is gone. If it held the id alone, that is in grace until
    /// `grace_due`.
    pub fn depart(&mut self, key: EntryKey, binary: Key, grace_due: Millis) -> Departure {
        let Some(entry) = self.entry_mut(key) else { return Departure::NotHolder };
        match &mut entry.tenure {
            Tenure::Held(holder) if *holder == binary => {
                entry.tenure = Tenure::Grace;
                let timer = entry.timer;
                self.timers.arm_at(timer, grace_due);
                self.binaries -= 1;
                Departure::Grace
            }
            Tenure::Probed { holder, .. } if *holder == binary => {
                self.take_over(key).map_or(Departure::NotHolder, Departure::Takeover)
            }
            // A newcomer has taken it over.
            Tenure::Held(_) | Tenure::Probed { .. } | Tenure::Grace => Departure::NotHolder,
        }
    }

    /// A newcomer is gone, perhaps because its claim was decided. If it was the only one, the probe
    /// is over. O(log newcomers).
    pub fn withdraw(&mut self, key: EntryKey, claim_id: ClaimId) {
        let Some(entry) = self.entry_mut(key) else { return };
        let Tenure::Probed { holder, newcomers } = &mut entry.tenure else { return };
        if newcomers.remove(&claim_id).is_some() && newcomers.is_empty() {
            entry.tenure = Tenure::Held(*holder);
            let timer = entry.timer;
            self.timers.arm_at(timer, NEVER);
        }
    }

    /// All ids that are held or in grace, and when the timer of each fires.
    pub fn iter(&self) -> impl Iterator<Item = (&Entry, Millis)> {
        self.entries.iter().map(|(_, entry)| (entry, self.timers.deadline_ms(entry.timer)))
    }

    /// The name of the entry that [`Registry::restore`] takes in next.
    #[must_use]
    pub fn next_key(&self) -> EntryKey {
        EntryKey(self.entries.vacant_key() as u32)
    }

    /// Takes in an id of another process, which is free here, with the phones of these seats.
    pub fn restore(&mut self, restored: Restored) {
        let Restored { id, tenure, due, phones, congested, wakes, faults } = restored;
        let key = self.next_key();
        let timer = self.timers.add(key);
        self.timers.arm_at(timer, due);
        self.phones += phones.len() as u64;
        let entry = Entry { id, tenure, phones, timer, congested, wakes, faults };
        self.binaries += u64::from(entry.holder().is_some());
        if let Tenure::Probed { newcomers, .. } = &entry.tenure {
            let last = newcomers.last_key_value().map_or(0, |(claim_id, _)| claim_id.0);
            self.claims = self.claims.max(last);
        }
        self.by_id.insert(entry.id.clone(), key);
        self.entries.insert(entry);
    }

    /// Whether nobody has this id: it is neither held nor in grace.
    #[must_use]
    pub fn is_free(&self, id: &ServerId) -> bool {
        !self.by_id.contains_key(id)
    }

    /// Whether the holder of an id is to prove that it lives.
    #[must_use]
    #[inline]
    pub fn is_probed(&self, key: EntryKey) -> bool {
        self.entry(key).is_some_and(|entry| matches!(entry.tenure, Tenure::Probed { .. }))
    }

    /// The holder has proved that it lives: ends the probe, if there is one, and returns the
    /// newcomers, who lose.
    pub fn holder_lives(&mut self, key: EntryKey) -> Vec<Key> {
        let Some(entry) = self.entry_mut(key) else { return Vec::new() };
        let Tenure::Probed { holder, newcomers } = &mut entry.tenure else { return Vec::new() };
        let (holder, newcomers) = (*holder, std::mem::take(newcomers));
        entry.tenure = Tenure::Held(holder);
        let timer = entry.timer;
        self.timers.arm_at(timer, NEVER);
        newcomers.into_values().collect()
    }

    /// The holder was silent, or is gone: the newcomer that has waited longest takes the id. `None`
    /// if nobody claims it.
    pub fn take_over(&mut self, key: EntryKey) -> Option<Takeover> {
        let entry = self.entry_mut(key)?;
        let Tenure::Probed { newcomers, .. } = &mut entry.tenure else { return None };
        let mut waiting = std::mem::take(newcomers).into_values();
        let Some(winner) = waiting.next() else {
            broken(&self.counters, "a holder is probed for nobody");
            return None;
        };
        entry.tenure = Tenure::Held(winner);
        entry.congested = Vec::new();
        let (timer, phones) = (entry.timer, std::mem::take(&mut entry.phones));
        self.timers.arm_at(timer, NEVER);
        self.phones -= phones.len() as u64;
        Some(Takeover { winner, losers: waiting.collect(), phones })
    }

    /// Frees an id whose grace has run out; `None` if it is not in grace.
    pub fn expire(&mut self, key: EntryKey) -> Option<Entry> {
        if self.entry(key)?.tenure != Tenure::Grace {
            return None;
        }
        self.remove(key)
    }

    /// Frees an id at once, without grace. Its connections are the caller's.
    pub fn remove(&mut self, key: EntryKey) -> Option<Entry> {
        let entry = self.entries.try_remove(key.0 as usize)?;
        self.timers.remove(entry.timer);
        self.by_id.remove(&entry.id);
        self.phones -= entry.phones.len() as u64;
        self.binaries -= u64::from(entry.holder().is_some());
        if self.entries.is_empty() {
            self.entries.shrink_to_fit();
            self.by_id.shrink_to_fit();
        }
        Some(entry)
    }

    /// Forgets everything, without grace: the process is shutting down.
    pub fn clear(&mut self) -> impl Iterator<Item = Entry> + use<> {
        self.by_id.clear();
        self.binaries = 0;
        self.phones = 0;
        self.timers = Wheel::default();
        std::mem::take(&mut self.entries).into_iter().map(|(_, entry)| entry)
    }

    /// What does not hold of the invariants. O(phones), for tests.
    ///
    /// # Errors
    ///
    /// The invariant that is broken, in words.
    pub fn check(&self) -> Result<(), String> {
        let held = self.entries.iter().filter(|(_, entry)| entry.holder().is_some()).count();
        let phones: usize = self.entries.iter().map(|(_, entry)| entry.phones.len()).sum();
        let counted = (self.binaries as usize, self.phones as usize);
        if counted != (held, phones) {
            return Err(format!(
                "{counted:?} are counted, {held} binaries and {phones} phones are there"
            ));
        }
        let timers = (self.by_id.len(), self.timers.len(), self.entries.len());
        if timers.0 != timers.2 || timers.1 != timers.2 {
            return Err(format!("ids, timers and entries differ: {timers:?}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    const PROBE_DUE: Millis = 5000;
    const GRACE_DUE: Millis = 30_000;

    struct Shard(Registry);

    impl Shard {
        fn new() -> Self {
            Self(Registry::new(RandomState::new(), 2, Metrics::new(1).worker(0)))
        }
        fn claim(&mut self, id: &str, key: u32) -> (EntryKey, Claim) {
            let id = ServerId::from_header(id.as_bytes()).unwrap();
            self.0.claim(&id, Key(key), PROBE_DUE)
        }
        fn depart(&mut self, entry: EntryKey, key: u32) -> Departure {
            self.0.depart(entry, Key(key), GRACE_DUE)
        }
        /// When the timer fires of the one id that has one; nothing may fire before that.
        fn due(&mut self) -> Option<Millis> {
            self.0.check().unwrap();
            (0..=GRACE_DUE).step_by(8).find(|now| self.0.pop_expired(*now).is_some())
        }
        fn register(&mut self, id: &str, key: u32) -> Registration {
            self.0.register(&ServerId::from_header(id.as_bytes()).unwrap(), Key(key))
        }
    }

    #[test]
    fn a_claim_goes_by_the_state_of_the_id() {
        let mut shard = Shard::new();
        let (entry, claim) = shard.claim("a", 1);
        assert_eq!(claim, Claim::Granted);
        assert_eq!(shard.claim("b", 2).1, Claim::Granted);
        let (holder, claim_id) = (Key(1), ClaimId(1));
        assert_eq!(shard.claim("a", 3).1, Claim::Waiting { holder, first: true, claim_id });
        let claim_id = ClaimId(2);
        assert_eq!(shard.claim("a", 4).1, Claim::Waiting { holder, first: false, claim_id });
        assert_eq!(shard.0.holder_lives(entry), [Key(3), Key(4)]);
        assert_eq!(shard.register("a", 5), Registration::Registered(entry, Seat(0)));
        assert_eq!(shard.depart(entry, 1), Departure::Grace);
        assert_eq!(shard.claim("a", 6).1, Claim::Reclaimed(vec![Key(5)]));
        assert_eq!(shard.0.entry(entry).unwrap().holder(), Some(Key(6)));
    }

    #[test]
    fn the_longest_waiting_newcomer_takes_over() {
        let mut shard = Shard::new();
        let (entry, _) = shard.claim("a", 1);
        assert_eq!(shard.register("a", 9), Registration::Registered(entry, Seat(0)));
        for newcomer in 2..=4 {
            shard.claim("a", newcomer);
        }
        shard.0.withdraw(entry, ClaimId(1));
        assert!(shard.0.is_probed(entry), "the probe goes on");
        let takeover = Takeover { winner: Key(3), losers: vec![Key(4)], phones: vec![Key(9)] };
        assert_eq!(shard.depart(entry, 1), Departure::Takeover(takeover));
        assert_eq!(shard.depart(entry, 1), Departure::NotHolder);
        assert_eq!(shard.0.entry(entry).unwrap().tenure, Tenure::Held(Key(3)));
    }

    #[test]
    fn a_lonely_newcomer_that_leaves_ends_the_probe() {
        let mut shard = Shard::new();
        let (entry, _) = shard.claim("a", 1);
        shard.claim("a", 2);
        assert!(shard.0.is_probed(entry));
        shard.0.withdraw(entry, ClaimId(1));
        assert!(!shard.0.is_probed(entry));
        shard.0.withdraw(entry, ClaimId(1));
        assert_eq!(shard.0.take_over(entry), None);
        assert_eq!(shard.depart(entry, 1), Departure::Grace);
    }

    #[test]
    fn phones_need_an_id_and_a_slot() {
        let mut shard = Shard::new();
        assert_eq!(shard.register("a", 1), Registration::NoServer);
        let (entry, _) = shard.claim("a", 2);
        assert_eq!(shard.register("a", 3), Registration::Registered(entry, Seat(0)));
        shard.depart(entry, 2);
        assert_eq!(shard.register("a", 4), Registration::Registered(entry, Seat(1)));
        assert_eq!(shard.register("a", 5), Registration::AtCap);
        assert_eq!(shard.0.unregister(entry, Key(3), Seat(0)), Some(Key(4)), "it moves up");
        assert_eq!(shard.register("a", 5), Registration::Registered(entry, Seat(1)));
        assert_eq!(shard.0.expire(entry).unwrap().phones.len(), 2);
        assert_eq!(shard.register("a", 6), Registration::NoServer);
        assert!(shard.0.is_empty());
    }

    #[test]
    fn only_grace_expires() {
        let mut shard = Shard::new();
        let (entry, _) = shard.claim("a", 1);
        assert!(shard.0.expire(entry).is_none());
    }

    #[test]
    fn a_timer_is_armed_in_grace_and_while_the_holder_is_probed() {
        let mut shard = Shard::new();
        let (entry, _) = shard.claim("a", 1);
        assert_eq!(shard.due(), None);
        let probed = || {
            let mut shard = Shard::new();
            shard.claim("a", 1);
            shard.claim("a", 2);
            shard
        };
        assert_eq!(probed().due(), Some(PROBE_DUE));
        let ends: [fn(&mut Registry, EntryKey); 4] = [
            |shard, entry| shard.withdraw(entry, ClaimId(1)),
            |shard, entry| drop(shard.holder_lives(entry)),
            |shard, entry| drop(shard.take_over(entry)),
            |shard, _| drop(shard.clear()),
        ];
        for end in ends {
            let mut shard = probed();
            end(&mut shard.0, entry);
            assert_eq!(shard.due(), None);
        }
        let mut shard = Shard::new();
        shard.claim("a", 1);
        shard.depart(entry, 1);
        assert_eq!(shard.due(), Some(GRACE_DUE));
        shard.claim("a", 2);
        assert_eq!(shard.due(), None, "it came back");
    }
}
