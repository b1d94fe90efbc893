//! Two WireGuard endpoints with a session between them.

use std::time::Instant;

use dataplane::packet::Packet;
use dataplane::tunnel::key::SecretKey;
use dataplane::tunnel::{Opened, Path, PeerConfig, PeerIndex, Tunnel, TunnelConfig, noise};

use super::origin;

/// The only peer of each side.
const PEER: PeerIndex = PeerIndex(0);
const MTU: usize = 1_420;
const IP_HEADER_LEN: usize = 20;

/// Two endpoints; packets go from the one to the other.
pub struct Pair {
    sender: Tunnel,
    receiver: Tunnel,
    packet: Box<Packet>,
    now: Instant,
}

impl Pair {
    /// Makes both and lets them shake hands.
    ///
    /// # Panics
    /// When there is no session afterwards.
    #[must_use]
    pub fn connected() -> Self {
        let now = origin();
        let mut pair =
            Self { sender: endpoint(1, 2, now), receiver: endpoint(2, 1, now), packet: Box::default(), now };
        pair.sender.stage(PEER, &inner(IP_HEADER_LEN), now);
        while let Some(message) = pair.sender.poll_transmit() {
            pair.receiver.open(message.bytes(), path(1), &mut pair.packet, now);
            while let Some(answer) = pair.receiver.poll_transmit() {
                pair.sender.open(answer.bytes(), path(2), &mut pair.packet, now);
            }
        }
        assert!(pair.sender.ready(PEER, now).is_some(), "the handshake was answered");
        pair
    }

    /// Makes an IP packet of `len` bytes the stack packet, padded; how long it becomes sealed.
    ///
    /// # Panics
    /// When `len` is shorter than an IP header or longer than the MTU.
    pub fn load(&mut self, len: usize) -> usize {
        assert!((IP_HEADER_LEN..=MTU).contains(&len));
        self.packet.copy_from(&inner(len)).expect("the MTU fits");
        self.sender.pad(&mut self.packet);
        Tunnel::sealed_len(self.packet.len())
    }

    /// Seals the stack packet into `out`, of the length that [`Pair::load`] answered.
    ///
    /// # Panics
    /// When there is no session.
    pub fn seal(&mut self, out: &mut [u8]) {
        assert!(self.sender.ready(PEER, self.now).is_some());
        assert!(self.sender.seal(PEER, self.packet.as_slice(), out, self.now));
    }

    /// `count` sealed packets of `len` bytes, which the other side has not seen.
    #[must_use]
    pub fn sealed(&mut self, count: usize, len: usize) -> Vec<Vec<u8>> {
        let sealed_len = self.load(len);
        let one = |_| {
            let mut out = vec![0; sealed_len];
            self.seal(&mut out);
            out
        };
        (0..count).map(one).collect()
    }

    /// Opens a datagram from [`Pair::sealed`] at the other side.
    ///
    /// # Panics
    /// When it is refused: each can be opened once, and not after a thousand later ones.
    pub fn open(&mut self, datagram: &[u8]) {
        let opened = self.receiver.open(datagram, path(1), &mut self.packet, self.now);
        assert_eq!(opened, Opened::Packet(PEER));
    }
}

fn path(side: u8) -> Path {
    Path::Direct { to: ([192, 0, 2, side], 51_820).into(), from: None }
}

fn secret(side: u8) -> SecretKey {
    SecretKey::new([side; 32]).clamped()
}

fn endpoint(side: u8, other: u8, now: Instant) -> Tunnel {
    let peer = PeerConfig {
        public_key: noise::public_key(&secret(other)),
        preshared_key: None,
        allowed_ips: vec![format!("10.9.0.{other}/32").parse().expect("a prefix")],
        path: Some(path(other)),
        awaits_path: false,
        persistent_keepalive: None,
    };
    let config = TunnelConfig {
        private_key: secret(side),
        mtu: MTU,
        peers: vec![peer],
        seed: side.into(),
        cookie_secret: [side; 32],
    };
    Tunnel::new(&config, now)
}

/// An IPv4 packet from the first side to the second.
fn inner(len: usize) -> Vec<u8> {
    let mut packet = vec![0x5a; len];
    packet[..IP_HEADER_LEN]
        .copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet
}
