//! What the program is asked to do: to serve, unless its first argument says otherwise.

use std::ffi::OsString;

/// What the program is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Serve, until a signal ends it.
    Serve,
    /// Show the configuration that serving would have, or refuse what it would refuse.
    Check,
    /// Show how the relay that runs is doing.
    Status,
    /// Operate the relay that runs, by its control socket.
    Operate,
    /// Print a Grafana dashboard.
    Grafana,
    /// Print alert rules for Prometheus.
    Alerts,
    /// Print a systemd unit.
    SystemdUnit,
    /// Print a container file.
    Dockerfile,
}

/// Each by its name, and what it does, for the help.
pub(super) const COMMANDS: [(&str, Command, &str); 15] = [
    ("check", Command::Check, "Show the effective settings and their sources, or what is wrong"),
    ("status", Command::Status, "Show how the relay that serves on --metrics-listen is doing"),
    ("watch", Command::Operate, "Show how the relay is doing and who is busiest, each second"),
    (
        "connections",
        Command::Operate,
        "List who is connected to the relay that runs, and what they cost",
    ),
    (
        "disconnect",
        Command::Operate,
        "Close connections of a server-id, an address, or one of them",
    ),
    ("block", Command::Operate, "Keep a network out, for a while or until `unblock`"),
    ("unblock", Command::Operate, "Let a network in again"),
    ("blocked", Command::Operate, "List the networks that are kept out"),
    ("log-level", Command::Operate, "Change the level of the log, for a while or until a reload"),
    ("diagnose", Command::Operate, "Write an archive for a bug report, without secrets"),
    ("drain", Command::Operate, "Have the relay that runs take nobody new and send everybody away"),
    ("grafana", Command::Grafana, "Print a Grafana dashboard (JSON)"),
    ("alerts", Command::Alerts, "Print alert rules for Prometheus (YAML)"),
    ("systemd-unit", Command::SystemdUnit, "Print a hardened systemd unit"),
    ("dockerfile", Command::Dockerfile, "Print a container file"),
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
            Some(Self::Operate) => (Self::Operate, args),
            Some(command) => {
                args.remove(1);
                (command, args)
            }
            None => (Self::Serve, args),
        }
    }
}
