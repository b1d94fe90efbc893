//! The outlet of every kind over UDP: frames what is due and sends it, by `sendmmsg` or through this project's own ring.

use std::io;

use dataplane::sys::transmit_stamps::takes_numbers;

use super::frame::Wrap;
use super::path::Path;
use super::payload::{Header, Phase};
use super::post::{Answer, Post, Sending};
use super::schedule::{Burst, Datagram};
use super::sender::{Outlet, Tally};
use super::spec::{GSO_SEGMENTS_MAX, RunSpec, SIZE_MAX};
use super::transmit::{Ask, Asking, Noted};

/// Sends that are held back at most.
pub const HELD_MAX: usize = 64;
/// Bytes of frames that are held back at most, beside one send.
pub const HELD_BYTES: usize = 256 << 10;

/// One message for the kernel: a datagram, or a superpacket of equal ones.
#[derive(Clone, Copy, Debug)]
struct Held {
    phase: Phase,
    flow: u32,
    number: u64,
    /// Where its datagrams are in [`Datagrams::datagrams`], and how many.
    first: usize,
    count: usize,
    start_ns: u64,
    leave_ns: u64,
    frame_len: usize,
    /// If it asks when the device took it.
    ask: Option<Ask>,
}

/// Frames and sends.
pub struct Datagrams<'a, W> {
    path: &'a Path,
    wrap: W,
    post: Post,
    run_id: u64,
    /// Whether the datagrams of a burst share a message.
    superpackets: bool,
    held: Vec<Held>,
    datagrams: Vec<Datagram>,
    bytes: usize,
    /// Answers of the kernel, in the order of `held`.
    answers: Vec<Answer>,
    asking: Asking,
    /// Datagrams of the largest message so far.
    segments_max: usize,
}

impl<'a, W: Wrap> Datagrams<'a, W> {
    /// An outlet on the calling thread.
    ///
    /// # Errors
    /// What io_uring_setup(2) answers, when the ring was asked for.
    pub fn new(spec: &RunSpec, path: &'a Path, run_id: u64, wrap: W) -> io::Result<Self> {
        Ok(Self {
            path,
            wrap,
            post: Post::new(spec.send)?,
            run_id,
            superpackets: spec.superpackets(),
            held: Vec::with_capacity(HELD_MAX),
            datagrams: Vec::with_capacity(HELD_MAX * GSO_SEGMENTS_MAX as usize),
            bytes: 0,
            answers: Vec::with_capacity(HELD_MAX),
            asking: Asking::new(spec, path.sockets.len(), spec.tx_stamps > 0 && takes_numbers()),
            segments_max: 0,
        })
    }

    /// The sends that asked for a stamp, and the datagrams of the largest message.
    pub fn finish(self) -> (Vec<Noted>, usize) {
        (self.asking.finish(), self.segments_max)
    }

    /// Holds one message, after others have left where there is no room for it.
    fn hold(&mut self, held: Held, datagrams: &[Datagram], tally: &mut Tally) -> io::Result<()> {
        if self.held.len() == HELD_MAX || self.bytes > HELD_BYTES {
            self.send(tally)?;
        }
        self.bytes += held.frame_len * held.count;
        let ask = match held.phase {
            Phase::Measured => self.asking.takes_next(self.path.flows[held.flow as usize].socket),
            _ => None,
        };
        self.held.push(Held { first: self.datagrams.len(), ask, ..held });
        self.datagrams.extend_from_slice(datagrams);
        Ok(())
    }

    /// Stamps, frames and sends everything that is held.
    fn send(&mut self, tally: &mut Tally) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let Self { path, wrap, post, run_id, held, datagrams, answers, asking, .. } = self;
        wrap.begin();
        let sending = |index: usize| {
            let held: &Held = &held[index];
            let flow = &path.flows[held.flow as usize];
            let socket = &path.sockets[flow.socket];
            Sending {
                socket,
                to: flow.to,
                segment: held.frame_len,
                len: held.frame_len * held.count,
                ask: held.ask,
            }
        };
        let fill = |index: usize, left_ns: u64, bytes: &mut [u8]| {
            let held = &held[index];
            let all = datagrams[held.first..][..held.count].iter();
            for ((number, datagram), frame) in
                (held.number..).zip(all).zip(bytes.chunks_exact_mut(held.frame_len))
            {
                let header = Header {
                    phase: held.phase,
                    returned: false,
                    run_id: *run_id,
                    flow: held.flow,
                    seq: number,
                    intended_ns: held.start_ns + datagram.due_ns,
                    actual_ns: left_ns,
                    turned_ns: 0,
                };
                wrap.write(frame, &path.flows[held.flow as usize], &header, datagram.size);
            }
        };
        post.send(held.len(), sending, fill, answers)?;
        for (held, Answer { left_ns, taken }) in held.iter().zip(answers.drain(..)) {
            let bytes: usize =
                datagrams[held.first..][..held.count].iter().map(|datagram| datagram.size).sum();
            if let Some(ask) = held.ask {
                asking.book(path.flows[held.flow as usize].socket, ask, left_ns, &taken);
            }
            let lateness_ns = left_ns.saturating_sub(held.leave_ns);
            tally.book(held.flow, held.count as u64, bytes as u64, lateness_ns, taken);
        }
        held.clear();
        datagrams.clear();
        self.bytes = 0;
        Ok(())
    }
}

impl<W: Wrap> Outlet for Datagrams<'_, W> {
    fn push(
        &mut self,
        phase: Phase,
        burst: &Burst<'_>,
        number: u64,
        start_ns: u64,
        tally: &mut Tally,
    ) -> io::Result<()> {
        let (mut rest, mut number) = (burst.datagrams, number);
        while let Some(first) = rest.first() {
            let frame_len = self.wrap.frame_len(first.size);
            let together = match self.superpackets {
                true => (SIZE_MAX / frame_len).clamp(1, GSO_SEGMENTS_MAX as usize).min(rest.len()),
                false => 1,
            };
            self.segments_max = self.segments_max.max(together);
            let (now, later) = rest.split_at(together);
            let leave_ns = start_ns + burst.leave_ns();
            let held = Held {
                phase,
                flow: burst.flow,
                number,
                first: 0,
                count: together,
                start_ns,
                leave_ns,
                frame_len,
                ask: None,
            };
            self.hold(held, now, tally)?;
            (rest, number) = (later, number + together as u64);
        }
        Ok(())
    }

    fn flush(&mut self, tally: &mut Tally) -> io::Result<()> {
        self.send(tally)?;
        self.wrap.tick();
        Ok(())
    }

    fn patience_ns(&self) -> u64 {
        self.wrap.patience_ns()
    }

    fn is_idle(&self) -> bool {
        self.held.is_empty()
    }
}
