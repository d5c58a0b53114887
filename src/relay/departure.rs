//! Server-ids whose connections are sent away, because the operator drains the
//! relay, or stops it little by little.

use super::registry::{Entry, EntryKey, Tenure};
use super::timers::Millis;
use super::{Key, Relay};
use crate::protocol::close::Close;
use tracing::info;

/// Slots of the registry that are looked at in one call: a worker has nothing else to do meanwhile.
const SLOTS_AT_ONCE: usize = 1000;

/// What one call has come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SentAway {
    /// Server-ids that are free now.
    pub server_ids: usize,
    /// Their connections, which are closing now.
    pub connections: usize,
    /// Where to go on; the first slot again, if this call has come to the last.
    pub next: usize,
    /// Server-ids that are left.
    pub left: usize,
}

impl Relay {
    /// Frees up to `most` server-ids, without grace, from the slot `first` on, and closes their
    /// connections with `close`.
    pub fn send_away(
        &mut self,
        now: Millis,
        (first, most): (usize, usize),
        close: Close,
    ) -> SentAway {
        let mut sent = SentAway::default();
        let end = first.saturating_add(SLOTS_AT_ONCE).min(self.registry.slots());
        let mut slot = first;
        while slot < end && sent.server_ids < most {
            if let Some(entry) = self.registry.remove(EntryKey(slot as u32)) {
                sent.server_ids += 1;
                sent.connections += self.dismiss(now, entry, close);
            }
            slot += 1;
        }
        self.registry.publish_counts();
        sent.next = if slot < self.registry.slots() { slot } else { 0 };
        sent.left = self.registry.len();
        self.settle(now);
        sent
    }

    /// Closes the connections of an id that is free now; how many that are.
    fn dismiss(&mut self, now: Millis, mut entry: Entry, close: Close) -> usize {
        info!(server_id = entry.id.as_str(), "server_sent_away");
        entry.tell_last_faults(now);
        let holder = entry.holder();
        let newcomers = match entry.tenure {
            Tenure::Probed { newcomers, .. } => newcomers,
            Tenure::Held(_) | Tenure::Grace => Default::default(),
        };
        let all = entry.phones.into_iter().chain(newcomers.into_values()).chain(holder);
        let mut closed = 0;
        for key in all {
            closed += 1;
            self.close_dismissed(now, key, close);
        }
        closed
    }

    fn close_dismissed(&mut self, now: Millis, key: Key, close: Close) {
        self.close_forgotten(now, key, close);
        // What a newcomer has sent ahead went with its claim.
        let half_read = self.connections.find(key).map_or(0, |c| c.decoder.buffered_bytes());
        self.charge_input(now, key, half_read);
    }
}
