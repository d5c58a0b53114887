//! Everything that a worker knows, as plain data for another process.

use super::connection::{Closing, Connection, Due, Hearing, Heartbeat, Stage, Traffic};
use super::registry::{Entry, Tenure};
use super::timers::{Millis, NEVER};
use super::{HandOver, Key, Relay};
use crate::handover::state::{self, Bytes};
use crate::protocol::ids::ConnId;
use crate::protocol::upgrade::{Role, Upgrade};
use crate::shared::admission::{Pass, Standing};
use crate::telemetry::Remote;
use std::net::SocketAddr;

/// Where each connection stands among those that are given out, by its key.
struct Places(Vec<Option<u32>>);

impl Places {
    fn of(&self, key: Key) -> Option<u32> {
        self.0.get(key.0 as usize).copied().flatten()
    }
}

impl Relay {
    /// Everything that is known of the connections and server-ids, which stay as they are. The shell
    /// has done all that it was told to do and released whom it was told to end, and no write is out.
    /// Of those that `leave_out` names nothing is given out: nobody else can go on with them.
    #[must_use]
    pub fn give_out(&self, now: Millis, leave_out: &dyn Fn(Key) -> bool) -> state::Worker {
        if !self.work.is_empty() || !self.output.is_idle() {
            self.broken("a worker is given out that has something left to do");
        }
        let mut places = Places(vec![None; self.connections.slots()]);
        let mut connections = Vec::with_capacity(self.connections.len());
        for connection in self.connections.iter().filter(|connection| !leave_out(connection.key)) {
            let link_bytes = self.ledger.charges(connection.key).transport;
            let Some(given) = connection.give_out(now, link_bytes) else {
                self.broken("a connection is given out that has ended");
                continue;
            };
            if let Some(place) = places.0.get_mut(connection.key.0 as usize) {
                *place = Some(connections.len() as u32);
            }
            connections.push(given);
        }
        let visitors = self.visitors.iter().filter_map(|(key, address)| {
            let connection = places.of(key)?;
            Some(state::Visitor { connection, address: address.into() })
        });
        let server_ids =
            self.registry.iter().filter_map(|(entry, due)| self.entry(now, entry, due, &places));
        state::Worker {
            visitors: visitors.collect(),
            server_ids: server_ids.collect(),
            connections,
        }
    }

    fn entry(
        &self,
        now: Millis,
        entry: &Entry,
        due: Millis,
        places: &Places,
    ) -> Option<state::ServerId> {
        let all_of = |keys: &mut dyn Iterator<Item = Key>| keys.map(|key| places.of(key)).collect();
        let left_ms = due.saturating_sub(now);
        let tenure =
            match &entry.tenure {
                Tenure::Held(holder) => places.of(*holder).map(state::Tenure::Held),
                Tenure::Grace => Some(state::Tenure::Grace(left_ms)),
                Tenure::Probed { holder, newcomers } => {
                    let newcomers: Option<Vec<u32>> = all_of(&mut newcomers.values().copied());
                    places.of(*holder).zip(newcomers).map(|(holder, newcomers)| {
                        state::Tenure::Probed { holder, newcomers, left_ms }
                    })
                }
            };
        let phones: Option<Vec<u32>> = all_of(&mut entry.phones.iter().copied());
        let Some((tenure, phones)) = tenure.zip(phones) else {
            self.broken("a connection is left out that has a part in a server-id");
            return None;
        };
        let (full_in_ms, refused) = entry.wakes.left(now);
        Some(state::ServerId {
            id: entry.id.as_str().to_owned(),
            tenure,
            phones,
            wakes: state::Wakes { full_in_ms, refused },
            faults: entry.faults.give_out(now),
        })
    }
}

impl Connection {
    /// What is known of it; nothing if it has ended.
    fn give_out(&self, now: Millis, link_bytes: u32) -> Option<state::Connection> {
        let stage = give_out_stage(now, &self.stage)?;
        let (remote, scope_id) = give_out_remote(self.remote);
        Some(state::Connection {
            slot: self.key.0,
            remote,
            scope_id,
            counts_as: self.pass.as_ref().map(give_out_pass),
            age_s: self.age_s(now),
            traffic: self.traffic.give_out(),
            stage,
            half_read: self.decoder.half_read().map(Into::into),
            outbox: self.outbox.give_out(),
            due: self.due.give_out(now),
            heartbeat: self.heartbeat.give_out(now),
            ended: self.ended,
            paused: self.paused,
            link_bytes,
            link: state::Link::default(),
        })
    }
}

impl HandOver {
    /// A connection whose move to another worker the core has ordered and the shell not carried out,
    /// since something must leave before it, until `due`. Its link is the shell's.
    #[must_use]
    pub fn give_out(&self, now: Millis, slot: Key, due: Millis) -> state::Connection {
        let (remote, scope_id) = give_out_remote(self.remote);
        state::Connection {
            slot: slot.0,
            remote,
            scope_id,
            counts_as: self.pass.as_ref().map(give_out_pass),
            age_s: 0,
            traffic: state::Traffic::default(),
            stage: give_out_request(&self.upgrade, &self.unread),
            half_read: None,
            outbox: state::Outbox::default(),
            due: state::Due { stage: left_ms(now, due), ..state::Due::default() },
            heartbeat: state::Heartbeat::default(),
            ended: false,
            paused: false,
            link_bytes: 0,
            link: state::Link::default(),
        }
    }
}

fn left_ms(now: Millis, due: Millis) -> Option<u64> {
    (due != NEVER).then(|| due.saturating_sub(now))
}

fn give_out_remote(remote: Remote) -> (SocketAddr, u32) {
    let scope_id = match remote.0 {
        SocketAddr::V6(address) => address.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    (remote.0, scope_id)
}

fn give_out_pass(pass: &Pass) -> state::Standing {
    match pass.standing() {
        Standing::Unknown => state::Standing::Unknown,
        Standing::Visitor(address) => state::Standing::Visitor(address.into()),
        Standing::Live(address) => state::Standing::Live(address.into()),
    }
}

fn give_out_stage(now: Millis, stage: &Stage) -> Option<state::Stage> {
    let name = ConnId::to_bytes;
    Some(match stage {
        Stage::Head(head) => {
            let received = head.received.get(head.read..).unwrap_or_default();
            state::Stage::Head(Bytes(received.to_vec()))
        }
        Stage::HandingOver(pending) => give_out_request(&pending.upgrade, &pending.unread),
        Stage::Newcomer(newcomer) => state::Stage::Newcomer {
            conn_id: name(&newcomer.conn_id),
            ahead: newcomer.ahead.messages().map(|message| Bytes(message.to_vec())).collect(),
        },
        Stage::Binary { conn_id, .. } => state::Stage::Binary { conn_id: name(conn_id) },
        Stage::Phone { conn_id, congested_bytes, .. } => {
            state::Stage::Phone { conn_id: name(conn_id), congested_bytes: *congested_bytes }
        }
        Stage::Closing(closing) => state::Stage::Closing(closing.give_out(now)),
        Stage::Closed => return None,
    })
}

fn give_out_request(upgrade: &Upgrade, unread: &[u8]) -> state::Stage {
    let role = match &upgrade.role {
        Role::Binary { version } => state::Role::Binary(version.to_string()),
        Role::Phone { device_name } => {
            state::Role::Phone(device_name.as_ref().map(ToString::to_string))
        }
    };
    state::Stage::HandingOver(Box::new(state::Request {
        server_id: upgrade.server_id.as_str().to_owned(),
        accept_key: upgrade.accept_key,
        role,
        unread: Bytes(unread.to_vec()),
    }))
}

impl Closing {
    fn give_out(&self, now: Millis) -> state::Closing {
        state::Closing {
            // Only a binary's directive waits for its turn, and has no reason.
            then: self.then.map(|close| close.code),
            hearing: match self.hearing {
                Hearing::Frames => state::Hearing::Frames,
                Hearing::Noise => state::Hearing::Noise,
                Hearing::Nothing => state::Hearing::Nothing,
            },
            finished: self.finished,
            unsent: self.drain.unsent as u64,
            progress_ms: now.wrapping_sub(self.drain.progress_at),
            overdue: self.drain.overdue,
        }
    }
}

impl Traffic {
    fn give_out(&self) -> state::Traffic {
        let Self { messages_in, bytes_in, messages_out, bytes_out } = *self;
        state::Traffic { messages_in, bytes_in, messages_out, bytes_out }
    }
}

impl Due {
    fn give_out(&self, now: Millis) -> state::Due {
        state::Due {
            stage: left_ms(now, self.stage),
            ping: left_ms(now, self.ping),
            pong: left_ms(now, self.pong),
            message: left_ms(now, self.message),
            write: left_ms(now, self.write),
        }
    }
}

impl Heartbeat {
    fn give_out(&self, now: Millis) -> state::Heartbeat {
        state::Heartbeat {
            sent: self.sent,
            answered: self.answered,
            pinged_ms: (now as u32).wrapping_sub(self.pinged_at),
            round_trip_ms: self.round_trip_ms(),
        }
    }
}
