//! The secrets that the keys of TLS 1.3 are made of (RFC 8446, section 7).
//!
//! When rustls gives away the keys of a connection it keeps the secrets that the next ones are to
//! be made of, in an object that cannot leave the process. A session must be able to, so the
//! secrets are taken where rustls offers them: it tells them to a [`KeyLog`] in the course of the
//! handshake. That is a call on the thread that has rustls make the handshake, which picks them up
//! when rustls is done; nothing is ever logged.

use super::record::{Keys, MAX_SECRET_BYTES};
use rustls::crypto::tls13::OkmBlock;
use rustls::{KeyLog, ServerConfig, Tls13CipherSuite};
use std::cell::RefCell;
use std::sync::Arc;
use zeroize::Zeroize;

/// The secrets of both directions.
pub(super) struct Secrets {
    pub(super) client: [u8; MAX_SECRET_BYTES],
    pub(super) server: [u8; MAX_SECRET_BYTES],
}

impl Drop for Secrets {
    fn drop(&mut self) {
        self.client.zeroize();
        self.server.zeroize();
    }
}

thread_local! {
    static TOLD: RefCell<Option<Box<Secrets>>> = const { RefCell::new(None) };
}

/// Has rustls give away what sessions are made of.
pub fn give_away(config: &mut ServerConfig) {
    config.enable_secret_extraction = true;
    config.key_log = Arc::new(Told);
}

/// What rustls has told on this thread since this was asked last.
pub(super) fn told() -> Option<Box<Secrets>> {
    TOLD.with(RefCell::take)
}

/// Keeps what it is told for [`told`].
#[derive(Debug)]
struct Told;

const OF_CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const OF_SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

impl KeyLog for Told {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        TOLD.with_borrow_mut(|told| {
            let told = told.get_or_insert_with(|| {
                let nothing = [0; MAX_SECRET_BYTES];
                Box::new(Secrets { client: nothing, server: nothing })
            });
            let of = if label == OF_CLIENT { &mut told.client } else { &mut told.server };
            if let Some(of) = of.get_mut(..secret.len()) {
                of.copy_from_slice(secret);
            }
        });
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, OF_CLIENT | OF_SERVER)
    }
}

/// Puts the next generation of keys in place of these (RFC 8446, sections 7.2 and 7.3).
pub(super) fn update(suite: &Tls13CipherSuite, keys: &mut Keys) {
    let mut next = [0; MAX_SECRET_BYTES];
    let length = suite.common.hash_provider.output_len();
    if let Some(next) = next.get_mut(..length) {
        expand(suite, &keys.secret, b"traffic upd", next);
    }
    keys.secret = next;
    next.zeroize();
    derive(suite, keys);
}

/// Makes key and IV of the secret.
pub(super) fn derive(suite: &Tls13CipherSuite, keys: &mut Keys) {
    let length = suite.aead_alg.key_len();
    if let Some(key) = keys.key.get_mut(..length) {
        expand(suite, &keys.secret, b"key", key);
    }
    expand(suite, &keys.secret, b"iv", &mut keys.iv);
    keys.sequence = 0;
}

/// Whether key and IV are made of the secret.
pub(super) fn made(suite: &Tls13CipherSuite, keys: &Keys) -> bool {
    let mut others = keys.clone();
    derive(suite, &mut others);
    others.key == keys.key && others.iv == keys.iv
}

/// HKDF-Expand-Label with an empty context (RFC 8446, section 7.1).
fn expand(suite: &Tls13CipherSuite, secret: &[u8], label: &[u8], into: &mut [u8]) {
    const PREFIX: &[u8] = b"tls13 ";
    let length = suite.common.hash_provider.output_len();
    let secret = OkmBlock::new(secret.get(..length).unwrap_or_default());
    let label_bytes = (PREFIX.len() + label.len()) as u8;
    let info: [&[u8]; 5] =
        [&(into.len() as u16).to_be_bytes(), &[label_bytes], PREFIX, label, &[0]];
    let expanded = suite.hkdf_provider.expander_for_okm(&secret).expand_slice(&info, into);
    debug_assert!(expanded.is_ok(), "no longer than 255 hashes");
}
