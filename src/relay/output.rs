//! What is queued for sockets, what the kernel took of it, and what else the shell is to do.
//!
//! [`Output`] knows of no connection but the one that it is given. So that nothing is queued which
//! nobody is charged for, whatever grows an outbox charges the [`Ledger`] here.

use super::closing::Loss;
use super::connection::{Connection, Stage};
use super::ledger::{Ledger, Part};
use super::outbox::{MAX_CONTROL_GROWTH_BYTES, Write, charge_of, growth_bound};
use super::spare::SpareBuffers;
use super::timers::{Millis, NEVER};
use super::{Action, Key, Relay};
use crate::protocol::frames;

/// An outbox of a binary that is over this is full: its phones are not read until it has drained
/// to half of it. Beyond it come at most the messages that were being read already.
pub(super) const BINARY_FULL_BYTES: usize = 1024 * 1024;

/// There is no room in the memory budget: what was to be queued is lost, and so is the connection,
/// which the caller must end.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoRoom;

/// What the shell is to do, and the buffers for what it is to write.
#[derive(Default)]
pub(super) struct Output {
    spare: SpareBuffers,
    /// Kept for its capacity.
    control: Vec<u8>,
    actions: Vec<Action>,
    queued_behind: bool,
}

impl Output {
    /// Has the shell do something.
    #[inline]
    pub(super) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Whether the shell was told all that it is to do.
    pub(super) fn is_idle(&self) -> bool {
        self.actions.is_empty()
    }

    /// Has the shell read a connection again, if that had stopped.
    pub(super) fn resume(&mut self, connection: &mut Connection) -> bool {
        let was_paused = std::mem::take(&mut connection.paused);
        if was_paused {
            self.actions.push(Action::Read(connection.key));
        }
        was_paused
    }

    /// What should be written to the connection now, if anything, and if no write is under way.
    fn begin_write(&mut self, connection: &mut Connection, ledger: &mut Ledger) -> Option<Write> {
        connection.write_queued = false;
        if connection.is_closed() {
            return None;
        }
        let has_control = connection.outbox.has_control();
        let write = connection.outbox.take_write()?;
        if has_control {
            charge_outbox(connection, ledger);
        }
        Some(write)
    }

    /// Has the shell ask for a write at the end of its turn.
    pub(super) fn queue_write(&mut self, connection: &mut Connection) {
        self.queued_behind |= connection.outbox.in_flight();
        if !connection.outbox.is_empty() && connection.asks_for_write() {
            self.actions.push(Action::Write(connection.key));
        }
    }

    /// Queues one text message, whose payload `write` appends. What is queued then, by charge;
    /// `None` if that would be over `limit_bytes`, if the connection is not open, or if memory is
    /// so short that the message must be lost.
    #[inline]
    pub(super) fn push_text(
        &mut self,
        to: &mut Connection,
        ledger: &mut Ledger,
        (payload_bytes, limit_bytes): (usize, usize),
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Option<usize> {
        let frame_bytes = frames::header_len(payload_bytes) + payload_bytes;
        let outbox = &mut to.outbox;
        let queued_bytes = outbox.charged() + charge_of(payload_bytes);
        if queued_bytes > limit_bytes || !to.stage.is_open() {
            return None;
        }
        debug_assert!(outbox.most_growth(frame_bytes) <= growth_bound(frame_bytes), "a bound");
        // Nearly always there is room for whatever it may be.
        if !ledger.has_leased(growth_bound(frame_bytes))
            && !ledger.has_room(outbox.most_growth(frame_bytes))
        {
            return None;
        }
        outbox.push_frame(&mut self.spare, frame_bytes, payload_bytes, |out| {
            frames::push_text_header(out, payload_bytes);
            write(out);
        });
        ledger.set(to.key, Part::Outbox, outbox.held_bytes());
        self.queued_behind |= outbox.in_flight();
        to.traffic.count_out(payload_bytes);
        if to.asks_for_write() {
            self.actions.push(Action::Write(to.key));
        }
        Some(queued_bytes)
    }

    /// Queues a close frame with a code and a reason of at most 123 bytes, the last frame of a
    /// connection.
    pub(super) fn push_close(
        &mut self,
        to: &mut Connection,
        ledger: &mut Ledger,
        (code, reason): (u16, &str),
    ) -> Result<(), NoRoom> {
        let mut frame = Vec::with_capacity(frames::MAX_HEADER_BYTES + 2 + reason.len());
        frames::push_close_with(&mut frame, code, reason);
        self.push_last(to, ledger, &frame)
    }

    /// As [`Output::push_close`], with the peer's own code.
    pub(super) fn push_close_echo(
        &mut self,
        to: &mut Connection,
        ledger: &mut Ledger,
        code: Option<u16>,
    ) -> Result<(), NoRoom> {
        let mut frame = Vec::with_capacity(frames::MAX_HEADER_BYTES);
        frames::push_close_code(&mut frame, code);
        self.push_last(to, ledger, &frame)
    }

    fn push_last(
        &mut self,
        to: &mut Connection,
        ledger: &mut Ledger,
        frame: &[u8],
    ) -> Result<(), NoRoom> {
        let (_, payload_bytes) = frames::frame_extent(frame).unwrap_or_default();
        if !ledger.has_room(to.outbox.most_growth(frame.len())) {
            return Err(NoRoom);
        }
        to.outbox.push_frame(&mut self.spare, frame.len(), payload_bytes, |out| {
            out.extend_from_slice(frame);
        });
        charge_outbox(to, ledger);
        self.queue_write(to);
        Ok(())
    }

    /// Queues a ping or a pong, which `write` writes, ahead of waiting messages. False if the
    /// connection is not open, or memory is so short that it must be lost.
    pub(super) fn push_control(
        &mut self,
        to: &mut Connection,
        ledger: &mut Ledger,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        if !to.is_open() || !ledger.has_room(MAX_CONTROL_GROWTH_BYTES) {
            return false;
        }
        self.control.clear();
        write(&mut self.control);
        to.outbox.push_control(&self.control);
        charge_outbox(to, ledger);
        self.queue_write(to);
        true
    }

    /// Pings a connection, for its heartbeat or because its id is claimed by another; the answer is
    /// due at `pong_due`. A ping for which there is no memory is not sent, and its answer is not
    /// awaited. Nor is a second one sent while the first still waits for the kernel: whoever answers
    /// that one lives.
    pub(super) fn push_ping(
        &mut self,
        to: &mut Connection,
        ledger: &mut Ledger,
        now: Millis,
        pong_due: Millis,
    ) {
        if !to.outbox.has_ping() {
            let mut heartbeat = to.heartbeat;
            let number = heartbeat.next_ping(now);
            if !self.push_control(to, ledger, |out| frames::push_ping(out, &number.to_be_bytes())) {
                return;
            }
            to.heartbeat = heartbeat;
        }
        to.due.pong = to.due.pong.min(pong_due);
    }

    /// Queues HTTP bytes.
    pub(super) fn push_http(
        &mut self,
        to: &mut Connection,
        ledger: &mut Ledger,
        bytes: &[u8],
    ) -> Result<(), NoRoom> {
        if !ledger.has_room(to.outbox.most_growth(bytes.len())) {
            return Err(NoRoom);
        }
        to.outbox.push_http(&mut self.spare, bytes);
        charge_outbox(to, ledger);
        self.queue_write(to);
        Ok(())
    }
}

/// Charges the connection for what its outbox takes now.
#[inline]
fn charge_outbox(connection: &Connection, ledger: &mut Ledger) {
    ledger.set(connection.key, Part::Outbox, connection.outbox.held_bytes());
}

/// Drops what waits for the connection, but for the rest of a frame that is half sent.
pub(super) fn drop_pending(connection: &mut Connection, ledger: &mut Ledger) {
    connection.outbox.drop_pending();
    charge_outbox(connection, ledger);
}

impl Relay {
    /// What should be written to the connection now, if anything, and if no write is under way.
    pub fn begin_write(&mut self, now: Millis, key: Key) -> Option<Write> {
        let (connection, tracking) = self.connections.tracked(key)?;
        let write = self.output.begin_write(connection, &mut self.ledger)?;
        // After one that the kernel took nothing of, the time runs that it had.
        if connection.due.write == NEVER {
            let due = now + self.limits.write_timeout_ms;
            connection.due.write = due;
            tracking.arm_by(connection, due);
        }
        Some(write)
    }

    /// The write that [`Relay::begin_write`] gave is over: the kernel took `taken` bytes of it, or
    /// failed (`None`), which means that the peer is gone.
    pub fn on_written(&mut self, now: Millis, key: Key, buffer: Vec<u8>, taken: Option<usize>) {
        let Some(connection) = self.connections.held_mut(key) else { return };
        if connection.is_closed() {
            return;
        }
        let Some(taken) = taken else {
            self.lose(now, key, Loss::WriteFailed);
            return self.settle(now);
        };
        if taken > 0 {
            connection.due.write = NEVER;
        }
        connection.outbox.on_written(&mut self.output.spare, buffer, taken);
        charge_outbox(connection, &mut self.ledger);
        let is_empty = connection.outbox.is_empty();
        if !is_empty {
            self.output.queue_write(connection);
        }
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
        self.settle(now);
    }

    /// The write that [`Relay::begin_write`] gave has made progress and goes on.
    pub fn on_write_progress(&mut self, now: Millis, key: Key) {
        let Some(connection) = self.connections.held_mut(key) else { return };
        if connection.due.write != NEVER {
            connection.due.write = now + self.limits.write_timeout_ms;
        }
        connection.note_progress(now + self.limits.close_timeout_ms);
    }

    /// Moves the actions that came up since the last call to `into`.
    pub fn take_actions(&mut self, into: &mut Vec<Action>) {
        into.append(&mut self.output.actions);
    }

    /// Whether something was queued, since this was asked last, behind a write that was under way.
    /// Whoever does not hear of a write as soon as it is over must look then.
    pub fn take_queued_behind(&mut self) -> bool {
        std::mem::take(&mut self.output.queued_behind)
    }
}
