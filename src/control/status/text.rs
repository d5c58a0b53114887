//! `pyrycode-relay status`: the figures of the page as text.

use super::look::watch;
use super::seen::{Interval, Seen};
use super::verdict::problems;
use std::fmt::{Display, Write as _};
use std::io::{IsTerminal as _, stdout};
use std::net::SocketAddr;
use std::time::SystemTime;

const BAR: usize = 20;
const SHOWN_WARNINGS: usize = 10;

/// The state of the relay whose metrics listener is at `addr`, as text for a terminal; it takes a
/// second, because rates do.
///
/// # Errors
///
/// One line that says why there is nothing to show, and what to do.
pub async fn status(addr: SocketAddr) -> Result<String, String> {
    let over = watch(&addr.to_string()).await?;
    Ok(render(&over, addr, now_s(), shows_colours()))
}

pub(super) fn now_s() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_secs().try_into().unwrap_or(i64::MAX)
}

/// Standard output is a terminal, and nobody wants it without (no-color.org).
pub(super) fn shows_colours() -> bool {
    stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Text under way.
pub(super) struct Text {
    pub(super) out: String,
    pub(super) colour: bool,
}

impl Text {
    pub(super) fn line(&mut self, line: impl Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.out, "{line}");
    }

    /// A line in one of the terminal's colours (ECMA-48, SGR), if it is a terminal.
    pub(super) fn coloured(&mut self, colour: u8, line: impl Display) {
        if self.colour {
            self.line(format_args!("\x1b[1;{colour}m{line}\x1b[0m"));
        } else {
            self.line(line);
        }
    }

    fn meter(&mut self, name: &str, used: u64, of: u64, show: fn(u64) -> String) {
        let share = used as f64 / of.max(1) as f64;
        let of = format!("{} of {}", show(used), show(of));
        self.line(format_args!("{name:<13}{of:<24} {} {:>5}", bar(share), percent(share)));
    }
}

pub(super) const RED: u8 = 31;
pub(super) const GREEN: u8 = 32;
pub(super) const YELLOW: u8 = 33;
pub(super) const BOLD: u8 = 39;

fn render(over: &Interval, addr: SocketAddr, now_s: i64, colour: bool) -> String {
    let mut text = Text { out: overview(over, &addr.to_string(), now_s, colour), colour };
    let groups: [(&str, &[&str]); 2] = [
        ("Ended", &["closes_total", "connections_lost_total"]),
        (
            "Turned away",
            &[
                "ws_upgrade_attempts_total",
                "connections_refused_total",
                "handshake_failures_total",
                "malformed_messages_total",
            ],
        ),
    ];
    for (title, metrics) in groups {
        let rows = metrics.iter().flat_map(|metric| series(over, metric));
        table(&mut text, title, rows.filter(|row| !row.name.ends_with("accept")).collect());
    }
    table(&mut text, "Wake requests", series(over, "push_wakes_total").collect());
    warnings(&mut text, &over.now);
    text.out
}

/// The figures that change from moment to moment, and what is wrong with the relay at `place`.
pub(in crate::control) fn overview(
    over: &Interval,
    place: &str,
    now_s: i64,
    colour: bool,
) -> String {
    let mut text = Text { out: String::new(), colour };
    let process = &over.now.process;
    let (version, up) = (plain(&process.version), duration(process.uptime_seconds));
    text.coloured(BOLD, format_args!("pyrycode-relay {version} at {place}, up {up}"));
    if let Some(last) = process.upgrades.last {
        let ago = duration((now_s as u64).saturating_sub(last.at_seconds));
        let (moved, pause) = (count(last.connections), last.pause_ms);
        text.line(format_args!(
            "Took over {moved} connections from another process {ago} ago, in {pause:.0} ms"
        ));
    }
    let problems = problems(over, now_s);
    for problem in &problems {
        let colour = if problem.is_grave { RED } else { YELLOW };
        text.coloured(colour, format_args!("! {}", problem.text));
    }
    if problems.is_empty() {
        text.coloured(GREEN, "All is well.");
    }
    text.line("");
    figures(&mut text, over, now_s);
    workers(&mut text, over);
    text.out
}

fn figures(text: &mut Text, over: &Interval, now_s: i64) {
    let (seen, process) = (&over.now, &over.now.process);
    text.meter("Connections", seen.websockets(), process.max_connections, count);
    let states = ["binary", "phone", "newcomer", "moving", "head", "closing"]
        .map(|state| format!("{state} {}", count(seen.value("connections", &[state]))));
    text.line(format_args!("{:<13}{}", "", states.join("  ")));
    text.meter("Memory", seen.charged_bytes(), process.memory_budget_bytes, bytes);
    text.line(format_args!("{:<13}resident {}", "", bytes(process.resident_bytes)));
    text.meter("Descriptors", process.open_descriptors, process.max_descriptors, count);
    let directions = [("phone_to_binary", "to binaries"), ("binary_to_phone", "to phones")];
    let messages = directions.map(|(direction, name)| {
        let per_second =
            |metric: &str| over.per_second(|seen| seen.value(metric, &[direction])).round() as u64;
        let (messages, size) =
            (per_second("frames_forwarded_total"), per_second("forwarded_bytes_total"));
        format!("{name} {}/s ({}/s)", count(messages), bytes(size))
    });
    text.line(format_args!("{:<13}{}", "Messages", messages.join("  ")));
    let delays = over.delays();
    let percentiles = [(0.5, "p50"), (0.9, "p90"), (0.99, "p99")].map(|(share, name)| {
        format!("{name} {}", delays.percentile(share).map_or("-".to_owned(), micros))
    });
    text.line(format_args!("{:<13}{}", "Delay", percentiles.join("  ")));
    if let Some(expires_at) = process.certificate_expires_at_seconds {
        let days = (i64::try_from(expires_at).unwrap_or(i64::MAX) - now_s).div_euclid(86400);
        text.line(format_args!("{:<13}expires in {days} days", "Certificate"));
    }
    if !process.blocked.is_empty() {
        let (networks, refused) = (
            count(process.blocked.len() as u64),
            count(seen.value("connections_refused_total", &["blocked"])),
        );
        text.line(format_args!("{:<13}{networks} networks, {refused} refused", "Blocked"));
    }
    if let Some(allowed) = process.allowed_server_ids {
        let refused = seen.value("connections_refused_total", &["server_id_not_allowed"]);
        let (allowed, refused) = (count(allowed), count(refused));
        text.line(format_args!("{:<13}{allowed} served, {refused} requests refused", "Server-ids"));
    }
    if process.log_lines_lost > 0 {
        let lost = count(process.log_lines_lost);
        text.line(format_args!("{:<13}{lost} lines lost since the start", "Log"));
    }
}

fn workers(text: &mut Text, over: &Interval) {
    text.line("");
    let (load, connections) = ("load", "connections");
    text.coloured(
        BOLD,
        format_args!("{:<13}{load:<26} {connections:>12} {:>12}", "Core", "messages/s"),
    );
    for worker in &over.now.workers {
        let load = over.load(worker);
        let forwarded = |seen: &Seen| {
            let mut all = seen.workers.iter();
            all.find(|other| other.core == worker.core)
                .map_or(0, |worker| worker.messages_forwarded)
        };
        text.line(format_args!(
            "{:<13}{} {:>5} {:>12} {:>12}",
            worker.core,
            bar(load),
            percent(load),
            count(worker.connections),
            count(over.per_second(forwarded).round() as u64)
        ));
    }
}

struct Row {
    name: String,
    per_second: f64,
    total: u64,
}

/// The series of a metric, named by the values of their labels.
fn series(over: &Interval, metric: &str) -> impl Iterator<Item = Row> {
    over.now.samples(metric).into_iter().map(move |(path, total)| Row {
        name: plain(&path.join(" ")),
        per_second: over.per_second(|seen| seen.value(metric, &path)),
        total,
    })
}

/// What has ever happened, the most frequent first.
fn table(text: &mut Text, title: &str, mut rows: Vec<Row>) {
    rows.retain(|row| row.total > 0);
    if rows.is_empty() {
        return;
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.total));
    text.line("");
    text.coloured(BOLD, format_args!("{title:<40}{:>12} {:>12}", "per second", "total"));
    for Row { name, per_second, total } in rows {
        text.line(format_args!("{name:<40}{per_second:>12.1} {:>12}", count(total)));
    }
}

fn warnings(text: &mut Text, seen: &Seen) {
    text.line("");
    text.coloured(BOLD, "Last warnings");
    for warning in seen.warnings.iter().rev().take(SHOWN_WARNINGS) {
        let fields = [&warning.time, &warning.level, &warning.event, &warning.text];
        let [time, level, event, what] = fields.map(|field| plain(field));
        text.line(format_args!("{time} {level} {event} {what}"));
    }
    if seen.warnings.is_empty() {
        text.line("none");
    }
}

/// Without what would steer a terminal.
pub(super) fn plain(value: &str) -> String {
    value.chars().filter(|c| !c.is_control()).collect()
}

fn bar(share: f64) -> String {
    let full = (share.clamp(0.0, 1.0) * BAR as f64).round() as usize;
    format!("[{}{}]", "#".repeat(full), ".".repeat(BAR.saturating_sub(full)))
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// With thin groups of three digits, as no locale has to be guessed for them.
pub(super) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

pub(in crate::control) fn bytes(value: u64) -> String {
    let mut scaled = value as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if scaled < 1000.0 {
            let digits = usize::from(scaled < 10.0 && unit != "B");
            return format!("{scaled:.digits$} {unit}");
        }
        scaled /= 1024.0;
    }
    format!("{scaled:.1} TiB")
}

pub(super) fn micros(value: f64) -> String {
    match value {
        ..1_000.0 => format!("{value:.0} µs"),
        ..1_000_000.0 => format!("{:.1} ms", value / 1e3),
        _ => "over 1 s".to_owned(),
    }
}

pub(super) fn duration(seconds: u64) -> String {
    let (days, hours) = (seconds / 86400, seconds / 3600 % 24);
    let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {seconds} s"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}
