//! A socket and what the kernel is doing with it.

use super::receive::SMALL_BYTES;
use super::ring::Reading;
use super::share::Share;
use super::tls_link::TlsLink;
use super::unsent;
use crate::protocol::opening::Opening;
use crate::protocol::proxy;
use socket2::Socket;

/// So many receives that would have fitted a small buffer, and a connection is no longer read into
/// large ones: between large messages there may be a few small ones.
const SMALL_IN_A_ROW: u8 = 8;

/// A socket and what the kernel is doing with it.
pub(super) struct Link {
    pub(super) socket: Socket,
    /// The receive under way.
    pub(super) receiving: Option<Reading>,
    /// It was going on, and the kernel is asked to stop it.
    pub(super) is_stopping: bool,
    /// What the next receive is, if the connection may keep on being read.
    pub(super) next: Reading,
    /// Receives in a row that did not need their large buffer.
    small_in_a_row: u8,
    /// There was more to receive when the last receive was done.
    pub(super) has_more: bool,
    /// A send is under way.
    pub(super) is_sending: bool,
    /// The kernel did not take the last send whole.
    pub(super) is_slow: bool,
    /// What it may have of each turn.
    pub(super) share: Share,
    /// Ended; waits for its operations.
    pub(super) is_closing: bool,
    /// Reads the PROXY header that must come first, until it has come.
    pub(super) proxy_header: Option<Box<proxy::Reader>>,
    /// Reads the first bytes for TLS, until it is known that they are.
    pub(super) opening: Option<Opening>,
    /// Between the socket and the core.
    pub(super) tls: Option<Box<TlsLink>>,
}

impl Link {
    pub(super) fn new(socket: Socket, tls: Option<Box<TlsLink>>) -> Self {
        Self {
            socket,
            receiving: None,
            is_stopping: false,
            next: Reading::On,
            small_in_a_row: 0,
            has_more: true,
            is_sending: false,
            is_slow: false,
            share: Share::default(),
            is_closing: false,
            proxy_header: None,
            opening: None,
            tls,
        }
    }

    /// Whether the kernel has something to do with it.
    pub(super) fn is_busy(&self) -> bool {
        self.receiving.is_some() || self.is_sending
    }

    /// A receive brought so many bytes: decides what the next one is.
    pub(super) fn note_received(&mut self, reading: Reading, bytes: usize) {
        if bytes >= SMALL_BYTES as usize {
            self.next = Reading::Large;
            self.small_in_a_row = 0;
        } else if reading == Reading::Large {
            self.small_in_a_row += 1;
            if self.small_in_a_row == SMALL_IN_A_ROW {
                self.next = Reading::On;
            }
        } else if self.next == Reading::Small {
            self.next = Reading::On;
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
        self.tls.is_none() && self.proxy_header.is_none()
    }

    /// Tells a peer whose session ends now that this is no accident, as far as the kernel takes it.
    pub(super) fn say_goodbye(&mut self) {
        if let Some(tls) = &mut self.tls
            && !self.is_sending
            && let Some(alert) = tls.goodbye()
        {
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // It matters to no one any more if this fails.
            let _ = self.socket.send_with_flags(&alert, flags);
        }
    }
}
