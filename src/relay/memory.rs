//! The memory budget, and who goes when it runs short (PROTOCOL.md, chapter 5).

use super::closing::Loss;
use super::connection::{Connection, Stage};

use super::timers::Millis;
use super::{Action, Key, Relay};
use crate::metrics::Series;
use crate::protocol::close::{Close, GONE_WITHOUT_CLOSE};

impl Relay {
    /// Charges `bytes` for what `key` is to hold, at the expense of the largest backlogs if need be.
    /// False if even that does not help, or if `key` itself was the largest: nobody else pays for a
    /// connection that is lost. Then nothing is charged. Any connection may have been closed by this.
    pub(super) fn make_room(&mut self, now: Millis, key: Key, bytes: usize) -> bool {
        if self.budget.try_charge(bytes) {
            return true;
        }
        // Other workers hold part of the budget: the next byte may come from them.
        if let Some(worker) = self.budget.other_worker_to_shed() {
            self.actions.push(Action::AskToShed(worker));
        }
        let before = self.vitality(key);
        while self.vitality(key) == before && self.shed_largest(now) {
            if self.budget.try_charge(bytes) {
                return true;
            }
        }
        false
    }

    /// How much of its life a connection has left; it only ever sinks.
    fn vitality(&self, key: Key) -> u8 {
        match self.connection(key).map(|connection| &connection.stage) {
            None | Some(Stage::Cut) => 0,
            Some(Stage::Closing(_)) => 1,
            Some(_) => 2,
        }
    }

    /// Another worker runs short while this one holds the largest backlog.
    pub fn shed_under_pressure(&mut self, now: Millis) {
        if self.budget.shared().is_under_pressure() {
            self.shed_largest(now);
        }
    }

    /// Ends the connection with the largest backlog; false if there is none worth it. A phone is
    /// closed, and cut if it is in the way again; whoever else hoards memory is cut at once.
    fn shed_largest(&mut self, now: Millis) -> bool {
        // Among those of about the same size, who does not read goes before who is still sending:
        // a message that is half read may be that of a healthy peer.
        let weight = |key: &&Key| self.connection(**key).map(|c| (c.is_unread(), c.charged()));
        let Some(key) = self.backlogs.largest().iter().max_by_key(weight).copied() else {
            return false;
        };
        let Some(connection) = self.connection(key) else { return false };
        tracing::warn!(
            remote = %connection.remote,
            err = "the memory budget is used up and this connection holds the largest backlog",
            "memory_budget_shed"
        );
        self.counters.count(Series::MemorySheds);
        match connection.stage {
            Stage::Phone { .. } if connection.is_unread() => {
                self.close_now(now, key, Close::BACKLOG_FULL, Some(GONE_WITHOUT_CLOSE));
            }
            _ => self.lose(now, key, Loss::Memory),
        }
        true
    }

    /// Charges the connection for `bytes` of half-read or held input, in place of what it was
    /// charged before. False if there is no room: then the connection has been cut.
    pub(super) fn charge_input(&mut self, now: Millis, key: Key, bytes: usize) -> bool {
        self.recharge(now, key, bytes, |connection| &mut connection.input_charge)
    }

    /// Charges the connection for `bytes` that the shell holds of it, in place of what it was
    /// charged before. False if there is no room: then the connection has been cut.
    pub fn charge_transport(&mut self, now: Millis, key: Key, bytes: usize) -> bool {
        self.recharge(now, key, bytes, |connection| &mut connection.transport_charge)
    }

    fn recharge(
        &mut self,
        now: Millis,
        key: Key,
        bytes: usize,
        charge: impl Fn(&mut Connection) -> &mut u32,
    ) -> bool {
        // Ends when no room had to be made, or making it has left the connection as it was: each
        // further turn has cost another connection.
        loop {
            let Some(connection) = self.connections.get_mut(key.0 as usize) else { return false };
            if matches!(connection.stage, Stage::Cut) {
                return false;
            }
            let before = *charge(connection) as usize;
            if bytes <= before {
                *charge(connection) = bytes as u32;
                self.budget.release(before - bytes);
                self.note_charge(key);
                return true;
            }
            if !self.make_room(now, key, bytes - before) {
                self.lose(now, key, Loss::Memory);
                return false;
            }
            // It may have been the largest backlog itself, or have lost a claim with its holder.
            let unchanged = self
                .connections
                .get_mut(key.0 as usize)
                .filter(|connection| !matches!(connection.stage, Stage::Cut));
            match unchanged.map(&charge).filter(|charged| **charged as usize == before) {
                Some(charged) => {
                    *charged = bytes as u32;
                    self.note_charge(key);
                    return true;
                }
                None => self.budget.release(bytes - before),
            }
        }
    }

    /// Puts the connection in its place among the backlogs after its charge has changed.
    pub(super) fn note_charge(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key.0 as usize) else { return };
        let (before, charged) = (connection.place, connection.charged());
        let moved = self.backlogs.update(key, &mut connection.place, charged);
        if connection.place != before {
            self.budget.publish_largest_class(self.backlogs.largest_class());
        }
        if let Some((key, place)) = moved
            && let Some(connection) = self.connection_mut(key)
        {
            connection.place = place;
        }
    }
}
