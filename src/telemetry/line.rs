//! What a line may say, and how it is written: logfmt or JSON, with the allowed keys only. A
//! peer's text is quoted and escaped, so that it can forge neither a line nor a key.

use crate::config::LogFormat;
use std::fmt::{self, Write as _};
use tracing::Level;
use tracing::field::{Field, Visit};

/// The keys that a line may carry beside `time`, `level`, `event` and `core`.
pub const ALLOWED_KEYS: [&str; 14] = [
    "server_id",
    "conn_id",
    "binary_conn_id",
    "device_name",
    "remote",
    "binary_version",
    "err",
    "path",
    "from",
    "to",
    "close_code",
    "token_fp",
    "fcm_message_id",
    "duration",
];

/// A field of an event that stands for this many that were only counted. It is told in `err`.
pub(super) const OMITTED: &str = "omitted";

/// Values are cut to this length.
const MAX_VALUE_BYTES: usize = 512;

/// A line, or the fields of one.
pub(super) struct Line {
    format: LogFormat,
    out: String,
    event: String,
}

impl Line {
    pub(super) fn new(format: LogFormat) -> Self {
        Self { format, out: String::with_capacity(256), event: String::new() }
    }

    /// The event's name, once its fields were recorded.
    pub(super) fn event(&self) -> &str {
        &self.event
    }

    /// What was pushed, without what separates it from anything before.
    pub(super) fn text(&self) -> &str {
        match self.format {
            LogFormat::Text => self.out.trim_start(),
            LogFormat::Json => self.out.trim_start_matches(','),
        }
    }

    /// The whole line, with its end.
    pub(super) fn finish(&self) -> String {
        match self.format {
            LogFormat::Text => format!("{}\n", self.text()),
            LogFormat::Json => format!("{{{}}}\n", self.text()),
        }
    }

    pub(super) fn push(&mut self, key: &str, value: &str) {
        match self.format {
            LogFormat::Text if is_plain(value) => self.push_bare(key, value),
            LogFormat::Text => {
                let _ = write!(self.out, " {key}=");
                push_quoted(&mut self.out, value);
            }
            LogFormat::Json => {
                let _ = write!(self.out, ",\"{key}\":");
                push_quoted(&mut self.out, value);
            }
        }
    }

    /// For values that need no quotes.
    pub(super) fn push_bare(&mut self, key: &str, value: impl fmt::Display) {
        let _ = match self.format {
            LogFormat::Text => write!(self.out, " {key}={value}"),
            LogFormat::Json => write!(self.out, ",\"{key}\":{value}"),
        };
    }

    /// The fields of another line of the same format.
    pub(super) fn push_fields(&mut self, fields: &Self) {
        self.out.push_str(&fields.out);
    }

    pub(super) fn set_event(&mut self, event: &str) {
        event.clone_into(&mut self.event);
    }

    /// Says that `count` more were not written, whose `err` was `cause` if they had one.
    pub(super) fn push_omitted(&mut self, cause: &str, count: u64) {
        let more = if count == 1 { "more like this was" } else { "more like these were" };
        let colon = if cause.is_empty() { "" } else { ": " };
        self.push("err", &format!("{cause}{colon}{count} {more} counted, not logged"));
    }
}

/// The field's key, if it may be logged.
fn allowed_key(field: &Field) -> Option<&'static str> {
    ALLOWED_KEYS.into_iter().find(|key| *key == field.name())
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.set_event(value);
        } else if let Some(key) = allowed_key(field) {
            self.push(key, value);
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == OMITTED {
            self.push_omitted("", value);
        } else if let Some(key) = allowed_key(field) {
            self.push_bare(key, value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        if let Some(key) = allowed_key(field) {
            self.push_bare(key, value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

pub(super) fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// Whether a value can stand without quotes in logfmt.
fn is_plain(value: &str) -> bool {
    !value.is_empty()
        && value.len() <= MAX_VALUE_BYTES
        && value.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'=' | b'\\'))
}

/// A JSON string of printable ASCII: everything else is escaped, line and text direction
/// controls with the rest.
fn push_quoted(out: &mut String, value: &str) {
    out.push('"');
    let kept = value.floor_char_boundary(MAX_VALUE_BYTES);
    for c in value.get(..kept).unwrap_or_default().chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            ' '..='~' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    if kept < value.len() {
        out.push_str("...");
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::super::tests::logged;
    use super::*;

    const HOSTILE: [&str; 8] = [
        "plain",
        "two words",
        "a\nlevel=error event=forged",
        "\" event=\"forged",
        "\x1b[31mred\x07",
        "\u{2028}\u{202e}evil",
        "back\\slash=",
        "",
    ];

    #[test]
    fn a_hostile_value_stays_one_value_of_one_line() {
        for value in HOSTILE {
            let text = logged(LogFormat::Text, || tracing::info!(device_name = value, "event"));
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(text.bytes().all(|b| b == b'\n' || (b' '..=b'~').contains(&b)), "{text}");
            let json = logged(LogFormat::Json, || tracing::info!(device_name = value, "event"));
            assert_eq!(json.lines().count(), 1, "{json}");
            let object: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(object["device_name"], value);
            assert_eq!(object["event"], "event");
        }
    }

    #[test]
    fn only_allowed_keys_are_written() {
        let line = logged(LogFormat::Json, || {
            tracing::warn!(token = "secret", payload = 5, close_code = 1000, "e");
        });
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        let keys: Vec<&String> = object.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["close_code", "event", "level", "time"]);
        assert_eq!(object["close_code"], 1000);
    }

    #[test]
    fn a_count_is_told_in_words() {
        let line = |count: u64| {
            let line = logged(LogFormat::Json, || tracing::warn!(omitted = count, "e"));
            serde_json::from_str::<serde_json::Value>(&line).unwrap()["err"].clone()
        };
        assert_eq!(line(1), "1 more like this was counted, not logged");
        assert_eq!(line(84_123), "84123 more like these were counted, not logged");
    }

    #[test]
    fn long_values_are_cut() {
        let line = logged(LogFormat::Text, || tracing::info!(err = "é".repeat(4000), "e"));
        assert!(line.len() < 8 * MAX_VALUE_BYTES, "{}", line.len());
    }
}
