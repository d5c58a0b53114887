//! The core under virtual time: no socket, no thread, no clock.

mod handover;

use super::connection::Stage;
use super::timers::{Millis, NEVER};
use super::verify::{Verdict, Verification};
use super::{Action, Key, Owners, Relay, Settings, Whom};
use crate::config::{ByteRate, Limits, LogFormat, OnFailure, Verify};
use crate::metrics::{Metrics, Series};
use crate::protocol::close::Close;
use crate::protocol::frames;
use crate::protocol::ids::ServerId;
use crate::shared::admission::{Admission, AdmissionLimits, Proxies};
use crate::shared::budget::SharedBudget;
use crate::telemetry::tests::logged;
use crate::telemetry::{Remote, repeats};
use std::collections::HashMap;
use std::sync::Arc;

const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// One worker with its peers. What the relay writes is taken at once, except from the peers that
/// are told not to read.
struct World {
    relay: Relay,
    budget: Arc<SharedBudget>,
    metrics: Arc<Metrics>,
    now: Millis,
    received: HashMap<Key, Vec<u8>>,
    /// How many bytes a peer still takes; unlimited if it is not here.
    appetite: HashMap<Key, usize>,
    /// Bytes that the kernel holds for a peer; none if it is not here.
    unsent: HashMap<Key, usize>,
    ended: Vec<Key>,
    finished: Vec<Key>,
    moved: Vec<(Key, usize, Vec<u8>)>,
    /// Workers that were asked to shed.
    asked: Vec<usize>,
    /// Claims that are to be verified.
    questions: Vec<Verification>,
}

impl World {
    fn new() -> Self {
        Self::with(Limits::default(), 64 * 1024 * 1024, 1)
    }

    /// `budget_bytes` is the budget beside the headrooms.
    fn with(limits: Limits, budget_bytes: u64, workers: usize) -> Self {
        let event_bytes = 512 * 1024;
        let headrooms = 2 * event_bytes * workers as u64;
        let limit_bytes = budget_bytes + if workers > 1 { headrooms } else { event_bytes };
        let budget = SharedBudget::for_events_of(event_bytes, limit_bytes, workers);
        Self::of_worker(0, limits, budget, workers)
    }

    fn of_worker(worker: usize, limits: Limits, budget: Arc<SharedBudget>, workers: usize) -> Self {
        let metrics = Metrics::new(workers);
        let relay = Relay::new(Settings {
            worker,
            owners: Owners::new([1, 2, 3, 4], workers),
            domain: None,
            limits,
            budget: budget.clone(),
            admission: Admission::new(AdmissionLimits::NONE, Proxies::default(), [1, 2, 3, 4]),
            metrics: metrics.clone(),
            seed: [7 + worker as u8; 32],
            push: true,
        });
        let nothing = (HashMap::new(), HashMap::new(), HashMap::new());
        let (received, appetite, unsent) = nothing;
        let (ended, finished, moved, asked) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self {
            relay,
            budget,
            metrics,
            now: 0,
            received,
            appetite,
            unsent,
            ended,
            finished,
            moved,
            asked,
            questions: Vec::new(),
        }
    }

    fn connect(&mut self) -> Key {
        let key = self.relay.accept(self.now, Remote("192.0.2.1:5".parse().unwrap()));
        self.received.insert(key, Vec::new());
        key
    }

    fn upgrade(&mut self, path: &str, id: &str) -> Key {
        let key = self.connect();
        self.bytes(key, head(path, id).as_bytes());
        let received = self.received.get_mut(&key).unwrap();
        let end = received.windows(4).position(|four| four == b"\r\n\r\n").expect("a 101") + 4;
        let answer = String::from_utf8(received.drain(..end).collect()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        key
    }

    fn binary(&mut self, id: &str) -> Key {
        self.upgrade("/v1/server", id)
    }

    fn phone(&mut self, id: &str) -> Key {
        self.upgrade("/v1/client", id)
    }

    fn bytes(&mut self, key: Key, bytes: &[u8]) {
        self.relay.on_bytes(self.now, key, &mut bytes.to_vec(), &mut { u32::MAX });
        self.settle();
    }

    fn send(&mut self, key: Key, opcode: u8, payload: &[u8]) {
        self.bytes(key, &masked(opcode, payload));
    }

    fn text(&mut self, key: Key, text: &str) {
        self.send(key, 1, text.as_bytes());
    }

    fn end(&mut self, key: Key) {
        self.relay.on_end(self.now, key, true);
        self.settle();
    }

    /// Lets time pass, deadline by deadline.
    fn pass(&mut self, ms: Millis) {
        let end = self.now + ms;
        while let Some(wake) = self.relay.next_wake_ms().filter(|wake| *wake <= end) {
            self.now = self.now.max(wake);
            self.relay.on_timers(self.now);
            self.settle();
        }
        self.now = end;
        self.relay.on_timers(end);
        self.settle();
    }

    /// Carries out what the relay asks for, until it asks for nothing more.
    fn settle(&mut self) {
        loop {
            let mut actions = Vec::new();
            self.relay.take_actions(&mut actions);
            if actions.is_empty() {
                break;
            }
            for action in actions {
                match action {
                    Action::Write(key) => self.write(key),
                    Action::Abort(key) | Action::Close(key) => {
                        self.ended.push(key);
                        self.relay.release(key);
                    }
                    Action::FinishWriting(key) => self.finished.push(key),
                    Action::CheckUnsent(key) => {
                        let bytes = self.unsent.get(&key).copied().unwrap_or(0);
                        self.relay.on_unsent(self.now, key, bytes);
                    }
                    Action::HandOver { key, worker, hand_over } => {
                        self.relay.release(key);
                        self.moved.push((key, worker, hand_over.unread));
                    }
                    Action::AskToShed(worker) => self.asked.push(worker),
                    Action::Verify(question) => self.questions.push(*question),
                    Action::Read(_) | Action::Wake(_) => {}
                }
            }
        }
        self.relay.check_books().unwrap();
        assert!(self.budget.leased_bytes() <= self.budget.pool_bytes());
    }

    fn write(&mut self, key: Key) {
        let appetite = self.appetite.get_mut(&key);
        if appetite.as_ref().is_some_and(|left| **left == 0) {
            return;
        }
        let Some(write) = self.relay.begin_write(self.now, key) else { return };
        let mut taken = write.to - write.from;
        if let Some(left) = appetite {
            taken = taken.min(*left);
            *left -= taken;
        }
        let bytes = &write.buffer[write.from..write.from + taken];
        self.received.get_mut(&key).unwrap().extend_from_slice(bytes);
        self.relay.on_written(self.now, key, write.buffer, Some(taken));
    }

    /// A peer that did not read reads again.
    fn feed(&mut self, key: Key) {
        self.appetite.remove(&key);
        self.write(key);
        self.settle();
    }

    /// The frames that a peer has received since the last call: opcode and payload.
    fn frames(&mut self, key: Key) -> Vec<(u8, Vec<u8>)> {
        let mut bytes = std::mem::take(self.received.get_mut(&key).unwrap());
        let mut found = Vec::new();
        while let Some((header, payload)) = frames::frame_extent(&bytes) {
            let rest = bytes.split_off(header + payload);
            found.push((bytes[0] & 15, bytes[header..].to_vec()));
            bytes = rest;
        }
        assert!(bytes.is_empty(), "half a frame");
        found
    }

    fn texts(&mut self, key: Key) -> Vec<String> {
        let frames = self.frames(key);
        assert!(frames.iter().all(|(opcode, _)| *opcode == 1), "{frames:?}");
        frames.into_iter().map(|(_, payload)| String::from_utf8(payload).unwrap()).collect()
    }

    /// The one close that a peer has received; nothing may follow it.
    fn closed(&mut self, key: Key) -> (u16, String) {
        let frames = self.frames(key);
        let closes: Vec<_> = frames.iter().filter(|(opcode, _)| *opcode == CLOSE).collect();
        assert_eq!(closes.len(), 1, "{frames:?}");
        let (opcode, payload) = frames.last().unwrap();
        assert_eq!(*opcode, CLOSE, "something followed the close");
        let code = u16::from_be_bytes([payload[0], payload[1]]);
        (code, String::from_utf8(payload[2..].to_vec()).unwrap())
    }

    fn conn_id(&self, phone: Key) -> String {
        match self.relay.connections.find(phone).unwrap().stage {
            Stage::Phone { conn_id, .. } => conn_id.as_str().to_owned(),
            _ => panic!("not a phone"),
        }
    }

    fn counts(&self) -> (u64, u64) {
        (self.metrics.connected_binaries(), self.metrics.connected_phones())
    }
}

fn head(path: &str, id: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         X-Pyrycode-Server: {id}\r\nX-Pyrycode-Version: 1\r\nX-Pyrycode-Token: secret\r\n\
         User-Agent: test\r\n\r\n"
    )
}

fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        length @ 0..=125 => frame.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    let mask = [1, 2, 3, 4];
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

fn pair(code: u16, reason: &str) -> (u16, String) {
    (code, reason.to_owned())
}

#[test]
fn frames_go_both_ways_and_the_binary_learns_of_the_end() {
    let mut world = World::new();
    let (binary, phone) = (world.binary("a"), world.phone("a"));
    let id = world.conn_id(phone);
    world.text(phone, " {\"a\": 1}\n");
    assert_eq!(world.texts(binary), [format!(r#"{{"conn_id":"{id}","frame":{{"a": 1}}}}"#)]);
    world.text(binary, &format!(r#"{{"frame":[2],"conn_id":"{id}"}}"#));
    assert_eq!(world.texts(phone), ["[2]"]);
    world.send(phone, CLOSE, &4321u16.to_be_bytes());
    assert_eq!(world.closed(phone), pair(4321, ""));
    assert_eq!(world.finished, [phone]);
    assert_eq!(world.texts(binary), [format!(r#"{{"conn_id":"{id}","close_code":4321}}"#)]);
    assert_eq!(world.counts(), (1, 0));
}

#[test]
fn a_quiet_peer_that_answers_pings_stays_and_a_silent_one_does_not() {
    let mut world = World::new();
    let (binary, phone) = (world.binary("a"), world.phone("a"));
    for _ in 0..100 {
        world.pass(31_000);
        for (opcode, payload) in world.frames(binary) {
            if opcode == PING {
                world.send(binary, PONG, &payload);
            }
        }
        if world.counts().1 == 0 {
            break;
        }
    }
    assert_eq!(world.closed(phone), pair(1011, "heartbeat timeout"));
    assert!((60_000..63_000).contains(&world.now), "{}", world.now);
    world.pass(600_000);
    assert_eq!(world.counts(), (0, 0), "and then the binary, which was not asked again");
}

#[test]
fn a_pong_that_matches_no_ping_does_not_count() {
    let mut world = World::new();
    let binary = world.binary("a");
    world.pass(31_000);
    let (_, ping) = world.frames(binary).remove(0);
    world.send(binary, PONG, b"nope");
    world.send(binary, PONG, b"");
    let next = (u32::from_be_bytes(ping.try_into().unwrap()) + 1).to_be_bytes();
    world.send(binary, PONG, &next);
    world.pass(30_000);
    assert_eq!(world.closed(binary), pair(1011, "heartbeat timeout"));
}

#[test]
fn grace_runs_out_on_time_and_a_reclaim_leaves_no_stray_timer() {
    let limits = Limits { heartbeat_interval_ms: 1 << 40, ..Limits::default() };
    let mut world = World::with(limits, 64 << 20, 1);
    let (first, old) = (world.binary("a"), world.phone("a"));
    world.end(first);
    world.pass(29_900);
    let second = world.binary("a");
    assert_eq!(world.closed(old), pair(4404, "binary reclaimed server-id"));
    assert_eq!(world.counts(), (1, 0));
    let phone = world.phone("a");
    world.pass(300_000);
    assert_eq!(world.counts(), (1, 1), "the first grace is forgotten");
    world.end(second);
    world.pass(29_900);
    assert!(world.frames(phone).is_empty());
    world.pass(200);
    assert_eq!(world.closed(phone), pair(1000, ""));
    let late = world.phone("a");
    assert_eq!(world.closed(late), pair(4404, "no server with that id"));
    world.pass(10_000);
    assert!(world.relay.registry.is_empty() && world.relay.connections() == 0);
    assert!(world.relay.timers() == 0, "no timer without an owner");
    assert_eq!(world.relay.charged_bytes(), 0);
}

#[test]
fn a_silent_holder_is_taken_over_when_the_probe_is_over() {
    let mut world = World::new();
    let (holder, phone) = (world.binary("a"), world.phone("a"));
    world.pass(1000);
    let newcomer = world.binary("a");
    assert_eq!(world.frames(holder).len(), 1, "one ping");
    world.pass(5000);
    let later = world.binary("a");
    assert!(world.frames(holder).is_empty(), "the same ping serves both");
    world.text(newcomer, r#"{"conn_id":"nobody","frame":1}"#);
    world.pass(5100);
    assert_eq!(world.closed(holder), pair(1011, "heartbeat timeout"));
    assert_eq!(world.closed(phone), pair(4404, "binary reclaimed server-id"));
    assert_eq!(world.closed(later), pair(4409, "server-id already claimed"));
    assert_eq!(world.counts(), (1, 0));
    world.end(holder);
    world.pass(29_000);
    assert_eq!(world.counts(), (1, 0), "a displaced holder starts no grace");
}

#[test]
fn who_sends_many_messages_at_once_has_them_handled_share_by_share() {
    let mut world = World::new();
    let (binary, phone) = (world.binary("a"), world.phone("a"));
    let sent: Vec<String> = (0..10).map(|number| number.to_string()).collect();
    let frames: Vec<Vec<u8>> = sent.iter().map(|text| masked(1, text.as_bytes())).collect();
    let half = frames[0].len() / 2;
    let bytes = frames.concat();
    let mut left = bytes[..bytes.len() - half].to_vec();
    let mut shares = Vec::new();
    while !left.is_empty() {
        let taken = world.relay.on_bytes(world.now, phone, &mut left, &mut { 4 });
        left.drain(..taken);
        world.settle();
        shares.push(world.texts(binary).len());
    }
    assert_eq!(shares, [4, 4, 1], "and half of the last");
    world.bytes(phone, &bytes[bytes.len() - half..]);
    assert!(world.texts(binary)[0].ends_with(r#""frame":9}"#));
}

#[test]
fn fragments_have_their_share_like_messages() {
    let mut world = World::new();
    let (binary, phone) = (world.binary("a"), world.phone("a"));
    let (mut first, mut empty, mut last) = (masked(1, b"1"), masked(0, b""), masked(0, b"2"));
    first[0] = 1;
    empty[0] = 0;
    last[0] = 0x80;
    let mut left = [first, empty.repeat(1000), last].concat();
    let mut turns = 0;
    while !left.is_empty() {
        let mut messages = 100;
        let taken = world.relay.on_bytes(world.now, phone, &mut left, &mut messages);
        assert!(taken <= 100 * empty.len() + 2, "{taken} bytes in one turn");
        left.drain(..taken);
        world.settle();
        turns += 1;
    }
    assert_eq!(turns, 11);
    assert!(world.texts(binary)[0].ends_with(r#""frame":12}"#));
}

#[test]
fn what_a_newcomer_sends_ahead_is_charged_whole_and_bounded_at_once() {
    let mut world = World::new();
    let holder = world.binary("a");
    let newcomer = world.binary("a");
    world.frames(holder);
    assert!(world.relay.wants_read(newcomer));
    let (before, empty) = (world.relay.charged_bytes(), masked(1, b"").repeat(10_000));
    world.bytes(newcomer, &empty);
    assert!(!world.relay.wants_read(newcomer), "empty messages fill it too");
    let charged = world.relay.charged_bytes() - before;
    assert!((40_000..=80_000).contains(&charged), "{charged} bytes, each length 4");
    world.pass(10_100);
    assert_eq!(world.closed(holder), pair(1011, "heartbeat timeout"));
    assert!(world.relay.wants_read(newcomer));
    assert_eq!(world.relay.charged_bytes(), 0);
}

#[test]
fn what_was_sent_ahead_is_read_whole_by_who_has_won() {
    let mut world = World::new();
    let (holder, newcomer) = (world.binary("a"), world.binary("a"));
    for number in 0..3 {
        world.text(newcomer, &format!(r#"{{"conn_id":"nobody","frame":{number}}}"#));
    }
    let unknown = |world: &World| world.metrics.worker(0).get(Series::UnknownConnIds);
    assert_eq!(unknown(&world), 0);
    world.end(holder);
    assert_eq!(unknown(&world), 3);
}

#[test]
fn a_holder_that_cannot_be_told_of_a_phones_end_is_cut() {
    let budget = SharedBudget::for_events_of(10, 4000, 1);
    let mut world = World::of_worker(0, Limits::default(), budget, 1);
    let (binary, hoarder, phone) = (world.binary("a"), world.phone("a"), world.phone("a"));
    let half = &masked(1, &[b' '; 5000])[..1508];
    world.bytes(hoarder, half);
    assert!(world.relay.charged_bytes() > 3000, "{}", world.relay.charged_bytes());
    assert_eq!(world.ended, []);
    world.end(phone);
    assert!(world.ended.contains(&binary), "it believed in a phone that is not there");
    assert_eq!(world.counts(), (0, 1));
}

#[test]
fn at_most_one_ping_of_ours_waits_for_a_holder_that_does_not_read() {
    let mut world = World::new();
    let holder = world.binary("a");
    world.appetite.insert(holder, 0);
    for _ in 0..1000 {
        let newcomer = world.binary("a");
        world.end(newcomer);
    }
    let charged = world.relay.charged_bytes();
    assert!(charged < 100, "{charged} bytes for one ping");
    world.send(holder, PING, b"mine");
    world.feed(holder);
    let frames = world.frames(holder);
    assert_eq!(frames, [(PING, vec![0, 0, 0, 1]), (PONG, b"mine".to_vec())]);
    world.pass(1000);
    let newcomer = world.binary("a");
    assert_eq!(world.frames(holder), [(PING, vec![0, 0, 0, 2])], "each probe is asked anew");
    world.send(holder, PONG, &[0, 0, 0, 2]);
    assert_eq!(world.closed(newcomer).0, 4409);
}

#[test]
fn a_closing_connection_stays_as_long_as_bytes_leave_the_kernel() {
    let mut world = World::new();
    let (_, slow, stuck) = (world.binary("a"), world.phone("a"), world.phone("a"));
    for phone in [slow, stuck] {
        world.unsent.insert(phone, 10_000);
        world.send(phone, CLOSE, &[3, 0xe8]);
    }
    assert_eq!(world.finished, [slow, stuck]);
    for unsent in [8000, 6000, 6000, 6000, 4000, 2000, 1] {
        world.pass(1100);
        world.unsent.insert(slow, unsent);
        assert!(!world.ended.contains(&slow), "{unsent}");
    }
    assert_eq!(world.ended, [stuck], "it had the close timeout");
    world.unsent.insert(slow, 0);
    world.pass(2500);
    assert_eq!(world.ended, [stuck, slow]);
}

#[test]
fn a_phone_that_does_not_read_is_closed_at_four_mebibytes_and_its_sibling_is_not_delayed() {
    let mut world = World::new();
    let (binary, slow, quick) = (world.binary("a"), world.phone("a"), world.phone("a"));
    let (slow_id, quick_id) = (world.conn_id(slow), world.conn_id(quick));
    world.appetite.insert(slow, 10);
    let frame = format!("\"{}\"", "x".repeat(65_470));
    for _ in 0..64 {
        world.text(binary, &format!(r#"{{"conn_id":"{slow_id}","frame":{frame}}}"#));
        world.text(binary, &format!(r#"{{"conn_id":"{quick_id}","frame":{frame}}}"#));
    }
    assert_eq!(world.texts(quick).len(), 64);
    assert_eq!(world.counts(), (1, 2), "exactly 4 MiB are queued");
    world.text(binary, &format!(r#"{{"conn_id":"{slow_id}","frame":1}}"#));
    assert_eq!(world.counts(), (1, 1));
    assert_eq!(world.texts(binary), [format!(r#"{{"conn_id":"{slow_id}","close_code":1001}}"#)]);
    world.feed(slow);
    let frames = world.frames(slow);
    assert_eq!(frames.len(), 2, "the frame that was half sent, then the close");
    assert_eq!(frames[1].1, [&1011u16.to_be_bytes()[..], b"phone backlog full"].concat());
}

#[test]
fn phones_of_a_full_binary_are_not_read_and_pings_still_work() {
    let mut world = World::new();
    let (binary, pushing, quiet) = (world.binary("a"), world.phone("a"), world.phone("a"));
    world.appetite.insert(binary, 0);
    let frame = format!("\"{}\"", "x".repeat(60_000));
    let mut sent = 0;
    while world.relay.wants_read(pushing) {
        world.text(pushing, &frame);
        sent += 1;
        assert!(sent < 100, "the outbox of a binary is bounded");
    }
    assert!(world.relay.wants_read(quiet));
    world.send(quiet, PING, b"still there?");
    assert_eq!(world.frames(quiet), [(PONG, b"still there?".to_vec())]);
    world.feed(binary);
    assert_eq!(world.texts(binary).len(), sent);
    assert!(world.relay.wants_read(pushing));
}

#[test]
fn a_write_without_progress_costs_the_connection() {
    let mut world = World::new();
    let (binary, phone) = (world.binary("a"), world.phone("a"));
    let write = {
        world.appetite.insert(binary, 0);
        world.text(phone, "1");
        world.relay.begin_write(world.now, binary).unwrap()
    };
    world.pass(9_900);
    assert!(world.ended.is_empty());
    world.pass(200);
    assert_eq!(world.ended, [binary]);
    assert_eq!(world.counts(), (0, 1), "and grace has begun");
    drop(write);
}

#[test]
fn the_largest_backlog_goes_first_and_the_budget_holds() {
    let mut world = World::with(Limits::default(), 2 << 20, 1);
    let binary = world.binary("a");
    let phones: Vec<Key> = (0..4).map(|_| world.phone("a")).collect();
    let ids: Vec<String> = phones.iter().map(|phone| world.conn_id(*phone)).collect();
    for phone in &phones {
        world.appetite.insert(*phone, 0);
    }
    let frame = format!("\"{}\"", "x".repeat(100_000));
    for round in 0..12 {
        for (place, id) in ids.iter().enumerate() {
            // The second phone gets twice as much as the others.
            if place == 1 || round % 2 == 0 {
                world.text(binary, &format!(r#"{{"conn_id":"{id}","frame":{frame}}}"#));
            }
        }
    }
    assert_eq!(world.counts(), (1, 3));
    assert!(!world.relay.connections.find(phones[1]).is_some_and(|c| c.is_open()), "the largest");
}

#[test]
fn a_budget_that_is_full_costs_its_hoarder_and_nobody_a_ping() {
    let whole = masked(1, &vec![b' '; 250_000]);
    let hoard = |budget_bytes| {
        let mut world = World::with(Limits::default(), budget_bytes, 1);
        let (quiet, hoarder) = (world.binary("a"), world.phone("a"));
        world.pass(29_000);
        world.bytes(hoarder, &whole[..200_000]);
        (world, quiet, hoarder)
    };
    let hoarded_bytes = hoard(1 << 20).0.relay.charged_bytes();
    let (mut world, quiet, hoarder) = hoard(hoarded_bytes + 60);
    assert!(world.ended.is_empty(), "it fits, and a ping does not");
    world.pass(2000);
    assert!(world.frames(quiet).iter().any(|(opcode, _)| *opcode == PING));
    assert_eq!(world.ended, [hoarder]);
}

#[test]
fn nobody_pays_for_a_connection_that_has_paid_itself() {
    let mut world = World::with(Limits::default(), 64 * 1024, 1);
    let (binary, slow, hoarder) = (world.binary("a"), world.phone("a"), world.phone("a"));
    let id = world.conn_id(slow);
    world.appetite.insert(slow, 0);
    let frame = format!("\"{}\"", "x".repeat(4000));
    world.text(binary, &format!(r#"{{"conn_id":"{id}","frame":{frame}}}"#));
    let message = masked(1, &vec![b' '; 100_000]);
    world.bytes(hoarder, &message[..10_000]);
    world.bytes(hoarder, &message[10_000..72_000]);
    assert_eq!(world.ended, [hoarder]);
    assert!(world.relay.connections.find(slow).is_some_and(|c| c.is_open()));
}

/// An id that this one of two workers owns.
fn id_of(worker: usize) -> String {
    let owners = Owners::new([1, 2, 3, 4], 2);
    let ids = (0..).map(|number| format!("id-{number}"));
    let owner = |id: &str| owners.owner_of(&ServerId::from_header(id.as_bytes()).unwrap());
    ids.into_iter().find(|id| owner(id) == worker).unwrap()
}

#[test]
fn the_largest_backlog_of_the_process_goes_first_whoever_holds_it() {
    let limits = Limits { max_phones: 1000, ..Limits::default() };
    let mut hoarders = World::with(limits, 4 << 20, 2);
    let mut small = World::of_worker(1, limits, hoarders.budget.clone(), 2);
    let (there, here) = (id_of(0), id_of(1));
    hoarders.binary(&there);
    small.binary(&here);
    let half = masked(1, &vec![b' '; 250_000]);
    while hoarders.budget.leased_bytes() + 300_000 < hoarders.budget.pool_bytes() {
        let phone = hoarders.phone(&there);
        hoarders.bytes(phone, &half[..80_000]);
    }
    let there_before = hoarders.counts().1;
    assert!(hoarders.ended.is_empty() && there_before >= 10);
    for number in 1..=60 {
        let phone = small.phone(&here);
        small.bytes(phone, &half[..20_000]);
        assert!(small.ended.is_empty(), "{number}: eight times as much lives elsewhere");
        // The mail takes its time: one request is under way, however many messages come.
        if number % 3 == 0
            && let Some(worker) = small.asked.pop()
        {
            assert_eq!((worker, small.asked.len()), (0, 0));
            hoarders.relay.shed_under_pressure(hoarders.now);
            hoarders.settle();
        }
    }
    assert_eq!(small.counts(), (1, 60));
    assert!(hoarders.counts().1 < there_before, "somebody has paid");
    // All of them larger than any here, but in the reserve.
    assert!(hoarders.counts().1 >= 5, "{:?}", hoarders.counts());
}

#[test]
fn workers_that_have_nothing_to_give_do_not_ask_each_other_without_end() {
    let budget = SharedBudget::for_events_of(20_000, 120_000, 2);
    let mut first = World::of_worker(0, Limits::default(), budget.clone(), 2);
    let mut second = World::of_worker(1, Limits::default(), budget, 2);
    let half = masked(1, &vec![b' '; 60_000]);
    for (number, world) in [&mut first, &mut second].into_iter().enumerate() {
        let id = id_of(number);
        world.binary(&id);
        let phone = world.phone(&id);
        // More than its reserve of 10,000 bytes; both together more than may be leased.
        world.bytes(phone, &half[..10_500]);
    }
    let phone = first.phone(&id_of(0));
    first.bytes(phone, &half[..1000]);
    for _ in 0..10 {
        if first.asked.pop().is_some() {
            second.relay.shed_under_pressure(second.now);
            second.settle();
        }
        if second.asked.pop().is_some() {
            first.relay.shed_under_pressure(first.now);
            first.settle();
        }
    }
    assert_eq!((first.asked.len(), second.asked.len()), (0, 0), "they go on asking");
    assert!(first.ended.is_empty() && second.ended.is_empty(), "neither has to pay");
}

#[test]
fn half_read_messages_are_charged_and_have_a_deadline() {
    let mut world = World::new();
    let (_binary, phone) = (world.binary("a"), world.phone("a"));
    let whole = masked(1, &vec![b' '; 200_000]);
    world.bytes(phone, &whole[..100_000]);
    assert!(world.relay.charged_bytes() >= 99_000);
    for chunk in whole[100_000..100_029].chunks(1) {
        world.pass(1000);
        world.bytes(phone, chunk);
    }
    assert_eq!(world.counts(), (1, 1));
    world.pass(1100);
    assert_eq!(world.counts(), (1, 0), "30 s after its first byte, however it dribbles");
    assert!(world.ended.contains(&phone));
    assert_eq!(world.relay.charged_bytes(), 0);
}

#[test]
fn whose_keys_are_used_up_is_told_once_and_may_come_again() {
    let mut world = World::new();
    let (binary, phone) = (world.binary("a"), world.phone("a"));
    for _ in 0..2 {
        world.relay.on_transport_used_up(world.now, phone);
        world.settle();
    }
    let told = (1001, "TLS keys used up".to_owned());
    assert_eq!(world.closed(phone), told);
    assert!(world.texts(binary)[0].ends_with(r#","close_code":1001}"#));
    let other = world.phone("a");
    world.relay.on_transport_used_up(world.now, binary);
    world.settle();
    assert_eq!(world.closed(binary), told);
    // Its phones wait for it, and its id is its own.
    assert_eq!(world.counts(), (0, 1));
    world.binary("a");
    assert_eq!(world.closed(other).0, 4404);
    // Who has not asked for anything is not concerned.
    let visitor = world.connect();
    world.relay.on_transport_used_up(world.now, visitor);
    world.settle();
    assert!(!world.ended.contains(&visitor));
}

#[test]
fn a_head_has_its_time_and_an_idle_connection_none() {
    let mut world = World::new();
    let (silent, slow) = (world.connect(), world.connect());
    world.pass(4000);
    world.bytes(slow, b"GET / HT");
    world.pass(900);
    assert!(world.ended.is_empty());
    world.pass(200);
    assert_eq!(world.ended, [silent]);
    assert!(world.received[&slow].starts_with(b"HTTP/1.1 408 "));
    world.pass(6000);
    assert_eq!(world.relay.connections(), 0);
}

#[test]
fn heads_that_come_ahead_are_answered_as_fast_as_their_answers_leave() {
    for end in [false, true] {
        let mut world = World::new();
        let peer = world.connect();
        world.appetite.insert(peer, 0);
        let health = head("/healthz", "-").into_bytes();
        let asked = 500;
        let mut all = health.repeat(asked);
        // What is left when reading stops may come in more than one piece, and end in half a head.
        all.truncate(all.len() - 10);
        let (first, second) = all.split_at(all.len() - 1000);
        world.bytes(peer, first);
        assert!(!world.relay.wants_read(peer));
        let connection = world.relay.connections.find(peer).unwrap();
        assert!(connection.outbox.charged() < 17 * 1024, "{}", connection.outbox.charged());
        world.bytes(peer, second);
        if end {
            world.end(peer);
        }
        // A peer that reads slowly is served for longer than a head may take.
        while world.relay.connections.find(peer).is_some_and(|c| c.paused) {
            world.pass(9000);
            world.appetite.insert(peer, 4000);
            world.write(peer);
            world.settle();
        }
        world.feed(peer);
        let received = world.received.remove(&peer).unwrap();
        let text = String::from_utf8(received).unwrap();
        assert_eq!(text.matches("HTTP/1.1 200 OK").count(), asked - 1);
        assert_eq!(world.ended.contains(&peer), end);
        if !end {
            world.received.insert(peer, Vec::new());
            world.bytes(peer, &health[health.len() - 10..]);
            let text = String::from_utf8(world.received.remove(&peer).unwrap()).unwrap();
            assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 1);
        }
    }
    // Who does not read is not served for ever.
    let mut world = World::new();
    let peer = world.connect();
    world.appetite.insert(peer, 100);
    world.bytes(peer, &head("/healthz", "-").into_bytes().repeat(100));
    let _write = world.relay.begin_write(0, peer).unwrap();
    world.pass(9_900);
    assert!(world.ended.is_empty());
    world.pass(200);
    assert_eq!(world.ended, [peer]);
}

#[test]
fn who_is_to_be_handed_over_has_its_time_for_that() {
    let mut world = World::with(Limits::default(), 64 * 1024 * 1024, 2);
    let id = (0..).map(|n| format!("id-{n}")).find(|id| {
        world.relay.owners.owner_of(&ServerId::from_header(id.as_bytes()).unwrap()) == 1
    });
    let handing_over = |world: &mut World| {
        let peer = world.connect();
        world.appetite.insert(peer, 10);
        world.pass(4000);
        let requests = head("/healthz", "-") + &head("/v1/server", id.as_ref().unwrap());
        world.bytes(peer, requests.as_bytes());
        assert!(matches!(world.relay.connections.find(peer).unwrap().stage, Stage::HandingOver(_)));
        peer
    };
    let [slow, stuck] = [(); 2].map(|()| handing_over(&mut world));
    world.pass(900);
    world.feed(slow);
    assert_eq!(world.moved.len(), 1);
    world.pass(4000);
    assert!(world.ended.is_empty());
    world.pass(200);
    assert_eq!(world.ended, [stuck]);
}

#[test]
fn those_who_wait_for_their_upgrade_are_no_more_than_there_is_room_for() {
    let mut world = World::new();
    let limits = AdmissionLimits { max_visitors: 3, ..AdmissionLimits::NONE };
    world.relay.admission.set(limits);
    let binary = world.binary("id");
    let [refused, served, silent] = [(); 3].map(|()| world.connect());
    world.bytes(refused, b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n");
    world.bytes(served, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(world.ended.is_empty());
    // Who was answered and has not gone still has its socket.
    world.connect();
    world.settle();
    assert_eq!(world.ended, [refused]);
    world.end(served);
    let phone = world.phone("id");
    world.connect();
    world.settle();
    assert_eq!(world.ended, [refused, served], "who has gone, or is upgraded, is not counted");
    world.connect();
    world.settle();
    assert_eq!(world.ended, [refused, served, silent]);
    assert_eq!(world.relay.visitors.len(), 3);
    assert!(world.relay.is_open(binary) && world.relay.is_open(phone));
}

#[test]
fn the_wrong_worker_hands_over_everything_that_it_has_read() {
    let mut world = World::with(Limits::default(), 64 << 20, 2);
    let owners = Owners::new([1, 2, 3, 4], 2);
    let foreign = (0..)
        .map(|n| format!("id-{n}"))
        .find(|id| owners.owner_of(&ServerId::from_header(id.as_bytes()).unwrap()) == 1);
    let key = world.connect();
    let request = head("/v1/client", &foreign.unwrap());
    let first = masked(1, b"[1]");
    world.bytes(key, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n");
    world.bytes(key, &request.as_bytes()[..50]);
    world.bytes(key, &[&request.as_bytes()[50..], &first].concat());
    assert_eq!(world.moved, [(key, 1, first)]);
    assert_eq!(world.relay.connections(), 0);
    assert_eq!(world.relay.charged_bytes(), 0);
    assert!(world.relay.timers() == 0);
}

#[test]
fn shutting_down_tells_everyone_once_and_waits_behind_no_outbox() {
    let mut world = World::new();
    let (binary, phone) = (world.binary("a"), world.phone("a"));
    let waiting = world.connect();
    let id = world.conn_id(phone);
    world.appetite.insert(phone, 3);
    for _ in 0..50 {
        world.text(binary, &format!(r#"{{"conn_id":"{id}","frame":"{}"}}"#, "x".repeat(9000)));
    }
    world.text(binary, &format!(r#"{{"conn_id":"{id}","close_code":4000}}"#));
    world.relay.shut_down(world.now);
    world.settle();
    assert_eq!(world.ended, [waiting]);
    assert_eq!(world.closed(binary), pair(1001, "shutting down"));
    world.feed(phone);
    let frames = world.frames(phone);
    assert_eq!(frames.len(), 2, "the frame that was half sent, then the first reason");
    assert_eq!(frames[1], (CLOSE, 4000u16.to_be_bytes().to_vec()));
    world.pass(6000);
    assert_eq!(world.relay.connections(), 0);
}

#[test]
fn a_frame_goes_to_a_phone_of_the_senders_own_id_or_nowhere() {
    let mut world = World::new();
    let (ours, _theirs) = (world.binary("ours"), world.binary("theirs"));
    let (mine, other) = (world.phone("ours"), world.phone("theirs"));
    let (mine_id, other_id) = (world.conn_id(mine), world.conn_id(other));
    world.text(ours, &format!(r#"{{"conn_id":"{other_id}","frame":1}}"#));
    world.text(ours, &format!(r#"{{"conn_id":"{other_id}","close_code":1000}}"#));
    world.text(ours, "no JSON");
    world.text(ours, &format!(r#"{{"conn_id":"{mine_id}","frame":2}}"#));
    assert!(world.texts(other).is_empty());
    assert_eq!(world.texts(mine), ["2"]);
}

#[test]
fn a_peer_that_cannot_be_understood_may_still_answer_our_close() {
    let mut world = World::new();
    let (binary, silent, polite) = (world.binary("a"), world.phone("a"), world.phone("a"));
    for phone in [silent, polite] {
        world.send(phone, 3, b"");
        assert_eq!(world.closed(phone), pair(1002, ""));
    }
    assert!(world.finished.is_empty(), "they have their time to answer");
    world.send(polite, CLOSE, &[3, 0xea]);
    assert_eq!(world.finished, [polite]);
    world.pass(Limits::default().close_timeout_ms + 10);
    world.ended.sort();
    assert_eq!(world.ended, [silent, polite]);
    assert!(world.texts(binary).iter().all(|notice| notice.ends_with(r#""close_code":1001}"#)));
}

#[test]
fn a_ping_amid_the_fragments_of_a_message_does_not_give_it_more_time() {
    let mut world = World::new();
    let (_, phone) = (world.binary("a"), world.phone("a"));
    world.bytes(phone, &[0x01, 0x81, 0, 0, 0, 0, b'"']);
    let half = Limits::default().message_timeout_ms / 2;
    world.pass(half);
    world.send(phone, PING, b"");
    world.pass(half + 10);
    assert_eq!(world.ended, [phone]);
}

#[test]
fn a_101_behind_an_answer_that_the_kernel_still_has_is_not_dropped() {
    let mut world = World::new();
    let binary = world.binary("id");
    let phone = world.connect();
    world.appetite.insert(phone, 0);
    world.bytes(phone, b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n");
    let write = world.relay.begin_write(world.now, phone).unwrap();
    let health = write.buffer.clone();
    let no_json = masked(1, b"no JSON");
    world.bytes(phone, &[head("/v1/client", "id").as_bytes(), &no_json].concat());
    world.relay.on_written(world.now, phone, write.buffer, Some(health.len()));
    world.feed(phone);
    let received = world.received.get_mut(&phone).unwrap();
    let end = received.windows(4).position(|four| four == b"\r\n\r\n").expect("a 101") + 4;
    let answer = String::from_utf8(received.drain(..end).collect()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert_eq!(world.closed(phone), pair(1000, ""));
    assert_eq!(world.texts(binary).len(), 1, "the close notice");
}

/// A flood costs lines when it begins, and then one a minute that says how much there was: on the
/// next ping, whether or not the flood goes on.
#[test]
fn what_a_binary_does_wrong_over_and_over_is_counted_and_told() {
    let limits = Limits { heartbeat_timeout_ms: 1 << 40, ..Limits::default() };
    let interval = limits.heartbeat_interval_ms;
    let mut world = World::with(limits, 1 << 26, 1);
    let (flooder, other) = (world.binary("flood"), world.binary("other"));
    let flood = masked(1, b"no envelope").repeat(1000);
    let lines = |world: &mut World, does: &dyn Fn(&mut World)| {
        let text = logged(LogFormat::Text, || does(world));
        text.lines().map(|line| line.split_once(" event=").unwrap().1.to_owned()).collect()
    };
    let begins: Vec<String> = lines(&mut world, &|world| {
        world.bytes(flooder, &flood);
        world.text(other, "no envelope");
    });
    assert_eq!(begins.len(), 6, "{begins:?}");
    assert!(begins[5].contains("server_id=other"), "{begins:?}");
    let goes_on: Vec<String> = lines(&mut world, &|world| {
        for _ in 0..600 {
            world.bytes(flooder, &flood);
            world.pass(1000);
        }
    });
    assert!((8..=10).contains(&goes_on.len()), "{goes_on:?}");
    assert!(goes_on[0].ends_with("more like these were counted, not logged\""), "{goes_on:?}");
    let stops: Vec<String> =
        lines(&mut world, &|world| world.pass(repeats::TOLD_EVERY_MS + 2 * interval));
    assert_eq!(stops.len(), 1, "{stops:?}");
    let told = |lines: &[String]| -> u64 {
        let counts = lines.iter().filter_map(|line| line.split_once("err=\"")?.1.split_once(' '));
        counts.map(|(count, _)| count.parse::<u64>().unwrap()).sum()
    };
    assert_eq!(5 + told(&goes_on) + told(&stops), 601_000);
    let quiet: Vec<String> = lines(&mut world, &|world| world.pass(10 * repeats::TOLD_EVERY_MS));
    assert_eq!(quiet, Vec::<String>::new());
    // What was not told yet is, when there is no more time for it.
    world.bytes(flooder, &flood);
    let ends: Vec<String> = lines(&mut world, &|world| world.relay.shut_down(world.now));
    assert!(ends.iter().any(|line| line.contains("err=\"995 more like these")), "{ends:?}");
}

#[test]
fn a_broken_invariant_is_counted_and_logged_and_an_assertion_in_debug_builds() {
    let mut world = World::new();
    let alive = world.connect();
    let log = logged(LogFormat::Json, || {
        let released = std::panic::AssertUnwindSafe(|| world.relay.release(alive));
        assert_eq!(std::panic::catch_unwind(released).is_err(), cfg!(debug_assertions));
    });
    assert!(log.contains(r#""event":"invariant_broken""#), "{log}");
    assert_eq!(world.metrics.worker(0).get(Series::InvariantsBroken), 1);
}

#[test]
fn who_is_named_late_is_known_by_that_name() {
    let mut world = World::new();
    let [first, second] = [(); 2].map(|()| world.connect());
    let remote = Remote("198.51.100.7:9".parse().unwrap());
    world.relay.set_remote(first, remote);
    assert_eq!(world.relay.connections.find(first).unwrap().remote, remote);
    // Of an address that has most of them, the oldest goes first: now it is another's.
    let limits = AdmissionLimits { max_visitors: 2, ..AdmissionLimits::NONE };
    world.relay.admission.set(limits);
    world.connect();
    world.settle();
    assert_eq!(world.ended, [second]);
}

#[test]
fn a_connection_is_open_from_its_upgrade_to_its_end() {
    let mut world = World::new();
    let key = world.connect();
    assert!(!world.relay.is_open(key) && world.relay.wants_read(key));
    world.bytes(key, head("/v1/server", "a").as_bytes());
    assert!(world.relay.is_open(key));
    assert_eq!(world.relay.connections(), 1);
    world.end(key);
    assert!(!world.relay.is_open(key) && !world.relay.wants_read(key));
    assert!(!world.relay.is_open(Key(99)) && !world.relay.wants_read(Key(99)));
}

#[test]
fn every_worker_owns_some_ids_and_always_the_same() {
    let owners = Owners::new([1, 2, 3, 4], 4);
    let owner = |number| {
        owners.owner_of(&ServerId::from_header(format!("id-{number}").as_bytes()).unwrap())
    };
    let mut owned = [0; 4];
    for number in 0..400 {
        owned[owner(number)] += 1;
        assert_eq!(owner(number), owner(number));
    }
    assert!(owned.iter().all(|count| *count > 50), "{owned:?}");
}

#[test]
fn ids_of_one_worker_spread_over_its_map() {
    let world = World::with(Limits::default(), 64 << 20, 4);
    let owners = Owners::new([1, 2, 3, 4], 4);
    let ids = (0..8000).map(|number| ServerId::from_header(format!("id-{number}").as_bytes()));
    let own: Vec<ServerId> = ids.flatten().filter(|id| owners.owner_of(id) == 0).collect();
    assert!(own.len() > 1500, "{}", own.len());
    // By the owners' seeds they agree in the last two bits, which choose a place in a map; a map of
    // another seed has about as many of each.
    let mut of_each = [0; 4];
    for id in &own {
        of_each[(world.relay.registry.hash_of(id) % 4) as usize] += 1;
    }
    assert!(of_each.iter().all(|count| count * 5 > own.len()), "{of_each:?}");
}

#[test]
fn what_a_peer_owes_is_due_anew_once_it_is_read_again() {
    let mut world = World::new();
    let peer = world.binary("a");
    let limits = Limits::default();
    let connection = world.relay.connections.held_mut(peer).unwrap();
    (connection.due.pong, connection.due.message) = (5, 7);
    connection.resume_deadlines(1000, &limits);
    let anew = (1000 + limits.heartbeat_timeout_ms, 1000 + limits.message_timeout_ms);
    assert_eq!((connection.due.pong, connection.due.message), anew);
    // What is not owed stays so, and no deadline comes earlier.
    (connection.due.pong, connection.due.message) = (NEVER, 1 << 40);
    connection.resume_deadlines(1000, &limits);
    assert_eq!((connection.due.pong, connection.due.message), (NEVER, 1 << 40));
}

// ---- what an operator wants

#[test]
fn whoever_is_sent_away_leaves_nothing_behind() {
    let mut world = World::new();
    let mut peers = Vec::new();
    for number in 0..5 {
        let id = format!("id {number}");
        peers.extend([world.binary(&id), world.phone(&id)]);
    }
    // In grace, claimed by another who sends ahead, half read, and with a backlog.
    let lost = world.binary("lost");
    peers.push(world.phone("lost"));
    world.end(lost);
    let newcomer = world.binary("id 0");
    world.text(newcomer, "{\"ahead\":1}");
    let message = masked(1, b"\"half a message\"");
    world.bytes(peers[1], &message[..9]);
    world.appetite.insert(peers[2], 0);
    world.text(peers[3], "[1]");
    peers.push(newcomer);

    let (mut slot, mut server_ids, mut connections) = (0, 0, 0);
    for _ in 0..3 {
        let sent = world.relay.send_away(world.now, (slot, 2), Close::SERVICE_RESTART);
        world.settle();
        assert!(sent.server_ids <= 2);
        (slot, server_ids) = (sent.next, server_ids + sent.server_ids);
        connections += sent.connections;
    }
    assert_eq!((server_ids, connections, world.relay.server_ids()), (6, 12, 0));
    world.feed(peers[2]);
    world.bytes(peers[1], &message[9..]);
    for peer in peers {
        assert_eq!(world.closed(peer), (1012, "service restart".to_owned()));
        world.send(peer, CLOSE, &1012_u16.to_be_bytes());
        world.end(peer);
    }
    assert_eq!((world.relay.connections(), world.relay.charged_bytes()), (0, 0));
    assert_eq!(world.relay.timers(), 0);
    assert_eq!(world.metrics.connected_binaries() + world.metrics.connected_phones(), 0);
    // The slots are used anew.
    world.binary("id 0");
    let sent = world.relay.send_away(world.now, (0, 9), Close::SHUTTING_DOWN);
    assert_eq!((sent.server_ids, sent.left, sent.next), (1, 0, 0));
}

#[test]
fn a_call_looks_at_some_connections_only_and_says_where_to_go_on() {
    let limits = Limits { max_phones: 1000, ..Limits::default() };
    let mut world = World::with(limits, 64 * 1024 * 1024, 1);
    world.binary("id");
    for _ in 0..600 {
        world.phone("id");
    }
    let (mut from, mut calls, mut described) = (Some(0), 0, 0);
    while let Some(first) = from {
        let some = world.relay.describe(world.now, first);
        assert!(some.accounts.len() <= 256);
        (from, calls, described) = (some.next, calls + 1, described + some.accounts.len());
    }
    assert!(calls >= 3, "{calls}");
    assert_eq!(described, 601);
    let whom = Whom::ServerId("id".to_owned());
    let ended = world.relay.disconnect(world.now, 0, &whom, (4000, "enough"));
    world.settle();
    assert_eq!(ended.connections, 256);
    let other = Whom::ServerId("i".to_owned());
    assert_eq!(world.relay.disconnect(world.now, 256, &other, (4000, "")).connections, 0);
}

#[test]
fn the_round_trip_of_the_last_ping_is_told_and_what_came_and_went() {
    let mut world = World::new();
    let (binary, phone) = (world.binary("id"), world.phone("id"));
    world.text(phone, "12345");
    let of = |world: &World, key: Key| {
        let all = world.relay.describe(world.now, 0).accounts;
        let state = if key == phone { "phone" } else { "binary" };
        all.into_iter().find(|account| account.state == state).unwrap()
    };
    assert_eq!(of(&world, phone).round_trip_ms, None);
    let account = of(&world, phone);
    assert_eq!((account.traffic.messages_in, account.traffic.bytes_in), (1, 5));
    let account = of(&world, binary);
    assert_eq!((account.traffic.messages_out, account.traffic.messages_in), (1, 0));
    world.frames(phone);
    world.pass(30_500);
    let pings = world.frames(phone);
    let (opcode, number) = pings.last().unwrap();
    assert_eq!(*opcode, PING);
    world.pass(70);
    world.send(phone, PONG, number);
    let told = of(&world, phone).round_trip_ms.unwrap();
    assert!((70..=600).contains(&told), "{told}");
    assert_eq!(of(&world, phone).age_s, 30);
}

#[test]
fn a_connection_takes_little_memory_by_itself() {
    let bytes = size_of::<super::connection::Connection>();
    assert!(bytes <= 344, "{bytes} bytes");
}

#[test]
fn an_answer_to_our_close_ends_it_at_once_whether_the_peer_is_understood_or_not() {
    for is_understood in [true, false] {
        let mut world = World::new();
        let [answers, silent] = [world.binary("a"), world.binary("b")];
        for key in [answers, silent] {
            if is_understood {
                world.relay.close_now(world.now, key, Close::NORMAL, None);
                world.settle();
            } else {
                // A frame of the server's, which a peer may not send.
                world.bytes(key, &[0x81, 0]);
            }
            world.frames(key);
        }
        world.bytes(answers, &masked(CLOSE, &1000_u16.to_be_bytes()));
        assert_eq!(world.finished, [answers]);
        // What comes then is thrown away.
        world.bytes(answers, b"anything at all");
        assert!(world.frames(answers).is_empty());
    }
}

#[test]
fn connections_are_described_by_what_they_are() {
    let mut world = World::new();
    world.binary("mine");
    world.phone("mine");
    world.connect();
    world.pass(3000);
    let described = world.relay.describe(world.now, 0);
    let states: Vec<_> = described.accounts.iter().map(|account| account.state).collect();
    assert_eq!((states, described.next), (vec!["binary", "phone", "head"], None));
    let ids = described.accounts.iter().map(|a| a.server_id.as_ref().map(ServerId::as_str));
    assert_eq!(ids.collect::<Vec<_>>(), [Some("mine"), Some("mine"), None]);
    assert!(described.accounts.iter().all(|account| account.age_s == 3));
}

// ---- What a server-id may send in a time

fn rated(bytes_per_s: u64, burst_bytes: u64) -> Limits {
    let server_id_rate = Some(ByteRate { bytes_per_s, burst_bytes });
    Limits { server_id_rate, ..Limits::default() }
}

#[test]
fn over_its_rate_a_server_id_waits_and_nobody_is_closed() {
    let mut world = World::with(rated(10_000, 20_000), 64 * 1024 * 1024, 1);
    let (binary, phone) = (world.binary("a"), world.phone("a"));
    let (other_binary, other_phone) = (world.binary("b"), world.phone("b"));
    let text = format!("\"{}\"", "x".repeat(990));
    let mut sent = 0;
    // A minute of a phone that sends whenever it is read, by what its rate is.
    while world.now < 60_000 {
        while world.relay.wants_read(phone) {
            world.text(phone, &text);
            sent += 1000;
        }
        assert!(world.relay.wants_read(binary), "it has sent nothing since");
        world.text(other_phone, "1");
        world.text(other_binary, "{}");
        assert!(world.relay.wants_read(other_phone) && world.relay.wants_read(other_binary));
        world.pass(100);
        world.received.get_mut(&binary).unwrap().clear();
    }
    assert!((610_000..=622_000).contains(&sent), "{sent}");
    let slowed = world.metrics.total(Series::Slowed);
    assert!((200..=700).contains(&slowed), "{slowed}");
    assert_eq!(world.counts(), (2, 2));
    // Its binary is charged to the same bucket, and waits in its turn.
    let id = world.conn_id(phone);
    world.text(binary, &format!(r#"{{"conn_id":"{id}","frame":{text}}}"#));
    assert!(!world.relay.wants_read(binary));
    world.pass(500);
    assert!(world.relay.wants_read(binary) && world.relay.wants_read(phone));
}

#[test]
fn what_ends_a_connection_is_charged_with_what_came_before_it() {
    let no_json = masked(1, b"no JSON");
    let unmasked = vec![0x81, 0];
    for end in [masked(CLOSE, &1000_u16.to_be_bytes()), no_json, unmasked] {
        let mut world = World::with(rated(1024, 1024), 64 * 1024 * 1024, 1);
        let (binary, phone) = (world.binary("a"), world.phone("a"));
        let text = format!("\"{}\"", "x".repeat(3000));
        world.bytes(phone, &[masked(1, text.as_bytes()), end].concat());
        assert_eq!(world.counts(), (1, 0), "it has ended");
        // Else whoever ends each time could send as fast as it can connect.
        world.text(binary, "{}");
        assert!(!world.relay.wants_read(binary));
        world.pass(3000);
        assert!(world.relay.wants_read(binary));
    }
}

#[test]
fn time_that_a_peer_was_kept_waiting_is_not_held_against_it() {
    let limits = Limits { heartbeat_interval_ms: 3000, grace_ms: 3_600_000, ..rated(1024, 1024) };
    let mut world = World::with(limits, 64 * 1024 * 1024, 1);
    let (binary, phone) = (world.binary("a"), world.phone("a"));
    let message = masked(1, format!("\"{}\"", "x".repeat(150_000)).as_bytes());
    let (first, rest) = message.split_at(100_000);
    world.bytes(phone, first);
    world.text(binary, "{}");
    // A hundred seconds of its rate: no pong and no rest of its message is heard meanwhile.
    world.pass(90_000);
    assert!(!world.relay.wants_read(phone) && !world.relay.wants_read(binary));
    world.pass(7_000);
    assert!(world.relay.wants_read(phone) && world.relay.wants_read(binary));
    world.bytes(phone, rest);
    world.pass(40_000);
    assert_eq!(world.metrics.total(Series::FramesPhoneToBinary), 1);
    assert_eq!(world.counts().1, 1, "{:?}", world.frames(phone));
    // Once it is read again, it owes its pong.
    world.pass(40_000);
    assert_eq!(world.counts().1, 0);
}

#[test]
fn a_holder_that_must_prove_that_it_lives_is_heard_whatever_its_id_has_sent() {
    let mut world = World::with(rated(1024, 1024), 64 * 1024 * 1024, 1);
    let holder = world.binary("a");
    world.text(holder, &"x".repeat(60_000));
    assert!(!world.relay.wants_read(holder));
    let newcomer = world.upgrade("/v1/server", "a");
    assert!(world.relay.wants_read(holder), "it is asked whether it lives");
    // What is under way from before is no proof against it, however much that is.
    world.bytes(holder, &masked(1, &[b'x'; 60_000])[..50_000]);
    assert!(world.relay.wants_read(holder));
    world.bytes(holder, &masked(1, &[b'x'; 60_000])[50_000..]);
    assert_eq!(world.closed(newcomer), pair(4409, "server-id already claimed"));
    assert!(!world.relay.wants_read(holder), "it has proved it");
    // A newcomer is charged to nobody: its holder does not pay for what strangers send.
    let mut world = World::with(rated(1024, 1024), 64 * 1024 * 1024, 1);
    let holder = world.binary("a");
    let newcomer = world.upgrade("/v1/server", "a");
    world.text(newcomer, &"x".repeat(8_000));
    world.text(holder, "{}");
    assert!(world.relay.wants_read(holder));
}

#[test]
fn a_rate_that_was_lifted_is_felt_within_a_second_and_backlogs_still_hold() {
    let mut world = World::with(rated(1024, 1024), 64 * 1024 * 1024, 1);
    let (binary, phone) = (world.binary("a"), world.phone("a"));
    world.appetite.insert(binary, 0);
    let text = format!("\"{}\"", "x".repeat(150_000));
    (0..10).for_each(|_| world.text(phone, &text));
    world.relay.set_limits(Limits::default());
    world.pass(1000);
    assert!(!world.relay.wants_read(phone), "its binary's outbox is full");
    world.feed(binary);
    assert!(world.relay.wants_read(phone));
    // The other way round: the backlog is gone, and the rate still holds.
    world.relay.set_limits(rated(1024, 1024));
    world.appetite.insert(binary, 0);
    (0..10).for_each(|_| world.text(phone, &text));
    world.feed(binary);
    assert!(!world.relay.wants_read(phone));
    world.relay.set_limits(Limits::default());
    world.pass(1000);
    assert!(world.relay.wants_read(phone));
}

// ---- Claims that somebody is asked about

fn verified(on_failure: OnFailure) -> Limits {
    let verify = Verify { is_on: true, timeout_ms: 3000, on_failure };
    Limits { verify, ..Limits::default() }
}

fn status(world: &World, key: Key) -> String {
    let answer = String::from_utf8_lossy(&world.received[&key]);
    answer.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn a_claim_waits_for_its_verdict_with_all_that_came_behind_it() {
    let mut world = World::with(verified(OnFailure::Deny), 64 * 1024 * 1024, 1);
    let binary = world.connect();
    let mut bytes = head("/v1/server", "a").into_bytes();
    bytes.extend(masked(PING, b"early"));
    world.bytes(binary, &bytes);
    assert!(!world.relay.wants_read(binary) && status(&world, binary).is_empty());
    assert!(world.relay.charged_bytes() >= 11);
    assert_eq!(world.relay.admission.live(), 0, "it has no place yet");
    let question = world.questions.pop().unwrap();
    assert_eq!(question.server_id.as_str(), "a");
    assert_eq!(question.address.to_string(), "192.0.2.1");
    // Phones are not asked about: without a binary there is nothing for them.
    let phone = world.phone("a");
    assert_eq!(world.closed(phone), pair(4404, "no server with that id"));
    assert!(world.questions.is_empty());
    world.relay.on_verdict(world.now, question.ticket, Verdict::Allowed);
    world.settle();
    assert!(status(&world, binary).starts_with("HTTP/1.1 101 "));
    assert!(world.received[&binary].ends_with(b"\x8a\x05early"));
    assert!(world.relay.wants_read(binary));
    // The phone, which is closing, has a place as well.
    assert_eq!((world.counts(), world.relay.admission.live()), ((1, 0), 2));
    // It was told once, and what is told later means nothing.
    world.relay.on_verdict(world.now, question.ticket, Verdict::Denied);
    world.settle();
    assert_eq!(world.counts(), (1, 0));
    assert_eq!(world.metrics.total(Series::VerifiedAllowed), 1);
}

#[test]
fn a_claim_is_refused_by_its_verdict_and_by_the_rule_where_there_is_none() {
    let turned_away = |verdict: Option<Verdict>, on_failure| {
        let mut world = World::with(verified(on_failure), 64 * 1024 * 1024, 1);
        let binary = world.connect();
        world.bytes(binary, head("/v1/server", "a").as_bytes());
        let question = world.questions.pop().unwrap();
        match verdict {
            Some(verdict) => world.relay.on_verdict(world.now, question.ticket, verdict),
            None => {
                world.pass(2999);
                assert!(status(&world, binary).is_empty());
                world.pass(2);
            }
        }
        world.settle();
        let answer = status(&world, binary);
        assert_eq!(world.relay.admission.live() as u64, world.counts().0);
        assert!(world.relay.wants_read(binary), "its end is to be heard");
        assert_eq!(world.relay.check_books(), Ok(()));
        answer
    };
    let (denied, later) = ("HTTP/1.1 403 Forbidden", "HTTP/1.1 503 Service Unavailable");
    for rule in [OnFailure::Allow, OnFailure::Deny] {
        assert_eq!(turned_away(Some(Verdict::Denied), rule), denied);
        assert_eq!(turned_away(Some(Verdict::TooMany), rule), later);
    }
    for verdict in [Some(Verdict::NoAnswer), None] {
        assert_eq!(turned_away(verdict, OnFailure::Deny), later);
        assert!(turned_away(verdict, OnFailure::Allow).starts_with("HTTP/1.1 101 "));
    }
}

#[test]
fn a_verdict_is_for_the_claim_that_it_was_asked_for() {
    let mut world = World::with(verified(OnFailure::Deny), 64 * 1024 * 1024, 1);
    let first = world.connect();
    world.bytes(first, head("/v1/server", "known").as_bytes());
    let question = world.questions.pop().unwrap();
    world.relay.on_end(world.now, first, false);
    world.settle();
    let second = world.connect();
    assert_eq!(second, first, "its number is used again");
    world.bytes(second, head("/v1/server", "stranger").as_bytes());
    world.relay.on_verdict(world.now, question.ticket, Verdict::Allowed);
    world.settle();
    assert!(status(&world, second).is_empty(), "it waits for its own");
    // A peer that ends its direction meanwhile is upgraded and has then ended, as it would without.
    world.end(second);
    let question = world.questions.pop().unwrap();
    world.relay.on_verdict(world.now, question.ticket, Verdict::Allowed);
    world.settle();
    assert!(world.ended.contains(&second));
    assert_eq!((world.counts(), world.relay.registry.len()), ((0, 0), 1));
}

#[test]
fn claims_that_wait_are_sockets_before_their_upgrade_and_are_driven_out_like_them() {
    let mut world = World::with(verified(OnFailure::Deny), 64 * 1024 * 1024, 1);
    let limits = AdmissionLimits { max_visitors: 3, ..AdmissionLimits::NONE };
    world.relay.admission.set(limits);
    let waiting: Vec<Key> = (0..3)
        .map(|number| {
            let key = world.connect();
            world.bytes(key, head("/v1/server", &format!("id-{number}")).as_bytes());
            key
        })
        .collect();
    assert!(world.ended.is_empty());
    let next = world.connect();
    world.settle();
    assert_eq!(world.ended, [waiting[0]]);
    world.bytes(next, b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n");
    assert_eq!(status(&world, next), "HTTP/1.1 200 OK");
    // What is said about one that is gone meets nobody.
    for question in std::mem::take(&mut world.questions) {
        world.relay.on_verdict(world.now, question.ticket, Verdict::Allowed);
        world.settle();
    }
    assert_eq!(world.counts(), (2, 0));
}
