//! What each command does.

use crate::cli::{Command, Load, Pace, Scenario};
use crate::compare::{self, Comparison};
use crate::floor::Means;
use crate::hostile::Siege;
use crate::measured::Measured;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::run;
use crate::spec::{Play, Shape};
use crate::tls::certificate::server_config;
use crate::{Outcome, agents, baseline, cluster, floor, hostile, launch, page, restart, table};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// Does as the user says.
pub(crate) fn run(command: Command) -> Outcome<()> {
    match command {
        Command::Echo { load, pace } => {
            let plan = load.plan(pace.play(), "64x16", 10.0);
            one(&load, Plan { spin: pace.spin, ..plan })
        }
        Command::Push { load, window } => {
            one(&load, load.plan(Play::Push { window }, "64x4", 10.0))
        }
        Command::Idle { load } => one(&load, load.plan(Play::Idle, "1000x16", 60.0)),
        Command::Connect { load } => one(&load, load.plan(Play::Connect, "1000x16", 10.0)),
        Command::Churn { load, frames } => {
            one(&load, load.plan(Play::Churn { frames, every: 1 }, "64x16", 10.0))
        }
        Command::Soak { load, seed } => {
            let plan = load.plan(Play::Churn { frames: 20, every: 2 }, "64x16", 1800.0);
            let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(()) >> 32);
            one(&load, Plan { faults: Some(seed), upgrades: true, ..plan })
        }
        Command::Crowd { load, phones, memory } => {
            let plan = load.plan(Play::Closed { window: 1 }, "1x1", 10.0);
            let shape = Shape { binaries: phones.div_ceil(16), phones: phones.min(16) };
            one(&load, Plan { shape, cgroup: Some(memory), ..plan })
        }
        Command::All { load } => all(&load),
        Command::Compare { subjects, load, pace, scenario, rounds, reference } => {
            let (plan, subjects) = (plan_of(&load, &pace, scenario), load.subjects(subjects)?);
            let compared = compare::run(&subjects, &reference, &plan, rounds as usize)?;
            tell_comparison(&load, &compared)
        }
        Command::Hostile { subjects, workers, seconds, attack, log, json } => {
            let time = Duration::from_secs_f64(seconds);
            let siege = Siege { subjects, workers, time, attacks: attack };
            let all = hostile::run(&siege, log.as_deref())?;
            match json {
                true => println!("{}", serde_json::to_string(&all)?),
                false => hostile::print(&all),
            }
            Ok(())
        }
        Command::Restart(asked) => restart::run(&asked),
        Command::Cluster(tour) => cluster::run(&tour),
        Command::Baseline { serve, tls_cert, tls_key } => {
            let files = tls_cert.zip(tls_key);
            let tls = files.map(|(cert, key)| server_config(&cert, &key)).transpose()?;
            baseline::run(serve.listen, serve.workers, tls)
        }
        Command::Floor { serve, epoll } => {
            floor::run(serve.listen, if epoll { Means::Epoll } else { Means::Ring })
        }
        Command::Agent => agents::run_agent(),
        Command::Launch(what) => launch::launch(&what),
    }
}

/// Measures once and tells.
fn one(load: &Load, plan: Plan) -> Outcome<()> {
    let progress = Progress::new(plan.duration())?;
    let measured = run::measure(&load.subject()?, &plan, &progress);
    progress.finish();
    tell(load, &[measured?])
}

/// Every scenario in turn. The open loop runs at half of what the first closed one reached.
fn all(load: &Load) -> Outcome<()> {
    let sized = |play, shape, size| Plan { size, ..load.plan(play, shape, 5.0) };
    let echo = Play::Closed { window: 1 };
    let mut plans = vec![
        sized(echo, "64x16", 200),
        sized(echo, "500x1", 200),
        sized(echo, "64x4", 16_384),
        sized(Play::Push { window: 32 }, "64x4", 200),
        sized(Play::Churn { frames: 20, every: 1 }, "64x16", 200),
        sized(Play::Connect, "1000x16", 200),
        Plan { time: Duration::from_secs(60), ..sized(Play::Idle, "1000x16", 200) },
    ];
    let subject = load.subject()?;
    let half = load.plan(Play::Open { per_second: 1.0, burst: 1 }, "64x16", 5.0);
    let whole = plans.iter().map(Plan::duration).sum::<Duration>() + half.duration();
    let progress = Progress::new(whole)?;
    let mut measured: Vec<Measured> = Vec::new();
    plans.insert(1, half);
    for mut plan in plans {
        if let Play::Open { per_second, .. } = &mut plan.play {
            let saturated = measured.first().and_then(|first| first.traffic);
            // Two messages to a question, and half of that.
            *per_second = saturated.map_or(1000.0, |traffic| traffic.messages_per_second / 4.0);
        }
        let one = run::measure(&subject, &plan, &progress);
        measured.push(one.map_err(|error| format!("{} {}: {error}", plan.play, plan.shape))?);
    }
    progress.finish();
    tell(load, &measured)
}

fn tell(load: &Load, all: &[Measured]) -> Outcome<()> {
    match (load.json, all) {
        (true, [one]) => println!("{}", serde_json::to_string(one)?),
        (true, all) => println!("{}", serde_json::to_string(all)?),
        (false, all) => all.iter().for_each(table::print),
    }
    match &load.report {
        Some(path) => page::write(path, "", all),
        None => Ok(()),
    }
}

/// What each subject of a comparison is loaded with.
fn plan_of(load: &Load, pace: &Pace, scenario: Scenario) -> Plan {
    let (shape, seconds) = match scenario {
        Scenario::Echo | Scenario::Churn => ("64x16", 5.0),
        Scenario::Push => ("64x4", 5.0),
        Scenario::Idle => ("1000x16", 60.0),
        Scenario::Connect => ("1000x16", 5.0),
    };
    Plan { spin: pace.spin, ..load.plan(scenario.play(pace), shape, seconds) }
}

fn tell_comparison(load: &Load, compared: &Comparison) -> Outcome<()> {
    match load.json {
        true => println!("{}", serde_json::to_string(compared)?),
        false => print!("{compared}"),
    }
    match &load.report {
        Some(path) => page::write(path, &compared.to_string(), &compared.runs),
        None => Ok(()),
    }
}
