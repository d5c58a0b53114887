//! What is spoken, to whom, and for how long.

use std::time::{Duration, Instant};

use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, Error, HandshakeKind};

use super::common::certs::Authority;
use super::common::{DOMAIN, Door, End, Raw, Relay, Request, masked, records};
use super::common::{PING, Response};
use super::doors;

async fn ask(door: &Door, request: Request) -> Response {
    let mut raw = Raw::through(door).await;
    raw.send(request).await;
    raw.response().await
}

/// The alert that the relay answers the handshake with.
async fn refusal(door: &Door) -> AlertDescription {
    let error = Raw::try_through(door).await.map(drop).unwrap_err();
    let error = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
    match error {
        Some(Error::AlertReceived(alert)) => *alert,
        other => panic!("not an alert: {other:?}"),
    }
}

#[tokio::test]
async fn both_versions_are_spoken_and_verified() {
    let relay = Relay::start_tls(&["--domain", DOMAIN]).await;
    for (door, version) in doors(&relay).iter().zip([&TLS12, &TLS13]) {
        let mut raw = Raw::through(door).await;
        assert_eq!(raw.tls().protocol_version(), Some(version.version));
        assert_eq!(raw.tls().alpn_protocol(), Some(&b"http/1.1"[..]));
        let mut binary = raw.upgrade(Request::server("id")).await;
        binary.send(masked(PING, "over TLS")).await;
        assert_eq!(binary.frame().await.payload, b"over TLS");
        binary.close(1000).await;
    }
    let stranger = relay.door().trusting(Authority::new().roots());
    let error = Raw::try_through(&stranger).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("invalid peer certificate"), "{error}");
    // Nobody has lost anything by that.
    assert_eq!(ask(&relay.door(), Request::get("/healthz")).await.status, 200);
}

#[tokio::test]
async fn an_ordinary_client_is_served() {
    use futures_util::{SinkExt, StreamExt};
    use tokio_websockets::{ClientBuilder, Message};
    let relay = Relay::start_tls(&["--domain", DOMAIN]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let tcp = tokio::net::TcpStream::connect(relay.addr()).await.unwrap();
    let tls = relay.door().enter(tcp).await.unwrap();
    let mut builder = ClientBuilder::new().uri("wss://relay.test/v1/client").unwrap();
    let headers =
        [("x-pyrycode-server", "id"), ("x-pyrycode-token", "any"), ("user-agent", "ordinary/1")];
    for (name, value) in headers {
        builder = builder.add_header(name.parse().unwrap(), value.parse().unwrap()).unwrap();
    }
    let (mut phone, _) = builder.connect_on(tls).await.unwrap();
    phone.send(Message::text("{\"up\":1}")).await.unwrap();
    let (conn_id, up) = super::open_envelope(&binary.recv_text().await);
    assert_eq!(up, "{\"up\":1}");
    let down = super::common::envelope(&conn_id, "{\"down\":2}");
    binary.send(masked(super::TEXT, down)).await;
    assert_eq!(phone.next().await.unwrap().unwrap().as_text(), Some("{\"down\":2}"));
}

#[tokio::test]
async fn http_1_1_is_all_that_is_spoken() {
    let relay = Relay::start_tls(&[]).await;
    for door in doors(&relay) {
        let offering = |protocols: &[&str]| {
            let protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
            door.with(|config| config.alpn_protocols = protocols)
        };
        let mut both = Raw::through(&offering(&["h2", "http/1.1"])).await;
        assert_eq!(both.tls().alpn_protocol(), Some(&b"http/1.1"[..]));
        let mut none = Raw::through(&offering(&[])).await;
        assert_eq!(none.tls().alpn_protocol(), None);
        for raw in [&mut both, &mut none] {
            raw.send(Request::get("/healthz")).await;
            assert_eq!(raw.response().await.status, 200);
        }
        for other in [&["h2"][..], &["h3", "http/1.0"]] {
            assert_eq!(refusal(&offering(other)).await, AlertDescription::NoApplicationProtocol);
        }
    }
}

#[tokio::test]
async fn another_name_than_the_domain_is_refused_with_an_alert() {
    let relay = Relay::start_tls(&["--domain", DOMAIN]).await;
    for door in doors(&relay) {
        ask(&door.asking_for("RELAY.test"), Request::get("/healthz")).await;
        for name in ["other.test", "www.relay.test", "127.0.0.1"] {
            refusal(&door.asking_for(name)).await;
        }
        refusal(&door.with(|config| config.enable_sni = false)).await;
    }
    let line = relay.wait_for_log("tls_failed").await;
    assert!(line.get("err").unwrap().contains("SNI is missing or is not --domain"), "{}", line.raw);
}

#[tokio::test]
async fn without_a_domain_any_name_is_served() {
    let relay = Relay::start_tls(&[]).await;
    for door in doors(&relay) {
        let nameless = door.with(|config| config.enable_sni = false);
        assert_eq!(ask(&nameless, Request::get("/healthz")).await.status, 200);
        // The relay shakes hands; that the certificate is of another name is for the client to say.
        let error = Raw::try_through(&door.asking_for("other.test")).await.map(drop).unwrap_err();
        assert!(error.to_string().contains("not valid for name"), "{error}");
        // And the Host may be any, too.
        let request = Request::get("/healthz").set("Host", "whatever.test:1");
        assert_eq!(ask(&door, request).await.status, 200);
    }
}

#[tokio::test]
async fn sessions_are_resumed_on_every_worker() {
    let relay = Relay::start_tls(&["--workers", "2"]).await;
    for door in doors(&relay) {
        // Each shows the ticket that it got from the one before; 24 coins do not fall alike.
        for number in 0..24 {
            let mut raw = Raw::through(&door).await;
            let kind = if number == 0 { HandshakeKind::Full } else { HandshakeKind::Resumed };
            assert_eq!(raw.tls().handshake_kind(), Some(kind), "{number}");
            raw.send(Request::get("/healthz").set("Connection", "close")).await;
            assert_eq!(raw.response().await.status, 200);
            assert_eq!(raw.assert_ended().await, End::Fin);
        }
    }
}

/// A ticket is bound to the name that it was given for.
#[tokio::test]
async fn a_ticket_does_not_get_anyone_past_the_name() {
    let relay = Relay::start_tls(&["--domain", DOMAIN]).await;
    for door in doors(&relay) {
        ask(&door, Request::get("/healthz")).await;
        let nameless = door.keeping(|config| config.enable_sni = false);
        refusal(&nameless).await;
    }
}

#[tokio::test]
async fn a_handshake_must_be_done_in_time() {
    let relay = Relay::start_tls(&["--header-timeout", "1s"]).await;
    let hello = relay.door().hello();
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    let prefixes = [0, 1, 4, 5, 6, 40, hello.len() - 1, hello.len()];
    for length in prefixes {
        let (mut raw, hello) = (Raw::connect_to(relay.addr()).await, hello[..length].to_vec());
        tasks.spawn(async move {
            raw.send(hello).await;
            // What there is to say so far, and nothing more.
            let (answer, _) = raw.rest().await;
            assert_eq!(records(&answer).is_empty(), length < prefixes[7], "{length}");
        });
    }
    for pause in [7, 30, 200] {
        let (mut raw, hello) = (Raw::connect_to(relay.addr()).await, hello.clone());
        tasks.spawn(async move {
            raw.dribble(hello, Duration::from_millis(pause)).await;
            records(&raw.rest().await.0);
        });
    }
    // Shaken hands do not start the clock anew, and nor does a part of the head.
    for said in ["", "GET /hea"] {
        let mut raw = Raw::through(&relay.door()).await;
        tasks.spawn(async move {
            raw.send(said).await;
            let (answer, _) = raw.rest().await;
            let answer = String::from_utf8(answer).unwrap();
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408 "), "{answer}");
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    let taken = begun.elapsed();
    assert!(taken >= Duration::from_millis(900), "they had {taken:?}");
    assert!(taken < Duration::from_secs(6), "they had {taken:?}");
}

#[tokio::test]
async fn a_slow_handshake_that_is_in_time_is_served() {
    let relay = Relay::start_tls(&["--header-timeout", "10s"]).await;
    for door in doors(&relay) {
        let mut socket = Raw::connect_to(relay.addr()).await;
        let mut client = door.tls.as_ref().unwrap().client();
        socket.shake_by_bytes(&mut client).await;
        assert!(!client.is_handshaking());
    }
}

/// What a Go server says, and the relay that this one replaces.
const HTTP_ON_HTTPS: &[u8] = b"Client sent an HTTP request to an HTTPS server.\n";

/// Who speaks HTTP in the clear is told so in the clear, whatever it asks for; how it arrives is
/// the same to it.
#[tokio::test]
async fn http_in_the_clear_is_400_in_the_clear() {
    let relay = Relay::start_tls(&["--header-timeout", "1s", "--domain", DOMAIN]).await;
    let upgrade = Request::server("id").bytes();
    let requests = [
        Request::get("/healthz").bytes(),
        Request::get("/nowhere").method("HEAD").bytes(),
        Request::get("/healthz").method("POST").bytes(),
        Request::get("/healthz").method("OPTIONS").bytes(),
        Request::get("/healthz").header("X-Long", [b'l'; 20_000]).bytes(),
        b"PUT /".to_vec(),
        upgrade.clone(),
        [Request::get("/healthz").bytes(), upgrade].concat(),
    ];
    for request in requests {
        for step in [1, 4, 5, 100_000] {
            let mut raw = Raw::connect_to(relay.addr()).await;
            let (first, rest) = request.split_at(request.len().min(8));
            for piece in first.chunks(step).chain([rest]) {
                let _ = raw.try_send(piece).await;
                tokio::task::yield_now().await;
            }
            let answer = raw.response().await;
            assert_eq!((answer.status, &answer.body[..]), (400, HTTP_ON_HTTPS));
            assert_eq!(answer.header("Connection"), Some("close"));
            assert_eq!(raw.assert_ended().await, End::Fin);
        }
    }
    let line = relay.wait_for_log("tls_failed").await;
    assert!(line.get("err").unwrap().contains("plain HTTP"), "{}", line.raw);
    relay.wait_for_counts(0, 0).await;
}

/// Of what is neither TLS nor HTTP, not a byte is answered in the clear but an alert.
#[tokio::test]
async fn nothing_else_is_ever_said_in_the_clear() {
    let relay = Relay::start_tls(&["--header-timeout", "1s", "--domain", DOMAIN]).await;
    let sslv2 = b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10\x01\x00\x80\x02\x00\x80\x03\x00\x80";
    let head = Request::server("id").bytes();
    let said: [&[u8]; 9] = [
        b"G",
        b"GET",
        b"GET x",
        b"GOT /",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64",
        sslv2,
        b"\x16\x03\x01\x00\x04GET ",
        b"\x17\x03\x03\x00\x10GET / HTTP/1.1\r\n",
        b"\r\n\r\n",
    ];
    for bytes in said {
        for pipelined in [false, true] {
            let mut raw = Raw::connect_to(relay.addr()).await;
            // It may be closed before all is sent.
            let _ = raw.try_send(bytes).await;
            if pipelined {
                let _ = raw.try_send(head.clone()).await;
            }
            let (answer, _) = raw.rest().await;
            for (kind, body) in records(&answer) {
                assert_eq!((kind, body[0]), (21, 2), "not a fatal alert: {body:?}");
            }
        }
    }
    // The same in the middle of a handshake and behind it.
    let hello = relay.door().hello();
    let mut raw = Raw::connect_to(relay.addr()).await;
    raw.send([&hello[..], &head].concat()).await;
    records(&raw.rest().await.0);
    let mut raw = Raw::through(&relay.door()).await;
    raw.send_past_tls(&head).await;
    let (answer, end) = raw.rest().await;
    assert_eq!(answer, b"");
    assert!(matches!(end, End::Alert(_)), "{end:?}");
}

#[tokio::test]
async fn another_host_than_the_domain_is_421() {
    let relay = Relay::start_tls(&["--domain", DOMAIN]).await;
    let door = relay.door();
    let status = async |request| ask(&door, request).await.status;
    let targets = ["/healthz", "/v1/server", "/nowhere"];
    for host in ["other.test", "relay.test.", "xrelay.test", "127.0.0.1", "relay.test:x"] {
        for target in targets {
            let got = status(Request::get(target).set("Host", host)).await;
            assert!([421, 400].contains(&got), "{host} {target}: {got}");
            if !host.ends_with('x') {
                assert_eq!(got, 421, "{host} {target}");
            }
        }
    }
    for host in ["relay.test", "RELAY.Test", "relay.test:443", "Relay.test:8443"] {
        assert_eq!(status(Request::get("/healthz").set("Host", host)).await, 200, "{host}");
    }
    // The target counts where it names a host (RFC 9112, section 3.2.2).
    let absolute = |authority: &str| Request::get(&format!("https://{authority}/healthz"));
    assert_eq!(status(absolute("relay.test")).await, 200);
    assert_eq!(status(absolute("relay.test:443")).await, 200);
    assert_eq!(status(absolute("relay.test").set("Host", "other.test")).await, 200);
    assert_eq!(status(absolute("other.test")).await, 421);
    assert_eq!(status(absolute("other.test").set("Host", "relay.test")).await, 421);
    let wrong = |request: Request| request.set("Host", "other.test");
    assert_eq!(status(wrong(Request::server("id"))).await, 421);
    assert_eq!(status(wrong(Request::client("id")).method("POST")).await, 421);
    assert_eq!(relay.health().await.connected_binaries, 0);
}
