//! Structured logs: one event a line on stderr, with the allowed keys only (PROTOCOL.md,
//! chapter 7).
//!
//! - `line`: what a line may say, and how it is written
//! - `subject`: whom an event is about
//! - `thinning`, [`repeats`]: which lines are written where peers provoke too many
//! - `queue`: the way to stderr, for which no worker ever waits
//! - `recent`: the last warnings, for the status page

mod line;
mod queue;
mod recent;
mod subject;
mod thinning;

pub mod repeats;

pub use line::ALLOWED_KEYS;
pub use recent::{Warning, recent_warnings};

use crate::config::LogFormat;
use line::{Line, level_name};
use queue::Queue;
use std::cell::Cell;
use std::fmt;
use std::net::SocketAddr;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use subject::Subject;
use thinning::{Omitted, Thinning};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::reload;

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
    static WORKER: Cell<Option<usize>> = const { Cell::new(None) };
}

/// From now on, lines of this thread name the worker: `core=number`.
pub fn set_worker(number: usize) {
    WORKER.set(Some(number));
}

/// Keeps the log going; when it is dropped, what waits is written, unless stderr is stuck.
pub struct Guard(Log, LevelSwitch);

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

    /// The log, for whoever looks after it.
    #[must_use]
    pub fn log(&self) -> Log {
        self.0.clone()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.tell_all(true);
        self.0.0.queue.flush(PATIENCE);
    }
}

/// Starts the log of the process. Only the first call has an effect.
#[must_use]
pub fn init(format: LogFormat, level: Level) -> Guard {
    let log = Log::new(format, Queue::to_stderr());
    let (filter, handle) = reload::Layer::new(LevelFilter::from_level(level));
    let subscriber = tracing_subscriber::registry().with(filter).with(log.clone());
    // Fails only where a log was started before.
    let _ = tracing::subscriber::set_global_default(subscriber);
    let switch = LevelSwitch(Arc::new(move |level| {
        // Fails only where the log is gone.
        let _ = handle.reload(LevelFilter::from_level(level));
    }));
    Guard(log, switch)
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

/// The log of the process.
#[derive(Clone)]
pub struct Log(Arc<Parts>);

struct Parts {
    format: LogFormat,
    epoch: Instant,
    thinning: Mutex<Thinning>,
    queue: Arc<Queue>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

impl Log {
    fn new(format: LogFormat, queue: Arc<Queue>) -> Self {
        let thinning = Mutex::new(Thinning::new(rand::random()));
        Self(Arc::new(Parts { format, epoch: Instant::now(), thinning, queue }))
    }

    /// Lines that were lost since the start, because stderr could not take them in time.
    #[must_use]
    pub fn lost_lines(&self) -> u64 {
        self.0.queue.dropped()
    }

    /// Says how many lines were left out for being like others, for each kind and peer of which it
    /// was not said for a minute. To be called every few seconds.
    pub fn tell_omitted(&self) {
        self.tell_all(false);
    }

    fn tell_all(&self, whatever_its_age: bool) {
        let now_ms = self.now_ms();
        let told = self.thinning().take_omitted(now_ms, whatever_its_age);
        for Omitted { level, event, name, remote, cause, count } in told {
            self.write(level, |line| {
                line.set_event(&event);
                if let Some((key, value)) = &name {
                    line.push(key, value);
                }
                if let Some(remote) = &remote {
                    line.push("remote", remote);
                }
                line.push_omitted(&cause, count);
            });
        }
    }

    /// Writes a line with the fields that `record` puts into one.
    fn write(&self, level: Level, record: impl Fn(&mut Line)) {
        let format = self.0.format;
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let fields_in = |format| {
            let mut fields = Line::new(format);
            record(&mut fields);
            if let Some(worker) = WORKER.get() {
                fields.push_bare("core", worker);
            }
            fields
        };
        let fields = fields_in(format);
        let mut line = Line::new(format);
        line.push("time", &time);
        line.push("level", level_name(level));
        line.push("event", fields.event());
        line.push_fields(&fields);
        self.0.queue.push(level, line.finish().as_bytes());
        if level <= Level::WARN {
            recent::remember(time, level, &fields_in(LogFormat::Text));
        }
    }

    fn now_ms(&self) -> u64 {
        self.0.epoch.elapsed().as_millis() as u64
    }

    fn thinning(&self) -> MutexGuard<'_, Thinning> {
        self.0.thinning.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let site = event.metadata();
        let record = |line: &mut Line| event.record(line);
        // What is wrong with the relay itself is always said.
        if *site.level() != Level::ERROR {
            let subject = Subject::of(event);
            let name = || {
                let mut fields = Line::new(LogFormat::Text);
                record(&mut fields);
                fields.event().to_owned()
            };
            if !self.thinning().admit(self.now_ms(), site, &subject, name) {
                return;
            }
        }
        self.write(*site.level(), record);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn log(format: LogFormat) -> Log {
        Log::new(format, Arc::default())
    }

    fn with_log(log: &Log, does: impl FnOnce()) {
        let subscriber = tracing_subscriber::registry().with(log.clone());
        tracing::subscriber::with_default(subscriber, does);
    }

    /// The lines that `does` writes.
    pub(crate) fn logged(format: LogFormat, does: impl FnOnce()) -> String {
        let log = log(format);
        with_log(&log, does);
        log.0.queue.waiting()
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
