//! The PROXY protocol, version 2: a proxy's word for whom it speaks (PROTOCOL.md, chapter 6).
//!
//! A header for TCP over IPv4 or IPv6 names the caller. Any other header that the specification
//! knows (a health check, a family without an address for us) names nobody: then the proxy itself
//! is the peer. Whatever else a connection begins with comes from nobody who may speak for others.
//!
//! What follows the addresses (type-length-value extensions, up to the 65,535 bytes that the length
//! can say) is passed over as it comes, so one connection costs [`Reader`] and nothing more.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const FIXED_BYTES: usize = 16;
/// Version 2: the proxy speaks for itself. Family and addresses have no meaning.
const LOCAL: u8 = 0x20;
/// Version 2: the proxy speaks for the source that it names.
const PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// Two addresses and two ports.
const IPV4_BYTES: usize = 12;
const IPV6_BYTES: usize = 36;

/// What bytes of a header come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proxy {
    /// All is well so far, and more is needed.
    NeedMore,
    /// The header is whole.
    Header {
        /// Who calls; `None` if the header names nobody.
        source: Option<SocketAddr>,
        /// How many of the bytes belong to the header; what follows is the caller's.
        consumed: usize,
    },
    /// Not a header, or not one of the specification: the connection ends without a word.
    Bad,
}

/// Reads the header that a connection must begin with, in any number of pieces.
#[derive(Debug, Clone, Copy)]
pub struct Reader {
    /// The fixed part and the addresses, as far as they have come.
    kept: [u8; FIXED_BYTES + IPV6_BYTES],
    kept_bytes: usize,
    /// Bytes behind them that were passed over.
    skipped_bytes: usize,
}

impl Default for Reader {
    fn default() -> Self {
        Self { kept: [0; FIXED_BYTES + IPV6_BYTES], kept_bytes: 0, skipped_bytes: 0 }
    }
}

/// What the fixed part says of the rest.
struct Block {
    /// Bytes of addresses that are to be read, at the rest's beginning.
    addresses: usize,
    /// Bytes behind these, which are passed over.
    others: usize,
}

/// What has come is no header.
struct NoHeader;

impl Reader {
    /// Takes what has come since the last call. Nonsense is seen at its first byte; nothing must
    /// follow a header that is whole or bad.
    pub fn read(&mut self, input: &[u8]) -> Proxy {
        let mut rest = input;
        self.keep(&mut rest, FIXED_BYTES);
        let block = match self.block() {
            Ok(Some(block)) => block,
            Ok(None) => return Proxy::NeedMore,
            Err(NoHeader) => return Proxy::Bad,
        };
        self.keep(&mut rest, FIXED_BYTES + block.addresses);
        if self.kept_bytes < FIXED_BYTES + block.addresses {
            return Proxy::NeedMore;
        }
        let skipped = rest.len().min(block.others - self.skipped_bytes);
        self.skipped_bytes += skipped;
        if self.skipped_bytes < block.others {
            return Proxy::NeedMore;
        }
        let consumed = input.len() - rest.len() + skipped;
        Proxy::Header { source: self.source(block.addresses), consumed }
    }

    /// What has come of the header, and how many bytes behind that were passed over.
    #[must_use]
    pub fn half_read(&self) -> (&[u8], usize) {
        (self.kept.get(..self.kept_bytes).unwrap_or_default(), self.skipped_bytes)
    }

    /// Goes on where another is. None if none can be there.
    #[must_use]
    pub fn resume(kept: &[u8], skipped_bytes: usize) -> Option<Self> {
        let mut reader = Self::default();
        if reader.read(kept) != Proxy::NeedMore || reader.kept_bytes != kept.len() {
            return None;
        }
        let block = reader.block().ok()?;
        let others = block
            .filter(|block| reader.kept_bytes == FIXED_BYTES + block.addresses)
            .map_or(1, |block| block.others);
        reader.skipped_bytes = skipped_bytes;
        (skipped_bytes < others).then_some(reader)
    }

    /// Moves bytes from the front of `rest` until `wanted` are kept, or none is left.
    fn keep(&mut self, rest: &mut &[u8], wanted: usize) {
        let missing = wanted.saturating_sub(self.kept_bytes).min(rest.len());
        let (taken, left) = rest.split_at(missing);
        if let Some(room) = self.kept.get_mut(self.kept_bytes..self.kept_bytes + missing) {
            room.copy_from_slice(taken);
            self.kept_bytes += missing;
        }
        *rest = left;
    }

    /// What the fixed part says, once it is there.
    fn block(&self) -> Result<Option<Block>, NoHeader> {
        let fixed = self.kept.get(..self.kept_bytes.min(FIXED_BYTES)).unwrap_or_default();
        if fixed.iter().zip(SIGNATURE).any(|(byte, expected)| *byte != expected) {
            return Err(NoHeader);
        }
        let Some((command, family)) = fixed.get(12..).and_then(<[u8]>::split_first) else {
            return Ok(None);
        };
        let addresses = match (*command, family.first()) {
            (LOCAL, _) => 0,
            (PROXY, None) => return Ok(None),
            (PROXY, Some(&TCP_OVER_IPV4)) => IPV4_BYTES,
            (PROXY, Some(&TCP_OVER_IPV6)) => IPV6_BYTES,
            // Unspecified, IPv4, IPv6 or UNIX; unspecified, stream or datagram (section 2.2).
            (PROXY, Some(family)) if *family >> 4 <= 3 && *family & 0xf <= 2 => 0,
            _ => return Err(NoHeader),
        };
        let [_, high, low] = *family else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        match length.checked_sub(addresses) {
            Some(others) => Ok(Some(Block { addresses, others })),
            None => Err(NoHeader),
        }
    }

    /// Source address, destination address, source port, destination port.
    fn source(&self, addresses: usize) -> Option<SocketAddr> {
        let block = self.kept.get(FIXED_BYTES..FIXED_BYTES + addresses)?;
        if addresses == IPV4_BYTES {
            let (address, rest) = block.split_first_chunk::<4>()?;
            let (port, _) = rest.get(4..)?.split_first_chunk::<2>()?;
            return Some(SocketAddr::from((Ipv4Addr::from(*address), u16::from_be_bytes(*port))));
        }
        let (address, rest) = block.split_first_chunk::<16>()?;
        let (port, _) = rest.get(16..)?.split_first_chunk::<2>()?;
        Some(SocketAddr::from((Ipv6Addr::from(*address), u16::from_be_bytes(*port))))
    }
}

#[cfg(test)]
mod tests;
