//! Buffers that were written and wait to be filled again, so that a busy worker neither asks the
//! allocator for each send nor faults in fresh pages.
//!
//! A buffer that is on its way to a peer who does not read is stuck, with all of its capacity. So
//! a short message never gets a large buffer, and what is kept is bounded.

/// Room for a short message or two.
const SMALL_BYTES: usize = 1024;
/// The least that is allocated for more.
const LARGE_BYTES: usize = 4096;
/// Larger buffers are given back to the allocator.
const MAX_BYTES: usize = 128 * 1024;
/// How much capacity small buffers may keep: that of all the messages of a busy worker's turn.
const MAX_KEPT_SMALL_BYTES: usize = 1024 * 1024;
/// How much large ones may keep.
const MAX_KEPT_LARGE_BYTES: usize = 4 * 1024 * 1024;

/// The spare buffers of one worker: at most 5 MiB.
#[derive(Default)]
pub struct SpareBuffers {
    small: Kept,
    large: Kept,
}

/// Buffers of one kind.
#[derive(Default)]
struct Kept {
    buffers: Vec<Vec<u8>>,
    /// The capacity of all of them.
    bytes: usize,
}

impl Kept {
    /// One that was kept, or a new one with room for `bytes`.
    fn take_or_make(&mut self, bytes: usize) -> Vec<u8> {
        let Some(mut buffer) = self.buffers.pop() else { return Vec::with_capacity(bytes) };
        self.bytes -= buffer.capacity();
        buffer.reserve(bytes);
        buffer
    }

    fn keep(&mut self, mut buffer: Vec<u8>, most_bytes: usize) {
        let bytes = self.bytes + buffer.capacity();
        if bytes <= most_bytes {
            self.bytes = bytes;
            buffer.clear();
            self.buffers.push(buffer);
        }
    }
}

impl SpareBuffers {
    /// Sees to it that `buffer` has room for `bytes` more.
    #[inline]
    pub fn make_room(&mut self, buffer: &mut Vec<u8>, bytes: usize) {
        if buffer.capacity() - buffer.len() < bytes {
            self.exchange(buffer, bytes);
        }
    }

    fn exchange(&mut self, buffer: &mut Vec<u8>, bytes: usize) {
        let needed = buffer.len() + bytes;
        if buffer.capacity() >= LARGE_BYTES {
            return buffer.reserve(bytes);
        }
        let mut larger = if needed <= SMALL_BYTES {
            self.small.take_or_make(SMALL_BYTES)
        } else {
            self.large.take_or_make(needed.max(LARGE_BYTES))
        };
        larger.extend_from_slice(buffer);
        self.keep(std::mem::replace(buffer, larger));
    }

    /// Takes back a buffer that is done with.
    #[inline]
    pub fn keep(&mut self, buffer: Vec<u8>) {
        match buffer.capacity() {
            SMALL_BYTES..LARGE_BYTES => self.small.keep(buffer, MAX_KEPT_SMALL_BYTES),
            LARGE_BYTES..=MAX_BYTES => self.large.keep(buffer, MAX_KEPT_LARGE_BYTES),
            _ => {}
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
            spare.make_room(&mut buffer, step);
            assert!(buffer.capacity() - buffer.len() >= step);
            buffer.resize(buffer.len() + step, step as u8);
        }
        assert_eq!(buffer.len(), 199 * 200 / 2);
        assert!((0..200usize).flat_map(|step| vec![step as u8; step]).eq(buffer.iter().copied()));
        let large = buffer.as_ptr();
        spare.keep(buffer);
        let mut short = Vec::new();
        spare.make_room(&mut short, 100);
        assert_ne!(short.as_ptr(), large, "a short message gets no large buffer");
        let mut long = Vec::new();
        spare.make_room(&mut long, 5000);
        assert_eq!((long.as_ptr(), long.len()), (large, 0));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut spare = SpareBuffers::default();
        for capacity in (0..1000).map(|n| n * 1000).chain([1024; 2000]) {
            spare.keep(Vec::with_capacity(capacity));
        }
        let limits = [MAX_KEPT_SMALL_BYTES, MAX_KEPT_LARGE_BYTES];
        for (kept, most) in [&mut spare.small, &mut spare.large].into_iter().zip(limits) {
            assert_eq!(kept.bytes, kept.buffers.iter().map(Vec::capacity).sum::<usize>());
            assert!((1..=most).contains(&kept.bytes), "{}", kept.bytes);
            while !kept.buffers.is_empty() {
                kept.take_or_make(1);
            }
            assert_eq!(kept.bytes, 0);
        }
    }
}
