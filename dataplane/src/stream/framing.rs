//! Where one message ends and the next begins in a stream of bytes.
//!
//! STUN messages say how long they are (RFC 8489 section 6.2.2), and so does ChannelData, which a stream pads to a
//! multiple of four bytes (RFC 8656 section 12.5). What starts with neither, or lies about its length, cannot be skipped:
//! nobody knows where the next message would begin.

use crate::stun::{HEADER_LEN, MAGIC_COOKIE, channel_data};

/// Bytes that tell ChannelData's length; a STUN header takes four more, because its cookie is looked at.
const LENGTH_KNOWN: usize = channel_data::HEADER_LEN;
/// Bytes that show the magic cookie.
const COOKIE_KNOWN: usize = 8;
/// Longest STUN message that is taken, in bytes: the longest that a datagram could be, in whole words.
const STUN_LEN_MAX: usize = 65_532;

/// The bytes are neither STUN nor ChannelData.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither STUN nor ChannelData")]
pub struct Unframed;

/// Length of a message in a stream, padding included, by its first four bytes, if they can start one.
#[must_use]
pub fn message_len(start: [u8; 4]) -> Option<usize> {
    let len = usize::from(u16::from_be_bytes([start[2], start[3]]));
    match start[0] >> 6 {
        0 if len.is_multiple_of(4) => Some(HEADER_LEN + len),
        1 => Some(channel_data::HEADER_LEN + len.next_multiple_of(4)),
        _ => None,
    }
}

/// How long the message at the start of `bytes` is, once that can be told.
fn look(bytes: &[u8]) -> Result<Option<usize>, Unframed> {
    let Some((&start, rest)) = bytes.split_first_chunk::<LENGTH_KNOWN>() else {
        return match bytes.first() {
            Some(first) if first >> 6 > 1 => Err(Unframed),
            Some(_) | None => Ok(None),
        };
    };
    let len = message_len(start).ok_or(Unframed)?;
    if start[0] >> 6 == 1 {
        return Ok(Some(len));
    }
    if len > STUN_LEN_MAX {
        return Err(Unframed);
    }
    match rest.first_chunk::<4>() {
        None => Ok(None),
        Some(&cookie) if u32::from_be_bytes(cookie) == MAGIC_COOKIE => Ok(Some(len)),
        Some(_) => Err(Unframed),
    }
}

/// Cuts one direction of one connection into messages. It keeps the beginning of a message whose end has not come yet,
/// and nothing else; a whole message is handed out where it lies.
#[derive(Debug, Default)]
pub struct Framer {
    begun: Vec<u8>,
    /// `begun` has been handed out as a whole message.
    is_handed_out: bool,
}

impl Framer {
    /// The next whole message in `input` from `used` on, which moves past it. Nothing when all of `input` is used: what is
    /// left of it is kept.
    ///
    /// # Errors
    /// When what comes next can be no message: the connection is of no use any more.
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut [u8],
        used: &mut usize,
    ) -> Result<Option<&'a mut [u8]>, Unframed> {
        if std::mem::take(&mut self.is_handed_out) {
            self.begun.clear();
        }
        if !self.begun.is_empty() {
            return self.finish_begun(input, used);
        }
        let rest = &mut input[*used..];
        match look(rest)? {
            Some(len) if len <= rest.len() => {
                *used += len;
                Ok(Some(&mut rest[..len]))
            }
            Some(_) | None => {
                self.begun.extend_from_slice(rest);
                *used += rest.len();
                Ok(None)
            }
        }
    }

    /// Each byte is copied once, however small the pieces are in which a message comes.
    fn finish_begun(&mut self, input: &[u8], used: &mut usize) -> Result<Option<&mut [u8]>, Unframed> {
        loop {
            let known = look(&self.begun)?;
            let have = self.begun.len();
            if known == Some(have) {
                self.is_handed_out = true;
                return Ok(Some(&mut self.begun));
            }
            let step = if have < LENGTH_KNOWN { LENGTH_KNOWN } else { COOKIE_KNOWN };
            let rest = &input[*used..];
            let taken = (known.unwrap_or(step) - have).min(rest.len());
            if taken == 0 {
                return Ok(None);
            }
            self.begun.extend_from_slice(&rest[..taken]);
            *used += taken;
        }
    }

    /// Bytes kept of a message that has only begun.
    #[must_use]
    pub fn kept(&self) -> usize {
        if self.is_handed_out { 0 } else { self.begun.len() }
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.begun.capacity()
    }

    /// Gives memory back, unless a message has begun.
    pub fn shrink(&mut self) {
        if self.kept() == 0 {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::stun::{Class, Method, TransactionId, Writer};
    use proptest::prelude::*;

    use super::*;

    /// All messages of a stream that comes in these pieces.
    fn cut<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Vec<u8>>, Unframed> {
        let mut framer = Framer::default();
        let mut messages = Vec::new();
        for piece in pieces {
            let (mut piece, mut used) = (piece.to_vec(), 0);
            while let Some(message) = framer.next(&mut piece, &mut used)? {
                messages.push(message.to_vec());
            }
            assert_eq!(used, piece.len(), "everything is taken");
        }
        Ok(messages)
    }

    fn channel_data(len: u16, filler: u8) -> Vec<u8> {
        let mut message = [&[0x40, filler][..], &len.to_be_bytes()].concat();
        message.resize(4 + usize::from(len).next_multiple_of(4), filler);
        message
    }

    fn binding(software: usize) -> Vec<u8> {
        let mut buffer = vec![0; 70_000];
        let transaction = TransactionId([9; 12]);
        let mut writer = Writer::new(&mut buffer, Class::Request, Method::Binding, transaction).unwrap();
        writer.attribute(crate::stun::AttributeType::DATA, &vec![b'x'; software]);
        let len = writer.finish(None, false).unwrap();
        buffer.truncate(len);
        buffer
    }

    fn message() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            8 => (0..300_u16, any::<u8>()).prop_map(|(len, filler)| channel_data(len, filler)),
            1 => (0..=u16::MAX, any::<u8>()).prop_map(|(len, filler)| channel_data(len, filler)),
            6 => (0..200_usize).prop_map(binding),
        ]
    }

    proptest! {
        #[test]
        fn any_split_of_the_stream_gives_the_same_messages(
            messages in proptest::collection::vec(message(), 0..8),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..20),
        ) {
            let stream = messages.concat();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]);
            prop_assert_eq!(cut(pieces), Ok(messages));
        }

        #[test]
        fn any_bytes_are_cut_or_refused_the_same_way_whatever_the_split(
            stream in proptest::collection::vec(any::<u8>(), 0..200), size in 1..20_usize,
        ) {
            prop_assert_eq!(cut(stream.chunks(size)).is_err(), cut([&stream[..]]).is_err());
        }
    }

    #[test]
    fn bytes_that_come_one_by_one_give_the_same_messages() {
        let messages = [binding(0), channel_data(0, 1), channel_data(5, 2), binding(33), channel_data(4, 3)];
        assert_eq!(cut(messages.concat().chunks(1)), Ok(messages.to_vec()));
    }

    #[test]
    fn the_longest_messages_are_taken_and_longer_ones_refused() {
        let longest = binding(65_532 - 24);
        assert_eq!(longest.len(), STUN_LEN_MAX);
        let data = channel_data(u16::MAX, 7);
        assert_eq!(data.len(), 65_540);
        assert_eq!(cut([longest.as_slice(), &data]), Ok(vec![longest, data]));
        assert_eq!(cut([&binding(65_532 - 20)[..]]), Err(Unframed));
    }

    #[test]
    fn what_is_no_message_is_refused_as_soon_as_it_shows() {
        let tls_hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc];
        let odd_length = [0, 1, 0, 2];
        let old_stun = [0, 1, 0, 0, 0, 0, 0, 0];
        for bytes in [&b"GET / HTTP/1.1"[..], &[0x80], &[0xff, 0], &tls_hello, &odd_length, &old_stun] {
            // `GE` is a channel number and `T ` a length: that the connection's limits see to.
            let expected = if bytes[0] == b'G' { Ok(vec![]) } else { Err(Unframed) };
            assert_eq!(cut([bytes]), expected, "{bytes:x?}");
            assert_eq!(cut(bytes.chunks(1)), expected, "{bytes:x?}");
            assert_eq!(cut([&binding(3)[..], bytes]).is_err(), expected.is_err());
        }
    }

    #[test]
    fn only_a_beginning_is_kept_and_its_memory_given_back() {
        let mut framer = Framer::default();
        let mut long = channel_data(60_000, 1);
        let mut used = 0;
        assert_eq!(framer.next(&mut long[..50_000], &mut used), Ok(None));
        framer.shrink();
        assert_eq!(framer.kept(), 50_000);
        used = 0;
        assert_eq!(
            framer.next(&mut long[50_000..], &mut used).unwrap().map(|message| message.len()),
            Some(60_004)
        );
        assert_eq!(framer.kept(), 0);
        framer.shrink();
        assert_eq!(framer.capacity(), 0);
    }
}
