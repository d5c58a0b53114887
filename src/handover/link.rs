//! What lies between a socket and the core, as plain data.

use super::state::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use zeroize::Zeroize;

/// What lies between a socket and the core.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Link {
    /// What came of what must come first, until that is whole.
    pub preamble: Preamble,
    /// Its TLS, if it has any.
    pub tls: Option<Box<Tls>>,
    /// What was received and the core has not read.
    pub waiting: Waiting,
    /// Receives that are still throttled, since it used up its share of a turn.
    pub throttled_for: u8,
    /// It sends large messages.
    pub is_large: bool,
}

/// What came of what a connection begins with.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preamble {
    /// Of a PROXY header, until it is whole.
    pub proxy_header: Option<ProxyHeader>,
    /// Of what may be HTTP in the clear where TLS should be, until that is known.
    pub opening: Option<Bytes>,
}

/// What came of a PROXY header.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyHeader {
    /// Its fixed part and the addresses, as far as they have come.
    pub kept: Bytes,
    /// Bytes behind them that were passed over.
    pub skipped_bytes: u32,
}

/// Bytes that were received and that the core has not read.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// What TLS has made of those that came first.
    pub opened: Bytes,
    /// The others, as they came.
    pub received: Bytes,
    /// The stream has ended behind them.
    pub end: Option<End>,
}

/// The end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// It is the peer's doing, and not a failure.
    pub is_clean: bool,
}

/// The TLS of a socket.
#[derive(Debug, Serialize, Deserialize)]
pub struct Tls {
    /// How far its session has come.
    pub session: Session,
    /// What arrived of a record that is not whole.
    pub partial: Bytes,
    /// Encrypted, and not with the kernel yet.
    pub out: Bytes,
    /// What may still be said.
    pub output: Output,
    /// The peer has said that it will send nothing more.
    pub peer_closed: bool,
    /// The sending direction ends once everything is with the kernel.
    pub finishes: bool,
}

/// How far a session has come. One amid its handshake is not given out: that is rustls' own affair.
#[derive(Debug, Serialize, Deserialize)]
pub enum Session {
    /// Nothing has arrived.
    Expecting,
    /// The handshake is done.
    Open(Traffic),
    /// There is to be no handshake.
    Refused,
    /// The handshake has failed.
    Failed,
}

/// What may still be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Anything.
    Open,
    /// Nothing: the alert that ends the session (close_notify) is among the output.
    Closed,
    /// Nothing, on either side.
    Failed,
}

/// A session after its handshake.
#[derive(Debug, Serialize, Deserialize)]
pub struct Traffic {
    /// The cipher suite by its number in IANA's registry, which says the version too.
    pub suite: u16,
    /// Of what the peer sends.
    pub receiving: Keys,
    /// Of what it is sent.
    pub sending: Keys,
    /// What the two know of each other.
    pub state: TrafficState,
}

/// What keys of one direction are.
#[derive(Debug, Serialize, Deserialize)]
pub struct Keys {
    /// Of TLS 1.3: what this key and, after an update, the next are made of.
    pub secret: Secret,
    /// The key.
    pub key: Secret,
    /// What the nonces are made of.
    pub iv: Secret,
    /// How many records it has protected.
    pub sequence: u64,
}

/// What nobody else may know: it is not shown, and zeroed where it is dropped.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub Bytes);

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}

/// What the two directions of a session know of each other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficState {
    /// The peer has asked for an update of our keys, which it gets before the next data.
    pub owes_update: bool,
    /// The peer will send nothing more.
    pub peer_closed: bool,
    /// We will send nothing more.
    pub closed: bool,
    /// Empty records since the last data.
    pub empty: u8,
    /// Warnings of the peer.
    pub warnings: u8,
    /// Key updates of the peer since its last data.
    pub updates: u8,
    /// Renegotiations that were declined.
    pub renegotiations: u8,
    /// What came of a handshake message whose rest is in the next records.
    pub message: [u8; 5],
    /// How much of `message` has come.
    pub message_bytes: u8,
    /// Bytes to be skipped of a handshake message.
    pub skip: u16,
}
