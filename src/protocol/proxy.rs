//! The PROXY protocol, version 2: a proxy's word for whom it speaks (PROTOCOL.md, chapter 6).
//!
//! Strict: only the PROXY command and TCP over IPv4 or IPv6 are taken. Whatever else a connection
//! begins with comes from nobody who may speak for others.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header, with its extensions, in bytes: what a proxy can count on to pass in one
/// packet (section 2 of the specification).
pub const MAX_HEADER_BYTES: usize = 536;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const FIXED_BYTES: usize = 16;
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// Two addresses and two ports.
const IPV4_BYTES: usize = 12;
const IPV6_BYTES: usize = 36;

/// What the first bytes of a connection come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proxy {
    /// All is well so far, and more is needed.
    NeedMore,
    /// A whole header.
    Header {
        /// Who calls.
        source: SocketAddr,
        /// The header's length; what follows is the caller's.
        consumed: usize,
    },
    /// Not a header, or not one that is taken: the connection ends without a word.
    Bad,
}

/// Reads the header that a connection must begin with; `bytes` is all that has come. Nonsense is
/// seen at its first byte.
#[must_use]
pub fn parse(bytes: &[u8]) -> Proxy {
    if bytes.iter().zip(SIGNATURE).any(|(byte, expected)| *byte != expected) {
        return Proxy::Bad;
    }
    if bytes.get(12).is_some_and(|byte| *byte != PROXY) {
        return Proxy::Bad;
    }
    let address_bytes = match bytes.get(13) {
        None => return Proxy::NeedMore,
        Some(&TCP_OVER_IPV4) => IPV4_BYTES,
        Some(&TCP_OVER_IPV6) => IPV6_BYTES,
        Some(_) => return Proxy::Bad,
    };
    let (high, low) = match (bytes.get(14), bytes.get(15)) {
        (Some(high), Some(low)) => (*high, *low),
        // The rest of the length can only make it longer.
        (Some(high), None) if usize::from(*high) << 8 > MAX_HEADER_BYTES - FIXED_BYTES => {
            return Proxy::Bad;
        }
        _ => return Proxy::NeedMore,
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let consumed = FIXED_BYTES + length;
    if length < address_bytes || consumed > MAX_HEADER_BYTES {
        return Proxy::Bad;
    }
    let Some(payload) = bytes.get(FIXED_BYTES..consumed) else { return Proxy::NeedMore };
    let source = if address_bytes == IPV4_BYTES { ipv4(payload) } else { ipv6(payload) };
    match (source, payload.get(address_bytes..)) {
        (Some(source), Some(extensions)) if are_extensions(extensions) => {
            Proxy::Header { source, consumed }
        }
        _ => Proxy::Bad,
    }
}

/// Source address, destination address, source port, destination port.
fn ipv4(payload: &[u8]) -> Option<SocketAddr> {
    let (address, rest) = payload.split_first_chunk::<4>()?;
    let (port, _) = rest.get(4..)?.split_first_chunk::<2>()?;
    Some(SocketAddr::from((Ipv4Addr::from(*address), u16::from_be_bytes(*port))))
}

fn ipv6(payload: &[u8]) -> Option<SocketAddr> {
    let (address, rest) = payload.split_first_chunk::<16>()?;
    let (port, _) = rest.get(16..)?.split_first_chunk::<2>()?;
    Some(SocketAddr::from((Ipv6Addr::from(*address), u16::from_be_bytes(*port))))
}

/// Type, length and value, again and again and to the very end (section 2.2).
fn are_extensions(mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let [_, high, low, rest @ ..] = bytes else { return false };
        let Some(rest) = rest.get(usize::from(u16::from_be_bytes([*high, *low]))..) else {
            return false;
        };
        bytes = rest;
    }
    true
}

#[cfg(test)]
mod tests;
