//! The certificate of a relay that this tool starts: self-signed, for this run alone.

use crate::Outcome;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// The name that it is for.
pub(crate) const NAME: &str = "localhost";

/// A certificate and its key (ECDSA, P-256), in files of a folder that goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Certificate(TempDir);

impl Certificate {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// When the temporary folder cannot be written.
    pub(crate) fn make() -> Outcome<Self> {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([NAME.to_owned()])?;
        // Only we can look into such a folder.
        let ours_alone = std::fs::Permissions::from_mode(0o700);
        let mut folder = tempfile::Builder::new();
        let own = Self(folder.prefix("loadtest-").permissions(ours_alone).tempdir()?);
        std::fs::write(own.cert_file(), cert.pem())?;
        std::fs::write(own.key_file(), signing_key.serialize_pem())?;
        Ok(own)
    }

    /// The files of the certificate and of its key.
    pub(crate) fn files(&self) -> (PathBuf, PathBuf) {
        (self.cert_file(), self.key_file())
    }

    pub(crate) fn cert_file(&self) -> PathBuf {
        self.0.path().join("cert.pem")
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.0.path().join("key.pem")
    }
}

/// What a server presents: TLS 1.2 and 1.3, http/1.1, and tickets to resume sessions with.
///
/// # Errors
///
/// When a file is not what it should be; the error names it.
pub(crate) fn server_config(cert: &Path, key: &Path) -> Outcome<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .map_err(|error| format!("{}: {error}", cert.display()))?;
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{}: {error}", key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, private)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ticketer = rustls::crypto::ring::Ticketer::new()?;
    Ok(Arc::new(config))
}

#[cfg(test)]
impl Certificate {
    pub(crate) fn server_config(&self) -> Outcome<Arc<ServerConfig>> {
        server_config(&self.cert_file(), &self.key_file())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_ours_alone_and_go_with_it() {
        let certificate = Certificate::make().unwrap();
        let folder = certificate.cert_file().parent().unwrap().to_owned();
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        drop(certificate);
        assert!(!folder.exists());
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let certificate = Certificate::make().unwrap();
        let error = server_config(&certificate.cert_file(), Path::new("/no/key")).unwrap_err();
        assert!(error.to_string().contains("/no/key"), "{error}");
    }
}
