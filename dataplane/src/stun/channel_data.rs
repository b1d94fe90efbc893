//! ChannelData: four bytes in front of a payload (RFC 8656 section 12.4).
//!
//! ```text
//!  |  channel number, 01…           |  payload length               |
//!  |  payload …                                                    |
//! ```
//! Over UDP there is no padding; bytes behind the payload are ignored.

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 4;

/// A channel number: its two highest bits are 01, which tells ChannelData from STUN.
///
/// RFC 8656 section 12 gives out 0x4000 to 0x4FFF ([`ChannelNumber::MIN`] to [`ChannelNumber::MAX`]); choose from
/// these. RFC 5766 went up to 0x7FFF, and clients of its time still pick at random from all of them (Debian's
/// turnutils_uclient does), so reading takes them all and [`ChannelNumber::is_assigned`] tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelNumber(u16);

impl ChannelNumber {
    /// The lowest number.
    pub const MIN: Self = Self(0x4000);
    /// The highest number of RFC 8656.
    pub const MAX: Self = Self(0x4fff);

    /// `None` outside 0x4000..=0x7FFF.
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        if number >> 14 == 1 { Some(Self(number)) } else { None }
    }

    /// Whether RFC 8656 gives the number out.
    #[must_use]
    pub const fn is_assigned(self) -> bool {
        self.0 <= Self::MAX.0
    }

    /// The number on the wire.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// One ChannelData message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelData<'a> {
    /// The channel.
    pub number: ChannelNumber,
    /// What the channel carries; may be empty.
    pub payload: &'a [u8],
}

impl<'a> ChannelData<'a> {
    /// Whether a datagram's first byte says ChannelData rather than STUN: its two highest bits are 01.
    #[must_use]
    pub fn is_channel_data(datagram: &[u8]) -> bool {
        datagram.first().is_some_and(|first| first >> 6 == 1)
    }

    /// Reads the header. `None` when the datagram is shorter than it says, or is no ChannelData.
    #[must_use]
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        let (&[a, b, c, d], rest) = datagram.split_first_chunk::<HEADER_LEN>()?;
        let number = ChannelNumber::new(u16::from_be_bytes([a, b]))?;
        let payload = rest.get(..usize::from(u16::from_be_bytes([c, d])))?;
        Some(Self { number, payload })
    }
}

/// The header of a payload of `len` bytes; `None` when `len` does not fit 16 bits.
#[must_use]
pub fn header(number: ChannelNumber, len: usize) -> Option<[u8; HEADER_LEN]> {
    let [a, b] = number.0.to_be_bytes();
    let [c, d] = u16::try_from(len).ok()?.to_be_bytes();
    Some([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_and_payload_survive_the_round_trip() {
        for len in [0, 1, 3, 4, 1200, 65_503] {
            let mut datagram = header(ChannelNumber::MIN, len).expect("fits").to_vec();
            datagram.extend(std::iter::repeat_n(7, len));
            let parsed = ChannelData::parse(&datagram).expect("well formed");
            assert_eq!((parsed.number, parsed.payload.len()), (ChannelNumber::MIN, len));
        }
        assert!(header(ChannelNumber::MIN, 65_536).is_none());
    }

    #[test]
    fn trailing_bytes_are_ignored_and_missing_ones_refused() {
        assert_eq!(ChannelData::parse(b"\x40\x01\x00\x02abc").map(|data| data.payload), Some(&b"ab"[..]));
        assert_eq!(ChannelData::parse(b"\x40\x01\x00\x04abc"), None);
        for short in [&b""[..], b"\x40", b"\x40\x00\x00"] {
            assert_eq!(ChannelData::parse(short), None);
        }
    }

    #[test]
    fn numbers_start_with_the_bits_01() {
        for (number, readable, assigned) in [
            (0x3fff, false, false),
            (0x4000, true, true),
            (0x4fff, true, true),
            (0x5000, true, false),
            (0x7fff, true, false),
            (0x8000, false, false),
        ] {
            let parsed = ChannelNumber::new(number);
            assert_eq!(
                (parsed.is_some(), parsed.is_some_and(ChannelNumber::is_assigned)),
                (readable, assigned)
            );
            let [a, b] = u16::to_be_bytes(number);
            assert_eq!(ChannelData::parse(&[a, b, 0, 0]).is_some(), readable, "{number:#x}");
        }
        assert!(ChannelData::is_channel_data(&[0x7f]) && !ChannelData::is_channel_data(&[0x00]));
        assert!(!ChannelData::is_channel_data(&[0x80]) && !ChannelData::is_channel_data(&[]));
    }
}
