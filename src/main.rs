//! Arguments to a [`Command`] and its [`Config`], then run; nothing else.

use pyrycode_relay::config::{Command, Config, Exit, Operator, config_file};
use pyrycode_relay::control::{STATUS_SCHEME, assets, balancer, demo, manual};
use pyrycode_relay::{control, telemetry};
use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    die_of_panics();
    let (command, args) = Command::split(std::env::args_os());
    let ended = match command {
        Command::Serve => serve(args),
        Command::Demo => Config::from_args(args).and_then(|_| demo::demo()),
        Command::Check => check(args),
        Command::Status => status(args),
        Command::Operate => operate(args),
        Command::Grafana => print(args, assets::GRAFANA),
        Command::Alerts => print(args, assets::ALERTS),
        Command::SystemdUnit => print(args, assets::SYSTEMD_UNIT),
        Command::Dockerfile => print(args, assets::DOCKERFILE),
        Command::Seccomp => print(args, assets::SECCOMP),
        Command::Haproxy => balancer::haproxy(args).and_then(|text| Err(told(text))),
        Command::ConfigFile => print(args, &config_file()),
        Command::Completions => manual::completions(&args).and_then(|text| Err(told(text))),
        Command::Man => manual::man(&args).and_then(|text| Err(told(text))),
        Command::Nginx => balancer::nginx(args).and_then(|text| Err(told(text))),
    };
    let Err(Exit { code, message, to_stdout }) = ended else { return ExitCode::SUCCESS };
    telemetry::with_patience(move || {
        // Nobody may be there to read it; the exit code is told all the same.
        let _ = if to_stdout {
            writeln!(std::io::stdout(), "{message}")
        } else {
            writeln!(std::io::stderr(), "{message}")
        };
    });
    ExitCode::from(code)
}

fn serve(args: Vec<OsString>) -> Result<(), Exit> {
    let config = Config::from_args(args.clone())?;
    let log = telemetry::init(config.log_format, config.log_level);
    control::run(&config, &log, || Config::from_args(args.clone()))
        .map_err(|exit| config.blame(exit))
}

fn check(args: Vec<OsString>) -> Result<(), Exit> {
    let config = Config::from_args(args)?;
    let _log = telemetry::init(config.log_format, config.log_level);
    control::check(&config).map_err(|exit| config.blame(exit))?;
    Err(told(config.report()))
}

fn status(args: Vec<OsString>) -> Result<(), Exit> {
    let is_url = |arg: &OsString| arg.as_encoded_bytes().starts_with(STATUS_SCHEME.as_bytes());
    let (urls, args): (Vec<_>, Vec<_>) = args.into_iter().partition(is_url);
    if !urls.is_empty() {
        // What else is there must be flags that the relay knows.
        Config::from_args(args)?;
        let urls: Vec<String> =
            urls.into_iter().map(|url| url.to_string_lossy().into_owned()).collect();
        return Err(told(control::status_of_all(&urls)?));
    }
    Err(told(control::status(&Config::from_args(args)?)?))
}

fn operate(args: Vec<OsString>) -> Result<(), Exit> {
    control::operate(&Operator::from_args(args)?)
}

/// Prints a text that takes no flags.
fn print(args: Vec<OsString>, text: &str) -> Result<(), Exit> {
    Config::from_args(args)?;
    Err(told(text.trim_end().to_owned()))
}

/// There is nothing more to do than to say this.
fn told(message: String) -> Exit {
    Exit { code: 0, message, to_stdout: true }
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
