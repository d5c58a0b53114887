//! Bytes to messages, and what a message means for a phone, a binary and a newcomer.

use super::connection::{Closing, Connection, Stage};
use super::timers::{Millis, NEVER};
use super::{Key, Relay};
use crate::metrics::Series;
use crate::protocol::close::{Close, GONE_WITHOUT_CLOSE};
use crate::protocol::frames::{self, Incoming};
use crate::protocol::json;

impl Relay {
    /// Bytes arrived. They are changed in place (unmasked) and need not outlive the call.
    ///
    /// No more than `messages` of them are dealt with, which is counted down; how many bytes that
    /// took. What is left must come again, before anything else of this connection: a peer may put
    /// ten thousand messages into what one receive brings, and others wait for their turn.
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
            Stage::HandingOver(_) => debug_assert!(false, "read while handing over"),
            _ => taken -= self.on_frame_bytes(now, key, input, messages),
        }
        self.settle(now);
        taken
    }

    /// Whether frames of this connection still have a meaning.
    fn reads_frames(&self, key: Key) -> bool {
        self.connection(key).is_some_and(|connection| {
            connection.is_open()
                || matches!(connection.stage, Stage::Closing(Closing { discard: false, .. }))
        })
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
                    if !self.reads_frames(key) {
                        // What was half read goes with the decoder.
                        self.charge_input(now, key, 0);
                        return 0;
                    }
                    // A ping amid fragments buys the message that they belong to no time.
                    if !decoder.is_mid_message() {
                        self.message_completed(key);
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
        let fragment_completed = decoder.take_fragment_completed();
        let Some(connection) = self.connection_mut(key) else { return 0 };
        connection.decoder = decoder;
        if fragment_completed && let Stage::Binary { entry, .. } = connection.stage {
            self.holder_lives(now, entry);
        }
        let Some(connection) = self.connection_mut(key) else { return 0 };
        if !half_read {
            connection.due.message = NEVER;
        } else if connection.due.message == NEVER && connection.is_open() {
            connection.due.message = message_due;
            self.arm(key);
        }
        self.charge_half_read(now, key, buffered);
        left
    }

    /// The next half-read message has its full time.
    fn message_completed(&mut self, key: Key) {
        if let Some(connection) = self.connection_mut(key) {
            connection.due.message = NEVER;
        }
    }

    /// Charges what the decoder holds, beside what a newcomer has sent ahead. Once for all that
    /// arrived together: the cost of a message is that of its bytes.
    fn charge_half_read(&mut self, now: Millis, key: Key, buffered: usize) {
        let Some(connection) = self.connection(key) else { return };
        let held = match &connection.stage {
            Stage::Newcomer(newcomer) => newcomer.ahead.held_bytes(),
            _ => 0,
        };
        self.charge_input(now, key, buffered + held);
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
        if let Stage::Closing(_) = connection.stage {
            // Our close frame is queued or sent: only the peer's answer to it still counts.
            if let Incoming::Close(code) = message {
                self.on_peer_close(now, key, code);
            }
            return;
        }
        if let Stage::Binary { entry, .. } = connection.stage
            && !matches!(message, Incoming::Close(_))
        {
            self.holder_lives(now, entry);
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
        }
    }

    /// A data message: `text` where it is known to be UTF-8.
    fn on_data(&mut self, now: Millis, key: Key, bytes: &[u8], text: Option<&str>) {
        let Some(connection) = self.connection_mut(key) else { return };
        match &mut connection.stage {
            Stage::Phone { .. } => {
                let frame = match text {
                    Some(text) => json::validate_str(text).map(str::as_bytes),
                    None => json::validate(bytes),
                };
                match frame {
                    Ok(frame) => self.on_phone_frame(now, key, frame),
                    Err(error) => {
                        let remote = connection.remote;
                        tracing::info!(%remote, err = %error, "phone_sent_no_json");
                        self.counters.count(Series::MalformedPhoneMessages);
                        self.close_now(now, key, Close::NORMAL, Some(GONE_WITHOUT_CLOSE));
                    }
                }
            }
            Stage::Binary { .. } => match text {
                Some(text) => self.on_binary_text(now, key, text),
                None => self.on_binary_message(now, key, bytes),
            },
            Stage::Newcomer(newcomer) => {
                newcomer.ahead.push(bytes);
                connection.paused = newcomer.ahead.is_full();
            }
            _ => {}
        }
    }
}
