//! Which process listens on an address that is in use. There may be none any more: the kernel frees
//! the sockets of a process that was killed a little later.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Who listens on an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PortOwner {
    /// This process, of this name.
    Process(u32, String),
    /// Nobody any more: it was a process of this user, or has been let go meanwhile.
    Nobody,
    /// Another user, whose processes this one may not look into.
    Unknown,
}

impl PortOwner {
    /// Who listens on `address`.
    pub(super) fn of(address: SocketAddr) -> Self {
        let table = |name| fs::read_to_string(name).unwrap_or_default();
        let sockets = [table("/proc/net/tcp"), table("/proc/net/tcp6")].concat();
        let held: Vec<Socket> =
            sockets.lines().filter_map(Socket::listening).filter(|s| s.is_at(address)).collect();
        let us = rustix::process::geteuid().as_raw();
        match process_with(&held) {
            Some((pid, name)) => Self::Process(pid, name),
            // Root sees every process there is.
            None if held.iter().all(|socket| us == 0 || socket.user == us) => Self::Nobody,
            None => Self::Unknown,
        }
    }
}

/// A listening socket (proc(5), `/proc/net/tcp`).
#[derive(Debug, PartialEq, Eq)]
struct Socket {
    address: SocketAddr,
    user: u32,
    inode: u64,
}

impl Socket {
    /// The socket of a line; `None` if it does not listen.
    fn listening(line: &str) -> Option<Self> {
        const LISTEN: &str = "0A";
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (ip, port) = fields.get(1)?.split_once(':')?;
        if *fields.get(3)? != LISTEN {
            return None;
        }
        // In words of 32 bits, each in the order of the machine.
        let words = ip.as_bytes().chunks(8).map(|word| {
            let word = std::str::from_utf8(word).ok()?;
            Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
        });
        let bytes = words.collect::<Option<Vec<_>>>()?.concat();
        let ip = match bytes.len() {
            4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
            _ => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        };
        Some(Self {
            address: SocketAddr::new(ip.to_canonical(), u16::from_str_radix(port, 16).ok()?),
            user: fields.get(7)?.parse().ok()?,
            inode: fields.get(9)?.parse().ok()?,
        })
    }

    /// Whether it is in the way of a listener on `address`.
    fn is_at(&self, address: SocketAddr) -> bool {
        let (ours, theirs) = (address.ip().to_canonical(), self.address.ip());
        self.address.port() == address.port()
            && (ours == theirs || ours.is_unspecified() || theirs.is_unspecified())
    }
}

/// A process that has one of `sockets` open, and its name.
fn process_with(sockets: &[Socket]) -> Option<(u32, String)> {
    let links: Vec<String> = sockets.iter().map(|s| format!("socket:[{}]", s.inode)).collect();
    let is_open = |pid: u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors
            .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
            .any(|target| links.iter().any(|link| target.as_os_str() == link.as_str()))
    };
    let mut processes = fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let pid = processes.find(|pid| is_open(*pid))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some((pid, name.trim_end().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_listener_of_this_process_is_found() {
        for place in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
            let Ok(listener) = TcpListener::bind(place) else { continue };
            let address = listener.local_addr().unwrap();
            let PortOwner::Process(pid, name) = PortOwner::of(address) else { panic!("{place}") };
            assert_eq!(pid, std::process::id());
            assert!(!name.is_empty());
            drop(listener);
            assert_eq!(PortOwner::of(address), PortOwner::Nobody, "{place}");
        }
    }

    #[test]
    fn lines_are_read_as_the_kernel_writes_them() {
        let line = "  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 \
                    33 0 4711 1 0000000000000000 100 0 0 10 0";
        let socket = Socket::listening(line).unwrap();
        let address = "127.0.0.1:8080".parse().unwrap();
        assert_eq!(socket, Socket { address, user: 33, inode: 4711 });
        assert_eq!(Socket::listening(&line.replace(" 0A ", " 01 ")), None);
        let line = line.replace("0100007F", "00000000000000000000000000000000");
        let everywhere = Socket::listening(&line).unwrap();
        for (address, is_at) in
            [("127.0.0.1:8080", true), ("[::1]:8080", true), ("127.0.0.1:80", false)]
        {
            assert_eq!(everywhere.is_at(address.parse().unwrap()), is_at, "{address}");
        }
        assert!(socket.is_at("[::]:8080".parse().unwrap()));
        assert!(!socket.is_at("127.0.0.2:8080".parse().unwrap()));
        for line in ["", "  sl  local_address rem_address   st", "0: x:y z 0A"] {
            assert_eq!(Socket::listening(line), None, "{line}");
        }
    }
}
