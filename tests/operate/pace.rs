//! What a server-id may send in a time: over it nobody is closed, and others do not notice.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::control::Controlled;
use super::policy::{has_line, reload};
use crate::common::certs::Folder;
use crate::common::{Raw, SOON, TEXT, envelope, masked, open_envelope, run, wait_until};

/// A JSON string of this length.
fn json_of(length: usize) -> String {
    format!("\"{}\"", "j".repeat(length - 2))
}

/// A binary and a phone of this id, and the phone's name.
async fn pair(controlled: &Controlled, id: &str) -> (Raw, Raw, String) {
    let mut binary = Raw::binary(&controlled.relay, id).await;
    let mut phone = Raw::phone(&controlled.relay, id).await;
    phone.send(masked(TEXT, "\"hello\"")).await;
    let (conn_id, _) = open_envelope(&binary.recv_text().await);
    (binary, phone, conn_id)
}

/// How long it takes until both have what the other sends, as fast as it goes.
async fn exchange(binary: &mut Raw, phone: &mut Raw, conn_id: &str, messages: usize) -> Duration {
    let began = Instant::now();
    let frame = json_of(16 * 1024);
    let to_binary = masked(TEXT, &frame);
    let to_phone = masked(TEXT, envelope(conn_id, &frame));
    for _ in 0..messages {
        // What does not fit waits on this side, and is sent when the relay reads on.
        let (one, other) = (phone.send(to_binary.clone()), binary.send(to_phone.clone()));
        tokio::join!(one, other);
        let (got, sent_back) = tokio::join!(binary.recv_text(), phone.recv_text());
        assert_eq!(open_envelope(&got), (conn_id.to_owned(), frame.clone()));
        assert_eq!(sent_back, frame);
    }
    began.elapsed()
}

#[tokio::test]
async fn a_server_id_over_its_rate_slows_down_and_others_do_not() {
    let folder = Folder::new();
    let file = folder.write("relay.conf", "server-id-rate = 256KiB/s,64KiB\n");
    let controlled = Controlled::start(&["--config", &file]).await;
    let (mut binary, mut phone, conn_id) = pair(&controlled, "busy").await;
    let (mut other_binary, mut other_phone, other_conn_id) = pair(&controlled, "other").await;
    let done = std::cell::Cell::new(false);
    let busy = async {
        // 640 KiB in both directions together, of which a tenth may go at once.
        let took = exchange(&mut binary, &mut phone, &conn_id, 20).await;
        done.set(true);
        took
    };
    let bystander = async {
        let mut longest = Duration::ZERO;
        while !done.get() {
            let began = Instant::now();
            other_phone.send(masked(TEXT, "1")).await;
            other_binary.recv_text().await;
            other_binary.send(masked(TEXT, envelope(&other_conn_id, "2"))).await;
            assert_eq!(other_phone.recv_text().await, "2");
            longest = longest.max(began.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        longest
    };
    let seen_slowed = async {
        wait_until("somebody who is kept waiting", SOON, async || {
            let rows = controlled.told(&["connections", "--json"]).await;
            let rows = rows.lines().map(|row| serde_json::from_str::<Value>(row).unwrap());
            let slowed: Vec<Value> = rows.filter(|row| row["slowed"] == true).collect();
            assert!(slowed.iter().all(|row| row["server_id"] == "busy"), "{slowed:?}");
            !slowed.is_empty()
        })
        .await;
    };
    let (took, longest, ()) = tokio::join!(busy, bystander, seen_slowed);
    println!("{took:?}; a bystander's longest round trip: {longest:?}");
    // The last 32 KiB leave before they are paid for.
    assert!(took >= Duration::from_millis(2000), "{took:?} is more than its rate");
    assert!(took <= SOON, "{took:?} is far less than its rate");
    assert!(longest <= Duration::from_secs(1), "a bystander waited for {longest:?}");
    let metrics = controlled.get_text("/metrics").await;
    let pauses = "pyrycode_relay_server_id_rate_pauses_total ";
    let pauses = metrics.lines().find_map(|line| line.strip_prefix(pauses)).unwrap();
    assert!(pauses.parse::<u64>().unwrap() > 2, "{pauses}");
    has_line(&metrics, "pyrycode_relay_connected_phones 2");
    let page = controlled.get_text("/status.json").await;
    let page: Value = serde_json::from_str(&page).unwrap();
    let rate = serde_json::json!({"bytes_per_second": 256 * 1024, "burst_bytes": 64 * 1024});
    assert_eq!(page["process"]["server_id_rate"], rate);
    has_line(&metrics, "pyrycode_relay_server_id_rate_bytes 262144");
    let status = controlled.status().await;
    assert!(status.contains("256 KiB/s and 64 KiB at once for each server-id"), "{status}");

    // Without it, the same two carry four times as much in less time than half of that took.
    folder.write("relay.conf", "");
    reload(&controlled.relay, "server-id-rate").await;
    let took = exchange(&mut binary, &mut phone, &conn_id, 80).await;
    assert!(took < Duration::from_secs(7), "{took:?}");
}

#[tokio::test]
async fn a_rate_of_bytes_is_checked_and_shown() {
    let args = ["check", "--insecure-listen=127.0.0.1:0", "--server-id-rate=1MiB/s,8MiB"];
    let exit = run(&args).await;
    assert!(exit.stdout.contains("server-id-rate") && exit.stdout.contains("1MiB/s,8MiB"));
    let exit = run(&["--server-id-rate", "1MiB"]).await;
    assert_eq!(exit.status.code(), Some(2));
    assert!(exit.stderr.contains("--server-id-rate: \"1MiB\" does not say"), "{}", exit.stderr);
}
