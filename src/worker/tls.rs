//! TLS over owned buffers (RFC 8446, RFC 5246): bytes of a socket in, application data out, and
//! the other way round.
//!
//! rustls makes the handshake, and gives away the keys when it is done. From then on the records
//! are opened and sealed here, with the ciphers of the same crypto provider: where they lie, without
//! a copy, and with nothing held while idle but keys, numbers, and a record that did not arrive
//! whole. All of that is plain data ([`Data`]), which another process could go on with.
//!
//! - `handshake`: what rustls is asked for
//! - `secrets`: what the keys are made of
//! - `record`: one record, one direction's keys
//! - `traffic`: what records say
//! - `state`: all of that, with which another process goes on

mod handshake;
mod record;
mod secrets;
mod state;
mod traffic;

#[cfg(test)]
pub(super) mod tests;

pub use record::{Keys, RECORD_BYTES};
pub use secrets::give_away;
pub(super) use state::Unusable;
pub use traffic::{Data, State};

use handshake::{Handshake, Shaken, Taken};
use rustls::crypto::CryptoProvider;
use rustls::{Error, InvalidMessage, ServerConfig};
use std::ops::Range;
use std::sync::Arc;
use traffic::{Opened, Traffic};

/// The most that a record adds to its data while rustls makes it: header, nonce, padding to a
/// block and tag.
const RECORD_OVERHEAD_BYTES: usize = 128;

/// The most that is kept of what is not whole: a record as long as they come (RFC 5246, section
/// 6.2.3), behind as much of a hello, which is far more than any client's. rustls by itself would
/// wait for one of 64 KiB, in as many records.
const MAX_PARTIAL_BYTES: usize = 2 * (RECORD_BYTES + 2048 + 5);

/// What rustls holds of a handshake once the peer's hello has arrived, on the heap too: measured over
/// 4,000 of them, the allocator's overhead included.
const HANDSHAKE_BYTES: usize = 6 * 1024;

/// The protocol by which an ACME server looks at a certificate that answers its challenge, and
/// says nothing more (RFC 8737, section 4).
pub const ACME_TLS: &[u8] = b"acme-tls/1";

/// One connection's TLS.
pub struct Session {
    stage: Stage,
    /// What arrived of a record, or of a handshake message, that is not whole.
    partial: Vec<u8>,
}

enum Stage {
    /// Nothing has arrived.
    Expecting(Arc<ServerConfig>),
    /// The handshake is under way.
    Shaking(Box<Handshake>),
    /// The handshake is done.
    Open(Box<Traffic>),
    /// There is to be no handshake.
    Refused,
    /// The handshake has failed.
    Failed,
}

/// What bytes from the socket have come to.
#[derive(Debug, PartialEq)]
pub enum Received {
    /// The session goes on.
    Open,
    /// The peer has said that it will send nothing more (close_notify).
    Closed,
    /// The peer cannot be understood or trusted; an alert that tells it so is among the output.
    Failed(Error),
}

/// The application data of bytes that arrived, and what they have come to.
pub struct Plain {
    /// A record that had begun before.
    kept: Vec<u8>,
    /// Where its data is.
    kept_data: Range<usize>,
    /// Where the rest of the data is among the bytes that arrived.
    pub data: Range<usize>,
    /// What they have come to.
    pub received: Received,
    /// What opening the records took: as much as so many messages.
    pub work: u32,
    /// Where the records begin that were not opened, because that would have been too much work.
    /// They are to come again before anything else.
    pub left: Option<usize>,
}

impl Plain {
    /// No data, and the session goes on.
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            kept: Vec::new(),
            kept_data: 0..0,
            data: 0..0,
            received: Received::Open,
            work: 0,
            left: None,
        }
    }

    /// Data of a record that had begun before these bytes arrived; it comes first.
    pub fn kept(&mut self) -> &mut [u8] {
        self.kept.get_mut(self.kept_data.clone()).unwrap_or_default()
    }

    /// Puts `data` behind the kept data, if there is any; what is left of it otherwise.
    pub fn append<'a>(&mut self, data: &'a mut [u8]) -> &'a mut [u8] {
        if self.kept_data.is_empty() {
            return data;
        }
        self.kept.truncate(self.kept_data.end);
        self.kept.extend_from_slice(data);
        self.kept_data.end = self.kept.len();
        &mut []
    }
}

/// What came of bytes from the socket.
struct Processed {
    /// How many of them were whole records.
    used: usize,
    /// Where the data of these is now.
    data: Range<usize>,
    received: Received,
    work: u32,
    /// There may be more, which would have been too much work.
    is_left: bool,
}

impl Processed {
    fn nothing_but(used: usize, received: Received) -> Self {
        Self { used, data: 0..0, received, work: 0, is_left: false }
    }
}

impl Session {
    /// A session that expects the peer's hello.
    #[must_use]
    pub fn new(config: &Arc<ServerConfig>) -> Self {
        Self { stage: Stage::Expecting(config.clone()), partial: Vec::new() }
    }

    /// Goes on with what [`Session::data`] has said of another, and bytes that had arrived of its
    /// next record. None if the provider has no such cipher suite.
    #[must_use]
    pub fn revive(data: &Data, partial: Vec<u8>, provider: &CryptoProvider) -> Option<Self> {
        let traffic = Traffic::revive(data, &provider.cipher_suites)?;
        Some(Self { stage: Stage::Open(Box::new(traffic)), partial })
    }

    /// All that the session is, but what [`Session::partial`] says. None before the handshake is
    /// done: that is rustls' own affair.
    #[must_use]
    pub fn data(&self) -> Option<Data> {
        match &self.stage {
            Stage::Open(traffic) => Some(traffic.data()),
            _ => None,
        }
    }

    /// What arrived of a record that is not whole.
    #[must_use]
    pub fn partial(&self) -> &[u8] {
        &self.partial
    }

    /// Whether the handshake is still to come, or under way.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        matches!(self.stage, Stage::Expecting(_) | Stage::Shaking(_))
    }

    /// Whether nothing has arrived.
    #[must_use]
    pub fn is_new(&self) -> bool {
        matches!(self.stage, Stage::Expecting(_))
    }

    /// There is to be no handshake: all that is left to say is why, which [`Session::close`] does.
    pub fn refuse(&mut self) {
        self.stage = Stage::Refused;
    }

    /// What it takes beside an open session that rests: bytes that wait for the rest of their
    /// record, and a handshake under way.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        let handshake = matches!(self.stage, Stage::Shaking(_));
        self.partial.capacity() + if handshake { HANDSHAKE_BYTES } else { 0 }
    }

    /// Whether it holds ciphers, which are many times as long as the keys that they are made of.
    #[must_use]
    pub fn is_warm(&self) -> bool {
        matches!(&self.stage, Stage::Open(traffic) if traffic.is_warm())
    }

    /// Forgets its ciphers, until they are needed again.
    pub fn cool(&mut self) {
        if let Stage::Open(traffic) = &mut self.stage {
            traffic.cool();
        }
    }

    /// Bytes arrived. Their application data is left among them; what TLS itself has to say to the
    /// peer (its handshake, an alert) is appended to `out`.
    pub fn receive(&mut self, input: &mut [u8], out: &mut Vec<u8>) -> Plain {
        self.receive_some(input, out, u32::MAX)
    }

    /// As [`Session::receive`], but records are opened only until that has taken `most_work`. The
    /// handshake is none of it, and what comes with the end of that is opened whole.
    pub fn receive_some(&mut self, input: &mut [u8], out: &mut Vec<u8>, most_work: u32) -> Plain {
        let most_work = if self.is_handshaking() { u32::MAX } else { most_work };
        let mut plain = Plain::nothing();
        let mut begin = 0;
        if !self.partial.is_empty() {
            begin = self.fill_partial(input);
            let mut kept = std::mem::take(&mut self.partial);
            let Processed { used, data, received, work, .. } =
                self.process(&mut kept, out, u32::MAX);
            plain.received = received;
            plain.work = work;
            if used == 0 && plain.received == Received::Open {
                self.partial = kept;
            } else {
                self.keep(kept.get(used..).unwrap_or_default(), &plain.received);
                plain.kept = kept;
                plain.kept_data = data;
            }
        }
        if plain.received == Received::Open && begin < input.len() {
            let rest = input.get_mut(begin..).unwrap_or_default();
            let most_work = most_work.saturating_sub(plain.work);
            let Processed { used, data, received, work, is_left } =
                self.process(rest, out, most_work);
            plain.work += work;
            plain.data = begin + data.start..begin + data.end;
            plain.received = received;
            if is_left {
                plain.left = Some(begin + used);
            } else {
                let left = rest.get(used..).unwrap_or_default();
                self.keep(left, &plain.received);
            }
        }
        if plain.received == Received::Open && self.partial.len() > MAX_PARTIAL_BYTES {
            self.partial = Vec::new();
            self.stage = Stage::Failed;
            let error = InvalidMessage::HandshakePayloadTooLarge;
            plain.received = Received::Failed(error.into());
        }
        plain
    }

    /// Keeps what is not whole, in no more room than it needs; nothing of what will not be read.
    fn keep(&mut self, left: &[u8], received: &Received) {
        let left = if *received == Received::Open { left } else { &[] };
        self.partial.extend_from_slice(left);
    }

    /// Adds the rest of the record that has begun to what came of it, so that what is behind it
    /// need not be moved; a handshake's all. How many bytes of `input` that were.
    fn fill_partial(&mut self, input: &[u8]) -> usize {
        let Stage::Open(traffic) = &self.stage else {
            self.partial.extend_from_slice(input);
            return input.len();
        };
        let mut taken = 0;
        // First the header, which says how much it is.
        for _ in 0..2 {
            let known = traffic.record_bytes(&self.partial);
            let goal = known.unwrap_or(record::HEADER_BYTES);
            let missing = goal.saturating_sub(self.partial.len());
            let rest = input.get(taken..).unwrap_or_default();
            let more = rest.get(..missing).unwrap_or(rest);
            self.partial.extend_from_slice(more);
            taken += more.len();
        }
        taken
    }

    /// Takes every whole record, as far as that takes no more than `most_work`.
    fn process(&mut self, input: &mut [u8], out: &mut Vec<u8>, most_work: u32) -> Processed {
        let mut shaken = 0;
        if let Some(handshake) = self.handshake() {
            let taken = match handshake {
                Ok(handshake) => handshake.take(input, out),
                Err(error) => return Processed::nothing_but(0, Received::Failed(error)),
            };
            let Taken { used, shaken: outcome, rest } = taken;
            let received = match outcome {
                Shaken::On => Some(Received::Open),
                Shaken::Left => Some(Received::Closed),
                Shaken::Failed(error) => Some(Received::Failed(error)),
                Shaken::Done { traffic, is_look } => {
                    self.stage = Stage::Open(traffic);
                    // It has seen what it came for, and must not be served.
                    is_look.then_some(Received::Closed)
                }
            };
            if let Some(rest) = rest {
                self.stage = Stage::Shaking(rest);
            }
            if let Some(received) = received {
                return Processed::nothing_but(used, received);
            }
            shaken = used;
        }
        let Stage::Open(traffic) = &mut self.stage else {
            return Processed::nothing_but(0, Received::Open);
        };
        let records = input.get_mut(shaken..).unwrap_or_default();
        let Opened { used, data, closed, fault, work, is_left } =
            traffic.open(records, out, most_work);
        let received = match fault {
            Some(fault) => Received::Failed(fault.error),
            None if closed => Received::Closed,
            None => Received::Open,
        };
        let data = shaken + data.start..shaken + data.end;
        Processed { used: shaken + used, data, received, work, is_left }
    }

    /// Takes out the handshake that is under way, or begins it.
    fn handshake(&mut self) -> Option<Result<Box<Handshake>, Error>> {
        if !self.is_handshaking() {
            return None;
        }
        match std::mem::replace(&mut self.stage, Stage::Failed) {
            Stage::Expecting(config) => Some(Handshake::new(config).map(Box::new)),
            Stage::Shaking(handshake) => Some(Ok(handshake)),
            _ => None,
        }
    }

    /// Whether its keys, which cannot be changed, are good for few records more: it is time to take
    /// leave.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        matches!(&self.stage, Stage::Open(traffic) if traffic.is_used_up())
    }

    /// Appends `data`, encrypted, to `out`. False if the session cannot send.
    #[must_use]
    pub fn encrypt(&mut self, data: &[u8], out: &mut Vec<u8>) -> bool {
        match &mut self.stage {
            Stage::Open(traffic) => traffic.seal(data, out),
            Stage::Shaking(handshake) => handshake.seal(data, &mut self.partial, out),
            _ => false,
        }
    }

    /// Appends the alert with which an orderly session ends. False if there is no session to end.
    pub fn close(&mut self, out: &mut Vec<u8>) -> bool {
        match &mut self.stage {
            Stage::Open(traffic) => traffic.close(out),
            Stage::Shaking(handshake) => handshake.close(&mut self.partial, out),
            Stage::Refused => {
                out.extend_from_slice(&record::ACCESS_DENIED);
                self.stage = Stage::Failed;
                true
            }
            _ => false,
        }
    }
}

/// Why a session has failed, so that an operator sees whose fault it is.
#[must_use]
pub fn explain(error: &Error) -> String {
    match error {
        // The one general error of a server's handshake.
        Error::General(text) if text.contains("certificate chain") => {
            "the client's SNI is missing or is not --domain, or there is no certificate yet"
                .to_owned()
        }
        error => crate::words::of_tls(error),
    }
}
