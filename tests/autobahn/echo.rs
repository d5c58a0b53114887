//! A WebSocket echo server made of the relay's own parts, for conformance suites to talk to.
//!
//! The relay never echoes: it takes JSON from phones and sends text only. This server is the
//! relay's worker with another core: its ring, receive buffers and listener, its request heads,
//! frame decoder, frame encoders and outbox, and the least there can be in between. It answers
//! text with text and binary with binary, on any path, and takes messages of up to 32 MiB.
//!
//! `cargo run --example echo -- 127.0.0.1:0` prints the address that it listens on.

use pyrycode_relay::config::{Limits, RingFeatures};
use pyrycode_relay::metrics::Metrics;
use pyrycode_relay::protocol::close::Close;
use pyrycode_relay::protocol::frames::{self, Decoder, FrameError, Incoming};
use pyrycode_relay::protocol::upgrade::{
    HeadScanner, ParsedHead, Reply, write_switching_protocols,
};
use pyrycode_relay::relay::outbox::{Outbox, Write};
use pyrycode_relay::relay::spare::SpareBuffers;
use pyrycode_relay::relay::timers::Millis;
use pyrycode_relay::relay::{
    Action, Described, Disconnected, HandOver, Key, Owners, SentAway, Settings, Whom,
};
use pyrycode_relay::shared::admission::{Admission, AdmissionLimits, Proxies};
use pyrycode_relay::shared::budget::SharedBudget;
use pyrycode_relay::telemetry::Remote;
use pyrycode_relay::worker::core::Core;
use pyrycode_relay::worker::{self, ProxyHeaders, Rings, Start, listener, ring};
use slab::Slab;
use std::error::Error;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::{channel, unbounded_channel};

/// Suites send 16 MiB to see what happens.
const MAX_MESSAGE_BYTES: usize = 32 * 1024 * 1024;

/// What the relay asks of a request and a conformance suite does not send.
const REQUIRED_HEADERS: &[u8] = b"X-Pyrycode-Server: echo\r\nX-Pyrycode-Version: 1\r\n";

fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let listener = listener::bind(address.parse()?, 1)?.pop().ok_or("no listener")?;
    let bound = listener.local_addr()?.as_socket().ok_or("no IP address")?;
    println!("{bound}");
    let (mailbox, mail) = unbounded_channel();
    let settings = Settings {
        worker: 0,
        owners: Owners::new([0; 4], 1),
        domain: None,
        limits: Limits::default(),
        budget: SharedBudget::new(u64::MAX, 1),
        admission: Admission::new(AdmissionLimits::NONE, Proxies::default(), [0; 4]),
        metrics: Metrics::new(1),
        seed: [0; 32],
        push: false,
    };
    let start = Start {
        settings,
        listeners: vec![listener],
        proxy_headers: ProxyHeaders::From(Arc::default()),
        tls: None,
        cpu: None,
        mailbox: mail,
        mailboxes: vec![mailbox],
        epoch: Instant::now(),
        wakes: channel(1).0,
        inherited: None,
    };
    let rings = Rings::make(ring::MAX_ENTRIES, RingFeatures::ALL, u64::MAX, 1)?;
    Ok(worker::run_core(start, rings, |_| Echo::default())?)
}

#[derive(Default)]
struct Echo {
    peers: Slab<Peer>,
    spare: SpareBuffers,
    actions: Vec<Action>,
    queued_behind: bool,
}

struct Peer {
    stage: Stage,
    decoder: Decoder<MAX_MESSAGE_BYTES>,
    outbox: Outbox,
    /// The peer has ended its direction.
    ended: bool,
}

enum Stage {
    /// The request head so far.
    Head(Vec<u8>),
    Open,
    /// Our last bytes are queued or sent; what still comes is thrown away.
    Closing,
    Dead,
}

impl Peer {
    /// Bytes of a request head, and perhaps of frames behind it.
    fn on_head_bytes(&mut self, spare: &mut SpareBuffers, input: &[u8]) {
        let Stage::Head(received) = &mut self.stage else { return };
        received.extend_from_slice(input);
        let Some(line) = received.windows(2).position(|bytes| bytes == b"\r\n") else { return };
        let mut head = received.clone();
        head.splice(line + 2..line + 2, REQUIRED_HEADERS.iter().copied());
        let upgrade = match HeadScanner::default().parse(&head) {
            ParsedHead::Incomplete => return,
            ParsedHead::Refused(reply) => Err(reply),
            ParsedHead::Complete { request, consumed } => {
                request.server_upgrade().map(|upgrade| (upgrade.accept_key, consumed))
            }
        };
        match upgrade {
            Ok((accept_key, consumed)) => {
                let mut answer = Vec::new();
                write_switching_protocols(&mut answer, &accept_key);
                self.outbox.push_http(spare, &answer);
                self.stage = Stage::Open;
                let (_, unread) = head.split_at_mut(consumed);
                self.on_frame_bytes(spare, unread);
            }
            Err(reply) => self.refuse(spare, reply),
        }
    }

    fn refuse(&mut self, spare: &mut SpareBuffers, reply: Reply) {
        let mut answer = Vec::new();
        reply.write(&mut answer, false);
        self.outbox.push_http(spare, &answer);
        self.stage = Stage::Closing;
    }

    fn on_frame_bytes(&mut self, spare: &mut SpareBuffers, mut input: &mut [u8]) {
        let Self { stage, decoder, outbox, .. } = self;
        let last = loop {
            match decoder.next(&mut input) {
                Ok(None) => return,
                Ok(Some(Incoming::Text(text))) => echo(outbox, spare, text.as_bytes(), false),
                Ok(Some(Incoming::Binary(bytes))) => echo(outbox, spare, bytes, true),
                Ok(Some(Incoming::Ping(payload))) => {
                    let mut pong = Vec::new();
                    frames::push_pong(&mut pong, payload);
                    outbox.push_control(&pong);
                }
                Ok(Some(Incoming::Pong(_) | Incoming::Fragment)) => {}
                Ok(Some(Incoming::Close(code))) => break Ok(code),
                Err(error) => break Err(error),
            }
        };
        push_close(outbox, spare, last);
        *stage = Stage::Closing;
    }
}

/// Queues what came, as one frame.
fn echo(outbox: &mut Outbox, spare: &mut SpareBuffers, payload: &[u8], is_binary: bool) {
    let frame_bytes = frames::header_len(payload.len()) + payload.len();
    outbox.push_frame(spare, frame_bytes, payload.len(), |out| {
        let first = out.len();
        frames::push_text_header(out, payload.len());
        if is_binary && let Some(opcode) = out.get_mut(first) {
            // The relay sends text alone, so its encoder knows no binary frame.
            *opcode = 0x82;
        }
        out.extend_from_slice(payload);
    });
}

/// Queues the answer to a close, or to bytes that are no frames.
fn push_close(
    outbox: &mut Outbox,
    spare: &mut SpareBuffers,
    last: Result<Option<u16>, FrameError>,
) {
    let mut frame = Vec::new();
    match last {
        Ok(code) => frames::push_close_code(&mut frame, code),
        Err(error) => frames::push_close(&mut frame, error.close()),
    }
    let (_, payload_bytes) = frames::frame_extent(&frame).unwrap_or_default();
    outbox.push_frame(spare, frame.len(), payload_bytes, |out| out.extend_from_slice(&frame));
}

impl Echo {
    /// Has the shell write what is queued, or takes the next step of an ending.
    fn go_on(&mut self, key: Key) {
        let Some(peer) = self.peers.get_mut(key.0 as usize) else { return };
        if matches!(peer.stage, Stage::Dead) {
            return;
        }
        if !peer.outbox.is_empty() {
            match peer.outbox.in_flight() {
                true => self.queued_behind = true,
                false => self.actions.push(Action::Write(key)),
            }
        } else if peer.ended {
            peer.stage = Stage::Dead;
            self.actions.push(Action::Close(key));
        } else if matches!(peer.stage, Stage::Closing) {
            self.actions.push(Action::FinishWriting(key));
        }
    }
}

impl Core for Echo {
    fn accept(&mut self, _now: Millis, _remote: Remote) -> Key {
        let peer = Peer {
            stage: Stage::Head(Vec::new()),
            decoder: Decoder::with_limit(),
            outbox: Outbox::default(),
            ended: false,
        };
        Key(self.peers.insert(peer) as u32)
    }

    fn on_transport_used_up(&mut self, _now: Millis, _key: Key) {}

    fn admit_handshake(&mut self, _now: Millis, _key: Key) -> bool {
        true
    }

    fn take_census(&self) {}

    fn set_limits(&mut self, _limits: Limits) {}

    fn disconnect(
        &mut self,
        _now: Millis,
        _first: usize,
        _whom: &Whom,
        _close: (u16, &str),
    ) -> Disconnected {
        Disconnected::default()
    }

    fn send_away(&mut self, _now: Millis, _slots: (usize, usize), _close: Close) -> SentAway {
        SentAway::default()
    }

    fn describe(&self, _now: Millis, _first: usize) -> Described {
        Described::default()
    }

    fn set_remote(&mut self, _key: Key, _remote: Remote) {}

    fn on_plain_http(&mut self, now: Millis, key: Key) {
        self.on_end(now, key, false);
    }

    fn on_transport_failed(&mut self, now: Millis, key: Key, _error: &dyn Display) {
        self.on_end(now, key, false);
    }

    fn charge_transport(&mut self, _now: Millis, _key: Key, _bytes: usize) -> bool {
        true
    }

    fn on_write_progress(&mut self, _now: Millis, _key: Key) {}

    fn adopt(&mut self, now: Millis, hand_over: HandOver) -> Key {
        // One worker owns everything: nobody hands anything over.
        self.accept(now, hand_over.remote)
    }

    fn release(&mut self, key: Key) {
        self.peers.remove(key.0 as usize);
    }

    fn connections(&self) -> usize {
        self.peers.len()
    }

    fn wants_read(&self, key: Key) -> bool {
        let peer = self.peers.get(key.0 as usize);
        peer.is_some_and(|peer| !peer.ended && !matches!(peer.stage, Stage::Dead))
    }

    fn is_open(&self, key: Key) -> bool {
        self.peers.get(key.0 as usize).is_some_and(|peer| matches!(peer.stage, Stage::Open))
    }

    fn on_bytes(&mut self, _now: Millis, key: Key, input: &mut [u8], _messages: &mut u32) -> usize {
        let taken = input.len();
        let Some(peer) = self.peers.get_mut(key.0 as usize) else { return taken };
        match peer.stage {
            Stage::Head(_) => peer.on_head_bytes(&mut self.spare, input),
            Stage::Open => peer.on_frame_bytes(&mut self.spare, input),
            Stage::Closing | Stage::Dead => return taken,
        }
        self.go_on(key);
        taken
    }

    fn take_queued_behind(&mut self) -> bool {
        std::mem::take(&mut self.queued_behind)
    }

    fn on_end(&mut self, _now: Millis, key: Key, clean: bool) {
        let Some(peer) = self.peers.get_mut(key.0 as usize) else { return };
        peer.ended = true;
        if !clean {
            peer.stage = Stage::Dead;
            return self.actions.push(Action::Abort(key));
        }
        self.go_on(key);
    }

    fn begin_write(&mut self, _now: Millis, key: Key) -> Option<Write> {
        self.peers.get_mut(key.0 as usize)?.outbox.take_write()
    }

    fn on_written(&mut self, now: Millis, key: Key, buffer: Vec<u8>, taken: Option<usize>) {
        let Some(taken) = taken else { return self.on_end(now, key, false) };
        if let Some(peer) = self.peers.get_mut(key.0 as usize) {
            peer.outbox.on_written(&mut self.spare, buffer, taken);
        }
        self.go_on(key);
    }

    fn on_unsent(&mut self, _: Millis, _: Key, _: usize) {}

    fn on_timers(&mut self, _now: Millis) {}

    fn next_wake_ms(&self) -> Option<Millis> {
        None
    }

    fn take_actions(&mut self, into: &mut Vec<Action>) {
        into.append(&mut self.actions);
    }

    fn shed_under_pressure(&mut self, _now: Millis) {}

    fn shut_down(&mut self, _now: Millis) {
        for (key, peer) in &mut self.peers {
            peer.stage = Stage::Dead;
            self.actions.push(Action::Abort(Key(key as u32)));
        }
    }
}
