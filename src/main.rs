//! Flags to [`Config`], then run; nothing else.

use pyrycode_relay::config::{Config, Exit};
use pyrycode_relay::{control, telemetry};
use std::process::ExitCode;

fn main() -> ExitCode {
    die_of_panics();
    let ended = Config::from_args(std::env::args_os()).and_then(|config| {
        let log = telemetry::init(config.log_format, config.log_level);
        control::run(&config, &log)
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Exit { code, message, to_stdout: true }) => {
            println!("{message}");
            ExitCode::from(code)
        }
        Err(Exit { code, message, to_stdout: false }) => {
            eprintln!("{message}");
            ExitCode::from(code)
        }
    }
}

/// A worker that panicked would leave its server-ids unserved while the others go on. Better the
/// whole process ends, loudly, and is started again.
fn die_of_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}
