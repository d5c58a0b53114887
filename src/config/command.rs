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
    /// Print a configuration of HAProxy for several relays.
    Haproxy,
    /// Print a configuration of nginx for several relays.
    Nginx,
}

/// Each by its name, and what it does, for the help.
pub(super) const COMMANDS: [(&str, Command, &str); 9] = [
    ("check", Command::Check, "Show the effective settings and their sources, or what is wrong"),
    (
        "status",
        Command::Status,
        "Show how the relay on --metrics-listen is doing, or several: status http://HOST:PORT …",
    ),
    ("drain", Command::Operate, "Have the relay that runs take nobody new and send everybody away"),
    ("grafana", Command::Grafana, "Print a Grafana dashboard (JSON)"),
    ("alerts", Command::Alerts, "Print alert rules for Prometheus (YAML)"),
    ("systemd-unit", Command::SystemdUnit, "Print a hardened systemd unit"),
    ("dockerfile", Command::Dockerfile, "Print a container file"),
    ("haproxy", Command::Haproxy, "Print a configuration of HAProxy in front of several relays"),
    ("nginx", Command::Nginx, "Print one of nginx, and what it cannot do"),
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
