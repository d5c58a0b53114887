//! Several subjects in turn in one session, so that a noisy machine is noisy for all of them.

use crate::Outcome;
use crate::measured::{Measured, Traffic};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::run;
use crate::spec::Play;
use crate::subject::Subject;
use crate::table::CALLS;
use crate::verdict::Bottleneck;
use serde::Serialize;
use std::fmt;

/// A value that subjects are compared by.
#[derive(Clone, Copy)]
struct Metric {
    name: &'static str,
    digits: usize,
    of: fn(&Measured) -> Option<f64>,
}

const fn metric(name: &'static str, digits: usize, of: fn(&Measured) -> Option<f64>) -> Metric {
    Metric { name, digits, of }
}

fn of_traffic(measured: &Measured, of: fn(&Traffic) -> f64) -> Option<f64> {
    measured.traffic.as_ref().map(of)
}

const TRAFFIC: [Metric; 9] = [
    metric("relay CPU per message, us", 2, |m| m.traffic.as_ref()?.cpu_us_per_message),
    metric("messages per second", 0, |m| of_traffic(m, |t| t.messages_per_second)),
    metric("round trip p50, us", 0, |m| of_traffic(m, |t| t.round_trip.p50_us)),
    metric("round trip p99, us", 0, |m| of_traffic(m, |t| t.round_trip.p99_us)),
    metric("  of it until the question left, p99, us", 0, |m| {
        m.traffic.filter(|_| m.is_timed()).map(|traffic| traffic.late_p99_us)
    }),
    metric("p99 / p50", 2, |m| of_traffic(m, |t| t.round_trip.p99_us / t.round_trip.p50_us)),
    metric("slowest phone / median phone", 2, |m| of_traffic(m, |t| t.slowest_share)),
    metric("relay CPU, %", 0, |m| Some(100.0 * m.load.relay_cpus?)),
    metric("client CPU, %", 0, |m| Some(100.0 * m.load.busiest_agent.used)),
];
const IDLE: [Metric; 3] = [
    metric("relay memory per phone, bytes", 0, |m| m.connecting.resident_bytes_per_phone),
    metric("relay memory per phone after it sat, bytes", 0, |m| m.idle_resident_bytes_per_phone),
    metric("CPU per idle connection, us/s", 3, |m| m.idle_cpu_us_per_second),
];
const CONNECT: [Metric; 5] = [
    metric("relay CPU per upgraded connection, us", 1, |m| m.connecting.cpu_us_per_upgrade),
    metric("connections per second", 0, |m| Some(m.connecting.upgrades_per_second)),
    metric("full handshakes per CPU second", 0, |m| {
        Some(m.tls.as_ref()?.costs.full?.per_cpu_second)
    }),
    metric("resumed handshakes per CPU second", 0, |m| {
        Some(m.tls.as_ref()?.costs.resumed?.per_cpu_second)
    }),
    metric("resumed, % of the phones that could", 1, |m| {
        Some(100.0 * m.tls.as_ref()?.costs.resumed_share?)
    }),
];

/// The median of several values, and the least and the most of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` of no values.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let upper = *values.get(values.len() / 2)?;
        let lower = *values.get((values.len() - 1) / 2)?;
        Some(Self { median: f64::midpoint(lower, upper), min, max })
    }
}

/// One value of one subject over all rounds.
#[derive(Debug, Serialize)]
struct Compared {
    metric: &'static str,
    subject: String,
    value: Spread,
    /// To each other reference subject in the same round.
    ratios: Vec<Ratio>,
    #[serde(skip)]
    digits: usize,
}

/// How a value stands to another subject's.
#[derive(Debug, Serialize)]
struct Ratio {
    to: String,
    #[serde(flatten)]
    spread: Spread,
}

/// Everything that a comparison says.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    title: String,
    references: Vec<String>,
    compared: Vec<Compared>,
    notes: Vec<String>,
    /// Every measurement, in the order of time.
    pub(crate) runs: Vec<Measured>,
}

/// Measures A B A B …, and holds all subjects against those that `references` names, or the
/// first.
///
/// # Errors
///
/// When a measurement fails, or nobody has a reference's name.
pub(crate) fn run(
    subjects: &[Subject],
    references: &[String],
    plan: &Plan,
    rounds: usize,
) -> Outcome<Comparison> {
    let names: Vec<String> = subjects.iter().map(Subject::to_string).collect();
    let place = |name: &String| names.iter().position(|own| own == name);
    let places: Option<Vec<usize>> = match references {
        [] => Some(vec![0]),
        named => named.iter().map(place).collect(),
    };
    let places = places.ok_or_else(|| format!("--reference names none of {}", names.join(", ")))?;
    let whole = plan.duration() * (rounds * subjects.len()) as u32;
    let progress = Progress::new(whole)?;
    let mut all: Vec<Vec<Measured>> = subjects.iter().map(|_| Vec::new()).collect();
    for round in 1..=rounds {
        for (subject, measured) in subjects.iter().zip(&mut all) {
            let one = run::measure(subject, plan, &progress);
            measured.push(one.map_err(|error| format!("round {round}, {subject}: {error}"))?);
        }
    }
    progress.finish();
    let title = format!(
        "{} {}, {} bytes, {} worker(s), {rounds} rounds of {} s each, in turn; median (min to max)",
        plan.play,
        plan.shape,
        plan.size,
        plan.workers,
        plan.time.as_secs_f64()
    );
    let calls = CALLS.map(|(name, digits, of)| metric(name, digits, of));
    let metrics: Vec<Metric> = match plan.play {
        Play::Idle => IDLE.into(),
        Play::Connect => CONNECT.into(),
        _ => TRAFFIC.into_iter().chain(calls).collect(),
    };
    let named = places.iter().filter_map(|place| names.get(*place).cloned()).collect();
    Ok(Comparison {
        title,
        references: named,
        compared: metrics.iter().flat_map(|metric| compare(metric, &all, &places)).collect(),
        notes: all.iter().flat_map(|measured| notes(measured)).collect(),
        runs: in_time(all),
    })
}

fn compare(metric: &Metric, all: &[Vec<Measured>], references: &[usize]) -> Vec<Compared> {
    let of = |at: usize| -> Vec<f64> {
        all.get(at).into_iter().flatten().filter_map(metric.of).collect()
    };
    let name = |at: usize| Some(all.get(at)?.first()?.subject.clone());
    let subject = |(at, measured): (usize, &Vec<Measured>)| {
        let own = of(at);
        let ratio = |to: &usize| {
            let base = of(*to);
            let ratios = own.iter().zip(&base).map(|(own, base)| own / base);
            // Of nothing there is no ratio.
            let spread = Spread::of(ratios.filter(|ratio| ratio.is_finite()).collect())?;
            Some(Ratio { to: name(*to)?, spread })
        };
        let others = references.iter().filter(|to| **to != at);
        let ratios = others.filter_map(ratio).collect();
        Some(Compared {
            metric: metric.name,
            subject: measured.first()?.subject.clone(),
            value: Spread::of(own.clone())?,
            ratios,
            digits: metric.digits,
        })
    };
    all.iter().enumerate().filter_map(subject).collect()
}

/// What must be known to read a subject's values.
fn notes(measured: &[Measured]) -> Vec<String> {
    let Some(first) = measured.first() else { return Vec::new() };
    let (name, rounds) = (&first.subject, measured.len());
    let mut notes = Vec::new();
    for bottleneck in [Bottleneck::Client, Bottleneck::OtherProcesses] {
        let times = measured.iter().filter(|m| m.load.bottleneck == bottleneck).count();
        if times > 0 {
            notes.push(format!("{name}: in {times} of {rounds} rounds {bottleneck}."));
        }
    }
    let late = measured.iter().filter_map(Measured::lateness).count();
    if late > 0 {
        notes.push(format!(
            "{name}: in {late} of {rounds} rounds questions left late, for want of CPU time of the \
             load: round trips are not the relay's own."
        ));
    }
    let others = Spread::of(measured.iter().map(|m| m.load.other_cpus).collect());
    if let Some(others) = others.filter(|others| others.median > 0.2) {
        notes.push(format!("{name}: other processes used {:.1} CPUs meanwhile.", others.median));
    }
    notes
}

/// Round by round.
fn in_time(all: Vec<Vec<Measured>>) -> Vec<Measured> {
    let mut rows: Vec<_> = all.into_iter().map(Vec::into_iter).collect();
    let mut runs = Vec::new();
    loop {
        let before = runs.len();
        runs.extend(rows.iter_mut().filter_map(Iterator::next));
        if runs.len() == before {
            return runs;
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        let mut last = "";
        let width = self.compared.iter().map(|row| row.subject.len()).max().unwrap_or(0);
        for row in &self.compared {
            if row.metric != last {
                writeln!(f, "\n{}", row.metric)?;
                last = row.metric;
            }
            let (Spread { median, min, max }, digits) = (row.value, row.digits);
            let range = format!("({min:.digits$} to {max:.digits$})");
            write!(f, "  {:<width$} {median:>10.digits$}  {range:<22}", row.subject)?;
            for Ratio { to, spread: Spread { median, min, max } } in &row.ratios {
                write!(f, "{median:>6.2} of {to} ({min:.2} to {max:.2})")?;
            }
            writeln!(f)?;
        }
        if !self.notes.is_empty() {
            writeln!(f)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "{note}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::example;

    fn measured(cpu_us: &[f64]) -> Vec<Measured> {
        let one = |cpu: &f64| {
            let mut measured = example(true);
            if let Some(traffic) = &mut measured.traffic {
                traffic.cpu_us_per_message = Some(*cpu);
            }
            measured
        };
        cpu_us.iter().map(one).collect()
    }

    #[test]
    fn a_spread_is_the_middle_and_both_ends() {
        let spread = |values: &[f64]| Spread::of(values.to_vec()).map(|s| (s.median, s.min, s.max));
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some((2.0, 1.0, 3.0)));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Some((2.5, 1.0, 4.0)));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let all = [measured(&[4.0, 8.0]), measured(&[2.0, 2.0])];
        let compared = compare(&TRAFFIC[0], &all, &[0]);
        assert!(compared[0].ratios.is_empty());
        let spread = Spread { median: 0.375, min: 0.25, max: 0.5 };
        assert_eq!(compared[1].ratios[0].spread, spread);
        let both = compare(&TRAFFIC[0], &all, &[0, 1]);
        assert_eq!((both[0].ratios.len(), both[1].ratios.len()), (1, 1));
        assert_eq!(compared[1].value.median, 2.0);
    }

    #[test]
    fn runs_are_told_in_the_order_of_time() {
        let runs = in_time(vec![measured(&[1.0, 3.0]), measured(&[2.0, 4.0])]);
        let order = runs.iter().filter_map(|run| run.traffic?.cpu_us_per_message);
        assert_eq!(order.collect::<Vec<_>>(), [1.0, 2.0, 3.0, 4.0]);
    }
}
