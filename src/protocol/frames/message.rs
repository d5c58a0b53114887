//! A message on its way in: how it grows, and that its text is UTF-8 as far as it came.

use super::{FrameError, Incoming};

/// The smallest buffer of a half-read message, in bytes, unless the message is shorter.
const MIN_CAPACITY_BYTES: usize = 128;

/// What came so far of a message in several pieces. Never holds more than twice what came.
#[derive(Debug)]
pub(super) enum Message {
    /// A text message: everything before `cut` was checked and is not looked at again.
    Text { text: String, cut: CutChar },
    /// A binary message.
    Binary(Vec<u8>),
}

impl Message {
    pub(super) const fn text() -> Self {
        Self::Text { text: String::new(), cut: CutChar { bytes: [0; 4], len: 0 } }
    }

    pub(super) const fn binary() -> Self {
        Self::Binary(Vec::new())
    }

    /// What came so far of one in another process. It takes no more memory than `bytes` do.
    ///
    /// # Errors
    /// [`FrameError::InvalidUtf8`]: that process would not have kept it.
    pub(super) fn resumed(is_text: bool, mut bytes: Vec<u8>) -> Result<Self, FrameError> {
        if !is_text {
            return Ok(Self::Binary(bytes));
        }
        let rest = bytes.split_off(bytes.len() - unfinished_bytes(&bytes));
        let mut text = String::from_utf8(bytes).map_err(|_| FrameError::InvalidUtf8)?;
        let mut cut = CutChar { bytes: [0; 4], len: 0 };
        append_text(&mut text, &mut cut, &rest)?;
        Ok(Self::Text { text, cut })
    }

    /// Whether it is a text, and the bytes that came so far.
    pub(super) fn came(&self) -> (bool, Vec<u8>) {
        match self {
            Self::Text { text, cut } => (true, [text.as_bytes(), cut.as_bytes()].concat()),
            Self::Binary(bytes) => (false, bytes.clone()),
        }
    }

    /// Bytes of payload that came so far.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Text { text, cut } => text.len() + cut.as_bytes().len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    /// Bytes on the heap.
    pub(super) fn capacity(&self) -> usize {
        match self {
            Self::Text { text, .. } => text.capacity(),
            Self::Binary(bytes) => bytes.capacity(),
        }
    }

    /// Adds the next piece, unmasked. `limit` is the most that the message can still become, in
    /// bytes from its start: its exact length once its last header is known.
    ///
    /// # Errors
    /// [`FrameError::InvalidUtf8`] as soon as no further byte could make the text UTF-8.
    pub(super) fn append(&mut self, piece: &[u8], limit: usize) -> Result<(), FrameError> {
        match self {
            Self::Text { text, cut } => {
                let more = cut.as_bytes().len() + piece.len();
                text.reserve_exact(room(text.len(), text.capacity(), more, limit));
                append_text(text, cut, piece)
            }
            Self::Binary(bytes) => {
                bytes.reserve_exact(room(bytes.len(), bytes.capacity(), piece.len(), limit));
                bytes.extend_from_slice(piece);
                Ok(())
            }
        }
    }

    /// The message, all of which came.
    ///
    /// # Errors
    /// [`FrameError::InvalidUtf8`] if the text ends within a code point.
    pub(super) fn whole(&self) -> Result<Incoming<'_>, FrameError> {
        match self {
            Self::Text { text, cut } if cut.as_bytes().is_empty() => Ok(Incoming::Text(text)),
            Self::Text { .. } => Err(FrameError::InvalidUtf8),
            Self::Binary(bytes) => Ok(Incoming::Binary(bytes)),
        }
    }
}

/// What to reserve for `more` bytes: twice what came, so that a message of tiny pieces is copied
/// O(1) times per byte, but never beyond `limit`. A length field alone reserves nothing.
fn room(len: usize, capacity: usize, more: usize, limit: usize) -> usize {
    let needed = len + more;
    if needed <= capacity {
        return 0;
    }
    let doubled = (2 * needed).max(MIN_CAPACITY_BYTES);
    doubled.min(limit).max(needed) - len
}

/// The start of a code point whose end has not come yet: at most 3 bytes between two pieces.
#[derive(Debug)]
pub(super) struct CutChar {
    bytes: [u8; 4],
    len: u8,
}

impl CutChar {
    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// Adds a byte; moves the code point to the end of `text` once it is complete.
    fn push(&mut self, byte: u8, text: &mut String) -> Result<(), FrameError> {
        let slot = self.bytes.get_mut(usize::from(self.len)).ok_or(FrameError::InvalidUtf8)?;
        *slot = byte;
        self.len += 1;
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        match std::str::from_utf8(bytes) {
            Ok(char) => {
                text.push_str(char);
                self.len = 0;
                Ok(())
            }
            Err(error) if error.error_len().is_none() => Ok(()),
            Err(_) => Err(FrameError::InvalidUtf8),
        }
    }
}

fn append_text(text: &mut String, cut: &mut CutChar, mut piece: &[u8]) -> Result<(), FrameError> {
    while !cut.as_bytes().is_empty()
        && let Some(byte) = piece.split_off_first()
    {
        cut.push(*byte, text)?;
    }
    let (whole, rest) = piece.split_at(piece.len() - unfinished_bytes(piece));
    text.push_str(check_utf8(whole)?);
    for byte in rest {
        cut.push(*byte, text)?;
    }
    Ok(())
}

/// `bytes` as text.
///
/// # Errors
/// [`FrameError::InvalidUtf8`]
#[inline]
pub(super) fn check_utf8(bytes: &[u8]) -> Result<&str, FrameError> {
    simdutf8::basic::from_utf8(bytes).map_err(|_| FrameError::InvalidUtf8)
}

/// How many bytes at the end of `piece` begin a code point that needs more bytes than there are.
/// What it says of bytes that are not UTF-8 does not matter: they fail the check on either side.
fn unfinished_bytes(piece: &[u8]) -> usize {
    for (after, byte) in piece.iter().rev().take(3).enumerate() {
        let following = match byte {
            0x80..=0xBF => continue,
            0xC2..=0xDF => 1,
            0xE0..=0xEF => 2,
            0xF0..=0xF4 => 3,
            _ => 0,
        };
        return if after < following { after + 1 } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::super::MAX_MESSAGE_BYTES;
    use super::*;

    /// Where, in a text fed byte by byte, it is refused: before any further byte is seen.
    fn refused_at(bytes: &[u8]) -> Option<usize> {
        let mut message = Message::text();
        bytes
            .iter()
            .position(|byte| message.append(&[*byte], MAX_MESSAGE_BYTES).is_err())
            .or_else(|| message.whole().is_err().then_some(bytes.len()))
    }

    #[test]
    fn text_is_refused_at_the_first_byte_that_cannot_be_mended() {
        let table: [(&[u8], Option<usize>); 14] = [
            (b"", None),
            ("\u{7f}\u{80}\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}".as_bytes(), None),
            (b"a\x80", Some(1)),
            (b"\xc0\x80", Some(0)),
            (b"\xc1", Some(0)),
            (b"\xf5", Some(0)),
            (b"\xff", Some(0)),
            (b"\xe0\x80\x80", Some(1)),
            (b"\xed\xa0\x80", Some(1)),
            (b"\xf0\x8f\xbf\xbf", Some(1)),
            (b"\xf4\x90\x80\x80", Some(1)),
            (b"\xc3(", Some(1)),
            (b"\xce\xba\xe1\xbd\xb9\xf4\x90", Some(6)),
            (b"\xf0\x9f\x98", Some(3)),
        ];
        for (bytes, expected) in table {
            assert_eq!(refused_at(bytes), expected, "{bytes:02x?}");
            assert_eq!(expected.is_none(), std::str::from_utf8(bytes).is_ok(), "{bytes:02x?}");
        }
    }

    #[test]
    fn a_piece_is_refused_whatever_surrounds_the_fault() {
        for fault in [&b"\xff"[..], b"\xe0\x80", b"\xf4\x90", b"\xed\xa0", b"\xc3(", b"\x80"] {
            for before in 0..70 {
                for after in 0..5 {
                    let mut piece = vec![b'x'; before];
                    piece.extend_from_slice(fault);
                    piece.resize(piece.len() + after, b'y');
                    let refused = Message::text().append(&piece, MAX_MESSAGE_BYTES);
                    assert_eq!(refused, Err(FrameError::InvalidUtf8), "{piece:02x?}");
                }
            }
        }
    }

    #[test]
    fn capacity_follows_what_came_and_stops_at_the_limit() {
        for limit in [1000, 5000, 70_000, MAX_MESSAGE_BYTES] {
            for (mut message, step) in
                [(Message::text(), 1), (Message::binary(), 7), (Message::binary(), 900)]
            {
                let mut came = 0;
                while came < limit {
                    let piece = vec![b'x'; step.min(limit - came)];
                    message.append(&piece, limit).unwrap();
                    came += piece.len();
                    assert_eq!(message.len(), came);
                    assert!(message.capacity() <= MIN_CAPACITY_BYTES.max(2 * came).min(limit));
                }
                assert_eq!(message.capacity(), limit);
            }
        }
    }
}
