//! Requests and answers on the control socket: one line of JSON each.

use crate::config::IpNet;
pub(in crate::control) use crate::metrics::snapshot::Drain as DrainStatus;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;

/// What the relay is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub(in crate::control) enum Request {
    /// How the relay is doing: the same JSON as `/status.json`.
    Status,
    /// What a bug report needs. Each item is a [`Part`](crate::control::diagnose::Part).
    Diagnose {
        /// Leave addresses, server-ids and the domain in it.
        with_addresses: bool,
    },
    /// Who is connected. Each connection is an item, a [`Row`](crate::control::connections::Row);
    /// the last line says how many there are.
    Connections,
    /// Ends connections; how many.
    Disconnect {
        /// Of which network, server-id, or with which conn-id: one of them.
        whom: Whom,
        /// The close code that they are told.
        code: u16,
        /// The reason that they are told.
        reason: String,
    },
    /// Keeps a network out, for good unless a time is given.
    Block {
        /// Which.
        network: IpNet,
        /// For so long.
        for_ms: Option<u64>,
    },
    /// Lets it in again.
    Unblock {
        /// Which.
        network: IpNet,
    },
    /// All [`Blocked`](crate::metrics::snapshot::Blocked) networks.
    Blocked,
    /// Changes the level of the log, until a reload unless a time is given.
    LogLevel {
        /// Which.
        level: String,
        /// For so long.
        for_ms: Option<u64>,
    },
    /// Starts the program that is installed, which takes over everything; the process ends. Answered
    /// with a [`Report`](crate::control::upgrade::Report).
    Upgrade {
        /// Start this one instead.
        program: Option<PathBuf>,
    },
    /// Takes nobody new and sends everybody away. Answered with a [`DrainStatus`].
    Drain(DrainPlan),
    /// How far that has come: a [`DrainStatus`], or null where nothing is drained.
    DrainStatus,
    /// Takes that back; whether there was something to take back.
    CancelDrain,
}

/// Which connections are meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::control) enum Whom {
    /// Those of this server-id.
    ServerId(String),
    /// The one with this name.
    ConnId(String),
    /// Those of this network.
    Address(IpNet),
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
