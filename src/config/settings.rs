//! Every setting, a row each: its flag, variable and key by one name; unit, default and parser as clap
//! reads them; its help, from which the manual and the example of a file are made too; what `check`
//! shows; and whether a reload takes it over.
//!
//! A new setting is a row here, a field of [`Config`] (or [`Limits`](super::Limits)) and the line
//! that fills it; the compiler asks for the last.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use hyper::Uri;

use super::CertificateSource::{Acme, Files};
use super::show::{choice, duration, list, or_off, path, place};
use super::units::{OrOff, show_byte_rate, show_duration, show_exact_bytes, show_rate};
use super::{
    ByteRate, Config, DEFAULT_HTTPS_LISTEN, FcmEndpoints, LEVELS, Level, LogFormat, MAX_WORKERS,
    MIN_BUDGET_BYTES, OnFailure, PROGRAM, RateLimit, RingFeatures, TokenHeader, VERSION, listen,
    networks, ring_features, units,
};

/// The most connections that may be asked for: more than any kernel gives descriptors.
const MAX_CONNECTIONS: usize = 1 << 30;
/// The most phones that one server-id may be given.
const MAX_PHONES: usize = 65_536;

const ABOUT: &str = "\
Connects phones to a pyry daemon that no one can dial, because it is behind NAT. The daemon (the \
binary) and its phones all dial out to this relay, which routes their WebSocket messages by \
server-id. It never looks inside a message and keeps nothing on disk.

Without any flag it serves plain WebSocket on 127.0.0.1:8080, for trying it out.";

/// What a setting is beside a flag.
pub(super) struct Row {
    /// Its name, with underscores.
    field: &'static str,
    /// Its effective value, as the flag would say it; empty for nothing.
    pub(super) show: fn(&Config) -> String,
    /// Where the value comes from where nobody has given one, if not from the table.
    pub(super) explain_default: Option<fn(&Config) -> String>,
    /// Takes it over from the newer of two configurations; without that, it needs a restart.
    pub(super) take_over: Option<fn(&mut Config, &Config)>,
}

impl Row {
    /// Its name as a flag, without dashes, and as a key of the file.
    pub(super) fn name(&self) -> String {
        self.field.replace('_', "-")
    }
}

macro_rules! settings {
    ($($(#[$attribute:meta])* $field:ident: $type:ty => {
        show: $show:expr,
        $(default: $default:expr,)?
        $(live: $($live:ident).+,)?
    })*) => {
        /// The command line as it was given: checked flag by flag, not yet against the machine.
        #[derive(Debug, Parser)]
        #[command(
            name = PROGRAM,
            version = VERSION,
            about = ABOUT,
            long_about = None,
            override_usage = "pyrycode-relay [COMMAND] [FLAGS]",
            args_override_self = true
        )]
        pub(super) struct Flags {
            $($(#[$attribute])* pub(super) $field: $type,)*
            #[command(flatten)]
            pub(super) fcm_endpoints: FcmEndpoints,
        }

        /// Every setting, in the order of the help.
        pub(super) const SETTINGS: &[Row] = &[$(Row {
            field: stringify!($field),
            show: $show,
            explain_default: settings!(@option $($default)?),
            take_over: settings!(@take_over $($($live).+)?),
        },)*];
    };
    (@option) => { None };
    (@option $some:expr) => { Some($some) };
    (@take_over) => { None };
    (@take_over $($path:ident).+) => {
        Some(|config, newer| config.$($path).+.clone_from(&newer.$($path).+))
    };
}

settings! {
    /// Serve plain WebSocket (no TLS) on this address. `:8080` means all interfaces; port 0 takes
    /// any free port, which is logged [default: 127.0.0.1:8080]
    #[arg(help_heading = "Listening", long, value_name = "HOST:PORT", value_parser = listen::parse)]
    insecure_listen: Option<SocketAddr> => {
        show: |c| c.insecure.map_or(String::new(), |listen| place(listen.addr)),
    }

    /// Serve wss://DOMAIN, with a certificate that ACME (Let's Encrypt) issues and the relay
    /// renews; requests for any other host are refused
    #[arg(help_heading = "HTTPS", long, value_name = "DOMAIN", value_parser = listen::domain)]
    domain: Option<String> => {
        show: |c| c.https.as_ref().and_then(|https| https.domain.clone()).unwrap_or_default(),
    }

    /// Where to serve HTTPS [default: :443]
    #[arg(help_heading = "HTTPS", long, value_name = "HOST:PORT", value_parser = listen::parse)]
    https_listen: Option<SocketAddr> => {
        show: |c| place(c.https.as_ref().map_or(DEFAULT_HTTPS_LISTEN, |https| https.listen)),
        default: Config::explain_https_listen,
    }

    /// Where to answer ACME's http-01 challenges, which come to port 80 of the domain. If empty,
    /// only tls-alpn-01 challenges are answered, on the HTTPS port [default: :80]
    #[arg(help_heading = "HTTPS", long, value_name = "HOST:PORT", value_parser = listen::or_off)]
    http_listen: Option<OrOff<SocketAddr>> => {
        show: |c| match c.certificate() {
            Some(Acme { http_listen: Some(address), .. }) => place(*address),
            _ => String::new(),
        },
    }

    /// Folder for the ACME account and certificate; only the relay's user has access
    /// [default: $STATE_DIRECTORY/certificates, or /var/lib/pyrycode-relay/certificates]
    #[arg(help_heading = "HTTPS", long, value_name = "FOLDER")]
    cert_cache: Option<PathBuf> => {
        show: |c| match c.certificate() {
            Some(Acme { cache, .. }) => path(cache),
            _ => String::new(),
        },
    }

    /// Serve HTTPS with this certificate chain (PEM, the leaf first), which is reloaded when it
    /// changes
    #[arg(help_heading = "HTTPS", long, value_name = "FILE")]
    tls_cert: Option<PathBuf> => {
        show: |c| match c.certificate() {
            Some(Files { cert, .. }) => path(cert),
            _ => String::new(),
        },
    }

    /// The private key of --tls-cert (PEM)
    #[arg(help_heading = "HTTPS", long, value_name = "FILE")]
    tls_key: Option<PathBuf> => {
        show: |c| match c.certificate() {
            Some(Files { key, .. }) => path(key),
            _ => String::new(),
        },
    }

    /// The ACME directory to order from [default: Let's Encrypt's]
    #[arg(help_heading = "HTTPS", long, value_name = "URL")]
    acme_directory: Option<String> => {
        show: |c| match c.certificate() {
            Some(Acme { directory, .. }) => directory.clone(),
            _ => String::new(),
        },
    }

    /// Certificate authorities (PEM) to trust when talking to --acme-directory, for a private one
    #[arg(help_heading = "HTTPS", long, value_name = "FILE")]
    acme_ca: Option<PathBuf> => {
        show: |c| match c.certificate() {
            Some(Acme { ca: Some(ca), .. }) => path(ca),
            _ => String::new(),
        },
    }

    /// Every HTTPS connection begins with a PROXY protocol v2 header, which names the client
    #[arg(
        help_heading = "Behind a proxy", long, num_args = 0..=1, require_equals = true,
        default_value_t = false, default_missing_value = "true", value_name = "BOOL",
        hide_default_value = true, hide_possible_values = true
    )]
    https_proxy_protocol: bool => {
        show: |c| c.https.as_ref().is_some_and(|https| https.proxy_protocol).to_string(),
    }

    /// Plain connections from these networks begin with a PROXY protocol v2 header
    #[arg(
        help_heading = "Behind a proxy", long, value_name = "CIDR,…", default_value = "",
        hide_default_value = true, value_parser = networks::parse
    )]
    proxy_protocol_from: networks::Networks => {
        show: |c| list(&c.proxy_protocol_from),
    }

    /// Proxies whose X-Forwarded-For is trusted: the client is its right-most address that is in
    /// none of these networks
    #[arg(
        help_heading = "Behind a proxy", long, value_name = "CIDR,…", default_value = "",
        hide_default_value = true, value_parser = networks::trusted
    )]
    trust_x_forwarded_for: networks::Networks => {
        show: |c| list(&c.trust_x_forwarded_for),
    }

    /// Where metrics and the status page are served: a loopback address; empty for none
    /// [default: 127.0.0.1:9090]
    #[arg(
        help_heading = "Watching it", long, value_name = "IP:PORT", value_parser = listen::loopback
    )]
    metrics_listen: Option<OrOff<SocketAddr>> => {
        show: |c| c.metrics_listen.map_or(String::new(), |listen| place(listen.addr)),
    }

    /// Unix socket by which the relay's user and root operate it while it runs, with commands such as
    /// `drain`; empty for none [default: control.sock in $RUNTIME_DIRECTORY, none without that]
    #[arg(
        help_heading = "Watching it", long, value_name = "PATH", value_parser = control_socket
    )]
    control_socket: Option<OrOff<PathBuf>> => {
        show: |c| c.control_socket.as_deref().map(path).unwrap_or_default(),
        default: Config::explain_control_socket,
    }

    /// Serve only the server-ids in this file, which SIGHUP reads again: one a line, or the SHA-256 of
    /// one in hexadecimal; `# ` begins a comment. Binaries and phones of others get 403
    #[arg(help_heading = "Who may come", long, value_name = "FILE")]
    allow_server_ids: Option<PathBuf> => {
        show: |c| c.allowed.as_ref().map(|allowed| path(allowed.path())).unwrap_or_default(),
        live: allowed,
    }

    /// Whether phones must send X-Pyrycode-Token
    #[arg(
        help_heading = "Who may come", long, value_name = "WHETHER", value_enum,
        default_value_t = TokenHeader::Required
    )]
    token_header: TokenHeader => {
        show: |c| choice(c.limits.token_header),
        live: limits.token_header,
    }

    /// Rate limit on the upgrades of everybody together: a burst, and the time that refills one; or
    /// `off`. Beyond it 503, with a Retry-After that spreads those who come at once after a restart
    #[arg(
        help_heading = "Who may come", long, value_name = "BURST/DURATION", default_value = "off",
        value_parser = units::rate
    )]
    new_connections_rate: OrOff<RateLimit> => {
        show: |c| or_off(c.new_connections_rate, show_rate),
        live: new_connections_rate,
    }

    /// Ask this HTTP server whether a binary may have the server-id that it claims, by its address: see
    /// README. Phones of an id that no binary has are turned away anyway
    #[arg(
        help_heading = "Who may come", long, value_name = "URL", value_parser = listen::url_or_off
    )]
    verify_url: Option<OrOff<Uri>> => {
        show: |c| c.verifier().unwrap_or_default(),
        live: verify_url,
    }

    /// How long --verify-url has to answer
    #[arg(
        help_heading = "Who may come", long, value_name = "DURATION", default_value = "3s",
        value_parser = units::duration(1)
    )]
    verify_timeout: u64 => {
        show: |c| show_duration(c.limits.verify.timeout_ms),
        live: limits.verify.timeout_ms,
    }

    /// What becomes of a claim where --verify-url gives no usable answer in time: `deny` answers 503
    #[arg(
        help_heading = "Who may come", long, value_name = "WHAT", value_enum,
        default_value_t = OnFailure::Deny
    )]
    verify_on_failure: OnFailure => {
        show: |c| choice(c.limits.verify.on_failure),
        live: limits.verify.on_failure,
    }

    /// Bytes per second that one server-id may send, its binary and phones together, and how much of
    /// that at once if it is not one second's; or `off`. Beyond it they are not read for a moment
    #[arg(
        help_heading = "Resources", long, value_name = "SIZE/s,BURST", default_value = "off",
        value_parser = units::byte_rate
    )]
    server_id_rate: OrOff<ByteRate> => {
        show: |c| or_off(c.limits.server_id_rate, show_byte_rate),
        live: limits.server_id_rate,
    }

    /// Rate limit on one address's upgrade requests: a burst, and the time that refills one; or
    /// `off`
    #[arg(
        help_heading = "Resources", long, value_name = "BURST/DURATION", default_value = "20/6s",
        value_parser = units::rate
    )]
    rate_limit: OrOff<RateLimit> => {
        show: |c| or_off(c.rate_limit, show_rate),
        live: rate_limit,
    }

    /// Rate limit on one address's TLS handshakes: a burst, and the time that refills one; or `off`
    #[arg(
        help_heading = "Resources", long, value_name = "BURST/DURATION", default_value = "60/1s",
        value_parser = units::rate
    )]
    handshake_rate: OrOff<RateLimit> => {
        show: |c| or_off(c.handshake_rate, show_rate),
        live: handshake_rate,
    }

    /// Networks whose connections are refused before TLS; commands can block others while the relay
    /// runs
    #[arg(
        help_heading = "Resources", long, value_name = "CIDR,…", default_value = "",
        hide_default_value = true, value_parser = networks::blocked
    )]
    block: networks::Networks => {
        show: |c| list(&c.block),
        live: block,
    }

    /// WebSocket connections in all [default: what descriptors and memory allow]
    #[arg(
        help_heading = "Resources", long, value_name = "COUNT",
        value_parser = units::count(MAX_CONNECTIONS)
    )]
    max_connections: Option<usize> => {
        show: |c| c.max_connections.to_string(),
        default: Config::explain_max_connections,
        live: max_connections,
    }

    /// WebSocket connections of one address (IPv6: of one /64), or `off` [default: a quarter of
    /// --max-connections, at least 16]
    #[arg(
        help_heading = "Resources", long, value_name = "COUNT",
        value_parser = units::count_or_off(MAX_CONNECTIONS)
    )]
    max_connections_per_address: Option<OrOff<usize>> => {
        show: |c| or_off(c.max_connections_per_address, |count| count.to_string()),
        default: Config::explain_share,
        live: max_connections_per_address,
    }

    /// Worker threads, each with its own io_uring and listener, pinned to a CPU; 1 to 1024
    /// [default: the CPUs that this process may use]
    #[arg(
        help_heading = "Resources", long, value_name = "COUNT",
        value_parser = units::count(MAX_WORKERS)
    )]
    workers: Option<usize> => {
        show: |c| c.workers.to_string(),
        default: Config::explain_workers,
    }

    /// io_uring features of newer kernels that are not to be used, where one is at fault:
    /// registered-ring, no-iowait, quick-sends
    #[arg(
        help_heading = "Resources", long, value_name = "FEATURE,…", default_value = "",
        hide_default_value = true, value_parser = ring_features::without
    )]
    io_uring_without: RingFeatures => {
        show: |c| c.ring_features.unwanted(),
    }

    /// Memory for all messages that wait to be sent or are half read, in the whole process; beyond
    /// it the connection with the largest backlog is ended. At least 1MiB for each worker
    /// [default: a quarter of the memory limit of the cgroup or the machine]
    #[arg(
        help_heading = "Resources", long, value_name = "SIZE",
        value_parser = units::size(MIN_BUDGET_BYTES)
    )]
    memory_budget: Option<u64> => {
        show: |c| show_exact_bytes(c.memory_budget_bytes),
        default: Config::explain_budget,
    }

    /// Phones that may be connected to one server-id at a time
    #[arg(
        help_heading = "Resources", long, value_name = "COUNT", default_value = "16",
        value_parser = units::count(MAX_PHONES)
    )]
    max_phones: usize => {
        show: |c| c.limits.max_phones.to_string(),
        live: limits.max_phones,
    }

    /// How long a server-id and its phones wait for a binary that disconnected
    #[arg(
        help_heading = "Holding a server-id", long, value_name = "DURATION",
        default_value = "30s", value_parser = units::duration(1)
    )]
    grace: u64 => {
        show: |c| show_duration(c.limits.grace_ms),
        live: limits.grace_ms,
    }

    /// How long the holder of a server-id has to answer a ping when another binary claims the id,
    /// before it loses it
    #[arg(
        help_heading = "Holding a server-id", long, value_name = "DURATION",
        default_value = "10s", value_parser = units::duration(1)
    )]
    probe_timeout: u64 => {
        show: |c| show_duration(c.limits.probe_timeout_ms),
        live: limits.probe_timeout_ms,
    }

    /// How often each connection is pinged
    #[arg(
        help_heading = "Deadlines", long, value_name = "DURATION",
        default_value = "30s", value_parser = units::duration(1)
    )]
    heartbeat_interval: u64 => {
        show: |c| show_duration(c.limits.heartbeat_interval_ms),
        live: limits.heartbeat_interval_ms,
    }

    /// How long a peer has to answer a ping before it is closed
    #[arg(
        help_heading = "Deadlines", long, value_name = "DURATION",
        default_value = "30s", value_parser = units::duration(1)
    )]
    heartbeat_timeout: u64 => {
        show: |c| show_duration(c.limits.heartbeat_timeout_ms),
        live: limits.heartbeat_timeout_ms,
    }

    /// How long a request head may take to arrive
    #[arg(
        help_heading = "Deadlines", long, value_name = "DURATION",
        default_value = "5s", value_parser = units::duration(1)
    )]
    header_timeout: u64 => {
        show: |c| show_duration(c.limits.header_timeout_ms),
        live: limits.header_timeout_ms,
    }

    /// How long one message may take to arrive
    #[arg(
        help_heading = "Deadlines", long, value_name = "DURATION",
        default_value = "30s", value_parser = units::duration(1)
    )]
    message_timeout: u64 => {
        show: |c| show_duration(c.limits.message_timeout_ms),
        live: limits.message_timeout_ms,
    }

    /// How long a write may make no progress before the connection is aborted
    #[arg(
        help_heading = "Deadlines", long, value_name = "DURATION",
        default_value = "10s", value_parser = units::duration(1)
    )]
    write_timeout: u64 => {
        show: |c| show_duration(c.limits.write_timeout_ms),
        live: limits.write_timeout_ms,
    }

    /// How long a peer has to answer a close before its TCP connection is aborted
    #[arg(
        help_heading = "Deadlines", long, value_name = "DURATION",
        default_value = "5s", value_parser = units::duration(1)
    )]
    close_timeout: u64 => {
        show: |c| show_duration(c.limits.close_timeout_ms),
        live: limits.close_timeout_ms,
    }

    /// How long connections have to close after SIGTERM or SIGINT; 0s does not wait
    #[arg(
        help_heading = "Deadlines", long, value_name = "DURATION",
        default_value = "10s", value_parser = units::duration(0)
    )]
    drain_timeout: u64 => {
        show: |c| duration(c.drain_timeout),
        live: drain_timeout,
    }

    /// Over what part of --drain-timeout the closes of SIGTERM or SIGINT are spread, so that not
    /// everybody dials again at once; 0s tells all at once
    #[arg(
        help_heading = "Deadlines", long, value_name = "DURATION",
        default_value = "0s", value_parser = units::duration(0)
    )]
    drain_spread: u64 => {
        show: |c| duration(c.drain_spread),
        live: drain_spread,
    }

    /// Read settings that are not given otherwise from this file, which SIGHUP reloads: a line for
    /// each flag, `name = value`, without dashes; # begins a comment
    #[arg(help_heading = "Logs and configuration", long, value_name = "FILE")]
    config: Option<PathBuf> => {
        show: |c| c.file.as_deref().map(path).unwrap_or_default(),
    }

    /// How log lines on standard error are written: `text` is logfmt
    #[arg(
        help_heading = "Logs and configuration", long, value_name = "FORMAT", value_enum,
        default_value_t = LogFormat::Text
    )]
    log_format: LogFormat => {
        show: |c| choice(c.log_format),
    }

    /// The least severe level that is logged
    #[arg(
        help_heading = "Logs and configuration", long, value_name = "LEVEL", default_value = "info",
        value_parser = PossibleValuesParser::new(LEVELS)
            .try_map(|level| level.parse::<Level>())
    )]
    log_level: Level => {
        show: |c| c.log_level.to_string().to_ascii_lowercase(),
        live: log_level,
    }
}

/// A path, or nothing for none.
fn control_socket(text: &str) -> Result<OrOff<PathBuf>, String> {
    Ok(match text {
        "" => OrOff::Off,
        path => OrOff::On(path.into()),
    })
}
