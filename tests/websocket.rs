//! PROTOCOL.md, chapter 2: WebSocket.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    missing_docs
)]

mod common;

use std::time::{Duration, Instant};

use common::{
    BINARY, Binary, CLOSE, CONTINUATION, End, Event, Frame, Hostile, PING, PONG, Phone, Raw, Relay,
    SOON, TEXT, close_directive, close_frame, close_notice, envelope, masked, open_envelope, soon,
};

const LIMIT: usize = 262_144;
const HEARTBEAT: (u16, &str) = (1011, "heartbeat timeout");

/// Which of the two peers a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Binary,
    Phone,
}

const ROLES: [Role; 2] = [Role::Binary, Role::Phone];

/// A raw peer of that role, and whoever it needs on the other side.
async fn dial(relay: &Relay, role: Role, id: &str) -> (Raw, Option<Raw>) {
    match role {
        Role::Binary => (Raw::binary(relay, id).await, None),
        Role::Phone => {
            let binary = Raw::binary(relay, id).await;
            (Raw::phone(relay, id).await, Some(binary))
        }
    }
}

/// A binary and a phone that know each other, and the phone's conn_id.
async fn pair(relay: &Relay, id: &str) -> (Raw, Raw, String) {
    let mut binary = Raw::binary(relay, id).await;
    let mut phone = Raw::phone(relay, id).await;
    let conn_id = meet(&mut binary, &mut phone).await;
    (binary, phone, conn_id)
}

async fn meet(binary: &mut Raw, phone: &mut Raw) -> String {
    phone.send(masked(TEXT, "\"hello\"")).await;
    let (conn_id, frame) = open_envelope(&binary.recv_text().await);
    assert_eq!(frame, "\"hello\"");
    conn_id
}

/// A JSON string of exactly `length` bytes, its quotes included.
fn json_of(length: usize) -> String {
    format!("\"{}\"", "j".repeat(length - 2))
}

/// An envelope of exactly `length` bytes, and the frame in it.
fn envelope_of(length: usize, conn_id: &str) -> (String, String) {
    let frame = json_of(length - envelope(conn_id, "").len());
    (envelope(conn_id, &frame), frame)
}

/// Splits `payload` into frames of these lengths and a last one with the rest.
fn fragments(opcode: u8, payload: &[u8], lengths: &[usize]) -> Vec<Vec<u8>> {
    let mut rest = payload;
    let mut frames = Vec::new();
    for length in lengths {
        let (piece, after) = rest.split_at(*length);
        let opcode = if frames.is_empty() { opcode } else { CONTINUATION };
        frames.push(Hostile::new(opcode, piece).more().bytes());
        rest = after;
    }
    frames.push(masked(CONTINUATION, rest));
    frames
}

// ---- messages

#[tokio::test]
async fn a_text_or_binary_message_leaves_as_one_unfragmented_text_frame() {
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    for length in [2, 3, 125, 126, 127, 4096, 65_535, 65_536, 65_537, 200_000] {
        for opcode in [TEXT, BINARY] {
            let frame = json_of(length);
            phone.send(masked(opcode, &frame)).await;
            // recv_text demands a final text frame.
            assert_eq!(open_envelope(&binary.recv_text().await), (conn_id.clone(), frame.clone()));
            binary.send(masked(opcode, envelope(&conn_id, &frame))).await;
            assert_eq!(phone.recv_text().await, frame);
        }
    }
    phone.assert_quiet().await;
    binary.assert_quiet().await;
}

#[tokio::test]
async fn ordinary_clients_exchange_text_and_binary_messages() {
    let relay = Relay::start(&[]).await;
    let mut binary = Binary::connect(&relay, "id").await;
    let mut phone = Phone::connect(&relay, "id").await;
    phone.send_text(r#"{"up":"\u00e9é"}"#).await;
    let (conn_id, frame) = open_envelope(&binary.recv_text().await);
    assert_eq!(frame, r#"{"up":"\u00e9é"}"#);
    binary.send_binary(envelope(&conn_id, r#"{"down":[1, 2]}"#)).await;
    assert_eq!(phone.next().await, Event::Text(r#"{"down":[1, 2]}"#.to_owned()));
    phone.close(1000).await;
    assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1000));
    binary.assert_quiet().await;
}

#[tokio::test]
async fn a_fragmented_message_is_put_together() {
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    let frame = json_of(70_000);
    for opcode in [TEXT, BINARY] {
        for lengths in [vec![0], vec![1], vec![69_999], vec![70_000], vec![0, 0, 1, 0, 65_536]] {
            for bytes in fragments(opcode, frame.as_bytes(), &lengths) {
                phone.send(bytes).await;
            }
            assert_eq!(open_envelope(&binary.recv_text().await).1, frame, "{lengths:?}");
            let message = envelope(&conn_id, &frame);
            binary.send(fragments(opcode, message.as_bytes(), &lengths).concat()).await;
            assert_eq!(phone.recv_text().await, frame, "{lengths:?}");
        }
    }
    let each_byte = fragments(TEXT, b"\"tiny\"", &[1, 1, 1, 1, 1]);
    phone.send(each_byte.concat()).await;
    assert_eq!(open_envelope(&binary.recv_text().await).1, "\"tiny\"");
}

#[tokio::test]
async fn control_frames_between_fragments_are_answered_at_once() {
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, _) = pair(&relay, "id").await;
    let frames = fragments(TEXT, b"[1,2,3,4]", &[1, 3, 2]);
    for (number, frame) in frames.iter().enumerate() {
        if number > 0 {
            // Also an unsolicited pong, which says nothing.
            phone.send(masked(PONG, "unasked")).await;
            phone.send(masked(PING, format!("between {number}"))).await;
            let pong = phone.frame().await;
            assert_eq!(pong.opcode, PONG);
            assert_eq!(pong.payload, format!("between {number}").into_bytes());
        }
        phone.send(&**frame).await;
    }
    assert_eq!(open_envelope(&binary.recv_text().await).1, "[1,2,3,4]");
    phone.assert_quiet().await;
}

#[tokio::test]
async fn a_close_between_fragments_is_echoed_and_the_half_message_is_lost() {
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    phone.send(Hostile::new(TEXT, "\"half").more()).await;
    phone.send(close_frame(3000, "")).await;
    assert_eq!(phone.recv_close().await.0, 3000);
    phone.assert_ended().await;
    assert_eq!(binary.recv_text().await, close_notice(&conn_id, 3000));
}

#[tokio::test]
async fn a_message_that_arrives_byte_by_byte_is_whole() {
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    let pause = Duration::from_millis(1);
    phone.dribble(masked(TEXT, json_of(130)), pause).await;
    assert_eq!(open_envelope(&binary.recv_text().await).1, json_of(130));
    binary.dribble(masked(TEXT, envelope(&conn_id, "\"down\"")), pause).await;
    assert_eq!(phone.recv_text().await, "\"down\"");
    phone.dribble(masked(PING, "slow ping"), pause).await;
    assert_eq!(phone.frame().await.payload, b"slow ping");
}

#[tokio::test]
async fn many_messages_in_one_packet_all_arrive_in_order() {
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    let up: Vec<u8> = (0..500).flat_map(|n| masked(TEXT, n.to_string())).collect();
    let down: Vec<u8> =
        (0..500).flat_map(|n| masked(TEXT, envelope(&conn_id, &n.to_string()))).collect();
    phone.send(up).await;
    binary.send(down).await;
    for n in 0..500 {
        assert_eq!(open_envelope(&binary.recv_text().await).1, n.to_string());
        assert_eq!(phone.recv_text().await, n.to_string());
    }
}

// ---- the size limit

#[tokio::test]
async fn a_message_of_262_144_bytes_passes() {
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    let up = json_of(LIMIT);
    phone.send(masked(TEXT, &up)).await;
    assert_eq!(open_envelope(&binary.recv_text().await).1, up);
    phone.send(fragments(BINARY, up.as_bytes(), &[100, 200_000]).concat()).await;
    assert_eq!(open_envelope(&binary.recv_text().await).1, up);
    let (message, down) = envelope_of(LIMIT, &conn_id);
    assert_eq!(message.len(), LIMIT);
    binary.send(masked(TEXT, &message)).await;
    assert_eq!(phone.recv_text().await, down);
    binary.send(fragments(TEXT, message.as_bytes(), &[262_143]).concat()).await;
    assert_eq!(phone.recv_text().await, down);
}

#[tokio::test]
async fn a_message_over_262_144_bytes_is_1009() {
    let relay = Relay::start(&[]).await;
    let big = json_of(LIMIT + 1);
    let head_only = |length| Hostile::new(TEXT, "").claiming(length).bytes();
    let first = Hostile::new(TEXT, &big[..LIMIT]).more().bytes();
    let rows: [(&str, Vec<u8>); 7] = [
        ("one frame", masked(TEXT, &big)),
        ("one binary frame", masked(BINARY, &big)),
        // The length alone is enough: nobody has to send it all to be told.
        ("claimed", head_only(LIMIT as u64 + 1)),
        ("claimed 4 GiB", head_only(1 << 32)),
        ("claimed 2^63 - 1", head_only(u64::MAX >> 1)),
        ("two fragments", fragments(TEXT, big.as_bytes(), &[LIMIT / 2]).concat()),
        ("a claim that tops up", [first, head_only(1)].concat()),
    ];
    for role in ROLES {
        for (number, (what, bytes)) in rows.iter().enumerate() {
            let mut bytes = bytes.clone();
            if *what == "a claim that tops up" {
                // The last head is a continuation, and its one byte never comes.
                let at = bytes.len() - 6;
                bytes[at] = 0x80 | CONTINUATION;
            }
            let id = format!("{role:?} {number}");
            let (mut peer, other) = dial(&relay, role, &id).await;
            let _ = peer.try_send(bytes).await;
            assert_eq!(peer.closed().await, (1009, String::new()), "{role:?}: {what}");
            drop(other);
        }
    }
}

// ---- UTF-8

#[tokio::test]
async fn text_that_is_not_utf_8_is_1007() {
    let relay = Relay::start(&[]).await;
    let bad: [&[u8]; 11] = [
        b"\"\xff\"",
        b"\"\x80\"",
        b"\"\xc3\"",
        b"\"\xc3",
        b"\"\xe2\x82\"",
        b"\"\xf0\x9f\x98",
        b"\"\xc0\xaf\"",
        b"\"\xe0\x80\x80\"",
        b"\"\xed\xa0\x80\"",
        b"\"\xf4\x90\x80\x80\"",
        b"\"\xf8\x88\x80\x80\x80\"",
    ];
    for role in ROLES {
        for (number, payload) in bad.into_iter().enumerate() {
            let what = format!("{role:?}: {}", payload.escape_ascii());
            let (mut peer, _other) = dial(&relay, role, &format!("{role:?} {number}")).await;
            peer.send(masked(TEXT, payload)).await;
            assert_eq!(peer.closed().await, (1007, String::new()), "{what}");
            let (mut peer, _other) = dial(&relay, role, &format!("{role:?} {number} split")).await;
            let split = payload.len() / 2;
            let _ = peer.try_send(fragments(TEXT, payload, &[split]).concat()).await;
            assert_eq!(peer.closed().await, (1007, String::new()), "{what}, fragmented");
        }
    }
}

#[tokio::test]
async fn a_character_may_be_split_between_fragments() {
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    let text = "\"aé€😀\u{10ffff}z\"";
    for split in 0..=text.len() {
        phone.send(fragments(TEXT, text.as_bytes(), &[split]).concat()).await;
        assert_eq!(open_envelope(&binary.recv_text().await).1, text, "{split}");
        let message = envelope(&conn_id, text);
        let split = split + message.len() - text.len() - 1;
        binary.send(fragments(TEXT, message.as_bytes(), &[split]).concat()).await;
        assert_eq!(phone.recv_text().await, text, "{split}");
    }
}

#[tokio::test]
async fn a_binary_message_that_is_not_utf_8_is_no_protocol_error() {
    // It is no JSON either, and costs what that costs.
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    binary.send(masked(BINARY, b"\xff\xfe")).await;
    binary.assert_quiet().await;
    phone.send(masked(BINARY, b"\"\xff\"")).await;
    assert_eq!(phone.closed().await, (1000, String::new()));
    assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1001));
}

#[tokio::test]
async fn a_close_reason_that_is_not_utf_8_fails_the_connection() {
    // RFC 6455, section 8.1: 1007.
    let relay = Relay::start(&["--close-timeout", "300ms"]).await;
    for role in ROLES {
        let (mut peer, _other) = dial(&relay, role, &format!("{role:?}")).await;
        peer.send(masked(CLOSE, b"\x03\xe8bad \xff")).await;
        assert_eq!(peer.recv_close().await.0, 1007, "{role:?}");
        peer.assert_ended().await;
    }
}

// ---- protocol errors

#[tokio::test]
async fn protocol_violations_are_1002() {
    let relay = Relay::start(&[]).await;
    let ok = |opcode| Hostile::new(opcode, "1");
    let code = |code: u16| masked(CLOSE, code.to_be_bytes());
    let mut rows: Vec<(String, Vec<u8>)> = Vec::new();
    for bits in 1..=7 {
        rows.push((format!("RSV {bits} on text"), ok(TEXT).rsv(bits).bytes()));
    }
    for opcode in [BINARY, PING, PONG, CLOSE, CONTINUATION] {
        rows.push((format!("RSV1 on opcode {opcode}"), ok(opcode).rsv(4).bytes()));
    }
    for opcode in (3..8).chain(11..16) {
        rows.push((format!("opcode {opcode}"), ok(opcode).bytes()));
        rows.push((format!("opcode {opcode}, empty"), masked(opcode, "")));
    }
    for opcode in [PING, PONG, CLOSE] {
        rows.push((
            format!("fragmented control {opcode}"),
            Hostile::new(opcode, "").more().bytes(),
        ));
        rows.push((format!("control {opcode} of 126 bytes"), masked(opcode, [0; 126])));
        let claimed = Hostile::new(opcode, "").claiming(1 << 16).bytes();
        rows.push((format!("control {opcode} claims 64 KiB"), claimed));
    }
    for opcode in [TEXT, BINARY, PING, PONG, CONTINUATION] {
        rows.push((format!("unmasked {opcode}"), ok(opcode).unmasked().bytes()));
    }
    rows.push(("unmasked, empty".to_owned(), Hostile::new(PING, "").unmasked().bytes()));
    rows.push(("unmasked close".to_owned(), Hostile::new(CLOSE, [3, 232]).unmasked().bytes()));
    rows.push(("continuation of nothing".to_owned(), ok(CONTINUATION).bytes()));
    rows.push(("continuation of nothing, more".to_owned(), ok(CONTINUATION).more().bytes()));
    for opcode in [TEXT, BINARY] {
        let twice = [ok(TEXT).more().bytes(), ok(opcode).bytes()].concat();
        rows.push((format!("a new message ({opcode}) within one"), twice));
        let after =
            [ok(opcode).more().bytes(), masked(CONTINUATION, "2"), masked(CONTINUATION, "3")];
        rows.push((format!("continuation of a whole message ({opcode})"), after[..].concat()));
    }
    rows.push(("close of one byte".to_owned(), masked(CLOSE, [3])));
    for bad in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        rows.push((format!("close code {bad}"), code(bad)));
    }
    for role in ROLES {
        for (number, (what, bytes)) in rows.iter().enumerate() {
            let (mut peer, _other) = dial(&relay, role, &format!("{role:?} {number}")).await;
            peer.send(&**bytes).await;
            assert_eq!(peer.closed().await, (1002, String::new()), "{role:?}: {what}");
        }
    }
}

#[tokio::test]
async fn a_length_with_its_highest_bit_set_fails_the_connection() {
    let relay = Relay::start(&[]).await;
    for role in ROLES {
        let (mut peer, _other) = dial(&relay, role, &format!("{role:?}")).await;
        peer.send(Hostile::new(TEXT, "").claiming(1 << 63)).await;
        let (code, _) = peer.closed().await;
        assert!(matches!(code, 1002 | 1009), "{role:?}: {code}");
    }
}

#[tokio::test]
async fn nothing_after_a_violation_is_handled() {
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    let bytes =
        [masked(TEXT, "1"), masked(3, ""), masked(TEXT, "2"), masked(PING, "late")].concat();
    phone.send(bytes).await;
    assert_eq!(phone.closed().await, (1002, String::new()));
    assert_eq!(open_envelope(&binary.recv_text().await).1, "1");
    assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1001));
    binary.assert_quiet().await;
}

// ---- pings

#[tokio::test]
async fn a_ping_is_answered_with_its_payload() {
    let relay = Relay::start(&[]).await;
    for role in ROLES {
        let (mut peer, _other) = dial(&relay, role, &format!("{role:?}")).await;
        let payloads: [&[u8]; 4] = [b"", b"x", b"\xff\x00\xfe", &[7; 125]];
        for payload in payloads {
            peer.send(masked(PING, payload)).await;
            let pong = Frame { fin: true, opcode: PONG, payload: payload.to_vec() };
            assert_eq!(peer.frame().await, pong, "{role:?}");
        }
        // Several in one packet: RFC 6455 lets the last answer stand for all.
        peer.send([masked(PING, "1"), masked(PING, "2"), masked(PING, "3")].concat()).await;
        while peer.frame().await.payload != b"3" {}
        peer.assert_quiet().await;
    }
}

#[tokio::test]
async fn a_binarys_ping_is_answered_while_its_phone_does_not_read() {
    let relay = Relay::start(&["--write-timeout", "60s"]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut phone = Raw::narrow(&relay, 4096).await.upgrade(common::Request::client("id")).await;
    let conn_id = meet(&mut binary, &mut phone).await;
    let frame = json_of(60_000);
    for number in 0..60 {
        binary.send(masked(TEXT, envelope(&conn_id, &frame))).await;
        binary.send(masked(PING, number.to_string())).await;
        assert_eq!(binary.frame().await.payload, number.to_string().into_bytes());
    }
    for _ in 0..60 {
        assert_eq!(phone.recv_text().await, frame);
    }
}

#[tokio::test]
async fn a_phones_ping_is_answered_while_its_binary_does_not_read() {
    let relay = Relay::start(&["--write-timeout", "60s", "--message-timeout", "60s"]).await;
    let mut binary = Raw::narrow(&relay, 4096).await.upgrade(common::Request::server("id")).await;
    let mut quiet = Raw::phone(&relay, "id").await;
    meet(&mut binary, &mut quiet).await;
    // This one sends until the relay takes no more from it.
    let mut noisy = Raw::phone(&relay, "id").await;
    let flood = masked(TEXT, json_of(60_000)).repeat(500);
    let sent = noisy.send_until_stuck(&flood, Duration::from_secs(1)).await;
    assert!(sent < flood.len(), "the relay takes 30 MB for a binary that does not read");
    for number in 0..5 {
        quiet.send(masked(PING, number.to_string())).await;
        let pong = quiet.frame().await;
        assert_eq!((pong.opcode, pong.payload), (PONG, number.to_string().into_bytes()));
    }
}

// ---- closing

#[tokio::test]
async fn a_peers_close_is_echoed_with_its_code_and_then_tcp_closes() {
    let relay = Relay::start(&["--close-timeout", "60s"]).await;
    let codes = [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000,
        4404, 4999,
    ];
    for role in ROLES {
        for code in codes {
            for reason in ["", "bye é", &"r".repeat(123)] {
                let id = format!("{role:?} {code} {}", reason.len());
                let (mut peer, _other) = dial(&relay, role, &id).await;
                peer.send(close_frame(code, reason)).await;
                assert_eq!(peer.recv_close().await.0, code, "{role:?}");
                // This side keeps its half open: the relay must end it by itself.
                peer.assert_ended().await;
            }
        }
    }
}

#[tokio::test]
async fn an_empty_close_is_echoed_empty() {
    let relay = Relay::start(&["--close-timeout", "60s"]).await;
    for role in ROLES {
        let (mut peer, _other) = dial(&relay, role, &format!("{role:?}")).await;
        peer.send(masked(CLOSE, "")).await;
        assert_eq!(peer.recv_close().await, (1005, String::new()), "{role:?}");
        peer.assert_ended().await;
    }
}

#[tokio::test]
async fn nothing_after_a_close_is_handled() {
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    let bytes = [
        masked(TEXT, "1"),
        close_frame(4000, "x"),
        masked(TEXT, "2"),
        masked(PING, "late"),
        close_frame(4001, "again"),
    ];
    phone.send(bytes.concat()).await;
    assert_eq!(phone.recv_close().await.0, 4000);
    phone.assert_ended().await;
    assert_eq!(open_envelope(&binary.recv_text().await).1, "1");
    assert_eq!(binary.recv_text().await, close_notice(&conn_id, 4000));
    binary.assert_quiet().await;
}

#[tokio::test]
async fn each_connection_gets_exactly_one_close_frame_and_the_first_reason_wins() {
    let relay = Relay::start(&["--close-timeout", "300ms"]).await;
    let violation = || masked(3, "");
    let not_utf_8 = || masked(TEXT, [0xff]);
    let too_big = || Hostile::new(TEXT, "").claiming(LIMIT as u64 + 1).bytes();
    let rows = [
        (1002, [violation(), close_frame(1000, "")].concat()),
        (1000, [close_frame(1000, ""), violation()].concat()),
        (1007, [not_utf_8(), violation()].concat()),
        (1002, [violation(), not_utf_8()].concat()),
        (1009, [too_big(), violation(), close_frame(1000, "")].concat()),
        (1002, violation().repeat(20)),
        (4000, close_frame(4000, "").repeat(20)),
    ];
    for role in ROLES {
        for (number, (code, bytes)) in rows.iter().enumerate() {
            let (mut peer, _other) = dial(&relay, role, &format!("{role:?} {number}")).await;
            peer.send(&**bytes).await;
            assert_eq!(peer.recv_close().await.0, *code, "{role:?}, row {number}");
            // More of the same while the relay waits for the answer.
            let _ = peer.try_send(violation()).await;
            let _ = peer.try_send(masked(PING, "still there?")).await;
            peer.assert_ended().await;
        }
    }
}

#[tokio::test]
async fn the_relay_closes_once_also_when_both_sides_close_at_the_same_time() {
    let relay = Relay::start(&[]).await;
    for round in 0..20 {
        let (mut binary, mut phone, conn_id) = pair(&relay, &format!("{round}")).await;
        binary.send(masked(TEXT, close_directive(&conn_id, 4001))).await;
        phone.send(close_frame(4002, "")).await;
        let (code, _) = phone.recv_close().await;
        assert!(matches!(code, 4001 | 4002), "{code}");
        phone.assert_ended().await;
    }
}

#[tokio::test]
async fn after_a_close_of_ours_tcp_closes_as_soon_as_the_peer_answers() {
    let relay = Relay::start(&["--close-timeout", "60s"]).await;
    for role in ROLES {
        // With its own code, with another, and with none.
        for answer in [close_frame(1002, ""), close_frame(4000, "x"), masked(CLOSE, "")] {
            let (mut peer, _other) = dial(&relay, role, &format!("{role:?} {answer:?}")).await;
            peer.send(masked(3, "")).await;
            assert_eq!(peer.recv_close().await, (1002, String::new()));
            peer.send(answer).await;
            peer.assert_ended().await;
        }
    }
}

#[tokio::test]
async fn the_answer_to_our_close_counts_also_behind_other_frames() {
    // The peer may have been sending when the close reached it.
    let relay = Relay::start(&["--close-timeout", "60s"]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    binary.send(masked(TEXT, close_directive(&conn_id, 4001))).await;
    assert_eq!(phone.recv_close().await.0, 4001);
    phone.send([masked(TEXT, json_of(100_000)), close_frame(4001, "")].concat()).await;
    phone.assert_ended().await;
    binary.assert_quiet().await;
}

#[tokio::test]
async fn a_peer_that_does_not_answer_our_close_has_the_close_timeout_and_is_then_cut() {
    let timeout = Duration::from_millis(600);
    let relay = Relay::start(&["--close-timeout", "600ms"]).await;
    for role in ROLES {
        let (mut peer, _other) = dial(&relay, role, &format!("{role:?}")).await;
        let begun = Instant::now();
        peer.send(masked(3, "")).await;
        assert_eq!(peer.recv_close().await, (1002, String::new()));
        // What it sends instead of an answer changes nothing.
        let _ = peer.try_send(masked(PING, "not a close")).await;
        peer.assert_ended().await;
        assert!(begun.elapsed() >= timeout / 2, "{role:?}: it had no time to answer");
    }
    relay.wait_for_counts(0, 0).await;
}

// ---- heartbeat

const QUICK: [&str; 4] = ["--heartbeat-interval", "200ms", "--heartbeat-timeout", "400ms"];

#[tokio::test]
async fn a_ping_comes_at_every_interval() {
    let interval = Duration::from_millis(200);
    let relay = Relay::start(&["--heartbeat-interval", "200ms"]).await;
    for role in ROLES {
        let begun = Instant::now();
        let (mut peer, mut other) = dial(&relay, role, &format!("{role:?}")).await;
        for _ in 0..5 {
            let payload = peer.recv_ping().await;
            peer.send(masked(PONG, &payload)).await;
        }
        let took = begun.elapsed();
        assert!(took >= interval * 5 / 2, "{role:?}: 5 pings of {interval:?} in {took:?}");
        if let Some(other) = &mut other {
            assert_eq!(other.frame().await.opcode, PING);
        }
    }
}

#[tokio::test]
async fn a_ping_comes_also_to_a_peer_that_is_busy() {
    let relay = Relay::start(&QUICK).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    let mut pings = [0, 0];
    let end = Instant::now() + SOON;
    while pings[0] < 3 || pings[1] < 3 {
        assert!(Instant::now() < end, "pings: {pings:?}");
        phone.send(masked(TEXT, "1")).await;
        binary.send(masked(TEXT, envelope(&conn_id, "2"))).await;
        for (peer, count) in [&mut phone, &mut binary].into_iter().zip(&mut pings) {
            loop {
                let frame = peer.frame().await;
                if frame.opcode != PING {
                    break;
                }
                *count += 1;
                peer.send(masked(PONG, &frame.payload)).await;
            }
        }
    }
}

#[tokio::test]
async fn no_matching_pong_is_1011_heartbeat_timeout() {
    let relay = Relay::start(&QUICK).await;
    type Answer = fn(&[u8]) -> Vec<u8>;
    let answers: [(&str, Answer); 6] = [
        ("nothing", |_| Vec::new()),
        ("another payload", |_| masked(PONG, "not what you sent")),
        ("an empty pong", |_| masked(PONG, "")),
        ("a longer payload", |ping| masked(PONG, [ping, b"x"].concat())),
        ("a ping", |ping| masked(PING, ping)),
        ("messages", |_| masked(TEXT, "1")),
    ];
    for role in ROLES {
        for (number, (what, answer)) in answers.into_iter().enumerate() {
            let (mut peer, _other) = dial(&relay, role, &format!("{role:?} {number}")).await;
            let close = loop {
                let frame = peer.maybe_frame().await.expect("a close");
                match frame.opcode {
                    PING => peer.send(answer(&frame.payload)).await,
                    CLOSE => break frame.close().0,
                    _ => {}
                }
            };
            assert_eq!(close, HEARTBEAT.0, "{role:?} answers with {what}");
        }
    }
}

#[tokio::test]
async fn the_heartbeats_close_has_its_reason_and_happens_once() {
    let relay = Relay::start(&[&QUICK[..], &["--close-timeout", "300ms"]].concat()).await;
    for role in ROLES {
        let begun = Instant::now();
        let (mut peer, _other) = dial(&relay, role, &format!("{role:?}")).await;
        let frame = loop {
            let frame = peer.frame().await;
            if frame.opcode != PING {
                break frame;
            }
        };
        assert_eq!(frame.close(), HEARTBEAT, "{role:?}");
        assert!(common::is_over(begun, Duration::from_millis(300)), "{role:?}: too early");
        peer.assert_ended().await;
    }
    relay.wait_for_counts(0, 0).await;
}

#[tokio::test]
async fn a_quiet_peer_that_answers_pings_stays() {
    let relay = Relay::start(&QUICK).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut phone = Raw::phone(&relay, "id").await;
    for _ in 0..10 {
        for peer in [&mut binary, &mut phone] {
            let payload = peer.recv_ping().await;
            peer.send(masked(PONG, payload)).await;
        }
    }
    meet(&mut binary, &mut phone).await;
}

// ---- deadlines

#[tokio::test]
async fn a_message_that_is_not_complete_in_time_cuts_tcp() {
    let timeout = Duration::from_millis(500);
    let relay = Relay::start(&["--message-timeout", "500ms"]).await;
    let whole = masked(TEXT, json_of(1000));
    let long = masked(TEXT, json_of(100_000));
    let ping = masked(PING, "half");
    let first = Hostile::new(TEXT, "\"half").more().bytes();
    let rows: [(&str, &[u8]); 6] = [
        ("one header byte", &whole[..1]),
        ("a header", &whole[..8]),
        ("half a frame", &whole[..500]),
        ("all but the last byte", &long[..long.len() - 1]),
        ("the first fragment", &first),
        ("half a ping", &ping[..5]),
    ];
    for role in ROLES {
        for (number, (what, bytes)) in rows.into_iter().enumerate() {
            let (mut peer, _other) = dial(&relay, role, &format!("{role:?} {number}")).await;
            let begun = Instant::now();
            peer.send(bytes).await;
            let (rest, _) = peer.rest().await;
            assert!(rest.is_empty(), "{role:?}, {what}: TCP is cut, without a word");
            assert!(begun.elapsed() >= timeout / 2, "{role:?}, {what}: cut before its time");
        }
    }
    relay.wait_for_counts(0, 0).await;
}

#[tokio::test]
async fn dribbled_bytes_do_not_stretch_the_message_deadline() {
    let relay = Relay::start(&["--message-timeout", "500ms"]).await;
    let pause = Duration::from_millis(20);
    // Each row would take 10 s and more, and makes progress all the time.
    let bytes: Vec<Vec<u8>> = masked(TEXT, json_of(1000)).chunks(1).map(<[u8]>::to_vec).collect();
    let fragments = fragments(TEXT, json_of(1000).as_bytes(), &[1; 999]);
    let with_pings: Vec<Vec<u8>> = std::iter::once(Hostile::new(TEXT, "\"").more().bytes())
        .chain((0..1000).map(|n| masked(PING, format!("{n}"))))
        .collect();
    for role in ROLES {
        for (what, parts) in
            [("bytes", &bytes), ("fragments", &fragments), ("pings between", &with_pings)]
        {
            let (mut peer, _other) = dial(&relay, role, &format!("{role:?} {what}")).await;
            let begun = Instant::now();
            let mut sent = 0;
            while sent < parts.len() && peer.try_send(&*parts[sent]).await.is_ok() {
                sent += 1;
                tokio::time::sleep(pause).await;
            }
            assert!(sent < parts.len(), "{role:?}, {what}: all of it was taken");
            assert!(begun.elapsed() < SOON, "{role:?}, {what}");
        }
    }
}

#[tokio::test]
async fn the_message_deadline_is_for_one_message_not_for_all() {
    let timeout = Duration::from_millis(500);
    let relay = Relay::start(&["--message-timeout", "500ms"]).await;
    let (mut binary, mut phone, _) = pair(&relay, "id").await;
    let begun = Instant::now();
    let mut round = 0;
    // Messages without a pause: the next one's first byte comes with the last one's end.
    let message = masked(TEXT, json_of(100));
    phone.send(&message[..50]).await;
    while begun.elapsed() < timeout * 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        phone.send([&message[50..], &message[..50]].concat()).await;
        assert_eq!(open_envelope(&binary.recv_text().await).1, json_of(100), "{round}");
        round += 1;
    }
    phone.send(&message[50..]).await;
    binary.recv_text().await;
    // And silence between messages is not part of any.
    let silence = tokio::time::sleep(timeout * 2);
    silence.await;
    phone.assert_quiet().await;
    binary.assert_quiet().await;
}

#[tokio::test]
async fn a_phone_that_does_not_read_is_cut_after_the_write_timeout() {
    let relay = Relay::start(&["--write-timeout", "700ms"]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut phone = Raw::narrow(&relay, 4096).await.upgrade(common::Request::client("id")).await;
    let conn_id = meet(&mut binary, &mut phone).await;
    // Less than its outbox may hold: it can only be the clock that ends it.
    let begun = Instant::now();
    let frame = json_of(60_000);
    for _ in 0..65 {
        binary.send(masked(TEXT, envelope(&conn_id, &frame))).await;
    }
    assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1001));
    assert!(common::is_over(begun, Duration::from_millis(350)), "cut before its time");
    relay.wait_for_counts(1, 0).await;
    let (rest, _) = phone.rest().await;
    assert!(rest.len() < 65 * frame.len(), "it was cut only after it had been sent all");
    binary.assert_quiet().await;
}

#[tokio::test]
async fn a_binary_that_does_not_read_is_cut_after_the_write_timeout() {
    let relay = Relay::start(&["--write-timeout", "700ms"]).await;
    let mut binary = Raw::narrow(&relay, 4096).await.upgrade(common::Request::server("id")).await;
    let mut phone = Raw::phone(&relay, "id").await;
    meet(&mut binary, &mut phone).await;
    let flood = masked(TEXT, json_of(60_000)).repeat(500);
    let sending = tokio::spawn(async move { phone.send_until_stuck(&flood, SOON).await });
    relay.wait_for_log("server_released").await;
    // The next of the phone's frames cannot reach a binary.
    relay.wait_for_counts(0, 0).await;
    sending.abort();
}

#[tokio::test]
async fn a_slow_reader_that_makes_progress_is_not_cut() {
    let relay = Relay::start(&["--write-timeout", "1s"]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut phone = Raw::narrow(&relay, 8192).await.upgrade(common::Request::client("id")).await;
    let conn_id = meet(&mut binary, &mut phone).await;
    let (message, frame) = envelope_of(250_000, &conn_id);
    let begun = Instant::now();
    for _ in 0..15 {
        binary.send(masked(TEXT, &*message)).await;
    }
    // One message is more than a second's reading, and the whole takes several seconds.
    let mut left = 15 * frame.len();
    while left > 8192 {
        let read = phone.sip(8192).await.expect("the relay goes on sending");
        left = left.saturating_sub(read);
        tokio::time::sleep(Duration::from_millis(8)).await;
    }
    assert!(begun.elapsed() > Duration::from_secs(2), "the reader was not slow");
    binary.assert_quiet().await;
}

#[tokio::test]
async fn a_peer_on_a_slow_line_gets_what_was_on_its_way_and_the_answer_to_its_close() {
    let relay = Relay::start(&["--close-timeout", "1s"]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut phone = Raw::narrow(&relay, 8192).await.upgrade(common::Request::client("id")).await;
    let conn_id = meet(&mut binary, &mut phone).await;
    let (message, frame) = envelope_of(1000, &conn_id);
    // No more than the kernel and one write take: what is not on its way when the close comes may
    // be dropped.
    let frames = 60;
    for _ in 0..frames {
        binary.send(masked(TEXT, &*message)).await;
    }
    binary.assert_quiet().await;
    phone.send(close_frame(4321, "")).await;
    let begun = Instant::now();
    for number in 0..frames {
        let text = phone.recv_text().await;
        assert_eq!(text, frame, "{number}");
        // 20 kB/s.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(phone.recv_close().await.0, 4321);
    assert_eq!(phone.assert_ended().await, End::Fin);
    assert!(begun.elapsed() > Duration::from_secs(2), "the reader was not slow");
    assert_eq!(binary.recv_text().await, close_notice(&conn_id, 4321));
}

// ---- the table of codes

#[tokio::test]
async fn a_close_directives_code_is_sent_as_asked_or_as_1011() {
    let relay = Relay::start(&[]).await;
    let mut binary = Binary::connect(&relay, "id").await;
    let valid = (1000..=1003).chain(1007..=1014).chain([3000, 3001, 3999, 4000, 4401, 4404, 4409]);
    let valid = valid.chain([4412, 4421, 4426, 4429, 4999]);
    let invalid = [1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535];
    let rows = valid.map(|code| (code, code)).chain(invalid.map(|code| (code, 1011)));
    for (asked, sent) in rows {
        let mut phone = Phone::connect(&relay, "id").await;
        phone.send_text("1").await;
        let (conn_id, _) = open_envelope(&binary.recv_text().await);
        binary.send_text(close_directive(&conn_id, asked)).await;
        assert_eq!(phone.recv_close().await.0, sent, "asked for {asked}");
    }
    soon("a quiet binary", binary.assert_quiet()).await;
}
