//! Which connections hold the most bytes, so that the largest backlog can go first when memory
//! runs short (PROTOCOL.md, chapter 5) without looking at every connection.
//!
//! Connections are kept in lists by size class, the power of two of their charge. Moving between
//! lists is O(1) and happens only when the class changes; finding the largest looks at one list.

use super::Key;

/// Charges below this are not tracked: they cannot matter before thousands of larger ones do.
const MIN_BYTES: usize = 1024;
const CLASSES: usize = 16;

/// Where a connection stands; kept by the connection, passed in on every change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// 0: not tracked; else the power of two of the charge, counted from [`MIN_BYTES`].
    class: u8,
    index: u32,
}

/// The lists, one per class.
#[derive(Default)]
pub struct Backlogs {
    lists: [Vec<Key>; CLASSES],
}

impl Backlogs {
    /// The class of a charge; 0 for one too small to track.
    fn class_of(charged_bytes: usize) -> u8 {
        match charged_bytes.checked_div(MIN_BYTES) {
            None | Some(0) => 0,
            Some(units) => (units.ilog2() as u8 + 1).min(CLASSES as u8 - 1),
        }
    }

    /// Notes the new charge of `key`. Where another connection had to move within its list, it is
    /// returned with its new place, which the caller must store.
    #[must_use]
    pub fn update(
        &mut self,
        key: Key,
        place: &mut Place,
        charged_bytes: usize,
    ) -> Option<(Key, Place)> {
        let class = Self::class_of(charged_bytes);
        if class == place.class {
            return None;
        }
        let moved = self.take_out(*place);
        *place = Place::default();
        if class > 0
            && let Some(list) = self.lists.get_mut(usize::from(class))
        {
            *place = Place { class, index: list.len() as u32 };
            list.push(key);
        }
        moved
    }

    fn take_out(&mut self, place: Place) -> Option<(Key, Place)> {
        if place.class == 0 {
            return None;
        }
        let list = self.lists.get_mut(usize::from(place.class))?;
        let index = place.index as usize;
        if index >= list.len() {
            debug_assert!(false, "place outside of its list");
            return None;
        }
        list.swap_remove(index);
        if list.is_empty() {
            *list = Vec::new();
        }
        list.get(index).map(|key| (*key, place))
    }

    /// The class of the largest backlog, 0 where there is none.
    #[must_use]
    pub fn largest_class(&self) -> u32 {
        self.lists.iter().rposition(|list| !list.is_empty()).unwrap_or(0) as u32
    }

    /// The connections of the largest class that is not empty.
    #[must_use]
    pub fn largest(&self) -> &[Key] {
        self.lists.iter().rev().find(|list| !list.is_empty()).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    #[test]
    fn places_stay_right_under_random_changes() {
        let mut rng = StdRng::seed_from_u64(3);
        let mut backlogs = Backlogs::default();
        let mut places = [Place::default(); 30];
        let mut charges = [0usize; 30];
        for _ in 0..5000 {
            let pick = rng.random_range(0..30);
            let bits = rng.random_range(0..24);
            charges[pick] = rng.random_range(0..1usize << bits);
            let mut place = places[pick];
            let moved = backlogs.update(Key(pick as u32), &mut place, charges[pick]);
            places[pick] = place;
            if let Some((key, place)) = moved {
                places[key.0 as usize] = place;
            }
            for (key, place) in places.iter().enumerate() {
                assert_eq!(place.class, Backlogs::class_of(charges[key]));
                if place.class > 0 {
                    let list = &backlogs.lists[usize::from(place.class)];
                    assert_eq!(list[place.index as usize], Key(key as u32));
                }
            }
            let tracked: usize = backlogs.lists.iter().map(Vec::len).sum();
            assert_eq!(tracked, charges.iter().filter(|c| **c >= MIN_BYTES).count());
        }
    }
}
