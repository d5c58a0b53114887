//! The certificate that the flags ask for: read, served, watched and renewed.

use super::acme::{Acme, Source};
use super::certificates::{Certificates, Files, server_config};
use super::challenges::{self, Challenges};
use super::failure;
use super::listening::{self, HTTP_LISTEN};
use super::upgrade::lent::Lent;
use crate::config::{CertificateSource, Exit, Https};
use crate::words;
use rustls::ServerConfig;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tracing::info;

/// Provides the certificate and keeps it valid.
pub struct CertificateManager {
    certificates: Arc<Certificates>,
    config: Arc<ServerConfig>,
    source: Managed,
}

enum Managed {
    Files(Files),
    Acme { acme: Acme, challenges: Arc<Challenges>, http_listen: Option<SocketAddr> },
}

impl CertificateManager {
    /// Reads and checks what is on disk. It neither listens nor connects yet. With `only_look` it
    /// leaves the disk as it is.
    ///
    /// # Errors
    ///
    /// A refusal: what cannot be served, and how to mend it.
    pub fn open(https: &Https, only_look: bool) -> Result<Self, Exit> {
        let certificates = Certificates::new(https.domain.clone());
        let config = server_config(&certificates).map_err(|error| {
            Exit::refusal(&format!("TLS cannot be served: {}", words::of_tls(&error)))
        })?;
        let source = match &https.certificate {
            CertificateSource::Files { cert, key } => {
                Managed::Files(Files::open(certificates.clone(), cert, key)?)
            }
            CertificateSource::Acme { cache, http_listen, directory, ca } => {
                let domain = https.domain.as_deref().unwrap_or_default();
                let source = Source { directory, domain, cache, ca: ca.as_ref(), only_look };
                let challenges = Arc::new(Challenges::default());
                let reachable = http_listen.map(|_| challenges.clone());
                let acme = Acme::open(&source, certificates.clone(), reachable)?;
                Managed::Acme { acme, challenges, http_listen: *http_listen }
            }
        };
        Ok(Self { certificates, config, source })
    }

    /// What the workers need to serve TLS.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    /// The certificates, for SIGHUP to reload.
    #[must_use]
    pub fn certificates(&self) -> Arc<Certificates> {
        self.certificates.clone()
    }

    /// The listener for challenges, if there is to be one: that of a predecessor, or one of its own. A
    /// successor is to have it in `lends`.
    ///
    /// # Errors
    ///
    /// The address of `--http-listen`, which cannot be bound.
    pub(super) fn listen(
        &self,
        lent: &mut Lent,
        lends: &mut Lent,
    ) -> Result<Option<TcpListener>, Exit> {
        let Managed::Acme { http_listen: Some(address), .. } = self.source else { return Ok(None) };
        let inherited = lent.take(HTTP_LISTEN, address);
        let listener = listening::listen_by_tokio(HTTP_LISTEN, address, inherited)?;
        let bound = listener.local_addr().unwrap_or(address);
        info!(remote = %bound, "listening_for_challenges");
        lends.add(HTTP_LISTEN, address, &listener).map_err(|error| failure(error.to_string()))?;
        Ok(Some(listener))
    }

    /// Answers challenges on `listener`, watches files, orders and renews, from now on and in tasks of
    /// their own. Needs a tokio runtime.
    pub(super) fn start(self, listener: Option<TcpListener>) {
        match self.source {
            Managed::Files(files) => {
                tokio::spawn(files.watch());
            }
            Managed::Acme { acme, challenges, .. } => {
                if let Some(listener) = listener {
                    tokio::spawn(challenges::serve(listener, challenges));
                }
                tokio::spawn(acme.keep());
            }
        }
    }
}
