//! Taking in what connects, and resting from it where descriptors or memory have run out.

use super::Worker;
use super::core::Core;
use super::link::Link;
use super::ring;
use super::tls;
use super::tls_link::TlsLink;
use crate::metrics::Series;
use crate::relay::timers::Millis;
use crate::telemetry::Remote;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::Context;
use tracing::error;

/// Connections accepted in one turn, so that a storm does not starve the connections there are.
const ACCEPTS_PER_TURN: usize = 64;
/// How long accepting rests when descriptors or memory have run out.
const ACCEPT_REST_MS: Millis = 100;
/// How long it is not said again that it does.
const ACCEPT_REST_SILENCE_MS: Millis = 60_000;

impl<C: Core> Worker<C> {
    /// Accepts where there is something to accept, or where accepting has rested long enough.
    pub(super) fn accept_if_due(&mut self, now: Millis, cx: &mut Context<'_>) {
        let is_due = match &mut self.accept {
            Some(accept) => Pin::new(accept).poll(cx).is_ready(),
            None => self.accept_rests_until.is_some_and(|until| until <= now),
        };
        if !is_due {
            return;
        }
        self.accept = None;
        self.accept_all(now);
        if let Some(accept) = &mut self.accept {
            // Leaves the waker; nothing can have completed before the next system call.
            let is_ready = Pin::new(accept).poll(cx).is_ready();
            debug_assert!(!is_ready, "completed before it was submitted");
        }
    }

    fn accept_all(&mut self, now: Millis) {
        let Some(listener) = self.listener.take() else { return };
        for _ in 0..ACCEPTS_PER_TURN {
            match listener.accept() {
                Ok((socket, address)) => {
                    self.accept_rests_until = None;
                    self.counters.count(Series::Accepted);
                    let Some(address) = address.as_socket() else { continue };
                    let tls = self.tls.as_ref().map(tls::Session::new);
                    let key = self.core.accept(now, Remote(address));
                    let mut link = Link::new(socket, tls.map(TlsLink::new));
                    if self.proxy_headers.expected_from(address.ip()) {
                        link.proxy_header = Some(Vec::new());
                    }
                    self.adopt(key, link);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_exhaustion(&error) => {
                    let silent = ACCEPT_REST_SILENCE_MS;
                    if self.accept_rest_said.is_none_or(|said| now - said >= silent) {
                        self.accept_rest_said = Some(now);
                        error!(err = %error, "accept_paused");
                    }
                    self.counters.count(Series::AcceptPauses);
                    self.accept_rests_until = Some(now + ACCEPT_REST_MS);
                    self.listener = Some(listener);
                    return;
                }
                // That connection is gone already, or its network is; the next one may not be.
                Err(_) => {}
            }
        }
        self.accept = Some(ring::acceptable(&listener));
        self.listener = Some(listener);
    }
}

/// Whether accepting failed because something has run out that others may give back.
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
