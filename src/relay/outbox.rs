//! Bytes that wait for a socket: first in first out, whole frames, charged until the kernel has
//! taken them (PROTOCOL.md, chapter 5).
//!
//! Frames are appended to chunks, and one chunk is one write, so everything that one turn of the
//! worker produces for a socket leaves in one system call. A frame never straddles two chunks:
//! frame boundaries are found again by reading frame headers in the chunk, not by a list of
//! lengths beside it. That knowledge is needed to drop what waits without tearing the frame that
//! is half sent, to let pings and pongs overtake at the next boundary, and to release each frame's
//! charge when its last byte is gone.

mod plain;

use super::spare::{self, SpareBuffers};
use crate::protocol::frames;
use std::collections::VecDeque;

/// What each queued frame is charged beyond its payload.
pub const FRAME_OVERHEAD_BYTES: usize = 64;

/// A chunk takes no further frame once it would pass this size. A larger frame has its own chunk.
const CHUNK_BYTES: usize = 64 * 1024;
/// What a chunk takes beside its capacity: its place in the queue, and the allocator's own.
const CHUNK_OVERHEAD_BYTES: usize = 64;
/// What remains of a chunk this large is moved to a buffer that fits, once that is a quarter of it.
const COMPACT_BYTES: usize = 4 * 1024;
/// The most that waiting pings and pongs take.
pub const MAX_CONTROL_GROWTH_BYTES: usize = 2 * CONTROL_BYTES + CHUNK_OVERHEAD_BYTES;
/// Waiting pongs beyond this are replaced by the newest one (RFC 6455, section 5.5.3). With at most
/// one ping among them, the queue is walked once in as many bytes of pongs: O(1) for each.
const CONTROL_BYTES: usize = 1024;

/// What a frame with this many payload bytes is charged.
#[must_use]
pub const fn charge_of(payload_bytes: usize) -> usize {
    payload_bytes + FRAME_OVERHEAD_BYTES
}

/// What [`Outbox::most_growth`] is at most for a frame of this length, whatever is queued.
#[must_use]
pub const fn growth_bound(bytes: usize) -> usize {
    CHUNK_BYTES + 2 * bytes + CHUNK_OVERHEAD_BYTES
}

/// Bytes on their way to the kernel: `buffer[from..to]`. The buffer comes back with
/// [`Outbox::on_written`].
#[derive(Debug)]
pub struct Write {
    /// Owns the bytes while the kernel reads them.
    pub buffer: Vec<u8>,
    /// First byte to write.
    pub from: usize,
    /// End of the bytes to write.
    pub to: usize,
    /// There is nothing more to write for now.
    pub all: bool,
}

/// The queue of one connection. An idle one holds no heap memory.
#[derive(Default)]
pub struct Outbox {
    /// The oldest chunk; `head_sent` bytes of it are gone.
    head: Vec<u8>,
    tail: VecDeque<Vec<u8>>,
    /// The capacity of the tail's chunks.
    tail_capacity: u32,
    /// The capacity of the head while it is with the kernel, else 0.
    in_flight_capacity: u32,
    /// Whole pings and pongs that go at the next frame boundary.
    control: Vec<u8>,
    head_sent: usize,
    /// HTTP bytes at the front, before any frame; they may reach into the tail.
    http_left: u32,
    /// Bytes that remain of the frame that is half sent; 0 at a boundary.
    frame_left: u32,
    /// What the half-sent frame is charged.
    frame_charge: u32,
    /// The half-sent frame is a ping.
    frame_is_ping: bool,
    /// A ping is queued or in flight.
    has_ping: bool,
    charged: u32,
    /// Unsent bytes of the head while it is with the kernel, else 0.
    in_flight: u32,
    /// Drop everything behind the half-sent frame when the head comes back.
    drop_rest: bool,
    /// The last write was of pings and pongs, and frames that had waited before them wait still.
    overtook: bool,
}

impl Outbox {
    /// Bytes charged for what is queued or in flight.
    #[must_use]
    pub fn charged(&self) -> usize {
        self.charged as usize
    }

    /// Bytes on the heap, by capacity: what the memory budget is charged. What is in flight counts
    /// until it comes back.
    #[must_use]
    #[inline]
    pub fn held_bytes(&self) -> usize {
        let chunks = |capacity: usize| match capacity {
            0 => 0,
            _ => capacity + CHUNK_OVERHEAD_BYTES,
        };
        chunks(self.head.capacity() + self.in_flight_capacity as usize)
            + chunks(self.control.capacity())
            + self.tail_capacity as usize
            + self.tail.len() * CHUNK_OVERHEAD_BYTES
    }

    /// The most that [`Outbox::held_bytes`] may grow by with one more frame, or HTTP bytes, of this
    /// length.
    #[must_use]
    #[inline]
    pub fn most_growth(&self, bytes: usize) -> usize {
        let last = self.tail.back().unwrap_or(&self.head);
        let needed = last.len() + bytes;
        let chunk = if last.is_empty() || needed > CHUNK_BYTES {
            spare::fit(bytes)
        } else if needed <= last.capacity() {
            0
        } else {
            spare::fit(needed.max((2 * last.len()).min(CHUNK_BYTES))) - last.capacity()
        };
        chunk + CHUNK_OVERHEAD_BYTES
    }

    /// Whether nothing is queued and nothing is in flight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.in_flight() && self.head.is_empty() && self.tail.is_empty() && self.control.is_empty()
    }

    /// Whether a [`Write`] is out.
    #[must_use]
    pub fn in_flight(&self) -> bool {
        self.in_flight > 0
    }

    /// Whether pings or pongs wait.
    #[must_use]
    #[inline]
    pub fn has_control(&self) -> bool {
        !self.control.is_empty()
    }

    /// Whether a ping waits for the kernel to take it: then it serves whoever asks for another.
    #[must_use]
    pub fn has_ping(&self) -> bool {
        self.has_ping
    }

    /// Queues one frame: `write` appends exactly its `frame_bytes` bytes (header and payload).
    /// It is charged [`charge_of`] its payload.
    pub fn push_frame(
        &mut self,
        spare: &mut SpareBuffers,
        frame_bytes: usize,
        payload_bytes: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let chunk = self.chunk_for(spare, frame_bytes);
        let before = chunk.len();
        write(chunk);
        debug_assert_eq!(chunk.len() - before, frame_bytes, "frame length");
        self.charge(charge_of(payload_bytes));
    }

    /// Queues HTTP bytes; only before the first frame. They are charged their length.
    pub fn push_http(&mut self, spare: &mut SpareBuffers, bytes: &[u8]) {
        debug_assert!(self.frame_left == 0 && self.control.is_empty(), "HTTP after a frame");
        self.chunk_for(spare, bytes.len()).extend_from_slice(bytes);
        self.http_left += bytes.len() as u32;
        self.charge(bytes.len());
    }

    /// Queues a ping or pong (a whole frame), to go at the next frame boundary; a ping only where
    /// none waits. Where too many pongs wait already, the newest replaces the older ones, whose
    /// charge is returned.
    pub fn push_control(&mut self, frame: &[u8]) -> usize {
        debug_assert!(!(self.has_ping && is_ping(frame)), "two pings wait");
        self.has_ping |= is_ping(frame);
        let mut released = 0;
        if self.control.len() + frame.len() > CONTROL_BYTES {
            let mut ping = None;
            for_each_frame(&self.control, |frame, charge| {
                if is_ping(frame) {
                    ping = Some(frame.to_vec());
                } else {
                    released += charge;
                }
            });
            self.control.clear();
            self.control.extend(ping.into_iter().flatten());
            self.discharge(released);
        }
        self.control.extend_from_slice(frame);
        let (_, payload) = frames::frame_extent(frame).unwrap_or_default();
        self.charge(charge_of(payload));
        released
    }

    /// Takes what should be written next, if nothing is in flight: the oldest chunk whole, so
    /// that a turn's frames leave in one write. Pings and pongs go first, but not twice in a row:
    /// then [`Outbox::held_bytes`] may become less.
    pub fn take_write(&mut self) -> Option<Write> {
        if self.in_flight() {
            return None;
        }
        if self.head.is_empty() && !self.tail.is_empty() {
            self.next_head();
        }
        let mut to = self.head.len();
        // Who was overtaken goes next, or a peer that pings at every pong would keep all else back.
        let yields = std::mem::take(&mut self.overtook) && !self.head.is_empty();
        if !self.control.is_empty() && !yields {
            let begun = self.begun_bytes();
            if begun == 0 {
                self.head.drain(..self.head_sent);
                self.head_sent = 0;
                // Earlier pings and pongs, which the kernel did not take, stay in front.
                let overtaken = match leading_control_bytes(&self.head) {
                    0 => std::mem::take(&mut self.head),
                    leading => self.head.split_off(leading),
                };
                let control = std::mem::take(&mut self.control);
                // To measure: it takes no more than the two have taken.
                self.head = match self.head.is_empty() {
                    true => control,
                    false => [self.head.as_slice(), &control].concat(),
                };
                if !overtaken.is_empty() {
                    self.tail_capacity += overtaken.capacity() as u32;
                    self.tail.push_front(overtaken);
                }
                self.overtook = !self.tail.is_empty();
                to = self.head.len();
            } else {
                to = to.min(self.head_sent + begun);
            }
        }
        if self.head.is_empty() {
            return None;
        }
        self.in_flight = self.head_unsent() as u32;
        let all = to == self.head.len() && self.tail.is_empty() && self.control.is_empty();
        self.in_flight_capacity = self.head.capacity() as u32;
        Some(Write { buffer: std::mem::take(&mut self.head), from: self.head_sent, to, all })
    }

    /// Takes back the buffer of [`Outbox::take_write`], of which the kernel took `taken` bytes.
    /// Returns the charge that is released: frames are released whole, with their last byte.
    pub fn on_written(&mut self, spare: &mut SpareBuffers, buffer: Vec<u8>, taken: usize) -> usize {
        debug_assert!(self.in_flight(), "no write was out");
        self.in_flight = 0;
        self.in_flight_capacity = 0;
        self.head = buffer;
        let mut released = self.advance(taken);
        if self.drop_rest {
            self.drop_rest = false;
            released += self.drop_behind_begun();
        }
        if self.head_sent >= self.head.len() {
            spare.keep(std::mem::take(&mut self.head));
            self.head_sent = 0;
            if !self.tail.is_empty() {
                self.next_head();
            }
        } else if self.head.capacity() > COMPACT_BYTES
            && self.head_unsent() <= self.head.capacity() / 4
        {
            // Each byte is moved O(1) times: the next move is three quarters less.
            let rest = self.head.get(self.head_sent..).unwrap_or_default();
            let mut fitting = spare.take(rest.len());
            fitting.extend_from_slice(rest);
            spare.keep(std::mem::replace(&mut self.head, fitting));
            self.head_sent = 0;
        }
        released
    }

    /// The oldest chunk of the tail becomes the head, which is empty.
    fn next_head(&mut self) {
        self.head_sent = 0;
        self.head = self.tail.pop_front().unwrap_or_default();
        self.tail_capacity -= self.head.capacity() as u32;
        if self.tail.is_empty() {
            self.tail = VecDeque::new();
        }
    }

    /// Drops everything that the kernel has not begun to take, but for HTTP bytes and the rest of
    /// a half-sent frame: what is pushed next follows these at once. Returns the charge released.
    /// O(1) for each frame that is dropped, so it was paid for when that was queued; who is closed
    /// gets no others, so nothing is walked twice but HTTP bytes, of which there are few.
    pub fn drop_pending(&mut self) -> usize {
        let mut released = 0;
        for_each_frame(&std::mem::take(&mut self.control), |_, charge| released += charge);
        released += self.drop_tail();
        self.discharge(released);
        if self.in_flight() {
            self.drop_rest = true;
        } else {
            released += self.drop_behind_begun();
        }
        released
    }

    /// Forgets everything; for a connection that has ended. Returns the charge released. Bytes in
    /// flight are the kernel's until they come back; they are no longer charged here.
    pub fn clear(&mut self) -> usize {
        std::mem::take(self).charged as usize
    }

    /// Bytes at the front that must go before anything else may: HTTP, or a half-sent frame.
    fn begun_bytes(&self) -> usize {
        if self.http_left > 0 { self.http_left as usize } else { self.frame_left as usize }
    }

    /// Bytes of the head that the kernel has not taken, as far as is known.
    fn head_unsent(&self) -> usize {
        if self.in_flight() { self.in_flight as usize } else { self.head.len() - self.head_sent }
    }

    /// Drops the frames behind the head, but not HTTP bytes, which may be there too: an answer
    /// that came while an earlier one was in flight. Returns the charge of what is dropped, which
    /// is still to be discharged.
    fn drop_tail(&mut self) -> usize {
        let mut http = (self.http_left as usize).saturating_sub(self.head_unsent());
        let mut released = 0;
        self.tail.retain_mut(|chunk| {
            let keep = http.min(chunk.len());
            http -= keep;
            let frames = chunk.get(keep..).unwrap_or_default();
            for_each_frame(frames, |_, charge| released += charge);
            chunk.truncate(keep);
            keep > 0
        });
        self.tail_capacity = self.tail.iter().map(Vec::capacity).sum::<usize>() as u32;
        if self.tail.is_empty() {
            self.tail = VecDeque::new();
        }
        released
    }

    fn drop_behind_begun(&mut self) -> usize {
        let keep = (self.head_sent + self.begun_bytes()).min(self.head.len());
        if self.control.is_empty() {
            self.has_ping = self.frame_left > 0 && self.frame_is_ping;
        }
        let mut released = 0;
        for_each_frame(self.head.get(keep..).unwrap_or_default(), |_, charge| released += charge);
        self.head.truncate(keep);
        if keep == self.head_sent {
            self.head = Vec::new();
            self.head_sent = 0;
        }
        self.discharge(released);
        released
    }

    fn advance(&mut self, taken: usize) -> usize {
        let mut position = self.head_sent;
        let end = (position + taken).min(self.head.len());
        let http = (self.http_left as usize).min(end - position);
        self.http_left -= http as u32;
        position += http;
        let mut released = http;
        while position < end {
            if self.frame_left == 0 {
                let rest = self.head.get(position..).unwrap_or_default();
                let Some((header, payload)) = frames::frame_extent(rest) else { break };
                self.frame_left = (header + payload) as u32;
                self.frame_charge = charge_of(payload) as u32;
                self.frame_is_ping = is_ping(rest);
            }
            let step = (self.frame_left as usize).min(end - position);
            self.frame_left -= step as u32;
            position += step;
            if self.frame_left == 0 {
                released += self.frame_charge as usize;
                self.has_ping &= !self.frame_is_ping;
            }
        }
        debug_assert_eq!(position, end, "the outbox holds whole frames");
        self.head_sent = end;
        self.discharge(released);
        released
    }

    /// The chunk that takes the next `bytes` bytes.
    fn chunk_for(&mut self, spare: &mut SpareBuffers, bytes: usize) -> &mut Vec<u8> {
        let fits = |chunk: &Vec<u8>| chunk.is_empty() || chunk.len() + bytes <= CHUNK_BYTES;
        let into_head = !self.in_flight() && self.tail.is_empty() && fits(&self.head);
        if !into_head && !self.tail.back().is_some_and(fits) {
            self.tail.push_back(Vec::new());
        }
        match self.tail.back_mut() {
            Some(last) if !into_head => {
                self.tail_capacity -= last.capacity() as u32;
                spare.make_room(last, bytes, CHUNK_BYTES);
                self.tail_capacity += last.capacity() as u32;
                last
            }
            _ => {
                spare.make_room(&mut self.head, bytes, CHUNK_BYTES);
                &mut self.head
            }
        }
    }

    fn charge(&mut self, bytes: usize) {
        self.charged += bytes as u32;
    }

    fn discharge(&mut self, bytes: usize) {
        debug_assert!(self.charged as usize >= bytes, "released more than was charged");
        self.charged = self.charged.saturating_sub(bytes as u32);
    }
}

/// How many bytes of pings and pongs `bytes` begins with.
fn leading_control_bytes(bytes: &[u8]) -> usize {
    let mut position = 0;
    while let Some([0x89 | 0x8a, rest @ ..]) = bytes.get(position..)
        && let Some(payload_bytes) = rest.first()
    {
        position += 2 + usize::from(*payload_bytes);
    }
    position.min(bytes.len())
}

fn is_ping(frame: &[u8]) -> bool {
    frame.first().is_some_and(|byte| byte & 0x0f == 0x9)
}

/// Calls `visit` with each whole frame in `bytes` and its charge.
fn for_each_frame(bytes: &[u8], mut visit: impl FnMut(&[u8], usize)) {
    let mut rest = bytes;
    while let Some((header, payload)) = frames::frame_extent(rest) {
        let Some((frame, after)) = rest.split_at_checked(header + payload) else { break };
        visit(frame, charge_of(payload));
        rest = after;
    }
    debug_assert!(rest.is_empty(), "the outbox holds whole frames");
}

#[cfg(test)]
mod tests;
