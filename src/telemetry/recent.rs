//! The last warnings and errors, kept for whoever looks at the status page.

use super::line::{Line, level_name};
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tracing::Level;

/// Warnings that are kept.
const RECENT_WARNINGS: usize = 64;
/// Of these, warnings of one event: a flood of one kind hides no other.
const RECENT_OF_ONE_EVENT: usize = 16;
/// Their text is cut to this length.
const RECENT_TEXT_BYTES: usize = 512;

static RECENT: Mutex<VecDeque<Arc<Warning>>> = Mutex::new(VecDeque::new());

/// A line of level `warn` or `error`, as it is shown beside the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// When, as the log has it: RFC 3339, UTC, with milliseconds.
    pub time: String,
    /// `warn` or `error`.
    pub level: &'static str,
    /// The event's name.
    pub event: String,
    /// Its other keys and their values: one line of printable ASCII, as the text log has it. Values
    /// may come from peers.
    pub text: String,
}

/// The most recent warnings and errors, the oldest first.
#[must_use]
pub fn recent_warnings() -> Vec<Arc<Warning>> {
    RECENT.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

/// Keeps a warning whose `fields` are in the text format.
pub(super) fn remember(time: String, level: Level, fields: &Line) {
    let text = fields.text();
    let text = text.get(..text.floor_char_boundary(RECENT_TEXT_BYTES)).unwrap_or_default();
    let (level, event) = (level_name(level), fields.event().to_owned());
    let warning = Warning { time, level, event, text: text.to_owned() };
    keep(&mut RECENT.lock().unwrap_or_else(PoisonError::into_inner), warning);
}

fn keep(recent: &mut VecDeque<Arc<Warning>>, warning: Warning) {
    let mut alike = recent.iter().enumerate().filter(|(_, other)| other.event == warning.event);
    let oldest_alike = alike.next().map_or(0, |(at, _)| at);
    if alike.count() + 1 >= RECENT_OF_ONE_EVENT {
        recent.remove(oldest_alike);
    } else if recent.len() >= RECENT_WARNINGS {
        recent.pop_front();
    }
    recent.push_back(Arc::new(warning));
}

#[cfg(test)]
mod tests {
    use super::super::tests::logged;
    use super::*;
    use crate::config::LogFormat;

    #[test]
    fn warnings_are_kept_whatever_the_format_and_without_what_is_not_logged() {
        logged(LogFormat::Json, || {
            tracing::info!(err = "no warning", "kept_info");
            tracing::warn!(device_name = "a\nlevel=error", token = "secret", "kept_warning");
            tracing::error!(err = "é".repeat(4000), "kept_error");
        });
        let recent = recent_warnings();
        let of = |event: &str| recent.iter().find(|warning| warning.event == event).cloned();
        assert_eq!(of("kept_info"), None);
        let warning = of("kept_warning").unwrap();
        assert_eq!(warning.level, "warn");
        assert_eq!(warning.text, r#"device_name="a\u000alevel=error""#);
        assert!(humantime::parse_rfc3339(&warning.time).is_ok(), "{}", warning.time);
        assert_eq!(of("kept_error").unwrap().text.len(), RECENT_TEXT_BYTES);
    }

    #[test]
    fn a_flood_of_one_warning_hides_no_other() {
        let warning = |event: &str, text: &str| Warning {
            time: String::new(),
            level: "warn",
            event: event.to_owned(),
            text: text.to_owned(),
        };
        let mut recent = VecDeque::new();
        keep(&mut recent, warning("rare", ""));
        for number in 0..1000 {
            keep(&mut recent, warning("flood", &number.to_string()));
        }
        assert_eq!(recent.len(), 1 + RECENT_OF_ONE_EVENT);
        assert_eq!(recent.front().unwrap().event, "rare");
        assert_eq!(recent.back().unwrap().text, "999");
        for number in 0..1000 {
            keep(&mut recent, warning(&number.to_string(), ""));
        }
        assert_eq!(recent.len(), RECENT_WARNINGS);
        assert_eq!(recent.front().unwrap().event, "936");
    }
}
