//! Flags, defaults worked out from the machine, refusals (PROTOCOL.md, chapter 7).
//!
//! [`Config::from_args`] is the only way in: what it hands back has been checked, so no caller
//! needs to look again for a zero, an overflow or a contradiction.

mod allowed;
mod capacity;
mod command;
mod flags;
mod listen;
mod machine;
mod networks;
mod operations;
pub(crate) mod own_flags;
mod ring_features;
mod settings;
mod show;
mod sources;
mod units;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

pub use allowed::AllowedIds;
pub use capacity::Capacity;
pub use command::{Command, TAKE_OVER, command_line, config_file};
pub use flags::help;
pub use ipnet::IpNet;
pub use operations::{By, Operation, Operator};
pub use ring_features::RingFeatures;
pub use show::{Change, Setting};
pub use sources::Origin;
pub use tracing::Level;

use machine::Machine;
use settings::Flags;
use sources::Given;
use units::OrOff;

/// The program's name, as `--version` and every refusal begin with it.
pub const PROGRAM: &str = "pyrycode-relay";
/// The program's version and, behind a plus sign, the commit that it was built from, as `--version`
/// and `/healthz` tell it.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "+", env!("PYRYCODE_RELAY_COMMIT"));

/// Where a bare run listens: the embedded default for trying the relay out.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// Where metrics are served unless something else is asked for.
const DEFAULT_METRICS_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);
/// Where HTTPS is served unless something else is asked for: all interfaces.
const DEFAULT_HTTPS_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::UNSPECIFIED), 443);
/// Where challenges are answered unless something else is asked for.
const DEFAULT_HTTP_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::UNSPECIFIED), 80);
/// The ACME directory unless another is asked for: Let's Encrypt's.
pub(crate) const DEFAULT_ACME_DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// The folder that holds [`CERT_CACHE_FOLDER`] where systemd gives none.
const DEFAULT_STATE_FOLDER: &str = "/var/lib/pyrycode-relay";
const CERT_CACHE_FOLDER: &str = "certificates";
/// The name of the control socket in the folder that systemd gives the service.
const CONTROL_SOCKET: &str = "control.sock";
/// The folder that the unit asks systemd for; where commands look for the socket of a relay that
/// runs as a service, of whose variables their shell knows nothing.
const DEFAULT_RUNTIME_FOLDER: &str = "/run/pyrycode-relay";
/// The most that `--workers` may ask for, and the most that the default takes.
const MAX_WORKERS: usize = 1024;
/// Levels of the log, the most severe first.
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
/// The least that `--memory-budget` may be.
const MIN_BUDGET_BYTES: u64 = units::MIB;
/// What the budget must hold for each worker: a message of the greatest length (262,144 bytes)
/// while it is read, the same message while it waits to be sent, and what one event may add before
/// anybody is asked to pay for it.
const MIN_BUDGET_BYTES_PER_WORKER: u64 = units::MIB;
/// The memory limit that is assumed where neither a cgroup nor `/proc/meminfo` can be read.
const ASSUMED_MEMORY_LIMIT_BYTES: u64 = 256 * units::MIB;

/// All that the relay was told, and what it worked out for the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where to serve plain WebSocket; if nowhere, then HTTPS is served.
    pub insecure: Option<Listen>,
    /// HTTPS, and where its certificate comes from; never beside `insecure`.
    pub https: Option<Https>,
    /// Where to serve metrics and the status page.
    pub metrics_listen: Option<MetricsListen>,
    /// The socket by which the relay is operated while it runs.
    pub control_socket: Option<PathBuf>,
    /// Worker threads: at least 1, at most 1024.
    pub workers: usize,
    /// What the workers' rings may ask of the kernel.
    pub ring_features: RingFeatures,
    /// The CPU numbers that this process may run on, ascending and never empty; there may be
    /// fewer or more of them than workers.
    pub cpus: Vec<usize>,
    /// What all outboxes and half-read messages of the process may take together, in bytes: at
    /// least 1 MiB for each worker, at most the memory limit.
    pub memory_budget_bytes: u64,
    /// The memory that the process may use, in bytes; a guess where nothing says so.
    pub memory_limit_bytes: u64,
    /// What each worker must know.
    pub limits: Limits,
    /// Upgrade requests of one address.
    pub rate_limit: Option<RateLimit>,
    /// TLS handshakes of one address.
    pub handshake_rate: Option<RateLimit>,
    /// Server-ids that are served, if not all are.
    pub allowed: Option<Arc<AllowedIds>>,
    /// Upgrades of everybody together.
    pub new_connections_rate: Option<RateLimit>,
    /// Blocked networks.
    pub block: Arc<[IpNet]>,
    /// WebSocket connections that there is room for.
    pub capacity: Capacity,
    /// WebSocket connections of the process, at least 1.
    pub max_connections: usize,
    /// WebSocket connections of one address, at least 1.
    pub max_connections_per_address: Option<usize>,
    /// Proxies whose X-Forwarded-For is believed.
    pub trust_x_forwarded_for: Arc<[IpNet]>,
    /// Networks whose plain connections begin with a PROXY header.
    pub proxy_protocol_from: Arc<[IpNet]>,
    /// What must not be in production is refused.
    pub production: bool,
    /// It runs on a platform that starts further instances at a word.
    pub may_be_one_of_many: bool,
    /// The operator says that this is the only relay of its server-ids.
    pub single_instance: bool,
    /// The operator says that it is one of several, and that a balancer sends each server-id to one
    /// of them; never beside `single_instance`.
    pub one_of_many: bool,
    /// A service account's key as JSON, or the path to it; without it nobody is woken.
    pub fcm_credentials: Option<Secret>,
    /// Where wake requests go, if not to Google.
    pub fcm_endpoints: FcmEndpoints,
    /// How long peers have, after SIGTERM or SIGINT, to answer their close; may be zero.
    pub drain_timeout: Duration,
    /// Over what part of that they are told to go; zero for all at once.
    pub drain_spread: Duration,
    /// The file that was read for what neither flags nor variables say.
    pub file: Option<PathBuf>,
    /// Which flags were given, and where.
    pub origins: BTreeMap<String, Origin>,
    /// Variables that seem to be meant for the relay and say nothing to it.
    pub unknown_variables: Vec<String>,
    /// How a log line is written.
    pub log_format: LogFormat,
    /// The least severe level that is logged.
    pub log_level: Level,
}

/// A listening address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// The address. `:8080` was read as `[::]:8080`, which means all interfaces and both IP
    /// versions: the socket must be dual-stack, or `0.0.0.0` where the machine has no IPv6.
    pub addr: SocketAddr,
    /// No listening flag was given, so this is the embedded default.
    pub is_default: bool,
}

/// Where metrics are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricsListen {
    /// A loopback address.
    pub addr: SocketAddr,
    /// Nobody asked for it, so the relay can do without where it is taken.
    pub is_default: bool,
}

/// How HTTPS is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Https {
    /// Where.
    pub listen: SocketAddr,
    /// The only host that is served, in lower case; any if `None`.
    pub domain: Option<String>,
    /// Each connection begins with a PROXY header.
    pub proxy_protocol: bool,
    /// Where the certificate comes from.
    pub certificate: CertificateSource,
}

/// Where the certificate of HTTPS comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateSource {
    /// From two files, in PEM.
    Files {
        /// The chain, leaf first.
        cert: PathBuf,
        /// The leaf's private key.
        key: PathBuf,
    },
    /// From an ACME server, for the domain.
    Acme {
        /// The folder that keeps account and certificate.
        cache: PathBuf,
        /// Where http-01 challenges are answered; `None` leaves it to tls-alpn-01.
        http_listen: Option<SocketAddr>,
        /// The URL of the server's directory.
        directory: String,
        /// A file of certificate authorities (PEM) to trust for it, beside the usual ones.
        ca: Option<PathBuf>,
    },
}

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Tokens in a full bucket, at least 1.
    pub burst: u32,
    /// The time for one more, in milliseconds, at least 1.
    pub refill_ms: u64,
}

/// A value that is not to be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub OsString);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Where wake requests go, in tests; `None` is where Google serves them.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct FcmEndpoints {
    /// In place of the credentials' `token_uri`.
    #[arg(long = "fcm-token-url", value_name = "URL", hide = true)]
    pub token_url: Option<String>,
    /// In place of `https://fcm.googleapis.com`.
    #[arg(long, value_name = "URL", hide = true)]
    pub fcm_url: Option<String>,
    /// A file of certificate authorities (PEM) to trust for them.
    #[arg(long = "fcm-ca", value_name = "FILE", hide = true)]
    pub ca: Option<PathBuf>,
}

/// The limits and deadlines that one worker applies (PROTOCOL.md, chapters 2 to 5). Each is at
/// least 1 and each time at most 24 hours, so sums of a few of them cannot overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Phones for each server-id.
    pub max_phones: usize,
    /// Whether phones must send a token.
    pub token_header: TokenHeader,
    /// How long an id waits for its binary to come back, in milliseconds.
    pub grace_ms: u64,
    /// How long the holder of an id has to answer when another claims it, in milliseconds.
    pub probe_timeout_ms: u64,
    /// The time from one ping to the next, in milliseconds.
    pub heartbeat_interval_ms: u64,
    /// How long a peer has to answer a ping, in milliseconds.
    pub heartbeat_timeout_ms: u64,
    /// How long a request head may take, in milliseconds.
    pub header_timeout_ms: u64,
    /// How long a message may take from its first header byte, in milliseconds.
    pub message_timeout_ms: u64,
    /// How long a write may make no progress, in milliseconds.
    pub write_timeout_ms: u64,
    /// How long a peer has to answer a close frame, in milliseconds.
    pub close_timeout_ms: u64,
}

impl Default for Limits {
    /// As the table of settings has them.
    fn default() -> Self {
        static DEFAULT: LazyLock<Limits> = LazyLock::new(|| match Flags::parse([PROGRAM.into()]) {
            Ok(flags) => flags.limits(),
            Err(exit) => unreachable!("a default is refused: {exit}"),
        });
        *DEFAULT
    }
}

/// Whether a header must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TokenHeader {
    /// A request without it is refused.
    Required,
    /// A request may do without.
    Optional,
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// logfmt: `key=value` pairs.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why the process ends, or does not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The exit status: 2 for a refusal, which is the operator's to mend, 1 for a failure.
    pub code: u8,
    /// What is wrong and how to mend it.
    pub reason: String,
    /// The flags whose values are at fault, with their dashes.
    pub flags: Vec<String>,
    /// Where those values stand that were not given on the command line.
    pub places: Vec<String>,
}

impl Exit {
    pub(crate) fn refusal(reason: &str) -> Self {
        Self { code: 2, reason: reason.to_owned(), flags: Vec::new(), places: Vec::new() }
    }

    pub(crate) fn failure(reason: String) -> Self {
        Self { code: 1, reason, flags: Vec::new(), places: Vec::new() }
    }

    /// The same, and these flags are at fault.
    pub(crate) fn about<const N: usize>(self, flags: [&str; N]) -> Self {
        Self { flags: flags.map(ToOwned::to_owned).into(), ..self }
    }

    /// What is wrong, where, and how to mend it, in one line whatever was typed.
    #[must_use]
    pub fn explanation(&self) -> String {
        let reason = one_line(&self.reason);
        if self.places.is_empty() {
            reason
        } else {
            format!("{}: {reason}", self.places.join(", "))
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{PROGRAM}: {}", self.explanation())
    }
}

/// `text` with its control characters escaped.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

impl Config {
    /// Reads the flags in `args`, which begins with the program's name as
    /// [`std::env::args_os`] does, and looks at the machine for what they leave open. Call it
    /// before any thread is pinned: it counts the CPUs that the calling thread may use.
    ///
    /// # Errors
    ///
    /// A refusal of whatever cannot be served, which is always the operator's to mend.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, Exit> {
        let given = sources::gather(args, std::env::vars_os())?;
        let (origins, file) = (given.origins.clone(), given.flags.config.clone());
        Self::from_given(given, &Environment::observe()?, Machine::observe())
            .map_err(|exit| sources::locate(exit, &origins, file.as_deref()))
    }

    /// `exit`, with the places that the values of its flags come from.
    #[must_use]
    pub fn locate(&self, exit: Exit) -> Exit {
        sources::locate(exit, &self.origins, self.file.as_deref())
    }

    fn from_given(given: Given, environment: &Environment, machine: Machine) -> Result<Self, Exit> {
        let Given { flags, origins, unknown_variables } = given;
        let workers = flags.workers.unwrap_or(machine.parallelism.clamp(1, MAX_WORKERS));
        let memory_limit = machine.memory_limit_bytes.unwrap_or(ASSUMED_MEMORY_LIMIT_BYTES);
        let memory_budget_bytes = memory_budget(flags.memory_budget, workers, memory_limit)?;
        let https = https(&flags, environment)?;
        let capacity = Capacity::new(
            machine.descriptors,
            memory_limit,
            memory_budget_bytes,
            workers,
            https.is_some(),
        );
        let max_connections = flags.max_connections.unwrap_or(capacity.connections());
        let per_address = flags
            .max_connections_per_address
            .unwrap_or(OrOff::On((max_connections / 4).max(MIN_PER_ADDRESS)));
        let insecure = https.is_none().then(|| insecure_listen(&flags));
        refuse_contradictions(&flags, https.is_some())?;
        let allowed = flags.allow_server_ids.as_deref().map(AllowedIds::read).transpose()?;
        Ok(Self {
            insecure,
            https,
            metrics_listen: metrics_listen(&flags),
            control_socket: control_socket(&flags, environment),
            workers,
            ring_features: flags.io_uring_without,
            cpus: machine.cpus,
            memory_budget_bytes,
            memory_limit_bytes: memory_limit,
            limits: flags.limits(),
            rate_limit: flags.rate_limit.on(),
            handshake_rate: flags.handshake_rate.on(),
            allowed: allowed.map(Arc::new),
            new_connections_rate: flags.new_connections_rate.on(),
            block: flags.block,
            capacity,
            max_connections,
            max_connections_per_address: per_address.on(),
            production: environment.production,
            may_be_one_of_many: environment.may_be_one_of_many,
            single_instance: environment.single_instance,
            one_of_many: environment.one_of_many,
            fcm_credentials: environment.fcm_credentials.clone(),
            fcm_endpoints: flags.fcm_endpoints,
            trust_x_forwarded_for: flags.trust_x_forwarded_for,
            proxy_protocol_from: flags.proxy_protocol_from,
            drain_timeout: Duration::from_millis(flags.drain_timeout),
            drain_spread: Duration::from_millis(flags.drain_spread),
            file: flags.config,
            origins,
            unknown_variables,
            log_format: flags.log_format,
            log_level: flags.log_level,
        })
    }
}

/// Refuses flags that make no sense together.
fn refuse_contradictions(flags: &Flags, is_https: bool) -> Result<(), Exit> {
    if is_https && !flags.proxy_protocol_from.is_empty() {
        let reason =
            "--proxy-protocol-from is for --insecure-listen; HTTPS has --https-proxy-protocol";
        return Err(Exit::refusal(reason).about(["--proxy-protocol-from"]));
    }
    if flags.drain_spread > flags.drain_timeout {
        let reason = format!(
            "{} is longer than --drain-timeout, {}; the closes are spread over a part of that",
            units::show_duration(flags.drain_spread),
            units::show_duration(flags.drain_timeout)
        );
        let reason = format!("--drain-spread: {reason}");
        return Err(Exit::refusal(&reason).about(["--drain-spread", "--drain-timeout"]));
    }
    Ok(())
}

/// Where commands reach the relay, if anywhere.
fn control_socket(flags: &Flags, environment: &Environment) -> Option<PathBuf> {
    match &flags.control_socket {
        None => environment.runtime_folder.as_deref().map(in_runtime_folder),
        Some(given) => given.clone().on(),
    }
}

impl Config {
    /// The limits of chapter 6, as flags would say them, and how many connections there is room
    /// for; for the log.
    #[must_use]
    pub fn show_limits(&self) -> String {
        let or_off = |limit: Option<String>| limit.unwrap_or_else(|| "off".to_owned());
        let per_address = self.max_connections_per_address.map(|limit| limit.to_string());
        let rate = self.rate_limit.map(units::show_rate);
        format!(
            "--max-connections {} ({}) --max-connections-per-address {} --rate-limit {}; before \
             their upgrade at most {} sockets",
            self.max_connections,
            self.capacity,
            or_off(per_address),
            or_off(rate),
            self.capacity.visitors
        )
    }
}

/// What the environment says that no flag does.
#[derive(Debug, Clone, Default)]
struct Environment {
    production: bool,
    /// Fly.io names the app in every machine of it, and `fly scale count` adds machines.
    may_be_one_of_many: bool,
    single_instance: bool,
    one_of_many: bool,
    fcm_credentials: Option<Secret>,
    /// The folder that systemd gives the service (systemd.exec(5), `StateDirectory=`).
    state_folder: Option<PathBuf>,
    /// The same for what does not outlive it (`RuntimeDirectory=`).
    runtime_folder: Option<PathBuf>,
}

impl Environment {
    fn observe() -> Result<Self, Exit> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let (single_instance, one_of_many) =
            (switch("PYRYCODE_RELAY_SINGLE_INSTANCE")?, switch("PYRYCODE_RELAY_ONE_OF_MANY")?);
        if single_instance && one_of_many {
            return Err(Exit::refusal(
                "PYRYCODE_RELAY_SINGLE_INSTANCE says that this is the only relay, and \
                 PYRYCODE_RELAY_ONE_OF_MANY that it is not; leave one of them out",
            ));
        }
        Ok(Self {
            production: switch("PYRYCODE_RELAY_PRODUCTION")?,
            may_be_one_of_many: variable("FLY_APP_NAME").is_some(),
            single_instance,
            one_of_many,
            fcm_credentials: variable("PYRYCODE_RELAY_FCM_CREDENTIALS").map(Secret),
            state_folder: variable("STATE_DIRECTORY").map(PathBuf::from),
            runtime_folder: runtime_folder(),
        })
    }
}

/// The folder that systemd gives the service for as long as it runs.
fn runtime_folder() -> Option<PathBuf> {
    std::env::var_os("RUNTIME_DIRECTORY").filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// The control socket in this folder.
fn in_runtime_folder(folder: &Path) -> PathBuf {
    folder.join(CONTROL_SOCKET)
}

/// A variable that is unset or exactly `1`.
fn switch(name: &str) -> Result<bool, Exit> {
    match std::env::var_os(name) {
        None => Ok(false),
        Some(value) if value == "1" => Ok(true),
        Some(_) => Err(Exit::refusal(&format!("{name} must be unset or exactly 1"))),
    }
}

fn insecure_listen(flags: &Flags) -> Listen {
    Listen {
        addr: flags.insecure_listen.unwrap_or(DEFAULT_LISTEN),
        is_default: flags.insecure_listen.is_none(),
    }
}

fn metrics_listen(flags: &Flags) -> Option<MetricsListen> {
    match flags.metrics_listen {
        None => Some(MetricsListen { addr: DEFAULT_METRICS_LISTEN, is_default: true }),
        Some(OrOff::On(addr)) => Some(MetricsListen { addr, is_default: false }),
        Some(OrOff::Off) => None,
    }
}

/// The least that the default of `--max-connections-per-address` is.
const MIN_PER_ADDRESS: usize = 16;

/// The first of these flags that was given.
fn first_given(flags: &[(&'static str, bool)]) -> Option<&'static str> {
    flags.iter().find(|(_, given)| *given).map(|(name, _)| *name)
}

/// The first flag that says something of certificates by ACME.
fn acme_given(flags: &Flags) -> Option<&'static str> {
    first_given(&[
        ("--cert-cache", flags.cert_cache.is_some()),
        // Nowhere is where nothing but ACME listens anyway.
        ("--http-listen", matches!(flags.http_listen, Some(OrOff::On(_)))),
        ("--acme-directory", flags.acme_directory.is_some()),
        ("--acme-ca", flags.acme_ca.is_some()),
    ])
}

/// What the flags say of HTTPS; `None` if it is not served.
fn https(flags: &Flags, environment: &Environment) -> Result<Option<Https>, Exit> {
    let source_given = first_given(&[
        ("--domain", flags.domain.is_some()),
        ("--tls-cert", flags.tls_cert.is_some()),
        ("--tls-key", flags.tls_key.is_some()),
    ]);
    let other_given = first_given(&[
        ("--https-listen", flags.https_listen.is_some()),
        ("--https-proxy-protocol", flags.https_proxy_protocol),
    ]);
    let Some(any) = source_given.or(acme_given(flags)).or(other_given) else { return Ok(None) };
    if flags.insecure_listen.is_some() {
        return Err(Exit::refusal(&format!(
            "--insecure-listen serves without TLS and {any} is for HTTPS; leave one of them out"
        ))
        .about(["--insecure-listen", any]));
    }
    Ok(Some(Https {
        listen: flags.https_listen.unwrap_or(DEFAULT_HTTPS_LISTEN),
        domain: flags.domain.clone(),
        proxy_protocol: flags.https_proxy_protocol,
        certificate: certificate_source(flags, environment, any)?,
    }))
}

/// Where the certificate comes from; `any` is a flag that asks for HTTPS.
fn certificate_source(
    flags: &Flags,
    environment: &Environment,
    any: &str,
) -> Result<CertificateSource, Exit> {
    let (reason, about) = match (&flags.tls_cert, &flags.tls_key, &flags.domain) {
        (Some(cert), Some(key), _) => {
            let Some(flag) = acme_given(flags) else {
                return Ok(CertificateSource::Files { cert: cert.clone(), key: key.clone() });
            };
            let reason = format!(
                "{flag} is for certificates by ACME, and --tls-cert brings its own; leave one of \
                 them out"
            );
            return Err(Exit::refusal(&reason).about([flag, "--tls-cert"]));
        }
        (None, None, Some(_)) => return Ok(acme_source(flags, environment)),
        (Some(_), None, _) => {
            ("--tls-cert needs its private key: give --tls-key too".to_owned(), "--tls-cert")
        }
        (None, Some(_), _) => {
            ("--tls-key needs its certificate: give --tls-cert too".to_owned(), "--tls-key")
        }
        (None, None, None) => {
            (format!("{any} is for HTTPS, which needs --domain, or --tls-cert and --tls-key"), any)
        }
    };
    Err(Exit::refusal(&reason).about([about]))
}

fn acme_source(flags: &Flags, environment: &Environment) -> CertificateSource {
    let directory = flags.acme_directory.as_deref().unwrap_or(DEFAULT_ACME_DIRECTORY);
    CertificateSource::Acme {
        cache: flags.cert_cache.clone().unwrap_or_else(|| default_cert_cache(environment)),
        http_listen: match flags.http_listen {
            None => Some(DEFAULT_HTTP_LISTEN),
            Some(OrOff::On(address)) => Some(address),
            Some(OrOff::Off) => None,
        },
        directory: directory.to_owned(),
        ca: flags.acme_ca.clone(),
    }
}

fn default_cert_cache(environment: &Environment) -> PathBuf {
    let state = environment.state_folder.as_deref().unwrap_or(Path::new(DEFAULT_STATE_FOLDER));
    state.join(CERT_CACHE_FOLDER)
}

/// The budget that was asked for, or a quarter of `limit`, and more than that only if so many
/// workers need it.
fn memory_budget(asked: Option<u64>, workers: usize, limit: u64) -> Result<u64, Exit> {
    let needed = MIN_BUDGET_BYTES_PER_WORKER * workers as u64;
    let budget = match asked {
        Some(bytes) if bytes > limit => {
            return Err(Exit::refusal(&format!(
                "--memory-budget: {} is more than the {} of memory that this process may use; \
                 a quarter of that is the default",
                units::show_bytes(bytes),
                units::show_bytes(limit)
            ))
            .about(["--memory-budget"]));
        }
        Some(bytes) => bytes,
        None => (limit / 4).max(needed).min(limit).max(MIN_BUDGET_BYTES),
    };
    if budget < needed {
        return Err(Exit::refusal(&format!(
            "--memory-budget: {} is too little for {workers} workers; give it at least {}, or \
             lower --workers",
            units::show_bytes(budget),
            units::show_bytes(needed)
        ))
        .about(["--memory-budget", "--workers"]));
    }
    Ok(budget)
}

/// What to do with them.
pub const TRIAL: &str = "Frames are JSON: type {\"hello\":1} at the phone, and the binary sees \
     {\"conn_id\":\"…\",\"frame\":{\"hello\":1}}. To answer, paste that line at the binary, with \
     another frame if you like: the phone sees the frame. (wscat runs on Node, and npx fetches it.)";

/// Two shell commands that try out a relay at `addr`: the first plays a binary, the second a
/// phone; what is typed in one arrives at the other.
#[must_use]
pub fn trial_commands(addr: SocketAddr) -> [String; 2] {
    [
        format!(
            "npx wscat -c ws://{addr}/v1/server -H X-Pyrycode-Server:demo \
             -H X-Pyrycode-Version:1 -H User-Agent:me"
        ),
        format!(
            "npx wscat -c ws://{addr}/v1/client -H X-Pyrycode-Server:demo \
             -H X-Pyrycode-Token:any -H User-Agent:me"
        ),
    ]
}

#[cfg(test)]
mod tests;
