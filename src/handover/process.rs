//! What a process knows beside its connections and server-ids.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What a process knows beside its connections and server-ids.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The seeds by which server-ids find their owners.
    pub owners: [u64; 4],
    /// What it has counted.
    pub counters: Counters,
    /// Who has come how often, and who is kept out.
    pub admission: Admission,
    /// How often a process has taken over from another, so far.
    pub upgrades: u64,
}

/// What a process has counted, by the names of its metrics, so that a release that counts more or less
/// understands it.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Of each worker: the name of a series with its labels, and where it stands.
    pub workers: Vec<Vec<(String, u64)>>,
    /// Of each worker: how many messages stayed how long, up to so many microseconds each, and the
    /// sum of it all.
    pub delays: Vec<(Vec<(u64, u64)>, u64)>,
    /// Wake requests, by what came of them.
    pub push: Vec<(String, u64)>,
    /// CPU time of each worker, in microseconds.
    pub cpu_us: Vec<u64>,
    /// Lines of the log that were lost.
    pub log_lines_lost: u64,
    /// Certificates that could not be had or read.
    pub certificate_failures: u64,
    /// Upgrades that failed.
    pub upgrades_failed: u64,
}

/// Who has come how often, and who is kept out. Times are milliseconds from the moment that this was
/// given out.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// Of each address, when its bucket of upgrades is full again.
    pub rates: Vec<(IpAddr, u64)>,
    /// The same of TLS handshakes.
    pub handshakes: Vec<(IpAddr, u64)>,
    /// When the bucket of everybody's upgrades is full again, and until when places are promised.
    pub arrivals: (u64, u64),
    /// Networks that the operator keeps out by command, and for how long; `None` for good.
    pub blocks: Vec<(String, Option<u64>)>,
}
