//! Frames across, and backpressure (PROTOCOL.md, chapters 4 and 5).

use super::closing::series_of_directive;
use super::connection::{Connection, Stage};
use super::connections::Connections;
use super::memory::Work;
use super::output::BINARY_FULL_BYTES;
use super::registry::EntryKey;
use super::timers::Millis;
use super::{Key, Relay};
use crate::metrics::Series;
use crate::protocol::close::{Close, GONE_WITHOUT_CLOSE};
use crate::protocol::envelope::{self, Envelope, EnvelopeError};
use crate::protocol::ids::ConnId;
use std::num::NonZeroU16;
use tracing::info;

/// What may wait for one phone, by charge.
const PHONE_OUTBOX_BYTES: usize = 4 * 1024 * 1024;

/// What one phone may still send while its binary's outbox is full, so that a ping behind a
/// message or two is still read and answered.
const CONGESTED_PHONE_BYTES: u32 = 16 * 1024;

impl Relay {
    /// One JSON value of a phone, trimmed: wrapped and queued for the holder of its id.
    pub(super) fn on_phone_frame(
        &mut self,
        now: Millis,
        phone: Key,
        (entry, conn_id): (EntryKey, ConnId),
        frame: &[u8],
    ) {
        let payload_bytes = envelope::wrapped_len(frame.len());
        let holder = self.registry.holder(entry);
        let queued_bytes =
            holder.and_then(|holder| self.connections.held_mut(holder)).and_then(|holder| {
                let limits = (payload_bytes, usize::MAX);
                self.output.push_text(holder, &mut self.ledger, limits, |out| {
                    envelope::push_wrapped(out, &conn_id, frame);
                })
            });
        match queued_bytes {
            Some(queued_bytes) => {
                self.counters.count(Series::FramesPhoneToBinary);
                self.counters.add(Series::BytesPhoneToBinary, frame.len() as u64);
                if queued_bytes >= BINARY_FULL_BYTES {
                    self.slow_down(phone, payload_bytes);
                }
            }
            None => {
                let server_id = self.registry.name(entry);
                info!(server_id, conn_id = conn_id.as_str(), "phone_frame_undeliverable");
                self.close_now(now, phone, Close::NORMAL, Some(GONE_WITHOUT_CLOSE));
            }
        }
    }

    /// The binary's outbox is full and this phone goes on sending: it is no longer read.
    fn slow_down(&mut self, phone: Key, sent_bytes: usize) {
        let Some(connection) = self.connections.held_mut(phone) else { return };
        let Stage::Phone { congested_bytes, entry, .. } = &mut connection.stage else {
            return self.broken("a phone's frame was passed on that is no phone's");
        };
        let is_first = *congested_bytes == 0;
        *congested_bytes = congested_bytes.saturating_add(sent_bytes as u32);
        connection.paused = *congested_bytes >= CONGESTED_PHONE_BYTES;
        if is_first && let Some(entry) = self.registry.entry_mut(*entry) {
            entry.congested.push(phone);
        }
    }

    /// The binary's outbox has drained, or there is no binary any more: its phones are read again.
    /// O(1) for each that has sent something meanwhile.
    pub(super) fn resume_phones(&mut self, now: Millis, entry: EntryKey) {
        let Some(held) = self.registry.entry_mut(entry) else { return };
        for phone in std::mem::take(&mut held.congested) {
            // One that has left may have been followed by anybody, or by nobody.
            let Some((connection, tracking)) = self.connections.find_tracked(phone) else {
                continue;
            };
            match &mut connection.stage {
                Stage::Phone { congested_bytes, entry: of, .. } if *of == entry => {
                    *congested_bytes = 0;
                }
                _ => continue,
            }
            if self.output.resume(connection) {
                connection.resume_deadlines(now, &self.limits);
                tracking.arm(connection);
            }
        }
    }

    /// What the holder of an id has sent ahead, unless it has ended meanwhile.
    pub(super) fn on_message_ahead(&mut self, now: Millis, binary: Key, message: &[u8]) {
        if let Some(Connection { stage: Stage::Binary { entry, .. }, .. }) =
            self.connections.held(binary)
        {
            self.on_envelope(now, *entry, envelope::unwrap(message));
        }
    }

    /// A message of the holder of an id.
    pub(super) fn on_envelope(
        &mut self,
        now: Millis,
        entry: EntryKey,
        envelope: Result<Envelope<'_>, EnvelopeError>,
    ) {
        match envelope {
            Ok(Envelope::Frame { to, frame, close_code }) => {
                self.deliver(now, entry, to, Some(frame), close_code);
            }
            Ok(Envelope::Close { to, close_code }) => {
                self.deliver(now, entry, to, None, Some(close_code));
            }
            Ok(Envelope::PushWake { platform, token }) => {
                self.on_wake(now, entry, &platform, &token);
            }
            Err(error) => self.on_bad_envelope(now, entry, error),
        }
    }

    /// What a binary has for one of its phones: a frame, a close, or both in this order.
    fn deliver(
        &mut self,
        now: Millis,
        entry: EntryKey,
        to: Option<ConnId>,
        frame: Option<&[u8]>,
        close_code: Option<NonZeroU16>,
    ) {
        let Some(phone) = to.and_then(|to| find_phone(&mut self.connections, entry, to)) else {
            return self.on_unknown_conn_id(now, entry, to);
        };
        let key = phone.key;
        let close = close_code.map(|code| Close::directive(code.get()));
        if let Some(frame) = frame {
            let limits = (frame.len(), PHONE_OUTBOX_BYTES);
            let queued = self.output.push_text(phone, &mut self.ledger, limits, |out| {
                out.extend_from_slice(frame);
            });
            if queued.is_none() {
                return match close {
                    Some(asked) => self.close_as(series_of_directive(asked), now, key, asked, None),
                    None => self.close_now(now, key, Close::BACKLOG_FULL, Some(GONE_WITHOUT_CLOSE)),
                };
            }
            self.counters.count(Series::FramesBinaryToPhone);
            self.counters.add(Series::BytesBinaryToPhone, frame.len() as u64);
        }
        if let Some(close) = close {
            self.close_in_turn(now, key, close);
        }
    }

    /// Tells the holder of an id that one of its phones is gone. A holder that cannot be told is
    /// aborted: it must not believe in a phone that is not there.
    pub(super) fn notify(&mut self, entry: EntryKey, conn_id: ConnId, code: u16) {
        // In grace, nobody is told.
        let Some(holder) = self.registry.holder(entry) else { return };
        let Some(connection) = self.connections.held_mut(holder) else { return };
        let limits = (envelope::close_notice_len(code), usize::MAX);
        let told = self.output.push_text(connection, &mut self.ledger, limits, |out| {
            envelope::push_close_notice(out, &conn_id, code);
        });
        if told.is_none() {
            self.work.push_back(Work::Lose(holder));
        }
    }
}

/// The phone with this name, if it is one of this id's.
#[inline]
fn find_phone(
    connections: &mut Connections,
    of: EntryKey,
    name: ConnId,
) -> Option<&mut Connection> {
    let key = match connections.has_displaced() {
        true => connections.key_of(&name),
        false => Key(name.slot()),
    };
    let phone = connections.find_mut(key)?;
    match phone.stage {
        Stage::Phone { entry, conn_id, .. } if entry == of && conn_id == name => Some(phone),
        _ => None,
    }
}
