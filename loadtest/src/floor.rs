//! The price of the kernel: bare TCP pipes between the same pairs of sockets, which wait in the
//! cheapest way that there is. What the relay spends beyond this, it spends itself.
//!
//! There are two, because which is lower depends on the load: [`by_ring`] makes one call of io_uring
//! for each time that it wakes, however many messages it finds then; [`by_epoll`] makes one for
//! each wake and two for each message.

mod by_epoll;
mod by_ring;
mod pipes;
mod ring;

use crate::Outcome;
use socket2::{Domain, Socket, Type};
use std::net::{SocketAddr, TcpListener};

/// A storm of the agents fits in.
const BACKLOG: i32 = 4096;

/// How a floor waits and moves bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Means {
    Ring,
    Epoll,
}

/// Serves until it is killed.
pub(crate) fn run(listen: SocketAddr, means: Means) -> Outcome<()> {
    let listener = Socket::new(Domain::for_address(listen), Type::STREAM, None)?;
    listener.set_reuse_address(true)?;
    listener.bind(&listen.into())?;
    listener.listen(BACKLOG)?;
    let listener = TcpListener::from(listener);
    match means {
        Means::Ring => by_ring::run(&listener),
        Means::Epoll => by_epoll::run(&listener),
    }
}
