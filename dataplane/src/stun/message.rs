//! The parser: checks a datagram once, then hands out attributes that borrow from it.

use std::net::SocketAddr;
use std::ops::Range;

use super::attribute::{
    AddressFamily, AttributeType, BadAttribute, ErrorCode, Icmp, decode_address, xor_address,
};
use super::channel_data::ChannelNumber;
use super::key::Integrity;
use super::{ATTRIBUTES_MAX, Class, HEADER_LEN, MAGIC_COOKIE, Method, TransactionId, decode_type};

/// Why a datagram is not a STUN message. It gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than a header.
    #[error("shorter than the 20-byte header")]
    TooShort,
    /// The two highest bits are not zero.
    #[error("the two highest bits are not zero")]
    NotStun,
    /// The length is not a multiple of four, or not what follows the header.
    #[error("the length field does not match the datagram")]
    Length,
    /// Another magic cookie: RFC 3489 or no STUN at all.
    #[error("the magic cookie is wrong")]
    Cookie,
    /// An attribute reaches past the end of the message.
    #[error("an attribute reaches past the end")]
    Attribute,
    /// More than [`ATTRIBUTES_MAX`] attributes.
    #[error("more than {ATTRIBUTES_MAX} attributes")]
    TooManyAttributes,
    /// FINGERPRINT is not four bytes, or something follows it (RFC 8489 section 14.7).
    #[error("FINGERPRINT is malformed or not the last attribute")]
    Fingerprint,
}

/// One attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its type.
    pub kind: AttributeType,
    /// Its value without padding.
    pub value: &'a [u8],
}

/// Offset of an attribute's header from the start of the message.
type Offset = u16;

/// A well-formed message that borrows from its datagram.
///
/// Attributes behind MESSAGE-INTEGRITY are not seen by any getter: nothing protects them (RFC 8489 section 14.5). Of
/// those behind it MESSAGE-INTEGRITY-SHA256 and FINGERPRINT count, and behind MESSAGE-INTEGRITY-SHA256 only the latter
/// (section 14.6).
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    bytes: &'a [u8],
    class: Class,
    method: Method,
    /// End of the attributes that getters see.
    visible_end: usize,
    integrity: Option<Offset>,
    integrity_sha256: Option<Offset>,
    fingerprint: Option<Offset>,
}

impl<'a> Message<'a> {
    /// Checks header and attribute bounds of a whole datagram. Work is bounded by [`ATTRIBUTES_MAX`].
    ///
    /// # Errors
    /// Why the datagram is not a message.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, Malformed> {
        let Some((&[a, b, c, d, e, f, g, h, ..], rest)) = datagram.split_first_chunk::<HEADER_LEN>() else {
            return Err(Malformed::TooShort);
        };
        let kind = u16::from_be_bytes([a, b]);
        if kind >> 14 != 0 {
            return Err(Malformed::NotStun);
        }
        let length = usize::from(u16::from_be_bytes([c, d]));
        if !length.is_multiple_of(4) || length != rest.len() {
            return Err(Malformed::Length);
        }
        if u32::from_be_bytes([e, f, g, h]) != MAGIC_COOKIE {
            return Err(Malformed::Cookie);
        }
        let (class, method) = decode_type(kind);
        let mut message = Self {
            bytes: datagram,
            class,
            method,
            visible_end: datagram.len(),
            integrity: None,
            integrity_sha256: None,
            fingerprint: None,
        };
        message.walk()?;
        Ok(message)
    }

    /// Finds the attributes that protect the message, and the end of what they protect.
    fn walk(&mut self) -> Result<(), Malformed> {
        let mut attributes = Attributes { bytes: self.bytes, offset: HEADER_LEN, end: self.bytes.len() };
        for _ in 0..ATTRIBUTES_MAX {
            let offset = attributes.offset;
            if offset == self.bytes.len() {
                return Ok(());
            }
            let attribute = attributes.next().ok_or(Malformed::Attribute)?;
            // A datagram is at most 65,535 bytes long, or its length field would not have matched.
            let here = Some(offset as Offset);
            match attribute.kind {
                AttributeType::MESSAGE_INTEGRITY
                    if self.integrity.is_none() && self.integrity_sha256.is_none() =>
                {
                    self.integrity = here;
                    self.visible_end = offset;
                }
                AttributeType::MESSAGE_INTEGRITY_SHA256 if self.integrity_sha256.is_none() => {
                    self.integrity_sha256 = here;
                    self.visible_end = self.visible_end.min(offset);
                }
                AttributeType::FINGERPRINT => {
                    if attribute.value.len() != 4 || attributes.offset != self.bytes.len() {
                        return Err(Malformed::Fingerprint);
                    }
                    self.fingerprint = here;
                    self.visible_end = self.visible_end.min(offset);
                }
                _ => {}
            }
        }
        if attributes.offset == self.bytes.len() { Ok(()) } else { Err(Malformed::TooManyAttributes) }
    }

    /// The class.
    #[must_use]
    pub fn class(&self) -> Class {
        self.class
    }

    /// The method.
    #[must_use]
    pub fn method(&self) -> Method {
        self.method
    }

    /// The transaction id.
    #[must_use]
    pub fn transaction(&self) -> TransactionId {
        let mut id = [0; 12];
        id.copy_from_slice(&self.bytes[8..HEADER_LEN]);
        TransactionId(id)
    }

    /// The attributes in front of MESSAGE-INTEGRITY, MESSAGE-INTEGRITY-SHA256 and FINGERPRINT, in order.
    #[must_use]
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes { bytes: self.bytes, offset: HEADER_LEN, end: self.visible_end }
    }

    /// The value of the first attribute of a type; later ones do not count (RFC 8489 section 14).
    #[must_use]
    pub fn first(&self, kind: AttributeType) -> Option<&'a [u8]> {
        self.attributes().find(|attribute| attribute.kind == kind).map(|attribute| attribute.value)
    }

    /// The comprehension-required types that are not in `known`, each once, in order.
    #[must_use]
    pub fn unknown_required(&self, known: &[AttributeType]) -> UnknownAttributes {
        let mut unknown = UnknownAttributes::default();
        for attribute in self.attributes() {
            if attribute.kind.is_comprehension_required() && !known.contains(&attribute.kind) {
                unknown.add(attribute.kind);
            }
        }
        unknown
    }

    /// The value of an integrity attribute, and what it protects: all that is in front of it.
    pub(super) fn protection(&self, integrity: Integrity) -> Option<(&'a [u8], &'a [u8])> {
        let offset = usize::from(match integrity {
            Integrity::Sha1 => self.integrity?,
            Integrity::Sha256 => self.integrity_sha256?,
        });
        let mut attributes = Attributes { bytes: self.bytes, offset, end: self.bytes.len() };
        Some((&self.bytes[..offset], attributes.next()?.value))
    }

    /// Whether FINGERPRINT is there and right; `None` when it is not there (RFC 8489 section 14.7).
    #[must_use]
    pub fn verify_fingerprint(&self) -> Option<bool> {
        let offset = usize::from(self.fingerprint?);
        let value = self.bytes.get(offset + 4..offset + 8)?;
        Some(value == fingerprint(&self.bytes[..offset]))
    }

    /// An address attribute without XOR.
    ///
    /// # Errors
    /// When its family or length is wrong.
    pub fn address(&self, kind: AttributeType) -> Result<Option<SocketAddr>, BadAttribute> {
        self.decoded(kind, decode_address)
    }

    /// An address attribute with XOR: XOR-MAPPED-ADDRESS, XOR-PEER-ADDRESS, XOR-RELAYED-ADDRESS.
    ///
    /// # Errors
    /// When its family or length is wrong.
    pub fn xor_address(&self, kind: AttributeType) -> Result<Option<SocketAddr>, BadAttribute> {
        Ok(self.address(kind)?.map(|address| xor_address(address, self.transaction())))
    }

    /// MAPPED-ADDRESS.
    ///
    /// # Errors
    /// When its family or length is wrong.
    pub fn mapped_address(&self) -> Result<Option<SocketAddr>, BadAttribute> {
        self.address(AttributeType::MAPPED_ADDRESS)
    }

    /// XOR-MAPPED-ADDRESS.
    ///
    /// # Errors
    /// When its family or length is wrong.
    pub fn xor_mapped_address(&self) -> Result<Option<SocketAddr>, BadAttribute> {
        self.xor_address(AttributeType::XOR_MAPPED_ADDRESS)
    }

    /// The first XOR-PEER-ADDRESS.
    ///
    /// # Errors
    /// When its family or length is wrong.
    pub fn xor_peer_address(&self) -> Result<Option<SocketAddr>, BadAttribute> {
        self.xor_address(AttributeType::XOR_PEER_ADDRESS)
    }

    /// Every XOR-PEER-ADDRESS in order (CreatePermission may name several, RFC 8656 section 9.1).
    pub fn xor_peer_addresses(&self) -> impl Iterator<Item = Result<SocketAddr, BadAttribute>> + use<'a> {
        let transaction = self.transaction();
        self.attributes().filter(|attribute| attribute.kind == AttributeType::XOR_PEER_ADDRESS).map(
            move |attribute| {
                decode_address(attribute.value)
                    .map(|address| xor_address(address, transaction))
                    .ok_or(BadAttribute(attribute.kind.0))
            },
        )
    }

    /// XOR-RELAYED-ADDRESS.
    ///
    /// # Errors
    /// When its family or length is wrong.
    pub fn xor_relayed_address(&self) -> Result<Option<SocketAddr>, BadAttribute> {
        self.xor_address(AttributeType::XOR_RELAYED_ADDRESS)
    }

    /// SOFTWARE.
    #[must_use]
    pub fn software(&self) -> Option<&'a [u8]> {
        self.first(AttributeType::SOFTWARE)
    }

    /// DATA.
    #[must_use]
    pub fn data(&self) -> Option<&'a [u8]> {
        self.first(AttributeType::DATA)
    }

    /// Where DATA's value lies in the datagram, so that it can be forwarded from there.
    #[must_use]
    pub fn data_range(&self) -> Option<Range<usize>> {
        let mut attributes = self.attributes();
        loop {
            let start = attributes.offset + 4;
            let attribute = attributes.next()?;
            if attribute.kind == AttributeType::DATA {
                return Some(start..start + attribute.value.len());
            }
        }
    }

    /// ERROR-CODE, 300 to 699, without its reason phrase.
    ///
    /// # Errors
    /// When it is too short or out of range.
    pub fn error_code(&self) -> Result<Option<ErrorCode>, BadAttribute> {
        self.decoded(AttributeType::ERROR_CODE, |value| {
            let (&[_, _, hundreds, rest], _reason) = value.split_first_chunk::<4>()?;
            let hundreds = u16::from(hundreds & 7);
            (matches!(hundreds, 3..=6) && rest < 100).then(|| ErrorCode(hundreds * 100 + u16::from(rest)))
        })
    }

    /// LIFETIME in seconds.
    ///
    /// # Errors
    /// When it is not four bytes long.
    pub fn lifetime(&self) -> Result<Option<u32>, BadAttribute> {
        self.decoded(AttributeType::LIFETIME, |value| Some(u32::from_be_bytes(value.try_into().ok()?)))
    }

    /// CHANNEL-NUMBER.
    ///
    /// # Errors
    /// When it is not four bytes long or no ChannelData could carry the number.
    pub fn channel_number(&self) -> Result<Option<ChannelNumber>, BadAttribute> {
        self.decoded(AttributeType::CHANNEL_NUMBER, |value| {
            let &[high, low, _, _] = value else { return None };
            ChannelNumber::new(u16::from_be_bytes([high, low]))
        })
    }

    /// REQUESTED-TRANSPORT: an IANA protocol number.
    ///
    /// # Errors
    /// When it is not four bytes long.
    pub fn requested_transport(&self) -> Result<Option<u8>, BadAttribute> {
        self.decoded(AttributeType::REQUESTED_TRANSPORT, first_of_four)
    }

    /// REQUESTED-ADDRESS-FAMILY.
    ///
    /// # Errors
    /// When it is not four bytes long.
    pub fn requested_address_family(&self) -> Result<Option<AddressFamily>, BadAttribute> {
        let family = self.decoded(AttributeType::REQUESTED_ADDRESS_FAMILY, first_of_four)?;
        Ok(family.map(AddressFamily::from_number))
    }

    /// ADDITIONAL-ADDRESS-FAMILY, under its own number or that of the drafts.
    ///
    /// # Errors
    /// When it is not four bytes long.
    pub fn additional_address_family(&self) -> Result<Option<AddressFamily>, BadAttribute> {
        let family = match self.decoded(AttributeType::ADDITIONAL_ADDRESS_FAMILY, first_of_four)? {
            None => self.decoded(AttributeType::ADDITIONAL_ADDRESS_FAMILY_DRAFT, first_of_four)?,
            family => family,
        };
        Ok(family.map(AddressFamily::from_number))
    }

    /// EVEN-PORT: `Some(true)` asks to reserve the next higher port as well.
    ///
    /// # Errors
    /// When it is not one byte long.
    pub fn even_port(&self) -> Result<Option<bool>, BadAttribute> {
        self.decoded(AttributeType::EVEN_PORT, |value| match value {
            [flags] => Some(flags & 0x80 != 0),
            _ => None,
        })
    }

    /// RESERVATION-TOKEN.
    ///
    /// # Errors
    /// When it is not eight bytes long.
    pub fn reservation_token(&self) -> Result<Option<[u8; 8]>, BadAttribute> {
        self.decoded(AttributeType::RESERVATION_TOKEN, |value| value.try_into().ok())
    }

    /// Whether DONT-FRAGMENT is there.
    #[must_use]
    pub fn dont_fragment(&self) -> bool {
        self.first(AttributeType::DONT_FRAGMENT).is_some()
    }

    /// ICMP.
    ///
    /// # Errors
    /// When it is not eight bytes long.
    pub fn icmp(&self) -> Result<Option<Icmp>, BadAttribute> {
        self.decoded(AttributeType::ICMP, |value| {
            let &[_, _, a, b, c, d, e, f] = value else { return None };
            let kind_and_code = u16::from_be_bytes([a, b]);
            let error_data = u32::from_be_bytes([c, d, e, f]);
            Some(Icmp { kind: (kind_and_code >> 9) as u8, code: kind_and_code & 0x1ff, error_data })
        })
    }

    /// UNKNOWN-ATTRIBUTES as the types it lists; an odd last byte is ignored.
    pub fn unknown_attributes(&self) -> impl Iterator<Item = AttributeType> + use<'a> {
        let value = self.first(AttributeType::UNKNOWN_ATTRIBUTES).unwrap_or_default();
        value.as_chunks::<2>().0.iter().map(|&pair| AttributeType(u16::from_be_bytes(pair)))
    }

    pub(super) fn decoded<T>(
        &self,
        kind: AttributeType,
        decode: impl FnOnce(&'a [u8]) -> Option<T>,
    ) -> Result<Option<T>, BadAttribute> {
        self.first(kind).map(|value| decode(value).ok_or(BadAttribute(kind.0))).transpose()
    }
}

/// One byte and three reserved ones.
fn first_of_four(value: &[u8]) -> Option<u8> {
    match value {
        &[first, _, _, _] => Some(first),
        _ => None,
    }
}

/// The value of FINGERPRINT over the message in front of it, whose length field already includes the attribute.
pub(super) fn fingerprint(before: &[u8]) -> [u8; 4] {
    (crc32fast::hash(before) ^ 0x5354_554e).to_be_bytes()
}

/// Iterator over attributes. It ends early at one that reaches past the end; [`Message::parse`] has refused those.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    bytes: &'a [u8],
    offset: usize,
    end: usize,
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.offset..self.end)?;
        let (&[a, b, c, d], rest) = rest.split_first_chunk::<4>()?;
        let len = usize::from(u16::from_be_bytes([c, d]));
        let padded = len.next_multiple_of(4);
        // The padding has to be inside too: the message length is a multiple of four.
        let value = rest.get(..padded)?.get(..len)?;
        self.offset += 4 + padded;
        Some(Attribute { kind: AttributeType(u16::from_be_bytes([a, b])), value })
    }
}

/// Comprehension-required attribute types an agent does not know, for UNKNOWN-ATTRIBUTES.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnknownAttributes {
    types: [u16; Self::MAX],
    len: usize,
}

impl UnknownAttributes {
    /// How many are listed; a request with more still gets a reply no longer than itself.
    pub const MAX: usize = 16;

    fn add(&mut self, kind: AttributeType) {
        if self.len < Self::MAX && !self.as_slice().contains(&kind.0) {
            self.types[self.len] = kind.0;
            self.len += 1;
        }
    }

    /// Whether everything was known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The types.
    #[must_use]
    pub fn as_slice(&self) -> &[u16] {
        &self.types[..self.len]
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
