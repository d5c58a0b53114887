//! One connection of another process, checked.

use super::super::Relay;
use super::super::ahead::Ahead;
use super::super::connection::{
    Closing, Connection, Drain, Due, HeadBuffer, Hearing, Heartbeat, Newcomer, PendingHandOver,
    Stage, Traffic,
};
use super::super::outbox::Outbox;
use super::super::timers::{Millis, NEVER};
use super::{PartIn, Revived, due_in, server_id};
use crate::handover::state::{self, Inconsistent};
use crate::protocol::close::Close;
use crate::protocol::frames::{Decoder, HalfRead, HalfReadFrame, HalfReadMessage};
use crate::protocol::ids::ConnId;
use crate::protocol::upgrade::{HeadScanner, Role, Upgrade};
use crate::shared::admission::{Admission, Pass, Standing};
use crate::telemetry::Remote;
use std::net::SocketAddr;
use std::sync::Arc;

/// Counts of messages and bytes are less than this.
const MAX_COUNT: u64 = 1 << 62;

impl Relay {
    /// A connection with its part in a server-id.
    pub(super) fn revive_connection(
        &self,
        now: Millis,
        given: state::Connection,
        part: Option<PartIn>,
    ) -> Result<Revived, Inconsistent> {
        let decoder = match given.half_read {
            None => Decoder::default(),
            Some(half_read) => Decoder::resumed(half_read.into())
                .ok_or(Inconsistent("a message is half read that cannot be"))?,
        };
        let mut connection = Connection {
            stage: self.stage(now, given.stage, part)?,
            since_s: ((now / 1000) as u32).wrapping_sub(given.age_s),
            traffic: Traffic::revive(given.traffic)?,
            decoder,
            outbox: Outbox::revive(given.outbox)?,
            due: Due::revive(now, given.due)?,
            heartbeat: Heartbeat::revive(now, given.heartbeat),
            ended: given.ended,
            paused: given.paused,
            ..Connection::new(now, revive_remote(given.remote, given.scope_id), None)
        };
        check_stage(&connection)?;
        connection.pass = given.counts_as.map(|standing| readmit(&self.admission, standing));
        Ok(Revived { connection, link_bytes: given.link_bytes })
    }

    fn stage(
        &self,
        now: Millis,
        given: state::Stage,
        part: Option<PartIn>,
    ) -> Result<Stage, Inconsistent> {
        let name = ConnId::from_bytes;
        Ok(match (given, part) {
            (state::Stage::Head(received), None) => Stage::Head(Box::new(HeadBuffer {
                received: received.0,
                read: 0,
                scanner: HeadScanner::default(),
            })),
            (state::Stage::HandingOver(request), None) => {
                Stage::HandingOver(Box::new(self.pending(*request)?))
            }
            (
                state::Stage::Newcomer { conn_id, ahead },
                Some(PartIn::Newcomer(entry, claim_id)),
            ) => {
                let messages: Vec<&[u8]> = ahead.iter().map(|message| &*message.0).collect();
                let (conn_id, ahead) = (name(conn_id), Ahead::of(&messages));
                Stage::Newcomer(Box::new(Newcomer { entry, conn_id, claim_id, ahead }))
            }
            (state::Stage::Binary { conn_id }, Some(PartIn::Holder(entry))) => {
                Stage::Binary { entry, conn_id: name(conn_id) }
            }
            (
                state::Stage::Phone { conn_id, congested_bytes },
                Some(PartIn::Phone(entry, seat)),
            ) => Stage::Phone { entry, conn_id: name(conn_id), congested_bytes, seat },
            (state::Stage::Closing(closing), None) => {
                Stage::Closing(Box::new(Closing::revive(now, closing)?))
            }
            _ => return Err(Inconsistent("a connection's stage is not that of its part in an id")),
        })
    }

    fn pending(&self, request: state::Request) -> Result<PendingHandOver, Inconsistent> {
        let state::Request { server_id: id, accept_key, role, unread } = request;
        let server_id = server_id(&id)?;
        if !accept_key.iter().all(u8::is_ascii_graphic) {
            return Err(Inconsistent("an accept key is none"));
        }
        let role = match role {
            state::Role::Binary(version) => Role::Binary { version: version.into() },
            state::Role::Phone(name) => Role::Phone { device_name: name.map(Into::into) },
        };
        let worker = self.owners.owner_of(&server_id);
        let upgrade = Upgrade { server_id, accept_key, role };
        Ok(PendingHandOver { worker, upgrade, unread: unread.0 })
    }
}

fn readmit(admission: &Arc<Admission>, standing: state::Standing) -> Pass {
    admission.readmit(match standing {
        state::Standing::Unknown => Standing::Unknown,
        state::Standing::Visitor(address) => Standing::Visitor(address.into()),
        state::Standing::Live(address) => Standing::Live(address.into()),
    })
}

fn revive_remote(mut remote: SocketAddr, scope_id: u32) -> Remote {
    if let SocketAddr::V6(address) = &mut remote {
        address.set_scope_id(scope_id);
    }
    Remote(remote)
}

/// What the core counts on of a connection's stage and the rest of it.
fn check_stage(connection: &Connection) -> Result<(), Inconsistent> {
    let due = &connection.due;
    let is_begun = connection.decoder.is_mid_message();
    match &connection.stage {
        stage if stage.is_open() && due.stage != NEVER => {
            return Err(Inconsistent("an open connection has a deadline of another stage"));
        }
        stage if stage.is_open() => {}
        Stage::Closing(_) => {}
        _ if is_begun || connection.outbox.has_control() => {
            return Err(Inconsistent("frames are there before the upgrade"));
        }
        _ => {}
    }
    let has_frame_deadline = [due.ping, due.pong, due.message].iter().any(|due| *due != NEVER);
    if has_frame_deadline && !connection.is_open() {
        return Err(Inconsistent("a connection that is not open has a deadline of one that is"));
    }
    Ok(())
}

impl Closing {
    fn revive(now: Millis, given: state::Closing) -> Result<Self, Inconsistent> {
        let then = match given.then {
            None => None,
            Some(code) if Close::directive(code).code == code => Some(Close::directive(code)),
            Some(_) => return Err(Inconsistent("a close is to follow with a code that is none")),
        };
        let hearing = match given.hearing {
            state::Hearing::Frames => Hearing::Frames,
            state::Hearing::Noise => Hearing::Noise,
            state::Hearing::Nothing => Hearing::Nothing,
        };
        let drain = Drain {
            unsent: usize::try_from(given.unsent).unwrap_or(usize::MAX),
            progress_at: now.wrapping_sub(given.progress_ms),
            overdue: given.overdue,
        };
        Ok(Self { then, hearing, finished: given.finished, drain })
    }
}

impl Traffic {
    fn revive(given: state::Traffic) -> Result<Self, Inconsistent> {
        let state::Traffic { messages_in, bytes_in, messages_out, bytes_out } = given;
        if [messages_in, bytes_in, messages_out, bytes_out].iter().any(|count| *count > MAX_COUNT) {
            return Err(Inconsistent("a count is beyond all that can be counted"));
        }
        Ok(Self { messages_in, bytes_in, messages_out, bytes_out })
    }
}

impl Due {
    fn revive(now: Millis, given: state::Due) -> Result<Self, Inconsistent> {
        Ok(Self {
            stage: due_in(now, given.stage)?,
            ping: due_in(now, given.ping)?,
            pong: due_in(now, given.pong)?,
            message: due_in(now, given.message)?,
            write: due_in(now, given.write)?,
        })
    }
}

impl Heartbeat {
    fn revive(now: Millis, given: state::Heartbeat) -> Self {
        let state::Heartbeat { sent, answered, pinged_ms, round_trip_ms } = given;
        let pinged_at = (now as u32).wrapping_sub(pinged_ms);
        let round_trip = round_trip_ms.map_or(0, |took| took.saturating_add(1));
        Self { sent, answered, pinged_at, round_trip }
    }
}

impl From<HalfRead> for state::HalfRead {
    fn from(HalfRead { header, frame, message }: HalfRead) -> Self {
        let frame = frame.map(|frame| state::HalfReadFrame {
            first: frame.first,
            mask: frame.mask,
            payload_bytes: frame.payload_bytes,
            came_bytes: frame.came_bytes,
            control: state::Bytes(frame.control),
        });
        let message = message.map(|HalfReadMessage { is_text, bytes }| state::HalfReadMessage {
            is_text,
            bytes: state::Bytes(bytes),
        });
        Self { header: state::Bytes(header), frame, message }
    }
}

impl From<state::HalfRead> for HalfRead {
    fn from(state::HalfRead { header, frame, message }: state::HalfRead) -> Self {
        let frame = frame.map(|frame| HalfReadFrame {
            first: frame.first,
            mask: frame.mask,
            payload_bytes: frame.payload_bytes,
            came_bytes: frame.came_bytes,
            control: frame.control.0,
        });
        let message = message.map(|state::HalfReadMessage { is_text, bytes }| HalfReadMessage {
            is_text,
            bytes: bytes.0,
        });
        Self { header: header.0, frame, message }
    }
}
