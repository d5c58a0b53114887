//! The ring of the floor: receives that are armed once and go on by themselves, into buffers of a
//! ring that is shared with the kernel, and sends, all on registered descriptors. Completions are
//! only processed when the loop asks for them, and one call submits, processes and waits.
//!
//! A send that the socket takes at once, as nearly all do, completes without a word: a completion of
//! its own would end the very wait that submits it, and each message would cost two calls.

use io_uring::types::{BufRingEntry, Fd, Fixed};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::net::SendFlags;
use std::alloc::Layout;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU16, Ordering};

/// Receive buffers; a power of two. The kernel fills them in turn, so many would be cold in the cache.
const BUFFERS: u16 = 256;
const BUFFER_BYTES: usize = 32 * 1024;
/// Connections, at most.
const FILES: u32 = 20_000;
const GROUP: u16 = 0;
const ACCEPT: u64 = u64::MAX;
const PAGE: usize = 4096;
/// Goes on after a part was sent (`MSG_WAITALL`; rustix has it for receives only).
const WAITALL: u32 = rustix::net::RecvFlags::WAITALL.bits();

/// What completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    Accepted(RawFd),
    /// So many bytes are in this buffer.
    Received {
        key: usize,
        buffer: u16,
        bytes: usize,
    },
    /// No receive is armed any more.
    ReceiveEnded {
        key: usize,
        is_dead: bool,
    },
    /// A send that waited has sent so many bytes, or an errno as a negative number; or one that
    /// does not wait has sent only so many.
    Sent {
        key: usize,
        result: i32,
    },
}

/// The ring and its buffers. They live as long as the process.
pub(crate) struct PipeRing {
    ring: IoUring,
    entries: *mut BufRingEntry,
    memory: *mut u8,
    tail: u16,
}

impl PipeRing {
    /// # Errors
    ///
    /// Before Linux 6.1, or where io_uring is forbidden.
    #[allow(unsafe_code)]
    pub(crate) fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(32_768)
            .build(4096)?;
        ring.submitter().register_files_sparse(FILES)?;
        let entries = leaked(usize::from(BUFFERS) * size_of::<BufRingEntry>())?;
        let memory = leaked(usize::from(BUFFERS) * BUFFER_BYTES)?;
        // SAFETY: the memory is page-aligned, zeroed, large enough for so many entries and never
        // freed.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(entries as u64, BUFFERS, GROUP, 0)?
        };
        let mut ring = Self { ring, entries: entries.cast(), memory, tail: 0 };
        (0..BUFFERS).for_each(|buffer| ring.give_back(buffer));
        Ok(ring)
    }

    /// The bytes that were received into a buffer, until it is given back.
    #[allow(unsafe_code)]
    pub(crate) fn received(&self, buffer: u16, bytes: usize) -> &[u8] {
        let start = self.memory.wrapping_add(usize::from(buffer % BUFFERS) * BUFFER_BYTES);
        // SAFETY: the place and the length are inside the allocation, which is never freed. The
        // kernel has passed the buffer to us and does not write to it before `give_back`, which
        // needs `&mut self`.
        unsafe { std::slice::from_raw_parts(start, bytes.min(BUFFER_BYTES)) }
    }

    /// Hands a buffer to the kernel.
    #[allow(unsafe_code)]
    pub(crate) fn give_back(&mut self, buffer: u16) {
        let start = self.memory.wrapping_add(usize::from(buffer % BUFFERS) * BUFFER_BYTES);
        let entry = self.entries.wrapping_add(usize::from(self.tail % BUFFERS));
        // SAFETY: the entry is inside the ring, and beyond its tail the kernel does not read.
        let entry = unsafe { &mut *entry };
        entry.set_addr(start as u64);
        entry.set_len(BUFFER_BYTES as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `entries` is the base of a registered ring.
        let tail = unsafe { BufRingEntry::tail(self.entries) };
        // SAFETY: the tail is aligned, lives for ever, and only this thread writes it.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// Submits everything, waits until something is done, and appends it.
    pub(crate) fn wait(&mut self, done: &mut Vec<Done>) -> io::Result<()> {
        self.ring.submit_and_wait(1)?;
        // The kernel stops at an entry that it cannot take.
        while !self.ring.submission().is_empty() {
            self.ring.submit()?;
        }
        done.extend(self.ring.completion().flat_map(|entry| read(&entry)).flatten());
        Ok(())
    }

    /// Accepts one connection.
    pub(crate) fn accept(&mut self, listener: RawFd) -> io::Result<()> {
        let null = std::ptr::null_mut();
        self.push(&opcode::Accept::new(Fd(listener), null, null.cast()).build().user_data(ACCEPT))
    }

    /// Registers a connection under its key.
    pub(crate) fn register(&self, key: usize, fd: RawFd) -> io::Result<()> {
        self.ring.submitter().register_files_update(key as u32, &[fd]).map(drop)
    }

    /// Receives until it is said to have ended.
    pub(crate) fn receive(&mut self, key: usize) -> io::Result<()> {
        let entry = opcode::RecvMulti::new(Fixed(key as u32), GROUP).build();
        self.push(&entry.user_data((key as u64) << 1))
    }

    /// Sends what the socket takes at once of some bytes, in the next [`PipeRing::wait`]; only if that
    /// is not all of them is it said how many, when that wait is over.
    pub(crate) fn send_now(&mut self, key: usize, bytes: &[u8]) -> io::Result<()> {
        let flags = SendFlags::DONTWAIT.bits() | WAITALL;
        self.push(&send(key, bytes, flags).flags(squeue::Flags::SKIP_SUCCESS))
    }

    /// Sends all of some bytes, which must stay where they are until that is done.
    pub(crate) fn send(&mut self, key: usize, bytes: &[u8]) -> io::Result<()> {
        self.push(&send(key, bytes, WAITALL))
    }

    #[allow(unsafe_code)]
    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: an entry points to nothing, or to bytes that the floor keeps in place until their
        // send is done.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }
}

fn send(key: usize, bytes: &[u8], flags: u32) -> squeue::Entry {
    let send = opcode::Send::new(Fixed(key as u32), bytes.as_ptr(), bytes.len() as u32);
    send.flags(flags as i32).build().user_data((key as u64) << 1 | 1)
}

/// What a completion says; a receive that failed with bytes in hand cannot be.
fn read(entry: &cqueue::Entry) -> [Option<Done>; 2] {
    let (what, result, flags) = (entry.user_data(), entry.result(), entry.flags());
    let key = (what >> 1) as usize;
    if what == ACCEPT {
        return [Some(Done::Accepted(result)), None];
    }
    if what & 1 == 1 {
        return [Some(Done::Sent { key, result }), None];
    }
    let received = cqueue::buffer_select(flags).map(|buffer| Done::Received {
        key,
        buffer,
        bytes: usize::try_from(result).unwrap_or(0),
    });
    // With bytes, or for want of a buffer, it is only to be armed again.
    let is_dead = result <= 0 && result != -rustix::io::Errno::NOBUFS.raw_os_error();
    let ended = (!cqueue::more(flags)).then_some(Done::ReceiveEnded { key, is_dead });
    [received, ended]
}

/// Zeroed pages for the life of the process.
#[allow(unsafe_code)]
fn leaked(bytes: usize) -> io::Result<*mut u8> {
    let layout = Layout::from_size_align(bytes, PAGE).map_err(io::Error::other)?;
    // SAFETY: the size is not zero.
    let memory = unsafe { std::alloc::alloc_zeroed(layout) };
    match memory.is_null() {
        true => Err(io::ErrorKind::OutOfMemory.into()),
        false => Ok(memory),
    }
}
