//! A relay seen from outside: read-only, for simulations that check it step by step.

use super::connection::{Population, Stage};
use super::{Key, Relay};

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A request head is expected.
    Head,
    /// On its way to the owner of its server-id.
    HandingOver,
    /// A binary that waits for the outcome of a probe.
    Newcomer,
    /// A binary that holds an id.
    Binary,
    /// A phone that is registered.
    Phone,
    /// Its last bytes are queued or sent.
    Closing,
    /// Aborted, closed or handed over; waits for its release.
    Closed,
}

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
}

impl Relay {
    /// A connection as it is now; `None` for a key that is not in use.
    #[must_use]
    pub fn glimpse(&self, key: Key) -> Option<Glimpse> {
        let connection = self.connection(key)?;
        let phase = match connection.stage {
            Stage::Head(_) => Phase::Head,
            Stage::HandingOver(_) => Phase::HandingOver,
            Stage::Newcomer(_) => Phase::Newcomer,
            Stage::Binary { .. } => Phase::Binary,
            Stage::Phone { .. } => Phase::Phone,
            Stage::Closing(_) => Phase::Closing,
            Stage::Closed => Phase::Closed,
        };
        let outbox_bytes = connection.outbox.charged();
        let charges = self.ledger.charges(key);
        Some(Glimpse {
            phase,
            outbox_bytes,
            input_bytes: charges.input as usize,
            held_bytes: charges.outbox as usize,
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
        let mut population = Population::default();
        for (slot, connection) in &self.connections {
            population.enter(&connection.stage);
            let charged = self.ledger.charges(Key(slot as u32)).outbox as usize;
            let held = connection.outbox.held_bytes();
            if charged != held {
                return Err(format!("{slot}: {charged} bytes are charged for {held} queued"));
            }
        }
        if population != self.population {
            return Err(format!("{:?} are counted, {population:?} are there", self.population));
        }
        Ok(())
    }

    /// How many server-ids are held or in grace.
    #[must_use]
    pub fn server_ids(&self) -> usize {
        self.registry.len()
    }

    /// How many timers exist, armed or not: one for each connection and each server-id.
    #[must_use]
    pub fn timers(&self) -> usize {
        self.wheel.len()
    }
}
