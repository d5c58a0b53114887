//! The runtime of a worker's thread, which is turned from within the worker's own wait.
//!
//! A runtime of tokio waits on a descriptor of its own (epoll), and would do so for each message.
//! So the worker waits on its ring alone, has the ring watch that descriptor ([`descriptor`]), and
//! gives the runtime a turn ([`turn`]) only when it has something to do: when mail has come.

use super::Mail;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use tokio::net::UnixStream;
use tokio::sync::mpsc::UnboundedReceiver;

/// The runtime's own ring: nothing uses it while mail comes by other means.
pub(super) const RING_ENTRIES: u32 = 8;

/// Mail that has come, for the worker to take.
pub(super) type Inbox = Rc<RefCell<VecDeque<Mail>>>;

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

/// Has a task of the runtime put mail into the inbox as it comes.
pub(super) fn receive(mut mailbox: UnboundedReceiver<Mail>) -> Inbox {
    let inbox = Inbox::default();
    let into = inbox.clone();
    // Unconstrained: a task that yields of itself would wait for a turn that nobody knows of.
    tokio_uring::spawn(tokio::task::unconstrained(async move {
        while let Some(mail) = mailbox.recv().await {
            into.borrow_mut().push_back(mail);
        }
    }));
    inbox
}

/// Gives the runtime of the current task its turn.
pub(super) async fn turn() {
    // In the first it hears what has come, in the second the tasks run that are concerned.
    for _ in 0..2 {
        tokio::task::yield_now().await;
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
    use std::thread;
    use tokio::sync::mpsc::unbounded_channel;

    #[test]
    #[allow(unsafe_code)]
    fn its_descriptor_tells_of_mail_and_a_turn_brings_all_of_it() {
        let runtime = new().unwrap();
        let (sender, mailbox) = unbounded_channel();
        runtime.block_on(async {
            let inbox = receive(mailbox);
            let descriptor = descriptor().unwrap();
            for mails in [1, 500, 3] {
                turn().await;
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
                turn().await;
                assert_eq!(inbox.borrow_mut().drain(..).count(), mails);
            }
        });
    }
}
