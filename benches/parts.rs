//! Wall time of each part of a message's way, and of the whole of it: `cargo bench --bench parts`.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::string_slice)]

mod work;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use pyrycode_relay::handover::state;
use pyrycode_relay::relay::Relay;
use pyrycode_relay::telemetry::Remote;
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

/// A worker with so many idle phones, 16 to each binary, as bytes for another process.
const IDLE_PHONES: usize = 17_000;

fn idle() -> work::Crowd {
    let mut crowd = work::crowd(128);
    for id in 0..IDLE_PHONES / 16 {
        for path in std::iter::once("/v1/server").chain(std::iter::repeat_n("/v1/client", 16)) {
            let key = crowd.relay.accept(0, Remote("192.0.2.1:5".parse().unwrap()));
            let id = format!("0b7e6f6e-58d2-4d0b-9d3e-{id:012}");
            crowd.receive(key, &work::head(path, &id));
        }
    }
    crowd
}

fn give_out(crowd: &work::Crowd) -> Vec<u8> {
    crowd.relay.give_out(1, &|_| false).encode().unwrap()
}

#[divan::bench]
fn give_out_17000_phones(bencher: Bencher<'_, '_>) {
    let crowd = idle();
    bencher.counter(BytesCount::new(give_out(&crowd).len())).bench_local(|| give_out(&crowd));
}

#[divan::bench]
fn revive_17000_phones(bencher: Bencher<'_, '_>) {
    let bytes = give_out(&idle());
    bencher.bench_local(|| {
        let worker = state::Worker::decode(black_box(&bytes)).unwrap();
        let (relay, keys) = Relay::revive(work::settings(), 1, worker).unwrap();
        assert!(keys.len() > IDLE_PHONES);
        relay
    });
}
