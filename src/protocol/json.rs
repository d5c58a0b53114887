//! Strict validation of RFC 8259 text, without building a tree of it.
