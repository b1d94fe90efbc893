//! How a long-term password becomes a key, and a user name a hash (RFC 8489 sections 9.2.2, 14.4 and 18.5.1).
//!
//! Names, realms and passwords are used as they are; normalising them (OpaqueString, RFC 8265) is up to who enters them.

use std::fmt;

use md5::{Digest, Md5};
use ring::digest;
use zeroize::Zeroize as _;

use super::key::{Integrity, Key};

/// Length of the value of USERHASH in bytes.
pub const USERHASH_LEN: usize = 32;

/// How a long-term password becomes a key (IANA "STUN Password Algorithms").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PasswordAlgorithm {
    /// The only one before RFC 8489; its key has 16 bytes.
    Md5,
    /// Its key has 32 bytes.
    Sha256,
}

impl PasswordAlgorithm {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Md5 => 1,
            Self::Sha256 => 2,
        }
    }

    /// The value of PASSWORD-ALGORITHM, and an entry of PASSWORD-ALGORITHMS: the number and the length of its
    /// parameters, of which neither algorithm has any (RFC 8489 section 14.11).
    #[must_use]
    pub const fn entry(self) -> [u8; 4] {
        let [high, low] = self.number().to_be_bytes();
        [high, low, 0, 0]
    }

    /// The inverse of [`PasswordAlgorithm::entry`]; `None` for another algorithm, or with parameters.
    #[must_use]
    pub fn from_entry(entry: &[u8]) -> Option<Self> {
        [Self::Md5, Self::Sha256].into_iter().find(|algorithm| entry == algorithm.entry())
    }

    const fn key_len(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha256 => 32,
        }
    }
}

/// The key of a long-term credential: the hash of `username ":" realm ":" password`. As good as the password in its
/// realm; it is wiped when it is dropped.
#[derive(Clone)]
pub struct LongTermKey {
    algorithm: PasswordAlgorithm,
    /// An MD5 key has zeros behind it, which are no part of it.
    bytes: [u8; 32],
}

impl fmt::Debug for LongTermKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}(…)", self.algorithm)
    }
}

impl Drop for LongTermKey {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl LongTermKey {
    /// Derives the key of a user (RFC 8489 section 9.2.2).
    #[must_use]
    pub fn new(algorithm: PasswordAlgorithm, username: &[u8], realm: &[u8], password: &[u8]) -> Self {
        let parts = [username, b":", realm, b":", password];
        let mut bytes = [0; 32];
        match algorithm {
            PasswordAlgorithm::Md5 => {
                let mut md5 = Md5::new();
                parts.iter().for_each(|part| md5.update(part));
                bytes[..16].copy_from_slice(&md5.finalize());
            }
            PasswordAlgorithm::Sha256 => bytes = sha256(&parts),
        }
        Self { algorithm, bytes }
    }

    /// A stored key: 16 bytes are an MD5 one, 32 an SHA-256 one, and `None` is any other length.
    #[must_use]
    pub fn from_bytes(stored: &[u8]) -> Option<Self> {
        let algorithm = match stored.len() {
            16 => PasswordAlgorithm::Md5,
            32 => PasswordAlgorithm::Sha256,
            _ => return None,
        };
        let mut bytes = [0; 32];
        bytes[..stored.len()].copy_from_slice(stored);
        Some(Self { algorithm, bytes })
    }

    /// What it was derived with.
    #[must_use]
    pub const fn algorithm(&self) -> PasswordAlgorithm {
        self.algorithm
    }

    /// The key as an integrity attribute takes it. Which attribute that is does not depend on the algorithm.
    #[must_use]
    pub fn for_integrity(&self, integrity: Integrity) -> Key {
        Key::for_integrity(integrity, &self.bytes[..self.algorithm.key_len()])
    }
}

/// The value of USERHASH: SHA-256(username ":" realm), RFC 8489 section 14.4.
#[must_use]
pub fn userhash(username: &[u8], realm: &[u8]) -> [u8; USERHASH_LEN] {
    sha256(&[username, b":", realm])
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_not_show_themselves() {
        let key = LongTermKey::new(PasswordAlgorithm::Sha256, b"alice", b"example.org", b"secret");
        assert_eq!(format!("{key:?}"), "Sha256(…)");
    }

    #[test]
    fn stored_keys_are_told_apart_by_their_length() {
        let kinds = [0, 15, 16, 17, 31, 32, 33]
            .map(|len| LongTermKey::from_bytes(&[7; 40][..len]).map(|key| key.algorithm()));
        let (md5, sha256) = (Some(PasswordAlgorithm::Md5), Some(PasswordAlgorithm::Sha256));
        assert_eq!(kinds, [None, None, md5, None, None, sha256, None]);
    }

    #[test]
    fn entries_are_known_without_parameters_only() {
        for algorithm in [PasswordAlgorithm::Md5, PasswordAlgorithm::Sha256] {
            assert_eq!(PasswordAlgorithm::from_entry(&algorithm.entry()), Some(algorithm));
        }
        for other in
            [&[][..], &[0, 1], &[0, 0, 0, 0], &[0, 3, 0, 0], &[0, 2, 0, 4], &[0, 2, 0, 0, 0, 0, 0, 0]]
        {
            assert_eq!(PasswordAlgorithm::from_entry(other), None, "{other:?}");
        }
    }
}
