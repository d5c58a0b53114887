//! RFC 6455 frames over buffers that the caller owns (PROTOCOL.md, chapter 2).
//!
//! - [`decode`](Decoder): bytes of a client to messages, unmasked in place. A message that lies
//!   whole in the bytes read is lent out of them, not copied; a connection on which nothing is
//!   half read holds nothing on the heap.
//! - `header`: one client frame header, with every rule that needs no memory of earlier frames
//! - `message`: a message on its way in, its growth and its UTF-8
//! - `mask`: RFC 6455, section 5.3
//! - `encode`: server frames, appended to the caller's buffer
//!
//! tungstenite parses the headers and names the opcodes; its `WebSocketContext`, which would own a
//! stream and a buffer for each connection, is not used.

mod decode;
mod encode;
mod header;
mod mask;
mod message;
#[cfg(test)]
mod tests;

use std::fmt;

pub use self::decode::{Decoder, HalfRead, HalfReadFrame, HalfReadMessage, ends_in_close};
pub use self::encode::{
    MAX_HEADER_BYTES, frame_extent, header_len, push_close, push_close_code, push_close_with,
    push_ping, push_pong, push_text_header,
};
use super::close::Close;

/// The longest message taken in, reassembled, in bytes (PROTOCOL.md, chapter 2).
pub const MAX_MESSAGE_BYTES: usize = 262_144;

/// The longest payload of a control frame, in bytes (RFC 6455, section 5.5).
pub const MAX_CONTROL_BYTES: usize = 125;

/// One message, control frame or fragment of a message from a client.
///
/// Its [`Debug`](fmt::Debug) form tells the kind and the length only: payloads never get into a log.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// A ping, to be answered with a pong of the same payload (at most 125 bytes).
    Ping(&'a [u8]),
    /// A pong (at most 125 bytes).
    Pong(&'a [u8]),
    /// A close, with its code if it carried one. The code is one that may be on the wire, so it can
    /// be echoed as it is. Whatever follows a close is to be ignored (RFC 6455, section 5.5.1).
    Close(Option<u16>),
    /// A frame that is not the last of its message: a sign of life, and work of its own, since a
    /// message may have any number of them. What it carried comes with the message.
    Fragment,
}

impl Incoming<'_> {
    /// How long the message is, if it is one of data.
    #[must_use]
    #[inline]
    pub fn data_bytes(&self) -> Option<usize> {
        match self {
            Self::Text(text) => Some(text.len()),
            Self::Binary(bytes) => Some(bytes.len()),
            Self::Ping(_) | Self::Pong(_) | Self::Close(_) | Self::Fragment => None,
        }
    }
}

impl fmt::Debug for Incoming<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
            Self::Ping(bytes) => write!(f, "Ping({} bytes)", bytes.len()),
            Self::Pong(bytes) => write!(f, "Pong({} bytes)", bytes.len()),
            Self::Close(code) => write!(f, "Close({code:?})"),
            Self::Fragment => f.write_str("Fragment"),
        }
    }
}

/// Why a client's bytes are no WebSocket messages that the relay takes. Always the peer's fault:
/// the connection fails with [`FrameError::close`], and the peer's software has to be mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// A rule of RFC 6455 was broken; the text says which one.
    Protocol(&'static str),
    /// A text message, or the reason of a close, is not UTF-8 (RFC 6455, section 8.1).
    InvalidUtf8,
    /// A message is over the limit, [`MAX_MESSAGE_BYTES`] for the relay.
    TooBig,
}

impl FrameError {
    /// What the peer is told: 1002, 1007 or 1009.
    #[must_use]
    pub const fn close(self) -> Close {
        match self {
            Self::Protocol(_) => Close::PROTOCOL_ERROR,
            Self::InvalidUtf8 => Close::INVALID_UTF8,
            Self::TooBig => Close::TOO_BIG,
        }
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(rule) => write!(f, "peer violated RFC 6455: {rule}"),
            Self::InvalidUtf8 => f.write_str("peer sent text that is not UTF-8"),
            Self::TooBig => {
                write!(f, "peer sent a message over the limit of {MAX_MESSAGE_BYTES} bytes")
            }
        }
    }
}

impl std::error::Error for FrameError {}
