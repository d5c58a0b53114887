//! A relay that goes on with what another process has given out.
//!
//! What comes is ours, but of another version, and has been through a socket: all that the rest of the
//! core counts on is checked here, and whatever does not hold refuses the whole. So does a budget that
//! is too small: nobody is shed. Other limits are as with a reload: those that are there stay.

mod connection;

use super::connection::{Connection, Stage};
use super::faults::Faults;
use super::ledger::Part;
use super::registry::{ClaimId, EntryKey, Restored, Seat, Tenure};
use super::timers::{Millis, NEVER};
use super::wakes::WakeAllowance;
use super::{Key, Relay, Settings};
use crate::handover::state::{self, Inconsistent};
use crate::handover::{NOT_THERE, TWICE};
use crate::protocol::ids::{ConnId, ServerId};
use ahash::RandomState;
use std::collections::{HashMap, HashSet};
use std::fmt;

/// No deadline is further away than this: some ten years.
const MAX_LEFT_MS: u64 = 10 * 366 * 24 * 3600 * 1000;

/// Why a relay cannot go on with what another process has given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It holds more than this worker may.
    Memory {
        /// What is queued, half read and held back.
        needed_bytes: u64,
        /// What this worker may hold.
        available_bytes: u64,
    },
    /// It cannot be.
    Inconsistent(Inconsistent),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { needed_bytes, available_bytes } => write!(
                f,
                "the connections of a worker hold {needed_bytes} bytes that wait for peers, and with \
                 this --memory-budget it may hold {available_bytes}: give the relay more, or try \
                 again when the peers have read them"
            ),
            Self::Inconsistent(inconsistent) => inconsistent.fmt(f),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Inconsistent> for Refusal {
    fn from(inconsistent: Inconsistent) -> Self {
        Self::Inconsistent(inconsistent)
    }
}

/// A connection's part in a server-id.
#[derive(Clone, Copy)]
enum PartIn {
    Holder(EntryKey),
    Newcomer(EntryKey, ClaimId),
    Phone(EntryKey, Seat),
}

impl Relay {
    /// A relay that goes on with what a worker of another process has given out, and the keys of the
    /// connections in their order. What is to be done next is told by [`Relay::take_actions`].
    ///
    /// # Errors
    ///
    /// The budget is too small for it, or it contradicts itself.
    pub fn revive(
        settings: Settings,
        now: Millis,
        worker: state::Worker,
    ) -> Result<(Self, Vec<Key>), Refusal> {
        let seed = settings.seed;
        let mut relay = Self::new(settings);
        let state::Worker { connections, visitors, server_ids } = worker;
        let parts = parts_of(connections.len(), &server_ids)?;
        let (keys, displaced) = seat(&connections, seed);
        let mut restored = Vec::with_capacity(connections.len());
        for ((given, part), key) in connections.into_iter().zip(parts).zip(&keys) {
            restored.push((*key, relay.revive_connection(now, given, part)?));
        }
        relay.charge_all(&restored)?;
        relay.restore_server_ids(now, &keys, server_ids, &restored)?;
        let mut seen = HashSet::with_capacity(visitors.len());
        for state::Visitor { connection: at, address } in visitors {
            let (key, restored) = restored.get_mut(at as usize).ok_or(NOT_THERE)?;
            if !seen.insert(at) || restored.connection.stage.is_open() {
                return Err(TWICE.into());
            }
            restored.connection.visit = relay.visitors.add(*key, address.into());
        }
        let all = restored.into_iter().map(|(key, restored)| (key, restored.connection)).collect();
        relay.connections.restore(all, displaced);
        relay.go_on(now, &keys);
        Ok((relay, keys))
    }

    /// Charges every connection for what it takes here, which is no more than it was.
    fn charge_all(&mut self, restored: &[(Key, Revived)]) -> Result<(), Refusal> {
        let needed_bytes = restored.iter().map(|(_, revived)| revived.bytes()).sum();
        if !self.ledger.make_room_for(needed_bytes) {
            let available_bytes = self.ledger.budget().most_bytes();
            return Err(Refusal::Memory { needed_bytes, available_bytes });
        }
        for (key, revived) in restored {
            self.ledger.set(*key, Part::Outbox, revived.connection.outbox.held_bytes());
            self.ledger.set(*key, Part::Input, revived.input_bytes());
            self.ledger.set(*key, Part::Transport, revived.link_bytes as usize);
        }
        Ok(())
    }

    fn restore_server_ids(
        &mut self,
        now: Millis,
        keys: &[Key],
        server_ids: Vec<state::ServerId>,
        restored: &[(Key, Revived)],
    ) -> Result<(), Inconsistent> {
        let is_congested = |at: &u32| {
            let connection = restored.get(*at as usize).map(|(_, revived)| &revived.connection);
            matches!(connection.map(|c| &c.stage), Some(Stage::Phone { congested_bytes: 1.., .. }))
        };
        let key_of = |at: u32| keys.get(at as usize).copied().ok_or(NOT_THERE);
        let keys_of =
            |places: Vec<u32>| places.into_iter().map(key_of).collect::<Result<Vec<Key>, _>>();
        for given in server_ids {
            let id = server_id(&given.id)?;
            if self.owners.owner_of(&id) != self.worker {
                return Err(Inconsistent("a server-id is given to a worker that does not own it"));
            }
            if !self.registry.is_free(&id) {
                return Err(Inconsistent("a server-id is there twice"));
            }
            let (tenure, due) = match given.tenure {
                state::Tenure::Held(holder) => (Tenure::Held(key_of(holder)?), NEVER),
                state::Tenure::Grace(left_ms) => (Tenure::Grace, due_in(now, Some(left_ms))?),
                state::Tenure::Probed { holder, newcomers, left_ms } => {
                    let newcomers = keys_of(newcomers)?;
                    if newcomers.is_empty() {
                        return Err(Inconsistent("a holder is probed for nobody"));
                    }
                    let newcomers = (1..).map(ClaimId).zip(newcomers).collect();
                    let tenure = Tenure::Probed { holder: key_of(holder)?, newcomers };
                    (tenure, due_in(now, Some(left_ms))?)
                }
            };
            let congested = given.phones.iter().copied().filter(is_congested).collect();
            let state::Wakes { full_in_ms, refused } = given.wakes;
            self.registry.restore(Restored {
                id,
                tenure,
                due,
                phones: keys_of(given.phones)?,
                congested: keys_of(congested)?,
                wakes: WakeAllowance::with_left(now, (full_in_ms, refused)),
                faults: Faults::revive(now, given.faults),
            });
        }
        Ok(())
    }

    /// What the connections' states call for.
    fn go_on(&mut self, now: Millis, keys: &[Key]) {
        self.registry.publish_counts();
        for key in keys {
            let Some(connection) = self.connections.held_mut(*key) else { continue };
            self.output.queue_write(connection);
            if matches!(connection.stage, Stage::HandingOver(_)) {
                self.after_flush(now, *key);
            }
        }
        // What those have brought about that were on their way. Memory is looked at with the next
        // event: until all workers are there, none knows who else could pay.
        if !self.work.is_empty() {
            self.settle(now);
        }
    }
}

/// A connection on its way in.
struct Revived {
    connection: Connection,
    /// What its link takes.
    link_bytes: u32,
}

impl Revived {
    fn input_bytes(&self) -> usize {
        let of_stage = match &self.connection.stage {
            Stage::Head(head) => head.received.capacity(),
            Stage::HandingOver(pending) => pending.unread.len(),
            stage => stage.ahead_bytes(),
        };
        of_stage + self.connection.decoder.buffered_bytes()
    }

    fn bytes(&self) -> u64 {
        let held = self.connection.outbox.held_bytes() + self.input_bytes();
        held as u64 + u64::from(self.link_bytes)
    }
}

/// The part of each connection in a server-id, if it has one. The entries are named in their order.
fn parts_of(
    connections: usize,
    server_ids: &[state::ServerId],
) -> Result<Vec<Option<PartIn>>, Inconsistent> {
    let mut parts = vec![None; connections];
    let mut take = |at: u32, part: PartIn| match parts.get_mut(at as usize) {
        None => Err(NOT_THERE),
        Some(Some(_)) => Err(TWICE),
        Some(free) => {
            *free = Some(part);
            Ok(())
        }
    };
    for (entry, id) in (0..).map(EntryKey).zip(server_ids) {
        match &id.tenure {
            state::Tenure::Held(holder) => take(*holder, PartIn::Holder(entry))?,
            state::Tenure::Grace(_) => {}
            state::Tenure::Probed { holder, newcomers, .. } => {
                take(*holder, PartIn::Holder(entry))?;
                for (claim_id, newcomer) in (1..).map(ClaimId).zip(newcomers) {
                    take(*newcomer, PartIn::Newcomer(entry, claim_id))?;
                }
            }
        }
        for (seat, phone) in (0..).map(Seat).zip(&id.phones) {
            take(*phone, PartIn::Phone(entry, seat))?;
        }
    }
    Ok(parts)
}

/// Phones that have not the slot of their name.
type Displaced = HashMap<ConnId, Key, RandomState>;

/// A key for each connection. A phone has that of its name, and others that which they had, where no
/// other has it and the table need not be much larger for it.
fn seat(connections: &[state::Connection], seed: [u8; 32]) -> (Vec<Key>, Displaced) {
    let mut is_taken = vec![false; 1024 + 4 * connections.len()];
    let mut take = |slot: u32| {
        let is_taken = is_taken.get_mut(slot as usize).filter(|is_taken| !**is_taken)?;
        *is_taken = true;
        Some(Key(slot))
    };
    let name = |connection: &state::Connection| match connection.stage {
        state::Stage::Phone { conn_id, .. } => Some(ConnId::from_bytes(conn_id)),
        _ => None,
    };
    let named = connections.iter().map(|connection| take(name(connection)?.slot()));
    let mut keys: Vec<Option<Key>> = named.collect();
    for (key, connection) in keys.iter_mut().zip(connections) {
        *key = key.or_else(|| take(connection.slot));
    }
    // There are more slots than connections.
    let mut free = (0..).filter_map(take);
    let keys = keys.into_iter().map(|key| key.or_else(|| free.next()).unwrap_or(Key(u32::MAX)));
    let keys: Vec<Key> = keys.collect();
    let mut displaced = HashMap::with_hasher(hasher(seed));
    for (key, connection) in keys.iter().zip(connections) {
        if let Some(name) = name(connection).filter(|name| name.slot() != key.0) {
            displaced.insert(name, *key);
        }
    }
    (keys, displaced)
}

/// Of random seeds: names are told to peers.
fn hasher(seed: [u8; 32]) -> RandomState {
    let (words, _) = seed.as_chunks();
    let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
    let [a, b, c, d] = [(); 4].map(|()| words.next().unwrap_or_default());
    RandomState::with_seeds(a, b, c, d)
}

fn server_id(id: &str) -> Result<ServerId, Inconsistent> {
    ServerId::from_header(id.as_bytes()).ok_or(Inconsistent("a server-id is none"))
}

fn due_in(now: Millis, left_ms: Option<u64>) -> Result<Millis, Inconsistent> {
    match left_ms {
        None => Ok(NEVER),
        Some(left_ms) if left_ms <= MAX_LEFT_MS => Ok(now + left_ms),
        Some(_) => Err(Inconsistent("a deadline is years away")),
    }
}
