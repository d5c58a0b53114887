//! Certificates by ACME (RFC 8555; http-01 and tls-alpn-01): ordered on first start, kept in a
//! folder, renewed by themselves (PROTOCOL.md, chapter 7).

mod autocert;
mod cache;
mod client;
mod order;
mod proof;
mod schedule;

use super::certificates::{Approximate, Certificates, Pair, Validity, present};
use super::challenges::Challenges;
use crate::config::{DEFAULT_ACME_DIRECTORY, Exit};
use cache::Cache;
use order::Failure;
use rustls::RootCertStore;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tracing::{error, info, warn};

/// The longest sleep: the clock that certificates go by may be set, and stands still for nobody
/// while the machine sleeps.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);

/// An ACME server, and what it takes to order from it.
struct Server {
    directory: String,
    domain: String,
    roots: RootCertStore,
    cache: Cache,
    /// What port 80 answers, if it is listened on.
    challenges: Option<Arc<Challenges>>,
    certificates: Arc<Certificates>,
}

impl Server {
    /// The key and the chain in `text`, if they are of use.
    fn usable(&self, text: &[u8]) -> Result<Pair, String> {
        let pair = Pair::from_pem(text, text).map_err(|fault| fault.to_string())?;
        if pair.covers(&self.domain) { Ok(pair) } else { Err("it is for another name".to_owned()) }
    }
}

/// Keeps [`Certificates`] supplied.
pub struct Acme {
    server: Server,
    current: Option<Current>,
    failures: u32,
}

/// The certificate that is presented.
#[derive(Clone, Copy)]
struct Current {
    validity: Validity,
    renew_at: SystemTime,
}

/// From whom to order, and what to keep where.
pub struct Source<'a> {
    /// The URL of the server's directory.
    pub directory: &'a str,
    /// The name to certify.
    pub domain: &'a str,
    /// The folder that keeps account and certificate.
    pub cache: &'a Path,
    /// Authorities to trust for the server's HTTPS, beside the usual ones.
    pub ca: Option<&'a PathBuf>,
    /// Change nothing on disk: nobody is going to serve.
    pub only_look: bool,
}

impl Acme {
    /// Opens the cache, and presents the certificate in it, if there is one that serves. Without
    /// `challenges` nothing listens for http-01.
    ///
    /// # Errors
    ///
    /// What was asked for cannot be, and how to mend it: a folder that is another's, a file of
    /// authorities that is none, a URL that is none.
    pub fn open(
        source: &Source<'_>,
        certificates: Arc<Certificates>,
        challenges: Option<Arc<Challenges>>,
    ) -> Result<Self, Exit> {
        let refuse = |flag: &'static str| move |fault: String| Exit::refusal(&fault).about([flag]);
        client::check_directory(source.directory).map_err(refuse("--acme-directory"))?;
        let roots = client::roots(source.ca.map(PathBuf::as_path)).map_err(refuse("--acme-ca"))?;
        let cache = Cache::open(source.cache, source.directory, source.domain, source.only_look)
            .map_err(refuse("--cert-cache"))?;
        let (directory, domain) = (source.directory.to_owned(), source.domain.to_owned());
        let server = Server { directory, domain, roots, cache, challenges, certificates };
        let mut acme = Self { server, current: None, failures: 0 };
        acme.open_cached();
        Ok(acme)
    }

    /// Presents what lasts longest of what the folder holds and serves: what an order gave, or what
    /// Go's autocert left there, which got it from Let's Encrypt.
    fn open_cached(&mut self) {
        let Server { cache, domain, directory, .. } = &self.server;
        let mut there = vec![(cache.certificate_path().to_owned(), cache.read_certificate())];
        if directory == DEFAULT_ACME_DIRECTORY {
            let of_autocert = |name: String| (cache.foreign_path(&name), cache.read_foreign(&name));
            there.extend(autocert::certificates(domain).map(of_autocert));
        }
        let mut best: Option<(Pair, PathBuf)> = None;
        let mut faults = Vec::new();
        for (path, text) in there {
            match text.map(|text| text.map(|text| self.server.usable(&text))) {
                Ok(None) => {}
                Ok(Some(Ok(pair))) => {
                    let ends = pair.validity.not_after;
                    if best.as_ref().is_none_or(|(best, _)| best.validity.not_after < ends) {
                        best = Some((pair, path));
                    }
                }
                Ok(Some(Err(fault))) => faults.push((path, fault)),
                Err(error) => faults.push((path, error.to_string())),
            }
        }
        for (path, fault) in &faults {
            let path = path.display();
            if best.is_some() {
                warn!(%path, err = format!("{fault}; another is used"), "certificate_unusable");
            } else {
                let err = format!("{fault}; TLS handshakes fail until a new one is there");
                error!(%path, err, "certificate_unusable");
            }
        }
        match best {
            Some((pair, path)) => self.take(pair, &path),
            None if faults.is_empty() => {
                let path = self.server.cache.certificate_path().display();
                let err = "TLS handshakes fail until the first certificate is there";
                warn!(%path, err, "certificate_missing");
            }
            None => {}
        }
    }

    /// Presents `pair`, which is kept at `path`, from now on.
    fn take(&mut self, pair: Pair, path: &Path) {
        let validity = pair.validity;
        let renew_at = schedule::renewal(validity, rand::random());
        self.current = Some(Current { validity, renew_at });
        present(&self.server.certificates, pair, path);
    }

    /// Orders and renews until the process ends.
    pub async fn keep(mut self) {
        loop {
            let due = self.due();
            if due > SystemTime::now() {
                let wait = due.duration_since(SystemTime::now()).unwrap_or_default();
                info!(duration = %Approximate(wait), "certificate_renewal_planned");
            }
            self.sleep_until(due).await;
            let wait = self.order().await;
            self.sleep_until(SystemTime::now() + wait).await;
        }
    }

    /// When the next certificate is to be ordered.
    fn due(&self) -> SystemTime {
        self.current.map_or(SystemTime::UNIX_EPOCH, |current| current.renew_at)
    }

    /// Orders a certificate now; how long to wait before the next is thought of.
    async fn order(&mut self) -> Duration {
        info!(path = self.server.directory, "certificate_ordering");
        let failure = match order::order(&self.server, self.failures).await {
            Ok(pair) => {
                let path = self.server.cache.certificate_path().to_owned();
                self.take(pair, &path);
                info!(path = self.server.directory, "certificate_issued");
                if self.due() > SystemTime::now() {
                    self.failures = 0;
                    return Duration::ZERO;
                }
                // To order another at once, again and again, would only anger the server.
                let fault = "it is due for renewal already: is this machine's clock right?";
                Failure { fault: fault.to_owned(), retry_after: None }
            }
            Err(failure) => failure,
        };
        self.failures = self.failures.saturating_add(1);
        self.server.certificates.count_failure();
        let wait = schedule::wait(self.failures, failure.retry_after, rand::random());
        self.report(&failure.fault, wait);
        wait
    }

    /// Says what went wrong: as an error once time is short.
    fn report(&self, fault: &str, wait: Duration) {
        let now = SystemTime::now();
        let has_time = |c: Current| c.validity.left(now) > c.validity.lifetime() / 6;
        let (path, duration) = (&self.server.directory, Approximate(wait));
        if self.current.is_some_and(has_time) {
            warn!(path, err = fault, %duration, "certificate_not_issued");
        } else {
            error!(path, err = fault, %duration, "certificate_not_issued");
        }
    }

    /// Sleeps until `wake`, or until somebody asks for a certificate that is due.
    async fn sleep_until(&self, wake: SystemTime) {
        while let Ok(left) = wake.duration_since(SystemTime::now())
            && !left.is_zero()
        {
            tokio::select! {
                () = tokio::time::sleep(left.min(LONGEST_SLEEP)) => {}
                () = self.server.certificates.reload_asked() => {
                    if self.due() <= SystemTime::now() {
                        return;
                    }
                }
            }
        }
    }
}
