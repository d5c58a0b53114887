//! Passes, as connections carry them.

use super::*;

const SEEDS: [u64; 4] = [1, 2, 3, 4];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn nets(text: &[&str]) -> Arc<[IpNet]> {
    text.iter().map(|net| net.parse().unwrap()).collect()
}

fn admission(max_connections: usize, max_per_address: Option<usize>) -> Arc<Admission> {
    let limits = AdmissionLimits { max_connections, max_per_address, ..AdmissionLimits::NONE };
    Admission::new(limits, Proxies::default(), SEEDS)
}

/// Accepted and upgraded.
fn come(admission: &Arc<Admission>, now: Millis, address: &str) -> Result<Pass, Refusal> {
    let mut pass = admission.enter(0, ip(address))?;
    pass.admit(now, ip(address), false)?;
    Ok(pass)
}

fn cause(result: Result<Pass, Refusal>) -> Cause {
    result.unwrap_err().cause
}

#[test]
fn places_of_the_process() {
    let admission = admission(2, None);
    let one = come(&admission, 0, "192.0.2.1").unwrap();
    let two = come(&admission, 0, "192.0.2.2").unwrap();
    let refusal = come(&admission, 0, "192.0.2.3").unwrap_err();
    assert_eq!(refusal, Refusal { cause: Cause::Connections, retry_after_s: 10 });
    assert_eq!((admission.live(), admission.addresses()), (2, 2), "nothing is left of the third");
    drop(one);
    let three = come(&admission, 0, "192.0.2.3").unwrap();
    assert_eq!(cause(come(&admission, 0, "192.0.2.1")), Cause::Connections);
    drop((two, three));
    assert_eq!((admission.live(), admission.addresses()), (0, 0));
}

#[test]
fn places_of_an_address() {
    let admission = admission(100, Some(2));
    let here = [(); 2].map(|()| come(&admission, 0, "2001:db8::1").unwrap());
    let same = come(&admission, 0, "2001:db8::ffff:1");
    assert_eq!(cause(same), Cause::ConnectionsOfAddress);
    let there = come(&admission, 0, "2001:db8:0:1::1").unwrap();
    drop(here);
    come(&admission, 0, "2001:db8::1").unwrap();
    drop(there);
    assert_eq!((admission.live(), admission.addresses()), (0, 0));
}

#[test]
fn who_steps_back_leaves_a_place_and_stays_a_visitor() {
    let admission = admission(1, None);
    let mut pass = come(&admission, 0, "192.0.2.1").unwrap();
    assert!(come(&admission, 0, "192.0.2.2").is_err());
    pass.step_back();
    pass.step_back();
    assert_eq!((admission.live(), admission.addresses()), (0, 1));
    let other = come(&admission, 0, "192.0.2.2").unwrap();
    drop(pass);
    assert_eq!((admission.live(), admission.addresses()), (1, 1));
    drop(other);
    assert_eq!(admission.addresses(), 0);
}

#[test]
fn visitors_of_an_address() {
    for (max_per_address, expected) in [(Some(40), 40), (Some(1), MIN_VISITORS)] {
        let admission = admission(1000, max_per_address);
        let mut here: Vec<Pass> =
            (0..expected).map(|_| admission.enter(0, ip("192.0.2.1")).unwrap()).collect();
        let refusal = admission.enter(0, ip("::ffff:192.0.2.1")).unwrap_err();
        assert_eq!(refusal.cause, Cause::VisitorsOfAddress);
        admission.enter(0, ip("192.0.2.2")).unwrap();
        here[0].admit(0, ip("192.0.2.1"), false).unwrap();
        here.push(admission.enter(0, ip("192.0.2.1")).unwrap());
        assert!(admission.enter(0, ip("192.0.2.1")).is_err());
    }
    let admission = admission(1, None);
    let many = (0..10_000).map(|_| admission.enter(0, ip("192.0.2.1")).unwrap());
    assert_eq!(many.collect::<Vec<_>>().len(), 10_000, "off is off");
}

#[test]
fn visitors_have_what_live_connections_leave_of_the_sockets() {
    let limits = AdmissionLimits { max_visitors: 100, max_sockets: 130, ..AdmissionLimits::NONE };
    let admission = Admission::new(limits, Proxies::default(), SEEDS);
    let shares = || [1, 2, 3, 1000].map(|workers| admission.visitors_of_each(workers));
    assert_eq!(shares(), [100, 50, 33, 1]);
    let mut live: Vec<Pass> = (0..30).map(|_| come(&admission, 0, "192.0.2.1").unwrap()).collect();
    assert_eq!(shares(), [100, 50, 33, 1]);
    live.extend((0..20).map(|_| come(&admission, 0, "192.0.2.1").unwrap()));
    assert_eq!(shares(), [80, 40, 26, 1]);
    live.extend((0..80).map(|_| come(&admission, 0, "192.0.2.1").unwrap()));
    assert_eq!(shares(), [MIN_ROOM, 32, 21, 1]);
    drop(live);
    let few = AdmissionLimits { max_visitors: 10, max_sockets: 0, ..limits };
    admission.set(few);
    assert_eq!(shares(), [10, 5, 3, 1]);
}

#[test]
fn rates_come_before_places() {
    let rate = Some(RateLimit { burst: 2, refill_ms: 6000 });
    let limits = AdmissionLimits { rate, max_connections: 1, ..AdmissionLimits::NONE };
    let admission = Admission::new(limits, Proxies::default(), SEEDS);
    let one = come(&admission, 0, "192.0.2.1").unwrap();
    assert_eq!(cause(come(&admission, 0, "192.0.2.1")), Cause::Connections, "it cost a token");
    let refusal = come(&admission, 1, "192.0.2.1").unwrap_err();
    assert_eq!(refusal, Refusal { cause: Cause::Rate, retry_after_s: 6 });
    drop(one);
    let refusal = come(&admission, 5001, "192.0.2.1").unwrap_err();
    assert_eq!(refusal, Refusal { cause: Cause::Rate, retry_after_s: 1 });
    come(&admission, 6000, "192.0.2.1").unwrap();
}

#[test]
fn limits_change_while_it_runs() {
    let admission = admission(1, None);
    let one = come(&admission, 0, "192.0.2.1").unwrap();
    admission.set(AdmissionLimits::NONE);
    let more = [(); 3].map(|()| come(&admission, 0, "192.0.2.1").unwrap());
    let tight = AdmissionLimits { max_per_address: Some(2), ..AdmissionLimits::NONE };
    admission.set(tight);
    assert_eq!(admission.limits(), tight);
    assert_eq!(cause(come(&admission, 0, "192.0.2.1")), Cause::ConnectionsOfAddress);
    assert_eq!(admission.live(), 4, "who is there stays");
    drop((one, more));
    come(&admission, 0, "192.0.2.1").unwrap();
}

#[test]
fn proxies_count_as_whom_they_speak_for() {
    let limits = AdmissionLimits { max_per_address: Some(16), ..AdmissionLimits::NONE };
    let proxies = Proxies {
        forwarded_for: nets(&["10.0.0.0/8"]),
        proxy_protocol: nets(&["127.0.0.0/8", "::1/128"]),
    };
    let admission = Admission::new(limits, proxies, SEEDS);
    let mut many: Vec<Pass> = (0..100)
        .map(|number| {
            let peer = if number % 2 == 0 { "::ffff:127.0.0.1" } else { "10.1.2.3" };
            admission.enter(0, ip(peer)).unwrap()
        })
        .collect();
    assert_eq!(admission.addresses(), 0);
    for pass in &mut many[..16] {
        pass.name(ip("192.0.2.1")).unwrap();
    }
    assert_eq!(many[16].name(ip("192.0.2.1")).unwrap_err().cause, Cause::VisitorsOfAddress);
    many[17].name(ip("10.0.0.1")).unwrap();
    assert_eq!(admission.addresses(), 1);
    for pass in &mut many[..16] {
        pass.admit(0, ip("192.0.2.1"), false).unwrap();
    }
    assert_eq!(
        many[17].admit(0, ip("192.0.2.1"), false).unwrap_err().cause,
        Cause::ConnectionsOfAddress
    );
    many[17].admit(0, ip("192.0.2.7"), false).unwrap();
    assert_eq!((admission.live(), admission.addresses()), (17, 2));
    drop(many);
    assert_eq!((admission.live(), admission.addresses()), (0, 0));
}

#[test]
fn only_proxies_are_believed() {
    let proxies = Proxies { forwarded_for: nets(&["10.0.0.0/8"]), ..Proxies::default() };
    let caller = |peer: &str, line: &str| {
        let lines = [line.as_bytes()];
        proxies
            .caller(Remote(peer.parse().unwrap()), lines.into_iter())
            .map(|found| found.to_string())
    };
    assert_eq!(caller("10.0.0.1:5", "192.0.2.1").as_deref(), Some("192.0.2.1"));
    assert_eq!(caller("[::ffff:10.0.0.1]:5", "192.0.2.1:7").as_deref(), Some("192.0.2.1:7"));
    assert_eq!(caller("10.0.0.1:5", "garbage"), None);
    assert_eq!(caller("192.0.2.9:5", "192.0.2.1"), None);
    assert_eq!(
        Proxies::default().caller(Remote("10.0.0.1:5".parse().unwrap()), [].into_iter()),
        None
    );
}

#[test]
fn a_relay_that_is_drained_turns_away_claims_and_no_phones() {
    let admission = admission(10, None);
    admission.set_draining(true);
    let mut pass = admission.enter(0, ip("192.0.2.1")).unwrap();
    let refusal = pass.admit(0, ip("192.0.2.1"), true).unwrap_err();
    assert_eq!((refusal.cause, admission.live()), (Cause::Draining, 0));
    pass.admit(0, ip("192.0.2.1"), false).unwrap();
    admission.set_draining(false);
    let mut pass = admission.enter(0, ip("192.0.2.1")).unwrap();
    pass.admit(0, ip("192.0.2.1"), true).unwrap();
}
