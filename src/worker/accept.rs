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
use std::os::fd::{AsRawFd, OwnedFd};
use tracing::error;

/// Accepts that are queued at a time, and so the most connections that one turn takes in: a storm
/// starves nobody, and of those that came with it, the first have their requests read before the
/// last are counted.
pub(super) const ACCEPTS_IN_FLIGHT: usize = 16;
/// How long accepting pauses when descriptors or memory have run out.
const PAUSE_MS: Millis = 100;
/// The least time between two log lines about that.
const LOG_INTERVAL_MS: Millis = 60_000;

/// Whether connections are accepted.
#[derive(Debug, Default)]
pub(super) struct Accepting {
    /// Accepting is paused until then.
    paused_until: Option<Millis>,
    /// Accepts that have failed since, to be queued again.
    failed_accepts: usize,
    /// When a pause was last logged.
    pause_logged_at: Option<Millis>,
}

impl Accepting {
    /// When accepting resumes, if it is paused.
    pub(super) fn paused_until(&self) -> Option<Millis> {
        self.paused_until
    }
}

impl<C: Core> Worker<C> {
    /// A connection has come, or accepting has failed.
    pub(super) fn on_accepted(&mut self, now: Millis, socket: io::Result<OwnedFd>) {
        match socket {
            // Accepted while the accepts were being cancelled: closed at once.
            Ok(_) if self.listener.is_none() => {}
            Ok(socket) => self.on_connection(now, socket.into()),
            Err(error) if is_exhaustion(&error) => return self.pause_accepting(now, &error),
            // That connection is gone already, or its network is; the next one may not be.
            Err(_) => {}
        }
        self.accept();
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
        self.accepting.failed_accepts += 1;
        if self.accepting.paused_until.is_some() {
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
            for _ in 0..std::mem::take(&mut self.accepting.failed_accepts) {
                self.accept();
            }
        }
    }

    /// Accepts one more of those that come.
    pub(super) fn accept(&mut self) {
        if let Some(listener) = &self.listener {
            self.ring.accept(listener.as_raw_fd());
        }
    }

    /// Accepts no more, and closes the listener.
    pub(super) fn stop_accepting(&mut self) {
        self.accepting.paused_until = None;
        if let Some(listener) = self.listener.take() {
            // At once, for accepts that are under way keep it open: the worker may end before the
            // kernel has heard that they are to stop. It fails for no socket that listens.
            let _ = listener.shutdown(Shutdown::Both);
            self.ring.stop_accepting();
        }
    }
}

/// Whether accepting failed because something has run out that others may give back.
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
