//! What must not be in production, and is worth a word anywhere (PROTOCOL.md, chapter 7).

use crate::config::{Config, Exit};
use rustix::thread::CapabilitySet;
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
    /// # Errors
    ///
    /// Why it cannot be known; that is not to pass for no privileges.
    fn observe() -> Result<Self, String> {
        let status = fs::read_to_string("/proc/self/status").map_err(|error| error.to_string());
        let capabilities = status.and_then(|status| capabilities(&status)).map_err(|why| {
            format!("its capabilities are unknown: /proc/self/status: {why}; mount /proc")
        })?;
        Ok(Self { root: rustix::process::geteuid().is_root(), capabilities })
    }
}

fn capabilities(status: &str) -> Result<u64, String> {
    let mut all = 0;
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        let mask = status.lines().find_map(|line| line.strip_prefix(set));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        all |= mask.ok_or_else(|| format!("it has no mask {set}"))?;
    }
    Ok(all)
}

/// The most capabilities that are named in one line.
const MAX_NAMES: usize = 4;

/// Their names, a few if there are many, and the number of one that is not known here.
fn show(capabilities: u64) -> String {
    let held =
        (0..u64::BITS).map(|bit| (bit, 1_u64 << bit)).filter(|(_, one)| capabilities & one != 0);
    let name = |(bit, one)| match CapabilitySet::from_bits_retain(one).iter_names().next() {
        Some((name, _)) => format!("CAP_{name}"),
        None => format!("number {bit}"),
    };
    let mut names: Vec<String> = held.map(name).collect();
    let more = names.len().saturating_sub(MAX_NAMES);
    names.truncate(MAX_NAMES);
    let names = names.join(", ");
    if more == 0 { names } else { format!("{names} and {more} more") }
}

/// What is wrong with this process, each with its cure.
fn faults(privileges: Result<Privileges, String>) -> Vec<String> {
    let Privileges { root, capabilities } = match privileges {
        Ok(privileges) => privileges,
        Err(why) => return vec![why],
    };
    let mut faults = Vec::new();
    if root {
        faults.push(
            "it runs as root; run it as a user of its own (`pyrycode-relay systemd-unit` prints a \
             unit that does)"
                .to_owned(),
        );
    }
    let excess = capabilities & !NET_BIND_SERVICE;
    if excess != 0 {
        faults.push(format!(
            "it has capabilities beyond CAP_NET_BIND_SERVICE: {}; take them away (systemd: \
             CapabilityBoundingSet=CAP_NET_BIND_SERVICE)",
            show(excess)
        ));
    }
    faults
}

const ONE_INSTANCE: &str = "server-ids are known to one process alone, so two relays for the same daemons would \
     split them; set PYRYCODE_RELAY_SINGLE_INSTANCE=1 to confirm that this is the only one, or \
     PYRYCODE_RELAY_ONE_OF_MANY=1 to confirm that a balancer sends each server-id to one relay \
     (`pyrycode-relay haproxy`)";

/// Refuses in production what must not be there; elsewhere only what looks like one instance of
/// many.
///
/// # Errors
///
/// The first fault, and how to mend it.
pub(super) fn check(config: &Config) -> Result<(), Exit> {
    let has_word = config.single_instance || config.one_of_many;
    if config.may_be_one_of_many && !has_word {
        return Err(Exit::refusal(&format!(
            "FLY_APP_NAME is set, so there may be other instances: {ONE_INSTANCE} (with the \
             former, keep `fly scale count` at 1)"
        )));
    }
    if !config.production {
        return Ok(());
    }
    if config.insecure.is_some() {
        return Err(refusal(
            "it would serve without TLS; give --domain, or --tls-cert and --tls-key, or leave \
             PYRYCODE_RELAY_PRODUCTION unset behind a proxy that does it",
        ));
    }
    if !has_word {
        return Err(refusal(ONE_INSTANCE));
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
        let with = |root, capabilities| faults(Ok(Privileges { root, capabilities })).len();
        assert_eq!(with(false, 0), 0);
        assert_eq!(with(false, NET_BIND_SERVICE), 0);
        assert_eq!(with(false, NET_BIND_SERVICE | 1), 1);
        assert_eq!(with(true, NET_BIND_SERVICE), 1);
        assert_eq!(with(true, 1), 2);
        assert_eq!(faults(Err("why".to_owned())), ["why"]);
    }

    fn status(masks: [u64; 4]) -> String {
        let sets = ["CapInh", "CapPrm", "CapEff", "CapAmb"].iter().zip(masks);
        let sets: String = sets.map(|(set, mask)| format!("{set}:\t{mask:016x}\n")).collect();
        // What it might get is not what it has.
        format!("Name:\tx\n{sets}CapBnd:\t000001ffffffffff\nSeccomp:\t0\n")
    }

    #[test]
    fn every_set_of_capabilities_counts() {
        assert_eq!(capabilities(&status([0; 4])), Ok(0));
        for set in 0..4 {
            let mut masks = [0; 4];
            masks[set] = NET_BIND_SERVICE;
            assert_eq!(capabilities(&status(masks)), Ok(NET_BIND_SERVICE));
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_none() {
        let whole = status([0; 4]);
        for text in ["", &whole.replace("CapAmb", "X"), &whole.replace("CapEff:\t0", "CapEff:\tz")]
        {
            assert!(capabilities(text).is_err(), "{text}");
        }
    }

    #[test]
    fn capabilities_are_named() {
        assert_eq!(show(1 << 21 | 1 << 60), "CAP_SYS_ADMIN, number 60");
        let all = "CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER and 37 more";
        assert_eq!(show((1 << 41) - 1), all);
    }
}
