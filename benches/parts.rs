//! Wall time of each part of a message's way, and of the whole of it: `cargo bench --bench parts`.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::string_slice)]

mod work;

use divan::{Bencher, black_box};
use work::SIZES;

fn main() {
    divan::main();
}

#[divan::bench(args = ["/v1/server", "/v1/client"])]
fn upgrade(bencher: Bencher<'_, '_>, path: &str) {
    let head = work::head(path, "0b7e6f6e-58d2-4d0b-9d3e-2a9f1c3d5e7f");
    bencher.bench_local(|| work::parse_upgrade(black_box(&head)));
}

#[divan::bench(args = SIZES)]
fn decode(bencher: Bencher<'_, '_>, bytes: usize) {
    let frame = work::client_frame(work::json_of(bytes).as_bytes());
    bencher.with_inputs(|| frame.clone()).bench_local_values(work::decode);
}

#[divan::bench(args = SIZES)]
fn decode_in_pieces(bencher: Bencher<'_, '_>, bytes: usize) {
    let frame = work::client_frame(work::json_of(bytes).as_bytes());
    bencher.with_inputs(|| frame.clone()).bench_local_values(work::decode_in_pieces);
}

#[divan::bench(args = SIZES)]
fn encode(bencher: Bencher<'_, '_>, bytes: usize) {
    let payload = work::json_of(bytes);
    bencher
        .with_inputs(|| Vec::with_capacity(bytes + 10))
        .bench_local_values(|out| work::encode(out, black_box(payload.as_bytes())));
}

#[divan::bench(args = SIZES)]
fn validate(bencher: Bencher<'_, '_>, bytes: usize) {
    let text = work::json_of(bytes);
    bencher.bench_local(|| work::validate(black_box(&text)).len());
}

#[divan::bench(args = SIZES)]
fn wrap(bencher: Bencher<'_, '_>, bytes: usize) {
    let frame = work::json_of(bytes);
    bencher
        .with_inputs(|| Vec::with_capacity(bytes + 100))
        .bench_local_values(|out| work::wrap(out, black_box(frame.as_bytes())));
}

#[divan::bench(args = SIZES)]
fn unwrap(bencher: Bencher<'_, '_>, bytes: usize) {
    let message = work::envelope_of(bytes);
    bencher.bench_local(|| {
        black_box(work::unwrap(black_box(&message)));
    });
}

#[divan::bench(sample_count = 20, sample_size = 1)]
fn registry_claim(bencher: Bencher<'_, '_>) {
    bencher.with_inputs(work::shard).bench_local_refs(work::Shard::claim);
}

#[divan::bench]
fn registry_register_and_leave(bencher: Bencher<'_, '_>) {
    let mut shard = work::shard();
    bencher.bench_local(|| shard.register_and_leave());
}

#[divan::bench]
fn outbox_of_16_messages(bencher: Bencher<'_, '_>) {
    let mut outbox = Default::default();
    bencher.bench_local(|| work::outbox_turn(&mut outbox));
}

#[divan::bench]
fn timer_rearmed_among_100_000(bencher: Bencher<'_, '_>) {
    let mut wheel = work::wheel();
    bencher.bench_local(|| work::rearm(&mut wheel));
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn timers_100_000_fire(bencher: Bencher<'_, '_>) {
    bencher.with_inputs(work::wheel).bench_local_refs(work::fire_all);
}

#[divan::bench(args = SIZES)]
fn core_phone_to_binary(bencher: Bencher<'_, '_>, bytes: usize) {
    let mut crowd = work::crowd(bytes);
    bencher.bench_local(|| crowd.phone_to_binary());
}

#[divan::bench(args = SIZES)]
fn core_binary_to_phone(bencher: Bencher<'_, '_>, bytes: usize) {
    let mut crowd = work::crowd(bytes);
    bencher.bench_local(|| crowd.binary_to_phone());
}

#[divan::bench]
fn give_out_17000_phones(bencher: Bencher<'_, '_>) {
    let idle = work::idle();
    bencher.bench_local(|| idle.give_out());
}

#[divan::bench]
fn revive_17000_phones(bencher: Bencher<'_, '_>) {
    let bytes = work::idle().give_out();
    bencher.bench_local(|| work::Idle::revive(black_box(&bytes)));
}
