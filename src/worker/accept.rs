//! Accepting connections, and pausing that while descriptors or memory have run out.

use super::Worker;
use super::core::Core;
use super::link::Link;
use super::tls;
use super::tls_link::TlsLink;
use crate::metrics::Series;
use crate::protocol::preamble::Preamble;
use crate::relay::timers::Millis;
use crate::telemetry::Remote;
use socket2::Socket;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use tracing::error;

/// Accepts that are queued at a time for each listener, and so the most connections of it that one
/// turn takes in: a storm starves nobody, and of those that came with it, the first have their requests
/// read before the last are counted.
const ACCEPTS_IN_FLIGHT: usize = 16;
/// How long accepting pauses when descriptors or memory have run out.
const PAUSE_MS: Millis = 100;
/// The least time between two log lines about that.
const LOG_INTERVAL_MS: Millis = 60_000;

/// A worker's listeners, and whether connections are accepted.
#[derive(Debug, Default)]
pub(super) struct Accepting {
    listeners: Vec<Listener>,
    /// No accepts are queued until someone says otherwise.
    is_held_back: bool,
    /// Accepting is paused until then.
    paused_until: Option<Millis>,
    /// When a pause was last logged.
    pause_logged_at: Option<Millis>,
}

#[derive(Debug)]
struct Listener {
    socket: Socket,
    accepts_in_flight: usize,
}

impl Accepting {
    /// Accepts are not queued yet.
    pub(super) fn new(listeners: Vec<Socket>) -> Self {
        let listener = |socket| Listener { socket, accepts_in_flight: 0 };
        let listeners = listeners.into_iter().map(listener).collect();
        Self { listeners, is_held_back: true, ..Self::default() }
    }

    /// Has accepts wait where there is nothing to accept: otherwise they would fail.
    ///
    /// # Errors
    ///
    /// None for a socket that listens.
    pub(super) fn have_accepts_wait(&self) -> io::Result<()> {
        self.listeners.iter().try_for_each(|listener| listener.socket.set_nonblocking(false))
    }

    /// When accepting resumes, if it is paused.
    pub(super) fn paused_until(&self) -> Option<Millis> {
        self.paused_until
    }

    /// Whether the kernel accepts nothing for this worker, nor will.
    pub(super) fn is_quiet(&self) -> bool {
        self.is_held_back && self.listeners.iter().all(|listener| listener.accepts_in_flight == 0)
    }

    /// The listeners' descriptors.
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        self.listeners.iter().map(|listener| listener.socket.as_raw_fd()).collect()
    }
}

impl<C: Core> Worker<C> {
    /// A connection has come by a listener, or accepting has failed.
    pub(super) fn on_accepted(&mut self, now: Millis, listener: u32, socket: io::Result<OwnedFd>) {
        if let Some(listener) = self.accepting.listeners.get_mut(listener as usize) {
            listener.accepts_in_flight -= 1;
        }
        match socket {
            // Accepted while the accepts were being cancelled: closed at once.
            Ok(_) if self.shutting_down => {}
            Ok(socket) => self.on_connection(now, socket.into()),
            Err(error) if is_exhaustion(&error) => return self.pause_accepting(now, &error),
            // That connection is gone already, or its network is; the next one may not be.
            Err(_) => {}
        }
        if !self.accepting.is_held_back
            && let Some(of) = self.accepting.listeners.get_mut(listener as usize)
        {
            of.accepts_in_flight += 1;
            self.ring.accept(of.socket.as_raw_fd(), listener);
        }
    }

    fn on_connection(&mut self, now: Millis, socket: Socket) {
        self.counters.count(Series::Accepted);
        // It fails where the peer is gone already.
        let Ok(Some(address)) = socket.peer_addr().map(|address| address.as_socket()) else {
            return;
        };
        let tls = self.tls.as_ref().map(tls::Session::new);
        let key = self.core.accept(now, Remote(address));
        let with_header = self.proxy_headers.expected_from(address.ip());
        let preamble = Preamble::new(with_header, tls.is_some());
        self.adopt(key, Link::new(socket, preamble, tls.map(TlsLink::new)));
    }

    fn pause_accepting(&mut self, now: Millis, error: &io::Error) {
        if self.accepting.is_held_back || self.accepting.paused_until.is_some() {
            return;
        }
        self.counters.count(Series::AcceptPauses);
        self.accepting.paused_until = Some(now + PAUSE_MS);
        if self.accepting.pause_logged_at.is_none_or(|said| now - said >= LOG_INTERVAL_MS) {
            self.accepting.pause_logged_at = Some(now);
            error!(err = %error, "accept_paused");
        }
    }

    /// Accepts again once the pause is over.
    pub(super) fn resume_accepting(&mut self, now: Millis) {
        if self.accepting.paused_until.take_if(|until| *until <= now).is_some() {
            self.accept();
        }
    }

    /// Queues accepts, for each listener as many as there may be.
    fn accept(&mut self) {
        for (number, listener) in (0..).zip(&mut self.accepting.listeners) {
            for _ in listener.accepts_in_flight..ACCEPTS_IN_FLIGHT {
                self.ring.accept(listener.socket.as_raw_fd(), number);
            }
            listener.accepts_in_flight = ACCEPTS_IN_FLIGHT;
        }
    }

    /// Begins to accept, or goes on with it.
    pub(super) fn start_accepting(&mut self) {
        self.accepting.is_held_back = false;
        self.accept();
    }

    /// Accepts no more for now. What comes waits in the kernel; what an accept that is under way
    /// still brings is taken in.
    pub(super) fn hold_back_accepts(&mut self) {
        self.accepting.is_held_back = true;
        self.accepting.paused_until = None;
        for number in 0..self.accepting.listeners.len() {
            self.ring.cancel_accepts(number as u32);
        }
    }

    /// Accepts no more for good, and closes the listeners.
    pub(super) fn stop_accepting(&mut self) {
        self.hold_back_accepts();
        for listener in self.accepting.listeners.drain(..) {
            // At once, for accepts that are under way keep it open: the worker may end before the
            // kernel has heard that they are to stop. It fails for no socket that listens.
            let _ = listener.socket.shutdown(Shutdown::Both);
        }
    }
}

/// Whether accepting failed because something has run out that others may give back.
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
