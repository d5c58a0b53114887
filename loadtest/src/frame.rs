//! The frames that the generator sends: numbered, timed, and checkable to the byte.
//!
//! A frame is one JSON object of an exact size,
//! `{"id":"0000001f","seq":"0000002a","t":"00000000075bcd15","x":"\u00e9\/é","pad":"…"}`: which phone,
//! which number, when it was due. `x` does not survive a relay that re-encodes JSON, and the padding is
//! different in each frame, so that a mixed-up or altered frame cannot pass for the right one.

use std::fmt;

const LEAD: usize = r#"{"id":""#.len();
const AFTER_ID: &[u8] = br#"","seq":""#;
const AFTER_SEQ: &[u8] = br#"","t":""#;
const AFTER_TIME: &[u8] = "\",\"x\":\"\\u00e9\\/é\",\"pad\":\"".as_bytes();
const TAIL: &[u8] = br#""}"#;

const HEAD: usize = LEAD + 8 + AFTER_ID.len() + 8 + AFTER_SEQ.len() + 16 + AFTER_TIME.len();
/// The smallest size of a frame, in bytes.
pub(crate) const MIN_SIZE: usize = HEAD + TAIL.len();

/// How many different starts the padding has.
const PHASES: usize = 509;

/// Writes and checks frames of one size.
#[derive(Debug)]
pub(crate) struct Frames {
    size: usize,
    padding: Vec<u8>,
}

/// What a frame says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label {
    /// The number of the phone in the whole run.
    pub(crate) id: u32,
    /// The number of the frame on that phone, from 0.
    pub(crate) seq: u32,
    /// When it was due to be sent, in nanoseconds of its sender's clock.
    pub(crate) time: u64,
}

/// How a frame differs from the one that had to come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// Not one of our frames at all.
    Unreadable { length: usize },
    /// Another phone's frame.
    Misrouted { got: u32 },
    /// A frame that had come before.
    Doubled { got: u32, wanted: u32 },
    /// A later frame: those between are lost or late.
    Skipped { got: u32, wanted: u32 },
    /// The right frame with other bytes, or with more or fewer of them.
    Altered { seq: u32, at: usize },
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { length } => write!(f, "{length} bytes that no phone sent"),
            Self::Misrouted { got } => write!(f, "a frame of phone {got}"),
            Self::Doubled { got, wanted } => {
                write!(f, "frame {got} again, where frame {wanted} was due (doubled)")
            }
            Self::Skipped { got, wanted } => {
                write!(f, "frame {got} where frame {wanted} was due (lost or out of order)")
            }
            Self::Altered { seq, at } => write!(f, "frame {seq} altered at byte {at}"),
        }
    }
}

impl Frames {
    /// Frames of `size` bytes, or of the smallest size if that is larger.
    pub(crate) fn new(size: usize) -> Self {
        let size = size.max(MIN_SIZE);
        let alphabet = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:,;=+*";
        let padding =
            alphabet.iter().copied().cycle().take(size - MIN_SIZE + PHASES).collect::<Vec<_>>();
        Self { size, padding }
    }

    /// The length of each frame, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Appends the frame with this label.
    pub(crate) fn write(&self, label: Label, out: &mut Vec<u8>) {
        out.extend_from_slice(&head(label));
        out.extend_from_slice(self.pad(label));
        out.extend_from_slice(TAIL);
    }

    /// Checks that `bytes` are frame `seq` of phone `id`, whole and unaltered; returns when it was due.
    pub(crate) fn check(&self, bytes: &[u8], id: u32, seq: u32) -> Result<u64, Wrong> {
        let label = read_label(bytes).ok_or(Wrong::Unreadable { length: bytes.len() })?;
        if label.id != id {
            return Err(Wrong::Misrouted { got: label.id });
        }
        if label.seq != seq {
            return Err(match label.seq < seq {
                true => Wrong::Doubled { got: label.seq, wanted: seq },
                false => Wrong::Skipped { got: label.seq, wanted: seq },
            });
        }
        let same = bytes.len() == self.size
            && bytes.starts_with(&head(label))
            && bytes.get(HEAD..self.size - TAIL.len()) == Some(self.pad(label))
            && bytes.ends_with(TAIL);
        match same {
            true => Ok(label.time),
            false => Err(Wrong::Altered { seq, at: self.first_difference(bytes, label) }),
        }
    }

    fn pad(&self, label: Label) -> &[u8] {
        let start = (label.id.wrapping_mul(31).wrapping_add(label.seq) as usize) % PHASES;
        self.padding.get(start..start + self.size - MIN_SIZE).unwrap_or_default()
    }

    fn first_difference(&self, bytes: &[u8], label: Label) -> usize {
        let mut right = Vec::with_capacity(self.size);
        self.write(label, &mut right);
        let common = bytes.iter().zip(&right).position(|(a, b)| a != b);
        common.unwrap_or(bytes.len().min(right.len()))
    }
}

/// Reads the label of a frame, without judging the rest of it.
pub(crate) fn read_label(bytes: &[u8]) -> Option<Label> {
    let rest = bytes.get(LEAD..)?;
    let (id, rest) = rest.split_first_chunk::<8>()?;
    let (seq, rest) = rest.get(AFTER_ID.len()..)?.split_first_chunk::<8>()?;
    let (time, _) = rest.get(AFTER_SEQ.len()..)?.split_first_chunk::<16>()?;
    Some(Label {
        id: u32::try_from(from_hex(id)?).ok()?,
        seq: u32::try_from(from_hex(seq)?).ok()?,
        time: from_hex(time)?,
    })
}

fn head(label: Label) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    let parts: [&[u8]; 7] = [
        br#"{"id":""#,
        &to_hex::<8>(label.id.into()),
        AFTER_ID,
        &to_hex::<8>(label.seq.into()),
        AFTER_SEQ,
        &to_hex::<16>(label.time),
        AFTER_TIME,
    ];
    let mut left = head.as_mut_slice();
    for part in parts {
        if let Some((to, rest)) = std::mem::take(&mut left).split_at_mut_checked(part.len()) {
            to.copy_from_slice(part);
            left = rest;
        }
    }
    head
}

fn to_hex<const N: usize>(value: u64) -> [u8; N] {
    let mut digits = [0; N];
    let mut value = value;
    for digit in digits.iter_mut().rev() {
        let nibble = (value & 15) as u8;
        *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
        value >>= 4;
    }
    digits
}

fn from_hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |value: u64, digit| {
        Some(value << 4 | u64::from(char::from(*digit).to_digit(16)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: Label = Label { id: 31, seq: 42, time: 123_456_789 };

    fn written(frames: &Frames, label: Label) -> Vec<u8> {
        let mut bytes = Vec::new();
        frames.write(label, &mut bytes);
        bytes
    }

    #[test]
    fn a_frame_is_json_of_the_size_asked() {
        for size in [MIN_SIZE, 200, 16_384] {
            let bytes = written(&Frames::new(size), LABEL);
            assert_eq!(bytes.len(), size);
            serde_json::from_slice::<serde_json::Value>(&bytes).unwrap();
        }
    }

    #[test]
    fn a_frame_passes_its_own_check() {
        let frames = Frames::new(200);
        assert_eq!(frames.check(&written(&frames, LABEL), 31, 42), Ok(123_456_789));
    }

    #[test]
    fn every_altered_byte_is_found() {
        let frames = Frames::new(200);
        let right = written(&frames, LABEL);
        for at in 0..right.len() {
            let mut bytes = right.clone();
            bytes[at] ^= 1;
            let verdict = frames.check(&bytes, 31, 42);
            // The time is the sender's own and is compared by the phone that remembers it.
            let in_time = verdict.as_ref().is_ok_and(|time| *time != LABEL.time);
            assert!(verdict.is_err() || in_time, "byte {at}");
        }
    }

    #[test]
    fn other_frames_are_named_for_what_they_are() {
        let frames = Frames::new(200);
        let bytes = written(&frames, LABEL);
        assert_eq!(frames.check(&bytes, 30, 42), Err(Wrong::Misrouted { got: 31 }));
        assert_eq!(frames.check(&bytes, 31, 43), Err(Wrong::Doubled { got: 42, wanted: 43 }));
        assert_eq!(frames.check(&bytes, 31, 41), Err(Wrong::Skipped { got: 42, wanted: 41 }));
        assert_eq!(frames.check(&bytes[..199], 31, 42), Err(Wrong::Altered { seq: 42, at: 199 }));
        assert_eq!(frames.check(b"[]", 31, 42), Err(Wrong::Unreadable { length: 2 }));
    }
}
