//! Where a flag's value comes from: the command line, the environment, a file, in this order.
//!
//! Every flag has a variable, `PYRYCODE_RELAY_` and its name in capitals, and a line in the file
//! that `--config` names. All of it becomes one command line, so that there is one parser and one
//! set of refusals; whatever is refused, its place is told.

use super::Exit;
use super::flags;
use super::settings::Flags;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::Path;

/// What every variable begins with.
const PREFIX: &str = "PYRYCODE_RELAY_";
/// Variables that are no flag's.
const OTHER_VARIABLES: [&str; 5] = [
    // Who builds it says so there.
    "PYRYCODE_RELAY_COMMIT",
    "PYRYCODE_RELAY_PRODUCTION",
    "PYRYCODE_RELAY_SINGLE_INSTANCE",
    "PYRYCODE_RELAY_ONE_OF_MANY",
    "PYRYCODE_RELAY_FCM_CREDENTIALS",
];

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag,
    /// This variable of the environment.
    Variable(String),
    /// This line of the file that `--config` names.
    Line(usize),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Variable(name) => f.write_str(name),
            Self::Line(number) => write!(f, "line {number} of --config"),
        }
    }
}

/// The values that were given, and where: the name of a flag without dashes, and its origin.
pub(super) type Origins = BTreeMap<String, Origin>;

/// The flags as they were given, wherever.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) flags: Flags,
    pub(super) origins: Origins,
    /// Variables that seem to be meant for the relay and say nothing to it.
    pub(super) unknown_variables: Vec<String>,
}

/// Puts together `args`, of which the first is the program's name, the variables, and the file.
pub(super) fn gather(
    args: impl IntoIterator<Item = OsString>,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Given, Exit> {
    let names = flags::names();
    let (args, on_line) = flags::double_dashes(args);
    let mut args = args.into_iter();
    let program = args.next().unwrap_or_default();
    let mut origins: Origins = on_line.into_iter().map(|name| (name, Origin::Flag)).collect();
    let mut words = Vec::new();
    let mut unknown_variables = Vec::new();
    for (variable, value) in variables {
        let Some(variable) = variable.to_str().filter(|name| name.starts_with(PREFIX)) else {
            continue;
        };
        let name = flag_of(variable);
        if !names.contains(&name) {
            if !OTHER_VARIABLES.contains(&variable) {
                unknown_variables.push(variable.to_owned());
            }
        } else {
            offer(&mut origins, &mut words, name, &value, Origin::Variable(variable.to_owned()));
        }
    }
    let rest: Vec<OsString> = args.collect();
    // First by itself, so that what is wrong on the command line is told before what is elsewhere.
    Flags::parse([std::slice::from_ref(&program), rest.as_slice()].concat())?;
    let with_program = |words: &[OsString]| [std::slice::from_ref(&program), words, &rest].concat();
    let mut flags = parse(with_program(&words), &origins, None)?;
    if let Some(path) = flags.config.clone() {
        let lines = read_file(&path, &names).map_err(|exit| locate(exit, &origins, None))?;
        for (number, name, value) in lines {
            offer(&mut origins, &mut words, name, OsStr::new(&value), Origin::Line(number));
        }
        flags = parse(with_program(&words), &origins, Some(&path))?;
    }
    Ok(Given { flags, origins, unknown_variables })
}

/// Takes a value where none has been given before.
fn offer(
    origins: &mut Origins,
    words: &mut Vec<OsString>,
    name: String,
    value: &OsStr,
    origin: Origin,
) {
    if let Entry::Vacant(place) = origins.entry(name) {
        words.push(word(place.key(), value));
        place.insert(origin);
    }
}

/// The flag of a variable.
fn flag_of(variable: &str) -> String {
    let name = variable.strip_prefix(PREFIX).unwrap_or(variable);
    name.to_ascii_lowercase().replace('_', "-")
}

fn word(name: &str, value: &OsStr) -> OsString {
    let mut word = OsString::from(format!("--{name}="));
    word.push(value);
    word
}

/// Parses, and tells of a refusal where the refused value stands.
fn parse(args: Vec<OsString>, origins: &Origins, file: Option<&Path>) -> Result<Flags, Exit> {
    Flags::parse(args).map_err(|exit| locate(exit, origins, file))
}

/// Tells where the values come from that `exit` blames, as far as they were not given as flags.
pub(super) fn locate(exit: Exit, origins: &Origins, file: Option<&Path>) -> Exit {
    let place = |flag: &String| match origins.get(flag.trim_start_matches('-'))? {
        Origin::Variable(variable) => Some(variable.clone()),
        Origin::Line(number) => {
            Some(format!("{} line {number}", file.unwrap_or(Path::new("--config")).display()))
        }
        Origin::Flag => None,
    };
    let places = exit.flags.iter().filter_map(place).collect();
    Exit { places, ..exit }
}

/// The lines of a configuration file: number, flag and value.
fn read_file(path: &Path, names: &[String]) -> Result<Vec<(usize, String, String)>, Exit> {
    let shown = path.display();
    let unreadable = |why: &str| {
        Exit::refusal(&format!("--config: {shown} cannot be read: {why}")).about(["--config"])
    };
    let bytes = std::fs::read(path).map_err(|error| unreadable(&error.to_string()))?;
    let text =
        String::from_utf8(bytes).map_err(|_| unreadable("it is not UTF-8; save it as UTF-8"))?;
    // What some editors write in front.
    let text = text.trim_start_matches('\u{feff}');
    let mut lines: Vec<(usize, String, String)> = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let refuse = |why: &str| Err(Exit::refusal(&format!("{shown} line {number}: {why}")));
        let Some((name, value)) = line.split_once('=') else {
            return refuse("write `name = value`, with the name of a flag without its dashes");
        };
        let (name, value) = (name.trim(), value.trim());
        if name == "config" || !names.iter().any(|known| known == name) {
            return refuse(&format!("{name:?} is not the name of a flag that a file may set"));
        }
        if lines.iter().any(|(_, other, _)| other == name) {
            return refuse(&format!("{name} is set twice; remove one of the lines"));
        }
        lines.push((number, name.to_owned(), value.to_owned()));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather_from(
        args: &[&str],
        variables: &[(&str, &str)],
        file: Option<&str>,
    ) -> Result<Given, Exit> {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("relay-{}-{number}", std::process::id()));
        let mut all: Vec<OsString> = vec!["pyrycode-relay".into()];
        if let Some(file) = file {
            std::fs::write(&path, file).unwrap();
            all.push(word("config", path.as_os_str()));
        }
        all.extend(args.iter().map(OsString::from));
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        let given = gather(all, variables);
        let _ = std::fs::remove_file(path);
        given
    }

    fn refusal(args: &[&str], variables: &[(&str, &str)], file: Option<&str>) -> String {
        gather_from(args, variables, file).unwrap_err().to_string()
    }

    #[test]
    fn the_command_line_goes_before_the_environment_and_that_before_the_file() {
        let variable = [("PYRYCODE_RELAY_MAX_PHONES", "2")];
        let file = Some("# phones\n\nmax-phones = 3\ngrace=7s\n");
        for (args, variables, phones, origin) in [
            (&["--max-phones", "1"][..], &variable[..], 1, Origin::Flag),
            (&["-max-phones=1"], &[], 1, Origin::Flag),
            (&[], &variable, 2, Origin::Variable("PYRYCODE_RELAY_MAX_PHONES".to_owned())),
            (&[], &[], 3, Origin::Line(3)),
        ] {
            let given = gather_from(args, variables, file).unwrap();
            assert_eq!(given.flags.max_phones, phones);
            assert_eq!(given.origins["max-phones"], origin);
            assert_eq!(given.flags.grace, 7000);
            assert_eq!(given.origins["grace"], Origin::Line(4));
        }
    }

    #[test]
    fn what_is_overruled_need_not_even_make_sense() {
        let bad = [("PYRYCODE_RELAY_GRACE", "soon")];
        let given = gather_from(&["--grace=1s"], &bad, Some("grace = never")).unwrap();
        assert_eq!(given.flags.grace, 1000);
    }

    #[test]
    fn refusals_tell_the_place() {
        let bad = [("PYRYCODE_RELAY_GRACE", "soon")];
        let message = refusal(&[], &bad, None);
        assert!(message.starts_with("pyrycode-relay: PYRYCODE_RELAY_GRACE: "), "{message}");
        let message = refusal(&[], &[], Some("max-phones = 1\ngrace = 5\n"));
        assert!(message.contains(" line 2: --grace: \"5\" has no unit"), "{message}");
        for (line, says) in [
            ("grace", "write `name = value`"),
            ("grce = 1s", "\"grce\" is not the name of a flag"),
            ("config = x", "\"config\" is not the name of a flag that a file may set"),
            ("--grace = 1s", "\"--grace\" is not the name"),
            ("grace = 1s\ngrace = 2s", "line 2: grace is set twice"),
        ] {
            let message = refusal(&[], &[], Some(line));
            assert!(message.contains(says), "{line}: {message}");
        }
        assert!(refusal(&["--config=/nowhere"], &[], None).contains("/nowhere cannot be read"));
    }

    #[test]
    fn what_is_blamed_later_tells_its_place_too() {
        let origins: Origins = [
            ("domain".to_owned(), Origin::Variable("PYRYCODE_RELAY_DOMAIN".to_owned())),
            ("max-connections".to_owned(), Origin::Line(3)),
            ("grace".to_owned(), Origin::Flag),
        ]
        .into();
        let said = |flags: [&str; 2]| {
            locate(Exit::refusal("it is no good").about(flags), &origins, Some(Path::new("/f")))
                .to_string()
        };
        let domain = "pyrycode-relay: PYRYCODE_RELAY_DOMAIN: it is no good";
        assert_eq!(said(["--domain", "--grace"]), domain);
        assert_eq!(
            said(["--max-connections", "--domain"]),
            "pyrycode-relay: /f line 3, PYRYCODE_RELAY_DOMAIN: it is no good"
        );
        assert_eq!(said(["--grace", "--workers"]), "pyrycode-relay: it is no good");
    }

    #[test]
    fn switches_and_empty_values_pass() {
        let given = gather_from(
            &[],
            &[
                ("PYRYCODE_RELAY_HTTPS_PROXY_PROTOCOL", "true"),
                ("PYRYCODE_RELAY_METRICS_LISTEN", ""),
                ("PYRYCODE_RELAY_PRODUCTION", "1"),
                ("PYRYCODE_RELAY_GRCE", "1s"),
                ("PATH", "/bin"),
            ],
            None,
        )
        .unwrap();
        assert!(given.flags.https_proxy_protocol);
        assert!(given.flags.metrics_listen.is_some());
        assert_eq!(given.unknown_variables, ["PYRYCODE_RELAY_GRCE"]);
    }
}
