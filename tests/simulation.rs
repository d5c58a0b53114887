//! The relay's core under virtual time, with a crowd of hostile peers, from one seed at a time.
//!
//!     cargo test --test simulation
//!     SIM_SEEDS=100000 SIM_FIRST_SEED=5000 SIM_STEPS=500 cargo test --test simulation
//!
//! - `scenario`: what a seed draws for itself: limits, budget, workers, ids
//! - `crowd`: the peers, what they say and how they misbehave
//! - `world`: workers, mailboxes and sockets; the checks after every call of the relay
//! - `model`, `outbound`, `admission`: what PROTOCOL.md says must happen
//! - `wire`: bytes of the peers; `rng`: chance
//!
//! # What it has been seen to catch
//!
//! Faults that were planted in `src/relay`, one at a time, or had been there (marked *); the check
//! that caught each, and after how many seeds from 0. The name of a check stands in brackets at the
//! front of its message.
//!
//! | Fault | Check | Seeds |
//! |---|---|---|
//! | the shared budget leases one byte too many | `budget` | 51 |
//! | each frame releases one byte less than it was charged | `charge` | 1 |
//! | the binary gets no notice of a phone that was reset | `charge` | 3 |
//! | grace goes on after a reclaim | `counts` | 5 |
//! | a probe that ended leaves its timer armed | `state` | 45 |
//! | a frame reaches a phone of another id | `charge` | 46 |
//! | a hand-over loses the first unread byte | `hand-over` | 3 |
//! | a frame is queued twice | `charge`, or an assertion of the outbox | 1 |
//! | shutdown sends a second close frame | `charge` | 29 |
//! | one phone too many | `state` | 3 |
//! | a probed holder is heard only by its pongs | `state` | 9 |
//! | a close directive overtakes frames | `lost` | 20 |
//! | a write that made progress keeps its old deadline | `state` | 4 |
//! | a half-sent frame is torn | an assertion of the outbox | 5 |
//! | a phone that closes itself does not free its slot | `state` | 15 |
//! | a pong lacks the end of a long ping | `pong` | 6 |
//! | a close in its turn has no deadline | `alarm` | 92 |
//! | phones of a full binary are not read again | `pause` | 300 |
//! | a newcomer that was not read and wins is still not read | `read` | 591 |
//! | a pong deadline fires 8 ms early | `state` | 574 |
//! | a request that is refused after it had a place keeps it | `places` | 4 |
//! | a hand-over leaves its place behind | `places` | 2 |
//! | a hand-over that is lost keeps its place | `places` | 68 |
//! | a token costs 1 ms too little | `state` | 95 |
//! | * a ping amid fragments gave their message another 30 s | `state` | 16 |
//! | * input that was let go stayed charged | `input charge` | 1 |
//! | * a hand-over left its key among the backlogs | `charge` | 3 |
//! | * timers of ids outlived a shutdown | `empty` | 16 |
//! | * a close dropped a 101 that waited behind an answer | `charge`, or an assertion | 82 |
//! | * a phone's frame followed the notice of its end | `order` | 180 |
//! | * input was charged by a value from before room was made | an assertion of the budget | 92 from 200000 |
//! | * pongs out of order after a partial write | `pong` | 212 |
//! | * a binary was cut for memory inside the message that its phone was closed for | `close code` | 463127 |

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    missing_docs,
    unreachable_pub
)]

#[path = "simulation/admission.rs"]
mod admission;
#[path = "simulation/crowd.rs"]
mod crowd;
#[path = "simulation/model.rs"]
mod model;
#[path = "simulation/outbound.rs"]
mod outbound;
#[path = "simulation/rng.rs"]
mod rng;
#[path = "simulation/scenario.rs"]
mod scenario;
#[path = "simulation/wire.rs"]
mod wire;
#[path = "simulation/world.rs"]
mod world;

use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::time::Instant;

/// Fails with the name of the check in brackets.
macro_rules! check {
    ($holds:expr, $name:literal, $($text:tt)*) => {
        if !$holds {
            panic!("[{}] {}", $name, format!($($text)*));
        }
    };
}
pub(crate) use check;

static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

/// What went wrong, the last steps before it, and how many events there were.
struct Outcome {
    failure: Option<String>,
    trace: Vec<String>,
    events: u64,
}

fn run(seed: u64, steps: Option<u64>, traces: bool) -> Outcome {
    let mut rng = rng::Rng::new(seed);
    let scenario = scenario::Scenario::draw(&mut rng, steps);
    let mut crowd = crowd::Crowd::new(world::World::new(scenario, rng, traces));
    let ended = panic::catch_unwind(AssertUnwindSafe(|| crowd.run()));
    let failure = ended.err().map(|_| LAST_PANIC.lock().unwrap().clone());
    Outcome { failure, trace: crowd.world.take_trace(), events: crowd.world.events }
}

fn from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {value:?}")))
}

#[test]
fn every_seed_keeps_the_protocol() {
    let seeds = from_environment("SIM_SEEDS").unwrap_or(2500);
    let first = from_environment("SIM_FIRST_SEED").unwrap_or(0);
    let steps = from_environment("SIM_STEPS");
    let started = Instant::now();
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|info| *LAST_PANIC.lock().unwrap() = info.to_string()));
    let mut events = 0;
    let mut failed = None;
    for seed in first..first + seeds {
        let outcome = run(seed, steps, false);
        events += outcome.events;
        if outcome.failure.is_some() {
            failed = Some((seed, run(seed, steps, true)));
            break;
        }
    }
    panic::set_hook(hook);
    if let Some((seed, outcome)) = failed {
        for line in outcome.trace {
            println!("{line}");
        }
        let steps = steps.map_or(String::new(), |steps| format!("SIM_STEPS={steps} "));
        panic!(
            "{}\nseed {seed}, the {}th of this run. To replay it:\n\
             {steps}SIM_FIRST_SEED={seed} SIM_SEEDS=1 cargo test --test simulation",
            outcome.failure.unwrap_or_else(|| "failed once and not again".to_owned()),
            seed - first + 1,
        );
    }
    println!("{seeds} seeds, {events} events, {:.1} s", started.elapsed().as_secs_f64());
}
