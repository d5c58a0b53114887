//! Connections that send the same bytes again and again as fast as they are taken, and read whatever
//! comes.

use crate::Outcome;
use crate::peer::Peer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::ClientConnection;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How long nothing may move until it is looked whether to stop.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// One connection.
pub(super) struct Flood {
    stream: TcpStream,
    tls: Option<ClientConnection>,
    /// What is sent again and again; nothing to only read.
    block: Vec<u8>,
    /// Bytes in a record, over TLS.
    record: usize,
    /// What is being sent, and how much of it has left.
    sending: Vec<u8>,
    sent: usize,
    /// Whether it reads.
    reads: bool,
}

impl Flood {
    /// Sends `block` again and again, and reads.
    pub(super) fn new(peer: Peer, block: Vec<u8>) -> Outcome<Self> {
        let (stream, tls) = peer.into_parts();
        stream.set_nonblocking(true)?;
        let (record, sent) = (16_384, 0);
        Ok(Self { stream, tls, block, record, sending: Vec::new(), sent, reads: true })
    }

    /// Only reads.
    pub(super) fn drain(peer: Peer) -> Outcome<Self> {
        Self::new(peer, Vec::new())
    }

    /// The same in TLS records of so many bytes.
    pub(super) fn in_records(self, record: usize) -> Self {
        Self { record, ..self }
    }

    /// The same, but it does not read.
    pub(super) fn deaf(self) -> Self {
        Self { reads: false, ..self }
    }

    /// Sends once; how many bytes were taken.
    fn send(&mut self) -> io::Result<usize> {
        if self.block.is_empty() {
            return Ok(0);
        }
        if self.sent == self.sending.len() {
            self.sent = 0;
            match &mut self.tls {
                None if self.sending.is_empty() => self.sending.clone_from(&self.block),
                None => {}
                Some(tls) => {
                    self.sending.clear();
                    for record in self.block.chunks(self.record) {
                        tls.writer().write_all(record)?;
                    }
                    while tls.wants_write() {
                        tls.write_tls(&mut self.sending)?;
                    }
                }
            }
        }
        match self.stream.write(self.sending.get(self.sent..).unwrap_or_default()) {
            Ok(length) => {
                self.sent += length;
                Ok(length)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Reads once; whether there was something.
    fn read(&mut self, scratch: &mut [u8]) -> io::Result<bool> {
        match self.stream.read(scratch) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn interest(&self) -> PollFlags {
        let reads = if self.reads { PollFlags::IN } else { PollFlags::empty() };
        let sends = if self.block.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        reads | sends
    }
}

/// Lets them go on until it is time to stop, or one of them has ended; `sent` counts bytes.
pub(super) fn pump(floods: &mut [Flood], stop: &AtomicBool, sent: &AtomicU64) -> Outcome<()> {
    let mut scratch = vec![0; 256 * 1024];
    while !stop.load(Ordering::Relaxed) {
        let mut moved = false;
        for flood in floods.iter_mut() {
            let bytes = flood.send()?;
            sent.fetch_add(bytes as u64, Ordering::Relaxed);
            moved |= bytes > 0;
            if flood.reads {
                moved |= flood.read(&mut scratch)?;
            }
        }
        if !moved {
            let fds = floods.iter().map(|flood| PollFd::new(&flood.stream, flood.interest()));
            poll(&mut fds.collect::<Vec<_>>(), Some(&LOOK_EVERY))?;
        }
    }
    Ok(())
}
