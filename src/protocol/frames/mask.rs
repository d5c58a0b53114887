//! Masking of client payloads (RFC 6455, section 5.3).

/// Masks or unmasks `payload` in place. `offset` is the place of its first byte in the payload of
/// the frame, in bytes: a payload may come in pieces.
#[inline]
pub(super) fn apply(payload: &mut [u8], mut mask: [u8; 4], offset: usize) {
    mask.rotate_left(offset % 4);
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    // Words of a fixed size and no alignment prologue: the compiler makes SSE or NEON of this.
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(wide.to_ne_bytes()) {
        *byte ^= key;
    }
}

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
                apply(head, mask, 0);
                apply(tail, mask, split);
                assert_eq!(bytes, plain, "length {length}, split {split}");
            }
        }
    }
}
