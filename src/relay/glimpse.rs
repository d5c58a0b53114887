//! A relay seen from outside: read-only, for simulations that check it step by step.

use super::connection::Stage;
use super::{Key, Relay};

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A request head is expected.
    Head,
    /// On its way to the owner of its server-id.
    Moving,
    /// A binary that waits for the outcome of a probe.
    Newcomer,
    /// A binary that holds an id.
    Binary,
    /// A phone that is registered.
    Phone,
    /// Its last bytes are queued or sent.
    Closing,
    /// Dead, or handed over; waits for its release.
    Cut,
}

/// One connection at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glimpse {
    /// How far it has come.
    pub phase: Phase,
    /// Bytes charged for what is queued for it.
    pub outbox_bytes: usize,
    /// Bytes charged for what it has sent and what is half read or held back.
    pub input_bytes: usize,
}

impl Relay {
    /// A connection as it is now; `None` for a key that is not in use.
    #[must_use]
    pub fn glimpse(&self, key: Key) -> Option<Glimpse> {
        let connection = self.connection(key)?;
        let phase = match connection.stage {
            Stage::Head(_) => Phase::Head,
            Stage::Moving(_) => Phase::Moving,
            Stage::Newcomer(_) => Phase::Newcomer,
            Stage::Binary { .. } => Phase::Binary,
            Stage::Phone { .. } => Phase::Phone,
            Stage::Closing(_) => Phase::Closing,
            Stage::Cut => Phase::Cut,
        };
        let outbox_bytes = connection.outbox.charged();
        Some(Glimpse { phase, outbox_bytes, input_bytes: connection.input_charge as usize })
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
