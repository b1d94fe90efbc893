//! What a message says of who sent it, and the attributes that prove it (RFC 8489 sections 9.2, 14.3 to 14.12).

use super::attribute::{AttributeType, BadAttribute};
use super::key::{INTEGRITY_SHA256_LEN_MIN, Integrity, Key};
use super::message::Message;
use super::password::PasswordAlgorithm;

impl<'a> Message<'a> {
    /// Whether MESSAGE-INTEGRITY is there, right or wrong.
    #[must_use]
    pub fn has_integrity(&self) -> bool {
        self.protection(Integrity::Sha1).is_some()
    }

    /// Whether MESSAGE-INTEGRITY-SHA256 is there, right or wrong.
    #[must_use]
    pub fn has_integrity_sha256(&self) -> bool {
        self.protection(Integrity::Sha256).is_some()
    }

    /// Whether the attribute that `key` is for is there, whole and right; compared in constant time (RFC 8489 sections
    /// 14.5 and 14.6). A truncated MESSAGE-INTEGRITY-SHA256 is wrong, as it is in TURN.
    #[must_use]
    pub fn verify_integrity(&self, key: &Key) -> bool {
        self.verify_integrity_of(key, key.integrity().value_len())
    }

    /// [`Message::verify_integrity`] for a usage that allows MESSAGE-INTEGRITY-SHA256 to be truncated to `len_min` bytes,
    /// and never to less than 16 (RFC 8489 section 14.6). MESSAGE-INTEGRITY is never truncated.
    #[must_use]
    pub fn verify_truncated_integrity(&self, key: &Key, len_min: usize) -> bool {
        let len_min = match key.integrity() {
            Integrity::Sha1 => Integrity::Sha1.value_len(),
            Integrity::Sha256 => len_min.max(INTEGRITY_SHA256_LEN_MIN),
        };
        self.verify_integrity_of(key, len_min)
    }

    fn verify_integrity_of(&self, key: &Key, len_min: usize) -> bool {
        self.protection(key.integrity()).is_some_and(|(before, value)| key.verify(before, value, len_min))
    }

    /// USERNAME, fewer than 509 bytes long by RFC 8489 section 14.3; not checked here.
    #[must_use]
    pub fn username(&self) -> Option<&'a [u8]> {
        self.first(AttributeType::USERNAME)
    }

    /// USERHASH, [`super::password::USERHASH_LEN`] bytes long by RFC 8489 section 14.4; not checked here.
    #[must_use]
    pub fn userhash(&self) -> Option<&'a [u8]> {
        self.first(AttributeType::USERHASH)
    }

    /// REALM.
    #[must_use]
    pub fn realm(&self) -> Option<&'a [u8]> {
        self.first(AttributeType::REALM)
    }

    /// NONCE.
    #[must_use]
    pub fn nonce(&self) -> Option<&'a [u8]> {
        self.first(AttributeType::NONCE)
    }

    /// PASSWORD-ALGORITHM.
    ///
    /// # Errors
    /// When it is none that this program knows, or has parameters.
    pub fn password_algorithm(&self) -> Result<Option<PasswordAlgorithm>, BadAttribute> {
        self.decoded(AttributeType::PASSWORD_ALGORITHM, PasswordAlgorithm::from_entry)
    }

    /// The value of PASSWORD-ALGORITHMS, which whoever wrote it compares byte for byte (RFC 8489 section 9.2.4).
    #[must_use]
    pub fn password_algorithms(&self) -> Option<&'a [u8]> {
        self.first(AttributeType::PASSWORD_ALGORITHMS)
    }
}
