//! Who may connect, and how often (PROTOCOL.md, chapter 6): upgrade requests and live connections
//! of each address, and live connections of the process.
//!
//! All workers share one [`Admission`]. It is asked when a connection is accepted, asks for an
//! upgrade or ends, and never for a frame. Each connection carries a [`Pass`], which counts for it
//! and stops to count when it is dropped, whichever way the connection ends.

mod address;
mod arrivals;
mod blocks;
mod carry;
mod rates;

use crate::clock::Millis;
use crate::config::{AllowedIds, Config, IpNet, RateLimit};
use crate::protocol::forwarded;
use crate::protocol::ids::ServerId;
use crate::telemetry::Remote;
pub use address::Address;
use ahash::RandomState;
use arc_swap::ArcSwapOption;
use arrivals::Arrivals;
use blocks::Blocks;
pub use blocks::{BlockError, Blocked, MAX_BLOCKS};
use rates::{NoToken, Rates};
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// When to try again where all places are taken, in seconds: nobody knows when one is free, and
/// with this an address that tries in vain stays within the default rate.
const RETRY_WHEN_FULL_S: u64 = 10;
/// When to try again while everybody is sent away, in seconds: by then a balancer leads elsewhere.
const RETRY_WHEN_DRAINING_S: u64 = 5;
/// Sockets that an address may always hold before they are upgraded, however few connections it
/// may have after that: those that are turned away need one to learn it.
const MIN_VISITORS: usize = 16;

/// Sockets that are not upgraded which the process may always hold, however many others there are.
const MIN_ROOM: usize = 64;

/// What may change while the relay runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Upgrade requests of one address.
    pub rate: Option<RateLimit>,
    /// TLS handshakes of one address.
    pub handshake_rate: Option<RateLimit>,
    /// Upgrades of everybody together.
    pub new_connections_rate: Option<RateLimit>,
    /// Connections of the process that are upgraded, or about to be.
    pub max_connections: usize,
    /// The same, of one address; also the sockets that it may hold before they are upgraded, if
    /// that is more than a few.
    pub max_per_address: Option<usize>,
    /// Sockets of the process that are not upgraded.
    pub max_visitors: usize,
    /// Sockets of the process, upgraded or not: where these are many, those that are not upgraded
    /// must be fewer than they may be otherwise.
    pub max_sockets: usize,
}

impl AdmissionLimits {
    /// Everybody may, always.
    pub const NONE: Self = Self {
        rate: None,
        handshake_rate: None,
        new_connections_rate: None,
        max_connections: usize::MAX,
        max_per_address: None,
        max_visitors: usize::MAX,
        max_sockets: usize::MAX,
    };
}

impl From<&Config> for AdmissionLimits {
    fn from(config: &Config) -> Self {
        Self {
            rate: config.rate_limit,
            handshake_rate: config.handshake_rate,
            new_connections_rate: config.new_connections_rate,
            max_connections: config.max_connections,
            max_per_address: config.max_connections_per_address,
            max_visitors: config.capacity.visitors,
            max_sockets: config.capacity.sockets,
        }
    }
}

/// Who speaks for others.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    /// Their X-Forwarded-For is believed.
    pub forwarded_for: Arc<[IpNet]>,
    /// Their connections begin with a PROXY header.
    pub proxy_protocol: Arc<[IpNet]>,
}

impl Proxies {
    /// The address that a peer's X-Forwarded-For names, if the peer may say so and it names one.
    #[must_use]
    pub fn caller<'a>(
        &self,
        peer: Remote,
        lines: impl DoubleEndedIterator<Item = &'a [u8]>,
    ) -> Option<Remote> {
        let is_trusted = |address: IpAddr| contains(&self.forwarded_for, address);
        if !is_trusted(peer.0.ip()) {
            return None;
        }
        forwarded::caller(lines, is_trusted).map(Remote)
    }
}

impl From<&Config> for Proxies {
    fn from(config: &Config) -> Self {
        let everybody = || {
            let v4 = IpNet::new_assert(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
            let v6 = IpNet::new_assert(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
            Arc::from([v4, v6])
        };
        let https = config.https.as_ref().is_some_and(|https| https.proxy_protocol);
        Self {
            forwarded_for: config.trust_x_forwarded_for.clone(),
            proxy_protocol: if https { everybody() } else { config.proxy_protocol_from.clone() },
        }
    }
}

fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// Why somebody is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Its address has asked too often.
    Rate,
    /// The process has all the connections that it may have.
    Connections,
    /// Its address has all the connections that it may have.
    ConnectionsOfAddress,
    /// Its address has too many sockets that are not upgraded.
    VisitorsOfAddress,
    /// The process has too many sockets that are not upgraded.
    Visitors,
    /// The operator sends everybody away.
    Draining,
    /// The operator keeps its network out.
    Blocked,
    /// More come at once, from wherever, than may.
    Arrivals,
}

/// Somebody is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub cause: Cause,
    /// When to try again, in seconds, at least 1.
    pub retry_after_s: u64,
}

impl Refusal {
    fn for_want_of_a_token(no_token: NoToken) -> Self {
        let retry_after_s = no_token.wait_ms.div_ceil(1000);
        Self { cause: Cause::Rate, retry_after_s }
    }

    const fn full(cause: Cause) -> Self {
        Self { cause, retry_after_s: RETRY_WHEN_FULL_S }
    }

    /// One that is not upgraded goes, because there are too many.
    pub const VISITORS: Self = Self::full(Cause::Visitors);
}

/// Counts callers for all workers.
pub struct Admission {
    proxies: Proxies,
    /// Server-ids that are served, if not all are.
    allowed: ArcSwapOption<AllowedIds>,
    tables: Mutex<Tables>,
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").finish_non_exhaustive()
    }
}

impl Admission {
    /// No counts yet. `seeds` must be random: addresses are chosen by peers.
    #[must_use]
    pub fn new(limits: AdmissionLimits, proxies: Proxies, seeds: [u64; 4]) -> Arc<Self> {
        let [a, b, c, d] = seeds;
        let hasher = RandomState::with_seeds(a, b, c, d);
        let tables = Tables {
            limits,
            rates: Rates::new(limits.rate, hasher.clone()),
            handshakes: Rates::new(limits.handshake_rate, hasher.clone()),
            holdings: HashMap::with_hasher(hasher),
            live: 0,
            draining: false,
            arrivals: Arrivals::new(limits.new_connections_rate),
            blocks: Blocks::default(),
            latest_ms: 0,
        };
        Arc::new(Self { proxies, allowed: ArcSwapOption::empty(), tables: Mutex::new(tables) })
    }

    /// Applies other limits from now on. Connections that are there stay.
    pub fn set(&self, limits: AdmissionLimits) {
        let mut tables = self.tables();
        tables.limits = limits;
        tables.rates.set(limits.rate);
        tables.handshakes.set(limits.handshake_rate);
        tables.arrivals.set(limits.new_connections_rate);
    }

    /// Whether every claim of a server-id is turned away from now on.
    pub fn set_draining(&self, draining: bool) {
        self.tables().draining = draining;
    }

    /// Whether every claim of a server-id is turned away.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.tables().draining
    }

    /// Serves these server-ids only from now on, or all. Connections that are there stay.
    pub fn allow(&self, allowed: Option<Arc<AllowedIds>>) {
        self.allowed.store(allowed);
    }

    /// Whether this server-id is served.
    #[must_use]
    pub fn allows(&self, id: &ServerId) -> bool {
        self.allowed.load().as_ref().is_none_or(|allowed| allowed.allows(id.as_str()))
    }

    /// How many server-ids are served, if not all are.
    #[must_use]
    pub fn allowed(&self) -> Option<usize> {
        self.allowed.load().as_ref().map(|allowed| allowed.count())
    }

    /// Keeps these networks out, in place of those that the configuration named before.
    pub fn configure_blocks(&self, networks: &[IpNet]) {
        self.tables().blocks.configure(networks);
    }

    /// Keeps a network out until then, if need be for good ([`NEVER`](super::timers::NEVER)).
    ///
    /// # Errors
    ///
    /// [`BlockError::Full`].
    pub fn block(&self, now: Millis, network: IpNet, until: Millis) -> Result<(), BlockError> {
        self.tables().blocks.block(now, network, until)
    }

    /// Lets a network in again that [`Admission::block`] keeps out.
    ///
    /// # Errors
    ///
    /// It is not blocked, or by the configuration.
    pub fn unblock(&self, now: Millis, network: IpNet) -> Result<(), BlockError> {
        self.tables().blocks.unblock(now, network)
    }

    /// The networks that are kept out, in order.
    #[must_use]
    pub fn blocked(&self, now: Millis) -> Vec<Blocked> {
        self.tables().blocks.list(now)
    }

    /// The limits that apply.
    #[must_use]
    pub fn limits(&self) -> AdmissionLimits {
        self.tables().limits
    }

    /// Who speaks for others.
    #[must_use]
    pub fn proxies(&self) -> &Proxies {
        &self.proxies
    }

    /// Connections that are upgraded, or about to be, and not released yet.
    #[must_use]
    pub fn live(&self) -> usize {
        self.tables().live
    }

    /// Addresses that have connections of whatever kind.
    #[must_use]
    pub fn addresses(&self) -> usize {
        self.tables().holdings.len()
    }

    /// Addresses that have asked for upgrades of late and are remembered for it.
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.tables().rates.len()
    }

    /// A connection was accepted from this address. One of a proxy counts for nobody until its
    /// caller is known.
    ///
    /// # Errors
    ///
    /// Its network is kept out, or too many connections of this address are not upgraded yet.
    pub fn enter(self: &Arc<Self>, now: Millis, peer: IpAddr) -> Result<Pass, Refusal> {
        let is_unknown = contains(&self.proxies.forwarded_for, peer)
            || contains(&self.proxies.proxy_protocol, peer);
        let mut tables = self.tables();
        tables.latest_ms = now;
        let standing = tables.come(peer, is_unknown)?;
        drop(tables);
        Ok(Pass { admission: self.clone(), standing })
    }

    /// A connection has come from another process, where it counted as this: so it does here, whatever
    /// the limits are.
    #[must_use]
    pub fn readmit(self: &Arc<Self>, standing: Standing) -> Pass {
        self.tables().count(standing);
        Pass { admission: self.clone(), standing }
    }

    /// Sockets that are not upgraded which each of so many workers may hold, at least 1: its share
    /// of what the process may, and of what the connections that are live leave of all sockets.
    #[must_use]
    pub fn visitors_of_each(&self, workers: usize) -> usize {
        let tables = self.tables();
        let limits = &tables.limits;
        let left = limits.max_sockets.saturating_sub(tables.live);
        let room = left.min(limits.max_visitors).max(limits.max_visitors.min(MIN_ROOM));
        (room / workers.max(1)).max(1)
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Each call leaves the counts whole, so a panic elsewhere is no reason to stop counting.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a connection counts as, from its accept to its release, and as long as this exists.
#[derive(Debug)]
pub struct Pass {
    admission: Arc<Admission>,
    standing: Standing,
}

/// What a connection counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A proxy's, and for whom is not known yet.
    Unknown,
    /// Not upgraded.
    Visitor(Address),
    /// Upgraded, or about to be.
    Live(Address),
}

impl Pass {
    /// What the connection counts as.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// The PROXY header has named the caller.
    ///
    /// # Errors
    ///
    /// As [`Admission::enter`].
    pub fn name(&mut self, caller: IpAddr) -> Result<(), Refusal> {
        let is_unknown = contains(&self.admission.proxies.forwarded_for, caller);
        let mut tables = self.admission.tables();
        tables.leave(self.standing);
        self.standing = Standing::Unknown;
        self.standing = tables.come(caller, is_unknown)?;
        Ok(())
    }

    /// A TLS handshake is to begin on the connection: takes one token. One of a proxy that speaks
    /// for many takes none.
    ///
    /// # Errors
    ///
    /// There is no token.
    pub fn admit_handshake(&mut self, now: Millis) -> Result<(), Refusal> {
        let Standing::Visitor(address) = self.standing else { return Ok(()) };
        let taken = self.admission.tables().handshakes.take(now, address);
        taken.map_err(Refusal::for_want_of_a_token)
    }

    /// The connection asks for an upgrade, on behalf of `caller`: takes one token, then one place
    /// among the live connections. While the relay is drained, a binary (`claims`) is turned away;
    /// phones are not: the server-id that they ask for may still be here.
    ///
    /// # Errors
    ///
    /// There is no token, no place, or no claim is let in. What it counted as before it still does.
    pub fn admit(&mut self, now: Millis, caller: IpAddr, claims: bool) -> Result<(), Refusal> {
        let address = Address::from(caller);
        let mut tables = self.admission.tables();
        tables.keep_out(now, caller)?;
        if claims && tables.draining {
            return Err(Refusal { cause: Cause::Draining, retry_after_s: RETRY_WHEN_DRAINING_S });
        }
        tables.take_token(now, address)?;
        tables.take_arrival(now)?;
        tables.take_place(address)?;
        tables.leave(self.standing);
        self.standing = Standing::Live(address);
        Ok(())
    }

    /// It was not upgraded after all: its place is free.
    pub fn step_back(&mut self) {
        if let Standing::Live(address) = self.standing {
            let mut tables = self.admission.tables();
            tables.holding(address).visitors += 1;
            tables.leave(self.standing);
            self.standing = Standing::Visitor(address);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.standing != Standing::Unknown {
            self.admission.tables().leave(self.standing);
        }
    }
}

struct Tables {
    limits: AdmissionLimits,
    rates: Rates,
    handshakes: Rates,
    /// Has an address for as long as it has connections, so descriptors bound it.
    holdings: HashMap<Address, Holding, RandomState>,
    live: usize,
    /// No binary is upgraded any more.
    draining: bool,
    /// Upgrades of everybody together.
    arrivals: Arrivals,
    /// Who is kept out.
    blocks: Blocks,
    /// The time of the last accept.
    latest_ms: Millis,
}

/// What an address has.
#[derive(Default)]
struct Holding {
    live: u32,
    visitors: u32,
}

impl Tables {
    fn keep_out(&self, now: Millis, address: IpAddr) -> Result<(), Refusal> {
        if self.blocks.holds(now, address) {
            return Err(Refusal::full(Cause::Blocked));
        }
        Ok(())
    }

    fn holding(&mut self, address: Address) -> &mut Holding {
        self.holdings.entry(address).or_default()
    }

    /// Somebody is here, who is not upgraded. One whose caller `is_unknown` counts for nobody yet.
    fn come(&mut self, address: IpAddr, is_unknown: bool) -> Result<Standing, Refusal> {
        self.keep_out(self.latest_ms, address)?;
        if is_unknown { Ok(Standing::Unknown) } else { self.visit(address.into()) }
    }

    fn visit(&mut self, address: Address) -> Result<Standing, Refusal> {
        let max = self.limits.max_per_address.unwrap_or(usize::MAX).max(MIN_VISITORS);
        let holding = self.holding(address);
        if holding.visitors as usize >= max {
            return Err(Refusal::full(Cause::VisitorsOfAddress));
        }
        holding.visitors += 1;
        Ok(Standing::Visitor(address))
    }

    fn take_token(&mut self, now: Millis, address: Address) -> Result<(), Refusal> {
        self.rates.take(now, address).map_err(Refusal::for_want_of_a_token)
    }

    fn take_arrival(&mut self, now: Millis) -> Result<(), Refusal> {
        self.arrivals.take(now).map_err(|wait_ms| Refusal {
            cause: Cause::Arrivals,
            retry_after_s: wait_ms.div_ceil(1000),
        })
    }

    fn take_place(&mut self, address: Address) -> Result<(), Refusal> {
        if self.live >= self.limits.max_connections {
            return Err(Refusal::full(Cause::Connections));
        }
        let max = self.limits.max_per_address.unwrap_or(usize::MAX);
        let of_address = self.holdings.get(&address).map_or(0, |holding| holding.live);
        if of_address as usize >= max {
            return Err(Refusal::full(Cause::ConnectionsOfAddress));
        }
        self.holding(address).live += 1;
        self.live += 1;
        Ok(())
    }

    fn count(&mut self, standing: Standing) {
        match standing {
            Standing::Unknown => {}
            Standing::Visitor(address) => self.holding(address).visitors += 1,
            Standing::Live(address) => {
                self.holding(address).live += 1;
                self.live += 1;
            }
        }
    }

    fn leave(&mut self, standing: Standing) {
        let (address, live, visitors) = match standing {
            Standing::Unknown => return,
            Standing::Visitor(address) => (address, 0, 1),
            Standing::Live(address) => (address, 1, 0),
        };
        let holding = self.holding(address);
        debug_assert!(holding.live >= live && holding.visitors >= visitors, "left twice");
        holding.live = holding.live.saturating_sub(live);
        holding.visitors = holding.visitors.saturating_sub(visitors);
        if holding.live == 0 && holding.visitors == 0 {
            self.holdings.remove(&address);
        }
        self.live = self.live.saturating_sub(live as usize);
    }
}

#[cfg(test)]
mod tests;
