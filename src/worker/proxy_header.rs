//! What a connection begins with: the PROXY header that may come before everything else
//! (PROTOCOL.md, chapter 6), and TLS, or HTTP in the clear in its place.

use super::Worker;
use super::core::Core;
use super::share::{Place, Received};
use super::tls;
use super::tls_link::decrypt;
use crate::metrics::Series;
use crate::protocol::opening::Begins;
use crate::protocol::proxy::Proxy;
use crate::relay::Key;
use crate::relay::timers::Millis;
use crate::telemetry::Remote;
use tracing::info;

impl<C: Core> Worker<C> {
    /// Bytes arrived that are not for the core as they are. What is left of them, because there are
    /// no more `messages` to spend on it.
    pub(super) fn on_layered_bytes(
        &mut self,
        now: Millis,
        key: Key,
        received: Received,
        held: &mut [u8],
        messages: &mut u32,
    ) -> Received {
        let nothing = received.read();
        let Received { place, from, to, .. } = received;
        let bytes = match place {
            Place::Small(buffer) => self.small.received(buffer, to),
            Place::Large(buffer) => self.large.received(buffer, to),
            Place::Held => held,
        };
        let input = bytes.get_mut(from..).unwrap_or_default();
        let Some(Some(link)) = self.links.get_mut(key.0 as usize) else { return nothing };
        let rest = match link.proxy_header.as_mut().map(|header| header.read(input)) {
            None => input,
            Some(Proxy::NeedMore) => return nothing,
            Some(Proxy::Bad) => {
                let remote = link.socket.peer_addr().ok().and_then(|address| address.as_socket());
                info!(
                    remote = remote.map(|remote| display(Remote(remote))),
                    err = "the connection must begin with a PROXY protocol v2 header, and began with something else",
                    "proxy_header_refused"
                );
                self.counters.count(Series::HandshakeProxyHeader);
                self.core.on_end(now, key, false);
                return nothing;
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
            return nothing;
        }
        if link.tls.is_none() {
            // No frames yet: they come behind a request.
            self.core.on_bytes(now, key, rest, &mut { u32::MAX });
            return nothing;
        }
        let mut first = Vec::new();
        match link.opening.as_mut().map(|opening| opening.read(rest)) {
            None => {}
            Some(Begins::NeedMore) => return nothing,
            Some(Begins::WithHttp) => {
                link.opening = None;
                link.tls = None;
                self.core.on_plain_http(now, key);
                return nothing;
            }
            Some(Begins::Otherwise) => {
                let held = link.opening.take().unwrap_or_default();
                if !held.held().is_empty() {
                    first = [held.held(), rest].concat();
                }
            }
        }
        let begin = to - rest.len();
        let records = if first.is_empty() { rest } else { first.as_mut_slice() };
        if let Some(tls) = link.tls.as_deref_mut()
            && tls.is_new()
            && !self.core.admit_handshake(now, key)
        {
            tls.refuse();
            return nothing;
        }
        // Before that the core wants all at once: what is behind its request may be for another worker.
        let is_open = self.core.is_open(key);
        let most_work = if is_open { *messages } else { u32::MAX };
        let mut plain = decrypt(link, records, most_work);
        let mut data = records.get_mut(plain.data.clone()).unwrap_or_default();
        if !is_open {
            data = plain.append(data);
        }
        // A record takes as much as a message does, whatever is in it.
        let left_by_records = messages.saturating_sub(plain.work);
        let mut all = u32::MAX;
        if !plain.kept().is_empty() {
            self.core.on_bytes(now, key, plain.kept(), &mut all);
        }
        *messages = messages.saturating_sub(u32::MAX - all);
        let mut left = nothing;
        if is_open && plain.received == tls::Received::Open {
            let end = begin + plain.data.end;
            let mut opened = (end - data.len(), end);
            if !data.is_empty() && *messages > 0 {
                opened.0 += self.core.on_bytes(now, key, data, messages);
            }
            let from = plain.left.map_or(to, |left| begin + left);
            left = Received { opened, from, ..received };
        } else if !data.is_empty() {
            // It is the last that is heard before the end, or the first.
            self.core.on_bytes(now, key, data, &mut all);
        }
        *messages = left_by_records.min(*messages);
        self.on_decrypted(now, key, &plain.received);
        left
    }
}
