//! The validator against a well-known parser, and at its own limit.

use super::*;
use proptest::prelude::*;
use serde::de::IgnoredAny;

/// What serde_json says; it reads numbers beyond f64 with `IgnoredAny`, and nothing here nests deeper than it
/// allows.
fn is_json(text: &[u8]) -> bool {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let read: Result<IgnoredAny, _> = serde::Deserialize::deserialize(&mut reader);
    // It skips strings without looking whether they are UTF-8.
    read.is_ok() && reader.end().is_ok() && std::str::from_utf8(text).is_ok()
}

fn trimmed(text: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let from = text.iter().position(|byte| !is_space(byte)).unwrap_or(text.len());
    let to = text.iter().rposition(|byte| !is_space(byte)).map_or(from, |last| last + 1);
    &text[from..to]
}

fn assert_agrees(text: &[u8]) {
    match validate(text) {
        Ok(value) => {
            assert!(is_json(text), "accepted: {}", text.escape_ascii());
            assert_eq!(value, trimmed(text));
        }
        Err(_) => assert!(!is_json(text), "refused: {}", text.escape_ascii()),
    }
    if let Ok(text) = std::str::from_utf8(text) {
        assert_eq!(validate_str(text).map(str::as_bytes), validate(text.as_bytes()));
        if let Some(mut members) = Members::of(text) {
            let walks = members.all(|member| member.is_ok());
            assert_eq!(walks, is_json(text.as_bytes()), "walked: {}", text.escape_debug());
        }
    }
}

/// JSON of any kind, in many spellings.
fn json() -> impl Strategy<Value = String> {
    let number = r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?";
    let string = prop::collection::vec(
        prop_oneof![
            4 => "[ -!#-\\[\\]-~]{0,40}",
            1 => r#"\\(["\\/bfnrt]|u[0-9a-fA-F]{4})"#,
            1 => "[\u{7f}-\u{10ffff}]{0,4}",
        ],
        0..6,
    )
    .prop_map(|parts| format!("\"{}\"", parts.concat()));
    let space = "[ \t\n\r]{0,3}";
    let leaf = prop_oneof![
        number.prop_map(|n| n),
        string.clone(),
        prop::sample::select(vec!["null", "true", "false"]).prop_map(str::to_owned),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        let item = (space, inner.clone(), space).prop_map(|(a, v, b)| format!("{a}{v}{b}"));
        let member = (space, string.clone(), space, space, inner, space)
            .prop_map(|(a, k, b, c, v, d)| format!("{a}{k}{b}:{c}{v}{d}"));
        prop_oneof![
            prop::collection::vec(item, 0..6).prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec(member, 0..6).prop_map(|all| format!("{{{}}}", all.join(","))),
        ]
    })
}

proptest! {
    #[test]
    fn valid_json_is_taken_whole(text in json(), before in "[ \t\n\r]{0,3}", after in "[ \t\n\r]{0,3}") {
        let padded = format!("{before}{text}{after}");
        prop_assert_eq!(validate_str(&padded), Ok(&*text));
        assert_agrees(text.as_bytes());
    }

    #[test]
    fn it_agrees_on_json_with_a_few_bytes_changed(
        text in json(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..4),
    ) {
        let mut bytes = text.into_bytes();
        for (place, byte, kind) in changes {
            let at = place.index(bytes.len() + 1);
            match kind {
                0 => bytes.insert(at, byte),
                1 if at < bytes.len() => { bytes.remove(at); }
                _ if at < bytes.len() => bytes[at] = byte,
                _ => {}
            }
        }
        assert_agrees(&bytes);
    }

    #[test]
    fn it_agrees_on_words_of_json_in_any_order(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "{", "}", "[", "]", ",", ":", "\"a\"", "\"", "\\", "1", "-", "0", ".5", "e3", "null",
                "true", " ", "\n", "\"\\u00e9\"", "\\ud83d", "\u{e9}", "\0", "\u{1f}",
            ]),
            0..12,
        ),
    ) {
        assert_agrees(words.concat().as_bytes());
    }

    #[test]
    fn it_agrees_on_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        assert_agrees(&bytes);
    }

    #[test]
    fn a_long_string_is_searched_to_its_end(
        length in 0..400usize, at in any::<prop::sample::Index>(), special in 0..=255u8,
    ) {
        let mut text = vec![b'x'; length + 1];
        text[at.index(length + 1)] = special;
        assert_agrees(&[b"\"", &*text, b"\""].concat());
    }

    #[test]
    fn escapes_are_undone_as_by_a_parser(text in r#"([ -!#-\[\]-~é😀]|\\["\\/bfnrt]|\\u[0-9a-f]{4}|\\ud83d\\ude00){0,12}"#) {
        let quoted = format!("\"{text}\"");
        if let Ok(expected) = serde_json::from_str::<String>(&quoted) {
            prop_assert_eq!(&*unescape(&text), expected);
            prop_assert_eq!(string_content(&quoted), Some(&*text));
        }
    }

    #[test]
    fn members_are_those_of_a_parser(text in json()) {
        let Some(members) = Members::of(&text) else {
            prop_assert_ne!(text.as_bytes().first(), Some(&b'{'));
            return Ok(());
        };
        let found: Vec<(String, serde_json::Value)> = members
            .map(|member| member.unwrap())
            .filter_map(|Member { key, value }| {
                // Lone surrogates and huge numbers are JSON that serde_json cannot hold.
                Some((unescape(key).into_owned(), serde_json::from_str(value).ok()?))
            })
            .collect();
        let Ok(expected) = serde_json::from_str::<serde_json::Map<_, _>>(&text) else { return Ok(()) };
        let last_wins: serde_json::Map<_, _> = found.into_iter().collect();
        prop_assert_eq!(last_wins, expected);
    }
}

#[test]
// One table.
#[allow(clippy::too_many_lines)]
fn the_corner_cases_of_the_grammar() {
    for text in [
        "",
        " ",
        "\u{feff}1",
        "nul",
        "nulll",
        "truefalse",
        "01",
        "-01",
        "-",
        "+1",
        ".5",
        "1.",
        "1.e1",
        "1e",
        "1e+",
        "0x1",
        "1_0",
        "NaN",
        "-Infinity",
        "'a'",
        "\"",
        "\"a",
        "\"\\\"",
        "\"\\u123\"",
        "\"\\u12 4\"",
        "\"\\x41\"",
        "\"\\U0041\"",
        "\"\t\"",
        "\"\n\"",
        "[",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "[1 2]",
        "]",
        "{",
        "{\"a\"",
        "{\"a\":",
        "{\"a\":1",
        "{\"a\":1,}",
        "{,}",
        "{,\"a\":1}",
        "{\"a\":1,,\"b\":1}",
        "{\"a\":1}}",
        "{\"a\":1}{",
        "{}1",
        "{\"a\":1 ",
        "{1:1}",
        "{a:1}",
        "{\"a\" 1}",
        "{\"a\":1 \"b\":1}",
        "[}",
        "{]",
        "1 1",
        "null,",
        "/**/1",
        "1//",
        "[1]\0",
        "-0",
        "0e0",
        "1E400",
        "\"\\ud800\"",
        "\"\\u0000\"",
        "\"\u{7f}\"",
        "\"\u{2028}\"",
        "[ ]",
        "{ }",
    ] {
        assert_agrees(text.as_bytes());
    }
}

/// How deep the brackets of a text without strings nest.
fn depth_of(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Which bracket is open is known at every depth, also after siblings have come and gone.
    #[test]
    fn it_agrees_on_deep_mixtures_of_arrays_and_objects(
        levels in prop::collection::vec((any::<bool>(), 0..12u8), 0..MAX_DEPTH + 3),
        wrong in prop::option::weighted(0.5, any::<prop::sample::Index>()),
    ) {
        let (mut before, mut after) = (String::new(), Vec::new());
        for (is_object, sibling) in &levels {
            before.push_str(if *is_object { "{\"\":" } else { "[" });
            after.push(if *is_object { b'}' } else { b']' });
            if *sibling == 0 {
                before.push_str(if *is_object { "[{}],\"\":" } else { "[{}]," });
            } else if *sibling == 1 {
                let sibling = if *is_object { r#","":[]"# } else { ",{}" };
                after.extend(sibling.bytes().rev());
            }
        }
        let closing: Vec<usize> =
            (0..after.len()).filter(|at| matches!(after[*at], b']' | b'}')).collect();
        if let Some(place) = wrong && !closing.is_empty() {
            let at = closing[place.index(closing.len())];
            after[at] = if after[at] == b']' { b'}' } else { b']' };
        }
        after.reverse();
        let text = format!("{before}0{}", String::from_utf8(after).unwrap());
        let depth = depth_of(&text);
        match validate_str(&text) {
            Ok(value) => {
                prop_assert_eq!(value, &*text);
                prop_assert!(is_json(text.as_bytes()) && depth <= MAX_DEPTH, "{}", depth);
            }
            Err(JsonError::TooDeep { at }) => {
                prop_assert!(depth > MAX_DEPTH);
                prop_assert_eq!(depth_of(text.get(..=at).unwrap()), MAX_DEPTH + 1);
            }
            Err(_) => prop_assert!(!is_json(text.as_bytes())),
        }
    }
}

#[test]
fn an_error_tells_where_and_what() {
    let unexpected = |at| JsonError::Unexpected { at };
    for (text, error) in [
        ("", JsonError::Truncated),
        (" \n", JsonError::Truncated),
        ("[1,", JsonError::Truncated),
        ("\"\\u00", JsonError::Truncated),
        ("tru", unexpected(0)),
        ("-", JsonError::Truncated),
        ("-x", unexpected(1)),
        ("[1,]", unexpected(3)),
        ("01", unexpected(1)),
        (" 1 2", unexpected(3)),
        ("{\"a\":1,}", unexpected(7)),
        ("\"ab\u{1}\"", unexpected(3)),
        ("\"\\u00g0\"", unexpected(5)),
        ("\u{feff}1", unexpected(0)),
    ] {
        assert_eq!(validate_str(text), Err(error), "{text:?}");
    }
    assert_eq!(validate(b"\"\xff\""), Err(JsonError::NotUtf8));
    let deep = format!(" {}", "[".repeat(MAX_DEPTH + 1));
    assert_eq!(validate_str(&deep), Err(JsonError::TooDeep { at: MAX_DEPTH + 1 }));
}

#[test]
fn what_a_parser_would_not_keep_is_kept() {
    for text in [
        "1e400",
        "-0",
        "1E+0400",
        "123456789012345678901234567890.0",
        "{\"a\":1,\"a\":2}",
        "{\"b\":1,\"a\":2}",
        "\"\\u00E9\\/\"",
        "\"\\ud800\"",
        "\"\\udc00\\ud800\"",
        "[ 1\t,\n2 ]",
        "{ \"a\" : { } }",
    ] {
        assert_eq!(validate_str(text), Ok(text));
        assert_eq!(validate_str(&format!(" \t\r\n{text}\n\r\t ")), Ok(text));
    }
}

#[test]
fn a_lone_surrogate_becomes_a_replacement_character() {
    for (content, text) in [
        (r"\ud800", "\u{fffd}"),
        (r"a\udc00\ud800b", "a\u{fffd}\u{fffd}b"),
        (r"\ud83d\ude00", "\u{1f600}"),
        (r"\uD83D\uDE00\ud83d", "\u{1f600}\u{fffd}"),
        (r"\ud83d\n\ude00", "\u{fffd}\n\u{fffd}"),
        (r"\u0000\u007f", "\0\u{7f}"),
        (r#"\"\\\/\b\f\n\r\t"#, "\"\\/\u{8}\u{c}\n\r\t"),
        (r"\\u0061", r"\u0061"),
    ] {
        assert_eq!(unescape(content), text, "{content}");
    }
}

#[test]
fn nesting_ends_at_its_limit() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested = |levels| format!("{}1{}", open.repeat(levels), close.repeat(levels));
        assert!(validate_str(&nested(MAX_DEPTH)).is_ok());
        assert!(validate_str(&nested(MAX_DEPTH + 1)).is_err());
        assert!(validate_str(&open.repeat(100_000)).is_err());
    }
}
