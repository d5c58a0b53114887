//! Hostile peers, each attack with healthy pairs and newcomers beside it and the relay's memory and
//! descriptors watched (PROTOCOL.md, chapter 5: hostile peers can lose their own connections;
//! they cannot take the relay's memory).
//!
//! The pairs' round trips and the newcomers' must all complete; how long they took is printed, and
//! judged only widely:
//! `cargo test --test hostile -- --nocapture --test-threads=1`. `HOSTILE_SCALE=8` makes each
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

use std::process::Command;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use common::scene::{
    BUDGET, Noise, Scene, assert_open, drain, flood, join_all, pour, scaled, status_bytes,
};
use common::{
    CLOSE, CONTINUATION, Hostile, PING, Process, Raw, Relay, Request, SOON, TEXT, close_notice,
    command, envelope, masked, open_envelope,
};

const PIECE: usize = 60_000;

// ---- attackers

/// A JSON string of exactly `length` bytes.
fn json_of(length: usize) -> String {
    format!("\"{}\"", "j".repeat(length - 2))
}

async fn meet(binary: &mut Raw, phone: &mut Raw) -> String {
    phone.send(masked(TEXT, "\"hello\"")).await;
    open_envelope(&binary.recv_text().await).0
}

// ---- slow peers

#[tokio::test]
async fn slow_heads() {
    let scene = Scene::begin("slow heads", &["--header-timeout", "2s"]).await;
    let mut tasks = JoinSet::new();
    for number in 0..scaled(1000) {
        let mut peer = Raw::connect(&scene).await;
        tasks.spawn(async move {
            // Some say nothing at all.
            if number % 10 > 0 {
                let head = Request::client("slow").header("X-Long", "l".repeat(1000)).bytes();
                let _ = peer.try_send(&head[..number % head.len()]).await;
                peer.dribble(vec![b'l'; 14], Duration::from_millis(250)).await;
            }
            let (answer, _) = peer.rest().await;
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 40"), "{answer}");
        });
    }
    join_all(tasks).await;
    scene.end().await;
}

#[tokio::test]
async fn slow_messages() {
    let phones = scaled(1000);
    let args = ["--message-timeout", "2s", "--max-phones", "20000"];
    let scene = Scene::begin("slow messages", &args).await;
    let mut binary = Raw::binary(&scene, "slow").await;
    let mut tasks = JoinSet::new();
    for number in 0..phones {
        let mut phone = Raw::phone(&scene, "slow").await;
        tasks.spawn(async move {
            let message = masked(TEXT, json_of(200_000));
            let _ = phone.try_send(&message[..1 + number]).await;
            phone.dribble(&message[1 + number..number + 30], Duration::from_millis(200)).await;
            phone.assert_ended().await;
        });
    }
    for _ in 0..phones {
        let notice = binary.recv_text().await;
        assert!(notice.ends_with(r#""close_code":1001}"#), "{notice}");
    }
    join_all(tasks).await;
    drop(binary);
    scene.end().await;
}

#[tokio::test]
async fn one_byte_reads() {
    let args = ["--max-phones", "20000", "--write-timeout", "2s", "--close-timeout", "500ms"];
    let scene = Scene::begin("one-byte reads", &args).await;
    let mut binary = Raw::binary(&scene, "sippers").await;
    let mut phones = Vec::new();
    for _ in 0..scaled(64) {
        let mut phone = Raw::narrow(&scene, 4096).await.upgrade(Request::client("sippers")).await;
        let conn_id = meet(&mut binary, &mut phone).await;
        phones.push((phone, conn_id));
    }
    let mut tasks = JoinSet::new();
    for (mut phone, conn_id) in phones {
        let push = masked(TEXT, envelope(&conn_id, &json_of(PIECE)));
        for _ in 0..16 {
            binary.send(&*push).await;
        }
        tasks.spawn(async move {
            let end = Instant::now() + Duration::from_secs(3);
            while Instant::now() < end && phone.sip(1).await.is_some() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
    }
    scene.wait_for_log("memory_budget_shed").await;
    join_all(tasks).await;
    assert_open(&mut binary).await;
    drop(binary);
    scene.end().await;
}

// ---- floods

#[tokio::test]
async fn floods_of_headers() {
    let scene = Scene::begin("floods of headers", &["--header-timeout", "2s"]).await;
    let lines = "X-Header: of no use to anyone\r\n".repeat(4000);
    let line = format!("X-Header: {}", "y".repeat(120_000));
    let mut tasks = JoinSet::new();
    for number in 0..scaled(300) {
        let mut peer = Raw::connect(&scene).await;
        let headers = if number % 2 == 0 { lines.clone() } else { line.clone() };
        tasks.spawn(async move {
            let _ = peer.try_send(format!("GET /v1/client HTTP/1.1\r\n{headers}")).await;
            let (answer, _) = peer.rest().await;
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        });
    }
    // And these ask and ask, and never read an answer.
    let asks = Request::get("/healthz").bytes().repeat(1000);
    for _ in 0..scaled(20) {
        let mut peer = Raw::narrow(&scene, 4096).await;
        let asks = asks.clone();
        tasks.spawn(async move { flood(&mut peer, &asks).await });
    }
    join_all(tasks).await;
    scene.end().await;
}

#[tokio::test]
async fn floods_of_tiny_fragments() {
    let args = ["--message-timeout", "4s", "--max-phones", "20000"];
    let scene = Scene::begin("floods of tiny fragments", &args).await;
    let mut binary = Raw::binary(&scene, "tiny").await;
    let mut tasks = JoinSet::new();
    let nothing = Hostile::new(CONTINUATION, "").more().bytes().repeat(10_000);
    let small = Hostile::new(CONTINUATION, [b'j'; 16]).more().bytes().repeat(262_144 / 16);
    let byte = Hostile::new(CONTINUATION, "j").more().bytes().repeat(10_000);
    for _ in 0..scaled(6) {
        // One sends empty fragments until its time is over, one is too long, one is a message.
        let mut endless = Raw::phone(&scene, "tiny").await;
        let nothing = nothing.clone();
        tasks.spawn(async move {
            endless.send(Hostile::new(TEXT, "\"").more()).await;
            flood(&mut endless, &nothing).await;
        });
        let mut too_long = Raw::phone(&scene, "tiny").await;
        let bytes = small.clone();
        tasks.spawn(async move {
            too_long.send(Hostile::new(TEXT, "\"").more()).await;
            too_long.send_until_stuck(&bytes, SOON).await;
            // Unless its time is over before the relay has come to its end.
            if let Some(frame) = too_long.frame_after_pings().await {
                assert_eq!(frame.close().0, 1009);
            }
        });
        let mut honest = Raw::phone(&scene, "tiny").await;
        let bytes = byte.clone();
        tasks.spawn(async move {
            honest.send(Hostile::new(TEXT, "\"").more()).await;
            honest.send(bytes).await;
            honest.send(masked(CONTINUATION, "\"")).await;
            honest.assert_quiet().await;
        });
    }
    let (mut messages, mut notices) = (0, 0);
    while messages < scaled(6) || notices < scaled(18) {
        let text = binary.recv_text().await;
        if text.contains("close_code") {
            notices += 1;
        } else {
            assert_eq!(open_envelope(&text).1, json_of(10_002));
            messages += 1;
        }
    }
    join_all(tasks).await;
    drop(binary);
    scene.end().await;
}

#[tokio::test]
async fn floods_of_pings() {
    let args = ["--write-timeout", "2s", "--max-phones", "20000"];
    let scene = Scene::begin("floods of pings", &args).await;
    let pings = masked(PING, [7; 125]).repeat(500);
    let mut tasks = JoinSet::new();
    for number in 0..scaled(2) {
        let id = format!("ping {number}");
        let binary = Raw::narrow(&scene, 4096).await.upgrade(Request::server(&id)).await;
        let mut peers = vec![binary];
        for _ in 0..4 {
            peers.push(Raw::narrow(&scene, 4096).await.upgrade(Request::client(&id)).await);
        }
        // They never read, and are cut for it, if not sooner than they tire.
        for mut peer in peers {
            let pings = pings.clone();
            tasks.spawn(async move {
                for _ in 0..200 {
                    if peer.try_send(&*pings).await.is_err() {
                        return;
                    }
                }
            });
        }
        // This one reads its pongs, and may stay.
        let pings = pings.clone();
        let mut reader = Raw::binary(&scene, &format!("reader {number}")).await;
        tasks.spawn(async move {
            for _ in 0..40 {
                reader.send(&*pings).await;
                assert_open(&mut reader).await;
            }
        });
    }
    join_all(tasks).await;
    scene.end().await;
}

#[tokio::test]
async fn floods_of_newcomers_that_send_ahead() {
    let scene = Scene::begin("newcomers that send ahead", &["--probe-timeout", "3s"]).await;
    let holder = Raw::binary(&scene, "ahead").await;
    let empty = masked(TEXT, "").repeat(150_000);
    let byte = masked(TEXT, "1").repeat(64_000);
    let mut tasks = JoinSet::new();
    for number in 0..scaled(15) {
        let mut newcomer = Raw::binary(&scene, "ahead").await;
        let bytes = if number % 2 == 0 { empty.clone() } else { byte.clone() };
        tasks.spawn(async move {
            // Its share is read, and the rest waits in the kernels until the probe is over.
            newcomer.send_until_stuck(&bytes, Duration::from_millis(500)).await;
            newcomer
        });
    }
    let newcomers = join_all(tasks).await;
    scene.wait_for_log("server_id_takeover").await;
    drop((holder, newcomers));
    scene.end().await;
}

/// One hostile peer on each worker floods it for this long.
const FLOOD: Duration = Duration::from_secs(1);

/// So many bytes, about, of the same again and again.
fn block(bytes: &[u8]) -> Vec<u8> {
    bytes.repeat(100_000 / bytes.len())
}

/// Peers of four server-ids, of which each worker has some, flood it with what `bytes` makes for each
/// connection id, from the binary or its phone.
async fn floods_of(attack: &'static str, from_binary: bool, bytes: fn(&str) -> Vec<u8>) {
    let scene = Scene::begin(attack, &[]).await;
    let mut tasks = JoinSet::new();
    for number in 0..scaled(4) {
        let id = format!("flood {number}");
        let mut binary = Raw::binary(&scene, &id).await;
        let mut phone = Raw::phone(&scene, &id).await;
        let bytes = block(&bytes(&meet(&mut binary, &mut phone).await));
        tasks.spawn(async move {
            let (mut from, to) = if from_binary { (binary, phone) } else { (phone, binary) };
            tokio::join!(pour(&mut from, &bytes, FLOOD), drain(to, FLOOD));
        });
    }
    join_all(tasks).await;
    scene.end().await;
}

#[tokio::test]
async fn floods_of_tiny_envelopes() {
    floods_of("tiny envelopes", true, |conn_id| masked(TEXT, envelope(conn_id, "1"))).await;
}

#[tokio::test]
async fn floods_of_unknown_conn_ids() {
    floods_of("unknown conn_ids", true, |_| masked(TEXT, envelope("nobody", "1"))).await;
}

#[tokio::test]
async fn floods_of_tiny_messages() {
    floods_of("tiny messages", false, |_| masked(TEXT, "1")).await;
}

#[tokio::test]
async fn floods_of_requests() {
    let scene = Scene::begin("pipelined requests", &[]).await;
    let asks = block(&Request::get("/healthz").bytes());
    let mut tasks = JoinSet::new();
    for _ in 0..scaled(4) {
        let mut peer = Raw::connect(&scene).await;
        let asks = asks.clone();
        tasks.spawn(async move { pour(&mut peer, &asks, FLOOD).await });
    }
    join_all(tasks).await;
    scene.end().await;
}

// ---- memory

#[tokio::test]
async fn lengths_claimed_and_never_sent() {
    let scene = Scene::begin("lengths claimed", &["--max-phones", "20000"]).await;
    let mut binary = Raw::binary(&scene, "claims").await;
    let mut phone = Raw::phone(&scene, "claims").await;
    let mut peers = Vec::new();
    for number in 0..scaled(1000) {
        let mut peer = match number % 2 {
            0 => Raw::phone(&scene, "claims").await,
            _ => Raw::binary(&scene, &format!("claim {number}")).await,
        };
        peer.send(Hostile::new(TEXT, "\"").claiming(262_144)).await;
        peers.push(peer);
    }
    meet(&mut binary, &mut phone).await;
    drop((peers, phone, binary));
    scene.end().await;
}

#[tokio::test]
async fn peers_that_never_read() {
    let scene = Scene::begin("peers that never read", &["--close-timeout", "1s"]).await;
    let mut tasks = JoinSet::new();
    for number in 0..scaled(16) {
        let id = format!("deaf {number}");
        let mut binary = Raw::binary(&scene, &id).await;
        let mut phones = Vec::new();
        for _ in 0..16 {
            let mut phone = Raw::narrow(&scene, 4096).await.upgrade(Request::client(&id)).await;
            let conn_id = meet(&mut binary, &mut phone).await;
            phones.push((phone, masked(TEXT, envelope(&conn_id, &json_of(PIECE)))));
        }
        tasks.spawn(async move {
            for _ in 0..7 {
                for (_, push) in &phones {
                    // Its own half-read message may be the largest backlog there is.
                    let _ = binary.try_send(&**push).await;
                }
            }
            (binary, phones)
        });
    }
    let peers = join_all(tasks).await;
    scene.wait_for_log("memory_budget_shed").await;
    drop(peers);
    scene.end().await;
}

#[tokio::test]
async fn phones_that_never_read_short_messages() {
    let args = ["--max-phones", "20000", "--write-timeout", "60s"];
    let scene = Scene::begin("phones, short messages", &args).await;
    let mut binary = Raw::binary(&scene, "short").await;
    let mut phones = Vec::new();
    for _ in 0..scaled(400) {
        let mut phone = Raw::narrow(&scene, 4096).await.upgrade(Request::client("short")).await;
        let conn_id = meet(&mut binary, &mut phone).await;
        phones.push((phone, masked(TEXT, envelope(&conn_id, &json_of(1100)))));
    }
    let before = status_bytes(&scene, "VmRSS:");
    let mut rounds = 0;
    while !scene.logs().iter().any(|line| line.event() == "memory_budget_shed") {
        assert!(rounds < 400, "all of it is with the kernel");
        // Each message is a turn of its own for its phone.
        for (_, push) in &phones {
            binary.send(&**push).await;
        }
        rounds += 1;
    }
    // The budget is full: what it is charged is what is resident, give or take the allocator's
    // ways and the buffers that two workers keep.
    let grown = status_bytes(&scene, "VmRSS:").saturating_sub(before);
    println!("{} KiB are resident for a budget of {BUDGET}", grown / 1024);
    assert!(grown <= (24 + 12) << 20, "{grown} bytes");
    drop((phones, binary));
    scene.end().await;
}

#[tokio::test]
async fn binaries_that_never_read_under_sixteen_phones() {
    let scene = Scene::begin("binaries that never read", &["--write-timeout", "2s"]).await;
    let push = masked(TEXT, json_of(PIECE));
    let mut tasks = JoinSet::new();
    let mut binaries = Vec::new();
    for number in 0..scaled(6) {
        let id = format!("deaf {number}");
        binaries.push(Raw::narrow(&scene, 4096).await.upgrade(Request::server(&id)).await);
        for _ in 0..16 {
            let mut phone = Raw::narrow(&scene, 65_536).await.upgrade(Request::client(&id)).await;
            let push = push.clone();
            // Its binary is cut, its next frame cannot reach anyone, and so it is closed.
            tasks.spawn(async move { flood(&mut phone, &push).await });
        }
    }
    join_all(tasks).await;
    drop(binaries);
    scene.end().await;
}

// ---- storms

#[tokio::test]
async fn connect_and_reset_storm() {
    let scene = Scene::begin("connect and reset", &[]).await;
    let mut tasks = JoinSet::new();
    for task in 0..8 {
        let addr = scene.addr();
        tasks.spawn(async move {
            for number in 0..scaled(250) {
                let mut peer = Raw::connect_to(addr).await;
                let id = format!("storm {task} {number}");
                let head = Request::server(&id).bytes();
                match number % 5 {
                    0 => {}
                    1 => peer.send(&head[..head.len() / 2]).await,
                    2 => peer.send(head).await,
                    3 => {
                        peer = peer.upgrade(Request::server(&id)).await;
                        peer.send(Hostile::new(TEXT, "{").claiming(1000)).await;
                    }
                    _ => {
                        peer = peer.upgrade(Request::client(&id)).await;
                        assert_eq!(peer.recv_close().await.0, 4404);
                    }
                }
                if number % 7 > 0 {
                    peer.abort();
                }
            }
        });
    }
    join_all(tasks).await;
    scene.end().await;
}

#[tokio::test]
async fn descriptor_exhaustion() {
    const LIMIT: usize = 128;
    // Nothing but the descriptors themselves may be in the hoarders' way.
    let inner = command(&[
        "--insecure-listen",
        "127.0.0.1:0",
        "--workers",
        "2",
        "--log-format",
        "json",
        "--rate-limit",
        "off",
        "--max-connections",
        "1000000",
        "--max-connections-per-address",
        "off",
        "--metrics-listen",
        "",
    ]);
    let mut limited = Command::new("sh");
    limited.arg("-c").arg(format!("ulimit -n {LIMIT} && exec \"$0\" \"$@\""));
    limited.arg(inner.get_program()).args(inner.get_args()).args(["--memory-budget", BUDGET]);
    let relay = Relay::listening(Process::spawn(limited)).await;
    let scene = Scene::begin_on("descriptor exhaustion", relay).await.closed_to_newcomers();
    let begun = Instant::now();
    let mut peers = Vec::new();
    for number in 0..scaled(500) {
        let mut peer = Raw::connect(&scene).await;
        // Whoever is in holds its place.
        let _ = peer.try_send(Request::server(format!("hoarder {number}"))).await;
        peers.push(peer);
    }
    scene.wait_for_log("accept_paused").await;
    // It was said once for each pause, not in a loop.
    let pauses = scene.logs().iter().filter(|line| line.event() == "accept_paused").count();
    let most = 2 * (1 + begun.elapsed().as_millis() / 100);
    assert!(pauses as u128 <= most, "{pauses} lines");
    drop(peers);
    let mut binary = Raw::binary(&scene, "after").await;
    let mut phone = Raw::phone(&scene, "after").await;
    meet(&mut binary, &mut phone).await;
    drop((binary, phone));
    scene.end().await;
}

/// Dials until the binary of `id` has answered.
async fn dial_until_welcome(addr: std::net::SocketAddr, id: &str) -> Raw {
    let end = Instant::now() + SOON;
    loop {
        let mut phone = Raw::connect_to(addr).await.upgrade(Request::client(id)).await;
        let _ = phone.try_send(masked(TEXT, "\"hello\"")).await;
        match phone.frame_after_pings().await {
            Some(frame) if frame.opcode == TEXT => return phone,
            // There is no binary yet, or it has just come back.
            Some(frame) => assert!([1000, 4404].contains(&frame.close().0), "{frame:?}"),
            None => {}
        }
        assert!(Instant::now() < end, "no welcome within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Welcomes so many phones, and whoever else comes meanwhile.
async fn welcome(mut binary: Raw, phones: usize) -> Raw {
    let mut welcomed = std::collections::BTreeSet::new();
    while welcomed.len() < phones {
        let text = binary.recv_text().await;
        if text.contains("close_code") {
            let conn_id = text.split('"').nth(3).unwrap();
            welcomed.remove(conn_id);
            continue;
        }
        let (conn_id, _) = open_envelope(&text);
        binary.send(masked(TEXT, envelope(&conn_id, "\"welcome\""))).await;
        welcomed.insert(conn_id);
    }
    binary
}

#[tokio::test]
async fn everyone_is_killed_and_stampedes_back() {
    const PHONES: usize = 12;
    let ids = scaled(40);
    let scene = Scene::begin("kill and stampede", &[]).await;
    let addr = scene.addr();
    for _ in 0..3 {
        let (mut binaries, mut phones) = (JoinSet::new(), JoinSet::new());
        for id in 0..ids {
            let id = format!("herd {id}");
            for _ in 0..PHONES {
                let id = id.clone();
                phones.spawn(async move { dial_until_welcome(addr, &id).await });
            }
            binaries.spawn(async move {
                let binary = Raw::connect_to(addr).await.upgrade(Request::server(&id)).await;
                welcome(binary, PHONES).await
            });
        }
        let binaries = join_all(binaries).await;
        let phones = join_all(phones).await;
        scene.wait_for_others(ids as u64, (ids * PHONES) as u64).await;
        // What the kernel does for a process that is killed.
        phones.into_iter().chain(binaries).for_each(Raw::abort);
    }
    scene.end().await;
}

#[tokio::test]
async fn hand_over_storm() {
    let scene = Scene::begin("hand-over storm", &["--workers", "2", "--grace", "1s"]).await;
    let addr = scene.addr();
    let mut tasks = JoinSet::new();
    for task in 0..20 {
        tasks.spawn(async move {
            let mut noise = Noise(task);
            for number in 0..scaled(40) {
                let id = format!("{task} {number}");
                let mut binary = Raw::connect_to(addr).await;
                let hello = [Request::server(&id).bytes(), masked(PING, "behind")].concat();
                send_in_two(&mut binary, &hello, &mut noise).await;
                assert_eq!(binary.response().await.status, 101);
                assert_eq!(binary.frame().await.payload, b"behind");
                let mut phone = Raw::connect_to(addr).await;
                let long = json_of(noise.below(5000) + 2);
                let frames = [masked(TEXT, "1"), masked(TEXT, &long), masked(TEXT, "3")].concat();
                let hello = [Request::client(&id).bytes(), frames].concat();
                send_in_two(&mut phone, &hello, &mut noise).await;
                assert_eq!(phone.response().await.status, 101);
                for expected in ["1", &long, "3"] {
                    assert_eq!(open_envelope(&binary.recv_text().await).1, expected);
                }
            }
        });
    }
    join_all(tasks).await;
    scene.end().await;
}

/// Sends bytes in two writes, split anywhere.
async fn send_in_two(peer: &mut Raw, bytes: &[u8], noise: &mut Noise) {
    let (first, second) = bytes.split_at(noise.below(bytes.len()));
    peer.send(first).await;
    tokio::task::yield_now().await;
    peer.send(second).await;
}

// ---- garbage

#[tokio::test]
async fn garbage_on_the_port() {
    let args = ["--header-timeout", "2s", "--message-timeout", "2s"];
    let scene = Scene::begin("garbage", &args).await;
    let mut noise = Noise(7);
    let client_hello = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        noise.bytes(32),
        b"\x20".to_vec(),
        noise.bytes(470),
    ]
    .concat();
    let kinds: Vec<Vec<u8>> = vec![
        client_hello,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64".to_vec(),
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01\0\x50\x01\xbb".to_vec(),
        b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(),
        b"\0".repeat(65_536),
        b"\r\n".repeat(30_000),
        b"G".repeat(200_000),
        b"\xff\xfe".repeat(1000),
        masked(TEXT, "\"no upgrade\""),
    ];
    let mut tasks = JoinSet::new();
    for number in 0..scaled(500) {
        let mut peer = Raw::connect(&scene).await;
        let length = 1 + noise.below(3000);
        let bytes = match kinds.get(number % (kinds.len() + 3)) {
            Some(kind) => kind.clone(),
            None => noise.bytes(length),
        };
        tasks.spawn(async move {
            let _ = peer.try_send(bytes).await;
            let (answer, _) = peer.rest().await;
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        });
    }
    // Garbage behind a good request ends with a close or with TCP, and never gets to anyone.
    let mut binary = Raw::binary(&scene, "garbage").await;
    for _ in 0..scaled(100) {
        let mut phone = Raw::phone(&scene, "garbage").await;
        let conn_id = meet(&mut binary, &mut phone).await;
        // The first byte has a reserved bit set, the rest may be anything.
        phone.send([vec![0xf1], noise.bytes(2000)].concat()).await;
        let frame = phone.frame_after_pings().await.expect("a close");
        assert_eq!((frame.opcode, frame.close().0), (CLOSE, 1002));
        phone.abort();
        assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1001));
    }
    drop(binary);
    join_all(tasks).await;
    scene.end().await;
}
