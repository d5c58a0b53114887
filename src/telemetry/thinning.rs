//! Which lines are written where peers provoke more than anybody can read, so that a flood fills
//! neither a disk nor a core, and hides nobody else's lines.
//!
//! An event is counted by what it says and whom it is about: its call site and cause, the peer's
//! address (IPv6: its /64) and the server-id. Each such *key* has its first lines and then one line a minute
//! that says how many there were besides ([`Repeats`]).
//!
//! Memory is fixed: a table of [`SETS`] sets of [`WAYS`] keys, without eviction, so that nobody's
//! many keys take another's slot. All keys of one network (IPv4: /24, IPv6: /48) and call site
//! share two sets; an attacker fills no others, however many addresses it has there. A key that
//! has no slot draws on what its call site may write for all such keys together.

use super::repeats::{Rate, Repeats};
use super::subject::{Peer, Subject};
use ahash::RandomState;
use std::collections::HashMap;
use tracing::callsite::Identifier;
use tracing::{Level, Metadata};

/// Lines of one key: twenty at once, which is more than the phones of one binary are by default,
/// and one a minute.
const OF_KEY: Rate = Rate { burst: 20, refill_ms: 60_000 };
/// Lines of one call site, of all keys that found no slot: everybody who reconnects after a
/// restart has one.
const WITHOUT_SLOT: Rate = Rate { burst: 10_000, refill_ms: 1000 };
const SETS: usize = 1024;
const WAYS: usize = 4;

/// Counts events, for all threads.
pub(super) struct Thinning {
    hasher: RandomState,
    /// [`SETS`] times [`WAYS`].
    slots: Vec<Slot>,
    /// There is one for each call site that was reached, so the code bounds them.
    sites: HashMap<Identifier, Site, RandomState>,
}

/// A slot for one key, free if its repeats are whole.
#[derive(Default)]
struct Slot {
    key: u64,
    repeats: Repeats,
    /// Whom to name when it is told how many were left out; there is one while some are.
    omitted: Option<Box<Omitted>>,
}

struct Site {
    level: Level,
    event: String,
    without_slot: Repeats,
}

/// What was counted and not logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Omitted {
    pub(super) level: Level,
    pub(super) event: String,
    /// The key and the value that name whom it is about.
    pub(super) name: Option<(&'static str, String)>,
    pub(super) remote: Option<String>,
    /// What `err` said; empty if nothing.
    pub(super) cause: String,
    pub(super) count: u64,
}

impl Thinning {
    /// Nothing has happened yet. `seeds` must be random: peers choose what is counted.
    pub(super) fn new([a, b, c, d]: [u64; 4]) -> Self {
        let hasher = RandomState::with_seeds(a, b, c, d);
        let sites = HashMap::with_hasher(hasher.clone());
        let slots = std::iter::repeat_with(Slot::default).take(SETS * WAYS).collect();
        Self { hasher, slots, sites }
    }

    /// Whether this event is to be logged. `event` is asked for its name where its call site is new.
    pub(super) fn admit(
        &mut self,
        now_ms: u64,
        site: &'static Metadata<'static>,
        subject: &Subject,
        event: impl FnOnce() -> String,
    ) -> bool {
        let (at, level) = (site.callsite(), *site.level());
        let known = self.sites.entry(at.clone()).or_insert_with(|| {
            let without_slot = Repeats::default();
            Site { level, event: event(), without_slot }
        });
        let (peer, name) = (subject.peer, subject.name());
        let key = self.hasher.hash_one((&at, peer, name, subject.cause()));
        let sets = match peer {
            Some(peer) => self.hasher.hash_one((&at, peer.network())),
            None => self.hasher.hash_one((&at, name)),
        };
        let Some(slot) = slot_of(&mut self.slots, now_ms, key, sets) else {
            return known.without_slot.admit(WITHOUT_SLOT, now_ms, subject.times);
        };
        let is_admitted = slot.repeats.admit(OF_KEY, now_ms, subject.times);
        if !is_admitted && slot.omitted.is_none() {
            slot.omitted = Some(Box::new(Omitted {
                level,
                event: known.event.clone(),
                name: name.map(|(key, value)| (key, value.to_owned())),
                remote: peer.as_ref().map(Peer::to_string),
                cause: subject.cause().to_owned(),
                count: 0,
            }));
        }
        is_admitted
    }

    /// What was left out and is to be told now; with `all`, whatever was not told yet.
    pub(super) fn take_omitted(&mut self, now_ms: u64, all: bool) -> Vec<Omitted> {
        let take = |repeats: &mut Repeats, rate: Rate| {
            if all { repeats.take(rate, now_ms) } else { repeats.take_due(rate, now_ms) }
        };
        let mut told = Vec::new();
        for slot in &mut self.slots {
            if let Some(count) = take(&mut slot.repeats, OF_KEY)
                && let Some(omitted) = slot.omitted.take()
            {
                told.push(Omitted { count, ..*omitted });
            }
        }
        for Site { level, event, without_slot } in self.sites.values_mut() {
            if let Some(count) = take(without_slot, WITHOUT_SLOT) {
                let (level, event) = (*level, event.clone());
                let cause = String::new();
                told.push(Omitted { level, event, name: None, remote: None, cause, count });
            }
        }
        told
    }
}

/// The key's slot in one of its two sets, or else a free one in the emptier of them.
fn slot_of(slots: &mut [Slot], now_ms: u64, key: u64, sets: u64) -> Option<&mut Slot> {
    let (one, other) = (sets as usize % SETS, (sets >> 32) as usize % SETS);
    let ways = |set: usize| set * WAYS..(set + 1) * WAYS;
    let count_free = |set: usize| {
        let set = slots.get(ways(set)).unwrap_or_default();
        set.iter().filter(|slot| slot.repeats.is_idle(now_ms)).count()
    };
    let find = |what: &dyn Fn(&Slot) -> bool, set: usize| {
        ways(set).find(|at| slots.get(*at).is_some_and(what))
    };
    let is_its = |slot: &Slot| slot.key == key && !slot.repeats.is_idle(now_ms);
    let at = find(&is_its, one).or_else(|| find(&is_its, other)).or_else(|| {
        let emptier = if count_free(one) >= count_free(other) { one } else { other };
        find(&|slot: &Slot| slot.repeats.is_idle(now_ms), emptier)
    })?;
    let slot = slots.get_mut(at)?;
    if slot.key != key {
        *slot = Slot { key, ..Slot::default() };
    }
    Some(slot)
}

#[cfg(test)]
mod tests {
    use super::super::repeats::TOLD_EVERY_MS;
    use super::*;
    use std::sync::Mutex;
    use tracing::{Event, Subscriber};
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

    /// Asks the thinning for each event at a time of its own, and keeps what is admitted.
    struct Times(Mutex<(Thinning, u64, u64)>);

    struct Asks(std::sync::Arc<Times>);

    impl<S: Subscriber> Layer<S> for Asks {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let (thinning, now_ms, written) = &mut *self.0.0.lock().unwrap();
            let subject = Subject::of(event);
            let name = || "named".to_owned();
            *written += u64::from(thinning.admit(*now_ms, event.metadata(), &subject, name));
        }
    }

    impl Times {
        fn new() -> std::sync::Arc<Self> {
            std::sync::Arc::new(Self(Mutex::new((Thinning::new([1, 2, 3, 4]), 0, 0))))
        }

        /// How many lines `does` writes at this time.
        fn written(self: &std::sync::Arc<Self>, now_ms: u64, does: impl FnOnce()) -> u64 {
            let before = {
                let mut times = self.0.lock().unwrap();
                times.1 = now_ms;
                times.2
            };
            let subscriber = tracing_subscriber::registry().with(Asks(self.clone()));
            tracing::subscriber::with_default(subscriber, does);
            self.0.lock().unwrap().2 - before
        }

        fn told(&self, now_ms: u64) -> Vec<Omitted> {
            self.0.lock().unwrap().0.take_omitted(now_ms, false)
        }
    }

    fn registered(server_id: &str, remote: &str) {
        tracing::info!(server_id, %remote, "phone_registered");
    }

    fn tls_failed(remote: &str) {
        tracing::info!(%remote, "tls_failed");
    }

    #[test]
    fn a_flood_is_counted_and_hides_nobody_else() {
        let times = Times::new();
        let flood = || (0..100_000).for_each(|_| registered("flood", "192.0.2.1:9"));
        assert_eq!(times.written(0, flood), OF_KEY.burst);
        assert_eq!(times.written(1, || registered("flood", "192.0.2.2:9")), 1, "from elsewhere");
        assert_eq!(times.written(1, || registered("other", "192.0.2.1:9")), 1, "another id");
        assert_eq!(times.written(1, || tls_failed("192.0.2.1:9")), 1, "another event");
        assert_eq!(times.told(TOLD_EVERY_MS - 1), []);
        let told = times.told(TOLD_EVERY_MS);
        let expected = Omitted {
            level: Level::INFO,
            event: "named".to_owned(),
            name: Some(("server_id", "flood".to_owned())),
            remote: Some("192.0.2.1".to_owned()),
            cause: String::new(),
            count: 100_000 - OF_KEY.burst,
        };
        assert_eq!(told, [expected], "though the flood has stopped");
        assert_eq!(times.told(10 * TOLD_EVERY_MS), []);
    }

    #[test]
    fn each_cause_has_its_lines() {
        let times = Times::new();
        let lost = |cause: &str| tracing::info!(remote = "192.0.2.1:9", err = cause, "lost");
        assert_eq!(times.written(0, || (0..100).for_each(|_| lost("reset"))), OF_KEY.burst);
        assert_eq!(times.written(0, || lost("timed out")), 1);
        assert_eq!(times.told(TOLD_EVERY_MS)[0].cause, "reset");
    }

    #[test]
    fn a_flood_that_goes_on_costs_a_line_a_minute() {
        let times = Times::new();
        let mut lines = 0;
        for second in 0..3600 {
            let flood = || (0..10).for_each(|_| tls_failed("[2001:db8::1]:9"));
            lines += times.written(second * 1000, flood);
            if second % 10 == 0 {
                lines += times.told(second * 1000).len() as u64;
            }
        }
        assert!((OF_KEY.burst + 55..=OF_KEY.burst + 60).contains(&lines), "{lines}");
    }

    /// Ten thousand ids of one address do not hide another address, nor do all addresses of a
    /// network of IPv6; and the whole is bounded.
    #[test]
    fn many_identities_of_one_network_take_no_others_slot() {
        let times = Times::new();
        let ids = || {
            for id in 0..100_000 {
                registered(&id.to_string(), "192.0.2.1:9");
            }
        };
        let hosts = || {
            for host in 0..100_000_u32 {
                let (high, low) = (host >> 16, host & 0xffff);
                tls_failed(&format!("[2001:db8:0:{low:x}:{high:x}::1]:9"));
            }
        };
        let bound = WITHOUT_SLOT.burst + 2 * WAYS as u64 * OF_KEY.burst;
        let (ids, hosts) = (times.written(0, ids), times.written(0, hosts));
        assert!(ids <= bound && hosts <= bound, "{ids} {hosts}");
        let mut seen = 0;
        for other in 0..1000 {
            let remote = format!("198.{}.{}.1:9", 51 + other / 250, other % 250);
            seen += times.written(0, || registered("mine", &remote));
            seen += times.written(0, || tls_failed(&remote));
        }
        assert!(seen >= 1990, "{seen} of 2000 bystanders' lines");
        let told = times.told(TOLD_EVERY_MS);
        let count: u64 = told.iter().map(|omitted| omitted.count).sum();
        assert_eq!(ids + hosts + seen + count, 202_000, "each is written or told");
    }

    /// When even the table is full, what the attackers do not provoke is still said.
    #[test]
    fn attackers_from_everywhere_hide_no_other_event() {
        let times = Times::new();
        let attack = || {
            for network in 0..20_000_u32 {
                for _ in 0..3 {
                    tls_failed(&format!("{}.{}.{}.1:9", 11, network >> 8, network & 0xff));
                }
            }
        };
        let bound = (SETS * WAYS) as u64 * OF_KEY.burst + WITHOUT_SLOT.burst;
        let written = times.written(0, attack);
        assert!((SETS * WAYS) as u64 <= written && written <= bound, "{written}");
        let after_all = || (0..1000).for_each(|_| tls_failed("203.0.113.1:9"));
        assert!(times.written(1, after_all) <= OF_KEY.burst);
        let others = || {
            for id in 0..1000 {
                registered(&id.to_string(), &format!("203.0.{}.1:9", id % 250));
            }
        };
        assert_eq!(times.written(1, others), 1000);
    }

    #[test]
    fn a_slot_is_free_again_once_its_key_is_quiet() {
        let times = Times::new();
        for minute in 0..10_000 {
            let at = minute * OF_KEY.refill_ms;
            let one = || registered(&minute.to_string(), "192.0.2.1:9");
            assert_eq!(times.written(at, one), 1, "{minute}");
        }
        let thinning = &times.0.lock().unwrap().0;
        assert_eq!(thinning.slots.iter().filter(|slot| slot.key != 0).count(), 1);
    }
}
