//! STUN messages (RFC 8489) with the attributes of TURN (RFC 8656): a parser that borrows, a writer into the caller's
//! buffer, and the four bytes of ChannelData. No allocation, no clock, no socket.
//!
//! ```text
//!   0                   1                   2                   3
//!   0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//!  |0 0|  class and method       |  length without these 20 bytes  |
//!  |                    magic cookie 0x2112A442                    |
//!  |                    transaction id (96 bits)                   |
//!  |  attribute type               |  attribute length             |
//!  |  value, padded to 4 bytes …                                   |
//! ```

pub mod attribute;
mod authentic;
pub mod channel_data;
pub mod key;
pub mod message;
pub mod password;
#[cfg(test)]
mod rfc5769;
#[cfg(test)]
mod rfc8489;
pub mod writer;

pub use attribute::{AddressFamily, AttributeType, BadAttribute, ErrorCode, Icmp};
pub use channel_data::{ChannelData, ChannelNumber};
pub use key::{Integrity, Key};
pub use message::{Malformed, Message};
pub use password::{LongTermKey, PasswordAlgorithm};
pub use writer::Writer;

/// Length of the message header in bytes (RFC 8489 section 5).
pub const HEADER_LEN: usize = 20;
/// The magic cookie (RFC 8489 section 5).
pub const MAGIC_COOKIE: u32 = 0x2112_a442;
/// Most attributes the parser looks at; a message with more is malformed, which bounds the work per datagram.
pub const ATTRIBUTES_MAX: usize = 64;
/// IANA protocol number of UDP, the value of REQUESTED-TRANSPORT (RFC 8656 section 18.7).
pub const TRANSPORT_UDP: u8 = 17;

/// The 96 bits that pair a request with its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TransactionId(pub [u8; 12]);

/// The two class bits of the message type (RFC 8489 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Wants a response.
    Request,
    /// Wants none.
    Indication,
    /// Answers a request that succeeded.
    Success,
    /// Answers a request that failed; carries ERROR-CODE.
    Error,
}

/// The method bits of the message type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Reflexive address (RFC 8489).
    Binding,
    /// New allocation (RFC 8656 section 7).
    Allocate,
    /// Prolong or delete an allocation (RFC 8656 section 8).
    Refresh,
    /// Client to peer, indication only (RFC 8656 section 11).
    Send,
    /// Peer to client, indication only (RFC 8656 section 11).
    Data,
    /// Let peers in (RFC 8656 section 9).
    CreatePermission,
    /// Bind a channel number to a peer (RFC 8656 section 12).
    ChannelBind,
    /// Any other method; 12 bits.
    Other(u16),
}

impl Method {
    /// The 12-bit number.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Binding => 0x001,
            Self::Allocate => 0x003,
            Self::Refresh => 0x004,
            Self::Send => 0x006,
            Self::Data => 0x007,
            Self::CreatePermission => 0x008,
            Self::ChannelBind => 0x009,
            Self::Other(number) => number & 0xfff,
        }
    }

    /// The method of a 12-bit number; higher bits are ignored.
    #[must_use]
    pub const fn from_number(number: u16) -> Self {
        match number & 0xfff {
            0x001 => Self::Binding,
            0x003 => Self::Allocate,
            0x004 => Self::Refresh,
            0x006 => Self::Send,
            0x007 => Self::Data,
            0x008 => Self::CreatePermission,
            0x009 => Self::ChannelBind,
            other => Self::Other(other),
        }
    }
}

/// The 14-bit message type: the class bits sit between the method bits (RFC 8489 section 5, figure 3).
pub(crate) const fn encode_type(class: Class, method: Method) -> u16 {
    let number = method.number();
    let class = match class {
        Class::Request => 0x000,
        Class::Indication => 0x010,
        Class::Success => 0x100,
        Class::Error => 0x110,
    };
    (number & 0xf80) << 2 | (number & 0x070) << 1 | (number & 0x00f) | class
}

/// The inverse of [`encode_type`]; the two highest bits are ignored.
pub(crate) const fn decode_type(value: u16) -> (Class, Method) {
    let class = match value & 0x110 {
        0x000 => Class::Request,
        0x010 => Class::Indication,
        0x100 => Class::Success,
        _ => Class::Error,
    };
    (class, Method::from_number((value >> 2) & 0xf80 | (value >> 1) & 0x070 | value & 0x00f))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_type_survives_the_round_trip() {
        for value in 0..0x4000 {
            let (class, method) = decode_type(value);
            assert_eq!(encode_type(class, method), value);
        }
        assert_eq!(decode_type(0x0113), (Class::Error, Method::Allocate));
        assert_eq!(decode_type(0x0016), (Class::Indication, Method::Send));
    }
}
