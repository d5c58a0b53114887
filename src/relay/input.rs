//! Bytes to messages, and what a message means for a phone, a binary and a newcomer.

use super::connection::{Hearing, Speaker, Stage};
use super::timers::{Millis, NEVER};
use super::{Key, Relay, pace};
use crate::metrics::Series;
use crate::protocol::close::{Close, GONE_WITHOUT_CLOSE};
use crate::protocol::envelope;
use crate::protocol::frames::{self, Decoder, Incoming};
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
        let Some(connection) = self.connections.held_mut(key) else { return input.len() };
        let mut taken = input.len();
        match &mut connection.stage {
            Stage::Head(_) => self.on_head_bytes(now, key, input),
            Stage::Closing(closing) => match closing.hearing {
                Hearing::Frames => taken -= self.on_frame_bytes(now, key, input, messages),
                Hearing::Noise if frames::ends_in_close(input) => {
                    closing.hearing = Hearing::Nothing;
                    self.after_flush(now, key);
                }
                Hearing::Noise | Hearing::Nothing => {}
            },
            Stage::Closed => {}
            Stage::HandingOver(_) | Stage::Verifying(_) => {
                self.broken("a connection is read whose request is not answered yet")
            }
            Stage::Newcomer(_) | Stage::Binary { .. } | Stage::Phone { .. } => {
                let rated = pace::rated(&self.limits, connection);
                taken -= self.on_frame_bytes(now, key, input, messages);
                if let Some(rated) = rated {
                    self.charge_rate(rated, now, key, taken);
                }
            }
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
        let Some(connection) = self.connections.held_mut(key) else { return 0 };
        let Some(mut speaker) = connection.speaker() else {
            self.broken("frames are read of a connection that expects none");
            return 0;
        };
        // Apart from its connection while a message may change that.
        let mut decoder = std::mem::take(&mut connection.decoder);
        let mut rest = input;
        // One more call where nothing is left lets go of a message that was in several pieces.
        while *messages > 0 || rest.is_empty() {
            match decoder.next(&mut rest) {
                Ok(Some(message)) => {
                    *messages = messages.saturating_sub(1);
                    let data_bytes = message.data_bytes();
                    self.on_message(now, key, speaker, message);
                    self.settle(now);
                    let Some(connection) = self.connections.held_mut(key) else { return 0 };
                    if let Some(bytes) = data_bytes {
                        connection.traffic.count_in(bytes);
                    }
                    if !connection.is_still(&speaker) {
                        let Some(changed) = connection.speaker() else {
                            // What was half read goes with the decoder.
                            self.charge_input(now, key, 0);
                            return 0;
                        };
                        speaker = changed;
                    }
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
        self.keep_decoder(now, key, decoder);
        rest.len()
    }

    /// Keeps what is half read, until more of it comes.
    #[inline]
    fn keep_decoder(&mut self, now: Millis, key: Key, decoder: Decoder) {
        let message_due = now + self.limits.message_timeout_ms;
        let (half_read, buffered) = (decoder.is_mid_message(), decoder.buffered_bytes());
        let Some((connection, tracking)) = self.connections.tracked(key) else { return };
        connection.decoder = decoder;
        if !half_read {
            connection.due.message = NEVER;
        } else if connection.due.message == NEVER && connection.is_open() {
            connection.due.message = message_due;
            tracking.arm_by(connection, message_due);
        }
        // Once for all that arrived together: the cost of a message is that of its bytes.
        let held = buffered + connection.stage.ahead_bytes();
        if self.ledger.charges(key).input as usize != held {
            self.charge_input(now, key, held);
        }
    }

    fn on_frame_error(&mut self, now: Millis, key: Key, error: frames::FrameError) {
        self.charge_input(now, key, 0);
        let Some(connection) = self.connections.held_mut(key) else { return };
        if let Some(closing) = connection.closing_mut() {
            closing.hearing = Hearing::Noise;
            return;
        }
        tracing::info!(
            remote = %connection.remote,
            err = %error,
            close_code = error.close().code,
            "websocket_protocol_error"
        );
        self.fail(now, key, error);
    }

    #[inline]
    fn on_message(&mut self, now: Millis, key: Key, speaker: Speaker, message: Incoming<'_>) {
        match (speaker, &message) {
            // Our close frame is queued or sent: only the peer's answer to it still counts.
            (Speaker::Closing, Incoming::Close(_)) => {}
            (Speaker::Closing, _) => return,
            (Speaker::Binary { .. }, Incoming::Close(_)) => {}
            (Speaker::Binary { entry }, _) => self.holder_lives(now, entry),
            (Speaker::Phone { .. } | Speaker::Newcomer, _) => {}
        }
        match message {
            Incoming::Text(text) => self.on_data(now, key, speaker, text.as_bytes(), Some(text)),
            Incoming::Binary(bytes) => self.on_data(now, key, speaker, bytes, None),
            Incoming::Ping(payload) => {
                let Some(connection) = self.connections.held_mut(key) else { return };
                self.output.push_control(connection, &mut self.ledger, |pong| {
                    frames::push_pong(pong, payload);
                });
            }
            Incoming::Pong(payload) => {
                let due = now + self.limits.heartbeat_timeout_ms;
                let Some((connection, tracking)) = self.connections.tracked(key) else { return };
                connection.on_pong(payload, now, due);
                tracking.arm(connection);
            }
            Incoming::Close(code) => self.on_peer_close(now, key, code),
            Incoming::Fragment => {}
        }
    }

    /// A data message: `text` where it is known to be UTF-8.
    fn on_data(
        &mut self,
        now: Millis,
        key: Key,
        speaker: Speaker,
        bytes: &[u8],
        text: Option<&str>,
    ) {
        match speaker {
            Speaker::Phone { entry, conn_id } => {
                let frame = match text {
                    Some(text) => json::validate_str(text).map(str::as_bytes),
                    None => json::validate(bytes),
                };
                match frame {
                    Ok(frame) => self.on_phone_frame(now, key, (entry, conn_id), frame),
                    Err(error) => self.on_no_json(now, key, error),
                }
            }
            Speaker::Binary { entry } => {
                let envelope = match text {
                    Some(text) => envelope::unwrap_str(text),
                    None => envelope::unwrap(bytes),
                };
                self.on_envelope(now, entry, envelope);
            }
            Speaker::Newcomer => {
                let Some(connection) = self.connections.held_mut(key) else { return };
                let Stage::Newcomer(newcomer) = &mut connection.stage else {
                    return self.broken("a newcomer's message is kept that is no newcomer's");
                };
                newcomer.ahead.push(bytes);
                connection.paused = newcomer.ahead.is_full();
            }
            // Sorted out before.
            Speaker::Closing => {}
        }
    }

    fn on_no_json(&mut self, now: Millis, phone: Key, error: json::JsonError) {
        let remote = self.connections.held(phone).map(|c| tracing::field::display(c.remote));
        tracing::info!(remote, err = %error, "phone_sent_no_json");
        self.counters.count(Series::MalformedPhoneMessages);
        self.close_now(now, phone, Close::NORMAL, Some(GONE_WITHOUT_CLOSE));
    }
}
