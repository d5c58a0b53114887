//! One measurement: a subject, its agents, a warm-up, and what came of it.

use crate::Outcome;
use crate::agents::Agents;
use crate::cgroup::MemoryCgroup;
use crate::drift::{self, Drift};
use crate::faults::Saboteurs;
use crate::measured::{self, Look, Measured, Tls, Traffic};
use crate::plan::Plan;
use crate::proc;
use crate::progress::Progress;
use crate::sample::{Connecting, Sample};
use crate::spec::{Counts, Play, Told};
use crate::storms::{self, Costs, Storm};
use crate::subject::{Running, Subject};
use crate::syscalls::{self, Calls};
use crate::tls::Handshakes;
use crate::upgrade::Upgrades;
use std::time::{Duration, Instant};

/// How often the relay is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is asked for its tables, in seconds.
const TABLES_EVERY: u64 = 5;
/// From one upgrade of the relay to the next, at most: a short run has one, too.
const UPGRADE_EVERY: Duration = Duration::from_secs(10);
/// What upgrades leave behind (closed buffers, log lines) is done with by then.
const SETTLE: Duration = Duration::from_millis(500);
/// How long the relay has to let go of the descriptors of phones that were cut.
const LET_GO: Duration = Duration::from_secs(10);

/// Loads the subject as planned.
pub(crate) fn measure(subject: &Subject, plan: &Plan, progress: &Progress) -> Outcome<Measured> {
    if !subject.is_a_relay() && !matches!(plan.play, Play::Closed { .. } | Play::Open { .. }) {
        return Err(format!("{subject} only echoes; it knows no {}", plan.play).into());
    }
    let plan = &Plan { workers: subject.workers.unwrap_or(plan.workers), ..plan.clone() };
    progress.stage(format!("{subject}: connecting {}", plan.shape));
    let cgroup = plan.cgroup.map(MemoryCgroup::new).transpose()?;
    let cgroup_path = cgroup.as_ref().map(MemoryCgroup::path);
    let running = subject.start(plan.workers, plan.size, cgroup_path, plan.log.as_deref())?;
    let agents = Agents::start(&running.target, plan)?;
    let (saboteurs, upgrades) = (None, None);
    let mut session = Session { plan, saboteurs, upgrades, running, agents, progress };
    let told = session.run(subject.to_string());
    let usage = cgroup.as_ref().map(MemoryCgroup::usage).transpose()?;
    match (told, usage) {
        (Err(error), Some(usage)) if usage.killed > 0 => Err(format!(
            "{error}; the kernel killed it for want of memory: it needed more than {:.0} MiB",
            usage.limit_mib
        )
        .into()),
        (Err(error), _) => {
            // That the relay died explains everything else.
            std::thread::sleep(Duration::from_millis(50));
            session.running.check().and(Err(error))
        }
        (Ok(measured), cgroup) => Ok(Measured { cgroup, ..measured }),
    }
}

struct Session<'a> {
    plan: &'a Plan,
    saboteurs: Option<Saboteurs>,
    /// How they went, once there are any to be.
    upgrades: Option<Upgrades>,
    running: Running,
    agents: Agents,
    progress: &'a Progress,
}

impl Session<'_> {
    /// Connects everybody, but where that is what is measured, and lets the relay warm up.
    fn warm_up(&mut self, subject: &str) -> Outcome<Vec<Storm>> {
        let plan = self.plan;
        self.agents.tell(Told::OpenBinaries)?;
        let storms = match plan.play {
            Play::Connect => Vec::new(),
            _ => vec![self.connect_phones()?],
        };
        if plan.play.has_traffic() {
            self.agents.tell(Told::Start)?;
        }
        if plan.play != Play::Connect {
            self.progress.stage(format!("{subject}: warming up"));
            self.wait(plan.warm_up, &mut Vec::new())?;
        }
        self.agents.tell(Told::Mark)?;
        self.progress.stage(format!("{subject}: {}", plan.play));
        Ok(storms)
    }

    fn run(&mut self, subject: String) -> Outcome<Measured> {
        let plan = self.plan;
        let resume = plan.offer.resume;
        let mut storms = self.warm_up(&subject)?;
        let mut samples = Vec::new();
        let then = self.look()?;
        self.begin_trouble();
        match plan.play {
            Play::Connect => storms = self.storms(&mut samples)?,
            _ => self.wait(plan.time, &mut samples)?,
        }
        let now = self.look()?;
        let faults = self.saboteurs.take().map(Saboteurs::stop).transpose()?;
        let drift = self.drift(&samples)?;
        let counts = self.agents.count()?;
        self.upgrades.map(|upgrades| upgrades.check(&counts)).transpose()?;
        let calls = self.calls()?;
        let resident = self.running.resident_bytes()?;
        let before = storms.first().filter(|_| plan.play == Play::Idle);
        let idle_resident = self.grown_per_phone(before.and_then(|storm| storm.resident_before))?;
        let tls = self.tls(&storms)?;
        if plan.play.has_traffic() {
            self.agents.tell(Told::Stop)?;
        }
        self.running.check()?;
        let seconds = (now.at - then.at).as_secs_f64();
        let cpu = now.cpu_since(&then);
        let connections = plan.shape.connections() as f64;
        let idle = cpu.filter(|_| plan.play == Play::Idle);
        let traffic = self.traffic(&counts, (&then, &now))?;
        Ok(Measured {
            subject,
            scenario: plan.play.to_string(),
            shape: plan.shape.to_string(),
            size: plan.size,
            workers: plan.workers,
            seconds,
            traffic,
            calls,
            connecting: storms::mean(&storms, resume && plan.play == Play::Connect),
            tls,
            idle_cpu_us_per_second: idle.map(|cpu| cpu.as_secs_f64() * 1e6 / connections / seconds),
            idle_resident_bytes_per_phone: idle_resident,
            pings: counts.iter().map(|counts| counts.pings).sum(),
            resident_mib: resident.map(mebibytes),
            load: measured::load(plan, &then, &now, &counts),
            cgroup: None,
            faults,
            upgrades: self.upgrades,
            drift,
            samples,
            percentiles: match traffic {
                Some(_) => measured::round_trips(&counts).curve(),
                None => Vec::new(),
            },
        })
    }

    /// Peers that misbehave, and upgrades, begin where they are asked for.
    fn begin_trouble(&mut self) {
        let plan = self.plan;
        let seed = plan.faults.filter(|_| self.running.target.tls.is_none());
        self.saboteurs = seed.map(|seed| Saboteurs::start(&self.running.target, seed, plan.time));
        let is_upgraded = plan.upgrades && self.running.can_be_upgraded();
        self.upgrades = is_upgraded.then(Upgrades::default);
    }

    /// What TLS was agreed and what it cost, where there is any.
    fn tls(&mut self, storms: &[Storm]) -> Outcome<Option<Tls>> {
        let costs = match self.plan.play {
            Play::Connect => storms::costs(storms, self.plan.offer.resume),
            _ => Costs::default(),
        };
        let handshakes = self.handshakes()?;
        Ok(self.running.target.tls.is_some().then_some(Tls { handshakes, costs }))
    }

    /// Whether what the relay holds has grown, where that is asked.
    fn drift(&self, samples: &[Sample]) -> Outcome<Vec<Drift>> {
        let drift = self.plan.faults.map(|_| drift::of(samples)).unwrap_or_default();
        match drift.iter().find(|drift| !drift.is_flat) {
            Some(grown) => {
                Err(format!("the relay's fault: it holds more and more: {grown}").into())
            }
            None => Ok(drift),
        }
    }

    /// What became of the frames that were sent, if any were to be.
    fn traffic(&self, counts: &[Counts], (then, now): (&Look, &Look)) -> Outcome<Option<Traffic>> {
        if !self.plan.play.has_traffic() {
            return Ok(None);
        }
        let seconds = (now.at - then.at).as_secs_f64();
        let (cpu, wakes) = (now.cpu_since(then), now.wakes_since(then));
        let traffic = measured::traffic(counts, cpu, wakes, seconds);
        if traffic.messages == 0 {
            return Err("the relay's fault: it brought not a single frame".into());
        }
        Ok(Some(traffic))
    }

    fn look(&self) -> Outcome<Look> {
        Ok(Look {
            at: Instant::now(),
            threads: self.running.threads()?,
            wakes: self.running.wakes()?,
            machine: proc::machine_busy()?,
        })
    }

    /// Its system calls while the traffic goes on.
    fn calls(&mut self) -> Outcome<Option<Calls>> {
        if !self.plan.syscalls || !self.plan.play.has_traffic() {
            return Ok(None);
        }
        let pid = self.running.pid().ok_or("name the relay's process with --pid")?;
        self.progress.stage("counting system calls".into());
        syscalls::count(pid, self.plan.time, || self.agents.progress()).map(Some)
    }

    /// Connects the phones: what an upgrade costs, and what an idle phone holds.
    fn connect_phones(&mut self) -> Outcome<Storm> {
        let resident_before = self.running.resident_bytes()?;
        let handshakes = self.handshakes()?;
        let (cpu, began) = (self.running.cpu_time()?, Instant::now());
        self.agents.tell(Told::OpenPhones)?;
        let took = began.elapsed();
        std::thread::sleep(SETTLE);
        let phones = self.plan.shape.phones_in_all() as f64;
        let cpu = self.running.cpu_time()?.zip(cpu).map(|(now, then)| now.saturating_sub(then));
        let connecting = Connecting {
            cpu_us_per_upgrade: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / phones),
            upgrades_per_second: phones / took.as_secs_f64(),
            resident_bytes_per_phone: self.grown_per_phone(resident_before)?,
        };
        self.running.check()?;
        let handshakes = self.handshakes()?.since(&handshakes);
        Ok(Storm { connecting, cpu, resident_before, handshakes })
    }

    /// By how many bytes the relay has grown since then, for each phone.
    fn grown_per_phone(&self, before: Option<u64>) -> Outcome<Option<f64>> {
        let phones = self.plan.shape.phones_in_all() as f64;
        let grown = self.running.resident_bytes()?.zip(before);
        Ok(grown.map(|(now, then)| now.saturating_sub(then) as f64 / phones))
    }

    fn handshakes(&mut self) -> Outcome<Handshakes> {
        match self.running.target.tls {
            Some(_) => self.agents.handshakes(),
            None => Ok(Handshakes::default()),
        }
    }

    /// Storms, one after the other, while the time lasts; two at least if the second has sessions
    /// to resume.
    fn storms(&mut self, samples: &mut Vec<Sample>) -> Outcome<Vec<Storm>> {
        let began = Instant::now();
        let before = self.running.descriptors()?;
        let least = if self.plan.offer.resume { 2 } else { 1 };
        let mut all: Vec<Storm> = Vec::new();
        while all.len() < least || began.elapsed() < self.plan.time {
            all.push(self.connect_phones()?);
            samples.push(self.sample(began, Instant::now(), 0.0, None)?);
            self.agents.tell(Told::CutPhones)?;
            self.await_descriptors(before)?;
            let share = began.elapsed().as_secs_f64() / self.plan.time.as_secs_f64();
            let rate = all.last().map_or(0.0, |storm| storm.connecting.upgrades_per_second);
            self.progress.at(self.plan.time.mul_f64(share.min(1.0)), rate, "connections/s");
        }
        Ok(all)
    }

    /// Waits until the relay has let go of its phones.
    fn await_descriptors(&mut self, before: Option<u64>) -> Outcome<()> {
        let Some(before) = before else {
            std::thread::sleep(LOOK_EVERY);
            return Ok(());
        };
        let end = Instant::now() + LET_GO;
        loop {
            self.running.check()?;
            let now = self.running.descriptors()?.unwrap_or(0);
            if now <= before {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!(
                    "the relay's fault: {} descriptors of phones that are gone are still open \
                     after {} s",
                    now - before,
                    LET_GO.as_secs()
                )
                .into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Lets time pass, while it looks every second at what there is to see.
    fn wait(&mut self, time: Duration, samples: &mut Vec<Sample>) -> Outcome<()> {
        let began = Instant::now();
        let done = self.progress.position();
        let every = UPGRADE_EVERY.min(time / 2);
        let mut last = (began, self.agents.progress()?, self.running.cpu_time()?);
        while let Some(left) = time.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
            self.progress.sleep(left.min(LOOK_EVERY))?;
            self.running.check()?;
            self.saboteurs.as_ref().map(Saboteurs::check).transpose()?;
            self.upgrade_if_due(began.elapsed(), every)?;
            let (now, messages) = (Instant::now(), self.agents.progress()?);
            let seconds = (now - last.0).as_secs_f64();
            let rate = messages.saturating_sub(last.1) as f64 / seconds;
            let cpu = self.running.cpu_time()?;
            let used = cpu.zip(last.2).map(|(now, then)| now.saturating_sub(then));
            let cpus = used.map(|used| used.as_secs_f64() / seconds);
            samples.push(self.sample(began, now, rate, cpus)?);
            self.progress.at(done + began.elapsed().min(time), rate, "messages/s");
            last = (now, messages, cpu);
        }
        Ok(())
    }

    /// Upgrades the relay where that is asked, after every so long.
    fn upgrade_if_due(&mut self, elapsed: Duration, every: Duration) -> Outcome<()> {
        if let Some(upgrades) = &mut self.upgrades
            && elapsed >= every * (upgrades.done + 1)
        {
            upgrades.count(&self.running.upgrade()?);
        }
        Ok(())
    }

    fn sample(
        &self,
        began: Instant,
        now: Instant,
        messages_per_second: f64,
        cpus: Option<f64>,
    ) -> Outcome<Sample> {
        Ok(Sample {
            second: (now - began).as_secs_f64(),
            messages_per_second,
            resident_mib: self.running.resident_bytes()?.map(mebibytes),
            descriptors: self.running.descriptors()?,
            cpus,
            tables: match (now - began).as_secs().is_multiple_of(TABLES_EVERY) {
                true => self.running.tables()?,
                false => None,
            },
        })
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}
