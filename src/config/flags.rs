//! The command line: every flag with its unit, default and meaning, and clap's errors as one line.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, FromArgMatches as _, Parser};
use hyper::Uri;

use super::command::COMMANDS;
use super::{
    ByteRate, DEFAULT_LISTEN, Exit, LEVELS, Level, Limits, LogFormat, MAX_WORKERS,
    MIN_BUDGET_BYTES, OnFailure, PROGRAM, RateLimit, RingFeatures, TRIAL, TokenHeader, VERSION,
    Verify, listen, networks, ring_features, trial_commands, units,
};

/// The most connections that may be asked for: more than any kernel gives descriptors.
const MAX_CONNECTIONS: usize = 1 << 30;
/// The most phones that one server-id may be given.
const MAX_PHONES: usize = 65_536;

/// A flag without a value in the Go relay.
const NAMES_PROXIES: &str = "--trust-x-forwarded-for";

const ABOUT: &str = "\
Connects phones to a pyry daemon that no one can dial, because it is behind NAT. The daemon (the \
binary) and its phones all dial out to this relay, which routes their WebSocket messages by \
server-id. It never looks inside a message and keeps nothing on disk.

Without any flag it serves plain WebSocket on 127.0.0.1:8080, for trying it out.";

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
    /// Serve plain WebSocket (no TLS) on this address. `:8080` means all interfaces; port 0 takes
    /// any free port, which is logged [default: 127.0.0.1:8080]
    #[arg(help_heading = "Listening", long, value_name = "HOST:PORT", value_parser = listen::parse)]
    pub(super) insecure_listen: Option<SocketAddr>,

    /// Serve wss://DOMAIN, with a certificate that ACME (Let's Encrypt) issues and the relay
    /// renews; requests for any other host are refused
    #[arg(help_heading = "HTTPS", long, value_name = "DOMAIN", value_parser = listen::domain)]
    pub(super) domain: Option<String>,

    /// Where to serve HTTPS [default: :443]
    #[arg(help_heading = "HTTPS", long, value_name = "HOST:PORT", value_parser = listen::parse)]
    pub(super) https_listen: Option<SocketAddr>,

    /// Where to answer ACME's http-01 challenges, which come to port 80 of the domain. If empty,
    /// only tls-alpn-01 challenges are answered, on the HTTPS port [default: :80]
    #[arg(help_heading = "HTTPS", long, value_name = "HOST:PORT", value_parser = listen::or_off)]
    pub(super) http_listen: Option<units::OrOff<SocketAddr>>,

    /// Folder for the ACME account and certificate; only the relay's user has access
    /// [default: $STATE_DIRECTORY/certificates, or /var/lib/pyrycode-relay/certificates]
    #[arg(help_heading = "HTTPS", long, value_name = "FOLDER")]
    pub(super) cert_cache: Option<PathBuf>,

    /// Serve HTTPS with this certificate chain (PEM, the leaf first), which is reloaded when it
    /// changes
    #[arg(help_heading = "HTTPS", long, value_name = "FILE")]
    pub(super) tls_cert: Option<PathBuf>,

    /// The private key of --tls-cert (PEM)
    #[arg(help_heading = "HTTPS", long, value_name = "FILE")]
    pub(super) tls_key: Option<PathBuf>,

    /// The ACME directory to order from [default: Let's Encrypt's]
    #[arg(help_heading = "HTTPS", long, value_name = "URL")]
    pub(super) acme_directory: Option<String>,

    /// Certificate authorities (PEM) to trust when talking to --acme-directory, for a private one
    #[arg(help_heading = "HTTPS", long, value_name = "FILE")]
    pub(super) acme_ca: Option<PathBuf>,

    /// Every HTTPS connection begins with a PROXY protocol v2 header, which names the client
    #[arg(
        help_heading = "Behind a proxy", long, num_args = 0..=1, require_equals = true,
        default_value_t = false, default_missing_value = "true", value_name = "BOOL",
        hide_default_value = true, hide_possible_values = true
    )]
    pub(super) https_proxy_protocol: bool,

    /// Plain connections from these networks begin with a PROXY protocol v2 header
    #[arg(
        help_heading = "Behind a proxy", long, value_name = "CIDR,…", default_value = "",
        hide_default_value = true, value_parser = networks::parse
    )]
    pub(super) proxy_protocol_from: networks::Networks,

    /// Proxies whose X-Forwarded-For is trusted: the client is its right-most address that is in
    /// none of these networks
    #[arg(
        help_heading = "Behind a proxy", long, value_name = "CIDR,…", default_value = "",
        hide_default_value = true, value_parser = networks::trusted
    )]
    pub(super) trust_x_forwarded_for: networks::Networks,

    /// Where metrics and the status page are served: a loopback address; empty for none
    /// [default: 127.0.0.1:9090]
    #[arg(
        help_heading = "Watching it", long, value_name = "IP:PORT", value_parser = listen::loopback
    )]
    pub(super) metrics_listen: Option<units::OrOff<SocketAddr>>,

    /// Unix socket by which the relay's user and root operate it while it runs, with commands such as
    /// `drain`; empty for none [default: control.sock in $RUNTIME_DIRECTORY, none without that]
    #[arg(
        help_heading = "Watching it", long, value_name = "PATH", value_parser = control_socket
    )]
    pub(super) control_socket: Option<units::OrOff<PathBuf>>,

    /// Serve only the server-ids in this file, which SIGHUP reads again: one a line, or the SHA-256 of
    /// one in hexadecimal; `# ` begins a comment. Binaries and phones of others get 403
    #[arg(help_heading = "Who may come", long, value_name = "FILE")]
    pub(super) allow_server_ids: Option<PathBuf>,

    /// Whether phones must send X-Pyrycode-Token
    #[arg(
        help_heading = "Who may come", long, value_name = "WHETHER", value_enum,
        default_value_t = TokenHeader::Required
    )]
    pub(super) token_header: TokenHeader,

    /// Rate limit on the upgrades of everybody together: a burst, and the time that refills one; or
    /// `off`. Beyond it 503, with a Retry-After that spreads those who come at once after a restart
    #[arg(
        help_heading = "Who may come", long, value_name = "BURST/DURATION", default_value = "off",
        value_parser = units::rate
    )]
    pub(super) new_connections_rate: units::OrOff<RateLimit>,

    /// Ask this HTTP server whether a binary may have the server-id that it claims, by its address: see
    /// README. Phones of an id that no binary has are turned away anyway
    #[arg(
        help_heading = "Who may come", long, value_name = "URL", value_parser = listen::url_or_off
    )]
    pub(super) verify_url: Option<units::OrOff<Uri>>,

    /// How long --verify-url has to answer
    #[arg(
        help_heading = "Who may come", long, value_name = "DURATION", default_value = "3s",
        value_parser = units::duration(1)
    )]
    pub(super) verify_timeout: u64,

    /// What becomes of a claim where --verify-url gives no usable answer in time: `deny` answers 503
    #[arg(
        help_heading = "Who may come", long, value_name = "WHAT", value_enum,
        default_value_t = OnFailure::Deny
    )]
    pub(super) verify_on_failure: OnFailure,

    /// Bytes per second that one server-id may send, its binary and phones together, and how much of
    /// that at once if it is not one second's; or `off`. Beyond it they are not read for a moment
    #[arg(
        help_heading = "Resources", long, value_name = "SIZE/s,BURST", default_value = "off",
        value_parser = units::byte_rate
    )]
    pub(super) server_id_rate: units::OrOff<ByteRate>,

    /// Rate limit on one address's upgrade requests: a burst, and the time that refills one; or
    /// `off`
    #[arg(
        help_heading = "Resources", long, value_name = "BURST/DURATION", default_value = "20/6s",
        value_parser = units::rate
    )]
    pub(super) rate_limit: units::OrOff<RateLimit>,

    /// Rate limit on one address's TLS handshakes: a burst, and the time that refills one; or `off`
    #[arg(
        help_heading = "Resources", long, value_name = "BURST/DURATION", default_value = "60/1s",
        value_parser = units::rate
    )]
    pub(super) handshake_rate: units::OrOff<RateLimit>,

    /// Networks whose connections are refused before TLS; commands can block others while the relay
    /// runs
    #[arg(
        help_heading = "Resources", long, value_name = "CIDR,…", default_value = "",
        hide_default_value = true, value_parser = networks::blocked
    )]
    pub(super) block: networks::Networks,

    /// WebSocket connections in all [default: what descriptors and memory allow]
    #[arg(
        help_heading = "Resources", long, value_name = "COUNT",
        value_parser = units::count(MAX_CONNECTIONS)
    )]
    pub(super) max_connections: Option<usize>,

    /// WebSocket connections of one address (IPv6: of one /64), or `off` [default: a quarter of
    /// --max-connections, at least 16]
    #[arg(
        help_heading = "Resources", long, value_name = "COUNT",
        value_parser = units::count_or_off(MAX_CONNECTIONS)
    )]
    pub(super) max_connections_per_address: Option<units::OrOff<usize>>,

    /// Worker threads, each with its own io_uring and listener, pinned to a CPU; 1 to 1024
    /// [default: the CPUs that this process may use]
    #[arg(
        help_heading = "Resources", long, value_name = "COUNT",
        value_parser = units::count(MAX_WORKERS)
    )]
    pub(super) workers: Option<usize>,

    /// io_uring features of newer kernels that are not to be used, where one is at fault:
    /// registered-ring, no-iowait, quick-sends
    #[arg(
        help_heading = "Resources", long, value_name = "FEATURE,…", default_value = "",
        hide_default_value = true, value_parser = ring_features::without
    )]
    pub(super) io_uring_without: RingFeatures,

    /// Memory for all messages that wait to be sent or are half read, in the whole process; beyond
    /// it the connection with the largest backlog is ended. At least 1MiB for each worker
    /// [default: a quarter of the memory limit of the cgroup or the machine]
    #[arg(
        help_heading = "Resources", long, value_name = "SIZE",
        value_parser = units::size(MIN_BUDGET_BYTES)
    )]
    pub(super) memory_budget: Option<u64>,

    /// Phones that may be connected to one server-id at a time
    #[arg(
        help_heading = "Resources", long, value_name = "COUNT", default_value = "16",
        value_parser = units::count(MAX_PHONES)
    )]
    pub(super) max_phones: usize,

    /// How long a server-id and its phones wait for a binary that disconnected
    #[arg(
        help_heading = "Holding a server-id", long, value_name = "DURATION",
        default_value = "30s", value_parser = units::duration(1)
    )]
    pub(super) grace: u64,

    /// How long the holder of a server-id has to answer a ping when another binary claims the id,
    /// before it loses it
    #[arg(
        help_heading = "Holding a server-id", long, value_name = "DURATION",
        default_value = "10s", value_parser = units::duration(1)
    )]
    pub(super) probe_timeout: u64,

    /// How often each connection is pinged
    #[arg(
        help_heading = "Deadlines", long, value_name = "DURATION",
        default_value = "30s", value_parser = units::duration(1)
    )]
    pub(super) heartbeat_interval: u64,

    /// How long a peer has to answer a ping before it is closed
    #[arg(
        help_heading = "Deadlines", long, value_name = "DURATION",
        default_value = "30s", value_parser = units::duration(1)
    )]
    pub(super) heartbeat_timeout: u64,

    /// How long a request head may take to arrive
    #[arg(
        help_heading = "Deadlines", long, value_name = "DURATION",
        default_value = "5s", value_parser = units::duration(1)
    )]
    pub(super) header_timeout: u64,

    /// How long one message may take to arrive
    #[arg(
        help_heading = "Deadlines", long, value_name = "DURATION",
        default_value = "30s", value_parser = units::duration(1)
    )]
    pub(super) message_timeout: u64,

    /// How long a write may make no progress before the connection is aborted
    #[arg(
        help_heading = "Deadlines", long, value_name = "DURATION",
        default_value = "10s", value_parser = units::duration(1)
    )]
    pub(super) write_timeout: u64,

    /// How long a peer has to answer a close before its TCP connection is aborted
    #[arg(
        help_heading = "Deadlines", long, value_name = "DURATION",
        default_value = "5s", value_parser = units::duration(1)
    )]
    pub(super) close_timeout: u64,

    /// How long connections have to close after SIGTERM or SIGINT; 0s does not wait
    #[arg(
        help_heading = "Deadlines", long, value_name = "DURATION",
        default_value = "10s", value_parser = units::duration(0)
    )]
    pub(super) drain_timeout: u64,

    /// Over what part of --drain-timeout the closes of SIGTERM or SIGINT are spread, so that not
    /// everybody dials again at once; 0s tells all at once
    #[arg(
        help_heading = "Deadlines", long, value_name = "DURATION",
        default_value = "0s", value_parser = units::duration(0)
    )]
    pub(super) drain_spread: u64,

    /// Read settings that are not given otherwise from this file, which SIGHUP reloads: a line for
    /// each flag, `name = value`, without dashes; # begins a comment
    #[arg(help_heading = "Logs and configuration", long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    /// How log lines on standard error are written: `text` is logfmt
    #[arg(
        help_heading = "Logs and configuration", long, value_name = "FORMAT", value_enum,
        default_value_t = LogFormat::Text
    )]
    pub(super) log_format: LogFormat,

    /// The least severe level that is logged
    #[arg(
        help_heading = "Logs and configuration", long, value_name = "LEVEL", default_value = "info",
        value_parser = PossibleValuesParser::new(LEVELS)
            .try_map(|level| level.parse::<Level>())
    )]
    pub(super) log_level: Level,

    /// Stands in for the credentials' token_uri, in tests.
    #[arg(long, value_name = "URL", hide = true)]
    pub(super) fcm_token_url: Option<String>,

    /// Stands in for https://fcm.googleapis.com, in tests.
    #[arg(long, value_name = "URL", hide = true)]
    pub(super) fcm_url: Option<String>,

    /// Certificate authorities to trust when talking to these, in tests.
    #[arg(long, value_name = "FILE", hide = true)]
    pub(super) fcm_ca: Option<PathBuf>,
}

/// A path, or nothing for none.
fn control_socket(text: &str) -> Result<units::OrOff<PathBuf>, String> {
    Ok(match text {
        "" => units::OrOff::Off,
        path => units::OrOff::On(path.into()),
    })
}

impl Flags {
    /// Reads `args`, of which the first is the program's name. As in Go's `flag` package one dash
    /// is as good as two, and of a flag that is given twice the last counts.
    ///
    /// # Errors
    ///
    /// The refusal, and the flag that it is about, if any.
    pub(super) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, Exit> {
        let (args, _) = double_dashes(args);
        // Given as a switch, it would take the next flag for its value, and whatever stands behind
        // that would be blamed.
        let is_switch = |two: &[OsString]| {
            let is_flag = |arg: &OsString| arg.as_encoded_bytes().starts_with(b"-");
            matches!(two, [name, next] if name == NAMES_PROXIES && is_flag(next))
        };
        if args.windows(2).any(is_switch) {
            let reason = format!("{NAMES_PROXIES}: {}", networks::NOT_A_SWITCH);
            return Err(Exit::refusal(&reason).about([NAMES_PROXIES]));
        }
        command()
            .try_get_matches_from(args)
            .and_then(|matches| Self::from_arg_matches(&matches))
            .map_err(|err| refusal(&err))
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            max_phones: self.max_phones,
            token_header: self.token_header,
            server_id_rate: self.server_id_rate.on(),
            verify: Verify {
                is_on: matches!(self.verify_url, Some(units::OrOff::On(_))),
                timeout_ms: self.verify_timeout,
                on_failure: self.verify_on_failure,
            },
            grace_ms: self.grace,
            probe_timeout_ms: self.probe_timeout,
            heartbeat_interval_ms: self.heartbeat_interval,
            heartbeat_timeout_ms: self.heartbeat_timeout,
            header_timeout_ms: self.header_timeout,
            message_timeout_ms: self.message_timeout,
            write_timeout_ms: self.write_timeout,
            close_timeout_ms: self.close_timeout,
        }
    }
}

pub(super) fn command() -> clap::Command {
    let commands: String =
        COMMANDS.iter().map(|(name, _, what)| format!("  {name:14}{what}\n")).collect();
    // In two lines each, which no terminal wraps: what is wrapped cannot be copied.
    let [binary, phone] =
        trial_commands(DEFAULT_LISTEN).map(|command| command.replacen(" -H", " \\\n    -H", 1));
    Flags::command()
        // As in Go, what follows a flag is its value, so that `--grace -5s` is told what is wrong.
        .mut_args(|arg| {
            let takes_value = takes_value(&arg);
            arg.allow_hyphen_values(takes_value)
        })
        .after_help(format!(
            "Commands, in front of the flags:\n{commands}\n\
             Every flag can also be given as an environment variable, PYRYCODE_RELAY_ and its name in capitals: \
             PYRYCODE_RELAY_MAX_PHONES=8. A flag overrides a variable, which overrides the file \
             of --config. PYRYCODE_RELAY_PRODUCTION=1 refuses settings that are unsafe in production; \
             it requires PYRYCODE_RELAY_SINGLE_INSTANCE=1 to confirm that no other relay serves the \
             same daemons, or PYRYCODE_RELAY_ONE_OF_MANY=1 to confirm that a balancer sends each \
             server-id to one of them. PYRYCODE_RELAY_FCM_CREDENTIALS is the key to push messages, or the \
             path to it.\n\n\
             A DURATION is written 500ms, 30s, 1m30s or 2h, and is 1ms to 24h. A SIZE is written \
             64KiB, 256MiB, 1GiB (or kB, MB, GB, or plain bytes).\n\n\
             Try it out: start the relay, then in two other terminals play a binary and a \
             phone.\n\n  {binary}\n\n  {phone}\n\n{TRIAL}"
        ))
}

/// Whether what follows the flag is its value; that of a switch only follows an equals sign.
fn takes_value(arg: &clap::Arg) -> bool {
    arg.get_value_parser().type_id() != clap::builder::ValueParser::bool().type_id()
}

/// Turns Go's `-grace` into `--grace`, and leaves values and single letters as they are.
/// Also says which flags are there.
pub(super) fn double_dashes(
    args: impl IntoIterator<Item = OsString>,
) -> (Vec<OsString>, BTreeSet<String>) {
    let command = command();
    let known = names();
    let valued: BTreeSet<&str> = command
        .get_arguments()
        .filter(|arg| takes_value(arg))
        .filter_map(|arg| arg.get_long())
        .collect();
    let mut is_value = true;
    let mut fixed = Vec::new();
    let mut given = BTreeSet::new();
    for arg in args {
        let name = arg.to_str().filter(|_| !is_value).map(|text| text.trim_start_matches('-'));
        is_value = false;
        match (name, arg.to_str()) {
            (Some(name), Some(text)) if text.len() - name.len() == 1 && name.len() > 1 => {
                fixed.push(format!("--{name}").into());
            }
            _ => fixed.push(arg.clone()),
        }
        if let Some(name) = name {
            is_value = valued.contains(name);
            let name = name.split('=').next().unwrap_or(name);
            if known.iter().any(|known| known == name) {
                given.insert(name.to_owned());
            }
        }
    }
    (fixed, given)
}

/// The flags that may also be given elsewhere, without dashes.
pub(super) fn names() -> Vec<String> {
    let command = Flags::command();
    command.get_arguments().filter_map(|arg| arg.get_long()).map(ToOwned::to_owned).collect()
}

/// What `--help` or `--version` is answered, if either is among `args`, which begins with the
/// program's name. Nothing else is looked at, so nothing that is wrong elsewhere is in the way.
#[must_use]
pub fn help(args: &[OsString]) -> Option<String> {
    let (args, _) = double_dashes(args.iter().cloned());
    let err = command().try_get_matches_from(args).err()?;
    let is_asked = matches!(err.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    is_asked.then(|| err.to_string().trim_end().to_owned())
}

/// What clap says in several lines, said in one.
fn refusal(err: &clap::Error) -> Exit {
    let context = |kind| match err.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        Some(ContextValue::Strings(texts)) => texts.first().map(String::as_str),
        _ => None,
    };
    // clap names a flag together with its value: --grace <DURATION>, or --switch[=<BOOL>].
    let arg = context(ContextKind::InvalidArg).unwrap_or_default();
    let flag = arg.split(" <").next().unwrap_or_default();
    let flag = flag.split("[=").next().unwrap_or_default();
    let value = context(ContextKind::InvalidValue).unwrap_or_default();
    let refusal = Exit::refusal(&match err.kind() {
        ErrorKind::ValueValidation => {
            format!("{flag}: {}", err.source().map(ToString::to_string).unwrap_or_default())
        }
        ErrorKind::InvalidValue => {
            let choices = match err.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(choices)) if !choices.is_empty() => choices.join(", "),
                _ => arg.split(" <").nth(1).unwrap_or_default().trim_end_matches('>').to_owned(),
            };
            if value.is_empty() && flag == NAMES_PROXIES {
                format!("{flag}: {}", networks::NOT_A_SWITCH)
            } else if value.is_empty() {
                format!("{flag}: it needs a value: {choices}")
            } else {
                format!("{flag}: {value:?} is not one of {choices}")
            }
        }
        ErrorKind::UnknownArgument if flag.starts_with('-') => {
            let hint = context(ContextKind::SuggestedArg)
                .map(|name| format!("did you mean {name}? "))
                .unwrap_or_default();
            format!("{flag} is not a flag of this relay; {hint}`{PROGRAM} --help` lists them all")
        }
        ErrorKind::UnknownArgument if COMMANDS.iter().any(|(name, ..)| *name == flag) => {
            format!("{flag} is a command, which stands first: `{PROGRAM} {flag} …`")
        }
        ErrorKind::UnknownArgument => {
            format!("{flag:?} is not a flag; `{PROGRAM} --help` lists them all")
        }
        _ => {
            let text = err.to_string();
            let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            format!("{line}; `{PROGRAM} --help` lists all flags")
        }
    });
    refusal.about([flag])
}
