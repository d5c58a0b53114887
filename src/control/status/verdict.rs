//! What is wrong with a relay and what to do about it, in plain words: the same that the page says.

use super::seen::{Interval, Worker};
use super::text::{bytes, percent};

/// Above this share of a limit, it is time to do something.
const NEAR: f64 = 0.8;
/// A core that works more than this has none to spare.
const SATURATED: f64 = 0.9;
const SLOW_P99_US: f64 = 100_000.0;
const DAY: i64 = 24 * 60 * 60;
const EXPIRES_SOON: i64 = 14 * DAY;

/// What is wrong, the worst first; nothing, if all is well.
pub(super) fn problems(over: &Interval, now_s: i64) -> Vec<String> {
    let mut found = Vec::new();
    state(over, &mut found);
    limits(over, &mut found);
    cores(over, &mut found);
    happened(over, &mut found);
    found.extend(certificate(over, now_s));
    found
}

fn state(over: &Interval, found: &mut Vec<String>) {
    let process = &over.now.process;
    if process.draining {
        found.push(
            "Draining: it was asked to stop, takes nobody new and waits for peers to close."
                .to_owned(),
        );
    } else if !process.ready {
        found.push(
            "Not ready: not all workers accept connections. If this lasts, read the log."
                .to_owned(),
        );
    }
}

fn limits(over: &Interval, found: &mut Vec<String>) {
    let (seen, process) = (&over.now, &over.now.process);
    let mut near = |used: u64, of: u64, say: &dyn Fn(&str) -> String| {
        let share = used as f64 / of.max(1) as f64;
        if of > 0 && share >= NEAR {
            found.push(say(&percent(share)));
        }
    };
    let (charged, budget) = (seen.charged_bytes(), process.memory_budget_bytes);
    near(charged, budget, &|share| {
        let (charged, budget) = (bytes(charged), bytes(budget));
        format!(
            "Memory budget {share} used ({charged} of {budget}). When it is used up, peers that \
             do not read are ended. Raise --memory-budget if the host has memory to spare."
        )
    });
    let (open, may) = (process.open_descriptors, process.max_descriptors);
    near(open, may, &|share| {
        format!(
            "Descriptors {share} used ({open} of {may}). When they run out, nobody new gets in. \
             Raise LimitNOFILE= in the systemd unit, or ulimit -n."
        )
    });
    let (there, may) = (seen.websockets(), process.max_connections);
    near(there, may, &|share| {
        format!(
            "Connections at {share} of --max-connections ({there} of {may}). Beyond it newcomers \
             get 503. Raise it, with descriptors and memory to match, or add a relay."
        )
    });
}

fn cores(over: &Interval, found: &mut Vec<String>) {
    let saturated = |worker: &&Worker| over.load(worker) >= SATURATED;
    for worker in over.now.workers.iter().filter(saturated) {
        found.push(format!(
            "Core {} is saturated ({} busy): its messages wait. Give the relay more CPUs \
             (--workers), or find out who sends so much.",
            worker.core,
            percent(over.load(worker))
        ));
    }
    let delays = over.delays();
    if let Some(p99) = delays.percentile(0.99).filter(|p99| *p99 >= SLOW_P99_US)
        && delays.messages() >= 20
    {
        found.push(format!(
            "Messages wait: one in a hundred stays {:.0} ms or longer. Look at the cores.",
            p99 / 1000.0
        ));
    }
}

/// What has happened between the two looks.
fn happened(over: &Interval, found: &mut Vec<String>) {
    let mut grown = |count: u64, what: &str| {
        if count > 0 {
            found.push(format!("{count} {what}"));
        }
    };
    grown(
        over.grown_in("memory_sheds_total", ""),
        "connections ended because the memory budget was used up. Raise --memory-budget.",
    );
    grown(
        over.grown_in("accept_pauses_total", ""),
        "pauses in accepting: descriptors or memory ran out. Raise LimitNOFILE= and look at memory.",
    );
    grown(
        over.grown_in("connections_refused_total", "cause=\"max_connections\""),
        "connections refused because --max-connections is reached.",
    );
    let outcomes = ["send_failed", "token_fetch_failed", "dropped"];
    let failed = |outcome: &str| over.grown(|seen| *seen.push_wakes.get(outcome).unwrap_or(&0));
    grown(
        outcomes.into_iter().map(failed).sum(),
        "wake requests failed: phones are not woken. See the warnings for the cause.",
    );
    grown(
        over.grown(|seen| seen.process.log_lines_lost),
        "log lines lost: there were too many at once, or the log is not being read.",
    );
}

fn certificate(over: &Interval, now_s: i64) -> Option<String> {
    let expires_at = i64::try_from(over.now.process.certificate_expires_at?).ok()?;
    let left = expires_at - now_s;
    let mend = "Renew the files of --tls-cert and --tls-key; with ACME, see the warnings.";
    match left {
        ..0 => Some(format!("The certificate has expired: peers refuse it. {mend}")),
        0..EXPIRES_SOON => Some(format!("The certificate expires in {} days. {mend}", left / DAY)),
        _ => None,
    }
}
