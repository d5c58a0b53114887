//! Flags to [`Config`], then run; nothing else.

use pyrycode_relay::config::{Config, Exit};
use pyrycode_relay::{control, telemetry};
use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    die_of_panics();
    let ended = Config::from_args(std::env::args_os()).and_then(|config| {
        let log = telemetry::init(config.log_format, config.log_level);
        control::run(&config, &log)
    });
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
