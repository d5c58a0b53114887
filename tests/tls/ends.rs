//! The alert with which every orderly end begins (RFC 8446, section 6.1): whoever misses it cannot
//! tell an end from an attack.

use std::time::Duration;

use super::common::{
    CLOSE, DOMAIN, End, PING, PONG, Raw, Relay, Request, SOON, Signal, TEXT, close_directive,
    close_frame, close_notice, envelope, masked,
};
use super::{doors, leave, meet};

#[tokio::test]
async fn an_answer_is_followed_by_a_close_notify() {
    let relay = Relay::start_tls(&["--domain", DOMAIN]).await;
    let last = Request::get("/healthz").set("Connection", "close");
    for door in doors(&relay) {
        for (request, status) in [
            (last.clone(), 200),
            (last.clone().method("HEAD"), 200),
            (Request::get("/nowhere"), 404),
            (Request::server("id").without("User-Agent"), 400),
            (Request::server("id").set("Host", "other.test"), 421),
            (Request::get("/v1/client").header("X-Pyrycode-Server", "id"), 400),
            (Request::get("/healthz").header("X-Long", [b'l'; 20_000]), 431),
        ] {
            let mut raw = Raw::through(&door).await;
            raw.send(request.clone()).await;
            let head = raw.response_head().await.unwrap();
            assert_eq!(head.status, status);
            let (body, end) = raw.rest().await;
            let length = if request.method == "HEAD" { 0 } else { head.content_length() };
            assert_eq!((body.len(), end), (length, End::Fin), "{status}");
        }
    }
}

#[tokio::test]
async fn a_peers_close_is_echoed_and_followed_by_a_close_notify() {
    let relay = Relay::start_tls(&[]).await;
    for door in doors(&relay) {
        let mut binary = Raw::through(&door).await.upgrade(Request::server("id")).await;
        let mut phone = Raw::through(&door).await.upgrade(Request::client("id")).await;
        let conn_id = meet(&mut binary, &mut phone).await;
        phone.send(close_frame(4321, "enough")).await;
        assert_eq!(phone.recv_close().await.0, 4321);
        assert_eq!(phone.assert_ended().await, End::Fin);
        assert_eq!(binary.recv_text().await, close_notice(&conn_id, 4321));
        // One that ends its own TLS with its close frame.
        let close = binary.seal(close_frame(1000, ""));
        binary.tls().send_close_notify();
        let close_notify = binary.sealed();
        binary.send_past_tls([close, close_notify].concat()).await;
        assert_eq!(binary.recv_close().await.0, 1000);
        assert_eq!(binary.assert_ended().await, End::Fin);
    }
}

#[tokio::test]
async fn a_close_of_ours_is_followed_by_a_close_notify_once_it_is_answered() {
    let relay = Relay::start_tls(&[]).await;
    let answer = async |peer: &mut Raw, code| {
        assert_eq!(peer.recv_close().await.0, code);
        peer.send(close_frame(code, "")).await;
        assert_eq!(peer.assert_ended().await, End::Fin, "{code}");
    };
    for door in doors(&relay) {
        let mut nobody = Raw::through(&door).await.upgrade(Request::client("free")).await;
        answer(&mut nobody, 4404).await;
        let mut binary = Raw::through(&door).await.upgrade(Request::server("id")).await;
        let mut second = Raw::through(&door).await.upgrade(Request::server("id")).await;
        let ping = binary.recv_ping().await;
        binary.send(masked(PONG, ping)).await;
        answer(&mut second, 4409).await;
        let mut phone = Raw::through(&door).await.upgrade(Request::client("id")).await;
        let conn_id = meet(&mut binary, &mut phone).await;
        binary.send(masked(TEXT, close_directive(&conn_id, 3333))).await;
        answer(&mut phone, 3333).await;
        let mut phone = Raw::through(&door).await.upgrade(Request::client("id")).await;
        phone.send(masked(TEXT, "no JSON")).await;
        answer(&mut phone, 1000).await;
        for (frame, code) in [(vec![0xf1, 0x80, 1, 2, 3, 4], 1002), (masked(TEXT, [0xff]), 1007)] {
            let mut phone = Raw::through(&door).await.upgrade(Request::client("id")).await;
            phone.send(frame).await;
            answer(&mut phone, code).await;
        }
        leave(binary).await;
        relay.wait_for_counts(0, 0).await;
    }
}

#[tokio::test]
async fn shutdown_tells_everyone_in_both_layers() {
    let mut relay = Relay::start_tls(&["--workers", "3"]).await;
    let mut peers = Vec::new();
    for number in 0..12 {
        let door = doors(&relay)[number % 2].clone();
        let id = format!("id {number}");
        let mut binary = Raw::through(&door).await.upgrade(Request::server(&id)).await;
        let mut phone = Raw::through(&door).await.upgrade(Request::client(&id)).await;
        meet(&mut binary, &mut phone).await;
        peers.extend([binary, phone]);
    }
    // In the middle of a handshake, of a head, of a record; and deaf.
    let mut half = Raw::connect(&Relay::start_tls(&[]).await).await;
    half.send("").await;
    let mut shaking = Raw::connect_to(relay.addr()).await;
    shaking.send(&relay.door().hello()[..50]).await;
    let mut asking = Raw::through(&relay.door()).await;
    asking.send("GET /hea").await;
    let mut mid_record = Raw::binary(&relay, "mid record").await;
    let bytes = mid_record.seal(masked(PING, "never"));
    mid_record.send_past_tls(&bytes[..9]).await;
    relay.signal(Signal::Term);
    for peer in peers.iter_mut().chain([&mut mid_record]) {
        assert_eq!(peer.recv_close().await, (1001, "shutting down".to_owned()));
    }
    mid_record.send_past_tls(&bytes[9..]).await;
    for peer in peers.iter_mut().chain([&mut mid_record]) {
        peer.send(close_frame(1001, "")).await;
        assert_eq!(peer.assert_ended().await, End::Fin);
    }
    shaking.assert_ended().await;
    asking.assert_ended().await;
    assert_eq!(relay.wait_exit(SOON).await.status.code(), Some(0));
}

#[tokio::test]
async fn heartbeats_and_deadlines_are_as_without_tls() {
    let relay = Relay::start_tls(&[
        "--heartbeat-interval",
        "300ms",
        "--heartbeat-timeout",
        "500ms",
        "--message-timeout",
        "700ms",
        "--close-timeout",
        "300ms",
    ])
    .await;
    for door in doors(&relay) {
        let mut binary = Raw::through(&door).await.upgrade(Request::server("id")).await;
        for _ in 0..3 {
            let ping = binary.recv_ping().await;
            binary.send(masked(PONG, ping)).await;
        }
        let late = (1011, "heartbeat timeout".to_owned());
        assert_eq!(last_words(&mut binary).await, Some(late.clone()));
        // A message that stops: what comes next belongs to it, pongs too.
        let mut half = Raw::through(&door).await.upgrade(Request::server("half")).await;
        half.send(&masked(TEXT, "{\"too\":\"late\"}")[..9]).await;
        assert_eq!(last_words(&mut half).await, None);
        // And so it is with a record.
        let mut mute = Raw::through(&door).await.upgrade(Request::server("mute")).await;
        let record = mute.seal(masked(TEXT, "{}"));
        mute.send_past_tls(&record[..record.len() - 1]).await;
        assert_eq!(last_words(&mut mute).await, Some(late));
    }
}

/// The relay's close to a peer that answers no ping; none if it just ends the connection.
async fn last_words(peer: &mut Raw) -> Option<(u16, String)> {
    loop {
        let frame = peer.maybe_frame().await?;
        if frame.opcode != PING {
            let (code, reason) = frame.close();
            return Some((code, reason.to_owned()));
        }
    }
}

/// A peer that has sent close_notify sends nothing more, and is gone for everybody, wherever that
/// reached the relay.
#[tokio::test]
async fn a_close_notify_of_the_peers_ends_the_connection() {
    let relay = Relay::start_tls(&["--workers", "4", "--grace", "30s"]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut phone = Raw::phone(&relay, "id").await;
    let conn_id = meet(&mut binary, &mut phone).await;
    let last = phone.seal(masked(TEXT, "\"last\""));
    phone.tls().send_close_notify();
    let close_notify = phone.sealed();
    phone.send_past_tls([last, close_notify].concat()).await;
    assert_eq!(super::open_envelope(&binary.recv_text().await).1, "\"last\"");
    assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1001));
    assert_eq!(phone.rest().await.0, b"");
    // Right behind the request, before the connection is with the worker that it is for.
    for number in 0..24 {
        let id = format!("id {number}");
        let mut binary = Raw::binary(&relay, &id).await;
        let mut phone = Raw::through(&relay.door()).await;
        let frames = [masked(TEXT, "1"), masked(TEXT, "2")].concat();
        let said = phone.seal([Request::client(&id).bytes(), frames].concat());
        phone.tls().send_close_notify();
        let close_notify = phone.sealed();
        phone.send_past_tls([said, close_notify].concat()).await;
        for expected in ["1", "2"] {
            let (_, frame) = super::open_envelope(&binary.recv_text().await);
            assert_eq!(frame, expected);
        }
        let notice = binary.recv_text().await;
        assert!(notice.ends_with(r#","close_code":1001}"#), "{notice}");
    }
}

/// TCP that ends without close_notify may have been truncated by an attacker.
#[tokio::test]
async fn an_end_of_tcp_alone_ends_the_connection_too() {
    let relay = Relay::start_tls(&[]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    for reset in [false, true] {
        let mut phone = Raw::phone(&relay, "id").await;
        let conn_id = meet(&mut binary, &mut phone).await;
        if reset {
            phone.abort()
        } else {
            phone.hang_up()
        }
        assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1001));
    }
    let mut phone = Raw::phone(&relay, "id").await;
    let conn_id = meet(&mut binary, &mut phone).await;
    let half = phone.seal(masked(TEXT, "\"half\""));
    phone.send_past_tls(&half[..half.len() - 1]).await;
    phone.hang_up();
    assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1001));
}

/// What is still on its way to a slow reader arrives before the close_notify.
#[tokio::test]
async fn all_that_was_promised_comes_before_the_close_notify() {
    let args = ["--write-timeout", "60s", "--close-timeout", "60s"];
    let relay = Relay::start_tls(&args).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut phone = Raw::narrow(&relay, 4096).await.upgrade(Request::client("id")).await;
    let conn_id = meet(&mut binary, &mut phone).await;
    let frame = super::json_of(60_000);
    for _ in 0..20 {
        binary.send(masked(TEXT, envelope(&conn_id, &frame))).await;
    }
    binary.send(masked(TEXT, close_directive(&conn_id, 4000))).await;
    relay.wait_for_counts(1, 0).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    for _ in 0..20 {
        assert_eq!(phone.recv_text().await, frame);
    }
    let (code, _) = phone.recv_close().await;
    assert_eq!(code, 4000);
    phone.send(masked(CLOSE, 4000_u16.to_be_bytes())).await;
    assert_eq!(phone.assert_ended().await, End::Fin);
}
