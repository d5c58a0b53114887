//! Starting other processes so that they stay where they belong: on some of the CPUs, in a cgroup
//! if there is one, and not a moment longer than this tool runs.
//!
//! The tool starts itself as `launch`, which arranges that for itself and then becomes the program.

use crate::Outcome;
use rustix::thread::CpuSet;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which CPUs a process may use, of those that this tool may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cpus {
    /// The first so many.
    First(usize),
    /// All but the first so many; all, if that leaves none.
    Beyond(usize),
    All,
}

impl Cpus {
    /// The numbers, of those in `usable`.
    fn choose(self, usable: &[usize]) -> Vec<usize> {
        let chosen = match self {
            Self::First(count) => usable.get(..count.min(usable.len())),
            Self::Beyond(count) => usable.get(count..),
            Self::All => None,
        };
        chosen.filter(|cpus| !cpus.is_empty()).unwrap_or(usable).to_vec()
    }
}

/// How many CPUs this tool may use.
pub(crate) fn usable_cpus() -> Outcome<usize> {
    Ok(usable()?.len())
}

fn usable() -> Outcome<Vec<usize>> {
    let all = rustix::thread::sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).collect())
}

/// Keeps this thread, and those that it starts, off the first `workers` CPUs that it may use.
pub(crate) fn stay_beyond(workers: usize) -> Outcome<()> {
    stay_on(&Cpus::Beyond(workers).choose(&usable()?))
}

fn stay_on(cpus: &[usize]) -> Outcome<()> {
    let mut set = CpuSet::new();
    cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU).for_each(|cpu| set.set(*cpu));
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// The command that becomes `program` on these CPUs and in this cgroup.
pub(crate) fn command(program: &Path, cpus: Cpus, cgroup: Option<&Path>) -> Outcome<Command> {
    let cpus = cpus.choose(&usable()?).iter().map(usize::to_string).collect::<Vec<_>>();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["launch", "--cpus", &cpus.join(",")]);
    command.args(["--parent", &std::process::id().to_string()]);
    if let Some(cgroup) = cgroup {
        command.arg("--cgroup").arg(cgroup);
    }
    command.arg("--").arg(program);
    Ok(command)
}

/// What `launch` is to do.
#[derive(Debug, clap::Args)]
pub(crate) struct Launch {
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,
    #[arg(long)]
    parent: i32,
    #[arg(long)]
    cgroup: Option<PathBuf>,
    #[arg(last = true, required = true)]
    words: Vec<String>,
}

/// Becomes the program; returns only if it cannot.
pub(crate) fn launch(what: &Launch) -> Outcome<()> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid().is_none_or(|parent| parent.as_raw_nonzero().get() != what.parent) {
        return Err("the tool that started this has ended".into());
    }
    stay_on(&what.cpus)?;
    if let Some(cgroup) = &what.cgroup {
        // 0 is whoever writes it.
        std::fs::write(cgroup.join("cgroup.procs"), "0")
            .map_err(|error| format!("{} cannot be entered: {error}", cgroup.display()))?;
    }
    let (program, arguments) = what.words.split_first().ok_or("no program to launch")?;
    let error = Command::new(program).args(arguments).exec();
    Err(format!("{program} cannot be started: {error}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_stays_off_the_relays_cpus_where_there_are_others() {
        let usable = [2, 3, 5, 7];
        assert_eq!(Cpus::First(1).choose(&usable), [2]);
        assert_eq!(Cpus::Beyond(1).choose(&usable), [3, 5, 7]);
        assert_eq!(Cpus::First(9).choose(&usable), usable);
        assert_eq!(Cpus::Beyond(4).choose(&usable), usable);
        assert_eq!(Cpus::Beyond(9).choose(&usable), usable);
        assert_eq!(Cpus::All.choose(&usable), usable);
    }
}
