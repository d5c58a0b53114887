//! Time as the relay counts it. Whoever needs it is told; the core never reads a clock.

/// Milliseconds since the process started.
pub type Millis = u64;

/// A deadline that never comes.
pub const NEVER: Millis = Millis::MAX;
