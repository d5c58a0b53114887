//! Listening addresses, as Go's `net.Listen` reads them.

use super::units::OrOff;
use hyper::Uri;
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

/// As [`parse`]; an empty text means no listener.
pub(super) fn or_off(text: &str) -> Result<OrOff<SocketAddr>, String> {
    if text.is_empty() { Ok(OrOff::Off) } else { parse(text).map(OrOff::On) }
}

/// Reads the URL of an HTTP server; an empty text means none.
pub(super) fn url_or_off(text: &str) -> Result<OrOff<Uri>, String> {
    const HOW: &str = "write http://127.0.0.1:9000/verify, or https:// and a name";
    if text.is_empty() {
        return Ok(OrOff::Off);
    }
    let url = text.parse().ok().filter(|url: &Uri| {
        matches!(url.scheme_str(), Some("http" | "https"))
            && url.host().is_some_and(|host| !host.is_empty())
    });
    match url {
        // They would be shown wherever settings are.
        Some(url) if url.authority().is_some_and(|authority| authority.as_str().contains('@')) => {
            Err("it holds credentials, which would not be sent; leave them out".to_owned())
        }
        Some(url) => Ok(OrOff::On(url)),
        None => Err(format!("{text:?} is not a URL of HTTP or HTTPS; {HOW}")),
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

/// Reads the address of a listener that strangers must not reach: a loopback IP address and a
/// port, or nothing for no listener.
pub(super) fn loopback(text: &str) -> Result<OrOff<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(OrOff::Off);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().to_canonical().is_loopback() => Ok(OrOff::On(address)),
        Ok(address) => Err(format!(
            "{} is not a loopback address, and metrics must not be public; write \
             127.0.0.1:{} and reach it through a tunnel or a proxy",
            address.ip(),
            address.port()
        )),
        Err(_) => Err(format!(
            "{text:?} is not a loopback IP address and a port; write 127.0.0.1:9090, or nothing \
             for no listener"
        )),
    }
}

/// Reads a host name as it stands in a certificate: lower case, without the root's dot.
pub(super) fn domain(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_address =
        name.parse::<IpAddr>().is_ok() || name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if name.len() > 253 || is_address || !name.split('.').all(label) {
        return Err(format!(
            "{text:?} is not a host name; write relay.example.com, without scheme or port (and an \
             international name as xn--…)"
        ));
    }
    Ok(name)
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

    #[test]
    fn loopback_addresses() {
        assert_eq!(loopback(""), Ok(OrOff::Off));
        for text in ["127.0.0.1:9090", "[::1]:0", "127.9.9.9:1", "[::ffff:127.0.0.1]:9"] {
            assert_eq!(loopback(text), Ok(OrOff::On(text.parse().unwrap())), "{text}");
        }
        for text in ["0.0.0.0:9090", "[::]:9090", "10.0.0.1:9090", ":9090", "localhost:9090", "x"] {
            assert!(loopback(text).is_err(), "{text}");
        }
    }

    #[test]
    fn domains() {
        for (text, name) in [
            ("relay.example.com", "relay.example.com"),
            ("Relay.Example.COM.", "relay.example.com"),
            ("localhost", "localhost"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ] {
            assert_eq!(domain(text).as_deref(), Ok(name), "{text}");
        }
        let long = "a".repeat(64);
        for text in [
            "",
            ".",
            "a..b",
            "https://a.b",
            "a.b:443",
            "a.b/",
            "1.2.3.4",
            "::1",
            "-a.b",
            "a-.b",
            "bücher.example",
            "*.example.com",
            "a_b.c",
            &long,
        ] {
            assert!(domain(text).is_err(), "{text}");
        }
    }
}
