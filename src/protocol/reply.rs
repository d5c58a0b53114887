//! HTTP answers, as bytes (PROTOCOL.md, chapter 1). They echo nothing of the request.

use super::fault::Fault;

/// An answer that is no upgrade and no health report. It ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// 400: the head breaks RFC 9112, a required header is missing, or the key is bad.
    BadRequest(Fault),
    /// 400, with the one version that is spoken (RFC 6455, section 4.4).
    UnsupportedVersion,
    /// 400: HTTP in the clear where TLS is spoken.
    HttpOnHttps,
    /// 403: the operator does not want the caller here.
    Forbidden(&'static str),
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
    /// 426: no WebSocket is asked for.
    UpgradeRequired(Fault),
    /// 429: the caller's address asks for upgrades too often.
    TooManyRequests {
        /// When to try again, in seconds.
        retry_after_s: u64,
    },
    /// 431: the head is too long, or has too many lines.
    HeadTooLarge(Fault),
    /// 503: there are as many connections as there may be.
    Unavailable {
        /// When to try again, in seconds.
        retry_after_s: u64,
    },
    /// 503: the operator sends everybody away.
    Draining {
        /// When to try again, in seconds.
        retry_after_s: u64,
    },
}

impl Reply {
    /// Why, in one fixed line without its end: the body of the answer, and what a log may say.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::BadRequest(fault) | Self::UpgradeRequired(fault) | Self::HeadTooLarge(fault) => {
                fault.text()
            }
            Self::UnsupportedVersion => "there must be one header Sec-WebSocket-Version, with 13",
            // As a Go server says it (net/http).
            Self::HttpOnHttps => "Client sent an HTTP request to an HTTPS server.",
            Self::Forbidden(why) => why,
            Self::NotFound => "not found",
            Self::MethodNotAllowed { .. } => "the method is not one of those in the header Allow",
            Self::RequestTimeout => "request timeout",
            Self::MisdirectedRequest => "the header Host names a host that is not served here",
            Self::TooManyRequests { .. } => "too many requests",
            Self::Unavailable { .. } => "too many connections",
            Self::Draining { .. } => "the relay is being drained and takes no new binary",
        }
    }

    /// Status, with its reason phrase.
    #[must_use]
    pub fn status(self) -> &'static str {
        match self {
            Self::BadRequest(_) | Self::UnsupportedVersion | Self::HttpOnHttps => "400 Bad Request",
            Self::Forbidden(_) => "403 Forbidden",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed { .. } => "405 Method Not Allowed",
            Self::RequestTimeout => "408 Request Timeout",
            Self::MisdirectedRequest => "421 Misdirected Request",
            Self::UpgradeRequired(_) => "426 Upgrade Required",
            Self::TooManyRequests { .. } => "429 Too Many Requests",
            Self::HeadTooLarge(_) => "431 Request Header Fields Too Large",
            Self::Unavailable { .. } | Self::Draining { .. } => "503 Service Unavailable",
        }
    }

    /// Appends the whole answer, without its body if the method was HEAD.
    pub fn write(self, out: &mut Vec<u8>, head_only: bool) {
        let text = self.text();
        line(out, &["HTTP/1.1 ", self.status()]);
        match self {
            Self::UnsupportedVersion => line(out, &["Sec-WebSocket-Version: 13"]),
            Self::MethodNotAllowed { allow } => line(out, &["Allow: ", allow]),
            Self::UpgradeRequired(_) => line(out, &["Upgrade: websocket"]),
            Self::TooManyRequests { retry_after_s }
            | Self::Unavailable { retry_after_s }
            | Self::Draining { retry_after_s } => {
                line(out, &["Retry-After: ", &retry_after_s.to_string()]);
            }
            _ => {}
        }
        // Connection is a list, and 426 must name Upgrade in it (RFC 9110, section 7.8).
        let is_426 = matches!(self, Self::UpgradeRequired(_));
        line(out, &["Connection: ", if is_426 { "Upgrade, close" } else { "close" }]);
        line(out, &["Content-Type: text/plain; charset=utf-8"]);
        line(out, &["Content-Length: ", &(text.len() + 1).to_string()]);
        line(out, &[]);
        if !head_only {
            out.extend_from_slice(text.as_bytes());
            out.push(b'\n');
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
        let report =
            Report { status: "200 OK", content_type: "application/json", body: &self.body() };
        report.write(out, head_only, keep_alive);
    }
}

/// What a health checker is told.
struct Report<'a> {
    status: &'a str,
    content_type: &'a str,
    body: &'a str,
}

impl Report<'_> {
    /// Appends the whole answer, without its body if the method was HEAD.
    fn write(&self, out: &mut Vec<u8>, head_only: bool, keep_alive: bool) {
        line(out, &["HTTP/1.1 ", self.status]);
        line(out, &["Content-Type: ", self.content_type, "; charset=utf-8"]);
        line(out, &["Cache-Control: no-store"]);
        line(out, &["Connection: ", if keep_alive { "keep-alive" } else { "close" }]);
        line(out, &["Content-Length: ", &self.body.len().to_string()]);
        line(out, &[]);
        if !head_only {
            out.extend_from_slice(self.body.as_bytes());
        }
    }
}

/// The answer to `/readyz` and `/readyz/404`: whether a balancer may lead new connections here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// It takes new connections.
    pub ready: bool,
    /// That it does not is told by 404, which HAProxy (`http-check disable-on-404`) takes for: lead
    /// nobody new there, and leave those who are there.
    pub or_404: bool,
}

impl Readiness {
    /// Appends the whole answer, without its body if the method was HEAD.
    pub fn write(self, out: &mut Vec<u8>, head_only: bool, keep_alive: bool) {
        let (status, body) = match self {
            Self { ready: true, .. } => ("200 OK", "ready\n"),
            Self { or_404: false, .. } => ("503 Service Unavailable", "not ready\n"),
            Self { or_404: true, .. } => ("404 Not Found", "not ready\n"),
        };
        Report { status, content_type: "text/plain", body }.write(out, head_only, keep_alive);
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
