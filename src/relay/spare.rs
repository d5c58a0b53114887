//! Buffers that were written and wait to be filled again, so that a busy worker neither asks the
//! allocator for each send nor faults in fresh pages.
//!
//! A buffer that is on its way to a peer who does not read is stuck, with all of its capacity, and
//! its connection is charged for that. So buffers come in sizes, four to each power of two: what
//! gets one of its own has one that is no more than a fourth too large, or of the least size.

/// The least that is allocated: room for a short message or two.
const MIN_BYTES: usize = 1024;
/// Sizes of each power of two, as bits below the leading one.
const STEP_BITS: u32 = 2;
/// The largest size. Larger buffers are made to measure and given back to the allocator.
pub const MAX_BYTES: usize = 128 * 1024;
const SIZES: usize = size_number(MAX_BYTES) + 1;
/// How much capacity all kept buffers may have: more than a busy worker's turn needs.
const MAX_KEPT_BYTES: usize = 5 * 1024 * 1024;

/// The number of the least size that holds `bytes`, at most [`MAX_BYTES`].
const fn size_number(bytes: usize) -> usize {
    if bytes <= MIN_BYTES {
        return 0;
    }
    let power = (bytes - 1).ilog2();
    let step = ((bytes - 1) >> (power - STEP_BITS)) & ((1 << STEP_BITS) - 1);
    (((power - MIN_BYTES.ilog2()) as usize) << STEP_BITS) + step + 1
}

/// The capacity of a buffer for `bytes`.
#[must_use]
pub const fn fit(bytes: usize) -> usize {
    if bytes <= MIN_BYTES {
        return MIN_BYTES;
    }
    if bytes > MAX_BYTES {
        return bytes;
    }
    let step = 1 << ((bytes - 1).ilog2() - STEP_BITS);
    bytes.next_multiple_of(step)
}

/// The spare buffers of one worker: at most 5 MiB.
pub struct SpareBuffers {
    sizes: Vec<Vec<Vec<u8>>>,
    /// The capacity of all of them.
    bytes: usize,
    /// The size that makes room next for one that is wanted now.
    oldest: usize,
}

impl Default for SpareBuffers {
    fn default() -> Self {
        Self { sizes: vec![Vec::new(); SIZES], bytes: 0, oldest: 0 }
    }
}

impl SpareBuffers {
    /// Sees to it that `buffer` has room for `bytes` more. One that grows gets twice its length, but
    /// not for that reason more than `grow_to`, so that each byte is copied O(1) times.
    #[inline]
    pub fn make_room(&mut self, buffer: &mut Vec<u8>, bytes: usize, grow_to: usize) {
        if buffer.capacity() - buffer.len() < bytes {
            self.exchange(buffer, bytes, grow_to);
        }
    }

    fn exchange(&mut self, buffer: &mut Vec<u8>, bytes: usize, grow_to: usize) {
        if buffer.capacity() == 0 {
            *buffer = self.take(bytes);
            return;
        }
        let needed = (buffer.len() + bytes).max((2 * buffer.len()).min(grow_to));
        let mut larger = self.take(needed);
        larger.extend_from_slice(buffer);
        self.keep(std::mem::replace(buffer, larger));
    }

    /// An empty buffer for `bytes`.
    #[must_use]
    pub fn take(&mut self, bytes: usize) -> Vec<u8> {
        if bytes <= MAX_BYTES
            && let Some(buffer) = self.sizes.get_mut(size_number(bytes)).and_then(Vec::pop)
        {
            self.bytes -= buffer.capacity();
            return buffer;
        }
        Vec::with_capacity(fit(bytes))
    }

    /// Takes back a buffer that is done with.
    #[inline]
    pub fn keep(&mut self, mut buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        // Only those that came from here: others may be too small for their size.
        if !(MIN_BYTES..=MAX_BYTES).contains(&capacity) || fit(capacity) != capacity {
            return;
        }
        if self.bytes + capacity > MAX_KEPT_BYTES {
            self.make_way(capacity);
        }
        if let Some(size) = self.sizes.get_mut(size_number(capacity)) {
            buffer.clear();
            self.bytes += capacity;
            size.push(buffer);
        }
    }

    /// Frees others, size by size in turn, until `bytes` fit: those that nobody has asked for lately
    /// go with time. O(1) for each buffer that was kept.
    #[cold]
    fn make_way(&mut self, bytes: usize) {
        while self.bytes + bytes > MAX_KEPT_BYTES && self.bytes > 0 {
            self.oldest = (self.oldest + 1) % SIZES;
            if let Some(buffer) = self.sizes.get_mut(self.oldest).and_then(Vec::pop) {
                self.bytes -= buffer.capacity();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_keeps_its_bytes_when_it_grows_and_is_used_again() {
        let mut spare = SpareBuffers::default();
        let mut buffer = Vec::new();
        for step in 0..200usize {
            spare.make_room(&mut buffer, step, 64 * 1024);
            assert!(buffer.capacity() - buffer.len() >= step);
            buffer.resize(buffer.len() + step, step as u8);
        }
        assert_eq!(buffer.len(), 199 * 200 / 2);
        assert!((0..200usize).flat_map(|step| vec![step as u8; step]).eq(buffer.iter().copied()));
        let large = (buffer.as_ptr(), buffer.capacity());
        spare.keep(buffer);
        let mut short = Vec::new();
        spare.make_room(&mut short, 100, 64 * 1024);
        assert_ne!(short.as_ptr(), large.0, "a short message gets no large buffer");
        assert_eq!(short.capacity(), MIN_BYTES);
        let long = spare.take(large.1 - 5);
        assert_eq!((long.as_ptr(), long.len()), (large.0, 0));
    }

    #[test]
    fn sizes_are_a_fourth_apart() {
        for bytes in 1..=MAX_BYTES {
            let capacity = fit(bytes);
            assert!(capacity >= bytes && capacity <= (bytes + bytes / 4).max(MIN_BYTES), "{bytes}");
            assert_eq!((size_number(bytes), fit(capacity)), (size_number(capacity), capacity));
        }
        assert_eq!((fit(MAX_BYTES + 1), fit(262_144)), (MAX_BYTES + 1, 262_144));
    }

    #[test]
    fn what_is_kept_is_bounded_and_of_the_sizes_that_are_in_use() {
        let mut spare = SpareBuffers::default();
        for capacity in (1..200_000).step_by(500).cycle().take(4000) {
            spare.keep(Vec::with_capacity(fit(capacity)));
            assert!(spare.bytes <= MAX_KEPT_BYTES);
        }
        let kept: usize = spare.sizes.iter().flatten().map(Vec::capacity).sum();
        assert_eq!(spare.bytes, kept);
        for _ in 0..1000 {
            spare.keep(Vec::with_capacity(fit(20_000)));
        }
        let wanted = spare.sizes[size_number(20_000)].len() * fit(20_000);
        assert!(wanted > MAX_KEPT_BYTES * 9 / 10, "{wanted}");
        spare.keep(Vec::with_capacity(1500));
        assert!(spare.take(1500).capacity() >= 1500);
    }
}
