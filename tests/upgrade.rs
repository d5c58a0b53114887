//! Restart without dropping a connection, from outside: `pyrycode-relay upgrade` with the real binary
//! over real sockets. What workers give to one another is in the tests of `takeover`.
//!
//! - `service`: a relay that is one process after the other, and peers of it
//! - `puppet`: what a relay starts as its successor, in the hands of the test
//! - `moves`: everything that moves, and goes on as it was
//! - `refusals`: the relay goes on, and says why
//! - `faults`: either process ends at each step
//! - `predecessors`: what the new process does with a predecessor that is none, or that changes its mind
//! - `supervisor`: what systemd is told

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    missing_docs
)]

mod common;

#[path = "upgrade/faults.rs"]
mod faults;
#[path = "upgrade/moves.rs"]
mod moves;
#[path = "upgrade/predecessors.rs"]
mod predecessors;
#[path = "upgrade/puppet.rs"]
mod puppet;
#[path = "upgrade/refusals.rs"]
mod refusals;
#[path = "upgrade/service.rs"]
mod service;
#[path = "upgrade/supervisor.rs"]
mod supervisor;
