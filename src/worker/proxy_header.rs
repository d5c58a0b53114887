//! What a connection begins with: the PROXY header that may come before everything else
//! (PROTOCOL.md, chapter 6), and TLS, or HTTP in the clear in its place.

use super::Worker;
use super::core::Core;
use super::tls_link::decrypt;
use crate::metrics::Series;
use crate::protocol::opening::Begins;
use crate::protocol::proxy::Proxy;
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
        messages: &mut u32,
    ) {
        let group = if large { &mut self.large } else { &mut self.small };
        let input = group.received(at.0, at.1);
        let Some(Some(link)) = self.links.get_mut(key.0 as usize) else { return };
        let rest = match link.proxy_header.as_mut().map(|header| header.read(input)) {
            None => input,
            Some(Proxy::NeedMore) => return,
            Some(Proxy::Bad) => {
                let remote = link.socket.peer_addr().ok().and_then(|address| address.as_socket());
                info!(
                    remote = remote.map(|remote| display(Remote(remote))),
                    err = "the connection must begin with a PROXY protocol v2 header, and began with something else",
                    "proxy_header_refused"
                );
                self.counters.count(Series::HandshakeProxyHeader);
                return self.core.on_end(now, key, false);
            }
            Some(Proxy::Header { source, consumed }) => {
                link.proxy_header = None;
                if let Some(source) = source {
                    self.core.set_remote(key, Remote(source));
                }
                input.get_mut(consumed..).unwrap_or_default()
            }
        };
        if rest.is_empty() {
            return;
        }
        if link.tls.is_none() {
            // No frames yet: they come behind a request.
            self.core.on_bytes(now, key, rest, &mut { u32::MAX });
            return;
        }
        let mut first = Vec::new();
        match link.opening.as_mut().map(|opening| opening.read(rest)) {
            None => {}
            Some(Begins::NeedMore) => return,
            Some(Begins::WithHttp) => {
                link.opening = None;
                link.tls = None;
                return self.core.on_plain_http(now, key);
            }
            Some(Begins::Otherwise) => {
                let held = link.opening.take().unwrap_or_default();
                if !held.held().is_empty() {
                    first = [held.held(), rest].concat();
                }
            }
        }
        let records = if first.is_empty() { rest } else { first.as_mut_slice() };
        let mut plain = decrypt(link, records);
        let mut data = records.get_mut(plain.data.clone()).unwrap_or_default();
        if !self.core.is_open(key) {
            // The core wants all at once: what is behind its request may be for another worker.
            data = plain.append(data);
        }
        // All of it: a share ends between receives. What that exceeds it by is spent.
        let mut all = u32::MAX;
        for data in [plain.kept(), data] {
            if !data.is_empty() {
                self.core.on_bytes(now, key, data, &mut all);
            }
        }
        *messages = messages.saturating_sub(u32::MAX - all);
        self.on_decrypted(now, key, &plain.received);
    }
}
