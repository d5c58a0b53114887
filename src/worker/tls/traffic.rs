//! A connection after its handshake: what its records say, and what is said in answer.
//!
//! All that a connection is lies in plain data: keys, sequence numbers, a few counts, and (in
//! [`super::Session`]) what arrived of a record that is not whole. Ciphers are made of the keys
//! when they are needed, and may be forgotten at any time.
//!
//! Invariants:
//! - A record is handled when it is whole, once, in its turn. What breaks the rules is a fault: an
//!   alert, and the end of both directions.
//! - What a peer may make us do without sending data is bounded between two records of data, or for
//!   the whole connection: empty records, warnings, key updates, renegotiations.
//! - No key protects more records than its cipher is good for. Before that it is updated (TLS 1.3)
//!   or the connection ends orderly (TLS 1.2); the last record of a key is kept for that.

use super::record::{
    ALERT, APPLICATION_DATA, Fault, HANDSHAKE, Half, Keys, Protection, RECORD_BYTES,
};
use super::secrets::{self, Secrets};
pub use crate::handover::link::TrafficState as State;
use rustls::{
    AlertDescription, CipherSuite, Error, ExtractedSecrets, InvalidMessage, PeerMisbehaved,
    SupportedCipherSuite,
};
use std::fmt;
use std::ops::Range;

/// Empty records without data in between, which some peers send as a defence that TLS 1.0 needed.
const MAX_EMPTY: u8 = 32;
/// Warnings of a connection, as BoringSSL takes them.
const MAX_WARNINGS: u8 = 4;
/// Key updates without data in between, as BoringSSL takes them.
const MAX_UPDATES: u8 = 32;
/// What it takes to open a record with the next keys, which are still to be made: as much as so many
/// records.
const UPDATE_WORK: u32 = 32;
/// Renegotiations that are declined, before they end the connection.
const MAX_RENEGOTIATIONS: u8 = 1;
/// Records of a key that are kept for what is to be said before an end, where it cannot be updated:
/// a few seconds of a busy connection.
const FAREWELL_RECORDS: u64 = 1 << 16;
/// The longest ClientHello that is skipped: as long as rustls would read one.
const MAX_HELLO_BYTES: usize = 0xffff;

// Types of handshake messages (RFC 8446, section 4).
const CLIENT_HELLO: u8 = 1;
const KEY_UPDATE: u8 = 24;
/// A KeyUpdate that asks for none in return (RFC 8446, section 4.6.3).
const UPDATE_NOT_REQUESTED: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 0];

const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// What bytes have come to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Opened {
    /// Bytes of whole records.
    pub(super) used: usize,
    /// Where the data of all of them lies, in one piece.
    pub(super) data: Range<usize>,
    /// The peer has said that it will send nothing more.
    pub(super) closed: bool,
    /// The connection cannot go on.
    pub(super) fault: Option<Fault>,
    /// What that took: as much as so many messages.
    pub(super) work: u32,
    /// What is behind `used` was not looked at, because it would have been too much.
    pub(super) is_left: bool,
}

/// All of a connection after its handshake but the ciphers: plain data.
#[derive(Clone)]
pub struct Data {
    /// The cipher suite, which says the version too.
    pub suite: CipherSuite,
    /// Of what the peer sends.
    pub receiving: Keys,
    /// Of what it is sent.
    pub sending: Keys,
    /// Everything else.
    pub state: State,
}

impl Data {
    /// Whether a connection can have come to this.
    pub(super) fn is_possible(&self) -> bool {
        let State { empty, warnings, updates, renegotiations, message, message_bytes, .. } =
            &self.state;
        *empty <= MAX_EMPTY
            && *warnings <= MAX_WARNINGS
            && *updates <= MAX_UPDATES
            && *renegotiations <= MAX_RENEGOTIATIONS
            && usize::from(*message_bytes) < message.len()
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { suite, state, .. } = self;
        f.debug_struct("Data").field("suite", suite).field("state", state).finish_non_exhaustive()
    }
}

/// A connection after its handshake.
pub(super) struct Traffic {
    protection: Protection,
    receiving: Half,
    sending: Half,
    state: State,
    max_records: u64,
}

impl Traffic {
    /// Goes on where a handshake has ended. TLS 1.3 needs its `secrets`.
    ///
    /// # Errors
    ///
    /// None for a suite of the process's provider.
    pub(super) fn new(
        suite: SupportedCipherSuite,
        extracted: ExtractedSecrets,
        secrets: Option<&Secrets>,
    ) -> Result<Self, Error> {
        let unusable = || Error::General("a cipher suite that the relay cannot use".to_owned());
        let ExtractedSecrets { rx, tx } = extracted;
        let mut receiving = Keys::new(rx).ok_or_else(unusable)?;
        let mut sending = Keys::new(tx).ok_or_else(unusable)?;
        if let Some(suite) = suite.tls13() {
            let secrets = secrets.ok_or_else(unusable)?;
            receiving.secret = secrets.client;
            sending.secret = secrets.server;
            debug_assert!(secrets::made(suite, &receiving), "keys of other secrets");
            debug_assert!(secrets::made(suite, &sending), "keys of other secrets");
        }
        Self::from_parts(suite, receiving, sending, State::default()).ok_or_else(unusable)
    }

    fn from_parts(
        suite: SupportedCipherSuite,
        receiving: Keys,
        sending: Keys,
        state: State,
    ) -> Option<Self> {
        let protection = Protection::of(suite)?;
        Some(Self {
            protection,
            receiving: Half::new(receiving),
            sending: Half::new(sending),
            state,
            max_records: protection.max_records(),
        })
    }

    /// Goes on where another has become plain data. None if the process has no such suite.
    pub(super) fn revive(data: &Data, suites: &[SupportedCipherSuite]) -> Option<Self> {
        let suite = suites.iter().find(|suite| suite.suite() == data.suite)?;
        let Data { receiving, sending, state, .. } = data;
        Self::from_parts(*suite, receiving.clone(), sending.clone(), state.clone())
    }

    /// What it is.
    pub(super) fn data(&self) -> Data {
        Data {
            suite: self.protection.suite.suite(),
            receiving: self.receiving.keys.clone(),
            sending: self.sending.keys.clone(),
            state: self.state.clone(),
        }
    }

    /// How its records are protected.
    pub(super) fn protection(&self) -> &Protection {
        &self.protection
    }

    /// Whether it holds ciphers.
    pub(super) fn is_warm(&self) -> bool {
        self.receiving.is_warm() || self.sending.is_warm()
    }

    /// Forgets its ciphers.
    pub(super) fn cool(&mut self) {
        self.receiving.cool();
        self.sending.cool();
    }

    /// How long the record is that begins with these bytes; none if they are too few to say, or
    /// would be a fault.
    pub(super) fn record_bytes(&self, begin: &[u8]) -> Option<usize> {
        self.protection.record_bytes(begin).ok().flatten()
    }

    /// Opens the whole records at the beginning of `bytes`, and moves their data together. Begins none
    /// when that has taken `most_work`. What there is to say at once is appended to `out`.
    pub(super) fn open(&mut self, bytes: &mut [u8], out: &mut Vec<u8>, most_work: u32) -> Opened {
        let mut opened = Opened::default();
        if self.state.peer_closed {
            // It is nobody's (RFC 8446, section 6.1).
            opened.used = bytes.len();
            return opened;
        }
        let offset = self.protection.data_offset();
        while !opened.closed {
            if opened.work >= most_work && opened.used < bytes.len() {
                opened.is_left = true;
                break;
            }
            match self.open_one(bytes, opened.used, out) {
                Ok(None) => break,
                Ok(Some(One { end, data })) => {
                    let begin = opened.used + offset;
                    opened.used = end;
                    opened.work += if self.receiving.is_warm() { 1 } else { UPDATE_WORK };
                    if opened.data.is_empty() {
                        opened.data = begin..begin + data;
                    } else if data > 0 {
                        bytes.copy_within(begin..begin + data, opened.data.end);
                        opened.data.end += data;
                    }
                    opened.closed = self.state.peer_closed;
                }
                Err(fault) => {
                    if let Some(alert) = fault.alert {
                        self.say(FATAL, alert, out);
                    }
                    self.state.peer_closed = true;
                    self.state.closed = true;
                    opened.fault = Some(fault);
                    break;
                }
            }
        }
        opened
    }

    fn open_one(
        &mut self,
        bytes: &mut [u8],
        at: usize,
        out: &mut Vec<u8>,
    ) -> Result<Option<One>, Fault> {
        let rest = bytes.get_mut(at..).unwrap_or_default();
        let Some(length) = self.protection.record_bytes(rest)? else { return Ok(None) };
        let Some(record) = rest.get_mut(..length) else { return Ok(None) };
        let (kind, data) = self.receiving.open(&self.protection, record)?;
        let mut one = One { end: at + length, data };
        if data == 0 {
            self.state.empty += 1;
            if self.state.empty > MAX_EMPTY {
                return Err(Fault::flood(PeerMisbehaved::TooManyEmptyFragments));
            }
        }
        if kind != HANDSHAKE && self.state.message_bytes > 0 {
            let error = PeerMisbehaved::MessageInterleavedWithHandshakeMessage;
            return Err(Fault::new(AlertDescription::UnexpectedMessage, error));
        }
        if kind == APPLICATION_DATA {
            if data > 0 {
                (self.state.empty, self.state.updates) = (0, 0);
            }
            return Ok(Some(one));
        }
        one.data = 0;
        let offset = self.protection.data_offset();
        let content = record.get(offset..offset + data).unwrap_or_default();
        match kind {
            ALERT => self.on_alert(content)?,
            HANDSHAKE if content.is_empty() => return Err(Fault::unexpected(kind)),
            HANDSHAKE if self.protection.tls13().is_some() => self.on_handshake_13(content)?,
            HANDSHAKE => self.on_handshake_12(content, out)?,
            _ => return Err(Fault::unexpected(kind)),
        }
        Ok(Some(one))
    }

    /// RFC 8446, section 6; RFC 5246, section 7.2.
    fn on_alert(&mut self, content: &[u8]) -> Result<(), Fault> {
        let &[level, description] = content else {
            return Err(Fault::undecodable(InvalidMessage::TrailingData("alert")));
        };
        let description = AlertDescription::from(description);
        let error = Error::AlertReceived(description);
        match (level, description) {
            (WARNING | FATAL, AlertDescription::CloseNotify) => self.state.peer_closed = true,
            (WARNING, description) => {
                self.state.warnings += 1;
                if self.state.warnings > MAX_WARNINGS {
                    return Err(Fault::flood(PeerMisbehaved::TooManyWarningAlertsReceived));
                }
                // There are no others in TLS 1.3.
                let is_known = description == AlertDescription::UserCanceled;
                if self.protection.tls13().is_some() && !is_known {
                    return Err(Fault::new(AlertDescription::DecodeError, error));
                }
            }
            (FATAL, _) => return Err(Fault { alert: None, error }),
            _ => return Err(Fault::new(AlertDescription::IllegalParameter, error)),
        }
        Ok(())
    }

    /// The one message that a client may send is a KeyUpdate, which ends its record (RFC 8446,
    /// sections 4.6.3 and 5.1).
    fn on_handshake_13(&mut self, content: &[u8]) -> Result<(), Fault> {
        let State { message, message_bytes, .. } = &mut self.state;
        for byte in content {
            let at = usize::from(*message_bytes);
            let is_right = match at {
                0 => *byte == KEY_UPDATE,
                1 | 2 => *byte == 0,
                3 => *byte == 1,
                _ => true,
            };
            if !is_right {
                return Err(match at {
                    0 => Fault::unexpected(HANDSHAKE),
                    _ => Fault::undecodable(InvalidMessage::TrailingData("KeyUpdate")),
                });
            }
            let Some(slot) = message.get_mut(at) else {
                let error = PeerMisbehaved::KeyEpochWithPendingFragment;
                return Err(Fault::new(AlertDescription::UnexpectedMessage, error));
            };
            *slot = *byte;
            *message_bytes += 1;
        }
        if usize::from(*message_bytes) < message.len() {
            return Ok(());
        }
        *message_bytes = 0;
        let [.., is_requested] = *message;
        self.state.updates += 1;
        if self.state.updates > MAX_UPDATES {
            return Err(Fault::flood(PeerMisbehaved::TooManyKeyUpdateRequests));
        }
        match is_requested {
            0 => {}
            1 => self.state.owes_update = true,
            _ => {
                let error = InvalidMessage::InvalidKeyUpdate;
                return Err(Fault::new(AlertDescription::IllegalParameter, error));
            }
        }
        if let Some(suite) = self.protection.tls13() {
            self.receiving.update(suite);
        }
        Ok(())
    }

    /// A ClientHello asks for a renegotiation, which is declined (RFC 5746, section 4.5). There is
    /// no other message that a client may begin with.
    fn on_handshake_12(&mut self, mut content: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        const HEAD_BYTES: u8 = 4;
        while let Some((byte, rest)) = content.split_first() {
            let state = &mut self.state;
            if state.message_bytes < HEAD_BYTES {
                if state.message_bytes == 0 && *byte != CLIENT_HELLO {
                    return Err(Fault::unexpected(HANDSHAKE));
                }
                if let Some(slot) = state.message.get_mut(usize::from(state.message_bytes)) {
                    *slot = *byte;
                }
                state.message_bytes += 1;
                content = rest;
                if state.message_bytes < HEAD_BYTES {
                    continue;
                }
                let [_, high, middle, low, _] = state.message;
                let length = u32::from_be_bytes([0, high, middle, low]);
                let Ok(length) = u16::try_from(length) else {
                    return Err(Fault::undecodable(InvalidMessage::HandshakePayloadTooLarge));
                };
                debug_assert!(usize::from(length) <= MAX_HELLO_BYTES);
                state.skip = length;
            }
            let skipped = content.len().min(usize::from(state.skip));
            state.skip -= skipped as u16;
            content = content.get(skipped..).unwrap_or_default();
            if state.skip > 0 {
                return Ok(());
            }
            state.message_bytes = 0;
            state.renegotiations += 1;
            if state.renegotiations > MAX_RENEGOTIATIONS {
                return Err(Fault::flood(PeerMisbehaved::TooManyRenegotiationRequests));
            }
            self.say(WARNING, AlertDescription::NoRenegotiation, out);
        }
        Ok(())
    }

    /// Appends an alert to `out`.
    fn say(&mut self, level: u8, alert: AlertDescription, out: &mut Vec<u8>) -> bool {
        let alert = [level, alert.into()];
        !self.state.closed && self.sending.seal(&self.protection, ALERT, &alert, out)
    }

    /// Appends `data` to `out`, in as few records as it fits in. False if nothing more can be sent,
    /// and then the end of the session may be among the output.
    pub(super) fn seal(&mut self, data: &[u8], out: &mut Vec<u8>) -> bool {
        if self.state.closed {
            return false;
        }
        if self.state.owes_update {
            self.update(out);
        }
        for data in data.chunks(RECORD_BYTES) {
            // One is kept for what has to be said before the end of the key.
            if self.sending.keys.sequence >= self.max_records.saturating_sub(1) && !self.update(out)
            {
                self.close(out);
                return false;
            }
            if !self.sending.seal(&self.protection, APPLICATION_DATA, data, out) {
                return false;
            }
        }
        true
    }

    /// Whether the keys for what is sent, which cannot be updated, have few records left.
    pub(super) fn is_used_up(&self) -> bool {
        let limit = self.max_records.saturating_sub(FAREWELL_RECORDS);
        self.protection.tls13().is_none() && self.sending.keys.sequence >= limit
    }

    /// Takes the next keys for what is sent, and tells the peer. False in TLS 1.2, which cannot.
    fn update(&mut self, out: &mut Vec<u8>) -> bool {
        self.state.owes_update = false;
        let Some(suite) = self.protection.tls13() else { return false };
        if !self.sending.seal(&self.protection, HANDSHAKE, &UPDATE_NOT_REQUESTED, out) {
            return false;
        }
        self.sending.update(suite);
        true
    }

    /// Appends the alert with which an orderly session ends. False if it has ended.
    pub(super) fn close(&mut self, out: &mut Vec<u8>) -> bool {
        let said = self.say(WARNING, AlertDescription::CloseNotify, out);
        self.state.closed = true;
        said
    }
}

/// A record that was opened.
struct One {
    /// Where it ends.
    end: usize,
    /// How much data it has.
    data: usize,
}
