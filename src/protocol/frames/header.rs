//! One client frame header (RFC 6455, section 5.2), with every rule that needs no memory of the
//! frames before it.

use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::OpCode;

use super::{FrameError, MAX_CONTROL_BYTES, MAX_MESSAGE_BYTES};

/// The longest header of a client frame, in bytes: two, a 64-bit length, the masking key.
pub(super) const MAX_CLIENT_HEADER_BYTES: usize = 14;

/// A checked header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    /// Never a reserved one.
    pub(super) opcode: OpCode,
    /// The FIN bit.
    pub(super) is_final: bool,
    /// The masking key.
    pub(super) mask: [u8; 4],
    /// At most [`MAX_MESSAGE_BYTES`]; [`MAX_CONTROL_BYTES`] in a control frame.
    pub(super) payload_bytes: usize,
}

/// Reads the header at the start of `bytes`, and its own length in bytes. `None` if it is not all
/// there yet.
///
/// tungstenite's parser copies from a reader. One call, in one place, from a buffer whose length the
/// compiler knows, makes plain loads of these copies: it is three times as fast.
#[inline(never)]
pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, FrameError> {
    let longest = match bytes.first_chunk() {
        Some(longest) => *longest,
        None => padded(bytes),
    };
    let mut cursor = Cursor::<[u8; MAX_CLIENT_HEADER_BYTES]>::new(longest);
    // Reading from memory cannot fail, so the opcode is the only thing that tungstenite refuses.
    let parsed = FrameHeader::parse(&mut cursor);
    let header_bytes = cursor.position() as usize;
    match parsed {
        _ if bytes.len() < header_bytes => Ok(None),
        Ok(Some((header, length))) => {
            Ok(Some((check(&header, length, header_bytes)?, header_bytes)))
        }
        Ok(None) => Ok(None),
        Err(_) => Err(FrameError::Protocol("reserved opcode")),
    }
}

#[cold]
fn padded(bytes: &[u8]) -> [u8; MAX_CLIENT_HEADER_BYTES] {
    let mut longest = [0; MAX_CLIENT_HEADER_BYTES];
    for (slot, byte) in longest.iter_mut().zip(bytes) {
        *slot = *byte;
    }
    longest
}

#[inline]
fn check(header: &FrameHeader, length: u64, header_bytes: usize) -> Result<Header, FrameError> {
    let Some(mask) = header.mask else {
        return Err(FrameError::Protocol("frame is not masked"));
    };
    if header.rsv1 || header.rsv2 || header.rsv3 {
        return Err(FrameError::Protocol("reserved bit is set, no extension was negotiated"));
    }
    if matches!(header.opcode, OpCode::Control(_)) {
        if !header.is_final {
            return Err(FrameError::Protocol("control frame is fragmented"));
        }
        if length > MAX_CONTROL_BYTES as u64 {
            return Err(FrameError::Protocol("control frame is over 125 bytes"));
        }
    }
    if length > i64::MAX as u64 {
        return Err(FrameError::Protocol("top bit of a 64-bit length is set"));
    }
    if header_bytes != header.len(length) {
        return Err(FrameError::Protocol("length is not in its shortest form"));
    }
    if length > MAX_MESSAGE_BYTES as u64 {
        return Err(FrameError::TooBig);
    }
    Ok(Header {
        opcode: header.opcode,
        is_final: header.is_final,
        mask,
        payload_bytes: length as usize,
    })
}
