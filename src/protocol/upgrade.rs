//! Request heads: from bytes to a checked upgrade, or to the HTTP answer (PROTOCOL.md, chapter 1).
