//! The bar that shows how far a run is, on a terminal; and the wish to end it early.

use crate::Outcome;
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long an interrupt may go unnoticed.
const NOTICE: Duration = Duration::from_millis(100);

/// How far everything is.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    interrupted: Arc<AtomicBool>,
}

impl Progress {
    /// A bar for measurements that take this long in all.
    pub(crate) fn new(whole: Duration) -> Outcome<Self> {
        let bar = ProgressBar::new(whole.as_millis() as u64);
        let style = "{bar:30.cyan} {percent:>3} %  {elapsed_precise}  {prefix} {msg}";
        bar.set_style(ProgressStyle::with_template(style)?.progress_chars("━╸─"));
        bar.enable_steady_tick(Duration::from_millis(120));
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
        }
        Ok(Self { bar, interrupted })
    }

    /// What is being done now.
    pub(crate) fn stage(&self, what: String) {
        self.bar.set_prefix(what);
        self.bar.set_message("");
    }

    /// How far it is, and how fast it goes.
    pub(crate) fn at(&self, position: Duration, rate: f64, unit: &str) {
        self.bar.set_position(position.as_millis() as u64);
        if rate > 0.0 {
            self.bar.set_message(format!("{rate:.0} {unit}"));
        }
    }

    /// How far it is.
    pub(crate) fn position(&self) -> Duration {
        Duration::from_millis(self.bar.position())
    }

    /// Sleeps; an error if the user wants an end.
    pub(crate) fn sleep(&self, time: Duration) -> Outcome<()> {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err("interrupted".into());
            }
            std::thread::sleep(left.min(NOTICE));
        }
        Ok(())
    }

    /// Takes the bar off the screen.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
