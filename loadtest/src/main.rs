//! Load generator for relays that speak the pyrycode protocol. It starts the relay that was built
//! beside it, or takes any other by URL or command line, plays binaries and phones in processes of
//! its own, checks every frame that arrives, and reads from `/proc` what the load cost.

mod agents;
mod baseline;
mod codec;
mod compare;
mod crowd;
mod floor;
mod frame;
mod net;
mod proc;
mod report;
mod run;
mod spec;
mod subject;

use clap::{Args, Parser, Subcommand};
use run::Plan;
use spec::{Play, Shape};
use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use subject::Subject;

/// What may fail here ends the run.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Parser)]
#[command(version, about = "Loads a relay, checks every frame, and says what it cost")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Phones ask, binaries answer; or with --rate, at a fixed rate
    ///
    /// Example: loadtest echo --shape 64x16 --size 200 --seconds 10
    Echo {
        #[command(flatten)]
        load: Load,
        /// Questions that each phone has out at a time
        #[arg(long, default_value_t = 1)]
        window: u32,
        /// Questions a second in all, sent when it is time whether answered or not: for latency,
        /// which is counted from when each was due
        #[arg(long)]
        rate: Option<f64>,
    },
    /// Binaries stream to phones
    Push {
        #[command(flatten)]
        load: Load,
        /// How far a binary is ahead of what a phone has confirmed
        #[arg(long, default_value_t = 32)]
        window: u32,
    },
    /// Phones connect and sit: memory of each, and CPU time of each while nothing happens
    Idle {
        #[command(flatten)]
        load: Load,
    },
    /// Phones come, ask a few times and go, one in four by a reset
    Churn {
        #[command(flatten)]
        load: Load,
        /// Answers until a phone leaves
        #[arg(long, default_value_t = 20)]
        frames: u32,
    },
    /// A phone for each descriptor that a process may have, then traffic on all of them, in little
    /// memory
    Crowd {
        #[command(flatten)]
        load: Load,
        /// The memory cgroup's limit; needs root and the memory controller of cgroup v1 or v2
        #[arg(long, default_value = "64MiB")]
        memory: String,
    },
    /// Several relays in turn, in one session: what each costs, and the ratios
    ///
    /// Example: loadtest compare baseline relay floor --shape 64x16 --rounds 5
    Compare {
        /// relay, baseline, floor, ws://HOST:PORT#PID, or a command line with {listen}
        #[arg(required = true)]
        subjects: Vec<Subject>,
        #[command(flatten)]
        load: Load,
        /// Questions that each phone has out at a time
        #[arg(long, default_value_t = 1)]
        window: u32,
        /// Questions a second in all, see `echo`
        #[arg(long)]
        rate: Option<f64>,
        /// How often each is measured
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// Serves as the relay that a Rust developer would write first
    Baseline {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long, default_value_t = 1)]
        workers: usize,
    },
    /// Serves as a bare io_uring pipe between this tool's peers
    Floor {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long, default_value_t = 1)]
        workers: usize,
    },
    #[command(hide = true)]
    Agent,
}

#[derive(Args, Clone)]
struct Load {
    /// Binaries x phones of each
    #[arg(long, default_value = "64x16")]
    shape: Shape,
    /// Bytes of JSON in each frame
    #[arg(long, default_value_t = 200)]
    size: usize,
    /// How long to measure
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How long to warm up
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// The relay: relay, baseline, floor, ws://HOST:PORT#PID, or a command line with {listen}
    #[arg(long, default_value = "relay")]
    relay: Subject,
    /// The relay's worker threads, each on a CPU of its own; with one, agents stay off that CPU
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Processes that play the peers, at least
    #[arg(long, default_value_t = 1)]
    agents: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write a page with plots here; it opens offline
    #[arg(long)]
    report: Option<PathBuf>,
}

impl Load {
    fn plan(&self, play: Play) -> Plan {
        Plan {
            shape: self.shape,
            size: self.size.max(frame::MIN_SIZE),
            play,
            workers: self.workers,
            agents: self.agents,
            warm_up: Duration::from_secs_f64(self.warm_up),
            time: Duration::from_secs_f64(self.seconds),
            cgroup: None,
        }
    }

    fn run(&self, play: Play) -> Outcome<()> {
        self.run_plan(&self.plan(play))
    }

    fn run_plan(&self, plan: &Plan) -> Outcome<()> {
        let bar = run::progress();
        let measured = run::measure(&self.relay, plan, &bar)?;
        bar.finish_and_clear();
        report::show(plan, &[measured], self.json, self.report.as_deref())
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loadtest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn echo(window: u32, rate: Option<f64>) -> Play {
    rate.map_or(Play::Closed { window }, |per_second| Play::Open { per_second })
}

fn run(command: Command) -> Outcome<()> {
    match command {
        Command::Echo { load, window, rate } => load.run(echo(window, rate)),
        Command::Push { load, window } => load.run(Play::Push { window }),
        Command::Idle { load } => load.run(Play::Idle),
        Command::Churn { load, frames } => load.run(Play::Churn { window: 1, frames }),
        Command::Crowd { load, memory } => {
            let cgroup = compare::MemoryCgroup::new(&memory)?;
            let mut plan = load.plan(Play::Closed { window: 1 });
            plan.cgroup = Some(cgroup.path().to_owned());
            load.run_plan(&plan)?;
            cgroup.say_peak()
        }
        Command::Compare { subjects, load, window, rate, rounds } => {
            let plan = load.plan(echo(window, rate));
            compare::run(&subjects, &plan, rounds, load.json, load.report.as_deref())
        }
        Command::Baseline { listen, workers } => baseline::run(listen, workers),
        Command::Floor { listen, .. } => floor::run(listen),
        Command::Agent => agents::run_agent(),
    }
}
