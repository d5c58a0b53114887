//! Claims, registrations, probes and grace: the effects of what the registry decides
//! (PROTOCOL.md, chapter 3).

use super::ahead::Ahead;
use super::connection::{Connection, Newcomer, Stage};
use super::memory::Work;
use super::registry::{Claim, ClaimId, Departure, EntryKey, Registration, Takeover, Tenure};
use super::timers::{Millis, NEVER};
use super::{Action, Key, Relay, TimerOwner};
use crate::metrics::Series;
use crate::protocol::close::Close;
use crate::protocol::ids::{ConnId, ServerId};
use crate::protocol::upgrade::{self, Role, Upgrade};
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
        let conn_id = self.new_conn_id(key);
        match role {
            Role::Binary { version } => self.claim(now, key, &server_id, conn_id, &version),
            Role::Phone { device_name } => {
                self.register(now, key, &server_id, conn_id, device_name.as_deref());
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

    fn set_stage(&mut self, key: Key, stage: Stage) {
        if let Some(connection) = self.connections.get_mut(key.0 as usize) {
            connection.enter(stage, &mut self.population);
            connection.due.stage = NEVER;
        }
    }

    fn claim(&mut self, now: Millis, key: Key, id: &ServerId, conn_id: ConnId, version: &str) {
        let wheel = &mut self.wheel;
        let (entry, claim) =
            self.registry.claim(id, key, |entry| wheel.add(TimerOwner::Entry(entry)));
        let Some(timer) = self.held_mut(entry).map(|entry| entry.timer) else { return };
        let remote = self.connection(key).map(|connection| connection.remote);
        match claim {
            Claim::Waiting { holder, first, claim_id } => {
                let newcomer = Newcomer { entry, conn_id, claim_id, ahead: Ahead::default() };
                self.set_stage(key, Stage::Newcomer(Box::new(newcomer)));
                if first {
                    self.wheel.arm_at(timer, now + self.limits.probe_timeout_ms);
                    self.send_ping(now, holder);
                }
            }
            Claim::Granted | Claim::Reclaimed(_) => {
                self.counters.count(Series::UpgradeServerAccept);
                self.set_stage(key, Stage::Binary { entry, conn_id });
                self.wheel.arm_at(timer, NEVER);
                self.binaries += 1;
                info!(
                    server_id = id.as_str(),
                    binary_conn_id = conn_id.as_str(),
                    binary_version = version,
                    remote = remote.map(tracing::field::display),
                    "server_claimed"
                );
                if let Claim::Reclaimed(phones) = claim {
                    self.counters.count(Series::Reclaims);
                    self.evict(now, phones, Close::RECLAIMED);
                }
                self.publish_counts();
            }
        }
    }

    fn register(
        &mut self,
        now: Millis,
        key: Key,
        id: &ServerId,
        conn_id: ConnId,
        device_name: Option<&str>,
    ) {
        let remote = self.connection(key).map(|c| tracing::field::display(c.remote));
        let server_id = id.as_str();
        match self.registry.register(id, key) {
            Registration::Registered(entry, seat) => {
                self.set_stage(key, Stage::Phone { entry, conn_id, congested_bytes: 0, seat });
                self.phones += 1;
                self.counters.count(Series::UpgradeClientAccept);
                self.publish_counts();
                let conn_id = conn_id.as_str();
                info!(server_id, conn_id, device_name, remote, "phone_registered");
            }
            Registration::NoServer => {
                info!(server_id, device_name, remote, "phone_register_no_server");
                self.counters.count(Series::UpgradeClientReject404);
                self.counters.count(Series::RegisterNoServer);
                self.turn_away(now, key, Close::NO_SERVER);
            }
            Registration::AtCap => {
                warn!(server_id, device_name, remote, "phone_register_at_cap");
                self.counters.count(Series::UpgradeClientReject429);
                self.counters.count(Series::RegisterPhonesAtCap);
                self.turn_away(now, key, Close::TOO_MANY_PHONES);
            }
        }
    }

    /// Forgets a connection's part in the registry, given the stage that it has left. The binary
    /// is told `notice` of a phone.
    pub(super) fn leave(&mut self, now: Millis, key: Key, stage: Stage, notice: Option<u16>) {
        match stage {
            Stage::Phone { entry, conn_id, seat, .. } => {
                if let Some(moved) = self.registry.unregister(entry, key, seat)
                    && let Some(Connection { stage: Stage::Phone { seat: its, .. }, .. }) =
                        self.connection_mut(moved)
                {
                    *its = seat;
                }
                self.phones -= 1;
                self.publish_counts();
                self.log_phone_gone(key, entry, conn_id, notice);
                if let Some(code) = notice {
                    self.notify(entry, conn_id, code);
                }
            }
            Stage::Binary { entry, conn_id } => self.binary_left(now, key, entry, conn_id),
            Stage::Newcomer(newcomer) => {
                self.charge_input(now, key, 0);
                self.newcomer_left(newcomer.entry, newcomer.claim_id);
            }
            Stage::Head(_) | Stage::HandingOver(_) | Stage::Closing(_) | Stage::Closed => {}
        }
    }

    fn log_phone_gone(&self, key: Key, entry: EntryKey, conn_id: ConnId, code: Option<u16>) {
        let server_id = self.registry.entry(entry).map(|entry| entry.id.as_str());
        let remote = self.connection(key).map(|c| tracing::field::display(c.remote));
        let conn_id = conn_id.as_str();
        info!(server_id, conn_id, remote, close_code = code, "phone_unregistered");
    }

    fn binary_left(&mut self, now: Millis, key: Key, entry: EntryKey, conn_id: ConnId) {
        let Some(timer) = self.held_mut(entry).map(|entry| entry.timer) else { return };
        match self.registry.depart(entry, key) {
            Departure::Grace => {
                self.wheel.arm_at(timer, now + self.limits.grace_ms);
                self.binaries -= 1;
                self.publish_counts();
                if let Some(entry) = self.registry.entry(entry) {
                    let (server_id, binary_conn_id) = (entry.id.as_str(), conn_id.as_str());
                    let remote = self.connection(key).map(|c| tracing::field::display(c.remote));
                    info!(server_id, binary_conn_id, remote, "server_released");
                }
                // Their next frame cannot reach a binary, and they must learn so.
                self.resume_phones(now, entry);
            }
            Departure::Takeover(takeover) => self.finish_takeover(now, entry, takeover),
            Departure::NotHolder => {}
        }
    }

    fn newcomer_left(&mut self, entry: EntryKey, claim_id: ClaimId) {
        if self.registry.withdraw(entry, claim_id)
            && let Some(entry) = self.registry.entry(entry)
        {
            self.wheel.arm_at(entry.timer, NEVER);
        }
    }

    /// The holder of an id has completed a frame: if it is being probed, it lives.
    pub(super) fn holder_lives(&mut self, now: Millis, entry: EntryKey) {
        let Some(held) = self.held_mut(entry) else { return };
        if !matches!(held.tenure, Tenure::Probed { .. }) {
            return;
        }
        let timer = held.timer;
        warn!(server_id = held.id.as_str(), "server_id_conflict");
        self.wheel.arm_at(timer, NEVER);
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
        let Some(entry) = self.held_mut(key) else { return };
        match entry.tenure {
            Tenure::Held(_) => {}
            Tenure::Grace => {
                info!(server_id = entry.id.as_str(), "grace_expired");
                self.counters.count(Series::GraceExpiries);
                if let Some(mut entry) = self.registry.expire(key) {
                    entry.tell_last_faults(now);
                    self.wheel.remove(entry.timer);
                    self.evict(now, entry.phones, Close::NORMAL);
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
        let Some(held) = self.registry.entry(entry) else { return };
        let connection = self.connection(winner);
        let binary_conn_id = connection.and_then(|connection| match &connection.stage {
            Stage::Newcomer(newcomer) => Some(newcomer.conn_id),
            _ => None,
        });
        warn!(
            server_id = held.id.as_str(),
            binary_conn_id = binary_conn_id.as_ref().map(ConnId::as_str),
            remote = connection.map(|connection| tracing::field::display(connection.remote)),
            "server_id_takeover"
        );
        let timer = held.timer;
        self.wheel.arm_at(timer, NEVER);
        self.evict(now, phones, Close::RECLAIMED);
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
        let Some(connection) = self.connections.get_mut(winner.0 as usize) else { return };
        let Stage::Newcomer(newcomer) = &mut connection.stage else {
            return self.broken("a server-id is taken over by what is no newcomer");
        };
        let Newcomer { entry, conn_id, .. } = **newcomer;
        let ahead = std::mem::take(&mut newcomer.ahead);
        connection.enter(Stage::Binary { entry, conn_id }, &mut self.population);
        if std::mem::take(&mut connection.paused) {
            self.actions.push(Action::Read(winner));
        }
        self.resume_deadlines(now, winner);
        let half_read = self.connection(winner).map_or(0, |c| c.decoder.buffered_bytes());
        self.charge_input(now, winner, half_read);
        // Linear in what was sent ahead, which was read before the pause took hold: no more than
        // one newcomer's share of what a turn receives.
        self.work.push_back(Work::Replay { winner, ahead, position: 0 });
    }

    /// Closes phones that the registry has already forgotten, all at once: as many as an id may have,
    /// and each has paid for it with its registration.
    fn evict(&mut self, now: Millis, phones: Vec<Key>, close: Close) {
        self.phones -= phones.len() as u64;
        self.publish_counts();
        for phone in phones {
            if let Some(Connection { stage: Stage::Phone { conn_id, entry, .. }, .. }) =
                self.connection(phone)
            {
                self.log_phone_gone(phone, *entry, *conn_id, Some(close.code));
            }
            self.close_forgotten(now, phone, close);
        }
    }
}
