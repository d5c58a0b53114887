//! What arrives on a connection: cut into frames, and handed to the load.

use crate::codec::{self, Received};
use crate::net::{Load, Net, Phase};
use crate::wire::{Ended, FLOOR_OKAY, Handle, Tag, Wire};
use std::io::{self, Read as _};

impl Net {
    /// Receives until the socket is empty. A short read means just that, unless the peer has ended.
    pub(super) fn read(&mut self, handle: Handle, ending: bool, load: &mut impl Load) {
        let mut scratch = std::mem::take(&mut self.scratch);
        while let Some(conn) = self.get_mut(handle) {
            match conn.stream.read(&mut scratch) {
                Ok(0) => {
                    let ended = conn.ended(match (conn.phase, conn.is_handshaking()) {
                        (Phase::Open, _) => "end of stream",
                        (_, true) => "it ended amid the TLS handshake",
                        _ => "the connection ended before a 101",
                    });
                    self.end(handle, ended, load);
                }
                Ok(length) => {
                    let secure = conn.tls.is_some();
                    self.arrived = self.now();
                    let bytes = scratch.get(..length).unwrap_or_default();
                    match secure {
                        true => self.decrypt(handle, bytes, load),
                        false => self.feed(handle, bytes, load),
                    }
                    if length < scratch.len() && !ending {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let ended = conn.ended(&error.to_string());
                    self.end(handle, ended, load);
                }
            }
        }
        self.scratch = scratch;
    }

    pub(super) fn feed(&mut self, handle: Handle, bytes: &[u8], load: &mut impl Load) {
        let Some(conn) = self.get_mut(handle) else { return };
        if conn.inbox.is_empty() {
            let used = self.parse(handle, bytes, load);
            if let Some(conn) = self.get_mut(handle) {
                conn.inbox.extend_from_slice(bytes.get(used..).unwrap_or_default());
            }
            return;
        }
        conn.inbox.extend_from_slice(bytes);
        let mut inbox = std::mem::take(&mut conn.inbox);
        let used = self.parse(handle, &inbox, load);
        inbox.drain(..used);
        if let Some(conn) = self.get_mut(handle) {
            conn.inbox = inbox;
        }
    }

    /// Handles every whole message in `bytes`; returns how many bytes those were.
    fn parse(&mut self, handle: Handle, bytes: &[u8], load: &mut impl Load) -> usize {
        let mut used = 0;
        while let (Some(conn), Some(rest)) = (self.get(handle), bytes.get(used..)) {
            let (phase, tag) = (conn.phase, conn.tag);
            let step = match (phase, self.target.wire) {
                (Phase::Open, Wire::WebSocket) => self.one_frame(handle, tag, rest, load),
                (Phase::Open, Wire::Floor { record }) => {
                    let whole = rest.get(..record).filter(|record| !record.is_empty());
                    if let Some(whole) = whole {
                        load.on_text(self, handle, tag, whole);
                    }
                    whole.map(<[u8]>::len)
                }
                _ => self.opening(handle, tag, rest, load),
            };
            match step {
                Some(length) => used += length,
                None => break,
            }
        }
        used
    }

    fn opening(
        &mut self,
        handle: Handle,
        tag: Tag,
        bytes: &[u8],
        load: &mut impl Load,
    ) -> Option<usize> {
        let answer = match self.target.wire {
            Wire::WebSocket => codec::upgrade_answer(bytes),
            Wire::Floor { .. } => Ok(bytes.starts_with(FLOOR_OKAY).then_some(FLOOR_OKAY.len())),
        };
        match answer {
            Ok(Some(length)) => {
                if let Some(conn) = self.get_mut(handle) {
                    conn.phase = Phase::Open;
                }
                load.on_open(self, handle, tag);
                Some(length)
            }
            Ok(None) => None,
            Err(why) => {
                self.end(handle, Ended::Refused(why), load);
                None
            }
        }
    }

    fn one_frame(
        &mut self,
        handle: Handle,
        tag: Tag,
        bytes: &[u8],
        load: &mut impl Load,
    ) -> Option<usize> {
        let (received, length) = match codec::decode(bytes) {
            Ok(found) => found?,
            Err(what) => {
                self.end(handle, Ended::Violation(what.into()), load);
                return None;
            }
        };
        match received {
            Received::Text(payload) => load.on_text(self, handle, tag, payload),
            Received::Ping(payload) => {
                self.pings += 1;
                self.queue(handle, |key, out| {
                    let fill = |out: &mut Vec<u8>| out.extend_from_slice(payload);
                    codec::encode(out, codec::PONG, key, payload.len(), fill);
                });
            }
            Received::Pong => {}
            Received::Close { code, reason } => {
                let reason = String::from_utf8_lossy(reason).into_owned();
                self.queue(handle, |key, out| {
                    let echo = code.map(u16::to_be_bytes);
                    let echo = echo.as_ref().map(<[u8; 2]>::as_slice).unwrap_or_default();
                    let fill = |out: &mut Vec<u8>| out.extend_from_slice(echo);
                    codec::encode(out, codec::CLOSE, key, echo.len(), fill);
                });
                self.end(handle, Ended::Close { code, reason }, load);
            }
        }
        Some(length)
    }
}
