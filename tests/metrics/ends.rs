//! How connections end, each way counted by its code and reason.

use super::common::{
    CLOSE, Hostile, PONG, Raw, Relay, Request, TEXT, close_directive, close_frame, envelope, masked,
};
use super::{meet, samples, start, wait_for};
use std::net::SocketAddr;

/// A relay whose clocks end nothing but what a test is about.
async fn patient(args: &[&str]) -> (Relay, SocketAddr) {
    start(&[&["--write-timeout", "60s", "--close-timeout", "60s"], args].concat()).await
}

/// A phone with small kernel buffers that reads nothing, and its conn_id.
async fn stuck_phone(relay: &Relay, binary: &mut Raw) -> (Raw, String) {
    let mut phone = Raw::narrow(relay, 4096).await.upgrade(Request::client("id")).await;
    phone.send(masked(TEXT, "1")).await;
    let (conn_id, _) = super::open_envelope(&binary.recv_text().await);
    (phone, conn_id)
}

/// Pushes `frames` frames of 60,000 bytes.
async fn flood(binary: &mut Raw, conn_id: &str, frames: usize) {
    let frame = masked(TEXT, envelope(conn_id, &format!("\"{}\"", "j".repeat(59_998))));
    for _ in 0..frames {
        binary.send(frame.clone()).await;
    }
}

#[tokio::test]
async fn a_code_that_the_binary_asks_for_is_counted_if_it_is_known() {
    let (relay, addr) = start(&[]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    for code in [1000, 1001, 1008, 1011, 4401, 4412, 4421, 4426, 3999, 1003, 5] {
        let (mut phone, conn_id) = meet(&relay, &mut binary, "id").await;
        binary.send(masked(TEXT, close_directive(&conn_id, code))).await;
        assert_eq!(phone.closed().await.0, if code == 5 { 1011 } else { code });
    }
    let counts = [
        ("1000", 1.0),
        ("1001", 1.0),
        ("1008", 1.0),
        ("1011", 2.0),
        ("4401", 1.0),
        ("4412", 1.0),
        ("4421", 1.0),
        ("4426", 1.0),
        ("other", 2.0),
    ];
    let named = counts.map(|(code, count)| {
        (format!("closes_total{{code=\"{code}\",reason=\"asked_by_binary\"}}"), count)
    });
    wait_for(addr, &named.each_ref().map(|(name, count)| (name.as_str(), *count))).await;
}

#[tokio::test]
async fn a_code_of_a_peer_is_counted_if_it_is_known() {
    let (relay, addr) = start(&[]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    for payload in [close_frame(1000, ""), close_frame(1001, "bye"), close_frame(4999, "")] {
        let (mut phone, _) = meet(&relay, &mut binary, "id").await;
        phone.send(payload).await;
        phone.recv_close().await;
    }
    let (mut phone, _) = meet(&relay, &mut binary, "id").await;
    phone.send(masked(CLOSE, "")).await;
    phone.recv_close().await;
    wait_for(
        addr,
        &[
            ("closes_total{code=\"1000\",reason=\"asked_by_peer\"}", 1.0),
            ("closes_total{code=\"1001\",reason=\"asked_by_peer\"}", 1.0),
            ("closes_total{code=\"1005\",reason=\"asked_by_peer\"}", 1.0),
            ("closes_total{code=\"other\",reason=\"asked_by_peer\"}", 1.0),
        ],
    )
    .await;
}

#[tokio::test]
async fn messages_that_break_the_rules_are_counted_by_the_rule() {
    let (relay, addr) = start(&[]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    for (frame, code) in [
        (masked(TEXT, [b'"', 0xff, b'"']), 1007),
        (Hostile::new(TEXT, "x").claiming(262_145).bytes(), 1009),
    ] {
        let (mut phone, _) = meet(&relay, &mut binary, "id").await;
        phone.send(frame).await;
        assert_eq!(phone.closed().await.0, code);
    }
    wait_for(
        addr,
        &[
            ("closes_total{code=\"1007\",reason=\"invalid_utf8\"}", 1.0),
            ("closes_total{code=\"1009\",reason=\"too_big\"}", 1.0),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_peer_that_answers_no_ping_is_counted() {
    let args = ["--heartbeat-interval", "1s", "--heartbeat-timeout", "1s"];
    let (relay, addr) = start(&args).await;
    let mut binary = Raw::binary(&relay, "id").await;
    // The first ping is answered, the second is not.
    let ping = binary.recv_ping().await;
    binary.send(masked(PONG, ping)).await;
    binary.recv_ping().await;
    assert_eq!(binary.frame().await.close(), (1011, "heartbeat timeout"));
    wait_for(addr, &[("closes_total{code=\"1011\",reason=\"heartbeat_timeout\"}", 1.0)]).await;
}

#[tokio::test]
async fn a_backlog_is_charged_and_counted_when_it_is_closed() {
    let (relay, addr) = patient(&[]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let (_phone, conn_id) = stuck_phone(&relay, &mut binary).await;
    flood(&mut binary, &conn_id, 30).await;
    let charged = async || {
        let samples = samples(addr).await;
        ["0", "1"].map(|core| samples[&format!("memory_charged_bytes{{core=\"{core}\"}}")])
    };
    super::wait_until("a charge", super::SOON, async || charged().await.iter().sum::<f64>() > 1e6)
        .await;
    assert!(charged().await.contains(&0.0), "one core has nothing to do with it");
    // Waiting for a peer is not the relay's own delay: that of each message is told already.
    let forwarded = "frames_forwarded_total{direction=\"binary_to_phone\"}";
    wait_for(addr, &[(forwarded, 30.0), ("delay_seconds_count", 31.0)]).await;
    flood(&mut binary, &conn_id, 60).await;
    wait_for(addr, &[("closes_total{code=\"1011\",reason=\"phone_backlog_full\"}", 1.0)]).await;
    drop(binary);
    // Only the frame that is half sent and the close are left.
    super::wait_until("its release", super::SOON, async || {
        charged().await.iter().sum::<f64>() < 1e6
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_counted_when_it_is_cut() {
    let (relay, addr) = start(&["--write-timeout", "300ms"]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let (_phone, conn_id) = stuck_phone(&relay, &mut binary).await;
    flood(&mut binary, &conn_id, 40).await;
    wait_for(addr, &[("connections_lost_total{reason=\"write_timeout\"}", 1.0)]).await;
}

#[tokio::test]
async fn what_a_full_memory_budget_ends_is_counted() {
    let (relay, addr) = patient(&["--workers", "1", "--memory-budget", "2MiB"]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let (_phone, conn_id) = stuck_phone(&relay, &mut binary).await;
    flood(&mut binary, &conn_id, 60).await;
    wait_for(addr, &[("memory_sheds_total", 1.0), ("memory_budget_bytes", f64::from(2 << 20))])
        .await;
}
