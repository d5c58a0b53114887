//! A relay under attack: a healthy pair beside the attackers, memory and descriptors watched. How
//! long the pair's round trips took is printed, not judged. `HOSTILE_SCALE=8` makes each attack
//! eight times as large.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::{PING, Raw, Relay, Request, SOON, TEXT, envelope, masked, open_envelope, wait_until};

/// The memory budget of every relay here.
pub const BUDGET: &str = "16MiB";
const BUDGET_BYTES: usize = 16 << 20;
/// What the relay's resident memory may grow by beyond that, whatever the attack: what a thousand
/// connections cost, and what the allocator keeps.
const ALLOWANCE_BYTES: usize = 32 << 20;

/// `HOSTILE_SCALE` times as many.
pub fn scaled(count: usize) -> usize {
    let scale = std::env::var("HOSTILE_SCALE").ok();
    count * scale.map_or(1, |scale| scale.parse().expect("HOSTILE_SCALE is a number"))
}

/// A relay under attack, with a healthy pair on it.
pub struct Scene {
    attack: &'static str,
    // Leave before the relay is killed.
    bystanders: Option<Bystanders>,
    relay: Relay,
    descriptors: usize,
    resident: usize,
}

impl Deref for Scene {
    type Target = Relay;

    fn deref(&self) -> &Relay {
        &self.relay
    }
}

impl Scene {
    pub async fn begin(attack: &'static str, args: &[&str]) -> Self {
        let args = [args, &["--memory-budget", BUDGET]].concat();
        Self::begin_on(attack, Relay::start(&args).await).await
    }

    /// The same with a relay of HTTPS, and a pair that reaches it so.
    pub async fn begin_tls(attack: &'static str, args: &[&str]) -> Self {
        let args = [args, &["--memory-budget", BUDGET]].concat();
        Self::begin_on(attack, Relay::start_tls(&args).await).await
    }

    pub async fn begin_on(attack: &'static str, relay: Relay) -> Self {
        all_workers_serve(&relay).await;
        let bystanders = Some(Bystanders::start(&relay));
        relay.wait_for_counts(1, 1).await;
        // The connection that asked for the counts goes last.
        let mut descriptors = relay.descriptors();
        wait_until("a steady number of descriptors", SOON, async || {
            let before = std::mem::replace(&mut descriptors, relay.descriptors());
            before == descriptors
        })
        .await;
        let resident = status_bytes(&relay, "VmRSS:");
        Self { attack, relay, bystanders, descriptors, resident }
    }

    /// Everyone but the pair is gone: the relay must be as it was, and have been within its
    /// memory all the time.
    pub async fn end(mut self) {
        let relay = &self.relay;
        wait_until("descriptors to return", SOON, async || relay.descriptors() <= self.descriptors)
            .await;
        relay.wait_for_counts(1, 1).await;
        let mut trips = self.bystanders.take().unwrap().finish();
        assert!(!trips.is_empty(), "the bystanders made no round trip");
        trips.sort();
        let at = |percent: usize| trips[(trips.len() * percent / 100).min(trips.len() - 1)];
        let peak = status_bytes(relay, "VmHWM:").saturating_sub(self.resident);
        let after = status_bytes(relay, "VmRSS:").saturating_sub(self.resident);
        println!(
            "{:<28} {:>6} round trips, p50 {:>7.2?} p99 {:>7.2?} max {:>7.2?}; \
             memory +{} KiB at its peak, +{} KiB after",
            self.attack,
            trips.len(),
            at(50),
            at(99),
            at(100),
            peak / 1024,
            after / 1024,
        );
        assert!(peak <= BUDGET_BYTES + ALLOWANCE_BYTES, "memory grew by {peak} bytes");
    }
}

/// Waits until each of two workers has made all that it is made of: descriptors, too.
async fn all_workers_serve(relay: &Relay) {
    for number in 0.. {
        Raw::binary(relay, &format!("whose {number}")).await.abort();
        let logs = relay.logs();
        let serves = |core| {
            let mut claims = logs.iter().filter(|line| line.event() == "server_claimed");
            claims.any(|line| line.get("core") == Some(core))
        };
        if serves("0") && serves("1") {
            return;
        }
        assert!(number < 1000, "1000 ids of one worker");
    }
}

/// A binary and a phone that exchange messages for as long as the attack lasts, on a thread of
/// their own.
pub struct Bystanders {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Duration>>>,
}

impl Bystanders {
    fn start(relay: &Relay) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (door, stopped) = (relay.door(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let binary = Raw::through(&door).await.upgrade(Request::server("bystander"));
                let mut binary = binary.await;
                let phone = Raw::through(&door).await.upgrade(Request::client("bystander"));
                let mut phone = phone.await;
                let mut trips = Vec::new();
                while !stopped.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let frame = trips.len().to_string();
                    phone.send(masked(TEXT, &frame)).await;
                    let (conn_id, up) = open_envelope(&binary.recv_text().await);
                    assert_eq!(up, frame);
                    binary.send(masked(TEXT, envelope(&conn_id, &frame))).await;
                    assert_eq!(phone.recv_text().await, frame);
                    trips.push(begun.elapsed());
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                trips
            })
        });
        Self { stop, thread: Some(thread) }
    }

    fn finish(mut self) -> Vec<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().expect("all round trips of the bystanders complete")
    }
}

impl Drop for Bystanders {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Something else has failed the test already.
            let _ = thread.join();
        }
    }
}

pub fn status_bytes(relay: &Relay, key: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

pub async fn join_all<T: 'static>(mut tasks: JoinSet<T>) -> Vec<T> {
    let mut results = Vec::new();
    while let Some(result) = tasks.join_next().await {
        results.push(result.expect("an attacker saw what it should"));
    }
    results
}

/// Has a ping of its own answered, whatever comes before the answer.
pub async fn assert_open(peer: &mut Raw) {
    peer.send(masked(PING, "still there?")).await;
    while peer.frame_after_pings().await.expect("a pong, not the end").payload != b"still there?" {}
}

/// Sends the same bytes again and again until the relay ends the connection.
pub async fn flood(peer: &mut Raw, bytes: &[u8]) {
    let patience = 3 * SOON;
    let end = Instant::now() + patience;
    while peer.send_until_stuck(bytes, patience).await == bytes.len() {
        assert!(Instant::now() < end, "the relay bears the flood for {patience:?}");
    }
    assert!(Instant::now() < end, "the flood is stuck for {patience:?}");
}

/// Numbers that only need to look random.
pub struct Noise(pub u64);

impl Noise {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % limit
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }
}
