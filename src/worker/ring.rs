//! A worker's own ring: everything that the worker waits for completes on it.
//!
//! One system call ([`Ring::turn`]) submits what the last turn of the worker's loop has queued, has
//! the kernel run what it had put off (deferred task work), and waits for the next completion or
//! deadline. Completions stay in the kernel until the worker asks for them, so that nothing
//! interrupts it and one turn of its loop sees everything that completed since the last one.
//!
//! Nothing is allocated per operation: a completion carries the number of its connection. No
//! completion can be mistaken for one of an earlier connection with that number, because the
//! worker reuses a number only when every operation under it has completed.
//!
//! # Sends that need no wake of their own
//!
//! A send is done when it has been submitted, as a rule, and its completion would end the wait that
//! follows in the same system call. So most sends post a completion only if they were not taken
//! whole: when the call returns and none is there, they were ([`Ring::send`]).

use crate::config::RingFeatures;
use io_uring::{
    CompletionQueue, EnterFlags, IoUring, SubmissionQueue, Submitter, cqueue, opcode, squeue, types,
};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::Instant;

/// Operations that are queued before the kernel must take them, where locked memory is no matter.
pub const MAX_ENTRIES: u32 = 1024;
/// The fewest that are worth a worker.
pub const MIN_ENTRIES: u32 = 64;
/// Room for completions, in multiples of that.
const COMPLETIONS_PER_ENTRY: u32 = 8;
/// The most completions of one turn: others wait for the next. Fewer than there are
/// small receive buffers.
pub(super) const COMPLETIONS_PER_TURN: usize = 256;

const PAGE_BYTES: u64 = 4096;

/// How often an operation is submitted again after a transient error, most often a lack of memory.
const MAX_SUBMIT_ATTEMPTS: usize = 10_000;

/// `IORING_RECVSEND_POLL_FIRST`: nothing is expected to be there yet, so the kernel need not look
/// before it waits.
const POLL_FIRST: u16 = 1;

/// Completions that the kernel posts at a time (from 6.13 on, 20): where so many have come, more are
/// ready.
const COMPLETIONS_AT_A_TIME: usize = 16;

/// How a connection is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveMode {
    /// Multishot, into small buffers, until it is cancelled or fails: the cheapest for small messages
    /// of a connection that stays with this worker.
    Multishot,
    /// Once, into a small buffer.
    OnceSmall,
    /// Once, into a large buffer: the cheapest for large messages.
    OnceLarge,
}

impl ReceiveMode {
    fn kind(self) -> u64 {
        match self {
            Self::Multishot => RECEIVE_MULTISHOT,
            Self::OnceSmall => RECEIVE_ONCE_SMALL,
            Self::OnceLarge => RECEIVE_ONCE_LARGE,
        }
    }
}

/// What completed, for the connection `key`.
#[derive(Debug)]
pub enum Completion {
    /// A receive, or one completion of a multishot receive.
    Received {
        /// The connection.
        key: u32,
        /// How it is read.
        mode: ReceiveMode,
        /// How many bytes, 0 at the end of the stream; negative: an errno.
        result: i32,
        /// The buffer that the kernel chose. It is the worker's until it is given back.
        buffer: Option<u16>,
        /// More completions of the same receive will come (`IORING_CQE_F_MORE`).
        more: bool,
        /// There is more to receive (`IORING_CQE_F_SOCK_NONEMPTY`).
        sock_nonempty: bool,
    },
    /// A receive could not be cancelled: the kernel was running it, or it had ended.
    ReceiveNotCancelled {
        /// The connection.
        key: u32,
    },
    /// As [`Completion::ReceiveNotCancelled`], of a send.
    SendNotCancelled {
        /// The connection.
        key: u32,
    },
    /// A send.
    Sent {
        /// The connection.
        key: u32,
        /// What it was to send.
        outgoing: Outgoing,
        /// How many bytes of that the kernel took; negative: an errno.
        result: i32,
    },
    /// A connection was accepted, or accepting has failed.
    Accepted {
        /// The listener's number.
        listener: u32,
        /// The connection.
        socket: io::Result<OwnedFd>,
    },
    /// The runtime of the worker's thread has something to do.
    RuntimeReady,
}

/// Bytes on their way to the kernel: `buffer[from..to]`.
#[derive(Debug)]
pub struct Outgoing {
    /// Owns the bytes.
    pub buffer: Vec<u8>,
    /// The first byte.
    pub from: usize,
    /// The end.
    pub to: usize,
}

/// How a send is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// The kernel waits until it can take some.
    Patient,
    /// The kernel is expected to take it whole at once, and it may be heard of in the next turn that
    /// something else brings about. If it is not taken whole, it ends at once with what was.
    Quick,
    /// It ends at once with what the kernel takes.
    AtOnce,
}

/// How long [`Ring::turn`] waits where nothing has completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// Not beyond this.
    Until(Instant),
    /// Until something completes.
    Indefinitely,
}

const RECEIVE_MULTISHOT: u64 = 0;
const RECEIVE_ONCE_SMALL: u64 = 1;
const RECEIVE_ONCE_LARGE: u64 = 2;
const SEND: u64 = 3;
const CANCEL_RECEIVE: u64 = 4;
const ACCEPT: u64 = 5;
const CANCEL_ACCEPTS: u64 = 6;
const RUNTIME: u64 = 7;
const DEADLINE: u64 = 8;
const UPDATE_DEADLINE: u64 = 9;
const CANCEL_SEND: u64 = 10;

/// What a completion says of its operation.
fn user_data(kind: u64, key: u32) -> u64 {
    kind << 32 | u64::from(key)
}

/// The ring, and what it sends.
pub struct Ring {
    submitter: Submitter<'static>,
    queue: SubmissionQueue<'static>,
    completions: CompletionQueue<'static>,
    features: RingFeatures,
    /// How each system call waits.
    flags: EnterFlags,
    /// Connections whose quick sends were queued, and were taken whole unless a completion says
    /// otherwise.
    quick_sends: Vec<u32>,
    /// When the kernel is to end a wait, if it has been told.
    deadline: Option<Instant>,
    /// How long that was from then on: the kernel reads it when it takes the operation.
    time: ManuallyDrop<Box<types::Timespec>>,
    /// By connection: what it is sending. The kernel may read that as long as the ring exists, so
    /// what is in flight when the worker ends is never freed.
    sending: ManuallyDrop<Vec<Option<Outgoing>>>,
    /// An operation could not be submitted, and the worker cannot work without it.
    broken: Option<io::Error>,
    counts: Counts,
}

/// System calls of a ring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them.
    pub enters: u64,
    /// Those that would wait, if nothing had completed yet.
    pub waits: u64,
}

impl Ring {
    /// A ring for the current thread, which no other may use, of what [`make`] has made. It exists
    /// as long as the process.
    pub fn new(uring: IoUring, features: RingFeatures) -> Self {
        let uring = Box::leak(Box::new(uring));
        let kernel = uring.params();
        let mut features = RingFeatures {
            no_iowait: features.no_iowait && kernel.is_feature_no_iowait(),
            ..features
        };
        let (mut submitter, queue, completions) = uring.split();
        features.registered_ring = features.registered_ring && submitter.register_ring_fd().is_ok();
        let mut flags = EnterFlags::GETEVENTS;
        flags.set(EnterFlags::NO_IOWAIT, features.no_iowait);
        Self {
            submitter,
            queue,
            completions,
            features,
            flags,
            quick_sends: Vec::new(),
            deadline: None,
            time: ManuallyDrop::default(),
            sending: ManuallyDrop::default(),
            broken: None,
            counts: Counts::default(),
        }
    }

    /// The memory that the kernel locks for one, in bytes.
    pub(super) fn locked_bytes(entries: u32) -> u64 {
        locked_bytes(entries, entries * COMPLETIONS_PER_ENTRY)
    }

    /// What it makes use of.
    #[must_use]
    pub fn features(&self) -> RingFeatures {
        self.features
    }

    /// Whether the end of some send is told by nothing but the end of the next system call.
    #[must_use]
    pub fn has_quick_sends(&self) -> bool {
        !self.quick_sends.is_empty()
    }

    /// System calls since this was asked last.
    #[must_use]
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Submits what was queued, waits where nothing has completed, and appends to `into` what has.
    ///
    /// # Errors
    ///
    /// None that the ring could recover from.
    pub fn turn(&mut self, into: &mut Vec<Completion>, wait: Wait) -> io::Result<()> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        self.completions.sync();
        let is_idle = self.completions.is_empty() && !self.queue.cq_overflow();
        self.enter(if is_idle { wait } else { Wait::No })?;
        loop {
            let before = into.len();
            self.take_completions(into);
            let has_more = self.queue.taskrun() && into.len() - before >= COMPLETIONS_AT_A_TIME;
            if !has_more || into.len() >= COMPLETIONS_PER_TURN {
                self.settle_quick_sends(into);
                return Ok(());
            }
            self.enter(Wait::No)?;
        }
    }

    fn take_completions(&mut self, into: &mut Vec<Completion>) {
        self.completions.sync();
        for entry in self.completions.by_ref() {
            match entry.user_data() >> 32 {
                DEADLINE => self.deadline = None,
                _ => into.extend(decode(&entry, &mut self.sending)),
            }
        }
        self.completions.sync();
    }

    /// What was submitted and has not completed was taken whole.
    fn settle_quick_sends(&mut self, into: &mut Vec<Completion>) {
        // Otherwise some may not have been submitted, or a completion be on its way.
        if !self.queue.is_empty() || self.queue.cq_overflow() || !self.completions.is_empty() {
            // Who was told of one may be sending something else before this is asked again.
            let sending = &self.sending;
            return self.quick_sends.retain(|key| {
                sending.get(*key as usize).is_some_and(|outgoing| outgoing.is_some())
            });
        }
        let others = into.len();
        for key in self.quick_sends.drain(..) {
            // It is gone where a completion has told of it.
            if let Some(outgoing) = self.sending.get_mut(key as usize).and_then(Option::take) {
                let result = (outgoing.to - outgoing.from) as i32;
                into.push(Completion::Sent { key, outgoing, result });
            }
        }
        // They were done before the others: what these bring about finds nobody sending.
        let settled = into.len() - others;
        into.rotate_right(settled);
    }

    #[allow(unsafe_code)]
    fn enter(&mut self, wait: Wait) -> io::Result<()> {
        self.queue_timer(wait);
        self.queue.sync();
        let queued = self.queue.len() as u32;
        self.counts.enters += 1;
        let wanted = match wait {
            Wait::No => 0,
            _ => {
                self.counts.waits += 1;
                1
            }
        };
        // SAFETY: what was queued points to nothing but buffers that stay where they are until it
        // has completed (see `send` and `BufferGroup`), and to the time, which stays as well: it may
        // be a later turn in which the kernel takes it.
        let entered =
            unsafe { self.submitter.enter::<()>(queued, wanted, self.flags.bits(), None) };
        // To see how much it has taken.
        self.queue.sync();
        match entered {
            // Whatever it left queued is submitted in the next turn.
            Err(error) if !is_transient(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Has the kernel end the wait in time. It is told only what is new to it: to set a timer for
    /// each wait, and to take it back, would cost more than a message does.
    fn queue_timer(&mut self, wait: Wait) {
        let Wait::Until(at) = wait else { return };
        if self.deadline.is_some_and(|told| told <= at) {
            return;
        }
        **self.time = at.saturating_duration_since(Instant::now()).into();
        let time: *const types::Timespec = &raw const **self.time;
        let entry = match self.deadline {
            // It may have passed meanwhile, and its completion be on the way.
            Some(_) => opcode::TimeoutUpdate::new(user_data(DEADLINE, 0), time)
                .build()
                .flags(squeue::Flags::SKIP_SUCCESS)
                .user_data(user_data(UPDATE_DEADLINE, 0)),
            None => opcode::Timeout::new(time).build().user_data(user_data(DEADLINE, 0)),
        };
        self.push(&entry);
        self.deadline = Some(at);
    }

    /// Queues an operation. Where the kernel takes none for good, the next turn says so.
    #[allow(unsafe_code)]
    fn push(&mut self, entry: &squeue::Entry) {
        for _ in 0..MAX_SUBMIT_ATTEMPTS {
            // SAFETY: as for `enter`.
            if unsafe { self.queue.push(entry) }.is_ok() {
                return;
            }
            self.queue.sync();
            self.counts.enters += 1;
            match self.submitter.submit() {
                Err(error) if !is_transient(&error) => {
                    self.broken = Some(error);
                    return;
                }
                _ => self.queue.sync(),
            }
        }
        self.broken = Some(io::ErrorKind::OutOfMemory.into());
    }

    /// Receives from a socket into buffers that the kernel chooses from `group`, of `max_bytes`
    /// each, when there is something to receive. Unless `sock_nonempty`, the
    /// kernel need not look before it waits. The connection must not be receiving yet.
    pub fn receive(
        &mut self,
        fd: RawFd,
        mode: ReceiveMode,
        (group, max_bytes): (u16, u32),
        key: u32,
        sock_nonempty: bool,
    ) {
        let fd = types::Fd(fd);
        let once = || {
            let look = if sock_nonempty { 0 } else { POLL_FIRST };
            opcode::Recv::new(fd, std::ptr::null_mut(), max_bytes)
                .buf_group(group)
                .ioprio(look)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT)
        };
        let entry = match mode {
            ReceiveMode::Multishot => opcode::RecvMulti::new(fd, group).build(),
            ReceiveMode::OnceSmall | ReceiveMode::OnceLarge => once(),
        };
        self.push(&entry.user_data(user_data(mode.kind(), key)));
    }

    /// Cancels a receive: its last completion will come soon, perhaps behind others, or
    /// [`Completion::ReceiveNotCancelled`].
    pub fn cancel_receive(&mut self, key: u32, mode: ReceiveMode) {
        self.cancel(user_data(mode.kind(), key), user_data(CANCEL_RECEIVE, key));
    }

    /// Cancels a send: it completes soon, or there is [`Completion::SendNotCancelled`].
    pub fn cancel_send(&mut self, key: u32) {
        self.cancel(user_data(SEND, key), user_data(CANCEL_SEND, key));
    }

    fn cancel(&mut self, what: u64, told_as: u64) {
        let entry = opcode::AsyncCancel::new(what).build().flags(squeue::Flags::SKIP_SUCCESS);
        self.push(&entry.user_data(told_as));
    }

    /// Sends `outgoing`, or a first part of it.
    ///
    /// # Panics
    ///
    /// If the connection is sending already.
    pub fn send(&mut self, fd: RawFd, outgoing: Outgoing, key: u32, manner: Manner) {
        let quick = manner == Manner::Quick && self.features.quick_sends;
        let bytes = outgoing.buffer.get(outgoing.from..outgoing.to).unwrap_or_default();
        let (flags, posts) = match manner {
            // With MSG_WAITALL, less than all is a failure, which completes in any case.
            Manner::Quick if quick => {
                (libc::MSG_DONTWAIT | libc::MSG_WAITALL, squeue::Flags::SKIP_SUCCESS)
            }
            Manner::Quick | Manner::Patient => (0, squeue::Flags::empty()),
            Manner::AtOnce => (libc::MSG_DONTWAIT, squeue::Flags::empty()),
        };
        let entry = opcode::Send::new(types::Fd(fd), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_NOSIGNAL | flags)
            .build()
            .flags(posts)
            .user_data(user_data(SEND, key));
        let index = key as usize;
        if self.sending.len() <= index {
            self.sending.resize_with(index + 1, || None);
        }
        if let Some(slot) = self.sending.get_mut(index) {
            // Or the kernel would read memory that is not ours any more.
            assert!(slot.is_none(), "two sends at once");
            *slot = Some(outgoing);
        }
        self.push(&entry);
        if quick {
            self.quick_sends.push(key);
        }
    }

    /// Accepts one connection of a listener, unless it fails or is stopped. The kernel takes in no
    /// more than it was asked for: what is not accepted yet waits where it costs no descriptor.
    pub fn accept(&mut self, fd: RawFd, listener: u32) {
        let nobody = std::ptr::null_mut();
        let entry = opcode::Accept::new(types::Fd(fd), nobody, std::ptr::null_mut());
        let entry = entry.flags(libc::SOCK_CLOEXEC).build();
        self.push(&entry.user_data(user_data(ACCEPT, listener)));
    }

    /// Cancels all accepts of a listener: their completions will come soon, perhaps behind others.
    pub fn cancel_accepts(&mut self, listener: u32) {
        let all = types::CancelBuilder::user_data(user_data(ACCEPT, listener)).all();
        let entry = opcode::AsyncCancel2::new(all).build();
        self.push(&entry.user_data(user_data(CANCEL_ACCEPTS, 0)));
    }

    /// Says once when the runtime that waits on `descriptor` has something to do.
    pub fn watch_runtime(&mut self, descriptor: RawFd) {
        let entry = opcode::PollAdd::new(types::Fd(descriptor), libc::POLLIN as u32).build();
        self.push(&entry.user_data(user_data(RUNTIME, 0)));
    }
}

/// Lets the kernel choose from `count` receive buffers, a power of two.
///
/// # Errors
///
/// What the kernel says.
#[allow(unsafe_code)]
pub(super) fn register_buffers(
    uring: &IoUring,
    entries: &'static [super::buffers::Entries],
    count: u16,
    group: u16,
) -> io::Result<()> {
    let address = entries.as_ptr() as u64;
    assert!(size_of_val(entries) >= usize::from(count) * size_of::<types::BufRingEntry>());
    // SAFETY: the memory lives as long as the process and has room for so many entries.
    unsafe { uring.submitter().register_buf_ring_with_flags(address, count, group, 0) }
}

/// What a completion says; a send gives back its buffer.
fn decode(entry: &cqueue::Entry, sending: &mut [Option<Outgoing>]) -> Option<Completion> {
    let (kind, key) = (entry.user_data() >> 32, entry.user_data() as u32);
    let (result, flags) = (entry.result(), entry.flags());
    let mode = match kind {
        RECEIVE_MULTISHOT => ReceiveMode::Multishot,
        RECEIVE_ONCE_SMALL => ReceiveMode::OnceSmall,
        RECEIVE_ONCE_LARGE => ReceiveMode::OnceLarge,
        SEND => {
            let outgoing = sending.get_mut(key as usize)?.take()?;
            return Some(Completion::Sent { key, outgoing, result });
        }
        ACCEPT => {
            return Some(Completion::Accepted { listener: key, socket: accepted(result) });
        }
        RUNTIME => return Some(Completion::RuntimeReady),
        CANCEL_RECEIVE => return Some(Completion::ReceiveNotCancelled { key }),
        CANCEL_SEND => return Some(Completion::SendNotCancelled { key }),
        _ => return None,
    };
    Some(Completion::Received {
        key,
        mode,
        result,
        buffer: cqueue::buffer_select(flags),
        more: cqueue::more(flags),
        sock_nonempty: cqueue::sock_nonempty(flags),
    })
}

/// Whether to try again: the wait timed out, a signal interrupted it, or the kernel has to deliver
/// completions or find memory first.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN | libc::ETIME))
}

#[allow(unsafe_code)]
fn accepted(result: i32) -> io::Result<OwnedFd> {
    match result {
        // SAFETY: the kernel has just opened this descriptor for us, and tells nobody else.
        0.. => Ok(unsafe { OwnedFd::from_raw_fd(result) }),
        _ => Err(io::Error::from_raw_os_error(-result)),
    }
}

/// A ring as a worker needs it, for the current thread alone. It queues so many operations before
/// the kernel must take them, a power of two.
///
/// # Errors
///
/// As [`probe`], and where descriptors have run out.
pub fn make(entries: u32) -> io::Result<IoUring> {
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_cqsize(entries * COMPLETIONS_PER_ENTRY)
        .build(entries)?;
    // A filter that lets a ring be made may still forbid io_uring_enter, which this calls.
    ring.submit()?;
    Ok(ring)
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

/// What the kernel's io_uring can do, in lines.
///
/// # Errors
///
/// As [`probe`].
pub fn describe() -> io::Result<String> {
    let ring = make(8)?;
    let mut supported = io_uring::Probe::new();
    ring.submitter().register_probe(&mut supported)?;
    let operations = (0..=u8::MAX).filter(|operation| supported.is_supported(*operation)).count();
    let parameters = ring.params();
    let features = [
        ("single_mmap", parameters.is_feature_single_mmap()),
        ("nodrop", parameters.is_feature_nodrop()),
        ("submit_stable", parameters.is_feature_submit_stable()),
        ("fast_poll", parameters.is_feature_fast_poll()),
        ("ext_arg", parameters.is_feature_ext_arg()),
        ("native_workers", parameters.is_feature_native_workers()),
        ("cqe_skip", parameters.is_feature_skip_cqe_on_success()),
        ("linked_file", parameters.is_feature_linked_file()),
        ("recvsend_bundle", parameters.is_feature_recvsend_bundle()),
        ("min_timeout", parameters.is_feature_min_timeout()),
        ("no_iowait", parameters.is_feature_no_iowait()),
    ];
    let there = features.iter().filter(|(_, is_there)| *is_there).map(|(name, _)| *name);
    let missing = features.iter().filter(|(_, is_there)| !is_there).map(|(name, _)| *name);
    let list = |names: Vec<&str>| names.join(" ");
    Ok(format!(
        "operations: {operations}\nfeatures: {}\nwithout: {}\n",
        list(there.collect()),
        list(missing.collect())
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    const NOBODY: u64 = 99;

    fn ring(entries: u32) -> Ring {
        Ring::new(make(entries).unwrap(), RingFeatures::ALL)
    }

    fn outgoing(bytes: usize) -> Outgoing {
        Outgoing { buffer: vec![7; bytes], from: 0, to: bytes }
    }

    fn turn(ring: &mut Ring, wait: Wait) -> Vec<(u32, i32)> {
        let mut done = Vec::new();
        ring.turn(&mut done, wait).unwrap();
        let sent = |done| match done {
            Completion::Sent { key, result, .. } => (key, result),
            other => panic!("{other:?}"),
        };
        done.into_iter().map(sent).collect()
    }

    /// A socket whose peer reads nothing, and that takes no more.
    fn full() -> (UnixStream, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        while (&near).write(&[0; 1 << 16]).is_ok() {}
        near.set_nonblocking(false).unwrap();
        (near, far)
    }

    #[test]
    fn a_quick_send_says_what_was_taken_and_ends_no_wait() {
        let mut ring = ring(64);
        let (near, _far) = UnixStream::pair().unwrap();
        let (full, _reads_nothing) = full();
        ring.send(near.as_raw_fd(), outgoing(1000), 3, Manner::Quick);
        let begun = Instant::now();
        let sent = turn(&mut ring, Wait::Until(begun + Duration::from_millis(20)));
        assert_eq!(sent, [(3, 1000)]);
        assert!(begun.elapsed() >= Duration::from_millis(19), "it has waited");
        ring.send(full.as_raw_fd(), outgoing(1000), 4, Manner::Quick);
        assert_eq!(turn(&mut ring, Wait::Indefinitely), [(4, -libc::EAGAIN)]);
    }

    /// While there is no room for completions, nobody knows which quick sends were taken whole. One
    /// that is known to have failed must not count as such later, when its connection has the kernel
    /// read other memory.
    #[test]
    fn a_quick_send_that_failed_amid_an_overflow_is_not_mistaken_for_the_next_send() {
        let mut ring = ring(64);
        let (full, far) = full();
        let (near, _far) = UnixStream::pair().unwrap();
        ring.send(full.as_raw_fd(), outgoing(1000), 0, Manner::Quick);
        ring.send(near.as_raw_fd(), outgoing(10), 1, Manner::Quick);
        for _ in 0..2 * 64 * COMPLETIONS_PER_ENTRY {
            ring.push(&opcode::Nop::new().build().user_data(user_data(NOBODY, 0)));
        }
        assert_eq!(turn(&mut ring, Wait::No), [(0, -libc::EAGAIN)]);
        ring.send(full.as_raw_fd(), outgoing(500), 0, Manner::Patient);
        let mut sent = Vec::new();
        for _ in 0..10 {
            sent.extend(turn(&mut ring, Wait::No));
        }
        assert_eq!(sent, [(1, 10)], "the other waits for its peer");
        drop(far);
        assert_eq!(turn(&mut ring, Wait::Indefinitely), [(0, -libc::EPIPE)]);
    }

    #[test]
    fn a_deadline_that_comes_nearer_ends_the_wait_in_time() {
        let mut ring = ring(64);
        let begun = Instant::now();
        let mut at = begun + Duration::from_secs(600);
        for _ in 0..5 {
            let waits = ring.counts.waits;
            assert_eq!(turn(&mut ring, Wait::No), []);
            ring.queue_timer(Wait::Until(at));
            assert_eq!(ring.counts.waits, waits);
            at = begun + (at - begun) / 4;
        }
        let soon = Instant::now() + Duration::from_millis(30);
        assert_eq!(turn(&mut ring, Wait::Until(soon)), []);
        assert!(Instant::now() >= soon - Duration::from_millis(1), "nothing else ended it");
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}
