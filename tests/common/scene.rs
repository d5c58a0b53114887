//! A relay under attack: beside the attackers a healthy pair on each worker and newcomers, memory and
//! descriptors watched. How long bystanders took is printed, and judged only widely: `loadtest
//! hostile` measures it. `HOSTILE_SCALE=8` makes each attack eight times as large.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::{
    Door, PING, Raw, Relay, Request, SOON, TEXT, envelope, masked, open_envelope, wait_until,
};

/// The memory budget of every relay here.
pub const BUDGET: &str = "16MiB";
const BUDGET_BYTES: usize = 16 << 20;
/// What the relay's resident memory may grow by beyond half as much again as was charged, whatever the
/// attack: what a thousand connections cost, and pages that every relay touches once.
const ALLOWANCE_BYTES: usize = 12 << 20;
/// The budget, and where it is told what is charged to it.
const WATCHED: [&str; 4] = ["--memory-budget", BUDGET, "--metrics-listen", "127.0.0.1:0"];
/// How often it is asked.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// `HOSTILE_SCALE` times as many.
pub fn scaled(count: usize) -> usize {
    let scale = std::env::var("HOSTILE_SCALE").ok();
    count * scale.map_or(1, |scale| scale.parse().expect("HOSTILE_SCALE is a number"))
}

/// How long 99 of 100 round trips of bystanders may take, and of new connections: far more than on a
/// quiet machine, for the suite runs beside others.
const BEARABLE: Duration = Duration::from_secs(5);
/// Between two round trips, and two new connections.
const PAUSE: Duration = Duration::from_millis(5);

/// A relay under attack, with a healthy pair on each of its two workers, and newcomers.
pub struct Scene {
    attack: &'static str,
    // Leave before the relay is killed.
    charged: Option<Charged>,
    pairs: Option<Bystanders>,
    newcomers: Option<Bystanders>,
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
        let args = [args, &WATCHED].concat();
        Self::begin_on(attack, Relay::start(&args).await).await
    }

    /// The same with a relay of HTTPS, and bystanders who reach it so.
    pub async fn begin_tls(attack: &'static str, args: &[&str]) -> Self {
        let args = [args, &WATCHED].concat();
        Self::begin_on(attack, Relay::start_tls(&args).await).await
    }

    pub async fn begin_on(attack: &'static str, relay: Relay) -> Self {
        let metrics = relay.logs().into_iter().find(|l| l.event() == "listening_for_metrics");
        let metrics = metrics.map(|line| line.get("remote").unwrap().parse().unwrap());
        let ids = an_id_of_each_worker(&relay).await;
        let pairs = Some(Bystanders::start(relay.door(), |door, stop| pairs(door, ids, stop)));
        relay.wait_for_counts(2, 2).await;
        // The connection that asked for the counts goes last.
        let mut descriptors = relay.descriptors();
        wait_until("a steady number of descriptors", SOON, async || {
            let before = std::mem::replace(&mut descriptors, relay.descriptors());
            before == descriptors
        })
        .await;
        let resident = status_bytes(&relay, "VmRSS:");
        let newcomers = Some(Bystanders::start(relay.door(), newcomers));
        let charged = metrics.map(Charged::watch);
        Self { attack, charged, pairs, newcomers, relay, descriptors, resident }
    }

    /// The same without newcomers, for an attack that leaves no descriptor to anyone.
    pub fn closed_to_newcomers(mut self) -> Self {
        drop(self.newcomers.take());
        self
    }

    /// Waits until `/healthz` counts so many binaries and phones beside the bystanders.
    pub async fn wait_for_others(&self, binaries: u64, phones: u64) {
        self.relay.wait_for_counts(2 + binaries, 2 + phones).await;
    }

    /// Everyone but the pairs is gone: the relay must be as it was, have been within its memory all
    /// the time, and have served bystanders all the time.
    pub async fn end(mut self) {
        let newcomers = self.newcomers.take().map(Bystanders::finish);
        let relay = &self.relay;
        wait_until("descriptors to return", SOON, async || relay.descriptors() <= self.descriptors)
            .await;
        relay.wait_for_counts(2, 2).await;
        let pairs = self.pairs.take().unwrap().finish();
        let seen = self.charged.take().map(Charged::peak);
        // What is told is up to a tenth of a second old. One that sheds has charged all.
        let has_shed = relay.logs().iter().any(|line| line.event() == "memory_budget_shed");
        let charged = if has_shed { Some(BUDGET_BYTES) } else { seen };
        let peak = status_bytes(relay, "VmHWM:").saturating_sub(self.resident);
        let after = status_bytes(relay, "VmRSS:").saturating_sub(self.resident);
        println!(
            "{:<28} round trips: {pairs}; newcomers: {}; memory +{} KiB at its peak \
             ({} KiB charged), +{} KiB after",
            self.attack,
            newcomers.as_ref().map_or("none".into(), Times::to_string),
            peak / 1024,
            charged.unwrap_or(0) / 1024,
            after / 1024,
        );
        let most = charged.unwrap_or(BUDGET_BYTES) * 3 / 2 + ALLOWANCE_BYTES;
        assert!(peak <= most, "memory grew by {peak} bytes, and {charged:?} were charged");
        for (who, times) in [("connected pairs", Some(pairs)), ("newcomers", newcomers)] {
            let p99 = times.map_or(Duration::ZERO, |times| times.at(99));
            assert!(p99 <= BEARABLE, "{who} are served after {p99:?}");
        }
    }
}

/// Waits until each of two workers has made all that it is made of: descriptors, too. Returns a
/// server-id of each.
async fn an_id_of_each_worker(relay: &Relay) -> [String; 2] {
    for number in 0.. {
        Raw::binary(relay, &format!("bystander {number}")).await.abort();
        let logs = relay.logs();
        let of = |core| {
            let mut claims = logs.iter().filter(|line| line.event() == "server_claimed");
            let claim = claims.find(|line| line.get("core") == Some(core))?;
            claim.get("server_id").map(str::to_owned)
        };
        if let (Some(first), Some(second)) = (of("0"), of("1")) {
            return [first, second];
        }
        assert!(number < 1000, "1000 ids of one worker");
    }
    unreachable!()
}

/// How long each of something took, in order.
struct Times(Vec<Duration>);

impl Times {
    fn at(&self, percent: usize) -> Duration {
        let last = self.0.len() - 1;
        self.0[(self.0.len() * percent / 100).min(last)]
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, max] = [50, 99, 100].map(|percent| self.at(percent));
        write!(f, "{:>5}, p50 {p50:>7.2?} p99 {p99:>7.2?} max {max:>7.2?}", self.0.len())
    }
}

/// Honest peers that go on for as long as the attack lasts, on a thread of their own.
struct Bystanders {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Duration>>>,
}

impl Bystanders {
    fn start<F>(door: Door, what: impl FnOnce(Door, Arc<AtomicBool>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Vec<Duration>>,
    {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(what(door, stopped))
        });
        Self { stop, thread: Some(thread) }
    }

    fn finish(mut self) -> Times {
        self.stop.store(true, Ordering::Relaxed);
        let mut times = self.thread.take().unwrap().join().expect("all bystanders are served");
        assert!(!times.is_empty(), "no bystander was served");
        times.sort();
        Times(times)
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

/// The round trips of a binary and a phone of each of these ids.
async fn pairs(door: Door, ids: [String; 2], stop: Arc<AtomicBool>) -> Vec<Duration> {
    let [first, second] = ids.map(|id| pair(&door, id, &stop));
    let (first, second) = tokio::join!(first, second);
    [first, second].concat()
}

async fn pair(door: &Door, id: String, stop: &AtomicBool) -> Vec<Duration> {
    let mut binary = Raw::through(door).await.upgrade(Request::server(&id)).await;
    let mut phone = Raw::through(door).await.upgrade(Request::client(&id)).await;
    let mut trips = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let frame = trips.len().to_string();
        phone.send(masked(TEXT, &frame)).await;
        let (conn_id, up) = open_envelope(&binary.recv_text().await);
        assert_eq!(up, frame);
        binary.send(masked(TEXT, envelope(&conn_id, &frame))).await;
        assert_eq!(phone.recv_text().await, frame);
        trips.push(begun.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
    trips
}

/// How long new connections take: TCP, TLS, upgrade, and the first frame, which says that there is no
/// such server-id. Each asks for another, and so for any of the workers.
async fn newcomers(door: Door, stop: Arc<AtomicBool>) -> Vec<Duration> {
    let mut visits = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let id = format!("nobody {}", visits.len());
        let mut phone = Raw::through(&door).await.upgrade(Request::client(&id)).await;
        assert_eq!(phone.recv_close().await.0, 4404);
        visits.push(begun.elapsed());
        phone.abort();
        tokio::time::sleep(PAUSE).await;
    }
    visits
}

/// Looks what the relay charges to its memory budget, on a thread of its own.
struct Charged {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Charged {
    fn watch(metrics: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut peak = 0;
            while !stopped.load(Ordering::Relaxed) {
                // One that has no descriptor left is asked again.
                peak = peak.max(charged_bytes(metrics).unwrap_or(0));
                std::thread::sleep(ASK_EVERY);
            }
            peak
        });
        Self { stop, thread }
    }

    /// The most that it was.
    fn peak(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn charged_bytes(metrics: SocketAddr) -> std::io::Result<usize> {
    let mut stream = std::net::TcpStream::connect(metrics)?;
    stream.set_read_timeout(Some(SOON))?;
    let host = format!("Host: {metrics}\r\nConnection: close\r\n\r\n");
    stream.write_all(format!("GET /metrics HTTP/1.1\r\n{host}").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let of_core = |line: &str| {
        let line = line.strip_prefix("pyrycode_relay_memory_charged_bytes{")?;
        line.rsplit_once(' ')?.1.parse::<f64>().ok()
    };
    Ok(text.lines().filter_map(of_core).sum::<f64>() as usize)
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

/// Sends the same bytes again and again for so long, or until the relay ends the connection, and reads
/// what comes.
pub async fn pour(peer: &mut Raw, bytes: &[u8], time: Duration) {
    const A_MOMENT: Duration = Duration::from_millis(5);
    let end = Instant::now() + time;
    let mut at = 0;
    while Instant::now() < end {
        let sent = peer.send_until_stuck(&bytes[at..], A_MOMENT).await;
        at = (at + sent) % bytes.len();
        match tokio::time::timeout(A_MOMENT, peer.sip(256 * 1024)).await {
            Ok(None) => return,
            Ok(Some(_)) => {}
            // There is nothing to read.
            Err(_) if sent > 0 => {}
            Err(_) => tokio::time::sleep(A_MOMENT).await,
        }
    }
}

/// Reads and forgets for so long, or until the relay ends the connection.
pub async fn drain(mut peer: Raw, time: Duration) {
    let _ =
        tokio::time::timeout(time, async { while peer.sip(256 * 1024).await.is_some() {} }).await;
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
