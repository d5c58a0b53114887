//! The runtime of a worker's thread, which is turned from within the worker's own wait.
//!
//! A runtime of tokio waits on a descriptor of its own (epoll), and would do so for each message.
//! So the worker waits on its ring alone, has the ring watch that descriptor ([`descriptor`]), and
//! gives the runtime a turn ([`turn`]) only when it has something to do: when mail has come.

use super::Mail;
use std::collections::VecDeque;
use std::fs;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, ThreadId};
use tokio::net::UnixStream;
use tokio::sync::mpsc::UnboundedReceiver;

/// The runtime's own ring: nothing uses it while mail comes by other means.
pub(super) const RING_ENTRIES: u32 = 8;

/// A worker's mail.
pub(super) struct Mailbox {
    receiver: UnboundedReceiver<Mail>,
    /// What has come, for the worker to take.
    come: VecDeque<Mail>,
}

impl Mailbox {
    pub(super) fn new(receiver: UnboundedReceiver<Mail>) -> Self {
        Self { receiver, come: VecDeque::new() }
    }

    /// What has come and was heard in the runtime's last turn, one after the other.
    pub(super) fn take(&mut self) -> Option<Mail> {
        self.come.pop_front()
    }

    /// As [`Mailbox::take`], the first that is wanted: others wait.
    pub(super) fn take_if(&mut self, is_wanted: impl Fn(&Mail) -> bool) -> Option<Mail> {
        let at = self.come.iter().position(is_wanted)?;
        self.come.remove(at)
    }

    /// Whether there is one that is wanted.
    pub(super) fn has(&self, is_wanted: impl Fn(&Mail) -> bool) -> bool {
        self.come.iter().any(is_wanted)
    }

    /// Takes in what has come. What comes from then on wakes the `runtime`.
    fn hear(&mut self, runtime: &Waker) {
        let thread = thread::current().id();
        let runtime = runtime.clone();
        let bell = Arc::new(Bell { is_rung: AtomicBool::new(false), thread, runtime });
        let waker = Waker::from(bell.clone());
        let mut context = Context::from_waker(&waker);
        loop {
            while let Poll::Ready(Some(mail)) = self.receiver.poll_recv(&mut context) {
                self.come.push_back(mail);
            }
            // Where someone sends at this moment, the bell is rung instead of hung up.
            if !bell.is_rung.swap(false, Ordering::Acquire) {
                return;
            }
        }
    }

    /// Whether there is nothing to take.
    pub(super) fn is_empty(&self) -> bool {
        self.come.is_empty()
    }
}

/// A runtime for the current thread.
///
/// # Errors
///
/// As [`probe`](super::ring::probe), and where descriptors have run out.
pub(super) fn new() -> io::Result<tokio_uring::Runtime> {
    let mut uring = tokio_uring::uring_builder();
    uring.setup_coop_taskrun().setup_single_issuer();
    tokio_uring::Runtime::new(tokio_uring::builder().entries(RING_ENTRIES).uring_builder(&uring))
}

/// Gives the runtime of the current task its turn, and hears what mail has come. The descriptor tells
/// of mail that comes from then on; so this must be done once before it is waited for.
pub(super) async fn turn(mailbox: &mut Mailbox) {
    // In the first it hears what has happened, in the second its tasks run that are concerned.
    for _ in 0..2 {
        tokio::task::yield_now().await;
    }
    // Here, behind the last time that the runtime looked at its descriptor, and not in a task: that
    // might be told of mail which the runtime heard of in the end of its turn, and then nobody would
    // give it another. Unconstrained: or it would leave some for a turn that nobody knows of.
    tokio::task::unconstrained(poll_fn(|context| {
        mailbox.hear(context.waker());
        Poll::Ready(())
    }))
    .await;
}

/// Rung by who sends mail.
struct Bell {
    is_rung: AtomicBool,
    /// Whose mail it is.
    thread: ThreadId,
    runtime: Waker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.is_rung.store(true, Ordering::Release);
        // The runtime's descriptor says nothing of what its own thread tells it, and then nothing
        // of what others do either, because it has been told.
        if thread::current().id() != self.thread {
            self.runtime.wake_by_ref();
        }
    }
}

/// The descriptor on which the runtime of the current task waits. It stays open and the same as
/// long as the runtime exists.
///
/// # Errors
///
/// Descriptors have run out, or `/proc` does not tell.
pub(super) fn descriptor() -> io::Result<RawFd> {
    // tokio does not say which it is, but it is the one that waits for this.
    let (known, _other) = UnixStream::pair()?;
    let wanted = known.as_raw_fd().to_string();
    let waits_for_it = |info: &str| {
        info.lines()
            .filter_map(|line| line.strip_prefix("tfd:"))
            .any(|line| line.split_whitespace().next() == Some(wanted.as_str()))
    };
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        let entry = entry?;
        // Other threads open and close theirs meanwhile.
        let Ok(info) = fs::read_to_string(entry.path()) else { continue };
        if waits_for_it(&info)
            && let Some(descriptor) = entry.file_name().to_str().and_then(|name| name.parse().ok())
        {
            return Ok(descriptor);
        }
    }
    Err(io::Error::other("/proc/self/fdinfo does not show what the runtime waits on"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::os::fd::BorrowedFd;
    use tokio::sync::mpsc::unbounded_channel;

    #[test]
    #[allow(unsafe_code)]
    fn its_descriptor_tells_of_mail_and_a_turn_brings_all_of_it() {
        let runtime = new().unwrap();
        let (sender, mailbox) = unbounded_channel();
        runtime.block_on(async {
            let mut mailbox = Mailbox::new(mailbox);
            let descriptor = descriptor().unwrap();
            for mails in [1, 500, 3] {
                turn(&mut mailbox).await;
                let sender = sender.clone();
                let thread = thread::spawn(move || {
                    for _ in 0..mails {
                        sender.send(Mail::Limits(Limits::default())).unwrap();
                    }
                });
                // SAFETY: the runtime has it open.
                let waited = unsafe { BorrowedFd::borrow_raw(descriptor) };
                let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
                poll(&mut [PollFd::new(&waited, PollFlags::IN)], Some(&patience)).unwrap();
                thread.join().unwrap();
                turn(&mut mailbox).await;
                assert_eq!(std::iter::from_fn(|| mailbox.take()).count(), mails);
            }
        });
    }

    /// Mail that comes at whatever moment of a turn is heard.
    #[test]
    #[allow(unsafe_code)]
    fn no_moment_of_a_turn_loses_mail() {
        const MAILS: usize = 30_000;
        let runtime = new().unwrap();
        let (sender, mailbox) = unbounded_channel();
        runtime.block_on(async {
            let mut mailbox = Mailbox::new(mailbox);
            let descriptor = descriptor().unwrap();
            turn(&mut mailbox).await;
            let thread = thread::spawn(move || {
                for mail in 0..MAILS {
                    sender.send(Mail::Limits(Limits::default())).unwrap();
                    (0..mail % 1009).for_each(|_| std::hint::spin_loop());
                }
                sender
            });
            let mut received = 0;
            while received < MAILS {
                // SAFETY: the runtime has it open.
                let waited = unsafe { BorrowedFd::borrow_raw(descriptor) };
                // Only a fault takes so long, however busy the machine is.
                let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
                let heard = poll(&mut [PollFd::new(&waited, PollFlags::IN)], Some(&patience));
                assert_eq!(heard, Ok(1), "{received} of {MAILS} heard");
                turn(&mut mailbox).await;
                received += std::iter::from_fn(|| mailbox.take()).count();
            }
            drop(thread.join().unwrap());
        });
    }
}
