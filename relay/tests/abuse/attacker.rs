//! A client that sends any bytes, knows what must come back, and counts what it sent.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;

use dataplane::stun::{
    AddressFamily, AttributeType, Class, Key, Message, Method, PasswordAlgorithm, TransactionId, Writer,
};

use super::bench::Bench;
use super::harness::{PASSWORD, REALM, USER, UdpSocket, code, peer, receive, socket_on};

/// What was sent, by all attackers together.
#[derive(Debug, Default)]
pub struct Inputs {
    total: Cell<u64>,
    /// Hashes of datagrams, each with what is new in every one left out.
    distinct: RefCell<HashSet<u64>>,
}

impl Inputs {
    /// Counts inputs that are no datagrams of attackers: connections, files, datagrams of peers.
    pub fn count(&self, inputs: u64) {
        self.total.set(self.total.get() + inputs);
    }

    fn count_datagram(&self, essence: &[u8]) {
        self.count(1);
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(essence);
        self.distinct.borrow_mut().insert(hash);
    }

    pub fn total(&self) -> u64 {
        self.total.get()
    }

    /// How many different datagrams there were.
    pub fn distinct(&self) -> u64 {
        self.distinct.borrow().len() as u64
    }
}

/// Clients at the bench.
impl Bench {
    pub fn attacker(&self) -> Attacker {
        self.attacker_at(HOME)
    }

    pub fn attacker_at(&self, from: IpAddr) -> Attacker {
        Attacker::new(self.address(), from, self.inputs.clone())
    }

    pub fn stranger_at(&self, from: IpAddr) -> Attacker {
        Attacker::stranger(self.address(), from, self.inputs.clone())
    }

    /// One with an allocation.
    pub fn allocated(&self) -> Attacker {
        let mut attacker = self.attacker();
        attacker.allocate();
        attacker
    }

    /// One with an allocation, a peer, and channel 0x4001 to it; and the relayed address.
    pub fn bound(&self) -> (Attacker, UdpSocket, SocketAddr) {
        let (mut attacker, peer) = (self.attacker(), peer());
        let relayed = attacker.allocate();
        assert_eq!(attacker.bind(0x4001, peer.local_addr().unwrap()), None);
        (attacker, peer, relayed)
    }

    /// Inputs that no attacker sends.
    pub fn count(&self, inputs: u64) {
        self.inputs.count(inputs);
    }
}

/// A message without credentials.
pub fn message(
    class: Class,
    method: Method,
    transaction: TransactionId,
    fill: impl FnOnce(&mut Writer<'_>),
) -> Vec<u8> {
    let mut buffer = vec![0; 20_000];
    let mut writer = Writer::new(&mut buffer, class, method, transaction).unwrap();
    fill(&mut writer);
    let len = writer.finish(None, false).unwrap();
    buffer.truncate(len);
    buffer
}

/// A bare request.
pub fn bare(method: Method) -> Vec<u8> {
    message(Class::Request, method, TransactionId([0xb0; 12]), |_| {})
}

/// A Send indication.
pub fn send(peer: SocketAddr, payload: &[u8]) -> Vec<u8> {
    message(Class::Indication, Method::Send, TransactionId([0xdd; 12]), |writer| {
        writer.xor_peer_address(peer).data(payload);
    })
}

/// A ChannelData message that claims a length.
pub fn claimed(number: u16, len: u16, payload: &[u8]) -> Vec<u8> {
    [&number.to_be_bytes()[..], &len.to_be_bytes(), payload].concat()
}

/// A ChannelData message.
pub fn channel_data(number: u16, payload: &[u8]) -> Vec<u8> {
    claimed(number, payload.len() as u16, payload)
}

/// Sets the length field of a message to what follows its header.
pub fn fix_length(message: &mut [u8]) {
    let len = (message.len() - 20) as u16;
    message[2..4].copy_from_slice(&len.to_be_bytes());
}

/// UDP, as every good Allocate asks for.
pub fn transport(writer: &mut Writer<'_>) {
    writer.requested_transport(17);
}

/// A user behind a socket.
pub struct Attacker {
    pub socket: UdpSocket,
    pub name: String,
    pub password: String,
    pub nonce: Vec<u8>,
    transactions: u64,
    /// The integrity value of the last request that was signed.
    integrity: [u8; 20],
    inputs: Rc<Inputs>,
}

impl Attacker {
    /// Of the usual user, with a nonce.
    pub fn new(relay: SocketAddr, from: IpAddr, inputs: Rc<Inputs>) -> Self {
        let mut attacker = Self::stranger(relay, from, inputs);
        attacker.nonce = attacker.challenged();
        attacker
    }

    /// Without a nonce: the relay has not heard of it.
    pub fn stranger(relay: SocketAddr, from: IpAddr, inputs: Rc<Inputs>) -> Self {
        let socket = socket_on(from);
        socket.connect(relay).unwrap();
        let (name, password) = (USER.to_owned(), PASSWORD.to_owned());
        Self { socket, name, password, nonce: Vec::new(), transactions: 0, integrity: [0; 20], inputs }
    }

    pub fn with_user(self, name: &str, password: &str) -> Self {
        Self { name: name.to_owned(), password: password.to_owned(), ..self }
    }

    pub fn transaction(&mut self) -> TransactionId {
        self.transactions += 1;
        let mut id = [0x77; 12];
        id[..8].copy_from_slice(&self.transactions.to_be_bytes());
        TransactionId(id)
    }

    /// Counts one input and sends it.
    pub fn send(&self, bytes: &[u8]) {
        self.inputs.count_datagram(&self.essence(bytes));
        self.socket.send(bytes).unwrap();
    }

    /// A datagram without what is another each time though the same is said: the transaction and what is masked with it, the
    /// nonce that this client was given, and the integrity value over them.
    fn essence(&self, bytes: &[u8]) -> Vec<u8> {
        let mut essence = bytes.to_vec();
        if bytes.len() < 20 || bytes[0] >= 0x40 {
            return essence;
        }
        // XOR-PEER-ADDRESS of an IPv6 address.
        for at in (20..bytes.len().saturating_sub(23)).step_by(4) {
            if bytes[at..at + 6] == [0, 0x12, 0, 20, 0, 2] {
                for (byte, mask) in essence[at + 12..at + 24].iter_mut().zip(&bytes[8..20]) {
                    *byte ^= mask;
                }
            }
        }
        essence[8..20].fill(0);
        for known in [&self.nonce[..], &self.integrity] {
            let place = bytes.windows(known.len().max(1)).position(|window| window == known);
            if let Some(at) = place {
                essence[at..at + known.len()].fill(0);
            }
        }
        essence
    }

    /// What is next: the answer to this request.
    fn answered(&self, request: &[u8]) -> Vec<u8> {
        let (reply, _) = receive(&self.socket);
        let message = Message::parse(&reply).expect("answers are well-formed");
        assert_eq!(&message.transaction().0[..], &request[8..20], "an answer to something else");
        assert!(matches!(message.class(), Class::Success | Class::Error));
        reply
    }

    /// One input that has exactly one answer: the next exchange would meet a second one.
    pub fn exchange(&self, request: &[u8]) -> Vec<u8> {
        self.send(request);
        self.answered(request)
    }

    pub fn code(&self, request: &[u8]) -> Option<u16> {
        code(&self.exchange(request))
    }

    /// A Binding request whose answer it pays for, so that no budget is in the way, and whose answer is the next datagram.
    pub fn probe(&mut self) {
        let transaction = self.transaction();
        let request = message(Class::Request, Method::Binding, transaction, |writer| {
            writer.attribute(AttributeType::SOFTWARE, &[b'p'; 40]);
        });
        self.socket.send(&request).unwrap();
        assert_eq!(code(&self.answered(&request)), None);
    }

    /// One input that has no answer.
    pub fn silent(&mut self, bytes: &[u8]) {
        self.send(bytes);
        self.probe();
    }

    /// The nonce for this client now.
    pub fn challenged(&mut self) -> Vec<u8> {
        let transaction = self.transaction();
        let request = message(Class::Request, Method::Refresh, transaction, |_| {});
        self.socket.send(&request).unwrap();
        let reply = self.answered(&request);
        assert_eq!(code(&reply), Some(401));
        Message::parse(&reply).unwrap().nonce().unwrap().to_vec()
    }

    pub fn key(&self) -> Key {
        Key::long_term(self.name.as_bytes(), REALM.as_bytes(), self.password.as_bytes())
    }

    /// The SHA-256 credentials of RFC 8489 with a key by this algorithm.
    pub fn newer_key(&self, algorithm: PasswordAlgorithm) -> dataplane::stun::LongTermKey {
        let (name, password) = (self.name.as_bytes(), self.password.as_bytes());
        dataplane::stun::LongTermKey::new(algorithm, name, REALM.as_bytes(), password)
    }

    /// A request with credentials.
    pub fn signed(&mut self, method: Method, fill: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
        let transaction = self.transaction();
        let mut buffer = vec![0; 20_000];
        let mut writer = Writer::new(&mut buffer, Class::Request, method, transaction).unwrap();
        fill(&mut writer);
        writer.username(self.name.as_bytes()).realm(REALM.as_bytes()).nonce(&self.nonce);
        let len = writer.finish(Some(&self.key()), false).unwrap();
        buffer.truncate(len);
        self.integrity.copy_from_slice(&buffer[len - 20..]);
        buffer
    }

    /// One input: a request with credentials, and its authentic answer.
    pub fn ask(&mut self, method: Method, fill: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
        let request = self.signed(method, fill);
        let reply = self.exchange(&request);
        assert!(Message::parse(&reply).unwrap().verify_integrity(&self.key()), "{:?}", code(&reply));
        reply
    }

    pub fn try_allocate(&mut self, fill: impl FnOnce(&mut Writer<'_>)) -> Option<u16> {
        code(&self.ask(Method::Allocate, |writer| {
            transport(writer);
            fill(writer);
        }))
    }

    pub fn permit(&mut self, peer: SocketAddr) -> Option<u16> {
        code(&self.ask(Method::CreatePermission, |writer| {
            writer.xor_peer_address(peer);
        }))
    }

    pub fn bind(&mut self, number: u16, peer: SocketAddr) -> Option<u16> {
        let [high, low] = number.to_be_bytes();
        code(&self.ask(Method::ChannelBind, |writer| {
            writer.attribute(AttributeType::CHANNEL_NUMBER, &[high, low, 0, 0]).xor_peer_address(peer);
        }))
    }

    pub fn refresh(&mut self, seconds: u32) -> Vec<u8> {
        self.ask(Method::Refresh, |writer| {
            writer.lifetime(seconds);
        })
    }

    /// An allocation; its relayed address.
    pub fn allocate(&mut self) -> SocketAddr {
        self.allocate_of(AddressFamily::V4)
    }

    pub fn allocate_of(&mut self, family: AddressFamily) -> SocketAddr {
        let reply = self.ask(Method::Allocate, |writer| {
            writer.requested_transport(17).requested_address_family(family);
        });
        assert_eq!(code(&reply), None);
        Message::parse(&reply).unwrap().xor_relayed_address().unwrap().unwrap()
    }

    /// Deletes what it has, and has got nothing that nobody asked for.
    pub fn leave(mut self) {
        let gone = self.refresh(0);
        assert!(matches!(code(&gone), None | Some(437)), "{:?}", code(&gone));
        self.quiet();
    }

    /// Nothing waits for it.
    pub fn quiet(&self) {
        self.socket.set_nonblocking(true).unwrap();
        let next = self.socket.recv(&mut [0; 64]);
        assert_eq!(next.map_err(|error| error.kind()), Err(ErrorKind::WouldBlock), "something more came");
        self.socket.set_nonblocking(false).unwrap();
    }
}

/// Where attackers are if nothing else is said.
pub const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
