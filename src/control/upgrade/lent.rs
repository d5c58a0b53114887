//! Listeners of the control plane, which go from a process to its successor: whoever dials meanwhile
//! waits in their queues.

use crate::handover::messages::Listener;
use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Listeners, each by the flag that says where it listens and by what the flag gives.
#[derive(Debug, Default)]
pub(in crate::control) struct Lent(Vec<(Listener, OwnedFd)>);

impl Lent {
    /// Those of a predecessor.
    pub(super) fn new(names: Vec<Listener>, descriptors: Vec<OwnedFd>) -> Self {
        Self(names.into_iter().zip(descriptors).collect())
    }

    /// The one of this flag, if it listens where the flag says now.
    pub(in crate::control) fn take(&mut self, flag: &str, asked: impl Display) -> Option<OwnedFd> {
        let asked = asked.to_string();
        let is_it = |(name, _): &(Listener, OwnedFd)| name.flag == flag && name.asked == asked;
        let place = self.0.iter().position(is_it)?;
        Some(self.0.swap_remove(place).1)
    }

    /// A successor is to have this one.
    ///
    /// # Errors
    ///
    /// Descriptors have run out.
    pub(in crate::control) fn add(
        &mut self,
        flag: &str,
        asked: impl Display,
        listener: &impl AsFd,
    ) -> io::Result<()> {
        let name = Listener { flag: flag.to_owned(), asked: asked.to_string() };
        self.0.push((name, listener.as_fd().try_clone_to_owned()?));
        Ok(())
    }

    pub(super) fn names(&self) -> Vec<Listener> {
        self.0.iter().map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        self.0.iter().map(|(_, descriptor)| descriptor.as_fd()).map(copy).collect()
    }
}

fn copy(descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    descriptor.try_clone_to_owned()
}
