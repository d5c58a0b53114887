//! Instructions of each part of a message's way, counted by valgrind, so that a regression shows
//! on a noisy machine too: `cargo bench --bench instructions`. It needs valgrind, and
//! `cargo install gungraun-runner` in the version of `gungraun` in Cargo.lock.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::string_slice, unused_qualifications)]

mod work;

use gungraun::{library_benchmark, library_benchmark_group, main};
use pyrycode_relay::relay::outbox::Outbox;
use pyrycode_relay::relay::spare::SpareBuffers;
use pyrycode_relay::relay::timers::{TimerId, Wheel};
use std::hint::black_box;
use work::{Crowd, Shard};

fn frame(bytes: usize) -> Vec<u8> {
    work::client_frame(work::json_of(bytes).as_bytes())
}

/// A buffer with room, and what goes into it.
fn into_buffer(bytes: usize) -> (Vec<u8>, String) {
    (Vec::with_capacity(bytes + 100), work::json_of(bytes))
}

/// A core that is warm: the first message allocates what the others reuse.
fn warm_crowd(bytes: usize) -> Crowd {
    let mut crowd = work::crowd(bytes);
    crowd.phone_to_binary();
    crowd.binary_to_phone();
    crowd
}

fn warm_outbox() -> (Outbox, SpareBuffers) {
    let mut outbox = Default::default();
    work::outbox_turn(&mut outbox);
    outbox
}

#[library_benchmark]
#[bench::server(work::head("/v1/server", "0b7e6f6e-58d2-4d0b-9d3e-2a9f1c3d5e7f"))]
#[bench::client(work::head("/v1/client", "0b7e6f6e-58d2-4d0b-9d3e-2a9f1c3d5e7f"))]
fn upgrade(head: Vec<u8>) {
    black_box(work::parse_upgrade(&head));
}

#[library_benchmark]
#[benches::of(args = [128, 4096, 65_536], setup = frame)]
fn decode(frame: Vec<u8>) -> (Vec<u8>, usize) {
    black_box(work::decode(frame))
}

#[library_benchmark]
#[benches::of(args = [128, 4096, 65_536], setup = into_buffer)]
fn encode((out, payload): (Vec<u8>, String)) -> Vec<u8> {
    black_box(work::encode(out, payload.as_bytes()))
}

#[library_benchmark]
#[benches::of(args = [128, 4096, 65_536], setup = work::json_of)]
fn validate(text: String) -> usize {
    black_box(work::validate(&text).len())
}

#[library_benchmark]
#[benches::of(args = [128, 4096, 65_536], setup = into_buffer)]
fn wrap((out, frame): (Vec<u8>, String)) -> Vec<u8> {
    black_box(work::wrap(out, frame.as_bytes()))
}

#[library_benchmark]
#[benches::of(args = [128, 4096, 65_536], setup = work::envelope_of)]
fn unwrap(message: String) {
    black_box(work::unwrap(&message));
}

#[library_benchmark]
#[bench::among_10_000(work::shard())]
fn registry_claim(mut shard: Shard) -> Shard {
    black_box(shard.claim());
    shard
}

#[library_benchmark]
#[bench::among_10_000(work::shard())]
fn registry_register_and_leave(mut shard: Shard) -> Shard {
    shard.register_and_leave();
    shard
}

#[library_benchmark]
#[bench::of_16_messages(warm_outbox())]
fn outbox(mut outbox: (Outbox, SpareBuffers)) -> (Outbox, SpareBuffers) {
    work::outbox_turn(&mut outbox);
    outbox
}

#[library_benchmark]
#[bench::rearm(work::wheel())]
fn timer_among_100_000(mut wheel: (Wheel<u32>, Vec<TimerId>)) -> (Wheel<u32>, Vec<TimerId>) {
    work::rearm(&mut wheel);
    wheel
}

#[library_benchmark]
#[bench::all(work::wheel())]
fn timers_100_000_fire(mut wheel: (Wheel<u32>, Vec<TimerId>)) -> (Wheel<u32>, Vec<TimerId>) {
    black_box(work::fire_all(&mut wheel));
    wheel
}

#[library_benchmark]
#[benches::of(args = [128, 4096, 65_536], setup = warm_crowd)]
fn core_phone_to_binary(mut crowd: Crowd) -> Crowd {
    crowd.phone_to_binary();
    crowd
}

#[library_benchmark]
#[benches::of(args = [128, 4096, 65_536], setup = warm_crowd)]
fn core_binary_to_phone(mut crowd: Crowd) -> Crowd {
    crowd.binary_to_phone();
    crowd
}

library_benchmark_group!(
    name = parts,
    benchmarks = [
        upgrade,
        decode,
        encode,
        validate,
        wrap,
        unwrap,
        registry_claim,
        registry_register_and_leave,
        outbox,
        timer_among_100_000,
        timers_100_000_fire,
        core_phone_to_binary,
        core_binary_to_phone
    ]
);

main!(library_benchmark_groups = parts);
