//! Restarting without dropping a connection: what a process, the predecessor, gives to the one that it
//! has started, its successor.
//!
//! - [`state`]: all that the relay knows of connections and server-ids, as plain data
//! - [`link`]: what lies between a socket and the core, as plain data
//! - [`distribute()`]: who gets what, where the successor may have another number of workers
//! - [`process`]: what it knows beside that: counters, buckets, blocked networks
//! - [`messages`]: what the two processes say to one another, and in which order
//! - [`channel`]: how that is carried, with descriptors
//!
//! # Who may touch the sockets
//!
//! Bytes are read and written by exactly one of the two processes at each moment, whoever dies when:
//!
//! ```text
//! predecessor                                 successor
//!   Greeting, Offer (its listeners)  ──────▶
//!                                              reads its configuration, makes its rings
//!                                    ◀──────  Ready
//!   stops accepting, then reading
//!   State (everything, and sockets)  ──────▶
//!                                              takes it in, and touches no socket
//!                                    ◀──────  Prepared
//!   Commit                           ──────▶
//!                                    ◀──────  Taken
//!                                              reads, writes and accepts from here on
//!                                    ◀──────  Serving
//!   tells the operator and systemd, ends
//! ```
//!
//! Until it has read `Taken`, the predecessor can go on as if nothing had happened, and does so where the
//! successor refuses, takes too long (then it is killed first) or has ended. The successor goes on
//! alone when it is told to commit, and also where it is `Prepared` and the predecessor has ended:
//! then nobody else holds the sockets. A predecessor that lives and goes on itself says `Abort`. A
//! successor that is asked to stop before it has taken over refuses.
//!
//! A successor that ends behind `Taken` is a crash like any other: nobody has the sockets any more. The
//! predecessor ends with an error then, so that whoever supervises it starts it again.

mod distribute;

pub mod channel;
pub mod link;
pub mod messages;
pub mod process;
pub mod state;

pub(crate) use distribute::{NOT_THERE, TWICE};
pub use distribute::{Share, distribute};
