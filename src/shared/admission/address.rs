//! What counts as one caller.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 address, or a network of 64 bits of IPv6, which is what one subscriber gets. An
/// IPv4-mapped address counts as IPv4 (PROTOCOL.md, chapter 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(u64);

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(u64::from(v4.to_bits())),
            // No network below 2^32 is given to anyone (RFC 4291, section 2.4), so the two kinds
            // do not meet.
            IpAddr::V6(v6) => Self((v6.to_bits() >> 64) as u64),
        }
    }
}

/// An address that counts as this one.
impl From<Address> for IpAddr {
    fn from(Address(number): Address) -> Self {
        match u32::try_from(number) {
            Ok(v4) => Self::V4(Ipv4Addr::from_bits(v4)),
            Err(_) => Self::V6(Ipv6Addr::from_bits(u128::from(number) << 64)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers() {
        let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        let same = [
            ("192.0.2.1", "::ffff:192.0.2.1"),
            ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff"),
            ("2001:db8:1:2::", "2001:db8:1:2:3:4:5:6"),
        ];
        let different = [
            ("192.0.2.1", "192.0.2.2"),
            ("192.0.2.1", "::192.0.2.1"),
            ("2001:db8::1", "2001:db8:0:1::1"),
            ("2001:db8::1", "2001:db9::1"),
            ("::1", "127.0.0.1"),
            ("64:ff9b::1.2.3.4", "1.2.3.4"),
        ];
        for (one, other) in same {
            assert_eq!(address(one), address(other), "{one} {other}");
            assert_eq!(Address::from(IpAddr::from(address(one))), address(one), "{one}");
        }
        for (one, other) in different {
            assert_ne!(address(one), address(other), "{one} {other}");
        }
    }
}
