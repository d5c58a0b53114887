//! What one worker knows and decides: plain data, events and a clock value in, actions out.
