//! Every row of chapter 1's tables.

use super::*;

const SERVER: &str = "GET /v1/server HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Pyrycode-Server: id\r\n\
    X-Pyrycode-Version: 1.2\r\nUser-Agent: pyry\r\n\r\n";

/// What a head comes to, in a form that can be compared.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Incomplete,
    Refused(Reply),
    Request(Route, Result<Upgrade, Reply>, usize),
}

fn outcome(scanner: &mut HeadScanner, bytes: &[u8]) -> Outcome {
    match scanner.parse(bytes) {
        ParsedHead::Incomplete => Outcome::Incomplete,
        ParsedHead::Refused(reply) => Outcome::Refused(reply),
        ParsedHead::Complete { request, consumed } => {
            let upgrade = match request.route() {
                Route::Server => request.server_upgrade(),
                Route::Client => request.client_upgrade(),
                _ => Err(Reply::NotFound),
            };
            Outcome::Request(request.route(), upgrade, consumed)
        }
    }
}

fn of(head: &str) -> Outcome {
    outcome(&mut HeadScanner::default(), head.as_bytes())
}

fn upgrade_of(head: &str) -> Result<Upgrade, Reply> {
    match of(head) {
        Outcome::Request(_, upgrade, _) => upgrade,
        Outcome::Refused(reply) => Err(reply),
        Outcome::Incomplete => panic!("incomplete: {head}"),
    }
}

fn client() -> String {
    SERVER.replace("/v1/server", "/v1/client").replace("X-Pyrycode-Version", "X-Pyrycode-Token")
}

#[test]
fn a_good_request_is_understood() {
    let upgrade = upgrade_of(SERVER).unwrap();
    assert_eq!(upgrade.server_id.as_str(), "id");
    assert_eq!(&upgrade.accept_key, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(upgrade.role, Role::Binary { version: "1.2".into() });
    assert_eq!(upgrade_of(&client()).unwrap().role, Role::Phone { device_name: None });
    let named = client().replace("Host:", "x-pyrycode-device-name: Ann's \u{fc}\r\nHost:");
    let role = Role::Phone { device_name: Some("Ann's \u{fc}".into()) };
    assert_eq!(upgrade_of(&named).unwrap().role, role);
}

#[test]
fn each_required_header_is_missed_in_any_form() {
    let id = ("X-Pyrycode-Server: id", Fault::NoServerId);
    let agent = ("User-Agent: pyry", Fault::NoUserAgent);
    let server = [id, ("X-Pyrycode-Version: 1.2", Fault::NoVersion), agent];
    let client_headers = [id, ("X-Pyrycode-Token: 1.2", Fault::NoToken), agent];
    let rows = server
        .map(|h| (SERVER.to_owned(), h))
        .into_iter()
        .chain(client_headers.map(|h| (client(), h)));
    for (head, (header, fault)) in rows {
        let refused = Err(Reply::BadRequest(fault));
        let name = header.split(':').next().unwrap();
        let line = format!("{header}\r\n");
        assert!(head.contains(&line));
        for bad in ["", &format!("{name}:\r\n"), &format!("{name}: \t \r\n")] {
            let bad_head = head.replace(&line, bad);
            assert_eq!(upgrade_of(&bad_head), refused, "{bad_head}");
            // Required headers come before the handshake.
            let no_upgrade = bad_head.replace("Upgrade: websocket\r\n", "");
            assert_eq!(upgrade_of(&no_upgrade), refused);
        }
        let shouted = head.replace(&line, &line.replace(name, &name.to_uppercase()));
        assert!(upgrade_of(&shouted).is_ok(), "{shouted}");
        let twice = head.replace(&line, &format!("{line}{name}: other\r\n"));
        assert_eq!(upgrade_of(&twice), upgrade_of(&head), "the first value wins");
        let empty_first = head.replace(&line, &format!("{name}:\r\n{line}"));
        assert_eq!(upgrade_of(&empty_first), refused, "the first value wins");
    }
}

#[test]
fn the_handshake_is_checked_header_by_header() {
    let allow = Reply::MethodNotAllowed { allow: "GET" };
    let [old, no_upgrade, no_connection] =
        [Fault::Http10, Fault::NoUpgrade, Fault::NoConnection].map(Reply::UpgradeRequired);
    let bad_key = Reply::BadRequest(Fault::BadKey);
    let rows = [
        ("HTTP/1.1", "HTTP/1.0", Some(old)),
        ("Upgrade: websocket\r\n", "", Some(no_upgrade)),
        ("Upgrade: websocket", "Upgrade: h2c", Some(no_upgrade)),
        ("Upgrade: websocket", "Upgrade: h2c, WebSocket", None),
        ("Connection: Upgrade\r\n", "", Some(no_connection)),
        ("Connection: Upgrade", "Connection: keep-alive", Some(no_connection)),
        ("Connection: Upgrade", "Connection: keep-alive,\tuPGRADE", None),
        ("Connection: Upgrade", "Connection: close\r\nconnection: upgrade", None),
        ("GET", "POST", Some(allow)),
        ("GET", "HEAD", Some(allow)),
        ("Version: 13", "Version: 12", Some(Reply::UnsupportedVersion)),
        ("Sec-WebSocket-Version: 13\r\n", "", Some(Reply::UnsupportedVersion)),
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", Some(bad_key)),
        ("dGhlIHNhbXBsZSBub25jZQ==", "", Some(bad_key)),
        ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j", Some(bad_key)),
        ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j!Q==", Some(bad_key)),
        ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZR==", None),
        ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ=", Some(bad_key)),
        ("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\n", Some(Reply::BadRequest(Fault::Body))),
        (
            "dGhlIHNhbXBsZSBub25jZQ==",
            "dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            Some(bad_key),
        ),
        ("X-Pyrycode-Server: id", "X-Pyrycode-Server: \u{e9}", None),
    ];
    for (from, to, refusal) in rows {
        let head = SERVER.replacen(from, to, 1);
        assert_ne!(head, SERVER);
        assert_eq!(upgrade_of(&head).err(), refusal, "{head}");
    }
}

#[test]
fn a_server_id_is_at_most_256_bytes_of_utf_8() {
    let with = |id: &[u8]| {
        let (before, after) = SERVER.split_once("Server: id").unwrap();
        let head = [before.as_bytes(), b"Server: ", id, after.as_bytes()].concat();
        match outcome(&mut HeadScanner::default(), &head) {
            Outcome::Request(_, upgrade, _) => upgrade.err(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(with(&[b'x'; 256]), None);
    assert_eq!(with(&[b'x'; 257]), Some(Reply::BadRequest(Fault::BadServerId)));
    assert_eq!(with(b"\xff\xfe"), Some(Reply::BadRequest(Fault::BadServerId)));
}

#[test]
fn routes_go_by_the_path_alone() {
    let rows = [
        ("/v1/server", Route::Server),
        ("/v1/server?x=1", Route::Server),
        ("http://relay/v1/client", Route::Client),
        ("HTTPS://relay:8443/healthz?", Route::Healthz),
        ("/healthz", Route::Healthz),
        ("/readyz", Route::Readyz),
        ("/readyz/404", Route::ReadyzOr404),
        ("/readyz/", Route::NotFound),
        ("/", Route::NotFound),
        ("http://relay", Route::NotFound),
        ("/v1/server/", Route::NotFound),
        ("/v2/server", Route::NotFound),
        ("//v1/server", Route::NotFound),
        ("/v1/%73erver", Route::NotFound),
        ("/V1/server", Route::NotFound),
    ];
    for (target, route) in rows {
        let head = SERVER.replacen("/v1/server", target, 1);
        let Outcome::Request(found, ..) = of(&head) else { panic!("{target}") };
        assert_eq!(found, route, "{target}");
    }
}

#[test]
fn what_is_not_http_1_1_syntax_is_refused() {
    let rows = [
        ("GET /healthz HTTP/1.1\nHost: a\n\n", Fault::LineEnds),
        ("GET /healthz HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", Fault::LineEnds),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n", Fault::LineEnds),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n", Fault::HeaderValue),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nX: b\x0bc\r\n\r\n", Fault::HeaderValue),
        ("GET /healthz HTTP/1.1\r\nHost : a\r\n\r\n", Fault::HeaderName),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nX: b\r\n folded\r\n\r\n", Fault::HeaderName),
        ("GET /healthz HTTP/1.1\r\n Host: a\r\n\r\n", Fault::HeaderName),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Fault::SeveralHosts),
        ("GET /healthz HTTP/1.1\r\nX: a\r\n\r\n", Fault::NoHost),
        ("GET /healthz HTTP/1.1\r\nHost: a b\r\n\r\n", Fault::BadHost),
        ("GET /healthz HTTP/1.1\r\nHost: a/b\r\n\r\n", Fault::BadHost),
        (
            "GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\
             Transfer-Encoding: chunked\r\n\r\n",
            Fault::TransferEncoding,
        ),
        (
            "GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            Fault::ContentLength,
        ),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", Fault::ContentLength),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", Fault::ContentLength),
        ("GET /healthz HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Fault::TransferEncoding),
        ("GET  /healthz HTTP/1.1\r\nHost: a\r\n\r\n", Fault::RequestLine),
        ("G(T /healthz HTTP/1.1\r\nHost: a\r\n\r\n", Fault::RequestLine),
        ("GET /heal thz HTTP/1.1\r\nHost: a\r\n\r\n", Fault::HttpVersion),
        ("GET healthz HTTP/1.1\r\nHost: a\r\n\r\n", Fault::Target),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", Fault::Target),
        ("CONNECT relay:80 HTTP/1.1\r\nHost: a\r\n\r\n", Fault::Target),
        ("GET ftp://relay/healthz HTTP/1.1\r\nHost: a\r\n\r\n", Fault::Target),
        ("GET /healthz HTTP/2.0\r\nHost: a\r\n\r\n", Fault::HttpVersion),
        ("GET /healthz HTTP/1.2\r\nHost: a\r\n\r\n", Fault::HttpVersion),
        ("GET /healthz\r\n\r\n", Fault::RequestLine),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Fault::HttpVersion),
        ("\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", Fault::LineEnds),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03", Fault::RequestLine),
    ];
    for (head, fault) in rows {
        assert_eq!(of(head), Outcome::Refused(Reply::BadRequest(fault)), "{head:?}");
    }
}

#[test]
fn what_is_odd_but_legal_is_served() {
    let rows = [
        "GET /healthz HTTP/1.0\r\n\r\n",
        "\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost:\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: a\r\nX: \u{e9}\tb\r\n\r\n",
    ];
    for head in rows {
        let served = matches!(of(head), Outcome::Request(Route::Healthz, _, n) if n == head.len());
        assert!(served, "{head:?}");
    }
}

#[test]
fn a_connection_is_kept_only_where_both_sides_can() {
    let rows = [
        ("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", true),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n", false),
        ("GET /healthz HTTP/1.0\r\n\r\n", false),
        ("GET /healthz HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", false),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", false),
    ];
    for (head, kept) in rows {
        let ParsedHead::Complete { request, .. } = HeadScanner::default().parse(head.as_bytes())
        else {
            panic!("{head}");
        };
        assert_eq!(request.keep_alive(), kept, "{head}");
    }
}

#[test]
fn heads_have_limits() {
    let fill = |bytes: usize| {
        let start = "GET /healthz HTTP/1.1\r\nHost: a\r\nX: ";
        format!("{start}{}\r\n\r\n", "x".repeat(bytes - start.len() - 4))
    };
    let too_long = Reply::HeadTooLarge(Fault::HeadTooLong);
    assert!(matches!(of(&fill(MAX_HEAD_BYTES)), Outcome::Request(..)));
    assert_eq!(of(&fill(MAX_HEAD_BYTES + 1)), Outcome::Refused(too_long));
    let endless = format!("GET /healthz HTTP/1.1\r\nX: {}", "x".repeat(MAX_HEAD_BYTES));
    assert_eq!(of(&endless), Outcome::Refused(too_long));
    let lines = |count: usize| {
        format!("GET /healthz HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count - 1))
    };
    assert!(matches!(of(&lines(MAX_HEADERS)), Outcome::Request(..)));
    let too_many = Reply::HeadTooLarge(Fault::TooManyHeaders);
    assert_eq!(of(&lines(MAX_HEADERS + 1)), Outcome::Refused(too_many));
}

#[test]
fn any_split_of_a_head_comes_to_the_same() {
    let pipelined = format!("{SERVER}\x01\x02abcd");
    let whole = of(&pipelined);
    assert!(matches!(whole, Outcome::Request(Route::Server, Ok(_), n) if n == SERVER.len()));
    for split in 1..SERVER.len() {
        let mut scanner = HeadScanner::default();
        let first = outcome(&mut scanner, &pipelined.as_bytes()[..split]);
        assert_eq!(first, Outcome::Incomplete, "{split}");
        assert_eq!(outcome(&mut scanner, pipelined.as_bytes()), whole, "{split}");
    }
    let mut scanner = HeadScanner::default();
    for end in 1..SERVER.len() {
        assert_eq!(outcome(&mut scanner, &SERVER.as_bytes()[..end]), Outcome::Incomplete);
    }
    assert!(matches!(outcome(&mut scanner, SERVER.as_bytes()), Outcome::Request(..)));
}

#[test]
fn a_request_shows_nothing_of_itself() {
    let head = client();
    let ParsedHead::Complete { request, .. } = HeadScanner::default().parse(head.as_bytes()) else {
        panic!("{head}");
    };
    assert_eq!(format!("{request:?}"), "Request { .. }");
}

#[test]
fn answers_are_whole_and_echo_nothing() {
    let mut out = Vec::new();
    Reply::UpgradeRequired(Fault::NoConnection).write(&mut out, false);
    let text = String::from_utf8(out).unwrap();
    assert!(text.starts_with("HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\n"), "{text}");
    assert!(text.contains("\r\nConnection: Upgrade, close\r\n"), "{text}");
    assert!(text.ends_with("the header Connection must name upgrade\n"), "{text}");
    let health =
        Health { version: "1", connected_binaries: 2, connected_phones: 3, uptime_seconds: 4 };
    let mut out = Vec::new();
    health.write(&mut out, false, true);
    let text = String::from_utf8(out).unwrap();
    assert!(text.ends_with(
        "\r\n\r\n{\"status\":\"ok\",\"version\":\"1\",\"connected_binaries\":2,\
         \"connected_phones\":3,\"uptime_seconds\":4}"
    ));
}

#[test]
fn a_request_is_for_the_host_that_it_names() {
    let is_for = |target: &str, host: &str| {
        let head = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        match HeadScanner::default().parse(head.as_bytes()) {
            ParsedHead::Complete { request, .. } => request.is_for("relay.example.com"),
            _ => panic!("{target} {host}"),
        }
    };
    for host in ["relay.example.com", "Relay.EXAMPLE.com", "relay.example.com:443"] {
        assert!(is_for("/healthz", host), "{host}");
        assert!(!is_for("http://example.com/healthz", host), "{host}");
    }
    for host in ["", ":443", "example.com", "relay.example.com.evil", "[::1]:443", "127.0.0.1"] {
        assert!(!is_for("/healthz", host), "{host}");
        assert!(is_for("https://relay.example.com:8443/healthz", host), "{host}");
    }
}
