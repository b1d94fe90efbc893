//! Busy sockets and dead neighbours, on real sockets between two network namespaces.
//!
//! `TOWPATH_TEST_PACKETS=1000000 cargo test -p dataplane --release --test conformance_busy` sends a million packets for
//! each number of dead neighbours instead of a hundred thousand.

#![expect(clippy::print_stdout, reason = "the figures are for whoever reads a test's output")]

mod support;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use dataplane::drops::Cause;
use dataplane::egress::{Class, Egress, Flush, Port, Target};
use dataplane::netlink::Handle;
use dataplane::sys::tun::{Tun, TunOptions};
use dataplane::sys::udp::{UdpOptions, UdpSocket};
use support::designs::{Design, Rule, Scenario, Subject, run};
use support::flows::{self, Sink};
use support::here::{in_namespace, lacks, now, wait_until};
use support::ledger;

const LEN: usize = 1_000;
const BATCH: u64 = 64;
/// What an unresolved neighbour may hold of a send buffer, in bytes.
const HELD: usize = 212_992;
/// What sixteen of them may hold, and room besides.
const SEND_BUFFER: usize = 4 << 20;

/// A veth pair, its far end in a namespace of its own with a sink.
struct Path {
    sink: Sink,
    /// Takes what goes to live neighbours, and is never read.
    _others: UdpSocket,
}

impl Path {
    fn new() -> Self {
        let mut near = Handle::open().expect("netlink");
        let (left, right) = near.add_veth("left", "right").expect("veth");
        let (namespaces, namespace) = std::sync::mpsc::channel();
        let (go, wait) = std::sync::mpsc::channel();
        let far = std::thread::spawn(move || {
            dataplane::sys::namespace::unshare_net().expect("a namespace in a namespace");
            namespaces
                .send(std::fs::File::open("/proc/thread-self/ns/net").expect("namespace"))
                .expect("sent");
            wait.recv().expect("moved");
            let mut handle = Handle::open().expect("netlink");
            let right = handle.link_index("right").expect("right");
            handle.add_address(right, "10.9.0.200/24".parse().expect("address")).expect("added");
            for neighbour in 0..NEIGHBOURS_MAX {
                let address = format!("10.9.0.{}/24", LIVE + neighbour);
                handle.add_address(right, address.parse().expect("address")).expect("added");
            }
            handle.set_up(right).expect("up");
            (Sink::new("10.9.0.200:7000"), socket_at(&format!("0.0.0.0:{OTHERS_PORT}"), 1))
        });
        near.move_to_namespace(right, namespace.recv().expect("namespace").as_fd()).expect("moved");
        go.send(()).expect("told");
        near.add_address(left, "10.9.0.1/24".parse().expect("address")).expect("added");
        near.set_up(left).expect("up");
        let (sink, others) = far.join().expect("far");
        // The first datagram waits for the neighbour to be resolved. It belongs to a flow of its own.
        let mut bytes = [0; 20];
        flows::write(&mut bytes, u32::MAX, 0);
        socket(SEND_BUFFER).send_segments(sink.address(), None, 0, &bytes, 20).expect("sent");
        assert!(wait_until(Duration::from_secs(3), || sink.arrived() == 1), "the path is dead");
        Self { sink, _others: others }
    }

    fn target(&self, port: Port) -> Target {
        Target { port, to: self.sink.address(), from: None, traffic_class: 0, dont_fragment: false }
    }
}

fn socket(send_buffer: usize) -> UdpSocket {
    let options = UdpOptions { send_buffer, ..UdpOptions::default() };
    UdpSocket::bind("0.0.0.0:0".parse().expect("address"), &options).expect("socket")
}

fn socket_at(address: &str, receive_buffer: usize) -> UdpSocket {
    let options = UdpOptions { receive_buffer, ..UdpOptions::default() };
    UdpSocket::bind(address.parse().expect("address"), &options).expect("socket")
}

fn append(egress: &mut impl Egress, target: &Target, flow: u32, number: u64) {
    egress.append(target, LEN, Class::Data, |bytes| {
        flows::write(bytes, flow, number);
        true
    });
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Neighbours that take one packet in ten, and which.
#[derive(Clone, Copy)]
enum Others {
    /// Nobody answers for their addresses.
    Dead(u8),
    /// As many that answer: the same operations, so that only the deaths differ.
    Live(u8),
}

/// Last number of the address of the first dead neighbour, and of the first live one.
const DEAD: u8 = 2;
const LIVE: u8 = 100;
const NEIGHBOURS_MAX: u8 = 16;
const OTHERS_PORT: u16 = 7_009;

impl Others {
    /// The neighbour that packet number `turn` goes to.
    fn address(self, turn: u64) -> std::net::SocketAddr {
        let (first, count) = match self {
            Self::Dead(count) => (DEAD, count),
            Self::Live(count) => (LIVE, count),
        };
        ([10, 9, 0, first + (turn % u64::from(count)) as u8], OTHERS_PORT).into()
    }
}

/// Healthy flows beside neighbours that take one packet in ten.
struct Traffic<'a, E> {
    egress: &'a mut E,
    path: &'a Path,
    /// Two sockets with healthy flows.
    healthy: [Port; 2],
    /// Where the packets for the other neighbours leave.
    others: [Port; 2],
    numbers: [u64; 4],
    sent: u64,
}

impl<E: Subject> Traffic<'_, E> {
    /// Sends `packets` healthy packets, beside them those for `others`, and answers the healthy rate at the sink, per
    /// second. With a pace, healthy packets leave by that clock and not faster.
    fn send(&mut self, packets: u64, others: Others, pace: Option<f64>) -> f64 {
        let start = now();
        for first in (0..packets).step_by(BATCH as usize) {
            if let Some(pace) = pace {
                wait_for(start + Duration::from_secs_f64(first as f64 / pace));
            }
            for index in first..packets.min(first + BATCH) {
                let flow = index as usize % 4;
                append(
                    self.egress,
                    &self.path.target(self.healthy[flow % 2]),
                    flow as u32,
                    self.numbers[flow],
                );
                self.numbers[flow] += 1;
                self.sent += 1;
                if index % 9 == 0 {
                    let port = self.others[index as usize / 9 % 2];
                    let to = others.address(index / 9);
                    append(
                        self.egress,
                        &Target { port, to, from: None, traffic_class: 0, dont_fragment: false },
                        99,
                        index,
                    );
                }
            }
            while self.egress.flush(now()).expect("flush") != Flush::Done {
                std::thread::sleep(Duration::from_micros(200));
            }
            let arriving = || self.path.sink.arrived() + self.path.sink.window() > self.sent;
            assert!(wait_until(Duration::from_secs(5), arriving), "healthy packets are lost");
        }
        let all = || self.path.sink.arrived() > self.sent;
        assert!(wait_until(Duration::from_secs(5), all), "healthy packets are lost");
        packets as f64 / (now() - start).as_secs_f64()
    }
}

fn wait_for(time: Instant) {
    let left = time.saturating_duration_since(now());
    if left > Duration::ZERO {
        std::thread::sleep(left);
    }
}

struct DeadNeighbours {
    same_socket: bool,
}

impl Scenario for DeadNeighbours {
    fn run<E: Subject>(&self, mut egress: E, design: Design) {
        let wanted = std::env::var("TOWPATH_TEST_PACKETS").ok().and_then(|text| text.parse().ok());
        let packets: u64 = wanted.unwrap_or(100_000);
        let path = Path::new();
        let sockets: [UdpSocket; 4] = std::array::from_fn(|_| socket(SEND_BUFFER));
        let granted = rustix::net::sockopt::socket_send_buffer_size(sockets[0].fd()).expect("SO_SNDBUF");
        let large = "a send buffer of 4 MiB: root, or `sysctl net.core.wmem_max=4194304`";
        if self.same_socket && granted < SEND_BUFFER {
            return lacks(large);
        }
        let ports = sockets.each_ref().map(|socket| egress.add_socket(socket.fd().clone()).expect("port"));
        let healthy = [ports[0], ports[1]];
        let others = if self.same_socket { healthy } else { [ports[2], ports[3]] };
        let mut traffic =
            Traffic { egress: &mut egress, path: &path, healthy, others, numbers: [0; 4], sent: 0 };
        for neighbours in [1, 4, NEIGHBOURS_MAX] {
            // They are dealt out to two sockets. Such a socket is busy for seconds if it holds less than they do: what waits
            // for it then expires.
            if granted < usize::from(neighbours).div_ceil(2) * HELD {
                lacks(large);
                break;
            }
            let kept = keeps_its_rate(&mut traffic, packets, neighbours);
            assert!(kept, "{design:?}: {neighbours} dead neighbours slow healthy flows down");
        }
        let sent = traffic.sent;
        let stats = egress.close();
        ledger::check(&stats, 0);
        ledger::check_causes(&stats, &[]);
        path.sink.finish(sent + 1);
    }
}

/// Attempts that count.
const ATTEMPTS: u32 = 4;
/// Attempts in all: a minute of them, on a machine that is never steady.
const ATTEMPTS_MAX: u32 = 40;

/// Whether the healthy rate is the same with dead neighbours. The machine may be doing something else, so that one attempt
/// proves nothing, and one in which the rate with live neighbours was not kept either does not count. Losses and order
/// are judged in all of them.
fn keeps_its_rate<E: Subject>(traffic: &mut Traffic<'_, E>, packets: u64, dead: u8) -> bool {
    let mut counted = 0;
    for _ in 0..ATTEMPTS_MAX {
        let (ratio, steady) = compare(traffic, packets, dead);
        if !steady {
            continue;
        }
        if ratio >= 0.95 {
            return true;
        }
        counted += 1;
        if counted == ATTEMPTS {
            break;
        }
    }
    false
}

/// The healthy rate with dead neighbours over the one with as many live ones in their place, both offered at 80 % of what
/// was possible a moment before with the live ones. Beside it, whether the rate with the live ones was the one offered.
fn compare<E: Subject>(traffic: &mut Traffic<'_, E>, packets: u64, neighbours: u8) -> (f64, bool) {
    let (dead, live) = (Others::Dead(neighbours), Others::Live(neighbours));
    let pace = traffic.send(packets / 4, live, None) * 0.8;
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..3 {
        rates[0].push(traffic.send(packets * 3 / 10, live, Some(pace)));
        rates[1].push(traffic.send(packets * 3 / 10, dead, Some(pace)));
    }
    let [without, with] = rates.map(median);
    println!("{neighbours} dead neighbours: {with:.0} packets a second, {without:.0} with live ones");
    (with / without, without >= pace * 0.95)
}

/// Each of these fills both cores: side by side they disturb one another.
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[test]
fn dead_neighbours_on_the_same_socket_cost_healthy_flows_nothing() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    in_namespace("dead_neighbours_on_the_same_socket_cost_healthy_flows_nothing", || {
        run(Design::UringThread, true, &DeadNeighbours { same_socket: true });
    });
}

#[test]
fn dead_neighbours_on_other_sockets_cost_healthy_flows_nothing() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    in_namespace("dead_neighbours_on_other_sockets_cost_healthy_flows_nothing", || {
        run(Design::UringThread, true, &DeadNeighbours { same_socket: false });
    });
}

/// Bytes a second of the bottleneck: 100 Mbit/s.
const RATE: u32 = 12_500_000;
/// What it queues: more than the send buffer, so that the socket is busy before the queue drops.
const LIMIT: u32 = 16 << 20;
/// The kernel doubles it.
const SMALL_BUFFER: usize = 128 << 10;
/// Packets above what the socket takes: within the bound of the waiting queue, in bytes and in time.
const ABOVE: u64 = 40;
/// Bursts, and more until the machine was calm in one and the socket busy beside the other in one.
const BURSTS: usize = 8;
const BURSTS_MAX: usize = 100;

/// A TUN device behind a token bucket, with the sink at its far end. Not a veth pair: there each core that releases packets
/// has a backlog of its own, and packets of one flow can swap on the way. A loop of sendto(2) through the same bucket and a
/// veth pair saw 2 of 126 runs out of order beside a busy machine, one of them with all threads of the test on one core.
fn bottleneck() -> (Handle, u32, Sink) {
    let mut near = Handle::open().expect("netlink");
    let tun = Tun::open("far", TunOptions::PLAIN).expect("a TUN device");
    let far = near.link_index(tun.name()).expect("far");
    near.add_address(far, "10.9.0.1/24".parse().expect("address")).expect("added");
    // What it queues is what a sink that does not get its turn may leave there.
    near.set_txqueuelen(far, 20_000).expect("a longer queue");
    near.set_up(far).expect("up");
    near.add_tbf(far, RATE, 20_000, LIMIT).expect("tbf");
    (near, far, Sink::device(tun, ([10, 9, 0, 200], 7_000).into()))
}

/// How long whoever moves packets on did not get its turn.
struct Turns<'a> {
    sinks: [&'a Sink; 2],
    flushed: Instant,
    arrived: (u64, Instant),
    longest: Duration,
}

impl<'a> Turns<'a> {
    fn new(sinks: [&'a Sink; 2]) -> Self {
        Self { sinks, flushed: now(), arrived: (0, now()), longest: Duration::ZERO }
    }

    /// Flushes, and notes how long this thread did not; and, while packets were on their way, how long none arrived because
    /// of the bucket's timer or the sinks.
    fn flush<E: Subject>(&mut self, egress: &mut E) -> Flush {
        let flush = egress.flush(now()).expect("flush");
        let (time, arrived) = (now(), self.sinks.iter().map(|sink| sink.arrived()).sum());
        if arrived > self.arrived.0 || arrived >= egress.stats().sent {
            self.arrived = (arrived, time);
        }
        self.longest = self.longest.max(time - self.flushed).max(time - self.arrived.1);
        self.flushed = time;
        flush
    }
}

/// Bursts above a bottleneck.
struct Bottleneck {
    bursts: std::cell::RefCell<Vec<u64>>,
}

impl Scenario for Bottleneck {
    fn run<E: Subject>(&self, mut egress: E, design: Design) {
        let (mut near, far, sink) = bottleneck();
        let (busy, local) = (socket(SMALL_BUFFER), socket(SMALL_BUFFER));
        let other = Sink::new("127.0.0.1:0");
        let port = egress.add_socket(busy.fd().clone()).expect("port");
        let local_port = egress.add_socket(local.fd().clone()).expect("port");
        let target = Target { port, to: sink.address(), from: None, traffic_class: 0, dont_fragment: false };
        let beside = Target {
            port: local_port,
            to: other.address(),
            from: None,
            traffic_class: 0,
            dont_fragment: false,
        };
        let (mut number, mut beside_sent, mut calm, mut beside_busy, mut all_lost) = (0, 0, 0, 0, 0);
        let sized = self.bursts.borrow().len();
        // Only what waits in a queue of its own can run out of time there, and leaves other sockets alone.
        let queues = matches!(design, Design::UringThread | Design::UringInline);
        assert!(!queues || design.keeps(Rule::OthersDoNotNotice), "the table and the test agree");
        for burst in 0..BURSTS_MAX {
            let judged = burst >= BURSTS && calm > 0 && beside_busy > 0;
            if if queues { judged } else { burst == sized } {
                break;
            }
            let before = egress.stats();
            let mut turns = Turns::new([&sink, &other]);
            let planned = self.bursts.borrow().get(burst).copied();
            let mut appended = 0;
            loop {
                (0..16).for_each(|index| append(&mut egress, &target, 1, number + index));
                number += 16;
                appended += 16;
                let flushed = turns.flush(&mut egress);
                if planned.map_or(flushed == Flush::Waiting, |planned| appended + ABOVE >= planned) {
                    break;
                }
                assert!(appended < 10_000, "{design:?}: the socket is never busy");
            }
            (0..ABOVE).for_each(|index| append(&mut egress, &target, 1, number + index));
            number += ABOVE;
            appended += ABOVE;
            (0..10).for_each(|index| append(&mut egress, &beside, 2, beside_sent + index));
            beside_sent += 10;
            // Another socket does not notice: its packets are there while this one is still busy. Most often, that is: the
            // bucket may have caught up at once with what it had not released.
            assert!(wait_until(Duration::from_secs(2), || {
                let flushed = turns.flush(&mut egress);
                let arrived = other.arrived() == beside_sent;
                beside_busy += u32::from(arrived && flushed == Flush::Waiting);
                arrived
            }));
            assert!(wait_until(Duration::from_secs(5), || {
                let flushed = turns.flush(&mut egress);
                egress.reap();
                let stats = egress.stats();
                flushed == Flush::Done && stats.sent + stats.drops.total() == stats.offered
            }));
            let stats = egress.stats();
            let lost = stats.drops.total() - before.drops.total();
            let causes = [Cause::Busy, Cause::EgressExpired];
            assert_eq!(
                lost,
                causes.iter().map(|&cause| stats.drops.get(cause) - before.drops.get(cause)).sum::<u64>()
            );
            all_lost += lost;
            let steady = turns.longest < Duration::from_millis(4);
            // Whoever does not come back to flush, or does not drain, lets packets expire; that is no fault of the design.
            if design.keeps(Rule::BusyIsNoLoss) && (steady || !queues) {
                assert_eq!(lost, 0, "{design:?}: {stats:?}");
                calm += 1;
            }
            if planned.is_none() {
                self.bursts.borrow_mut().push(appended);
            }
            let arrived = || sink.arrived() == stats.sent - beside_sent;
            assert!(wait_until(Duration::from_secs(5), arrived), "{design:?}: {stats:?}");
        }
        assert!(!queues || calm > 0, "{design:?}: the machine was never calm");
        assert!(!queues || beside_busy > 0, "{design:?}: the other socket's packets waited for the busy one");
        assert!(all_lost > 0 || design.keeps(Rule::BusyIsNoLoss), "{design:?}: the bursts fill no socket");
        let stats = egress.close();
        ledger::check(&stats, 0);
        println!("{design:?}: {} offered, {:?}", stats.offered, stats.drops.iter().collect::<Vec<_>>());
        sink.finish(stats.sent - beside_sent);
        other.finish(beside_sent);
        assert_eq!(near.qdisc_stats(far).expect("statistics").drops, 0, "the queue itself drops");
    }
}

#[test]
fn a_bottleneck_costs_drop_packets_and_the_others_none() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    in_namespace("a_bottleneck_costs_drop_packets_and_the_others_none", || {
        if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
            return lacks(&format!("/dev/net/tun, open to users (`chmod 0666 /dev/net/tun`): {error}"));
        }
        let scenario = Bottleneck { bursts: std::cell::RefCell::default() };
        // Each in a namespace of its own: the others send the bursts that the first has sized.
        run(Design::UringThread, true, &scenario);
        if scenario.bursts.borrow().is_empty() {
            return;
        }
        for design in [Design::UringInline, Design::Suspend, Design::Threaded, Design::Runtime, Design::Drop]
        {
            dataplane::sys::namespace::unshare_net().expect("another namespace");
            support::here::loopback_up();
            run(design, true, &scenario);
        }
    });
}
