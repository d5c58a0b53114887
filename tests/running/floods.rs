//! What floods cost in the log, and that they hide nothing (PROTOCOL.md, chapter 7).

use super::{assert_code, assert_well_formed, exchange, pair};
use crate::common::{
    LogLine, Raw, Relay, Request, SOON, Signal, TEXT, command, envelope, masked, own_address,
    scene, wait_until,
};

const FORMATS: [&str; 2] = ["text", "json"];
const MESSAGES: usize = 30_000;
/// What the log keeps for stderr, which is what waits and what is being written.
const LOG_QUEUE_BYTES: usize = 1024 * 1024;

/// A relay of one worker, so that its lines are in order, that ends soon when it is asked to.
async fn start(format: &str) -> Relay {
    Relay::start(&["--workers", "1", "--close-timeout", "100ms", "--log-format", format]).await
}

/// The lines of `event` about `server_id`.
fn of<'a>(lines: &'a [LogLine], event: &str, server_id: &str) -> Vec<&'a LogLine> {
    let is_its =
        |line: &&LogLine| line.event() == event && line.get("server_id") == Some(server_id);
    lines.iter().filter(is_its).collect()
}

/// How often something happened by its lines.
fn times(lines: &[&LogLine]) -> usize {
    lines.iter().map(|line| line.times()).sum()
}

async fn lines_at_the_end(relay: &mut Relay, format: &str) -> Vec<LogLine> {
    relay.signal(Signal::Term);
    let exit = relay.wait_exit(2 * SOON).await;
    assert_code(&exit, 0, "SIGTERM");
    let lines: Vec<LogLine> = exit.stderr.lines().map(LogLine::parse).collect();
    assert_well_formed(&lines, format);
    lines
}

#[tokio::test]
async fn a_flooding_binary_costs_a_few_lines_and_a_count_and_hides_nobody() {
    for format in FORMATS {
        let mut relay = start(format).await;
        let (mut flooder, mut phone, conn_id) = pair(&relay, "flood").await;
        let unknown = masked(TEXT, envelope("nobody", "1"));
        let malformed = masked(TEXT, "no envelope");
        let mix = [unknown.as_slice(), &malformed].concat();
        for flood in [unknown, malformed, mix] {
            flooder.send(flood.repeat(MESSAGES)).await;
        }
        // Amid the flood, somebody else makes the same mistakes once.
        let (mut binary, _phone, _) = pair(&relay, "bystander").await;
        binary.send(masked(TEXT, "no envelope")).await;
        binary.send(masked(TEXT, envelope("nobody", "1"))).await;
        for event in ["server_claimed", "phone_registered", "binary_forwarder_bad_envelope"] {
            let is_its = |line: &LogLine| line.get("server_id") == Some("bystander");
            relay.wait_for_log_where(event, is_its).await;
        }
        exchange(&mut flooder, &mut phone, &conn_id, 1).await;
        let lines = lines_at_the_end(&mut relay, format).await;
        for event in ["binary_forwarder_bad_envelope", "binary_forwarder_unknown_conn_id"] {
            let flood = of(&lines, event, "flood");
            assert_eq!(flood.len(), 6, "{flood:?}");
            assert_eq!(times(&flood), 2 * MESSAGES, "{flood:?}");
            let bystander = of(&lines, event, "bystander");
            assert_eq!((bystander.len(), times(&bystander)), (1, 1), "{bystander:?}");
        }
        assert!(lines.iter().all(|line| line.event() != "log_lines_lost"), "{lines:?}");
    }
}

#[tokio::test]
async fn the_count_of_a_binary_that_is_gone_is_told_when_its_grace_is_over() {
    let relay = Relay::start(&["--grace", "100ms"]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    binary.send(masked(TEXT, "no envelope").repeat(100)).await;
    exchange(&mut binary, &mut phone, &conn_id, 1).await;
    binary.abort();
    let told = |line: &LogLine| line.times() == 95;
    relay.wait_for_log_where("binary_forwarder_bad_envelope", told).await;
    relay.wait_for_log("grace_expired").await;
}

#[tokio::test]
async fn phones_that_reconnect_cost_lines_by_server_id_and_are_all_counted() {
    const PHONES: usize = 300;
    for format in FORMATS {
        let mut relay = start(format).await;
        let _flooded = Raw::binary(&relay, "flood").await;
        let mut binary = Raw::binary(&relay, "bystander").await;
        for number in 0..PHONES {
            let phone = Raw::phone(&relay, "flood").await;
            if number == PHONES / 2 {
                let mut phone = Raw::phone(&relay, "bystander").await;
                phone.send(masked(TEXT, "no json")).await;
                binary.recv_text().await;
                phone.closed().await;
            }
            phone.abort();
            relay.wait_for_counts(2, 0).await;
        }
        let lines = lines_at_the_end(&mut relay, format).await;
        for event in ["phone_registered", "phone_unregistered"] {
            let flood = of(&lines, event, "flood");
            assert_eq!(flood.len(), 21, "{flood:?}");
            assert_eq!(times(&flood), PHONES, "{flood:?}");
            assert_eq!(flood[20].get("remote"), Some("127.0.0.1"), "{}", flood[20].raw);
            assert_eq!(of(&lines, event, "bystander").len(), 1);
        }
        let lost: Vec<&LogLine> =
            lines.iter().filter(|line| line.event() == "connection_lost").collect();
        assert_eq!((lost.len(), times(&lost)), (21, PHONES), "{lost:?}");
        assert!(lines.iter().any(|line| line.event() == "phone_sent_no_json"));
    }
}

#[tokio::test]
async fn one_address_that_breaks_the_rules_hides_no_other() {
    let mut relay = start("text").await;
    for _ in 0..100 {
        let mut rude = Raw::connect_from(&relay, [127, 0, 0, 2].into()).await;
        rude = rude.upgrade(Request::server("id")).await;
        rude.send(masked(3, "")).await;
        rude.closed().await;
    }
    for number in 3..30 {
        let mut rude = Raw::connect_from(&relay, [127, 0, number, 1].into()).await;
        rude = rude.upgrade(Request::server("id")).await;
        rude.send(masked(3, "")).await;
        rude.closed().await;
    }
    let lines = lines_at_the_end(&mut relay, "text").await;
    let of = |address: &str| -> Vec<&LogLine> {
        let is_its = |line: &&LogLine| {
            let remote = line.get("remote").unwrap_or_default();
            line.event() == "websocket_protocol_error" && remote.split(':').next() == Some(address)
        };
        lines.iter().filter(is_its).collect()
    };
    let flood = of("127.0.0.2");
    assert_eq!((flood.len(), times(&flood)), (21, 100), "{flood:?}");
    for number in 3..30 {
        assert_eq!(of(&format!("127.0.{number}.1")).len(), 1, "{number}");
    }
}

/// Nobody reads the log, and standard output is gone: the relay neither stops for it nor gathers
/// lines without end, and still ends when it is asked to.
#[tokio::test]
async fn a_log_that_nobody_reads_stops_nothing() {
    const LINES: usize = 3000;
    let addr = own_address();
    let (reader, writer) = std::io::pipe().unwrap();
    let (gone, stdout) = std::io::pipe().unwrap();
    drop(gone);
    let metrics = own_address();
    let command = command(&[
        "--insecure-listen",
        &addr.to_string(),
        "--metrics-listen",
        &metrics.to_string(),
        "--workers",
        "2",
        "--rate-limit",
        "off",
    ]);
    let process = crate::common::Process::spawn_with(command, stdout, writer);
    let mut relay = Relay::accepting(process, addr).await;
    let (mut binary, mut phone, conn_id) = pair(&relay, "id").await;
    // Each of these is a line of more than a kilobyte, and all of them are more than twice what the
    // pipe and the queue hold.
    let name = "\u{e9}".repeat(128);
    let mut resident = 0;
    for number in 0..LINES {
        let request = Request::client(format!("{number}{}", &name[..240]))
            .header("X-Pyrycode-Device-Name", &name);
        Raw::connect(&relay).await.upgrade(request).await.closed().await;
        if number == LINES / 10 {
            resident = scene::status_bytes(&relay, "VmRSS:");
        }
    }
    exchange(&mut binary, &mut phone, &conn_id, 1).await;
    let grown = scene::status_bytes(&relay, "VmRSS:").saturating_sub(resident);
    assert!(grown < 2 * LOG_QUEUE_BYTES, "{grown} bytes");
    wait_until("lost lines are counted", SOON, async || {
        let mut raw = Raw::connect_to(metrics).await;
        raw.send(Request::get("/metrics").set("Host", metrics.to_string())).await;
        let body = String::from_utf8(raw.response().await.body).unwrap();
        let lost = body.lines().find_map(|line| {
            line.strip_prefix("pyrycode_relay_log_lines_lost_total ")?.parse::<f64>().ok()
        });
        lost.unwrap() > 0.0
    })
    .await;
    assert_eq!(relay.health().await.connected_phones, 1);
    relay.signal(Signal::Term);
    binary.closed().await;
    phone.closed().await;
    drop((binary, phone));
    assert_code(&relay.wait_exit(SOON).await, 0, "SIGTERM");
    drop(reader);
}
