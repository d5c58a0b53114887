//! What a measurement says. A message is one frame through the relay, so a question and its answer
//! are two. Times are CPU time of all the relay's threads, unless they say otherwise.

use crate::cgroup;
use crate::drift::Drift;
use crate::faults::Faults;
use crate::plan::Plan;
use crate::proc::{self, Threads};
use crate::round_trips::{RoundTrips, Summary};
use crate::sample::{Connecting, Sample};
use crate::spec::Counts;
use crate::storms::Costs;
use crate::syscalls::Calls;
use crate::tls::Handshakes;
use crate::upgrade::Upgrades;
use crate::verdict::{Bottleneck, Share, judge};
use serde::Serialize;
use std::time::Duration;

/// What was measured of one subject, once.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Measured {
    pub(crate) subject: String,
    pub(crate) scenario: String,
    pub(crate) shape: String,
    /// Bytes of JSON in each frame.
    pub(crate) size: usize,
    pub(crate) workers: usize,
    pub(crate) seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) traffic: Option<Traffic>,
    /// Its system calls, if they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) calls: Option<Calls>,
    pub(crate) connecting: Connecting,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls: Option<Tls>,
    /// CPU time per connection and second while nothing was sent, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle_cpu_us_per_second: Option<f64>,
    /// What the relay grew by for each phone until they had sat for the whole time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle_resident_bytes_per_phone: Option<f64>,
    /// Pings of the relay that the agents answered.
    pub(crate) pings: u64,
    /// Resident memory of the relay at the end.
    pub(crate) resident_mib: Option<f64>,
    pub(crate) load: Load,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cgroup: Option<cgroup::Use>,
    /// What was done to it meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) faults: Option<Faults>,
    /// How often it was upgraded meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) upgrades: Option<Upgrades>,
    /// Whether what it holds has grown.
    pub(crate) drift: Vec<Drift>,
    pub(crate) samples: Vec<Sample>,
    /// Round trips: percent and microseconds.
    pub(crate) percentiles: Vec<(f64, f64)>,
}

/// A wake is told only of a relay that sleeps so often, for each message: one that always has work
/// does not wait.
const WAKES_WORTH_TELLING: f64 = 0.001;
/// The part of the round trips that may be this tool's own.
const OWN_SHARE: f64 = 0.1;

impl Measured {
    /// Whether questions left when they were due, answered or not.
    pub(crate) fn is_timed(&self) -> bool {
        self.scenario.contains("a second")
    }

    /// What there is so much of for each message, for each time that the relay was woken.
    pub(crate) fn per_wake(&self, per_message: f64) -> Option<f64> {
        let wakes = self.traffic?.wakes_per_message.filter(|wakes| *wakes > WAKES_WORTH_TELLING)?;
        Some(per_message / wakes)
    }

    /// A warning if questions left late, so that round trips are not the relay's own.
    pub(crate) fn lateness(&self) -> Option<String> {
        let traffic = self.traffic.as_ref().filter(|_| self.is_timed())?;
        let Summary { p50_us, p99_us, .. } = traffic.round_trip;
        let late = |own: f64, whole: f64| own > OWN_SHARE * whole;
        (late(traffic.late_p50_us, p50_us) || late(traffic.late_p99_us, p99_us)).then(|| {
            format!(
                "Questions left late: by {:.0} us (p50) and {:.0} us (p99), which the round trips \
                 contain: the load, not the relay, was short of CPU time.",
                traffic.late_p50_us, traffic.late_p99_us
            )
        })
    }
}

/// Frames through the relay, every one of them checked.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Traffic {
    pub(crate) messages: u64,
    pub(crate) messages_per_second: f64,
    pub(crate) cpu_us_per_message: Option<f64>,
    /// From when a question was due to its answer; of pushes, from binary to phone.
    pub(crate) round_trip: Summary,
    /// How late questions of an open loop left: this tool's own part of the round trip.
    pub(crate) late_p50_us: f64,
    pub(crate) late_p99_us: f64,
    /// How often a thread of the relay slept and was woken, for each message.
    pub(crate) wakes_per_message: Option<f64>,
    /// What the slowest phone got, for each frame that the median phone got.
    pub(crate) slowest_share: f64,
    /// Phones that came anew while it was measured, by the second.
    pub(crate) reconnections_per_second: f64,
}

/// What was agreed, how often, and what it cost where phones only connected.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Tls {
    #[serde(flatten)]
    pub(crate) handshakes: Handshakes,
    #[serde(flatten)]
    pub(crate) costs: Costs,
}

/// Who was how busy.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Load {
    /// CPUs that the whole relay used.
    pub(crate) relay_cpus: Option<f64>,
    pub(crate) relays_busiest_thread: Option<Share>,
    pub(crate) busiest_agent: Share,
    /// CPUs that processes used which are neither the relay nor the agents.
    pub(crate) other_cpus: f64,
    pub(crate) bottleneck: Bottleneck,
}

/// What the relay, the machine and time had used at some instant.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) at: std::time::Instant,
    pub(crate) threads: Threads,
    pub(crate) wakes: Option<u64>,
    pub(crate) machine: Duration,
}

impl Look {
    fn cpu(&self) -> Duration {
        self.threads.values().map(|times| times.cpu).sum()
    }

    /// CPU time that the relay used since; `None` if its process is not known.
    pub(crate) fn cpu_since(&self, then: &Self) -> Option<Duration> {
        (!self.threads.is_empty()).then(|| self.cpu().saturating_sub(then.cpu()))
    }

    /// How often it was woken since, likewise.
    pub(crate) fn wakes_since(&self, then: &Self) -> Option<u64> {
        Some(self.wakes?.saturating_sub(then.wakes?))
    }
}

/// The frames, from what the agents counted and the relay's CPU time.
pub(crate) fn traffic(
    counts: &[Counts],
    cpu: Option<Duration>,
    wakes: Option<u64>,
    seconds: f64,
) -> Traffic {
    let messages = counts.iter().map(|counts| counts.messages).sum::<u64>();
    let upgrades = counts.iter().map(|counts| counts.upgrades).sum::<u64>();
    let mut late = RoundTrips::default();
    counts.iter().for_each(|counts| late.merge(&counts.late));
    Traffic {
        messages,
        messages_per_second: messages as f64 / seconds,
        cpu_us_per_message: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / messages.max(1) as f64),
        round_trip: round_trips(counts).summary(),
        late_p50_us: late.at_us(50.0),
        late_p99_us: late.at_us(99.0),
        wakes_per_message: wakes.map(|wakes| wakes as f64 / messages.max(1) as f64),
        slowest_share: slowest_share(counts.iter().flat_map(|counts| counts.per_phone.clone())),
        reconnections_per_second: upgrades as f64 / seconds,
    }
}

/// All agents' round trips.
pub(crate) fn round_trips(counts: &[Counts]) -> RoundTrips {
    let mut all = RoundTrips::default();
    counts.iter().for_each(|counts| all.merge(&counts.round_trips));
    all
}

/// What the slowest phone got, for each frame that the median phone got.
fn slowest_share(per_phone: impl Iterator<Item = u32>) -> f64 {
    let mut phones: Vec<u32> = per_phone.collect();
    phones.sort_unstable();
    let median = phones.get(phones.len() / 2).copied().unwrap_or(0);
    let slowest = phones.first().copied().unwrap_or(0);
    f64::from(slowest) / f64::from(median.max(1))
}

/// Who was how busy between two looks.
pub(crate) fn load(plan: &Plan, then: &Look, now: &Look, counts: &[Counts]) -> Load {
    let seconds = (now.at - then.at).as_secs_f64();
    let of = |time: Duration| time.as_secs_f64() / seconds;
    let cpu = now.cpu_since(then);
    let thread = proc::busiest(&then.threads, &now.threads);
    let relay = cpu.map(|_| Share { used: of(thread.cpu), waited: of(thread.waited) });
    let micros = |us: u64| of(Duration::from_micros(us));
    let busiest = counts.iter().max_by_key(|counts| counts.cpu_us);
    let client = busiest.map_or_else(Share::default, |counts| Share {
        used: micros(counts.cpu_us),
        waited: micros(counts.waited_us),
    });
    let agents = counts.iter().map(|counts| counts.cpu_us).sum();
    let machine = of(now.machine.saturating_sub(then.machine));
    let known = cpu.map_or(0.0, of) + micros(agents);
    let bottleneck = match plan.play.saturates() {
        true => judge(relay, client),
        false => Bottleneck::Neither,
    };
    Load {
        relay_cpus: cpu.map(of),
        relays_busiest_thread: relay,
        busiest_agent: client,
        other_cpus: (machine - known).max(0.0),
        bottleneck,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_phone_is_held_against_the_median_one() {
        assert_eq!(slowest_share([10, 10, 5, 20, 10].into_iter()), 0.5);
        assert_eq!(slowest_share([7, 7, 7].into_iter()), 1.0);
        assert_eq!(slowest_share([0, 9, 9].into_iter()), 0.0);
        assert_eq!(slowest_share([].into_iter()), 0.0);
    }

    #[test]
    fn agents_add_up() {
        let counts = |messages, per_phone, round_trips| Counts {
            messages,
            per_phone,
            round_trips,
            ..Counts::default()
        };
        let counts = [
            counts(300, vec![100, 50], vec![(100_000, 150)]),
            counts(100, vec![100], vec![(300_000, 50)]),
        ];
        let traffic = traffic(&counts, Some(Duration::from_millis(2)), Some(100), 2.0);
        assert_eq!(traffic.messages, 400);
        assert_eq!(traffic.messages_per_second, 200.0);
        assert_eq!(traffic.cpu_us_per_message, Some(5.0));
        assert_eq!(traffic.wakes_per_message, Some(0.25));
        assert_eq!(traffic.slowest_share, 0.5);
        assert!((traffic.round_trip.p50_us - 100.0).abs() < 1.0);
        assert!((traffic.round_trip.p99_us - 300.0).abs() < 1.0);
    }
}
