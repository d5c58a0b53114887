//! The processes that play the peers. Several, because a process has a limit on descriptors.

use crate::Outcome;
use crate::crowd::Crowd;
use crate::launch::{self, Cpus, usable_cpus};
use crate::net::Net;
use crate::plan::Plan;
use crate::round_trips::RoundTrips;
use crate::spec::{Counts, Lap, Play, Said, Shape, Spec, Told};
use crate::tls::Handshakes;
use crate::wire::Target;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

/// Connections of one agent, at most: the usual hard limit is 20,000 descriptors.
const MAX_CONNECTIONS: u64 = 15_000;
/// Connections from one source address, at most: a port each, of some 28,000.
const CONNECTIONS_PER_SOURCE: u64 = 10_000;
/// Source addresses of one agent whose phones come and go: a port rests for a minute after use.
const SOURCES_OF_CHURN: u64 = 200;

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
    pub(crate) fn start(target: &Target, plan: &Plan) -> Outcome<Self> {
        let Plan { shape, size, play, .. } = *plan;
        let needed = shape.connections().div_ceil(MAX_CONNECTIONS) as u32;
        let count = needed.max(plan.agents).min(shape.binaries);
        // With several workers there is hardly a CPU left for the agents alone.
        let cpus = match plan.workers < usable_cpus()? {
            true => Cpus::Beyond(plan.workers),
            false => Cpus::All,
        };
        let run = format!("load-{}-{}", std::process::id(), now_nanos());
        let mut agents = Vec::new();
        for number in 0..count {
            let first_binary = shape.binaries * number / count;
            let binaries = shape.binaries * (number + 1) / count - first_binary;
            let share = Shape { binaries, ..shape };
            let spec = Spec {
                target: target.clone(),
                offer: plan.offer,
                play: share_of(play, shape, share),
                shape: share,
                first_binary,
                size,
                run: run.clone(),
                patience: plan.patience,
                spin: plan.spin,
                upgrades: plan.upgrades,
                sources: sources(target, number, share, play),
            };
            agents.push(Agent::start(&spec, cpus)?);
        }
        Ok(Self(agents))
    }

    /// Tells all of them, and waits until the last has done it.
    pub(crate) fn tell(&mut self, what: Told) -> Outcome<()> {
        self.ask(what).map(drop)
    }

    /// What all of them counted since the mark.
    pub(crate) fn count(&mut self) -> Outcome<Vec<Counts>> {
        let counts = |said| match said {
            Said::Counts(counts) => Ok(*counts),
            said => Err(format!("an agent answered {said:?} to Count").into()),
        };
        self.ask(Told::Count)?.into_iter().map(counts).collect()
    }

    /// Frames that have arrived since the mark, in all.
    pub(crate) fn progress(&mut self) -> Outcome<u64> {
        let messages = |said| match said {
            Said::Progress { messages } => messages,
            _ => 0,
        };
        Ok(self.ask(Told::Progress)?.into_iter().map(messages).sum())
    }

    /// What arrived at all of them since this was last asked, with the round trips apart.
    pub(crate) fn lap(&mut self) -> Outcome<(Lap, RoundTrips)> {
        let (mut whole, mut round_trips) = (Lap::default(), RoundTrips::default());
        for said in self.ask(Told::Lap)? {
            let Said::Lap(lap) = said else {
                return Err(format!("an agent answered {said:?} to Lap").into());
            };
            whole.messages += lap.messages;
            whole.cut_handshakes += lap.cut_handshakes;
            round_trips.merge(&lap.round_trips);
        }
        Ok((whole, round_trips))
    }

    /// The TLS handshakes of all of them since they began.
    pub(crate) fn handshakes(&mut self) -> Outcome<Handshakes> {
        let handshakes = |said| match said {
            Said::Handshakes(handshakes) => handshakes,
            _ => Handshakes::default(),
        };
        let said = self.ask(Told::Handshakes)?.into_iter().map(handshakes);
        Ok(said.fold(Handshakes::default(), Handshakes::and))
    }

    fn ask(&mut self, what: Told) -> Outcome<Vec<Said>> {
        for agent in &mut self.0 {
            // One that has ended said why, and is heard next.
            let _ = writeln!(agent.to, "{}", serde_json::to_string(&what)?);
        }
        self.0.iter_mut().map(Agent::hear).collect()
    }
}

impl Agent {
    fn start(spec: &Spec, cpus: Cpus) -> Outcome<Self> {
        let mut child = launch::command(&std::env::current_exe()?, cpus, None)?
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
            let status = self.child.wait()?;
            return Err(format!(
                "this tool's own fault: an agent (a process that plays peers) died: {status}"
            )
            .into());
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
        Play::Open { per_second, burst } => Play::Open {
            per_second: per_second * share.phones_in_all() as f64 / whole.phones_in_all() as f64,
            burst,
        },
        other => other,
    }
}

/// Loopback has a whole network of addresses; to elsewhere the kernel chooses.
fn sources(target: &Target, agent: u32, share: Shape, play: Play) -> Vec<IpAddr> {
    if !target.address.ip().is_loopback() || target.address.is_ipv6() {
        return Vec::new();
    }
    let count = match play {
        Play::Churn { .. } | Play::Connect => SOURCES_OF_CHURN,
        _ => share.connections().div_ceil(CONNECTIONS_PER_SOURCE),
    };
    (1..=count.clamp(1, SOURCES_OF_CHURN) as u8)
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
    // The usual slack of 50 µs would be counted as the relay's.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    let mut net = Net::new(spec.target.clone(), spec.offer, spec.spin)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Wire;

    fn target(address: &str) -> Target {
        let address = address.parse().unwrap();
        Target {
            address,
            host: String::new(),
            prefix: String::new(),
            wire: Wire::WebSocket,
            tls: None,
        }
    }

    #[test]
    fn agents_share_no_source_address() {
        let shape = Shape { binaries: 1000, phones: 16 };
        let first = sources(&target("127.0.0.1:1"), 0, shape, Play::Idle);
        let second = sources(&target("127.0.0.1:1"), 1, shape, Play::Idle);
        assert_eq!((first.len(), second.len()), (2, 2));
        assert!(first.iter().all(|source| source.is_loopback() && !second.contains(source)));
    }

    #[test]
    fn elsewhere_the_kernel_chooses_the_source() {
        let shape = Shape { binaries: 1, phones: 1 };
        for address in ["192.0.2.1:1", "[::1]:1"] {
            assert!(sources(&target(address), 0, shape, Play::Connect).is_empty());
        }
    }

    #[test]
    fn a_rate_is_shared_by_phones() {
        let whole = Shape { binaries: 4, phones: 2 };
        let share = share_of(
            Play::Open { per_second: 100.0, burst: 1 },
            whole,
            Shape { binaries: 1, ..whole },
        );
        assert_eq!(share, Play::Open { per_second: 25.0, burst: 1 });
    }
}
