//! How many connections there is room for, where `--max-connections` does not say.

use std::fmt;

use super::units::MIB;

/// What an idle connection takes, kernel included, in bytes: 2.4 KiB were measured in a memory
/// cgroup.
const CONNECTION_BYTES: u64 = 2_458;
/// The same over TLS, whose session was measured to add 3.5 KiB.
const TLS_CONNECTION_BYTES: u64 = 6_144;
/// What the process takes without any connection and beside its budget: code, stacks, rings,
/// receive buffers, tables.
const PROCESS_BYTES: u64 = 4 * MIB;
/// Descriptors that are not for connections: files, standard streams and the control plane, and
/// [`MIN_VISITORS`] or more for sockets that are not upgraded while all connections are there.
const OTHER_DESCRIPTORS: u64 = 512;
/// Of these, the ones that are for no peer's socket.
const OWN_DESCRIPTORS: u64 = 256;
/// Sockets before their upgrade that there is room for in any case, where there are descriptors.
const MIN_VISITORS: u64 = 64;
/// Descriptors of each worker: listener, ring, and what wakes it.
const DESCRIPTORS_PER_WORKER: u64 = 8;

/// What the machine, and the cgroup that the process is in, leave for connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Connections that descriptors allow, at least 1.
    pub by_descriptors: usize,
    /// Connections that memory allows beside the budget, at least 1.
    pub by_memory: usize,
    /// Sockets that may wait for their upgrade, at least 1: a quarter of what descriptors and memory
    /// allow, and 64 where that would be fewer.
    pub visitors: usize,
    /// Sockets of peers that descriptors allow, upgraded or not, at least 1.
    pub sockets: usize,
}

impl Capacity {
    /// `descriptors` and `memory_bytes` are the limits of the process, `budget_bytes` is the part
    /// of its memory that outboxes may fill.
    pub(super) fn new(
        descriptors: u64,
        memory_bytes: u64,
        budget_bytes: u64,
        workers: usize,
        tls: bool,
    ) -> Self {
        let of_workers = DESCRIPTORS_PER_WORKER * workers as u64;
        // Where there are few, half of them will do for everything else.
        let without = |others| descriptors.saturating_sub(others + of_workers).max(descriptors / 2);
        let (by_descriptors, sockets) = (without(OTHER_DESCRIPTORS), without(OWN_DESCRIPTORS));
        let bytes = memory_bytes.saturating_sub(budget_bytes).saturating_sub(PROCESS_BYTES);
        let by_memory = bytes / if tls { TLS_CONNECTION_BYTES } else { CONNECTION_BYTES };
        let visitors = (descriptors / 4).min(by_memory / 4).max(MIN_VISITORS.min(descriptors / 2));
        let count = |count: u64| usize::try_from(count).unwrap_or(usize::MAX).max(1);
        Self {
            by_descriptors: count(by_descriptors),
            by_memory: count(by_memory),
            visitors: count(visitors),
            sockets: count(sockets),
        }
    }

    /// Connections that both allow.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.by_descriptors.min(self.by_memory)
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "descriptors allow {}, memory {}", self.by_descriptors, self.by_memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1024 * MIB;

    #[test]
    fn the_scarcer_of_descriptors_and_memory() {
        let table = [
            // descriptors, memory, budget, workers; by descriptors, by memory, visitors, sockets
            (20_000, 64 * MIB, 16 * MIB, 2, 19_472, 18_770, 4692, 19_728),
            (20_000, GIB, GIB / 4, 3, 19_464, 325_920, 5000, 19_720),
            (1 << 20, 64 * MIB, 16 * MIB, 2, 1_048_048, 18_770, 4692, 1_048_304),
            (1024, GIB, GIB / 4, 2, 512, 325_920, 256, 752),
            (600, GIB, GIB / 4, 2, 300, 325_920, 150, 328),
            (64, GIB, GIB / 4, 2, 32, 325_920, 32, 32),
            (0, MIB, MIB, 1, 1, 1, 1, 1),
            (100_000, 6 * MIB, 2 * MIB, 1024, 91_296, 1, 64, 91_552),
            (
                u64::MAX,
                u64::MAX,
                MIB,
                1,
                usize::MAX - 520,
                7_504_777_898_170_996,
                1_876_194_474_542_749,
                usize::MAX - 264,
            ),
        ];
        for row in table {
            let (
                descriptors,
                memory,
                budget,
                workers,
                by_descriptors,
                by_memory,
                visitors,
                sockets,
            ) = row;
            let capacity = Capacity::new(descriptors, memory, budget, workers, false);
            let expected = Capacity { by_descriptors, by_memory, visitors, sockets };
            assert_eq!(capacity, expected, "{descriptors} {memory}");
            assert_eq!(capacity.connections(), by_descriptors.min(by_memory));
        }
    }

    #[test]
    fn a_small_host_holds_its_crowd() {
        // What the load test asks of a relay in 64 MiB.
        let capacity = Capacity::new(20_000, 64 * MIB, 16 * MIB, 2, false);
        assert!(capacity.connections() >= 17_000, "{capacity}");
        let capacity = Capacity::new(20_000, 64 * MIB, 16 * MIB, 2, true);
        assert_eq!(capacity.connections(), 7509, "each with its TLS session");
    }
}
