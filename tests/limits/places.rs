//! Live connections: how many there may be, and that the place of each is free again, however it
//! has ended.

use super::common::{
    CLOSE, Hostile, PONG, Raw, Relay, Request, SOON, Signal, TEXT, close_directive, close_frame,
    limit_descriptors, masked, open_envelope, wait_until,
};
use super::{HERE, ask, new_id, retry_after, status, there};
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// As many as a house has.
const PLACES: usize = 6;

/// Deadlines short enough to wait for, and long enough for who has to do something before them on
/// a machine that is busy.
const IMPATIENT: [&str; 14] = [
    "--max-phones",
    "1",
    "--grace",
    "1s",
    "--probe-timeout",
    "1s",
    "--message-timeout",
    "300ms",
    "--write-timeout",
    "500ms",
    "--close-timeout",
    "300ms",
    "--header-timeout",
    "2s",
];

/// A relay with few places, and an address that may have all of them.
struct House {
    relay: Relay,
}

impl House {
    async fn open(limits: &[&str]) -> Self {
        Self { relay: Relay::start(&[&IMPATIENT[..], limits].concat()).await }
    }

    /// Has a 101, as soon as there is a place.
    async fn enter(&self, request: Request) -> Raw {
        self.enter_by(request, async || Raw::connect(&self.relay).await).await
    }

    async fn enter_by(&self, request: Request, dial: impl AsyncFn() -> Raw) -> Raw {
        let (status, raw) = self.ask_by(request, dial).await;
        assert_eq!(status, 101);
        raw
    }

    /// What a request is answered as soon as there is a place for it. A peer that has seen the end
    /// of a connection, or has ended it, may be ahead of the relay.
    async fn ask_by(&self, request: Request, dial: impl AsyncFn() -> Raw) -> (u16, Raw) {
        let end = Instant::now() + SOON;
        loop {
            let mut raw = dial().await;
            raw.send(request.clone()).await;
            match raw.response().await.status {
                503 => assert!(Instant::now() < end, "no place is free"),
                status => return (status, raw),
            }
        }
    }

    async fn binary(&self, id: &str) -> Raw {
        self.enter(Request::server(id)).await
    }

    async fn phone(&self, id: &str) -> Raw {
        self.enter(Request::client(id)).await
    }

    async fn narrow(&self, request: Request) -> Raw {
        self.enter_by(request, async || Raw::narrow(&self.relay, 4096).await).await
    }

    /// A binary, a phone of it, and its conn_id.
    async fn couple(&self, id: &str) -> (Raw, Raw, String) {
        let mut binary = self.binary(id).await;
        let mut phone = self.phone(id).await;
        let conn_id = meet(&mut binary, &mut phone).await;
        (binary, phone, conn_id)
    }

    /// All places can be taken, and no more.
    async fn assert_all_free(&self) {
        let mut everybody = Vec::new();
        for _ in 0..PLACES {
            everybody.push(self.binary(&new_id()).await);
        }
        for request in [Request::server(new_id()), Request::client(new_id())] {
            let (response, mut raw) = ask(&self.relay, HERE, request).await;
            assert_eq!(response.status, 503);
            assert_eq!(retry_after(&response), 10);
            assert_eq!(response.body, b"too many connections\n");
            raw.assert_ended().await;
        }
        for raw in &mut everybody {
            raw.assert_quiet().await;
        }
        for raw in everybody {
            raw.abort();
        }
    }
}

async fn meet(binary: &mut Raw, phone: &mut Raw) -> String {
    phone.send(masked(TEXT, "\"hello\"")).await;
    open_envelope(&binary.recv_text().await).0
}

async fn closed(mut raw: Raw) -> u16 {
    raw.closed().await.0
}

/// Runs each way in which a connection ends, and demands all places after each.
macro_rules! after_each {
    ($house:expr, $($way:ident),+ $(,)?) => {
        $(
            $way(&$house).await;
            $house.assert_all_free().await;
            println!("all places are free after: {}", stringify!($way));
        )+
    };
}

async fn refused_heads(house: &House) {
    let mut kept = Vec::new();
    for _ in 0..2 {
        for (request, expected) in [
            (Request::server(new_id()).without("X-Pyrycode-Version"), 400),
            (Request::client(new_id()).without("X-Pyrycode-Token"), 400),
            (Request::server(new_id()).set("Sec-WebSocket-Version", "12"), 400),
            (Request::server(new_id()).without("Upgrade"), 426),
            (Request::server(new_id()).method("POST"), 405),
        ] {
            let dial = async || Raw::connect(&house.relay).await;
            let (status, raw) = house.ask_by(request, dial).await;
            assert_eq!(status, expected);
            kept.push(raw);
        }
    }
    // Nobody who was refused has gone yet, and still their places are free.
    house.assert_all_free().await;
}

async fn closes_of_theirs(house: &House) {
    for code in [1000, 4321] {
        let (mut binary, mut phone, _) = house.couple(&new_id()).await;
        for raw in [&mut phone, &mut binary] {
            raw.send(close_frame(code, "")).await;
        }
        let frame = phone.frame_after_pings().await.unwrap();
        assert_eq!((frame.opcode, frame.close().0), (CLOSE, code));
        phone.assert_ended().await;
    }
}

async fn bare_ends(house: &House) {
    let (binary, phone, _) = house.couple(&new_id()).await;
    drop((binary, phone));
    let (mut binary, _phone, _) = house.couple(&new_id()).await;
    binary.finish().await;
    binary.assert_ended().await;
}

async fn resets(house: &House) {
    let (binary, phone, _) = house.couple(&new_id()).await;
    phone.abort();
    binary.abort();
}

async fn killed_peers(house: &House) {
    for request in [Request::server(new_id()), Request::client(new_id())] {
        let socket = house.enter(request).await.into_socket();
        let peer = Stdio::from(std::os::fd::OwnedFd::from(socket));
        let mut peer = Command::new("sleep").arg("60").stdin(peer).spawn().unwrap();
        peer.kill().unwrap();
        peer.wait().unwrap();
    }
}

async fn phones_of_nobody(house: &House) {
    assert_eq!(closed(house.phone(&new_id()).await).await, 4404);
}

async fn phones_of_a_binary_that_came_back(house: &House) {
    let id = new_id();
    let (binary, phone, _) = house.couple(&id).await;
    binary.abort();
    house.relay.wait_for_log_where("server_released", |l| l.get("server_id") == Some(&id)).await;
    let _back = house.binary(&id).await;
    assert_eq!(closed(phone).await, 4404);
}

async fn phones_of_a_binary_that_did_not(house: &House) {
    let (binary, phone, _) = house.couple(&new_id()).await;
    binary.abort();
    assert_eq!(closed(phone).await, 1000);
}

async fn one_phone_too_many(house: &House) {
    let id = new_id();
    let (_binary, _phone, _) = house.couple(&id).await;
    assert_eq!(closed(house.phone(&id).await).await, 4429);
}

async fn claims_in_vain(house: &House) {
    let id = new_id();
    let mut holder = house.binary(&id).await;
    let newcomer = house.binary(&id).await;
    let ping = holder.recv_ping().await;
    holder.send(masked(PONG, ping)).await;
    assert_eq!(closed(newcomer).await, 4409);
}

async fn takeovers(house: &House) {
    let id = new_id();
    let mut holder = house.binary(&id).await;
    let _newcomer = house.binary(&id).await;
    holder.recv_ping().await;
    assert_eq!(closed(holder).await, 1011);
}

async fn directives(house: &House) {
    let (mut binary, phone, conn_id) = house.couple(&new_id()).await;
    binary.send(masked(TEXT, close_directive(&conn_id, 4001))).await;
    assert_eq!(closed(phone).await, 4001);
}

async fn breaches(house: &House) {
    let (_binary, mut phone, _) = house.couple(&new_id()).await;
    let mut other = house.binary(&new_id()).await;
    phone.send(Hostile::new(TEXT, "1").unmasked()).await;
    other.send(Hostile::new(TEXT, "1").rsv(1)).await;
    assert_eq!((closed(phone).await, closed(other).await), (1002, 1002));
}

async fn no_json(house: &House) {
    let (_binary, mut phone, _) = house.couple(&new_id()).await;
    phone.send(masked(TEXT, "{")).await;
    assert_eq!(closed(phone).await, 1000);
}

async fn half_messages(house: &House) {
    let mut binary = house.binary(&new_id()).await;
    binary.send(Hostile::new(TEXT, "{").more()).await;
    binary.assert_ended().await;
}

async fn unanswered_closes(house: &House) {
    let mut phone = house.phone(&new_id()).await;
    assert_eq!(phone.recv_close().await.0, 4404);
    phone.assert_ended().await;
}

async fn phones_that_do_not_read(house: &House) {
    let id = new_id();
    let mut binary = house.binary(&id).await;
    let mut phone = house.narrow(Request::client(&id)).await;
    let conn_id = meet(&mut binary, &mut phone).await;
    let frame = format!("{{\"conn_id\":\"{conn_id}\",\"frame\":\"{}\"}}", "x".repeat(250_000));
    let gone = async || house.relay.health().await.connected_phones == 0;
    while !gone().await {
        binary.send(masked(TEXT, &frame)).await;
    }
}

async fn binaries_that_do_not_read(house: &House) {
    let id = new_id();
    let _binary = house.narrow(Request::server(&id)).await;
    let mut phone = house.phone(&id).await;
    let flood = masked(TEXT, format!("\"{}\"", "x".repeat(250_000))).repeat(40);
    phone.send_until_stuck(&flood, Duration::from_millis(300)).await;
    let of_write = |err: Option<&str>| err.is_some_and(|err| err.contains("--write-timeout"));
    house.relay.wait_for_log_where("connection_lost", |line| of_write(line.get("err"))).await;
}

async fn every_way_out(limits: &[&str]) -> House {
    let house = House::open(limits).await;
    house.assert_all_free().await;
    after_each!(
        house,
        refused_heads,
        closes_of_theirs,
        bare_ends,
        resets,
        killed_peers,
        phones_of_nobody,
        phones_of_a_binary_that_came_back,
        phones_of_a_binary_that_did_not,
        one_phone_too_many,
        claims_in_vain,
        takeovers,
        directives,
        breaches,
        no_json,
        half_messages,
        unanswered_closes,
        phones_that_do_not_read,
        binaries_that_do_not_read,
    );
    house
}

/// Everybody is told, and the process ends although all places were taken.
async fn shut_down(mut house: House) {
    let mut everybody = Vec::new();
    for _ in 0..PLACES {
        everybody.push(house.binary(&new_id()).await);
    }
    house.relay.signal(Signal::Term);
    for raw in everybody {
        assert_eq!(closed(raw).await, 1001);
    }
    assert!(house.relay.wait_exit(SOON).await.status.success());
}

#[tokio::test]
async fn every_way_out_leaves_a_place_of_the_process() {
    let limits = ["--max-connections", "6", "--max-connections-per-address", "off"];
    let house = every_way_out(&limits).await;
    let _everybody: [Raw; PLACES] = [
        house.binary("a").await,
        house.binary("b").await,
        house.binary("c").await,
        house.phone("a").await,
        house.phone("b").await,
        house.phone("c").await,
    ];
    assert_eq!(status(&house.relay, there(2), Request::server("d")).await, 503, "for everyone");
    assert_eq!(status(&house.relay, there(2), Request::get("/healthz")).await, 200);
    house.relay.wait_for_log("conn_cap_reached").await;
    drop(_everybody);
    shut_down(house).await;
}

#[tokio::test]
async fn every_way_out_leaves_a_place_of_the_address() {
    let house = every_way_out(&["--max-connections-per-address", "6"]).await;
    let mut everybody = Vec::new();
    for _ in 0..PLACES {
        everybody.push(house.binary(&new_id()).await);
    }
    assert_eq!(status(&house.relay, HERE, Request::server("d")).await, 503);
    for number in 2..5 {
        assert_eq!(status(&house.relay, there(number), Request::server(new_id())).await, 101);
    }
    let line = house.relay.wait_for_log("conn_cap_reached").await;
    assert!(line.get("remote").unwrap().starts_with("127.0.0.1:"), "{}", line.raw);
    assert!(line.get("err").unwrap().contains("--max-connections-per-address"), "{}", line.raw);
    drop(everybody);
    shut_down(house).await;
}

#[tokio::test]
async fn heartbeats_that_fail_leave_their_places() {
    let beat = ["--heartbeat-interval", "100ms", "--heartbeat-timeout", "100ms"];
    let house = House::open(&[&beat[..], &["--max-connections", "6"]].concat()).await;
    for _ in 0..2 {
        let mut everybody = Vec::new();
        for _ in 0..PLACES {
            everybody.push(house.binary(&new_id()).await);
        }
        for mut raw in everybody {
            raw.recv_ping().await;
            // The others are pinged and closed meanwhile.
            let frame = loop {
                let frame = raw.frame().await;
                if frame.opcode == CLOSE {
                    break frame;
                }
            };
            assert_eq!(frame.close(), (1011, "heartbeat timeout"));
        }
    }
}

#[tokio::test]
async fn a_place_is_taken_from_the_101_on_and_not_before() {
    let house = House::open(&["--max-connections", "1"]).await;
    // Sockets that ask for nothing, or for something else, or have not asked to the end.
    let mut idle = Vec::new();
    for _ in 0..5 {
        let mut raw = Raw::connect(&house.relay).await;
        raw.send(Request::get("/healthz")).await;
        assert_eq!(raw.response().await.status, 200);
        raw.send("GET /v1/server HTTP/1.1\r\n").await;
        idle.push(raw);
    }
    let mut binary = house.binary("id").await;
    assert_eq!(status(&house.relay, HERE, Request::client("id")).await, 503);
    binary.assert_quiet().await;
    for mut raw in idle {
        assert_eq!(raw.response().await.status, 408);
    }
}

#[tokio::test]
async fn sockets_that_do_not_ask_are_few_for_each_address() {
    let args = ["--max-connections-per-address", "20", "--header-timeout", "60s"];
    let relay = Relay::start(&args).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        let mut raw = Raw::connect_from(&relay, there(2)).await;
        // With this it has been accepted for sure.
        raw.send(Request::get("/healthz")).await;
        assert_eq!(raw.response().await.status, 200);
        silent.push(raw);
    }
    for _ in 0..2 {
        assert!(!is_served(&relay, there(2)).await);
    }
    let line = relay.wait_for_log("conn_cap_reached").await;
    assert!(line.get("remote").unwrap().starts_with("127.0.0.2:"), "{}", line.raw);
    assert_eq!(status(&relay, there(3), Request::server("id")).await, 101);
    // One that asks makes room for another.
    let mut asks = silent.pop().unwrap();
    asks.send(Request::server("other")).await;
    assert_eq!(asks.response().await.status, 101);
    let mut next = Raw::connect_from(&relay, there(2)).await;
    next.send(Request::get("/healthz")).await;
    assert_eq!(next.response().await.status, 200);
    drop(silent);
    wait_until("room again", SOON, async || is_served(&relay, there(2)).await).await;
}

/// Whether a new connection is not cut before it can ask.
async fn is_served(relay: &Relay, address: IpAddr) -> bool {
    let Ok(mut raw) = Raw::try_connect_from(relay, address).await else { return false };
    raw.try_send(Request::get("/healthz")).await.is_ok() && raw.maybe_response().await.is_some()
}

#[tokio::test]
async fn the_default_is_worked_out_and_said() {
    let relay =
        Relay::start_with(&["--workers", "1"], |command| limit_descriptors(command, 100, 3000))
            .await;
    let line = relay.wait_for_log("limits").await;
    let said = line.get("err").unwrap();
    assert!(said.contains("descriptors allow 2480, memory "), "{said}");
    assert!(said.contains("--max-connections-per-address 620 --rate-limit off"), "{said}");
}
