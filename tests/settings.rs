//! PROTOCOL.md, chapter 7: which of several places a flag's value is taken from, who is blamed for
//! a bad one, and which privileges production refuses.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod common;

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::certs::{Authority, Folder};
use common::{Relay, command};

// ---- running it and reading what it says

fn output(mut command: Command) -> Output {
    command.output().expect("the relay's binary starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// With these variables, named without what all of them begin with.
fn with(args: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = command(args);
    for (name, value) in variables {
        command.env(format!("PYRYCODE_RELAY_{name}"), value);
    }
    command
}

/// What `check` prints of each setting: its value and where that comes from. Unless told where to
/// listen, it is asked of no particular port, because others of this machine may have the default.
fn checked(args: &[&str], variables: &[(&str, &str)]) -> BTreeMap<String, (String, String)> {
    let has = |flag| args.iter().any(|arg| arg.starts_with(flag));
    let anywhere: &[&str] = match (has("--insecure-listen"), has("--domain")) {
        (true, _) => &[],
        (_, true) => &["--https-listen=127.0.0.1:0", "--http-listen=127.0.0.1:0"],
        _ => &["--insecure-listen=127.0.0.1:0"],
    };
    checked_as_it_is(&[args, anywhere].concat(), variables)
}

fn checked_as_it_is(
    args: &[&str],
    variables: &[(&str, &str)],
) -> BTreeMap<String, (String, String)> {
    let args = [&["check"], args].concat();
    let output = output(with(&args, variables));
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
    rows(text(&output.stdout))
}

fn rows(stdout: &str) -> BTreeMap<String, (String, String)> {
    let row = |line: &str| {
        let (name, rest) = line.split_once(" = ").unwrap_or_else(|| panic!("{line}"));
        let (value, origin) = rest.rsplit_once("  (").unwrap_or_else(|| panic!("{line}"));
        let origin = origin.strip_suffix(')').unwrap().to_owned();
        (name.trim().to_owned(), (value.trim().to_owned(), origin))
    };
    stdout.lines().filter(|line| line.contains(" = ")).map(row).collect()
}

/// Asserts that the process refused, in one line that says all of `says`.
fn assert_refused(output: &Output, says: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{says:?}: {stderr}");
    assert_eq!(text(&output.stdout), "", "{says:?}");
    let line = stderr.strip_suffix('\n').unwrap();
    assert!(line.starts_with("pyrycode-relay: ") && !line.contains(char::is_control), "{stderr}");
    for says in says {
        assert!(line.contains(says), "no {says:?} in: {line}");
    }
}

/// The names of the flags that `--help` lists, without dashes.
fn listed_flags() -> Vec<String> {
    let help = output(command(&["--help"]));
    let flag = |line: &str| {
        let name = line.strip_prefix("      --")?.split([' ', '[']).next()?;
        Some(name.to_owned())
    };
    text(&help.stdout).lines().filter_map(flag).collect()
}

// ---- a flag wins over its variable, which wins over the default

/// What else a flag needs to be in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Acme,
    Files,
}

/// For each flag two values as `check` shows them, and its default.
const MATRIX: &[(&str, Needs, &str, &str, &str)] = &[
    ("insecure-listen", Needs::Nothing, "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:8080"),
    ("domain", Needs::Acme, "a.example", "b.example", "relay.test"),
    ("https-listen", Needs::Acme, "127.0.0.1:1", "127.0.0.1:2", ":443"),
    ("http-listen", Needs::Acme, "127.0.0.1:1", "127.0.0.1:2", ":80"),
    ("cert-cache", Needs::Acme, "FOLDER/a", "FOLDER/b", "FOLDER/c"),
    ("tls-cert", Needs::Files, "FOLDER/a.pem", "FOLDER/b.pem", "FOLDER/c.pem"),
    ("tls-key", Needs::Files, "FOLDER/a.key", "FOLDER/b.key", "FOLDER/c.key"),
    (
        "acme-directory",
        Needs::Acme,
        "https://a/",
        "https://b/",
        "https://acme-v02.api.letsencrypt.org/directory",
    ),
    ("acme-ca", Needs::Acme, "FOLDER/a.pem", "FOLDER/b.pem", ""),
    ("https-proxy-protocol", Needs::Acme, "false", "true", "false"),
    ("proxy-protocol-from", Needs::Nothing, "10.0.0.0/8", "10.1.0.0/16,::1/128", ""),
    ("trust-x-forwarded-for", Needs::Nothing, "10.0.0.0/8", "10.1.0.0/16,::1/128", ""),
    ("metrics-listen", Needs::Nothing, "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:9090"),
    ("control-socket", Needs::Nothing, "FOLDER/a.sock", "FOLDER/b.sock", ""),
    ("allow-server-ids", Needs::Nothing, "FOLDER/a.conf", "FOLDER/b.conf", ""),
    ("token-header", Needs::Nothing, "optional", "required", "required"),
    ("new-connections-rate", Needs::Nothing, "5/2s", "9/1s", "off"),
    ("verify-url", Needs::Nothing, "http://127.0.0.1:1/a", "https://b.example/c", ""),
    ("verify-timeout", Needs::Nothing, "1s", "2s", "3s"),
    ("verify-on-failure", Needs::Nothing, "allow", "deny", "deny"),
    ("server-id-rate", Needs::Nothing, "1MiB/s", "64KiB/s,1MiB", "off"),
    ("rate-limit", Needs::Nothing, "1/2s", "off", "20/6s"),
    ("handshake-rate", Needs::Nothing, "3/2s", "off", "60/1s"),
    ("block", Needs::Nothing, "10.0.0.0/8", "10.1.0.0/16,::1/128", ""),
    ("max-connections", Needs::Nothing, "11", "22", "computed"),
    ("max-connections-per-address", Needs::Nothing, "11", "off", "computed"),
    ("workers", Needs::Nothing, "3", "5", "computed"),
    ("io-uring-without", Needs::Nothing, "quick-sends", "no-iowait", ""),
    ("memory-budget", Needs::Nothing, "600MiB", "700MiB", "computed"),
    ("max-phones", Needs::Nothing, "3", "5", "16"),
    ("grace", Needs::Nothing, "1s", "2h", "30s"),
    ("probe-timeout", Needs::Nothing, "1s", "1m30s", "10s"),
    ("heartbeat-interval", Needs::Nothing, "1s", "2s", "30s"),
    ("heartbeat-timeout", Needs::Nothing, "1s", "2s", "30s"),
    ("header-timeout", Needs::Nothing, "1s", "2s", "5s"),
    ("message-timeout", Needs::Nothing, "1s", "2s", "30s"),
    ("write-timeout", Needs::Nothing, "1s", "2s", "10s"),
    ("close-timeout", Needs::Nothing, "1s", "500ms", "5s"),
    ("drain-timeout", Needs::Nothing, "0s", "24h", "10s"),
    ("drain-spread", Needs::Nothing, "1s", "5s", "0s"),
    ("config", Needs::Nothing, "FOLDER/a.conf", "FOLDER/b.conf", ""),
    ("log-format", Needs::Nothing, "json", "text", "text"),
    ("log-level", Needs::Nothing, "warn", "debug", "info"),
];

/// A folder with three certificates, of one key each: it fits all of them.
fn certificates() -> Folder {
    let (folder, leaf) = (Folder::new(), Authority::new().leaf("relay.test"));
    for name in ["a", "b", "c"] {
        folder.write(&format!("{name}.pem"), &leaf.chain);
        folder.write(&format!("{name}.key"), &leaf.key);
        folder.write(&format!("{name}.conf"), "");
    }
    folder
}

#[test]
// One table.
#[allow(clippy::too_many_lines)]
fn flags_win_over_variables_these_over_the_file_and_that_over_defaults() {
    let flags: Vec<&str> = MATRIX.iter().map(|(name, ..)| *name).collect();
    assert_eq!(listed_flags(), flags);
    let folder = certificates();
    let place = |value: &str| {
        value.replace("FOLDER", folder.path("").to_str().unwrap().trim_end_matches('/'))
    };
    for &(name, needs, one, other, default) in MATRIX {
        let (one, other, default) = (place(one), place(other), place(default));
        // The others come from the environment, which shows that these do not mix.
        let anywhere = "127.0.0.1:0".to_owned();
        let mut variables: Vec<(&str, String)> = match needs {
            Needs::Nothing => vec![("INSECURE_LISTEN", anywhere)],
            Needs::Acme => vec![
                ("DOMAIN", "relay.test".to_owned()),
                ("CERT_CACHE", place("FOLDER/c")),
                ("HTTPS_LISTEN", anywhere.clone()),
                ("HTTP_LISTEN", anywhere),
            ],
            Needs::Files => vec![
                ("TLS_CERT", place("FOLDER/c.pem")),
                ("TLS_KEY", place("FOLDER/c.key")),
                ("HTTPS_LISTEN", anywhere),
            ],
        };
        // Where the default is a port that others of this machine may have, it is not asked for.
        let is_taken = |address: &str| {
            let bound = std::net::TcpListener::bind(address);
            bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
        };
        let is_port = name.ends_with("-listen");
        let all_of_them = |port: &str| format!("[::]{port}");
        let is_taken = is_port
            && is_taken(&if default.starts_with(':') {
                all_of_them(&default)
            } else {
                default.clone()
            });
        let check = |args: &[&str], variables: &[(&str, String)]| {
            let variables: Vec<_> =
                variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
            checked_as_it_is(args, &variables)
                .remove(name)
                .unwrap_or_else(|| panic!("{name} is not shown"))
        };
        let variable = name.replace('-', "_").to_uppercase();
        let from_variable = format!("PYRYCODE_RELAY_{variable}");

        if is_port {
            variables.retain(|(name, _)| *name != variable);
        }
        let (value, origin) = match is_taken {
            true => (default.clone(), "default".to_owned()),
            false => check(&[], &variables),
        };
        if default == "computed" {
            assert!(origin.starts_with("computed: "), "{name}: {origin}");
        } else if variables.iter().any(|(name, _)| *name == variable) {
            assert_eq!((value, origin), (default, from_variable.clone()), "{name}");
        } else {
            assert_eq!((value, origin), (default, "default".to_owned()), "{name}");
        }

        let flag = format!("-{name}={one}");
        assert_eq!(check(&[&flag], &variables), (one.clone(), "flag".to_owned()), "{name}");
        variables.retain(|(name, _)| *name != variable);
        if name != "config" {
            let file = folder.write("this.conf", format!("# a comment\n{name} = {one}\n"));
            let file = format!("--config={file}");
            let from_file = (one.clone(), "line 2 of --config".to_owned());
            assert_eq!(check(&[&file], &variables), from_file, "{name}");
            variables.push((&variable, other.clone()));
            assert_eq!(
                check(&[&file], &variables),
                (other.clone(), from_variable.clone()),
                "{name}"
            );
            variables.pop();
        }
        variables.push((&variable, other.clone()));
        assert_eq!(check(&[], &variables), (other, from_variable), "{name}");
        assert_eq!(check(&[&flag], &variables), (one, "flag".to_owned()), "{name}");
    }
}

#[tokio::test]
async fn the_relay_that_runs_heeds_its_environment() {
    let args = ["--metrics-listen", ""];
    let relay = Relay::start_with(&args, |command| {
        command.env("PYRYCODE_RELAY_WORKERS", "7");
        command.env("PYRYCODE_RELAY_MAX_CONNECTIONS", "7");
        command.env("PYRYCODE_RELAY_GRCE", "s3cret");
    })
    .await;
    let limits = relay.wait_for_log("limits").await;
    assert!(limits.raw.contains("--max-connections 7 "), "{}", limits.raw);
    // The harness asks for two workers with a flag.
    let workers = relay.threads().into_iter().filter(|(name, _)| name.starts_with("worker-"));
    assert_eq!(workers.count(), 2);
    let unknown = relay.wait_for_log("unknown_variable").await;
    assert!(unknown.raw.contains("PYRYCODE_RELAY_GRCE"), "{}", unknown.raw);
    assert!(!relay.stderr().contains("s3cret"));
    let unknown = relay.logs().into_iter().filter(|line| line.event() == "unknown_variable");
    assert_eq!(unknown.count(), 1);
}

// ---- refusals

/// Arguments, variables, and what the refusal says.
type Refusal =
    (&'static [&'static str], &'static [(&'static str, &'static str)], &'static [&'static str]);

/// What whoever comes from the Go relay is told, where the flag was a switch.
const SWITCH: &[&str] = &[
    "--trust-x-forwarded-for: it names the trusted proxies",
    "as in --trust-x-forwarded-for 10.0.0.0/8",
    "the Go relay trusted every peer",
];

#[test]
fn what_is_refused_is_blamed_on_where_it_comes_from() {
    let table: &[Refusal] = &[
        (
            &[],
            &[("GRACE", "30")],
            &["PYRYCODE_RELAY_GRACE: --grace: \"30\" has no unit; write 30s"],
        ),
        (&[], &[("GRACE", "")], &["PYRYCODE_RELAY_GRACE: --grace: the value is empty; write 30s"]),
        (&["-grace=30"], &[("GRACE", "1s")], &["--grace: \"30\" has no unit"]),
        (
            &[],
            &[("LOG_FORMAT", "xml")],
            &["PYRYCODE_RELAY_LOG_FORMAT: --log-format: \"xml\"", "text, json"],
        ),
        (
            &[],
            &[("HTTPS_PROXY_PROTOCOL", "yes")],
            &["PYRYCODE_RELAY_HTTPS_PROXY_PROTOCOL: --https-proxy-protocol: \"yes\""],
        ),
        (
            &[],
            &[("TLS_CERT", "/c")],
            &["PYRYCODE_RELAY_TLS_CERT: --tls-cert needs its private key: give --tls-key"],
        ),
        (
            &["--insecure-listen=:1"],
            &[("DOMAIN", "a.b")],
            &[
                "PYRYCODE_RELAY_DOMAIN: --insecure-listen serves",
                "--domain is for HTTPS",
                "leave one of them out",
            ],
        ),
        (
            &["--workers=9"],
            &[("MEMORY_BUDGET", "1MiB")],
            &["PYRYCODE_RELAY_MEMORY_BUDGET: --memory-budget: 1MiB is too"],
        ),
        (&[], &[("PRODUCTION", "true")], &["PYRYCODE_RELAY_PRODUCTION must be unset or exactly 1"]),
        (&[], &[("PRODUCTION", "")], &["PYRYCODE_RELAY_PRODUCTION must be unset or exactly 1"]),
        (&[], &[("SINGLE_INSTANCE", "0")], &["PYRYCODE_RELAY_SINGLE_INSTANCE must be unset or"]),
        (&[], &[("FCM_CREDENTIALS", "/no/file")], &["PYRYCODE_RELAY_FCM_CREDENTIALS"]),
        (&["--tls-cert=/no/c", "--tls-key=/no/k"], &[], &["--tls-cert", "/no/c"]),
        (&["--tls-key=/no/k"], &[("TLS_CERT", "/no/c")], &["/no/c", "PYRYCODE_RELAY_TLS_CERT"]),
        (&["-grace"], &[], &["--grace: it needs a value"]),
        (&["--trust-x-forwarded-for"], &[], SWITCH),
        (&["-trust-x-forwarded-for=true"], &[], SWITCH),
        (&["--trust-x-forwarded-for", "--insecure-listen", ":1"], &[], SWITCH),
        (&[], &[("TRUST_X_FORWARDED_FOR", "1")], SWITCH),
        (&["-grce", "1s"], &[], &["did you mean --grace?"]),
    ];
    for (args, variables, says) in table {
        // What start refuses, check refuses in the same words.
        let start = output(with(args, variables));
        assert_refused(&start, says);
        let check = output(with(&[&["check"], *args].concat(), variables));
        assert_refused(&check, says);
        assert_eq!(start.stderr, check.stderr, "{args:?} {variables:?}");
    }
}

#[test]
fn a_variable_that_is_overridden_is_not_even_read() {
    let rows = checked(&["--grace=1s"], &[("GRACE", "nonsense")]);
    assert_eq!(rows["grace"], ("1s".to_owned(), "flag".to_owned()));
}

#[test]
fn a_file_may_begin_with_a_byte_order_mark_and_must_be_utf_8() {
    let folder = Folder::new();
    let file = folder.write("marked.conf", "\u{feff}grace = 7s\r\nmax-phones = 3\r\n");
    let rows = checked(&["--config", &file], &[]);
    assert_eq!(rows["grace"], ("7s".to_owned(), "line 1 of --config".to_owned()));
    assert_eq!(rows["max-phones"].0, "3");
    let wide = "\u{feff}grace = 7s\n".encode_utf16().flat_map(u16::to_le_bytes);
    let file = folder.write("wide.conf", wide.collect::<Vec<u8>>());
    let refused = output(command(&["check", "--config", &file]));
    assert_refused(&refused, &["wide.conf", "not UTF-8; save it as UTF-8"]);
}

#[test]
fn values_that_are_not_text_are_refused() {
    use std::os::unix::ffi::OsStrExt as _;
    let mut command = command(&["check"]);
    command.env("PYRYCODE_RELAY_GRACE", std::ffi::OsStr::from_bytes(b"\xff"));
    assert_refused(&output(command), &[]);
}

// ---- check

#[test]
fn a_command_stands_first() {
    let refused = output(command(&["--grace=1s", "check"]));
    assert_refused(&refused, &["check is a command, which stands first"]);
}

#[test]
fn help_is_answered_whatever_the_environment_says() {
    for flag in ["--help", "--version"] {
        let answered = output(with(&[flag], &[("GRACE", "soon"), ("PRODUCTION", "no")]));
        assert_eq!(answered.status.code(), Some(0), "{flag}: {}", text(&answered.stderr));
    }
}

#[test]
fn a_misspelt_variable_is_told_before_what_it_may_have_caused() {
    let variables = [PRODUCTION, &[("DOMIAN", "s3cret.example")]].concat();
    for args in [&["check"][..], &[]] {
        let refused = output(with(args, &variables));
        let stderr = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{stderr}");
        let (warning, refusal) = stderr.trim_end().split_once('\n').unwrap();
        assert!(warning.contains("unknown_variable") && warning.contains("DOMIAN"), "{warning}");
        assert!(refusal.starts_with("pyrycode-relay: production mode: "), "{refusal}");
        assert!(!stderr.contains("s3cret"), "{stderr}");
    }
}

#[test]
fn a_value_cannot_pass_for_another_line() {
    let folder = Folder::new();
    let cache = folder.path("a\nworkers = 99  (flag)");
    let rows = checked(&["--domain=a.b", "--cert-cache", cache.to_str().unwrap()], &[]);
    assert!(rows["cert-cache"].0.contains("a\\nworkers = 99"), "{:?}", rows["cert-cache"]);
    assert_ne!(rows["workers"].0, "99");
}

#[test]
fn check_refuses_an_address_that_is_taken_and_shows_no_secret() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let free = "127.0.0.1:0";
    for (data, metrics, flag) in
        [(address.as_str(), free, "--insecure-listen"), (free, &address, "--metrics-listen")]
    {
        let args = ["check", "--insecure-listen", data, "--metrics-listen", metrics];
        let refused = output(command(&args));
        let stderr = text(&refused.stderr);
        assert_eq!((refused.status.code(), text(&refused.stdout)), (Some(1), ""), "{stderr}");
        let says = format!("cannot listen on {address}");
        assert!(stderr.contains(&says) && stderr.contains(flag), "{stderr}");
    }
    drop(taken);
    assert_eq!(checked(&["--insecure-listen", &address], &[])["insecure-listen"].0, address);
    let refused = output(with(&["check"], &[("FCM_CREDENTIALS", "{\"s3cret\":")]));
    assert_refused(&refused, &["PYRYCODE_RELAY_FCM_CREDENTIALS"]);
    assert!(!text(&refused.stderr).contains("s3cret"));
}

#[test]
fn check_works_out_what_is_left_open() {
    let rows = checked(&["--max-connections=100"], &[]);
    let says = |name: &str, how: &str| {
        assert!(rows[name].1.starts_with(&format!("computed: {how}")), "{:?}", rows[name]);
    };
    says("workers", "the CPUs that this process may use");
    assert_eq!(rows["https-listen"].0, ":443", "where it would be");
    assert!(rows["https-listen"].1.contains("served with --domain"), "{:?}", rows["https-listen"]);
    says("memory-budget", "a quarter of ");
    says("max-connections-per-address", "a quarter of max-connections");
    assert_eq!(rows["max-connections-per-address"].0, "25");
    let few = checked(&["--max-connections=10"], &[]);
    assert!(few["max-connections-per-address"].1.contains("more than a quarter"), "{few:?}");
}

#[test]
fn to_answer_challenges_nowhere_goes_with_everything() {
    let folder = certificates();
    let file = |name: &str| folder.path(name).to_str().unwrap().to_owned();
    let (cert, key) = (file("a.pem"), file("a.key"));
    let files = ["--tls-cert", &cert, "--tls-key", &key, "--https-listen=127.0.0.1:0"];
    for args in [&files[..], &["--insecure-listen=127.0.0.1:0"]] {
        let rows = checked_as_it_is(&[args, &["--http-listen", ""]].concat(), &[]);
        assert_eq!(rows["http-listen"].0, "");
        let refused = output(command(&[&["check"], args, &["--http-listen", ":1"]].concat()));
        assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    }
}

// ---- the commit

/// What the build script tells cargo for a checkout at `folder`.
fn built(script: &Path, folder: &Path, told: Option<&str>) -> String {
    let mut command = Command::new(script);
    command.env("CARGO_MANIFEST_DIR", folder).env_remove("PYRYCODE_RELAY_COMMIT");
    command.envs(told.map(|commit| ("PYRYCODE_RELAY_COMMIT", commit)));
    let output = output(command);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).to_owned()
}

#[test]
fn the_commit_is_what_a_packager_says_or_what_is_checked_out() {
    let folder = Folder::new();
    let script = folder.path("build-script");
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition", "2024", concat!(env!("CARGO_MANIFEST_DIR"), "/src/build.rs"), "-o"]);
    match rustc.arg(&script).status() {
        Ok(status) => assert!(status.success()),
        Err(_) => return eprintln!("SKIPPED: rustc is not on the PATH"),
    }
    let (one, other) = ("0123456789abcdef".repeat(3), "fedcba9876543210".repeat(3));
    let says = |at: &str, told, commit: &str| {
        let said = built(&script, &folder.path(at), told);
        let is = format!("cargo::rustc-env=PYRYCODE_RELAY_COMMIT={commit}\n");
        assert!(said.ends_with(&is), "{at}: {said}");
        said
    };
    for path in ["none", "loose/.git/refs/heads", "packed/.git", "tree", "detached/.git"] {
        std::fs::create_dir_all(folder.path(path)).unwrap();
    }
    says("none", None, "unknown");
    says("none", Some(""), "unknown");
    says("none", Some("v1.2-3"), "v1.2-3");

    folder.write("loose/.git/HEAD", "ref: refs/heads/a/b\n");
    says("loose", None, "unknown");
    std::fs::create_dir(folder.path("loose/.git/refs/heads/a")).unwrap();
    folder.write("loose/.git/refs/heads/a/b", format!("{one}\n"));
    let said = says("loose", None, "0123456789ab");
    says("loose", Some("mine"), "mine");
    // Cargo builds anew for nothing else that git writes.
    let watched: Vec<&str> =
        said.lines().filter_map(|line| line.strip_prefix("cargo::rerun-if-changed=")).collect();
    let git = folder.path("loose/.git").to_str().unwrap().to_owned();
    assert_eq!(watched, ["src/build.rs", &format!("{git}/HEAD"), &format!("{git}/refs/heads/a/b")]);

    folder.write("packed/.git/HEAD", "ref: refs/heads/main");
    let refs = format!(
        "# pack-refs with: peeled\n{one} refs/heads/maintenance\n{other} refs/heads/main\n"
    );
    folder.write("packed/.git/packed-refs", refs);
    says("packed", None, "fedcba987654");
    folder.write("detached/.git/HEAD", &other);
    says("detached", None, "fedcba987654");

    // A worktree, whose `.git` is a file.
    std::fs::create_dir_all(folder.path("loose/.git/worktrees/tree")).unwrap();
    folder.write("tree/.git", "gitdir: ../loose/.git/worktrees/tree\n");
    folder.write("loose/.git/worktrees/tree/HEAD", "ref: refs/heads/a/b\n");
    folder.write("loose/.git/worktrees/tree/commondir", "../..\n");
    says("tree", None, "0123456789ab");
}

// ---- production

#[test]
fn where_there_may_be_other_instances_a_word_is_wanted() {
    let check = |variables: &[(&str, &str)]| {
        let mut command = with(&["check", "--insecure-listen=127.0.0.1:0"], variables);
        command.env("FLY_APP_NAME", "relay");
        output(command)
    };
    assert_refused(&check(&[]), &["FLY_APP_NAME is set", "PYRYCODE_RELAY_SINGLE_INSTANCE=1"]);
    for word in ["SINGLE_INSTANCE", "ONE_OF_MANY"] {
        let checked = check(&[(word, "1")]);
        assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    }
    let both = check(&[("SINGLE_INSTANCE", "1"), ("ONE_OF_MANY", "1")]);
    assert_refused(&both, &["PYRYCODE_RELAY_SINGLE_INSTANCE", "leave one of them out"]);
}

/// Nobody, by its number.
const UNPRIVILEGED: u32 = 65_534;

/// The relay, a certificate and its key where an unprivileged user may read them.
struct Installed {
    folder: PathBuf,
}

impl Installed {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("relay-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let installed = Self { folder };
        std::fs::set_permissions(&installed.folder, Permissions::from_mode(0o755)).unwrap();
        // By a process of its own: a descriptor that writes to it, inherited by a child of another
        // test, would keep it from being run.
        let mut copy = Command::new("cp");
        copy.arg(env!("CARGO_BIN_EXE_pyrycode-relay")).arg(installed.path("relay"));
        assert!(copy.status().unwrap().success());
        let leaf = Authority::new().leaf("relay.test");
        for (name, pem, mode) in [("c.pem", &leaf.chain, 0o644), ("c.key", &leaf.key, 0o600)] {
            std::fs::write(installed.path(name), pem).unwrap();
            std::fs::set_permissions(installed.path(name), Permissions::from_mode(mode)).unwrap();
            if rustix::process::geteuid().is_root() {
                let owner = Some(UNPRIVILEGED);
                std::os::unix::fs::chown(installed.path(name), owner, owner).unwrap();
            }
        }
        installed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// `check`, started by `launcher` (none: as it is), with these variables and nothing else.
    fn check(&self, launcher: &[&str], args: &[&str], variables: &[(&str, &str)]) -> Command {
        let relay = self.path("relay");
        let mut command = match launcher.split_first() {
            None => Command::new(relay),
            Some((program, rest)) => {
                let mut command = Command::new(program);
                command.args(rest).arg(relay);
                command
            }
        };
        command.arg("check").args(args).env_clear();
        for (name, value) in variables {
            command.env(format!("PYRYCODE_RELAY_{name}"), value);
        }
        command
    }

    fn https(&self) -> [String; 3] {
        let flag = |flag: &str, file| format!("--{flag}={}", self.path(file).display());
        let listen = "--https-listen=127.0.0.1:0".to_owned();
        [flag("tls-cert", "c.pem"), flag("tls-key", "c.key"), listen]
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

const PRODUCTION: &[(&str, &str)] = &[("PRODUCTION", "1"), ("SINGLE_INSTANCE", "1")];

/// Whether this test may become another user; else it says that it is skipped.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: this needs root, to start the relay as another user");
    }
    root
}

/// What starts the relay as an unprivileged user who holds `inheritable` and, of these, `ambient`.
fn holding<'a>(inheritable: &'a str, ambient: &'a str) -> Vec<&'a str> {
    let mut launcher = vec!["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    launcher.extend(["--inh-caps", inheritable, "--ambient-caps", ambient]);
    launcher
}

#[test]
fn production_refuses_each_capability_but_that_for_ports() {
    let there = Command::new("setpriv").arg("--version").output().is_ok();
    if !there {
        eprintln!("SKIPPED: this needs setpriv, of util-linux");
    }
    if !there || !is_root() {
        return;
    }
    let installed = Installed::new("capabilities");
    let [cert, key, listen] = &installed.https();
    let args = [cert.as_str(), key, listen];
    let port = "-all,+net_bind_service";
    for (inheritable, ambient) in [("-all", "-all"), (port, "-all"), (port, port)] {
        let accepted = output(installed.check(&holding(inheritable, ambient), &args, PRODUCTION));
        let stderr = text(&accepted.stderr);
        assert_eq!(accepted.status.code(), Some(0), "{inheritable} {ambient}: {stderr}");
    }
    for (inheritable, ambient, names) in [
        ("-all,+sys_admin", "-all", "CAP_SYS_ADMIN"),
        ("-all,+net_raw", "-all,+net_raw", "CAP_NET_RAW"),
        ("-all,+net_bind_service,+kill", port, "CAP_KILL"),
    ] {
        let launcher = holding(inheritable, ambient);
        let refused = output(installed.check(&launcher, &args, PRODUCTION));
        let says =
            format!("it has capabilities beyond CAP_NET_BIND_SERVICE: {names}; take them away");
        assert_refused(&refused, &[&says]);
        // Outside of production that is a warning.
        let warned = output(installed.check(&launcher, &args, &[]));
        let stderr = text(&warned.stderr);
        assert_eq!(warned.status.code(), Some(0), "{stderr}");
        assert!(stderr.contains("not_for_production") && stderr.contains(names), "{stderr}");
        assert!(!stderr.contains("runs as root"), "{stderr}");
    }
}
