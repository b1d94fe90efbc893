//! Sealing and opening through the tunnel and its adapter, timers and statistics included.

use std::cell::RefCell;

use benches::stages::tunnel::Pair;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// A sealed packet can be opened once: so many are sealed beforehand, few enough to stay in the cache and far below the
/// thousand that may arrive late.
const BATCH: u64 = 64;

fn tunnel(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("tunnel");
    let pair = RefCell::new(Pair::connected());
    for len in [64, 1_280, 1_420] {
        group.throughput(Throughput::Bytes(len as u64));
        let mut out = vec![0; pair.borrow_mut().load(len)];
        group.bench_function(BenchmarkId::new("seal", len), |bencher| {
            let mut pair = pair.borrow_mut();
            bencher.iter(|| pair.seal(&mut out));
        });
        group.bench_function(BenchmarkId::new("open", len), |bencher| {
            bencher.iter_batched_ref(
                || pair.borrow_mut().sealed(1, len),
                |sealed| pair.borrow_mut().open(&sealed[0]),
                BatchSize::NumIterations(BATCH),
            );
        });
    }
}

criterion_group!(benches, tunnel);
criterion_main!(benches);
