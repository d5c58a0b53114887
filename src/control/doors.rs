//! The control plane's own listeners: those of a predecessor where they listen as this process is to,
//! and others of its own.

use super::certificate_manager::CertificateManager;
use super::failure;
use super::listening::{self, METRICS_LISTEN};
use super::socket::listener::Bound;
use super::upgrade::lent::Lent;
use crate::config::{Config, Exit};
use std::io;
use tokio::net::TcpListener;

/// The flag that says where the control socket is.
const CONTROL_SOCKET: &str = "--control-socket";

/// The control plane's listeners.
pub(super) struct Doors {
    /// For metrics and the status page.
    pub(super) metrics: Option<TcpListener>,
    /// For commands.
    pub(super) control_socket: Option<Bound>,
    /// For challenges of http-01.
    pub(super) challenges: Option<TcpListener>,
    /// All of them, for a successor.
    pub(super) lends: Lent,
}

impl Doors {
    /// Listens where `config` says, for the tokio runtime that this is called in.
    ///
    /// # Errors
    ///
    /// An address or a path cannot be had.
    pub(super) fn open(
        config: &Config,
        manager: Option<&CertificateManager>,
        mut lent: Lent,
    ) -> Result<Self, Exit> {
        let mut lends = Lent::default();
        let short = |error: io::Error| failure(error.to_string());
        let mut metrics = None;
        if let Some(listen_on) = config.metrics_listen {
            metrics = listening::for_metrics(listen_on, &mut lent)?;
            if let Some(listener) = &metrics {
                lends.add(METRICS_LISTEN, listen_on.addr, listener).map_err(short)?;
            }
        }
        let mut control_socket = None;
        if let Some(path) = config.control_socket.as_deref() {
            let bound = match lent.take(CONTROL_SOCKET, path.display()) {
                Some(descriptor) => Bound::inherit(path, descriptor)?,
                None => Bound::listen(path)?,
            };
            lends.add(CONTROL_SOCKET, path.display(), &bound).map_err(short)?;
            control_socket = Some(bound);
        }
        let challenges = match manager {
            Some(manager) => manager.listen(&mut lent, &mut lends)?,
            None => None,
        };
        Ok(Self { metrics, control_socket, challenges, lends })
    }
}
