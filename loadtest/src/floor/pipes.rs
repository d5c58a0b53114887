//! What the floors have in common: who is connected to whom, and which bytes go where. Records of
//! one size go from each phone's socket to its binary's and back; there is no protocol, no check,
//! and no work but to move bytes.

use crate::wire::{FLOOR_HELLO, FLOOR_MAGIC, FLOOR_OKAY};
use slab::Slab;
use std::collections::HashMap;
use std::io;

/// A record's phone, in hexadecimal digits, stands at the same place in each frame.
const PHONE_DIGITS: std::ops::Range<usize> = 7..15;

/// One connection.
#[derive(Default)]
struct Pipe {
    role: Role,
    /// The first part of a record.
    partial: Vec<u8>,
    /// What is to be sent.
    outbox: Vec<u8>,
    is_dirty: bool,
}

#[derive(Clone, Copy, Default)]
enum Role {
    #[default]
    Unknown,
    /// The key of its binary.
    Phone(usize),
    Binary,
}

/// All connections.
#[derive(Default)]
pub(super) struct Pipes {
    all: Slab<Pipe>,
    /// By group.
    binaries: HashMap<u32, usize>,
    /// By the phone's number.
    phones: Vec<Option<usize>>,
    dirty: Vec<usize>,
    record: usize,
}

impl Pipes {
    /// A connection that has not said what it is.
    pub(super) fn add(&mut self) -> usize {
        self.all.insert(Pipe::default())
    }

    /// Forgets a connection.
    pub(super) fn remove(&mut self, key: usize) {
        self.all.try_remove(key);
    }

    /// The connections that have got something to send since this was last asked, in `keys`, which
    /// must be empty.
    pub(super) fn swap_dirty(&mut self, keys: &mut Vec<usize>) {
        std::mem::swap(&mut self.dirty, keys);
    }

    /// Takes what a connection has to send, in exchange for an empty buffer.
    pub(super) fn take_outbox(&mut self, key: usize, empty: &mut Vec<u8>) {
        if let Some(pipe) = self.all.get_mut(key) {
            pipe.is_dirty = false;
            std::mem::swap(&mut pipe.outbox, empty);
        }
    }

    /// Reads what has arrived on a connection, and queues it where it goes.
    ///
    /// # Errors
    ///
    /// When the peer is none of this tool's.
    pub(super) fn received(&mut self, key: usize, bytes: &[u8]) -> io::Result<()> {
        let Some(pipe) = self.all.get_mut(key) else { return Ok(()) };
        let is_known = !matches!(pipe.role, Role::Unknown);
        if is_known && pipe.partial.is_empty() && bytes.len().is_multiple_of(self.record.max(1)) {
            self.forward(key, bytes);
            return Ok(());
        }
        pipe.partial.extend_from_slice(bytes);
        let mut all = std::mem::take(&mut pipe.partial);
        if !is_known && all.len() >= FLOOR_HELLO {
            self.meet(key, &all)?;
            all.drain(..FLOOR_HELLO);
        }
        let whole = all.len() / self.record.max(1) * self.record;
        self.forward(key, all.get(..whole).unwrap_or_default());
        all.drain(..whole);
        if let Some(pipe) = self.all.get_mut(key) {
            pipe.partial = all;
        }
        Ok(())
    }

    /// Reads the hello: magic, role, group, phone, record length.
    fn meet(&mut self, key: usize, hello: &[u8]) -> io::Result<()> {
        let field = |at: usize| {
            let bytes = hello.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u32::from_le_bytes)
        };
        if !hello.starts_with(FLOOR_MAGIC) {
            return Err(io::Error::other("a peer that is no agent of this tool"));
        }
        let (is_phone, group, phone) = (field(4) == 1, field(8), field(12) as usize);
        self.record = field(16) as usize;
        let role = if is_phone {
            let binary = self.binaries.get(&group).copied();
            let binary = binary.ok_or_else(|| io::Error::other("a phone before its binary"))?;
            if self.phones.len() <= phone {
                self.phones.resize(phone + 1, None);
            }
            if let Some(place) = self.phones.get_mut(phone) {
                *place = Some(key);
            }
            Role::Phone(binary)
        } else {
            self.binaries.insert(group, key);
            Role::Binary
        };
        if let Some(pipe) = self.all.get_mut(key) {
            pipe.role = role;
        }
        self.append(key, FLOOR_OKAY);
        Ok(())
    }

    /// Moves whole records to where they go.
    fn forward(&mut self, key: usize, records: &[u8]) {
        match self.all.get(key).map(|pipe| pipe.role) {
            Some(Role::Phone(binary)) => self.append(binary, records),
            Some(Role::Binary) => {
                for record in records.chunks_exact(self.record.max(1)) {
                    let phone = phone_of(record).and_then(|phone| self.phones.get(phone).copied());
                    if let Some(phone) = phone.flatten() {
                        self.append(phone, record);
                    }
                }
            }
            _ => {}
        }
    }

    fn append(&mut self, key: usize, bytes: &[u8]) {
        if let Some(pipe) = self.all.get_mut(key)
            && !bytes.is_empty()
        {
            pipe.outbox.extend_from_slice(bytes);
            if !std::mem::replace(&mut pipe.is_dirty, true) {
                self.dirty.push(key);
            }
        }
    }
}

fn phone_of(record: &[u8]) -> Option<usize> {
    let digits = str::from_utf8(record.get(PHONE_DIGITS)?).ok()?;
    usize::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::phone_of;
    use crate::frame::{Frames, Label};

    #[test]
    fn the_phone_of_a_record_is_read_where_frames_write_it() {
        let mut record = Vec::new();
        Frames::new(200).write(Label { id: 0xabc, seq: 1, time: 2 }, &mut record);
        assert_eq!(phone_of(&record), Some(0xabc));
        assert_eq!(phone_of(b"{}"), None);
    }
}
