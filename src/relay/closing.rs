//! How connections end: one close frame each, then the end of TCP (PROTOCOL.md, chapter 2).
//!
//! A registered connection leaves the registry at the moment its end is decided, not when TCP has
//! closed. There are three ways out:
//!
//! - *close*: a close frame of ours, then up to the close timeout for the peer's answer;
//! - *echo*: the answer to the peer's close frame;
//! - *lose*: no close frame, because the peer is gone or would not read it.

use super::connection::{Closing, Due, Hearing, Stage};
use super::output::drop_pending;
use super::timers::{Millis, NEVER};
use super::visitors::VisitId;
use super::{Action, Key, Relay};
use crate::metrics::Series;
use crate::protocol::close::{Close, GONE_WITHOUT_CLOSE, NO_CODE};
use crate::protocol::frames::{Decoder, FrameError};
use std::fmt::Display;

/// How long a peer that has answered our close frame has to end its direction, unless the close
/// timeout is shorter; and how often the kernel is asked whether bytes still leave it for a peer whose
/// time is over. To close TCP while bytes are still in flight would reset the connection, and the peer
/// would lose our close frame.
const LINGER_MS: Millis = 1000;

/// Why a connection ends without a close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    Ended,
    Reset,
    WriteFailed,
    WriteTimeout,
    MessageTimeout,
    Memory,
    Tls,
}

impl Loss {
    fn text(self) -> &'static str {
        match self {
            Self::Ended => "ended without a close frame",
            Self::Reset => "reset",
            Self::WriteFailed => "write failed",
            Self::WriteTimeout => "no write progress within --write-timeout",
            Self::MessageTimeout => "message not complete within --message-timeout",
            Self::Memory => "memory budget",
            Self::Tls => "TLS failed",
        }
    }

    fn series(self) -> Series {
        match self {
            Self::Ended | Self::Reset | Self::WriteFailed => Series::LostPeer,
            Self::WriteTimeout => Series::LostWriteTimeout,
            Self::MessageTimeout => Series::LostMessageTimeout,
            Self::Memory => Series::LostMemory,
            Self::Tls => Series::LostTls,
        }
    }
}

/// What a close that a binary asked for is counted as. It may name any code, and no label comes
/// from a peer.
pub(super) fn series_of_directive(close: Close) -> Series {
    match close.code {
        1000 => Series::DirectiveNormal,
        1001 => Series::DirectiveGoingAway,
        1008 => Series::DirectivePolicy,
        1011 => Series::DirectiveInternal,
        4401 => Series::Directive4401,
        4412 => Series::Directive4412,
        4421 => Series::Directive4421,
        4426 => Series::Directive4426,
        _ => Series::DirectiveOther,
    }
}

/// What a peer's own close is counted as.
fn series_of_peer_close(code: Option<u16>) -> Series {
    match code {
        Some(1000) => Series::PeerNormal,
        Some(1001) => Series::PeerGoingAway,
        None => Series::PeerNoCode,
        Some(_) => Series::PeerOther,
    }
}

/// What a close frame of ours is counted as.
fn series_of(close: Close) -> Series {
    match close {
        Close::NORMAL => Series::CloseNormal,
        Close::SHUTTING_DOWN => Series::CloseShuttingDown,
        Close::KEYS_USED_UP => Series::CloseKeysUsedUp,
        Close::PROTOCOL_ERROR => Series::CloseProtocolError,
        Close::INVALID_UTF8 => Series::CloseInvalidUtf8,
        Close::TOO_BIG => Series::CloseTooBig,
        Close::HEARTBEAT_TIMEOUT => Series::CloseHeartbeat,
        Close::BACKLOG_FULL => Series::CloseBacklog,
        Close::SERVICE_RESTART => Series::CloseDrained,
        Close::NO_SERVER => Series::CloseNoServer,
        Close::RECLAIMED => Series::CloseReclaimed,
        Close::ALREADY_CLAIMED => Series::CloseAlreadyClaimed,
        Close::TOO_MANY_PHONES => Series::CloseTooManyPhones,
        other => series_of_directive(other),
    }
}

impl Relay {
    /// Closes an open connection at once: what waits for it is dropped. The binary is told
    /// `notice` if the connection is a phone.
    pub(super) fn close_now(&mut self, now: Millis, key: Key, close: Close, notice: Option<u16>) {
        self.close_as(series_of(close), now, key, close, notice);
    }

    /// As [`Relay::close_now`], counted as told: a binary may ask for any code.
    pub(super) fn close_as(
        &mut self,
        series: Series,
        now: Millis,
        key: Key,
        close: Close,
        notice: Option<u16>,
    ) {
        if let Some(stage) = self.begin_closing(now, key, Closing::default()) {
            self.counters.count(series);
            self.push_close_at_once(key, close);
            self.leave(now, key, stage, notice);
        }
    }

    /// As [`Relay::close_now`], with a code and a reason that the operator wants.
    pub(super) fn close_with(&mut self, now: Millis, key: Key, code: u16, reason: &str) {
        if let Some(stage) = self.begin_closing(now, key, Closing::default()) {
            self.counters.count(Series::CloseByOperator);
            self.push_last_words(key, (code, reason));
            self.leave(now, key, stage, Some(code));
        }
    }

    /// As [`Relay::close_now`], for a connection that the registry has forgotten already.
    pub(super) fn close_forgotten(&mut self, now: Millis, key: Key, close: Close) {
        if self.begin_closing(now, key, Closing::default()).is_some() {
            self.counters.count(series_of(close));
            self.push_close_at_once(key, close);
        }
    }

    /// Closes a phone right behind its 101, before it was registered.
    pub(super) fn turn_away(&mut self, now: Millis, key: Key, close: Close) {
        let Some((connection, tracking)) = self.connections.tracked(key) else { return };
        tracking.enter(connection, Stage::Closing(Box::default()));
        connection.due.stage = now + self.limits.close_timeout_ms;
        tracking.arm(connection);
        self.counters.count(series_of(close));
        self.push_close(key, close);
    }

    /// Closes an open phone after everything that waits for it, as its binary has asked.
    pub(super) fn close_in_turn(&mut self, now: Millis, key: Key, close: Close) {
        let closing = Closing { then: Some(close), ..Closing::default() };
        if let Some(stage) = self.begin_closing(now, key, closing) {
            self.counters.count(series_of_directive(close));
            if let Some(connection) = self.connections.held_mut(key) {
                // Starts when the close frame itself is with the kernel.
                connection.due.stage = NEVER;
            }
            self.leave(now, key, stage, None);
            self.after_flush(now, key);
        }
    }

    /// The peer broke the rules of framing: it can no longer be understood, but it has its time to
    /// answer our close frame like any other.
    pub(super) fn fail(&mut self, now: Millis, key: Key, error: FrameError) {
        let closing = Closing { hearing: Hearing::Noise, ..Closing::default() };
        if let Some(stage) = self.begin_closing(now, key, closing) {
            self.counters.count(series_of(error.close()));
            self.push_close_at_once(key, error.close());
            self.leave(now, key, stage, Some(GONE_WITHOUT_CLOSE));
        }
    }

    /// The peer has sent its close frame.
    pub(super) fn on_peer_close(&mut self, now: Millis, key: Key, code: Option<u16>) {
        let Some(connection) = self.connections.held_mut(key) else { return };
        if let Some(closing) = connection.closing_mut() {
            closing.hearing = Hearing::Nothing;
            // The peer reads nothing after its own close frame: what was still queued is dropped.
            if let Some(close) = closing.then.take() {
                self.push_close_at_once(key, close);
            }
            return self.after_flush(now, key);
        }
        let closing = Closing { hearing: Hearing::Nothing, ..Closing::default() };
        if let Some(stage) = self.begin_closing(now, key, closing) {
            self.counters.count(series_of_peer_close(code));
            self.push_close_echo(key, code);
            self.leave(now, key, stage, Some(code.unwrap_or(NO_CODE)));
        }
    }

    /// Queues the last frame of a connection. Without room for it, the connection is aborted.
    fn push_close(&mut self, key: Key, close: Close) {
        let Some(connection) = self.connections.held_mut(key) else { return };
        let close = (close.code, close.reason);
        if self.output.push_close(connection, &mut self.ledger, close).is_err() {
            self.abort(key);
        }
    }

    /// As [`Relay::push_close`], in place of what still waits.
    fn push_close_at_once(&mut self, key: Key, close: Close) {
        self.push_last_words(key, (close.code, close.reason));
    }

    /// As [`Relay::push_close_at_once`], with this code and reason.
    fn push_last_words(&mut self, key: Key, close: (u16, &str)) {
        let Some(connection) = self.connections.held_mut(key) else { return };
        drop_pending(connection, &mut self.ledger);
        if self.output.push_close(connection, &mut self.ledger, close).is_err() {
            self.abort(key);
        }
    }

    /// As [`Relay::push_close_at_once`], with the peer's own code.
    fn push_close_echo(&mut self, key: Key, code: Option<u16>) {
        let Some(connection) = self.connections.held_mut(key) else { return };
        drop_pending(connection, &mut self.ledger);
        if self.output.push_close_echo(connection, &mut self.ledger, code).is_err() {
            self.abort(key);
        }
    }

    /// Ends the connection without a close frame.
    pub(super) fn lose(&mut self, now: Millis, key: Key, why: Loss) {
        let Some(connection) = self.connections.held(key) else { return };
        if connection.is_open() {
            tracing::info!(remote = %connection.remote, err = why.text(), "connection_lost");
            self.counters.count(why.series());
        }
        if let Some(stage) = self.terminate(key, Action::Abort(key)) {
            self.leave(now, key, stage, Some(GONE_WITHOUT_CLOSE));
        }
    }

    /// Ends a connection that is not registered, or no longer.
    pub(super) fn abort(&mut self, key: Key) {
        self.terminate(key, Action::Abort(key));
    }

    /// As [`Relay::abort`], but the kernel delivers what it still holds.
    pub(super) fn close_socket(&mut self, key: Key) {
        self.terminate(key, Action::Close(key));
    }

    /// Forgets all about a connection but its key; returns the stage that it leaves, `None` if it
    /// was closed before.
    fn terminate(&mut self, key: Key, last: Action) -> Option<Stage> {
        let (connection, tracking) = self.connections.tracked(key)?;
        if connection.is_closed() {
            return None;
        }
        let stage = tracking.enter(connection, Stage::Closed);
        connection.decoder = Decoder::default();
        connection.due = Due::NONE;
        tracking.disarm(connection);
        connection.outbox.clear();
        // Before its peer can see the end, and connect again counting on the freed place.
        connection.pass = None;
        self.visitors.remove(std::mem::replace(&mut connection.visit, VisitId::NONE));
        self.ledger.clear(key);
        self.output.act(last);
        Some(stage)
    }

    /// From open to closing; returns the stage that it leaves, `None` if it was not open.
    fn begin_closing(&mut self, now: Millis, key: Key, closing: Closing) -> Option<Stage> {
        let (connection, tracking) = self.connections.tracked(key)?;
        if !connection.is_open() {
            return None;
        }
        let stage = tracking.enter(connection, Stage::Closing(Box::new(closing)));
        connection.due.stage = now + self.limits.close_timeout_ms;
        connection.due.ping = NEVER;
        connection.due.pong = NEVER;
        connection.due.message = NEVER;
        self.output.resume(connection);
        tracking.arm(connection);
        Some(stage)
    }

    /// The kernel has everything that was queued: takes the next step of an end, or of a hand-over.
    pub(super) fn after_flush(&mut self, now: Millis, key: Key) {
        let Some(connection) = self.connections.held(key) else { return };
        if !connection.outbox.is_empty() {
            return;
        }
        match connection.stage {
            Stage::Closing(_) => self.go_on_closing(now, key),
            Stage::HandingOver(_) => self.hand_over(now, key),
            Stage::Head(_) => self.resume_heads(now, key),
            // Open ones have said all that they had to say, and those that are closed as well.
            Stage::Newcomer(_) | Stage::Binary { .. } | Stage::Phone { .. } | Stage::Closed => {}
        }
    }

    /// The kernel has all that a closing connection has said so far.
    fn go_on_closing(&mut self, now: Millis, key: Key) {
        let close_timeout = self.limits.close_timeout_ms;
        let Some((connection, tracking)) = self.connections.tracked(key) else { return };
        let has_ended = connection.ended;
        let Stage::Closing(closing) = &mut connection.stage else {
            return self.broken("a close continues that was not begun");
        };
        if let Some(close) = closing.then.take() {
            return self.push_close(key, close);
        }
        if has_ended {
            return self.close_socket(key);
        }
        connection.due.stage = connection.due.stage.min(now + close_timeout);
        if closing.hearing == Hearing::Nothing && !closing.finished {
            closing.finished = true;
            connection.due.stage = now + close_timeout.min(LINGER_MS);
            self.output.act(Action::FinishWriting(key));
        }
        self.output.act(Action::CheckUnsent(key));
        tracking.arm(connection);
    }

    /// The time of a closing connection is over. If everything is with the kernel, it is asked
    /// whether the peer still takes what it holds; a socket that gives no answer ends a little later.
    pub(super) fn closing_timed_out(&mut self, now: Millis, key: Key) {
        let linger = self.limits.close_timeout_ms.min(LINGER_MS);
        let Some(connection) = self.connections.held_mut(key) else { return };
        match &mut connection.stage {
            Stage::Closing(closing) if connection.outbox.is_empty() && !closing.drain.overdue => {
                closing.drain.overdue = true;
                connection.due.stage = now + linger;
                self.output.act(Action::CheckUnsent(key));
            }
            _ => self.abort(key),
        }
    }

    /// Of what the relay has written to a closing connection, the kernel still holds `bytes`: the
    /// answer to [`Action::CheckUnsent`]. As long as they become fewer within the close timeout, the
    /// peer is on a slow line and the connection stays.
    pub fn on_unsent(&mut self, now: Millis, key: Key, bytes: usize) {
        let close_timeout = self.limits.close_timeout_ms;
        let Some((connection, tracking)) = self.connections.tracked(key) else { return };
        // It may have been aborted since the kernel was asked.
        let Stage::Closing(closing) = &mut connection.stage else { return };
        let drain = &mut closing.drain;
        let is_overdue = std::mem::take(&mut drain.overdue);
        let has_sunk = bytes < drain.unsent;
        if has_sunk || !is_overdue {
            drain.progress_at = now;
        }
        drain.unsent = bytes;
        if !is_overdue {
            return;
        }
        if has_sunk || (bytes > 0 && now.wrapping_sub(drain.progress_at) < close_timeout) {
            connection.due.stage = now + close_timeout.min(LINGER_MS);
            tracking.arm(connection);
        } else if bytes == 0 && closing.finished {
            // It has all of it, and need not be told that by a reset.
            self.close_socket(key);
        } else {
            self.abort(key);
        }
    }

    /// The peer has ended its direction (`clean`), or reading failed.
    pub fn on_end(&mut self, now: Millis, key: Key, clean: bool) {
        let Some(connection) = self.connections.held_mut(key) else { return };
        connection.ended = true;
        match connection.stage {
            // What is queued may still reach a peer that has only stopped sending.
            Stage::Closing(_) if clean => self.after_flush(now, key),
            // What it has asked for is answered first.
            Stage::Head(_) if clean && connection.paused => {}
            Stage::Head(_) if clean && !connection.outbox.is_empty() => self.hang_up(now, key),
            // The owner of the server-id is to know it, once it has the connection.
            Stage::HandingOver(_) if clean => {}
            _ => self.lose(now, key, if clean { Loss::Ended } else { Loss::Reset }),
        }
        self.settle(now);
    }

    /// The layer below has failed (PROTOCOL.md, chapter 7: TLS). A peer that has not
    /// been upgraded may still read an alert; any other is lost.
    pub fn on_transport_failed(&mut self, now: Millis, key: Key, error: &dyn Display) {
        let Some(connection) = self.connections.held(key) else { return };
        if let Stage::Head(_) = connection.stage {
            tracing::info!(remote = %connection.remote, err = %error, "tls_failed");
            self.counters.count(Series::HandshakeTls);
            self.hang_up(now, key);
        } else {
            self.lose(now, key, Loss::Tls);
        }
        self.settle(now);
    }

    /// The layer below can carry little more, though it could tell the peer nothing but good so far
    /// (PROTOCOL.md, chapter 7: TLS). Who is not upgraded will be gone before that.
    pub fn on_transport_used_up(&mut self, now: Millis, key: Key) {
        self.close_now(now, key, Close::KEYS_USED_UP, Some(Close::KEYS_USED_UP.code));
    }

    /// The process is asked to stop: everybody is told at once, nothing waits behind an outbox.
    pub fn shut_down(&mut self, now: Millis) {
        self.shutting_down = true;
        for mut entry in self.registry.clear() {
            entry.tell_last_faults(now);
        }
        self.registry.publish_counts();
        // Once in a process's life, and linear in the connections: everybody is told at once.
        for key in self.connections.keys() {
            let Some(connection) = self.connections.held_mut(key) else { continue };
            match &mut connection.stage {
                Stage::Newcomer(_) | Stage::Binary { .. } | Stage::Phone { .. } => {
                    self.close_forgotten(now, key, Close::SHUTTING_DOWN);
                }
                Stage::Closing(closing) => {
                    if let Some(close) = closing.then.take() {
                        self.push_close_at_once(key, close);
                    }
                }
                Stage::Head(_) if !connection.outbox.is_empty() => self.hang_up(now, key),
                Stage::Head(_) | Stage::HandingOver(_) => self.abort(key),
                Stage::Closed => {}
            }
        }
        self.settle(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_close_is_counted_as_what_it_is() {
        for (code, series) in [
            (1000, Series::DirectiveNormal),
            (1001, Series::DirectiveGoingAway),
            (1008, Series::DirectivePolicy),
            (1011, Series::DirectiveInternal),
            (4401, Series::Directive4401),
            (4412, Series::Directive4412),
            (4421, Series::Directive4421),
            (4426, Series::Directive4426),
            (1002, Series::DirectiveOther),
            (4999, Series::DirectiveOther),
        ] {
            assert_eq!(series_of_directive(Close::directive(code)), series, "{code}");
        }
        for (code, series) in [
            (Some(1000), Series::PeerNormal),
            (Some(1001), Series::PeerGoingAway),
            (Some(1011), Series::PeerOther),
            (None, Series::PeerNoCode),
        ] {
            assert_eq!(series_of_peer_close(code), series, "{code:?}");
        }
        for (close, series) in [
            (Close::NORMAL, Series::CloseNormal),
            (Close::SHUTTING_DOWN, Series::CloseShuttingDown),
            (Close::KEYS_USED_UP, Series::CloseKeysUsedUp),
            (Close::PROTOCOL_ERROR, Series::CloseProtocolError),
            (Close::INVALID_UTF8, Series::CloseInvalidUtf8),
            (Close::TOO_BIG, Series::CloseTooBig),
            (Close::HEARTBEAT_TIMEOUT, Series::CloseHeartbeat),
            (Close::BACKLOG_FULL, Series::CloseBacklog),
            (Close::NO_SERVER, Series::CloseNoServer),
            (Close::RECLAIMED, Series::CloseReclaimed),
            (Close::ALREADY_CLAIMED, Series::CloseAlreadyClaimed),
            (Close::TOO_MANY_PHONES, Series::CloseTooManyPhones),
        ] {
            assert_eq!(series_of(close), series, "{close:?}");
        }
    }

    #[test]
    fn every_loss_is_counted_and_told_as_what_it_is() {
        use Loss::{Ended, Memory, MessageTimeout, Reset, Tls, WriteFailed, WriteTimeout};
        for (loss, series, says) in [
            (Ended, Series::LostPeer, "without a close frame"),
            (Reset, Series::LostPeer, "reset"),
            (WriteFailed, Series::LostPeer, "write failed"),
            (WriteTimeout, Series::LostWriteTimeout, "--write-timeout"),
            (MessageTimeout, Series::LostMessageTimeout, "--message-timeout"),
            (Memory, Series::LostMemory, "memory"),
            (Tls, Series::LostTls, "TLS"),
        ] {
            assert_eq!(loss.series(), series);
            assert!(loss.text().contains(says), "{}", loss.text());
        }
    }
}
