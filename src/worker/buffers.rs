//! Receive buffers that the kernel chooses from: an idle connection has none.
//!
//! A group is a ring of entries in memory that worker and kernel share: the worker appends buffers
//! that are free, the kernel takes them from the front. To give one back is to write an entry.

use super::ring;
use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

const PAGE: usize = 4096;

/// A page of entries, all zero to begin with.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct Entries([u8; PAGE]);

/// Buffers of one size.
pub struct BufferGroup {
    size: u32,
    count: u16,
    /// Lives as long as the process: the kernel may write to it as long as the ring exists, and a
    /// little longer.
    memory: *mut u8,
    /// As the memory.
    entries: *mut BufRingEntry,
    /// Entries there is room for, less one; a power of two, less one.
    mask: u16,
    /// Where the next entry goes.
    tail: u16,
}

impl BufferGroup {
    /// Allocates `count` buffers, at most 32,768, of `size` bytes and hands them to the kernel.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn new(uring: &IoUring, id: u16, size: u32, count: u16) -> io::Result<Self> {
        let room = count.next_power_of_two();
        let pages = Self::entries_bytes(count) as usize / PAGE;
        let pages = vec![Entries([0; PAGE]); pages].leak();
        let entries = pages.as_mut_ptr().cast();
        ring::register_buffers(uring, pages, room, id)?;
        // Only now, so that an attempt that the kernel refuses costs no more than the entries.
        let memory = vec![0; size as usize * usize::from(count)].leak().as_mut_ptr();
        let mut group = Self { size, count, memory, entries, mask: room - 1, tail: 0 };
        (0..count).for_each(|buffer| group.give_back(buffer));
        Ok(group)
    }

    /// The size of the entries of so many buffers, in bytes: whole pages, which the kernel locks.
    pub(super) const fn entries_bytes(count: u16) -> u64 {
        let bytes = count.next_power_of_two() as usize * size_of::<BufRingEntry>();
        (bytes.div_ceil(PAGE) * PAGE) as u64
    }

    /// The size of each buffer, in bytes.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The first `bytes` bytes of a buffer that a completion has named.
    #[allow(unsafe_code)]
    pub fn received(&mut self, buffer: u16, bytes: usize) -> &mut [u8] {
        if buffer >= self.count {
            return &mut [];
        }
        let bytes = bytes.min(self.size as usize);
        let offset = usize::from(buffer) * self.size as usize;
        // SAFETY: buffer number and length were checked against the allocation, which is never
        // freed. The completion that named the buffer passed it from the kernel to us, until
        // `give_back`; the borrow of the group keeps anyone from naming another meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.memory.wrapping_add(offset), bytes) }
    }

    /// The worker is done with a buffer that a completion has named: the kernel may use it again.
    #[allow(unsafe_code)]
    pub fn give_back(&mut self, buffer: u16) {
        if buffer >= self.count {
            return;
        }
        let address = self.memory.wrapping_add(usize::from(buffer) * self.size as usize);
        let entry = self.entries.wrapping_add(usize::from(self.tail & self.mask));
        // SAFETY: the entry is inside the ring, which is never freed, and the kernel does not read
        // beyond the tail. There are no more buffers than entries, so that none is overwritten.
        let entry = unsafe { &mut *entry };
        entry.set_addr(address as u64);
        entry.set_len(self.size);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `entries` is the base of a ring of entries.
        let tail = unsafe { BufRingEntry::tail(self.entries) };
        // SAFETY: the tail is aligned, never freed, and only this thread writes it.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        // The kernel must see the entry before it sees that there is one.
        tail.store(self.tail, Ordering::Release);
    }
}
