//! Connections before their 101: request heads, plain HTTP answers, the way to the owner of a
//! server-id (PROTOCOL.md, chapter 1).

use super::admission::{Cause, Refusal};
use super::connection::{Closing, Head, Moving, Stage};
use super::timers::{Millis, NEVER};
use super::{Action, HandOver, Key, Relay};
use crate::metrics::Series;
use crate::protocol::upgrade::{self, HeadScanner, Health, Reply, Request, Route, Upgrade};
use crate::telemetry::Remote;
use tracing::{info, warn};

/// HTTP answers that may wait for a peer that asks and does not read.
const MAX_ANSWERS_BYTES: usize = 16 * 1024;

/// What one request comes to.
enum Decision {
    Health { head_only: bool, keep_alive: bool },
    Refuse { reply: Reply, head_only: bool },
    Upgrade(Upgrade),
}

/// Says who was turned away, if that is not said too often. `path` is where it asked for an
/// upgrade, if it came that far.
pub(super) fn log_refusal(remote: Remote, path: Option<&str>, refusal: Refusal) {
    if !refusal.say {
        return;
    }
    let err = match refusal.cause {
        Cause::Rate => return info!(%remote, path, "rate_limited"),
        Cause::Connections => "the relay has reached --max-connections",
        Cause::ConnectionsOfAddress => "its address has reached --max-connections-per-address",
        Cause::VisitorsOfAddress => {
            "its address has too many connections without an upgrade request"
        }
    };
    warn!(%remote, path, err, "conn_cap_reached");
}

impl Relay {
    /// Starts the clock for a request head.
    pub(super) fn await_head(&mut self, now: Millis, key: Key) {
        let due = now + self.limits.header_timeout_ms;
        if let Some(connection) = self.connection_mut(key) {
            connection.due.stage = due;
        }
        self.arm(key);
    }

    /// Bytes of one or more request heads, in any split.
    pub(super) fn on_head_bytes(&mut self, now: Millis, key: Key, input: &mut [u8]) {
        let Some(connection) = self.connection_mut(key) else { return };
        let Stage::Head(head) = &mut connection.stage else { return };
        let Head { mut received, mut scanner } = std::mem::take(&mut **head);
        let mut bytes = input;
        if !received.is_empty() {
            received.extend_from_slice(bytes);
            bytes = &mut received;
        }
        loop {
            let (decision, consumed) = match scanner.parse(bytes) {
                upgrade::Head::Incomplete => {
                    let rest = bytes.to_vec();
                    return self.keep_head(now, key, rest, scanner);
                }
                upgrade::Head::Refused(reply) => {
                    self.counters.count(Series::HandshakeHead);
                    return self.refuse(now, key, reply, false);
                }
                upgrade::Head::Complete { request, consumed } => {
                    (self.decide(now, key, &request), consumed)
                }
            };
            let Some((_, rest)) = bytes.split_at_mut_checked(consumed) else { return };
            match decision {
                Decision::Upgrade(upgrade) => return self.upgrade(now, key, upgrade, rest),
                Decision::Refuse { reply, head_only } => {
                    return self.refuse(now, key, reply, head_only);
                }
                Decision::Health { head_only, keep_alive } => {
                    if !self.answer_health(now, key, head_only, keep_alive) {
                        return;
                    }
                }
            }
            scanner = HeadScanner::default();
            bytes = rest;
        }
    }

    /// The checks of a request, in the order of chapter 1.
    fn decide(&mut self, now: Millis, key: Key, request: &Request<'_>) -> Decision {
        if self.domain.as_deref().is_some_and(|domain| !request.is_for(domain)) {
            self.counters.count(Series::HandshakeMisdirected);
            let (reply, head_only) = (Reply::MisdirectedRequest, request.is_head());
            return Decision::Refuse { reply, head_only };
        }
        let upgrade = match request.route() {
            Route::Server | Route::Client => self.check_upgrade(now, key, request),
            Route::Healthz => match request.healthz() {
                Ok(()) => {
                    let (head_only, keep_alive) = (request.is_head(), request.keep_alive());
                    return Decision::Health { head_only, keep_alive };
                }
                Err(reply) => Err(reply),
            },
            Route::NotFound => Err(Reply::NotFound),
        };
        match upgrade {
            Ok(upgrade) => Decision::Upgrade(upgrade),
            Err(reply) => Decision::Refuse { reply, head_only: request.is_head() },
        }
    }

    /// Whether the caller may have a WebSocket at all, and then whether it asks well. It has its
    /// place from here on.
    fn check_upgrade(
        &mut self,
        now: Millis,
        key: Key,
        request: &Request<'_>,
    ) -> Result<Upgrade, Reply> {
        let proxies = self.admission.clone();
        let Some(connection) = self.connection_mut(key) else { return Err(Reply::BadRequest) };
        if let Some(caller) = proxies.proxies().caller(connection.remote, request.forwarded_for()) {
            connection.remote = caller;
        }
        let remote = connection.remote;
        let Some(pass) = &mut connection.pass else { return Err(Reply::BadRequest) };
        let is_server = request.route() == Route::Server;
        if let Err(refusal) = pass.admit(now, remote.0.ip()) {
            log_refusal(remote, Some(request.path()), refusal);
            self.count_refusal(refusal.cause, is_server);
            let retry_after_s = refusal.retry_after_s;
            return Err(match refusal.cause {
                Cause::Rate => Reply::TooManyRequests { retry_after_s },
                _ => Reply::Unavailable { retry_after_s },
            });
        }
        let upgrade = match request.route() {
            Route::Server => request.server_upgrade(),
            _ => request.client_upgrade(),
        };
        if upgrade.is_err() {
            pass.step_back();
            self.counters.count(match is_server {
                true => Series::UpgradeServerRejectHeaders,
                false => Series::UpgradeClientRejectHeaders,
            });
        }
        upgrade
    }

    /// Counts a caller that is turned away.
    pub(super) fn count_refusal(&self, cause: Cause, is_server: bool) {
        self.counters.count(match cause {
            Cause::Connections => Series::RefusedConnections,
            Cause::ConnectionsOfAddress => Series::RefusedOfAddress,
            Cause::VisitorsOfAddress => Series::RefusedVisitors,
            Cause::Rate => {
                self.counters.count(Series::RegisterRateLimit);
                match is_server {
                    true => Series::UpgradeServerRejectRateLimit,
                    false => Series::UpgradeClientRejectRateLimit,
                }
            }
        });
    }

    /// Keeps an incomplete head until more of it comes, or its deadline.
    fn keep_head(&mut self, now: Millis, key: Key, received: Vec<u8>, scanner: HeadScanner) {
        if !self.charge_input(now, key, received.capacity()) {
            return;
        }
        if let Some(connection) = self.connection_mut(key)
            && let Stage::Head(head) = &mut connection.stage
        {
            **head = Head { received, scanner };
        }
    }

    /// Answers `/healthz`; false if the connection ends with that.
    fn answer_health(&mut self, now: Millis, key: Key, head_only: bool, keep_alive: bool) -> bool {
        let health = Health {
            version: env!("CARGO_PKG_VERSION"),
            connected_binaries: self.metrics.connected_binaries(),
            connected_phones: self.metrics.connected_phones(),
            uptime_seconds: now / 1000,
        };
        let mut answer = Vec::with_capacity(384);
        health.write(&mut answer, head_only, keep_alive);
        if !self.push_http(now, key, &answer) {
            return false;
        }
        if !keep_alive {
            self.hang_up(now, key);
            return false;
        }
        if self.connection(key).is_some_and(|c| c.outbox.charged() > MAX_ANSWERS_BYTES) {
            // It asks on and on and does not read what it is told.
            self.cut(key);
            return false;
        }
        self.await_head(now, key);
        self.charge_input(now, key, 0)
    }

    /// Answers with an error and ends the connection.
    fn refuse(&mut self, now: Millis, key: Key, reply: Reply, head_only: bool) {
        let mut answer = Vec::with_capacity(256);
        reply.write(&mut answer, head_only);
        if self.push_http(now, key, &answer) {
            self.hang_up(now, key);
        }
    }

    /// The head did not come in time.
    pub(super) fn head_timed_out(&mut self, now: Millis, key: Key) {
        self.counters.count(Series::HandshakeTimeout);
        let begun = self
            .connection(key)
            .is_some_and(|c| matches!(&c.stage, Stage::Head(head) if !head.received.is_empty()));
        if begun { self.refuse(now, key, Reply::RequestTimeout, false) } else { self.cut(key) }
    }

    /// Ends an HTTP connection once its answers are with the kernel. What the peer still sends is
    /// thrown away, not left unread: that would reset the connection under the answer.
    pub(super) fn hang_up(&mut self, now: Millis, key: Key) {
        let due = now + self.limits.close_timeout_ms;
        let Some(connection) = self.connection_mut(key) else { return };
        connection.stage =
            Stage::Closing(Closing { answered: true, discard: true, ..Closing::default() });
        connection.due.stage = due;
        self.arm(key);
        self.charge_input(now, key, 0);
        self.after_flush(now, key);
    }

    /// A request that may be upgraded: here, or where its server-id belongs.
    fn upgrade(&mut self, now: Millis, key: Key, upgrade: Upgrade, unread: &mut [u8]) {
        let worker = self.owners.owner_of(&upgrade.server_id);
        if worker == self.worker {
            self.charge_input(now, key, 0);
            return self.open(now, key, upgrade, unread);
        }
        if !self.charge_input(now, key, unread.len()) {
            return;
        }
        let Some(connection) = self.connection_mut(key) else { return };
        connection.stage =
            Stage::Moving(Box::new(Moving { worker, upgrade, unread: unread.to_vec() }));
        self.move_if_flushed(now, key);
    }

    /// Hands the connection over, unless earlier answers are still on their way to the kernel.
    pub(super) fn move_if_flushed(&mut self, now: Millis, key: Key) {
        let Some(connection) = self.connection(key) else { return };
        if !connection.outbox.is_empty() || !matches!(connection.stage, Stage::Moving(_)) {
            return;
        }
        // Before it is dead: the backlogs must not remember a key that is about to be reused.
        self.charge_input(now, key, 0);
        self.charge_transport(now, key, 0);
        let Some(connection) = self.connection_mut(key) else { return };
        match std::mem::replace(&mut connection.stage, Stage::Cut) {
            Stage::Moving(moving) => {
                let Moving { worker, upgrade, unread } = *moving;
                let (remote, pass) = (connection.remote, connection.pass.take());
                let ticket = Box::new(HandOver { remote, pass, upgrade, unread });
                let timer = connection.timer;
                self.wheel.arm_at(timer, NEVER);
                self.actions.push(Action::HandOver { key, worker, ticket });
            }
            other => connection.stage = other,
        }
    }
}
