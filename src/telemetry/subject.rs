//! Whom an event is about, and why it happened, found without allocating: most events of a flood
//! are only counted.

use super::line::OMITTED;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use tracing::Event;
use tracing::field::{Field, Visit};

/// The longest server-id or path that is told in full; longer ones count by their beginning.
const MAX_NAME_BYTES: usize = 256;
/// Causes that differ after this many bytes count as one.
const MAX_CAUSE_BYTES: usize = 128;
/// An address with its port, or whatever else stands in its place.
const MAX_REMOTE_BYTES: usize = 64;

/// Whom an event is about, and why it happened.
#[derive(Debug, Default)]
pub(super) struct Subject {
    /// The peer that has one address, or one network of IPv6.
    pub(super) peer: Option<Peer>,
    name: Text<MAX_NAME_BYTES>,
    key: Option<&'static str>,
    cause: Text<MAX_CAUSE_BYTES>,
    /// How many occurrences the event stands for.
    pub(super) times: u64,
}

impl Subject {
    pub(super) fn of(event: &Event<'_>) -> Self {
        let mut subject = Self { times: 1, ..Self::default() };
        event.record(&mut subject);
        subject
    }

    /// The key and the value that name it: its server-id, or else a path.
    pub(super) fn name(&self) -> Option<(&'static str, &str)> {
        Some((self.key?, self.name.as_str()))
    }

    /// Its `err`; empty if there is none.
    pub(super) fn cause(&self) -> &str {
        self.cause.as_str()
    }
}

impl Visit for Subject {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "server_id" => {
                self.key = Some("server_id");
                self.name.set(value);
            }
            "path" if self.key.is_none() => {
                self.key = Some("path");
                self.name.set(value);
            }
            "err" => self.cause.set(value),
            "remote" => self.peer = Peer::named(value),
            _ => {}
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == OMITTED {
            self.times = value;
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "err" => self.cause.write(value),
            "remote" => {
                let mut text = Text::<MAX_REMOTE_BYTES>::default();
                text.write(value);
                self.peer = Peer::named(text.as_str());
            }
            "server_id" => {
                self.key = Some("server_id");
                self.name.write(value);
            }
            "path" if self.key.is_none() => {
                self.key = Some("path");
                self.name.write(value);
            }
            _ => {}
        }
    }
}

/// Who counts as one: an IPv4 address, or an IPv6 network of 64 bits, which is what one subscriber
/// has at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Peer(IpAddr);

impl Peer {
    /// Who has this address, with a port or without.
    fn named(text: &str) -> Option<Self> {
        let address = text.parse().map(|address: SocketAddr| address.ip());
        let address: IpAddr = address.or_else(|_| text.parse()).ok()?;
        Some(Self(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(truncated(address, 64)),
            v4 @ IpAddr::V4(_) => v4,
        }))
    }

    /// What one organisation has at most, as a rule: it shares the places of one network.
    pub(super) fn network(self) -> IpAddr {
        match self.0 {
            IpAddr::V6(address) => IpAddr::V6(truncated(address, 48)),
            IpAddr::V4(address) => IpAddr::V4((address.to_bits() & 0xffff_ff00).into()),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V6(network) => write!(f, "{network}/64"),
            IpAddr::V4(address) => address.fmt(f),
        }
    }
}

fn truncated(address: Ipv6Addr, bits: u32) -> Ipv6Addr {
    (address.to_bits() & (u128::MAX << (128 - bits))).into()
}

/// Text up to a length, without an allocation.
#[derive(Debug)]
struct Text<const MAX: usize> {
    bytes: [u8; MAX],
    len: usize,
}

impl<const MAX: usize> Default for Text<MAX> {
    fn default() -> Self {
        Self { bytes: [0; MAX], len: 0 }
    }
}

impl<const MAX: usize> Text<MAX> {
    fn set(&mut self, text: &str) {
        self.len = 0;
        let _ = self.write_str(text);
    }

    fn write(&mut self, value: &dyn fmt::Debug) {
        self.len = 0;
        let _ = write!(self, "{value:?}");
    }

    fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..self.len).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl<const MAX: usize> fmt::Write for Text<MAX> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let free = self.bytes.get_mut(self.len..).unwrap_or_default();
        let taken = text.floor_char_boundary(free.len());
        if let (Some(to), Some(from)) = (free.get_mut(..taken), text.as_bytes().get(..taken)) {
            to.copy_from_slice(from);
        }
        self.len += taken;
        if taken < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> Option<String> {
        Peer::named(text).map(|peer| format!("{peer} of {}", peer.network()))
    }

    #[test]
    fn a_peer_is_an_ipv4_address_or_64_bits_of_ipv6() {
        for (text, named) in [
            ("192.0.2.77:4711", "192.0.2.77 of 192.0.2.0"),
            ("192.0.2.77", "192.0.2.77 of 192.0.2.0"),
            ("[::ffff:192.0.2.77]:1", "192.0.2.77 of 192.0.2.0"),
            ("[2001:db8:1:2:3:4:5:6]:443", "2001:db8:1:2::/64 of 2001:db8:1::"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64 of 2001:db8:1::"),
        ] {
            assert_eq!(peer(text).as_deref(), Some(named), "{text}");
        }
        assert_eq!(peer("whatever"), None);
        assert_eq!(peer(&"1".repeat(1000)), None);
    }

    #[test]
    fn text_is_cut_between_characters() {
        let mut text = Text::<5>::default();
        text.set("aéé");
        assert_eq!(text.as_str(), "aéé");
        text.set("aaéé");
        assert_eq!(text.as_str(), "aaé");
        text.write(&"long");
        assert_eq!(text.as_str(), "\"long");
    }
}
