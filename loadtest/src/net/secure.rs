//! What is different on a connection over TLS: bytes are encrypted on their way out and decrypted on
//! their way in, and the handshake comes first.

use crate::net::{Conn, Load, Net, Phase};
use crate::tls;
use crate::wire::{Ended, Handle};
use rustls::ClientConnection;
use std::io::{self, Read as _, Write};

impl Conn {
    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }
}

impl Net {
    /// Handles what the socket brought.
    pub(super) fn decrypt(&mut self, handle: Handle, mut bytes: &[u8], load: &mut impl Load) {
        let mut plain = std::mem::take(&mut self.plain);
        let mut handshakes = std::mem::take(&mut self.handshakes);
        while let Some(conn) = self.get_mut(handle)
            && !bytes.is_empty()
        {
            plain.clear();
            let was_handshaking = conn.is_handshaking();
            let Some(tls) = &mut conn.tls else { break };
            let read = read(tls, &mut bytes, &mut plain);
            if let (true, false) = (was_handshaking, tls.is_handshaking()) {
                handshakes.count(tls);
            }
            if tls.wants_write() {
                self.write_soon(handle);
            }
            self.feed(handle, &plain, load);
            let ended = match (read, self.get(handle).map(|conn| conn.phase)) {
                (Ok(false), _) => continue,
                (Ok(true), Some(Phase::Open)) => Ended::Cut("TLS ended with its alert".into()),
                (Ok(true), _) => match self.get(handle) {
                    Some(conn) => conn.ended("TLS ended with its alert before a 101"),
                    None => continue,
                },
                (Err(error), Some(Phase::Open)) => match error {
                    rustls::Error::AlertReceived(_) => Ended::Cut(tls::explain(&error)),
                    _ => Ended::Violation(format!(
                        "bytes that are wrong in {}",
                        tls::explain(&error)
                    )),
                },
                (Err(error), _) => Ended::Refused(tls::explain(&error)),
            };
            self.end(handle, ended, load);
        }
        self.plain = plain;
        self.handshakes = handshakes;
    }
}

/// Decrypts what fits of `bytes`, and takes it off them; whether the relay has ended its side.
fn read(
    tls: &mut ClientConnection,
    bytes: &mut &[u8],
    plain: &mut Vec<u8>,
) -> Result<bool, rustls::Error> {
    let failed = |error: io::Error| rustls::Error::General(error.to_string());
    tls.read_tls(bytes).map_err(failed)?;
    let state = tls.process_new_packets()?;
    plain.resize(state.plaintext_bytes_to_read(), 0);
    tls.reader().read_exact(plain).map_err(failed)?;
    Ok(state.peer_has_closed())
}

/// Encrypts all of `outbox`, and writes until nothing is left or the socket is full.
pub(super) fn write(
    tls: &mut ClientConnection,
    outbox: &mut Vec<u8>,
    stream: &mut impl Write,
) -> io::Result<()> {
    tls.writer().write_all(outbox)?;
    outbox.clear();
    while tls.wants_write() {
        match tls.write_tls(stream) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Says goodbye, as far as the socket takes it at once.
pub(super) fn part(conn: &mut Conn) {
    let Some(tls) = &mut conn.tls else { return };
    if tls.writer().write_all(&conn.outbox).is_ok() {
        tls.send_close_notify();
    }
    // Who ended it will not hear it.
    let _ = write(tls, &mut Vec::new(), &mut conn.stream);
}
