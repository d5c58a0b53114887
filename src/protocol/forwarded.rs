//! X-Forwarded-For: who stands behind the proxies (PROTOCOL.md, chapter 6).
//!
//! Each proxy adds the address that it was called from at the right-hand end, so the list is only
//! as good as those who wrote it: from the right, the first address that is no proxy of ours was
//! seen by one that is. What stands to the left of it may be invented.

use std::net::{IpAddr, SocketAddr};

/// More proxies than that in a row are none.
const MAX_ENTRIES: usize = 32;

/// The right-most address that is not trusted. `lines` are the values of all X-Forwarded-For
/// headers in order, which together are one list (RFC 9110, section 5.3). The port is 0 if the
/// entry names none.
///
/// There is none, and the peer itself is to be taken for the caller, if what stands there is no
/// address, if all are trusted, or if the first 32 from the right are.
pub fn caller<'a>(
    lines: impl DoubleEndedIterator<Item = &'a [u8]>,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> Option<SocketAddr> {
    let entries = lines.rev().flat_map(|line| line.rsplit(|byte| *byte == b','));
    for entry in entries.take(MAX_ENTRIES) {
        let entry = entry.trim_ascii();
        if entry.is_empty() {
            // Nothing between two commas is no entry (RFC 9110, section 5.6.1).
            continue;
        }
        let address = parse(entry)?;
        if !is_trusted(address.ip()) {
            return Some(address);
        }
    }
    None
}

/// An address with or without a port; IPv6 with or without brackets.
fn parse(entry: &[u8]) -> Option<SocketAddr> {
    let entry = str::from_utf8(entry).ok()?;
    let bare = entry.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = match bare {
        Some(bare) => SocketAddr::new(IpAddr::V6(bare.parse().ok()?), 0),
        None => match entry.parse::<IpAddr>() {
            Ok(address) => SocketAddr::new(address, 0),
            Err(_) => entry.parse().ok()?,
        },
    };
    // A scope says nothing to anyone but the proxy's own machine.
    let is_scoped = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
    (!is_scoped).then(|| SocketAddr::new(address.ip().to_canonical(), address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 10.0.0.0/8 and fd00::/8 are trusted.
    fn find(lines: &[&str]) -> Option<String> {
        let is_trusted = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.octets()[0] == 10,
            IpAddr::V6(v6) => v6.octets()[0] == 0xfd,
        };
        caller(lines.iter().map(|line| line.as_bytes()), is_trusted).map(|found| found.to_string())
    }

    #[test]
    fn the_right_most_untrusted_entry() {
        let long = "10.0.0.1,".repeat(MAX_ENTRIES - 1);
        let too_long = "10.0.0.1,".repeat(MAX_ENTRIES);
        let in_time = format!("192.0.2.1,{}", long.trim_end_matches(','));
        let too_late = format!("192.0.2.1,{}", too_long.trim_end_matches(','));
        let table: &[(&[&str], Option<&str>)] = &[
            (&["192.0.2.1"], Some("192.0.2.1:0")),
            (&["198.51.100.9, 192.0.2.1"], Some("192.0.2.1:0")),
            (&["198.51.100.9,192.0.2.1,10.0.0.1"], Some("192.0.2.1:0")),
            (&["198.51.100.9", "192.0.2.1, 10.0.0.1", "10.1.1.1"], Some("192.0.2.1:0")),
            (&["192.0.2.1", "10.0.0.1"], Some("192.0.2.1:0")),
            (&["192.0.2.1:567"], Some("192.0.2.1:567")),
            (&["[2001:db8::1]:5"], Some("[2001:db8::1]:5")),
            (&["[2001:db8::1]"], Some("[2001:db8::1]:0")),
            (&["2001:db8::1, fd00::1"], Some("[2001:db8::1]:0")),
            (&["::ffff:192.0.2.1"], Some("192.0.2.1:0")),
            (&["192.0.2.1, ::ffff:10.0.0.1"], Some("192.0.2.1:0")),
            (&["\t192.0.2.1 ,, , 10.0.0.1\t,"], Some("192.0.2.1:0")),
            (&["nonsense, 192.0.2.1"], Some("192.0.2.1:0")),
            (&[&in_time], Some("192.0.2.1:0")),
            (&[&too_late], None),
            (&[], None),
            (&["", " "], None),
            (&["10.0.0.1, 10.0.0.2"], None),
            (&["192.0.2.1, nonsense"], None),
            (&["192.0.2.1, unknown, 10.0.0.1"], None),
            (&["192.0.2.1, _hidden"], None),
            (&["192.0.2.1:"], None),
            (&["192.0.2.1:99999"], None),
            (&["192.0.2"], None),
            (&["192.0.2.01"], None),
            (&["192.0.2.1/32"], None),
            (&["[192.0.2.1]"], None),
            (&["[2001:db8::1"], None),
            (&["[2001:db8::1]5"], None),
            (&["fe80::1%eth0"], None),
            (&["[fe80::1%1]:5"], None),
            (&["\"192.0.2.1\""], None),
            (&["for=192.0.2.1"], None),
            (&["192.0.2.1 10.0.0.1"], None),
        ];
        for (lines, expected) in table {
            assert_eq!(find(lines).as_deref(), *expected, "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn what_a_caller_writes_changes_nothing(
            lines in proptest::collection::vec("[ -~]{0,40}", 0..5),
            last in "[ -~&&[^,]]{0,20}",
        ) {
            let written = lines.iter().map(String::as_str);
            let all: Vec<&str> = written.chain(["203.0.113.7, 10.0.0.1"]).collect();
            prop_assert_eq!(find(&all), Some("203.0.113.7:0".to_owned()));
            let joined = format!("{}, {last}, 203.0.113.7", lines.join(","));
            prop_assert_eq!(find(&[&joined]), Some("203.0.113.7:0".to_owned()));
        }
    }
}
