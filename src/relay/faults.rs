//! What a binary's messages do wrong, over and over if it likes: it costs a line in the log and
//! then a count, for each cause and server-id (PROTOCOL.md, chapters 4 and 7).
//!
//! It is counted here and not by the log, because here one costs a few instructions: a binary can
//! send millions a second.

use super::Key;
use super::Relay;
use super::connection::{Connection, Stage};
use super::registry::{Entry, EntryKey};
use super::timers::Millis;
use crate::handover::state;
use crate::metrics::Series;
use crate::protocol::envelope::EnvelopeError;
use crate::protocol::ids::ConnId;
use crate::telemetry::repeats::{Rate, Repeats};
use tracing::{debug, warn};

/// The lines of one cause and server-id: enough to see what is wrong, then one a minute.
const LINES: Rate = Rate { burst: 5, refill_ms: 60_000 };

/// What was wrong with the messages of one server-id's binary.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    bad_envelopes: Repeats,
    unknown_conn_ids: Repeats,
    wakes_while_off: Repeats,
}

impl Faults {
    /// As plain data, and in the order of the fields.
    pub(super) fn give_out(&self, now: Millis) -> [state::Repeats; 3] {
        [self.bad_envelopes, self.unknown_conn_ids, self.wakes_while_off].map(|repeats| {
            let (whole_in_ms, omitted, since_ms) = repeats.relative(now);
            state::Repeats { whole_in_ms, omitted, since_ms }
        })
    }

    /// The opposite of [`Faults::give_out`].
    pub(super) fn revive(now: Millis, given: [state::Repeats; 3]) -> Self {
        let [bad_envelopes, unknown_conn_ids, wakes_while_off] = given.map(|repeats| {
            // No more than a burst of lines can be owed.
            let whole_in_ms = repeats.whole_in_ms.min(LINES.burst * LINES.refill_ms);
            Repeats::absolute(now, (whole_in_ms, repeats.omitted, repeats.since_ms))
        });
        Self { bad_envelopes, unknown_conn_ids, wakes_while_off }
    }
}

impl Relay {
    /// The holder of an id has sent what is no envelope.
    pub(super) fn on_bad_envelope(&mut self, now: Millis, entry: EntryKey, error: EnvelopeError) {
        self.counters.count(Series::MalformedEnvelopes);
        let Some(held) = self.registry.entry_mut(entry) else { return };
        if held.faults.bad_envelopes.admit(LINES, now, 1) {
            let server_id = held.id.as_str();
            warn!(server_id, err = %error, "binary_forwarder_bad_envelope");
        }
    }

    /// The holder of an id has something for a phone that it does not have.
    pub(super) fn on_unknown_conn_id(&mut self, now: Millis, entry: EntryKey, to: Option<ConnId>) {
        self.counters.count(Series::UnknownConnIds);
        let Some(held) = self.registry.entry_mut(entry) else { return };
        if held.faults.unknown_conn_ids.admit(LINES, now, 1) {
            let (server_id, conn_id) = (held.id.as_str(), to.as_ref().map(ConnId::as_str));
            warn!(server_id, conn_id, "binary_forwarder_unknown_conn_id");
        }
    }

    /// The holder of an id asks for a wake where there are none.
    pub(super) fn on_wake_while_off(&mut self, now: Millis, entry: EntryKey) {
        let Some(held) = self.registry.entry_mut(entry) else { return };
        if held.faults.wakes_while_off.admit(LINES, now, 1) {
            debug!(server_id = held.id.as_str(), "push_wake_off");
        }
    }

    /// A binary is about to be pinged, which happens now and then whatever it does: says what it
    /// has done wrong since it was last said.
    pub(super) fn tell_faults(&mut self, now: Millis, binary: Key) {
        if let Some(Connection { stage: Stage::Binary { entry, .. }, .. }) =
            self.connections.held(binary)
            && let Some(held) = self.registry.entry_mut(*entry)
        {
            held.tell_faults(|faults| faults.take_due(LINES, now));
        }
    }
}

impl Entry {
    /// The id is free from now on: says what was not said yet.
    pub(super) fn tell_last_faults(&mut self, now: Millis) {
        self.tell_faults(|faults| faults.take(LINES, now));
    }

    fn tell_faults(&mut self, mut take: impl FnMut(&mut Repeats) -> Option<u64>) {
        let server_id = self.id.as_str();
        let Faults { bad_envelopes, unknown_conn_ids, wakes_while_off } = &mut self.faults;
        if let Some(omitted) = take(bad_envelopes) {
            warn!(server_id, omitted, "binary_forwarder_bad_envelope");
        }
        if let Some(omitted) = take(unknown_conn_ids) {
            warn!(server_id, omitted, "binary_forwarder_unknown_conn_id");
        }
        if let Some(omitted) = take(wakes_while_off) {
            debug!(server_id, omitted, "push_wake_off");
        }
    }
}
