//! Load generator for relays that speak the pyrycode protocol. It starts the relay that was built
//! beside it, or takes any other by URL or command line, plays binaries and phones in processes of
//! its own, checks every frame that arrives, and reads from `/proc` what the load cost.
//!
//! - [`cli`], [`scenarios`]: what can be typed, and what is done then
//! - [`subject`], [`launch`], [`cgroup`]: the relay under load; [`baseline`] and [`floor`] are the tool's own
//! - [`plan`], [`sample`]: what is to be measured and what was seen, as data that names nobody above
//! - [`run`], [`compare`], [`progress`]: one measurement; several in turn
//! - [`measured`], [`storms`], [`verdict`], [`drift`], [`round_trips`], [`proc`], [`syscalls`], [`tables`]: what came of it
//! - [`table`], [`page`], [`plot`]: how it is told
//! - [`agents`], [`spec`], [`lines`]: the processes that play the peers, and what they are told
//! - [`crowd`], [`peers`], [`play`], [`frame`]: the peers of one such process, and every check
//! - [`net`], [`wire`], [`codec`], [`tls`]: their connections
//! - [`restart`], [`upgrade`]: a relay that is upgraded under load
//! - [`cluster`]: several relays behind HAProxy, and what is felt while they come and go
//! - [`faults`]: peers that misbehave beside them; [`hostile`]: attacks, and what bystanders feel of
//!   them; [`peer`]: one of either

mod agents;
mod baseline;
mod cgroup;
mod cli;
mod cluster;
mod codec;
mod compare;
mod crowd;
mod drift;
mod faults;
mod floor;
mod frame;
mod hostile;
mod launch;
mod lines;
mod measured;
mod net;
mod page;
mod peer;
mod peers;
mod plan;
mod play;
mod plot;
mod proc;
mod progress;
mod restart;
mod round_trips;
mod run;
mod sample;
mod scenarios;
mod spec;
mod storms;
mod subject;
mod syscalls;
mod table;
mod tables;
mod tls;
mod upgrade;
mod verdict;
mod wire;

use clap::Parser as _;
use std::error::Error;
use std::process::ExitCode;

/// What may fail here ends the run.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match scenarios::run(cli::Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loadtest: {error}");
            ExitCode::FAILURE
        }
    }
}
