//! Connections as an operator sees them: who they are and what they cost, without secrets. And the
//! end of those that the operator wants to be rid of.

use super::connection::{Connection, Stage, Traffic};
use super::registry::EntryKey;
use super::timers::Millis;
use super::{Key, Relay};
use crate::config::IpNet;
use crate::protocol::close::Close;
use crate::protocol::ids::{ConnId, ServerId};
use crate::telemetry::Remote;

/// Slots that are looked at in one call: a worker has nothing else to do meanwhile, and takes some
/// 0.1 ms for them.
const AT_ONCE: usize = 256;

/// One connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Who the peer is.
    pub remote: Remote,
    /// How far it has come.
    pub state: &'static str,
    /// Its server-id, once it has one.
    pub server_id: Option<ServerId>,
    /// Its name, once it has one.
    pub conn_id: Option<ConnId>,
    /// How old it is.
    pub age_s: u64,
    /// Messages that it has sent and got.
    pub traffic: Traffic,
    /// Memory that what waits for it takes, in bytes.
    pub backlog_bytes: u64,
    /// Memory that takes what it has sent and what is not dealt with, in bytes.
    pub half_read_bytes: u64,
    /// From the last ping that it has answered to its pong, if there was one.
    pub round_trip_ms: Option<u16>,
}

/// Some connections of a worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Described {
    /// Each of them.
    pub accounts: Vec<Account>,
    /// Where to go on, if there are more.
    pub next: Option<usize>,
}

/// Which connections are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whom {
    /// The binary and the phones of this server-id.
    ServerId(String),
    /// The one with this name.
    ConnId(ConnId),
    /// Whoever comes from this network.
    Network(IpNet),
}

/// How many connections an operator's word has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disconnected {
    /// Those that are closing now, or gone.
    pub connections: usize,
    /// Where to go on, if there are more to look at.
    pub next: Option<usize>,
}

impl Relay {
    /// Describes connections from the slot `first` on.
    #[must_use]
    pub fn describe(&self, now: Millis, first: usize) -> Described {
        let (slots, next) = self.some_slots(first);
        let accounts = slots.filter_map(|slot| {
            let connection = self.connections.find(Key(slot as u32))?;
            Some(self.account(now, Key(slot as u32), connection))
        });
        Described { accounts: accounts.collect(), next }
    }

    /// The slots of one call, and where the next goes on.
    fn some_slots(&self, first: usize) -> (std::ops::Range<usize>, Option<usize>) {
        let all = self.connections.slots();
        let end = first.saturating_add(AT_ONCE);
        (first..end.min(all), (end < all).then_some(end))
    }

    fn account(&self, now: Millis, key: Key, connection: &Connection) -> Account {
        let charges = self.ledger.charges(key);
        let (entry, conn_id) = names(&connection.stage);
        Account {
            remote: connection.remote,
            state: connection.stage.phase().name(),
            server_id: entry.and_then(|key| self.registry.entry(key)).map(|entry| entry.id.clone()),
            conn_id,
            age_s: connection.age_s(now).into(),
            traffic: connection.traffic,
            backlog_bytes: charges.outbox.into(),
            half_read_bytes: (charges.input + charges.transport).into(),
            round_trip_ms: connection.heartbeat.round_trip_ms(),
        }
    }

    /// Ends the connections that are meant, from the slot `first` on: with a close of this code and
    /// reason, or at once where nothing was upgraded yet.
    pub fn disconnect(
        &mut self,
        now: Millis,
        first: usize,
        whom: &Whom,
        close: (u16, &str),
    ) -> Disconnected {
        let (slots, next) = self.some_slots(first);
        let mut connections = 0;
        for slot in slots {
            let key = Key(slot as u32);
            if self.is_meant(key, whom) {
                connections += 1;
                self.end_by_operator(now, key, close);
            }
        }
        self.settle(now);
        Disconnected { connections, next }
    }

    fn is_meant(&self, key: Key, whom: &Whom) -> bool {
        let Some(connection) = self.connections.find(key) else { return false };
        if matches!(connection.stage, Stage::Closing(_) | Stage::Closed) {
            return false;
        }
        let (entry, conn_id) = names(&connection.stage);
        match whom {
            Whom::ServerId(id) => entry
                .and_then(|entry| self.registry.entry(entry))
                .is_some_and(|entry| entry.id.as_str() == id),
            Whom::ConnId(wanted) => conn_id == Some(*wanted),
            Whom::Network(network) => network.contains(&connection.remote.0.ip().to_canonical()),
        }
    }

    fn end_by_operator(&mut self, now: Millis, key: Key, (code, reason): (u16, &str)) {
        let Some(connection) = self.connections.find(key) else { return };
        let remote = connection.remote;
        let is_open = connection.is_open();
        tracing::info!(%remote, close_code = code, err = "disconnected by the operator", "disconnected");
        if is_open {
            self.close_with(now, key, Close::directive(code).code, reason);
        } else {
            self.abort(key);
        }
    }
}

/// The server-id and the name that a connection at this stage has.
fn names(stage: &Stage) -> (Option<EntryKey>, Option<ConnId>) {
    match stage {
        Stage::Newcomer(newcomer) => (Some(newcomer.entry), Some(newcomer.conn_id)),
        Stage::Binary { entry, conn_id } | Stage::Phone { entry, conn_id, .. } => {
            (Some(*entry), Some(*conn_id))
        }
        Stage::Head(_) | Stage::HandingOver(_) | Stage::Closing(_) | Stage::Closed => (None, None),
    }
}
