//! Clients over TCP and TLS on a relay that the test turns by hand, in virtual time: timeouts, bounds, slow readers and a
//! new certificate, on both ingress implementations.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::harness::stream::{
    StreamClient, TestCertificate, bare, channel_message, connect, connect_tls, send_indication,
};
use crate::harness::{PASSWORD, REALM, USER, code, peer};
use crate::{harness, left_out};
use dataplane::driver::Application as _;
use dataplane::drops::Cause;
use dataplane::egress::{Direct, Egress as _, WhenBusy};
use dataplane::ingress::{Epoll, Ingress, UringIngress};
use dataplane::stun::channel_data::ChannelNumber;
use dataplane::stun::{AttributeType, Class, Message, Method, TransactionId, Writer};
use dataplane::sys::udp::{UdpOptions, UdpSocket as FastSocket};
use relay::admin::Observer;
use relay::app::Relay;
use relay::app::duties::Duties;
use relay::life::Life;
use relay::secrets::Secrets;
use relay::server::auth::Credentials;
use relay::server::policy::PeerPolicy;
use relay::server::{ChannelNumbers, Server, Settings};
use relay::stream::tls::{self, TlsFiles};
use relay::stream::{End, HANDSHAKE_TIME, IDLE_TIME, Kind, Limits, STRANGER_TIME, StreamListener, Streams};

const NUMBER: ChannelNumber = ChannelNumber::MIN;
const QUEUE_BYTES: usize = 256 * 1024;
/// README: most memory that a connection without an allocation takes for answers and a message that has begun.
const STRANGER_BYTES: usize = 24 * 1024;
const LIMITS: Limits = Limits {
    connections_max: 100,
    per_address_max: 50,
    queue_bytes: QUEUE_BYTES,
    queues_bytes: 100 * QUEUE_BYTES,
};

/// A test on any ingress.
trait Scenario {
    fn run<I: Ingress>(&self, ingress: I);
}

macro_rules! suite {
    ($($test:ident: $scenario:ident,)*) => {
        mod epoll {
            $(#[test]
            fn $test() {
                super::Scenario::run(&super::$scenario, super::Epoll::new().unwrap());
            })*
        }
        mod uring {
            $(#[test]
            fn $test() {
                match super::UringIngress::new(false) {
                    Ok(ingress) => super::Scenario::run(&super::$scenario, ingress),
                    Err(error) => super::left_out::left_out(&format!("io_uring ingress: {error}: sysctl kernel.io_uring_disabled=0")),
                }
            })*
        }
    };
}

suite! {
    data_flows_both_ways_over_tcp: TcpStory,
    data_flows_both_ways_over_tls: TlsStory,
    a_superpacket_is_one_write: Gathered,
    the_end_of_a_connection_is_the_end_of_its_allocation: Disconnect,
    a_client_that_does_not_read_gets_the_newest_and_holds_nobody_up: SlowReader,
    a_tls_client_that_does_not_read_gets_the_newest_and_holds_nobody_up: SlowTlsReader,
    answers_that_nobody_reads_stop_the_questions: UnreadAnswers,
    answers_that_nobody_reads_stop_the_questions_over_tls: UnreadTlsAnswers,
    who_never_allocates_is_closed_in_the_end: Lingerer,
    who_says_nothing_of_use_is_closed: Slowloris,
    a_handshake_takes_its_time_and_no_more: SlowHandshake,
    strangers_cannot_fill_memory: LongBeginning,
    connections_are_bounded_in_all_and_by_address: Bounds,
    many_connections_share_what_may_wait_for_all: SharedQueues,
    a_new_certificate_leaves_connections_alone: NewCertificate,
}

/// Ports of one relay here, so that no other takes one as soon as it is free.
const PORTS: u16 = 100;
static WORLDS: AtomicU16 = AtomicU16::new(0);

/// A relay that is turned by hand.
struct World<I> {
    relay: Relay,
    ingress: I,
    egress: Direct,
    now: Instant,
    udp: SocketAddr,
    tcp: SocketAddr,
    tls: SocketAddr,
    certificate: TestCertificate,
}

#[expect(clippy::disallowed_methods, reason = "an arbitrary origin for virtual time")]
fn origin() -> Instant {
    Instant::now()
}

fn load(certificate: &TestCertificate) -> tls::Tls {
    let folder = tempfile::tempdir().unwrap();
    let [_, certificate, _, key] = certificate.write(folder.path());
    tls::load(&TlsFiles { certificate: certificate.into(), key: key.into() }, &mut Secrets::default())
        .unwrap()
}

impl<I: Ingress> World<I> {
    fn new(ingress: I) -> Self {
        Self::with(ingress, LIMITS)
    }

    fn with(mut ingress: I, limits: Limits) -> Self {
        let local: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let options = UdpOptions { packet_info: false, ..UdpOptions::default() };
        let udp = FastSocket::bind(local, &options).unwrap();
        let listeners = [Kind::Tcp, Kind::Tls].map(|kind| StreamListener::bind(local, kind).unwrap());
        let [tcp, tls] = [&listeners[0], &listeners[1]].map(StreamListener::local_addr);
        let first_port = 20_000 + PORTS * WORLDS.fetch_add(1, Ordering::Relaxed);
        let mut credentials = Credentials::new(REALM);
        credentials.add(USER, PASSWORD);
        let settings = Settings {
            credentials,
            policy: PeerPolicy {
                allow: vec!["127.0.0.0/8".parse().unwrap()],
                own_sockets: vec![udp.local_addr(), tcp, tls],
                own_datagram_sockets: vec![udp.local_addr()],
                ..PeerPolicy::default()
            },
            relay_ports: first_port..=first_port + PORTS - 1,
            relay_addresses: Vec::new(),
            external: Vec::new(),
            channel_numbers: ChannelNumbers::Rfc8656,
            allocations_max: 100,
            allocations_per_user_max: 100,
            limits: relay::server::limits::Limits::default(),
            hairpin: true,
            port_sharing: false,
        };
        let certificate = TestCertificate::new();
        let streams = Streams::new(listeners.into(), Some(load(&certificate).config), limits);
        let udp_address = udp.local_addr();
        let mut relay = Relay::new(
            Server::new(settings, &[9; 32]),
            vec![udp],
            true,
            Duties::new(Life::default(), Observer::new(None)),
        )
        .with_streams(streams);
        let mut egress = Direct::new(WhenBusy::Drop, true).unwrap();
        let now = origin();
        relay.start(&mut ingress, &mut egress, now).unwrap();
        Self { relay, ingress, egress, now, udp: udp_address, tcp, tls, certificate }
    }

    /// One turn of the loop. The answer is whether anything came in.
    fn turn(&mut self) -> bool {
        let Self { relay, ingress, egress, now, .. } = self;
        let mut came = false;
        let mut handle = |received: dataplane::ingress::Received<'_>| {
            came = true;
            relay.handle(received, egress, *now);
        };
        ingress.poll(Some(Duration::from_millis(1)), &mut handle).unwrap();
        relay.handle_timeout(egress, *now);
        relay.maintain(ingress, egress, *now);
        egress.flush(*now).unwrap();
        came
    }

    /// Turns until nothing has come for a while.
    fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 5 {
            quiet = if self.turn() { 0 } else { quiet + 1 };
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.settle();
    }

    /// Turns for as long as a client does something that waits.
    fn during<T: Send>(&mut self, client: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let client = scope.spawn(client);
            while !client.is_finished() {
                self.turn();
            }
            client.join().unwrap()
        })
    }

    fn ends(&self, end: End) -> u64 {
        self.relay.streams().ends().get(end)
    }

    /// Every message for a client was written, dropped under a name, or waits.
    fn check_ledger(&self) {
        let streams = self.relay.streams();
        let (traffic, drops) = (streams.traffic(), self.relay.drops());
        let lost = drops.get(Cause::EgressQueueFull) + drops.get(Cause::EgressClosed);
        assert_eq!(traffic.offered, traffic.sent + lost + streams.queued());
    }
}

fn bind_to(peer: SocketAddr) -> impl Fn(&mut Writer<'_>) {
    move |writer| {
        writer.channel_number(NUMBER).xor_peer_address(peer);
    }
}

/// Bind, send both ways by channel and by indication.
fn story<I: Ingress, S: std::io::Read + std::io::Write + Send>(
    world: &mut World<I>,
    stream: S,
    mapped: SocketAddr,
) {
    let peer = peer();
    let peer_address = peer.local_addr().unwrap();
    world.during(|| {
        let mut client = StreamClient::new(stream);
        client.send(&bare(Method::Binding));
        let answer = client.receive().unwrap();
        assert_eq!(Message::parse(&answer).unwrap().xor_mapped_address(), Ok(Some(mapped)));
        let relayed = client.allocate();
        assert_eq!(relayed.ip(), Ipv4Addr::LOCALHOST);
        let permit = |writer: &mut Writer<'_>| {
            writer.xor_peer_address(peer_address);
        };
        assert_eq!(code(&client.ask(Method::CreatePermission, permit)), None);
        for payload in [&b"hello"[..], &[8; 65_000]] {
            client.send(&send_indication(peer_address, payload));
            assert_eq!(harness::receive(&peer), (payload.to_vec(), relayed));
            peer.send_to(payload, relayed).unwrap();
            let indication = client.receive().unwrap();
            let message = Message::parse(&indication).unwrap();
            assert_eq!((message.class(), message.method()), (Class::Indication, Method::Data));
            assert_eq!((message.data(), message.xor_peer_address()), (Some(payload), Ok(Some(peer_address))));
        }
        assert_eq!(code(&client.ask(Method::ChannelBind, bind_to(peer_address))), None);
        for payload in [&b""[..], b"x", b"channel", &[7; 4000], &[9; 65_507]] {
            client.send(&channel_message(NUMBER, payload));
            assert_eq!(harness::receive(&peer), (payload.to_vec(), relayed));
            peer.send_to(payload, relayed).unwrap();
            assert_eq!(client.receive().unwrap(), channel_message(NUMBER, payload));
        }
        // A datagram could not hold this one; the next still arrives.
        client.send(&[channel_message(NUMBER, &[1; 65_535]), channel_message(NUMBER, b"next")].concat());
        assert_eq!(harness::receive(&peer).0, b"next");
    });
    assert_eq!(world.relay.drops().get(Cause::Mtu), 1);
    world.check_ledger();
    assert_eq!(world.relay.drops().total(), 1);
}

struct TcpStory;

impl Scenario for TcpStory {
    fn run<I: Ingress>(&self, ingress: I) {
        let mut world = World::new(ingress);
        let stream = connect(world.tcp);
        let mapped = stream.local_addr().unwrap();
        story(&mut world, stream, mapped);
    }
}

struct TlsStory;

impl Scenario for TlsStory {
    fn run<I: Ingress>(&self, ingress: I) {
        let mut world = World::new(ingress);
        let stream = connect_tls(world.tls, &world.certificate);
        let mapped = stream.sock.local_addr().unwrap();
        story(&mut world, stream, mapped);
    }
}

/// What a peer's kernel sends as one superpacket reaches the client in one write, and so do several of a batch.
struct Gathered;

impl Scenario for Gathered {
    fn run<I: Ingress>(&self, ingress: I) {
        const COUNT: u16 = 40;
        let mut world = World::new(ingress);
        let options = UdpOptions { packet_info: false, ..UdpOptions::default() };
        let peer = FastSocket::bind((Ipv4Addr::LOCALHOST, 0).into(), &options).unwrap();
        for tls in [false, true] {
            let (plain, secure) = (connect(world.tcp), connect_tls(world.tls, &world.certificate));
            let mut client: StreamClient<Box<dyn Stream>> =
                StreamClient::new(if tls { Box::new(secure) } else { Box::new(plain) });
            let relayed = world.during(|| {
                let relayed = client.allocate();
                assert_eq!(code(&client.ask(Method::ChannelBind, bind_to(peer.local_addr()))), None);
                relayed
            });
            let payload: Vec<u8> =
                (0..COUNT).flat_map(|number| [number.to_be_bytes(); 500].concat()).collect();
            let before = world.relay.streams().traffic();
            peer.send_segments(relayed, None, 0, &payload, 1000).unwrap();
            world.settle();
            let after = world.relay.streams().traffic();
            assert_eq!(after.sent - before.sent, u64::from(COUNT));
            assert!(after.writes - before.writes <= 2, "{before:?} {after:?}");
            world.during(|| {
                for number in 0..COUNT {
                    let expected = channel_message(NUMBER, &[number.to_be_bytes(); 500].concat());
                    assert_eq!(client.receive().unwrap(), expected);
                }
            });
        }
        world.check_ledger();
    }
}

/// Plain or TLS.
trait Stream: std::io::Read + std::io::Write + Send {}

impl<S: std::io::Read + std::io::Write + Send> Stream for S {}

struct Disconnect;

impl Scenario for Disconnect {
    fn run<I: Ingress>(&self, ingress: I) {
        let mut world = World::new(ingress);
        for round in 0..5 {
            let mut client = StreamClient::new(connect(world.tcp));
            let relayed = world.during(|| client.allocate());
            assert!(UdpSocket::bind(relayed).is_err());
            match round {
                0 | 1 => drop(client),
                // Bytes that cannot be a message end it from this side.
                2 => {
                    client.send(&[0xff; 8]);
                    world.settle();
                    assert!(client.receive().is_err());
                }
                // In one batch: the end comes while the socket is still being opened.
                3 => {
                    let request = client.request(Method::Refresh, |writer| {
                        writer.lifetime(0);
                    });
                    let again = client.request(Method::Allocate, |writer| {
                        writer.requested_transport(17);
                    });
                    client.send(&[request, again, vec![0xff; 8]].concat());
                    drop(client);
                }
                _ => {
                    // Unread answers make it a reset.
                    client.send(&bare(Method::Binding));
                    world.settle();
                    drop(client);
                }
            }
            world.settle();
            UdpSocket::bind(relayed).expect("the port is free again");
            assert_eq!(world.relay.streams().connections(), 0);
        }
        assert_eq!((world.ends(End::ByClient), world.ends(End::Malformed)), (3, 2));
        assert_eq!(world.relay.streams().accepted_total(), 5);
        world.check_ledger();
    }
}

/// Sends many datagrams to a client that does not read, and as many to one over UDP beside it.
fn slow_reader<I: Ingress, S: std::io::Read + std::io::Write + Send>(world: &mut World<I>, stream: S) {
    const COUNT: u32 = 30_000;
    const LEN: usize = 999;
    let peer = peer();
    let peer_address = peer.local_addr().unwrap();
    let mut slow = StreamClient::new(stream);
    let mut fast = harness::Client::new(world.udp);
    let (slow_relayed, fast_relayed) = world.during(|| {
        let relayed = (slow.allocate(), fast.allocate());
        assert_eq!(code(&slow.ask(Method::ChannelBind, bind_to(peer_address))), None);
        assert_eq!(code(&fast.ask(Method::ChannelBind, bind_to(peer_address))), None);
        relayed
    });
    fast.socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 2000];
    let mut expected = 0_u32;
    let mut memory_max = 0;
    for number in 0..COUNT {
        let mut payload = [0xda; LEN];
        payload[..4].copy_from_slice(&number.to_be_bytes());
        peer.send_to(&payload, slow_relayed).unwrap();
        peer.send_to(&payload, fast_relayed).unwrap();
        if number % 16 == 15 || number + 1 == COUNT {
            world.settle_for(&fast.socket, &mut buffer, &mut expected, number + 1);
            memory_max = memory_max.max(world.relay.streams().memory());
        }
    }
    world.settle();
    assert_eq!(expected, COUNT, "the client over UDP gets everything");
    assert_eq!(world.relay.streams().connections(), 1, "a slow reader stays connected");
    let lost = world.relay.drops().get(Cause::EgressQueueFull);
    assert!(lost > u64::from(COUNT) / 2, "the client was to be slow: {lost} of {COUNT} lost");
    assert_eq!(world.relay.drops().total(), lost);
    // Besides the data there are few answers, and the message that has begun.
    assert!(memory_max <= QUEUE_BYTES + 80_000, "{memory_max} bytes");
    world.check_ledger();

    // An answer comes although the queue was full, and what comes then is whole, in order, and as new as can be.
    let (numbers, answered) = world.during(move || {
        slow.send(&bare(Method::Binding));
        let (mut numbers, mut answered) = (Vec::new(), false);
        while !answered || numbers.last() != Some(&(COUNT - 1)) {
            let message = slow.receive().expect("everything that is left");
            if message[0] >> 6 == 1 {
                assert_eq!((message.len(), message[3]), (4 + 1000, (LEN & 0xff) as u8));
                assert!(message[8..4 + LEN].iter().all(|&byte| byte == 0xda) && message[4 + LEN] == 0);
                numbers.push(u32::from_be_bytes(message[4..8].try_into().unwrap()));
            } else {
                assert_eq!(Message::parse(&message).unwrap().class(), Class::Success);
                answered = true;
            }
        }
        (numbers, answered)
    });
    assert!(answered && numbers.is_sorted());
    assert_eq!(u64::from(COUNT) - numbers.len() as u64, lost, "what did not come was counted");
    let newest =
        numbers.iter().rev().zip((0..COUNT).rev()).take_while(|&(&number, want)| number == want).count();
    assert!(newest > 200, "the queue held the newest {newest}");
}

impl<I: Ingress> World<I> {
    /// Turns until a client over UDP has everything up to a number.
    fn settle_for(&mut self, socket: &UdpSocket, buffer: &mut [u8], expected: &mut u32, until: u32) {
        for _ in 0..2_000 {
            self.turn();
            while let Ok(len) = socket.recv(buffer) {
                assert_eq!(len, 4 + 999);
                assert_eq!(buffer[4..8], expected.to_be_bytes());
                *expected += 1;
            }
            if *expected == until {
                return;
            }
        }
        panic!("{expected} of {until} arrived");
    }
}

/// Small buffers in the kernel, so that it is soon our turn to keep things.
fn with_small_buffers(to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(harness::PATIENCE)).unwrap();
    stream
}

struct SlowReader;

impl Scenario for SlowReader {
    fn run<I: Ingress>(&self, ingress: I) {
        let mut world = World::new(ingress);
        let stream = with_small_buffers(world.tcp);
        slow_reader(&mut world, stream);
    }
}

struct SlowTlsReader;

impl Scenario for SlowTlsReader {
    fn run<I: Ingress>(&self, ingress: I) {
        let mut world = World::new(ingress);
        let stream = with_small_buffers(world.tls);
        let tls = rustls::StreamOwned::new(harness::stream::trusting(&world.certificate), stream);
        slow_reader(&mut world, tls);
    }
}

/// Questions without end from one that does not listen: it is not read any more, and nothing is lost.
struct UnreadAnswers;

impl Scenario for UnreadAnswers {
    fn run<I: Ingress>(&self, ingress: I) {
        let mut world = World::new(ingress);
        let mut stream = with_small_buffers(world.tcp);
        stream.set_nonblocking(true).unwrap();
        let questions = bare(Method::Binding).repeat(1_000);
        let (mut sent, mut stuck) = (0, 0);
        while stuck < 50 {
            match stream.write(&questions[sent % 20..]) {
                Ok(len) => (sent, stuck) = (sent + len, 0),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    stuck += 1;
                }
            }
            world.turn();
        }
        assert!(sent < 100 << 20, "it is held back");
        assert!(world.relay.streams().memory() <= STRANGER_BYTES);
        assert_eq!(world.relay.drops().total(), 0);
        // Whole questions first, then their answers.
        stream.set_nonblocking(false).unwrap();
        let rest = questions[sent % 20..][..(20 - sent % 20) % 20].to_vec();
        let mut writer = stream.try_clone().unwrap();
        let answers = world.during(move || {
            std::thread::spawn(move || writer.write_all(&rest).unwrap());
            let mut answers = vec![0; sent.div_ceil(20) * 32];
            stream.read_exact(&mut answers).unwrap();
            answers
        });
        for answer in answers.chunks(32) {
            assert_eq!(Message::parse(answer).unwrap().transaction(), TransactionId([1; 12]));
        }
        world.settle();
        world.check_ledger();
        assert_eq!((world.relay.drops().total(), world.relay.streams().queued()), (0, 0));
    }
}

/// As many questions as fit into a record: those to whom that comes to too many answers at once are closed.
struct UnreadTlsAnswers;

impl Scenario for UnreadTlsAnswers {
    fn run<I: Ingress>(&self, ingress: I) {
        let mut world = World::new(ingress);
        let stream = with_small_buffers(world.tls);
        stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut tls = rustls::StreamOwned::new(harness::stream::trusting(&world.certificate), stream);
        let questions = bare(Method::Allocate).repeat(800);
        let sent = world.during(|| {
            let mut sent = 0;
            // The handshake comes first, and nothing is read after that.
            while tls.write_all(&questions).is_ok() && sent < 100 << 20 {
                sent += questions.len();
            }
            sent
        });
        world.settle();
        assert!(sent < 100 << 20, "it is held back");
        assert!(world.relay.streams().memory() <= STRANGER_BYTES);
        assert!(world.ends(End::Unread) == 1 || world.relay.streams().connections() == 1);
    }
}

/// Questions that are answered, and never an allocation.
struct Lingerer;

impl Scenario for Lingerer {
    fn run<I: Ingress>(&self, ingress: I) {
        let mut world = World::new(ingress);
        let mut lingering = StreamClient::new(connect(world.tcp));
        let mut allocated = StreamClient::new(connect(world.tcp));
        world.during(|| allocated.allocate());
        let step = IDLE_TIME / 2;
        let mut asked = Duration::ZERO;
        while asked + step < STRANGER_TIME {
            lingering.send(&bare(Method::Binding));
            world.wait(step);
            assert_eq!(lingering.receive().unwrap().len(), 32);
            asked += step;
        }
        lingering.send(&bare(Method::Binding));
        world.wait(step);
        asked += step;
        assert_eq!((world.ends(End::Idle), world.relay.streams().connections()), (1, 1));
        // Without its allocation the other one has as long from now on.
        let refreshed = world.during(|| {
            allocated.ask(Method::Refresh, |writer| {
                writer.lifetime(0);
            })
        });
        assert_eq!(code(&refreshed), None);
        while asked + step < 2 * STRANGER_TIME {
            allocated.send(&bare(Method::Binding));
            world.wait(step);
            assert_eq!(allocated.receive().unwrap().len(), 32);
            asked += step;
        }
        world.wait(2 * step);
        assert_eq!((world.ends(End::Idle), world.relay.streams().connections()), (2, 0));
    }
}

struct Slowloris;

impl Scenario for Slowloris {
    fn run<I: Ingress>(&self, ingress: I) {
        let mut world = World::new(ingress);
        let mut silent = connect(world.tcp);
        let mut drop_by_drop = connect(world.tcp);
        let mut useless = connect(world.tcp);
        let mut alive = StreamClient::new(connect(world.tcp));
        let mut allocated = StreamClient::new(connect(world.tcp));
        let relayed = world.during(|| allocated.allocate());
        let question = bare(Method::Binding);
        // An answer to nothing, which nobody has a use for.
        let mut response = question.clone();
        response[0] = 1;
        for byte in &question[..10] {
            // Both are closed before the last round.
            let _ = drop_by_drop.write_all(&[*byte]);
            let _ = useless.write_all(&response);
            alive.send(&question);
            world.wait(IDLE_TIME / 7);
            assert_eq!(alive.receive().unwrap().len(), 32);
        }
        for stream in [&mut silent, &mut drop_by_drop, &mut useless] {
            assert!(matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_)), "it is closed");
        }
        assert_eq!((world.ends(End::Idle), world.relay.streams().connections()), (3, 2));
        // With an allocation, silence is allowed until that has run out.
        for _ in 0..8 {
            world.wait(IDLE_TIME);
        }
        assert_eq!((world.ends(End::Idle), world.relay.streams().connections()), (4, 1));
        assert!(UdpSocket::bind(relayed).is_err());
        world.wait(Duration::from_secs(600));
        world.wait(IDLE_TIME);
        assert_eq!((world.ends(End::Idle), world.relay.streams().connections()), (5, 0));
        UdpSocket::bind(relayed).expect("the port is free again");
    }
}

struct SlowHandshake;

impl Scenario for SlowHandshake {
    fn run<I: Ingress>(&self, ingress: I) {
        let mut world = World::new(ingress);
        let mut begun = connect(world.tls);
        begun.write_all(&[22, 3, 1, 2, 0]).unwrap();
        let silent = connect(world.tls);
        let mut garbage = connect(world.tls);
        garbage.write_all(&bare(Method::Binding)).unwrap();
        let mut plain = connect(world.tls);
        plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let certificate = &world.certificate;
        let tls = connect_tls(world.tls, certificate);
        let mut patient = StreamClient::new(tls);
        world.during(|| {
            patient.send(&bare(Method::Binding));
            patient.receive().unwrap()
        });
        world.settle();
        assert_eq!((world.ends(End::Tls), world.relay.streams().connections()), (2, 3));
        [garbage, plain].into_iter().for_each(ends_with_an_alert);
        world.wait(HANDSHAKE_TIME - Duration::from_millis(1));
        assert_eq!(world.ends(End::HandshakeTimeout), 0);
        world.wait(Duration::from_millis(1));
        assert_eq!((world.ends(End::HandshakeTimeout), world.relay.streams().connections()), (2, 1));
        [begun, silent].into_iter().for_each(ends_with_an_alert);
        world.during(|| {
            patient.send(&bare(Method::Binding));
            assert_eq!(patient.receive().unwrap().len(), 32);
        });
    }
}

/// An alert of TLS (RFC 8446 section 6) at most, then the end.
fn ends_with_an_alert(mut stream: TcpStream) {
    let mut bytes = Vec::new();
    // What the relay has not read may make it a reset.
    let _ = stream.read_to_end(&mut bytes);
    assert!(bytes.is_empty() || bytes[0] == 21 && bytes.len() == 7, "{bytes:?}");
}

struct LongBeginning;

impl Scenario for LongBeginning {
    fn run<I: Ingress>(&self, ingress: I) {
        let mut world = World::new(ingress);
        let peer = peer();
        let long = channel_message(NUMBER, &[5; 60_000]);
        let mut stranger = connect(world.tcp);
        stranger.write_all(&long[..50_000]).unwrap();
        let mut known = StreamClient::new(connect(world.tcp));
        world.during(|| {
            known.allocate();
            assert_eq!(code(&known.ask(Method::ChannelBind, bind_to(peer.local_addr().unwrap()))), None);
        });
        known.send(&long[..50_000]);
        world.settle();
        assert_eq!((world.ends(End::Malformed), world.relay.streams().connections()), (1, 1));
        known.send(&long[50_000..]);
        world.during(|| assert_eq!(harness::receive(&peer).0, [5; 60_000]));
        assert!(world.relay.streams().memory() > 50_000);
        // What is not in use any more is given back.
        world.wait(IDLE_TIME);
        world.wait(IDLE_TIME);
        assert_eq!(world.relay.streams().memory(), 0);
    }
}

struct Bounds;

impl Scenario for Bounds {
    fn run<I: Ingress>(&self, ingress: I) {
        let mut world = World::with(ingress, Limits { connections_max: 5, per_address_max: 3, ..LIMITS });
        let from = |host: u8, to: SocketAddr| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            let source: SocketAddr = (Ipv4Addr::new(127, 0, 0, host), 0).into();
            socket.bind(&source.into()).unwrap();
            socket.connect(&to.into()).unwrap();
            TcpStream::from(socket)
        };
        let mut streams: Vec<TcpStream> = [9, 9, 9, 9, 10, 10, 11].map(|host| from(host, world.tcp)).into();
        world.settle();
        assert_eq!(world.relay.streams().connections(), 5);
        assert_eq!((world.ends(End::RefusedAddress), world.ends(End::RefusedTotal)), (1, 1));
        for refused in [3, 6] {
            assert!(matches!(streams[refused].read(&mut [0; 1]), Ok(0) | Err(_)));
        }
        // Those that are in are served, and one that leaves makes room.
        streams[0].write_all(&bare(Method::Binding)).unwrap();
        world.during(|| streams[0].read_exact(&mut [0; 32]).unwrap());
        streams.truncate(1);
        world.settle();
        let mut late = from(11, world.tcp);
        late.write_all(&bare(Method::Binding)).unwrap();
        world.during(|| late.read_exact(&mut [0; 32]).unwrap());
        assert_eq!(world.relay.streams().connections(), 2);
    }
}

/// What one client may have alone is too much once there are others: the oldest goes, also when nothing new comes.
struct SharedQueues;

impl Scenario for SharedQueues {
    fn run<I: Ingress>(&self, ingress: I) {
        let all = 300 * 1024;
        let mut world = World::with(ingress, Limits { queues_bytes: all, ..LIMITS });
        let (peer, mut slow) = (peer(), StreamClient::new(with_small_buffers(world.tcp)));
        let to = peer.local_addr().unwrap();
        let relayed = world.during(|| {
            let relayed = slow.allocate();
            assert_eq!(code(&slow.ask(Method::ChannelBind, bind_to(to))), None);
            relayed
        });
        let send = |world: &mut World<I>| {
            (0..16).for_each(|_| _ = peer.send_to(&[0xda; 1000], relayed).unwrap());
            world.settle();
        };
        for _ in 0..1_000 {
            send(&mut world);
            if world.relay.drops().get(Cause::EgressQueueFull) > 0 {
                break;
            }
        }
        let alone = world.relay.streams().memory();
        assert!(alone > QUEUE_BYTES / 2 && alone <= QUEUE_BYTES + 80_000, "{alone}");
        let others: Vec<TcpStream> = (0..3).map(|_| connect(world.tcp)).collect();
        world.settle();
        assert_eq!(world.relay.streams().connections(), 4);
        world.wait(IDLE_TIME);
        let part = world.relay.streams().memory();
        assert!(part > all / 8 && part <= all / 4, "{part}");
        world.check_ledger();
        // Who is idle has gone, and there is room again.
        assert_eq!(world.relay.streams().connections(), 1);
        (0..20).for_each(|_| send(&mut world));
        assert!(world.relay.streams().memory() > QUEUE_BYTES / 2);
        world.check_ledger();
        drop(others);
    }
}

struct NewCertificate;

impl Scenario for NewCertificate {
    fn run<I: Ingress>(&self, ingress: I) {
        let mut world = World::new(ingress);
        let old = connect_tls(world.tls, &world.certificate);
        let mut old = StreamClient::new(old);
        let relayed = world.during(|| old.allocate());
        let renewed = TestCertificate::new();
        world.relay.streams_mut().reconfigure(LIMITS, Some(load(&renewed).config));
        let tls = world.tls;
        world.during(|| {
            let mut new = StreamClient::new(connect_tls(tls, &renewed));
            new.allocate();
        });
        // Who trusts the old one only is not fooled.
        let mut distrustful = connect_tls(tls, &world.certificate);
        let error =
            world.during(|| distrustful.write(b"x").and_then(|_| distrustful.read(&mut [0; 1])).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
        // And the connection from before goes on with its allocation.
        let again = world.during(|| old.ask(Method::Refresh, |_| {}));
        assert_eq!(code(&again), None);
        assert!(UdpSocket::bind(relayed).is_err(), "the allocation lives");
    }
}

/// What an abuser may say (by the numbers of the abuse catalogue), and whether the connection survives it.
#[test]
fn abuse_on_a_stream_is_answered_as_on_a_datagram_or_ends_the_connection() {
    let mut world = World::new(Epoll::new().unwrap());
    let survives = |world: &mut World<Epoll>, name: &str, bytes: &[u8]| {
        let mut client = StreamClient::new(connect(world.tcp));
        client.send(bytes);
        world.settle();
        client.stream.set_nonblocking(true).unwrap();
        let silent =
            matches!(client.stream.peek(&mut [0; 1]), Err(error) if error.kind() == ErrorKind::WouldBlock);
        client.stream.set_nonblocking(false).unwrap();
        if silent {
            client.send(&bare(Method::Binding));
            let answer = world.during(|| client.receive().unwrap());
            assert_eq!(answer.len(), 32, "{name}");
        } else {
            assert!(client.receive().is_err(), "{name}: neither answered nor kept");
        }
        silent
    };
    let attribute = |kind: u16, len: u16, value: &[u8]| {
        let mut message = bare(Method::Binding);
        message.extend([kind.to_be_bytes(), len.to_be_bytes()].concat());
        message.extend(value);
        let length = (message.len() - 20) as u16;
        message[2..4].copy_from_slice(&length.to_be_bytes());
        message
    };
    let mut odd = bare(Method::Binding);
    odd[3] = 2;
    let mut cookie = bare(Method::Binding);
    cookie[5] ^= 1;
    let mut response = bare(Method::Allocate);
    response[..2].copy_from_slice(&[1, 3]);
    let cases: [(&str, Vec<u8>, bool); 13] = [
        ("T1: nothing of length", vec![], true),
        ("T2: a length that is no multiple of 4", odd, false),
        ("T3: 10", vec![0x80; 20], false),
        ("T3: 11", vec![0xc0; 20], false),
        ("T4: another cookie", cookie, false),
        ("T5: an attribute past the end", attribute(0x8022, 0xffff, &[1; 4]), true),
        ("T6: a thousand attributes", attribute(0x8022, 0, &[0x80, 0x22, 0, 0].repeat(1000)), true),
        ("T10: a wrong fingerprint", attribute(0x8028, 4, &[1; 4]), true),
        ("T11: a response", response, true),
        ("T45: an empty message on no channel", vec![0x40, 0, 0, 0], true),
        ("T45: odd padding on no channel", vec![0x40, 0, 0, 1, 9, 9, 9, 9], true),
        ("T46: a channel nobody bound", channel_message(NUMBER, &[1; 500]), true),
        ("DTLS and TLS", vec![22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16], false),
    ];
    for (name, bytes, survivor) in cases {
        assert_eq!(survives(&mut world, name, &bytes), survivor, "{name}");
    }
    assert_eq!(world.ends(End::Malformed), 5);

    let mut client = StreamClient::new(connect(world.tcp));
    let (own, tcp) = (world.udp, world.tcp);
    let allocate = |transport: u8| {
        move |writer: &mut Writer<'_>| {
            writer.requested_transport(transport);
        }
    };
    world.during(|| {
        // RFC 6062 and other transports are not served: T28, T59.
        assert_eq!(code(&client.ask(Method::Allocate, allocate(6))), Some(442));
        assert_eq!(code(&client.ask(Method::Allocate, allocate(99))), Some(442));
        for method in [0x00a, 0x00b] {
            client.send(&bare(Method::Other(method)));
            assert_eq!(code(&client.receive().unwrap()), Some(400));
        }
        let with_connection_id = |writer: &mut Writer<'_>| {
            writer.requested_transport(17).attribute(AttributeType(0x002a), &[0; 4]);
        };
        assert_eq!(code(&client.ask(Method::Allocate, with_connection_id)), Some(420));
        let refresh = client.ask(Method::Refresh, |_| {});
        assert_eq!(code(&refresh), Some(437));
        client.allocate();
        // T24: a second one on the same connection.
        assert_eq!(code(&client.ask(Method::Allocate, allocate(17))), Some(437));
        // T37: the relay's own sockets, over whatever they listen.
        for peer in [own, tcp] {
            assert_eq!(code(&client.ask(Method::ChannelBind, bind_to(peer))), Some(403), "{peer}");
        }
        // The same address over UDP is another client: T31.
        let udp = UdpSocket::bind(client.stream.local_addr().unwrap()).unwrap();
        udp.set_read_timeout(Some(harness::PATIENCE)).unwrap();
        udp.send_to(&client.request(Method::Refresh, |_| {}), own).unwrap();
        assert_eq!(code(&harness::receive(&udp).0), Some(437));
        assert_eq!(code(&client.ask(Method::Refresh, |_| {})), None);
    });
}
