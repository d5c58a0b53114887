//! A worker's own ring, which does all its receives and sends. (The runtime has another one, for
//! what happens rarely.)
//!
//! Completions wait in the kernel until the worker asks for them ([`Ring::turn`]), so that nothing
//! interrupts it and one turn of its loop sees everything that completed since the last one.
//! Nothing is allocated per operation: a completion carries the number of its connection. No
//! completion can be mistaken for one of an earlier connection with that number, because the
//! worker reuses a number only when every operation under it has completed.

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::task::{Context, Poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

/// Operations that are queued before the kernel must take them, where locked memory is no matter.
pub const MAX_ENTRIES: u32 = 1024;
/// The fewest that are worth a worker.
pub const MIN_ENTRIES: u32 = 64;
/// Room for completions, in multiples of that.
const COMPLETIONS_PER_ENTRY: u32 = 8;
/// Completions of one turn, about: what is ready beyond them, a kernel that hands out small
/// portions keeps for the next. Fewer than there are small receive buffers.
const COMPLETIONS_PER_TURN: usize = 256;

const PAGE_BYTES: u64 = 4096;

/// How often the kernel may ask for patience before it takes an operation: for memory, above all.
const TRIES: usize = 10_000;

/// `IORING_ENTER_GETEVENTS`: completions are to be posted now.
const GET_EVENTS: u32 = 1;
/// `IORING_RECVSEND_POLL_FIRST`: nothing is expected to be there yet, so the kernel need not look
/// before it waits.
const POLL_FIRST: u16 = 1;

/// How a connection is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// On and on, into small buffers, until it is stopped or fails: the cheapest for small messages
    /// of a connection that will not leave this worker.
    On,
    /// Once, into a small buffer.
    Small,
    /// Once, into a large buffer: the cheapest for large messages.
    Large,
}

/// What completed, for the connection `key`.
#[derive(Debug)]
pub enum Done {
    /// A receive, or one round of one that goes on.
    Received {
        /// The connection.
        key: u32,
        /// How it is read.
        reading: Reading,
        /// How many bytes, 0 at the end of the stream; negative: an errno.
        result: i32,
        /// The buffer that the kernel chose. It is the worker's until it is given back.
        buffer: Option<u16>,
        /// More completions of the same receive will come.
        goes_on: bool,
        /// There is more to receive.
        has_more: bool,
    },
    /// A receive that goes on could not be stopped: the kernel was busy with it, or it had ended.
    NotStopped {
        /// The connection.
        key: u32,
    },
    /// A send.
    Sent {
        /// The connection.
        key: u32,
        /// What it was to send from.
        buffer: Vec<u8>,
        /// How many bytes of that the kernel took; negative: an errno.
        result: i32,
    },
}

const READ_ON: u64 = 0;
const READ_SMALL: u64 = 1;
const READ_LARGE: u64 = 2;
const SEND: u64 = 3;
const STOP: u64 = 4;

/// What a completion says of its operation.
fn user_data(kind: u64, key: u32) -> u64 {
    kind << 32 | u64::from(key)
}

/// The ring, and what it sends.
pub struct Ring {
    uring: IoUring,
    /// Signalled by the kernel when there is something to ask for.
    signal: AsyncFd<OwnedFd>,
    /// By connection: what it is sending from. The kernel may read that as long as the ring exists
    /// and a little longer, so what is in flight when the ring is dropped is never freed.
    sending: ManuallyDrop<Vec<Option<Vec<u8>>>>,
    /// An operation could not be queued: the worker cannot go on without it.
    broken: Option<io::Error>,
}

impl Ring {
    /// A ring for the current thread, which no other may use, in a runtime of tokio. It queues so
    /// many operations before the kernel must take them, a power of two.
    ///
    /// # Errors
    ///
    /// As [`probe`], and where descriptors have run out.
    #[allow(unsafe_code)]
    pub fn new(entries: u32) -> io::Result<Self> {
        let (uring, signal) = make(entries)?;
        // Its edge is all that counts, so it is never read.
        // SAFETY: the descriptor is owned, and stays open and the same until it is dropped with its
        // registration.
        let signal = unsafe { AsyncFd::register_with_interest(signal, Interest::READABLE)? };
        Ok(Self { uring, signal, sending: ManuallyDrop::default(), broken: None })
    }

    /// The memory that the kernel locks for one, in bytes.
    pub(super) fn locked_bytes(entries: u32) -> u64 {
        locked_bytes(entries, entries * COMPLETIONS_PER_ENTRY)
    }

    /// Has the task woken when something completes from now on.
    ///
    /// # Errors
    ///
    /// The runtime is ending.
    pub fn wake(&self, cx: &mut Context<'_>) -> io::Result<()> {
        while let Poll::Ready(guard) = self.signal.poll_read_ready(cx) {
            guard?.clear_ready();
        }
        Ok(())
    }

    /// Whether there is anything to do for [`Ring::turn`]. What comes later wakes the task.
    pub fn has_work(&mut self) -> bool {
        !self.uring.completion().is_empty()
            || self.has_queued()
            || self.broken.is_some()
            || self.is_pending()
    }

    fn has_queued(&mut self) -> bool {
        let queue = self.uring.submission();
        !queue.is_empty() || queue.cq_overflow()
    }

    /// Whether completions wait in the kernel to be asked for. The flag that says so may be stale:
    /// who raises it does so after what it is about can be seen, and may be overtaken by us. The
    /// kernel itself knows.
    #[allow(unsafe_code)]
    fn is_pending(&mut self) -> bool {
        self.uring.submission().taskrun() && {
            // SAFETY: the ring outlives the call.
            let ring = unsafe { BorrowedFd::borrow_raw(self.uring.as_raw_fd()) };
            let mut ring = [PollFd::new(&ring, PollFlags::IN)];
            // If it could not be asked, better once too often than never.
            !matches!(poll(&mut ring, Some(&Timespec::default())), Ok(0))
        }
    }

    /// Submits what was queued, and appends to `into` what has completed.
    ///
    /// # Errors
    ///
    /// None that the ring could recover from.
    pub fn turn(&mut self, into: &mut Vec<Done>) -> io::Result<()> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        loop {
            let before = into.len();
            self.enter()?;
            for entry in self.uring.completion() {
                into.extend(read(&entry, &mut self.sending));
            }
            // Kernels from 6.13 on post a few at a time.
            let is_flagged = self.uring.submission().taskrun();
            let goes_on = is_flagged && (into.len() > before || self.is_pending());
            if !goes_on || into.len() >= COMPLETIONS_PER_TURN {
                return Ok(());
            }
        }
    }

    #[allow(unsafe_code)]
    fn enter(&mut self) -> io::Result<()> {
        let queued = self.uring.submission().len() as u32;
        // SAFETY: what was queued points to nothing but buffers that stay where they are until it
        // has completed (see `send` and `BufferGroup`); there is no argument.
        let entered = unsafe { self.uring.submitter().enter::<()>(queued, 0, GET_EVENTS, None) };
        match entered {
            // Whatever it left queued is submitted in the next turn.
            Err(error) if !is_passing(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Queues an operation. Where the kernel takes none for good, the next turn says so.
    #[allow(unsafe_code)]
    fn push(&mut self, entry: &squeue::Entry) {
        for _ in 0..TRIES {
            // SAFETY: as for `enter`.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return;
            }
            match self.uring.submit() {
                Err(error) if !is_passing(&error) => {
                    self.broken = Some(error);
                    return;
                }
                _ => {}
            }
        }
        self.broken = Some(io::ErrorKind::OutOfMemory.into());
    }

    /// Receives from a socket into buffers that the kernel chooses from `group`, of `max_bytes`
    /// each, when there is something to receive. Unless the connection `has_more` already, the
    /// kernel need not look before it waits. The connection must not be receiving yet.
    pub fn receive(
        &mut self,
        fd: RawFd,
        reading: Reading,
        (group, max_bytes): (u16, u32),
        key: u32,
        has_more: bool,
    ) {
        let fd = types::Fd(fd);
        let once = || {
            let entry = opcode::Recv::new(fd, std::ptr::null_mut(), max_bytes).buf_group(group);
            let entry = entry.build().flags(squeue::Flags::BUFFER_SELECT);
            if has_more { entry } else { poll_first(entry) }
        };
        let entry = match reading {
            Reading::On => {
                opcode::RecvMulti::new(fd, group).build().user_data(user_data(READ_ON, key))
            }
            Reading::Small => once().user_data(user_data(READ_SMALL, key)),
            Reading::Large => once().user_data(user_data(READ_LARGE, key)),
        };
        self.push(&entry);
    }

    /// Ends a receive that goes on: its last completion will come soon, perhaps behind others, or
    /// [`Done::NotStopped`].
    pub fn stop_receiving(&mut self, key: u32) {
        let entry = opcode::AsyncCancel::new(user_data(READ_ON, key)).build();
        let entry = entry.flags(squeue::Flags::SKIP_SUCCESS);
        self.push(&entry.user_data(user_data(STOP, key)));
    }

    /// Sends `buffer[from..to]`, or a first part of it.
    ///
    /// # Panics
    ///
    /// If the connection is sending already.
    pub fn send(&mut self, fd: RawFd, buffer: Vec<u8>, from: usize, to: usize, key: u32) {
        let bytes = buffer.get(from..to).unwrap_or_default();
        let entry = opcode::Send::new(types::Fd(fd), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_NOSIGNAL)
            .build()
            .user_data(user_data(SEND, key));
        let index = key as usize;
        if self.sending.len() <= index {
            self.sending.resize_with(index + 1, || None);
        }
        if let Some(slot) = self.sending.get_mut(index) {
            // Or the kernel would read memory that is not ours any more.
            assert!(slot.is_none(), "two sends at once");
            *slot = Some(buffer);
        }
        self.push(&entry);
    }

    /// Lets the kernel choose from `count` receive buffers, a power of two.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    #[allow(unsafe_code)]
    pub fn register_buffers(
        &self,
        entries: &'static [super::buffers::Entries],
        count: u16,
        group: u16,
    ) -> io::Result<()> {
        let address = entries.as_ptr() as u64;
        assert!(size_of_val(entries) >= usize::from(count) * size_of::<types::BufRingEntry>());
        // SAFETY: the memory lives as long as the process and has room for so many entries.
        unsafe { self.uring.submitter().register_buf_ring(address, count, group) }
    }
}

/// What a completion says; a send gives back its buffer.
fn read(entry: &cqueue::Entry, sending: &mut [Option<Vec<u8>>]) -> Option<Done> {
    let (kind, key) = (entry.user_data() >> 32, entry.user_data() as u32);
    let (result, flags) = (entry.result(), entry.flags());
    let reading = match kind {
        READ_ON => Reading::On,
        READ_SMALL => Reading::Small,
        READ_LARGE => Reading::Large,
        SEND => {
            let buffer = sending.get_mut(key as usize)?.take()?;
            return Some(Done::Sent { key, buffer, result });
        }
        _ => return Some(Done::NotStopped { key }),
    };
    Some(Done::Received {
        key,
        reading,
        result,
        buffer: cqueue::buffer_select(flags),
        goes_on: cqueue::more(flags),
        has_more: cqueue::sock_nonempty(flags),
    })
}

/// Whether the kernel only asks for patience: a signal came, or it must get rid of completions or
/// find memory first.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

/// Sets [`POLL_FIRST`], for which the builder of `Recv` has no method.
#[allow(unsafe_code)]
fn poll_first(mut entry: squeue::Entry) -> squeue::Entry {
    // SAFETY: an entry is the kernel's `struct io_uring_sqe` and nothing else (`repr(C)`, 64
    // bytes), in which `ioprio` is the u16 at offset 2 (include/uapi/linux/io_uring.h).
    unsafe { (&raw mut entry).cast::<u16>().wrapping_add(1).write(POLL_FIRST) };
    entry
}

/// A wait for a listener, on the runtime's ring.
pub type Acceptable = InFlightOneshot<(), Nothing>;

/// What such a wait comes to.
pub struct Nothing;

impl OneshotOutputTransform for Nothing {
    type StoredData = ();
    type Output = ();

    fn transform_oneshot_output(self, _: (), _: cqueue::Entry) {}
}

/// Waits until a listener has something to accept.
pub fn acceptable(listener: &impl AsRawFd) -> Acceptable {
    let fd = types::Fd(listener.as_raw_fd());
    let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
    UnsubmittedOneshot::new((), Nothing, entry).submit()
}

/// What the runtime's ring is made with.
pub fn runtime_builder() -> io_uring::Builder {
    let mut builder = tokio_uring::uring_builder();
    builder.setup_coop_taskrun().setup_single_issuer();
    builder
}

/// A ring as a worker needs it, and what the kernel signals its completions with.
fn make(entries: u32) -> io::Result<(IoUring, OwnedFd)> {
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_cqsize(entries * COMPLETIONS_PER_ENTRY)
        .build(entries)?;
    let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    ring.submitter().register_eventfd(signal.as_raw_fd())?;
    // A filter that lets a ring be made may still forbid io_uring_enter, which this calls.
    ring.submit()?;
    Ok((ring, signal))
}

/// The memory that the kernel locks for a ring with so many entries and so much room for
/// completions, in bytes: a region with a header, completions of 16 bytes and an index of 4 for
/// each entry, and a region of entries of 64 bytes, in whole pages (io_uring/io_uring.c).
pub(super) fn locked_bytes(entries: u32, completions: u32) -> u64 {
    const HEADER_BYTES: u64 = 256;
    let (entries, completions) = (u64::from(entries), u64::from(completions));
    let in_pages = |bytes: u64| bytes.next_multiple_of(PAGE_BYTES);
    in_pages(HEADER_BYTES + completions * 16 + entries * 4) + in_pages(entries * 64)
}

/// Tries out whether this process may make rings and use them.
///
/// # Errors
///
/// What the kernel says: `ENOSYS` where io_uring is not built in or a seccomp filter hides it,
/// `EPERM` where the `kernel.io_uring_disabled` switch or a seccomp filter forbids it, `EINVAL`
/// where it is too old for what the relay asks of it, `ENOMEM` where the limit on locked memory is
/// too low.
pub fn probe() -> io::Result<()> {
    make(8).map(drop)
}
