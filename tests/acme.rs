//! PROTOCOL.md, chapter 7, "TLS": certificates by ACME, the folder that keeps them,
//! and what answers challenges. The ACME server is Pebble, where it is at hand.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;
#[path = "acme/pebble.rs"]
mod pebble;

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use common::certs::{self, Authority, Folder};
use common::{LogLine, Process, Relay, SOON, Signal, command, run, soon, wait_until};
use futures_util::{SinkExt as _, StreamExt as _};
use pebble::Pebble;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_websockets::{ClientBuilder, Message, WebSocketStream};

const DOMAIN: &str = "relay.test";
/// An ACME server that nobody can reach.
const NOWHERE: &str = "https://127.0.0.1:1/dir";
/// The folder in the cache that is its own.
const NOWHERE_FOLDER: &str = "127.0.0.1%3A1%2Fdir";
const MONTHS: Duration = Duration::from_secs(90 * 86_400);

async fn start(cache: &Path, args: &[&str]) -> Relay {
    let mut all = vec!["--domain", DOMAIN, "--cert-cache", cache.to_str().unwrap()];
    all.extend(args);
    Relay::start(&all).await
}

async fn start_with_pebble(cache: &Path, pebble: &Pebble) -> Relay {
    start_listening(cache, pebble, &pebble.http_listen(), "127.0.0.1:0").await
}

async fn start_listening(cache: &Path, pebble: &Pebble, http: &str, https: &str) -> Relay {
    let (directory, ca) = (pebble.directory(), pebble.ca());
    let args = ["--acme-directory", &directory, "--acme-ca", &ca];
    start(cache, &[&args[..], &["--http-listen", http, "--https-listen", https]].concat()).await
}

/// With an ACME server that nobody can reach.
async fn start_alone(cache: &Path) -> Relay {
    let http = ["--http-listen", "127.0.0.1:0", "--https-listen", "127.0.0.1:0"];
    start(cache, &[&["--acme-directory", NOWHERE], &http[..]].concat()).await
}

async fn shake(relay: &Relay, roots: &RootCertStore) -> std::io::Result<TlsStream<TcpStream>> {
    soon("a handshake", certs::connect(relay.addr(), DOMAIN, roots)).await
}

/// The serial, as it were: the whole leaf that the relay presents.
async fn leaf(relay: &Relay, roots: &RootCertStore) -> Vec<u8> {
    let stream = shake(relay, roots).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn events(relay: &Relay, event: &str) -> Vec<LogLine> {
    relay.logs().into_iter().filter(|line| line.event() == event).collect()
}

async fn wait_for_count(relay: &Relay, event: &str, count: usize) {
    let what = format!("{event} comes {count} times");
    wait_until(&what, SOON * 2, async || events(relay, event).len() >= count).await;
}

async fn dial(
    relay: &Relay,
    roots: &RootCertStore,
    path: &str,
    headers: &[(&'static str, &'static str)],
) -> WebSocketStream<TlsStream<TcpStream>> {
    let stream = shake(relay, roots).await.unwrap();
    let uri = format!("wss://{DOMAIN}{path}");
    let mut builder = ClientBuilder::new().uri(&uri).unwrap();
    for (name, value) in headers.iter().chain(&[("user-agent", "test/1")]) {
        builder = builder.add_header(name.parse().unwrap(), value.parse().unwrap()).unwrap();
    }
    soon("the upgrade", builder.connect_on(stream)).await.unwrap().0
}

/// A frame of a phone reaches its binary, over wss.
async fn relays(relay: &Relay, roots: &RootCertStore) {
    let id = ("x-pyrycode-server", "an-id");
    let binary = &[id, ("x-pyrycode-version", "1")];
    let mut binary = dial(relay, roots, "/v1/server", binary).await;
    let phone = &[id, ("x-pyrycode-token", "any")];
    let mut phone = dial(relay, roots, "/v1/client", phone).await;
    phone.send(Message::text(r#"{"hello":1}"#)).await.unwrap();
    let message = soon("the frame", binary.next()).await.unwrap().unwrap();
    assert!(message.as_text().unwrap().contains(r#""frame":{"hello":1}"#), "{message:?}");
}

#[tokio::test]
async fn the_first_certificate_is_ordered_kept_and_served_without_the_server() {
    let Some(bin) = pebble::find() else { return };
    let mut pebble = Pebble::start(bin, MONTHS).await;
    let folder = Folder::new();
    let cache = folder.path("deep/cache");
    let relay = start_with_pebble(&cache, &pebble).await;
    relay.wait_for_log("certificate_missing").await;
    relay.wait_for_log("certificate_issued").await;
    assert_eq!(events(&relay, "acme_account_created").len(), 1);
    assert!(!events(&relay, "challenge_answered").is_empty());
    let roots = pebble.roots().await;
    let first = leaf(&relay, &roots).await;
    relays(&relay, &roots).await;
    let planned = relay.wait_for_log("certificate_renewal_planned").await;
    let days: u32 = planned.get("duration").unwrap().split('d').next().unwrap().parse().unwrap();
    assert!((56..=60).contains(&days), "{}", planned.raw);

    assert_eq!(mode(&cache), 0o700);
    let server = std::fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
    assert_eq!(mode(&server), 0o700);
    let mut names = Vec::new();
    for file in std::fs::read_dir(&server).unwrap().map(Result::unwrap) {
        assert_eq!(mode(&file.path()), 0o600, "{:?}", file.path());
        names.push(file.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["account.json", "relay.test.pem"]);
    drop(relay);

    pebble.stop();
    let relay = start_with_pebble(&cache, &pebble).await;
    assert_eq!(leaf(&relay, &roots).await, first);
    relay.wait_for_log("certificate_renewal_planned").await;
    assert!(events(&relay, "certificate_ordering").is_empty(), "{}", relay.stderr());
    drop(relay);

    // What one server gave is not taken for another's.
    let relay = start_alone(&cache).await;
    relay.wait_for_log("certificate_missing").await;
    shake(&relay, &roots).await.unwrap_err();
}

#[tokio::test]
async fn certificates_are_renewed_also_by_a_server_that_forgot_us() {
    let Some(bin) = pebble::find() else { return };
    let mut pebble = Pebble::start(bin, Duration::from_secs(9)).await;
    let folder = Folder::new();
    let relay = start_with_pebble(&folder.path("cache"), &pebble).await;
    relay.wait_for_log("certificate_issued").await;
    let roots = pebble.roots().await;
    let first = leaf(&relay, &roots).await;
    // Whoever is connected stays so.
    let binary = &[("x-pyrycode-server", "an-id"), ("x-pyrycode-version", "1")];
    let _binary = dial(&relay, &roots, "/v1/server", binary).await;
    wait_for_count(&relay, "certificate_issued", 2).await;
    assert_ne!(leaf(&relay, &roots).await, first);
    assert_eq!(events(&relay, "acme_account_created").len(), 1);
    assert!(events(&relay, "server_released").is_empty(), "{}", relay.stderr());

    pebble.restart().await;
    wait_for_count(&relay, "certificate_issued", 3).await;
    shake(&relay, &pebble.roots().await).await.unwrap();
    assert_eq!(events(&relay, "acme_account_lost").len(), 1);
    assert_eq!(events(&relay, "acme_account_created").len(), 2);
}

#[tokio::test]
async fn without_port_80_the_proof_is_a_certificate() {
    let Some(bin) = pebble::find() else { return };
    let pebble = Pebble::start(bin, MONTHS).await;
    let folder = Folder::new();
    let cache = folder.path("cache");
    let relay = start_listening(&cache, &pebble, "", &pebble.https_listen()).await;
    relay.wait_for_log("certificate_issued").await;
    assert!(events(&relay, "listening_for_challenges").is_empty(), "{}", relay.stderr());
    relays(&relay, &pebble.roots().await).await;
}

#[tokio::test]
async fn what_fails_by_one_port_is_tried_by_the_other() {
    let Some(bin) = pebble::find() else { return };
    let pebble = Pebble::start(bin, MONTHS).await;
    let folder = Folder::new();
    let cache = folder.path("cache");
    // Nobody listens where the server looks for the file.
    let relay = start_listening(&cache, &pebble, "127.0.0.1:0", &pebble.https_listen()).await;
    let line = relay.wait_for_log("certificate_not_issued").await;
    assert!(line.get("err").unwrap().contains("port 80 of relay.test"), "{}", line.raw);
    relay.signal(Signal::HangUp);
    relay.wait_for_log("certificate_issued").await;
    relays(&relay, &pebble.roots().await).await;
}

#[tokio::test]
async fn a_domain_that_leads_elsewhere_is_told_so() {
    let Some(bin) = pebble::find() else { return };
    let pebble = Pebble::start(bin, MONTHS).await;
    pebble.lead_to("127.0.0.1".parse().unwrap()).await;
    let folder = Folder::new();
    let relay = start_with_pebble(&folder.path("cache"), &pebble).await;
    let line = relay.wait_for_log("certificate_not_issued").await;
    let err = line.get("err").unwrap();
    for part in ["connection refused", "no challenge came to --http-listen: port 80 of relay.test"]
    {
        assert!(err.contains(part), "{part:?} is not in {err}");
    }
    assert!(line.get("duration").is_some(), "{}", line.raw);
}

#[tokio::test]
async fn without_server_and_certificate_the_relay_says_so_and_stays() {
    let folder = Folder::new();
    let relay = start_alone(&folder.path("cache")).await;
    relay.wait_for_log("certificate_missing").await;
    let line = relay.wait_for_log("certificate_not_issued").await;
    assert_eq!(line.get("level"), Some("error"));
    assert!(line.get("err").unwrap().contains("onnection refused"), "{}", line.raw);
    shake(&relay, &Authority::new().roots()).await.unwrap_err();
    assert_eq!(get(http_addr(&relay).await, "/").await.0, 404);
}

#[tokio::test]
async fn why_an_acme_server_is_not_trusted_is_told_in_words() {
    let leaf = Authority::new().leaf("127.0.0.1");
    let config = rustls::ServerConfig::builder_with_provider(
        rustls::crypto::aws_lc_rs::default_provider().into(),
    )
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(
        vec![CertificateDer::from_pem_slice(leaf.chain.as_bytes()).unwrap()],
        PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap(),
    )
    .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let directory = format!("https://{}/dir", server.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((tcp, _)) = server.accept().await {
            let _ = acceptor.accept(tcp).await;
        }
    });
    let folder = Folder::new();
    let ports = ["--http-listen", "127.0.0.1:0", "--https-listen", "127.0.0.1:0"];
    let relay =
        start(&folder.path("cache"), &[&["--acme-directory", &directory], &ports[..]].concat())
            .await;
    let line = relay.wait_for_log("certificate_not_issued").await;
    let err = line.get("err").unwrap();
    assert!(err.contains("unknown issuer: no authority that is trusted here"), "{err}");
    assert!(!err.contains(['{', '(']) && !err.contains("UnknownIssuer"), "{err}");
}

/// What Go's autocert keeps keys as, and the same key as a certificate is made with here.
const SEC1: &str = include_str!("acme/autocert-sec1.pem");
const PKCS8: &str = include_str!("acme/autocert-pkcs8.pem");

#[tokio::test]
async fn a_folder_that_autocert_filled_is_used_rather_than_ordering_anew() {
    let authority = Authority::new();
    let date = rcgen::date_time_ymd;
    let leaf = authority.leaf_of(PKCS8, DOMAIN, |_| {});
    let expired = authority.leaf_of(PKCS8, DOMAIN, |leaf| leaf.not_after = date(2001, 1, 1));
    let text = |chain: &str| format!("{SEC1}{chain}{}", authority.pem());
    // For what Let's Encrypt gave: no Pebble and no other server is asked.
    for (name, other) in [(DOMAIN, "relay.test+rsa"), ("relay.test+rsa", DOMAIN)] {
        let folder = Folder::new();
        let cache = folder.path("cache");
        std::fs::create_dir(&cache).unwrap();
        std::fs::write(cache.join(name), text(&leaf.chain)).unwrap();
        std::fs::write(cache.join(other), text(&expired.chain)).unwrap();
        std::fs::write(cache.join("acme_account+key"), SEC1).unwrap();
        let ports = ["--http-listen", "127.0.0.1:0", "--https-listen", "127.0.0.1:0"];
        let relay = start(&cache, &ports).await;
        let line = relay.wait_for_log("certificate_loaded").await;
        assert_eq!(line.get("path"), cache.join(name).to_str());
        relay.wait_for_log("certificate_renewal_planned").await;
        shake(&relay, &authority.roots()).await.unwrap();
        assert!(events(&relay, "certificate_ordering").is_empty());
        assert!(events(&relay, "certificate_missing").is_empty());
    }
    // Another server's are not mixed up with it.
    let folder = Folder::new();
    let cache = folder.path("cache");
    std::fs::create_dir(&cache).unwrap();
    std::fs::write(cache.join(DOMAIN), text(&leaf.chain)).unwrap();
    start_alone(&cache).await.wait_for_log("certificate_missing").await;
}

#[tokio::test]
async fn the_account_of_autocert_is_taken_over() {
    let Some(bin) = pebble::find() else { return };
    let pebble = Pebble::start(bin, MONTHS).await;
    let folder = Folder::new();
    let cache = folder.path("cache");
    std::fs::create_dir(&cache).unwrap();
    std::fs::write(cache.join("acme_account+key"), SEC1).unwrap();
    let relay = start_with_pebble(&cache, &pebble).await;
    let line = relay.wait_for_log("acme_account_taken_over").await;
    assert!(line.get("path").unwrap().ends_with("acme_account+key"), "{}", line.raw);
    relay.wait_for_log("certificate_issued").await;
    assert!(events(&relay, "acme_account_unusable").is_empty());
    relays(&relay, &pebble.roots().await).await;
}

/// Of each kind of cached certificate: what is logged, and whether it is presented.
#[tokio::test]
async fn a_cached_certificate_that_does_not_serve_is_not_fatal() {
    let authority = Authority::new();
    let date = rcgen::date_time_ymd;
    let expired = authority.leaf_where(DOMAIN, |leaf| leaf.not_after = date(2001, 1, 1));
    let text = |leaf: certs::Leaf| leaf.key + &leaf.chain;
    for (cached, event) in [
        (text(expired), "certificate_expired"),
        (text(authority.leaf("other.test")), "certificate_unusable"),
        ("not at all".to_owned(), "certificate_unusable"),
        (text(authority.leaf(DOMAIN)).split_off(40), "certificate_unusable"),
    ] {
        let folder = Folder::new();
        let cache = folder.path("cache");
        std::fs::create_dir_all(cache.join(NOWHERE_FOLDER)).unwrap();
        std::fs::write(cache.join(NOWHERE_FOLDER).join("relay.test.pem"), &cached).unwrap();
        let relay = start_alone(&cache).await;
        relay.wait_for_log(event).await;
        relay.wait_for_log("certificate_ordering").await;
        shake(&relay, &authority.roots()).await.unwrap_err();
    }
}

#[tokio::test]
async fn a_cache_that_others_could_read_is_tightened() {
    let authority = Authority::new();
    let leaf = authority.leaf(DOMAIN);
    let folder = Folder::new();
    let cache = folder.path("cache");
    let server = cache.join(NOWHERE_FOLDER);
    let file = server.join("relay.test.pem");
    std::fs::create_dir_all(&server).unwrap();
    std::fs::write(&file, leaf.key + &leaf.chain).unwrap();
    for (path, mode) in [(&cache, 0o755), (&server, 0o770), (&file, 0o644)] {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    let relay = start_alone(&cache).await;
    for path in [&cache, &server, &file] {
        let path = path.to_str().unwrap();
        let is_of = |line: &LogLine| line.get("path") == Some(path);
        let line = relay.wait_for_log_where("cert_cache_tightened", is_of).await;
        assert_eq!(line.get("level"), Some("warn"), "{}", line.raw);
    }
    assert_eq!([mode(&cache), mode(&server), mode(&file)], [0o700, 0o700, 0o600]);
    shake(&relay, &authority.roots()).await.unwrap();
}

/// Starts with `args`, which must be refused in one line that says all of `parts`.
async fn refused(args: &[&str], parts: &[&str]) {
    // First without a chance to change anything.
    for command in [&["check"][..], &[]] {
        let mut all = [command, &["--domain", DOMAIN, "--https-listen", "127.0.0.1:0"]].concat();
        all.extend(["--http-listen", "127.0.0.1:0"]);
        all.extend(args);
        let exit = run(&all).await;
        assert_eq!(exit.status.code(), Some(2), "{args:?}: {}", exit.stderr);
        assert_eq!(exit.stderr.lines().count(), 1, "{}", exit.stderr);
        for part in parts {
            assert!(exit.stderr.contains(part), "{part:?} is not in: {}", exit.stderr);
        }
    }
}

#[tokio::test]
async fn checking_changes_nothing() {
    let folder = Folder::new();
    let check = async |cache: &Path| {
        let places = ["--https-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
        let args = ["check", "--domain", DOMAIN, "--cert-cache", cache.to_str().unwrap()];
        run(&[&args[..], &places].concat()).await
    };
    let missing = folder.path("not/there");
    let exit = check(&missing).await;
    assert_eq!(exit.status.code(), Some(0), "{}", exit.stderr);
    assert!(!folder.path("not").exists());
    let open = folder.path("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
    assert_eq!(check(&open).await.status.code(), Some(0));
    assert_eq!(mode(&open), 0o755);
    assert_eq!(std::fs::read_dir(&open).unwrap().count(), 0);
}

#[tokio::test]
async fn what_cannot_be_kept_or_asked_is_refused() {
    let folder = Folder::new();
    let path = |name: &str| folder.path(name).to_str().unwrap().to_owned();
    let file = folder.write("file", "");
    std::fs::create_dir(folder.path("real")).unwrap();
    symlink(folder.path("real"), folder.path("link")).unwrap();
    refused(&["--cert-cache", &file], &["--cert-cache", &file, "not a folder"]).await;
    let under = path("file/under");
    refused(&["--cert-cache", &under], &["--cert-cache", &under, "cannot be made"]).await;
    let link = path("link");
    refused(&["--cert-cache", &link], &["--cert-cache", &link, "symbolic link"]).await;
    // The slash would have it followed.
    refused(&["--cert-cache", &path("link/")], &["symbolic link"]).await;

    let cache = path("cache");
    let with = async |flag: &str, value: &str, parts: &[&str]| {
        let mut all = vec![flag, value];
        all.extend(parts);
        refused(&["--cert-cache", &cache, flag, value], &all).await;
    };
    with("--acme-ca", &path("missing"), &["No such file"]).await;
    with("--acme-ca", &file, &["no certificate"]).await;
    for directory in ["http://acme.test/dir", "acme.test", "https://", "not a URL", ""] {
        refused(
            &["--cert-cache", &cache, "--acme-directory", directory],
            &["--acme-directory", "write https://"],
        )
        .await;
    }

    std::fs::create_dir(folder.path("foreign")).unwrap();
    match chown(folder.path("foreign"), Some(12_345), None) {
        Ok(()) => {
            let parts = &["--cert-cache", "belongs to user 12345", "give another folder"];
            refused(&["--cert-cache", &path("foreign")], parts).await;
        }
        Err(_) => pebble::skipped("SKIPPED in part: only root can give a folder to another user"),
    }
}

#[tokio::test]
async fn a_taken_http_port_ends_the_relay() {
    let folder = Folder::new();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let cache = folder.path("cache");
    let args = [
        "--domain",
        DOMAIN,
        "--cert-cache",
        cache.to_str().unwrap(),
        "--https-listen",
        "127.0.0.1:0",
        "--http-listen",
        &taken,
    ];
    let exit = Process::spawn(command(&args)).wait_exit(SOON).await;
    assert_eq!(exit.status.code(), Some(1), "{}", exit.stderr);
    assert!(exit.stderr.contains("--http-listen") && exit.stderr.contains(&taken));
}

async fn http_addr(relay: &Relay) -> SocketAddr {
    let line = relay.wait_for_log("listening_for_challenges").await;
    line.get("remote").unwrap().parse().unwrap()
}

/// The status and the head of the answer to a GET.
async fn get(addr: SocketAddr, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n");
    let exchange = async {
        let mut tcp = TcpStream::connect(addr).await.unwrap();
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = soon("an answer", exchange).await;
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

#[tokio::test]
async fn only_challenges_are_answered_and_nobody_is_redirected() {
    let folder = Folder::new();
    let relay = start_alone(&folder.path("cache")).await;
    let addr = http_addr(&relay).await;
    for path in ["/", "/healthz", "/v1/server", "/.well-known/acme-challenge/unknown"] {
        let (status, answer) = get(addr, path).await;
        assert_eq!(status, 404, "{path}");
        assert!(!answer.to_ascii_lowercase().contains("location:"), "{answer}");
    }
}

#[tokio::test]
async fn many_who_dawdle_keep_nobody_out() {
    let folder = Folder::new();
    let relay = start_alone(&folder.path("cache")).await;
    let addr = http_addr(&relay).await;
    let mut slow = Vec::new();
    for _ in 0..400 {
        let mut tcp = soon("connect", TcpStream::connect(addr)).await.unwrap();
        tcp.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
        slow.push(tcp);
    }
    let before = Instant::now();
    assert_eq!(get(addr, "/").await.0, 404);
    assert!(before.elapsed() < Duration::from_secs(4), "it waited for the slow ones");
    // Far fewer are held than came, and in the end none is.
    let descriptors = relay.descriptors();
    assert!(descriptors < 350, "{descriptors}");
    for mut tcp in slow {
        let mut answer = Vec::new();
        // A reset is an end as well.
        let _ = soon("the end of a slow one", tcp.read_to_end(&mut answer)).await;
    }
}
