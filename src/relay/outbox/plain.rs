//! An outbox as plain data that another process can go on with.

use super::{CONTROL_BYTES, Outbox, charge_of, is_ping};
use crate::handover::state::{self, BegunFrame, Bytes, Inconsistent};
use crate::protocol::frames;
use std::collections::VecDeque;

/// No frame of ours takes more than this many bytes: the longest message in its envelope.
const MAX_FRAME_BYTES: u32 = 1 << 20;

impl Outbox {
    /// All that is queued. No write may be out.
    #[must_use]
    pub fn give_out(&self) -> state::Outbox {
        debug_assert!(!self.in_flight() && !self.drop_rest, "a write is out");
        let head = self.head.get(self.head_sent..).unwrap_or_default();
        let chunks = std::iter::once(head).chain(self.tail.iter().map(Vec::as_slice));
        let begun = BegunFrame {
            left_bytes: self.frame_left,
            payload_bytes: self.frame_charge.saturating_sub(charge_of(0) as u32),
            is_ping: self.frame_is_ping,
        };
        state::Outbox {
            chunks: chunks.filter(|chunk| !chunk.is_empty()).map(|c| Bytes(c.to_vec())).collect(),
            control: Bytes(self.control.clone()),
            http_bytes: self.http_left,
            begun: (self.frame_left > 0).then_some(begun),
            overtook: self.overtook,
        }
    }

    /// Goes on with what another one has given out, in no more memory than that took.
    ///
    /// # Errors
    ///
    /// It cannot have been.
    pub fn revive(given: state::Outbox) -> Result<Self, Inconsistent> {
        let state::Outbox { chunks, control, http_bytes, begun, overtook } = given;
        let mut outbox = Self { http_left: http_bytes, overtook, ..Self::default() };
        let mut queued = Queued { http: http_bytes as usize, begun: 0, charged: 0, pings: 0 };
        queued.charged = queued.http as u64;
        if let Some(begun) = begun {
            let BegunFrame { left_bytes, payload_bytes, is_ping } = begun;
            let frame_bytes = frames::header_len(payload_bytes as usize) as u64;
            if left_bytes == 0
                || payload_bytes > MAX_FRAME_BYTES
                || u64::from(left_bytes) >= frame_bytes + u64::from(payload_bytes)
                || http_bytes > 0
            {
                return Err(Inconsistent("a frame is half sent that cannot be"));
            }
            outbox.frame_left = left_bytes;
            outbox.frame_charge = charge_of(payload_bytes as usize) as u32;
            outbox.frame_is_ping = is_ping;
            queued.begun = left_bytes as usize;
            queued.charged += u64::from(outbox.frame_charge);
            queued.pings += usize::from(is_ping);
        }
        for chunk in &chunks {
            queued.add_chunk(&chunk.0)?;
        }
        if queued.http > 0 || queued.begun > 0 {
            return Err(Inconsistent("less is queued than was begun"));
        }
        let are_control = |frame: &[u8]| matches!(frame.first(), Some(0x89 | 0x8a));
        if control.0.len() > CONTROL_BYTES || !queued.add_frames(&control.0, are_control) {
            return Err(Inconsistent("what is to overtake is no pings and pongs"));
        }
        if queued.pings > 1 {
            return Err(Inconsistent("two pings wait"));
        }
        outbox.has_ping = queued.pings > 0;
        outbox.charged = u32::try_from(queued.charged)
            .map_err(|_| Inconsistent("more is queued for a connection than can be"))?;
        let mut chunks: VecDeque<Vec<u8>> = chunks.into_iter().map(|chunk| chunk.0).collect();
        outbox.head = chunks.pop_front().unwrap_or_default();
        outbox.tail_capacity = chunks.iter().map(Vec::capacity).sum::<usize>() as u32;
        outbox.tail = chunks;
        outbox.control = control.0;
        Ok(outbox)
    }
}

/// What was found to be queued so far.
struct Queued {
    /// Bytes of HTTP that are still to come.
    http: usize,
    /// Bytes of the half-sent frame that are still to come.
    begun: usize,
    charged: u64,
    pings: usize,
}

impl Queued {
    fn add_chunk(&mut self, chunk: &[u8]) -> Result<(), Inconsistent> {
        let http = self.http.min(chunk.len());
        self.http -= http;
        let frames = chunk.get(http + self.begun..);
        self.begun = 0;
        let are_ours = |frame: &[u8]| matches!(frame.first(), Some(0x81 | 0x88..=0x8a));
        match frames {
            Some(frames) if !chunk.is_empty() && self.add_frames(frames, are_ours) => Ok(()),
            _ => Err(Inconsistent("what is queued is no frames")),
        }
    }

    /// Whether these are whole frames, all of which `are_sound`.
    fn add_frames(&mut self, bytes: &[u8], are_sound: impl Fn(&[u8]) -> bool) -> bool {
        let mut rest = bytes;
        while let Some((header, payload)) = frames::frame_extent(rest) {
            let frame = header.checked_add(payload).and_then(|end| rest.split_at_checked(end));
            let Some((frame, after)) = frame.filter(|(frame, _)| are_sound(frame)) else {
                return false;
            };
            self.charged += charge_of(payload) as u64;
            self.pings += usize::from(is_ping(frame));
            rest = after;
        }
        rest.is_empty()
    }
}
