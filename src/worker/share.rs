//! Each connection's fair share of a worker's turn.
//!
//! A connection may have a bounded number of messages read in a turn. What it sent beyond that
//! waits in its receive buffers, and from then on, for as long as it goes on like this, in the
//! kernel: it is read by small receives, one at a time. So whoever sends ten thousand messages at
//! once takes turns with everybody else.

use crate::handover::link::{End, Waiting};
use crate::handover::state::Bytes;
use std::collections::VecDeque;

/// Messages of one connection in one turn: more than a binary of sixteen busy phones sends in one,
/// and well under a millisecond of the worker's time.
const MESSAGES_PER_TURN: u16 = 512;
/// Receives within its share before a connection is no longer throttled.
const THROTTLED_RECEIVES: u8 = 32;

/// Where bytes are that were received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In a small receive buffer.
    Small(u16),
    /// In a large one.
    Large(u16),
    /// In memory of the connection's own: see [`Share::hold`].
    Held,
}

/// Bytes that are still to be read: `opened`, which is what TLS has made of those that came first,
/// and then `from..to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) place: Place,
    pub(super) opened: (usize, usize),
    pub(super) from: usize,
    pub(super) to: usize,
}

impl Received {
    pub(super) fn new(place: Place, bytes: usize) -> Self {
        Self { place, opened: (0, 0), from: 0, to: bytes }
    }

    /// Whether some of it is opened and still to be read.
    pub(super) fn is_opened(&self) -> bool {
        self.opened.0 < self.opened.1
    }

    /// Whether all of it was read.
    pub(super) fn is_read(&self) -> bool {
        self.from >= self.to && !self.is_opened()
    }

    /// All of it was read.
    pub(super) fn read(self) -> Self {
        Self { opened: (0, 0), from: self.to, ..self }
    }
}

/// What a connection may still have of this turn, and what waits for the next.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// The last turn in which it had one. If that is taken for another one, far later, no harm is
    /// done: what is left of the share is what it has.
    turn: u32,
    /// Messages that are left of that.
    messages: u16,
    /// Receives that are still throttled, since it used up its share.
    throttled_for: u8,
    /// On the heap only while something waits.
    deferred: Option<Box<Deferred>>,
}

#[derive(Debug, Default)]
struct Deferred {
    received: VecDeque<Received>,
    held: Vec<u8>,
    end: Option<End>,
}

impl Share {
    /// Messages that it may have read in this turn, from now on.
    pub(super) fn of_turn(&mut self, turn: u32) -> u32 {
        if self.turn != turn {
            self.turn = turn;
            self.messages = MESSAGES_PER_TURN;
        }
        self.messages.into()
    }

    /// Notes how many of them are left after something was read.
    pub(super) fn spend(&mut self, left: u32) {
        self.messages = left as u16;
        self.throttled_for = match left {
            0 => THROTTLED_RECEIVES,
            _ => self.throttled_for.saturating_sub(1),
        };
    }

    /// Whether it has used up its share of a recent turn.
    pub(super) fn is_throttled(&self) -> bool {
        self.throttled_for > 0
    }

    /// Whether something that was received waits to be read.
    pub(super) fn is_deferred(&self) -> bool {
        self.deferred.is_some()
    }

    /// From now on `rest` waits, before everything else that does.
    pub(super) fn defer(&mut self, rest: Received) {
        self.deferred.get_or_insert_default().received.push_front(rest);
    }

    /// Defers what came behind it.
    pub(super) fn defer_behind(&mut self, received: Received) {
        self.deferred.get_or_insert_default().received.push_back(received);
    }

    /// Takes what is to wait for longer than a receive buffer may be kept from others. There must be
    /// nothing else that is held.
    pub(super) fn hold(&mut self, bytes: &[u8]) -> Received {
        bytes.clone_into(&mut self.deferred.get_or_insert_default().held);
        Received::new(Place::Held, bytes.len())
    }

    /// Holds on to what [`Share::take_held`] gave, of which not all was read.
    pub(super) fn keep_held(&mut self, held: Vec<u8>) {
        self.deferred.get_or_insert_default().held = held;
    }

    /// Gives up what is held.
    pub(super) fn take_held(&mut self) -> Vec<u8> {
        self.deferred
            .as_mut()
            .map(|deferred| std::mem::take(&mut deferred.held))
            .unwrap_or_default()
    }

    /// The memory of what is held, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        self.deferred.as_ref().map_or(0, |deferred| deferred.held.capacity())
    }

    /// What waits, with which another process goes on: `bytes` has what is in a place. And for how
    /// many receives it is throttled.
    pub(super) fn give_out(&self, mut bytes: impl FnMut(Place, usize) -> Vec<u8>) -> (Waiting, u8) {
        let mut waiting = Waiting::default();
        let Some(deferred) = &self.deferred else { return (waiting, self.throttled_for) };
        for Received { place, opened, from, to } in &deferred.received {
            let copied;
            let bytes = match place {
                Place::Held => deferred.held.as_slice(),
                place => {
                    copied = bytes(*place, *to);
                    copied.as_slice()
                }
            };
            // Of what comes behind the first, nothing is opened.
            waiting.opened.0.extend_from_slice(bytes.get(opened.0..opened.1).unwrap_or_default());
            waiting.received.0.extend_from_slice(bytes.get(*from..*to).unwrap_or_default());
        }
        waiting.end = deferred.end;
        (waiting, self.throttled_for)
    }

    /// Goes on with what has been given out.
    pub(super) fn take_in(waiting: Waiting, throttled_for: u8) -> Self {
        let Waiting { opened: Bytes(opened), received: Bytes(mut received), end } = waiting;
        let mut share =
            Self { throttled_for: throttled_for.min(THROTTLED_RECEIVES), ..Self::default() };
        let opened_bytes = opened.len();
        if opened_bytes > 0 {
            received.splice(..0, opened);
        }
        if !received.is_empty() {
            let all = received.len();
            share.keep_held(received);
            share.defer(Received {
                place: Place::Held,
                opened: (0, opened_bytes),
                from: opened_bytes,
                to: all,
            });
        }
        if let Some(End { is_clean }) = end {
            share.end_with(is_clean);
        }
        share
    }

    /// The stream ends behind what waits.
    pub(super) fn end_with(&mut self, is_clean: bool) {
        self.deferred.get_or_insert_default().end = Some(End { is_clean });
    }

    /// What is to be read next. The connection stays deferred until [`Share::take_end`].
    pub(super) fn next(&mut self) -> Option<Received> {
        self.deferred.as_mut()?.received.pop_front()
    }

    /// Nothing waits any more, but perhaps the end of the stream.
    pub(super) fn take_end(&mut self) -> Option<End> {
        self.deferred.take()?.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(buffer: u16) -> Received {
        Received::new(Place::Small(buffer), 1)
    }

    #[test]
    fn a_share_is_new_in_each_turn_and_what_is_left_of_it_is_not_saved_up() {
        let mut share = Share::default();
        assert_eq!(share.of_turn(1), u32::from(MESSAGES_PER_TURN));
        share.spend(5);
        assert_eq!((share.of_turn(1), share.is_throttled()), (5, false));
        assert_eq!(share.of_turn(2), u32::from(MESSAGES_PER_TURN));
        share.spend(0);
        assert_eq!((share.of_turn(2), share.is_throttled()), (0, true));
        for turn in 3..3 + u32::from(THROTTLED_RECEIVES) {
            assert!(share.is_throttled());
            share.of_turn(turn);
            share.spend(1);
        }
        assert!(!share.is_throttled());
    }

    #[test]
    fn what_waits_is_read_in_its_order_and_then_the_end() {
        let mut share = Share::default();
        assert!(!share.is_deferred());
        share.defer(received(1));
        share.defer_behind(received(2));
        share.end_with(true);
        let first = share.next().unwrap();
        share.defer(Received { from: 0, ..first });
        share.defer_behind(received(3));
        let order: Vec<Place> = std::iter::from_fn(|| share.next()).map(|r| r.place).collect();
        assert_eq!(order, [1, 2, 3].map(Place::Small));
        assert!(share.is_deferred());
        assert_eq!(share.take_end(), Some(End { is_clean: true }));
        assert!(!share.is_deferred());
    }

    #[test]
    fn what_waits_goes_on_waiting_in_another_process() {
        let mut share = Share::default();
        share.spend(0);
        share.defer(Received { opened: (2, 4), from: 6, to: 8, ..received(1) });
        share.defer_behind(Received { to: 3, ..received(2) });
        share.end_with(false);
        let (waiting, throttled) = share.give_out(|place, bytes| match place {
            Place::Small(1) => b"--op--re"[..bytes].to_vec(),
            _ => b"ceived"[..bytes].to_vec(),
        });
        let mut other = Share::take_in(waiting, throttled);
        assert!(other.is_throttled());
        // And on in a third one.
        let (waiting, throttled) = other.give_out(|_, _| panic!("it has no buffer"));
        other = Share::take_in(waiting, throttled);
        let next = other.next().unwrap();
        assert_eq!(next, Received { place: Place::Held, opened: (0, 2), from: 2, to: 7 });
        assert_eq!(other.take_held(), b"oprecei");
        assert!(other.next().is_none());
        assert_eq!(other.take_end(), Some(End { is_clean: false }));
        assert!(!Share::take_in(Waiting::default(), 0).is_deferred());
    }
}
