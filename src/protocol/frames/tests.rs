//! The decoder as its caller sees it: streams of frames in, cut into reads, messages out.

use proptest::prelude::*;
use proptest::sample::Index;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::OpCode;

use super::*;

const FIN: u8 = 0x80;
const CONTINUE: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = FIN | 8;
const PING: u8 = FIN | 9;
const PONG: u8 = FIN | 10;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

#[derive(Clone, PartialEq, Eq)]
enum Owned {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>),
}

impl Owned {
    fn borrowed(&self) -> Incoming<'_> {
        match self {
            Self::Text(text) => Incoming::Text(text),
            Self::Binary(bytes) => Incoming::Binary(bytes),
            Self::Ping(bytes) => Incoming::Ping(bytes),
            Self::Pong(bytes) => Incoming::Pong(bytes),
            Self::Close(code) => Incoming::Close(*code),
        }
    }
}

impl fmt::Debug for Owned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.borrowed().fmt(f)
    }
}

impl Owned {
    /// `None` for a fragment, which says nothing by itself.
    fn of(incoming: Incoming<'_>) -> Option<Self> {
        Some(match incoming {
            Incoming::Text(text) => Self::Text(text.to_owned()),
            Incoming::Binary(bytes) => Self::Binary(bytes.to_owned()),
            Incoming::Ping(bytes) => Self::Ping(bytes.to_owned()),
            Incoming::Pong(bytes) => Self::Pong(bytes.to_owned()),
            Incoming::Close(code) => Self::Close(code),
            Incoming::Fragment => return None,
        })
    }
}

/// A client frame: `first` holds FIN, the reserved bits and the opcode.
fn masked(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader {
        is_final: first & FIN != 0,
        rsv1: first & 0x40 != 0,
        rsv2: first & 0x20 != 0,
        rsv3: first & 0x10 != 0,
        opcode: OpCode::from(first & 15),
        mask: Some(mask),
    };
    let mut frame = Vec::new();
    header.format(payload.len() as u64, &mut frame).unwrap();
    frame.extend(payload.iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]));
    frame
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    masked(first, MASK, payload)
}

/// Feeds one read and appends what comes out of it.
fn feed(decoder: &mut Decoder, read: &[u8], out: &mut Vec<Owned>) -> Result<(), FrameError> {
    let mut read = read.to_vec();
    let mut input = &mut read[..];
    while let Some(incoming) = decoder.next(&mut input)? {
        out.extend(Owned::of(incoming));
    }
    assert!(input.is_empty(), "Ok(None) means that all input was consumed");
    Ok(())
}

fn decode<'r>(
    reads: impl IntoIterator<Item = &'r [u8]>,
) -> (Vec<Owned>, Result<Decoder, FrameError>) {
    let mut decoder = Decoder::default();
    let mut out = Vec::new();
    for read in reads {
        if let Err(error) = feed(&mut decoder, read, &mut out) {
            return (out, Err(error));
        }
    }
    (out, Ok(decoder))
}

fn decode_whole(stream: &[u8]) -> (Vec<Owned>, Result<Decoder, FrameError>) {
    decode([stream])
}

fn assert_idle(decoder: &Decoder) {
    assert!(!decoder.is_mid_message());
    assert_eq!(decoder.buffered_bytes(), 0);
}

#[test]
fn examples_of_the_rfc() {
    // RFC 6455, section 5.7: the masked ones as they stand, the others as a client must send them.
    let hello = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
    let pong = b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
    let text = Owned::Text("Hello".into());
    assert_eq!(decode_whole(hello).0, vec![text.clone()]);
    assert_eq!(decode_whole(pong).0, [Owned::Pong(b"Hello".into())]);
    assert_eq!(
        decode_whole(&[frame(TEXT, b"Hel"), frame(FIN | CONTINUE, b"lo")].concat()).0,
        [text]
    );
    assert_eq!(decode_whole(&frame(PING, b"Hello")).0, [Owned::Ping(b"Hello".into())]);
    for payload in [vec![7; 256], vec![7; 65_536]] {
        assert_eq!(decode_whole(&frame(FIN | BINARY, &payload)).0, [Owned::Binary(payload)]);
    }
    for unmasked in [&b"\x81\x05Hello"[..], b"\x01\x03Hel", b"\x89\x05Hello", b"\x82\x7e\x01\x00"] {
        assert_eq!(
            decode_whole(unmasked).1.unwrap_err(),
            FrameError::Protocol("frame is not masked")
        );
    }
}

/// A header that claims a length in a form of the test's choosing, then the masking key.
fn claim(first: u8, length: &[u8]) -> Vec<u8> {
    [&[first, 0x80 | length[0]], &length[1..], &MASK].concat()
}

#[test]
fn violations_fail_with_the_code_of_the_rfc() {
    let begun = frame(TEXT, b"Hel");
    let table: Vec<(&str, Vec<u8>, u16)> = vec![
        ("unmasked text", b"\x81\x00".to_vec(), 1002),
        ("unmasked close", b"\x88\x00".to_vec(), 1002),
        ("RSV1", frame(FIN | 0x40 | TEXT, b"x"), 1002),
        ("RSV2", frame(FIN | 0x20 | TEXT, b"x"), 1002),
        ("RSV3", frame(FIN | 0x10 | TEXT, b"x"), 1002),
        ("RSV1 on a ping", frame(PING | 0x40, b"x"), 1002),
        ("RSV1 on a continuation", [begun.clone(), frame(0xc0, b"x")].concat(), 1002),
        ("opcode 3", frame(FIN | 3, b""), 1002),
        ("opcode 7, not final", frame(7, b"x"), 1002),
        ("opcode 11", frame(FIN | 11, b""), 1002),
        ("opcode 15", frame(FIN | 15, b"x"), 1002),
        ("opcode 5 in a message", [begun.clone(), frame(FIN | 5, b"x")].concat(), 1002),
        ("fragmented ping", frame(9, b"x"), 1002),
        ("fragmented pong", frame(10, b""), 1002),
        ("fragmented close", frame(8, b""), 1002),
        ("ping of 126 bytes", frame(PING, &[b'x'; 126]), 1002),
        ("pong that claims 65,536 bytes", claim(PONG, b"\x7f\0\0\0\0\0\x01\0\0"), 1002),
        ("close of 126 bytes", frame(CLOSE, &[3; 126]), 1002),
        ("final continuation of nothing", frame(FIN | CONTINUE, b"x"), 1002),
        ("first continuation of nothing", frame(CONTINUE, b""), 1002),
        (
            "continuation after the end",
            [begun.clone(), frame(FIN, b"lo"), frame(FIN, b"")].concat(),
            1002,
        ),
        ("text in a message", [begun.clone(), frame(FIN | TEXT, b"x")].concat(), 1002),
        ("binary in a message", [begun.clone(), frame(BINARY, b"x")].concat(), 1002),
        ("top bit of the length", claim(FIN | TEXT, b"\x7f\x80\0\0\0\0\0\0\x01"), 1002),
        ("all bits of the length", claim(FIN | TEXT, &[0xff; 9]), 1002),
        ("5 bytes in the 16-bit form", claim(FIN | TEXT, b"\x7e\0\x05"), 1002),
        ("125 bytes in the 16-bit form", claim(FIN | TEXT, b"\x7e\0\x7d"), 1002),
        ("a ping in the 16-bit form", claim(PING, b"\x7e\0\x05"), 1002),
        ("65,535 bytes in the 64-bit form", claim(FIN | TEXT, b"\x7f\0\0\0\0\0\0\xff\xff"), 1002),
        ("close of one byte", frame(CLOSE, b"\x03"), 1002),
        ("reason not UTF-8", frame(CLOSE, b"\x03\xe8\xce\xba\xff"), 1007),
        ("reason ends in a code point", frame(CLOSE, b"\x03\xe8\xe2\x82"), 1007),
        ("text not UTF-8", frame(FIN | TEXT, b"Hell\xff"), 1007),
        ("text ends in a code point", frame(FIN | TEXT, b"\xf0\x9f\x98"), 1007),
        ("surrogate", frame(FIN | TEXT, b"\xed\xa0\x80"), 1007),
        (
            "fragments end in a code point",
            [frame(TEXT, b"\xce"), frame(FIN | CONTINUE, b"")].concat(),
            1007,
        ),
        ("262,145 bytes claimed", claim(FIN | TEXT, b"\x7f\0\0\0\0\0\x04\0\x01"), 1009),
        ("2^63 - 1 bytes claimed", claim(BINARY, b"\x7f\x7f\xff\xff\xff\xff\xff\xff\xff"), 1009),
        (
            "fragments over the limit",
            [begun, claim(CONTINUE, b"\x7f\0\0\0\0\0\x03\xff\xfe")].concat(),
            1009,
        ),
    ];
    for (name, stream, code) in table {
        let whole = decode_whole(&stream).1.expect_err(name);
        assert_eq!(whole.close().code, code, "{name}: {whole}");
        let bytewise = decode(stream.chunks(1)).1.expect_err(name);
        assert_eq!(bytewise, whole, "{name}, byte by byte");
    }
}

#[test]
fn close_codes_are_those_that_may_be_on_the_wire() {
    assert_eq!(decode_whole(&frame(CLOSE, b"")).0, [Owned::Close(None)]);
    for code in 0..=u16::MAX {
        let payload = [&code.to_be_bytes()[..], "grüße".as_bytes()].concat();
        let (out, end) = decode_whole(&frame(CLOSE, &payload));
        let is_allowed =
            matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) && code != 1004 && code != 1015;
        if is_allowed {
            assert_eq!(out, [Owned::Close(Some(code))]);
            assert_idle(&end.unwrap());
        } else {
            assert_eq!(end.unwrap_err().close().code, 1002, "{code}");
        }
    }
}

/// A stream with every kind of frame, and what it says.
fn mixed_stream() -> (Vec<u8>, Vec<Owned>) {
    let long = "žluťoučký kůň 🐎 ".repeat(8);
    let (head, tail) = long.as_bytes().split_at(23);
    let stream = [
        frame(FIN | TEXT, b"Hello"),
        frame(PING, b"p1"),
        frame(TEXT, head),
        frame(PING, b""),
        frame(CONTINUE, b""),
        frame(PONG, &[9; 125]),
        frame(FIN | CONTINUE, tail),
        frame(FIN | TEXT, b""),
        frame(BINARY, b""),
        frame(FIN | CONTINUE, &[0xff; 200]),
        frame(FIN | BINARY, &[0xfe; 3]),
        frame(FIN | TEXT, long.as_bytes()),
        frame(CLOSE, b"\x0f\xa0bye"),
    ];
    let expected = vec![
        Owned::Text("Hello".into()),
        Owned::Ping(b"p1".into()),
        Owned::Ping(b"".into()),
        Owned::Pong(vec![9; 125]),
        Owned::Text(long.clone()),
        Owned::Text(String::new()),
        Owned::Binary(vec![0xff; 200]),
        Owned::Binary(vec![0xfe; 3]),
        Owned::Text(long),
        Owned::Close(Some(4000)),
    ];
    (stream.concat(), expected)
}

#[test]
fn reads_may_end_anywhere() {
    let (stream, expected) = mixed_stream();
    for size in 1..=stream.len() {
        let (out, end) = decode(stream.chunks(size));
        assert_eq!(out, expected, "reads of {size} bytes");
        assert_idle(&end.unwrap());
    }
    for cut in 0..=stream.len() {
        let (head, tail) = stream.split_at(cut);
        let (out, end) = decode([head, tail, &[]]);
        assert_eq!(out, expected, "cut at {cut}");
        assert_idle(&end.unwrap());
    }
}

#[test]
fn mid_message_from_the_first_header_byte_to_the_last_byte() {
    let stream = [frame(TEXT, b"a"), frame(PING, b"b"), frame(FIN | CONTINUE, b"c")].concat();
    for stream in [&stream[..], &frame(PING, b"p"), &frame(FIN | TEXT, b""), &frame(CLOSE, b"")] {
        let mut decoder = Decoder::default();
        for (at, byte) in stream.iter().enumerate() {
            feed(&mut decoder, &[*byte], &mut Vec::new()).unwrap();
            assert_eq!(decoder.is_mid_message(), at + 1 < stream.len(), "after byte {at}");
            assert_eq!(decoder.buffered_bytes() > 0, at + 1 < stream.len(), "after byte {at}");
        }
    }
}

#[test]
fn a_message_handed_out_is_not_mid_message_although_more_follows() {
    let mut stream =
        [frame(TEXT, b"a"), frame(PING, b""), frame(FIN, b"b"), frame(TEXT, b"c")].concat();
    let mut input = &mut stream[..];
    let mut decoder = Decoder::default();
    assert_eq!(decoder.next(&mut input), Ok(Some(Incoming::Fragment)));
    assert_eq!(decoder.next(&mut input), Ok(Some(Incoming::Ping(b""))));
    assert!(decoder.is_mid_message());
    assert_eq!(decoder.next(&mut input), Ok(Some(Incoming::Text("ab"))));
    assert!(!decoder.is_mid_message());
    assert_eq!(decoder.next(&mut input), Ok(Some(Incoming::Fragment)));
    assert!(decoder.is_mid_message());
    assert_eq!(decoder.next(&mut input), Ok(None));
}

#[test]
fn each_call_takes_one_frame_however_little_it_says() {
    let fragments = 3000;
    let mut stream = frame(TEXT, b"a");
    stream.extend(frame(CONTINUE, b"").repeat(fragments));
    stream.extend(frame(FIN | CONTINUE, b"b"));
    let one = frame(CONTINUE, b"").len();
    let mut decoder = Decoder::default();
    let mut input = &mut stream[..];
    for _ in 0..=fragments {
        let before = input.len();
        assert_eq!(decoder.next(&mut input), Ok(Some(Incoming::Fragment)));
        assert!(before - input.len() <= one + 1);
    }
    assert_eq!(decoder.next(&mut input), Ok(Some(Incoming::Text("ab"))));
}

#[test]
fn payload_lengths_around_every_limit() {
    for length in [0, 1, 125, 126, 127, 65_535, 65_536, MAX_MESSAGE_BYTES] {
        let text = "x".repeat(length);
        for (first, expected) in
            [(TEXT, Owned::Text(text.clone())), (BINARY, Owned::Binary(text.clone().into()))]
        {
            let one = frame(FIN | first, text.as_bytes());
            assert_eq!(decode_whole(&one).0, vec![expected.clone()], "{length}");
            assert_eq!(decode(one.chunks(1000)).0, vec![expected.clone()], "{length}");
            let (head, tail) = text.as_bytes().split_at(length / 3);
            let two = [frame(first, head), frame(FIN | CONTINUE, tail)].concat();
            assert_eq!(decode_whole(&two).0, vec![expected.clone()], "{length}");
            assert_eq!(decode(two.chunks(1000)).0, [expected], "{length}");
        }
    }
}

#[test]
fn a_message_over_the_limit_fails_at_the_header_that_says_so() {
    let over = claim(FIN | BINARY, b"\x7f\0\0\0\0\0\x04\0\x01");
    assert_eq!(decode_whole(&over).1.unwrap_err(), FrameError::TooBig);
    let over = frame(FIN | TEXT, &vec![b'x'; MAX_MESSAGE_BYTES + 1]);
    assert_eq!(decode_whole(&over).1.unwrap_err(), FrameError::TooBig);
    // One byte over, after two fragments, a ping and a full message.
    let full = frame(BINARY, &vec![1; MAX_MESSAGE_BYTES]);
    let stream = [full, frame(CONTINUE, b""), frame(PING, b"")].concat();
    let (out, end) = decode([&stream[..], &claim(FIN | CONTINUE, b"\x00")]);
    assert_eq!(out.len(), 2);
    assert_idle(&end.unwrap());
    let (out, end) = decode([&stream[..], &claim(FIN | CONTINUE, b"\x01")]);
    assert_eq!((out.len(), end.unwrap_err()), (1, FrameError::TooBig));
}

#[test]
fn another_limit_takes_its_place() {
    let stream = |length: usize| frame(FIN | BINARY, &vec![7; length]);
    let whole = |mut read: &mut [u8]| {
        let mut decoder = Decoder::<9>::with_limit();
        loop {
            match decoder.next(&mut read)? {
                Some(Incoming::Fragment) => {}
                other => return Ok(other.and_then(Owned::of)),
            }
        }
    };
    assert_eq!(whole(&mut stream(9)), Ok(Some(Owned::Binary(vec![7; 9]))));
    assert_eq!(whole(&mut stream(10)), Err(FrameError::TooBig));
    let mut fragments = [frame(BINARY, &[7; 5]), frame(FIN | CONTINUE, &[7; 5])].concat();
    assert_eq!(whole(&mut fragments), Err(FrameError::TooBig));
}

#[test]
fn text_fails_in_the_piece_where_it_stops_being_utf8() {
    let good = "κόσμε".as_bytes();
    // In a fragment, before the message ends.
    let fragments = [frame(TEXT, good), frame(CONTINUE, b"\xf4\x90\x80\x80")].concat();
    assert_eq!(decode_whole(&fragments).1.unwrap_err(), FrameError::InvalidUtf8);
    // In a frame of which more is to come, at the very byte.
    let payload = [good, b"\xf4\x90\x80\x80 and so on"].concat();
    let one = frame(FIN | TEXT, &payload);
    let fault = 6 + good.len() + 1;
    assert!(decode([&one[..fault]]).1.is_ok());
    assert_eq!(decode([&one[..=fault]]).1.unwrap_err(), FrameError::InvalidUtf8);
    assert_eq!(decode(one[..=fault].chunks(1)).1.unwrap_err(), FrameError::InvalidUtf8);
}

#[test]
fn a_message_whole_in_a_read_is_not_copied() {
    let mut read = [frame(FIN | TEXT, b"Hello"), frame(FIN | BINARY, &[1; 70_000])].concat();
    let range = read.as_ptr_range();
    let mut decoder = Decoder::default();
    let mut input = &mut read[..];
    for _ in 0..2 {
        match decoder.next(&mut input).unwrap().unwrap() {
            Incoming::Text(text) => assert!(range.contains(&text.as_ptr())),
            Incoming::Binary(bytes) => assert!(range.contains(&bytes.as_ptr())),
            other => panic!("{other:?}"),
        }
        assert_eq!(decoder.buffered_bytes(), 0);
    }
    assert_eq!(decoder.next(&mut input), Ok(None));
    assert_idle(&decoder);
}

#[test]
fn an_idle_decoder_is_one_pointer() {
    assert_eq!(size_of::<Decoder>(), size_of::<usize>());
    assert_idle(&Decoder::default());
    assert_idle(&decode([&[][..]]).1.unwrap());
}

/// What [`Decoder::buffered_bytes`] promises.
fn bound(payload_bytes: usize) -> usize {
    4096.max(2 * payload_bytes + 256)
}

#[test]
fn memory_follows_what_came_not_what_was_claimed() {
    let mut decoder = Decoder::default();
    let mut out = Vec::new();
    feed(&mut decoder, &claim(FIN | TEXT, b"\x7f\0\0\0\0\0\x04\0\0"), &mut out).unwrap();
    assert!(decoder.buffered_bytes() <= 256);
    for came in 1..=MAX_MESSAGE_BYTES {
        let byte = b'x' ^ MASK[(came - 1) % 4];
        feed(&mut decoder, &[byte], &mut out).unwrap();
        assert!(decoder.buffered_bytes() <= bound(came), "after {came} bytes");
    }
    assert_eq!(out, [Owned::Text("x".repeat(MAX_MESSAGE_BYTES))]);
    assert_idle(&decoder);
}

#[test]
fn floods_of_fragments_grow_nothing_but_the_message() {
    let mut decoder = Decoder::default();
    let mut out = Vec::new();
    feed(&mut decoder, &frame(TEXT, b""), &mut out).unwrap();
    let empty = decoder.buffered_bytes();
    feed(&mut decoder, &frame(CONTINUE, b"").repeat(10_000), &mut out).unwrap();
    assert_eq!(decoder.buffered_bytes(), empty);
    let tiny = frame(CONTINUE, b"x");
    let mut capacities = vec![empty];
    for came in 1..=MAX_MESSAGE_BYTES {
        feed(&mut decoder, &tiny, &mut out).unwrap();
        let now = decoder.buffered_bytes();
        assert!(now <= bound(came), "after {came} fragments");
        if capacities.last() != Some(&now) {
            capacities.push(now);
        }
    }
    assert!(capacities.len() <= 14, "grows by doubling, not by fragments: {capacities:?}");
    feed(&mut decoder, &frame(FIN | CONTINUE, b""), &mut out).unwrap();
    assert_eq!(out, [Owned::Text("x".repeat(MAX_MESSAGE_BYTES))]);
    assert_idle(&decoder);
}

#[test]
fn errors_say_whose_fault_it_is_and_payloads_stay_out_of_logs() {
    let rsv = decode_whole(&frame(FIN | 0x40 | TEXT, b"x")).1.unwrap_err();
    for error in [rsv, FrameError::InvalidUtf8, FrameError::TooBig] {
        assert!(error.to_string().starts_with("peer "), "{error}");
    }
    for incoming in [Incoming::Text("secret"), Incoming::Ping(b"secret")] {
        assert!(format!("{incoming:?}").ends_with("(6 bytes)"), "{incoming:?}");
    }
}

/// A message, where to cut it into fragments, and control frames to put before the fragments.
#[derive(Debug, Clone)]
struct Sent {
    message: Owned,
    cuts: Vec<Index>,
    controls: Vec<(Index, Owned)>,
    mask: [u8; 4],
}

fn payload_bytes() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0_usize..300, 1 => 60_000_usize..70_000, 2 => 120_usize..130]
}

fn data() -> impl Strategy<Value = Owned> {
    prop_oneof![
        prop::collection::vec(any::<char>(), 0..80)
            .prop_map(|chars| Owned::Text(chars.into_iter().collect())),
        payload_bytes()
            .prop_map(|length| Owned::Text("aé€𝄞".chars().cycle().take(length).collect())),
        (payload_bytes(), any::<u8>())
            .prop_map(|(n, seed)| Owned::Binary((0..n).map(|i| i as u8 ^ seed).collect())),
    ]
}

fn control() -> impl Strategy<Value = Owned> {
    let payload = prop::collection::vec(any::<u8>(), 0..=MAX_CONTROL_BYTES);
    (any::<bool>(), payload).prop_map(|(is_ping, payload)| match is_ping {
        true => Owned::Ping(payload),
        false => Owned::Pong(payload),
    })
}

fn sent() -> impl Strategy<Value = Sent> {
    (
        data(),
        prop::collection::vec(any::<Index>(), 0..5),
        prop::collection::vec((any::<Index>(), control()), 0..3),
        any::<[u8; 4]>(),
    )
        .prop_map(|(message, cuts, controls, mask)| Sent { message, cuts, controls, mask })
}

/// Places in `0..=length`, in order, with both ends.
fn places(cuts: &[Index], length: usize) -> Vec<usize> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(length + 1)).collect();
    places.extend([0, length]);
    places.sort_unstable();
    places
}

impl Sent {
    fn write(&self, stream: &mut Vec<u8>, expected: &mut Vec<Owned>) {
        let (opcode, payload) = match &self.message {
            Owned::Text(text) => (TEXT, text.as_bytes()),
            Owned::Binary(bytes) => (BINARY, &bytes[..]),
            other => panic!("{other:?}"),
        };
        let places = places(&self.cuts, payload.len());
        let last = places.len() - 2;
        for (at, ends) in places.windows(2).enumerate() {
            for (_, control) in self.controls.iter().filter(|(i, _)| i.index(last + 1) == at) {
                let (first, payload) = match control {
                    Owned::Ping(payload) => (PING, payload),
                    Owned::Pong(payload) => (PONG, payload),
                    other => panic!("{other:?}"),
                };
                stream.extend(masked(first, self.mask, payload));
                expected.push(control.clone());
            }
            let opcode = if at == 0 { opcode } else { CONTINUE };
            let first = if at == last { FIN | opcode } else { opcode };
            stream.extend(masked(first, self.mask, &payload[ends[0]..ends[1]]));
        }
        expected.push(self.message.clone());
    }
}

proptest! {
    #[test]
    fn messages_survive_any_fragmentation_and_any_reads(
        sent in prop::collection::vec(sent(), 1..6),
        cuts in prop::collection::vec(any::<Index>(), 0..12),
    ) {
        let (mut stream, mut expected) = (Vec::new(), Vec::new());
        for sent in &sent {
            sent.write(&mut stream, &mut expected);
        }
        let mut decoder = Decoder::default();
        let mut out = Vec::new();
        for ends in places(&cuts, stream.len()).windows(2) {
            prop_assert_eq!(feed(&mut decoder, &stream[ends[0]..ends[1]], &mut out), Ok(()));
            prop_assert!(decoder.buffered_bytes() <= bound(ends[1]));
        }
        prop_assert!(out == expected, "{:?} instead of {:?}", out, expected);
        assert_idle(&decoder);
    }

    #[test]
    fn no_bytes_panic_and_reads_do_not_change_the_verdict(
        firsts in prop::collection::vec(
            prop::sample::select(vec![FIN | TEXT, FIN | BINARY, TEXT, CONTINUE, PING, PONG]), 0..6,
        ),
        noise in prop::collection::vec(any::<u8>(), 0..400),
        cuts in prop::collection::vec(any::<Index>(), 0..12),
    ) {
        // Some well-formed frames in front, so that noise meets every state.
        let mut stream = Vec::new();
        for (first, payload) in firsts.iter().zip(noise.chunks(7)) {
            let ascii: Vec<u8> = payload.iter().map(|byte| byte & 0x7f).collect();
            stream.extend(frame(*first, &ascii));
        }
        stream.extend(&noise);
        let (out, end) = decode_whole(&stream);
        let reads = places(&cuts, stream.len());
        let (out_of_reads, end_of_reads) =
            decode(reads.windows(2).map(|ends| &stream[ends[0]..ends[1]]));
        prop_assert_eq!(out, out_of_reads);
        prop_assert_eq!(end.as_ref().err(), end_of_reads.as_ref().err());
        for decoder in [end, end_of_reads].into_iter().flatten() {
            prop_assert!(decoder.buffered_bytes() <= bound(stream.len()));
        }
    }
}

#[test]
fn the_answer_to_our_close_is_found_behind_what_could_not_be_understood() {
    for payload in [&b""[..], &[3, 0xe8], &[b'x'; MAX_CONTROL_BYTES]] {
        let close = masked(CLOSE, MASK, payload);
        assert!(ends_in_close(&close));
        assert!(ends_in_close(&[&b"\xffnonsense"[..], &close].concat()));
        assert!(!ends_in_close(&close[1..]));
        assert!(!ends_in_close(&close[..close.len() - 1]));
    }
    assert!(!ends_in_close(b""));
    assert!(!ends_in_close(&masked(PING, MASK, b"not a close")));
}
