//! Socket addresses as the kernel lays them out (ip(7), ipv6(7)), encoded and decoded without pointers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Size of `struct sockaddr_in6`, the larger of the two.
pub const ADDRESS_LEN: usize = 28;

/// A `struct sockaddr_in` or `struct sockaddr_in6`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct RawAddress {
    bytes: [u8; ADDRESS_LEN],
    len: u32,
}

impl Default for RawAddress {
    fn default() -> Self {
        Self { bytes: [0; ADDRESS_LEN], len: ADDRESS_LEN as u32 }
    }
}

impl RawAddress {
    /// Encodes an address.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        let mut raw = Self::default();
        raw.set(address);
        raw
    }

    /// Replaces the address.
    pub fn set(&mut self, address: SocketAddr) {
        self.bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                self.bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                self.bytes[4..8].copy_from_slice(&v4.ip().octets());
                self.bytes[8..16].fill(0);
                self.len = 16;
            }
            SocketAddr::V6(v6) => {
                self.bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                self.bytes[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
                self.bytes[8..24].copy_from_slice(&v6.ip().octets());
                self.bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                self.len = 28;
            }
        }
    }

    /// Length in bytes of the encoded structure.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether no address is encoded (never true for one made by [`RawAddress::new`]).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the kernel reads or writes the structure.
    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        self.bytes.as_mut_ptr().cast()
    }

    /// Decodes what the kernel wrote; `None` for other families.
    #[must_use]
    pub fn decode(&self) -> Option<SocketAddr> {
        decode(&self.bytes)
    }
}

/// Decodes a `struct sockaddr_in` or `sockaddr_in6`; `None` for other families or a short slice.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    match family {
        libc::AF_INET => {
            let octets: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(octets)), port))
        }
        libc::AF_INET6 => {
            let octets: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            let scope = u32::from_ne_bytes(bytes.get(24..28)?.try_into().ok()?);
            Some(SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(octets), port, 0, scope)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["192.0.2.7:3478", "[2001:db8::1]:51820", "0.0.0.0:0", "[::]:65535"] {
            let address: SocketAddr = text.parse().expect("address");
            assert_eq!(RawAddress::new(address).decode(), Some(address));
        }
        let scoped = SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().expect("address"), 9, 0, 3));
        assert_eq!(RawAddress::new(scoped).decode(), Some(scoped));
    }

    #[test]
    fn other_families_and_short_slices_decode_to_nothing() {
        assert_eq!(decode(&[]), None);
        assert_eq!(decode(&[1, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(decode(&[2, 0, 0]), None);
    }
}
