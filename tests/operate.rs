//! PROTOCOL.md, chapter 7: commands, where configuration comes from, production mode, signals, and
//! what a supervisor is told.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    missing_docs
)]

#[path = "operate/commands.rs"]
mod commands;
mod common;
#[path = "operate/control.rs"]
mod control;
#[path = "operate/pace.rs"]
mod pace;
#[path = "operate/policy.rs"]
mod policy;
#[path = "operate/rings.rs"]
mod rings;
#[path = "operate/trial.rs"]
mod trial;
#[path = "operate/verify.rs"]
mod verify;

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::certs::{Authority, Folder};
use common::{
    Exit, Process, Raw, Relay, Request, SOON, Signal, TEXT, command, envelope, masked,
    open_envelope, run, soon, wait_until,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Runs the relay with these arguments and variables to its end.
async fn run_with(args: &[&str], variables: &[(&str, &str)]) -> Exit {
    let mut command = command(args);
    command.envs(variables.iter().copied());
    Process::spawn(command).wait_exit(SOON).await
}

fn refusal(exit: &Exit) -> &str {
    assert_eq!(exit.status.code(), Some(2), "{} {}", exit.stdout, exit.stderr);
    assert_eq!(exit.stderr.lines().count(), 1, "{}", exit.stderr);
    exit.stderr.trim_end()
}

/// The value and the origin of each flag, as `check` prints them.
fn checked<'a>(exit: &'a Exit, name: &str) -> (&'a str, &'a str) {
    assert_eq!(exit.status.code(), Some(0), "{}", exit.stderr);
    let line = exit.stdout.lines().find(|line| line.split(' ').next() == Some(name));
    let (_, rest) = line.unwrap_or_else(|| panic!("no {name}")).split_once('=').unwrap();
    let (value, origin) = rest.split_once("  (").unwrap();
    (value.trim(), origin.trim_end_matches(')'))
}

// ---- commands

#[tokio::test]
async fn commands_print_what_belongs_to_other_tools() {
    for (name, begins, holds) in [
        ("grafana", "{", "pyrycode_relay_delay_seconds_bucket"),
        ("alerts", "# Alert rules", "- alert: PyrycodeRelayDown"),
        ("systemd-unit", "# A systemd unit", "AmbientCapabilities=CAP_NET_BIND_SERVICE"),
        ("dockerfile", "# A container file", "USER 65532"),
        ("seccomp", "{", "io_uring_setup"),
        ("config-file", "# Settings", "\n# max-phones = 16\n"),
        // These two have flags of their own; see tests/limits/balancer.rs.
        ("haproxy --relay a=10.0.0.1:80", "# HAProxy", "server a 10.0.0.1:80 id"),
        ("nginx --relay a=10.0.0.1:80", "# nginx", "server 10.0.0.1:80 max_fails"),
    ] {
        let words: Vec<&str> = name.split(' ').collect();
        let exit = run(&words).await;
        assert_eq!((exit.status.code(), exit.stderr.as_str()), (Some(0), ""), "{name}");
        assert!(exit.stdout.starts_with(begins) && exit.stdout.contains(holds), "{name}");
        let exit = run(&[&words[..], &["--grace=x"]].concat()).await;
        assert!(refusal(&exit).contains("--grace"), "{name}");
    }
}

#[tokio::test]
async fn the_demo_shows_frames_a_reclaim_and_closes_and_ends_by_itself() {
    let exit = run(&["demo"]).await;
    assert_eq!((exit.status.code(), exit.stderr.as_str()), (Some(0), ""), "{}", exit.stdout);
    for line in [
        "  binary  I claim the server-id \"demo\". (/v1/server, answered 101)",
        " phone 1  I get  {\"welcome\":true}",
        " phone 4  I am closed: 4404 no server with that id",
        " phone 1  I am closed: 4404 binary reclaimed server-id. So I dial again.",
        "  binary  I am closed: 1001 shutting down",
        "   relay  Everybody has left. That was it; README says how to go on.",
    ] {
        assert!(exit.stdout.lines().any(|other| other == line), "{line}\n{}", exit.stdout);
    }
}

#[tokio::test]
async fn the_printed_file_of_settings_changes_nothing_and_has_every_key() {
    let folder = Folder::new();
    let text = run(&["config-file"]).await.stdout;
    let file = folder.write("relay.conf", &text);
    let listen = ["check", "--insecure-listen", "127.0.0.1:0", "--metrics-listen", ""];
    let with = run(&[&listen[..], &["--config", &file]].concat()).await;
    assert_eq!(with.status.code(), Some(0), "{}", with.stderr);
    for line in with.stdout.lines().filter(|line| line.contains(" = ")) {
        let name = line.split('=').next().unwrap().trim();
        assert!(name == "config" || text.contains(&format!("\n# {name} = ")), "{name}");
        assert!(!line.contains("of --config"), "{line}");
    }
    // Each default that is shown is one that is taken.
    for line in text.lines().filter_map(|line| line.strip_prefix("# ")) {
        let Some((name, value)) = line.split_once(" = ") else { continue };
        let is_default = value.starts_with(|c: char| c.is_ascii_digit() || c.is_ascii_lowercase());
        if !name.contains(' ') && is_default {
            let file = folder.write("one.conf", format!("{name} = {value}\n"));
            let exit = run(&[&listen[..], &["--config", &file]].concat()).await;
            assert_eq!(exit.status.code(), Some(0), "{line}: {}", exit.stderr);
        }
    }
}

#[tokio::test]
async fn shells_and_man_take_what_is_printed_for_them() {
    let folder = Folder::new();
    for (shell, check) in [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")] {
        let exit = run(&["completions", shell]).await;
        assert_eq!((exit.status.code(), exit.stderr.as_str()), (Some(0), ""), "{shell}");
        for word in ["grace", "haproxy", "drain", "no-wait", "relay-ca"] {
            assert!(exit.stdout.contains(word), "{shell}: {word}");
        }
        let file = folder.write(shell, &exit.stdout);
        match Command::new(shell).arg(check).arg(&file).output() {
            Ok(read) => assert!(read.status.success(), "{shell}: {read:?}"),
            Err(_) => eprintln!("SKIPPED: {shell} is not installed"),
        }
    }
    assert!(refusal(&run(&["completions"]).await).contains("bash, zsh"));
    for (args, name, holds) in [
        (&["man"][..], "pyrycode-relay", "max\\-phones"),
        (&["man", "drain"], "pyrycode-relay-drain", "no\\-wait"),
        (&["man", "haproxy"], "pyrycode-relay-haproxy", "relay\\-ca"),
    ] {
        let exit = run(args).await;
        assert_eq!((exit.status.code(), exit.stderr.as_str()), (Some(0), ""), "{args:?}");
        assert!(exit.stdout.contains(holds), "{}", exit.stdout);
        assert!(exit.stdout.contains(&format!(".TH {name} 8")), "{}", exit.stdout);
        let file = folder.write("page.8", &exit.stdout);
        match Command::new("man").args(["--warnings", "-l", &file]).output() {
            Ok(read) => assert!(read.status.success() && read.stderr.is_empty(), "{read:?}"),
            Err(_) => eprintln!("SKIPPED: man is not installed"),
        }
    }
    assert!(refusal(&run(&["man", "nonsense"]).await).contains("man COMMAND"));
}

#[tokio::test]
async fn the_unit_is_one_that_systemd_takes_and_finds_hardened() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("SKIPPED: systemd-analyze is not installed");
        return;
    }
    let folder = Folder::new();
    let relay = env!("CARGO_BIN_EXE_pyrycode-relay");
    let unit = run(&["systemd-unit"]).await.stdout;
    let path = folder.write("relay.service", unit.replace("/usr/local/bin/pyrycode-relay", relay));
    let analyze = |args: &[&str]| {
        let said = Command::new("systemd-analyze").args(args).arg(&path).output().unwrap();
        let text = String::from_utf8_lossy(&said.stdout) + String::from_utf8_lossy(&said.stderr);
        (said.status.success(), text.into_owned())
    };
    let (verified, complaints) = analyze(&["verify"]);
    assert!(verified && !complaints.contains("relay.service:"), "{complaints}");
    // 0 is the best, 10 the worst; whatever is above the threshold fails.
    let (hardened, listing) = analyze(&["security", "--offline=yes", "--threshold=20"]);
    assert!(hardened, "{listing}");
}

#[tokio::test]
async fn promtool_takes_the_alert_rules() {
    if Command::new("promtool").arg("--version").output().is_err() {
        eprintln!("SKIPPED: promtool (of Prometheus) is not installed");
        return;
    }
    let folder = Folder::new();
    let rules = folder.write("alerts.yml", run(&["alerts"]).await.stdout);
    let checked = Command::new("promtool").args(["check", "rules"]).arg(&rules).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let cases = folder.write("cases.yml", include_str!("operate/alerts_test.yml"));
    let tested = Command::new("promtool").args(["test", "rules"]).arg(&cases).output().unwrap();
    assert!(tested.status.success(), "{}", String::from_utf8_lossy(&tested.stdout));
}

#[tokio::test]
async fn hadolint_finds_nothing_in_the_container_file() {
    if Command::new("hadolint").arg("--version").output().is_err() {
        eprintln!("SKIPPED: hadolint is not installed");
        return;
    }
    let folder = Folder::new();
    let file = folder.write("Dockerfile", run(&["dockerfile"]).await.stdout);
    let checked = Command::new("hadolint").arg(&file).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

/// The variables that README.md's block in `language` sets.
fn set_in_readme(language: &str) -> Vec<(String, String)> {
    let (_, block) =
        include_str!("../README.md").split_once(&format!("\n```{language}\n")).unwrap();
    let (block, _) = block.split_once("\n```").unwrap();
    let setting = |line: &str| {
        let rest = &line[line.find("PYRYCODE_RELAY_")?..];
        let (name, value) = rest.split_once(" = ").or_else(|| rest.split_once(", value: "))?;
        Some((name.to_owned(), value.trim_end_matches('}').trim_matches('"').to_owned()))
    };
    block.lines().filter_map(setting).collect()
}

#[tokio::test]
async fn the_manifests_of_readme_have_settings_that_the_relay_takes() {
    let folder = Folder::new();
    let leaf = Authority::new().leaf("relay.example.com");
    let placed = |name: &str| folder.path(name).to_str().unwrap().to_owned();
    folder.write("tls.crt", leaf.chain);
    folder.write("tls.key", leaf.key);
    for (language, expected, args) in [
        ("yaml", 4, &["check", "--metrics-listen="][..]),
        ("toml", 5, &["check", "--metrics-listen=", &format!("--cert-cache={}", placed("cache"))]),
    ] {
        let mut variables = set_in_readme(language);
        assert_eq!(variables.len(), expected, "{variables:?}");
        for (_, value) in &mut variables {
            // Ports that are free here, and files that are there.
            *value = match value.strip_prefix("/tls/").or(value.strip_prefix("/run/relay/")) {
                Some(file) => placed(file),
                None if value.starts_with(':') => "127.0.0.1:0".to_owned(),
                None => continue,
            };
        }
        let variables: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let exit = run_with(args, &variables).await;
        assert_eq!(exit.status.code(), Some(0), "{language}: {}", exit.stderr);
    }
}

#[tokio::test]
async fn status_tells_how_the_relay_is_doing_or_that_there_is_none() {
    let relay = Relay::start(&["--metrics-listen", "127.0.0.1:0"]).await;
    let line = relay.wait_for_log("listening_for_metrics").await;
    let addr = line.get("remote").unwrap();
    let _binary = Raw::binary(&relay, "id").await;
    let exit = run(&["status", "--metrics-listen", addr]).await;
    assert_eq!(exit.status.code(), Some(0), "{}", exit.stderr);
    assert!(exit.stdout.contains("binar"), "{}", exit.stdout);
    assert!(!exit.stdout.contains('\u{1b}'), "colours, and no terminal");
    drop(relay);
    let exit = run(&["status", "--metrics-listen", addr]).await;
    assert_eq!(exit.status.code(), Some(1));
    assert!(exit.stderr.contains("--metrics-listen"), "{}", exit.stderr);
    assert_eq!(exit.stderr.lines().count(), 1);
}

#[tokio::test]
async fn status_of_several_relays_is_one_table_with_their_sums() {
    let mut relays = Vec::new();
    let mut urls = Vec::new();
    for id in ["one", "two"] {
        let relay = Relay::start(&["--metrics-listen", "127.0.0.1:0"]).await;
        let line = relay.wait_for_log("listening_for_metrics").await;
        urls.push(format!("http://{}", line.get("remote").unwrap()));
        relays.push((Raw::binary(&relay, id).await, relay));
    }
    let exit = run(&["status", &urls[0], &urls[1]]).await;
    assert_eq!((exit.status.code(), exit.stderr.as_str()), (Some(0), ""));
    let sum = exit.stdout.lines().find(|line| line.starts_with("Sum")).unwrap();
    let figures: Vec<&str> = sum.split_whitespace().collect();
    assert_eq!(figures[1..3], ["2", "2"], "ids and binaries: {}", exit.stdout);

    relays.pop();
    let exit = run(&["status", &urls[0], &urls[1]]).await;
    assert_eq!(exit.status.code(), Some(1));
    assert!(exit.stdout.contains("no answer"), "{}", exit.stdout);
    assert!(refusal(&run(&["status", "http://nowhere"]).await).contains("http://HOST:PORT"));
}

#[tokio::test]
async fn a_health_checker_that_names_no_host_is_answered_and_a_foreign_name_is_not() {
    let relay = Relay::start(&["--metrics-listen", "127.0.0.1:0"]).await;
    let line = relay.wait_for_log("listening_for_metrics").await;
    let addr: std::net::SocketAddr = line.get("remote").unwrap().parse().unwrap();
    for (head, status) in [
        ("GET /readyz HTTP/1.0\r\n\r\n", "HTTP/1.0 200"),
        ("HEAD /healthz HTTP/1.0\r\nUser-Agent: checker\r\n\r\n", "HTTP/1.0 200"),
        ("GET /metrics HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n", "HTTP/1.1 200"),
        ("GET /readyz HTTP/1.0\r\nHost: evil.example\r\n\r\n", "HTTP/1.0 421"),
        ("GET http://evil.example/ HTTP/1.0\r\n\r\n", "HTTP/1.0 421"),
    ] {
        let ask = async {
            let mut tcp = TcpStream::connect(addr).await.unwrap();
            tcp.write_all(head.as_bytes()).await.unwrap();
            let mut answer = String::new();
            tcp.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = soon("an answer", ask).await;
        assert!(answer.starts_with(status), "{head}: {answer}");
    }
}

// ---- where configuration comes from

#[tokio::test]
async fn check_shows_every_flag_with_its_value_and_where_it_comes_from() {
    let folder = Folder::new();
    let file = folder.write("relay.conf", "# a comment\ngrace = 7s\nmax-phones = 3\n");
    let variables = [("PYRYCODE_RELAY_MAX_PHONES", "4"), ("PYRYCODE_RELAY_WRITE_TIMEOUT", "1m30s")];
    let args = ["check", "--config", &file, "-close-timeout", "2s", "-insecure-listen=127.0.0.1:0"];
    let exit = run_with(&args, &variables).await;
    assert_eq!(checked(&exit, "close-timeout"), ("2s", "flag"));
    assert_eq!(checked(&exit, "max-phones"), ("4", "PYRYCODE_RELAY_MAX_PHONES"));
    assert_eq!(checked(&exit, "write-timeout"), ("1m30s", "PYRYCODE_RELAY_WRITE_TIMEOUT"));
    assert_eq!(checked(&exit, "grace"), ("7s", "line 2 of --config"));
    assert_eq!(checked(&exit, "rate-limit"), ("20/6s", "default"));
    assert_eq!(checked(&exit, "insecure-listen"), ("127.0.0.1:0", "flag"));
    assert!(checked(&exit, "workers").1.starts_with("computed: the CPUs"));
    assert!(checked(&exit, "max-connections").1.contains("descriptors allow"));
    // Every flag of the help is there.
    let help = run(&["--help"]).await.stdout;
    let flags = help.lines().filter_map(|line| line.strip_prefix("      --"));
    for flag in flags {
        let name = flag.split([' ', '[']).next().unwrap();
        checked(&exit, name);
    }
}

#[tokio::test]
async fn every_flag_has_a_variable() {
    for (name, value, shown) in [
        ("insecure-listen", "127.0.0.1:1", "127.0.0.1:1"),
        ("metrics-listen", "127.0.0.1:2", "127.0.0.1:2"),
        ("metrics-listen", "", ""),
        ("proxy-protocol-from", "10.0.0.0/8", "10.0.0.0/8"),
        ("trust-x-forwarded-for", "10.0.0.0/8,::1", "10.0.0.0/8,::1/128"),
        ("rate-limit", "off", "off"),
        ("max-connections", "50", "50"),
        ("max-connections-per-address", "off", "off"),
        ("workers", "3", "3"),
        ("memory-budget", "64MiB", "64MiB"),
        ("max-phones", "5", "5"),
        ("grace", "1s", "1s"),
        ("probe-timeout", "1s", "1s"),
        ("heartbeat-interval", "1s", "1s"),
        ("heartbeat-timeout", "1s", "1s"),
        ("header-timeout", "1s", "1s"),
        ("message-timeout", "1s", "1s"),
        ("write-timeout", "1s", "1s"),
        ("close-timeout", "1s", "1s"),
        ("drain-timeout", "1s", "1s"),
        ("log-format", "json", "json"),
        ("log-level", "warn", "warn"),
    ] {
        let variable = format!("PYRYCODE_RELAY_{}", name.to_ascii_uppercase().replace('-', "_"));
        let mut variables = vec![("PYRYCODE_RELAY_INSECURE_LISTEN", "127.0.0.1:0")];
        variables.retain(|(other, _)| *other != variable);
        variables.push((&variable, value));
        let exit = run_with(&["check"], &variables).await;
        assert_eq!(checked(&exit, name), (shown, variable.as_str()));
    }
}

#[tokio::test]
async fn check_refuses_what_serving_would_refuse() {
    let folder = Folder::new();
    let no_key = folder.write("key.pem", "no key");
    let leaf = Authority::new().leaf("relay.test");
    let cert = folder.write("cert.pem", &leaf.chain);
    let tls = ["--tls-cert", &cert, "--tls-key", &no_key];
    for command in [&["check"][..], &[]] {
        let exit = run(&[command, &tls].concat()).await;
        assert!(refusal(&exit).contains("key.pem"), "{}", exit.stderr);
        let exit = run_with(
            &[command, &["--insecure-listen", "127.0.0.1:0"]].concat(),
            &[("PYRYCODE_RELAY_FCM_CREDENTIALS", "{\"private_key\":\"5ecret\"}")],
        )
        .await;
        assert!(!refusal(&exit).contains("5ecret"));
        let exit = run_with(command, &[("PYRYCODE_RELAY_GRACE", "soon")]).await;
        assert!(refusal(&exit).starts_with("pyrycode-relay: PYRYCODE_RELAY_GRACE: "));
        for value in ["0", "", "true", "1 "] {
            for name in ["PYRYCODE_RELAY_PRODUCTION", "PYRYCODE_RELAY_SINGLE_INSTANCE"] {
                let exit = run_with(command, &[(name, value)]).await;
                assert!(refusal(&exit).contains(name), "{name}={value:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_misspelt_variable_is_warned_of() {
    let relay = Relay::start_with(&[], |command| {
        command.env("PYRYCODE_RELAY_MAX_PHONE", "1");
    })
    .await;
    let line = relay.wait_for_log("unknown_variable").await;
    assert_eq!(line.get("path"), Some("PYRYCODE_RELAY_MAX_PHONE"));
}

// ---- production mode

/// A folder that anyone may enter, with a copy of the relay and a certificate.
struct Stage {
    folder: PathBuf,
    tls: Vec<String>,
}

impl Stage {
    fn new(name: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("relay-stage-{}-{name}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let leaf = Authority::new().leaf("relay.test");
        // By a process of its own: a descriptor that writes to it, inherited by a child of another
        // test, would keep it from being run.
        let copy = Command::new("cp")
            .arg(env!("CARGO_BIN_EXE_pyrycode-relay"))
            .arg(folder.join("relay"))
            .status();
        assert!(copy.unwrap().success());
        std::fs::write(folder.join("cert.pem"), leaf.chain).unwrap();
        std::fs::write(folder.join("key.pem"), leaf.key).unwrap();
        for (path, mode) in [("", 0o755), ("relay", 0o755), ("cert.pem", 0o644), ("key.pem", 0o644)]
        {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(folder.join(path), mode).unwrap();
        }
        let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let mut tls =
            vec!["--tls-cert".into(), path("cert.pem"), "--tls-key".into(), path("key.pem")];
        tls.extend(["--https-listen".into(), "127.0.0.1:0".into()]);
        Self { folder, tls }
    }

    /// The relay as `check` in production mode.
    fn command(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).current_dir("/");
        for name in ["PYRYCODE_RELAY_PRODUCTION", "PYRYCODE_RELAY_SINGLE_INSTANCE"] {
            command.env(name, "1");
        }
        command
    }

    fn tls_args(&self) -> Vec<&str> {
        std::iter::once("check").chain(self.tls.iter().map(String::as_str)).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test]
async fn production_refuses_plain_listening_and_wants_a_word_on_other_instances() {
    let stage = Stage::new("plain");
    let relay = stage.folder.join("relay");
    for args in [&["check"][..], &["--insecure-listen", "127.0.0.1:0"]] {
        let exit = Process::spawn(stage.command(&relay, args)).wait_exit(SOON).await;
        assert!(refusal(&exit).contains("without TLS"), "{}", exit.stderr);
    }
    let mut alone = stage.command(&relay, &stage.tls_args());
    alone.env_remove("PYRYCODE_RELAY_SINGLE_INSTANCE");
    let exit = Process::spawn(alone).wait_exit(SOON).await;
    assert!(refusal(&exit).contains("PYRYCODE_RELAY_SINGLE_INSTANCE=1"), "{}", exit.stderr);
    let mut one_of_many = stage.command(&relay, &["check"]);
    one_of_many.args(stage.tls_args());
    one_of_many.env_remove("PYRYCODE_RELAY_SINGLE_INSTANCE");
    one_of_many.env("PYRYCODE_RELAY_ONE_OF_MANY", "1");
    let exit = Process::spawn(one_of_many).wait_exit(SOON).await;
    assert!(!exit.stderr.contains("ONE_OF_MANY"), "{}", exit.stderr);
}

#[tokio::test]
async fn production_refuses_root_and_capabilities_but_the_one_for_low_ports() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can be refused for being root");
        return;
    }
    let stage = Stage::new("root");
    let relay = stage.folder.join("relay");
    let args = stage.tls_args();
    let exit = Process::spawn(stage.command(&relay, &args)).wait_exit(SOON).await;
    assert!(refusal(&exit).contains("runs as root"), "{}", exit.stderr);

    let mut nobody = stage.command(&relay, &args);
    nobody.uid(65534).gid(65534);
    let exit = Process::spawn(nobody).wait_exit(SOON).await;
    assert_eq!(exit.status.code(), Some(0), "{}", exit.stderr);

    if Command::new("setpriv").arg("--version").output().is_err() {
        eprintln!("SKIPPED: setpriv is not installed");
        return;
    }
    for (capabilities, code) in [("+net_bind_service", 0), ("+net_bind_service,+kill", 2)] {
        let own = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        let sets = ["inh-caps", "ambient-caps"].map(|set| format!("--{set}={capabilities}"));
        let mut all: Vec<&str> = own.to_vec();
        all.extend(sets.iter().map(String::as_str));
        all.push(relay.to_str().unwrap());
        all.extend(&args);
        let privileged = stage.command(Path::new("setpriv"), &all);
        let exit = Process::spawn(privileged).wait_exit(SOON).await;
        assert_eq!(exit.status.code(), Some(code), "{capabilities}: {}", exit.stderr);
        if code == 2 {
            assert!(refusal(&exit).contains("CAP_NET_BIND_SERVICE"), "{}", exit.stderr);
        }
    }
}

#[tokio::test]
async fn outside_production_root_is_a_warning() {
    if rustix::process::geteuid().is_root() {
        let relay = Relay::start(&[]).await;
        relay.wait_for_log("not_for_production").await;
    }
}

// ---- signals

/// A pair that has met, and the phone's conn_id.
async fn pair(relay: &Relay) -> (Raw, Raw, String) {
    let mut binary = Raw::binary(relay, "id").await;
    let mut phone = Raw::phone(relay, "id").await;
    phone.send(masked(TEXT, "1")).await;
    let (conn_id, _) = open_envelope(&binary.recv_text().await);
    (binary, phone, conn_id)
}

#[tokio::test]
async fn sighup_takes_over_what_can_change_and_drops_nobody() {
    let folder = Folder::new();
    let file = folder.write("relay.conf", "max-phones = 16\n");
    let relay = Relay::start(&["--config", &file]).await;
    let (mut binary, mut phone, conn_id) = pair(&relay).await;
    folder.write("relay.conf", "max-phones = 1\nworkers = 7\nmax-connections = 2\n");
    relay.signal(Signal::HangUp);
    let line = relay.wait_for_log_where("reloaded", |l| l.get("path") == Some("max-phones")).await;
    assert_eq!((line.get("from"), line.get("to")), (Some("16"), Some("1")));
    // It was given on the command line, which goes before the file.
    assert!(!relay.logs().iter().any(|line| line.event() == "not_reloaded"));
    wait_until("the new caps", SOON, async || {
        let mut other = Raw::connect(&relay).await;
        other.send(Request::client("id")).await;
        other.response().await.status == 503
    })
    .await;
    folder.write("relay.conf", "max-phones = 1\nlog-format = json\nmax-connections = 9\n");
    relay.signal(Signal::HangUp);
    relay.wait_for_log_where("reloaded", |l| l.get("to") == Some("9")).await;
    let mut second = Raw::phone(&relay, "id").await;
    assert_eq!(second.closed().await.0, 4429, "one phone is all that it may have now");
    binary.send(masked(TEXT, envelope(&conn_id, "2"))).await;
    assert_eq!(phone.recv_text().await, "2");
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_what_takes_a_restart_is_named() {
    let folder = Folder::new();
    let file = folder.write("relay.conf", "memory-budget = 64MiB\n");
    let relay = Relay::start(&["--config", &file]).await;
    folder.write("relay.conf", "grace = soon\n");
    relay.signal(Signal::HangUp);
    let line = relay.wait_for_log("reload_refused").await;
    assert!(line.get("err").unwrap().contains("line 1"), "{line:?}");
    folder.write("relay.conf", "memory-budget = 32MiB\nlog-level = debug\n");
    relay.signal(Signal::HangUp);
    let line = relay.wait_for_log("not_reloaded").await;
    assert_eq!(line.get("path"), Some("memory-budget"));
    // The level is changed for all that comes after.
    let _binary = Raw::binary(&relay, "id").await;
    folder.write("relay.conf", "memory-budget = 64MiB\nlog-level = error\n");
    relay.signal(Signal::HangUp);
    wait_until("silence", SOON, async || {
        let before = relay.logs().len();
        let _one = Raw::binary(&relay, "quiet").await;
        relay.logs().len() == before
    })
    .await;
}

#[tokio::test]
async fn sigusr1_describes_every_connection_and_no_secret() {
    let folder = Folder::new();
    let relay = Relay::start_with(&[], |command| {
        command.env("RUNTIME_DIRECTORY", folder.path(""));
    })
    .await;
    let (_binary, _phone, conn_id) = pair(&relay).await;
    let mut sly = Raw::connect(&relay).await;
    let request = Request::client("a b\"c").set("X-Pyrycode-Token", "5ecret");
    sly.send(request).await;
    let _waiting = Raw::connect(&relay).await;
    relay.signal(Signal::User1);
    let line = relay.wait_for_log("connections_dumped").await;
    let path = line.get("path").unwrap();
    let mode = std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.starts_with("core remote state server_id conn_id age_s"), "{text}");
    let of = |state: &str| text.lines().filter(|line| line.contains(state)).collect::<Vec<_>>();
    assert_eq!((of(" binary ").len(), of(" phone ").len()), (1, 1), "{text}");
    assert!(of(" phone ")[0].contains(&format!(" \"id\" {conn_id} ")), "{text}");
    assert!(!text.contains("5ecret"));
    // Another one does not write over it.
    relay.signal(Signal::User1);
    relay.wait_for_log_where("connections_dumped", |line| line.get("path") != Some(path)).await;
}

// ---- what a supervisor is told

#[tokio::test]
async fn systemd_is_told_when_it_is_ready_alive_reloading_and_stopping() {
    let folder = Folder::new();
    let path = folder.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    hears_of_its_life(&socket, path.as_os_str()).await;
}

#[tokio::test]
async fn a_supervisor_with_an_abstract_socket_is_told_the_same() {
    let name = format!("pyrycode-relay-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let socket = UnixDatagram::bind_addr(&address).unwrap();
    hears_of_its_life(&socket, OsStr::new(&format!("@{name}"))).await;
}

/// What a supervisor hears at `socket`, which it names `address`.
async fn hears_of_its_life(socket: &UnixDatagram, address: &OsStr) {
    socket.set_read_timeout(Some(SOON)).unwrap();
    let mut relay = Relay::start_with(&[], |command| {
        command.env("NOTIFY_SOCKET", address).env("WATCHDOG_USEC", "400000");
        command.env_remove("WATCHDOG_PID");
    })
    .await;
    let hear = |wanted: &str| {
        let mut buffer = [0; 1024];
        loop {
            let length = socket.recv(&mut buffer).expect(wanted);
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.lines().any(|line| line == wanted) {
                return text;
            }
        }
    };
    assert!(hear("READY=1").contains("STATUS=serving on 127.0.0.1:"));
    for _ in 0..3 {
        hear("WATCHDOG=1");
    }
    relay.signal(Signal::HangUp);
    assert!(hear("RELOADING=1").contains("MONOTONIC_USEC="));
    hear("READY=1");
    relay.signal(Signal::Term);
    hear("STOPPING=1");
    assert!(relay.wait_exit(Duration::from_secs(15)).await.status.success());
}
