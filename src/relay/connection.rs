//! One connection's state, as plain data, and its deadlines.

use super::Key;
use super::ahead::Ahead;
use super::outbox::Outbox;
use super::registry::{ClaimId, EntryKey, Seat};
use super::timers::{Millis, NEVER, TimerId};
use super::visitors::VisitId;
use crate::config::Limits;
use crate::metrics::Series;
use crate::protocol::close::Close;
use crate::protocol::frames::Decoder;
use crate::protocol::ids::ConnId;
use crate::protocol::upgrade::{HeadScanner, Upgrade};
use crate::shared::admission::Pass;
use crate::telemetry::Remote;

/// Everything the relay knows of one connection.
pub struct Connection {
    /// Its own name.
    pub key: Key,
    /// Who the peer is.
    pub remote: Remote,
    /// What it counts as until it is released; none if it was turned away at once.
    pub pass: Option<Pass>,
    /// When it was accepted, or handed over, in seconds, modulo 2^32: it may have been before the clock
    /// began, in another process.
    pub since_s: u32,
    /// Messages that it has sent and got.
    pub traffic: Traffic,
    /// How far it has come.
    pub stage: Stage,
    /// Incoming frames.
    pub decoder: Decoder,
    /// Outgoing bytes.
    pub outbox: Outbox,
    /// Armed for the earliest of `due`, or before, by [`Tracking`](super::connections::Tracking).
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
    Closing(Box<Closing>),
    /// Aborted, closed or handed over; waits for its release.
    Closed,
}

macro_rules! phases {
    ($($(#[$doc:meta])* $phase:ident $name:literal $series:ident = $stage:pat,)*) => {
        /// How far a connection has come, without what belongs to it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Phase { $($(#[$doc])* $phase,)* }

        impl Phase {
            const COUNT: usize = [$(Self::$phase,)*].len();
            const ALL: [Self; Self::COUNT] = [$(Self::$phase,)*];

            /// As an operator sees it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$phase => $name,)* }
            }

            /// The gauge that it is counted by.
            fn series(self) -> Series {
                match self { $(Self::$phase => Series::$series,)* }
            }
        }

        impl Stage {
            /// How far that is.
            #[must_use]
            #[inline]
            pub fn phase(&self) -> Phase {
                match self { $($stage => Phase::$phase,)* }
            }
        }
    };
}

// Every stage, in the order of a connection's life: its name for operators, its gauge.
phases! {
    /// A request head is expected.
    Head "head" ConnectionsHead = Stage::Head(_),
    /// On its way to the owner of its server-id.
    HandingOver "moving" ConnectionsMoving = Stage::HandingOver(_),
    /// A binary that waits for the outcome of a probe.
    Newcomer "newcomer" ConnectionsNewcomer = Stage::Newcomer(_),
    /// A binary that holds an id.
    Binary "binary" ConnectionsBinary = Stage::Binary { .. },
    /// A phone that is registered.
    Phone "phone" ConnectionsPhone = Stage::Phone { .. },
    /// Its last bytes are queued or sent.
    Closing "closing" ConnectionsClosing = Stage::Closing(_),
    /// Aborted, closed or handed over; waits for its release. To an operator it is still closing.
    Closed "closed" ConnectionsClosing = Stage::Closed,
}

/// How many connections of a worker there are in each phase, so that reading the gauges is O(1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Population([u64; Phase::COUNT]);

impl Population {
    /// The gauges, and what each shows now. Two phases may share one: the last counts for both.
    pub fn gauges(&self) -> impl Iterator<Item = (Series, u64)> {
        Phase::ALL.into_iter().map(|phase| {
            let alike = Phase::ALL.into_iter().zip(self.0);
            let of_gauge =
                alike.filter(|(other, _)| other.series() as usize == phase.series() as usize);
            (phase.series(), of_gauge.map(|(_, count)| count).sum())
        })
    }

    /// A connection has entered this stage.
    #[inline]
    pub fn enter(&mut self, stage: &Stage) {
        *self.count_mut(stage) += 1;
    }

    /// A connection has left this stage.
    #[inline]
    pub fn leave(&mut self, stage: &Stage) {
        *self.count_mut(stage) -= 1;
    }

    // A phase is an index within bounds.
    #[allow(clippy::indexing_slicing)]
    fn count_mut(&mut self, stage: &Stage) -> &mut u64 {
        &mut self.0[stage.phase() as usize]
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
    /// What the peer may still have to say.
    pub hearing: Hearing,
    /// The sending direction has ended.
    pub finished: bool,
    /// What the kernel still holds for the peer, as far as that is known.
    pub drain: Drain,
}

/// What a closing connection's peer may still have to say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Hearing {
    /// The answer to our close frame, among other frames.
    #[default]
    Frames,
    /// The answer, though it can no longer be understood: what ends like a close frame is one.
    Noise,
    /// Nothing: it owes no answer any more, and input is thrown away unread.
    Nothing,
}

/// How the last bytes of a connection leave the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drain {
    /// Bytes that it held when it was last asked.
    pub unsent: usize,
    /// When they last became fewer, or were first counted, modulo 2^64: it may have been in another
    /// process.
    pub progress_at: Millis,
    /// The peer's time is over, unless the bytes have become fewer: the kernel is being asked.
    pub overdue: bool,
}

/// Whose frames they are, and so what they mean.
#[derive(Debug, Clone, Copy)]
pub enum Speaker {
    /// A phone's are wrapped and passed on.
    Phone {
        /// Its id.
        entry: EntryKey,
        /// Its name for the binary.
        conn_id: ConnId,
    },
    /// A binary's are envelopes.
    Binary {
        /// Its id.
        entry: EntryKey,
    },
    /// A newcomer's are kept until it has won.
    Newcomer,
    /// Of one that is closing, only the answer to our close frame still counts.
    Closing,
}

/// Heartbeat pings carry their number, so that a pong names the ping that it answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// Number of the last ping sent; 0 for none.
    pub sent: u32,
    /// Number of the last ping answered.
    pub answered: u32,
    /// When the last ping was sent: the lower half of the time in milliseconds.
    pub(super) pinged_at: u32,
    /// How long the last answer took, in milliseconds, and one more; 0 for none.
    pub(super) round_trip: u16,
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
    /// The write under way has made progress, or another one of the same bytes.
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
    /// How old it is, in seconds.
    #[must_use]
    pub fn age_s(&self, now: Millis) -> u32 {
        ((now / 1000) as u32).wrapping_sub(self.since_s)
    }

    /// A connection whose request head is expected.
    #[must_use]
    pub fn new(now: Millis, remote: Remote, pass: Option<Pass>) -> Self {
        Self {
            // Until it is taken in.
            key: Key(u32::MAX),
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

    /// What is said of what its frames mean, if they have a meaning.
    #[must_use]
    #[inline]
    pub fn speaker(&self) -> Option<Speaker> {
        match self.stage {
            Stage::Phone { entry, conn_id, .. } => Some(Speaker::Phone { entry, conn_id }),
            Stage::Binary { entry, .. } => Some(Speaker::Binary { entry }),
            Stage::Newcomer(_) => Some(Speaker::Newcomer),
            Stage::Closing(ref closing) if closing.hearing == Hearing::Frames => {
                Some(Speaker::Closing)
            }
            _ => None,
        }
    }

    /// Whether its frames mean what they did, for sure.
    #[inline]
    pub fn is_still(&self, speaker: &Speaker) -> bool {
        matches!(
            (&self.stage, speaker),
            (Stage::Phone { .. }, Speaker::Phone { .. })
                | (Stage::Binary { .. }, Speaker::Binary { .. })
        )
    }

    /// Our last bytes: the close under way, if it is one.
    #[inline]
    pub fn closing_mut(&mut self) -> Option<&mut Closing> {
        match &mut self.stage {
            Stage::Closing(closing) => Some(closing),
            _ => None,
        }
    }

    /// Whether the relay has forgotten it but for its key.
    #[must_use]
    #[inline]
    pub fn is_closed(&self) -> bool {
        matches!(self.stage, Stage::Closed)
    }

    /// Reading goes on after a pause of ours: what the peer owes is due anew from now.
    pub fn resume_deadlines(&mut self, now: Millis, limits: &Limits) {
        if self.due.pong != NEVER {
            self.due.pong = self.due.pong.max(now + limits.heartbeat_timeout_ms);
        }
        if self.due.message != NEVER {
            self.due.message = self.due.message.max(now + limits.message_timeout_ms);
        }
    }

    /// A pong counts if it answers a ping that is not answered yet.
    pub fn on_pong(&mut self, payload: &[u8], now: Millis, pong_due: Millis) {
        let Ok(number) = payload.try_into().map(u32::from_be_bytes) else { return };
        let behind = self.heartbeat.sent.wrapping_sub(number);
        if behind >= self.heartbeat.sent.wrapping_sub(self.heartbeat.answered) {
            return;
        }
        self.heartbeat.answered = number;
        if behind == 0 {
            self.heartbeat.note_answer(now);
        }
        self.due.pong = if behind == 0 { NEVER } else { pong_due };
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
}
