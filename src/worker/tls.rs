//! TLS over owned buffers (RFC 8446, RFC 5246): bytes of a socket in, application data out, and
//! the other way round. An idle session holds no buffer at all; what it keeps between two reads is
//! a record that did not arrive whole.

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus,
    WriteTraffic,
};
use rustls::{InvalidMessage, ServerConfig};
use std::sync::Arc;

/// The most application data in one record (RFC 8446, section 5.1).
pub const RECORD_BYTES: usize = 1 << 14;
/// The most that a record adds to its data: header, nonce, padding to a block and tag.
const RECORD_OVERHEAD_BYTES: usize = 128;

/// The most that is kept of what is not whole: a record as long as they come (RFC 5246, section
/// 6.2.3), behind as much of a hello, which is far more than any client's. rustls by itself would
/// wait for one of 64 KiB, in as many records.
const MAX_PARTIAL_BYTES: usize = 2 * (RECORD_BYTES + 2048 + 5);

/// The protocol by which an ACME server looks at a certificate that answers its challenge, and
/// says nothing more (RFC 8737, section 4).
pub const ACME_TLS: &[u8] = b"acme-tls/1";

/// One connection's TLS.
pub struct Session {
    connection: UnbufferedServerConnection,
    /// What arrived of a record, or of a handshake message, that is not whole.
    partial: Vec<u8>,
}

/// What bytes from the socket have come to.
#[derive(Debug, PartialEq)]
pub enum Received {
    /// The session goes on.
    Open,
    /// The peer has said that it will send nothing more (close_notify).
    Closed,
    /// The peer cannot be understood or trusted; an alert that tells it so is among the output.
    Failed(rustls::Error),
}

impl Session {
    /// A session that expects the peer's hello.
    ///
    /// # Errors
    ///
    /// None for a configuration that the control plane has made.
    pub fn new(config: &Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let connection = UnbufferedServerConnection::new(config.clone())?;
        Ok(Self { connection, partial: Vec::new() })
    }

    /// Whether the handshake is still under way.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Bytes that wait for the rest of their record.
    #[must_use]
    pub fn partial_bytes(&self) -> usize {
        self.partial.capacity()
    }

    /// Bytes arrived: application data is appended to `plain`, and what TLS itself has to say to
    /// the peer (its handshake, an alert) to `out`.
    pub fn receive(
        &mut self,
        input: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Received {
        let was_handshaking = self.is_handshaking();
        let mut received = if self.partial.is_empty() {
            let (used, received) = self.process(input, plain, out);
            self.partial = input.get(used..).unwrap_or_default().to_vec();
            received
        } else {
            let mut partial = std::mem::take(&mut self.partial);
            partial.extend_from_slice(input);
            let (used, received) = self.process(&mut partial, plain, out);
            self.partial = match used {
                0 => partial,
                // In no more room than it needs.
                _ => partial.get(used..).unwrap_or_default().to_vec(),
            };
            received
        };
        if received == Received::Open && self.partial.len() > MAX_PARTIAL_BYTES {
            received = Received::Failed(InvalidMessage::HandshakePayloadTooLarge.into());
        }
        let is_done = was_handshaking && !self.is_handshaking();
        if is_done && self.connection.alpn_protocol() == Some(ACME_TLS) {
            // It has seen what it came for, and must not be served.
            plain.clear();
            received = Received::Closed;
        }
        if received != Received::Open {
            // Nothing of it will be read any more.
            self.partial = Vec::new();
        }
        received
    }

    /// Takes every whole record; how many bytes of `input` these were.
    fn process(
        &mut self,
        input: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> (usize, Received) {
        let mut used = 0;
        loop {
            let Some(rest) = input.get_mut(used..) else { return (used, Received::Open) };
            let UnbufferedStatus { mut discard, state } = self.connection.process_tls_records(rest);
            let end = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                    None
                }
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    encode(data, out);
                    None
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    None
                }
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Some(Received::Closed),
                // Ours to offer, and we do not: what it holds may be replayed.
                Ok(ConnectionState::ReadEarlyData(_)) => Some(Received::Closed),
                Ok(_) => Some(Received::Open),
                Err(error) => {
                    let rest = input.get_mut(used + discard..).unwrap_or_default();
                    self.append_alert(rest, out);
                    Some(Received::Failed(error))
                }
            };
            used += discard;
            if let Some(end) = end {
                return (used, end);
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

    /// Appends `data`, encrypted, to `out`. False if the session cannot send.
    pub fn encrypt(&mut self, data: &[u8], out: &mut Vec<u8>) -> bool {
        let records = data.len().div_ceil(RECORD_BYTES).max(1);
        let most = data.len() + records * RECORD_OVERHEAD_BYTES;
        self.write(out, most, |traffic, room| traffic.encrypt(data, room).ok())
    }

    /// Appends the alert with which an orderly session ends. False if there is no session to end.
    pub fn close(&mut self, out: &mut Vec<u8>) -> bool {
        let most = RECORD_OVERHEAD_BYTES;
        self.write(out, most, |traffic, room| traffic.queue_close_notify(room).ok())
    }

    /// Appends at most `most` bytes, which `write` puts into the room that it is given.
    fn write<F>(&mut self, out: &mut Vec<u8>, most: usize, write: F) -> bool
    where
        F: FnOnce(
            &mut WriteTraffic<'_, rustls::server::ServerConnectionData>,
            &mut [u8],
        ) -> Option<usize>,
    {
        loop {
            // A record that is not whole changes nothing; it must be there all the same.
            match self.connection.process_tls_records(&mut self.partial).state {
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

/// Why a session has failed, so that an operator sees whose fault it is.
#[must_use]
pub fn explain(error: &rustls::Error) -> String {
    match error {
        // The one general error of a server's handshake.
        rustls::Error::General(text) if text.contains("certificate chain") => {
            "it asked for another name than --domain or for none, or there is no certificate yet"
                .to_owned()
        }
        error => crate::words::of_tls(error),
    }
}

/// Whether a record is an alert, or encrypted and as short as only an alert is (RFC 8446, sections
/// 5.1 and 5.2: level, description, content type and tag).
fn is_alert(record: &[u8]) -> bool {
    const ALERT: u8 = 21;
    const APPLICATION_DATA: u8 = 23;
    match record.first() {
        Some(&ALERT) => true,
        Some(&APPLICATION_DATA) => record.len() <= 5 + 2 + 1 + 16,
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
