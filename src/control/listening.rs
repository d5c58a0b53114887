//! Binds the listeners, and checks beforehand whether their addresses are free.

use super::explain::explain_no_listener;
use super::failure;
use super::port_owner::PortOwner;
use super::upgrade::lent::Lent;
use crate::config::{CertificateSource, Config, Exit, MetricsListen};
use crate::handover::messages::Place;
use crate::worker::listener;
use socket2::Socket;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tracing::{info, warn};

/// The flag that says where metrics are served.
pub(super) const METRICS_LISTEN: &str = "--metrics-listen";
/// The flag that says where challenges of http-01 are answered.
pub(super) const HTTP_LISTEN: &str = "--http-listen";

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

/// Sockets where `flag` would have a successor serve, in addition to those of its predecessor, where it
/// has more workers. They do not listen yet.
///
/// # Errors
///
/// That is another place, or no more can be bound.
pub(super) fn inherit(
    (flag, address): (&str, SocketAddr),
    serving: &Place,
    workers: usize,
) -> Result<Vec<Socket>, Exit> {
    if (flag, address) != (serving.flag.as_str(), serving.asked) {
        return Err(failure(format!(
            "the running relay serves at {} {}, and this one is to serve at {flag} {address}: connections \
             that are there cannot go on elsewhere; restart the relay instead",
            serving.flag, serving.asked
        ))
        .about([flag]));
    }
    listener::join(serving.bound, workers.saturating_sub(serving.sockets as usize))
        .map_err(|error| refusal(flag, serving.bound, &error))
}

/// Shares out listeners among so many workers, each of which gets one at least where there are enough.
pub(super) fn share_out(listeners: Vec<Socket>, workers: usize) -> Vec<Vec<Socket>> {
    let mut shares: Vec<Vec<Socket>> = (0..workers).map(|_| Vec::new()).collect();
    for (number, listener) in listeners.into_iter().enumerate() {
        if let Some(share) = shares.get_mut(number % workers.max(1)) {
            share.push(listener);
        }
    }
    shares
}

/// The listener for metrics: the one of a predecessor, or one of its own. A default that is taken is
/// no reason not to serve: another relay of this machine may have it.
///
/// # Errors
///
/// The flag names an address that cannot be bound.
pub(super) fn for_metrics(
    listen_on: MetricsListen,
    lent: &mut Lent,
) -> Result<Option<TcpListener>, Exit> {
    let MetricsListen { addr, is_default } = listen_on;
    let inherited = lent.take(METRICS_LISTEN, addr);
    if inherited.is_none()
        && is_default
        && let Err(error) = listener::look(addr)
    {
        no_metrics(addr, &error);
        return Ok(None);
    }
    let listener = listen_by_tokio(METRICS_LISTEN, addr, inherited)?;
    let address = listener.local_addr().unwrap_or(addr);
    info!(remote = %address, "listening_for_metrics");
    Ok(Some(listener))
}

/// As [`listen`], with one socket for the tokio runtime that this is called in: `inherited`, if there
/// is one.
///
/// # Errors
///
/// As [`listen`].
pub(super) fn listen_by_tokio(
    flag: &str,
    address: SocketAddr,
    inherited: Option<OwnedFd>,
) -> Result<TcpListener, Exit> {
    let listener = match inherited {
        Some(descriptor) => Ok(Socket::from(descriptor)),
        None => listen(flag, address, 1)?.pop().ok_or(io::ErrorKind::AddrNotAvailable.into()),
    };
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
        places.push((HTTP_LISTEN, *address));
    }
    if let Some(MetricsListen { addr, is_default }) = config.metrics_listen {
        match listener::look(addr) {
            Err(error) if is_default => no_metrics(addr, &error),
            _ => places.push((METRICS_LISTEN, addr)),
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
