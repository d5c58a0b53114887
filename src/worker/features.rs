//! What a worker's ring asks of the kernel beyond what every kernel from 6.1 on has. Each can be
//! switched off, for a kernel in which it is at fault.

/// Which of them are wanted. Where the kernel has one not, it is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// The ring's descriptor is registered, so that a system call need not look it up (5.18).
    pub registered_ring: bool,
    /// A worker that waits is idle, not waiting for a disk, in the statistics of the machine (6.15).
    pub no_iowait: bool,
}

impl Features {
    /// All of them.
    pub const ALL: Self = Self { registered_ring: true, no_iowait: true };
}
