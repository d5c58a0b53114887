//! What one hostile peer can do to the worker that serves it.

use crate::Outcome;
use crate::codec::{self, Envelope};
use crate::hostile::pump::{Flood, pump};
use crate::peer::{Dial, Peer, masked};
use crate::wire::Target;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// All attacks come from here.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 9, 9));
/// Before an attack that was ended begins again.
const REST: Duration = Duration::from_millis(5);
/// About so many bytes are sent at a time.
const BLOCK_BYTES: usize = 64 * 1024;

/// Where an attack takes place.
pub(super) struct Ground<'a> {
    dial: Dial,
    /// A server-id that nobody else uses.
    id: String,
    stop: &'a AtomicBool,
    /// Bytes that the relay took, or connections where there are none.
    taken: &'a AtomicU64,
}

/// One kind of hostile peer.
pub(super) struct Attack {
    pub(super) name: &'static str,
    pub(super) needs_tls: bool,
    /// Goes on until it is stopped or the relay has ended it.
    go: fn(&mut Ground<'_>) -> Outcome<()>,
    /// On so many threads.
    threads: usize,
}

const fn attack(name: &'static str, go: fn(&mut Ground<'_>) -> Outcome<()>) -> Attack {
    Attack { name, needs_tls: false, go, threads: 1 }
}

/// All of them.
pub(super) const ATTACKS: [Attack; 14] = [
    attack("none", nothing),
    attack("tiny envelopes", tiny_envelopes),
    attack("unknown conn_ids", unknown_conn_ids),
    attack("nonsense of a binary", nonsense),
    attack("tiny messages", tiny_messages),
    attack("pings", pings),
    attack("empty fragments", empty_fragments),
    attack("pipelined /healthz", pipelined_requests),
    attack("newcomer sends ahead", newcomer),
    attack("claims of a deaf holder", claims),
    Attack { threads: 2, ..attack("connections", connections) },
    Attack { needs_tls: true, ..attack("none, over TLS", nothing) },
    Attack { needs_tls: true, ..attack("TLS records of 1 byte", tiny_records) },
    Attack { needs_tls: true, threads: 4, ..attack("TLS handshakes", connections) },
];

impl Attack {
    /// Attacks until it is stopped; what it counts is added to `taken`.
    pub(super) fn run(&self, target: &Target, stop: &AtomicBool, taken: &AtomicU64) {
        std::thread::scope(|scope| {
            for thread in 0..self.threads {
                scope.spawn(move || {
                    for number in 0.. {
                        let id = format!("attack-{thread}-{number}");
                        // That the relay ends it is no failure of either.
                        let _ = Dial::new(target, vec![ADDRESS])
                            .and_then(|dial| (self.go)(&mut Ground { dial, id, stop, taken }));
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        std::thread::sleep(REST);
                    }
                });
            }
        });
    }
}

impl Ground<'_> {
    fn binary(&mut self) -> Outcome<Peer> {
        self.dial.binary(&self.id)
    }

    fn phone(&mut self) -> Outcome<Peer> {
        self.dial.phone(&self.id)
    }

    /// Has these connections flood until it is over.
    fn pump<const N: usize>(&self, floods: [Outcome<Flood>; N]) -> Outcome<()> {
        let mut floods = floods.into_iter().collect::<Outcome<Vec<_>>>()?;
        pump(&mut floods, self.stop, self.taken)
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// As many of these bytes as go in a block.
fn block(bytes: &[u8]) -> Vec<u8> {
    bytes.repeat((BLOCK_BYTES / bytes.len()).max(1))
}

fn texts(payload: &[u8]) -> Vec<u8> {
    block(&masked(codec::TEXT, payload))
}

/// A frame that is not the last of its message.
fn fragment(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = masked(opcode, payload);
    if let Some(first) = frame.first_mut() {
        *first &= 0x7f;
    }
    frame
}

fn nothing(ground: &mut Ground<'_>) -> Outcome<()> {
    while !ground.is_over() {
        std::thread::sleep(REST);
    }
    Ok(())
}

fn tiny_envelopes(ground: &mut Ground<'_>) -> Outcome<()> {
    let (mut binary, mut phone) = (ground.binary()?, ground.phone()?);
    phone.send_frame(codec::TEXT, b"1")?;
    let mut envelope = Vec::new();
    match codec::read_envelope(&binary.text()?) {
        Some(Envelope::Frame { conn_id, .. }) => {
            codec::write_envelope(&mut envelope, &conn_id, |out| out.push(b'1'));
        }
        other => return Err(format!("the binary is brought {other:?}").into()),
    }
    ground.pump([Flood::new(binary, texts(&envelope)), Flood::drain(phone)])
}

fn unknown_conn_ids(ground: &mut Ground<'_>) -> Outcome<()> {
    let binary = ground.binary()?;
    ground.pump([Flood::new(binary, texts(br#"{"conn_id":"nobody","frame":1}"#))])
}

fn nonsense(ground: &mut Ground<'_>) -> Outcome<()> {
    let binary = ground.binary()?;
    ground.pump([Flood::new(binary, texts(b"1"))])
}

fn tiny_messages(ground: &mut Ground<'_>) -> Outcome<()> {
    let (binary, phone) = (ground.binary()?, ground.phone()?);
    ground.pump([Flood::new(phone, texts(b"1")), Flood::drain(binary)])
}

fn pings(ground: &mut Ground<'_>) -> Outcome<()> {
    let binary = ground.binary()?;
    ground.pump([Flood::new(binary, block(&masked(codec::PING, b"")))])
}

fn empty_fragments(ground: &mut Ground<'_>) -> Outcome<()> {
    let (binary, mut phone) = (ground.binary()?, ground.phone()?);
    phone.send(&fragment(codec::TEXT, b"\""))?;
    ground.pump([Flood::new(phone, block(&fragment(0, b""))), Flood::drain(binary)])
}

fn pipelined_requests(ground: &mut Ground<'_>) -> Outcome<()> {
    let visitor = ground.dial.connect(None)?;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n", ground.dial.target().host);
    ground.pump([Flood::new(visitor, block(request.as_bytes()))])
}

fn newcomer(ground: &mut Ground<'_>) -> Outcome<()> {
    let (holder, newcomer) = (ground.binary()?, ground.binary()?);
    ground.pump([Flood::drain(holder), Flood::new(newcomer, texts(b""))])
}

/// Each claim asks the holder whether it is there, which does not listen.
fn claims(ground: &mut Ground<'_>) -> Outcome<()> {
    let holder = Flood::new(ground.binary()?, block(&masked(codec::PING, &[7; 125])))?.deaf();
    let (target, id, stop) = (ground.dial.target().clone(), ground.id.clone(), ground.stop);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let Ok(mut dial) = Dial::new(&target, vec![ADDRESS]) else { return };
            while !stop.load(Ordering::Relaxed)
                && let Ok(claimer) = dial.binary(&id)
            {
                claimer.reset();
            }
        });
        ground.pump([Ok(holder)])
    })
}

/// With the handshake of TLS, if the target speaks it.
fn connections(ground: &mut Ground<'_>) -> Outcome<()> {
    while !ground.is_over() {
        ground.dial.connect(None)?.reset();
        ground.taken.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn tiny_records(ground: &mut Ground<'_>) -> Outcome<()> {
    let binary = ground.binary()?;
    let pings = masked(codec::PING, b"").repeat(500);
    ground.pump([Flood::new(binary, pings).map(|flood| flood.in_records(1))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_whole_frames_and_names_are_unique() {
        assert_eq!(texts(b"1").len() % masked(codec::TEXT, b"1").len(), 0);
        assert_eq!(fragment(0, b"").first(), Some(&0));
        let names: std::collections::BTreeSet<_> = ATTACKS.iter().map(|one| one.name).collect();
        assert_eq!(names.len(), ATTACKS.len());
    }
}
