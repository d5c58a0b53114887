//! What an operator looks at: one page with live charts, and the same as text.
//!
//! - `page.html`: the page; it asks for the JSON once a second and keeps ten minutes of it
//! - `look`: asks a relay that runs
//! - `text`: `pyrycode-relay status`; `many`: the same of several relays, in one table

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
