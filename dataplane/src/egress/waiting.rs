//! The waiting queue of one socket: what it could not take yet, in order, in its own bounded memory.
//!
//! A slot of the ring is never held for a busy socket, so one busy socket cannot hold up the others. The memory is
//! allocated when the socket is busy for the first time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Class, Port, Target};
use crate::drops::{Cause, Drops};
use crate::offload::split::Splitter;
use crate::offload::virtio;

/// Payload kept for one socket, in bytes.
pub const WAITING_BYTES: usize = 256 * 1024;
/// Of it, what only control packets may take.
const CONTROL_BYTES: usize = 16 * 1024;
/// Records kept for one socket.
const RECORDS: usize = 1024;
/// How long a packet may wait, unless the application says otherwise.
pub const WAITING_TIME: Duration = Duration::from_millis(20);

/// Where a record goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// A datagram or superpacket with this segment size in bytes.
    Target(Target, usize),
    /// A device: the bytes start with a virtio_net header.
    Device(Port),
}

/// One packet or superpacket that waits.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// Where it goes.
    pub to: To,
    /// Packets in it.
    pub segments: usize,
    /// How often an error that may not have been its own has been forgiven.
    pub forgiven: u8,
    /// Bytes in it.
    pub len: usize,
    /// Where its bytes begin, counted on from the record in front of it; only differences mean something.
    start: u64,
    since: Instant,
}

impl Record {
    fn end(&self) -> u64 {
        self.start.wrapping_add(self.len as u64)
    }
}

/// A first-in first-out queue of records with their bytes in one buffer.
#[derive(Debug, Default)]
struct Fifo {
    records: VecDeque<Record>,
    bytes: VecDeque<u8>,
}

impl Fifo {
    fn push(&mut self, record: Record, bytes: &[u8]) {
        let start = self.records.back().map_or(0, Record::end);
        self.records.push_back(Record { start, ..record });
        self.bytes.extend(bytes);
    }

    fn push_front(&mut self, record: Record, bytes: &[u8]) {
        let next = self.records.front().map_or(0, |next| next.start);
        self.records.push_front(Record { start: next.wrapping_sub(bytes.len() as u64), ..record });
        for byte in bytes.iter().rev() {
            self.bytes.push_front(*byte);
        }
    }

    fn pop(&mut self) -> Option<Record> {
        let record = self.records.pop_front()?;
        self.bytes.drain(..record.len);
        Some(record)
    }
}

/// What one socket could not take yet.
#[derive(Debug, Default)]
pub struct Waiting {
    control: Fifo,
    data: Fifo,
    /// Bytes of data beyond what is usual.
    extra: usize,
    /// A superpacket was refused with this errno, which may tell of an offload that does not work: its packets are what is
    /// sent next.
    suspicion: Option<i32>,
}

impl Waiting {
    /// An empty queue that takes so many bytes more than [`WAITING_BYTES`].
    #[must_use]
    pub fn with_extra(extra: usize) -> Self {
        Self { extra, ..Self::default() }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.control.records.is_empty() && self.data.records.is_empty()
    }

    /// Packets that wait.
    pub fn packets(&self) -> u64 {
        self.control.records.iter().chain(&self.data.records).map(|record| record.segments as u64).sum()
    }

    /// Payload bytes that wait; never above [`WAITING_BYTES`] and what is extra.
    pub fn len(&self) -> usize {
        self.control.bytes.len() + self.data.bytes.len()
    }

    /// Appends a record. The oldest of its class make room when the queue is full, and are counted.
    pub fn push(
        &mut self,
        to: To,
        segments: usize,
        forgiven: u8,
        class: Class,
        bytes: &[u8],
        now: Instant,
        drops: &mut Drops,
    ) {
        let (fifo, limit) = match class {
            Class::Control => (&mut self.control, CONTROL_BYTES),
            Class::Data => (&mut self.data, WAITING_BYTES - CONTROL_BYTES + self.extra),
        };
        if bytes.len() > limit {
            drops.add(Cause::EgressQueueFull, segments as u64);
            return;
        }
        while fifo.bytes.len() + bytes.len() > limit || fifo.records.len() >= RECORDS {
            let Some(oldest) = fifo.pop() else { break };
            drops.add(Cause::EgressQueueFull, oldest.segments as u64);
        }
        fifo.push(Record { to, segments, forgiven, len: bytes.len(), start: 0, since: now }, bytes);
    }

    /// Puts the packets of a device's refused superpacket in front of everything else, each behind an empty virtio_net header.
    /// For the headers there is always room. The answer is how many there are.
    ///
    /// # Errors
    /// [`Cause::MalformedInner`] when they cannot be told apart.
    pub fn put_apart(&mut self, port: Port, superpacket: &mut [u8], now: Instant) -> Result<usize, Cause> {
        let mut splitter = Splitter::new(superpacket)?;
        let mut singles = Vec::with_capacity(splitter.segment_count());
        while let Some(packet) = splitter.next_packet() {
            singles.push([&[0; virtio::HEADER_LEN], packet].concat());
        }
        let record = Record { to: To::Device(port), segments: 1, forgiven: 0, len: 0, start: 0, since: now };
        for single in singles.iter().rev() {
            self.data.push_front(Record { len: single.len(), ..record }, single);
        }
        Ok(singles.len())
    }

    /// Notes that a superpacket was refused with `errno`.
    pub fn suspect(&mut self, errno: i32) {
        self.suspicion = Some(errno);
    }

    /// The errno of [`Waiting::suspect`], once: whether it was right shows now.
    pub fn take_suspicion(&mut self) -> Option<i32> {
        self.suspicion.take()
    }

    /// Puts a failed superpacket's segments back at the front as single datagrams, or a record that may be tried again.
    pub fn replace_front(&mut self, change: Change) {
        let fifo = self.front_fifo();
        let Some(front) = fifo.records.front_mut() else { return };
        match (change, front.to) {
            (Change::Forgiven, _) => front.forgiven += 1,
            (Change::Resegment, To::Target(target, size)) if size > 0 => {
                let whole = *front;
                fifo.records.pop_front();
                let mut start = whole.start;
                let mut singles = Vec::with_capacity(whole.segments);
                while start != whole.end() {
                    let len = size.min(whole.end().wrapping_sub(start) as usize);
                    singles.push(Record { to: To::Target(target, len), segments: 1, len, start, ..whole });
                    start = start.wrapping_add(len as u64);
                }
                for single in singles.into_iter().rev() {
                    fifo.records.push_front(single);
                }
            }
            (Change::Resegment, _) => {}
        }
    }

    fn front_fifo(&mut self) -> &mut Fifo {
        if self.control.records.is_empty() { &mut self.data } else { &mut self.control }
    }

    /// Record number `index` from the front, control first, and copies its bytes into `out`.
    pub fn peek(&self, index: usize, out: &mut [u8]) -> Option<(Record, usize)> {
        let control = self.control.records.len();
        let (fifo, index) =
            if index < control { (&self.control, index) } else { (&self.data, index - control) };
        let record = *fifo.records.get(index)?;
        let start = record.start.wrapping_sub(fifo.records.front()?.start) as usize;
        let (front, back) = fifo.bytes.as_slices();
        let from_front = front.get(start..).unwrap_or_default();
        let head = from_front.len().min(record.len);
        out[..head].copy_from_slice(&from_front[..head]);
        let back_start = start.saturating_sub(front.len());
        out[head..record.len].copy_from_slice(&back[back_start..back_start + record.len - head]);
        Some((record, record.len))
    }

    /// Takes the front record out.
    pub fn pop(&mut self) -> Option<Record> {
        self.front_fifo().pop()
    }

    /// Takes out what has waited longer than `limit`, and counts it.
    pub fn expire(&mut self, limit: Duration, now: Instant, drops: &mut Drops) {
        for fifo in [&mut self.control, &mut self.data] {
            while fifo
                .records
                .front()
                .is_some_and(|record| now.saturating_duration_since(record.since) > limit)
            {
                if let Some(record) = fifo.pop() {
                    drops.add(Cause::EgressExpired, record.segments as u64);
                }
            }
        }
    }

    /// Drops everything under one cause.
    pub fn clear(&mut self, cause: Cause, drops: &mut Drops) {
        drops.add(cause, self.packets());
        *self = Self::default();
    }
}

/// A change to the front record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Its segments are sent one by one.
    Resegment,
    /// Its error may have been another's: it has one chance less.
    Forgiven,
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may read the clock")]
mod tests {
    use super::*;

    fn target() -> Target {
        Target {
            port: Port(0),
            to: ([192, 0, 2, 1], 9).into(),
            from: None,
            traffic_class: 0,
            dont_fragment: false,
        }
    }

    fn push(waiting: &mut Waiting, class: Class, bytes: &[u8], now: Instant, drops: &mut Drops) {
        waiting.push(To::Target(target(), bytes.len()), 1, 0, class, bytes, now, drops);
    }

    fn drain(waiting: &mut Waiting) -> Vec<Vec<u8>> {
        let mut out = [0; 70_000];
        let mut all = Vec::new();
        while let Some((_, len)) = waiting.peek(0, &mut out) {
            all.push(out[..len].to_vec());
            waiting.pop();
        }
        all
    }

    #[test]
    fn order_is_kept_and_control_goes_first() {
        let (mut waiting, mut drops, now) = (Waiting::default(), Drops::default(), Instant::now());
        push(&mut waiting, Class::Data, b"one", now, &mut drops);
        push(&mut waiting, Class::Data, b"two", now, &mut drops);
        push(&mut waiting, Class::Control, b"ctl", now, &mut drops);
        assert_eq!(drain(&mut waiting), vec![b"ctl".to_vec(), b"one".to_vec(), b"two".to_vec()]);
        assert_eq!(drops.total(), 0);
    }

    #[test]
    fn the_bound_holds_and_the_oldest_make_room() {
        let (mut waiting, mut drops, now) = (Waiting::default(), Drops::default(), Instant::now());
        for index in 0..3000u32 {
            push(&mut waiting, Class::Data, &[index.to_be_bytes(); 100].concat(), now, &mut drops);
            assert!(waiting.len() <= WAITING_BYTES);
        }
        let kept = waiting.packets();
        assert_eq!(kept + drops.get(Cause::EgressQueueFull), 3000);
        assert_eq!(
            drain(&mut waiting).last().map(|bytes| bytes[..4].to_vec()),
            Some(2999u32.to_be_bytes().to_vec())
        );
    }

    #[test]
    fn what_waits_too_long_expires_and_is_counted() {
        let (mut waiting, mut drops, now) = (Waiting::default(), Drops::default(), Instant::now());
        push(&mut waiting, Class::Data, b"old", now, &mut drops);
        push(&mut waiting, Class::Data, b"new", now + WAITING_TIME, &mut drops);
        waiting.expire(WAITING_TIME, now + WAITING_TIME + Duration::from_millis(1), &mut drops);
        assert_eq!(drops.get(Cause::EgressExpired), 1);
        assert_eq!(drain(&mut waiting), vec![b"new".to_vec()]);
    }

    #[test]
    fn every_record_can_be_looked_at_behind_whatever_was_in_front() {
        let (mut waiting, mut drops, now) = (Waiting::default(), Drops::default(), Instant::now());
        push(&mut waiting, Class::Control, b"control", now, &mut drops);
        let mut expected = VecDeque::from([b"control".to_vec()]);
        // Six come and five go, again and again, so that the bytes wrap around in their buffer.
        for round in 0..200usize {
            for index in 0..6 {
                let bytes = vec![(round * 6 + index) as u8; (round * 31 + index * 7) % 97];
                push(&mut waiting, Class::Data, &bytes, now, &mut drops);
                expected.push_back(bytes);
            }
            for _ in 0..5 {
                waiting.pop();
                expected.pop_front();
            }
            let mut out = [0; 97];
            for (index, bytes) in expected.iter().enumerate() {
                let (record, len) = waiting.peek(index, &mut out).expect("a record");
                assert_eq!((record.segments, &out[..len]), (1, &bytes[..]), "round {round}, record {index}");
            }
            assert!(waiting.peek(expected.len(), &mut out).is_none());
        }
        assert_eq!(drops.total(), 0);
    }

    #[test]
    fn a_refused_superpacket_comes_back_as_its_segments() {
        let (mut waiting, mut drops, now) = (Waiting::default(), Drops::default(), Instant::now());
        waiting.push(To::Target(target(), 4), 3, 0, Class::Data, b"aaaabbbbcc", now, &mut drops);
        push(&mut waiting, Class::Data, b"next", now, &mut drops);
        waiting.replace_front(Change::Resegment);
        assert_eq!(waiting.packets(), 4);
        let mut out = [0; 4];
        assert_eq!(waiting.peek(2, &mut out).map(|(_, len)| out[..len].to_vec()), Some(b"cc".to_vec()));
        assert_eq!(waiting.peek(3, &mut out).map(|(_, len)| out[..len].to_vec()), Some(b"next".to_vec()));
        let expected: Vec<Vec<u8>> = [&b"aaaa"[..], b"bbbb", b"cc", b"next"].map(<[u8]>::to_vec).into();
        assert_eq!(drain(&mut waiting), expected);
    }
}
