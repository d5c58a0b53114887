//! What an operator looks at: one page with live charts, and the same as text.
//!
//! - `page.html`: the page; it asks for the JSON once a second and keeps ten minutes of it
//! - `look`: asks a running relay
//! - `text`: `pyrycode-relay status`; `many`: the same of several relays, in one table
//!
//! # `/status.json`
//!
//! One object, for programs. A key is in snake_case and ends with its unit, where it has one; what is
//! not known is null.
//!
//! - `process`: an object. `version`; `started_at_seconds` (since 1970), `uptime_seconds`; `ready`,
//!   `draining` (it was asked to stop), `drain` (null, or `server_ids_left` and
//!   `server_ids_sent_away`), `one_of_many`; `blocked`, an array of objects of `network`,
//!   `is_configured` and `seconds_left`; `allowed_server_ids`; `resident_bytes`,
//!   `memory_budget_bytes`; `open_descriptors`, `max_descriptors`; `max_connections`;
//!   `upgrades`, an object of `succeeded`, `failed`, `last` (null, or `at_seconds` since 1970,
//!   `connections` and `pause_ms`) and `last_failure` (null, or `at_seconds` and `why`);
//!   `log_lines_lost`; `certificate_failures`, `certificate_expires_at_seconds` (since 1970)
//! - `metrics`: an object with each metric that workers count, all workers together, by the name that
//!   Prometheus has it under, without `pyrycode_relay_`. One without labels is a number; one with
//!   labels is an object of numbers, or of objects, by the values of its labels in their order:
//!   `metrics.server_ids`, `metrics.connections.phone`, `metrics.closes_total["1000"].normal`
//! - `workers`: an array of objects. `core`, `cpu_seconds`, `connections`, `messages_forwarded`, and
//!   `metrics`, with those that a worker counts by itself
//! - `delay`: the histogram of what the relay adds to the way of messages. `bounds_us`, the upper
//!   bounds of all buckets but the last; `counts` of each bucket by itself; `sum_us`
//! - `warnings`: an array of objects, the oldest first. `time` (RFC 3339), `level`, `event`, and
//!   `text`: the line's other keys and values as the text log has them, in one line

mod look;
mod many;
mod seen;
mod text;
mod verdict;

pub use many::status_of_all;
pub(super) use seen::{Interval, Seen};
pub use text::status;
pub(super) use text::{bytes, overview};

use crate::metrics::snapshot::Snapshot;
use crate::telemetry::{self, Warning};
use serde::Serialize;

/// The page: HTML that asks for nothing but `status.json` beside it.
pub const PAGE: &str = include_str!("page.html");

#[derive(Serialize)]
struct Status<'a> {
    #[serde(flatten)]
    snapshot: &'a Snapshot,
    warnings: Vec<&'a Warning>,
}

/// Everything as it stands, with the last warnings (the oldest first), as the page reads it.
#[must_use]
pub fn json(snapshot: &Snapshot) -> String {
    let recent = telemetry::recent_warnings();
    let warnings = recent.iter().map(AsRef::as_ref).collect();
    // Plain data with strings for keys: nothing of it can fail.
    serde_json::to_string(&Status { snapshot, warnings }).unwrap_or_default()
}
