//! Structured logs and the keys that they may carry.
