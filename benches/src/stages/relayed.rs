//! A relay with allocations, each with channels, and STUN messages as clients send them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use dataplane::stun::{ChannelNumber, Class, Key, Message, Method, TransactionId, Writer};
use relay::server::auth::Credentials;
use relay::server::limits::Limits;
use relay::server::policy::PeerPolicy;
use relay::server::{
    AllocationId, ChannelNumbers, ClientSocket, FromClient, FromPeer, Listener, Opened, PeerSocket, Server,
    Settings,
};

use super::origin;

const REALM: &str = "example.org";
const USER: &str = "alice";
const PASSWORD: &str = "secret";
const LOCAL: Ipv4Addr = Ipv4Addr::new(198, 41, 0, 4);
/// Bytes relayed in one datagram.
pub const PAYLOAD_LEN: usize = 1_200;

/// A relay that has something to look up.
pub struct Relayed {
    server: Server,
    clients: Vec<(ClientSocket, AllocationId)>,
    datagram: Vec<u8>,
    peer: PeerSocket,
    next: usize,
    now: Instant,
}

impl Relayed {
    /// `allocations` clients with `channels` channels each; datagrams take the last one.
    ///
    /// # Panics
    /// When the relay refuses.
    #[must_use]
    pub fn new(allocations: u16, channels: u16) -> Self {
        let now = origin();
        let mut server = Server::new(settings(), &[9; 32]);
        let clients = (0..allocations).map(|index| {
            let client = client(index);
            let id = allocate(&mut server, &client, now);
            (0..channels).for_each(|channel| bind(&mut server, &client, channel, now));
            (client, id)
        });
        let clients: Vec<_> = clients.collect();
        let header = dataplane::stun::channel_data::header(number(channels - 1), PAYLOAD_LEN);
        let datagram = [&header.expect("a short payload")[..], &[0x5a; PAYLOAD_LEN]].concat();
        Self { server, clients, datagram, peer: PeerSocket(peer(channels - 1)), next: 0, now }
    }

    /// Takes ChannelData from the next client.
    ///
    /// # Panics
    /// When it would not be forwarded.
    pub fn from_client(&mut self) {
        let (client, _) = self.turn();
        let outcome = self.server.handle_client(&client, &self.datagram, self.now);
        assert!(matches!(outcome, FromClient::Forward { peer, .. } if peer == self.peer), "{outcome:?}");
    }

    /// Takes a datagram from the peer to the next client.
    ///
    /// # Panics
    /// When it would not be forwarded.
    pub fn from_peer(&mut self) {
        let (_, allocation) = self.turn();
        let outcome = self.server.handle_peer(allocation, self.peer, self.now);
        assert!(matches!(outcome, FromPeer::Channel { .. }), "{outcome:?}");
    }

    fn turn(&mut self) -> (ClientSocket, AllocationId) {
        let turn = self.clients[self.next];
        self.next = if self.next + 1 == self.clients.len() { 0 } else { self.next + 1 };
        turn
    }
}

/// The key of the user whose requests these are.
#[must_use]
pub fn key() -> Key {
    Key::long_term(USER.as_bytes(), REALM.as_bytes(), PASSWORD.as_bytes())
}

/// Writes an authenticated Allocate request; its length.
///
/// # Panics
/// When `buffer` is shorter than 200 bytes.
pub fn write_allocate(buffer: &mut [u8], key: &Key, nonce: &[u8]) -> usize {
    write_request(buffer, Method::Allocate, key, nonce, |writer| {
        writer.requested_transport(dataplane::stun::TRANSPORT_UDP);
    })
}

/// Writes the answer to a Binding request; its length.
///
/// # Panics
/// When `buffer` is shorter than 100 bytes.
pub fn write_binding_success(buffer: &mut [u8], mapped: SocketAddr) -> usize {
    let mut writer =
        Writer::new(buffer, Class::Success, Method::Binding, TransactionId([7; 12])).expect("room");
    writer.xor_mapped_address(mapped);
    writer.finish(None, true).expect("room")
}

fn write_request(
    buffer: &mut [u8],
    method: Method,
    key: &Key,
    nonce: &[u8],
    fill: impl FnOnce(&mut Writer<'_>),
) -> usize {
    let mut writer = Writer::new(buffer, Class::Request, method, TransactionId([7; 12])).expect("room");
    fill(&mut writer);
    writer.username(USER.as_bytes()).realm(REALM.as_bytes()).nonce(nonce);
    writer.finish(Some(key), true).expect("room")
}

fn settings() -> Settings {
    let mut credentials = Credentials::new(REALM);
    credentials.add(USER, PASSWORD);
    Settings {
        credentials,
        policy: PeerPolicy {
            allow: vec!["192.0.2.0/24".parse().expect("a prefix")],
            own_sockets: vec![SocketAddr::from((LOCAL, 3478))],
            own_addresses: [LOCAL.into()].into(),
            ..PeerPolicy::default()
        },
        relay_ports: 1_024..=u16::MAX,
        relay_addresses: vec![LOCAL.into()],
        external: Vec::new(),
        channel_numbers: ChannelNumbers::Rfc8656,
        allocations_max: u32::MAX,
        allocations_per_user_max: u32::MAX,
        // All clients here are one user and ask in the same instant.
        limits: Limits { new_peers_per_s: None, ..Limits::default() },
        hairpin: true,
        port_sharing: false,
    }
}

fn client(index: u16) -> ClientSocket {
    let [high, low] = index.to_be_bytes();
    let address = SocketAddr::from((Ipv4Addr::new(100, 64, high, low), 40_000));
    ClientSocket { address, listener: Listener(0), local: Some(LOCAL.into()) }
}

fn peer(channel: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 5_000 + channel))
}

fn number(channel: u16) -> ChannelNumber {
    ChannelNumber::new(ChannelNumber::MIN.get() + channel).expect("few channels")
}

/// The nonce that the relay gives this client.
fn nonce(server: &mut Server, client: &ClientSocket, now: Instant) -> Vec<u8> {
    let mut buffer = [0; 100];
    let writer = Writer::new(&mut buffer, Class::Request, Method::Refresh, TransactionId([1; 12]));
    let len = writer.and_then(|writer| writer.finish(None, false)).expect("room");
    assert_eq!(server.handle_client(client, &buffer[..len], now), FromClient::Reply);
    Message::parse(server.reply()).ok().and_then(|message| message.nonce()).expect("a challenge").to_vec()
}

fn allocate(server: &mut Server, client: &ClientSocket, now: Instant) -> AllocationId {
    let nonce = nonce(server, client, now);
    let mut buffer = [0; 300];
    let len = write_allocate(&mut buffer, &key(), &nonce);
    let asked = server.handle_client(client, &buffer[..len], now);
    let FromClient::OpenRelay { allocation, .. } = asked else { panic!("no allocation: {asked:?}") };
    let opened = server.handle_relay_opened(allocation, Ok(()), now);
    assert_eq!(opened, Opened::Reply { client: *client });
    allocation
}

fn bind(server: &mut Server, client: &ClientSocket, channel: u16, now: Instant) {
    let nonce = nonce(server, client, now);
    let mut buffer = [0; 300];
    let len = write_request(&mut buffer, Method::ChannelBind, &key(), &nonce, |writer| {
        writer.channel_number(number(channel)).xor_peer_address(peer(channel));
    });
    assert_eq!(server.handle_client(client, &buffer[..len], now), FromClient::Reply);
    let reply = Message::parse(server.reply()).expect("a STUN message");
    assert_eq!(reply.class(), Class::Success, "the channel is bound");
}
