//! Reading: which receive a connection has under way, into which buffers, and what becomes of what
//! it brings.

use super::Worker;
use super::buffers::BufferGroup;
use super::core::Core;
use super::ring::Reading;
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

/// Receives that found no buffer and are tried again in one turn: about as many as will find one.
pub(super) const STARVED_PER_TURN: usize = SMALL_BUFFERS as usize / 2;

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
        reading: Reading,
        buffer: u16,
        result: i32,
    ) {
        let is_large = reading == Reading::Large;
        if let Ok(bytes @ 1..) = usize::try_from(result)
            && let Some(link) = self.link(key)
            && !link.cut
        {
            link.note_received(reading, bytes);
            if link.is_plain() {
                let group = if is_large { &mut self.large } else { &mut self.small };
                self.core.on_bytes(now, key, group.received(buffer, bytes));
            } else {
                self.on_layered_bytes(now, key, is_large, (buffer, bytes));
            }
        }
        let group = if is_large { &mut self.large } else { &mut self.small };
        group.give_back(buffer);
    }

    /// A receive has completed, or goes on; the core has what it brought.
    pub(super) fn on_received(
        &mut self,
        now: Millis,
        key: Key,
        reading: Reading,
        result: i32,
        (goes_on, has_more): (bool, bool),
    ) {
        let Some(link) = self.link(key) else { return };
        debug_assert_eq!(link.receiving, Some(reading), "a receive that nobody started");
        link.has_more = has_more;
        if goes_on {
            return self.stop_if_unwanted(key);
        }
        link.receiving = None;
        link.is_stopping = false;
        if link.cut {
            return self.bury(key);
        }
        match result {
            1.. => self.receive(key),
            0 => self.core.on_end(now, key, true),
            _ => match -result {
                libc::ENOBUFS => self.on_starved(key, reading),
                libc::EINTR | libc::EAGAIN | libc::ECANCELED => self.receive(key),
                _ => self.core.on_end(now, key, false),
            },
        }
    }

    /// Stops a receive that goes on, where the core wants to read no more for now, or where large
    /// buffers do better. What this turn has received already still comes to the core, which takes
    /// it; of all connections together, that is no more than the small buffers hold.
    fn stop_if_unwanted(&mut self, key: Key) {
        let wants_read = self.core.wants_read(key);
        let Some(link) = self.link(key) else { return };
        if (!wants_read || link.next != Reading::On) && !link.is_stopping {
            link.is_stopping = true;
            self.ring.stop_receiving(key.0);
        }
    }

    /// A receive could not be stopped. If it still goes on, it is tried again when that brings
    /// something.
    pub(super) fn on_not_stopped(&mut self, key: Key) {
        if let Some(link) = self.link(key) {
            link.is_stopping = false;
        }
    }

    /// No buffer was free for a receive.
    fn on_starved(&mut self, key: Key, reading: Reading) {
        let Some(link) = self.link(key) else { return };
        if reading == Reading::Large {
            // There are few large ones: better a small one now than to try again and again.
            link.next = Reading::Small;
            return self.receive(key);
        }
        self.counters.count(Series::StarvedReceives);
        self.starved.push_back(key);
    }

    /// Starts a receive, if the core wants one and none is under way.
    pub(super) fn receive(&mut self, key: Key) {
        if !self.core.wants_read(key) {
            return;
        }
        let is_open = self.core.is_open(key);
        let Some(Some(link)) = self.links.get_mut(key.0 as usize) else { return };
        if link.receiving.is_some() || link.cut {
            return;
        }
        let reading = match link.next {
            // It may go to another worker, which a receive that goes on would not follow.
            Reading::On if !is_open => Reading::Small,
            reading => reading,
        };
        let group = match reading {
            Reading::Large => (LARGE, self.large.size()),
            _ => (SMALL, self.small.size()),
        };
        link.receiving = Some(reading);
        self.ring.receive(link.socket.as_raw_fd(), reading, group, key.0, link.has_more);
    }
}
