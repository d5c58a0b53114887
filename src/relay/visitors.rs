//! Connections of a worker that are not upgraded, and which is aborted where there are too many.
//!
//! That is the one that has waited longest: of an address that has most of them, or of all where none
//! has more than one. So an address that opens many only displaces its own, and not a peer whose
//! handshake takes a few round trips.
//!
//! Lists through a slab, and addresses sorted by how many they have: each operation is O(1), and it
//! takes memory for those alone that are there.

use super::Key;
use crate::shared::admission::Address;
use ahash::RandomState;
use slab::Slab;
use std::collections::HashMap;

const NIL: u32 = u32::MAX;

/// A connection's place in the lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VisitId(u32);

impl VisitId {
    /// In no list.
    pub const NONE: Self = Self(NIL);
}

struct Visit {
    key: Key,
    address: Address,
    /// Among all.
    all: Neighbours,
    /// Among those of its address.
    own: Neighbours,
}

#[derive(Clone, Copy)]
struct Neighbours {
    older: u32,
    newer: u32,
}

impl Neighbours {
    const NONE: Self = Self { older: NIL, newer: NIL };
}

/// Which list of a visit's two.
type Which = fn(&mut Visit) -> &mut Neighbours;

struct List {
    oldest: u32,
    newest: u32,
    len: usize,
}

impl List {
    const EMPTY: Self = Self { oldest: NIL, newest: NIL, len: 0 };

    fn append(&mut self, visits: &mut Slab<Visit>, which: Which, id: u32) {
        if let Some(visit) = visits.get_mut(id as usize) {
            *which(visit) = Neighbours { older: self.newest, newer: NIL };
        }
        match visits.get_mut(self.newest as usize) {
            Some(before) => which(before).newer = id,
            None => self.oldest = id,
        }
        self.newest = id;
        self.len += 1;
    }

    fn unlink(&mut self, visits: &mut Slab<Visit>, which: Which, id: u32) {
        let Some(visit) = visits.get_mut(id as usize) else { return };
        let Neighbours { older, newer } = std::mem::replace(which(visit), Neighbours::NONE);
        match visits.get_mut(older as usize) {
            Some(before) => which(before).newer = newer,
            None => self.oldest = newer,
        }
        match visits.get_mut(newer as usize) {
            Some(after) => which(after).older = older,
            None => self.newest = older,
        }
        self.len -= 1;
    }
}

/// What an address has.
struct Holding {
    visits: List,
    /// Where it stands among those that have as many.
    at: usize,
}

/// The lists.
pub struct Visitors {
    visits: Slab<Visit>,
    all: List,
    /// Has an address for as long as it has a visit.
    of_address: HashMap<Address, Holding, RandomState>,
    /// Addresses by how many they have, less one; the last is not empty.
    by_number: Vec<Vec<Address>>,
}

impl Visitors {
    /// Empty. `hasher` must be of random seeds: addresses are chosen by peers.
    #[must_use]
    pub fn new(hasher: RandomState) -> Self {
        let of_address = HashMap::with_hasher(hasher);
        Self { visits: Slab::new(), all: List::EMPTY, of_address, by_number: Vec::new() }
    }

    /// Adds one, the newest.
    pub fn add(&mut self, key: Key, address: Address) -> VisitId {
        let (all, own) = (Neighbours::NONE, Neighbours::NONE);
        let id = self.visits.insert(Visit { key, address, all, own }) as u32;
        self.all.append(&mut self.visits, |visit| &mut visit.all, id);
        self.join(id, address);
        VisitId(id)
    }

    /// All of them with their addresses, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (Key, Address)> {
        let oldest = self.visits.get(self.all.oldest as usize);
        std::iter::successors(oldest, |visit| self.visits.get(visit.all.newer as usize))
            .map(|visit| (visit.key, visit.address))
    }

    /// Takes one out; [`VisitId::NONE`] is in no list.
    pub fn remove(&mut self, VisitId(id): VisitId) {
        if self.visits.contains(id as usize) {
            self.part(id);
            self.all.unlink(&mut self.visits, |visit| &mut visit.all, id);
            self.visits.remove(id as usize);
        }
    }

    /// It turns out to be of this address.
    pub fn name(&mut self, VisitId(id): VisitId, address: Address) {
        if self.visits.contains(id as usize) {
            self.part(id);
            self.join(id, address);
        }
    }

    fn join(&mut self, id: u32, address: Address) {
        if let Some(visit) = self.visits.get_mut(id as usize) {
            visit.address = address;
        }
        let holding =
            self.of_address.entry(address).or_insert(Holding { visits: List::EMPTY, at: 0 });
        let before = holding.visits.len;
        holding.visits.append(&mut self.visits, |visit| &mut visit.own, id);
        self.sort(address, before, before + 1);
    }

    fn part(&mut self, id: u32) {
        let Some(address) = self.visits.get(id as usize).map(|visit| visit.address) else { return };
        let Some(holding) = self.of_address.get_mut(&address) else { return };
        let before = holding.visits.len;
        holding.visits.unlink(&mut self.visits, |visit| &mut visit.own, id);
        self.sort(address, before, before - 1);
        if before == 1 {
            self.of_address.remove(&address);
        }
    }

    /// Puts an address in its place after it has one more or less.
    fn sort(&mut self, address: Address, before: usize, now: usize) {
        let at = self.of_address.get(&address).map_or(0, |holding| holding.at);
        if let Some(alike) = before.checked_sub(1).and_then(|n| self.by_number.get_mut(n)) {
            alike.swap_remove(at);
            let moved = alike.get(at).and_then(|moved| self.of_address.get_mut(moved));
            if let Some(moved) = moved {
                moved.at = at;
            }
        }
        if let Some(number) = now.checked_sub(1) {
            if self.by_number.len() == number {
                self.by_number.push(Vec::new());
            }
            if let (Some(alike), Some(holding)) =
                (self.by_number.get_mut(number), self.of_address.get_mut(&address))
            {
                holding.at = alike.len();
                alike.push(address);
            }
        }
        // At most one: the others held somebody before, and still do.
        self.by_number.pop_if(|most| most.is_empty());
    }

    /// Which one to abort, if at most `most` are allowed, at least one; `None` if there is room.
    #[must_use]
    pub fn eviction_candidate(&self, most: usize) -> Option<Key> {
        if self.all.len <= most.max(1) {
            return None;
        }
        let greedy = self.by_number.last().filter(|_| self.by_number.len() > 1);
        let of_greedy = greedy.and_then(|addresses| self.of_address.get(addresses.first()?));
        let oldest = of_greedy.map_or(self.all.oldest, |holding| holding.visits.oldest);
        self.visits.get(oldest as usize).map(|visit| visit.key)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.visits.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.visits.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn address(number: u8) -> Address {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, number)).into()
    }

    fn visitors() -> Visitors {
        Visitors::new(RandomState::with_seeds(1, 2, 3, 4))
    }

    #[test]
    fn who_dials_most_drives_out_its_own() {
        let mut visitors = visitors();
        let mut there = HashMap::new();
        let mut come = |visitors: &mut Visitors, number: u32, from: u8| {
            there.insert(Key(number), visitors.add(Key(number), address(from)));
            let goes = visitors.eviction_candidate(20);
            if let Some(goes) = goes {
                visitors.remove(there.remove(&goes).unwrap());
            }
            goes
        };
        assert_eq!(come(&mut visitors, 0, 0), None);
        for number in 1..1000 {
            let goes = come(&mut visitors, number, 1 + (number % 3) as u8);
            assert_ne!(goes, Some(Key(0)), "it has waited longest, and has dialled once");
        }
        for number in 1000..1016 {
            let goes = come(&mut visitors, number, (number - 990) as u8).unwrap();
            assert!((980..1000).contains(&goes.0), "{goes:?}");
        }
        assert_eq!(visitors.len(), 20);
        // Where nobody has more than another, who has waited longest goes.
        assert_eq!(come(&mut visitors, 1016, 100), Some(Key(0)));
        assert_eq!(visitors.eviction_candidate(20), None);
        assert!(visitors.eviction_candidate(19).unwrap().0 < 1000);
    }

    proptest! {
        /// Against plain lists.
        #[test]
        fn who_goes_is_the_oldest_of_an_address_that_has_most(
            steps in proptest::collection::vec((0u8..4, any::<usize>(), 0u8..6), 0..200),
            most in 0usize..20,
        ) {
            let mut visitors = visitors();
            // In the order of all, and with the order in which they came to their address.
            let mut plain: Vec<(VisitId, Key, u8, usize)> = Vec::new();
            for (number, (step, which, from)) in steps.into_iter().enumerate() {
                let key = Key(number as u32);
                match (step, plain.len()) {
                    (0, 1..) => {
                        let (id, ..) = plain.remove(which % plain.len());
                        visitors.remove(id);
                    }
                    (1, count @ 1..) => {
                        let visit = &mut plain[which % count];
                        (visit.2, visit.3) = (from, number);
                        visitors.name(visit.0, address(from));
                    }
                    _ => plain.push((visitors.add(key, address(from)), key, from, number)),
                }
                visitors.remove(VisitId::NONE);
                visitors.name(VisitId::NONE, address(0));
                prop_assert_eq!(visitors.len(), plain.len());
                prop_assert_eq!(visitors.is_empty(), plain.is_empty());
                let numbers: Vec<usize> =
                    (0..6).map(|from| plain.iter().filter(|visit| visit.2 == from).count()).collect();
                let addresses = numbers.iter().filter(|number| **number > 0).count();
                prop_assert_eq!(visitors.of_address.len(), addresses);
                let greatest = numbers.iter().max().copied().unwrap();
                prop_assert_eq!(visitors.by_number.len(), greatest);
                let goes = visitors.eviction_candidate(most);
                prop_assert_eq!(goes.is_some(), plain.len() > most.max(1));
                let Some(goes) = goes else { continue };
                let (.., from, _) = *plain.iter().find(|visit| visit.1 == goes).unwrap();
                prop_assert_eq!(numbers[usize::from(from)], greatest);
                let own = plain.iter().filter(|visit| visit.2 == from);
                let oldest = match greatest {
                    1 => plain[0].1,
                    _ => own.min_by_key(|visit| visit.3).unwrap().1,
                };
                prop_assert_eq!(goes, oldest);
            }
        }
    }
}
