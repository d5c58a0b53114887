//! What happened to whom and when, and what that comes to over some time.

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The close of a phone whose server-id nobody holds (PROTOCOL.md, chapter 2).
pub(super) const NO_SERVER: u16 = 4404;

/// Something that a peer of a server-id met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// A phone got the right answer from its binary.
    Answered,
    /// A phone was closed 4404 at its beginning; it had begun to dial then.
    NoServer { dialled: Instant },
    /// A dial came to nothing else than a WebSocket, and why.
    Refused(String),
    /// The binary has its WebSocket.
    Claimed,
    /// A WebSocket that was open ended, by a close with this code or without.
    Ended { binary: bool, code: Option<u16> },
}

/// Everything that has happened so far.
#[derive(Debug, Default)]
pub(super) struct Record {
    happened: Mutex<Vec<(Instant, u32, Event)>>,
    /// The first thing that no relay may do.
    fault: Mutex<Option<String>>,
}

impl Record {
    pub(super) fn note(&self, id: u32, event: Event) {
        let mut happened = self.happened.lock().unwrap_or_else(PoisonError::into_inner);
        happened.push((Instant::now(), id, event));
    }

    /// A frame is wrong: the run has failed.
    pub(super) fn fault(&self, what: String) {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
    }

    pub(super) fn found_fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The ids of which a phone was answered since then.
    pub(super) fn answered_since(&self, then: Instant) -> BTreeSet<u32> {
        let happened = self.happened.lock().unwrap_or_else(PoisonError::into_inner);
        let later = happened.iter().rev().take_while(|(at, ..)| *at >= then);
        later.filter(|(.., event)| *event == Event::Answered).map(|(_, id, _)| *id).collect()
    }

    /// What all of it between two instants comes to, for the ids that a change touches and for the
    /// others.
    pub(super) fn between(&self, from: Instant, to: Instant, touched: &BTreeSet<u32>) -> Felt {
        let happened = self.happened.lock().unwrap_or_else(PoisonError::into_inner);
        let mut by_id: BTreeMap<u32, Vec<(Instant, &Event)>> = BTreeMap::new();
        for (at, id, event) in happened.iter() {
            by_id.entry(*id).or_default().push((*at, event));
        }
        let mut felt = Felt::default();
        for (id, events) in &by_id {
            let one = OfId::between(events, from, to);
            let side = if touched.contains(id) { &mut felt.touched } else { &mut felt.others };
            side.add(&one);
        }
        felt
    }
}

/// What the ids on both sides of a change felt.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Felt {
    pub(super) touched: Side,
    pub(super) others: Side,
}

/// What some ids felt.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Side {
    pub(super) ids: usize,
    pub(super) answers: usize,
    /// WebSockets that had been open and ended, but for visitors that had their answer.
    pub(super) ended: usize,
    /// Why, in the order in which it was first seen.
    pub(super) codes: BTreeMap<String, usize>,
    /// The longest time of an id from one answer to the next.
    pub(super) longest_silence_ms: u64,
    /// The time from one answer to the next that half of the ids had at most, of their longest.
    #[serde(skip)]
    silences: Vec<u64>,
    /// Dials that met 4404.
    pub(super) no_server: usize,
    /// The longest time of an id from its first 4404 to its next answer.
    pub(super) longest_no_server_ms: u64,
    /// Dials that met 4404 although the binary was connected when they began.
    pub(super) astray: usize,
    /// The longest time of an id from its first such 4404 to its next answer.
    pub(super) longest_astray_ms: u64,
    /// Dials that were refused, by why.
    pub(super) refused: BTreeMap<String, usize>,
}

impl Side {
    fn add(&mut self, one: &OfId) {
        self.ids += 1;
        self.answers += one.answers;
        self.ended += one.codes.len();
        for code in &one.codes {
            *self.codes.entry(code.clone()).or_default() += 1;
        }
        self.silences.push(millis(one.silence));
        self.longest_silence_ms = self.longest_silence_ms.max(millis(one.silence));
        self.no_server += one.no_server;
        self.longest_no_server_ms = self.longest_no_server_ms.max(millis(one.no_server_for));
        self.astray += one.astray;
        self.longest_astray_ms = self.longest_astray_ms.max(millis(one.astray_for));
        for why in &one.refused {
            *self.refused.entry(why.clone()).or_default() += 1;
        }
    }

    /// The longest silence that half of the ids did not exceed.
    pub(super) fn median_silence_ms(&self) -> u64 {
        let mut sorted = self.silences.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or(0)
    }
}

fn millis(time: Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}

/// What one id felt.
#[derive(Debug, Default)]
struct OfId {
    answers: usize,
    codes: Vec<String>,
    silence: Duration,
    no_server: usize,
    no_server_for: Duration,
    astray: usize,
    astray_for: Duration,
    refused: Vec<String>,
}

impl OfId {
    /// `events` are in order, also those before `from`: they say how the id stood then.
    fn between(events: &[(Instant, &Event)], from: Instant, to: Instant) -> Self {
        let mut own = Self::default();
        let (mut last_answer, mut first_no_server, mut first_astray) = (from, None, None);
        let mut connected: Option<Instant> = None;
        for (at, event) in events {
            let within = *at >= from && *at < to;
            match event {
                Event::Claimed => connected = Some(*at),
                Event::Ended { binary: true, .. } => connected = None,
                _ => {}
            }
            if !within {
                continue;
            }
            match event {
                Event::Answered => {
                    own.answers += 1;
                    own.silence = own.silence.max(*at - last_answer);
                    last_answer = *at;
                    let since =
                        |then: Option<Instant>| then.map_or(Duration::ZERO, |then| *at - then);
                    own.no_server_for = own.no_server_for.max(since(first_no_server.take()));
                    own.astray_for = own.astray_for.max(since(first_astray.take()));
                }
                Event::NoServer { dialled } => {
                    own.no_server += 1;
                    first_no_server.get_or_insert(*at);
                    if connected.is_some_and(|connected| connected <= *dialled) {
                        own.astray += 1;
                        first_astray.get_or_insert(*at);
                    }
                }
                Event::Ended { code, .. } => {
                    own.codes.push(code.map_or("1006".to_owned(), |code| code.to_string()));
                }
                Event::Refused(why) => own.refused.push(why.clone()),
                Event::Claimed => {}
            }
        }
        own.silence = own.silence.max(to.saturating_duration_since(last_answer));
        let left = |then: Option<Instant>| then.map_or(Duration::ZERO, |then| to - then);
        own.no_server_for = own.no_server_for.max(left(first_no_server));
        own.astray_for = own.astray_for.max(left(first_astray));
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phone_is_astray_only_while_its_binary_is_connected_elsewhere() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let dialled = |ms: u64| Event::NoServer { dialled: at(ms) };
        let ended = Event::Ended { binary: true, code: None };
        let (early, late) = (dialled(150), dialled(350));
        let events = [
            (at(0), &Event::Claimed),
            (at(100), &Event::Answered),
            (at(140), &ended),
            (at(200), &early),
            (at(300), &Event::Claimed),
            (at(400), &late),
            (at(500), &Event::Answered),
        ];
        let own = OfId::between(&events, at(50), at(600));
        assert_eq!((own.answers, own.no_server, own.astray), (2, 2, 1));
        assert_eq!(own.no_server_for, Duration::from_millis(300));
        assert_eq!(own.astray_for, Duration::from_millis(100));
        assert_eq!((own.silence, own.codes.len()), (Duration::from_millis(400), 1));
    }

    #[test]
    fn both_sides_of_a_change_are_told_apart() {
        let (record, from) = (Record::default(), Instant::now());
        record.note(1, Event::Answered);
        record.note(2, Event::Ended { binary: false, code: Some(1012) });
        record.note(2, Event::Refused("503".to_owned()));
        let felt = record.between(from, Instant::now(), &BTreeSet::from([2]));
        assert_eq!((felt.touched.ids, felt.touched.ended, felt.others.answers), (1, 1, 1));
        assert_eq!(felt.touched.codes["1012"], 1);
        assert_eq!(record.answered_since(from), BTreeSet::from([1]));
    }
}
