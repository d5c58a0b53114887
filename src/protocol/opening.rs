//! How a connection begins that is to begin with TLS: a peer that speaks HTTP in the clear is told
//! so in its own words, as Go's net/http does it.

/// The five bytes by which Go knows such a peer. No TLS record begins with a letter.
const METHODS: [&[u8; 5]; 5] = [b"GET /", b"HEAD ", b"POST ", b"PUT /", b"OPTIO"];

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    /// Like HTTP so far; these bytes are held.
    NeedMore,
    /// With HTTP in the clear.
    WithHttp,
    /// Otherwise: what was held, and all that follows, is for TLS.
    Otherwise,
}

/// Reads the first bytes of a connection, in any number of pieces.
#[derive(Debug, Clone, Copy, Default)]
pub struct Opening {
    held: [u8; 5],
    held_bytes: u8,
}

impl Opening {
    /// Takes what has come since the last call, unless it is for TLS.
    pub fn read(&mut self, input: &[u8]) -> Begins {
        let before = usize::from(self.held_bytes);
        let mut first = self.held;
        let room = first.get_mut(before..).unwrap_or_default();
        for (to, from) in room.iter_mut().zip(input) {
            *to = *from;
        }
        let come = (before + input.len()).min(first.len());
        let first_come = first.get(..come).unwrap_or_default();
        if !METHODS.iter().any(|method| method.starts_with(first_come)) {
            return Begins::Otherwise;
        }
        if come == first.len() {
            return Begins::WithHttp;
        }
        (self.held, self.held_bytes) = (first, come as u8);
        Begins::NeedMore
    }

    /// The bytes that are held: they come before those of the call that decided.
    #[must_use]
    pub fn held(&self) -> &[u8] {
        self.held.get(..usize::from(self.held_bytes)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of it whole and byte by byte, with what is held before the byte that decides.
    fn begins(bytes: &[u8]) -> (Begins, Vec<u8>) {
        let whole = Opening::default().read(bytes);
        let mut opening = Opening::default();
        let bytewise = bytes
            .iter()
            .map(|byte| opening.read(&[*byte]))
            .find(|begins| *begins != Begins::NeedMore)
            .unwrap_or(Begins::NeedMore);
        assert_eq!(whole, bytewise, "{}", bytes.escape_ascii());
        (whole, opening.held().to_vec())
    }

    #[test]
    fn http_is_known_by_its_method_and_held_until_then() {
        for method in METHODS {
            for end in 0..5 {
                assert_eq!(begins(&method[..end]), (Begins::NeedMore, method[..end].to_vec()));
            }
            let request = [&method[..], b"x HTTP/1.1\r\n"].concat();
            assert_eq!(begins(&request), (Begins::WithHttp, method[..4].to_vec()));
        }
    }

    #[test]
    fn everything_else_is_left_to_tls() {
        let hello = b"\x16\x03\x01\x02\x00\x01";
        assert_eq!(begins(hello), (Begins::Otherwise, Vec::new()));
        for (bytes, held) in
            [("GOT /", "G"), ("PRI * HTTP/2.0", "P"), ("GET x", "GET "), ("POSTER", "POST")]
        {
            assert_eq!(begins(bytes.as_bytes()), (Begins::Otherwise, held.into()));
        }
        let mut opening = Opening::default();
        assert_eq!(opening.read(b""), Begins::NeedMore);
        assert_eq!(
            (opening.read(b"HE"), opening.read(b"LLO ")),
            (Begins::NeedMore, Begins::Otherwise)
        );
        assert_eq!(opening.held(), b"HE");
    }
}
