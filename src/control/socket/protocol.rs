//! Requests and answers on the control socket: one line of JSON each.

pub(in crate::control) use crate::metrics::snapshot::Drain as DrainStatus;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What the relay is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub(in crate::control) enum Request {
    /// Takes nobody new and sends everybody away. Answered with a [`DrainStatus`].
    Drain(DrainPlan),
    /// How far that has come: a [`DrainStatus`], or null where nothing is drained.
    DrainStatus,
    /// Takes that back; whether there was something to take back.
    CancelDrain,
}

/// How fast everybody is sent away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::control) struct DrainPlan {
    /// Server-ids at once.
    pub(in crate::control) batch: usize,
    /// The time from one batch to the next.
    pub(in crate::control) every_ms: u64,
    /// The time before the first.
    pub(in crate::control) delay_ms: u64,
}

/// A line of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::control) enum Answer {
    /// One of several parts.
    Item(Value),
    /// The last line: what came of it.
    Done(Value),
    /// The last line: why nothing came of it, and what to do.
    Error(String),
}
