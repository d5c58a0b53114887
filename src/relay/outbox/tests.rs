//! The outbox against a plain list of frames.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

#[derive(Debug, Clone)]
enum Step {
    Text(usize),
    Control(usize),
    /// The kernel takes this share of a write, in percent; 0 for nothing.
    Write(usize),
    DropPending,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop_oneof![0..300usize, 60_000..70_000usize].prop_map(Step::Text),
        2 => (0..=125usize).prop_map(Step::Control),
        6 => (0..=100usize).prop_map(Step::Write),
        1 => Just(Step::DropPending),
    ]
}

fn text(number: u8, payload_bytes: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    frames::push_text_header(&mut frame, payload_bytes);
    frame.resize(frame.len() + payload_bytes, number);
    frame
}

fn ping(number: u8, payload_bytes: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    frames::push_ping(&mut frame, &vec![number; payload_bytes]);
    frame
}

/// The whole frames at the start of `wire`.
fn frames_of(mut wire: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some((header, payload)) = frames::frame_extent(wire) {
        let Some((frame, rest)) = wire.split_at_checked(header + payload) else { break };
        found.push(frame);
        wire = rest;
    }
    found
}

proptest! {
    /// What leaves is whole frames, messages in order, each once; what is charged is what waits.
    #[test]
    fn it_is_a_queue_of_whole_frames(steps in prop::collection::vec(step(), 0..60)) {
        let (mut outbox, mut spare) = (Outbox::default(), SpareBuffers::default());
        let mut wire: Vec<u8> = Vec::new();
        let (mut texts, mut pings) = (VecDeque::new(), VecDeque::new());
        let mut out: Option<Write> = None;
        let (mut charged, mut number) = (0usize, 0u8);
        for step in steps {
            number = number.wrapping_add(1);
            match step {
                Step::Text(bytes) => {
                    let frame = text(number, bytes);
                    outbox.push_frame(&mut spare, frame.len(), bytes, |buffer| buffer.extend(&frame));
                    charged += charge_of(bytes);
                    texts.push_back(frame);
                }
                Step::Control(bytes) => {
                    let frame = ping(number, bytes);
                    let released = outbox.push_control(&frame);
                    prop_assert_eq!(released, 0, "pings are never replaced");
                    charged += charge_of(bytes);
                    pings.push_back(frame);
                }
                Step::Write(percent) => {
                    if out.is_none() {
                        out = outbox.take_write();
                        prop_assert!(outbox.take_write().is_none(), "one write at a time");
                    }
                    if let Some(Write { buffer, from, to }) = out.take() {
                        prop_assert!(from < to && to <= buffer.len());
                        let taken = (to - from) * percent / 100;
                        wire.extend(&buffer[from..from + taken]);
                        charged -= outbox.on_written(&mut spare, buffer, taken);
                    }
                }
                Step::DropPending => {
                    charged -= outbox.drop_pending();
                    return check_rest(outbox, charged);
                }
            }
            prop_assert_eq!(outbox.charged(), charged);
        }
        while let Some(Write { buffer, from, to }) = outbox.take_write() {
            wire.extend(&buffer[from..to]);
            charged -= outbox.on_written(&mut spare, buffer, to - from);
        }
        prop_assert!(outbox.is_empty());
        prop_assert_eq!((outbox.charged(), charged), (0, 0));
        let frames = frames_of(&wire);
        prop_assert_eq!(frames.iter().map(|frame| frame.len()).sum::<usize>(), wire.len(), "a torn frame");
        for frame in frames {
            let expected = if is_ping(frame) { pings.pop_front() } else { texts.pop_front() };
            prop_assert_eq!(Some(frame), expected.as_deref());
        }
        prop_assert!(texts.is_empty() && pings.is_empty(), "lost");
    }
}

/// After what waited was dropped: at most the half-sent frame is left, and then what comes next.
fn check_rest(mut outbox: Outbox, mut charged: usize) -> Result<(), TestCaseError> {
    let mut spare = SpareBuffers::default();
    prop_assert_eq!(outbox.charged(), charged);
    let last = text(255, 9);
    outbox.push_frame(&mut spare, last.len(), 9, |buffer| buffer.extend(&last));
    charged += charge_of(9);
    let mut wire = Vec::new();
    while let Some(Write { buffer, from, to }) = outbox.take_write() {
        wire.extend(&buffer[from..to]);
        charged -= outbox.on_written(&mut spare, buffer, to - from);
    }
    prop_assert!(wire.ends_with(&last));
    prop_assert_eq!((outbox.charged(), charged), (0, 0));
    Ok(())
}

#[test]
fn what_is_dropped_while_a_write_is_out_tears_no_frame() {
    let frames = [text(1, 100), text(2, 100), text(3, 100)];
    for taken in 0..=frames.concat().len() {
        let (mut outbox, mut spare) = (Outbox::default(), SpareBuffers::default());
        for frame in &frames {
            outbox.push_frame(&mut spare, frame.len(), 100, |buffer| buffer.extend(frame));
        }
        let write = outbox.take_write().unwrap();
        let mut wire = write.buffer[..taken].to_vec();
        let mut released = outbox.drop_pending();
        let close = ping(9, 2);
        outbox.push_frame(&mut spare, close.len(), 2, |buffer| buffer.extend(&close));
        released += outbox.on_written(&mut spare, write.buffer, taken);
        while let Some(write) = outbox.take_write() {
            wire.extend(&write.buffer[write.from..write.to]);
            released += outbox.on_written(&mut spare, write.buffer, write.to - write.from);
        }
        assert_eq!(released, 3 * charge_of(100) + charge_of(2), "{taken}");
        let whole = taken.div_ceil(frames[0].len());
        assert_eq!(wire, [frames[..whole].concat(), close].concat(), "{taken}");
    }
}

#[test]
fn too_many_pongs_are_replaced_by_the_newest_and_pings_stay() {
    let (mut outbox, mut spare) = (Outbox::default(), SpareBuffers::default());
    let mut charged = charge_of(1);
    outbox.push_control(&ping(1, 1));
    for number in 0..100u8 {
        let mut pong = Vec::new();
        frames::push_pong(&mut pong, &[number; 100]);
        charged += charge_of(100);
        charged -= outbox.push_control(&pong);
        assert!(charged < 2 * (CONTROL_BYTES + 12 * FRAME_OVERHEAD_BYTES));
    }
    assert_eq!(outbox.charged(), charged);
    let write = outbox.take_write().unwrap();
    let sent = frames_of(&write.buffer[write.from..write.to]);
    assert!(is_ping(sent[0]) && sent.last().unwrap().ends_with(&[99]));
    let length = write.to - write.from;
    assert_eq!(outbox.on_written(&mut spare, write.buffer, length), charged);
    assert!(outbox.is_empty());
}

#[test]
fn an_empty_outbox_holds_no_memory_and_has_nothing_to_write() {
    let (mut outbox, mut spare) = (Outbox::default(), SpareBuffers::default());
    assert!(outbox.take_write().is_none() && outbox.is_empty());
    outbox.push_http(&mut spare, b"HTTP/1.1 101 x\r\n\r\n");
    let write = outbox.take_write().unwrap();
    let length = write.buffer.len();
    assert_eq!(outbox.on_written(&mut spare, write.buffer, length), length);
    assert!(outbox.is_empty() && outbox.head.capacity() == 0);
}
