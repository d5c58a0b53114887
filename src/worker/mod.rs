//! The io_uring shell around the core: one pinned thread per worker, with its own runtime, ring,
//! listener, sockets and [`Relay`]. It only moves bytes; what they mean is the core's business.
//!
//! Each turn of a worker's loop takes every completion since the last turn, tells the core, and
//! carries out what the core asks for. Writes come last, so that everything a turn produced for a
//! socket leaves in one send. One system call submits all of it and waits for what comes next:
//! bytes, connections, mail, or the core's next deadline.
//!
//! - [`core`]: what it asks of the core
//! - [`ring`]: the one ring that the worker waits on
//! - [`buffers`]: receive buffers that the kernel chooses from
//! - [`listener`]: listening sockets
//! - [`tls`]: TLS over owned buffers
//! - `runtime`: the thread's runtime, by which mail comes
//! - `accept`, `receive`: accepting connections, and reading them
//! - `share`: how much of a turn one connection may have
//! - `link`: a socket, and what the kernel is doing with it
//! - `unsent`: what the kernel still holds for a peer
//! - `tls_link`: the TLS of a connection, as plain data: bytes in, and what next out
//! - `handover`: giving everything to a successor, and going on where a predecessor stopped
//! - `layers`, `tls_io`: what may lie between a socket and the core, carried out

mod accept;
mod handover;
mod layers;
mod link;
mod receive;
mod runtime;
mod share;
mod tls_io;
mod tls_link;
mod unsent;

pub mod buffers;
pub mod core;
pub mod listener;
pub mod ring;
pub mod tls;

pub use self::handover::GivenOut;
pub use self::tls_link::TlsLink;

use self::accept::Accepting;
use self::core::Core;
use self::handover::Takeover;
use self::link::Link;
use self::tls_io::Warm;
use crate::config::{IpNet, Limits, RingFeatures};
use crate::handover::state;
use crate::metrics::{Metrics, PushOutcome, Series, WorkerMetrics};
use crate::protocol::close::Close;
use crate::protocol::preamble::Preamble;
use crate::relay::outbox::Write;
use crate::relay::timers::Millis;
use crate::relay::wakes::Wake;
use crate::relay::{
    Action, Described, Disconnected, HandOver, Key, Relay, SentAway, Settings, Whom, broken,
};
use crate::telemetry;
use buffers::BufferGroup;
use ring::{Completion, Counts, Manner, Outgoing, Ring, Wait};
use runtime::Mailbox;
use rustix::thread::CpuSet;
use rustls::ServerConfig;
use socket2::Socket;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{Sender, UnboundedReceiver, UnboundedSender};
use tracing::{info, warn};

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
        hand_over: Box<HandOver>,
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
    /// End those of some connections that are meant, from this slot on.
    Disconnect {
        /// The slot to begin with.
        first: usize,
        /// Which are meant.
        whom: Arc<Whom>,
        /// The code and the reason that they are told.
        close: (u16, Arc<str>),
        /// Whom to tell.
        done: UnboundedSender<Disconnected>,
    },
    /// Send away some server-ids from this slot on.
    SendAway {
        /// The slot to begin with.
        first: usize,
        /// No more server-ids than this.
        most: usize,
        /// What their connections are told.
        close: Close,
        /// Whom to tell.
        done: UnboundedSender<SentAway>,
    },
    /// Stop accepting, tell everybody, and end when the last connection is gone.
    ShutDown,
    /// Accept no more for now: what comes waits in the kernel.
    StopAccepting,
    /// Stop accepting and reading, have everything written that the kernel takes, and say so, with the
    /// worker's number, when the kernel has no operation on any socket.
    Quiesce {
        /// Whom to tell.
        done: UnboundedSender<usize>,
    },
    /// As [`Mail::Quiesce`], then give out everything, and be still until [`Mail::Resume`] or
    /// [`Mail::Leave`]: other mail waits, but for [`Mail::Census`].
    GiveOut {
        /// Whom to give it.
        done: UnboundedSender<GivenOut>,
    },
    /// There will be no successor: go on as if nothing had happened.
    Resume,
    /// The successor has everything that was given out: let go of it and end, without a word to
    /// anyone.
    Leave,
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
    /// The worker's listeners.
    pub listeners: Vec<Socket>,
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
    /// Takes wake requests, which are dropped where there is no room.
    pub wakes: Sender<Box<Wake>>,
    /// What a predecessor had, to go on with.
    pub inherited: Option<Inherited>,
}

/// What a worker goes on with that a predecessor had.
pub struct Inherited {
    /// What it gave out.
    pub state: state::Worker,
    /// The sockets of the connections, in their order. They are not touched before `go`.
    pub sockets: Vec<Socket>,
    /// Told whether the worker can go on with this, or why not. If not, it ends.
    pub ready: std::sync::mpsc::Sender<Result<(), String>>,
    /// The predecessor has stopped for good. If this never comes because the sender is dropped, the
    /// worker ends.
    pub go: std::sync::mpsc::Receiver<()>,
}

/// What a worker has of the kernel. It belongs to the thread that made it, because the ring does
/// (`IORING_SETUP_SINGLE_ISSUER`); and it is made before anything listens, because the kernel may
/// refuse it.
pub struct Rings {
    runtime: tokio_uring::Runtime,
    ring: Ring,
    small: BufferGroup,
    large: BufferGroup,
}

impl Rings {
    /// For the current thread, one of `workers` that share a memory budget. `entries`, a power of
    /// two, is how many operations the ring queues before the kernel must take them; at most
    /// [`ring::MAX_ENTRIES`].
    ///
    /// # Errors
    ///
    /// As [`ring::probe`], and where descriptors have run out.
    pub fn make(
        entries: u32,
        features: RingFeatures,
        budget_bytes: u64,
        workers: usize,
    ) -> io::Result<Self> {
        let runtime = runtime::new()?;
        let uring = ring::make(entries)?;
        let (small, large) = receive::buffers(&uring, budget_bytes, workers as u64)?;
        // Last, since it stays: until here, all is given back where the kernel refuses something.
        Ok(Self { runtime, ring: Ring::new(uring, features), small, large })
    }

    /// The memory that [`Rings::make`] has the kernel lock, in bytes. Kernels before 6.13 do not
    /// count it.
    #[must_use]
    pub fn locked_bytes(entries: u32) -> u64 {
        let runtime = ring::locked_bytes(runtime::RING_ENTRIES, 2 * runtime::RING_ENTRIES);
        runtime + Ring::locked_bytes(entries) + receive::LOCKED_BYTES
    }
}

/// Runs a worker on the current thread, which made `rings`, until it has shut down.
///
/// # Errors
///
/// The ring is broken.
pub fn run(start: Start, rings: Rings) -> io::Result<()> {
    run_core(start, rings, Relay::new)
}

/// As [`run`], with the core that `make` makes.
///
/// # Errors
///
/// As [`run`].
pub fn run_core<C: Core>(
    start: Start,
    rings: Rings,
    make: impl FnOnce(Settings) -> C,
) -> io::Result<()> {
    telemetry::set_worker(start.settings.worker);
    if let Some(cpu) = start.cpu {
        pin(cpu);
    }
    let Rings { runtime, ring, small, large } = rings;
    info!(err = ring.features().to_string(), "io_uring_features");
    runtime.block_on(async {
        let made = Worker::make(start, (ring, small, large), make)?;
        let Some(mut worker) = made else { return Ok(()) };
        worker.begin()?;
        loop {
            runtime::turn(&mut worker.mailbox).await;
            if worker.serve()? == Served::ToTheEnd {
                return Ok(());
            }
        }
    })
}

/// Why the loop of a worker has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    /// The thread's runtime has something to do.
    UntilRuntimeReady,
    /// It has shut down.
    ToTheEnd,
}

/// The clock's time at `instant`, of a clock that started at `epoch`.
fn millis_since(epoch: Instant, instant: Instant) -> Millis {
    instant.duration_since(epoch).as_millis() as Millis
}

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    if let Err(errno) = rustix::thread::sched_setaffinity(None, &set) {
        warn!(err = %errno, "worker_not_pinned");
    }
}

struct Worker<C> {
    number: usize,
    core: C,
    ring: Ring,
    links: Vec<Option<Link>>,
    accepting: Accepting,
    proxy_headers: ProxyHeaders,
    tls: Option<Arc<ServerConfig>>,
    small: BufferGroup,
    large: BufferGroup,
    /// Connections whose receive found no free buffer, the longest waiting first.
    starved: VecDeque<Key>,
    /// Connections that have used up their share of a turn, the longest waiting first.
    deferred: VecDeque<Key>,
    /// Connections whose handshakes wait for a step, the longest waiting first.
    handshakes: VecDeque<Key>,
    turn_number: u32,
    /// The next turn does not wait for completions.
    skip_wait: bool,
    /// Connections on their way to another worker, with their deadlines, earliest first.
    handing_over: VecDeque<(Millis, Key)>,
    /// Steps of TLS handshakes that this turn may still take.
    handshakes_left: u32,
    mailbox: Mailbox,
    /// What the thread's runtime waits on, and whether it has something to do.
    runtime: RawFd,
    runtime_ready: bool,
    mailboxes: Vec<UnboundedSender<Mail>>,
    wakes: Sender<Box<Wake>>,
    metrics: Arc<Metrics>,
    counters: Arc<WorkerMetrics>,
    epoch: Instant,
    shutting_down: bool,
    takeover: Takeover,
    // Kept for their capacity.
    completed: Vec<Completion>,
    actions: Vec<Action>,
    warm: Warm,
    /// Connections whose TLS has something to say, with what the core writes in this turn.
    unflushed: Vec<Key>,
    spare: Vec<Vec<u8>>,
}

impl<C: Core> Worker<C> {
    /// A worker that begins anew, or goes on with what it has inherited; none if it cannot, or is not
    /// to.
    fn make(
        mut start: Start,
        parts: (Ring, BufferGroup, BufferGroup),
        make: impl FnOnce(Settings) -> C,
    ) -> io::Result<Option<Self>> {
        let Some(inherited) = start.inherited.take() else {
            let core = |settings| Ok((make(settings), Vec::new()));
            return Ok(Self::new(start, parts, core)?.ok());
        };
        let Inherited { state, sockets, ready, go } = inherited;
        let (tls, now) = (start.tls.clone(), millis_since(start.epoch, Instant::now()));
        let taken = |settings| handover::take_in((settings, now), tls.as_ref(), state, sockets);
        Ok(match Self::new(start, parts, taken)? {
            Ok(worker) => handover::await_go(&ready, &go).then_some(worker),
            Err(why) => {
                // Whoever asked may be gone, and the worker is of no use then either.
                let _ = ready.send(Err(why));
                None
            }
        })
    }

    fn new(
        start: Start,
        (ring, small, large): (Ring, BufferGroup, BufferGroup),
        make: impl FnOnce(Settings) -> Result<(C, Vec<Option<Link>>), String>,
    ) -> io::Result<Result<Self, String>> {
        let Start {
            settings, listeners, proxy_headers, tls, mailbox, mailboxes, epoch, wakes, ..
        } = start;
        let (number, metrics) = (settings.worker, settings.metrics.clone());
        let counters = metrics.worker(number);
        let runtime = runtime::descriptor()?;
        Ok(make(settings).map(|(core, links)| Self {
            number,
            core,
            links,
            accepting: Accepting::new(listeners),
            proxy_headers,
            tls,
            small,
            large,
            ring,
            starved: VecDeque::new(),
            deferred: VecDeque::new(),
            handshakes: VecDeque::new(),
            turn_number: 0,
            skip_wait: false,
            handing_over: VecDeque::new(),
            handshakes_left: 0,
            mailbox: Mailbox::new(mailbox),
            runtime,
            runtime_ready: false,
            mailboxes,
            wakes,
            metrics,
            counters,
            epoch,
            shutting_down: false,
            takeover: Takeover::default(),
            completed: Vec::new(),
            actions: Vec::new(),
            warm: Warm::default(),
            unflushed: Vec::new(),
            spare: Vec::new(),
        }))
    }

    /// Turns of the loop.
    fn serve(&mut self) -> io::Result<Served> {
        loop {
            let wait = self.next_wait();
            self.turn(wait)?;
            if self.takeover.is_over() || self.shutting_down && self.core.connections() == 0 {
                return Ok(Served::ToTheEnd);
            }
            if std::mem::take(&mut self.runtime_ready) {
                self.ring.watch_runtime(self.runtime);
                return Ok(Served::UntilRuntimeReady);
            }
        }
    }

    /// How long the next turn waits where nothing has completed.
    fn next_wait(&mut self) -> Wait {
        if self.takeover.is_still() {
            return if self.has_mail() { Wait::No } else { Wait::Indefinitely };
        }
        let queues = [&self.starved, &self.deferred, &self.handshakes];
        let is_busy = match self.takeover.allows_reading() {
            true => queues.iter().any(|queue| !queue.is_empty()),
            false => self.takeover.is_hurried(),
        };
        // What waits behind a quick send goes on when that is over, of which nothing tells.
        let is_queued = self.core.take_queued_behind() | std::mem::take(&mut self.skip_wait);
        let is_behind = is_queued && self.ring.has_quick_sends();
        if is_behind || is_busy || self.has_mail() {
            return Wait::No;
        }
        let overdue = self.handing_over.front().map(|(due, _)| *due);
        let deadlines = [self.core.next_wake_ms(), self.accepting.paused_until(), overdue];
        let Some(at) = deadlines.into_iter().flatten().min() else { return Wait::Indefinitely };
        let at = self.epoch + Duration::from_millis(at);
        if at <= Instant::now() { Wait::No } else { Wait::Until(at) }
    }

    /// One turn of the loop. What it queues for the ring is submitted by the next one.
    fn turn(&mut self, wait: Wait) -> io::Result<()> {
        let mut completed = std::mem::take(&mut self.completed);
        self.ring.turn(&mut completed, wait)?;
        let begun = Instant::now();
        let now = millis_since(self.epoch, begun);
        let forwarded = self.forwarded();
        let completions = completed.len();
        self.turn_number = self.turn_number.wrapping_add(1);
        self.handshakes_left = receive::HANDSHAKES_PER_TURN;
        if self.takeover.allows_reading() {
            self.read_deferred(now);
        }
        for completion in completed.drain(..) {
            match completion {
                Completion::Received { key, mode, result, buffer, more, sock_nonempty } => {
                    let key = Key(key);
                    if let Some(buffer) = buffer {
                        self.on_bytes(now, key, mode, buffer, result);
                    }
                    self.on_received(now, key, mode, result, (more, sock_nonempty));
                }
                Completion::ReceiveNotCancelled { key } => {
                    self.on_receive_not_cancelled(Key(key));
                }
                Completion::SendNotCancelled { key } => self.on_send_not_cancelled(Key(key)),
                Completion::Sent { key, outgoing, result } => {
                    self.on_sent(now, Key(key), outgoing, result);
                }
                Completion::Accepted { listener, socket } => {
                    self.on_accepted(now, listener, socket);
                }
                Completion::RuntimeReady => self.runtime_ready = true,
            }
        }
        self.completed = completed;
        self.read_mail(now);
        if self.takeover.is_still() {
            return Ok(());
        }
        if !self.takeover.defers_timers(completions) {
            self.core.on_timers(now);
        }
        self.resume_accepting(now);
        self.end_overdue_hand_overs(now);
        self.carry_out(now);
        self.flush_the_rest();
        self.receive_starved();
        self.become_quiet(now, completions);
        self.count_turn(begun, completions as u64, forwarded);
        Ok(())
    }

    fn read_mail(&mut self, now: Millis) {
        while let Some(mail) = self.next_mail() {
            self.on_mail(now, mail);
        }
    }

    /// Messages passed on so far.
    fn forwarded(&self) -> u64 {
        self.counters.get(Series::FramesPhoneToBinary)
            + self.counters.get(Series::FramesBinaryToPhone)
    }

    /// Counts a turn that began at `begun`, when `forwarded_before` messages had been passed on.
    fn count_turn(&mut self, begun: Instant, completions: u64, forwarded_before: u64) {
        let Counts { enters, waits } = self.ring.take_counts();
        self.counters.count(Series::Turns);
        self.counters.add(Series::RingEnters, enters);
        self.counters.add(Series::RingWaits, waits);
        self.counters.add(Series::Completions, completions);
        self.counters.raise(Series::CompletionsMax, completions);
        let forwarded = self.forwarded().wrapping_sub(forwarded_before);
        if forwarded > 0 {
            self.counters.delays().record(forwarded, begun.elapsed().as_micros() as u64);
        }
    }

    /// The socket of a connection, if it is here and has not been closed.
    fn link(&mut self, key: Key) -> Option<&mut Link> {
        self.links.get_mut(key.0 as usize)?.as_mut()
    }

    /// The socket of a connection that the core has not released, or that the kernel has an
    /// operation on.
    fn held_link(&mut self, key: Key) -> Option<&mut Link> {
        let link = self.links.get_mut(key.0 as usize).and_then(Option::as_mut);
        if link.is_none() {
            broken(&self.counters, "a connection has no socket");
        }
        link
    }

    /// Sends `buffer[from..to]`, or a first part of it. If that is `all` there is for now, its
    /// completion can wait.
    fn send(&mut self, key: Key, outgoing: Outgoing, all: bool) {
        let is_open = self.core.is_open(key);
        let may_wait = self.takeover.allows_waiting();
        let Some(link) = self.held_link(key) else { return };
        let manner = match may_wait {
            true if all && is_open && !link.is_slow => Manner::Quick,
            true => Manner::Patient,
            false => Manner::AtOnce,
        };
        link.is_sending = true;
        let socket = link.socket.as_raw_fd();
        self.ring.send(socket, outgoing, key.0, manner);
    }

    fn on_sent(&mut self, now: Millis, key: Key, outgoing: Outgoing, result: i32) {
        let may_wait = self.takeover.allows_waiting();
        let Some(link) = self.held_link(key) else { return };
        link.is_sending = false;
        if link.is_closing {
            return self.close_if_idle(key);
        }
        let Outgoing { buffer, from, to } = outgoing;
        let taken = match result {
            0.. => Some(result as usize),
            _ if matches!(-result, libc::EINTR | libc::EAGAIN | libc::ECANCELED) => Some(0),
            _ => None,
        };
        link.is_slow = taken.is_some_and(|taken| taken < to - from);
        if let Some(taken) = taken
            && link.is_slow
            && !may_wait
        {
            return self.hold_back(now, key, Outgoing { buffer, from, to }, taken);
        }
        if taken == Some(0) {
            // From now on the kernel waits until it can take some.
            return self.send(key, Outgoing { buffer, from, to }, false);
        }
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
    fn hand_over(&mut self, key: Key, worker: usize, hand_over: Box<HandOver>) {
        let link = self.links.get_mut(key.0 as usize).and_then(Option::take);
        self.core.release(key);
        if let (Some(link), Some(mailbox)) = (link, self.mailboxes.get(worker)) {
            debug_assert!(!link.is_busy(), "handed over while busy");
            // Fails only while the process ends, and then the connection ends too.
            let _ = mailbox.send(Mail::HandOver { socket: link.socket, tls: link.tls, hand_over });
        }
    }

    fn on_mail(&mut self, now: Millis, mail: Mail) {
        match mail {
            Mail::HandOver { socket, tls, hand_over } => {
                let key = self.core.adopt(now, *hand_over);
                self.adopt(key, Link::new(socket, Preamble::default(), tls));
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
            Mail::Disconnect { first, whom, close: (code, reason), done } => {
                let _ = done.send(self.core.disconnect(now, first, &whom, (code, &reason)));
            }
            Mail::SendAway { first, most, close, done } => {
                let _ = done.send(self.core.send_away(now, (first, most), close));
            }
            Mail::ShutDown => {
                self.shutting_down = true;
                self.stop_accepting();
                self.core.shut_down(now);
            }
            Mail::StopAccepting => self.hold_back_accepts(),
            Mail::Quiesce { done } => self.quiesce(done),
            Mail::GiveOut { done } => self.give_out_when_quiet(done),
            Mail::Resume => self.resume(now),
            Mail::Leave => self.leave(),
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
            Action::Write(key) if self.link(key).is_some_and(|link| link.is_held_up) => {}
            Action::Write(key) => {
                let Some(write) = self.core.begin_write(now, key) else { return };
                let Some(link) = self.held_link(key) else { return };
                if link.tls.is_some() {
                    return self.write_tls(now, key, write);
                }
                let Write { buffer, from, to, all } = write;
                self.send(key, Outgoing { buffer, from, to }, all);
            }
            Action::Read(key) => self.receive(key),
            Action::FinishWriting(key) => {
                let Some(link) = self.held_link(key) else { return };
                if link.tls.is_some() {
                    self.finish_tls(key);
                } else {
                    // Fails only where the peer is gone, which its receive will tell.
                    let _ = link.socket.shutdown(Shutdown::Write);
                }
            }
            Action::CheckUnsent(key) => {
                let bytes = self.held_link(key).map_or(0, |link| link.unsent_bytes());
                self.core.on_unsent(now, key, bytes);
            }
            Action::Abort(key) => {
                if let Some(link) = self.held_link(key) {
                    // Closing it resets the connection: what waits for a peer that does not read
                    // would stay in the kernel's memory for minutes.
                    let _ = link.socket.set_linger(Some(Duration::ZERO));
                }
                self.end(key);
            }
            Action::Close(key) => {
                if let Some(link) = self.held_link(key) {
                    link.send_close_notify();
                }
                self.end(key);
            }
            Action::HandOver { key, worker, hand_over } => {
                self.hand_over_when_flushed(now, key, worker, hand_over);
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
        self.forget_received(key);
        if let Some(link) = self.link(key) {
            link.is_closing = true;
            if link.is_busy() {
                let _ = link.socket.shutdown(Shutdown::Both);
                // A quick send may be all that it waits for.
                self.skip_wait = true;
            }
        }
        self.close_if_idle(key);
    }

    /// Closes the socket of a connection that has ended, once the kernel has no operation on it.
    fn close_if_idle(&mut self, key: Key) {
        let Some(slot) = self.links.get_mut(key.0 as usize) else { return };
        if slot.as_ref().is_some_and(|link| link.is_closing && !link.is_busy()) {
            *slot = None;
            self.core.release(key);
        }
    }
}
