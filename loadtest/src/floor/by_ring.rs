//! The floor on io_uring: one `io_uring_enter` for each time that it wakes.

use crate::Outcome;
use crate::floor::pipes::Pipes;
use crate::floor::ring::{Done, PipeRing};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, RawFd};

/// A socket that the ring holds.
#[derive(Default)]
struct Socket {
    /// What is being sent, and how much of it has left.
    sending: Vec<u8>,
    sent: usize,
    state: Sending,
    is_receiving: bool,
}

/// What the kernel does with the bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Sending {
    #[default]
    Nothing,
    /// It takes what fits, when we wait next.
    Now,
    /// It has them until it says that they are sent.
    Armed,
}

struct Floor {
    ring: PipeRing,
    pipes: Pipes,
    /// By the keys of the pipes.
    sockets: Vec<Socket>,
    /// Those that are sending now.
    now: Vec<usize>,
}

/// Serves until it is killed.
pub(super) fn run(listener: &TcpListener) -> Outcome<()> {
    let ring = PipeRing::new()
        .map_err(|error| format!("no io_uring as the floor needs it (Linux 6.1): {error}"))?;
    let mut floor = Floor { ring, pipes: Pipes::default(), sockets: Vec::new(), now: Vec::new() };
    let (mut done, mut dirty) = (Vec::new(), Vec::new());
    floor.ring.accept(listener.as_raw_fd())?;
    loop {
        floor.ring.wait(&mut done)?;
        floor.settle(&done)?;
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
                // See `settle`.
                Done::Sent { .. } => {}
            }
        }
        floor.pipes.swap_dirty(&mut dirty);
        for key in dirty.drain(..) {
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
        let key = self.pipes.add();
        if self.sockets.len() <= key {
            self.sockets.resize_with(key + 1, Socket::default);
        }
        if let Some(socket) = self.sockets.get_mut(key) {
            *socket = Socket { is_receiving: true, ..Socket::default() };
        }
        // The ring holds the socket from here on.
        self.ring.register(key, stream.as_raw_fd())?;
        self.ring.receive(key)
    }

    fn receive_ended(&mut self, key: usize, is_dead: bool) -> io::Result<()> {
        if !is_dead {
            return self.ring.receive(key);
        }
        if let Some(socket) = self.sockets.get_mut(key) {
            socket.is_receiving = false;
        }
        self.bury(key)
    }

    fn send(&mut self, key: usize) -> io::Result<()> {
        let Some(socket) = self.sockets.get_mut(key) else { return Ok(()) };
        if socket.state != Sending::Nothing || !socket.is_receiving {
            return Ok(());
        }
        socket.sending.clear();
        socket.sent = 0;
        self.pipes.take_outbox(key, &mut socket.sending);
        if socket.sending.is_empty() {
            return Ok(());
        }
        socket.state = Sending::Now;
        self.now.push(key);
        self.ring.send_now(key, &socket.sending)
    }

    /// What was sent when we waited: nothing was said of what has left whole.
    fn settle(&mut self, done: &[Done]) -> io::Result<()> {
        for key in self.now.drain(..) {
            if let Some(socket) = self.sockets.get_mut(key) {
                socket.state = Sending::Nothing;
            }
        }
        for what in done {
            if let Done::Sent { key, result } = *what {
                self.sent(key, result)?;
            }
        }
        Ok(())
    }

    /// A send did not leave whole at once, or one that waited has ended.
    fn sent(&mut self, key: usize, result: i32) -> io::Result<()> {
        let Some(socket) = self.sockets.get_mut(key) else { return Ok(()) };
        let again = -rustix::io::Errno::AGAIN.raw_os_error();
        // What cannot be sent any more ends with the receive.
        let all = socket.sending.len() - socket.sent;
        socket.sent += match usize::try_from(result) {
            Ok(sent) => sent,
            Err(_) if result == again => 0,
            Err(_) => all,
        };
        socket.state = Sending::Nothing;
        let rest = socket.sending.get(socket.sent..).unwrap_or_default();
        if !rest.is_empty() && socket.is_receiving {
            socket.state = Sending::Armed;
            return self.ring.send(key, rest);
        }
        match socket.is_receiving {
            true => self.send(key),
            false => self.bury(key),
        }
    }

    /// Forgets a pipe of which the kernel holds nothing any more.
    fn bury(&mut self, key: usize) -> io::Result<()> {
        let Some(socket) = self.sockets.get_mut(key) else { return Ok(()) };
        if socket.state == Sending::Nothing && !socket.is_receiving {
            *socket = Socket::default();
            self.ring.register(key, -1)?;
            self.pipes.remove(key);
        }
        Ok(())
    }
}
