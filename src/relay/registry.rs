//! The shard of the registry that one worker owns: which server-ids are held, by whom, in grace
//! since when, and with which phones (PROTOCOL.md, chapter 3).
//!
//! An id that is not in the shard is *free*. A free id has no phones and no timer.

use super::Key;
use super::faults::Faults;
use super::timers::TimerId;
use super::wakes::WakeAllowance;
use crate::protocol::ids::ServerId;
use ahash::RandomState;
use slab::Slab;
use std::collections::{BTreeMap, HashMap};

/// Names an entry of the shard while the id is held or in grace. Connections keep it, so that a
/// frame finds its way without hashing the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryKey(pub u32);

/// A phone's place among the phones of its id. Another may move there when it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat(u32);

/// A newcomer's place in the order of claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimId(u64);

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
    /// Ends grace, or the probe. Not armed while the id is simply held.
    pub timer: TimerId,
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
        /// No probe was under way: ping the holder and arm the timer.
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
    /// It held the id, which is now in grace: arm the timer.
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

/// The shard. All its operations are plain bookkeeping; effects are the caller's.
pub struct Registry {
    by_id: HashMap<ServerId, EntryKey, RandomState>,
    entries: Slab<Entry>,
    max_phones: usize,
    /// Claims that had to wait so far.
    claims: u64,
}

impl Registry {
    /// An empty shard. `hasher` is seeded at random per process: ids are chosen by peers.
    #[must_use]
    pub fn new(hasher: RandomState, max_phones: usize) -> Self {
        Self { by_id: HashMap::with_hasher(hasher), entries: Slab::new(), max_phones, claims: 0 }
    }

    /// Lets this many phones in for each id from now on; those that are there stay.
    pub fn set_max_phones(&mut self, max_phones: usize) {
        self.max_phones = max_phones;
    }

    /// The entry of an id.
    #[must_use]
    pub fn entry(&self, key: EntryKey) -> Option<&Entry> {
        self.entries.get(key.0 as usize)
    }

    /// The entry of an id.
    pub fn entry_mut(&mut self, key: EntryKey) -> Option<&mut Entry> {
        self.entries.get_mut(key.0 as usize)
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

    /// Claims `id` for `claimant`. `add_timer` makes the timer of an id that was free.
    pub fn claim(
        &mut self,
        id: &ServerId,
        claimant: Key,
        add_timer: impl FnOnce(EntryKey) -> TimerId,
    ) -> (EntryKey, Claim) {
        if let Some(key) = self.by_id.get(id).copied()
            && let Some(entry) = self.entries.get_mut(key.0 as usize)
        {
            self.claims += 1;
            let claim_id = ClaimId(self.claims);
            let claim = match &mut entry.tenure {
                Tenure::Grace => {
                    entry.tenure = Tenure::Held(claimant);
                    entry.congested = Vec::new();
                    Claim::Reclaimed(std::mem::take(&mut entry.phones))
                }
                Tenure::Held(holder) => {
                    let holder = *holder;
                    let newcomers = BTreeMap::from([(claim_id, claimant)]);
                    entry.tenure = Tenure::Probed { holder, newcomers };
                    Claim::Waiting { holder, first: true, claim_id }
                }
                Tenure::Probed { holder, newcomers } => {
                    newcomers.insert(claim_id, claimant);
                    Claim::Waiting { holder: *holder, first: false, claim_id }
                }
            };
            return (key, claim);
        }
        let vacant = self.entries.vacant_entry();
        let key = EntryKey(vacant.key() as u32);
        vacant.insert(Entry {
            id: id.clone(),
            tenure: Tenure::Held(claimant),
            phones: Vec::new(),
            timer: add_timer(key),
            congested: Vec::new(),
            wakes: WakeAllowance::default(),
            faults: Faults::default(),
        });
        self.by_id.insert(id.clone(), key);
        (key, Claim::Granted)
    }

    /// Registers a phone. An id in grace lets phones in.
    pub fn register(&mut self, id: &ServerId, phone: Key) -> Registration {
        let Some(key) = self.by_id.get(id).copied() else { return Registration::NoServer };
        let Some(entry) = self.entries.get_mut(key.0 as usize) else {
            return Registration::NoServer;
        };
        if entry.phones.len() >= self.max_phones {
            return Registration::AtCap;
        }
        let seat = Seat(entry.phones.len() as u32);
        entry.phones.push(phone);
        Registration::Registered(key, seat)
    }

    /// Forgets a phone; its slot is free at once. Another one may move to its seat: then that is
    /// returned, and must be told. O(1).
    pub fn unregister(&mut self, key: EntryKey, phone: Key, seat: Seat) -> Option<Key> {
        let entry = self.entry_mut(key)?;
        let index = seat.0 as usize;
        // Nobody sits there, or someone else, if all phones were forgotten at once.
        if entry.phones.get(index) != Some(&phone) {
            return None;
        }
        entry.phones.swap_remove(index);
        if entry.phones.is_empty() {
            entry.phones = Vec::new();
        }
        entry.phones.get(index).copied()
    }

    /// The connection of a binary that held the id is gone.
    pub fn depart(&mut self, key: EntryKey, binary: Key) -> Departure {
        let Some(entry) = self.entry_mut(key) else { return Departure::NotHolder };
        match &mut entry.tenure {
            Tenure::Held(holder) if *holder == binary => {
                entry.tenure = Tenure::Grace;
                Departure::Grace
            }
            Tenure::Probed { holder, .. } if *holder == binary => {
                self.take_over(key).map_or(Departure::NotHolder, Departure::Takeover)
            }
            Tenure::Held(_) | Tenure::Probed { .. } | Tenure::Grace => Departure::NotHolder,
        }
    }

    /// A newcomer is gone before its claim was decided. True if it was the only one: the probe is
    /// over, disarm the timer. O(log newcomers).
    pub fn withdraw(&mut self, key: EntryKey, claim_id: ClaimId) -> bool {
        let Some(entry) = self.entry_mut(key) else { return false };
        let Tenure::Probed { holder, newcomers } = &mut entry.tenure else { return false };
        let is_over = newcomers.remove(&claim_id).is_some() && newcomers.is_empty();
        if is_over {
            entry.tenure = Tenure::Held(*holder);
        }
        is_over
    }

    /// The holder has proved that it lives: ends the probe and returns the newcomers, who lose.
    pub fn holder_lives(&mut self, key: EntryKey) -> Vec<Key> {
        let Some(entry) = self.entry_mut(key) else { return Vec::new() };
        match &mut entry.tenure {
            Tenure::Probed { holder, newcomers } => {
                let (holder, newcomers) = (*holder, std::mem::take(newcomers));
                entry.tenure = Tenure::Held(holder);
                newcomers.into_values().collect()
            }
            _ => Vec::new(),
        }
    }

    /// The holder was silent, or is gone: the newcomer that has waited longest takes the id.
    pub fn take_over(&mut self, key: EntryKey) -> Option<Takeover> {
        let entry = self.entry_mut(key)?;
        let Tenure::Probed { newcomers, .. } = &mut entry.tenure else { return None };
        let mut waiting = std::mem::take(newcomers).into_values();
        let winner = waiting.next()?;
        entry.tenure = Tenure::Held(winner);
        entry.congested = Vec::new();
        let phones = std::mem::take(&mut entry.phones);
        Some(Takeover { winner, losers: waiting.collect(), phones })
    }

    /// Frees an id whose grace has run out; `None` if it is not in grace.
    pub fn expire(&mut self, key: EntryKey) -> Option<Entry> {
        let entry = self.entry(key)?;
        if entry.tenure != Tenure::Grace {
            return None;
        }
        self.remove(key)
    }

    /// Frees an id at once, without grace. Its timer and its connections are the caller's.
    pub fn remove(&mut self, key: EntryKey) -> Option<Entry> {
        let entry = self.entries.try_remove(key.0 as usize)?;
        self.by_id.remove(&entry.id);
        if self.entries.is_empty() {
            self.entries.shrink_to_fit();
            self.by_id.shrink_to_fit();
        }
        Some(entry)
    }

    /// Forgets everything, without grace: the process is shutting down. The entries' timers are
    /// the caller's to remove.
    pub fn clear(&mut self) -> impl Iterator<Item = Entry> + use<> {
        self.by_id.clear();
        std::mem::take(&mut self.entries).into_iter().map(|(_, entry)| entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::timers::Wheel;

    struct Shard(Registry, Wheel<EntryKey>);

    impl Shard {
        fn new() -> Self {
            Self(Registry::new(RandomState::new(), 2), Wheel::default())
        }
        fn claim(&mut self, id: &str, key: u32) -> (EntryKey, Claim) {
            let id = ServerId::from_header(id.as_bytes()).unwrap();
            self.0.claim(&id, Key(key), |entry| self.1.add(entry))
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
        assert_eq!(shard.0.depart(entry, Key(1)), Departure::Grace);
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
        assert!(!shard.0.withdraw(entry, ClaimId(1)), "the probe goes on");
        let takeover = Takeover { winner: Key(3), losers: vec![Key(4)], phones: vec![Key(9)] };
        assert_eq!(shard.0.depart(entry, Key(1)), Departure::Takeover(takeover));
        assert_eq!(shard.0.depart(entry, Key(1)), Departure::NotHolder);
        assert_eq!(shard.0.entry(entry).unwrap().tenure, Tenure::Held(Key(3)));
    }

    #[test]
    fn a_lonely_newcomer_that_leaves_ends_the_probe() {
        let mut shard = Shard::new();
        let (entry, _) = shard.claim("a", 1);
        shard.claim("a", 2);
        assert!(shard.0.withdraw(entry, ClaimId(1)) && !shard.0.withdraw(entry, ClaimId(1)));
        assert_eq!(shard.0.take_over(entry), None);
        assert_eq!(shard.0.depart(entry, Key(1)), Departure::Grace);
    }

    #[test]
    fn phones_need_an_id_and_a_slot() {
        let mut shard = Shard::new();
        assert_eq!(shard.register("a", 1), Registration::NoServer);
        let (entry, _) = shard.claim("a", 2);
        assert_eq!(shard.register("a", 3), Registration::Registered(entry, Seat(0)));
        shard.0.depart(entry, Key(2));
        assert_eq!(shard.register("a", 4), Registration::Registered(entry, Seat(1)));
        assert_eq!(shard.register("a", 5), Registration::AtCap);
        assert_eq!(shard.0.unregister(entry, Key(3), Seat(0)), Some(Key(4)), "it moves up");
        assert_eq!(shard.0.unregister(entry, Key(3), Seat(0)), None, "it is gone already");
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
}
