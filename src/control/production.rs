//! What must not be in production, and is worth a word anywhere (PROTOCOL.md, chapter 7).

use crate::config::{Config, Exit};
use std::fs;
use tracing::warn;

/// CAP_NET_BIND_SERVICE, as a bit (capabilities(7)): ports below 1024.
const NET_BIND_SERVICE: u64 = 1 << 10;

/// What the kernel lets the process do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Privileges {
    root: bool,
    /// Every capability that is permitted, effective, inheritable or ambient.
    capabilities: u64,
}

impl Privileges {
    fn observe() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self { root: rustix::process::geteuid().is_root(), capabilities: capabilities(&status) }
    }
}

fn capabilities(status: &str) -> u64 {
    let sets = ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"];
    status
        .lines()
        .filter_map(|line| sets.iter().find_map(|set| line.strip_prefix(set)))
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .fold(0, |all, mask| all | mask)
}

/// What is wrong with this process, each with its cure.
fn faults(privileges: Privileges) -> Vec<&'static str> {
    let mut faults = Vec::new();
    if privileges.root {
        faults.push(
            "it runs as root; run it as a user of its own (`pyrycode-relay systemd-unit` prints a \
             unit that does)",
        );
    } else if privileges.capabilities & !NET_BIND_SERVICE != 0 {
        faults.push(
            "it has capabilities beyond CAP_NET_BIND_SERVICE; take them away (systemd: \
             CapabilityBoundingSet=CAP_NET_BIND_SERVICE)",
        );
    }
    faults
}

/// Refuses in production what must not be there; does nothing elsewhere.
///
/// # Errors
///
/// The first fault, and how to mend it.
pub(super) fn check(config: &Config) -> Result<(), Exit> {
    if !config.production {
        return Ok(());
    }
    if config.insecure.is_some() {
        return Err(refusal(
            "it would serve without TLS; give --domain, or --tls-cert and --tls-key, or leave \
             PYRYCODE_RELAY_PRODUCTION unset behind a proxy that does it",
        ));
    }
    if !config.single_instance {
        return Err(refusal(
            "server-ids are known to one process alone, so two relays for the same daemons would \
             split them; set PYRYCODE_RELAY_SINGLE_INSTANCE=1 to confirm that this is the only one",
        ));
    }
    match faults(Privileges::observe()).first() {
        Some(fault) => Err(refusal(fault)),
        None => Ok(()),
    }
}

/// Warns of what production would refuse.
pub(super) fn warn_of_privileges(config: &Config) {
    if !config.production {
        for fault in faults(Privileges::observe()) {
            warn!(err = fault, "not_for_production");
        }
    }
}

fn refusal(fault: &str) -> Exit {
    Exit::refusal(&format!("production mode: {fault}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_capability_for_low_ports_is_no_fault() {
        let with = |root, capabilities| faults(Privileges { root, capabilities }).len();
        assert_eq!(with(false, 0), 0);
        assert_eq!(with(false, NET_BIND_SERVICE), 0);
        assert_eq!(with(false, NET_BIND_SERVICE | 1), 1);
        assert_eq!(with(true, 0), 1);
    }

    #[test]
    fn every_set_of_capabilities_counts() {
        let status = |set: &str| format!("Name:\tx\n{set}:\t0000000000000400\nSeccomp:\t0\n");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(capabilities(&status(set)), NET_BIND_SERVICE, "{set}");
        }
        // What it might get is not what it has.
        assert_eq!(capabilities(&status("CapBnd")), 0);
    }
}
