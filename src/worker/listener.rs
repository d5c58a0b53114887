//! One listening socket per worker, all on the same address (SO_REUSEPORT).

use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Connections that the kernel keeps for us until we accept them, per worker.
const BACKLOG: i32 = 4096;

/// What the kernel may hold unsent for one connection, in bytes. Bytes in flight to a healthy peer
/// do not count, so this slows no one; but a peer that does not read can take no more than this of
/// the machine's memory, beside its own receive window.
const UNSENT_BYTES: u32 = 128 * 1024;

/// What the kernel may receive ahead of us on one connection, in bytes; it doubles the number for
/// its own overhead. It fills only while we do not read, because a binary's outbox is full.
const RECEIVE_BYTES: usize = 208 * 1024;

/// How long the kernel goes on for a peer that acknowledges nothing (TCP_USER_TIMEOUT). Longer than
/// the default deadlines of our own, which end a connection in better style; this one also ends
/// what is left in the kernel of a connection that we have closed, which would stay for minutes.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Binds `workers` listeners. With port 0, the kernel chooses one port for all of them.
///
/// # Errors
///
/// The address cannot be bound: taken by another process, not an address of this machine, or a
/// port that needs a privilege.
pub fn bind(address: SocketAddr, workers: usize) -> io::Result<Vec<Socket>> {
    let listeners = join(look(address)?, workers)?;
    listeners.iter().try_for_each(listen)?;
    Ok(listeners)
}

/// Binds more of them where there are some already, of this user. They do not listen yet: from then
/// on, the kernel gives them their share of the connections that come.
///
/// # Errors
///
/// As [`bind`].
pub fn join(address: SocketAddr, more: usize) -> io::Result<Vec<Socket>> {
    (0..more)
        .map(|_| {
            let listener = socket(address)?;
            listener.set_reuse_port(true)?;
            // Accepted sockets inherit these.
            listener.set_tcp_nodelay(true)?;
            listener.set_tcp_notsent_lowat(UNSENT_BYTES)?;
            listener.set_recv_buffer_size(RECEIVE_BYTES)?;
            listener.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
            listener.bind(&address.into())?;
            Ok(listener)
        })
        .collect()
}

/// Listens.
///
/// # Errors
///
/// Another user's process listens there, or one that does not share.
pub fn listen(listener: &Socket) -> io::Result<()> {
    listener.listen(BACKLOG)
}

/// Whether `address` can be listened on now, and what it then comes to: with port 0, the kernel
/// chooses one. With SO_REUSEPORT, a second relay would quietly share the port and split the
/// server-ids; a socket without it cannot be bound where anyone listens.
///
/// # Errors
///
/// As [`bind`].
pub fn look(address: SocketAddr) -> io::Result<SocketAddr> {
    let (guard, address) = match socket(address) {
        // This machine has no IPv6: then all interfaces are those of IPv4.
        Err(error) if is_no_ipv6(&error) && address.ip().is_unspecified() => {
            let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            (socket(address)?, address)
        }
        socket => (socket?, address),
    };
    guard.bind(&address.into())?;
    Ok(guard.local_addr()?.as_socket().unwrap_or(address))
}

fn is_no_ipv6(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // All interfaces means IPv4 too.
        socket.set_only_v6(false)?;
    }
    Ok(socket)
}
