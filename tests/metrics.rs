//! PROTOCOL.md, chapter 7: metrics, health and readiness on `--metrics-listen`.
//!
//! - here: what is forwarded, claimed and refused; the listener
//! - `arrivals`: connections that come, wait, or never say what they want
//! - `ends`: every way in which they end
//! - `tools`: what promtool says of it

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    missing_docs
)]

mod common;

#[path = "metrics/arrivals.rs"]
mod arrivals;
#[path = "metrics/ends.rs"]
mod ends;
#[path = "metrics/tools.rs"]
mod tools;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use common::{
    CLOSE, Hostile, Process, Raw, Relay, Request, Response, SOON, Signal, TEXT, close_directive,
    command, envelope, masked, open_envelope, run, wait_until,
};

/// A relay that serves metrics, and where.
async fn start(args: &[&str]) -> (Relay, SocketAddr) {
    let relay = Relay::start(&[&["--metrics-listen", "127.0.0.1:0"], args].concat()).await;
    let addr = metrics_of(&relay).await;
    (relay, addr)
}

/// Where `relay` serves metrics.
async fn metrics_of(relay: &Relay) -> SocketAddr {
    let line = relay.wait_for_log("listening_for_metrics").await;
    line.get("remote").unwrap().parse().unwrap()
}

async fn ask(addr: SocketAddr, request: Request) -> Response {
    let mut raw = Raw::connect_to(addr).await;
    raw.send(request.set("Host", addr.to_string())).await;
    raw.response().await
}

async fn get(addr: SocketAddr, path: &str) -> Response {
    ask(addr, Request::get(path)).await
}

/// Every sample, by its name and labels.
async fn samples(addr: SocketAddr) -> BTreeMap<String, f64> {
    let response = get(addr, "/metrics").await;
    assert_eq!(response.status, 200);
    let text = String::from_utf8(response.body).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.strip_prefix("pyrycode_relay_").unwrap_or(name).to_owned(), value.parse().unwrap())
    };
    lines.map(sample).collect()
}

/// Waits until each of these stands at its value.
async fn wait_for(addr: SocketAddr, expected: &[(&str, f64)]) {
    let mut seen = BTreeMap::new();
    let end = std::time::Instant::now() + SOON;
    loop {
        seen.extend(samples(addr).await);
        let off: Vec<_> =
            expected.iter().filter(|(name, value)| seen.get(*name) != Some(value)).collect();
        if off.is_empty() {
            return;
        }
        assert!(std::time::Instant::now() < end, "never: {off:?}; there is {seen:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// A phone of `binary` that has been heard, and its conn_id.
async fn meet(relay: &Relay, binary: &mut Raw, id: &str) -> (Raw, String) {
    let mut phone = Raw::phone(relay, id).await;
    phone.send(masked(TEXT, "[1]")).await;
    loop {
        let text = binary.recv_text().await;
        // What comes of phones that have left is not of interest here.
        if !text.contains("close_code") {
            return (phone, open_envelope(&text).0);
        }
    }
}

// ---- what is counted

#[tokio::test]
async fn everything_is_there_from_the_start() {
    let (relay, addr) = start(&[]).await;
    let samples = samples(addr).await;
    for (name, value) in &samples {
        let stands = ["process_", "ready", "build_info", "max_", "memory_budget", "uptime"];
        // The loop turns, and so does the clock.
        let moves = ["loop_", "ring_", "worker_cpu"];
        if !stands.iter().chain(&moves).any(|prefix| name.starts_with(prefix)) {
            let is_expiry = name.starts_with("certificate_expires");
            assert!(*value == 0.0 || is_expiry, "{name} {value}");
        }
    }
    assert_eq!(samples["ready"], 1.0);
    let (version, commit) = (env!("CARGO_PKG_VERSION"), env!("PYRYCODE_RELAY_COMMIT"));
    let build = format!("build_info{{version=\"{version}\",commit=\"{commit}\"}}");
    assert_eq!(samples[build.as_str()], 1.0);
    assert!(samples["worker_cpu_seconds_total{core=\"1\"}"] < 1.0, "it has done nothing yet");
    assert!(samples["process_open_fds"] > 3.0 && samples["process_max_fds"] > 100.0);
    assert!(samples["process_resident_memory_bytes"] > 1e6);
    drop(relay);
}

#[tokio::test]
async fn frames_are_counted_where_they_are_forwarded() {
    let (relay, addr) = start(&[]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let (mut phone, conn_id) = meet(&relay, &mut binary, "id").await;
    for _ in 0..3 {
        binary.send(masked(TEXT, envelope(&conn_id, "\"four\""))).await;
        phone.recv_text().await;
    }
    wait_for(
        addr,
        &[
            ("frames_forwarded_total{direction=\"phone_to_binary\"}", 1.0),
            ("frames_forwarded_total{direction=\"binary_to_phone\"}", 3.0),
            ("forwarded_bytes_total{direction=\"phone_to_binary\"}", 3.0),
            ("forwarded_bytes_total{direction=\"binary_to_phone\"}", 18.0),
            ("delay_seconds_count", 4.0),
            ("connected_binaries", 1.0),
            ("connected_phones", 1.0),
            ("connections{state=\"binary\"}", 1.0),
            ("connections{state=\"phone\"}", 1.0),
            ("ws_upgrade_attempts_total{endpoint=\"server\",outcome=\"accept\"}", 1.0),
            ("ws_upgrade_attempts_total{endpoint=\"client\",outcome=\"accept\"}", 1.0),
        ],
    )
    .await;
}

#[tokio::test]
async fn refusals_are_counted_by_their_cause() {
    let args =
        ["--rate-limit", "5/24h", "--max-phones", "1", "--trust-x-forwarded-for", "127.0.0.1"];
    let (relay, addr) = start(&args).await;
    let mut from = 0;
    let mut dial = async |request: Request| {
        from += 1;
        let mut raw = Raw::connect(&relay).await;
        raw.send(request.header("X-Forwarded-For", format!("10.0.0.{from}"))).await;
        (raw.response().await.status, raw)
    };
    let (_, _stays) = dial(Request::server("id")).await;
    let (_, _also) = dial(Request::client("id")).await;
    let (_, mut at_cap) = dial(Request::client("id")).await;
    assert_eq!(at_cap.closed().await.0, 4429);
    let (_, mut stray) = dial(Request::client("nobody")).await;
    assert_eq!(stray.closed().await.0, 4404);
    assert_eq!(dial(Request::server("id").without("X-Pyrycode-Version")).await.0, 400);
    assert_eq!(dial(Request::client("id").without("Upgrade")).await.0, 426);
    for _ in 0..6 {
        let mut raw = Raw::connect(&relay).await;
        raw.send(Request::client("id").header("X-Forwarded-For", "10.9.9.9")).await;
        raw.response().await;
    }
    let mut garbage = Raw::connect(&relay).await;
    garbage.send("GET / HTTP/1.1\r\nbad line\r\n\r\n").await;
    assert_eq!(garbage.response().await.status, 400);
    wait_for(
        addr,
        &[
            ("ws_upgrade_attempts_total{endpoint=\"client\",outcome=\"reject_429\"}", 6.0),
            ("ws_upgrade_attempts_total{endpoint=\"client\",outcome=\"reject_404\"}", 1.0),
            ("ws_upgrade_attempts_total{endpoint=\"server\",outcome=\"reject_headers\"}", 1.0),
            ("ws_upgrade_attempts_total{endpoint=\"client\",outcome=\"reject_headers\"}", 1.0),
            ("ws_upgrade_attempts_total{endpoint=\"client\",outcome=\"reject_rate_limit\"}", 1.0),
            ("register_failures_total{kind=\"phones_at_cap\"}", 6.0),
            ("register_failures_total{kind=\"no_server\"}", 1.0),
            ("register_failures_total{kind=\"ratelimit\"}", 1.0),
            ("closes_total{code=\"4429\",reason=\"too_many_phones\"}", 6.0),
            ("closes_total{code=\"4404\",reason=\"no_server\"}", 1.0),
            ("handshake_failures_total{kind=\"bad_head\"}", 1.0),
        ],
    )
    .await;
}

#[tokio::test]
async fn the_caps_on_connections_are_counted_apart() {
    let (relay, addr) = start(&["--max-connections", "1"]).await;
    let _one = Raw::binary(&relay, "id").await;
    let mut other = Raw::connect(&relay).await;
    other.send(Request::server("other")).await;
    assert_eq!(other.response().await.status, 503);
    wait_for(
        addr,
        &[("connections_refused_total{cause=\"max_connections\"}", 1.0), ("max_connections", 1.0)],
    )
    .await;
}

#[tokio::test]
async fn claims_and_graces_are_counted_by_their_outcome() {
    let (relay, addr) = start(&["--grace", "2s", "--probe-timeout", "1s"]).await;
    // A living holder, a reclaim, a silent holder, and a grace that runs out.
    let mut holder = Raw::binary(&relay, "id").await;
    let mut newcomer = Raw::binary(&relay, "id").await;
    let ping = holder.recv_ping().await;
    holder.send(masked(common::PONG, ping)).await;
    assert_eq!(newcomer.closed().await.0, 4409);
    holder.hang_up();
    relay.wait_for_counts(0, 0).await;
    let _silent = Raw::binary(&relay, "id").await;
    let winner = Raw::binary(&relay, "id").await;
    relay.wait_for_log("server_id_takeover").await;
    winner.hang_up();
    wait_for(
        addr,
        &[
            ("ws_upgrade_attempts_total{endpoint=\"server\",outcome=\"accept\"}", 3.0),
            ("ws_upgrade_attempts_total{endpoint=\"server\",outcome=\"reject_409\"}", 1.0),
            ("register_failures_total{kind=\"server_in_use\"}", 1.0),
            ("takeovers_total", 1.0),
            ("reclaims_total", 1.0),
            ("grace_expiries_total", 1.0),
            ("closes_total{code=\"4409\",reason=\"already_claimed\"}", 1.0),
            ("closes_total{code=\"1011\",reason=\"heartbeat_timeout\"}", 1.0),
            ("connected_binaries", 0.0),
        ],
    )
    .await;
}

#[tokio::test]
async fn ends_are_counted_by_their_reason() {
    let (relay, addr) = start(&["--message-timeout", "300ms"]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let (mut asked, conn_id) = meet(&relay, &mut binary, "id").await;
    binary.send(masked(TEXT, close_directive(&conn_id, 1002))).await;
    assert_eq!(asked.closed().await.0, 1002);
    let (mut rude, _) = meet(&relay, &mut binary, "id").await;
    rude.send(Hostile::new(TEXT, "x").rsv(1)).await;
    assert_eq!(rude.closed().await.0, 1002);
    let (mut no_json, _) = meet(&relay, &mut binary, "id").await;
    no_json.send(masked(TEXT, "no JSON")).await;
    assert_eq!(no_json.closed().await.0, 1000);
    let (mut polite, _) = meet(&relay, &mut binary, "id").await;
    polite.send(masked(CLOSE, "")).await;
    polite.recv_close().await;
    let (gone, _) = meet(&relay, &mut binary, "id").await;
    gone.abort();
    let (mut slow, _) = meet(&relay, &mut binary, "id").await;
    slow.send([0x81]).await;
    slow.assert_ended().await;
    binary.send(masked(TEXT, "no envelope")).await;
    binary.send(masked(TEXT, envelope(&conn_id, "1"))).await;
    wait_for(
        addr,
        &[
            ("closes_total{code=\"other\",reason=\"asked_by_binary\"}", 1.0),
            ("closes_total{code=\"1002\",reason=\"protocol_error\"}", 1.0),
            ("closes_total{code=\"1000\",reason=\"normal\"}", 1.0),
            ("closes_total{code=\"1005\",reason=\"asked_by_peer\"}", 1.0),
            ("connections_lost_total{reason=\"peer_gone\"}", 1.0),
            ("connections_lost_total{reason=\"message_timeout\"}", 1.0),
            ("malformed_messages_total{from=\"binary\"}", 1.0),
            ("malformed_messages_total{from=\"phone\"}", 1.0),
            ("unknown_conn_ids_total", 1.0),
        ],
    )
    .await;
}

#[tokio::test]
async fn no_label_comes_from_a_peer() {
    let (relay, addr) = start(&[]).await;
    let before: Vec<String> = samples(addr).await.into_keys().collect();
    let secret = "5ecret\",evil=\"1";
    let mut binary = Raw::binary(&relay, secret).await;
    let request = Request::client(secret).header("X-Pyrycode-Device-Name", secret);
    let mut phone = Raw::connect(&relay).await.upgrade(request).await;
    phone.send(masked(TEXT, "1")).await;
    binary.recv_text().await;
    let after: Vec<String> = samples(addr).await.into_keys().collect();
    assert_eq!(before, after);
}

// ---- the listener

#[tokio::test]
async fn health_is_told_as_on_the_data_plane_and_readiness_beside_it() {
    let (relay, addr) = start(&[]).await;
    let _binary = Raw::binary(&relay, "id").await;
    relay.wait_for_counts(1, 0).await;
    let health = get(addr, "/healthz").await;
    assert_eq!(health.status, 200);
    assert_eq!(health.header("content-type"), Some("application/json; charset=utf-8"));
    assert_eq!(health.header("cache-control"), Some("no-store"));
    let body = String::from_utf8(health.body).unwrap();
    assert!(body.starts_with("{\"status\":\"ok\",\"version\":"), "{body}");
    assert!(body.contains("\"connected_binaries\":1,\"connected_phones\":0,"), "{body}");
    assert_eq!(get(addr, "/readyz").await.status, 200);
}

#[tokio::test]
async fn while_draining_it_is_not_ready_and_still_tells() {
    let (mut relay, addr) = start(&[]).await;
    // It never answers its close, so the relay waits for it.
    let mut binary = Raw::binary(&relay, "id").await;
    relay.signal(Signal::Term);
    assert_eq!(binary.recv_close().await.0, 1001);
    let answer = get(addr, "/readyz").await;
    assert_eq!(answer.status, 503);
    assert_eq!(samples(addr).await["ready"], 0.0);
    assert_eq!(samples(addr).await["closes_total{code=\"1001\",reason=\"shutting_down\"}"], 1.0);
    binary.abort();
    assert!(relay.wait_exit(SOON).await.status.success());
}

#[tokio::test]
async fn it_answers_this_machine_alone_and_only_what_it_knows() {
    let (_relay, addr) = start(&[]).await;
    for (request, status) in [
        (Request::get("/metrics").set("Host", "relay.example.com"), 421),
        (Request::get("/metrics").set("Host", "localhost:9090"), 200),
        (Request::get("/nothing").set("Host", "127.0.0.1"), 404),
        (Request::get("/v1/server").set("Host", "127.0.0.1"), 404),
        (Request::get("/metrics").set("Host", "127.0.0.1").method("POST"), 405),
        // No browser leaves it out.
        (Request::get("/metrics").without("Host"), 200),
    ] {
        let shown = format!("{request:?}");
        let mut raw = Raw::connect_to(addr).await;
        raw.send(request).await;
        assert_eq!(raw.response().await.status, status, "{shown}");
    }
    let mut head = Raw::connect_to(addr).await;
    let request = Request::get("/metrics").set("Host", "127.0.0.1").method("HEAD");
    head.send(request.header("Connection", "close")).await;
    assert_eq!(head.response_head().await.unwrap().status, 200);
    head.assert_ended().await;
}

#[tokio::test]
async fn many_who_dawdle_do_not_starve_the_signals() {
    let (mut relay, addr) = start(&[]).await;
    let mut slow = Vec::new();
    for _ in 0..200 {
        let mut raw = Raw::connect_to(addr).await;
        raw.send("GET /metrics HT").await;
        slow.push(raw);
    }
    relay.signal(Signal::Term);
    assert!(relay.wait_exit(SOON).await.status.success());
}

#[tokio::test]
async fn a_default_address_that_is_taken_is_a_warning_and_one_that_was_asked_for_an_error() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let exit = run(&["--insecure-listen", "127.0.0.1:0", "--metrics-listen", &taken]).await;
    assert_eq!(exit.status.code(), Some(1), "{}", exit.stderr);
    assert!(exit.stderr.contains(&format!("cannot listen on {taken}")), "{}", exit.stderr);
    assert!(exit.stderr.contains("--metrics-listen"), "{}", exit.stderr);
    // The default may be free, or belong to anyone: the relay serves either way.
    let args = ["--insecure-listen", "127.0.0.1:0", "--log-format", "json"];
    let relay = Relay::listening(Process::spawn(command(&args))).await;
    let told = async || {
        relay
            .logs()
            .iter()
            .any(|line| ["listening_for_metrics", "metrics_not_served"].contains(&line.event()))
    };
    wait_until("a word on metrics", SOON, told).await;
    let _binary = Raw::binary(&relay, "id").await;
}
