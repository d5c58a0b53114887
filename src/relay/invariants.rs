//! What cannot happen. Where it happens all the same, the relay has a fault: an assertion in debug
//! builds, and in release builds a line in the log and a count, for the relay goes on for everybody
//! whom it does not concern.

use super::Relay;
use crate::metrics::{Series, WorkerMetrics};

/// `err` says which invariant does not hold.
///
/// # Panics
///
/// In debug builds.
#[cold]
#[inline(never)]
pub(crate) fn broken(counters: &WorkerMetrics, err: &'static str) {
    counters.count(Series::InvariantsBroken);
    tracing::error!(err, "invariant_broken");
    debug_assert!(false, "{err}");
}

impl Relay {
    /// As [`broken`].
    #[cold]
    pub(super) fn broken(&self, err: &'static str) {
        broken(&self.counters, err);
    }
}
