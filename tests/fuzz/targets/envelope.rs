//! JSON and envelopes: the validator and the reader agree with serde_json.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pyrycode_relay::protocol::envelope::{self, Envelope};
use pyrycode_relay::protocol::ids::ConnId;
use pyrycode_relay::protocol::json;
use pyrycode_relay::protocol::push::MAX_PUSH_TOKEN_BYTES;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

fuzz_target!(|data: &[u8]| {
    let valid = json::validate(data);
    // serde_json skips strings without looking whether they are UTF-8, and depth without a limit.
    let text = std::str::from_utf8(data).ok();
    let oracle = text.filter(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
    match (valid, oracle) {
        (Ok(value), Some(text)) => {
            let blanks = [' ', '\t', '\n', '\r'];
            assert_eq!(value, text.trim_matches(blanks).as_bytes());
            check_wrapped(value);
        }
        (Err(_), None) => {}
        (Err(json::JsonError::TooDeep { at }), Some(text)) => {
            let brackets = text[..=at].bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
            assert!(brackets > json::MAX_DEPTH);
            return;
        }
        (ours, oracle) => panic!("validate: {ours:?}, serde_json: {oracle:?}"),
    }
    let ours = envelope::unwrap(data);
    if let Some(text) = text {
        assert_eq!(ours, envelope::unwrap_str(text));
    }
    let expected = oracle.and_then(reference);
    assert_eq!(ours.ok(), expected);
});

/// What a phone sends reaches its binary as this envelope, and would be read back unchanged.
fn check_wrapped(frame: &[u8]) {
    let name = ConnId::new(7, [9; 12]);
    let mut wrapped = Vec::new();
    envelope::push_wrapped(&mut wrapped, &name, frame);
    assert_eq!(wrapped.len(), envelope::wrapped_len(frame.len()));
    assert!(json::validate(&wrapped).is_ok());
    if frame != b"null" {
        let expected = Envelope::Frame { to: Some(name), frame, close_code: None };
        assert_eq!(envelope::unwrap(&wrapped), Ok(expected));
    }
}

/// The contract for envelopes, written down for serde_json.
fn reference(text: &str) -> Option<Envelope<'_>> {
    let (mut conn_id, mut frame, mut close_code, mut push_wake) = (None, None, None, None);
    for (name, value) in members(text)? {
        let value = Some(value).filter(|value| *value != "null");
        match name.as_str() {
            "conn_id" => {
                conn_id = match value.map(content) {
                    Some(None) => return None,
                    Some(Some("")) | None => None,
                    Some(given) => given,
                };
            }
            "frame" => frame = value,
            "close_code" => {
                let code = value.map(serde_json::from_str::<u16>).transpose().ok()?;
                close_code = code.and_then(std::num::NonZeroU16::new);
            }
            "push_wake" => push_wake = value,
            _ => {}
        }
    }
    if let (None, Some(wake)) = (conn_id, push_wake) {
        return read_push_wake(wake);
    }
    let to = conn_id.map(|content| {
        let decoded = serde_json::from_str::<String>(&format!("\"{content}\"")).ok()?;
        ConnId::parse(decoded.as_bytes())
    });
    match (frame, close_code) {
        (Some(frame), close_code) => {
            Some(Envelope::Frame { to: to?, frame: frame.as_bytes(), close_code })
        }
        (None, Some(close_code)) => Some(Envelope::Close { to: to?, close_code }),
        (None, None) => None,
    }
}

fn read_push_wake(text: &str) -> Option<Envelope<'_>> {
    let (mut platform, mut token) = (None, None);
    for (name, value) in members(text)? {
        match name.as_str() {
            "platform" => platform = Some(value),
            "token" => token = Some(value),
            _ => {}
        }
    }
    let (platform, token) = (decode(platform?)?, decode(token?)?);
    let fits = (1..=MAX_PUSH_TOKEN_BYTES).contains(&token.len());
    fits.then_some(Envelope::PushWake { platform, token })
}

/// A string; one that serde_json cannot hold is compared by the relay's own reading of it.
fn decode(value: &str) -> Option<Cow<'_, str>> {
    let content = content(value)?;
    match serde_json::from_str::<String>(value) {
        Ok(text) => Some(Cow::Owned(text)),
        Err(_) => Some(json::unescape(content)),
    }
}

fn content(value: &str) -> Option<&str> {
    value.strip_prefix('"')?.strip_suffix('"')
}

/// The members of an object in order, with names decoded. `None`: it is no object.
fn members(text: &str) -> Option<Vec<(String, &str)>> {
    struct Members;

    impl<'de> Visitor<'de> for Members {
        type Value = Vec<(String, &'de str)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = Vec::new();
            while let Some((name, value)) = map.next_entry::<&RawValue, &RawValue>()? {
                // A lone surrogate is in no name that means anything.
                let name = serde_json::from_str(name.get()).unwrap_or_default();
                members.push((name, value.get()));
            }
            Ok(members)
        }
    }

    serde_json::Deserializer::from_str(text).deserialize_map(Members).ok()
}
