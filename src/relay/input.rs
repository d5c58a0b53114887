//! Bytes to messages, and what a message means for a phone, a binary and a newcomer.

use super::connection::{Closing, Connection, Stage};
use super::timers::{Millis, NEVER};
use super::{Key, Relay};
use crate::metrics::Series;
use crate::protocol::close::{Close, GONE_WITHOUT_CLOSE};
use crate::protocol::envelope;
use crate::protocol::frames::{self, Incoming};
use crate::protocol::json;

impl Relay {
    /// Bytes arrived. They are changed in place (unmasked) and need not outlive the call.
    ///
    /// No more than `messages` of them are dealt with, which is counted down; how many bytes that
    /// took. A fragment of a message counts as one. What is left must come again, before anything
    /// else of this connection: a peer may put ten thousand messages into what one receive brings,
    /// and others wait for their turn.
    pub fn on_bytes(
        &mut self,
        now: Millis,
        key: Key,
        input: &mut [u8],
        messages: &mut u32,
    ) -> usize {
        let Some(connection) = self.connection(key) else { return input.len() };
        let mut taken = input.len();
        match &connection.stage {
            Stage::Head(_) => self.on_head_bytes(now, key, input),
            Stage::Closing(Closing { discard: true, answered, .. }) => {
                if !answered && frames::ends_in_close(input) {
                    self.on_answer(now, key);
                }
            }
            Stage::Closed => {}
            Stage::HandingOver(_) => {
                self.broken("a connection is read that is on its way to another worker")
            }
            _ => taken -= self.on_frame_bytes(now, key, input, messages),
        }
        self.settle(now);
        taken
    }

    /// How many bytes are left, because there are no more `messages` to spend on them.
    fn on_frame_bytes(
        &mut self,
        now: Millis,
        key: Key,
        input: &mut [u8],
        messages: &mut u32,
    ) -> usize {
        let Some(connection) = self.connection_mut(key) else { return 0 };
        // Apart from its connection while a message may change that.
        let mut decoder = std::mem::take(&mut connection.decoder);
        let mut rest = input;
        // One more call where nothing is left lets go of a message that was in several pieces.
        while *messages > 0 || rest.is_empty() {
            match decoder.next(&mut rest) {
                Ok(Some(message)) => {
                    *messages = messages.saturating_sub(1);
                    self.on_message(now, key, message);
                    self.settle(now);
                    let connection = self.connection_mut(key);
                    let Some(connection) = connection.filter(|c| c.reads_frames()) else {
                        // What was half read goes with the decoder.
                        self.charge_input(now, key, 0);
                        return 0;
                    };
                    // The next message has its full time. A ping amid fragments buys the message
                    // that they belong to none.
                    if !decoder.is_mid_message() {
                        connection.due.message = NEVER;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    self.on_frame_error(now, key, error);
                    return 0;
                }
            }
        }
        let left = rest.len();
        let message_due = now + self.limits.message_timeout_ms;
        let (half_read, buffered) = (decoder.is_mid_message(), decoder.buffered_bytes());
        let Some(connection) = self.connections.get_mut(key.0 as usize) else { return 0 };
        connection.decoder = decoder;
        if !half_read {
            connection.due.message = NEVER;
        } else if connection.due.message == NEVER && connection.is_open() {
            connection.due.message = message_due;
            self.wheel.arm_by(connection.timer, message_due);
        }
        // Once for all that arrived together: the cost of a message is that of its bytes.
        let held = buffered + connection.stage.ahead_bytes();
        if self.ledger.charges(key).input as usize != held {
            self.charge_input(now, key, held);
        }
        left
    }

    fn on_frame_error(&mut self, now: Millis, key: Key, error: frames::FrameError) {
        let Some(Connection { stage, remote, .. }) = self.connection_mut(key) else { return };
        if let Stage::Closing(closing) = stage {
            closing.discard = true;
            self.charge_input(now, key, 0);
            return;
        }
        tracing::info!(
            remote = %remote,
            err = %error,
            close_code = error.close().code,
            "websocket_protocol_error"
        );
        self.charge_input(now, key, 0);
        self.fail(now, key, error);
    }

    fn on_message(&mut self, now: Millis, key: Key, message: Incoming<'_>) {
        let Some(connection) = self.connection(key) else { return };
        match connection.stage {
            Stage::Closing(_) => {
                // Our close frame is queued or sent: only the peer's answer to it still counts.
                if let Incoming::Close(code) = message {
                    self.on_peer_close(now, key, code);
                }
                return;
            }
            Stage::Binary { entry, .. } if !matches!(message, Incoming::Close(_)) => {
                self.holder_lives(now, entry);
            }
            _ => {}
        }
        match message {
            Incoming::Text(text) => self.on_data(now, key, text.as_bytes(), Some(text)),
            Incoming::Binary(bytes) => self.on_data(now, key, bytes, None),
            Incoming::Ping(payload) => {
                let mut pong = std::mem::take(&mut self.pong);
                pong.clear();
                frames::push_pong(&mut pong, payload);
                self.push_control(key, &pong);
                self.pong = pong;
            }
            Incoming::Pong(payload) => self.on_pong(now, key, payload),
            Incoming::Close(code) => self.on_peer_close(now, key, code),
            Incoming::Fragment => {}
        }
    }

    /// A data message: `text` where it is known to be UTF-8.
    fn on_data(&mut self, now: Millis, key: Key, bytes: &[u8], text: Option<&str>) {
        let Some(connection) = self.connection_mut(key) else { return };
        connection.traffic.count_in(bytes.len());
        match &mut connection.stage {
            Stage::Phone { entry, conn_id, .. } => {
                let (entry, conn_id) = (*entry, *conn_id);
                let frame = match text {
                    Some(text) => json::validate_str(text).map(str::as_bytes),
                    None => json::validate(bytes),
                };
                match frame {
                    Ok(frame) => self.on_phone_frame(now, key, (entry, conn_id), frame),
                    Err(error) => {
                        let remote = connection.remote;
                        tracing::info!(%remote, err = %error, "phone_sent_no_json");
                        self.counters.count(Series::MalformedPhoneMessages);
                        self.close_now(now, key, Close::NORMAL, Some(GONE_WITHOUT_CLOSE));
                    }
                }
            }
            Stage::Binary { entry, .. } => {
                let entry = *entry;
                let envelope = match text {
                    Some(text) => envelope::unwrap_str(text),
                    None => envelope::unwrap(bytes),
                };
                self.on_envelope(now, entry, envelope);
            }
            Stage::Newcomer(newcomer) => {
                newcomer.ahead.push(bytes);
                connection.paused = newcomer.ahead.is_full();
            }
            _ => {}
        }
    }
}
