//! One relay, its peers, and upgrades in a row.

use super::footprint::{Footprint, Watch};
use super::{Over, Peers, Workers};
use crate::Outcome;
use crate::agents::Agents;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::round_trips::{RoundTrips, Summary};
use crate::spec::Told;
use crate::subject::{Running, Subject};
use crate::upgrade::{Control, Report, only_handshakes};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often it is asked what has arrived: a point of the plot.
const LAP: Duration = Duration::from_millis(25);

/// What is played.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) subject: Subject,
    pub(super) peers: Peers,
    pub(super) over: Over,
    pub(super) workers: Workers,
    pub(super) plan: Plan,
    /// Who asks meanwhile, where the peers do not.
    pub(super) bystanders: Option<Plan>,
    pub(super) times: u32,
    pub(super) control_socket: Option<PathBuf>,
    pub(super) to: Option<PathBuf>,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peers, over, workers, .. } = self;
        write!(f, "{peers:?} over {over}, {workers}")
    }
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) scenario: Peers,
    pub(super) over: Over,
    pub(super) workers: String,
    pub(super) shape: String,
    pub(super) size: usize,
    /// Frames that arrived, each as it had to.
    pub(super) messages: u64,
    pub(super) messages_per_second: f64,
    /// All round trips, from the first upgrade to the end.
    pub(super) round_trips: Summary,
    pub(super) upgrades: Vec<Upgrade>,
    pub(super) points: Vec<Point>,
}

/// One upgrade.
#[derive(Debug, Serialize)]
pub(super) struct Upgrade {
    /// When it began, since the first point.
    pub(super) second: f64,
    /// What the command took.
    pub(super) took_ms: f64,
    #[serde(flatten)]
    pub(super) report: Report,
    /// Phones whose TLS handshake was cut; they dialled again.
    pub(super) cut_handshakes: u64,
    /// Round trips from its beginning to that of the next.
    pub(super) felt: Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) footprint: Option<Footprint>,
}

/// What was felt in a lap.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Point {
    pub(super) second: f64,
    pub(super) median_ms: f64,
    pub(super) longest_ms: f64,
}

/// What arrived in some time.
#[derive(Debug, Default)]
struct Felt {
    messages: u64,
    cut_handshakes: u64,
    round_trips: RoundTrips,
}

struct Session<'a> {
    setting: &'a Setting,
    progress: &'a Progress,
    running: Running,
    agents: Agents,
    bystanders: Option<Agents>,
    began: Instant,
    points: Vec<Point>,
}

/// Plays it.
pub(super) fn play(setting: &Setting, progress: &Progress) -> Outcome<Row> {
    let Setting { subject, plan, .. } = setting;
    progress.stage(format!("{setting}: connecting {}", plan.shape));
    let running = subject.start(plan.workers, plan.size, None, plan.log.as_deref())?;
    let mut running = match &setting.control_socket {
        None => running,
        Some(socket) => running.controlled(Control::beside_this_tool(socket.clone())?),
    };
    running.upgrade_to(setting.to.clone());
    let start = |plan: &Plan| Agents::start(&running.target, plan);
    let agents = start(plan)?;
    let bystanders = setting.bystanders.as_ref().map(start).transpose()?;
    let (began, points) = (Instant::now(), Vec::new());
    let mut session = Session { setting, progress, running, agents, bystanders, began, points };
    let played = session.run();
    // That the relay died explains everything else.
    played.or_else(|error| session.running.check().and(Err(error)))
}

impl Session<'_> {
    fn run(&mut self) -> Outcome<Row> {
        let Setting { plan, times, .. } = self.setting;
        self.open()?;
        self.began = Instant::now();
        self.watch(plan.warm_up, &mut Felt::default())?;
        let (from, mut whole, mut upgrades) = (Instant::now(), Felt::default(), Vec::new());
        for number in 1..=*times {
            self.progress.stage(format!("{}: upgrade {number}", self.setting));
            let upgrade = self.upgrade(number, &mut whole);
            let named = |error| format!("upgrade {number} of {times}: {error}");
            upgrades.push(upgrade.map_err(named)?);
        }
        let seconds = from.elapsed().as_secs_f64();
        self.close(&mut whole)?;
        let left_out = upgrades.iter().map(|upgrade| upgrade.report.left_out).sum();
        only_handshakes(whole.cut_handshakes, left_out)?;
        Ok(Row {
            scenario: self.setting.peers,
            over: self.setting.over,
            workers: self.setting.workers.to_string(),
            shape: plan.shape.to_string(),
            size: plan.size,
            messages: whole.messages,
            messages_per_second: whole.messages as f64 / seconds,
            round_trips: whole.round_trips.summary(),
            upgrades,
            points: std::mem::take(&mut self.points),
        })
    }

    /// Connects everybody, and has them talk.
    fn open(&mut self) -> Outcome<()> {
        for agents in [Some(&mut self.agents), self.bystanders.as_mut()].into_iter().flatten() {
            agents.tell(Told::OpenBinaries)?;
            agents.tell(Told::OpenPhones)?;
            agents.tell(Told::Start)?;
        }
        Ok(())
    }

    /// Has everybody say what is still due. Who only sat asks once, to show that it can.
    fn close(&mut self, whole: &mut Felt) -> Outcome<()> {
        if self.setting.peers == Peers::Idle {
            self.agents.tell(Told::AskAll)?;
        }
        for agents in [Some(&mut self.agents), self.bystanders.as_mut()].into_iter().flatten() {
            agents.tell(Told::Stop)?;
            let (lap, _) = agents.lap()?;
            whole.messages += lap.messages;
            whole.cut_handshakes += lap.cut_handshakes;
        }
        self.running.check()
    }

    /// Upgrades once, and looks on until the next is due.
    fn upgrade(&mut self, number: u32, whole: &mut Felt) -> Outcome<Upgrade> {
        let mut felt = Felt::default();
        self.running.configure(self.setting.workers.after(number))?;
        let watch = self.running.pid().map(Watch::start).transpose()?;
        let (begun, second) = (Instant::now(), self.began.elapsed().as_secs_f64());
        let mut upgrading = self.running.begin_upgrade()?;
        let report = loop {
            if let Some(report) = upgrading.outcome()? {
                break report;
            }
            self.watch(LAP, &mut felt)?;
        };
        let took = begun.elapsed();
        self.running.follow(&report)?;
        let footprint = watch.map(|watch| watch.stop(report.pid)).transpose()?;
        self.check_report(&report)?;
        self.watch(self.setting.plan.time.saturating_sub(begun.elapsed()), &mut felt)?;
        whole.messages += felt.messages;
        whole.cut_handshakes += felt.cut_handshakes;
        whole.round_trips.merge(&felt.round_trips.pairs());
        Ok(Upgrade {
            second,
            took_ms: took.as_secs_f64() * 1000.0,
            report,
            cut_handshakes: felt.cut_handshakes,
            felt: felt.round_trips.summary(),
            footprint,
        })
    }

    /// Whether everybody was moved, where nobody comes and goes.
    fn check_report(&self, report: &Report) -> Outcome<()> {
        let Setting { plan, bystanders, peers, over, .. } = self.setting;
        let others = bystanders.as_ref().map_or(0, |plan| plan.shape.connections());
        let there = plan.shape.connections() + others;
        if *peers != Peers::Churn && report.connections < there {
            let moved = report.connections;
            return Err(
                format!("the relay's fault: it moved {moved} of {there} connections").into()
            );
        }
        if *over == Over::Plain && report.left_out > 0 {
            return Err("the relay's fault: it left out connections that are not over TLS".into());
        }
        Ok(())
    }

    /// Looks on for so long.
    fn watch(&mut self, time: Duration, felt: &mut Felt) -> Outcome<()> {
        let end = Instant::now() + time;
        let done = self.progress.position();
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.progress.sleep(left.min(LAP))?;
            let (mut lap, mut round_trips) = self.agents.lap()?;
            if let Some(bystanders) = &mut self.bystanders {
                (lap, round_trips) = bystanders.lap()?;
            }
            felt.messages += lap.messages;
            felt.cut_handshakes += lap.cut_handshakes;
            felt.round_trips.merge(&round_trips.pairs());
            self.points.push(Point {
                second: self.began.elapsed().as_secs_f64(),
                median_ms: round_trips.at_us(50.0) / 1000.0,
                longest_ms: round_trips.at_us(100.0) / 1000.0,
            });
        }
        self.progress.at(done + time, 0.0, "");
        Ok(())
    }
}
