//! PROTOCOL.md, chapter 6: limits, and who they are applied to.
//!
//! - `rates`: upgrade requests of an address
//! - `places`: live connections, and every way in which one ends
//! - `visitors`: sockets that are not upgraded, of everybody
//! - `callers`: X-Forwarded-For and PROXY headers
//! - `balancer`: HAProxy in front, where it is installed
//! - `https`: PROXY headers in front of TLS, and the order of all checks

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    missing_docs
)]

mod common;

#[path = "limits/balancer.rs"]
mod balancer;
#[path = "limits/callers.rs"]
mod callers;
#[path = "limits/https.rs"]
mod https;
#[path = "limits/places.rs"]
mod places;
#[path = "limits/rates.rs"]
mod rates;
#[path = "limits/visitors.rs"]
mod visitors;

use common::{Raw, Relay, Request, Response};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Another address of this machine.
fn there(number: u8) -> IpAddr {
    IpAddr::from([127, 0, 0, number])
}

/// A server-id that nobody has used.
fn new_id() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("id-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The answer to one request from `address`, and its connection.
async fn ask(relay: &Relay, address: IpAddr, request: Request) -> (Response, Raw) {
    let mut raw = Raw::connect_from(relay, address).await;
    raw.send(request).await;
    (raw.response().await, raw)
}

/// The status of the answer to one request from `address`; the connection ends with it.
async fn status(relay: &Relay, address: IpAddr, request: Request) -> u16 {
    ask(relay, address, request).await.0.status
}

/// `Retry-After` in seconds.
fn retry_after(response: &Response) -> u64 {
    response.header("Retry-After").expect("a Retry-After").parse().expect("whole seconds")
}

/// How many lines of this event there are.
fn count_logs(relay: &Relay, event: &str) -> usize {
    relay.logs().iter().filter(|line| line.event() == event).count()
}
