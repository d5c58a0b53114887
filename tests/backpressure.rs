//! PROTOCOL.md, chapter 5: backpressure.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    missing_docs
)]

mod common;

use std::time::Duration;

use common::{
    CLOSE, Hostile, PING, PONG, Raw, Relay, Request, SOON, Signal, TEXT, close_directive,
    close_frame, close_notice, envelope, masked, open_envelope, wait_until,
};

/// What may wait for one phone, by charge.
const OUTBOX: usize = 4 << 20;
/// What each frame is charged beyond its length.
const OVERHEAD: usize = 64;
/// What the relay's kernel and a narrow peer's kernel together may hold of one direction.
const KERNEL_SHARE: usize = 384 * 1024;
/// The length of most frames here.
const PIECE: usize = 60_000;
/// No clock ends anything but the one that a test is about.
const PATIENT: [&str; 6] =
    ["--write-timeout", "60s", "--close-timeout", "60s", "--message-timeout", "60s"];

/// [`PATIENT`] and more.
fn patient<'a>(more: &[&'a str]) -> Vec<&'a str> {
    PATIENT.iter().chain(more).copied().collect()
}

/// A JSON string of exactly `length` bytes that tells its number.
fn numbered(number: usize, length: usize) -> String {
    format!("\"{number:08}{}\"", "j".repeat(length - 10))
}

fn number_of(frame: &str) -> usize {
    frame[1..9].parse().unwrap()
}

/// A phone with small kernel buffers, and its conn_id. It reads nothing unless told to.
async fn narrow_phone(relay: &Relay, binary: &mut Raw, id: &str) -> (Raw, String) {
    let mut phone = Raw::narrow(relay, 4096).await.upgrade(Request::client(id)).await;
    let conn_id = meet(binary, &mut phone).await;
    (phone, conn_id)
}

/// A binary with small kernel buffers.
async fn narrow_binary(relay: &Relay, id: &str) -> Raw {
    Raw::narrow(relay, 4096).await.upgrade(Request::server(id)).await
}

async fn meet(binary: &mut Raw, phone: &mut Raw) -> String {
    phone.send(masked(TEXT, "\"hello\"")).await;
    let (conn_id, frame) = open_envelope(&binary.recv_text().await);
    assert_eq!(frame, "\"hello\"");
    conn_id
}

async fn push(binary: &mut Raw, conn_id: &str, frame: &str) {
    binary.send(masked(TEXT, envelope(conn_id, frame))).await;
}

/// Everything that the relay has told the binary by the time it has handled all that the binary
/// sent.
async fn told(binary: &mut Raw) -> Vec<String> {
    let mut texts = Vec::new();
    // A pong overtakes the texts of its own turn, but not those of earlier turns.
    for probe in ["once", "twice"] {
        binary.send(masked(PING, probe)).await;
        loop {
            let frame = binary.frame_after_pings().await.expect("a pong, not the end");
            if frame.opcode == PONG {
                assert_eq!(frame.payload, probe.as_bytes());
                break;
            }
            texts.push(frame.text().to_owned());
        }
    }
    texts
}

/// Pushes numbered frames of [`PIECE`] bytes to a phone that does not read, until the binary is
/// told that it is gone; how many they were.
async fn push_until_gone(binary: &mut Raw, conn_id: &str) -> usize {
    for number in 0..200 {
        push(binary, conn_id, &numbered(number, PIECE)).await;
        let told = told(binary).await;
        if !told.is_empty() {
            assert_eq!(told, [close_notice(conn_id, 1001)]);
            return number + 1;
        }
    }
    panic!("200 frames of {PIECE} bytes for a phone that does not read");
}

/// Reads up to the relay's close and answers it: the texts before it, its code and its reason.
async fn read_to_close(peer: &mut Raw) -> (Vec<String>, (u16, String)) {
    let mut texts = Vec::new();
    loop {
        let frame = peer.frame_after_pings().await.expect("a close, not the bare end");
        if frame.opcode != CLOSE {
            texts.push(frame.text().to_owned());
            continue;
        }
        let (code, reason) = frame.close();
        let close = (code, reason.to_owned());
        let _ = peer.try_send(close_frame(code, "")).await;
        peer.assert_ended().await;
        return (texts, close);
    }
}

/// Asserts that these are the first frames of all, whole and in order, and no more bytes than the
/// kernel may have held.
fn assert_only_the_kernels_share(texts: &[String]) {
    for (number, text) in texts.iter().enumerate() {
        assert_eq!(number_of(text), number);
    }
    let bytes: usize = texts.iter().map(String::len).sum();
    assert!(bytes <= KERNEL_SHARE, "{bytes} bytes came before the close");
}

async fn round_trip(binary: &mut Raw, phone: &mut Raw, conn_id: &str) {
    phone.send(masked(TEXT, "\"up\"")).await;
    assert_eq!(open_envelope(&binary.recv_text().await), (conn_id.to_owned(), "\"up\"".into()));
    push(binary, conn_id, "\"down\"").await;
    assert_eq!(phone.recv_text().await, "\"down\"");
}

/// Resident memory of the relay, in bytes.
fn resident(relay: &Relay) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

// ---- to a phone

#[tokio::test]
async fn a_phones_outbox_takes_4_mib_and_the_frame_over_it_is_1011() {
    let relay = Relay::start(&PATIENT).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let (mut phone, conn_id) = narrow_phone(&relay, &mut binary, "id").await;
    let pushed = push_until_gone(&mut binary, &conn_id).await;
    let charge = PIECE + OVERHEAD;
    assert!(pushed * charge > OUTBOX, "closed at {pushed} frames, which fit");
    let most = OUTBOX + KERNEL_SHARE + charge;
    assert!((pushed - 1) * charge <= most, "it took {pushed} frames");
    // It is gone for the binary although it has not read that yet.
    relay.wait_for_counts(1, 0).await;
    push(&mut binary, &conn_id, "\"too late\"").await;
    relay.wait_for_log("binary_forwarder_unknown_conn_id").await;
    let (texts, close) = read_to_close(&mut phone).await;
    assert_only_the_kernels_share(&texts);
    assert_eq!(close, (1011, "phone backlog full".to_owned()));
    assert_eq!(told(&mut binary).await, [""; 0]);
}

#[tokio::test]
async fn each_frame_in_an_outbox_is_charged_64_bytes_beyond_its_length() {
    let relay = Relay::start(&PATIENT).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let (_phone, conn_id) = narrow_phone(&relay, &mut binary, "id").await;
    // More than the kernel takes, so that from here on every frame waits in the outbox.
    let large = 20 * (PIECE + OVERHEAD);
    for number in 0..20 {
        push(&mut binary, &conn_id, &numbered(number, PIECE)).await;
    }
    assert_eq!(told(&mut binary).await, [""; 0]);
    let batch = masked(TEXT, envelope(&conn_id, "1")).repeat(250);
    let mut tiny = 0;
    loop {
        binary.send(&*batch).await;
        let told = told(&mut binary).await;
        if !told.is_empty() {
            assert_eq!(told, [close_notice(&conn_id, 1001)]);
            break;
        }
        tiny += 250;
        assert!(tiny < 500_000, "{tiny} frames of one byte");
    }
    let fewest = (OUTBOX - large) / (1 + OVERHEAD) - 250;
    let most = (OUTBOX + KERNEL_SHARE - large) / (1 + OVERHEAD);
    assert!((fewest..=most).contains(&tiny), "{tiny} frames, not {fewest} to {most}");
}

#[tokio::test]
async fn a_directive_whose_frame_does_not_fit_closes_with_its_own_code() {
    let relay = Relay::start(&PATIENT).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let (_first, conn_id) = narrow_phone(&relay, &mut binary, "id").await;
    let fits = push_until_gone(&mut binary, &conn_id).await - 2;
    let (mut phone, conn_id) = narrow_phone(&relay, &mut binary, "id").await;
    for number in 0..fits {
        push(&mut binary, &conn_id, &numbered(number, PIECE)).await;
    }
    let last = numbered(fits, 250_000);
    let directive = format!(r#"{{"conn_id":"{conn_id}","frame":{last},"close_code":4999}}"#);
    binary.send(masked(TEXT, directive)).await;
    // It asked for that close: it is not told of it.
    assert_eq!(told(&mut binary).await, [""; 0]);
    relay.wait_for_counts(1, 0).await;
    let (texts, (code, _)) = read_to_close(&mut phone).await;
    assert_only_the_kernels_share(&texts);
    assert_eq!(code, 4999);
    assert_eq!(told(&mut binary).await, [""; 0]);
}

#[tokio::test]
async fn a_directive_that_fits_follows_all_that_waits() {
    let relay = Relay::start(&PATIENT).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let (mut phone, conn_id) = narrow_phone(&relay, &mut binary, "id").await;
    for number in 0..40 {
        push(&mut binary, &conn_id, &numbered(number, PIECE)).await;
    }
    binary.send(masked(TEXT, close_directive(&conn_id, 4401))).await;
    assert_eq!(told(&mut binary).await, [""; 0]);
    relay.wait_for_counts(1, 0).await;
    let (texts, (code, _)) = read_to_close(&mut phone).await;
    let numbers: Vec<usize> = texts.iter().map(|text| number_of(text)).collect();
    assert_eq!(numbers, (0..40).collect::<Vec<_>>());
    assert_eq!(code, 4401);
}

#[tokio::test]
async fn an_outbox_that_drains_can_be_filled_again() {
    let relay = Relay::start(&PATIENT).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let (mut phone, conn_id) = narrow_phone(&relay, &mut binary, "id").await;
    for _ in 0..3 {
        for number in 0..65 {
            push(&mut binary, &conn_id, &numbered(number, PIECE)).await;
        }
        for number in 0..65 {
            assert_eq!(phone.recv_text().await, numbered(number, PIECE));
        }
    }
    phone.assert_quiet().await;
    assert_eq!(told(&mut binary).await, [""; 0]);
}

#[tokio::test]
async fn phones_that_do_not_read_delay_neither_the_binary_nor_their_siblings() {
    let relay = Relay::start(&PATIENT).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut deaf = Vec::new();
    for _ in 0..4 {
        deaf.push(narrow_phone(&relay, &mut binary, "id").await);
    }
    let mut sibling = Raw::phone(&relay, "id").await;
    let sibling_id = meet(&mut binary, &mut sibling).await;
    let mut gone = Vec::new();
    for number in 0..90 {
        for (_, conn_id) in &deaf {
            push(&mut binary, conn_id, &numbered(number, PIECE)).await;
        }
        // Behind what none of the others reads, and at once.
        push(&mut binary, &sibling_id, &numbered(number, 100)).await;
        assert_eq!(sibling.recv_text().await, numbered(number, 100));
        gone.extend(told(&mut binary).await);
    }
    gone.sort();
    let mut expected: Vec<String> = deaf.iter().map(|(_, id)| close_notice(id, 1001)).collect();
    expected.sort();
    assert_eq!(gone, expected);
    round_trip(&mut binary, &mut sibling, &sibling_id).await;
}

// ---- to a binary

#[tokio::test]
async fn phones_of_a_binary_that_does_not_read_are_no_longer_read() {
    let relay = Relay::start(&PATIENT).await;
    let mut binary = narrow_binary(&relay, "id").await;
    let mut noisy = Raw::narrow(&relay, 65_536).await.upgrade(Request::client("id")).await;
    let mut quiet = Raw::phone(&relay, "id").await;
    let noisy_id = meet(&mut binary, &mut noisy).await;
    let quiet_id = meet(&mut binary, &mut quiet).await;
    let mut other = Raw::binary(&relay, "other").await;
    let mut other_phone = Raw::phone(&relay, "other").await;
    let other_id = meet(&mut other, &mut other_phone).await;

    let flood: Vec<u8> = (0..200).flat_map(|n| masked(TEXT, numbered(n, PIECE))).collect();
    let sent = noisy.send_until_stuck(&flood, Duration::from_secs(1)).await;
    assert!(sent >= 1 << 20, "stuck after {sent} bytes");
    assert!(sent <= 2 << 20, "the relay and the kernel took {sent} bytes");

    // Nobody else is: not the other id, nor a sibling's pings, nor the binary's own.
    for _ in 0..20 {
        round_trip(&mut other, &mut other_phone, &other_id).await;
        quiet.assert_quiet().await;
    }
    // What the binary has to say still comes through, also to the one that is not read.
    push(&mut binary, &noisy_id, "\"down\"").await;
    push(&mut binary, &quiet_id, "\"down\"").await;
    assert_eq!(noisy.recv_text().await, "\"down\"");
    assert_eq!(quiet.recv_text().await, "\"down\"");

    // It drains: all of it arrives, and the phone is read on.
    let drain = async {
        for number in 0..200 {
            let expected = (noisy_id.clone(), numbered(number, PIECE));
            assert_eq!(open_envelope(&binary.recv_text().await), expected);
        }
    };
    tokio::join!(noisy.send(&flood[sent..]), drain);
    round_trip(&mut binary, &mut noisy, &noisy_id).await;
    round_trip(&mut binary, &mut quiet, &quiet_id).await;
}

#[tokio::test]
async fn a_phone_that_sends_little_at_a_time_is_stopped_too_and_read_on() {
    const LITTLE: usize = 1000;
    let relay = Relay::start(&PATIENT).await;
    let mut binary = narrow_binary(&relay, "id").await;
    let mut phone = Raw::narrow(&relay, 65_536).await.upgrade(Request::client("id")).await;
    let conn_id = meet(&mut binary, &mut phone).await;
    // Stopped again and again, each time amid what it sends.
    for _ in 0..3 {
        let frames: Vec<_> = (0..4000).map(|n| masked(TEXT, numbered(n, LITTLE))).collect();
        let (mut whole, mut bytes, mut rest) = (0, 0, Vec::new());
        while rest.is_empty() {
            let frame = &frames[whole];
            let sent = phone.send_until_stuck(frame, Duration::from_millis(300)).await;
            (whole, bytes, rest) = (whole + 1, bytes + sent, frame[sent..].to_vec());
        }
        assert!(bytes >= 512 * 1024, "stuck after {bytes} bytes");
        assert!(bytes <= 2 << 20, "the relay and the kernel took {bytes} bytes");
        let drain = async {
            for number in 0..whole {
                let expected = (conn_id.clone(), numbered(number, LITTLE));
                assert_eq!(open_envelope(&binary.recv_text().await), expected);
            }
        };
        tokio::join!(phone.send(rest), drain);
        round_trip(&mut binary, &mut phone, &conn_id).await;
    }
}

#[tokio::test]
async fn frames_of_all_sizes_keep_their_order_however_they_are_read() {
    // Around the sizes of the receive buffers; runs of small ones, and large ones amid them.
    const SIZES: [usize; 12] =
        [20, 1900, 2030, 2048, 2100, 4096, 9000, 20_000, 64_000, 65_000, 100_000, 300];
    let relay = Relay::start(&PATIENT).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut phone = Raw::phone(&relay, "id").await;
    let conn_id = meet(&mut binary, &mut phone).await;
    let size_of = |n: usize| if n % 40 < 15 { 20 + n % 7 } else { SIZES[n * 7 % SIZES.len()] };
    for pause in [None, Some(Duration::from_micros(200))] {
        let up: Vec<_> = (0..400).map(|n| masked(TEXT, numbered(n, size_of(n)))).collect();
        let down: Vec<_> =
            (0..400).map(|n| masked(TEXT, envelope(&conn_id, &numbered(n, size_of(n))))).collect();
        for number in 0..up.len() {
            phone.send(up[number].as_slice()).await;
            binary.send(down[number].as_slice()).await;
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
            // Not one by one, and never more than fits on the way.
            if number % 8 < 7 {
                continue;
            }
            for number in number - 7..=number {
                let expected = numbered(number, size_of(number));
                assert_eq!(phone.recv_text().await, expected);
                assert_eq!(open_envelope(&binary.recv_text().await), (conn_id.clone(), expected));
            }
        }
    }
}

#[tokio::test]
async fn sixteen_phones_cannot_fill_a_binary_beyond_its_bound_and_nothing_is_lost() {
    const EACH: usize = 20;
    let relay = Relay::start(&PATIENT).await;
    let mut binary = Raw::narrow(&relay, 65_536).await.upgrade(Request::server("id")).await;
    let mut phones = Vec::new();
    for number in 0..16 {
        let mut phone = Raw::narrow(&relay, 65_536).await.upgrade(Request::client("id")).await;
        let conn_id = meet(&mut binary, &mut phone).await;
        let flood: Vec<u8> =
            (0..EACH).flat_map(|n| masked(TEXT, numbered(n, PIECE - number))).collect();
        phones.push((phone, conn_id, flood));
    }
    let before = resident(&relay);
    let stuck = phones.into_iter().map(|(mut phone, conn_id, flood)| {
        tokio::spawn(async move {
            let sent = phone.send_until_stuck(&flood, Duration::from_secs(1)).await;
            (phone, conn_id, flood, sent)
        })
    });
    let stuck: Vec<_> = stuck.collect();
    let mut senders = Vec::new();
    let mut conn_ids = Vec::new();
    let mut total = 0;
    for task in stuck {
        let (mut phone, conn_id, flood, sent) = task.await.unwrap();
        assert!(sent < flood.len(), "the relay takes all for a binary that does not read");
        total += sent;
        conn_ids.push(conn_id);
        senders.push(tokio::spawn(async move {
            phone.send(&flood[sent..]).await;
            phone
        }));
    }
    // Its outbox, a message or two of each phone, and what the kernel holds for each of them.
    assert!(total <= (1 << 20) + 16 * 768 * 1024, "{total} bytes were taken");
    let grown = resident(&relay).saturating_sub(before);
    assert!(grown <= 16 << 20, "memory grew by {grown} bytes");

    let mut next = vec![0; conn_ids.len()];
    for _ in 0..16 * EACH {
        let (conn_id, frame) = open_envelope(&binary.recv_text().await);
        let phone = conn_ids.iter().position(|id| *id == conn_id).unwrap();
        assert_eq!(frame, numbered(next[phone], PIECE - phone), "phone {phone}");
        next[phone] += 1;
    }
    assert_eq!(next, [EACH; 16]);
    let mut phones = Vec::new();
    for sender in senders {
        phones.push(sender.await.unwrap());
    }
    for (phone, conn_id) in phones.iter_mut().zip(&conn_ids) {
        round_trip(&mut binary, phone, conn_id).await;
    }
}

#[tokio::test]
async fn pings_pass_by_a_full_outbox_in_both_directions() {
    let relay = Relay::start(&patient(&["--heartbeat-interval", "1s"])).await;
    let mut binary = narrow_binary(&relay, "id").await;
    let mut phone = Raw::narrow(&relay, 65_536).await.upgrade(Request::client("id")).await;
    meet(&mut binary, &mut phone).await;
    let flood = masked(TEXT, numbered(0, PIECE)).repeat(200);
    let sent = phone.send_until_stuck(&flood, Duration::from_millis(1500)).await;
    assert!(sent < flood.len());
    // The phone is not read, but it is pinged.
    phone.recv_ping().await;
    // So is the binary, and it can ping, both ahead of what waits for it.
    binary.send(masked(PING, "from the binary")).await;
    let (mut pinged, mut ponged, mut bytes) = (false, false, 0);
    while !(pinged && ponged) {
        let frame = binary.frame().await;
        match frame.opcode {
            PING => pinged = true,
            PONG => ponged = frame.payload == b"from the binary",
            _ => bytes += frame.text().len(),
        }
        assert!(bytes <= KERNEL_SHARE, "{bytes} bytes came first");
    }
}

#[tokio::test]
async fn a_binary_without_write_progress_is_cut_and_its_grace_starts() {
    let relay = Relay::start(&["--write-timeout", "700ms", "--grace", "60s"]).await;
    let mut binary = narrow_binary(&relay, "id").await;
    let mut noisy = Raw::narrow(&relay, 65_536).await.upgrade(Request::client("id")).await;
    let mut quiet = Raw::phone(&relay, "id").await;
    meet(&mut binary, &mut noisy).await;
    meet(&mut binary, &mut quiet).await;
    let flood = masked(TEXT, numbered(0, PIECE)).repeat(200);
    noisy.send_until_stuck(&flood, Duration::from_millis(300)).await;
    relay.wait_for_log("server_released").await;
    // Its phones stay, but for the one whose frame could not reach it; new phones are let in.
    assert_eq!(noisy.recv_close().await.0, 1000);
    quiet.assert_quiet().await;
    let mut late = Raw::phone(&relay, "id").await;
    late.assert_quiet().await;
    relay.wait_for_counts(0, 2).await;
    let mut back = Raw::binary(&relay, "id").await;
    let reclaimed = (4404, "binary reclaimed server-id".to_owned());
    assert_eq!(quiet.closed().await, reclaimed);
    assert_eq!(late.closed().await, reclaimed);
    let mut phone = Raw::phone(&relay, "id").await;
    let conn_id = meet(&mut back, &mut phone).await;
    round_trip(&mut back, &mut phone, &conn_id).await;
    // The old connection was cut: what the kernel held, then the end, and no close.
    let (rest, _) = binary.rest().await;
    assert!(rest.len() <= KERNEL_SHARE, "{} bytes were left to the old binary", rest.len());
}

// ---- the memory budget

const SMALL_BUDGET: [&str; 4] = ["--workers", "1", "--memory-budget", "2MiB"];

#[tokio::test]
async fn over_the_budget_the_largest_backlog_goes_and_small_ones_stay() {
    let relay = Relay::start(&patient(&SMALL_BUDGET)).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let (mut largest, largest_id) = narrow_phone(&relay, &mut binary, "id").await;
    for number in 0..18 {
        push(&mut binary, &largest_id, &numbered(number, PIECE)).await;
    }
    let mut small = Vec::new();
    let mut gone = Vec::new();
    while gone.is_empty() {
        assert!(small.len() < 15, "2 MiB hold the backlogs of {} phones", small.len());
        let (phone, conn_id) = narrow_phone(&relay, &mut binary, "id").await;
        for number in 0..6 {
            push(&mut binary, &conn_id, &numbered(number, PIECE)).await;
        }
        small.push((phone, conn_id));
        gone = told(&mut binary).await;
    }
    assert_eq!(gone, [close_notice(&largest_id, 1001)]);
    relay.wait_for_log("memory_budget_shed").await;
    let (texts, close) = read_to_close(&mut largest).await;
    assert_only_the_kernels_share(&texts);
    assert_eq!(close, (1011, "phone backlog full".to_owned()));
    for (phone, conn_id) in &mut small {
        for number in 0..6 {
            assert_eq!(phone.recv_text().await, numbered(number, PIECE));
        }
        round_trip(&mut binary, phone, conn_id).await;
    }
}

#[tokio::test]
async fn the_budget_is_shared_by_all_workers() {
    let relay = Relay::start(&patient(&["--workers", "2", "--memory-budget", "2MiB"])).await;
    let mut bystander = Raw::binary(&relay, "bystander").await;
    let mut bystander_phone = Raw::phone(&relay, "bystander").await;
    let bystander_id = meet(&mut bystander, &mut bystander_phone).await;
    let before = resident(&relay);
    // Ids of both workers; together they push five times the budget.
    let mut peers = Vec::new();
    for id in 0..10 {
        let id = format!("id {id}");
        let mut binary = Raw::binary(&relay, &id).await;
        let (phone, conn_id) = narrow_phone(&relay, &mut binary, &id).await;
        for number in 0..20 {
            push(&mut binary, &conn_id, &numbered(number, PIECE)).await;
        }
        round_trip(&mut bystander, &mut bystander_phone, &bystander_id).await;
        peers.push((binary, phone));
    }
    relay.wait_for_log("memory_budget_shed").await;
    let grown = resident(&relay).saturating_sub(before);
    assert!(grown <= 12 << 20, "memory grew by {grown} bytes");
    round_trip(&mut bystander, &mut bystander_phone, &bystander_id).await;
}

/// A binary of each of two workers, with its id; which one it is, the log tells.
async fn one_of_each_worker(relay: &Relay) -> [(Raw, String); 2] {
    let mut by_core = [None, None];
    for number in 0..64 {
        let id = format!("id {number}");
        let binary = Raw::binary(relay, &id).await;
        let claimed = relay
            .wait_for_log_where("server_claimed", |line| line.get("server_id") == Some(&*id))
            .await;
        let core: usize = claimed.get("core").unwrap().parse().unwrap();
        by_core[core] = Some((binary, id));
        if by_core.iter().all(Option::is_some) {
            break;
        }
    }
    by_core.map(|binary| binary.expect("of 64 ids, one of each worker"))
}

#[tokio::test]
async fn nothing_inside_the_reserve_of_a_worker_is_shed_for_another() {
    let args = ["--workers", "2", "--memory-budget", "8MiB", "--max-phones", "1000"];
    let relay = Relay::start(&patient(&args)).await;
    let [(mut hoarder, hoarder_id), (mut healthy, healthy_id)] = one_of_each_worker(&relay).await;
    // Each holds more than any of the hoarders, but all of them less than their worker's reserve.
    let message = masked(TEXT, numbered(0, 40_000));
    let mut phones = Vec::new();
    for _ in 0..20 {
        let mut phone = Raw::phone(&relay, &healthy_id).await;
        phone.send(&message[..20_000]).await;
        phones.push(phone);
    }
    let mut hoarders = Vec::new();
    for _ in 0..500 {
        let mut phone = Raw::phone(&relay, &hoarder_id).await;
        phone.send(&message[..16_000]).await;
        hoarders.push(phone);
    }
    relay.wait_for_log("memory_budget_shed").await;
    for phone in &mut phones {
        phone.send(&message[20_000..]).await;
        assert_eq!(open_envelope(&healthy.recv_text().await).1, numbered(0, 40_000));
    }
    assert!(hoarder.recv_text().await.ends_with("\"close_code\":1001}"));
    assert_eq!(relay.health().await.connected_binaries, 2);
    for phone in &mut phones {
        phone.assert_quiet().await;
    }
}

#[tokio::test]
async fn who_hoards_on_one_worker_does_not_cost_anyone_on_another() {
    let relay = Relay::start(&patient(&["--workers", "2", "--memory-budget", "2MiB"])).await;
    let [(mut hoarder, hoarder_id), (mut healthy, healthy_id)] = one_of_each_worker(&relay).await;
    let mut phone = Raw::phone(&relay, &healthy_id).await;
    let conn_id = meet(&mut healthy, &mut phone).await;
    let mut deaf = Vec::new();
    for _ in 0..8 {
        deaf.push(narrow_phone(&relay, &mut hoarder, &hoarder_id).await);
    }
    for number in 0..40 {
        for (_, deaf_id) in &deaf {
            push(&mut hoarder, deaf_id, &numbered(number, 1000 * (1 + number))).await;
        }
        let frame = numbered(number, 100_000);
        phone.send(masked(TEXT, &frame)).await;
        assert_eq!(open_envelope(&healthy.recv_text().await).1, frame);
        push(&mut healthy, &conn_id, &frame).await;
        assert_eq!(phone.recv_text().await, frame);
    }
    relay.wait_for_log("memory_budget_shed").await;
}

#[tokio::test]
async fn half_read_messages_and_heads_count_towards_the_budget() {
    let half_message = |relay: &Relay, number: usize| {
        let addr = relay.addr();
        async move {
            let mut binary = Raw::connect_to(addr).await;
            binary.send(Request::server(format!("half {number}"))).await;
            assert_eq!(binary.response().await.status, 101);
            binary.send(Hostile::new(TEXT, [b'j'; 200_000]).claiming(200_001)).await;
            binary
        }
    };
    let half_head = |relay: &Relay| {
        let addr = relay.addr();
        async move {
            let mut peer = Raw::connect_to(addr).await;
            peer.send(format!("GET /healthz HTTP/1.1\r\nX-Long: {}", "h".repeat(15_000))).await;
            peer
        }
    };
    let args = patient(&[SMALL_BUDGET.as_slice(), &["--header-timeout", "60s"]].concat());
    for heads in [false, true] {
        let relay = Relay::start(&args).await;
        let mut binary = Raw::binary(&relay, "id").await;
        let mut phone = Raw::phone(&relay, "id").await;
        let conn_id = meet(&mut binary, &mut phone).await;
        let before = resident(&relay);
        let descriptors = relay.descriptors();
        let mut peers = Vec::new();
        for number in 0..if heads { 1500 } else { 120 } {
            let peer = match heads {
                true => half_head(&relay).await,
                false => half_message(&relay, number).await,
            };
            peers.push(peer);
        }
        relay.wait_for_log("memory_budget_shed").await;
        let grown = resident(&relay).saturating_sub(before);
        assert!(grown <= 14 << 20, "heads: {heads}: memory grew by {grown} bytes");
        // Whoever hoards goes, not who uses it.
        round_trip(&mut binary, &mut phone, &conn_id).await;
        // Their memory is free again when they are.
        drop(peers);
        wait_until("descriptors to return", SOON, async || relay.descriptors() == descriptors)
            .await;
        let mut peers = Vec::new();
        for number in 0..5 {
            let mut binary = Raw::binary(&relay, &format!("later {number}")).await;
            binary.send(Hostile::new(TEXT, [b'j'; 100_000]).more()).await;
            binary.assert_quiet().await;
            peers.push(binary);
        }
    }
}

#[tokio::test]
async fn lengths_that_are_claimed_and_never_sent_take_no_memory() {
    let relay = Relay::start(&patient(&["--max-phones", "1000"])).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut phone = Raw::phone(&relay, "id").await;
    let conn_id = meet(&mut binary, &mut phone).await;
    let mut peers = Vec::new();
    for _ in 0..900 {
        peers.push(Raw::phone(&relay, "id").await);
    }
    let before = resident(&relay);
    for peer in &mut peers {
        peer.send(Hostile::new(TEXT, "\"").claiming(262_144)).await;
    }
    // All are of one worker, which has read them by the time that it has handled what came later.
    for _ in 0..3 {
        round_trip(&mut binary, &mut phone, &conn_id).await;
    }
    let grown = resident(&relay).saturating_sub(before);
    assert!(grown <= 16 << 20, "{grown} bytes for 900 claims of 256 KiB");
}

// ---- what does not wait behind an outbox

/// A binary, and a phone of it that has more waiting than the kernel takes.
async fn backlog(relay: &Relay, id: &str) -> (Raw, Raw) {
    let mut binary = Raw::binary(relay, id).await;
    let (phone, conn_id) = narrow_phone(relay, &mut binary, id).await;
    for number in 0..50 {
        push(&mut binary, &conn_id, &numbered(number, PIECE)).await;
    }
    assert_eq!(told(&mut binary).await, [""; 0]);
    (binary, phone)
}

async fn assert_closed_ahead_of_its_backlog(phone: &mut Raw, expected: (u16, &str)) {
    let (texts, (code, reason)) = read_to_close(phone).await;
    assert_only_the_kernels_share(&texts);
    assert_eq!((code, &*reason), expected);
}

#[tokio::test]
async fn eviction_does_not_wait_behind_an_outbox() {
    let relay = Relay::start(&PATIENT).await;
    let (binary, mut phone) = backlog(&relay, "id").await;
    binary.abort();
    relay.wait_for_log("server_released").await;
    let mut back = Raw::binary(&relay, "id").await;
    relay.wait_for_counts(1, 0).await;
    let expected = (4404, "binary reclaimed server-id");
    assert_closed_ahead_of_its_backlog(&mut phone, expected).await;
    back.assert_quiet().await;
}

#[tokio::test]
async fn the_end_of_grace_does_not_wait_behind_an_outbox() {
    let relay = Relay::start(&patient(&["--grace", "200ms"])).await;
    let (binary, mut phone) = backlog(&relay, "id").await;
    binary.abort();
    relay.wait_for_log("grace_expired").await;
    relay.wait_for_counts(0, 0).await;
    assert_closed_ahead_of_its_backlog(&mut phone, (1000, "")).await;
}

#[tokio::test]
async fn shutdown_does_not_wait_behind_an_outbox() {
    let mut relay = Relay::start(&PATIENT).await;
    let (mut binary, mut phone) = backlog(&relay, "id").await;
    let mut full = narrow_binary(&relay, "full").await;
    let mut noisy = Raw::narrow(&relay, 65_536).await.upgrade(Request::client("full")).await;
    meet(&mut full, &mut noisy).await;
    let flood: Vec<u8> = (0..200).flat_map(|n| masked(TEXT, numbered(n, PIECE))).collect();
    noisy.send_until_stuck(&flood, Duration::from_millis(500)).await;

    relay.signal(Signal::Term);
    assert_eq!(binary.closed().await, (1001, "shutting down".to_owned()));
    assert_closed_ahead_of_its_backlog(&mut phone, (1001, "shutting down")).await;
    let (texts, close) = read_to_close(&mut full).await;
    let frames: Vec<String> = texts.iter().map(|text| open_envelope(text).1).collect();
    assert_only_the_kernels_share(&frames);
    assert_eq!(close, (1001, "shutting down".to_owned()));
    // This one is in the middle of a message and still is told.
    assert_eq!(noisy.recv_close().await, (1001, "shutting down".to_owned()));
    noisy.abort();
    assert!(relay.wait_exit(SOON).await.status.success());
}
