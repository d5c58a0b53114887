//! Who has come how often, and who is kept out, goes on where a process takes over from another. How
//! many connections each address has does not: that is told by the connections.

use super::{Address, Admission, Rates};
use crate::clock::{Millis, NEVER};
use crate::handover::process;
use std::net::IpAddr;

impl Admission {
    /// All of it, but not what the configuration says.
    #[must_use]
    pub fn give_out(&self, now: Millis) -> process::Admission {
        let tables = self.tables();
        let addresses = |rates: &Rates| {
            let buckets = rates.give_out(now).into_iter();
            buckets.map(|(address, left)| (IpAddr::from(address), left)).collect()
        };
        let blocked = tables.blocks.list(now).into_iter().filter(|blocked| !blocked.is_configured);
        process::Admission {
            rates: addresses(&tables.rates),
            handshakes: addresses(&tables.handshakes),
            arrivals: tables.arrivals.give_out(now),
            blocks: blocked.map(|block| (block.network.to_string(), block.left_ms)).collect(),
        }
    }

    /// Goes on from there, by the limits that apply now.
    ///
    /// # Errors
    ///
    /// A network that cannot be blocked: there are too many, or it is none.
    pub fn take_in(&self, now: Millis, state: &process::Admission) -> Result<(), String> {
        let mut tables = self.tables();
        tables.rates.take_in(now, buckets(&state.rates));
        tables.handshakes.take_in(now, buckets(&state.handshakes));
        tables.arrivals.take_in(now, state.arrivals);
        for (text, left) in &state.blocks {
            let network = text.parse().map_err(|_| format!("{text:?} is no network"))?;
            let until = left.map_or(NEVER, |left| now.saturating_add(left));
            tables.blocks.block(now, network, until).map_err(|_| {
                format!("{network} cannot be blocked any more: --block has too many networks")
            })?;
        }
        Ok(())
    }
}

fn buckets(rates: &[(IpAddr, Millis)]) -> impl Iterator<Item = (Address, Millis)> {
    rates.iter().map(|(address, left)| (Address::from(*address), *left))
}

#[cfg(test)]
mod tests {
    use super::super::{AdmissionLimits, Cause, Proxies};
    use super::*;
    use crate::config::RateLimit;
    use std::sync::Arc;

    fn admission() -> Arc<Admission> {
        let rate = Some(RateLimit { burst: 2, refill_ms: 1000 });
        let limits = AdmissionLimits {
            rate,
            handshake_rate: rate,
            new_connections_rate: Some(RateLimit { burst: 3, refill_ms: 500 }),
            ..AdmissionLimits::NONE
        };
        Admission::new(limits, Proxies::default(), [1, 2, 3, 4])
    }

    fn asks(admission: &Arc<Admission>, now: Millis, address: &str) -> Result<(), (Cause, u64)> {
        let address: IpAddr = address.parse().unwrap();
        let mut pass = admission.enter(now, address).map_err(|r| (r.cause, r.retry_after_s))?;
        pass.admit(now, address, false).map_err(|refusal| (refusal.cause, refusal.retry_after_s))
    }

    #[test]
    fn buckets_and_blocked_networks_go_on_by_another_clock() {
        let before = admission();
        for _ in 0..2 {
            asks(&before, 10_000, "192.0.2.1").unwrap();
        }
        asks(&before, 10_000, "2001:db8::1").unwrap();
        before.block(10_000, "198.51.100.0/24".parse().unwrap(), 15_000).unwrap();
        before.block(10_000, "203.0.113.0/24".parse().unwrap(), NEVER).unwrap();
        let state = before.give_out(10_250);

        let after = admission();
        after.take_in(50, &state).unwrap();
        assert_eq!(after.give_out(50), state);
        assert_eq!(asks(&after, 50, "192.0.2.1"), Err((Cause::Rate, 1)));
        assert_eq!(asks(&after, 50, "192.0.2.9"), Err((Cause::Arrivals, 1)));
        assert_eq!(asks(&after, 4790, "198.51.100.7"), Err((Cause::Blocked, 10)));
        assert_eq!(asks(&after, 4801, "198.51.100.7"), Ok(()));
        assert_eq!(asks(&after, 9_000_000, "203.0.113.7"), Err((Cause::Blocked, 10)));
        assert!(
            after
                .take_in(
                    0,
                    &process::Admission {
                        blocks: vec![("none".to_owned(), None)],
                        ..process::Admission::default()
                    }
                )
                .is_err()
        );
    }

    #[test]
    fn what_is_not_limited_any_more_is_left_out() {
        let before = admission();
        asks(&before, 10_000, "192.0.2.1").unwrap();
        let after = Admission::new(AdmissionLimits::NONE, Proxies::default(), [1, 2, 3, 4]);
        after.take_in(0, &before.give_out(10_000)).unwrap();
        assert_eq!(after.remembered(), 0);
    }
}
