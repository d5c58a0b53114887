//! RFC 6455 frames over buffers that the caller owns (PROTOCOL.md, chapter 2).
