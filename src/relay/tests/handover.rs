//! What one process gives out, another one goes on with.

use super::*;
use crate::handover::{Share, distribute, state};
use crate::relay::revive::Refusal;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

/// A clock that has nothing to do with the one before.
const LATER: Millis = 77;

fn settings(worker: usize, budget: &Arc<SharedBudget>, metrics: &Arc<Metrics>) -> Settings {
    let workers = metrics.workers().len();
    Settings {
        worker,
        owners: Owners::new([1, 2, 3, 4], workers),
        domain: None,
        limits: Limits::default(),
        budget: budget.clone(),
        admission: Admission::new(AdmissionLimits::NONE, Proxies::default(), [1, 2, 3, 4]),
        metrics: metrics.clone(),
        seed: [8; 32],
        push: true,
    }
}

impl World {
    /// What it gives out, as it comes out of a socket.
    fn given(&self) -> state::Worker {
        let given = self.relay.give_out(self.now, &|_| false);
        state::Worker::decode(&given.encode().unwrap()).unwrap()
    }

    /// Another process takes over all that there is; the peers stay.
    fn restart(&mut self) {
        let given = self.given();
        let limit_bytes = self.budget.limit_bytes();
        self.budget = SharedBudget::for_events_of(512 * 1024, limit_bytes, 1);
        self.metrics = Metrics::new(1);
        self.now = LATER;
        let slots: Vec<u32> = given.connections.iter().map(|connection| connection.slot).collect();
        let again = given.encode().unwrap();
        let (relay, keys) =
            Relay::revive(settings(0, &self.budget, &self.metrics), self.now, given).unwrap();
        assert_eq!(keys.iter().map(|key| key.0).collect::<Vec<_>>(), slots);
        self.relay = relay;
        let mut actions = Vec::new();
        self.relay.take_actions(&mut actions);
        assert!(self.given().encode().unwrap() == again, "what came is what is there");
        for action in actions {
            match action {
                Action::Write(key) => self.write(key),
                other => panic!("{other:?}"),
            }
        }
        self.settle();
    }
}

/// One of everything: what each of the keys is, is told by the test that goes on with it.
struct Scene {
    world: World,
    holder: Key,
    probed: Key,
    phones: Vec<Key>,
    newcomers: Vec<Key>,
    half_sent: Key,
    closing: Key,
    head: Key,
}

fn scene() -> Scene {
    let mut world = World::new();
    world.pass(500_000);
    let (holder, probed) = (world.binary("a"), world.binary("b"));
    let phones: Vec<Key> = (0..3).map(|_| world.phone("a")).collect();
    let gone = world.binary("in grace");
    let widow = world.phone("in grace");
    world.end(gone);
    world.pass(20_000);
    // Half a text that ends within a code point, behind a fragment.
    world.bytes(phones[0], b"\x01\x82\0\0\0\0\"\xc3");
    world.bytes(phones[0], b"\x80\x83\0\0\0\0\xa4");
    // Two frames wait, the first is half sent; a close is to follow.
    let (half_sent, closing) = (world.phone("b"), world.phone("b"));
    for (phone, appetite) in [(half_sent, 3), (closing, 0)] {
        let id = world.conn_id(phone);
        world.appetite.insert(phone, appetite);
        for frame in ["11111", "22222"] {
            world.text(probed, &format!(r#"{{"conn_id":"{id}","frame":{frame}}}"#));
        }
    }
    let id = world.conn_id(closing);
    world.text(probed, &format!(r#"{{"conn_id":"{id}","close_code":4001,"frame":null}}"#));
    let newcomers: Vec<Key> = (0..2).map(|_| world.binary("b")).collect();
    world.text(newcomers[0], "first");
    world.text(newcomers[0], r#"{"conn_id":"x","frame":2}"#);
    world.pass(1000);
    let head = world.connect();
    world.bytes(head, b"GET /heal");
    let _ = (world.frames(probed), world.frames(holder), widow);
    Scene { world, holder, probed, phones, newcomers, half_sent, closing, head }
}

#[test]
fn everything_goes_on_where_it_stopped() {
    let Scene { mut world, holder, probed, phones, newcomers, half_sent, closing, head } = scene();
    let names: Vec<String> = phones.iter().map(|phone| world.conn_id(*phone)).collect();
    world.restart();
    assert_eq!(world.counts(), (2, 5));
    assert_eq!(world.relay.server_ids(), 3);
    // The rest of a message, of a frame, of a head.
    world.bytes(phones[0], b"x\"");
    let name = &names[0];
    assert_eq!(world.texts(holder), [format!(r#"{{"conn_id":"{name}","frame":"äx"}}"#)]);
    world.feed(half_sent);
    assert_eq!(world.texts(half_sent), ["11111", "22222"]);
    world.bytes(head, b"thz HTTP/1.1\r\nHost: relay\r\n\r\n");
    assert!(world.received.get_mut(&head).unwrap().starts_with(b"HTTP/1.1 200 "));
    // Phones have their names, and their seats.
    for (phone, name) in phones.iter().zip(&names) {
        world.text(holder, &format!(r#"{{"conn_id":"{name}","frame":1}}"#));
        assert_eq!(world.texts(*phone), ["1"]);
    }
    world.end(phones[1]);
    assert_eq!(world.texts(holder).len(), 1);
    world.end(phones[0]);
    world.text(holder, &format!(r#"{{"conn_id":"{}","frame":2}}"#, names[2]));
    assert_eq!(world.texts(phones[2]), ["2"]);
    // What is to be closed in its turn is.
    world.appetite.remove(&closing);
    world.write(closing);
    world.settle();
    let frames: Vec<u8> = world.frames(closing).iter().map(|(opcode, _)| *opcode).collect();
    assert_eq!(frames, [1, 1, CLOSE]);
    // Nine of the ten seconds of the probe are left, and of the thirty of grace.
    world.pass(8900);
    assert_eq!((world.counts().0, world.relay.server_ids()), (2, 3));
    world.pass(200);
    assert_eq!(world.relay.server_ids(), 2);
    assert_eq!(world.closed(probed), pair(1011, "heartbeat timeout"));
    assert_eq!(world.closed(newcomers[1]), pair(4409, "server-id already claimed"));
    let counted = world.metrics.total(Series::MalformedEnvelopes);
    let unknown = world.metrics.total(Series::UnknownConnIds);
    assert_eq!((counted, unknown), (1, 1), "what the winner has sent ahead counts");
}

#[test]
fn every_deadline_has_what_was_left_of_it() {
    let mut world = World::new();
    world.pass(1_000_000);
    let (answers, silent) = (world.binary("a"), world.binary("b"));
    let head = world.connect();
    world.pass(4000);
    // Of five seconds for a head, one is left.
    world.restart();
    world.pass(990);
    assert!(world.ended.is_empty());
    world.pass(20);
    assert_eq!(world.ended, [head]);
    // Pings go out after thirty seconds, and are to be answered within another thirty.
    world.pass(24_500);
    assert!(world.frames(answers).is_empty());
    world.pass(1000);
    let ping = world.frames(answers).remove(0);
    assert_eq!(ping.0, PING);
    world.restart();
    world.pass(100);
    world.send(answers, PONG, &ping.1);
    let took = world.relay.describe(world.now, 0).accounts[0].round_trip_ms.unwrap();
    assert!((100..1100).contains(&took), "{took}");
    world.restart();
    world.pass(28_500);
    assert_eq!((world.counts(), world.ended.len()), ((2, 0), 1));
    world.pass(1500);
    assert_eq!(world.closed(silent), pair(1011, "heartbeat timeout"));
    assert_eq!(world.relay.describe(world.now, 0).accounts[0].age_s, 60);
}

#[test]
fn a_write_that_makes_no_progress_has_its_time_once() {
    let mut world = World::new();
    let (binary, phone) = (world.binary("a"), world.phone("a"));
    let id = world.conn_id(phone);
    world.appetite.insert(phone, 0);
    world.text(binary, &format!(r#"{{"conn_id":"{id}","frame":1}}"#));
    for _ in 0..3 {
        // The kernel takes nothing of it, and the write is cancelled for a restart.
        let write = world.relay.begin_write(world.now, phone).unwrap();
        world.pass(3000);
        world.relay.on_written(world.now, phone, write.buffer, Some(0));
        // Told to write again, the shell does not, because it is about to give all away.
        world.relay.take_actions(&mut Vec::new());
        world.restart();
    }
    world.pass(900);
    assert_eq!(world.counts(), (1, 1));
    world.pass(200);
    assert_eq!(world.ended, [phone]);
}

#[test]
fn a_budget_that_is_too_small_refuses_all_of_it_and_the_old_process_goes_on() {
    let mut world = World::new();
    let (binary, phone) = (world.binary("a"), world.phone("a"));
    let id = world.conn_id(phone);
    world.appetite.insert(phone, 0);
    for _ in 0..20 {
        let frame = format!(r#"{{"conn_id":"{id}","frame":"{}"}}"#, "x".repeat(100_000));
        world.text(binary, &frame);
    }
    let charged = world.relay.charged_bytes();
    let revive = |pool_bytes: u64, given| {
        let budget = SharedBudget::for_events_of(512 * 1024, pool_bytes + 512 * 1024, 1);
        Relay::revive(settings(0, &budget, &Metrics::new(1)), LATER, given).map(|(relay, _)| relay)
    };
    let needed_bytes = match revive(1 << 20, world.given()).err().unwrap() {
        refusal @ Refusal::Memory { needed_bytes, available_bytes } => {
            assert_eq!(available_bytes, 1 << 20);
            assert!(refusal.to_string().contains("--memory-budget"), "{refusal}");
            needed_bytes
        }
        other => panic!("{other}"),
    };
    assert!(needed_bytes <= charged && needed_bytes > 2_000_000, "{needed_bytes} of {charged}");
    let just = revive(needed_bytes, world.given()).unwrap();
    assert_eq!(just.charged_bytes(), needed_bytes);
    just.check_books().unwrap();
    assert!(revive(needed_bytes - 1, world.given()).is_err());
    world.feed(phone);
    assert_eq!(world.texts(phone).len(), 20);
}

#[test]
fn a_phone_that_is_not_read_for_its_binary_s_sake_is_read_again_in_another_process() {
    let mut world = World::new();
    let (binary, phone) = (world.binary("a"), world.phone("a"));
    world.appetite.insert(binary, 0);
    let message = format!("\"{}\"", "x".repeat(200_000));
    for _ in 0..6 {
        world.text(phone, &message);
    }
    assert!(!world.relay.wants_read(phone));
    world.restart();
    assert!(!world.relay.wants_read(phone));
    world.feed(binary);
    assert!(world.relay.wants_read(phone), "its binary has read");
    assert_eq!(world.texts(binary).len(), 6);
}

/// Both processes together are to take no more than twice the memory of one.
#[test]
fn an_idle_phone_is_small_as_plain_data_and_as_bytes() {
    let mut world = World::new();
    world.binary("a");
    let idle = size_of::<state::Connection>();
    assert!(idle <= 544, "{idle}");
    let bytes = |world: &World| world.given().encode().unwrap().len();
    let before = bytes(&world);
    world.phone("a");
    let more = bytes(&world) - before;
    assert!(more <= 100, "{more}");
}

/// Where each key of each worker went.
type Moved = HashMap<(usize, Key), Key>;

/// What the workers of a process gave out, as `count` others go on with it; with where each key went.
fn redistributed(given: Vec<state::Worker>, count: usize) -> Vec<(World, Moved)> {
    let slots: Vec<Vec<u32>> = given
        .iter()
        .map(|worker| worker.connections.iter().map(|connection| connection.slot).collect())
        .collect();
    let owners = Owners::new([1, 2, 3, 4], count);
    let owner_of = |id: &str| owners.owner_of(&ServerId::from_header(id.as_bytes()).unwrap());
    let budget = SharedBudget::new(64 << 20, count);
    let metrics = Metrics::new(count);
    let shares = distribute(given, owner_of, count).unwrap();
    let revive = |(number, share): (usize, Share)| {
        let mut was = HashMap::new();
        let other = SharedBudget::new(64 << 20, count);
        let mut world = World::of_worker(number, Limits::default(), other, count);
        world.budget = budget.clone();
        let settings = settings(number, &budget, &metrics);
        let (relay, keys) = Relay::revive(settings, LATER, share.worker).unwrap();
        (world.relay, world.metrics, world.now) = (relay, metrics.clone(), LATER);
        for (key, (worker, at)) in keys.into_iter().zip(share.from) {
            world.received.insert(key, Vec::new());
            was.insert((worker, Key(slots[worker][at])), key);
        }
        world.settle();
        (world, was)
    };
    shares.into_iter().enumerate().map(revive).collect()
}

#[test]
fn a_phone_is_found_by_its_name_whatever_its_slot_and_by_nobody_else() {
    let budget = SharedBudget::new(64 << 20, 2);
    let owners = Owners::new([1, 2, 3, 4], 2);
    let id_of = |worker| {
        let ids = (0..).map(|number| format!("id-{number}"));
        let owner = |id: &String| owners.owner_of(&ServerId::from_header(id.as_bytes()).unwrap());
        ids.into_iter().find(|id| owner(id) == worker).unwrap()
    };
    let mut before: Vec<World> =
        [0, 1].map(|worker| World::of_worker(worker, Limits::default(), budget.clone(), 2)).into();
    let mut all = Vec::new();
    for (number, world) in before.iter_mut().enumerate() {
        let id = id_of(number);
        let (binary, phones) = (world.binary(&id), [world.phone(&id), world.phone(&id)]);
        all.push((number, binary, phones.map(|phone| (phone, world.conn_id(phone)))));
    }
    assert_eq!(all[0].2[0].0, all[1].2[0].0, "slots collide");
    let mut after = redistributed(before.iter().map(World::given).collect(), 1);
    let (world, was) = &mut after[0];
    assert_eq!(world.counts(), (2, 4));
    let say = |world: &mut World, binary: Key, name: &str| {
        world.text(binary, &format!(r#"{{"conn_id":"{name}","frame":1}}"#));
    };
    for (number, binary, phones) in &all {
        for (phone, name) in phones {
            let (binary, phone) = (was[&(*number, *binary)], was[&(*number, *phone)]);
            say(world, binary, name);
            assert_eq!(world.texts(phone), ["1"], "{number} {name}");
            let stranger = was[&(1 - number, all[1 - number].1)];
            say(world, stranger, name);
            assert!(world.texts(phone).is_empty(), "of another binary");
            world.text(phone, "2");
            assert_eq!(world.texts(binary).len(), 1);
        }
    }
    assert_eq!(world.metrics.total(Series::UnknownConnIds), 4);
    // And back: names find their slots again, once they are free.
    let back = redistributed(vec![world.given()], 2);
    for (number, _, phones) in &all {
        let (again, moved) = &back[*number];
        assert_eq!(again.counts(), (2, 4), "of all workers together");
        for (phone, name) in phones {
            let key = moved[&(0, was[&(*number, *phone)])];
            assert_eq!((again.conn_id(key), key), (name.clone(), *phone));
        }
        assert_eq!(again.relay.connections.displaced_phones(), 0);
    }
    // Who leaves is forgotten.
    assert_eq!(world.relay.connections.displaced_phones(), 2);
    for (number, _, phones) in &all {
        for (phone, _) in phones {
            world.end(was[&(*number, *phone)]);
        }
    }
    assert_eq!(world.relay.connections.displaced_phones(), 0);
}

#[test]
fn who_was_on_its_way_to_an_owner_gets_there_or_is_there() {
    let budget = SharedBudget::new(64 << 20, 2);
    let owners = Owners::new([1, 2, 3, 4], 2);
    let mut ids = (0..).map(|number| format!("id-{number}"));
    let foreign =
        ids.find(|id| owners.owner_of(&ServerId::from_header(id.as_bytes()).unwrap()) == 1);
    let foreign = foreign.unwrap();
    let mut world = World::of_worker(0, Limits::default(), budget, 2);
    let caller = world.connect();
    world.appetite.insert(caller, 0);
    let request = head("/v1/server", &foreign);
    let health: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
    world.bytes(caller, &[health, request.as_bytes(), &[0x81]].concat());
    assert!(world.moved.is_empty(), "its answer must leave first");
    // As many workers: it goes on its way.
    let (same, was) = redistributed(vec![world.given()], 2).remove(0);
    let key = was[&(0, caller)];
    assert_eq!(same.moved, [(key, 1, vec![0x81])]);
    // One worker, which owns everything.
    let (mut one, was) = redistributed(vec![world.given()], 1).remove(0);
    let key = was[&(0, caller)];
    let answers = String::from_utf8(one.received[&key].clone()).unwrap();
    assert!(answers.contains("HTTP/1.1 200 ") && answers.contains("HTTP/1.1 101 "), "{answers}");
    assert_eq!(one.counts(), (1, 0));
    assert!(one.moved.is_empty() && one.relay.wants_read(key));
    one.bytes(key, &masked(1, b"{}")[1..]);
    assert_eq!(one.metrics.total(Series::MalformedEnvelopes), 1, "its bytes were kept");
}

#[test]
fn a_move_that_was_ordered_and_not_carried_out_is_ordered_again_or_needless() {
    let foreign = "id-of-another";
    let owners = Owners::new([1, 2, 3, 4], 2);
    let owner = owners.owner_of(&ServerId::from_header(foreign.as_bytes()).unwrap());
    let budget = SharedBudget::new(64 << 20, 2);
    let mut world = World::of_worker(1 - owner, Limits::default(), budget, 2);
    let caller = world.connect();
    let mut request = [head("/v1/server", foreign).as_bytes(), &[0x81]].concat();
    world.relay.on_bytes(world.now, caller, &mut request, &mut { u32::MAX });
    let mut actions = Vec::new();
    world.relay.take_actions(&mut actions);
    let Some(Action::HandOver { key, hand_over, .. }) = actions.pop() else {
        panic!("{actions:?}")
    };
    let given = || {
        let mut given = world.relay.give_out(world.now, &|other| other == key);
        given.connections.push(hand_over.give_out(world.now, key, world.now + 700));
        let mut workers = vec![state::Worker::default(), state::Worker::default()];
        workers[1 - owner] = state::Worker::decode(&given.encode().unwrap()).unwrap();
        workers
    };
    let (same, was) = redistributed(given(), 2).remove(1 - owner);
    assert_eq!(same.moved, [(was[&(1 - owner, key)], owner, vec![0x81])]);
    let (one, _) = redistributed(given(), 1).remove(0);
    assert_eq!((one.counts(), one.moved.len()), ((1, 0), 0));
}

/// A worker is changed so that it cannot be.
type Fault = fn(&mut state::Worker);

/// What a server-id and its connections cannot be, and what is said of it.
const OF_IDS: [(&str, Fault); 9] = [
    ("not there", |worker| worker.server_ids[0].phones.push(99)),
    ("not there", |worker| worker.visitors[0].connection = 99),
    ("twice", |worker| {
        let phone = worker.server_ids[0].phones[0];
        worker.server_ids[0].phones.push(phone);
    }),
    ("twice", |worker| worker.visitors.extend_from_within(..1)),
    ("there twice", |worker| {
        let mut again = worker.server_ids[0].clone();
        again.tenure = state::Tenure::Grace(5);
        again.phones.clear();
        worker.server_ids.push(again);
    }),
    ("stage", |worker| drop(worker.server_ids.remove(0))),
    ("stage", |worker| {
        let phone = worker.server_ids[0].phones[0];
        worker.server_ids[0].phones[0] = match worker.server_ids[0].tenure {
            state::Tenure::Held(holder) => holder,
            _ => unreachable!(),
        };
        worker.server_ids[0].tenure = state::Tenure::Held(phone);
    }),
    ("is none", |worker| worker.server_ids[0].id.clear()),
    ("for nobody", |worker| {
        worker.server_ids[0].tenure = match worker.server_ids[0].tenure {
            state::Tenure::Held(holder) => {
                state::Tenure::Probed { holder, newcomers: Vec::new(), left_ms: 5 }
            }
            _ => unreachable!(),
        }
    }),
];

/// What a connection cannot be.
const OF_CONNECTIONS: [(&str, Fault); 8] = [
    ("years away", |worker| worker.connections[0].due.ping = Some(1 << 60)),
    ("another stage", |worker| worker.connections[0].due.stage = Some(5)),
    ("half read", |worker| {
        let header = state::Bytes(vec![0; 14]);
        worker.connections[0].half_read =
            Some(state::HalfRead { header, frame: None, message: None });
    }),
    ("no frames", |worker| {
        worker.connections[0].outbox.chunks = vec![state::Bytes(vec![0x81, 5, 1])];
    }),
    ("two pings", |worker| {
        worker.connections[0].outbox.control = state::Bytes([0x89, 0].repeat(2));
    }),
    ("was begun", |worker| worker.connections[0].outbox.http_bytes = 1),
    ("half sent", |worker| {
        let begun = state::BegunFrame { left_bytes: 9, payload_bytes: 1, is_ping: false };
        worker.connections[0].outbox.begun = Some(begun);
    }),
    ("counted", |worker| worker.connections[0].traffic.bytes_in = u64::MAX),
];

#[test]
fn what_contradicts_itself_is_refused() {
    for (number, (says, plant)) in OF_IDS.into_iter().chain(OF_CONNECTIONS).enumerate() {
        let mut world = World::new();
        let _ = (world.binary("a"), world.phone("a"), world.connect());
        let mut given = world.given();
        plant(&mut given);
        let budget = SharedBudget::new(64 << 20, 1);
        let refusal = Relay::revive(settings(0, &budget, &Metrics::new(1)), LATER, given).err();
        let text = refusal.expect(says).to_string();
        assert!(text.contains(says), "{number}: {text}");
    }
}

/// What was given out is damaged on its way: it is refused, or what comes of it is a relay.
#[test]
fn whatever_bytes_come_nothing_panics() {
    let Scene { world, .. } = scene();
    let bytes = world.relay.give_out(world.now, &|_| false).encode().unwrap();
    let mut rng = StdRng::seed_from_u64(17);
    let (mut refused, mut revived) = (0, 0);
    for round in 0..4000 {
        let mut bytes = bytes.clone();
        if round % 4 == 0 {
            bytes.truncate(rng.random_range(0..bytes.len()));
        }
        for _ in 0..rng.random_range(1..4) {
            let at = rng.next_u32() as usize % bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << rng.random_range(0..8);
            }
        }
        let Ok(given) = state::Worker::decode(&bytes) else {
            refused += 1;
            continue;
        };
        let budget = SharedBudget::new(64 << 20, 1);
        match Relay::revive(settings(0, &budget, &Metrics::new(1)), LATER, given) {
            Err(_) => refused += 1,
            Ok((mut relay, keys)) => {
                revived += 1;
                relay.check_books().unwrap();
                for key in keys {
                    if let Some(write) = relay.begin_write(LATER, key) {
                        let taken = write.to - write.from;
                        relay.on_written(LATER, key, write.buffer, Some(taken));
                    }
                }
                relay.on_timers(LATER + 3_600_000);
                relay.shut_down(LATER + 3_600_000);
                relay.check_books().unwrap();
            }
        }
    }
    assert!(refused > 1000 && revived > 500, "{refused} refused, {revived} revived");
}

/// Version 1, as a relay of that version gave it out: whoever changes the structs keeps those that
/// read this one.
#[test]
fn the_state_of_version_1_is_read() {
    let bytes = include_bytes!("handover_v1.bin");
    assert_eq!(state::VERSION, 1);
    let given = state::Worker::decode(bytes).unwrap();
    assert!(given.encode().unwrap() == bytes);
    assert_eq!((given.connections.len(), given.server_ids.len()), (11, 3));
    let budget = SharedBudget::new(64 << 20, 1);
    let (relay, _) = Relay::revive(settings(0, &budget, &Metrics::new(1)), LATER, given).unwrap();
    relay.check_books().unwrap();
}

/// Writes the sample of [`the_state_of_version_1_is_read`], once for a version.
#[test]
#[ignore = "writes a file of the sources"]
fn write_a_sample() {
    let Scene { world, .. } = scene();
    let bytes = world.relay.give_out(world.now, &|_| false).encode().unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/relay/tests/handover_v1.bin");
    std::fs::write(path, bytes).unwrap();
}
