//! Server frames: final, never masked, appended to a buffer of the caller's.

use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::MAX_CONTROL_BYTES;
use crate::protocol::close::{Close, MAX_REASON_BYTES};

/// The longest header of a server frame, in bytes: two and a 64-bit length.
pub const MAX_HEADER_BYTES: usize = 10;

const FIN: u8 = 0x80;

/// The length of the header that a payload needs, in bytes.
#[must_use]
pub const fn header_len(payload_bytes: usize) -> usize {
    match payload_bytes {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => MAX_HEADER_BYTES,
    }
}

/// Appends the header of a text message whose payload, of `payload_bytes`, the caller appends next.
#[inline]
pub fn push_text_header(out: &mut Vec<u8>, payload_bytes: usize) {
    let first = FIN | u8::from(OpCode::Data(Data::Text));
    // RFC 6455, section 5.2: the shortest form of the length must be used.
    if payload_bytes <= 125 {
        out.extend_from_slice(&[first, payload_bytes as u8]);
    } else if let Ok(length) = u16::try_from(payload_bytes) {
        let [a, b] = length.to_be_bytes();
        out.extend_from_slice(&[first, 126, a, b]);
    } else {
        let [a, b, c, d, e, f, g, h] = (payload_bytes as u64).to_be_bytes();
        out.extend_from_slice(&[first, 127, a, b, c, d, e, f, g, h]);
    }
}

/// Appends a ping. `payload` is at most [`MAX_CONTROL_BYTES`]; more would be cut off.
pub fn push_ping(out: &mut Vec<u8>, payload: &[u8]) {
    push_control(out, Control::Ping, payload);
}

/// Appends a pong. `payload` is at most [`MAX_CONTROL_BYTES`], as that of every ping that
/// [`Decoder::next`](super::Decoder::next) lets through; more would be cut off.
pub fn push_pong(out: &mut Vec<u8>, payload: &[u8]) {
    push_control(out, Control::Pong, payload);
}

/// Appends a close with its code and reason.
pub fn push_close(out: &mut Vec<u8>, close: Close) {
    push_close_with(out, close.code, close.reason);
}

/// As [`push_close`], with a reason of at most [`MAX_REASON_BYTES`], of which the rest is cut off.
pub fn push_close_with(out: &mut Vec<u8>, code: u16, reason: &str) {
    let mut payload = [0; MAX_CONTROL_BYTES];
    let reason = reason.get(..reason.floor_char_boundary(MAX_REASON_BYTES)).unwrap_or_default();
    let reason = reason.as_bytes();
    let bytes = code.to_be_bytes().into_iter().chain(reason.iter().copied());
    for (slot, byte) in payload.iter_mut().zip(bytes) {
        *slot = byte;
    }
    let payload = payload.get(..2 + reason.len()).unwrap_or(&payload);
    push_control(out, Control::Close, payload);
}

/// Appends the echo of a peer's close: its code, or no payload if it carried none.
pub fn push_close_code(out: &mut Vec<u8>, code: Option<u16>) {
    match code {
        Some(code) => push_control(out, Control::Close, &code.to_be_bytes()),
        None => push_control(out, Control::Close, &[]),
    }
}

fn push_control(out: &mut Vec<u8>, control: Control, payload: &[u8]) {
    debug_assert!(payload.len() <= MAX_CONTROL_BYTES);
    let payload = payload.get(..MAX_CONTROL_BYTES).unwrap_or(payload);
    out.extend_from_slice(&[FIN | u8::from(OpCode::Control(control)), payload.len() as u8]);
    out.extend_from_slice(payload);
}

/// The lengths, in bytes, of the header and the payload of the frame at the start of `bytes`, which
/// the functions above wrote. `None` if the header is not all there.
#[must_use]
#[inline]
pub fn frame_extent(bytes: &[u8]) -> Option<(usize, usize)> {
    match *bytes {
        [_, length @ 0..=125, ..] => Some((2, usize::from(length))),
        [_, 126, a, b, ..] => Some((4, usize::from(u16::from_be_bytes([a, b])))),
        [_, 127, a, b, c, d, e, f, g, h, ..] => {
            Some((10, u64::from_be_bytes([a, b, c, d, e, f, g, h]) as usize))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use tungstenite::protocol::frame::FrameHeader;

    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = b"before".to_vec();
        write(&mut out);
        out.split_off(6)
    }

    #[test]
    fn text_headers_take_the_shortest_form() {
        for (payload_bytes, header_bytes) in
            [(0, 2), (1, 2), (125, 2), (126, 4), (127, 4), (65_535, 4), (65_536, 10), (1 << 40, 10)]
        {
            let header = written(|out| push_text_header(out, payload_bytes));
            assert_eq!(header.len(), header_bytes);
            assert!(header.len() <= MAX_HEADER_BYTES);
            let (parsed, length) =
                FrameHeader::parse(&mut Cursor::new(&header)).unwrap().expect("a whole header");
            assert_eq!(length, payload_bytes as u64);
            let expected =
                FrameHeader { opcode: OpCode::Data(Data::Text), ..FrameHeader::default() };
            assert_eq!(parsed, expected);
        }
    }

    #[test]
    fn control_frames_are_as_the_rfc_writes_them() {
        assert_eq!(written(|out| push_ping(out, b"Hello")), b"\x89\x05Hello");
        assert_eq!(written(|out| push_pong(out, b"Hello")), b"\x8a\x05Hello");
        assert_eq!(written(|out| push_pong(out, b"")), b"\x8a\x00");
        assert_eq!(written(|out| push_close(out, Close::NORMAL)), b"\x88\x02\x03\xe8");
        let shutting_down = written(|out| push_close(out, Close::SHUTTING_DOWN));
        assert_eq!(shutting_down, b"\x88\x0f\x03\xe9shutting down");
        assert_eq!(written(|out| push_close_code(out, Some(4999))), b"\x88\x02\x13\x87");
        assert_eq!(written(|out| push_close_code(out, None)), b"\x88\x00");
        let longest = written(|out| push_ping(out, &[7; MAX_CONTROL_BYTES]));
        assert_eq!((longest.len(), longest[1]), (127, 125));
    }

    #[test]
    fn the_longest_reason_fits() {
        let reason = "r".repeat(123).leak();
        let frame = written(|out| push_close(out, Close { code: 1000, reason }));
        assert_eq!((frame.len(), frame[1]), (127, 125));
        assert!(frame.ends_with(reason.as_bytes()));
    }

    #[test]
    fn sent_bytes_can_be_walked_frame_by_frame() {
        let mut out = Vec::new();
        let mut expected = Vec::new();
        for payload_bytes in [0, 1, 125, 126, 127, 65_535, 65_536, 300_000] {
            let start = out.len();
            push_text_header(&mut out, payload_bytes);
            expected.push((out.len() - start, payload_bytes));
            out.resize(out.len() + payload_bytes, b'x');
        }
        push_close(&mut out, Close::HEARTBEAT_TIMEOUT);
        expected.push((2, 19));
        let mut rest = &out[..];
        for (header_bytes, payload_bytes) in expected {
            for cut in 0..header_bytes {
                assert_eq!(frame_extent(&rest[..cut]), None);
            }
            assert_eq!(frame_extent(rest), Some((header_bytes, payload_bytes)));
            rest = &rest[header_bytes + payload_bytes..];
        }
        assert_eq!(rest, b"");
        assert_eq!(frame_extent(rest), None);
    }
}
