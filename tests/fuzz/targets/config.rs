//! The command line: whatever is typed, it is a sound configuration or one line that says why not.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pyrycode_relay::config::{Config, Exit};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

fuzz_target!(|data: &[u8]| {
    // One argument a line.
    let args = data.split(|byte| *byte == b'\n').map(|arg| OsString::from_vec(arg.to_vec()));
    match Config::from_args(std::iter::once("pyrycode-relay".into()).chain(args)) {
        Ok(config) => check(&config),
        Err(Exit { code: 0, message, to_stdout: true }) => assert!(!message.is_empty()),
        Err(Exit { code: 2, message, to_stdout: false }) => {
            assert!(message.starts_with("pyrycode-relay: "), "{message}");
            assert!(!message.chars().any(char::is_control), "{message}");
        }
        Err(exit) => panic!("{exit:?}"),
    }
});

fn check(config: &Config) {
    let limits = config.limits;
    for time in [
        limits.grace_ms,
        limits.probe_timeout_ms,
        limits.heartbeat_interval_ms,
        limits.heartbeat_timeout_ms,
        limits.header_timeout_ms,
        limits.message_timeout_ms,
        limits.write_timeout_ms,
        limits.close_timeout_ms,
    ] {
        assert!((1..=DAY_MS).contains(&time), "{limits:?}");
    }
    assert!(limits.max_phones >= 1);
    assert!((1..=1024).contains(&config.workers));
    assert!(config.memory_budget_bytes >= 1 << 20);
}
