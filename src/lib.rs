//! `pyrycode-relay`: routes WebSocket frames between a `pyry` daemon (the *binary*) and its
//! phones, by server-id, without ever looking inside a frame.
//!
//! The modules, in the order in which data meets them:
//!
//! - [`config`]: flags and the machine become a checked [`config::Config`], or a refusal
//! - [`telemetry`]: structured logs, the only keys that they may carry
//! - [`protocol`]: the wire as pure functions: upgrade, frames, envelope, ids, close codes, and what
//!   proxies put before them
//! - [`relay`]: what one worker knows and decides: registry, outboxes, deadlines; no I/O, no clock
//! - [`worker`]: the io_uring shell around it: one thread, ring, listener and event loop per core,
//!   and TLS
//! - [`control`]: the other plane: starts and stops the workers, hears the signals, keeps
//!   certificates, wakes phones, and tells how the relay is doing
//! - [`metrics`]: counters that workers write and everyone else reads
//! - [`words`]: errors of libraries, as an operator can read them
//!
//! Arrows point downward only: the binary, then the worker and control planes, then `relay`,
//! then `protocol`, `config`, `metrics`, `telemetry` and `words`.

pub mod config;
pub mod control;
pub mod metrics;
pub mod protocol;
pub mod relay;
pub mod telemetry;
pub mod words;
pub mod worker;
