//! Who gets what, where the successor may have another number of workers.

use super::state::{Inconsistent, Tenure, Worker};

/// A worker's share, and where the socket of each of its connections was.
#[derive(Debug, Default)]
pub struct Share {
    /// What the worker takes in.
    pub worker: Worker,
    /// For each connection, the worker that gave it out and its place there.
    pub from: Vec<(usize, usize)>,
}

/// Shares out all that `workers` gave out among `count` others. A server-id goes to its owner with all
/// of its connections; those that have none are spread.
///
/// # Errors
///
/// What they gave out cannot be.
pub fn distribute(
    workers: Vec<Worker>,
    owner_of: impl Fn(&str) -> usize,
    count: usize,
) -> Result<Vec<Share>, Inconsistent> {
    let count = count.max(1);
    let mut shares: Vec<Share> = (0..count).map(|_| Share::default()).collect();
    for (number, worker) in workers.into_iter().enumerate() {
        share_out(number, worker, &owner_of, &mut shares)?;
    }
    for share in &mut shares {
        let Worker { connections, visitors, .. } = &mut share.worker;
        let age = |at: u32| connections.get(at as usize).map_or(0, |connection| connection.age_s);
        // Stable: those of one worker stay in their order.
        visitors.sort_by_key(|visitor| std::cmp::Reverse(age(visitor.connection)));
    }
    Ok(shares)
}

fn share_out(
    number: usize,
    worker: Worker,
    owner_of: impl Fn(&str) -> usize,
    shares: &mut [Share],
) -> Result<(), Inconsistent> {
    const NO_OWNER: Inconsistent =
        Inconsistent("a server-id belongs to a worker that is not there");
    let mut homes = vec![None; worker.connections.len()];
    for id in &worker.server_ids {
        let home = owner_of(&id.id);
        for at in members(&id.tenure).chain(id.phones.iter().copied()) {
            let place = homes.get_mut(at as usize).ok_or(NOT_THERE)?;
            if place.replace(home).is_some() {
                return Err(TWICE);
            }
        }
    }
    let mut now_at = Vec::with_capacity(homes.len());
    let spread = number % shares.len().max(1);
    for (at, (connection, home)) in worker.connections.into_iter().zip(homes).enumerate() {
        let home = home.unwrap_or(spread);
        let share = shares.get_mut(home).ok_or(NO_OWNER)?;
        now_at.push((home, share.from.len() as u32));
        share.from.push((number, at));
        share.worker.connections.push(connection);
    }
    let place = |at: u32| now_at.get(at as usize).copied().ok_or(NOT_THERE);
    for mut id in worker.server_ids {
        match &mut id.tenure {
            Tenure::Held(holder) => *holder = place(*holder)?.1,
            Tenure::Grace(_) => {}
            Tenure::Probed { holder, newcomers, .. } => {
                *holder = place(*holder)?.1;
                for newcomer in newcomers {
                    *newcomer = place(*newcomer)?.1;
                }
            }
        }
        for phone in &mut id.phones {
            *phone = place(*phone)?.1;
        }
        let share = shares.get_mut(owner_of(&id.id)).ok_or(NO_OWNER)?;
        share.worker.server_ids.push(id);
    }
    for mut visitor in worker.visitors {
        let (home, at) = place(visitor.connection)?;
        visitor.connection = at;
        if let Some(share) = shares.get_mut(home) {
            share.worker.visitors.push(visitor);
        }
    }
    Ok(())
}

/// What is wrong where a connection is named by a place that does not exist.
pub(crate) const NOT_THERE: Inconsistent = Inconsistent("a connection is named that is not there");
/// What is wrong where a connection has two parts.
pub(crate) const TWICE: Inconsistent = Inconsistent("a connection is named twice");

/// The connections that hold an id or claim it.
fn members(tenure: &Tenure) -> impl Iterator<Item = u32> {
    let (holder, newcomers) = match tenure {
        Tenure::Held(holder) => (Some(*holder), &[][..]),
        Tenure::Grace(_) => (None, &[][..]),
        Tenure::Probed { holder, newcomers, .. } => (Some(*holder), newcomers.as_slice()),
    };
    holder.into_iter().chain(newcomers.iter().copied())
}
