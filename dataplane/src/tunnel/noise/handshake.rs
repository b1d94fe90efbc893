//! The handshake Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s (WireGuard paper, section 5.4; Noise specification, revision 34): what
//! goes into each message and comes out of it, without MACs, state or randomness of its own.
//!
//! | message | what it mixes in |
//! |---|---|
//! | initiation | ephemeral key, DH(e, S), the initiator's key, DH(s, S), a time stamp |
//! | response | ephemeral key, DH(e, E), DH(e, S), the preshared key, nothing |

use blake2::{Blake2s256, Digest as _};
use hkdf::SimpleHkdf;
use ring::aead::{Aad, Tag};
use x25519_dalek::{PublicKey as Point, SharedSecret, StaticSecret};
use zeroize::{Zeroize as _, Zeroizing};

use super::world::Stamp;
use crate::crypto::Secret;
use crate::crypto::aead::{cipher, nonce};
use crate::tunnel::key::{KEY_LEN, PublicKey, SecretKey};
use crate::wire::wireguard::{self, INITIATION, Message, RESPONSE, SessionIndex, TAG};

const PATTERN: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
const STAMP_LEN: usize = size_of::<Stamp>();

/// A private key and the public one that belongs to it.
pub(super) struct KeyPair {
    /// In memory of its own, because what holds the pair is moved.
    private: Box<StaticSecret>,
    /// The public key.
    pub public: PublicKey,
}

impl KeyPair {
    /// Clamps the private key.
    pub fn new(private: [u8; KEY_LEN]) -> Self {
        let private = Box::new(StaticSecret::from(private));
        let public = PublicKey(*Point::from(&*private).as_bytes());
        Self { private, public }
    }

    /// What only this pair and the owner of `other` know; `None` when everyone does, because `other` is of small order.
    pub fn agree(&self, other: &PublicKey) -> Option<SharedSecret> {
        Some(self.private.diffie_hellman(&Point::from(other.0))).filter(SharedSecret::was_contributory)
    }
}

/// Keys of a session.
pub(super) struct SessionKeys {
    /// Seals what this side sends.
    pub sending: Secret,
    /// Opens what it receives.
    pub receiving: Secret,
}

/// Hash and chaining key of all that was said so far.
#[derive(Clone)]
struct Transcript {
    chaining: Secret,
    hash: [u8; 32],
}

impl Transcript {
    /// Of a handshake with the owner of `responder`.
    fn new(responder: &PublicKey) -> Self {
        let chaining: [u8; 32] = Blake2s256::digest(PATTERN).into();
        let hash = Blake2s256::new().chain_update(chaining).chain_update(PROLOGUE).finalize().into();
        let mut transcript = Self { chaining: Zeroizing::new(chaining), hash };
        transcript.mix_hash(&responder.0);
        transcript
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.hash = Blake2s256::new().chain_update(self.hash).chain_update(data).finalize().into();
    }

    /// Derives as many keys as `LEN` bytes are, the first of which becomes the chaining key.
    fn derive<const LEN: usize>(&mut self, input: &[u8]) -> Zeroizing<[u8; LEN]> {
        let mut keys = Zeroizing::new([0; LEN]);
        SimpleHkdf::<Blake2s256>::new(Some(self.chaining.as_slice()), input)
            .expand(&[], keys.as_mut_slice())
            .expect("three keys at most");
        self.chaining.copy_from_slice(&keys[..KEY_LEN]);
        keys
    }

    /// Takes in an ephemeral public key.
    fn mix_ephemeral(&mut self, public: &PublicKey) {
        self.derive::<KEY_LEN>(&public.0);
        self.mix_hash(&public.0);
    }

    /// Takes in a shared secret; the key for what is sealed next.
    fn mix_key(&mut self, shared: &[u8; KEY_LEN]) -> Secret {
        last_key(&*self.derive::<{ 2 * KEY_LEN }>(shared))
    }

    /// Takes in the preshared key, zeros where there is none; the key for what is sealed next.
    fn mix_preshared(&mut self, preshared: Option<&SecretKey>) -> Secret {
        let preshared: &[u8; KEY_LEN] = preshared.map_or(&[0; KEY_LEN], SecretKey::expose);
        let keys = self.derive::<{ 3 * KEY_LEN }>(preshared);
        self.mix_hash(&keys[KEY_LEN..2 * KEY_LEN]);
        last_key(&*keys)
    }

    /// Seals `plain` into `out`, which is a tag longer.
    fn seal(&mut self, key: &Secret, plain: &[u8], out: &mut [u8]) {
        let (body, tag) = out.split_at_mut(plain.len());
        body.copy_from_slice(plain);
        let sealed = cipher(key).seal_in_place_separate_tag(nonce(0), Aad::from(self.hash), body);
        tag.copy_from_slice(sealed.expect("a short message").as_ref());
        self.mix_hash(out);
    }

    /// Opens `sealed`, which is `LEN` bytes and a tag; `None` when it is not authentic.
    fn open<const LEN: usize>(&mut self, key: &Secret, sealed: &[u8]) -> Option<[u8; LEN]> {
        let (body, tag) = sealed.split_at_checked(LEN)?;
        let mut plain: [u8; LEN] = body.try_into().ok()?;
        let tag = Tag::try_from(tag).ok()?;
        cipher(key).open_in_place_separate_tag(nonce(0), Aad::from(self.hash), tag, &mut plain, 0..).ok()?;
        self.mix_hash(sealed);
        Some(plain)
    }

    /// Ends the handshake: the keys of who initiated it.
    fn split(mut self) -> SessionKeys {
        let keys = self.derive::<{ 2 * KEY_LEN }>(&[]);
        let first = Zeroizing::new(*self.chaining);
        SessionKeys { sending: first, receiving: last_key(&*keys) }
    }
}

fn last_key(keys: &[u8]) -> Secret {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    key.copy_from_slice(&keys[keys.len() - KEY_LEN..]);
    key
}

/// What both ends of two static keys know, whatever the handshake; `None` as in [`KeyPair::agree`].
pub(super) fn static_secret(own: &KeyPair, peer: &PublicKey) -> Option<Secret> {
    Some(Zeroizing::new(own.agree(peer)?.to_bytes()))
}

/// An initiation that waits for its response.
pub(super) struct Pending {
    /// The index in it.
    pub local: SessionIndex,
    ephemeral: KeyPair,
    transcript: Transcript,
}

/// Writes an initiation up to its MACs; `None` when the peer's key is of small order. `ephemeral` is random and for this
/// message only.
pub(super) fn initiate(
    own: &KeyPair,
    peer: &PublicKey,
    static_secret: &Secret,
    mut ephemeral: [u8; KEY_LEN],
    local: SessionIndex,
    stamp: &Stamp,
    out: &mut [u8; INITIATION],
) -> Option<Pending> {
    let pair = KeyPair::new(ephemeral);
    ephemeral.zeroize();
    let mut transcript = Transcript::new(peer);
    transcript.mix_ephemeral(&pair.public);
    out[..4].copy_from_slice(&[1, 0, 0, 0]);
    out[4..8].copy_from_slice(&local.0.to_le_bytes());
    out[8..40].copy_from_slice(&pair.public.0);
    let key = transcript.mix_key(pair.agree(peer)?.as_bytes());
    transcript.seal(&key, &own.public.0, &mut out[40..88]);
    let key = transcript.mix_key(static_secret);
    transcript.seal(&key, stamp.as_bytes(), &mut out[88..116]);
    Some(Pending { local, ephemeral: pair, transcript })
}

/// An initiation of which it is known who claims to have sent it. The claim was encrypted to us, and is not yet proved.
pub struct Claim {
    /// Who it is said to be from.
    pub sender: PublicKey,
    index: SessionIndex,
    ephemeral: PublicKey,
    transcript: Transcript,
    /// The sealed time stamp.
    stamp: [u8; STAMP_LEN + TAG],
}

/// Reads who claims to have sent an initiation: one Diffie-Hellman.
pub(super) fn claim(own: &KeyPair, datagram: &[u8]) -> Option<Claim> {
    let Some(Message::Initiation { sender: index }) = wireguard::parse(datagram) else {
        return None;
    };
    let ephemeral = PublicKey(datagram.get(8..40)?.try_into().ok()?);
    let mut transcript = Transcript::new(&own.public);
    transcript.mix_ephemeral(&ephemeral);
    let key = transcript.mix_key(own.agree(&ephemeral)?.as_bytes());
    let sender = PublicKey(transcript.open(&key, datagram.get(40..88)?)?);
    let stamp = datagram.get(88..116)?.try_into().ok()?;
    Some(Claim { sender, index, ephemeral, transcript, stamp })
}

/// An initiation that is from whom it claims to be, if its time stamp is new.
pub(super) struct Proved {
    /// The index in it.
    pub remote: SessionIndex,
    /// When it was made, by its sender's clock.
    pub stamp: Stamp,
    sender: PublicKey,
    ephemeral: PublicKey,
    transcript: Transcript,
}

impl Claim {
    /// Reads the time stamp, which only who has the sender's private key can have sealed; `None` when it is not authentic.
    pub(super) fn prove(self, static_secret: &Secret) -> Option<Proved> {
        let Self { sender, index, ephemeral, mut transcript, stamp } = self;
        let key = transcript.mix_key(static_secret);
        let stamp = Stamp::new(transcript.open(&key, &stamp)?);
        Some(Proved { remote: index, stamp, sender, ephemeral, transcript })
    }
}

impl Proved {
    /// Writes the response up to its MACs: the keys of the session; `None` when a key is of small order. `ephemeral` is random and for this
    /// message only.
    pub fn respond(
        self,
        preshared: Option<&SecretKey>,
        mut ephemeral: [u8; KEY_LEN],
        local: SessionIndex,
        out: &mut [u8; RESPONSE],
    ) -> Option<SessionKeys> {
        let mut transcript = self.transcript;
        let pair = KeyPair::new(ephemeral);
        ephemeral.zeroize();
        transcript.mix_ephemeral(&pair.public);
        transcript.derive::<KEY_LEN>(pair.agree(&self.ephemeral)?.as_bytes());
        transcript.derive::<KEY_LEN>(pair.agree(&self.sender)?.as_bytes());
        let key = transcript.mix_preshared(preshared);
        out[..4].copy_from_slice(&[2, 0, 0, 0]);
        out[4..8].copy_from_slice(&local.0.to_le_bytes());
        out[8..12].copy_from_slice(&self.remote.0.to_le_bytes());
        out[12..44].copy_from_slice(&pair.public.0);
        transcript.seal(&key, &[], &mut out[44..60]);
        let SessionKeys { sending, receiving } = transcript.split();
        Some(SessionKeys { sending: receiving, receiving: sending })
    }
}

impl Pending {
    /// Reads the response to it: the keys of the session; `None` when it is not the peer's.
    pub fn finish(
        &self,
        own: &KeyPair,
        preshared: Option<&SecretKey>,
        response: &[u8],
    ) -> Option<SessionKeys> {
        let mut transcript = self.transcript.clone();
        let ephemeral = PublicKey(response.get(12..44)?.try_into().ok()?);
        transcript.mix_ephemeral(&ephemeral);
        transcript.derive::<KEY_LEN>(self.ephemeral.agree(&ephemeral)?.as_bytes());
        transcript.derive::<KEY_LEN>(own.agree(&ephemeral)?.as_bytes());
        let key = transcript.mix_preshared(preshared);
        let []: [u8; 0] = transcript.open(&key, response.get(44..60)?)?;
        Some(transcript.split())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_begins_with_the_constants_that_others_have_written_down() {
        // INITIAL_CHAIN_KEY of boringtun, and its INITIAL_CHAIN_HASH mixed with the key.
        let chaining = [
            96, 226, 109, 174, 243, 39, 239, 192, 46, 195, 53, 226, 160, 37, 210, 208, 22, 235, 66, 6, 248,
            114, 119, 245, 45, 56, 209, 152, 139, 120, 205, 54,
        ];
        let hash: [u8; 32] = [
            34, 17, 179, 97, 8, 26, 197, 102, 105, 18, 67, 219, 69, 138, 213, 50, 45, 156, 108, 102, 34, 147,
            232, 183, 14, 225, 156, 101, 186, 7, 158, 243,
        ];
        let key = PublicKey([7; 32]);
        let transcript = Transcript::new(&key);
        assert_eq!(*transcript.chaining, chaining);
        assert_eq!(transcript.hash, *Blake2s256::new().chain_update(hash).chain_update(key.0).finalize());
    }

    #[test]
    fn a_low_order_key_ends_a_handshake() {
        let own = KeyPair::new([1; 32]);
        for point in [[0; 32], {
            let mut one = [0; 32];
            one[0] = 1;
            one
        }] {
            let point = PublicKey(point);
            assert!(own.agree(&point).is_none() && static_secret(&own, &point).is_none());
            let mut message = [0; INITIATION];
            message[0] = 1;
            message[8..40].copy_from_slice(&point.0);
            assert!(claim(&own, &message).is_none());
        }
    }
}
