//! Records after a handshake: whatever a peer that has the keys seals, and whatever it sends past
//! them, in any split, comes to the same; and what the session says are whole records.
//!
//! The first byte chooses the cipher suite. Then come steps: a kind of step, a length, so many
//! bytes.

#![no_main]

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use libfuzzer_sys::fuzz_target;
use pyrycode_relay::control::certificates::provider;
use pyrycode_relay::worker::tls::{Data, Keys, RECORD_BYTES, Received, Session, State};
use rustls::CipherSuite;

const SUITES: [CipherSuite; 6] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
];
const APPLICATION_DATA: u8 = 23;
const KINDS: [u8; 8] = [APPLICATION_DATA, APPLICATION_DATA, 22, 22, 21, 20, 0, 24];

fuzz_target!(|input: &[u8]| {
    let Some((&first, mut steps)) = input.split_first() else { return };
    let keys = |byte| Keys { secret: [byte; 48], key: [byte; 32], iv: [byte; 12], sequence: 0 };
    let mut data = Data {
        suite: SUITES[usize::from(first) % SUITES.len()],
        receiving: keys(1),
        sending: keys(2),
        state: State::default(),
    };
    let mut partial = Vec::new();
    while let [step, length, rest @ ..] = steps {
        let (content, more) = rest.split_at(usize::from(*length).min(rest.len()));
        steps = more;
        let kind = KINDS[usize::from(*step) % 8];
        let bytes = match step / 8 % 4 {
            0 | 1 => seal(&data, kind, content, 0),
            2 => seal(&data, kind, content, usize::from(*step) * 70),
            _ => content.to_vec(),
        };
        let whole = run(&data, &partial, &[&bytes]);
        let pieces: Vec<&[u8]> = bytes.chunks(1 + usize::from(*length) % 9).collect();
        let split = run(&data, &partial, &pieces);
        assert!(whole.plain == split.plain && whole.out == split.out, "by the split");
        assert_eq!(whole.received, split.received);
        check_records(&whole.out);
        assert!(whole.partial.len() <= 5 + RECORD_BYTES + 2048);
        if whole.received != Received::Open {
            return;
        }
        assert!(whole.partial == split.partial && whole.data.state == split.data.state);
        (data, partial) = (whole.data, whole.partial);
    }
});

struct Outcome {
    plain: Vec<u8>,
    out: Vec<u8>,
    received: Received,
    partial: Vec<u8>,
    data: Data,
}

fn run(data: &Data, partial: &[u8], pieces: &[&[u8]]) -> Outcome {
    let mut session = Session::revive(data, partial.to_vec(), &provider()).expect("a known suite");
    let (mut plain, mut out, mut received) = (Vec::new(), Vec::new(), Received::Open);
    for piece in pieces {
        let mut piece = piece.to_vec();
        let mut opened = session.receive(&mut piece, &mut out);
        plain.extend_from_slice(opened.kept());
        plain.extend_from_slice(&piece[opened.data.clone()]);
        if opened.received != Received::Open {
            received = opened.received;
            // Nothing that comes after the end is read.
            let length = out.len();
            let after = session.receive(&mut [23, 3, 3, 0, 1, 0], &mut out);
            assert!(after.data.is_empty() && out.len() == length);
            break;
        }
    }
    if matches!(received, Received::Failed(_)) {
        assert!(!session.encrypt(b"more", &mut Vec::new()) && !session.close(&mut Vec::new()));
    } else {
        let mut sealed = Vec::new();
        assert!(session.encrypt(b"more", &mut sealed));
        check_records(&sealed);
    }
    let partial = session.partial().to_vec();
    Outcome { plain, out, received, partial, data: session.data().expect("shaken") }
}

fn check_records(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let [21..=23, 3, 3, high, low, rest @ ..] = bytes else { panic!("no record") };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        assert!((18..=RECORD_BYTES + 256).contains(&length));
        bytes = &rest[length..];
    }
}

/// A record of the peer's, written from the standards a second time.
fn seal(data: &Data, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
    let name = format!("{:?}", data.suite);
    let is_13 = name.starts_with("TLS13");
    let algorithm = match &name {
        name if name.contains("AES_128") => &aead::AES_128_GCM,
        name if name.contains("AES_256") => &aead::AES_256_GCM,
        _ => &aead::CHACHA20_POLY1305,
    };
    let Keys { key, iv, sequence, .. } = &data.receiving;
    let cipher = UnboundKey::new(algorithm, &key[..algorithm.key_len()]).unwrap();
    let mut nonce = *iv;
    for (byte, number) in nonce[4..].iter_mut().zip(sequence.to_be_bytes()) {
        *byte ^= number;
    }
    let is_explicit = !is_13 && name.contains("GCM");
    let explicit = if is_explicit { nonce[4..].to_vec() } else { Vec::new() };
    let mut body = content.to_vec();
    if is_13 {
        body.push(kind);
        body.resize(body.len() + padding, 0);
    }
    let outer = if is_13 { APPLICATION_DATA } else { kind };
    let length = u16::try_from(explicit.len() + body.len() + 16).unwrap().to_be_bytes();
    let header = [&[outer, 3, 3], &length[..]].concat();
    let aad = match is_13 {
        true => header.clone(),
        false => {
            let plain = u16::try_from(body.len()).unwrap().to_be_bytes();
            [&sequence.to_be_bytes()[..], &[kind, 3, 3], &plain].concat()
        }
    };
    LessSafeKey::new(cipher)
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut body)
        .unwrap();
    [header, explicit, body].concat()
}
