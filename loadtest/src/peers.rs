//! What one agent knows of each of its phones, and the checks that need memory: what was asked and
//! answered on a connection, pushed and confirmed, and whether the times came back as sent.

use crate::wire::Handle;
use std::collections::HashMap;

/// A phone, and its share of its binary's memory.
#[derive(Debug, Default)]
pub(crate) struct Phone {
    pub(crate) handle: Option<Handle>,
    /// The next question's number, of this connection.
    pub(crate) asked: u32,
    /// The next frame's number that it must get, of this connection.
    pub(crate) answered: u32,
    /// Frames that its binary has had from it, of this connection.
    pub(crate) heard: u32,
    /// Frames pushed to it, and those that it has confirmed.
    pub(crate) pushed: u32,
    pub(crate) confirmed: u32,
    /// The relay's name for it, once its binary has been told.
    pub(crate) conn_id: Option<String>,
    /// It has said goodbye.
    pub(crate) leaving: bool,
    /// Frames that it got since the mark.
    pub(crate) counted: u32,
    /// The sum of the times in frames that have not come back: 0 when all have, unaltered.
    due: u64,
}

impl Phone {
    /// A new connection, as the same phone.
    pub(crate) fn renew(&mut self, handle: Option<Handle>) {
        *self = Self { handle, counted: self.counted, ..Self::default() };
    }

    /// A frame leaves that must come to this phone in the end.
    pub(crate) fn expect(&mut self, time: u64) {
        self.due = self.due.wrapping_add(time);
    }

    /// The frame with this time has come. `false` if it is not the time that was sent, which shows
    /// when all that are under way have come.
    #[must_use]
    pub(crate) fn settle(&mut self, time: u64, pushing: bool) -> bool {
        self.answered += 1;
        self.counted += 1;
        self.due = self.due.wrapping_sub(time);
        let sent = if pushing { self.pushed } else { self.asked };
        self.answered != sent || self.due == 0
    }

    /// Frames under way: to it, and if it is only pushed to also its confirmations.
    pub(crate) fn under_way(&self, pushing: bool) -> u64 {
        if self.handle.is_none() {
            return 0;
        }
        match pushing {
            true => u64::from(self.pushed - self.answered) + u64::from(self.asked - self.heard),
            false => u64::from(self.asked - self.answered),
        }
    }
}

/// The order of frames at the binaries where phones come and go: one count for each connection, by
/// the name that the relay gave it.
#[derive(Debug, Default)]
pub(crate) struct Streams(HashMap<String, u32>);

impl Streams {
    /// Frame `seq` of the connection `conn_id` is here; an error is the number that it had to have.
    pub(crate) fn next(&mut self, conn_id: &str, seq: u32) -> Result<(), u32> {
        if let Some(wanted) = self.0.get_mut(conn_id) {
            if *wanted != seq {
                return Err(*wanted);
            }
            *wanted += 1;
            return Ok(());
        }
        if seq != 0 {
            return Err(0);
        }
        self.0.insert(conn_id.to_owned(), 1);
        Ok(())
    }

    /// The connection is gone, and nothing of it may come any more: what does would begin anew, and
    /// not at 0.
    pub(crate) fn end(&mut self, conn_id: &str) {
        self.0.remove(conn_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_comes_back_altered_is_found_when_the_last_frame_is_here() {
        let mut phone = Phone { asked: 2, ..Phone::default() };
        phone.expect(10);
        phone.expect(20);
        assert!(phone.settle(10, false));
        assert!(!phone.settle(21, false));
    }

    #[test]
    fn a_renewed_phone_keeps_only_its_count() {
        let mut phone = Phone { asked: 1, ..Phone::default() };
        phone.expect(10);
        assert!(phone.settle(10, false));
        phone.renew(None);
        assert_eq!((phone.asked, phone.answered, phone.counted), (0, 0, 1));
    }

    #[test]
    fn what_is_under_way_is_questions_or_pushes_and_confirmations() {
        let handle = Some(Handle { key: 0, serial: 0 });
        let phone =
            Phone { handle, asked: 5, heard: 4, answered: 2, pushed: 9, ..Phone::default() };
        assert_eq!(phone.under_way(false), 3);
        assert_eq!(phone.under_way(true), 8);
        assert_eq!(Phone { asked: 5, ..Phone::default() }.under_way(false), 0);
    }

    #[test]
    fn lost_doubled_and_late_frames_break_a_stream() {
        let mut streams = Streams::default();
        assert_eq!(streams.next("a", 1), Err(0));
        assert_eq!(streams.next("a", 0), Ok(()));
        assert_eq!(streams.next("b", 0), Ok(()));
        assert_eq!(streams.next("a", 0), Err(1));
        assert_eq!(streams.next("a", 2), Err(1));
        assert_eq!(streams.next("a", 1), Ok(()));
        streams.end("a");
        assert_eq!(streams.next("a", 2), Err(0));
    }
}
