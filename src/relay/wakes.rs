//! Wake requests: what a binary may ask for, on its way to the control plane (PROTOCOL.md,
//! chapter 8). Nothing of the push service is known here.

use super::registry::EntryKey;
use super::timers::Millis;
use super::{Action, Relay};
use crate::metrics::PushOutcome;
use crate::protocol::ids::ServerId;
use crate::protocol::push::{Platform, PushToken};
use tracing::info;

/// Wakes that a server-id may ask for at once.
pub const WAKE_BURST: u64 = 6;
/// The time until a server-id has one more wake, in milliseconds.
pub const WAKE_REFILL_MS: Millis = 10_000;

/// A request to wake a phone that is not connected.
#[derive(Debug, PartialEq, Eq)]
pub struct Wake {
    /// The id that the asking binary holds.
    pub server_id: ServerId,
    /// The push service.
    pub platform: Platform,
    /// The phone, for the push service.
    pub token: PushToken,
}

/// What a server-id may still ask for: [`WAKE_BURST`] at once and one more every
/// [`WAKE_REFILL_MS`]. A token bucket, kept as the time at which it will be full again.
#[derive(Debug, Clone, Copy, Default)]
pub struct WakeAllowance {
    full_at_ms: Millis,
    refused: bool,
}

/// What comes of asking a [`WakeAllowance`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The wake is paid for.
    Granted,
    /// There is nothing left.
    Refused {
        /// Nothing was refused since the last grant: worth a line in the log. Others are not, or
        /// a flood of requests would be a flood of lines.
        first: bool,
    },
}

impl WakeAllowance {
    /// Takes one wake, if one is left.
    pub fn take(&mut self, now: Millis) -> Verdict {
        let full_at_ms = self.full_at_ms.max(now) + WAKE_REFILL_MS;
        if full_at_ms > now + WAKE_BURST * WAKE_REFILL_MS {
            return Verdict::Refused { first: !std::mem::replace(&mut self.refused, true) };
        }
        *self = Self { full_at_ms, refused: false };
        Verdict::Granted
    }

    /// In how many milliseconds it will be full again, and whether something was refused since the last
    /// grant.
    #[must_use]
    pub fn left(&self, now: Millis) -> (u64, bool) {
        (self.full_at_ms.saturating_sub(now), self.refused)
    }

    /// The opposite of [`WakeAllowance::left`].
    #[must_use]
    pub fn with_left(now: Millis, (full_in_ms, refused): (u64, bool)) -> Self {
        let full_at_ms = now + full_in_ms.min(WAKE_BURST * WAKE_REFILL_MS);
        Self { full_at_ms, refused }
    }

    /// Whether it is as good as a new one.
    #[must_use]
    pub fn is_full(&self, now: Millis) -> bool {
        self.full_at_ms <= now
    }
}

impl Relay {
    /// The holder of an id asks for a wake. The control plane counts again, and for longer than
    /// the id is held; it is counted here so that no binary's flood fills the way there.
    pub(super) fn on_wake(&mut self, now: Millis, entry: EntryKey, platform: &str, token: &str) {
        if !self.push {
            return self.on_wake_while_off(now, entry);
        }
        let Some(held) = self.registry.entry_mut(entry) else { return };
        let verdict = held.wakes.take(now);
        let server_id = held.id.clone();
        if let Verdict::Refused { first } = verdict {
            self.metrics.push().count(PushOutcome::Dropped);
            if first {
                let err = "the binary asks for too many wakes";
                info!(server_id = server_id.as_str(), err, "push_wake_dropped");
            }
            return;
        }
        let (platform, token) = (Platform::named(platform), PushToken::new(token));
        self.output.act(Action::Wake(Box::new(Wake { server_id, platform, token })));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_at_once_then_one_every_ten_seconds() {
        let mut allowance = WakeAllowance::default();
        for _ in 0..6 {
            assert_eq!(allowance.take(50), Verdict::Granted);
        }
        assert_eq!(allowance.take(50), Verdict::Refused { first: true });
        assert_eq!(allowance.take(10_049), Verdict::Refused { first: false });
        assert_eq!(allowance.take(10_050), Verdict::Granted);
        assert_eq!(allowance.take(10_050), Verdict::Refused { first: true });
        assert_eq!(allowance.take(20_050), Verdict::Granted);
        assert!(!allowance.is_full(80_049) && allowance.is_full(80_050));
        for _ in 0..6 {
            assert_eq!(allowance.take(1_000_000), Verdict::Granted);
        }
        assert_eq!(allowance.take(1_000_000), Verdict::Refused { first: true });
    }
}
