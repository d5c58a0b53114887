//! Workers over real sockets give all that they have to others, or go on with it.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use pyrycode_relay::worker::{Mail, ProxyHeaders};
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::unbounded_channel;

use crate::common::{
    CLOSE, Door, End, Raw, Request, SOON, TEXT, close_directive, envelope, masked, open_envelope,
    soon, wait_until,
};
use crate::fleet::{Fleet, Plan};
use crate::flow::Flow;

/// Messages of each flow between two takeovers.
const BETWEEN: u64 = 60;

/// The ways to reach a fleet.
fn doors(fleet: &Fleet) -> Vec<Door> {
    match fleet.door() {
        door if door.tls.is_none() => vec![door],
        door => vec![door.speaking(&TLS12, &[]), door.speaking(&TLS13, &[])],
    }
}

fn plans(workers: usize) -> [Plan; 2] {
    [Plan::plain(workers), Plan::tls(workers)]
}

async fn flows(fleet: &Fleet) -> Vec<Flow> {
    let doors = doors(fleet);
    let mut flows = Vec::new();
    for number in 0..6 {
        flows.push(Flow::start(&doors[number % doors.len()], &format!("flow-{number}")).await);
    }
    flows
}

/// Each flow goes on for a while.
async fn go_on(flows: &[Flow]) {
    let goals: Vec<u64> = flows.iter().map(|flow| flow.answered() + BETWEEN).collect();
    wait_until("all flows go on", 3 * SOON, async || {
        flows.iter().zip(&goals).all(|(flow, goal)| flow.answered() >= *goal)
    })
    .await;
}

async fn pair(door: &Door, id: &str) -> (Raw, Raw) {
    let binary = Raw::through(door).await.upgrade(Request::server(id)).await;
    let phone = Raw::through(door).await.upgrade(Request::client(id)).await;
    (binary, phone)
}

/// A JSON string of so many bytes.
fn json_of(length: usize) -> String {
    format!("\"{}\"", "j".repeat(length - 2))
}

/// Both say something to each other.
async fn talk(binary: &mut Raw, phone: &mut Raw) -> String {
    phone.send(masked(TEXT, "\"hello\"")).await;
    let (conn_id, hello) = open_envelope(&binary.recv_text().await);
    assert_eq!(hello, "\"hello\"");
    binary.send(masked(TEXT, envelope(&conn_id, "\"and you\""))).await;
    assert_eq!(phone.recv_text().await, "\"and you\"");
    conn_id
}

#[tokio::test]
async fn who_goes_on_after_all_has_lost_nothing() {
    for plan in plans(2) {
        let fleet = Fleet::start(plan);
        let flows = flows(&fleet).await;
        for _ in 0..8 {
            go_on(&flows).await;
            let given = fleet.give_out().await;
            assert_eq!((given.connections(), given.left_out), (12, 0));
            fleet.resume();
        }
        go_on(&flows).await;
        for flow in flows {
            flow.finish().await;
        }
        fleet.shut_down().await;
    }
}

#[tokio::test]
async fn others_go_on_with_everything_however_many_they_are() {
    for plan in plans(2) {
        let mut fleet = Fleet::start(plan.clone());
        let flows = flows(&fleet).await;
        for workers in [2, 1, 3, 2, 2, 1] {
            go_on(&flows).await;
            fleet = fleet.succeeded_by(plan.with_workers(workers)).await;
        }
        go_on(&flows).await;
        for flow in flows {
            flow.finish().await;
        }
        fleet.shut_down().await;
    }
}

/// Dials, says something and leaves, again and again, while workers give to others what they have,
/// connections on their way from one to another included.
#[tokio::test]
async fn who_dials_meanwhile_is_served() {
    for plan in plans(3) {
        dial_meanwhile(plan).await;
    }
}

async fn dial_meanwhile(plan: Plan) {
    let mut fleet = Fleet::start(plan);
    let (door, stop) = (fleet.door(), Arc::new(AtomicBool::new(false)));
    let served = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            let (door, stop, served) = (door.clone(), stop.clone(), served.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let number = served.fetch_add(1, Ordering::Relaxed);
                    let (mut binary, mut phone) =
                        pair(&door, &format!("caller-{caller}-{number}")).await;
                    talk(&mut binary, &mut phone).await;
                    phone.close(1000).await;
                }
            })
        })
        .collect();
    for workers in [3, 2, 4, 1, 3, 3] {
        let before = served.load(Ordering::Relaxed);
        wait_until("they dial", SOON, async || served.load(Ordering::Relaxed) > before + 8).await;
        if workers == fleet.plan.workers {
            fleet.give_out().await;
            fleet.resume();
        }
        let plan = fleet.plan.with_workers(workers);
        fleet = fleet.succeeded_by(plan).await;
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        soon("a caller's end", caller).await.unwrap();
    }
    fleet.shut_down().await;
}

/// What the kernel does not take waits: in the core, and over TLS encrypted.
#[tokio::test]
async fn what_a_peer_does_not_read_waits_for_it() {
    const MESSAGES: usize = 60;
    let text = |number| format!("\"{number}-{}\"", "x".repeat(100_000));
    for plan in plans(1) {
        let mut fleet = Fleet::start(plan.clone());
        let mut peers = Vec::new();
        for (number, door) in doors(&fleet).iter().enumerate() {
            let (mut binary, mut phone) = pair(door, &format!("stalled-{number}")).await;
            talk(&mut binary, &mut phone).await;
            // More than all kernels on the way hold, and than the relay does. The binary reads nothing.
            let all: Vec<u8> =
                (0..MESSAGES).flat_map(|number| masked(TEXT, text(number))).collect();
            let sent = phone.send_until_stuck(&all, Duration::from_millis(300)).await;
            assert!(sent < all.len(), "all is taken");
            peers.push((binary, phone, all[sent..].to_vec()));
        }
        for _ in 0..2 {
            fleet.give_out().await;
            fleet.resume();
            fleet = fleet.succeeded_by(plan.clone()).await;
        }
        for (binary, phone, rest) in &mut peers {
            let send = phone.send(rest.as_slice());
            let receive = async {
                for number in 0..MESSAGES {
                    let (_, frame) = open_envelope(&binary.recv_text().await);
                    assert!(frame == text(number), "message {number}: {}", &frame[..20]);
                }
            };
            tokio::join!(send, receive);
            talk(binary, phone).await;
        }
        drop(peers);
        fleet.shut_down().await;
    }
}

/// What is over a connection's share of a turn waits in receive buffers, and over TLS opened; and the
/// end of the stream waits behind it.
#[tokio::test]
async fn a_flood_goes_on_where_it_was_read_to() {
    const MESSAGES: usize = 5000;
    let flood: Vec<u8> = (0..MESSAGES).flat_map(|n| masked(TEXT, n.to_string())).collect();
    for plan in plans(1) {
        let mut fleet = Fleet::start(plan.clone());
        let (mut tries, mut waited) = (0, 0);
        while waited < 4 {
            tries += 1;
            assert!(tries < 200, "nothing waits: {waited}");
            let doors = doors(&fleet);
            let door = &doors[tries / 2 % doors.len()];
            let (mut binary, mut phone) = pair(door, &format!("flood-{tries}")).await;
            if plan.tls.is_some() {
                // Records that fit a small buffer, or they would be read whole.
                let records = flood.chunks(1800).flat_map(|part| phone.seal(part));
                let records = records.collect::<Vec<u8>>();
                phone.send_past_tls(records).await;
            } else {
                phone.send(flood.as_slice()).await;
            }
            phone.finish().await;
            let given = fleet.give_out().await;
            let (opened, received) = given.waiting();
            if tries % 2 == 0 {
                fleet.resume();
            } else {
                let waits = if plan.tls.is_some() { opened } else { received };
                waited += usize::from(waits > 0);
                fleet = fleet.left_to(given, plan.clone()).await;
            }
            for number in 0..MESSAGES {
                assert_eq!(open_envelope(&binary.recv_text().await).1, number.to_string());
            }
            assert!(binary.recv_text().await.contains("close_code"));
        }
        fleet.shut_down().await;
    }
}

#[tokio::test]
async fn what_has_come_by_half_is_taken_in_with_its_other_half() {
    for plan in plans(2) {
        let mut fleet = Fleet::start(plan.clone());
        for door in doors(&fleet) {
            let (mut binary, mut phone) = pair(&door, "half").await;
            let conn_id = talk(&mut binary, &mut phone).await;
            let down = masked(TEXT, envelope(&conn_id, &json_of(200_000)));
            let up = masked(TEXT, json_of(256 * 1024));
            let head = Request::client("half").bytes();
            for part in [1, 2, 7, 100] {
                let mut newcomer = Raw::through(&door).await;
                newcomer.send(&head[..head.len() * part / 101]).await;
                let (at, of) = (up.len() * part / 101, down.len() * part / 101);
                phone.send(&up[..at]).await;
                binary.send(&down[..of]).await;
                fleet = fleet.succeeded_by(plan.clone()).await;
                newcomer.send(&head[head.len() * part / 101..]).await;
                assert_eq!(newcomer.response().await.status, 101);
                phone.send(&up[at..]).await;
                binary.send(&down[of..]).await;
                assert_eq!(open_envelope(&binary.recv_text().await).1, json_of(256 * 1024));
                assert_eq!(phone.recv_text().await, json_of(200_000));
                newcomer.close(1000).await;
                assert!(binary.recv_text().await.contains("close_code"));
            }
        }
        fleet.shut_down().await;
    }
}

#[tokio::test]
async fn a_record_of_tls_may_be_split_anywhere() {
    let mut fleet = Fleet::start(Plan::tls(1));
    let plan = fleet.plan.clone();
    for door in doors(&fleet) {
        let (mut binary, mut phone) = pair(&door, "split").await;
        talk(&mut binary, &mut phone).await;
        for at in [1, 4, 5, 6, 40, 5000] {
            let record = phone.seal(masked(TEXT, json_of(9000)));
            phone.send_past_tls(&record[..at]).await;
            fleet = fleet.succeeded_by(plan.clone()).await;
            phone.send_past_tls(&record[at..]).await;
            assert_eq!(open_envelope(&binary.recv_text().await).1, json_of(9000));
        }
        talk(&mut binary, &mut phone).await;
    }
    fleet.shut_down().await;
}

/// A PROXY v2 header for TCP over IPv4, from 192.0.2.1:5 to 192.0.2.2:443.
const PROXY_HEADER: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\0\x05\x01\xbb";

#[tokio::test]
async fn who_has_said_nothing_or_half_a_proxy_header_goes_on() {
    for plan in plans(1) {
        for header in [&b""[..], PROXY_HEADER] {
            let mut plan = plan.clone();
            if !header.is_empty() {
                plan.proxy_headers = ProxyHeaders::Always;
            }
            let mut fleet = Fleet::start(plan.clone());
            let mut newcomers = Vec::new();
            for at in [0, 1, 13, 20, 28] {
                let (said, rest) = header.split_at(at.min(header.len()));
                let mut tcp = TcpStream::connect(fleet.addr).await.unwrap();
                tcp.write_all(said).await.unwrap();
                newcomers.push((tcp, rest));
            }
            for _ in 0..2 {
                let given = fleet.give_out().await;
                assert_eq!(given.left_out, 0);
                fleet.resume();
                fleet = fleet.succeeded_by(plan.clone()).await;
            }
            let doors = doors(&fleet);
            for (number, (mut tcp, rest)) in newcomers.into_iter().enumerate() {
                tcp.write_all(rest).await.unwrap();
                let mut stream = doors[number % doors.len()].enter(tcp).await.unwrap();
                let request = Request::server(format!("new-{number}"));
                stream.write_all(&request.bytes()).await.unwrap();
                let mut answer = vec![0; 12];
                soon("an answer", stream.read_exact(&mut answer)).await.unwrap();
                assert_eq!(answer, b"HTTP/1.1 101");
            }
            fleet.shut_down().await;
        }
    }
}

/// The one thing that cannot be given to another.
#[tokio::test]
async fn who_is_amid_a_handshake_goes_on_or_ends() {
    let fleet = Fleet::start(Plan::tls(1));
    let mut others = Vec::new();
    for (number, door) in doors(&fleet).iter().enumerate() {
        let tls = door.tls.clone().unwrap();
        let (mut raw, mut client) = (Raw::connect_to(fleet.addr).await, tls.client());
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        raw.send(hello).await;
        let flight = raw.some().await;
        client.read_tls(&mut flight.as_slice()).unwrap();
        client.process_new_packets().unwrap();
        let given = fleet.give_out().await;
        assert_eq!((given.left_out, given.connections()), (1, number));
        fleet.resume();
        raw.shake_by_bytes(&mut client).await;
        client.writer().write_all(&Request::server(format!("id-{number}")).bytes()).unwrap();
        let mut request = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut request).unwrap();
        }
        raw.send(request).await;
        assert!(!raw.some().await.is_empty());
        others.push(raw);
    }
    let mut raw = Raw::connect_to(fleet.addr).await;
    raw.send(doors(&fleet)[1].hello()).await;
    raw.some().await;
    let given = fleet.give_out().await;
    assert_eq!(given.left_out, 1);
    let plan = fleet.plan.clone();
    let fleet = fleet.left_to(given, plan).await;
    assert_eq!(raw.rest().await.1, End::Reset);
    drop(others);
    fleet.shut_down().await;
}

#[tokio::test]
async fn who_dials_while_all_is_still_waits_and_is_served() {
    for goes_on in [true, false] {
        let mut fleet = Fleet::start(Plan::plain(3));
        let door = fleet.door();
        let given = fleet.give_out().await;
        let mut waiting = Vec::new();
        for number in 0..12 {
            let mut raw = Raw::through(&door).await;
            raw.send(Request::server(format!("waits-{number}"))).await;
            waiting.push(raw);
        }
        if goes_on {
            fleet.resume();
        } else {
            fleet = fleet.left_to(given, Plan::plain(1)).await;
        }
        for raw in &mut waiting {
            assert_eq!(raw.response().await.status, 101);
        }
        drop(waiting);
        fleet.shut_down().await;
    }
}

/// Nothing is done but what the takeover needs.
#[tokio::test]
async fn who_is_still_reads_nothing_and_acts_on_no_other_mail() {
    let fleet = Fleet::start(Plan::plain(1));
    let (mut binary, mut phone) = pair(&fleet.door(), "still").await;
    talk(&mut binary, &mut phone).await;
    let mut given = fleet.give_out().await;
    phone.send(masked(TEXT, "\"anyone?\"")).await;
    let (told, mut described) = unbounded_channel();
    fleet.tell(|| Mail::Describe { first: 0, done: told.clone() });
    let (done, mut census) = unbounded_channel();
    fleet.tell(|| Mail::Census(done.clone()));
    soon("a census", census.recv()).await.unwrap();
    assert!(described.try_recv().is_err());
    assert_eq!(given.states()[0].connections.len(), 2);
    fleet.resume();
    assert_eq!(open_envelope(&binary.recv_text().await).1, "\"anyone?\"");
    assert_eq!(soon("a description", described.recv()).await.unwrap().accounts.len(), 2);
    drop((binary, phone));
    fleet.shut_down().await;
}

#[tokio::test]
async fn what_cannot_go_on_is_refused_and_the_first_goes_on() {
    let fleet = Fleet::start(Plan::tls(2));
    let door = fleet.door();
    let (mut binary, mut phone) = pair(&door, "stays").await;
    talk(&mut binary, &mut phone).await;
    // No TLS there; no memory; and one that would, but is not asked to.
    let why = fleet.give_out().await.taken_in(Plan::plain(2)).err().unwrap();
    assert!(why.contains("TLS"), "{why}");
    fleet.resume();
    talk(&mut binary, &mut phone).await;
    let mut given = fleet.give_out().await;
    for state in given.states() {
        for connection in &mut state.connections {
            let tls = connection.link.tls.as_mut().unwrap();
            tls.partial.0 = vec![23; 100_000];
        }
    }
    let why = given.taken_in(fleet.plan.clone()).err().unwrap();
    assert!(why.contains("TLS"), "{why}");
    fleet.resume();
    talk(&mut binary, &mut phone).await;
    let heir = fleet.give_out().await.taken_in(fleet.plan.clone()).unwrap();
    heir.give_up().await;
    fleet.resume();
    talk(&mut binary, &mut phone).await;
    drop((binary, phone));
    fleet.shut_down().await;
}

#[tokio::test]
async fn a_close_under_way_goes_on() {
    for plan in plans(1) {
        let mut fleet = Fleet::start(plan.clone());
        for door in doors(&fleet) {
            let (mut binary, mut phone) = pair(&door, "closing").await;
            let conn_id = talk(&mut binary, &mut phone).await;
            binary.send(masked(TEXT, close_directive(&conn_id, 4401))).await;
            let close = phone.frame().await;
            assert_eq!(close.close().0, 4401);
            fleet = fleet.succeeded_by(plan.clone()).await;
            phone.send(masked(CLOSE, &close.payload)).await;
            assert_eq!(phone.assert_ended().await, End::Fin);
            binary.close(1000).await;
        }
        fleet.shut_down().await;
    }
}
