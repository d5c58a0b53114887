//! Networks that the operator keeps out.

use crate::clock::{Millis, NEVER};
use crate::config::IpNet;
use std::collections::HashMap;
use std::net::IpAddr;

/// Networks that may be blocked at a time, those of the configuration included.
pub const MAX_BLOCKS: usize = 1024;

/// A network that is blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocked {
    /// Which.
    pub network: IpNet,
    /// It is one of `--block`.
    pub is_configured: bool,
    /// For how long still, in milliseconds; `None` for good.
    pub left_ms: Option<Millis>,
}

/// Why a network cannot be blocked, or no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockError {
    /// There are [`MAX_BLOCKS`].
    Full,
    /// It is not blocked.
    NotBlocked,
    /// It is not blocked itself, but lies within this one that is.
    Within(IpNet),
    /// It is one of `--block`.
    Configured,
}

/// Who is to be kept out, and until when.
#[derive(Debug, Default, Clone, Copy)]
struct Block {
    is_configured: bool,
    /// By command, until then.
    until: Millis,
}

impl Block {
    fn holds(&self, now: Millis) -> bool {
        self.is_configured || now < self.until
    }
}

/// The networks, by their prefix: a look-up costs one hash for each length of prefix that occurs,
/// however many networks there are.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    networks: HashMap<IpNet, Block>,
    /// Lengths of prefixes that occur, of IPv4 and of IPv6, without repetition.
    lengths: [Vec<u8>; 2],
}

impl Blocks {
    /// Whether an address is to be kept out.
    pub(super) fn holds(&self, now: Millis, address: IpAddr) -> bool {
        !self.networks.is_empty() && self.find(now, address.to_canonical(), u8::MAX).is_some()
    }

    /// The blocked network that an address lies in, if its prefix is no longer than `longest`.
    fn find(&self, now: Millis, address: IpAddr, longest: u8) -> Option<IpNet> {
        let [v4, v6] = &self.lengths;
        let lengths = if address.is_ipv4() { v4 } else { v6 };
        let networks = lengths.iter().filter(|length| **length <= longest).filter_map(|length| {
            let network = IpNet::new(address, *length).ok()?.trunc();
            self.networks.get(&network).filter(|block| block.holds(now)).map(|_| network)
        });
        networks.min_by_key(IpNet::prefix_len)
    }

    /// These are the ones of the configuration, in place of those before.
    pub(super) fn configure(&mut self, networks: &[IpNet]) {
        for block in self.networks.values_mut() {
            block.is_configured = false;
        }
        for network in networks {
            self.networks.entry(*network).or_default().is_configured = true;
        }
        self.tidy(0);
    }

    /// Keeps a network out until then.
    pub(super) fn block(
        &mut self,
        now: Millis,
        network: IpNet,
        until: Millis,
    ) -> Result<(), BlockError> {
        self.tidy(now);
        if self.networks.len() >= MAX_BLOCKS && !self.networks.contains_key(&network) {
            return Err(BlockError::Full);
        }
        self.networks.entry(network).or_default().until = until;
        self.tidy(now);
        Ok(())
    }

    /// Lets a network in again.
    pub(super) fn unblock(&mut self, now: Millis, network: IpNet) -> Result<(), BlockError> {
        match self.networks.get_mut(&network) {
            Some(block) if block.is_configured => Err(BlockError::Configured),
            Some(block) if block.holds(now) => {
                block.until = 0;
                self.tidy(now);
                Ok(())
            }
            _ => Err(self
                .find(now, network.addr(), network.prefix_len())
                .map_or(BlockError::NotBlocked, BlockError::Within)),
        }
    }

    /// All that are kept out now, in order.
    pub(super) fn list(&self, now: Millis) -> Vec<Blocked> {
        let holding = self.networks.iter().filter(|(_, block)| block.holds(now));
        let mut list: Vec<Blocked> = holding
            .map(|(network, Block { is_configured, until })| Blocked {
                network: *network,
                is_configured: *is_configured,
                left_ms: (!is_configured && *until != NEVER).then(|| until.saturating_sub(now)),
            })
            .collect();
        list.sort_by_key(|blocked| blocked.network);
        list
    }

    /// Forgets those that are over.
    fn tidy(&mut self, now: Millis) {
        self.networks.retain(|_, block| block.holds(now));
        for lengths in &mut self.lengths {
            lengths.clear();
        }
        for network in self.networks.keys() {
            let [v4, v6] = &mut self.lengths;
            let lengths = if network.addr().is_ipv4() { v4 } else { v6 };
            if !lengths.contains(&network.prefix_len()) {
                lengths.push(network.prefix_len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn blocked(blocks: &Blocks, now: Millis, address: &str) -> bool {
        blocks.holds(now, address.parse().unwrap())
    }

    #[test]
    fn an_address_is_blocked_by_any_network_that_it_lies_in() {
        let mut blocks = Blocks::default();
        assert!(!blocked(&blocks, 0, "10.1.2.3"));
        for network in ["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32", "192.0.2.7/32"] {
            blocks.block(0, net(network), NEVER).unwrap();
        }
        for (address, is_blocked) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("11.0.0.1", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("2001:db8::1", true),
            ("2001:db9::1", false),
        ] {
            assert_eq!(blocked(&blocks, 5, address), is_blocked, "{address}");
        }
        blocks.unblock(5, net("10.1.0.0/16")).unwrap();
        assert!(blocked(&blocks, 5, "10.1.2.3"), "it lies in the other one too");
        let within = BlockError::Within(net("10.0.0.0/8"));
        assert_eq!(blocks.unblock(5, net("10.1.0.0/16")), Err(within));
        assert_eq!(blocks.unblock(5, net("11.0.0.0/8")), Err(BlockError::NotBlocked));
        blocks.unblock(5, net("10.0.0.0/8")).unwrap();
        assert!(!blocked(&blocks, 5, "10.1.2.3"));
    }

    #[test]
    fn what_is_blocked_for_a_while_is_let_in_again_and_forgotten() {
        let mut blocks = Blocks::default();
        blocks.block(0, net("10.0.0.0/8"), 100).unwrap();
        assert!(blocked(&blocks, 99, "10.0.0.1") && !blocked(&blocks, 100, "10.0.0.1"));
        assert_eq!(blocks.list(40)[0].left_ms, Some(60));
        assert_eq!(blocks.list(100), []);
        blocks.block(200, net("11.0.0.0/8"), NEVER).unwrap();
        assert_eq!(blocks.networks.len(), 1);
    }

    #[test]
    fn those_of_the_configuration_are_replaced_together_and_others_stay() {
        let mut blocks = Blocks::default();
        blocks.block(0, net("12.0.0.0/8"), NEVER).unwrap();
        blocks.configure(&[net("10.0.0.0/8"), net("11.0.0.0/8")]);
        assert_eq!(blocks.unblock(0, net("10.0.0.0/8")), Err(BlockError::Configured));
        blocks.configure(&[net("11.0.0.0/8")]);
        let listed: Vec<String> = blocks.list(0).iter().map(|b| b.network.to_string()).collect();
        assert_eq!(listed, ["11.0.0.0/8", "12.0.0.0/8"]);
    }

    #[test]
    fn there_are_no_more_than_so_many() {
        let mut blocks = Blocks::default();
        for number in 0..MAX_BLOCKS as u32 {
            let address = IpAddr::from(number.to_be_bytes());
            blocks.block(0, IpNet::from(address), 100).unwrap();
        }
        assert_eq!(blocks.block(0, net("10.0.0.0/8"), 100), Err(BlockError::Full));
        assert_eq!(blocks.block(0, net("0.0.0.1/32"), NEVER), Ok(()), "it is one of them");
        assert_eq!(blocks.block(100, net("10.0.0.0/8"), 200), Ok(()), "the others are over");
    }
}
