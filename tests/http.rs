//! PROTOCOL.md, chapter 1: HTTP.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    missing_docs
)]

mod common;

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use common::{
    ACCEPT, Binary, End, KEY, PING, PONG, Phone, Raw, Relay, Request, Response, SOON, TEXT, masked,
    open_envelope,
};

const NO_SERVER: (u16, &str) = (4404, "no server with that id");

/// The answer to `request`, on a connection of its own.
async fn ask(relay: &Relay, request: impl Into<Vec<u8>>) -> Response {
    let mut raw = Raw::connect(relay).await;
    raw.send(request).await;
    raw.response().await
}

async fn assert_status(relay: &Relay, request: Request, status: u16, what: &str) -> Response {
    let response = ask(relay, request).await;
    assert_eq!(response.status, status, "{what}: {}", response.head);
    response
}

/// A request for the id.
type MakeRequest = fn(&str) -> Request;

/// Both endpoints: the path, and a valid request for the id.
fn endpoints() -> [(&'static str, MakeRequest); 2] {
    [("/v1/server", |id| Request::server(id)), ("/v1/client", |id| Request::client(id))]
}

async fn assert_free(relay: &Relay, id: &str) {
    let (code, reason) = Phone::connect(relay, id).await.recv_close().await;
    assert_eq!((code, reason.as_str()), NO_SERVER, "{id} is held");
}

/// Sends one text message from a phone of `id` to `binary`: the id is held by it.
async fn assert_holds(relay: &Relay, binary: &mut Raw, id: &str) {
    let mut phone = Phone::connect(relay, id).await;
    phone.send_text(format!("\"{id}\"")).await;
    assert_eq!(open_envelope(&binary.recv_text().await).1, format!("\"{id}\""));
}

// ---- the paths

#[tokio::test]
async fn healthz_answers_with_exactly_these_bytes() {
    let relay = Relay::start(&[]).await;
    let response = ask(&relay, Request::get("/healthz")).await;
    assert_eq!(response.status, 200);
    assert_eq!(response.header("Content-Type"), Some("application/json; charset=utf-8"));
    assert_eq!(response.header("Cache-Control"), Some("no-store"));
    let body = String::from_utf8(response.body).unwrap();
    let uptime = relay.health().await.uptime_seconds;
    let possible = (0..=uptime).map(|seconds| {
        format!(
            r#"{{"status":"ok","version":"{}","connected_binaries":0,"connected_phones":0,"uptime_seconds":{seconds}}}"#,
            concat!(env!("CARGO_PKG_VERSION"), "+", env!("PYRYCODE_RELAY_COMMIT"))
        )
    });
    assert!(possible.into_iter().any(|other| other == body), "{body:?}");
}

#[tokio::test]
async fn healthz_counts_what_is_connected() {
    let relay = Relay::start(&[]).await;
    let one = Binary::connect(&relay, "one").await;
    relay.wait_for_counts(1, 0).await;
    let two = Binary::connect(&relay, "two").await;
    let phone = Phone::connect(&relay, "one").await;
    let other = Phone::connect(&relay, "two").await;
    relay.wait_for_counts(2, 2).await;
    phone.close(1000).await;
    relay.wait_for_counts(2, 1).await;
    other.abort();
    relay.wait_for_counts(2, 0).await;
    one.close(1000).await;
    relay.wait_for_counts(1, 0).await;
    two.hang_up();
    relay.wait_for_counts(0, 0).await;
}

#[tokio::test]
async fn healthz_uptime_counts_seconds() {
    let relay = Relay::start(&[]).await;
    let started = Instant::now();
    common::wait_until("a second of uptime", SOON, async || {
        relay.health().await.uptime_seconds >= 1
    })
    .await;
    assert!(started.elapsed() >= Duration::from_millis(500), "a second went by in no time");
    assert!(relay.health().await.uptime_seconds <= started.elapsed().as_secs() + 1);
}

#[tokio::test]
async fn healthz_takes_head_and_keeps_the_connection() {
    let relay = Relay::start(&[]).await;
    let mut raw = Raw::connect(&relay).await;
    raw.send(Request::get("/healthz").method("HEAD")).await;
    let head = raw.response_head().await.expect("an answer");
    assert_eq!(head.status, 200);
    assert_eq!(head.header("Content-Type"), Some("application/json; charset=utf-8"));
    assert_eq!(head.header("Cache-Control"), Some("no-store"));
    // A body behind the answer to HEAD would be read as the next answer's head.
    raw.send(Request::get("/healthz")).await;
    let get = raw.response().await;
    assert_eq!(get.status, 200);
    assert_eq!(get.content_length(), get.body.len());
    // Between the two a second may have turned 9 into 10.
    assert!(get.body.len().abs_diff(head.content_length()) <= 1);
}

#[tokio::test]
async fn healthz_keeps_the_connection_alive_until_it_is_told_to_close() {
    let relay = Relay::start(&[]).await;
    let mut raw = Raw::connect(&relay).await;
    for _ in 0..10 {
        raw.send(Request::get("/healthz")).await;
        assert_eq!(raw.response().await.status, 200);
    }
    raw.send(Request::get("/healthz").header("Connection", "close")).await;
    assert_eq!(raw.response().await.status, 200);
    assert_eq!(raw.assert_ended().await, End::Fin);
}

#[tokio::test]
async fn healthz_takes_only_get_and_head() {
    let relay = Relay::start(&[]).await;
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"] {
        let response = ask(&relay, Request::get("/healthz").method(method)).await;
        assert_eq!(response.status, 405, "{method}");
        assert_eq!(response.header("Allow"), Some("GET, HEAD"), "{method}");
    }
}

#[tokio::test]
async fn http_1_0_gets_healthz_without_a_host_and_is_then_hung_up_on() {
    let relay = Relay::start(&[]).await;
    let mut raw = Raw::connect(&relay).await;
    raw.send(*b"GET /healthz HTTP/1.0\r\n\r\n").await;
    assert_eq!(raw.response().await.status, 200);
    assert_eq!(raw.assert_ended().await, End::Fin);
}

#[tokio::test]
async fn readyz_is_answered_whatever_the_rate_and_a_drained_relay_would_say_so_by_404_too() {
    let relay = Relay::start(&["--rate-limit", "1/1h"]).await;
    let mut raw = Raw::connect(&relay).await;
    for _ in 0..50 {
        for path in ["/readyz", "/readyz/404", "/readyz?x"] {
            raw.send(Request::get(path)).await;
            let answer = raw.response().await;
            assert_eq!((answer.status, answer.body.as_slice()), (200, &b"ready\n"[..]), "{path}");
            assert_eq!(answer.header("Cache-Control"), Some("no-store"));
        }
    }
    raw.send(Request::get("/readyz").method("HEAD").header("Connection", "close")).await;
    assert_eq!(raw.response_head().await.expect("an answer").status, 200);
    assert_eq!(raw.assert_ended().await, End::Fin);
    assert_status(&relay, Request::get("/readyz").method("POST"), 405, "POST").await;
    assert_status(&relay, Request::get("/readyz/503"), 404, "another path").await;
}

#[tokio::test]
async fn anything_else_is_404() {
    let relay = Relay::start(&[]).await;
    let paths = [
        "/",
        "/v1/server/",
        "/v2/server",
        "/v1/client/",
        "/v1",
        "/v1/",
        "/v1/servers",
        "/healthz/",
        "/V1/SERVER",
        "/Healthz",
        "//v1/server",
        "/v1//server",
        "/v1/./server",
        "/v1/x/../server",
        "/v1/serve%72",
        "/metrics",
        "/favicon.ico",
        "/v1/server;x",
        "/?/v1/server",
    ];
    for path in paths {
        assert_status(&relay, Request::get(path), 404, path).await;
        let mut upgrade = Request::server("id");
        upgrade.target = path.to_owned();
        assert_status(&relay, upgrade, 404, path).await;
    }
    relay.wait_for_counts(0, 0).await;
}

#[tokio::test]
async fn a_query_is_no_part_of_the_path_and_the_absolute_form_is_understood() {
    // RFC 9112, section 3.2: a server must accept the absolute form.
    let relay = Relay::start(&[]).await;
    for target in ["/healthz?probe=1", "/healthz?", "http://relay.test/healthz"] {
        assert_status(&relay, Request::get(target), 200, target).await;
    }
    let mut request = Request::server("id");
    request.target = "/v1/server?x=y".to_owned();
    Raw::connect(&relay).await.upgrade(request).await;
}

// ---- required headers

const REQUIRED: [(&str, [&str; 3]); 2] = [
    ("/v1/server", ["X-Pyrycode-Server", "X-Pyrycode-Version", "User-Agent"]),
    ("/v1/client", ["X-Pyrycode-Server", "X-Pyrycode-Token", "User-Agent"]),
];

#[tokio::test]
async fn each_required_header_must_be_there_and_not_empty() {
    let relay = Relay::start(&[]).await;
    let mut binary = Raw::binary(&relay, "held").await;
    for ((path, names), (same, request)) in REQUIRED.into_iter().zip(endpoints()) {
        assert_eq!(path, same);
        // For a phone the id is held, for a binary it is free: only the header can be wrong.
        let id = if path == "/v1/client" { "held" } else { "free" };
        for name in names {
            let rows = [
                ("missing", request(id).without(name)),
                ("empty", request(id).set(name, "")),
                ("blanks", request(id).set(name, " \t  ")),
                ("first empty", request(id).set(name, "").header(name, "second")),
                ("first blank", request(id).set(name, " ").header(name, "second")),
                ("another's", request(id).without(name).header(format!("{name}s"), "x")),
            ];
            for (what, row) in rows {
                let what = format!("{path}, {name}: {what}");
                assert_status(&relay, row, 400, &what).await;
            }
        }
    }
    assert_free(&relay, "free").await;
    binary.assert_quiet().await;
    relay.wait_for_counts(1, 0).await;
}

#[tokio::test]
async fn the_first_value_of_a_required_header_wins() {
    let relay = Relay::start(&[]).await;
    for (path, names) in REQUIRED {
        for name in names.into_iter().filter(|name| *name != "X-Pyrycode-Server") {
            let request = if path == "/v1/server" { Request::server } else { Request::client };
            let id = format!("{path}-{name}");
            // The second value is empty: if it counted, this would be 400.
            let row = request(id).header(name, "").header(name, "third");
            Raw::connect(&relay).await.upgrade(row).await;
        }
    }
    let row = Request::server("first").header("X-Pyrycode-Server", "second");
    let mut binary = Raw::connect(&relay).await.upgrade(row).await;
    assert_free(&relay, "second").await;
    let row = Request::client("first").header("x-pyrycode-server", "second");
    let mut phone = Raw::connect(&relay).await.upgrade(row).await;
    phone.send(masked(TEXT, "1")).await;
    assert_eq!(open_envelope(&binary.recv_text().await).1, "1");
}

#[tokio::test]
async fn header_names_are_case_insensitive_and_values_are_trimmed() {
    let relay = Relay::start(&[]).await;
    type ChangeCase = fn(&[u8]) -> Vec<u8>;
    let cases: [(&str, ChangeCase); 2] =
        [("lower", |name| name.to_ascii_lowercase()), ("upper", |name| name.to_ascii_uppercase())];
    for (id, case) in cases {
        let mut request = Request::server(format!(" \t {id}\t "));
        for (name, _) in &mut request.headers {
            *name = case(name);
        }
        let mut binary = Raw::connect(&relay).await.upgrade(request).await;
        assert_holds(&relay, &mut binary, id).await;
    }
}

#[tokio::test]
async fn the_device_name_is_optional() {
    let relay = Relay::start(&[]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut phones = Vec::new();
    for device in [None, Some(""), Some("Ann's phone"), Some("t\u{e9}l\u{e9}phone")] {
        let mut request = Request::client("id");
        if let Some(device) = device {
            request = request.header("X-Pyrycode-Device-Name", device);
        }
        let mut phone = Raw::connect(&relay).await.upgrade(request).await;
        phone.send(masked(TEXT, "1")).await;
        assert_eq!(open_envelope(&binary.recv_text().await).1, "1");
        phone.assert_quiet().await;
        phones.push(phone);
    }
}

// ---- the handshake

#[tokio::test]
async fn a_101_carries_the_accept_key_and_negotiates_nothing() {
    let relay = Relay::start(&[]).await;
    let _binary = Binary::connect(&relay, "held").await;
    for (path, request) in endpoints() {
        let id = if path == "/v1/client" { "held" } else { "free" };
        let request = request(id)
            .header("Sec-WebSocket-Protocol", "chat, superchat")
            .header("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits");
        let response = ask(&relay, request).await;
        assert_eq!(response.status, 101);
        assert!(response.header("Upgrade").unwrap().eq_ignore_ascii_case("websocket"));
        assert!(response.header("Connection").unwrap().eq_ignore_ascii_case("upgrade"));
        assert_eq!(response.header("Sec-WebSocket-Accept"), Some(ACCEPT));
        assert_eq!(response.header("Sec-WebSocket-Protocol"), None);
        assert_eq!(response.header("Sec-WebSocket-Extensions"), None);
        assert_eq!(response.header("Content-Length"), None);
    }
}

#[tokio::test]
async fn every_origin_is_accepted() {
    let relay = Relay::start(&[]).await;
    let origins = ["null", "", "https://evil.example", "http://127.0.0.1", "no url at all", "*"];
    for (number, origin) in origins.into_iter().enumerate() {
        for (path, request) in endpoints() {
            let request = request(&format!("{number}")).header("Origin", origin);
            let response = ask(&relay, request).await;
            assert_eq!(response.status, 101, "{path}, {origin:?}");
        }
    }
}

#[tokio::test]
async fn connection_and_upgrade_are_token_lists_in_any_case() {
    let relay = Relay::start(&[]).await;
    let good = [
        ("Upgrade", "websocket"),
        ("upgrade", "WEBSOCKET"),
        ("UPGRADE", "WebSocket"),
        ("keep-alive, Upgrade", "websocket"),
        ("keep-alive,upgrade,x", "h2c , websocket"),
        ("\tUpgrade ,", ", ,websocket"),
    ];
    for (number, (connection, upgrade)) in good.into_iter().enumerate() {
        for (path, request) in endpoints() {
            let request =
                request(&format!("{number}")).set("Connection", connection).set("Upgrade", upgrade);
            let what = format!("{path}: {connection:?}, {upgrade:?}");
            assert_status(&relay, request, 101, &what).await;
        }
    }
    let two_lines = Request::server("two lines")
        .set("Connection", "keep-alive")
        .header("Connection", "Upgrade")
        .set("Upgrade", "h2c")
        .header("Upgrade", "websocket");
    assert_status(&relay, two_lines, 101, "two lines each").await;
}

#[tokio::test]
async fn without_the_upgrade_tokens_or_in_http_1_0_it_is_426() {
    let relay = Relay::start(&[]).await;
    for (path, request) in endpoints() {
        let rows = [
            ("no Upgrade", request("id").without("Upgrade")),
            ("no Connection", request("id").without("Connection")),
            ("neither", request("id").without("Upgrade").without("Connection")),
            ("close", request("id").set("Connection", "close")),
            ("keep-alive", request("id").set("Connection", "keep-alive")),
            ("h2c", request("id").set("Upgrade", "h2c")),
            ("websockets", request("id").set("Upgrade", "websockets")),
            ("upgraded", request("id").set("Connection", "upgraded")),
            ("two words", request("id").set("Upgrade", "web socket")),
            ("empty", request("id").set("Upgrade", "")),
            ("HTTP/1.0", request("id").version("HTTP/1.0")),
            ("POST", request("id").without("Upgrade").method("POST")),
        ];
        for (what, row) in rows {
            let what = format!("{path}: {what}");
            let response = assert_status(&relay, row, 426, &what).await;
            let upgrade = response.header("Upgrade").unwrap_or_default();
            assert!(upgrade.eq_ignore_ascii_case("websocket"), "{what}: {}", response.head);
            let connection = response.header("Connection").unwrap_or_default();
            let mut tokens = connection.split(',').map(str::trim);
            assert!(tokens.any(|token| token.eq_ignore_ascii_case("upgrade")), "{what}");
        }
    }
}

#[tokio::test]
async fn an_upgrade_by_another_method_is_405_and_allows_get() {
    let relay = Relay::start(&[]).await;
    for (path, request) in endpoints() {
        for method in ["POST", "PUT", "HEAD", "OPTIONS", "CONNECTED", "get"] {
            let mut raw = Raw::connect(&relay).await;
            raw.send(request("id").method(method)).await;
            let response = raw.response_head().await.expect("an answer");
            assert_eq!(response.status, 405, "{method} {path}");
            assert_eq!(response.header("Allow"), Some("GET"), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn the_key_must_be_one_header_with_16_bytes_in_base64() {
    let relay = Relay::start(&[]).await;
    let key = "Sec-WebSocket-Key";
    for (path, request) in endpoints() {
        let rows = [
            ("missing", request("id").without(key)),
            ("empty", request("id").set(key, "")),
            ("twice", request("id").header(key, KEY)),
            ("15 bytes", request("id").set(key, "dGhlIHNhbXBsZSBub25j")),
            ("17 bytes", request("id").set(key, "dGhlIHNhbXBsZSBub25jZSE=")),
            ("18 bytes", request("id").set(key, "dGhlIHNhbXBsZSBub25jZSEh")),
            ("no padding", request("id").set(key, "dGhlIHNhbXBsZSBub25jZQ")),
            ("half the padding", request("id").set(key, "dGhlIHNhbXBsZSBub25jZQ=")),
            ("padding and more", request("id").set(key, "dGhlIHNhbXBsZSBub25jZQ==A")),
            ("not the alphabet", request("id").set(key, "dGhlIHNhbXBsZSBub25j_Q==")),
            ("a blank inside", request("id").set(key, "dGhlIHNhbXBs SBub25jZQ==")),
            ("only padding", request("id").set(key, "========================")),
        ];
        for (what, row) in rows {
            assert_status(&relay, row, 400, &format!("{path}, key: {what}")).await;
        }
    }
    // A client may leave something in the bits that the last character has to spare; the answer is
    // for the header as it is.
    let spare = Request::server("spare").set(key, "dGhlIHNhbXBsZSBub25jZR==");
    let response = assert_status(&relay, spare, 101, "bits to spare").await;
    let accept = tungstenite::handshake::derive_accept_key(b"dGhlIHNhbXBsZSBub25jZR==");
    assert_eq!(response.header("Sec-WebSocket-Accept"), Some(accept.as_str()));
    let padded = Request::server("id").set(key, format!("  {KEY}\t"));
    let response = assert_status(&relay, padded, 101, "blanks around the key").await;
    assert_eq!(response.header("Sec-WebSocket-Accept"), Some(ACCEPT));
}

#[tokio::test]
async fn another_version_than_13_is_400_and_names_13() {
    let relay = Relay::start(&[]).await;
    let name = "Sec-WebSocket-Version";
    for (path, request) in endpoints() {
        let rows = [
            ("missing", request("id").without(name)),
            ("empty", request("id").set(name, "")),
            ("8", request("id").set(name, "8")),
            ("14", request("id").set(name, "14")),
            ("130", request("id").set(name, "130")),
            ("013", request("id").set(name, "013")),
            ("a word", request("id").set(name, "thirteen")),
        ];
        for (what, row) in rows {
            let what = format!("{path}, version: {what}");
            let response = assert_status(&relay, row, 400, &what).await;
            assert_eq!(response.header(name), Some("13"), "{what}");
        }
    }
}

#[tokio::test]
async fn the_first_check_that_fails_answers() {
    let relay = Relay::start(&[]).await;
    let post = |request: Request| request.method("POST");
    let rows = [
        // route before headers and handshake
        (404, "route, headers", Request::get("/nope")),
        (404, "route, method", post(Request::upgrade("/nope"))),
        (404, "route, version", Request::upgrade("/nope").version("HTTP/1.0")),
        // headers before handshake
        (400, "headers, no upgrade", Request::get("/v1/server")),
        (400, "headers, method", post(Request::upgrade("/v1/client"))),
        (400, "headers, HTTP/1.0", Request::upgrade("/v1/server").version("HTTP/1.0")),
        // within the handshake: 426, 405, 400
        (426, "tokens, method", post(Request::server("id").without("Upgrade"))),
        (426, "tokens, key", Request::server("id").without("Upgrade").without("Sec-WebSocket-Key")),
        (426, "HTTP/1.0, method", post(Request::client("id").version("HTTP/1.0"))),
        (405, "method, version", post(Request::server("id").set("Sec-WebSocket-Version", "8"))),
        (405, "method, key", post(Request::client("id").without("Sec-WebSocket-Key"))),
        // syntax before all
        (400, "syntax, route", Request::get("/nope").header("Bad Name", "x")),
        (400, "no Host, route", Request::get("/nope").without("Host")),
    ];
    for (status, what, request) in rows {
        assert_status(&relay, request, status, what).await;
    }
    relay.wait_for_counts(0, 0).await;
}

// ---- heads that are no HTTP/1.1

#[tokio::test]
async fn a_head_that_is_not_http_1_1_syntax_is_400() {
    let relay = Relay::start(&[]).await;
    let rows: [&[u8]; 43] = [
        // line ends
        b"GET /healthz HTTP/1.1\nHost: a\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: b\nc\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: b\r\r\n\r\n",
        b"GET /healthz HTTP/1.1\nHost: a\n\n\r\n\r\n",
        // names and colons
        b"GET /healthz HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX\t: b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX(y): b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX\xe9: b\r\n\r\n",
        // obs-fold
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: b\r\n\tc\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n Host: a\r\n\r\n",
        // control characters in a value
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: b\x1b[31m\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: b\x7f\r\n\r\n",
        // Host
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a/b\r\n\r\n",
        // where a body would begin and end
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
        // method and target
        b"G(T /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"G\xe9T /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        b" GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET  HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /health z HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /healthz\0 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /h\xe9althz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /healthz\r\nHost: a\r\n\r\n",
        // the version
        b"GET /healthz HTTP\r\nHost: a\r\n\r\n",
        b"GET /healthz http/1.1\r\nHost: a\r\n\r\n",
        b"GET /healthz HTTP/1.1 \r\nHost: a\r\n\r\n",
    ];
    for row in rows {
        let response = ask(&relay, row).await;
        assert_eq!(response.status, 400, "{}", row.escape_ascii());
    }
}

#[tokio::test]
async fn what_is_malformed_on_healthz_is_malformed_on_an_upgrade() {
    let relay = Relay::start(&[]).await;
    for (path, request) in endpoints() {
        let rows = [
            request("id").without("Host"),
            request("id").header("Host", "other"),
            request("id").header("X", "a\nb"),
            request("id").header("X", "a\rb"),
            request("id").header("X", "a\r\n b"),
            request("id").header("X ", "a"),
            request("id").header("Content-Length", "0").header("Transfer-Encoding", "chunked"),
            request("id\r"),
            request("i\nd"),
            request("i\0d"),
        ];
        for row in rows {
            assert_status(&relay, row.clone(), 400, &format!("{path}: {row:?}")).await;
        }
    }
    assert_free(&relay, "id").await;
}

#[tokio::test]
async fn other_protocols_get_an_error_or_silence_and_no_slot() {
    let relay = Relay::start(&["--header-timeout", "1s"]).await;
    let tls_hello = [
        b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03".as_slice(),
        &[0x5a; 32],
        b"\x00\x00\x04\x13\x01\x13\x02\x01\x00\x00\x77",
        &[0; 119],
    ]
    .concat();
    let rows: [(&str, &[u8]); 7] = [
        ("TLS", &tls_hello),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"),
        ("HTTP/0.9", b"GET /healthz\r\n"),
        ("HTTP/3.0", b"GET /healthz HTTP/3.0\r\nHost: a\r\n\r\n"),
        ("SSH", b"SSH-2.0-OpenSSH_9.9\r\n"),
        ("PROXY", b"PROXY TCP4 192.0.2.1 192.0.2.2 5 6\r\nGET /healthz HTTP/1.1\r\n\r\n"),
        ("zeros", &[0; 512]),
    ];
    for (what, bytes) in rows {
        let mut raw = Raw::connect(&relay).await;
        raw.send(bytes).await;
        if let Some(response) = raw.maybe_response().await {
            assert!(matches!(response.status, 400 | 408 | 505), "{what}: {}", response.head);
        }
        raw.assert_ended().await;
    }
}

// ---- limits of a head

/// A GET of /healthz whose head is `length` bytes long, the empty line with it.
fn head_of(length: usize) -> Vec<u8> {
    let bare = Request::get("/healthz").header("X-Filler", "").bytes().len();
    let head = Request::get("/healthz").header("X-Filler", "x".repeat(length - bare)).bytes();
    assert_eq!(head.len(), length);
    head
}

#[tokio::test]
async fn a_head_over_16_kib_is_431_and_one_of_16_kib_is_not() {
    let relay = Relay::start(&[]).await;
    assert_eq!(ask(&relay, head_of(16 * 1024)).await.status, 200);
    assert_eq!(ask(&relay, head_of(16 * 1024 + 1)).await.status, 431);
    assert_eq!(ask(&relay, head_of(64 * 1024)).await.status, 431);
    for (path, request) in endpoints() {
        let big = request("id").header("X-Filler", "x".repeat(16 * 1024));
        assert_status(&relay, big, 431, path).await;
    }
    // It need not end to be too long.
    let mut endless = head_of(16 * 1024 + 4);
    endless.truncate(16 * 1024 + 1);
    assert_eq!(ask(&relay, endless).await.status, 431);
    let target = format!("/{}", "a".repeat(17 * 1024));
    assert_eq!(ask(&relay, Request::get(&target)).await.status, 431);
}

#[tokio::test]
async fn a_head_of_over_64_headers_is_431_and_one_of_64_is_not() {
    let relay = Relay::start(&[]).await;
    let with = |request: Request, count: usize| {
        (request.headers.len()..count).fold(request, |r, n| r.header(format!("X-{n}"), "x"))
    };
    assert_status(&relay, with(Request::get("/healthz"), 64), 200, "64").await;
    assert_status(&relay, with(Request::get("/healthz"), 65), 431, "65").await;
    for (path, request) in endpoints() {
        assert_status(&relay, with(request("id"), 64), 101, path).await;
        assert_status(&relay, with(request("other"), 65), 431, path).await;
    }
    assert_free(&relay, "other").await;
}

#[tokio::test]
async fn a_head_that_is_not_complete_in_time_gets_408_or_a_silent_close() {
    let timeout = Duration::from_millis(400);
    let relay = Relay::start(&["--header-timeout", "400ms"]).await;
    let head = Request::server("id").bytes();
    let rows: [(&str, &[u8]); 5] = [
        ("nothing", b""),
        ("one byte", b"G"),
        ("an empty line", b"\r\n"),
        ("half a head", &head[..head.len() / 2]),
        ("all but the last byte", &head[..head.len() - 1]),
    ];
    for (what, bytes) in rows {
        let mut raw = Raw::connect(&relay).await;
        let begun = Instant::now();
        raw.send(bytes).await;
        if let Some(response) = raw.maybe_response().await {
            assert_eq!(response.status, 408, "{what}");
        }
        raw.assert_ended().await;
        assert!(begun.elapsed() >= timeout / 2, "{what}: cut before its time");
    }
    assert_free(&relay, "id").await;
}

#[tokio::test]
async fn slow_senders_never_hold_a_slot_longer() {
    // The close timeout is for WebSockets: here it would give a slow sender another minute.
    let relay = Relay::start(&["--header-timeout", "2s", "--close-timeout", "60s"]).await;
    // A file that is open for a moment at its start is not taken for a slot.
    let mut slots = usize::MAX;
    common::wait_until("the start is over", SOON, async || {
        let before = std::mem::replace(&mut slots, relay.descriptors());
        before == slots
    })
    .await;
    let mut raw = Raw::connect(&relay).await;
    let sending = tokio::spawn(async move {
        // A byte every 20 ms for 20 s at least, and each of them makes progress.
        let slow = Request::server("id").header("X-Filler", "x".repeat(800)).bytes();
        raw.dribble(slow, Duration::from_millis(20)).await;
    });
    common::wait_until("a slot taken", SOON, async || relay.descriptors() > slots).await;
    common::wait_until("the slot free", SOON, async || relay.descriptors() <= slots).await;
    sending.abort();
    assert_free(&relay, "id").await;
}

#[tokio::test]
async fn an_idle_connection_is_not_kept_after_an_answer() {
    let relay = Relay::start(&["--header-timeout", "400ms"]).await;
    let mut idle = Raw::connect(&relay).await;
    idle.send(Request::get("/healthz")).await;
    assert_eq!(idle.response().await.status, 200);
    if let Some(response) = idle.maybe_response().await {
        assert_eq!(response.status, 408);
    }
    idle.assert_ended().await;
}

// ---- how a head arrives

#[tokio::test]
async fn a_head_may_arrive_byte_by_byte() {
    let relay = Relay::start(&[]).await;
    let mut binary = Raw::connect(&relay).await;
    binary.dribble(Request::server("id").bytes(), Duration::from_millis(1)).await;
    assert_eq!(binary.response().await.status, 101);
    let mut phone = Raw::connect(&relay).await;
    phone.dribble(Request::client("id").bytes(), Duration::from_millis(1)).await;
    assert_eq!(phone.response().await.status, 101);
    phone.dribble(masked(TEXT, "\"slow\""), Duration::from_millis(1)).await;
    assert_eq!(open_envelope(&binary.recv_text().await).1, "\"slow\"");
}

#[tokio::test]
async fn a_head_may_be_split_anywhere() {
    let relay = Relay::start(&[]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let whole = [Request::client("id").bytes(), masked(TEXT, "1")].concat();
    for split in (1..whole.len()).step_by(9).chain(whole.len() - 12..whole.len()) {
        let mut phone = Raw::connect(&relay).await;
        phone.send(&whole[..split]).await;
        // The relay has read the first part once it has answered someone who came later.
        relay.health().await;
        phone.send(&whole[split..]).await;
        assert_eq!(phone.response().await.status, 101, "split at {split}");
        assert_eq!(open_envelope(&binary.recv_text().await).1, "1", "split at {split}");
        phone.abort();
        binary.recv_text().await;
    }
}

#[tokio::test]
async fn heads_may_be_pipelined() {
    let relay = Relay::start(&[]).await;
    let mut raw = Raw::connect(&relay).await;
    let health = Request::get("/healthz").bytes();
    let head = Request::get("/healthz").method("HEAD").bytes();
    let upgrade = Request::server("id").bytes();
    let ping = masked(PING, "first");
    raw.send([&*health, &health, &head, &health, &upgrade, &ping].concat()).await;
    assert_eq!(raw.response().await.status, 200);
    assert_eq!(raw.response().await.status, 200);
    assert_eq!(raw.response_head().await.unwrap().status, 200);
    assert_eq!(raw.response().await.status, 200);
    assert_eq!(raw.response().await.status, 101);
    let pong = raw.frame().await;
    assert_eq!((pong.opcode, pong.payload.as_slice()), (PONG, b"first".as_slice()));
    assert_holds(&relay, &mut raw, "id").await;
}

#[tokio::test]
async fn any_number_of_heads_may_be_pipelined_by_who_reads_the_answers() {
    let relay = Relay::start(&[]).await;
    let health = Request::get("/healthz").bytes();
    for count in [80, 10_000] {
        let all = [health.repeat(count), Request::server("id").bytes()].concat();
        // The relay stops reading while its answers are not read, so this goes on beside.
        let (mut reading, mut writing) = Raw::connect(&relay).await.into_halves();
        let asking = tokio::spawn(async move {
            writing.write_all(&all).await.unwrap();
            writing
        });
        let (mut answers, mut seen) = (Vec::new(), 0);
        while !answers[seen..].windows(13).any(|part| part == b"HTTP/1.1 101 ") {
            seen = answers.len().saturating_sub(12);
            assert_ne!(common::soon("answers", reading.read_buf(&mut answers)).await.unwrap(), 0);
        }
        let text = String::from_utf8(answers).unwrap();
        assert_eq!(text.matches("HTTP/1.1 200 OK\r\n").count(), count);
        drop((reading, asking.await.unwrap()));
        relay.wait_for_counts(0, 0).await;
    }
}

#[tokio::test]
async fn who_asks_on_and_on_and_does_not_read_is_ended_by_the_write_timeout() {
    let relay = Relay::start(&["--write-timeout", "300ms"]).await;
    let health = Request::get("/healthz").bytes();
    let mut greedy = Raw::narrow(&relay, 4096).await;
    let asked = health.repeat(200_000);
    let sent = greedy.send_until_stuck(&asked, SOON).await;
    assert!(sent < asked.len(), "it was served although it does not read");
    // Until then nobody else has noticed.
    assert_eq!(relay.health().await.connected_phones, 0);
}

#[tokio::test]
async fn an_empty_line_before_the_head_is_ignored() {
    // RFC 9112, section 2.2.
    let relay = Relay::start(&[]).await;
    let request = [b"\r\n".as_slice(), &Request::get("/healthz").bytes()].concat();
    assert_eq!(ask(&relay, request).await.status, 200);
}

#[tokio::test]
async fn bytes_after_the_head_are_the_first_websocket_bytes_on_every_worker() {
    // 64 ids and 3 workers: most connections are accepted by a worker that does not own the id.
    let relay = Relay::start(&["--workers", "3"]).await;
    for number in 0..64 {
        let id = format!("id-{number}");
        let mut binary = Raw::connect(&relay).await;
        binary.send([Request::server(&id).bytes(), masked(PING, &id)].concat()).await;
        assert_eq!(binary.response().await.status, 101);
        let pong = binary.frame().await;
        assert_eq!((pong.opcode, pong.payload.as_slice()), (PONG, id.as_bytes()));

        // The first frame in the head's packet, half of the second too, the rest in flight.
        let second = masked(TEXT, "2");
        let mut phone = Raw::connect(&relay).await;
        let head = Request::client(&id).bytes();
        phone.send([&*head, &masked(TEXT, "1"), &second[..3]].concat()).await;
        phone.send(&second[3..]).await;
        phone.send(masked(TEXT, "3")).await;
        assert_eq!(phone.response().await.status, 101);
        for expected in ["1", "2", "3"] {
            assert_eq!(open_envelope(&binary.recv_text().await).1, expected, "{id}");
        }
        phone.assert_quiet().await;
    }
}

#[tokio::test]
async fn a_big_first_message_may_follow_the_head_at_once_on_every_worker() {
    let relay = Relay::start(&["--workers", "3"]).await;
    let message = format!("\"{}\"", "x".repeat(100_000));
    for number in 0..8 {
        let id = format!("id-{number}");
        let mut binary = Raw::binary(&relay, &id).await;
        let mut phone = Raw::connect(&relay).await;
        phone.send([Request::client(&id).bytes(), masked(TEXT, &message)].concat()).await;
        assert_eq!(phone.response().await.status, 101);
        assert_eq!(open_envelope(&binary.recv_text().await).1, message);
    }
}

// ---- what an answer says, and to whom

#[tokio::test]
async fn an_answer_echoes_nothing_and_its_body_is_one_short_fixed_line() {
    let relay = Relay::start(&[]).await;
    let rows = |mark: &str| -> Vec<(u16, Vec<u8>)> {
        let mut nowhere = Request::server(mark).header("X", mark);
        nowhere.target = format!("/{mark}");
        let bad_key = Request::server(mark).set("Sec-WebSocket-Key", mark);
        let bad_version = Request::client(mark).set("Sec-WebSocket-Version", mark);
        let no_upgrade = Request::client(mark).set("Upgrade", mark);
        let method = Request::server(mark).method(mark);
        let syntax = Request::server(mark).header(format!("{mark} "), mark);
        let host = Request::server(mark).header("Host", mark);
        let long = Request::server(mark).header(mark, mark.repeat(2048));
        vec![
            (404, nowhere.bytes()),
            (400, Request::server(mark).without("User-Agent").bytes()),
            (400, bad_key.bytes()),
            (400, bad_version.bytes()),
            (426, no_upgrade.bytes()),
            (405, method.bytes()),
            (400, syntax.bytes()),
            (400, host.bytes()),
            (431, long.bytes()),
            (400, format!("{mark}\r\n\r\n").into_bytes()),
        ]
    };
    for ((status, one), (_, other)) in rows("ECHOMARKER").into_iter().zip(rows("OTHERMARKX")) {
        let (one, other) = (ask(&relay, one).await, ask(&relay, other).await);
        assert_eq!(one.status, status, "{}", one.head);
        assert_eq!(one.body, other.body, "{status}: the body is not fixed");
        let body = String::from_utf8(one.body).unwrap();
        assert!(body.len() <= 100 && body.lines().count() <= 1, "{status}: {body:?}");
        assert!(!one.head.contains("ECHOMARKER"), "{}", one.head);
    }
}

#[tokio::test]
async fn a_refusal_names_the_header_or_the_rule_and_the_log_says_the_same() {
    let relay = Relay::start(&["--log-level", "debug"]).await;
    let (server, client) = (|| Request::server("id"), || Request::client("id"));
    let lines = (0..65).fold(server(), |request, n| request.header(format!("X-{n}"), "x"));
    let rows = [
        (client().without("X-Pyrycode-Token"), "X-Pyrycode-Token is missing or empty"),
        (client().set("X-Pyrycode-Server", " "), "X-Pyrycode-Server is missing or empty"),
        (Request::client("x".repeat(257)), "X-Pyrycode-Server must be UTF-8 of at most 256 bytes"),
        (server().without("X-Pyrycode-Version"), "X-Pyrycode-Version is missing or empty"),
        (server().without("User-Agent"), "User-Agent is missing or empty"),
        (server().without("Sec-WebSocket-Key"), "one header Sec-WebSocket-Key, with 16 bytes"),
        (server().set("Sec-WebSocket-Version", "8"), "one header Sec-WebSocket-Version, with 13"),
        (server().header("Content-Length", "5"), "must have no body"),
        (server().without("Host"), "Host is missing"),
        (server().header("Host", "b"), "there must be one header Host"),
        (server().set("Host", "a b"), "Host must be a host"),
        (server().header("Bad Name", "x"), "no blank before the colon"),
        (server().header("X", "a\r\n b"), "no blank before the colon"),
        (server().header("X", "a\u{1}"), "no control characters"),
        (server().header("X", "a\nb"), "must end in CR LF"),
        (server().header("Content-Length", "x"), "Content-Length must be one number"),
        (server().header("Transfer-Encoding", "gzip"), "Transfer-Encoding must end in chunked"),
        (server().version("HTTP/2.0"), "version must be HTTP/1.1"),
        (Request::get("*"), "target must be a path"),
        (server().method("PO ST"), "version must be HTTP/1.1"),
        (server().method("POST"), "not one of those in the header Allow"),
        (Request::get("/healthz").method("POST"), "not one of those in the header Allow"),
        (server().version("HTTP/1.0"), "requires HTTP/1.1"),
        (server().without("Upgrade"), "Upgrade must name websocket"),
        (server().set("Connection", "keep-alive"), "Connection must name upgrade"),
        (server().header("X", "x".repeat(17_000)), "head is over 16 KiB"),
        (lines, "over 64 header lines"),
        (Request::get("/nope"), "not found"),
    ];
    for (request, expected) in rows {
        let is_known = !request.target.ends_with("nope") && request.target != "*";
        let response = ask(&relay, request).await;
        let body = String::from_utf8(response.body).unwrap();
        let text = body.strip_suffix('\n').expect("one line");
        assert!(text.contains(expected) && !text.contains('\n') && text.len() < 100, "{text}");
        let said = format!("{} ", response.status);
        let line = relay
            .wait_for_log_where("request_refused", |line| {
                let err = line.get("err").unwrap_or_default();
                err.starts_with(&said) && err.ends_with(&format!(": {text}"))
            })
            .await;
        assert!(line.get("remote").unwrap().starts_with("127.0.0.1:"), "{}", line.raw);
        let path = line.get("path");
        assert!(path.is_none_or(|path| is_known && path.starts_with('/')), "{}", line.raw);
    }
    // What is not debugged is not said.
    let relay = Relay::start(&[]).await;
    assert_status(&relay, server().without("User-Agent"), 400, "quietly").await;
    let binary = Raw::binary(&relay, "id").await;
    relay.wait_for_log("server_claimed").await;
    assert!(relay.logs().iter().all(|line| line.event() != "request_refused"));
    binary.abort();
}

#[tokio::test]
async fn the_tokens_value_is_neither_echoed_nor_forwarded_nor_logged() {
    let secret = "tok-5ecret-7f3a9";
    let relay = Relay::start(&["--log-level", "trace"]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let token = |id: &str| Request::client(id).set("X-Pyrycode-Token", secret);
    let mut misplaced = token("id");
    misplaced.target = "/v1/server".to_owned();
    let refused = [
        token("id").without("User-Agent"),
        token("id").without("X-Pyrycode-Server"),
        token("id").without("Upgrade"),
        token("id").without("Sec-WebSocket-Key"),
        token("id").method("POST"),
        token("id").header("Bad Name", "x"),
        token("id").header("X-Filler", "x".repeat(17 * 1024)),
        token("\u{1}"),
        misplaced,
    ];
    for request in refused {
        let response = ask(&relay, request).await;
        assert_ne!(response.status, 101);
        let body = String::from_utf8_lossy(&response.body).into_owned();
        assert!(!(response.head + &body).contains(secret));
    }
    for id in ["id", "nobody"] {
        let mut phone = Raw::connect(&relay).await;
        phone.send(token(id)).await;
        let response = phone.response().await;
        assert_eq!(response.status, 101);
        assert!(!response.head.contains(secret));
        if id == "id" {
            phone.send(masked(TEXT, "1")).await;
            assert!(!binary.recv_text().await.contains(secret));
            phone.send(masked(TEXT, "no JSON")).await;
            assert_eq!(phone.closed().await.0, 1000);
            assert!(!binary.recv_text().await.contains(secret));
        } else {
            assert_eq!(phone.closed().await.0, NO_SERVER.0);
        }
    }
    relay.wait_for_log("phone_unregistered").await;
    for line in relay.logs() {
        assert!(!line.raw.contains(secret), "{}", line.raw);
    }
}

#[tokio::test]
async fn the_tokens_value_is_never_compared() {
    let relay = Relay::start(&[]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut phones = Vec::new();
    for token in ["a", "b", "a", "\u{e9}", "Bearer x, y"] {
        let request = Request::client("id").set("X-Pyrycode-Token", token);
        let mut phone = Raw::connect(&relay).await.upgrade(request).await;
        phone.send(masked(TEXT, "1")).await;
        assert_eq!(open_envelope(&binary.recv_text().await).1, "1");
        phone.assert_quiet().await;
        phones.push(phone);
    }
}

#[tokio::test]
async fn nothing_is_registered_for_a_malformed_request() {
    let relay = Relay::start(&[]).await;
    let mut binary = Raw::binary(&relay, "held").await;
    let spoil: [fn(Request) -> Request; 8] = [
        |request| request.without("User-Agent"),
        |request| request.without("X-Pyrycode-Version").without("X-Pyrycode-Token"),
        |request| request.without("Upgrade"),
        |request| request.version("HTTP/1.0"),
        |request| request.method("POST"),
        |request| request.without("Sec-WebSocket-Key"),
        |request| request.set("Sec-WebSocket-Version", "12"),
        |request| request.header("Host", "another"),
    ];
    let mut refused = Vec::new();
    for spoil in spoil {
        for request in [Request::server("free"), Request::client("held")] {
            let mut raw = Raw::connect(&relay).await;
            raw.send(spoil(request)).await;
            let response = raw.response().await;
            assert!(matches!(response.status, 400 | 405 | 426), "{}", response.head);
            // The connection stays open on this side: what it registered would stay too.
            refused.push(raw);
        }
        assert_free(&relay, "free").await;
        relay.wait_for_counts(1, 0).await;
    }
    // The binary was told of no phone.
    binary.assert_quiet().await;
}

#[tokio::test]
async fn an_answer_arrives_also_at_a_peer_that_has_sent_more() {
    let relay = Relay::start(&[]).await;
    let more = vec![b'x'; 64 * 1024];
    let rows = [
        (400, Request::server("id").without("User-Agent").bytes()),
        (404, Request::get("/nope").bytes()),
        (405, Request::server("id").method("POST").bytes()),
        (426, Request::server("id").without("Upgrade").bytes()),
        (431, head_of(17 * 1024)),
        (400, b"nonsense\r\n\r\n".to_vec()),
        (200, Request::get("/healthz").header("Connection", "close").bytes()),
    ];
    for (status, head) in rows {
        let mut raw = Raw::connect(&relay).await;
        raw.send([head, more.clone()].concat()).await;
        assert_eq!(raw.response().await.status, status);
        // A close with bytes unread would be a reset, and on a real network that may overtake
        // the answer and throw it away.
        assert_eq!(raw.assert_ended().await, End::Fin, "{status}");
    }
}
