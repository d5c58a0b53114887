//! What was said about claims lately: bounded, and each answer for its time.

use crate::protocol::ids::ServerId;
use crate::relay::timers::Millis;
use hyper::HeaderMap;
use hyper::header::CACHE_CONTROL;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

/// Answers that are remembered at most: with ids of the greatest length some 5 MiB.
const MAX_ANSWERS: usize = 16_384;
/// Refusals among them: strangers who try many ids leave room for those who are allowed.
const MAX_REFUSALS: usize = MAX_ANSWERS / 4;
/// How long an answer is good that does not say it.
const ALLOWED_FOR: Duration = Duration::from_secs(60);
const DENIED_FOR: Duration = Duration::from_secs(10);
/// The longest, whatever it says: an id that is taken away from somebody is so by then.
const MAX_LIFETIME: Duration = Duration::from_secs(3600);
/// How often those are looked for whose time is over, where there is no room.
const SWEEP_EVERY_MS: Millis = 1000;

/// Who claims what.
pub(super) type Claimant = (ServerId, IpAddr);

struct Remembered {
    allow: bool,
    until: Millis,
}

/// The answers.
#[derive(Default)]
pub(super) struct Answers {
    by_claimant: HashMap<Claimant, Remembered>,
    refusals: usize,
    sweep_at: Millis,
}

impl Answers {
    /// What was said about this one, if that is still good.
    pub(super) fn get(&self, now: Millis, claimant: &Claimant) -> Option<bool> {
        let remembered = self.by_claimant.get(claimant)?;
        (now < remembered.until).then_some(remembered.allow)
    }

    /// Remembers what was said, if there is room.
    pub(super) fn put(&mut self, now: Millis, claimant: Claimant, allow: bool, lifetime: Duration) {
        self.forget(&claimant);
        if lifetime.is_zero() {
            return;
        }
        if !self.has_room(allow) && now >= self.sweep_at {
            self.by_claimant.retain(|_, remembered| now < remembered.until);
            self.refusals = self.by_claimant.values().filter(|answer| !answer.allow).count();
            self.sweep_at = now + SWEEP_EVERY_MS;
        }
        if self.has_room(allow) {
            let until = now + lifetime.as_millis() as Millis;
            self.refusals += usize::from(!allow);
            self.by_claimant.insert(claimant, Remembered { allow, until });
        }
    }

    fn has_room(&self, allow: bool) -> bool {
        self.by_claimant.len() < MAX_ANSWERS && (allow || self.refusals < MAX_REFUSALS)
    }

    fn forget(&mut self, claimant: &Claimant) {
        if self.by_claimant.remove(claimant).is_some_and(|remembered| !remembered.allow) {
            self.refusals -= 1;
        }
    }
}

/// How long an answer with these headers is good (RFC 9111, section 5.2.2): `max-age` if it names
/// one, and not at all with `no-store` or `no-cache`.
pub(super) fn lifetime(headers: &HeaderMap, allow: bool) -> Duration {
    let lines = headers.get_all(CACHE_CONTROL).into_iter().filter_map(|line| line.to_str().ok());
    let mut lifetime = if allow { ALLOWED_FOR } else { DENIED_FOR };
    for directive in lines.flat_map(|line| line.split(',')).map(str::trim) {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        if name.eq_ignore_ascii_case("no-store") || name.eq_ignore_ascii_case("no-cache") {
            return Duration::ZERO;
        }
        if name.eq_ignore_ascii_case("max-age") {
            // What cannot be read is not fresh (section 4.2.1).
            lifetime = Duration::from_secs(value.trim_matches('"').parse().unwrap_or(0));
        }
    }
    lifetime.min(MAX_LIFETIME)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimant(id: &str) -> Claimant {
        (ServerId::from_header(id.as_bytes()).unwrap(), "192.0.2.1".parse().unwrap())
    }

    #[test]
    fn an_answer_is_good_for_its_time_and_for_its_claimant() {
        let mut answers = Answers::default();
        let (a, b) = (claimant("a"), claimant("b"));
        answers.put(0, a.clone(), true, Duration::from_secs(2));
        assert_eq!((answers.get(1999, &a), answers.get(2000, &a)), (Some(true), None));
        assert_eq!(answers.get(0, &b), None);
        let elsewhere = (a.0.clone(), "192.0.2.2".parse().unwrap());
        assert_eq!(answers.get(0, &elsewhere), None);
        answers.put(0, a.clone(), false, Duration::from_secs(2));
        assert_eq!(answers.get(0, &a), Some(false));
        answers.put(0, a.clone(), true, Duration::ZERO);
        assert_eq!((answers.get(0, &a), answers.refusals), (None, 0));
    }

    #[test]
    fn strangers_who_are_refused_leave_room_for_those_who_are_allowed() {
        let mut answers = Answers::default();
        let second = Duration::from_secs(1);
        for number in 0..2 * MAX_REFUSALS {
            answers.put(0, claimant(&format!("stranger-{number}")), false, second);
        }
        assert_eq!(answers.by_claimant.len(), MAX_REFUSALS);
        for number in 0..2 * MAX_ANSWERS {
            answers.put(0, claimant(&format!("known-{number}")), true, 2 * second);
        }
        assert_eq!(answers.by_claimant.len(), MAX_ANSWERS);
        assert_eq!(answers.get(0, &claimant("known-0")), Some(true));
        // Those whose time is over make room.
        answers.put(1500, claimant("new"), false, second);
        assert_eq!((answers.get(1500, &claimant("new")), answers.refusals), (Some(false), 1));
    }

    #[test]
    fn the_verifier_says_how_long_its_answer_is_good() {
        for (lines, allow, seconds) in [
            (&[][..], true, 60),
            (&[], false, 10),
            (&["max-age=5"], true, 5),
            (&["private, Max-Age=\"7\""], false, 7),
            (&["max-age=99999"], true, 3600),
            (&["max-age=-1"], true, 0),
            (&["max-age=5", "no-store"], true, 0),
            (&["no-cache"], false, 0),
            (&["public"], true, 60),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(CACHE_CONTROL, line.parse().unwrap());
            }
            assert_eq!(lifetime(&headers, allow).as_secs(), seconds, "{lines:?}");
        }
    }
}
