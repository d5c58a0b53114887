//! The routing envelope between the relay and a binary (PROTOCOL.md, chapter 4).
