//! Structured logs: one event a line on stderr, with the allowed keys only (PROTOCOL.md,
//! chapter 7). A peer's text is quoted and escaped, so that it can forge neither a line nor a key.
//!
//! Workers never wait for the log: lines go through a bounded queue to a thread of its own, and
//! where that cannot keep up they are dropped and counted. A flood of lines that peers provoke
//! is thinned at its source, so that it fills neither a disk nor a core; errors always pass.

use crate::config::LogFormat;
use serde::Serialize;
use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;

/// The keys that a line may carry beside `time`, `level`, `event` and `core`.
pub const ALLOWED_KEYS: [&str; 14] = [
    "server_id",
    "conn_id",
    "binary_conn_id",
    "device_name",
    "remote",
    "binary_version",
    "err",
    "path",
    "from",
    "to",
    "close_code",
    "token_fp",
    "fcm_message_id",
    "duration",
];

/// Values are cut to this length.
const MAX_VALUE_BYTES: usize = 512;
/// Lines that may wait for stderr.
const MAX_WAITING_LINES: usize = 8192;
/// Lines are written together up to this size.
const MAX_WRITE_BYTES: usize = 64 * 1024;
/// How long the end of the process waits for an output stream that takes nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// A peer's address as it is logged: IPv4-mapped IPv6 is shown as IPv4, and a port of 0, which means
/// that none is known, is not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Remote(pub SocketAddr);

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.ip().to_canonical(), self.0.port()) {
            (ip, 0) => ip.fmt(f),
            (ip, port) => SocketAddr::new(ip, port).fmt(f),
        }
    }
}

thread_local! {
    static CORE: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Lines of this thread carry `core=number` from now on.
pub fn set_core(number: usize) {
    CORE.set(Some(number));
}

/// Lines that one thread may write at once, and per second in the long run.
const BURST_LINES: f64 = 10_000.0;
const LINES_PER_SECOND: f64 = 500.0;

/// Lines that were not written because their thread wrote too many.
static THINNED_LINES: AtomicU64 = AtomicU64::new(0);

/// What a thread may still write.
#[derive(Clone, Copy)]
struct Allowance {
    lines: f64,
    at: Instant,
}

thread_local! {
    static ALLOWANCE: Cell<Option<Allowance>> = const { Cell::new(None) };
}

/// Takes one line off this thread's allowance, if there is one left.
fn may_write(now: Instant) -> bool {
    let Allowance { lines, at } =
        ALLOWANCE.get().unwrap_or(Allowance { lines: BURST_LINES, at: now });
    let regained = now.saturating_duration_since(at).as_secs_f64() * LINES_PER_SECOND;
    let lines = (lines + regained).min(BURST_LINES);
    let may = lines >= 1.0;
    ALLOWANCE.set(Some(Allowance { lines: if may { lines - 1.0 } else { lines }, at: now }));
    may
}

/// Warnings that are kept to be shown.
const RECENT_WARNINGS: usize = 64;
/// Of these, warnings of one event: a flood of one kind hides no other.
const RECENT_OF_ONE_EVENT: usize = 16;
/// Their text is cut to this length.
const RECENT_TEXT_BYTES: usize = 512;

static RECENT: Mutex<VecDeque<Arc<Warning>>> = Mutex::new(VecDeque::new());

/// A line of level `warn` or `error`, as it is shown beside the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// When, as the log has it: RFC 3339, UTC, with milliseconds.
    pub time: String,
    /// `warn` or `error`.
    pub level: &'static str,
    /// The event's name.
    pub event: String,
    /// Its other keys and their values: one line of printable ASCII, as the text log has it. Values
    /// may come from peers.
    pub text: String,
}

/// The most recent warnings and errors, the oldest first.
#[must_use]
pub fn recent_warnings() -> Vec<Arc<Warning>> {
    RECENT.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

fn remember(time: String, event: &Event<'_>) {
    let mut fields = Line { format: LogFormat::Text, out: String::new(), event: String::new() };
    event.record(&mut fields);
    if let Some(core) = CORE.get() {
        fields.push_bare("core", &core.to_string());
    }
    let text = fields.out.trim_start();
    let text = text.get(..text.floor_char_boundary(RECENT_TEXT_BYTES)).unwrap_or_default();
    let level = level_name(*event.metadata().level());
    let warning = Warning { time, level, event: fields.event, text: text.to_owned() };
    keep(&mut RECENT.lock().unwrap_or_else(PoisonError::into_inner), warning);
}

fn keep(recent: &mut VecDeque<Arc<Warning>>, warning: Warning) {
    let mut alike = recent.iter().enumerate().filter(|(_, other)| other.event == warning.event);
    let oldest_alike = alike.next().map_or(0, |(at, _)| at);
    if alike.count() + 1 >= RECENT_OF_ONE_EVENT {
        recent.remove(oldest_alike);
    } else if recent.len() >= RECENT_WARNINGS {
        recent.pop_front();
    }
    recent.push_back(Arc::new(warning));
}

/// Keeps the log going; when it is dropped, what waits is written, unless stderr is stuck.
pub struct Guard(Queue, LevelSwitch);

/// Changes the least severe level that is logged.
#[derive(Clone)]
pub struct LevelSwitch(Arc<dyn Fn(Level) + Send + Sync>);

impl LevelSwitch {
    /// To this one, from now on.
    pub fn set(&self, level: Level) {
        (self.0)(level);
    }
}

impl Guard {
    /// What changes the level.
    #[must_use]
    pub fn level(&self) -> LevelSwitch {
        self.1.clone()
    }

    /// How many lines were never written.
    #[must_use]
    pub fn lost(&self) -> LostLines {
        LostLines(self.0.dropped.clone())
    }
}

/// Lines that were never written, since the start: stderr could not keep up, or a thread wrote too
/// many.
#[derive(Debug, Clone)]
pub struct LostLines(Arc<AtomicU64>);

impl LostLines {
    /// How many.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed) + THINNED_LINES.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let entries = self.0.entries.clone();
        with_patience(move || {
            let (done, written) = sync_channel(1);
            // Both fail only where the log's thread is gone.
            let _ = entries.send(Entry::Flush(done));
            let _ = written.recv();
        });
    }
}

/// Starts the log of the process. Only the first call has an effect.
#[must_use]
pub fn init(format: LogFormat, level: Level) -> Guard {
    let (entries, waiting) = sync_channel(MAX_WAITING_LINES);
    let queue = Queue { entries, dropped: Arc::default() };
    // Where no thread can be had, all lines count as dropped.
    let _ = thread::Builder::new().name("log".to_owned()).spawn(move || write_all(&waiting));
    let writer = queue.clone();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(move || writer.clone())
        .event_format(Lines(format));
    let (filter, handle) = reload::Layer::new(LevelFilter::from_level(level));
    let subscriber = tracing_subscriber::registry().with(filter).with(lines);
    // Fails only where a log was started before.
    let _ = tracing::subscriber::set_global_default(subscriber);
    let switch = LevelSwitch(Arc::new(move |level| {
        // Fails only where the log is gone.
        let _ = handle.reload(LevelFilter::from_level(level));
    }));
    Guard(queue, switch)
}

/// Does what may wait for a stuck output stream, and gives up waiting for it after a second.
pub fn with_patience(does: impl FnOnce() + Send + 'static) {
    let (done, is_done) = sync_channel(1);
    let spawned = thread::Builder::new().spawn(move || {
        does();
        let _ = done.send(());
    });
    if spawned.is_ok() {
        let _ = is_done.recv_timeout(PATIENCE);
    }
}

enum Entry {
    Line(Vec<u8>),
    /// Everything before this is to be written, then the sender is to be told.
    Flush(SyncSender<()>),
}

/// Lines on their way to stderr.
#[derive(Clone)]
struct Queue {
    entries: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

impl Write for Queue {
    /// Takes a whole line, and never waits.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.entries.try_send(Entry::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log's own thread. Lines that wait together are written together. What stderr refuses is
/// lost: there is nowhere to say so.
fn write_all(entries: &Receiver<Entry>) {
    let mut lines = Vec::new();
    while let Ok(first) = entries.recv() {
        let mut next = Some(first);
        while let Some(entry) = next {
            match entry {
                Entry::Line(line) => lines.extend_from_slice(&line),
                Entry::Flush(done) => {
                    write_out(&mut lines);
                    let _ = done.send(());
                }
            }
            next = if lines.len() < MAX_WRITE_BYTES { entries.try_recv().ok() } else { None };
        }
        write_out(&mut lines);
    }
}

fn write_out(lines: &mut Vec<u8>) {
    let _ = io::stderr().write_all(lines);
    lines.clear();
}

/// Writes an event as one line.
struct Lines(LogFormat);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if *event.metadata().level() != Level::ERROR && !may_write(Instant::now()) {
            THINNED_LINES.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let mut line =
            Line { format: self.0, out: String::with_capacity(256), event: String::new() };
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let mut fields = Line { format: self.0, out: String::new(), event: String::new() };
        event.record(&mut fields);
        line.push("time", &time);
        line.push("level", level_name(*event.metadata().level()));
        line.push("event", &fields.event);
        line.out.push_str(&fields.out);
        if let Some(core) = CORE.get() {
            line.push_bare("core", &core.to_string());
        }
        if *event.metadata().level() <= Level::WARN {
            remember(time, event);
        }
        match self.0 {
            LogFormat::Text => writeln!(writer, "{}", line.out.trim_start()),
            LogFormat::Json => writeln!(writer, "{{{}}}", line.out.trim_start_matches(',')),
        }
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// A line under way.
struct Line {
    format: LogFormat,
    out: String,
    event: String,
}

impl Line {
    fn push(&mut self, key: &str, value: &str) {
        match self.format {
            LogFormat::Text if is_plain(value) => self.push_bare(key, value),
            LogFormat::Text => {
                let _ = write!(self.out, " {key}=");
                push_quoted(&mut self.out, value);
            }
            LogFormat::Json => {
                let _ = write!(self.out, ",\"{key}\":");
                push_quoted(&mut self.out, value);
            }
        }
    }

    /// For values that need no quotes.
    fn push_bare(&mut self, key: &str, value: &str) {
        let _ = match self.format {
            LogFormat::Text => write!(self.out, " {key}={value}"),
            LogFormat::Json => write!(self.out, ",\"{key}\":{value}"),
        };
    }

    /// The field's key, if it may be logged.
    fn key(&self, field: &Field) -> Option<&'static str> {
        ALLOWED_KEYS.into_iter().find(|key| *key == field.name())
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.event = value.to_owned();
        } else if let Some(key) = self.key(field) {
            self.push(key, value);
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if let Some(key) = self.key(field) {
            self.push_bare(key, &value.to_string());
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        if let Some(key) = self.key(field) {
            self.push_bare(key, &value.to_string());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// Whether a value can stand without quotes in logfmt.
fn is_plain(value: &str) -> bool {
    !value.is_empty()
        && value.len() <= MAX_VALUE_BYTES
        && value.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'=' | b'\\'))
}

/// A JSON string of printable ASCII: everything else is escaped, line and text direction
/// controls with the rest.
fn push_quoted(out: &mut String, value: &str) {
    out.push('"');
    let mut kept = value.len().min(MAX_VALUE_BYTES);
    while !value.is_char_boundary(kept) {
        kept -= 1;
    }
    for c in value.get(..kept).unwrap_or_default().chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            ' '..='~' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    if kept < value.len() {
        out.push_str("...");
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, log: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .event_format(Lines(format))
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    const HOSTILE: [&str; 8] = [
        "plain",
        "two words",
        "a\nlevel=error event=forged",
        "\" event=\"forged",
        "\x1b[31mred\x07",
        "\u{2028}\u{202e}evil",
        "back\\slash=",
        "",
    ];

    #[test]
    fn a_hostile_value_stays_one_value_of_one_line() {
        for value in HOSTILE {
            let text = logged(LogFormat::Text, || tracing::info!(device_name = value, "event"));
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(text.bytes().all(|b| b == b'\n' || (b' '..=b'~').contains(&b)), "{text}");
            let json = logged(LogFormat::Json, || tracing::info!(device_name = value, "event"));
            assert_eq!(json.lines().count(), 1, "{json}");
            let object: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(object["device_name"], value);
            assert_eq!(object["event"], "event");
        }
    }

    #[test]
    fn only_allowed_keys_are_written() {
        let line = logged(LogFormat::Json, || {
            tracing::warn!(token = "secret", payload = 5, close_code = 1000, "e");
        });
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        let keys: Vec<&String> = object.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["close_code", "event", "level", "time"]);
        assert_eq!(object["close_code"], 1000);
    }

    #[test]
    fn a_flood_is_thinned_but_errors_pass() {
        let text = logged(LogFormat::Text, || {
            for _ in 0..BURST_LINES as usize + 1000 {
                tracing::warn!("flood");
            }
            tracing::error!("fire");
        });
        let lines = text.lines().count();
        assert!((BURST_LINES as usize..BURST_LINES as usize + 1001).contains(&lines), "{lines}");
        assert!(text.contains("event=fire"));
        let start = Instant::now();
        while may_write(start) {}
        assert!(may_write(start + Duration::from_secs(1)), "it is regained");
    }

    #[test]
    fn warnings_are_kept_whatever_the_format_and_without_what_is_not_logged() {
        logged(LogFormat::Json, || {
            tracing::info!(err = "no warning", "kept_info");
            tracing::warn!(device_name = "a\nlevel=error", token = "secret", "kept_warning");
            tracing::error!(err = "é".repeat(4000), "kept_error");
        });
        let recent = recent_warnings();
        let of = |event: &str| recent.iter().find(|warning| warning.event == event).cloned();
        assert_eq!(of("kept_info"), None);
        let warning = of("kept_warning").unwrap();
        assert_eq!(warning.level, "warn");
        assert_eq!(warning.text, r#"device_name="a\u000alevel=error""#);
        assert!(humantime::parse_rfc3339(&warning.time).is_ok(), "{}", warning.time);
        assert_eq!(of("kept_error").unwrap().text.len(), RECENT_TEXT_BYTES);
    }

    #[test]
    fn a_flood_of_one_warning_hides_no_other() {
        let warning = |event: &str, text: &str| Warning {
            time: String::new(),
            level: "warn",
            event: event.to_owned(),
            text: text.to_owned(),
        };
        let mut recent = VecDeque::new();
        keep(&mut recent, warning("rare", ""));
        for number in 0..1000 {
            keep(&mut recent, warning("flood", &number.to_string()));
        }
        assert_eq!(recent.len(), 1 + RECENT_OF_ONE_EVENT);
        assert_eq!(recent.front().unwrap().event, "rare");
        assert_eq!(recent.back().unwrap().text, "999");
        for number in 0..1000 {
            keep(&mut recent, warning(&number.to_string(), ""));
        }
        assert_eq!(recent.len(), RECENT_WARNINGS);
        assert_eq!(recent.front().unwrap().event, "936");
    }

    #[test]
    fn long_values_are_cut() {
        let line = logged(LogFormat::Text, || tracing::info!(err = "é".repeat(4000), "e"));
        assert!(line.len() < 8 * MAX_VALUE_BYTES, "{}", line.len());
    }

    #[test]
    fn mapped_addresses_are_shown_as_ipv4() {
        let mapped: SocketAddr = "[::ffff:10.1.2.3]:80".parse().unwrap();
        assert_eq!(Remote(mapped).to_string(), "10.1.2.3:80");
    }

    #[test]
    fn a_port_that_is_not_known_is_not_made_up() {
        for (address, shown) in [
            ("192.0.2.1:0", "192.0.2.1"),
            ("[::ffff:10.1.2.3]:0", "10.1.2.3"),
            ("[2001:db8::1]:0", "2001:db8::1"),
            ("[2001:db8::1]:80", "[2001:db8::1]:80"),
        ] {
            assert_eq!(Remote(address.parse().unwrap()).to_string(), shown);
        }
    }
}
