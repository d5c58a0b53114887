//! What the machine, and the cgroup that the process is in, allow it.

use std::path::{Path, PathBuf};
use std::{fs, thread};

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CpuSet, sched_getaffinity};

/// The process's share of the machine.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    /// CPU numbers in the affinity mask, ascending, at least one.
    pub(super) cpus: Vec<usize>,
    /// CPUs that affinity and the cgroup's quota leave, at least 1.
    pub(super) parallelism: usize,
    /// Descriptors that this process may have open, once its soft limit is raised.
    pub(super) descriptors: u64,
    /// The smallest memory limit that applies; `None` if none can be read.
    pub(super) memory_limit_bytes: Option<u64>,
}

impl Machine {
    /// Asks the kernel. What cannot be read is left out: none of it is worth a refusal.
    pub(super) fn observe() -> Self {
        let parallelism = thread::available_parallelism().map_or(1, usize::from);
        let descriptors = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        let memory_limit_bytes = memory_limit_bytes();
        Self { cpus: cpus(parallelism), parallelism, descriptors, memory_limit_bytes }
    }
}

fn cpus(parallelism: usize) -> Vec<usize> {
    let mut cpus = Vec::new();
    if let Ok(mask) = sched_getaffinity(None) {
        cpus.extend((0..CpuSet::MAX_CPU).filter(|&cpu| mask.is_set(cpu)));
    }
    if cpus.is_empty() {
        // The kernel knows more CPUs than the mask can name.
        cpus.extend(0..parallelism);
    }
    cpus
}

fn memory_limit_bytes() -> Option<u64> {
    let total = read("/proc/meminfo").and_then(|text| mem_total_bytes(&text));
    let cgroups = read("/proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(&cgroups).into_iter().filter_map(|file| cgroup_limit(&read(file)?));
    limits.chain(total).min()
}

fn read(file: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(file).ok()
}

/// The files that may hold a memory limit for the process whose `/proc/self/cgroup` this is: its
/// own cgroup's and every ancestor's, for a parent's limit binds its children as well. In a
/// container the path may be the host's and name nothing here; then only the root of the mount,
/// which is the container's own cgroup, is found.
fn limit_files(cgroups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in cgroups.lines() {
        // hierarchy-ID:controller-list:cgroup-path (man 7 cgroups)
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (mounts, name): (&[&str], _) = if controllers.is_empty() {
            (&["/sys/fs/cgroup", "/sys/fs/cgroup/unified"], "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            (&["/sys/fs/cgroup/memory"], "memory.limit_in_bytes")
        } else {
            continue;
        };
        // A cgroup outside of the process's cgroup namespace is shown as /../name.
        let below: PathBuf =
            path.split('/').filter(|part| !matches!(*part, "" | "." | "..")).collect();
        for mount in mounts {
            files.extend(below.ancestors().map(|dir| Path::new(mount).join(dir).join(name)));
        }
    }
    files
}

/// The text of `memory.max` or `memory.limit_in_bytes`; `None` for `max`, which is no limit.
fn cgroup_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// `MemTotal` of `/proc/meminfo`, which is in KiB whatever it says.
fn mem_total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unified_hierarchy_is_walked_up_to_its_root() {
        let expected = [
            "/sys/fs/cgroup/a.slice/b.service/memory.max",
            "/sys/fs/cgroup/a.slice/memory.max",
            "/sys/fs/cgroup/memory.max",
            "/sys/fs/cgroup/unified/a.slice/b.service/memory.max",
            "/sys/fs/cgroup/unified/a.slice/memory.max",
            "/sys/fs/cgroup/unified/memory.max",
        ];
        assert_eq!(limit_files("0::/a.slice/b.service\n"), expected.map(PathBuf::from));
    }

    #[test]
    fn memory_controller_of_the_old_hierarchy_is_found() {
        let cgroups = "12:cpu,cpuacct:/x\n4:hugetlb,memory:/docker/1:2\n1:name=systemd:/y\n";
        let expected = [
            "/sys/fs/cgroup/memory/docker/1:2/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/docker/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        ];
        assert_eq!(limit_files(cgroups), expected.map(PathBuf::from));
    }

    #[test]
    fn odd_cgroup_lines_stay_below_the_mount() {
        assert!(limit_files("").is_empty());
        assert!(limit_files("nonsense\n1:memory\n2:cpu:/\n").is_empty());
        for path in ["/", "", "/../..", "/./../"] {
            let expected = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/unified/memory.max"];
            assert_eq!(limit_files(&format!("0::{path}")), expected.map(PathBuf::from), "{path}");
        }
    }

    #[test]
    fn limits() {
        for (text, limit) in [
            ("268435456\n", Some(256 << 20)),
            ("max\n", None),
            ("9223372036854771712\n", Some(9_223_372_036_854_771_712)),
            ("", None),
            ("-1\n", None),
        ] {
            assert_eq!(cgroup_limit(text), limit, "{text:?}");
        }
        for (text, limit) in [
            ("MemTotal:        8000000 kB\nMemFree: 1 kB\n", Some(8_192_000_000)),
            ("MemFree: 1 kB\nMemTotal: 4 kB\n", Some(4096)),
            ("MemTotal:\n", None),
            ("MemTotal: 99999999999999999999 kB\n", None),
            ("MemTotal: 18446744073709551615 kB\n", None),
            ("", None),
        ] {
            assert_eq!(mem_total_bytes(text), limit, "{text:?}");
        }
    }

    #[test]
    fn this_machine_can_be_read() {
        let machine = Machine::observe();
        assert!(machine.parallelism >= 1 && machine.parallelism <= machine.cpus.len());
        assert!(machine.cpus.is_sorted());
        assert!(machine.memory_limit_bytes.is_some_and(|bytes| bytes > 1 << 20));
    }
}
