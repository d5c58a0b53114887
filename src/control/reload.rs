//! SIGHUP: what can change without dropping anyone is read again; what cannot is named.

use super::certificates::Certificates;
use super::fleet::Fleet;
use super::log_level::LogLevel;
use crate::config::{ByteRate, Change, Config, Exit};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tracing::{error, info, warn};

/// The flag whose file may have changed.
const ALLOW: &str = "allow-server-ids";

/// The effective configuration, for whoever asks how the relay is set up.
pub(super) struct Settings(Mutex<Config>);

impl Settings {
    pub(super) fn new(config: &Config) -> Arc<Self> {
        Arc::new(Self(Mutex::new(config.clone())))
    }

    fn config(&self) -> MutexGuard<'_, Config> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As `check` shows it.
    pub(super) fn text(&self) -> String {
        self.config().report() + "\n"
    }

    /// What one server-id may send in a time.
    pub(super) fn server_id_rate(&self) -> Option<ByteRate> {
        self.config().limits.server_id_rate
    }

    /// Who is asked whether a binary may have its server-id, as it may be shown.
    pub(super) fn verifier(&self) -> Option<String> {
        self.config().verifier()
    }

    /// Hosts that tell whose relay it is: its own name, and the one of its verifier.
    pub(super) fn hosts(&self) -> Vec<String> {
        let config = self.config();
        let own = config.https.as_ref().and_then(|https| https.domain.clone());
        let verifier = config.verify_url.as_ref().and_then(|url| url.host()).map(ToOwned::to_owned);
        let is_name = |host: &String| host.bytes().any(|b| b.is_ascii_alphabetic());
        own.into_iter().chain(verifier).filter(is_name).collect()
    }
}

/// What a reload reaches.
pub(super) struct Live {
    /// As it is in effect.
    pub(super) config: Config,
    pub(super) fleet: Fleet,
    pub(super) certificates: Option<Arc<Certificates>>,
    pub(super) level: Arc<LogLevel>,
    pub(super) settings: Arc<Settings>,
}

impl Live {
    /// Takes over what `read` finds. Where it finds a fault, everything stays as it is.
    pub(super) fn reload(&mut self, read: impl Fn() -> Result<Config, Exit>) {
        if let Some(certificates) = &self.certificates {
            certificates.reload();
        }
        let newer = match read() {
            Ok(newer) => newer,
            Err(exit) => return error!(err = exit.explanation(), "reload_refused"),
        };
        let mut changes = self.config.changes(&newer);
        if self.config.allowed != newer.allowed && !changes.iter().any(|it| it.name == ALLOW) {
            // The file is the same one, and not what is in it.
            let count = |config: &Config| {
                let count = config.allowed.as_ref().map_or(0, |allowed| allowed.count());
                format!("{count} server-ids")
            };
            let (from, to) = (count(&self.config), count(&newer));
            changes.push(Change { name: ALLOW.to_owned(), from, to, is_live: true });
        }
        // Whoever reads that something has changed may count on it.
        self.take_over(&newer);
        for Change { name, from, to, is_live } in &changes {
            if *is_live {
                info!(path = name, from, to, "reloaded");
            } else {
                let err = "it takes effect after a restart";
                warn!(path = name, from, to, err, "not_reloaded");
            }
        }
        if changes.is_empty() {
            info!(err = "no setting has changed; certificate files were read again", "reloaded");
        }
        // By the old level it is still told that the level has changed.
        self.level.configure(newer.log_level);
        *self.settings.config() = self.config.clone();
    }

    fn take_over(&mut self, newer: &Config) {
        let config = &mut self.config;
        config.take_over(newer);
        self.fleet.admission.set((&*config).into());
        self.fleet.admission.allow(config.allowed.clone());
        self.fleet.admission.configure_blocks(&config.block);
        self.fleet.verifier.set(config);
        self.fleet.set_limits(config.limits);
    }
}
