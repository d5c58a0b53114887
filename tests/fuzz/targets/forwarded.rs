//! X-Forwarded-For: lines in any number, of which one is a line of the input. Whoever writes to
//! the left of what a trusted proxy has added changes nothing.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pyrycode_relay::protocol::forwarded::caller;
use std::net::IpAddr;

fn is_trusted(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[0] == 10,
        IpAddr::V6(v6) => v6.octets()[0] == 0xfd,
    }
}

fuzz_target!(|data: &[u8]| {
    let lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let found = caller(lines.iter().copied(), is_trusted);
    // Lines are parts of one list.
    let joined = lines.join(&b","[..]);
    assert_eq!(caller([&joined[..]].into_iter(), is_trusted), found);
    if let Some(found) = found {
        assert!(!is_trusted(found.ip()));
        assert_eq!(found.ip(), found.ip().to_canonical());
        let text = found.ip().to_string();
        let again = caller([text.as_bytes()].into_iter(), is_trusted);
        assert_eq!(again.map(|again| again.ip()), Some(found.ip()));
    }
    let proxies: [&[u8]; 3] = [b"192.0.2.7:1", b"10.0.0.1, fd00::1", b"[fd00::2]:9"];
    let all = lines.iter().copied().chain(proxies);
    // The list is walked from its end, so what comes first is not looked at.
    let all: Vec<&[u8]> = all.collect();
    let seen = caller(all.into_iter(), is_trusted).map(|seen| seen.to_string());
    assert_eq!(seen.as_deref(), Some("192.0.2.7:1"));
});
