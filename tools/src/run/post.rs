//! How messages get to the kernel: two independent ways, so that a bug in this project's ring cannot flatter the data plane
//! that is built on it.
//!
//! | `--send` | messages that are due together leave in |
//! |---|---|
//! | `sendmmsg` | one `sendmmsg` for each socket, or `sendmsg` when there is one |
//! | `uring` | one `io_uring_enter` for all sockets |

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use dataplane::egress::{Port, Target};
use dataplane::sys::ring::{self, ReapHalf, SubmitHalf};
use dataplane::sys::slab::{Slab, Slot};
use dataplane::sys::udp::{SEND_BATCH, UdpSocket, send_batch};

use super::datagrams::{HELD_BYTES, HELD_MAX};
use super::spec::{SIZE_MAX, SendBy};

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
}

impl Sending<'_> {
    fn target(&self) -> Target {
        Target { port: Port(0), to: self.to, from: None, traffic_class: 0, dont_fragment: false }
    }
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

    /// Whether messages of several sockets leave together.
    #[must_use]
    pub fn spans_sockets(&self) -> bool {
        matches!(self, Self::Ring(_))
    }

    /// Sends up to [`HELD_MAX`] messages, none waiting for room, and pushes the answer to each. `fill` writes the bytes of
    /// message `index`.
    ///
    /// # Errors
    /// A broken ring; what is wrong with a message is its answer.
    pub fn send<'a>(
        &mut self,
        sendings: impl Iterator<Item = Sending<'a>>,
        fill: impl FnMut(usize, &mut [u8]),
        answers: &mut Vec<io::Result<()>>,
    ) -> io::Result<()> {
        match self {
            Self::Messages(messages) => {
                messages.send(sendings, fill, answers);
                Ok(())
            }
            Self::Ring(ring) => ring.send(sendings, fill, answers),
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
}

impl Messages {
    fn new() -> Self {
        let mut frames = vec![0; HELD_BYTES + SIZE_MAX].into_boxed_slice();
        filling(&mut frames);
        Self { frames }
    }

    fn send<'a>(
        &mut self,
        mut sendings: impl Iterator<Item = Sending<'a>>,
        mut fill: impl FnMut(usize, &mut [u8]),
        answers: &mut Vec<io::Result<()>>,
    ) {
        let Some(first) = sendings.next() else { return };
        let Some(second) = sendings.next() else {
            let bytes = &mut self.frames[..first.len];
            fill(0, bytes);
            answers.push(first.socket.send_segments(first.to, None, 0, bytes, first.segment));
            return;
        };
        let mut items = [(first.target(), &[][..], first.segment); SEND_BATCH];
        let (mut rest, mut count) = (&mut self.frames[..], 0);
        for sending in [first, second].into_iter().chain(sendings) {
            let (bytes, behind) = rest.split_at_mut(sending.len);
            fill(count, bytes);
            items[count] = (sending.target(), bytes, sending.segment);
            (rest, count) = (behind, count + 1);
        }
        let mut left = &items[..count];
        while !left.is_empty() {
            // All are of one socket: `spans_sockets` says no.
            match send_batch(first.socket.fd().as_fd(), left) {
                Ok(taken) => {
                    answers.extend((0..taken).map(|_| Ok(())));
                    left = &left[taken..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    answers.push(Err(error));
                    left = &left[1..];
                }
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
        sendings: impl Iterator<Item = Sending<'a>>,
        mut fill: impl FnMut(usize, &mut [u8]),
        answers: &mut Vec<io::Result<()>>,
    ) -> io::Result<()> {
        for (index, sending) in sendings.enumerate() {
            // There are as many slots as messages, and all came back below.
            let Some(mut slot) = self.free.pop() else { return Err(stuck()) };
            fill(index, &mut self.slab.bytes(&mut slot)[..sending.len]);
            self.carries[slot.index()] = (index, sending.len);
            let fd = sending.socket.fd().as_fd();
            self.submit.push_send(slot, fd, &sending.target(), sending.len, sending.segment, false);
            answers.push(Ok(()));
        }
        for _ in 0..WAITS_MAX {
            match self.submit.submit() {
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy) => {}
                Err(error) => return Err(error),
            }
            let Self { reap, free, carries, .. } = self;
            reap.reap(|slot, result| {
                let (index, len) = carries[slot.index()];
                answers[index] = answer(result, len);
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
