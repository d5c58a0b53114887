//! The handshake, which is rustls' own. It is shown one record more at a time, so that the one with
//! which the handshake is done is the last that it has seen: what comes behind is for the keys that
//! it gives away.

use super::record::HEADER_BYTES;
use super::secrets::{self, Secrets};
use super::traffic::Traffic;
use super::{ACME_TLS, RECORD_OVERHEAD_BYTES};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus,
    WriteTraffic,
};
use rustls::{Error, ServerConfig};
use std::sync::Arc;

/// A handshake under way.
pub(super) struct Handshake {
    connection: UnbufferedServerConnection,
    secrets: Option<Box<Secrets>>,
    /// Bytes of whole records that it was shown and has not used: a message goes on in the next.
    shown: usize,
}

/// What a handshake has come to.
pub(super) enum Shaken {
    /// It goes on.
    On,
    /// It is done.
    Done {
        /// What the connection is from now on.
        traffic: Box<Traffic>,
        /// It was made by who wanted to see the certificate and nothing else.
        is_look: bool,
    },
    /// The peer has left.
    Left,
    /// It has failed. There is an alert that says why.
    Failed(Error),
}

impl Handshake {
    /// # Errors
    ///
    /// None for a configuration that the control plane has made.
    pub(super) fn new(config: Arc<ServerConfig>) -> Result<Self, Error> {
        let connection = UnbufferedServerConnection::new(config)?;
        Ok(Self { connection, secrets: None, shown: 0 })
    }

    /// Bytes of the peer's: how many of them the handshake has used, and what it has come to. What
    /// it has to say is appended to `out`.
    pub(super) fn take(mut self: Box<Self>, input: &mut [u8], out: &mut Vec<u8>) -> Taken {
        let (mut used, mut whole) = (0, self.shown);
        loop {
            // Whole records, one at a time; and what is left, whose header may be none.
            let record = input.get(whole..).and_then(record_bytes);
            let next = record.map(|bytes| whole + bytes).filter(|next| *next <= input.len());
            whole = next.unwrap_or(whole);
            let shown = next.unwrap_or(input.len());
            let shaken = self.take_shown(&mut used, input.get_mut(..shown), out);
            self.shown = whole.saturating_sub(used);
            if let Some(told) = secrets::told() {
                self.secrets = Some(told);
            }
            match shaken {
                Shaken::On if !self.connection.is_handshaking() => {
                    return Taken { used, shaken: self.finish(used == whole), rest: None };
                }
                Shaken::On if next.is_some() => {}
                shaken => return Taken { used, shaken, rest: Some(self) },
            }
        }
    }

    fn finish(self: Box<Self>, all_used: bool) -> Shaken {
        let is_look = self.connection.alpn_protocol() == Some(ACME_TLS);
        if !all_used {
            return Shaken::Failed(Error::General("a record that is half the handshake's".into()));
        }
        let Self { connection, secrets, .. } = *self;
        let made = connection.dangerous_into_kernel_connection().and_then(|(extracted, kept)| {
            Traffic::new(kept.negotiated_cipher_suite(), extracted, secrets.as_deref())
        });
        match made {
            Ok(traffic) => Shaken::Done { traffic: Box::new(traffic), is_look },
            Err(error) => Shaken::Failed(error),
        }
    }

    /// Takes what it can of `input`, from `used` on.
    fn take_shown(
        &mut self,
        used: &mut usize,
        input: Option<&mut [u8]>,
        out: &mut Vec<u8>,
    ) -> Shaken {
        let input = input.unwrap_or_default();
        loop {
            let Some(rest) = input.get_mut(*used..) else { return Shaken::On };
            let UnbufferedStatus { discard, state } = self.connection.process_tls_records(rest);
            let end = match state {
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    encode(data, out);
                    None
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    None
                }
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => {
                    Some(Shaken::On)
                }
                // Early data is ours to offer, and we do not: what it holds may be replayed. Other
                // data comes behind the handshake, and is not shown.
                Ok(_) => Some(Shaken::Left),
                Err(error) => {
                    let rest = input.get_mut(*used + discard..).unwrap_or_default();
                    self.append_alert(rest, out);
                    Some(Shaken::Failed(error))
                }
            };
            *used += discard;
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// The alert with which rustls ends a session comes after the error, and after whatever else it
    /// had to say: its hello, where what follows that in a handshake has failed. `rest` is what the
    /// error left unread. It must not be read again, so the alert is the end.
    fn append_alert(&mut self, rest: &mut [u8], out: &mut Vec<u8>) {
        loop {
            match self.connection.process_tls_records(rest).state {
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    let before = out.len();
                    encode(data, out);
                    if out.get(before..).is_some_and(is_alert) {
                        return;
                    }
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                _ => return,
            }
        }
    }

    /// Appends `data`, encrypted, to `out`, which a server may do before it is done in TLS 1.3.
    /// False if it cannot.
    pub(super) fn seal(&mut self, data: &[u8], partial: &mut [u8], out: &mut Vec<u8>) -> bool {
        let records = data.len().div_ceil(super::RECORD_BYTES).max(1);
        let most = data.len() + records * RECORD_OVERHEAD_BYTES;
        self.write(partial, out, most, |traffic, room| traffic.encrypt(data, room).ok())
    }

    /// Appends the alert with which an orderly session ends. False if there is no session to end.
    pub(super) fn close(&mut self, partial: &mut [u8], out: &mut Vec<u8>) -> bool {
        let most = RECORD_OVERHEAD_BYTES;
        self.write(partial, out, most, |traffic, room| traffic.queue_close_notify(room).ok())
    }

    /// Appends at most `most` bytes, which `write` puts into the room that it is given.
    fn write<F>(&mut self, partial: &mut [u8], out: &mut Vec<u8>, most: usize, write: F) -> bool
    where
        F: FnOnce(&mut WriteTraffic<'_, ServerConnectionData>, &mut [u8]) -> Option<usize>,
    {
        loop {
            // A record that is not whole changes nothing; it must be there all the same.
            match self.connection.process_tls_records(partial).state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    let before = out.len();
                    out.resize(before + most, 0);
                    let room = out.get_mut(before..).unwrap_or_default();
                    let written = write(&mut traffic, room);
                    out.truncate(before + written.unwrap_or(0));
                    return written.is_some();
                }
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, out),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                _ => return false,
            }
        }
    }
}

/// What [`Handshake::take`] has come to.
pub(super) struct Taken {
    pub(super) used: usize,
    pub(super) shaken: Shaken,
    /// What is left of the handshake, unless it is done.
    pub(super) rest: Option<Box<Handshake>>,
}

/// How long a record is that begins with these bytes, with its header, if they say.
fn record_bytes(begin: &[u8]) -> Option<usize> {
    let &[_, _, _, high, low] = begin.first_chunk::<HEADER_BYTES>()?;
    Some(HEADER_BYTES + usize::from(u16::from_be_bytes([high, low])))
}

/// Whether a record is an alert, or encrypted and as short as only an alert is (RFC 8446, sections
/// 5.1 and 5.2: level, description, content type and tag).
fn is_alert(record: &[u8]) -> bool {
    match record.first() {
        Some(&super::record::ALERT) => true,
        Some(&super::record::APPLICATION_DATA) => record.len() <= HEADER_BYTES + 2 + 1 + 16,
        _ => false,
    }
}

fn encode<Data>(mut data: EncodeTlsData<'_, Data>, out: &mut Vec<u8>) {
    // Without room it says how much it needs.
    let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) =
        data.encode(&mut [])
    else {
        return;
    };
    let before = out.len();
    out.resize(before + required_size, 0);
    if let Some(room) = out.get_mut(before..) {
        let written = data.encode(room);
        debug_assert!(written.is_ok_and(|bytes| bytes == required_size), "room as asked for");
    }
}
