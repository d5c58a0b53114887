//! Counters that workers write and everyone else reads.
