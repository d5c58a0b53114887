//! What the program is asked to do: to serve, unless its first argument says otherwise.

use super::{flags, operations};
use std::ffi::OsString;

/// What the program is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Serve, until a signal ends it.
    Serve,
    /// Show the configuration that serving would have, or refuse what it would refuse.
    Check,
    /// Show how the running relay is doing.
    Status,
    /// Operate the running relay, by its control socket.
    Operate,
    /// Serve, in the place of the relay that starts this.
    TakeOver,
    /// Print a Grafana dashboard.
    Grafana,
    /// Print alert rules for Prometheus.
    Alerts,
    /// Print a systemd unit.
    SystemdUnit,
    /// Print a container file.
    Dockerfile,
    /// Print a configuration of HAProxy for several relays.
    Haproxy,
    /// Print a configuration of nginx for several relays.
    Nginx,
    /// Print a seccomp profile for containers.
    Seccomp,
    /// Play a relay with a binary and phones.
    Demo,
    /// Print a configuration file with every key.
    ConfigFile,
    /// Print what completes the command line in a shell.
    Completions,
    /// Print the manual page.
    Man,
}

/// What a relay starts its successor with: no command for people.
pub const TAKE_OVER: &str = "take-over";

/// Each by its name, and what it does, for the help.
pub(super) const COMMANDS: [(&str, Command, &str); 23] = [
    ("demo", Command::Demo, "Show in a few seconds what a relay does, with a binary and phones"),
    ("check", Command::Check, "Show the effective settings and their sources, or what is wrong"),
    (
        "status",
        Command::Status,
        "Show how the relay on --metrics-listen is doing, or several: status http://HOST:PORT …",
    ),
    ("watch", Command::Operate, "Show how the relay is doing and who is busiest, each second"),
    ("connections", Command::Operate, "List the running relay's connections, and what each costs"),
    (
        "disconnect",
        Command::Operate,
        "Close connections of a server-id, an address, or one of them",
    ),
    (
        "block",
        Command::Operate,
        "Block a network: refuse its connections, for a while or until `unblock`",
    ),
    ("unblock", Command::Operate, "Unblock a network"),
    ("blocked", Command::Operate, "List the blocked networks"),
    ("log-level", Command::Operate, "Change the level of the log, for a while or until a reload"),
    ("diagnose", Command::Operate, "Write an archive for a bug report, without secrets"),
    (
        "upgrade",
        Command::Operate,
        "Start the installed program, which takes over every connection of the relay that runs",
    ),
    (
        "drain",
        Command::Operate,
        "Drain the running relay: refuse new binaries, and disconnect everybody in batches",
    ),
    ("grafana", Command::Grafana, "Print a Grafana dashboard (JSON)"),
    ("alerts", Command::Alerts, "Print alert rules for Prometheus (YAML)"),
    ("systemd-unit", Command::SystemdUnit, "Print a hardened systemd unit"),
    ("dockerfile", Command::Dockerfile, "Print a container file"),
    ("seccomp", Command::Seccomp, "Print a seccomp profile for it: Docker's default and io_uring"),
    ("haproxy", Command::Haproxy, "Print a configuration of HAProxy in front of several relays"),
    ("nginx", Command::Nginx, "Print one of nginx, and what it cannot do"),
    ("config-file", Command::ConfigFile, "Print a file for --config, every key explained and off"),
    ("completions", Command::Completions, "Print what completes this in bash, zsh, fish or elvish"),
    ("man", Command::Man, "Print the manual page"),
];

impl Command {
    /// The command in `args`, of which the first is the program's name, and the arguments without
    /// it; with it where a parser of its own reads it, [`Operator`](super::Operator).
    pub fn split(args: impl IntoIterator<Item = OsString>) -> (Self, Vec<OsString>) {
        let mut args: Vec<OsString> = args.into_iter().collect();
        let named = args.get(1).and_then(|arg| {
            COMMANDS
                .iter()
                .find(|(name, ..)| *name == arg.as_os_str())
                .map(|(_, command, _)| *command)
        });
        match named {
            None if args.get(1).is_some_and(|arg| arg == TAKE_OVER) => {
                args.remove(1);
                (Self::TakeOver, args)
            }
            Some(Self::Operate) => (Self::Operate, args),
            Some(command) => {
                args.remove(1);
                (command, args)
            }
            None => (Self::Serve, args),
        }
    }
}

/// The whole command line as clap knows it, for completions and manuals: the flags of serving, which
/// most commands have too, and every command. `own` are commands that have flags of their own.
#[must_use]
pub fn command_line(own: impl IntoIterator<Item = clap::Command>) -> clap::Command {
    let serving = flags::command();
    let flags: Vec<clap::Arg> = serving.get_arguments().cloned().collect();
    let mut own: Vec<clap::Command> = own.into_iter().chain(operations::commands()).collect();
    COMMANDS.iter().fold(serving, |line, (name, _, what)| {
        let command = match own.iter().position(|command| command.get_name() == *name) {
            Some(place) => own.swap_remove(place),
            None => clap::Command::new(*name).args(flags.iter().cloned()),
        };
        line.subcommand(command.about(*what))
    })
}

/// A file for `--config` with every key, explained and commented out.
#[must_use]
pub fn config_file() -> String {
    let mut text =
        "# Settings of pyrycode-relay, for --config. SIGHUP has the relay read them again.\n\
                    # A flag or a variable (PYRYCODE_RELAY_GRACE=30s) goes before a line here.\n\
                    # What is commented out shows the default, or how the value is written.\n"
            .to_owned();
    let mut heading = "";
    let line = flags::command();
    let keys = flags::names();
    for arg in line.get_arguments().filter(|arg| !arg.is_hide_set()) {
        let Some(name) = arg.get_long().filter(|name| keys.iter().any(|key| key == name)) else {
            continue;
        };
        if name == "config" {
            continue;
        }
        let group = arg.get_help_heading().unwrap_or_default();
        if group != heading {
            text.push_str(&format!("\n\n# ---- {group}\n"));
            heading = group;
        }
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        text.push('\n');
        wrap(&mut text, &help.replace('\n', " "));
        text.push_str(&format!("# {name} = {}\n", example(arg)));
    }
    text
}

/// The default, or the form of the value.
fn example(arg: &clap::Arg) -> String {
    let default: Vec<String> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    let default = default.join(",");
    let form = || arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
    if default.is_empty() { form().unwrap_or_default() } else { default }
}

/// Appends a comment of lines of at most 100 characters.
fn wrap(text: &mut String, comment: &str) {
    let mut length = usize::MAX;
    for word in comment.split_whitespace() {
        let chars = word.chars().count();
        if length.saturating_add(chars + 1) > 100 {
            text.push_str(if length == usize::MAX { "#" } else { "\n#" });
            length = 1;
        }
        text.push(' ');
        text.push_str(word);
        length += chars + 1;
    }
    text.push('\n');
}
