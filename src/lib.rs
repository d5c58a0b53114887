//! `pyrycode-relay`: routes WebSocket frames between a `pyry` daemon (the *binary*) and its
//! phones, by server-id, without ever looking inside a frame.
//!
//! [`design`] says why it is built like this, [`protocol::contract`] what peers may count on,
//! [`threats`] what is defended, and by which test.
//!
//! The modules, in the order in which data meets them:
//!
//! - [`config`]: flags, variables, a file and the machine become a checked [`config::Config`], or a
//!   refusal
//! - [`telemetry`]: structured logs, the only keys that they may carry, and which lines are written
//! - [`protocol`]: the wire as pure functions: upgrade, frames, envelope, ids, close codes, and what
//!   proxies put before them
//! - [`relay`]: what one worker knows and decides: registry, outboxes, memory, deadlines; no I/O, no
//!   clock
//! - [`handover`]: all that a worker knows, as plain data for another process
//! - [`shared`]: the little that workers share: who may connect, and the memory budget
//! - [`worker`]: the io_uring shell around it: one thread, ring, listener and event loop per core,
//!   and TLS
//! - [`control`]: the other plane: starts and stops the workers, hears the signals, keeps
//!   certificates, wakes phones, and tells how the relay is doing
//! - [`handover`]: what a process gives to its successor, so that no connection ends
//! - [`metrics`]: counters that workers write and everyone else reads
//! - [`words`]: errors of libraries, as an operator can read them
//!
//! Arrows point downward only: `main`, then [`control`], which starts the workers, then [`worker`],
//! then [`relay`], then [`shared`], then [`protocol`]; and `config`, `handover`, `metrics`, `telemetry`,
//! `clock` and `words` are the ground that all of them stand on.

pub mod clock;
pub mod config;
pub mod control;
pub mod handover;
pub mod metrics;
pub mod protocol;
pub mod relay;
pub mod shared;
pub mod telemetry;
pub mod words;
pub mod worker;

#[doc = include_str!("DESIGN.md")]
pub mod design {}

#[doc = include_str!("THREATS.md")]
pub mod threats {}
