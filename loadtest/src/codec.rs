//! The client's half of RFC 6455, as much of it as the generator needs, and the relay's envelope.
//!
//! Small and in place: the generator shares a machine with what it measures.

use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// Opcodes (RFC 6455, section 5.2).
pub(crate) const TEXT: u8 = 1;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// The key of every handshake, and the answer that proves it was read (RFC 6455, section 1.3).
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A frame of the relay.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received<'a> {
    Text(&'a [u8]),
    Ping(&'a [u8]),
    Pong,
    Close { code: Option<u16>, reason: &'a [u8] },
}

/// Takes the first frame off `bytes`: the frame and its length, or `None` until more bytes are there.
/// An error names the rule that the relay broke.
pub(crate) fn decode(bytes: &[u8]) -> Result<Option<(Received<'_>, usize)>, &'static str> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err("a frame with reserved bits set");
    }
    if second & 0x80 != 0 {
        return Err("a masked frame from a server");
    }
    let (header, length): (usize, usize) = match second & 0x7f {
        126 => match rest.first_chunk() {
            Some(length) => (4, usize::from(u16::from_be_bytes(*length))),
            None => return Ok(None),
        },
        127 => match rest.first_chunk() {
            Some(length) => {
                let length = u64::from_be_bytes(*length);
                (10, usize::try_from(length).map_err(|_| "a frame of absurd length")?)
            }
            None => return Ok(None),
        },
        length => (2, usize::from(length)),
    };
    let end = header.saturating_add(length);
    let Some(payload) = bytes.get(header..end) else { return Ok(None) };
    let received = match (first & 0x0f, first & 0x80 != 0) {
        (TEXT, true) => Received::Text(payload),
        (CLOSE, true) => match payload {
            [] => Received::Close { code: None, reason: &[] },
            [high, low, reason @ ..] => {
                Received::Close { code: Some(u16::from_be_bytes([*high, *low])), reason }
            }
            [_] => return Err("a close frame with a code of one byte"),
        },
        (PING, true) => Received::Ping(payload),
        (PONG, true) => Received::Pong,
        (0..=2, _) => return Err("a message that is not one unfragmented text frame"),
        _ => return Err("a frame with an unknown opcode"),
    };
    Ok(Some((received, end)))
}

/// Appends one whole masked frame, the payload of which `fill` appends: exactly `length` bytes.
pub(crate) fn encode(
    out: &mut Vec<u8>,
    opcode: u8,
    key: [u8; 4],
    length: usize,
    fill: impl FnOnce(&mut Vec<u8>),
) {
    out.push(0x80 | opcode);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..126), _) => out.push(0x80 | short),
        (_, Ok(medium)) => {
            out.push(0x80 | 126);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&key);
    let start = out.len();
    fill(out);
    debug_assert_eq!(out.len() - start, length, "the length that was announced");
    if let Some(payload) = out.get_mut(start..) {
        mask(payload, key);
    }
}

fn mask(bytes: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip([a, b, c, d, a, b, c, d]) {
        *byte ^= key;
    }
}

/// The upgrade request of a binary (`phone` false) or a phone (PROTOCOL.md, chapter 1).
pub(crate) fn upgrade_request(host: &str, prefix: &str, server_id: &str, phone: bool) -> Vec<u8> {
    let (path, own) = match phone {
        true => ("/v1/client", "X-Pyrycode-Token: loadtest"),
        false => ("/v1/server", "X-Pyrycode-Version: 0.0.0-loadtest"),
    };
    format!(
        "GET {prefix}{path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\
         User-Agent: loadtest\r\nX-Pyrycode-Server: {server_id}\r\n{own}\r\n\r\n"
    )
    .into_bytes()
}

/// Reads the answer to an upgrade: the length of a head that says 101, `None` until it is whole.
/// Otherwise an error: the status line, or what is wrong with the 101.
pub(crate) fn upgrade_answer(bytes: &[u8]) -> Result<Option<usize>, String> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return match bytes.len() > 16_384 {
            true => Err("an answer to the upgrade of over 16 KiB".into()),
            false => Ok(None),
        };
    };
    let head = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 101") {
        return Err(format!("refused with `{status}`"));
    }
    let accepted = lines.filter_map(|line| line.split_once(':')).any(|(name, value)| {
        name.eq_ignore_ascii_case("sec-websocket-accept") && value.trim() == ACCEPT
    });
    match accepted {
        true => Ok(Some(end + 4)),
        false => Err("a 101 with a wrong Sec-WebSocket-Accept".into()),
    }
}

/// What the relay tells a binary (PROTOCOL.md, chapter 4).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Envelope<'a> {
    /// A phone's frame.
    Frame { conn_id: Cow<'a, str>, frame: &'a [u8] },
    /// A phone is gone.
    Closed { conn_id: Cow<'a, str>, code: u16 },
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    conn_id: Cow<'a, str>,
    #[serde(borrow)]
    frame: Option<&'a RawValue>,
    close_code: Option<u16>,
}

/// Reads an envelope; `None` if it is none.
pub(crate) fn read_envelope(text: &[u8]) -> Option<Envelope<'_>> {
    read_usual(text).or_else(|| {
        let fields = serde_json::from_slice::<Fields<'_>>(text).ok()?;
        match (fields.frame, fields.close_code) {
            (Some(frame), None) => {
                Some(Envelope::Frame { conn_id: fields.conn_id, frame: frame.get().as_bytes() })
            }
            (None, Some(code)) => Some(Envelope::Closed { conn_id: fields.conn_id, code }),
            _ => None,
        }
    })
}

/// The form that relays write: no white space, `conn_id` first, no escapes in it, then the frame.
fn read_usual(text: &[u8]) -> Option<Envelope<'_>> {
    let rest = text.strip_prefix(br#"{"conn_id":""#)?;
    let end = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
    let (conn_id, rest) = rest.split_at_checked(end)?;
    let frame = rest.strip_prefix(br#"","frame":"#)?.strip_suffix(b"}")?;
    Some(Envelope::Frame { conn_id: Cow::Borrowed(str::from_utf8(conn_id).ok()?), frame })
}

/// The length of the envelope that [`write_envelope`] puts around a frame of `frame` bytes.
pub(crate) fn envelope_length(conn_id: &str, frame: usize) -> usize {
    r#"{"conn_id":"","frame":}"#.len() + conn_id.len() + frame
}

/// Appends an envelope around the frame that `fill` appends. `conn_id` is the relay's own word, in
/// which it put no character that JSON escapes.
pub(crate) fn write_envelope(out: &mut Vec<u8>, conn_id: &str, fill: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(br#"{"conn_id":""#);
    out.extend_from_slice(conn_id.as_bytes());
    out.extend_from_slice(br#"","frame":"#);
    fill(out);
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_all_three_forms_are_written_and_read() {
        for length in [0usize, 1, 7, 8, 125, 126, 65_535, 65_536, 262_144] {
            let payload = b"abcdefghijk".iter().copied().cycle().take(length).collect::<Vec<_>>();
            let mut out = Vec::new();
            encode(&mut out, TEXT, [1, 2, 3, 4], length, |out| out.extend_from_slice(&payload));
            // What a server would send: the same frame without its mask.
            let header = out.len() - length - 4;
            let key = [out[header], out[header + 1], out[header + 2], out[header + 3]];
            assert_eq!(key, [1, 2, 3, 4]);
            let mut plain = out[..header].to_vec();
            plain[1] &= 0x7f;
            let mut body = out[header + 4..].to_vec();
            for (at, byte) in body.iter_mut().enumerate() {
                *byte ^= key[at % 4];
            }
            plain.extend_from_slice(&body);
            let whole = plain.len();
            assert_eq!(decode(&plain), Ok(Some((Received::Text(&payload), whole))));
            assert_eq!(decode(&plain[..whole - 1]), Ok(None));
        }
    }

    #[test]
    fn frames_that_a_server_must_not_send_are_refused() {
        let cases: [&[u8]; 6] = [
            &[0xc1, 0],
            &[0x81, 0x80, 0, 0, 0, 0],
            &[0x01, 0],
            &[0x82, 0],
            &[0x88, 1, 3],
            &[0x83, 0],
        ];
        for bytes in cases {
            assert!(decode(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn close_frames_are_read_with_and_without_a_code() {
        assert_eq!(decode(&[0x88, 0]), Ok(Some((Received::Close { code: None, reason: &[] }, 2))));
        assert_eq!(
            decode(&[0x88, 4, 0x11, 0x34, b'n', b'o']),
            Ok(Some((Received::Close { code: Some(4404), reason: b"no" }, 6)))
        );
    }

    #[test]
    fn an_upgrade_needs_101_and_the_right_accept() {
        let good = format!("HTTP/1.1 101 Fine\r\nsec-websocket-accept: {ACCEPT}\r\n\r\nrest");
        assert_eq!(upgrade_answer(good.as_bytes()), Ok(Some(good.len() - 4)));
        assert_eq!(upgrade_answer(&good.as_bytes()[..30]), Ok(None));
        let refused = b"HTTP/1.1 429 Too Many Requests\r\n\r\n";
        assert!(upgrade_answer(refused).unwrap_err().contains("429"));
        assert!(upgrade_answer(b"HTTP/1.1 101 Fine\r\n\r\n").is_err());
    }

    #[test]
    fn envelopes_are_read_in_the_usual_form_and_in_any_other() {
        let frame = |id: &'static str, frame: &'static [u8]| {
            Some(Envelope::Frame { conn_id: Cow::Borrowed(id), frame })
        };
        assert_eq!(
            read_envelope(br#"{"conn_id":"a","frame":{"x":"}"}}"#),
            frame("a", br#"{"x":"}"}"#)
        );
        assert_eq!(
            read_envelope(br#"{ "frame" : [1, 2] , "conn_id" : "a" }"#),
            frame("a", b"[1, 2]")
        );
        let closed = Some(Envelope::Closed { conn_id: Cow::Borrowed("a"), code: 1005 });
        assert_eq!(read_envelope(br#"{"conn_id":"a","close_code":1005}"#), closed);
        assert_eq!(read_envelope(br#"{"conn_id":"a"}"#), None);
    }

    #[test]
    fn an_envelope_is_as_long_as_announced() {
        let mut out = Vec::new();
        write_envelope(&mut out, "abc", |out| out.extend_from_slice(b"[1]"));
        assert_eq!(out.len(), envelope_length("abc", 3));
        assert!(matches!(read_envelope(&out), Some(Envelope::Frame { frame: b"[1]", .. })));
    }
}
