//! What a decoder remembers, as plain data that another process can go on with.

use tungstenite::protocol::frame::coding::OpCode;

use super::super::header::{self, Header, MAX_CLIENT_HEADER_BYTES};
use super::super::mask::Mask;
use super::super::message::Message;
use super::super::{MAX_CONTROL_BYTES, MAX_MESSAGE_BYTES};
use super::{ControlPayload, Decoder, HeaderStart, OpenFrame, Partial};

const FIN: u8 = 0x80;
const OPCODE: u8 = 0x0f;

/// What has come of a message, a control frame, or both.
#[derive(Default)]
pub struct HalfRead {
    /// The bytes of a header that is not all there.
    pub header: Vec<u8>,
    /// The frame whose payload is not all there.
    pub frame: Option<HalfReadFrame>,
    /// The message so far.
    pub message: Option<HalfReadMessage>,
}

/// A frame whose payload is not all there.
pub struct HalfReadFrame {
    /// The first byte of its header.
    pub first: u8,
    /// The masking key.
    pub mask: [u8; 4],
    /// The length of its payload.
    pub payload_bytes: u32,
    /// How much of that has come.
    pub came_bytes: u32,
    /// What has come, unmasked, if it is a control frame.
    pub control: Vec<u8>,
}

/// A message that is not all there.
pub struct HalfReadMessage {
    /// It is a text.
    pub is_text: bool,
    /// What has come, unmasked.
    pub bytes: Vec<u8>,
}

impl Decoder {
    /// What it remembers, if anything is half read.
    #[must_use]
    pub fn half_read(&self) -> Option<HalfRead> {
        let partial = self.partial.as_ref().filter(|_| self.is_mid_message())?;
        let header = partial.header.bytes.get(..usize::from(partial.header.len));
        let message = partial.message.as_ref().map(|message| {
            let (is_text, bytes) = message.came();
            HalfReadMessage { is_text, bytes }
        });
        let frame = partial.frame.as_ref().map(|frame| frame.half_read(&partial.control));
        Some(HalfRead { header: header.unwrap_or_default().to_vec(), frame, message })
    }

    /// Goes on with what another one remembers. `None` if that cannot have been. It takes no more
    /// memory for it than the other did.
    #[must_use]
    pub fn resumed(half_read: HalfRead) -> Option<Self> {
        let HalfRead { header, frame, message } = half_read;
        let message = match message {
            Some(HalfReadMessage { is_text, bytes }) if bytes.len() <= MAX_MESSAGE_BYTES => {
                Some(Message::resumed(is_text, bytes).ok()?)
            }
            Some(_) => return None,
            None => None,
        };
        let header = HeaderStart::resumed(&header)?;
        if header.len > 0 && frame.is_some() {
            return None;
        }
        let (frame, control) = match frame {
            Some(frame) => {
                let (frame, control) = OpenFrame::resumed(&frame, message.as_ref())?;
                (Some(frame), control)
            }
            None => (None, ControlPayload::of(&[])?),
        };
        let partial = Partial { header, frame, message, is_handed_out: false, control };
        partial.is_open().then(|| Self { partial: Some(Box::new(partial)) })
    }
}

impl HeaderStart {
    fn resumed(came: &[u8]) -> Option<Self> {
        let is_begun = came.len() < MAX_CLIENT_HEADER_BYTES
            && matches!(header::parse_short::<MAX_MESSAGE_BYTES>(came), Ok(None));
        let mut bytes = [0; MAX_CLIENT_HEADER_BYTES];
        bytes.get_mut(..came.len()).filter(|_| is_begun)?.copy_from_slice(came);
        Some(Self { bytes, len: came.len() as u8 })
    }
}

impl ControlPayload {
    fn of(came: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_CONTROL_BYTES];
        bytes.get_mut(..came.len())?.copy_from_slice(came);
        Some(Self { bytes, len: came.len() as u8 })
    }
}

impl OpenFrame {
    fn half_read(&self, control: &ControlPayload) -> HalfReadFrame {
        let fin = if self.header.is_final { FIN } else { 0 };
        let control = match self.header.opcode {
            OpCode::Control(_) => control.as_bytes().to_vec(),
            OpCode::Data(_) => Vec::new(),
        };
        HalfReadFrame {
            first: fin | u8::from(self.header.opcode),
            mask: self.header.mask.key(),
            payload_bytes: self.header.payload_bytes as u32,
            came_bytes: self.came_bytes as u32,
            control,
        }
    }

    /// The frame, and what has come of it if it is a control frame.
    fn resumed(frame: &HalfReadFrame, message: Option<&Message>) -> Option<(Self, ControlPayload)> {
        let (payload_bytes, came_bytes) = (frame.payload_bytes as usize, frame.came_bytes as usize);
        let opcode = OpCode::from(frame.first & OPCODE);
        let is_final = frame.first & FIN != 0;
        let is_sound = match opcode {
            OpCode::Control(_) => {
                is_final && payload_bytes <= MAX_CONTROL_BYTES && frame.control.len() == came_bytes
            }
            OpCode::Data(_) => {
                let came_before = message?.len().checked_sub(came_bytes)?;
                frame.control.is_empty()
                    && payload_bytes <= MAX_MESSAGE_BYTES
                    && came_before + payload_bytes <= MAX_MESSAGE_BYTES
            }
        };
        // What the parser would have refused has no name, or bits that are reserved.
        let is_known = matches!(frame.first & !FIN, 0..=2 | 8..=10);
        if !is_sound || !is_known || came_bytes >= payload_bytes {
            return None;
        }
        let mask = Mask::new(frame.mask);
        let header = Header { opcode, is_final, mask, payload_bytes };
        Some((Self { header, came_bytes }, ControlPayload::of(&frame.control)?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Incoming;
    use super::*;

    /// What comes of the pieces; between any two of them another decoder goes on.
    fn read(pieces: &[&[u8]]) -> Vec<String> {
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        for piece in pieces {
            let mut piece = piece.to_vec();
            let mut input = piece.as_mut_slice();
            while let Ok(Some(incoming)) = decoder.next(&mut input) {
                seen.push(match incoming {
                    Incoming::Text(text) => text.to_owned(),
                    Incoming::Binary(bytes) | Incoming::Ping(bytes) => format!("{bytes:?}"),
                    other => format!("{other:?}"),
                });
            }
            let before = (decoder.is_mid_message(), decoder.buffered_bytes());
            decoder = match decoder.half_read() {
                Some(half_read) => Decoder::resumed(half_read).expect("it has been"),
                None => Decoder::default(),
            };
            assert_eq!(decoder.is_mid_message(), before.0);
            assert!(decoder.buffered_bytes() <= before.1);
        }
        seen
    }

    #[test]
    fn another_decoder_goes_on_wherever_one_stops() {
        let mut stream = Vec::new();
        // A fragment that ends within a code point, a ping amid the message, its end, then bytes.
        stream.extend_from_slice(b"\x01\x84\x01\x02\x03\x04");
        stream.extend([b'a' ^ 1, 0xc3 ^ 2, 0xa4 ^ 3, 0xe2 ^ 4]);
        stream.extend_from_slice(b"\x89\x83\0\0\0\0png");
        stream.extend_from_slice(b"\x80\x82\0\0\0\0\x82\xac");
        stream.extend_from_slice(b"\x82\xfe\x00\x80\x09\x08\x07\x06");
        stream.extend(std::iter::repeat_n(7, 128));
        stream.extend_from_slice(b"\x88\x80\0\0\0\0");
        let whole = read(&[&stream]);
        assert_eq!(whole.len(), 5, "{whole:?}");
        assert_eq!(whole[2], "a\u{e4}\u{20ac}");
        for cut in 0..=stream.len() {
            let (one, other) = stream.split_at(cut);
            assert_eq!(read(&[one, other]), whole, "cut at {cut}");
        }
        assert_eq!(read(&stream.chunks(1).collect::<Vec<_>>()), whole);
    }

    #[test]
    fn what_cannot_have_been_is_refused() {
        let frame = |first, payload_bytes, came_bytes, control: &[u8]| {
            let control = control.to_vec();
            Some(HalfReadFrame { first, mask: [0; 4], payload_bytes, came_bytes, control })
        };
        let message =
            |is_text, bytes: &[u8]| Some(HalfReadMessage { is_text, bytes: bytes.to_vec() });
        let header = Vec::new;
        let refused = [
            HalfRead::default(),
            HalfRead { header: b"\x81\x80\0\0\0\0".to_vec(), ..HalfRead::default() },
            HalfRead { header: vec![0x81; 15], ..HalfRead::default() },
            HalfRead { header: header(), frame: frame(0x81, 5, 3, b""), message: None },
            HalfRead {
                header: header(),
                frame: frame(0x81, 5, 3, b""),
                message: message(true, b"a"),
            },
            HalfRead {
                header: header(),
                frame: frame(0x81, 3, 3, b""),
                message: message(true, b"abc"),
            },
            HalfRead {
                header: header(),
                frame: frame(0x83, 5, 1, b""),
                message: message(true, b"a"),
            },
            HalfRead {
                header: header(),
                frame: frame(0xc1, 5, 1, b""),
                message: message(true, b"a"),
            },
            HalfRead { header: header(), frame: frame(0x09, 5, 1, b"a"), message: None },
            HalfRead { header: header(), frame: frame(0x89, 126, 1, b"a"), message: None },
            HalfRead { header: header(), frame: frame(0x89, 5, 2, b"a"), message: None },
            HalfRead { header: header(), frame: None, message: message(true, b"a\xff") },
            HalfRead { header: header(), frame: None, message: message(false, &vec![0; 262_145]) },
            HalfRead { header: b"\x81".to_vec(), frame: frame(0x89, 5, 1, b"a"), message: None },
        ];
        for (number, half_read) in refused.into_iter().enumerate() {
            assert!(Decoder::resumed(half_read).is_none(), "{number}");
        }
    }
}
