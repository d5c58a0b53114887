//! Flags, defaults worked out from the machine, refusals (PROTOCOL.md, chapter 7).
//!
//! [`Config::from_args`] is the only way in: what it hands back has been checked, so no caller
//! needs to look again for a zero, an overflow or a contradiction.

mod flags;
mod listen;
mod machine;
mod units;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

pub use tracing::Level;

use flags::Flags;
use machine::Machine;

/// The program's name, as `--version` and every refusal begin with it.
pub const PROGRAM: &str = "pyrycode-relay";
/// The program's version, as `--version` and `/healthz` tell it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where a bare run listens: the embedded default for trying the relay out.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// The most that `--workers` may ask for, and the most that the default takes.
const MAX_WORKERS: usize = 1024;
/// The least that `--memory-budget` may be.
const MIN_BUDGET_BYTES: u64 = units::MIB;
/// What the budget must hold for each worker: a message of the greatest length (262,144 bytes)
/// while it is read and the same message while it waits to be sent.
const MIN_BUDGET_BYTES_PER_WORKER: u64 = 512 * units::KIB;
/// The memory limit that is assumed where neither a cgroup nor `/proc/meminfo` can be read.
const ASSUMED_MEMORY_LIMIT_BYTES: u64 = 256 * units::MIB;

/// All that the relay was told, and what it worked out for the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where to serve plain WebSocket.
    pub listen: Listen,
    /// Worker threads: at least 1, at most 1024.
    pub workers: usize,
    /// The CPU numbers that this process may run on, ascending and never empty; there may be
    /// fewer or more of them than workers.
    pub cpus: Vec<usize>,
    /// What all outboxes and half-read messages of the process may take together, in bytes: at
    /// least 1 MiB, at least 512 KiB for each worker, at most the memory limit.
    pub memory_budget_bytes: u64,
    /// What each worker must know.
    pub limits: Limits,
    /// How long peers have, after SIGTERM or SIGINT, to answer their close; may be zero.
    pub drain_timeout: Duration,
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

/// The limits and deadlines that one worker applies (PROTOCOL.md, chapters 2 to 5). Each is at
/// least 1 and each time at most 24 hours, so sums of a few of them cannot overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Phones for each server-id.
    pub max_phones: usize,
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
    fn default() -> Self {
        Self {
            max_phones: 16,
            grace_ms: 30_000,
            probe_timeout_ms: 10_000,
            heartbeat_interval_ms: 30_000,
            heartbeat_timeout_ms: 30_000,
            header_timeout_ms: 5_000,
            message_timeout_ms: 30_000,
            write_timeout_ms: 10_000,
            close_timeout_ms: 5_000,
        }
    }
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// logfmt: `key=value` pairs.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why the process ends before it has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The exit status: 0 for `--help` and `--version`, 2 for a refusal.
    pub code: u8,
    /// What to print, without a newline at its end. A refusal is one line that says what is wrong
    /// and how to mend it.
    pub message: String,
    /// To standard output rather than standard error.
    pub to_stdout: bool,
}

impl Exit {
    fn refusal(reason: &str) -> Self {
        let mut message = format!("{PROGRAM}: ");
        for c in reason.chars() {
            // What was typed may hold anything; the refusal stays one line all the same.
            if c.is_control() { message.extend(c.escape_default()) } else { message.push(c) }
        }
        Self { code: 2, message, to_stdout: false }
    }
}

impl Config {
    /// Reads the flags in `args`, which begins with the program's name as
    /// [`std::env::args_os`] does, and looks at the machine for what they leave open. Call it
    /// before any thread is pinned: it counts the CPUs that the calling thread may use.
    ///
    /// # Errors
    ///
    /// [`Exit`] for `--help`, `--version`, and whatever cannot be served; a refusal is always the
    /// operator's to mend.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, Exit> {
        Self::from_flags(&Flags::parse(args)?, Machine::observe())
    }

    fn from_flags(flags: &Flags, machine: Machine) -> Result<Self, Exit> {
        let workers = flags.workers.unwrap_or(machine.parallelism.clamp(1, MAX_WORKERS));
        let memory_limit = machine.memory_limit_bytes.unwrap_or(ASSUMED_MEMORY_LIMIT_BYTES);
        Ok(Self {
            listen: Listen {
                addr: flags.insecure_listen.unwrap_or(DEFAULT_LISTEN),
                is_default: flags.insecure_listen.is_none(),
            },
            workers,
            cpus: machine.cpus,
            memory_budget_bytes: memory_budget(flags.memory_budget, workers, memory_limit)?,
            limits: flags.limits(),
            drain_timeout: Duration::from_millis(flags.drain_timeout),
            log_format: flags.log_format,
            log_level: flags.log_level,
        })
    }
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
            )));
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
        )));
    }
    Ok(budget)
}

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
