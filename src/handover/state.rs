//! All that a relay knows of its connections and server-ids, as plain data that another process can
//! go on with.
//!
//! A worker gives out a [`Worker`] while the kernel has no operation on any of its sockets, and a
//! worker of the successor takes one in. Sockets travel beside it, in the order of the connections.
//! Times are relative: how long something has lasted, or how long until it is due, in milliseconds, so
//! that the two processes need no common clock.

use super::link::Link;
use serde::{Deserialize, Serialize};

/// The version of everything here. A relay reads the state of its own version and of the one before it.
pub const VERSION: u32 = 1;

/// One worker's share.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Worker {
    /// Its connections.
    pub connections: Vec<Connection>,
}

/// A connection.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Connection {
    /// Its slot in the table of the worker that gave it out.
    pub slot: u32,
    /// What lies between its socket and the core.
    pub link: Link,
}
