//! What can be typed.

use crate::cgroup::parse_size;
use crate::frame;
use crate::launch::Launch;
use crate::plan::Plan;
use crate::restart::{Over, Peers, Workers};
use crate::spec::{Play, Shape};
use crate::subject::Subject;
use crate::tls::{Offer, Version};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How subjects are named, for the help.
const SUBJECTS: &str = "A relay is named:
  relay             the one that was built beside this tool; relay@2 with two workers
  baseline          the relay that one would write first, on tokio; part of this tool
  floor             a bare io_uring pipe between the same sockets, one call each time that it wakes;
                    part of this tool
  floor-epoll       the same with epoll_wait, recv and send
  relay-tls         the same over TLS, with a certificate for this run alone; so baseline-tls
  PATH              another build of this relay
  ws://HOST:PORT    one that runs already; #PID after it, or --pid, for its CPU time and memory
  wss://HOST:PORT   the same over TLS; --ca and --server-name say whom to trust
  'PROGRAM … {listen} … {workers}'   any other, by its command line; with {cert} and {key} over TLS

A message is one frame through the relay: an echo round trip is two messages. Every frame is checked;
one that is lost, doubled, late, altered or at the wrong peer fails the run.";

/// Loads a relay, checks every frame, and says what it cost
#[derive(Debug, Parser)]
#[command(version, after_help = SUBJECTS)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Phones ask, binaries answer: CPU per message, and round trips [64x16, 10 s]
    ///
    /// Example: loadtest echo --shape 64x16 --size 200 --seconds 10
    Echo {
        #[command(flatten)]
        load: Load,
        #[command(flatten)]
        pace: Pace,
    },
    /// Binaries stream to phones [64x4, 10 s]
    Push {
        #[command(flatten)]
        load: Load,
        /// How many frames a binary is ahead of what a phone has confirmed
        #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        window: u32,
    },
    /// Phones connect and sit: memory of each, and CPU time of heartbeats [1000x16, 60 s]
    Idle {
        #[command(flatten)]
        load: Load,
    },
    /// Phones connect all at once, are cut, and connect again [1000x16, 10 s]
    ///
    /// Over TLS: CPU time of handshakes, full ones, and with --resume resumed ones.
    Connect {
        #[command(flatten)]
        load: Load,
    },
    /// Phones come, ask a few times and go, one in four by a reset [64x16, 10 s]
    Churn {
        #[command(flatten)]
        load: Load,
        /// Answers until a phone leaves
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
        frames: u32,
    },
    /// Half of the phones come and go, the others ask on, other peers misbehave, and the relay is
    /// upgraded every 10 s: what it holds must not grow [64x16, 30 min]
    ///
    /// Only a relay that this tool has started is upgraded. Its CPU time lacks what each process used
    /// from its last look at it on.
    /// The peers that misbehave speak plain WebSocket: over TLS there are none.
    Soak {
        #[command(flatten)]
        load: Load,
        /// What misbehaviour is drawn from [default: another each time]
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Many phones in little memory, then traffic on all of them [10 s]
    ///
    /// Needs root and the memory controller of cgroup v1 or v2.
    Crowd {
        #[command(flatten)]
        load: Load,
        /// How many, 16 to a binary
        #[arg(long, default_value_t = 17_000, value_parser = clap::value_parser!(u32).range(1..=900_000))]
        phones: u32,
        /// The limit of the memory cgroup that the relay runs in
        #[arg(long, default_value = "64MiB", value_parser = parse_size)]
        memory: u64,
    },
    /// Every scenario in turn; --seconds is for each that has traffic [5 s]
    All {
        #[command(flatten)]
        load: Load,
    },
    /// Several relays in turn in one session (A B A B …): what each costs, and the ratios
    ///
    /// Example: loadtest compare baseline relay floor --shape 64x16 --rounds 5
    #[command(after_help = SUBJECTS)]
    Compare {
        #[arg(required = true)]
        subjects: Vec<Subject>,
        #[command(flatten)]
        load: Load,
        #[command(flatten)]
        pace: Pace,
        /// What they are loaded with
        #[arg(long, value_enum, default_value_t = Scenario::Echo)]
        scenario: Scenario,
        /// How often each is measured
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
        rounds: u32,
        /// Whom ratios are to: one subject, or several [default: the first]
        #[arg(long, value_delimiter = ',', value_name = "SUBJECT")]
        reference: Vec<String>,
    },
    /// One hostile peer of each kind, and what others feel of it [3 s each]
    ///
    /// Says of each attack how long the round trips of connected pairs take, and new connections
    /// (TCP, TLS, upgrade, first frame at the binary), and what memory the relay charges and holds
    /// at its peak. The load is spread over several server-ids, so that each worker has bystanders.
    /// What the relay takes of an attack is told in millions of bytes, or of connections.
    ///
    /// Example: loadtest hostile /path/to/older/pyrycode-relay relay
    #[command(after_help = SUBJECTS)]
    Hostile {
        #[arg(default_values = ["relay"])]
        subjects: Vec<Subject>,
        /// The relay's worker threads, in turn
        #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
        workers: Vec<usize>,
        /// How long each attack lasts
        #[arg(long, default_value_t = 3.0, value_parser = positive)]
        seconds: f64,
        /// Only attacks whose names contain this
        #[arg(long, value_name = "NAME")]
        attack: Vec<String>,
        /// Append what the relay writes to standard error to this file
        #[arg(long)]
        log: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// A relay that is upgraded again and again under load: what is felt of it
    ///
    /// Peers echo, push, come and go, and sit, over plain TCP and TLS, while the relay is upgraded
    /// (`pyrycode-relay upgrade`). Every frame is checked, and nobody may be closed but amid a TLS
    /// handshake, which is told. Who sits is asked in the end; meanwhile 16 pairs beside them ask 500
    /// times a second. Says how long the relay stood still and what its peers felt, and what both
    /// processes held.
    ///
    /// Example: loadtest restart --times 3 --scenario echo --over plain,tls13 --report restart.html
    #[command(after_help = SUBJECTS)]
    Restart(Restarts),
    /// Three relays behind HAProxy: what is felt while relays and balancers come and go [2 min]
    ///
    /// Starts all of them on this machine, HAProxy with the configuration that `pyrycode-relay haproxy`
    /// prints. Each server-id has a binary, a phone that stays, and phones that come, ask and go; all
    /// of them dial again when their connection ends. Every frame is checked.
    Cluster(Tour),
    /// Serves as the relay that a Rust developer would write first
    Baseline {
        #[command(flatten)]
        serve: Serve,
        /// Serve TLS with this certificate (PEM)
        #[arg(long, requires = "tls_key")]
        tls_cert: Option<PathBuf>,
        /// The certificate's key (PEM)
        #[arg(long, requires = "tls_cert")]
        tls_key: Option<PathBuf>,
    },
    /// Serves as a bare pipe between this tool's peers, on io_uring
    Floor {
        #[command(flatten)]
        serve: Serve,
        /// On epoll
        #[arg(long)]
        epoll: bool,
    },
    #[command(hide = true)]
    Agent,
    #[command(hide = true)]
    Launch(Launch),
}

/// How a relay is upgraded, and under what.
#[derive(Debug, Args)]
pub(crate) struct Restarts {
    /// Upgrades in a row
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) times: u32,
    /// From the beginning of one to that of the next
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    pub(crate) seconds: f64,
    /// Binaries x phones of each
    #[arg(long, default_value = "64x16")]
    pub(crate) shape: Shape,
    /// Bytes of JSON in each frame, at least 83
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(83..=262_000))]
    pub(crate) size: u32,
    /// What the peers do, in turn
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Peers::Echo, Peers::Push, Peers::Churn, Peers::Idle])]
    pub(crate) scenario: Vec<Peers>,
    /// Over what, in turn
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Over::Plain, Over::Tls12, Over::Tls13])]
    pub(crate) over: Vec<Over>,
    /// The relay's worker threads, in turn; 1-2: one, and two after every other upgrade
    #[arg(long, value_delimiter = ',', default_values = ["1", "2"])]
    pub(crate) workers: Vec<Workers>,
    /// Processes that play the peers, at least
    #[arg(long, default_value_t = 1)]
    pub(crate) agents: u32,
    /// How long a frame may be overdue before the run has failed, in seconds
    #[arg(long, default_value_t = 15.0, value_parser = positive)]
    pub(crate) patience: f64,
    /// The relay, see below
    #[arg(long, default_value = "relay")]
    pub(crate) relay: Subject,
    /// The control socket of a relay that is named by its URL
    #[arg(long, value_name = "PATH")]
    pub(crate) control_socket: Option<PathBuf>,
    /// The process of a relay that is named by its URL
    #[arg(long)]
    pub(crate) pid: Option<u32>,
    /// Upgrade to this program [default: to what is installed where the relay's program was]
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) to: Option<PathBuf>,
    /// Append what the relay writes to standard error to this file
    #[arg(long)]
    pub(crate) log: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Write a page with plots here; it opens offline
    #[arg(long)]
    pub(crate) report: Option<PathBuf>,
}

/// What is done to a cluster.
#[derive(Debug, Args)]
pub(crate) struct Tour {
    /// Server-ids
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub(crate) ids: u32,
    /// How long to look on after each change
    #[arg(long, default_value_t = 6.0, value_parser = positive)]
    pub(crate) seconds: f64,
    /// Only scenarios whose names contain this
    #[arg(long, value_name = "NAME")]
    pub(crate) scenario: Vec<String>,
    /// The balancer speaks no TLS
    #[arg(long)]
    pub(crate) plain: bool,
    /// The relay's executable [default: the one that was built beside this tool]
    #[arg(long, value_name = "PATH")]
    pub(crate) relay: Option<PathBuf>,
    /// Leave configurations and logs in this folder
    #[arg(long, value_name = "FOLDER")]
    pub(crate) keep: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// How fast phones ask.
#[derive(Debug, Args)]
pub(crate) struct Pace {
    /// Questions that each phone has out at a time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    window: u32,
    /// Questions a second in all, sent when it is time, answered or not; round trips count from
    /// when each was due
    #[arg(long, conflicts_with = "window", value_parser = positive)]
    rate: Option<f64>,
    /// Questions that are due at the same instant
    #[arg(long, requires = "rate", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    burst: u32,
    /// The load never sleeps: then waking it is no part of the relay's CPU time, and neither is its
    /// waking of the round trips, as with peers that are on another machine
    #[arg(long, requires = "rate")]
    pub(crate) spin: bool,
}

impl Pace {
    pub(crate) fn play(&self) -> Play {
        match self.rate {
            Some(per_second) => Play::Open { per_second, burst: self.burst },
            None => Play::Closed { window: self.window },
        }
    }
}

/// What relays are compared under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    Echo,
    Push,
    Idle,
    Connect,
    Churn,
}

impl Scenario {
    pub(crate) fn play(self, pace: &Pace) -> Play {
        match self {
            Self::Echo => pace.play(),
            Self::Push => Play::Push { window: 32 },
            Self::Idle => Play::Idle,
            Self::Connect => Play::Connect,
            Self::Churn => Play::Churn { frames: 20, every: 1 },
        }
    }
}

/// Where one of the tool's own relays listens.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[arg(long)]
    pub(crate) listen: SocketAddr,
    /// Threads; the floor has one
    #[arg(long, default_value_t = 1)]
    pub(crate) workers: usize,
}

/// What goes over TLS, and how.
#[derive(Debug, Args)]
struct Tls {
    /// Over TLS: relay means relay-tls, and so on
    #[arg(help_heading = "TLS", long)]
    tls: bool,
    /// Trust these certificates (PEM) of a wss:// relay, rather than those that the machine trusts
    #[arg(help_heading = "TLS", long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The name that a wss:// relay's certificate is for [default: the URL's host]
    #[arg(help_heading = "TLS", long, value_name = "NAME")]
    server_name: Option<String>,
    /// Phones that come again resume the TLS session that they had
    #[arg(help_heading = "TLS", long)]
    resume: bool,
    /// The only version of TLS that is offered [default: both]
    #[arg(help_heading = "TLS", long, value_enum, value_name = "VERSION")]
    tls_version: Option<Version>,
}

impl Tls {
    /// These subjects, as these flags have them.
    fn fit(&self, subjects: Vec<Subject>) -> Result<Vec<Subject>, String> {
        let over = |subject: Subject| match self.tls {
            true => subject.over_tls(),
            false => Ok(subject),
        };
        let subjects = subjects.into_iter().map(over).collect::<Result<Vec<_>, _>>()?;
        let secure = || subjects.iter().filter(|subject| subject.is_tls());
        for (flag, given) in [("resume", self.resume), ("tls-version", self.tls_version.is_some())]
        {
            if given && secure().next().is_none() {
                return Err(format!("--{flag} is for TLS: add --tls, or name a wss:// URL"));
            }
        }
        for (flag, given) in
            [("ca", self.ca.is_some()), ("server-name", self.server_name.is_some())]
        {
            if given && !secure().any(Subject::is_url) {
                return Err(format!("--{flag} is for a relay that is named by a wss:// URL"));
            }
        }
        let trusting =
            |subject: Subject| subject.trusting(self.server_name.as_deref(), self.ca.as_deref());
        Ok(subjects.into_iter().map(trusting).collect())
    }
}

/// What all scenarios have in common.
#[derive(Debug, Args)]
pub(crate) struct Load {
    /// Binaries x phones of each
    #[arg(long)]
    shape: Option<Shape>,
    /// Bytes of JSON in each frame, at least 83
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(83..=262_000))]
    size: u32,
    /// How long to measure
    #[arg(long, value_parser = positive)]
    seconds: Option<f64>,
    /// How long to warm up, in seconds
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// How long a frame may be overdue, or an upgrade, before the run has failed, in seconds
    #[arg(long, default_value_t = 15.0, value_parser = positive)]
    patience: f64,
    /// The relay, see below
    #[arg(long, default_value = "relay")]
    relay: Subject,
    /// The process of a relay that is named by its URL
    #[arg(long)]
    pid: Option<u32>,
    /// The relay's worker threads, pinned to the first CPUs; the load stays on the others
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Processes that play the peers, at least
    #[arg(long, default_value_t = 1)]
    agents: u32,
    /// Count the relay's system calls, too, for at most 2 s after what else is measured: by perf,
    /// else by strace, which slows it. They are told for each message and for each wake: a wake
    /// is that a thread of the relay had slept (a voluntary context switch, counted by the kernel)
    #[arg(long)]
    syscalls: bool,
    /// Run the relay in a memory cgroup with this limit
    #[arg(long, value_parser = parse_size)]
    cgroup_memory: Option<u64>,
    /// Append what the relay writes to standard error to this file
    #[arg(long)]
    log: Option<PathBuf>,
    #[command(flatten)]
    tls: Tls,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Write a page with plots here; it opens offline
    #[arg(long)]
    pub(crate) report: Option<PathBuf>,
}

impl Load {
    /// The relay that is loaded.
    pub(crate) fn subject(&self) -> Result<Subject, String> {
        let mut fitting = self.subjects(vec![self.relay.clone().with_pid(self.pid)])?;
        fitting.pop().ok_or_else(|| "no subject".into())
    }

    /// The relays that are loaded in turn.
    pub(crate) fn subjects(&self, named: Vec<Subject>) -> Result<Vec<Subject>, String> {
        self.tls.fit(named)
    }

    /// The plan for a play, with the shape and the seconds that it has if nobody says otherwise.
    pub(crate) fn plan(&self, play: Play, shape: &str, seconds: f64) -> Plan {
        let shape = self.shape.or_else(|| shape.parse().ok());
        Plan {
            shape: shape.unwrap_or(Shape { binaries: 1, phones: 1 }),
            size: (self.size as usize).max(frame::MIN_SIZE),
            play,
            workers: self.workers.max(1),
            agents: self.agents.max(1),
            warm_up: Duration::from_secs_f64(self.warm_up.clamp(0.0, 86_400.0)),
            time: Duration::from_secs_f64(self.seconds.unwrap_or(seconds)),
            patience: Duration::from_secs_f64(self.patience),
            offer: Offer { version: self.tls.tls_version, resume: self.tls.resume },
            spin: false,
            syscalls: self.syscalls,
            cgroup: self.cgroup_memory,
            log: self.log.clone(),
            upgrades: false,
            faults: None,
        }
    }
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (0.001..=1e9).contains(number));
    number.ok_or_else(|| "write a number greater than 0".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_smallest_size_is_what_the_help_says() {
        assert_eq!(frame::MIN_SIZE, 83);
    }

    fn subjects(words: &str) -> Result<Vec<Subject>, String> {
        match Arguments::parse_from(words.split(' ')).command {
            Command::Compare { subjects, load, .. } => load.subjects(subjects),
            Command::Echo { load, .. } => load.subject().map(|subject| vec![subject]),
            _ => panic!(),
        }
    }

    #[test]
    fn tls_is_a_flag_or_part_of_the_name() {
        let names = |words| -> Vec<String> {
            subjects(words).unwrap().iter().map(Subject::to_string).collect()
        };
        assert_eq!(names("loadtest echo"), ["relay"]);
        assert_eq!(names("loadtest echo --tls --resume --tls-version 1.2"), ["relay-tls"]);
        let three = ["relay", "relay-tls", "baseline-tls"];
        assert_eq!(names("loadtest compare relay relay-tls baseline-tls --resume"), three);
        assert_eq!(names("loadtest compare relay baseline --tls"), ["relay-tls", "baseline-tls"]);
    }

    #[test]
    fn flags_that_would_do_nothing_are_refused() {
        for (words, why) in [
            ("loadtest echo --resume", "--resume is for TLS"),
            ("loadtest echo --tls-version 1.3", "--tls-version is for TLS"),
            ("loadtest echo --relay ws://h --ca f", "--ca is for"),
            ("loadtest echo --tls --server-name h", "--server-name is for"),
            ("loadtest compare relay floor --tls", "floor"),
        ] {
            let error = subjects(words).unwrap_err();
            assert!(error.contains(why), "{words}: {error}");
        }
        assert!(subjects("loadtest echo --relay wss://h --ca f --server-name n").is_ok());
    }

    #[test]
    fn defaults_give_way_to_what_is_typed() {
        let parse = |words: &str| match Arguments::parse_from(words.split(' ')).command {
            Command::Idle { load } => load.plan(Play::Idle, "1000x16", 60.0),
            _ => panic!(),
        };
        let plan = parse("loadtest idle");
        assert_eq!((plan.shape.to_string().as_str(), plan.time.as_secs()), ("1000x16", 60));
        let plan = parse("loadtest idle --shape 2x3 --seconds 4 --cgroup-memory 64MiB");
        assert_eq!((plan.shape.to_string().as_str(), plan.time.as_secs()), ("2x3", 4));
        assert_eq!(plan.cgroup, Some(64 << 20));
    }
}
