//! HTTP of the control plane: one client for whatever the relay asks others, one accept loop for
//! whatever it serves beside its peers. Both bound time and memory.
//!
//! - [`client`]: one call, to Google, to an ACME server, or to another relay's metrics
//! - [`server`]: the listeners of `--metrics-listen` and `--http-listen`

pub(super) mod client;
pub(super) mod server;
