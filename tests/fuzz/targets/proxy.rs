//! PROXY headers: any split gives the same outcome, and what is taken is what another reading of
//! the specification finds, written as a list of conditions.

#![no_main]

mod split;

use libfuzzer_sys::fuzz_target;
use pyrycode_relay::protocol::proxy::{MAX_HEADER_BYTES, Proxy, parse};
use std::net::{IpAddr, SocketAddr};

fuzz_target!(|data: &[u8]| {
    let (reads, stream) = split::split(data);
    let mut came = 0;
    let mut outcome = parse(b"");
    assert_eq!(outcome, Proxy::NeedMore);
    for read in reads {
        came += read.len();
        outcome = parse(&stream[..came]);
        if outcome != Proxy::NeedMore {
            break;
        }
        assert!(came < MAX_HEADER_BYTES);
    }
    assert_eq!(outcome, parse(stream));
    match outcome {
        Proxy::Header { source, consumed } => {
            assert_eq!(read(&stream[..consumed]), Some(source));
            // Nothing less is a header, and what follows does not matter.
            assert_eq!(parse(&stream[..consumed - 1]), Proxy::NeedMore);
            assert_eq!(parse(&stream[..consumed]), outcome);
        }
        Proxy::NeedMore => assert!(read(stream).is_none()),
        Proxy::Bad => assert!((0..=stream.len()).all(|end| read(&stream[..end]).is_none())),
    }
});

/// The source of what must be a header from the first byte to the last.
fn read(header: &[u8]) -> Option<SocketAddr> {
    let payload = header.get(16..)?;
    let address_bytes = match header[13] {
        0x11 => 4,
        0x21 => 16,
        _ => return None,
    };
    let is_header = header.starts_with(b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21")
        && usize::from(header[14]) * 256 + usize::from(header[15]) == payload.len()
        && header.len() <= MAX_HEADER_BYTES;
    let extensions = payload.get(2 * address_bytes + 4..)?;
    if !is_header || !are_extensions(extensions) {
        return None;
    }
    let address: IpAddr = match <[u8; 4]>::try_from(&payload[..address_bytes]) {
        Ok(v4) => v4.into(),
        Err(_) => <[u8; 16]>::try_from(&payload[..16]).unwrap().into(),
    };
    let port = &payload[2 * address_bytes..];
    Some(SocketAddr::new(address, u16::from(port[0]) << 8 | u16::from(port[1])))
}

fn are_extensions(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [_, high, low, rest @ ..] => {
            let length = usize::from(*high) * 256 + usize::from(*low);
            length <= rest.len() && are_extensions(&rest[length..])
        }
        _ => false,
    }
}
