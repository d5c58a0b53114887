//! Arguments to a [`Command`] and its [`Config`], then run; nothing else.

use pyrycode_relay::config::{self, Command, Config, Exit, Operator};
use pyrycode_relay::control::{Invocation, STATUS_SCHEME, assets, balancer, demo, manual};
use pyrycode_relay::{control, telemetry};
use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

/// What is left to do once a command has ended.
struct Ended {
    /// The exit status.
    code: u8,
    /// What is printed, if anything is left to be said.
    text: Option<String>,
}

impl Ended {
    fn silently() -> Self {
        Self { code: 0, text: None }
    }

    fn with(text: impl Into<String>) -> Self {
        Self { code: 0, text: Some(text.into()) }
    }
}

fn main() -> ExitCode {
    die_of_panics();
    let (command, args) = Command::split(std::env::args_os());
    let ended = match help(command, &args) {
        Some(text) => Ok(Ended::with(text)),
        None => obey(command, args),
    };
    let is_refused = ended.is_err();
    let Ended { code, text } =
        ended.unwrap_or_else(|exit| Ended { code: exit.code, text: Some(exit.to_string()) });
    let Some(text) = text else { return ExitCode::from(code) };
    telemetry::with_patience(move || {
        // Nobody may be there to read it; the exit code is told all the same.
        let _ = match is_refused {
            false => writeln!(std::io::stdout(), "{}", text.trim_end()),
            true => writeln!(std::io::stderr(), "{text}"),
        };
    });
    ExitCode::from(code)
}

/// What `--help` or `--version` is answered, if either is asked for.
fn help(command: Command, args: &[OsString]) -> Option<String> {
    match command {
        Command::Operate => Operator::help(args),
        Command::Haproxy => balancer::haproxy_help(args),
        Command::Nginx => balancer::nginx_help(args),
        _ => config::help(args),
    }
}

/// Does what is asked.
fn obey(command: Command, args: Vec<OsString>) -> Result<Ended, Exit> {
    match command {
        Command::Serve => serve(args, false),
        Command::TakeOver => serve(args, true),
        Command::Demo => {
            Config::from_args(args).and_then(|_| demo::demo()).map(|()| Ended::silently())
        }
        Command::Check => check(args),
        Command::Status => status(args),
        Command::Operate => {
            control::operate(&Operator::from_args(args)?).map(|()| Ended::silently())
        }
        Command::Grafana => print(args, assets::GRAFANA),
        Command::Alerts => print(args, assets::ALERTS),
        Command::SystemdUnit => print(args, assets::SYSTEMD_UNIT),
        Command::Dockerfile => print(args, assets::DOCKERFILE),
        Command::Seccomp => print(args, assets::SECCOMP),
        Command::ConfigFile => print(args, &config::config_file()),
        Command::Haproxy => balancer::haproxy(args).map(Ended::with),
        Command::Nginx => balancer::nginx(args).map(Ended::with),
        Command::Completions => manual::completions(&args).map(Ended::with),
        Command::Man => manual::man(&args).map(Ended::with),
    }
}

fn serve(args: Vec<OsString>, takes_over: bool) -> Result<Ended, Exit> {
    let config = Config::from_args(args.clone()).inspect_err(|exit| {
        if takes_over {
            control::decline(exit);
        }
    })?;
    let log = telemetry::init(config.log_format, config.log_level);
    let invocation = Invocation { args: args.iter().skip(1).cloned().collect(), takes_over };
    control::run(&config, &log, || Config::from_args(args.clone()), invocation)
        .map_err(|exit| config.locate(exit))
        .map(|()| Ended::silently())
}

fn check(args: Vec<OsString>) -> Result<Ended, Exit> {
    let config = Config::from_args(args)?;
    let _log = telemetry::init(config.log_format, config.log_level);
    control::check(&config).map_err(|exit| config.locate(exit))?;
    Ok(Ended::with(config.report()))
}

fn status(args: Vec<OsString>) -> Result<Ended, Exit> {
    let is_url = |arg: &OsString| arg.as_encoded_bytes().starts_with(STATUS_SCHEME.as_bytes());
    let (urls, args): (Vec<_>, Vec<_>) = args.into_iter().partition(is_url);
    // What else is there must be flags that the relay knows.
    let config = Config::from_args(args)?;
    if urls.is_empty() {
        let text = control::status(&config).map_err(|exit| config.locate(exit))?;
        return Ok(Ended::with(text));
    }
    let urls: Vec<String> = urls.iter().map(|url| url.to_string_lossy().into_owned()).collect();
    let (text, all_answer) = control::status_of_all(&urls)?;
    Ok(Ended { code: u8::from(!all_answer), text: Some(text) })
}

/// Prints a text that takes no flags.
fn print(args: Vec<OsString>, text: &str) -> Result<Ended, Exit> {
    Config::from_args(args)?;
    Ok(Ended::with(text))
}

/// A worker that panicked would leave its server-ids unserved while the others go on. Better the
/// whole process ends, loudly, and is started again.
fn die_of_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // Standard error may be stuck, and that must not keep the process alive.
        std::thread::spawn(|| {
            std::thread::sleep(std::time::Duration::from_secs(1));
            std::process::abort();
        });
        report(panic);
        std::process::abort();
    }));
}
