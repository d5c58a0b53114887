//! The configuration as flags would say it, for `check` and for what a reload has changed.

use super::sources::Origin;
use super::{CertificateSource, Config, IpNet, LogFormat, RateLimit};
use std::fmt::Write as _;
use std::time::Duration;

/// One flag: its name, its effective value, and where that comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Without dashes.
    pub name: &'static str,
    /// As the flag would say it; empty for nothing.
    pub value: String,
    /// Where the value comes from.
    pub origin: String,
}

fn duration(ms: u64) -> String {
    humantime::format_duration(Duration::from_millis(ms)).to_string().replace(' ', "")
}

fn networks(networks: &[IpNet]) -> String {
    networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

impl Config {
    /// Every flag with its value, in the order of `--help`.
    #[must_use]
    pub fn settings(&self) -> Vec<Setting> {
        let worked_out = format!("worked out: {}", self.capacity);
        self.values()
            .into_iter()
            .map(|(name, value)| {
                let default = match name {
                    "workers" => "worked out: the CPUs that this process may use",
                    "memory-budget" => "worked out: from the memory limit",
                    "max-connections" => &worked_out,
                    "max-connections-per-address" => "worked out: from max-connections",
                    _ => "default",
                };
                let origin = self.origins.get(name).map(Origin::to_string);
                Setting { name, value, origin: origin.unwrap_or_else(|| default.to_owned()) }
            })
            .collect()
    }

    fn values(&self) -> Vec<(&'static str, String)> {
        let path = |path: Option<&std::path::PathBuf>| {
            path.map(|path| path.display().to_string()).unwrap_or_default()
        };
        let limit = |limit: Option<usize>| limit.map_or("off".to_owned(), |n| n.to_string());
        let https = self.https.as_ref();
        let (mut cert, mut key, mut cache, mut http, mut directory, mut ca) = Default::default();
        match https.map(|https| &https.certificate) {
            Some(CertificateSource::Files { cert: c, key: k }) => (cert, key) = (Some(c), Some(k)),
            Some(CertificateSource::Acme { cache: c, http_listen, directory: d, ca: a }) => {
                (cache, ca) = (Some(c), a.as_ref());
                http = http_listen.to_string();
                directory = d.clone();
            }
            None => {}
        }
        let limits = &self.limits;
        let rate = self.rate_limit.map_or("off".to_owned(), |RateLimit { burst, refill_ms }| {
            format!("{burst}/{}", duration(refill_ms))
        });
        vec![
            ("insecure-listen", self.insecure.map_or(String::new(), |l| l.addr.to_string())),
            ("domain", https.and_then(|https| https.domain.clone()).unwrap_or_default()),
            ("https-listen", https.map_or(String::new(), |https| https.listen.to_string())),
            ("http-listen", http),
            ("cert-cache", path(cache)),
            ("tls-cert", path(cert)),
            ("tls-key", path(key)),
            ("acme-directory", directory),
            ("acme-ca", path(ca)),
            ("https-proxy-protocol", https.is_some_and(|https| https.proxy_protocol).to_string()),
            ("proxy-protocol-from", networks(&self.proxy_protocol_from)),
            ("trust-x-forwarded-for", networks(&self.trust_x_forwarded_for)),
            ("metrics-listen", self.metrics_listen.map_or(String::new(), |l| l.addr.to_string())),
            ("rate-limit", rate),
            ("max-connections", self.max_connections.to_string()),
            ("max-connections-per-address", limit(self.max_connections_per_address)),
            ("workers", self.workers.to_string()),
            ("memory-budget", self.memory_budget_bytes.to_string()),
            ("max-phones", limits.max_phones.to_string()),
            ("grace", duration(limits.grace_ms)),
            ("probe-timeout", duration(limits.probe_timeout_ms)),
            ("heartbeat-interval", duration(limits.heartbeat_interval_ms)),
            ("heartbeat-timeout", duration(limits.heartbeat_timeout_ms)),
            ("header-timeout", duration(limits.header_timeout_ms)),
            ("message-timeout", duration(limits.message_timeout_ms)),
            ("write-timeout", duration(limits.write_timeout_ms)),
            ("close-timeout", duration(limits.close_timeout_ms)),
            ("drain-timeout", duration(self.drain_timeout.as_millis() as u64)),
            (
                "log-format",
                match self.log_format {
                    LogFormat::Text => "text".to_owned(),
                    LogFormat::Json => "json".to_owned(),
                },
            ),
            ("log-level", self.log_level.to_string().to_ascii_lowercase()),
            ("config", path(self.file.as_ref())),
        ]
    }

    /// What `check` prints: one line for each flag, and what the environment says beside them.
    #[must_use]
    pub fn report(&self) -> String {
        let settings = self.settings();
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
            "production mode: {}; single instance: {}; push credentials: {push}",
            switch(self.production),
            switch(self.single_instance)
        );
        out
    }

    /// The flags that `newer` says otherwise: name, old value and new value.
    #[must_use]
    pub fn changes(&self, newer: &Self) -> Vec<(&'static str, String, String)> {
        let pairs = self.values().into_iter().zip(newer.values());
        pairs
            .filter(|((_, old), (_, new))| old != new)
            .map(|((name, old), (_, new))| (name, old, new))
            .collect()
    }
}
