//! The command line: Go's spelling of flags is read too, and clap's errors are said in one line.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, FromArgMatches as _};

use super::command::COMMANDS;
use super::settings::Flags;
use super::units::OrOff;
use super::{DEFAULT_LISTEN, Exit, Limits, PROGRAM, TRIAL, Verify, networks, trial_commands};

/// A flag without a value in the Go relay.
const NAMES_PROXIES: &str = "--trust-x-forwarded-for";

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
                is_on: matches!(self.verify_url, Some(OrOff::On(_))),
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
