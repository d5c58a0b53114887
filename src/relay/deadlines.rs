//! What time brings about: heartbeats, and the end of what took too long (PROTOCOL.md, chapter 2).

use super::closing::Loss;
use super::connection::Stage;
use super::timers::Millis;
use super::verify::Verdict;
use super::{Key, Relay};
use crate::protocol::close::{Close, GONE_WITHOUT_CLOSE};

/// Heartbeats of many connections are sent in one turn: their times are rounded up to a
/// sixty-fourth of the interval, and at most to this.
const HEARTBEAT_BATCH_MS: u64 = 500;

impl Relay {
    /// The time is `now`: acts on every deadline that has passed.
    pub fn on_timers(&mut self, now: Millis) {
        while let Some(key) = self.connections.pop_expired(now) {
            self.connection_timed_out(now, key);
            if let Some((connection, tracking)) = self.connections.tracked(key) {
                tracking.arm(connection);
            }
            self.settle(now);
        }
        while let Some(entry) = self.registry.pop_expired(now) {
            self.entry_timed_out(now, entry);
            self.settle(now);
        }
        // Room that others have made meanwhile is taken, or they are asked again.
        self.settle(now);
    }

    /// When [`Relay::on_timers`] should be called next.
    #[must_use]
    pub fn next_wake_ms(&self) -> Option<Millis> {
        match (self.connections.next_wake_ms(), self.registry.next_wake_ms()) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    fn connection_timed_out(&mut self, now: Millis, key: Key) {
        let Some(connection) = self.connections.held_mut(key) else { return };
        let due = connection.due;
        if due.write <= now {
            return self.lose(now, key, Loss::WriteTimeout);
        }
        if due.stage <= now {
            return match connection.stage {
                Stage::Head(_) | Stage::HandingOver(_) => self.head_timed_out(now, key),
                Stage::Verifying(_) => self.end_verification(now, key, Verdict::NoAnswer),
                Stage::Closing(_) => self.closing_timed_out(now, key),
                Stage::Binary { .. } | Stage::Phone { .. } if connection.slowed => {
                    self.end_slowing(now, key);
                }
                Stage::Newcomer(_) | Stage::Binary { .. } | Stage::Phone { .. } | Stage::Closed => {
                    self.broken("an open connection has a deadline of another stage");
                    self.lose(now, key, Loss::MessageTimeout);
                }
            };
        }
        if due.message <= now && !connection.slowed {
            return self.lose(now, key, Loss::MessageTimeout);
        }
        if due.pong <= now && !connection.is_paused() {
            return self.heartbeat_failed(now, key);
        }
        if due.pong <= now || due.message <= now {
            // What it owes may wait in the socket that we do not read.
            connection.resume_deadlines(now, &self.limits);
        }
        if due.ping <= now {
            self.tell_faults(now, key);
            self.send_ping(now, key);
            self.start_heartbeat(now, key);
        }
    }

    fn heartbeat_failed(&mut self, now: Millis, key: Key) {
        tracing::info!(remote = self.remote_of(key), "heartbeat_timeout");
        self.close_now(now, key, Close::HEARTBEAT_TIMEOUT, Some(GONE_WITHOUT_CLOSE));
    }

    /// The next ping of an open connection is one interval away.
    pub(super) fn start_heartbeat(&mut self, now: Millis, key: Key) {
        let interval = self.limits.heartbeat_interval_ms;
        let batch = (interval / 64).clamp(1, HEARTBEAT_BATCH_MS);
        let Some((connection, tracking)) = self.connections.tracked(key) else { return };
        // It may have been turned away at once.
        if connection.is_open() {
            connection.due.ping = (now + interval).next_multiple_of(batch);
            tracking.arm(connection);
        }
    }

    /// Pings a connection, for its heartbeat or because its id is claimed by another.
    pub(super) fn send_ping(&mut self, now: Millis, key: Key) {
        let pong_due = now + self.limits.heartbeat_timeout_ms;
        let Some((connection, tracking)) = self.connections.tracked(key) else { return };
        self.output.push_ping(connection, &mut self.ledger, now, pong_due);
        tracking.arm(connection);
    }
}
