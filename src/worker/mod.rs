//! The io_uring shell around the core: one pinned thread per worker, with its own runtime, ring,
//! listener, sockets and [`Relay`]. It only moves bytes; what they mean is the core's business.
//!
//! One task runs a worker: each turn of its loop takes every completion since the last turn,
//! tells the core, and carries out what the core asks for. Writes come last, so that everything a
//! turn produced for a socket leaves in one send. One system call submits all of it and asks for
//! the completions of the next turn; where there are none, the runtime waits for some.
//!
//! - [`core`]: what it asks of the core
//! - [`ring`]: receives and sends, on a ring of the worker's own
//! - [`buffers`]: receive buffers that the kernel chooses from
//! - [`listener`]: listening sockets
//! - [`tls`]: TLS over owned buffers
//! - `accept`, `receive`: taking connections in, and reading them
//! - `link`: a socket, and what the kernel is doing with it
//! - `proxy_header`, `tls_link`: what may lie between a socket and the core

mod accept;
mod link;
mod proxy_header;
mod receive;
mod tls_link;

pub mod buffers;
pub mod core;
pub mod listener;
pub mod ring;
pub mod tls;

pub use self::tls_link::TlsLink;

use self::core::Core;
use self::link::Link;
use self::tls_link::Warm;
use crate::config::{IpNet, Limits};
use crate::metrics::{Metrics, PushOutcome, Series, WorkerMetrics};
use crate::relay::timers::Millis;
use crate::relay::wakes::Wake;
use crate::relay::{Action, Described, HandOver, Key, Relay, Settings};
use crate::telemetry;
use buffers::BufferGroup;
use ring::{Acceptable, Done, Ring};
use rustix::thread::CpuSet;
use rustls::ServerConfig;
use socket2::Socket;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Shutdown};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{Sender, UnboundedReceiver, UnboundedSender};
use tokio::time::Sleep;
use tracing::warn;

/// Turns in a row, while there is something to do, before the runtime may look for what comes to
/// it: connections to accept, above all. It costs a few system calls to ask it.
const TURNS_IN_A_ROW: usize = 4;

/// The runtime's own ring has one operation at a time, to wait for the listener.
const RUNTIME_RING_ENTRIES: u32 = 8;

/// What workers and the control plane send to a worker. The queue needs no bound of its own: a
/// hand-over holds a descriptor, and the others come once each or at the sender's own pace.
#[derive(Debug)]
pub enum Mail {
    /// A connection for a server-id that the addressee owns.
    HandOver {
        /// Its socket.
        socket: Socket,
        /// Its TLS, if it has any.
        tls: Option<Box<TlsLink>>,
        /// Everything else.
        ticket: Box<HandOver>,
    },
    /// Memory runs short, and the addressee holds the largest backlog.
    Shed,
    /// Bring the gauges up to date, and say so: whoever reads them waits for it. A worker that
    /// does not answer is stuck.
    Census(UnboundedSender<()>),
    /// Apply these limits from now on.
    Limits(Limits),
    /// Describe connections from this slot on, but no more than a turn has time for.
    Describe {
        /// The slot to begin with.
        first: usize,
        /// Whom to tell.
        done: UnboundedSender<Described>,
    },
    /// Stop accepting, tell everybody, and end when the last connection is gone.
    ShutDown,
}

/// Which connections begin with a PROXY header (PROTOCOL.md, chapter 6).
#[derive(Debug, Clone)]
pub enum ProxyHeaders {
    /// All of them.
    Always,
    /// Those from these networks.
    From(Arc<[IpNet]>),
}

impl ProxyHeaders {
    fn expected_from(&self, peer: IpAddr) -> bool {
        match self {
            Self::Always => true,
            Self::From(networks) => {
                let peer = peer.to_canonical();
                networks.iter().any(|network| network.contains(&peer))
            }
        }
    }
}

/// What a worker thread is made of.
pub struct Start {
    /// What the core is made of.
    pub settings: Settings,
    /// The worker's listener.
    pub listener: Socket,
    /// Which connections begin with a PROXY header.
    pub proxy_headers: ProxyHeaders,
    /// What is spoken on them: TLS, or WebSocket in the clear.
    pub tls: Option<Arc<ServerConfig>>,
    /// The CPU to run on.
    pub cpu: Option<usize>,
    /// The worker's mail.
    pub mailbox: UnboundedReceiver<Mail>,
    /// Everyone's mail, by worker number.
    pub mailboxes: Vec<UnboundedSender<Mail>>,
    /// When the process's clock started.
    pub epoch: Instant,
    /// Told once, when the worker has its ring and accepts.
    pub ready: UnboundedSender<()>,
    /// Takes wake requests, which are dropped where there is no room.
    pub wakes: Sender<Box<Wake>>,
}

/// Runs a worker on the current thread until it has shut down.
///
/// # Errors
///
/// The ring or the runtime cannot be made.
pub fn run(start: Start) -> io::Result<()> {
    run_core(start, Relay::new)
}

/// As [`run`], with the core that `make` makes.
///
/// # Errors
///
/// As [`run`].
pub fn run_core<C: Core>(start: Start, make: impl FnOnce(Settings) -> C) -> io::Result<()> {
    telemetry::set_core(start.settings.worker);
    if let Some(cpu) = start.cpu {
        pin(cpu);
    }
    let mut builder = tokio_uring::builder();
    builder.entries(RUNTIME_RING_ENTRIES).uring_builder(&ring::runtime_builder());
    let runtime = tokio_uring::Runtime::new(&builder)?;
    runtime.block_on(async {
        let ready = start.ready.clone();
        let mut worker = Worker::new(start, make)?;
        // Nobody waits any more only where the process is ending.
        let _ = ready.send(());
        std::future::poll_fn(|cx| worker.turns(cx)).await
    })
}

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    if let Err(errno) = rustix::thread::sched_setaffinity(None, &set) {
        warn!(err = %errno, "worker_not_pinned");
    }
}

struct Worker<C> {
    core: C,
    ring: Ring,
    links: Vec<Option<Link>>,
    listener: Option<Socket>,
    proxy_headers: ProxyHeaders,
    tls: Option<Arc<ServerConfig>>,
    accept: Option<Acceptable>,
    /// Accepting rests until then.
    accept_rests_until: Option<Millis>,
    /// When it was last said that accepting rests.
    accept_rest_said: Option<Millis>,
    small: BufferGroup,
    large: BufferGroup,
    /// Connections whose receive found no free buffer, the longest waiting first.
    starved: VecDeque<Key>,
    mailbox: UnboundedReceiver<Mail>,
    mailboxes: Vec<UnboundedSender<Mail>>,
    wakes: Sender<Box<Wake>>,
    metrics: Arc<Metrics>,
    counters: Arc<WorkerMetrics>,
    epoch: Instant,
    alarm: Pin<Box<Sleep>>,
    alarm_at: Option<Millis>,
    shutting_down: bool,
    // Kept for their capacity.
    done: Vec<Done>,
    actions: Vec<Action>,
    warm: Warm,
    spare: Vec<Vec<u8>>,
}

impl<C: Core> Worker<C> {
    fn new(start: Start, make: impl FnOnce(Settings) -> C) -> io::Result<Self> {
        let Start {
            settings, listener, proxy_headers, tls, mailbox, mailboxes, epoch, wakes, ..
        } = start;
        let metrics = settings.metrics.clone();
        let counters = metrics.worker(settings.worker);
        let ring = Ring::new()?;
        let (budget_bytes, workers) = (settings.budget.limit_bytes(), mailboxes.len() as u64);
        let (small, large) = receive::buffers(&ring, budget_bytes, workers)?;
        let accept = ring::acceptable(&listener);
        Ok(Self {
            core: make(settings),
            links: Vec::new(),
            listener: Some(listener),
            proxy_headers,
            tls,
            accept: Some(accept),
            accept_rests_until: None,
            accept_rest_said: None,
            small,
            large,
            ring,
            starved: VecDeque::new(),
            mailbox,
            mailboxes,
            wakes,
            metrics,
            counters,
            epoch,
            alarm: Box::pin(tokio::time::sleep(Duration::ZERO)),
            alarm_at: None,
            shutting_down: false,
            done: Vec::new(),
            actions: Vec::new(),
            warm: Warm::default(),
            spare: Vec::new(),
        })
    }

    /// Turns of the loop, as long as there is something to do; ready when the worker has shut down.
    fn turns(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ring.wake(cx)?;
        for _ in 0..TURNS_IN_A_ROW {
            let begun = Instant::now();
            let now = begun.duration_since(self.epoch).as_millis() as Millis;
            self.turn(begun, now, cx)?;
            if self.shutting_down && self.core.connections() == 0 {
                return Poll::Ready(Ok(()));
            }
            if !self.ring.has_work() && self.starved.is_empty() {
                self.set_alarm(now, cx);
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One turn of the loop. What it queues for the ring is submitted by the next one.
    fn turn(&mut self, begun: Instant, now: Millis, cx: &mut Context<'_>) -> io::Result<()> {
        let forwarded = self.forwarded();
        let mut all_done = std::mem::take(&mut self.done);
        self.ring.turn(&mut all_done)?;
        let completions = all_done.len() as u64;
        for done in all_done.drain(..) {
            match done {
                Done::Received { key, reading, result, buffer, goes_on, has_more } => {
                    let key = Key(key);
                    if let Some(buffer) = buffer {
                        self.on_bytes(now, key, reading, buffer, result);
                    }
                    self.on_received(now, key, reading, result, (goes_on, has_more));
                }
                Done::NotStopped { key } => self.on_not_stopped(Key(key)),
                Done::Sent { key, buffer, result } => self.on_sent(now, Key(key), buffer, result),
            }
        }
        self.done = all_done;
        while let Poll::Ready(Some(mail)) = self.mailbox.poll_recv(cx) {
            self.on_mail(now, mail);
        }
        self.core.on_timers(now);
        self.accept_if_due(now, cx);
        self.carry_out(now);
        for _ in 0..receive::STARVED_PER_TURN.min(self.starved.len()) {
            if let Some(key) = self.starved.pop_front() {
                self.receive(key);
            }
        }
        self.count_turn(begun, completions, forwarded);
        Ok(())
    }

    /// Messages passed on so far.
    fn forwarded(&self) -> u64 {
        self.counters.get(Series::FramesPhoneToBinary)
            + self.counters.get(Series::FramesBinaryToPhone)
    }

    /// Counts a turn that began at `begun`, when `forwarded_before` messages had been passed on.
    fn count_turn(&self, begun: Instant, completions: u64, forwarded_before: u64) {
        self.counters.count(Series::Turns);
        self.counters.add(Series::Completions, completions);
        self.counters.raise(Series::CompletionsMax, completions);
        let forwarded = self.forwarded().wrapping_sub(forwarded_before);
        if forwarded > 0 {
            self.counters.delays().record(forwarded, begun.elapsed().as_micros() as u64);
        }
    }

    /// Has the task woken at the core's next deadline.
    fn set_alarm(&mut self, now: Millis, cx: &mut Context<'_>) {
        let next = self.core.next_wake_ms();
        let next = match (next, self.accept_rests_until) {
            (Some(a), Some(b)) if self.accept.is_none() => Some(a.min(b)),
            (None, Some(b)) if self.accept.is_none() => Some(b),
            (next, _) => next,
        };
        let Some(at) = next.map(|at| at.max(now + 1)) else { return };
        if self.alarm_at.is_none_or(|set| set <= now || at < set) {
            self.alarm_at = Some(at);
            let instant = self.epoch + Duration::from_millis(at);
            self.alarm.as_mut().reset(instant.into());
        }
        if self.alarm.as_mut().poll(cx).is_ready() {
            self.alarm_at = None;
            cx.waker().wake_by_ref();
        }
    }

    fn link(&mut self, key: Key) -> Option<&mut Link> {
        self.links.get_mut(key.0 as usize)?.as_mut()
    }

    /// Sends `buffer[from..to]`, or a first part of it.
    fn send(&mut self, key: Key, buffer: Vec<u8>, from: usize, to: usize) {
        let Some(Some(link)) = self.links.get_mut(key.0 as usize) else { return };
        link.is_sending = true;
        self.ring.send(link.socket.as_raw_fd(), buffer, from, to, key.0);
    }

    fn on_sent(&mut self, now: Millis, key: Key, buffer: Vec<u8>, result: i32) {
        let Some(link) = self.link(key) else { return };
        link.is_sending = false;
        if link.cut {
            return self.bury(key);
        }
        let taken = match result {
            0.. => Some(result as usize),
            _ if matches!(-result, libc::EINTR | libc::EAGAIN) => Some(0),
            _ => None,
        };
        if link.tls.is_some() {
            return self.on_tls_sent(now, key, buffer, taken);
        }
        self.core.on_written(now, key, buffer, taken);
    }

    /// A connection that the core knows gets its socket.
    fn adopt(&mut self, key: Key, link: Link) {
        let index = key.0 as usize;
        if self.links.len() <= index {
            self.links.resize_with(index + 1, || None);
        }
        if let Some(slot) = self.links.get_mut(index) {
            debug_assert!(slot.is_none(), "two sockets for one connection");
            *slot = Some(link);
        }
        self.receive(key);
    }

    /// Moves a socket to the worker that owns its server-id.
    fn hand_over(&mut self, key: Key, worker: usize, ticket: Box<HandOver>) {
        let link = self.links.get_mut(key.0 as usize).and_then(Option::take);
        self.core.release(key);
        if let (Some(link), Some(mailbox)) = (link, self.mailboxes.get(worker)) {
            debug_assert!(!link.is_busy(), "moved while busy");
            // Fails only while the process ends, and then the connection ends too.
            let _ = mailbox.send(Mail::HandOver { socket: link.socket, tls: link.tls, ticket });
        }
    }

    fn on_mail(&mut self, now: Millis, mail: Mail) {
        match mail {
            Mail::HandOver { socket, tls, ticket } => {
                let key = self.core.adopt(now, *ticket);
                self.adopt(key, Link::new(socket, tls));
                self.adopt_tls(now, key);
            }
            Mail::Shed => self.core.shed_under_pressure(now),
            Mail::Census(done) => {
                self.core.take_census();
                // Whoever asked may have lost patience.
                let _ = done.send(());
            }
            Mail::Limits(limits) => self.core.set_limits(limits),
            Mail::Describe { first, done } => {
                let _ = done.send(self.core.describe(now, first));
            }
            Mail::ShutDown => {
                self.shutting_down = true;
                self.accept_rests_until = None;
                if let Some(listener) = self.listener.take() {
                    // Completes the poll that is under way, which keeps the socket alive.
                    let _ = listener.shutdown(Shutdown::Both);
                }
                self.core.shut_down(now);
            }
        }
    }

    /// Does what the core asks for, until it asks for nothing more.
    fn carry_out(&mut self, now: Millis) {
        let mut actions = std::mem::take(&mut self.actions);
        loop {
            self.core.take_actions(&mut actions);
            if actions.is_empty() {
                break;
            }
            for action in actions.drain(..) {
                self.act(now, action);
            }
        }
        self.actions = actions;
    }

    fn act(&mut self, now: Millis, action: Action) {
        match action {
            Action::Write(key) => {
                let Some(write) = self.core.begin_write(now, key) else { return };
                let Some(link) = self.link(key) else { return };
                if link.tls.is_some() {
                    return self.write_tls(now, key, write);
                }
                self.send(key, write.buffer, write.from, write.to);
            }
            Action::Read(key) => self.receive(key),
            Action::FinishWriting(key) => {
                let Some(link) = self.link(key) else { return };
                if link.tls.is_some() {
                    self.finish_tls(key);
                } else {
                    // Fails only where the peer is gone, which its receive will tell.
                    let _ = link.socket.shutdown(Shutdown::Write);
                }
            }
            Action::Cut(key) => {
                if let Some(link) = self.link(key) {
                    // Closing it resets the connection: what waits for a peer that does not read
                    // would stay in the kernel's memory for minutes.
                    let _ = link.socket.set_linger(Some(Duration::ZERO));
                }
                self.end(key);
            }
            Action::Part(key) => {
                if let Some(link) = self.link(key) {
                    link.say_goodbye();
                }
                self.end(key);
            }
            Action::HandOver { key, worker, ticket } => {
                self.hand_over_when_flushed(key, worker, ticket);
            }
            Action::AskToShed(worker) => {
                if let Some(mailbox) = self.mailboxes.get(worker) {
                    let _ = mailbox.send(Mail::Shed);
                }
            }
            Action::Wake(wake) => {
                if self.wakes.try_send(wake).is_err() {
                    self.metrics.push().count(PushOutcome::Dropped);
                }
            }
        }
    }

    /// Ends the socket of a connection that is dead to the core.
    fn end(&mut self, key: Key) {
        if let Some(link) = self.link(key) {
            link.cut = true;
            if link.is_busy() {
                let _ = link.socket.shutdown(Shutdown::Both);
            }
        }
        self.bury(key);
    }

    /// Closes the socket of a connection that is cut, once the kernel is through with it.
    fn bury(&mut self, key: Key) {
        let Some(slot) = self.links.get_mut(key.0 as usize) else { return };
        if slot.as_ref().is_some_and(|link| link.cut && !link.is_busy()) {
            *slot = None;
            self.core.release(key);
        }
    }
}
