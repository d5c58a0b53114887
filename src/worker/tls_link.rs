//! The TLS between a socket and the core: what is on its way through it.

use super::Worker;
use super::core::Core;
use super::link::Link;
use super::ring::Outgoing;
use super::tls::{self, Plain, RECORD_BYTES, Received, Session};
use crate::relay::outbox::Write;
use crate::relay::timers::Millis;
use crate::relay::{HandOver, Key};
use std::fmt;
use std::net::Shutdown;

/// Application data in one send, over TLS: what a peer that reads slowly keeps us from saying
/// anything else.
const SEND_BYTES: usize = 4 * RECORD_BYTES;
/// Buffers for encrypted bytes that a worker keeps, so that they need not grow for each send.
const SPARE_BUFFERS: usize = 16;
/// How long a peer has to take what must leave before its connection is handed over.
const HAND_OVER_TIMEOUT_MS: Millis = 5000;
/// Sessions of a worker that keep the ciphers that they have made of their keys, which are 1.2 KiB
/// then. To make them anew takes an eighth of a microsecond.
const MAX_WARM: usize = 2048;
/// A session is busy that is used more often than this in so short a time: more than a request with
/// its answer, or a ping with its pong. Others have nothing to keep.
const FEW_USES: u8 = 4;
const SHORT_MS: Millis = 2000;
/// Sessions that are looked at before one forgets its ciphers though it was used lately.
const WARM_TRIES: usize = 4;

/// Which connections' sessions have ciphers; some that are listed may be gone.
#[derive(Debug, Default)]
pub(super) struct Warm {
    keys: Vec<Key>,
    random: u64,
}

impl Warm {
    /// Any of them. Chance serves best where many take turns that are just too many.
    fn choose(&mut self) -> usize {
        // Knuth's generator; whoever could foresee it would gain nothing.
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33) as usize % self.keys.len().max(1)
    }
}

/// The TLS of a socket, and what is on its way through it.
pub struct TlsLink {
    session: Session,
    /// Encrypted, and not with the kernel yet.
    out: Vec<u8>,
    /// Bytes that the kernel has taken of the send under way.
    sent: usize,
    /// The core's write, whose bytes are in `out` or in the send under way.
    write: Option<EncryptedWrite>,
    /// The last send was not taken whole.
    slow: bool,
    /// Uses of the session, each soon after the one before it.
    uses: u8,
    last_use: Millis,
    /// The session may have ciphers, and the worker knows.
    is_listed: bool,
    /// The session was used since the worker looked whether it is.
    was_used: bool,
    /// Neither side can say anything more.
    failed: bool,
    /// The session's last alert is among the output, or there will be none.
    closed: bool,
    /// The peer has said that it will send nothing more.
    peer_closed: bool,
    /// Ends the sending direction when everything is with the kernel.
    finish: bool,
    /// Goes to that worker when everything is with the kernel.
    hand_over: Option<PendingHandOver>,
}

/// Where a connection is to go.
struct PendingHandOver {
    worker: usize,
    hand_over: Box<HandOver>,
    /// When it must have gone.
    due: Millis,
}

impl TlsLink {
    pub(super) fn new(session: Session) -> Box<Self> {
        Box::new(Self {
            session,
            out: Vec::new(),
            sent: 0,
            write: None,
            slow: false,
            uses: 0,
            last_use: 0,
            is_listed: false,
            was_used: false,
            failed: false,
            closed: false,
            peer_closed: false,
            finish: false,
            hand_over: None,
        })
    }

    /// Whether not a byte of a handshake has come yet.
    pub(super) fn is_new(&self) -> bool {
        self.session.is_new()
    }

    /// There is to be no handshake; the peer is told so as it is parted from.
    pub(super) fn refuse(&mut self) {
        self.session.refuse();
    }

    /// Whether the handshake is still under way.
    pub(super) fn is_handshaking(&self) -> bool {
        self.session.is_handshaking()
    }

    /// The alert that ends the session in good order, if nothing is in its way.
    pub(super) fn close_notify(&mut self) -> Option<Vec<u8>> {
        let mut alert = Vec::new();
        let is_free = self.out.is_empty() && !self.closed;
        (is_free && self.session.close(&mut alert)).then_some(alert)
    }

    /// Encrypted bytes that no send has taken yet.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.out.len()
    }

    /// Has the session forget its ciphers until it is used again.
    fn cool(&mut self) {
        self.session.cool();
        self.is_listed = false;
    }

    /// What is to be charged for it beside what the core knows.
    fn held_bytes(&self) -> usize {
        self.session.held_bytes() + self.write.as_ref().map_or(0, |write| write.bytes)
    }
}

impl fmt::Debug for TlsLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys are nothing to print.
        f.debug_struct("TlsLink").finish_non_exhaustive()
    }
}

/// A part of a write of the core that has been encrypted.
struct EncryptedWrite {
    /// The core's own buffer, which goes back to it.
    buffer: Vec<u8>,
    /// Bytes of it that were encrypted.
    bytes: usize,
    /// There is nothing more to write for now.
    all: bool,
    /// They are in the send under way.
    in_flight: bool,
}

impl<C: Core> Worker<C> {
    /// The core has the application data of what arrived, and this is what it comes to.
    pub(super) fn on_decrypted(&mut self, now: Millis, key: Key, received: &Received) {
        self.note_use(now, key);
        self.charge_tls(now, key);
        match received {
            Received::Open => {
                // It leaves along with what the core has to say to that.
                if self.tls(key).is_some_and(|tls| !tls.out.is_empty()) {
                    self.unflushed.push(key);
                }
            }
            Received::Closed => {
                self.flush_tls(key);
                self.core.on_end(now, key, true);
            }
            Received::Failed(error) => {
                self.flush_tls(key);
                self.core.on_transport_failed(now, key, &tls::explain(error));
            }
        }
    }

    /// The session was used, and may have made ciphers, which only a busy one keeps. There are never
    /// many of them: where there are, another session forgets its own, if possible one that was not
    /// used for longer.
    fn note_use(&mut self, now: Millis, key: Key) {
        let Some(tls) = self.tls(key) else { return };
        if now.saturating_sub(std::mem::replace(&mut tls.last_use, now)) > SHORT_MS {
            tls.uses = 0;
        }
        tls.uses = tls.uses.saturating_add(1);
        tls.was_used = true;
        if tls.is_listed || !tls.session.is_warm() {
            return;
        }
        if tls.uses <= FEW_USES {
            return tls.session.cool();
        }
        tls.is_listed = true;
        if self.warm.keys.len() < MAX_WARM {
            return self.warm.keys.push(key);
        }
        let at = self.least_used();
        let Some(place) = self.warm.keys.get_mut(at) else { return };
        let other = std::mem::replace(place, key);
        if other != key
            && let Some(tls) = self.tls(other)
        {
            tls.cool();
        }
    }

    /// Where one is listed that was not used lately, if chance finds one.
    fn least_used(&mut self) -> usize {
        for _ in 1..WARM_TRIES {
            let at = self.warm.choose();
            let tls = self.warm.keys.get(at).copied().and_then(|key| self.tls(key));
            if !tls.is_some_and(|tls| std::mem::take(&mut tls.was_used)) {
                return at;
            }
        }
        self.warm.choose()
    }

    fn tls(&mut self, key: Key) -> Option<&mut TlsLink> {
        self.link(key)?.tls.as_deref_mut()
    }

    /// Has the core charge the connection for what its TLS holds.
    pub(super) fn charge_tls(&mut self, now: Millis, key: Key) {
        let Some(link) = self.link(key) else { return };
        if let Some(tls) = &link.tls {
            let bytes = tls.held_bytes() + link.share.held_bytes();
            self.core.charge_transport(now, key, bytes);
        }
    }

    /// Encrypts a first part of the core's write and sends it.
    pub(super) fn write_tls(&mut self, now: Millis, key: Key, write: Write) {
        let spare = self.spare.pop();
        let Some(tls) = self.tls(key) else { return };
        debug_assert!(tls.write.is_none(), "two writes at once");
        if tls.out.capacity() == 0 {
            tls.out = spare.unwrap_or_default();
        }
        let most = if tls.slow { RECORD_BYTES } else { SEND_BYTES };
        let bytes = (write.to - write.from).min(most);
        let data = write.buffer.get(write.from..write.from + bytes).unwrap_or_default();
        if tls.failed || !tls.session.encrypt(data, &mut tls.out) {
            return self.core.on_written(now, key, write.buffer, None);
        }
        let is_used_up = tls.session.is_used_up();
        let all = write.all && bytes == write.to - write.from;
        tls.write = Some(EncryptedWrite { buffer: write.buffer, bytes, all, in_flight: false });
        self.note_use(now, key);
        self.flush_tls(key);
        self.charge_tls(now, key);
        if is_used_up {
            self.core.on_transport_used_up(now, key);
        }
    }

    /// Ends the session, and the sending direction after it.
    pub(super) fn finish_tls(&mut self, key: Key) {
        let Some(tls) = self.tls(key) else { return };
        if !tls.closed {
            tls.closed = true;
            tls.session.close(&mut tls.out);
        }
        tls.finish = true;
        self.flush_tls(key);
    }

    /// Moves the connection to another worker once everything is with the kernel.
    pub(super) fn hand_over_when_flushed(
        &mut self,
        now: Millis,
        key: Key,
        worker: usize,
        hand_over: Box<HandOver>,
    ) {
        let Some(tls) = self.tls(key) else { return self.hand_over(key, worker, hand_over) };
        let due = now + HAND_OVER_TIMEOUT_MS;
        tls.hand_over = Some(PendingHandOver { worker, hand_over, due });
        self.flush_tls(key);
        if self.is_handing_over_until(key, due) {
            self.handing_over.push_back((due, key));
        }
    }

    /// Whether it is the one that has to be handed over by then, and not another that has its key.
    fn is_handing_over_until(&mut self, key: Key, due: Millis) -> bool {
        self.tls(key)
            .and_then(|tls| tls.hand_over.as_ref())
            .is_some_and(|pending| pending.due == due)
    }

    /// Ends connections whose peers have not taken in time what must leave before they can be handed
    /// over. The core knows nothing of them any more.
    pub(super) fn end_overdue_hand_overs(&mut self, now: Millis) {
        while let Some((due, key)) = self.handing_over.pop_front_if(|(due, _)| *due <= now) {
            if self.is_handing_over_until(key, due) {
                self.end(key);
            }
        }
    }

    /// A connection has come from another worker, whose core knows no more than what it was asked.
    pub(super) fn adopt_tls(&mut self, now: Millis, key: Key) {
        let Some(tls) = self.tls(key) else { return };
        // They are listed where it came from.
        tls.cool();
        let peer_closed = tls.peer_closed;
        self.charge_tls(now, key);
        if peer_closed {
            self.core.on_end(now, key, true);
        }
    }

    /// At the end of a turn: sends what TLS has to say where the core had nothing to add.
    pub(super) fn flush_the_rest(&mut self) {
        let mut unflushed = std::mem::take(&mut self.unflushed);
        unflushed.drain(..).for_each(|key| self.flush_tls(key));
        self.unflushed = unflushed;
    }

    /// Sends what is encrypted, unless a send is under way; without any, takes the step that
    /// waits for that.
    fn flush_tls(&mut self, key: Key) {
        let Some(link) = self.link(key) else { return };
        let Some(tls) = link.tls.as_deref_mut() else { return };
        if link.is_closing {
            return;
        }
        if link.is_sending {
            // It may be a quick send, of whose end nothing tells.
            self.skip_wait = true;
            return;
        }
        if !tls.out.is_empty() {
            let out = std::mem::take(&mut tls.out);
            tls.sent = 0;
            if let Some(write) = &mut tls.write {
                write.in_flight = true;
            }
            let outgoing = Outgoing { from: 0, to: out.len(), buffer: out };
            // What comes from TLS alone may be in the way of what the core will write.
            let all = tls.write.as_ref().is_some_and(|write| write.all);
            self.send(key, outgoing, all);
        } else if let Some(PendingHandOver { worker, hand_over, .. }) = tls.hand_over.take() {
            self.hand_over(key, worker, hand_over);
        } else if std::mem::take(&mut tls.finish) {
            // Fails only where the peer is gone, which its receive will tell.
            let _ = link.socket.shutdown(Shutdown::Write);
        }
    }

    /// The kernel took `taken` bytes of `out`, which is encrypted, or failed.
    pub(super) fn on_tls_sent(
        &mut self,
        now: Millis,
        key: Key,
        out: Vec<u8>,
        taken: Option<usize>,
    ) {
        let Some(link) = self.link(key) else { return };
        let Some(tls) = link.tls.as_deref_mut() else { return };
        let Some(taken) = taken else {
            tls.out.clear();
            tls.failed = true;
            tls.closed = true;
            return match (tls.write.take(), &tls.hand_over) {
                (Some(write), _) => self.core.on_written(now, key, write.buffer, None),
                // Whoever receives next finds out.
                (None, Some(_)) => self.flush_tls(key),
                (None, None) => self.core.on_end(now, key, false),
            };
        };
        tls.sent += taken;
        tls.slow = tls.sent < out.len();
        if tls.slow {
            let outgoing = Outgoing { from: tls.sent, to: out.len(), buffer: out };
            self.send(key, outgoing, false);
            if taken > 0 {
                self.core.on_write_progress(now, key);
            }
            return;
        }
        let write = tls.write.take_if(|write| write.in_flight);
        if self.spare.len() < SPARE_BUFFERS {
            let mut out = out;
            out.clear();
            self.spare.push(out);
        }
        self.charge_tls(now, key);
        if let Some(write) = write {
            self.core.on_written(now, key, write.buffer, Some(write.bytes));
        }
        self.flush_tls(key);
    }
}

/// What `input` holds of application data, which is left where it lies, as far as that takes no more
/// than so many messages do.
pub(super) fn decrypt(link: &mut Link, input: &mut [u8], most_work: u32) -> Plain {
    match &mut link.tls {
        // Once it has failed, all that is left is to let its alert arrive.
        Some(tls) if !tls.failed => {
            let plain = tls.session.receive_some(input, &mut tls.out, most_work);
            match plain.received {
                Received::Open => {}
                Received::Closed => tls.peer_closed = true,
                Received::Failed(_) => {
                    tls.failed = true;
                    tls.closed = true;
                }
            }
            plain
        }
        _ => Plain::nothing(),
    }
}
