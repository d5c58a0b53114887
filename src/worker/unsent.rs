//! What the kernel still holds for a peer.

use rustix::ioctl::{Getter, Opcode, ioctl};
use std::os::fd::AsFd;

/// Bytes that were written to `socket` and that the peer has not acknowledged; 0 where the kernel
/// does not say.
#[allow(unsafe_code)]
pub(super) fn bytes(socket: impl AsFd) -> usize {
    // SAFETY: the opcode is one that gives an int.
    let getter = unsafe { Getter::<{ libc::TIOCOUTQ as Opcode }, i32>::new() };
    // SAFETY: the kernel writes that int, or fails where the descriptor is no socket.
    let held = unsafe { ioctl(socket, getter) };
    held.ok().and_then(|held| usize::try_from(held).ok()).unwrap_or(0)
}
