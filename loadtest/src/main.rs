//! Load generator for relays that speak the pyrycode protocol.
fn main() {}
