//! Records (RFC 8446, section 5; RFC 5246, section 6.2), protected with the AEADs of the process's
//! crypto provider: one direction's keys, how a record is opened where it lies, and how one is
//! sealed. What records say is for [`super::traffic`].

use super::secrets;
use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::crypto::cipher::NONCE_LEN;
use rustls::{
    AlertDescription, CipherSuite, ConnectionTrafficSecrets, ContentType, Error, InvalidMessage,
    PeerMisbehaved, SupportedCipherSuite, Tls13CipherSuite,
};
use std::fmt;
use zeroize::Zeroize;

// Content types (RFC 8446, section 5.1).
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const APPLICATION_DATA: u8 = 23;

/// The most application data in one record (RFC 8446, section 5.1).
pub const RECORD_BYTES: usize = 1 << 14;
/// Type, version and length come before a record's body.
pub(super) const HEADER_BYTES: usize = 5;
/// The tag of each AEAD that there is for TLS.
const TAG_BYTES: usize = 16;
/// Of a nonce, what TLS 1.2 with AES-GCM sends along with each record (RFC 5288, section 3).
const EXPLICIT_NONCE_BYTES: usize = 8;
/// What a body may be longer than its data (RFC 8446, section 5.2; RFC 5246, section 6.2.3).
const MAX_EXPANSION_13: usize = 256;
const MAX_EXPANSION_12: usize = 2048;
/// The longest secret that keys are made of: of SHA-384.
pub(super) const MAX_SECRET_BYTES: usize = 48;
/// The longest key.
pub(super) const MAX_KEY_BYTES: usize = 32;

/// The version that every record names, whatever was agreed on (RFC 8446, section 5.1).
const VERSION: [u8; 2] = [3, 3];

/// A fatal alert in the clear, for whom there is to be no handshake: access_denied (RFC 8446,
/// section 6.2).
pub(super) const ACCESS_DENIED: [u8; 7] = [ALERT, 3, 3, 0, 2, 2, 49];

/// Why a connection cannot go on, and what its peer is told.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fault {
    /// None where the peer is the one who ended it.
    pub(super) alert: Option<AlertDescription>,
    /// For the log.
    pub(super) error: Error,
}

impl Fault {
    pub(super) fn new(alert: AlertDescription, error: impl Into<Error>) -> Self {
        Self { alert: Some(alert), error: error.into() }
    }

    /// A message of a type, or at a time, that there is none of.
    pub(super) fn unexpected(kind: u8) -> Self {
        let error = Error::InappropriateMessage {
            expect_types: vec![ContentType::ApplicationData],
            got_type: kind.into(),
        };
        Self::new(AlertDescription::UnexpectedMessage, error)
    }

    /// A message that breaks the rules of its kind.
    pub(super) fn undecodable(error: InvalidMessage) -> Self {
        Self::new(AlertDescription::DecodeError, error)
    }

    /// What is allowed once has come again and again.
    pub(super) fn flood(error: PeerMisbehaved) -> Self {
        Self::new(AlertDescription::UnexpectedMessage, error)
    }

    fn too_long() -> Self {
        Self::new(AlertDescription::RecordOverflow, Error::PeerSentOversizedRecord)
    }
}

/// How the records of a connection are protected: what its cipher suite says of that.
#[derive(Clone, Copy)]
pub(super) struct Protection {
    pub(super) suite: SupportedCipherSuite,
    algorithm: &'static aead::Algorithm,
    /// 0 where nonces are not sent.
    explicit_nonce_bytes: usize,
}

impl fmt::Debug for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.suite.suite().fmt(f)
    }
}

impl Protection {
    /// None for a suite that the provider does not have.
    pub(super) fn of(suite: SupportedCipherSuite) -> Option<Self> {
        let algorithm = match suite.suite() {
            CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => &aead::AES_128_GCM,
            CipherSuite::TLS13_AES_256_GCM_SHA384
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => &aead::AES_256_GCM,
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => &aead::CHACHA20_POLY1305,
            _ => return None,
        };
        let is_chacha = *algorithm == aead::CHACHA20_POLY1305;
        let is_explicit = suite.tls13().is_none() && !is_chacha;
        let explicit_nonce_bytes = if is_explicit { EXPLICIT_NONCE_BYTES } else { 0 };
        Some(Self { suite, algorithm, explicit_nonce_bytes })
    }

    /// How long its keys are.
    pub(super) fn key_bytes(&self) -> usize {
        self.algorithm.key_len()
    }

    pub(super) fn tls13(&self) -> Option<&'static Tls13CipherSuite> {
        self.suite.tls13()
    }

    /// How many records one key may protect (RFC 8446, section 5.5).
    pub(super) fn max_records(&self) -> u64 {
        match self.suite {
            SupportedCipherSuite::Tls13(suite) => suite.common.confidentiality_limit,
            SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit,
        }
    }

    /// Where the data of a record begins, that begins at 0.
    pub(super) fn data_offset(&self) -> usize {
        HEADER_BYTES + self.explicit_nonce_bytes
    }

    /// How long a record is that begins with these bytes, with its header; none if they do not say.
    ///
    /// # Errors
    ///
    /// It is no record, or none for here.
    pub(super) fn record_bytes(&self, begin: &[u8]) -> Result<Option<usize>, Fault> {
        let is_13 = self.tls13().is_some();
        let Some(&[kind, major, _, high, low]) = begin.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let is_known = match kind {
            APPLICATION_DATA => true,
            ALERT | HANDSHAKE => !is_13,
            _ => false,
        };
        if !is_known {
            return Err(Fault::unexpected(kind));
        }
        if major != VERSION[0] {
            return Err(Fault::undecodable(InvalidMessage::UnknownProtocolVersion));
        }
        let body = usize::from(u16::from_be_bytes([high, low]));
        let expansion = if is_13 { MAX_EXPANSION_13 } else { MAX_EXPANSION_12 };
        if body > RECORD_BYTES + expansion {
            return Err(Fault::too_long());
        }
        Ok(Some(HEADER_BYTES + body))
    }
}

/// What keys of one direction are: plain data.
#[derive(Clone)]
pub struct Keys {
    /// Of TLS 1.3: what this key and, after an update, the next are made of; its length is that of
    /// the suite's hash. All zero in TLS 1.2.
    pub secret: [u8; MAX_SECRET_BYTES],
    /// As many bytes of it as the suite's cipher takes.
    pub key: [u8; MAX_KEY_BYTES],
    /// What the nonces are made of.
    pub iv: [u8; NONCE_LEN],
    /// How many records it has protected.
    pub sequence: u64,
}

impl Keys {
    /// From what rustls gives away after a handshake.
    pub(super) fn new((sequence, extracted): (u64, ConnectionTrafficSecrets)) -> Option<Self> {
        let (from, iv) = match &extracted {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv }
            | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
            | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key.as_ref(), iv),
            _ => return None,
        };
        let mut keys = Self {
            secret: [0; MAX_SECRET_BYTES],
            key: [0; MAX_KEY_BYTES],
            iv: iv.as_ref().try_into().ok()?,
            sequence,
        };
        keys.key.get_mut(..from.len())?.copy_from_slice(from);
        Some(keys)
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.secret.zeroize();
        self.key.zeroize();
        self.iv.zeroize();
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

/// One direction of a connection.
pub(super) struct Half {
    pub(super) keys: Keys,
    /// What the cipher makes of the key, which is much longer than the key: only while in use.
    cipher: Option<LessSafeKey>,
}

impl Half {
    pub(super) fn new(keys: Keys) -> Self {
        Self { keys, cipher: None }
    }

    /// Whether it holds more than its keys.
    pub(super) fn is_warm(&self) -> bool {
        self.cipher.is_some()
    }

    /// Holds nothing but keys from now on, until it is used again.
    pub(super) fn cool(&mut self) {
        self.cipher = None;
    }

    /// Goes on with the next keys (RFC 8446, section 7.2).
    pub(super) fn update(&mut self, suite: &Tls13CipherSuite) {
        secrets::update(suite, &mut self.keys);
        self.cipher = None;
    }

    fn cipher(&mut self, protection: &Protection) -> Option<&LessSafeKey> {
        if self.cipher.is_none() {
            let key = self.keys.key.get(..protection.algorithm.key_len())?;
            let key = UnboundKey::new(protection.algorithm, key).ok()?;
            // The library zeroes its memory when it is freed.
            self.cipher = Some(LessSafeKey::new(key));
        }
        self.cipher.as_ref()
    }

    /// The nonce of the next record (RFC 8446, section 5.3; RFC 7905, section 2; for AES-GCM in
    /// TLS 1.2, what RFC 5288 leaves to us).
    fn nonce(&self) -> [u8; NONCE_LEN] {
        let mut nonce = self.keys.iv;
        let sequence = self.keys.sequence.to_be_bytes();
        for (byte, number) in nonce.iter_mut().rev().zip(sequence.iter().rev()) {
            *byte ^= number;
        }
        nonce
    }

    /// Opens a record, which is whole, where it lies: its type, and how many bytes of data are at
    /// [`Protection::data_offset`] now.
    ///
    /// # Errors
    ///
    /// It is not from the peer, or breaks the rules.
    pub(super) fn open(
        &mut self,
        protection: &Protection,
        record: &mut [u8],
    ) -> Result<(u8, usize), Fault> {
        let forged = || Fault::new(AlertDescription::BadRecordMac, Error::DecryptError);
        let is_13 = protection.tls13().is_some();
        let Some((header, body)) = record.split_first_chunk_mut::<HEADER_BYTES>() else {
            return Err(forged());
        };
        let mut nonce = self.nonce();
        let Some((explicit, sealed)) = body.split_at_mut_checked(protection.explicit_nonce_bytes)
        else {
            return Err(forged());
        };
        if let Some((_, end)) = nonce.split_last_chunk_mut::<EXPLICIT_NONCE_BYTES>()
            && !explicit.is_empty()
        {
            end.copy_from_slice(explicit);
        }
        let Some(length) = sealed.len().checked_sub(TAG_BYTES) else { return Err(forged()) };
        let aad = Additional::new(is_13, *header, self.keys.sequence, length);
        // After that many records the numbers would begin anew, which no peer of ours may do.
        let Some(next) = self.keys.sequence.checked_add(1) else { return Err(forged()) };
        let cipher = self.cipher(protection).ok_or_else(forged)?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let Ok(plain) = cipher.open_in_place(nonce, aad.for_cipher(), sealed) else {
            return Err(forged());
        };
        let (mut kind, mut length) = (header[0], plain.len());
        self.keys.sequence = next;
        if is_13 {
            if length > RECORD_BYTES + 1 {
                return Err(Fault::too_long());
            }
            // Behind the data its type, and behind that any number of zeroes.
            let end = plain.iter().rposition(|byte| *byte != 0);
            let Some((at, found)) = end.and_then(|at| Some((at, *plain.get(at)?))) else {
                let error = PeerMisbehaved::IllegalTlsInnerPlaintext;
                return Err(Fault::new(AlertDescription::UnexpectedMessage, error));
            };
            (kind, length) = (found, at);
        }
        if length > RECORD_BYTES {
            return Err(Fault::too_long());
        }
        Ok((kind, length))
    }

    /// Appends a record of at most [`RECORD_BYTES`] of `data` to `out`. False if the keys cannot
    /// protect it, which are used up then, or never were any.
    #[must_use]
    pub(super) fn seal(
        &mut self,
        protection: &Protection,
        kind: u8,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> bool {
        let is_13 = protection.tls13().is_some();
        let explicit = protection.explicit_nonce_bytes;
        let begin = out.len();
        let body = explicit + data.len() + usize::from(is_13) + TAG_BYTES;
        let Ok(length) = u16::try_from(body) else { return false };
        let [high, low] = length.to_be_bytes();
        let header =
            [if is_13 { APPLICATION_DATA } else { kind }, VERSION[0], VERSION[1], high, low];
        let nonce = self.nonce();
        let aad = Additional::new(is_13, header, self.keys.sequence, data.len());
        let Some(next) = self.keys.sequence.checked_add(1) else { return false };
        let Some(cipher) = self.cipher(protection) else { return false };
        out.reserve(HEADER_BYTES + body);
        out.extend_from_slice(&header);
        out.extend_from_slice(nonce.get(NONCE_LEN - explicit..).unwrap_or_default());
        let plain = out.len();
        out.extend_from_slice(data);
        if is_13 {
            out.push(kind);
        }
        let nonce = Nonce::assume_unique_for_key(nonce);
        let plain = out.get_mut(plain..).unwrap_or_default();
        let Ok(tag) = cipher.seal_in_place_separate_tag(nonce, aad.for_cipher(), plain) else {
            out.truncate(begin);
            return false;
        };
        out.extend_from_slice(tag.as_ref());
        self.keys.sequence = next;
        true
    }
}

/// What is protected along with a record's body, without being part of it (RFC 8446, section 5.2;
/// RFC 5246, section 6.2.3.3).
struct Additional {
    bytes: [u8; 13],
    used: usize,
}

impl Additional {
    fn new(is_13: bool, header: [u8; HEADER_BYTES], sequence: u64, data_bytes: usize) -> Self {
        let [kind, major, minor, high, low] = header;
        if is_13 {
            let mut bytes = [0; 13];
            let written = [APPLICATION_DATA, VERSION[0], VERSION[1], high, low];
            if let Some(begin) = bytes.first_chunk_mut() {
                *begin = written;
            }
            return Self { bytes, used: HEADER_BYTES };
        }
        let [a, b, c, d, e, f, g, h] = sequence.to_be_bytes();
        let [high, low] = (data_bytes as u16).to_be_bytes();
        let bytes = [a, b, c, d, e, f, g, h, kind, major, minor, high, low];
        Self { bytes, used: bytes.len() }
    }

    fn for_cipher(&self) -> Aad<&[u8]> {
        Aad::from(self.bytes.get(..self.used).unwrap_or_default())
    }
}
