//! Bytes in any split over records and packets, and the way of a connection to another worker.

use rustls::version::TLS13;

use super::common::{
    BINARY, CONTINUATION, Hostile, PING, PONG, Raw, Relay, Request, TEXT, envelope, masked,
    open_envelope,
};
use super::{doors, json_of, leave, meet};

/// One record for each part.
fn seal_each(raw: &mut Raw, parts: &[&[u8]]) -> Vec<Vec<u8>> {
    parts.iter().map(|part| raw.seal(part)).collect()
}

#[tokio::test]
async fn head_and_frames_may_be_split_anywhere() {
    let relay = Relay::start_tls(&[]).await;
    for door in doors(&relay) {
        let pings: Vec<u8> = ["1", "2", "3"].into_iter().flat_map(|n| masked(PING, n)).collect();
        let said = [Request::server("any").bytes(), pings].concat();
        let check = async |mut raw: Raw, what: String| {
            assert_eq!(raw.response().await.status, 101, "{what}");
            for expected in [b"1", b"2", b"3"] {
                let frame = raw.frame().await;
                assert_eq!(
                    (frame.opcode, frame.payload.as_slice()),
                    (PONG, &expected[..]),
                    "{what}"
                );
            }
            raw.close(1000).await;
        };
        for at in (1..said.len()).step_by(7) {
            let (a, b) = said.split_at(at);
            // Two records in one packet.
            let mut raw = Raw::through(&door).await;
            let records = seal_each(&mut raw, &[a, b]);
            raw.send_past_tls(records.concat()).await;
            check(raw, format!("records at {at}")).await;
            // One record in two packets.
            let mut raw = Raw::through(&door).await;
            let record = raw.seal(&said);
            let (a, b) = record.split_at(at);
            raw.send_past_tls(a).await;
            raw.send_past_tls(b).await;
            check(raw, format!("packets at {at}")).await;
        }
        // Every byte in a record of its own: all in one packet, and each in many.
        let bytes: Vec<&[u8]> = said.chunks(1).collect();
        let mut raw = Raw::through(&door).await;
        let records = seal_each(&mut raw, &bytes);
        raw.send_past_tls(records.concat()).await;
        check(raw, "a record for each byte".to_owned()).await;
        let mut raw = Raw::through(&door).await;
        let records = seal_each(&mut raw, &bytes);
        for byte in records.concat() {
            raw.send_past_tls([byte]).await;
        }
        check(raw, "byte by byte".to_owned()).await;
        // The handshake's last bytes and the request in one packet.
        let mut socket = tokio::net::TcpStream::connect(relay.addr()).await.unwrap();
        let mut client = door.tls.as_ref().unwrap().client();
        shake_and_say(&mut socket, &mut client, &said).await;
    }
}

/// Shakes hands, and says `said` in the same packet as the last of the handshake.
async fn shake_and_say(
    socket: &mut tokio::net::TcpStream,
    client: &mut rustls::ClientConnection,
    said: &[u8],
) {
    use std::io::{Read as _, Write as _};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    client.writer().write_all(said).unwrap();
    let mut answer = Vec::new();
    while !answer.windows(4).any(|four| four == b"\r\n\r\n") {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        socket.write_all(&bytes).await.unwrap();
        let mut read = Vec::with_capacity(16_384);
        let count = super::common::soon("an answer", socket.read_buf(&mut read)).await.unwrap();
        assert!(count > 0, "the end");
        let mut read = &read[..];
        while !read.is_empty() {
            client.read_tls(&mut read).unwrap();
            client.process_new_packets().unwrap();
        }
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = client.reader().read(&mut chunk) {
            answer.extend_from_slice(&chunk[..count]);
        }
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", answer.escape_ascii());
}

#[tokio::test]
async fn messages_of_every_size_pass_in_order_both_ways() {
    const SIZES: [usize; 14] = [
        1, 2, 125, 126, 1000, 2047, 16_383, 16_384, 16_385, 32_768, 65_535, 65_536, 200_000,
        262_144,
    ];
    let relay = Relay::start_tls(&[]).await;
    for door in doors(&relay) {
        // Large records, and small ones: a frame in thousands of records.
        for fragment in [None, Some(64)] {
            let door = door.with(|config| config.max_fragment_size = fragment);
            let mut binary = Raw::through(&door).await.upgrade(Request::server("id")).await;
            let mut phone = Raw::through(&door).await.upgrade(Request::client("id")).await;
            let conn_id = meet(&mut binary, &mut phone).await;
            let message = |size: usize| if size < 3 { "7".repeat(size) } else { json_of(size) };
            let up = async |phone: &mut Raw| {
                for (number, size) in SIZES.into_iter().enumerate() {
                    let opcode = if number % 2 == 0 { TEXT } else { BINARY };
                    phone.send(masked(opcode, message(size))).await;
                }
            };
            let came_up = async |binary: &mut Raw| {
                for size in SIZES {
                    let (_, frame) = open_envelope(&binary.recv_text().await);
                    assert!(frame == message(size), "{size}");
                }
            };
            tokio::join!(up(&mut phone), came_up(&mut binary));
            // The whole envelope is the message that must not be longer.
            let around = envelope(&conn_id, "").len();
            let most = |size: usize| size.min(262_144 - around);
            let down = async |binary: &mut Raw| {
                for size in SIZES {
                    binary.send(masked(TEXT, envelope(&conn_id, &message(most(size))))).await;
                }
            };
            let came_down = async |phone: &mut Raw| {
                for size in SIZES {
                    assert!(phone.recv_text().await == message(most(size)), "{size}");
                }
            };
            tokio::join!(down(&mut binary), came_down(&mut phone));
            phone.send(masked(TEXT, json_of(262_145))).await;
            assert_eq!(phone.recv_close().await.0, 1009);
            leave(binary).await;
            relay.wait_for_counts(0, 0).await;
        }
    }
}

#[tokio::test]
async fn many_frames_fit_one_record() {
    let relay = Relay::start_tls(&[]).await;
    for door in doors(&relay) {
        let mut binary = Raw::through(&door).await.upgrade(Request::server("id")).await;
        let mut phone = Raw::through(&door).await.upgrade(Request::client("id")).await;
        let frames: Vec<u8> = (0..1500).flat_map(|n| masked(TEXT, n.to_string())).collect();
        let record = phone.seal(&frames);
        phone.send_past_tls(&record).await;
        for number in 0..1500 {
            assert_eq!(open_envelope(&binary.recv_text().await).1, number.to_string());
        }
        // A message in fragments, a fragment in records, a ping amid all of it.
        let parts = [
            Hostile::new(TEXT, "[1,").more().bytes(),
            masked(PING, "amid"),
            masked(CONTINUATION, "2]"),
        ]
        .concat();
        let records = seal_each(&mut phone, &parts.chunks(5).collect::<Vec<_>>());
        phone.send_past_tls(records.concat()).await;
        assert_eq!(phone.frame().await.payload, b"amid");
        assert_eq!(open_envelope(&binary.recv_text().await).1, "[1,2]");
        binary.close(1000).await;
    }
}

#[tokio::test]
async fn nothing_is_lost_on_the_way_to_another_worker() {
    let relay = Relay::start_tls(&["--workers", "4"]).await;
    let second = masked(TEXT, "2");
    let long = masked(TEXT, json_of(40_000));
    for number in 0..64 {
        let door = doors(&relay)[number % 2].clone();
        let id = format!("id-{number}");
        // Behind the head in its record.
        let mut binary = Raw::through(&door).await;
        binary.send([Request::server(&id).bytes(), masked(PING, &id)].concat()).await;
        assert_eq!(binary.response().await.status, 101);
        assert_eq!(binary.frame().await.payload, id.as_bytes());
        // In the head's record, in others of its packet, and in the rest of a record that was only
        // begun when the connection moved.
        let mut phone = Raw::through(&door).await;
        let head = Request::client(&id).bytes();
        let first = [&head[..], &masked(TEXT, "1"), &second[..3]].concat();
        let records =
            seal_each(&mut phone, &[&first, &second[3..], &masked(TEXT, "3"), &long]).concat();
        let at = match number % 4 {
            0 => records.len(),
            1 => records.len() - 1 - number * 500,
            2 => records.len() - 40_000 - number,
            _ => records.len() - 40_100 + number,
        };
        phone.send_past_tls(&records[..at]).await;
        if number % 8 > 3 {
            // The rest comes when the new worker has the connection for certain.
            if number % 4 < 3 {
                assert_eq!(phone.response().await.status, 101);
            }
        }
        phone.send_past_tls(&records[at..]).await;
        if number % 8 <= 3 || number % 4 == 3 {
            assert_eq!(phone.response().await.status, 101);
        }
        for expected in ["1", "2", "3", &json_of(40_000)] {
            assert!(open_envelope(&binary.recv_text().await).1 == expected, "{id}: {expected}");
        }
        phone.assert_quiet().await;
        binary.assert_quiet().await;
    }
}

#[tokio::test]
async fn answers_that_were_asked_for_first_come_first() {
    let relay = Relay::start_tls(&["--workers", "4"]).await;
    for number in 0..24 {
        let id = format!("id-{number}");
        let healthy = Request::get("/healthz").bytes();
        let said = [&healthy[..], &healthy, &Request::server(&id).bytes(), &masked(PING, "x")];
        for records in [false, true] {
            let mut raw = Raw::through(&relay.door()).await;
            match records {
                false => raw.send(said.concat()).await,
                true => {
                    let records = seal_each(&mut raw, &said);
                    raw.send_past_tls(records.concat()).await;
                }
            }
            for status in [200, 200, 101] {
                assert_eq!(raw.response().await.status, status);
            }
            assert_eq!(raw.frame().await.payload, b"x");
            raw.close(1000).await;
        }
    }
}

#[tokio::test]
async fn keys_may_be_changed_at_any_time() {
    let relay = Relay::start_tls(&["--workers", "2"]).await;
    let door = relay.door().speaking(&TLS13, &[]);
    for number in 0..6 {
        let id = format!("id {number}");
        let mut binary = Raw::through(&door).await.upgrade(Request::server(&id)).await;
        let mut phone = Raw::through(&door).await;
        // Before the head, and so before the connection moves.
        phone.tls().refresh_traffic_keys().unwrap();
        let mut phone = phone.upgrade(Request::client(&id)).await;
        let conn_id = meet(&mut binary, &mut phone).await;
        for round in 0..100 {
            let frame = round.to_string();
            // In the same packet as a message, ahead of it and behind it.
            phone.tls().refresh_traffic_keys().unwrap();
            phone.send(masked(TEXT, &frame)).await;
            assert_eq!(open_envelope(&binary.recv_text().await).1, frame);
            if round % 10 == 0 {
                binary.tls().refresh_traffic_keys().unwrap();
            }
            binary.send(masked(TEXT, envelope(&conn_id, &frame))).await;
            assert_eq!(phone.recv_text().await, frame);
        }
        // Half of such a message, and nothing for a while: what the relay has to say goes on.
        phone.tls().refresh_traffic_keys().unwrap();
        let update = phone.sealed();
        phone.send_past_tls(&update[..10]).await;
        binary.send(masked(TEXT, envelope(&conn_id, "\"meanwhile\""))).await;
        assert_eq!(phone.recv_text().await, "\"meanwhile\"");
        phone.send_past_tls(&update[10..]).await;
        binary.send(masked(TEXT, envelope(&conn_id, "\"afterwards\""))).await;
        assert_eq!(phone.recv_text().await, "\"afterwards\"");
        phone.assert_quiet().await;
    }
}
