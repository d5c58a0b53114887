//! What can be wrong with a request, in words that help whoever wrote the client (PROTOCOL.md,
//! chapter 1): the header or the rule, and never a value.

/// One thing that is wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A bare CR or LF (RFC 9112, section 2.2).
    LineEnds,
    /// The request line has no method, target and version.
    RequestLine,
    /// The version is not HTTP/1.1 or HTTP/1.0.
    HttpVersion,
    /// The target is neither a path nor an http URL (RFC 9112, section 3.2).
    Target,
    /// A header line without a name that is a token and a colon right behind it.
    HeaderName,
    /// A control character in a header's value, or a folded line.
    HeaderValue,
    /// HTTP/1.1 without a Host.
    NoHost,
    /// More than one Host.
    SeveralHosts,
    /// A Host that is no host.
    BadHost,
    /// Content-Length is no number, or there are different ones.
    ContentLength,
    /// Transfer-Encoding is not chunked at its end, or stands beside Content-Length.
    TransferEncoding,
    /// `X-Pyrycode-Server` is missing or empty.
    NoServerId,
    /// `X-Pyrycode-Server` is too long, or not UTF-8.
    BadServerId,
    /// `X-Pyrycode-Version` is missing or empty.
    NoVersion,
    /// `X-Pyrycode-Token` is missing or empty.
    NoToken,
    /// `User-Agent` is missing or empty.
    NoUserAgent,
    /// No `Sec-WebSocket-Key`, or several, or not 16 bytes of base64.
    BadKey,
    /// A body where a WebSocket is asked for.
    Body,
    /// HTTP/1.0 cannot be upgraded.
    Http10,
    /// No `Upgrade: websocket`.
    NoUpgrade,
    /// No `Connection: upgrade`; proxies take it off unless they are told not to.
    NoConnection,
    /// The head is over its length.
    HeadTooLong,
    /// The head has too many lines.
    TooManyHeaders,
}

impl Fault {
    /// The fault in one line, at most 99 bytes long; the same for every request that has it.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::LineEnds => {
                "every line of the head must end in CR LF, and neither may stand alone"
            }
            Self::RequestLine => "the request line must be: METHOD TARGET HTTP/1.1",
            Self::HttpVersion => "the version must be HTTP/1.1 or HTTP/1.0",
            Self::Target => "the target must be a path or an http URL",
            Self::HeaderName => {
                "a header line must be: NAME: VALUE, with no blank before the colon"
            }
            Self::HeaderValue => {
                "a header's value must be on one line and have no control characters"
            }
            Self::NoHost => "the header Host is missing",
            Self::SeveralHosts => "there must be one header Host",
            Self::BadHost => "the header Host must be a host with an optional port",
            Self::ContentLength => "the header Content-Length must be one number",
            Self::TransferEncoding => {
                "the header Transfer-Encoding must end in chunked, without Content-Length"
            }
            Self::NoServerId => "the header X-Pyrycode-Server is missing or empty",
            Self::BadServerId => "the header X-Pyrycode-Server must be UTF-8 of at most 256 bytes",
            Self::NoVersion => "the header X-Pyrycode-Version is missing or empty",
            Self::NoToken => "the header X-Pyrycode-Token is missing or empty",
            Self::NoUserAgent => "the header User-Agent is missing or empty",
            Self::BadKey => "there must be one header Sec-WebSocket-Key, with 16 bytes in base64",
            Self::Body => "a request for a WebSocket must have no body",
            Self::Http10 => "a WebSocket requires HTTP/1.1",
            Self::NoUpgrade => {
                "this is a WebSocket endpoint: the header Upgrade must name websocket"
            }
            Self::NoConnection => {
                "this is a WebSocket endpoint: the header Connection must name upgrade"
            }
            Self::HeadTooLong => "the request head is over 16 KiB",
            Self::TooManyHeaders => "the request head has over 64 header lines",
        }
    }
}
