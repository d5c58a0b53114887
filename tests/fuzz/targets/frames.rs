//! Frames: any split gives the same messages, and they are what a plain reading of RFC 6455 gives.

#![no_main]

mod split;

use libfuzzer_sys::fuzz_target;
use pyrycode_relay::protocol::frames::{Decoder, Incoming, MAX_MESSAGE_BYTES};

#[derive(Debug, PartialEq)]
enum Message {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>),
}

impl Message {
    /// `None` for a fragment, which says nothing by itself.
    fn of(incoming: Incoming<'_>) -> Option<Self> {
        Some(match incoming {
            Incoming::Text(text) => Self::Text(text.into()),
            Incoming::Binary(bytes) => Self::Binary(bytes.into()),
            Incoming::Ping(bytes) => Self::Ping(bytes.into()),
            Incoming::Pong(bytes) => Self::Pong(bytes.into()),
            Incoming::Close(code) => Self::Close(code),
            Incoming::Fragment => return None,
        })
    }
}

/// A limit that small inputs reach.
const LOW_LIMIT: usize = 600;

fuzz_target!(|data: &[u8]| {
    check::<MAX_MESSAGE_BYTES>(data);
    check::<LOW_LIMIT>(data);
});

fn check<const LIMIT: usize>(data: &[u8]) {
    let (reads, stream) = split::split(data);
    let mut messages = Vec::new();
    let mut decoder = Decoder::<LIMIT>::with_limit();
    let mut came = 0;
    let mut error = None;
    for read in reads {
        came += read.len();
        error = feed(&mut decoder, read, &mut messages);
        if error.is_some() {
            break;
        }
        assert!(decoder.buffered_bytes() <= 4096.max(2 * came + 256));
    }
    let mut expected = Vec::new();
    let (expected_error, is_open) = match plain::read_all(stream, LIMIT, &mut expected) {
        Ok(is_open) => (None, is_open),
        Err(code) => (Some(code), false),
    };
    assert_eq!((messages, error), (expected, expected_error));
    if error.is_none() {
        assert_eq!(decoder.is_mid_message(), is_open);
        assert!(is_open || decoder.buffered_bytes() == 0);
    }
}

/// Feeds one read; the close code if it is refused.
fn feed<const LIMIT: usize>(
    decoder: &mut Decoder<LIMIT>,
    read: &[u8],
    messages: &mut Vec<Message>,
) -> Option<u16> {
    let mut read = read.to_vec();
    let mut input = &mut read[..];
    loop {
        match decoder.next(&mut input) {
            Ok(Some(incoming)) => messages.extend(Message::of(incoming)),
            Ok(None) => break,
            Err(error) => return Some(error.close().code),
        }
    }
    assert!(input.is_empty());
    // With nothing left to take, a decoder that handed out a message lets go of it.
    assert_eq!(decoder.next(&mut input), Ok(None));
    None
}

/// RFC 6455 read off the page: slow, and sharing nothing with the decoder.
mod plain {
    use super::Message;

    struct Header {
        is_final: bool,
        opcode: u8,
        mask: [u8; 4],
        header_bytes: usize,
        payload_bytes: usize,
    }

    /// Whether something is half read at the end, or the close code of the first fault.
    pub fn read_all(
        mut stream: &[u8],
        limit: usize,
        messages: &mut Vec<Message>,
    ) -> Result<bool, u16> {
        let mut open: Option<(u8, Vec<u8>)> = None;
        loop {
            let Some(header) = read_header(stream, limit)? else {
                return Ok(open.is_some() || !stream.is_empty());
            };
            let begun = open.as_ref().map_or(0, |(_, bytes)| bytes.len());
            match header.opcode {
                0 if open.is_none() => return Err(1002),
                1 | 2 if open.is_some() => return Err(1002),
                0..=2 if begun + header.payload_bytes > limit => return Err(1009),
                _ => {}
            }
            let rest = &stream[header.header_bytes..];
            let is_whole = rest.len() >= header.payload_bytes;
            let came = rest.len().min(header.payload_bytes);
            let payload: Vec<u8> =
                rest[..came].iter().zip(header.mask.iter().cycle()).map(|(b, m)| b ^ m).collect();
            stream = &rest[came..];
            if header.opcode >= 8 {
                if !is_whole {
                    return Ok(true);
                }
                messages.push(control(header.opcode, payload)?);
                continue;
            }
            let (opcode, bytes) = open.get_or_insert((header.opcode, Vec::new()));
            bytes.extend(payload);
            let is_complete = is_whole && header.is_final;
            if *opcode == 1 {
                match std::str::from_utf8(bytes) {
                    Err(fault) if is_complete || fault.error_len().is_some() => return Err(1007),
                    _ => {}
                }
            }
            if !is_whole {
                return Ok(true);
            }
            if is_complete && let Some((opcode, bytes)) = open.take() {
                messages.push(match opcode {
                    1 => Message::Text(String::from_utf8(bytes).map_err(|_| 1007_u16)?),
                    _ => Message::Binary(bytes),
                });
            }
        }
    }

    fn read_header(stream: &[u8], limit: usize) -> Result<Option<Header>, u16> {
        // A reserved opcode is seen at once, everything else once the header is complete.
        if stream.first().is_some_and(|first| matches!(first & 0x0f, 3..=7 | 11..=15)) {
            return Err(1002);
        }
        let [first, second, rest @ ..] = stream else { return Ok(None) };
        let is_final = first & 0x80 != 0;
        let opcode = first & 0x0f;
        let (length_bytes, length) = match second & 0x7f {
            126 => (2, rest.get(..2).map(|b| u64::from(u16::from_be_bytes([b[0], b[1]])))),
            127 => (8, rest.get(..8).map(|b| u64::from_be_bytes(b.try_into().unwrap()))),
            short => (0, Some(u64::from(short))),
        };
        let is_masked = second & 0x80 != 0;
        let mask_bytes = if is_masked { 4 } else { 0 };
        let (Some(length), true) = (length, rest.len() >= length_bytes + mask_bytes) else {
            return Ok(None);
        };
        let is_shortest = match length_bytes {
            0 => true,
            2 => length > 125,
            _ => length > 0xffff,
        };
        if !is_masked
            || first & 0x70 != 0
            || (opcode >= 8 && (!is_final || length > 125))
            || length >> 63 != 0
            || !is_shortest
        {
            return Err(1002);
        }
        if length > limit as u64 {
            return Err(1009);
        }
        let mask = rest[length_bytes..length_bytes + 4].try_into().unwrap();
        let header_bytes = 2 + length_bytes + 4;
        Ok(Some(Header { is_final, opcode, mask, header_bytes, payload_bytes: length as usize }))
    }

    fn control(opcode: u8, payload: Vec<u8>) -> Result<Message, u16> {
        Ok(match (opcode, &payload[..]) {
            (9, _) => Message::Ping(payload),
            (10, _) => Message::Pong(payload),
            (_, []) => Message::Close(None),
            (_, [_]) => return Err(1002),
            (_, [a, b, reason @ ..]) => {
                let code = u16::from_be_bytes([*a, *b]);
                match code {
                    1000..=1003 | 1007..=1014 | 3000..=4999 => {}
                    _ => return Err(1002),
                }
                std::str::from_utf8(reason).map_err(|_| 1007_u16)?;
                Message::Close(Some(code))
            }
        })
    }
}
