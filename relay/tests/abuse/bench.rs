//! The relay under attack, its witnesses, and the oracle of what it holds.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane::stun::channel_data::{ChannelData, ChannelNumber};
use dataplane::stun::{Method, Writer};

use super::attacker::{Attacker, HOME, Inputs, channel_data};
use super::configuration::{SECRET, WITNESS, WITNESSES, flags};
use super::harness::{Client, PATIENCE, RelayProcess, code, http, peer, private_file, receive};

/// When witnesses bind their channels again: before the permission runs out, however many mutations are asked for.
const REFRESH_TIME: Duration = Duration::from_secs(100);

/// A client that relays numbered datagrams both ways all the time, one after the other.
struct Witness {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Witness {
    fn start(relay: SocketAddr) -> Self {
        let mut client = Client::new(relay).with_user(WITNESS.0, WITNESS.1);
        let relayed = client.allocate();
        let peer = peer();
        Self::bind(&mut client, &peer);
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let told = (stop.clone(), rounds.clone());
        let thread = std::thread::spawn(move || Self::run(client, relayed, &peer, &told.0, &told.1));
        Self { stop, rounds, thread }
    }

    fn bind(client: &mut Client, peer: &UdpSocket) {
        let bind = |writer: &mut Writer<'_>| {
            writer.channel_number(ChannelNumber::MIN).xor_peer_address(peer.local_addr().unwrap());
        };
        assert_eq!(code(&client.ask(Method::ChannelBind, bind)), None);
    }

    fn run(mut client: Client, relayed: SocketAddr, peer: &UdpSocket, stop: &AtomicBool, rounds: &AtomicU64) {
        let mut bound = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            if bound.elapsed() > REFRESH_TIME {
                Self::bind(&mut client, peer);
                bound = Instant::now();
            }
            let number = rounds.load(Ordering::Relaxed).to_be_bytes();
            client.socket.send(&channel_data(ChannelNumber::MIN.get(), &number)).unwrap();
            assert_eq!(receive(peer), (number.to_vec(), relayed), "to the peer");
            peer.send_to(&number, relayed).unwrap();
            let (datagram, _) = receive(&client.socket);
            assert_eq!(ChannelData::parse(&datagram).unwrap().payload, number, "to the client");
            rounds.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(1));
        }
        for socket in [&client.socket, peer] {
            socket.set_nonblocking(true).unwrap();
            let next = socket.recv(&mut [0; 64]);
            assert_eq!(
                next.map_err(|error| error.kind()),
                Err(ErrorKind::WouldBlock),
                "something came twice"
            );
        }
    }
}

/// What the relay holds for its clients.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    allocations: u64,
    permissions: u64,
    channels: u64,
    connections: u64,
    allocations_by_user: BTreeMap<String, u64>,
    /// Datagrams that left for peers, but for those of the witnesses.
    forwarded: u64,
}

impl Held {
    fn of(status: &serde_json::Value) -> Self {
        let live = |what: &str| status[what]["live"].as_u64().unwrap();
        let users = status["users"].as_array().unwrap();
        let allocations = users
            .iter()
            .map(|user| (user["name"].as_str().unwrap().to_owned(), user["allocations"].as_u64().unwrap()));
        let others = users.iter().filter(|user| user["name"] != WITNESS.0);
        Self {
            allocations: live("allocations"),
            permissions: live("permissions"),
            channels: live("channels"),
            connections: live("connections"),
            allocations_by_user: allocations.filter(|&(_, count)| count > 0).collect(),
            forwarded: others.map(|user| user["to_peer"]["packets"].as_u64().unwrap()).sum(),
        }
    }
}

/// The relay and everything around it.
pub struct Bench {
    pub relay: RelayProcess,
    witnesses: Vec<Witness>,
    pub inputs: Rc<Inputs>,
    counted: u64,
    /// Datagrams that attackers may have sent to peers, in all.
    pub forwarded: u64,
    _secrets: tempfile::NamedTempFile,
}

impl Bench {
    pub fn start() -> Self {
        let secrets = private_file(SECRET);
        let flags =
            [flags(), vec!["--secret-file".to_owned(), secrets.path().to_str().unwrap().to_owned()]].concat();
        let relay = RelayProcess::start(&flags.iter().map(String::as_str).collect::<Vec<_>>());
        let witnesses = (0..WITNESSES).map(|_| Witness::start(relay.listen[0])).collect();
        let inputs = Rc::default();
        let mut bench = Self { relay, witnesses, inputs, counted: 0, forwarded: 0, _secrets: secrets };
        bench.settle(0);
        bench
    }

    pub fn address(&self) -> SocketAddr {
        self.relay.listen[0]
    }

    /// A client of another relay, whose inputs count here.
    pub fn attacker_of(&self, relay: &RelayProcess) -> Attacker {
        Attacker::new(relay.listen[0], HOME, self.inputs.clone())
    }

    /// Where it listens, and where its figures are.
    pub fn own_sockets(&self) -> [SocketAddr; 3] {
        [self.relay.admin(), self.relay.tcp[0], self.address()]
    }

    /// Figures taken after this was called: others may be a tenth of a second old.
    pub fn status(&self) -> serde_json::Value {
        let asked = http::status(self.relay.admin())["uptime_s"].as_f64().unwrap();
        http::settled(self.relay.admin(), |status| {
            status["uptime_s"].as_f64().unwrap() - status["age_s"].as_f64().unwrap() >= asked
        })
    }

    /// Datagrams that attackers have sent to peers, as the relay counts them.
    pub fn forwarded_now(&self) -> u64 {
        Held::of(&self.status()).forwarded
    }

    /// Permissions that there are.
    pub fn permissions(&self) -> u64 {
        Held::of(&self.status()).permissions
    }

    /// Datagrams that went from client to client.
    pub fn hairpinned(&self) -> u64 {
        self.status()["hairpinned"]["packets"].as_u64().unwrap()
    }

    /// Resident memory of the relay.
    pub fn resident_kib(&self) -> u64 {
        resident_kib(&self.relay)
    }

    /// Insists that a row has left nothing behind; how many inputs it had.
    pub fn settle(&mut self, row: u32) -> u64 {
        let expected = Held {
            allocations: WITNESSES as u64,
            permissions: WITNESSES as u64,
            channels: WITNESSES as u64,
            connections: 0,
            allocations_by_user: [(WITNESS.0.to_owned(), WITNESSES as u64)].into(),
            forwarded: self.forwarded,
        };
        let start = Instant::now();
        loop {
            let held = Held::of(&self.status());
            if held == expected {
                break;
            }
            // Sockets are closed and connections end some time after the last answer.
            assert!(start.elapsed() < PATIENCE, "after T{row} {held:?}, and not {expected:?}");
        }
        for witness in &self.witnesses {
            let seen = witness.rounds.load(Ordering::Relaxed);
            while witness.rounds.load(Ordering::Relaxed) < seen + 2 {
                assert!(!witness.thread.is_finished(), "a witness lost something in T{row}");
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        let inputs = self.inputs.total();
        inputs - std::mem::replace(&mut self.counted, inputs)
    }

    /// Ends relay and witnesses; how many rounds those made.
    pub fn finish(self) -> u64 {
        let mut rounds = 0;
        for witness in self.witnesses {
            witness.stop.store(true, Ordering::Relaxed);
            witness.thread.join().expect("a witness lost nothing");
            rounds += witness.rounds.load(Ordering::Relaxed);
        }
        let (status, log) = self.relay.stop();
        assert!(status.success() && log.contains(" unexplained=0 "), "{log}");
        rounds
    }
}

/// Resident memory of a relay.
pub fn resident_kib(relay: &RelayProcess) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it is alive");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
