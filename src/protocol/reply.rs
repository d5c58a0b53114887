//! HTTP answers, as bytes (PROTOCOL.md, chapter 1). They echo nothing of the request.

/// An answer that is no upgrade and no health report. It ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// 400: the head breaks RFC 9112, a required header is missing, or the key is bad.
    BadRequest,
    /// 400, with the one version that is spoken (RFC 6455, section 4.4).
    UnsupportedVersion,
    /// 404
    NotFound,
    /// 405
    MethodNotAllowed {
        /// The methods that are allowed.
        allow: &'static str,
    },
    /// 408: the head did not come in time.
    RequestTimeout,
    /// 421: the request is for another host (RFC 9110, section 15.5.20).
    MisdirectedRequest,
    /// 426
    UpgradeRequired,
    /// 429: the caller's address asks for upgrades too often.
    TooManyRequests {
        /// When to try again, in seconds.
        retry_after_s: u64,
    },
    /// 431: the head is too long, or has too many lines.
    HeadTooLarge,
    /// 503: there are as many connections as there may be.
    Unavailable {
        /// When to try again, in seconds.
        retry_after_s: u64,
    },
}

impl Reply {
    /// Status, reason phrase, body, and header lines of its own.
    fn parts(self) -> (&'static str, &'static str, [(&'static str, &'static str); 2]) {
        const NONE: (&str, &str) = ("", "");
        match self {
            Self::BadRequest => ("400 Bad Request", "bad request\n", [NONE, NONE]),
            Self::UnsupportedVersion => (
                "400 Bad Request",
                "this is WebSocket version 13\n",
                [("Sec-WebSocket-Version", "13"), NONE],
            ),
            Self::NotFound => ("404 Not Found", "not found\n", [NONE, NONE]),
            Self::MethodNotAllowed { allow } => {
                ("405 Method Not Allowed", "method not allowed\n", [("Allow", allow), NONE])
            }
            Self::RequestTimeout => ("408 Request Timeout", "request timeout\n", [NONE, NONE]),
            Self::MisdirectedRequest => {
                ("421 Misdirected Request", "this host is not served here\n", [NONE, NONE])
            }
            Self::UpgradeRequired => (
                "426 Upgrade Required",
                "this is a WebSocket endpoint\n",
                [("Upgrade", "websocket"), NONE],
            ),
            Self::TooManyRequests { .. } => {
                ("429 Too Many Requests", "too many requests\n", [NONE, NONE])
            }
            Self::Unavailable { .. } => {
                ("503 Service Unavailable", "too many connections\n", [NONE, NONE])
            }
            Self::HeadTooLarge => (
                "431 Request Header Fields Too Large",
                "request header fields too large\n",
                [NONE, NONE],
            ),
        }
    }

    /// Appends the whole answer, without its body if the method was HEAD.
    pub fn write(self, out: &mut Vec<u8>, head_only: bool) {
        let (status, body, headers) = self.parts();
        // Connection is a list, and 426 must name Upgrade in it (RFC 9110, section 7.8).
        let connection = if self == Self::UpgradeRequired { "Upgrade, close" } else { "close" };
        line(out, &["HTTP/1.1 ", status]);
        for (name, value) in headers.iter().filter(|(name, _)| !name.is_empty()) {
            line(out, &[name, ": ", value]);
        }
        if let Self::TooManyRequests { retry_after_s } | Self::Unavailable { retry_after_s } = self
        {
            line(out, &["Retry-After: ", &retry_after_s.to_string()]);
        }
        line(out, &["Connection: ", connection]);
        line(out, &["Content-Type: text/plain; charset=utf-8"]);
        line(out, &["Content-Length: ", &body.len().to_string()]);
        line(out, &[]);
        if !head_only {
            out.extend_from_slice(body.as_bytes());
        }
    }
}

/// The answer to `/healthz`.
#[derive(Debug, Clone, Copy)]
pub struct Health<'a> {
    /// The relay's version.
    pub version: &'a str,
    /// Binaries that hold a server-id.
    pub connected_binaries: u64,
    /// Phones that are registered.
    pub connected_phones: u64,
    /// Since the process started.
    pub uptime_seconds: u64,
}

impl Health<'_> {
    /// The JSON of the answer.
    #[must_use]
    pub fn body(&self) -> String {
        let Self { version, connected_binaries, connected_phones, uptime_seconds } = self;
        format!(
            "{{\"status\":\"ok\",\"version\":\"{version}\",\
             \"connected_binaries\":{connected_binaries},\
             \"connected_phones\":{connected_phones},\"uptime_seconds\":{uptime_seconds}}}"
        )
    }

    /// Appends the whole answer, without its body if the method was HEAD.
    pub fn write(&self, out: &mut Vec<u8>, head_only: bool, keep_alive: bool) {
        let body = self.body();
        line(out, &["HTTP/1.1 200 OK"]);
        line(out, &["Content-Type: application/json; charset=utf-8"]);
        line(out, &["Cache-Control: no-store"]);
        line(out, &["Connection: ", if keep_alive { "keep-alive" } else { "close" }]);
        line(out, &["Content-Length: ", &body.len().to_string()]);
        line(out, &[]);
        if !head_only {
            out.extend_from_slice(body.as_bytes());
        }
    }
}

/// Appends the 101 with this `Sec-WebSocket-Accept` (RFC 6455, section 4.2.2).
pub fn write_switching_protocols(out: &mut Vec<u8>, accept_key: &[u8; 28]) {
    line(out, &["HTTP/1.1 101 Switching Protocols"]);
    line(out, &["Upgrade: websocket"]);
    line(out, &["Connection: Upgrade"]);
    out.extend_from_slice(b"Sec-WebSocket-Accept: ");
    out.extend_from_slice(accept_key);
    line(out, &[]);
    line(out, &[]);
}

fn line(out: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}
