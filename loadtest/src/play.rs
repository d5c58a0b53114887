//! Who sends what to whom in each play, and that every frame is the one that had to come: at the
//! right peer, in order, once, unaltered.

use crate::codec::{self, Envelope};
use crate::crowd::{Crowd, fault};
use crate::frame::{Label, read_label};
use crate::net::Net;
use crate::spec::Play;
use crate::wire::{Handle, Wire};

impl Crowd {
    /// Begins what the play has the phone begin.
    pub(crate) fn begin(&mut self, net: &mut Net, phone: u32) {
        let now = net.now();
        match self.spec.play {
            Play::Closed { window } => (0..window).for_each(|_| self.ask(net, phone, now)),
            // With a push, so that its binary learns its name.
            Play::Churn { .. } | Play::Push { .. } => self.ask(net, phone, now),
            Play::Open { .. } | Play::Idle | Play::Connect => {}
        }
    }

    /// Sends the phone's next question, which was due at `due` (nanoseconds).
    pub(crate) fn ask(&mut self, net: &mut Net, phone: u32, due: u64) {
        if self.is_stopping() {
            return;
        }
        let id = self.label_id(phone);
        let Some(state) = self.phones.get_mut(phone as usize) else { return };
        let Some(handle) = state.handle else { return };
        let label = Label { id, seq: state.asked, time: due };
        state.asked += 1;
        if !matches!(self.spec.play, Play::Push { .. }) {
            state.expect(due);
        }
        let frames = &self.frames;
        net.send(handle, frames.size(), |out| frames.write(label, out));
    }

    /// A frame of one of its phones has reached a binary.
    pub(crate) fn on_question(
        &mut self,
        net: &mut Net,
        handle: Handle,
        binary: u32,
        payload: &[u8],
    ) {
        let (conn_id, frame) = match net.wire() {
            Wire::Floor { .. } => (None, payload),
            Wire::WebSocket => match codec::read_envelope(payload) {
                Some(Envelope::Frame { conn_id, frame }) => (Some(conn_id), frame),
                // A phone of this run has left.
                Some(Envelope::Closed { conn_id, .. }) => return self.streams.end(&conn_id),
                None => return fault("the relay's fault: it sent a binary what is no envelope"),
            },
        };
        let label = read_label(frame);
        let phone = label.and_then(|label| label.id.checked_sub(self.label_id(0)));
        let (Some(label), Some(phone)) = (label, phone) else {
            return fault("the relay's fault: it brought a binary a frame that no phone sent");
        };
        if self.binary_of(phone) != binary {
            return fault("the relay's fault: it brought a binary another binary's frame");
        }
        if let Err(wanted) = self.in_order(phone, conn_id.as_deref(), label.seq) {
            return fault(&format!(
                "the relay's fault: binary {} got frame {} of phone {} where {wanted} was due",
                self.spec.first_binary + binary,
                label.seq,
                label.id
            ));
        }
        self.counts.messages += 1;
        if let Play::Push { window } = self.spec.play {
            if let Err(wrong) = self.frames.check(frame, label.id, label.seq) {
                return fault(&format!("the relay's fault: it brought a binary {wrong}"));
            }
            let Some(state) = self.phones.get_mut(phone as usize) else { return };
            state.conn_id = conn_id.map(|id| id.into_owned());
            state.confirmed = state.confirmed.max(label.seq * window.div_ceil(2));
            return self.push(net, handle, phone, window);
        }
        match conn_id {
            None => net.send(handle, frame.len(), |out| out.extend_from_slice(frame)),
            Some(id) => net.send(handle, codec::envelope_length(&id, frame.len()), |out| {
                codec::write_envelope(out, &id, |out| out.extend_from_slice(frame));
            }),
        }
    }

    /// Whether frame `seq` of a phone is the next of its connection; an error is the one that is.
    fn in_order(&mut self, phone: u32, conn_id: Option<&str>, seq: u32) -> Result<(), u32> {
        if let (Play::Churn { .. }, Some(conn_id)) = (self.spec.play, conn_id) {
            return self.streams.next(conn_id, seq);
        }
        let Some(state) = self.phones.get_mut(phone as usize) else { return Err(0) };
        if seq != state.heard {
            return Err(state.heard);
        }
        state.heard += 1;
        Ok(())
    }

    /// Streams to one phone, as far ahead of its word as the window lets us.
    fn push(&mut self, net: &mut Net, handle: Handle, phone: u32, window: u32) {
        if self.is_stopping() {
            return;
        }
        let id = self.label_id(phone);
        let now = net.now();
        let Some(state) = self.phones.get_mut(phone as usize) else { return };
        while state.pushed < state.confirmed + window {
            let label = Label { id, seq: state.pushed, time: now };
            state.pushed += 1;
            state.expect(now);
            let frames = &self.frames;
            match &state.conn_id {
                None => net.send(handle, frames.size(), |out| frames.write(label, out)),
                Some(id) => net.send(handle, codec::envelope_length(id, frames.size()), |out| {
                    codec::write_envelope(out, id, |out| frames.write(label, out));
                }),
            }
        }
    }

    /// A frame of its binary has reached a phone.
    pub(crate) fn on_answer(&mut self, net: &mut Net, phone: u32, payload: &[u8]) {
        let id = self.label_id(phone);
        let pushing = matches!(self.spec.play, Play::Push { .. });
        let Some(state) = self.phones.get_mut(phone as usize) else { return };
        let due = match self.frames.check(payload, id, state.answered) {
            Ok(due) => due,
            Err(wrong) => {
                return fault(&format!("the relay's fault: it brought phone {id} {wrong}"));
            }
        };
        if !state.settle(due, pushing) {
            return fault(&format!(
                "the relay's fault: it altered the time in a frame to phone {id}"
            ));
        }
        self.counts.messages += 1;
        self.round_trips.record(net.arrived().saturating_sub(due).max(1));
        let (answered, handle) = (state.answered, state.handle);
        match self.spec.play {
            Play::Churn { frames, every } if answered >= frames && phone.is_multiple_of(every) => {
                self.leave(net, phone, handle);
            }
            Play::Closed { .. } | Play::Churn { .. } => self.ask(net, phone, net.arrived()),
            Play::Push { window } if answered.is_multiple_of(window.div_ceil(2)) => {
                self.ask(net, phone, net.arrived());
            }
            Play::Push { .. } | Play::Open { .. } | Play::Idle | Play::Connect => {}
        }
    }

    /// A phone goes, politely or not; another connection will come in its place.
    fn leave(&mut self, net: &mut Net, phone: u32, handle: Option<Handle>) {
        let Some(handle) = handle else { return };
        if net.random().is_multiple_of(4) {
            net.drop_conn(handle, true);
            self.redial(net, phone);
        } else {
            net.send_close(handle, 1000);
            if let Some(state) = self.phones.get_mut(phone as usize) {
                state.leaving = true;
            }
        }
    }
}
