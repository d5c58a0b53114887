//! Flags to [`Config`](pyrycode_relay::config::Config), then run; nothing else.
fn main() {}
