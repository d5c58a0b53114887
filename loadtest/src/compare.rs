//! Several subjects in turn in one session, so that a noisy machine is noisy for all of them; and
//! the memory cgroup that one may have to live in.

use crate::Outcome;
use crate::report;
use crate::run::{self, Measured, Plan};
use crate::subject::Subject;
use std::fs;
use std::path::{Path, PathBuf};

/// Measures A B A B … and prints medians and ratios to the first subject.
pub(crate) fn run(
    subjects: &[Subject],
    plan: &Plan,
    rounds: usize,
    json: bool,
    page: Option<&Path>,
) -> Outcome<()> {
    let bar = run::progress();
    let mut all: Vec<Vec<Measured>> = subjects.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (subject, measured) in subjects.iter().zip(&mut all) {
            measured.push(run::measure(subject, plan, &bar)?);
        }
    }
    bar.finish_and_clear();
    if json {
        println!("{}", serde_json::to_string(&all)?);
        return Ok(());
    }
    println!(
        "{}, {} bytes, {} worker(s), {rounds} rounds of {:.0} s each; medians (least to most)",
        plan.shape,
        plan.size,
        plan.workers,
        plan.time.as_secs_f64()
    );
    let cpu = |measured: &Measured| measured.cpu_us_per_message;
    let p99 = |measured: &Measured| measured.p99_us;
    println!(
        "{:<16} {:>22} {:>20} {:>10} {:>20} {:>9} {:>9} {:>7}",
        "", "us CPU per message", "ratio", "p50 us", "p99 us", "msg/s", "slowest", "CPU"
    );
    for measured in &all {
        let ratios = measured.iter().zip(all.first().into_iter().flatten());
        let ratios = ratios.map(|(own, first)| cpu(own) / cpu(first)).collect();
        println!(
            "{:<16} {:>22} {:>20} {:>10.0} {:>20} {:>9.0} {:>9.2} {:>6.0}%",
            measured.first().map(|m| m.subject.as_str()).unwrap_or_default(),
            spread(measured.iter().map(cpu).collect(), 2),
            spread(ratios, 2),
            median(measured.iter().map(|m| m.p50_us).collect()),
            spread(measured.iter().map(p99).collect(), 0),
            median(measured.iter().map(|m| m.messages_per_second).collect()),
            median(measured.iter().map(|m| m.slowest_share).collect()),
            100.0 * median(measured.iter().map(|m| m.relay_cpu_share).collect()),
        );
    }
    match page {
        Some(page) => report::write_page(page, plan, &all.concat()),
        None => Ok(()),
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn spread(values: Vec<f64>, digits: usize) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{:.digits$} ({least:.digits$}-{most:.digits$})", median(values))
}

/// A memory cgroup of its own, removed when this is dropped.
pub(crate) struct MemoryCgroup {
    path: PathBuf,
    peak: &'static str,
}

impl MemoryCgroup {
    pub(crate) fn new(limit: &str) -> Outcome<Self> {
        let bytes = bytes_of(limit).ok_or("write a limit as 64MiB")?;
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (root, file, peak) = match v1.is_dir() {
            true => (v1, "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
            false => (Path::new("/sys/fs/cgroup"), "memory.max", "memory.peak"),
        };
        let path = root.join(format!("loadtest-{}", std::process::id()));
        let denied =
            |error| format!("no memory cgroup can be made below {}: {error}", root.display());
        fs::create_dir(&path).map_err(denied)?;
        let cgroup = Self { path, peak };
        fs::write(cgroup.path.join(file), bytes.to_string()).map_err(denied)?;
        Ok(cgroup)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn say_peak(&self) -> Outcome<()> {
        let peak: f64 = fs::read_to_string(self.path.join(self.peak))?.trim().parse()?;
        println!("{:.1} MiB at most in the relay's memory cgroup", peak / 1_048_576.0);
        Ok(())
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // It stays only where a process is left in it, and then somebody should look.
        if let Err(error) = fs::remove_dir(&self.path) {
            eprintln!("loadtest: {} stays: {error}", self.path.display());
        }
    }
}

fn bytes_of(limit: &str) -> Option<u64> {
    let number = limit.strip_suffix("MiB")?;
    number.parse::<u64>().ok().map(|mebibytes| mebibytes << 20)
}
