//! What the shell asks of the sans-IO core.

use crate::config::Limits;
use crate::handover::state;
use crate::protocol::close::Close;
use crate::relay::outbox::Write;
use crate::relay::timers::Millis;
use crate::relay::{
    Action, Described, Disconnected, HandOver, Key, Relay, SentAway, Settings, Whom,
};
use crate::telemetry::Remote;
use std::fmt::Display;

/// A sans-IO core that a worker can drive. The relay drives [`Relay`] and nothing else; that the
/// shell names only this much of it lets conformance tests put another server on the same sockets.
/// The shell is compiled for each core, so the calls cost nothing.
///
/// Each method keeps the contract of the [`Relay`] method with its name.
pub trait Core {
    /// See [`Relay::accept`].
    fn accept(&mut self, now: Millis, remote: Remote) -> Key;
    /// See [`Relay::set_remote`].
    fn set_remote(&mut self, key: Key, remote: Remote);
    /// See [`Relay::adopt`].
    fn adopt(&mut self, now: Millis, hand_over: HandOver) -> Key;
    /// See [`Relay::release`].
    fn release(&mut self, key: Key);
    /// See [`Relay::connections`].
    fn connections(&self) -> usize;
    /// See [`Relay::wants_read`].
    fn wants_read(&self, key: Key) -> bool;
    /// See [`Relay::is_open`].
    fn is_open(&self, key: Key) -> bool;
    /// See [`Relay::on_bytes`].
    fn on_bytes(&mut self, now: Millis, key: Key, input: &mut [u8], messages: &mut u32) -> usize;
    /// See [`Relay::on_end`].
    fn on_end(&mut self, now: Millis, key: Key, clean: bool);
    /// See [`Relay::on_transport_failed`].
    fn on_transport_failed(&mut self, now: Millis, key: Key, error: &dyn Display);
    /// See [`Relay::on_transport_used_up`].
    fn on_transport_used_up(&mut self, now: Millis, key: Key);
    /// See [`Relay::admit_handshake`].
    fn admit_handshake(&mut self, now: Millis, key: Key) -> bool;
    /// See [`Relay::on_plain_http`].
    fn on_plain_http(&mut self, now: Millis, key: Key);
    /// See [`Relay::charge_transport`].
    fn charge_transport(&mut self, now: Millis, key: Key, bytes: usize) -> bool;
    /// See [`Relay::begin_write`].
    fn begin_write(&mut self, now: Millis, key: Key) -> Option<Write>;
    /// See [`Relay::on_write_progress`].
    fn on_write_progress(&mut self, now: Millis, key: Key);
    /// See [`Relay::on_written`].
    fn on_written(&mut self, now: Millis, key: Key, buffer: Vec<u8>, taken: Option<usize>);
    /// See [`Relay::on_unsent`].
    fn on_unsent(&mut self, now: Millis, key: Key, bytes: usize);
    /// See [`Relay::take_queued_behind`].
    fn take_queued_behind(&mut self) -> bool;
    /// See [`Relay::on_timers`].
    fn on_timers(&mut self, now: Millis);
    /// See [`Relay::next_wake_ms`].
    fn next_wake_ms(&self) -> Option<Millis>;
    /// See [`Relay::take_actions`].
    fn take_actions(&mut self, into: &mut Vec<Action>);
    /// See [`Relay::shed_under_pressure`].
    fn shed_under_pressure(&mut self, now: Millis);
    /// See [`Relay::shut_down`].
    fn shut_down(&mut self, now: Millis);
    /// See [`Relay::take_census`].
    fn take_census(&self);
    /// See [`Relay::set_limits`].
    fn set_limits(&mut self, limits: Limits);
    /// See [`Relay::describe`].
    fn describe(&self, now: Millis, first: usize) -> Described;
    /// See [`Relay::disconnect`].
    fn disconnect(
        &mut self,
        now: Millis,
        first: usize,
        whom: &Whom,
        close: (u16, &str),
    ) -> Disconnected;
    /// See [`Relay::send_away`].
    fn send_away(&mut self, now: Millis, slots: (usize, usize), close: Close) -> SentAway;
    /// See [`Relay::give_out`].
    fn give_out(&self, _now: Millis, _leave_out: &dyn Fn(Key) -> bool) -> state::Worker {
        state::Worker::default()
    }
    /// See [`Relay::revive`].
    ///
    /// # Errors
    ///
    /// As there, in words.
    fn revive(
        _settings: Settings,
        _now: Millis,
        _state: state::Worker,
    ) -> Result<(Self, Vec<Key>), String>
    where
        Self: Sized,
    {
        Err("this core does not go on with what another has given out".to_owned())
    }
}

impl Core for Relay {
    #[inline]
    fn accept(&mut self, now: Millis, remote: Remote) -> Key {
        self.accept(now, remote)
    }

    #[inline]
    fn set_remote(&mut self, key: Key, remote: Remote) {
        self.set_remote(key, remote);
    }

    #[inline]
    fn adopt(&mut self, now: Millis, hand_over: HandOver) -> Key {
        self.adopt(now, hand_over)
    }

    #[inline]
    fn release(&mut self, key: Key) {
        self.release(key);
    }

    #[inline]
    fn connections(&self) -> usize {
        self.connections()
    }

    #[inline]
    fn wants_read(&self, key: Key) -> bool {
        self.wants_read(key)
    }

    #[inline]
    fn is_open(&self, key: Key) -> bool {
        self.is_open(key)
    }

    #[inline]
    fn on_bytes(&mut self, now: Millis, key: Key, input: &mut [u8], messages: &mut u32) -> usize {
        self.on_bytes(now, key, input, messages)
    }

    #[inline]
    fn on_end(&mut self, now: Millis, key: Key, clean: bool) {
        self.on_end(now, key, clean);
    }

    #[inline]
    fn on_transport_failed(&mut self, now: Millis, key: Key, error: &dyn Display) {
        self.on_transport_failed(now, key, error);
    }

    #[inline]
    fn on_transport_used_up(&mut self, now: Millis, key: Key) {
        self.on_transport_used_up(now, key);
    }

    #[inline]
    fn admit_handshake(&mut self, now: Millis, key: Key) -> bool {
        self.admit_handshake(now, key)
    }

    #[inline]
    fn on_plain_http(&mut self, now: Millis, key: Key) {
        self.on_plain_http(now, key);
    }

    #[inline]
    fn charge_transport(&mut self, now: Millis, key: Key, bytes: usize) -> bool {
        self.charge_transport(now, key, bytes)
    }

    #[inline]
    fn begin_write(&mut self, now: Millis, key: Key) -> Option<Write> {
        self.begin_write(now, key)
    }

    #[inline]
    fn on_write_progress(&mut self, now: Millis, key: Key) {
        self.on_write_progress(now, key);
    }

    #[inline]
    fn on_written(&mut self, now: Millis, key: Key, buffer: Vec<u8>, taken: Option<usize>) {
        self.on_written(now, key, buffer, taken);
    }

    #[inline]
    fn on_unsent(&mut self, now: Millis, key: Key, bytes: usize) {
        self.on_unsent(now, key, bytes);
    }

    #[inline]
    fn take_queued_behind(&mut self) -> bool {
        self.take_queued_behind()
    }

    #[inline]
    fn on_timers(&mut self, now: Millis) {
        self.on_timers(now);
    }

    #[inline]
    fn next_wake_ms(&self) -> Option<Millis> {
        self.next_wake_ms()
    }

    #[inline]
    fn take_actions(&mut self, into: &mut Vec<Action>) {
        self.take_actions(into);
    }

    #[inline]
    fn shed_under_pressure(&mut self, now: Millis) {
        self.shed_under_pressure(now);
    }

    #[inline]
    fn shut_down(&mut self, now: Millis) {
        self.shut_down(now);
    }

    #[inline]
    fn take_census(&self) {
        self.take_census();
    }

    #[inline]
    fn set_limits(&mut self, limits: Limits) {
        self.set_limits(limits);
    }

    #[inline]
    fn describe(&self, now: Millis, first: usize) -> Described {
        self.describe(now, first)
    }

    #[inline]
    fn disconnect(
        &mut self,
        now: Millis,
        first: usize,
        whom: &Whom,
        close: (u16, &str),
    ) -> Disconnected {
        self.disconnect(now, first, whom, close)
    }

    #[inline]
    fn send_away(&mut self, now: Millis, slots: (usize, usize), close: Close) -> SentAway {
        self.send_away(now, slots, close)
    }

    fn give_out(&self, now: Millis, leave_out: &dyn Fn(Key) -> bool) -> state::Worker {
        self.give_out(now, leave_out)
    }

    fn revive(
        settings: Settings,
        now: Millis,
        state: state::Worker,
    ) -> Result<(Self, Vec<Key>), String> {
        Self::revive(settings, now, state).map_err(|refusal| refusal.to_string())
    }
}
