//! What lies between a send call and the device: the kernel stamps some of the sends when the device takes them. The sender
//! remembers when it sent those, the receiver takes the stamps off the error queues, and after the run the two are put together.

use std::io;

use dataplane::sys::transmit_stamps::Stamp;
use hdrhistogram::Histogram;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use super::clock::Offset;
use super::distribution::histogram;
use super::spec::RunSpec;

/// Most stamps of a run (4 MiB at each end); of a long or fast one fewer sends are asked than wanted, all through it.
const STAMPS_MAX: usize = 1 << 18;

/// A send that was to be stamped, or a stamp that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Noted {
    /// Index of the socket.
    socket: u32,
    /// Which of the socket's sends that ask for a stamp it is, from 0; [`UNKNOWN`] of one that was not asked.
    number: u32,
    /// When it was sent, or when the device took it (CLOCK_MONOTONIC).
    at_ns: u64,
}

/// Of a send whose stamp could not be told from others. A run asks less often than this.
const UNKNOWN: u32 = u32::MAX;

/// A send that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The number that it brings; `None` where the kernel counts by itself.
    pub number: Option<u32>,
}

/// One of so many sends of a run asks, in the mean.
#[must_use]
pub fn every(spec: &RunSpec) -> u32 {
    // Datagrams: superpackets are fewer.
    let sends = spec.rate_pps * spec.duration.as_secs_f64();
    spec.tx_stamps.max((sends / STAMPS_MAX as f64).ceil() as u32)
}

/// The sender's part: which sends ask, and when they left.
#[derive(Debug)]
pub(super) struct Asking {
    /// One of so many sends asks, in the mean; 0 when none does.
    every: u32,
    /// How many more sends until the next that asks.
    left: u64,
    /// Draws the gaps, so that flows that take turns are asked evenly.
    random: Xoshiro256PlusPlus,
    /// Whether a send brings its number.
    brings_numbers: bool,
    /// By socket: the number of the next one that asks; `None` when that is not known any more.
    next: Vec<Option<u32>>,
    asked: Vec<Noted>,
}

impl Asking {
    /// For a run over so many sockets; allocates all it will need. `brings_numbers` says whether the kernel takes the number of a
    /// stamp from the send.
    pub(super) fn new(spec: &RunSpec, sockets: usize, brings_numbers: bool) -> Self {
        let asks = spec.tx_stamps > 0;
        Self {
            every: if asks { every(spec) } else { 0 },
            left: 1,
            random: Xoshiro256PlusPlus::seed_from_u64(spec.seed),
            brings_numbers,
            next: if asks { vec![Some(0); sockets] } else { Vec::new() },
            asked: Vec::with_capacity(if asks { STAMPS_MAX } else { 0 }),
        }
    }

    /// Whether the next send, from this socket, is to ask.
    pub(super) fn takes_next(&mut self, socket: usize) -> Option<Ask> {
        if self.every == 0 {
            return None;
        }
        self.left -= 1;
        if self.left > 0 {
            return None;
        }
        // Evenly from 1 to twice the mean less one.
        self.left = 1 + self.random.next_u64() % (2 * u64::from(self.every) - 1);
        let Some(number) = self.next[socket] else {
            // It counts as one whose stamp did not come.
            self.note(socket, UNKNOWN, 0);
            return None;
        };
        if self.brings_numbers {
            self.next[socket] = Some(number + 1);
        }
        Some(Ask { number: self.brings_numbers.then_some(number) })
    }

    /// A send that asked left, or was refused. Whether a kernel that counts by itself has given a number to what it refused depends on
    /// its version, so that such a socket is not asked any more.
    pub(super) fn book(&mut self, socket: usize, ask: Ask, left_ns: u64, taken: &io::Result<()>) {
        match (ask.number, self.next[socket], taken) {
            (Some(number), _, Ok(())) => self.note(socket, number, left_ns),
            (Some(_), ..) => {}
            (None, Some(number), Ok(())) => {
                self.next[socket] = Some(number + 1);
                self.note(socket, number, left_ns);
            }
            (None, None, Ok(())) => self.note(socket, UNKNOWN, left_ns),
            (None, _, Err(_)) => self.next[socket] = None,
        }
    }

    fn note(&mut self, socket: usize, number: u32, at_ns: u64) {
        if self.asked.len() < self.asked.capacity() {
            self.asked.push(Noted { socket: socket as u32, number, at_ns });
        }
    }

    /// All that were asked.
    pub(super) fn finish(self) -> Vec<Noted> {
        self.asked
    }
}

/// The receiver's part.
#[derive(Debug)]
pub(super) struct Came {
    stamps: Vec<Noted>,
}

impl Came {
    /// Allocates all it will need.
    pub(super) fn new(spec: &RunSpec) -> Self {
        Self { stamps: Vec::with_capacity(if spec.tx_stamps > 0 { STAMPS_MAX } else { 0 }) }
    }

    /// Whether any are waited for.
    pub(super) fn is_waiting(&self) -> bool {
        self.stamps.capacity() > 0
    }

    /// A stamp has come.
    pub(super) fn take(&mut self, socket: usize, stamp: Stamp, offset: Offset) {
        if self.stamps.len() < self.stamps.capacity() {
            let at_ns = offset.to_monotonic(stamp.taken_ns);
            self.stamps.push(Noted { socket: socket as u32, number: stamp.number, at_ns });
        }
    }
}

/// How long each stamped send took to the device, in nanoseconds, and how many stamps did not come.
pub(super) fn joined(mut asked: Vec<Noted>, came: &mut Came) -> (Histogram<u64>, u64) {
    let Came { stamps } = came;
    asked.sort_unstable();
    stamps.sort_unstable();
    let mut to_device = histogram();
    let mut rest = stamps.iter().peekable();
    let mut missing = 0;
    for sent in &asked {
        let key = |noted: &Noted| (noted.socket, noted.number);
        while rest.next_if(|stamp| key(stamp) < key(sent)).is_some() {}
        match rest.next_if(|stamp| key(stamp) == key(sent)) {
            Some(stamp) => to_device.saturating_record(stamp.at_ns.saturating_sub(sent.at_ns).max(1)),
            None => missing += 1,
        }
    }
    (to_device, missing)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::kind::Kind;
    use super::*;

    fn spec(tx_stamps: u32) -> RunSpec {
        RunSpec { tx_stamps, ..RunSpec::new(Kind::Udp, "127.0.0.1:9".parse().unwrap()) }
    }

    /// Of sends that bring their numbers.
    fn asking(spec: &RunSpec) -> Asking {
        Asking::new(spec, 4, true)
    }

    /// Sends so many by turns over four sockets, at 1,000 ns each; the answer is what was asked, by socket.
    fn asked(asking: &mut Asking, sends: usize) -> [u64; 4] {
        let mut counts = [0; 4];
        for index in 0..sends {
            if let Some(ask) = asking.takes_next(index % 4) {
                asking.book(index % 4, ask, 1_000 * index as u64, &Ok(()));
                counts[index % 4] += 1;
            }
        }
        counts
    }

    #[test]
    fn one_of_so_many_asks_whatever_the_order_of_the_flows() {
        let counts = asked(&mut asking(&spec(8)), 80_000);
        // 10,000 in all: a quarter of them is 2,500, with a standard deviation of some 40.
        assert!(counts.iter().all(|count| count.abs_diff(2_500) < 250), "{counts:?}");
        assert_eq!(asked(&mut asking(&spec(0)), 1_000), [0; 4]);
        assert_eq!(asked(&mut asking(&spec(1)), 1_000), [250; 4]);
        let much = RunSpec { rate_pps: 1e6, duration: Duration::from_secs(60), ..spec(1) };
        assert_eq!((asking(&much).every, every(&much)), (229, 229));
    }

    #[test]
    fn stamps_are_put_together_with_their_sends_and_missing_ones_are_counted() {
        let mut asking = asking(&spec(1));
        asked(&mut asking, 8);
        let mut came = Came::new(&spec(1));
        let offset = Offset { ns: 5_000_000, uncertainty_ns: 0 };
        // The first of each socket was sent at 1,000 times its index; they come in another order, and one does not.
        for (socket, delay) in [(3, 700), (0, 400), (2, 600)] {
            let taken_ns = 5_000_000 + 1_000 * socket + delay;
            came.take(socket as usize, Stamp { number: 0, taken_ns }, offset);
        }
        came.take(9, Stamp { number: 0, taken_ns: 5_000_000 }, offset);
        came.take(3, Stamp { number: 1, taken_ns: 5_000_000 + 7_000 + 800 }, offset);
        let (to_device, missing) = joined(asking.finish(), &mut came);
        assert_eq!((to_device.len(), missing), (4, 4));
        assert_eq!((to_device.min(), to_device.max()), (400, 800));
    }

    /// Two sends are on their way at once, and the first is refused; the numbers that are known, and what is asked later.
    fn refused(brings_numbers: bool) -> (Vec<u32>, bool) {
        let mut asking = Asking::new(&spec(1), 2, brings_numbers);
        let (first, second) = (asking.takes_next(0).unwrap(), asking.takes_next(0).unwrap());
        asking.book(0, first, 10, &Err(io::ErrorKind::WouldBlock.into()));
        asking.book(0, second, 20, &Ok(()));
        let goes_on = asking.takes_next(0).is_some();
        let other = asking.takes_next(1).unwrap();
        asking.book(1, other, 30, &Ok(()));
        (asking.finish().iter().map(|noted| noted.number).collect(), goes_on)
    }

    #[test]
    fn a_refused_send_takes_its_number_with_it_and_the_others_keep_theirs() {
        assert_eq!(refused(true), (vec![1, 0], true));
    }

    #[test]
    fn where_the_kernel_counts_a_socket_with_a_refused_send_is_asked_no_more_and_its_stamps_are_missing() {
        // Whose stamp that of the second is, is not known; a third one is not asked.
        assert_eq!(refused(false), (vec![UNKNOWN, UNKNOWN, 0], false));
    }
}
