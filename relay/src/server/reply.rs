//! The one buffer that answers and Data indication headers are written to.

use std::net::SocketAddr;

use dataplane::stun::{Class, ErrorCode, Icmp, Key, Message, Method, TransactionId, Writer};

/// Room for the longest answer: 401 with a realm of [`REALM_LEN_MAX`] bytes, nonce, integrity and fingerprint.
const REPLY_LEN_MAX: usize = 512;
/// Longest realm in bytes. RFC 8489 section 14.9 has 763, but every unauthenticated request is answered with it.
pub const REALM_LEN_MAX: usize = 255;

/// What of a request its answer repeats.
#[derive(Clone, Copy, Debug)]
pub(super) struct Envelope {
    pub method: Method,
    pub transaction: TransactionId,
    pub with_fingerprint: bool,
}

impl Envelope {
    #[must_use]
    pub fn of(message: &Message<'_>) -> Self {
        Self {
            method: message.method(),
            transaction: message.transaction(),
            with_fingerprint: message.verify_fingerprint().is_some(),
        }
    }
}

/// The buffer.
#[derive(Debug)]
pub(super) struct Replies {
    buffer: [u8; REPLY_LEN_MAX],
    len: usize,
    is_authentic: bool,
}

impl Replies {
    #[must_use]
    pub const fn new() -> Self {
        Self { buffer: [0; REPLY_LEN_MAX], len: 0, is_authentic: false }
    }

    /// What was written last.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// Whether the last answer went to someone who had proved who he is, and so where.
    #[must_use]
    pub fn is_authentic(&self) -> bool {
        self.is_authentic
    }

    /// Writes an answer.
    ///
    /// # Panics
    /// When it does not fit: everything in an answer is bounded by this program.
    pub fn answer(
        &mut self,
        envelope: Envelope,
        class: Class,
        key: Option<&Key>,
        fill: impl FnOnce(&mut Writer<'_>),
    ) {
        let mut writer = Writer::new(&mut self.buffer, class, envelope.method, envelope.transaction)
            .expect("the buffer holds a header");
        fill(&mut writer);
        self.is_authentic = key.is_some();
        self.len =
            writer.finish(key, envelope.with_fingerprint).expect("the buffer holds the longest answer");
    }

    /// Writes what precedes `len` bytes of payload in a Data indication (RFC 8656 section 11.4). `None` when the
    /// payload is too long for one.
    pub fn data_indication(
        &mut self,
        transaction: TransactionId,
        peer: SocketAddr,
        len: usize,
    ) -> Option<&[u8]> {
        let mut writer = Writer::new(&mut self.buffer, Class::Indication, Method::Data, transaction)?;
        writer.xor_peer_address(peer);
        self.len = writer.finish_before_data(len)?;
        Some(&self.buffer[..self.len])
    }
}

impl Replies {
    /// Writes a Data indication with ICMP instead of DATA (RFC 8656 section 11.5).
    ///
    /// # Panics
    /// When it does not fit: it is at most 56 bytes long.
    pub fn icmp_indication(&mut self, transaction: TransactionId, peer: SocketAddr, icmp: Icmp) -> &[u8] {
        let mut writer = Writer::new(&mut self.buffer, Class::Indication, Method::Data, transaction)
            .expect("the buffer holds a header");
        writer.xor_peer_address(peer).icmp(icmp);
        self.len = writer.finish(None, false).expect("the buffer holds two attributes");
        &self.buffer[..self.len]
    }
}

/// The error codes this server answers with.
const CODES: [u16; 13] = [300, 400, 401, 403, 420, 437, 438, 440, 441, 442, 443, 486, 508];

/// One counter for each error code.
#[derive(Debug, Default)]
pub(super) struct Refusals([u64; CODES.len()]);

impl Refusals {
    pub fn count(&mut self, code: ErrorCode) {
        debug_assert!(CODES.contains(&code.0), "{code:?} is not in the list");
        for (count, known) in self.0.iter_mut().zip(CODES) {
            *count += u64::from(known == code.0);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        CODES.into_iter().zip(self.0)
    }
}
