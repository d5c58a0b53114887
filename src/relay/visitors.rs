//! Connections of a worker that are not upgraded, the longest waiting first: who goes where there
//! are too many.
//!
//! A list through a slab: each operation is O(1), and it takes memory for those alone that are in
//! it.

use super::Key;
use slab::Slab;

const NIL: u32 = u32::MAX;

/// A connection's place in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VisitId(u32);

impl VisitId {
    /// In no list.
    pub const NONE: Self = Self(NIL);
}

struct Visit {
    key: Key,
    older: u32,
    newer: u32,
}

/// The list.
pub struct Visitors {
    visits: Slab<Visit>,
    oldest: u32,
    newest: u32,
}

impl Default for Visitors {
    fn default() -> Self {
        Self { visits: Slab::new(), oldest: NIL, newest: NIL }
    }
}

impl Visitors {
    /// Adds one, the newest.
    pub fn add(&mut self, key: Key) -> VisitId {
        let id = self.visits.insert(Visit { key, older: self.newest, newer: NIL }) as u32;
        match self.visits.get_mut(self.newest as usize) {
            Some(before) => before.newer = id,
            None => self.oldest = id,
        }
        self.newest = id;
        VisitId(id)
    }

    /// Takes one out; [`VisitId::NONE`] is in no list.
    pub fn remove(&mut self, id: VisitId) {
        let Some(Visit { older, newer, .. }) = self.visits.try_remove(id.0 as usize) else {
            return;
        };
        match self.visits.get_mut(older as usize) {
            Some(before) => before.newer = newer,
            None => self.oldest = newer,
        }
        match self.visits.get_mut(newer as usize) {
            Some(after) => after.older = older,
            None => self.newest = older,
        }
    }

    /// The one that has been there for the longest time.
    #[must_use]
    pub fn oldest(&self) -> Option<Key> {
        self.visits.get(self.oldest as usize).map(|visit| visit.key)
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

    proptest! {
        /// Against a plain list.
        #[test]
        fn the_oldest_is_the_first_that_came_and_has_not_gone(
            steps in proptest::collection::vec((any::<bool>(), any::<usize>()), 0..200),
        ) {
            let mut visitors = Visitors::default();
            let mut plain: Vec<(VisitId, Key)> = Vec::new();
            for (number, (comes, which)) in steps.into_iter().enumerate() {
                if comes || plain.is_empty() {
                    let key = Key(number as u32);
                    plain.push((visitors.add(key), key));
                } else {
                    let (id, _) = plain.remove(which % plain.len());
                    visitors.remove(id);
                }
                visitors.remove(VisitId::NONE);
                prop_assert_eq!(visitors.oldest(), plain.first().map(|(_, key)| *key));
                prop_assert_eq!(visitors.len(), plain.len());
                prop_assert_eq!(visitors.is_empty(), plain.is_empty());
            }
            for (id, _) in plain.into_iter().rev() {
                visitors.remove(id);
            }
            prop_assert_eq!((visitors.oldest(), visitors.newest), (None, NIL));
        }
    }
}
