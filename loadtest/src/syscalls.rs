//! How many system calls a relay makes, counted from outside, in a window of its own after the one
//! that is measured: by `perf stat` on the kernel's tracepoints, which the relay does not feel; where
//! that is forbidden or not there by `strace`, which slows it.

use crate::Outcome;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// How long is counted, at most.
const WINDOW: Duration = Duration::from_secs(2);
/// How long `strace` may take to let go.
const PATIENCE: Duration = Duration::from_secs(5);
const TRACEPOINTS: &str = "/sys/kernel/tracing/events/syscalls";
const NAMES: [&str; 17] = [
    "io_uring_enter",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "poll",
    "ppoll",
    "sendto",
    "sendmsg",
    "write",
    "writev",
    "recvfrom",
    "recvmsg",
    "read",
    "readv",
    "futex",
    "accept4",
    "epoll_ctl",
];

/// System calls by name, for each message.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Calls {
    /// What counted them.
    pub(crate) means: &'static str,
    pub(crate) per_message: BTreeMap<String, f64>,
}

impl Calls {
    /// For each message, all calls whose names `chosen` says yes to.
    pub(crate) fn of(&self, chosen: impl Fn(&str) -> bool) -> f64 {
        let all = self.per_message.iter().filter(|(name, _)| chosen(name));
        // An empty sum is minus zero.
        all.map(|(_, calls)| calls).sum::<f64>() + 0.0
    }

    pub(crate) fn enters(&self) -> f64 {
        self.of(|name| name == "io_uring_enter")
    }

    pub(crate) fn epoll_waits(&self) -> f64 {
        self.of(|name| matches!(name, "epoll_wait" | "epoll_pwait" | "epoll_pwait2"))
    }

    pub(crate) fn sends(&self) -> f64 {
        self.of(|name| matches!(name, "sendto" | "sendmsg" | "write" | "writev"))
    }

    pub(crate) fn receives(&self) -> f64 {
        self.of(|name| matches!(name, "recvfrom" | "recvmsg" | "read" | "readv"))
    }

    pub(crate) fn all(&self) -> f64 {
        self.of(|_| true)
    }
}

/// Counts the calls of a process for a while, at most `time`; `messages` says how many there were so
/// far.
///
/// # Errors
///
/// When neither tool can count.
pub(crate) fn count(
    pid: u32,
    time: Duration,
    mut messages: impl FnMut() -> Outcome<u64>,
) -> Outcome<Calls> {
    let window = time.min(WINDOW);
    let mut failures = Vec::new();
    for (means, counted) in
        [("perf", by_perf as fn(u32, Duration) -> Outcome<_>), ("strace", by_strace)]
    {
        let (begun, before) = (std::time::Instant::now(), messages()?);
        match counted(pid, window) {
            Ok(calls) => {
                // Starting and ending the tool takes time, too, in which nothing is counted.
                let share = window.as_secs_f64() / begun.elapsed().as_secs_f64();
                let messages = (messages()? - before) as f64 * share.min(1.0);
                let each = |(name, calls)| (name, calls as f64 / messages.max(1.0));
                return Ok(Calls { means, per_message: calls.into_iter().map(each).collect() });
            }
            Err(error) => failures.push(format!("{means}: {error}")),
        }
    }
    Err(format!("system calls cannot be counted on this machine: {}", failures.join("; ")).into())
}

type Counted = BTreeMap<String, u64>;

fn by_perf(pid: u32, window: Duration) -> Outcome<Counted> {
    let known = |name: &&str| Path::new(TRACEPOINTS).join(format!("sys_enter_{name}")).exists();
    let names = NAMES.into_iter().filter(known).map(|name| format!("syscalls:sys_enter_{name}"));
    let events = names.collect::<Vec<_>>().join(",");
    if events.is_empty() {
        return Err(format!("there are no tracepoints in {TRACEPOINTS}").into());
    }
    let mut perf = Command::new("perf");
    perf.env("LC_ALL", "C").args(["stat", "-x", ";", "-e", &events, "-p", &pid.to_string()]);
    perf.args(["--", "sleep", &window.as_secs_f64().to_string()]);
    let Output { status, stderr, .. } = perf.stdin(Stdio::null()).output()?;
    let told = String::from_utf8_lossy(&stderr);
    let calls = read_perf(&told);
    match status.success() && !calls.is_empty() {
        true => Ok(calls),
        false => Err(first_line(&told).into()),
    }
}

/// Lines of `count;unit;event;…`.
fn read_perf(told: &str) -> Counted {
    let line = |line: &str| {
        let mut fields = line.split(';');
        let calls = fields.next()?.parse().ok()?;
        let name = fields.nth(1)?.strip_prefix("syscalls:sys_enter_")?;
        Some((name.to_owned(), calls))
    };
    told.lines().filter_map(line).collect()
}

fn by_strace(pid: u32, window: Duration) -> Outcome<Counted> {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-c", "-U", "calls,name", "-p", &pid.to_string()]);
    strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = strace.spawn()?;
    std::thread::sleep(window);
    let own = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(own) = own {
        // One that has ended already has said why.
        let _ = kill_process(own, Signal::INT);
    }
    await_end(&mut child)?;
    let mut told = String::new();
    child.stderr.take().ok_or("strace without a pipe")?.read_to_string(&mut told)?;
    let calls = read_strace(&told);
    match calls.is_empty() {
        false => Ok(calls),
        true => Err(first_line(&told).into()),
    }
}

fn await_end(child: &mut Child) -> Outcome<()> {
    let end = std::time::Instant::now() + PATIENCE;
    while child.try_wait()?.is_none() {
        if std::time::Instant::now() > end {
            child.kill()?;
            child.wait()?;
            return Err("it does not end".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Lines of `count name`, and a sum at their end.
fn read_strace(told: &str) -> Counted {
    let line = |line: &str| {
        let (calls, name) = line.trim().split_once(char::is_whitespace)?;
        let (calls, name) = (calls.parse().ok()?, name.trim());
        (name != "total").then(|| (name.to_owned(), calls))
    };
    told.lines().filter_map(line).collect()
}

fn first_line(told: &str) -> String {
    told.lines().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tools_are_understood() {
        let perf = "# started\n\n120;;syscalls:sys_enter_io_uring_enter;99;100.00;;\n\
                    <not counted>;;syscalls:sys_enter_read;0;0.00;;\n7;;syscalls:sys_enter_sendto;9;;;\n";
        let wanted = Counted::from([("io_uring_enter".into(), 120), ("sendto".into(), 7)]);
        assert_eq!(read_perf(perf), wanted);
        let strace = "strace: Process 7 attached\n    calls syscall\n--------- ----------------\n      \
                      120 io_uring_enter\n        7 sendto\n--------- ----------------\n      127 total\n";
        assert_eq!(read_strace(strace), wanted);
    }

    #[test]
    fn calls_are_told_by_what_they_do() {
        let names = ["io_uring_enter", "epoll_wait", "epoll_pwait2", "sendto", "recvfrom", "futex"];
        let per_message = names.map(|name| (name.to_owned(), 0.5)).into();
        let calls = Calls { means: "perf", per_message };
        assert_eq!((calls.enters(), calls.epoll_waits()), (0.5, 1.0));
        assert_eq!((calls.sends(), calls.receives(), calls.all()), (0.5, 0.5, 3.0));
    }
}
