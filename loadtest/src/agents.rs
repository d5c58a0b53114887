//! The processes that play the peers. Several, because a process has a limit on descriptors.

use crate::Outcome;
use crate::crowd::Crowd;
use crate::net::{Net, Target};
use crate::spec::{Counts, Play, Said, Shape, Spec, Told};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Connections of one agent, at most: the usual hard limit is 20,000 descriptors.
const MAX_CONNECTIONS: u64 = 15_000;
/// Connections from one source address, at most: a port each, of some 28,000.
const CONNECTIONS_PER_SOURCE: u64 = 10_000;

/// All agents of a run. They end when this is dropped.
pub(crate) struct Agents(Vec<Agent>);

struct Agent {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agents {
    /// Starts as many agents as the shape needs, at least `least`.
    pub(crate) fn start(
        target: &Target,
        shape: Shape,
        size: usize,
        play: Play,
        least: u32,
    ) -> Outcome<Self> {
        let needed = shape.connections().div_ceil(MAX_CONNECTIONS) as u32;
        let count = needed.max(least).min(shape.binaries);
        let run = format!("load-{}-{}", std::process::id(), now_nanos());
        let mut agents = Vec::new();
        for number in 0..count {
            let first_binary = shape.binaries * number / count;
            let binaries = shape.binaries * (number + 1) / count - first_binary;
            let share = Shape { binaries, ..shape };
            let spec = Spec {
                target: target.clone(),
                play: share_of(play, shape, share),
                shape: share,
                first_binary,
                size,
                run: run.clone(),
                sources: sources(target, number, share),
            };
            agents.push(Agent::start(&spec)?);
        }
        Ok(Self(agents))
    }

    /// Tells all of them, and waits until the last has done it.
    pub(crate) fn tell(&mut self, what: Told) -> Outcome<Vec<Counts>> {
        for agent in &mut self.0 {
            writeln!(agent.to, "{}", serde_json::to_string(&what)?)?;
        }
        let mut all = Vec::new();
        for agent in &mut self.0 {
            match agent.hear()? {
                Said::Done => {}
                Said::Counts(counts) => all.push(*counts),
                Said::Fault(fault) => return Err(fault.into()),
            }
        }
        Ok(all)
    }

    /// A fault that an agent has reported unasked, found because it has ended.
    pub(crate) fn check(&mut self) -> Outcome<()> {
        for agent in &mut self.0 {
            if agent.child.try_wait()?.is_some() {
                agent.hear()?;
                return Err("an agent ended".into());
            }
        }
        Ok(())
    }
}

impl Agent {
    fn start(spec: &Spec) -> Outcome<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("agent")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut to = child.stdin.take().ok_or("an agent without a pipe")?;
        let from = BufReader::new(child.stdout.take().ok_or("an agent without a pipe")?);
        writeln!(to, "{}", serde_json::to_string(spec)?)?;
        Ok(Self { child, to, from })
    }

    fn hear(&mut self) -> Outcome<Said> {
        let mut line = String::new();
        if self.from.read_line(&mut line)? == 0 {
            return Err("an agent ended without a word: see above for its panic".into());
        }
        match serde_json::from_str(&line)? {
            Said::Fault(fault) => Err(fault.into()),
            said => Ok(said),
        }
    }
}

/// The share of an agent in a play that is sized as a whole.
fn share_of(play: Play, whole: Shape, share: Shape) -> Play {
    match play {
        Play::Open { per_second } => Play::Open {
            per_second: per_second * share.phones_in_all() as f64 / whole.phones_in_all() as f64,
        },
        other => other,
    }
}

/// Loopback has a whole network of addresses; to elsewhere the kernel chooses.
fn sources(target: &Target, agent: u32, share: Shape) -> Vec<IpAddr> {
    if !target.address.ip().is_loopback() || target.address.is_ipv6() {
        return Vec::new();
    }
    let count = share.connections().div_ceil(CONNECTIONS_PER_SOURCE).clamp(1, 200) as u8;
    (1..=count)
        .map(|last| IpAddr::V4(Ipv4Addr::new(127, 0, (agent % 250 + 1) as u8, last)))
        .collect()
}

fn now_nanos() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    since.as_nanos() as u64
}

/// The body of an agent: reads its share, then plays it until it is told to end.
pub(crate) fn run_agent() -> Outcome<()> {
    let stdin = std::io::stdin();
    let mut line = Vec::new();
    // Byte by byte: what follows the line is for the event loop.
    loop {
        let mut byte = [0];
        if rustix::io::read(&stdin, &mut byte)? == 0 || byte == *b"\n" {
            break;
        }
        line.extend(byte);
    }
    let spec: Spec = serde_json::from_slice(&line)?;
    raise_descriptor_limit();
    let mut net = Net::new(spec.target.clone())?;
    net.run(&mut Crowd::new(spec), stdin)?;
    Ok(())
}

fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where it fails, dialling will say so.
    let _ = setrlimit(Resource::Nofile, limit);
}
