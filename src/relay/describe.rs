//! Connections as an operator sees them: one line each, without secrets.

use super::connection::{Connection, Stage};
use super::registry::EntryKey;
use super::timers::Millis;
use super::{Key, Relay};
use std::fmt::Write as _;

/// Connections that are described at once: a worker has nothing else to do meanwhile.
const AT_ONCE: usize = 1000;

/// Some connections of a worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Described {
    /// One line each: worker, remote, state, server-id, conn-id, age in seconds, memory that what
    /// waits for it takes and memory of what is half read; `-` for what it does not have.
    pub lines: String,
    /// Where to go on, if there are more.
    pub next: Option<usize>,
}

impl Relay {
    /// Describes connections from the slot `first` on.
    #[must_use]
    pub fn describe(&self, now: Millis, first: usize) -> Described {
        let mut lines = String::new();
        let end = first.saturating_add(AT_ONCE);
        for slot in first..end.min(self.connections.capacity()) {
            if let Some(connection) = self.connections.get(slot) {
                self.describe_one(now, Key(slot as u32), connection, &mut lines);
            }
        }
        Described { lines, next: (end < self.connections.capacity()).then_some(end) }
    }

    fn describe_one(&self, now: Millis, key: Key, connection: &Connection, lines: &mut String) {
        let charges = self.ledger.charges(key);
        let (state, entry, conn_id) = match &connection.stage {
            Stage::Head(_) => ("head", None, None),
            Stage::HandingOver(_) => ("moving", None, None),
            Stage::Newcomer(newcomer) => {
                ("newcomer", Some(newcomer.entry), Some(&newcomer.conn_id))
            }
            Stage::Binary { entry, conn_id } => ("binary", Some(*entry), Some(conn_id)),
            Stage::Phone { entry, conn_id, .. } => ("phone", Some(*entry), Some(conn_id)),
            Stage::Closing(_) => ("closing", None, None),
            Stage::Closed => ("closed", None, None),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            lines,
            "{} {} {state} {} {} {} {} {}",
            self.worker,
            connection.remote,
            entry.map_or_else(|| "-".to_owned(), |entry| self.quoted_id(entry)),
            conn_id.map_or("-", |id| id.as_str()),
            now.saturating_sub(connection.since) / 1000,
            charges.outbox,
            charges.input + charges.transport,
        );
    }

    /// A server-id is a peer's own text: quoted, it can forge neither a field nor a line.
    fn quoted_id(&self, entry: EntryKey) -> String {
        self.registry
            .entry(entry)
            .map_or_else(|| "-".to_owned(), |e| format!("{:?}", e.id.as_str()))
    }
}
