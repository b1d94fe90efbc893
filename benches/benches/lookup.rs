//! What a packet is looked up in: the allowed IPs of a tunnel, the allocations and channels of a relay.

use benches::stages::relayed::Relayed;
use benches::stages::routes::Routes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn routes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    group.throughput(Throughput::Elements(1));
    for (name, count, lens) in [
        ("1-prefix", 1, &[24][..]),
        ("10000-prefixes/1-length", 10_000, &[24]),
        ("10000-prefixes/9-lengths", 10_000, &[24, 25, 26, 27, 28, 29, 30, 31, 32]),
    ] {
        let mut routes = Routes::new(count, lens);
        group.bench_function(name, |bencher| bencher.iter(|| routes.find()));
    }
    for (name, v4) in [("130000-prefixes/gateway/ipv4", true), ("130000-prefixes/gateway/ipv6", false)] {
        let mut routes = Routes::gateway(10_000, v4);
        group.bench_function(name, |bencher| bencher.iter(|| routes.find()));
    }
}

fn relay(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("relay");
    group.throughput(Throughput::Elements(1));
    // Requests of a client cost an HMAC or two each, so that ten thousand of them are made in a second.
    for (allocations, channels) in [(1, 1), (1, 64), (10_000, 1)] {
        let mut relayed = Relayed::new(allocations, channels);
        let parameter = format!("{allocations}x{channels}");
        group.bench_function(BenchmarkId::new("from-client", &parameter), |bencher| {
            bencher.iter(|| relayed.from_client());
        });
        group.bench_function(BenchmarkId::new("from-peer", &parameter), |bencher| {
            bencher.iter(|| relayed.from_peer());
        });
    }
}

criterion_group!(benches, routes, relay);
criterion_main!(benches);
