//! The wire, as pure functions and types: no I/O, no clock, no registry.
//!
//! - [`contract`]: what peers may count on, chapter by chapter (PROTOCOL.md)
//! - [`upgrade`]: request heads, from bytes to a checked upgrade or the HTTP answer, with the fault
//!   that the answer names
//! - [`close`]: every close code and reason, in one table
//! - [`frames`]: RFC 6455 frames: bytes to messages, messages to bytes
//! - [`json`]: strict, allocation-free validation of RFC 8259 text
//! - [`envelope`]: the routing envelope between the relay and a binary
//! - [`ids`]: server-ids and conn-ids
//! - [`forwarded`]: whom a proxy speaks for, by X-Forwarded-For
//! - [`opening`]: HTTP in the clear where TLS is to come
//! - [`preamble`]: what comes before HTTP or TLS, of these two
//! - [`proxy`]: PROXY protocol headers, version 2
//! - [`push`]: push services and push tokens

pub mod close;
pub mod envelope;
mod fault;
pub mod forwarded;
pub mod frames;
pub mod ids;
pub mod json;
pub mod opening;
pub mod preamble;
pub mod proxy;
pub mod push;
mod reply;
pub mod upgrade;

#[doc = include_str!("PROTOCOL.md")]
pub mod contract {}
