//! Arguments to a [`Command`] and its [`Config`], then run; nothing else.

use pyrycode_relay::config::{self, Command, Config, Exit};
use pyrycode_relay::control::assets;
use pyrycode_relay::{control, telemetry};
use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    die_of_panics();
    let (command, args) = Command::split(std::env::args_os());
    let ended = match config::help(&args) {
        Some(text) => Ok(Some(text)),
        None => obey(command, args),
    };
    let (code, text) = match ended {
        Ok(text) => (0, text),
        Err(exit) => (exit.code, Some(exit.to_string())),
    };
    let Some(text) = text else { return ExitCode::SUCCESS };
    telemetry::with_patience(move || {
        // Nobody may be there to read it; the exit code is told all the same.
        let _ = match code {
            0 => writeln!(std::io::stdout(), "{text}"),
            _ => writeln!(std::io::stderr(), "{text}"),
        };
    });
    ExitCode::from(code)
}

/// Does what is asked; what is then to be printed, if anything.
fn obey(command: Command, args: Vec<OsString>) -> Result<Option<String>, Exit> {
    let config = Config::from_args(args.clone())?;
    let locate = |exit| config.locate(exit);
    let asset = match command {
        Command::Serve => {
            let log = telemetry::init(config.log_format, config.log_level);
            let reread = || Config::from_args(args.clone());
            return control::run(&config, &log, reread).map_err(locate).map(|()| None);
        }
        Command::Check => {
            let _log = telemetry::init(config.log_format, config.log_level);
            return control::check(&config).map_err(locate).map(|()| Some(config.report()));
        }
        Command::Status => return control::status(&config).map_err(locate).map(Some),
        Command::Grafana => assets::GRAFANA,
        Command::Alerts => assets::ALERTS,
        Command::SystemdUnit => assets::SYSTEMD_UNIT,
        Command::Dockerfile => assets::DOCKERFILE,
    };
    Ok(Some(asset.trim_end().to_owned()))
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
