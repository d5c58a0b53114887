//! What time brings about: heartbeats, and the end of what took too long (PROTOCOL.md, chapter 2).

use super::closing::Loss;
use super::connection::Stage;
use super::timers::{Millis, NEVER};
use super::{Key, Relay, TimerOwner};
use crate::protocol::close::{Close, GONE_WITHOUT_CLOSE};
use crate::protocol::frames;

/// Heartbeats of many connections are sent in one turn: their times are rounded up to a
/// sixty-fourth of the interval, and at most to this.
const HEARTBEAT_BATCH_MS: u64 = 500;

impl Relay {
    /// The time is `now`: acts on every deadline that has passed.
    pub fn on_timers(&mut self, now: Millis) {
        while let Some(owner) = self.wheel.pop_expired(now) {
            match owner {
                TimerOwner::Connection(key) => {
                    self.connection_timed_out(now, key);
                    self.arm(key);
                }
                TimerOwner::Entry(entry) => self.entry_timed_out(now, entry),
            }
            self.settle(now);
        }
        // Room that others have made meanwhile is taken, or they are asked again.
        self.settle(now);
    }

    fn connection_timed_out(&mut self, now: Millis, key: Key) {
        let Some(connection) = self.connection(key) else { return };
        let due = connection.due;
        if due.write <= now {
            return self.lose(now, key, Loss::WriteTimeout);
        }
        if due.stage <= now {
            return match connection.stage {
                Stage::Head(_) | Stage::HandingOver(_) => self.head_timed_out(now, key),
                Stage::Closing(_) => self.closing_timed_out(now, key),
                _ => self.abort(key),
            };
        }
        if due.message <= now {
            return self.lose(now, key, Loss::MessageTimeout);
        }
        if due.pong <= now {
            if !connection.paused {
                return self.heartbeat_failed(now, key);
            }
            // Its pong may wait in the socket that we do not read.
            self.resume_deadlines(now, key);
        }
        if due.ping <= now {
            self.tell_faults(now, key);
            self.send_ping(now, key);
            // Unless making room for the ping has cost the connection itself.
            self.start_heartbeat(now, key);
        }
    }

    fn heartbeat_failed(&mut self, now: Millis, key: Key) {
        if let Some(connection) = self.connection(key) {
            tracing::info!(remote = %connection.remote, "heartbeat_timeout");
        }
        self.close_now(now, key, Close::HEARTBEAT_TIMEOUT, Some(GONE_WITHOUT_CLOSE));
    }

    /// The next ping of an open connection is one interval away.
    pub(super) fn start_heartbeat(&mut self, now: Millis, key: Key) {
        if self.connection(key).is_some_and(|connection| connection.is_open()) {
            self.schedule_ping(now, key);
        }
    }

    fn schedule_ping(&mut self, now: Millis, key: Key) {
        let interval = self.limits.heartbeat_interval_ms;
        let batch = (interval / 64).clamp(1, HEARTBEAT_BATCH_MS);
        let at = (now + interval).next_multiple_of(batch);
        if let Some(connection) = self.connection_mut(key) {
            connection.due.ping = at;
        }
        self.arm(key);
    }

    /// Pings a connection, for its heartbeat or because its id is claimed by another. A ping for
    /// which there is no memory is not sent, and its answer is not awaited. Nor is a second one sent
    /// while the first still waits for the kernel: whoever answers that one lives.
    pub(super) fn send_ping(&mut self, now: Millis, key: Key) {
        let pong_due = now + self.limits.heartbeat_timeout_ms;
        let Some(connection) = self.connection(key) else { return };
        if !connection.outbox.has_ping() {
            let mut heartbeat = connection.heartbeat;
            let number = heartbeat.next_ping(now);
            let mut ping = Vec::with_capacity(frames::MAX_HEADER_BYTES + size_of_val(&number));
            frames::push_ping(&mut ping, &number.to_be_bytes());
            if !self.push_control(key, &ping) {
                return;
            }
            if let Some(connection) = self.connection_mut(key) {
                connection.heartbeat = heartbeat;
            }
        }
        let Some(connection) = self.connection_mut(key) else { return };
        connection.due.pong = connection.due.pong.min(pong_due);
        self.arm(key);
    }

    /// A pong counts if it answers a ping that is not answered yet.
    pub(super) fn on_pong(&mut self, now: Millis, key: Key, payload: &[u8]) {
        let pong_due = now + self.limits.heartbeat_timeout_ms;
        let Some(connection) = self.connection_mut(key) else { return };
        let Ok(number) = payload.try_into().map(u32::from_be_bytes) else { return };
        let heartbeat = &mut connection.heartbeat;
        let behind = heartbeat.sent.wrapping_sub(number);
        if behind >= heartbeat.sent.wrapping_sub(heartbeat.answered) {
            return;
        }
        heartbeat.answered = number;
        if behind == 0 {
            heartbeat.note_answer(now);
        }
        connection.due.pong = if behind == 0 { NEVER } else { pong_due };
        self.arm(key);
    }

    /// Reading goes on after a pause of ours: what the peer owes is due anew from now.
    pub(super) fn resume_deadlines(&mut self, now: Millis, key: Key) {
        let pong_due = now + self.limits.heartbeat_timeout_ms;
        let message_due = now + self.limits.message_timeout_ms;
        let Some(connection) = self.connection_mut(key) else { return };
        if connection.due.pong != NEVER {
            connection.due.pong = connection.due.pong.max(pong_due);
        }
        if connection.due.message != NEVER {
            connection.due.message = connection.due.message.max(message_due);
        }
        self.arm(key);
    }
}
