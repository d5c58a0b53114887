//! What the controlling process and its agents tell each other: one line of JSON each.

use crate::tls::{Handshakes, Offer};
use crate::wire::Target;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

/// Binaries x phones of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(crate) binaries: u32,
    pub(crate) phones: u32,
}

impl Shape {
    pub(crate) fn phones_in_all(self) -> u64 {
        u64::from(self.binaries) * u64::from(self.phones)
    }

    pub(crate) fn connections(self) -> u64 {
        self.phones_in_all() + u64::from(self.binaries)
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok().filter(|number| (1..=60_000).contains(number));
        let parts = text.split_once('x').map(|(b, p)| (number(b), number(p)));
        match parts {
            Some((Some(binaries), Some(phones))) => Ok(Self { binaries, phones }),
            _ => Err("write binaries x phones of each, for example 64x16".into()),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.binaries, self.phones)
    }
}

/// How the connections are used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) enum Play {
    /// Phones ask, binaries answer. Each phone has `window` questions out at a time.
    Closed { window: u32 },
    /// Phones ask when it is time, answered or not: so many questions a second in all, `burst` of
    /// them at a time.
    Open { per_second: f64, burst: u32 },
    /// Binaries send, each `window` frames ahead of what each phone has confirmed.
    Push { window: u32 },
    /// Nothing is sent.
    Idle,
    /// Phones connect and are cut, again and again; nothing is sent.
    Connect,
    /// As `Closed` with one question out, and one phone in `every` leaves after `frames` answers, one time in four by a
    /// reset, and dials again.
    Churn { frames: u32, every: u32 },
}

impl Play {
    /// Whether frames travel at all.
    pub(crate) fn has_traffic(self) -> bool {
        !matches!(self, Self::Idle | Self::Connect)
    }

    /// Whether the rate is whatever the relay and the agents can do.
    pub(crate) fn saturates(self) -> bool {
        matches!(self, Self::Closed { .. } | Self::Push { .. })
    }
}

impl fmt::Display for Play {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { window: 1 } => write!(f, "echo"),
            Self::Closed { window } => write!(f, "echo, {window} questions out at a time"),
            Self::Open { per_second, burst: 1 } => {
                write!(f, "echo, {per_second:.0} questions a second")
            }
            Self::Open { per_second, burst } => {
                write!(f, "echo, {per_second:.0} questions a second, {burst} at a time")
            }
            Self::Push { .. } => write!(f, "push"),
            Self::Idle => write!(f, "idle"),
            Self::Connect => write!(f, "connect"),
            Self::Churn { every: 1, .. } => write!(f, "churn"),
            Self::Churn { .. } => write!(f, "soak"),
        }
    }
}

/// One agent's share of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) target: Target,
    /// What its peers offer, if the target speaks TLS.
    pub(crate) offer: Offer,
    pub(crate) play: Play,
    /// Its binaries, and phones of each.
    pub(crate) shape: Shape,
    /// The number of its first binary in the whole run.
    pub(crate) first_binary: u32,
    /// Bytes of JSON in each frame.
    pub(crate) size: usize,
    /// Unique to the run; server-ids begin with it.
    pub(crate) run: String,
    /// How long an upgrade or a frame may be overdue.
    pub(crate) patience: Duration,
    /// Never sleeps, so that nobody has to wake it.
    pub(crate) spin: bool,
    /// The relay is upgraded meanwhile, which may cost phones their TLS handshakes: they dial again.
    pub(crate) upgrades: bool,
    /// Addresses to dial from, in turn; none for any.
    pub(crate) sources: Vec<IpAddr>,
}

/// What an agent is told; each is answered with a [`Said`], once it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Told {
    /// Connect the binaries.
    OpenBinaries,
    /// Connect the phones.
    OpenPhones,
    /// Cut the phones.
    CutPhones,
    /// Begin the traffic.
    Start,
    /// Count anew from here.
    Mark,
    /// Say what was counted since the mark.
    Count,
    /// Say how far it is.
    Progress,
    /// Say what arrived since this was last told; marks and counts are for others.
    Lap,
    /// Have each phone ask once.
    AskAll,
    /// Say what handshakes there were, ever.
    Handshakes,
    /// Send nothing new, and wait until everything under way has arrived.
    Stop,
}

/// What an agent says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Said {
    /// Done as told.
    Done,
    /// Frames that arrived since the mark.
    Progress { messages: u64 },
    /// See [`Lap`].
    Lap(Lap),
    /// TLS handshakes since this agent began.
    Handshakes(Handshakes),
    /// See [`Counts`].
    Counts(Box<Counts>),
    /// The run has failed: whose fault it is, and what it was.
    Fault(String),
}

/// What arrived at an agent since the last lap.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Lap {
    /// Frames that arrived.
    pub(crate) messages: u64,
    /// Phones that dialled again, because their TLS handshake was cut.
    pub(crate) cut_handshakes: u64,
    /// Round trips, in nanoseconds: value and how often.
    pub(crate) round_trips: Vec<(u64, u64)>,
}

/// What an agent counted since the mark.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Frames that arrived, at phones and at binaries; each was checked.
    pub(crate) messages: u64,
    /// Phones that dialled again, because their TLS handshake was cut.
    pub(crate) cut_handshakes: u64,
    /// Connections that were upgraded.
    pub(crate) upgrades: u64,
    /// How late questions of an open loop left, in nanoseconds: value and how often. It is the
    /// agent's own part of the round trips.
    pub(crate) late: Vec<(u64, u64)>,
    /// Frames that arrived at each phone.
    pub(crate) per_phone: Vec<u32>,
    /// Round trips, in nanoseconds: value and how often.
    pub(crate) round_trips: Vec<(u64, u64)>,
    /// CPU time of the agent, in microseconds.
    pub(crate) cpu_us: u64,
    /// Time that the agent was ready to run and waited for a CPU, in microseconds.
    pub(crate) waited_us: u64,
    /// Pings answered.
    pub(crate) pings: u64,
}

#[cfg(test)]
mod tests {
    use super::Shape;

    #[test]
    fn shapes_are_written_as_they_are_read() {
        for text in ["64x16", "1x1", "500x1"] {
            assert_eq!(text.parse::<Shape>().unwrap().to_string(), text);
        }
        assert_eq!("64x16".parse::<Shape>().unwrap().connections(), 64 * 17);
    }

    #[test]
    fn what_is_no_shape_is_refused() {
        for text in ["", "64", "x16", "0x1", "1x0", "64x16x1", "-1x1", "70000x1"] {
            assert!(text.parse::<Shape>().is_err(), "{text}");
        }
    }
}
