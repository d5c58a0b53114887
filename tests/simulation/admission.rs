//! What PROTOCOL.md says of limits (chapter 6): tokens and places, counted the plain way.

use crate::model::Ms;
use pyrycode_relay::shared::admission::AdmissionLimits;

/// Sockets that an address may always have before they are upgraded.
const MIN_VISITORS: usize = 16;

/// What a connection counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    Nothing,
    Visitor,
    Live,
}

#[derive(Debug, Clone, Default)]
struct Address {
    visitors: usize,
    live: usize,
    /// In parts of a token: one a millisecond.
    missing: Ms,
    at: Ms,
}

#[derive(Debug, Clone)]
pub struct Counts {
    limits: AdmissionLimits,
    addresses: Vec<Address>,
    /// No binary is let in.
    pub draining: bool,
}

impl Counts {
    pub fn new(limits: AdmissionLimits, addresses: usize) -> Self {
        Self { limits, addresses: vec![Address::default(); addresses], draining: false }
    }

    pub fn live(&self) -> usize {
        self.addresses.iter().map(|address| address.live).sum()
    }

    /// Addresses of which there are connections.
    pub fn present(&self) -> usize {
        self.addresses.iter().filter(|address| address.live + address.visitors > 0).count()
    }

    pub fn enter(&mut self, address: usize) -> Count {
        let max = self.limits.max_per_address.map_or(usize::MAX, |max| max.max(MIN_VISITORS));
        let address = &mut self.addresses[address];
        if address.visitors >= max {
            return Count::Nothing;
        }
        address.visitors += 1;
        Count::Visitor
    }

    /// The status that turns it away, if it is. Who `claims` a server-id is a binary.
    pub fn admit(
        &mut self,
        address: usize,
        count: &mut Count,
        claims: bool,
        now: Ms,
    ) -> Result<(), u16> {
        if claims && self.draining {
            return Err(503);
        }
        let live = self.live();
        let address = &mut self.addresses[address];
        if let Some(rate) = self.limits.rate {
            address.missing = address.missing.saturating_sub(now - address.at);
            address.at = now;
            if address.missing + rate.refill_ms > u64::from(rate.burst) * rate.refill_ms {
                return Err(429);
            }
            address.missing += rate.refill_ms;
        }
        let max = self.limits.max_per_address.unwrap_or(usize::MAX);
        if live >= self.limits.max_connections || address.live >= max {
            return Err(503);
        }
        address.visitors -= 1;
        address.live += 1;
        *count = Count::Live;
        Ok(())
    }

    /// It was admitted and not upgraded.
    pub fn step_back(&mut self, address: usize, count: &mut Count) {
        let address = &mut self.addresses[address];
        address.live -= 1;
        address.visitors += 1;
        *count = Count::Visitor;
    }

    pub fn leave(&mut self, address: usize, count: &mut Count) {
        let address = &mut self.addresses[address];
        match std::mem::replace(count, Count::Nothing) {
            Count::Nothing => {}
            Count::Visitor => address.visitors -= 1,
            Count::Live => address.live -= 1,
        }
    }
}
