//! Many client connections on one thread: epoll, edge-triggered, one receive and one send a turn.
//!
//! The rules of the game (who sends what, and when) are a [`Load`]; this moves its bytes.

mod inbound;
mod secure;

use crate::codec;
use crate::lines::Lines;
use crate::tls::{Dialler, Handshakes, Offer};
use crate::wire::{Ended, Handle, Tag, Target, Wire, connect, floor_hello};
use rustix::event::{Timespec, epoll};
use rustls::ClientConnection;
use slab::Slab;
use std::io::{self, Write as _};
use std::net::{IpAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// The token of the control pipe among the events.
const CONTROL: u64 = u64::MAX;
/// Events handled in one turn. Few, so that the relay has work while we do ours: else both wait for
/// each other in turn, and neither is ever busy.
const EVENTS_PER_TURN: usize = 32;
/// Connections that wait to be written to, at most, for the same reason: one event of a binary may
/// have answers for all of its phones.
const DIRTY_PER_TURN: usize = 16;

/// The rules by which connections are used.
pub(crate) trait Load {
    fn on_open(&mut self, net: &mut Net, handle: Handle, tag: Tag);
    fn on_text(&mut self, net: &mut Net, handle: Handle, tag: Tag, payload: &[u8]);
    fn on_ended(&mut self, net: &mut Net, handle: Handle, tag: Tag, ended: Ended);
    /// Called once in each turn of the loop; returns when it wants the next one at the latest.
    fn on_turn(&mut self, net: &mut Net) -> Option<Instant>;
    /// One line from the controlling process; `false` ends the loop.
    fn on_command(&mut self, net: &mut Net, line: &str) -> bool;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Upgrading,
    Open,
}

#[derive(Debug)]
struct Conn {
    stream: TcpStream,
    /// What encrypts it, if the target speaks TLS.
    tls: Option<Box<ClientConnection>>,
    serial: u32,
    tag: Tag,
    phase: Phase,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    sent: usize,
    dirty: bool,
}

/// All connections of this process.
#[derive(Debug)]
pub(crate) struct Net {
    epoll: OwnedFd,
    target: Target,
    dialler: Option<Dialler>,
    handshakes: Handshakes,
    /// Whether it looks for events again and again rather than wait.
    spin: bool,
    conns: Slab<Conn>,
    dirty: Vec<Handle>,
    scratch: Vec<u8>,
    /// What arrived on a connection, decrypted.
    plain: Vec<u8>,
    serial: u32,
    random: u64,
    clock: Instant,
    arrived: u64,
    pings: u64,
}

impl Net {
    pub(crate) fn new(target: Target, offer: Offer, spin: bool) -> io::Result<Self> {
        let dialler = target.tls.as_ref().map(|trust| Dialler::new(trust, offer)).transpose();
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            target,
            dialler: dialler.map_err(io::Error::other)?,
            handshakes: Handshakes::default(),
            spin,
            conns: Slab::new(),
            dirty: Vec::new(),
            scratch: vec![0; 256 * 1024],
            plain: Vec::new(),
            serial: 0,
            random: u64::from(std::process::id()) << 20 | 1,
            clock: Instant::now(),
            arrived: 0,
            pings: 0,
        })
    }

    /// Nanoseconds of this process's clock.
    pub(crate) fn now(&self) -> u64 {
        self.nanos(Instant::now())
    }

    /// The same clock for any instant.
    pub(crate) fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.clock).as_nanos()).unwrap_or(u64::MAX)
    }

    /// When the bytes that are being handled were received, on the same clock.
    pub(crate) fn arrived(&self) -> u64 {
        self.arrived
    }

    pub(crate) fn wire(&self) -> Wire {
        self.target.wire
    }

    /// Pings of the relay that were answered.
    pub(crate) fn pings(&self) -> u64 {
        self.pings
    }

    /// TLS handshakes that were finished.
    pub(crate) fn handshakes(&self) -> &Handshakes {
        &self.handshakes
    }

    /// A number that is not predictable enough for secrets but good enough for masks and choices.
    pub(crate) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ self.random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ mixed >> 27
    }

    /// Dials as the binary (or, with `phone`, its phone of that number) of `server_id`.
    pub(crate) fn open(
        &mut self,
        tag: Tag,
        server_id: &str,
        group: u32,
        phone: Option<u32>,
        source: Option<IpAddr>,
    ) -> io::Result<Handle> {
        let tls = self.dialler.as_mut().map(|dialler| dialler.begin(tag)).transpose();
        let tls = tls.map_err(io::Error::other)?.map(Box::new);
        let stream = connect(self.target.address, source)?;
        let outbox = match self.target.wire {
            Wire::WebSocket => codec::upgrade_request(
                &self.target.host,
                &self.target.prefix,
                server_id,
                phone.is_some(),
            ),
            Wire::Floor { record } => floor_hello(group, phone, record),
        };
        self.serial = self.serial.wrapping_add(1);
        let serial = self.serial;
        let entry = self.conns.vacant_entry();
        let handle = Handle { key: u32::try_from(entry.key()).map_err(io::Error::other)?, serial };
        let interest = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(handle.token()), interest)?;
        entry.insert(Conn {
            stream,
            tls,
            serial,
            tag,
            phase: Phase::Connecting,
            inbox: Vec::new(),
            outbox,
            sent: 0,
            dirty: false,
        });
        Ok(handle)
    }

    /// Queues one message of exactly `length` bytes, which `fill` appends; it leaves when this turn ends.
    pub(crate) fn send(&mut self, handle: Handle, length: usize, fill: impl FnOnce(&mut Vec<u8>)) {
        let wire = self.target.wire;
        self.queue(handle, |key, out| match wire {
            Wire::WebSocket => codec::encode(out, codec::TEXT, key, length, fill),
            Wire::Floor { .. } => fill(out),
        });
    }

    /// Queues a close frame; the connection goes on until the relay ends it.
    pub(crate) fn send_close(&mut self, handle: Handle, code: u16) {
        self.queue(handle, |key, out| {
            codec::encode(out, codec::CLOSE, key, 2, |out| {
                out.extend_from_slice(&code.to_be_bytes())
            });
        });
    }

    /// Ends the connection now, sending first what it can; with `reset` by a TCP reset.
    pub(crate) fn drop_conn(&mut self, handle: Handle, reset: bool) {
        let Some(conn) = self.get_mut(handle) else { return };
        if reset {
            let _ = socket2::SockRef::from(&conn.stream).set_linger(Some(Duration::ZERO));
        } else if conn.tls.is_some() {
            secure::part(conn);
        } else if conn.sent < conn.outbox.len() {
            let _ = conn.stream.write(conn.outbox.get(conn.sent..).unwrap_or_default());
        }
        self.conns.try_remove(handle.key as usize);
    }

    /// Runs the load until a command ends it or the control pipe closes.
    pub(crate) fn run(&mut self, load: &mut impl Load, control: impl AsFd) -> io::Result<()> {
        let token = epoll::EventData::new_u64(CONTROL);
        epoll::add(&self.epoll, &control, token, epoll::EventFlags::IN)?;
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        let mut commands = Lines::default();
        loop {
            let due = load.on_turn(self);
            self.flush(load);
            let wait = due.map(|due| timespec(due.saturating_duration_since(Instant::now())));
            let wait = match self.dirty.is_empty() && !self.spin {
                true => wait,
                false => Some(timespec(Duration::ZERO)),
            };
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                wait.as_ref(),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in events.drain(..) {
                if event.data.u64() == CONTROL {
                    if !commands.read(&control)? {
                        return Ok(());
                    }
                    while let Some(line) = commands.next() {
                        if !load.on_command(self, &line) {
                            return Ok(());
                        }
                    }
                } else {
                    self.on_event(Handle::of_token(event.data.u64()), event.flags, load);
                    if self.dirty.len() >= DIRTY_PER_TURN {
                        self.flush(load);
                    }
                }
            }
        }
    }

    fn get(&self, handle: Handle) -> Option<&Conn> {
        self.conns.get(handle.key as usize).filter(|conn| conn.serial == handle.serial)
    }

    fn get_mut(&mut self, handle: Handle) -> Option<&mut Conn> {
        self.conns.get_mut(handle.key as usize).filter(|conn| conn.serial == handle.serial)
    }

    fn queue(&mut self, handle: Handle, append: impl FnOnce([u8; 4], &mut Vec<u8>)) {
        let [a, b, c, d, ..] = self.random().to_le_bytes();
        let Some(conn) = self.get_mut(handle) else { return };
        append([a, b, c, d], &mut conn.outbox);
        if conn.phase == Phase::Open {
            self.write_soon(handle);
        }
    }

    /// Has what waits written when this turn ends.
    fn write_soon(&mut self, handle: Handle) {
        let Some(conn) = self.get_mut(handle) else { return };
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(handle);
        }
    }

    fn on_event(&mut self, handle: Handle, flags: epoll::EventFlags, load: &mut impl Load) {
        let Some(conn) = self.get_mut(handle) else { return };
        if flags.contains(epoll::EventFlags::OUT) {
            if conn.phase == Phase::Connecting {
                conn.phase = Phase::Upgrading;
            }
            if conn.has_to_write() {
                self.write(handle, load);
            }
        }
        let ending = epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        if flags.intersects(epoll::EventFlags::IN | ending) {
            self.read(handle, flags.intersects(ending), load);
        }
    }

    fn end(&mut self, handle: Handle, ended: Ended, load: &mut impl Load) {
        let Some(conn) = self.get(handle) else { return };
        let tag = conn.tag;
        self.drop_conn(handle, false);
        load.on_ended(self, handle, tag, ended);
    }

    fn flush(&mut self, load: &mut impl Load) {
        for handle in std::mem::take(&mut self.dirty) {
            if let Some(conn) = self.get_mut(handle) {
                conn.dirty = false;
                self.write(handle, load);
            }
        }
    }

    fn write(&mut self, handle: Handle, load: &mut impl Load) {
        let Some(conn) = self.get_mut(handle) else { return };
        let Err(error) = conn.write() else { return };
        let ended = match conn.phase {
            Phase::Open | Phase::Connecting => Ended::Cut(error.to_string()),
            Phase::Upgrading => conn.ended(&error.to_string()),
        };
        // What the relay said before it ended is still to be read.
        if conn.phase == Phase::Open {
            conn.outbox.clear();
            conn.sent = 0;
            self.read(handle, true, load);
        }
        self.end(handle, ended, load);
    }
}

impl Conn {
    /// How it ended, where TCP or TLS did and no frame or answer said so.
    fn ended(&self, why: &str) -> Ended {
        match self.phase {
            Phase::Open => Ended::Cut(why.to_owned()),
            Phase::Upgrading if self.tls.is_some() && self.inbox.is_empty() => {
                Ended::Unanswered(why.to_owned())
            }
            Phase::Upgrading | Phase::Connecting => Ended::Refused(why.to_owned()),
        }
    }

    fn has_to_write(&self) -> bool {
        let tls = self.tls.as_ref().is_some_and(|tls| tls.wants_write());
        tls || self.sent < self.outbox.len()
    }

    /// Writes until nothing is left or the socket is full.
    fn write(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            return secure::write(tls, &mut self.outbox, &mut self.stream);
        }
        loop {
            let rest = self.outbox.get(self.sent..).unwrap_or_default();
            if rest.is_empty() {
                self.outbox.clear();
                self.sent = 0;
                return Ok(());
            }
            match self.stream.write(rest) {
                Ok(length) => self.sent += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.outbox.drain(..self.sent);
                    self.sent = 0;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn timespec(wait: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(wait.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounded up to milliseconds, questions would leave in bursts.
    #[test]
    fn a_wait_may_be_shorter_than_a_millisecond() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let wait = || {
            let (mut events, begun) = (Vec::with_capacity(1), Instant::now());
            let wait = timespec(Duration::from_micros(50));
            epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&wait)).unwrap();
            begun.elapsed()
        };
        let shortest = (0..200).map(|_| wait()).min().unwrap();
        assert!(shortest < Duration::from_micros(900), "{shortest:?}");
    }
}
