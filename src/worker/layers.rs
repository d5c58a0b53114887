//! What lies between a socket and the core: the preamble of a connection (a PROXY header, or HTTP in
//! the clear where TLS should be) and TLS. What bytes mean there is worked out by plain types; here
//! the core is told.

use super::Worker;
use super::core::Core;
use super::share::{Place, Received};
use super::tls::{self, Plain};
use super::tls_link::TlsLink;
use crate::metrics::Series;
use crate::protocol::preamble::{Next, Preface};
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
        let Preface { named, next } = link.preamble.read(input);
        if let Some(source) = named {
            self.core.set_remote(key, Remote(source));
        }
        let (mut first, behind) = match next {
            Next::NeedMore => return nothing,
            Next::NoHeader => {
                self.refuse_without_header(now, key);
                return nothing;
            }
            Next::PlainHttp => {
                link.tls = None;
                self.core.on_plain_http(now, key);
                return nothing;
            }
            Next::Data { held, from } => (held, from),
        };
        let rest = input.get_mut(behind..).unwrap_or_default();
        let Some(tls) = link.tls.as_deref_mut() else {
            // No frames yet: they come behind a request.
            self.core.on_bytes(now, key, rest, &mut { u32::MAX });
            return nothing;
        };
        if tls.is_new() && !self.core.admit_handshake(now, key) {
            tls.refuse();
            return nothing;
        }
        let records = if first.is_empty() {
            rest
        } else {
            first.extend_from_slice(rest);
            first.as_mut_slice()
        };
        let begin = from + behind;
        let (outcome, left) = read_records(&mut self.core, tls, (now, key), records, messages);
        self.on_decrypted(now, key, &outcome);
        left.map_or(nothing, |Left { opened, from }| Received {
            opened: (begin + opened.0, begin + opened.1),
            from: from.map_or(to, |from| begin + from),
            ..received
        })
    }

    fn refuse_without_header(&mut self, now: Millis, key: Key) {
        let socket = self.link(key).map(|link| link.socket.peer_addr());
        let remote = socket.and_then(Result::ok).and_then(|address| address.as_socket());
        info!(
            remote = remote.map(|remote| display(Remote(remote))),
            err = "the connection must begin with a PROXY protocol v2 header, and began with something else",
            "proxy_header_refused"
        );
        self.counters.count(Series::HandshakeProxyHeader);
        self.core.on_end(now, key, false);
    }
}

/// What is left to be read of records: data that is opened, and where those begin that are not, if
/// there are any.
struct Left {
    opened: (usize, usize),
    from: Option<usize>,
}

/// Opens records, and has the core read their data, as far as that takes no more than so many
/// messages do. What they have come to, and what is left of a session that goes on.
fn read_records<C: Core>(
    core: &mut C,
    tls: &mut TlsLink,
    (now, key): (Millis, Key),
    records: &mut [u8],
    messages: &mut u32,
) -> (tls::Received, Option<Left>) {
    // Before that the core wants all at once: what is behind its request may be for another worker.
    let is_open = core.is_open(key);
    let mut plain = tls.decrypt(records, if is_open { *messages } else { u32::MAX });
    let mut data = records.get_mut(plain.data.clone()).unwrap_or_default();
    if !is_open {
        data = plain.append(data);
    }
    // A record takes as much as a message does, whatever is in it.
    let left_by_records = messages.saturating_sub(plain.work);
    let mut all = u32::MAX;
    if !plain.kept().is_empty() {
        core.on_bytes(now, key, plain.kept(), &mut all);
    }
    *messages = messages.saturating_sub(u32::MAX - all);
    let mut left = None;
    if is_open && plain.received == tls::Received::Open {
        let end = plain.data.end;
        let mut opened = (end - data.len(), end);
        if !data.is_empty() && *messages > 0 {
            opened.0 += core.on_bytes(now, key, data, messages);
        }
        left = Some(Left { opened, from: plain.left });
    } else if !data.is_empty() {
        // It is the last that is heard before the end, or the first.
        core.on_bytes(now, key, data, &mut all);
    }
    *messages = left_by_records.min(*messages);
    let Plain { received, .. } = plain;
    (received, left)
}
