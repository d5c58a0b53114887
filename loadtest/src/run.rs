//! One measurement: a subject, its agents, a warm-up, and what came of it.

use crate::Outcome;
use crate::agents::Agents;
use crate::spec::{Counts, Play, Shape, Told};
use crate::subject::{Running, Subject, off_the_subjects_cpu};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What is to be measured.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) shape: Shape,
    pub(crate) size: usize,
    pub(crate) play: Play,
    pub(crate) workers: usize,
    pub(crate) agents: u32,
    pub(crate) warm_up: Duration,
    pub(crate) time: Duration,
    pub(crate) cgroup: Option<PathBuf>,
}

/// Something that was looked at once a second.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Sample {
    pub(crate) second: f64,
    pub(crate) resident_mib: f64,
    pub(crate) descriptors: u64,
    pub(crate) cpu_share: f64,
}

/// What was measured. A message is one frame through the relay, so a question and its answer are
/// two. Times are in microseconds.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Measured {
    pub(crate) subject: String,
    pub(crate) messages: u64,
    pub(crate) messages_per_second: f64,
    pub(crate) cpu_us_per_message: f64,
    /// Of one CPU, 1.0 for all of it.
    pub(crate) relay_cpu_share: f64,
    /// The busiest agent's.
    pub(crate) agent_cpu_share: f64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
    /// What the slowest phone got, for each frame that the median phone got.
    pub(crate) slowest_share: f64,
    pub(crate) cpu_us_per_upgrade: f64,
    pub(crate) upgrades_per_second: f64,
    pub(crate) bytes_per_phone: f64,
    pub(crate) resident_mib: f64,
    /// CPU per connection and second while nothing is sent.
    pub(crate) idle_cpu_us_per_second: f64,
    pub(crate) samples: Vec<Sample>,
    /// Round trips: percentile and microseconds.
    pub(crate) percentiles: Vec<(f64, f64)>,
}

impl Measured {
    /// Whether the agents, not the relay, held the rate down.
    pub(crate) fn agents_were_the_bottleneck(&self, workers: usize) -> bool {
        self.relay_cpu_share < 0.85 * workers as f64
    }
}

/// Loads the subject as planned.
pub(crate) fn measure(subject: &Subject, plan: &Plan, bar: &ProgressBar) -> Outcome<Measured> {
    bar.set_message(format!("{subject}: starting"));
    let mut running = subject.start(plan.workers, plan.size, plan.cgroup.as_deref())?;
    let mut agents = off_the_subjects_cpu(plan.workers, || {
        Agents::start(&running.target, plan.shape, plan.size, plan.play, plan.agents)
    })?;
    let mut measured = Measured { subject: subject.to_string(), ..Measured::default() };
    bar.set_message(format!("{subject}: connecting {}", plan.shape));
    agents.tell(Told::OpenBinaries)?;
    connect_phones(plan, &mut running, &mut agents, &mut measured)?;
    agents.tell(Told::Start)?;
    bar.set_message(format!("{subject}: warming up"));
    wait(plan.warm_up, &mut running, &mut agents, bar, &mut Vec::new())?;
    agents.tell(Told::Mark)?;
    bar.set_message(format!("{subject}: measuring"));
    let (cpu, began) = (running.cpu_time()?, Instant::now());
    wait(plan.time, &mut running, &mut agents, bar, &mut measured.samples)?;
    let (cpu, took) = (running.cpu_time()? - cpu, began.elapsed());
    let counts = agents.tell(Told::Count)?;
    measured.resident_mib = running.resident_bytes()? as f64 / 1_048_576.0;
    evaluate(plan, &counts, cpu, took, &mut measured)?;
    // An agent that is told to end says nothing more; dropping them does.
    drop(agents);
    Ok(measured)
}

/// Connects the phones: what an upgrade costs, and what an idle phone holds.
fn connect_phones(
    plan: &Plan,
    running: &mut Running,
    agents: &mut Agents,
    measured: &mut Measured,
) -> Outcome<()> {
    let (memory, cpu, began) = (running.resident_bytes()?, running.cpu_time()?, Instant::now());
    agents.tell(Told::OpenPhones)?;
    let took = began.elapsed();
    // What the upgrades leave behind is not the idle connection's.
    std::thread::sleep(Duration::from_millis(500));
    let phones = plan.shape.phones_in_all() as f64;
    measured.cpu_us_per_upgrade = (running.cpu_time()? - cpu).as_secs_f64() * 1e6 / phones;
    measured.upgrades_per_second = phones / took.as_secs_f64();
    let grown = running.resident_bytes()?.saturating_sub(memory);
    measured.bytes_per_phone = grown as f64 / phones;
    running.check()
}

/// Lets time pass, while it looks every second at what there is to see.
fn wait(
    time: Duration,
    running: &mut Running,
    agents: &mut Agents,
    bar: &ProgressBar,
    samples: &mut Vec<Sample>,
) -> Outcome<()> {
    let began = Instant::now();
    let mut last = (began, running.cpu_time()?);
    while let Some(left) = time.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
        std::thread::sleep(left.min(Duration::from_secs(1)));
        running.check()?;
        agents.check()?;
        let (now, cpu) = (Instant::now(), running.cpu_time()?);
        samples.push(Sample {
            second: began.elapsed().as_secs_f64(),
            resident_mib: running.resident_bytes()? as f64 / 1_048_576.0,
            descriptors: running.descriptors()?,
            cpu_share: (cpu - last.1).as_secs_f64() / (now - last.0).as_secs_f64(),
        });
        last = (now, cpu);
        bar.tick();
    }
    Ok(())
}

fn evaluate(
    plan: &Plan,
    counts: &[Counts],
    cpu: Duration,
    took: Duration,
    measured: &mut Measured,
) -> Outcome<()> {
    let seconds = took.as_secs_f64();
    measured.messages = counts.iter().map(|counts| counts.messages).sum();
    measured.relay_cpu_share = cpu.as_secs_f64() / seconds;
    let busiest = counts.iter().map(|counts| counts.cpu_us).max().unwrap_or(0);
    measured.agent_cpu_share = busiest as f64 / 1e6 / seconds;
    let connections = plan.shape.connections() as f64;
    measured.idle_cpu_us_per_second = cpu.as_secs_f64() * 1e6 / connections / seconds;
    if plan.play == Play::Idle {
        return Ok(());
    }
    if measured.messages == 0 {
        return Err("no message was relayed".into());
    }
    measured.messages_per_second = measured.messages as f64 / seconds;
    measured.cpu_us_per_message = cpu.as_secs_f64() * 1e6 / measured.messages as f64;
    let mut phones: Vec<u32> = counts.iter().flat_map(|counts| counts.per_phone.clone()).collect();
    phones.sort_unstable();
    let median = phones.get(phones.len() / 2).copied().unwrap_or(0);
    let slowest = phones.first().copied().unwrap_or(0);
    measured.slowest_share = f64::from(slowest) / f64::from(median.max(1));
    let mut round_trips = Histogram::<u64>::new_with_bounds(1000, 60_000_000_000, 3)?;
    for (value, times) in counts.iter().flat_map(|counts| &counts.round_trips) {
        round_trips.saturating_record_n(*value, *times);
    }
    let at = |percent: f64| round_trips.value_at_percentile(percent) as f64 / 1000.0;
    measured.p50_us = at(50.0);
    measured.p90_us = at(90.0);
    measured.p99_us = at(99.0);
    measured.p999_us = at(99.9);
    measured.max_us = round_trips.max() as f64 / 1000.0;
    let steps = [0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0];
    measured.percentiles = steps.map(|percent| (percent, at(percent))).to_vec();
    Ok(())
}

/// The bar that shows what is going on, on a terminal.
pub(crate) fn progress() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed_precise} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
