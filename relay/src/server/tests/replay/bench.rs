//! The server under attack, its witnesses, and the oracle of what it holds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser as _;
use dataplane::stun::channel_data::HEADER_LEN;
use dataplane::stun::writer::padding;
use dataplane::stun::{AddressFamily, Class, Message, Method};

use super::super::super::*;
use super::super::fixture::{self, channel_data};
use super::attacker::{Attacker, HOME, Inputs};
use super::configuration::{ALICE, BOB, CAROL, SECRET, WITNESS, WITNESSES, flags};
use super::harness::{PASSWORD, REALM, USER, UdpSocket, code, peer, place, with_relay};
use crate::cli::{OwnSockets, settings};
use crate::config::{Args, Config};

/// Where clients send, over UDP and TCP, and where the figures would be.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3478);
const OWN_SOCKETS: [SocketAddr; 3] = [
    LISTEN,
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3479),
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9000),
];
/// Longer than a reservation lasts, and shorter than a permission.
const PAUSE: Duration = Duration::from_secs(31);

/// A datagram, its sender, and where it goes.
type Sent = (Vec<u8>, SocketAddr, SocketAddr);

/// Everything that the server holds, users included: those who have no allocation, too.
fn state(server: &Server) -> String {
    format!("{} {}", server.users.len(), fixture::state(server))
}

/// The server, and what it held after the last datagram.
pub struct Relay {
    server: Server,
    now: Instant,
    held: String,
    /// Clients that nothing of others may change anything for, and what they held.
    witnesses: Vec<SocketAddr>,
    held_by_witnesses: String,
    /// Datagrams that went to peers, and those of them that were other clients.
    forwarded: u64,
    hairpinned: u64,
    /// Datagrams that changed what it holds.
    changes: u64,
}

impl Relay {
    /// Configured by the flags of the process on the wire.
    fn start() -> Self {
        let mut secrets = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut secrets, SECRET.as_bytes()).unwrap();
        let (user, secrets) = (format!("{USER}:{PASSWORD}"), secrets.into_temp_path());
        let own =
            ["towpath-relay", "--realm", REALM, "--user", &user, "--secret-file", secrets.to_str().unwrap()];
        let args = own.map(str::to_owned).into_iter().chain(flags());
        let config = Config::load(&Args::try_parse_from(args).unwrap()).unwrap();
        let now = Instant::now();
        let own = OwnSockets { datagrams: vec![LISTEN], streams: OWN_SOCKETS[1..].to_vec() };
        let mut server = Server::new(settings(config, &own), &[60; 32]);
        server.set_machine_addresses([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].into());
        server.set_wall_clock(SystemTime::now().duration_since(UNIX_EPOCH).unwrap(), now);
        Self {
            held: state(&server),
            server,
            now,
            witnesses: Vec::new(),
            held_by_witnesses: String::new(),
            forwarded: 0,
            hairpinned: 0,
            changes: 0,
        }
    }

    /// Takes a datagram that is for it, or carries it on; what comes of it.
    pub fn receive(&mut self, bytes: &[u8], from: SocketAddr, to: SocketAddr) -> Vec<Sent> {
        if to == LISTEN {
            return self.take(bytes, from).into_iter().collect();
        }
        let Some(id) = self.server.recipient(to, PeerSocket(from)) else {
            return vec![(bytes.to_vec(), from, to)];
        };
        // It cannot change anything: the server is borrowed, not lent.
        let delivery = self.server.handle_peer(id, PeerSocket(from), self.now);
        self.deliver(delivery, PeerSocket(from), bytes).into_iter().collect()
    }

    /// One datagram of a client, and the comparison of everything before and after.
    fn take(&mut self, bytes: &[u8], from: SocketAddr) -> Option<Sent> {
        let client = ClientSocket { address: from, listener: Listener(0), local: Some(LISTEN.ip()) };
        let has_allocation = self.server.find(&client, self.now).is_some();
        let outcome = self.server.handle_client(&client, bytes, self.now);
        let (sent, is_granted) = match outcome {
            FromClient::Reply => (Some(self.reply(from)), self.grants(has_allocation)),
            FromClient::OpenRelay { allocation, .. } => {
                self.open(allocation);
                (Some(self.reply(from)), self.grants(has_allocation))
            }
            FromClient::Forward { allocation, peer, payload, .. } => {
                (self.forward(allocation, peer, &bytes[payload]), false)
            }
            FromClient::Consumed | FromClient::Drop(_) => (None, false),
        };
        while let Some(Command::Close(id)) = self.server.poll_command() {
            self.server.handle_relay_closed(id);
        }
        while self.server.poll_refused().is_some() {}
        let held = state(&self.server);
        assert!(
            is_granted || held == self.held,
            "{} bytes that were not granted changed what is held: {bytes:02x?}\nfrom {}\nto {held}",
            bytes.len(),
            self.held
        );
        self.changes += u64::from(held != self.held);
        self.held = held;
        if !self.witnesses.contains(&from) {
            let held = self.held_by_witnesses();
            assert_eq!(held, self.held_by_witnesses, "{bytes:02x?} changed what others hold");
        }
        sent
    }

    fn open(&mut self, mut allocation: AllocationId) {
        while let Opened::Also { allocation: other, .. } =
            self.server.handle_relay_opened(allocation, Ok(()), self.now)
        {
            allocation = other;
        }
    }

    fn reply(&self, to: SocketAddr) -> Sent {
        (self.server.reply().to_vec(), LISTEN, to)
    }

    /// Whether the answer grants a change. A second Allocate is answered again when it is the first one sent once more.
    fn grants(&self, has_allocation: bool) -> bool {
        let answer = Message::parse(self.server.reply()).unwrap();
        answer.class() == Class::Success
            && match answer.method() {
                Method::Allocate => !has_allocation,
                Method::Refresh | Method::CreatePermission | Method::ChannelBind => true,
                _ => false,
            }
    }

    fn forward(&mut self, allocation: AllocationId, peer: PeerSocket, payload: &[u8]) -> Option<Sent> {
        match self.server.route(allocation, peer, self.now) {
            Ok(Route::Socket) => {
                self.forwarded += 1;
                let relayed = self.server.table.get(allocation).unwrap().relayed;
                Some((payload.to_vec(), relayed, peer.0))
            }
            Ok(Route::Client { to, seen_as, .. }) => {
                self.forwarded += 1;
                self.hairpinned += 1;
                self.deliver(to, seen_as, payload)
            }
            Ok(route) => panic!("there is one worker: {route:?}"),
            Err(_) => None,
        }
    }

    fn deliver(&mut self, delivery: FromPeer, peer: PeerSocket, payload: &[u8]) -> Option<Sent> {
        match delivery {
            FromPeer::Channel { client, number } => {
                let fits = payload.len() <= usize::from(u16::MAX) - HEADER_LEN;
                fits.then(|| (channel_data(number.get(), payload), LISTEN, client.address))
            }
            FromPeer::Indication { client } => {
                let header = self.server.data_indication(peer, payload.len())?;
                let bytes = [header, payload, &[0; 3][..padding(payload.len())]].concat();
                Some((bytes, LISTEN, client.address))
            }
            FromPeer::Drop(_) => None,
        }
    }

    fn held_by_witnesses(&mut self) -> String {
        let witnesses = &self.witnesses;
        let allocations = self.server.table.iter_mut().map(|(_, allocation)| allocation);
        allocations
            .filter(|allocation| witnesses.contains(&allocation.client.address))
            .map(|allocation| format!("{allocation:?}"))
            .collect()
    }

    /// What must be the same whenever only witnesses are there. Indexes and the order of tables may differ: of those it is the
    /// number of entries.
    fn remains(&self) -> (usize, usize, usize, usize, String) {
        let entries = |text: &str, what: &str| text.matches(what).count();
        (
            self.server.allocations(),
            self.server.users.len(),
            entries(&format!("{:?}", self.server.table), "ClientSocket"),
            entries(&format!("{:?}", self.server.directory), "AllocationId"),
            self.server.commons.holdings(),
        )
    }
}

/// The server and everything around it.
pub struct Bench {
    pub inputs: Rc<Inputs>,
    counted: u64,
    /// Datagrams that attackers may have sent to peers, in all.
    pub forwarded: u64,
    witnesses: Vec<(Attacker, UdpSocket)>,
    remains: (usize, usize, usize, usize, String),
}

impl Bench {
    pub fn start() -> Self {
        place(Relay::start());
        let mut bench = Self {
            inputs: Rc::default(),
            counted: 0,
            forwarded: 0,
            witnesses: Vec::new(),
            remains: Default::default(),
        };
        // Static users and relay addresses are known for good once they were used.
        for (name, password) in [BOB, CAROL, ALICE] {
            for family in [AddressFamily::V4, AddressFamily::V6] {
                let mut user = Attacker::new(LISTEN, HOME, Rc::default()).with_user(name, password);
                user.allocate_of(family);
                user.leave();
            }
        }
        for _ in 0..WITNESSES {
            let mut witness = Attacker::new(LISTEN, HOME, Rc::default()).with_user(WITNESS.0, WITNESS.1);
            witness.allocate();
            bench.witnesses.push((witness, peer()));
        }
        with_relay(|relay| {
            relay.witnesses =
                bench.witnesses.iter().map(|(witness, _)| witness.socket.local_addr().unwrap()).collect();
        });
        bench.rest();
        bench.remains = with_relay(|relay| relay.remains());
        assert_eq!(bench.remains.0, WITNESSES);
        bench
    }

    pub fn address(&self) -> SocketAddr {
        LISTEN
    }

    pub fn own_sockets(&self) -> [SocketAddr; 3] {
        OWN_SOCKETS
    }

    pub fn permissions(&self) -> u64 {
        with_relay(|relay| {
            let allocations = relay.server.table.iter_mut();
            allocations.map(|(_, allocation)| allocation.peers().addresses().count() as u64).sum()
        })
    }

    pub fn hairpinned(&self) -> u64 {
        with_relay(|relay| relay.hairpinned)
    }

    /// Changes one figure of every allocation, as the next datagram might.
    pub fn tamper(&self) {
        with_relay(|relay| {
            relay.server.table.iter_mut().for_each(|(_, allocation)| allocation.lifetime_s += 1);
        });
    }

    pub fn changes(&self) -> u64 {
        with_relay(|relay| relay.changes)
    }

    pub fn forwarded_now(&self) -> u64 {
        with_relay(|relay| relay.forwarded)
    }

    /// Nothing to measure: what the server holds is compared instead.
    pub fn resident_kib(&self) -> u64 {
        0
    }

    /// Lets time pass, so that reservations end, and witnesses prolong what they have.
    fn rest(&mut self) {
        with_relay(|relay| {
            relay.now += PAUSE;
            relay.server.handle_timeout(relay.now);
            relay.held = state(&relay.server);
        });
        for (witness, peer) in &mut self.witnesses {
            witness.nonce = witness.challenged();
            assert_eq!(code(&witness.refresh(3600)), None);
            assert_eq!(witness.bind(0x4000, peer.local_addr().unwrap()), None);
        }
        with_relay(|relay| relay.held_by_witnesses = relay.held_by_witnesses());
        // Reservations that have ended are forgotten with the next port that is taken.
        let mut next = Attacker::new(LISTEN, HOME, Rc::default());
        next.allocate();
        next.leave();
    }

    /// Insists that a row has left nothing behind; how many inputs it had.
    pub fn settle(&mut self, row: u32) -> u64 {
        self.rest();
        let remains = with_relay(|relay| relay.remains());
        assert_eq!(remains, self.remains, "after T{row}");
        assert_eq!(self.forwarded_now(), self.forwarded, "forwarded in T{row}");
        for (witness, peer) in &self.witnesses {
            witness.quiet();
            assert!(peer.recv(&mut [0; 1]).is_err(), "a peer of a witness got something in T{row}");
        }
        let inputs = self.inputs.total();
        inputs - std::mem::replace(&mut self.counted, inputs)
    }
}
