//! The status page, its data, and the same as text.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    missing_docs
)]

mod common;

use common::{Raw, Relay, Request, Response, TEXT, envelope, masked, open_envelope};
use pyrycode_relay::control::status::{PAGE, status};
use serde_json::Value;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// A relay that tells its status, and where.
async fn start() -> (Relay, SocketAddr) {
    let args = ["--metrics-listen", "127.0.0.1:0", "--workers", "2"];
    let relay = Relay::start(&args).await;
    let line = relay.wait_for_log("listening_for_metrics").await;
    let addr = line.get("remote").unwrap().parse().unwrap();
    (relay, addr)
}

async fn get(addr: SocketAddr, path: &str) -> Response {
    let mut raw = Raw::connect_to(addr).await;
    raw.send(Request::get(path).set("Host", addr.to_string())).await;
    raw.response().await
}

/// A binary and a phone, and a message each way.
async fn traffic(relay: &Relay) -> (Raw, Raw) {
    let mut binary = Raw::binary(relay, "id").await;
    let mut phone = Raw::phone(relay, "id").await;
    phone.send(masked(TEXT, "\"hello\"")).await;
    let (conn_id, _) = open_envelope(&binary.recv_text().await);
    binary.send(masked(TEXT, envelope(&conn_id, "[1]"))).await;
    assert_eq!(phone.recv_text().await, "[1]");
    (binary, phone)
}

/// Answers every request with this, until the test ends.
async fn answering(status: &'static str, body: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            // Whoever goes away has what it wanted.
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(head.as_bytes()).await;
        }
    });
    addr
}

#[tokio::test]
async fn the_page_brings_everything_along_and_may_do_nothing_else() {
    let (_relay, addr) = start().await;
    let page = get(addr, "/").await;
    assert_eq!((page.status, page.header("Content-Type")), (200, Some("text/html; charset=utf-8")));
    assert_eq!(page.body, PAGE.as_bytes());
    let policy = page.header("Content-Security-Policy").unwrap();
    for part in ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    for outside in ["//", "src=", "@import", "url(", "innerHTML", "eval("] {
        assert!(!PAGE.contains(outside), "{outside}");
    }
}

#[tokio::test]
async fn its_data_tell_the_state_of_the_relay_and_its_last_warnings() {
    let (relay, addr) = start().await;
    let _peers = traffic(&relay).await;
    let answer = get(addr, "/status.json").await;
    assert_eq!(answer.header("Content-Type"), Some("application/json; charset=utf-8"));
    let status: Value = serde_json::from_slice(&answer.body).unwrap();
    let metrics = &status["metrics"];
    assert_eq!(metrics["frames_forwarded_total"]["phone_to_binary"], 1);
    assert_eq!(metrics["connections"]["phone"], 1);
    assert_eq!(metrics["ws_upgrade_attempts_total"]["client"]["accept"], 1);
    assert_eq!(metrics["push_wakes_total"]["sent"], 0);
    assert_eq!(metrics["server_ids"], 1);
    assert_eq!(status["workers"].as_array().unwrap().len(), 2);
    assert!(status["delay"]["counts"].as_array().unwrap().iter().any(|count| *count != 0));
    assert_eq!(status["process"]["ready"], true);
    assert_programs_would_choose_the_keys(&status);
    for warning in status["warnings"].as_array().unwrap() {
        for field in ["time", "level", "event", "text"] {
            assert!(warning[field].is_string(), "{warning}");
        }
    }
}

/// Keys are words in snake_case, or the number of a close code.
fn assert_programs_would_choose_the_keys(value: &Value) {
    let is_plain =
        |key: &str| key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    for (key, part) in value.as_object().into_iter().flatten() {
        assert!(!key.is_empty() && is_plain(key), "{key:?}");
        assert_programs_would_choose_the_keys(part);
    }
    value.as_array().into_iter().flatten().for_each(assert_programs_would_choose_the_keys);
}

#[tokio::test]
async fn the_same_is_told_as_text() {
    let (relay, addr) = start().await;
    let _peers = traffic(&relay).await;
    let text = status(addr).await.unwrap();
    assert!(text.starts_with(&format!("pyrycode-relay {}", env!("CARGO_PKG_VERSION"))), "{text}");
    for says in
        ["All is well.", "binary 1  phone 1", "Memory", "Descriptors", "Core", "Last warnings"]
    {
        assert!(text.contains(says), "{says}:\n{text}");
    }
    let figures = text.split("Last warnings").next().unwrap();
    assert!(figures.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[tokio::test]
async fn what_is_told_cannot_steer_a_terminal() {
    let (_relay, addr) = start().await;
    let mut state: Value = serde_json::from_slice(&get(addr, "/status.json").await.body).unwrap();
    let hostile = "\u{1b}[2Jgone\nAll is well.\u{9b}31m";
    state["process"]["version"] = hostile.into();
    state["process"]["open_descriptors"] = u64::MAX.into();
    state["metrics"]["push_wakes_total"][hostile] = 1.into();
    state["metrics"]["closes_total"]["1000"][hostile] = 1.into();
    state["warnings"] = serde_json::json!([
        { "time": hostile, "level": hostile, "event": hostile, "text": hostile }
    ]);
    let text = status(answering("200 OK", state.to_string()).await).await.unwrap();
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    assert!(!text.lines().any(|line| line == "All is well."), "{text}");
}

#[tokio::test]
async fn nothing_to_show_is_one_line_with_a_cure() {
    // A port that is never given out by chance.
    let free = SocketAddr::from(([127, 0, 0, 1], 9));
    let endless = "[".repeat(5 * 1024 * 1024);
    for (addr, says) in [
        (free, "start the relay"),
        (answering("404 Not Found", String::new()).await, "404"),
        (answering("200 OK", "{}".to_owned()).await, "not a relay of this version"),
        (answering("200 OK", endless).await, "answered with more than 4194304 bytes"),
    ] {
        let why = status(addr).await.unwrap_err();
        assert!(why.contains(says) && why.contains(&addr.to_string()), "{why}");
        assert_eq!(why.lines().count(), 1, "{why}");
    }
}
