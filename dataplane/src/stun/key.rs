//! The keys of MESSAGE-INTEGRITY and MESSAGE-INTEGRITY-SHA256 and what is computed with them.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use ring::hmac as ring_hmac;
use sha1::Sha1;
use subtle::ConstantTimeEq;

use super::attribute::AttributeType;
use super::password::{LongTermKey, PasswordAlgorithm};

/// Length of the value of MESSAGE-INTEGRITY in bytes.
pub const INTEGRITY_LEN: usize = 20;
/// Length of the value of MESSAGE-INTEGRITY-SHA256 in bytes, when it is not truncated.
pub const INTEGRITY_SHA256_LEN: usize = 32;
/// Shortest that MESSAGE-INTEGRITY-SHA256 may be truncated to, in bytes (RFC 8489 section 14.6).
pub const INTEGRITY_SHA256_LEN_MIN: usize = 16;

/// Which attribute protects a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Integrity {
    /// MESSAGE-INTEGRITY, an HMAC-SHA1 (RFC 8489 section 14.5).
    Sha1,
    /// MESSAGE-INTEGRITY-SHA256 (RFC 8489 section 14.6).
    Sha256,
}

impl Integrity {
    /// The attribute's type.
    #[must_use]
    pub const fn attribute(self) -> AttributeType {
        match self {
            Self::Sha1 => AttributeType::MESSAGE_INTEGRITY,
            Self::Sha256 => AttributeType::MESSAGE_INTEGRITY_SHA256,
        }
    }

    /// Length of the attribute's value in bytes, when it is not truncated.
    #[must_use]
    pub const fn value_len(self) -> usize {
        match self {
            Self::Sha1 => INTEGRITY_LEN,
            Self::Sha256 => INTEGRITY_SHA256_LEN,
        }
    }
}

/// A key for one of the two integrity attributes, with its key schedule already computed.
#[derive(Clone)]
pub struct Key(Schedule);

#[derive(Clone)]
enum Schedule {
    Sha1(Hmac<Sha1>),
    Sha256(ring_hmac::Key),
}

/// An HMAC of either kind.
pub(super) struct Tag {
    bytes: [u8; INTEGRITY_SHA256_LEN],
    len: usize,
}

impl AsRef<[u8]> for Tag {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// The key of a long-term credential for MESSAGE-INTEGRITY: MD5(username ":" realm ":" password), RFC 8489 section
    /// 9.2.2. [`LongTermKey`] makes the others.
    #[must_use]
    pub fn long_term(username: &[u8], realm: &[u8], password: &[u8]) -> Self {
        LongTermKey::new(PasswordAlgorithm::Md5, username, realm, password).for_integrity(Integrity::Sha1)
    }

    /// A key for MESSAGE-INTEGRITY from its bytes: a short-term password (RFC 8489 section 9.1.1) or a stored long-term
    /// key.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self::for_integrity(Integrity::Sha1, bytes)
    }

    /// A key for either attribute from its bytes.
    #[must_use]
    pub fn for_integrity(integrity: Integrity, bytes: &[u8]) -> Self {
        Self(match integrity {
            Integrity::Sha1 => {
                let hmac = Hmac::<Sha1>::new_from_slice(bytes);
                Schedule::Sha1(hmac.unwrap_or_else(|_| unreachable!("an HMAC takes keys of any length")))
            }
            Integrity::Sha256 => Schedule::Sha256(ring_hmac::Key::new(ring_hmac::HMAC_SHA256, bytes)),
        })
    }

    /// Which attribute it is for.
    #[must_use]
    pub const fn integrity(&self) -> Integrity {
        match self.0 {
            Schedule::Sha1(_) => Integrity::Sha1,
            Schedule::Sha256(_) => Integrity::Sha256,
        }
    }

    /// The HMAC over a message up to its integrity attribute, whose header length is taken to end with that attribute
    /// and a value of `value_len` bytes. A truncated value is the beginning of it.
    pub(super) fn sign(&self, before: &[u8], value_len: usize) -> Tag {
        let (head, rest) = match before.split_first_chunk::<4>() {
            Some((head, rest)) => {
                let length = (before.len() + 4 + value_len - super::HEADER_LEN) as u16;
                let [high, low] = length.to_be_bytes();
                ([head[0], head[1], high, low], rest)
            }
            // No message is this short.
            None => ([0; 4], before),
        };
        let mut tag = Tag { bytes: [0; INTEGRITY_SHA256_LEN], len: self.integrity().value_len() };
        match &self.0 {
            Schedule::Sha1(hmac) => {
                let mut hmac = hmac.clone();
                hmac.update(&head);
                hmac.update(rest);
                tag.bytes[..INTEGRITY_LEN].copy_from_slice(&hmac.finalize().into_bytes());
            }
            Schedule::Sha256(key) => {
                let mut context = ring_hmac::Context::with_key(key);
                context.update(&head);
                context.update(rest);
                tag.bytes.copy_from_slice(context.sign().as_ref());
            }
        }
        tag
    }

    /// Compares in constant time. A value shorter than `len_min`, longer than the HMAC, or no multiple of four bytes long
    /// is wrong.
    pub(super) fn verify(&self, before: &[u8], value: &[u8], len_min: usize) -> bool {
        let lengths = len_min..=self.integrity().value_len();
        if !lengths.contains(&value.len()) || !value.len().is_multiple_of(4) {
            return false;
        }
        let tag = self.sign(before, value.len());
        tag.as_ref()[..value.len()].ct_eq(value).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_not_show_themselves() {
        assert_eq!(format!("{:?}", Key::from_bytes(b"secret")), "Key(…)");
    }
}
