//! Request heads: any split gives the same outcome, and what is taken follows RFC 9112.

#![no_main]

mod split;

use libfuzzer_sys::fuzz_target;
use pyrycode_relay::protocol::upgrade::{
    HeadScanner, MAX_HEAD_BYTES, MAX_HEADERS, ParsedHead, Reply, Request, Role, Route, Upgrade,
};

/// Everything that the relay asks of a request.
#[derive(Debug, PartialEq)]
struct Asked {
    route: Route,
    server: Result<Upgrade, Reply>,
    client: Result<Upgrade, Reply>,
    healthz: Result<(), Reply>,
    is_head: bool,
    keep_alive: bool,
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Incomplete,
    Refused(Reply),
    Complete(Box<Asked>, usize),
}

fn parse(scanner: &mut HeadScanner, bytes: &[u8]) -> Outcome {
    match scanner.parse(bytes) {
        ParsedHead::Incomplete => Outcome::Incomplete,
        ParsedHead::Refused(reply) => Outcome::Refused(reply),
        ParsedHead::Complete { request, consumed } => Outcome::Complete(ask(&request).into(), consumed),
    }
}

fn ask(request: &Request<'_>) -> Asked {
    Asked {
        route: request.route(),
        server: request.server_upgrade(),
        client: request.client_upgrade(),
        healthz: request.health_check(),
        is_head: request.is_head(),
        keep_alive: request.keep_alive(),
    }
}

fuzz_target!(|data: &[u8]| {
    let (reads, stream) = split::split(data);
    let whole = parse(&mut HeadScanner::default(), stream);
    let mut scanner = HeadScanner::default();
    let mut came = 0;
    let mut outcome = Outcome::Incomplete;
    for read in reads {
        came += read.len();
        outcome = parse(&mut scanner, &stream[..came]);
        if outcome != Outcome::Incomplete {
            break;
        }
    }
    match (&whole, &outcome) {
        // Nonsense is looked for now and then only, and found in the order in which it came.
        (Outcome::Refused(_), Outcome::Refused(_) | Outcome::Incomplete) => {}
        _ => assert_eq!(whole, outcome),
    }
    if let Outcome::Complete(asked, consumed) = whole {
        check_head(&stream[..consumed], &asked);
    }
});

/// What must hold of every head that is taken, told from its bytes alone.
fn check_head(head: &[u8], asked: &Asked) {
    assert!(head.len() <= MAX_HEAD_BYTES);
    let head = head.strip_prefix(b"\r\n").unwrap_or(head);
    let head = head.strip_suffix(b"\r\n\r\n").expect("ends with an empty line");
    let lines: Vec<&[u8]> = split_lines(head);
    let (request_line, fields) = lines.split_first().expect("has a request line");
    assert!(request_line.ends_with(b" HTTP/1.1") || request_line.ends_with(b" HTTP/1.0"));
    assert_eq!(request_line.iter().filter(|byte| **byte == b' ').count(), 2);
    assert!(request_line.iter().all(|byte| matches!(byte, 0x20..=0x7e)));
    assert!(fields.len() <= MAX_HEADERS);
    let fields: Vec<(String, &[u8])> = fields.iter().map(|line| field(line)).collect();
    let values = |name: &str| -> Vec<&[u8]> {
        fields.iter().filter(|(found, _)| found == name).map(|(_, value)| *value).collect()
    };
    let is_http_1_1 = request_line.ends_with(b"1");
    assert!(values("host").len() == 1 || (values("host").is_empty() && !is_http_1_1));
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    assert!(lengths.is_empty() || codings.is_empty());
    if let Some(last) = codings.last() {
        assert!(last.to_ascii_lowercase().ends_with(b"chunked") && is_http_1_1);
    }
    for host in values("host") {
        let name_ends_in = if host.starts_with(b"[") { b']' } else { b':' };
        if let Some(at) = host.iter().rposition(|byte| *byte == name_ends_in) {
            let port = &host[at + 1..];
            assert!(port.strip_prefix(b":").unwrap_or(port).iter().all(u8::is_ascii_digit));
        }
        assert!(!host.iter().any(|byte| b"@/?#\\<>\" \t".contains(byte)));
    }
    assert!(lengths.windows(2).all(|pair| pair[0] == pair[1]));
    assert!(lengths.iter().all(|length| length.iter().all(u8::is_ascii_digit)));
    let mut upgrades = 0;
    for (upgrade, version) in
        [(&asked.server, "x-pyrycode-version"), (&asked.client, "x-pyrycode-token")]
    {
        let Ok(Upgrade { server_id, role, .. }) = upgrade else { continue };
        upgrades += 1;
        assert!(request_line.starts_with(b"GET ") && is_http_1_1);
        for required in ["x-pyrycode-server", "user-agent", version] {
            assert!(values(required).first().is_some_and(|value| !value.is_empty()), "{required}");
        }
        assert_eq!(server_id.as_str().as_bytes(), values("x-pyrycode-server")[0]);
        assert_eq!(values("sec-websocket-key").len(), 1);
        assert_eq!(values("sec-websocket-version"), [b"13"]);
        if let Role::Phone { device_name: Some(name) } = role {
            assert!(!name.is_empty());
        }
    }
    assert!(upgrades < 2 || !values("x-pyrycode-token").is_empty());
}

fn split_lines(head: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    let mut rest = head;
    while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
        lines.push(&rest[..end]);
        rest = &rest[end + 2..];
    }
    lines.push(rest);
    lines
}

fn field(line: &[u8]) -> (String, &[u8]) {
    let colon = line.iter().position(|byte| *byte == b':').expect("a colon");
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    assert!(!name.is_empty());
    // RFC 9110, section 5.6.2.
    assert!(name.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b)));
    // RFC 9110, section 5.5.
    assert!(value.iter().all(|b| matches!(b, b'\t' | 0x20..=0x7e | 0x80..)));
    (String::from_utf8_lossy(name).to_ascii_lowercase(), trim(value))
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}
