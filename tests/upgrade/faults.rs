//! Either process ends at each step: who serves afterwards, and that nothing is lost.

use super::common::{SOON, soon, wait_until};
use super::puppet::{Puppet, Started, Step};
use super::service::{PATIENCE, Pair, Service, assert_nobody_serves, signal};
use pyrycode_relay::handover::messages::FromSuccessor;
use pyrycode_relay::handover::state;
use rustix::process::Signal;

const FAILED: &str = "pyrycode_relay_upgrades_total{outcome=\"failed\"}";
const SUCCEEDED: &str = "pyrycode_relay_upgrades_total{outcome=\"succeeded\"}";

// ---- one of the two is killed while a message is on its way

#[tokio::test]
async fn the_relay_goes_on_where_its_successor_is_killed_before_it_has_taken_over() {
    let mut service = Service::start(&[]).await;
    let puppet = Puppet::new(&service.folder);
    let mut pair = Pair::new(&service.relay, "id").await;
    let steps = Step::ALL.into_iter().filter(|step| *step < Step::Taken);
    for (failed, step) in steps.enumerate() {
        pair.say().await;
        let (mut upgrade, between) = puppet.held_at(&service, step).await;
        pair.say().await;
        signal(between.pid, Signal::KILL);
        let carrier = between.release();
        let why = service.failed(&upgrade.wait_exit(PATIENCE).await);
        carrier.join().unwrap();
        assert!(why.contains("the new process has ended"), "{step:?}: {why}");
        pair.talk().await;
        assert_eq!(service.metric(FAILED).await, failed as f64 + 1.0);
    }
    // Nothing of it stands in the way of one that succeeds.
    service.upgrade(&[]).await;
    pair.talk().await;
    assert_eq!((service.metric(FAILED).await, service.metric(SUCCEEDED).await), (6.0, 1.0));
}

/// A relay whose first process is killed while this message is on its way, with a pair that has said
/// something before and since.
async fn without_predecessor(step: Step) -> (Service, Pair, u32) {
    let mut service = Service::start(&[]).await;
    let puppet = Puppet::new(&service.folder);
    let mut pair = Pair::new(&service.relay, "id").await;
    pair.say().await;
    let (mut upgrade, between) = puppet.held_at(&service, step).await;
    pair.say().await;
    let (old, new) = (service.pid, between.pid);
    signal(old, Signal::KILL);
    assert_eq!(service.ended(old).await, None, "killed");
    let carrier = between.release();
    assert_eq!(upgrade.wait_exit(PATIENCE).await.status.code(), Some(1));
    carrier.join().unwrap();
    (service, pair, new)
}

#[tokio::test]
async fn the_successor_goes_on_where_the_relay_is_killed_once_it_has_given_everything() {
    for step in Step::ALL.into_iter().filter(|step| *step >= Step::State) {
        let (mut service, mut pair, new) = without_predecessor(step).await;
        service.pid = new;
        pair.hear().await;
        pair.talk().await;
        if step < Step::Commit {
            service.relay.wait_for_log("predecessor_gone").await;
        }
        service.relay.wait_for_counts(1, 1).await;
        assert_eq!(service.metric(SUCCEEDED).await, 1.0, "{step:?}");
        service.upgrade(&[]).await;
        pair.talk().await;
    }
}

#[tokio::test]
async fn nobody_serves_where_the_relay_is_killed_before_as_if_there_were_no_upgrade() {
    for step in Step::ALL.into_iter().filter(|step| *step < Step::State) {
        let (mut service, pair, new) = without_predecessor(step).await;
        assert_eq!(service.ended(new).await, Some(1), "{step:?}: the successor ends");
        pair.expect_cut().await;
        assert_nobody_serves(service.relay.addr()).await;
    }
}

#[tokio::test]
async fn a_successor_that_is_killed_after_it_has_taken_over_is_a_crash_and_told_so() {
    let mut service = Service::start(&[]).await;
    let puppet = Puppet::new(&service.folder);
    let pair = Pair::new(&service.relay, "id").await;
    let (mut upgrade, between) = puppet.held_at(&service, Step::Taken).await;
    signal(between.pid, Signal::KILL);
    let carrier = between.release();
    let exit = upgrade.wait_exit(PATIENCE).await;
    carrier.join().unwrap();
    let why = exit.stderr;
    assert_eq!(exit.status.code(), Some(1), "{} {why}", exit.stdout);
    assert!(why.contains("took over and has ended"), "{why}");
    // By this, a supervisor starts it again.
    let old = service.pid;
    assert_eq!(service.ended(old).await, Some(1));
    pair.expect_cut().await;
    assert_nobody_serves(service.relay.addr()).await;
}

// ---- a successor that does what none should

/// What it has heard last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Nothing,
    Offer,
    State,
    Commit,
}

#[derive(Debug, Clone, Copy)]
enum Then {
    Dies,
    Refuses,
    SaysTheWrongThing,
}

/// Plays a good successor up to this message.
fn play(process: &mut Started, until: Heard) {
    if until == Heard::Nothing {
        return;
    }
    assert_eq!(process.hear_greeting().state_version, state::VERSION);
    process.hear();
    if until == Heard::Offer {
        return;
    }
    process.say(&FromSuccessor::Ready { program: "a puppet".to_owned() });
    process.hear();
    if until == Heard::State {
        return;
    }
    process.say(&FromSuccessor::Prepared);
    process.hear();
}

#[tokio::test]
async fn the_relay_goes_on_whatever_its_successor_does_before_it_has_taken_over() {
    let mut service = Service::start(&[]).await;
    let puppet = Puppet::new(&service.folder);
    let mut pair = Pair::new(&service.relay, "id").await;
    let descriptors = service.relay.descriptors();
    let mut failed = 0.0;
    for heard in [Heard::Nothing, Heard::Offer, Heard::State, Heard::Commit] {
        for then in [Then::Dies, Then::Refuses, Then::SaysTheWrongThing] {
            let case = format!("{then:?} after {heard:?}");
            let mut upgrade = service.begin(&["upgrade", "--program", &puppet.program]);
            let mut process = puppet.started().await;
            play(&mut process, heard);
            pair.say().await;
            let says = match then {
                Then::Dies => {
                    process.dies().await;
                    "the new process has ended"
                }
                Then::Refuses => {
                    process.say(&FromSuccessor::Refused("it is Monday".to_owned()));
                    process.dies().await;
                    "the new process refuses: it is Monday"
                }
                Then::SaysTheWrongThing => {
                    process.say(&FromSuccessor::Serving { at_us: 7 });
                    // It would go on, and must not.
                    process.ends().await;
                    "is not understood"
                }
            };
            let why = service.failed(&upgrade.wait_exit(PATIENCE).await);
            assert!(why.contains(says), "{case}: {why}");
            pair.talk().await;
            failed += 1.0;
            assert_eq!(service.metric(FAILED).await, failed, "{case}");
        }
    }
    wait_until("nothing is left of them", SOON, async || {
        service.relay.descriptors() <= descriptors
    })
    .await;
    service.upgrade(&[]).await;
    pair.talk().await;
}

/// A relay whose successor says nothing any more, once it has heard this.
async fn outlives_silence(heard: Heard) {
    let service = Service::start(&[]).await;
    let puppet = Puppet::new(&service.folder);
    let mut pair = Pair::new(&service.relay, "id").await;
    let mut upgrade = service.begin(&["upgrade", "--program", &puppet.program]);
    let mut process = puppet.started().await;
    play(&mut process, heard);
    pair.say().await;
    let why = service.failed(&upgrade.wait_exit(PATIENCE).await);
    assert!(why.contains("the new process said nothing for 10 s"), "{heard:?}: {why}");
    soon("it is killed", process.ends()).await;
    pair.talk().await;
}

#[tokio::test]
async fn a_successor_that_hangs_is_killed_before_the_relay_goes_on() {
    tokio::join!(outlives_silence(Heard::State), outlives_silence(Heard::Commit));
}
