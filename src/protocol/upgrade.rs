//! Request heads: from bytes to a checked upgrade, or to the HTTP answer (PROTOCOL.md, chapter 1).
//!
//! httparse reads the syntax. It forgives more than RFC 9112 asks for (bare LF, repeated empty
//! lines), and what it forgives, request smuggling lives on: [`HeadScanner`] refuses it first.

pub use super::fault::Fault;
pub use super::reply::{Health, Readiness, Reply, write_switching_protocols};

use super::ids::ServerId;
use std::fmt;
use tungstenite::handshake::derive_accept_key;

/// The longest request head, in bytes.
pub const MAX_HEAD_BYTES: usize = 16 * 1024;
/// The most header lines.
pub const MAX_HEADERS: usize = 64;
/// The longest device name or version that is kept; they only go to logs.
const MAX_LABEL_BYTES: usize = 256;

/// Where a request leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// `/v1/server`
    Server,
    /// `/v1/client`
    Client,
    /// `/healthz`
    Healthz,
    /// `/readyz`
    Readyz,
    /// `/readyz/404`
    ReadyzOr404,
    /// Anything else.
    NotFound,
}

/// A checked request for a WebSocket, not answered yet. Plain data: it may cross threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// The id that the peer claims or asks for.
    pub server_id: ServerId,
    /// `Sec-WebSocket-Accept` of the answer.
    pub accept_key: [u8; 28],
    /// Who asks.
    pub role: Role,
}

/// Who asks for a WebSocket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The daemon.
    Binary {
        /// `X-Pyrycode-Version`; the peer's text, at most 256 bytes, for logs.
        version: Box<str>,
    },
    /// A phone. Its token was there, and is forgotten.
    Phone {
        /// `X-Pyrycode-Device-Name`; the peer's text, at most 256 bytes, for logs.
        device_name: Option<Box<str>>,
    },
}

/// What the bytes of a head come to.
#[expect(
    clippy::large_enum_variant,
    reason = "lives on the stack for one call; a box would cost each request an allocation"
)]
pub enum ParsedHead<'b> {
    /// More bytes are needed.
    Incomplete,
    /// Not a request that can be answered otherwise; the connection ends with the reply.
    Refused(Reply),
    /// A whole head.
    Complete {
        /// The request.
        request: Request<'b>,
        /// The head's length; what follows it is the caller's.
        consumed: usize,
    },
}

/// Reads one head that arrives in any number of pieces, in time linear in its length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeadScanner {
    /// The end of the head is not before this.
    searched: u32,
    /// How much there was when the syntax was last looked at.
    looked_at: u32,
}

impl HeadScanner {
    /// `bytes` is everything received since the head's start. A head that is not complete is
    /// looked at each time it has doubled, so that nonsense (a TLS hello, an HTTP/2 preface) is
    /// refused when it is seen, not when its time is up.
    pub fn parse<'b>(&mut self, bytes: &'b [u8]) -> ParsedHead<'b> {
        // One empty line before the request line is ignored (RFC 9112, section 2.2).
        let (skipped, head) = match bytes {
            [b'\r', b'\n', head @ ..] => (2, head),
            [] | [b'\r'] => return ParsedHead::Incomplete,
            head => (0, head),
        };
        let from = (self.searched as usize).min(head.len());
        let end = head.get(from..).and_then(|rest| find(rest, b"\r\n\r\n")).map(|at| from + at + 4);
        self.searched = head.len().saturating_sub(3) as u32;
        let Some(end) = end else {
            if bytes.len() > MAX_HEAD_BYTES {
                return ParsedHead::Refused(Reply::HeadTooLarge(Fault::HeadTooLong));
            }
            if head.len() >= 2 * self.looked_at as usize {
                self.looked_at = head.len() as u32;
                return early_refusal(head).map_or(ParsedHead::Incomplete, ParsedHead::Refused);
            }
            return ParsedHead::Incomplete;
        };
        if skipped + end > MAX_HEAD_BYTES {
            return ParsedHead::Refused(Reply::HeadTooLarge(Fault::HeadTooLong));
        }
        match Request::parse(head.get(..end).unwrap_or_default()) {
            Ok(request) => ParsedHead::Complete { request, consumed: skipped + end },
            Err(reply) => ParsedHead::Refused(reply),
        }
    }
}

/// What is wrong with an incomplete head already.
fn early_refusal(head: &[u8]) -> Option<Reply> {
    if !line_ends_are_sound(head) {
        return Some(Reply::BadRequest(Fault::LineEnds));
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    httparse::Request::new(&mut headers).parse(head).err().map(reply_to)
}

/// The answer to what httparse does not understand.
fn reply_to(error: httparse::Error) -> Reply {
    Reply::BadRequest(match error {
        httparse::Error::TooManyHeaders => return Reply::HeadTooLarge(Fault::TooManyHeaders),
        httparse::Error::HeaderName => Fault::HeaderName,
        httparse::Error::HeaderValue => Fault::HeaderValue,
        httparse::Error::NewLine => Fault::LineEnds,
        httparse::Error::Version => Fault::HttpVersion,
        httparse::Error::Token | httparse::Error::Status => Fault::RequestLine,
    })
}

/// Every line ends in CRLF, and no CR stands elsewhere. A CR at the very end may get its LF yet.
fn line_ends_are_sound(head: &[u8]) -> bool {
    let mut after_cr = false;
    for byte in head {
        if after_cr != (*byte == b'\n') {
            return false;
        }
        after_cr = *byte == b'\r';
    }
    true
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// A request head that follows RFC 9112. It holds a secret, the token, so it shows nothing of
/// itself.
pub struct Request<'b> {
    method: &'b str,
    /// The host in the target itself (absolute-form), which outranks the header (RFC 9112, section
    /// 3.2.2).
    authority: Option<&'b str>,
    path: &'b str,
    is_http_1_1: bool,
    has_body: bool,
    headers: [httparse::Header<'b>; MAX_HEADERS],
    header_count: usize,
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").finish_non_exhaustive()
    }
}

impl<'b> Request<'b> {
    fn parse(head: &'b [u8]) -> Result<Self, Reply> {
        // httparse would skip any number of empty lines.
        if !line_ends_are_sound(head) || head.starts_with(b"\r") {
            return Err(Reply::BadRequest(Fault::LineEnds));
        }
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Request::new(&mut headers);
        match parsed.parse(head) {
            Ok(httparse::Status::Complete(length)) if length == head.len() => {}
            Err(error) => return Err(reply_to(error)),
            // An empty line where none may be.
            Ok(_) => return Err(Reply::BadRequest(Fault::LineEnds)),
        }
        let (Some(method), Some(target), Some(minor)) =
            (parsed.method, parsed.path, parsed.version)
        else {
            return Err(Reply::BadRequest(Fault::RequestLine));
        };
        let header_count = parsed.headers.len();
        let (authority, path) = split_target(target).ok_or(Reply::BadRequest(Fault::Target))?;
        let mut request = Self {
            method,
            authority,
            path,
            is_http_1_1: minor == 1,
            has_body: false,
            headers,
            header_count,
        };
        request.has_body = request.check_fields().map_err(Reply::BadRequest)?;
        Ok(request)
    }

    /// The rules of RFC 9112 that span several lines; whether a body follows.
    fn check_fields(&self) -> Result<bool, Fault> {
        let ensure = |is_sound: bool, fault| if is_sound { Ok(()) } else { Err(fault) };
        ensure(self.headers().iter().all(|h| !h.name.is_empty()), Fault::HeaderName)?;
        // httparse lets no control character through but the tab; see its tables.
        let is_text = |value: &[u8]| value.iter().all(|b| *b == b'\t' || *b >= b' ');
        ensure(self.headers().iter().all(|h| is_text(h.value)), Fault::HeaderValue)?;
        let mut hosts = self.values("host");
        match (hosts.next(), hosts.next()) {
            (_, Some(_)) => return Err(Fault::SeveralHosts),
            (Some(host), None) => ensure(is_host(host), Fault::BadHost)?,
            (None, None) => ensure(!self.is_http_1_1, Fault::NoHost)?,
        }
        let length = self.values("content-length").next();
        let lengths_agree = self.values("content-length").all(|other| Some(other) == length);
        let length_is_sound = length.is_none_or(|length| {
            !length.is_empty() && length.len() <= 19 && length.iter().all(u8::is_ascii_digit)
        });
        ensure(lengths_agree && length_is_sound, Fault::ContentLength)?;
        let codings = self.values("transfer-encoding").count();
        // Where another coding is the last one, nobody knows where the body ends.
        let is_chunked = self.values("transfer-encoding").last().is_none_or(|codings| {
            let last = codings.rsplit(|b| *b == b',').next().unwrap_or(codings);
            trim(last).eq_ignore_ascii_case(b"chunked")
        });
        let body_is_clear = codings == 0 || (is_chunked && length.is_none() && self.is_http_1_1);
        ensure(body_is_clear, Fault::TransferEncoding)?;
        let length_is_zero = length.is_none_or(|length| length.iter().all(|digit| *digit == b'0'));
        Ok(codings > 0 || !length_is_zero)
    }

    fn headers(&self) -> &[httparse::Header<'b>] {
        self.headers.get(..self.header_count).unwrap_or_default()
    }

    /// The values of a header, line by line, trimmed. `name` is in lower case.
    fn values(&self, name: &'static str) -> impl DoubleEndedIterator<Item = &'b [u8]> {
        self.headers()
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| trim(header.value))
    }

    /// The first value of a header, which must not be empty.
    fn required(&self, name: &'static str, fault: Fault) -> Result<&'b [u8], Reply> {
        let value = self.values(name).next().filter(|value| !value.is_empty());
        value.ok_or(Reply::BadRequest(fault))
    }

    /// Whether a header's list of tokens has this one, in any case.
    fn has_token(&self, name: &'static str, token: &str) -> bool {
        self.values(name).any(|value| {
            value
                .split(|b| *b == b',')
                .any(|item| trim(item).eq_ignore_ascii_case(token.as_bytes()))
        })
    }

    /// Whether the request is for this host, in any case and with any port (RFC 9110, section 7.2).
    #[must_use]
    pub fn is_for(&self, domain: &str) -> bool {
        let header = || self.values("host").next().unwrap_or_default();
        let host = self.authority.map_or_else(header, str::as_bytes);
        let name = match host.iter().rposition(|b| *b == b':') {
            // Not the colons of an IPv6 address.
            Some(colon) if !host.ends_with(b"]") => host.get(..colon).unwrap_or(host),
            _ => host,
        };
        name.eq_ignore_ascii_case(domain.as_bytes())
    }

    /// Where the request leads: by its path alone, byte for byte.
    #[must_use]
    pub fn route(&self) -> Route {
        match self.path {
            "/v1/server" => Route::Server,
            "/v1/client" => Route::Client,
            "/healthz" => Route::Healthz,
            "/readyz" => Route::Readyz,
            "/readyz/404" => Route::ReadyzOr404,
            _ => Route::NotFound,
        }
    }

    /// The path, without its query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.path
    }

    /// Whether the method is HEAD: the answer has no body.
    #[must_use]
    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// Whether the connection may serve another request (RFC 9112, section 9.3). One with a body
    /// ends it: bodies are not read.
    #[must_use]
    pub fn keep_alive(&self) -> bool {
        let wanted = if self.is_http_1_1 {
            !self.has_token("connection", "close")
        } else {
            self.has_token("connection", "keep-alive")
        };
        wanted && !self.has_body
    }

    /// Whether there is a token.
    #[must_use]
    pub fn has_token_header(&self) -> bool {
        self.values("x-pyrycode-token").next().is_some_and(|token| !token.is_empty())
    }

    /// The values of X-Forwarded-For, line by line.
    pub fn forwarded_for(&self) -> impl DoubleEndedIterator<Item = &'b [u8]> {
        self.values("x-forwarded-for")
    }

    /// Checks a request of a health checker.
    ///
    /// # Errors
    ///
    /// 405: the method is neither GET nor HEAD.
    pub fn health_check(&self) -> Result<(), Reply> {
        match self.method {
            "GET" | "HEAD" => Ok(()),
            _ => Err(Reply::MethodNotAllowed { allow: "GET, HEAD" }),
        }
    }

    /// Checks a request for `/v1/server`: the required headers, then the handshake.
    ///
    /// # Errors
    ///
    /// The answer that the peer is due: 400, 405 or 426.
    pub fn server_upgrade(&self) -> Result<Upgrade, Reply> {
        let server_id = self.server_id()?;
        let version = label(self.required("x-pyrycode-version", Fault::NoVersion)?);
        self.required("user-agent", Fault::NoUserAgent)?;
        Ok(Upgrade { server_id, accept_key: self.handshake()?, role: Role::Binary { version } })
    }

    /// Checks a request for `/v1/client`: the required headers, then the handshake.
    ///
    /// # Errors
    ///
    /// The answer that the peer is due: 400, 405 or 426.
    pub fn client_upgrade(&self) -> Result<Upgrade, Reply> {
        self.client_upgrade_with(true)
    }

    /// As [`Request::client_upgrade`], but where `needs_token` is false it may lack the token.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn client_upgrade_with(&self, needs_token: bool) -> Result<Upgrade, Reply> {
        let server_id = self.server_id()?;
        // The token is for the binary, not for us: all that counts is that there is one.
        if needs_token {
            self.required("x-pyrycode-token", Fault::NoToken)?;
        }
        self.required("user-agent", Fault::NoUserAgent)?;
        let device_name = self.values("x-pyrycode-device-name").next();
        let device_name = device_name.filter(|name| !name.is_empty()).map(label);
        Ok(Upgrade { server_id, accept_key: self.handshake()?, role: Role::Phone { device_name } })
    }

    fn server_id(&self) -> Result<ServerId, Reply> {
        let id = self.required("x-pyrycode-server", Fault::NoServerId)?;
        ServerId::from_header(id).ok_or(Reply::BadRequest(Fault::BadServerId))
    }

    /// RFC 6455, section 4.2.1. Returns the accept key.
    fn handshake(&self) -> Result<[u8; 28], Reply> {
        if !self.is_http_1_1 {
            return Err(Reply::UpgradeRequired(Fault::Http10));
        }
        if !self.has_token("upgrade", "websocket") {
            return Err(Reply::UpgradeRequired(Fault::NoUpgrade));
        }
        if !self.has_token("connection", "upgrade") {
            return Err(Reply::UpgradeRequired(Fault::NoConnection));
        }
        if self.method != "GET" {
            return Err(Reply::MethodNotAllowed { allow: "GET" });
        }
        let mut versions = self.values("sec-websocket-version");
        if versions.next() != Some(b"13") || versions.next().is_some() {
            return Err(Reply::UnsupportedVersion);
        }
        let mut keys = self.values("sec-websocket-key");
        let key = keys.next().filter(|key| is_key(key) && keys.next().is_none());
        let key = key.ok_or(Reply::BadRequest(Fault::BadKey))?;
        if self.has_body {
            return Err(Reply::BadRequest(Fault::Body));
        }
        let accept_key = derive_accept_key(key);
        accept_key.as_bytes().try_into().map_err(|_| Reply::BadRequest(Fault::BadKey))
    }
}

/// Base64 of 16 bytes: 22 characters and `==`. The last character carries two bits; what the other
/// four are is nobody's loss, and clients are known that leave something in them.
fn is_key(key: &[u8]) -> bool {
    let is_base64 = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
    match key {
        [digits @ .., b'=', b'='] => digits.len() == 22 && digits.iter().all(is_base64),
        _ => false,
    }
}

/// A host with an optional port (RFC 9110, section 7.2). An empty one is legal.
fn is_host(host: &[u8]) -> bool {
    let (is_sound, port) = match host {
        [b'[', literal @ ..] => {
            let end = literal.iter().position(|b| *b == b']').unwrap_or(0);
            let (literal, port) = literal.split_at(end);
            let is_literal = |b: &u8| is_unreserved(*b) || *b == b':';
            let is_sound = !literal.is_empty() && literal.iter().all(is_literal);
            (is_sound, port.strip_prefix(b"]").unwrap_or(b"?"))
        }
        _ => {
            let end = host.iter().position(|b| *b == b':').unwrap_or(host.len());
            let (name, port) = host.split_at(end);
            (is_name(name), port)
        }
    };
    let port_is_sound = match port {
        [] => true,
        [b':', digits @ ..] => digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    is_sound && port_is_sound
}

/// A `reg-name` of RFC 3986, section 3.2.2.
fn is_name(mut name: &[u8]) -> bool {
    loop {
        name = match name {
            [] => return true,
            [b'%', a, b, rest @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => rest,
            [b, rest @ ..] if is_unreserved(*b) => rest,
            _ => return false,
        };
    }
}

/// What may stand in a host as it is, `sub-delims` included (RFC 3986, section 2).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

/// The authority, if any, and the path without query, of a target in origin-form or absolute-form
/// (RFC 9112, section 3.2).
fn split_target(target: &str) -> Option<(Option<&str>, &str)> {
    let is_ascii = target.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    let (authority, path) = if target.starts_with('/') {
        (None, target)
    } else {
        let (scheme, rest) = target.split_once("://")?;
        let is_http = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
        let authority_ends = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(authority_ends)?;
        if !is_http || authority.is_empty() || !is_host(authority.as_bytes()) {
            return None;
        }
        (Some(authority), path)
    };
    is_ascii.then(|| (authority, path.split_once('?').map_or(path, |(path, _)| path)))
}

/// A peer's text for logs: what is not UTF-8 is replaced, what is too long is cut.
fn label(value: &[u8]) -> Box<str> {
    let kept = value.get(..MAX_LABEL_BYTES).unwrap_or(value);
    String::from_utf8_lossy(kept).into()
}

/// Without the blanks around it (RFC 9110, section 5.6.3).
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod split_tests;
#[cfg(test)]
mod tests;
