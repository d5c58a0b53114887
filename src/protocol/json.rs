//! Strict validation of RFC 8259 text, without building a tree of it.
//!
//! The relay forwards JSON verbatim and never looks inside, so all that it needs of a text is that
//! it is exactly one value, and of an object where its members lie. Nothing here allocates or
//! recurses: memory is constant and time is linear, whatever a peer sends. Numbers are checked for
//! their grammar and never evaluated; `\u` escapes may be lone surrogates, as the grammar allows.

use std::borrow::Cow;
use std::fmt;

/// How deeply arrays and objects may nest. RFC 8259, section 9, lets a parser set a limit;
/// PROTOCOL.md, chapter 4, asks for 128 at least. A frame is counted from its own outermost
/// bracket, so what is valid alone is valid inside an envelope.
pub const MAX_DEPTH: usize = 1024;

/// Why a text is not JSON. It carries offsets, in bytes, and nothing of the text itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JsonError {
    /// The text is not UTF-8 (RFC 8259, section 8.1).
    NotUtf8,
    /// The text is empty, or ends before its value does.
    Truncated,
    /// The byte at this offset cannot stand there.
    Unexpected {
        /// Offset of the first byte that is wrong.
        at: usize,
    },
    /// The bracket at this offset is nested deeper than [`MAX_DEPTH`].
    TooDeep {
        /// Offset of the bracket.
        at: usize,
    },
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUtf8 => f.write_str("not UTF-8"),
            Self::Truncated => f.write_str("the JSON value is incomplete"),
            Self::Unexpected { at } => write!(f, "not JSON at byte {at}"),
            Self::TooDeep { at } => write!(f, "nested over {MAX_DEPTH} levels at byte {at}"),
        }
    }
}

impl std::error::Error for JsonError {}

/// The one JSON value in `text`, verbatim, with the whitespace around it trimmed.
///
/// # Errors
/// Any [`JsonError`]: the sender's fault.
pub fn validate(text: &[u8]) -> Result<&[u8], JsonError> {
    let text = simdutf8::basic::from_utf8(text).map_err(|_| JsonError::NotUtf8)?;
    validate_str(text).map(str::as_bytes)
}

/// [`validate`] for text that is known to be UTF-8, as that of a text message is.
///
/// # Errors
/// Any [`JsonError`] but [`JsonError::NotUtf8`]: the sender's fault.
pub fn validate_str(text: &str) -> Result<&str, JsonError> {
    let bytes = text.as_bytes();
    let start = skip_whitespace(bytes, 0);
    let end = skip_value(bytes, start)?;
    expect_end(bytes, end)?;
    Ok(span(text, start, end))
}

/// One member of an object, verbatim.
#[derive(Clone, Copy)]
pub struct Member<'a> {
    /// What stands between the quotes of its name; see [`unescape`].
    pub key: &'a str,
    /// Its value, without the whitespace around it.
    pub value: &'a str,
}

/// Walks the members of the one object in a text, in order, and checks the text on the way: each
/// byte is read once. The text is known to be valid when the walk has ended without an error;
/// after an error the walk must not go on.
pub struct Members<'a> {
    text: &'a str,
    /// At the first member, or behind a value; never at whitespace.
    at: usize,
    at_first: bool,
}

impl<'a> Members<'a> {
    /// Starts the walk. `None` if the text does not begin as an object.
    #[must_use]
    pub fn of(text: &'a str) -> Option<Self> {
        let bytes = text.as_bytes();
        let start = skip_whitespace(bytes, 0);
        let is_object = bytes.get(start) == Some(&b'{');
        is_object.then(|| Self { text, at: skip_whitespace(bytes, start + 1), at_first: true })
    }

    fn advance(&mut self) -> Result<Option<Member<'a>>, JsonError> {
        let bytes = self.text.as_bytes();
        let key = match bytes.get(self.at) {
            Some(b'}') => return expect_end(bytes, self.at + 1).map(|()| None),
            Some(b',') if !self.at_first => skip_whitespace(bytes, self.at + 1),
            _ if self.at_first => self.at,
            _ => return Err(unexpected(bytes, self.at)),
        };
        self.at_first = false;
        let key_end = skip_quoted(bytes, key)?;
        let value = skip_colon(bytes, key_end)?;
        let value_end = skip_value(bytes, value)?;
        self.at = skip_whitespace(bytes, value_end);
        Ok(Some(Member {
            key: span(self.text, key + 1, key_end - 1),
            value: span(self.text, value, value_end),
        }))
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = Result<Member<'a>, JsonError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

/// What stands between the quotes, if `value`, which must be valid, is a string.
#[must_use]
pub fn string_content(value: &str) -> Option<&str> {
    value.strip_prefix('"')?.strip_suffix('"')
}

/// The text that the content of a valid string stands for. Allocates only if there are escapes. A
/// lone surrogate, which no text can hold, becomes U+FFFD.
#[must_use]
pub fn unescape(content: &str) -> Cow<'_, str> {
    if !content.contains('\\') {
        return Cow::Borrowed(content);
    }
    let mut text = String::with_capacity(content.len());
    let mut rest = content;
    while let Some(escape) = rest.find('\\') {
        let (plain, escaped) = rest.split_at_checked(escape).unwrap_or((rest, ""));
        text.push_str(plain);
        rest = unescape_one(escaped, &mut text);
    }
    text.push_str(rest);
    Cow::Owned(text)
}

/// Decodes the escape at the start of `escaped`, or the whole run of `\u` escapes there, since two
/// of them may make one character. Returns what follows.
fn unescape_one<'a>(escaped: &'a str, text: &mut String) -> &'a str {
    let mut rest = escaped;
    let units = std::iter::from_fn(|| {
        let (digits, tail) = rest.strip_prefix("\\u")?.split_at_checked(4)?;
        rest = tail;
        u16::from_str_radix(digits, 16).ok()
    });
    let characters = char::decode_utf16(units);
    text.extend(characters.map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)));
    if rest.len() < escaped.len() {
        return rest;
    }
    let mut characters = escaped.chars();
    match characters.by_ref().nth(1) {
        Some('b') => text.push('\u{8}'),
        Some('f') => text.push('\u{c}'),
        Some('n') => text.push('\n'),
        Some('r') => text.push('\r'),
        Some('t') => text.push('\t'),
        Some(itself) => text.push(itself),
        None => {}
    }
    characters.as_str()
}

/// The part of `text` that the functions below have measured: they stop beside ASCII bytes only,
/// and never past the end, so the fallback cannot be reached.
fn span(text: &str, start: usize, end: usize) -> &str {
    text.get(start..end).unwrap_or_default()
}

#[cold]
fn unexpected(text: &[u8], at: usize) -> JsonError {
    if at < text.len() { JsonError::Unexpected { at } } else { JsonError::Truncated }
}

fn expect_end(text: &[u8], at: usize) -> Result<(), JsonError> {
    let end = skip_whitespace(text, at);
    if end == text.len() { Ok(()) } else { Err(unexpected(text, end)) }
}

// Each function below takes an offset and returns the offset behind what it has passed over.

#[inline]
fn skip_whitespace(text: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\t' | b'\n' | b'\r') = text.get(at) {
        at += 1;
    }
    at
}

#[inline]
fn skip_value(text: &[u8], at: usize) -> Result<usize, JsonError> {
    match text.get(at) {
        Some(b'{' | b'[') => skip_container(text, at),
        _ => skip_scalar(text, at),
    }
}

#[inline]
fn skip_scalar(text: &[u8], at: usize) -> Result<usize, JsonError> {
    match text.get(at) {
        Some(b'"') => skip_quoted(text, at),
        Some(b'-' | b'0'..=b'9') => skip_number(text, at),
        Some(b't') => skip_literal(text, at, b"true"),
        Some(b'f') => skip_literal(text, at, b"false"),
        Some(b'n') => skip_literal(text, at, b"null"),
        _ => Err(unexpected(text, at)),
    }
}

/// The array or object that begins at `at`.
fn skip_container(text: &[u8], mut at: usize) -> Result<usize, JsonError> {
    let mut nesting = Nesting::new();
    loop {
        // A value begins here.
        if let Some(bracket @ (b'{' | b'[')) = text.get(at) {
            let in_object = *bracket == b'{';
            nesting.enter(in_object).ok_or(JsonError::TooDeep { at })?;
            at = skip_whitespace(text, at + 1);
            if text.get(at) != Some(&closing_bracket(in_object)) {
                at = skip_key(text, at, in_object)?;
                continue;
            }
        } else {
            at = skip_whitespace(text, skip_scalar(text, at)?);
        }
        // A value has ended before this, or an empty container ends here.
        while text.get(at) == Some(&closing_bracket(nesting.in_object)) {
            at += 1;
            if !nesting.leave() {
                return Ok(at);
            }
            at = skip_whitespace(text, at);
        }
        if text.get(at) != Some(&b',') {
            return Err(unexpected(text, at));
        }
        at = skip_key(text, skip_whitespace(text, at + 1), nesting.in_object)?;
    }
}

#[inline]
fn closing_bracket(in_object: bool) -> u8 {
    if in_object { b'}' } else { b']' }
}

/// What stands before a value in a container: in an object a name and a colon, in an array nothing.
#[inline]
fn skip_key(text: &[u8], at: usize, in_object: bool) -> Result<usize, JsonError> {
    if in_object { skip_colon(text, skip_quoted(text, at)?) } else { Ok(at) }
}

#[inline]
fn skip_colon(text: &[u8], at: usize) -> Result<usize, JsonError> {
    let colon = skip_whitespace(text, at);
    match text.get(colon) {
        Some(b':') => Ok(skip_whitespace(text, colon + 1)),
        _ => Err(unexpected(text, colon)),
    }
}

/// Which of the containers around a place are objects: one bit for each level.
struct Nesting {
    objects: [u64; MAX_DEPTH / 64],
    depth: usize,
    /// The innermost container is an object.
    in_object: bool,
}

impl Nesting {
    fn new() -> Self {
        Self { objects: [0; MAX_DEPTH / 64], depth: 0, in_object: false }
    }

    /// `None` if that is one level too many.
    #[inline]
    fn enter(&mut self, object: bool) -> Option<()> {
        let word = self.objects.get_mut(self.depth / 64)?;
        let bit = self.depth % 64;
        *word = *word & !(1 << bit) | u64::from(object) << bit;
        self.depth += 1;
        self.in_object = object;
        Some(())
    }

    /// `false` if that was the outermost container.
    #[inline]
    fn leave(&mut self) -> bool {
        self.depth -= 1;
        let Some(around) = self.depth.checked_sub(1) else { return false };
        let word = self.objects.get(around / 64).copied().unwrap_or_default();
        self.in_object = word >> (around % 64) & 1 == 1;
        true
    }
}

#[inline]
fn skip_literal(text: &[u8], at: usize, literal: &[u8]) -> Result<usize, JsonError> {
    match text.get(at..) {
        Some(rest) if rest.starts_with(literal) => Ok(at + literal.len()),
        _ => Err(unexpected(text, at)),
    }
}

fn skip_number(text: &[u8], mut at: usize) -> Result<usize, JsonError> {
    if text.get(at) == Some(&b'-') {
        at += 1;
    }
    at = if text.get(at) == Some(&b'0') { at + 1 } else { skip_digits(text, at)? };
    if text.get(at) == Some(&b'.') {
        at = skip_digits(text, at + 1)?;
    }
    if let Some(b'e' | b'E') = text.get(at) {
        at += 1;
        if let Some(b'+' | b'-') = text.get(at) {
            at += 1;
        }
        at = skip_digits(text, at)?;
    }
    Ok(at)
}

/// One digit or more.
#[inline]
fn skip_digits(text: &[u8], start: usize) -> Result<usize, JsonError> {
    let mut at = start;
    while let Some(b'0'..=b'9') = text.get(at) {
        at += 1;
    }
    if at > start { Ok(at) } else { Err(unexpected(text, at)) }
}

/// A string, its quotes included.
fn skip_quoted(text: &[u8], at: usize) -> Result<usize, JsonError> {
    if text.get(at) != Some(&b'"') {
        return Err(unexpected(text, at));
    }
    let mut at = at + 1;
    loop {
        at = skip_plain(text, at);
        match text.get(at) {
            Some(b'"') => return Ok(at + 1),
            Some(b'\\') => at = skip_escape(text, at)?,
            _ => return Err(unexpected(text, at)),
        }
    }
}

#[inline]
fn skip_escape(text: &[u8], at: usize) -> Result<usize, JsonError> {
    match text.get(at + 1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 2),
        Some(b'u') => {
            let digits = at + 2..at + 6;
            match digits.clone().find(|&d| !text.get(d).is_some_and(u8::is_ascii_hexdigit)) {
                None => Ok(digits.end),
                Some(wrong) => Err(unexpected(text, wrong)),
            }
        }
        _ => Err(unexpected(text, at + 1)),
    }
}

/// Bytes of a string's content that stand for themselves. Frames are mostly one long string, so
/// this is where the time goes: most strings end within a few words; the long ones are passed in
/// chunks that the compiler turns into vector instructions.
#[inline]
fn skip_plain(text: &[u8], mut at: usize) -> usize {
    const WORDS_BEFORE_CHUNKS: usize = 4;
    for _ in 0..WORDS_BEFORE_CHUNKS {
        match special_in_word(text, at) {
            Some(0) => at += 8,
            Some(special) => return at + first_special(special),
            None => return skip_plain_bytes(text, at),
        }
    }
    skip_plain_chunks(text, at)
}

fn skip_plain_chunks(text: &[u8], mut at: usize) -> usize {
    let chunks = text.get(at..).unwrap_or_default().as_chunks::<64>().0;
    let is_plain = |chunk: &&[u8; 64]| !chunk.iter().fold(false, |any, &b| any | is_special(b));
    at += 64 * chunks.iter().take_while(is_plain).count();
    loop {
        match special_in_word(text, at) {
            Some(0) => at += 8,
            Some(special) => return at + first_special(special),
            None => return skip_plain_bytes(text, at),
        }
    }
}

fn skip_plain_bytes(text: &[u8], mut at: usize) -> usize {
    while text.get(at).is_some_and(|&byte| !is_special(byte)) {
        at += 1;
    }
    at
}

/// A quote, a backslash or a control character. Flipping bit 1 brings the quote (0x22) down to
/// 0x20, next to the control characters, and nothing else below 0x21.
#[inline]
fn is_special(byte: u8) -> bool {
    (byte ^ 0x02 < 0x21) | (byte == b'\\')
}

/// [`is_special`] for the eight bytes at `at`; `None` if there are fewer. The highest bit of each
/// byte tells of that byte; bits above the lowest one that is set may be wrong, since a borrow
/// runs upwards.
#[inline]
fn special_in_word(text: &[u8], at: usize) -> Option<u64> {
    const fn in_each_byte(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    let word = u64::from_le_bytes(*text.get(at..)?.first_chunk()?);
    let low = (word ^ in_each_byte(0x02)).wrapping_sub(in_each_byte(0x21));
    let backslash = (word ^ in_each_byte(b'\\')).wrapping_sub(in_each_byte(1));
    Some((low | backslash) & !word & in_each_byte(0x80))
}

/// Which byte of a word that is not all plain is its first special one.
#[inline]
fn first_special(special: u64) -> usize {
    (special.trailing_zeros() / 8) as usize
}

#[cfg(test)]
mod tests;
