//! What an operator does while the relay runs, and what PROTOCOL.md says must come of it (chapters 2
//! and 7): the relay is drained, server-ids are sent away, connections are ended.

use crate::check;
use crate::model::{Event, Link, Model, Ms, Reason, State, Tenure, directive};
use crate::scenario::Scenario;
use crate::world::{World, note};
use pyrycode_relay::protocol::close::Close;
use pyrycode_relay::protocol::ids::{ConnId, ServerId};
use pyrycode_relay::relay::Whom;
use pyrycode_relay::relay::glimpse::Phase;

const RESTART: Reason = (1012, "service restart");
/// What a call of the operator's may need for each connection that it ends, as if it came in.
const END_BYTES: usize = 512;

/// Who is to be disconnected.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    Id(usize),
    Phone(Link),
    Address(usize),
}

impl World {
    pub fn operator_acts(&mut self) {
        match self.rng.below(12) {
            0 => {
                let draining = !self.model.counts.draining;
                note!(self, "the relay is drained: {draining}");
                self.admission.set_draining(draining);
                self.model.counts.draining = draining;
            }
            1..=5 => {
                let worker = self.rng.below(self.workers.len());
                self.send_away(worker);
            }
            6..=7 => {
                let id = self.rng.below(self.model.ids.len());
                let whom = Whom::ServerId(Scenario::id(id));
                self.disconnect(self.model.ids[id].owner, &whom, Target::Id(id));
            }
            8..=10 => {
                let names: Vec<_> = self.model.names.iter().map(|(n, l)| (n.clone(), *l)).collect();
                let Some((name, phone)) = self.rng.pick(&names).cloned() else { return };
                let Some(name) = ConnId::parse(name.as_bytes()) else {
                    return check!(false, "names", "{name} is no conn-id");
                };
                let worker = self.model.conns[phone].worker;
                self.disconnect(worker, &Whom::ConnId(name), Target::Phone(phone));
            }
            _ => {
                let worker = self.rng.below(self.workers.len());
                let address = self.rng.below(self.scenario.addresses);
                let network = format!("192.0.2.{address}/32").parse().unwrap();
                self.disconnect(worker, &Whom::Network(network), Target::Address(address));
            }
        }
    }

    /// The next few server-ids of a worker are sent away.
    fn send_away(&mut self, worker: usize) {
        let most = self.rng.range(1, 3) as usize;
        let first = self.workers[worker].next_slot;
        let before = self.before(END_BYTES * self.sockets.len(), false);
        let taken = self.model.taken_ids(worker);
        let relay = &mut self.workers[worker].relay;
        let sent = relay.send_away(self.now, (first, most), Close::SERVICE_RESTART);
        let is_free = |id: &usize| {
            ServerId::from_header(Scenario::id(*id).as_bytes()).is_some_and(|id| relay.is_free(&id))
        };
        let freed: Vec<usize> = taken.iter().copied().filter(is_free).collect();
        self.workers[worker].next_slot = sent.next;
        note!(self, "worker {worker} sends away ids {freed:?}");
        let complete = freed.len() == most || (freed.len() < most && sent.next == 0);
        let all = first > 0 || freed.len() == most.min(taken.len());
        check!(complete && all, "drain", "{freed:?} of {taken:?} are freed, {most} at a time");
        let counts = (sent.server_ids, sent.left);
        let expected = (freed.len(), taken.len() - freed.len());
        check!(counts == expected, "drain", "{counts:?} ids for {expected:?}");
        let connections: usize = freed.iter().map(|id| self.model.all_of(*id).len()).sum();
        check!(
            sent.connections == connections,
            "drain",
            "{} connections are sent away, {connections} were there",
            sent.connections
        );
        self.commit(worker, &Event::SendAway(freed), before);
        self.end_turn(worker);
    }

    fn disconnect(&mut self, worker: usize, whom: &Whom, target: Target) {
        let (code, reason) = *self
            .rng
            .pick(&[(1008, "disconnected by the operator"), (4001, "enough"), (1005, "")])
            .unwrap();
        note!(self, "{target:?} is disconnected from worker {worker} with {code}");
        // The order is the relay's choice: that of its keys. Who has left for another worker, or has
        // paid for memory on its way there, is here no longer.
        let order = self.workers[worker].by_key.iter().flatten().copied();
        let is_here =
            |link: &Link| self.glimpse(*link).is_some_and(|glimpse| glimpse.phase != Phase::Closed);
        let order: Vec<Link> = order.filter(is_here).collect();
        let expected = self.model.clone().disconnect(&order, target, (code, reason), self.now);
        let before = self.before(END_BYTES * order.len(), false);
        let ended = self.workers[worker].relay.disconnect(self.now, 0, whom, (code, reason));
        let ended = (ended.connections, ended.next);
        check!(
            ended == (expected, None) || self.scenario.tight,
            "disconnect",
            "{ended:?} are ended, {expected} are meant"
        );
        self.commit(worker, &Event::Disconnect(order, target, (code, reason)), before);
        self.end_turn(worker);
    }
}

impl Model {
    /// Ids of a worker that are held or in grace.
    fn taken_ids(&self, worker: usize) -> Vec<usize> {
        let ids = self.ids.iter().enumerate();
        let taken = ids.filter(|(_, id)| id.owner == worker && id.tenure != Tenure::Free);
        taken.map(|(number, _)| number).collect()
    }

    /// Phones, newcomers and holder of an id.
    fn all_of(&self, id: usize) -> Vec<Link> {
        let id = &self.ids[id];
        let mut all = id.phones.clone();
        if let Tenure::Probed { newcomers, .. } = &id.tenure {
            all.extend(newcomers);
        }
        all.extend(id.holder());
        all
    }

    /// Chapter 7: server-ids are freed without grace, and everybody of such an id is closed 1012.
    pub fn send_away(&mut self, ids: &[usize], now: Ms) {
        for id in ids {
            let all = self.all_of(*id);
            self.ids[*id].set_free();
            self.ids[*id].phones.clear();
            for link in all {
                self.close(link, RESTART, None, false, now);
            }
        }
    }

    /// Chapter 2: a close as the operator asks, and the binary is told of its phones. Who is not
    /// upgraded is cut. How many that are.
    pub fn disconnect(
        &mut self,
        order: &[Link],
        target: Target,
        (code, reason): Reason,
        now: Ms,
    ) -> usize {
        let mut ended = 0;
        let (code, _) = directive(code);
        for link in order.iter().copied() {
            let conn = &self.conns[link];
            let is_meant = match target {
                Target::Id(id) => conn.is_open() && conn.id == id,
                Target::Phone(phone) => conn.is_open() && link == phone,
                Target::Address(address) => {
                    let is_there =
                        conn.is_open() || matches!(conn.state, State::Head | State::HandingOver);
                    is_there && conn.address == address
                }
            };
            if !is_meant {
                continue;
            }
            ended += 1;
            if conn.is_open() {
                self.close(link, (code, reason), Some(code), false, now);
            } else {
                self.abort(link, now);
            }
        }
        ended
    }
}
