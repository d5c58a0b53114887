//! How many wakes each server-id gets (PROTOCOL.md, chapter 8), whether it is held or not: who
//! lets an id go and claims it again has gained nothing.

use crate::protocol::ids::ServerId;
use crate::relay::timers::Millis;
use crate::relay::wakes::{Verdict, WAKE_REFILL_MS, WakeAllowance};
use std::collections::HashMap;

/// Ids that are remembered at most; each is forgotten a minute after its last wake, or earlier.
/// So many could not be served anyway: it would be hundreds of wakes per second.
const MAX_IDS: usize = 16_384;

/// The allowance of every id that has asked lately.
#[derive(Default)]
pub(super) struct Allowances {
    ids: HashMap<ServerId, WakeAllowance>,
    /// When those that are full again are next forgotten. None becomes full in less time.
    sweep_at_ms: Millis,
}

impl Allowances {
    /// Takes one wake of this id. A new id is refused while too many others are remembered.
    pub(super) fn take(&mut self, now: Millis, id: &ServerId) -> Verdict {
        if now >= self.sweep_at_ms {
            self.ids.retain(|_, allowance| !allowance.is_full(now));
            self.sweep_at_ms = now + WAKE_REFILL_MS;
        }
        if self.ids.len() >= MAX_IDS && !self.ids.contains_key(id) {
            return Verdict::Refused { first: true };
        }
        self.ids.entry(id.clone()).or_default().take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ServerId {
        ServerId::from_header(name.as_bytes()).unwrap()
    }

    #[test]
    fn each_id_has_an_allowance_of_its_own() {
        let mut allowances = Allowances::default();
        for _ in 0..6 {
            assert_eq!(allowances.take(5, &id("a")), Verdict::Granted);
        }
        assert_eq!(allowances.take(5, &id("a")), Verdict::Refused { first: true });
        assert_eq!(allowances.take(5, &id("b")), Verdict::Granted);
        assert_eq!(allowances.take(10_004, &id("a")), Verdict::Refused { first: false });
        assert_eq!(allowances.take(10_005, &id("a")), Verdict::Granted);
        assert_eq!(allowances.take(10_005, &id("a")), Verdict::Refused { first: true });
    }

    #[test]
    fn an_id_is_forgotten_once_its_allowance_is_full() {
        let mut allowances = Allowances::default();
        for now in [0, 0, 9_000] {
            allowances.take(now, &id("a"));
        }
        allowances.take(29_999, &id("b"));
        assert!(allowances.ids.contains_key(&id("a")), "one wake is still missing");
        allowances.take(39_999, &id("c"));
        assert_eq!(allowances.ids.len(), 1, "{:?}", allowances.ids.keys());
    }

    #[test]
    fn a_spray_of_ids_takes_bounded_memory_and_harms_no_known_id() {
        let mut allowances = Allowances::default();
        assert_eq!(allowances.take(0, &id("known")), Verdict::Granted);
        let granted = (0..2 * MAX_IDS)
            .filter(|n| allowances.take(1, &id(&n.to_string())) == Verdict::Granted)
            .count();
        assert_eq!(granted, MAX_IDS - 1);
        assert_eq!(allowances.ids.len(), MAX_IDS);
        assert_eq!(allowances.take(1, &id("known")), Verdict::Granted);
        assert_eq!(allowances.take(10_001, &id("new")), Verdict::Granted);
        assert_eq!(allowances.ids.len(), 2, "the known and the new");
    }
}
