//! A session as plain data, with which another process goes on.

use super::record::{Keys, MAX_KEY_BYTES, MAX_SECRET_BYTES, Protection};
use super::traffic::Traffic;
use super::{Data, MAX_PARTIAL_BYTES, Session, Stage};
use crate::handover::link::{self, Secret};
use crate::handover::state::Bytes;
use rustls::{ServerConfig, SupportedCipherSuite};
use std::sync::Arc;

/// Why a session cannot go on here.
pub(in crate::worker) type Unusable = &'static str;

const UNKNOWN_SUITE: Unusable = "a TLS session has a cipher suite that this relay does not have";
const BAD_KEYS: Unusable = "the keys of a TLS session do not fit its cipher suite";
const IMPOSSIBLE: Unusable = "a TLS session is as none can be";

impl Session {
    /// All that it is, but what [`Session::partial`] says. None amid its handshake.
    pub(in crate::worker) fn give_out(&self) -> Option<link::Session> {
        match &self.stage {
            Stage::Expecting(_) => Some(link::Session::Expecting),
            Stage::Shaking(_) => None,
            Stage::Open(traffic) => Some(link::Session::Open(traffic.give_out())),
            Stage::Refused => Some(link::Session::Refused),
            Stage::Failed => Some(link::Session::Failed),
        }
    }

    /// Goes on with what another has given out, and bytes that had arrived of its next record.
    ///
    /// # Errors
    ///
    /// It is nothing that a session can be under this configuration.
    pub(in crate::worker) fn take_in(
        given: &link::Session,
        partial: Vec<u8>,
        config: &Arc<ServerConfig>,
    ) -> Result<Self, Unusable> {
        let is_open = matches!(given, link::Session::Open(_));
        if partial.len() > MAX_PARTIAL_BYTES || !is_open && !partial.is_empty() {
            return Err(IMPOSSIBLE);
        }
        let stage = match given {
            link::Session::Expecting => Stage::Expecting(config.clone()),
            link::Session::Open(given) => {
                let suites = &config.crypto_provider().cipher_suites;
                Stage::Open(Box::new(Traffic::take_in(given, suites)?))
            }
            link::Session::Refused => Stage::Refused,
            link::Session::Failed => Stage::Failed,
        };
        Ok(Self { stage, partial })
    }
}

impl Traffic {
    fn give_out(&self) -> link::Traffic {
        let Data { suite, receiving, sending, state } = self.data();
        let lengths = Lengths::of(self.protection());
        link::Traffic {
            suite: suite.into(),
            receiving: receiving.give_out(&lengths),
            sending: sending.give_out(&lengths),
            state,
        }
    }

    fn take_in(given: &link::Traffic, suites: &[SupportedCipherSuite]) -> Result<Self, Unusable> {
        let link::Traffic { suite, receiving, sending, state } = given;
        let suite = suites.iter().find(|known| u16::from(known.suite()) == *suite);
        let suite = suite.ok_or(UNKNOWN_SUITE)?;
        let lengths = Lengths::of(&Protection::of(*suite).ok_or(UNKNOWN_SUITE)?);
        let data = Data {
            suite: suite.suite(),
            receiving: Keys::take_in(receiving, &lengths)?,
            sending: Keys::take_in(sending, &lengths)?,
            state: state.clone(),
        };
        if !data.is_possible() {
            return Err(IMPOSSIBLE);
        }
        Self::revive(&data, suites).ok_or(UNKNOWN_SUITE)
    }
}

/// How long the secrets of a connection are, in bytes.
struct Lengths {
    secret: usize,
    key: usize,
}

impl Lengths {
    fn of(protection: &Protection) -> Self {
        let secret = protection.tls13().map_or(0, |suite| suite.common.hash_provider.output_len());
        Self { secret, key: protection.key_bytes() }
    }
}

impl Keys {
    fn give_out(&self, lengths: &Lengths) -> link::Keys {
        let part = |of: &[u8], length| Secret(Bytes(of.get(..length).unwrap_or_default().to_vec()));
        link::Keys {
            secret: part(&self.secret, lengths.secret),
            key: part(&self.key, lengths.key),
            iv: part(&self.iv, self.iv.len()),
            sequence: self.sequence,
        }
    }

    fn take_in(given: &link::Keys, lengths: &Lengths) -> Result<Self, Unusable> {
        let link::Keys { secret, key, iv, sequence } = given;
        let [secret, key, iv] = [secret, key, iv].map(|Secret(bytes)| bytes.0.as_slice());
        if secret.len() != lengths.secret || key.len() != lengths.key {
            return Err(BAD_KEYS);
        }
        let iv = iv.try_into().map_err(|_| BAD_KEYS)?;
        let mut keys = Self {
            secret: [0; MAX_SECRET_BYTES],
            key: [0; MAX_KEY_BYTES],
            iv,
            sequence: *sequence,
        };
        keys.secret.get_mut(..secret.len()).ok_or(BAD_KEYS)?.copy_from_slice(secret);
        keys.key.get_mut(..key.len()).ok_or(BAD_KEYS)?.copy_from_slice(key);
        Ok(keys)
    }
}
