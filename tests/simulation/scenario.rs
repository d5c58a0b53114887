//! What a seed draws for itself, so that seeds differ a lot.

use crate::model::Ms;
use crate::rng::Rng;
use pyrycode_relay::config::{ByteRate, Limits, RateLimit};
use pyrycode_relay::protocol::ids::ServerId;
use pyrycode_relay::relay::Owners;
use pyrycode_relay::shared::admission::AdmissionLimits;

#[derive(Clone)]
pub struct Scenario {
    pub workers: usize,
    pub owner_seeds: [u64; 4],
    pub limits: Limits,
    pub budget_bytes: u64,
    /// The most that one event may need.
    pub event_bytes: u64,
    /// The budget is small: memory runs short.
    pub tight: bool,
    /// Messages are large: outboxes reach their limits.
    pub fat: bool,
    pub ids: usize,
    pub admission: AdmissionLimits,
    /// Peers come from so many addresses.
    pub addresses: usize,
    pub max_live: usize,
    pub start_ms: Ms,
    pub steps: u64,
    /// How many of a hundred peers misbehave.
    pub bad_percent: u64,
    /// How many of a hundred steps let time pass, and how much at most.
    pub pass_percent: u64,
    pub pass_ms: Ms,
    pub shut_down_at: Option<u64>,
}

impl Scenario {
    pub fn draw(rng: &mut Rng, steps: Option<u64>) -> Self {
        let tight = rng.percent(35);
        let fat = !tight && rng.below(80) == 0;
        let steps = steps.unwrap_or_else(|| rng.range(60, 360));
        let timeout =
            |rng: &mut Rng, most| if rng.percent(20) { 30_000 } else { rng.range(90, most) };
        let limits = Limits {
            max_phones: rng.range(1, 5) as usize,
            grace_ms: timeout(rng, 3000),
            probe_timeout_ms: timeout(rng, 1500),
            heartbeat_interval_ms: timeout(rng, 5000),
            heartbeat_timeout_ms: timeout(rng, 4000),
            header_timeout_ms: timeout(rng, 2000),
            message_timeout_ms: timeout(rng, 3000),
            write_timeout_ms: timeout(rng, 3000),
            close_timeout_ms: timeout(rng, 1500),
            ..Limits::default()
        };
        let workers = rng.range(1, 4);
        let event_bytes = if tight { 96 * 1024 } else { 1 << 20 };
        let headrooms = event_bytes * if workers > 1 { 2 * workers } else { 1 };
        let mut scenario = Self {
            workers: workers as usize,
            owner_seeds: [rng.next(), rng.next(), rng.next(), rng.next()],
            limits,
            budget_bytes: headrooms + if tight { rng.range(16, 160) * 1024 } else { 1 << 30 },
            event_bytes,
            tight,
            fat,
            admission: Self::admission(rng),
            addresses: rng.range(1, 3) as usize,
            ids: if fat { 1 } else { rng.range(1, 5) as usize },
            max_live: rng.range(3, 22) as usize,
            start_ms: rng.range(0, 100_000),
            steps,
            bad_percent: *rng.pick(&[0, 10, 30, 60]).unwrap_or(&0),
            pass_percent: rng.range(2, 12),
            pass_ms: *rng.pick(&[20, 100, 500, 2500]).unwrap_or(&100),
            shut_down_at: rng.percent(15).then(|| rng.range(20, steps.max(21))),
        };
        // What comes at once in a fat one would be waited for by the hour.
        if !fat {
            scenario.limits.server_id_rate = Self::rate(&mut Rng::new(scenario.owner_seeds[0]));
        }
        scenario
    }

    /// Mostly none; else so little that it is felt. Drawn by itself, so that a seed does otherwise what it
    /// did without.
    fn rate(rng: &mut Rng) -> Option<ByteRate> {
        let (bytes_per_s, burst_bytes) = (rng.range(1024, 20_000), rng.range(1024, 8192));
        rng.percent(15).then_some(ByteRate { bytes_per_s, burst_bytes })
    }

    /// Mostly none; else so few that they are felt.
    fn admission(rng: &mut Rng) -> AdmissionLimits {
        let mut limits = AdmissionLimits::NONE;
        if rng.percent(20) {
            let (burst, refill_ms) = (rng.range(1, 12) as u32, rng.range(1, 2000));
            limits.rate = Some(RateLimit { burst, refill_ms });
        }
        if rng.percent(20) {
            limits.max_connections = rng.range(1, 12) as usize;
        }
        if rng.percent(20) {
            limits.max_per_address = Some(rng.range(1, 8) as usize);
        }
        limits
    }

    pub fn id(number: usize) -> String {
        format!("id-{number}")
    }

    /// Which worker owns each id.
    pub fn owners(&self, owners: &Owners) -> Vec<usize> {
        let id = |number| ServerId::from_header(Self::id(number).as_bytes()).unwrap();
        (0..self.ids).map(|number| owners.owner_of(&id(number))).collect()
    }
}
