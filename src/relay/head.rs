//! Connections before their 101: request heads, plain HTTP answers, the way to the owner of a
//! server-id (PROTOCOL.md, chapter 1).

use super::connection::{Closing, HeadBuffer, Hearing, PendingHandOver, Stage};
use super::timers::{Millis, NEVER};
use super::visitors::VisitId;
use super::{Action, HandOver, Key, Relay};
use crate::config::TokenHeader;
use crate::metrics::Series;
use crate::protocol::upgrade::{
    self, HeadScanner, Health, Readiness, Reply, Request, Route, Upgrade,
};
use crate::shared::admission::{Cause, Refusal};
use crate::telemetry::Remote;
use tracing::{debug, info, warn};

/// HTTP answers that may wait for a peer that asks ahead. Beyond that it is not read, nor is what
/// it has sent, until all of them have left: some 50 answers at a time.
const MAX_ANSWERS_BYTES: usize = 16 * 1024;

/// What one request comes to.
enum Decision {
    Report { route: Route, head_only: bool, keep_alive: bool },
    Refuse { reply: Reply, head_only: bool },
    Upgrade(Upgrade),
}

/// Says who was turned away. `path` is where it asked for an
/// upgrade, if it came that far.
pub(super) fn log_refusal(remote: Remote, path: Option<&str>, refusal: Refusal) {
    let err = match refusal.cause {
        Cause::Rate => return info!(%remote, path, "rate_limited"),
        Cause::Connections => "the relay has reached --max-connections",
        Cause::ConnectionsOfAddress => "its address has reached --max-connections-per-address",
        Cause::VisitorsOfAddress => {
            "its address has too many connections without an upgrade request"
        }
        Cause::Visitors => {
            "the relay has too many connections without an upgrade request, and its address has \
             the most of them"
        }
        Cause::Arrivals => "more come at once than --new-connections-rate allows",
        // The operator knows.
        Cause::Draining | Cause::Blocked => return,
    };
    warn!(%remote, path, err, "conn_cap_reached");
}

impl Relay {
    /// Starts the clock for a request head.
    pub(super) fn await_head(&mut self, now: Millis, key: Key) {
        let Some((connection, tracking)) = self.connections.tracked(key) else { return };
        connection.due.stage = now + self.limits.header_timeout_ms;
        tracking.arm(connection);
    }

    /// Bytes of one or more request heads, in any split.
    pub(super) fn on_head_bytes(&mut self, now: Millis, key: Key, input: &mut [u8]) {
        let Some(connection) = self.connections.held_mut(key) else { return };
        let paused = connection.paused;
        let Stage::Head(head) = &mut connection.stage else {
            return self.broken("a request is read that is not expected");
        };
        let HeadBuffer { mut received, mut read, mut scanner } = std::mem::take(&mut **head);
        if paused {
            // It was on its way when reading stopped.
            received.extend_from_slice(input);
            return self.keep_head(now, key, HeadBuffer { received, read, scanner });
        }
        let is_kept = !received.is_empty();
        if is_kept {
            received.extend_from_slice(input);
        }
        let bytes = if is_kept { received.as_mut_slice() } else { input };
        while !self.is_paused(key) {
            let unread = bytes.get(read..).unwrap_or_default();
            let (decision, consumed) = match scanner.parse(unread) {
                upgrade::ParsedHead::Incomplete => break,
                upgrade::ParsedHead::Refused(reply) => {
                    self.counters.count(Series::HandshakeHead);
                    self.log_answer(key, None, reply);
                    return self.refuse(now, key, reply, false);
                }
                upgrade::ParsedHead::Complete { request, consumed } => {
                    (self.decide(now, key, &request), consumed)
                }
            };
            scanner = HeadScanner::default();
            read += consumed;
            match decision {
                Decision::Upgrade(upgrade) => {
                    let unread = bytes.get_mut(read..).unwrap_or_default();
                    return self.upgrade(now, key, upgrade, unread);
                }
                Decision::Refuse { reply, head_only } => {
                    return self.refuse(now, key, reply, head_only);
                }
                Decision::Report { route, head_only, keep_alive } => {
                    let report = self.report(now, route, head_only, keep_alive);
                    if !self.answer_report(now, key, &report, keep_alive) {
                        return;
                    }
                }
            }
        }
        let paused = self.is_paused(key);
        // Many heads are not moved for each few that are answered; one that is not whole is.
        if !is_kept || (read > 0 && !paused) {
            received = bytes.get(read..).unwrap_or_default().to_vec();
            read = 0;
        }
        self.keep_head(now, key, HeadBuffer { received, read, scanner });
    }

    fn is_paused(&self, key: Key) -> bool {
        self.connections.held(key).is_some_and(|connection| connection.paused)
    }

    /// The answers have left that were to leave before more is answered.
    pub(super) fn resume_heads(&mut self, now: Millis, key: Key) {
        let Some(connection) = self.connections.held_mut(key) else { return };
        if !std::mem::take(&mut connection.paused) {
            return;
        }
        self.await_head(now, key);
        self.on_head_bytes(now, key, &mut []);
        let Some(connection) = self.connections.held(key) else { return };
        if connection.paused || connection.is_closed() {
            return;
        }
        if connection.ended && matches!(connection.stage, Stage::Head(_)) {
            // It had asked for all that it wanted.
            return self.hang_up(now, key);
        }
        self.output.act(Action::Read(key));
    }

    /// What a request comes to.
    fn decide(&mut self, now: Millis, key: Key, request: &Request<'_>) -> Decision {
        self.check(now, key, request).unwrap_or_else(|reply| {
            self.log_answer(key, Some(request), reply);
            Decision::Refuse { reply, head_only: request.is_head() }
        })
    }

    /// The checks of a request, in the order of chapter 1.
    fn check(&mut self, now: Millis, key: Key, request: &Request<'_>) -> Result<Decision, Reply> {
        if self.domain.as_deref().is_some_and(|domain| !request.is_for(domain)) {
            self.counters.count(Series::HandshakeMisdirected);
            return Err(Reply::MisdirectedRequest);
        }
        match request.route() {
            Route::Server | Route::Client => {
                self.check_upgrade(now, key, request).map(Decision::Upgrade)
            }
            route @ (Route::Healthz | Route::Readyz | Route::ReadyzOr404) => {
                request.health_check()?;
                let (head_only, keep_alive) = (request.is_head(), request.keep_alive());
                Ok(Decision::Report { route, head_only, keep_alive })
            }
            Route::NotFound => Err(Reply::NotFound),
        }
    }

    /// Says, to who is looking for a fault, what a request was answered and why. The path is told
    /// where it is one of ours.
    fn log_answer(&self, key: Key, request: Option<&Request<'_>>, reply: Reply) {
        // Those are said elsewhere, and to everybody.
        if matches!(
            reply,
            Reply::TooManyRequests { .. } | Reply::Unavailable { .. } | Reply::Draining { .. }
        ) {
            return;
        }
        let known = request.filter(|request| request.route() != Route::NotFound);
        debug!(
            remote = self.remote_of(key),
            path = known.map(Request::path),
            err = %format_args!("{}: {}", reply.status(), reply.text()),
            "request_refused"
        );
    }

    /// Whether the caller may have a WebSocket at all, and then whether it asks well. It has its
    /// place from here on.
    fn check_upgrade(
        &mut self,
        now: Millis,
        key: Key,
        request: &Request<'_>,
    ) -> Result<Upgrade, Reply> {
        let admission = self.admission.clone();
        let needs_token = self.limits.token_header == TokenHeader::Required;
        let gone = Reply::Unavailable { retry_after_s: 1 };
        let Some(connection) = self.connections.held_mut(key) else { return Err(gone) };
        if let Some(caller) = admission.proxies().caller(connection.remote, request.forwarded_for())
        {
            connection.remote = caller;
        }
        let remote = connection.remote;
        let Some(pass) = &mut connection.pass else {
            self.broken("a request is read of a connection that was not let in");
            return Err(gone);
        };
        let is_server = request.route() == Route::Server;
        if let Err(refusal) = pass.admit(now, remote.0.ip(), is_server) {
            log_refusal(remote, Some(request.path()), refusal);
            self.count_refusal(refusal.cause, is_server);
            let retry_after_s = refusal.retry_after_s;
            return Err(match refusal.cause {
                Cause::Rate => Reply::TooManyRequests { retry_after_s },
                Cause::Draining => Reply::Draining { retry_after_s },
                Cause::Blocked => Reply::Forbidden("this relay does not serve your address"),
                _ => Reply::Unavailable { retry_after_s },
            });
        }
        let upgrade = match request.route() {
            Route::Server => request.server_upgrade(),
            _ => request.client_upgrade_with(needs_token),
        };
        match &upgrade {
            Ok(upgrade) if !admission.allows(&upgrade.server_id) => {
                pass.step_back();
                self.counters.count(Series::RefusedServerId);
                return Err(Reply::Forbidden("this relay does not serve that server-id"));
            }
            Ok(_) if !is_server && !request.has_token_header() => {
                self.counters.count(Series::PhonesWithoutToken);
            }
            Ok(_) => {}
            Err(_) => {
                pass.step_back();
                self.counters.count(match is_server {
                    true => Series::UpgradeServerRejectHeaders,
                    false => Series::UpgradeClientRejectHeaders,
                });
            }
        }
        upgrade
    }

    /// Aborts connections that wait for their upgrade, where this worker has more of them than its
    /// share of what the process may have. With shares, no worker needs to know another's
    /// connections: the descriptor is free before the next is accepted, and whoever fills one
    /// worker leaves the others alone.
    pub(super) fn make_room_for_visitor(&mut self) {
        let share = self.admission.visitors_of_each(self.owners.workers);
        // Two for each that comes, so that what is too much becomes less.
        for _ in 0..2 {
            let Some(evicted) = self.visitors.eviction_candidate(share) else { return };
            let refusal = Refusal::VISITORS;
            if let Some(connection) = self.connections.held(evicted) {
                log_refusal(connection.remote, None, refusal);
            }
            self.count_refusal(refusal.cause, false);
            self.abort(evicted);
        }
    }

    /// Counts a caller that is turned away.
    pub(super) fn count_refusal(&self, cause: Cause, is_server: bool) {
        self.counters.count(match cause {
            Cause::Connections => Series::RefusedConnections,
            Cause::ConnectionsOfAddress => Series::RefusedOfAddress,
            Cause::VisitorsOfAddress => Series::RefusedVisitors,
            Cause::Visitors => Series::RefusedOldest,
            Cause::Draining => Series::RefusedDraining,
            Cause::Blocked => Series::RefusedBlocked,
            Cause::Arrivals => Series::RefusedArrivals,
            Cause::Rate => {
                self.counters.count(Series::RegisterRateLimit);
                match is_server {
                    true => Series::UpgradeServerRejectRateLimit,
                    false => Series::UpgradeClientRejectRateLimit,
                }
            }
        });
    }

    /// Keeps what is not answered yet: until more of it comes, or its deadline, or until the answers
    /// before it have left.
    fn keep_head(&mut self, now: Millis, key: Key, kept: HeadBuffer) {
        if !self.charge_input(now, key, kept.received.capacity()) {
            return;
        }
        match self.connections.held_mut(key).map(|connection| &mut connection.stage) {
            Some(Stage::Head(head)) => **head = kept,
            _ => self.broken("a request is kept that is not expected"),
        }
    }

    /// Queues HTTP bytes. False if there was no room and the connection was aborted.
    pub(super) fn push_http(&mut self, key: Key, bytes: &[u8]) -> bool {
        let Some(connection) = self.connections.held_mut(key) else { return false };
        if connection.is_closed() {
            return false;
        }
        let pushed = self.output.push_http(connection, &mut self.ledger, bytes);
        if pushed.is_err() {
            self.abort(key);
        }
        pushed.is_ok()
    }

    /// What a health checker is told.
    fn report(&self, now: Millis, route: Route, head_only: bool, keep_alive: bool) -> Vec<u8> {
        let mut answer = Vec::with_capacity(384);
        if route == Route::Healthz {
            let health = Health {
                version: crate::config::VERSION,
                connected_binaries: self.metrics.connected_binaries(),
                connected_phones: self.metrics.connected_phones(),
                uptime_seconds: now / 1000,
            };
            health.write(&mut answer, head_only, keep_alive);
        } else {
            let ready = !self.shutting_down && !self.admission.is_draining();
            let readiness = Readiness { ready, or_404: route == Route::ReadyzOr404 };
            readiness.write(&mut answer, head_only, keep_alive);
        }
        answer
    }

    /// Answers a health checker; false if the connection ends with that.
    fn answer_report(&mut self, now: Millis, key: Key, answer: &[u8], keep_alive: bool) -> bool {
        if !self.push_http(key, answer) {
            return false;
        }
        if !keep_alive {
            self.hang_up(now, key);
            return false;
        }
        self.await_head(now, key);
        if let Some(connection) = self.connections.held_mut(key)
            && connection.outbox.charged() > MAX_ANSWERS_BYTES
        {
            // Nothing is awaited but that it reads; a write that makes no progress has a deadline.
            connection.paused = true;
            connection.due.stage = NEVER;
        }
        self.charge_input(now, key, 0)
    }

    /// The first bytes of a connection that is to begin with TLS are HTTP in the clear: it goes on
    /// without TLS, for as long as it takes to say so.
    pub fn on_plain_http(&mut self, now: Millis, key: Key) {
        let err = "the peer sent plain HTTP to a TLS port";
        info!(remote = self.remote_of(key), err, "tls_failed");
        self.counters.count(Series::HandshakeTls);
        self.refuse(now, key, Reply::HttpOnHttps, false);
    }

    /// A TLS handshake is to begin, which costs more than anything else that an unknown peer may ask
    /// for. False if the connection is over, because its address has begun too many.
    pub fn admit_handshake(&mut self, now: Millis, key: Key) -> bool {
        let Some(connection) = self.connections.held_mut(key) else { return false };
        if connection.is_closed() {
            return false;
        }
        let admitted = connection.pass.as_mut().map_or(Ok(()), |pass| pass.admit_handshake(now));
        if admitted.is_ok() {
            return true;
        }
        let err = "its address begins more TLS handshakes than --handshake-rate allows";
        info!(remote = %connection.remote, err, "handshake_rate_limited");
        self.counters.count(Series::HandshakeRate);
        self.close_socket(key);
        false
    }

    /// Answers with an error and ends the connection.
    fn refuse(&mut self, now: Millis, key: Key, reply: Reply, head_only: bool) {
        let mut answer = Vec::with_capacity(256);
        reply.write(&mut answer, head_only);
        if self.push_http(key, &answer) {
            self.hang_up(now, key);
        }
    }

    /// The head did not come in time, or what is before its answer did not leave in time.
    pub(super) fn head_timed_out(&mut self, now: Millis, key: Key) {
        self.counters.count(Series::HandshakeTimeout);
        let stage = self.connections.held(key).map(|connection| &connection.stage);
        let begun = matches!(stage, Some(Stage::Head(head)) if !head.received.is_empty());
        if begun {
            self.log_answer(key, None, Reply::RequestTimeout);
            self.refuse(now, key, Reply::RequestTimeout, false);
        } else {
            self.abort(key);
        }
    }

    /// Ends an HTTP connection once its answers are with the kernel. What the peer still sends is
    /// thrown away, not left unread: that would reset the connection under the answer.
    pub(super) fn hang_up(&mut self, now: Millis, key: Key) {
        let Some((connection, tracking)) = self.connections.tracked(key) else { return };
        let closing = Closing { hearing: Hearing::Nothing, ..Closing::default() };
        tracking.enter(connection, Stage::Closing(Box::new(closing)));
        connection.due.stage = now + self.limits.close_timeout_ms;
        self.output.resume(connection);
        tracking.arm(connection);
        self.charge_input(now, key, 0);
        self.after_flush(now, key);
    }

    /// A request that may be upgraded: here, or where its server-id belongs.
    fn upgrade(&mut self, now: Millis, key: Key, upgrade: Upgrade, unread: &mut [u8]) {
        let worker = self.owners.owner_of(&upgrade.server_id);
        let is_own = worker == self.worker;
        let held_bytes = if is_own { 0 } else { unread.len() };
        if let Some(connection) = self.connections.held_mut(key) {
            self.visitors.remove(std::mem::replace(&mut connection.visit, VisitId::NONE));
        }
        if !self.charge_input(now, key, held_bytes) {
            return;
        }
        if is_own {
            return self.open(now, key, upgrade, unread);
        }
        let pending = Box::new(PendingHandOver { worker, upgrade, unread: unread.to_vec() });
        let Some((connection, tracking)) = self.connections.tracked(key) else { return };
        tracking.enter(connection, Stage::HandingOver(pending));
        // Its request is whole, and still it may hold its place before the 101 no longer than this.
        connection.due.stage = now + self.limits.header_timeout_ms;
        tracking.arm(connection);
        // Unless earlier answers are still on their way to the kernel.
        self.after_flush(now, key);
    }

    /// Hands the connection over; earlier answers are with the kernel.
    pub(super) fn hand_over(&mut self, now: Millis, key: Key) {
        let Some((connection, tracking)) = self.connections.tracked(key) else { return };
        if matches!(&connection.stage, Stage::HandingOver(pending) if pending.worker == self.worker)
        {
            return self.keep(now, key);
        }
        let pending = match tracking.enter(connection, Stage::Closed) {
            Stage::HandingOver(pending) => *pending,
            other => {
                tracking.enter(connection, other);
                return self.broken("a connection is handed over that is not on its way");
            }
        };
        tracking.disarm(connection);
        let (remote, pass) = (connection.remote, connection.pass.take());
        // The backlogs must not remember a key that is about to be reused.
        self.ledger.clear(key);
        let PendingHandOver { worker, upgrade, unread } = pending;
        let hand_over = Box::new(HandOver { remote, pass, upgrade, unread });
        self.output.act(Action::HandOver { key, worker, hand_over });
    }

    /// The owner that a connection was on its way to is this worker, since there are more or fewer of
    /// them than there were: it is opened here.
    fn keep(&mut self, now: Millis, key: Key) {
        let Some((connection, tracking)) = self.connections.tracked(key) else { return };
        let Stage::HandingOver(pending) = tracking.enter(connection, Stage::Head(Box::default()))
        else {
            return self.broken("a connection is kept that was not on its way");
        };
        // Its end is read again.
        connection.ended = false;
        if !self.charge_input(now, key, 0) {
            return;
        }
        let PendingHandOver { upgrade, mut unread, .. } = *pending;
        self.open(now, key, upgrade, &mut unread);
        if self.wants_read(key) {
            self.output.act(Action::Read(key));
        }
    }
}
