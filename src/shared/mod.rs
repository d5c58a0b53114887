//! What all workers share beside their mailboxes: locks and atomics, each with its reason. The rest
//! of a worker is its own, and needs neither.
//!
//! - [`admission`]: who may connect, and how often (PROTOCOL.md, chapter 6). A mutex, which is taken
//!   when a connection comes, asks for an upgrade or ends, and never for a frame.
//! - [`budget`]: the memory budget (chapter 5). Atomics, which are touched once for each leased chunk.

pub mod admission;
pub mod budget;
