//! `pyrycode-relay status URL URL …`: several relays in one table, and their sums.

use super::look::watch;
use super::seen::Interval;
use super::text::{
    BOLD, GREEN, RED, Text, YELLOW, count, duration, micros, now_s, percent, plain, shows_colours,
};
use super::verdict::{Problem, problems};
use tokio::task::JoinSet;

/// How the relays are doing whose metrics listeners are at these addresses (host and port), as text
/// for a terminal, and whether all of them have answered.
pub async fn status_of_all(addresses: &[String]) -> (String, bool) {
    let mut looks = JoinSet::new();
    for (place, address) in addresses.iter().cloned().enumerate() {
        looks.spawn(async move { (place, watch(&address).await) });
    }
    let mut seen = looks.join_all().await;
    seen.sort_by_key(|(place, _)| *place);
    let seen = addresses.iter().zip(seen).map(|(address, (_, seen))| (address.as_str(), seen));
    let relays: Vec<(&str, Result<Interval, String>)> = seen.collect();
    let all = relays.iter().all(|(_, seen)| seen.is_ok());
    (render(&relays, now_s(), shows_colours()), all)
}

/// What one line of the table says, and what the last one adds up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sums {
    server_ids: u64,
    binaries: u64,
    phones: u64,
    per_second: u64,
    connections: u64,
    may: u64,
}

impl Sums {
    fn of(over: &Interval) -> Self {
        let seen = &over.now;
        let forwarded = |direction: &str| {
            over.per_second(|seen| seen.value("frames_forwarded_total", &[direction]))
        };
        let messages = forwarded("phone_to_binary") + forwarded("binary_to_phone");
        Self {
            server_ids: seen.value("server_ids", &[]),
            binaries: seen.value("connected_binaries", &[]),
            phones: seen.value("connected_phones", &[]),
            per_second: messages.round() as u64,
            connections: seen.websockets(),
            may: seen.process.max_connections,
        }
    }

    fn add(&mut self, other: Self) {
        self.server_ids += other.server_ids;
        self.binaries += other.binaries;
        self.phones += other.phones;
        self.per_second += other.per_second;
        self.connections += other.connections;
        self.may += other.may;
    }

    fn show(self) -> String {
        let share = self.connections as f64 / self.may.max(1) as f64;
        format!(
            "{:>9} {:>9} {:>9} {:>11} {:>8}",
            count(self.server_ids),
            count(self.binaries),
            count(self.phones),
            count(self.per_second),
            percent(share)
        )
    }
}

fn state(over: &Interval) -> &'static str {
    let process = &over.now.process;
    match (process.draining, process.drain, process.ready) {
        (true, ..) => "stopping",
        (_, Some(_), _) => "drained",
        (.., true) => "ready",
        _ => "not ready",
    }
}

fn render(relays: &[(&str, Result<Interval, String>)], now_s: i64, colour: bool) -> String {
    let mut text = Text { out: String::new(), colour };
    let width = relays.iter().map(|(address, _)| address.len()).max().unwrap_or(0).max(5);
    text.coloured(
        BOLD,
        format_args!(
            "{:width$} {:9} {:>9} {:>9} {:>9} {:>9} {:>11} {:>8} {:>9} {:>8}",
            "Relay",
            "state",
            "up",
            "ids",
            "binaries",
            "phones",
            "messages/s",
            "of max",
            "delay p99",
            "busiest"
        ),
    );
    let (mut sums, mut found) = (Sums::default(), Vec::<(&str, Problem)>::new());
    for (address, seen) in relays {
        let Ok(over) = seen else {
            text.coloured(RED, format_args!("{address:width$} no answer"));
            continue;
        };
        let own = Sums::of(over);
        sums.add(own);
        let load = over.now.workers.iter().map(|worker| over.load(worker)).fold(0.0, f64::max);
        text.line(format_args!(
            "{address:width$} {:9} {:>9} {} {:>9} {:>8}",
            state(over),
            duration(over.now.process.uptime_seconds),
            own.show(),
            over.delays().percentile(0.99).map_or("-".to_owned(), micros),
            percent(load)
        ));
        found.extend(problems(over, now_s).into_iter().map(|problem| (*address, problem)));
    }
    text.coloured(BOLD, format_args!("{:width$} {:9} {:>9} {}", "Sum", "", "", sums.show()));
    text.line("");
    for (address, seen) in relays {
        if let Err(why) = seen {
            text.coloured(RED, format_args!("! {address}: {}", plain(why)));
        }
    }
    found.sort_by_key(|(_, problem)| !problem.is_grave);
    for (address, problem) in &found {
        let colour = if problem.is_grave { RED } else { YELLOW };
        text.coloured(colour, format_args!("! {address}: {}", problem.text));
    }
    if found.is_empty() && relays.iter().all(|(_, seen)| seen.is_ok()) {
        text.coloured(GREEN, "All is well.");
    }
    text.out
}

#[cfg(test)]
mod tests {
    use super::super::seen::Seen;
    use super::*;
    use crate::metrics::snapshot::Count;

    fn relay(ids: u64, ready: bool) -> Result<Interval, String> {
        let mut now = Seen::default();
        now.process.ready = ready;
        now.process.max_connections = 100;
        now.metrics.insert("server_ids".to_owned(), Count::Value(ids));
        Ok(Interval { before: Seen::default(), now, seconds: 1.0 })
    }

    #[test]
    fn relays_are_listed_and_added_up_and_who_does_not_answer_is_named() {
        let all = [("10.0.0.1:9090", relay(3, true)), ("b:9090", relay(4, true))];
        let text = render(&all, 0, false);
        let sum = text.lines().find(|line| line.starts_with("Sum")).unwrap();
        assert_eq!(sum.split_whitespace().nth(1), Some("7"), "{text}");
        assert!(text.contains("All is well."), "{text}");
        let all = [("a:1", relay(3, false)), ("b:1", Err("no status from b:1: why".to_owned()))];
        let text = render(&all, 0, false);
        assert!(text.contains("! a:1: Not ready") && text.contains("b:1: no status"), "{text}");
        assert!(!text.contains("All is well."), "{text}");
    }
}
