//! Binds the listeners, and checks beforehand whether their addresses are free.

use super::explain::explain_no_listener;
use super::failure;
use super::port_owner::PortOwner;
use crate::config::{CertificateSource, Config, Exit, MetricsListen};
use crate::worker::listener;
use socket2::Socket;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tracing::{info, warn};

/// How long the kernel may keep the address of a process that was killed.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait before the next attempt.
const PAUSE: Duration = Duration::from_millis(20);

/// Where connections are served, and the flag that says so.
///
/// # Errors
///
/// Nowhere.
pub(super) fn place(config: &Config) -> Result<(&'static str, SocketAddr), Exit> {
    match (&config.insecure, &config.https) {
        (Some(listen), _) => Ok(("--insecure-listen", listen.addr)),
        (None, Some(https)) => Ok(("--https-listen", https.listen)),
        (None, None) => Err(failure("there is nothing to listen on".to_owned())),
    }
}

/// Listens on `address`, which `flag` names, with so many sockets.
///
/// # Errors
///
/// Why that cannot be, and how to mend it.
pub(super) fn listen(flag: &str, address: SocketAddr, sockets: usize) -> Result<Vec<Socket>, Exit> {
    let mut until = None;
    loop {
        let error = match listener::bind(address, sockets) {
            Ok(bound) => return Ok(bound),
            Err(error) => error,
        };
        let is_taken = error.kind() == io::ErrorKind::AddrInUse;
        let refused = || Err(refusal(flag, address, &error));
        if !is_taken || PortOwner::of(address) != PortOwner::Nobody {
            return refused();
        }
        let until = *until.get_or_insert_with(|| {
            let err = "the address is in use and no process listens there, perhaps because the kernel \
                       still holds it for a process that has just ended; trying again";
            warn!(remote = %address, err, duration = ?PATIENCE, "address_awaited");
            Instant::now() + PATIENCE
        });
        if Instant::now() >= until {
            return refused();
        }
        std::thread::sleep(PAUSE);
    }
}

/// The listener for metrics. A default that is taken is no reason not to serve: another relay of
/// this machine may have it.
///
/// # Errors
///
/// The flag names an address that cannot be bound.
pub(super) fn for_metrics(listen_on: MetricsListen) -> Result<Option<TcpListener>, Exit> {
    let MetricsListen { addr, is_default } = listen_on;
    if is_default && let Err(error) = listener::look(addr) {
        no_metrics(addr, &error);
        return Ok(None);
    }
    let listener = listen_by_tokio("--metrics-listen", addr)?;
    let address = listener.local_addr().unwrap_or(addr);
    info!(remote = %address, "listening_for_metrics");
    Ok(Some(listener))
}

/// As [`listen`], with one socket for the tokio runtime that this is called in.
///
/// # Errors
///
/// As [`listen`].
pub(super) fn listen_by_tokio(flag: &str, address: SocketAddr) -> Result<TcpListener, Exit> {
    let listener = listen(flag, address, 1)?.pop().ok_or(io::ErrorKind::AddrNotAvailable.into());
    listener
        .and_then(|socket| TcpListener::from_std(socket.into()))
        .map_err(|error| refusal(flag, address, &error))
}

fn refusal(flag: &str, address: SocketAddr, error: &io::Error) -> Exit {
    failure(explain_no_listener(flag, address, error)).about([flag])
}

fn no_metrics(address: SocketAddr, error: &io::Error) {
    let err = format!(
        "{error}: there are no metrics and no status page on {address}; choose another address \
         with --metrics-listen"
    );
    warn!(err, "metrics_not_served");
}

/// Refuses what [`listen`] would refuse, and listens nowhere: a socket that is bound and does not
/// listen lets nobody in. That this user may not take a low port is only warned of, because whoever
/// looks is often not the user who serves.
///
/// # Errors
///
/// An address cannot be bound, and how to mend it.
pub(super) fn check(config: &Config) -> Result<(), Exit> {
    let mut places = vec![place(config)?];
    if let Some(CertificateSource::Acme { http_listen: Some(address), .. }) =
        config.https.as_ref().map(|https| &https.certificate)
    {
        places.push(("--http-listen", *address));
    }
    if let Some(MetricsListen { addr, is_default }) = config.metrics_listen {
        match listener::look(addr) {
            Err(error) if is_default => no_metrics(addr, &error),
            _ => places.push(("--metrics-listen", addr)),
        }
    }
    for (flag, address) in places {
        let Err(error) = listener::look(address) else { continue };
        let refused = refusal(flag, address, &error);
        if error.kind() != io::ErrorKind::PermissionDenied {
            return Err(refused);
        }
        warn!(err = refused.reason, "not_permitted_here");
    }
    Ok(())
}
