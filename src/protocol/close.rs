//! Every close code and reason that the relay sends, in one table (PROTOCOL.md, chapter 2).

/// A close code with its reason, as it goes into a close frame (RFC 6455, section 5.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close {
    /// The status code (RFC 6455, section 7.4).
    pub code: u16,
    /// The reason phrase; empty for none. At most 123 bytes, so that the frame is a control frame.
    pub reason: &'static str,
}

/// The longest reason, in bytes: a close is a control frame.
pub const MAX_REASON_BYTES: usize = 123;

impl Close {
    const fn new(code: u16, reason: &'static str) -> Self {
        assert!(reason.len() <= MAX_REASON_BYTES);
        Self { code, reason }
    }

    /// To a phone: grace ran out, it sent non-JSON, or its frame could not reach a binary.
    pub const NORMAL: Self = Self::new(1000, "");
    /// To both: the process was asked to stop.
    pub const SHUTTING_DOWN: Self = Self::new(1001, "shutting down");
    /// To both, over TLS 1.2: the connection's keys have protected as many records as they may, and
    /// cannot be changed.
    pub const KEYS_USED_UP: Self = Self::new(1001, "TLS keys used up");
    /// To both: the peer broke the framing rules of RFC 6455.
    pub const PROTOCOL_ERROR: Self = Self::new(1002, "");
    /// To both: a text message was not UTF-8.
    pub const INVALID_UTF8: Self = Self::new(1007, "");
    /// To both: a message was over 262,144 bytes.
    pub const TOO_BIG: Self = Self::new(1009, "");
    /// To both: no matching pong in time; also to the silent incumbent that lost a takeover.
    pub const HEARTBEAT_TIMEOUT: Self = Self::new(1011, "heartbeat timeout");
    /// To both: the operator drains the relay, or has it restarted.
    pub const SERVICE_RESTART: Self = Self::new(1012, "service restart");
    /// To a phone: its outbox went over its limit, or it held the largest backlog of a process
    /// that went over its memory budget.
    pub const BACKLOG_FULL: Self = Self::new(1011, "phone backlog full");
    /// To a phone: nobody holds the id that it asked for.
    pub const NO_SERVER: Self = Self::new(4404, "no server with that id");
    /// To a phone: another connection of the binary took the id.
    pub const RECLAIMED: Self = Self::new(4404, "binary reclaimed server-id");
    /// To a binary: the id has a living holder.
    pub const ALREADY_CLAIMED: Self = Self::new(4409, "server-id already claimed");
    /// To a phone: the id has as many phones as it may have.
    pub const TOO_MANY_PHONES: Self = Self::new(4429, "too many phones for server-id");

    /// The close that a binary's directive asks for: codes that RFC 6455 lets an endpoint send
    /// pass through, any other is sent as 1011 (PROTOCOL.md, chapter 2).
    #[must_use]
    pub const fn directive(code: u16) -> Self {
        match code {
            1000..=1003 | 1007..=1014 | 3000..=4999 => Self { code, reason: "" },
            _ => Self { code: 1011, reason: "" },
        }
    }
}

/// What a binary is told of a phone that left without a close frame.
pub const GONE_WITHOUT_CLOSE: u16 = 1001;
/// What a binary is told of a phone whose close frame carried no code (RFC 6455, section 7.1.5).
pub const NO_CODE: u16 = 1005;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directive_codes_pass_or_become_1011() {
        for code in 0..=u16::MAX {
            let passes = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
            assert_eq!(Close::directive(code).code, if passes { code } else { 1011 }, "{code}");
        }
    }
}
