//! Bytes of simulated peers: request heads and masked frames out, answers and server frames in.
//! Written from RFC 6455 and PROTOCOL.md; nothing of the relay's own code is used.

use crate::rng::Rng;
use std::rc::Rc;

pub type Payload = Rc<[u8]>;

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// RFC 6455, section 1.3: this key and this answer.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// What a message means, to a reader of PROTOCOL.md, chapter 4.
#[derive(Debug, Clone)]
pub enum Msg {
    /// A phone's JSON value, trimmed.
    Json(Payload),
    /// A phone's message that is no JSON.
    NotJson,
    /// A binary's frame for a phone, with a close code or 0.
    Frame { to: Rc<str>, frame: Payload, code: u16 },
    /// A binary's close directive.
    Close { to: Rc<str>, code: u16 },
    /// A binary's message that has no effect.
    Nothing,
}

/// What a peer's bytes come to when the last of them is there.
#[derive(Debug, Clone)]
pub enum Item {
    Health {
        head_only: bool,
    },
    /// A whole request that is refused with this status.
    Refused(u16),
    Upgrade,
    /// A frame that is not the last of its message, with this many bytes of payload.
    Fragment(usize),
    /// The last frame of a message of this many bytes.
    Data(Msg, usize),
    Ping(Payload),
    Pong(Payload),
    Close(Option<u16>),
    /// A breach of RFC 6455, due this code. Its bytes are always delivered in one piece.
    Breach(u16),
}

pub fn upgrade_head(binary: bool, id: &str) -> Vec<u8> {
    let path = if binary { "/v1/server" } else { "/v1/client" };
    let own = if binary { "X-Pyrycode-Version: 1" } else { "X-Pyrycode-Token: secret" };
    format!(
        "GET {path} HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\nX-Pyrycode-Server: {id}\r\n\
         {own}\r\nUser-Agent: sim\r\n\r\n"
    )
    .into_bytes()
}

/// A masked client frame.
pub fn frame(rng: &mut Rng, opcode: u8, is_final: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + 14);
    frame.push(if is_final { 0x80 | opcode } else { opcode });
    match payload.len() {
        length @ 0..=125 => frame.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    if payload.len() > 1000 {
        // A mask of zeros is one like any other, and quick.
        frame.extend([0; 4]);
        frame.extend_from_slice(payload);
        return frame;
    }
    let mask = (rng.next() as u32).to_be_bytes();
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A server frame: opcode and payload, and what follows it. `None` if it is not all there.
///
/// # Errors
/// It is no frame that a relay may send: unfragmented, unmasked, in its shortest form.
pub fn take_frame(bytes: &[u8]) -> Result<Option<(u8, usize, usize)>, String> {
    let (&[first, second], rest) = match bytes.split_first_chunk::<2>() {
        Some(split) => split,
        None => return Ok(None),
    };
    if first & 0xf0 != 0x80 || second & 0x80 != 0 {
        return Err(format!("a server frame begins with {first:02x} {second:02x}"));
    }
    let (header, length) = match second {
        126 => match rest.first_chunk::<2>() {
            Some(length) => (4, u64::from(u16::from_be_bytes(*length))),
            None => return Ok(None),
        },
        127 => match rest.first_chunk::<8>() {
            Some(length) => (10, u64::from_be_bytes(*length)),
            None => return Ok(None),
        },
        length => (2, u64::from(length)),
    };
    let shortest = match length {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    };
    if header != shortest || length > 400_000 {
        return Err(format!("a server frame of {length} bytes with a header of {header}"));
    }
    let length = length as usize;
    Ok((bytes.len() >= header + length).then_some((first & 0x0f, header, length)))
}

/// The end of an HTTP head, status and `Content-Length`. `None` if it is not all there.
pub fn take_head(bytes: &[u8]) -> Option<(usize, u16, usize)> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let length = head
        .split("\r\n")
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .map_or(0, |value| value.parse().unwrap());
    Some((end, status, length))
}
