//! All connections of a worker, with their timers and how many there are at each stage.
//!
//! A connection is looked up once for an event, with [`Connections::held`] or with
//! [`Connections::tracked`], and handed on by reference.
//!
//! # Invariants
//!
//! - Each connection has one timer for as long as it is here, armed for the earliest of its
//!   deadlines or before.
//! - The counts by stage are those of the connections: none changes its stage but by
//!   [`Tracking::enter`].
//! - Whoever names a connection names one that is here. Peers alone may be mistaken, by their
//!   conn-ids, and lists that say so: they ask [`Connections::find`].
//!
//! For another process to go on with a connection, its timer and the counts are made anew. A conn-id
//! names a slot; where a connection could not have that of its name in the new process, it is found by
//! a table that is empty otherwise, and looked into only where the slot has somebody else.

use super::Key;
use super::connection::{Connection, Population, Stage};
use super::invariants::broken;
use super::timers::{Millis, NEVER, Wheel};
use crate::metrics::WorkerMetrics;
use crate::protocol::ids::ConnId;
use ahash::RandomState;
use slab::Slab;
use std::collections::HashMap;
use std::sync::Arc;

/// What is wrong where a connection is named that is not here.
const RELEASED: &str = "a connection is named that is released";

/// The connections.
pub struct Connections {
    slab: Slab<Connection>,
    tracking: Tracking,
    counters: Arc<WorkerMetrics>,
}

/// What is kept of all connections together, apart from them, so that it can be changed along with
/// one of them.
#[derive(Default)]
pub struct Tracking {
    population: Population,
    timers: Wheel<Key>,
    /// Phones whose slot is not the one that their name tells.
    displaced: HashMap<ConnId, Key, RandomState>,
}

impl Tracking {
    /// A connection enters this stage: the only way from one to another. Returns the one that it
    /// leaves.
    pub fn enter(&mut self, connection: &mut Connection, stage: Stage) -> Stage {
        self.population.enter(&stage);
        let left = std::mem::replace(&mut connection.stage, stage);
        self.population.leave(&left);
        if !self.displaced.is_empty()
            && let Stage::Phone { conn_id, .. } = &left
        {
            self.displaced.remove(conn_id);
        }
        left
    }

    /// Arms the connection's timer for the earliest of its deadlines, or leaves it earlier.
    #[inline]
    pub fn arm(&mut self, connection: &Connection) {
        self.timers.arm_by(connection.timer, connection.due.earliest());
    }

    /// As [`Tracking::arm`], where only this deadline has changed.
    #[inline]
    pub fn arm_by(&mut self, connection: &Connection, due: Millis) {
        self.timers.arm_by(connection.timer, due);
    }

    /// The connection has no deadline any more.
    pub fn disarm(&mut self, connection: &Connection) {
        self.timers.arm_at(connection.timer, NEVER);
    }
}

impl Connections {
    /// No connection.
    #[must_use]
    pub fn new(counters: Arc<WorkerMetrics>) -> Self {
        Self { slab: Slab::new(), tracking: Tracking::default(), counters }
    }

    /// Takes one in, and names it.
    pub fn insert(&mut self, mut connection: Connection) -> Key {
        self.tracking.population.enter(&connection.stage);
        let vacant = self.slab.vacant_entry();
        let key = Key(vacant.key() as u32);
        connection.key = key;
        connection.timer = self.tracking.timers.add(key);
        vacant.insert(connection);
        key
    }

    /// Takes in those of another process, with their keys, where there are none yet. `displaced` are
    /// phones whose slot is not the one that their name tells.
    pub fn restore(
        &mut self,
        restored: Vec<(Key, Connection)>,
        displaced: HashMap<ConnId, Key, RandomState>,
    ) {
        let Tracking { population, timers, .. } = &mut self.tracking;
        let named = restored.into_iter().map(|(key, mut connection)| {
            population.enter(&connection.stage);
            connection.key = key;
            connection.timer = timers.add(key);
            timers.arm_at(connection.timer, connection.due.earliest());
            (key.0 as usize, connection)
        });
        self.slab = named.collect();
        self.tracking.displaced = displaced;
    }

    /// Whether there are phones that have not the slot that their name tells.
    #[must_use]
    #[inline]
    pub fn has_displaced(&self) -> bool {
        !self.tracking.displaced.is_empty()
    }

    /// Where a phone of this name is, if there is one.
    #[must_use]
    #[cold]
    pub fn key_of(&self, name: &ConnId) -> Key {
        let own = Key(name.slot());
        match self.find(own).map(|connection| &connection.stage) {
            Some(Stage::Phone { conn_id, .. }) if conn_id == name => own,
            _ => self.tracking.displaced.get(name).copied().unwrap_or(own),
        }
    }

    /// How many phones have not the slot that their name tells.
    #[must_use]
    pub fn displaced_phones(&self) -> usize {
        self.tracking.displaced.len()
    }

    /// Lets one go that is closed; its key may be used again.
    pub fn remove(&mut self, key: Key) {
        let Some(connection) = self.slab.try_remove(key.0 as usize) else {
            return broken(&self.counters, RELEASED);
        };
        self.tracking.population.leave(&connection.stage);
        self.tracking.timers.remove(connection.timer);
        if !matches!(connection.stage, Stage::Closed) {
            broken(&self.counters, "a connection is released that is alive");
        }
    }

    /// A connection that may be here or not.
    #[must_use]
    #[inline]
    pub fn find(&self, key: Key) -> Option<&Connection> {
        self.slab.get(key.0 as usize)
    }

    /// A connection that may be here or not, or be another one by now.
    #[must_use]
    #[inline]
    pub fn find_mut(&mut self, key: Key) -> Option<&mut Connection> {
        self.slab.get_mut(key.0 as usize)
    }

    /// A connection that is here.
    #[must_use]
    #[inline]
    pub fn held(&self, key: Key) -> Option<&Connection> {
        let connection = self.slab.get(key.0 as usize);
        if connection.is_none() {
            broken(&self.counters, RELEASED);
        }
        connection
    }

    /// A connection that is here.
    #[must_use]
    #[inline]
    pub fn held_mut(&mut self, key: Key) -> Option<&mut Connection> {
        let connection = self.slab.get_mut(key.0 as usize);
        if connection.is_none() {
            broken(&self.counters, RELEASED);
        }
        connection
    }

    /// A connection that is here, to change its stage or its deadlines.
    #[must_use]
    #[inline]
    pub fn tracked(&mut self, key: Key) -> Option<(&mut Connection, &mut Tracking)> {
        let Self { slab, tracking, counters } = self;
        let Some(connection) = slab.get_mut(key.0 as usize) else {
            broken(counters, RELEASED);
            return None;
        };
        Some((connection, tracking))
    }

    /// As [`Connections::tracked`], of one that may be here or not, or be another one by now.
    #[must_use]
    pub fn find_tracked(&mut self, key: Key) -> Option<(&mut Connection, &mut Tracking)> {
        Some((self.slab.get_mut(key.0 as usize)?, &mut self.tracking))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.slab.iter().map(|(_, connection)| connection)
    }

    /// All of them, by their keys.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        self.slab.iter().map(|(slot, _)| Key(slot as u32)).collect()
    }

    /// How many there are, closed ones that are not released included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// The slots that connections may be in, from 0.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slab.capacity()
    }

    /// How many timers there are: one for each.
    #[must_use]
    pub fn timers(&self) -> usize {
        self.tracking.timers.len()
    }

    /// When [`Connections::pop_expired`] should be asked next.
    #[must_use]
    pub fn next_wake_ms(&self) -> Option<Millis> {
        self.tracking.timers.next_wake_ms()
    }

    /// One whose timer has fired, and is to be armed anew.
    pub fn pop_expired(&mut self, now: Millis) -> Option<Key> {
        self.tracking.timers.pop_expired(now)
    }

    /// Publishes how many there are at each stage.
    pub fn publish_counts(&self) {
        for (gauge, count) in self.tracking.population.gauges() {
            self.counters.set(gauge, count);
        }
    }

    /// What does not hold of the invariants, or of what `also` checks of each connection.
    /// O(connections), for tests.
    ///
    /// # Errors
    ///
    /// The invariant that is broken, in words.
    pub fn check(
        &self,
        mut also: impl FnMut(Key, &Connection) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut population = Population::default();
        for (slot, connection) in &self.slab {
            population.enter(&connection.stage);
            if connection.key.0 as usize != slot {
                return Err(format!("{:?} is in slot {slot}", connection.key));
            }
            also(connection.key, connection)?;
        }
        for (name, key) in &self.tracking.displaced {
            let stage = self.find(*key).map(|connection| &connection.stage);
            if !matches!(stage, Some(Stage::Phone { conn_id, .. }) if conn_id == name) {
                return Err(format!("{name:?} is displaced to {key:?}, where it is not"));
            }
        }
        if population != self.tracking.population {
            let counted = &self.tracking.population;
            return Err(format!("{counted:?} are counted, {population:?} are there"));
        }
        if self.timers() != self.len() {
            return Err(format!("{} timers for {} connections", self.timers(), self.len()));
        }
        Ok(())
    }
}
