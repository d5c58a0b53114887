//! A socket and what the kernel is doing with it.

use super::receive::SMALL_BYTES;
use super::ring::ReceiveMode;
use super::share::{Place, Share};
use super::tls_link::TlsLink;
use super::unsent;
use crate::handover;
use crate::handover::state::Bytes;
use crate::protocol::preamble::{HalfRead, Preamble};
use rustls::ServerConfig;
use socket2::Socket;
use std::sync::Arc;

/// So many receives that would have fitted a small buffer, and a connection is no longer read into
/// large ones: between large messages there may be a few small ones.
const SMALL_IN_A_ROW: u8 = 8;

/// Why a connection cannot go on where there is no TLS.
const NO_TLS: &str = "connections of the running relay speak TLS, and the new configuration has no \
     certificate: configure TLS as it was";

/// What the kernel reads for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// Nothing.
    Idle,
    /// A receive is under way.
    Armed(ReceiveMode),
    /// One is under way, and the kernel is asked to cancel it.
    Stopping(ReceiveMode),
}

impl Reading {
    /// The receive under way.
    pub(super) fn mode(self) -> Option<ReceiveMode> {
        match self {
            Self::Idle => None,
            Self::Armed(mode) | Self::Stopping(mode) => Some(mode),
        }
    }
}

/// A socket and what the kernel is doing with it.
pub(super) struct Link {
    pub(super) socket: Socket,
    pub(super) reading: Reading,
    /// What the next receive is, if the connection may keep on being read.
    pub(super) next: ReceiveMode,
    /// Receives in a row that did not need their large buffer.
    small_in_a_row: u8,
    /// There was more to receive when the last receive completed.
    pub(super) sock_nonempty: bool,
    /// A send is under way.
    pub(super) is_sending: bool,
    /// The kernel did not take the last send whole.
    pub(super) is_slow: bool,
    /// Nothing is sent, because the kernel has not taken all of what was and a successor may do so.
    pub(super) is_held_up: bool,
    /// What it may have of each turn.
    pub(super) share: Share,
    /// Closes once the kernel has no operation on it.
    pub(super) is_closing: bool,
    /// Reads what must come first, until it has come.
    pub(super) preamble: Preamble,
    /// Between the socket and the core.
    pub(super) tls: Option<Box<TlsLink>>,
}

impl Link {
    pub(super) fn new(socket: Socket, preamble: Preamble, tls: Option<Box<TlsLink>>) -> Self {
        Self {
            socket,
            reading: Reading::Idle,
            next: ReceiveMode::Multishot,
            small_in_a_row: 0,
            sock_nonempty: true,
            is_sending: false,
            is_slow: false,
            is_held_up: false,
            share: Share::default(),
            is_closing: false,
            preamble,
            tls,
        }
    }

    /// All but the socket, with which another process goes on. `received` has what is in a receive
    /// buffer. The kernel must have no operation on it.
    pub(super) fn give_out(
        &self,
        received: impl FnMut(Place, usize) -> Vec<u8>,
    ) -> handover::link::Link {
        debug_assert!(!self.is_busy() && !self.is_closing, "given out while busy");
        let (waiting, throttled_for) = self.share.give_out(received);
        handover::link::Link {
            preamble: give_out_preamble(&self.preamble),
            tls: self.tls.as_ref().and_then(|tls| tls.give_out()).map(Box::new),
            waiting,
            throttled_for,
            is_large: self.next == ReceiveMode::OnceLarge,
        }
    }

    /// Goes on with what another has given out, once it is started.
    ///
    /// # Errors
    ///
    /// There can be no such link under this configuration.
    pub(super) fn take_in(
        socket: Socket,
        given: handover::link::Link,
        config: Option<&Arc<ServerConfig>>,
    ) -> Result<Self, String> {
        let handover::link::Link { preamble, tls, waiting, throttled_for, is_large } = given;
        let preamble = take_in_preamble(preamble)
            .ok_or("the running relay gave out the beginning of a PROXY header that is none")?;
        let tls = match (tls, config) {
            (None, _) => None,
            (Some(tls), Some(config)) => Some(TlsLink::take_in(*tls, config)?),
            (Some(_), None) => {
                return Err(NO_TLS.to_owned());
            }
        };
        let mut link = Self::new(socket, preamble, tls);
        link.share = Share::take_in(waiting, throttled_for);
        link.is_held_up = true;
        if is_large {
            link.next = ReceiveMode::OnceLarge;
        }
        Ok(link)
    }

    /// Whether it cannot be given out, because its TLS handshake is under way.
    pub(super) fn is_amid_handshake(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking() && !tls.is_new())
    }

    /// Whether the kernel has an operation on it.
    pub(super) fn is_busy(&self) -> bool {
        self.reading != Reading::Idle || self.is_sending
    }

    /// A receive brought so many bytes: decides what the next one is.
    pub(super) fn note_received(&mut self, mode: ReceiveMode, bytes: usize) {
        if bytes >= SMALL_BYTES as usize {
            self.next = ReceiveMode::OnceLarge;
            self.small_in_a_row = 0;
        } else if mode == ReceiveMode::OnceLarge {
            self.small_in_a_row += 1;
            if self.small_in_a_row == SMALL_IN_A_ROW {
                self.next = ReceiveMode::Multishot;
            }
        } else if self.next == ReceiveMode::OnceSmall {
            self.next = ReceiveMode::Multishot;
        }
    }

    /// Bytes that were written for the peer and that it has not got.
    pub(super) fn unsent_bytes(&self) -> usize {
        let encrypted = self.tls.as_ref().map_or(0, |tls| tls.unsent_bytes());
        encrypted + unsent::bytes(&self.socket)
    }

    /// Whether what arrives is for a TLS handshake.
    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// Whether what arrives is for the core as it is.
    pub(super) fn is_plain(&self) -> bool {
        self.tls.is_none() && self.preamble.is_over()
    }

    /// Sends the alert that ends a TLS session in good order (close_notify), as far as the kernel
    /// takes it at once.
    pub(super) fn send_close_notify(&mut self) {
        if let Some(tls) = &mut self.tls
            && !self.is_sending
            && let Some(alert) = tls.close_notify()
        {
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // The connection ends either way.
            let _ = self.socket.send_with_flags(&alert, flags);
        }
    }
}

fn give_out_preamble(preamble: &Preamble) -> handover::link::Preamble {
    let HalfRead { proxy_header, opening } = preamble.half_read();
    let header = |(kept, skipped_bytes)| handover::link::ProxyHeader {
        kept: Bytes(kept),
        skipped_bytes: skipped_bytes as u32,
    };
    handover::link::Preamble { proxy_header: proxy_header.map(header), opening: opening.map(Bytes) }
}

fn take_in_preamble(given: handover::link::Preamble) -> Option<Preamble> {
    let handover::link::Preamble { proxy_header, opening } = given;
    Preamble::resume(&HalfRead {
        proxy_header: proxy_header.map(|header| (header.kept.0, header.skipped_bytes as usize)),
        opening: opening.map(|held| held.0),
    })
}
