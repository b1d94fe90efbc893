//! WireGuard keys: 32 bytes, written in base64. Secret ones never show themselves and are wiped when dropped.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::{Zeroize as _, Zeroizing};

pub use crate::crypto::aead::KEY_LEN;

/// A text was not a key. It says nothing about the text, which may have been a secret one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a key: 44 characters of base64 that end in '=' are needed, as `towpath genkey` prints a private and `towpath pubkey` a public one"
)]
pub struct NotAKey;

/// A private or preshared key. It has memory of its own: what holds it can be moved without leaving a copy behind.
#[derive(PartialEq, Eq)]
pub struct SecretKey(Box<[u8; KEY_LEN]>);

impl SecretKey {
    /// Takes 32 bytes of randomness or of a file.
    #[must_use]
    pub fn new(mut bytes: [u8; KEY_LEN]) -> Self {
        let mut key = Self(Box::new([0; KEY_LEN]));
        key.0.copy_from_slice(&bytes);
        bytes.zeroize();
        key
    }

    /// The key, for the protocol.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Whether all bytes are zero, which stands for no key at all.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self.0 == [0; KEY_LEN]
    }

    /// The key in base64, for `genkey`; wiped when dropped.
    #[must_use]
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.expose()))
    }

    /// Makes a private key out of random bytes as Curve25519 wants it (RFC 7748 section 5), as `wg genkey` does.
    #[must_use]
    pub fn clamped(mut self) -> Self {
        self.0[0] &= 0b1111_1000;
        self.0[31] = self.0[31] & 0b0111_1111 | 0b0100_0000;
        self
    }
}

impl Clone for SecretKey {
    fn clone(&self) -> Self {
        let mut key = Self(Box::new([0; KEY_LEN]));
        key.0.copy_from_slice(self.expose());
        key
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SecretKey(…)")
    }
}

impl FromStr for SecretKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let bytes = decode(text)?;
        let mut key = Self(Box::new([0; KEY_LEN]));
        key.0.copy_from_slice(&bytes);
        Ok(key)
    }
}

/// A peer's public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; KEY_LEN]);

impl PublicKey {
    /// Whether a Diffie-Hellman exchange with this point gives the same result for every private key, so that nobody
    /// is authenticated by it: the points of small order of Curve25519, in every encoding
    /// (<https://cr.yp.to/ecdh.html#validate>).
    #[must_use]
    pub fn is_low_order(&self) -> bool {
        let mut point = self.0;
        point[31] &= 0x7f; // RFC 7748 section 5: the top bit is ignored
        LOW_ORDER.contains(&point)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let bytes = decode(text)?;
        bytes.as_slice().try_into().map(Self).map_err(|_| NotAKey)
    }
}

/// The bytes of a key, of which there are as many as there should be.
fn decode(text: &str) -> Result<Zeroizing<Vec<u8>>, NotAKey> {
    /// Base64 of 32 bytes.
    const TEXT_LEN: usize = 44;
    if text.len() != TEXT_LEN {
        return Err(NotAKey);
    }
    let bytes = Zeroizing::new(STANDARD.decode(text).map_err(|_| NotAKey)?);
    if bytes.len() == KEY_LEN { Ok(bytes) } else { Err(NotAKey) }
}

/// p − 1, p and p + 1 for p = 2^255 − 19 differ in their lowest byte only.
const fn near_p(lowest: u8) -> [u8; KEY_LEN] {
    let mut point = [0xff; KEY_LEN];
    point[0] = lowest;
    point[31] = 0x7f;
    point
}

const fn small(value: u8) -> [u8; KEY_LEN] {
    let mut point = [0; KEY_LEN];
    point[0] = value;
    point
}

const LOW_ORDER: [[u8; KEY_LEN]; 7] = [
    small(0),
    small(1),
    // The two points of order 8.
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda,
        0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04,
        0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ],
    near_p(0xec),
    near_p(0xed),
    near_p(0xee),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::noise;

    #[test]
    fn only_canonical_base64_of_32_bytes_is_a_key() {
        let text = STANDARD.encode([7; 32]);
        assert_eq!(text.parse::<PublicKey>().map(|key| key.0), Ok([7; 32]));
        assert_eq!(text.parse::<PublicKey>().expect("key").to_string(), text);
        for bad in ["", "AAAA", &text[..43], &format!("{text} "), &text.replace('=', "A")] {
            assert_eq!(bad.parse::<PublicKey>(), Err(NotAKey), "{bad:?}");
            assert!(bad.parse::<SecretKey>().is_err(), "{bad:?}");
        }
        // Trailing bits that are not zero: two texts for one key are refused.
        assert_eq!(text.replace("c=", "d=").parse::<PublicKey>(), Err(NotAKey));
    }

    #[test]
    fn secret_keys_do_not_show_themselves() {
        let text = STANDARD.encode([7; 32]);
        let key: SecretKey = text.parse().expect("key");
        assert!(!format!("{key:?}").contains(&text[..6]));
        assert_eq!(*key.to_base64(), text);
    }

    #[test]
    fn low_order_points_are_those_with_a_constant_shared_secret() {
        for mut point in LOW_ORDER {
            assert!(!noise::contributes(&PublicKey(point)), "{point:x?}");
            assert!(PublicKey(point).is_low_order());
            point[31] |= 0x80;
            assert!(PublicKey(point).is_low_order(), "top bit is ignored");
        }
        for seed in 0..32 {
            let key = noise::public_key(&SecretKey::new([seed; 32]));
            assert!(noise::contributes(&key) && !key.is_low_order());
        }
    }
}
