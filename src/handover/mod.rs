//! Restarting without dropping a connection: what a process gives to its successor.
//!
//! - [`state`]: all that the relay knows of connections and server-ids, as plain data
//! - [`link`]: what lies between a socket and the core, as plain data
//! - [`distribute`]: who gets what, where the successor may have another number of workers

mod distribute;

pub mod link;
pub mod state;

pub(crate) use distribute::{NOT_THERE, TWICE};
pub use distribute::{Share, distribute};
