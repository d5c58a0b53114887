//! What a wake request names (PROTOCOL.md, chapters 4 and 8).

use std::fmt;

/// The longest push token, in bytes. Those that Firebase gives out have a few hundred.
pub const MAX_PUSH_TOKEN_BYTES: usize = 4096;

/// A push service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// Firebase Cloud Messaging, on the wire `fcm`.
    Fcm,
    /// One that this relay does not know.
    Other,
}

impl Platform {
    /// The service that a binary names, byte for byte.
    #[must_use]
    pub fn named(name: &str) -> Self {
        if name == "fcm" { Self::Fcm } else { Self::Other }
    }
}

/// A phone's push token: secret, and for its push service alone. It shows itself, in a log or
/// anywhere else, by its fingerprint only.
#[derive(Clone, PartialEq, Eq)]
pub struct PushToken(Box<str>);

impl PushToken {
    /// Takes a token as a binary sent it.
    #[must_use]
    pub fn new(token: &str) -> Self {
        Self(token.into())
    }

    /// The token itself, for the one call that it is meant for.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.0
    }
}

/// The fingerprint: the first 8 hexadecimal digits of the token's SHA-256.
impl fmt::Display for PushToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, self.0.as_bytes());
        digest.as_ref().iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PushToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PushToken({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_shows_its_fingerprint_and_nothing_else() {
        // FIPS 180-2, appendix B.1: SHA-256 of "abc" begins ba7816bf.
        let token = PushToken::new("abc");
        assert_eq!(token.to_string(), "ba7816bf");
        assert_eq!(format!("{token:?}"), "PushToken(ba7816bf)");
        assert_eq!(token.secret(), "abc");
    }

    #[test]
    fn a_platform_is_named_byte_for_byte() {
        assert_eq!(Platform::named("fcm"), Platform::Fcm);
        for other in ["", "FCM", "fcm ", "apns"] {
            assert_eq!(Platform::named(other), Platform::Other);
        }
    }
}
