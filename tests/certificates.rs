//! PROTOCOL.md, chapter 7, "TLS": what is presented to whom, and certificates from files.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use common::certs::{self, Authority, Folder, Leaf, client_config};
use common::{Relay, SOON, run, soon, wait_until};
use pyrycode_relay::control::certificates::{Certificates, Pair, server_config};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConnection};

const DOMAIN: &str = "relay.test";

/// Shakes hands in memory; both ends, or the client's error.
fn shake(
    certificates: &Arc<Certificates>,
    client: ClientConfig,
    name: &str,
) -> Result<(ClientConnection, ServerConnection), String> {
    shake_with(server_config(certificates).unwrap(), Arc::new(client), name)
}

fn shake_with(
    server: Arc<rustls::ServerConfig>,
    client: Arc<ClientConfig>,
    name: &str,
) -> Result<(ClientConnection, ServerConnection), String> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    for _ in 0..6 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        server.read_tls(&mut bytes.as_slice()).unwrap();
        let served = server.process_new_packets().map_err(|error| error.to_string());
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        client.read_tls(&mut bytes.as_slice()).unwrap();
        client.process_new_packets().map_err(|error| error.to_string())?;
        served?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

fn presenting(domain: Option<&str>, leaf: &Leaf) -> Arc<Certificates> {
    let certificates = Certificates::new(domain.map(str::to_owned));
    let pair = Pair::from_pem(leaf.chain.as_bytes(), leaf.key.as_bytes()).unwrap();
    certificates.replace(pair.key);
    certificates
}

#[test]
fn only_the_domain_is_served() {
    let authority = Authority::new();
    let served = presenting(Some(DOMAIN), &authority.leaf(DOMAIN));
    let client = || client_config(authority.roots());
    shake(&served, client(), DOMAIN).unwrap();
    shake(&served, client(), "RELAY.Test").unwrap();
    for name in ["other.test", "www.relay.test", "127.0.0.1"] {
        let error = shake(&served, client(), name).map(drop).unwrap_err();
        assert!(error.contains("AccessDenied"), "{name}: {error}");
    }
    let mut nameless = client();
    nameless.enable_sni = false;
    let error = shake(&served, nameless, DOMAIN).map(drop).unwrap_err();
    assert!(error.contains("AccessDenied"), "{error}");
}

#[test]
fn without_a_domain_any_name_is_served() {
    let authority = Authority::new();
    let leaf = authority.leaf("*.relay.test");
    let served = presenting(None, &leaf);
    for name in ["one.relay.test", "other.relay.test"] {
        shake(&served, client_config(authority.roots()), name).unwrap();
    }
    let mut nameless = client_config(authority.roots());
    nameless.enable_sni = false;
    shake(&served, nameless, "one.relay.test").unwrap();
}

#[test]
fn no_certificate_no_handshake() {
    let authority = Authority::new();
    let served = Certificates::new(None);
    let client = client_config(authority.roots());
    let error = shake(&served, client, DOMAIN).map(drop).unwrap_err();
    assert!(error.contains("AccessDenied"), "{error}");
}

#[test]
fn http_1_1_is_all_that_is_spoken() {
    let authority = Authority::new();
    let served = presenting(Some(DOMAIN), &authority.leaf(DOMAIN));
    let offering = |protocols: &[&str]| {
        let mut client = client_config(authority.roots());
        client.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        shake(&served, client, DOMAIN)
    };
    for protocols in [&["http/1.1"][..], &["h2", "http/1.1"], &["acme-tls/1", "http/1.1"]] {
        let (client, _) = offering(protocols).unwrap();
        assert_eq!(client.alpn_protocol(), Some(&b"http/1.1"[..]), "{protocols:?}");
    }
    assert_eq!(offering(&[]).unwrap().0.alpn_protocol(), None);
    let error = offering(&["h2"]).map(drop).unwrap_err();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
    // Only an ACME server asks for that alone, and no challenge is to be answered.
    let error = offering(&["acme-tls/1"]).map(drop).unwrap_err();
    assert!(error.contains("AccessDenied"), "{error}");
}

#[test]
fn sessions_are_resumed_but_no_early_data_is_taken() {
    let authority = Authority::new();
    let served = presenting(Some(DOMAIN), &authority.leaf(DOMAIN));
    let server = server_config(&served).unwrap();
    assert_eq!(server.max_early_data_size, 0);
    for version in [&TLS12, &TLS13] {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(authority.roots())
            .with_no_client_auth();
        let client = Arc::new(client);
        let (first, _) = shake_with(server.clone(), client.clone(), DOMAIN).unwrap();
        assert_eq!(first.protocol_version(), Some(version.version));
        assert_eq!(first.handshake_kind(), Some(HandshakeKind::Full));
        let (second, _) = shake_with(server.clone(), client, DOMAIN).unwrap();
        assert_eq!(second.handshake_kind(), Some(HandshakeKind::Resumed), "{version:?}");
    }
}

/// What is wrong with the files, and what the refusal must say beside the file's name.
#[tokio::test]
async fn bad_files_are_refused_at_start() {
    let (authority, folder) = (Authority::new(), Folder::new());
    let (leaf, other) = (authority.leaf(DOMAIN), authority.leaf(DOMAIN));
    let cert = folder.write("cert.pem", &leaf.chain);
    let key = folder.write("key.pem", &leaf.key);
    let other_key = folder.write("other-key.pem", &other.key);
    let empty = folder.write("empty.pem", "");
    let junk =
        folder.write("junk.pem", "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n");
    let no_x509 = folder
        .write("no-x509.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let reversed = folder.write("reversed.pem", authority.pem() + &leaf.chain);
    let passphrase = folder.write(
        "passphrase.pem",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let unknown = folder
        .write("unknown.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    let indent = |text: &str| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let indented = folder.write("indented.pem", indent(&leaf.chain));
    let indented_key = folder.write("indented-key.pem", indent(&leaf.key));
    let cut = folder.write("cut.pem", leaf.chain.split_once("-----END").unwrap().0);
    let dashes = folder.write("dashes.pem", leaf.key.replacen("KEY-----", "KEY---", 1));
    let wide = std::iter::once(0xfeff).chain(leaf.chain.encode_utf16());
    let wide = folder.write("wide.pem", wide.flat_map(u16::to_le_bytes).collect::<Vec<u8>>());
    let huge = folder.write("huge.pem", vec![b'\n'; 1024 * 1024 + 1]);
    let missing = folder.path("missing.pem").to_str().unwrap().to_owned();
    let a_folder = folder.path(".").to_str().unwrap().to_owned();
    for (cert, key, flag, file, fault, cure) in [
        (&missing, &key, "--tls-cert", &missing, "no such file", "give the path"),
        (&cert, &missing, "--tls-key", &missing, "no such file", "give the path"),
        (&a_folder, &key, "--tls-cert", &a_folder, "a folder", "a file in it"),
        (&empty, &key, "--tls-cert", &empty, "no certificate", "BEGIN CERTIFICATE"),
        (&key, &key, "--tls-cert", &key, "no certificate", "BEGIN CERTIFICATE"),
        (&junk, &key, "--tls-cert", &junk, "not PEM", "get it anew"),
        (&no_x509, &key, "--tls-cert", &no_x509, "certificate 1 in it is damaged", "get it anew"),
        (&indented, &key, "--tls-cert", &indented, "indented", "take the blanks in front away"),
        (&cert, &indented_key, "--tls-key", &indented_key, "indented", "take the blanks"),
        (&cut, &key, "--tls-cert", &cut, "no -----END CERTIFICATE-----", "get it anew"),
        (&cert, &dashes, "--tls-key", &dashes, "five dashes", "get it anew"),
        (&wide, &key, "--tls-cert", &wide, "UTF-16", "save it as UTF-8"),
        (&huge, &key, "--tls-cert", &huge, "over 1 MiB", "give another"),
        (&cert, &cert, "--tls-key", &cert, "no private key", "BEGIN PRIVATE KEY"),
        (&cert, &passphrase, "--tls-key", &passphrase, "passphrase", "openssl pkey"),
        (&cert, &unknown, "--tls-key", &unknown, "unsupported type", "use RSA"),
        (&cert, &other_key, "--tls-key", &other_key, "does not belong", "give the one"),
        (&reversed, &key, "--tls-cert", &reversed, "not the one of the private key", "leaf first"),
    ] {
        let args = ["--tls-cert", cert, "--tls-key", key, "--https-listen", "127.0.0.1:0"];
        let exit = run(&args).await;
        assert_eq!(exit.status.code(), Some(2), "{cert} {key}: {}", exit.stderr);
        assert_eq!(exit.stderr.lines().count(), 1, "{}", exit.stderr);
        for part in [flag, file, fault, cure] {
            assert!(exit.stderr.contains(part), "{part:?} is not in: {}", exit.stderr);
        }
        assert!(!exit.stderr.contains(['[', '{']), "as Rust writes it: {}", exit.stderr);
    }
}

#[tokio::test]
async fn byte_order_marks_are_skipped() {
    let (authority, folder) = (Authority::new(), Folder::new());
    let leaf = authority.leaf(DOMAIN);
    // What an editor puts in front of a file is in the middle of two that were joined.
    let chain = format!("\u{feff}{}\r\n\u{feff}{}", leaf.chain, authority.pem());
    let cert = folder.write("cert.pem", chain);
    let key = folder.write("key.pem", format!("\u{feff}{}", leaf.key));
    let relay = start(&["--tls-cert", &cert, "--tls-key", &key]).await;
    is_served_by(relay.addr(), &authority.roots()).await.unwrap();
}

#[tokio::test]
async fn what_clients_will_refuse_is_warned_of() {
    let (authority, folder) = (Authority::new(), Folder::new());
    let date = rcgen::date_time_ymd;
    let expired = authority.leaf_where(DOMAIN, |leaf| leaf.not_after = date(2001, 1, 1));
    let early = authority.leaf_where(DOMAIN, |leaf| leaf.not_before = date(3001, 1, 1));
    let other = authority.leaf("other.test");
    for (leaf, event) in [
        (expired, "certificate_expired"),
        (early, "certificate_not_yet_valid"),
        (other, "certificate_of_another_name"),
    ] {
        let (cert, key) = (folder.write("cert.pem", leaf.chain), folder.write("key.pem", leaf.key));
        let relay = start(&["--tls-cert", &cert, "--tls-key", &key, "--domain", DOMAIN]).await;
        let line = relay.wait_for_log(event).await;
        assert_eq!(line.get("path"), Some(cert.as_str()));
        assert_eq!(line.get("level"), Some("warn"), "{}", line.raw);
        relay.wait_for_log("certificate_loaded").await;
    }
}

async fn start(args: &[&str]) -> Relay {
    let mut all = args.to_vec();
    all.extend(["--https-listen", "127.0.0.1:0"]);
    Relay::start(&all).await
}

/// Shakes hands with the relay as one that trusts only `authority`.
async fn is_served_by(relay: SocketAddr, authority: &RootCertStore) -> io::Result<()> {
    soon("a handshake", certs::connect(relay, DOMAIN, authority)).await.map(drop)
}

#[tokio::test]
async fn changed_files_are_taken_up_and_bad_ones_are_not() {
    let (old, new) = (Authority::new(), Authority::new());
    let folder = Folder::new();
    let (leaf, renewed) = (old.leaf(DOMAIN), new.leaf(DOMAIN));
    let cert = folder.write("cert.pem", &leaf.chain);
    let key = folder.write("key.pem", &leaf.key);
    let relay = start(&["--tls-cert", &cert, "--tls-key", &key]).await;
    is_served_by(relay.addr(), &old.roots()).await.unwrap();
    is_served_by(relay.addr(), &new.roots()).await.unwrap_err();

    // Half of a pair: the old one stays, and it is said once however long it lasts.
    folder.write("cert.pem", &renewed.chain);
    let line = relay.wait_for_log("certificate_not_loaded").await;
    assert_eq!(line.get("level"), Some("error"), "{}", line.raw);
    assert!(line.get("err").unwrap().contains(&key), "{}", line.raw);
    is_served_by(relay.addr(), &old.roots()).await.unwrap();

    folder.write("key.pem", &renewed.key);
    wait_until("the new certificate", SOON, async || {
        is_served_by(relay.addr(), &new.roots()).await.is_ok()
    })
    .await;
    is_served_by(relay.addr(), &old.roots()).await.unwrap_err();
    let events: Vec<String> = relay.logs().iter().map(|line| line.event().to_owned()).collect();
    let count = |event| events.iter().filter(|name| *name == event).count();
    assert_eq!(count("certificate_not_loaded"), 1, "{events:?}");
    assert_eq!(count("certificate_loaded"), 2, "{events:?}");
}

/// certbot keeps each generation in files of its own, and turns a symbolic link to it.
#[tokio::test]
async fn a_turned_link_is_followed() {
    let (old, new) = (Authority::new(), Authority::new());
    let folder = Folder::new();
    for (generation, leaf) in [("1", old.leaf(DOMAIN)), ("2", new.leaf(DOMAIN))] {
        std::fs::create_dir(folder.path(generation)).unwrap();
        folder.write(&format!("{generation}/cert.pem"), leaf.chain);
        folder.write(&format!("{generation}/key.pem"), leaf.key);
    }
    let live = folder.path("live");
    std::os::unix::fs::symlink("1", &live).unwrap();
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| live.join(name));
    let args = ["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let relay = start(&args).await;
    is_served_by(relay.addr(), &old.roots()).await.unwrap();
    std::os::unix::fs::symlink("2", folder.path("next")).unwrap();
    std::fs::rename(folder.path("next"), &live).unwrap();
    wait_until("the new certificate", SOON, async || {
        is_served_by(relay.addr(), &new.roots()).await.is_ok()
    })
    .await;
}
