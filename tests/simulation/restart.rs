//! The process is replaced by another one that goes on with every connection, or tries to: nobody
//! notices, but by a pause. The peers' sockets stay as they are.

use crate::check;
use crate::model::{Link, Ms};
use crate::world::{At, Worker, World, note};
use pyrycode_relay::handover::state;
use pyrycode_relay::handover::{Share, distribute};
use pyrycode_relay::metrics::Metrics;
use pyrycode_relay::protocol::ids::ServerId;
use pyrycode_relay::relay::glimpse::Phase;
use pyrycode_relay::relay::revive::Refusal;
use pyrycode_relay::relay::{Action, Key, Owners, Relay};
use pyrycode_relay::shared::budget::SharedBudget;
use std::sync::Arc;

/// What the successor is made of, before it takes over.
struct Successor {
    budget: Arc<SharedBudget>,
    metrics: Arc<Metrics>,
    owners: Owners,
    workers: Vec<Heir>,
}

/// One of its workers.
struct Heir {
    relay: Relay,
    /// Of its connections, and where each was.
    keys: Vec<Key>,
    from: Vec<(usize, usize)>,
    /// What it is to do first.
    actions: Vec<Action>,
}

impl World {
    /// Another process, with so many workers, is to take over. If it cannot, or if it is given up
    /// before it has, this one goes on.
    pub fn restart(&mut self, count: usize, is_given_up: bool) {
        note!(self, "another process is to take over, with {count} workers");
        self.stand_still();
        let left_out = self.left_out();
        let mut bytes = Vec::new();
        let mut links: Vec<Vec<Link>> = Vec::new();
        for (number, worker) in self.workers.iter().enumerate() {
            let is_out = |key: Key| left_out == Some(At::Worker(number, key));
            let given = worker.relay.give_out(self.now, &is_out);
            let link = |connection: &state::Connection| {
                worker.by_key[connection.slot as usize].expect("a connection has a socket")
            };
            links.push(given.connections.iter().map(link).collect());
            bytes.push(given.encode().expect("plain data"));
        }
        match self.prepare(&bytes, count) {
            Ok(successor) if !is_given_up => {
                self.compare(&successor, &bytes);
                self.lose_left_out(left_out);
                self.take_over(successor, &links);
            }
            Ok(successor) => {
                drop(successor);
                self.go_on();
            }
            Err(refusal) => {
                let is_short = matches!(refusal, Refusal::Memory { .. });
                let may_be = is_short && self.scenario.tight && count != self.workers.len();
                check!(may_be, "restart", "{refusal}");
                self.go_on();
            }
        }
    }

    /// Nothing is under way in the kernel, nor between the workers.
    fn stand_still(&mut self) {
        self.standing = true;
        for _ in 0..1000 {
            for worker in 0..self.workers.len() {
                self.end_turn(worker);
            }
            let mail = self.mail();
            let sockets = self.sockets.iter().enumerate();
            let busy = sockets.filter(|(_, socket)| {
                matches!(socket.at, At::Worker(..)) && (socket.ended || socket.inflight.is_some())
            });
            let busy: Vec<Link> = busy.map(|(link, _)| link).collect();
            if mail.is_empty() && busy.is_empty() {
                return;
            }
            for link in busy {
                self.complete(link);
            }
            for (to, from) in mail {
                self.deliver_mail(to, from);
            }
        }
        check!(false, "restart", "the workers never stand still");
    }

    /// Now and then somebody who has not said anything is amid a TLS handshake.
    fn left_out(&mut self) -> Option<At> {
        let new: Vec<At> = (0..self.sockets.len())
            .filter(|link| self.glimpse(*link).is_some_and(|g| g.phase == Phase::Head))
            .filter(|link| self.model.conns[*link].delivered == 0)
            .map(|link| self.sockets[link].at)
            .collect();
        if self.rng.percent(30) { self.rng.pick(&new).copied() } else { None }
    }

    fn lose_left_out(&mut self, left_out: Option<At>) {
        let Some(At::Worker(worker, key)) = left_out else { return };
        let Some(link) = self.workers[worker].by_key[key.0 as usize] else { return };
        note!(self, "{link} is left behind");
        self.sockets[link].at = At::Gone;
        self.model.abort(link, self.now);
    }

    fn prepare(&mut self, bytes: &[Vec<u8>], count: usize) -> Result<Successor, Refusal> {
        let given =
            bytes.iter().map(|bytes| state::Worker::decode(bytes).expect("what was encoded"));
        let owners = Owners::new(self.scenario.owner_seeds, count);
        let owner_of =
            |id: &str| owners.owner_of(&ServerId::from_header(id.as_bytes()).expect("a server-id"));
        let shares = distribute(given.collect(), owner_of, count).expect("it is as it was");
        let event_bytes = self.scenario.event_bytes;
        let headrooms = event_bytes * if count > 1 { 2 * count as u64 } else { 1 };
        let limit_bytes = self.budget.pool_bytes() + headrooms;
        let budget = SharedBudget::for_events_of(event_bytes, limit_bytes, count);
        let metrics = Metrics::new(count);
        self.restarts += 1;
        let mut workers = Vec::new();
        for (number, Share { worker, from }) in shares.into_iter().enumerate() {
            let settings = self.settings(number, &owners, &budget, &metrics);
            let (mut relay, keys) = Relay::revive(settings, self.now, worker)?;
            let mut actions = Vec::new();
            relay.take_actions(&mut actions);
            workers.push(Heir { relay, keys, from, actions });
        }
        Ok(Successor { budget, metrics, owners, workers })
    }

    /// Where all have their slots again, what a worker would give out now is what it was given.
    fn compare(&self, successor: &Successor, bytes: &[Vec<u8>]) {
        if successor.workers.len() != bytes.len() {
            return;
        }
        for (number, (heir, bytes)) in successor.workers.iter().zip(bytes).enumerate() {
            // The slot of one that was left out may be another's now.
            let given = state::Worker::decode(bytes).expect("what was encoded");
            if !given.connections.iter().map(|given| Key(given.slot)).eq(heir.keys.iter().copied())
            {
                continue;
            }
            let again = heir.relay.give_out(self.now, &|_| false).encode();
            let same = again.is_ok_and(|again| again == *bytes);
            check!(same, "restart", "worker {number} would not give out what it was given");
        }
    }

    fn take_over(&mut self, successor: Successor, links: &[Vec<Link>]) {
        let Successor { budget, metrics, owners, workers } = successor;
        let count = workers.len();
        self.scenario.workers = count;
        self.scenario.budget_bytes = budget.limit_bytes();
        (self.budget, self.metrics) = (budget, metrics);
        self.model.have_workers(&self.scenario.owners(&owners), count);
        self.standing = false;
        self.workers.clear();
        let (mut moved, mut first) = (Vec::new(), Vec::new());
        for (number, Heir { relay, keys, from, actions }) in workers.into_iter().enumerate() {
            self.workers.push(Worker::new(relay, count));
            first.push(actions);
            for (key, (worker, at)) in keys.into_iter().zip(from) {
                let link = links[worker][at];
                self.model.conn(link).worker = number;
                moved.push((number, link, key));
            }
        }
        moved.sort_by_key(|(_, link, _)| *link);
        for (number, link, key) in moved {
            self.settle_in(number, link, key);
        }
        for (number, actions) in first.into_iter().enumerate() {
            for action in actions {
                self.act(number, action);
            }
            self.check_worker(number);
            self.end_turn(number);
        }
    }

    /// The process that was to be replaced is not.
    fn go_on(&mut self) {
        note!(self, "nobody takes over");
        self.standing = false;
        for number in 0..self.workers.len() {
            let keys: Vec<Key> = self.workers[number].keys();
            for key in keys {
                self.act(number, Action::Write(key));
            }
            self.check_worker(number);
            self.end_turn(number);
        }
    }
}

impl crate::model::Model {
    /// Server-ids, and those who ask for them, have these owners.
    fn have_workers(&mut self, owners: &[usize], count: usize) {
        self.down = vec![false; count];
        for (id, owner) in self.ids.iter_mut().zip(owners) {
            id.owner = *owner;
        }
        for link in 0..self.conns.len() {
            let id = self.conns[link].id;
            self.conn(link).owner = owners[id];
        }
    }

    /// The peer's earlier answers have left: it may have been on its way to where it is.
    pub fn arrive(&mut self, link: Link, now: Ms) {
        if self.conns[link].worker == self.conns[link].owner {
            let worker = self.conns[link].worker;
            self.apply(&crate::model::Event::Adopt(link, worker), now);
        }
    }
}
