//! Giving everything to a successor, and going on where a predecessor stopped.
//!
//! A worker that is asked to ([`Mail::Quiesce`]) has the kernel cancel what waits on its sockets, and
//! starts nothing that would wait. When the kernel has no operation on any of them, it gives out all
//! that it knows ([`Mail::GiveOut`]), and is still: from then on it touches no socket. It goes on as if
//! nothing had happened ([`Mail::Resume`]), or lets go of everything ([`Mail::Leave`]).
//!
//! A byte that was received is with the core or in the state; one that was to be sent is with the
//! kernel, with the core, or, encrypted, in the state.

use super::accept::Accepting;
use super::core::Core;
use super::link::Link;
use super::ring::{COMPLETIONS_PER_TURN, Outgoing};
use super::share::Place;
use super::tls_link::TlsLink;
use super::{Mail, Worker, millis_since};
use crate::handover::state;
use crate::relay::timers::Millis;
use crate::relay::{Action, Key, Settings, broken};
use rustls::ServerConfig;
use socket2::Socket;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// Connections that have their operations cancelled in one turn: as many as complete in one.
const CANCELS_PER_TURN: usize = COMPLETIONS_PER_TURN;

/// What a worker gives to its successor. The descriptors are the worker's own, and open until it is
/// told to go on or to leave.
#[derive(Debug)]
pub struct GivenOut {
    /// All that it knows.
    pub state: state::Worker,
    /// The sockets of the connections, in their order.
    pub sockets: Vec<RawFd>,
    /// The listeners.
    pub listeners: Vec<RawFd>,
    /// Connections that are not part of it, because they are amid a TLS handshake.
    pub left_out: usize,
}

/// How far a worker is in giving everything to a successor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stance {
    /// It serves.
    #[default]
    Serving,
    /// It starts nothing that waits, and has cancelled what does.
    Quieting,
    /// The kernel has no operation on any socket, but for what mail or time has brought about.
    Quiet,
    /// Everything is given out.
    Still,
    /// The successor has everything.
    Gone,
}

/// What a worker knows of a takeover that is under way.
#[derive(Debug, Default)]
pub(super) struct Takeover {
    stance: Stance,
    /// The slots below this have had their operations cancelled.
    cancelled: usize,
    /// Who is told when it is quiet.
    quiet: Option<UnboundedSender<usize>>,
    /// Who is given everything then.
    give_out: Option<UnboundedSender<GivenOut>>,
    /// Connections amid a TLS handshake, which the successor does not have.
    left_out: Vec<Key>,
    /// Turns in which no timer fires, so that peers are heard first.
    turns_without_timers: u8,
}

impl Takeover {
    /// Whether there is none: the worker may start what waits in the kernel, receives and sends.
    pub(super) fn is_off(&self) -> bool {
        self.stance == Stance::Serving
    }

    /// Whether nothing is to be done but what is said by [`Mail::is_heard_when_still`].
    pub(super) fn is_still(&self) -> bool {
        matches!(self.stance, Stance::Still | Stance::Gone)
    }

    /// Whether the successor has everything.
    pub(super) fn is_over(&self) -> bool {
        self.stance == Stance::Gone
    }

    /// Whether someone waits until it is quiet, for which all that is under way completes at once.
    pub(super) fn is_hurried(&self) -> bool {
        self.quiet.is_some() || self.give_out.is_some()
    }

    /// Whether timers are to wait in a turn that so many completions have come to.
    pub(super) fn defers_timers(&mut self, completions: usize) -> bool {
        let is_last = self.turns_without_timers == 1;
        if self.turns_without_timers == 0 || is_last && completions < COMPLETIONS_PER_TURN {
            self.turns_without_timers = 0;
            return false;
        }
        self.turns_without_timers = 1;
        true
    }
}

impl Mail {
    /// Whether it is acted on by a worker that is still, or that is about to be.
    fn is_heard_when_still(&self) -> bool {
        matches!(self, Self::Census(_) | Self::Resume | Self::Leave)
    }
}

impl<C: Core> Worker<C> {
    /// The next mail that is to be acted on now.
    pub(super) fn next_mail(&mut self) -> Option<Mail> {
        if self.takeover.is_still() || self.takeover.give_out.is_some() {
            return self.mailbox.take_if(Mail::is_heard_when_still);
        }
        self.mailbox.take()
    }

    /// Whether there is mail that is to be acted on now.
    pub(super) fn has_mail(&self) -> bool {
        match self.takeover.is_still() {
            true => self.mailbox.has(Mail::is_heard_when_still),
            false => !self.mailbox.is_empty(),
        }
    }

    /// Starts nothing that waits from now on, and says when the kernel has no operation on a socket.
    pub(super) fn quiesce(&mut self, done: UnboundedSender<usize>) {
        self.hold_back_accepts();
        self.takeover.quiet = Some(done);
        self.begin_quieting();
    }

    /// Gives out everything as soon as it is quiet.
    pub(super) fn give_out_when_quiet(&mut self, done: UnboundedSender<GivenOut>) {
        self.hold_back_accepts();
        self.takeover.give_out = Some(done);
        self.begin_quieting();
    }

    fn begin_quieting(&mut self) {
        if self.takeover.stance == Stance::Serving {
            self.takeover.stance = Stance::Quieting;
            self.takeover.cancelled = 0;
        }
    }

    /// At the end of a turn to which so many completions came: goes on becoming quiet, and says so.
    pub(super) fn become_quiet(&mut self, now: Millis, completions: usize) {
        if !self.takeover.is_hurried() || self.takeover.is_still() {
            return;
        }
        let from = self.takeover.cancelled;
        let to = (from + CANCELS_PER_TURN).min(self.links.len());
        for slot in from..to {
            self.cancel(Key(slot as u32));
        }
        self.takeover.cancelled = to;
        // To look at all of them is worth it only in the end.
        if to < self.links.len() || completions >= COMPLETIONS_PER_TURN || !self.is_quiet() {
            return;
        }
        self.takeover.stance = Stance::Quiet;
        self.hand_over_at_once();
        if let Some(done) = self.takeover.quiet.take() {
            // Whoever asked may have lost patience.
            let _ = done.send(self.number);
        }
        if let Some(done) = self.takeover.give_out.take() {
            let given = self.give_out(now);
            self.takeover.stance = Stance::Still;
            let _ = done.send(given);
        }
    }

    fn cancel(&mut self, key: Key) {
        self.stop_receiving(key);
        if self.link(key).is_some_and(|link| link.is_sending) {
            self.ring.cancel_send(key.0);
        }
    }

    /// A send could not be cancelled. If it goes on, it may do so for long.
    pub(super) fn on_send_not_cancelled(&mut self, key: Key) {
        let is_sending = self.link(key).is_some_and(|link| link.is_sending);
        if is_sending && !self.takeover.is_off() {
            self.ring.cancel_send(key.0);
        }
    }

    fn is_quiet(&self) -> bool {
        let mut links = self.links.iter().flatten();
        self.accepting.is_quiet() && links.all(|link| !link.is_busy() && !link.is_closing)
    }

    /// The kernel does not take all of a send for now, of which `taken` bytes are gone. What is left
    /// waits until the worker, or its successor, goes on.
    pub(super) fn hold_back(&mut self, now: Millis, key: Key, outgoing: Outgoing, taken: usize) {
        let Some(link) = self.link(key) else { return };
        link.is_held_up = true;
        let Some(tls) = link.tls.as_deref_mut() else {
            return self.core.on_written(now, key, outgoing.buffer, Some(taken));
        };
        let outgoing = Outgoing { from: outgoing.from + taken, ..outgoing };
        if let Some((buffer, bytes)) = tls.hold_back(outgoing) {
            self.core.on_written(now, key, buffer, Some(bytes));
        }
        self.charge_tls(now, key);
    }

    /// Connections that have to go to another worker go, though not everything is with the kernel.
    fn hand_over_at_once(&mut self) {
        let on_their_way = std::mem::take(&mut self.handing_over);
        for (_, key) in on_their_way {
            let tls = self.link(key).and_then(|link| link.tls.as_deref_mut());
            if let Some((worker, hand_over)) = tls.and_then(TlsLink::take_hand_over) {
                self.hand_over(key, worker, hand_over);
            }
        }
    }

    /// All that the worker knows.
    fn give_out(&mut self, now: Millis) -> GivenOut {
        let keys = (0..).map(Key).zip(&self.links);
        let amid_handshake =
            keys.filter(|(_, link)| link.as_ref().is_some_and(Link::is_amid_handshake));
        let left_out: Vec<Key> = amid_handshake.map(|(key, _)| key).collect();
        let mut state = self.core.give_out(now, &|key| left_out.binary_search(&key).is_ok());
        let mut sockets = Vec::with_capacity(state.connections.len());
        let Self { links, small, large, counters, .. } = self;
        for connection in &mut state.connections {
            let Some(link) = links.get(connection.slot as usize).and_then(Option::as_ref) else {
                broken(counters, "a connection that is given out has no socket");
                // No process can be given that.
                sockets.push(-1);
                continue;
            };
            sockets.push(link.socket.as_raw_fd());
            connection.link = link.give_out(|place, bytes| match place {
                Place::Small(buffer) => small.received(buffer, bytes).to_vec(),
                Place::Large(buffer) => large.received(buffer, bytes).to_vec(),
                Place::Held => Vec::new(),
            });
        }
        let listeners = self.accepting.descriptors();
        let left_out_count = left_out.len();
        self.takeover.left_out = left_out;
        GivenOut { state, sockets, listeners, left_out: left_out_count }
    }

    /// Goes on as if nothing had happened.
    pub(super) fn resume(&mut self, now: Millis) {
        self.takeover = Takeover { turns_without_timers: 2, ..Takeover::default() };
        self.starved.clear();
        if !self.shutting_down {
            self.start_accepting();
        }
        self.start_connections(now);
    }

    /// Has each connection read and written.
    fn start_connections(&mut self, now: Millis) {
        for slot in 0..self.links.len() {
            let key = Key(slot as u32);
            let Some(link) = self.link(key) else { continue };
            link.sock_nonempty = true;
            let was_held_up = std::mem::take(&mut link.is_held_up);
            self.receive(key);
            if was_held_up {
                self.flush_tls(key);
                self.act(now, Action::Write(key));
            }
        }
    }

    /// Begins to serve, with the connections that a predecessor had, if there are any.
    ///
    /// # Errors
    ///
    /// None for listeners that listen.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        let now = millis_since(self.epoch, Instant::now());
        self.takeover.turns_without_timers = 1;
        self.ring.watch_runtime(self.runtime);
        self.accepting.have_accepts_wait()?;
        self.start_accepting();
        for slot in 0..self.links.len() {
            let key = Key(slot as u32);
            if self.link(key).is_some_and(|link| link.share.is_deferred()) {
                self.await_turn(key);
            }
            self.charge_tls(now, key);
        }
        self.start_connections(now);
        Ok(())
    }

    /// The successor has everything: lets go of it, without a word to anyone. What it does not have
    /// ends as when the process shuts down.
    pub(super) fn leave(&mut self) {
        if self.takeover.stance != Stance::Still {
            return;
        }
        self.takeover.stance = Stance::Gone;
        for key in std::mem::take(&mut self.takeover.left_out) {
            if let Some(link) = self.link(key) {
                let _ = link.socket.set_linger(Some(Duration::ZERO));
            }
        }
        self.links.clear();
        self.accepting = Accepting::default();
    }
}

/// The core and the links of what a predecessor's workers have given out, of which no socket is
/// touched.
///
/// # Errors
///
/// It is nothing to go on with under this configuration.
pub(super) fn take_in<C: Core>(
    (settings, now): (Settings, Millis),
    tls: Option<&Arc<ServerConfig>>,
    mut state: state::Worker,
    sockets: Vec<Socket>,
) -> Result<(C, Vec<Option<Link>>), String> {
    if sockets.len() != state.connections.len() {
        let (sockets, connections) = (sockets.len(), state.connections.len());
        return Err(format!("{sockets} sockets have come for {connections} connections"));
    }
    let given = state.connections.iter_mut().map(|connection| std::mem::take(&mut connection.link));
    let given: Vec<_> = given.collect();
    let (core, keys) = C::revive(settings, now, state)?;
    if keys.len() != given.len() {
        return Err(format!("{} of {} connections can go on", keys.len(), given.len()));
    }
    let mut links = Vec::new();
    for ((key, given), socket) in keys.into_iter().zip(given).zip(sockets) {
        let slot = key.0 as usize;
        if links.len() <= slot {
            links.resize_with(slot + 1, || None);
        }
        let link = Link::take_in(socket, given, tls)?;
        let Some(place @ None) = links.get_mut(slot) else {
            return Err("two connections have one place".to_owned());
        };
        *place = Some(link);
    }
    Ok((core, links))
}

/// Says that everything is taken in, and waits until the predecessor has stopped. False if it has
/// not, and goes on itself.
pub(super) fn await_go(ready: &Sender<Result<(), String>>, go: &Receiver<()>) -> bool {
    ready.send(Ok(())).is_ok() && go.recv().is_ok()
}
