//! What is measured, shared by the wall-time and the instruction-count benches: each function
//! makes a state, each method on it is one unit of work of the relay.

#![allow(dead_code, unreachable_pub)]

use ahash::RandomState;
use pyrycode_relay::config::Limits;
use pyrycode_relay::metrics::Metrics;
use pyrycode_relay::protocol::envelope;
use pyrycode_relay::protocol::frames::{self, Decoder, Incoming};
use pyrycode_relay::protocol::ids::{ConnId, ServerId};
use pyrycode_relay::protocol::json;
use pyrycode_relay::protocol::upgrade::{HeadScanner, ParsedHead, Upgrade};
use pyrycode_relay::relay::outbox::Outbox;
use pyrycode_relay::relay::registry::{EntryKey, Registration, Registry};
use pyrycode_relay::relay::spare::SpareBuffers;
use pyrycode_relay::relay::timers::{TimerId, Wheel};
use pyrycode_relay::relay::{Action, Key, Owners, Relay, Settings};
use pyrycode_relay::shared::admission::{Admission, AdmissionLimits, Proxies};
use pyrycode_relay::shared::budget::SharedBudget;
use pyrycode_relay::telemetry::Remote;

/// Bytes of JSON in one message: a short one, a page of text, a file.
pub const SIZES: [usize; 3] = [128, 4096, 65_536];

/// A chat message: mostly one long string.
pub fn json_of(bytes: usize) -> String {
    let shell = r#"{"type":"message","seq":12345,"text":""}"#.len();
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(bytes / 45 + 1);
    format!(r#"{{"type":"message","seq":12345,"text":"{}"}}"#, &text[..bytes - shell])
}

/// One masked text frame, as a client sends it.
pub fn client_frame(payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = vec![0x81];
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
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A request head as an ordinary client library writes it.
pub fn head(path: &str, id: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: relay.example.com\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nUser-Agent: pyry/1.4.2 (linux; x86_64)\r\n\
         X-Pyrycode-Server: {id}\r\nX-Pyrycode-Version: 1.4.2\r\n\
         X-Pyrycode-Token: 8f14e45fceea167a5a36dedd4bea2543\r\n\
         X-Pyrycode-Device-Name: Somebody's phone\r\n\r\n"
    )
    .into_bytes()
}

pub fn parse_upgrade(head: &[u8]) -> Upgrade {
    match HeadScanner::default().parse(head) {
        ParsedHead::Complete { request, .. } => match request.route() {
            pyrycode_relay::protocol::upgrade::Route::Server => request.server_upgrade().unwrap(),
            _ => request.client_upgrade().unwrap(),
        },
        _ => panic!("not a whole head"),
    }
}

/// One frame through the decoder; the frame is unmasked in place.
pub fn decode(mut frame: Vec<u8>) -> (Vec<u8>, usize) {
    let mut input = frame.as_mut_slice();
    let length = match Decoder::default().next(&mut input) {
        Ok(Some(Incoming::Text(text))) => text.len(),
        _ => panic!("not a text frame"),
    };
    (frame, length)
}

/// One frame that comes in pieces of 1400 bytes, as from a network.
pub fn decode_in_pieces(mut frame: Vec<u8>) -> (Vec<u8>, usize) {
    let mut decoder = Decoder::default();
    let mut length = 0;
    for mut piece in frame.chunks_mut(1400) {
        if let Ok(Some(Incoming::Text(text))) = decoder.next(&mut piece) {
            length = text.len();
        }
    }
    assert!(length > 0);
    (frame, length)
}

pub fn encode(mut out: Vec<u8>, payload: &[u8]) -> Vec<u8> {
    frames::push_text_header(&mut out, payload.len());
    out.extend_from_slice(payload);
    out
}

pub fn validate(text: &str) -> &str {
    json::validate_str(text).unwrap()
}

pub fn conn_id() -> ConnId {
    ConnId::new(7, [0xa5; 12])
}

pub fn wrap(mut out: Vec<u8>, frame: &[u8]) -> Vec<u8> {
    envelope::push_wrapped(&mut out, &conn_id(), frame);
    out
}

/// An envelope as a binary sends it.
pub fn envelope_of(bytes: usize) -> String {
    String::from_utf8(wrap(Vec::new(), json_of(bytes).as_bytes())).unwrap()
}

pub fn unwrap(message: &str) -> envelope::Envelope<'_> {
    envelope::unwrap_str(message).unwrap()
}

/// A shard in which 10,000 ids are held.
pub struct Shard {
    pub registry: Registry,
    pub taken: ServerId,
    pub free: ServerId,
}

pub fn server_id(number: usize) -> ServerId {
    ServerId::from_header(format!("0b7e6f6e-58d2-4d0b-9d3e-{number:012}").as_bytes()).unwrap()
}

pub fn shard() -> Shard {
    let counters = Metrics::new(1).worker(0);
    let mut registry = Registry::new(RandomState::with_seeds(1, 2, 3, 4), 16, counters);
    for number in 0..10_000 {
        registry.claim(&server_id(number), Key(number as u32), 5000);
    }
    Shard { registry, taken: server_id(5000), free: server_id(10_001) }
}

impl Shard {
    pub fn claim(&mut self) -> EntryKey {
        self.registry.claim(&self.free, Key(99_999), 5000).0
    }

    pub fn register_and_leave(&mut self) {
        let phone = Key(88_888);
        match self.registry.register(&self.taken, phone) {
            Registration::Registered(entry, seat) => {
                assert_eq!(self.registry.unregister(entry, phone, seat), None);
            }
            _ => panic!("not registered"),
        }
    }
}

/// Queues 16 messages of 200 bytes and hands them to the kernel in one write.
pub fn outbox_turn((outbox, spare): &mut (Outbox, SpareBuffers)) {
    const PAYLOAD: [u8; 200] = [b'x'; 200];
    for _ in 0..16 {
        let frame_bytes = frames::header_len(PAYLOAD.len()) + PAYLOAD.len();
        outbox.push_frame(spare, frame_bytes, PAYLOAD.len(), |out| {
            frames::push_text_header(out, PAYLOAD.len());
            out.extend_from_slice(&PAYLOAD);
        });
    }
    let write = outbox.take_write().unwrap();
    let taken = write.to;
    outbox.on_written(spare, write.buffer, taken);
}

/// A wheel with 100,000 timers, spread over the next 30 seconds.
pub fn wheel() -> (Wheel<u32>, Vec<TimerId>) {
    let mut wheel = Wheel::default();
    let ids: Vec<TimerId> = (0..100_000).map(|owner| wheel.add(owner)).collect();
    for (number, id) in ids.iter().enumerate() {
        wheel.arm_at(*id, 1000 + number as u64 * 3 / 10);
    }
    (wheel, ids)
}

/// Arms one of the timers anew, as a heartbeat does.
pub fn rearm((wheel, ids): &mut (Wheel<u32>, Vec<TimerId>)) {
    wheel.arm_at(ids[50_000], 45_000);
}

/// Lets 30 seconds pass: every one of the 100,000 timers fires and is armed for the next round.
pub fn fire_all((wheel, ids): &mut (Wheel<u32>, Vec<TimerId>)) -> usize {
    let mut fired = 0;
    for now in (0..=31_000).step_by(8) {
        while let Some(owner) = wheel.pop_expired(now) {
            wheel.arm_at(ids[owner as usize], now + 60_000);
            fired += 1;
        }
    }
    assert_eq!(fired, ids.len());
    fired
}

/// A whole core with one binary and its 16 phones.
pub struct Crowd {
    pub relay: Relay,
    binary: Key,
    phones: Vec<Key>,
    /// A phone's frame.
    asked: Vec<u8>,
    /// The binary's frame to the last phone.
    answered: Vec<u8>,
    actions: Vec<Action>,
    scratch: Vec<u8>,
}

pub fn settings() -> Settings {
    Settings {
        worker: 0,
        owners: Owners::new([1, 2, 3, 4], 1),
        domain: None,
        limits: Limits::default(),
        budget: SharedBudget::new(64 * 1024 * 1024, 1),
        admission: Admission::new(AdmissionLimits::NONE, Proxies::default(), [1, 2, 3, 4]),
        metrics: Metrics::new(1),
        seed: [7; 32],
        push: false,
    }
}

pub fn crowd(bytes: usize) -> Crowd {
    let relay = Relay::new(settings());
    let mut crowd = Crowd {
        relay,
        binary: Key(0),
        phones: Vec::new(),
        asked: client_frame(json_of(bytes).as_bytes()),
        answered: Vec::new(),
        actions: Vec::new(),
        scratch: Vec::new(),
    };
    crowd.binary = crowd.upgrade("/v1/server");
    crowd.phones = (0..16).map(|_| crowd.upgrade("/v1/client")).collect();
    let phone = crowd.phones[15];
    let frame = crowd.asked.clone();
    let wrapped = crowd.receive(phone, &frame);
    let (header, payload) = frames::frame_extent(&wrapped).unwrap();
    crowd.answered = client_frame(&wrapped[header..header + payload]);
    crowd
}

impl Crowd {
    fn upgrade(&mut self, path: &str) -> Key {
        let key = self.relay.accept(0, Remote("192.0.2.1:5".parse().unwrap()));
        self.receive(key, &head(path, "an id"));
        key
    }

    /// Bytes arrive; whatever that causes to be written is taken by the kernel and returned.
    pub fn receive(&mut self, key: Key, bytes: &[u8]) -> Vec<u8> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        scratch.extend_from_slice(bytes);
        self.relay.on_bytes(1, key, &mut scratch, &mut { u32::MAX });
        self.scratch = scratch;
        let mut written = Vec::new();
        self.relay.take_actions(&mut self.actions);
        for action in self.actions.drain(..) {
            if let Action::Write(key) = action
                && let Some(write) = self.relay.begin_write(1, key)
            {
                written.extend_from_slice(&write.buffer[write.from..write.to]);
                let taken = write.to - write.from;
                self.relay.on_written(1, key, write.buffer, Some(taken));
            }
        }
        written
    }

    /// One message from a phone to its binary, as far as the core has to do with it.
    pub fn phone_to_binary(&mut self) {
        self.relay_one(self.phones[15], true);
    }

    /// One message from the binary to a phone.
    pub fn binary_to_phone(&mut self) {
        self.relay_one(self.binary, false);
    }

    fn relay_one(&mut self, from: Key, asked: bool) {
        self.scratch.clear();
        self.scratch.extend_from_slice(if asked { &self.asked } else { &self.answered });
        self.relay.on_bytes(1, from, &mut self.scratch, &mut { u32::MAX });
        self.relay.take_actions(&mut self.actions);
        for action in self.actions.drain(..) {
            if let Action::Write(key) = action
                && let Some(write) = self.relay.begin_write(1, key)
            {
                let taken = write.to - write.from;
                self.relay.on_written(1, key, write.buffer, Some(taken));
            }
        }
    }
}
