//! The PROXY header that may come before everything else (PROTOCOL.md, chapter 6).

use super::Worker;
use super::core::Core;
use super::tls_link::decrypt;
use crate::metrics::Series;
use crate::protocol::proxy::{self, Proxy};
use crate::relay::Key;
use crate::relay::timers::Millis;
use crate::telemetry::Remote;
use tracing::info;

impl<C: Core> Worker<C> {
    /// Bytes arrived that are not for the core as they are.
    pub(super) fn on_layered_bytes(
        &mut self,
        now: Millis,
        key: Key,
        large: bool,
        at: (u16, usize),
    ) {
        let group = if large { &mut self.large } else { &mut self.small };
        let input = group.received(at.0, at.1);
        let Some(Some(link)) = self.links.get_mut(key.0 as usize) else { return };
        if let Some(mut header) = link.proxy_header.take() {
            header.extend_from_slice(input);
            return self.on_proxy_bytes(now, key, header);
        }
        let mut plain = std::mem::take(&mut self.plain);
        let received = decrypt(link, input, &mut plain);
        self.on_decrypted(now, key, plain, received);
    }

    /// All that has come of a connection that begins with a PROXY header (PROTOCOL.md, chapter 6).
    fn on_proxy_bytes(&mut self, now: Millis, key: Key, mut bytes: Vec<u8>) {
        let Some(Some(link)) = self.links.get_mut(key.0 as usize) else { return };
        let rest = match proxy::parse(&bytes) {
            Proxy::NeedMore => {
                link.proxy_header = Some(bytes);
                return;
            }
            Proxy::Bad => {
                let remote = link.socket.peer_addr().ok().and_then(|address| address.as_socket());
                info!(
                    remote = remote.map(|remote| display(Remote(remote))),
                    err = "the connection must begin with a PROXY protocol v2 header, and began with something else",
                    "proxy_header_refused"
                );
                self.counters.count(Series::HandshakeProxyHeader);
                return self.core.on_end(now, key, false);
            }
            Proxy::Header { source, consumed } => {
                self.core.set_remote(key, Remote(source));
                bytes.get_mut(consumed..).unwrap_or_default()
            }
        };
        if rest.is_empty() {
            return;
        }
        if link.tls.is_none() {
            return self.core.on_bytes(now, key, rest);
        }
        let mut plain = std::mem::take(&mut self.plain);
        let received = decrypt(link, rest, &mut plain);
        self.on_decrypted(now, key, plain, received);
    }
}
