//! Token buckets: who has one, what takes of it, when it fills.

use super::common::{Raw, Relay, Request, SOON, wait_until};
use super::{HERE, ask, count_logs, new_id, retry_after, status, there};
use std::time::{Duration, Instant};

fn server() -> Request {
    Request::server(new_id())
}

#[tokio::test]
async fn a_burst_then_429_with_the_time_to_wait() {
    let relay = Relay::start(&["--rate-limit", "3/1h"]).await;
    for request in [server(), Request::client(new_id()), server()] {
        assert_eq!(status(&relay, HERE, request).await, 101);
    }
    for request in [server(), Request::client(new_id())] {
        let (response, mut raw) = ask(&relay, HERE, request).await;
        assert_eq!(response.status, 429);
        assert!((3500..=3600).contains(&retry_after(&response)), "{}", response.head);
        assert_eq!(response.header("Connection"), Some("close"));
        assert_eq!(response.body, b"too many requests\n");
        raw.assert_ended().await;
    }
    assert_eq!(status(&relay, there(2), server()).await, 101, "another address");
}

#[tokio::test]
async fn by_default_twenty_and_one_more_every_six_seconds() {
    let mut command =
        super::common::command(&["--insecure-listen", "127.0.0.1:0", "--metrics-listen", ""]);
    command.args(["--log-format", "json"]);
    let started = Instant::now();
    let relay = Relay::listening(super::common::Process::spawn(command)).await;
    let mut taken = 0;
    let refusal = loop {
        let (response, _raw) = ask(&relay, HERE, server()).await;
        match response.status {
            101 => taken += 1,
            _ => break response,
        }
    };
    assert_eq!(refusal.status, 429);
    let grown = started.elapsed().as_secs() / 6;
    assert!((20..=20 + grown).contains(&taken), "{taken}");
    assert!((1..=6).contains(&retry_after(&refusal)), "{}", refusal.head);
}

#[tokio::test]
async fn tokens_grow_back_one_at_a_time() {
    let refill = Duration::from_millis(200);
    let relay = Relay::start(&["--rate-limit", "2/200ms"]).await;
    let started = Instant::now();
    let (mut taken, mut refused) = (0, 0);
    // Refusals cost nothing, so those who hammer get one token after the other all the same.
    while taken < 8 {
        match status(&relay, HERE, server()).await {
            101 => taken += 1,
            429 => refused += 1,
            other => panic!("{other}"),
        }
        // The relay counts whole milliseconds, so it may be one ahead.
        let grown = (started.elapsed().as_millis() + 1) / refill.as_millis();
        assert!(taken <= 2 + grown, "{taken} after {:?}", started.elapsed());
        assert!(started.elapsed() < SOON);
    }
    assert!(refused > 0);
    let (response, _raw) = loop {
        let answer = ask(&relay, HERE, server()).await;
        if answer.0.status == 429 {
            break answer;
        }
    };
    assert_eq!(retry_after(&response), 1, "rounded up");
    wait_until("a token", SOON, async || status(&relay, HERE, server()).await == 101).await;
}

#[tokio::test]
async fn only_upgrade_requests_that_can_be_read_take_tokens() {
    let relay = Relay::start(&["--rate-limit", "3/1h"]).await;
    let mut alive = Raw::connect(&relay).await;
    for _ in 0..10 {
        alive.send(Request::get("/healthz")).await;
        assert_eq!(alive.response().await.status, 200);
        for (request, expected) in [
            (Request::get("/healthz"), 200),
            (Request::get("/healthz").method("POST"), 405),
            (Request::upgrade("/v2/server"), 404),
            (Request::upgrade("/v1/server/"), 404),
            (server().header("Host", "again"), 400),
            (server().header("X", "y".repeat(20_000)), 431),
        ] {
            assert_eq!(status(&relay, HERE, request).await, expected);
        }
    }
    // These do, whether they are good or not: a required header, then the handshake.
    assert_eq!(status(&relay, HERE, server().without("X-Pyrycode-Server")).await, 400);
    assert_eq!(status(&relay, HERE, server().without("Upgrade")).await, 426);
    assert_eq!(status(&relay, HERE, server()).await, 101);
    for request in [server(), server().without("X-Pyrycode-Server"), server().without("Upgrade")] {
        assert_eq!(status(&relay, HERE, request).await, 429, "before the headers are looked at");
    }
    assert_eq!(status(&relay, HERE, Request::upgrade("/v2/server")).await, 404, "after the route");
    assert_eq!(status(&relay, HERE, Request::get("/healthz")).await, 200);
    // A connection that was refused nothing so far is like any other.
    alive.send(server()).await;
    assert_eq!(alive.response().await.status, 429);
    alive.assert_ended().await;
}

#[tokio::test]
async fn rates_come_before_places() {
    let relay = Relay::start(&["--rate-limit", "2/1h", "--max-connections", "1"]).await;
    let _binary = Raw::binary(&relay, "id").await;
    assert_eq!(status(&relay, HERE, server().without("User-Agent")).await, 503);
    assert_eq!(status(&relay, HERE, server()).await, 429);
}

#[tokio::test]
async fn who_hammers_is_turned_away_cheaply_and_fills_no_log() {
    let relay = Relay::start(&["--rate-limit", "1/1h"]).await;
    assert_eq!(status(&relay, there(3), server()).await, 101);
    assert_eq!(status(&relay, there(4), server()).await, 101);
    let descriptors = relay.descriptors();
    for _ in 0..300 {
        assert_eq!(status(&relay, there(3), server()).await, 429);
    }
    assert_eq!(status(&relay, there(4), Request::client(new_id())).await, 429);
    for (address, path) in [("127.0.0.3:", "/v1/server"), ("127.0.0.4:", "/v1/client")] {
        let from = |remote: Option<&str>| remote.is_some_and(|remote| remote.starts_with(address));
        let line = relay.wait_for_log_where("rate_limited", |line| from(line.get("remote"))).await;
        assert_eq!(line.get("path"), Some(path));
    }
    // Twenty of the one address, and one of the other; after a minute there may be one more.
    assert!((2..=22).contains(&count_logs(&relay, "rate_limited")));
    wait_until("their sockets are gone", SOON, async || relay.descriptors() <= descriptors).await;
}
