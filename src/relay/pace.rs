//! What a server-id may send in a time, its binary and its phones together (PROTOCOL.md, chapter 6):
//! over it they are not read for a moment, and nobody is closed.
//!
//! It costs a look at the limits for each receive where it is off. Where it is on, each receive is
//! charged to the bucket of its server-id, and the connection that it came from waits as long as
//! the bucket is overdrawn. What it sends meanwhile waits in the kernel and then with the peer, as
//! it does under backpressure. A bucket may be overdrawn by what was received already, so that the
//! rate holds over time, however large messages are.

use super::connection::{Connection, Stage};
use super::registry::EntryKey;
use super::timers::{Millis, NEVER};
use super::{Action, Key, Relay};
use crate::config::{ByteRate, Limits};
use crate::metrics::Series;

/// The longest that a connection waits before it is looked at again: a rate that has changed
/// meanwhile takes effect by then.
const LOOK_AGAIN_MS: Millis = 1000;

/// A token bucket of bytes. It begins full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bucket {
    /// What is missing of it, in thousandths of a byte: bytes per second are as many per
    /// millisecond.
    missing: u64,
    /// When that was so.
    at: Millis,
}

impl Bucket {
    /// Takes bytes out, whether there are as many or not.
    fn take(&mut self, rate: ByteRate, now: Millis, bytes: usize) {
        let came = now.saturating_sub(self.at).saturating_mul(rate.bytes_per_s);
        let taken = (bytes as u64).saturating_mul(1000);
        *self = Self { missing: self.missing.saturating_sub(came).saturating_add(taken), at: now };
    }

    /// What is missing of it now, for another process.
    pub(super) fn give_out(mut self, rate: Option<ByteRate>, now: Millis) -> u64 {
        let Some(rate) = rate else { return 0 };
        self.take(rate, now, 0);
        self.missing
    }

    /// One of which so much is missing now.
    pub(super) fn with_missing(now: Millis, missing: u64) -> Self {
        Self { missing, at: now }
    }

    /// How long it is overdrawn from now on, if it is.
    fn wait(&mut self, rate: ByteRate, now: Millis) -> Option<Millis> {
        self.take(rate, now, 0);
        let overdrawn = self.missing.saturating_sub(rate.burst_bytes.saturating_mul(1000));
        (overdrawn > 0).then(|| overdrawn.div_ceil(rate.bytes_per_s.max(1)))
    }
}

impl Relay {
    /// Bytes of a connection were read: they are charged to the server-id that it spoke for, even if
    /// they have ended it. If that is over its rate, the connection is not read for a moment.
    #[inline(never)]
    pub(super) fn charge_rate(
        &mut self,
        (entry, rate): (EntryKey, ByteRate),
        now: Millis,
        key: Key,
        bytes: usize,
    ) {
        let Some(held) = self.registry.entry_mut(entry) else { return };
        held.bucket.take(rate, now, bytes);
        let Some(wait) = held.bucket.wait(rate, now) else { return };
        let Some((connection, tracking)) = self.connections.tracked(key) else { return };
        if paced(connection).is_none() {
            return;
        }
        // Its next message may be what proves that it lives.
        if matches!(connection.stage, Stage::Binary { .. }) && held.is_probed() {
            return;
        }
        if !std::mem::replace(&mut connection.slowed, true) {
            self.counters.count(Series::Slowed);
        }
        connection.due.stage = now + wait.min(LOOK_AGAIN_MS);
        tracking.arm(connection);
    }

    /// A connection has waited because its server-id was over its rate: it goes on, or waits on.
    pub(super) fn end_slowing(&mut self, now: Millis, key: Key) {
        let Some(connection) = self.connections.held_mut(key) else { return };
        let Some(entry) = paced(connection) else { return };
        if let Some(rate) = self.limits.server_id_rate
            && let Some(held) = self.registry.entry_mut(entry)
            && let Some(wait) = held.bucket.wait(rate, now)
        {
            connection.due.stage = now + wait.min(LOOK_AGAIN_MS);
            return;
        }
        self.read_at_full_pace(now, key);
    }

    /// A connection is read, whatever its server-id has sent.
    pub(super) fn read_at_full_pace(&mut self, now: Millis, key: Key) {
        let Some((connection, tracking)) = self.connections.tracked(key) else { return };
        if !std::mem::take(&mut connection.slowed) {
            return;
        }
        connection.due.stage = NEVER;
        connection.resume_deadlines(now, &self.limits);
        tracking.arm(connection);
        if !connection.paused {
            self.output.act(Action::Read(key));
        }
    }
}

/// Whom what a connection sends now is charged to, and by which rate; nobody where none is set.
#[inline]
pub(super) fn rated(limits: &Limits, connection: &Connection) -> Option<(EntryKey, ByteRate)> {
    let rate = limits.server_id_rate?;
    paced(connection).map(|entry| (entry, rate))
}

/// The server-id whose rate the connection counts for. A newcomer counts for none, or a stranger who
/// claims an id could slow its holder; what it may send ahead is bounded.
fn paced(connection: &Connection) -> Option<EntryKey> {
    match connection.stage {
        Stage::Binary { entry, .. } | Stage::Phone { entry, .. } => Some(entry),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: ByteRate = ByteRate { bytes_per_s: 2000, burst_bytes: 5000 };

    #[test]
    fn a_burst_passes_at_once_and_then_what_a_second_brings() {
        let mut bucket = Bucket::default();
        bucket.take(RATE, 0, 5000);
        assert_eq!(bucket.wait(RATE, 0), None);
        bucket.take(RATE, 0, 1);
        assert_eq!(bucket.wait(RATE, 0), Some(1));
        bucket.take(RATE, 0, 3999);
        assert_eq!(bucket.wait(RATE, 0), Some(2000));
        assert_eq!(bucket.wait(RATE, 500), Some(1500));
        assert_eq!(bucket.wait(RATE, 2000), None);
        // No more than the burst is saved up.
        bucket.take(RATE, 1_000_000, 5002);
        assert_eq!(bucket.wait(RATE, 1_000_000), Some(1));
    }

    #[test]
    fn parts_of_a_byte_are_not_lost_however_often_one_looks() {
        let slow = ByteRate { bytes_per_s: 1024, burst_bytes: 1024 };
        let mut bucket = Bucket::default();
        bucket.take(slow, 0, 2048);
        let over_at = (0..5000).find(|now| bucket.wait(slow, *now).is_none());
        assert_eq!(over_at, Some(1000));
    }
}
