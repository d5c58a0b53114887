//! All metrics at one moment: as plain data, and as Prometheus reads them (text format 0.0.4).

use super::delay::BOUNDS_US;
use super::push::PushOutcome;
use super::series::{FAMILIES, Family, Kind};
use super::{Metrics, Series};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

/// What the process says of itself, beside what its workers count.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Process {
    /// The relay's version and, behind a plus sign, its commit.
    pub version: &'static str,
    /// When it started, since 1970.
    pub started_at_seconds: u64,
    /// How long it has run.
    pub uptime_seconds: u64,
    /// All workers accept, and nobody has asked it to stop.
    pub ready: bool,
    /// It was asked to stop.
    pub draining: bool,
    /// It is one of several relays behind a balancer, by the operator's word.
    pub one_of_many: bool,
    /// How far it has come to send everybody away, if the operator wants that.
    pub drain: Option<Drain>,
    /// Networks that are kept out.
    pub blocked: Vec<Blocked>,
    /// Server-ids that are served, if not all are.
    pub allowed_server_ids: Option<u64>,
    /// Memory of its own that it holds.
    pub resident_bytes: u64,
    /// Descriptors that are open.
    pub open_descriptors: u64,
    /// Descriptors that may be.
    pub max_descriptors: u64,
    /// WebSocket connections that may be, as `--max-connections` has it.
    pub max_connections: u64,
    /// What all that is queued or half read may take, as `--memory-budget` has it.
    pub memory_budget_bytes: u64,
    /// How upgrades went.
    pub upgrades: Upgrades,
    /// Log lines that were never written.
    pub log_lines_lost: u64,
    /// Attempts to get or to read a certificate that failed.
    pub certificate_failures: u64,
    /// When the certificate that is served expires, since 1970, if one is served.
    pub certificate_expires_at_seconds: Option<u64>,
    /// CPU time of each worker, which tells it by itself.
    #[serde(skip)]
    pub worker_cpu_seconds: Vec<f64>,
}

/// How upgrades went: those of earlier processes included, which this one has taken over from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Upgrades {
    /// Those that another process came of.
    pub succeeded: u64,
    /// Those after which the process went on.
    pub failed: u64,
    /// The one that this process came of.
    pub last: Option<LastUpgrade>,
    /// The last one after which this process went on.
    pub last_failure: Option<UpgradeFailure>,
}

/// An upgrade that a process came of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LastUpgrade {
    /// When it was, since 1970.
    pub at_seconds: u64,
    /// Connections that were taken over.
    pub connections: u64,
    /// How long no connection was served, in milliseconds.
    pub pause_ms: f64,
}

/// An upgrade after which the process went on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeFailure {
    /// When it was, since 1970.
    pub at_seconds: u64,
    /// Why.
    pub why: String,
}

/// A network that is kept out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// Which.
    pub network: String,
    /// It is one of `--block`.
    pub is_configured: bool,
    /// For how long still; `None` for good.
    pub seconds_left: Option<u64>,
}

/// How far the relay is drained while it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Server-ids that are still held or in grace.
    pub server_ids_left: u64,
    /// Server-ids that have been sent away since it began.
    pub server_ids_sent_away: u64,
}

/// All of it at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    /// What the process says of itself.
    pub process: Process,
    /// All workers together, by metric, without `pyrycode_relay_`.
    pub metrics: BTreeMap<&'static str, Count>,
    /// Each worker by itself.
    pub workers: Vec<Worker>,
    /// What the relay adds to the way of messages, all workers together.
    pub delay: Delay,
}

/// What a metric stands at: one value, or one for each value of a label; within that, for each value
/// of the next label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Count {
    /// Without labels.
    Value(u64),
    /// By the values of a label.
    By(BTreeMap<String, Count>),
}

impl Count {
    /// The samples of one metric, each with the values of its labels in their order.
    fn of<'a>(samples: impl IntoIterator<Item = (Vec<&'a str>, u64)>) -> Self {
        let mut all = Self::By(BTreeMap::new());
        for (path, value) in samples {
            *all.at_mut(&path) = Self::Value(value);
        }
        all
    }

    fn at_mut(&mut self, path: &[&str]) -> &mut Self {
        match (path.split_first(), self) {
            (Some((first, rest)), Self::By(parts)) => {
                let empty = || Self::By(BTreeMap::new());
                parts.entry((*first).to_owned()).or_insert_with(empty).at_mut(rest)
            }
            (_, all) => all,
        }
    }

    /// The value by these values of its labels.
    #[must_use]
    pub fn at(&self, path: &[&str]) -> Option<u64> {
        match (self, path.split_first()) {
            (Self::Value(value), None) => Some(*value),
            (Self::By(parts), Some((first, rest))) => parts.get(*first)?.at(rest),
            _ => None,
        }
    }

    /// Every value, with the values of its labels.
    #[must_use]
    pub fn samples(&self) -> Vec<(Vec<&str>, u64)> {
        match self {
            Self::Value(value) => vec![(Vec::new(), *value)],
            Self::By(parts) => {
                let mut all = Vec::new();
                for (first, part) in parts {
                    for (mut path, value) in part.samples() {
                        path.insert(0, first.as_str());
                        all.push((path, value));
                    }
                }
                all
            }
        }
    }
}

/// The values of labels as they stand between the braces: `a="1",b="2"` has 1 and 2.
fn label_values(labels: &str) -> Vec<&str> {
    labels.split('"').skip(1).step_by(2).collect()
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Worker {
    /// Its number.
    pub core: usize,
    /// CPU time so far, in seconds.
    pub cpu_seconds: f64,
    /// Its connections, in whatever state.
    pub connections: u64,
    /// Messages passed on, in both directions.
    pub messages_forwarded: u64,
    /// What it counts by itself, by metric, without `pyrycode_relay_`.
    pub metrics: BTreeMap<&'static str, u64>,
}

/// A histogram.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Delay {
    /// Upper bounds of the buckets but the last, in microseconds.
    pub bounds_us: &'static [u64],
    /// Messages in each bucket, not cumulated; the last holds what is beyond.
    pub counts: Vec<u64>,
    /// All delays together, in microseconds.
    pub sum_us: u64,
}

const PREFIX: &str = "pyrycode_relay_";
const PUSH_WAKES: &str = "push_wakes_total";

fn short(family: &Family) -> &'static str {
    family.name.strip_prefix(PREFIX).unwrap_or(family.name)
}

impl Snapshot {
    /// Everything as it stands.
    #[must_use]
    pub fn take(metrics: &Metrics, process: Process) -> Self {
        let totals = FAMILIES.iter().map(|family| {
            let series = family.series.iter();
            let samples = series.map(|(labels, of)| (label_values(labels), metrics.total(*of)));
            (short(family), Count::of(samples))
        });
        let outcomes = PushOutcome::ALL.map(|of| (vec![of.label()], metrics.push().total(of)));
        Self {
            metrics: totals.chain([(PUSH_WAKES, Count::of(outcomes))]).collect(),
            workers: (0..metrics.workers().len()).map(|n| worker(metrics, &process, n)).collect(),
            delay: delay(metrics),
            process,
        }
    }
}

fn worker(metrics: &Metrics, process: &Process, core: usize) -> Worker {
    let counters = metrics.worker(core);
    let states = [
        Series::ConnectionsHead,
        Series::ConnectionsMoving,
        Series::ConnectionsNewcomer,
        Series::ConnectionsBinary,
        Series::ConnectionsPhone,
        Series::ConnectionsClosing,
    ];
    let own = FAMILIES.iter().filter(|family| family.by_worker);
    let own = own.flat_map(|family| {
        let counters = &counters;
        family.series.iter().map(move |(_, series)| (short(family), counters.get(*series)))
    });
    Worker {
        core,
        cpu_seconds: process.worker_cpu_seconds.get(core).copied().unwrap_or(0.0),
        connections: states.iter().map(|state| counters.get(*state)).sum(),
        messages_forwarded: counters.get(Series::FramesPhoneToBinary)
            + counters.get(Series::FramesBinaryToPhone),
        metrics: own.collect(),
    }
}

fn delay(metrics: &Metrics) -> Delay {
    let mut counts = vec![0; BOUNDS_US.len() + 1];
    for worker in metrics.workers() {
        for (sum, count) in counts.iter_mut().zip(worker.delays().counts()) {
            *sum += count;
        }
    }
    let sum_us = metrics.workers().iter().map(|worker| worker.delays().sum_us()).sum();
    Delay { bounds_us: &BOUNDS_US, counts, sum_us }
}

/// Everything as it stands, as Prometheus reads it.
#[must_use]
pub fn exposition(metrics: &Metrics, process: &Process) -> String {
    let mut text = Exposition(String::with_capacity(16 * 1024));
    for family in FAMILIES {
        text.family(family.name, family.kind, family.help);
        for (labels, series) in family.series {
            if !family.by_worker {
                text.sample(family.name, labels, metrics.total(*series));
                continue;
            }
            for (core, worker) in metrics.workers().iter().enumerate() {
                let labels = format!("core=\"{core}\"");
                text.sample(family.name, &labels, worker.get(*series));
            }
        }
    }
    text.push_wakes(metrics);
    text.delay(&delay(metrics));
    text.process(process);
    text.0
}

struct Exposition(String);

impl Exposition {
    fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = if kind == Kind::Counter { "counter" } else { "gauge" };
        self.head(name, kind, help);
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            _ => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }

    fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        let name = format!("{PREFIX}{name}");
        self.family(&name, kind, help);
        self.sample(&name, "", value);
    }

    fn push_wakes(&mut self, metrics: &Metrics) {
        let name = format!("{PREFIX}{PUSH_WAKES}");
        self.family(&name, Kind::Counter, "Wake requests, by outcome.");
        for outcome in PushOutcome::ALL {
            let labels = format!("outcome=\"{}\"", outcome.label());
            self.sample(&name, &labels, metrics.push().total(outcome));
        }
    }

    fn delay(&mut self, delay: &Delay) {
        let name = "pyrycode_relay_delay_seconds";
        let help = "Delay that the relay itself adds to a message: from the turn of its loop that \
                    finds the last byte received to the bytes being queued for the kernel.";
        self.head(name, "histogram", help);
        let mut sum = 0;
        for (index, count) in delay.counts.iter().enumerate() {
            sum += count;
            let le = match delay.bounds_us.get(index) {
                Some(bound) => format!("le=\"{}\"", *bound as f64 / 1e6),
                None => "le=\"+Inf\"".to_owned(),
            };
            self.sample(&format!("{name}_bucket"), &le, sum);
        }
        self.sample(&format!("{name}_sum"), "", delay.sum_us as f64 / 1e6);
        self.sample(&format!("{name}_count"), "", sum);
    }

    fn process(&mut self, process: &Process) {
        use Kind::{Counter, Gauge};
        let name = "pyrycode_relay_worker_cpu_seconds_total";
        self.family(name, Counter, "CPU time of each worker: its load, as a rate.");
        for (core, seconds) in process.worker_cpu_seconds.iter().enumerate() {
            self.sample(name, &format!("core=\"{core}\""), seconds);
        }
        let build = "pyrycode_relay_build_info";
        self.family(build, Gauge, "Always 1; the labels give version and commit.");
        let (version, commit) = process.version.split_once('+').unwrap_or((process.version, ""));
        self.sample(build, &format!("version=\"{version}\",commit=\"{commit}\""), 1);
        self.states(process);
        self.upgrades(&process.upgrades);
        if let Some(expires_at) = process.certificate_expires_at_seconds {
            let help = "When the certificate that is served expires, in seconds since 1970.";
            self.single("certificate_expires_at_seconds", Gauge, help, expires_at);
        }
        if let Some(allowed) = process.allowed_server_ids {
            let help = "Server-ids that are served (--allow-server-ids).";
            self.single("allowed_server_ids", Gauge, help, allowed);
        }
        // The names that Prometheus's own client libraries give these.
        for (name, help, value) in [
            (
                "process_start_time_seconds",
                "When it started, since 1970.",
                process.started_at_seconds,
            ),
            ("process_resident_memory_bytes", "Resident memory.", process.resident_bytes),
            ("process_open_fds", "Open descriptors.", process.open_descriptors),
            ("process_max_fds", "Maximum number of open descriptors.", process.max_descriptors),
        ] {
            self.family(name, Gauge, help);
            self.sample(name, "", value);
        }
    }

    fn upgrades(&mut self, upgrades: &Upgrades) {
        let name = "pyrycode_relay_upgrades_total";
        let help = "Upgrades without dropping a connection, by outcome; after a failed one the relay goes \
                    on as it was.";
        self.family(name, Kind::Counter, help);
        self.sample(name, "outcome=\"succeeded\"", upgrades.succeeded);
        self.sample(name, "outcome=\"failed\"", upgrades.failed);
        if let Some(last) = upgrades.last {
            let help = "How long no connection was served when this process took over.";
            self.single("upgrade_pause_seconds", Kind::Gauge, help, last.pause_ms / 1000.0);
        }
    }

    /// What has one value without labels.
    fn states(&mut self, process: &Process) {
        use Kind::{Counter, Gauge};
        for (name, kind, help, value) in [
            ("uptime_seconds", Gauge, "How long the process has run.", process.uptime_seconds),
            (
                "ready",
                Gauge,
                "1 while all workers accept and the relay is neither drained nor stopping.",
                u64::from(process.ready),
            ),
            (
                "draining",
                Gauge,
                "1 while the relay is drained (pyrycode-relay drain) or stops.",
                u64::from(process.draining || process.drain.is_some()),
            ),
            (
                "one_of_many",
                Gauge,
                "1 if the operator says that a balancer sends each server-id to one of several relays.",
                u64::from(process.one_of_many),
            ),
            (
                "max_connections",
                Gauge,
                "Maximum number of WebSocket connections (--max-connections).",
                process.max_connections,
            ),
            (
                "blocked_networks",
                Gauge,
                "Networks that are kept out (--block, pyrycode-relay block).",
                process.blocked.len() as u64,
            ),
            (
                "memory_budget_bytes",
                Gauge,
                "Memory for all that is queued or half read (--memory-budget).",
                process.memory_budget_bytes,
            ),
            (
                "log_lines_lost_total",
                Counter,
                "Log lines that were dropped because standard error was not read in time.",
                process.log_lines_lost,
            ),
            (
                "certificate_failures_total",
                Counter,
                "Attempts to get a certificate by ACME, or to read one that has changed, that \
                 failed.",
                process.certificate_failures,
            ),
        ] {
            self.single(name, kind, help, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn lines(text: &str) -> Vec<&str> {
        text.lines().filter(|line| !line.starts_with('#')).collect()
    }

    #[test]
    fn the_names_of_the_go_relay_are_there_from_the_start_at_0() {
        let process = Process { version: "1.2.3", ..Process::default() };
        let text = exposition(&Metrics::new(2), &process);
        let lines: BTreeSet<&str> = lines(&text).into_iter().collect();
        let mut expected = vec![
            "pyrycode_relay_connected_binaries 0".to_owned(),
            "pyrycode_relay_connected_phones 0".to_owned(),
            "pyrycode_relay_grace_expiries_total 0".to_owned(),
        ];
        for direction in ["phone_to_binary", "binary_to_phone"] {
            expected.push(format!(
                "pyrycode_relay_frames_forwarded_total{{direction=\"{direction}\"}} 0"
            ));
        }
        for endpoint in ["server", "client"] {
            for outcome in [
                "accept",
                "reject_headers",
                "reject_409",
                "reject_404",
                "reject_429",
                "reject_rate_limit",
            ] {
                expected.push(format!(
                    "pyrycode_relay_ws_upgrade_attempts_total{{endpoint=\"{endpoint}\",\
                     outcome=\"{outcome}\"}} 0"
                ));
            }
        }
        for kind in ["no_server", "server_in_use", "phones_at_cap", "ratelimit"] {
            expected.push(format!("pyrycode_relay_register_failures_total{{kind=\"{kind}\"}} 0"));
        }
        for outcome in ["sent", "unregistered", "send_failed", "token_fetch_failed", "dropped"] {
            expected.push(format!("pyrycode_relay_push_wakes_total{{outcome=\"{outcome}\"}} 0"));
        }
        for line in expected {
            assert!(lines.contains(line.as_str()), "{line}\n{text}");
        }
    }

    #[test]
    fn every_metric_is_announced_once_and_before_its_samples() {
        let text = exposition(&Metrics::new(2), &Process::default());
        let mut announced = BTreeSet::new();
        let mut current = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                current = rest.split(' ').next().unwrap();
                assert!(announced.insert(current), "{current} twice");
            } else if !line.starts_with('#') {
                assert!(line.starts_with(current), "{line} under {current}");
                let value = line.rsplit(' ').next().unwrap();
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
    }

    #[test]
    fn workers_are_added_up_and_buckets_cumulate() {
        let metrics = Metrics::new(2);
        for number in 0..2 {
            let worker = metrics.worker(number);
            worker.add(Series::FramesPhoneToBinary, 5);
            worker.add(Series::Turns, 7);
            worker.delays().record(3, 40);
            worker.delays().record(1, 2_000_000);
        }
        let process = Process { worker_cpu_seconds: vec![1.5, 0.25], ..Process::default() };
        let text = exposition(&metrics, &process);
        for line in [
            "pyrycode_relay_frames_forwarded_total{direction=\"phone_to_binary\"} 10",
            "pyrycode_relay_loop_turns_total{core=\"1\"} 7",
            "pyrycode_relay_delay_seconds_bucket{le=\"0.000025\"} 0",
            "pyrycode_relay_delay_seconds_bucket{le=\"0.00005\"} 6",
            "pyrycode_relay_delay_seconds_bucket{le=\"1\"} 6",
            "pyrycode_relay_delay_seconds_bucket{le=\"+Inf\"} 8",
            "pyrycode_relay_delay_seconds_count 8",
            "pyrycode_relay_delay_seconds_sum 4.00024",
            "pyrycode_relay_worker_cpu_seconds_total{core=\"0\"} 1.5",
        ] {
            assert!(lines(&text).contains(&line), "{line}\n{text}");
        }
        let snapshot = Snapshot::take(&metrics, process);
        let metrics = &snapshot.metrics;
        assert_eq!(metrics["frames_forwarded_total"].at(&["phone_to_binary"]), Some(10));
        assert_eq!(metrics["ws_upgrade_attempts_total"].at(&["server", "accept"]), Some(0));
        assert_eq!(metrics["ws_upgrade_attempts_total"].at(&["server"]), None);
        assert_eq!(metrics["push_wakes_total"].at(&["sent"]), Some(0));
        assert_eq!(metrics["loop_turns_total"], Count::Value(14));
        assert_eq!(metrics["frames_forwarded_total"].samples().len(), 2);
        assert_eq!(snapshot.workers[1].metrics["loop_turns_total"], 7);
        assert_eq!(snapshot.delay.counts[2], 6);
    }
}
