//! What the kernel knows of a process: CPU time, memory, descriptors.

use crate::Outcome;
use std::fs;
use std::time::Duration;

/// CPU time of all threads that live, to the nanosecond (`/proc/PID/task/*/schedstat`).
pub(crate) fn cpu_time(pid: u32) -> Outcome<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while we look.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanos += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanos))
}

/// Resident memory, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> Outcome<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    Ok(kib.ok_or("no Rss in /proc")? * 1024)
}

/// Open descriptors.
pub(crate) fn descriptors(pid: u32) -> Outcome<u64> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64)
}
