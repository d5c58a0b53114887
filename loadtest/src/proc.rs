//! What the kernel knows of a process and of the machine: CPU time, memory, descriptors.

use crate::Outcome;
use std::collections::HashMap;
use std::fs;
use std::time::Duration;

/// CPU time of all threads that live, to the nanosecond (`/proc/PID/task/*/schedstat`).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Times {
    /// Running.
    pub(crate) cpu: Duration,
    /// Ready to run, but another process had the CPU.
    pub(crate) waited: Duration,
}

impl Times {
    /// What was used since then. A thread that ended meanwhile took its time with it.
    pub(crate) fn since(self, then: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(then.cpu),
            waited: self.waited.saturating_sub(then.waited),
        }
    }
}

/// The times of each thread.
pub(crate) type Threads = HashMap<u32, Times>;

/// The times of the threads of a process.
pub(crate) fn threads(pid: u32) -> Outcome<Threads> {
    let gone = |error| format!("process {pid} cannot be looked at: {error}");
    let mut threads = Threads::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).map_err(gone)? {
        let path = task?.path();
        // A thread may end while we look.
        let Ok(text) = fs::read_to_string(path.join("schedstat")) else { continue };
        let id = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        if let (Some(id), Some(times)) = (id, times_of(&text)) {
            threads.insert(id, times);
        }
    }
    Ok(threads)
}

/// The times of a process in all.
pub(crate) fn times(pid: u32) -> Outcome<Times> {
    let add = |a: Times, b: Times| Times { cpu: a.cpu + b.cpu, waited: a.waited + b.waited };
    Ok(threads(pid)?.into_values().fold(Times::default(), add))
}

/// How often the threads of a process slept and were woken (`voluntary_ctxt_switches`).
pub(crate) fn wakes(pid: u32) -> Outcome<u64> {
    let mut wakes = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while we look.
        let Ok(text) = fs::read_to_string(task?.path().join("status")) else { continue };
        wakes += wakes_of(&text).unwrap_or(0);
    }
    Ok(wakes)
}

fn wakes_of(status: &str) -> Option<u64> {
    let count = |line: &str| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse().ok();
    status.lines().find_map(count)
}

/// The thread that used the most CPU time between two looks.
pub(crate) fn busiest(then: &Threads, now: &Threads) -> Times {
    let used = now.iter().map(|(id, times)| times.since(then.get(id).copied().unwrap_or_default()));
    used.max_by_key(|times| times.cpu).unwrap_or_default()
}

fn times_of(schedstat: &str) -> Option<Times> {
    let mut nanos = schedstat.split_whitespace().map(|number| number.parse().ok());
    let mut next = || nanos.next().flatten().map(Duration::from_nanos);
    Some(Times { cpu: next()?, waited: next()? })
}

/// Resident memory, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> Outcome<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    Ok(kib.ok_or("no Rss in /proc")? * 1024)
}

/// Resident memory in bytes, at a glance: a few pages of each thread may not be counted yet.
pub(crate) fn resident_bytes_about(pid: u32) -> Outcome<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    Ok(pages.ok_or("no pages in statm")? * rustix::param::page_size() as u64)
}

/// The processes that a process has started and that have become another program since.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let command_line = |pid: u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let own = command_line(pid);
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let started = tasks.flatten().filter_map(|task| {
        let children = fs::read_to_string(task.path().join("children")).ok()?;
        let numbers = children.split_whitespace().filter_map(|child| child.parse().ok());
        Some(numbers.collect::<Vec<u32>>())
    });
    started.flatten().filter(|child| command_line(*child) != own).collect()
}

/// How many descriptors it may have.
pub(crate) fn descriptor_limit(pid: u32) -> Outcome<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    soft.ok_or_else(|| format!("no limit of descriptors in /proc/{pid}/limits").into())
}

/// The most resident memory that there was at a time, in bytes (`VmHWM`).
pub(crate) fn peak_bytes(pid: u32) -> Outcome<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    Ok(kib.ok_or("no VmHWM in /proc")? * 1024)
}

/// Open descriptors.
pub(crate) fn descriptors(pid: u32) -> Outcome<u64> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64)
}

/// Time that all CPUs of the machine were not idle, by any process, the kernel or the host; to 10 ms
/// (`/proc/stat`).
pub(crate) fn machine_busy() -> Outcome<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    busy_of(&text).ok_or_else(|| "no cpu line in /proc/stat".into())
}

fn busy_of(stat: &str) -> Option<Duration> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guest time is in user.
    let of = |at: usize| ticks.get(at).copied().unwrap_or(0);
    let busy: u64 = [0, 1, 2, 5, 6, 7].map(of).iter().sum();
    Some(Duration::from_millis(busy * 10))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn this_process_can_be_looked_at() {
        let own = std::process::id();
        // Threads of other tests end meanwhile, and their wakes with them.
        let (before, end) = (wakes(own).unwrap(), Instant::now() + Duration::from_secs(20));
        while wakes(own).unwrap() <= before {
            assert!(Instant::now() < end, "no wake is counted");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(times(own).unwrap().cpu > Duration::ZERO);
        assert!(resident_bytes(own).unwrap() > 100_000);
        assert!(peak_bytes(own).unwrap() > 100_000);
        assert!(descriptors(own).unwrap() >= 3);
        assert!(descriptor_limit(own).unwrap() > 3);
        assert!(resident_bytes_about(own).unwrap() > 100_000);
    }

    #[test]
    fn a_process_is_known_by_who_started_it() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let known = children(std::process::id()).contains(&child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(known);
        assert!(machine_busy().unwrap() > Duration::ZERO);
    }

    #[test]
    fn a_process_that_is_not_there_is_named() {
        assert!(threads(u32::MAX).unwrap_err().to_string().contains("process 4294967295"));
    }

    #[test]
    fn idle_and_waiting_for_disks_is_not_busy() {
        let stat = "cpu  1 2 3 1000 1000 4 5 6 7 8\ncpu0 9 9 9 9\n";
        assert_eq!(busy_of(stat), Some(Duration::from_millis(210)));
    }

    #[test]
    fn the_busiest_thread_is_by_what_it_used_since() {
        let of = |cpu, waited| Times {
            cpu: Duration::from_secs(cpu),
            waited: Duration::from_secs(waited),
        };
        let then = Threads::from([(1, of(100, 0)), (2, of(1, 1))]);
        let now = Threads::from([(1, of(101, 0)), (2, of(5, 2)), (3, of(2, 0))]);
        let busiest = busiest(&then, &now);
        assert_eq!((busiest.cpu, busiest.waited), (Duration::from_secs(4), Duration::from_secs(1)));
    }
}
