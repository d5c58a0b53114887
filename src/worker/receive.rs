//! Reading: which receive a connection has under way, into which buffers, and what becomes of what
//! it brings.

use super::Worker;
use super::buffers::BufferGroup;
use super::core::Core;
use super::link::Reading;
use super::ring::ReceiveMode;
use super::share::{Place, Received};
use crate::metrics::Series;
use crate::relay::Key;
use crate::relay::timers::Millis;
use io_uring::IoUring;
use std::io;
use std::os::fd::AsRawFd;

/// Most messages fit one of these; there are many.
const SMALL: u16 = 0;
pub(super) const SMALL_BYTES: u32 = 2048;
const SMALL_BUFFERS: u16 = 512;
/// For connections that have just filled a small one; there are few. With fewer than become ready
/// in one turn, those left over would try in vain again and again.
const LARGE: u16 = 1;
const LARGE_BYTES: u32 = 64 * 1024;
const MIN_LARGE_BUFFERS: u64 = 32;
const MAX_LARGE_BUFFERS: u64 = 128;

/// The memory that the kernel locks for both groups' entries, in bytes.
pub(super) const LOCKED_BYTES: u64 = BufferGroup::entries_bytes(SMALL_BUFFERS)
    + BufferGroup::entries_bytes(MAX_LARGE_BUFFERS as u16);

/// Steps of TLS handshakes in one turn, each of which may take a signature: a third of a
/// millisecond at most. Others wait for the next turn.
pub(super) const HANDSHAKES_PER_TURN: u32 = 8;

/// Receives that found no buffer and are tried again in one turn: about as many as will find one.
const STARVED_PER_TURN: usize = SMALL_BUFFERS as usize / 2;

/// The small buffers of a worker, one of `workers`, and its large ones. These take a thirty-second
/// of the memory budget, beside it; or 2 MiB, if that is more.
///
/// # Errors
///
/// What the kernel says.
pub(super) fn buffers(
    uring: &IoUring,
    budget_bytes: u64,
    workers: u64,
) -> io::Result<(BufferGroup, BufferGroup)> {
    let large = budget_bytes / 32 / workers.max(1) / u64::from(LARGE_BYTES);
    let large = large.clamp(MIN_LARGE_BUFFERS, MAX_LARGE_BUFFERS) as u16;
    Ok((
        BufferGroup::new(uring, SMALL, SMALL_BYTES, SMALL_BUFFERS)?,
        BufferGroup::new(uring, LARGE, LARGE_BYTES, large)?,
    ))
}

impl<C: Core> Worker<C> {
    /// A receive has filled a buffer, or a part of it.
    pub(super) fn on_bytes(
        &mut self,
        now: Millis,
        key: Key,
        mode: ReceiveMode,
        buffer: u16,
        result: i32,
    ) {
        let turn = self.turn_number;
        let place = match mode {
            ReceiveMode::OnceLarge => Place::Large(buffer),
            ReceiveMode::Multishot | ReceiveMode::OnceSmall => Place::Small(buffer),
        };
        let received = match (usize::try_from(result), self.link(key)) {
            (Ok(bytes @ 1..), Some(link)) if !link.is_closing => {
                link.note_received(mode, bytes);
                Received::new(place, bytes)
            }
            _ => return self.give_back(place),
        };
        let Some(Some(link)) = self.links.get_mut(key.0 as usize) else { return };
        if link.share.is_deferred() {
            link.share.defer_behind(received);
        } else if let Some(rest) = self.read(now, key, received, turn) {
            self.defer(key, rest);
        }
    }

    /// Has the core read what was received, as far as the connection's share of this turn goes;
    /// what is left of it. What is not has been given back to the kernel.
    fn read(&mut self, now: Millis, key: Key, received: Received, turn: u32) -> Option<Received> {
        let Received { place, from, to, opened } = received;
        let Some(Some(link)) = self.links.get_mut(key.0 as usize) else {
            self.give_back(place);
            return None;
        };
        if link.is_handshaking() {
            let Some(left) = self.handshakes_left.checked_sub(1) else {
                return self.await_handshake(now, key, received);
            };
            self.handshakes_left = left;
        }
        let mut messages = link.share.of_turn(turn);
        if messages == 0 {
            return Some(received);
        }
        let is_plain = link.is_plain();
        let mut held = Vec::new();
        let bytes = match place {
            Place::Small(buffer) => self.small.received(buffer, to),
            Place::Large(buffer) => self.large.received(buffer, to),
            Place::Held => {
                held = link.share.take_held();
                held.as_mut_slice()
            }
        };
        let left = if received.is_opened() {
            let input = bytes.get_mut(opened.0..opened.1).unwrap_or_default();
            let read = self.core.on_bytes(now, key, input, &mut messages);
            Received { opened: (opened.0 + read, opened.1), ..received }
        } else if is_plain {
            let input = bytes.get_mut(from..).unwrap_or_default();
            let read = self.core.on_bytes(now, key, input, &mut messages);
            Received { from: from + read, ..received }
        } else {
            self.on_layered_bytes(now, key, received, &mut held, &mut messages)
        };
        let link = self.links.get_mut(key.0 as usize).and_then(Option::as_mut);
        let mut is_left = false;
        if let Some(link) = link.filter(|link| !link.is_closing) {
            link.share.spend(messages);
            is_left = !left.is_read();
            if is_left && place == Place::Held {
                link.share.keep_held(held);
            }
        }
        if place == Place::Held {
            self.charge_tls(now, key);
        }
        if is_left {
            return Some(left);
        }
        self.give_back(place);
        None
    }

    /// What is for a handshake waits for its step, which may take long where many connect: not in a
    /// receive buffer, or nobody else would be heard meanwhile.
    fn await_handshake(&mut self, now: Millis, key: Key, received: Received) -> Option<Received> {
        let Received { place, from, to, .. } = received;
        let link = self.links.get_mut(key.0 as usize).and_then(Option::as_mut)?;
        let bytes = match place {
            Place::Small(buffer) => self.small.received(buffer, to),
            Place::Large(buffer) => self.large.received(buffer, to),
            Place::Held => return Some(received),
        };
        let held = link.share.hold(bytes.get(from..).unwrap_or_default());
        self.give_back(place);
        self.charge_tls(now, key);
        Some(held)
    }

    /// The rest of what a connection has sent waits until it has a share of a turn again.
    fn defer(&mut self, key: Key, rest: Received) {
        let Some(link) = self.link(key) else { return };
        link.share.defer(rest);
        self.await_turn(key);
    }

    /// What a connection has deferred waits until its turn comes.
    pub(super) fn await_turn(&mut self, key: Key) {
        let Some(link) = self.link(key) else { return };
        match link.is_handshaking() {
            true => self.handshakes.push_back(key),
            false => self.deferred.push_back(key),
        }
    }

    /// Reads on for connections that had used up their share, each by its share of this turn.
    pub(super) fn read_deferred(&mut self, now: Millis) {
        let turn = self.turn_number;
        for _ in 0..self.handshakes.len().min(HANDSHAKES_PER_TURN as usize) {
            let Some(key) = self.handshakes.pop_front() else { break };
            self.read_on(now, key, turn);
        }
        for _ in 0..self.deferred.len() {
            let Some(key) = self.deferred.pop_front() else { return };
            self.read_on(now, key, turn);
        }
    }

    fn read_on(&mut self, now: Millis, key: Key, turn: u32) {
        while let Some(received) = self.link(key).and_then(|link| link.share.next()) {
            if let Some(rest) = self.read(now, key, received, turn) {
                return self.defer(key, rest);
            }
        }
        let Some(link) = self.link(key) else { return };
        match link.share.take_end() {
            Some(end) if !link.is_closing => self.core.on_end(now, key, end.is_clean),
            _ => self.receive(key),
        }
    }

    /// Gives back the buffers of a connection that ends, whose bytes nobody reads any more.
    pub(super) fn forget_received(&mut self, key: Key) {
        while let Some(received) = self.link(key).and_then(|link| link.share.next()) {
            self.give_back(received.place);
        }
    }

    fn give_back(&mut self, place: Place) {
        match place {
            Place::Small(buffer) => self.small.give_back(buffer),
            Place::Large(buffer) => self.large.give_back(buffer),
            Place::Held => {}
        }
    }

    /// A receive has completed, or one completion of a multishot receive has come; the core has what
    /// it brought.
    pub(super) fn on_received(
        &mut self,
        now: Millis,
        key: Key,
        mode: ReceiveMode,
        result: i32,
        (more, sock_nonempty): (bool, bool),
    ) {
        let Some(link) = self.held_link(key) else { return };
        debug_assert_eq!(link.reading.mode(), Some(mode), "a receive that nobody started");
        link.sock_nonempty = sock_nonempty;
        if more {
            return self.stop_if_unwanted(key);
        }
        link.reading = Reading::Idle;
        if link.is_closing {
            return self.close_if_idle(key);
        }
        match result {
            1.. => self.receive(key),
            0 => self.on_end(now, key, true),
            _ => match -result {
                libc::ENOBUFS => self.on_starved(key, mode),
                libc::EINTR | libc::EAGAIN | libc::ECANCELED => self.receive(key),
                _ => self.on_end(now, key, false),
            },
        }
    }

    /// The peer has ended its direction, or reading has failed. The core hears of it behind what
    /// was received before.
    fn on_end(&mut self, now: Millis, key: Key, is_clean: bool) {
        match self.link(key) {
            Some(link) if link.share.is_deferred() => link.share.end_with(is_clean),
            _ => self.core.on_end(now, key, is_clean),
        }
    }

    /// Cancels a multishot receive where the core wants to read no more for now, or where large
    /// buffers do better. What this turn has received already still comes to the core, which takes
    /// it; of all connections together, that is no more than the small buffers hold.
    fn stop_if_unwanted(&mut self, key: Key) {
        let wants_read = self.core.wants_read(key);
        let Some(link) = self.link(key) else { return };
        let is_unwanted =
            !wants_read || link.next != ReceiveMode::Multishot || link.share.is_throttled();
        if is_unwanted {
            self.stop_receiving(key);
        }
    }

    /// Has the kernel cancel the receive that is under way.
    pub(super) fn stop_receiving(&mut self, key: Key) {
        let Some(link) = self.links.get_mut(key.0 as usize).and_then(Option::as_mut) else {
            return;
        };
        if let Reading::Armed(mode) = link.reading {
            link.reading = Reading::Stopping(mode);
            self.ring.cancel_receive(key.0, mode);
        }
    }

    /// A receive could not be cancelled. If it still runs, its next completion tries again.
    pub(super) fn on_receive_not_cancelled(&mut self, key: Key) {
        if let Some(link) = self.link(key)
            && let Reading::Stopping(mode) = link.reading
        {
            link.reading = Reading::Armed(mode);
            if !self.takeover.is_off() {
                // It may bring nothing for long.
                self.stop_receiving(key);
            }
        }
    }

    /// No buffer was free for a receive.
    fn on_starved(&mut self, key: Key, mode: ReceiveMode) {
        let Some(link) = self.link(key) else { return };
        if mode == ReceiveMode::OnceLarge {
            // There are few large ones: better a small one now than to try again and again.
            link.next = ReceiveMode::OnceSmall;
            return self.receive(key);
        }
        self.counters.count(Series::StarvedReceives);
        self.starved.push_back(key);
    }

    /// Tries again for connections whose receives found no buffer.
    pub(super) fn receive_starved(&mut self) {
        for _ in 0..STARVED_PER_TURN.min(self.starved.len()) {
            if let Some(key) = self.starved.pop_front() {
                self.receive(key);
            }
        }
    }

    /// Starts a receive, if the core wants one and none is under way.
    pub(super) fn receive(&mut self, key: Key) {
        if !self.core.wants_read(key) || !self.takeover.is_off() {
            return;
        }
        let is_open = self.core.is_open(key);
        let Some(Some(link)) = self.links.get_mut(key.0 as usize) else { return };
        if link.reading != Reading::Idle || link.is_closing || link.share.is_deferred() {
            return;
        }
        let mode = match link.next {
            // The rest of a flood waits in the kernel, and what is held of a handshake is bounded.
            _ if link.share.is_throttled() || link.is_handshaking() => ReceiveMode::OnceSmall,
            // It may be handed to another worker, which a receive that goes on would not follow;
            // and what is read behind a request, whatever its share, is one small buffer at most.
            _ if !is_open => ReceiveMode::OnceSmall,
            mode => mode,
        };
        let group = match mode {
            ReceiveMode::OnceLarge => (LARGE, self.large.size()),
            _ => (SMALL, self.small.size()),
        };
        link.reading = Reading::Armed(mode);
        self.ring.receive(link.socket.as_raw_fd(), mode, group, key.0, link.sock_nonempty);
    }
}
