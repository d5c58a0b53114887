//! `pyrycode-relay haproxy`: the balancer that keeps each server-id on one relay.

use super::{Named, bind, fill, help, host_and_port, host_name, names_differ, parse, path};
use crate::config::Exit;
use clap::{CommandFactory as _, Parser};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;

const TEMPLATE: &str = include_str!("../assets/haproxy.cfg");

/// Prints a complete, commented configuration of HAProxy (2.6 or later) in front of several relays
#[derive(Debug, Parser)]
#[command(disable_version_flag = true)]
struct Flags {
    /// A relay: its name, which stays its own for good, and where it serves; once for each
    #[arg(long = "relay", value_name = "NAME=HOST:PORT", required = true)]
    relays: Vec<Named>,

    /// A balancer: its name, and where it talks to the others of which server-id is where; once for
    /// each. The first is the one that the configuration is for [default: lb1=127.0.0.1:10000]
    #[arg(long = "balancer", value_name = "NAME=HOST:PORT")]
    balancers: Vec<Named>,

    /// Where the balancer serves
    #[arg(long, value_name = "HOST:PORT", default_value = ":443", value_parser = bind)]
    bind: String,

    /// Certificate and key in one PEM file, or a folder of such; empty for no TLS
    #[arg(long, value_name = "PATH", default_value = "/etc/haproxy/certs", value_parser = path)]
    certificate: String,

    /// The relays serve TLS, with a certificate for this name (--tls-cert, --https-proxy-protocol):
    /// all that is sent to them is encrypted anew
    #[arg(long, value_name = "NAME", value_parser = host_name)]
    relay_tls: Option<String>,

    /// Whom to trust for the relays' certificates (PEM) [default: whom the system trusts]
    #[arg(long, value_name = "FILE", requires = "relay_tls", value_parser = path)]
    relay_ca: Option<String>,

    /// The socket by which HAProxy is asked and told
    #[arg(long, value_name = "PATH", default_value = "/run/haproxy/admin.sock", value_parser = path)]
    stats_socket: String,

    /// Where HAProxy's own metrics are served
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8404", value_parser = host_and_port)]
    metrics: String,

    /// Connections in all
    #[arg(long, value_name = "COUNT", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(10..))]
    max_connections: u32,

    /// Server-ids whose relay is remembered
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1000..))]
    server_ids: u32,
}

/// What `pyrycode-relay haproxy --help` is answered, if that is asked.
#[must_use]
pub fn haproxy_help(args: &[OsString]) -> Option<String> {
    help::<Flags>("haproxy", args)
}

pub(super) fn command() -> clap::Command {
    Flags::command()
}

/// The configuration that these arguments ask for, of which the first is the program's name.
///
/// # Errors
///
/// A refusal that says what is wrong, or the help that was asked for.
pub fn haproxy(args: Vec<OsString>) -> Result<String, Exit> {
    let mut flags: Flags = parse("haproxy", args)?;
    names_differ("--relay", &flags.relays)?;
    if flags.balancers.is_empty() {
        let address = "127.0.0.1:10000".to_owned();
        flags.balancers.push(Named { name: "lb1".to_owned(), address });
    }
    names_differ("--balancer", &flags.balancers)?;
    let numbers = numbers(&flags.relays)?;
    let bind = match flags.certificate.as_str() {
        "" => flags.bind.clone(),
        certificate => format!("{} ssl crt {certificate} alpn http/1.1", flags.bind),
    };
    let tls = tls(&flags);
    let peers = lines(&flags.balancers, |b| format!("peer {} {}", b.name, b.address));
    let number = |relay: &Named| numbers.get(relay.name.as_str()).copied().unwrap_or_default();
    let server =
        |relay: &Named| format!("server {} {} id {}", relay.name, relay.address, number(relay));
    let home = |relay: &Named| {
        let (name, is_home) =
            (&relay.name, format!("{{ var(txn.home) -m int {} }}", number(relay)));
        format!(
            "use-server {name} if {is_home} !{{ var(txn.claim) -m bool }} or {is_home} {{ \
             srv_is_up(ready/{name}) }}"
        )
    };
    let host = flags.relay_tls.as_deref().unwrap_or("relay");
    let start = match flags.relay_tls {
        None => "pyrycode-relay --insecure-listen 10.0.0.1:8080 --proxy-protocol-from BALANCERS",
        Some(_) => {
            "pyrycode-relay --tls-cert FILE --tls-key FILE --https-listen 10.0.0.1:8443 \
             --https-proxy-protocol"
        }
    };
    let private = match flags.relay_tls {
        None => ": nothing on it is encrypted",
        Some(_) => " all the same: whoever reaches a relay names any address as its own",
    };
    Ok(fill(
        TEMPLATE,
        &[
            ("start", start),
            ("private", private),
            ("stats", &flags.stats_socket),
            ("maxconn", &flags.max_connections.to_string()),
            ("localpeer", flags.balancers.first().map_or("", |first| &first.name)),
            ("peers", &peers),
            ("bind", &bind),
            ("size", &flags.server_ids.to_string()),
            ("homes", &lines(&flags.relays, home)),
            ("host", host),
            ("tls", &tls),
            ("servers", &lines(&flags.relays, server)),
            ("metrics", &flags.metrics),
        ],
    ))
}

fn lines(all: &[Named], line: impl Fn(&Named) -> String) -> String {
    // Writing to a string cannot fail.
    all.iter().fold(String::new(), |mut text, one| {
        let _ = writeln!(text, "    {}", line(one));
        text
    })
}

/// What each `server` line says of TLS.
fn tls(flags: &Flags) -> String {
    let Some(name) = &flags.relay_tls else { return String::new() };
    let ca = flags.relay_ca.as_deref().unwrap_or("@system-ca");
    format!(" ssl verify required ca-file {ca} sni str({name}) check-sni {name} verifyhost {name}")
}

/// A number for each relay that depends on nothing but its name, so that neither hashing nor what is
/// remembered changes when a line moves.
fn numbers(relays: &[Named]) -> Result<BTreeMap<&str, u32>, Exit> {
    let mut taken: BTreeMap<u32, &str> = BTreeMap::new();
    for relay in relays {
        if let Some(other) = taken.insert(number(&relay.name), &relay.name) {
            return Err(Exit::refusal(&format!(
                "--relay: the names {other} and {} come to the same number; change one of them",
                relay.name
            )));
        }
    }
    Ok(taken.into_iter().map(|(number, name)| (name, number)).collect())
}

/// FNV-1a, folded to what HAProxy takes for a server's number: 1 to 2^31 - 1.
fn number(name: &str) -> u32 {
    let hash = name
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash & 0x7fff_ffff).max(1)
}

#[cfg(test)]
mod tests {
    use super::super::tests::args;
    use super::*;

    #[test]
    fn a_relays_number_is_its_names() {
        let of = |words: &str| haproxy(args(words)).unwrap();
        let two = of("--relay a=10.0.0.1:1 --relay b=10.0.0.2:1");
        let other = of("--relay c=10.0.0.3:1 --relay b=10.0.0.2:1");
        let line = two.lines().find(|line| line.contains("server b ")).unwrap();
        assert!(other.contains(line) && !other.contains("server a "));
        assert!((1..=0x7fff_ffff).contains(&number("")) && number("a") != number("b"));
    }

    #[test]
    fn what_cannot_be_is_refused_in_one_line() {
        for (words, said) in [
            ("--bind :443", "--relay"),
            ("--relay a=10.0.0.1:1 --relay a=10.0.0.2:1", "two by the name a"),
            ("--relay a=10.0.0.1", "HOST:PORT"),
            ("--relay a=10.0.0.1:1 --relay-ca /x", "--relay-tls"),
            ("--relay a=10.0.0.1:1 --colour", "--colour"),
        ] {
            let exit = haproxy(args(words)).unwrap_err();
            assert_eq!(exit.code, 2, "{exit:?}");
            assert!(exit.reason.contains(said) && !exit.reason.contains('\n'), "{exit:?}");
        }
        assert!(haproxy_help(&args("--help")).is_some_and(|text| text.contains("--relay")));
    }
}
