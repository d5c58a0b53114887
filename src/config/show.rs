//! The configuration as flags would say it, for `check` and for what a reload has changed.

use super::settings::{Row, SETTINGS};
use super::sources::Origin;
use super::units::{show_bytes, show_duration};
use super::{CertificateSource, Config, IpNet, one_line};
use hyper::Uri;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// One setting: its name, its effective value, and where that comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Without dashes.
    pub name: String,
    /// As the flag would say it; empty for nothing.
    pub value: String,
    /// Where the value comes from.
    pub origin: String,
}

/// A setting that two configurations have differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its name, without dashes.
    pub name: String,
    /// The older value, as the flag would say it.
    pub from: String,
    /// The newer value.
    pub to: String,
    /// A reload takes it over; anything else needs a restart.
    pub is_live: bool,
}

/// One of some words, as the flag has it.
pub(super) fn choice(value: impl clap::ValueEnum) -> String {
    value.to_possible_value().map(|word| word.get_name().to_owned()).unwrap_or_default()
}

pub(super) fn duration(duration: Duration) -> String {
    show_duration(duration.as_millis() as u64)
}

pub(super) fn list(networks: &[IpNet]) -> String {
    networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// A limit that can be switched off.
pub(super) fn or_off<T>(limit: Option<T>, show: impl Fn(T) -> String) -> String {
    limit.map_or("off".to_owned(), show)
}

/// A URL without its query, which may hold a secret.
pub(super) fn url(url: &Uri) -> String {
    let shown = url.to_string();
    match shown.split_once('?') {
        Some((public, _)) => format!("{public}?[hidden]"),
        None => shown,
    }
}

pub(super) fn path(path: &Path) -> String {
    path.display().to_string()
}

/// An address as the flag would say it: all interfaces have no host.
pub(super) fn place(address: SocketAddr) -> String {
    match address.ip() {
        IpAddr::V6(ip) if ip.is_unspecified() => format!(":{}", address.port()),
        _ => address.to_string(),
    }
}

impl Config {
    /// Every setting with its value, in the order of `--help`.
    #[must_use]
    pub fn settings(&self) -> Vec<Setting> {
        let setting = |row: &Row| {
            let name = row.name();
            let explain = || row.explain_default.map_or("default".to_owned(), |of| of(self));
            let origin = self.origins.get(&name).map_or_else(explain, Origin::to_string);
            Setting { value: (row.show)(self), name, origin }
        };
        SETTINGS.iter().map(setting).collect()
    }

    /// Where the certificate comes from, if HTTPS is served.
    pub(super) fn certificate(&self) -> Option<&CertificateSource> {
        self.https.as_ref().map(|https| &https.certificate)
    }

    pub(super) fn explain_https_listen(&self) -> String {
        match self.https {
            None => "default; served with --domain, or --tls-cert and --tls-key".to_owned(),
            Some(_) => "default".to_owned(),
        }
    }

    pub(super) fn explain_control_socket(&self) -> String {
        match self.control_socket {
            None => "default".to_owned(),
            Some(_) => "computed: in RUNTIME_DIRECTORY".to_owned(),
        }
    }

    pub(super) fn explain_workers(&self) -> String {
        "computed: the CPUs that this process may use".to_owned()
    }

    pub(super) fn explain_max_connections(&self) -> String {
        format!("computed: {}", self.capacity)
    }

    /// How the default of the budget came about.
    pub(super) fn explain_budget(&self) -> String {
        let limit = show_bytes(self.memory_limit_bytes);
        if self.memory_budget_bytes == self.memory_limit_bytes / 4 {
            format!("computed: a quarter of {limit}")
        } else {
            format!("computed: what {} workers need of {limit}", self.workers)
        }
    }

    /// How the default for one address came about.
    pub(super) fn explain_share(&self) -> String {
        if self.max_connections_per_address == Some(self.max_connections / 4) {
            "computed: a quarter of max-connections".to_owned()
        } else {
            "computed: more than a quarter of max-connections, which would be too few".to_owned()
        }
    }

    /// What `check` prints: one line for each flag, and what the environment says beside them.
    #[must_use]
    pub fn report(&self) -> String {
        // A value may hold anything, and is not to pass for another line.
        let settings = self.settings().into_iter();
        let settings: Vec<Setting> =
            settings.map(|s| Setting { value: one_line(&s.value), ..s }).collect();
        let name_width = settings.iter().map(|s| s.name.len()).max().unwrap_or(0);
        let value_width = settings.iter().map(|s| s.value.chars().count()).max().unwrap_or(0);
        let mut out = String::new();
        let switch = |on: bool| if on { "on" } else { "off" };
        for Setting { name, value, origin } in settings {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{name:name_width$} = {value:value_width$}  ({origin})");
        }
        let push = if self.fcm_credentials.is_some() { "set, not shown" } else { "not set" };
        let _ = write!(
            out,
            "production mode: {}; single instance: {}; one of many: {}; push credentials: {push}; \
             server-ids that are served: {}",
            switch(self.production),
            switch(self.single_instance),
            switch(self.one_of_many),
            self.allowed.as_ref().map_or("all".to_owned(), |allowed| allowed.count().to_string())
        );
        out
    }

    /// The settings that `newer` says otherwise.
    #[must_use]
    pub fn changes(&self, newer: &Self) -> Vec<Change> {
        let change = |row: &Row| {
            let (from, to) = ((row.show)(self), (row.show)(newer));
            (from != to).then(|| Change {
                name: row.name(),
                from,
                to,
                is_live: row.take_over.is_some(),
            })
        };
        SETTINGS.iter().filter_map(change).collect()
    }

    /// Who is asked whether a binary may have its server-id, if somebody is: as it may be shown.
    #[must_use]
    pub fn verifier(&self) -> Option<String> {
        self.verify_url.as_ref().map(url)
    }

    /// Takes over from `newer` what needs no restart.
    pub fn take_over(&mut self, newer: &Self) {
        for take_over in SETTINGS.iter().filter_map(|row| row.take_over) {
            take_over(self, newer);
        }
        self.limits.verify.is_on = self.verify_url.is_some();
    }
}
