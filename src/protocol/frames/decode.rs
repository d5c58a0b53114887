//! A client's bytes, read by read, become messages.

mod half_read;

pub use half_read::{HalfRead, HalfReadFrame, HalfReadMessage};

use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::header::{self, Header, MAX_CLIENT_HEADER_BYTES};
use super::message::{Message, check_utf8};
use super::{FrameError, Incoming, MAX_CONTROL_BYTES, MAX_MESSAGE_BYTES};

const NOT_BEGUN: FrameError = FrameError::Protocol("continuation frame without a message");

/// Turns what one client sends into messages. Eight bytes, and nothing on the heap, while no frame
/// or message is half read.
///
/// ```
/// # use pyrycode_relay::protocol::frames::{Decoder, FrameError, Incoming};
/// /// Handles one read. `since` is when the oldest half-read message began.
/// fn on_read(
///     decoder: &mut Decoder,
///     mut input: &mut [u8],
///     now: u64,
///     since: &mut Option<u64>,
/// ) -> Result<usize, FrameError> {
///     let mut texts = 0;
///     while let Some(incoming) = decoder.next(&mut input)? {
///         match incoming {
///             Incoming::Text(_) | Incoming::Binary(_) => texts += 1,
///             Incoming::Ping(_) | Incoming::Pong(_) | Incoming::Fragment => {}
///             Incoming::Close(_) => break,
///         }
///         // False here even if the next message follows at once; true if what came was a
///         // control frame amid the fragments of a message that is older than it.
///         if !decoder.is_mid_message() {
///             *since = None;
///         }
///     }
///     if decoder.is_mid_message() {
///         since.get_or_insert(now);
///     }
///     Ok(texts)
/// }
///
/// let mut decoder = Decoder::default();
/// let mut since = None;
/// let mut first = *b"\x81\x82\0\0\0\0hi\x81\x82\0";
/// assert_eq!(on_read(&mut decoder, &mut first, 7, &mut since), Ok(1));
/// assert_eq!(since, Some(7));
/// let mut second = *b"\0\0\0yo";
/// assert_eq!(on_read(&mut decoder, &mut second, 9, &mut since), Ok(1));
/// assert_eq!((since, decoder.buffered_bytes()), (None, 0));
/// ```
#[derive(Debug)]
pub struct Decoder<const LIMIT: usize = MAX_MESSAGE_BYTES> {
    partial: Option<Box<Partial<LIMIT>>>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::with_limit()
    }
}

impl<const LIMIT: usize> Decoder<LIMIT> {
    /// A decoder that takes messages of up to `LIMIT` bytes. The relay's is the default.
    #[must_use]
    pub const fn with_limit() -> Self {
        Self { partial: None }
    }

    /// Takes the next message, or fragment of one, from the front of `input`, which advances past
    /// what was consumed: one frame, or the rest of one. So a call costs no more than its bytes and
    /// a fixed amount, and the caller decides how many of them a peer may have at once. Payloads are unmasked where they lie. The result borrows from `input`'s buffer if the
    /// message is whole in it, else from the decoder, which frees it at the next call: call until
    /// `Ok(None)`, which means that all input was consumed (an incomplete rest is kept in the
    /// decoder).
    ///
    /// # Errors
    /// The peer's fault, and the end of the connection: the decoder must not be used again.
    #[inline]
    pub fn next<'s, 'b: 's>(
        &'s mut self,
        input: &mut &'b mut [u8],
    ) -> Result<Option<Incoming<'s>>, FrameError> {
        if !self.is_mid_message() {
            if self.partial.is_some() {
                self.let_go();
            }
            if input.is_empty() {
                return Ok(None);
            }
            if let Some(incoming) = take_whole::<LIMIT>(input)? {
                return Ok(Some(incoming));
            }
        }
        self.partial.get_or_insert_default().next(input)
    }

    /// Frees the message that the last call handed out. Apart, to keep the usual path short.
    #[cold]
    fn let_go(&mut self) {
        self.partial = None;
    }

    /// True from the first header byte of a message or control frame until it is complete: the
    /// message deadline runs meanwhile. Between two fragments, too, and for a control frame amid
    /// them; false for a message that was handed out.
    #[must_use]
    #[inline]
    pub fn is_mid_message(&self) -> bool {
        self.partial.as_ref().is_some_and(|partial| partial.is_open())
    }

    /// Bytes on the heap, by capacity: what the memory budget is charged. At most 4 KiB or, if that
    /// is more, twice the payload that came plus 256 bytes.
    #[must_use]
    #[inline]
    pub fn buffered_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| {
            size_of::<Partial<LIMIT>>() + partial.message.as_ref().map_or(0, Message::capacity)
        })
    }
}

/// The way of nearly all messages: one frame, all of it in `input`. `None`, and `input` unchanged,
/// for anything else.
#[inline]
fn take_whole<'b, const LIMIT: usize>(
    input: &mut &'b mut [u8],
) -> Result<Option<Incoming<'b>>, FrameError> {
    let Some((header, header_bytes)) = header::parse::<LIMIT>(input)? else { return Ok(None) };
    if !header.is_final {
        return Ok(None);
    }
    let Some(frame) = input.split_off_mut(..header_bytes + header.payload_bytes) else {
        return Ok(None);
    };
    let (_, payload) = frame.split_at_mut(header_bytes);
    header.mask.apply(payload, 0);
    match header.opcode {
        OpCode::Data(Data::Text) => Ok(Some(Incoming::Text(check_utf8(payload)?))),
        OpCode::Data(Data::Binary) => Ok(Some(Incoming::Binary(payload))),
        OpCode::Data(_) => Err(NOT_BEGUN),
        OpCode::Control(control) => control_frame(control, payload).map(Some),
    }
}

/// A control frame, all of whose (unmasked) payload came.
fn control_frame(control: Control, payload: &[u8]) -> Result<Incoming<'_>, FrameError> {
    match control {
        Control::Ping => Ok(Incoming::Ping(payload)),
        Control::Pong => Ok(Incoming::Pong(payload)),
        Control::Close => close_code(payload).map(Incoming::Close),
        Control::Reserved(_) => Err(FrameError::Protocol("reserved opcode")),
    }
}

fn close_code(payload: &[u8]) -> Result<Option<u16>, FrameError> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return match payload {
            [] => Ok(None),
            _ => Err(FrameError::Protocol("close payload of one byte")),
        };
    };
    let code = u16::from_be_bytes(*code);
    // RFC 6455, section 7.4, and the registry that it founds. tungstenite lacks 1014 here.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(FrameError::Protocol("close code that must not be sent"));
    }
    check_utf8(reason)?;
    Ok(Some(code))
}

/// Whether what a client sent after a frame that could not be understood seems to end in a close
/// frame: its answer to ours, whatever came before. A wrong guess costs it nothing but the rest of
/// the time that it has to answer.
#[must_use]
pub fn ends_in_close(input: &[u8]) -> bool {
    const CLOSE: u8 = 0x88;
    const MASKED: u8 = 0x80;
    const MASK_BYTES: usize = 4;
    (0..=MAX_CONTROL_BYTES as u8).any(|payload_bytes| {
        let frame_bytes = 2 + MASK_BYTES + usize::from(payload_bytes);
        let start = input.len().checked_sub(frame_bytes);
        start
            .and_then(|start| input.get(start..))
            .is_some_and(|frame| frame.starts_with(&[CLOSE, MASKED | payload_bytes]))
    })
}

/// What a decoder remembers from one read to the next. At most one of `header` and `frame` is
/// begun.
#[derive(Debug)]
struct Partial<const LIMIT: usize> {
    header: HeaderStart,
    frame: Option<OpenFrame>,
    message: Option<Message>,
    /// `message` is complete and was handed out: it is let go at the next call.
    is_handed_out: bool,
    control: ControlPayload,
}

impl<const LIMIT: usize> Default for Partial<LIMIT> {
    fn default() -> Self {
        Self {
            header: HeaderStart { bytes: [0; MAX_CLIENT_HEADER_BYTES], len: 0 },
            frame: None,
            message: None,
            is_handed_out: false,
            control: ControlPayload { bytes: [0; MAX_CONTROL_BYTES], len: 0 },
        }
    }
}

impl<const LIMIT: usize> Partial<LIMIT> {
    fn is_open(&self) -> bool {
        self.header.len > 0
            || self.frame.is_some()
            || (self.message.is_some() && !self.is_handed_out)
    }

    #[inline(never)]
    fn next(&mut self, input: &mut &mut [u8]) -> Result<Option<Incoming<'_>>, FrameError> {
        let Some(mut frame) = self.open_frame(input)? else { return Ok(None) };
        let piece = frame.take_piece(input);
        match frame.header.opcode {
            OpCode::Control(_) => self.control.append(piece),
            OpCode::Data(_) => {
                let message = self.message.as_mut().ok_or(NOT_BEGUN)?;
                let limit = match frame.header.is_final {
                    true => message.len() + piece.len() + frame.missing_bytes(),
                    false => LIMIT,
                };
                message.append(piece, limit)?;
            }
        }
        if frame.missing_bytes() > 0 {
            self.frame = Some(frame);
            return Ok(None);
        }
        match frame.header.opcode {
            OpCode::Control(control) => control_frame(control, self.control.as_bytes()).map(Some),
            OpCode::Data(_) if frame.header.is_final => {
                self.is_handed_out = true;
                self.message.as_ref().ok_or(NOT_BEGUN)?.whole().map(Some)
            }
            OpCode::Data(_) => Ok(Some(Incoming::Fragment)),
        }
    }

    /// The frame that is half read, else the next one. `None` if the input ends in its header.
    fn open_frame(&mut self, input: &mut &mut [u8]) -> Result<Option<OpenFrame>, FrameError> {
        if let Some(frame) = self.frame.take() {
            return Ok(Some(frame));
        }
        let Some(header) = self.header.complete::<LIMIT>(input)? else { return Ok(None) };
        match header.opcode {
            OpCode::Control(_) => self.control.len = 0,
            OpCode::Data(data) => self.check_order(data, header.payload_bytes)?,
        }
        Ok(Some(OpenFrame { header, came_bytes: 0 }))
    }

    /// Begins or continues the message of a data frame (RFC 6455, section 5.4).
    fn check_order(&mut self, data: Data, payload_bytes: usize) -> Result<(), FrameError> {
        let came_bytes = match (data, &self.message) {
            (Data::Continue, Some(message)) => message.len(),
            (Data::Continue, None) => return Err(NOT_BEGUN),
            (_, Some(_)) => {
                return Err(FrameError::Protocol(
                    "new message before the fragmented one is complete",
                ));
            }
            (Data::Text, None) => {
                self.message = Some(Message::text());
                0
            }
            (Data::Binary | Data::Reserved(_), None) => {
                self.message = Some(Message::binary());
                0
            }
        };
        if came_bytes + payload_bytes > LIMIT {
            return Err(FrameError::TooBig);
        }
        Ok(())
    }
}

/// A frame whose header was read, and part of its payload.
#[derive(Debug)]
struct OpenFrame {
    header: Header,
    /// Bytes of payload that came so far.
    came_bytes: usize,
}

impl OpenFrame {
    fn missing_bytes(&self) -> usize {
        self.header.payload_bytes - self.came_bytes
    }

    /// Takes what `input` has of the payload, unmasked.
    fn take_piece<'b>(&mut self, input: &mut &'b mut [u8]) -> &'b [u8] {
        let piece_bytes = self.missing_bytes().min(input.len());
        let piece = input.split_off_mut(..piece_bytes).unwrap_or_default();
        self.header.mask.apply(piece, self.came_bytes);
        self.came_bytes += piece.len();
        piece
    }
}

/// The bytes of a header that is not all there.
#[derive(Debug)]
struct HeaderStart {
    bytes: [u8; MAX_CLIENT_HEADER_BYTES],
    len: u8,
}

impl HeaderStart {
    /// Takes from `input` what the header lacks. `None` if that is not all there; then all of
    /// `input` was taken.
    fn complete<const LIMIT: usize>(
        &mut self,
        input: &mut &mut [u8],
    ) -> Result<Option<Header>, FrameError> {
        let had_bytes = usize::from(self.len);
        let free = self.bytes.get_mut(had_bytes..).unwrap_or_default();
        let added_bytes = free.len().min(input.len());
        for (slot, byte) in free.iter_mut().zip(input.iter()) {
            *slot = *byte;
        }
        let bytes = self.bytes.get(..had_bytes + added_bytes).unwrap_or_default();
        let (header, taken_bytes) = match header::parse_short::<LIMIT>(bytes)? {
            Some((header, header_bytes)) => {
                self.len = 0;
                (Some(header), header_bytes - had_bytes)
            }
            None => {
                self.len = bytes.len() as u8;
                (None, added_bytes)
            }
        };
        let _taken = input.split_off_mut(..taken_bytes);
        Ok(header)
    }
}

/// The payload of a control frame, or what came of it.
#[derive(Debug)]
struct ControlPayload {
    bytes: [u8; MAX_CONTROL_BYTES],
    len: u8,
}

impl ControlPayload {
    /// A control frame's header was checked: `piece` never exceeds what is free.
    fn append(&mut self, piece: &[u8]) {
        let free = self.bytes.get_mut(usize::from(self.len)..).unwrap_or_default();
        debug_assert!(piece.len() <= free.len());
        for (slot, byte) in free.iter_mut().zip(piece) {
            *slot = *byte;
        }
        self.len += piece.len() as u8;
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}
