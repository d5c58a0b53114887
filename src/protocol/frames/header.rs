//! One client frame header (RFC 6455, section 5.2), with every rule that needs no memory of the
//! frames before it.

use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::OpCode;

use super::mask::Mask;
use super::{FrameError, MAX_CONTROL_BYTES};

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
    pub(super) mask: Mask,
    /// At most the limit on messages; [`MAX_CONTROL_BYTES`] in a control frame.
    pub(super) payload_bytes: usize,
}

/// Reads the header at the start of `bytes`, and its own length in bytes. `None` if it is not all
/// there yet. `LIMIT` is that of a message, in bytes.
///
/// tungstenite's parser copies out of a reader. Over a buffer whose length the compiler knows, and
/// with one call for each type of reader, these copies become plain loads: half the instructions.
#[inline]
pub(super) fn parse<const LIMIT: usize>(
    bytes: &[u8],
) -> Result<Option<(Header, usize)>, FrameError> {
    match bytes.first_chunk::<MAX_CLIENT_HEADER_BYTES>() {
        Some(longest) => parse_from::<_, LIMIT>(Cursor::new(longest), bytes.len()),
        None => parse_short::<LIMIT>(bytes),
    }
}

/// [`parse`] for up to [`MAX_CLIENT_HEADER_BYTES`].
#[cold]
#[inline(never)]
pub(super) fn parse_short<const LIMIT: usize>(
    bytes: &[u8],
) -> Result<Option<(Header, usize)>, FrameError> {
    let mut padded = [0; MAX_CLIENT_HEADER_BYTES];
    for (slot, byte) in padded.iter_mut().zip(bytes) {
        *slot = *byte;
    }
    parse_from::<_, LIMIT>(Cursor::new(padded), bytes.len())
}

/// `available_bytes` of what the cursor reads came from the peer, the rest is padding.
#[inline(always)]
fn parse_from<B: AsRef<[u8]>, const LIMIT: usize>(
    mut cursor: Cursor<B>,
    available_bytes: usize,
) -> Result<Option<(Header, usize)>, FrameError> {
    let (header, length) = match FrameHeader::parse(&mut cursor) {
        Ok(Some(parsed)) => parsed,
        Ok(None) => return Ok(None),
        Err(error) => {
            // Moved in every arm, or else each message would pay for the check what to drop.
            drop(error);
            // Reading from memory cannot fail: this is the only thing that tungstenite refuses.
            return Err(FrameError::Protocol("reserved opcode"));
        }
    };
    let header_bytes = cursor.position() as usize;
    if header_bytes > available_bytes {
        return Ok(None);
    }
    Ok(Some((check::<LIMIT>(&header, length, header_bytes)?, header_bytes)))
}

#[inline]
fn check<const LIMIT: usize>(
    header: &FrameHeader,
    length: u64,
    header_bytes: usize,
) -> Result<Header, FrameError> {
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
    if length > LIMIT as u64 {
        return Err(FrameError::TooBig);
    }
    Ok(Header {
        opcode: header.opcode,
        is_final: header.is_final,
        mask: Mask::new(mask),
        payload_bytes: length as usize,
    })
}
