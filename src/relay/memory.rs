//! Which connections end when memory runs short (PROTOCOL.md, chapter 5).
//!
//! What happens to a connection is charged to it and costs nobody anything at once. When a message,
//! a deadline or whatever else came from outside has been dealt with, [`Relay::settle`] looks whether
//! the budget holds, and sheds the largest backlogs until it does. What that brings about waits in a
//! queue for its turn, so that no call ever runs inside another of its kind.

use super::ahead::Ahead;
use super::closing::Loss;
use super::connection::Stage;
use super::ledger::Part;
use super::timers::Millis;
use super::{Action, Key, Relay};
use crate::metrics::Series;
use crate::protocol::close::{Close, GONE_WITHOUT_CLOSE};

/// What is left to do before the next event. At most one of each kind for each connection, and in
/// practice one or two.
#[derive(Debug)]
pub(super) enum Work {
    /// A binary has won its id: what it sent ahead counts, from this byte on.
    Replay {
        /// The new holder.
        winner: Key,
        /// What it sent.
        ahead: Ahead,
        /// Where to go on.
        position: usize,
    },
    /// A holder could not be told that one of its phones is gone. It must not believe in a phone
    /// that is not there.
    Lose(Key),
}

impl Relay {
    /// An event has been dealt with: does what it has brought about, and makes the headroom whole
    /// again. Any connection may have ended after this.
    #[inline]
    pub(super) fn settle(&mut self, now: Millis) {
        if !self.work.is_empty() || self.ledger.is_over() {
            self.settle_all(now);
        }
    }

    /// Each turn takes a piece of work or costs a connection; a connection pays twice at most. So
    /// the cost is that of the messages sent ahead, and of ending those connections.
    #[cold]
    fn settle_all(&mut self, now: Millis) {
        loop {
            if let Some(work) = self.work.pop_front() {
                self.go_on_with(now, work);
            } else if self.ledger.settle() || !self.relieve(now) {
                return;
            }
        }
    }

    fn go_on_with(&mut self, now: Millis, work: Work) {
        match work {
            Work::Replay { winner, ahead, mut position } => {
                let Some(message) = ahead.message_at(&mut position) else { return };
                self.on_message_ahead(now, winner, message);
                // Before anything that came up later: its messages stay in order.
                self.work.push_front(Work::Replay { winner, ahead, position });
            }
            Work::Lose(key) => self.lose(now, key, Loss::Memory),
        }
    }

    /// Memory is short: has another worker pay, as long as there is room for one more event, or sheds
    /// the largest backlog here. False if nothing more is to be done.
    fn relieve(&mut self, now: Millis) -> bool {
        let budget = self.ledger.budget();
        let is_within_own = budget.is_within_own();
        if is_within_own {
            budget.give_nothing();
        }
        let payer = self.ledger.payer();
        if let Some(worker) = payer
            && budget.ask(worker)
        {
            self.output.act(Action::AskToShed(worker));
        }
        let waits = is_within_own || (payer.is_some() && budget.may_wait());
        !waits && self.shed_largest(now)
    }

    /// Another worker is short of memory, and this one held the largest backlog when it asked. It is
    /// looked at again: others may have paid meanwhile, and nothing is taken from a reserve. Each
    /// round costs a connection its backlog, and no more of them than others are short of.
    pub fn shed_under_pressure(&mut self, now: Millis) {
        self.ledger.budget().take_request();
        self.ledger.give_back_idle();
        while self.ledger.owes_others() && self.shed_largest(now) {
            self.settle(now);
            self.ledger.give_back_idle();
        }
        if !self.ledger.can_give() {
            self.ledger.budget().give_nothing();
        }
        self.settle(now);
    }

    /// Ends the connection with the largest backlog; false if there is none worth it. A phone is
    /// closed, and aborted if it is in the way again; whoever else hoards memory is aborted at once.
    fn shed_largest(&mut self, now: Millis) -> bool {
        let Some(key) = self.ledger.largest().or_else(|| self.ledger.any_small()) else {
            return false;
        };
        let Some(connection) = self.connections.held(key) else {
            self.ledger.clear(key);
            return true;
        };
        tracing::warn!(
            remote = %connection.remote,
            err = "the memory budget is used up and this connection holds the largest backlog",
            "memory_budget_shed"
        );
        self.counters.count(Series::MemorySheds);
        match connection.stage {
            Stage::Phone { .. } if self.ledger.charges(key).is_unread() => {
                self.close_now(now, key, Close::BACKLOG_FULL, Some(GONE_WITHOUT_CLOSE));
            }
            _ => self.lose(now, key, Loss::Memory),
        }
        true
    }

    /// Charges the connection for `bytes` of half-read or held input, in place of what it was
    /// charged before. False if there is no room: then the connection has been aborted.
    pub(super) fn charge_input(&mut self, now: Millis, key: Key, bytes: usize) -> bool {
        let before = self.ledger.charges(key).input as usize;
        self.recharge(now, key, Part::Input, before, bytes)
    }

    /// Charges the connection for `bytes` that the shell holds of it, in place of what it was
    /// charged before. False if there is no room: then the connection has been aborted.
    pub fn charge_transport(&mut self, now: Millis, key: Key, bytes: usize) -> bool {
        let before = self.ledger.charges(key).transport as usize;
        let charged = self.recharge(now, key, Part::Transport, before, bytes);
        self.settle(now);
        charged && !self.is_closed(key)
    }

    fn recharge(&mut self, now: Millis, key: Key, part: Part, before: usize, bytes: usize) -> bool {
        if self.is_closed(key) {
            return false;
        }
        if bytes > before && !self.ledger.has_room(bytes - before) {
            self.lose(now, key, Loss::Memory);
            return false;
        }
        self.ledger.set(key, part, bytes);
        true
    }

    fn is_closed(&self, key: Key) -> bool {
        self.connections.held(key).is_none_or(|connection| connection.is_closed())
    }
}
