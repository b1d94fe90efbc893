//! The key of MESSAGE-INTEGRITY and what is computed with it.

use std::fmt;

use md5::{Digest, Md5};
use ring::hmac;
use subtle::ConstantTimeEq;

/// Length of the value of MESSAGE-INTEGRITY in bytes.
pub const INTEGRITY_LEN: usize = 20;

/// An HMAC-SHA1 key for MESSAGE-INTEGRITY (RFC 8489 section 14.5), with its key schedule already computed.
#[derive(Clone)]
pub struct Key(hmac::Key);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// The key of a long-term credential: MD5(username ":" realm ":" password), RFC 8489 section 9.2.2.
    /// The strings are used as they are; normalising them (OpaqueString) is up to who enters them.
    #[must_use]
    pub fn long_term(username: &[u8], realm: &[u8], password: &[u8]) -> Self {
        let mut md5 = Md5::new();
        for (index, part) in [username, realm, password].into_iter().enumerate() {
            if index > 0 {
                md5.update(b":");
            }
            md5.update(part);
        }
        Self::from_bytes(&md5.finalize())
    }

    /// A key from its bytes: a short-term password (RFC 8489 section 9.1.1) or a stored long-term key.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, bytes))
    }

    /// HMAC-SHA1 over a message up to its MESSAGE-INTEGRITY, whose header length is taken to end with that attribute.
    pub(super) fn sign(&self, before: &[u8]) -> [u8; INTEGRITY_LEN] {
        let mut context = hmac::Context::with_key(&self.0);
        if let Some((head, rest)) = before.split_first_chunk::<4>() {
            let length = (before.len() + 4 + INTEGRITY_LEN - super::HEADER_LEN) as u16;
            let [high, low] = length.to_be_bytes();
            context.update(&[head[0], head[1], high, low]);
            context.update(rest);
        }
        let mut out = [0; INTEGRITY_LEN];
        out.copy_from_slice(context.sign().as_ref());
        out
    }

    /// Compares in constant time; a value of another length is wrong.
    pub(super) fn verify(&self, before: &[u8], value: &[u8]) -> bool {
        self.sign(before).ct_eq(value).into()
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
