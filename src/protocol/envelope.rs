//! The routing envelope between the relay and a binary (PROTOCOL.md, chapter 4).
//!
//! Frames pass through verbatim. Reading an envelope is one pass over it, which checks the whole
//! of it, frame included, and allocates nothing unless a name or an id is written with escapes.
//!
//! Where chapter 4 is silent:
//! - names are compared byte for byte, after escapes are decoded;
//! - of several members with one name the last counts, but the type of each must be right;
//! - `null` is the same as leaving the member out;
//! - `close_code` is written in digits alone: `-0`, `1000.0` and `1e3` are refused.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU16;

use super::ids::ConnId;
use super::json::{self, JsonError, Member, Members};
use super::push::MAX_PUSH_TOKEN_BYTES;

const CONN_ID: &str = r#"{"conn_id":""#;
const FRAME: &str = r#"","frame":"#;
const CLOSE_CODE: &str = r#"","close_code":"#;
const END: &str = "}";

/// The exact size, in bytes, of what [`push_wrapped`] appends.
#[must_use]
pub const fn wrapped_len(frame_len: usize) -> usize {
    CONN_ID.len() + ConnId::LEN + FRAME.len() + frame_len + END.len()
}

/// Appends `{"conn_id":"<id>","frame":<frame>}`, the frame byte for byte. The frame must have
/// passed [`json::validate`].
pub fn push_wrapped(out: &mut Vec<u8>, conn_id: &ConnId, frame: &[u8]) {
    out.reserve(wrapped_len(frame.len()));
    out.extend_from_slice(CONN_ID.as_bytes());
    out.extend_from_slice(conn_id.as_bytes());
    out.extend_from_slice(FRAME.as_bytes());
    out.extend_from_slice(frame);
    out.extend_from_slice(END.as_bytes());
}

/// The exact size, in bytes, of what [`push_close_notice`] appends.
#[must_use]
pub fn close_notice_len(code: u16) -> usize {
    CONN_ID.len() + ConnId::LEN + CLOSE_CODE.len() + decimal_len(code) + END.len()
}

/// Appends `{"conn_id":"<id>","close_code":<code>}`: a phone is gone.
pub fn push_close_notice(out: &mut Vec<u8>, conn_id: &ConnId, code: u16) {
    out.reserve(close_notice_len(code));
    out.extend_from_slice(CONN_ID.as_bytes());
    out.extend_from_slice(conn_id.as_bytes());
    out.extend_from_slice(CLOSE_CODE.as_bytes());
    let digits = [10_000, 1_000, 100, 10, 1].map(|power| b'0' + (code / power % 10) as u8);
    out.extend(digits.into_iter().skip(digits.len() - decimal_len(code)));
    out.extend_from_slice(END.as_bytes());
}

fn decimal_len(code: u16) -> usize {
    code.checked_ilog10().unwrap_or(0) as usize + 1
}

/// What a binary asks for with one message.
#[derive(Clone, PartialEq, Eq)]
pub enum Envelope<'a> {
    /// Send a frame to a phone, then close it if a code is given.
    Frame {
        /// The phone. `None`: the id is none that the relay gives out, so nobody has it.
        to: Option<ConnId>,
        /// One JSON value, verbatim, without the whitespace around it. Always UTF-8.
        frame: &'a [u8],
        /// See [`Close::directive`](super::close::Close::directive).
        close_code: Option<NonZeroU16>,
    },
    /// Close a phone.
    Close {
        /// The phone, as in `Frame`.
        to: Option<ConnId>,
        /// See [`Close::directive`](super::close::Close::directive).
        close_code: NonZeroU16,
    },
    /// Wake a phone that is not connected (PROTOCOL.md, chapter 8).
    PushWake {
        /// The push service, as the binary names it; not checked.
        platform: Cow<'a, str>,
        /// Secret: for the push service and nobody else, a log least of all. It has 1 to
        /// [`MAX_PUSH_TOKEN_BYTES`] bytes.
        token: Cow<'a, str>,
    },
}

/// Names what was asked and shows nothing of frames, platforms and tokens.
impl fmt::Debug for Envelope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame { to, frame, close_code } => f
                .debug_struct("Frame")
                .field("to", to)
                .field("frame_len", &frame.len())
                .field("close_code", close_code)
                .finish(),
            Self::Close { to, close_code } => {
                f.debug_struct("Close").field("to", to).field("close_code", close_code).finish()
            }
            Self::PushWake { .. } => f.debug_struct("PushWake").finish_non_exhaustive(),
        }
    }
}

/// Why an envelope is dropped. It shows nothing of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvelopeError {
    /// The message is not JSON.
    Json(JsonError),
    /// The message does not begin as an object.
    NotAnObject,
    /// `conn_id` is neither a string nor null.
    ConnIdType,
    /// `close_code` is neither null nor digits from 0 to 65535.
    CloseCodeType,
    /// There is no `conn_id`, and `push_wake` is no object with the strings `platform` and `token`.
    PushWakeType,
    /// The token of a wake request is empty or over [`MAX_PUSH_TOKEN_BYTES`] bytes.
    PushTokenLength,
    /// There is neither a frame nor a close code.
    NothingToSend,
    /// The message is well-formed, but its `conn_id` is absent, null or empty.
    Unaddressed,
}

impl From<JsonError> for EnvelopeError {
    fn from(error: JsonError) -> Self {
        Self::Json(error)
    }
}

impl fmt::Display for EnvelopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the binary sent a bad envelope: ")?;
        match self {
            Self::Json(error) => write!(f, "{error}"),
            Self::NotAnObject => f.write_str("not a JSON object"),
            Self::ConnIdType => f.write_str("conn_id must be a string"),
            Self::CloseCodeType => f.write_str("close_code must be an integer from 0 to 65535"),
            Self::PushWakeType => {
                f.write_str("push_wake must be an object with the strings platform and token")
            }
            Self::PushTokenLength => {
                write!(f, "the token of push_wake must have 1 to {MAX_PUSH_TOKEN_BYTES} bytes")
            }
            Self::NothingToSend => f.write_str("it needs a frame or a close_code"),
            Self::Unaddressed => f.write_str("it needs a conn_id"),
        }
    }
}

impl std::error::Error for EnvelopeError {}

/// Reads one message of a binary, whatever its WebSocket type.
///
/// # Errors
/// Any [`EnvelopeError`]: the binary's fault. The message is to be logged and dropped.
pub fn unwrap(message: &[u8]) -> Result<Envelope<'_>, EnvelopeError> {
    unwrap_str(simdutf8::basic::from_utf8(message).map_err(|_| JsonError::NotUtf8)?)
}

/// [`unwrap`] for a message that is known to be UTF-8, as a text message is.
///
/// # Errors
/// As [`unwrap`].
pub fn unwrap_str(message: &str) -> Result<Envelope<'_>, EnvelopeError> {
    if let Some(envelope) = unwrap_usual(message) {
        return Ok(envelope);
    }
    let fields = Fields::read(message)?;
    if let (None, Some(push_wake)) = (fields.conn_id, fields.push_wake) {
        return read_push_wake(push_wake);
    }
    let to = fields.conn_id.map(read_conn_id);
    match (fields.frame, fields.close_code) {
        (None, None) => Err(EnvelopeError::NothingToSend),
        (Some(frame), close_code) => {
            let to = to.ok_or(EnvelopeError::Unaddressed)?;
            Ok(Envelope::Frame { to, frame: frame.as_bytes(), close_code })
        }
        (None, Some(close_code)) => {
            Ok(Envelope::Close { to: to.ok_or(EnvelopeError::Unaddressed)?, close_code })
        }
    }
}

/// The way of nearly all envelopes: a frame for a phone, in the very form that [`push_wrapped`]
/// writes. `None` for anything else, whether or not it is an envelope.
fn unwrap_usual(message: &str) -> Option<Envelope<'_>> {
    let (conn_id, rest) = message.strip_prefix(CONN_ID)?.split_at_checked(ConnId::LEN)?;
    let to = ConnId::parse(conn_id.as_bytes())?;
    // Where this is one value, the braces around it are those of an object with two members.
    let frame = json::validate_str(rest.strip_prefix(FRAME)?.strip_suffix(END)?).ok()?;
    (frame != "null").then_some(Envelope::Frame {
        to: Some(to),
        frame: frame.as_bytes(),
        close_code: None,
    })
}

/// The members that matter; `None` is absent or null.
#[derive(Default)]
struct Fields<'a> {
    /// What stands between the quotes; never empty.
    conn_id: Option<&'a str>,
    frame: Option<&'a str>,
    close_code: Option<NonZeroU16>,
    push_wake: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn read(message: &'a str) -> Result<Self, EnvelopeError> {
        let mut fields = Self::default();
        for member in Members::of(message).ok_or(EnvelopeError::NotAnObject)? {
            let Member { key, value } = member?;
            let value = (value != "null").then_some(value);
            match &*decode_short::<MAX_KEY_LEN>(key) {
                "conn_id" => fields.conn_id = read_conn_id_content(value)?,
                "frame" => fields.frame = value,
                "close_code" => fields.close_code = read_close_code(value)?,
                "push_wake" => fields.push_wake = value,
                _ => {}
            }
        }
        Ok(fields)
    }
}

/// The longest name that means anything, in bytes.
const MAX_KEY_LEN: usize = "close_code".len();

/// [`json::unescape`] for content that matters only if it stands for at most `MAX` bytes of ASCII:
/// what is longer, were each byte a `\u` escape, is not worth decoding and is returned as it is.
fn decode_short<const MAX: usize>(content: &str) -> Cow<'_, str> {
    if content.len() > MAX * r"\u0000".len() {
        return Cow::Borrowed(content);
    }
    json::unescape(content)
}

fn read_conn_id_content(value: Option<&str>) -> Result<Option<&str>, EnvelopeError> {
    let Some(value) = value else { return Ok(None) };
    let content = json::string_content(value).ok_or(EnvelopeError::ConnIdType)?;
    Ok((!content.is_empty()).then_some(content))
}

/// `None` for an id that the relay does not give out.
fn read_conn_id(content: &str) -> Option<ConnId> {
    ConnId::parse(decode_short::<{ ConnId::LEN }>(content).as_bytes())
}

/// `None` for no code. `value` is valid JSON, so digits alone are a number without leading zeros.
fn read_close_code(value: Option<&str>) -> Result<Option<NonZeroU16>, EnvelopeError> {
    let Some(value) = value else { return Ok(None) };
    if !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(EnvelopeError::CloseCodeType);
    }
    let code = value.parse().map_err(|_| EnvelopeError::CloseCodeType)?;
    Ok(NonZeroU16::new(code))
}

fn read_push_wake(value: &str) -> Result<Envelope<'_>, EnvelopeError> {
    let (platform, token) = push_wake_contents(value).ok_or(EnvelopeError::PushWakeType)?;
    let token = decode_short::<MAX_PUSH_TOKEN_BYTES>(token);
    if !(1..=MAX_PUSH_TOKEN_BYTES).contains(&token.len()) {
        return Err(EnvelopeError::PushTokenLength);
    }
    Ok(Envelope::PushWake { platform: json::unescape(platform), token })
}

/// What stands between the quotes of the strings `platform` and `token`; `None` if `value` is no
/// object with these two.
fn push_wake_contents(value: &str) -> Option<(&str, &str)> {
    let (mut platform, mut token) = (None, None);
    for member in Members::of(value)? {
        let Member { key, value } = member.ok()?;
        match &*decode_short::<MAX_KEY_LEN>(key) {
            "platform" => platform = Some(value),
            "token" => token = Some(value),
            _ => {}
        }
    }
    Some((json::string_content(platform?)?, json::string_content(token?)?))
}

#[cfg(test)]
mod tests;
