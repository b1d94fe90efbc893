//! A server with two users, and clients that know how to ask.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use dataplane::stun::{AttributeType, Class, ErrorCode, Key, Message, Method, TransactionId, Writer};

use super::super::*;

pub const REALM: &str = "example.org";
pub const LOCAL: &str = "198.41.0.4";

#[expect(clippy::disallowed_methods, reason = "an arbitrary origin for virtual time")]
pub fn origin() -> Instant {
    Instant::now()
}

pub fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub fn settings() -> Settings {
    let mut credentials = Credentials::new(REALM);
    credentials.add("alice", "secret");
    credentials.add("bob", "hidden");
    let policy = PeerPolicy {
        allow: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
        own_sockets: vec![address("0.0.0.0:3478"), address("0.0.0.0:5349")],
        own_datagram_sockets: vec![address("0.0.0.0:3478")],
        own_addresses: [LOCAL.parse().unwrap()].into(),
        ..PeerPolicy::default()
    };
    Settings {
        credentials,
        policy,
        relay_ports: 50_000..=50_999,
        relay_addresses: vec![LOCAL.parse().unwrap(), "2600::4".parse().unwrap()],
        external: Vec::new(),
        channel_numbers: ChannelNumbers::Rfc8656,
        allocations_max: 100,
        allocations_per_user_max: 10,
        limits: Limits::default(),
        hairpin: true,
        port_sharing: false,
    }
}

/// Everything the server holds for its clients, and of strangers nothing: what a datagram that is not granted leaves as it was.
/// Figures, budgets of answers and what the operator was told may change with every datagram.
pub fn state(server: &Server) -> String {
    format!(
        "{:?} {:?} {} {:?} {:?} {:?}",
        server.table,
        server.directory,
        server.commons.holdings(),
        server.credentials,
        server.commands,
        server.draining
    )
}

/// A server and its clock.
pub struct Fixture {
    pub server: Server,
    pub now: Instant,
    pub transactions: u8,
}

impl Fixture {
    pub fn new() -> Self {
        Self::with(settings())
    }

    pub fn with(settings: Settings) -> Self {
        let now = origin();
        Self { server: Server::new(settings, &[9; 32]), now, transactions: 0 }
    }

    pub fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    pub fn transaction(&mut self) -> TransactionId {
        self.transactions += 1;
        TransactionId([self.transactions; 12])
    }

    pub fn handle(&mut self, client: &ClientSocket, datagram: &[u8]) -> FromClient {
        self.server.handle_client(client, datagram, self.now)
    }

    /// A request of a user, answered; the socket is opened where one is wanted.
    pub fn ask(&mut self, user: &User, method: Method, fill: impl FnOnce(&mut Writer<'_>)) -> Reply {
        let transaction = self.transaction();
        self.ask_again(user, method, transaction, fill)
    }

    pub fn ask_again(
        &mut self,
        user: &User,
        method: Method,
        transaction: TransactionId,
        fill: impl FnOnce(&mut Writer<'_>),
    ) -> Reply {
        let nonce = self.nonce(user);
        let datagram = request(user, method, transaction, &nonce, fill);
        match self.handle(&user.client, &datagram) {
            FromClient::Reply => {}
            FromClient::OpenRelay { allocation, .. } => self.open_all(user, allocation),
            other => panic!("no answer: {other:?}"),
        }
        let reply = Reply(self.server.reply().to_vec());
        let message = reply.message();
        assert_eq!((message.transaction(), message.method()), (transaction, method));
        assert!(message.verify_integrity(&user.key()), "authentic requests have authentic answers");
        reply
    }

    /// Opens the sockets of an allocation until its client can be answered.
    pub fn open_all(&mut self, user: &User, mut allocation: AllocationId) {
        loop {
            match self.server.handle_relay_opened(allocation, Ok(()), self.now) {
                Opened::Also { allocation: other, .. } => allocation = other,
                opened => return assert_eq!(opened, Opened::Reply { client: user.client }),
            }
        }
    }

    /// The nonce the server gives this client now.
    pub fn nonce(&mut self, user: &User) -> Vec<u8> {
        let bare = bare(Method::Refresh, TransactionId([0xee; 12]));
        assert_eq!(self.handle(&user.client, &bare), FromClient::Reply);
        Message::parse(self.server.reply()).unwrap().nonce().unwrap().to_vec()
    }

    pub fn allocate(&mut self, user: &User) -> SocketAddr {
        let reply = self.ask(user, Method::Allocate, |writer| {
            writer.requested_transport(17);
        });
        assert_eq!(reply.code(), None);
        reply.message().xor_relayed_address().unwrap().unwrap()
    }

    pub fn pair(&self, user: &User) -> Pair {
        self.server.find(&user.client, self.now).expect("there is an allocation")
    }

    pub fn id(&self, user: &User) -> AllocationId {
        self.pair(user).first
    }

    pub fn bind(&mut self, user: &User, number: u16, peer: &str) -> Option<u16> {
        let peer = address(peer);
        self.ask(user, Method::ChannelBind, |writer| {
            let [high, low] = number.to_be_bytes();
            writer.attribute(AttributeType::CHANNEL_NUMBER, &[high, low, 0, 0]).xor_peer_address(peer);
        })
        .code()
    }

    pub fn permit(&mut self, user: &User, peers: &[&str]) -> Option<u16> {
        self.ask(user, Method::CreatePermission, |writer| {
            for peer in peers {
                writer.xor_peer_address(address(peer));
            }
        })
        .code()
    }

    pub fn refresh(&mut self, user: &User, lifetime: Option<u32>) -> Reply {
        self.ask(user, Method::Refresh, |writer| {
            if let Some(seconds) = lifetime {
                writer.lifetime(seconds);
            }
        })
    }
}

/// Someone with a password behind a socket.
#[derive(Clone)]
pub struct User {
    pub name: &'static str,
    pub password: &'static str,
    pub client: ClientSocket,
}

impl User {
    pub fn alice() -> Self {
        Self { name: "alice", password: "secret", client: client("192.0.2.1:1000") }
    }

    pub fn bob() -> Self {
        Self { name: "bob", password: "hidden", client: client("192.0.2.2:2000") }
    }

    pub fn at(&self, from: &str) -> Self {
        Self { client: client(from), ..self.clone() }
    }

    pub fn key(&self) -> Key {
        Key::long_term(self.name.as_bytes(), REALM.as_bytes(), self.password.as_bytes())
    }
}

pub fn client(from: &str) -> ClientSocket {
    ClientSocket { address: address(from), listener: Listener(0), local: Some(LOCAL.parse().unwrap()) }
}

/// An answer.
pub struct Reply(pub Vec<u8>);

impl Reply {
    pub fn message(&self) -> Message<'_> {
        Message::parse(&self.0).unwrap()
    }

    /// The error code, or nothing when it is a success.
    pub fn code(&self) -> Option<u16> {
        let message = self.message();
        let code = message.error_code().unwrap().map(|ErrorCode(code)| code);
        assert_eq!(message.class() == Class::Error, code.is_some());
        code
    }

    pub fn lifetime(&self) -> Option<u32> {
        self.message().lifetime().unwrap()
    }
}

/// A message without attributes.
pub fn bare(method: Method, transaction: TransactionId) -> Vec<u8> {
    write(Class::Request, method, transaction, |_| {})
}

/// A message without integrity.
pub fn write(
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

/// A request with integrity.
pub fn request(
    user: &User,
    method: Method,
    transaction: TransactionId,
    nonce: &[u8],
    fill: impl FnOnce(&mut Writer<'_>),
) -> Vec<u8> {
    let mut buffer = vec![0; 20_000];
    let mut writer = Writer::new(&mut buffer, Class::Request, method, transaction).unwrap();
    fill(&mut writer);
    writer.username(user.name.as_bytes()).realm(REALM.as_bytes()).nonce(nonce);
    let len = writer.finish(Some(&user.key()), false).unwrap();
    buffer.truncate(len);
    buffer
}

/// A Send indication.
pub fn send(peer: &str, payload: &[u8]) -> Vec<u8> {
    write(Class::Indication, Method::Send, TransactionId([0xdd; 12]), |writer| {
        writer.xor_peer_address(address(peer)).data(payload);
    })
}

/// A ChannelData message.
pub fn channel_data(number: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.extend((payload.len() as u16).to_be_bytes());
    bytes.extend(payload);
    bytes
}
