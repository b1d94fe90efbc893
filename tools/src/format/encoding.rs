//! Histograms as bytes, in every encoding of integers that HdrHistogram has had: V0, V1 and V2, plain or compressed.
//!
//! ```text
//!      0        4         8         12       16        24        32        40
//!  V0  | cookie | digits  | lowest            | highest           | total (unused) | counts, to the end
//!  V1  | cookie | length  | offset  | digits | lowest  | highest | ratio   | counts, 2, 4 or 8 bytes each
//!  V2  | cookie | length  | offset  | digits | lowest  | highest | ratio   | counts and runs of zeros, ZigZag LEB128
//!  any | cookie | length  | a zlib stream of one of the above (RFC 1950)
//! ```
//!
//! All numbers are big-endian. The layout is that of HdrHistogram's Java sources (`AbstractHistogram`, `ZigZagEncoding`).
//! What is decoded here comes from anywhere: memory and time are bounded by [`BYTES_MAX`] and by a [`Layout`]'s counters.

use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;

use super::counts::{Counts, Layout};

/// Most bytes of a decoded histogram: as many counters as a [`Layout`] may have, 8 bytes each.
pub const BYTES_MAX: u64 = 32 << 20;

/// The bits of a cookie that do not tell the encoding: they hold the bytes of a count.
const WORD_SIZE_BITS: u32 = 0xf0;

/// Why bytes are no histogram.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// They end too early.
    #[error("it ends too early")]
    Short,
    /// They begin with nothing that is known.
    #[error("cookie {0:#010x} is not one of HdrHistogram's integer encodings V0, V1, V2")]
    Cookie(u32),
    /// Histograms of floating-point values.
    #[error("it holds floating-point values (DoubleHistogram); record integers, for example nanoseconds")]
    Double,
    /// The zlib stream is broken.
    #[error("it is compressed wrongly: {0}")]
    Compression(String),
    /// More than any histogram needs.
    #[error("it is longer than {BYTES_MAX} bytes")]
    Long,
    /// The header says what cannot be.
    #[error("{0}")]
    Layout(String),
    /// Counters are shifted or scaled.
    #[error("its counters are shifted or scaled, which only floating-point histograms do")]
    Shifted,
    /// A negative count in an encoding that has none, or a count beyond the last counter.
    #[error("count number {0} cannot be")]
    Count(u64),
}

/// Decodes one histogram. `work` counts the bytes that it had, decompressed.
///
/// # Errors
/// Why it cannot be decoded.
pub fn decode(bytes: &[u8], work: &mut u64) -> Result<Counts, DecodeError> {
    let (cookie, rest) = u32_of(bytes)?;
    let mut plain = |bytes: &[u8]| {
        *work = work.saturating_add(bytes.len() as u64);
        plain(bytes)
    };
    match cookie & !WORD_SIZE_BITS {
        0x1c84_9309 | 0x1c84_9302 | 0x1c84_9304 => plain(&inflate(rest)?),
        _ => plain(bytes),
    }
}

/// Encodes counts as compressed V2, in time that grows with how many are not zero.
///
/// # Errors
/// Only when memory is short.
pub fn encode(counts: &Counts) -> std::io::Result<Vec<u8>> {
    let layout = counts.layout();
    let mut words = Vec::new();
    let mut next = 0;
    let mut put = |index: u64, count: u64| {
        match index - next {
            0 => {}
            // A run of one is written as what it is.
            1 => put_zig_zag(&mut words, 0),
            zeros => put_zig_zag(&mut words, -(zeros as i64)),
        }
        put_zig_zag(&mut words, count as i64);
        next = index + 1;
    };
    let mut pending: Option<(u64, u64)> = None;
    for (value, count) in counts.iter() {
        let index = layout.index(value);
        match &mut pending {
            // Of another layout once: two values in one counter.
            Some((last, sum)) if *last == index => *sum += count,
            _ => {
                if let Some((index, count)) = pending.replace((index, count)) {
                    put(index, count);
                }
            }
        }
    }
    // Without any, the first counter, as the libraries do.
    let (index, count) = pending.unwrap_or((0, 0));
    put(index, count);
    let (lowest, highest, digits) = layout.bounds();
    let mut plain = 0x1c84_9313_u32.to_be_bytes().to_vec();
    plain.extend((words.len() as u32).to_be_bytes());
    plain.extend(0_u32.to_be_bytes());
    plain.extend(u32::from(digits).to_be_bytes());
    plain.extend(lowest.to_be_bytes());
    plain.extend(highest.to_be_bytes());
    plain.extend(1_f64.to_bits().to_be_bytes());
    plain.extend(words);
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&plain)?;
    let stream = encoder.finish()?;
    let mut bytes = 0x1c84_9314_u32.to_be_bytes().to_vec();
    bytes.extend((stream.len() as u32).to_be_bytes());
    bytes.extend(stream);
    Ok(bytes)
}

fn put_zig_zag(words: &mut Vec<u8>, number: i64) {
    let mut value = ((number << 1) ^ (number >> 63)) as u64;
    for _ in 0..8 {
        if value < 0x80 {
            break;
        }
        words.push(value as u8 | 0x80);
        value >>= 7;
    }
    words.push(value as u8);
}

/// The content of a compressed histogram.
fn inflate(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let (length, stream) = u32_of(bytes)?;
    let stream = stream.get(..length as usize).ok_or(DecodeError::Short)?;
    let mut content = Vec::new();
    ZlibDecoder::new(stream)
        .take(BYTES_MAX + 1)
        .read_to_end(&mut content)
        .map_err(|error| DecodeError::Compression(error.to_string()))?;
    if content.len() as u64 > BYTES_MAX { Err(DecodeError::Long) } else { Ok(content) }
}

fn plain(bytes: &[u8]) -> Result<Counts, DecodeError> {
    let (cookie, rest) = u32_of(bytes)?;
    let word_size = ((cookie & WORD_SIZE_BITS) >> 4) & 0xe;
    match cookie & !WORD_SIZE_BITS {
        0x1c84_9308 => {
            let (digits, rest) = u32_of(rest)?;
            let (lowest, rest) = u64_of(rest)?;
            let (highest, rest) = u64_of(rest)?;
            let (_total, counts) = u64_of(rest)?;
            fixed_words(layout(lowest, highest, digits)?, counts, word_size)
        }
        0x1c84_9301 => {
            let (layout, counts) = header(rest)?;
            fixed_words(layout, counts, word_size)
        }
        0x1c84_9303 => {
            let (layout, counts) = header(rest)?;
            zig_zag_words(layout, counts)
        }
        _ if matches!(cookie, 0x0c72_124e | 0x0c72_124f) => Err(DecodeError::Double),
        _ => Err(DecodeError::Cookie(cookie)),
    }
}

/// The header of V1 and V2 behind the cookie, and the counts.
fn header(bytes: &[u8]) -> Result<(Layout, &[u8]), DecodeError> {
    let (length, rest) = u32_of(bytes)?;
    let (offset, rest) = u32_of(rest)?;
    let (digits, rest) = u32_of(rest)?;
    let (lowest, rest) = u64_of(rest)?;
    let (highest, rest) = u64_of(rest)?;
    let (ratio, rest) = u64_of(rest)?;
    if offset != 0 || f64::from_bits(ratio) != 1.0 {
        return Err(DecodeError::Shifted);
    }
    let counts = rest.get(..length as usize).ok_or(DecodeError::Short)?;
    Ok((layout(lowest, highest, digits)?, counts))
}

fn layout(lowest: u64, highest: u64, digits: u32) -> Result<Layout, DecodeError> {
    Layout::new(lowest, highest, digits).map_err(DecodeError::Layout)
}

/// Counts of 2, 4 or 8 bytes, zeros and all.
fn fixed_words(layout: Layout, bytes: &[u8], word_size: u32) -> Result<Counts, DecodeError> {
    let word_size = if word_size == 0 { 8 } else { word_size as usize };
    let mut counter = Counter::new(layout);
    for word in bytes.chunks_exact(word_size) {
        let count = word.iter().fold(0_u64, |count, &byte| (count << 8) | u64::from(byte));
        // The sign bit of a word of that size.
        if count >> (8 * word_size as u32 - 1) != 0 {
            return Err(DecodeError::Count(counter.index));
        }
        counter.count(count)?;
    }
    Ok(counter.counts)
}

/// ZigZag LEB128 in at most 9 bytes each; a negative number is a run of so many zeros.
fn zig_zag_words(layout: Layout, mut bytes: &[u8]) -> Result<Counts, DecodeError> {
    let mut counter = Counter::new(layout);
    while !bytes.is_empty() {
        let (number, rest) = zig_zag(bytes)?;
        bytes = rest;
        match u64::try_from(number) {
            Ok(count) => counter.count(count)?,
            Err(_) => counter.skip(number.unsigned_abs())?,
        }
    }
    Ok(counter.counts)
}

fn zig_zag(bytes: &[u8]) -> Result<(i64, &[u8]), DecodeError> {
    let mut value = 0;
    for (index, &byte) in bytes.iter().enumerate().take(9) {
        // The ninth byte has no bit that says whether more follow.
        let is_last = index == 8 || byte & 0x80 == 0;
        let bits = if index == 8 { byte } else { byte & 0x7f };
        value |= u64::from(bits) << (7 * index);
        if is_last {
            let number = (value >> 1) as i64 ^ -((value & 1) as i64);
            return Ok((number, &bytes[index + 1..]));
        }
    }
    Err(DecodeError::Short)
}

/// Puts counts into their places one after the other.
struct Counter {
    layout: Layout,
    end: u64,
    index: u64,
    counts: Counts,
}

impl Counter {
    fn new(layout: Layout) -> Self {
        Self { layout, end: layout.counters(), index: 0, counts: Counts::new(layout) }
    }

    fn count(&mut self, count: u64) -> Result<(), DecodeError> {
        // Zeros behind the last counter are written by some.
        if count > 0 {
            if self.index >= self.end {
                return Err(DecodeError::Count(self.index));
            }
            let added = self.counts.push(self.layout.value(self.index), count);
            added.map_err(|_| DecodeError::Count(self.index))?;
        }
        self.skip(1)
    }

    fn skip(&mut self, zeros: u64) -> Result<(), DecodeError> {
        self.index = self.index.checked_add(zeros).ok_or(DecodeError::Count(self.index))?;
        Ok(())
    }
}

fn u32_of(bytes: &[u8]) -> Result<(u32, &[u8]), DecodeError> {
    let (word, rest) = bytes.split_first_chunk().ok_or(DecodeError::Short)?;
    Ok((u32::from_be_bytes(*word), rest))
}

fn u64_of(bytes: &[u8]) -> Result<(u64, &[u8]), DecodeError> {
    let (word, rest) = bytes.split_first_chunk().ok_or(DecodeError::Short)?;
    Ok((u64::from_be_bytes(*word), rest))
}

#[cfg(test)]
pub(super) mod tests {
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::{Serializer, V2DeflateSerializer, V2Serializer};
    use proptest::prelude::*;

    use super::*;

    fn histogram(values: &[u64]) -> Histogram<u64> {
        let mut histogram = Histogram::new_with_bounds(1, 3_600_000_000, 2).unwrap();
        values.iter().for_each(|&value| histogram.saturating_record(value));
        histogram
    }

    fn decoded(bytes: &[u8]) -> Result<Counts, DecodeError> {
        decode(bytes, &mut 0)
    }

    fn encoded(histogram: &Histogram<u64>, mut serializer: impl Serializer) -> Vec<u8> {
        let mut bytes = Vec::new();
        serializer.serialize(histogram, &mut bytes).unwrap_or_else(|_| panic!("it is serialized"));
        bytes
    }

    /// As old versions of the Java library wrote it, with counts of `word_size` bytes.
    pub fn old(histogram: &Histogram<u64>, version: u32, word_size: u8, compressed: bool) -> Vec<u8> {
        let mut counts: Vec<u8> = Vec::new();
        for step in histogram.iter_all() {
            counts.extend(&step.count_at_value().to_be_bytes()[8 - usize::from(word_size)..]);
        }
        let cookie = if version == 0 { 0x1c84_9308_u32 } else { 0x1c84_9301 };
        let cookie = cookie | (u32::from(word_size) << 4);
        let mut bytes = cookie.to_be_bytes().to_vec();
        if version == 1 {
            bytes.extend(u32::try_from(counts.len()).unwrap().to_be_bytes());
            bytes.extend(0_u32.to_be_bytes());
        }
        bytes.extend(u32::from(histogram.sigfig()).to_be_bytes());
        bytes.extend(histogram.low().to_be_bytes());
        bytes.extend(histogram.high().to_be_bytes());
        bytes.extend(if version == 0 { histogram.len() } else { 1_f64.to_bits() }.to_be_bytes());
        bytes.extend(counts);
        if !compressed {
            return bytes;
        }
        let cookie = if version == 0 { 0x1c84_9309_u32 } else { 0x1c84_9302 };
        let cookie = cookie | (u32::from(word_size) << 4);
        compress(cookie, &bytes)
    }

    fn compress(cookie: u32, bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        let stream = encoder.finish().unwrap();
        let length = u32::try_from(stream.len()).unwrap();
        [&cookie.to_be_bytes()[..], &length.to_be_bytes(), &stream].concat()
    }

    #[test]
    fn every_encoding_is_decoded() {
        let histogram = histogram(&[1, 7, 7, 250, 90_000, 90_000, 12_345_678, 3_500_000_000]);
        let mut all =
            vec![encoded(&histogram, V2Serializer::new()), encoded(&histogram, V2DeflateSerializer::new())];
        for (version, word_size) in [(0, 8), (1, 2), (1, 4), (1, 8)] {
            all.extend([false, true].map(|compressed| old(&histogram, version, word_size, compressed)));
        }
        for bytes in all {
            assert_eq!(decoded(&bytes).unwrap().histogram(), histogram, "{:02x?}", &bytes[..4]);
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let good = encoded(&histogram(&[5, 500]), V2Serializer::new());
        let altered = |at: usize, with: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + with.len()].copy_from_slice(with);
            decoded(&bytes).unwrap_err()
        };
        assert_eq!(altered(0, &[1, 2, 3, 4]), DecodeError::Cookie(0x0102_0304));
        assert_eq!(altered(0, &[0x0c, 0x72, 0x12, 0x4e]), DecodeError::Double);
        assert_eq!(altered(4, &[0xff; 4]), DecodeError::Short);
        assert_eq!(altered(8, &[0, 0, 0, 1]), DecodeError::Shifted);
        assert!(matches!(altered(12, &[0, 0, 0, 9]), DecodeError::Layout(_)));
        assert!(matches!(altered(24, &[0xff; 8]), DecodeError::Layout(_)));
        assert_eq!(decoded(&good[..20]), Err(DecodeError::Short));
        // A count far behind the last counter: a run of 2^31 zeros, then one.
        let run = [&good[..40], &[0xff, 0xff, 0xff, 0xff, 0x0f, 2]].concat();
        let length = [&run[..4], &6_u32.to_be_bytes(), &run[8..]].concat();
        assert_eq!(decoded(&length), Err(DecodeError::Count(1 << 31)));
    }

    #[test]
    fn a_small_file_does_not_become_a_large_one() {
        let bomb = compress(0x1c84_9314, &vec![0; BYTES_MAX as usize + 1]);
        assert!(bomb.len() < 300_000, "{}", bomb.len());
        assert_eq!(decoded(&bomb), Err(DecodeError::Long));
        let mut work = 0;
        let zeros = compress(
            0x1c84_9314,
            &[encoded(&histogram(&[]), V2Serializer::new()), vec![0; 1 << 20]].concat(),
        );
        decode(&zeros, &mut work).unwrap();
        assert!(work > 1 << 20, "{work}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200), cookie in 0_usize..8, at in 8_usize..40,
        ) {
            let cookies = [0x1c84_9388_u32, 0x1c84_9328, 0x1c84_9341, 0x1c84_9313, 0x1c84_9314, 0x1c84_9389];
            if let (Some(cookie), Some(start)) = (cookies.get(cookie), bytes.first_chunk_mut()) {
                *start = cookie.to_be_bytes();
            }
            let _ = decoded(&bytes);
            // One byte of a good one altered.
            let mut good = encoded(&histogram(&[1, 1_000, 1_000_000]), V2Serializer::new());
            good[at] = bytes.first().copied().unwrap_or(0xff);
            let _ = decoded(&good);
            let _ = decoded(&compress(0x1c84_9314, &bytes));
        }

        #[test]
        fn what_the_crate_encodes_is_decoded(values in prop::collection::vec(1_u64..3_600_000_000, 0..300)) {
            let histogram = histogram(&values);
            let counts = decoded(&encoded(&histogram, V2DeflateSerializer::new())).unwrap();
            prop_assert_eq!(&counts.histogram(), &histogram);
            // Decompressed, ours is theirs to the byte.
            let plain = inflate(&encode(&counts).unwrap()[4..]).unwrap();
            prop_assert_eq!(plain, encoded(&histogram, V2Serializer::new()));
        }
    }
}
