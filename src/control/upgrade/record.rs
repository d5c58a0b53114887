//! How upgrades went, for metrics, the status page and alerts.

use crate::control::since_1970;
use crate::metrics::snapshot::{LastUpgrade, UpgradeFailure, Upgrades};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How upgrades went so far: those of earlier processes included, of which this one has taken over.
#[derive(Debug, Default)]
pub(in crate::control) struct Record(Mutex<Upgrades>);

impl Record {
    /// What was counted before.
    pub(in crate::control) fn go_on_from(&self, succeeded: u64, failed: u64) {
        let mut upgrades = self.upgrades();
        upgrades.succeeded = succeeded;
        upgrades.failed = failed;
    }

    /// This process has taken over.
    pub(in crate::control) fn note_success(&self, connections: u64, pause_ms: f64) {
        let mut upgrades = self.upgrades();
        upgrades.succeeded += 1;
        upgrades.last =
            Some(LastUpgrade { at_seconds: since_1970(Instant::now()), connections, pause_ms });
    }

    /// This process goes on.
    pub(super) fn note_failure(&self, why: &str) {
        let mut upgrades = self.upgrades();
        upgrades.failed += 1;
        upgrades.last_failure =
            Some(UpgradeFailure { at_seconds: since_1970(Instant::now()), why: why.to_owned() });
    }

    pub(super) fn count(&self) -> u64 {
        self.upgrades().succeeded
    }

    /// All of it.
    pub(in crate::control) fn show(&self) -> Upgrades {
        self.upgrades().clone()
    }

    fn upgrades(&self) -> MutexGuard<'_, Upgrades> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
