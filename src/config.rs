//! Flags, defaults worked out from the machine, refusals.
