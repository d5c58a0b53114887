//! What a newcomer says while the holder of its id is probed: kept in order until it has won, and
//! forgotten if it loses (PROTOCOL.md, chapter 3).
//!
//! The messages lie in one buffer, one behind the other with their lengths, so that keeping one
//! costs no more than its bytes and all that is held is the buffer's capacity. Beyond a small bound
//! the newcomer is no longer read, and the rest waits in the kernel.

/// The length in front of each message.
const LENGTH_BYTES: usize = size_of::<u32>();

/// A newcomer that has sent this much ahead is not read until the probe is over: a few hundred
/// envelopes. What was received with the last of it is still kept.
const FULL_BYTES: usize = 16 * 1024;

/// Messages sent ahead. Nothing on the heap while there are none.
#[derive(Debug, Default)]
pub struct Ahead {
    bytes: Vec<u8>,
}

impl Ahead {
    /// Keeps one message, behind those before it.
    pub fn push(&mut self, message: &[u8]) {
        // No message is longer than `MAX_MESSAGE_BYTES`.
        let length = (message.len() as u32).to_ne_bytes();
        self.bytes.reserve(LENGTH_BYTES + message.len());
        self.bytes.extend_from_slice(&length);
        self.bytes.extend_from_slice(message);
    }

    /// Whether nothing more should be read. Empty messages count too: each holds its length.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= FULL_BYTES
    }

    /// Bytes on the heap, by capacity: what the memory budget is charged.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// All of them, in order.
    pub fn messages(&self) -> impl Iterator<Item = &[u8]> {
        let mut position = 0;
        std::iter::from_fn(move || self.message_at(&mut position))
    }

    /// These, in order, in no more memory than they need.
    #[must_use]
    pub fn of(messages: &[impl AsRef<[u8]>]) -> Self {
        let bytes = messages.iter().map(|message| LENGTH_BYTES + message.as_ref().len()).sum();
        let mut ahead = Self { bytes: Vec::with_capacity(bytes) };
        for message in messages {
            ahead.push(message.as_ref());
        }
        ahead
    }

    /// The message at `position`, which is 0 for the first and moves on to the next.
    #[must_use]
    pub fn message_at(&self, position: &mut usize) -> Option<&[u8]> {
        let (length, after) = self.bytes.get(*position..)?.split_first_chunk::<LENGTH_BYTES>()?;
        let message = after.get(..u32::from_ne_bytes(*length) as usize)?;
        *position += LENGTH_BYTES + message.len();
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(ahead: &Ahead) -> Vec<&[u8]> {
        ahead.messages().collect()
    }

    #[test]
    fn messages_come_back_in_order_and_empty_ones_fill_it_too() {
        let mut ahead = Ahead::default();
        assert_eq!((ahead.held_bytes(), messages(&ahead).len()), (0, 0));
        let sent: [&[u8]; 4] = [b"", b"one", b"", &[7; 5000]];
        for message in sent {
            ahead.push(message);
        }
        assert_eq!(messages(&ahead), sent);
        assert!(!ahead.is_full());
        let again = Ahead::of(&sent);
        assert_eq!((messages(&again), again.held_bytes()), (sent.to_vec(), 4 * 4 + 5003));
        let mut ahead = Ahead::default();
        let empty = (0..)
            .take_while(|_| {
                !ahead.is_full() && {
                    ahead.push(b"");
                    true
                }
            })
            .count();
        assert_eq!(empty, FULL_BYTES / LENGTH_BYTES);
        assert!(ahead.held_bytes() >= FULL_BYTES);
    }
}
