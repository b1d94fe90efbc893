//! What a client has not taken yet: whole messages, bounded in bytes. The bound may change with each message.
//!
//! ```text
//!  begun on the wire │ control answers … │ data … ◄── oldest data is dropped first when all of it is too much
//! ```
//! A message that the socket took a part of is finished first, whatever else happens. Answers then go ahead of data.
//! Messages are kept in their form on the wire, which says how long each is: nothing else is kept about them.

use std::collections::VecDeque;

use crate::stun::writer::padding;

use super::framing::message_len;

/// Slices that [`OutputQueue::slices`] comes to.
pub const SLICES: usize = 5;

/// Answers fill the whole queue: the client asks and does not listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow;

/// The queue of one connection.
#[derive(Debug)]
pub struct OutputQueue {
    /// The rest of a message whose beginning has been written.
    begun: VecDeque<u8>,
    control: VecDeque<u8>,
    data: VecDeque<u8>,
    bytes_max: usize,
}

impl OutputQueue {
    /// An empty queue for at most `bytes_max` bytes, which should be more than the longest message (65,540).
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { begun: VecDeque::new(), control: VecDeque::new(), data: VecDeque::new(), bytes_max }
    }

    /// Has room for another number of bytes from the next message on.
    pub fn set_bytes_max(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// Bytes in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.begun.len() + self.control.len() + self.data.len()
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of control answers in it.
    #[must_use]
    pub fn control_len(&self) -> usize {
        self.control.len()
    }

    /// Messages in it, the begun one included.
    #[must_use]
    pub fn messages(&self) -> u64 {
        let count = |ring: &VecDeque<u8>| {
            let (mut at, mut count) = (0, 0);
            while at < ring.len() {
                at += first_len(ring, at);
                count += 1;
            }
            count
        };
        u64::from(!self.begun.is_empty()) + count(&self.control) + count(&self.data)
    }

    /// Adds a control answer, at the cost of the oldest data where it has to be. The answer is how many data messages that
    /// took.
    ///
    /// # Errors
    /// When it would not fit with no data at all.
    pub fn push_control(&mut self, message: &[u8]) -> Result<u64, Overflow> {
        debug_assert_eq!(framed_len(message), Some(message.len()), "answers are whole words long");
        if self.begun.len() + self.control.len() + message.len() > self.bytes_max {
            return Err(Overflow);
        }
        let dropped = self.make_room(message.len());
        reserve(&mut self.control, message.len(), self.bytes_max);
        self.control.extend(message);
        Ok(dropped)
    }

    /// Adds a data message, `header` and `payload` one after the other and then padded with zero bytes, at the cost of the
    /// oldest data where it has to be. The answer is how many data messages that took: the new one is among them when
    /// answers leave no room for it.
    pub fn push_data(&mut self, header: &[u8], payload: &[u8]) -> u64 {
        let padding = padding(payload.len());
        let len = header.len() + payload.len() + padding;
        debug_assert_eq!(framed_len(header), Some(len), "the header says how long the message is");
        let dropped = self.make_room(len);
        if self.len() + len > self.bytes_max {
            return dropped + 1;
        }
        reserve(&mut self.data, len, self.bytes_max);
        self.data.extend(header);
        self.data.extend(payload);
        self.data.extend(&[0; 3][..padding]);
        dropped
    }

    /// Drops the oldest data until `len` bytes fit, or there is no data left.
    fn make_room(&mut self, len: usize) -> u64 {
        let mut dropped = 0;
        while self.len() + len > self.bytes_max && !self.data.is_empty() {
            let first = first_len(&self.data, 0);
            self.data.drain(..first);
            dropped += 1;
        }
        dropped
    }

    /// Everything in it, in the order in which it is to be written.
    #[must_use]
    pub fn slices(&self) -> [&[u8]; SLICES] {
        let (begun, none) = self.begun.as_slices();
        debug_assert!(none.is_empty(), "it is filled when it is empty");
        let (control, more_control) = self.control.as_slices();
        let (data, more_data) = self.data.as_slices();
        [begun, control, more_control, data, more_data]
    }

    /// The first message, or what is left of it, in two parts of which the second may be empty.
    #[must_use]
    pub fn first(&self) -> [&[u8]; 2] {
        let ring = if !self.begun.is_empty() {
            return [self.begun.as_slices().0, &[]];
        } else if !self.control.is_empty() {
            &self.control
        } else if !self.data.is_empty() {
            &self.data
        } else {
            return [&[], &[]];
        };
        let (start, rest) = ring.as_slices();
        let len = first_len(ring, 0);
        [&start[..len.min(start.len())], &rest[..len.saturating_sub(start.len())]]
    }

    /// The first `written` bytes of [`OutputQueue::slices`] have been written. The answer is how many messages ended in
    /// them.
    pub fn advance(&mut self, mut written: usize) -> u64 {
        assert!(written <= self.len(), "no more is written than there is");
        let mut finished = 0;
        if !self.begun.is_empty() {
            let taken = written.min(self.begun.len());
            self.begun.drain(..taken);
            written -= taken;
            if !self.begun.is_empty() {
                return 0;
            }
            finished += 1;
        }
        for ring in [&mut self.control, &mut self.data] {
            // Most often everything is gone at once; only a busy socket leaves something.
            let mut whole = 0;
            while whole < written && whole < ring.len() {
                let first = first_len(ring, whole);
                if whole + first > written {
                    break;
                }
                whole += first;
                finished += 1;
            }
            ring.drain(..whole);
            written -= whole;
            if written > 0 && !ring.is_empty() {
                let first = first_len(ring, 0);
                // The one message that cannot be dropped any more leaves its ring, so that those behind it can.
                self.begun.clear();
                reserve(&mut self.begun, first - written, 0);
                self.begun.extend(ring.range(written..first));
                ring.drain(..first);
                return finished;
            }
        }
        finished
    }

    /// Gives memory back that nothing is in, and that of the oldest data where all of it is too much by now. The answer is how
    /// many data messages that took.
    pub fn shrink(&mut self) -> u64 {
        let dropped = self.make_room(0);
        for ring in [&mut self.begun, &mut self.control, &mut self.data] {
            ring.shrink_to_fit();
        }
        dropped
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.begun.capacity() + self.control.capacity() + self.data.capacity()
    }
}

/// Lets a ring grow by the usual factor of two, and not beyond `bytes_max` for the sake of the next time.
fn reserve(ring: &mut VecDeque<u8>, more: usize, bytes_max: usize) {
    let needed = ring.len() + more;
    if needed > ring.capacity() {
        let capacity = (2 * ring.capacity()).min(bytes_max).max(needed);
        ring.reserve_exact(capacity - ring.len());
    }
}

/// Length of the message whose header starts at `at`.
fn first_len(ring: &VecDeque<u8>, at: usize) -> usize {
    let start = std::array::from_fn(|index| ring.get(at + index).copied().unwrap_or_default());
    let len = message_len(start).expect("only whole messages are queued");
    debug_assert!(at + len <= ring.len());
    len
}

/// The length that the start of a message tells.
fn framed_len(message: &[u8]) -> Option<usize> {
    message_len(*message.first_chunk()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stream::framing::Framer;

    const BYTES_MAX: usize = 1_000;

    fn data(queue: &mut OutputQueue, number: u16, len: u16) -> u64 {
        let mut payload = vec![0xdd; usize::from(len)];
        if let Some(start) = payload.first_chunk_mut() {
            *start = number.to_be_bytes();
        }
        queue.push_data(&[[0x40, 0], len.to_be_bytes()].concat(), &payload)
    }

    /// A message that parses as STUN, with a number.
    fn answer(number: u16, words: u16) -> Vec<u8> {
        let [high, low] = number.to_be_bytes();
        let mut message =
            [&[1, 1][..], &(words * 4).to_be_bytes(), &[0x21, 0x12, 0xa4, 0x42, high, low]].concat();
        message.resize(20 + usize::from(words) * 4, 0xcc);
        message
    }

    /// Writes at most `len` bytes to the `wire`.
    fn write(queue: &mut OutputQueue, len: usize, wire: &mut Vec<u8>) -> u64 {
        let bytes: Vec<u8> = queue.slices().iter().flat_map(|slice| slice.to_vec()).collect();
        let len = len.min(bytes.len());
        wire.extend(&bytes[..len]);
        queue.advance(len)
    }

    /// Numbers of the data messages and of the answers on a wire; everything has to be whole.
    fn numbers(wire: &[u8]) -> (Vec<u16>, Vec<u16>) {
        let (mut framer, mut wire, mut used) = (Framer::default(), wire.to_vec(), 0);
        let (mut data, mut answers) = (Vec::new(), Vec::new());
        while let Some(message) = framer.next(&mut wire, &mut used).expect("intact") {
            let number = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
            if message[0] == 0x40 { data.push(number(4)) } else { answers.push(number(8)) }
        }
        assert_eq!(framer.kept(), 0, "no message is cut");
        (data, answers)
    }

    #[test]
    fn the_oldest_data_goes_first_and_answers_stay() {
        let mut queue = OutputQueue::new(BYTES_MAX);
        for number in 0..20 {
            assert_eq!(data(&mut queue, number, 93), u64::from(number >= 10));
        }
        assert_eq!(queue.push_control(&answer(7, 20)), Ok(1));
        let mut wire = Vec::new();
        write(&mut queue, usize::MAX, &mut wire);
        assert_eq!(numbers(&wire), ((11..20).collect(), vec![7]));
        assert_eq!(wire[8..10], [0, 7], "the answer is ahead");
        assert!(queue.is_empty());
    }

    #[test]
    fn a_begun_message_is_finished_whatever_is_dropped_behind_it() {
        for begun in 1..100 {
            let mut queue = OutputQueue::new(BYTES_MAX);
            let mut wire = Vec::new();
            (0..10).for_each(|number| assert_eq!(data(&mut queue, number, 96), 0));
            assert_eq!(write(&mut queue, begun, &mut wire), 0);
            assert_eq!(queue.push_control(&answer(3, 0)), Ok(u64::from(begun < 20)));
            let dropped: u64 = (10..30).map(|number| data(&mut queue, number, 96)).sum();
            assert!(dropped >= 20, "{dropped}");
            write(&mut queue, usize::MAX, &mut wire);
            let (data, answers) = numbers(&wire);
            assert_eq!((data[0], *data.last().unwrap(), answers), (0, 29, vec![3]));
        }
    }

    #[test]
    fn messages_can_be_taken_one_by_one() {
        let mut queue = OutputQueue::new(BYTES_MAX);
        let mut wire = Vec::new();
        // Rounds without a common divisor of the ring's size, so that some messages lie across its end.
        for number in 0..200 {
            assert_eq!(data(&mut queue, number, 40 + number % 50), 0);
            if number % 7 == 3 {
                assert_eq!(queue.push_control(&answer(number, number % 5)), Ok(0));
            }
            while queue.len() > 200 {
                let first = queue.first().concat();
                assert_eq!(framed_len(&first), Some(first.len()));
                assert_eq!(queue.advance(first.len()), 1);
                wire.extend(first);
            }
        }
        write(&mut queue, 30, &mut wire);
        let rest = queue.first().concat();
        write(&mut queue, rest.len(), &mut wire);
        assert_eq!(numbers(&wire).0, (0..=*numbers(&wire).0.last().unwrap()).collect::<Vec<_>>());
        assert!(OutputQueue::new(BYTES_MAX).first().concat().is_empty());
    }

    #[test]
    fn answers_alone_can_be_too_many() {
        let mut queue = OutputQueue::new(BYTES_MAX);
        data(&mut queue, 0, 600);
        let pushed = (0..100).take_while(|&number| queue.push_control(&answer(number, 0)).is_ok()).count();
        assert_eq!((pushed, queue.len()), (50, BYTES_MAX));
        assert_eq!(data(&mut queue, 1, 0), 1, "the new one is what is lost");
        assert_eq!(queue.messages(), 50);
    }

    #[test]
    fn memory_is_given_back_once_it_is_empty() {
        let mut queue = OutputQueue::new(BYTES_MAX);
        data(&mut queue, 0, 600);
        assert_eq!((queue.shrink(), queue.messages()), (0, 1));
        queue.advance(604);
        assert_eq!((queue.shrink(), queue.capacity()), (0, 0));
    }

    #[test]
    fn with_less_room_the_oldest_data_goes_and_its_memory_with_it() {
        let mut queue = OutputQueue::new(10 * BYTES_MAX);
        (0..100).for_each(|number| assert_eq!(data(&mut queue, number, 96), 0));
        queue.set_bytes_max(BYTES_MAX);
        assert_eq!((queue.shrink(), queue.len()), (90, BYTES_MAX));
        assert!(queue.capacity() <= BYTES_MAX + 100, "{}", queue.capacity());
        queue.set_bytes_max(BYTES_MAX / 2);
        assert_eq!(data(&mut queue, 100, 96), 6, "five remain, the new one among them");
        let mut wire = Vec::new();
        write(&mut queue, usize::MAX, &mut wire);
        assert_eq!(numbers(&wire).0, [96, 97, 98, 99, 100]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Data(u16),
        Control(u16),
        Write(usize),
    }

    proptest! {
        #[test]
        fn every_message_is_written_whole_or_counted_and_none_overtakes_its_kind(
            steps in proptest::collection::vec(prop_oneof![
                4 => (2..400_u16).prop_map(Step::Data),
                1 => (0..30_u16).prop_map(Step::Control),
                3 => (0..700_usize).prop_map(Step::Write),
            ], 0..200),
        ) {
            let mut queue = OutputQueue::new(BYTES_MAX);
            let (mut wire, mut pushed, mut dropped, mut finished) = (Vec::new(), 0, 0, 0);
            let mut refused = Vec::new();
            for (number, step) in (0..).zip(steps) {
                match step {
                    Step::Data(len) => { pushed += 1; dropped += data(&mut queue, number, len); }
                    Step::Control(words) => match queue.push_control(&answer(number, words)) {
                        Ok(lost) => { pushed += 1; dropped += lost; }
                        Err(Overflow) => refused.push(number),
                    },
                    Step::Write(len) => finished += write(&mut queue, len, &mut wire),
                }
                prop_assert!(queue.len() <= BYTES_MAX);
                // Data and answers each at most so much, and a begun message.
                prop_assert!(queue.capacity() <= 2 * BYTES_MAX + 404, "{}", queue.capacity());
                prop_assert_eq!(pushed, dropped + finished + queue.messages());
            }
            finished += write(&mut queue, usize::MAX, &mut wire);
            prop_assert_eq!(pushed, dropped + finished);
            let (data, answers) = numbers(&wire);
            prop_assert_eq!((data.len() + answers.len()) as u64, finished);
            prop_assert!(data.is_sorted() && answers.is_sorted());
            prop_assert!(answers.iter().all(|answer| !refused.contains(answer)));
        }
    }
}
