//! Upgrades of a relay that is under load, by its own command; and the processes that follow one
//! another.

use crate::Outcome;
use crate::spec::Counts;
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpid};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a process may take to end once another has taken over.
const LEAVES_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How a relay is upgraded.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    /// What knows the command.
    pub(crate) program: PathBuf,
    pub(crate) socket: PathBuf,
    /// Another program that takes over, rather than the one that is installed.
    pub(crate) to: Option<PathBuf>,
}

/// What the relay says of an upgrade.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The process that serves now.
    pub(crate) pid: u32,
    /// Connections that it took over.
    pub(crate) connections: u64,
    pub(crate) server_ids: u64,
    /// Connections that ended, amid their TLS handshake.
    pub(crate) left_out: u64,
    /// How long no worker served, in milliseconds.
    pub(crate) pause_ms: f64,
}

/// Upgrades of a relay while something else was measured.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Upgrades {
    pub(crate) done: u32,
    pub(crate) left_out: u64,
    pub(crate) longest_pause_ms: f64,
}

impl Upgrades {
    /// There was one more.
    pub(crate) fn count(&mut self, report: &Report) {
        self.done += 1;
        self.left_out += report.left_out;
        self.longest_pause_ms = self.longest_pause_ms.max(report.pause_ms);
    }

    /// Whether no more handshakes were cut than the relay says.
    pub(crate) fn check(self, counts: &[Counts]) -> Outcome<()> {
        let cut = counts.iter().map(|counts| counts.cut_handshakes).sum::<u64>();
        only_handshakes(cut, self.left_out)
    }
}

/// Whether no more dials ended than there were amid a TLS handshake in upgrades.
pub(crate) fn only_handshakes(cut: u64, left_out: u64) -> Outcome<()> {
    match cut > left_out {
        true => Err(format!(
            "the relay's fault: {cut} dials ended before they were answered, where {left_out} were \
             amid their TLS handshake"
        )
        .into()),
        false => Ok(()),
    }
}

impl fmt::Display for Upgrades {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { done, left_out, longest_pause_ms } = self;
        write!(
            f,
            "Upgraded {done} times, with a pause of {longest_pause_ms:.1} ms at most; {left_out} \
             connections were amid a TLS handshake and dialled again."
        )
    }
}

/// An upgrade that is under way. It goes on if this is dropped; nobody hears of it then.
#[derive(Debug)]
pub(crate) struct Upgrading(Child);

impl Control {
    /// By the command of the relay that was built beside this tool.
    pub(crate) fn beside_this_tool(socket: PathBuf) -> Outcome<Self> {
        let program = std::env::current_exe()?.with_file_name("pyrycode-relay");
        Ok(Self { program, socket, to: None })
    }

    /// Begins an upgrade.
    pub(crate) fn upgrade(&self) -> Outcome<Upgrading> {
        let mut command = Command::new(&self.program);
        command.args(["upgrade", "--json", "--control-socket"]).arg(&self.socket);
        if let Some(to) = &self.to {
            command.arg("--program").arg(to);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| {
            format!("{} cannot be asked to upgrade: {error}", self.program.display())
        })?;
        Ok(Upgrading(child))
    }
}

impl Upgrading {
    /// What came of it, once that is known.
    pub(crate) fn outcome(&mut self) -> Outcome<Option<Report>> {
        let Some(status) = self.0.try_wait()? else { return Ok(None) };
        let (mut told, mut why) = (String::new(), String::new());
        if let (Some(out), Some(err)) = (&mut self.0.stdout, &mut self.0.stderr) {
            out.read_to_string(&mut told)?;
            err.read_to_string(&mut why)?;
        }
        if !status.success() {
            return Err(format!("the relay's fault: it was not upgraded: {}", why.trim()).into());
        }
        let report = serde_json::from_str(&told);
        let strange = |error| format!("`upgrade` says what is not understood ({error}): {told}");
        Ok(Some(report.map_err(strange)?))
    }
}

/// The processes of a relay that this tool has started: the first, and those that have taken over
/// from one another. All of them end when this is dropped.
#[derive(Debug)]
pub(crate) struct Lineage {
    first: Child,
    /// The one that serves now, where it is not the first.
    heir: Option<Pid>,
}

impl Lineage {
    /// Starts the first, as a group of processes, so that whoever it starts ends with it.
    pub(crate) fn start(mut command: Command) -> Outcome<Self> {
        // Who takes over is somebody's orphan soon: ours, so that we see it end.
        rustix::process::set_child_subreaper(Pid::from_raw(1))?;
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Ok(Self { first: command.spawn()?, heir: None })
    }

    /// The process that serves now.
    pub(crate) fn pid(&self) -> u32 {
        self.heir.map_or(self.first.id(), |pid| pid.as_raw_nonzero().get() as u32)
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Outcome<Option<String>> {
        let Some(heir) = self.heir else {
            return Ok(self.first.try_wait()?.map(|status| status.to_string()));
        };
        match waitpid(Some(heir), WaitOptions::NOHANG) {
            Ok(None) => Ok(None),
            Ok(Some((_, status))) => Ok(Some(format!("{status:?}"))),
            // Who started it lives yet, or somebody else has heard of its end.
            Err(rustix::io::Errno::CHILD) => {
                let is_there = std::path::Path::new(&format!("/proc/{}", self.pid())).exists();
                Ok((!is_there).then(|| "nobody knows how".to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Another process has taken over: waits until the one before has ended.
    pub(crate) fn follow(&mut self, pid: u32) -> Outcome<()> {
        let before = self.pid();
        let end = Instant::now() + LEAVES_WITHIN;
        while self.ended()?.is_none() {
            if Instant::now() > end {
                return Err(format!(
                    "the relay's fault: process {before} is there {} s after {pid} took over",
                    LEAVES_WITHIN.as_secs()
                )
                .into());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        self.heir = Some(Pid::from_raw(pid.try_into()?).ok_or("a process without a number")?);
        Ok(())
    }
}

impl Drop for Lineage {
    fn drop(&mut self) {
        // Nobody else can have the group's number while one of it is there, or is not heard of.
        if let (Ok(None), Some(group)) = (self.ended(), Pid::from_raw(self.first.id() as i32)) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.first.wait();
        if let Some(heir) = self.heir {
            let _ = waitpid(Some(heir), WaitOptions::empty());
        }
    }
}
