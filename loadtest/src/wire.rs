//! Where connections go, what is spoken on them, and how they are begun and named.

use crate::tls::Trust;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};

/// The answer of the floor to a hello.
pub(crate) const FLOOR_OKAY: &[u8; 4] = b"OKAY";
/// The first bytes of a hello to the floor.
pub(crate) const FLOOR_MAGIC: &[u8; 4] = b"PIPE";
/// The length of a hello to the floor: magic, role, group, phone and record length.
pub(crate) const FLOOR_HELLO: usize = 20;

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Wire {
    /// The relay's protocol.
    WebSocket,
    /// Records of this many bytes behind a hello, to the `floor`.
    Floor { record: usize },
}

/// Where the connections go.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// The value of the Host header.
    pub(crate) host: String,
    /// What stands before `/v1/server` in the URL's path.
    pub(crate) prefix: String,
    pub(crate) wire: Wire,
    /// Whom to trust, if all of it goes over TLS.
    pub(crate) tls: Option<Trust>,
}

/// Names a connection; stale once it has ended, also when its place is taken again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handle {
    pub(crate) key: u32,
    pub(crate) serial: u32,
}

impl Handle {
    /// What epoll gives back with an event of this connection.
    pub(crate) fn token(self) -> u64 {
        u64::from(self.serial) << 32 | u64::from(self.key)
    }

    /// The handle of such a token.
    pub(crate) fn of_token(token: u64) -> Self {
        Self { key: (token & u64::from(u32::MAX)) as u32, serial: (token >> 32) as u32 }
    }
}

/// What the load calls a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Tag {
    Binary(u32),
    Phone(u32),
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Binary(number) => write!(f, "binary {number}"),
            Self::Phone(number) => write!(f, "phone {number}"),
        }
    }
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// A close frame of the relay.
    Close { code: Option<u16>, reason: String },
    /// It never opened: the HTTP status line, or the error of connect.
    Refused(String),
    /// It never opened: it ended over TLS, before the relay had answered the upgrade request.
    Unanswered(String),
    /// TCP ended with no close frame.
    Cut(String),
    /// The relay broke the protocol.
    Violation(String),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Close { code: Some(code), reason } => write!(f, "closed with {code} `{reason}`"),
            Self::Close { code: None, .. } => write!(f, "closed without a code"),
            Self::Refused(why) | Self::Unanswered(why) => write!(f, "not upgraded: {why}"),
            Self::Cut(why) => write!(f, "cut without a close frame: {why}"),
            Self::Violation(what) => write!(f, "sent {what}, against the protocol"),
        }
    }
}

/// Begins a connection that does not block, from `source` if there is one.
pub(crate) fn connect(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    match socket.connect(&address.into()) {
        Ok(()) => Ok(socket.into()),
        Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {
            Ok(socket.into())
        }
        Err(error) => Err(error),
    }
}

/// The first bytes on a connection to the floor, which tell it what to join.
pub(crate) fn floor_hello(group: u32, phone: Option<u32>, record: usize) -> Vec<u8> {
    let mut hello = FLOOR_MAGIC.to_vec();
    let fields = [
        u32::from(phone.is_some()),
        group,
        phone.unwrap_or_default(),
        u32::try_from(record).unwrap_or(u32::MAX),
    ];
    hello.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
    debug_assert_eq!(hello.len(), FLOOR_HELLO);
    hello
}
