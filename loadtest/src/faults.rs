//! Peers that misbehave beside those that are measured: each does one wrong thing on a server-id of
//! its own, and checks that the relay answers it as PROTOCOL.md says. What they do is drawn from a
//! seed, so that it can be done again.

use crate::Outcome;
use crate::codec::{self, Envelope};
use crate::peer::{Dial, Peer, masked};
use crate::wire::Target;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read as _};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Threads that misbehave, one fault at a time each.
const THREADS: u64 = 4;
/// How long one rests between two faults.
const REST: Duration = Duration::from_millis(20);
/// How long a phone waits for a binary that does not come back: the default grace, and patience.
const GRACE: Duration = Duration::from_secs(50);
/// What a phone that does not read lets the kernel take for it.
const NARROW_BYTES: usize = 16 * 1024;
/// More than the relay and the kernel keep for it.
const FLOOD_FRAMES: usize = 192;
const FLOOD_BYTES: usize = 64 * 1024;

/// What was done: how often each, and from which seed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Faults {
    pub(crate) seed: u64,
    pub(crate) done: BTreeMap<&'static str, u64>,
}

/// The threads that misbehave, until they are stopped or dropped.
#[derive(Debug)]
pub(crate) struct Saboteurs {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    target: Target,
    seed: u64,
    /// No fault that takes longer than an instant begins later.
    end: Instant,
    stop: AtomicBool,
    done: Mutex<BTreeMap<&'static str, u64>>,
    wrong: Mutex<Option<String>>,
}

type Fault = fn(&mut Site<'_>) -> Outcome<()>;

/// What can go wrong, with its weight among the others.
const FAULTS: [(&str, u64, Fault); 12] = [
    ("reset amid a message", 8, reset_amid_a_message),
    ("reset amid fragments", 4, reset_amid_fragments),
    ("left amid a head", 8, left_amid_a_head),
    ("garbage for a head", 8, garbage_for_a_head),
    ("violated RFC 6455", 8, broke_the_framing),
    ("sent no JSON", 8, sent_no_json),
    ("did not read", 1, did_not_read),
    ("closed by its binary", 8, closed_by_its_binary),
    ("binary reset and back", 8, binary_reset_and_back),
    ("claimed a held id", 8, claimed_a_held_id),
    ("asked for a free id", 8, asked_for_a_free_id),
    ("binary gone for good", 1, binary_gone_for_good),
];

impl Saboteurs {
    /// Begins to misbehave against `target`, which must not be over TLS, until `time` has passed.
    pub(crate) fn start(target: &Target, seed: u64, time: Duration) -> Self {
        let shared = Arc::new(Shared {
            target: target.clone(),
            seed,
            end: Instant::now() + time,
            stop: AtomicBool::new(false),
            done: Mutex::default(),
            wrong: Mutex::default(),
        });
        let thread = |number| {
            let shared = shared.clone();
            std::thread::spawn(move || misbehave(&shared, number))
        };
        Self { threads: (0..THREADS).map(thread).collect(), shared }
    }

    /// Whether the relay has answered everything as it must.
    pub(crate) fn check(&self) -> Outcome<()> {
        match &*locked(&self.shared.wrong) {
            Some(wrong) => Err(wrong.clone().into()),
            None => Ok(()),
        }
    }

    /// Ends it, once what is under way is done.
    pub(crate) fn stop(mut self) -> Outcome<Faults> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut self.threads) {
            thread.join().map_err(|_| "a thread of this tool has panicked")?;
        }
        self.check()?;
        let done = locked(&self.shared.done).clone();
        Ok(Faults { seed: self.shared.seed, done })
    }
}

impl Drop for Saboteurs {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn misbehave(shared: &Shared, thread: u64) {
    let mut random = Random(shared.seed ^ thread.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let weights: u64 = FAULTS.iter().map(|(_, weight, _)| weight).sum();
    for number in 0u64.. {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let mut at = random.below(weights);
        let chosen = FAULTS.iter().find(|(_, weight, _)| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        });
        let Some((name, _, fault)) = chosen else { continue };
        let lasts = *name == "binary gone for good";
        if lasts && Instant::now() + GRACE > shared.end {
            continue;
        }
        let id = format!("fault-{:x}-{thread}-{number}", shared.seed);
        let dial = Dial::new(&shared.target, Vec::new());
        let done = dial.and_then(|dial| fault(&mut Site { dial, id, random: &mut random }));
        match done {
            Ok(()) => *locked(&shared.done).entry(name).or_default() += 1,
            Err(error) => {
                let error = format!(
                    "a peer that \"{name}\" (number {number} of thread {thread}, seed {}): {error}",
                    shared.seed
                );
                locked(&shared.wrong).get_or_insert(error);
                return;
            }
        }
        std::thread::sleep(REST);
    }
}

/// SplitMix64: good enough to choose what goes wrong, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// Where a fault takes place.
struct Site<'a> {
    dial: Dial,
    /// A server-id that nobody else uses.
    id: String,
    random: &'a mut Random,
}

impl Site<'_> {
    fn binary(&mut self) -> Outcome<Peer> {
        self.dial.binary(&self.id)
    }

    fn phone(&mut self) -> Outcome<Peer> {
        self.dial.phone(&self.id)
    }

    /// A binary, its phone, and the name that the binary knows it by.
    fn pair(&mut self) -> Outcome<(Peer, Peer, String)> {
        self.pair_with(None)
    }

    fn pair_with(&mut self, narrow: Option<usize>) -> Outcome<(Peer, Peer, String)> {
        let mut binary = self.binary()?;
        let mut phone = self.dial.upgrade(&self.id, true, narrow)?;
        phone.send_frame(codec::TEXT, b"\"hello\"")?;
        let conn_id = match codec::read_envelope(&binary.text()?) {
            Some(Envelope::Frame { conn_id, frame: b"\"hello\"" }) => conn_id.into_owned(),
            other => return Err(format!("the binary is brought {other:?}").into()),
        };
        Ok((binary, phone, conn_id))
    }
}

fn reset_amid_a_message(site: &mut Site<'_>) -> Outcome<()> {
    let (mut binary, mut phone, conn_id) = site.pair()?;
    let frame = masked(codec::TEXT, &[b' '; 5000]);
    let part = 1 + site.random.below(frame.len() as u64 - 1) as usize;
    phone.send(frame.get(..part).unwrap_or_default())?;
    phone.reset();
    binary.expect_gone(&conn_id)
}

fn reset_amid_fragments(site: &mut Site<'_>) -> Outcome<()> {
    let (mut binary, mut phone, conn_id) = site.pair()?;
    for (at, opcode) in [codec::TEXT, 0, 0].into_iter().enumerate() {
        let mut fragment = masked(opcode, b"\"fragment");
        if let Some(first) = fragment.first_mut() {
            *first &= 0x7f;
        }
        phone.send(&fragment)?;
        if site.random.below(3) == at as u64 {
            break;
        }
    }
    phone.reset();
    binary.expect_gone(&conn_id)
}

fn left_amid_a_head(site: &mut Site<'_>) -> Outcome<()> {
    let Target { host, prefix, .. } = site.dial.target();
    let head = codec::upgrade_request(host, prefix, &site.id, true);
    let mut peer = site.dial.connect(None)?;
    let part = site.random.below(head.len() as u64 - 1) as usize;
    peer.send(head.get(..part).unwrap_or_default())?;
    match site.random.below(2) {
        0 => peer.reset(),
        _ => drop(peer),
    }
    Ok(())
}

fn garbage_for_a_head(site: &mut Site<'_>) -> Outcome<()> {
    let mut peer = site.dial.connect(None)?;
    let garbage: Vec<u8> = (0..site.random.below(400)).map(|_| site.random.next() as u8).collect();
    // It may have had enough before all of it is sent.
    let _ = peer.send(&garbage);
    let _ = peer.tcp().shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let ended = peer.tcp().read_to_end(&mut answer);
    let is_reset = |error: &io::Error| error.kind() == ErrorKind::ConnectionReset;
    match ended {
        Err(error) if !is_reset(&error) => Err(format!("it is not let go: {error}").into()),
        _ if answer.is_empty() || answer.starts_with(b"HTTP/1.1 4") => Ok(()),
        _ => Err(format!("it is answered {:?}", String::from_utf8_lossy(&answer)).into()),
    }
}

fn broke_the_framing(site: &mut Site<'_>) -> Outcome<()> {
    let (mut binary, mut phone, conn_id) = site.pair()?;
    let wrong: &[u8] = match site.random.below(4) {
        // Not masked; a reserved bit; a reserved opcode; a close of one byte.
        0 => &[0x81, 2, b'{', b'}'],
        1 => &[0xc1, 0x80, 0, 0, 0, 0],
        2 => &[0x83, 0x80, 0, 0, 0, 0],
        _ => &[0x88, 0x81, 0, 0, 0, 0, 3],
    };
    phone.send(wrong)?;
    phone.expect_close(1002)?;
    binary.expect_gone(&conn_id)
}

fn sent_no_json(site: &mut Site<'_>) -> Outcome<()> {
    let (mut binary, mut phone, conn_id) = site.pair()?;
    phone.send_frame(codec::TEXT, b"{\"a\":")?;
    phone.expect_close(1000)?;
    binary.expect_gone(&conn_id)
}

fn did_not_read(site: &mut Site<'_>) -> Outcome<()> {
    let (mut binary, phone, conn_id) = site.pair_with(Some(NARROW_BYTES))?;
    let mut envelope = Vec::new();
    codec::write_envelope(&mut envelope, &conn_id, |out| {
        out.push(b'"');
        out.resize(out.len() + FLOOD_BYTES, b'x');
        out.push(b'"');
    });
    for _ in 0..FLOOD_FRAMES {
        binary.send_frame(codec::TEXT, &envelope)?;
    }
    binary.expect_gone(&conn_id)?;
    phone.reset();
    Ok(())
}

fn closed_by_its_binary(site: &mut Site<'_>) -> Outcome<()> {
    let (mut binary, mut phone, conn_id) = site.pair()?;
    let code = 4401 + site.random.below(40) as u16;
    let last = site.random.below(2) == 0;
    let frame = if last { r#""frame":"the last","# } else { "" };
    let directive = format!(r#"{{"conn_id":"{conn_id}",{frame}"close_code":{code}}}"#);
    binary.send_frame(codec::TEXT, directive.as_bytes())?;
    if last {
        let text = phone.text()?;
        if text != b"\"the last\"" {
            return Err("the frame before its close is another".into());
        }
    }
    phone.expect_close(code)?;
    // It knows, so it is not told: what it is brought next is another phone's.
    let mut phone = site.phone()?;
    phone.send_frame(codec::TEXT, b"\"another\"")?;
    match codec::read_envelope(&binary.text()?) {
        Some(Envelope::Frame { frame: b"\"another\"", .. }) => Ok(()),
        other => Err(format!("the binary is brought {other:?} after its own close").into()),
    }
}

fn binary_reset_and_back(site: &mut Site<'_>) -> Outcome<()> {
    let (binary, mut phone, _) = site.pair()?;
    binary.reset();
    let mut binary = site.binary()?;
    phone.expect_close(4404)?;
    // The id is held: a new phone is let in.
    let mut phone = site.phone()?;
    phone.send_frame(codec::TEXT, b"[]")?;
    binary.text().map(drop)
}

fn claimed_a_held_id(site: &mut Site<'_>) -> Outcome<()> {
    let mut holder = site.binary()?;
    let mut newcomer = site.binary()?;
    holder.answer_ping()?;
    newcomer.expect_close(4409)?;
    let mut phone = site.phone()?;
    phone.send_frame(codec::TEXT, b"{}")?;
    holder.text().map(drop)
}

fn asked_for_a_free_id(site: &mut Site<'_>) -> Outcome<()> {
    site.phone()?.expect_close(4404)
}

fn binary_gone_for_good(site: &mut Site<'_>) -> Outcome<()> {
    let (binary, mut phone, _) = site.pair()?;
    match site.random.below(2) {
        0 => binary.reset(),
        _ => drop(binary),
    }
    phone.tcp().set_read_timeout(Some(GRACE))?;
    phone.expect_close(1000)
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn a_seed_always_gives_the_same() {
        let draw = |seed| {
            let mut random = Random(seed);
            [(); 4].map(|()| random.below(1000))
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }
}
