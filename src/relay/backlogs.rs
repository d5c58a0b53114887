//! Which connections hold the most bytes, so that the largest backlog can go first when memory
//! runs short (PROTOCOL.md, chapter 5) without looking at every connection.
//!
//! Connections are kept in lists by size class, four to each power of two. Moving between lists is
//! O(1) and happens only when the class changes; so is finding the largest: any one of the highest
//! class, within a fifth of the very largest. Among those of a class, who does not read goes before
//! who is still sending: a message that is half read may be that of a healthy peer.

use super::Key;

/// Charges below this are not tracked: a short message comes and goes without a change of lists.
const MIN_BYTES: u32 = 2048;
/// Classes of each power of two, as bits below the leading one.
const STEP_BITS: u32 = 2;
/// Up to 2^32 bytes: 22 powers of two beyond the least, in four steps, each unread or not; and 0.
const LISTS: usize = ((32 - MIN_BYTES.ilog2() as usize) << STEP_BITS) * 2 + 2;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// 0: not tracked; else the number of its list.
    list: u16,
    index: u32,
}

impl Position {
    /// The number of its list.
    #[inline]
    pub(super) fn list(self) -> u16 {
        self.list
    }
}

/// A position is outside of its list: the caller has not stored what it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Misplaced;

/// The lists, smallest class first.
pub struct Backlogs {
    lists: Vec<Vec<Key>>,
    /// One bit for each list that is not empty.
    occupied: [u64; LISTS.div_ceil(64)],
}

impl Default for Backlogs {
    fn default() -> Self {
        Self { lists: vec![Vec::new(); LISTS], occupied: [0; LISTS.div_ceil(64)] }
    }
}

impl Backlogs {
    /// The list of a charge; 0 for one too small to track.
    #[inline]
    pub(super) fn list_of(charged_bytes: u32, is_unread: bool) -> u16 {
        if charged_bytes < MIN_BYTES {
            return 0;
        }
        let power = charged_bytes.ilog2();
        let step = (charged_bytes >> (power - STEP_BITS)) & ((1 << STEP_BITS) - 1);
        let class = ((power - MIN_BYTES.ilog2()) << STEP_BITS) + step + 1;
        (class * 2 + u32::from(is_unread)) as u16
    }

    /// Notes the new charge of `key` and whether it is unread. Where another connection had to move
    /// within its list, it is returned with its new position, which the caller must store.
    ///
    /// # Errors
    ///
    /// [`Misplaced`] if `position` is not one that this gave out.
    #[inline]
    pub fn update(
        &mut self,
        key: Key,
        position: &mut Position,
        charged_bytes: u32,
        is_unread: bool,
    ) -> Result<Option<(Key, Position)>, Misplaced> {
        let list = Self::list_of(charged_bytes, is_unread);
        if list == position.list {
            return Ok(None);
        }
        let moved = self.take_out(*position);
        *position = Position::default();
        if let Some(keys) = self.lists.get_mut(usize::from(list))
            && list > 0
        {
            *position = Position { list, index: keys.len() as u32 };
            keys.push(key);
            self.mark(list, true);
        }
        moved
    }

    fn take_out(&mut self, position: Position) -> Result<Option<(Key, Position)>, Misplaced> {
        if position.list == 0 {
            return Ok(None);
        }
        let list = self.lists.get_mut(usize::from(position.list)).ok_or(Misplaced)?;
        let index = position.index as usize;
        if index >= list.len() {
            return Err(Misplaced);
        }
        list.swap_remove(index);
        let moved = list.get(index).map(|key| (*key, position));
        if list.is_empty() {
            // The memory of a list that a crowd has filled; a few are kept, for who comes and goes.
            if list.capacity() > 64 {
                *list = Vec::new();
            }
            self.mark(position.list, false);
        }
        Ok(moved)
    }

    fn mark(&mut self, list: u16, is_occupied: bool) {
        if let Some(word) = self.occupied.get_mut(usize::from(list) / 64) {
            let bit = 1 << (list % 64);
            *word = if is_occupied { *word | bit } else { *word & !bit };
        }
    }

    fn highest(&self) -> Option<usize> {
        let (number, word) =
            self.occupied.iter().enumerate().rev().find(|(_, word)| **word != 0)?;
        Some(number * 64 + word.ilog2() as usize)
    }

    /// The class of the largest backlog, 0 where there is none.
    #[must_use]
    pub fn largest_class(&self) -> u32 {
        self.highest().map_or(0, |list| list as u32 / 2)
    }

    /// A connection of the largest class that is not empty.
    #[must_use]
    pub fn largest(&self) -> Option<Key> {
        self.lists.get(self.highest()?)?.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    #[test]
    fn positions_stay_right_under_random_changes() {
        let mut rng = StdRng::seed_from_u64(3);
        let mut backlogs = Backlogs::default();
        let mut positions = [Position::default(); 30];
        let mut charges = [(0u32, false); 30];
        for _ in 0..5000 {
            let pick = rng.random_range(0..30);
            let bits = rng.random_range(0..32);
            charges[pick] = (rng.random_range(0..1u32 << bits), rng.random_range(0..2) == 0);
            let mut position = positions[pick];
            let (bytes, unread) = charges[pick];
            let moved = backlogs.update(Key(pick as u32), &mut position, bytes, unread).unwrap();
            positions[pick] = position;
            if let Some((key, position)) = moved {
                positions[key.0 as usize] = position;
            }
            for (key, position) in positions.iter().enumerate() {
                assert_eq!(position.list, Backlogs::list_of(charges[key].0, charges[key].1));
                if position.list > 0 {
                    let list = &backlogs.lists[usize::from(position.list)];
                    assert_eq!(list[position.index as usize], Key(key as u32));
                }
            }
            let tracked: usize = backlogs.lists.iter().map(Vec::len).sum();
            assert_eq!(tracked, charges.iter().filter(|(bytes, _)| *bytes >= MIN_BYTES).count());
            let largest = charges.iter().map(|(bytes, _)| *bytes).max().unwrap();
            match backlogs.largest() {
                Some(key) => assert!(charges[key.0 as usize].0 as u64 * 5 >= largest as u64 * 4),
                None => assert!(largest < MIN_BYTES),
            }
        }
    }

    #[test]
    fn who_does_not_read_goes_before_who_is_sending() {
        let mut backlogs = Backlogs::default();
        let mut positions = [Position::default(); 3];
        for (key, (bytes, unread)) in
            [(9000, false), (8200, true), (9900, false)].iter().enumerate()
        {
            backlogs.update(Key(key as u32), &mut positions[key], *bytes, *unread).unwrap();
        }
        assert_eq!(backlogs.largest(), Some(Key(1)));
        assert_eq!(Backlogs::list_of(u32::MAX, true) as usize, LISTS - 1);
    }
}
