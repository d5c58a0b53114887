//! `pyrycode-relay nginx`: hashing alone, and what that cannot do.

use super::{Named, bind, fill, help, host_name, names_differ, parse, path};
use crate::config::Exit;
use clap::{CommandFactory as _, Parser};
use std::ffi::OsString;
use std::fmt::Write as _;

const TEMPLATE: &str = include_str!("../assets/nginx.conf");

/// Prints a complete, commented configuration of nginx in front of several relays, which says what
/// nginx cannot do; HAProxy does it better
#[derive(Debug, Parser)]
#[command(disable_version_flag = true)]
struct Flags {
    /// A relay: its name, and where it serves; once for each
    #[arg(long = "relay", value_name = "NAME=HOST:PORT", required = true)]
    relays: Vec<Named>,

    /// Where nginx serves
    #[arg(long, value_name = "HOST:PORT", default_value = ":443", value_parser = bind)]
    bind: String,

    /// Certificate chain (PEM); empty for no TLS
    #[arg(long, value_name = "FILE", default_value = "/etc/nginx/relay.pem", value_parser = path)]
    certificate: String,

    /// The certificate's key (PEM)
    #[arg(long, value_name = "FILE", default_value = "/etc/nginx/relay.key", value_parser = path)]
    key: String,

    /// The relays serve TLS, with a certificate for this name (--tls-cert): all that is sent to them
    /// is encrypted anew
    #[arg(long, value_name = "NAME", value_parser = host_name)]
    relay_tls: Option<String>,

    /// Whom to trust for the relays' certificates (PEM)
    #[arg(
        long, value_name = "FILE", requires = "relay_tls", value_parser = path,
        default_value = "/etc/ssl/certs/ca-certificates.crt"
    )]
    relay_ca: String,

    /// Where nginx writes its process id
    #[arg(long, value_name = "PATH", default_value = "/run/nginx.pid", value_parser = path)]
    pid: String,

    /// Where nginx writes errors
    #[arg(long, value_name = "PATH", default_value = "/var/log/nginx/error.log", value_parser = path)]
    error_log: String,

    /// Connections of each worker process, both sides counted
    #[arg(long, value_name = "COUNT", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(10..))]
    max_connections: u32,
}

/// What `pyrycode-relay nginx --help` is answered, if that is asked.
#[must_use]
pub fn nginx_help(args: &[OsString]) -> Option<String> {
    help::<Flags>("nginx", args)
}

pub(super) fn command() -> clap::Command {
    Flags::command()
}

/// The configuration that these arguments ask for, of which the first is the program's name.
///
/// # Errors
///
/// A refusal that says what is wrong, or the help that was asked for.
pub fn nginx(args: Vec<OsString>) -> Result<String, Exit> {
    let flags: Flags = parse("nginx", args)?;
    names_differ("--relay", &flags.relays)?;
    let servers = flags.relays.iter().fold(String::new(), |mut text, relay| {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "        server {} max_fails=1 fail_timeout=5s; # {}",
            relay.address, relay.name
        );
        text
    });
    let port = flags.bind.trim_start_matches(':');
    let (listen, certificate) = match flags.certificate.as_str() {
        "" => (port.to_owned(), String::new()),
        file => {
            let key = &flags.key;
            let lines =
                format!("        ssl_certificate {file};\n        ssl_certificate_key {key};\n");
            (format!("{port} ssl"), lines)
        }
    };
    let tls = flags.relay_tls.as_ref().map_or(String::new(), |name| {
        let ca = &flags.relay_ca;
        format!(
            "        proxy_ssl_verify on;\n        proxy_ssl_trusted_certificate {ca};\n        \
             proxy_ssl_server_name on;\n        proxy_ssl_name {name};\n"
        )
    });
    let (start, scheme, private) = match flags.relay_tls {
        None => (
            "pyrycode-relay --insecure-listen 10.0.0.1:8080 --trust-x-forwarded-for NGINX",
            "http",
            " (nothing on it is encrypted)",
        ),
        Some(_) => (
            "pyrycode-relay --tls-cert FILE --tls-key FILE --https-listen 10.0.0.1:8443 \
             --trust-x-forwarded-for NGINX",
            "https",
            "",
        ),
    };
    Ok(fill(
        TEMPLATE,
        &[
            ("start", start),
            ("private", private),
            ("pid", &flags.pid),
            ("errors", &flags.error_log),
            ("maxconn", &flags.max_connections.to_string()),
            ("servers", &servers),
            ("listen", &listen),
            ("certificate", &certificate),
            ("host", flags.relay_tls.as_deref().unwrap_or("relay")),
            ("tls", &tls),
            ("scheme", scheme),
        ],
    ))
}
