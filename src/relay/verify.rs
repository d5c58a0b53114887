//! Claims of binaries that somebody outside is asked about before they are answered (PROTOCOL.md,
//! chapter 6). Who is asked, and how, the control plane knows; here a claim waits for what it says.
//!
//! A claim that waits is a connection before its upgrade like any other: it counts for its address
//! and among the sockets that are not upgraded, what came with it is charged, and it is not read.
//! Its time is over with `--verify-timeout`, whatever becomes of the question.

use super::connection::{PendingVerification, Stage};
use super::timers::{Millis, NEVER};
use super::{Action, Key, Relay};
use crate::config::OnFailure;
use crate::metrics::Series;
use crate::protocol::ids::ServerId;
use crate::protocol::upgrade::{Reply, Role, Upgrade};
use crate::shared::admission::Cause;
use std::net::IpAddr;
use tracing::info;

/// When to try again where nobody could say whether a claim is to be let in, in seconds.
const RETRY_AFTER_S: u64 = 5;

/// Names a claim that waits. Its connection may end meanwhile, and its key be another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// The worker that asks.
    pub worker: usize,
    key: Key,
    number: u64,
}

/// What is to be found out.
#[derive(Debug, PartialEq, Eq)]
pub struct Verification {
    /// Whom the answer is for.
    pub ticket: Ticket,
    /// The id that a binary claims.
    pub server_id: ServerId,
    /// Where it comes from.
    pub address: IpAddr,
}

/// What was found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The binary may have the id.
    Allowed,
    /// It may not.
    Denied,
    /// Nobody gave a usable answer in time.
    NoAnswer,
    /// Too many claims wait already: nobody was asked.
    TooMany,
}

impl Verdict {
    fn series(self) -> Series {
        match self {
            Self::Allowed => Series::VerifiedAllowed,
            Self::Denied => Series::VerifiedDenied,
            Self::NoAnswer => Series::VerifiedNoAnswer,
            Self::TooMany => Series::VerifiedTooMany,
        }
    }
}

impl Ticket {
    /// Of a claim about which another process has asked, and this one has not yet.
    pub(super) fn not_asked(worker: usize) -> Self {
        Self { worker, key: Key(u32::MAX), number: 0 }
    }
}

impl Relay {
    /// Whether somebody is to be asked about this request.
    pub(super) fn is_to_be_verified(&self, upgrade: &Upgrade) -> bool {
        self.limits.verify.is_on && matches!(upgrade.role, Role::Binary { .. })
    }

    /// A binary's request waits until it is known whether it may have the id. `unread` is what came
    /// behind it.
    pub(super) fn verify(&mut self, now: Millis, key: Key, upgrade: Upgrade, unread: &[u8]) {
        if !self.charge_input(now, key, unread.len()) {
            return;
        }
        let ticket = self.next_ticket(key);
        let Some((connection, tracking)) = self.connections.tracked(key) else { return };
        if let Some(pass) = &mut connection.pass {
            pass.step_back();
        }
        let (server_id, address) = (upgrade.server_id.clone(), connection.remote.0.ip());
        let pending = PendingVerification { ticket, upgrade, unread: unread.to_vec() };
        tracking.enter(connection, Stage::Verifying(Box::new(pending)));
        connection.due.stage = now + self.limits.verify.timeout_ms;
        tracking.arm(connection);
        self.output.act(Action::Verify(Box::new(Verification { ticket, server_id, address })));
    }

    fn next_ticket(&mut self, key: Key) -> Ticket {
        self.verifications += 1;
        Ticket { worker: self.worker, key, number: self.verifications }
    }

    /// Somebody is asked about a claim about which another process has asked, in the time that is left
    /// for it. If nobody is asked any more, it is let in.
    pub(super) fn ask_again(&mut self, now: Millis, key: Key) {
        if !self.limits.verify.is_on {
            return self.end_verification(now, key, Verdict::Allowed);
        }
        let ticket = self.next_ticket(key);
        let Some(connection) = self.connections.held_mut(key) else { return };
        let address = connection.remote.0.ip();
        let Stage::Verifying(pending) = &mut connection.stage else { return };
        pending.ticket = ticket;
        let server_id = pending.upgrade.server_id.clone();
        self.output.act(Action::Verify(Box::new(Verification { ticket, server_id, address })));
    }

    /// What was found out about a claim that may have ended since.
    pub fn on_verdict(&mut self, now: Millis, ticket: Ticket, verdict: Verdict) {
        if let Some(connection) = self.connections.find(ticket.key)
            && let Stage::Verifying(pending) = &connection.stage
            && pending.ticket == ticket
        {
            self.end_verification(now, ticket.key, verdict);
            self.settle(now);
        }
    }

    /// A claim that waits is let in or turned away.
    pub(super) fn end_verification(&mut self, now: Millis, key: Key, verdict: Verdict) {
        self.counters.count(verdict.series());
        let lets_in = match verdict {
            Verdict::Allowed => true,
            Verdict::Denied | Verdict::TooMany => false,
            Verdict::NoAnswer => self.limits.verify.on_failure == OnFailure::Allow,
        };
        let reply = match verdict {
            Verdict::Denied => Reply::Forbidden("this relay does not serve that server-id"),
            _ => Reply::Unavailable { retry_after_s: RETRY_AFTER_S },
        };
        let (ended, placed) = match self.connections.held_mut(key) {
            Some(connection) if lets_in => {
                let address = connection.remote.0.ip();
                let ended = std::mem::take(&mut connection.ended);
                (ended, connection.pass.as_mut().map_or(Ok(()), |pass| pass.go_on(now, address)))
            }
            _ => (false, Ok(())),
        };
        match placed {
            Ok(()) if lets_in => self.let_in(now, key),
            Ok(()) => self.deny(now, key, verdict, reply),
            Err(refusal) => {
                self.count_refusal(refusal.cause, true);
                let retry_after_s = refusal.retry_after_s;
                let reply = match refusal.cause {
                    Cause::Draining => Reply::Draining { retry_after_s },
                    _ => Reply::Unavailable { retry_after_s },
                };
                self.turn_down(now, key, reply);
            }
        }
        if ended {
            // What was heard while it waited.
            return self.on_end(now, key, true);
        }
        self.output.act(Action::Read(key));
    }

    fn let_in(&mut self, now: Millis, key: Key) {
        let Some((connection, tracking)) = self.connections.tracked(key) else { return };
        let pending = match tracking.enter(connection, Stage::Head(Box::default())) {
            Stage::Verifying(pending) => *pending,
            other => {
                tracking.enter(connection, other);
                return self.broken("a claim is let in that does not wait");
            }
        };
        connection.due.stage = NEVER;
        let PendingVerification { upgrade, mut unread, .. } = pending;
        self.upgrade(now, key, upgrade, &mut unread);
    }

    fn deny(&mut self, now: Millis, key: Key, verdict: Verdict, reply: Reply) {
        self.counters.count(Series::RefusedClaim);
        if let Some(connection) = self.connections.held(key)
            && let Stage::Verifying(pending) = &connection.stage
            && verdict == Verdict::Denied
        {
            let server_id = pending.upgrade.server_id.as_str();
            info!(server_id, remote = %connection.remote, "claim_denied");
        }
        self.turn_down(now, key, reply);
    }

    fn turn_down(&mut self, now: Millis, key: Key, reply: Reply) {
        if self.charge_input(now, key, 0) {
            self.refuse(now, key, reply, false);
        }
    }
}
