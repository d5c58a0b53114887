//! The configuration as flags would say it, for `check` and for what a reload has changed.

use super::sources::Origin;
use super::units::{show_byte_rate, show_bytes, show_duration, show_exact_bytes, show_rate};
use super::{
    CertificateSource, Config, DEFAULT_HTTPS_LISTEN, IpNet, LogFormat, OnFailure, TokenHeader,
    one_line,
};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

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

fn networks(networks: &[IpNet]) -> String {
    networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// An address as the flag would say it: all interfaces have no host.
fn place(address: SocketAddr) -> String {
    match address.ip() {
        IpAddr::V6(ip) if ip.is_unspecified() => format!(":{}", address.port()),
        _ => address.to_string(),
    }
}

impl Config {
    /// Every flag with its value, in the order of `--help`.
    #[must_use]
    pub fn settings(&self) -> Vec<Setting> {
        let connections = format!("computed: {}", self.capacity);
        let budget = self.explain_budget();
        self.values()
            .into_iter()
            .map(|(name, value)| {
                let default = match name {
                    "workers" => "computed: the CPUs that this process may use",
                    "memory-budget" => &budget,
                    "max-connections" => &connections,
                    "max-connections-per-address" => self.explain_share(),
                    "control-socket" if self.control_socket.is_some() => {
                        "computed: in RUNTIME_DIRECTORY"
                    }
                    "https-listen" if self.https.is_none() => {
                        "default; served with --domain, or --tls-cert and --tls-key"
                    }
                    _ => "default",
                };
                let origin = self.origins.get(name).map(Origin::to_string);
                Setting { name, value, origin: origin.unwrap_or_else(|| default.to_owned()) }
            })
            .collect()
    }

    /// How the default of the budget came about.
    fn explain_budget(&self) -> String {
        let limit = show_bytes(self.memory_limit_bytes);
        if self.memory_budget_bytes == self.memory_limit_bytes / 4 {
            format!("computed: a quarter of {limit}")
        } else {
            format!("computed: what {} workers need of {limit}", self.workers)
        }
    }

    /// How the default for one address came about.
    fn explain_share(&self) -> &'static str {
        if self.max_connections_per_address == Some(self.max_connections / 4) {
            "computed: a quarter of max-connections"
        } else {
            "computed: more than a quarter of max-connections, which would be too few"
        }
    }

    // One line for each setting, in the order of the help.
    #[allow(clippy::too_many_lines)]
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
                http = http_listen.map_or(String::new(), place);
                directory = d.clone();
            }
            None => {}
        }
        let limits = &self.limits;
        let rate = |limit: Option<_>| limit.map_or("off".to_owned(), show_rate);
        vec![
            ("insecure-listen", self.insecure.map_or(String::new(), |l| place(l.addr))),
            ("domain", https.and_then(|https| https.domain.clone()).unwrap_or_default()),
            ("https-listen", place(https.map_or(DEFAULT_HTTPS_LISTEN, |https| https.listen))),
            ("http-listen", http),
            ("cert-cache", path(cache)),
            ("tls-cert", path(cert)),
            ("tls-key", path(key)),
            ("acme-directory", directory),
            ("acme-ca", path(ca)),
            ("https-proxy-protocol", https.is_some_and(|https| https.proxy_protocol).to_string()),
            ("proxy-protocol-from", networks(&self.proxy_protocol_from)),
            ("trust-x-forwarded-for", networks(&self.trust_x_forwarded_for)),
            ("metrics-listen", self.metrics_listen.map_or(String::new(), |l| place(l.addr))),
            ("control-socket", path(self.control_socket.as_ref())),
            (
                "allow-server-ids",
                self.allowed.as_ref().map_or(String::new(), |a| a.path().display().to_string()),
            ),
            (
                "token-header",
                match limits.token_header {
                    TokenHeader::Required => "required".to_owned(),
                    TokenHeader::Optional => "optional".to_owned(),
                },
            ),
            ("new-connections-rate", rate(self.new_connections_rate)),
            ("verify-url", self.verify_url.as_ref().map(ToString::to_string).unwrap_or_default()),
            ("verify-timeout", show_duration(limits.verify.timeout_ms)),
            (
                "verify-on-failure",
                match limits.verify.on_failure {
                    OnFailure::Allow => "allow".to_owned(),
                    OnFailure::Deny => "deny".to_owned(),
                },
            ),
            ("server-id-rate", limits.server_id_rate.map_or("off".to_owned(), show_byte_rate)),
            ("rate-limit", rate(self.rate_limit)),
            ("handshake-rate", rate(self.handshake_rate)),
            ("block", networks(&self.block)),
            ("max-connections", self.max_connections.to_string()),
            ("max-connections-per-address", limit(self.max_connections_per_address)),
            ("workers", self.workers.to_string()),
            ("io-uring-without", self.ring_features.unwanted()),
            ("memory-budget", show_exact_bytes(self.memory_budget_bytes)),
            ("max-phones", limits.max_phones.to_string()),
            ("grace", show_duration(limits.grace_ms)),
            ("probe-timeout", show_duration(limits.probe_timeout_ms)),
            ("heartbeat-interval", show_duration(limits.heartbeat_interval_ms)),
            ("heartbeat-timeout", show_duration(limits.heartbeat_timeout_ms)),
            ("header-timeout", show_duration(limits.header_timeout_ms)),
            ("message-timeout", show_duration(limits.message_timeout_ms)),
            ("write-timeout", show_duration(limits.write_timeout_ms)),
            ("close-timeout", show_duration(limits.close_timeout_ms)),
            ("drain-timeout", show_duration(self.drain_timeout.as_millis() as u64)),
            ("drain-spread", show_duration(self.drain_spread.as_millis() as u64)),
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
