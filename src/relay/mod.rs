//! What one worker knows and decides: plain data, events and a clock value in, actions out.
//!
//! [`Relay`] is a whole WebSocket relay without a socket. The shell that owns the sockets tells
//! it what arrived ([`Relay::on_bytes`], [`Relay::on_end`]), what the kernel took
//! ([`Relay::on_written`]) and what time it is ([`Relay::on_timers`]); the relay answers with
//! [`Action`]s. It opens no socket, spawns no task and reads no clock, so that whole crowds of
//! peers can be run through it in one thread under virtual time.
//!
//! [`Relay`] itself only says what an event means. What it means it for is kept in types that keep
//! their own invariants, and of which a line of code names those that it touches:
//!
//! - [`connections`]: the connections, with their timers; [`connection`]: one of them, as plain data
//! - [`registry`]: server-ids, with their timers: who holds them, and their phones
//! - [`ledger`]: what each connection is charged for (chapter 5)
//! - `output`: what is queued for sockets, and what the shell is to do
//! - [`visitors`]: who is not upgraded yet
//!
//! What events mean:
//!
//! - `head`: request heads, `/healthz`, hand-over to the owner of a server-id
//! - `input`: bytes to messages to what they mean for a phone, a binary, a newcomer
//! - `claims`: claims, registrations, probes, grace (chapter 3)
//! - [`wakes`]: requests to wake a phone (chapter 8)
//! - `forward`: frames across, and backpressure (chapters 4 and 5)
//! - `faults`: what a binary's messages do wrong, and how much of that is logged
//! - `memory`: which connections end when memory runs short (chapter 5)
//! - `closing`: one close frame each, then the end of TCP (chapter 2)
//! - `departure`: everybody of some server-ids is sent away, as the operator asks
//! - `deadlines`: heartbeats and everything else that time brings about
//! - `describe`: connections, for an operator, who may end some
//! - `give_out`, [`revive`]: all of it as plain data for another process, and back
//! - [`glimpse`]: how it looks from outside, for simulations
//! - `invariants`: what cannot happen, and what is done where it does
//! - [`ahead`]: what a newcomer says before it has won
//! - [`outbox`], [`spare`], [`budget`], [`backlogs`], [`timers`]: the data they stand on
//!
//! # The life of a connection
//!
//! [`Relay::accept`] makes a connection, [`Relay::release`] ends it, and its [`Key`] is not reused
//! in between. Once the relay has said [`Action::Abort`] or [`Action::Close`], it has forgotten the
//! connection: the shell ends the socket, waits until the kernel has returned every buffer, and
//! releases the key.

mod claims;
mod closing;
mod deadlines;
mod departure;
mod describe;
mod faults;
mod forward;
mod give_out;
mod head;
mod input;
mod invariants;
mod memory;
mod output;

pub mod ahead;
pub mod backlogs;
pub mod budget;
pub mod connection;
pub mod connections;
pub mod glimpse;
pub mod ledger;
pub mod outbox;
pub mod registry;
pub mod revive;
pub mod spare;
pub mod timers;
pub mod visitors;
pub mod wakes;

#[cfg(test)]
mod tests;

use crate::config::Limits;
use crate::metrics::{Metrics, Series, WorkerMetrics};
use crate::protocol::ids::ServerId;
use crate::protocol::upgrade::Upgrade;
use crate::shared::admission::{Admission, Pass};
use crate::shared::budget::SharedBudget;
use crate::telemetry::Remote;
use ahash::RandomState;
use budget::Budget;
use connection::Connection;
use connections::Connections;
pub use departure::SentAway;
pub use describe::{Account, Described, Disconnected, Whom};
pub(crate) use invariants::broken;
use ledger::Ledger;
use memory::Work;
use output::Output;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use registry::Registry;
use std::collections::VecDeque;
use std::sync::Arc;
use timers::Millis;
use visitors::Visitors;
use wakes::Wake;

/// Names a connection of one worker, from [`Relay::accept`] to [`Relay::release`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub u32);

/// What the shell is to do.
#[derive(Debug)]
pub enum Action {
    /// Something may be written: ask [`Relay::begin_write`]. Best done once per turn.
    Write(Key),
    /// Reading had stopped and may go on.
    Read(Key),
    /// Nothing more will be written: end the sending direction (a FIN), go on reading.
    FinishWriting(Key),
    /// Tell [`Relay::on_unsent`] how many bytes the kernel still holds for the peer.
    CheckUnsent(Key),
    /// Reset the connection at once, drop what the kernel still holds for the peer, then
    /// [`Relay::release`] it.
    Abort(Key),
    /// Close the socket: as [`Action::Abort`], but the kernel delivers what it still holds. Both
    /// sides have said all they had to say.
    Close(Key),
    /// Another worker owns the server-id: move the socket there with this, and release the key.
    HandOver {
        /// The connection here.
        key: Key,
        /// The owner's number.
        worker: usize,
        /// What the owner needs to go on.
        hand_over: Box<HandOver>,
    },
    /// Memory runs short and this worker holds the largest backlog: have it call
    /// [`Relay::shed_under_pressure`].
    AskToShed(usize),
    /// Hand this to whoever talks to push services, or drop it: it must not wait here.
    Wake(Box<Wake>),
}

/// A connection between two workers: plain data, beside its socket. No read or write of the
/// socket is under way while it is on its way.
#[derive(Debug)]
pub struct HandOver {
    /// Who the peer is.
    pub remote: Remote,
    /// What it counts as.
    pub pass: Option<Pass>,
    /// The checked request; not answered yet.
    pub upgrade: Upgrade,
    /// Bytes that followed the request: the first WebSocket bytes.
    pub unread: Vec<u8>,
}

/// Which worker owns a server-id. The same for all workers of a process.
#[derive(Clone)]
pub struct Owners {
    hasher: RandomState,
    workers: usize,
}

impl Owners {
    /// `seeds` must be random: server-ids are chosen by peers.
    #[must_use]
    pub fn new(seeds: [u64; 4], workers: usize) -> Self {
        let [a, b, c, d] = seeds;
        Self { hasher: RandomState::with_seeds(a, b, c, d), workers: workers.max(1) }
    }

    /// The owner's number.
    #[must_use]
    pub fn owner_of(&self, id: &ServerId) -> usize {
        (self.hasher.hash_one(id.as_str()) % self.workers as u64) as usize
    }
}

/// What a relay is made of.
pub struct Settings {
    /// This worker's number, from 0.
    pub worker: usize,
    /// Who owns what.
    pub owners: Owners,
    /// The only host that is served, in lower case; any if `None`.
    pub domain: Option<Arc<str>>,
    /// Limits and deadlines.
    pub limits: Limits,
    /// The memory budget of the process.
    pub budget: Arc<SharedBudget>,
    /// Who may connect, for the process.
    pub admission: Arc<Admission>,
    /// Counters of the process.
    pub metrics: Arc<Metrics>,
    /// Random; conn-ids and the seeds of tables are made of it.
    pub seed: [u8; 32],
    /// Whether there is anyone to take wake requests.
    pub push: bool,
}

/// One worker's share of the relay.
pub struct Relay {
    worker: usize,
    owners: Owners,
    domain: Option<Arc<str>>,
    push: bool,
    limits: Limits,
    shutting_down: bool,
    admission: Arc<Admission>,
    metrics: Arc<Metrics>,
    counters: Arc<WorkerMetrics>,
    connections: Connections,
    registry: Registry,
    ledger: Ledger,
    output: Output,
    visitors: Visitors,
    work: VecDeque<Work>,
    rng: StdRng,
}

impl Relay {
    /// A relay with no connections.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let Settings { worker, owners, domain, limits, budget, admission, metrics, seed, push } =
            settings;
        let counters = metrics.worker(worker);
        let mut rng = StdRng::from_seed(seed);
        // Of its own: by the owners' seeds, all ids of a worker agree modulo the number of workers,
        // and would crowd a part of a table.
        let [ids, addresses] = [(); 2].map(|()| {
            let [a, b, c, d] = [(); 4].map(|()| rng.next_u64());
            RandomState::with_seeds(a, b, c, d)
        });
        Self {
            connections: Connections::new(counters.clone()),
            registry: Registry::new(ids, limits.max_phones, counters.clone()),
            ledger: Ledger::new(Budget::new(budget, worker), counters.clone()),
            output: Output::default(),
            visitors: Visitors::new(addresses),
            work: VecDeque::new(),
            rng,
            shutting_down: false,
            worker,
            owners,
            domain,
            push,
            limits,
            admission,
            metrics,
            counters,
        }
    }

    /// A connection was accepted; its request head is expected next. It is aborted at once if its
    /// address has too many that have not come further. Where all addresses together have too many,
    /// the oldest one of the address that has the most of them is aborted.
    pub fn accept(&mut self, now: Millis, remote: Remote) -> Key {
        let entered = self.admission.enter(now, remote.0.ip());
        let refusal = entered.as_ref().err().copied();
        let key = self.connections.insert(Connection::new(now, remote, entered.ok()));
        self.await_head(now, key);
        if let Some(refusal) = refusal {
            head::log_refusal(remote, None, refusal);
            self.count_refusal(refusal.cause, false);
            self.abort(key);
        } else {
            let visit = self.visitors.add(key, remote.0.ip().into());
            if let Some(connection) = self.connections.held_mut(key) {
                connection.visit = visit;
            }
            self.make_room_for_visitor();
        }
        key
    }

    /// The PROXY header of a connection has named the peer. It must come before the first byte of
    /// the request, and may abort the connection as [`Relay::accept`] may.
    pub fn set_remote(&mut self, key: Key, remote: Remote) {
        let Some(connection) = self.connections.held_mut(key) else { return };
        connection.remote = remote;
        let visit = connection.visit;
        let named = connection.pass.as_mut().map_or(Ok(()), |pass| pass.name(remote.0.ip()));
        if let Err(refusal) = named {
            head::log_refusal(remote, None, refusal);
            self.count_refusal(refusal.cause, false);
            return self.abort(key);
        }
        self.visitors.name(visit, remote.0.ip().into());
    }

    /// A connection came from another worker, because this one owns its server-id.
    pub fn adopt(&mut self, now: Millis, hand_over: HandOver) -> Key {
        let HandOver { remote, pass, upgrade, mut unread } = hand_over;
        let key = self.connections.insert(Connection::new(now, remote, pass));
        self.open(now, key, upgrade, &mut unread);
        self.settle(now);
        key
    }

    /// The socket is gone and the kernel holds none of its buffers: the key may be reused.
    pub fn release(&mut self, key: Key) {
        self.connections.remove(key);
    }

    /// Whether the shell should have a read under way for this connection, which may be gone.
    #[must_use]
    pub fn wants_read(&self, key: Key) -> bool {
        self.connections.find(key).is_some_and(Connection::wants_read)
    }

    /// Whether it has been upgraded here and is not closing: it stays with this worker for good.
    #[must_use]
    pub fn is_open(&self, key: Key) -> bool {
        self.connections.find(key).is_some_and(Connection::is_open)
    }

    /// How many connections there are, closed ones that are not released included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Bytes that this worker has charged to the memory budget.
    #[must_use]
    pub fn charged_bytes(&self) -> u64 {
        self.ledger.budget().charged_bytes()
    }

    /// Applies these limits from now on. Deadlines that run already stay as they are.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.registry.set_max_phones(limits.max_phones);
    }

    /// Publishes how many connections there are at each stage, and the other gauges.
    pub fn take_census(&self) {
        self.connections.publish_counts();
        let timers = self.connections.timers() + self.registry.timers();
        self.counters.set(Series::ServerIds, self.registry.len() as u64);
        self.counters.set(Series::Timers, timers as u64);
        self.counters.set(Series::ChargedBytes, self.charged_bytes());
    }
}
