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
const MAX_KEPT_BYTES: usize = 128 * 1024;
/// How many buffers of each kind are kept.
const MAX_KEPT: usize = 32;

/// The spare buffers of one worker: at most 4 MiB.
#[derive(Default)]
pub struct SpareBuffers {
    small: Vec<Vec<u8>>,
    large: Vec<Vec<u8>>,
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
            self.small.pop().unwrap_or_else(|| Vec::with_capacity(SMALL_BYTES))
        } else {
            self.large.pop().unwrap_or_else(|| Vec::with_capacity(needed.max(LARGE_BYTES)))
        };
        larger.reserve(needed);
        larger.extend_from_slice(buffer);
        self.keep(std::mem::replace(buffer, larger));
    }

    /// Takes back a buffer that is done with.
    #[inline]
    pub fn keep(&mut self, mut buffer: Vec<u8>) {
        let kept = match buffer.capacity() {
            SMALL_BYTES..LARGE_BYTES => &mut self.small,
            LARGE_BYTES..=MAX_KEPT_BYTES => &mut self.large,
            _ => return,
        };
        if kept.len() < MAX_KEPT {
            buffer.clear();
            kept.push(buffer);
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
        for capacity in (0..1000).map(|n| n * 1000) {
            spare.keep(Vec::with_capacity(capacity));
        }
        let kept: usize = spare.small.iter().chain(&spare.large).map(Vec::capacity).sum();
        assert!(kept <= MAX_KEPT * (LARGE_BYTES + MAX_KEPT_BYTES), "{kept}");
        assert!(spare.small.iter().all(|buffer| buffer.capacity() < LARGE_BYTES));
    }
}
