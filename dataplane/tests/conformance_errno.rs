//! Errors of a real kernel, in a network namespace of its own: one bad datagram as the first, a middle and the last of a
//! batch costs its neighbours nothing, neither on its socket nor on another, on every design. What a kernel cannot be
//! brought to answer here is answered by the simulated ring in `conformance_sim.rs`, errno by errno.

mod support;

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::Duration;

use dataplane::drops::Cause;
use dataplane::egress::{Class, Flush, Target};
use dataplane::sys::socket;
use dataplane::sys::tun::Offloads;
use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpOptions, UdpSocket};
use support::designs::{Design, Rule, Scenario, Subject, run};
use support::flows::{self, Sink};
use support::here::{in_namespace, now, wait_until};
use support::{here, ledger};

const DESIGNS: [Design; 6] = [
    Design::UringThread,
    Design::UringInline,
    Design::Threaded,
    Design::Suspend,
    Design::Drop,
    Design::Runtime,
];
/// Length of what stands in front of a packet for a device, bytes.
const VIRTIO_HEADER: usize = 10;
const ROUNDS: u64 = 20;
const BATCH: usize = 9;

/// A datagram the kernel refuses.
#[derive(Clone, Copy, Debug)]
struct Bad {
    /// The errno it provokes, for messages.
    errno: &'static str,
    to: &'static str,
    len: usize,
    /// What it is counted as; `None` when it leaves and only its echo is an error.
    cause: Option<Cause>,
    /// How the socket comes to hear of ICMP errors.
    hears: Hears,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hears {
    /// Not at all.
    Nothing,
    /// It is connected to this destination.
    Connected,
    /// It has an error queue (IP_RECVERR), and nobody reads it.
    Queue,
}

const fn bad(errno: &'static str, to: &'static str, len: usize, cause: Cause) -> Bad {
    Bad { errno, to, len, cause: Some(cause), hears: Hears::Nothing }
}

const BADS: [Bad; 7] = [
    // One byte more than IPv4 can carry.
    bad("EMSGSIZE", "127.0.0.1:9", 65_508, Cause::EgressTooBig),
    bad("EINVAL", "127.0.0.1:0", 100, Cause::EgressInvalid),
    bad("EAFNOSUPPORT", "[::1]:9", 100, Cause::EgressInvalid),
    // A namespace with nothing but loopback has no other route.
    bad("ENETUNREACH", "192.0.2.1:9", 100, Cause::EgressUnreachable),
    // Broadcast without SO_BROADCAST.
    bad("EACCES", "127.255.255.255:9", 100, Cause::EgressDenied),
    Bad { errno: "ECONNREFUSED", to: "127.0.0.1:9", len: 100, cause: None, hears: Hears::Connected },
    Bad { errno: "ECONNREFUSED", to: "127.0.0.1:9", len: 100, cause: None, hears: Hears::Queue },
];

struct Neighbours {
    bad: Bad,
    position: usize,
}

impl Scenario for Neighbours {
    fn run<E: Subject>(&self, mut egress: E, design: Design) {
        let bad = self.bad;
        let sink = Sink::new("127.0.0.1:0");
        let socket = |errors| {
            let options = UdpOptions { errors, ..UdpOptions::default() };
            UdpSocket::bind("127.0.0.1:0".parse().expect("address"), &options).expect("socket")
        };
        let (one, other) = (socket(bad.hears == Hears::Queue), socket(false));
        let to_bad: SocketAddr = bad.to.parse().expect("address");
        if bad.hears == Hears::Connected {
            rustix::net::connect(one.fd(), &to_bad).expect("connected");
        }
        let ports = [&one, &other].map(|socket| egress.add_socket(socket.fd().clone()).expect("port"));
        let mut number = 0;
        for _ in 0..ROUNDS {
            for index in 0..BATCH {
                if index == self.position {
                    let target = Target {
                        port: ports[0],
                        to: to_bad,
                        from: None,
                        traffic_class: 0,
                        dont_fragment: false,
                    };
                    egress.append(&target, bad.len, Class::Data, |_| true);
                }
                for (flow, &port) in ports.iter().enumerate() {
                    let target = Target {
                        port,
                        to: sink.address(),
                        from: None,
                        traffic_class: 0,
                        dont_fragment: false,
                    };
                    egress.append(&target, 100 + index, Class::Data, |bytes| {
                        flows::write(bytes, flow as u32, number);
                        true
                    });
                }
                number += 1;
            }
            let flushed = || egress.flush(now()).expect("flush") == Flush::Done;
            assert!(wait_until(Duration::from_secs(2), flushed), "{design:?} {bad:?}");
            if let Some(slots) = egress.slots() {
                ledger::check_slots(slots);
            }
        }
        let stats = egress.close();
        ledger::check(&stats, 0);
        ledger::check_causes(&stats, bad.cause.as_slice());
        let healthy = 2 * number;
        let lost = if bad.cause.is_some() { ROUNDS } else { 0 };
        assert_eq!(stats.drops.total(), lost, "{design:?}, {}: {stats:?}", bad.errno);
        assert_eq!(stats.sent, healthy + ROUNDS - lost, "{design:?} {bad:?}");
        sink.finish(healthy);
    }
}

fn on_every_design(bad: Bad) {
    for design in DESIGNS {
        for position in [0, BATCH / 2, BATCH - 1] {
            for gso in [true, false] {
                run(design, gso, &Neighbours { bad, position });
            }
        }
    }
}

#[test]
fn a_refused_datagram_costs_its_neighbours_nothing() {
    in_namespace("a_refused_datagram_costs_its_neighbours_nothing", || {
        BADS.into_iter().for_each(on_every_design);
    });
}

#[test]
fn a_firewall_costs_the_neighbours_nothing() {
    in_namespace("a_firewall_costs_the_neighbours_nothing", || {
        #[expect(clippy::disallowed_methods, reason = "a test may start a program")]
        let nft = |rule: &str| std::process::Command::new("nft").args(rule.split(' ')).output();
        let rules = ["add table ip t", "add chain ip t c { type filter hook output priority 0 ; }"];
        for rule in rules.into_iter().chain(["add rule ip t c ip daddr 127.9.9.9 drop"]) {
            match nft(rule) {
                Ok(output) if output.status.success() => {}
                Ok(output) => {
                    return here::lacks(&format!("nftables: {}", String::from_utf8_lossy(&output.stderr)));
                }
                Err(error) => return here::lacks(&format!("the program `nft` of nftables ({error})")),
            }
        }
        on_every_design(bad("EPERM", "127.9.9.9:9", 100, Cause::EgressDenied));
    });
}

/// Superpackets whose segments are above the MTU fail as such and are fragmented one by one.
struct AboveMtu;

impl Scenario for AboveMtu {
    fn run<E: Subject>(&self, mut egress: E, design: Design) {
        let sink = Sink::new("127.0.0.1:0");
        let socket =
            UdpSocket::bind("127.0.0.1:0".parse().expect("address"), &UdpOptions::default()).expect("socket");
        let port = egress.add_socket(socket.fd().clone()).expect("port");
        let target = Target { port, to: sink.address(), from: None, traffic_class: 0, dont_fragment: false };
        for number in 0..60u64 {
            egress.append(&target, 2_000, Class::Data, |bytes| {
                flows::write(bytes, 1, number);
                true
            });
            if number % 10 == 9 {
                egress.flush(now()).expect("flush");
            }
        }
        wait_until(Duration::from_secs(2), || egress.flush(now()).expect("flush") == Flush::Done);
        let stats = egress.close();
        ledger::check_causes(&stats, &[]);
        if matches!(design, Design::UringThread | Design::UringInline) {
            // Superpackets of this size are avoided after the first was refused.
            assert!((1..10).contains(&stats.gso_fallbacks), "{stats:?}");
        }
        sink.finish(60);
    }
}

/// Above the MTU, what may be fragmented is, and what must not be is lost; below it nothing is, and all keep their order.
struct DontFragment(&'static str);

impl Scenario for DontFragment {
    fn run<E: Subject>(&self, mut egress: E, design: Design) {
        let sink = Sink::new(self.0);
        let options = UdpOptions { without_df: true, errors: true, ..UdpOptions::default() };
        let socket = UdpSocket::bind(self.0.parse().expect("address"), &options).expect("socket");
        let port = egress.add_socket(socket.fd().clone()).expect("port");
        let (mut lost, mut arriving) = (0, 0);
        for number in 0..400u64 {
            let dont_fragment = number % 4 < 2;
            let len = if number % 3 == 0 { 2_000 } else { 1_000 };
            let target = Target { port, to: sink.address(), from: None, traffic_class: 0, dont_fragment };
            egress.append(&target, len, Class::Data, |bytes| {
                flows::write(bytes, 1, number);
                true
            });
            *if dont_fragment && len > 1_500 { &mut lost } else { &mut arriving } += 1;
            if number % 10 == 9 {
                let flushed = || egress.flush(now()).expect("flush") == Flush::Done;
                assert!(wait_until(Duration::from_secs(2), flushed), "{design:?}");
            }
        }
        let stats = egress.close();
        ledger::check_causes(&stats, &[Cause::EgressTooBig]);
        assert_eq!((stats.drops.total(), stats.sent), (lost, arriving), "{design:?}: {stats:?}");
        sink.finish(arriving);
    }
}

#[test]
fn what_must_not_be_fragmented_is_dropped_above_the_mtu() {
    in_namespace("what_must_not_be_fragmented_is_dropped_above_the_mtu", || {
        narrow_loopback();
        for design in DESIGNS {
            for loopback in ["127.0.0.1:0", "[::1]:0"] {
                for gso in [true, false] {
                    run(design, gso, &DontFragment(loopback));
                }
            }
        }
    });
}

/// A socket whose superpackets the kernel refuses with EINVAL, beside one that has no such trouble.
struct WithoutSuperpackets;

impl Scenario for WithoutSuperpackets {
    fn run<E: Subject>(&self, mut egress: E, design: Design) {
        let sink = Sink::new("127.0.0.1:0");
        let sockets = [0, 1].map(|_| {
            UdpSocket::bind("127.0.0.1:0".parse().expect("address"), &UdpOptions::default()).expect("socket")
        });
        sockets[0].leave_out_checksums().expect("SO_NO_CHECK");
        let ports = sockets.each_ref().map(|socket| egress.add_socket(socket.fd().clone()).expect("port"));
        for number in 0..300u64 {
            for (flow, port) in ports.into_iter().enumerate() {
                let target =
                    Target { port, to: sink.address(), from: None, traffic_class: 0, dont_fragment: false };
                egress.append(&target, 200, Class::Data, |bytes| {
                    flows::write(bytes, flow as u32, number);
                    true
                });
            }
            if number % 30 == 29 {
                let flushed = || egress.flush(now()).expect("flush") == Flush::Done;
                assert!(wait_until(Duration::from_secs(2), flushed), "{design:?}");
            }
        }
        let stats = egress.close();
        ledger::check_causes(&stats, &[]);
        assert_eq!((stats.offered, stats.sent), (600, 600), "{design:?}");
        if design.keeps(Rule::Superpackets) {
            // The writer thread may have filled more slots before it met the refusal.
            let most = if design == Design::Threaded { 10 } else { 1 };
            assert!((1..=most).contains(&stats.gso_fallbacks), "{design:?}: {stats:?}");
            assert!((2..=300).contains(&stats.resent), "{design:?}: {stats:?}");
            // The other socket goes on with superpackets.
            assert!(stats.operations < 300 + 1 + 150, "{design:?}: {stats:?}");
        }
        sink.finish(600);
    }
}

#[test]
fn a_socket_without_superpackets_loses_nothing_and_costs_others_nothing() {
    for design in DESIGNS {
        run(design, true, &WithoutSuperpackets);
    }
}

/// A device that takes packets and refuses superpackets with EINVAL: a connected socket of which each write is cut.
struct DeviceWithoutSuperpackets;

impl Scenario for DeviceWithoutSuperpackets {
    fn run<E: Subject>(&self, mut egress: E, design: Design) {
        // A packet is 73 pieces with its header. Two in one would be more than 128, which the kernel refuses.
        const PIECE: u16 = 7;
        const LEN: usize = 472;
        const ROUNDS: u64 = 12;
        const ROUND: u64 = 5;
        let any = || UdpSocket::bind("127.0.0.1:0".parse().expect("address"), &UdpOptions::default());
        let (device, far) = (any().expect("socket"), any().expect("socket"));
        rustix::net::connect(device.fd(), &far.local_addr()).expect("connected");
        socket::cut_writes(device.fd().as_fd(), PIECE).expect("UDP_SEGMENT");
        let offloads = Offloads { checksum: true, tso: true, uso: true, bare: false };
        let port = egress.add_device(device.fd().clone(), offloads).expect("port");
        let written = VIRTIO_HEADER + flows::INNER + LEN;
        let mut batch = ReceiveBatch::new(64, RECEIVE_LEN);
        let mut arrived = Vec::new();
        for round in 0..ROUNDS {
            for number in round * ROUND..(round + 1) * ROUND {
                egress.deliver(port, &flows::mergeable_packet(7, number, LEN));
            }
            // All of it fits into a receive buffer.
            let all = (round + 1) * ROUND * written as u64;
            let arrives = || {
                let flushed = egress.flush(now()).expect("flush") == Flush::Done;
                while far.receive_batch(&mut batch).is_ok_and(|count| count > 0) {
                    batch.iter_mut().for_each(|arrival| arrived.extend_from_slice(arrival.bytes));
                }
                flushed && arrived.len() as u64 >= all
            };
            assert!(wait_until(Duration::from_secs(10), arrives), "{design:?}: {} bytes", arrived.len());
        }
        let stats = egress.close();
        ledger::check_causes(&stats, &[]);
        assert_eq!((stats.offered, stats.sent), (ROUNDS * ROUND, ROUNDS * ROUND), "{design:?}");
        assert_eq!(arrived.len() as u64, ROUNDS * ROUND * written as u64, "{design:?}");
        // What was taken apart has numbers of its own in its headers.
        let mut tally = flows::Tally::default();
        arrived.chunks(written).for_each(|packet| tally.note(&packet[VIRTIO_HEADER + flows::INNER..]));
        tally.check();
        assert_eq!(tally.total(), ROUNDS * ROUND, "{design:?}");
        if design.keeps(Rule::Superpackets) {
            // The writer thread may have filled more slots before it met the refusal.
            let most = if design == Design::Threaded { ROUND } else { 1 };
            assert!((1..=most).contains(&stats.gso_fallbacks), "{design:?}: {stats:?}");
            assert!((2..=most * ROUND).contains(&stats.resent), "{design:?}: {stats:?}");
        }
    }
}

#[test]
fn a_device_that_refuses_superpackets_loses_nothing_and_gets_no_more() {
    for design in DESIGNS {
        run(design, true, &DeviceWithoutSuperpackets);
    }
}

/// Gives the loopback interface the MTU of an Ethernet.
fn narrow_loopback() {
    let mut handle = dataplane::netlink::Handle::open().expect("netlink");
    let loopback = handle.link_index("lo").expect("lo");
    handle.set_mtu(loopback, 1_500).expect("mtu");
}

#[test]
fn a_superpacket_above_the_mtu_goes_one_by_one() {
    in_namespace("a_superpacket_above_the_mtu_goes_one_by_one", || {
        narrow_loopback();
        DESIGNS.into_iter().for_each(|design| run(design, true, &AboveMtu));
    });
}
