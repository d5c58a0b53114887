//! The shell, simulated: workers with their mailboxes and sockets under virtual time. It drives
//! the relay as `src/worker/mod.rs` does, and after every call compares it with the model.

use crate::check;
use crate::model::{
    AHEAD_FULL, BACKLOG, Event, Fire, Link, Model, Ms, NORMAL, Seen, State, TICK_MS, Who,
};
use crate::rng::Rng;
use crate::scenario::Scenario;
use crate::wire::{Item, Payload};
use pyrycode_relay::metrics::Metrics;
use pyrycode_relay::relay::glimpse::{Glimpse, Phase};
use pyrycode_relay::relay::outbox::Write;
use pyrycode_relay::relay::{Action, HandOver, Key, Owners, Relay, Settings};
use pyrycode_relay::shared::admission::{Admission, Proxies};
use pyrycode_relay::shared::budget::SharedBudget;
use pyrycode_relay::telemetry::Remote;
use std::collections::VecDeque;
use std::sync::Arc;

/// What a call may need of memory beside what came in with it: notices, answers, closes.
const CALL_BYTES: u64 = 24 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Worker(usize, Key),
    Mail,
    Gone,
}

/// A socket between a peer and the relay, with what the kernel holds of it.
pub struct Socket {
    pub at: At,
    /// Sent by the peer, not read by the relay.
    pub inbound: Vec<u8>,
    /// Length of all that the peer has ever sent.
    pub sent_end: u64,
    /// A receive is under way.
    armed: bool,
    pub inflight: Option<Write>,
    /// The relay has called it dead; waits for what is under way.
    pub ended: bool,
    finished: bool,
    /// The peer has ended its direction.
    pub fin: bool,
    pub reset: bool,
    /// The peer takes what is sent to it.
    pub reading: bool,
    /// The peer's bytes do not get through for now.
    pub stalled: bool,
}

enum Mail {
    HandOver(Link, Box<HandOver>),
    Shed,
    ShutDown,
}

pub struct Worker {
    pub relay: Relay,
    /// From each worker, and from the control plane: in order.
    mailboxes: Vec<VecDeque<Mail>>,
    links: Vec<Link>,
    pub by_key: Vec<Option<Link>>,
    /// A turn has begun and is not over.
    in_turn: bool,
    over: bool,
    /// Where the registry is gone on with when server-ids are sent away.
    pub next_slot: usize,
}

impl Worker {
    pub fn new(relay: Relay, count: usize) -> Self {
        Self {
            relay,
            mailboxes: (0..=count).map(|_| VecDeque::new()).collect(),
            links: Vec::new(),
            by_key: Vec::new(),
            in_turn: false,
            over: false,
            next_slot: 0,
        }
    }

    /// Of all its connections.
    pub fn keys(&self) -> Vec<Key> {
        let slots = self.by_key.iter().zip(0..);
        slots.filter(|(link, _)| link.is_some()).map(|(_, slot)| Key(slot)).collect()
    }
}

pub struct World {
    pub rng: Rng,
    pub now: Ms,
    pub scenario: Scenario,
    pub model: Model,
    pub sockets: Vec<Socket>,
    pub events: u64,
    /// Of some writes the kernel takes a part, and the rest later, as with TLS.
    pub writes_go_on: bool,
    pub workers: Vec<Worker>,
    pub budget: Arc<SharedBudget>,
    pub admission: Arc<Admission>,
    pub metrics: Arc<Metrics>,
    /// No operation is begun, because another process is to take over.
    pub standing: bool,
    /// Processes that were to take over so far.
    pub restarts: u8,
    seen: Vec<(Link, Seen)>,
    trace: Option<VecDeque<String>>,
}

macro_rules! note {
    ($world:expr, $($text:tt)*) => {
        if $world.traces() {
            let line = format!($($text)*);
            $world.note(line);
        }
    };
}
pub(crate) use note;

/// How memory stood before a call.
pub struct Before {
    /// The call may need more than there is.
    short: bool,
    model: Option<Model>,
}

impl World {
    pub fn new(scenario: Scenario, rng: Rng, traces: bool) -> Self {
        let count = scenario.workers;
        let budget =
            SharedBudget::for_events_of(scenario.event_bytes, scenario.budget_bytes, count);
        let admission =
            Admission::new(scenario.admission, Proxies::default(), scenario.owner_seeds);
        let metrics = Metrics::new(count);
        let owners = Owners::new(scenario.owner_seeds, count);
        let model = Model::new(&scenario, &scenario.owners(&owners));
        let mut world = Self {
            workers: Vec::new(),
            trace: traces.then(VecDeque::new),
            now: scenario.start_ms,
            standing: false,
            restarts: 0,
            sockets: Vec::new(),
            events: 0,
            writes_go_on: false,
            seen: Vec::new(),
            rng,
            scenario,
            model,
            budget,
            admission,
            metrics,
        };
        for number in 0..count {
            let settings = world.settings(number, &owners, &world.budget, &world.metrics);
            world.workers.push(Worker::new(Relay::new(settings), count));
        }
        world
    }

    /// What a worker is made of.
    pub fn settings(
        &self,
        worker: usize,
        owners: &Owners,
        budget: &Arc<SharedBudget>,
        metrics: &Arc<Metrics>,
    ) -> Settings {
        let mut seed = [0; 32];
        (seed[0], seed[1]) = (worker as u8, self.restarts);
        Settings {
            worker,
            owners: owners.clone(),
            domain: None,
            limits: self.scenario.limits,
            budget: budget.clone(),
            admission: self.admission.clone(),
            metrics: metrics.clone(),
            seed,
            push: true,
        }
    }

    pub fn traces(&self) -> bool {
        self.trace.is_some()
    }

    pub fn note(&mut self, line: String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push_back(format!("{now:>8} ms  {line}"));
            if trace.len() > 80 {
                trace.pop_front();
            }
        }
    }

    pub fn take_trace(&mut self) -> Vec<String> {
        self.trace.take().unwrap_or_default().into()
    }

    /// What can still be charged, where one worker has the whole budget, and a small one.
    pub fn room_bytes(&self) -> Option<u64> {
        let alone = self.scenario.tight && self.workers.len() == 1;
        let charged = self.workers[0].relay.charged_bytes();
        alone.then(|| self.budget.pool_bytes().saturating_sub(charged).min(80_000))
    }

    pub fn take_seen(&mut self) -> Vec<(Link, Seen)> {
        std::mem::take(&mut self.seen)
    }

    // The shell's part.

    /// A peer connects to this worker's listener; `None` if that is closed.
    pub fn connect(&mut self, worker: usize, who: Who) -> Option<Link> {
        if self.model.down[worker] {
            return None;
        }
        let link = self.model.accept(self.now, worker, who);
        note!(self, "{link} connects to worker {worker}: {who:?}");
        self.sockets.push(Socket {
            at: At::Gone,
            inbound: Vec::new(),
            sent_end: 0,
            armed: false,
            inflight: None,
            ended: false,
            finished: false,
            fin: false,
            reset: false,
            reading: true,
            stalled: false,
        });
        let remote = Remote(([192, 0, 2, who.address as u8], 5).into());
        let key = self.workers[worker].relay.accept(self.now, remote);
        self.settle_in(worker, link, key);
        self.check_worker(worker);
        self.end_turn(worker);
        Some(link)
    }

    pub fn settle_in(&mut self, worker: usize, link: Link, key: Key) {
        let slots = &mut self.workers[worker].by_key;
        let index = key.0 as usize;
        if slots.len() <= index {
            slots.resize(index + 1, None);
        }
        check!(slots[index].is_none(), "keys", "key {index} of worker {worker} is in use twice");
        slots[index] = Some(link);
        self.workers[worker].links.push(link);
        self.sockets[link].at = At::Worker(worker, key);
        self.sockets[link].armed = false;
        self.receive(link);
    }

    /// The peer's bytes with their meaning.
    pub fn send(&mut self, link: Link, bytes: &[u8], item: Item) {
        let socket = &mut self.sockets[link];
        let start = socket.sent_end;
        socket.inbound.extend_from_slice(bytes);
        socket.sent_end += bytes.len() as u64;
        let end = socket.sent_end;
        self.model.conn(link).items.push_back((start, end, item));
    }

    /// Starts a receive where the relay wants one.
    fn receive(&mut self, link: Link) {
        let At::Worker(worker, key) = self.sockets[link].at else { return };
        let socket = &mut self.sockets[link];
        if !socket.ended && self.workers[worker].relay.wants_read(key) {
            socket.armed = true;
        }
    }

    /// What could happen to this socket now.
    pub fn has_events(&self, link: Link) -> bool {
        let socket = &self.sockets[link];
        if !matches!(socket.at, At::Worker(..)) {
            return false;
        }
        socket.ended || self.may_receive(link) || self.may_send(link)
    }

    fn may_receive(&self, link: Link) -> bool {
        let socket = &self.sockets[link];
        let some = !socket.stalled && (!socket.inbound.is_empty() || socket.fin);
        socket.armed && (some || socket.reset)
    }

    fn may_send(&self, link: Link) -> bool {
        let socket = &self.sockets[link];
        socket.inflight.is_some() && (socket.reading || socket.reset)
    }

    /// Lets one thing happen to this socket.
    pub fn socket_event(&mut self, link: Link, whole: bool) {
        let At::Worker(worker, key) = self.sockets[link].at else { return };
        if self.sockets[link].ended {
            return self.complete_cut(link);
        }
        let (receive, send) = (self.may_receive(link), self.may_send(link));
        if receive && (!send || self.rng.percent(50)) {
            self.sockets[link].armed = false;
            let socket = &self.sockets[link];
            if socket.reset || socket.inbound.is_empty() {
                self.on_end(worker, link, key);
            } else {
                self.on_bytes(worker, link, key, whole);
            }
        } else if send && self.writes_go_on && self.rng.percent(15) {
            self.on_progress(worker, link, key);
        } else if send {
            self.on_sent(worker, link, key, whole);
        } else {
            return;
        }
        if whole || self.rng.percent(75) {
            self.end_turn(worker);
        }
    }

    fn on_bytes(&mut self, worker: usize, link: Link, key: Key, whole: bool) {
        let there = self.sockets[link].inbound.len();
        let mut taken = match self.rng.below(10) {
            _ if whole => there,
            0 => 1,
            1..=4 => self.rng.range(1, there as u64) as usize,
            _ => there,
        };
        // Where a breach is noticed within its bytes is the relay's choice.
        let delivered = self.model.conns[link].delivered;
        for (start, end, item) in &self.model.conns[link].items {
            let at = delivered + taken as u64;
            if matches!(item, Item::Breach(_)) && (*start + 1..*end).contains(&at) {
                taken = (end - delivered) as usize;
            }
        }
        let rest = self.sockets[link].inbound.split_off(taken);
        let mut bytes = std::mem::replace(&mut self.sockets[link].inbound, rest);
        note!(self, "{link} -> {taken} B of {there}");
        // What came earlier of a message is passed on with its end.
        let conn = &self.model.conns[link];
        let half_read = conn.fragments.unwrap_or(0) + conn.partial_bytes();
        self.model.receives(link);
        let before = self.before(taken + half_read, false);
        // Two messages at a time, as if others took their turns in between.
        let mut at = 0;
        while at < bytes.len() {
            let rest = &mut bytes[at..];
            at += self.workers[worker].relay.on_bytes(self.now, key, rest, &mut { 2 });
        }
        self.commit(worker, &Event::Bytes(link, taken), before);
        self.receive(link);
    }

    fn on_end(&mut self, worker: usize, link: Link, key: Key) {
        let clean = !self.sockets[link].reset;
        note!(self, "{link} -> {}", if clean { "FIN" } else { "RST" });
        let before = self.before(0, false);
        self.workers[worker].relay.on_end(self.now, key, clean);
        self.commit(worker, &Event::End { link, clean }, before);
    }

    fn on_sent(&mut self, worker: usize, link: Link, key: Key, whole: bool) {
        let Some(write) = self.sockets[link].inflight.take() else { return };
        let before = self.before(0, false);
        if self.sockets[link].reset {
            note!(self, "{link} <- write fails");
            self.workers[worker].relay.on_written(self.now, key, write.buffer, None);
            return self.commit(worker, &Event::WriteFailed(link), before);
        }
        let there = write.to - write.from;
        let is_cancelled = self.standing && !self.sockets[link].reading;
        let taken = match self.rng.below(10) {
            _ if whole => there,
            0..=6 if is_cancelled => 0,
            0 => 1,
            1..=3 => self.rng.range(1, there as u64) as usize,
            _ => there,
        };
        note!(self, "{link} <- {taken} B of {there}");
        let bytes: Payload = write.buffer[write.from..write.from + taken].into();
        self.workers[worker].relay.on_written(self.now, key, write.buffer, Some(taken));
        self.commit(worker, &Event::Taken(link, bytes), before);
    }

    fn on_progress(&mut self, worker: usize, link: Link, key: Key) {
        note!(self, "{link} <- a part");
        let before = self.before(0, false);
        self.workers[worker].relay.on_write_progress(self.now, key);
        self.commit(worker, &Event::Progress(link), before);
    }

    /// What is under way with it is completed, if need be by being cancelled.
    pub fn complete(&mut self, link: Link) {
        let At::Worker(worker, key) = self.sockets[link].at else { return };
        if self.sockets[link].ended {
            self.complete_cut(link);
        } else {
            self.on_sent(worker, link, key, false);
        }
    }

    fn complete_cut(&mut self, link: Link) {
        let At::Worker(worker, key) = self.sockets[link].at else { return };
        let socket = &mut self.sockets[link];
        socket.inflight = None;
        socket.armed = false;
        socket.at = At::Gone;
        note!(self, "{link} is released");
        self.leave_worker(worker, link, key);
        self.model.release(link);
    }

    fn leave_worker(&mut self, worker: usize, link: Link, key: Key) {
        let worker = &mut self.workers[worker];
        worker.relay.release(key);
        worker.links.retain(|other| *other != link);
        worker.by_key[key.0 as usize] = None;
    }

    pub fn mail(&self) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        for (to, worker) in self.workers.iter().enumerate() {
            let full = worker.mailboxes.iter().enumerate().filter(|(_, mail)| !mail.is_empty());
            found.extend(full.map(|(from, _)| (to, from)));
        }
        found
    }

    /// Delivers the oldest mail between two.
    pub fn deliver_mail(&mut self, to: usize, from: usize) {
        let Some(mail) = self.workers[to].mailboxes[from].pop_front() else { return };
        let unread = match &mail {
            Mail::HandOver(_, hand_over) => hand_over.unread.len(),
            _ => 0,
        };
        let before = self.before(unread, false);
        match mail {
            Mail::HandOver(link, hand_over) if self.workers[to].over => {
                drop(hand_over);
                self.sockets[link].at = At::Gone;
                self.model.abort(link, self.now);
                self.model.release(link);
                return;
            }
            _ if self.workers[to].over => return,
            Mail::HandOver(link, hand_over) => {
                note!(self, "{link} arrives at worker {to}");
                let key = self.workers[to].relay.adopt(self.now, *hand_over);
                self.settle_in(to, link, key);
                self.commit(to, &Event::Adopt(link, to), before);
                self.receive(link);
            }
            Mail::Shed => {
                note!(self, "worker {to} is asked to shed");
                self.workers[to].relay.shed_under_pressure(self.now);
                self.commit(to, &Event::Shed, before);
            }
            Mail::ShutDown => {
                note!(self, "worker {to} shuts down");
                self.workers[to].relay.shut_down(self.now);
                self.commit(to, &Event::Down(to), before);
            }
        }
        self.end_turn(to);
    }

    pub fn shut_down(&mut self) {
        let control = self.workers.len();
        for worker in &mut self.workers {
            worker.mailboxes[control].push_back(Mail::ShutDown);
        }
    }

    /// The rest of a worker's turn: timers, then what the relay asks for.
    pub fn end_turn(&mut self, worker: usize) {
        self.workers[worker].in_turn = false;
        let mut fires = self.model.passed(worker, self.now);
        if !fires.is_empty() {
            note!(self, "worker {worker}: time for {fires:?}");
        }
        let choices = fires.len() > 1 || !self.model.passing(worker, self.now).is_empty();
        let before = self.before(0, choices);
        self.workers[worker].relay.on_timers(self.now);
        if self.scenario.tight {
            // No pong is awaited for a ping that there was no memory for.
            let open = |link| {
                let phase = self.glimpse(link).map(|glimpse| glimpse.phase);
                matches!(phase, Some(Phase::Newcomer | Phase::Binary | Phase::Phone))
            };
            fires.retain(|fire| !matches!(fire, Fire::Pong(link) if open(*link)));
        }
        self.commit(worker, &Event::Timers(fires), before);
        self.workers[worker].in_turn = false;
        for _ in 0..1000 {
            let mut actions = Vec::new();
            self.workers[worker].relay.take_actions(&mut actions);
            if actions.is_empty() {
                self.check_reads(worker);
                self.check_alarm(worker);
                return;
            }
            for action in actions {
                self.act(worker, action);
            }
        }
        check!(false, "actions", "worker {worker} asks for more without end");
    }

    fn link_of(&self, worker: usize, key: Key) -> Option<Link> {
        self.workers[worker].by_key.get(key.0 as usize).copied().flatten()
    }

    // One arm for each action.
    #[allow(clippy::too_many_lines)]
    pub fn act(&mut self, worker: usize, action: Action) {
        match action {
            // It is told again, by whichever process goes on.
            Action::Write(_) if self.standing => {}
            Action::Write(key) => {
                let Some(write) = self.workers[worker].relay.begin_write(self.now, key) else {
                    return;
                };
                let Some(link) = self.link_of(worker, key) else {
                    return check!(false, "keys", "a write to nobody");
                };
                check!(self.sockets[link].inflight.is_none(), "writes", "{link}: two at once");
                check!(write.to > write.from, "writes", "{link}: nothing to write");
                self.sockets[link].inflight = Some(write);
                let due = self.now + self.scenario.limits.write_timeout_ms;
                let conn = self.model.conn(link);
                // Of one that was cancelled, the next one has what is left.
                conn.write_due = Some(conn.write_due.map_or(due, |before| before.min(due)));
            }
            Action::Read(key) => {
                if let Some(link) = self.link_of(worker, key) {
                    self.receive(link);
                }
            }
            Action::FinishWriting(key) => {
                let Some(link) = self.link_of(worker, key) else { return };
                note!(self, "{link} <- FIN");
                let socket = &mut self.sockets[link];
                check!(!socket.finished, "fin", "{link}: twice");
                socket.finished = true;
                let due = self.model.finish(link, self.now);
                check!(due, "fin", "{link}: before its time");
            }
            Action::CheckUnsent(key) => {
                let Some(link) = self.link_of(worker, key) else { return };
                let bytes = self.unsent(link);
                note!(self, "{link} has {bytes} B in the kernel");
                let before = self.before(0, false);
                self.workers[worker].relay.on_unsent(self.now, key, bytes);
                self.commit(worker, &Event::Unsent(link, bytes), before);
                self.workers[worker].in_turn = false;
            }
            Action::Abort(key) | Action::Close(key) => {
                let Some(link) = self.link_of(worker, key) else {
                    return check!(false, "keys", "nobody is ended");
                };
                if self.model.conns[link].state == State::HandingOver && self.scenario.tight {
                    // It paid for memory; the model could not tell that from a hand-over.
                    self.model.abort(link, self.now);
                }
                let state = self.model.conns[link].state;
                check!(state == State::Closed, "end", "{link} is ended while it is {state:?}");
                check!(!self.sockets[link].ended, "end", "{link}: twice");
                note!(self, "{link} is ended");
                self.sockets[link].ended = true;
                let busy = self.sockets[link].armed || self.sockets[link].inflight.is_some();
                if !busy {
                    self.complete_cut(link);
                }
            }
            Action::HandOver { key, worker: to, hand_over } => {
                let Some(link) = self.link_of(worker, key) else {
                    return check!(false, "keys", "nobody is handed over");
                };
                self.hand_over(worker, link, key, to, hand_over);
            }
            // The model knows of none: which are granted is tested elsewhere.
            Action::Wake(_) => {}
            Action::Verify(_) => {
                check!(false, "verify", "nobody is to be asked in these scenarios")
            }
            Action::AskToShed(to) => {
                check!(self.scenario.tight, "shed", "memory is ample");
                self.workers[to].mailboxes[worker].push_back(Mail::Shed);
            }
        }
    }

    /// What the kernel holds for a peer: mostly nothing, else now and then less than before.
    fn unsent(&mut self, link: Link) -> usize {
        let closing = &self.model.conns[link].closing;
        match closing.overdue {
            true if closing.unsent > 0 && self.rng.percent(50) => self.rng.below(closing.unsent),
            true => closing.unsent,
            false if self.rng.percent(20) => self.rng.range(1, 100_000) as usize,
            false => 0,
        }
    }

    fn hand_over(
        &mut self,
        from: usize,
        link: Link,
        key: Key,
        to: usize,
        hand_over: Box<HandOver>,
    ) {
        note!(self, "{link} leaves worker {from} for {to}, {} B unread", hand_over.unread.len());
        let conn = &self.model.conns[link];
        let idle = !self.sockets[link].armed && self.sockets[link].inflight.is_none();
        check!(idle, "hand-over", "{link} is handed over while it is busy");
        check!(conn.state == State::HandingOver, "hand-over", "{link} is {:?}", conn.state);
        check!(to == conn.owner && to != from, "hand-over", "{link}: from {from} to {to}");
        let unread = (conn.delivered - conn.last_end) as usize;
        let all = hand_over.unread.len() == unread;
        check!(all, "hand-over", "{link}: {} B unread of {unread}", hand_over.unread.len());
        self.model.conn(link).state = State::Mail;
        self.sockets[link].at = At::Mail;
        self.leave_worker(from, link, key);
        self.workers[to].mailboxes[from].push_back(Mail::HandOver(link, hand_over));
    }

    // Time.

    /// Lets time pass, deadline by deadline.
    pub fn pass(&mut self, ms: Ms) {
        let end = self.now + ms;
        self.end_turns();
        while let Some(wake) = self.next_wake().filter(|wake| *wake <= end) {
            self.now = self.now.max(wake);
            // A worker that is busy is late for its timers.
            let late = if self.rng.percent(3) { self.rng.range(0, 20) } else { 0 };
            self.now += late;
            for worker in 0..self.workers.len() {
                let due = self.workers[worker].relay.next_wake_ms();
                if due.is_some_and(|due| due <= self.now) {
                    self.end_turn(worker);
                }
            }
        }
        self.now = self.now.max(end);
        note!(self, "time passes");
        for worker in 0..self.workers.len() {
            self.end_turn(worker);
        }
    }

    pub fn end_turns(&mut self) {
        for worker in 0..self.workers.len() {
            if self.workers[worker].in_turn {
                self.end_turn(worker);
            }
        }
    }

    pub fn next_wake(&self) -> Option<Ms> {
        self.workers.iter().filter_map(|worker| worker.relay.next_wake_ms()).min()
    }

    // The checks.

    /// `bytes` come in with the call. Keeps the model as it is where a choice may have to be made.
    pub fn before(&self, bytes: usize, choices: bool) -> Before {
        let need_bytes = 4 * bytes as u64 + CALL_BYTES;
        let short = self.budget.leased_bytes() + need_bytes > self.budget.pool_bytes();
        Before { short, model: (short || choices).then(|| self.model.clone()) }
    }

    pub fn glimpse(&self, link: Link) -> Option<Glimpse> {
        match self.sockets[link].at {
            At::Worker(worker, key) => self.workers[worker].relay.glimpse(key),
            _ => None,
        }
    }

    /// The first connection of which the model and the relay do not say the same.
    fn difference(&self, model: &Model, worker: usize) -> Option<(Link, State, Phase)> {
        self.workers[worker].links.iter().find_map(|link| {
            let phase = self.glimpse(*link).map_or(Phase::Closed, |glimpse| glimpse.phase);
            let state = model.conns[*link].state;
            let same = match state {
                State::Head => phase == Phase::Head,
                State::HandingOver => matches!(phase, Phase::HandingOver | Phase::Closed),
                State::Mail => false,
                State::Newcomer => phase == Phase::Newcomer,
                State::Binary => phase == Phase::Binary,
                State::Phone => phase == Phase::Phone,
                State::Closing => phase == Phase::Closing,
                State::Closed => phase == Phase::Closed,
            };
            (!same).then_some((*link, state, phase))
        })
    }

    /// Tells the model of what the relay was just told, and compares.
    pub fn commit(&mut self, worker: usize, event: &Event, before: Before) {
        self.events += 1;
        self.workers[worker].in_turn = true;
        self.model.call += 1;
        let call = self.model.call;
        let mut seen = self.model.apply(event, self.now);
        let first = self.difference(&self.model, worker);
        let has_choices = before.model.is_some();
        if first.is_some() || (has_choices && !self.queues_agree(&self.model, worker, false)) {
            let found = before.model.as_ref().and_then(|model| {
                let mut model = model.clone();
                model.call = call;
                self.other_ways(&model, worker, event)
            });
            match found {
                Some((model, other, shed)) => {
                    self.model = model;
                    seen = other;
                    if let (Event::Bytes(link, _), Some(then), false) =
                        (event, &before.model, shed.is_empty())
                    {
                        // Whoever paid amid what it sent need not have its rest counted.
                        if shed.contains(link) {
                            let id = then.conns[*link].id;
                            self.model.ids[id].sent_least = then.ids[id].sent_least;
                        }
                        // Whoever paid may have gone before or after it was asked how many there are.
                        let mut paid = then.clone();
                        for link in &shed {
                            paid.abort(*link, self.now);
                        }
                        let also = [then, &paid, &self.model].map(|model| model.health(self.now));
                        let earlier = then.conns[*link].out.http.len();
                        let http = &mut self.model.conn(*link).out.http;
                        for (_, bodies, _) in http.iter_mut().skip(earlier) {
                            if !bodies.is_empty() {
                                bodies.extend(also.clone());
                            }
                        }
                    }
                    self.check_shed(worker, &shed, &before);
                }
                None => {
                    let (link, state, phase) = first.unwrap_or((0, State::Head, Phase::Head));
                    check!(
                        first.is_none(),
                        "state",
                        "link {link} should be {state:?} and is {phase:?}, after {event:?}; {:?}",
                        self.model.conns[link]
                    );
                }
            }
        }
        let link = match event {
            Event::Taken(link, _) => *link,
            _ => 0,
        };
        self.seen.extend(seen.into_iter().map(|seen| (link, seen)));
        self.check_sender(event);
        self.check_worker(worker);
    }

    /// The choices that PROTOCOL.md leaves: the order of what is due at one moment, and who pays
    /// for a shortage of memory, before or after the event itself.
    fn other_ways(
        &mut self,
        before: &Model,
        worker: usize,
        event: &Event,
    ) -> Option<(Model, Vec<Seen>, Vec<Link>)> {
        let mut tries = vec![event.clone()];
        if let Event::Timers(fires) = event {
            let all = [&fires[..], &before.passing(worker, self.now)[..]].concat();
            for round in 0..if all.len() > 1 { 300 } else { 0 } {
                let mut order = if round % 2 == 0 { all.clone() } else { fires.clone() };
                for last in (1..order.len()).rev() {
                    order.swap(last, self.rng.below(last + 1));
                }
                // Any of those that need not be met yet may be left out.
                order.retain(|fire| fires.contains(fire) || self.rng.percent(50));
                tries.push(Event::Timers(order));
            }
            tries.push(Event::Timers(all));
        }
        for event in &tries {
            let mut model = before.clone();
            let seen = model.apply(event, self.now);
            let same = self.difference(&model, worker).is_none();
            if same && self.queues_agree(&model, worker, false) {
                return Some((model, seen, Vec::new()));
            }
        }
        if !self.scenario.tight {
            return None;
        }
        tries.truncate(40);
        let mut pairs: Vec<(Option<Event>, Event)> = Vec::new();
        for event in tries {
            pairs.push((Some(event.clone()), Event::Shed));
            pairs.push((None, event));
        }
        // Or between two of the messages that came at once.
        if let Event::Bytes(link, bytes) = *event {
            let conn = &before.conns[link];
            let ends = conn.items.iter().map(|(_, end, _)| end.saturating_sub(conn.delivered));
            for end in ends.map(|end| end as usize).filter(|end| (1..bytes).contains(end)) {
                pairs.push((Some(Event::Bytes(link, end)), Event::Bytes(link, bytes - end)));
            }
        }
        // Of several that paid, who was the first decides who takes an id over.
        let links = self.workers[worker].links.clone();
        let latest_first = links.iter().rev().copied().collect();
        let orders: [Vec<Link>; 2] = [links, latest_first];
        orders.iter().find_map(|order| self.ways_to_pay(before, worker, &pairs, order))
    }

    /// As [`World::other_ways`], of those in which payers go in this order.
    fn ways_to_pay(
        &self,
        before: &Model,
        worker: usize,
        pairs: &[(Option<Event>, Event)],
        order: &[Link],
    ) -> Option<(Model, Vec<Seen>, Vec<Link>)> {
        let mut found: Option<(Model, Vec<Seen>, Vec<Link>)> = None;
        for (first, second) in pairs {
            let mut model = before.clone();
            let mut seen = Vec::new();
            if let Some(first) = first {
                seen = model.apply(first, self.now);
            }
            let mut shed = self.explain_some(&mut model, order);
            seen.extend(model.apply(second, self.now));
            let Some(more) = self.explain(&mut model, worker, order) else { continue };
            shed.extend(more);
            match &mut found {
                None => found = Some((model, seen, shed)),
                // Who was closed in either order may be told the reason of either.
                Some((chosen, ..)) => {
                    for link in &self.workers[worker].links {
                        let also = std::mem::take(&mut model.conn(*link).out.closes);
                        chosen.conn(*link).out.closes.extend(also);
                    }
                }
            }
        }
        found
    }

    /// Takes one step towards what the relay says: a connection that paid for a shortage.
    fn shed_one(&self, model: &mut Model, links: &[Link]) -> Option<Link> {
        let phase = |link: Link| self.glimpse(link).map_or(Phase::Closed, |glimpse| glimpse.phase);
        let ended = links.iter().copied().find(|link| {
            phase(*link) == Phase::Closed
                && !matches!(model.conns[*link].state, State::Closed | State::HandingOver)
        });
        if let Some(link) = ended {
            model.abort(link, self.now);
            return Some(link);
        }
        let closed = links.iter().copied().find(|link| {
            phase(*link) == Phase::Closing && model.conns[*link].state == State::Phone
        })?;
        model.close(closed, BACKLOG, Some(1001), false, self.now);
        model.conn(closed).out.closes.push(NORMAL);
        Some(closed)
    }

    fn explain_some(&self, model: &mut Model, order: &[Link]) -> Vec<Link> {
        std::iter::from_fn(|| self.shed_one(model, order)).take(100).collect()
    }

    fn explain(&self, model: &mut Model, worker: usize, order: &[Link]) -> Option<Vec<Link>> {
        let shed = self.explain_some(model, order);
        if self.difference(model, worker).is_some() {
            return None;
        }
        let call = model.call;
        for link in &self.workers[worker].links {
            model.conn(*link).out.doubt(call);
        }
        self.queues_agree(model, worker, true).then_some(shed)
    }

    /// Whether what is queued for open connections is what the model says, and who was pinged: where
    /// memory is short, a ping that is not queued is no proof that none was due.
    fn queues_agree(&self, model: &Model, worker: usize, short: bool) -> bool {
        self.workers[worker].links.iter().all(|link| {
            let (conn, glimpse) = (&model.conns[*link], self.glimpse(*link));
            let outbox_bytes = glimpse.map_or(0, |glimpse| glimpse.outbox_bytes);
            let tight = short || self.scenario.tight;
            let pings = glimpse.is_none_or(|g| conn.is_pinged_at(g.ping_due, self.now));
            !conn.is_open() || (pings && conn.out.compare(tight, outbox_bytes).is_ok())
        })
    }

    /// Whoever paid, memory was short.
    fn check_shed(&mut self, worker: usize, shed: &[Link], before: &Before) {
        if shed.is_empty() {
            return;
        }
        note!(self, "worker {worker}: {shed:?} paid for memory");
        check!(before.short, "shed", "{shed:?} paid while memory was ample");
    }

    // One list of checks.
    #[allow(clippy::too_many_lines)]
    pub fn check_worker(&mut self, worker: usize) {
        let relay = &self.workers[worker].relay;
        let mut charged = 0;
        let mut holders = vec![None; self.model.ids.len()];
        let mut resumed = Vec::new();
        for link in self.workers[worker].links.iter().copied() {
            let At::Worker(_, key) = self.sockets[link].at else { continue };
            let Some(glimpse) = relay.glimpse(key) else {
                return check!(false, "keys", "link {link} is unknown to its worker");
            };
            charged += glimpse.held_bytes + glimpse.input_bytes;
            let conn = &self.model.conns[link];
            if glimpse.phase == Phase::Binary {
                let other = holders[conn.id].replace(link);
                check!(other.is_none(), "one holder", "id {}: {other:?} and {link}", conn.id);
            }
            self.check_bytes(link, &glimpse);
            let reads = relay.wants_read(key);
            if conn.is_open() && !conn.ended {
                self.check_rate(worker, link, glimpse.slowed_until);
                let slowed = glimpse.slowed_until.is_some();
                if !slowed && !reads {
                    self.check_pause(link);
                }
                let ahead = conn.state == State::Newcomer && conn.held_bytes >= AHEAD_FULL;
                check!(!(reads && ahead), "pause", "link {link} is read on and on");
                if conn.paused == reads || conn.slowed != slowed {
                    resumed.push((link, reads, slowed));
                }
            } else if matches!(conn.state, State::Head | State::Closing) && !conn.ended {
                check!(reads, "pause", "link {link} is not read: {:?}", conn.state);
            }
        }
        check!(
            charged as u64 == relay.charged_bytes(),
            "charge",
            "worker {worker} has charged {} B for {charged} B",
            relay.charged_bytes()
        );
        if let Err(error) = relay.check_books() {
            check!(false, "books", "worker {worker}: {error}");
        }
        let leased = self.budget.leased_bytes();
        let limit = self.budget.pool_bytes();
        check!(leased <= limit, "budget", "{leased} B of {limit} B are leased");
        let all: u64 = self.workers.iter().map(|worker| worker.relay.charged_bytes()).sum();
        let most = leased + self.budget.headroom_bytes() * self.workers.len() as u64;
        check!(all <= most, "budget", "{all} B are charged, {leased} B leased");
        let counts = (self.metrics.connected_binaries(), self.metrics.connected_phones());
        let expected = self.model.connected();
        check!(counts == expected, "counts", "{counts:?} for {expected:?}");
        let places = (self.admission.live(), self.admission.addresses());
        let expected = (self.model.counts.live(), self.model.counts.present());
        // Who was on its way to another worker may have paid for memory, which its action will tell.
        let untold = self.scenario.tight
            && self.workers[worker].links.iter().any(|link| {
                self.model.conns[*link].state == State::HandingOver
                    && self.glimpse(*link).is_none_or(|glimpse| glimpse.phase == Phase::Closed)
            });
        check!(untold || places == expected, "places", "{places:?} for {expected:?}");
        for (link, reads, slowed) in resumed {
            // Whoever is no longer slowed has its time anew, though a backlog may still be in its way.
            if reads || (self.model.conns[link].slowed && !slowed) {
                self.model.reads_again(link, self.now);
            }
            let conn = self.model.conn(link);
            (conn.paused, conn.slowed) = (!reads, slowed);
        }
    }

    /// What one connection is charged for.
    fn check_bytes(&self, link: Link, glimpse: &Glimpse) {
        let conn = &self.model.conns[link];
        let half_read = conn.fragments.unwrap_or(0) + conn.partial_bytes();
        let (least, most) = match conn.state {
            State::Head => (half_read, 2 * half_read + 64),
            State::Newcomer | State::Binary | State::Phone => {
                let compared = conn.out.compare(self.scenario.tight, glimpse.outbox_bytes);
                if let Err(error) = compared {
                    check!(false, "charge", "link {link}: {error}");
                }
                let begun = half_read > 0 || conn.fragments.is_some();
                let most = if begun { 4096 + 2 * half_read } else { 0 };
                (conn.held_bytes + half_read.saturating_sub(14), 2 * conn.held_bytes + most)
            }
            State::Closing if conn.closing.discard => (0, 0),
            State::Closed => (0, 0),
            State::Closing | State::HandingOver | State::Mail => (0, usize::MAX),
        };
        check!(
            (least..=most).contains(&glimpse.input_bytes),
            "input charge",
            "link {link}, {:?}: {} B are charged for {half_read} B half read and {} B held",
            conn.state,
            glimpse.input_bytes,
            conn.held_bytes
        );
        let silent = conn.state == State::Closed || conn.out.got_close;
        check!(
            !silent || glimpse.outbox_bytes == 0,
            "charge",
            "link {link}: {} B are queued after the end",
            glimpse.outbox_bytes
        );
    }

    /// A peer is only left unread while somebody's backlog is the reason.
    fn check_pause(&self, link: Link) {
        let conn = &self.model.conns[link];
        let reason = match conn.state {
            State::Newcomer => conn.held_bytes.saturating_sub(AHEAD_FULL - 1),
            State::Phone => self.model.ids[conn.id]
                .holder()
                .and_then(|holder| self.glimpse(holder))
                .map_or(0, |holder| holder.outbox_bytes),
            _ => 0,
        };
        check!(reason > 0, "pause", "link {link} is not read, and nothing waits");
    }

    /// A peer is kept waiting while its id is over its rate, and no longer: its worker is awake then.
    fn check_rate(&self, worker: usize, link: Link, slowed_until: Option<Ms>) {
        let conn = &self.model.conns[link];
        let Some((least, most)) = self.model.over_until(link) else {
            return check!(
                slowed_until.is_none(),
                "rate",
                "link {link} is slowed: {:?}",
                conn.state
            );
        };
        let Some(until) = slowed_until else {
            let goes_on = conn.slowed && least > self.now;
            return check!(!goes_on, "rate", "link {link} is read on before {least}");
        };
        // What is due while another process takes over is due then.
        let most = most.max(self.now);
        check!(until <= most, "rate", "link {link} waits until {until}, its id until {most}");
        let wake = self.workers[worker].relay.next_wake_ms();
        check!(
            wake.is_some_and(|wake| wake <= until.next_multiple_of(TICK_MS)),
            "rate",
            "link {link} is to wait until {until}, and its worker sleeps until {wake:?}"
        );
    }

    /// Whoever has just sent too much is not read on.
    fn check_sender(&self, event: &Event) {
        let (Event::Bytes(link, _) | Event::Adopt(link, _)) = event else { return };
        let over = self.model.over_until(*link).is_some_and(|(least, _)| least > self.now);
        let over = over && self.model.conns[*link].has_paid;
        let slowed = self.glimpse(*link).is_none_or(|glimpse| glimpse.slowed_until.is_some());
        check!(slowed || !over, "rate", "link {link} is over its id's rate, and is read");
    }

    /// The shell has been told to read whatever is to be read.
    fn check_reads(&self, worker: usize) {
        for link in &self.workers[worker].links {
            let At::Worker(_, key) = self.sockets[*link].at else { continue };
            let wanted = self.workers[worker].relay.wants_read(key);
            let reads = self.sockets[*link].armed;
            check!(reads || !wanted, "read", "link {link} is to be read, and nobody was told");
        }
    }

    /// The worker will be woken for the next deadline.
    fn check_alarm(&mut self, worker: usize) {
        let relay = &self.workers[worker].relay;
        if let Some((due, fire)) = self.model.next_deadline(worker) {
            let wake = relay.next_wake_ms();
            check!(
                wake.is_some_and(|wake| wake <= due),
                "alarm",
                "worker {worker} sleeps until {wake:?}, past {due} of {fire:?}"
            );
        }
        if self.model.down[worker] && relay.connections() == 0 {
            self.workers[worker].over = true;
        }
    }

    /// Nobody is left: nothing may be.
    pub fn check_empty(&self) {
        for (number, worker) in self.workers.iter().enumerate() {
            let relay = &worker.relay;
            let left = (relay.connections(), relay.server_ids(), relay.timers());
            check!(
                left == (0, 0, 0),
                "empty",
                "worker {number}: connections, ids, timers {left:?}"
            );
            let charged = relay.charged_bytes();
            check!(charged == 0, "empty", "worker {number} still charges {charged} B");
            let wake = relay.next_wake_ms();
            check!(wake.is_none(), "empty", "worker {number} waits for {wake:?}");
        }
        let counts = (self.metrics.connected_binaries(), self.metrics.connected_phones());
        check!(counts == (0, 0), "empty", "counts are {counts:?}");
        let places = (self.admission.live(), self.admission.addresses());
        check!(places == (0, 0), "empty", "places that nobody has are taken: {places:?}");
        // Half is shared out among the workers for good.
        let kept = self.budget.pool_bytes() / 2;
        let idle = kept + self.scenario.budget_bytes / 32 + 2 * self.workers.len() as u64;
        let leased = self.budget.leased_bytes();
        check!(leased <= idle, "empty", "{leased} B are leased for nothing");
    }

    /// Every socket is gone and no mail is under way.
    pub fn is_deserted(&self) -> bool {
        self.sockets.iter().all(|socket| socket.at == At::Gone) && self.mail().is_empty()
    }
}
