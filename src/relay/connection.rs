//! One connection's state, as plain data, and its deadlines.

use super::admission::Pass;
use super::ahead::Ahead;
use super::outbox::Outbox;
use super::registry::{ClaimId, EntryKey, Seat};
use super::timers::{Millis, NEVER, TimerId};
use super::visitors::VisitId;
use crate::metrics::Series;
use crate::protocol::close::Close;
use crate::protocol::frames::Decoder;
use crate::protocol::ids::ConnId;
use crate::protocol::upgrade::{HeadScanner, Upgrade};
use crate::telemetry::Remote;

/// Everything the relay knows of one connection.
pub struct Connection {
    /// Who the peer is.
    pub remote: Remote,
    /// What it counts as until it is released; none if it was turned away at once.
    pub pass: Option<Pass>,
    /// When it was accepted, or handed over, in seconds.
    pub since_s: u32,
    /// Messages that it has sent and got.
    pub traffic: Traffic,
    /// How far it has come.
    pub stage: Stage,
    /// Incoming frames.
    pub decoder: Decoder,
    /// Outgoing bytes.
    pub outbox: Outbox,
    /// Armed for the earliest of `due`, or before.
    pub timer: TimerId,
    /// What time will bring.
    pub due: Due,
    /// Pings sent and the last of them that was answered.
    pub heartbeat: Heartbeat,
    /// Where it stands among those that are not upgraded.
    pub visit: VisitId,
    /// An [`Action::Write`](super::Action::Write) is out and not yet answered.
    pub write_queued: bool,
    /// The peer has ended its direction.
    pub ended: bool,
    /// Reading has stopped, until a backlog drains.
    pub paused: bool,
}

/// How far a connection has come.
pub enum Stage {
    /// A request head is expected; `due.stage` is its deadline.
    Head(Box<HeadBuffer>),
    /// The request is checked and another worker owns its id; earlier answers must leave first, and
    /// `due.stage` is the deadline for that.
    HandingOver(Box<PendingHandOver>),
    /// A binary that claims a held id, while the holder is probed.
    Newcomer(Box<Newcomer>),
    /// A binary that holds an id.
    Binary {
        /// Its id.
        entry: EntryKey,
        /// Its name in logs.
        conn_id: ConnId,
    },
    /// A phone that is registered.
    Phone {
        /// Its id.
        entry: EntryKey,
        /// Its name for the binary.
        conn_id: ConnId,
        /// Bytes it sent since the binary's outbox was full.
        congested_bytes: u32,
        /// Its place among the phones of the id.
        seat: Seat,
    },
    /// Our last bytes are queued or sent; `due.stage` is when TCP is aborted, once it is set.
    Closing(Closing),
    /// Aborted, closed or handed over; waits for its release.
    Closed,
}

/// How many connections of a worker there are at each stage, so that reading the gauges is O(1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Population([u64; 6]);

impl Population {
    /// The gauges, and what each shows now.
    pub fn gauges(&self) -> impl Iterator<Item = (Series, u64)> {
        let series = [
            Series::ConnectionsHead,
            Series::ConnectionsMoving,
            Series::ConnectionsNewcomer,
            Series::ConnectionsBinary,
            Series::ConnectionsPhone,
            Series::ConnectionsClosing,
        ];
        series.into_iter().zip(self.0)
    }

    /// A connection has entered this stage.
    pub fn enter(&mut self, stage: &Stage) {
        *self.count_mut(stage) += 1;
    }

    /// A connection has left this stage.
    pub fn leave(&mut self, stage: &Stage) {
        *self.count_mut(stage) -= 1;
    }

    fn count_mut(&mut self, stage: &Stage) -> &mut u64 {
        let [head, handing_over, newcomer, binary, phone, closing] = &mut self.0;
        match stage {
            Stage::Head(_) => head,
            Stage::HandingOver(_) => handing_over,
            Stage::Newcomer(_) => newcomer,
            Stage::Binary { .. } => binary,
            Stage::Phone { .. } => phone,
            Stage::Closing(_) | Stage::Closed => closing,
        }
    }
}

impl Stage {
    /// Whether WebSocket messages are exchanged: after the 101, before any close frame.
    #[must_use]
    #[inline]
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Newcomer(_) | Self::Binary { .. } | Self::Phone { .. })
    }

    /// Memory that messages take which a newcomer has sent ahead.
    #[must_use]
    #[inline]
    pub fn ahead_bytes(&self) -> usize {
        match self {
            Self::Newcomer(newcomer) => newcomer.ahead.held_bytes(),
            _ => 0,
        }
    }
}

/// What has arrived of the request head that is expected.
#[derive(Default)]
pub struct HeadBuffer {
    /// The head so far, if it did not arrive whole; or several that wait for their turn.
    pub received: Vec<u8>,
    /// How many bytes at the front of it are answered already.
    pub read: usize,
    /// How far it was searched.
    pub scanner: HeadScanner,
}

/// A connection on its way to another worker.
pub struct PendingHandOver {
    /// The owner's number.
    pub worker: usize,
    /// The checked request.
    pub upgrade: Upgrade,
    /// Bytes that followed it.
    pub unread: Vec<u8>,
}

/// A binary that waits for the outcome of a probe.
pub struct Newcomer {
    /// The id that it claims.
    pub entry: EntryKey,
    /// Its name in logs.
    pub conn_id: ConnId,
    /// Its place among the newcomers of the id.
    pub claim_id: ClaimId,
    /// Messages that it sent meanwhile, to be handled if it wins.
    pub ahead: Ahead,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Closing {
    /// The close frame that follows what is still queued; `None` once it is queued itself.
    pub then: Option<Close>,
    /// The peer owes no answer: it has sent its close frame, or can no longer be understood.
    pub answered: bool,
    /// Input is thrown away unread.
    pub discard: bool,
    /// The sending direction has ended.
    pub finished: bool,
    /// What the kernel still holds for the peer, as far as that is known.
    pub drain: Drain,
}

/// How the last bytes of a connection leave the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drain {
    /// Bytes that it held when it was last asked.
    pub unsent: usize,
    /// When they last became fewer, or were first counted.
    pub progress_at: Millis,
    /// The peer's time is over, unless the bytes have become fewer: the kernel is being asked.
    pub overdue: bool,
}

/// Heartbeat pings carry their number, so that a pong names the ping that it answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// Number of the last ping sent; 0 for none.
    pub sent: u32,
    /// Number of the last ping answered.
    pub answered: u32,
    /// When the last ping was sent: the lower half of the time in milliseconds.
    pinged_at: u32,
    /// How long the last answer took, in milliseconds, and one more; 0 for none.
    round_trip: u16,
}

impl Heartbeat {
    /// The next ping is sent; its number.
    pub fn next_ping(&mut self, now: Millis) -> u32 {
        self.sent = self.sent.wrapping_add(1);
        self.pinged_at = now as u32;
        self.sent
    }

    /// The last ping is answered.
    pub fn note_answer(&mut self, now: Millis) {
        let took = (now as u32).wrapping_sub(self.pinged_at);
        self.round_trip = u16::try_from(took.saturating_add(1)).unwrap_or(u16::MAX);
    }

    /// How long the last answer took, at most 65,534 ms.
    #[must_use]
    pub fn round_trip_ms(&self) -> Option<u16> {
        self.round_trip.checked_sub(1)
    }
}

/// Messages of a connection, by their payload as it is on the wire: a binary's with their envelope.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages that it has sent.
    pub messages_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Messages that were queued for it.
    pub messages_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
}

impl Traffic {
    /// It has sent a message.
    #[inline]
    pub fn count_in(&mut self, bytes: usize) {
        self.messages_in += 1;
        self.bytes_in += bytes as u64;
    }

    /// A message is queued for it.
    #[inline]
    pub fn count_out(&mut self, bytes: usize) {
        self.messages_out += 1;
        self.bytes_out += bytes as u64;
    }
}

/// When something must have happened, each [`NEVER`] while it is not awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The request head is complete, or TCP has closed, by the stage.
    pub stage: Millis,
    /// The next heartbeat ping is sent.
    pub ping: Millis,
    /// The last ping is answered.
    pub pong: Millis,
    /// The message under way is complete.
    pub message: Millis,
    /// The write under way has made progress.
    pub write: Millis,
}

impl Due {
    /// No deadline.
    pub const NONE: Self =
        Self { stage: NEVER, ping: NEVER, pong: NEVER, message: NEVER, write: NEVER };

    /// The first of them.
    #[must_use]
    pub fn earliest(&self) -> Millis {
        self.stage.min(self.ping).min(self.pong).min(self.message).min(self.write)
    }
}

impl Connection {
    /// A connection whose request head is expected.
    #[must_use]
    pub fn new(now: Millis, remote: Remote, pass: Option<Pass>) -> Self {
        Self {
            since_s: (now / 1000) as u32,
            traffic: Traffic::default(),
            remote,
            pass,
            stage: Stage::Head(Box::default()),
            decoder: Decoder::default(),
            outbox: Outbox::default(),
            timer: TimerId::NONE,
            due: Due::NONE,
            heartbeat: Heartbeat::default(),
            visit: VisitId::NONE,
            write_queued: false,
            ended: false,
            paused: false,
        }
    }

    /// Enters this stage, and returns the one that it leaves: the only way from one to another.
    pub fn enter(&mut self, stage: Stage, population: &mut Population) -> Stage {
        population.enter(&stage);
        let left = std::mem::replace(&mut self.stage, stage);
        population.leave(&left);
        left
    }

    /// The kernel takes bytes: if it is closing, its peer reads, and has its time anew until `due`.
    #[inline]
    pub fn note_progress(&mut self, due: Millis) {
        if let Stage::Closing(_) = self.stage {
            self.due.stage = self.due.stage.max(due);
        }
    }

    /// Whether the shell is to be told that something waits to be written, which is noted: not
    /// twice, and not while a write is under way.
    #[must_use]
    #[inline]
    pub fn asks_for_write(&mut self) -> bool {
        !self.outbox.in_flight() && !std::mem::replace(&mut self.write_queued, true)
    }

    /// Whether a read should be under way.
    #[must_use]
    pub fn wants_read(&self) -> bool {
        !self.ended && !self.paused && !matches!(self.stage, Stage::HandingOver(_) | Stage::Closed)
    }

    /// Whether WebSocket messages are exchanged: after the 101, before any close frame.
    #[must_use]
    #[inline]
    pub fn is_open(&self) -> bool {
        self.stage.is_open()
    }

    /// Whether frames of the peer still have a meaning.
    #[must_use]
    #[inline]
    pub fn reads_frames(&self) -> bool {
        self.is_open() || matches!(self.stage, Stage::Closing(Closing { discard: false, .. }))
    }
}
