//! Hostile peers of TLS, each attack with healthy pairs and newcomers beside it and the relay's
//! memory and descriptors watched, as in `hostile.rs`: what comes before, instead of, and below WebSocket.
//!
//! `cargo test --test hostile_tls -- --nocapture --test-threads=1`. `HOSTILE_SCALE=8` makes each
//! attack eight times as large.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    missing_docs
)]

mod common;

#[path = "hostile_tls/forge.rs"]
mod forge;

use std::time::{Duration, Instant};

use rustls::version::{TLS12, TLS13};
use tokio::task::JoinSet;

use common::scene::{Noise, Scene, join_all, scaled};
use common::{
    DOMAIN, PING, Raw, Request, SOON, TEXT, close_notice, envelope, masked, open_envelope, record,
    records,
};
use forge::{ALERT, CHANGE_CIPHER_SPEC, DATA, Forge, HANDSHAKE, forgeable};

// Alerts (RFC 8446, section 6).
const UNEXPECTED_MESSAGE: u8 = 10;
const BAD_RECORD_MAC: u8 = 20;
const RECORD_OVERFLOW: u8 = 22;
const HANDSHAKE_FAILURE: u8 = 40;
const DECODE_ERROR: u8 = 50;
const PROTOCOL_VERSION: u8 = 70;
const NO_RENEGOTIATION: u8 = 100;

fn json_of(length: usize) -> String {
    format!("\"{}\"", "j".repeat(length - 2))
}

/// What the relay says to one whose handshake does not come to its end: TLS, and of that no more
/// than a server's first flight.
async fn assert_unserved(peer: &mut Raw) -> Vec<(u8, Vec<u8>)> {
    let (answer, _) = peer.rest().await;
    assert!(answer.len() < 8192, "{} bytes for a stranger", answer.len());
    records(&answer)
}

/// The hello of a client that speaks `version` at most, with its length of session id.
fn old_hello(version: [u8; 2], extensions: &[u8]) -> Vec<u8> {
    let suites = [0xc0, 0x2b, 0xc0, 0x2f, 0x00, 0x2f, 0x00, 0x0a];
    let mut body =
        [&version[..], &[7; 32], &[0], &[0, suites.len() as u8], &suites, &[1, 0]].concat();
    if !extensions.is_empty() {
        body.extend_from_slice(&u16::try_from(extensions.len()).unwrap().to_be_bytes());
        body.extend_from_slice(extensions);
    }
    [&[1], &u32::try_from(body.len()).unwrap().to_be_bytes()[1..], &body].concat()
}

/// A message of a handshake in records of at most `most` bytes.
fn fragments(message: &[u8], most: usize) -> Vec<u8> {
    message.chunks(most).flat_map(|part| record(HANDSHAKE, part)).collect()
}

// ---- slow and half handshakes

#[tokio::test]
async fn half_handshakes() {
    let args = ["--header-timeout", "2s", "--max-connections-per-address", "off"];
    let scene = Scene::begin_tls("half handshakes", &args).await;
    let doors = [scene.door().speaking(&TLS12, &[]), scene.door().speaking(&TLS13, &[])];
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for number in 0..scaled(1000) {
        let mut peer = Raw::connect_to(scene.addr()).await;
        let hello = doors[number % 2].hello();
        tasks.spawn(async move {
            let length = [0, 3, number % hello.len(), hello.len() - 1, hello.len()][number % 5];
            let _ = peer.try_send(&hello[..length]).await;
            if number % 3 == 0 {
                peer.dribble(&hello[length..], Duration::from_millis(200)).await;
            }
            assert_unserved(&mut peer).await;
        });
    }
    join_all(tasks).await;
    println!("half handshakes were over after {:?}", begun.elapsed());
    scene.end().await;
}

#[tokio::test]
async fn floods_of_hellos() {
    let scene = Scene::begin_tls("floods of hellos", &["--header-timeout", "2s"]).await;
    let doors = [scene.door().speaking(&TLS12, &[]), scene.door().speaking(&TLS13, &[])];
    let mut tasks = JoinSet::new();
    for task in 0..8 {
        let door = doors[task % 2].clone();
        tasks.spawn(async move {
            for number in 0..scaled(100) {
                let mut peer = Raw::connect_to(door.addr).await;
                let hello = door.hello();
                // One hello, or many in one packet: none is a handshake.
                let hellos = if number % 4 == 0 { hello.repeat(20) } else { hello };
                let _ = peer.try_send(hellos).await;
                if number % 3 == 0 {
                    peer.sip(16_384).await;
                }
                if number % 5 > 0 {
                    peer.abort();
                }
            }
        });
    }
    join_all(tasks).await;
    // A client that breaks off only after it has had all the work done, tickets and all.
    let mut tasks = JoinSet::new();
    for task in 0..4 {
        let door = doors[task % 2].clone();
        tasks.spawn(async move {
            for _ in 0..scaled(30) {
                Raw::through(&door.with(|_| {})).await.abort();
            }
        });
    }
    join_all(tasks).await;
    scene.end().await;
}

#[tokio::test]
async fn resets_amid_the_handshake() {
    let scene = Scene::begin_tls("resets amid the handshake", &[]).await;
    let mut tasks = JoinSet::new();
    for task in 0..8 {
        let door = scene.door();
        tasks.spawn(async move {
            let mut noise = Noise(task);
            for number in 0..scaled(60) {
                let mut client = door.tls.as_ref().unwrap().client();
                let mut hello = Vec::new();
                client.write_tls(&mut hello).unwrap();
                let mut peer = Raw::connect_to(door.addr).await;
                match number % 4 {
                    0 => peer.send(&hello[..noise.below(hello.len())]).await,
                    1 => peer.send(hello).await,
                    2 => {
                        peer.send(hello).await;
                        peer.sip(1 + noise.below(4000)).await;
                    }
                    _ => {
                        // The server's flight, and a part of the answer to it.
                        peer.send(hello).await;
                        let mut flight = Vec::new();
                        while client.is_handshaking() && flight.is_empty() {
                            let read = peer.some().await;
                            client.read_tls(&mut read.as_slice()).unwrap();
                            client.process_new_packets().unwrap();
                            while client.wants_write() {
                                client.write_tls(&mut flight).unwrap();
                            }
                        }
                        let _ = peer.try_send(&flight[..noise.below(flight.len().max(1))]).await;
                    }
                }
                if number % 7 > 0 { peer.abort() } else { peer.hang_up() }
            }
        });
    }
    join_all(tasks).await;
    scene.end().await;
}

#[tokio::test]
async fn oversized_handshake_messages() {
    let scene = Scene::begin_tls("oversized hellos", &["--header-timeout", "4s"]).await;
    let claiming = |length: usize, sent: usize| {
        let head = [&[1], &u32::try_from(length).unwrap().to_be_bytes()[1..]].concat();
        [head, vec![3; sent]].concat()
    };
    let mut tasks = JoinSet::new();
    // A hello that claims what none may be is refused at its first record, and one that has become
    // too long, in itself or by its records, there and then.
    for (length, sent, most) in [
        (65_536, 100, 50),
        (100_000, 100, 50),
        (0xff_ffff, 100, 50),
        (65_535, 45_000, 16_384),
        (65_535, 10_000, 1),
    ] {
        let mut peer = Raw::connect_to(scene.addr()).await;
        tasks.spawn(async move {
            let begun = Instant::now();
            let _ = peer.try_send(fragments(&claiming(length, sent), most)).await;
            assert_unserved(&mut peer).await;
            assert!(begun.elapsed() < Duration::from_secs(3), "{length} was waited for");
        });
    }
    for number in 0..scaled(200) {
        let mut peer = Raw::connect_to(scene.addr()).await;
        tasks.spawn(async move {
            let (length, most) = [(65_535, 16_384), (60_000, 1), (65_000, 100)][number % 3];
            let bytes = fragments(&claiming(length, length - 1), most);
            // At once, in pieces, or all but nothing of it.
            match number % 4 {
                0 => drop(peer.try_send(bytes).await),
                1 => drop(peer.try_send(&bytes[..bytes.len().min(40_000)]).await),
                _ => {
                    for piece in bytes.chunks(20_000) {
                        if peer.try_send(piece).await.is_err() {
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
            assert_unserved(&mut peer).await;
        });
    }
    join_all(tasks).await;
    scene.end().await;
}

// ---- what is not TLS, or not any more

#[tokio::test]
// Mostly one table.
#[allow(clippy::too_many_lines)]
async fn garbage_on_the_port() {
    let args = ["--header-timeout", "2s", "--domain", DOMAIN];
    let scene = Scene::begin_tls("garbage for TLS", &args).await;
    let mut noise = Noise(11);
    let door = scene.door();
    let kinds: Vec<Vec<u8>> = vec![
        Request::get("/healthz").bytes(),
        Request::server("garbage").bytes(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64".to_vec(),
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10\x01\x00\x80\x02\x00\x80\x03\x00\x80"
            .to_vec(),
        b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(),
        b"\0".repeat(65_536),
        b"\x16".repeat(65_536),
        b"\x17\x03\x03".repeat(30_000),
        record(DATA, &[0; 500]),
        record(CHANGE_CIPHER_SPEC, &[1]).repeat(50),
        record(HANDSHAKE, &[]).repeat(50),
        record(24, &[1, 0x40, 0]),
        [&[HANDSHAKE, 3, 1, 0x48, 1][..], &[1; 0x4801]].concat(),
        [&[HANDSHAKE, 3, 1, 0xff, 0xff][..], &[1; 0xffff]].concat(),
        fragments(&old_hello([3, 0], &[]), 1000),
        fragments(&old_hello([3, 1], &[]), 1000),
        fragments(&old_hello([3, 2], &[]), 7),
        fragments(&old_hello([3, 3], &[]), 1000),
        // Extensions that claim more than there is, or less.
        fragments(&old_hello([3, 3], &[0, 0, 0xff, 0xff]), 1000),
        fragments(&old_hello([3, 3], &[0, 43, 0, 0, 0, 43, 0, 0]), 1000),
        // A handshake's other messages.
        fragments(&[16, 0, 0, 2, 1, 0], 100),
        fragments(&[20, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 100),
        fragments(&[24, 0, 0, 1, 1], 100),
        fragments(&[0, 0, 0, 0], 100),
    ];
    let mut tasks = JoinSet::new();
    for number in 0..scaled(500) {
        let mut peer = Raw::connect_to(scene.addr()).await;
        let length = 1 + noise.below(3000);
        let mut bytes = match kinds.get(number % (kinds.len() + 3)) {
            Some(kind) => kind.clone(),
            None => noise.bytes(length),
        };
        if number % 4 == 3 {
            // Behind a good hello; or a good hello with a few bytes changed.
            let mut hello = door.hello();
            if number % 8 == 3 {
                bytes = [hello, bytes].concat();
            } else {
                for _ in 0..1 + noise.below(4) {
                    let at = noise.below(hello.len());
                    hello[at] = noise.below(256) as u8;
                }
                bytes = hello;
            }
        }
        tasks.spawn(async move {
            let is_http = bytes.starts_with(b"GET /");
            let _ = peer.try_send(bytes).await;
            if is_http {
                // The one thing that is said in the clear.
                assert_eq!(peer.response().await.status, 400);
                peer.assert_ended().await;
            } else {
                assert_unserved(&mut peer).await;
            }
        });
    }
    join_all(tasks).await;
    // Old versions are told so.
    for version in [[3, 0], [3, 1], [3, 2]] {
        let mut peer = Raw::connect_to(scene.addr()).await;
        peer.send(record(HANDSHAKE, &old_hello(version, &[]))).await;
        let answer = assert_unserved(&mut peer).await;
        let [(ALERT, alert)] = &answer[..] else { panic!("{version:?}: {answer:?}") };
        assert!(*alert == [2, PROTOCOL_VERSION] || *alert == [2, HANDSHAKE_FAILURE], "{alert:?}");
    }
    // And behind an honest handshake it ends the connection, for the binary's sake with a notice.
    let mut binary = Raw::binary(&scene, "garbage").await;
    for number in 0..scaled(60) {
        let mut phone = Raw::phone(&scene, "garbage").await;
        phone.send(masked(TEXT, "1")).await;
        let (conn_id, _) = open_envelope(&binary.recv_text().await);
        let length = 6 + noise.below(3000);
        let bytes = match number % 3 {
            0 => [vec![DATA, 3, 3, 0, 200], noise.bytes(200)].concat(),
            1 => [&[0], &noise.bytes(length)[..]].concat(),
            _ => Request::get("/healthz").bytes(),
        };
        phone.send_past_tls(bytes).await;
        assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1001));
    }
    drop(binary);
    scene.end().await;
}

#[tokio::test]
async fn handshakes_without_end() {
    // More than newcomers need; one whole handshake after the other would take much more.
    let args = ["--handshake-rate", "40/20ms"];
    let scene = Scene::begin_tls("handshakes without end", &args).await;
    let (begun, attacker) = (Instant::now(), "127.0.0.9".parse().unwrap());
    let attack = async || {
        let (mut served, mut refused) = (0, 0);
        for _ in 0..scaled(200) {
            match Raw::try_connect_from(&scene, attacker).await {
                Ok(peer) => {
                    served += 1;
                    peer.abort();
                }
                Err(error) => {
                    assert!(error.to_string().contains("AccessDenied"), "{error}");
                    refused += 1;
                }
            }
        }
        (served, refused)
    };
    let all = tokio::join!(attack(), attack(), attack(), attack());
    let served = all.0.0 + all.1.0 + all.2.0 + all.3.0;
    let refused = all.0.1 + all.1.1 + all.2.1 + all.3.1;
    let most = 40 + begun.elapsed().as_millis() / 20 + 1;
    println!("{served} handshakes of one address, of {most} at most; {refused} refused");
    assert!((40..=most).contains(&served), "{served} served, not 40 to {most}");
    let said = scene.logs().iter().filter(|line| line.event() == "handshake_rate_limited").count();
    // Twenty at once, and one a minute.
    assert!(said <= 22, "said {said} times");
    assert_eq!(said > 0, refused > 0);
    scene.end().await;
}

// ---- records

#[tokio::test]
// One list of records, each with what it does.
#[allow(clippy::too_many_lines)]
async fn records_of_every_size() {
    let scene = Scene::begin_tls("records of every size", &[]).await;
    let doors = forgeable(&scene.door());
    for (is_13, door) in [false, true].into_iter().zip(&doors) {
        let mut binary = Forge::binary(door, "sizes").await;
        let echo = masked(PING, "x");
        for size in [0, 1, 2, 3, 1000, 16_383, 16_384] {
            // Of text that is a message of its own, so that any length is one.
            let mut content = masked(PING, "y").repeat(size / 7);
            content.truncate(size);
            let cut = size % 7;
            content.truncate(size - cut);
            let mut bytes = binary.record(DATA, &content);
            bytes.extend(binary.record(DATA, &echo));
            assert!(binary.send(bytes).await);
            while !binary.data().await.ends_with(b"\x8a\x01x") {}
        }
        // Records of one byte and of none, in any order, in one packet.
        let mut bytes = Vec::new();
        for byte in echo.repeat(20) {
            bytes.extend(binary.record(DATA, &[]));
            bytes.extend(binary.record(DATA, &[byte]));
        }
        assert!(binary.send(bytes).await);
        let mut pongs = Vec::new();
        while pongs.len() < 20 * 3 {
            pongs.extend(binary.data().await);
        }
        assert_eq!(pongs, b"\x8a\x01x".repeat(20));
        if is_13 {
            let mut bytes = binary.padded(DATA, &echo, 16_384 - echo.len());
            bytes.extend(binary.padded(DATA, &[], 16_384));
            bytes.extend(binary.padded(DATA, &echo, 1));
            assert!(binary.send(bytes).await);
            let mut pongs = Vec::new();
            while pongs.len() < 2 * 3 {
                pongs.extend(binary.data().await);
            }
        }
        drop(binary);
        // What is too long, by a byte or by as much as it can be.
        for size in [16_385, 16_384 + 1024] {
            let mut forge = Forge::visitor(door).await;
            let bytes = forge.record(DATA, &vec![b'x'; size]);
            forge.send(bytes).await;
            assert_eq!(forge.end().await, Some(RECORD_OVERFLOW), "{size}");
        }
        // No more than its head is waited for.
        for length in [16_384 + 2048 + 1, 0xffff_u16] {
            let mut forge = Forge::visitor(door).await;
            forge.send([&[DATA, 3, 3], &length.to_be_bytes()[..]].concat()).await;
            let end = forge.end().await;
            assert!(matches!(end, Some(RECORD_OVERFLOW | DECODE_ERROR)), "{length}: {end:?}");
        }
        // Not a byte may be other than it was, nor any record come twice or out of its turn.
        for change in 0..5 {
            let mut forge = Forge::visitor(door).await;
            let first = forge.record(DATA, b"GET /healthz HTTP/1.1\r\n");
            let mut second = forge.record(DATA, b"Host: x\r\n\r\n");
            let bytes = match change {
                0 => [second, first].concat(),
                1 => [first.clone(), first].concat(),
                2 => second,
                3 => {
                    *second.last_mut().unwrap() ^= 1;
                    [first, second].concat()
                }
                _ => {
                    second[7] ^= 0x80;
                    [first, second].concat()
                }
            };
            forge.send(bytes).await;
            assert_eq!(forge.end().await, Some(BAD_RECORD_MAC), "{change}");
        }
        // Types that there are not, or not any more.
        for (kind, content) in [
            (CHANGE_CIPHER_SPEC, &[1][..]),
            (HANDSHAKE, &[20, 0, 0, 1, 0]),
            (HANDSHAKE, &[99, 0, 0, 0]),
            (HANDSHAKE, &[]),
            (24, &[1, 0x40, 0]),
            (255, b"x"),
        ] {
            let mut forge = Forge::visitor(door).await;
            let bytes = forge.record(kind, content);
            forge.send(bytes).await;
            let more: Vec<u8> = (0..40).flat_map(|_| forge.record(kind, content)).collect();
            forge.send(more).await;
            let end = forge.end().await;
            let expected = [UNEXPECTED_MESSAGE, DECODE_ERROR, BAD_RECORD_MAC];
            assert!(end.is_none_or(|alert| expected.contains(&alert)), "{kind}: {end:?}");
        }
    }
    scene.end().await;
}

/// Each byte comes in a record of its own.
#[tokio::test]
async fn floods_of_records_of_a_byte() {
    let scene = Scene::begin_tls("records of a byte", &[]).await;
    let mut tasks = JoinSet::new();
    for number in 0..scaled(4) {
        let id = format!("tiny {number}");
        let mut peer = Raw::connect(&scene).await.upgrade(Request::server(&id)).await;
        tasks.spawn(async move {
            let end = Instant::now() + Duration::from_secs(1);
            while Instant::now() < end {
                let pings = masked(PING, "").repeat(200);
                let bytes: Vec<u8> = pings.iter().flat_map(|byte| peer.seal([*byte])).collect();
                peer.send_past_tls(bytes).await;
                let mut pongs = 0;
                while pongs < 200 * 2 {
                    pongs += peer.some().await.len();
                }
            }
        });
    }
    join_all(tasks).await;
    scene.end().await;
}

/// Whole handshakes, and nothing after them.
#[tokio::test]
async fn floods_of_handshakes() {
    let scene = Scene::begin_tls("floods of handshakes", &[]).await;
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let door = scene.door();
        tasks.spawn(async move {
            let end = Instant::now() + Duration::from_secs(1);
            while Instant::now() < end {
                if let Ok(peer) = Raw::try_through(&door).await {
                    peer.abort();
                }
            }
        });
    }
    join_all(tasks).await;
    scene.end().await;
}

// ---- floods of what is allowed once

/// Sends the same again and again until the relay ends the connection.
async fn flood_records(forge: &mut Forge, make: impl Fn(&mut Forge) -> Vec<u8>, what: &str) {
    let end = Instant::now() + SOON;
    let mut sent = 0;
    loop {
        let bytes: Vec<u8> = (0..50).flat_map(|_| make(forge)).collect();
        sent += 50;
        if !forge.send(bytes).await {
            break;
        }
        assert!(Instant::now() < end, "the relay bears {sent} {what}");
    }
    println!("{what}: over at {sent} at the latest");
}

#[tokio::test]
async fn floods_of_empty_records_warnings_and_fragments() {
    let scene = Scene::begin_tls("floods of records", &["--close-timeout", "200ms"]).await;
    let doors = forgeable(&scene.door());
    for _ in 0..scaled(2) {
        for (is_13, door) in [false, true].into_iter().zip(&doors) {
            let mut forge = Forge::binary(door, "flood").await;
            flood_records(&mut forge, |forge| forge.record(DATA, &[]), "empty records").await;
            scene.wait_for_others(0, 0).await;
            let mut forge = Forge::visitor(door).await;
            // user_canceled, which asks for nothing.
            flood_records(&mut forge, |forge| forge.record(ALERT, &[1, 90]), "warnings").await;
            if is_13 {
                let mut forge = Forge::visitor(door).await;
                let padded = |forge: &mut Forge| forge.padded(DATA, &[], 16_000);
                flood_records(&mut forge, padded, "records of padding").await;
            }
            // A message of the handshake's that never ends, in as many records as it may be.
            let mut forge = Forge::visitor(door).await;
            let bytes = forge.record(HANDSHAKE, &[24, 0, 0xff, 0xff]);
            forge.send(bytes).await;
            let fragment = |forge: &mut Forge| forge.padded(HANDSHAKE, &[1], 10_000);
            flood_records(&mut forge, fragment, "fragments").await;
        }
    }
    scene.end().await;
}

#[tokio::test]
async fn floods_of_key_updates() {
    let scene = Scene::begin_tls("floods of key updates", &[]).await;
    let door = scene.door().speaking(&TLS13, &[]);
    for number in 0..scaled(4) {
        // In a row, they are an attack.
        let mut peer = Raw::through(&door).await.upgrade(Request::server("flood")).await;
        for _ in 0..2000 {
            peer.tls().refresh_traffic_keys().unwrap();
        }
        let updates = peer.sealed();
        let _ = peer.try_send_past_tls(updates).await;
        peer.rest().await;
        scene.wait_for_others(0, 0).await;
        // With a word in between they are only a waste; but nothing piles up for who does not read.
        let id = format!("talker {number}");
        let mut peer = Raw::narrow(&scene, 4096).await.upgrade(Request::server(&id)).await;
        for _ in 0..300 {
            for _ in 0..20 {
                peer.tls().refresh_traffic_keys().unwrap();
            }
            peer.send(masked(TEXT, "{}")).await;
        }
        peer.send(masked(PING, "done")).await;
        assert_eq!(peer.frame_after_pings().await.unwrap().payload, b"done");
    }
    scene.wait_for_others(0, 0).await;
    scene.end().await;
}

/// More messages and records than a turn has room for, all there at once, and the end behind them:
/// they wait their turn in the order in which they came.
#[tokio::test]
async fn bursts_beyond_a_share_and_then_the_end() {
    const MESSAGES: usize = 20_000;
    let scene = Scene::begin_tls("bursts beyond a share", &[]).await;
    let mut binary = Raw::binary(&scene, "burst").await;
    for (versions, number) in [&TLS13, &TLS12].into_iter().zip(0..) {
        let door = scene.door().speaking(versions, &[]);
        for records_at_once in [1, 40, 5000] {
            let mut phone = Raw::through(&door).await.upgrade(Request::client("burst")).await;
            let messages: Vec<Vec<u8>> =
                (0..MESSAGES).map(|number| masked(TEXT, number.to_string())).collect();
            // Into records that hold one message each, or many.
            let mut bytes: Vec<u8> = Vec::new();
            for some in messages.chunks(records_at_once) {
                bytes.extend(phone.seal(some.concat()));
                if records_at_once == 40 && number == 0 {
                    phone.tls().refresh_traffic_keys().unwrap();
                }
            }
            phone.tls().send_close_notify();
            bytes.extend(phone.sealed());
            let sending = tokio::spawn(async move {
                phone.send_past_tls(bytes).await;
                phone
            });
            let mut conn_id = String::new();
            for number in 0..MESSAGES {
                let (from, frame) = open_envelope(&binary.recv_text().await);
                assert_eq!(frame, number.to_string());
                conn_id = from;
            }
            assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1001));
            sending.await.unwrap().rest().await;
        }
    }
    drop(binary);
    scene.end().await;
}

/// As many key updates as are allowed with the least that may come between them. They are a waste of
/// time, but of the flooding connections' own.
#[tokio::test]
async fn key_updates_and_a_word() {
    let scene = Scene::begin_tls("key updates and a word", &[]).await;
    let door = scene.door().speaking(&TLS13, &[]);
    let mut tasks = JoinSet::new();
    for number in 0..scaled(4) {
        let door = door.clone();
        tasks.spawn(async move {
            let id = format!("wasteful {number}");
            let mut peer = Raw::through(&door).await.upgrade(Request::server(&id)).await;
            for _ in 0..40 {
                let mut bytes = Vec::new();
                for _ in 0..75 {
                    for _ in 0..32 {
                        peer.tls().refresh_traffic_keys().unwrap();
                    }
                    bytes.extend(peer.seal(masked(PING, "")));
                }
                peer.send_past_tls(bytes).await;
            }
            peer.send(masked(PING, "done")).await;
            loop {
                let pong = peer.frame_after_pings().await.unwrap();
                if pong.payload == b"done" {
                    break;
                }
            }
        });
    }
    join_all(tasks).await;
    scene.end().await;
}

#[tokio::test]
async fn renegotiations() {
    let scene = Scene::begin_tls("renegotiation", &["--close-timeout", "200ms"]).await;
    let [door, _] = forgeable(&scene.door());
    for number in 0..scaled(10) {
        let id = format!("again {number}");
        let mut forge = Forge::binary(&door, &id).await;
        let hello = door.hello()[5..].to_vec();
        // Once it is declined, and nothing is different.
        let bytes = [forge.record(HANDSHAKE, &hello), forge.record(DATA, &masked(PING, "x"))];
        assert!(forge.send(bytes.concat()).await);
        assert_eq!(forge.receive().await, Some((ALERT, vec![1, NO_RENEGOTIATION])));
        assert_eq!(forge.data().await, b"\x8a\x01x");
        // Again and again it is an attack.
        flood_records(&mut forge, |forge| forge.record(HANDSHAKE, &hello), "renegotiations").await;
    }
    scene.wait_for_others(0, 0).await;
    scene.end().await;
}

// ---- alerts

#[tokio::test]
async fn alerts_at_every_moment() {
    let scene = Scene::begin_tls("alerts at every moment", &["--header-timeout", "2s"]).await;
    let doors = forgeable(&scene.door());
    let alerts = [[1, 0], [2, 0], [1, 90], [2, 40], [2, 20], [1, 100], [3, 7], [0, 0], [2, 255]];
    let mut tasks = JoinSet::new();
    for alert in alerts {
        for moment in 0..4 {
            for door in doors.clone() {
                tasks.spawn(async move {
                    let mut peer = Raw::connect_to(door.addr).await;
                    let clear = record(ALERT, &alert);
                    let hello = door.hello();
                    let said = match moment {
                        // Before the hello, in the middle of it, behind it, and all over it.
                        0 => clear,
                        1 => [fragments(&hello[5..100], 1000), clear].concat(),
                        2 => [hello, clear].concat(),
                        _ => [clear.repeat(10), hello, clear.repeat(10)].concat(),
                    };
                    let _ = peer.try_send(said).await;
                    assert_unserved(&mut peer).await;
                });
            }
        }
    }
    join_all(tasks).await;
    for alert in alerts {
        for door in &doors {
            let mut forge = Forge::binary(door, "alert").await;
            let mut bytes = forge.record(ALERT, &alert);
            bytes.extend(forge.record(DATA, &masked(PING, "still?")));
            assert!(forge.send(bytes).await);
            let mut pong = false;
            while let Some((kind, content)) = forge.receive().await {
                if kind == DATA {
                    assert_eq!(content, b"\x8a\x06still?");
                    pong = true;
                    break;
                }
            }
            // A warning may be let pass; an end is an end.
            assert!(!pong || alert[0] == 1 && alert[1] != 0, "{alert:?}");
            drop(forge);
            scene.wait_for_others(0, 0).await;
        }
    }
    // Half an alert, two in one record, and one with more than there is to say.
    for content in [&[2][..], &[1, 90, 1, 90], &[1, 90, 0]] {
        for door in &doors {
            let mut forge = Forge::visitor(door).await;
            let bytes = forge.record(ALERT, content);
            forge.send(bytes).await;
            forge.end().await;
        }
    }
    scene.end().await;
}

#[tokio::test]
async fn close_notifies_amid_messages() {
    let scene = Scene::begin_tls("close_notify amid messages", &["--workers", "2"]).await;
    let mut binary = Raw::binary(&scene, "amid").await;
    for number in 0..scaled(40) {
        let mut phone = Raw::phone(&scene, "amid").await;
        phone.send(masked(TEXT, "1")).await;
        let (conn_id, _) = open_envelope(&binary.recv_text().await);
        let message = masked(TEXT, json_of(20_000));
        let mut bytes = phone.seal(&message[..1 + number * 100]);
        phone.tls().send_close_notify();
        bytes.extend(phone.sealed());
        // What comes after close_notify is ignored (RFC 8446, section 6.1).
        if number % 2 == 0 {
            bytes.extend(record(DATA, &[7; 5000]));
        }
        phone.send_past_tls(bytes).await;
        assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1001));
        let _ = phone.try_send_past_tls(record(DATA, &[7; 5000]).repeat(10)).await;
        phone.rest().await;
    }
    binary.send(masked(PING, "well?")).await;
    assert_eq!(binary.frame_after_pings().await.unwrap().payload, b"well?");
    drop(binary);
    scene.end().await;
}

// ---- what comes over TLS that is honest

#[tokio::test]
async fn hand_over_storm() {
    let scene = Scene::begin_tls("hand-over storm over TLS", &["--grace", "1s"]).await;
    let mut tasks = JoinSet::new();
    for task in 0..12 {
        let door = scene.door();
        tasks.spawn(async move {
            let mut noise = Noise(task);
            for number in 0..scaled(10) {
                let id = format!("{task} {number}");
                let mut binary = Raw::through(&door).await;
                let hello = [Request::server(&id).bytes(), masked(PING, "behind")].concat();
                send_torn(&mut binary, &hello, &mut noise).await;
                assert_eq!(binary.response().await.status, 101);
                assert_eq!(binary.frame().await.payload, b"behind");
                let mut phone = Raw::through(&door).await;
                let long = json_of(noise.below(20_000) + 2);
                let frames = [masked(TEXT, "1"), masked(TEXT, &long), masked(TEXT, "3")].concat();
                let hello = [Request::client(&id).bytes(), frames].concat();
                send_torn(&mut phone, &hello, &mut noise).await;
                assert_eq!(phone.response().await.status, 101);
                let mut conn_id = String::new();
                for expected in ["1", &long, "3"] {
                    let (from, frame) = open_envelope(&binary.recv_text().await);
                    assert!(frame == expected);
                    conn_id = from;
                }
                binary.send(masked(TEXT, envelope(&conn_id, &long))).await;
                assert!(phone.recv_text().await == long);
                if number % 2 == 0 {
                    phone.abort();
                }
            }
        });
    }
    join_all(tasks).await;
    scene.end().await;
}

/// Sends bytes in a few records, and these in a few writes, all split anywhere.
async fn send_torn(peer: &mut Raw, bytes: &[u8], noise: &mut Noise) {
    let mut sealed = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (part, more) = rest.split_at(1 + noise.below(rest.len()));
        sealed.extend(peer.seal(part));
        rest = more;
    }
    let mut rest = &sealed[..];
    while !rest.is_empty() {
        let (part, more) = rest.split_at(1 + noise.below(rest.len()));
        peer.send_past_tls(part).await;
        tokio::task::yield_now().await;
        rest = more;
    }
}
