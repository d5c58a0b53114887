//! The control socket: how the relay's user and root operate a relay while it runs. The metrics
//! listener stays read-only; whatever changes something goes this way.
//!
//! It is a Unix stream socket, `control.sock` in the folder that systemd gives the service, or where
//! `--control-socket` says. Its file is only for its user, and whoever connects is known by the
//! credentials that the kernel vouches for (`SO_PEERCRED`): the user that the relay runs as, and
//! root. Anybody else gets one line that says so.
//!
//! # The protocol
//!
//! A connection serves one request. The peer sends one line of JSON, an object whose `command` names
//! one of [`Request`]; the relay answers with lines of JSON, each an object with one key:
//!
//! - `item`: one of several parts of the answer
//! - `done`: the last line; what came of it
//! - `error`: the last line, if nothing came of it: why, and what to do
//!
//! ```json
//! {"command":"drain","batch":50,"every_ms":500,"delay_ms":2000}
//! {"done":{"server_ids_left":120,"server_ids_sent_away":0}}
//! ```
//!
//! Requests, connections and the time of each are bounded ([`server`]), so whoever may connect can
//! keep nobody else from operating the relay for long.
//!
//! - [`protocol`]: requests and answers
//! - [`listener`]: binds the socket, in place of one that a dead process left behind
//! - [`server`]: the relay's side of connections
//! - [`client`]: the side of the commands

pub(super) mod client;
pub(super) mod listener;
pub(super) mod protocol;
pub(super) mod server;
