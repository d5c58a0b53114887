//! One hierarchical timer wheel for every deadline of a worker: heartbeats, half-read messages,
//! stalled writes, closes, request heads, probes and grace.
//!
//! Each owner (a connection, a server-id) has at most one timer, armed for the earliest of its
//! deadlines. When that fires, the owner looks at its own fields and arms the timer anew, so a
//! deadline that moves later costs nothing and a fired timer that finds nothing due is harmless.
//! The wheel therefore never holds more entries than there are owners.
//!
//! Insert, move, remove and expiry are O(1); an entry is moved at most `LEVELS - 1` times.

pub use crate::clock::{Millis, NEVER};
use slab::Slab;

/// Resolution. A timer never fires early, and at most this much late by the wheel's doing.
const TICK_MS: u64 = 8;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// 6 levels of 6 bits: 2^36 ticks, 17 years.
const LEVELS: usize = 6;
const MAX_TICK: u64 = (1 << (SLOT_BITS * LEVELS as u32)) - 1;

/// The list of entries whose time has come and which wait to be popped.
const DUE: u16 = (LEVELS * SLOTS) as u16;
/// In no list: the timer is not armed.
const UNLINKED: u16 = u16::MAX;
const NIL: u32 = u32::MAX;

/// A timer of one owner, until it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimerId(u32);

impl TimerId {
    /// No timer: nothing can be armed with it.
    pub const NONE: Self = Self(NIL);
}

struct Node<T> {
    owner: T,
    deadline_ms: Millis,
    previous: u32,
    next: u32,
    list: u16,
}

/// The wheel. `T` names the owner of a timer and is handed back when it fires.
pub struct Wheel<T> {
    nodes: Slab<Node<T>>,
    /// First entry of each slot's list, level by level, then of the due list.
    heads: Vec<u32>,
    /// One bit per slot of a level: its list is not empty.
    occupied: [u64; LEVELS],
    /// Every armed entry's tick is after this one, or in the due list.
    current_tick: u64,
}

impl<T: Copy> Default for Wheel<T> {
    fn default() -> Self {
        Self {
            nodes: Slab::new(),
            heads: vec![NIL; LEVELS * SLOTS + 1],
            occupied: [0; LEVELS],
            current_tick: 0,
        }
    }
}

impl<T: Copy> Wheel<T> {
    /// Makes a timer, not armed.
    pub fn add(&mut self, owner: T) -> TimerId {
        let node = Node { owner, deadline_ms: NEVER, previous: NIL, next: NIL, list: UNLINKED };
        TimerId(u32::try_from(self.nodes.insert(node)).unwrap_or(NIL))
    }

    /// Forgets the timer; its id must not be used again.
    pub fn remove(&mut self, id: TimerId) {
        self.unlink(id.0);
        self.nodes.try_remove(id.0 as usize);
    }

    /// Sees to it that the timer fires at `at_ms` or before: arms it, or moves it earlier, but
    /// never later. [`NEVER`] changes nothing.
    pub fn arm_by(&mut self, id: TimerId, at_ms: Millis) {
        if self.nodes.get(id.0 as usize).is_some_and(|node| at_ms < node.deadline_ms) {
            self.arm_at(id, at_ms);
        }
    }

    /// Arms the timer for exactly `at_ms`, wherever it stood before; [`NEVER`] disarms it.
    pub fn arm_at(&mut self, id: TimerId, at_ms: Millis) {
        self.unlink(id.0);
        let Some(node) = self.nodes.get_mut(id.0 as usize) else { return };
        node.deadline_ms = at_ms;
        if at_ms != NEVER {
            self.link(id.0, at_ms);
        }
    }

    /// Takes one timer whose deadline is `now_ms` or earlier; it is disarmed by that. Call until
    /// `None`.
    pub fn pop_expired(&mut self, now_ms: Millis) -> Option<T> {
        let now_tick = now_ms / TICK_MS;
        loop {
            let due = self.head(DUE);
            if due != NIL {
                self.unlink(due);
                let node = self.nodes.get_mut(due as usize)?;
                node.deadline_ms = NEVER;
                return Some(node.owner);
            }
            match self.next_slot() {
                Some((level, slot, tick)) if tick <= now_tick => {
                    self.current_tick = self.current_tick.max(tick);
                    self.cascade(level, slot);
                }
                _ => {
                    self.current_tick = self.current_tick.max(now_tick);
                    return None;
                }
            }
        }
    }

    /// When [`Wheel::pop_expired`] should be called next: no timer fires before it. It may come
    /// before the first timer proper, when entries only move to a finer level.
    pub fn next_wake_ms(&self) -> Option<Millis> {
        if self.head(DUE) != NIL {
            return Some(self.current_tick * TICK_MS);
        }
        self.next_slot().map(|(_, _, tick)| tick * TICK_MS)
    }

    /// When the timer fires; [`NEVER`] if it is not armed.
    pub fn deadline_ms(&self, id: TimerId) -> Millis {
        self.nodes.get(id.0 as usize).map_or(NEVER, |node| node.deadline_ms)
    }

    /// How many timers exist, armed or not.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether no timer exists.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The first slot, in time, that holds entries: level, slot and the tick at which it is due.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        let (level, &occupied) = self.occupied.iter().enumerate().find(|(_, bits)| **bits != 0)?;
        let shift = SLOT_BITS * level as u32;
        let position = (self.current_tick >> shift) as u32 % SLOTS as u32;
        let ahead = occupied.rotate_right(position).trailing_zeros();
        let tick = ((self.current_tick >> shift) + u64::from(ahead)) << shift;
        Some((level, ((position + ahead) % SLOTS as u32) as usize, tick))
    }

    /// Moves the entries of a slot that has been reached to finer levels, or to the due list.
    fn cascade(&mut self, level: usize, slot: usize) {
        let list = (level * SLOTS + slot) as u16;
        loop {
            let index = self.head(list);
            if index == NIL {
                return;
            }
            self.unlink(index);
            let Some(deadline_ms) = self.nodes.get(index as usize).map(|node| node.deadline_ms)
            else {
                return;
            };
            self.link(index, deadline_ms);
        }
    }

    fn link(&mut self, index: u32, deadline_ms: Millis) {
        let tick = deadline_ms.div_ceil(TICK_MS).min(MAX_TICK);
        let list = if tick <= self.current_tick {
            DUE
        } else {
            // The highest bit in which the two ticks differ names the level.
            let level = (63 - (tick ^ self.current_tick).leading_zeros()) / SLOT_BITS;
            let slot = (tick >> (SLOT_BITS * level)) % SLOTS as u64;
            if let Some(bits) = self.occupied.get_mut(level as usize) {
                *bits |= 1 << slot;
            }
            (u64::from(level) * SLOTS as u64 + slot) as u16
        };
        let next = self.head(list);
        if let Some(node) = self.nodes.get_mut(index as usize) {
            node.list = list;
            node.previous = NIL;
            node.next = next;
        }
        if let Some(node) = self.nodes.get_mut(next as usize) {
            node.previous = index;
        }
        self.set_head(list, index);
    }

    fn unlink(&mut self, index: u32) {
        let Some(node) = self.nodes.get_mut(index as usize) else { return };
        if node.list == UNLINKED {
            return;
        }
        let (list, previous, next) = (node.list, node.previous, node.next);
        node.list = UNLINKED;
        if let Some(next) = self.nodes.get_mut(next as usize) {
            next.previous = previous;
        }
        match self.nodes.get_mut(previous as usize) {
            Some(previous) => previous.next = next,
            None => self.set_head(list, next),
        }
    }

    fn head(&self, list: u16) -> u32 {
        self.heads.get(usize::from(list)).copied().unwrap_or(NIL)
    }

    fn set_head(&mut self, list: u16, index: u32) {
        if let Some(head) = self.heads.get_mut(usize::from(list)) {
            *head = index;
        }
        let (level, slot) = (usize::from(list) / SLOTS, usize::from(list) % SLOTS);
        if index == NIL
            && let Some(bits) = self.occupied.get_mut(level)
        {
            *bits &= !(1 << slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    fn expired(wheel: &mut Wheel<u32>, now_ms: Millis) -> Vec<u32> {
        let mut fired: Vec<u32> = std::iter::from_fn(|| wheel.pop_expired(now_ms)).collect();
        fired.sort_unstable();
        fired
    }

    #[test]
    fn fires_once_never_early_and_within_a_tick() {
        for deadline in [0, 1, 7, 8, 9, 511, 512, 513, 30_000, 32_768, 10_000_000, 1 << 38] {
            let mut wheel = Wheel::default();
            let id = wheel.add(7);
            wheel.arm_by(id, deadline);
            if deadline > 0 {
                assert!(expired(&mut wheel, deadline - 1).is_empty());
            }
            assert_eq!(expired(&mut wheel, deadline + TICK_MS), [7], "{deadline}");
            assert!(expired(&mut wheel, deadline + 1_000_000).is_empty());
            assert_eq!(wheel.next_wake_ms(), None);
        }
    }

    #[test]
    fn arm_by_moves_earlier_only_and_arm_at_moves_anywhere() {
        let mut wheel = Wheel::default();
        let id = wheel.add(1);
        wheel.arm_by(id, 1000);
        wheel.arm_by(id, 2000);
        wheel.arm_by(id, 500);
        assert!(expired(&mut wheel, 499).is_empty());
        assert_eq!(expired(&mut wheel, 504), [1]);
        wheel.arm_at(id, 3000);
        wheel.arm_at(id, 4000);
        assert!(expired(&mut wheel, 3999).is_empty());
        wheel.arm_at(id, NEVER);
        assert!(expired(&mut wheel, 10_000).is_empty());
        wheel.remove(id);
        assert!(wheel.is_empty());
    }

    #[test]
    fn agrees_with_a_plain_list_under_random_use() {
        let mut rng = StdRng::seed_from_u64(11);
        for _ in 0..50 {
            let mut wheel = Wheel::<u32>::default();
            let mut plain: Vec<(TimerId, u32, Millis)> =
                (0..40).map(|owner| (wheel.add(owner), owner, NEVER)).collect();
            let mut now = rng.random_range(0..100_000);
            assert!(expired(&mut wheel, now).is_empty());
            for _ in 0..400 {
                let pick = rng.random_range(0..plain.len());
                let at = now + (1u64 << rng.random_range(0..24)) + rng.random_range(0..9);
                plain[pick].2 = at;
                wheel.arm_at(plain[pick].0, at);
                if rng.random_bool(0.5) {
                    now += 1 << rng.random_range(0..16);
                    let ticked = now / TICK_MS;
                    let mut want: Vec<u32> = Vec::new();
                    for (_, owner, at) in &mut plain {
                        if at.div_ceil(TICK_MS) <= ticked {
                            *at = NEVER;
                            want.push(*owner);
                        }
                    }
                    assert_eq!(expired(&mut wheel, now), want);
                    let first = plain.iter().map(|entry| entry.2).min().unwrap_or(NEVER);
                    if let Some(wake) = wheel.next_wake_ms() {
                        assert!(wake <= first + TICK_MS && wake > now.saturating_sub(TICK_MS));
                    } else {
                        assert_eq!(first, NEVER);
                    }
                }
            }
        }
    }
}
