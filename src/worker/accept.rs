//! Taking in what connects, and resting from it where descriptors or memory have run out.

use super::Worker;
use super::core::Core;
use super::link::Link;
use super::tls;
use super::tls_link::TlsLink;
use crate::metrics::Series;
use crate::protocol::opening::Opening;
use crate::relay::timers::Millis;
use crate::telemetry::Remote;
use socket2::Socket;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use tracing::error;

/// Connections that may be accepted in one turn: a storm starves nobody, and of those that came
/// with it, the first have their requests read before the last are counted.
pub(super) const AT_ONCE: usize = 16;
/// How long accepting rests when descriptors or memory have run out.
const REST_MS: Millis = 100;
/// How long it is not said again that it does.
const SILENCE_MS: Millis = 60_000;

/// Whether connections are accepted.
#[derive(Debug, Default)]
pub(super) struct Accepting {
    /// It rests until then.
    rests_until: Option<Millis>,
    /// How many accepts have failed since, and are to be started again.
    resting: usize,
    /// When it was last said that it rests.
    rest_said: Option<Millis>,
}

impl Accepting {
    /// When it goes on, if it rests.
    pub(super) fn rests_until(&self) -> Option<Millis> {
        self.rests_until
    }
}

impl<C: Core> Worker<C> {
    /// A connection has come, or accepting has failed.
    pub(super) fn on_accepted(&mut self, now: Millis, socket: io::Result<OwnedFd>) {
        match socket {
            // What came while accepting was being stopped is nobody's any more.
            Ok(_) if self.listener.is_none() => {}
            Ok(socket) => self.take_in(now, socket.into()),
            Err(error) if is_exhaustion(&error) => return self.rest_from_accepting(now, &error),
            // That connection is gone already, or its network is; the next one may not be.
            Err(_) => {}
        }
        self.accept();
    }

    fn take_in(&mut self, now: Millis, socket: Socket) {
        self.counters.count(Series::Accepted);
        // It fails where the peer is gone already.
        let Ok(Some(address)) = socket.peer_addr().map(|address| address.as_socket()) else {
            return;
        };
        let tls = self.tls.as_ref().map(tls::Session::new);
        let key = self.core.accept(now, Remote(address));
        let mut link = Link::new(socket, tls.map(TlsLink::new));
        link.opening = link.tls.is_some().then(Opening::default);
        if self.proxy_headers.expected_from(address.ip()) {
            link.proxy_header = Some(Box::default());
        }
        self.adopt(key, link);
    }

    fn rest_from_accepting(&mut self, now: Millis, error: &io::Error) {
        self.accepting.resting += 1;
        if self.accepting.rests_until.is_some() {
            return;
        }
        self.counters.count(Series::AcceptPauses);
        self.accepting.rests_until = Some(now + REST_MS);
        if self.accepting.rest_said.is_none_or(|said| now - said >= SILENCE_MS) {
            self.accepting.rest_said = Some(now);
            error!(err = %error, "accept_paused");
        }
    }

    /// Accepts again where accepting has rested long enough.
    pub(super) fn accept_after_rest(&mut self, now: Millis) {
        if self.accepting.rests_until.take_if(|until| *until <= now).is_some() {
            for _ in 0..std::mem::take(&mut self.accepting.resting) {
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
        self.accepting.rests_until = None;
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
