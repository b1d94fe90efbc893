//! One suite for every I/O design, on real sockets over loopback. The rules that a design is exempt from are in
//! `support::designs::EXEMPT`, each with its reason. The same rules run on the simulated ring in `conformance_sim.rs`, and
//! in a network namespace, where errors and busy sockets can be had, in `conformance_errno.rs` and
//! `conformance_busy.rs`.

mod support;

use std::time::Duration;

use dataplane::drops::Cause;
use dataplane::egress::uring::WAITING_BYTES;
use dataplane::egress::{Class, Flush, Port, Target};
use dataplane::sys::udp::{UdpOptions, UdpSocket};
use support::designs::{Design, Rule, Scenario, Subject, run};
use support::flows::{self, MIN_LEN, Sink};
use support::here::{now, wait_until};
use support::ledger;

/// For every design a module with a test of every rule.
macro_rules! suite {
    ($($module:ident: $design:ident),*; $rules:tt) => {
        $(mod $module { suite!(@ $design $rules); })*
    };
    (@ $design:ident { $($test:ident: $scenario:ident gso $gso:literal,)* }) => {
        $(#[test]
        fn $test() {
            super::run(super::Design::$design, $gso, &super::$scenario);
        })*
    };
}

suite! {
    uring: UringThread, uring_inline: UringInline, threaded: Threaded, suspend: Suspend, drop: Drop, runtime: Runtime;
    {
        flows_keep_their_order: ORDER gso true,
        flows_keep_their_order_without_gso: ORDER_PLAIN gso false,
        a_full_ring_drops_nothing: FullRing gso false,
        a_shutdown_loses_nothing: Shutdown gso true,
        a_removed_socket_is_accounted_for: Removed gso true,
        a_refused_fill_appends_nothing: Refused gso true,
        the_source_address_is_kept: SourceAddress gso true,
        the_traffic_class_is_kept: TrafficClass gso true,
    }
}

fn socket(address: &str) -> UdpSocket {
    UdpSocket::bind(address.parse().expect("address"), &UdpOptions::default()).expect("socket")
}

fn to(port: Port, sink: &Sink) -> Target {
    Target { port, to: sink.address(), from: None, traffic_class: 0, dont_fragment: false }
}

fn append(egress: &mut impl Subject, target: &Target, flow: u32, number: u64, len: usize) {
    egress.append(target, len, Class::Data, |bytes| {
        flows::write(bytes, flow, number);
        true
    });
}

/// Flushes until everything is with the kernel, and checks what can be checked at each flush.
fn flush(egress: &mut impl Subject, ports: &[Port]) {
    let flushed = wait_until(Duration::from_secs(5), || {
        let done = egress.flush(now()).expect("flush") == Flush::Done;
        check(egress, ports);
        done
    });
    assert!(flushed, "it never ends: {:?}", egress.stats());
}

fn check(egress: &mut impl Subject, ports: &[Port]) {
    let pending = egress.pending();
    let stats = egress.stats();
    // Threads go on between the two: what was pending may have been sent, never the other way.
    assert!(stats.sent + stats.drops.total() + pending >= stats.offered, "unexplained: {stats:?}");
    assert!(stats.sent + stats.drops.total() <= stats.offered, "more than was offered: {stats:?}");
    if let Some(slots) = egress.slots() {
        ledger::check_slots(slots);
    }
    assert!(ports.iter().all(|&port| egress.waiting_len(port) <= WAITING_BYTES));
}

/// Several sockets, flows and sizes, to two sinks of both families.
struct Order {
    gso: bool,
}

const ORDER: Order = Order { gso: true };
const ORDER_PLAIN: Order = Order { gso: false };

impl Scenario for Order {
    fn run<E: Subject>(&self, mut egress: E, design: Design) {
        let sinks = [Sink::new("127.0.0.1:0"), Sink::new("[::1]:0")];
        let sockets = [socket("127.0.0.1:0"), socket("[::1]:0"), socket("127.0.0.1:0"), socket("[::1]:0")];
        let ports: Vec<Port> =
            sockets.iter().map(|socket| egress.add_socket(socket.fd().clone()).expect("port")).collect();
        let mut sent_to = [0; 2];
        let mut numbers = [0; 12];
        // Sizes change in runs, so that superpackets form and close; a shorter one ends some of them.
        for step in 0..4_000usize {
            let flow = step % 7 * 5 % 12;
            let len = [200, 1_200, MIN_LEN, 1_200][step / 90 % 4]
                - usize::from(step % 31 == 0 && step / 90 % 4 != 2) * 60;
            let which = flow % 4;
            append(&mut egress, &to(ports[which], &sinks[which % 2]), flow as u32, numbers[flow], len);
            numbers[flow] += 1;
            sent_to[which % 2] += 1;
            if step % 57 == 0 {
                flush(&mut egress, &ports);
                wait_until(Duration::from_secs(2), || {
                    sinks[0].arrived() + sinks[1].arrived() + sinks[0].window() > step as u64
                });
            }
        }
        flush(&mut egress, &ports);
        if design.keeps(Rule::KnownAfterFlush) {
            egress.reap();
            assert_eq!(egress.pending(), 0);
        }
        let stats = egress.close();
        ledger::check(&stats, 0);
        ledger::check_causes(&stats, &[]);
        assert_eq!(stats.sent, 4_000);
        for (sink, sent) in sinks.into_iter().zip(sent_to) {
            sink.finish(sent);
        }
        if self.gso && design.keeps(Rule::Superpackets) {
            // Two of the four targets may share a place in the table of open slots, and then close each other's.
            assert!(stats.operations < 3_500, "{stats:?}");
        } else {
            assert_eq!(stats.operations, 4_000, "{stats:?}");
        }
    }
}

/// Many more packets than slots and no flush, each in a slot of its own.
struct FullRing;

impl Scenario for FullRing {
    fn run<E: Subject>(&self, mut egress: E, _: Design) {
        let (sink, socket) = (Sink::new("127.0.0.1:0"), socket("127.0.0.1:0"));
        let port = egress.add_socket(socket.fd().clone()).expect("port");
        let target = to(port, &sink);
        for number in 0..5_000 {
            append(&mut egress, &target, 1, number, 300);
            if number % 100 == 99 {
                // More than the ring has slots. What is in them has not left.
                check(&mut egress, &[port]);
                wait_until(Duration::from_secs(2), || sink.arrived() + sink.window().max(80) > number);
            }
        }
        flush(&mut egress, &[port]);
        let stats = egress.close();
        ledger::check_causes(&stats, &[]);
        assert!(stats.ring_full > 0 || egress.slots().is_none(), "the ring was never full");
        sink.finish(5_000);
    }
}

/// Closing right behind the last append delivers everything.
struct Shutdown;

impl Scenario for Shutdown {
    fn run<E: Subject>(&self, mut egress: E, _: Design) {
        let (sink, sockets) = (Sink::new("127.0.0.1:0"), [socket("127.0.0.1:0"), socket("127.0.0.1:0")]);
        let ports = sockets.each_ref().map(|socket| egress.add_socket(socket.fd().clone()).expect("port"));
        for number in 0..160 {
            append(&mut egress, &to(ports[number as usize % 2], &sink), number as u32 % 2, number, 1_000);
        }
        let stats = egress.close();
        ledger::check(&stats, 0);
        ledger::check_causes(&stats, &[]);
        assert_eq!(egress.pending(), 0);
        assert_eq!(egress.close(), stats, "closing again changes nothing");
        sink.finish(160);
    }
}

/// What was appended before is sent or counted, what comes after is counted, and the other socket does not notice.
struct Removed;

impl Scenario for Removed {
    fn run<E: Subject>(&self, mut egress: E, _: Design) {
        let (sink, sockets) = (Sink::new("127.0.0.1:0"), [socket("127.0.0.1:0"), socket("127.0.0.1:0")]);
        let ports = sockets.each_ref().map(|socket| egress.add_socket(socket.fd().clone()).expect("port"));
        for number in 0..100 {
            append(&mut egress, &to(ports[number as usize % 2], &sink), number as u32 % 2, number, 500);
        }
        egress.remove(ports[0]);
        for number in 100..120 {
            append(&mut egress, &to(ports[number as usize % 2], &sink), number as u32 % 2, number, 500);
        }
        flush(&mut egress, &ports);
        let stats = egress.close();
        ledger::check(&stats, 0);
        ledger::check_causes(&stats, &[Cause::EgressClosed]);
        let closed = stats.drops.get(Cause::EgressClosed);
        assert!((10..=60).contains(&closed), "{stats:?}");
        let tally = sink.finish(stats.sent);
        assert_eq!((tally.of(0), tally.of(1)), (60 - closed, 60));
    }
}

/// `fill` may change its mind.
struct Refused;

impl Scenario for Refused {
    fn run<E: Subject>(&self, mut egress: E, _: Design) {
        let (sink, socket) = (Sink::new("127.0.0.1:0"), socket("127.0.0.1:0"));
        let port = egress.add_socket(socket.fd().clone()).expect("port");
        for number in 0..10 {
            append(&mut egress, &to(port, &sink), 1, number, 100);
            egress.append(&to(port, &sink), 100, Class::Data, |_| false);
        }
        flush(&mut egress, &[port]);
        assert_eq!(egress.close().offered, 10);
        sink.finish(10);
    }
}

/// A wildcard socket sends from the address that the target names.
struct SourceAddress;

impl Scenario for SourceAddress {
    fn run<E: Subject>(&self, mut egress: E, design: Design) {
        use dataplane::ingress::Meta;
        use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch};
        if !design.keeps(Rule::SourceAddress) {
            return;
        }
        let (receiver, sender) = (socket("127.0.0.1:0"), socket("0.0.0.0:0"));
        let port = egress.add_socket(sender.fd().clone()).expect("port");
        let from = "127.0.0.2".parse().expect("address");
        let target = Target {
            port,
            to: receiver.local_addr(),
            from: Some(from),
            traffic_class: 1,
            dont_fragment: false,
        };
        append(&mut egress, &target, 1, 0, 100);
        flush(&mut egress, &[port]);
        let mut batch = ReceiveBatch::new(1, RECEIVE_LEN);
        assert!(
            wait_until(Duration::from_secs(2), || receiver.receive_batch(&mut batch).expect("received") == 1)
        );
        let Some(Meta::Udp { from: seen, .. }) = batch.iter_mut().next().expect("one").meta else {
            panic!("meta")
        };
        assert_eq!(seen.ip(), from);
        egress.close();
    }
}

/// Each datagram has the ECN bits that its target names, whatever its neighbours have, and none overtakes another.
struct TrafficClass;

impl Scenario for TrafficClass {
    fn run<E: Subject>(&self, mut egress: E, design: Design) {
        use dataplane::ingress::{Meta, Received};
        use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch};
        if !design.keeps(Rule::TrafficClass) {
            return;
        }
        const CLASSES: [u8; 5] = [0, 2, 2, 3, 0xb8 | 1];
        let class = |number: u64| CLASSES[number as usize % CLASSES.len()];
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let options = UdpOptions { ecn: true, ..UdpOptions::default() };
            let receiver = UdpSocket::bind(loopback.parse().expect("address"), &options).expect("socket");
            let sender = socket(loopback);
            let port = egress.add_socket(sender.fd().clone()).expect("port");
            for number in 0..40 {
                let target = Target {
                    port,
                    to: receiver.local_addr(),
                    from: None,
                    traffic_class: class(number),
                    dont_fragment: false,
                };
                append(&mut egress, &target, 1, number, 100);
            }
            flush(&mut egress, &[port]);
            let (mut batch, mut tally) = (ReceiveBatch::new(16, RECEIVE_LEN), flows::Tally::default());
            let all = wait_until(Duration::from_secs(2), || {
                receiver.receive_batch(&mut batch).expect("received");
                for arrival in batch.iter_mut() {
                    let Some(Meta::Udp { segment_size, ecn, .. }) = arrival.meta else { panic!("meta") };
                    for datagram in Received::segments(arrival.bytes, segment_size) {
                        assert_eq!(ecn, class(tally.total()) & 3, "{loopback}, datagram {}", tally.total());
                        tally.note(datagram);
                    }
                }
                tally.total() == 40
            });
            assert!(all, "{} datagrams over {loopback}", tally.total());
            tally.check();
        }
        egress.close();
    }
}

#[test]
fn every_exemption_has_a_reason_and_uring_has_none() {
    for (design, rule, reason) in support::designs::EXEMPT {
        assert!(!matches!(design, Design::UringThread | Design::UringInline), "{rule:?}");
        assert!(reason.len() > 10, "{design:?} {rule:?}");
    }
}
