//! A client that sends any bytes, knows what must come back, and counts what it sent.

use std::cell::Cell;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::rc::Rc;

use dataplane::stun::{
    AddressFamily, AttributeType, Class, Key, Message, Method, PasswordAlgorithm, TransactionId, Writer,
};

use super::harness::{PASSWORD, REALM, USER, code, receive, socket_on};

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
    inputs: Rc<Cell<u64>>,
}

impl Attacker {
    /// Of the usual user, with a nonce.
    pub fn new(relay: SocketAddr, from: IpAddr, inputs: Rc<Cell<u64>>) -> Self {
        let mut attacker = Self::stranger(relay, from, inputs);
        attacker.nonce = attacker.challenged();
        attacker
    }

    /// Without a nonce: the relay has not heard of it.
    pub fn stranger(relay: SocketAddr, from: IpAddr, inputs: Rc<Cell<u64>>) -> Self {
        let socket = socket_on(from);
        socket.connect(relay).unwrap();
        let (name, password) = (USER.to_owned(), PASSWORD.to_owned());
        Self { socket, name, password, nonce: Vec::new(), transactions: 0, inputs }
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

    fn count(&self) {
        self.inputs.set(self.inputs.get() + 1);
    }

    /// Counts one input and sends it.
    pub fn send(&self, bytes: &[u8]) {
        self.count();
        self.socket.send(bytes).unwrap();
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
