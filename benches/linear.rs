//! That the work of an event does not grow with what is queued, held, connected or claimed: counts
//! instructions under valgrind for n and for 8n of each kind, and fails where 8n take more than ten
//! times as many. `cargo bench --bench linear`, or unoptimized `cargo test --bench linear`.
//!
//! Started with the name of a case and a number, it does that case once and counts nothing.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::string_slice, unused_crate_dependencies)]

mod work;

use pyrycode_relay::config::Limits;
use pyrycode_relay::metrics::Metrics;
use pyrycode_relay::protocol::frames;
use pyrycode_relay::relay::outbox::Write;
use pyrycode_relay::relay::{Action, Key, Owners, Relay, Settings};
use pyrycode_relay::shared::admission::{Admission, AdmissionLimits, Proxies};
use pyrycode_relay::shared::budget::SharedBudget;
use pyrycode_relay::telemetry::Remote;
use std::collections::HashMap;
use std::hint::black_box;
use std::process::Command;

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PIECE: usize = 64 * 1024;

/// A whole core whose peers read, but for those that are told not to.
struct World {
    relay: Relay,
    now: u64,
    deaf: HashMap<Key, Option<Write>>,
    /// Connections that the relay has ended.
    ended: usize,
    last: Vec<u8>,
}

impl World {
    fn new(budget_bytes: u64) -> Self {
        let relay = Relay::new(Settings {
            worker: 0,
            owners: Owners::new([1, 2, 3, 4], 1),
            domain: None,
            limits: Limits { max_phones: 1_000_000, ..Limits::default() },
            budget: SharedBudget::new(budget_bytes, 1),
            admission: Admission::new(AdmissionLimits::NONE, Proxies::default(), [1, 2, 3, 4]),
            metrics: Metrics::new(1),
            seed: [7; 32],
            push: false,
        });
        Self { relay, now: 1, deaf: HashMap::new(), ended: 0, last: Vec::new() }
    }

    fn upgrade(&mut self, path: &str) -> Key {
        let key = self.relay.accept(self.now, Remote("192.0.2.1:5".parse().unwrap()));
        self.bytes(key, &work::head(path, "an id"));
        key
    }

    fn binary(&mut self) -> Key {
        self.upgrade("/v1/server")
    }

    fn phone(&mut self) -> Key {
        self.upgrade("/v1/client")
    }

    fn bytes(&mut self, key: Key, bytes: &[u8]) {
        for piece in bytes.chunks(PIECE) {
            self.relay.on_bytes(self.now, key, &mut piece.to_vec(), &mut { u32::MAX });
            self.act();
        }
    }

    fn act(&mut self) {
        let mut actions = Vec::new();
        loop {
            self.relay.take_actions(&mut actions);
            if actions.is_empty() {
                return;
            }
            for action in actions.drain(..) {
                match action {
                    Action::Write(key) => self.write(key),
                    Action::Abort(key) | Action::Close(key) => {
                        self.ended += 1;
                        self.relay.release(key);
                    }
                    Action::CheckUnsent(key) => self.relay.on_unsent(self.now, key, 0),
                    _ => {}
                }
            }
        }
    }

    fn write(&mut self, key: Key) {
        let Some(write) = self.relay.begin_write(self.now, key) else { return };
        if let Some(stuck) = self.deaf.get_mut(&key) {
            *stuck = Some(write);
            return;
        }
        self.last = write.buffer[write.from..write.to].to_vec();
        let taken = write.to - write.from;
        self.relay.on_written(self.now, key, write.buffer, Some(taken));
    }

    /// A peer that does not read takes `bytes`; false if nothing is left for it.
    fn sip(&mut self, key: Key, bytes: usize) -> bool {
        let Some(write) = self.deaf.get_mut(&key).and_then(Option::take) else { return false };
        let taken = bytes.min(write.to - write.from);
        self.relay.on_written(self.now, key, write.buffer, Some(taken));
        self.act();
        true
    }

    fn end(&mut self, key: Key) {
        self.relay.on_end(self.now, key, false);
        self.act();
    }

    fn pass(&mut self, ms: u64) {
        self.now += ms;
        self.relay.on_timers(self.now);
        self.act();
    }

    /// What this phone's binary calls it.
    fn conn_id(&mut self, phone: Key) -> String {
        self.bytes(phone, &frame(TEXT, b"1"));
        let (header, _) = frames::frame_extent(&self.last).unwrap();
        let text = std::str::from_utf8(&self.last[header..]).unwrap();
        text["{\"conn_id\":\"".len()..].split('"').next().unwrap().to_owned()
    }
}

fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = work::client_frame(payload);
    frame[0] = 0x80 | opcode;
    frame
}

/// What is counted.
#[inline(never)]
fn counted(work: impl FnOnce()) {
    black_box(work)();
}

/// Its name, n, and what is done n times.
type Case = (&'static str, usize, fn(usize));

/// Each case with its n; what is prepared is not counted.
const CASES: [Case; 18] = [
    ("a request head that comes byte by byte", 200, |n| {
        let mut world = World::new(1 << 30);
        let key = world.relay.accept(world.now, Remote("192.0.2.1:5".parse().unwrap()));
        let head = [&b"GET /healthz HTTP/1.1\r\nX-Long: "[..], &b"x".repeat(n)].concat();
        counted(|| head.chunks(1).for_each(|byte| world.bytes(key, byte)));
    }),
    ("messages sent ahead, and their replay", 1500, |n| {
        let mut world = World::new(1 << 30);
        let (_holder, newcomer) = (world.binary(), world.binary());
        let bytes = frame(TEXT, b"").repeat(n);
        counted(|| {
            world.bytes(newcomer, &bytes);
            world.pass(11_000);
        });
    }),
    ("newcomers that claim and leave", 100, |n| {
        let mut world = World::new(1 << 30);
        world.binary();
        counted(|| {
            let newcomers: Vec<Key> = (0..n).map(|_| world.binary()).collect();
            newcomers.into_iter().for_each(|key| world.end(key));
        });
    }),
    ("newcomers that a living holder turns away", 100, |n| {
        let mut world = World::new(1 << 30);
        let holder = world.binary();
        (0..n).for_each(|_| {
            world.binary();
        });
        counted(|| world.bytes(holder, &frame(TEXT, b"")));
    }),
    ("probes of a holder that does not read, and its own pings", 100, |n| {
        let mut world = World::new(1 << 30);
        let holder = world.binary();
        world.deaf.insert(holder, None);
        world.bytes(holder, &frame(PING, b""));
        let ping = frame(PING, &[7; 100]);
        counted(|| {
            for _ in 0..n {
                let newcomer = world.binary();
                world.end(newcomer);
                world.bytes(holder, &ping);
            }
        });
    }),
    ("pings in one piece", 200, |n| {
        let mut world = World::new(1 << 30);
        let holder = world.binary();
        world.deaf.insert(holder, None);
        let pings = frame(PING, b"").repeat(n);
        counted(|| world.bytes(holder, &pings));
    }),
    ("phones of one id that come and go", 100, |n| {
        let mut world = World::new(1 << 30);
        world.binary();
        counted(|| {
            let phones: Vec<Key> = (0..n).map(|_| world.phone()).collect();
            phones.into_iter().for_each(|key| world.end(key));
        });
    }),
    ("phones that a reclaim evicts", 100, |n| {
        let mut world = World::new(1 << 30);
        let binary = world.binary();
        (0..n).for_each(|_| {
            world.phone();
        });
        world.end(binary);
        counted(|| {
            world.binary();
        });
    }),
    ("phones that are read again when their binary drains", 100, |n| {
        let mut world = World::new(1 << 30);
        let binary = world.binary();
        world.deaf.insert(binary, None);
        let phones: Vec<Key> = (0..n).map(|_| world.phone()).collect();
        let filler = frame(TEXT, format!("\"{}\"", "x".repeat(200_000)).as_bytes());
        (0..8).for_each(|_| world.bytes(phones[0], &filler));
        phones.iter().for_each(|key| world.bytes(*key, &frame(TEXT, b"1")));
        counted(|| while world.sip(binary, usize::MAX) {});
    }),
    ("backlogs that are shed", 400, |n| {
        let mut world = World::new(3 << 20);
        world.binary();
        let half = &frame(TEXT, &[b' '; 40_000])[..16_000];
        counted(|| {
            for _ in 0..n {
                let phone = world.phone();
                world.bytes(phone, half);
            }
        });
        assert!(world.ended + 250 > n, "{} were shed", world.ended);
    }),
    ("frames queued, and taken a few bytes at a time", 400, |n| {
        let mut world = World::new(1 << 30);
        let (binary, phone) = (world.binary(), world.phone());
        let id = world.conn_id(phone);
        world.deaf.insert(phone, None);
        let text = frame(TEXT, format!(r#"{{"conn_id":"{id}","frame":[1,2,3]}}"#).as_bytes());
        let bytes = text.repeat(n);
        counted(|| {
            world.bytes(binary, &bytes);
            while world.sip(phone, 5) {}
        });
    }),
    ("frames queued, and dropped by a close", 400, |n| {
        let mut world = World::new(1 << 30);
        let (binary, phone) = (world.binary(), world.phone());
        let id = world.conn_id(phone);
        world.deaf.insert(phone, None);
        let text = frame(TEXT, format!(r#"{{"conn_id":"{id}","frame":[1,2,3]}}"#).as_bytes());
        let bytes = text.repeat(n);
        counted(|| {
            world.bytes(binary, &bytes);
            world.bytes(phone, &frame(CLOSE, b""));
            while world.sip(phone, usize::MAX) {}
        });
    }),
    ("fragments of no byte", 400, |n| {
        let mut world = World::new(1 << 30);
        let (_, phone) = (world.binary(), world.phone());
        let mut first = frame(TEXT, b"1");
        first[0] = TEXT;
        world.bytes(phone, &first);
        let mut nothing = frame(0, b"");
        nothing[0] = 0;
        let bytes = nothing.repeat(n);
        counted(|| world.bytes(phone, &bytes));
    }),
    ("envelopes for nobody", 200, |n| {
        let mut world = World::new(1 << 30);
        let binary = world.binary();
        let bytes = frame(TEXT, br#"{"conn_id":"x","frame":1}"#).repeat(n);
        counted(|| world.bytes(binary, &bytes));
    }),
    ("messages of a phone", 200, |n| {
        let mut world = World::new(1 << 30);
        let (_, phone) = (world.binary(), world.phone());
        let bytes = frame(TEXT, b"1").repeat(n);
        counted(|| world.bytes(phone, &bytes));
    }),
    ("the census", 100, |n| {
        let mut world = World::new(1 << 30);
        world.binary();
        (0..n).for_each(|_| {
            world.phone();
        });
        counted(|| world.relay.take_census());
    }),
    ("all connections described", 100, |n| {
        let mut world = World::new(1 << 30);
        world.binary();
        (0..n).for_each(|_| {
            world.phone();
        });
        counted(|| {
            let mut next = Some(0);
            while let Some(first) = next {
                next = world.relay.describe(world.now, first).next;
            }
        });
    }),
    ("everybody told of a shutdown", 100, |n| {
        let mut world = World::new(1 << 30);
        world.binary();
        (0..n).for_each(|_| {
            world.phone();
        });
        counted(|| {
            world.relay.shut_down(world.now);
            world.act();
        });
    }),
];

/// Instructions that a case takes.
fn instructions(case: &str, n: usize) -> u64 {
    let this = std::env::current_exe().unwrap();
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg("--toggle-collect=linear::counted*")
        .arg(this)
        .args([case, &n.to_string()])
        .output()
        .expect("valgrind runs");
    let text = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{case}: {text}");
    let count = text.lines().find_map(|line| line.split_once("Collected :"));
    count.and_then(|(_, count)| count.trim().parse().ok()).expect("a count of instructions")
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [case, n] = &args[..]
        && let Some((.., work)) = CASES.iter().find(|(name, ..)| name == case)
    {
        return work(n.parse().unwrap());
    }
    let mut failed = false;
    for (case, n, _) in CASES {
        let (few, many) = (instructions(case, n), instructions(case, 8 * n));
        let is_linear = many <= 10 * few;
        failed |= !is_linear;
        println!(
            "{case:<60} {n:>5}: {:>7} each; {:>6}: {:>7} each{}",
            few / n as u64,
            8 * n,
            many / (8 * n as u64),
            if is_linear { "" } else { "  MORE THAN LINEAR" },
        );
    }
    assert!(!failed, "work that is more than linear");
}
