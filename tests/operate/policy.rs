//! Whose relay it is: which server-ids are served, whether a token is wanted, how many may come at
//! once, and how they are told to go.

use std::time::{Duration, Instant};

use super::control::Controlled;
use crate::common::certs::Folder;
use crate::common::{Raw, Relay, Request, Response, SOON, Signal, run};

/// What a request is answered.
async fn asked(relay: &Relay, request: Request) -> Response {
    let mut raw = Raw::connect(relay).await;
    raw.send(request).await;
    raw.response().await
}

pub(crate) fn has_line(metrics: &str, line: &str) {
    assert!(metrics.lines().any(|other| other == line), "{line}\n{metrics}");
}

fn sha_256(id: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, id.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reloads, and waits until this setting has changed.
pub(crate) async fn reload(relay: &Relay, setting: &str) {
    let told = || {
        let of = |line: &&crate::common::LogLine| line.get("path") == Some(setting);
        relay.logs().iter().filter(|line| line.event() == "reloaded").filter(of).count()
    };
    let before = told();
    relay.signal(Signal::HangUp);
    crate::common::wait_until("the reload", SOON, async || told() > before).await;
}

// ---- --allow-server-ids

#[tokio::test]
async fn only_the_server_ids_of_the_file_are_served_and_a_reload_reads_it_again() {
    let folder = Folder::new();
    let list = format!("# mine\n\nknown\n  {}\n", sha_256("hashed").to_uppercase());
    let file = folder.write("ids", &list);
    let controlled = Controlled::start(&["--allow-server-ids", &file]).await;
    let relay = &controlled.relay;
    let mut known = Raw::binary(relay, "known").await;
    let _phone = Raw::phone(relay, "known").await;
    let _hashed = Raw::binary(relay, "hashed").await;
    for request in [Request::server("other"), Request::client("other"), Request::server("# mine")] {
        let refused = asked(relay, request).await;
        assert_eq!(refused.status, 403, "{}", refused.head);
        assert_eq!(refused.body, b"this relay does not serve that server-id\n");
    }
    // Who asks badly is told that first.
    let refused = asked(relay, Request::client("other").without("X-Pyrycode-Token")).await;
    assert_eq!(refused.status, 400, "{}", refused.head);
    let metrics = controlled.get_text("/metrics").await;
    has_line(&metrics, "pyrycode_relay_allowed_server_ids 2");
    let refusals = "pyrycode_relay_connections_refused_total{cause=\"server_id_not_allowed\"} 3";
    has_line(&metrics, refusals);
    let shown = controlled.status().await;
    assert!(shown.contains("Server-ids   2 served, 3 requests refused"), "{shown}");

    folder.write("ids", "other\n");
    reload(relay, "allow-server-ids").await;
    assert_eq!(asked(relay, Request::server("other")).await.status, 101);
    assert_eq!(asked(relay, Request::client("hashed")).await.status, 403);
    known.assert_quiet().await;
    // Where the file cannot be read, everything stays.
    std::fs::remove_file(folder.path("ids")).unwrap();
    relay.signal(Signal::HangUp);
    let refused = relay.wait_for_log("reload_refused").await;
    assert!(refused.raw.contains("ids cannot be read"), "{}", refused.raw);
    assert_eq!(asked(relay, Request::client("known")).await.status, 403);
}

#[tokio::test]
async fn a_list_that_cannot_be_read_is_refused_at_start() {
    let folder = Folder::new();
    let missing = folder.path("none").to_str().unwrap().to_owned();
    let long = folder.write("long", format!("a\n{}\n", "x".repeat(257)));
    let wide = folder.write("wide", b"\xff\n");
    for (file, says) in [
        (&missing, "cannot be read"),
        (&long, "line 2: a server-id has at most 256 bytes"),
        (&wide, "is not UTF-8"),
    ] {
        for also in [&["check"][..], &[]] {
            let exit = run(&[also, &["--allow-server-ids", file]].concat()).await;
            let refusal = super::refusal(&exit);
            assert!(refusal.contains(says) && refusal.contains(file.as_str()), "{refusal}");
        }
    }
    let file = folder.write("two", "a\nb\n");
    let args = ["check", "--insecure-listen=127.0.0.1:0", "--allow-server-ids", &file];
    let exit = run(&args).await;
    assert!(exit.stdout.contains("server-ids that are served: 2"), "{}", exit.stdout);
}

// ---- --token-header

#[tokio::test]
async fn phones_may_do_without_a_token_where_the_operator_says_so() {
    let folder = Folder::new();
    let file = folder.write("relay.conf", "");
    let controlled = Controlled::start(&["--config", &file]).await;
    let relay = &controlled.relay;
    let _binary = Raw::binary(relay, "id").await;
    let without = || Request::client("id").without("X-Pyrycode-Token");
    assert_eq!(asked(relay, without()).await.status, 400);
    folder.write("relay.conf", "token-header = optional\n");
    reload(relay, "token-header").await;
    assert_eq!(asked(relay, without()).await.status, 101);
    assert_eq!(asked(relay, without().header("X-Pyrycode-Token", "")).await.status, 101);
    assert_eq!(asked(relay, Request::client("id")).await.status, 101);
    has_line(&controlled.get_text("/metrics").await, "pyrycode_relay_phones_without_token_total 2");
    folder.write("relay.conf", "token-header = required\n");
    reload(relay, "token-header").await;
    assert_eq!(asked(relay, without()).await.status, 400);
}

// ---- --new-connections-rate

#[tokio::test]
async fn those_who_come_all_at_once_are_told_to_come_back_one_after_the_other() {
    let folder = Folder::new();
    let file = folder.write("relay.conf", "new-connections-rate = 2/5s\n");
    let controlled = Controlled::start(&["--config", &file]).await;
    let relay = &controlled.relay;
    let _first = Raw::binary(relay, "id").await;
    let _second = Raw::phone(relay, "id").await;
    let mut waits = Vec::new();
    for _ in 0..4 {
        let refused = asked(relay, Request::client("id")).await;
        assert_eq!(refused.status, 503, "{}", refused.head);
        waits.push(refused.header("Retry-After").unwrap().parse::<u64>().unwrap());
    }
    assert!(waits.is_sorted_by(|one, next| one < next) && waits[3] <= 25, "{waits:?}");
    // Health checks are no upgrades.
    assert_eq!(asked(relay, Request::get("/healthz")).await.status, 200);
    let metrics = controlled.get_text("/metrics").await;
    let refusals = "pyrycode_relay_connections_refused_total{cause=\"new_connections_rate\"} 4";
    has_line(&metrics, refusals);
    relay.wait_for_log("conn_cap_reached").await;
    folder.write("relay.conf", "");
    reload(relay, "new-connections-rate").await;
    assert_eq!(asked(relay, Request::client("id")).await.status, 101);
}

// ---- --drain-spread

#[tokio::test]
async fn the_closes_of_a_shutdown_may_be_spread() {
    let mut controlled = Controlled::start(&["--drain-spread", "1s"]).await;
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..10 {
        let mut binary = Raw::binary(&controlled.relay, &format!("id {number}")).await;
        waiting.spawn(async move {
            let close = binary.closed().await;
            assert_eq!(close, (1001, "shutting down".to_owned()));
            Instant::now()
        });
    }
    controlled.relay.signal(Signal::Term);
    let first = crate::common::soon("a close", waiting.join_next()).await.unwrap().unwrap();
    let refused = asked(&controlled.relay, Request::server("late")).await;
    assert_eq!((refused.status, refused.header("Retry-After")), (503, Some("5")));
    let mut ends = vec![first];
    while let Some(end) = crate::common::soon("a close", waiting.join_next()).await {
        ends.push(end.unwrap());
    }
    ends.sort();
    let spread = ends[9].duration_since(ends[0]);
    assert!(spread >= Duration::from_millis(400), "{spread:?}");
    assert!(controlled.relay.wait_exit(SOON).await.status.success());
}

#[tokio::test]
async fn a_second_signal_does_not_wait_for_the_spread_and_it_fits_into_the_timeout() {
    let args = ["--drain-spread", "1h", "--drain-timeout", "2h"];
    let mut controlled = Controlled::start(&args).await;
    let _binaries =
        [Raw::binary(&controlled.relay, "a").await, Raw::binary(&controlled.relay, "b").await];
    controlled.relay.signal(Signal::Term);
    controlled.relay.wait_for_log("shutting_down").await;
    controlled.relay.signal(Signal::Term);
    assert!(controlled.relay.wait_exit(SOON).await.status.success());
    let exit = run(&["check", "--drain-spread", "20s"]).await;
    let refusal = super::refusal(&exit);
    assert!(refusal.contains("20s is longer than --drain-timeout, 10s"), "{refusal}");
}
