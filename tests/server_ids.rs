//! PROTOCOL.md, chapter 3: who holds a server-id.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    missing_docs,
    unreachable_pub
)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{
    CLOSE, Hostile, PING, PONG, Raw, Relay, Request, TEXT, close_directive, close_frame,
    close_notice, envelope, masked, open_envelope,
};
use tokio::task::JoinSet;
use tokio::time::sleep;

const ALREADY_CLAIMED: (u16, &str) = (4409, "server-id already claimed");
const RECLAIMED: (u16, &str) = (4404, "binary reclaimed server-id");
const NO_SERVER: (u16, &str) = (4404, "no server with that id");
const AT_CAP: (u16, &str) = (4429, "too many phones for server-id");
const HEARTBEAT: (u16, &str) = (1011, "heartbeat timeout");
const GRACE_OVER: (u16, &str) = (1000, "");

fn close(code: (u16, &str)) -> (u16, String) {
    (code.0, code.1.to_owned())
}

/// Sends a frame from the phone and waits until exactly that frame reaches the binary, then one
/// back: proof that the phone is registered with this binary, and the phone's conn_id.
async fn exchange(phone: &mut Raw, binary: &mut Raw) -> String {
    phone.send(masked(TEXT, r#"{"up":1}"#)).await;
    let (conn_id, frame) = open_envelope(&binary.recv_text().await);
    assert_eq!(frame, r#"{"up":1}"#);
    binary.send(masked(TEXT, envelope(&conn_id, r#"{"down":2}"#))).await;
    assert_eq!(phone.recv_text().await, r#"{"down":2}"#);
    conn_id
}

async fn counts(relay: &Relay) -> (u64, u64) {
    let health = relay.health().await;
    (health.connected_binaries, health.connected_phones)
}

/// Lets a server-id go into grace: its holder hangs up and the relay has noticed.
async fn leave(relay: &Relay, holder: Raw, phones: u64) {
    holder.hang_up();
    relay.wait_for_counts(0, phones).await;
}

// ---- claims

#[tokio::test]
async fn of_24_claims_at_the_same_instant_exactly_one_wins_and_the_others_get_4409() {
    let relay = Relay::start(&["--workers", "4"]).await;
    for round in 0..8 {
        let id = format!("contested-{round}");
        let mut sockets = Vec::new();
        for _ in 0..24 {
            sockets.push(Raw::connect(&relay).await);
        }
        let mut claims = JoinSet::new();
        for socket in sockets {
            let request = Request::server(&id);
            claims.spawn(async move {
                let mut claimant = socket.upgrade(request).await;
                let first = claimant.frame_after_pings().await.expect("a close or a phone's frame");
                (claimant, first)
            });
        }
        for _ in 0..23 {
            let (mut loser, first) = claims.join_next().await.unwrap().unwrap();
            assert_eq!(first.opcode, CLOSE, "a loser, or a second winner, got {first:?}");
            assert_eq!(first.close(), ALREADY_CLAIMED);
            loser.answer_close(&first).await;
        }
        let mut phone = Raw::phone(&relay, &id).await;
        phone.send(masked(TEXT, "\"who won?\"")).await;
        let (_winner, first) = claims.join_next().await.unwrap().unwrap();
        assert_eq!(open_envelope(first.text()).1, "\"who won?\"");
    }
}

#[tokio::test]
async fn a_claim_of_a_free_id_holds_it_and_another_id_stays_free() {
    let relay = Relay::start(&[]).await;
    let mut binary = Raw::binary(&relay, "mine").await;
    let mut phone = Raw::phone(&relay, "mine").await;
    exchange(&mut phone, &mut binary).await;
    let mut stray = Raw::phone(&relay, "other").await;
    assert_eq!(stray.closed().await, close(NO_SERVER));
    assert_eq!(counts(&relay).await, (1, 1));
}

#[tokio::test]
async fn nothing_survives_a_restart() {
    let first = Relay::start(&[]).await;
    let _binary = Raw::binary(&first, "mine").await;
    drop(first);
    let second = Relay::start(&[]).await;
    let mut phone = Raw::phone(&second, "mine").await;
    assert_eq!(phone.closed().await, close(NO_SERVER));
}

// ---- grace

#[derive(Clone, Copy, Debug)]
enum Departure {
    CloseFrame,
    EndOfStream,
    Reset,
    ProtocolError,
    OversizedMessage,
    InvalidUtf8,
}

async fn depart(mut holder: Raw, how: Departure) {
    match how {
        Departure::CloseFrame => holder.close(1000).await,
        Departure::EndOfStream => holder.hang_up(),
        Departure::Reset => holder.abort(),
        Departure::ProtocolError => {
            holder.send(masked(3, b"unknown opcode")).await;
            assert_eq!(holder.closed().await.0, 1002);
        }
        Departure::OversizedMessage => {
            // The head alone announces 262,145 bytes.
            holder.send([0x81, 0xff, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0, 0]).await;
            assert_eq!(holder.closed().await.0, 1009);
        }
        Departure::InvalidUtf8 => {
            holder.send(masked(TEXT, [0xff, 0xfe])).await;
            assert_eq!(holder.closed().await.0, 1007);
        }
    }
}

#[tokio::test]
async fn however_the_holder_leaves_its_phones_stay_and_new_phones_are_let_in() {
    let relay = Relay::start(&["--workers", "2"]).await;
    for how in [
        Departure::CloseFrame,
        Departure::EndOfStream,
        Departure::Reset,
        Departure::ProtocolError,
        Departure::OversizedMessage,
        Departure::InvalidUtf8,
    ] {
        let id = format!("leaves by {how:?}");
        let mut holder = Raw::binary(&relay, &id).await;
        let mut phone = Raw::phone(&relay, &id).await;
        exchange(&mut phone, &mut holder).await;
        depart(holder, how).await;
        relay.wait_for_counts(0, 1).await;
        let mut late = Raw::phone(&relay, &id).await;
        late.assert_quiet().await;
        phone.assert_quiet().await;
        assert_eq!(counts(&relay).await, (0, 2), "a binary in grace counts not, its phones do");
        late.close(1000).await;
        phone.close(1000).await;
        relay.wait_for_counts(0, 0).await;
    }
}

#[tokio::test]
async fn a_reclaim_in_grace_closes_every_phone_4404_and_counts_drop_at_once() {
    let relay = Relay::start(&["--workers", "2", "--probe-timeout", "60s"]).await;
    let mut holder = Raw::binary(&relay, "id").await;
    let mut phones = Vec::new();
    for _ in 0..15 {
        let mut phone = Raw::phone(&relay, "id").await;
        exchange(&mut phone, &mut holder).await;
        phones.push(phone);
    }
    leave(&relay, holder, 15).await;
    phones.push(Raw::phone(&relay, "id").await);

    let mut newcomer = Raw::binary(&relay, "id").await;
    // The phones have answered nothing yet: the count must not wait for them.
    assert_eq!(counts(&relay).await, (1, 0));
    let mut fresh = Raw::phone(&relay, "id").await;
    exchange(&mut fresh, &mut newcomer).await;
    for phone in &mut phones {
        assert_eq!(phone.closed().await, close(RECLAIMED));
    }
    exchange(&mut fresh, &mut newcomer).await;
    assert_eq!(counts(&relay).await, (1, 1));
}

#[tokio::test]
async fn grace_running_out_closes_every_phone_1000_and_frees_the_id() {
    let grace = Duration::from_millis(400);
    let relay = Relay::start(&["--grace", "400ms"]).await;
    let mut holder = Raw::binary(&relay, "id").await;
    let mut phone = Raw::phone(&relay, "id").await;
    exchange(&mut phone, &mut holder).await;
    let left = Instant::now();
    holder.hang_up();
    relay.wait_for_counts(0, 1).await;
    let mut late = Raw::phone(&relay, "id").await;
    assert_eq!(phone.closed().await, close(GRACE_OVER));
    assert!(common::is_over(left, grace), "grace was cut short: {:?}", left.elapsed());
    assert_eq!(late.closed().await, close(GRACE_OVER));
    assert_eq!(counts(&relay).await, (0, 0));

    let mut next = Raw::phone(&relay, "id").await;
    assert_eq!(next.closed().await, close(NO_SERVER));
    let mut binary = Raw::binary(&relay, "id").await;
    let mut phone = Raw::phone(&relay, "id").await;
    exchange(&mut phone, &mut binary).await;
}

#[tokio::test]
async fn after_a_reclaim_the_old_grace_deadline_closes_nobody() {
    let relay = Relay::start(&["--grace", "300ms"]).await;
    let holder = Raw::binary(&relay, "id").await;
    let left = Instant::now();
    leave(&relay, holder, 0).await;
    let mut newcomer = Raw::binary(&relay, "id").await;
    assert!(left.elapsed() < Duration::from_millis(300), "too slow a machine for this test");
    let mut phone = Raw::phone(&relay, "id").await;
    exchange(&mut phone, &mut newcomer).await;
    sleep(Duration::from_millis(600).saturating_sub(left.elapsed())).await;
    exchange(&mut phone, &mut newcomer).await;
    newcomer.assert_quiet().await;
}

#[tokio::test]
async fn a_second_grace_lasts_its_full_time_whatever_the_first_one_left_behind() {
    let grace = Duration::from_millis(800);
    let relay = Relay::start(&["--grace", "800ms"]).await;
    let first = Raw::binary(&relay, "id").await;
    leave(&relay, first, 0).await;
    sleep(Duration::from_millis(500)).await;
    let mut second = Raw::binary(&relay, "id").await;
    let mut phone = Raw::phone(&relay, "id").await;
    exchange(&mut phone, &mut second).await;
    let left = Instant::now();
    second.hang_up();
    assert_eq!(phone.closed().await, close(GRACE_OVER));
    assert!(
        common::is_over(left, grace),
        "the first grace period's timer fired: {:?}",
        left.elapsed()
    );
}

// ---- probes

#[tokio::test]
async fn a_holder_that_answers_the_probe_is_untouched_and_the_newcomer_gets_4409() {
    let relay = Relay::start(&["--workers", "2"]).await;
    let mut holder = Raw::binary(&relay, "id").await;
    let mut phone = Raw::phone(&relay, "id").await;
    exchange(&mut phone, &mut holder).await;
    let mut newcomer = Raw::binary(&relay, "id").await;
    let ping = holder.recv_ping().await;
    // Until the answer, frames flow as ever and the newcomer waits.
    phone.send(masked(TEXT, "1")).await;
    assert_eq!(open_envelope(&holder.recv_text().await).1, "1");
    holder.send(masked(PONG, ping)).await;
    assert_eq!(newcomer.closed().await, close(ALREADY_CLAIMED));
    exchange(&mut phone, &mut holder).await;
    phone.assert_quiet().await;
    assert_eq!(counts(&relay).await, (1, 1));
}

#[tokio::test]
async fn a_silent_holder_is_displaced_with_1011_and_its_phones_are_closed_as_in_a_reclaim() {
    let relay = Relay::start(&["--workers", "2", "--probe-timeout", "400ms"]).await;
    let mut holder = Raw::binary(&relay, "id").await;
    let mut phone = Raw::phone(&relay, "id").await;
    exchange(&mut phone, &mut holder).await;
    let asked = Instant::now();
    let mut newcomer = Raw::binary(&relay, "id").await;
    holder.recv_ping().await;
    assert_eq!(phone.closed().await, close(RECLAIMED));
    assert!(common::is_over(asked, Duration::from_millis(400)), "the holder had its full time");
    assert_eq!(counts(&relay).await, (1, 0));
    let mut fresh = Raw::phone(&relay, "id").await;
    exchange(&mut fresh, &mut newcomer).await;
    assert_eq!(holder.closed().await, close(HEARTBEAT));
    exchange(&mut fresh, &mut newcomer).await;
}

#[tokio::test]
async fn any_complete_frame_of_the_holder_during_the_probe_keeps_it() {
    let relay = Relay::start(&["--workers", "2"]).await;
    for (what, bytes) in [
        ("a pong with another payload", masked(PONG, b"unasked")),
        ("a pong without payload", masked(PONG, b"")),
        ("a ping", masked(PING, b"")),
        ("a text message", masked(TEXT, br#"{"conn_id":"nobody","frame":1}"#)),
        ("a first fragment", Hostile::new(TEXT, br#"{"conn_"#).more().bytes()),
    ] {
        let mut holder = Raw::binary(&relay, what).await;
        let mut phone = Raw::phone(&relay, what).await;
        let mut newcomer = Raw::binary(&relay, what).await;
        holder.recv_ping().await;
        holder.send(bytes).await;
        assert_eq!(newcomer.closed().await, close(ALREADY_CLAIMED), "{what}");
        phone.assert_quiet().await;
    }
}

#[tokio::test]
async fn the_last_byte_of_a_frame_sent_during_the_probe_keeps_the_holder() {
    let relay = Relay::start(&[]).await;
    let mut holder = Raw::binary(&relay, "id").await;
    let message = masked(TEXT, br#"{"conn_id":"nobody","frame":1}"#);
    let (last, head) = message.split_last().unwrap();
    holder.send(head).await;
    let mut newcomer = Raw::binary(&relay, "id").await;
    holder.recv_ping().await;
    holder.send([*last]).await;
    assert_eq!(newcomer.closed().await, close(ALREADY_CLAIMED));
}

#[tokio::test]
async fn bytes_that_complete_no_frame_do_not_save_a_silent_holder() {
    let relay = Relay::start(&["--probe-timeout", "400ms"]).await;
    let mut holder = Raw::binary(&relay, "id").await;
    let mut newcomer = Raw::binary(&relay, "id").await;
    holder.recv_ping().await;
    holder.send(&masked(TEXT, b"never finished")[..9]).await;
    let (code, reason) = holder.closed().await;
    assert_eq!((code, reason), close(HEARTBEAT));
    let mut phone = Raw::phone(&relay, "id").await;
    exchange(&mut phone, &mut newcomer).await;
}

#[tokio::test]
async fn one_ping_serves_all_newcomers_and_the_holders_pong_turns_all_of_them_away() {
    let relay = Relay::start(&["--workers", "2"]).await;
    let mut holder = Raw::binary(&relay, "id").await;
    let mut newcomers = Vec::new();
    for _ in 0..6 {
        newcomers.push(Raw::binary(&relay, "id").await);
    }
    let ping = holder.recv_ping().await;
    holder.send(masked(PONG, ping)).await;
    for newcomer in &mut newcomers {
        assert_eq!(newcomer.closed().await, close(ALREADY_CLAIMED));
    }
    // The answer to this ping is the next frame: there was no second probe ping before it.
    holder.send(masked(PING, "fence")).await;
    let fence = holder.frame().await;
    assert_eq!((fence.opcode, fence.payload.as_slice()), (PONG, b"fence".as_slice()));
}

#[tokio::test]
async fn of_several_newcomers_exactly_one_wins_over_a_silent_holder_and_the_others_get_4409() {
    let relay = Relay::start(&["--workers", "2", "--probe-timeout", "400ms"]).await;
    for round in 0..3 {
        let id = format!("silent-{round}");
        let mut holder = Raw::binary(&relay, &id).await;
        let mut probing = JoinSet::new();
        for _ in 0..6 {
            let mut newcomer = Raw::binary(&relay, &id).await;
            probing.spawn(async move {
                let first = newcomer.frame_after_pings().await.expect("a close or a phone's frame");
                (newcomer, first)
            });
        }
        holder.recv_ping().await;
        assert_eq!(holder.closed().await, close(HEARTBEAT), "and no second ping");
        for _ in 0..5 {
            let (mut loser, first) = probing.join_next().await.unwrap().unwrap();
            assert_eq!(first.opcode, CLOSE, "got {first:?}");
            assert_eq!(first.close(), ALREADY_CLAIMED);
            loser.answer_close(&first).await;
        }
        let mut phone = Raw::phone(&relay, &id).await;
        phone.send(masked(TEXT, "7")).await;
        let (_winner, first) = probing.join_next().await.unwrap().unwrap();
        assert_eq!(open_envelope(first.text()).1, "7");
    }
}

#[tokio::test]
async fn a_new_probe_after_a_failed_one_pings_again() {
    let relay = Relay::start(&["--probe-timeout", "400ms"]).await;
    let mut holder = Raw::binary(&relay, "id").await;
    let mut first = Raw::binary(&relay, "id").await;
    let ping = holder.recv_ping().await;
    holder.send(masked(PONG, ping)).await;
    assert_eq!(first.closed().await, close(ALREADY_CLAIMED));
    // The deadline of the probe that the holder answered passes without effect.
    sleep(Duration::from_millis(600)).await;
    holder.assert_quiet().await;
    // A pong of the past is no answer to the new probe.
    let mut second = Raw::binary(&relay, "id").await;
    holder.recv_ping().await;
    assert_eq!(holder.closed().await, close(HEARTBEAT));
    let mut phone = Raw::phone(&relay, "id").await;
    exchange(&mut phone, &mut second).await;
}

#[tokio::test]
async fn messages_of_a_newcomer_are_handled_after_it_wins_and_not_before() {
    let relay = Relay::start(&["--workers", "2", "--probe-timeout", "400ms"]).await;
    let mut holder = Raw::binary(&relay, "id").await;
    let mut phone = Raw::phone(&relay, "id").await;
    let conn_id = exchange(&mut phone, &mut holder).await;
    let mut newcomer = Raw::binary(&relay, "id").await;
    holder.recv_ping().await;
    // Handled now, the first would reach the phone. Handled after the win, when that phone is
    // gone, each is an envelope for a conn_id that nobody has.
    newcomer.send(masked(TEXT, envelope(&conn_id, "\"too early\""))).await;
    newcomer.send(masked(TEXT, envelope("never-a-conn-id", "1"))).await;
    assert_eq!(phone.closed().await, close(RECLAIMED));
    relay.wait_for_log("binary_forwarder_unknown_conn_id").await;
    let mut fresh = Raw::phone(&relay, "id").await;
    exchange(&mut fresh, &mut newcomer).await;
}

#[tokio::test]
async fn messages_of_a_newcomer_that_loses_are_never_handled() {
    let relay = Relay::start(&["--workers", "2"]).await;
    let mut holder = Raw::binary(&relay, "id").await;
    let mut phone = Raw::phone(&relay, "id").await;
    let conn_id = exchange(&mut phone, &mut holder).await;
    let mut newcomer = Raw::binary(&relay, "id").await;
    newcomer.send(masked(TEXT, envelope(&conn_id, "\"intruder\""))).await;
    newcomer.send(masked(TEXT, close_directive(&conn_id, 4001))).await;
    let ping = holder.recv_ping().await;
    holder.send(masked(PONG, ping)).await;
    assert_eq!(newcomer.closed().await, close(ALREADY_CLAIMED));
    phone.assert_quiet().await;
    exchange(&mut phone, &mut holder).await;
}

#[tokio::test]
async fn a_newcomer_that_sends_its_messages_with_the_request_has_them_handled_after_it_wins() {
    let relay = Relay::start(&["--workers", "4", "--probe-timeout", "300ms"]).await;
    let mut holder = Raw::binary(&relay, "id").await;
    let after_head = masked(TEXT, envelope("never-a-conn-id", "1").as_bytes());
    let mut newcomer =
        Raw::connect(&relay).await.upgrade_with(Request::server("id"), &after_head).await;
    holder.recv_ping().await;
    assert_eq!(holder.closed().await, close(HEARTBEAT));
    relay.wait_for_log("binary_forwarder_unknown_conn_id").await;
    newcomer.assert_quiet().await;
}

#[tokio::test]
async fn a_newcomer_that_leaves_during_the_probe_does_not_win() {
    let relay = Relay::start(&["--workers", "2", "--probe-timeout", "400ms"]).await;
    for (id, reset) in [("leaves by RST", true), ("leaves by close", false)] {
        let mut holder = Raw::binary(&relay, id).await;
        let mut quitter = Raw::binary(&relay, id).await;
        let mut patient = Raw::binary(&relay, id).await;
        holder.recv_ping().await;
        if reset {
            quitter.abort();
        } else {
            quitter.close(1000).await;
        }
        assert_eq!(holder.closed().await, close(HEARTBEAT));
        let mut phone = Raw::phone(&relay, id).await;
        exchange(&mut phone, &mut patient).await;
    }
}

#[tokio::test]
async fn when_every_newcomer_has_left_the_probe_displaces_nobody() {
    let relay = Relay::start(&["--probe-timeout", "300ms"]).await;
    let mut holder = Raw::binary(&relay, "id").await;
    let mut phone = Raw::phone(&relay, "id").await;
    exchange(&mut phone, &mut holder).await;
    let mut quitter = Raw::binary(&relay, "id").await;
    holder.recv_ping().await;
    quitter.close(1000).await;
    sleep(Duration::from_millis(600)).await;
    exchange(&mut phone, &mut holder).await;
    assert_eq!(counts(&relay).await, (1, 1));
}

#[tokio::test]
async fn a_displaced_holder_never_starts_a_grace_period() {
    let relay =
        Relay::start(&["--workers", "2", "--probe-timeout", "200ms", "--grace", "300ms"]).await;
    for (id, how) in [("ends politely", true), ("ends by RST", false)] {
        let mut holder = Raw::binary(&relay, id).await;
        let mut newcomer = Raw::binary(&relay, id).await;
        holder.recv_ping().await;
        let farewell = holder.frame().await;
        assert_eq!(farewell.close(), HEARTBEAT);
        let mut phone = Raw::phone(&relay, id).await;
        exchange(&mut phone, &mut newcomer).await;
        if how {
            holder.answer_close(&farewell).await;
        } else {
            holder.abort();
        }
        sleep(Duration::from_millis(700)).await;
        exchange(&mut phone, &mut newcomer).await;
        newcomer.close(1000).await;
        // Its own grace begins only now, and the phone has lived through it to the end.
        assert_eq!(phone.closed().await, close(GRACE_OVER));
    }
}

#[tokio::test]
async fn what_a_displaced_holder_still_sends_reaches_nobody() {
    let relay = Relay::start(&["--workers", "2", "--probe-timeout", "200ms"]).await;
    let mut holder = Raw::binary(&relay, "id").await;
    let mut newcomer = Raw::binary(&relay, "id").await;
    holder.recv_ping().await;
    let farewell = holder.frame().await;
    assert_eq!(farewell.close(), HEARTBEAT);
    let mut phone = Raw::phone(&relay, "id").await;
    let conn_id = exchange(&mut phone, &mut newcomer).await;
    holder.send(masked(TEXT, envelope(&conn_id, "\"from the past\""))).await;
    holder.answer_close(&farewell).await;
    phone.assert_quiet().await;
    exchange(&mut phone, &mut newcomer).await;
}

#[tokio::test]
async fn a_holder_that_dies_during_the_probe_yields_to_the_newcomer_at_once() {
    let relay = Relay::start(&["--workers", "2", "--probe-timeout", "60s"]).await;
    for how in [Departure::Reset, Departure::EndOfStream] {
        let id = format!("dies by {how:?}");
        let mut holder = Raw::binary(&relay, &id).await;
        let mut phone = Raw::phone(&relay, &id).await;
        exchange(&mut phone, &mut holder).await;
        let mut newcomers = [Raw::binary(&relay, &id).await, Raw::binary(&relay, &id).await];
        holder.recv_ping().await;
        depart(holder, how).await;
        assert_eq!(phone.closed().await, close(RECLAIMED), "{how:?}");
        let mut fresh = Raw::phone(&relay, &id).await;
        fresh.send(masked(TEXT, "1")).await;
        let [first, second] = &mut newcomers;
        let (one, other) = tokio::join!(first.frame_after_pings(), second.frame_after_pings());
        let mut answers = [one.expect("a frame"), other.expect("a frame")];
        answers.sort_by_key(|answer| answer.opcode);
        assert_eq!(open_envelope(answers[0].text()).1, "1");
        assert_eq!(answers[1].close(), ALREADY_CLAIMED);
    }
}

#[tokio::test]
async fn a_holder_that_closes_during_the_probe_leaves_the_id_to_the_newcomer_or_in_grace() {
    let relay = Relay::start(&["--workers", "2", "--probe-timeout", "60s"]).await;
    for how in [Departure::CloseFrame, Departure::ProtocolError] {
        let id = format!("closes by {how:?}");
        let mut holder = Raw::binary(&relay, &id).await;
        let mut phone = Raw::phone(&relay, &id).await;
        exchange(&mut phone, &mut holder).await;
        let mut newcomer = Raw::binary(&relay, &id).await;
        holder.recv_ping().await;
        depart(holder, how).await;
        // The last frame may count as a sign of life or as the end: either is decided at once.
        let phone_was_closed = tokio::select! {
            farewell = phone.frame_after_pings() => {
                assert_eq!(farewell.expect("a close").close(), RECLAIMED);
                true
            }
            answer = newcomer.frame_after_pings() => {
                assert_eq!(answer.expect("a close").close(), ALREADY_CLAIMED);
                false
            }
        };
        if phone_was_closed {
            let mut fresh = Raw::phone(&relay, &id).await;
            exchange(&mut fresh, &mut newcomer).await;
        } else {
            phone.assert_quiet().await;
        }
    }
}

// ---- phones

#[tokio::test]
async fn a_phone_for_a_free_id_gets_a_101_and_then_4404() {
    let relay = Relay::start(&["--workers", "2"]).await;
    for id in 0..8 {
        let mut phone = Raw::phone(&relay, &format!("free-{id}")).await;
        assert_eq!(phone.closed().await, close(NO_SERVER));
    }
    assert_eq!(counts(&relay).await, (0, 0));
}

#[tokio::test]
async fn the_17th_phone_gets_a_101_and_then_4429_and_the_16_stay() {
    let relay = Relay::start(&["--workers", "2"]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut phones = Vec::new();
    for _ in 0..16 {
        phones.push(Raw::phone(&relay, "id").await);
    }
    let mut one_too_many = Raw::phone(&relay, "id").await;
    assert_eq!(one_too_many.closed().await, close(AT_CAP));
    assert_eq!(counts(&relay).await, (1, 16));
    for phone in &mut phones {
        exchange(phone, &mut binary).await;
    }
}

#[tokio::test]
async fn max_phones_moves_the_cap_and_the_cap_is_each_ids_own() {
    let relay = Relay::start(&["--max-phones", "2"]).await;
    for id in ["one", "two"] {
        let mut binary = Raw::binary(&relay, id).await;
        let mut first = Raw::phone(&relay, id).await;
        let mut second = Raw::phone(&relay, id).await;
        let mut third = Raw::phone(&relay, id).await;
        assert_eq!(third.closed().await, close(AT_CAP));
        exchange(&mut first, &mut binary).await;
        exchange(&mut second, &mut binary).await;
    }
}

#[tokio::test]
async fn the_cap_holds_in_grace_too() {
    let relay = Relay::start(&["--max-phones", "2"]).await;
    let holder = Raw::binary(&relay, "id").await;
    let _first = Raw::phone(&relay, "id").await;
    leave(&relay, holder, 1).await;
    let mut second = Raw::phone(&relay, "id").await;
    let mut third = Raw::phone(&relay, "id").await;
    assert_eq!(third.closed().await, close(AT_CAP));
    second.assert_quiet().await;
}

#[tokio::test]
async fn a_full_id_that_became_free_answers_4404_not_4429() {
    let relay = Relay::start(&["--max-phones", "2", "--grace", "200ms"]).await;
    let holder = Raw::binary(&relay, "id").await;
    // These two answer nothing, so their sockets outlive the grace period.
    let mut first = Raw::phone(&relay, "id").await;
    let _second = Raw::phone(&relay, "id").await;
    holder.hang_up();
    assert_eq!(first.frame().await.close(), GRACE_OVER);
    let mut third = Raw::phone(&relay, "id").await;
    assert_eq!(third.closed().await, close(NO_SERVER));
}

#[tokio::test]
async fn a_slot_is_free_again_once_its_phones_close_was_echoed() {
    let relay = Relay::start(&["--workers", "2", "--max-phones", "1"]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    for _ in 0..10 {
        let mut phone = Raw::phone(&relay, "id").await;
        let conn_id = exchange(&mut phone, &mut binary).await;
        phone.send(close_frame(1000, "")).await;
        assert_eq!(phone.frame().await.close().0, 1000);
        let mut next = Raw::phone(&relay, "id").await;
        next.assert_quiet().await;
        assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1000));
        let conn_id = exchange(&mut next, &mut binary).await;
        next.close(1000).await;
        assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1000));
    }
}

#[tokio::test]
async fn a_slot_is_free_again_once_the_binary_was_told() {
    let relay = Relay::start(&["--workers", "2", "--max-phones", "1"]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    for _ in 0..20 {
        let mut phone = Raw::phone(&relay, "id").await;
        let conn_id = exchange(&mut phone, &mut binary).await;
        phone.abort();
        assert_eq!(binary.recv_text().await, close_notice(&conn_id, 1001));
    }
}

#[tokio::test]
async fn a_slot_is_free_again_once_its_phone_got_a_close() {
    let relay = Relay::start(&["--workers", "2", "--max-phones", "1"]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let mut gone = Vec::new();
    for _ in 0..10 {
        let mut phone = Raw::phone(&relay, "id").await;
        let conn_id = exchange(&mut phone, &mut binary).await;
        binary.send(masked(TEXT, close_directive(&conn_id, 4001))).await;
        assert_eq!(phone.frame().await.close().0, 4001);
        // Its socket lives on, unanswered.
        gone.push(phone);
    }
}

// ---- registration before the 101, and the hand-over between workers

#[tokio::test]
async fn a_phone_that_dials_after_its_binarys_101_is_never_told_4404() {
    for workers in ["2", "4"] {
        let relay = Relay::start(&["--workers", workers]).await;
        for round in 0..150 {
            let id = format!("claim-then-dial-{round}");
            let mut binary = Raw::binary(&relay, &id).await;
            let mut phone = Raw::phone(&relay, &id).await;
            exchange(&mut phone, &mut binary).await;
        }
    }
}

#[tokio::test]
async fn a_reclaim_stands_by_the_time_of_its_101() {
    let relay = Relay::start(&["--workers", "4"]).await;
    for round in 0..30 {
        let id = format!("reclaim-then-dial-{round}");
        let holder = Raw::binary(&relay, &id).await;
        leave(&relay, holder, 0).await;
        let mut binary = Raw::binary(&relay, &id).await;
        assert_eq!(counts(&relay).await, (1, 0));
        let mut phone = Raw::phone(&relay, &id).await;
        exchange(&mut phone, &mut binary).await;
        binary.close(1000).await;
        phone.close(1000).await;
        relay.wait_for_counts(0, 0).await;
    }
}

async fn pair_with_bytes_behind_the_head(relay: Arc<Relay>, id: String) {
    let ping = masked(PING, b"early");
    let mut binary = Raw::connect(&relay).await.upgrade_with(Request::server(&id), &ping).await;
    let pong = binary.frame().await;
    assert_eq!((pong.opcode, pong.payload.as_slice()), (PONG, b"early".as_slice()));
    let messages: Vec<u8> = (0..5).flat_map(|n| masked(TEXT, format!("{n}").as_bytes())).collect();
    let mut phone = Raw::connect(&relay).await.upgrade_with(Request::client(&id), &messages).await;
    for n in 0..5 {
        assert_eq!(open_envelope(&binary.recv_text().await).1, format!("{n}"));
    }
    exchange(&mut phone, &mut binary).await;
}

#[tokio::test]
async fn every_id_works_on_whichever_worker_its_connections_arrive_and_no_byte_is_lost() {
    for workers in ["1", "2", "4"] {
        let relay = Arc::new(Relay::start(&["--workers", workers]).await);
        let mut pairs = JoinSet::new();
        for n in 0..48 {
            pairs.spawn(pair_with_bytes_behind_the_head(relay.clone(), format!("id-{n}")));
        }
        while let Some(pair) = pairs.join_next().await {
            pair.unwrap();
        }
    }
}

// ---- what an id is

#[tokio::test]
async fn ids_are_compared_byte_for_byte() {
    let relay = Relay::start(&["--workers", "2"]).await;
    let ids = [
        "id",
        "ID",
        "Id",
        "i d",
        "i  d",
        "id,id",
        "\"id\"",
        "id%20",
        "\u{e9}",
        "e\u{301}",
        "\u{1f980}",
        "0b9f6f0e-6c5a-4c39-9d3f-0a6d5f0f5a11",
        "0B9F6F0E-6C5A-4C39-9D3F-0A6D5F0F5A11",
    ];
    let mut pairs = Vec::new();
    for id in ids {
        let binary = Raw::binary(&relay, id).await;
        let phone = Raw::phone(&relay, id).await;
        pairs.push((binary, phone));
    }
    for (binary, phone) in &mut pairs {
        exchange(phone, binary).await;
    }
    for stray in ["iD", "i\u{a0}d", "id.", "\u{e8}", "id;id"] {
        let mut phone = Raw::phone(&relay, stray).await;
        assert_eq!(phone.closed().await, close(NO_SERVER), "{stray}");
    }
}

#[tokio::test]
async fn whitespace_around_an_id_is_not_part_of_it() {
    let relay = Relay::start(&[]).await;
    let mut binary = Raw::binary(&relay, "  \t id \t ").await;
    let mut phone = Raw::phone(&relay, "id").await;
    exchange(&mut phone, &mut binary).await;
}

#[tokio::test]
async fn an_id_over_256_bytes_or_not_utf8_is_refused_with_400() {
    let relay = Relay::start(&["--workers", "2"]).await;
    let mut taken = Vec::new();
    for (id, what) in [
        (vec![b'x'; 256], "256 ASCII bytes"),
        ("\u{e9}".repeat(128).into_bytes(), "256 bytes in 128 characters"),
    ] {
        let mut binary = Raw::connect(&relay).await.upgrade(Request::server(&id)).await;
        let mut phone = Raw::connect(&relay).await.upgrade(Request::client(&id)).await;
        exchange(&mut phone, &mut binary).await;
        println!("{what}: taken");
        taken.push((binary, phone));
    }
    assert_eq!(counts(&relay).await, (2, 2));
    for (id, what) in [
        (vec![b'x'; 257], "257 ASCII bytes"),
        ("\u{e9}".repeat(129).into_bytes(), "258 bytes in 129 characters"),
        (vec![b'i', b'd', 0xff], "a byte that UTF-8 never has"),
        (vec![0xc3, 0x28], "a sequence cut short"),
        (vec![0xed, 0xa0, 0x80], "a surrogate"),
        (vec![0xc0, 0xaf], "an overlong form"),
        (b"   ".to_vec(), "only spaces"),
        (Vec::new(), "nothing"),
    ] {
        for request in [Request::server(&id), Request::client(&id)] {
            let target = request.target.clone();
            let mut stranger = Raw::connect(&relay).await;
            stranger.send(request).await;
            assert_eq!(stranger.response().await.status, 400, "{what} at {target}");
        }
    }
    assert_eq!(counts(&relay).await, (2, 2), "nothing is registered for a refused request");
}
