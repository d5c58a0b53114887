//! TLS between a socket and the core, carried out: what [`TlsLink`] says next is sent, and the core
//! is told what came of it.

use super::Worker;
use super::core::Core;
use super::tls::{self, Received};
use super::tls_link::{Next, Sent, TlsLink};
use crate::relay::outbox::Write;
use crate::relay::timers::Millis;
use crate::relay::{HandOver, Key};
use std::net::Shutdown;

/// Buffers for encrypted bytes that a worker keeps, so that they need not grow for each send.
const SPARE_BUFFERS: usize = 16;
/// How long a peer has to take what must leave before its connection is handed over.
const HAND_OVER_TIMEOUT_MS: Millis = 5000;
/// Sessions of a worker that keep the ciphers that they have made of their keys, which are 1.2 KiB
/// then. To make them anew takes an eighth of a microsecond.
const MAX_WARM: usize = 2048;
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

impl<C: Core> Worker<C> {
    /// The core has the application data of what arrived, and this is what it comes to.
    pub(super) fn on_decrypted(&mut self, now: Millis, key: Key, received: &Received) {
        self.note_use(now, key);
        self.charge_tls(now, key);
        match received {
            Received::Open => {
                // It leaves along with what the core has to say to that.
                if self.tls(key).is_some_and(|tls| tls.has_output()) {
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
        let is_busy = tls.note_use(now);
        if tls.is_listed || !tls.is_warm() {
            return;
        }
        if !is_busy {
            return tls.cool();
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
        let Self { links, spare, .. } = self;
        let link = links.get_mut(key.0 as usize).and_then(Option::as_mut);
        let Some(tls) = link.and_then(|link| link.tls.as_deref_mut()) else { return };
        if let Err(buffer) = tls.encrypt(write, || spare.pop()) {
            return self.core.on_written(now, key, buffer, None);
        }
        let is_used_up = tls.is_used_up();
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
        tls.finish();
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
        tls.hand_over(worker, hand_over, due);
        self.flush_tls(key);
        if self.is_handing_over_until(key, due) {
            self.handing_over.push_back((due, key));
        }
    }

    /// Whether it is the one that has to be handed over by then, and not another that has its key.
    fn is_handing_over_until(&mut self, key: Key, due: Millis) -> bool {
        self.tls(key).and_then(|tls| tls.hand_over_due()) == Some(due)
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
        let (peer_closed, has_output) = (tls.peer_closed(), tls.has_output());
        self.charge_tls(now, key);
        if has_output {
            self.unflushed.push(key);
        }
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
    pub(super) fn flush_tls(&mut self, key: Key) {
        let Some(link) = self.link(key) else { return };
        let Some(tls) = link.tls.as_deref_mut() else { return };
        if link.is_closing || link.is_held_up {
            return;
        }
        if link.is_sending {
            // It may be a quick send, of whose end nothing tells.
            self.skip_wait = true;
            return;
        }
        match tls.next() {
            Next::Rest => {}
            Next::Send { outgoing, all } => self.send(key, outgoing, all),
            Next::HandOver { worker, hand_over } => self.hand_over(key, worker, hand_over),
            Next::FinishWriting => {
                // Fails only where the peer is gone, which its receive will tell.
                let _ = link.socket.shutdown(Shutdown::Write);
            }
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
        let Some(tls) = self.tls(key) else { return };
        match tls.on_sent(out, taken) {
            Sent::Rest { outgoing, moves } => {
                self.send(key, outgoing, false);
                if moves {
                    self.core.on_write_progress(now, key);
                }
            }
            Sent::All { write, mut buffer } => {
                if self.spare.len() < SPARE_BUFFERS {
                    buffer.clear();
                    self.spare.push(buffer);
                }
                self.charge_tls(now, key);
                if let Some((buffer, bytes)) = write {
                    self.core.on_written(now, key, buffer, Some(bytes));
                }
                self.flush_tls(key);
            }
            Sent::Failed { write: Some(buffer) } => self.core.on_written(now, key, buffer, None),
            // Whoever receives next finds out.
            Sent::Failed { write: None } if tls.hand_over_due().is_some() => self.flush_tls(key),
            Sent::Failed { write: None } => self.core.on_end(now, key, false),
        }
    }
}
