//! However a head is cut into reads, it comes to the same.

use super::*;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// What a head comes to, as far as the relay asks.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Incomplete,
    Refused(Reply),
    Complete {
        consumed: usize,
        route: Route,
        upgrades: [Result<Upgrade, Reply>; 2],
        healthz: Result<(), Reply>,
        is_head: bool,
        keep_alive: bool,
    },
}

fn parse(scanner: &mut HeadScanner, bytes: &[u8]) -> Outcome {
    match scanner.parse(bytes) {
        ParsedHead::Incomplete => Outcome::Incomplete,
        ParsedHead::Refused(reply) => Outcome::Refused(reply),
        ParsedHead::Complete { request, consumed } => Outcome::Complete {
            consumed,
            route: request.route(),
            upgrades: [request.server_upgrade(), request.client_upgrade()],
            healthz: request.health_check(),
            is_head: request.is_head(),
            keep_alive: request.keep_alive(),
        },
    }
}

/// What the reads that end at `cuts`, and at the end, come to.
fn parse_reads(bytes: &[u8], cuts: &[Index]) -> Outcome {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut scanner = HeadScanner::default();
    for end in ends {
        let outcome = parse(&mut scanner, &bytes[..end]);
        if outcome != Outcome::Incomplete {
            return outcome;
        }
    }
    Outcome::Incomplete
}

/// Lines that a head may be made of, most of them sound.
fn line() -> impl Strategy<Value = &'static str> {
    select(vec![
        "Host: relay\r\n",
        "Upgrade: websocket\r\n",
        "Connection: keep-alive, Upgrade\r\n",
        "Connection: close\r\n",
        "Sec-WebSocket-Version: 13\r\n",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "X-Pyrycode-Server: id\r\n",
        "X-Pyrycode-Version: 1\r\n",
        "X-Pyrycode-Token: secret\r\n",
        "X-Pyrycode-Device-Name: \u{fc}\r\n",
        "User-Agent: a\r\n",
        "Content-Length: 0\r\n",
        "Content-Length: 7\r\n",
        "Transfer-Encoding: chunked\r\n",
        "X: y\n",
        "X: y\rz\r\n",
        " folded\r\n",
        "\r\n",
        "\0",
        "",
    ])
}

fn sound_head() -> impl Strategy<Value = String> {
    let sound =
        || line().prop_filter("sound", |line| line.contains(": ") && line.ends_with("\r\n"));
    let request_line = select(vec![
        "GET /v1/server HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
        "GET /v1/client HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
        "\r\nHEAD /healthz HTTP/1.1\r\nHost: relay\r\n",
        "POST http://relay/ HTTP/1.1\r\nHost: relay\r\n",
        "GET /healthz HTTP/1.0\r\n",
    ]);
    (request_line, prop::collection::vec(sound(), 0..12))
        .prop_map(|(request_line, lines)| format!("{request_line}{}\r\n", lines.concat()))
}

proptest! {
    #[test]
    fn a_whole_head_is_read_alike_in_any_reads(
        head in sound_head(),
        behind in prop::collection::vec(any::<u8>(), 0..40),
        cuts in prop::collection::vec(any::<Index>(), 0..12),
    ) {
        let bytes = [head.as_bytes(), &behind].concat();
        let whole = parse(&mut HeadScanner::default(), &bytes);
        prop_assert_ne!(&whole, &Outcome::Incomplete);
        prop_assert_eq!(&parse_reads(&bytes, &cuts), &whole);
        // Neither does it matter whether anything follows.
        prop_assert_eq!(parse_reads(head.as_bytes(), &cuts), whole);
    }

    #[test]
    fn nonsense_is_refused_in_any_reads_if_it_is_in_one(
        lines in prop::collection::vec(line(), 0..20),
        noise in prop::collection::vec(any::<u8>(), 0..60),
        cuts in prop::collection::vec(any::<Index>(), 0..12),
    ) {
        let bytes = [b"GET /healthz HTTP/1.1\r\n", lines.concat().as_bytes(), &noise].concat();
        let (whole, in_reads) =
            (parse(&mut HeadScanner::default(), &bytes), parse_reads(&bytes, &cuts));
        match (&whole, &in_reads) {
            (Outcome::Refused(_), Outcome::Refused(_)) => {}
            // Without an end, it is looked for at each doubling of the length only.
            (Outcome::Refused(_), Outcome::Incomplete) => {
                prop_assert!(find(&bytes, b"\r\n\r\n").is_none());
            }
            _ => prop_assert_eq!(whole, in_reads),
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cuts: Vec<Index>) {
        let whole = parse(&mut HeadScanner::default(), &bytes);
        if !matches!(whole, Outcome::Refused(_)) {
            prop_assert_eq!(parse_reads(&bytes, &cuts), whole);
        }
    }
}
