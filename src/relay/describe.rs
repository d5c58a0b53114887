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
        let slots = self.connections.slots();
        for slot in first..end.min(slots) {
            if let Some(connection) = self.connections.find(Key(slot as u32)) {
                self.describe_one(now, connection, &mut lines);
            }
        }
        Described { lines, next: (end < slots).then_some(end) }
    }

    fn describe_one(&self, now: Millis, connection: &Connection, lines: &mut String) {
        let charges = self.ledger.charges(connection.key);
        let state = connection.stage.phase().name();
        let (entry, conn_id) = match &connection.stage {
            Stage::Newcomer(newcomer) => (Some(newcomer.entry), Some(&newcomer.conn_id)),
            Stage::Binary { entry, conn_id } | Stage::Phone { entry, conn_id, .. } => {
                (Some(*entry), Some(conn_id))
            }
            Stage::Head(_) | Stage::HandingOver(_) | Stage::Closing(_) | Stage::Closed => {
                (None, None)
            }
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
        self.registry.name(entry).map_or_else(|| "-".to_owned(), |name| format!("{name:?}"))
    }
}
