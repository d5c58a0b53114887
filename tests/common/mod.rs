//! What the black-box tests share: the real relay as a child process, ordinary WebSocket peers,
//! and raw sockets for the shapes that no ordinary client can take.
//!
//! - [`Relay`] and [`Process`]: the relay's binary, its log lines, its end
//! - [`Peer`] (made by [`Binary`] and [`Phone`]): an ordinary client, not the relay's own codec
//! - [`Raw`]: bytes, HTTP answers and hand-made frames; it answers nothing by itself
//! - [`certs`]: an authority of their own, and TLS clients that trust it; `RELAY_OVER_TLS=1` has all
//!   peers of a plain relay reach it over TLS
//! - [`Relay::start_tls`] and [`Door`]: relays of HTTPS, whose peers shape their own TLS
//! - [`scene`]: a relay under attack, watched
//! - [`deny`] and its like: what the kernel denies a child
//!
//! Every wait has a deadline and ends at an event; [`SOON`] is the deadline of all that must come.

// Each test file is a crate of its own and uses its own part of this.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

pub mod certs;
mod frame;
mod http;
mod log;
mod over_tls;
mod peer;
mod process;
mod raw;
mod sandbox;
pub mod scene;
mod stream;
mod tls;

use std::time::{Duration, Instant};

pub use frame::{
    BINARY, CLOSE, CONTINUATION, Frame, Hostile, PING, PONG, TEXT, close_frame, masked,
};
pub use http::{ACCEPT, KEY, Request, Response};
pub use log::LogLine;
pub use peer::{
    Binary, Event, Peer, Phone, close_directive, close_notice, envelope, open_envelope,
};
pub use process::{Exit, Health, Process, Relay, Signal, command, run};
pub use raw::{End, Raw};
pub use sandbox::{
    close_standard_streams, deny, limit_descriptors, limit_locked_memory, own_address,
};
pub use stream::Stream;
pub use tls::{DOMAIN, Door, Tls, record, records};

/// How long a test waits for something that must come.
pub const SOON: Duration = Duration::from_secs(10);

/// Whether so much time is over since `begun`, by the relay's clock: that counts whole milliseconds, two
/// processes of an upgrade one after the other.
pub fn is_over(begun: Instant, time: Duration) -> bool {
    begun.elapsed() + Duration::from_millis(3) >= time
}

/// The result of `future`, which must come by [`SOON`].
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, future).await {
        Ok(result) => result,
        Err(_) => panic!("{what}: nothing within {SOON:?}"),
    }
}

/// Asks `condition` again and again until it holds, at most until `deadline` has passed.
pub async fn wait_until(what: &str, deadline: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !condition().await {
        assert!(Instant::now() < end, "{what}: not within {deadline:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
