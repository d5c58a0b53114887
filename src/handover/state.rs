//! All that a relay knows of its connections and server-ids, as plain data that another process can
//! go on with.
//!
//! A worker gives out a [`Worker`] while the kernel has no operation on any of its sockets, and a
//! worker of the successor takes one in. Sockets travel beside it, in the order of the connections,
//! and whatever names a connection does so by its place in this order.
//!
//! Times are relative: how long something has lasted, or how long until it is due, in milliseconds, so
//! that the two processes need no common clock. What follows from the rest is not here, but made anew:
//! timers, lists of backlogs, counts, charges.
//!
//! # Another version
//!
//! The encoding (postcard) tells no field from another: whatever is changed here changes the version.
//! The structs of the version before are then kept beside these, in a module `v1` for version 1, with
//! a `From<v1::Worker> for Worker` that says what the new fields are where the old process did not know
//! of them. The version before that is dropped. A sample of each, as bytes, stands in the tests.

pub use super::link::Link;
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The version of everything here. A relay reads the state of its own version and of the one before it.
pub const VERSION: u32 = 1;

/// What a process has given out cannot be: a fault of the relay, or of what lies between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inconsistent(pub &'static str);

impl fmt::Display for Inconsistent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the state that the running relay gave out contradicts itself: {}", self.0)
    }
}

impl std::error::Error for Inconsistent {}

/// One worker's share.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Worker {
    /// Its connections.
    pub connections: Vec<Connection>,
    /// Those that are not upgraded, longest waiting first.
    pub visitors: Vec<Visitor>,
    /// Server-ids that are held or in grace.
    pub server_ids: Vec<ServerId>,
}

impl Worker {
    /// As bytes.
    ///
    /// # Errors
    ///
    /// None that could be met: it is data all through.
    pub fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_allocvec(self)
    }

    /// From the bytes of [`Worker::encode`].
    ///
    /// # Errors
    ///
    /// They are no worker of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, postcard::Error> {
        match postcard::take_from_bytes(bytes)? {
            (worker, []) => Ok(worker),
            _ => Err(postcard::Error::DeserializeBadEncoding),
        }
    }
}

/// Bytes of a peer or for one: never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

// At once, not byte by byte.
impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfBytes;
        impl de::Visitor<'_> for OfBytes {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(OfBytes)
    }
}

/// A connection.
#[derive(Debug, Serialize, Deserialize)]
pub struct Connection {
    /// Its slot in the table of the worker that gave it out.
    pub slot: u32,
    /// Who the peer is.
    pub remote: SocketAddr,
    /// The scope of its address, if that is a link-local one of IPv6.
    pub scope_id: u32,
    /// What it counts as, if it is counted.
    pub counts_as: Option<Standing>,
    /// How old it is, in seconds.
    pub age_s: u32,
    /// Messages that it has sent and got.
    pub traffic: Traffic,
    /// How far it has come.
    pub stage: Stage,
    /// What is half read of a message.
    pub half_read: Option<HalfRead>,
    /// What is to be written to it.
    pub outbox: Outbox,
    /// What time will bring.
    pub due: Due,
    /// Pings sent and answered.
    pub heartbeat: Heartbeat,
    /// The peer has ended its direction.
    pub ended: bool,
    /// Reading has stopped, until a backlog drains.
    pub paused: bool,
    /// Memory that what lies in its link takes, as it was charged.
    pub link_bytes: u32,
    /// What lies between its socket and the core.
    pub link: Link,
}

/// What a connection counts as in admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// A proxy's, and for whom is not known yet.
    Unknown,
    /// One of this address, not upgraded.
    Visitor(IpAddr),
    /// One of this address, upgraded or about to be.
    Live(IpAddr),
}

/// Messages of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Messages that it has sent.
    pub messages_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Messages that were queued for it.
    pub messages_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
}

/// How far a connection has come. One that is open has its server-id from that one's entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// A request head is expected, of which this has come; or several are, that wait for their turn.
    Head(Bytes),
    /// On its way to the worker that owns its server-id.
    HandingOver(Box<Request>),
    /// A binary that claims a held id, while the holder is probed.
    Newcomer {
        /// Its name.
        conn_id: [u8; 16],
        /// Messages that it has sent ahead.
        ahead: Vec<Bytes>,
    },
    /// A binary that holds an id.
    Binary {
        /// Its name.
        conn_id: [u8; 16],
    },
    /// A phone that is registered.
    Phone {
        /// Its name.
        conn_id: [u8; 16],
        /// Bytes that it has sent since its binary's outbox was full.
        congested_bytes: u32,
    },
    /// Its last bytes are queued or sent.
    Closing(Closing),
}

/// A checked request that is not answered yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The id that the peer claims or asks for.
    pub server_id: String,
    /// `Sec-WebSocket-Accept` of the answer.
    pub accept_key: [u8; 28],
    /// Who asks.
    pub role: Role,
    /// Bytes that followed it.
    pub unread: Bytes,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A binary of this version.
    Binary(String),
    /// A phone, with its device's name.
    Phone(Option<String>),
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closing {
    /// The code of the close frame that follows what is still queued.
    pub then: Option<u16>,
    /// What the peer may still have to say.
    pub hearing: Hearing,
    /// The sending direction has ended.
    pub finished: bool,
    /// Bytes that the kernel held when it was last asked.
    pub unsent: u64,
    /// How long ago they last became fewer.
    pub progress_ms: u64,
    /// The peer's time is over, unless the bytes have become fewer.
    pub overdue: bool,
}

/// What a closing connection's peer may still have to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hearing {
    /// The answer to our close frame, among other frames.
    Frames,
    /// The answer, though it can no longer be understood.
    Noise,
    /// Nothing.
    Nothing,
}

/// What has come of a message, a control frame, or both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HalfRead {
    /// The bytes of a header that is not all there.
    pub header: Bytes,
    /// The frame whose payload is not all there.
    pub frame: Option<HalfReadFrame>,
    /// The message so far.
    pub message: Option<HalfReadMessage>,
}

/// A frame whose payload is not all there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HalfReadFrame {
    /// The first byte of its header.
    pub first: u8,
    /// The masking key.
    pub mask: [u8; 4],
    /// The length of its payload.
    pub payload_bytes: u32,
    /// How much of that has come.
    pub came_bytes: u32,
    /// What has come, unmasked, if it is a control frame.
    pub control: Bytes,
}

/// A message that is not all there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HalfReadMessage {
    /// It is a text.
    pub is_text: bool,
    /// What has come, unmasked.
    pub bytes: Bytes,
}

/// What is to be written to a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outbox {
    /// Bytes in their order, each piece for one write. Whole frames, but for what is at the front.
    pub chunks: Vec<Bytes>,
    /// Pings and pongs that go at the next boundary of frames.
    pub control: Bytes,
    /// So many bytes at the front are HTTP.
    pub http_bytes: u32,
    /// The frame at the front that is half sent.
    pub begun: Option<BegunFrame>,
    /// The last write was of pings and pongs: what they have overtaken goes next.
    pub overtook: bool,
}

/// A frame that is half sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BegunFrame {
    /// The bytes of it that remain.
    pub left_bytes: u32,
    /// The length of its payload.
    pub payload_bytes: u32,
    /// It is a ping.
    pub is_ping: bool,
}

/// In how many milliseconds something must have happened, where it is awaited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Due {
    /// The request head is complete, or TCP has closed.
    pub stage: Option<u64>,
    /// The next ping is sent.
    pub ping: Option<u64>,
    /// The last ping is answered.
    pub pong: Option<u64>,
    /// The message under way is complete.
    pub message: Option<u64>,
    /// What is queued has made progress.
    pub write: Option<u64>,
}

/// Pings sent and answered, by their numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The last that was sent; 0 for none.
    pub sent: u32,
    /// The last that was answered.
    pub answered: u32,
    /// How long ago the last was sent, in milliseconds.
    pub pinged_ms: u32,
    /// How long the last answer took.
    pub round_trip_ms: Option<u16>,
}

/// A connection that is not upgraded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visitor {
    /// Its place among the connections.
    pub connection: u32,
    /// For whom it is counted.
    pub address: IpAddr,
}

/// A server-id that is held or in grace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerId {
    /// The id.
    pub id: String,
    /// Who holds it.
    pub tenure: Tenure,
    /// Its phones, in the order of their seats.
    pub phones: Vec<u32>,
    /// What its binary may still ask for.
    pub wakes: Wakes,
    /// What its binary has done wrong, by kind.
    pub faults: [Repeats; 3],
}

/// Who holds a server-id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tenure {
    /// This connection.
    Held(u32),
    /// Nobody, for so many milliseconds more.
    Grace(u64),
    /// This connection, which has to prove that it lives.
    Probed {
        /// The holder.
        holder: u32,
        /// Connections that claim the id, longest waiting first.
        newcomers: Vec<u32>,
        /// The time that is left for it, in milliseconds.
        left_ms: u64,
    },
}

/// What a binary may still ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wakes {
    /// When it may ask for all of it again, in milliseconds.
    pub full_in_ms: u64,
    /// It was refused since it was last granted one.
    pub refused: bool,
}

/// How often something has happened that is logged within bounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeats {
    /// When all of its lines may be written again, in milliseconds.
    pub whole_in_ms: u64,
    /// How many were left out and not told.
    pub omitted: u64,
    /// For how long, in milliseconds.
    pub since_ms: u64,
}
