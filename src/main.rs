//! Arguments to a [`Command`] and its [`Config`], then run; nothing else.

use pyrycode_relay::config::{self, Command, Config, Exit, Operator};
use pyrycode_relay::control::{STATUS_SCHEME, assets, balancer};
use pyrycode_relay::{control, telemetry};
use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    die_of_panics();
    let (command, args) = Command::split(std::env::args_os());
    let ended = match help(command, &args) {
        Some(text) => Ok((0, Some(text))),
        None => obey(command, args),
    };
    let (code, text, is_refused) = match ended {
        Ok((code, text)) => (code, text, false),
        Err(exit) => (exit.code, Some(exit.to_string()), true),
    };
    let Some(text) = text else { return ExitCode::from(code) };
    telemetry::with_patience(move || {
        // Nobody may be there to read it; the exit code is told all the same.
        let _ = match is_refused {
            false => writeln!(std::io::stdout(), "{text}"),
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

/// Does what is asked: the exit status, and what is to be printed, if anything.
fn obey(command: Command, args: Vec<OsString>) -> Result<(u8, Option<String>), Exit> {
    match command {
        Command::Operate => {
            return control::operate(&Operator::from_args(args)?).map(|()| (0, None));
        }
        Command::Haproxy => return balancer::haproxy(args).map(|text| (0, Some(text))),
        Command::Nginx => return balancer::nginx(args).map(|text| (0, Some(text))),
        _ => {}
    }
    let is_url = |arg: &OsString| arg.as_encoded_bytes().starts_with(STATUS_SCHEME.as_bytes());
    let are_asked = command == Command::Status;
    let (urls, args): (Vec<_>, Vec<_>) = args.into_iter().partition(|arg| are_asked && is_url(arg));
    let urls: Vec<String> =
        urls.into_iter().map(|url| url.to_string_lossy().into_owned()).collect();
    // What else is there must be flags that the relay knows.
    let config = Config::from_args(args.clone())?;
    let locate = |exit| config.locate(exit);
    let asset = match command {
        Command::Serve => {
            let log = telemetry::init(config.log_format, config.log_level);
            let reread = || Config::from_args(args.clone());
            return control::run(&config, &log, reread).map_err(locate).map(|()| (0, None));
        }
        Command::Check => {
            let _log = telemetry::init(config.log_format, config.log_level);
            control::check(&config).map_err(locate)?;
            config.report()
        }
        Command::Status if urls.is_empty() => control::status(&config).map_err(locate)?,
        Command::Status => {
            let (text, all_answer) = control::status_of_all(&urls)?;
            return Ok((u8::from(!all_answer), Some(text)));
        }
        Command::Grafana => assets::GRAFANA.to_owned(),
        Command::Alerts => assets::ALERTS.to_owned(),
        Command::SystemdUnit => assets::SYSTEMD_UNIT.to_owned(),
        Command::Dockerfile => assets::DOCKERFILE.to_owned(),
        // They have command lines of their own.
        Command::Operate | Command::Haproxy | Command::Nginx => return Ok((0, None)),
    };
    Ok((0, Some(asset.trim_end().to_owned())))
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
