//! The header that every datagram of the load carries, so that its fate and its times can be told at the far end.
//!
//! ```text
//!  0        4        8                16               24               32               40               48       52      56
//!  | magic  | v d len| run id         | seq            | intended ns    | actual ns      | turned ns      | flow   | crc32 |
//! ```
//! All integers are big-endian; times are CLOCK_MONOTONIC of the host. `v` is the version, `d` the phase and the direction,
//! `len` the length of the whole (16 bits); `turned ns` is when the in-process peer sent it back. The CRC covers the whole
//! datagram except itself, filling included.

/// Bytes of the header, and so the smallest datagram.
pub const LEN: usize = 56;
const MAGIC: u32 = 0x746f_776c; // "towl"
const VERSION: u8 = 2;
/// The first bytes, which say how long the whole is.
pub const LEN_KNOWN: usize = 8;
const CRC_AT: usize = 52;

/// Which way a datagram travels and whether it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Checks that the far end answers, before the run.
    Probe = 0,
    /// Sent before the measured time.
    Warmup = 1,
    /// Counts in the ledger.
    Measured = 2,
}

/// The fields of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whether it counts.
    pub phase: Phase,
    /// Whether the in-process peer has sent it back.
    pub returned: bool,
    /// Tells this run's datagrams from stragglers of another.
    pub run_id: u64,
    /// Index of the flow.
    pub flow: u32,
    /// Counts from 0 in each flow and phase.
    pub seq: u64,
    /// When the schedule had it leave.
    pub intended_ns: u64,
    /// When it left.
    pub actual_ns: u64,
    /// When the in-process peer sent it back, else 0.
    pub turned_ns: u64,
}

/// What a received datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A datagram of the load, unharmed.
    Good(Header),
    /// It begins like one of ours but its length or checksum is wrong.
    Corrupt,
    /// Something else.
    Foreign,
}

/// Writes `header` into the first [`LEN`] bytes of `datagram` and the checksum over all of it.
///
/// # Panics
/// When `datagram` is shorter than [`LEN`] or longer than 65,535; the run's sizes are checked before it starts.
pub fn write(datagram: &mut [u8], header: &Header) {
    let len = u16::try_from(datagram.len()).expect("sizes are checked");
    datagram[0..4].copy_from_slice(&MAGIC.to_be_bytes());
    datagram[4] = VERSION;
    datagram[5] = (header.phase as u8) << 1 | u8::from(header.returned);
    datagram[6..8].copy_from_slice(&len.to_be_bytes());
    datagram[8..16].copy_from_slice(&header.run_id.to_be_bytes());
    datagram[16..24].copy_from_slice(&header.seq.to_be_bytes());
    datagram[24..32].copy_from_slice(&header.intended_ns.to_be_bytes());
    datagram[32..40].copy_from_slice(&header.actual_ns.to_be_bytes());
    datagram[40..48].copy_from_slice(&header.turned_ns.to_be_bytes());
    datagram[48..52].copy_from_slice(&header.flow.to_be_bytes());
    let crc = checksum(datagram);
    datagram[CRC_AT..LEN].copy_from_slice(&crc.to_be_bytes());
}

/// Reads a datagram as sent; anything else that carries the magic is [`Parsed::Corrupt`].
#[must_use]
pub fn parse(datagram: &[u8]) -> Parsed {
    let Some(len) = claimed_len(datagram) else { return Parsed::Foreign };
    if datagram.len() != len || datagram.len() < LEN || datagram[4] != VERSION {
        return Parsed::Corrupt;
    }
    if checksum(datagram).to_be_bytes() != datagram[CRC_AT..LEN] {
        return Parsed::Corrupt;
    }
    let phase = match datagram[5] >> 1 {
        0 => Phase::Probe,
        1 => Phase::Warmup,
        2 => Phase::Measured,
        _ => return Parsed::Corrupt,
    };
    Parsed::Good(Header {
        phase,
        returned: datagram[5] & 1 == 1,
        run_id: integer(datagram, 8),
        seq: integer(datagram, 16),
        intended_ns: integer(datagram, 24),
        actual_ns: integer(datagram, 32),
        turned_ns: integer(datagram, 40),
        flow: u32::from_be_bytes([datagram[48], datagram[49], datagram[50], datagram[51]]),
    })
}

/// Whether a harmed datagram says that it is of the warm-up. No single bit makes that of a measured one.
#[must_use]
pub fn claims_warmup(datagram: &[u8]) -> bool {
    datagram.get(5).is_some_and(|byte| byte >> 1 == Phase::Warmup as u8)
}

/// How long the message that starts here says it is; `None` when it is none of ours, or has fewer than [`LEN_KNOWN`] bytes.
#[must_use]
pub fn claimed_len(start: &[u8]) -> Option<usize> {
    let start = start.first_chunk::<LEN_KNOWN>()?;
    (start[0..4] == MAGIC.to_be_bytes()).then(|| usize::from(u16::from_be_bytes([start[6], start[7]])))
}

fn checksum(datagram: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&datagram[..CRC_AT]);
    hasher.update(&datagram[LEN..]);
    hasher.finalize()
}

fn integer(datagram: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&datagram[at..at + 8]);
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        phase: Phase::Measured,
        returned: true,
        run_id: 0x1122_3344_5566_7788,
        flow: 77,
        seq: u64::MAX - 1,
        intended_ns: 5,
        actual_ns: 6,
        turned_ns: 7,
    };

    #[test]
    fn what_is_written_is_read_back() {
        for size in [LEN, LEN + 1, 1_280] {
            let mut datagram = vec![0xa5; size];
            write(&mut datagram, &HEADER);
            assert_eq!(parse(&datagram), Parsed::Good(HEADER));
            assert_eq!(claimed_len(&datagram), Some(size));
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut datagram = vec![0x5a; 90];
        write(&mut datagram, &HEADER);
        for bit in 0..90 * 8 {
            datagram[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(parse(&datagram), Parsed::Good(_)), "bit {bit}");
            datagram[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(parse(&datagram), Parsed::Good(HEADER));
    }

    #[test]
    fn short_long_and_foreign_datagrams_never_panic() {
        let mut datagram = vec![0; LEN];
        write(&mut datagram, &HEADER);
        for len in 0..LEN {
            assert!(!matches!(parse(&datagram[..len]), Parsed::Good(_)));
        }
        assert_eq!(parse(&datagram[..20]), Parsed::Corrupt);
        assert_eq!(parse(b"something else"), Parsed::Foreign);
    }
}
