//! The commands that operate a relay while it runs, by its control socket: each with flags of its
//! own.

use super::settings::Flags;
use super::units::{self, OrOff};
use super::{
    DEFAULT_RUNTIME_FOLDER, Exit, IpNet, LEVELS, PROGRAM, in_runtime_folder, networks, own_flags,
    runtime_folder, sources,
};
use clap::builder::PossibleValuesParser;
use clap::{ArgGroup, CommandFactory as _, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The most server-ids that may be sent away at once: all of them are told in one turn of a worker.
const MAX_BATCH: usize = 1000;

/// What is asked of the running relay, and where it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// The relay's control socket.
    pub socket: PathBuf,
    /// What is asked.
    pub operation: Operation,
}

/// What is asked of the running relay.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Operation {
    /// Show how the relay is doing and which connections are busiest, refreshed each second
    ///
    /// `q` or Ctrl-C ends it.
    Watch,

    /// List who is connected, and what they cost
    ///
    /// Without --by, each connection has a line, in no particular order. Messages and bytes are those
    /// that the peer has sent (in) and got (out), as they are on the wire.
    Connections {
        /// Sum up by `server-id` or `address`, or sort by `bytes`, `backlog` or `age`; what is largest
        /// comes first
        #[arg(long, value_name = "WHAT", value_enum)]
        by: Option<By>,

        /// Show no more lines than this
        #[arg(long, value_name = "COUNT", value_parser = units::count(usize::MAX >> 1))]
        top: Option<usize>,

        /// Print a JSON object for each line
        #[arg(long)]
        json: bool,
    },

    /// Close connections in good order, and say how many
    ///
    /// A binary's server-id is in grace then, as after any other close. Connections that were not
    /// upgraded yet are aborted.
    #[command(group(ArgGroup::new("whom").required(true).args(["server_id", "conn_id", "address"])))]
    Disconnect {
        /// The binary and the phones of this server-id
        #[arg(long, value_name = "ID")]
        server_id: Option<String>,

        /// The connection with this conn-id, as the log and `connections` have it
        #[arg(long, value_name = "CONN-ID")]
        conn_id: Option<String>,

        /// Whoever comes from this network or address
        #[arg(long, value_name = "CIDR", value_parser = networks::network)]
        address: Option<IpNet>,

        /// The close code that they are told
        #[arg(long, value_name = "CODE", default_value = "1008", value_parser = close_code)]
        code: u16,

        /// The reason that they are told, at most 123 bytes
        #[arg(long, value_name = "TEXT", default_value = "disconnected by the operator", value_parser = reason)]
        reason: String,
    },

    /// Block a network or an address: its connections are refused before TLS
    ///
    /// The block outlives a reload and ends with a restart; `--block` outlives both. Connections that
    /// are open stay open: see `disconnect --address`.
    Block {
        /// The network or address
        #[arg(value_name = "CIDR", value_parser = networks::network)]
        network: IpNet,

        /// How long; without this, until `unblock` or a restart
        #[arg(long = "for", value_name = "DURATION", value_parser = units::duration(1))]
        for_ms: Option<u64>,
    },

    /// Unblock a network that `block` has blocked
    Unblock {
        /// The network or address
        #[arg(value_name = "CIDR", value_parser = networks::network)]
        network: IpNet,
    },

    /// List the blocked networks
    Blocked {
        /// Print a JSON object for each
        #[arg(long)]
        json: bool,
    },

    /// Change the least severe level that is logged
    LogLevel {
        /// The level
        #[arg(value_parser = PossibleValuesParser::new(LEVELS))]
        level: String,

        /// Return to the configured level after this time; without this, with the next reload
        #[arg(long = "for", value_name = "DURATION", value_parser = units::duration(1))]
        for_ms: Option<u64>,
    },

    /// Write an archive for a bug report
    ///
    /// It has the effective configuration, status, metrics, the last warnings, what the kernel allows, and
    /// its io_uring features; no secret, and no address or name of a peer.
    Diagnose {
        /// The archive (tar), which must not be there yet
        #[arg(long, value_name = "FILE", default_value = "pyrycode-relay-diagnose.tar")]
        output: PathBuf,

        /// Leave addresses, server-ids and the domain in it
        #[arg(long)]
        with_addresses: bool,
    },

    /// Start the program that is installed now, which takes over every connection of the relay
    ///
    /// Nobody is disconnected: the new process gets the listeners, all connections, plain and over TLS,
    /// and all that the relay knows of them; peers notice a pause. It has the same arguments and
    /// environment, and reads the configuration file afresh. If it refuses, fails or hangs, the relay
    /// goes on as it is, and this command says why and exits with 1. SIGUSR2 does the same.
    Upgrade {
        /// Start this program instead of the one that is installed where the relay's was
        #[arg(long, value_name = "PATH")]
        program: Option<PathBuf>,

        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },

    /// Drain the relay: refuse new binaries, and disconnect everybody, a few server-ids at a time
    ///
    /// It is not ready from now on (/readyz answers 503) and answers claims of binaries with 503. Then
    /// each server-id is freed and its binary and phones are closed with 1012 (service restart), so
    /// that they dial again, and a balancer leads them elsewhere. The process runs until it is
    /// stopped; `drain --cancel` lets everybody in again.
    Drain {
        /// Let everybody in again
        #[arg(long, conflicts_with_all = ["batch", "every", "delay", "no_wait"])]
        cancel: bool,

        /// Server-ids that are sent away at once
        #[arg(long, value_name = "COUNT", default_value = "50", value_parser = units::count(MAX_BATCH))]
        batch: usize,

        /// The time from one batch to the next
        #[arg(
            long, value_name = "DURATION", default_value = "500ms",
            value_parser = units::duration(1)
        )]
        every: u64,

        /// The time before the first batch, in which balancers notice that the relay is not ready
        #[arg(
            long, value_name = "DURATION", default_value = "2s", value_parser = units::duration(0)
        )]
        delay: u64,

        /// Do not wait until the last server-id was sent away
        #[arg(long)]
        no_wait: bool,
    },
}

/// By what connections are summed up or sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// One line for each server-id.
    ServerId,
    /// One line for each address.
    Address,
    /// The connection with the most bytes first.
    Bytes,
    /// The one first for which most waits.
    Backlog,
    /// The oldest first.
    Age,
}

/// The codes that an endpoint may send.
fn close_code(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(code @ (1000..=1003 | 1007..=1014 | 3000..=4999)) => Ok(code),
        _ => Err("write 1000 to 1003, 1007 to 1014, or 3000 to 4999".to_owned()),
    }
}

/// As much as fits into a close frame.
fn reason(text: &str) -> Result<String, String> {
    match text.len() {
        0..=123 => Ok(text.to_owned()),
        length => Err(format!("{length} bytes are too many; write at most 123")),
    }
}

/// The command line of such a command.
#[derive(Debug, Parser)]
#[command(
    name = PROGRAM,
    override_usage = "pyrycode-relay COMMAND [FLAGS]",
    disable_help_subcommand = true,
    subcommand_required = true
)]
struct CommandLine {
    /// The relay's control socket [default: control.sock in $RUNTIME_DIRECTORY or
    /// /run/pyrycode-relay]
    #[arg(long, value_name = "PATH", global = true, help_heading = "Which relay")]
    control_socket: Option<OsString>,

    /// The relay's configuration file, which may name its control socket
    #[arg(long, value_name = "FILE", global = true, help_heading = "Which relay")]
    config: Option<OsString>,

    #[command(subcommand)]
    operation: Operation,
}

/// These commands, each with all of its flags.
pub(super) fn commands() -> Vec<clap::Command> {
    let mut line = CommandLine::command();
    line.build();
    line.get_subcommands().cloned().collect()
}

impl Operator {
    /// What `--help` of such a command is answered, if it is among `args`.
    #[must_use]
    pub fn help(args: &[OsString]) -> Option<String> {
        own_flags::help::<CommandLine>(args.to_vec())
    }

    /// Reads `args`, which begins with the program's name and the command's.
    ///
    /// # Errors
    ///
    /// As [`Config::from_args`](super::Config::from_args).
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, Exit> {
        let hint = format!("`{PROGRAM} COMMAND --help` lists the flags of a command");
        let CommandLine { control_socket, config, operation } =
            own_flags::parse(args.into_iter().collect(), &hint)?;
        let mut relay = vec![OsString::from(PROGRAM)];
        for (flag, value) in [("--control-socket=", control_socket), ("--config=", config)] {
            relay.extend(value.map(|value| {
                let mut word = OsString::from(flag);
                word.push(value);
                word
            }));
        }
        let flags = sources::gather(relay, std::env::vars_os())?.flags;
        Ok(Self { socket: socket(flags)?, operation })
    }
}

/// Where the relay is reached that these flags belong to.
fn socket(flags: Flags) -> Result<PathBuf, Exit> {
    match flags.control_socket {
        Some(OrOff::On(path)) => Ok(path),
        Some(OrOff::Off) => Err(Exit::refusal(
            "--control-socket is empty, so no relay can be asked; give the one that it was started \
             with",
        )),
        None => {
            let folder = runtime_folder();
            Ok(in_runtime_folder(folder.as_deref().unwrap_or(Path::new(DEFAULT_RUNTIME_FOLDER))))
        }
    }
}
