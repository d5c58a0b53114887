//! One-shot operations on the runtime's own ring, and wakers that cost no memory.
//!
//! Every operation of a worker is polled by one task, the worker's loop. A completed operation
//! puts its [`Token`] on the worker's ready list and wakes that task, so that one turn of the loop
//! sees everything that completed since the last one.

use io_uring::{cqueue, opcode, squeue, types};
use std::cell::RefCell;
use std::future::Future;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

/// What completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// The receive of a connection.
    Receive(u32),
    /// The send of a connection.
    Send(u32),
    /// The listener is ready to accept.
    Accept,
    /// Receive buffers were handed to the kernel.
    Provide,
}

impl Token {
    fn encode(self) -> usize {
        let (kind, key) = match self {
            Self::Receive(key) => (0, key),
            Self::Send(key) => (1, key),
            Self::Accept => (2, 0),
            Self::Provide => (3, 0),
        };
        (key as usize) << 2 | kind
    }

    fn decode(code: usize) -> Self {
        let key = (code >> 2) as u32;
        match code & 3 {
            0 => Self::Receive(key),
            1 => Self::Send(key),
            2 => Self::Accept,
            _ => Self::Provide,
        }
    }

    /// A waker that puts this token on the ready list of the thread that it is woken on.
    #[allow(unsafe_code)]
    fn waker(self) -> Waker {
        // SAFETY: the data pointer is a number and never dereferenced; the functions of the table
        // touch nothing but a thread-local list, so they may be called from any thread, any number
        // of times, in any order.
        unsafe { Waker::from_raw(raw_waker(self.encode() as *const ())) }
    }
}

const VTABLE: RawWakerVTable = RawWakerVTable::new(raw_waker, wake, wake, |_| {});

const fn raw_waker(data: *const ()) -> RawWaker {
    RawWaker::new(data, &VTABLE)
}

fn wake(data: *const ()) {
    READY.with(|ready| {
        let mut ready = ready.borrow_mut();
        ready.tokens.push(Token::decode(data as usize));
        if ready.tokens.len() == 1
            && let Some(worker) = &ready.worker
        {
            worker.wake_by_ref();
        }
    });
}

#[derive(Default)]
struct Ready {
    tokens: Vec<Token>,
    worker: Option<Waker>,
}

thread_local! {
    static READY: RefCell<Ready> = RefCell::default();
}

/// Moves everything that has completed to `into`; the worker's task is woken for what completes
/// from now on.
pub fn take_ready(into: &mut Vec<Token>, cx: &Context<'_>) {
    READY.with(|ready| {
        let mut ready = ready.borrow_mut();
        into.append(&mut ready.tokens);
        if !ready.worker.as_ref().is_some_and(|worker| worker.will_wake(cx.waker())) {
            ready.worker = Some(cx.waker().clone());
        }
    });
}

/// An operation that owns `D` until the kernel is done with it, even if it is dropped.
pub type Operation<D> = InFlightOneshot<D, Owning<D>>;

/// Hands back what the operation owned, with the result (negative: an errno) and the flags.
pub struct Owning<D>(std::marker::PhantomData<D>);

impl<D> OneshotOutputTransform for Owning<D> {
    type StoredData = D;
    type Output = (D, i32, u32);

    fn transform_oneshot_output(self, data: D, completion: cqueue::Entry) -> Self::Output {
        (data, completion.result(), completion.flags())
    }
}

/// Queues an operation for the next system call of the loop.
fn submit<D: Unpin + 'static>(data: D, entry: squeue::Entry, token: Token) -> Operation<D> {
    let mut operation =
        UnsubmittedOneshot::new(data, Owning(std::marker::PhantomData), entry).submit();
    // The first poll leaves the waker; nothing can have completed before the next system call.
    let pending = poll(&mut operation, token).is_pending();
    debug_assert!(pending, "completed before it was submitted");
    operation
}

/// Looks whether an operation has completed.
pub fn poll<D: Unpin + 'static>(operation: &mut Operation<D>, token: Token) -> Poll<(D, i32, u32)> {
    Pin::new(operation).poll(&mut Context::from_waker(&token.waker()))
}

/// Receives into a buffer of `group` that the kernel chooses when there is something to receive.
/// Unless the connection `has_more` already, the kernel need not look before it waits.
pub fn receive(fd: RawFd, group: u16, max_bytes: u32, key: u32, has_more: bool) -> Operation<()> {
    let entry = opcode::Recv::new(types::Fd(fd), std::ptr::null_mut(), max_bytes)
        .buf_group(group)
        .build()
        .flags(squeue::Flags::BUFFER_SELECT);
    let entry = if has_more { entry } else { poll_first(entry) };
    submit((), entry, Token::Receive(key))
}

/// `IORING_RECVSEND_POLL_FIRST`: nothing is expected to be there yet, so the kernel need not look
/// before it waits.
const POLL_FIRST: u16 = 1;

/// Sets [`POLL_FIRST`], for which the builder of `Recv` has no method.
#[allow(unsafe_code)]
fn poll_first(mut entry: squeue::Entry) -> squeue::Entry {
    // SAFETY: an entry is the kernel's `struct io_uring_sqe` and nothing else (`repr(C)`, 64
    // bytes), in which `ioprio` is the u16 at offset 2 (include/uapi/linux/io_uring.h).
    unsafe { (&raw mut entry).cast::<u16>().wrapping_add(1).write(POLL_FIRST) };
    entry
}

/// Sends `buffer[from..to]`, or a first part of it.
pub fn send(fd: RawFd, buffer: Vec<u8>, from: usize, to: usize, key: u32) -> Operation<Vec<u8>> {
    let bytes = buffer.get(from..to).unwrap_or_default();
    let entry = opcode::Send::new(types::Fd(fd), bytes.as_ptr(), bytes.len() as u32)
        .flags(libc::MSG_NOSIGNAL)
        .build();
    submit(buffer, entry, Token::Send(key))
}

/// Waits until a listener has something to accept.
pub fn acceptable(listener: &impl AsRawFd) -> Operation<()> {
    let fd = types::Fd(listener.as_raw_fd());
    submit((), opcode::PollAdd::new(fd, libc::POLLIN as u32).build(), Token::Accept)
}

/// Hands `count` buffers of `size` bytes, from `address` on, to the kernel.
pub fn provide(address: *mut u8, size: u32, count: u16, group: u16, first: u16) -> Operation<()> {
    let entry = opcode::ProvideBuffers::new(address, size as i32, count, group, first).build();
    submit((), entry, Token::Provide)
}

/// What every ring of the relay is made with.
pub fn builder() -> io_uring::Builder {
    let mut builder = tokio_uring::uring_builder();
    builder.setup_coop_taskrun().setup_single_issuer();
    builder
}

/// Tries out whether this process may make rings and use them.
///
/// # Errors
///
/// What the kernel says: `ENOSYS` where io_uring is not built in or a seccomp filter hides it,
/// `EPERM` where the `kernel.io_uring_disabled` switch or a seccomp filter forbids it, `EINVAL`
/// where it is too old for what the relay asks of it, `ENOMEM` where the limit on locked memory is
/// too low.
pub fn probe() -> std::io::Result<()> {
    // A filter that lets a ring be made may still forbid io_uring_enter, which this calls.
    builder().build(8)?.submit().map(drop)
}
