//! The binaries and phones of one agent: how they come and go, and what the controlling process
//! tells them. What they send each other stands in [`crate::play`].

use crate::frame::Frames;
use crate::net::{Load, Net};
use crate::peers::{Phone, Streams};
use crate::proc;
use crate::round_trips::RoundTrips;
use crate::spec::{Counts, Lap, Play, Said, Spec, Told};
use crate::wire::{Ended, Handle, Tag};
use std::collections::VecDeque;
use std::io::Write as _;
use std::time::{Duration, Instant};

/// Connections that are being opened at a time: a storm, but one that fits a listener's backlog.
const OPENING_AT_A_TIME: usize = 256;
/// How long a frame that came twice has to come once more after the last.
const LINGER: Duration = Duration::from_millis(100);
/// Questions of an open loop that are sent at once, at most, when it has fallen behind.
const CATCH_UP: usize = 64;

/// One agent's load.
pub(crate) struct Crowd {
    pub(crate) spec: Spec,
    pub(crate) frames: Frames,
    pub(crate) phones: Vec<Phone>,
    /// Where phones come and go.
    pub(crate) streams: Streams,
    pub(crate) counts: Counts,
    pub(crate) round_trips: RoundTrips,
    to_open: VecDeque<Tag>,
    opening: usize,
    last_upgrade: Instant,
    /// A command whose answer waits for the last of them.
    answer_due: bool,
    pub(crate) started: bool,
    stopping: Option<Stopping>,
    schedule: Option<Schedule>,
    late: RoundTrips,
    at_mark: (proc::Times, u64),
    sources_used: usize,
}

/// The end of the traffic, until nothing is under way.
struct Stopping {
    /// What was under way when it last became less.
    under_way: u64,
    since: Instant,
}

/// When each phone asks next, in an open loop: one after the other, round and round.
struct Schedule {
    begun: Instant,
    gap: Duration,
    burst: u64,
    next: u64,
}

impl Crowd {
    pub(crate) fn new(spec: Spec) -> Self {
        let phones = spec.shape.phones_in_all() as usize;
        Self {
            frames: Frames::new(spec.size),
            phones: (0..phones).map(|_| Phone::default()).collect(),
            streams: Streams::default(),
            counts: Counts::default(),
            round_trips: RoundTrips::default(),
            to_open: VecDeque::new(),
            opening: 0,
            last_upgrade: Instant::now(),
            answer_due: false,
            started: false,
            stopping: None,
            schedule: None,
            late: RoundTrips::default(),
            at_mark: Default::default(),
            sources_used: 0,
            spec,
        }
    }

    pub(crate) fn binary_of(&self, phone: u32) -> u32 {
        phone / self.spec.shape.phones
    }

    /// The phone's number in the whole run, which its frames carry.
    pub(crate) fn label_id(&self, phone: u32) -> u32 {
        self.spec.first_binary * self.spec.shape.phones + phone
    }

    /// Whether nothing new may be sent.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Dials some more of those that are to be opened.
    fn open_some(&mut self, net: &mut Net) {
        while self.opening < OPENING_AT_A_TIME
            && let Some(tag) = self.to_open.pop_front()
        {
            self.opening += 1;
            self.dial(net, tag);
        }
        if self.answer_due && self.opening == 0 && self.to_open.is_empty() {
            self.answer_due = false;
            say(&Said::Done);
        }
    }

    fn dial(&mut self, net: &mut Net, tag: Tag) {
        let (group, phone) = match tag {
            Tag::Binary(binary) => (binary, None),
            Tag::Phone(phone) => (self.binary_of(phone), Some(self.label_id(phone))),
        };
        let group = self.spec.first_binary + group;
        let id = format!("{}-{group}", self.spec.run);
        let source = match self.spec.sources.len() {
            0 => None,
            count => self.spec.sources.get(self.sources_used % count).copied(),
        };
        self.sources_used += 1;
        match net.open(tag, &id, group, phone, source) {
            Ok(handle) => {
                if let Tag::Phone(phone) = tag
                    && let Some(phone) = self.phones.get_mut(phone as usize)
                {
                    phone.renew(Some(handle));
                }
            }
            Err(error) => fault(&format!("this machine's fault: it cannot dial {tag}: {error}")),
        }
    }

    /// Dials all of these, and answers when the last is upgraded.
    fn open_all(&mut self, net: &mut Net, tags: impl Iterator<Item = Tag>) {
        self.to_open.extend(tags);
        self.answer_due = true;
        self.last_upgrade = Instant::now();
        self.open_some(net);
    }

    pub(crate) fn redial(&mut self, net: &mut Net, phone: u32) {
        if let Some(state) = self.phones.get_mut(phone as usize) {
            state.renew(None);
        }
        if self.opening == 0 {
            self.last_upgrade = Instant::now();
        }
        self.to_open.push_back(Tag::Phone(phone));
        self.open_some(net);
    }

    /// Ends all phones by a reset, which leaves no port resting.
    fn cut_phones(&mut self, net: &mut Net) {
        for phone in &mut self.phones {
            if let Some(handle) = phone.handle.take() {
                net.drop_conn(handle, true);
            }
            phone.renew(None);
        }
        say(&Said::Done);
    }

    fn start(&mut self, net: &mut Net) {
        self.started = true;
        if let Play::Open { per_second, burst } = self.spec.play {
            let gap = Duration::from_secs_f64(1.0 / per_second.max(0.001));
            self.schedule = Some(Schedule {
                begun: Instant::now(),
                gap,
                burst: u64::from(burst.max(1)),
                next: 0,
            });
        }
        for phone in 0..self.phones.len() as u32 {
            self.begin(net, phone);
        }
    }

    fn stop(&mut self) {
        self.schedule = None;
        self.stopping = Some(Stopping { under_way: u64::MAX, since: Instant::now() });
    }

    /// Looks whether everything under way has arrived, and says so; something lost never does.
    fn check_stopping(&mut self, now: Instant) -> Option<Instant> {
        let pushing = matches!(self.spec.play, Play::Push { .. });
        let stopping = self.stopping.as_mut()?;
        let under_way = self.phones.iter().map(|phone| phone.under_way(pushing)).sum::<u64>();
        if under_way < stopping.under_way {
            *stopping = Stopping { under_way, since: now };
        }
        let quiet = now.saturating_duration_since(stopping.since);
        if under_way == 0 && quiet >= LINGER {
            self.stopping = None;
            self.started = false;
            say(&Said::Done);
            return None;
        }
        if quiet > self.spec.patience {
            fault(&format!(
                "the relay's fault: {under_way} frames are lost: nothing came for {:.0} s after \
                 the last was sent",
                self.spec.patience.as_secs_f64()
            ));
        }
        Some(now + Duration::from_millis(10))
    }

    /// Faults a relay that leaves upgrades unanswered.
    fn check_opening(&self, now: Instant) -> Option<Instant> {
        if self.opening == 0 {
            return None;
        }
        let deadline = self.last_upgrade + self.spec.patience;
        if now > deadline {
            fault(&format!(
                "the relay's fault: {} connections are not upgraded, {:.0} s after the last one was",
                self.opening,
                self.spec.patience.as_secs_f64()
            ));
        }
        Some(deadline)
    }

    /// Asks whatever is due by the schedule; returns when the next question is.
    fn ask_what_is_due(&mut self, net: &mut Net) -> Option<Instant> {
        let count = self.phones.len() as u64;
        for _ in 0..CATCH_UP {
            let schedule = self.schedule.as_mut()?;
            let turn = schedule.next - schedule.next % schedule.burst;
            let due = schedule.begun + schedule.gap.mul_f64(turn as f64);
            let now = Instant::now();
            if due > now {
                return Some(due);
            }
            let phone = (schedule.next % count.max(1)) as u32;
            schedule.next += 1;
            self.late.record((now - due).as_nanos() as u64);
            let due = net.nanos(due);
            self.ask(net, phone, due);
        }
        Some(Instant::now())
    }

    fn count(&mut self, net: &Net) -> Counts {
        let mut counts = std::mem::take(&mut self.counts);
        counts.per_phone = self.phones.iter().map(|phone| phone.counted).collect();
        counts.round_trips = self.round_trips.pairs();
        counts.late = self.late.pairs();
        let used = own_times().since(self.at_mark.0);
        counts.cpu_us = used.cpu.as_micros() as u64;
        counts.waited_us = used.waited.as_micros() as u64;
        counts.pings = net.pings() - self.at_mark.1;
        counts
    }

    /// What has arrived since the last lap.
    fn lap(&mut self) -> Lap {
        let counts = std::mem::take(&mut self.counts);
        let round_trips = self.round_trips.pairs();
        self.round_trips.reset();
        Lap { messages: counts.messages, cut_handshakes: counts.cut_handshakes, round_trips }
    }

    fn mark(&mut self, net: &Net) {
        self.counts = Counts::default();
        self.round_trips.reset();
        self.late.reset();
        self.phones.iter_mut().for_each(|phone| phone.counted = 0);
        self.at_mark = (own_times(), net.pings());
    }
}

impl Load for Crowd {
    fn on_open(&mut self, net: &mut Net, _: Handle, tag: Tag) {
        self.opening -= 1;
        self.last_upgrade = Instant::now();
        self.counts.upgrades += 1;
        if let (Tag::Phone(phone), true) = (tag, self.started) {
            self.begin(net, phone);
        }
        self.open_some(net);
    }

    fn on_text(&mut self, net: &mut Net, handle: Handle, tag: Tag, payload: &[u8]) {
        match tag {
            Tag::Binary(binary) => self.on_question(net, handle, binary, payload),
            Tag::Phone(phone) => self.on_answer(net, phone, payload),
        }
    }

    fn on_ended(&mut self, net: &mut Net, _: Handle, tag: Tag, ended: Ended) {
        let number = match tag {
            Tag::Phone(phone) | Tag::Binary(phone) => phone as usize,
        };
        if let (Tag::Phone(phone), Ended::Unanswered(_), true) = (tag, &ended, self.spec.upgrades) {
            self.opening -= 1;
            self.counts.cut_handshakes += 1;
            return self.redial(net, phone);
        }
        let leaving = self.phones.get(number).is_some_and(|phone| phone.leaving);
        let expected = match &ended {
            Ended::Close { code: Some(1000), .. } | Ended::Cut(_) => leaving,
            // It dialled again before the relay saw that its last connection was gone.
            Ended::Close { code: Some(4429), .. } => true,
            _ => false,
        };
        match (self.spec.play, tag) {
            (Play::Churn { .. }, Tag::Phone(phone)) if expected => self.redial(net, phone),
            (_, Tag::Phone(phone)) => {
                fault(&format!("the relay's fault: phone {} was {ended}", self.label_id(phone)));
            }
            (_, Tag::Binary(binary)) => {
                let binary = self.spec.first_binary + binary;
                fault(&format!("the relay's fault: binary {binary} was {ended}"));
            }
        }
    }

    fn on_turn(&mut self, net: &mut Net) -> Option<Instant> {
        let scheduled = self.ask_what_is_due(net);
        if self.opening == 0 && self.stopping.is_none() {
            return scheduled;
        }
        let now = Instant::now();
        let next = [scheduled, self.check_opening(now), self.check_stopping(now)];
        next.into_iter().flatten().min()
    }

    fn on_command(&mut self, net: &mut Net, line: &str) -> bool {
        match serde_json::from_str(line) {
            Ok(Told::OpenBinaries) => {
                self.open_all(net, (0..self.spec.shape.binaries).map(Tag::Binary));
            }
            Ok(Told::OpenPhones) => {
                // Phone by phone of all binaries, as they would come.
                let (binaries, phones) = (self.spec.shape.binaries, self.spec.shape.phones);
                let of_all =
                    move |phone| (0..binaries).map(move |b| Tag::Phone(b * phones + phone));
                self.open_all(net, (0..phones).flat_map(of_all));
            }
            Ok(Told::CutPhones) => self.cut_phones(net),
            Ok(Told::Start) => {
                self.start(net);
                say(&Said::Done);
            }
            Ok(Told::Mark) => {
                self.mark(net);
                say(&Said::Done);
            }
            Ok(Told::Lap) => say(&Said::Lap(self.lap())),
            Ok(Told::AskAll) => {
                let now = net.now();
                (0..self.phones.len() as u32).for_each(|phone| self.ask(net, phone, now));
                say(&Said::Done);
            }
            Ok(Told::Progress) => say(&Said::Progress { messages: self.counts.messages }),
            Ok(Told::Handshakes) => say(&Said::Handshakes(net.handshakes().clone())),
            Ok(Told::Count) => say(&Said::Counts(Box::new(self.count(net)))),
            Ok(Told::Stop) => self.stop(),
            Err(error) => fault(&format!("this tool's own fault: `{line}` told: {error}")),
        }
        true
    }
}

fn own_times() -> proc::Times {
    proc::times(std::process::id()).unwrap_or_default()
}

fn say(what: &Said) {
    let mut out = std::io::stdout().lock();
    let line = serde_json::to_string(what).unwrap_or_default();
    // Who does not listen has ended the run.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Ends this agent: one wrong frame fails the run.
pub(crate) fn fault(what: &str) {
    say(&Said::Fault(what.to_owned()));
    std::process::exit(1);
}
