//! A relay that goes on with what another process has given out.
//!
//! What comes is ours, but of another version, and has been through a socket: all that the rest of the
//! core counts on is checked here, and whatever does not hold refuses the whole. So does a budget that
//! is too small: nobody is shed. Other limits are as with a reload: those that are there stay.

use super::ahead::Ahead;
use super::connection::{
    Closing, Connection, Drain, Due, HeadBuffer, Hearing, Heartbeat, Newcomer, PendingHandOver,
    Stage, Traffic,
};
use super::faults::Faults;
use super::ledger::Part;
use super::outbox::Outbox;
use super::registry::{ClaimId, EntryKey, Restored, Seat, Tenure};
use super::timers::{Millis, NEVER};
use super::wakes::WakeAllowance;
use super::{Key, Relay, Settings};
use crate::handover::state::{self, Inconsistent};
use crate::handover::{NOT_THERE, TWICE};
use crate::protocol::close::Close;
use crate::protocol::frames::{Decoder, HalfRead, HalfReadFrame, HalfReadMessage};
use crate::protocol::ids::{ConnId, ServerId};
use crate::protocol::upgrade::{HeadScanner, Role, Upgrade};
use crate::shared::admission::{Admission, Standing};
use crate::telemetry::Remote;
use ahash::RandomState;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// No deadline is further away than this: some ten years.
const MAX_LEFT_MS: u64 = 10 * 366 * 24 * 3600 * 1000;
/// Counts of messages and bytes are less than this.
const MAX_COUNT: u64 = 1 << 62;

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
            restored.push((*key, relay.connection(now, given, part)?));
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

    fn connection(
        &self,
        now: Millis,
        given: state::Connection,
        part: Option<PartIn>,
    ) -> Result<Revived, Inconsistent> {
        let decoder = match given.half_read {
            None => Decoder::default(),
            Some(half_read) => Decoder::resumed(half_read.into())
                .ok_or(Inconsistent("a message is half read that cannot be"))?,
        };
        let mut connection = Connection {
            stage: self.stage(now, given.stage, part)?,
            since_s: ((now / 1000) as u32).wrapping_sub(given.age_s),
            traffic: Traffic::revive(given.traffic)?,
            decoder,
            outbox: Outbox::revive(given.outbox)?,
            due: Due::revive(now, given.due)?,
            heartbeat: Heartbeat::revive(now, given.heartbeat),
            ended: given.ended,
            paused: given.paused,
            ..Connection::new(now, revive_remote(given.remote, given.scope_id), None)
        };
        check_stage(&connection)?;
        connection.pass = given.counts_as.map(|standing| readmit(&self.admission, standing));
        Ok(Revived { connection, link_bytes: given.link_bytes })
    }

    fn stage(
        &self,
        now: Millis,
        given: state::Stage,
        part: Option<PartIn>,
    ) -> Result<Stage, Inconsistent> {
        let name = ConnId::from_bytes;
        Ok(match (given, part) {
            (state::Stage::Head(received), None) => Stage::Head(Box::new(HeadBuffer {
                received: received.0,
                read: 0,
                scanner: HeadScanner::default(),
            })),
            (state::Stage::HandingOver(request), None) => {
                Stage::HandingOver(Box::new(self.pending(*request)?))
            }
            (
                state::Stage::Newcomer { conn_id, ahead },
                Some(PartIn::Newcomer(entry, claim_id)),
            ) => {
                let messages: Vec<&[u8]> = ahead.iter().map(|message| &*message.0).collect();
                let (conn_id, ahead) = (name(conn_id), Ahead::of(&messages));
                Stage::Newcomer(Box::new(Newcomer { entry, conn_id, claim_id, ahead }))
            }
            (state::Stage::Binary { conn_id }, Some(PartIn::Holder(entry))) => {
                Stage::Binary { entry, conn_id: name(conn_id) }
            }
            (
                state::Stage::Phone { conn_id, congested_bytes },
                Some(PartIn::Phone(entry, seat)),
            ) => Stage::Phone { entry, conn_id: name(conn_id), congested_bytes, seat },
            (state::Stage::Closing(closing), None) => {
                Stage::Closing(Box::new(Closing::revive(now, closing)?))
            }
            _ => return Err(Inconsistent("a connection's stage is not that of its part in an id")),
        })
    }

    fn pending(&self, request: state::Request) -> Result<PendingHandOver, Inconsistent> {
        let state::Request { server_id: id, accept_key, role, unread } = request;
        let server_id = server_id(&id)?;
        if !accept_key.iter().all(u8::is_ascii_graphic) {
            return Err(Inconsistent("an accept key is none"));
        }
        let role = match role {
            state::Role::Binary(version) => Role::Binary { version: version.into() },
            state::Role::Phone(name) => Role::Phone { device_name: name.map(Into::into) },
        };
        let worker = self.owners.owner_of(&server_id);
        let upgrade = Upgrade { server_id, accept_key, role };
        Ok(PendingHandOver { worker, upgrade, unread: unread.0 })
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

fn readmit(
    admission: &Arc<Admission>,
    standing: state::Standing,
) -> crate::shared::admission::Pass {
    admission.readmit(match standing {
        state::Standing::Unknown => Standing::Unknown,
        state::Standing::Visitor(address) => Standing::Visitor(address.into()),
        state::Standing::Live(address) => Standing::Live(address.into()),
    })
}

fn revive_remote(mut remote: SocketAddr, scope_id: u32) -> Remote {
    if let SocketAddr::V6(address) = &mut remote {
        address.set_scope_id(scope_id);
    }
    Remote(remote)
}

/// What the core counts on of a connection's stage and the rest of it.
fn check_stage(connection: &Connection) -> Result<(), Inconsistent> {
    let due = &connection.due;
    let is_begun = connection.decoder.is_mid_message();
    match &connection.stage {
        stage if stage.is_open() => {
            if due.stage != NEVER {
                return Err(Inconsistent("an open connection has a deadline of another stage"));
            }
        }
        Stage::Closing(_) => {}
        _ if is_begun || connection.outbox.has_control() => {
            return Err(Inconsistent("frames are there before the upgrade"));
        }
        _ => {}
    }
    let has_frame_deadline = [due.ping, due.pong, due.message].iter().any(|due| *due != NEVER);
    if has_frame_deadline && !connection.is_open() {
        return Err(Inconsistent("a connection that is not open has a deadline of one that is"));
    }
    Ok(())
}

impl Closing {
    fn revive(now: Millis, given: state::Closing) -> Result<Self, Inconsistent> {
        let then = match given.then {
            None => None,
            Some(code) if Close::directive(code).code == code => Some(Close::directive(code)),
            Some(_) => return Err(Inconsistent("a close is to follow with a code that is none")),
        };
        let hearing = match given.hearing {
            state::Hearing::Frames => Hearing::Frames,
            state::Hearing::Noise => Hearing::Noise,
            state::Hearing::Nothing => Hearing::Nothing,
        };
        let drain = Drain {
            unsent: usize::try_from(given.unsent).unwrap_or(usize::MAX),
            progress_at: now.wrapping_sub(given.progress_ms),
            overdue: given.overdue,
        };
        Ok(Self { then, hearing, finished: given.finished, drain })
    }
}

impl Traffic {
    fn revive(given: state::Traffic) -> Result<Self, Inconsistent> {
        let state::Traffic { messages_in, bytes_in, messages_out, bytes_out } = given;
        if [messages_in, bytes_in, messages_out, bytes_out].iter().any(|count| *count > MAX_COUNT) {
            return Err(Inconsistent("a count is beyond all that can be counted"));
        }
        Ok(Self { messages_in, bytes_in, messages_out, bytes_out })
    }
}

impl Due {
    fn revive(now: Millis, given: state::Due) -> Result<Self, Inconsistent> {
        Ok(Self {
            stage: due_in(now, given.stage)?,
            ping: due_in(now, given.ping)?,
            pong: due_in(now, given.pong)?,
            message: due_in(now, given.message)?,
            write: due_in(now, given.write)?,
        })
    }
}

impl Heartbeat {
    fn revive(now: Millis, given: state::Heartbeat) -> Self {
        let state::Heartbeat { sent, answered, pinged_ms, round_trip_ms } = given;
        let pinged_at = (now as u32).wrapping_sub(pinged_ms);
        let round_trip = round_trip_ms.map_or(0, |took| took.saturating_add(1));
        Self { sent, answered, pinged_at, round_trip }
    }
}

impl From<HalfRead> for state::HalfRead {
    fn from(HalfRead { header, frame, message }: HalfRead) -> Self {
        let frame = frame.map(|frame| state::HalfReadFrame {
            first: frame.first,
            mask: frame.mask,
            payload_bytes: frame.payload_bytes,
            came_bytes: frame.came_bytes,
            control: state::Bytes(frame.control),
        });
        let message = message.map(|HalfReadMessage { is_text, bytes }| state::HalfReadMessage {
            is_text,
            bytes: state::Bytes(bytes),
        });
        Self { header: state::Bytes(header), frame, message }
    }
}

impl From<state::HalfRead> for HalfRead {
    fn from(state::HalfRead { header, frame, message }: state::HalfRead) -> Self {
        let frame = frame.map(|frame| HalfReadFrame {
            first: frame.first,
            mask: frame.mask,
            payload_bytes: frame.payload_bytes,
            came_bytes: frame.came_bytes,
            control: frame.control.0,
        });
        let message = message.map(|state::HalfReadMessage { is_text, bytes }| HalfReadMessage {
            is_text,
            bytes: bytes.0,
        });
        Self { header: header.0, frame, message }
    }
}
