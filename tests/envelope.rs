//! PROTOCOL.md, chapter 4: conn-ids, the routing envelope, close notices.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    missing_docs
)]

mod common;

use std::collections::HashSet;
use std::time::Duration;

use common::{
    BINARY, Binary, CLOSE, Hostile, LogLine, Phone, Raw, Relay, Request, SOON, Signal, TEXT,
    close_directive, close_frame, close_notice, envelope, masked, open_envelope,
};

const MAX_MESSAGE: usize = 262_144;

/// A binary of `id`, and one phone whose name the binary knows.
async fn pair(relay: &Relay, id: &str) -> (Raw, Raw, String) {
    let mut binary = Raw::binary(relay, id).await;
    let mut phone = Raw::phone(relay, id).await;
    let conn_id = meet(&mut binary, &mut phone).await;
    (binary, phone, conn_id)
}

/// The phone's name, by a first message of it.
async fn meet(binary: &mut Raw, phone: &mut Raw) -> String {
    phone.send(masked(TEXT, "\"hello\"")).await;
    let (conn_id, frame) = open_envelope(&binary.recv_text().await);
    assert_eq!(frame, "\"hello\"");
    conn_id
}

/// Nothing that was sent to the binary before changed anything for the phone: the next thing it
/// gets is this frame.
async fn assert_next(binary: &mut Raw, phone: &mut Raw, conn_id: &str) {
    binary.send(masked(TEXT, envelope(conn_id, "\"next\""))).await;
    assert_eq!(phone.recv_text().await, "\"next\"");
}

// ---- conn-ids

#[tokio::test]
async fn conn_ids_are_long_distinct_and_never_reused() {
    let relay = Relay::start(&[]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut seen = HashSet::new();
    let mut random_digits = vec![HashSet::new(); 64];
    for _ in 0..200 {
        // Each takes the slot that the one before has left.
        let mut phone = Raw::phone(&relay, "id").await;
        let conn_id = meet(&mut binary, &mut phone).await;
        assert!((16..=64).contains(&conn_id.len()), "{conn_id}");
        for (digit, set) in conn_id.bytes().zip(&mut random_digits) {
            set.insert(digit);
        }
        assert!(seen.insert(conn_id.clone()), "{conn_id} came twice");
        phone.send(close_frame(1000, "")).await;
        assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1000));
    }
    // 64 unguessable bits are 16 digits that take every value.
    let free = random_digits.iter().filter(|set| set.len() == 16).count();
    assert!(free >= 16, "only {free} digits vary");
}

#[tokio::test]
async fn conn_ids_of_phones_at_the_same_time_are_distinct_on_all_workers() {
    let relay = Relay::start(&["--workers", "4"]).await;
    let (mut peers, mut seen) = (Vec::new(), HashSet::new());
    for number in 0..12 {
        let id = format!("id {number}");
        let mut binary = Raw::binary(&relay, &id).await;
        for _ in 0..16 {
            let mut phone = Raw::phone(&relay, &id).await;
            assert!(seen.insert(meet(&mut binary, &mut phone).await), "a conn_id came twice");
            peers.push(phone);
        }
        peers.push(binary);
    }
}

#[tokio::test]
async fn a_phone_is_never_told_its_name() {
    let relay = Relay::start(&[]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut phone = Raw::connect(&relay).await;
    phone.send(Request::client("id")).await;
    let answer = phone.response().await;
    let conn_id = meet(&mut binary, &mut phone).await;
    assert_eq!(answer.status, 101);
    assert!(!answer.head.contains(&conn_id) && !answer.head.contains(&conn_id[8..]));
    binary.send(masked(TEXT, envelope(&conn_id, "[]"))).await;
    binary.send(masked(TEXT, close_directive(&conn_id, 4000))).await;
    let mut told = phone.recv_text().await;
    let (code, reason) = phone.closed().await;
    told.push_str(&reason);
    assert_eq!((told.as_str(), code), ("[]", 4000));
}

// ---- from the phone to the binary

/// JSON of every kind, in forms that a parser would not write like this.
const VERBATIM: [&str; 26] = [
    "null",
    "true",
    "false",
    "0",
    "-0",
    "-0.0e-0",
    "1E+400",
    "123456789012345678901234567890.000",
    "\"\"",
    r#""\u00e9\/\ud83d\ude00\b\f\n\r\t\"\\""#,
    r#""\ud800 alone""#,
    "\"\u{e9}\u{1f600}\u{2028}\u{7f}\u{feff}\"",
    "[]",
    "{}",
    "[ ]",
    "{\n}",
    "[1 ,\t2,\r\n3 ]",
    r#"{"a":1,"a":2,"":{"b":[]}}"#,
    r#"{"z":1,"a":2}"#,
    r#"{"conn_id":"x","frame":1,"close_code":4000,"token":"t"}"#,
    r#"{"push_wake":{"platform":"fcm","token":"t"}}"#,
    r#"{ "\u0061" : [ { } , [ ] ] }"#,
    r#"["}","{","]","\\"]"#,
    r#""a string that ends in a backslash \\""#,
    r#"[[[[[[[["deep"]]]]]]]]"#,
    "1.5e10",
];

#[tokio::test]
async fn a_phones_json_arrives_byte_for_byte_in_an_envelope_of_exactly_this_form() {
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    for frame in VERBATIM {
        for opcode in [TEXT, BINARY] {
            phone.send(masked(opcode, frame)).await;
            let expected = format!(r#"{{"conn_id":"{conn_id}","frame":{frame}}}"#);
            assert_eq!(binary.recv_text().await, expected, "opcode {opcode}");
        }
    }
}

#[tokio::test]
async fn whitespace_around_the_value_is_trimmed_and_that_inside_is_kept() {
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    for (sent, frame) in
        [(" 1", "1"), ("1\n", "1"), ("\r\n\t [ 1 , 2 ] \t", "[ 1 , 2 ]"), ("\n\" a \" ", "\" a \"")]
    {
        phone.send(masked(TEXT, sent)).await;
        assert_eq!(binary.recv_text().await, envelope(&conn_id, frame));
    }
}

#[tokio::test]
async fn json_nests_to_1024_levels_and_no_deeper() {
    let relay = Relay::start(&[]).await;
    let nested = |levels: usize| {
        let mixed = "[{\"a\":".repeat(levels / 2);
        format!("{mixed}1{}", "}]".repeat(levels / 2))
    };
    for levels in [128, 1024] {
        let (mut binary, mut phone, conn_id) = pair(&relay, &format!("{levels}")).await;
        phone.send(masked(TEXT, nested(levels))).await;
        assert_eq!(binary.recv_text().await, envelope(&conn_id, &nested(levels)));
        binary.send(masked(TEXT, envelope(&conn_id, &nested(levels)))).await;
        assert_eq!(phone.recv_text().await, nested(levels));
    }
    let one_too_deep = format!("[{}]", nested(1024));
    let (mut binary, mut phone, conn_id) = pair(&relay, "deeper").await;
    binary.send(masked(TEXT, envelope(&conn_id, &one_too_deep))).await;
    let unknown = format!(r#"{{"x":{one_too_deep},"conn_id":"{conn_id}","frame":1}}"#);
    binary.send(masked(TEXT, unknown)).await;
    assert_next(&mut binary, &mut phone, &conn_id).await;
    phone.send(masked(TEXT, one_too_deep)).await;
    assert_eq!(phone.closed().await, (1000, String::new()));
    assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1001));
    let (_binary, mut phone, _) = pair(&relay, "abyss").await;
    phone.send(masked(TEXT, "[".repeat(200_000))).await;
    assert_eq!(phone.closed().await, (1000, String::new()));
}

const NOT_JSON: [&[u8]; 51] = [
    b"",
    b" ",
    b"\x0b1",
    b"\xef\xbb\xbf1",
    b"nul",
    b"nulll",
    b"True",
    b"NaN",
    b"Infinity",
    b"01",
    b"-",
    b"+1",
    b".5",
    b"1.",
    b"1e",
    b"0x10",
    b"1 2",
    b"1,",
    b"'a'",
    b"\"a",
    b"\"\\x41\"",
    b"\"\\u12g4\"",
    b"\"\n\"",
    b"\"\x00\"",
    b"[1,]",
    b"[,1]",
    b"[1 2]",
    b"[1",
    b"]",
    b"[1}",
    b"{\"a\"}",
    b"{\"a\":}",
    b"{\"a\":1,}",
    b"{a:1}",
    b"{1:1}",
    b"{\"a\":1 \"b\":2}",
    b"// comment\n1",
    b"\xef\xbb\xbf",
    b"\xc2\xa01",
    b"\x0c1",
    b"\0",
    b"1\0",
    b"-01",
    b"1e+",
    b"\"\\u00e\"",
    b"\"\t\"",
    b"\"\x1f\"",
    b"[1]\n[2]",
    b"{\"a\":1}{\"b\":2}",
    b"{,\"a\":1}",
    b"{\"a\" 1}",
];

#[tokio::test]
async fn what_is_not_one_json_value_ends_its_phone_after_its_earlier_frames_with_notice_1001() {
    let relay = Relay::start(&[]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut sibling = Raw::phone(&relay, "id").await;
    let sibling_id = meet(&mut binary, &mut sibling).await;
    for bad in NOT_JSON {
        for opcode in [TEXT, BINARY] {
            let what = bad.escape_ascii();
            let mut phone = Raw::phone(&relay, "id").await;
            // All in one packet, so that what follows is there when the bad one is seen.
            let good = [masked(TEXT, "1"), masked(TEXT, "2")].concat();
            phone.send([good, masked(opcode, bad), masked(TEXT, "3")].concat()).await;
            let (conn_id, frame) = open_envelope(&binary.recv_text().await);
            assert_eq!(frame, "1", "{what}");
            assert_eq!(binary.recv_text().await, envelope(&conn_id, "2"), "{what}");
            assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1001), "{what}");
            assert_eq!(phone.closed().await, (1000, String::new()), "{what}");
        }
    }
    assert_next(&mut binary, &mut sibling, &sibling_id).await;
    binary.assert_quiet().await;
}

#[tokio::test]
async fn a_binary_message_that_is_not_utf_8_is_not_json() {
    let relay = Relay::start(&[]).await;
    for bad in [&b"\"\xff\""[..], b"\"\xed\xa0\x80\"", b"\"\xc0\xaf\"", b"1\xff"] {
        let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
        phone.send(masked(BINARY, bad)).await;
        assert_eq!(phone.closed().await, (1000, String::new()));
        assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1001));
        binary.send(close_frame(1000, "")).await;
        assert_eq!(binary.closed().await.0, 1000);
        relay.wait_for_counts(0, 0).await;
    }
}

#[tokio::test]
async fn there_is_never_a_token_field() {
    let relay = Relay::start(&[]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let request = Request::client("id").set("X-Pyrycode-Token", "s3cret");
    let mut phone = Raw::connect(&relay).await.upgrade(request).await;
    phone.send(masked(TEXT, "[]")).await;
    let first = binary.recv_text().await;
    phone.send(close_frame(4321, "")).await;
    let notice = binary.recv_text().await;
    for message in [first, notice] {
        assert!(!message.contains("token") && !message.contains("s3cret"), "{message}");
    }
}

#[tokio::test]
async fn the_largest_message_passes_wrapped_and_the_frames_of_a_phone_keep_their_order() {
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    let largest = format!("\"{}\"", "x".repeat(MAX_MESSAGE - 2));
    let mut expected = Vec::new();
    let mut sent = Vec::new();
    for number in 0..300 {
        let frame = match number % 100 {
            50 => largest.clone(),
            odd => format!("[{number},\"{}\"]", "y".repeat(odd * 10)),
        };
        sent.extend(masked(TEXT, &frame));
        expected.push(envelope(&conn_id, &frame));
    }
    let sending = tokio::spawn(async move {
        phone.send(sent).await;
        phone
    });
    for message in expected {
        assert!(binary.recv_text().await == message, "another message or another order");
    }
    sending.await.unwrap().assert_quiet().await;
}

// ---- close notices

#[tokio::test]
async fn the_binary_is_told_once_after_the_last_frame_how_each_phone_went() {
    let relay = Relay::start(&[]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    // How a phone ends, and the code that the binary is told.
    type Ending = (&'static str, Vec<u8>, u16);
    let two = |first: Vec<u8>, second: Vec<u8>| [first, second].concat();
    let endings: [Ending; 15] = [
        ("close 1000", close_frame(1000, ""), 1000),
        ("close 3000 with a reason", close_frame(3000, "going home"), 3000),
        ("close 4404 of its own", close_frame(4404, ""), 4404),
        ("a close without a code", masked(CLOSE, ""), 1005),
        ("close 1011", close_frame(1011, ""), 1011),
        ("close 1001", close_frame(1001, ""), 1001),
        ("close 4999", close_frame(4999, ""), 4999),
        (
            "a close amid a message",
            two(Hostile::new(TEXT, "[").more().bytes(), close_frame(4000, "")),
            4000,
        ),
        (
            "a close and then more",
            two(close_frame(4000, ""), two(masked(TEXT, "3"), close_frame(4001, ""))),
            4000,
        ),
        ("a close code that must not be sent", close_frame(1005, ""), 1001),
        ("a close of one byte", masked(CLOSE, [3]), 1001),
        ("a violation", Hostile::new(3, "").bytes(), 1001),
        ("text that is not UTF-8", masked(TEXT, [b'"', 0xff, b'"']), 1001),
        ("a message too big", Hostile::new(TEXT, "").claiming(262_145).bytes(), 1001),
        ("no JSON", masked(TEXT, "x"), 1001),
    ];
    for (what, ending, code) in endings {
        let mut phone = Raw::phone(&relay, "id").await;
        phone.send([masked(TEXT, "1"), masked(TEXT, "2"), ending].concat()).await;
        let (conn_id, _) = open_envelope(&binary.recv_text().await);
        assert_eq!(binary.recv_text().await, envelope(&conn_id, "2"), "{what}");
        assert_eq!(binary.recv_text().await, close_notice(&conn_id, code), "{what}");
        binary.assert_quiet().await;
    }
    for ending in ["FIN", "half closed", "amid a message", "RST"] {
        let mut phone = Raw::phone(&relay, "id").await;
        phone.send(masked(TEXT, "1")).await;
        let (conn_id, _) = open_envelope(&binary.recv_text().await);
        match ending {
            "half closed" => phone.finish().await,
            "amid a message" => phone.send(&masked(TEXT, "\"lost\"")[..5]).await,
            _ => {}
        }
        if ending == "RST" {
            phone.abort()
        } else {
            drop(phone)
        }
        assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1001), "{ending}");
        binary.assert_quiet().await;
    }
}

#[tokio::test]
async fn the_notice_follows_the_last_frame_also_through_a_full_outbox() {
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    let frame = |number: usize| format!("[{number},\"{}\"]", "x".repeat(200_000));
    let mut bytes: Vec<u8> = (0..100).flat_map(|number| masked(TEXT, frame(number))).collect();
    bytes.extend(close_frame(4000, ""));
    // The binary reads nothing before its outbox is full.
    let sent = phone.send_until_stuck(&bytes, Duration::from_millis(300)).await;
    assert!(sent < bytes.len(), "all of it fits");
    let sending = tokio::spawn(async move {
        phone.send(&bytes[sent..]).await;
        phone
    });
    for number in 0..100 {
        assert!(binary.recv_text().await == envelope(&conn_id, &frame(number)), "{number}");
    }
    assert_eq!(binary.recv_text().await, close_notice(&conn_id, 4000));
    assert_eq!(sending.await.unwrap().recv_close().await.0, 4000);
    binary.assert_quiet().await;
}

#[tokio::test]
async fn a_phone_whose_message_takes_too_long_is_told_of_with_1001() {
    let relay = Relay::start(&["--message-timeout", "200ms"]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    phone.send(&masked(TEXT, "\"never whole\"")[..8]).await;
    assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1001));
    phone.rest().await;
    binary.assert_quiet().await;
}

#[tokio::test]
async fn a_phone_that_dies_of_a_deadline_is_told_of_with_1001() {
    let relay = Relay::start(&["--heartbeat-interval", "200ms", "--heartbeat-timeout", "300ms"]);
    let relay = relay.await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut silent = Raw::phone(&relay, "id").await;
    silent.send(masked(TEXT, "1")).await;
    let (conn_id, _) = open_envelope(&binary.recv_text().await);
    assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1001));
    // Told at once, and not again when TCP has ended too.
    drop(silent);
    binary.assert_quiet().await;
}

#[tokio::test]
async fn no_notice_of_what_the_binary_itself_asked_for() {
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    binary.send(masked(TEXT, close_directive(&conn_id, 4001))).await;
    assert_eq!(phone.closed().await, (4001, String::new()));
    binary.assert_quiet().await;
    // Nor if the phone never answers.
    let mut phone = Raw::phone(&relay, "id").await;
    let conn_id = meet(&mut binary, &mut phone).await;
    binary.send(masked(TEXT, close_directive(&conn_id, 4001))).await;
    assert_eq!(phone.recv_close().await.0, 4001);
    phone.abort();
    relay.wait_for_counts(1, 0).await;
    binary.assert_quiet().await;
}

#[tokio::test]
async fn after_a_directive_the_first_code_counts_and_nothing_of_the_phone_is_forwarded() {
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    let directives = [close_directive(&conn_id, 4001), close_directive(&conn_id, 4002)];
    binary.send(directives.map(|text| masked(TEXT, text)).concat()).await;
    assert_eq!(phone.recv_close().await, (4001, String::new()));
    // It talks on, and answers with a code of its own.
    phone
        .send([masked(TEXT, "\"late\""), masked(TEXT, "no JSON"), close_frame(4003, "")].concat())
        .await;
    phone.assert_ended().await;
    relay.wait_for_log("binary_forwarder_unknown_conn_id").await;
    relay.wait_for_counts(1, 0).await;
    binary.assert_quiet().await;
}

#[tokio::test]
async fn no_notice_of_a_phone_whose_frame_found_no_binary() {
    let relay = Relay::start(&[]).await;
    let (binary, mut phone, conn_id) = pair(&relay, "id").await;
    drop(binary);
    relay.wait_for_counts(0, 1).await;
    phone.send(masked(TEXT, "\"for nobody\"")).await;
    assert_eq!(phone.closed().await, (1000, String::new()));
    let mut again = Raw::binary(&relay, "id").await;
    // The name means nothing to the new connection.
    again.send(masked(TEXT, envelope(&conn_id, "1"))).await;
    relay.wait_for_log("binary_forwarder_unknown_conn_id").await;
    again.assert_quiet().await;
}

#[tokio::test]
async fn no_notice_to_either_side_of_a_takeover() {
    let relay = Relay::start(&["--probe-timeout", "200ms"]).await;
    let (mut silent, mut phone, conn_id) = pair(&relay, "id").await;
    let mut newcomer = Raw::binary(&relay, "id").await;
    // An envelope that it sends ahead names a phone that is not its own.
    newcomer.send(masked(TEXT, envelope(&conn_id, "\"not yours\""))).await;
    assert_eq!(phone.closed().await, (4404, "binary reclaimed server-id".to_owned()));
    relay.wait_for_log("binary_forwarder_unknown_conn_id").await;
    newcomer.assert_quiet().await;
    // The next but the probe's ping, which it never answered.
    silent.recv_ping().await;
    assert_eq!(silent.recv_close().await, (1011, "heartbeat timeout".to_owned()));
}

#[tokio::test]
async fn no_notice_of_a_phone_that_was_turned_away() {
    let relay = Relay::start(&["--max-phones", "1"]).await;
    let (mut binary, _phone, _) = pair(&relay, "id").await;
    assert_eq!(Raw::phone(&relay, "id").await.closed().await.0, 4429);
    assert_eq!(Raw::phone(&relay, "nobody's").await.closed().await.0, 4404);
    binary.assert_quiet().await;
}

#[tokio::test]
async fn no_notice_to_another_connection_than_the_phone_registered_under() {
    let relay = Relay::start(&[]).await;
    let (binary, mut old_phone, _) = pair(&relay, "id").await;
    drop(binary);
    relay.wait_for_counts(0, 1).await;
    // It registers while there is no binary at all.
    let mut orphan = Raw::phone(&relay, "id").await;
    let mut again = Raw::binary(&relay, "id").await;
    for phone in [&mut old_phone, &mut orphan] {
        let reclaimed = (4404, "binary reclaimed server-id".to_owned());
        assert_eq!(phone.closed().await, reclaimed);
    }
    again.assert_quiet().await;
    // A phone that leaves during grace: the binary that comes back is not told.
    let phone = Raw::phone(&relay, "id").await;
    drop(again);
    relay.wait_for_counts(0, 1).await;
    drop(phone);
    relay.wait_for_counts(0, 0).await;
    Raw::binary(&relay, "id").await.assert_quiet().await;
}

// ---- from the binary to the phone

#[tokio::test]
async fn a_binarys_frame_arrives_byte_for_byte_as_one_text_message() {
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    for frame in VERBATIM.into_iter().filter(|frame| *frame != "null") {
        for opcode in [TEXT, BINARY] {
            binary.send(masked(opcode, envelope(&conn_id, frame))).await;
            assert_eq!(phone.recv_text().await, frame, "opcode {opcode}");
        }
    }
    let room = MAX_MESSAGE - envelope(&conn_id, "").len() - 2;
    let largest = format!("\"{}\"", "x".repeat(room));
    binary.send(masked(TEXT, envelope(&conn_id, &largest))).await;
    assert!(phone.recv_text().await == largest);
}

/// `C` stands for the phone's name.
const DELIVERED: [(&str, &str); 20] = [
    (r#"{"conn_id":"C","frame":[1]}"#, "[1]"),
    (r#"{"frame":[1],"conn_id":"C"}"#, "[1]"),
    (" \r\n{ \"conn_id\" :\t\"C\" , \"frame\" : [ 1 ] }\n ", "[ 1 ]"),
    (r#"{"conn_id":"C","frame":[1],"close_code":0}"#, "[1]"),
    (r#"{"conn_id":"C","frame":[1],"close_code":null}"#, "[1]"),
    (r#"{"conn_id":"C","frame":[1],"token":"t","x":{"frame":2,"conn_id":"y"}}"#, "[1]"),
    (r#"{"a":[{}],"conn_id":"C","b":"}","frame":[1],"c":1e9}"#, "[1]"),
    (r#"{"conn_id":"C","frame":[1],"push_wake":{"platform":"fcm","token":"t"}}"#, "[1]"),
    (r#"{"conn_id":"C","frame":[1],"push_wake":7}"#, "[1]"),
    (r#"{"\u0063onn_id":"C","fr\u0061me":[1]}"#, "[1]"),
    (r#"{"conn_id":"E","frame":[1]}"#, "[1]"),
    (r#"{"conn_id":"C","Frame":[0],"FRAME":[0],"frame":[1]}"#, "[1]"),
    (r#"{"conn_id":"x","frame":[0],"conn_id":"C","frame":[1]}"#, "[1]"),
    (r#"{"conn_id":"C","frame":false}"#, "false"),
    (r#"{"conn_id":"C","frame":null,"frame":[1]}"#, "[1]"),
    (r#"{"conn_id":"C","frame":[1],"close_code":4000,"close_code":0}"#, "[1]"),
    (r#"{"\u0063\u006F\u006e\u006E_id":"C","\u0066rame":[1],"close\u005fcode":0}"#, "[1]"),
    (r#"{"conn_id ":"x","frame\n":0,"":0,"conn_id":"C","frame":[1]}"#, "[1]"),
    (r#"{"\ud800":0,"conn_id":"C","frame":[1]}"#, "[1]"),
    (r#"{"conn_id":"C","frame":" null "}"#, "\" null \""),
];

#[tokio::test]
async fn fields_come_in_any_order_with_any_escapes_and_unknown_ones_are_ignored() {
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    let escaped: String = conn_id.bytes().map(|digit| format!("\\u{digit:04x}")).collect();
    for (message, frame) in DELIVERED {
        let message = message.replace("\"C\"", &format!("\"{conn_id}\""));
        binary.send(masked(TEXT, message.replace("\"E\"", &format!("\"{escaped}\"")))).await;
        assert_eq!(phone.recv_text().await, frame, "{message}");
    }
    let big =
        format!(r#"[{{"frame":0,"conn_id":"x","long":"{}"}},[[[]]]]"#, "\\\"}".repeat(50_000));
    binary
        .send(masked(TEXT, format!(r#"{{"a":{big},"conn_id":"{conn_id}","frame":[1],"z":1e999}}"#)))
        .await;
    assert_eq!(phone.recv_text().await, "[1]");
    let frame = format!("\"{}\"", "f".repeat(100_000));
    let around = "z".repeat(50_000);
    binary
        .send(masked(
            BINARY,
            format!(r#"{{"{around}":0,"frame":{frame},"conn_id":"{conn_id}","a":"{around}"}}"#),
        ))
        .await;
    assert!(phone.recv_text().await == frame);
    phone.assert_quiet().await;
}

#[tokio::test]
async fn a_close_code_closes_the_phone_after_the_frame_if_there_is_one() {
    let relay = Relay::start(&[]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let rows: [(&str, Option<&str>, u16); 7] = [
        (r#"{"conn_id":"C","close_code":4000}"#, None, 4000),
        (r#"{"close_code":4000,"conn_id":"C"}"#, None, 4000),
        (r#"{"conn_id":"C","frame":null,"close_code":4000}"#, None, 4000),
        (r#"{"conn_id":"C","frame":[1],"close_code":4000}"#, Some("[1]"), 4000),
        (r#"{"close_code":1000,"frame":"f","conn_id":"C"}"#, Some("\"f\""), 1000),
        (r#"{"conn_id":"C","frame":[1],"close_code":65535}"#, Some("[1]"), 1011),
        (r#"{"conn_id":"C","close_code":1}"#, None, 1011),
    ];
    for (message, frame, code) in rows {
        let mut phone = Raw::phone(&relay, "id").await;
        let conn_id = meet(&mut binary, &mut phone).await;
        let message = message.replace("\"C\"", &format!("\"{conn_id}\""));
        // What follows the directive reaches nobody.
        let after = masked(TEXT, envelope(&conn_id, "\"late\""));
        binary.send([masked(TEXT, &message), after].concat()).await;
        if let Some(frame) = frame {
            assert_eq!(phone.recv_text().await, frame, "{message}");
        }
        assert_eq!(phone.closed().await, (code, String::new()), "{message}");
        binary.assert_quiet().await;
    }
}

/// Messages that have no effect but that they are counted, and the first of them logged.
const MALFORMED: [&str; 47] = [
    "",
    "not JSON",
    "null",
    "17",
    "\"C\"",
    "[]",
    r#"[{"conn_id":"C","frame":1}]"#,
    "{}",
    r#"{"conn_id":"C"}"#,
    r#"{"conn_id":"C","frame":null}"#,
    r#"{"conn_id":"C","close_code":0}"#,
    r#"{"conn_id":"C","frame":null,"close_code":0}"#,
    r#"{"conn_id":"C","frame":1,"close_code":-1}"#,
    r#"{"conn_id":"C","frame":1,"close_code":65536}"#,
    r#"{"conn_id":"C","frame":1,"close_code":99999999999999999999}"#,
    r#"{"conn_id":"C","frame":1,"close_code":1.0}"#,
    r#"{"conn_id":"C","frame":1,"close_code":4e3}"#,
    r#"{"conn_id":"C","frame":1,"close_code":"4000"}"#,
    r#"{"conn_id":"C","frame":1,"close_code":true}"#,
    r#"{"conn_id":"C","frame":1,"close_code":[]}"#,
    r#"{"conn_id":"C","frame":1,"close_code":04000}"#,
    r#"{"conn_id":17,"frame":1}"#,
    r#"{"conn_id":["C"],"frame":1}"#,
    r#"{"conn_id":{"C":1},"frame":1}"#,
    r#"{"conn_id":true,"frame":1}"#,
    r#"{"frame":1}"#,
    r#"{"conn_id":"","frame":1}"#,
    r#"{"conn_id":null,"frame":1}"#,
    r#"{"conn_id":"C","frame":1"#,
    r#"{"conn_id":"C","frame":1}}"#,
    r#"{"conn_id":"C","frame":1,}"#,
    r#"{"conn_id":"C","frame":01}"#,
    r#"{"conn_id":"C","frame":}"#,
    r#"{"conn_id":"C","frame":{]}"#,
    r#"{"conn_id":"C","frame":1,"x":tru}"#,
    r#"{'conn_id':'C','frame':1}"#,
    r#"{"conn_id":"C" "frame":1}"#,
    r#"{"push_wake":17}"#,
    r#"{"push_wake":{"platform":"fcm"}}"#,
    r#"{"conn_id":7,"conn_id":"C","frame":1}"#,
    r#"{"conn_id":"C","conn_id":null,"frame":1}"#,
    r#"{"conn_id":"C","frame":1,"frame":null}"#,
    r#"{"conn_id":"C","frame":1,"close_code":"4000","close_code":4000}"#,
    r#"{"conn_id":"C","frame":1,"close_code":-0}"#,
    r#"{"conn_id":"C","frame":1,"close_code":4000.0}"#,
    r#"{"conn_id":"C","frame":1}{"conn_id":"C","frame":1}"#,
    "[{\"conn_id\":\"C\",\"frame\":1}]\n",
];

#[tokio::test]
async fn a_bad_envelope_is_logged_or_counted_and_has_no_other_effect() {
    let mut relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    for message in MALFORMED {
        let message = message.replace("\"C\"", &format!("\"{conn_id}\""));
        binary.send(masked(TEXT, &message)).await;
        assert_next(&mut binary, &mut phone, &conn_id).await;
    }
    // A binary message that is not UTF-8.
    binary.send(masked(BINARY, b"{\"conn_id\":\"\xff\",\"frame\":1}")).await;
    assert_next(&mut binary, &mut phone, &conn_id).await;
    let told = times_told(&mut relay, "binary_forwarder_bad_envelope").await;
    assert_eq!(told, MALFORMED.len() + 1);
}

/// How often the event has happened, by the log of a relay that is asked to stop.
async fn times_told(relay: &mut Relay, event: &str) -> usize {
    relay.signal(Signal::Term);
    let exit = relay.wait_exit(2 * SOON).await;
    let lines = exit.stderr.lines().map(LogLine::parse);
    lines.filter(|line| line.event() == event).map(|line| line.times()).sum()
}

#[tokio::test]
async fn a_flood_of_bad_envelopes_costs_nobody_the_connection() {
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    let (mut other, mut stranger, stranger_id) = pair(&relay, "other").await;
    binary.send(masked(TEXT, "{").repeat(3000)).await;
    assert_next(&mut binary, &mut phone, &conn_id).await;
    assert_next(&mut other, &mut stranger, &stranger_id).await;
    binary.assert_quiet().await;
}

#[tokio::test]
async fn nothing_of_a_message_gets_into_the_log() {
    let relay = Relay::start(&["--log-level", "trace"]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    for message in [
        "s3cret",
        "\"s3cret\nevent=s3cret\"",
        r#"{"s3cret":1}"#,
        r#"{"conn_id":"s3cret","frame":"s3cret"}"#,
        r#"{"conn_id":"C","frame":"s3cret","close_code":"s3cret"}"#,
        r#"{"conn_id":"C","frame":"s3cret","s3cret":s3cret}"#,
        r#"{"conn_id":"C","frame":"s3cret"}"#,
        r#"{"push_wake":"s3cret"}"#,
    ] {
        binary.send(masked(TEXT, message.replace("\"C\"", &format!("\"{conn_id}\"")))).await;
    }
    assert_eq!(phone.recv_text().await, "\"s3cret\"");
    phone.send([masked(TEXT, "\"s3cret\""), masked(TEXT, "s3cret")].concat()).await;
    assert_eq!(phone.closed().await.0, 1000);
    relay.wait_for_log("phone_sent_no_json").await;
    assert_eq!(binary.recv_text().await, envelope(&conn_id, "\"s3cret\""));
    assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1001));
    assert!(!relay.stderr().contains("s3cret"), "{}", relay.stderr());
}

#[tokio::test]
async fn an_envelope_to_nobody_is_logged_and_dropped() {
    // One worker, so that nothing but the name keeps the phones apart.
    let mut relay = Relay::start(&["--workers", "1"]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    let (mut other, mut stranger, stranger_id) = pair(&relay, "other").await;
    let mut gone = Raw::phone(&relay, "id").await;
    let gone_id = meet(&mut binary, &mut gone).await;
    gone.send(close_frame(1000, "")).await;
    assert_eq!(gone.recv_close().await.0, 1000);
    gone.assert_ended().await;
    drop(gone);
    assert_eq!(binary.recv_text().await, close_notice(&gone_id, 1000));
    // Whatever the one that is gone has left, one of these takes it.
    let mut heirs = Vec::new();
    for _ in 0..4 {
        let mut heir = Raw::phone(&relay, "id").await;
        meet(&mut binary, &mut heir).await;
        heirs.push(heir);
    }
    let mut nobodies = vec![
        "nobody".to_owned(),
        "00000000000000000000000000000000".to_owned(),
        stranger_id.clone(),
        gone_id,
        conn_id[1..].to_owned(),
        format!("{conn_id}0"),
        conn_id.to_uppercase(),
        "9".repeat(100_000),
    ];
    for at in 0..conn_id.len() {
        let wrong = if conn_id[at..].starts_with('0') { "1" } else { "0" };
        nobodies.push(format!("{}{wrong}{}", &conn_id[..at], &conn_id[at + 1..]));
    }
    nobodies.retain(|nobody| *nobody != conn_id);
    for nobody in &nobodies {
        binary.send(masked(TEXT, envelope(nobody, "\"for nobody\""))).await;
        binary.send(masked(TEXT, close_directive(nobody, 4000))).await;
        assert_next(&mut binary, &mut phone, &conn_id).await;
    }
    for heir in &mut heirs {
        heir.assert_quiet().await;
    }
    // No binary reaches another id's phones.
    assert_next(&mut other, &mut stranger, &stranger_id).await;
    stranger.assert_quiet().await;
    let told = times_told(&mut relay, "binary_forwarder_unknown_conn_id").await;
    assert_eq!(told, 2 * nobodies.len());
}

#[tokio::test]
async fn a_wake_request_goes_nowhere_while_push_is_off() {
    let relay = Relay::start(&["--log-level", "trace"]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    for message in [
        r#"{"push_wake":{"platform":"fcm","token":"s3cret"}}"#,
        r#"{"conn_id":"","push_wake":{"token":"s3cret","platform":"fcm"}}"#,
        r#"{"conn_id":null,"push_wake":{"platform":"fcm","token":"s3cret","x":1},"frame":1}"#,
    ] {
        binary.send(masked(TEXT, message)).await;
        assert_next(&mut binary, &mut phone, &conn_id).await;
    }
    binary.assert_quiet().await;
    let logs = relay.logs();
    assert!(logs.iter().filter(|line| line.raw.contains("push_wake")).count() <= 3);
    assert!(!relay.stderr().contains("s3cret"));
    assert!(!relay.stderr().contains("bad_envelope"));
}

#[tokio::test]
async fn a_wake_request_beside_a_conn_id_is_an_unknown_field() {
    let relay = Relay::start(&[]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    let wake = r#""push_wake":{"platform":"fcm","token":"t"}"#;
    binary.send(masked(TEXT, format!(r#"{{"conn_id":"{conn_id}",{wake}}}"#))).await;
    relay.wait_for_log("binary_forwarder_bad_envelope").await;
    binary
        .send(masked(TEXT, format!(r#"{{{wake},"conn_id":"{conn_id}","close_code":4000}}"#)))
        .await;
    assert_eq!(phone.closed().await.0, 4000);
    binary.assert_quiet().await;
}

#[tokio::test]
async fn frames_of_the_binary_arrive_at_each_phone_in_their_order_and_only_there() {
    let relay = Relay::start(&[]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut phones = Vec::new();
    for _ in 0..16 {
        let mut phone = Raw::phone(&relay, "id").await;
        let conn_id = meet(&mut binary, &mut phone).await;
        phones.push((phone, conn_id));
    }
    let mut stream = Vec::new();
    for number in 0..1600 {
        let (_, conn_id) = &phones[number % 16];
        stream.extend(masked(TEXT, envelope(conn_id, &format!("[{},{number}]", number % 16))));
    }
    binary.send(stream).await;
    for (index, (phone, _)) in phones.iter_mut().enumerate() {
        for number in (index..1600).step_by(16) {
            assert_eq!(phone.recv_text().await, format!("[{index},{number}]"));
        }
        phone.assert_quiet().await;
    }
}

#[tokio::test]
async fn ordinary_clients_talk_through_it() {
    let relay = Relay::start(&[]).await;
    let mut binary = Binary::connect(&relay, "id").await;
    let mut phone = Phone::connect(&relay, "id").await;
    phone.send_text(" {\"ask\": 1} ").await;
    let (conn_id, frame) = open_envelope(&binary.recv_text().await);
    assert_eq!(frame, "{\"ask\": 1}");
    binary.send_text(envelope(&conn_id, "{\"answer\": 2}")).await;
    assert_eq!(phone.recv_text().await, "{\"answer\": 2}");
    phone.close(1000).await;
    assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1000));
}
