//! Starts the workers: with nothing, or with all that a predecessor has, which ends by that.

use super::predecessor::{Estate, Predecessor};
use super::record::Record;
use crate::config::{Config, Exit};
use crate::control::failure;
use crate::control::fleet::{Ends, Fleet, Heirs, Resources};
use crate::control::listening;
use crate::control::worker_threads::WorkerThreads;
use crate::handover::messages::Place;
use crate::handover::process::Counters;
use crate::worker::listener;
use socket2::Socket;
use std::io;
use std::time::Duration;
use tokio::signal::unix::Signal;
use tracing::info;

/// How long the workers may take to serve once they may.
const START: Duration = Duration::from_secs(5);

/// Workers that serve.
pub(in crate::control) struct Started {
    pub(in crate::control) fleet: Fleet,
    pub(in crate::control) ends: Ends,
    /// Where.
    pub(in crate::control) serving: Place,
    /// What was counted before.
    pub(in crate::control) earlier: Counters,
    /// How upgrades went.
    pub(in crate::control) record: Record,
}

/// Has all workers serve: by `listeners` where there is no predecessor, and else by its own and these,
/// which do not listen yet. `resources` has none. `stops` are the signals that ask the process to stop.
///
/// # Errors
///
/// What the predecessor has cannot be gone on with, or it goes on itself.
pub(in crate::control) async fn start(
    config: &Config,
    threads: WorkerThreads,
    listeners: Vec<Socket>,
    resources: Resources,
    predecessor: &mut Option<Predecessor>,
    stops: &mut [&mut Signal],
) -> Result<Started, Exit> {
    let Some(before) = predecessor else {
        let serving = serving(config, &listeners)?;
        let listeners = listening::share_out(listeners, threads.starts.len());
        let resources = Resources { listeners, ..resources };
        let (fleet, ends, _) = Fleet::start(config, threads, resources).map_err(failure)?;
        let (earlier, record) = (Counters::default(), Record::default());
        return Ok(Started { fleet, ends, serving, earlier, record });
    };
    let mut estate = before.receive()?;
    let (earlier, upgrades) = (estate.process.counters.clone(), estate.process.upgrades);
    let (since_us, connections) = (estate.still_since_us, estate.connections() as u64);
    let more: io::Result<Vec<Socket>> = listeners.iter().map(Socket::try_clone).collect();
    let more = more.map_err(|error| failure(error.to_string()))?;
    let mut all = std::mem::take(&mut estate.listeners);
    all.extend(listeners);
    let serving = serving(config, &all)?;
    let (fleet, ends, heirs) = take_in(config, threads, resources, all, estate)?;
    heirs.wait().map_err(failure)?;
    if is_asked_to_stop(stops).await {
        // Else everybody would be sent away by a process that is to be of no use.
        return Err(failure("it was asked to stop before it served".to_owned()));
    }
    before.take()?;
    // Nothing is refused from here on: nobody else serves.
    more.iter().try_for_each(listener::listen).map_err(|error| failure(error.to_string()))?;
    heirs.go();
    // They serve when they have looked into their mail.
    fleet.take_census(START).await;
    let pause_ms = before.tell_serving().saturating_sub(since_us) as f64 / 1000.0;
    *predecessor = None;
    let record = Record::default();
    record.go_on_from(upgrades, earlier.upgrades_failed);
    record.note_success(connections, pause_ms);
    info!(
        err = format!("{connections} connections, which stood still for {pause_ms:.0} ms"),
        "took_over"
    );
    Ok(Started { fleet, ends, serving, earlier, record })
}

/// Whether a signal has come that asks the process to stop.
async fn is_asked_to_stop(stops: &mut [&mut Signal]) -> bool {
    for stop in stops {
        // The runtime looks for signals when it is given a turn.
        let is_asked = tokio::select! {
            biased;
            _ = stop.recv() => true,
            () = tokio::task::yield_now() => false,
        };
        if is_asked {
            return true;
        }
    }
    false
}

fn take_in(
    config: &Config,
    threads: WorkerThreads,
    resources: Resources,
    listeners: Vec<Socket>,
    estate: Estate,
) -> Result<(Fleet, Ends, Heirs), Exit> {
    let listeners = listening::share_out(listeners, threads.starts.len());
    let resources = Resources { listeners, estate: Some(estate), ..resources };
    Fleet::start(config, threads, resources).map_err(failure)
}

/// Where connections are served by these.
fn serving(config: &Config, listeners: &[Socket]) -> Result<Place, Exit> {
    let (flag, asked) = listening::place(config)?;
    let address = listeners.first().and_then(|listener| listener.local_addr().ok());
    let bound = address.and_then(|address| address.as_socket()).unwrap_or(asked);
    Ok(Place { flag: flag.to_owned(), asked, bound, sockets: listeners.len() as u32 })
}
