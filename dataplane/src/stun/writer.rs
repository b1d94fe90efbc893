//! The writer: builds a message in the caller's buffer.

use std::net::SocketAddr;

use super::attribute::{
    ADDRESS_LEN_MAX, AddressFamily, AttributeType, ErrorCode, Icmp, encode_address, xor_address,
};
use super::channel_data::ChannelNumber;
use super::key::Key;
use super::message::fingerprint;
use super::password::PasswordAlgorithm;
use super::{Class, HEADER_LEN, MAGIC_COOKIE, Method, TransactionId, encode_type};

/// Builds one message. What does not fit is remembered, and [`Writer::finish`] answers `None`.
///
/// Padding is always zero, whatever the buffer held before (CVE-2020-4067 was a relay that leaked it).
#[derive(Debug)]
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    len: usize,
    transaction: TransactionId,
    overflow: bool,
}

impl<'a> Writer<'a> {
    /// Starts a message. `None` when not even the header fits.
    #[must_use]
    pub fn new(
        buffer: &'a mut [u8],
        class: Class,
        method: Method,
        transaction: TransactionId,
    ) -> Option<Self> {
        let header = buffer.get_mut(..HEADER_LEN)?;
        header[..2].copy_from_slice(&encode_type(class, method).to_be_bytes());
        header[2..4].fill(0);
        header[4..8].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
        header[8..].copy_from_slice(&transaction.0);
        Some(Self { buffer, len: HEADER_LEN, transaction, overflow: false })
    }

    /// Appends an attribute of any type.
    pub fn attribute(&mut self, kind: AttributeType, value: &[u8]) -> &mut Self {
        self.attribute_in_parts(kind, value, &[])
    }

    fn attribute_in_parts(&mut self, kind: AttributeType, head: &[u8], tail: &[u8]) -> &mut Self {
        let len = head.len() + tail.len();
        let padded = len.next_multiple_of(4);
        let end = self.len + 4 + padded;
        let (Ok(short), Some(room)) = (u16::try_from(len), self.buffer.get_mut(self.len..end)) else {
            self.overflow = true;
            return self;
        };
        room[..2].copy_from_slice(&kind.0.to_be_bytes());
        room[2..4].copy_from_slice(&short.to_be_bytes());
        room[4..4 + head.len()].copy_from_slice(head);
        room[4 + head.len()..4 + len].copy_from_slice(tail);
        room[4 + len..].fill(0);
        self.len = end;
        self
    }

    /// Appends an address without XOR.
    pub fn address(&mut self, kind: AttributeType, address: SocketAddr) -> &mut Self {
        let mut value = [0; ADDRESS_LEN_MAX];
        let len = encode_address(address, &mut value);
        self.attribute(kind, &value[..len])
    }

    /// Appends an address with XOR: XOR-MAPPED-ADDRESS, XOR-PEER-ADDRESS, XOR-RELAYED-ADDRESS.
    pub fn xor_address(&mut self, kind: AttributeType, address: SocketAddr) -> &mut Self {
        self.address(kind, xor_address(address, self.transaction))
    }

    /// Appends XOR-MAPPED-ADDRESS.
    pub fn xor_mapped_address(&mut self, address: SocketAddr) -> &mut Self {
        self.xor_address(AttributeType::XOR_MAPPED_ADDRESS, address)
    }

    /// Appends XOR-PEER-ADDRESS.
    pub fn xor_peer_address(&mut self, address: SocketAddr) -> &mut Self {
        self.xor_address(AttributeType::XOR_PEER_ADDRESS, address)
    }

    /// Appends XOR-RELAYED-ADDRESS.
    pub fn xor_relayed_address(&mut self, address: SocketAddr) -> &mut Self {
        self.xor_address(AttributeType::XOR_RELAYED_ADDRESS, address)
    }

    /// Appends ALTERNATE-SERVER (RFC 8489 section 14.15), which is not XORed.
    pub fn alternate_server(&mut self, address: SocketAddr) -> &mut Self {
        self.address(AttributeType::ALTERNATE_SERVER, address)
    }

    /// Appends USERNAME.
    pub fn username(&mut self, username: &[u8]) -> &mut Self {
        self.attribute(AttributeType::USERNAME, username)
    }

    /// Appends USERHASH, made by [`super::password::userhash`].
    pub fn userhash(&mut self, hash: &[u8]) -> &mut Self {
        self.attribute(AttributeType::USERHASH, hash)
    }

    /// Appends REALM.
    pub fn realm(&mut self, realm: &[u8]) -> &mut Self {
        self.attribute(AttributeType::REALM, realm)
    }

    /// Appends NONCE.
    pub fn nonce(&mut self, nonce: &[u8]) -> &mut Self {
        self.attribute(AttributeType::NONCE, nonce)
    }

    /// Appends PASSWORD-ALGORITHM.
    pub fn password_algorithm(&mut self, algorithm: PasswordAlgorithm) -> &mut Self {
        self.attribute(AttributeType::PASSWORD_ALGORITHM, &algorithm.entry())
    }

    /// Appends PASSWORD-ALGORITHMS: entries of [`PasswordAlgorithm::entry`], the preferred one first.
    pub fn password_algorithms(&mut self, entries: &[u8]) -> &mut Self {
        self.attribute(AttributeType::PASSWORD_ALGORITHMS, entries)
    }

    /// Appends ERROR-CODE; the reason may be empty. A code outside 300..=699 is taken as 500.
    pub fn error_code(&mut self, code: ErrorCode, reason: &str) -> &mut Self {
        let code = if (300..700).contains(&code.0) { code.0 } else { 500 };
        let head = [0, 0, (code / 100) as u8, (code % 100) as u8];
        self.attribute_in_parts(AttributeType::ERROR_CODE, &head, reason.as_bytes())
    }

    /// Appends UNKNOWN-ATTRIBUTES, at most 16 types.
    pub fn unknown_attributes(&mut self, types: &[u16]) -> &mut Self {
        let mut value = [0; 32];
        let count = types.len().min(value.len() / 2);
        for (pair, kind) in value.as_chunks_mut::<2>().0.iter_mut().zip(types) {
            *pair = kind.to_be_bytes();
        }
        self.attribute(AttributeType::UNKNOWN_ATTRIBUTES, &value[..2 * count])
    }

    /// Appends LIFETIME, in seconds.
    pub fn lifetime(&mut self, seconds: u32) -> &mut Self {
        self.attribute(AttributeType::LIFETIME, &seconds.to_be_bytes())
    }

    /// Appends CHANNEL-NUMBER.
    pub fn channel_number(&mut self, number: ChannelNumber) -> &mut Self {
        let [high, low] = number.get().to_be_bytes();
        self.attribute(AttributeType::CHANNEL_NUMBER, &[high, low, 0, 0])
    }

    /// Appends REQUESTED-TRANSPORT.
    pub fn requested_transport(&mut self, protocol: u8) -> &mut Self {
        self.attribute(AttributeType::REQUESTED_TRANSPORT, &[protocol, 0, 0, 0])
    }

    /// Appends REQUESTED-ADDRESS-FAMILY.
    pub fn requested_address_family(&mut self, family: AddressFamily) -> &mut Self {
        self.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[family.number(), 0, 0, 0])
    }

    /// Appends EVEN-PORT; `reserve_next` asks for the next higher port as well.
    pub fn even_port(&mut self, reserve_next: bool) -> &mut Self {
        self.attribute(AttributeType::EVEN_PORT, &[u8::from(reserve_next) << 7])
    }

    /// Appends RESERVATION-TOKEN.
    pub fn reservation_token(&mut self, token: [u8; 8]) -> &mut Self {
        self.attribute(AttributeType::RESERVATION_TOKEN, &token)
    }

    /// Appends DONT-FRAGMENT.
    pub fn dont_fragment(&mut self) -> &mut Self {
        self.attribute(AttributeType::DONT_FRAGMENT, &[])
    }

    /// Appends ICMP.
    pub fn icmp(&mut self, icmp: Icmp) -> &mut Self {
        let [a, b] = (u16::from(icmp.kind) << 9 | icmp.code & 0x1ff).to_be_bytes();
        let [c, d, e, f] = icmp.error_data.to_be_bytes();
        self.attribute(AttributeType::ICMP, &[0, 0, a, b, c, d, e, f])
    }

    /// Appends DATA.
    pub fn data(&mut self, data: &[u8]) -> &mut Self {
        self.attribute(AttributeType::DATA, data)
    }

    /// Appends the integrity attribute that the key is for. Nothing but [`Writer::finish`] may follow; MESSAGE-INTEGRITY
    /// may be followed by MESSAGE-INTEGRITY-SHA256, for a reader that may know only the first.
    pub fn integrity(&mut self, key: &Key) -> &mut Self {
        let len = key.integrity().value_len();
        // Nothing is signed in a buffer that is too small already.
        let before = if self.overflow { &[][..] } else { &self.buffer[..self.len] };
        let tag = key.sign(before, len);
        self.attribute(key.integrity().attribute(), tag.as_ref())
    }

    /// Ends the message with the integrity attribute of the key when there is one, then FINGERPRINT when asked for, and
    /// returns its length in bytes. `None` when something did not fit.
    #[must_use]
    pub fn finish(mut self, integrity: Option<&Key>, with_fingerprint: bool) -> Option<usize> {
        if let Some(key) = integrity {
            self.integrity(key);
        }
        if with_fingerprint {
            let before = self.len;
            self.attribute(AttributeType::FINGERPRINT, &[0; 4]);
            self.set_length(self.len)?;
            if !self.overflow {
                let value = fingerprint(&self.buffer[..before]);
                self.buffer[before + 4..before + 8].copy_from_slice(&value);
            }
        }
        self.set_length(self.len)?;
        (!self.overflow).then_some(self.len)
    }

    /// Ends the message with the header of a DATA attribute of `len` bytes and returns the length of what is written;
    /// the caller puts the data and [`padding`] zero bytes behind it. Spares a copy of the payload.
    #[must_use]
    pub fn finish_before_data(mut self, len: usize) -> Option<usize> {
        self.attribute(AttributeType::DATA, &[]);
        let short = u16::try_from(len).ok()?;
        self.set_length(self.len + len + padding(len))?;
        if self.overflow {
            return None;
        }
        self.buffer[self.len - 2..self.len].copy_from_slice(&short.to_be_bytes());
        Some(self.len)
    }

    /// Writes the length field of a message of `total` bytes with its header.
    fn set_length(&mut self, total: usize) -> Option<()> {
        let length = u16::try_from(total - HEADER_LEN).ok()?;
        self.buffer[2..4].copy_from_slice(&length.to_be_bytes());
        Some(())
    }
}

/// Zero bytes that have to follow a value of `len` bytes.
#[must_use]
pub const fn padding(len: usize) -> usize {
    len.next_multiple_of(4) - len
}
