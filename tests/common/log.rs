//! One log line, in either format.

use std::collections::BTreeMap;

/// A line that the relay wrote to standard error, taken apart.
#[derive(Debug, Clone)]
pub struct LogLine {
    /// The line as written, without its newline.
    pub raw: String,
    /// Its keys and values; none if it is neither a JSON object nor logfmt.
    pub fields: BTreeMap<String, String>,
}

impl LogLine {
    pub fn parse(raw: &str) -> Self {
        let fields = json(raw).or_else(|| logfmt(raw)).unwrap_or_default();
        Self { raw: raw.to_owned(), fields }
    }

    /// The event's name; empty for a line that has none.
    pub fn event(&self) -> &str {
        self.get("event").unwrap_or_default()
    }

    /// The value of `key`; numbers as they are written.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.fields.get(key).map(String::as_str)
    }

    /// How often its event happened by this line: one that stands for others says for how many.
    pub fn times(&self) -> usize {
        let Some(err) = self.get("err") else { return 1 };
        let Some((told, _)) = err.rsplit_once(" more like th") else { return 1 };
        told.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

fn json(raw: &str) -> Option<BTreeMap<String, String>> {
    let value: serde_json::Value = serde_json::from_str(raw).ok()?;
    let text = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Some(value.as_object()?.iter().map(|(key, value)| (key.clone(), text(value))).collect())
}

/// Reads `key=value key="quoted \"value\""`; `None` at the first thing that is neither, or at a
/// key that comes twice.
fn logfmt(raw: &str) -> Option<BTreeMap<String, String>> {
    let mut fields = BTreeMap::new();
    let mut rest = raw;
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return None;
        }
        let length = if after.starts_with('"') {
            quoted_length(after)?
        } else {
            after.find(' ').unwrap_or(after.len())
        };
        let (value, after) = after.split_at(length);
        if fields.insert(key.to_owned(), unquote(value)).is_some() {
            return None;
        }
        rest = match after.strip_prefix(' ') {
            Some(more) if !more.is_empty() => more,
            _ if after.is_empty() => after,
            _ => return None,
        };
    }
    Some(fields)
}

/// The length of the quoted string at the start of `text`, both quotes included.
fn quoted_length(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// The value without its quotes. Escapes are JSON's or Rust's; one that is neither stays as it is.
fn unquote(value: &str) -> String {
    match value.strip_prefix('"').and_then(|inner| inner.strip_suffix('"')) {
        Some(inner) => serde_json::from_str(value).unwrap_or_else(|_| inner.to_owned()),
        None => value.to_owned(),
    }
}
