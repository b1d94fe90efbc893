//! One abuser who sends twice what the relay can do, among 99 users who together send half of it, over real sockets.
//!
//! The relay runs on a thread of this process, so that its figures can be read by user: what was relayed, what was dropped
//! to be fair, and apart from both what the kernel dropped before the relay saw it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test panics when it cannot go on and says what it measured"
)]

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket as PlainSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane::driver::{self, Application, Ends, Ledger, Next};
use dataplane::drops::{Cause, Drops};
use dataplane::egress::{Direct, Egress, Port, Target, WhenBusy};
use dataplane::engine::IngressKind;
use dataplane::ingress::{Epoll, Ingress, Received};
use dataplane::stun::{ChannelNumber, Key, Message, Method, TransactionId, Writer};
use dataplane::sys::signal::StopSignals;
use dataplane::sys::udp::{UdpOptions, UdpSocket, send_message};
use relay::admin::Observer;
use relay::app::Relay;
use relay::app::duties::Duties;
use relay::life::Life;
use relay::server::auth::Credentials;
use relay::server::limits::Limits;
use relay::server::policy::PeerPolicy;
use relay::server::traffic::Relayed;
use relay::server::{ChannelNumbers, Server, Settings};

const REALM: &str = "example.org";
const HONEST: usize = 99;
/// Payload of a packet, in bytes.
const PAYLOAD: usize = 1000;
/// Datagrams that cross into the kernel at once, when there are many.
const BATCH: usize = 60;
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The relay with a switch to end it.
struct Stoppable {
    relay: Relay,
    stop: Arc<AtomicBool>,
}

impl Application for Stoppable {
    fn default_ingress(&self) -> IngressKind {
        self.relay.default_ingress()
    }
    fn start<I: Ingress, E: Egress>(
        &mut self,
        ingress: &mut I,
        egress: &mut E,
        now: Instant,
    ) -> io::Result<()> {
        self.relay.start(ingress, egress, now)
    }
    fn handle<E: Egress>(&mut self, received: Received<'_>, egress: &mut E, now: Instant) {
        self.relay.handle(received, egress, now);
    }
    fn handle_timeout<E: Egress>(&mut self, egress: &mut E, now: Instant) {
        self.relay.handle_timeout(egress, now);
    }
    fn poll_timeout(&self) -> Option<Instant> {
        self.relay.poll_timeout()
    }
    fn maintain<I: Ingress, E: Egress>(&mut self, ingress: &mut I, egress: &mut E, now: Instant) -> Next {
        let next = self.relay.maintain(ingress, egress, now);
        if self.stop.load(Ordering::Relaxed) { Next::Stop } else { next }
    }
    fn slow_down<I: Ingress>(&mut self, ingress: &mut I, reading: bool) {
        self.relay.slow_down(ingress, reading);
    }
    fn stop<E: Egress>(&mut self, egress: &mut E, now: Instant) {
        self.relay.stop(egress, now);
    }
    fn drops(&self) -> Drops {
        self.relay.drops()
    }
}

/// A relay on a thread.
struct Running {
    /// Where data and STUN are served: sockets of their own.
    data: SocketAddr,
    stun: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Ledger, Vec<(String, Relayed)>)>,
}

fn name(user: usize) -> String {
    format!("user{user}")
}

impl Running {
    fn start() -> Self {
        // No superpackets: a batch of the abuser's would cost little more than one packet.
        let options = UdpOptions { gro: false, packet_info: false, ..UdpOptions::default() };
        let listeners = [(); 2].map(|()| UdpSocket::bind(LOOPBACK, &options).unwrap());
        let [data, stun] = [0, 1].map(|index| listeners[index].local_addr());
        let mut credentials = Credentials::new(REALM);
        (0..=HONEST).for_each(|user| credentials.add(&name(user), "secret"));
        let settings = Settings {
            credentials,
            policy: PeerPolicy {
                allow: vec!["127.0.0.0/8".parse().unwrap()],
                own_sockets: vec![data, stun],
                ..PeerPolicy::default()
            },
            relay_ports: 20_000..=29_999,
            relay_addresses: vec![LOOPBACK.ip()],
            external: Vec::new(),
            channel_numbers: ChannelNumbers::Rfc8656,
            allocations_max: 1000,
            allocations_per_user_max: 10,
            // Everybody comes from one address here and asks at once.
            hairpin: true,
            port_sharing: false,
            limits: Limits { unpaid_replies_per_s: 1000, ..Limits::default() },
        };
        let server = Server::new(settings, &[9; 32]);
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let duties = Duties::new(Life::default(), Observer::new(None));
            let relay = Relay::new(server, listeners.into(), false, duties);
            let mut application = Stoppable { relay, stop: flag };
            let signals = StopSignals::new().unwrap();
            let mut ingress = Epoll::new().unwrap();
            let mut egress = Direct::new(WhenBusy::Suspend, false).unwrap();
            let ends = Ends { signals: Some(&signals), halt: None };
            driver::start(&mut application, &mut ingress, &mut egress, &ends).unwrap();
            let ledger =
                driver::run(&mut application, &mut ingress, &mut egress, &ends, Duration::ZERO).unwrap();
            let users = application.relay.server().users();
            let users = users
                .map(|usage| (String::from_utf8_lossy(usage.identity.name()).into_owned(), usage.relayed));
            (ledger, users.collect())
        });
        Self { data, stun, stop, thread }
    }

    /// What came of it, by user.
    fn stop(self) -> (Ledger, Vec<Relayed>) {
        self.stop.store(true, Ordering::Relaxed);
        // The loop may be asleep.
        PlainSocket::bind(LOOPBACK).unwrap().send_to(&binding(), self.stun).unwrap();
        let (ledger, users) = self.thread.join().unwrap();
        // Who never came has no figures.
        let of = |user| users.iter().find(|(known, _)| *known == name(user)).map(|&(_, relayed)| relayed);
        (ledger, (0..=HONEST).map(|user| of(user).unwrap_or_default()).collect())
    }
}

fn binding() -> Vec<u8> {
    let mut buffer = [0; 20];
    let writer =
        Writer::new(&mut buffer, dataplane::stun::Class::Request, Method::Binding, TransactionId([1; 12]));
    assert_eq!(writer.unwrap().finish(None, false), Some(20));
    buffer.to_vec()
}

/// A client with an allocation and a channel to a peer that only takes.
struct Client {
    socket: Arc<OwnedFd>,
    relay: SocketAddr,
    batch: Vec<u8>,
}

impl Client {
    fn new(user: usize, relay: SocketAddr, peer: SocketAddr) -> Self {
        let socket = PlainSocket::bind(LOOPBACK).unwrap();
        socket.connect(relay).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut nonce = Vec::new();
        let mut ask = |method, fill: &dyn Fn(&mut Writer<'_>)| {
            for attempt in 0..2 {
                let key = Key::long_term(name(user).as_bytes(), REALM.as_bytes(), b"secret");
                let mut buffer = [0; 500];
                let id = TransactionId([attempt + 1; 12]);
                let mut writer =
                    Writer::new(&mut buffer, dataplane::stun::Class::Request, method, id).unwrap();
                fill(&mut writer);
                writer.username(name(user).as_bytes()).realm(REALM.as_bytes()).nonce(&nonce);
                let len = writer.finish(Some(&key), false).unwrap();
                socket.send(&buffer[..len]).unwrap();
                let len = socket.recv(&mut buffer).unwrap();
                let reply = Message::parse(&buffer[..len]).unwrap();
                match reply.error_code().unwrap() {
                    None => return,
                    Some(code) if code.0 == 438 => nonce = reply.nonce().unwrap().to_vec(),
                    Some(code) => panic!("{code:?}"),
                }
            }
            panic!("not accepted");
        };
        ask(Method::Allocate, &|writer| {
            writer.requested_transport(17);
        });
        ask(Method::ChannelBind, &|writer| {
            writer.channel_number(ChannelNumber::MIN).xor_peer_address(peer);
        });
        let mut packet = dataplane::stun::channel_data::header(ChannelNumber::MIN, PAYLOAD).unwrap().to_vec();
        packet.resize(4 + PAYLOAD, 0xa5);
        Self { socket: Arc::new(socket.into()), relay, batch: packet.repeat(BATCH) }
    }

    /// Sends some packets, at most [`BATCH`]. What the kernel does not take is not sent again.
    fn send(&self, packets: usize) {
        let target = Target { port: Port(0), to: self.relay, from: None, ecn: 0, dont_fragment: false };
        let bytes = &self.batch[..packets * (4 + PAYLOAD)];
        // A full send buffer is as good as a full receive buffer: it counts as the network's loss.
        let _ = send_message(&self.socket, &target, bytes, 4 + PAYLOAD);
    }
}

/// Calls `work` with the number of packets that are due, every millisecond.
fn paced(packets_per_s: f64, time: Duration, mut work: impl FnMut(usize)) {
    let start = now();
    let mut sent = 0.0;
    while start.elapsed() < time {
        let due = start.elapsed().as_secs_f64() * packets_per_s;
        let now = (due - sent).max(0.0) as usize;
        work(now);
        sent += now as f64;
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn flood(client: &Client, mut packets: usize) {
    while packets > 0 {
        let now = packets.min(BATCH);
        client.send(now);
        packets -= now;
    }
}

/// T52, R18 and the fourth condition of the relay's issue, as far as one machine shows it.
#[test]
fn one_abuser_takes_nothing_from_99_users() {
    const TIME: Duration = Duration::from_secs(3);
    let peer = PlainSocket::bind(LOOPBACK).unwrap();
    let peer_address = peer.local_addr().unwrap();

    // What the relay can do: one client, as fast as it goes.
    let relay = Running::start();
    let client = Client::new(0, relay.data, peer_address);
    let start = now();
    while start.elapsed() < Duration::from_secs(1) {
        client.send(BATCH);
    }
    let (_, users) = relay.stop();
    let capacity = users[0].to_peers().packets as f64;
    assert_eq!(users[0].shaped_packets, 0, "one alone is never limited");

    let relay = Running::start();
    let clients: Vec<Client> = (0..=HONEST).map(|user| Client::new(user, relay.data, peer_address)).collect();
    let stun = relay.stun;
    let latencies = std::thread::spawn(move || probe(stun, TIME));
    let mut turn = 0;
    // Five packets in six are the abuser's.
    paced(2.5 * capacity, TIME, |packets| {
        let honest = packets / 5;
        for _ in 0..honest {
            clients[turn % HONEST].send(1);
            turn += 1;
        }
        flood(&clients[HONEST], packets - honest);
    });
    let mut latencies = latencies.join().unwrap();
    let (ledger, users) = relay.stop();
    latencies.sort_unstable();

    let offered = turn / HONEST;
    let delivered = |relayed: &Relayed| relayed.to_peers().packets + relayed.shaped_packets;
    let (honest, abuser) = (&users[..HONEST], users[HONEST]);
    let worst =
        honest.iter().map(|user| user.to_peers().packets as f64 / delivered(user) as f64).fold(1.0, f64::min);
    let (least, all) = (
        honest.iter().map(|user| user.to_peers().packets).min().unwrap(),
        honest.iter().map(|user| user.to_peers().packets).sum::<u64>(),
    );
    println!(
        "capacity {capacity:.0}/s; each honest user sent {offered} packets; relayed at least {least}, {:.0} on average; \
         the worst got {:.1} % of what the kernel delivered",
        all as f64 / HONEST as f64,
        100.0 * worst
    );
    println!(
        "abuser: {} of {} delivered packets relayed; the kernel dropped {} skbs of everybody's; STUN p50 {:?}, p99 {:?}",
        abuser.to_peers().packets,
        delivered(&abuser),
        ledger.ingress.kernel_drops_skbs,
        latencies[latencies.len() / 2],
        latencies[latencies.len() * 99 / 100],
    );
    assert!(ledger.ingress.kernel_drops_skbs > 0, "the abuser did not get to overload the relay");
    assert!(worst >= 0.95, "an honest user got {worst} of what the kernel delivered");
    let shaped: u64 = users.iter().map(|user| user.shaped_packets).sum();
    assert!(abuser.shaped_packets > 0, "nobody was asked to give way");
    assert_eq!(ledger.application.get(Cause::FairShare), shaped, "every packet that was shaped is counted");
    assert_eq!(ledger.egress.drops.total(), 0, "what the relay sent arrived at the kernel");
    assert!(latencies.len() > 50, "STUN is answered meanwhile");
}

/// Round trips of STUN Binding requests on a socket of their own, one every ten milliseconds.
fn probe(relay: SocketAddr, time: Duration) -> Vec<Duration> {
    let socket = PlainSocket::bind(LOOPBACK).unwrap();
    socket.connect(relay).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let start = now();
    let mut round_trips = Vec::new();
    while now() - start < time {
        let sent = now();
        socket.send(&binding()).unwrap();
        if socket.recv(&mut [0; 100]).is_ok() {
            round_trips.push(now() - sent);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    round_trips
}

#[expect(clippy::disallowed_methods, reason = "round trips are measured by the clock")]
fn now() -> Instant {
    Instant::now()
}
