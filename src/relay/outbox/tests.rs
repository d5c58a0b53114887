//! The outbox against a plain list of frames.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

#[derive(Debug, Clone)]
enum Step {
    /// Only before the first frame.
    Http(usize),
    Text(usize),
    Ping(usize),
    Pong(usize),
    Take,
    /// The kernel takes this share of a write, in percent; 0 for nothing.
    Written(usize),
    DropPending,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop_oneof![9 => 0..300usize, 1 => 60_000..70_000usize].prop_map(Step::Text),
        1 => (0..=125usize).prop_map(Step::Ping),
        3 => (0..=125usize).prop_map(Step::Pong),
        6 => Just(Step::Take),
        6 => prop_oneof![1 => Just(100), 2 => 0..=100usize].prop_map(Step::Written),
        1 => Just(Step::DropPending),
    ]
}

/// Answers first, then everything else, as on a connection; a take or two may come between.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let http = prop_oneof![
        2 => (1..400usize).prop_map(Step::Http),
        1 => Just(Step::Take),
        1 => (0..=100usize).prop_map(Step::Written),
    ];
    (prop::collection::vec(http, 0..6), prop::collection::vec(step(), 0..60))
        .prop_map(|(http, rest)| [http, rest].concat())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Http,
    Text,
    Control,
}

struct Item {
    kind: Kind,
    bytes: Vec<u8>,
    /// Leaves only if the kernel has begun to take it.
    doomed: bool,
}

impl Item {
    fn new(kind: Kind, bytes: Vec<u8>) -> Self {
        Self { kind, bytes, doomed: false }
    }

    fn charge(&self) -> usize {
        match self.kind {
            Kind::Http => self.bytes.len(),
            _ => charge_of(frames::frame_extent(&self.bytes).unwrap().1),
        }
    }
}

/// The outbox as a list: what leaves, in which order, and what may overtake what.
#[derive(Default)]
struct Model {
    queue: VecDeque<Item>,
    /// Bytes of the first item that are gone.
    sent: usize,
    control: Vec<Item>,
    in_flight: bool,
    /// The last write was of pings and pongs, ahead of something else.
    overtook: bool,
}

impl Model {
    fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.control.is_empty() && !self.in_flight
    }

    /// The charge of all that is queued, and of that part of it which is sure to leave.
    fn charges(&self) -> (usize, usize) {
        let gone = match self.queue.front() {
            Some(Item { kind: Kind::Http, .. }) => self.sent,
            _ => 0,
        };
        let charge_of_all = |wanted: fn(&&Item) -> bool| {
            self.queue.iter().chain(&self.control).filter(wanted).map(Item::charge).sum::<usize>()
        };
        (charge_of_all(|_| true) - gone, charge_of_all(|item| !item.doomed) - gone)
    }

    /// Returns the charge of the pongs that this one replaces.
    fn push_control(&mut self, frame: Vec<u8>) -> usize {
        let mut replaced = 0;
        let waiting: usize = self.control.iter().map(|item| item.bytes.len()).sum();
        if waiting + frame.len() > CONTROL_BYTES {
            let pongs = self.control.iter().filter(|item| !is_ping(&item.bytes));
            replaced = pongs.map(Item::charge).sum();
            self.control.retain(|item| is_ping(&item.bytes));
        }
        self.control.push(Item::new(Kind::Control, frame));
        replaced
    }

    /// What may leave now, in this order; a write takes a part of it from the front.
    fn take(&mut self) -> Vec<u8> {
        if std::mem::take(&mut self.overtook) && !self.queue.is_empty() {
            return self.bytes_of(self.queue.len());
        }
        let begun = self.sent > 0 || self.queue.front().is_some_and(|i| i.kind == Kind::Http);
        if begun && !self.control.is_empty() {
            // Up to the place where pings and pongs go in.
            let http = self.queue.iter().take_while(|item| item.kind == Kind::Http).count();
            return self.bytes_of(http.max(1));
        }
        if !begun && !self.control.is_empty() {
            let leading = self.queue.iter().take_while(|i| i.kind == Kind::Control).count();
            let rest = self.queue.split_off(leading);
            self.overtook = !rest.is_empty();
            self.queue.extend(self.control.drain(..).chain(rest));
        }
        self.bytes_of(self.queue.len())
    }

    fn bytes_of(&self, items: usize) -> Vec<u8> {
        let all = self.queue.iter().take(items).flat_map(|item| &item.bytes);
        all.skip(self.sent).copied().collect()
    }

    fn written(&mut self, taken: usize) {
        self.in_flight = false;
        self.sent += taken;
        while let Some(first) = self.queue.front()
            && self.sent >= first.bytes.len()
        {
            self.sent -= first.bytes.len();
            self.queue.pop_front();
        }
        self.drop_doomed();
    }

    fn drop_pending(&mut self) {
        self.control.clear();
        for item in self.queue.iter_mut().filter(|item| item.kind != Kind::Http) {
            item.doomed = true;
        }
        if !self.in_flight {
            self.drop_doomed();
        }
    }

    fn drop_doomed(&mut self) {
        let mut begun = self.sent > 0;
        self.queue.retain_mut(|item| {
            if std::mem::take(&mut begun) {
                item.doomed = false;
            }
            !item.doomed
        });
    }
}

/// The outbox beside its model; what is charged and released is counted.
#[derive(Default)]
struct Pair {
    outbox: Outbox,
    spare: SpareBuffers,
    model: Model,
    out: Option<Write>,
    charged: usize,
    framed: bool,
    number: u8,
}

impl Pair {
    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        self.number = self.number.wrapping_add(1);
        let number = self.number;
        match *step {
            Step::Http(bytes) => {
                prop_assert!(!self.framed);
                let answer = Item::new(Kind::Http, vec![b'a' + number % 26; bytes]);
                self.outbox.push_http(&mut self.spare, &answer.bytes);
                self.charged += bytes;
                self.model.queue.push_back(answer);
            }
            Step::Text(bytes) => self.push_text(text(number, bytes), bytes),
            Step::Ping(bytes) => self.push_control(ping(number, bytes), bytes)?,
            Step::Pong(bytes) => self.push_control(pong(number, bytes), bytes)?,
            Step::Take => self.take()?,
            Step::Written(percent) => self.written(percent),
            Step::DropPending => {
                self.charged -= self.outbox.drop_pending();
                self.model.drop_pending();
            }
        }
        self.check()
    }

    fn push_text(&mut self, frame: Vec<u8>, payload_bytes: usize) {
        let length = frame.len();
        self.outbox.push_frame(&mut self.spare, length, payload_bytes, |out| out.extend(&frame));
        self.charged += charge_of(payload_bytes);
        self.framed = true;
        self.model.queue.push_back(Item::new(Kind::Text, frame));
    }

    fn push_control(&mut self, frame: Vec<u8>, payload: usize) -> Result<(), TestCaseError> {
        if is_ping(&frame) && self.outbox.has_ping() {
            return Ok(());
        }
        let released = self.outbox.push_control(&frame);
        self.framed = true;
        self.charged = self.charged + charge_of(payload) - released;
        prop_assert_eq!(self.model.push_control(frame), released);
        Ok(())
    }

    fn take(&mut self) -> Result<(), TestCaseError> {
        let (held_bytes, has_control) = (self.outbox.held_bytes(), self.outbox.has_control());
        let write = self.outbox.take_write();
        let grown = self.outbox.held_bytes() as i64 - held_bytes as i64;
        prop_assert!(grown == 0 || (has_control && grown < 0), "{grown} bytes more are held");
        if self.model.in_flight {
            prop_assert!(write.is_none(), "one write at a time");
            return Ok(());
        }
        let allowed = self.model.take();
        prop_assert_eq!(write.is_some(), !allowed.is_empty());
        if let Some(Write { buffer, from, to, .. }) = &write {
            prop_assert!(from < to && *to <= buffer.len());
            prop_assert!(allowed.starts_with(&buffer[*from..*to]), "not what comes next");
            self.model.in_flight = true;
            self.out = write;
        }
        Ok(())
    }

    fn written(&mut self, percent: usize) {
        let Some(Write { buffer, from, to, .. }) = self.out.take() else { return };
        let taken = (to - from) * percent / 100;
        self.charged -= self.outbox.on_written(&mut self.spare, buffer, taken);
        self.model.written(taken);
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let charged = self.outbox.charged();
        prop_assert_eq!(charged, self.charged, "charges less releases");
        let (all, staying) = self.model.charges();
        prop_assert!((staying..=all).contains(&charged), "{staying} <= {charged} <= {all}");
        let waiting = self.model.queue.iter().chain(&self.model.control);
        let pings = waiting.filter(|item| !item.doomed && is_ping(&item.bytes)).count();
        prop_assert!(pings <= usize::from(self.outbox.has_ping()), "{pings} pings");
        prop_assert_eq!(self.outbox.in_flight(), self.model.in_flight);
        prop_assert_eq!(self.outbox.is_empty(), self.model.is_empty());
        Ok(())
    }
}

fn text(number: u8, payload_bytes: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    frames::push_text_header(&mut frame, payload_bytes);
    frame.resize(frame.len() + payload_bytes, number);
    frame
}

fn ping(number: u8, payload_bytes: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    frames::push_ping(&mut frame, &vec![number; payload_bytes]);
    frame
}

fn pong(number: u8, payload_bytes: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    frames::push_pong(&mut frame, &vec![number; payload_bytes]);
    frame
}

/// The whole frames at the start of `wire`.
fn frames_of(mut wire: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some((header, payload)) = frames::frame_extent(wire) {
        let Some((frame, rest)) = wire.split_at_checked(header + payload) else { break };
        found.push(frame);
        wire = rest;
    }
    found
}

proptest! {
    /// Whole frames leave, messages in order and each once; pings and pongs overtake at the next
    /// boundary; what was dropped does not leave; what is charged is what waits.
    #[test]
    fn it_does_what_a_plain_list_would(steps in steps(), end_it in any::<bool>()) {
        let mut pair = Pair::default();
        for step in &steps {
            pair.step(step)?;
        }
        if end_it {
            prop_assert_eq!(pair.outbox.clear(), pair.charged);
            prop_assert!(pair.outbox.is_empty() && pair.outbox.charged() == 0);
            return Ok(());
        }
        while !pair.outbox.is_empty() {
            pair.step(&Step::Take)?;
            pair.step(&Step::Written(100))?;
        }
        prop_assert_eq!(pair.charged, 0);
    }
}

#[test]
fn a_ping_goes_ahead_of_what_waits_but_not_into_a_frame() {
    let frames = [text(1, 100), text(2, 100)];
    for taken in 0..=frames.concat().len() {
        let (mut outbox, mut spare) = (Outbox::default(), SpareBuffers::default());
        for frame in &frames {
            outbox.push_frame(&mut spare, frame.len(), 100, |buffer| buffer.extend(frame));
        }
        let write = outbox.take_write().unwrap();
        let mut wire = write.buffer[..taken].to_vec();
        outbox.push_control(&ping(9, 3));
        outbox.on_written(&mut spare, write.buffer, taken);
        while let Some(write) = outbox.take_write() {
            wire.extend(&write.buffer[write.from..write.to]);
            outbox.on_written(&mut spare, write.buffer, write.to - write.from);
        }
        let whole = taken.div_ceil(frames[0].len());
        let expected = [frames[..whole].concat(), ping(9, 3), frames[whole..].concat()];
        assert_eq!(wire, expected.concat(), "{taken}");
    }
}

#[test]
fn a_peer_that_pings_at_every_pong_keeps_nothing_back() {
    let (mut outbox, mut spare) = (Outbox::default(), SpareBuffers::default());
    let (first, second) = (text(1, 100), text(2, 70_000));
    for (frame, bytes) in [(&first, 100), (&second, 70_000)] {
        outbox.push_frame(&mut spare, frame.len(), bytes, |buffer| buffer.extend(frame));
    }
    let mut wire: Vec<u8> = Vec::new();
    for _ in 0..4 {
        outbox.push_control(&pong(9, 3));
        let write = outbox.take_write().unwrap();
        wire.extend(&write.buffer[write.from..write.to]);
        outbox.on_written(&mut spare, write.buffer, write.to - write.from);
    }
    let pongs = [pong(9, 3), pong(9, 3)].concat();
    assert_eq!(wire, [pong(9, 3), first, pongs, second].concat());
}

#[test]
fn what_one_turn_queues_leaves_in_one_write() {
    let (mut outbox, mut spare) = (Outbox::default(), SpareBuffers::default());
    let frames: Vec<_> = (0..100).map(|number| text(number, 200)).collect();
    for frame in &frames {
        outbox.push_frame(&mut spare, frame.len(), 200, |buffer| buffer.extend(frame));
    }
    let write = outbox.take_write().unwrap();
    assert_eq!(write.buffer[write.from..write.to], frames.concat());
}

#[test]
fn a_frame_is_charged_until_its_last_byte_is_taken() {
    let (mut outbox, mut spare) = (Outbox::default(), SpareBuffers::default());
    let frame = text(1, 1000);
    outbox.push_frame(&mut spare, frame.len(), 1000, |buffer| buffer.extend(&frame));
    assert_eq!(outbox.charged(), 1064);
    for sent in 1..frame.len() {
        let write = outbox.take_write().unwrap();
        assert_eq!(outbox.on_written(&mut spare, write.buffer, 1), 0, "{sent}");
        assert_eq!(outbox.charged(), 1064);
    }
    let write = outbox.take_write().unwrap();
    assert_eq!(outbox.on_written(&mut spare, write.buffer, 1), 1064);
    assert!(outbox.is_empty());
}

#[test]
fn what_is_dropped_while_a_write_is_out_tears_no_frame() {
    let frames = [text(1, 100), text(2, 100), text(3, 100)];
    for taken in 0..=frames.concat().len() {
        let (mut outbox, mut spare) = (Outbox::default(), SpareBuffers::default());
        for frame in &frames {
            outbox.push_frame(&mut spare, frame.len(), 100, |buffer| buffer.extend(frame));
        }
        let write = outbox.take_write().unwrap();
        let mut wire = write.buffer[..taken].to_vec();
        let mut released = outbox.drop_pending();
        let close = ping(9, 2);
        outbox.push_frame(&mut spare, close.len(), 2, |buffer| buffer.extend(&close));
        released += outbox.on_written(&mut spare, write.buffer, taken);
        while let Some(write) = outbox.take_write() {
            wire.extend(&write.buffer[write.from..write.to]);
            released += outbox.on_written(&mut spare, write.buffer, write.to - write.from);
        }
        assert_eq!(released, 3 * charge_of(100) + charge_of(2), "{taken}");
        let whole = taken.div_ceil(frames[0].len());
        assert_eq!(wire, [frames[..whole].concat(), close].concat(), "{taken}");
    }
}

#[test]
fn too_many_pongs_are_replaced_by_the_newest_and_pings_stay() {
    let (mut outbox, mut spare) = (Outbox::default(), SpareBuffers::default());
    let mut charged = charge_of(1);
    outbox.push_control(&ping(1, 1));
    for number in 0..100u8 {
        charged += charge_of(100);
        charged -= outbox.push_control(&pong(number, 100));
        assert!(charged < 2 * (CONTROL_BYTES + 12 * FRAME_OVERHEAD_BYTES));
    }
    assert_eq!(outbox.charged(), charged);
    let write = outbox.take_write().unwrap();
    let sent = frames_of(&write.buffer[write.from..write.to]);
    assert!(is_ping(sent[0]) && sent.last().unwrap().ends_with(&[99]));
    let length = write.to - write.from;
    assert_eq!(outbox.on_written(&mut spare, write.buffer, length), charged);
    assert!(outbox.is_empty());
}

#[test]
fn an_empty_outbox_holds_no_memory_and_has_nothing_to_write() {
    let (mut outbox, mut spare) = (Outbox::default(), SpareBuffers::default());
    assert!(outbox.take_write().is_none() && outbox.is_empty());
    outbox.push_http(&mut spare, b"HTTP/1.1 101 x\r\n\r\n");
    let write = outbox.take_write().unwrap();
    let length = write.buffer.len();
    assert_eq!(outbox.on_written(&mut spare, write.buffer, length), length);
    assert!(outbox.is_empty() && outbox.head.capacity() == 0);
}
