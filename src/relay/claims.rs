//! Claims, registrations, probes and grace: the effects of what the registry decides
//! (PROTOCOL.md, chapter 3).

use super::ahead::Ahead;
use super::connection::{Connection, Newcomer, Stage};
use super::memory::Work;
use super::registry::{Claim, Departure, EntryKey, Registration, Seat, Takeover, Tenure};
use super::timers::{Millis, NEVER};
use super::{Key, Relay};
use crate::metrics::Series;
use crate::protocol::close::Close;
use crate::protocol::ids::{ConnId, ServerId};
use crate::protocol::upgrade::{self, Role, Upgrade};
use crate::telemetry::Remote;
use rand::Rng;
use tracing::{info, warn};

impl Relay {
    /// Answers a checked request for an id of this worker with 101. The claim or the registration
    /// stands before the answer can leave. `unread` are the WebSocket bytes that came with it.
    pub(super) fn open(&mut self, now: Millis, key: Key, upgrade: Upgrade, unread: &mut [u8]) {
        if self.owners.owner_of(&upgrade.server_id) != self.worker {
            self.broken("a server-id is opened by a worker that does not own it");
        }
        if self.shutting_down {
            return self.abort(key);
        }
        let Upgrade { server_id, accept_key, role } = upgrade;
        let mut answer = Vec::with_capacity(160);
        upgrade::write_switching_protocols(&mut answer, &accept_key);
        if !self.push_http(key, &answer) {
            return;
        }
        match role {
            Role::Binary { version } => self.claim(now, key, &server_id, &version),
            Role::Phone { device_name } => {
                self.register(now, key, &server_id, device_name.as_deref());
            }
        }
        self.start_heartbeat(now, key);
        if !unread.is_empty() {
            // No more than one receive has brought.
            self.on_bytes(now, key, unread, &mut { u32::MAX });
        }
    }

    fn new_conn_id(&mut self, key: Key) -> ConnId {
        let mut nonce = [0; 12];
        self.rng.fill_bytes(&mut nonce);
        ConnId::new(key.0, nonce)
    }

    /// A connection has its place in the registry. Who it is, for the log.
    fn take_place(&mut self, key: Key, stage: Stage) -> Option<Remote> {
        let (connection, tracking) = self.connections.tracked(key)?;
        tracking.enter(connection, stage);
        connection.due.stage = NEVER;
        Some(connection.remote)
    }

    fn claim(&mut self, now: Millis, key: Key, id: &ServerId, version: &str) {
        let conn_id = self.new_conn_id(key);
        let probe_due = now + self.limits.probe_timeout_ms;
        let (entry, claim) = self.registry.claim(id, key, probe_due);
        match claim {
            Claim::Waiting { holder, first, claim_id } => {
                let newcomer = Newcomer { entry, conn_id, claim_id, ahead: Ahead::default() };
                self.take_place(key, Stage::Newcomer(Box::new(newcomer)));
                if first {
                    // Its answer must be heard.
                    self.read_at_full_pace(now, holder);
                    self.send_ping(now, holder);
                }
            }
            Claim::Granted | Claim::Reclaimed(_) => {
                self.counters.count(Series::UpgradeServerAccept);
                let remote = self.take_place(key, Stage::Binary { entry, conn_id });
                info!(
                    server_id = id.as_str(),
                    binary_conn_id = conn_id.as_str(),
                    binary_version = version,
                    remote = remote.map(tracing::field::display),
                    "server_claimed"
                );
                if let Claim::Reclaimed(phones) = claim {
                    self.counters.count(Series::Reclaims);
                    self.evict(now, id, phones, Close::RECLAIMED);
                }
                self.registry.publish_counts();
            }
        }
    }

    fn register(&mut self, now: Millis, key: Key, id: &ServerId, device_name: Option<&str>) {
        let conn_id = self.new_conn_id(key);
        let server_id = id.as_str();
        match self.registry.register(id, key) {
            Registration::Registered(entry, seat) => {
                let stage = Stage::Phone { entry, conn_id, congested_bytes: 0, seat };
                let remote = self.take_place(key, stage).map(tracing::field::display);
                self.counters.count(Series::UpgradeClientAccept);
                self.registry.publish_counts();
                let conn_id = conn_id.as_str();
                info!(server_id, conn_id, device_name, remote, "phone_registered");
            }
            Registration::NoServer => {
                let remote = self.remote_of(key);
                info!(server_id, device_name, remote, "phone_register_no_server");
                self.counters.count(Series::UpgradeClientReject404);
                self.counters.count(Series::RegisterNoServer);
                self.turn_away(now, key, Close::NO_SERVER);
            }
            Registration::AtCap => {
                let remote = self.remote_of(key);
                warn!(server_id, device_name, remote, "phone_register_at_cap");
                self.counters.count(Series::UpgradeClientReject429);
                self.counters.count(Series::RegisterPhonesAtCap);
                self.turn_away(now, key, Close::TOO_MANY_PHONES);
            }
        }
    }

    /// Who a connection is, for the log.
    pub(super) fn remote_of(&self, key: Key) -> Option<tracing::field::DisplayValue<Remote>> {
        self.connections.held(key).map(|connection| tracing::field::display(connection.remote))
    }

    /// Forgets a connection's part in the registry, given the stage that it has left. The binary
    /// is told `notice` of a phone.
    pub(super) fn leave(&mut self, now: Millis, key: Key, stage: Stage, notice: Option<u16>) {
        match stage {
            Stage::Phone { entry, conn_id, seat, .. } => {
                if let Some(moved) = self.registry.unregister(entry, key, seat) {
                    self.move_to_seat(moved, seat);
                }
                self.registry.publish_counts();
                let (server_id, remote) = (self.registry.name(entry), self.remote_of(key));
                log_phone_gone(server_id, conn_id, remote, notice);
                if let Some(code) = notice {
                    self.notify(entry, conn_id, code);
                }
            }
            Stage::Binary { entry, conn_id } => self.binary_left(now, key, entry, conn_id),
            Stage::Newcomer(newcomer) => {
                self.charge_input(now, key, 0);
                self.registry.withdraw(newcomer.entry, newcomer.claim_id);
            }
            Stage::Head(_)
            | Stage::HandingOver(_)
            | Stage::Verifying(_)
            | Stage::Closing(_)
            | Stage::Closed => {}
        }
    }

    /// A phone has another place among those of its id.
    fn move_to_seat(&mut self, phone: Key, to: Seat) {
        match self.connections.held_mut(phone).map(|connection| &mut connection.stage) {
            Some(Stage::Phone { seat, .. }) => *seat = to,
            _ => self.broken("a phone's place is taken by what is no phone"),
        }
    }

    fn binary_left(&mut self, now: Millis, key: Key, entry: EntryKey, conn_id: ConnId) {
        match self.registry.depart(entry, key, now + self.limits.grace_ms) {
            Departure::Grace => {
                self.registry.publish_counts();
                let (server_id, remote) = (self.registry.name(entry), self.remote_of(key));
                info!(server_id, binary_conn_id = conn_id.as_str(), remote, "server_released");
                // Their next frame cannot reach a binary, and they must learn so.
                self.resume_phones(now, entry);
            }
            Departure::Takeover(takeover) => self.finish_takeover(now, entry, takeover),
            Departure::NotHolder => {}
        }
    }

    /// The holder of an id has completed a frame: if it is being probed, it lives.
    #[inline]
    pub(super) fn holder_lives(&mut self, now: Millis, entry: EntryKey) {
        if self.registry.is_probed(entry) {
            self.end_probe(now, entry);
        }
    }

    #[cold]
    fn end_probe(&mut self, now: Millis, entry: EntryKey) {
        warn!(server_id = self.registry.name(entry), "server_id_conflict");
        // O(1) for each, which has paid for it with its claim.
        for newcomer in self.registry.holder_lives(entry) {
            self.turn_away_newcomer(now, newcomer);
        }
    }

    /// A newcomer has lost its claim.
    fn turn_away_newcomer(&mut self, now: Millis, newcomer: Key) {
        self.counters.count(Series::UpgradeServerReject409);
        self.counters.count(Series::RegisterServerInUse);
        self.close_now(now, newcomer, Close::ALREADY_CLAIMED, None);
    }

    /// The timer of an id: its grace is over, or its holder was silent for the probe's time.
    pub(super) fn entry_timed_out(&mut self, now: Millis, key: EntryKey) {
        let Some(entry) = self.registry.entry_mut(key) else { return };
        match entry.tenure {
            Tenure::Held(_) => self.broken("a timer fires of a server-id that is simply held"),
            Tenure::Grace => {
                info!(server_id = entry.id.as_str(), "grace_expired");
                self.counters.count(Series::GraceExpiries);
                if let Some(mut entry) = self.registry.expire(key) {
                    entry.tell_last_faults(now);
                    self.evict(now, &entry.id, entry.phones, Close::NORMAL);
                }
            }
            Tenure::Probed { holder, .. } => {
                if let Some(takeover) = self.registry.take_over(key) {
                    // Displaced, not departed: this starts no grace.
                    self.close_now(now, holder, Close::HEARTBEAT_TIMEOUT, None);
                    self.finish_takeover(now, key, takeover);
                }
            }
        }
    }

    fn finish_takeover(&mut self, now: Millis, entry: EntryKey, takeover: Takeover) {
        let Takeover { winner, losers, phones } = takeover;
        let Some(id) = self.registry.entry(entry).map(|entry| entry.id.clone()) else { return };
        let newcomer = self.connections.held(winner).and_then(|winner| match &winner.stage {
            Stage::Newcomer(newcomer) => Some(&**newcomer),
            _ => None,
        });
        warn!(
            server_id = id.as_str(),
            binary_conn_id = newcomer.map(|newcomer| newcomer.conn_id.as_str()),
            remote = self.remote_of(winner),
            "server_id_takeover"
        );
        self.evict(now, &id, phones, Close::RECLAIMED);
        // O(1) for each, which has paid for it with its claim.
        for loser in losers {
            self.turn_away_newcomer(now, loser);
        }
        self.counters.count(Series::Takeovers);
        self.counters.count(Series::UpgradeServerAccept);
        self.promote(now, winner);
    }

    /// A newcomer has won: it is the holder, and what it has sent meanwhile counts.
    fn promote(&mut self, now: Millis, winner: Key) {
        let Some((connection, tracking)) = self.connections.tracked(winner) else { return };
        let Stage::Newcomer(newcomer) = &mut connection.stage else {
            return self.broken("a server-id is taken over by what is no newcomer");
        };
        let Newcomer { entry, conn_id, .. } = **newcomer;
        let ahead = std::mem::take(&mut newcomer.ahead);
        tracking.enter(connection, Stage::Binary { entry, conn_id });
        self.output.resume(connection);
        connection.resume_deadlines(now, &self.limits);
        tracking.arm(connection);
        let half_read = connection.decoder.buffered_bytes();
        self.charge_input(now, winner, half_read);
        // Linear in what was sent ahead, which was read before the pause took hold: no more than
        // one newcomer's share of what a turn receives.
        self.work.push_back(Work::Replay { winner, ahead, position: 0 });
    }

    /// Closes phones of `id` that the registry has already forgotten, all at once: as many as an id
    /// may have, and each has paid for it with its registration.
    fn evict(&mut self, now: Millis, id: &ServerId, phones: Vec<Key>, close: Close) {
        self.registry.publish_counts();
        for phone in phones {
            match self.connections.held(phone) {
                Some(Connection { stage: Stage::Phone { conn_id, .. }, remote, .. }) => {
                    let remote = Some(tracing::field::display(*remote));
                    log_phone_gone(Some(id.as_str()), *conn_id, remote, Some(close.code));
                }
                _ => self.broken("a phone is registered that is none"),
            }
            self.close_forgotten(now, phone, close);
        }
    }
}

fn log_phone_gone(
    server_id: Option<&str>,
    conn_id: ConnId,
    remote: Option<tracing::field::DisplayValue<Remote>>,
    code: Option<u16>,
) {
    let conn_id = conn_id.as_str();
    info!(server_id, conn_id, remote, close_code = code, "phone_unregistered");
}
