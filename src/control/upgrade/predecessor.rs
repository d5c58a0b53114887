//! The process that has started this one to be taken over by it, as it is seen from here.

use super::lent::Lent;
use super::now_us;
use crate::config::{Exit, TAKE_OVER, VERSION};
use crate::control::failure;
use crate::handover::channel::Channel;
use crate::handover::messages::{FromPredecessor, FromSuccessor, Greeting, Offer, Place, State};
use crate::handover::process::Process;
use crate::handover::state::{self, VERSION as STATE_VERSION};
use crate::handover::{Share, distribute};
use socket2::Socket;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use tracing::warn;

/// How long it may say nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// The process that is to be taken over.
pub(in crate::control) struct Predecessor {
    channel: Channel,
    /// Where it serves.
    pub(in crate::control) serving: Place,
    /// Its control plane's listeners.
    pub(in crate::control) lent: Lent,
}

/// All that it had.
pub(in crate::control) struct Estate {
    /// What it knew beside its connections.
    pub(in crate::control) process: Process,
    /// Since when none of its workers serves.
    pub(in crate::control) still_since_us: u64,
    /// What each of its workers gave out.
    workers: Vec<state::Worker>,
    /// The sockets of each worker's connections.
    sockets: Vec<Vec<Option<Socket>>>,
    /// What connections are accepted by.
    pub(in crate::control) listeners: Vec<Socket>,
}

impl Predecessor {
    /// Hears what there is to take over, on standard input.
    ///
    /// # Errors
    ///
    /// Nobody is there who offers anything, or of a version that this one knows nothing of.
    pub(in crate::control) fn meet() -> Result<Self, Exit> {
        let by_hand = |error: io::Error| {
            failure(format!(
                "{TAKE_OVER} is what a running relay starts this program with, and none is on standard \
                 input ({error}); use `pyrycode-relay upgrade`"
            ))
        };
        let stream = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
        let mut channel = Channel::new(stream.map_err(by_hand)?);
        channel.set_patience(PATIENCE).map_err(by_hand)?;
        let (greeting, _): (Greeting, _) = channel.receive().map_err(by_hand)?;
        if greeting.state_version != STATE_VERSION {
            let why = format!(
                "this program, {VERSION}, reads state of version {STATE_VERSION}, and the running relay, \
                 {}, has version {}: restart it instead",
                greeting.program, greeting.state_version
            );
            let _ = channel.send(&FromSuccessor::Refused(why.clone()), &[]);
            return Err(failure(why));
        }
        match channel.receive().map_err(gone)? {
            (FromPredecessor::Offer(Offer { serving, others }), descriptors) => {
                Ok(Self { channel, serving, lent: Lent::new(others, descriptors) })
            }
            _ => Err(failure("the running relay offers nothing".to_owned())),
        }
    }

    /// This process does not go on, for this reason.
    pub(in crate::control) fn refuse(&mut self, why: &str) {
        // It may have ended.
        let _ = self.channel.send(&FromSuccessor::Refused(why.to_owned()), &[]);
    }

    /// This process could serve what is offered: receives everything.
    ///
    /// # Errors
    ///
    /// The predecessor has ended, or goes on itself.
    pub(in crate::control) fn receive(&mut self) -> Result<Estate, Exit> {
        let ready = FromSuccessor::Ready { program: VERSION.to_owned() };
        self.channel.send(&ready, &[]).map_err(gone)?;
        match self.channel.receive().map_err(gone)? {
            (FromPredecessor::State(state), descriptors) => Estate::new(*state, descriptors),
            _ => Err(goes_on()),
        }
    }

    /// Everything is taken in. When this returns, the sockets are this process's own; `last` is done
    /// before the predecessor knows.
    ///
    /// # Errors
    ///
    /// The predecessor goes on itself.
    pub(in crate::control) fn take(&mut self) -> Result<(), Exit> {
        // Where it has ended, so does the next.
        let _ = self.channel.send(&FromSuccessor::Prepared, &[]);
        match self.channel.receive() {
            Ok((FromPredecessor::Commit, _)) => {}
            Ok(_) => return Err(goes_on()),
            Err(error) if is_gone(&error) => {
                let err = "it ended before it said that it hands over; everything it had is here";
                warn!(err, "predecessor_gone");
            }
            // It lives, and may go on.
            Err(error) => return Err(gone(error)),
        }
        // Where it has ended meanwhile, nobody else touches the sockets either.
        let _ = self.channel.send(&FromSuccessor::Taken, &[]);
        Ok(())
    }

    /// All workers serve.
    pub(in crate::control) fn tell_serving(&mut self) -> u64 {
        let at_us = now_us();
        let _ = self.channel.send(&FromSuccessor::Serving { at_us }, &[]);
        at_us
    }
}

impl Estate {
    fn new(state: State, descriptors: Vec<OwnedFd>) -> Result<Self, Exit> {
        let State { process, still_since_us, workers } = state;
        let wanted = |(worker, listeners): &(state::Worker, u32)| {
            worker.connections.len() + *listeners as usize
        };
        if workers.iter().map(wanted).sum::<usize>() != descriptors.len() {
            let why = "not as many sockets as connections came: a fault of the running relay";
            return Err(failure(why.to_owned()));
        }
        let mut descriptors = descriptors.into_iter().map(Socket::from);
        let mut sockets = Vec::new();
        for (worker, _) in &workers {
            let own = descriptors.by_ref().take(worker.connections.len());
            sockets.push(own.map(Some).collect());
        }
        let listeners = descriptors.collect();
        let workers = workers.into_iter().map(|(worker, _)| worker).collect();
        Ok(Self { process, still_since_us, workers, sockets, listeners })
    }

    /// How many connections there are.
    pub(in crate::control) fn connections(&self) -> usize {
        self.workers.iter().map(|worker| worker.connections.len()).sum()
    }

    /// Shares out connections and server-ids among so many workers, by who owns what.
    ///
    /// # Errors
    ///
    /// What the predecessor gave out cannot be.
    pub(in crate::control) fn share_out(
        &mut self,
        owner_of: impl Fn(&str) -> usize,
        count: usize,
    ) -> Result<Vec<(state::Worker, Vec<Socket>)>, String> {
        let workers = std::mem::take(&mut self.workers);
        let shares = distribute(workers, owner_of, count).map_err(|error| error.to_string())?;
        let mut all = Vec::new();
        for Share { worker, from } in shares {
            let mut sockets = Vec::with_capacity(from.len());
            for (old, place) in from {
                let socket = self.sockets.get_mut(old).and_then(|own| own.get_mut(place));
                sockets.push(socket.and_then(Option::take).ok_or("a socket is missing")?);
            }
            all.push((worker, sockets));
        }
        Ok(all)
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
}

fn gone(error: io::Error) -> Exit {
    match is_gone(&error) || error.kind() == io::ErrorKind::BrokenPipe {
        true => failure("the relay that was to be taken over has ended".to_owned()),
        false => failure(format!("the relay that was to be taken over: {error}")),
    }
}

fn goes_on() -> Exit {
    failure("the relay that was to be taken over goes on itself".to_owned())
}
