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

/// A string token for `text`, each character plain or escaped.
fn spelled(text: &'static str) -> impl Strategy<Value = String> {
    prop::collection::vec(0..8u8, text.len()).prop_map(move |ways| {
        let one = |(character, way): (char, u8)| match way {
            0 => format!("\\u{:04x}", character as u32),
            1 => format!("\\u{:04X}", character as u32),
            _ => character.to_string(),
        };
        let content: String = text.chars().zip(ways).map(one).collect();
        format!("\"{content}\"")
    })
}

/// An envelope with everything that is allowed, which need not be addressed or ask for anything.
fn message() -> impl Strategy<Value = String> {
    let known = "a5a5a5a5a5a5a5a5a5a5a5a5";
    let id = prop_oneof![
        4 => Just(known).prop_flat_map(|nonce| spelled(nonce).prop_map(|rest| rest.replacen('"', "\"00000007", 1))),
        1 => prop::sample::select(vec!["null", "\"\"", "\"\\n\"", "\"\u{e9}\""]).prop_map(str::to_owned),
    ];
    let frame = prop::sample::select(vec![
        "null",
        "true",
        "-0",
        "1e400",
        "[]",
        "{ }",
        "\"null\"",
        "\"\\\"}\"",
        "\"\u{1f600}\"",
        "[ 1 ,\t{\"conn_id\":\"x\",\"close_code\":1} ]",
        "\"\\ud800\"",
        "\" \"",
        "0",
    ]);
    let code = prop::sample::select(vec!["null", "0", "1", "1000", "4999", "65535"]);
    let unknown = prop::sample::select(vec![
        "null",
        "17",
        "{\"frame\":1,\"conn_id\":[{}]}",
        "[[[]]]",
        "\"conn_id\"",
        "1E-3",
    ]);
    let unknown_name = prop_oneof![
        spelled("token"),
        spelled("Frame"),
        spelled("conn_id "),
        spelled("close_codes"),
        spelled("fram"),
        spelled(""),
        Just("\"\u{e9}\"".to_owned()),
    ];
    let member = prop_oneof![
        4 => (spelled("conn_id"), id),
        4 => (spelled("frame"), frame.prop_map(str::to_owned)),
        2 => (spelled("close_code"), code.prop_map(str::to_owned)),
        2 => (unknown_name, unknown.prop_map(str::to_owned)),
    ];
    let space = "[ \t\r\n]{0,2}";
    let spaced = (space, member, space, space, space)
        .prop_map(|(a, (key, value), b, c, d)| format!("{a}{key}{b}:{c}{value}{d}"));
    (prop::collection::vec(spaced, 0..8), space, space)
        .prop_map(|(members, a, b)| format!("{a}{{{}}}{b}", members.join(",")))
}

/// Holds an envelope against what serde_json makes of its members.
fn assert_agrees(text: &str) -> Result<(), TestCaseError> {
    let Some(members) = Pairs::read(text) else {
        prop_assert!(unwrap_str(text).is_err(), "{text}");
        return Ok(());
    };
    let (mut to, mut frame, mut code) = (None, None, None);
    for (key, value) in members {
        match &*key {
            "conn_id" => match serde_json::from_str::<Option<String>>(value.get()) {
                Ok(id) => to = id.filter(|id| !id.is_empty()),
                // No text at all: what cannot be read names nobody.
                Err(_) if value.get().starts_with('"') => to = Some("?".to_owned()),
                Err(_) => {
                    prop_assert_eq!(unwrap_str(text), Err(EnvelopeError::ConnIdType));
                    return Ok(());
                }
            },
            "frame" => frame = Some(value.get().to_owned()).filter(|frame| frame != "null"),
            "close_code" => match serde_json::from_str::<Option<u16>>(value.get()) {
                Ok(number) => code = number.filter(|code| *code != 0),
                Err(_) => {
                    prop_assert_eq!(unwrap_str(text), Err(EnvelopeError::CloseCodeType));
                    return Ok(());
                }
            },
            _ => {}
        }
    }
    match unwrap_str(text) {
        Ok(envelope) => {
            prop_assert!(to.is_some() && (frame.is_some() || code.is_some()), "{text}");
            let to = to.and_then(|id| ConnId::parse(id.as_bytes()));
            prop_assert_eq!(told(&envelope), (to, frame, code), "{}", text);
        }
        Err(EnvelopeError::NothingToSend) => prop_assert!(frame.is_none() && code.is_none()),
        Err(EnvelopeError::Unaddressed) => prop_assert!(to.is_none()),
        Err(error) => prop_assert!(false, "{text}: {error}"),
    }
    prop_assert_eq!(unwrap(text.as_bytes()), unwrap_str(text));
    Ok(())
}

/// The members of an object in their order, those that come twice included.
struct Pairs(Vec<(String, Box<RawValue>)>);

impl Pairs {
    /// `None` for what is no JSON object; also for a name with a lone surrogate, which is no text.
    fn read(text: &str) -> Option<Vec<(String, Box<RawValue>)>> {
        serde_json::from_str(text).ok().map(|Self(pairs)| pairs)
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        from.deserialize_map(Visitor)
    }
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

    /// Any order, any escapes, fields that come twice, unknown ones that look like known ones.
    #[test]
    fn it_reads_what_a_parser_reads(text in message()) {
        assert_agrees(&text)?;
    }

    #[test]
    fn it_agrees_when_a_byte_is_changed(
        text in message(), place in any::<prop::sample::Index>(), by in "[\"\\\\{}\\[\\],:0-9a-u \n\u{1}]",
        inserts in any::<bool>(),
    ) {
        let at = place.index(text.len());
        let behind = if inserts { at } else { at + 1 };
        if let (Some(before), Some(after)) = (text.get(..at), text.get(behind..)) {
            assert_agrees(&format!("{before}{by}{after}"))?;
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
        (r#"{"push_wake":{"platform":"","token":""}}"#, Err(EnvelopeError::PushTokenLength)),
    ];
    for (text, expected) in rows {
        assert_eq!(unwrap_str(text), expected, "{text}");
    }
}

#[test]
fn a_push_token_has_a_longest_length_however_it_is_written() {
    for spelling in ["t", "\\u0074"] {
        let ask = |length| {
            let token = spelling.repeat(length);
            format!(r#"{{"push_wake":{{"platform":"fcm","token":"{token}"}}}}"#)
        };
        let longest = ask(MAX_PUSH_TOKEN_BYTES);
        let Ok(Envelope::PushWake { token, .. }) = unwrap_str(&longest) else {
            panic!("the longest token is refused");
        };
        assert_eq!(token, "t".repeat(MAX_PUSH_TOKEN_BYTES));
        let longer = ask(MAX_PUSH_TOKEN_BYTES + 1);
        assert_eq!(unwrap_str(&longer), Err(EnvelopeError::PushTokenLength));
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

#[test]
fn of_a_field_that_comes_twice_the_last_counts_and_each_must_have_the_right_type() {
    let id = name();
    let id = id.as_str();
    let frame = |frame: &'static str, code: u16| {
        let close_code = NonZeroU16::new(code);
        Ok(Envelope::Frame { to: Some(name()), frame: frame.as_bytes(), close_code })
    };
    let close =
        |code| Envelope::Close { to: Some(name()), close_code: NonZeroU16::new(code).unwrap() };
    let rows = [
        (r#"{"conn_id":"x","conn_id":"ID","frame":1}"#, frame("1", 0)),
        (r#"{"conn_id":"ID","frame":1,"frame":[2]}"#, frame("[2]", 0)),
        (r#"{"conn_id":"ID","frame":null,"frame":2}"#, frame("2", 0)),
        (r#"{"conn_id":"ID","frame":1,"frame":null,"close_code":4000}"#, Ok(close(4000))),
        (r#"{"conn_id":"ID","frame":1,"frame":null}"#, Err(EnvelopeError::NothingToSend)),
        (r#"{"close_code":4000,"conn_id":"ID","frame":1,"close_code":0}"#, frame("1", 0)),
        (r#"{"close_code":4000,"conn_id":"ID","frame":1,"close_code":null}"#, frame("1", 0)),
        (r#"{"close_code":4000,"conn_id":"ID","frame":1,"close_code":1000}"#, frame("1", 1000)),
        (r#"{"conn_id":"ID","frame":1,"conn_id":null}"#, Err(EnvelopeError::Unaddressed)),
        (r#"{"conn_id":"ID","frame":1,"conn_id":""}"#, Err(EnvelopeError::Unaddressed)),
        (r#"{"conn_id":7,"conn_id":"ID","frame":1}"#, Err(EnvelopeError::ConnIdType)),
        (
            r#"{"close_code":"4000","close_code":1,"conn_id":"ID"}"#,
            Err(EnvelopeError::CloseCodeType),
        ),
    ];
    for (text, expected) in rows {
        assert_eq!(unwrap_str(&text.replace("ID", id)), expected, "{text}");
    }
}

#[test]
fn a_close_code_is_digits_from_0_to_65535() {
    for code in 0..=u16::MAX {
        let text = format!(r#"{{"conn_id":"{}","close_code":{code}}}"#, name().as_str());
        let expected = NonZeroU16::new(code)
            .map(|close_code| Envelope::Close { to: Some(name()), close_code })
            .ok_or(EnvelopeError::NothingToSend);
        assert_eq!(unwrap_str(&text), expected);
        if code > 0 {
            let mut notice = Vec::new();
            push_close_notice(&mut notice, &name(), code);
            assert_eq!(notice, text.as_bytes());
        }
    }
    for code in
        ["65536", "4294968296", "99999999999999999999", "-0", "-1", "1.0", "1e3", "1000.0e0"]
            .into_iter()
            .chain(["\"1000\"", "\"\"", "true", "false", "[]", "[1000]", "{}"])
    {
        let text = format!(r#"{{"conn_id":"x","close_code":{code},"frame":1}}"#);
        assert_eq!(unwrap_str(&text), Err(EnvelopeError::CloseCodeType), "{text}");
    }
}

#[test]
fn a_frame_nests_in_an_envelope_as_deep_as_alone() {
    let nested = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let wrap = |frame: &str| format!(r#"{{"x":{frame},"conn_id":"x","frame":{frame}}}"#);
    let deepest = nested(json::MAX_DEPTH);
    let expected = Envelope::Frame { to: None, frame: deepest.as_bytes(), close_code: None };
    assert_eq!(unwrap_str(&wrap(&deepest)), Ok(expected));
    let too_deep = wrap(&nested(json::MAX_DEPTH + 1));
    let error = unwrap_str(&too_deep);
    assert!(matches!(error, Err(EnvelopeError::Json(JsonError::TooDeep { .. }))), "{error:?}");
}

#[test]
fn errors_are_one_line() {
    for text in ["", "\n", "[]", "{}", "{\"conn_id\":1}", "{\"frame\":1}", "{\"close_code\":-1}"] {
        let error = unwrap_str(text).unwrap_err().to_string();
        assert!(error.starts_with("the binary sent a bad envelope: ") && !error.contains('\n'));
    }
}

#[test]
fn the_usual_form_is_read_like_any_other() {
    let deep = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let known = "0".repeat(ConnId::LEN);
    let upper = "A".repeat(ConnId::LEN);
    let frames = [
        "{}".into(),
        " [1, 2]\n".into(),
        "\"é\"".into(),
        "null".into(),
        " null ".into(),
        String::new(),
        "1,\"close_code\":4001".into(),
        "1,\"frame\":2".into(),
        "1}".into(),
        "{".into(),
        "1 2".into(),
        deep(json::MAX_DEPTH),
        deep(json::MAX_DEPTH + 1),
    ];
    for id in [&known, &upper, "", "\\u0030"] {
        for frame in &frames {
            for end in ["}", "", "} ", "}}"] {
                let usual = format!("{CONN_ID}{id}{FRAME}{frame}{end}");
                let spaced = usual.replacen('{', "{ ", 1);
                let (usual, spaced) = (unwrap_str(&usual), unwrap_str(&spaced));
                match (&usual, &spaced) {
                    // One byte further on, and otherwise the same.
                    (Err(EnvelopeError::Json(_)), Err(EnvelopeError::Json(_))) => {}
                    _ => assert_eq!(usual, spaced, "{id:?} {frame:.40} {end:?}"),
                }
            }
        }
    }
}
