//! The least severe level that is logged: the configured one, or for a while another one that the
//! operator wants.

use crate::telemetry::LevelSwitch;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::AbortHandle;
use tracing::{Level, info};

/// Which level is logged.
pub(super) struct LogLevel {
    switch: LevelSwitch,
    state: Mutex<State>,
}

struct State {
    configured: Level,
    /// What goes back to that.
    going_back: Option<AbortHandle>,
}

impl LogLevel {
    pub(super) fn new(switch: LevelSwitch, configured: Level) -> Arc<Self> {
        let state = Mutex::new(State { configured, going_back: None });
        Arc::new(Self { switch, state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This is the configured one from now on, and the one that is logged.
    pub(super) fn configure(&self, level: Level) {
        let mut state = self.state();
        state.configured = level;
        if let Some(going_back) = state.going_back.take() {
            going_back.abort();
        }
        self.switch.set(level);
    }

    /// Logs this one, for so long or until the next [`LogLevel::configure`]; the configured one.
    pub(super) fn set(self: &Arc<Self>, level: Level, time: Option<Duration>) -> Level {
        let mut state = self.state();
        if let Some(going_back) = state.going_back.take() {
            going_back.abort();
        }
        self.switch.set(level);
        state.going_back = time.map(|time| {
            let own = self.clone();
            let later = async move {
                tokio::time::sleep(time).await;
                own.go_back();
            };
            tokio::spawn(later).abort_handle()
        });
        state.configured
    }

    fn go_back(&self) {
        let mut state = self.state();
        state.going_back = None;
        self.switch.set(state.configured);
        info!(to = %state.configured, "log_level_back");
    }
}
