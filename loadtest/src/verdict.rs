//! Who held the rate down: the relay, this tool, or other processes of the machine.

use serde::Serialize;
use std::fmt;

/// The share of a CPU that one thread used, and that it wanted and another process had; 1.0 is all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Share {
    pub(crate) used: f64,
    pub(crate) waited: f64,
}

/// A thread that uses this much has no time to wait for anybody.
const BUSY: f64 = 0.9;

/// Who held the rate down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bottleneck {
    /// A thread of the relay was busy all the time: the rate is what it can do.
    Relay,
    /// An agent was busy all the time, and the relay was not.
    Client,
    /// Neither got the CPU time that it wanted.
    OtherProcesses,
    /// Each had time to wait for the other.
    Neither,
    /// The relay's process is not known.
    Unknown,
}

/// Judges by the busiest thread of the relay and the busiest agent.
pub(crate) fn judge(relay: Option<Share>, client: Share) -> Bottleneck {
    let Some(relay) = relay else {
        return match client.used >= BUSY {
            true => Bottleneck::Client,
            false => Bottleneck::Unknown,
        };
    };
    let wanted = |share: Share| share.used + share.waited >= BUSY;
    if relay.used >= BUSY {
        Bottleneck::Relay
    } else if client.used >= BUSY {
        Bottleneck::Client
    } else if wanted(relay) || wanted(client) {
        Bottleneck::OtherProcesses
    } else {
        Bottleneck::Neither
    }
}

impl fmt::Display for Bottleneck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relay => "the relay was the bottleneck: the rate is what it can do",
            Self::Client => "the client was the bottleneck: the relay can do more than this",
            Self::OtherProcesses => {
                "other processes of this machine were the bottleneck: rates and times are not the \
                 relay's own"
            }
            Self::Neither => {
                "neither was busy all the time: each waited for the other, so the relay can do \
                 more (--window, more phones)"
            }
            Self::Unknown => "not known: name the relay's process with --pid",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(used: f64, waited: f64) -> Share {
        Share { used, waited }
    }

    #[test]
    fn the_one_that_is_always_busy_is_the_bottleneck() {
        let cases = [
            (Some(share(0.99, 0.0)), share(0.4, 0.0), Bottleneck::Relay),
            (Some(share(0.95, 0.0)), share(1.0, 0.0), Bottleneck::Relay),
            (Some(share(0.6, 0.0)), share(0.98, 0.0), Bottleneck::Client),
            (Some(share(0.3, 0.65)), share(0.3, 0.3), Bottleneck::OtherProcesses),
            (Some(share(0.3, 0.1)), share(0.3, 0.65), Bottleneck::OtherProcesses),
            (Some(share(0.5, 0.1)), share(0.5, 0.1), Bottleneck::Neither),
            (None, share(0.5, 0.1), Bottleneck::Unknown),
            (None, share(0.95, 0.0), Bottleneck::Client),
        ];
        for (relay, client, wanted) in cases {
            assert_eq!(judge(relay, client), wanted, "{relay:?} {client:?}");
        }
    }
}
