//! ChaCha20-Poly1305 (RFC 8439) as WireGuard's data messages have it (paper, section 5.4.6): in place, message by message.

use std::sync::Arc;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::stun::channel_data;
use crate::wire::wireguard::{DATA_HEADER, DATA_OVERHEAD, TAG};

/// Length of every key, bytes.
pub const KEY_LEN: usize = 32;

/// A secret that is wiped when dropped.
pub type Secret = Zeroizing<[u8; KEY_LEN]>;

/// A session's key, in one place for all who seal or open with it; wiped when the last has let go of it.
pub type Key = Arc<Secret>;

/// ring's form of a key. It is sixteen times as long as the key, most of it room for other ciphers, and takes a few
/// nanoseconds to make: it is made where it is used.
#[must_use]
pub fn cipher(key: &[u8; KEY_LEN]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("32 bytes"))
}

/// The nonce of message `counter`.
#[must_use]
pub fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Seals a data message whose header is written and whose packet stands in the clear between header and the room for the tag.
/// The counter is the header's: it must never have been used with this key.
///
/// # Panics
/// When the message is shorter than [`DATA_OVERHEAD`]: the caller's own, never one from the network.
pub fn seal(cipher: &LessSafeKey, message: &mut [u8]) {
    let (header, rest) = message.split_at_mut(DATA_HEADER);
    let (body, tag) = rest.split_at_mut(rest.len() - TAG);
    let sealed = cipher.seal_in_place_separate_tag(nonce(counter_of(header)), Aad::empty(), body);
    tag.copy_from_slice(sealed.expect("far below the 256 GiB of the cipher").as_ref());
}

/// Seals what stands in `bytes`: data messages as [`seal`] takes them, each in a segment of `segment_size` bytes (the last may be
/// shorter) behind `front` bytes of something else.
pub fn seal_segments(key: &Key, bytes: &mut [u8], segment_size: usize, front: usize) {
    let cipher = cipher(key);
    for segment in bytes.chunks_mut(segment_size.max(front + DATA_OVERHEAD)) {
        seal(&cipher, &mut segment[front..]);
    }
}

/// What a data message holds, as far as the crypto threads have dealt with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// It is sealed, as it came.
    Sealed,
    /// It was authentic: the packet stands in the clear where it was sealed.
    Opened,
    /// It was not authentic, and is spoilt.
    Forged,
}

/// Which of the first 64 segments of a superpacket somebody has tried to open, bit by bit, and which of those were authentic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bodies {
    tried: u64,
    authentic: u64,
}

impl Bodies {
    /// What segment number `index` holds.
    #[must_use]
    pub fn of(self, index: usize) -> Body {
        let is_set = |bits: u64| index < 64 && bits >> index & 1 == 1;
        match (is_set(self.tried), is_set(self.authentic)) {
            (false, _) => Body::Sealed,
            (true, false) => Body::Forged,
            (true, true) => Body::Opened,
        }
    }
}

/// Opens what stands in `bytes`, as [`seal_segments`] has sealed it, in place: the first 64 messages that are of the session of the
/// first. Whether their counters are new is for the caller to find out.
pub fn open_segments(key: &Key, bytes: &mut [u8], segment_size: usize, front: usize) -> Bodies {
    let cipher = cipher(key);
    let mut bodies = Bodies::default();
    let Some(session) = bytes.get(front..).and_then(|bytes| bytes.first_chunk::<8>()).copied() else {
        return bodies;
    };
    for (index, segment) in bytes.chunks_mut(segment_size.max(1)).take(64).enumerate() {
        // The message is the whole of the datagram, or of what ChannelData says to be in it, and no part of that.
        if front == channel_data::HEADER_LEN
            && channel_data::ChannelData::parse(segment)
                .is_none_or(|data| data.payload.len() + front != segment.len())
        {
            continue;
        }
        let Some(message) = segment.get_mut(front..).filter(|message| message.len() >= DATA_OVERHEAD) else {
            continue;
        };
        let (header, body) = message.split_at_mut(DATA_HEADER);
        if header.starts_with(&session) {
            let opened = cipher.open_in_place(nonce(counter_of(header)), Aad::empty(), body);
            bodies.tried |= 1 << index;
            bodies.authentic |= u64::from(opened.is_ok()) << index;
        }
    }
    bodies
}

/// The counter in the header of a data message.
fn counter_of(header: &[u8]) -> u64 {
    header[8..DATA_HEADER].try_into().map_or(u64::MAX, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(fill: u8) -> Key {
        Arc::new(Zeroizing::new([fill; KEY_LEN]))
    }

    /// A data message with this counter, in the clear, in ChannelData where `front` is 4.
    fn written(counter: u64, body: &[u8], front: usize) -> Vec<u8> {
        let mut datagram = match front {
            0 => Vec::new(),
            _ => [&[0x40, 0][..], &((body.len() + DATA_OVERHEAD) as u16).to_be_bytes()].concat(),
        };
        datagram.extend([4, 0, 0, 0, 7, 7, 7, 7]);
        datagram.extend(counter.to_le_bytes());
        datagram.extend(body);
        datagram.extend([0; TAG]);
        datagram
    }

    #[test]
    fn a_message_opens_to_what_was_written_and_only_with_its_key_and_counter() {
        for front in [0, 4] {
            let bodies: [&[u8]; 3] = [&[1; 48], &[2; 48], &[3; 16]];
            let mut bytes: Vec<u8> =
                (9..).zip(bodies).flat_map(|(counter, body)| written(counter, body, front)).collect();
            let segment_size = front + 48 + DATA_OVERHEAD;
            seal_segments(&key(1), &mut bytes, segment_size, front);
            let one_by_one: Vec<u8> = (9..)
                .zip(bodies)
                .flat_map(|(counter, body)| {
                    let mut datagram = written(counter, body, front);
                    seal(&cipher(&key(1)), &mut datagram[front..]);
                    datagram
                })
                .collect();
            assert_eq!(bytes, one_by_one);

            let mut opened = bytes.clone();
            let found = open_segments(&key(1), &mut opened, segment_size, front);
            for (index, (segment, body)) in opened.chunks(segment_size).zip(bodies).enumerate() {
                assert_eq!(found.of(index), Body::Opened);
                assert_eq!(&segment[front + DATA_HEADER..][..body.len()], body);
            }
            assert_eq!(found.of(3), Body::Sealed);

            let mut foreign = bytes.clone();
            let found = open_segments(&key(2), &mut foreign, segment_size, front);
            assert!((0..3).all(|index| found.of(index) == Body::Forged));

            // Another counter for the second.
            let mut changed = bytes;
            changed[segment_size + front + 8] ^= 1;
            let found = open_segments(&key(1), &mut changed, segment_size, front);
            assert_eq!([0, 1, 2].map(|index| found.of(index)), [Body::Opened, Body::Forged, Body::Opened]);
        }
    }

    #[test]
    fn channel_data_that_ends_before_its_datagram_is_left_as_it_is() {
        for change in [-16_i16, -1, 1, 16] {
            let mut bytes = written(0, &[5; 64], 4);
            seal_segments(&key(1), &mut bytes, 4 + 64 + DATA_OVERHEAD, 4);
            let len = (64 + DATA_OVERHEAD as i16 + change) as u16;
            bytes[2..4].copy_from_slice(&len.to_be_bytes());
            let before = bytes.clone();
            assert_eq!(open_segments(&key(1), &mut bytes, 4 + 64 + DATA_OVERHEAD, 4), Bodies::default());
            assert_eq!(bytes, before, "{change}");
        }
    }

    #[test]
    fn what_is_of_another_session_or_no_message_is_left_as_it_is() {
        let mut bytes = [written(0, &[5; 32], 0), written(1, &[6; 32], 0)].concat();
        let size = 32 + DATA_OVERHEAD;
        seal_segments(&key(1), &mut bytes, size, 0);
        bytes[size + 4] ^= 1;
        bytes.extend([4, 0, 0, 0, 7, 7, 7, 7, 0]);
        let before = bytes.clone();
        let found = open_segments(&key(1), &mut bytes, size, 0);
        assert_eq!([0, 1, 2].map(|index| found.of(index)), [Body::Opened, Body::Sealed, Body::Sealed]);
        assert_eq!(bytes[size..], before[size..]);
        for short in [&mut [][..], &mut [4, 0, 0], &mut [0; 8]] {
            assert_eq!(open_segments(&key(1), short, 0, 0), Bodies::default());
            assert_eq!(open_segments(&key(1), short, 9, 4), Bodies::default());
        }
    }

    #[test]
    fn of_many_segments_the_first_64_are_tried() {
        let mut bytes: Vec<u8> = (0..70).flat_map(|counter| written(counter, &[], 0)).collect();
        seal_segments(&key(1), &mut bytes, DATA_OVERHEAD, 0);
        let found = open_segments(&key(1), &mut bytes, DATA_OVERHEAD, 0);
        assert_eq!(
            (found.of(63), found.of(64), found.of(1 << 40)),
            (Body::Opened, Body::Sealed, Body::Sealed)
        );
    }
}
