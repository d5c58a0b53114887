//! Honest peers beside an attack: pairs that are connected and talk, and phones that come, say
//! something and go. There are several of each, on server-ids of their own: whichever worker is
//! attacked has some of them.

use crate::Outcome;
use crate::codec::{self, Envelope};
use crate::peer::{Dial, PATIENCE};
use crate::round_trips::RoundTrips;
use crate::wire::Target;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Pairs that are connected.
const PAIRS: u8 = 6;
/// Server-ids to which phones come.
const DOORS: u8 = 4;
/// Between two round trips of a pair, and between two phones of a door.
const PAUSE: Duration = Duration::from_millis(10);
/// From how many addresses the phones of a door come, so that no limit by address is met.
const ADDRESSES: u8 = 200;

/// What bystanders felt.
#[derive(Default)]
pub(super) struct Felt {
    /// From a phone to its binary and back.
    pub(super) established: RoundTrips,
    /// From before the connection until its first frame is at the binary: TCP, TLS, upgrade, frame.
    pub(super) newcomers: RoundTrips,
    /// How often someone was not served at all, and why the first was not.
    pub(super) failed: u64,
    pub(super) why: Option<String>,
}

/// Lets bystanders do what they do until it is time to stop. `ready` is called when they are
/// connected; times count from there.
pub(super) fn run(target: &Target, stop: &AtomicBool, ready: impl FnOnce()) -> Outcome<Felt> {
    let felt = Mutex::new(Felt::default());
    let pairs = (0..PAIRS).map(|number| Pair::new(target, number)).collect::<Outcome<Vec<_>>>()?;
    let doors = (0..DOORS).map(|number| Door::new(target, number)).collect::<Outcome<Vec<_>>>()?;
    std::thread::scope(|scope| {
        let felt = &felt;
        for mut pair in pairs {
            let trip = move || pair.trip();
            scope.spawn(move || again_and_again(trip, stop, felt, |felt| &mut felt.established));
        }
        for mut door in doors {
            let visit = move || door.visit();
            scope.spawn(move || again_and_again(visit, stop, felt, |felt| &mut felt.newcomers));
        }
        ready();
    });
    Ok(felt.into_inner().unwrap_or_default())
}

/// Times it until it is time to stop; what is under way then is timed to its end.
fn again_and_again(
    mut what: impl FnMut() -> Outcome<()>,
    stop: &AtomicBool,
    felt: &Mutex<Felt>,
    times: fn(&mut Felt) -> &mut RoundTrips,
) {
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let done = what();
        let took = begun.elapsed();
        let Ok(mut felt) = felt.lock() else { return };
        let Err(error) = done else {
            times(&mut felt).record(took.as_nanos() as u64);
            drop(felt);
            std::thread::sleep(PAUSE);
            continue;
        };
        // It counts as if it had been waited for in vain.
        times(&mut felt).record(PATIENCE.as_nanos() as u64);
        felt.failed += 1;
        felt.why.get_or_insert(error.to_string());
        return;
    }
}

/// A binary and a phone that are connected.
struct Pair {
    binary: crate::peer::Peer,
    phone: crate::peer::Peer,
    trips: u64,
}

impl Pair {
    fn new(target: &Target, number: u8) -> Outcome<Self> {
        let mut dial = Dial::new(target, Vec::new())?;
        let id = format!("bystander-{number}");
        Ok(Self { binary: dial.binary(&id)?, phone: dial.phone(&id)?, trips: 0 })
    }

    fn trip(&mut self) -> Outcome<()> {
        self.trips += 1;
        let frame = self.trips.to_string();
        self.phone.send_frame(codec::TEXT, frame.as_bytes())?;
        let text = self.binary.text()?;
        let Some(Envelope::Frame { conn_id, frame: up }) = codec::read_envelope(&text) else {
            return Err("the binary is brought what is no frame".into());
        };
        let mut envelope = Vec::new();
        codec::write_envelope(&mut envelope, &conn_id, |out| out.extend_from_slice(up));
        self.binary.send_frame(codec::TEXT, &envelope)?;
        match self.phone.text()? == frame.as_bytes() {
            true => Ok(()),
            false => Err("the phone is brought another frame".into()),
        }
    }
}

/// A binary to which phones come.
struct Door {
    dial: Dial,
    id: String,
    binary: crate::peer::Peer,
}

impl Door {
    fn new(target: &Target, number: u8) -> Outcome<Self> {
        let address = |last| IpAddr::V4(Ipv4Addr::new(127, 0, 10 + number, last));
        let mut dial = Dial::new(target, (1..=ADDRESSES).map(address).collect())?;
        let id = format!("door-{number}");
        let binary = dial.binary(&id)?;
        Ok(Self { dial, id, binary })
    }

    fn visit(&mut self) -> Outcome<()> {
        let mut phone = self.dial.phone(&self.id)?;
        phone.send_frame(codec::TEXT, b"1")?;
        // Of those before it the binary is told that they have gone.
        while !matches!(codec::read_envelope(&self.binary.text()?), Some(Envelope::Frame { .. })) {}
        phone.reset();
        Ok(())
    }
}
