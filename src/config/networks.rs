//! Networks in CIDR notation.

use ipnet::IpNet;
use std::net::IpAddr;

/// Networks as a flag names them; may be none.
pub(super) type Networks = std::sync::Arc<[IpNet]>;

const HOW: &str = "write 10.0.0.0/8,2001:db8::/32, or an address alone";

/// Reads networks separated by commas. An address alone is a network of one.
pub(super) fn parse(text: &str) -> Result<Networks, String> {
    let entries = text.split(',').map(str::trim);
    if text.trim().is_empty() {
        return Ok(Networks::default());
    }
    entries.map(network).collect()
}

/// The Go relay has a switch of this name, which means something else.
pub(super) const NOT_A_SWITCH: &str = "it names the trusted proxies, as in \
     --trust-x-forwarded-for 10.0.0.0/8; the switch of this name in the Go relay trusted every \
     peer, which is 0.0.0.0/0,::/0 here";

/// As [`parse`], and says what is different to whoever comes from the Go relay.
pub(super) fn trusted(text: &str) -> Result<Networks, String> {
    // What Go reads for a switch.
    let is_of_switch =
        ["true", "false", "t", "f", "1", "0"].contains(&text.to_ascii_lowercase().as_str());
    if is_of_switch { Err(NOT_A_SWITCH.to_owned()) } else { parse(text) }
}

/// The most networks that may be blocked.
const MAX_BLOCKED: usize = 1000;

/// As [`parse`], and no more than can be blocked.
pub(super) fn blocked(text: &str) -> Result<Networks, String> {
    let networks = parse(text)?;
    if networks.len() > MAX_BLOCKED {
        let count = networks.len();
        return Err(format!("{count} networks are too many; write at most {MAX_BLOCKED}"));
    }
    Ok(networks)
}

/// Reads one network, or an address alone.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address.to_canonical()));
    }
    let net: IpNet = text.parse().map_err(|_| format!("{text:?} is not a network; {HOW}"))?;
    if net.addr() != net.network() {
        return Err(format!(
            "{text:?} has bits beyond its prefix; write {} for the network, or {} for the address",
            net.trunc(),
            net.addr()
        ));
    }
    Ok(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        for (text, shown) in [
            ("", vec![]),
            ("10.0.0.0/8", vec!["10.0.0.0/8"]),
            ("127.0.0.1, ::1", vec!["127.0.0.1/32", "::1/128"]),
            ("::ffff:1.2.3.4", vec!["1.2.3.4/32"]),
            ("0.0.0.0/0,::/0", vec!["0.0.0.0/0", "::/0"]),
        ] {
            let networks = parse(text).unwrap();
            assert_eq!(networks.iter().map(ToString::to_string).collect::<Vec<_>>(), shown);
        }
    }

    #[test]
    fn refused_networks() {
        for (text, says) in [
            ("10.0.0.1/8", "write 10.0.0.0/8 for the network"),
            ("10.0.0.0/33", "is not a network"),
            ("10.0.0.0/8,", "\"\" is not a network"),
            ("example.com", "is not a network"),
            ("10.0.0.0/8;::1", "is not a network"),
        ] {
            let refusal = parse(text).unwrap_err();
            assert!(refusal.contains(says), "{text:?}: {refusal}");
        }
    }
}
