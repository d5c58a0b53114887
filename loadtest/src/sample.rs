//! What was seen of a relay at one moment, or of its phones as they connected: plain data.

use crate::tables::Tables;
use serde::Serialize;

/// Something that was looked at once a second.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Sample {
    /// Since the beginning of the measurement.
    pub(crate) second: f64,
    pub(crate) messages_per_second: f64,
    pub(crate) resident_mib: Option<f64>,
    pub(crate) descriptors: Option<u64>,
    /// CPUs that the relay used.
    pub(crate) cpus: Option<f64>,
    /// Every few seconds, where the relay tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tables: Option<Tables>,
}

/// The phones' way in, and what they hold once they are there.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Connecting {
    pub(crate) cpu_us_per_upgrade: Option<f64>,
    pub(crate) upgrades_per_second: f64,
    pub(crate) resident_bytes_per_phone: Option<f64>,
}
