//! Staging into slots, over a ring that takes everything at once (`staging`), and submitting and reaping with the kernel
//! (`ring`): to `/dev/null`, which costs nothing, and to a UDP socket that nobody reads.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use benches::stages::offload::{OFFLOADS, PAYLOAD_LEN, tcp_segments};
use benches::stages::taker::Leaving;
use benches::stages::{SEGMENTS, origin};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dataplane::egress::{Class, Egress, Target, Uring};
use dataplane::engine::Completions;
use dataplane::sys::ring::{ReapHalf, SubmitHalf};
use dataplane::sys::udp::{UdpOptions, UdpSocket};

fn staging(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("staging");
    group.throughput(Throughput::Elements(SEGMENTS as u64));
    let mut leaving = Leaving::new(1);
    group.bench_function("append/45-to-1", |bencher| bencher.iter(|| leaving.append()));
    group.bench_function("deliver/45-of-1-flow", |bencher| bencher.iter(|| leaving.deliver()));
    // Beyond 60 the ring is full before the flush: four of its slots are kept for control packets.
    for destinations in [1, 16, 48, 256] {
        let mut leaving = Leaving::new(destinations);
        group.throughput(Throughput::Elements(destinations.into()));
        let name = BenchmarkId::new("append", format!("1-to-each-of-{destinations}"));
        group.bench_function(name, |bencher| bencher.iter(|| leaving.append_one_each()));
    }
}

fn ring(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    for (name, completions) in [("inline", Completions::Inline), ("thread", Completions::Thread)] {
        let mut egress: Uring<SubmitHalf, ReapHalf> = match Uring::new(true, completions, true, origin()) {
            Ok(egress) => egress,
            Err(error) => return left_out(&error),
        };
        let now = origin();
        let null = OpenOptions::new().write(true).open("/dev/null").expect("there is a /dev/null");
        let device = egress.add_device(Arc::new(OwnedFd::from(null)), OFFLOADS).expect("room for a port");
        let (mut socket, sink) = (None, sink());
        let to = sink.local_addr();
        let packets = tcp_segments(SEGMENTS, PAYLOAD_LEN);
        for count in [1, SEGMENTS] {
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(BenchmarkId::new(format!("null/{name}"), count), |bencher| {
                bencher.iter(|| {
                    packets[..count].iter().for_each(|packet| egress.deliver(device, packet));
                    egress.flush(now).expect("the ring works");
                    egress.idle();
                });
            });
            let port = *socket.get_or_insert_with(|| {
                let source = UdpSocket::bind(any(), &UdpOptions::default()).expect("a socket");
                egress.add_socket(source.fd().clone()).expect("room for a port")
            });
            let target = Target { port, to, from: None, traffic_class: 0, dont_fragment: false };
            group.bench_function(BenchmarkId::new(format!("udp/{name}"), count), |bencher| {
                bencher.iter(|| {
                    for packet in &packets[..count] {
                        egress.append(&target, packet.len(), Class::Data, |slot| {
                            slot.copy_from_slice(packet);
                            true
                        });
                    }
                    egress.flush(now).expect("the ring works");
                    egress.idle();
                });
            });
        }
        let stats = egress.close();
        assert_eq!(stats.sent, stats.offered, "{:?}", stats.drops);
    }
}

fn any() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// Its buffer is soon full, and the kernel drops what comes then: sending succeeds all the same.
fn sink() -> UdpSocket {
    UdpSocket::bind(any(), &UdpOptions::default()).expect("a socket")
}

fn left_out(error: &std::io::Error) {
    let what = format!("the ring with the kernel: {error}");
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "left out: {what}");
    let required = std::env::var_os("TOWPATH_REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(!required, "required here: {what}");
}

criterion_group!(benches, staging, ring);
criterion_main!(benches);
