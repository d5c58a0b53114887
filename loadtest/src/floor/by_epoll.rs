//! The floor on epoll: for each time that it wakes one `epoll_wait`, a `recv` for each socket that has
//! something, and a `send` for each that is to get something.

use crate::Outcome;
use crate::floor::pipes::Pipes;
use rustix::event::epoll::{self, EventData, EventFlags};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;

/// The token of the listener among the events.
const LISTENER: u64 = u64::MAX;
/// Events of one wait.
const EVENTS: usize = 256;
const BUFFER_BYTES: usize = 256 * 1024;

struct Socket {
    stream: TcpStream,
    /// What did not leave at once.
    unsent: Vec<u8>,
}

struct Floor {
    epoll: OwnedFd,
    pipes: Pipes,
    /// By the keys of the pipes.
    sockets: Vec<Option<Socket>>,
    /// The next outbox.
    spare: Vec<u8>,
}

/// Serves until it is killed.
pub(super) fn run(listener: &TcpListener) -> Outcome<()> {
    let mut floor = Floor {
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        pipes: Pipes::default(),
        sockets: Vec::new(),
        spare: Vec::new(),
    };
    epoll::add(&floor.epoll, listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut events = Vec::with_capacity(EVENTS);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut dirty = Vec::new();
    loop {
        epoll::wait(&floor.epoll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in events.drain(..) {
            let key = match event.data.u64() {
                LISTENER => {
                    floor.accepted(listener.accept()?.0)?;
                    continue;
                }
                key => key as usize,
            };
            let flags = event.flags;
            if flags.contains(EventFlags::OUT) {
                floor.send(key)?;
            }
            if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                floor.receive(key, &mut buffer)?;
            }
        }
        floor.pipes.swap_dirty(&mut dirty);
        for key in dirty.drain(..) {
            floor.send(key)?;
        }
    }
}

impl Floor {
    fn accepted(&mut self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let key = self.pipes.add();
        epoll::add(&self.epoll, &stream, EventData::new_u64(key as u64), EventFlags::IN)?;
        if self.sockets.len() <= key {
            self.sockets.resize_with(key + 1, || None);
        }
        if let Some(place) = self.sockets.get_mut(key) {
            *place = Some(Socket { stream, unsent: Vec::new() });
        }
        Ok(())
    }

    /// Receives once: epoll says so again if more is there.
    fn receive(&mut self, key: usize, buffer: &mut [u8]) -> io::Result<()> {
        let Some(place) = self.sockets.get_mut(key) else { return Ok(()) };
        let Some(socket) = place else { return Ok(()) };
        match socket.stream.read(buffer) {
            Ok(length @ 1..) => self.pipes.received(key, buffer.get(..length).unwrap_or_default()),
            Err(error) if is_passing(&error) => Ok(()),
            Ok(_) | Err(_) => {
                // Closing it takes it off the epoll, too.
                *place = None;
                self.pipes.remove(key);
                Ok(())
            }
        }
    }

    fn send(&mut self, key: usize) -> io::Result<()> {
        let Some(Some(socket)) = self.sockets.get_mut(key) else { return Ok(()) };
        let had_unsent = !socket.unsent.is_empty();
        let mut bytes = std::mem::take(&mut self.spare);
        bytes.clear();
        self.pipes.take_outbox(key, &mut bytes);
        if had_unsent {
            socket.unsent.extend_from_slice(&bytes);
            std::mem::swap(&mut socket.unsent, &mut bytes);
        }
        socket.unsent.clear();
        let sent = match socket.stream.write(&bytes) {
            Ok(sent) => sent,
            Err(error) if is_passing(&error) => 0,
            // Its receive finds the same.
            Err(_) => bytes.len(),
        };
        socket.unsent.extend_from_slice(bytes.get(sent..).unwrap_or_default());
        self.spare = bytes;
        let has_unsent = !socket.unsent.is_empty();
        if has_unsent != had_unsent {
            let more = if has_unsent { EventFlags::OUT } else { EventFlags::empty() };
            let data = EventData::new_u64(key as u64);
            epoll::modify(&self.epoll, &socket.stream, data, EventFlags::IN | more)?;
        }
        Ok(())
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
