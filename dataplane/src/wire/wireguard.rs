//! WireGuard messages (<https://www.wireguard.com/papers/wireguard.pdf> section 5.4): kind, indices and counter, before any
//! cryptography.
//!
//! ```text
//!  0        4              8                16
//!  | type, 0,0,0 | sender or receiver index |  …   handshake messages end in mac1 (16) and mac2 (16)
//!  | 4,    0,0,0 | receiver index | counter | sealed packet | tag (16) |
//! ```

/// Length of a handshake initiation, bytes.
pub const INITIATION: usize = 148;
/// Length of a handshake response, bytes.
pub const RESPONSE: usize = 92;
/// Length of a cookie reply, bytes.
pub const COOKIE_REPLY: usize = 64;
/// Bytes in front of a sealed packet.
pub const DATA_HEADER: usize = 16;
/// Bytes of authentication tag behind a sealed packet.
pub const TAG: usize = 16;
/// What a data message adds to the packet it carries, bytes.
pub const DATA_OVERHEAD: usize = DATA_HEADER + TAG;
/// Packets are padded with zeros to a multiple of this before they are sealed, bytes.
pub const PADDING: usize = 16;

/// A session index as one side chose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionIndex(pub u32);

/// What a datagram claims to be. Nothing of it is authenticated yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Handshake initiation.
    Initiation {
        /// The index the initiator wants to be addressed by.
        sender: SessionIndex,
    },
    /// Handshake response.
    Response {
        /// The index the responder wants to be addressed by.
        sender: SessionIndex,
        /// The index the initiator chose.
        receiver: SessionIndex,
    },
    /// Cookie reply.
    CookieReply {
        /// The index in the handshake message that is answered.
        receiver: SessionIndex,
    },
    /// A sealed packet, or a keepalive when it seals nothing.
    Data {
        /// The index the receiver chose.
        receiver: SessionIndex,
        /// The nonce.
        counter: u64,
    },
}

/// Tells what a datagram claims to be; `None` for another type, reserved bytes that are not zero, or a length the type
/// cannot have.
#[must_use]
pub fn parse(datagram: &[u8]) -> Option<Message> {
    let (kind, rest) = datagram.split_first_chunk::<4>()?;
    let (first, rest) = rest.split_first_chunk::<4>()?;
    let first = SessionIndex(u32::from_le_bytes(*first));
    // The reserved bytes are part of the pattern: a message with any of them set has no type here.
    match (*kind, datagram.len()) {
        ([1, 0, 0, 0], INITIATION) => Some(Message::Initiation { sender: first }),
        ([2, 0, 0, 0], RESPONSE) => {
            let receiver = SessionIndex(u32::from_le_bytes(*rest.first_chunk::<4>()?));
            Some(Message::Response { sender: first, receiver })
        }
        ([3, 0, 0, 0], COOKIE_REPLY) => Some(Message::CookieReply { receiver: first }),
        ([4, 0, 0, 0], DATA_OVERHEAD..) => {
            let counter = u64::from_le_bytes(*rest.first_chunk::<8>()?);
            Some(Message::Data { receiver: first, counter })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lengths_and_types_of_the_protocol_pass() {
        for kind in 0..=255_u8 {
            for len in 0..=200 {
                let mut datagram = vec![0; len];
                if let Some(first) = datagram.first_mut() {
                    *first = kind;
                }
                let expected = match kind {
                    1 => len == 148,
                    2 => len == 92,
                    3 => len == 64,
                    4 => len >= 32,
                    _ => false,
                };
                assert_eq!(parse(&datagram).is_some(), expected, "type {kind}, {len} bytes");
            }
        }
    }

    #[test]
    fn reserved_bytes_must_be_zero() {
        for (kind, len) in [(1, 148), (2, 92), (3, 64), (4, 32)] {
            for reserved in 1..4 {
                let mut datagram = vec![0; len];
                datagram[0] = kind;
                assert!(parse(&datagram).is_some());
                datagram[reserved] = 1;
                assert!(parse(&datagram).is_none(), "type {kind}, byte {reserved}");
            }
        }
    }

    #[test]
    fn indices_and_counter_are_little_endian() {
        let mut data = vec![0; 32];
        data[0] = 4;
        data[4..8].copy_from_slice(&[1, 2, 3, 4]);
        data[8..16].copy_from_slice(&[9, 0, 0, 0, 0, 0, 0, 1]);
        let receiver = SessionIndex(0x0403_0201);
        assert_eq!(parse(&data), Some(Message::Data { receiver, counter: 1 << 56 | 9 }));
    }
}
