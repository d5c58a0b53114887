//! What each connection is charged for: the one place where a charge changes (PROTOCOL.md,
//! chapter 5).
//!
//! Charged is the memory that something takes, by capacity, not the bytes that are in it. To charge
//! never costs anybody a connection: it may go into the headroom of the worker, and when the event
//! is over, [`Relay::settle`](super::Relay) makes the headroom whole again.
//!
//! # Invariants
//!
//! - The charges of all connections together are what the budget is charged.
//! - A worker's charges exceed its lease by no more than its headroom, and after each event by no
//!   more than a half of it, and that only while another worker is asked to pay.
//! - Every connection stands in the list of its charge.

use super::Key;
use super::backlogs::{Backlogs, Misplaced, Position};
use super::budget::Budget;
use super::invariants::broken;
use crate::metrics::WorkerMetrics;
use std::sync::Arc;

/// What a connection is charged for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What is queued for its peer or on its way to it.
    Outbox,
    /// What the peer has sent and is half read or held back.
    Input,
    /// What the shell holds: records that did not arrive or leave whole.
    Transport,
}

/// One connection's charges, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Charges {
    /// [`Part::Outbox`]
    pub outbox: u32,
    /// [`Part::Input`]
    pub input: u32,
    /// [`Part::Transport`]
    pub transport: u32,
}

impl Charges {
    /// All of them.
    #[must_use]
    #[inline]
    pub fn total(&self) -> u32 {
        self.outbox + self.input + self.transport
    }

    /// Whether most of it waits for the peer to read it.
    #[must_use]
    #[inline]
    pub fn is_unread(&self) -> bool {
        self.outbox >= self.total() / 2
    }

    #[inline]
    fn part_mut(&mut self, part: Part) -> &mut u32 {
        match part {
            Part::Outbox => &mut self.outbox,
            Part::Input => &mut self.input,
            Part::Transport => &mut self.transport,
        }
    }
}

#[derive(Default, Clone, Copy)]
struct Account {
    charges: Charges,
    position: Position,
}

/// One worker's charges.
pub struct Ledger {
    budget: Budget,
    counters: Arc<WorkerMetrics>,
    backlogs: Backlogs,
    /// By the connection's key.
    accounts: Vec<Account>,
    /// Where the search for a small charge goes on.
    cursor: usize,
}

impl Ledger {
    /// Nothing is charged.
    #[must_use]
    pub fn new(budget: Budget, counters: Arc<WorkerMetrics>) -> Self {
        let (backlogs, accounts) = (Backlogs::default(), Vec::new());
        Self { budget, counters, backlogs, accounts, cursor: 0 }
    }

    /// Charges `key` for `bytes` of `part`, in place of what it was charged before. O(1).
    #[inline]
    pub fn set(&mut self, key: Key, part: Part, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let index = key.0 as usize;
        if index >= self.accounts.len() {
            if bytes == 0 {
                return;
            }
            self.accounts.resize(index + 1, Account::default());
        }
        let Some(account) = self.accounts.get_mut(index) else {
            return broken(&self.counters, "a charge has no account");
        };
        let charge = account.charges.part_mut(part);
        let before = std::mem::replace(charge, bytes);
        if before == bytes {
            return;
        }
        if bytes < before {
            self.budget.release((before - bytes) as usize);
        } else if !self.budget.charge((bytes - before) as usize) {
            broken(&self.counters, "a worker has charged more than its headroom");
        }
        let (total, is_unread) = (account.charges.total(), account.charges.is_unread());
        if Backlogs::list_of(total, is_unread) != account.position.list() {
            self.move_between_lists(key, total, is_unread);
        }
    }

    #[inline(never)]
    fn move_between_lists(&mut self, key: Key, total: u32, is_unread: bool) {
        let Some(account) = self.accounts.get_mut(key.0 as usize) else {
            return broken(&self.counters, "a backlog has no account");
        };
        let moved = self.backlogs.update(key, &mut account.position, total, is_unread);
        self.budget.publish_largest_class(self.backlogs.largest_class());
        match moved {
            Ok(None) => {}
            Ok(Some((key, position))) => {
                if let Some(account) = self.accounts.get_mut(key.0 as usize) {
                    account.position = position;
                }
            }
            Err(Misplaced) => broken(&self.counters, "a backlog stands outside of its list"),
        }
    }

    /// Charges `key` for nothing any more.
    pub fn clear(&mut self, key: Key) {
        for part in [Part::Outbox, Part::Input, Part::Transport] {
            self.set(key, part, 0);
        }
    }

    /// What `key` is charged for.
    #[must_use]
    pub fn charges(&self, key: Key) -> Charges {
        self.accounts.get(key.0 as usize).map_or(Charges::default(), |account| account.charges)
    }

    /// Whether `bytes` more may be charged without asking anybody.
    #[must_use]
    #[inline]
    pub fn has_leased(&self, bytes: usize) -> bool {
        self.budget.has_leased(bytes)
    }

    /// Whether `bytes` more may be charged, if need be into the headroom. What has no room is to be
    /// refused, at the expense of whoever it is for.
    #[must_use]
    #[inline]
    pub fn has_room(&mut self, bytes: usize) -> bool {
        self.budget.has_room(bytes)
    }

    /// Whether something is charged into the headroom.
    #[must_use]
    #[inline]
    pub fn is_over(&self) -> bool {
        self.budget.over_bytes() > 0
    }

    /// A connection with the largest backlog.
    #[must_use]
    pub fn largest(&self) -> Option<Key> {
        self.backlogs.largest()
    }

    /// Any connection that is charged for something, where no backlog is large enough to stand in a
    /// list: one after the other, so that each is looked at once before any is again.
    ///
    /// All that is leased is then charged in pieces of less than 2 KiB. So a round of O(connections)
    /// finds at least as many as the worker's reserve has pieces of 2 KiB, and each takes
    /// connections * 2 KiB / reserve steps on average: about one with the reserve of 32 MiB that a
    /// budget of 64 MiB has, and 16,000 connections.
    pub fn any_small(&mut self) -> Option<Key> {
        let (before, after) = self.accounts.split_at_checked(self.cursor)?;
        let found = after.iter().chain(before).position(|account| account.charges.total() > 0)?;
        let index = (self.cursor + found) % self.accounts.len();
        self.cursor = index;
        Some(Key(index as u32))
    }

    /// As [`Budget::payer`].
    #[must_use]
    pub fn payer(&self) -> Option<usize> {
        self.budget.payer(self.backlogs.largest_class())
    }

    /// Whether this worker is to shed its largest backlog for others.
    #[must_use]
    pub fn owes_others(&self) -> bool {
        self.budget.owes_others(self.backlogs.largest_class(), self.largest_bytes())
    }

    /// Whether this worker could shed its largest backlog for others.
    #[must_use]
    pub fn can_give(&self) -> bool {
        self.budget.can_give(self.largest_bytes())
    }

    fn largest_bytes(&self) -> usize {
        self.largest().map_or(0, |key| self.charges(key).total() as usize)
    }

    /// The lease behind it.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// As [`Budget::make_room_for`].
    #[must_use]
    pub fn make_room_for(&mut self, bytes: u64) -> bool {
        self.budget.make_room_for(bytes)
    }

    /// As [`Budget::settle`].
    pub fn settle(&mut self) -> bool {
        self.budget.settle()
    }

    /// As [`Budget::give_back_idle`].
    pub fn give_back_idle(&mut self) {
        self.budget.give_back_idle();
    }

    /// Whether the books are right: what does not hold of the invariants. O(connections), for
    /// tests.
    ///
    /// # Errors
    ///
    /// The invariant that is broken, in words.
    pub fn check(&self) -> Result<(), String> {
        let sum: u64 = self.accounts.iter().map(|account| u64::from(account.charges.total())).sum();
        let charged = self.budget.charged_bytes();
        if sum != charged {
            return Err(format!("{charged} bytes are charged for {sum}"));
        }
        let over = self.budget.over_bytes();
        if !self.budget.is_within_headroom() {
            return Err(format!("{over} bytes are charged beyond the lease"));
        }
        Ok(())
    }
}
