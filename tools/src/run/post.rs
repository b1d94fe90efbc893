//! How messages get to the kernel: two independent ways, so that a bug in this project's ring cannot flatter the data plane
//! that is built on it.
//!
//! | `--send` | messages that are due together leave in |
//! |---|---|
//! | `sendmmsg` | one `sendmmsg` for each socket, or `sendmsg` where it has one message |
//! | `uring` | one `io_uring_enter` for all sockets |
//!
//! The clock is read once for each system call, and what a call carries has that time as its own: the last message of a call seems to
//! have left earlier than it did, by what the others before it took, and the time counts as service instead of lateness. So a call
//! carries [`TOGETHER`] datagrams at most, or one superpacket, which leaves at once.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use dataplane::egress::{Port, Target};
use dataplane::sys::ring::{self, ReapHalf, SubmitHalf};
use dataplane::sys::slab::{Slab, Slot};
use dataplane::sys::udp::{UdpSocket, send_batch};

use super::clock::monotonic_ns;
use super::datagrams::{HELD_BYTES, HELD_MAX};
use super::spec::{SIZE_MAX, SendBy};
use super::transmit::Ask;

/// Most messages of one system call: at the 4 µs that the kernel takes for each (benches/README.md, the generator), the last of them
/// leaves some 30 µs behind the time it bears, a third of what the median of the lateness may be.
const TOGETHER: usize = 8;
/// How long one wait for the ring's answers lasts, and how many of them there are before it counts as broken.
const WAIT: Duration = Duration::from_millis(100);
const WAITS_MAX: usize = 100;

/// One message.
#[derive(Clone, Copy, Debug)]
pub struct Sending<'a> {
    /// The socket it leaves from.
    pub socket: &'a UdpSocket,
    /// Where it goes.
    pub to: SocketAddr,
    /// Bytes of each datagram in it.
    pub segment: usize,
    /// All of its bytes.
    pub len: usize,
    /// If the kernel is to say when the device took it, which only [`Post::Messages`] asks for: it leaves in a call of its own.
    pub ask: Option<Ask>,
}

impl Sending<'_> {
    /// Whether it leaves in a system call of its own.
    fn alone(&self) -> bool {
        self.ask.is_some() || self.len > self.segment
    }

    fn target(&self) -> Target {
        Target { port: Port(0), to: self.to, from: None, traffic_class: 0, dont_fragment: false }
    }
}

/// What became of a message.
#[derive(Debug)]
pub struct Answer {
    /// When its system call began (CLOCK_MONOTONIC, nanoseconds).
    pub left_ns: u64,
    /// Whether the kernel took it.
    pub taken: io::Result<()>,
}

/// A way to the kernel.
pub enum Post {
    /// By `sendmsg` and `sendmmsg`.
    Messages(Messages),
    /// Through the ring.
    Ring(Box<Ring>),
}

impl Post {
    /// Opens the way; the calling thread is the one that sends.
    ///
    /// # Errors
    /// What io_uring_setup(2) answers.
    pub fn new(send: SendBy) -> io::Result<Self> {
        Ok(match send {
            SendBy::Sendmmsg => Self::Messages(Messages::new()),
            SendBy::Uring => Self::Ring(Box::new(Ring::new()?)),
        })
    }

    /// Sends `count` messages, [`HELD_MAX`] at most and none waiting for room. Those of one socket keep their order; what
    /// became of message `index` is put at that place of `answers`. `fill` writes its bytes, and is told when they leave.
    ///
    /// # Errors
    /// A broken ring; what is wrong with a message is its answer.
    pub fn send<'a>(
        &mut self,
        count: usize,
        sending: impl Fn(usize) -> Sending<'a>,
        fill: impl FnMut(usize, u64, &mut [u8]),
        answers: &mut Vec<Answer>,
    ) -> io::Result<()> {
        answers.clear();
        answers.resize_with(count, || Answer { left_ns: 0, taken: Ok(()) });
        match self {
            Self::Messages(messages) => {
                messages.send(sending, fill, answers);
                Ok(())
            }
            Self::Ring(ring) => ring.send(sending, fill, answers),
        }
    }
}

/// Filling that no protocol on the way can compress or mistake for its own.
fn filling(bytes: &mut [u8]) {
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = (index as u8).wrapping_mul(167) ^ 0x5a;
    }
}

/// System calls with the frames side by side in plain memory.
pub struct Messages {
    frames: Box<[u8]>,
    /// The messages by socket, those of one in their order. A sender that is behind its schedule has several for each, which
    /// then cost less: that is how it catches up.
    order: Vec<(RawFd, usize)>,
}

impl Messages {
    fn new() -> Self {
        let mut frames = vec![0; HELD_BYTES + SIZE_MAX].into_boxed_slice();
        filling(&mut frames);
        Self { frames, order: Vec::with_capacity(HELD_MAX) }
    }

    fn send<'a>(
        &mut self,
        sending: impl Fn(usize) -> Sending<'a>,
        mut fill: impl FnMut(usize, u64, &mut [u8]),
        answers: &mut [Answer],
    ) {
        let Self { frames, order, .. } = self;
        order.clear();
        order.extend((0..answers.len()).map(|index| (sending(index).socket.fd().as_raw_fd(), index)));
        order.sort_unstable();
        let alone = |index: usize| sending(index).alone();
        let of_one_socket =
            order.chunk_by(|(one, index), (other, next)| one == other && !alone(*index) && !alone(*next));
        for together in of_one_socket.flat_map(|messages| messages.chunks(TOGETHER)) {
            let left_ns = monotonic_ns();
            if let &[(_, index)] = together {
                let Sending { socket, to, segment, len, ask } = sending(index);
                let bytes = &mut frames[..len];
                fill(index, left_ns, bytes);
                let taken = match ask {
                    Some(ask) => socket.send_stamped(to, bytes, segment, ask.number),
                    None => socket.send_segments(to, None, 0, bytes, segment),
                };
                answers[index] = Answer { left_ns, taken };
                continue;
            }
            let first = sending(together[0].1);
            let mut items = [(first.target(), &[][..], first.segment); TOGETHER];
            let mut rest = &mut frames[..];
            for (item, &(_, index)) in items.iter_mut().zip(together) {
                let sending = sending(index);
                let (bytes, behind) = rest.split_at_mut(sending.len);
                fill(index, left_ns, bytes);
                *item = (sending.target(), bytes, sending.segment);
                answers[index].left_ns = left_ns;
                rest = behind;
            }
            send_together(first.socket, &items[..together.len()], |place, error| {
                answers[together[place].1].taken = Err(error);
            });
        }
    }
}

/// Sends messages from one socket, each once; says which were refused.
fn send_together(
    socket: &UdpSocket,
    items: &[(Target, &[u8], usize)],
    mut refused: impl FnMut(usize, io::Error),
) {
    let mut done = 0;
    while done < items.len() {
        match send_batch(socket.fd().as_fd(), &items[done..]) {
            Ok(taken) => done += taken,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                refused(done, error);
                done += 1;
            }
        }
    }
}

/// The engine's own ring and slots.
pub struct Ring {
    slab: Arc<Slab>,
    submit: SubmitHalf,
    reap: ReapHalf,
    free: Vec<Slot>,
    /// By slot: which message it carries, and how long that is.
    carries: [(usize, usize); HELD_MAX],
}

impl Ring {
    fn new() -> io::Result<Self> {
        let (slab, mut free) = Slab::new(HELD_MAX)?;
        let slab = Arc::new(slab);
        for slot in &mut free {
            filling(slab.bytes(slot));
        }
        let (submit, reap) = ring::new(slab.clone(), HELD_MAX)?;
        Ok(Self { slab, submit, reap, free, carries: [(0, 0); HELD_MAX] })
    }

    fn send<'a>(
        &mut self,
        sending: impl Fn(usize) -> Sending<'a>,
        mut fill: impl FnMut(usize, u64, &mut [u8]),
        answers: &mut [Answer],
    ) -> io::Result<()> {
        let (mut left_ns, mut pushed) = (monotonic_ns(), 0);
        for (index, answer) in answers.iter_mut().enumerate() {
            let sending = sending(index);
            if pushed == TOGETHER || (pushed > 0 && sending.alone()) {
                self.submit_all()?;
                (left_ns, pushed) = (monotonic_ns(), 0);
            }
            pushed = if sending.alone() { TOGETHER } else { pushed + 1 };
            // There are as many slots as messages, and all came back below.
            let Some(mut slot) = self.free.pop() else { return Err(stuck()) };
            fill(index, left_ns, &mut self.slab.bytes(&mut slot)[..sending.len]);
            self.carries[slot.index()] = (index, sending.len);
            let fd = sending.socket.fd().as_fd();
            self.submit.push_send(slot, fd, &sending.target(), sending.len, sending.segment, false);
            answer.left_ns = left_ns;
        }
        for _ in 0..WAITS_MAX {
            self.submit_all()?;
            let Self { reap, free, carries, .. } = self;
            reap.reap(|slot, result| {
                let (index, len) = carries[slot.index()];
                answers[index].taken = answer(result, len);
                free.push(slot);
            });
            if self.free.len() == HELD_MAX {
                return Ok(());
            }
            self.reap.wait(WAIT)?;
        }
        Err(stuck())
    }
}

impl Ring {
    /// Hands over what was pushed, or as much as the kernel takes; what it leaves goes with the next.
    fn submit_all(&mut self) -> io::Result<()> {
        match self.submit.submit() {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// What a completion says about a message of `len` bytes.
fn answer(result: i32, len: usize) -> io::Result<()> {
    match usize::try_from(result) {
        Ok(taken) if taken == len => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::from_raw_os_error(-result)),
    }
}

fn stuck() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the sender's ring has given nothing back for 10 s")
}

#[cfg(test)]
mod tests {
    use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpOptions};

    use super::*;

    fn socket() -> UdpSocket {
        let options = UdpOptions { packet_info: false, ..UdpOptions::default() };
        UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &options).unwrap()
    }

    /// The first byte of each datagram that has come, in order.
    fn first_bytes(socket: &UdpSocket) -> Vec<u8> {
        let mut batch = ReceiveBatch::new(32, RECEIVE_LEN);
        socket.receive_batch(&mut batch).unwrap();
        batch.iter_mut().map(|arrival| arrival.bytes[0]).collect()
    }

    #[test]
    fn no_more_than_a_few_messages_bear_the_time_of_one_call_and_superpackets_one_each() {
        let (socket, far) = (socket(), socket());
        let to = far.local_addr();
        for send in [SendBy::Sendmmsg, SendBy::Uring] {
            let mut post = Post::new(send).unwrap();
            // How many share the time that they bear, call by call.
            let mut calls = |count: usize, len: usize| {
                let sending = |_: usize| Sending { socket: &socket, to, segment: 100, len, ask: None };
                let mut answers = Vec::new();
                let mut borne = vec![0; count];
                let fill = |index: usize, left_ns: u64, _: &mut [u8]| borne[index] = left_ns;
                post.send(count, sending, fill, &mut answers).unwrap();
                assert!(answers.iter().map(|answer| answer.left_ns).eq(borne.iter().copied()));
                assert!(borne.is_sorted());
                borne.chunk_by(|one, other| one == other).map(<[u64]>::len).collect::<Vec<_>>()
            };
            assert_eq!(calls(20, 100), [8, 8, 4], "{send:?}");
            assert_eq!(calls(3, 300), [1; 3], "{send:?}");
        }
    }

    #[test]
    fn messages_of_several_sockets_keep_their_order_and_only_the_refused_ones_are_lost() {
        let (one, other, alone) = (socket(), socket(), socket());
        let nowhere = "127.0.0.1:0".parse().unwrap();
        for send in [SendBy::Sendmmsg, SendBy::Uring] {
            let (far, farther) = (socket(), socket());
            let (far_at, farther_at) = (far.local_addr(), farther.local_addr());
            let plan = [
                (&one, far_at),
                (&other, farther_at),
                (&one, nowhere),
                (&one, far_at),
                (&alone, nowhere),
                (&other, farther_at),
                (&one, far_at),
                (&other, nowhere),
            ];
            let mut post = Post::new(send).unwrap();
            let mut answers = Vec::new();
            let before_ns = monotonic_ns();
            let sending = |index: usize| {
                let (socket, to) = plan[index];
                Sending { socket, to, segment: 100 + index, len: 100 + index, ask: None }
            };
            let fill = |index: usize, left_ns: u64, bytes: &mut [u8]| {
                assert!(bytes.len() == 100 + index && left_ns >= before_ns);
                bytes[0] = index as u8;
            };
            post.send(plan.len(), sending, fill, &mut answers).unwrap();
            let refused: Vec<usize> =
                (0..plan.len()).filter(|&index| answers[index].taken.is_err()).collect();
            assert_eq!(refused, [2, 4, 7], "{send:?}: {answers:?}");
            assert!(answers.iter().all(|answer| answer.left_ns >= before_ns), "{send:?}: {answers:?}");
            assert_eq!((first_bytes(&far), first_bytes(&farther)), (vec![0, 3, 6], vec![1, 5]), "{send:?}");
        }
    }
}
