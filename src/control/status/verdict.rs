//! What is wrong with a relay and what to do about it, in plain words: the same that the page says.

use super::seen::{Interval, Worker};
use super::text::{bytes, percent};
use std::cmp::Reverse;

/// Above this share of a limit, it is time to do something.
const NEAR: f64 = 0.8;
/// Above this, it is nearly too late.
const VERY_NEAR: f64 = 0.95;
/// A core that works more than this has none to spare.
const SATURATED: f64 = 0.9;
const SLOW_P99_US: f64 = 100_000.0;
const DAY: i64 = 24 * 60 * 60;
const EXPIRES_SOON: i64 = 14 * DAY;
const EXPIRES_VERY_SOON: i64 = 3 * DAY;

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// It cannot wait.
    pub(super) is_grave: bool,
    /// What it is, and what to do.
    pub(super) text: String,
}

fn grave(text: impl Into<String>) -> Problem {
    Problem { is_grave: true, text: text.into() }
}

fn mild(text: impl Into<String>) -> Problem {
    Problem { is_grave: false, text: text.into() }
}

/// What is wrong, the worst first; nothing, if all is well.
pub(super) fn problems(over: &Interval, now_s: i64) -> Vec<Problem> {
    let mut found = Vec::new();
    state(over, &mut found);
    limits(over, &mut found);
    cores(over, &mut found);
    happened(over, &mut found);
    found.extend(certificate(over, now_s));
    found.sort_by_key(|problem| Reverse(problem.is_grave));
    found
}

fn state(over: &Interval, found: &mut Vec<Problem>) {
    let process = &over.now.process;
    if process.draining {
        found.push(mild(
            "Draining: it was asked to stop, accepts no new connections and waits for peers to close.",
        ));
    } else if let Some(drain) = process.drain {
        found.push(mild(format!(
            "Drained by command: no new binary is let in, and {} server-ids are still to be sent away. \
             pyrycode-relay drain --cancel takes it back.",
            drain.server_ids_left
        )));
    } else if !process.ready {
        found.push(grave(
            "Not ready: not all workers accept connections. If this lasts, read the log.",
        ));
    }
    if let Some(failure) = &process.upgrades.last_failure {
        found.push(mild(format!(
            "The last upgrade failed, and this process serves on: {}. Mend that and run pyrycode-relay \
             upgrade again.",
            failure.why
        )));
    }
}

fn limits(over: &Interval, found: &mut Vec<Problem>) {
    let (seen, process) = (&over.now, &over.now.process);
    let mut near = |used: u64, of: u64, say: &dyn Fn(&str) -> String| {
        let share = used as f64 / of.max(1) as f64;
        if of > 0 && share >= NEAR {
            found.push(Problem { is_grave: share >= VERY_NEAR, text: say(&percent(share)) });
        }
    };
    let (charged, budget) = (seen.charged_bytes(), process.memory_budget_bytes);
    near(charged, budget, &|share| {
        let (charged, budget) = (bytes(charged), bytes(budget));
        format!(
            "Memory budget {share} used ({charged} of {budget}). When it is used up, connections \
             whose peers do not read are closed. SIGUSR1 lists who takes how much; raise \
             --memory-budget if the host has memory to spare."
        )
    });
    let (open, may) = (process.open_descriptors, process.max_descriptors);
    near(open, may, &|share| {
        format!(
            "Descriptors {share} used ({open} of {may}). When they run out, no new connection \
             is accepted. Raise LimitNOFILE= in the systemd unit, or ulimit -n."
        )
    });
    let (there, may) = (seen.websockets(), process.max_connections);
    near(there, may, &|share| {
        format!(
            "Connections at {share} of --max-connections ({there} of {may}). Further connections \
             get 503. Raise it, with descriptors and memory to match, or add a relay."
        )
    });
}

fn cores(over: &Interval, found: &mut Vec<Problem>) {
    let saturated = |worker: &&Worker| over.load(worker) >= SATURATED;
    for worker in over.now.workers.iter().filter(saturated) {
        found.push(mild(format!(
            "Core {} is saturated ({} busy): its messages wait. Give the relay more CPUs \
             (--workers), or find out who sends so much.",
            worker.core,
            percent(over.load(worker))
        )));
    }
    let delays = over.delays();
    if let Some(p99) = delays.percentile(0.99).filter(|p99| *p99 >= SLOW_P99_US)
        && delays.messages() >= 20
    {
        found.push(mild(format!(
            "Messages wait: one in a hundred stays {:.0} ms or longer. Look at the CPU load.",
            p99 / 1000.0
        )));
    }
}

/// What has happened between the two looks.
fn happened(over: &Interval, found: &mut Vec<Problem>) {
    let mut grown = |problem: fn(String) -> Problem, count: u64, what: &str| {
        if count > 0 {
            found.push(problem(format!("{count} {what}")));
        }
    };
    grown(
        grave,
        over.grown_in("memory_sheds_total", &[]),
        "connections ended because the memory budget was used up. Raise --memory-budget.",
    );
    grown(
        grave,
        over.grown_in("accept_pauses_total", &[]),
        "pauses in accepting: descriptors or memory ran out. Raise LimitNOFILE= and look at memory.",
    );
    grown(
        grave,
        over.grown_in("connections_refused_total", &["max_connections"]),
        "connections refused because --max-connections is reached.",
    );
    grown(
        mild,
        over.grown_in("connections_refused_total", &["not_upgraded"]),
        "connections without an upgrade request were aborted: an address opens very many. conn_cap_reached in the log names it.",
    );
    let outcomes = ["send_failed", "token_fetch_failed", "dropped"];
    let failed = |outcome: &str| over.grown_in("push_wakes_total", &[outcome]);
    grown(
        mild,
        outcomes.into_iter().map(failed).sum(),
        "wake requests failed: phones are not woken. See the warnings for the cause.",
    );
    grown(
        mild,
        over.grown(|seen| seen.process.log_lines_lost),
        "log lines lost: standard error is not read, or not fast enough.",
    );
}

fn certificate(over: &Interval, now_s: i64) -> Option<Problem> {
    let expires_at = i64::try_from(over.now.process.certificate_expires_at_seconds?).ok()?;
    let left = expires_at - now_s;
    let mend = "Renew the files of --tls-cert and --tls-key; with ACME, see the warnings.";
    match left {
        ..0 => Some(grave(format!("The certificate has expired: peers refuse it. {mend}"))),
        0..EXPIRES_SOON => Some(Problem {
            is_grave: left < EXPIRES_VERY_SOON,
            text: format!("The certificate expires in {} days. {mend}", left / DAY),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::PAGE;
    use super::super::seen::{Delay, Seen};
    use super::*;
    use crate::metrics::snapshot::{Count, Drain, UpgradeFailure};
    use std::collections::BTreeMap;

    const NOW_S: i64 = 1_800_000_000;

    /// A relay with nothing to do.
    fn idle() -> Seen {
        let mut seen = Seen::default();
        seen.process.ready = true;
        seen.process.memory_budget_bytes = 1000;
        seen.process.max_descriptors = 1000;
        seen.process.max_connections = 1000;
        seen.process.certificate_expires_at_seconds = Some((NOW_S + 15 * DAY) as u64);
        seen.workers = vec![Worker::default()];
        seen.delay = Delay { bounds_us: vec![1000, 1_000_000], counts: vec![0, 0, 0] };
        seen
    }

    fn said(alter: impl FnOnce(&mut Seen)) -> Vec<Problem> {
        let mut now = idle();
        alter(&mut now);
        problems(&Interval { before: idle(), now, seconds: 1.0 }, NOW_S)
    }

    /// Counts so many of this one value of the metric's label, or without a label.
    fn set(seen: &mut Seen, metric: &str, of: &str, value: u64) {
        let value = Count::Value(value);
        if of.is_empty() {
            seen.metrics.insert(metric.to_owned(), value);
            return;
        }
        let empty = Count::By(BTreeMap::new());
        if let Count::By(parts) = seen.metrics.entry(metric.to_owned()).or_insert(empty) {
            parts.insert(of.to_owned(), value);
        }
    }

    fn every_trouble(seen: &mut Seen) {
        seen.process.ready = false;
        seen.process.open_descriptors = 800;
        seen.process.log_lines_lost = 1;
        seen.process.certificate_expires_at_seconds = Some((NOW_S + 13 * DAY) as u64);
        set(seen, "connections", "phone", 800);
        set(seen, "memory_sheds_total", "", 1);
        set(seen, "accept_pauses_total", "", 1);
        set(seen, "connections_refused_total", "max_connections", 1);
        set(seen, "push_wakes_total", "send_failed", 1);
        let metrics = BTreeMap::from([("memory_charged_bytes".to_owned(), 800)]);
        seen.workers = vec![Worker { cpu_seconds: 0.95, metrics, ..Worker::default() }];
        seen.delay.counts = vec![0, 20, 0];
    }

    #[test]
    fn nothing_is_said_while_all_is_well() {
        assert_eq!(said(|_| {}), []);
        let below = |seen: &mut Seen| {
            seen.process.open_descriptors = 799;
            set(seen, "connections", "phone", 799);
            set(seen, "connections", "head", 500);
            seen.workers[0].cpu_seconds = 0.89;
            seen.delay.counts = vec![0, 19, 0];
        };
        assert_eq!(said(below), []);
    }

    #[test]
    fn every_trouble_is_named_and_what_cannot_wait_comes_first() {
        let all = said(every_trouble);
        assert_eq!(all.len(), 12, "{all:#?}");
        assert!(all.is_sorted_by_key(|problem| !problem.is_grave), "{all:#?}");
        let near = said(|seen| seen.process.open_descriptors = 950);
        assert!(near[0].is_grave && near[0].text.contains("95 %"), "{near:?}");
        let draining = said(|seen| (seen.process.ready, seen.process.draining) = (false, true));
        assert!(draining.len() == 1 && !draining[0].is_grave, "{draining:?}");
        let expired = said(|seen| seen.process.certificate_expires_at_seconds = Some(1));
        assert!(expired[0].is_grave && expired[0].text.contains("has expired"), "{expired:?}");
    }

    #[test]
    fn the_page_says_it_in_the_same_words() {
        // The page's long texts are put together from several lines.
        let lines: Vec<&str> = PAGE.lines().map(str::trim).collect();
        let page = lines.join("").replace("\" +\"", "").replace("` +\"", "");
        let mut all = said(every_trouble);
        all.extend(said(|seen| seen.process.draining = true));
        all.extend(said(|seen| seen.process.drain = Some(Drain::default())));
        all.extend(said(|seen| {
            let why = "9".to_owned();
            seen.process.upgrades.last_failure = Some(UpgradeFailure { at_seconds: 1, why });
        }));
        all.extend(said(|seen| seen.process.certificate_expires_at_seconds = Some(1)));
        for Problem { text, .. } in all {
            // Values stand in between.
            for part in text.split(|c: char| c.is_ascii_digit() || "%().".contains(c)) {
                let part = part.trim_matches(|c: char| !c.is_alphabetic());
                if part.len() > 12 {
                    assert!(page.contains(part), "{part:?} of {text:?}");
                }
            }
        }
    }
}
