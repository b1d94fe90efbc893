//! The stack packet: copying into it and padding.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dataplane::packet::Packet;

fn copy_and_pad(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("packet");
    let mut packet: Box<Packet> = Box::default();
    // 15 bytes short of a multiple of 16 are the most padding there is.
    for len in [65, 1_265, 1_409] {
        let content = vec![0x5a; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("copy-and-pad", len), |bencher| {
            bencher.iter(|| {
                packet.copy_from(black_box(&content)).expect("fits");
                packet.pad_to(16).expect("tailroom");
                black_box(packet.as_slice());
            });
        });
    }
}

criterion_group!(benches, copy_and_pad);
criterion_main!(benches);
