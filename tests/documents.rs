//! What comments and documents point at is there: the chapters of PROTOCOL.md that are cited, and
//! the files and headings that the documents link to or name.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

const PROTOCOL: &str = "src/protocol/PROTOCOL.md";
const THREATS: &str = "src/THREATS.md";
const DOCUMENTS: [&str; 6] = [
    "README.md",
    "src/DESIGN.md",
    THREATS,
    PROTOCOL,
    ".github/CONTRIBUTING.md",
    ".github/CHANGELOG.md",
];
/// Folders of the repository's own, hidden ones aside.
const FOLDERS: [&str; 4] = ["src", "tests", "benches", "loadtest"];
/// What is not text, or not ours, or made by tools.
const SKIPPED: [&str; 6] = ["target", "corpus", "seeds", "artifacts", "__pycache__", "dict"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` with its text; those that are no text are left out.
fn texts(folder: &Path, into: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if SKIPPED.contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            texts(&path, into);
        } else if let Ok(text) = fs::read_to_string(&path) {
            into.push((path, text));
        }
    }
}

fn all_texts() -> Vec<(PathBuf, String)> {
    let mut all = Vec::new();
    for folder in FOLDERS {
        texts(&root().join(folder), &mut all);
    }
    for document in DOCUMENTS {
        let path = root().join(document);
        if !all.iter().any(|(known, _)| *known == path) {
            let text = fs::read_to_string(&path).unwrap();
            all.push((path, text));
        }
    }
    all
}

/// The chapters of PROTOCOL.md, by their numbers from 1 on.
fn chapters() -> Vec<String> {
    let text = fs::read_to_string(root().join(PROTOCOL)).unwrap();
    let chapters: Vec<String> = text.split("\n## ").skip(1).map(ToOwned::to_owned).collect();
    for (number, chapter) in (1..).zip(&chapters) {
        let title = chapter.lines().next().unwrap_or_default();
        assert!(title.starts_with(&format!("{number}. ")), "out of order: {title}");
    }
    chapters
}

/// The text without what begins a line of a comment, in one line.
fn unwrapped(text: &str) -> String {
    let words = text.lines().flat_map(|line| {
        let line = line.trim_start();
        let markers: &[_] = &['/', '!', '#', '*'];
        line.trim_start_matches(markers).split_whitespace()
    });
    words.collect::<Vec<_>>().join(" ")
}

/// A place of PROTOCOL.md that a text cites.
#[derive(Debug, PartialEq, Eq)]
struct Citation {
    chapter: usize,
    /// What of the chapter, if that is said: `chapter 7, "TLS"` or `chapter 7: TLS`.
    of: Option<String>,
}

fn number(word: &str) -> Option<usize> {
    let digits: String = word.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// `chapter N`, `chapters N and M`, `chapters N to M`, in any case.
fn citations(text: &str) -> Vec<Citation> {
    let text = unwrapped(text);
    let mut found = Vec::new();
    for (at, word) in text.to_ascii_lowercase().match_indices("chapter") {
        let rest = text.get(at + word.len()..).unwrap_or_default();
        let Some(rest) = rest.strip_prefix("s ").or_else(|| rest.strip_prefix(' ')) else {
            continue;
        };
        let words: Vec<&str> = rest.split(' ').take(3).collect();
        let Some(first) = words.first().and_then(|word| number(word)) else { continue };
        let others: Vec<usize> = match (words.get(1), words.get(2).and_then(|word| number(word))) {
            (Some(&"and"), Some(last)) => vec![last],
            (Some(&"to"), Some(last)) => (first + 1..=last).collect(),
            _ => Vec::new(),
        };
        let after = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let of = match (after.strip_prefix(", \""), after.strip_prefix(": ")) {
            (Some(quoted), _) => quoted.split_once('"').map(|(of, _)| of.to_owned()),
            (None, Some(named)) => {
                let name: String = named.chars().take_while(|c| c.is_alphanumeric()).collect();
                // Without the bracket it says what the file is about.
                named.get(name.len()..).is_some_and(|end| end.starts_with(')')).then_some(name)
            }
            _ => None,
        };
        found.push(Citation { chapter: first, of });
        found.extend(others.into_iter().map(|chapter| Citation { chapter, of: None }));
    }
    found
}

#[test]
fn citations_are_found_however_they_are_written() {
    let chapters = |text| citations(text).iter().map(|c| c.chapter).collect::<Vec<_>>();
    assert_eq!(chapters("//! (PROTOCOL.md,\n//! chapter 7)."), [7]);
    assert_eq!(chapters("chapters 4 and 5"), [4, 5]);
    assert_eq!(chapters("are chapters 1 to 3 of"), [1, 2, 3]);
    assert_eq!(chapters("Chapter 1's tables; this chapter, chapters and a chapter of 9"), [1]);
    let of = |text| citations(text).swap_remove(0).of;
    assert_eq!(of("(PROTOCOL.md, chapter 7: TLS)").as_deref(), Some("TLS"));
    assert_eq!(of("chapter 7, \"TLS\": what").as_deref(), Some("TLS"));
    assert_eq!(of("PROTOCOL.md, chapter 7: metrics, health"), None);
}

#[test]
fn every_chapter_that_is_cited_exists() {
    let chapters = chapters();
    let mut count = 0;
    for (path, text) in all_texts() {
        if path.ends_with("tests/documents.rs") {
            continue;
        }
        for Citation { chapter, of } in citations(&text) {
            count += 1;
            let cited = chapter.checked_sub(1).and_then(|index| chapters.get(index));
            let Some(cited) = cited else {
                panic!("{} cites chapter {chapter}, and {PROTOCOL} has none", path.display());
            };
            let is_there = of.as_ref().is_none_or(|of| cited.contains(&format!("**{of}")));
            assert!(is_there, "{} cites chapter {chapter}: {of:?}", path.display());
        }
    }
    assert!(count > 70, "only {count} citations: they are not looked for where they are");
}

/// Without fenced code, which links nowhere.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// The targets of `[text](target)`.
fn links(text: &str) -> Vec<String> {
    let ends = text.match_indices("](").filter_map(|(at, _)| text.get(at + 2..));
    ends.filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.to_owned()).collect()
}

/// How a heading is linked to.
fn slug(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn what_documents_link_to_exists() {
    for document in DOCUMENTS {
        let path = root().join(document);
        let text = prose(&fs::read_to_string(&path).unwrap());
        for link in links(&text).iter().filter(|link| !link.contains("://")) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.with_file_name(file) };
            assert!(target.exists(), "{document} links to {link}");
            if !heading.is_empty() {
                let target = fs::read_to_string(&target).unwrap();
                let mut headings = target.lines().filter(|line| line.starts_with('#'));
                assert!(headings.any(|line| slug(line) == heading), "{document} links to {link}");
            }
        }
    }
}

/// Files and folders that are named between backticks.
fn named_paths(text: &str) -> Vec<&str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    let named = text.split('`').skip(1).step_by(2);
    named
        .filter_map(|code| code.split(' ').next())
        .filter(|code| code.chars().all(is_plain))
        .filter(|code| !code.split('/').any(|part| SKIPPED.contains(&part)))
        .filter(|code| {
            let top = code.split('/').next().unwrap_or_default();
            let is_below_top =
                code.contains('/') && (FOLDERS.contains(&top) || [".ci", ".github"].contains(&top));
            is_below_top || [".rs", ".md"].iter().any(|end| code.len() > 3 && code.ends_with(end))
        })
        .collect()
}

#[test]
fn files_that_documents_name_exist() {
    let files: Vec<PathBuf> = all_texts().into_iter().map(|(path, _)| path).collect();
    let mut count = 0;
    for document in DOCUMENTS {
        let text = prose(&fs::read_to_string(root().join(document)).unwrap());
        for name in named_paths(&text) {
            count += 1;
            let is_there = root().join(name).exists() || files.iter().any(|f| f.ends_with(name));
            assert!(is_there, "{document} names {name}");
        }
    }
    assert!(count > 40, "only {count} names: they are not looked for where they are");
}

#[test]
fn documents_name_every_setting() {
    let line = pyrycode_relay::config::command_line([]);
    let shown = line.get_arguments().filter(|arg| !arg.is_hide_set());
    let flags: Vec<&str> = shown.filter_map(|arg| arg.get_long()).collect();
    assert!(flags.len() > 35, "{flags:?}");
    for document in ["README.md", PROTOCOL] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        for flag in &flags {
            assert!(text.contains(&format!("`--{flag}`")), "{document} has no `--{flag}`");
        }
    }
}

#[test]
fn each_defence_is_shown_by_a_test_that_is_there() {
    let threats = fs::read_to_string(root().join(THREATS)).unwrap();
    let mut tests = Vec::new();
    texts(&root().join("tests"), &mut tests);
    let rows = threats.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
    let mut cited = 0;
    for row in rows {
        let shown_by = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        for name in shown_by.split('`').skip(1).step_by(2) {
            let function = format!("fn {name}(");
            assert!(tests.iter().any(|(_, text)| text.contains(&function)), "{name} is no test");
            cited += 1;
        }
    }
    assert!(cited > 20, "{cited}");
}
