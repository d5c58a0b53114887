//! What is queued for a socket, and what the kernel took.

use super::closing::Loss;
use super::connection::Stage;
use super::ledger::Part;
use super::outbox::{MAX_CONTROL_GROWTH_BYTES, Write, charge_of, growth_bound};
use super::timers::{Millis, NEVER};
use super::{Action, Key, Relay};
use crate::protocol::close::Close;
use crate::protocol::frames;

/// An outbox of a binary that is over this is full: its phones are not read until it has drained
/// to half of it. Beyond it come at most the messages that were being read already.
pub(super) const BINARY_FULL_BYTES: usize = 1024 * 1024;

impl Relay {
    /// What should be written to the connection now, if anything, and if no write is under way.
    pub fn begin_write(&mut self, now: Millis, key: Key) -> Option<Write> {
        let due = now + self.limits.write_timeout_ms;
        let connection = self.connections.get_mut(key.0 as usize)?;
        connection.write_queued = false;
        if matches!(connection.stage, Stage::Closed) {
            return None;
        }
        let has_control = connection.outbox.has_control();
        let write = connection.outbox.take_write()?;
        if has_control {
            self.ledger.set(key, Part::Outbox, connection.outbox.held_bytes());
        }
        connection.due.write = due;
        let timer = connection.timer;
        self.wheel.arm_by(timer, due);
        Some(write)
    }

    /// The write that [`Relay::begin_write`] gave is over: the kernel took `taken` bytes of it, or
    /// failed (`None`), which means that the peer is gone.
    pub fn on_written(&mut self, now: Millis, key: Key, buffer: Vec<u8>, taken: Option<usize>) {
        let Some(connection) = self.connections.get_mut(key.0 as usize) else { return };
        if matches!(connection.stage, Stage::Closed) {
            return;
        }
        connection.due.write = NEVER;
        let Some(taken) = taken else {
            self.lose(now, key, Loss::WriteFailed);
            return self.settle(now);
        };
        connection.outbox.on_written(&mut self.spare, buffer, taken);
        let (held, is_empty) = (connection.outbox.held_bytes(), connection.outbox.is_empty());
        self.ledger.set(key, Part::Outbox, held);
        match connection.stage {
            Stage::Phone { .. } | Stage::Newcomer(_) => {}
            Stage::Binary { entry, .. } => {
                if connection.outbox.charged() < BINARY_FULL_BYTES / 2
                    && self.registry.entry(entry).is_some_and(|entry| !entry.congested.is_empty())
                {
                    self.resume_phones(now, entry);
                }
            }
            Stage::Head(_) | Stage::HandingOver(_) | Stage::Closing(_) | Stage::Closed => {
                if taken > 0 {
                    connection.note_progress(now + self.limits.close_timeout_ms);
                }
                if is_empty {
                    self.after_flush(now, key);
                }
            }
        }
        if !is_empty {
            self.queue_write(key);
        }
        self.settle(now);
    }

    /// The write that [`Relay::begin_write`] gave has made progress and goes on.
    pub fn on_write_progress(&mut self, now: Millis, key: Key) {
        let due = now + self.limits.write_timeout_ms;
        let close_due = now + self.limits.close_timeout_ms;
        let Some(connection) = self.connection_mut(key) else { return };
        if connection.due.write != NEVER {
            connection.due.write = due;
        }
        connection.note_progress(close_due);
    }

    /// Has the shell ask for a write at the end of its turn.
    pub(super) fn queue_write(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key.0 as usize) else { return };
        self.queued_behind |= connection.outbox.in_flight();
        if !connection.outbox.is_empty() && connection.asks_for_write() {
            self.actions.push(Action::Write(key));
        }
    }

    /// Whether something was queued, since this was asked last, behind a write that was under way.
    /// Whoever does not hear of a write as soon as it is over must look then.
    pub fn take_queued_behind(&mut self) -> bool {
        std::mem::take(&mut self.queued_behind)
    }

    /// Queues one text message, whose payload `write` appends. What is queued then, by charge;
    /// `None` if that would be over `limit_bytes`, if the connection is not open, or if memory is
    /// so short that the message must be lost.
    pub(super) fn push_text(
        &mut self,
        to: Key,
        payload_bytes: usize,
        limit_bytes: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Option<usize> {
        let frame_bytes = frames::header_len(payload_bytes) + payload_bytes;
        let connection = self.connections.get_mut(to.0 as usize)?;
        let outbox = &mut connection.outbox;
        let queued_bytes = outbox.charged() + charge_of(payload_bytes);
        if queued_bytes > limit_bytes || !connection.stage.is_open() {
            return None;
        }
        debug_assert!(outbox.most_growth(frame_bytes) <= growth_bound(frame_bytes), "a bound");
        // Nearly always there is room for whatever it may be.
        if !self.ledger.has_leased(growth_bound(frame_bytes))
            && !self.ledger.has_room(outbox.most_growth(frame_bytes))
        {
            return None;
        }
        outbox.push_frame(&mut self.spare, frame_bytes, payload_bytes, |out| {
            frames::push_text_header(out, payload_bytes);
            write(out);
        });
        connection.traffic.count_out(payload_bytes);
        self.ledger.set(to, Part::Outbox, connection.outbox.held_bytes());
        self.queued_behind |= connection.outbox.in_flight();
        if connection.asks_for_write() {
            self.actions.push(Action::Write(to));
        }
        Some(queued_bytes)
    }

    /// Queues a close frame, the last frame of a connection. Without room for it, the connection
    /// is aborted.
    pub(super) fn push_close(&mut self, key: Key, close: Close) {
        self.push_close_with(key, close.code, close.reason);
    }

    /// As [`Relay::push_close`], with a reason of at most 123 bytes.
    pub(super) fn push_close_with(&mut self, key: Key, code: u16, reason: &str) {
        let mut frame = Vec::with_capacity(frames::MAX_HEADER_BYTES + 2 + reason.len());
        frames::push_close_with(&mut frame, code, reason);
        self.push_last(key, &frame);
    }

    /// As [`Relay::push_close`], with the peer's own code.
    pub(super) fn push_close_echo(&mut self, key: Key, code: Option<u16>) {
        let mut frame = Vec::with_capacity(frames::MAX_HEADER_BYTES);
        frames::push_close_code(&mut frame, code);
        self.push_last(key, &frame);
    }

    fn push_last(&mut self, key: Key, frame: &[u8]) {
        let (_, payload_bytes) = frames::frame_extent(frame).unwrap_or_default();
        let Some(connection) = self.connections.get_mut(key.0 as usize) else { return };
        if !self.ledger.has_room(connection.outbox.most_growth(frame.len())) {
            return self.abort(key);
        }
        connection.outbox.push_frame(&mut self.spare, frame.len(), payload_bytes, |out| {
            out.extend_from_slice(frame);
        });
        self.charge_outbox(key);
        self.queue_write(key);
    }

    /// Queues a ping or a pong, ahead of waiting messages. False if the connection is not open, or
    /// memory is so short that it must be lost.
    pub(super) fn push_control(&mut self, key: Key, frame: &[u8]) -> bool {
        let Some(connection) = self.connections.get_mut(key.0 as usize) else { return false };
        if !connection.is_open() || !self.ledger.has_room(MAX_CONTROL_GROWTH_BYTES) {
            return false;
        }
        connection.outbox.push_control(frame);
        self.charge_outbox(key);
        self.queue_write(key);
        true
    }

    /// Queues HTTP bytes. False if there was no room and the connection was aborted.
    pub(super) fn push_http(&mut self, key: Key, bytes: &[u8]) -> bool {
        let Some(connection) = self.connections.get_mut(key.0 as usize) else { return false };
        if matches!(connection.stage, Stage::Closed) {
            return false;
        }
        if !self.ledger.has_room(connection.outbox.most_growth(bytes.len())) {
            self.abort(key);
            return false;
        }
        connection.outbox.push_http(&mut self.spare, bytes);
        self.charge_outbox(key);
        self.queue_write(key);
        true
    }
}
