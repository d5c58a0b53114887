//! Receive buffers that the kernel chooses from: an idle connection has none.
//!
//! The kernel takes buffers in the order in which it was given them, and a worker is done with
//! each before its turn ends, so they come back nearly in order too. They are given back a whole
//! block at a time, with one operation per block.

use super::ring::{self, Operation};

/// Buffers that are given back to the kernel together.
pub const BLOCK: u16 = 32;

/// Buffers of one size.
pub struct BufferGroup {
    id: u16,
    size: u32,
    /// Lives as long as the process: the kernel may write to it as long as the ring exists.
    memory: *mut u8,
    /// Per block: how many of its buffers are back from the kernel.
    returned: Vec<u16>,
}

impl BufferGroup {
    /// Allocates `blocks` x 32 buffers of `size` bytes and hands them to the kernel.
    pub fn new(id: u16, size: u32, blocks: u16, provides: &mut Vec<Operation<()>>) -> Self {
        let bytes = size as usize * usize::from(BLOCK) * usize::from(blocks);
        let memory = Box::leak(vec![0; bytes].into_boxed_slice()).as_mut_ptr();
        let group = Self { id, size, memory, returned: vec![0; usize::from(blocks)] };
        provides.push(ring::provide(memory, size, BLOCK * blocks, id, 0));
        group
    }

    /// The group's number.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// The size of each buffer, in bytes.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The first `bytes` bytes of a buffer that a completion has named.
    #[allow(unsafe_code)]
    pub fn received(&mut self, buffer: u16, bytes: usize) -> &mut [u8] {
        if usize::from(buffer) >= self.returned.len() * usize::from(BLOCK) {
            return &mut [];
        }
        let bytes = bytes.min(self.size as usize);
        let offset = usize::from(buffer) * self.size as usize;
        // SAFETY: buffer number and length were checked against the allocation, which is never
        // freed. The completion that named the buffer passed it from the kernel to us, until
        // `give_back`; the borrow of the group keeps anyone from naming another meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.memory.wrapping_add(offset), bytes) }
    }

    /// The worker is done with a buffer. True if with that a block went back to the kernel.
    pub fn give_back(&mut self, buffer: u16, provides: &mut Vec<Operation<()>>) -> bool {
        let block = buffer / BLOCK;
        let Some(returned) = self.returned.get_mut(usize::from(block)) else { return false };
        *returned += 1;
        if *returned < BLOCK {
            return false;
        }
        *returned = 0;
        let first = block * BLOCK;
        let address = self.memory.wrapping_add(usize::from(first) * self.size as usize);
        provides.push(ring::provide(address, self.size, BLOCK, self.id, first));
        true
    }
}
