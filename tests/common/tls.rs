//! Relays that serve HTTPS, and how peers reach them.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::certs::{Authority, Folder, client_config};
use super::stream::Stream;
use super::{Relay, soon};

/// The name that the certificate of [`Relay::start_tls`] is for.
pub const DOMAIN: &str = "relay.test";

/// How to reach a relay: where it listens, and what to say there before anything else.
#[derive(Clone)]
pub struct Door {
    pub addr: SocketAddr,
    pub tls: Option<Tls>,
}

/// A TLS client that verifies.
#[derive(Clone)]
pub struct Tls {
    roots: RootCertStore,
    pub config: Arc<ClientConfig>,
    /// What it asks for (RFC 6066, section 3).
    pub name: ServerName<'static>,
}

impl Tls {
    fn new(roots: RootCertStore) -> Self {
        let config = Arc::new(client_config(roots.clone()));
        Self { roots, config, name: ServerName::try_from(DOMAIN).unwrap() }
    }

    /// A client that has not said anything yet.
    pub fn client(&self) -> ClientConnection {
        ClientConnection::new(Arc::clone(&self.config), self.name.clone()).unwrap()
    }

    /// A client's hello, in one record.
    pub fn hello(&self) -> Vec<u8> {
        let mut hello = Vec::new();
        self.client().write_tls(&mut hello).unwrap();
        hello
    }
}

impl Door {
    fn tls(&self) -> &Tls {
        self.tls.as_ref().expect("a relay of HTTPS")
    }

    /// For a client without tickets, after `change`.
    pub fn with(&self, change: impl FnOnce(&mut ClientConfig)) -> Self {
        self.keeping(|config| {
            config.resumption = Resumption::in_memory_sessions(4);
            change(config);
        })
    }

    /// For the same client, with the tickets that it has, after `change`.
    pub fn keeping(&self, change: impl FnOnce(&mut ClientConfig)) -> Self {
        let mut tls = self.tls().clone();
        change(Arc::make_mut(&mut tls.config));
        Self { addr: self.addr, tls: Some(tls) }
    }

    /// For a client that trusts others.
    pub fn trusting(&self, roots: RootCertStore) -> Self {
        Self { addr: self.addr, tls: Some(Tls::new(roots)) }
    }

    /// For a client that speaks this version alone, by these suites if any are given.
    pub fn speaking(
        &self,
        version: &'static SupportedProtocolVersion,
        suites: &[rustls::SupportedCipherSuite],
    ) -> Self {
        let mut tls = self.tls().clone();
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        if !suites.is_empty() {
            provider.cipher_suites = suites.to_vec();
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(tls.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        tls.config = Arc::new(config);
        Self { addr: self.addr, tls: Some(tls) }
    }

    /// For a client that asks for this name.
    pub fn asking_for(&self, name: &str) -> Self {
        let mut tls = self.tls().clone();
        tls.name = ServerName::try_from(name.to_owned()).unwrap();
        Self { addr: self.addr, tls: Some(tls) }
    }

    /// A client's hello, in one record.
    pub fn hello(&self) -> Vec<u8> {
        self.tls().hello()
    }

    /// Does on `tcp` what must come before the first byte of HTTP.
    pub async fn enter(&self, tcp: TcpStream) -> std::io::Result<Stream> {
        let Some(tls) = &self.tls else { return Ok(Stream::Tcp(tcp)) };
        let connector = TlsConnector::from(Arc::clone(&tls.config));
        let stream = soon("a handshake", connector.connect(tls.name.clone(), tcp)).await?;
        Ok(Stream::Tls(Box::new(stream)))
    }
}

impl Relay {
    /// As [`Relay::start`], with HTTPS by a certificate for [`DOMAIN`], which peers verify.
    pub async fn start_tls(args: &[&str]) -> Self {
        Self::start_tls_with(args, |_| {}).await
    }

    /// As [`Relay::start_tls`], after `prepare` has seen the command.
    pub async fn start_tls_with(args: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let (authority, folder) = (Authority::new(), Folder::new());
        let leaf = authority.leaf(DOMAIN);
        let cert = folder.write("cert.pem", &leaf.chain);
        let key = folder.write("key.pem", &leaf.key);
        // Of no use to the relay, but to whoever tries it by hand.
        folder.write("authority.pem", authority.pem());
        let https = ["--tls-cert", &cert, "--tls-key", &key, "--https-listen", "127.0.0.1:0"];
        Self::start_with(&[&https, args].concat(), prepare)
            .await
            .serving_https(Tls::new(authority.roots()), folder)
    }
}

/// The records of TLS in `bytes`: content type and body. Anything else is no TLS.
pub fn records(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let [kind @ 20..=23, 3, 1..=4, high, low, rest @ ..] = bytes else {
            panic!("no TLS: {}", bytes.escape_ascii());
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        assert!(rest.len() >= length, "half a record: {}", bytes.escape_ascii());
        records.push((*kind, rest[..length].to_vec()));
        bytes = &rest[length..];
    }
    records
}

/// A record in the clear.
pub fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind, 3, 3], &length[..], body].concat()
}
