//! A certificate chain and its private key, read from PEM and checked.

use super::provider;
use crate::control::pem::{self, NoKey};
use crate::words;
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A chain, leaf first, and the key that belongs to its leaf.
pub struct Pair {
    /// What the workers present.
    pub key: CertifiedKey,
    /// When the leaf is valid.
    pub validity: Validity,
}

/// When a certificate is valid, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From then on.
    pub not_before: SystemTime,
    /// Until then.
    pub not_after: SystemTime,
}

impl Validity {
    /// How long it is valid in all.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    /// How much of that is left; nothing once it has expired.
    #[must_use]
    pub fn left(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }
}

/// What is wrong with a pair, and with which half of it; each says how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The chain is none.
    Chain(String),
    /// The key is none, or belongs to another certificate.
    Key(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Chain(fault) | Self::Key(fault)) = self;
        f.write_str(fault)
    }
}

impl Pair {
    /// Reads the certificates in `chain` and the first private key in `key`, both PEM and possibly
    /// the same text, and checks that they belong together. Dates and names are not judged here:
    /// what has expired yesterday is still better than nothing.
    ///
    /// # Errors
    ///
    /// Whose fault it is: the chain's or the key's.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, Fault> {
        let chain = read_chain(chain).map_err(Fault::Chain)?;
        let validity = match chain.first() {
            Some(leaf) => read_validity(leaf).map_err(Fault::Chain)?,
            None => return Err(Fault::Chain(NO_CERTIFICATE.to_owned())),
        };
        let signer = provider()
            .key_provider
            .load_private_key(read_key(key).map_err(Fault::Key)?)
            .map_err(|_| Fault::Key(UNKNOWN_KEY.to_owned()))?;
        let key = CertifiedKey::new(chain, signer);
        check_match(&key)?;
        Ok(Self { key, validity })
    }

    /// Whether a client that asks for `domain` would take the leaf, dates and issuer aside.
    #[must_use]
    pub fn covers(&self, domain: &str) -> bool {
        let parsed = self.key.cert.first().map(ParsedCertificate::try_from);
        let name = ServerName::try_from(domain);
        matches!((parsed, name), (Some(Ok(leaf)), Ok(name)) if verify_server_name(&leaf, &name).is_ok())
    }
}

const NO_CERTIFICATE: &str =
    "it holds no certificate; put the chain there, leaf first, each as BEGIN CERTIFICATE";
const NO_KEY: &str = "it holds no private key; put the leaf's there, as BEGIN PRIVATE KEY";
const UNKNOWN_KEY: &str = "its private key has an unsupported type; use RSA of 2048 to 4096 bits, ECDSA \
     P-256 or P-384, or Ed25519";
const ENCRYPTED_KEY: &str = "its private key is encrypted; store it without a passphrase, as by \
     `openssl pkey -in FILE -out FILE`";
const OTHER_KEY: &str =
    "its private key does not belong to the certificate; give the one that it was made with";
const LEAF_NOT_FIRST: &str = "its first certificate is not the one of the private key; put the leaf first, then the ones \
     that vouch for it";

fn read_chain(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain = pem::certificates(text)?;
    for (number, certificate) in (1..).zip(&chain) {
        if let Err(error) = ParsedCertificate::try_from(certificate) {
            let why = match &error {
                rustls::Error::InvalidCertificate(why) => words::of_certificate(why),
                error => words::of_tls(error),
            };
            return Err(format!("certificate {number} in it is damaged ({why}); get it anew"));
        }
    }
    Ok(chain)
}

fn read_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    pem::private_key(text).map_err(|why| match why {
        NoKey::Missing => NO_KEY.to_owned(),
        NoKey::Encrypted => ENCRYPTED_KEY.to_owned(),
        NoKey::Damaged(fault) => fault,
    })
}

/// The dates of `certificate`.
///
/// # Errors
///
/// It is damaged.
fn read_validity(certificate: &CertificateDer<'_>) -> Result<Validity, String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| "its certificate is damaged; get it anew".to_owned())?;
    let dates = parsed.validity();
    let at = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    Ok(Validity {
        not_before: at(dates.not_before.timestamp()),
        not_after: at(dates.not_after.timestamp()),
    })
}

fn check_match(pair: &CertifiedKey) -> Result<(), Fault> {
    if pair.keys_match().is_ok() {
        return Ok(());
    }
    let is_of_another = pair.cert.iter().skip(1).any(|certificate| {
        CertifiedKey::new(vec![certificate.clone()], pair.key.clone()).keys_match().is_ok()
    });
    Err(if is_of_another {
        Fault::Chain(LEAF_NOT_FIRST.to_owned())
    } else {
        Fault::Key(OTHER_KEY.to_owned())
    })
}
