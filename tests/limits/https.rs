//! PROXY headers in front of TLS, and the whole order of checks (PROTOCOL.md, chapter 1).

use super::callers::{header, headers_of_nobody, proxy_header, remote_of};
use super::common::{Raw, Relay, Request, Response, soon};
use super::new_id;
use crate::common::certs::{Authority, Folder, client_config};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, RootCertStore};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const DOMAIN: &str = "relay.test";

struct Site {
    relay: Relay,
    roots: RootCertStore,
    _files: Folder,
}

impl Site {
    /// A relay that serves HTTPS behind a proxy.
    async fn open(args: &[&str]) -> Self {
        let authority = Authority::new();
        let leaf = authority.leaf(DOMAIN);
        let files = Folder::new();
        let (cert, key) = (files.write("c.pem", leaf.chain), files.write("k.pem", leaf.key));
        let site = [
            "--tls-cert",
            &cert,
            "--tls-key",
            &key,
            "--domain",
            DOMAIN,
            "--https-listen",
            "127.0.0.1:0",
            "--https-proxy-protocol",
        ];
        let relay = Relay::start(&[&site[..], args].concat()).await;
        Self { relay, roots: authority.roots(), _files: files }
    }

    /// The answer to `request` through a proxy that speaks for `source`.
    async fn ask(&self, source: &str, request: Request) -> Response {
        self.ask_behind(&proxy_header(source), request).await
    }

    /// The answer to `request` behind this PROXY header.
    async fn ask_behind(&self, header: &[u8], request: Request) -> Response {
        let mut tcp = TcpStream::connect(self.relay.addr()).await.unwrap();
        tcp.write_all(header).await.unwrap();
        let name = ServerName::try_from(DOMAIN).unwrap();
        let connector = TlsConnector::from(Arc::new(client_config(self.roots.clone())));
        let mut tls = soon("a handshake", connector.connect(name, tcp)).await.unwrap();
        tls.write_all(&request.bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon("an answer", tls.read_u8()).await.unwrap());
        }
        Response::parse(&String::from_utf8(head).unwrap())
    }
}

fn server(id: &str) -> Request {
    Request::server(id).set("Host", DOMAIN)
}

#[tokio::test]
async fn a_proxy_in_front_of_tls_names_the_caller() {
    let site = Site::open(&["--rate-limit", "1/1h"]).await;
    for source in ["192.0.2.1:4660", "[2001:db8::1]:80"] {
        let id = new_id();
        assert_eq!(site.ask(source, server(&id)).await.status, 101);
        assert_eq!(remote_of(&site.relay, &id).await, source);
    }
    for source in ["192.0.2.1:1", "[::ffff:192.0.2.1]:2", "[2001:db8::ffff]:3"] {
        let response = site.ask(source, server(&new_id())).await;
        assert_eq!(response.status, 429, "{source}");
        assert!(super::retry_after(&response) > 3000);
    }
    let healthy = Request::get("/healthz").set("Host", DOMAIN);
    assert_eq!(site.ask("192.0.2.1:1", healthy).await.status, 200);
}

/// The PROXY header names whose handshake it is, before there is one.
#[tokio::test]
async fn handshakes_are_limited_by_the_address_that_a_proxy_names() {
    let site = Site::open(&["--handshake-rate", "2/1h"]).await;
    let healthy = || Request::get("/healthz").set("Host", DOMAIN);
    for source in ["192.0.2.1:1", "192.0.2.1:2", "[2001:db8::1]:80", "[2001:db8::ffff]:80"] {
        assert_eq!(site.ask(source, healthy()).await.status, 200);
    }
    let refused = async |source: &str| {
        let mut tcp = TcpStream::connect(site.relay.addr()).await.unwrap();
        tcp.write_all(&proxy_header(source)).await.unwrap();
        let name = ServerName::try_from(DOMAIN).unwrap();
        let connector = TlsConnector::from(Arc::new(client_config(site.roots.clone())));
        let error = soon("a refusal", connector.connect(name, tcp)).await.unwrap_err();
        error.to_string()
    };
    for source in ["192.0.2.1:3", "[::ffff:192.0.2.1]:4", "[2001:db8::abc]:5"] {
        let error = refused(source).await;
        assert!(error.contains("AccessDenied"), "{source}: {error}");
    }
    let line = site.relay.wait_for_log("handshake_rate_limited").await;
    assert!(line.get("remote").unwrap().starts_with("192.0.2.1:"), "{}", line.raw);
    assert_eq!(site.ask("192.0.2.2:1", healthy()).await.status, 200);
}

#[tokio::test]
async fn a_header_in_front_of_tls_that_names_nobody_leaves_the_peers_own_address() {
    let site = Site::open(&[]).await;
    for (what, header) in headers_of_nobody() {
        let id = new_id();
        assert_eq!(site.ask_behind(&header, server(&id)).await.status, 101, "{what}");
        let remote = remote_of(&site.relay, &id).await;
        assert!(remote.starts_with("127.0.0.1:"), "{what}: {remote}");
    }
}

#[tokio::test]
async fn every_check_in_its_turn() {
    let site = Site::open(&["--rate-limit", "3/1h", "--max-connections", "1"]).await;
    let source = "192.0.2.1:5";
    let status = async |request| site.ask(source, request).await.status;
    // Every one of these has all the faults of those below it.
    let headers = || Request::upgrade("/v1/client").set("Host", DOMAIN).method("POST");
    let route = || Request::upgrade("/v2/client").set("Host", DOMAIN).method("POST");
    let host = || Request::upgrade("/v2/client").set("Host", "other.test").method("POST");
    assert_eq!(status(headers()).await, 400);
    assert_eq!(status(server(&new_id()).method("POST")).await, 405);
    let taken = {
        let mut tcp = TcpStream::connect(site.relay.addr()).await.unwrap();
        tcp.write_all(&proxy_header("192.0.2.2:1")).await.unwrap();
        let name = ServerName::try_from(DOMAIN).unwrap();
        let connector = TlsConnector::from(Arc::new(client_config(site.roots.clone())));
        let mut tls = connector.connect(name, tcp).await.unwrap();
        tls.write_all(&server("id").bytes()).await.unwrap();
        site.relay.wait_for_log("server_claimed").await;
        tls
    };
    assert_eq!(status(headers()).await, 503);
    assert_eq!(status(headers()).await, 429);
    assert_eq!(status(route()).await, 404);
    assert_eq!(status(host()).await, 421);
    drop(taken);
}

#[tokio::test]
async fn without_a_proxy_header_there_is_no_tls() {
    let site = Site::open(&["--header-timeout", "400ms"]).await;
    let hello = {
        let name = ServerName::try_from(DOMAIN).unwrap();
        let config = Arc::new(client_config(site.roots.clone()));
        let mut client = ClientConnection::new(config, name).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        hello
    };
    let v4 = proxy_header("192.0.2.1:1");
    for bytes in [
        hello.clone(),
        [header(0x21, 0x41, &v4[16..]), hello.clone()].concat(),
        [b"PROXY TCP4 192.0.2.1 192.0.2.2 5 6\r\n".to_vec(), hello].concat(),
        // These are too late.
        Vec::new(),
        v4[..20].to_vec(),
        v4,
    ] {
        let mut raw = Raw::connect(&site.relay).await;
        // It may be closed before all is sent.
        let _ = raw.try_send(bytes).await;
        raw.assert_ended().await;
    }
}
