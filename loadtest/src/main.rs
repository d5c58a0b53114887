//! Load generator for relays that speak the pyrycode protocol: starts the relay that was built
//! beside it, loads it, and reads from `/proc` what that cost.
//!
//! - `echo`: every phone asks, its binary answers, and every frame is checked
//! - `idle`: phones connect and sit

mod peers;
mod relay;

use clap::{Parser, Subcommand};
use peers::{Shape, Tally};
use relay::Relay;
use std::error::Error;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::LocalSet;

/// What may fail here ends the run.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Parser)]
#[command(version, about = "Loads a pyrycode-relay and says what it cost")]
struct Arguments {
    #[command(subcommand)]
    scenario: Scenario,
    /// The relay's executable; by default the one that was built beside this tool
    #[arg(long, global = true)]
    relay: Option<std::path::PathBuf>,
    /// The relay's worker threads
    #[arg(long, global = true, default_value_t = 1)]
    workers: u16,
}

#[derive(Subcommand)]
enum Scenario {
    /// Phones ask, binaries answer: CPU time of the relay per relayed message
    ///
    /// Example: loadtest echo --shape 64x16 --size 200 --seconds 10
    Echo {
        /// Binaries x phones of each
        #[arg(long, default_value = "64x16")]
        shape: Shape,
        /// Bytes of JSON in each frame, at least 40
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(40..=200_000))]
        size: u32,
        /// How long to measure, after a second of warming up
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
        seconds: u64,
    },
    /// Phones connect and sit: resident memory of the relay per phone
    ///
    /// Example: loadtest idle --shape 1000x16
    Idle {
        /// Binaries x phones of each; this one process has to hold them all
        #[arg(long, default_value = "1000x16")]
        shape: Shape,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(Into::into).and_then(|runtime| {
        LocalSet::new().block_on(&runtime, async {
            let relay = Relay::start(arguments.relay, arguments.workers).await?;
            match arguments.scenario {
                Scenario::Echo { shape, size, seconds } => {
                    echo(&relay, shape, size as usize, Duration::from_secs(seconds)).await
                }
                Scenario::Idle { shape } => idle(&relay, shape).await,
            }
        })
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loadtest: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn echo(relay: &Relay, shape: Shape, size: usize, measured: Duration) -> Outcome<()> {
    let tally = Rc::new(Tally::default());
    let crowd = peers::connect(relay.address(), shape, Some(size), &tally).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (began, cpu_before, before) = (Instant::now(), relay.cpu_time()?, tally.messages());
    tokio::time::sleep(measured).await;
    let (took, cpu, messages) =
        (began.elapsed(), relay.cpu_time()? - cpu_before, tally.messages() - before);
    tally.fault().map_or(Ok(()), Err)?;
    if messages == 0 {
        return Err("no message was relayed".into());
    }
    let micros = cpu.as_secs_f64() * 1e6 / messages as f64;
    println!("{shape} phones, {size} bytes, {} workers", relay.workers());
    println!("{micros:.2} us of relay CPU per relayed message");
    println!("{:.0} messages per second", messages as f64 / took.as_secs_f64());
    println!("{:.0} % relay CPU", 100.0 * cpu.as_secs_f64() / took.as_secs_f64());
    println!("{messages} messages, all checked: right phone, right order, none lost or doubled");
    drop(crowd);
    Ok(())
}

async fn idle(relay: &Relay, shape: Shape) -> Outcome<()> {
    let tally = Rc::new(Tally::default());
    let binaries = peers::connect(relay.address(), shape.without_phones(), None, &tally).await?;
    let before = relay.resident_bytes()?;
    let phones = peers::join(relay.address(), shape, &tally).await?;
    // Lets the relay close what the upgrades left behind.
    tokio::time::sleep(Duration::from_secs(2)).await;
    tally.fault().map_or(Ok(()), Err)?;
    let grown = relay.resident_bytes()?.saturating_sub(before);
    println!("{shape} idle phones, {} workers", relay.workers());
    println!(
        "{:.0} bytes of resident memory per phone",
        grown as f64 / shape.phones_in_all() as f64
    );
    println!("{:.1} MiB resident in all", relay.resident_bytes()? as f64 / 1048576.0);
    drop((binaries, phones));
    Ok(())
}
