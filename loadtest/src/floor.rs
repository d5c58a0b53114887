//! The price of the kernel: a bare io_uring TCP pipe between the same pairs of sockets. Records of
//! one size go from each phone's socket to its binary's and back; there is no protocol, no check,
//! and no work but to move bytes. What the relay spends beyond this, it spends itself.

use crate::Outcome;
use crate::wire::{FLOOR_HELLO, FLOOR_MAGIC, FLOOR_OKAY};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use slab::Slab;
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _};

const ACCEPT: u64 = u64::MAX;
const RECEIVE_BYTES: usize = 64 * 1024;
/// A record's phone, in hexadecimal digits, stands at the same place in each frame.
const PHONE_DIGITS: std::ops::Range<usize> = 7..15;

struct Pipe {
    stream: TcpStream,
    role: Role,
    /// What is being received into: the rest of a record, then room.
    inbox: Vec<u8>,
    filled: usize,
    outbox: Vec<u8>,
    /// What is being sent, and how much of it has left.
    sending: Vec<u8>,
    sent: usize,
    is_sending: bool,
    is_dirty: bool,
    is_dead: bool,
    operations: u32,
}

#[derive(Clone, Copy)]
enum Role {
    Unknown,
    /// The key of its binary.
    Phone(usize),
    Binary,
}

struct Floor {
    ring: IoUring,
    pipes: Slab<Pipe>,
    binaries: HashMap<u32, usize>,
    phones: HashMap<u32, usize>,
    dirty: Vec<usize>,
    record: usize,
}

/// Serves until it is killed.
pub(crate) fn run(listen: SocketAddr) -> Outcome<()> {
    let listener = TcpListener::bind(listen)?;
    let ring = IoUring::builder()
        .setup_coop_taskrun()
        .setup_single_issuer()
        .setup_cqsize(16_384)
        .build(4096)?;
    let mut floor = Floor {
        ring,
        pipes: Slab::new(),
        binaries: HashMap::new(),
        phones: HashMap::new(),
        dirty: Vec::new(),
        record: 0,
    };
    let mut done: Vec<(u64, i32)> = Vec::new();
    floor.accept(&listener)?;
    loop {
        floor.ring.submit_and_wait(1)?;
        done.extend(
            floor.ring.completion().map(|entry: cqueue::Entry| (entry.user_data(), entry.result())),
        );
        for (what, result) in done.drain(..) {
            if what == ACCEPT {
                floor.accept(&listener)?;
                floor.accepted(result)?;
            } else if what & 1 == 0 {
                floor.received((what >> 1) as usize, result)?;
            } else {
                floor.sent((what >> 1) as usize, result)?;
            }
        }
        for key in std::mem::take(&mut floor.dirty) {
            floor.send(key)?;
        }
    }
}

impl Floor {
    #[allow(unsafe_code)]
    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        // SAFETY: what an entry points to, a pipe's inbox or sending buffer, is neither moved nor
        // freed while its operation is under way: `operations` keeps the pipe, the buffers do not
        // grow meanwhile.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }

    fn accept(&mut self, listener: &TcpListener) -> io::Result<()> {
        let fd = types::Fd(listener.as_raw_fd());
        let entry = opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut()).build();
        self.push(entry.user_data(ACCEPT))
    }

    #[allow(unsafe_code)]
    fn accepted(&mut self, result: i32) -> io::Result<()> {
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
        let stream = unsafe { TcpStream::from_raw_fd(result) };
        stream.set_nodelay(true)?;
        let key = self.pipes.insert(Pipe {
            stream,
            role: Role::Unknown,
            inbox: vec![0; RECEIVE_BYTES],
            filled: 0,
            outbox: Vec::new(),
            sending: Vec::new(),
            sent: 0,
            is_sending: false,
            is_dirty: false,
            is_dead: false,
            operations: 0,
        });
        self.receive(key)
    }

    fn receive(&mut self, key: usize) -> io::Result<()> {
        let Some(pipe) = self.pipes.get_mut(key) else { return Ok(()) };
        let room = pipe.inbox.get_mut(pipe.filled..).unwrap_or_default();
        let fd = types::Fd(pipe.stream.as_raw_fd());
        let entry = opcode::Recv::new(fd, room.as_mut_ptr(), room.len() as u32).build();
        pipe.operations += 1;
        self.push(entry.user_data((key as u64) << 1))
    }

    fn received(&mut self, key: usize, result: i32) -> io::Result<()> {
        let Some(pipe) = self.pipes.get_mut(key) else { return Ok(()) };
        pipe.operations -= 1;
        if result <= 0 {
            pipe.is_dead = true;
        }
        if pipe.is_dead {
            self.bury(key);
            return Ok(());
        }
        pipe.filled += result as usize;
        if matches!(pipe.role, Role::Unknown) && pipe.filled >= FLOOR_HELLO {
            self.meet(key)?;
        }
        self.forward(key);
        self.receive(key)
    }

    /// Reads the hello: magic, role, group, phone, record length.
    fn meet(&mut self, key: usize) -> io::Result<()> {
        let Some(pipe) = self.pipes.get_mut(key) else { return Ok(()) };
        let hello: Vec<u8> = pipe.inbox.drain(..FLOOR_HELLO).collect();
        pipe.inbox.resize(RECEIVE_BYTES.max(2 * self.record), 0);
        pipe.filled -= FLOOR_HELLO;
        let field = |at: usize| {
            let bytes = hello.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u32::from_le_bytes)
        };
        if !hello.starts_with(FLOOR_MAGIC) {
            return Err(io::Error::other("a peer that is no agent of this tool"));
        }
        let (is_phone, group, phone) = (field(4) == 1, field(8), field(12));
        self.record = field(16) as usize;
        pipe.inbox.resize(RECEIVE_BYTES.max(2 * self.record), 0);
        if is_phone {
            let binary = self.binaries.get(&group).copied();
            pipe.role = Role::Phone(binary.ok_or_else(|| io::Error::other("phone before binary"))?);
            self.phones.insert(phone, key);
        } else {
            pipe.role = Role::Binary;
            self.binaries.insert(group, key);
        }
        pipe.outbox.extend_from_slice(FLOOR_OKAY);
        self.mark_dirty(key);
        Ok(())
    }

    /// Moves every whole record to where it goes.
    fn forward(&mut self, key: usize) {
        let record = self.record;
        let Some(pipe) = self.pipes.get_mut(key) else { return };
        if matches!(pipe.role, Role::Unknown) || record == 0 {
            return;
        }
        let role = pipe.role;
        let whole = pipe.filled / record * record;
        let inbox = std::mem::take(&mut pipe.inbox);
        for bytes in inbox.get(..whole).unwrap_or_default().chunks_exact(record) {
            let to = match role {
                Role::Phone(binary) => Some(binary),
                _ => phone_of(bytes).and_then(|phone| self.phones.get(&phone).copied()),
            };
            if let Some(to) = to
                && let Some(pipe) = self.pipes.get_mut(to)
            {
                pipe.outbox.extend_from_slice(bytes);
                self.mark_dirty(to);
            }
        }
        let Some(pipe) = self.pipes.get_mut(key) else { return };
        pipe.inbox = inbox;
        pipe.inbox.copy_within(whole..pipe.filled, 0);
        pipe.filled -= whole;
    }

    fn mark_dirty(&mut self, key: usize) {
        if let Some(pipe) = self.pipes.get_mut(key)
            && !std::mem::replace(&mut pipe.is_dirty, true)
        {
            self.dirty.push(key);
        }
    }

    fn send(&mut self, key: usize) -> io::Result<()> {
        let Some(pipe) = self.pipes.get_mut(key) else { return Ok(()) };
        pipe.is_dirty = false;
        if pipe.is_sending || pipe.is_dead {
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
        let fd = types::Fd(pipe.stream.as_raw_fd());
        let entry = opcode::Send::new(fd, bytes.as_ptr(), bytes.len() as u32).build();
        pipe.is_sending = true;
        pipe.operations += 1;
        self.push(entry.user_data((key as u64) << 1 | 1))
    }

    fn sent(&mut self, key: usize, result: i32) -> io::Result<()> {
        let Some(pipe) = self.pipes.get_mut(key) else { return Ok(()) };
        pipe.operations -= 1;
        pipe.is_sending = false;
        if result < 0 {
            pipe.is_dead = true;
        }
        if pipe.is_dead {
            self.bury(key);
            return Ok(());
        }
        pipe.sent += result as usize;
        self.send(key)
    }

    fn bury(&mut self, key: usize) {
        if self.pipes.get(key).is_some_and(|pipe| pipe.operations == 0) {
            self.pipes.remove(key);
        }
    }
}

fn phone_of(record: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(record.get(PHONE_DIGITS)?).ok()?;
    u32::from_str_radix(digits, 16).ok()
}
