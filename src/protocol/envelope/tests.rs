//! Envelopes against a well-known parser's idea of them.

use super::*;
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::value::RawValue;

fn name() -> ConnId {
    ConnId::new(7, [0xa5; 12])
}

/// The contract, written down for serde. Of a field that comes twice the last counts, as in Go.
fn reference(text: &str) -> Option<(Option<String>, Option<String>, Option<u16>)> {
    #[derive(Deserialize)]
    struct Message<'a> {
        #[serde(default)]
        conn_id: Option<String>,
        #[serde(default, borrow)]
        frame: Option<&'a RawValue>,
        #[serde(default)]
        close_code: Option<u16>,
    }
    let message: Message<'_> = serde_json::from_str(text).ok()?;
    let frame = message.frame.map(|frame| frame.get().to_owned()).filter(|frame| frame != "null");
    let code = message.close_code.filter(|code| *code != 0);
    let addressed = message.conn_id.as_ref().is_some_and(|id| !id.is_empty());
    (addressed && (frame.is_some() || code.is_some())).then_some((message.conn_id, frame, code))
}

fn told(envelope: &Envelope<'_>) -> (Option<ConnId>, Option<String>, Option<u16>) {
    match envelope {
        Envelope::Frame { to, frame, close_code } => {
            let frame = String::from_utf8(frame.to_vec()).unwrap();
            (*to, Some(frame), close_code.map(NonZeroU16::get))
        }
        Envelope::Close { to, close_code } => (*to, None, Some(close_code.get())),
        Envelope::PushWake { .. } => panic!("no wake request was made"),
    }
}

/// Members with valid and invalid values, keys with and without escapes.
fn member() -> impl Strategy<Value = (&'static str, String)> {
    let id = prop_oneof![
        4 => Just(format!("\"{}\"", name().as_str())),
        1 => Just(format!("\"{}\"", name().as_str().replacen('0', "\\u0030", 1))),
        1 => prop::sample::select(vec!["\"\"", "null", "\"x\"", "1", "[]"]).prop_map(str::to_owned),
    ];
    let frame = prop::sample::select(vec![
        "null",
        "1",
        "[ 1, {\"frame\":2} ]",
        "\"\\\"}\"",
        "{}",
        "false",
        "{\"conn_id\":\"x\"}",
        "",
    ]);
    let code = prop::sample::select(vec![
        "0", "1000", "4000", "65535", "65536", "-1", "1.5", "\"1000\"", "null", "true",
    ]);
    prop_oneof![
        5 => id.prop_map(|value| ("conn_id", value)),
        5 => frame.prop_map(|value| ("frame", value.to_owned())),
        3 => code.prop_map(|value| ("close_code", value.to_owned())),
        1 => Just(("token", "\"secret\"".to_owned())),
        1 => Just(("Frame", "[{}]".to_owned())),
    ]
}

proptest! {
    #[test]
    fn it_agrees_with_a_parser(
        members in prop::collection::btree_map(0..6u8, (member(), "[ \n]{0,2}", any::<bool>()), 0..6),
    ) {
        let mut used = std::collections::BTreeSet::new();
        let parts: Vec<String> = members
            .into_values()
            .filter(|((key, _), _, _)| used.insert(*key))
            .map(|((key, value), space, escaped)| {
                let key = if escaped { key.replace('e', "\\u0065") } else { key.to_owned() };
                format!("{space}\"{key}\"{space}:{space}{value}{space}")
            })
            .collect();
        let text = format!("{{{}}}", parts.join(","));
        match (unwrap_str(&text), reference(&text)) {
            (Ok(envelope), Some((id, frame, code))) => {
                let to = id.and_then(|id| ConnId::parse(id.as_bytes()));
                prop_assert_eq!(told(&envelope), (to, frame, code), "{}", text);
            }
            (Err(_), None) => {}
            (ours, theirs) => prop_assert!(false, "{text}: {ours:?} but {theirs:?}"),
        }
    }

    #[test]
    fn what_is_wrapped_can_be_unwrapped(text in "[ -!#-\\[\\]-~é😀]{0,200}", slot in any::<u32>()) {
        let frame = format!("\"{text}\"");
        let name = ConnId::new(slot, [0x5a; 12]);
        let mut out = Vec::new();
        push_wrapped(&mut out, &name, frame.as_bytes());
        prop_assert_eq!(out.len(), wrapped_len(frame.len()));
        let expected = Envelope::Frame { to: Some(name), frame: frame.as_bytes(), close_code: None };
        prop_assert_eq!(unwrap(&out), Ok(expected));
        prop_assert_eq!(name.slot(), slot);
    }

    #[test]
    fn a_notice_reads_as_the_directive_of_the_same_form(code in 1..=65_535u16) {
        let mut out = Vec::new();
        push_close_notice(&mut out, &name(), code);
        prop_assert_eq!(out.len(), close_notice_len(code));
        let close_code = NonZeroU16::new(code).unwrap();
        prop_assert_eq!(unwrap(&out), Ok(Envelope::Close { to: Some(name()), close_code }));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = unwrap(&bytes);
    }
}

#[test]
fn a_wake_request_has_no_addressee() {
    let wake = |platform: &'static str, token: &'static str| {
        Ok(Envelope::PushWake { platform: platform.into(), token: token.into() })
    };
    let rows = [
        (r#"{"push_wake":{"platform":"fcm","token":"t"}}"#, wake("fcm", "t")),
        (r#"{"conn_id":"","push_wake":{"token":"\u0074","platform":"fcm"}}"#, wake("fcm", "t")),
        (r#"{"push_wake":{"platform":"fcm","token":"t"},"conn_id":null}"#, wake("fcm", "t")),
        (r#"{"push_wake":{"platform":"fcm"}}"#, Err(EnvelopeError::PushWakeType)),
        (r#"{"push_wake":{"platform":1,"token":"t"}}"#, Err(EnvelopeError::PushWakeType)),
        (r#"{"push_wake":"t"}"#, Err(EnvelopeError::PushWakeType)),
        (r#"{"push_wake":null}"#, Err(EnvelopeError::NothingToSend)),
    ];
    for (text, expected) in rows {
        assert_eq!(unwrap_str(text), expected, "{text}");
    }
}

#[test]
fn nothing_of_a_message_is_shown() {
    let secret = r#"{"push_wake":{"platform":"s3cret","token":"s3cret"}}"#;
    assert!(!format!("{:?}", unwrap_str(secret)).contains("s3cret"));
    let frame = format!(r#"{{"conn_id":"{}","frame":"s3cret"}}"#, name().as_str());
    assert!(!format!("{:?}", unwrap_str(&frame)).contains("s3cret"));
    let broken = unwrap_str(r#"{"conn_id":"s3cret","frame":s3cret}"#).unwrap_err();
    assert!(!format!("{broken} {broken:?}").contains("s3cret"));
}
