//! TLS of the clients: whom they trust, what they offer, what was agreed with the relay.
//!
//! - [`certificate`]: the certificate of a relay that this tool starts
//! - [`sessions`]: what lets a peer that comes again resume its session

pub(crate) mod certificate;
mod sessions;

use crate::wire::Tag;
use rustls::client::{ClientConnection, Resumption};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use serde::{Deserialize, Serialize};
use sessions::Sessions;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

/// A version of TLS that may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub(crate) enum Version {
    #[value(name = "1.2")]
    Tls12,
    #[value(name = "1.3")]
    Tls13,
}

/// How a relay that speaks TLS is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trust {
    /// The name that its certificate must be for.
    pub(crate) name: String,
    /// The certificates that are trusted, as PEM; the machine's if there is no file.
    pub(crate) ca: Option<PathBuf>,
}

/// What clients offer to a relay that speaks TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Offer {
    /// The only version; both if `None`.
    pub(crate) version: Option<Version>,
    /// Whether peers that come again offer the session that they had.
    pub(crate) resume: bool,
}

/// What a handshake agreed upon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Agreed {
    pub(crate) version: String,
    pub(crate) cipher_suite: String,
    pub(crate) key_exchange: String,
    /// The protocol inside (ALPN, RFC 7301), if the relay named one.
    pub(crate) alpn: Option<String>,
}

/// The handshakes that were finished, each against the relay's certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Handshakes {
    pub(crate) full: u64,
    pub(crate) resumed: u64,
    /// Everything that was ever agreed upon, once.
    pub(crate) agreed: Vec<Agreed>,
}

impl Handshakes {
    /// Takes note of a connection whose handshake is done.
    pub(crate) fn count(&mut self, connection: &ClientConnection) {
        match connection.handshake_kind() {
            Some(HandshakeKind::Resumed) => self.resumed += 1,
            _ => self.full += 1,
        }
        let agreed = Agreed::of(connection);
        if !self.agreed.contains(&agreed) {
            self.agreed.push(agreed);
        }
    }

    /// Those since then.
    pub(crate) fn since(self, then: &Self) -> Self {
        let (full, resumed) = (self.full - then.full, self.resumed - then.resumed);
        Self { full, resumed, ..self }
    }

    /// Both together.
    pub(crate) fn and(mut self, other: Self) -> Self {
        let new = other.agreed.into_iter().filter(|agreed| !self.agreed.contains(agreed));
        let new: Vec<_> = new.collect();
        self.agreed.extend(new);
        Self { full: self.full + other.full, resumed: self.resumed + other.resumed, ..self }
    }
}

impl Agreed {
    fn of(connection: &ClientConnection) -> Self {
        let or_none = |name: Option<String>| name.unwrap_or_else(|| "none".into());
        let alpn = connection.alpn_protocol();
        let key_exchange = connection.negotiated_key_exchange_group();
        let suite = connection.negotiated_cipher_suite();
        Self {
            version: or_none(
                connection.protocol_version().map(|v| format!("{v:?}").replace('_', ".")),
            ),
            cipher_suite: or_none(suite.map(|suite| format!("{:?}", suite.suite()))),
            key_exchange: or_none(key_exchange.map(|group| format!("{:?}", group.name()))),
            alpn: alpn.map(|name| String::from_utf8_lossy(name).into_owned()),
        }
    }
}

/// Begins the TLS of this process's connections.
#[derive(Debug)]
pub(crate) struct Dialler {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    /// Where sessions are resumed, each peer has its own.
    of_peers: Option<HashMap<Tag, Arc<ClientConfig>>>,
}

impl Dialler {
    /// Clients that trust so, and offer this.
    ///
    /// # Errors
    ///
    /// When there is nobody to trust, or the name is none.
    pub(crate) fn new(trust: &Trust, offer: Offer) -> Result<Self, String> {
        let name = ServerName::try_from(trust.name.clone()).map_err(|_| {
            format!("`{}` is no name that a certificate could be for; --server-name", trust.name)
        })?;
        let config = client_config(roots(trust)?, offer).map_err(|error| error.to_string())?;
        Ok(Self { config: Arc::new(config), name, of_peers: offer.resume.then(HashMap::new) })
    }

    /// What each connection begins with, and the name that it expects.
    pub(crate) fn parts(&self) -> (Arc<ClientConfig>, ServerName<'static>) {
        (Arc::clone(&self.config), self.name.clone())
    }

    /// The TLS of one connection of this peer.
    ///
    /// # Errors
    ///
    /// None that anybody but this tool is to blame for.
    pub(crate) fn begin(&mut self, peer: Tag) -> Result<ClientConnection, rustls::Error> {
        let config = match &mut self.of_peers {
            None => &self.config,
            Some(peers) => peers.entry(peer).or_insert_with(|| {
                let resumption = Resumption::store(Arc::new(Sessions::default()));
                let mut config = ClientConfig::clone(&self.config);
                config.resumption = resumption;
                Arc::new(config)
            }),
        };
        let mut connection = ClientConnection::new(Arc::clone(config), self.name.clone())?;
        // What may wait is the load's own business.
        connection.set_buffer_limit(None);
        Ok(connection)
    }
}

fn client_config(roots: RootCertStore, offer: Offer) -> Result<ClientConfig, rustls::Error> {
    let versions: &[&SupportedProtocolVersion] = match offer.version {
        None => rustls::ALL_VERSIONS,
        Some(Version::Tls12) => &[&rustls::version::TLS12],
        Some(Version::Tls13) => &[&rustls::version::TLS13],
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Whom clients trust.
fn roots(trust: &Trust) -> Result<RootCertStore, String> {
    let certificates: Vec<CertificateDer<'_>> = match &trust.ca {
        Some(file) => CertificateDer::pem_file_iter(file)
            .and_then(Iterator::collect)
            .map_err(|error| format!("--ca {}: {error}", file.display()))?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates);
    match (added, &trust.ca) {
        (1.., _) => Ok(roots),
        (0, Some(file)) => Err(format!("--ca {}: there is no certificate in it", file.display())),
        (0, None) => Err("this machine trusts nobody; name the relay's CA with --ca FILE".into()),
    }
}

/// What an error of TLS says about the relay.
pub(crate) fn explain(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(why) => format!(
            "its certificate is not to be trusted ({why:?}); --ca FILE says whom to trust, and \
             --server-name NAME whom to expect"
        ),
        rustls::Error::InvalidMessage(_) => format!("TLS: {error} (does it speak TLS at all?)"),
        rustls::Error::AlertReceived(alert) => format!("TLS alert {alert:?}"),
        other => format!("TLS: {other}"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::certificate::Certificate;
    use super::*;
    use rustls::server::ServerConnection;

    /// Shakes hands with a server in memory; what was agreed, and that connection's kind counted.
    fn shake(
        dialler: &mut Dialler,
        server: &Arc<rustls::ServerConfig>,
    ) -> Result<Handshakes, String> {
        let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
        let mut client = dialler.begin(Tag::Phone(1)).unwrap();
        for _ in 0..5 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut rest = &*wire;
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                server.process_new_packets().map_err(|error| error.to_string())?;
            }
            wire.clear();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut rest = &*wire;
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets().map_err(|error| explain(&error))?;
            }
        }
        assert!(!client.is_handshaking());
        let mut handshakes = Handshakes::default();
        handshakes.count(&client);
        Ok(handshakes)
    }

    fn trust(certificate: &Certificate) -> Trust {
        Trust { name: certificate::NAME.into(), ca: Some(certificate.cert_file()) }
    }

    #[test]
    fn a_handshake_says_what_was_agreed() {
        let certificate = Certificate::make().unwrap();
        let server = certificate.server_config().unwrap();
        for (version, name) in [(Version::Tls12, "TLSv1.2"), (Version::Tls13, "TLSv1.3")] {
            let offer = Offer { version: Some(version), resume: false };
            let mut dialler = Dialler::new(&trust(&certificate), offer).unwrap();
            let first = shake(&mut dialler, &server).unwrap();
            let again = shake(&mut dialler, &server).unwrap();
            let both = first.and(again);
            assert_eq!((both.full, both.resumed), (2, 0));
            assert_eq!(both.agreed.len(), 1);
            let agreed = &both.agreed[0];
            assert_eq!((agreed.version.as_str(), agreed.alpn.as_deref()), (name, Some("http/1.1")));
        }
    }

    #[test]
    fn a_peer_that_comes_again_resumes_its_own_session() {
        let certificate = Certificate::make().unwrap();
        let server = certificate.server_config().unwrap();
        for version in [Version::Tls12, Version::Tls13] {
            let offer = Offer { version: Some(version), resume: true };
            let mut dialler = Dialler::new(&trust(&certificate), offer).unwrap();
            let kinds = |handshakes: Handshakes| (handshakes.full, handshakes.resumed);
            assert_eq!(kinds(shake(&mut dialler, &server).unwrap()), (1, 0));
            assert_eq!(kinds(shake(&mut dialler, &server).unwrap()), (0, 1));
            assert_eq!(kinds(shake(&mut dialler, &server).unwrap()), (0, 1));
            // Another peer has no part in that.
            dialler.of_peers.as_mut().unwrap().clear();
            assert_eq!(kinds(shake(&mut dialler, &server).unwrap()), (1, 0));
        }
    }

    #[test]
    fn who_is_not_trusted_is_refused_and_the_flags_are_named() {
        let (own, other) = (Certificate::make().unwrap(), Certificate::make().unwrap());
        let server = own.server_config().unwrap();
        let stranger = Trust { name: "relay.example".into(), ..trust(&own) };
        for trust in [trust(&other), stranger] {
            let mut dialler = Dialler::new(&trust, Offer::default()).unwrap();
            let error = shake(&mut dialler, &server).unwrap_err();
            assert!(error.contains("--ca FILE") && error.contains("--server-name"), "{error}");
        }
    }

    #[test]
    fn a_file_without_certificates_is_named() {
        let certificate = Certificate::make().unwrap();
        let ca = |ca| Trust { name: "localhost".into(), ca: Some(ca) };
        for (file, why) in
            [("/no/such/file".into(), "/no/such/file"), (certificate.key_file(), "no certificate")]
        {
            let error = Dialler::new(&ca(file), Offer::default()).unwrap_err();
            assert!(error.starts_with("--ca") && error.contains(why), "{error}");
        }
    }
}
