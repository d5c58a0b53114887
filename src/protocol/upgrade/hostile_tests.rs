//! Heads that someone made up to be misunderstood, row by row, with the answers that they are due.

use super::*;
use crate::protocol::reply::Health;

/// The status that the relay answers these bytes with; 0 if it waits for more.
fn status(scanner: &mut HeadScanner, bytes: &[u8]) -> u16 {
    let mut answer = Vec::new();
    match scanner.parse(bytes) {
        ParsedHead::Incomplete => return 0,
        ParsedHead::Refused(reply) => reply.write(&mut answer, false),
        ParsedHead::Complete { request, .. } => {
            let upgrade = match request.route() {
                Route::Server => request.server_upgrade(),
                Route::Client => request.client_upgrade(),
                Route::NotFound => Err(Reply::NotFound),
                Route::Healthz | Route::Readyz | Route::ReadyzOr404 => match request.health_check()
                {
                    Ok(()) => return 200,
                    Err(reply) => Err(reply),
                },
            };
            match upgrade {
                Ok(upgrade) => write_switching_protocols(&mut answer, &upgrade.accept_key),
                Err(reply) => reply.write(&mut answer, false),
            }
        }
    }
    let line = String::from_utf8(answer).unwrap();
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Each row whole and byte by byte.
fn assert_rows<B: AsRef<[u8]>>(expected: u16, rows: impl IntoIterator<Item = B>) {
    for row in rows {
        let bytes = row.as_ref();
        let shown = bytes.escape_ascii().to_string();
        let whole = status(&mut HeadScanner::default(), bytes);
        assert_eq!(whole, expected, "{shown}");
        let mut scanner = HeadScanner::default();
        let bytewise = (1..=bytes.len()).find_map(|came| {
            let status = status(&mut scanner, &bytes[..came]);
            (status != 0).then_some(status)
        });
        // Of a head without an end, nonsense is looked for at each doubling of its length only.
        let is_whole = find(bytes, b"\r\n\r\n").is_some();
        assert!(bytewise == Some(expected) || (!is_whole && bytewise.is_none()), "{shown}");
    }
}

/// A good request for `/healthz` with these lines added, each to end in CRLF.
fn with(lines: &str) -> String {
    format!("GET /healthz HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
}

/// A good upgrade with these lines added.
fn upgrade_with(lines: &str) -> String {
    format!(
        "GET /v1/server HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         X-Pyrycode-Server: id\r\nX-Pyrycode-Version: 1\r\nUser-Agent: a\r\n{lines}\r\n"
    )
}

#[test]
fn a_body_whose_length_two_readers_could_see_differently_is_refused() {
    let rows = [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\ntransfer-ENCODING: chunked\r\n",
        "Content-Length: 5\r\nTransfer-Encoding:\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5\r\nContent-Length: 05\r\n",
        "Content-Length: 5\r\ncontent-length: 0\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length: 5\t\t6\r\n",
        "Content-Length: 5.0\r\n",
        "Content-Length: 5;x\r\n",
        "Content-Length: ,5\r\n",
        "Content-Length: \"5\"\r\n",
        "Content-Length: \u{663}\r\n",
        "Content-Length:\r\n",
        "Content-Length: 99999999999999999999\r\n",
        "Content-Length: 18446744073709551621\r\n",
        "Transfer-Encoding:\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunkedx\r\n",
        "Transfer-Encoding: chun ked\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: chunked,\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
        "Transfer-Encoding: x\r\nTransfer-Encoding:\r\n",
        "Transfer-Encoding: chunked;q=1\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "Transfer-Encoding: chunked\0\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "Transfer-Encoding\t: chunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        " Transfer-Encoding: chunked\r\n",
    ];
    assert_rows(400, rows.map(with));
    assert_rows(400, rows.map(upgrade_with));
    assert_rows(400, ["GET /healthz HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"]);
}

#[test]
fn a_body_of_a_clear_length_ends_the_connection_and_never_begins_a_websocket() {
    let rows = [
        "Content-Length: 5\r\n",
        "Content-Length: 005\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: Chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: \tchunked \r\n",
    ];
    assert_rows(200, rows.map(with));
    assert_rows(400, rows.map(upgrade_with));
    for row in rows {
        let head = with(row);
        let ParsedHead::Complete { request, .. } = HeadScanner::default().parse(head.as_bytes())
        else {
            panic!("{head}");
        };
        assert!(!request.keep_alive(), "{head}");
    }
    let no_body = ["Content-Length: 0\r\n", "Content-Length: 000\r\n", "Expect: 100-continue\r\n"];
    assert_rows(200, no_body.map(with));
    assert_rows(101, no_body.map(upgrade_with));
}

#[test]
fn lines_end_in_crlf_and_nothing_else() {
    assert_rows(
        400,
        [
            "GET /healthz HTTP/1.1\nHost: a\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nHost: a\n\r\n",
            "GET /healthz HTTP/1.1\r\nHost: a\r\n\n",
            "GET /healthz HTTP/1.1\nHost: a\n\n",
            "GET /healthz HTTP/1.1\rHost: a\r\r",
            "GET /healthz HTTP/1.1\rHost: a\r\n\r\n",
            "GET /healthz HTTP/1.1\r\r\nHost: a\r\n\r\n",
            "GET /healthz HTTP/1.1\n\rHost: a\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nHost: a\r\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nHost: a\r\nX: y\rZ: w\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nHost: a\r\nX: y\nZ: w\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nHost: a\r\nX:\n\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nHost: a\r\nX: y\r \r\n\r\n",
            "GET /healthz\r HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET\n/healthz HTTP/1.1\r\nHost: a\r\n\r\n",
            "\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
            "\rGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
            "\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\n\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\n\r\n\r\n",
            " \r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
    );
    // A head that ended early is a head; what follows it is another one, or the first frames.
    assert_rows(400, ["GET /healthz HTTP/1.1\r\n\r\nHost: a\r\n\r\n"]);
    assert_rows(200, ["GET /healthz HTTP/1.0\r\n\r\nHost: a\r\n\r\n"]);
}

#[test]
fn lines_are_fields_and_not_folded() {
    let rows = [
        "X: y\r\n z\r\n",
        "X: y\r\n\tz\r\n",
        "X: y\r\n \r\n",
        "X:\r\n y\r\n",
        " X: y\r\n",
        "\tX: y\r\n",
        "X : y\r\n",
        "X\t: y\r\n",
        "X\r\n",
        "X y\r\n",
        ": y\r\n",
        " : y\r\n",
        "X Y: z\r\n",
        "X(Y): z\r\n",
        "X/Y: z\r\n",
        "X[Y]: z\r\n",
        "X@Y: z\r\n",
        "X;Y: z\r\n",
        "\"X\": z\r\n",
        "{X}: z\r\n",
        "X\\: z\r\n",
        "X\0: y\r\n",
        "X\x7f: y\r\n",
        "\u{feff}X: y\r\n",
        "X\u{e9}: y\r\n",
        "X: y\0z\r\n",
        "X: \0\r\n",
        "X: y\x01z\r\n",
        "X: y\x08\r\n",
        "X: \x0by\r\n",
        "X: \x0cy\r\n",
        "X: y\x1bz\r\n",
        "X: y\x7fz\r\n",
        "GET /healthz HTTP/1.1\r\n",
        "HTTP/1.1 200 OK\r\n",
    ];
    assert_rows(400, rows.map(with));
    assert_rows(400, rows.map(upgrade_with));
    // The first line after the request line is no exception.
    assert_rows(400, rows.map(|row| with("").replacen("Host", &format!("{row}Host"), 1)));
    let odd_but_legal = [
        "X:\r\n",
        "X:y\r\n",
        "X: \t y \t \r\n",
        "X: y\tz\r\n",
        "X: \u{e9}\r\n",
        "!#$%&'*+-.^_`|~09azAZ: y\r\n",
        "X: :\r\n",
        "X: GET / HTTP/1.1\r\n",
        "X: y\r\nX: z\r\n",
    ];
    assert_rows(200, odd_but_legal.map(with));
    assert_rows(101, odd_but_legal.map(upgrade_with));
    // Not every byte of a value is UTF-8.
    let mut latin_1 = with("X: ?\r\n").into_bytes();
    let at = latin_1.iter().position(|byte| *byte == b'?').unwrap();
    for byte in 0..=u8::MAX {
        latin_1[at] = byte;
        let is_legal = byte >= 0x80 || byte == b'\t' || (b' '..0x7f).contains(&byte);
        assert_rows(if is_legal { 200 } else { 400 }, [&latin_1]);
    }
}

#[test]
fn there_is_one_host_and_it_is_one() {
    let head = |lines: &str| format!("GET /healthz HTTP/1.1\r\n{lines}\r\n");
    let refused = [
        "",
        "Host: a\r\nHost: a\r\n",
        "Host: a\r\nhost: b\r\n",
        "Host: a\r\nX: y\r\nHOST:\r\n",
        "Host:\r\nHost:\r\n",
        "Hostt: a\r\n",
        "Host a\r\n",
        "Host : a\r\n",
        "X: y\r\n Host: a\r\n",
        "Host: a b\r\n",
        "Host: a\tb\r\n",
        "Host: a\0\r\n",
        "Host: a@b\r\n",
        "Host: u:p@a\r\n",
        "Host: a/b\r\n",
        "Host: a?b\r\n",
        "Host: a#b\r\n",
        "Host: a\\b\r\n",
        "Host: http://a\r\n",
        "Host: <a>\r\n",
        "Host: \"a\"\r\n",
        "Host: \u{e9}\r\n",
        "Host: a:b\r\n",
        "Host: a:8x\r\n",
        "Host: a:80:80\r\n",
        "Host: a:-1\r\n",
        "Host: ::1\r\n",
        "Host: [::1\r\n",
        "Host: ::1]\r\n",
        "Host: [::1]a\r\n",
        "Host: [::1]:x\r\n",
        "Host: [a.b/c]\r\n",
        "Host: [[::1]]\r\n",
        "Host: []\r\n",
        "Host: a[b\r\n",
        "Host: %\r\n",
        "Host: %4\r\n",
        "Host: %zz\r\n",
    ];
    assert_rows(400, refused.map(head));
    let taken = [
        "Host: a\r\n",
        "Host:a\r\n",
        "Host: \t a \r\n",
        "Host:\r\n",
        "Host: a:\r\n",
        "Host: a:80\r\n",
        "Host: RELAY.example-1.com.:443\r\n",
        "Host: 127.0.0.1:8080\r\n",
        "Host: [::1]\r\n",
        "Host: [::ffff:127.0.0.1]:8080\r\n",
        "Host: [v1.a:b]\r\n",
        "Host: a_b~!$&'()*+,;=%4a\r\n",
    ];
    assert_rows(200, taken.map(head));
}

#[test]
// One table.
#[allow(clippy::too_many_lines)]
fn a_target_is_a_path_or_a_whole_http_address() {
    let head = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
    let refused = [
        "*",
        "a:80",
        "healthz",
        "?/healthz",
        "./healthz",
        "\\healthz",
        "/healthz#",
        "/healthz#x",
        "/healthz\0",
        "/heal\tthz",
        "/healthz\x7f",
        "/healthz\u{e9}",
        "/heal thz",
        "/healthz\x0b",
        "http:/healthz",
        "http:///healthz",
        "http://?x",
        "http:healthz",
        "http//a/healthz",
        "://a/healthz",
        "ftp://a/healthz",
        "ws://a/healthz",
        "file:///healthz",
        "javascript://a/healthz",
        " http://a/healthz",
        "http://u@a/healthz",
        "http://u:p@a/healthz",
        "http://a b/healthz",
        "http://a\\b/healthz",
        "http://a#/healthz",
        "http://a:x/healthz",
        "http://[::1/healthz",
        "http://\u{e9}/healthz",
    ];
    assert_rows(400, refused.map(head));
    let elsewhere = [
        "/",
        "//healthz",
        "///healthz",
        "//a/healthz",
        "/healthz/",
        "/healthz/..",
        "/x/../healthz",
        "/./healthz",
        "/healthz;x",
        "/healthz%20",
        "/%68ealthz",
        "/HEALTHZ",
        "/http://a/healthz",
        "http://a",
        "http://a?/healthz",
        "http://a//healthz",
        "http://a/b?/healthz",
    ];
    assert_rows(404, elsewhere.map(head));
    let taken = [
        "/healthz",
        "/healthz?",
        "/healthz?x=y?/z",
        "/healthz?http://a/",
        "http://a/healthz",
        "HTTP://a:80/healthz?x",
        "hTTps://[::1]:443/healthz",
        "http://another/healthz",
    ];
    assert_rows(200, taken.map(head));
    // The other two forms belong to methods that have nothing to do here.
    let forms = ["OPTIONS *", "CONNECT a:80", "CONNECT /", "OPTIONS a:80"];
    let answers = [400, 400, 404, 400];
    for (form, answer) in forms.iter().zip(answers) {
        assert_rows(answer, [format!("{form} HTTP/1.1\r\nHost: a\r\n\r\n")]);
    }
}

#[test]
fn a_request_line_has_three_words_and_a_version_that_is_spoken() {
    let rest = "\r\nHost: a\r\n\r\n";
    let refused = [
        "",
        "GET",
        "GET ",
        "GET /healthz",
        "GET /healthz ",
        "GET  /healthz HTTP/1.1",
        "GET /healthz  HTTP/1.1",
        "GET\t/healthz HTTP/1.1",
        "GET /healthz\tHTTP/1.1",
        " GET /healthz HTTP/1.1",
        "GET /healthz HTTP/1.1 ",
        "GET /healthz HTTP/1.1x",
        "GET /healthz HTTP/1.1\t",
        "GET /healthz HTTP/1.1\0",
        "GET /healthz x HTTP/1.1",
        "GET HTTP/1.1",
        "/healthz HTTP/1.1",
        "GET /healthz http/1.1",
        "GET /healthz HTTP/1.10",
        "GET /healthz HTTP/01.1",
        "GET /healthz HTTP/1,1",
        "GET /healthz HTTP/1",
        "GET /healthz HTTP/1.",
        "GET /healthz HTTP/0.9",
        "GET /healthz HTTP/1.2",
        "GET /healthz HTTP/2",
        "GET /healthz HTTP/2.0",
        "GET /healthz HTTP/3.0",
        "GET /healthz HTTPS/1.1",
        "GET /healthz ICY/1.1",
        "G\0T /healthz HTTP/1.1",
        "G:T /healthz HTTP/1.1",
        "\"GET\" /healthz HTTP/1.1",
        "G\u{e9}T /healthz HTTP/1.1",
        "\u{feff}GET /healthz HTTP/1.1",
        "HTTP/1.1 200 OK",
    ];
    assert_rows(400, refused.map(|line| format!("{line}{rest}")));
    let other_methods = ["get", "Get", "POST", "PUT", "DELETE", "TRACE", "PRI", "GETT", "!#$%&'*+"];
    assert_rows(405, other_methods.map(|method| format!("{method} /healthz HTTP/1.1{rest}")));
}

#[test]
fn what_asks_for_more_than_a_websocket_does_not_get_one() {
    let swap = |from: &str, to: &str| {
        let head = upgrade_with("");
        assert!(head.contains(from));
        head.replacen(from, to, 1)
    };
    assert_rows(
        426,
        [
            swap("Upgrade: websocket", "Upgrade: websocket/13"),
            swap("Upgrade: websocket", "Upgrade: web socket"),
            swap("Upgrade: websocket", "Upgrade: \"websocket\""),
            swap("Upgrade: websocket", "Upgrade: websocket;x"),
            swap("Upgrade: websocket", "Upgrade: h2c"),
            swap("Connection: Upgrade", "Connection: Upgrade;x"),
            swap("Connection: Upgrade", "Connection: keep-alive"),
            swap("HTTP/1.1", "HTTP/1.0"),
        ],
    );
    assert_rows(
        400,
        [
            swap("Version: 13", "Version: 13, 8"),
            swap("Version: 13", "Version: 013"),
            swap("Version: 13", "Version: 13\r\nSec-WebSocket-Version: 13"),
            swap("Version: 13", "Version:"),
            swap("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ==, x"),
            swap("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ"),
            swap("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBs ZSBub25jZQ=="),
            swap("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ=== "),
            swap("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j-_=="),
        ],
    );
    // What else is offered is not taken, and no reason to refuse.
    assert_rows(
        101,
        [
            upgrade_with("Sec-WebSocket-Extensions: permessage-deflate\r\n"),
            upgrade_with("Sec-WebSocket-Protocol: chat\r\nOrigin: null\r\n"),
            upgrade_with("HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"),
            swap("Upgrade: websocket", "Upgrade: h2c\r\nUpgrade: websocket"),
            swap("Connection: Upgrade", "Connection: close, X-Pyrycode-Server, Upgrade"),
        ],
    );
}

#[test]
fn other_protocols_are_told_at_their_first_bytes() {
    let rows: [&[u8]; 16] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x16",
        b"\x80\x2e\x01\x03\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 5 80\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PROXY UNKNOWN\r\n",
        b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"EHLO relay\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"\x00",
        b"\x03\x00\x00\x13\x0e\xe0",
        b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58",
        b"{\"conn_id\":\"x\"}",
        b"<?xml version=\"1.0\"?>",
    ];
    assert_rows(400, rows);
    // Nobody has to send two of them to learn that it is no HTTP.
    for first in [b"\x16", b"\x80", b"\0", b"\x81", b"{", b"<", b" ", b"\n"] {
        assert_eq!(status(&mut HeadScanner::default(), first), 400, "{first:?}");
    }
}

#[test]
fn what_is_too_long_is_refused_before_it_has_ended() {
    let long = "x".repeat(MAX_HEAD_BYTES + 1);
    assert_rows(
        431,
        [
            format!("GET /{long}"),
            format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"),
            long.clone(),
            format!("GET /healthz HTTP/1.1\r\n{long}"),
            format!("GET /healthz HTTP/1.1\r\nHost: {long}"),
            with(&format!("{long}: y\r\n")),
            with(&format!("X: {long}\r\n")),
            with(&format!("X:{}\r\n", " ".repeat(MAX_HEAD_BYTES))),
            with(&"X: y\r\n".repeat(MAX_HEADERS)),
            with(&"X:\r\n".repeat(4000)),
        ],
    );
    // Nonsense is nonsense at any length.
    assert_rows(400, [vec![0; MAX_HEAD_BYTES], b"\r\n".repeat(MAX_HEAD_BYTES)]);
}

#[test]
fn what_follows_a_head_is_left_alone() {
    for head in [with("Content-Length: 44\r\n"), upgrade_with("")] {
        let behind = "GET /healthz HTTP/1.1\r\nHost: b\r\nX: \0\r\n\r\n";
        let both = format!("{head}{behind}");
        match HeadScanner::default().parse(both.as_bytes()) {
            ParsedHead::Complete { consumed, .. } => assert_eq!(consumed, head.len()),
            _ => panic!("{head}"),
        }
    }
}

#[test]
fn health_in_a_head_only_answer_has_no_body_to_be_misread() {
    let health =
        Health { version: "1", connected_binaries: 0, connected_phones: 0, uptime_seconds: 0 };
    let (mut whole, mut head_only) = (Vec::new(), Vec::new());
    health.write(&mut whole, false, true);
    health.write(&mut head_only, true, true);
    assert!(head_only.ends_with(b"\r\n\r\n"));
    assert!(whole.starts_with(&head_only));
}
