//! Headers as proxies write them, and everything that is none.

use super::*;
use proptest::prelude::*;

const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0x12, 0x34, 0x01, 0xbb];

fn v6() -> Vec<u8> {
    let source: Ipv6Addr = "2001:db8::1".parse().unwrap();
    let to: Ipv6Addr = "2001:db8::2".parse().unwrap();
    [&source.octets()[..], &to.octets(), &[0, 80, 1, 187]].concat()
}

fn header(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&SIGNATURE[..], &[command, family], &length, payload].concat()
}

fn extension(length: usize) -> Vec<u8> {
    let [high, low] = u16::try_from(length).unwrap().to_be_bytes();
    [&[4, high, low][..], &vec![0xaa; length]].concat()
}

/// What comes out if the bytes come one by one.
fn parse_bytewise(bytes: &[u8]) -> Proxy {
    (0..=bytes.len())
        .map(|end| parse(&bytes[..end]))
        .find(|outcome| *outcome != Proxy::NeedMore)
        .unwrap_or(Proxy::NeedMore)
}

#[test]
fn whole_headers() {
    let long = [&V4[..], &extension(MAX_HEADER_BYTES - FIXED_BYTES - 12 - 3)].concat();
    let several = [&v6()[..], &extension(0), &extension(5), &extension(100)].concat();
    let table = [
        (header(0x21, 0x11, &V4), "192.0.2.1:4660"),
        (header(0x21, 0x21, &v6()), "[2001:db8::1]:80"),
        (header(0x21, 0x11, &long), "192.0.2.1:4660"),
        (header(0x21, 0x21, &several), "[2001:db8::1]:80"),
    ];
    for (bytes, source) in table {
        let expected = Proxy::Header { source: source.parse().unwrap(), consumed: bytes.len() };
        assert_eq!(parse(&bytes), expected);
        assert_eq!(parse_bytewise(&bytes), expected);
        let more = [&bytes[..], b"GET / HTTP/1.1\r\n"].concat();
        assert_eq!(parse(&more), expected, "what follows is left alone");
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end]), Proxy::NeedMore, "{end}");
        }
    }
}

#[test]
fn what_is_no_header_is_seen_at_its_first_wrong_byte() {
    let good = header(0x21, 0x11, &V4);
    for at in 0..14 {
        for value in 0..=255 {
            let mut bytes = good[..=at].to_vec();
            bytes[at] = value;
            let right = value == good[at] || (at == 13 && value == TCP_OVER_IPV6);
            assert_eq!(parse(&bytes) == Proxy::Bad, !right, "{value:#04x} at {at}");
        }
    }
    // LOCAL; version 1; UDP; Unix; unspecified.
    for (command, family) in
        [(0x20, 0x11), (0x11, 0x11), (0x21, 0x12), (0x21, 0x22), (0x21, 0x31), (0x21, 0x00)]
    {
        assert_eq!(parse(&header(command, family, &V4)), Proxy::Bad, "{command:#x} {family:#x}");
    }
    for text in ["PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n", "GET / HTTP/1.1\r\n", "\x16\x03\x01"] {
        assert_eq!(parse(text.as_bytes()), Proxy::Bad, "{text}");
    }
}

#[test]
fn lengths() {
    let with_length = |family, length: u16| {
        let mut bytes = header(0x21, family, &[0; 600]);
        bytes[14..16].copy_from_slice(&length.to_be_bytes());
        parse(&bytes)
    };
    for (family, least) in [(0x11, 12), (0x21, 36)] {
        for length in 0..least {
            assert_eq!(with_length(family, length), Proxy::Bad, "{family:#x} {length}");
        }
        assert!(matches!(with_length(family, least), Proxy::Header { .. }));
        for length in [521, 600, 0x1000, u16::MAX] {
            assert_eq!(with_length(family, length), Proxy::Bad, "{family:#x} {length}");
        }
    }
    // The first half of the length says it already.
    let mut bytes = header(0x21, 0x11, &V4);
    bytes[14] = 3;
    assert_eq!(parse(&bytes[..15]), Proxy::Bad);
    bytes[14] = 2;
    assert_eq!(parse(&bytes[..15]), Proxy::NeedMore);
}

#[test]
fn extensions_end_where_the_header_does() {
    for extensions in
        [&[4][..], &[4, 0], &[4, 0, 1], &[4, 0, 0, 4], &[4, 0, 2, 9], &[4, 0xff, 0xff, 0]]
    {
        let bytes = header(0x21, 0x11, &[&V4[..], extensions].concat());
        assert_eq!(parse(&bytes), Proxy::Bad, "{extensions:?}");
        assert_eq!(parse_bytewise(&bytes), Proxy::Bad, "{extensions:?}");
    }
}

proptest! {
    #[test]
    fn any_split_gives_the_same(
        bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..100),
            (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..600)).prop_map(|(is_v6, rest)| {
                let family = if is_v6 { TCP_OVER_IPV6 } else { TCP_OVER_IPV4 };
                header(PROXY, family, &rest)
            }),
            (proptest::collection::vec(0usize..100, 0..8), any::<Vec<u8>>()).prop_map(
                |(lengths, rest)| {
                    let extensions: Vec<u8> = lengths.into_iter().flat_map(extension).collect();
                    let mut bytes = header(PROXY, TCP_OVER_IPV4, &[&V4[..], &extensions].concat());
                    bytes.extend(rest);
                    bytes
                }
            ),
        ],
        first in 0usize..700,
    ) {
        let whole = parse(&bytes);
        prop_assert_eq!(parse_bytewise(&bytes), whole);
        let part = parse(&bytes[..first.min(bytes.len())]);
        prop_assert!(part == Proxy::NeedMore || part == whole);
        if let Proxy::Header { consumed, .. } = whole {
            prop_assert!(consumed <= MAX_HEADER_BYTES && consumed <= bytes.len());
            prop_assert_eq!(parse(&bytes[..consumed]), whole);
        }
    }
}
