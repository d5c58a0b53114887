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

/// What comes out if the bytes come in pieces of this size: of all bytes, so many are consumed.
fn read_in_pieces(bytes: &[u8], size: usize) -> Proxy {
    let mut reader = Reader::default();
    let mut before = 0;
    for piece in bytes.chunks(size) {
        match reader.read(piece) {
            Proxy::NeedMore => before += piece.len(),
            Proxy::Header { source, consumed } => {
                return Proxy::Header { source, consumed: before + consumed };
            }
            Proxy::Bad => return Proxy::Bad,
        }
    }
    Proxy::NeedMore
}

fn read(bytes: &[u8]) -> Proxy {
    Reader::default().read(bytes)
}

#[test]
fn whole_headers() {
    let longest = [&V4[..], &extension(65_535 - 12 - 3)].concat();
    let several = [&v6()[..], &extension(0), &extension(5), &extension(100)].concat();
    let v4 = Some("192.0.2.1:4660");
    let v6_source = Some("[2001:db8::1]:80");
    let table = [
        (header(0x21, 0x11, &V4), v4),
        (header(0x21, 0x21, &v6()), v6_source),
        (header(0x21, 0x11, &longest), v4),
        (header(0x21, 0x21, &several), v6_source),
        // What is behind the addresses is nobody's business, whole extensions or not.
        (header(0x21, 0x11, &[&V4[..], &[4, 0]].concat()), v4),
        // A health check: of HAProxy, of a load balancer with dummy addresses, of Traefik.
        (header(0x20, 0x00, &[]), None),
        (header(0x20, 0x11, &V4), None),
        (header(0x20, 0x11, &longest), None),
        (header(0x20, 0x21, &v6()), None),
        (header(0x20, 0xff, &[1, 2, 3]), None),
        // Unspecified, alone and with extensions; UDP; UNIX.
        (header(0x21, 0x00, &[]), None),
        (header(0x21, 0x00, &extension(300)), None),
        (header(0x21, 0x12, &V4), None),
        (header(0x21, 0x22, &v6()), None),
        (header(0x21, 0x31, &[0; 216]), None),
        (header(0x21, 0x32, &[0; 216]), None),
    ];
    for (bytes, source) in table {
        let source = source.map(|source| source.parse().unwrap());
        let expected = Proxy::Header { source, consumed: bytes.len() };
        assert_eq!(read(&bytes), expected);
        assert_eq!(read_in_pieces(&bytes, 1), expected);
        let more = [&bytes[..], b"GET / HTTP/1.1\r\n"].concat();
        assert_eq!(read(&more), expected, "what follows is left alone");
        for end in (0..bytes.len().min(600)).chain([bytes.len() - 1]) {
            assert_eq!(read(&bytes[..end]), Proxy::NeedMore, "{end}");
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
            let right = match at {
                12 => matches!(value, 0x20 | 0x21),
                13 => value >> 4 <= 3 && value & 0xf <= 2,
                _ => value == good[at],
            };
            assert_eq!(read(&bytes) == Proxy::Bad, !right, "{value:#04x} at {at}");
        }
    }
    // Version 1, and commands and families that nobody has specified.
    for (command, family) in
        [(0x11, 0x11), (0x10, 0x00), (0x22, 0x11), (0x21, 0x41), (0x21, 0x13), (0x21, 0xff)]
    {
        assert_eq!(read(&header(command, family, &V4)), Proxy::Bad, "{command:#x} {family:#x}");
    }
    for text in ["PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n", "GET / HTTP/1.1\r\n", "\x16\x03\x01"] {
        assert_eq!(read(text.as_bytes()), Proxy::Bad, "{text}");
    }
}

#[test]
fn addresses_that_are_named_must_be_there() {
    let with_length = |family, length: u16| {
        let mut bytes = header(0x21, family, &[0; 600]);
        bytes[14..16].copy_from_slice(&length.to_be_bytes());
        read(&bytes)
    };
    for (family, least) in [(0x11, 12), (0x21, 36)] {
        for length in 0..least {
            assert_eq!(with_length(family, length), Proxy::Bad, "{family:#x} {length}");
        }
        for length in [least, least + 1, 600] {
            assert!(matches!(with_length(family, length), Proxy::Header { source: Some(_), .. }));
        }
        assert_eq!(with_length(family, 601), Proxy::NeedMore);
        assert_eq!(with_length(family, u16::MAX), Proxy::NeedMore);
    }
}

#[test]
fn what_a_connection_costs_does_not_depend_on_the_header() {
    assert!(size_of::<Reader>() <= 72);
}

proptest! {
    #[test]
    fn any_split_gives_the_same(
        bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..100),
            (prop_oneof![Just(LOCAL), Just(PROXY)], any::<u8>(),
             proptest::collection::vec(any::<u8>(), 0..600))
                .prop_map(|(command, family, rest)| header(command, family, &rest)),
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
        size in 1usize..700,
    ) {
        let whole = read(&bytes);
        prop_assert_eq!(read_in_pieces(&bytes, 1), whole);
        prop_assert_eq!(read_in_pieces(&bytes, size), whole);
        let part = read(&bytes[..size.min(bytes.len())]);
        prop_assert!(part == Proxy::NeedMore || part == whole);
        if let Proxy::Header { consumed, .. } = whole {
            prop_assert!(consumed <= bytes.len());
            prop_assert_eq!(read(&bytes[..consumed]), whole);
            prop_assert_eq!(read(&bytes[..consumed - 1]), Proxy::NeedMore);
        }
    }
}
