//! Who is calling: the peer, or whom a trusted proxy names. Limits and logs are told the same.

use super::common::{Raw, Relay, Request, SOON, wait_until};
use super::{HERE, ask, count_logs, new_id, status, there};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The remote that the log shows for the binary of `id`.
pub(super) async fn remote_of(relay: &Relay, id: &str) -> String {
    let line = relay.wait_for_log_where("server_claimed", |l| l.get("server_id") == Some(id)).await;
    line.get("remote").unwrap().to_owned()
}

fn forwarded(lines: &[&str]) -> (String, Request) {
    let id = new_id();
    let request = lines
        .iter()
        .fold(Request::server(&id), |request, line| request.header("X-Forwarded-For", line));
    (id, request)
}

/// A PROXY header, version 2, for TCP from `source`.
pub(super) fn proxy_header(source: &str) -> Vec<u8> {
    let source: SocketAddr = source.parse().unwrap();
    let (family, addresses) = match source.ip() {
        IpAddr::V4(ip) => (0x11, [&ip.octets()[..], &[198, 51, 100, 2]].concat()),
        IpAddr::V6(ip) => (0x21, [&ip.octets()[..], &[0xfd; 16]].concat()),
    };
    let ports = [source.port().to_be_bytes(), 443u16.to_be_bytes()].concat();
    header(0x21, family, &[addresses, ports].concat())
}

pub(super) fn header(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, payload].concat()
}

async fn status_behind_proxy(relay: &Relay, source: &str, request: Request) -> u16 {
    let mut raw = Raw::connect(relay).await;
    raw.send([proxy_header(source), request.bytes()].concat()).await;
    raw.response().await.status
}

#[tokio::test]
async fn the_right_most_untrusted_entry_is_the_caller() {
    let relay = Relay::start(&["--trust-x-forwarded-for", "127.0.0.0/8,10.0.0.0/8,fd00::/8"]).await;
    let table: &[(&[&str], Option<&str>)] = &[
        (&["192.0.2.1"], Some("192.0.2.1")),
        (&["192.0.2.1:567"], Some("192.0.2.1:567")),
        (&["[2001:db8::1]:5"], Some("[2001:db8::1]:5")),
        (&["2001:db8::1"], Some("2001:db8::1")),
        (&["::ffff:192.0.2.1"], Some("192.0.2.1")),
        (&["198.51.100.1, 192.0.2.1"], Some("192.0.2.1")),
        (&["198.51.100.1, 192.0.2.1, 10.0.0.1, 127.0.0.9"], Some("192.0.2.1")),
        (&["198.51.100.1", "192.0.2.1, fd00::1", "10.0.0.1"], Some("192.0.2.1")),
        (&["nonsense, 192.0.2.1"], Some("192.0.2.1")),
        // Nothing that can be believed: the peer itself.
        (&[], None),
        (&[""], None),
        (&["192.0.2.1, nonsense"], None),
        (&["192.0.2.1", "unknown"], None),
        (&["10.0.0.1, 10.0.0.2"], None),
    ];
    for (lines, expected) in table {
        let (id, request) = forwarded(lines);
        let (response, _raw) = ask(&relay, there(7), request).await;
        assert_eq!(response.status, 101);
        let remote = remote_of(&relay, &id).await;
        match expected {
            Some(expected) => assert_eq!(remote, *expected, "{lines:?}"),
            None => assert!(remote.starts_with("127.0.0.7:"), "{lines:?}: {remote}"),
        }
    }
}

#[tokio::test]
async fn who_is_not_trusted_speaks_for_nobody() {
    let relay =
        Relay::start(&["--trust-x-forwarded-for", "127.0.0.2/32", "--rate-limit", "1/1h"]).await;
    let (id, request) = forwarded(&["192.0.2.1"]);
    assert_eq!(status(&relay, there(3), request).await, 101);
    assert!(remote_of(&relay, &id).await.starts_with("127.0.0.3:"));
    for number in 0..5 {
        let (_, request) = forwarded(&[&format!("192.0.2.{number}")]);
        assert_eq!(status(&relay, there(3), request).await, 429);
    }
    assert_eq!(status(&relay, there(2), forwarded(&["192.0.2.1"]).1).await, 101);
    // And no flag at all trusts nobody.
    let relay = Relay::start(&[]).await;
    let (id, request) = forwarded(&["192.0.2.1"]);
    assert_eq!(status(&relay, HERE, request).await, 101);
    assert!(remote_of(&relay, &id).await.starts_with("127.0.0.1:"));
}

#[tokio::test]
async fn limits_follow_the_caller_and_not_the_proxy() {
    let args = ["--trust-x-forwarded-for", "127.0.0.0/8", "--rate-limit", "1/1h"];
    let relay = Relay::start(&args).await;
    // Each row's second request comes from the same caller as the first.
    let same = [
        ("192.0.2.1", "192.0.2.1:99"),
        ("192.0.2.2", "::ffff:192.0.2.2"),
        ("2001:db8:1:1::1", "2001:db8:1:1:ffff:ffff:ffff:ffff"),
        ("[2001:db8:1:2::1]:5", "2001:db8:1:2::2"),
        ("203.0.113.1, 192.0.2.3", "203.0.113.2, 192.0.2.3"),
        ("192.0.2.4", "192.0.2.9, 192.0.2.4, 127.0.0.5"),
    ];
    for (first, second) in same {
        assert_eq!(status(&relay, HERE, forwarded(&[first]).1).await, 101, "{first}");
        assert_eq!(status(&relay, there(9), forwarded(&[second]).1).await, 429, "{second}");
    }
    for other in ["2001:db8:1:3::1", "2001:db8:1:4::1", "192.0.2.5", "::192.0.2.1"] {
        assert_eq!(status(&relay, HERE, forwarded(&[other]).1).await, 101, "{other}");
    }
    // Garbage counts for the proxy itself.
    assert_eq!(status(&relay, HERE, forwarded(&["garbage"]).1).await, 101);
    assert_eq!(status(&relay, HERE, forwarded(&["192.0.2.77, garbage"]).1).await, 429);
    // The log may be behind the answers.
    wait_until("three lines", SOON, async || count_logs(&relay, "rate_limited") >= 3).await;
    let lines = relay.logs();
    let mut limited: Vec<&str> = lines
        .iter()
        .filter(|line| line.event() == "rate_limited")
        .map(|line| line.get("remote").unwrap())
        .collect();
    limited.truncate(3);
    let expected = ["192.0.2.1:99", "192.0.2.2", "2001:db8:1:1:ffff:ffff:ffff:ffff"];
    assert_eq!(limited, expected);
}

#[tokio::test]
async fn places_follow_the_caller_and_not_the_proxy() {
    let args = ["--trust-x-forwarded-for", "127.0.0.0/8", "--max-connections-per-address", "2"];
    let relay = Relay::start(&[&args[..], &["--header-timeout", "60s"]].concat()).await;
    // A proxy keeps as many sockets as it likes.
    let mut idle = Vec::new();
    for _ in 0..60 {
        idle.push(Raw::connect(&relay).await);
    }
    let mut live = Vec::new();
    for caller in ["192.0.2.1", "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"] {
        let (response, raw) = ask(&relay, HERE, forwarded(&[caller]).1).await;
        assert_eq!(response.status, 101, "{caller}");
        live.push(raw);
    }
    for caller in ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::3"] {
        assert_eq!(status(&relay, HERE, forwarded(&[caller]).1).await, 503, "{caller}");
    }
    live.remove(0).abort();
    wait_until("a place of the caller", SOON, async || {
        status(&relay, HERE, forwarded(&["192.0.2.1"]).1).await == 101
    })
    .await;
    for mut raw in idle {
        raw.send(Request::get("/healthz")).await;
        assert_eq!(raw.response().await.status, 200);
    }
}

#[tokio::test]
async fn a_proxy_header_names_the_caller() {
    let args = ["--proxy-protocol-from", "127.0.0.1", "--rate-limit", "1/1h"];
    let relay = Relay::start(&args).await;
    for source in ["192.0.2.1:4660", "[2001:db8::1]:80", "192.0.2.3:1"] {
        let id = new_id();
        assert_eq!(status_behind_proxy(&relay, source, Request::server(&id)).await, 101);
        assert_eq!(remote_of(&relay, &id).await, source);
    }
    for source in ["192.0.2.1:1", "[::ffff:192.0.2.1]:2", "[2001:db8::2]:3"] {
        let status = status_behind_proxy(&relay, source, Request::server(new_id())).await;
        assert_eq!(status, 429, "{source}");
    }
    let id = new_id();
    let source = "[::ffff:192.0.2.9]:7";
    assert_eq!(status_behind_proxy(&relay, source, Request::server(&id)).await, 101);
    assert_eq!(remote_of(&relay, &id).await, "192.0.2.9:7");
    // Byte by byte, and the request behind it.
    let mut raw = Raw::connect(&relay).await;
    let request = Request::server(new_id()).bytes();
    raw.dribble([proxy_header("192.0.2.4:1"), request].concat(), Duration::ZERO).await;
    assert_eq!(raw.response().await.status, 101);
    // Whoever is not behind the proxy brings no header, and none is read.
    assert_eq!(status(&relay, there(2), Request::server(new_id())).await, 101);
    let mut raw = Raw::connect_from(&relay, there(3)).await;
    raw.send(proxy_header("192.0.2.5:1")).await;
    assert_eq!(raw.response().await.status, 400);
}

#[tokio::test]
async fn anything_but_a_proxy_header_is_closed_without_a_word() {
    let args = ["--proxy-protocol-from", "127.0.0.0/8", "--header-timeout", "1s"];
    let relay = Relay::start(&args).await;
    let v4 = proxy_header("192.0.2.1:1");
    let request = Request::get("/healthz").bytes();
    for bytes in [
        request.clone(),
        b"PROXY TCP4 192.0.2.1 192.0.2.2 5 6\r\n".to_vec(),
        // A command and a family that are none; addresses that are not there.
        header(0x22, 0x11, &v4[16..]),
        header(0x21, 0x41, &v4[16..]),
        header(0x21, 0x21, &v4[16..]),
        b"\r\n\r\n\0\r\nQUIX".to_vec(),
    ] {
        let mut raw = Raw::connect(&relay).await;
        // It may be closed before all is sent.
        let _ = raw.try_send([bytes, request.clone()].concat()).await;
        raw.assert_ended().await;
    }
    // Nothing, or half a header, within the time for it.
    let long = header(0x20, 0x00, &[0; 60_000]);
    for bytes in [&v4[..0], &v4[..20], &long[..59_000]] {
        let mut raw = Raw::connect(&relay).await;
        raw.send(bytes).await;
        raw.assert_ended().await;
    }
    assert_eq!(status_behind_proxy(&relay, "192.0.2.1:1", Request::get("/healthz")).await, 200);
}

/// Headers that name nobody, and how they are called.
pub(super) fn headers_of_nobody() -> Vec<(&'static str, Vec<u8>)> {
    let addresses = &proxy_header("192.0.2.1:1")[16..];
    vec![
        ("LOCAL, of HAProxy and Traefik", header(0x20, 0x00, &[])),
        ("LOCAL, with dummy addresses", header(0x20, 0x11, addresses)),
        ("LOCAL, with the most extensions", header(0x20, 0x11, &[0; 65_535])),
        ("unspecified", header(0x21, 0x00, &[])),
        ("UNIX", header(0x21, 0x31, &[0; 216])),
        ("UDP", header(0x21, 0x12, addresses)),
    ]
}

#[tokio::test]
async fn a_header_that_names_nobody_leaves_the_peers_own_address() {
    let relay = Relay::start(&["--proxy-protocol-from", "127.0.0.7"]).await;
    for (what, header) in headers_of_nobody() {
        let id = new_id();
        let mut raw = Raw::connect_from(&relay, there(7)).await;
        let request = [Request::get("/healthz").bytes(), Request::server(&id).bytes()].concat();
        raw.send([header.clone(), request].concat()).await;
        assert_eq!(raw.response().await.status, 200, "{what}");
        assert_eq!(raw.response().await.status, 101, "{what}");
        let remote = remote_of(&relay, &id).await;
        assert!(remote.starts_with("127.0.0.7:"), "{what}: {remote}");
        // Nobody else may begin like this.
        let mut raw = Raw::connect_from(&relay, there(8)).await;
        raw.send(&header[..header.len().min(100)]).await;
        assert_eq!(raw.response().await.status, 400, "{what}");
    }
}

#[tokio::test]
async fn the_most_extensions_that_a_header_can_have_are_passed_over() {
    let relay = Relay::start(&["--proxy-protocol-from", "127.0.0.1"]).await;
    let addresses = proxy_header("192.0.2.1:4660")[16..].to_vec();
    let long = header(0x21, 0x11, &[addresses, vec![0xee; 65_535 - 12]].concat());
    for step in [1000, 65_000, 100_000] {
        let id = new_id();
        let mut raw = Raw::connect(&relay).await;
        for piece in [long.clone(), Request::server(&id).bytes()].concat().chunks(step) {
            raw.send(piece).await;
        }
        assert_eq!(raw.response().await.status, 101, "{step}");
        assert_eq!(remote_of(&relay, &id).await, "192.0.2.1:4660");
    }
}

#[tokio::test]
async fn sockets_behind_a_proxy_count_for_whom_it_names() {
    let args = ["--proxy-protocol-from", "127.0.0.0/8", "--max-connections-per-address", "16"];
    let relay = Relay::start(&[&args[..], &["--header-timeout", "60s"]].concat()).await;
    let mut idle = Vec::new();
    for number in 0..40 {
        let mut raw = Raw::connect(&relay).await;
        if number < 16 {
            raw.send([proxy_header("192.0.2.1:5"), Request::get("/healthz").bytes()].concat())
                .await;
            assert_eq!(raw.response().await.status, 200);
        }
        idle.push(raw);
    }
    let mut raw = Raw::connect(&relay).await;
    raw.send(proxy_header("192.0.2.1:5")).await;
    raw.assert_ended().await;
    assert_eq!(status_behind_proxy(&relay, "192.0.2.2:5", Request::get("/healthz")).await, 200);
    let line = relay.wait_for_log("conn_cap_reached").await;
    assert_eq!(line.get("remote"), Some("192.0.2.1:5"));
}

#[tokio::test]
async fn a_proxy_header_may_name_a_proxy_that_forwards() {
    let trust = ["--trust-x-forwarded-for", "10.0.0.0/8", "--proxy-protocol-from", "127.0.0.0/8"];
    let relay = Relay::start(&trust).await;
    let (id, request) = forwarded(&["192.0.2.1"]);
    assert_eq!(status_behind_proxy(&relay, "10.0.0.1:5", request).await, 101);
    assert_eq!(remote_of(&relay, &id).await, "192.0.2.1");
    let (id, request) = forwarded(&["192.0.2.1"]);
    assert_eq!(status_behind_proxy(&relay, "192.0.2.8:5", request).await, 101);
    assert_eq!(remote_of(&relay, &id).await, "192.0.2.8:5");
}
