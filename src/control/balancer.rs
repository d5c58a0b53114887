//! Configurations for the balancers that stand before several relays: `pyrycode-relay haproxy` and
//! `pyrycode-relay nginx`.
//!
//! The relay knows nothing of other relays. What spreads server-ids over several is a balancer that
//! sends a binary and its phones to the same one, by the header `X-Pyrycode-Server`. The texts are
//! templates with `{{names}}`; what fills them has been checked, so nothing that was typed can
//! become a line of its own.

mod haproxy;
mod nginx;

pub use haproxy::{haproxy, haproxy_help};
pub use nginx::{nginx, nginx_help};

use crate::config::{Exit, PROGRAM, own_flags};
use std::ffi::OsString;
use std::str::FromStr;

/// A relay or a balancer: how it is called, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    name: String,
    /// Host and port.
    address: String,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, address) = text.split_once('=').ok_or("it is written NAME=HOST:PORT")?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() || name.len() > 64 || !name.chars().all(is_plain) {
            return Err("a name is 1 to 64 letters, digits, dashes and underscores".to_owned());
        }
        Ok(Self { name: name.to_owned(), address: host_and_port(address)? })
    }
}

/// A host and a port, as they may stand in a configuration.
fn host_and_port(text: &str) -> Result<String, String> {
    let wrong = || format!("{text:?} is not HOST:PORT");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
    let (literal, name) = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(literal) => (literal.parse::<std::net::Ipv6Addr>().is_ok(), false),
        None => (false, is_host_name(host)),
    };
    if is_port && (literal || name) { Ok(text.to_owned()) } else { Err(wrong()) }
}

/// A name or an IPv4 address.
fn is_host_name(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    !text.is_empty() && text.len() <= 253 && text.chars().all(is_plain)
}

/// Where the balancer listens: `:443`, or a host and a port.
fn bind(text: &str) -> Result<String, String> {
    let with_host = if text.starts_with(':') { format!("host{text}") } else { text.to_owned() };
    host_and_port(&with_host).map(|_| text.to_owned())
}

fn host_name(text: &str) -> Result<String, String> {
    if is_host_name(text) { Ok(text.to_owned()) } else { Err("it is no host name".to_owned()) }
}

/// A path that needs no quotes anywhere; empty for none.
fn path(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._/+@:".contains(c);
    match text.chars().all(is_plain) {
        true => Ok(text.to_owned()),
        false => Err("a path of letters, digits and - . _ / + @ : is wanted here".to_owned()),
    }
}

/// Refuses names that are there twice.
fn names_differ(flag: &str, all: &[Named]) -> Result<(), Exit> {
    for (index, one) in all.iter().enumerate() {
        if all.iter().skip(index + 1).any(|other| other.name == one.name) {
            let name = &one.name;
            return Err(Exit::refusal(&format!("{flag}: there are two by the name {name}")));
        }
    }
    Ok(())
}

/// `template` with each `{{name}}` replaced.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut text = template.to_owned();
    for (name, value) in values {
        text = text.replace(&format!("{{{{{name}}}}}"), value);
    }
    debug_assert!(!text.contains("{{"), "a placeholder that nothing fills");
    text.trim_end().to_owned()
}

/// These commands, as clap knows them.
#[must_use]
pub fn commands() -> [clap::Command; 2] {
    [haproxy::command().name("haproxy"), nginx::command().name("nginx")]
}

/// What `--help` of the command is answered, if it is among `args`.
fn help<T: clap::Parser>(command: &str, args: &[OsString]) -> Option<String> {
    own_flags::help::<T>(named(command, args.to_vec()))
}

/// Reads the command line of the command.
fn parse<T: clap::Parser>(command: &str, args: Vec<OsString>) -> Result<T, Exit> {
    let hint = format!("`{PROGRAM} {command} --help` lists its flags");
    own_flags::parse(named(command, args), &hint)
}

/// `args`, with the program's name as clap is to show it.
fn named(command: &str, args: Vec<OsString>) -> Vec<OsString> {
    let program = OsString::from(format!("{PROGRAM} {command}"));
    std::iter::once(program).chain(args.into_iter().skip(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn args(words: &str) -> Vec<OsString> {
        std::iter::once("pyrycode-relay").chain(words.split(' ')).map(OsString::from).collect()
    }

    #[test]
    fn what_is_typed_cannot_become_another_line() {
        for text in ["a=10.0.0.1:8080", "relay-1=relay_1.internal:8080", "a=[fd00::1]:8080"] {
            assert!(text.parse::<Named>().is_ok(), "{text}");
        }
        for text in [
            "10.0.0.1:8080",
            "=10.0.0.1:8080",
            "a b=10.0.0.1:8080",
            "a=10.0.0.1",
            "a=10.0.0.1:0",
            "a=10.0.0.1:99999",
            "a=x y:80",
            "a=x\n:80",
            "a=[fd00::1:80",
            "a=fd00::1:80",
            "a={{x}}:80",
        ] {
            assert!(text.parse::<Named>().is_err(), "{text}");
        }
        assert!(bind(":443").is_ok() && bind("0.0.0.0:443").is_ok() && bind("443").is_err());
        assert!(
            path("/etc/haproxy/certs").is_ok() && path("/a b").is_err() && path("/a;b").is_err()
        );
    }
}
