//! The table at the end of a run.

use crate::drift::Drift;
use crate::faults::Faults;
use crate::measured::{Measured, Tls, Traffic};
use crate::storms::Cost;
use crate::syscalls::Calls;
use crate::tls::{Agreed, Handshakes};
use crate::upgrade::Upgrades;

/// What a value is called, and how it is written.
type Row = (&'static str, String);

/// Prints what was measured of one subject.
pub(crate) fn print(measured: &Measured) {
    println!("\n{}", title(measured));
    for (what, value) in rows(measured) {
        println!("  {what:<46} {value:>16}");
    }
    for note in notes(measured) {
        println!("  {note}");
    }
}

/// What was measured, in one line.
pub(crate) fn title(measured: &Measured) -> String {
    let Measured { subject, scenario, shape, size, workers, seconds, .. } = measured;
    let bytes = if measured.traffic.is_some() { format!(", {size} bytes") } else { String::new() };
    let threads = if *workers == 1 { "worker" } else { "workers" };
    format!("{subject}: {scenario} {shape}{bytes}, {workers} {threads}, {seconds:.0} s")
}

/// A value that a measurement may have: its name, and how many digits of it are told.
type Value = (&'static str, usize, fn(&Measured) -> Option<f64>);

/// How often the relay sleeps, and its system calls.
pub(crate) const CALLS: [Value; 8] = [
    ("wakes per message", 3, |m| m.traffic?.wakes_per_message),
    ("io_uring_enter per wake", 2, |m| m.per_wake(m.calls.as_ref()?.enters())),
    ("epoll_wait per wake", 2, |m| m.per_wake(m.calls.as_ref()?.epoll_waits())),
    ("system calls per message", 3, |m| Some(m.calls.as_ref()?.all())),
    ("  io_uring_enter", 3, |m| Some(m.calls.as_ref()?.enters())),
    ("  epoll_wait and its like", 3, |m| Some(m.calls.as_ref()?.epoll_waits())),
    ("  sendto, write and their like", 3, |m| Some(m.calls.as_ref()?.sends())),
    ("  recvfrom, read and their like", 3, |m| Some(m.calls.as_ref()?.receives())),
];

/// The values that this scenario has.
pub(crate) fn rows(measured: &Measured) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |what, value: Option<f64>, digits: usize, unit: &str| {
        if let Some(value) = value {
            rows.push((what, format!("{value:.digits$} {unit}").trim_end().to_owned()));
        }
    };
    if let Some(traffic) = &measured.traffic {
        let Traffic { round_trip, .. } = *traffic;
        let churned = Some(traffic.reconnections_per_second).filter(|rate| *rate > 0.0);
        let late = |us: f64| Some(us).filter(|_| measured.is_timed());
        row("relay CPU per message", traffic.cpu_us_per_message, 2, "us");
        row("messages per second", Some(traffic.messages_per_second), 0, "");
        row("round trip p50", Some(round_trip.p50_us), 0, "us");
        row("round trip p90", Some(round_trip.p90_us), 0, "us");
        row("round trip p99", Some(round_trip.p99_us), 0, "us");
        row("round trip p99.9", Some(round_trip.p999_us), 0, "us");
        row("round trip max", Some(round_trip.max_us), 0, "us");
        row("  of it until the question left, p50", late(traffic.late_p50_us), 0, "us");
        row("  of it until the question left, p99", late(traffic.late_p99_us), 0, "us");
        row("slowest phone, of the median phone's frames", Some(traffic.slowest_share), 2, "");
        row("phones that came anew, per second", churned, 0, "");
    }
    for (what, digits, of) in CALLS {
        row(what, of(measured), digits, "");
    }
    let connecting = &measured.connecting;
    row("CPU per idle connection", measured.idle_cpu_us_per_second, 3, "us/s");
    row("relay CPU per upgraded connection", connecting.cpu_us_per_upgrade, 1, "us");
    row("connections per second", Some(connecting.upgrades_per_second), 0, "");
    if let Some(Tls { costs, .. }) = &measured.tls {
        let us = |cost: Option<Cost>| cost.map(|cost| cost.cpu_us_per_handshake);
        let rate = |cost: Option<Cost>| cost.map(|cost| cost.per_cpu_second);
        let resumed = costs.resumed_share.map(|share| 100.0 * share);
        row("full handshakes per CPU second of the relay", rate(costs.full), 0, "");
        row("relay CPU per full handshake", us(costs.full), 1, "us");
        row("resumed handshakes per CPU second", rate(costs.resumed), 0, "");
        row("relay CPU per resumed handshake", us(costs.resumed), 1, "us");
        row("resumed, of the phones that could", resumed, 1, "%");
    }
    row("relay memory per phone", connecting.resident_bytes_per_phone, 0, "bytes");
    row("  after it sat", measured.idle_resident_bytes_per_phone, 0, "bytes");
    row("relay memory in all", measured.resident_mib, 1, "MiB");
    let load = &measured.load;
    let percent = |share: f64| 100.0 * share;
    let relay = load.relays_busiest_thread;
    let waited = relay.map(|share| share.waited).filter(|waited| *waited > 0.02);
    row("relay CPU, all threads", load.relay_cpus.map(percent), 0, "%");
    row("  its busiest thread", relay.map(|share| percent(share.used)), 0, "%");
    row("  which waited for a CPU", waited.map(percent), 0, "%");
    row("client CPU, its busiest process", Some(percent(load.busiest_agent.used)), 0, "%");
    if let Some(usage) = &measured.cgroup {
        row("memory cgroup, at most", Some(usage.peak_mib), 1, "MiB");
        row("memory cgroup, limit", Some(usage.limit_mib), 1, "MiB");
        row("killed for want of memory", Some(usage.killed as f64), 0, "");
    }
    rows
}

/// What must be known to read the values.
pub(crate) fn notes(measured: &Measured) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(traffic) = &measured.traffic {
        notes.push(format!(
            "{} messages (one frame through the relay each; an echo round trip is two), every one \
             checked: right phone, right order, none lost, doubled or altered; no connection was lost",
            traffic.messages
        ));
        if measured.scenario.starts_with("echo") || measured.scenario.starts_with("push") {
            notes.extend(bottleneck(measured));
        }
    }
    if measured.idle_cpu_us_per_second.is_some() {
        notes.push(format!("{} pings were answered while nothing was sent", measured.pings));
        if measured.pings == 0 {
            notes.push("No heartbeat fell into this time: measure for longer.".into());
        }
    }
    notes.extend(measured.lateness());
    if let Some(Calls { means, .. }) = &measured.calls {
        notes.push(format!("System calls were counted by {means}, after what else was measured."));
    }
    notes.extend(measured.faults.iter().map(faults));
    notes.extend(measured.upgrades.iter().map(Upgrades::to_string));
    notes.extend(drift(measured));
    notes.extend(measured.tls.iter().map(tls));
    if measured.load.other_cpus > 0.2 {
        notes.push(format!(
            "Other processes used {:.1} CPUs of this machine: rates and times are worse than the \
             relay's own, CPU per message somewhat.",
            measured.load.other_cpus
        ));
    }
    notes
}

/// What was agreed, and how often.
fn tls(tls: &Tls) -> String {
    let agreed = |agreed: &Agreed| {
        let alpn = agreed.alpn.as_deref().unwrap_or("no ALPN");
        format!("{}, {}, {}, {alpn}", agreed.version, agreed.cipher_suite, agreed.key_exchange)
    };
    let Handshakes { full, resumed, agreed: all } = &tls.handshakes;
    let cost = match tls.costs.full {
        Some(_) => "; their CPU time goes from the accept to the upgrade",
        None => "",
    };
    format!(
        "TLS ({}): {full} full handshakes, each with the certificate verified, and {resumed} \
         resumed ones{cost}",
        all.iter().map(agreed).collect::<Vec<_>>().join(" or ")
    )
}

fn bottleneck(measured: &Measured) -> Option<String> {
    (!measured.is_timed()).then(|| format!("Bottleneck: {}.", measured.load.bottleneck))
}

/// What went wrong on purpose, and how often.
fn faults(Faults { seed, done }: &Faults) -> String {
    let all: u64 = done.values().sum();
    let each: Vec<String> = done.iter().map(|(name, count)| format!("{name} {count}")).collect();
    format!("{all} faults from seed {seed}, each answered as it must be: {}", each.join(", "))
}

/// How what the relay holds went over a long time.
fn drift(measured: &Measured) -> Option<String> {
    let all: Vec<String> = measured.drift.iter().map(Drift::to_string).collect();
    (!all.is_empty()).then(|| format!("From the first third to the end: {}.", all.join(", ")))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::measured::Load;
    use crate::sample::{Connecting, Sample};
    use crate::storms::Costs;
    use crate::verdict::{Bottleneck, Share};

    pub(crate) fn example(traffic: bool) -> Measured {
        let share = Share { used: 0.98, waited: 0.0 };
        let sample = |second: u32| Sample {
            second: f64::from(second),
            messages_per_second: 1000.0,
            resident_mib: Some(10.0),
            descriptors: Some(40),
            cpus: Some(0.98),
            tables: None,
        };
        Measured {
            subject: "relay <1>".into(),
            scenario: if traffic { "echo" } else { "idle" }.into(),
            shape: "64x16".into(),
            size: 200,
            workers: 1,
            seconds: 5.0,
            calls: None,
            traffic: traffic.then(|| Traffic {
                messages: 5000,
                cpu_us_per_message: Some(4.25),
                ..Traffic::default()
            }),
            connecting: Connecting::default(),
            tls: None,
            idle_cpu_us_per_second: (!traffic).then_some(0.25),
            idle_resident_bytes_per_phone: None,
            pings: 0,
            resident_mib: Some(10.0),
            load: Load {
                relay_cpus: Some(0.98),
                relays_busiest_thread: Some(share),
                busiest_agent: share,
                other_cpus: 0.0,
                bottleneck: Bottleneck::Relay,
            },
            cgroup: None,
            faults: None,
            upgrades: None,
            drift: Vec::new(),
            samples: (1..=5).map(sample).collect(),
            percentiles: vec![(0.0, 10.0), (50.0, 20.0), (99.0, 40.0)],
        }
    }

    #[test]
    fn a_table_has_what_its_scenario_has() {
        let has = |measured: &Measured, what: &str| rows(measured).iter().any(|row| row.0 == what);
        let (echo, idle) = (example(true), example(false));
        assert!(has(&echo, "relay CPU per message") && !has(&idle, "relay CPU per message"));
        assert!(has(&idle, "CPU per idle connection") && !has(&echo, "CPU per idle connection"));
        assert!(!has(&idle, "relay CPU per upgraded connection"), "which is not known");
    }

    #[test]
    fn tls_is_told_with_what_it_cost() {
        let cost = Cost { cpu_us_per_handshake: 250.0, per_cpu_second: 4000.0 };
        let agreed = Agreed {
            version: "TLSv1.3".into(),
            cipher_suite: "TLS13_AES_128_GCM_SHA256".into(),
            key_exchange: "X25519".into(),
            alpn: Some("http/1.1".into()),
        };
        let handshakes = Handshakes { full: 70, resumed: 9, agreed: vec![agreed] };
        let costs = Costs { full: Some(cost), resumed: Some(cost), resumed_share: Some(0.9) };
        let storm = Measured { tls: Some(Tls { handshakes, costs }), ..example(false) };
        let value = |what| rows(&storm).into_iter().find(|row| row.0 == what).unwrap().1;
        assert_eq!(value("full handshakes per CPU second of the relay"), "4000");
        assert_eq!(value("relay CPU per resumed handshake"), "250.0 us");
        assert_eq!(value("resumed, of the phones that could"), "90.0 %");
        let told = notes(&storm).join("\n");
        assert!(told.contains("TLSv1.3, TLS13_AES_128_GCM_SHA256, X25519, http/1.1"), "{told}");
        assert!(told.contains("70 full") && told.contains("9 resumed"), "{told}");
    }

    #[test]
    fn notes_say_who_was_the_bottleneck_and_what_was_not_seen() {
        let all = |measured| notes(&measured).join("\n");
        assert!(all(example(true)).contains("Bottleneck: the relay"));
        assert!(all(example(true)).contains("5000 messages"));
        assert!(all(example(false)).contains("No heartbeat"));
    }
}
