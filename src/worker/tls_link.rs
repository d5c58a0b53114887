//! The TLS of one connection, and what is on its way through it, as plain data: bytes of the socket
//! in, application data out; application data in, and what the socket is to do next out. It has no
//! socket.

use super::ring::Outgoing;
use super::tls::{Plain, RECORD_BYTES, Received, Session, Unusable};
use crate::handover::link::{Output, Tls};
use crate::handover::state::Bytes;
use crate::relay::HandOver;
use crate::relay::outbox::Write;
use crate::relay::timers::Millis;
use rustls::ServerConfig;
use std::fmt;
use std::sync::Arc;

/// Application data in one send, over TLS: what a peer that reads slowly keeps us from saying
/// anything else.
const SEND_BYTES: usize = 4 * RECORD_BYTES;
/// A session is busy that is used more often than this in so short a time: more than a request with
/// its answer, or a ping with its pong. Others have nothing to keep.
const FEW_USES: u8 = 4;
const SHORT_MS: Millis = 2000;

/// The TLS of a socket, and what is on its way through it.
pub struct TlsLink {
    session: Session,
    /// Encrypted, and not with the kernel yet.
    out: Vec<u8>,
    /// Bytes that the kernel has taken of the send under way.
    sent: usize,
    /// The core's write, whose bytes are in `out` or in the send under way.
    write: Option<EncryptedWrite>,
    /// Bytes of `out`, or of the send under way, that no write stands for any more.
    left_over: usize,
    /// The last send was not taken whole.
    slow: bool,
    /// Uses of the session, each soon after the one before it.
    uses: u8,
    last_use: Millis,
    /// The session may have ciphers, and the worker knows.
    pub(super) is_listed: bool,
    /// The session was used since the worker looked whether it is.
    pub(super) was_used: bool,
    output: Output,
    /// The peer has said that it will send nothing more.
    peer_closed: bool,
    then: Then,
}

/// What is to be done once everything is with the kernel.
enum Then {
    GoOn,
    /// The sending direction ends.
    Finish,
    HandOver(PendingHandOver),
}

/// Where a connection is to go.
struct PendingHandOver {
    worker: usize,
    hand_over: Box<HandOver>,
    /// When it must have gone.
    due: Millis,
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

/// What a socket is to do that has no send under way.
#[derive(Debug)]
pub(super) enum Next {
    /// Nothing.
    Rest,
    /// Send this. If that is `all` there is for now, its completion can wait.
    Send { outgoing: Outgoing, all: bool },
    /// Go to another worker.
    HandOver { worker: usize, hand_over: Box<HandOver> },
    /// End the sending direction (a FIN).
    FinishWriting,
}

/// What came of a send.
#[derive(Debug)]
pub(super) enum Sent {
    /// The kernel has not taken all: send the rest. It `moves` if it has taken some.
    Rest { outgoing: Outgoing, moves: bool },
    /// It has all of it. The core's write comes back, as much of it as was encrypted, if it was a
    /// part of that; and the buffer, to be used again.
    All { write: Option<(Vec<u8>, usize)>, buffer: Vec<u8> },
    /// The peer is gone. The core's write comes back, if there was one.
    Failed { write: Option<Vec<u8>> },
}

impl TlsLink {
    pub(super) fn new(session: Session) -> Box<Self> {
        Box::new(Self {
            session,
            out: Vec::new(),
            sent: 0,
            write: None,
            left_over: 0,
            slow: false,
            uses: 0,
            last_use: 0,
            is_listed: false,
            was_used: false,
            output: Output::Open,
            peer_closed: false,
            then: Then::GoOn,
        })
    }

    /// Whether not a byte of a handshake has come yet.
    pub(super) fn is_new(&self) -> bool {
        self.session.is_new()
    }

    /// There is to be no handshake; the peer is told so as the connection ends.
    pub(super) fn refuse(&mut self) {
        self.session.refuse();
    }

    /// Whether the handshake is still under way.
    pub(super) fn is_handshaking(&self) -> bool {
        self.session.is_handshaking()
    }

    /// Whether the session has ciphers.
    pub(super) fn is_warm(&self) -> bool {
        self.session.is_warm()
    }

    /// The session was used. Whether it is busy.
    pub(super) fn note_use(&mut self, now: Millis) -> bool {
        if now.saturating_sub(std::mem::replace(&mut self.last_use, now)) > SHORT_MS {
            self.uses = 0;
        }
        self.uses = self.uses.saturating_add(1);
        self.was_used = true;
        self.uses > FEW_USES
    }

    /// Has the session forget its ciphers until it is used again.
    pub(super) fn cool(&mut self) {
        self.session.cool();
        self.is_listed = false;
    }

    /// Whether its keys are good for little more.
    pub(super) fn is_used_up(&self) -> bool {
        self.session.is_used_up()
    }

    /// Whether the peer has said that it will send nothing more.
    pub(super) fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// Whether there is something that no send has taken yet.
    pub(super) fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Encrypted bytes that no send has taken yet.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.out.len()
    }

    /// What is to be charged for it beside what the core knows.
    pub(super) fn held_bytes(&self) -> usize {
        let written = self.write.as_ref().map_or(0, |write| write.bytes);
        self.session.held_bytes() + self.left_over + written
    }

    /// What `input` holds of application data, which is left where it lies, as far as that takes no
    /// more than so many messages do.
    pub(super) fn decrypt(&mut self, input: &mut [u8], most_work: u32) -> Plain {
        if self.output == Output::Failed {
            // All that is left is to let its alert arrive.
            return Plain::nothing();
        }
        let plain = self.session.receive_some(input, &mut self.out, most_work);
        match plain.received {
            Received::Open => {}
            Received::Closed => self.peer_closed = true,
            Received::Failed(_) => self.output = Output::Failed,
        }
        plain
    }

    /// Encrypts a first part of the core's write, into a buffer of `spare` where it has none.
    ///
    /// # Errors
    ///
    /// The write's buffer, if nothing may be said any more.
    pub(super) fn encrypt(
        &mut self,
        write: Write,
        spare: impl FnOnce() -> Option<Vec<u8>>,
    ) -> Result<(), Vec<u8>> {
        debug_assert!(self.write.is_none(), "two writes at once");
        if self.out.capacity() == 0 {
            self.out = spare().unwrap_or_default();
        }
        let most = if self.slow { RECORD_BYTES } else { SEND_BYTES };
        let bytes = (write.to - write.from).min(most);
        let data = write.buffer.get(write.from..write.from + bytes).unwrap_or_default();
        if self.output == Output::Failed || !self.session.encrypt(data, &mut self.out) {
            return Err(write.buffer);
        }
        let all = write.all && bytes == write.to - write.from;
        self.write = Some(EncryptedWrite { buffer: write.buffer, bytes, all, in_flight: false });
        Ok(())
    }

    /// The alert that ends the session in good order, if nothing is in its way.
    pub(super) fn close_notify(&mut self) -> Option<Vec<u8>> {
        let mut alert = Vec::new();
        let is_free = self.out.is_empty() && self.output == Output::Open;
        (is_free && self.session.close(&mut alert)).then_some(alert)
    }

    /// Ends the session, and the sending direction once everything is with the kernel.
    pub(super) fn finish(&mut self) {
        if self.output == Output::Open {
            self.output = Output::Closed;
            self.session.close(&mut self.out);
        }
        self.then = Then::Finish;
    }

    /// Goes to another worker once everything is with the kernel, which must be before `due`.
    pub(super) fn hand_over(&mut self, worker: usize, hand_over: Box<HandOver>, due: Millis) {
        self.then = Then::HandOver(PendingHandOver { worker, hand_over, due });
    }

    /// When it must have been handed over, if it is to be.
    pub(super) fn hand_over_due(&self) -> Option<Millis> {
        match &self.then {
            Then::HandOver(pending) => Some(pending.due),
            Then::GoOn | Then::Finish => None,
        }
    }

    /// What the socket is to do, which has no send under way.
    pub(super) fn next(&mut self) -> Next {
        if !self.out.is_empty() {
            let out = std::mem::take(&mut self.out);
            self.sent = 0;
            // What comes from TLS alone may be in the way of what the core will write.
            let mut all = false;
            if let Some(write) = &mut self.write {
                write.in_flight = true;
                all = write.all;
            }
            return Next::Send { outgoing: Outgoing { from: 0, to: out.len(), buffer: out }, all };
        }
        match std::mem::replace(&mut self.then, Then::GoOn) {
            Then::GoOn => Next::Rest,
            Then::Finish => Next::FinishWriting,
            Then::HandOver(PendingHandOver { worker, hand_over, .. }) => {
                Next::HandOver { worker, hand_over }
            }
        }
    }

    /// What is left of a send, which the kernel does not take for now, waits here before what was
    /// encrypted meanwhile. The core's write comes back, as much of it as was encrypted: its bytes
    /// will leave from here.
    pub(super) fn hold_back(&mut self, outgoing: Outgoing) -> Option<(Vec<u8>, usize)> {
        let Outgoing { mut buffer, from, to } = outgoing;
        buffer.truncate(to);
        buffer.drain(..from);
        buffer.append(&mut self.out);
        self.out = buffer;
        self.sent = 0;
        self.left_over = self.out.len();
        self.write.take().map(|write| (write.buffer, write.bytes))
    }

    /// Where it is to go, if it is to go to another worker, though not everything is with the kernel:
    /// the other will send the rest. No send may be under way.
    pub(super) fn take_hand_over(&mut self) -> Option<(usize, Box<HandOver>)> {
        match std::mem::replace(&mut self.then, Then::GoOn) {
            Then::HandOver(PendingHandOver { worker, hand_over, .. }) => Some((worker, hand_over)),
            other => {
                self.then = other;
                None
            }
        }
    }

    /// Everything, with which another process goes on. None amid a handshake. There must be no send
    /// under way, and no write or hand-over of the core.
    pub(super) fn give_out(&self) -> Option<Tls> {
        debug_assert!(
            self.write.is_none() && self.hand_over_due().is_none(),
            "given out while busy"
        );
        Some(Tls {
            session: self.session.give_out()?,
            partial: Bytes(self.session.partial().to_vec()),
            out: Bytes(self.out.clone()),
            output: self.output,
            peer_closed: self.peer_closed,
            finishes: matches!(self.then, Then::Finish),
        })
    }

    /// Goes on with what another has given out.
    ///
    /// # Errors
    ///
    /// There can be no such session under this configuration.
    pub(super) fn take_in(given: Tls, config: &Arc<ServerConfig>) -> Result<Box<Self>, Unusable> {
        let Tls { session, partial, out: Bytes(out), output, peer_closed, finishes } = given;
        let mut link = Self::new(Session::take_in(&session, partial.0, config)?);
        link.left_over = out.len();
        link.out = out;
        link.output = output;
        link.peer_closed = peer_closed;
        link.then = if finishes { Then::Finish } else { Then::GoOn };
        Ok(link)
    }

    /// The kernel took `taken` bytes of what was left of `out`, which is encrypted, or failed.
    pub(super) fn on_sent(&mut self, out: Vec<u8>, taken: Option<usize>) -> Sent {
        let Some(taken) = taken else {
            self.out.clear();
            self.left_over = 0;
            self.output = Output::Failed;
            return Sent::Failed { write: self.write.take().map(|write| write.buffer) };
        };
        self.sent += taken;
        self.slow = self.sent < out.len();
        if self.slow {
            let outgoing = Outgoing { from: self.sent, to: out.len(), buffer: out };
            return Sent::Rest { outgoing, moves: taken > 0 };
        }
        // A send takes all that is encrypted, and what is left over comes first.
        self.left_over = 0;
        let write = self.write.take_if(|write| write.in_flight);
        Sent::All { write: write.map(|write| (write.buffer, write.bytes)), buffer: out }
    }
}

impl fmt::Debug for TlsLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys are nothing to print.
        f.debug_struct("TlsLink").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tls::tests::{Configs, client, configs, opened, sealed, suites};
    use super::*;
    use rustls::ClientConnection;

    /// Sends what comes next, which is something, and says whether that is all for now.
    fn send(link: &mut TlsLink, client: &mut ClientConnection) -> (Vec<u8>, bool) {
        let Next::Send { outgoing: Outgoing { buffer, from, to }, all } = link.next() else {
            panic!("nothing is sent");
        };
        let data = opened(client, &buffer[from..to]);
        assert!(matches!(link.on_sent(buffer, Some(to - from)), Sent::All { .. }));
        (data, all)
    }

    /// A link whose handshake is done, with its peer.
    fn open() -> (Box<TlsLink>, ClientConnection) {
        let configs: Configs = configs(suites()[0]);
        let (mut client, mut link) =
            (client(&configs), TlsLink::new(Session::new(&configs.server)));
        assert!(link.is_new());
        while client.is_handshaking() || link.is_handshaking() {
            let plain = link.decrypt(&mut sealed(&mut client), u32::MAX);
            assert_eq!((plain.received, plain.data.len()), (Received::Open, 0));
            while link.has_output() {
                send(&mut link, &mut client);
            }
        }
        assert!(matches!(link.next(), Next::Rest) && !link.is_new());
        (link, client)
    }

    fn write(bytes: usize) -> Write {
        Write { buffer: vec![7; bytes], from: 0, to: bytes, all: true }
    }

    #[test]
    fn a_session_is_busy_that_is_used_again_and_again_within_a_short_time() {
        let (mut link, _) = open();
        let busy = |link: &mut TlsLink, times: [Millis; 6]| times.map(|now| link.note_use(now));
        let now = 10 * SHORT_MS;
        assert_eq!(busy(&mut link, [now; 6]), [false, false, false, false, true, true]);
        let rare = [1, 2, 3, 4, 5, 6].map(|n| now + n * (SHORT_MS + 1));
        assert_eq!(busy(&mut link, rare), [false; 6]);
    }

    #[test]
    fn a_write_comes_back_as_far_as_it_was_encrypted_and_taken() {
        let (mut link, mut client) = open();
        link.encrypt(write(100), || None).unwrap();
        assert_eq!(link.held_bytes(), 100);
        let Next::Send { outgoing, all } = link.next() else { panic!("nothing is sent") };
        assert!(all);
        let (buffer, length) = (outgoing.buffer, outgoing.to);
        let Sent::Rest { outgoing, moves } = link.on_sent(buffer, Some(0)) else { panic!("all") };
        assert_eq!((outgoing.from, outgoing.to, moves), (0, length, false));
        let Sent::Rest { outgoing, moves } = link.on_sent(outgoing.buffer, Some(9)) else {
            panic!("all")
        };
        assert_eq!((outgoing.from, outgoing.to, moves), (9, length, true));
        let data = opened(&mut client, &outgoing.buffer);
        assert_eq!(data, [7; 100]);
        match link.on_sent(outgoing.buffer, Some(length - 9)) {
            Sent::All { write: Some((buffer, 100)), .. } => assert_eq!(buffer.len(), 100),
            other => panic!("{other:?}"),
        }
        assert_eq!(link.held_bytes(), 0);
    }

    #[test]
    fn who_takes_little_is_given_one_record_at_a_time() {
        let (mut link, mut client) = open();
        link.encrypt(write(10 * RECORD_BYTES), || Some(Vec::with_capacity(10))).unwrap();
        let (data, all) = send(&mut link, &mut client);
        assert_eq!((data.len(), all), (SEND_BYTES, false), "a part, and more behind it");
        // While something else is on its way and is not taken whole.
        link.slow = true;
        link.encrypt(write(3 * RECORD_BYTES), || None).unwrap();
        let (data, _) = send(&mut link, &mut client);
        assert_eq!(data.len(), RECORD_BYTES);
    }

    #[test]
    fn the_session_ends_before_the_direction_does_and_once() {
        let (mut link, mut client) = open();
        link.finish();
        assert!(link.close_notify().is_none(), "it is said already");
        send(&mut link, &mut client);
        assert!(client.process_new_packets().unwrap().peer_has_closed());
        assert!(matches!(link.next(), Next::FinishWriting));
        assert!(matches!(link.next(), Next::Rest));
        assert!(link.encrypt(write(1), || None).is_err());
        let (mut link, mut client) = open();
        opened(&mut client, &link.close_notify().unwrap());
        assert!(client.process_new_packets().unwrap().peer_has_closed());
    }

    #[test]
    fn what_a_peer_says_last_is_remembered() {
        let (mut link, mut client) = open();
        client.send_close_notify();
        assert!(!link.peer_closed());
        let plain = link.decrypt(&mut sealed(&mut client), u32::MAX);
        assert!(plain.received == Received::Closed && link.peer_closed());
    }

    #[test]
    fn where_the_peer_is_gone_the_write_comes_back_and_nothing_more_is_said() {
        let (mut link, mut client) = open();
        link.encrypt(write(50), || None).unwrap();
        let Next::Send { outgoing: Outgoing { buffer, .. }, .. } = link.next() else {
            panic!("nothing is sent")
        };
        assert!(matches!(link.on_sent(buffer, None), Sent::Failed { write: Some(_) }));
        assert!(link.encrypt(write(1), || None).is_err());
        assert!(link.close_notify().is_none());
        assert!(!link.has_output());
        let plain = link.decrypt(&mut sealed(&mut client), u32::MAX);
        assert!(plain.data.is_empty());
    }

    /// The link in another process.
    fn moved(link: &TlsLink) -> Box<TlsLink> {
        let bytes = postcard::to_allocvec(&link.give_out().unwrap()).unwrap();
        let configs: Configs = configs(suites()[0]);
        TlsLink::take_in(postcard::from_bytes(&bytes).unwrap(), &configs.server).unwrap()
    }

    /// The core's writes come back as written, and their bytes leave in their order.
    #[test]
    fn what_is_held_back_is_sent_by_another_before_all_else() {
        let (mut link, mut client) = open();
        link.encrypt(write(100), || None).unwrap();
        let Next::Send { outgoing, .. } = link.next() else { panic!("nothing is sent") };
        let head = outgoing.buffer[..30].to_vec();
        client.send_close_notify();
        link.decrypt(&mut sealed(&mut client), u32::MAX);
        let Sent::Rest { outgoing, .. } = link.on_sent(outgoing.buffer, Some(30)) else {
            panic!("all")
        };
        assert_eq!(link.hold_back(outgoing).unwrap().1, 100);
        let held = link.held_bytes();
        assert!(held > 70, "the core is not charged for it");
        let mut link = moved(&link);
        assert!(link.has_output() && link.held_bytes() == held && link.peer_closed());
        link.encrypt(Write { buffer: vec![8; 50], from: 0, to: 50, all: true }, || None).unwrap();
        let Next::Send { outgoing: Outgoing { buffer, from, to }, .. } = link.next() else {
            panic!("nothing is sent")
        };
        let data = opened(&mut client, &[&head, &buffer[from..to]].concat());
        assert_eq!(data, [vec![7; 100], vec![8; 50]].concat());
        let Sent::All { write: Some((_, 50)), .. } = link.on_sent(buffer, Some(to)) else {
            panic!("the write comes back")
        };
        assert_eq!(link.held_bytes(), 0);
    }

    #[test]
    fn a_session_that_ends_does_so_in_another_process() {
        let (mut link, mut client) = open();
        link.finish();
        let mut link = moved(&link);
        assert!(link.encrypt(write(1), || None).is_err());
        send(&mut link, &mut client);
        assert!(client.process_new_packets().unwrap().peer_has_closed());
        let mut link = moved(&link);
        assert!(matches!(link.next(), Next::FinishWriting));
        let mut link = moved(&link);
        assert!(matches!(link.next(), Next::Rest) && link.close_notify().is_none());
    }

    #[test]
    fn what_cannot_be_read_ends_it_with_an_alert() {
        let (mut link, mut client) = open();
        let plain = link.decrypt(&mut [23, 3, 3, 0, 1, 0], u32::MAX);
        assert!(matches!(plain.received, Received::Failed(_)));
        assert!(link.has_output(), "the alert");
        let Next::Send { outgoing, .. } = link.next() else { panic!("nothing is sent") };
        let mut alert = outgoing.buffer.as_slice();
        client.read_tls(&mut alert).unwrap();
        assert!(client.process_new_packets().is_err());
    }
}
