//! A relay that is upgraded again and again under load: that no frame is lost, doubled, altered or
//! late, and nobody closed; and what is felt of each upgrade.
//!
//! - [`session`]: one relay, its peers, and upgrades in a row
//! - [`footprint`]: what the two processes hold between them
//! - [`tell`]: tables and plots

mod footprint;
mod session;
mod tell;

use crate::Outcome;
use crate::cli::Restarts;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::spec::{Play, Shape};
use crate::subject::Subject;
use crate::tls::{Offer, Version};
use clap::ValueEnum;
use serde::Serialize;
use session::{Setting, play};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How long everybody talks before the first upgrade.
const WARM_UP: Duration = Duration::from_millis(500);
/// Peers that ask all the time beside those that only sit: enough server-ids for each of a few
/// workers to have some.
const BYSTANDERS: Shape = Shape { binaries: 16, phones: 1 };
const BYSTANDERS_PER_SECOND: f64 = 500.0;

/// What the peers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Peers {
    Echo,
    Push,
    Churn,
    Idle,
}

impl Peers {
    fn play(self) -> Play {
        match self {
            Self::Echo => Play::Closed { window: 1 },
            Self::Push => Play::Push { window: 32 },
            Self::Churn => Play::Churn { frames: 20, every: 1 },
            Self::Idle => Play::Idle,
        }
    }
}

/// What the peers speak over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Over {
    Plain,
    Tls12,
    Tls13,
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain TCP",
            Self::Tls12 => "TLS 1.2",
            Self::Tls13 => "TLS 1.3",
        })
    }
}

impl Over {
    fn version(self) -> Option<Version> {
        match self {
            Self::Plain => None,
            Self::Tls12 => Some(Version::Tls12),
            Self::Tls13 => Some(Version::Tls13),
        }
    }
}

/// How many workers the relay has, and how many after every other upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Workers {
    first: usize,
    second: usize,
}

impl FromStr for Workers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok().filter(|number| (1..=1024).contains(number));
        let (first, second) = text.split_once('-').unwrap_or((text, text));
        match (number(first), number(second)) {
            (Some(first), Some(second)) => Ok(Self { first, second }),
            _ => Err("write a number of workers, or two that alternate, for example 1-2".into()),
        }
    }
}

impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.second {
            true if self.first == 1 => write!(f, "1 worker"),
            true => write!(f, "{} workers", self.first),
            false => write!(f, "{} and {} workers in turn", self.first, self.second),
        }
    }
}

impl Workers {
    fn alternate(self) -> bool {
        self.first != self.second
    }

    fn most(self) -> usize {
        self.first.max(self.second)
    }

    /// How many there are after so many upgrades.
    fn after(self, upgrades: u32) -> usize {
        if upgrades.is_multiple_of(2) { self.first } else { self.second }
    }
}

/// Upgrades relays as asked, and tells what came of it.
///
/// # Errors
///
/// The first frame that is wrong, connection that is closed, or upgrade that fails.
pub(crate) fn run(asked: &Restarts) -> Outcome<()> {
    let settings = settings(asked)?;
    let each = WARM_UP + Duration::from_secs_f64(asked.seconds) * asked.times;
    let progress = Progress::new(each * u32::try_from(settings.len())?)?;
    let (mut rows, mut failure) = (Vec::new(), None);
    for setting in &settings {
        match play(setting, &progress) {
            Ok(row) => rows.push(row),
            Err(error) => {
                failure = Some(format!("{setting}: {error}"));
                break;
            }
        }
    }
    progress.finish();
    match asked.json {
        true => println!("{}", serde_json::to_string(&rows)?),
        false => print!("{}", tell::table(&rows)),
    }
    if let Some(path) = &asked.report {
        tell::page(path, &rows)?;
    }
    failure.map_or(Ok(()), |failure| Err(failure.into()))
}

/// Everything that is to be played, one after the other.
fn settings(asked: &Restarts) -> Outcome<Vec<Setting>> {
    let relay = asked.relay.clone().with_pid(asked.pid);
    if relay.is_url() && asked.control_socket.is_none() {
        return Err("name the control socket of a relay that runs already: --control-socket".into());
    }
    let mut settings = Vec::new();
    for over in &asked.over {
        let is_tls = over.version().is_some();
        if relay.is_tls() && !is_tls || relay.is_url() && relay.is_tls() != is_tls {
            continue;
        }
        for workers in &asked.workers {
            for peers in &asked.scenario {
                settings.push(setting(asked, &relay, (*peers, *over, *workers))?);
            }
            if relay.is_url() {
                break;
            }
        }
    }
    match settings.is_empty() {
        true => Err("the relay speaks none of what --over names".into()),
        false => Ok(settings),
    }
}

fn setting(
    asked: &Restarts,
    relay: &Subject,
    (peers, over, workers): (Peers, Over, Workers),
) -> Outcome<Setting> {
    let mut subject = relay.clone();
    if over.version().is_some() {
        subject = subject.over_tls()?;
    }
    if workers.alternate() {
        subject = subject.resizable(workers.after(0));
    }
    let plan = Plan {
        shape: asked.shape,
        size: asked.size as usize,
        play: peers.play(),
        workers: workers.most(),
        agents: asked.agents,
        warm_up: WARM_UP,
        time: Duration::from_secs_f64(asked.seconds),
        patience: Duration::from_secs_f64(asked.patience),
        spin: false,
        syscalls: false,
        offer: Offer { version: over.version(), resume: false },
        cgroup: None,
        log: asked.log.clone(),
        upgrades: true,
        faults: None,
    };
    let bystanders = (peers == Peers::Idle).then(|| Plan {
        shape: BYSTANDERS,
        play: Play::Open { per_second: BYSTANDERS_PER_SECOND, burst: 1 },
        agents: 1,
        ..plan.clone()
    });
    Ok(Setting {
        subject,
        peers,
        over,
        workers,
        plan,
        bystanders,
        times: asked.times,
        control_socket: asked.control_socket.clone(),
        to: asked.to.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_as_many_or_alternate() {
        let workers = |text: &str| text.parse::<Workers>();
        assert_eq!(workers("2").map(|two| (two.after(0), two.after(1))), Ok((2, 2)));
        let both = workers("1-2").unwrap();
        assert_eq!([both.after(0), both.after(1), both.after(2), both.most()], [1, 2, 1, 2]);
        assert_eq!(
            (both.to_string(), both.alternate()),
            ("1 and 2 workers in turn".to_owned(), true)
        );
        for wrong in ["", "0", "1-", "1-0", "x", "1-2-3"] {
            assert!(workers(wrong).is_err(), "{wrong}");
        }
    }
}
