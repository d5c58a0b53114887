//! Masking of client payloads (RFC 6455, section 5.3).

/// A masking key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mask(u32);

impl Mask {
    #[inline]
    pub(super) const fn new(key: [u8; 4]) -> Self {
        Self(u32::from_le_bytes(key))
    }

    /// The key, as it stands in a header.
    pub(super) const fn key(self) -> [u8; 4] {
        self.0.to_le_bytes()
    }

    /// Masks or unmasks `payload` in place. `offset` is the place of its first byte in the payload
    /// of the frame, in bytes: a payload may come in pieces.
    #[inline]
    pub(super) fn apply(self, payload: &mut [u8], offset: usize) {
        let key = self.wide_at(offset);
        let Some(last) = payload.last_chunk() else {
            for (byte, key) in payload.iter_mut().zip(key.to_le_bytes()) {
                *byte ^= key;
            }
            return;
        };
        // The last word overlaps the one before it: read first and written last, it spares a
        // branch on each of the odd bytes.
        let last = u64::from_le_bytes(*last) ^ self.wide_at(offset + payload.len() - WORD);
        let (words, _) = payload.as_chunks_mut::<WORD>();
        for word in words {
            *word = (u64::from_le_bytes(*word) ^ key).to_le_bytes();
        }
        if let Some(place) = payload.last_chunk_mut() {
            *place = last.to_le_bytes();
        }
    }

    #[inline]
    const fn wide_at(self, offset: usize) -> u64 {
        let key = self.0.rotate_right(8 * (offset % 4) as u32) as u64;
        key << 32 | key
    }
}

/// Words of a fixed size, and no search for alignment: the compiler makes SSE or NEON of them.
const WORD: usize = size_of::<u64>();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_split_equals_the_definition() {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        for length in 0..100 {
            let plain: Vec<u8> = (0..length).map(|i| i as u8 ^ 0x5a).collect();
            // "octet i of the transformed data is octet i XOR octet (i MOD 4) of the key"
            let masked: Vec<u8> =
                plain.iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]).collect();
            for split in 0..=length {
                let mut bytes = masked.clone();
                let (head, tail) = bytes.split_at_mut(split);
                Mask::new(mask).apply(head, 0);
                Mask::new(mask).apply(tail, split);
                assert_eq!(bytes, plain, "length {length}, split {split}");
            }
        }
    }
}
