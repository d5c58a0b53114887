//! What PROTOCOL.md says must happen: who holds which id, who waits for what, what each peer is
//! due. It is told the same events as the relay and knows none of its code. It is exact, but where
//! the protocol leaves a choice: what goes first of several things that are due at one moment, and
//! who pays when memory runs short. There the caller tries the choices, see `world`.

use crate::admission::{Count, Counts};
use crate::operator::Target;
use crate::outbound::{Notice, Out};
use crate::scenario::Scenario;
use crate::wire::{Item, Msg, Payload};
use pyrycode_relay::config::{ByteRate, Limits};
use std::collections::BTreeMap;
use std::rc::Rc;

pub type Ms = u64;
pub type Link = usize;
pub type Reason = (u16, &'static str);

pub const NORMAL: Reason = (1000, "");
pub const SHUTTING_DOWN: Reason = (1001, "shutting down");
pub const HEARTBEAT: Reason = (1011, "heartbeat timeout");
pub const BACKLOG: Reason = (1011, "phone backlog full");
pub const NO_SERVER: Reason = (4404, "no server with that id");
pub const RECLAIMED: Reason = (4404, "binary reclaimed server-id");
pub const CLAIMED: Reason = (4409, "server-id already claimed");
pub const TOO_MANY: Reason = (4429, "too many phones for server-id");

/// Deadlines are met at the first of these ticks at which they have passed.
pub const TICK_MS: Ms = 8;
const PHONE_OUTBOX_BYTES: usize = 4 << 20;
pub const FRAME_OVERHEAD: usize = 64;
/// A newcomer that has sent this much ahead is no longer read.
pub const AHEAD_FULL: usize = 16 << 10;
/// What each message sent ahead takes beside its payload.
const AHEAD_OVERHEAD: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Head,
    /// Checked, and due elsewhere; leaves when earlier answers have.
    HandingOver,
    /// Between two workers.
    Mail,
    Newcomer,
    Binary,
    Phone,
    Closing,
    Closed,
}

/// How long a peer that owes nothing more has to end its direction.
const LINGER_MS: Ms = 1000;

#[derive(Debug, Clone, Default)]
pub struct Closing {
    /// Behind everything that waits, as a binary has asked.
    pub in_turn: bool,
    /// An HTTP answer ends the connection, not a close frame.
    pub http: bool,
    pub answered: bool,
    /// Input no longer counts.
    pub discard: bool,
    /// What the kernel holds for the peer, since when it holds no less, and whether it is asked
    /// because the peer's time is over.
    pub unsent: usize,
    pub progress_at: Ms,
    pub overdue: bool,
}

/// Who connects.
#[derive(Debug, Clone, Copy)]
pub struct Who {
    pub binary: bool,
    pub id: usize,
    pub address: usize,
}

#[derive(Debug, Clone)]
pub struct Conn {
    pub binary: bool,
    pub id: usize,
    pub address: usize,
    pub count: Count,
    pub owner: usize,
    pub worker: usize,
    pub state: State,
    pub closing: Closing,
    pub out: Out,
    /// What the peer's bytes mean: first byte, end, meaning.
    pub items: std::collections::VecDeque<(u64, u64, Item)>,
    pub delivered: u64,
    pub last_end: u64,
    /// Payload of the fragments so far of a message that is not complete.
    pub fragments: Option<usize>,
    pub held: Vec<Msg>,
    /// What the held messages take, each with its length.
    pub held_bytes: usize,
    pub ended: bool,
    /// Not read for the sake of somebody's backlog, or of the rate; as the world has seen it.
    pub paused: bool,
    /// Not read because its id is over its rate; as the world has seen it.
    pub slowed: bool,
    /// Where in what it sends that begins which counts for its id, as this event is told, and up to
    /// where it counts for sure: in the rest, somebody who has ended is heard.
    counts_from: Option<u64>,
    counts_to: u64,
    /// What it sent last counted for its id.
    pub has_paid: bool,
    sent: u32,
    answered: u32,
    pub stage_due: Option<Ms>,
    ping_due: Option<Ms>,
    pong_due: Option<Ms>,
    message_due: Option<Ms>,
    pub write_due: Option<Ms>,
}

impl Conn {
    /// What it sends counts for its id.
    fn is_rated(&self) -> bool {
        matches!(self.state, State::Binary | State::Phone)
    }

    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Newcomer | State::Binary | State::Phone)
    }

    /// Whether it is pinged next when the relay says. What has passed by now is as good as now.
    pub fn is_pinged_at(&self, due: Ms, now: Ms) -> bool {
        self.ping_due.map(|due| due.max(now)) == (due != Ms::MAX).then_some(due.max(now))
    }

    /// Bytes of a head or frame that is not all there.
    pub fn partial_bytes(&self) -> usize {
        (self.delivered - self.last_end) as usize
    }

    fn forget_deadlines(&mut self) {
        self.stage_due = None;
        self.ping_due = None;
        self.pong_due = None;
        self.message_due = None;
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tenure {
    Free,
    Held(Link),
    Grace { due: Ms },
    Probed { holder: Link, newcomers: Vec<Link>, due: Ms },
}

#[derive(Debug, Clone)]
pub struct Id {
    pub owner: usize,
    pub tenure: Tenure,
    pub phones: Vec<Link>,
    /// What it has sent, as far as that counts for sure, and with all that may count.
    pub sent_least: Bucket,
    pub sent_most: Bucket,
}

/// What an id may send in a time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bucket {
    /// What is missing of it, in thousandths of a byte, and when that was so.
    missing: (u64, Ms),
    /// Until when more is missing than may be sent at once.
    pub over_until: Ms,
}

impl Bucket {
    fn pay(&mut self, rate: ByteRate, bytes: u64, now: Ms) {
        let (missing, at) = self.missing;
        let missing = missing.saturating_sub((now - at) * rate.bytes_per_s) + 1000 * bytes;
        let over = missing.saturating_sub(1000 * rate.burst_bytes);
        *self = Self { missing: (missing, now), over_until: now + over.div_ceil(rate.bytes_per_s) };
    }
}

impl Id {
    /// Nobody has it any more, and nothing is remembered of it.
    pub fn set_free(&mut self) {
        self.tenure = Tenure::Free;
        (self.sent_least, self.sent_most) = Default::default();
    }

    pub fn holder(&self) -> Option<Link> {
        match self.tenure {
            Tenure::Held(holder) | Tenure::Probed { holder, .. } => Some(holder),
            _ => None,
        }
    }
}

/// A deadline that has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fire {
    Write(Link),
    Stage(Link),
    Message(Link),
    Pong(Link),
    Ping(Link),
    Id(usize),
}

#[derive(Debug, Clone)]
pub enum Event {
    Bytes(Link, usize),
    End {
        link: Link,
        clean: bool,
    },
    Taken(Link, Payload),
    Unsent(Link, usize),
    /// The write under way goes on.
    Progress(Link),
    WriteFailed(Link),
    Timers(Vec<Fire>),
    Adopt(Link, usize),
    Down(usize),
    Shed,
    /// Everybody of these ids.
    SendAway(Vec<usize>),
    /// Of these, in this order, those that are meant.
    Disconnect(Vec<Link>, Target, Reason),
}

/// What a peer sees of what the kernel took for it.
#[derive(Debug, Clone)]
pub enum Seen {
    Switched,
    Ping(Payload),
    /// Something of the phone with this conn_id.
    ConnId(Rc<str>),
    Closed(Option<u16>),
}

#[derive(Clone)]
pub struct Model {
    pub limits: Limits,
    /// Memory runs short in this run.
    pub tight: bool,
    pub conns: Vec<Rc<Conn>>,
    pub ids: Vec<Id>,
    pub names: BTreeMap<Rc<str>, Link>,
    pub down: Vec<bool>,
    pub counts: Counts,
    /// Numbers the events.
    pub call: u64,
    /// Deadlines that have passed at one moment: their order is the relay's choice.
    fired: Vec<Fire>,
}

fn has_passed(due: Option<Ms>, now: Ms) -> bool {
    due.is_some_and(|due| due.div_ceil(TICK_MS) <= now / TICK_MS)
}

pub fn directive(code: u16) -> Reason {
    match code {
        1000..=1003 | 1007..=1014 | 3000..=4999 => (code, ""),
        _ => (1011, ""),
    }
}

impl Model {
    pub fn new(scenario: &Scenario, owners: &[usize]) -> Self {
        let ids = owners.iter().map(|owner| Id {
            owner: *owner,
            tenure: Tenure::Free,
            phones: Vec::new(),
            sent_least: Bucket::default(),
            sent_most: Bucket::default(),
        });
        Self {
            limits: scenario.limits,
            tight: scenario.tight,
            counts: Counts::new(scenario.admission, scenario.addresses),
            conns: Vec::new(),
            ids: ids.collect(),
            names: BTreeMap::new(),
            down: vec![false; scenario.workers],
            call: 0,
            fired: Vec::new(),
        }
    }

    pub fn conn(&mut self, link: Link) -> &mut Conn {
        Rc::make_mut(&mut self.conns[link])
    }

    pub fn accept(&mut self, now: Ms, worker: usize, who: Who) -> Link {
        let Who { binary, id, address } = who;
        let count = self.counts.enter(address);
        self.conns.push(Rc::new(Conn {
            binary,
            id,
            address,
            count,
            owner: self.ids[id].owner,
            worker,
            state: State::Head,
            closing: Closing::default(),
            out: Out::default(),
            items: std::collections::VecDeque::new(),
            delivered: 0,
            last_end: 0,
            fragments: None,
            held: Vec::new(),
            held_bytes: 0,
            ended: false,
            paused: false,
            slowed: false,
            counts_from: None,
            counts_to: 0,
            has_paid: false,
            sent: 0,
            answered: 0,
            stage_due: Some(now + self.limits.header_timeout_ms),
            ping_due: None,
            pong_due: None,
            message_due: None,
            write_due: None,
        }));
        let link = self.conns.len() - 1;
        if count == Count::Nothing {
            self.abort(link, now);
        }
        link
    }

    /// It counts no longer.
    pub fn release(&mut self, link: Link) {
        let conn = Rc::make_mut(&mut self.conns[link]);
        self.counts.leave(conn.address, &mut conn.count);
    }

    pub fn connected(&self) -> (u64, u64) {
        let binaries = self.ids.iter().filter(|id| id.holder().is_some()).count();
        (binaries as u64, self.ids.iter().map(|id| id.phones.len() as u64).sum())
    }

    pub fn apply(&mut self, event: &Event, now: Ms) -> Vec<Seen> {
        match event {
            Event::Bytes(link, bytes) => {
                self.conn(*link).delivered += *bytes as u64;
                self.process(*link, now);
                self.pay(*link, now);
            }
            Event::End { link, clean } => self.end(*link, *clean, now),
            Event::Taken(link, bytes) => return self.taken(*link, bytes, now),
            Event::Unsent(link, bytes) => self.unsent(*link, *bytes, now),
            Event::Progress(link) => self.progress(*link, now),
            Event::WriteFailed(link) => self.abort(*link, now),
            Event::Timers(fires) => {
                self.fired.clone_from(fires);
                for fire in fires {
                    self.fire(*fire, now);
                }
                self.fired.clear();
            }
            Event::Adopt(link, worker) => {
                self.conn(*link).worker = *worker;
                self.conn(*link).state = State::Head;
                self.open(*link, now);
                self.process(*link, now);
                self.pay(*link, now);
            }
            Event::Down(worker) => self.shut_down(*worker, now),
            Event::Shed => {}
            Event::SendAway(ids) => self.send_away(ids, now),
            Event::Disconnect(order, target, reason) => {
                self.disconnect(order, *target, *reason, now);
            }
        }
        Vec::new()
    }

    // Input.

    /// The peer's next bytes come in: they count if it has its id now, whoever pays for memory first.
    pub fn receives(&mut self, link: Link) {
        let conn = self.conn(link);
        conn.counts_from = conn.is_rated().then_some(conn.delivered);
        conn.counts_to = conn.delivered;
        conn.has_paid = false;
    }

    /// What has come in is paid for by the id.
    fn pay(&mut self, link: Link, now: Ms) {
        let Some(rate) = self.limits.server_id_rate else { return };
        let conn = self.conn(link);
        let Some(from) = conn.counts_from else { return };
        if conn.is_rated() {
            conn.counts_to = conn.delivered;
        }
        let (least, most) = (conn.counts_to - from, conn.delivered - from);
        conn.counts_from = Some(conn.delivered);
        conn.counts_to = conn.delivered;
        conn.has_paid = least > 0;
        let id = conn.id;
        self.ids[id].sent_least.pay(rate, least, now);
        self.ids[id].sent_most.pay(rate, most, now);
    }

    /// Whether a peer is not to be read for a moment: until when, if it counts for an id.
    pub fn over_until(&self, link: Link) -> Option<(Ms, Ms)> {
        let conn = &self.conns[link];
        let id = &self.ids[conn.id];
        let is_heard = matches!(id.tenure, Tenure::Probed { holder, .. } if holder == link);
        let over = (id.sent_least.over_until, id.sent_most.over_until);
        (conn.is_rated() && !is_heard).then_some(over)
    }

    fn process(&mut self, link: Link, now: Ms) {
        loop {
            let conn = &self.conns[link];
            let deaf = conn.state == State::Closing && conn.closing.discard;
            if deaf || matches!(conn.state, State::HandingOver | State::Mail | State::Closed) {
                return;
            }
            let complete = conn.items.front().is_some_and(|(_, end, _)| *end <= conn.delivered);
            if !complete {
                break;
            }
            let conn = self.conn(link);
            let Some((_, end, item)) = conn.items.pop_front() else { break };
            conn.last_end = end;
            if conn.is_rated() {
                conn.counts_to = end;
            }
            self.item(link, item, now);
        }
        let due = now + self.limits.message_timeout_ms;
        let conn = self.conn(link);
        if conn.is_open() {
            if conn.partial_bytes() == 0 && conn.fragments.is_none() {
                conn.message_due = None;
            } else if conn.message_due.is_none() {
                conn.message_due = Some(due);
            }
        }
    }

    fn item(&mut self, link: Link, item: Item, now: Ms) {
        let state = self.conns[link].state;
        match state {
            State::Head => self.request(link, &item, now),
            State::Newcomer | State::Binary | State::Phone => self.frame(link, item, state, now),
            State::Closing => {
                let conn = self.conn(link);
                if matches!(item, Item::Close(_) | Item::Breach(_)) {
                    conn.closing.discard = true;
                }
                if matches!(item, Item::Close(_)) {
                    conn.closing.answered = true;
                    conn.closing.in_turn = false;
                }
            }
            State::HandingOver | State::Mail | State::Closed => {}
        }
    }

    /// What is told of the relay now.
    pub fn health(&self, now: Ms) -> String {
        let (binaries, phones) = self.connected();
        format!(
            "{{\"status\":\"ok\",\"version\":\"{}\",\"connected_binaries\":{binaries},\
             \"connected_phones\":{phones},\"uptime_seconds\":{}}}",
            pyrycode_relay::config::VERSION,
            now / 1000
        )
    }

    fn request(&mut self, link: Link, item: &Item, now: Ms) {
        match item {
            Item::Health { head_only } => {
                let body = self.health(now);
                let due = now + self.limits.header_timeout_ms;
                let conn = self.conn(link);
                conn.out.http.push_back((200, vec![body], *head_only));
                conn.stage_due = Some(due);
            }
            Item::Refused(status) => {
                let is_upgrade = *status != 404;
                // Of requests like these, the one without headers is a binary's.
                let claims = *status == 400;
                let refused = if is_upgrade { self.admit(link, claims, now).err() } else { None };
                if is_upgrade && refused.is_none() {
                    let conn = Rc::make_mut(&mut self.conns[link]);
                    self.counts.step_back(conn.address, &mut conn.count);
                }
                self.refuse(link, refused.unwrap_or(*status), now);
            }
            _ => {
                let claims = self.conns[link].binary;
                if let Err(status) = self.admit(link, claims, now) {
                    self.refuse(link, status, now);
                } else if self.conns[link].worker == self.conns[link].owner {
                    self.open(link, now);
                } else {
                    let due = now + self.limits.header_timeout_ms;
                    let conn = self.conn(link);
                    conn.state = State::HandingOver;
                    conn.stage_due = (!conn.out.http.is_empty()).then_some(due);
                }
            }
        }
    }

    fn admit(&mut self, link: Link, claims: bool, now: Ms) -> Result<(), u16> {
        let conn = Rc::make_mut(&mut self.conns[link]);
        self.counts.admit(conn.address, &mut conn.count, claims, now)
    }

    fn refuse(&mut self, link: Link, status: u16, now: Ms) {
        self.conn(link).out.http.push_back((status, Vec::new(), false));
        self.hang_up(link, now);
    }

    fn frame(&mut self, link: Link, item: Item, state: State, now: Ms) {
        if state == State::Binary && !matches!(item, Item::Close(_) | Item::Breach(_)) {
            self.holder_lives(self.conns[link].id, now);
        }
        let conn = self.conn(link);
        match item {
            Item::Fragment(bytes) => *conn.fragments.get_or_insert(0) += bytes,
            Item::Data(msg, bytes) => {
                conn.fragments = None;
                conn.message_due = None;
                match state {
                    State::Phone => self.phone_says(link, msg, now),
                    State::Binary => self.binary_says(link, msg, now),
                    _ => {
                        conn.held.push(msg);
                        conn.held_bytes += bytes + AHEAD_OVERHEAD;
                    }
                }
                return;
            }
            Item::Ping(payload) => conn.out.push_pong(payload),
            Item::Pong(payload) => self.pong(link, &payload, now),
            Item::Close(code) => {
                // The echo: the same code, or none.
                let echo = (code.unwrap_or(0), "");
                self.close(link, echo, Some(code.unwrap_or(1005)), true, now);
            }
            Item::Breach(code) => {
                self.close(link, (code, ""), Some(1001), true, now);
                // It can no longer be understood, but has its time to answer.
                self.conn(link).closing.answered = false;
            }
            Item::Health { .. } | Item::Refused(_) | Item::Upgrade => unreachable!(),
        }
        let conn = self.conn(link);
        if conn.fragments.is_none() {
            conn.message_due = None;
        }
    }

    fn phone_says(&mut self, phone: Link, msg: Msg, now: Ms) {
        let Msg::Json(frame) = msg else {
            return self.close(phone, NORMAL, Some(1001), false, now);
        };
        let id = self.conns[phone].id;
        let call = self.call;
        match self.ids[id].holder() {
            Some(holder) => self.conn(holder).out.push_wrapped(phone, frame, call),
            None => self.close(phone, NORMAL, Some(1001), false, now),
        }
    }

    fn binary_says(&mut self, binary: Link, msg: Msg, now: Ms) {
        let id = self.conns[binary].id;
        let (to, frame, code) = match msg {
            Msg::Frame { to, frame, code } => (to, Some(frame), code),
            Msg::Close { to, code } => (to, None, code),
            _ => return,
        };
        let Some(phone) = self.names.get(&to).copied() else { return };
        if !self.ids[id].phones.contains(&phone) {
            return;
        }
        if let Some(frame) = frame {
            let call = self.call;
            let conn = self.conn(phone);
            if conn.out.charge() + frame.len() + FRAME_OVERHEAD > PHONE_OUTBOX_BYTES {
                let (reason, notice) =
                    if code == 0 { (BACKLOG, Some(1001)) } else { (directive(code), None) };
                return self.close(phone, reason, notice, false, now);
            }
            conn.out.push_frame(phone, frame, call);
        }
        if code != 0 {
            self.close(phone, directive(code), None, false, now);
            let conn = self.conn(phone);
            conn.closing.in_turn = true;
            conn.stage_due = None;
        }
    }

    fn pong(&mut self, link: Link, payload: &[u8], now: Ms) {
        let due = now + self.limits.heartbeat_timeout_ms;
        let conn = self.conn(link);
        let Ok(number) = payload.try_into().map(u32::from_be_bytes) else { return };
        if number > conn.answered && number <= conn.sent {
            conn.answered = number;
            conn.pong_due = (number < conn.sent).then_some(due);
        }
    }

    fn end(&mut self, link: Link, clean: bool, now: Ms) {
        self.conn(link).ended = true;
        let conn = &self.conns[link];
        match conn.state {
            State::Closing if clean => self.cut_if_over(link, now),
            State::Head if clean && !conn.out.http.is_empty() => self.hang_up(link, now),
            _ => self.abort(link, now),
        }
    }

    // Server-ids.

    fn open(&mut self, link: Link, now: Ms) {
        if self.down[self.conns[link].worker] {
            return self.abort(link, now);
        }
        let conn = self.conn(link);
        conn.stage_due = None;
        conn.out.http.push_back((101, Vec::new(), false));
        if conn.binary {
            self.claim(link, now)
        } else {
            self.register(link, now)
        }
        let ping_due = self.next_ping(now);
        let conn = self.conn(link);
        conn.counts_from = conn.is_rated().then_some(conn.last_end);
        conn.counts_to = conn.last_end;
        if conn.is_open() {
            conn.ping_due = Some(ping_due);
        }
    }

    /// An interval later, rounded up to a sixty-fourth of it (at most half a second), so that
    /// many pings leave in one turn.
    fn next_ping(&self, now: Ms) -> Ms {
        let interval = self.limits.heartbeat_interval_ms;
        (now + interval).next_multiple_of((interval / 64).clamp(1, 500))
    }

    fn claim(&mut self, link: Link, now: Ms) {
        let id = self.conns[link].id;
        self.conn(link).state = State::Binary;
        match self.ids[id].tenure.clone() {
            Tenure::Free => self.ids[id].tenure = Tenure::Held(link),
            Tenure::Grace { .. } => {
                self.ids[id].tenure = Tenure::Held(link);
                self.evict(id, RECLAIMED, now);
            }
            Tenure::Held(holder) => {
                self.conn(link).state = State::Newcomer;
                let due = now + self.limits.probe_timeout_ms;
                self.ids[id].tenure = Tenure::Probed { holder, newcomers: vec![link], due };
                if std::mem::take(&mut self.conn(holder).slowed) {
                    self.reads_again(holder, now);
                }
                self.ping(holder, now);
            }
            Tenure::Probed { holder, mut newcomers, due } => {
                self.conn(link).state = State::Newcomer;
                newcomers.push(link);
                self.ids[id].tenure = Tenure::Probed { holder, newcomers, due };
            }
        }
    }

    fn register(&mut self, link: Link, now: Ms) {
        let id = &mut self.ids[self.conns[link].id];
        let reason = if id.tenure == Tenure::Free {
            NO_SERVER
        } else if id.phones.len() >= self.limits.max_phones {
            TOO_MANY
        } else {
            id.phones.push(link);
            self.conn(link).state = State::Phone;
            return;
        };
        let due = now + self.limits.close_timeout_ms;
        let conn = self.conn(link);
        conn.state = State::Closing;
        conn.out.closes = vec![reason];
        conn.stage_due = Some(due);
    }

    fn holder_lives(&mut self, id: usize, now: Ms) {
        if let Tenure::Probed { holder, newcomers, .. } = self.ids[id].tenure.clone() {
            self.ids[id].tenure = Tenure::Held(holder);
            for newcomer in newcomers {
                self.close(newcomer, CLAIMED, None, false, now);
            }
        }
    }

    fn take_over(&mut self, id: usize, newcomers: &[Link], now: Ms) {
        let Some((winner, losers)) = newcomers.split_first() else { return };
        self.ids[id].tenure = Tenure::Held(*winner);
        self.evict(id, RECLAIMED, now);
        for loser in losers {
            self.close(*loser, CLAIMED, None, false, now);
        }
        let conn = self.conn(*winner);
        conn.state = State::Binary;
        conn.held_bytes = 0;
        let held = std::mem::take(&mut conn.held);
        self.reads_again(*winner, now);
        for msg in held {
            self.binary_says(*winner, msg, now);
        }
    }

    fn evict(&mut self, id: usize, reason: Reason, now: Ms) {
        for phone in std::mem::take(&mut self.ids[id].phones) {
            self.close(phone, reason, None, false, now);
        }
    }

    fn left(&mut self, link: Link, was: State, notice: Option<u16>, now: Ms) {
        let (id, call) = (self.conns[link].id, self.call);
        if was == State::Phone {
            let registered = self.ids[id].phones.contains(&link);
            self.ids[id].phones.retain(|phone| *phone != link);
            if let (true, Some(code), Some(holder)) = (registered, notice, self.ids[id].holder()) {
                self.conn(holder).out.push_notice(link, Notice(code), call);
            }
            return;
        }
        match self.ids[id].tenure.clone() {
            Tenure::Held(holder) if holder == link => {
                self.ids[id].tenure = Tenure::Grace { due: now + self.limits.grace_ms };
            }
            Tenure::Probed { holder, newcomers, .. } if holder == link => {
                self.take_over(id, &newcomers, now);
            }
            Tenure::Probed { holder, mut newcomers, due } => {
                newcomers.retain(|newcomer| *newcomer != link);
                self.ids[id].tenure = if newcomers.is_empty() {
                    Tenure::Held(holder)
                } else {
                    Tenure::Probed { holder, newcomers, due }
                };
            }
            _ => {}
        }
    }

    fn shut_down(&mut self, worker: usize, now: Ms) {
        self.down[worker] = true;
        for id in self.ids.iter_mut().filter(|id| id.owner == worker) {
            id.tenure = Tenure::Free;
            id.phones.clear();
        }
        for link in 0..self.conns.len() {
            let conn = &self.conns[link];
            if conn.worker != worker {
                continue;
            }
            match conn.state {
                State::Newcomer | State::Binary | State::Phone => {
                    self.close(link, SHUTTING_DOWN, None, false, now);
                }
                State::Closing => self.conn(link).closing.in_turn = false,
                State::Head if !conn.out.http.is_empty() => self.hang_up(link, now),
                State::HandingOver if conn.out.http.is_empty() => {}
                State::Head | State::HandingOver => self.abort(link, now),
                State::Mail | State::Closed => {}
            }
        }
    }

    // Endings.

    /// Closes an open connection. `over`: what the peer still sends does not count.
    pub fn close(&mut self, link: Link, reason: Reason, notice: Option<u16>, over: bool, now: Ms) {
        let due = now + self.limits.close_timeout_ms;
        let alternatives = self.alternatives(link, reason);
        let conn = self.conn(link);
        if !conn.is_open() {
            return;
        }
        let was = std::mem::replace(&mut conn.state, State::Closing);
        conn.forget_deadlines();
        conn.paused = false;
        conn.held_bytes = 0;
        conn.closing = Closing { answered: over, discard: over, ..Closing::default() };
        conn.out.closes = alternatives;
        conn.stage_due = Some(due);
        self.left(link, was, notice, now);
    }

    /// Of two reasons at one moment either may be the first.
    fn alternatives(&self, link: Link, reason: Reason) -> Vec<Reason> {
        let mut reasons = vec![reason];
        if self.fired.contains(&Fire::Pong(link)) {
            reasons.push(HEARTBEAT);
            let id = self.conns[link].id;
            let others = |fire: &Fire| match *fire {
                Fire::Id(other) => other == id,
                Fire::Write(other) | Fire::Message(other) | Fire::Pong(other) => {
                    other != link && self.conns[other].id == id
                }
                Fire::Stage(_) | Fire::Ping(_) => false,
            };
            if self.fired.iter().any(others) {
                reasons.extend([NORMAL, RECLAIMED, CLAIMED]);
            }
        }
        reasons
    }

    fn hang_up(&mut self, link: Link, now: Ms) {
        let due = now + self.limits.close_timeout_ms;
        let conn = self.conn(link);
        conn.state = State::Closing;
        conn.closing = Closing { http: true, answered: true, discard: true, ..Closing::default() };
        conn.stage_due = Some(due);
    }

    /// Ends a connection without a close frame.
    pub fn abort(&mut self, link: Link, now: Ms) {
        let conn = self.conn(link);
        let was = std::mem::replace(&mut conn.state, State::Closed);
        self.release(link);
        let conn = self.conn(link);
        conn.forget_deadlines();
        conn.write_due = None;
        conn.held_bytes = 0;
        if matches!(was, State::Newcomer | State::Binary | State::Phone) {
            self.left(link, was, Some(1001), now);
        }
    }

    /// Everything that is due to a closing peer is with the kernel.
    pub fn is_flushed(&self, link: Link) -> bool {
        let conn = &self.conns[link];
        conn.out.got_close || (conn.closing.http && conn.out.http.is_empty())
    }

    /// The relay ends its direction: false if it was not time yet. A peer that owes nothing more has
    /// a second to end its own.
    pub fn finish(&mut self, link: Link, now: Ms) -> bool {
        let due = now + self.limits.close_timeout_ms.min(LINGER_MS);
        let flushed = self.is_flushed(link);
        let conn = self.conn(link);
        if conn.state == State::Closed {
            return true;
        }
        conn.stage_due = Some(due);
        // Of a peer that broke the rules of framing, anything may be taken for an answer that ends
        // like one.
        flushed && (conn.closing.answered || conn.closing.discard)
    }

    fn cut_if_over(&mut self, link: Link, now: Ms) {
        let conn = &self.conns[link];
        if conn.state == State::Closing && conn.ended && self.is_flushed(link) {
            self.abort(link, now);
        }
    }

    /// The kernel holds so much for a closing peer: while it becomes less, the peer has its time.
    fn unsent(&mut self, link: Link, bytes: usize, now: Ms) {
        let timeout = self.limits.close_timeout_ms;
        let flushed = self.is_flushed(link);
        let conn = self.conn(link);
        if conn.state != State::Closing {
            return;
        }
        // Within a tick, a deadline may be met before the model expects it.
        let met = flushed && conn.stage_due.is_some_and(|due| due <= now);
        let closing = &mut conn.closing;
        let overdue = std::mem::take(&mut closing.overdue) || met;
        let sank = bytes < closing.unsent;
        closing.unsent = bytes;
        if sank || !overdue {
            closing.progress_at = now;
        }
        if overdue && (sank || (bytes > 0 && now - closing.progress_at < timeout)) {
            conn.stage_due = Some(now + timeout.min(LINGER_MS));
        } else if overdue {
            self.abort(link, now);
        }
    }

    // Output.

    fn progress(&mut self, link: Link, now: Ms) {
        let write_due = now + self.limits.write_timeout_ms;
        let close_due = now + self.limits.close_timeout_ms;
        let conn = self.conn(link);
        conn.write_due = conn.write_due.map(|_| write_due);
        if conn.state == State::Closing {
            conn.stage_due = conn.stage_due.map(|before| before.max(close_due));
        }
    }

    fn taken(&mut self, link: Link, bytes: &[u8], now: Ms) -> Vec<Seen> {
        let due = now + self.limits.close_timeout_ms;
        let (tight, names) = (self.tight, &mut self.names);
        let conn = Rc::make_mut(&mut self.conns[link]);
        if !bytes.is_empty() {
            conn.write_due = None;
        }
        let seen = conn.out.taken(link, bytes, tight, conn.binary, &conn.closing, names);
        let arrives = conn.state == State::HandingOver && conn.out.http.is_empty();
        if arrives {
            conn.stage_due = None;
        }
        if conn.state == State::Closing && !bytes.is_empty() {
            conn.stage_due = conn.stage_due.map(|before| before.max(due));
        }
        if conn.state == State::Closing && conn.out.got_close && conn.stage_due.is_none() {
            conn.stage_due = Some(due);
        }
        if arrives {
            self.arrive(link, now);
        }
        self.cut_if_over(link, now);
        seen
    }

    // Time.

    fn ping(&mut self, link: Link, now: Ms) {
        let due = now + self.limits.heartbeat_timeout_ms;
        let conn = self.conn(link);
        if conn.out.pings == 0 {
            conn.sent += 1;
            conn.out.pings += 1;
        }
        conn.pong_due = Some(conn.pong_due.map_or(due, |before| before.min(due)));
    }

    /// What the peer owes is due anew when it is read again.
    pub fn reads_again(&mut self, link: Link, now: Ms) {
        let pong = now + self.limits.heartbeat_timeout_ms;
        let message = now + self.limits.message_timeout_ms;
        let conn = self.conn(link);
        conn.paused = false;
        conn.pong_due = conn.pong_due.map(|due| due.max(pong));
        conn.message_due = conn.message_due.map(|due| due.max(message));
    }

    fn deadlines(&self, worker: usize) -> impl Iterator<Item = (Ms, Fire)> {
        let conns = self.conns.iter().enumerate().filter(move |(_, conn)| {
            conn.worker == worker && !matches!(conn.state, State::Closed | State::Mail)
        });
        let of_conns = conns.flat_map(|(link, conn)| {
            [
                (conn.write_due, Fire::Write(link)),
                (conn.stage_due, Fire::Stage(link)),
                (conn.message_due, Fire::Message(link)),
                (conn.pong_due, Fire::Pong(link)),
                (conn.ping_due, Fire::Ping(link)),
            ]
        });
        let ids = self.ids.iter().enumerate().filter(move |(_, id)| id.owner == worker);
        let of_ids = ids.map(|(number, id)| match id.tenure {
            Tenure::Grace { due } | Tenure::Probed { due, .. } => (Some(due), Fire::Id(number)),
            _ => (None, Fire::Id(number)),
        });
        of_conns.chain(of_ids).filter_map(|(due, fire)| due.map(|due| (due, fire)))
    }

    /// Deadlines that have passed, the earliest tick first.
    pub fn passed(&self, worker: usize, now: Ms) -> Vec<Fire> {
        let passed = self.deadlines(worker).filter(|(due, _)| has_passed(Some(*due), now));
        let mut passed: Vec<(Ms, Fire)> = passed.collect();
        passed.sort_by_key(|(due, _)| due.div_ceil(TICK_MS));
        passed.into_iter().map(|(_, fire)| fire).collect()
    }

    /// Deadlines that have passed, but whose tick is not over: they may be met or not.
    pub fn passing(&self, worker: usize, now: Ms) -> Vec<Fire> {
        let passing =
            self.deadlines(worker).filter(|(due, _)| *due <= now && !has_passed(Some(*due), now));
        passing.map(|(_, fire)| fire).collect()
    }

    /// When the relay must have been woken.
    pub fn next_deadline(&self, worker: usize) -> Option<(Ms, Fire)> {
        // No pong is awaited where memory was too short for the ping, and one that is gives the rest of a
        // message its time anew while its sender is not read for the rate.
        let certain = |fire: &Fire| match *fire {
            Fire::Pong(_) => !self.tight,
            Fire::Message(link) => !(self.tight && self.conns[link].slowed),
            _ => true,
        };
        let due = self.deadlines(worker).filter(|(_, fire)| certain(fire));
        due.map(|(due, fire)| (due.next_multiple_of(TICK_MS), fire)).min_by_key(|(due, _)| *due)
    }

    fn fire(&mut self, fire: Fire, now: Ms) {
        let passed = |due: Option<Ms>| due.is_some_and(|due| due <= now);
        match fire {
            Fire::Write(link) if passed(self.conns[link].write_due) => self.abort(link, now),
            Fire::Message(link) if passed(self.conns[link].message_due) => {
                if self.conns[link].slowed {
                    self.reads_again(link, now);
                    self.conn(link).paused = true;
                } else {
                    self.abort(link, now);
                }
            }
            Fire::Stage(link) if passed(self.conns[link].stage_due) => {
                let conn = &self.conns[link];
                if conn.state == State::Head && conn.partial_bytes() > 0 {
                    self.conn(link).out.http.push_back((408, Vec::new(), false));
                    self.hang_up(link, now);
                } else if conn.state == State::Closing
                    && !conn.closing.overdue
                    && self.is_flushed(link)
                {
                    let due = now + self.limits.close_timeout_ms.min(LINGER_MS);
                    let conn = self.conn(link);
                    conn.closing.overdue = true;
                    conn.stage_due = Some(due);
                } else {
                    self.abort(link, now);
                }
            }
            Fire::Pong(link) if passed(self.conns[link].pong_due) => {
                if self.conns[link].paused {
                    self.reads_again(link, now);
                    self.conn(link).paused = true;
                } else {
                    self.close(link, HEARTBEAT, Some(1001), false, now);
                }
            }
            Fire::Ping(link) if passed(self.conns[link].ping_due) => {
                self.ping(link, now);
                let due = self.next_ping(now);
                self.conn(link).ping_due = Some(due);
            }
            Fire::Id(id) => match self.ids[id].tenure.clone() {
                Tenure::Grace { due } if passed(Some(due)) => {
                    self.ids[id].set_free();
                    self.evict(id, NORMAL, now);
                }
                Tenure::Probed { holder, newcomers, due } if passed(Some(due)) => {
                    self.ids[id].tenure = Tenure::Free;
                    self.close(holder, HEARTBEAT, None, false, now);
                    self.take_over(id, &newcomers, now);
                }
                _ => {}
            },
            _ => {}
        }
    }
}
