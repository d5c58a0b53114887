//! Restart without dropping a connection.
//!
//! - `workers`: workers over real sockets give all that they have to others, or go on with it
//! - `fleet`: such workers, in this process
//! - `flow`: peers that talk as fast as they can, and check every message

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    missing_docs
)]

mod common;

#[path = "takeover/fleet.rs"]
mod fleet;
#[path = "takeover/flow.rs"]
mod flow;
#[path = "takeover/workers.rs"]
mod workers;
