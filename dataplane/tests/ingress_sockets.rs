//! Both ingress implementations on real sockets over loopback: superpackets, pause and resume, removal, write-readiness,
//! exhausted buffers, extreme sizes, and the kernel's drop counter.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use dataplane::ingress::{Epoll, Ingress, Meta, Received, Source, Token, UringIngress};
use dataplane::sys::udp::{UdpOptions, UdpSocket};
use support::flows::{self, MIN_LEN, Tally};
use support::here::{has_io_uring, now, wait_until};

/// A test of any ingress.
trait Scenario {
    fn run<I: Ingress>(&self, ingress: I);
}

macro_rules! suite {
    ($($test:ident: $scenario:ident,)*) => {
        mod epoll {
            $(#[test]
            fn $test() {
                super::Scenario::run(&super::$scenario, super::Epoll::new().expect("epoll"));
            })*
        }
        mod uring {
            $(#[test]
            fn $test() {
                if super::has_io_uring() {
                    super::Scenario::run(&super::$scenario, super::UringIngress::new(false).expect("ring"));
                }
            })*
        }
    };
}

suite! {
    superpackets_arrive_whole_and_in_order: Superpackets,
    ecn_bits_are_told_where_they_are_asked_for: Ecn,
    a_paused_source_is_not_read: Paused,
    a_paused_device_keeps_what_it_has: PausedDevice,
    what_was_read_is_handed_over_at_the_end: Finished,
    a_removed_source_is_silent: Removed,
    a_source_removed_at_once_takes_nothing_from_the_next: RemovedAtOnce,
    write_readiness_wakes: Writable,
    a_slow_handler_loses_nothing_unseen: SlowHandler,
    the_shortest_and_the_longest_datagram_arrive: Extremes,
    what_the_kernel_drops_is_reported: KernelDrops,
    what_icmp_says_is_reported_beside_the_data: IcmpErrors,
    a_storm_of_icmp_holds_up_no_data: IcmpStorm,
    readiness_is_reported: Ready,
    a_stream_is_reported_readable_and_writable: Stream,
    a_poll_returns_when_its_time_is_up: TimesOut,
}

const TOKEN: Token = Token(7);

fn socket(options: &UdpOptions) -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0".parse().expect("address"), options).expect("socket")
}

fn pair() -> (UdpSocket, UdpSocket) {
    (socket(&UdpOptions::default()), socket(&UdpOptions::default()))
}

fn send(sender: &UdpSocket, receiver: &UdpSocket, bytes: &[u8]) {
    sender.send_segments(receiver.local_addr(), None, 0, bytes, bytes.len()).expect("sent");
}

fn poll(ingress: &mut impl Ingress, milliseconds: u64, mut handler: impl FnMut(Received<'_>)) {
    ingress.poll(Some(Duration::from_millis(milliseconds)), &mut handler).expect("poll");
}

/// Polls until `done` datagrams have been counted by the handler, for two seconds at most.
fn poll_until(ingress: &mut impl Ingress, expected: usize, mut handler: impl FnMut(Received<'_>) -> usize) {
    let mut count = 0;
    let all = wait_until(Duration::from_secs(5), || {
        poll(ingress, 10, |received| count += handler(received));
        count >= expected
    });
    assert!(all, "{count} of {expected} datagrams, {:?}", ingress.stats());
}

struct Superpackets;

impl Scenario for Superpackets {
    fn run<I: Ingress>(&self, mut ingress: I) {
        let (sender, receiver) = pair();
        ingress.add(receiver.fd().clone(), TOKEN, Source::Udp).expect("added");
        let (mut tally, mut superpackets, mut number) = (Tally::default(), 0, 0);
        for _ in 0..50 {
            let mut bytes = vec![0; 40 * 1_000 + 300];
            for segment in bytes.chunks_mut(1_000) {
                flows::write(segment, 1, number);
                number += 1;
            }
            sender.send_segments(receiver.local_addr(), None, 0, &bytes, 1_000).expect("sent");
            poll_until(&mut ingress, 41, |received| {
                let Meta::Udp { from, to, segment_size, .. } = received.meta else {
                    panic!("{:?}", received.meta)
                };
                assert_eq!((received.token, from), (TOKEN, sender.local_addr()));
                assert_eq!(to, Some(receiver.local_addr().ip()));
                superpackets += 1;
                Received::segments(received.bytes, segment_size).map(|segment| tally.note(segment)).count()
            });
        }
        tally.check();
        assert_eq!(tally.total(), number);
        let stats = ingress.stats();
        assert_eq!((stats.packets, stats.superpackets), (number, superpackets));
        assert!(superpackets < number / 10, "no superpackets: {stats:?}");
    }
}

struct Ecn;

impl Scenario for Ecn {
    fn run<I: Ingress>(&self, mut ingress: I) {
        for (number, (loopback, asks)) in
            [("127.0.0.1:0", true), ("127.0.0.1:0", false), ("[::1]:0", true)].into_iter().enumerate()
        {
            let bind = |ecn| {
                let options = UdpOptions { ecn, ..UdpOptions::default() };
                UdpSocket::bind(loopback.parse().expect("address"), &options).expect("socket")
            };
            let (sender, receiver) = (bind(false), bind(asks));
            let token = Token(number as u32);
            ingress.add(receiver.fd().clone(), token, Source::Udp).expect("added");
            // A superpacket with every class; the DSCP beside the bits is not told.
            for class in [0, 1, 2, 3, 0xb8 | 2] {
                sender
                    .send_segments(receiver.local_addr(), None, class, &[class; 3_000], 1_000)
                    .expect("sent");
            }
            poll_until(&mut ingress, 15, |received| {
                let Meta::Udp { to, segment_size, ecn, .. } = received.meta else { panic!("meta") };
                assert_eq!((received.token, to), (token, Some(receiver.local_addr().ip())));
                let class = received.bytes[0];
                assert!(received.bytes.iter().all(|&byte| byte == class), "classes in one superpacket");
                assert_eq!(ecn, if asks { class & 3 } else { 0 });
                Received::segments(received.bytes, segment_size).count()
            });
        }
    }
}

struct Paused;

impl Scenario for Paused {
    fn run<I: Ingress>(&self, mut ingress: I) {
        let (sender, receiver) = pair();
        ingress.add(receiver.fd().clone(), TOKEN, Source::Udp).expect("added");
        send(&sender, &receiver, b"before");
        poll_until(&mut ingress, 1, |_| 1);
        for _ in 0..20 {
            ingress.set_reading(TOKEN, false);
            poll(&mut ingress, 1, |received| panic!("{received:?} though paused"));
            send(&sender, &receiver, b"meanwhile");
            poll(&mut ingress, 1, |received| panic!("{received:?} though paused"));
            ingress.set_reading(TOKEN, true);
            poll_until(&mut ingress, 1, |received| {
                assert_eq!(received.bytes, b"meanwhile");
                1
            });
            // Paused and resumed between two polls, and the other way round: as if nothing had been.
            ingress.set_reading(TOKEN, false);
            ingress.set_reading(TOKEN, true);
            send(&sender, &receiver, b"again");
            poll_until(&mut ingress, 1, |_| 1);
            ingress.set_reading(TOKEN, false);
            ingress.set_reading(TOKEN, true);
            ingress.set_reading(TOKEN, false);
            poll(&mut ingress, 1, |received| panic!("{received:?} though paused"));
            send(&sender, &receiver, b"late");
            poll(&mut ingress, 1, |received| panic!("{received:?} though paused"));
            ingress.set_reading(TOKEN, true);
            poll_until(&mut ingress, 1, |_| 1);
        }
    }
}

/// More is read from a device than one poll hands over; once it is paused, nothing more comes until it is resumed, and
/// then in order. A pipe in packet mode stands for the device.
struct PausedDevice;

impl Scenario for PausedDevice {
    fn run<I: Ingress>(&self, mut ingress: I) {
        let (reader, _writer) = device();
        ingress.add_borrowed(reader.as_fd(), TOKEN, Source::Tun).expect("added");
        let mut expected = 0..PACKETS;
        let mut next = |received: Received<'_>| {
            let number = expected.next().expect("no more than were written");
            assert_eq!((received.meta, &received.bytes[..4]), (Meta::Tun, &number.to_be_bytes()[..]));
            1
        };
        poll(&mut ingress, 100, |received| assert_eq!(next(received), 1));
        ingress.set_reading(TOKEN, false);
        (0..5).for_each(|_| poll(&mut ingress, 1, |_| panic!("read though paused")));
        ingress.set_reading(TOKEN, true);
        poll_until(&mut ingress, PACKETS as usize - 16, next);
    }
}

/// Packets in a [`device`], of 4,096 bytes: four times what one poll hands over.
const PACKETS: u32 = 64;

/// A pipe in packet mode, which stands for a device, with numbered packets in it.
fn device() -> (OwnedFd, OwnedFd) {
    let flags = rustix::pipe::PipeFlags::DIRECT | rustix::pipe::PipeFlags::NONBLOCK;
    let (reader, writer) = rustix::pipe::pipe_with(flags).expect("pipe");
    rustix::pipe::fcntl_setpipe_size(&writer, 1 << 20).expect("room");
    for number in 0..PACKETS {
        rustix::io::write(&writer, &[number.to_be_bytes(); 1024].concat()).expect("written");
    }
    (reader, writer)
}

/// At the end, what has been read is handed over, paused or not, and the rest is left where it is.
struct Finished;

impl Scenario for Finished {
    fn run<I: Ingress>(&self, mut ingress: I) {
        let (reader, _writer) = device();
        ingress.add_borrowed(reader.as_fd(), TOKEN, Source::Tun).expect("added");
        let mut expected = 0..PACKETS;
        let mut next = |received: Received<'_>| {
            let number = expected.next().expect("no more than were written");
            assert_eq!(received.bytes[..4], number.to_be_bytes());
        };
        poll(&mut ingress, 100, &mut next);
        ingress.set_reading(TOKEN, false);
        while ingress.finish(&mut next).expect("finished") {}
        let mut bytes = [0; 4096];
        for number in expected {
            rustix::io::read(&reader, &mut bytes).expect("what nobody has read");
            assert_eq!(bytes[..4], number.to_be_bytes());
        }
        assert!(rustix::io::read(&reader, &mut bytes).is_err(), "it was handed over and is still there");
    }
}

struct Removed;

impl Scenario for Removed {
    fn run<I: Ingress>(&self, mut ingress: I) {
        let (sender, receiver) = pair();
        ingress.add(receiver.fd().clone(), TOKEN, Source::Udp).expect("added");
        poll(&mut ingress, 1, |_| {});
        send(&sender, &receiver, b"unread");
        ingress.remove(TOKEN);
        send(&sender, &receiver, b"unread");
        for _ in 0..5 {
            poll(&mut ingress, 2, |received| panic!("{received:?} of a removed source"));
        }
        // The same token for another socket gets only what is sent to that one.
        let next = socket(&UdpOptions::default());
        ingress.add(next.fd().clone(), TOKEN, Source::Udp).expect("added");
        send(&sender, &next, b"next");
        poll_until(&mut ingress, 1, |received| {
            assert_eq!(received.bytes, b"next");
            1
        });
        ingress.remove(TOKEN);
        ingress.remove(TOKEN);
    }
}

/// A receive that was armed but never submitted must not come to life on another file of the same number.
struct RemovedAtOnce;

impl Scenario for RemovedAtOnce {
    fn run<I: Ingress>(&self, mut ingress: I) {
        let sender = socket(&UdpOptions::default());
        for round in 0..50u32 {
            let first = socket(&UdpOptions::default());
            ingress.add(first.fd().clone(), Token(round * 2), Source::Udp).expect("added");
            ingress.wake_when_writable(Token(round * 2));
            ingress.remove(Token(round * 2));
            drop(first);
            let second = socket(&UdpOptions::default());
            ingress.add(second.fd().clone(), Token(round * 2 + 1), Source::Udp).expect("added");
            for _ in 0..3 {
                send(&sender, &second, b"mine");
            }
            poll_until(&mut ingress, 3, |received| {
                assert_eq!(received.token, Token(round * 2 + 1));
                let Meta::Udp { segment_size, .. } = received.meta else { panic!("meta") };
                received.bytes.len() / segment_size
            });
            ingress.remove(Token(round * 2 + 1));
        }
    }
}

struct Writable;

impl Scenario for Writable {
    fn run<I: Ingress>(&self, mut ingress: I) {
        let (_, receiver) = pair();
        ingress.add(receiver.fd().clone(), TOKEN, Source::Udp).expect("added");
        poll(&mut ingress, 1, |_| {});
        for _ in 0..3 {
            ingress.wake_when_writable(TOKEN);
            ingress.wake_when_writable(TOKEN);
            let start = now();
            poll(&mut ingress, 5_000, |received| panic!("{received:?}"));
            assert!(now() - start < Duration::from_secs(2), "nobody woke us");
            // Once is once: the next poll waits.
            let start = now();
            poll(&mut ingress, 20, |received| panic!("{received:?}"));
            assert!(now() - start >= Duration::from_millis(15), "woken twice");
        }
    }
}

/// Fewer provided buffers than packets waiting: the receive ends and is armed again.
struct SlowHandler;

impl Scenario for SlowHandler {
    fn run<I: Ingress>(&self, mut ingress: I) {
        const PACKETS: u64 = 100_000;
        let (sender, receiver) =
            (socket(&UdpOptions::default()), socket(&UdpOptions { gro: false, ..UdpOptions::default() }));
        ingress.add(receiver.fd().clone(), TOKEN, Source::Udp).expect("added");
        let (mut tally, mut bytes) = (Tally::default(), vec![0; 50 * 200]);
        for first in (0..PACKETS).step_by(1_000) {
            // A thousand at once, while nobody polls; without GRO each takes a buffer.
            for start in (first..first + 1_000).step_by(50) {
                for (segment, number) in bytes.chunks_mut(200).zip(start..) {
                    flows::write(segment, 1, number);
                }
                sender.send_segments(receiver.local_addr(), None, 0, &bytes, 200).expect("sent");
            }
            let before = (tally.total(), ingress.stats().kernel_drops_skbs);
            wait_until(Duration::from_secs(5), || {
                poll(&mut ingress, 1, |received| tally.note(received.bytes));
                tally.total() - before.0 + ingress.stats().kernel_drops_skbs - before.1 >= 1_000
            });
        }
        // Drops show with the next datagram only.
        flows::write(&mut bytes[..MIN_LEN], 1, PACKETS);
        send(&sender, &receiver, &bytes[..MIN_LEN]);
        poll_until(&mut ingress, 1, |received| {
            tally.note(received.bytes);
            1
        });
        tally.check();
        let stats = ingress.stats();
        assert_eq!(tally.total() + stats.kernel_drops_skbs, PACKETS + 1, "lost without a word: {stats:?}");
        assert_eq!((stats.truncated, stats.errors), (0, 0));
        assert!(tally.total() > PACKETS / 10, "{stats:?}");
    }
}

#[test]
fn exhausted_buffers_are_armed_again() {
    if !has_io_uring() {
        return;
    }
    let mut ingress = UringIngress::new(false).expect("ring");
    let (sender, receiver) =
        (socket(&UdpOptions::default()), socket(&UdpOptions { gro: false, ..UdpOptions::default() }));
    ingress.add(receiver.fd().clone(), TOKEN, Source::Udp).expect("added");
    poll(&mut ingress, 1, |_| {});
    for round in 0..10 {
        (0..100u8).for_each(|number| send(&sender, &receiver, &[round, number]));
        let mut expected = 0..100u8;
        poll_until(&mut ingress, 100, |received| {
            assert_eq!(received.bytes, [round, expected.next().expect("no more than were sent")]);
            1
        });
    }
    assert!(ingress.stats().rearmed >= 10, "{:?}", ingress.stats());
}

struct Extremes;

impl Scenario for Extremes {
    fn run<I: Ingress>(&self, mut ingress: I) {
        let (sender, receiver) = pair();
        ingress.add(receiver.fd().clone(), TOKEN, Source::Udp).expect("added");
        for len in [0, 1, 65_507, 0, 65_507] {
            let bytes = vec![0x5a; len];
            send(&sender, &receiver, &bytes);
            poll_until(&mut ingress, 1, |received| {
                let Meta::Udp { segment_size, .. } = received.meta else { panic!("meta") };
                assert_eq!((received.bytes.len(), segment_size), (len, len));
                assert!(received.bytes.iter().all(|&byte| byte == 0x5a));
                Received::segments(received.bytes, segment_size).count()
            });
        }
        assert_eq!((ingress.stats().packets, ingress.stats().truncated), (5, 0));
    }
}

struct KernelDrops;

impl Scenario for KernelDrops {
    fn run<I: Ingress>(&self, mut ingress: I) {
        let sender = socket(&UdpOptions::default());
        let receiver = socket(&UdpOptions { receive_buffer: 8_192, gro: false, ..UdpOptions::default() });
        (0..500).for_each(|_| send(&sender, &receiver, &[1; 500]));
        ingress.add(receiver.fd().clone(), TOKEN, Source::Udp).expect("added");
        let mut arrived = 0;
        (0..20).for_each(|_| poll(&mut ingress, 1, |_| arrived += 1));
        send(&sender, &receiver, &[1; 500]);
        poll_until(&mut ingress, 1, |_| 1);
        assert!(arrived < 500, "the buffer was to be too small");
        assert_eq!(arrived + ingress.stats().kernel_drops_skbs, 500);
    }
}

struct Ready;

impl Scenario for Ready {
    fn run<I: Ingress>(&self, mut ingress: I) {
        let (reader, writer) = rustix::pipe::pipe().expect("pipe");
        ingress.add_borrowed(reader.as_fd(), TOKEN, Source::Ready).expect("added");
        poll(&mut ingress, 1, |received| panic!("{received:?}"));
        for _ in 0..3 {
            rustix::io::write(&writer, b"x").expect("written");
            poll_until(&mut ingress, 1, |received| {
                assert_eq!((received.token, received.meta), (TOKEN, Meta::Ready));
                rustix::io::read(&reader, &mut [0; 1]).expect("readable")
            });
        }
    }
}

/// A TCP connection: readable again and again until it is read, silent while paused, writable once when asked for, and
/// heard of when the other end resets it.
struct Stream;

impl Scenario for Stream {
    fn run<I: Ingress>(&self, mut ingress: I) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
        let mut far = TcpStream::connect(listener.local_addr().expect("address")).expect("connected");
        let (mut near, _) = listener.accept().expect("accepted");
        near.set_nonblocking(true).expect("non-blocking");
        ingress.add_borrowed(near.as_fd(), TOKEN, Source::Ready).expect("added");
        far.write_all(b"ab").expect("written");
        let readable = |received: Received<'_>| usize::from(received.meta == Meta::Ready);
        (0..3).for_each(|_| poll_until(&mut ingress, 1, readable));
        near.read_exact(&mut [0; 1]).expect("a");
        poll_until(&mut ingress, 1, readable);
        ingress.set_reading(TOKEN, false);
        (0..3).for_each(|_| poll(&mut ingress, 2, |received| panic!("{received:?} though paused")));
        ingress.set_reading(TOKEN, true);
        poll_until(&mut ingress, 1, readable);
        near.read_exact(&mut [0; 1]).expect("b");
        poll(&mut ingress, 2, |_| {});

        let mut written = 0;
        while let Ok(len) = near.write(&[7; 65_536]) {
            written += len;
        }
        ingress.wake_when_writable(TOKEN);
        (0..3).for_each(|_| poll(&mut ingress, 2, |received| panic!("{received:?} though it is full")));
        far.read_exact(&mut vec![0; written]).expect("all of it");
        poll_until(&mut ingress, 1, |received| {
            assert_eq!((received.token, received.meta), (TOKEN, Meta::Writable));
            1
        });
        poll(&mut ingress, 5, |received| panic!("{received:?} was asked for once"));

        // Unread input makes the close a reset.
        near.write_all(b"c").expect("there is room");
        far.set_nonblocking(true).expect("non-blocking");
        assert!(wait_until(Duration::from_secs(5), || far.peek(&mut [0; 1]).is_ok()));
        drop(far);
        poll_until(&mut ingress, 1, readable);
        assert!(near.read(&mut [0; 1]).is_err(), "it was reset");
    }
}

struct TimesOut;

impl Scenario for TimesOut {
    fn run<I: Ingress>(&self, mut ingress: I) {
        let (_, receiver) = pair();
        ingress.add(receiver.fd().clone(), TOKEN, Source::Udp).expect("added");
        for _ in 0..3 {
            let start = now();
            poll(&mut ingress, 20, |received| panic!("{received:?}"));
            assert!((15..2_000).contains(&(now() - start).as_millis()));
        }
    }
}

/// A socket that hears of ICMP errors, and an address where nobody listens.
fn hearing() -> (UdpSocket, std::net::SocketAddr) {
    let hearing = socket(&UdpOptions { errors: true, ..UdpOptions::default() });
    (hearing, socket(&UdpOptions::default()).local_addr())
}

struct IcmpErrors;

impl Scenario for IcmpErrors {
    fn run<I: Ingress>(&self, mut ingress: I) {
        let (subject, closed) = hearing();
        let other = socket(&UdpOptions::default());
        ingress.add(subject.fd().clone(), TOKEN, Source::UdpWithErrors).expect("added");
        for round in 0..50 {
            subject.send_segments(closed, None, 0, b"x", 1).expect("sent");
            if round % 2 == 0 {
                // A send that meets the error first, and takes it away from the next receive, hides it from nobody.
                let met = subject.send_segments(other.local_addr(), None, 0, b"x", 1).expect_err("pending");
                assert_eq!(met.kind(), std::io::ErrorKind::ConnectionRefused);
            }
            send(&other, &subject, b"data");
            let (mut errors, mut data) = (0, 0);
            poll_until(&mut ingress, 2, |received| {
                match received.meta {
                    Meta::Icmp(error) => {
                        assert_eq!((error.about, error.kind, error.code, error.info), (closed, 3, 3, 0));
                        errors += 1;
                    }
                    Meta::Udp { from, .. } => {
                        assert_eq!((from, &*received.bytes), (other.local_addr(), &b"data"[..]));
                        data += 1;
                    }
                    meta => panic!("{meta:?}"),
                }
                1
            });
            assert_eq!((errors, data), (1, 1), "round {round}");
            // Nothing is left that would fail a send or keep the loop awake.
            subject.send_segments(other.local_addr(), None, 0, b"x", 1).expect("free of errors");
            poll(&mut ingress, 1, |received| panic!("{received:?}"));
        }
        let calls = ingress.stats().system_calls;
        poll(&mut ingress, 20, |received| panic!("{received:?}"));
        assert!(ingress.stats().system_calls <= calls + 3, "it sleeps when nothing comes");
        ingress.remove(TOKEN);
        subject.send_segments(closed, None, 0, b"x", 1).expect("sent");
        poll(&mut ingress, 5, |received| panic!("{received:?} though removed"));
    }
}

struct IcmpStorm;

impl Scenario for IcmpStorm {
    fn run<I: Ingress>(&self, mut ingress: I) {
        let (subject, closed) = hearing();
        let other = socket(&UdpOptions::default());
        ingress.add(subject.fd().clone(), TOKEN, Source::UdpWithErrors).expect("added");
        let (mut errors, mut data) = (0, 0);
        let mut count = |received: Received<'_>| match received.meta {
            Meta::Icmp(_) => errors += 1,
            Meta::Udp { .. } => data += 1,
            meta => panic!("{meta:?}"),
        };
        for _ in 0..100 {
            for _ in 0..10 {
                // Every second one meets the error of the one before it instead of leaving.
                let _ = subject.send_segments(closed, None, 0, b"x", 1);
            }
            send(&other, &subject, b"data");
            poll(&mut ingress, 10, &mut count);
        }
        wait_until(Duration::from_secs(1), || {
            let mut quiet = true;
            poll(&mut ingress, 1, |received| {
                quiet = false;
                count(received);
            });
            quiet
        });
        assert_eq!((errors, data), (500, 100), "{:?}", ingress.stats());
    }
}
