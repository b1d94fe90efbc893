//! The ledgers of both ways through a relay that harms datagrams by a seeded plan and keeps its own account: this
//! project's TURN server on plain sockets, in this process.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dataplane::stun::{channel_data, writer::padding};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use relay::server::auth::Credentials;
use relay::server::limits::Limits;
use relay::server::policy::PeerPolicy;
use relay::server::{
    AllocationId, ChannelNumbers, ClientSocket, FromClient, FromPeer, Listener, Opened, PeerSocket, Server,
    Settings,
};
use tools::run::payload::{self, Parsed, Phase};
use tools::run::{Kind, Pace, RunSpec, run};

const SIZE: usize = 131;

/// What happened to the measured datagrams of one way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Log {
    seen: u64,
    passed: u64,
    duplicates: u64,
    reordered: u64,
}

/// Harms one way: of 1,000 datagrams 60 are dropped, 40 doubled, 50 swapped with the next.
struct Way {
    random: Xoshiro256PlusPlus,
    log: Log,
    /// By flow: one above the highest rank that has passed.
    next_expected: HashMap<u32, u64>,
    /// By flow: how many have come.
    rank: HashMap<u32, u64>,
    held: Option<(u32, u64, Vec<u8>, SocketAddr)>,
}

impl Way {
    fn new(seed: u64) -> Self {
        Self {
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            log: Log::default(),
            next_expected: HashMap::new(),
            rank: HashMap::new(),
            held: None,
        }
    }

    /// Sends `framed`, which carries `payload`, to `to` or does it harm.
    fn carry(&mut self, socket: &UdpSocket, payload: &[u8], framed: Vec<u8>, to: SocketAddr) {
        let Parsed::Good(header) = payload::parse(payload) else { panic!("not ours") };
        if header.phase != Phase::Measured {
            socket.send_to(&framed, to).unwrap();
            return;
        }
        self.log.seen += 1;
        let rank = self.rank.entry(header.flow).or_default();
        let mine = *rank;
        *rank += 1;
        match self.random.next_u64() % 1_000 {
            0..60 => {}
            60..100 => {
                self.pass(socket, header.flow, mine, &framed, to);
                socket.send_to(&framed, to).unwrap();
                self.log.duplicates += 1;
            }
            100..150 if self.held.is_none() => self.held = Some((header.flow, mine, framed, to)),
            _ => {
                self.pass(socket, header.flow, mine, &framed, to);
                self.release(socket);
            }
        }
    }

    fn release(&mut self, socket: &UdpSocket) {
        if let Some((flow, rank, framed, to)) = self.held.take() {
            self.pass(socket, flow, rank, &framed, to);
        }
    }

    fn pass(&mut self, socket: &UdpSocket, flow: u32, rank: u64, framed: &[u8], to: SocketAddr) {
        socket.send_to(framed, to).unwrap();
        self.log.passed += 1;
        let next = self.next_expected.entry(flow).or_default();
        if rank < *next {
            self.log.reordered += 1;
        } else {
            *next = rank + 1;
        }
    }
}

/// One allocation on a server that harms both ways.
struct BadRelay {
    listener: UdpSocket,
    relayed: Option<(AllocationId, UdpSocket)>,
    server: Server,
    up: Way,
    down: Way,
}

impl BadRelay {
    fn start(seed: u64) -> (SocketAddr, Arc<AtomicBool>, JoinHandle<(Log, Log)>) {
        let listener = UdpSocket::bind("127.0.0.1:0").unwrap();
        listener.set_read_timeout(Some(Duration::from_micros(200))).unwrap();
        let address = listener.local_addr().unwrap();
        let mut credentials = Credentials::new("test");
        credentials.add("walker", "horse");
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        let settings = Settings {
            credentials,
            policy: PeerPolicy {
                allow: vec!["127.0.0.0/8".parse().unwrap()],
                own_sockets: vec![address],
                own_addresses: [loopback].into(),
                ..PeerPolicy::default()
            },
            relay_ports: 49_152..=65_535,
            relay_addresses: vec![loopback],
            external: Vec::new(),
            channel_numbers: ChannelNumbers::Rfc8656,
            allocations_max: 4,
            allocations_per_user_max: 4,
            limits: Limits::default(),
            hairpin: false,
            port_sharing: false,
        };
        let server = Server::new(settings, &[7; 32]);
        let relay = Self { listener, relayed: None, server, up: Way::new(seed), down: Way::new(seed + 1) };
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        (address, stop, thread::spawn(move || relay.run(&flag)))
    }

    fn run(mut self, stop: &AtomicBool) -> (Log, Log) {
        let mut buffer = vec![0; 65_536];
        let mut quiet = 0;
        while !stop.load(Ordering::Relaxed) {
            quiet += 1;
            while let Ok((len, from)) = self.listener.recv_from(&mut buffer) {
                quiet = 0;
                self.handle_client_datagram(&buffer[..len], from);
            }
            while let Some((id, socket)) = &self.relayed
                && let Ok((len, from)) = socket.recv_from(&mut buffer)
            {
                quiet = 0;
                self.handle_peer_datagram(*id, &buffer[..len], from);
            }
            if quiet > 100 {
                // The last of a way has no next to be swapped with.
                if let Some((_, socket)) = &self.relayed {
                    self.up.release(socket);
                }
                self.down.release(&self.listener);
            }
        }
        (self.up.log, self.down.log)
    }

    fn handle_client_datagram(&mut self, datagram: &[u8], from: SocketAddr) {
        let client = ClientSocket { address: from, listener: Listener(0), local: None };
        match self.server.handle_client(&client, datagram, now()) {
            FromClient::Forward { peer, payload, .. } => {
                let (_, socket) = self.relayed.as_ref().unwrap();
                let payload = &datagram[payload];
                self.up.carry(socket, payload, payload.to_vec(), peer.0);
            }
            FromClient::Reply => {
                self.listener.send_to(self.server.reply(), from).unwrap();
            }
            FromClient::OpenRelay { allocation, address } => self.open(allocation, address, from),
            FromClient::Consumed => {}
            FromClient::Drop(cause) => panic!("{cause:?}"),
        }
    }

    fn open(&mut self, id: AllocationId, mut address: SocketAddr, client: SocketAddr) {
        loop {
            let bound = UdpSocket::bind(address);
            let outcome = bound.as_ref().map(|_| ()).map_err(|_| relay::server::OpenFailure::PortTaken);
            match self.server.handle_relay_opened(id, outcome, now()) {
                Opened::Reply { .. } => {
                    let socket = bound.unwrap();
                    socket.set_read_timeout(Some(Duration::from_micros(200))).unwrap();
                    self.relayed = Some((id, socket));
                    self.listener.send_to(self.server.reply(), client).unwrap();
                    return;
                }
                Opened::Retry(next) => address = next,
                Opened::Also { .. } => panic!("nobody asked for two families"),
                Opened::Gone => return,
            }
        }
    }

    fn handle_peer_datagram(&mut self, id: AllocationId, datagram: &[u8], from: SocketAddr) {
        let peer = PeerSocket(from);
        let (client, mut framed, pad) = match self.server.handle_peer(id, peer, now()) {
            FromPeer::Channel { client, number } => {
                (client, channel_data::header(number, datagram.len()).unwrap().to_vec(), 0)
            }
            FromPeer::Indication { client } => {
                let header = self.server.data_indication(peer, datagram.len()).unwrap().to_vec();
                (client, header, padding(datagram.len()))
            }
            FromPeer::Drop(cause) => panic!("{cause:?}"),
        };
        framed.extend_from_slice(datagram);
        framed.resize(framed.len() + pad, 0);
        self.down.carry(&self.listener, datagram, framed, client.address);
    }
}

#[expect(clippy::disallowed_methods, reason = "the test drives the server's clock")]
fn now() -> Instant {
    Instant::now()
}

#[test]
fn each_way_has_the_losses_that_happened_on_it() {
    for (seed, kind) in [(1, Kind::TurnChannel), (2, Kind::TurnSend)] {
        let (target, stop, relay) = BadRelay::start(seed);
        let spec = RunSpec {
            rate_pps: 1_500.0,
            size: SIZE,
            flows: 5,
            duration: Duration::from_secs(1),
            warmup: Duration::from_millis(50),
            drain: Duration::from_millis(600),
            pace: Pace::Sleep,
            username: Some("walker".to_owned()),
            password: Some("horse".to_owned()),
            ..RunSpec::new(kind, target)
        };
        let result = run(&spec, |_| {}).unwrap();
        stop.store(true, Ordering::Relaxed);
        let (up_log, down_log) = relay.join().unwrap();
        let (up, down, round) = (result.ledger_up.unwrap(), result.ledger_down.unwrap(), result.ledger);
        println!("{kind:?}\n{up:?}\n{up_log:?}\n{down:?}\n{down_log:?}");
        for (ledger, log) in [(up, &up_log), (down, &down_log)] {
            assert!(ledger.balances() && log.duplicates > 0 && log.reordered > 0 && log.passed < log.seen);
            let seen = (ledger.received + ledger.late, ledger.duplicate, ledger.reordered);
            assert_eq!(seen, (log.passed, log.duplicates, log.reordered));
        }
        assert!(round.balances());
        assert_eq!((round.sent, round.received), (up.sent, down.received));
        assert_eq!(down.sent, up.received + up.late);
        assert_eq!(round.duplicate, up_log.duplicates + down_log.duplicates);
    }
}
