//! Restarting without dropping a connection: what a process gives to its successor.
//!
//! - [`state`]: all that the relay knows of connections and server-ids, as plain data
//! - [`link`]: what lies between a socket and the core, as plain data

pub mod link;
pub mod state;
