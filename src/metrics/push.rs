//! Wake requests by what came of them (PROTOCOL.md, chapters 7 and 8).

use std::sync::atomic::{AtomicU64, Ordering};

/// What came of a wake request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushOutcome {
    /// The push service took the message.
    Sent,
    /// The push service no longer knows the phone.
    Unregistered,
    /// The push service did not take the message, or did not answer.
    SendFailed,
    /// There was no access token to send it with.
    TokenFetchFailed,
    /// It was over a limit, or for a push service that is not known, and nothing was sent.
    Dropped,
}

impl PushOutcome {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Sent, Self::Unregistered, Self::SendFailed, Self::TokenFetchFailed, Self::Dropped];

    /// The value of the label `outcome`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Unregistered => "unregistered",
            Self::SendFailed => "send_failed",
            Self::TokenFetchFailed => "token_fetch_failed",
            Self::Dropped => "dropped",
        }
    }
}

/// Wake requests by what came of them. Workers count here too, but only what they drop, and that is
/// no frame.
#[derive(Debug, Default)]
pub struct PushMetrics {
    outcomes: [AtomicU64; PushOutcome::ALL.len()],
}

impl PushMetrics {
    /// Counts one request.
    pub fn count(&self, outcome: PushOutcome) {
        self.add(outcome, 1);
    }

    /// Counts so many.
    pub(super) fn add(&self, outcome: PushOutcome, count: u64) {
        if let Some(counter) = self.outcomes.get(outcome as usize) {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Requests that this came of.
    #[must_use]
    pub fn total(&self, outcome: PushOutcome) -> u64 {
        self.outcomes.get(outcome as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }
}
