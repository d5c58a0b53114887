//! The commands that operate a relay while it runs, by its control socket: each with flags of its
//! own.

use super::flags::Flags;
use super::units::{self, OrOff};
use super::{
    DEFAULT_RUNTIME_FOLDER, Exit, PROGRAM, in_runtime_folder, own_flags, runtime_folder, sources,
};
use clap::{CommandFactory as _, Parser, Subcommand};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The most server-ids that may be sent away at once: all of them are told in one turn of a worker.
const MAX_BATCH: usize = 1000;

/// What is asked of the relay that runs, and where it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// The relay's control socket.
    pub socket: PathBuf,
    /// What is asked.
    pub operation: Operation,
}

/// What is asked of the relay that runs.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Operation {
    /// Have the relay take no new binary and send everybody away, a few server-ids at a time
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
