//! What the two processes say to one another. The order stands in [the module's
//! documentation](super).

use super::process::Process;
use super::state::Worker;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// The first message, whose form never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// The [version](super::state::VERSION) of everything that follows.
    pub state_version: u32,
    /// The version of the program.
    pub program: String,
}

/// What the predecessor says.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromPredecessor {
    /// What the successor is to take over. The listeners come with it, without those that connections
    /// are served on.
    Offer(Offer),
    /// All of it. With it come the sockets of all connections, then the listeners that connections are
    /// served on.
    State(Box<State>),
    /// The successor is to go on.
    Commit,
    /// The predecessor goes on itself.
    Abort,
}

/// What the successor says.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromSuccessor {
    /// It can serve what is offered, and waits for the state.
    Ready {
        /// The version of its program.
        program: String,
    },
    /// It cannot go on, for this reason, and ends.
    Refused(String),
    /// It has taken everything in, and touches nothing.
    Prepared,
    /// From now on it is the one that touches the sockets.
    Taken,
    /// Every worker serves.
    Serving {
        /// When that was, by the clock that both share (`CLOCK_MONOTONIC`), in microseconds.
        at_us: u64,
    },
}

/// What there is to take over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Where connections are served.
    pub serving: Place,
    /// Other listeners: metrics, challenges, the control socket. Their sockets come in this order.
    pub others: Vec<Listener>,
}

/// Where something listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The flag that says so.
    pub flag: String,
    /// The address that the flag gives.
    pub asked: SocketAddr,
    /// The address that this came to: a port that the kernel chose.
    pub bound: SocketAddr,
    /// How many sockets listen there.
    pub sockets: u32,
}

/// A listener of the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// The flag that says where it listens.
    pub flag: String,
    /// What the flag gives: an address, or a path.
    pub asked: String,
}

/// Everything.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// What the process knows beside its connections.
    pub process: Process,
    /// Since when no worker serves, by the clock that both share (`CLOCK_MONOTONIC`), in microseconds.
    pub still_since_us: u64,
    /// Each worker's share, and how many listeners it has.
    pub workers: Vec<(Worker, u32)>,
}
