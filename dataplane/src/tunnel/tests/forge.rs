//! A far end whose time stamps, counters and messages a test chooses: the handshake is snow's, not the one we use.

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput as _, KeyInit as _};
use blake2::{Blake2s256, Blake2sMac, Digest as _};
use snow::{Builder, HandshakeState, StatelessTransportState};

use super::*;
use crate::wire::wireguard::{COOKIE_REPLY, INITIATION, RESPONSE};

const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
/// The index this end calls itself by.
const INDEX: [u8; 4] = [0xf0, 0x06, 0x9e, 0x0f];

/// Time stamp of an initiation: seconds and nanoseconds.
pub type Stamp = (u64, u32);

/// An initiation under way.
pub struct Initiation {
    pub bytes: Vec<u8>,
    state: HandshakeState,
}

/// A session with a tunnel.
pub struct Session {
    state: StatelessTransportState,
    /// The index the tunnel calls itself by.
    pub receiver: [u8; 4],
}

impl Initiation {
    /// Of the end with the private key `secret(seed)` to the one with `secret(to)`.
    pub fn new(seed: u8, to: u8, (seconds, nanos): Stamp) -> Self {
        let (private, public, none) = (secret(seed), noise::public_key(&secret(to)), [0; 32]);
        let mut state = Builder::new(PATTERN.parse().expect("a pattern"))
            .local_private_key(private.expose())
            .and_then(|builder| builder.remote_public_key(&public.0))
            .and_then(|builder| builder.psk(2, &none))
            .and_then(|builder| builder.prologue(PROLOGUE))
            .and_then(Builder::build_initiator)
            .expect("a handshake");
        let mut stamp = [0; 12];
        stamp[..8].copy_from_slice(&(1 << 62 | seconds).to_be_bytes());
        stamp[8..].copy_from_slice(&nanos.to_be_bytes());
        let mut bytes = vec![0; INITIATION];
        bytes[0] = 1;
        bytes[4..8].copy_from_slice(&INDEX);
        assert_eq!(state.write_message(&stamp, &mut bytes[8..116]).expect("fits"), 108);
        set_mac1(&mut bytes, to);
        Self { bytes, state }
    }

    /// Takes the answer.
    pub fn finish(mut self, response: &[u8]) -> Session {
        assert_eq!((response.len(), &response[8..12]), (RESPONSE, INDEX.as_slice()));
        assert_eq!(self.state.read_message(&response[12..60], &mut []).expect("authentic"), 0);
        let state = self.state.into_stateless_transport_mode().expect("complete");
        Session { state, receiver: response[4..8].try_into().expect("an index") }
    }
}

impl Session {
    /// A handshake with `tunnel`, whose private key is `secret(to)`, from `from`; dated later than any by our own clock.
    pub fn new(seed: u8, to: u8, tunnel: &mut Tunnel, from: &str, now: Instant) -> Self {
        let initiation = Initiation::new(seed, to, (1 << 40, 0));
        assert_eq!(open(tunnel, &initiation.bytes, from, now), Ok(None));
        let response = tunnel.poll_transmit().expect("an answer");
        initiation.finish(response.bytes())
    }

    /// A message with this counter.
    pub fn seal(&self, counter: u64, inner: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; inner.len().next_multiple_of(16) + 32];
        bytes[0] = 4;
        bytes[4..8].copy_from_slice(&self.receiver);
        bytes[8..16].copy_from_slice(&counter.to_le_bytes());
        let mut padded = inner.to_vec();
        padded.resize(inner.len().next_multiple_of(16), 0);
        self.state.write_message(counter, &padded, &mut bytes[16..]).expect("fits");
        bytes
    }
}

/// Makes mac1 of a handshake message to `secret(to)` right, as everyone can who knows the public key.
pub fn set_mac1(message: &mut [u8], to: u8) {
    let key =
        Blake2s256::new().chain_update(b"mac1----").chain_update(noise::public_key(&secret(to)).0).finalize();
    let at = message.len() - 32;
    let mut mac = Blake2sMac::<U16>::new_from_slice(&key).expect("32 bytes");
    blake2::digest::Update::update(&mut mac, &message[..at]);
    message[at..at + 16].copy_from_slice(&mac.finalize_fixed());
}

/// The next control message of a tunnel, if it is a cookie reply.
pub fn cookie_reply(tunnel: &mut Tunnel) -> Option<Vec<u8>> {
    tunnel.poll_transmit().map(|message| message.bytes().to_vec()).filter(|bytes| bytes.len() == COOKIE_REPLY)
}

#[test]
fn it_is_a_peer_as_any_other() {
    let mut pair = Pair::new();
    let session = Session::new(1, 2, &mut pair.b, A_OUTSIDE, pair.now);
    let inner = packet(A_INSIDE, B_INSIDE, b"forged");
    assert_eq!(pair.at_b(&session.seal(0, &inner)), Some(inner));
    assert!(pair.b.ready(PEER, pair.now).is_some(), "the session is confirmed");
}
