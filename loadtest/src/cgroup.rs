//! A memory cgroup that a relay may have to live in.

use crate::Outcome;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

/// A memory cgroup of its own (v1 or v2), removed when this is dropped.
#[derive(Debug)]
pub(crate) struct MemoryCgroup {
    path: PathBuf,
    limit: u64,
    files: Files,
}

/// Where things stand in the two versions of the controller.
#[derive(Debug, Clone, Copy)]
struct Files {
    limit: &'static str,
    swap: &'static str,
    peak: &'static str,
    kills: &'static str,
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    swap: "memory.memsw.limit_in_bytes",
    peak: "memory.max_usage_in_bytes",
    kills: "memory.oom_control",
};
const V2: Files = Files {
    limit: "memory.max",
    swap: "memory.swap.max",
    peak: "memory.peak",
    kills: "memory.events",
};

/// How it went inside.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Use {
    pub(crate) limit_mib: f64,
    /// The most that was charged at a time: its pages, and what the kernel holds for it.
    pub(crate) peak_mib: f64,
    /// Processes that were killed for want of memory.
    pub(crate) killed: u64,
}

impl MemoryCgroup {
    /// Makes one with this limit, in bytes.
    ///
    /// # Errors
    ///
    /// Without root, or without the memory controller.
    pub(crate) fn new(limit: u64) -> Outcome<Self> {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (root, files) = match v1.is_dir() {
            true => (v1, V1),
            false => (Path::new("/sys/fs/cgroup"), V2),
        };
        let denied = |error| {
            format!(
                "this machine's fault: no memory cgroup can be made below {} ({error}); it needs \
                 root and the memory controller",
                root.display()
            )
        };
        let path = root.join(format!("loadtest-{}", std::process::id()));
        fs::create_dir(&path).map_err(denied)?;
        let cgroup = Self { path, limit, files };
        fs::write(cgroup.path.join(files.limit), limit.to_string()).map_err(denied)?;
        // Where there is no swap accounting there is no such file.
        let swap = if files.swap == V1.swap { limit } else { 0 };
        let _ = fs::write(cgroup.path.join(files.swap), swap.to_string());
        Ok(cgroup)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How it went so far.
    pub(crate) fn usage(&self) -> Outcome<Use> {
        let read = |file| fs::read_to_string(self.path.join(file));
        let peak: f64 = read(self.files.peak)?.trim().parse()?;
        Ok(Use {
            limit_mib: self.limit as f64 / 1_048_576.0,
            peak_mib: peak / 1_048_576.0,
            killed: kills_of(&read(self.files.kills)?),
        })
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // A process that was just killed leaves in its own time.
        for _ in 0..50 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        eprintln!("loadtest: {} cannot be removed: somebody is still in it", self.path.display());
    }
}

fn kills_of(text: &str) -> u64 {
    let number = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    number.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// Reads a size as `64MiB`, `1GiB`, `512KiB` or in bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("", 1)];
    let bytes = units.iter().find_map(|(unit, factor)| {
        let number = text.strip_suffix(unit)?;
        number.trim().parse::<u64>().ok()?.checked_mul(*factor)
    });
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| "write a size as 64MiB".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_unit() {
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size("512KiB"), Ok(512 << 10));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("4096"), Ok(4096));
        for wrong in ["", "MiB", "64 parsecs", "-1", "0", "64MB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn kills_are_found_in_both_versions_files() {
        assert_eq!(kills_of("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
        assert_eq!(kills_of("low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n"), 1);
        assert_eq!(kills_of(""), 0);
    }
}
