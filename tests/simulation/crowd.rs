//! The peers: what they say, how they answer, and how they misbehave.

use crate::model::{FRAME_OVERHEAD, Link, Seen, Who};
use crate::rng::Rng;
use crate::scenario::Scenario;
use crate::wire::{self, Item, Msg, Payload};
use crate::world::{At, World, note};
use std::rc::Rc;

/// One end of a connection that is not the relay's.
struct Peer {
    binary: bool,
    id: usize,
    asked: bool,
    switched: bool,
    answers_pings: bool,
    answers_close: bool,
    /// Says nothing more.
    silent: bool,
    /// A fragmented message that is not finished: what remains of it.
    open: Option<(Vec<u8>, Msg, usize)>,
    /// Phones that it has heard of.
    known: Vec<Rc<str>>,
}

pub struct Crowd {
    pub world: World,
    peers: Vec<Peer>,
    serial: u64,
}

impl Crowd {
    pub fn new(world: World) -> Self {
        Self { world, peers: Vec::new(), serial: 0 }
    }

    /// The whole run. `restarts` says whether other processes take over, and when.
    pub fn run(&mut self, restarts: &mut Rng) {
        for step in 0..self.world.scenario.steps {
            if self.world.scenario.shut_down_at == Some(step) {
                note!(self.world, "the process is asked to stop");
                self.world.shut_down();
            }
            self.step();
        }
        if self.world.scenario.shut_down_at.is_none() && self.world.rng.percent(30) {
            self.be_operated();
        }
        if self.world.scenario.shut_down_at.is_none() && restarts.percent(50) {
            self.be_restarted(restarts);
        }
        if self.world.rng.percent(50) {
            self.calm_down();
        }
        self.leave();
    }

    /// Life goes on while the operator ends connections, and writes are sent in parts. At the end of a
    /// run, so that what a seed does before is what it did without.
    fn be_operated(&mut self) {
        note!(self.world, "the operator is at work");
        self.world.writes_go_on = true;
        for _ in 0..self.world.rng.range(20, 120) {
            if self.world.rng.percent(12) {
                self.world.operator_acts();
            }
            self.step();
        }
        self.world.writes_go_on = false;
    }

    /// Life goes on while one process after the other takes over. At the end of a run, as the
    /// operator's work is, and for as long as the rest.
    fn be_restarted(&mut self, restarts: &mut Rng) {
        self.world.writes_go_on = restarts.percent(30);
        for _ in 0..restarts.range(60, 360) {
            if restarts.percent(5) {
                let same = self.world.workers.len();
                let count = if restarts.percent(60) { same } else { restarts.range(1, 4) as usize };
                self.world.restart(count, restarts.percent(10));
                self.react();
            }
            self.step();
        }
        self.world.writes_go_on = false;
    }

    fn live(&self) -> Vec<Link> {
        let sockets = self.world.sockets.iter().enumerate();
        sockets.filter(|(_, socket)| socket.at != At::Gone).map(|(link, _)| link).collect()
    }

    fn step(&mut self) {
        let scenario = &self.world.scenario;
        let (pass, pass_ms) = (scenario.pass_percent, scenario.pass_ms);
        let live = self.live();
        match self.world.rng.range(0, 99) {
            roll if roll < pass => {
                if self.world.rng.percent(70) {
                    self.drain();
                }
                let ms = self.world.rng.range(1, pass_ms);
                self.world.pass(ms);
            }
            20..32 if live.len() < self.world.scenario.max_live => self.connect(),
            32..64 => self.talk(&live),
            64..68 => {
                let mail = self.world.mail();
                if let Some((to, from)) = self.world.rng.pick(&mail).copied() {
                    self.world.deliver_mail(to, from);
                }
            }
            68..71 => self.misbehave(&live),
            _ => {
                let ready: Vec<Link> =
                    live.into_iter().filter(|link| self.world.has_events(*link)).collect();
                if let Some(link) = self.world.rng.pick(&ready).copied() {
                    let whole = self.world.rng.percent(50);
                    self.world.socket_event(link, whole);
                }
            }
        }
        self.react();
    }

    fn connect(&mut self) {
        let scenario = &self.world.scenario;
        let (workers, ids, bad) = (scenario.workers, scenario.ids, scenario.bad_percent);
        let addresses = scenario.addresses;
        let rng = &mut self.world.rng;
        let (worker, id) = (rng.below(workers), rng.below(ids));
        let binary = rng.percent(35);
        let who = Who { binary, id, address: rng.below(addresses) };
        let bad = rng.percent(bad);
        let (answers_pings, answers_close) =
            if bad { (rng.percent(40), rng.percent(50)) } else { (true, true) };
        let Some(link) = self.world.connect(worker, who) else { return };
        self.peers.push(Peer {
            binary,
            id,
            asked: false,
            switched: false,
            answers_pings,
            answers_close,
            silent: bad && self.world.rng.percent(5),
            open: None,
            known: Vec::new(),
        });
        if self.world.rng.percent(90) {
            self.say(link);
            // More than the head may come with it.
            while self.world.rng.percent(25) {
                self.say(link);
            }
        }
        if self.world.rng.percent(60) {
            self.world.socket_event(link, true);
        }
    }

    fn may_speak(&self, link: Link) -> bool {
        let socket = &self.world.sockets[link];
        socket.at != At::Gone && !socket.fin && !socket.reset && !self.peers[link].silent
    }

    fn talk(&mut self, live: &[Link]) {
        let Some(link) = self.world.rng.pick(live).copied() else { return };
        if self.peers[link].switched && self.world.rng.percent(8) && self.fill_memory(link) {
            return;
        }
        let early = self.world.rng.percent(30);
        if self.peers[link].switched || !self.peers[link].asked || early {
            self.say(link);
        }
        if self.world.scenario.fat && self.peers[link].switched {
            for _ in 0..4 {
                self.say(link);
            }
        }
    }

    /// A phone's message for which the memory budget lacks exactly one byte, or just none.
    fn fill_memory(&mut self, link: Link) -> bool {
        let Some(room) = self.world.room_bytes() else { return false };
        let frame = r#"{"conn_id":"","frame":}"#.len() + 32;
        let missing = self.world.rng.below(2) as u64;
        let length = (room + missing) as usize;
        let fits = length.checked_sub(frame + FRAME_OVERHEAD).filter(|bytes| *bytes > 40);
        let idle = !self.peers[link].binary && self.peers[link].open.is_none();
        let (Some(bytes), true, true) = (fits, idle, self.may_speak(link)) else { return false };
        if !self.world.sockets[link].inbound.is_empty() {
            return false;
        }
        self.serial += 1;
        let start = format!("{{\"n\":{},\"x\":\"", self.serial);
        let filler = "x".repeat(bytes - start.len() - 2);
        let value: Payload = format!("{start}{filler}\"}}").into_bytes().into();
        self.send(link, wire::TEXT, &value.clone(), Item::Data(Msg::Json(value), bytes));
        self.world.socket_event(link, true);
        true
    }

    /// One utterance: a request, a frame, a message.
    fn say(&mut self, link: Link) {
        if !self.may_speak(link) {
            return;
        }
        if !self.peers[link].asked {
            return self.ask(link);
        }
        if self.peers[link].open.is_some() && self.world.rng.percent(60) {
            return self.go_on(link);
        }
        let binary = self.peers[link].binary;
        match self.world.rng.range(0, 99) {
            0..8 => {
                let rng = &mut self.world.rng;
                let most = if rng.percent(90) { 20 } else { 126 };
                let payload: Vec<u8> = (0..rng.below(most)).map(|_| rng.next() as u8).collect();
                self.send(link, wire::PING, &payload, Item::Ping(payload.clone().into()));
            }
            8..11 => {
                let number = (self.world.rng.below(6) as u32).to_be_bytes();
                let payload = &number[..self.world.rng.below(5)];
                self.send(link, wire::PONG, payload, Item::Pong(payload.into()));
            }
            11..14 if self.peers[link].open.is_none() => {
                let code =
                    *self.world.rng.pick(&[None, Some(1000), Some(1001), Some(4321)]).unwrap();
                self.say_close(link, code);
            }
            14 if self.peers[link].open.is_none() => self.breach(link),
            _ if self.peers[link].open.is_some() => {}
            _ => {
                let (bytes, msg) = if binary { self.envelope(link) } else { self.phone_message() };
                self.send_message(link, bytes, msg);
            }
        }
    }

    fn ask(&mut self, link: Link) {
        let (binary, id) = (self.peers[link].binary, Scenario::id(self.peers[link].id));
        match self.world.rng.range(0, 99) {
            0..10 => {
                let head_only = self.world.rng.percent(30);
                let method = if head_only { "HEAD" } else { "GET" };
                let head = format!("{method} /healthz HTTP/1.1\r\nHost: a\r\n\r\n");
                self.world.send(link, head.as_bytes(), Item::Health { head_only });
            }
            10..13 => {
                let (head, status) = *self
                    .world
                    .rng
                    .pick(&[
                        ("GET /v2/server HTTP/1.1\r\nHost: a\r\n\r\n", 404),
                        ("GET /v1/server HTTP/1.1\r\nHost: a\r\n\r\n", 400),
                        (
                            "GET /v1/client HTTP/1.1\r\nHost: a\r\nX-Pyrycode-Server: id-0\r\n\
                             X-Pyrycode-Token: t\r\nUser-Agent: sim\r\n\r\n",
                            426,
                        ),
                    ])
                    .unwrap();
                self.world.send(link, head.as_bytes(), Item::Refused(status));
                self.peers[link].silent = true;
            }
            _ => {
                self.world.send(link, &wire::upgrade_head(binary, &id), Item::Upgrade);
                self.peers[link].asked = true;
            }
        }
    }

    fn send(&mut self, link: Link, opcode: u8, payload: &[u8], item: Item) {
        let frame = wire::frame(&mut self.world.rng, opcode, true, payload);
        self.world.send(link, &frame, item);
    }

    fn say_close(&mut self, link: Link, code: Option<u16>) {
        let payload = code.map(u16::to_be_bytes);
        let payload = payload.as_ref().map_or(&[][..], |code| &code[..]);
        self.send(link, wire::CLOSE, payload, Item::Close(code));
        self.peers[link].silent = true;
    }

    fn breach(&mut self, link: Link) {
        let (bytes, code): (&[u8], u16) = *self
            .world
            .rng
            .pick(&[
                (&b"\xc1\x80\0\0\0\0"[..], 1002),
                (b"\x83\x80\0\0\0\0", 1002),
                (b"\x80\x80\0\0\0\0", 1002),
                (b"\x81\x82\0\0\0\0\xc3(", 1007),
                (b"\x81\xff\0\0\0\0\0\x04\0\x01\0\0\0\0", 1009),
            ])
            .unwrap();
        self.world.send(link, bytes, Item::Breach(code));
        self.peers[link].silent = true;
    }

    fn send_message(&mut self, link: Link, bytes: Vec<u8>, msg: Msg) {
        let opcode = if self.world.rng.percent(15) { wire::BINARY } else { wire::TEXT };
        let length = bytes.len();
        if !self.world.rng.percent(12) {
            return self.send(link, opcode, &bytes, Item::Data(msg, length));
        }
        let cut = self.world.rng.below(length);
        let frame = wire::frame(&mut self.world.rng, opcode, false, &bytes[..cut]);
        self.world.send(link, &frame, Item::Fragment(cut));
        self.peers[link].open = Some((bytes[cut..].to_vec(), msg, length));
    }

    /// Goes on with a fragmented message.
    fn go_on(&mut self, link: Link) {
        let Some((rest, msg, length)) = self.peers[link].open.take() else { return };
        if self.world.rng.percent(60) {
            let frame = wire::frame(&mut self.world.rng, 0, true, &rest);
            return self.world.send(link, &frame, Item::Data(msg, length));
        }
        let cut = self.world.rng.below(rest.len());
        let frame = wire::frame(&mut self.world.rng, 0, false, &rest[..cut]);
        self.world.send(link, &frame, Item::Fragment(cut));
        self.peers[link].open = Some((rest[cut..].to_vec(), msg, length));
    }

    /// A JSON value that nobody else has sent.
    fn value(&mut self) -> Payload {
        self.serial += 1;
        let serial = self.serial;
        let scenario = &self.world.scenario;
        let (fat, tight) = (scenario.fat, scenario.tight);
        let rng = &mut self.world.rng;
        let filler = match rng.below(10) {
            _ if fat => rng.range(30_000, 120_000),
            0 if tight => rng.range(1000, 20_000),
            0 => rng.range(100, 3000),
            1..=3 => rng.range(1, 200),
            _ => 0,
        };
        let value = match filler {
            0 => format!("{serial}"),
            _ => format!("{{\"n\":{serial},\"x\":\"{}\"}}", "x".repeat(filler as usize)),
        };
        value.into_bytes().into()
    }

    fn spaced(&mut self, value: &[u8]) -> Vec<u8> {
        let spaces = ["", " ", "\n", "\t \r\n"];
        let before = self.world.rng.pick(&spaces).unwrap().as_bytes();
        let after = self.world.rng.pick(&spaces).unwrap().as_bytes();
        [before, value, after].concat()
    }

    fn phone_message(&mut self) -> (Vec<u8>, Msg) {
        if self.world.rng.percent(3) {
            return (b"{\"n\":1,}".to_vec(), Msg::NotJson);
        }
        let value = self.value();
        (self.spaced(&value), Msg::Json(value))
    }

    /// One of the phones that this binary has heard of, or one that is none of its business.
    fn somebody(&mut self, link: Link) -> Rc<str> {
        let foreign = self.world.rng.percent(12);
        let of = if foreign { self.world.rng.below(self.peers.len()) } else { link };
        let known = &self.peers[of].known;
        match self.world.rng.pick(known) {
            Some(name) => name.clone(),
            None => "00000000000000000000000000000000".into(),
        }
    }

    fn envelope(&mut self, link: Link) -> (Vec<u8>, Msg) {
        let to = self.somebody(link);
        let code =
            *self.world.rng.pick(&[1000, 1001, 1005, 1011, 2999, 4000, 4999, 65535]).unwrap();
        match self.world.rng.range(0, 99) {
            0..6 => (
                format!("{{\"close_code\":{code},\"conn_id\":\"{to}\",\"frame\":null}}").into(),
                Msg::Close { to, code },
            ),
            6..14 => {
                let nothing: [&str; 5] = [
                    "no JSON",
                    "[]",
                    "{\"frame\":1}",
                    "{\"push_wake\":{\"platform\":\"fcm\",\"token\":\"t\"}}",
                    "{\"conn_id\":\"x\"}",
                ];
                (self.world.rng.pick(&nothing).unwrap().as_bytes().to_vec(), Msg::Nothing)
            }
            roll => {
                let frame = self.value();
                let code = if roll < 22 { code } else { 0 };
                let text = std::str::from_utf8(&frame).unwrap();
                let text = match code {
                    0 => format!("{{\"conn_id\":\"{to}\",\"frame\":{text}}}"),
                    _ => {
                        format!("{{\"frame\": {text} ,\"conn_id\":\"{to}\",\"close_code\":{code}}}")
                    }
                };
                (text.into_bytes(), Msg::Frame { to, frame, code })
            }
        }
    }

    /// Peers answer to what has reached them.
    fn react(&mut self) {
        for (link, seen) in self.world.take_seen() {
            note!(self.world, "{link} sees {seen:?}");
            match seen {
                Seen::Switched => self.peers[link].switched = true,
                Seen::Ping(payload) => {
                    if self.peers[link].answers_pings && self.may_speak(link) {
                        self.send(link, wire::PONG, &payload.clone(), Item::Pong(payload));
                    }
                }
                Seen::ConnId(name) => {
                    let known = &mut self.peers[link].known;
                    if !known.contains(&name) {
                        known.push(name);
                    }
                }
                Seen::Closed(code) => {
                    if self.peers[link].answers_close && self.may_speak(link) {
                        self.say_close(link, code);
                    }
                    self.peers[link].silent = true;
                    if self.peers[link].answers_close && self.world.rng.percent(70) {
                        self.world.sockets[link].fin = true;
                    }
                }
            }
        }
    }

    fn misbehave(&mut self, live: &[Link]) {
        let Some(link) = self.world.rng.pick(live).copied() else { return };
        let roll = self.world.rng.range(0, 99);
        note!(self.world, "{link} misbehaves: {roll}");
        match roll {
            0..20 => self.world.sockets[link].fin = true,
            20..32 => self.vanish_amid_a_frame(link),
            32..50 => self.reset(link),
            50..70 => self.world.sockets[link].reading ^= true,
            70..85 => self.world.sockets[link].stalled ^= true,
            _ => self.peers[link].answers_pings ^= true,
        }
    }

    /// Ends with only part of what it has sent.
    fn vanish_amid_a_frame(&mut self, link: Link) {
        let socket = &self.world.sockets[link];
        if socket.at == At::Mail {
            return;
        }
        let there = socket.inbound.len();
        let mut kept = self.world.rng.range(0, there as u64) as usize;
        let delivered = self.world.model.conns[link].delivered;
        for (start, end, item) in &self.world.model.conns[link].items {
            if matches!(item, Item::Breach(_))
                && (*start..*end).contains(&(delivered + kept as u64))
            {
                kept = start.saturating_sub(delivered) as usize;
            }
        }
        let socket = &mut self.world.sockets[link];
        socket.inbound.truncate(kept);
        socket.fin = true;
        socket.sent_end = delivered + kept as u64;
        let end = socket.sent_end;
        self.world.model.conn(link).items.retain(|item| item.1 <= end);
    }

    fn reset(&mut self, link: Link) {
        let socket = &mut self.world.sockets[link];
        socket.reset = true;
        socket.inbound.clear();
    }

    /// Lets everything happen that can, without time passing; peers on bad lines excepted.
    fn drain(&mut self) {
        for _ in 0..2000 {
            let mail = self.world.mail();
            let live = self.live();
            let mut ready = live.into_iter().filter(|link| self.world.has_events(*link)).peekable();
            if ready.peek().is_none() && mail.is_empty() {
                self.world.end_turns();
                let live = self.live();
                let idle = !live.into_iter().any(|link| self.world.has_events(link));
                if idle && self.world.mail().is_empty() {
                    return;
                }
                continue;
            }
            for link in ready.collect::<Vec<_>>() {
                let whole = self.world.rng.percent(85);
                self.world.socket_event(link, whole);
            }
            for (to, from) in mail {
                self.world.deliver_mail(to, from);
            }
            self.react();
        }
        panic!("[actions] something happens for ever");
    }

    /// Everybody reads and answers, and nothing is left under way.
    fn calm_down(&mut self) {
        note!(self.world, "everybody reads");
        for socket in &mut self.world.sockets {
            socket.reading = true;
            socket.stalled = false;
        }
        self.drain();
    }

    /// Everybody leaves; what is left is only for time to end.
    fn leave(&mut self) {
        note!(self.world, "everybody leaves");
        let style = self.world.rng.below(3);
        for link in self.live() {
            self.peers[link].silent = true;
            let socket = &mut self.world.sockets[link];
            socket.reading = true;
            socket.stalled = false;
            if style == 0 || (style == 1 && self.world.rng.percent(50)) {
                self.reset(link);
            } else {
                socket.fin = true;
            }
        }
        for _ in 0..10_000 {
            self.drain();
            let Some(wake) = self.world.next_wake() else { break };
            let ms = wake.saturating_sub(self.world.now);
            self.world.pass(ms);
        }
        let deserted = self.world.is_deserted();
        crate::check!(deserted, "empty", "somebody is still there");
        self.world.check_empty();
    }
}
