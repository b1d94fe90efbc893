//! Attribute types and the values that have an inner structure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{MAGIC_COOKIE, TransactionId};

/// An attribute type (IANA "STUN Attributes").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttributeType(pub u16);

impl AttributeType {
    /// RFC 8489 section 14.1.
    pub const MAPPED_ADDRESS: Self = Self(0x0001);
    /// RFC 8489 section 14.3.
    pub const USERNAME: Self = Self(0x0006);
    /// RFC 8489 section 14.5.
    pub const MESSAGE_INTEGRITY: Self = Self(0x0008);
    /// RFC 8489 section 14.8.
    pub const ERROR_CODE: Self = Self(0x0009);
    /// RFC 8489 section 14.13.
    pub const UNKNOWN_ATTRIBUTES: Self = Self(0x000a);
    /// RFC 8656 section 18.1.
    pub const CHANNEL_NUMBER: Self = Self(0x000c);
    /// RFC 8656 section 18.2.
    pub const LIFETIME: Self = Self(0x000d);
    /// RFC 8656 section 18.3.
    pub const XOR_PEER_ADDRESS: Self = Self(0x0012);
    /// RFC 8656 section 18.4.
    pub const DATA: Self = Self(0x0013);
    /// RFC 8489 section 14.9.
    pub const REALM: Self = Self(0x0014);
    /// RFC 8489 section 14.10.
    pub const NONCE: Self = Self(0x0015);
    /// RFC 8656 section 18.5.
    pub const XOR_RELAYED_ADDRESS: Self = Self(0x0016);
    /// RFC 8656 section 18.6.
    pub const REQUESTED_ADDRESS_FAMILY: Self = Self(0x0017);
    /// RFC 8656 section 18.7.
    pub const EVEN_PORT: Self = Self(0x0018);
    /// RFC 8656 section 18.8.
    pub const REQUESTED_TRANSPORT: Self = Self(0x0019);
    /// RFC 8656 section 18.9.
    pub const DONT_FRAGMENT: Self = Self(0x001a);
    /// RFC 8489 section 14.6.
    pub const MESSAGE_INTEGRITY_SHA256: Self = Self(0x001c);
    /// RFC 8489 section 14.12.
    pub const PASSWORD_ALGORITHM: Self = Self(0x001d);
    /// RFC 8489 section 14.4.
    pub const USERHASH: Self = Self(0x001e);
    /// RFC 8489 section 14.2.
    pub const XOR_MAPPED_ADDRESS: Self = Self(0x0020);
    /// RFC 8656 section 18.10.
    pub const RESERVATION_TOKEN: Self = Self(0x0022);
    /// RFC 8656 section 18.11.
    pub const ADDITIONAL_ADDRESS_FAMILY: Self = Self(0x8000);
    /// What ADDITIONAL-ADDRESS-FAMILY was in drafts, and is in clients made with coturn 4.6; IANA has given it to nobody.
    pub const ADDITIONAL_ADDRESS_FAMILY_DRAFT: Self = Self(0x8032);
    /// RFC 8656 section 18.12.
    pub const ADDRESS_ERROR_CODE: Self = Self(0x8001);
    /// RFC 8489 section 14.11.
    pub const PASSWORD_ALGORITHMS: Self = Self(0x8002);
    /// RFC 8489 section 14.16.
    pub const ALTERNATE_DOMAIN: Self = Self(0x8003);
    /// RFC 8656 section 18.13.
    pub const ICMP: Self = Self(0x8004);
    /// RFC 8489 section 14.14.
    pub const SOFTWARE: Self = Self(0x8022);
    /// RFC 8489 section 14.15.
    pub const ALTERNATE_SERVER: Self = Self(0x8023);
    /// RFC 8489 section 14.7.
    pub const FINGERPRINT: Self = Self(0x8028);

    /// Towpath's own, in signed requests: who sends it understands 300 in answer to a Refresh, and would like its relayed
    /// address to have the port of before: two bytes of port, 0 for any, and two of zero. Not assigned by IANA; whoever does
    /// not know it ignores it.
    pub const TOWPATH: Self = Self(0xf7f7);

    /// Whether an agent that does not know the type must reject the message (RFC 8489 section 14).
    #[must_use]
    pub const fn is_comprehension_required(self) -> bool {
        self.0 < 0x8000
    }
}

/// An attribute is there but its value does not have the form its type asks for: answer 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("attribute {0:#06x} has a malformed value")]
pub struct BadAttribute(pub u16);

/// ERROR-CODE without its reason phrase (RFC 8489 section 14.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ErrorCode(pub u16);

/// REQUESTED-ADDRESS-FAMILY and ADDITIONAL-ADDRESS-FAMILY (RFC 8656 section 18.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// A family nobody has assigned.
    Other(u8),
}

impl AddressFamily {
    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::V4 => FAMILY_V4,
            Self::V6 => FAMILY_V6,
            Self::Other(number) => number,
        }
    }

    pub(super) const fn from_number(number: u8) -> Self {
        match number {
            FAMILY_V4 => Self::V4,
            FAMILY_V6 => Self::V6,
            other => Self::Other(other),
        }
    }
}

/// The ICMP attribute: an ICMP error a peer or router sent back (RFC 8656 section 18.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// ICMP or ICMPv6 type, 7 bits on the wire.
    pub kind: u8,
    /// ICMP or ICMPv6 code, 9 bits on the wire.
    pub code: u16,
    /// The next-hop MTU where the error has one, else zero.
    pub error_data: u32,
}

const FAMILY_V4: u8 = 1;
const FAMILY_V6: u8 = 2;

/// Longest encoded address: family, port, IPv6 address.
pub(super) const ADDRESS_LEN_MAX: usize = 20;

/// Writes an address in the form of MAPPED-ADDRESS (RFC 8489 section 14.1) and returns its length, 8 or 20 bytes.
pub(super) fn encode_address(address: SocketAddr, out: &mut [u8; ADDRESS_LEN_MAX]) -> usize {
    out[0] = 0;
    out[2..4].copy_from_slice(&address.port().to_be_bytes());
    match address.ip() {
        IpAddr::V4(ip) => {
            out[1] = FAMILY_V4;
            out[4..8].copy_from_slice(&ip.octets());
            8
        }
        IpAddr::V6(ip) => {
            out[1] = FAMILY_V6;
            out[4..20].copy_from_slice(&ip.octets());
            20
        }
    }
}

/// Reads the form of MAPPED-ADDRESS; `None` for another family or length. The first byte is ignored (RFC 8489 14.1).
pub(super) fn decode_address(value: &[u8]) -> Option<SocketAddr> {
    let (&[_, family, high, low], ip) = value.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes([high, low]);
    let ip = match family {
        FAMILY_V4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(ip).ok()?)),
        FAMILY_V6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(ip).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The XOR of XOR-MAPPED-ADDRESS (RFC 8489 section 14.2); its own inverse.
pub(super) fn xor_address(address: SocketAddr, transaction: TransactionId) -> SocketAddr {
    let port = address.port() ^ (MAGIC_COOKIE >> 16) as u16;
    let ip = match address.ip() {
        IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() ^ MAGIC_COOKIE)),
        IpAddr::V6(ip) => {
            let mut mask = [0; 16];
            mask[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
            mask[4..].copy_from_slice(&transaction.0);
            IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() ^ u128::from_be_bytes(mask)))
        }
    };
    SocketAddr::new(ip, port)
}
