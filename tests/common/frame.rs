//! Frames written straight from RFC 6455, section 5.2, so that every field can lie.

pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// A frame to the relay; what it claims need not be true.
#[derive(Debug, Clone)]
pub struct Hostile {
    pub fin: bool,
    /// The three reserved bits, RSV1 the highest: 0 to 7.
    pub rsv: u8,
    pub opcode: u8,
    /// The mask; none leaves the frame unmasked.
    pub mask: Option<[u8; 4]>,
    /// The length that the header claims; none claims the truth.
    pub claimed: Option<u64>,
    pub payload: Vec<u8>,
}

impl Hostile {
    /// An honest, final, masked frame.
    pub fn new(opcode: u8, payload: impl AsRef<[u8]>) -> Self {
        Self {
            fin: true,
            rsv: 0,
            opcode,
            mask: Some([0x9e, 0x37, 0x79, 0xb9]),
            claimed: None,
            payload: payload.as_ref().to_vec(),
        }
    }

    /// Not the last frame of its message.
    pub fn more(mut self) -> Self {
        self.fin = false;
        self
    }

    pub fn rsv(mut self, bits: u8) -> Self {
        self.rsv = bits;
        self
    }

    pub fn unmasked(mut self) -> Self {
        self.mask = None;
        self
    }

    pub fn claiming(mut self, length: u64) -> Self {
        self.claimed = Some(length);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.payload.len() + 14);
        bytes.push(u8::from(self.fin) << 7 | (self.rsv & 7) << 4 | self.opcode & 15);
        let masked = if self.mask.is_some() { 0x80 } else { 0 };
        let length = self.claimed.unwrap_or(self.payload.len() as u64);
        match (u8::try_from(length), u16::try_from(length)) {
            (Ok(short @ ..=125), _) => bytes.push(masked | short),
            (_, Ok(medium)) => {
                bytes.push(masked | 126);
                bytes.extend_from_slice(&medium.to_be_bytes());
            }
            _ => {
                bytes.push(masked | 127);
                bytes.extend_from_slice(&length.to_be_bytes());
            }
        }
        match self.mask {
            None => bytes.extend_from_slice(&self.payload),
            Some(mask) => {
                bytes.extend_from_slice(&mask);
                bytes.extend(self.payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
            }
        }
        bytes
    }
}

impl From<Hostile> for Vec<u8> {
    fn from(frame: Hostile) -> Self {
        frame.bytes()
    }
}

/// The bytes of an honest, final, masked frame.
pub fn masked(opcode: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    Hostile::new(opcode, payload).bytes()
}

/// The bytes of a close frame with a code and a reason.
pub fn close_frame(code: u16, reason: &str) -> Vec<u8> {
    masked(CLOSE, [code.to_be_bytes().as_slice(), reason.as_bytes()].concat())
}

/// A frame from the relay: never masked, no reserved bit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub fin: bool,
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Takes the frame at the start of `bytes`, if all of it is there.
    pub fn take(bytes: &mut Vec<u8>) -> Option<Self> {
        let (first, second) = (*bytes.first()?, *bytes.get(1)?);
        assert_eq!(first & 0x70, 0, "the relay set a reserved bit");
        assert_eq!(second & 0x80, 0, "the relay masked a frame");
        let (head, length) = match second {
            126 => (4, u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()))),
            127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap())),
            short => (2, u64::from(short)),
        };
        let end = head + usize::try_from(length).unwrap();
        let payload = bytes.get(head..end)?.to_vec();
        bytes.drain(..end);
        Some(Self { fin: first & 0x80 != 0, opcode: first & 0x0f, payload })
    }

    /// The text of what must be one unfragmented text frame.
    pub fn text(&self) -> &str {
        assert!(self.fin && self.opcode == TEXT, "not one unfragmented text frame: {self:?}");
        std::str::from_utf8(&self.payload).expect("a text frame is UTF-8")
    }

    /// Code and reason of what must be a close frame; the code is 1005 if it carries none.
    pub fn close(&self) -> (u16, &str) {
        assert!(self.fin && self.opcode == CLOSE, "not a close frame: {self:?}");
        match self.payload.as_slice() {
            [] => (1005, ""),
            [high, low, reason @ ..] => (
                u16::from_be_bytes([*high, *low]),
                std::str::from_utf8(reason).expect("a close reason is UTF-8"),
            ),
            [_] => panic!("the relay sent a close frame of one byte"),
        }
    }
}
