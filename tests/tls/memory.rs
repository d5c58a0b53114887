//! Backlogs, and what the relay holds of records (PROTOCOL.md, chapter 5).

use std::time::{Duration, Instant};

use super::common::{
    End, PING, Raw, Relay, Request, SOON, TEXT, close_notice, envelope, masked, open_envelope,
    wait_until,
};
use super::{doors, json_of, meet};

const PIECE: usize = 60_000;
const PATIENT: [&str; 6] =
    ["--write-timeout", "60s", "--close-timeout", "60s", "--message-timeout", "60s"];
/// What resident memory may grow by beyond the budget: hundreds of sessions and sockets, buffers
/// for receives, and what the allocator keeps.
const ALLOWANCE: usize = 16 << 20;

fn resident(relay: &Relay) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[tokio::test]
async fn a_phones_outbox_takes_4_mib() {
    let relay = Relay::start_tls(&PATIENT).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut phone = Raw::narrow(&relay, 4096).await.upgrade(Request::client("id")).await;
    let conn_id = meet(&mut binary, &mut phone).await;
    let push = masked(TEXT, envelope(&conn_id, &json_of(PIECE)));
    let mut pushed = 0;
    let mut sibling = Raw::phone(&relay, "id").await;
    let sibling_id = meet(&mut binary, &mut sibling).await;
    'pushing: loop {
        binary.send(&*push).await;
        pushed += 1;
        assert!(pushed < 100, "{pushed} frames of {PIECE} bytes");
        // A sibling is served meanwhile.
        binary.send(masked(TEXT, envelope(&sibling_id, "1"))).await;
        assert_eq!(sibling.recv_text().await, "1");
        sibling.send(masked(TEXT, "2")).await;
        loop {
            let text = binary.recv_text().await;
            if text == close_notice(&conn_id, 1001) {
                break 'pushing;
            }
            if open_envelope(&text).0 == sibling_id {
                break;
            }
        }
    }
    let charge = PIECE + 64;
    assert!(pushed * charge > 4 << 20, "closed at {pushed} frames, which fit");
    // What both kernels and the peer's TLS hold.
    let most = (4 << 20) + (640 << 10);
    assert!((pushed - 1) * charge <= most, "it took {pushed} frames");
    let mut texts = 0;
    let close = loop {
        let frame = phone.frame_after_pings().await.unwrap();
        if frame.opcode == TEXT {
            assert!(frame.text() == json_of(PIECE));
            texts += frame.payload.len();
        } else {
            let (code, reason) = frame.close();
            break (code, reason.to_owned());
        }
    };
    assert_eq!(close, (1011, "phone backlog full".to_owned()));
    assert!(texts <= 640 << 10, "{texts} bytes came before the close");
    phone.send(super::close_frame(1011, "")).await;
    assert_eq!(phone.assert_ended().await, End::Fin);
}

#[tokio::test]
async fn who_does_not_read_is_cut_after_the_write_timeout() {
    let args = ["--write-timeout", "700ms", "--heartbeat-timeout", "60s"];
    let relay = Relay::start_tls(&args).await;
    for door in doors(&relay) {
        let mut binary = Raw::through(&door).await.upgrade(Request::server("id")).await;
        let mut phone = Raw::narrow(&relay, 4096).await.upgrade(Request::client("id")).await;
        let conn_id = meet(&mut binary, &mut phone).await;
        for _ in 0..20 {
            binary.send(masked(TEXT, envelope(&conn_id, &json_of(PIECE)))).await;
        }
        assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1001));
        relay.wait_for_counts(1, 0).await;
        binary.close(1000).await;
    }
}

#[tokio::test]
async fn a_slow_reader_that_makes_progress_is_not_cut() {
    let relay = Relay::start_tls(&["--write-timeout", "3s"]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut phone = Raw::narrow(&relay, 8192).await.upgrade(Request::client("id")).await;
    let conn_id = meet(&mut binary, &mut phone).await;
    let frame = json_of(200_000);
    let begun = Instant::now();
    for _ in 0..12 {
        binary.send(masked(TEXT, envelope(&conn_id, &frame))).await;
    }
    let mut left = 12 * frame.len();
    while left > 8192 {
        left = left.saturating_sub(phone.sip(4096).await.expect("the relay goes on sending"));
        tokio::time::sleep(Duration::from_millis(8)).await;
    }
    assert!(begun.elapsed() > Duration::from_secs(4), "the reader was not slow");
    binary.assert_quiet().await;
}

#[tokio::test]
async fn hundreds_of_phones_that_never_read_stay_within_the_budget() {
    const BUDGET: usize = 8 << 20;
    let args = ["--memory-budget", "8MiB", "--max-phones", "1000"];
    let relay = Relay::start_tls(&[&PATIENT[..], &args].concat()).await;
    let mut bystander = Raw::binary(&relay, "bystander").await;
    let mut visitor = Raw::phone(&relay, "bystander").await;
    let visitor_id = meet(&mut bystander, &mut visitor).await;
    let (mut binaries, mut deaf) = (Vec::new(), Vec::new());
    for id in ["deaf 1", "deaf 2", "deaf 3"] {
        let mut binary = Raw::binary(&relay, id).await;
        for number in 0..100 {
            let mut phone = Raw::narrow(&relay, 4096).await.upgrade(Request::client(id)).await;
            let conn_id = meet(&mut binary, &mut phone).await;
            // Some wait with a little, some with much.
            let frame = json_of([500, 5000, 20_000, PIECE][number % 4]);
            deaf.push((phone, masked(TEXT, envelope(&conn_id, &frame))));
        }
        binaries.push(binary);
    }
    let before = resident(&relay);
    for _ in 0..3 {
        for (number, (_, push)) in deaf.iter().enumerate() {
            // Its own half-read message may be the largest backlog there is.
            let _ = binaries[number / 100].try_send(&**push).await;
        }
        visitor.send(masked(TEXT, "1")).await;
        assert_eq!(open_envelope(&bystander.recv_text().await).1, "1");
        bystander.send(masked(TEXT, envelope(&visitor_id, "2"))).await;
        assert_eq!(visitor.recv_text().await, "2");
        let grown = resident(&relay).saturating_sub(before);
        assert!(grown <= BUDGET + ALLOWANCE, "memory grew by {grown} bytes");
    }
    relay.wait_for_log("memory_budget_shed").await;
    println!("phones that never read: +{} KiB", resident(&relay).saturating_sub(before) / 1024);
    let before = relay.descriptors();
    drop((deaf, binaries));
    wait_until("descriptors to return", SOON, async || relay.descriptors() <= before - 200).await;
}

#[tokio::test]
async fn half_sent_records_stay_within_the_budget() {
    const BUDGET: usize = 4 << 20;
    let args = ["--memory-budget", "4MiB", "--header-timeout", "60s", "--max-phones", "1000"];
    let relay = Relay::start_tls(&[&PATIENT[..], &args].concat()).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut visitor = Raw::phone(&relay, "id").await;
    let visitor_id = meet(&mut binary, &mut visitor).await;
    let mut peers = Vec::new();
    for number in 0..600 {
        // Before and behind the handshake, and behind the 101.
        peers.push(match number % 3 {
            0 => Raw::connect_to(relay.addr()).await,
            1 => Raw::through(&relay.door()).await,
            _ => Raw::binary(&relay, &format!("half {number}")).await,
        });
    }
    let before = resident(&relay);
    for (number, peer) in peers.iter_mut().enumerate() {
        let mut record = match number % 3 {
            0 => super::common::record(22, &[1; 16_384]),
            _ => peer.seal([b'x'; 16_384]),
        };
        record.pop();
        let _ = peer.try_send_past_tls(record).await;
        if number % 100 == 99 {
            visitor.send(masked(TEXT, "1")).await;
            while open_envelope(&binary.recv_text().await) != (visitor_id.clone(), "1".to_owned()) {
            }
        }
    }
    relay.wait_for_log("memory_budget_shed").await;
    let grown = resident(&relay).saturating_sub(before);
    println!("half records: +{} KiB", grown / 1024);
    assert!(grown <= BUDGET + ALLOWANCE, "memory grew by {grown} bytes");
    visitor.assert_quiet().await;
    drop(peers);
    relay.wait_for_counts(1, 1).await;
    // Their memory is free again when they are.
    let mut later = Vec::new();
    for number in 0..20 {
        let mut peer = Raw::binary(&relay, &format!("later {number}")).await;
        let record = peer.seal(masked(PING, "later"));
        peer.send_past_tls(&record[..record.len() - 1]).await;
        later.push((peer, record));
    }
    for (peer, record) in &mut later {
        peer.send_past_tls(&record[record.len() - 1..]).await;
        assert_eq!(peer.frame().await.payload, b"later");
    }
}
