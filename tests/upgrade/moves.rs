//! Everything that moves, and goes on as it was.

use super::common::certs::Folder;
use super::common::{
    CONTINUATION, Door, End, Hostile, PONG, Process, Raw, Relay, Request, SOON, TEXT, close_frame,
    close_notice, command, envelope, masked, open_envelope, wait_until,
};
use super::puppet::{Puppet, Step, wrapper};
use super::service::{Pair, Service};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// No clock ends anything here.
const PATIENT: [&str; 10] = [
    "--write-timeout",
    "60s",
    "--close-timeout",
    "60s",
    "--message-timeout",
    "60s",
    "--header-timeout",
    "60s",
    "--probe-timeout",
    "60s",
];
/// The length of a frame of a backlog, and how many there are of them.
const PIECE: usize = 60_000;
const PIECES: usize = 40;
/// Whose connections begin with a PROXY header.
const PROXY: [u8; 4] = [127, 0, 0, 7];

fn patient<'a>(more: &[&'a str]) -> Vec<&'a str> {
    PATIENT.iter().chain(more).copied().collect()
}

/// A JSON string that tells its number.
fn piece(number: usize) -> String {
    format!("\"{number:08}{}\"", "j".repeat(PIECE - 10))
}

/// Connections in the middle of something, each of its own kind.
struct Middles {
    pairs: Vec<Pair>,
    half_header: Pair,
    half_payload: Pair,
    fragment: Pair,
    stalled: Pair,
    head: Raw,
    closing: Raw,
    holder: Pair,
    newcomer: Raw,
}

const HALF: &str = "\"said in two halves\"";

/// A frame in two parts, the first of which is so long.
fn parted(at: usize) -> [Vec<u8>; 2] {
    let frame = masked(TEXT, HALF);
    [frame[..at].to_vec(), frame[at..].to_vec()]
}

impl Middles {
    async fn new(door: &Door) -> Self {
        let raw = async || Raw::through(door).await;
        let pair = async |id: &str| Pair::by(raw().await, raw().await, id).await;
        let mut pairs = Vec::new();
        for number in 0..8 {
            pairs.push(pair(&format!("pair {number}")).await);
        }
        let mut half_header = pair("half header").await;
        half_header.phone.send(parted(1)[0].clone()).await;
        let mut half_payload = pair("half payload").await;
        half_payload.phone.send(parted(9)[0].clone()).await;
        let mut fragment = pair("fragment").await;
        fragment.phone.send(Hostile::new(TEXT, &HALF[..5]).more()).await;
        let narrow = Raw::narrow_through(door, 4096).await;
        let stalled = Pair::by(raw().await, narrow, "stalled").await;
        let mut head = raw().await;
        head.send(&Request::server("half a head").bytes()[..40]).await;
        let mut closing = raw().await.upgrade(Request::client("there is no such id")).await;
        assert_eq!(closing.recv_close().await.0, 4404);
        let mut holder = pair("claimed twice").await;
        holder.talk().await;
        let newcomer = raw().await.upgrade(Request::server("claimed twice")).await;
        Self {
            pairs,
            half_header,
            half_payload,
            fragment,
            stalled,
            head,
            closing,
            holder,
            newcomer,
        }
    }

    /// What was begun before.
    async fn fill_backlog(&mut self) {
        let Pair { binary, conn_id, .. } = &mut self.stalled;
        for number in 0..PIECES {
            binary.send(masked(TEXT, envelope(conn_id, &piece(number)))).await;
        }
        binary.assert_quiet().await;
    }

    async fn say(&mut self) {
        for pair in &mut self.pairs {
            pair.say().await;
        }
    }

    async fn talk(&mut self) {
        for pair in &mut self.pairs {
            pair.talk().await;
        }
    }

    /// Whoever was in the middle of something ends it.
    async fn end(mut self, door: &Door) {
        let halves = [(&mut self.half_header, 1), (&mut self.half_payload, 9)];
        for (pair, at) in halves {
            pair.phone.send(parted(at)[1].clone()).await;
            assert_eq!(open_envelope(&pair.binary.recv_text().await).1, HALF);
            pair.talk().await;
        }
        self.fragment.phone.send(Hostile::new(CONTINUATION, &HALF[5..])).await;
        assert_eq!(open_envelope(&self.fragment.binary.recv_text().await).1, HALF);
        self.fragment.talk().await;
        for number in 0..PIECES {
            assert_eq!(self.stalled.phone.recv_text().await, piece(number));
        }
        self.stalled.talk().await;
        self.head.send(&Request::server("half a head").bytes()[40..]).await;
        assert_eq!(self.head.response().await.status, 101);
        self.head.assert_quiet().await;
        self.closing.send(close_frame(4404, "")).await;
        assert_eq!(self.closing.assert_ended().await, End::Fin);
        let probe = self.holder.binary.recv_ping().await;
        self.holder.binary.send(masked(PONG, probe)).await;
        assert_eq!(self.newcomer.closed().await.0, 4409);
        self.holder.talk().await;
        self.talk().await;
        // Ids that are held are held.
        let mut other = Raw::through(door).await.upgrade(Request::server("pair 0")).await;
        let probe = self.pairs[0].binary.recv_ping().await;
        self.pairs[0].binary.send(masked(PONG, probe)).await;
        assert_eq!(other.closed().await.0, 4409);
    }
}

/// All kinds of connections before, during and after an upgrade.
async fn all_kinds_go_on(mut service: Service, door: &Door) {
    let mut all = Middles::new(door).await;
    all.talk().await;
    all.fill_backlog().await;
    let before = service.connections().await;
    let puppet = Puppet::new(&service.folder);
    all.say().await;
    let upgrade = service.begin(&["upgrade", "--json", "--program", &puppet.program]);
    let mut between = puppet.successor().await;
    all.say().await;
    // Nobody reads now.
    between.hold(Step::State);
    all.say().await;
    // Whoever dials waits in the listeners' queue.
    let mut late = Raw::connect_to(door.addr).await;
    let carrier = between.release();
    let report = service.upgraded_by(upgrade).await;
    carrier.join().unwrap();
    all.say().await;
    for pair in &mut all.pairs {
        pair.hear().await;
    }
    assert_eq!(report["left_out"], 0, "{report}");
    if door.tls.is_none() {
        late.send(Request::get("/healthz")).await;
        assert_eq!(late.response().await.status, 200);
    }
    let after = service.connections().await;
    let named = |rows: &BTreeMap<String, Value>| {
        let of =
            |row: &Value| (row["remote"].clone(), row["state"].clone(), row["server_id"].clone());
        rows.iter().map(|(id, row)| (id.clone(), of(row))).collect::<Vec<_>>()
    };
    assert_eq!(named(&before), named(&after), "names and places");
    for (conn_id, row) in &before {
        for traffic in ["messages_in", "messages_out", "bytes_in", "bytes_out"] {
            let (then, now) = (row[traffic].as_u64(), after[conn_id][traffic].as_u64());
            assert!(then <= now, "{traffic} of {row} is {now:?}");
        }
    }
    all.end(door).await;
}

#[tokio::test]
async fn peers_in_the_middle_of_anything_go_on_as_they_were() {
    let service = Service::start(&patient(&[])).await;
    let door = service.relay.door();
    all_kinds_go_on(service, &door).await;
}

#[tokio::test]
async fn peers_over_tls_1_3_in_the_middle_of_anything_go_on_as_they_were() {
    let service = Service::start_tls(&patient(&[])).await;
    let door = service.relay.door().speaking(&rustls::version::TLS13, &[]);
    all_kinds_go_on(service, &door).await;
}

#[tokio::test]
async fn peers_over_tls_1_2_in_the_middle_of_anything_go_on_as_they_were() {
    let service = Service::start_tls(&patient(&[])).await;
    let door = service.relay.door().speaking(&rustls::version::TLS12, &[]);
    all_kinds_go_on(service, &door).await;
}

#[tokio::test]
async fn a_record_of_tls_that_is_half_there_is_read_to_its_end() {
    let mut service = Service::start_tls(&patient(&["--workers", "1"])).await;
    let door = service.relay.door();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let door = door.speaking(version, &[]);
        let raw = async || Raw::through(&door).await;
        let mut pair = Pair::by(raw().await, raw().await, "half a record").await;
        let record = pair.phone.seal(masked(TEXT, HALF));
        pair.phone.send_past_tls(&record[..11]).await;
        service.upgrade(&[]).await;
        pair.phone.send_past_tls(&record[11..]).await;
        assert_eq!(open_envelope(&pair.binary.recv_text().await).1, HALF, "{version:?}");
        pair.talk().await;
    }
}

/// The binary header that HAProxy puts in front: this caller.
fn proxy_header(caller: [u8; 4]) -> Vec<u8> {
    let addresses = [&caller[..], &[192, 0, 2, 200], &[0x12, 0x34], &[0, 80]].concat();
    [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &addresses].concat()
}

#[tokio::test]
async fn a_proxy_header_that_is_half_there_names_its_caller_in_the_end() {
    let args = patient(&["--proxy-protocol-from", "127.0.0.7", "--rate-limit", "1/1h"]);
    let mut service = Service::start(&args).await;
    let header = proxy_header([192, 0, 2, 1]);
    let mut parts = Vec::new();
    for at in [0, 3, 15, 20] {
        let mut raw = Raw::connect_from(&service.relay, PROXY.into()).await;
        raw.send(&header[..at]).await;
        parts.push((at, raw));
    }
    service.upgrade(&[]).await;
    let mut statuses = Vec::new();
    for (number, (at, mut raw)) in parts.into_iter().enumerate() {
        let request = Request::server(format!("id {number}")).bytes();
        raw.send([&header[at..], &request].concat()).await;
        statuses.push(raw.response().await.status);
    }
    // It is one caller, who may ask once.
    assert_eq!(statuses, [101, 429, 429, 429]);
}

#[tokio::test]
async fn an_id_in_grace_can_be_reclaimed_in_what_is_left_of_its_time() {
    const GRACE: Duration = Duration::from_secs(3);
    let mut service = Service::start(&["--grace", "3s"]).await;
    let mut back = Pair::new(&service.relay, "back").await;
    let mut gone = Pair::new(&service.relay, "gone").await;
    let left = Instant::now();
    for pair in [&mut back, &mut gone] {
        std::mem::replace(&mut pair.binary, Raw::connect(&service.relay).await).hang_up();
    }
    service.relay.wait_for_counts(0, 2).await;
    let until = left + GRACE / 2;
    tokio::time::sleep_until(until.into()).await;
    service.upgrade(&[]).await;
    let upgraded = Instant::now();
    let mut binary = Raw::binary(&service.relay, "back").await;
    assert_eq!(back.phone.closed().await, (4404, "binary reclaimed server-id".to_owned()));
    assert_eq!(gone.phone.closed().await.0, 1000);
    assert!(super::common::is_over(left, GRACE), "{:?}", left.elapsed());
    assert!(upgraded.elapsed() < GRACE, "the grace began anew: {:?}", upgraded.elapsed());
    binary.assert_quiet().await;
}

// ---- what the relay knows beside its connections

fn there(last: u8) -> IpAddr {
    [127, 0, 0, last].into()
}

/// What an upgrade request from this address is answered; none if it is cut.
async fn status_from(relay: &Relay, from: IpAddr, id: &str) -> Option<u16> {
    let mut raw = Raw::try_connect_from(relay, from).await.ok()?;
    raw.try_send(Request::server(id)).await.ok()?;
    Some(raw.maybe_response().await?.status)
}

#[tokio::test]
async fn buckets_blocks_counters_and_the_doors_of_the_control_plane_go_on() {
    let mut service = Service::start(&["--rate-limit", "2/1h"]).await;
    let (greedy, blocked) = (there(5), there(6));
    for (number, status) in [101, 101, 429].into_iter().enumerate() {
        let answer = status_from(&service.relay, greedy, &format!("greedy {number}")).await;
        assert_eq!(answer, Some(status));
    }
    service.told(&["block", "127.0.0.6", "--for", "1h"]).await;
    let list = service.told(&["blocked"]).await;
    let mut pair = Pair::new(&service.relay, "id").await;
    for _ in 0..20 {
        pair.talk().await;
    }
    let health = service.relay.health().await;
    let before = service.metrics().await;
    service.upgrade(&[]).await;
    let after = service.metrics().await;
    for (name, value) in &before {
        if name.contains("_total") || name.contains("_bucket") || name.contains("_count") {
            let now = after.get(name).copied();
            assert!(now >= Some(*value), "{name}: {value} before, {now:?} after");
        }
    }
    for name in ["frames_forwarded_total", "forwarded_bytes_total", "ws_upgrade_attempts_total"] {
        let of = |all: &BTreeMap<String, f64>| -> f64 {
            let series = all.iter().filter(|(series, _)| series.contains(name));
            series.map(|(_, value)| value).sum()
        };
        assert!(of(&before) >= 2.0, "{name}: {}", of(&before));
        assert_eq!(of(&before), of(&after), "{name}");
    }
    assert_eq!(service.metric("pyrycode_relay_upgrades_total{outcome=\"succeeded\"}").await, 1.0);
    let now = service.relay.health().await;
    assert_eq!(
        (now.connected_binaries, now.connected_phones),
        (health.connected_binaries, health.connected_phones)
    );
    assert_eq!(status_from(&service.relay, greedy, "greedy again").await, Some(429));
    assert_eq!(status_from(&service.relay, blocked, "blocked").await, None);
    let rest = |list: &str| list.split_whitespace().next().map(str::to_owned);
    assert_eq!(rest(&service.told(&["blocked"]).await), rest(&list));
    service.told(&["unblock", "127.0.0.6"]).await;
    assert_eq!(status_from(&service.relay, blocked, "let in again").await, Some(101));
    pair.talk().await;
}

#[tokio::test]
async fn the_command_says_what_happened() {
    let mut service = Service::start(&[]).await;
    let mut pair = Pair::new(&service.relay, "id").await;
    let old = service.pid;
    let said = service.told(&["upgrade"]).await;
    assert!(said.starts_with("upgraded: process "), "{said}");
    assert!(said.contains(" 2 connections and 1 server-ids"), "{said}");
    assert!(said.contains("stood still for ") && said.trim_end().ends_with(" ms"), "{said}");
    assert_eq!(service.ended(old).await, Some(0));
    let line = service.relay.wait_for_log("took_over").await;
    assert!(line.get("err").unwrap().contains("2 connections"), "{}", line.raw);
    let line = service.relay.wait_for_log("upgraded").await;
    let pid = line.get("err").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    assert!(said.contains(&format!("process {pid} ")), "{said}");
    service.pid = pid;
    pair.talk().await;
    assert!(service.socket.exists(), "the control socket is the new process's");
    // It stops like any other, and takes its socket away.
    super::service::signal(pid, rustix::process::Signal::TERM);
    pair.expect_stop().await;
    assert_eq!(service.ended(pid).await, Some(0));
    assert!(!service.socket.exists());
}

#[tokio::test]
async fn the_program_is_the_one_that_is_installed_now() {
    let folder = Folder::new();
    let (program, mark) = (folder.path("relay"), folder.path("mark"));
    std::fs::hard_link(env!("CARGO_BIN_EXE_pyrycode-relay"), &program).unwrap();
    let mut service = Service::installed(&program).await;
    let mut pair = Pair::new(&service.relay, "id").await;
    // As a package does it: another file takes its place.
    wrapper(&program, &format!("echo installed >> {}", mark.display()));
    service.upgrade(&[]).await;
    assert_eq!(std::fs::read_to_string(&mark).unwrap(), "installed\n");
    pair.talk().await;
}

#[tokio::test]
async fn a_program_is_looked_for_where_the_operator_is() {
    let mut service = Service::start(&[]).await;
    let mut pair = Pair::new(&service.relay, "id").await;
    wrapper(&service.folder.path("another"), "pwd > \"$(dirname \"$0\")/cwd\"");
    let socket = service.socket.to_str().unwrap();
    let args = ["upgrade", "--json", "--program", "./another", "--control-socket", socket];
    let mut upgrade = command(&args);
    upgrade.current_dir(service.folder.path(""));
    service.upgraded_by(Process::spawn(upgrade)).await;
    pair.talk().await;
    // The new process is where the old one was.
    let folder = std::fs::read_to_string(service.folder.path("cwd")).unwrap();
    assert_eq!(Path::new(folder.trim_end()), std::env::current_dir().unwrap());
}

// ---- again and again, and in other sizes

/// Dials all the time, and counts those who are served; each must be.
struct Dialer {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<()>,
}

impl Dialer {
    fn start(addr: SocketAddr) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (stop.clone(), served.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                while !stopped.load(Ordering::Relaxed) {
                    let mut raw = Raw::connect_to(addr).await;
                    raw.send(Request::get("/healthz").set("Connection", "close")).await;
                    assert_eq!(raw.response().await.status, 200);
                    count.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
        });
        Self { stop, served, thread }
    }

    async fn has_served_more(&self) {
        let before = self.served.load(Ordering::Relaxed);
        wait_until("somebody who dials is served", SOON, async || {
            self.served.load(Ordering::Relaxed) > before + 1
        })
        .await;
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("everybody who dials is served");
    }
}

async fn talk(number: usize, door: Door, stop: Arc<AtomicBool>) {
    let (binary, phone) = (Raw::through(&door).await, Raw::through(&door).await);
    let mut pair = Pair::by(binary, phone, &format!("talker {number}")).await;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..20 {
            pair.say().await;
        }
        pair.hear().await;
    }
}

/// Pairs that talk as fast as they can, and hear everything.
struct Talkers {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Talkers {
    /// One through each of these.
    fn start(doors: Vec<Door>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let mut all = JoinSet::new();
                for (number, door) in doors.into_iter().enumerate() {
                    all.spawn(talk(number, door, stopped.clone()));
                }
                all.join_all().await;
            });
        });
        Self { stop, thread }
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("everything that is said is heard");
    }
}

#[tokio::test]
async fn upgrades_amid_a_flow_of_messages_lose_none() {
    for (mut service, doors) in [
        {
            let service = Service::start(&[]).await;
            let doors = vec![service.relay.door(); 3];
            (service, doors)
        },
        {
            let service = Service::start_tls(&[]).await;
            let door = service.relay.door();
            let versions = [&rustls::version::TLS12, &rustls::version::TLS13];
            let doors = versions.map(|version| door.speaking(version, &[])).to_vec();
            (service, doors)
        },
    ] {
        let pairs = doors.len() as u64;
        let talkers = Talkers::start(doors);
        service.relay.wait_for_counts(pairs, pairs).await;
        for _ in 0..4 {
            let before = service.metrics().await;
            service.upgrade(&[]).await;
            let flows = "pyrycode_relay_frames_forwarded_total";
            wait_until("messages flow", SOON, async || {
                let after = service.metrics().await;
                let of = |all: &BTreeMap<String, f64>| -> f64 {
                    all.iter().filter(|(name, _)| name.starts_with(flows)).map(|(_, n)| n).sum()
                };
                of(&after) > of(&before) + 100.0
            })
            .await;
        }
        talkers.finish();
    }
}

#[tokio::test]
async fn ten_upgrades_in_a_row_lose_nothing_and_refuse_nobody() {
    let mut service = Service::start(&[]).await;
    let mut pairs = Vec::new();
    for number in 0..5 {
        pairs.push(Pair::new(&service.relay, &format!("id {number}")).await);
    }
    let dialer = Dialer::start(service.relay.addr());
    for _ in 0..10 {
        for pair in &mut pairs {
            pair.say().await;
        }
        let upgrade = service.begin(&["upgrade", "--json"]);
        for pair in &mut pairs {
            pair.say().await;
        }
        let report = service.upgraded_by(upgrade).await;
        assert!(report["connections"].as_u64() >= Some(10), "{report}");
        for pair in &mut pairs {
            pair.say().await;
            pair.hear().await;
        }
        dialer.has_served_more().await;
    }
    dialer.finish();
    assert_eq!(service.metric("pyrycode_relay_upgrades_total{outcome=\"succeeded\"}").await, 10.0);
}

#[tokio::test]
async fn other_sizes_are_read_from_the_configuration_file_afresh() {
    let folder = Folder::new();
    let write = |workers: usize| {
        let text = format!(
            "workers = {workers}\nmemory-budget = {}MiB\nlog-format = json\nrate-limit = off\n\
             handshake-rate = off\ninsecure-listen = 127.0.0.1:0\n",
            64 * workers
        );
        folder.write("relay.conf", text)
    };
    let config = write(1);
    let mut service = Service::configured(&config).await;
    let mut pairs = Vec::new();
    for number in 0..12 {
        pairs.push(Pair::new(&service.relay, &format!("id {number}")).await);
    }
    let dialer = Dialer::start(service.relay.addr());
    for workers in [3, 2, 1] {
        write(workers);
        for pair in &mut pairs {
            pair.say().await;
        }
        service.upgrade(&[]).await;
        let threads = std::fs::read_dir(format!("/proc/{}/task", service.pid)).unwrap();
        let names = threads.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")));
        let names: Vec<String> = names.map(Result::unwrap_or_default).collect();
        let of_workers = names.iter().filter(|name| name.starts_with("worker")).count();
        assert_eq!(of_workers, workers, "{names:?}");
        for pair in &mut pairs {
            pair.talk().await;
        }
        // New phones find old binaries, whoever owns their id now.
        for (number, pair) in pairs.iter_mut().enumerate() {
            let mut phone = Raw::phone(&service.relay, &format!("id {number}")).await;
            phone.send(masked(TEXT, "2")).await;
            let (conn_id, frame) = open_envelope(&pair.binary.recv_text().await);
            assert_eq!(frame, "2");
            phone.send(close_frame(1000, "")).await;
            assert_eq!(pair.binary.recv_text().await, close_notice(&conn_id, 1000));
        }
        dialer.has_served_more().await;
    }
    dialer.finish();
}
