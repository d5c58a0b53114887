//! What a bug report needs of a running relay, as files of one archive: without secrets, and without
//! addresses and names of peers unless they are asked for.

use super::monitoring::Monitoring;
use super::reload::Settings;
use super::socket::client::ask_for_items;
use super::socket::protocol::Request;
use crate::worker::ring;
use rustix::system::uname;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Instant;

/// A file of the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) text: String,
}

/// All of them. `settings` is the effective configuration.
pub(super) async fn parts(
    monitoring: &Monitoring,
    settings: &Settings,
    with_addresses: bool,
) -> Vec<Part> {
    let hosts = settings.hosts();
    let parts = [
        ("settings.txt", settings.text()),
        ("status.json", monitoring.status().await),
        ("metrics.txt", monitoring.metrics().await),
        ("warnings.txt", warnings()),
        ("kernel.txt", kernel()),
        ("limits.txt", files(&LIMITS)),
        ("io_uring.txt", ring::describe().unwrap_or_else(|error| format!("no ring: {error}\n"))),
    ];
    let parts = parts.into_iter().map(|(name, text)| {
        let text = match with_addresses {
            true => text,
            false => {
                hosts.iter().fold(without_peers(&text), |text, host| text.replace(host, HIDDEN))
            }
        };
        Part { name: name.to_owned(), text }
    });
    parts.collect()
}

fn warnings() -> String {
    let line = |warning: &crate::telemetry::Warning| {
        let crate::telemetry::Warning { time, level, event, text } = warning;
        format!("{time} {level} {event} {text}\n")
    };
    crate::telemetry::recent_warnings().iter().map(|warning| line(warning)).collect()
}

fn kernel() -> String {
    let name = uname();
    let [system, release, version, machine] =
        [name.sysname(), name.release(), name.version(), name.machine()]
            .map(|text| text.to_string_lossy().into_owned());
    format!("{system} {release} {version} {machine}\n\n{}", files(&KERNEL))
}

/// What the kernel allows to all.
const KERNEL: [&str; 8] = [
    "/proc/sys/kernel/io_uring_disabled",
    "/proc/sys/kernel/io_uring_group",
    "/proc/sys/net/core/somaxconn",
    "/proc/sys/net/ipv4/tcp_mem",
    "/proc/sys/fs/nr_open",
    "/proc/meminfo",
    "/proc/loadavg",
    "/etc/os-release",
];
/// What it allows to this process.
const LIMITS: [&str; 6] = [
    "/proc/self/limits",
    "/proc/self/status",
    "/proc/self/cgroup",
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/cpu.max",
    "/proc/self/stat",
];

/// The content of each, or why there is none.
fn files(paths: &[&str]) -> String {
    let mut all = String::new();
    for path in paths {
        let text = fs::read_to_string(path).unwrap_or_else(|error| format!("({error})\n"));
        // Writing to a string cannot fail.
        let _ = write!(all, "==> {path}\n{}\n\n", text.trim_end());
    }
    all
}

/// Keys of log lines whose values name a peer or what belongs to one.
const NAMING_KEYS: [&str; 6] =
    ["server_id", "conn_id", "binary_conn_id", "device_name", "remote", "token_fp"];

/// What stands for an address or a name.
const HIDDEN: &str = "[hidden]";

/// The text without addresses, and without the names in its log lines.
fn without_peers(text: &str) -> String {
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        out += &without_addresses(&without_names(line));
    }
    out
}

/// A log line in logfmt without the values of [`NAMING_KEYS`].
fn without_names(line: &str) -> String {
    let mut line = line.to_owned();
    for key in NAMING_KEYS {
        let key = format!("{key}=");
        let mut from = 0;
        while let Some(at) = line.get(from..).and_then(|rest| rest.find(&key)) {
            let begin = from + at + key.len();
            let length = value_len(line.get(begin..).unwrap_or_default());
            line.replace_range(begin..begin + length, HIDDEN);
            from = begin + HIDDEN.len();
        }
    }
    line
}

/// The length of a value in logfmt: up to the next blank, or quoted; inside JSON its quotes are escaped.
fn value_len(rest: &str) -> usize {
    let quote = if rest.starts_with("\\\"") { "\\\"" } else { "\"" };
    match rest.strip_prefix(quote) {
        Some(inner) => inner.find(quote).map_or(rest.len(), |end| end + 2 * quote.len()),
        None => rest.find([' ', '\n', '"']).unwrap_or(rest.len()),
    }
}

/// The text without what reads as an address of the network; addresses of this machine alone, and
/// those that mean all of them, tell nothing of anybody.
fn without_addresses(text: &str) -> String {
    let may_be_in_one = |c: char| c.is_ascii_hexdigit() || ".:[]/%".contains(c);
    let mut out = String::new();
    let mut rest = text;
    while let Some(begin) = rest.find(may_be_in_one) {
        let (before, after) = rest.split_at(begin);
        let end = after.find(|c| !may_be_in_one(c)).unwrap_or(after.len());
        let (word, behind) = after.split_at(end);
        out += before;
        out += if names_a_peer(word) { HIDDEN } else { word };
        rest = behind;
    }
    out + rest
}

fn names_a_peer(word: &str) -> bool {
    let word = word.trim_end_matches([':', '.', '/']);
    let address = word.parse::<SocketAddr>().map(|address| address.ip());
    let address = address.or_else(|_| word.parse::<IpAddr>());
    let address = address.or_else(|_| word.split('/').next().unwrap_or_default().parse());
    address.is_ok_and(|address| !address.is_loopback() && !address.is_unspecified())
}

/// Asks the relay at `path` and writes the archive `to`, which must not be there.
///
/// # Errors
///
/// One line that says why there is none.
pub(super) fn diagnose(path: &Path, to: &Path, with_addresses: bool) -> Result<usize, String> {
    let mut parts: Vec<Part> = Vec::new();
    ask_for_items::<()>(path, &Request::Diagnose { with_addresses }, |item| {
        parts.push(serde_json::from_value(item).map_err(|error| error.to_string())?);
        Ok(())
    })?;
    write(&parts, to).map_err(|error| {
        format!("{} cannot be written: {error}; give another file (--output)", to.display())
    })?;
    Ok(parts.len())
}

fn write(parts: &[Part], to: &Path) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let now = super::since_1970(Instant::now());
    let mut archive = tar::Builder::new(file);
    for Part { name, text } in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now);
        archive.append_data(
            &mut header,
            Path::new("pyrycode-relay").join(name),
            text.as_bytes(),
        )?;
    }
    archive.into_inner()?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_others_are_hidden_and_nothing_else() {
        for (text, without) in [
            ("remote 192.0.2.7:80 came", "remote [hidden] came"),
            ("[2001:db8::1]:443, 2001:db8::/32", "[hidden], [hidden]"),
            ("10.0.0.0/8,127.0.0.1:9090 ::1", "[hidden],127.0.0.1:9090 ::1"),
            ("at 12:30:45.123Z, 6.18.5, 0:0, a.b", "at 12:30:45.123Z, 6.18.5, 0:0, a.b"),
            (":443 0.0.0.0:443 [::]:80", ":443 0.0.0.0:443 [::]:80"),
            ("from 192.0.2.7: gone. 192.0.2.7.", "from [hidden] gone. [hidden]"),
        ] {
            assert_eq!(without_peers(text), without);
        }
    }

    #[test]
    fn names_in_log_lines_are_hidden() {
        for (text, without) in [
            ("server_id=me err=\"no one\"", "server_id=[hidden] err=\"no one\""),
            ("a server_id=\"me too\" core=1\n", "a server_id=[hidden] core=1\n"),
            (r#"{"text":"server_id=\"me\" core=0"}"#, r#"{"text":"server_id=[hidden] core=0"}"#),
            (r#"{"text":"conn_id=0a"}"#, r#"{"text":"conn_id=[hidden]"}"#),
            ("device_name=x conn_id=y", "device_name=[hidden] conn_id=[hidden]"),
        ] {
            assert_eq!(without_peers(text), without);
        }
    }
}
