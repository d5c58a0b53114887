//! Names on the wire: server-ids and conn-ids.

use std::fmt;
use std::sync::Arc;

/// The longest server-id, in bytes (PROTOCOL.md, chapter 3).
pub const MAX_SERVER_ID_BYTES: usize = 256;

/// A server-id: a header value of 1 to [`MAX_SERVER_ID_BYTES`] bytes of UTF-8, compared byte for
/// byte. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ServerId(Arc<str>);

impl ServerId {
    /// Takes a trimmed header value. `None` if it is empty, over the length limit or not UTF-8.
    #[must_use]
    pub fn from_header(value: &[u8]) -> Option<Self> {
        if value.is_empty() || value.len() > MAX_SERVER_ID_BYTES {
            return None;
        }
        Some(Self(Arc::from(std::str::from_utf8(value).ok()?)))
    }

    /// The id as the peer sent it. It is the peer's text: escape it before it meets a log.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The relay's opaque name for one phone connection (PROTOCOL.md, chapter 4): 32 lowercase
/// hexadecimal digits, of which 24 (96 bits) cannot be guessed. The other 8 are the connection's
/// slot in its worker's table, so that a frame finds its phone without a hash table.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnId([u8; ConnId::LEN]);

impl ConnId {
    /// Length of the text form, in bytes.
    pub const LEN: usize = 32;

    /// Names the connection in `slot`. `nonce` must come from a cryptographic generator and be
    /// new for each connection.
    #[must_use]
    pub fn new(slot: u32, nonce: [u8; 12]) -> Self {
        Self::of(slot.to_be_bytes().into_iter().chain(nonce))
    }

    /// The one whose [`ConnId::to_bytes`] are these.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self::of(bytes.into_iter())
    }

    fn of(bytes: impl Iterator<Item = u8>) -> Self {
        let mut digits = [0; Self::LEN];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
            pair.copy_from_slice(&hex_pair(byte));
        }
        Self(digits)
    }

    /// What the digits stand for.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(self.0.chunks_exact(2)) {
            *byte = pair.iter().fold(0, |value, digit| value << 4 | value_of(*digit));
        }
        bytes
    }

    /// Reads a conn-id as [`ConnId::as_str`] writes it. `None` for any other text: such an id was
    /// never given out.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let digits: [u8; Self::LEN] = text.try_into().ok()?;
        // Not `all`, which would look at one after the other.
        let are_hex = digits.iter().fold(true, |so_far, digit| {
            so_far & (digit.is_ascii_digit() | matches!(digit, b'a'..=b'f'))
        });
        are_hex.then_some(Self(digits))
    }

    /// The slot that [`ConnId::new`] was given.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.0.iter().take(8).fold(0, |slot, digit| slot << 4 | u32::from(value_of(*digit)))
    }

    /// The text form.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The text form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only hexadecimal digits are ever stored; the fallback cannot be reached.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a digit stands for.
const fn value_of(digit: u8) -> u8 {
    match digit {
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit - b'0',
    }
}

const fn hex_pair(byte: u8) -> [u8; 2] {
    const fn digit(nibble: u8) -> u8 {
        if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }
    }
    [digit(byte >> 4), digit(byte & 15)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_id_takes_what_the_protocol_allows() {
        assert!(ServerId::from_header(b"").is_none());
        assert!(ServerId::from_header(&[b'x'; 257]).is_none());
        assert!(ServerId::from_header(b"\xff").is_none());
        assert!(ServerId::from_header(&[b'x'; 256]).is_some());
        assert_ne!(ServerId::from_header(b"A"), ServerId::from_header(b"a"));
    }

    #[test]
    fn conn_id_round_trips_and_carries_its_slot() {
        for slot in [0, 1, 0x9abc_def0, u32::MAX] {
            let id = ConnId::new(slot, [0xab; 12]);
            assert_eq!(id.slot(), slot);
            assert_eq!(ConnId::parse(id.as_bytes()), Some(id));
            assert_eq!(ConnId::from_bytes(id.to_bytes()), id);
        }
        assert_eq!(ConnId::new(0x2a, [7; 12]).as_str(), "0000002a070707070707070707070707");
    }

    #[test]
    fn conn_id_refuses_what_it_never_wrote() {
        let good = *ConnId::new(5, [9; 12]).as_bytes();
        for bad in [&good[..31], &[b'A'; 32][..], &[b'g'; 32][..], b"", &[b'0'; 33][..]] {
            assert_eq!(ConnId::parse(bad), None);
        }
    }
}
