//! Listening addresses, as Go's `net.Listen` reads them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};

const HOW: &str = "write 127.0.0.1:8080, [::1]:8080, or :8080 for all interfaces";

/// Reads `host:port`. No host means all interfaces; a name is looked up, and its IPv4 address is
/// taken before its IPv6 one.
pub(super) fn parse(text: &str) -> Result<SocketAddr, String> {
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(format!("{text:?} is not host:port; {HOW}"));
    };
    let ip = match host {
        "" => Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        // Loopback by its meaning (RFC 6761, section 6.3), even where no hosts file says so.
        _ if host.eq_ignore_ascii_case("localhost") => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        _ => match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(inner) => inner.parse().ok().map(IpAddr::V6),
            None => host.parse().ok().map(IpAddr::V4),
        },
    };
    if ip.is_none() && !is_name(host) {
        return Err(format!("{text:?} has no valid IP address before its port; {HOW}"));
    }
    let port = Some(port).filter(|p| p.bytes().all(|b| b.is_ascii_digit()));
    let Some(port) = port.and_then(|p| p.parse().ok()) else {
        return Err(format!("{text:?} has no port from 0 to 65535 at its end; {HOW}"));
    };
    match ip {
        Some(ip) => Ok(SocketAddr::new(ip, port)),
        None => look_up(host, port),
    }
}

/// Whether `host` may be a host name. All digits and dots may not: that is a mistyped address,
/// which the resolver would read in surprising ways.
fn is_name(host: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    host.bytes().all(allowed) && host.bytes().any(|b| !b.is_ascii_digit() && b != b'.')
}

fn look_up(host: &str, port: u16) -> Result<SocketAddr, String> {
    let found: Vec<SocketAddr> = (host, port)
        .to_socket_addrs()
        .map_err(|err| format!("{host:?} cannot be looked up ({err}); write an IP address"))?
        .collect();
    found
        .iter()
        .find(|addr| addr.is_ipv4())
        .or(found.first())
        .copied()
        .ok_or_else(|| format!("{host:?} has no address; write an IP address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, addr) in [
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("0.0.0.0:0", "0.0.0.0:0"),
            (":8080", "[::]:8080"),
            (":0", "[::]:0"),
            ("[::1]:8080", "[::1]:8080"),
            ("[::]:65535", "[::]:65535"),
            ("localhost:8080", "127.0.0.1:8080"),
            ("LOCALHOST:1", "127.0.0.1:1"),
        ] {
            assert_eq!(parse(text), Ok(addr.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn refused_addresses() {
        for (text, says) in [
            ("", "not host:port"),
            ("8080", "not host:port"),
            ("localhost", "not host:port"),
            ("127.0.0.1", "not host:port"),
            (":", "no port"),
            ("127.0.0.1:", "no port"),
            (":http", "no port"),
            (":+80", "no port"),
            (":-1", "no port"),
            (":65536", "no port"),
            (":8080 ", "no port"),
            ("::1:8080", "no valid IP"),
            ("::1", "no valid IP"),
            ("[::1]", "no valid IP"),
            ("[127.0.0.1]:80", "no valid IP"),
            ("256.0.0.1:80", "no valid IP"),
            ("127.1:80", "no valid IP"),
            ("*:8080", "no valid IP"),
            ("http://127.0.0.1:80", "no valid IP"),
            ("a b:80", "no valid IP"),
            ("10.0.0.1\n:80", "no valid IP"),
        ] {
            let refusal = parse(text).unwrap_err();
            assert!(refusal.contains(says) && refusal.contains(HOW), "{text:?}: {refusal}");
        }
    }
}
