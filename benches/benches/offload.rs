//! Superpackets: coalescing, splitting, and the checksum below both.

use std::hint::black_box;

use benches::stages::SEGMENTS;
use benches::stages::offload::{Coalesce, Split};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dataplane::offload::checksum;

fn superpackets(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("offload");
    let mut coalesce = Coalesce::new();
    group.throughput(Throughput::Bytes(coalesce.input_len() as u64));
    group.bench_function(BenchmarkId::new("coalesce", SEGMENTS), |bencher| {
        bencher.iter(|| {
            black_box(coalesce.run());
        });
    });
    let mut split = Split::new();
    group.throughput(Throughput::Bytes(split.input_len() as u64));
    group.bench_function(BenchmarkId::new("split", SEGMENTS), |bencher| bencher.iter(|| split.run()));
}

fn checksums(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    for len in [20, 1_400, 65_495] {
        let (mut target, source) = (vec![0; len], vec![0x5a; len]);
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("sum", len), |bencher| {
            bencher.iter(|| checksum::sum(black_box(&source)));
        });
        group.bench_function(BenchmarkId::new("copy-and-sum", len), |bencher| {
            bencher.iter(|| checksum::copy_and_sum(black_box(&mut target), black_box(&source)));
        });
        // What the copy alone costs.
        group.bench_function(BenchmarkId::new("copy", len), |bencher| {
            bencher.iter(|| black_box(&mut target).copy_from_slice(black_box(&source)));
        });
    }
}

criterion_group!(benches, superpackets, checksums);
criterion_main!(benches);
