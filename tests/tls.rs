//! PROTOCOL.md, chapter 7, "TLS", on the data plane: real handshakes, records and ends, each of
//! them shaped by the peer.
//!
//! - `handshake`: what is spoken, to whom, and for how long
//! - `interop`: the TLS of others
//! - `records`: bytes in any split, and the way to another worker
//! - `ends`: the alert with which every orderly end begins
//! - `memory`: backlogs, and what is held of records

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    missing_docs
)]

mod common;

#[path = "tls/ends.rs"]
mod ends;
#[path = "tls/handshake.rs"]
mod handshake;
#[path = "tls/interop.rs"]
mod interop;
#[path = "tls/memory.rs"]
mod memory;
#[path = "tls/records.rs"]
mod records;

use common::{CLOSE, Door, End, Raw, Relay, TEXT, close_frame, masked, open_envelope};
use rustls::version::{TLS12, TLS13};

/// The relay's door for each version of TLS.
fn doors(relay: &Relay) -> [Door; 2] {
    [relay.door().speaking(&TLS12, &[]), relay.door().speaking(&TLS13, &[])]
}

/// A JSON string of exactly `length` bytes.
fn json_of(length: usize) -> String {
    format!("\"{}\"", "j".repeat(length - 2))
}

async fn meet(binary: &mut Raw, phone: &mut Raw) -> String {
    phone.send(masked(TEXT, "\"hello\"")).await;
    open_envelope(&binary.recv_text().await).0
}

/// Closes orderly, whatever still comes.
async fn leave(mut peer: Raw) {
    peer.send(close_frame(1000, "")).await;
    while peer.frame_after_pings().await.expect("the echo").opcode != CLOSE {}
    assert_eq!(peer.assert_ended().await, End::Fin);
}
