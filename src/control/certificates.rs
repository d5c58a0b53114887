//! What the relay presents to TLS clients, and how it speaks TLS (PROTOCOL.md, chapter 7).

mod files;
mod pair;

pub use files::Files;
pub use pair::{Fault, Pair, Validity};

use crate::worker::tls::{self, ACME_TLS};
use arc_swap::ArcSwapOption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{Error, ServerConfig};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;
use tracing::{info, warn};

/// The certificate that the workers present: replaceable at any time, by any thread, while
/// handshakes go on. Connections that are up keep what they have.
pub struct Certificates {
    current: ArcSwapOption<CertifiedKey>,
    /// Of `current`, in seconds since 1970; 0 for none.
    expires_at: AtomicU64,
    failures: AtomicU64,
    /// What a tls-alpn-01 challenge is answered with, while there is one.
    challenge: ArcSwapOption<CertifiedKey>,
    challenges_answered: AtomicU64,
    domain: Option<String>,
    reload: Notify,
}

/// A tls-alpn-01 challenge is answered for as long as this lives.
#[derive(Debug)]
pub struct ChallengeOffer(Arc<Certificates>);

impl Drop for ChallengeOffer {
    fn drop(&mut self) {
        self.0.challenge.store(None);
    }
}

impl Certificates {
    /// None yet: until one is there every handshake fails. With a `domain` only clients that ask
    /// for that name, in any case, are served; without one, all are.
    #[must_use]
    pub fn new(domain: Option<String>) -> Arc<Self> {
        Arc::new(Self {
            current: ArcSwapOption::empty(),
            expires_at: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            challenge: ArcSwapOption::empty(),
            challenges_answered: AtomicU64::new(0),
            domain,
            reload: Notify::new(),
        })
    }

    /// Presents `key` from now on.
    pub fn replace(&self, key: CertifiedKey) {
        self.current.store(Some(Arc::new(key)));
    }

    /// Answers the tls-alpn-01 challenge with `key` from now on (RFC 8737, section 3).
    #[must_use]
    pub(super) fn offer_challenge(self: &Arc<Self>, key: CertifiedKey) -> ChallengeOffer {
        self.challenge.store(Some(Arc::new(key)));
        ChallengeOffer(self.clone())
    }

    /// How many of these challenges were answered since the start.
    #[must_use]
    pub(super) fn challenges_answered(&self) -> u64 {
        self.challenges_answered.load(Ordering::Relaxed)
    }

    /// When what is presented expires, in seconds since 1970, if that is known.
    #[must_use]
    pub fn expires_at(&self) -> Option<u64> {
        Some(self.expires_at.load(Ordering::Relaxed)).filter(|at| *at > 0)
    }

    /// A certificate could not be had, or what was had is no good.
    pub(super) fn count_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// How often that was so.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Asks whoever keeps the certificate to see to it now: files are read again, and a
    /// certificate that is due is ordered without waiting any longer.
    pub fn reload(&self) {
        self.reload.notify_one();
    }

    /// Waits for the next [`Certificates::reload`], or for one that nobody has seen yet.
    pub(super) async fn reload_asked(&self) {
        self.reload.notified().await;
    }

    /// What is presented to a client that asks for `server_name` (RFC 6066, section 3), or to an
    /// ACME server that wants to see a challenge answered.
    fn for_name(&self, server_name: Option<&str>, is_challenge: bool) -> Option<Arc<CertifiedKey>> {
        if let Some(domain) = &self.domain
            && !server_name.is_some_and(|name| name.eq_ignore_ascii_case(domain))
        {
            return None;
        }
        if !is_challenge {
            return self.current.load_full();
        }
        let answer = self.challenge.load_full()?;
        self.challenges_answered.fetch_add(1, Ordering::Relaxed);
        Some(answer)
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A private key is nothing to print.
        f.debug_struct("Certificates").field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_challenge = hello.alpn().is_some_and(|mut names| names.all(|name| name == ACME_TLS));
        self.for_name(hello.server_name(), is_challenge)
    }
}

/// How the relay speaks TLS: 1.2 and 1.3, HTTP/1.1 only (and a word with ACME servers), no early
/// data, and sessions resumed by tickets alone, so that a client costs no memory once it has gone.
///
/// # Errors
///
/// The machine has no random numbers to make the tickets' keys of.
pub fn server_config(certificates: &Arc<Certificates>) -> Result<Arc<ServerConfig>, Error> {
    let resolver: Arc<dyn ResolvesServerCert> = certificates.clone();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"http/1.1".to_vec(), ACME_TLS.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    // Of the suites that both sides trust, the cheapest.
    config.ignore_client_order = true;
    // A client of the relay opens one connection at a time.
    config.send_tls13_tickets = 1;
    tls::give_away(&mut config);
    Ok(Arc::new(config))
}

/// Presents `pair`, which came from `path`, and logs that; a pair that some clients will refuse is
/// presented all the same, and warned of.
pub(super) fn present(certificates: &Certificates, pair: Pair, path: &Path) {
    let (path, now) = (path.display(), SystemTime::now());
    let left = pair.validity.left(now);
    if left.is_zero() {
        warn!(%path, err = "clients will refuse it; renew it", "certificate_expired");
    } else if pair.validity.not_before > now {
        let err = "clients will refuse it until then; is this machine's clock right?";
        warn!(%path, err, "certificate_not_yet_valid");
    }
    if let Some(domain) = &certificates.domain
        && !pair.covers(domain)
    {
        let err = format!("clients of {domain} will refuse it; get one for that name");
        warn!(%path, err, "certificate_of_another_name");
    }
    let expires_at = pair.validity.not_after.duration_since(SystemTime::UNIX_EPOCH);
    certificates.expires_at.store(expires_at.map_or(0, |at| at.as_secs()), Ordering::Relaxed);
    certificates.replace(pair.key);
    info!(%path, duration = %Approximate(left), "certificate_loaded");
}

/// A duration to read at a glance, in its two largest units.
pub(super) struct Approximate(pub(super) Duration);

impl fmt::Display for Approximate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
        match (days, hours, minutes) {
            (0, 0, 0) => write!(f, "{seconds}s"),
            (0, 0, _) => write!(f, "{minutes}m{}s", seconds % 60),
            (0, _, _) => write!(f, "{hours}h{}m", minutes % 60),
            _ => write!(f, "{days}d{}h", hours % 24),
        }
    }
}

/// The cryptography of everything that speaks TLS here.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    // SHA-256 has instructions of its own on most machines, where SHA-384, which comes with AES-256,
    // takes a sixth of the CPU time of a handshake. Every client of TLS 1.3 knows this suite (RFC
    // 8446, section 9.1).
    provider.cipher_suites.sort_by_key(|suite| {
        let name = suite.suite().as_str().unwrap_or_default();
        !name.contains("AES_128_GCM")
    });
    Arc::new(provider)
}
