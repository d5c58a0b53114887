//! A relay seen from outside: read-only, for simulations that check it step by step.

pub use super::connection::Phase;
use super::timers::Millis;
use super::{Key, Relay};
use crate::protocol::ids::ServerId;

/// One connection at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glimpse {
    /// How far it has come.
    pub phase: Phase,
    /// What is queued for it, by the rule for a phone's outbox.
    pub outbox_bytes: usize,
    /// Bytes charged for what it has sent and what is half read or held back.
    pub input_bytes: usize,
    /// Memory that what is queued for it takes, as it is charged.
    pub held_bytes: usize,
    /// When it is pinged next; [`NEVER`](super::timers::NEVER) if it is not.
    pub ping_due: Millis,
    /// Until when it is not read, because its server-id is over its rate.
    pub slowed_until: Option<Millis>,
}

impl Relay {
    /// A connection as it is now; `None` for a key that is not in use.
    #[must_use]
    pub fn glimpse(&self, key: Key) -> Option<Glimpse> {
        let connection = self.connections.find(key)?;
        let phase = connection.stage.phase();
        let outbox_bytes = connection.outbox.charged();
        let charges = self.ledger.charges(key);
        Some(Glimpse {
            phase,
            outbox_bytes,
            input_bytes: charges.input as usize,
            held_bytes: charges.outbox as usize,
            ping_due: connection.due.ping,
            slowed_until: connection.slowed.then_some(connection.due.stage),
        })
    }

    /// Whether the books are right between two events.
    ///
    /// # Errors
    ///
    /// The invariant that is broken, in words.
    pub fn check_books(&self) -> Result<(), String> {
        self.ledger.check()?;
        if !self.work.is_empty() {
            return Err(format!("left undone: {:?}", self.work));
        }
        if self.ledger.is_over() && !self.ledger.budget().may_wait() {
            return Err(format!("{} bytes over", self.ledger.budget().over_bytes()));
        }
        self.registry.check()?;
        self.connections.check(|key, connection| {
            let charged = self.ledger.charges(key).outbox as usize;
            match connection.outbox.held_bytes() {
                held if held == charged => Ok(()),
                held => Err(format!("{key:?}: {charged} bytes are charged for {held} queued")),
            }
        })
    }

    /// How many server-ids are held or in grace.
    #[must_use]
    pub fn server_ids(&self) -> usize {
        self.registry.len()
    }

    /// Whether nobody has this server-id: it is neither held nor in grace.
    #[must_use]
    pub fn is_free(&self, id: &ServerId) -> bool {
        self.registry.is_free(id)
    }

    /// How many timers exist, armed or not: one for each connection and each server-id.
    #[must_use]
    pub fn timers(&self) -> usize {
        self.connections.timers() + self.registry.timers()
    }
}
