//! The binaries and phones of one agent: what each sends, and that it gets what it should.

use crate::codec::{self, Envelope};
use crate::frame::{Frames, Label};
use crate::net::{Ended, Handle, Load, Net, Tag, Wire};
use crate::proc;
use crate::spec::{Counts, Play, Said, Spec, Told};
use hdrhistogram::Histogram;
use std::collections::VecDeque;
use std::io::Write as _;
use std::time::{Duration, Instant};

/// Connections that are being opened at a time: a storm, but one that fits a listener's backlog.
const OPENING_AT_A_TIME: usize = 256;

#[derive(Default)]
struct Binary {
    handle: Option<Handle>,
}

#[derive(Default)]
struct Phone {
    handle: Option<Handle>,
    /// The next question's number, of this connection.
    asked: u32,
    /// The next answer's number, of this connection.
    answered: u32,
    /// Frames that the binary has had from it, of this connection.
    heard: u32,
    /// Frames pushed to it, and those that it has confirmed.
    pushed: u32,
    confirmed: u32,
    conn_id: Option<String>,
    counted: u32,
}

/// One agent's load.
pub(crate) struct Crowd {
    spec: Spec,
    frames: Frames,
    binaries: Vec<Binary>,
    phones: Vec<Phone>,
    to_open: VecDeque<Tag>,
    opening: usize,
    /// A command whose answer waits for the last of them.
    answer_due: bool,
    started: bool,
    schedule: Option<Schedule>,
    counts: Counts,
    round_trips: Histogram<u64>,
    cpu_at_mark: Duration,
    pings_at_mark: u64,
    sources_used: usize,
}

/// When each phone asks next, in an open loop: one after the other, round and round.
struct Schedule {
    begun: Instant,
    gap: Duration,
    next: u64,
}

impl Crowd {
    pub(crate) fn new(spec: Spec) -> Self {
        let phones = spec.shape.phones_in_all() as usize;
        Self {
            frames: Frames::new(spec.size),
            binaries: (0..spec.shape.binaries).map(|_| Binary::default()).collect(),
            phones: (0..phones).map(|_| Phone::default()).collect(),
            to_open: VecDeque::new(),
            opening: 0,
            answer_due: false,
            started: false,
            schedule: None,
            counts: Counts::default(),
            // Three digits, up to a minute.
            round_trips: Histogram::new_with_bounds(1000, 60_000_000_000, 3)
                .unwrap_or_else(|_| unreachable!("the bounds are constant and valid")),
            cpu_at_mark: Duration::ZERO,
            pings_at_mark: 0,
            sources_used: 0,
            spec,
        }
    }

    fn binary_of(&self, phone: u32) -> u32 {
        phone / self.spec.shape.phones
    }

    /// The phone's number in the whole run, which its frames carry.
    fn label_id(&self, phone: u32) -> u32 {
        self.spec.first_binary * self.spec.shape.phones + phone
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
            Ok(handle) => match tag {
                Tag::Binary(binary) => {
                    if let Some(binary) = self.binaries.get_mut(binary as usize) {
                        binary.handle = Some(handle);
                    }
                }
                Tag::Phone(phone) => {
                    if let Some(phone) = self.phones.get_mut(phone as usize) {
                        let counted = phone.counted;
                        *phone = Phone { handle: Some(handle), counted, ..Phone::default() };
                    }
                }
            },
            Err(error) => fault(&format!("this machine cannot dial: {error}")),
        }
    }

    /// Sends the phone's next question, which was due at `due` (nanoseconds).
    fn ask(&mut self, net: &mut Net, phone: u32, due: u64) {
        let id = self.label_id(phone);
        let Some(state) = self.phones.get_mut(phone as usize) else { return };
        let Some(handle) = state.handle else { return };
        let label = Label { id, seq: state.asked, time: due };
        state.asked += 1;
        let frames = &self.frames;
        net.send(handle, frames.size(), |out| frames.write(label, out));
    }

    /// Begins what the play has the phone begin.
    fn begin(&mut self, net: &mut Net, phone: u32) {
        let now = net.now();
        match self.spec.play {
            Play::Closed { window } | Play::Churn { window, .. } => {
                (0..window).for_each(|_| self.ask(net, phone, now));
            }
            // So that its binary learns its name.
            Play::Push { .. } => self.ask(net, phone, now),
            Play::Open { .. } | Play::Idle => {}
        }
    }

    fn start(&mut self, net: &mut Net) {
        self.started = true;
        if let Play::Open { per_second } = self.spec.play {
            let gap = Duration::from_secs_f64(1.0 / per_second.max(0.001));
            self.schedule = Some(Schedule { begun: Instant::now(), gap, next: 0 });
        }
        for phone in 0..self.phones.len() as u32 {
            self.begin(net, phone);
        }
    }

    /// A frame of one of its phones has reached a binary.
    fn on_question(&mut self, net: &mut Net, handle: Handle, binary: u32, payload: &[u8]) {
        let (conn_id, frame) = match net.wire() {
            Wire::Floor { .. } => (None, payload),
            Wire::WebSocket => match codec::read_envelope(payload) {
                Some(Envelope::Frame { conn_id, frame }) => (Some(conn_id), frame),
                // A phone of this run has left.
                Some(Envelope::Closed { .. }) => return,
                None => return fault("the relay sent a binary what is no envelope"),
            },
        };
        let first = self.label_id(0);
        let label = crate::frame::read_label(frame);
        let phone = label.and_then(|label| label.id.checked_sub(first));
        let (Some(label), Some(phone)) = (label, phone) else {
            return fault("the relay brought a binary a frame that no phone sent");
        };
        if self.binary_of(phone) != binary {
            return fault("the relay brought a binary a frame of another binary's phone");
        }
        let Some(state) = self.phones.get_mut(phone as usize) else { return };
        // Frames of a connection that has ended since may still arrive; they begin at 0 again.
        if label.seq != state.heard && !matches!(self.spec.play, Play::Churn { .. }) {
            let heard = state.heard;
            return fault(&format!(
                "frame {} of phone {phone} at its binary, not {heard}",
                label.seq
            ));
        }
        state.heard = label.seq + 1;
        self.counts.messages += 1;
        if let Play::Push { window } = self.spec.play {
            state.conn_id = conn_id.map(|id| id.into_owned());
            state.confirmed = state.confirmed.max(label.seq * window.div_ceil(2));
            return self.push(net, handle, phone, window);
        }
        match conn_id {
            None => net.send(handle, frame.len(), |out| out.extend_from_slice(frame)),
            Some(id) => net.send(handle, codec::envelope_length(&id, frame.len()), |out| {
                codec::write_envelope(out, &id, |out| out.extend_from_slice(frame));
            }),
        }
    }

    /// Streams to one phone, as far ahead of its word as the window lets us.
    fn push(&mut self, net: &mut Net, handle: Handle, phone: u32, window: u32) {
        let id = self.label_id(phone);
        let now = net.now();
        let Some(state) = self.phones.get_mut(phone as usize) else { return };
        while state.pushed < state.confirmed + window {
            let label = Label { id, seq: state.pushed, time: now };
            state.pushed += 1;
            let frames = &self.frames;
            match &state.conn_id {
                None => net.send(handle, frames.size(), |out| frames.write(label, out)),
                Some(id) => net.send(handle, codec::envelope_length(id, frames.size()), |out| {
                    codec::write_envelope(out, id, |out| frames.write(label, out));
                }),
            }
        }
    }

    /// A frame of its binary has reached a phone.
    fn on_answer(&mut self, net: &mut Net, phone: u32, payload: &[u8]) {
        let id = self.label_id(phone);
        let Some(state) = self.phones.get_mut(phone as usize) else { return };
        let due = match self.frames.check(payload, id, state.answered) {
            Ok(due) => due,
            Err(wrong) => return fault(&format!("the relay brought phone {id} {wrong}")),
        };
        state.answered += 1;
        state.counted += 1;
        self.counts.messages += 1;
        self.round_trips.saturating_record(net.arrived().saturating_sub(due).max(1));
        let (answered, handle) = (state.answered, state.handle);
        match self.spec.play {
            Play::Closed { .. } => self.ask(net, phone, net.arrived()),
            Play::Churn { frames, .. } if answered >= frames => {
                let Some(handle) = handle else { return };
                let reset = net.random().is_multiple_of(4);
                if reset {
                    net.drop_conn(handle, true);
                    self.redial(net, phone);
                } else {
                    net.send_close(handle, 1000);
                }
            }
            Play::Churn { .. } => self.ask(net, phone, net.arrived()),
            Play::Push { window } if answered.is_multiple_of(window.div_ceil(2)) => {
                self.ask(net, phone, net.arrived());
            }
            Play::Push { .. } | Play::Open { .. } | Play::Idle => {}
        }
    }

    fn redial(&mut self, net: &mut Net, phone: u32) {
        self.to_open.push_back(Tag::Phone(phone));
        self.open_some(net);
    }

    fn count(&mut self, net: &Net) -> Counts {
        let mut counts = std::mem::take(&mut self.counts);
        counts.per_phone = self.phones.iter().map(|phone| phone.counted).collect();
        counts.round_trips = self
            .round_trips
            .iter_recorded()
            .map(|step| (step.value_iterated_to(), step.count_at_value()))
            .collect();
        let cpu = proc::cpu_time(std::process::id()).unwrap_or_default();
        counts.cpu_us = cpu.saturating_sub(self.cpu_at_mark).as_micros() as u64;
        counts.pings = net.pings() - self.pings_at_mark;
        counts
    }

    fn mark(&mut self, net: &Net) {
        self.counts = Counts::default();
        self.round_trips.reset();
        self.phones.iter_mut().for_each(|phone| phone.counted = 0);
        self.cpu_at_mark = proc::cpu_time(std::process::id()).unwrap_or_default();
        self.pings_at_mark = net.pings();
    }
}

impl Load for Crowd {
    fn on_open(&mut self, net: &mut Net, _: Handle, tag: Tag) {
        self.opening -= 1;
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
        // It dials again at once, maybe before the relay has seen that its last connection is gone.
        let own_end =
            matches!(&ended, Ended::Close { code: Some(1000 | 4429), .. } | Ended::Cut(_));
        match (self.spec.play, tag) {
            (Play::Churn { .. }, Tag::Phone(phone)) if own_end => self.redial(net, phone),
            _ => fault(&format!("{tag:?} of this run was {ended}")),
        }
    }

    fn on_turn(&mut self, net: &mut Net) -> Option<Instant> {
        loop {
            let count = self.phones.len() as u64;
            let schedule = self.schedule.as_mut()?;
            let due = schedule.begun + schedule.gap.mul_f64(schedule.next as f64);
            if due > Instant::now() {
                return Some(due);
            }
            let phone = (schedule.next % count.max(1)) as u32;
            schedule.next += 1;
            let due = net.nanos(due);
            self.ask(net, phone, due);
        }
    }

    fn on_command(&mut self, net: &mut Net, line: &str) -> bool {
        match serde_json::from_str(line) {
            Ok(Told::OpenBinaries) => {
                self.to_open = (0..self.binaries.len() as u32).map(Tag::Binary).collect();
                self.answer_due = true;
                self.open_some(net);
            }
            Ok(Told::OpenPhones) => {
                // Phone by phone of all binaries, as they would come.
                let (binaries, phones) = (self.spec.shape.binaries, self.spec.shape.phones);
                self.to_open = (0..phones)
                    .flat_map(|phone| (0..binaries).map(move |b| Tag::Phone(b * phones + phone)))
                    .collect();
                self.answer_due = true;
                self.open_some(net);
            }
            Ok(Told::Start) => {
                self.start(net);
                say(&Said::Done);
            }
            Ok(Told::Mark) => {
                self.mark(net);
                say(&Said::Done);
            }
            Ok(Told::Count) => say(&Said::Counts(Box::new(self.count(net)))),
            Ok(Told::Quit) => return false,
            Err(error) => fault(&format!("an agent was told nonsense: {error}")),
        }
        true
    }
}

fn say(what: &Said) {
    let mut out = std::io::stdout().lock();
    let line = serde_json::to_string(what).unwrap_or_default();
    // Who does not listen has ended the run.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Ends this agent: one wrong frame fails the run.
fn fault(what: &str) {
    say(&Said::Fault(what.to_owned()));
    std::process::exit(1);
}
