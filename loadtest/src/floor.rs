//! The price of the kernel: a bare io_uring TCP pipe between the same pairs of sockets. Records of
//! one size go from each phone's socket to its binary's and back; there is no protocol, no check,
//! and no work but to move bytes. What the relay spends beyond this, it spends itself.

use crate::Outcome;
use crate::pipe_ring::{Done, PipeRing};
use crate::wire::{FLOOR_HELLO, FLOOR_MAGIC, FLOOR_OKAY};
use slab::Slab;
use socket2::{Domain, Socket, Type};
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, RawFd};

/// A storm of the agents fits in.
const BACKLOG: i32 = 4096;
/// A record's phone, in hexadecimal digits, stands at the same place in each frame.
const PHONE_DIGITS: std::ops::Range<usize> = 7..15;

struct Pipe {
    role: Role,
    /// The first part of a record.
    partial: Vec<u8>,
    outbox: Vec<u8>,
    /// What is being sent, and how much of it has left.
    sending: Vec<u8>,
    sent: usize,
    is_sending: bool,
    is_receiving: bool,
    is_dirty: bool,
}

#[derive(Clone, Copy)]
enum Role {
    Unknown,
    /// The key of its binary.
    Phone(usize),
    Binary,
}

struct Floor {
    ring: PipeRing,
    pipes: Pipes,
}

#[derive(Default)]
struct Pipes {
    all: Slab<Pipe>,
    /// By group.
    binaries: HashMap<u32, usize>,
    /// By the phone's number.
    phones: Vec<Option<usize>>,
    dirty: Vec<usize>,
    record: usize,
}

/// Serves until it is killed.
pub(crate) fn run(listen: SocketAddr) -> Outcome<()> {
    let listener = Socket::new(Domain::for_address(listen), Type::STREAM, None)?;
    listener.set_reuse_address(true)?;
    listener.bind(&listen.into())?;
    listener.listen(BACKLOG)?;
    let listener = TcpListener::from(listener);
    let ring = PipeRing::new()
        .map_err(|error| format!("no io_uring as the floor needs it (Linux 6.1): {error}"))?;
    let mut floor = Floor { ring, pipes: Pipes::default() };
    let mut done = Vec::new();
    floor.ring.accept(listener.as_raw_fd())?;
    loop {
        floor.ring.wait(&mut done)?;
        for what in done.drain(..) {
            match what {
                Done::Accepted(result) => {
                    floor.ring.accept(listener.as_raw_fd())?;
                    floor.accepted(result)?;
                }
                Done::Received { key, buffer, bytes } => {
                    let received = floor.ring.received(buffer, bytes);
                    floor.pipes.received(key, received)?;
                    floor.ring.give_back(buffer);
                }
                Done::ReceiveEnded { key, is_dead } => floor.receive_ended(key, is_dead)?,
                Done::Sent { key, result } => floor.sent(key, result)?,
            }
        }
        for key in std::mem::take(&mut floor.pipes.dirty) {
            floor.send(key)?;
        }
    }
}

impl Floor {
    #[allow(unsafe_code)]
    fn accepted(&mut self, result: RawFd) -> io::Result<()> {
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
        let stream = unsafe { TcpStream::from_raw_fd(result) };
        stream.set_nodelay(true)?;
        let key = self.pipes.all.insert(Pipe {
            role: Role::Unknown,
            partial: Vec::new(),
            outbox: Vec::new(),
            sending: Vec::new(),
            sent: 0,
            is_sending: false,
            is_receiving: true,
            is_dirty: false,
        });
        // The ring holds the socket from here on.
        self.ring.register(key, stream.as_raw_fd())?;
        self.ring.receive(key)
    }

    fn receive_ended(&mut self, key: usize, is_dead: bool) -> io::Result<()> {
        if !is_dead {
            return self.ring.receive(key);
        }
        if let Some(pipe) = self.pipes.all.get_mut(key) {
            pipe.is_receiving = false;
        }
        self.bury(key)
    }

    fn send(&mut self, key: usize) -> io::Result<()> {
        let Some(pipe) = self.pipes.all.get_mut(key) else { return Ok(()) };
        pipe.is_dirty = false;
        if pipe.is_sending || !pipe.is_receiving {
            return Ok(());
        }
        if pipe.sent == pipe.sending.len() {
            pipe.sending.clear();
            pipe.sent = 0;
            std::mem::swap(&mut pipe.sending, &mut pipe.outbox);
        }
        let bytes = pipe.sending.get(pipe.sent..).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(());
        }
        pipe.is_sending = true;
        self.ring.send(key, bytes)
    }

    fn sent(&mut self, key: usize, result: i32) -> io::Result<()> {
        let Some(pipe) = self.pipes.all.get_mut(key) else { return Ok(()) };
        pipe.is_sending = false;
        if !pipe.is_receiving {
            return self.bury(key);
        }
        // What cannot be sent any more ends with the receive.
        pipe.sent += usize::try_from(result).unwrap_or(pipe.sending.len() - pipe.sent);
        self.send(key)
    }

    /// Forgets a pipe of which the kernel holds nothing any more.
    fn bury(&mut self, key: usize) -> io::Result<()> {
        if self.pipes.all.get(key).is_some_and(|pipe| !pipe.is_sending && !pipe.is_receiving) {
            self.ring.register(key, -1)?;
            self.pipes.all.remove(key);
        }
        Ok(())
    }
}

impl Pipes {
    fn received(&mut self, key: usize, bytes: &[u8]) -> io::Result<()> {
        let Some(pipe) = self.all.get_mut(key) else { return Ok(()) };
        let is_known = !matches!(pipe.role, Role::Unknown);
        if is_known && pipe.partial.is_empty() && bytes.len().is_multiple_of(self.record.max(1)) {
            self.forward(key, bytes);
            return Ok(());
        }
        pipe.partial.extend_from_slice(bytes);
        let mut all = std::mem::take(&mut pipe.partial);
        if !is_known && all.len() >= FLOOR_HELLO {
            self.meet(key, &all)?;
            all.drain(..FLOOR_HELLO);
        }
        let whole = all.len() / self.record.max(1) * self.record;
        self.forward(key, all.get(..whole).unwrap_or_default());
        all.drain(..whole);
        if let Some(pipe) = self.all.get_mut(key) {
            pipe.partial = all;
        }
        Ok(())
    }

    /// Reads the hello: magic, role, group, phone, record length.
    fn meet(&mut self, key: usize, hello: &[u8]) -> io::Result<()> {
        let field = |at: usize| {
            let bytes = hello.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u32::from_le_bytes)
        };
        if !hello.starts_with(FLOOR_MAGIC) {
            return Err(io::Error::other("a peer that is no agent of this tool"));
        }
        let (is_phone, group, phone) = (field(4) == 1, field(8), field(12) as usize);
        self.record = field(16) as usize;
        let role = if is_phone {
            let binary = self.binaries.get(&group).copied();
            let binary = binary.ok_or_else(|| io::Error::other("a phone before its binary"))?;
            if self.phones.len() <= phone {
                self.phones.resize(phone + 1, None);
            }
            if let Some(place) = self.phones.get_mut(phone) {
                *place = Some(key);
            }
            Role::Phone(binary)
        } else {
            self.binaries.insert(group, key);
            Role::Binary
        };
        if let Some(pipe) = self.all.get_mut(key) {
            pipe.role = role;
        }
        self.append(key, FLOOR_OKAY);
        Ok(())
    }

    /// Moves whole records to where they go.
    fn forward(&mut self, key: usize, records: &[u8]) {
        match self.all.get(key).map(|pipe| pipe.role) {
            Some(Role::Phone(binary)) => self.append(binary, records),
            Some(Role::Binary) => {
                for record in records.chunks_exact(self.record.max(1)) {
                    let phone = phone_of(record).and_then(|phone| self.phones.get(phone).copied());
                    if let Some(phone) = phone.flatten() {
                        self.append(phone, record);
                    }
                }
            }
            _ => {}
        }
    }

    fn append(&mut self, key: usize, bytes: &[u8]) {
        if let Some(pipe) = self.all.get_mut(key)
            && !bytes.is_empty()
        {
            pipe.outbox.extend_from_slice(bytes);
            if !std::mem::replace(&mut pipe.is_dirty, true) {
                self.dirty.push(key);
            }
        }
    }
}

fn phone_of(record: &[u8]) -> Option<usize> {
    let digits = str::from_utf8(record.get(PHONE_DIGITS)?).ok()?;
    usize::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::phone_of;
    use crate::frame::{Frames, Label};

    #[test]
    fn the_phone_of_a_record_is_read_where_frames_write_it() {
        let mut record = Vec::new();
        Frames::new(200).write(Label { id: 0xabc, seq: 1, time: 2 }, &mut record);
        assert_eq!(phone_of(&record), Some(0xabc));
        assert_eq!(phone_of(b"{}"), None);
    }
}
