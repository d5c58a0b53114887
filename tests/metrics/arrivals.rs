//! Connections that come, wait, are turned away, or never say what they want.

use super::common::certs::{Authority, Folder, connect};
use super::common::{PONG, Raw, Relay, Request, Response, SOON, Signal, limit_descriptors, masked};
use super::{get, metrics_of, samples, start, wait_for, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn connections_are_told_apart_by_how_far_they_have_come() {
    let args = ["--probe-timeout", "60s", "--close-timeout", "60s", "--header-timeout", "60s"];
    let (relay, addr) = start(&args).await;
    let mut holder = Raw::binary(&relay, "id").await;
    let mut newcomer = Raw::binary(&relay, "id").await;
    let ping = holder.recv_ping().await;
    let _idle = Raw::connect(&relay).await;
    // It is closed, and does not answer.
    let mut stray = Raw::phone(&relay, "nobody").await;
    assert_eq!(stray.recv_close().await.0, 4404);
    let expected = [
        ("connections{state=\"head\"}", 1.0),
        ("connections{state=\"moving\"}", 0.0),
        ("connections{state=\"newcomer\"}", 1.0),
        ("connections{state=\"binary\"}", 1.0),
        ("connections{state=\"phone\"}", 0.0),
        ("connections{state=\"closing\"}", 1.0),
        ("accepted_total", 4.0),
    ];
    wait_for(addr, &expected).await;
    holder.send(masked(PONG, ping)).await;
    assert_eq!(newcomer.closed().await.0, 4409);
    wait_for(addr, &[("connections{state=\"newcomer\"}", 0.0)]).await;
}

#[tokio::test]
async fn heads_and_headers_that_do_not_come_are_counted() {
    let args = ["--header-timeout", "1s", "--proxy-protocol-from", "127.0.0.2"];
    let (relay, addr) = start(&args).await;
    let mut silent = Raw::connect(&relay).await;
    silent.assert_ended().await;
    let mut slow = Raw::connect(&relay).await;
    slow.send("GET /v1/server HT").await;
    assert_eq!(slow.response().await.status, 408);
    let mut proxy = Raw::connect_from(&relay, "127.0.0.2".parse().unwrap()).await;
    proxy.send(Request::get("/healthz")).await;
    proxy.assert_ended().await;
    wait_for(
        addr,
        &[
            ("handshake_failures_total{kind=\"head_timeout\"}", 2.0),
            ("handshake_failures_total{kind=\"proxy_header\"}", 1.0),
        ],
    )
    .await;
}

#[tokio::test]
async fn caps_of_an_address_are_counted_apart() {
    let args = ["--max-connections-per-address", "1", "--header-timeout", "60s"];
    let (relay, addr) = start(&args).await;
    let _one = Raw::binary(&relay, "id").await;
    let mut other = Raw::connect(&relay).await;
    other.send(Request::server("other")).await;
    assert_eq!(other.response().await.status, 503);
    // However few WebSockets an address may have, it may ask; but not with any number of sockets.
    let mut silent = Vec::new();
    let refused = "connections_refused_total{cause=\"not_upgraded_per_address\"}";
    wait_until("a visitor too many", SOON, async || {
        // One that is refused may be gone before it is connected.
        silent.extend(Raw::try_connect_from(&relay, "127.0.0.1".parse().unwrap()).await);
        samples(addr).await[refused] > 0.0
    })
    .await;
    wait_for(addr, &[("connections_refused_total{cause=\"max_connections_per_address\"}", 1.0)])
        .await;
}

#[tokio::test]
async fn those_who_are_dropped_for_newcomers_are_counted() {
    let args = ["--metrics-listen", "127.0.0.1:0", "--workers", "1", "--header-timeout", "60s"];
    let args = [&args[..], &["--max-connections-per-address", "off"]].concat();
    let relay = Relay::start_with(&args, |command| limit_descriptors(command, 256, 256)).await;
    let addr = metrics_of(&relay).await;
    let mut silent = Vec::new();
    for _ in 0..67 {
        silent.push(Raw::connect(&relay).await);
    }
    for oldest in &mut silent[..3] {
        oldest.assert_ended().await;
    }
    wait_for(
        addr,
        &[
            ("connections_refused_total{cause=\"not_upgraded\"}", 3.0),
            ("connections{state=\"head\"}", 64.0),
        ],
    )
    .await;
}

#[tokio::test]
async fn pauses_of_accepting_are_counted() {
    // Those that are upgraded do not make room for one another.
    let args = ["--metrics-listen", "127.0.0.1:0", "--workers", "1", "--max-connections", "500"];
    let args = [&args[..], &["--max-connections-per-address", "off"]].concat();
    let relay = Relay::start_with(&args, |command| limit_descriptors(command, 64, 64)).await;
    let addr = metrics_of(&relay).await;
    // A connection that is there needs no descriptor, to ask with.
    let mut open = Raw::connect_to(addr).await;
    let mut text = async || {
        open.send(Request::get("/metrics").set("Host", "localhost")).await;
        String::from_utf8(open.response().await.body).unwrap()
    };
    let mut many = Vec::new();
    wait_until("a pause", SOON, async || {
        let mut raw = Raw::connect(&relay).await;
        raw.send(Request::server(many.len().to_string())).await;
        many.push(raw);
        !text().await.contains("\npyrycode_relay_accept_pauses_total 0\n")
    })
    .await;
}

#[tokio::test]
async fn what_goes_wrong_with_tls_is_counted() {
    let (authority, files) = (Authority::new(), Folder::new());
    let leaf = authority.leaf("relay.test");
    let (cert, key) = (files.write("c.pem", &leaf.chain), files.write("k.pem", &leaf.key));
    let https = ["--https-listen", "127.0.0.1:0", "--domain", "relay.test"];
    let (relay, addr) =
        start(&[&https[..], &["--tls-cert", &cert, "--tls-key", &key]].concat()).await;
    assert_eq!(samples(addr).await["certificate_failures_total"], 0.0);
    let expires_at = samples(addr).await["certificate_expires_at_seconds"];
    assert!(expires_at > 6e10, "the year 4096: {expires_at}");
    let mut plain = Raw::connect(&relay).await;
    plain.send(Request::get("/healthz")).await;
    plain.rest().await;
    assert!(connect(relay.addr(), "other.test", &authority.roots()).await.is_err());
    let mut tls = connect(relay.addr(), "relay.test", &authority.roots()).await.unwrap();
    tls.write_all(&Request::server("id").set("Host", "other.test").bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(super::common::soon("an answer", tls.read_u8()).await.unwrap());
    }
    assert_eq!(Response::parse(&String::from_utf8(answer).unwrap()).status, 421);
    wait_for(
        addr,
        &[
            ("handshake_failures_total{kind=\"tls\"}", 2.0),
            ("handshake_failures_total{kind=\"tls_rate_limit\"}", 0.0),
            ("handshake_failures_total{kind=\"other_host\"}", 1.0),
        ],
    )
    .await;
    files.write("c.pem", "no certificate");
    relay.signal(Signal::HangUp);
    wait_for(
        addr,
        &[("certificate_failures_total", 1.0), ("certificate_expires_at_seconds", expires_at)],
    )
    .await;
}

#[tokio::test]
async fn many_who_ask_at_once_are_all_told_the_same() {
    let (relay, addr) = start(&[]).await;
    let _binary = Raw::binary(&relay, "id").await;
    relay.wait_for_counts(1, 0).await;
    let ask = || tokio::spawn(async move { get(addr, "/metrics").await });
    let answers: Vec<_> = (0..100).map(|_| ask()).collect();
    for answer in answers {
        let answer = answer.await.unwrap();
        assert_eq!(answer.status, 200);
        let text = String::from_utf8(answer.body).unwrap();
        assert!(text.contains("\npyrycode_relay_connections{state=\"binary\"} 1\n"), "{text}");
    }
}

#[tokio::test]
async fn a_relay_that_has_just_started_says_when_and_keeps_to_it() {
    let (_relay, addr) = start(&[]).await;
    let since_1970 = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let first = samples(addr).await;
    let started = first["process_start_time_seconds"];
    assert!((since_1970 - 60.0..=since_1970 + 1.0).contains(&started), "{started}");
    wait_until("another second", SOON, async || {
        let next = samples(addr).await;
        assert_eq!(next["process_start_time_seconds"], started);
        next["uptime_seconds"] > first["uptime_seconds"]
    })
    .await;
}
