//! STUN messages and ChannelData headers.

use std::hint::black_box;

use benches::stages::relayed::{self, PAYLOAD_LEN};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dataplane::stun::{ChannelData, ChannelNumber, Message, channel_data};

const NONCE: &[u8; 16] = b"0123456789abcdef";

fn stun(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stun");
    group.throughput(Throughput::Elements(1));
    let (key, mut buffer) = (relayed::key(), [0; 300]);
    let len = relayed::write_allocate(&mut buffer, &key, NONCE);
    let request = buffer[..len].to_vec();
    group.bench_function("parse", |bencher| {
        bencher.iter(|| Message::parse(black_box(&request)).is_ok());
    });
    group.bench_function("parse-and-verify", |bencher| {
        bencher.iter(|| {
            let message = Message::parse(black_box(&request)).expect("a request");
            message.verify_integrity(&key) && message.verify_fingerprint() == Some(true)
        });
    });
    group.bench_function("write-request", |bencher| {
        bencher.iter(|| relayed::write_allocate(black_box(&mut buffer), &key, NONCE));
    });
    let mapped = ([192, 0, 2, 1], 32_853).into();
    group.bench_function("write-answer", |bencher| {
        bencher.iter(|| relayed::write_binding_success(black_box(&mut buffer), black_box(mapped)));
    });
}

fn channel(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("channel-data");
    group.throughput(Throughput::Elements(1));
    let header = channel_data::header(ChannelNumber::MIN, PAYLOAD_LEN).expect("a short payload");
    let datagram = [&header[..], &[0x5a; PAYLOAD_LEN]].concat();
    group.bench_function("parse", |bencher| {
        bencher.iter(|| ChannelData::parse(black_box(&datagram)).map(|data| data.number));
    });
    group.bench_function("header", |bencher| {
        bencher.iter(|| channel_data::header(black_box(ChannelNumber::MIN), black_box(PAYLOAD_LEN)));
    });
}

criterion_group!(benches, stun, channel);
criterion_main!(benches);
