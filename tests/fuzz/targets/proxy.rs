//! PROXY headers: any split gives the same outcome, and what is taken is what another reading of
//! the specification finds, written as a list of conditions.

#![no_main]

mod split;

use libfuzzer_sys::fuzz_target;
use pyrycode_relay::protocol::proxy::{Proxy, Reader};
use std::net::{IpAddr, SocketAddr};

fuzz_target!(|data: &[u8]| {
    let (reads, stream) = split::split(data);
    let mut reader = Reader::default();
    assert_eq!(reader.read(b""), Proxy::NeedMore);
    let (mut came, mut outcome) = (0, Proxy::NeedMore);
    for read in reads {
        outcome = reader.read(read);
        if let Proxy::Header { consumed, .. } = &mut outcome {
            *consumed += came;
        }
        if outcome != Proxy::NeedMore {
            break;
        }
        came += read.len();
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

fn parse(bytes: &[u8]) -> Proxy {
    Reader::default().read(bytes)
}

/// The source, if any, of what must be a header from the first byte to the last.
fn read(header: &[u8]) -> Option<Option<SocketAddr>> {
    let payload = header.get(16..)?;
    let is_header = header.starts_with(b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a")
        && usize::from(header[14]) * 256 + usize::from(header[15]) == payload.len();
    let address_bytes = match (header[12], header[13]) {
        _ if !is_header => return None,
        (0x20, _) => return Some(None),
        (0x21, 0x11) => 4,
        (0x21, 0x21) => 16,
        (0x21, 0 | 1 | 2 | 0x10 | 0x12 | 0x20 | 0x22 | 0x30 | 0x31 | 0x32) => return Some(None),
        _ => return None,
    };
    let port = payload.get(2 * address_bytes..2 * address_bytes + 4)?;
    let address: IpAddr = match <[u8; 4]>::try_from(&payload[..address_bytes]) {
        Ok(v4) => v4.into(),
        Err(_) => <[u8; 16]>::try_from(&payload[..16]).unwrap().into(),
    };
    Some(Some(SocketAddr::new(address, u16::from(port[0]) << 8 | u16::from(port[1]))))
}
