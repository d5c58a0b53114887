//! What a connection begins with, before anything is read of it as HTTP or TLS: the PROXY header
//! that may come before everything else (PROTOCOL.md, chapter 6), and HTTP in the clear where TLS
//! should be. Bytes in, in any number of pieces, and what they mean out.

use super::opening::{Begins, Opening};
use super::proxy::{self, Proxy};
use std::net::SocketAddr;

/// Reads what comes first. Nothing on the heap where there is no PROXY header to come.
#[derive(Debug, Default)]
pub struct Preamble {
    /// Until the header is whole.
    proxy_header: Option<Box<proxy::Reader>>,
    /// Until it is known that what comes is not HTTP in the clear.
    opening: Option<Opening>,
}

/// What has come of a preamble that is not over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HalfRead {
    /// Of a PROXY header, if it is not whole: its fixed part and the addresses, as far as they have
    /// come, and how many bytes behind them were passed over.
    pub proxy_header: Option<(Vec<u8>, usize)>,
    /// The first bytes behind it, if it is not known yet whether they are HTTP in the clear.
    pub opening: Option<Vec<u8>>,
}

/// What bytes mean that came first, or behind what did.
#[derive(Debug, PartialEq, Eq)]
pub struct Preface {
    /// The header was whole with these bytes, and this is whom it names.
    pub named: Option<SocketAddr>,
    /// What to do then.
    pub next: Next,
}

/// What comes behind a preamble, if it is over.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// More must come first.
    NeedMore,
    /// There is no PROXY header where one must be.
    NoHeader,
    /// HTTP in the clear, where TLS should be.
    PlainHttp,
    /// What it is all about: `held`, which came before, and then the bytes from `from` on. There
    /// may be none of either.
    Data {
        /// The first bytes, where they came in another piece.
        held: Vec<u8>,
        /// Where the rest begins among those of this piece.
        from: usize,
    },
}

impl Preamble {
    /// Of a connection that begins with a PROXY header, or does not, and that goes on with TLS, or
    /// does not.
    #[must_use]
    pub fn new(with_header: bool, with_tls: bool) -> Self {
        Self {
            proxy_header: with_header.then(Box::default),
            opening: with_tls.then(Opening::default),
        }
    }

    /// Whether all that comes from now on is what it is all about.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.proxy_header.is_none() && self.opening.is_none()
    }

    /// What has come, with which another process can go on.
    #[must_use]
    pub fn half_read(&self) -> HalfRead {
        let proxy_header = self.proxy_header.as_ref().map(|header| {
            let (kept, skipped_bytes) = header.half_read();
            (kept.to_vec(), skipped_bytes)
        });
        HalfRead { proxy_header, opening: self.opening.map(|opening| opening.held().to_vec()) }
    }

    /// Goes on where another is. None if none can be there.
    #[must_use]
    pub fn resume(half_read: &HalfRead) -> Option<Self> {
        let HalfRead { proxy_header, opening } = half_read;
        let mut preamble = Self::new(proxy_header.is_some(), opening.is_some());
        if let Some((kept, skipped_bytes)) = proxy_header {
            preamble.proxy_header = Some(Box::new(proxy::Reader::resume(kept, *skipped_bytes)?));
        }
        if let (Some(held), Some(opening)) = (opening, &mut preamble.opening)
            && !held.is_empty()
            && opening.read(held) != Begins::NeedMore
        {
            return None;
        }
        Some(preamble)
    }

    /// Takes what has come since the last call. Nothing must follow [`Next::NoHeader`].
    pub fn read(&mut self, input: &[u8]) -> Preface {
        let (mut named, mut from) = (None, 0);
        match self.proxy_header.as_mut().map(|header| header.read(input)) {
            None => {}
            Some(Proxy::NeedMore) => return Preface { named, next: Next::NeedMore },
            Some(Proxy::Bad) => return Preface { named, next: Next::NoHeader },
            Some(Proxy::Header { source, consumed }) => {
                self.proxy_header = None;
                (named, from) = (source, consumed);
            }
        }
        let rest = input.get(from..).unwrap_or_default();
        let next = match &mut self.opening {
            _ if rest.is_empty() => Next::NeedMore,
            None => Next::Data { held: Vec::new(), from },
            Some(opening) => match opening.read(rest) {
                Begins::NeedMore => Next::NeedMore,
                Begins::WithHttp => {
                    self.opening = None;
                    Next::PlainHttp
                }
                Begins::Otherwise => {
                    let held = opening.held().to_vec();
                    self.opening = None;
                    Next::Data { held, from }
                }
            },
        };
        Preface { named, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PROXY v2 header for TCP over IPv4, from 192.0.2.1:5 to 192.0.2.2:443.
    const HEADER: &[u8] =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\0\x05\x01\xbb";

    /// Who is named, the end, and the data that comes of `bytes` in pieces of this size.
    fn read(with: (bool, bool), bytes: &[u8], size: usize) -> (Option<SocketAddr>, Next, Vec<u8>) {
        let mut preamble = Preamble::new(with.0, with.1);
        let (mut who, mut data) = (None, Vec::new());
        for piece in bytes.chunks(size) {
            let Preface { named, next } = preamble.read(piece);
            who = who.or(named);
            match next {
                Next::NeedMore => {}
                Next::Data { held, from } => {
                    data.extend(held);
                    data.extend(&piece[from..]);
                    assert!(preamble.is_over());
                }
                end => return (who, end, data),
            }
        }
        (who, Next::NeedMore, data)
    }

    #[test]
    fn what_is_behind_it_is_whole_however_it_is_split() {
        let peer = Some("192.0.2.1:5".parse().unwrap());
        // Four letters that HTTP might begin with, and what no HTTP does.
        for data in [&b"\x16\x03\x01\0\x05hello"[..], b"GETX and so on", b"x"] {
            for (header, who) in [(&b""[..], None), (HEADER, peer)] {
                let all = [header, data].concat();
                for size in 1..=all.len() {
                    for with_tls in [false, true] {
                        let with = (!header.is_empty(), with_tls);
                        let told = read(with, &all, size);
                        assert_eq!(told, (who, Next::NeedMore, data.to_vec()), "{size} {with:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn http_in_the_clear_is_seen_where_tls_should_be() {
        for (header, with_header) in [(&b""[..], false), (HEADER, true)] {
            let all = [header, b"GET / HTTP/1.1\r\n"].concat();
            for size in 1..=all.len() {
                let (who, next, data) = read((with_header, true), &all, size);
                assert_eq!((who.is_some(), next), (with_header, Next::PlainHttp), "{size}");
                assert!(data.is_empty());
            }
        }
        let mut preamble = Preamble::new(false, true);
        assert_eq!(preamble.read(b"GET / ").next, Next::PlainHttp);
        let more = Next::Data { held: Vec::new(), from: 0 };
        assert_eq!(preamble.read(b"HTTP/1.1").next, more, "it is for who answers that");
    }

    #[test]
    fn who_brings_no_header_where_one_must_be_is_found_out_at_once() {
        for size in 1..5 {
            let (who, next, _) = read((true, true), b"GET / HTTP/1.1\r\n", size);
            assert_eq!((who, next), (None, Next::NoHeader));
        }
    }

    #[test]
    fn it_goes_on_from_plain_data_wherever_it_is() {
        let peer = Some("192.0.2.1:5".parse().unwrap());
        let mut extended = HEADER.to_vec();
        extended[15] += 3;
        let extended = [extended.as_slice(), b"ext"].concat();
        for header in [HEADER, &extended] {
            let all = [header, b"GETX and so on"].concat();
            for at in 0..header.len() + 4 {
                let mut first = Preamble::new(true, true);
                let Preface { named, next } = first.read(&all[..at]);
                assert_eq!(next, Next::NeedMore, "{at}");
                let mut second = Preamble::resume(&first.half_read()).unwrap();
                let later = second.read(&all[at..]);
                assert_eq!(named.or(later.named), peer, "{at}");
                let Next::Data { held, from } = later.next else { panic!("{later:?}") };
                assert_eq!([&held, &all[at + from..]].concat(), b"GETX and so on", "{at}");
            }
        }
        let bad = |kept: &[u8], skipped_bytes, opening: Option<&[u8]>| HalfRead {
            proxy_header: Some((kept.to_vec(), skipped_bytes)),
            opening: opening.map(<[u8]>::to_vec),
        };
        for given in [
            bad(b"\r\nx", 0, None),
            bad(HEADER, 0, None),
            bad(&HEADER[..20], 1, None),
            bad(&HEADER[..3], 0, Some(b"GET /")),
            bad(&HEADER[..3], 0, Some(b"X")),
            bad(&extended[..28], 3, None),
        ] {
            assert!(Preamble::resume(&given).is_none(), "{given:?}");
        }
    }

    #[test]
    fn a_header_by_itself_leaves_all_to_come() {
        let mut preamble = Preamble::new(true, false);
        let Preface { named, next } = preamble.read(HEADER);
        assert!(named.is_some() && next == Next::NeedMore && preamble.is_over());
        assert_eq!(preamble.read(b"abc").next, Next::Data { held: Vec::new(), from: 0 });
        assert!(Preamble::new(false, false).is_over());
    }
}
