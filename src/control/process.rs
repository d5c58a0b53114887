//! What the kernel says of this process.

use rustix::process::{Resource, getrlimit};
use std::fs;
use std::path::Path;

/// Descriptors that are open.
#[must_use]
pub fn open_descriptors() -> u64 {
    let folder = Path::new("/proc/self/fd");
    // Since Linux 6.2 its size is their number.
    match fs::metadata(folder).map(|folder| folder.len()) {
        Ok(number @ 1..) => number,
        _ => fs::read_dir(folder).map_or(0, |entries| entries.count() as u64),
    }
}

/// Maximum number of open descriptors.
#[must_use]
pub fn max_descriptors() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Resident memory, in bytes.
#[must_use]
pub fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// The CPU time of each thread that is named `worker-` and its number, in seconds.
#[must_use]
pub fn worker_cpu_seconds(workers: usize) -> Vec<f64> {
    let mut seconds = vec![0.0; workers];
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return seconds };
    for task in tasks.flatten() {
        let Ok(stat) = fs::read_to_string(task.path().join("stat")) else { continue };
        if let Some((number, time)) = worker_time(&stat)
            && let Some(seconds) = seconds.get_mut(number)
        {
            *seconds = time;
        }
    }
    seconds
}

/// A worker's number and CPU time, from its `stat` (proc(5)).
fn worker_time(stat: &str) -> Option<(usize, f64)> {
    let (head, tail) = stat.rsplit_once(')')?;
    let number = head.split_once('(')?.1.strip_prefix("worker-")?.parse().ok()?;
    let mut fields = tail.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((number, (user + system) as f64 / rustix::param::clock_ticks_per_second() as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_read() {
        assert!(open_descriptors() >= 3);
        assert!(max_descriptors() >= open_descriptors());
        assert!(resident_bytes() > 1 << 20);
        assert_eq!(worker_cpu_seconds(2), [0.0, 0.0]);
    }

    #[test]
    fn a_workers_time_is_that_of_user_and_system() {
        let stat = "12 (worker-3) R 1 1 1 0 -1 4194368 10 0 0 0 250 150 0 0 20 0 5 0 9 0";
        let (number, seconds) = worker_time(stat).unwrap();
        assert_eq!(number, 3);
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert!((seconds - 400.0 / ticks).abs() < 1e-9);
        assert_eq!(worker_time("12 (log) R 1 1"), None);
        assert_eq!(worker_time(""), None);
    }
}
