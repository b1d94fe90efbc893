//! The loop itself, with input that is made up, packets that are sealed, and a ring that takes everything: what timing its
//! batches costs without the kernel, beside which it would be less.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::driver::{self, Application, Ends, Next};
use dataplane::drops::Drops;
use dataplane::egress::{Class, Egress, Target};
use dataplane::engine::IngressKind;
use dataplane::ingress::{Ingress, IngressStats, Meta, Received, Source, Token};
use dataplane::stages::Stages;

use super::taker;
use super::tunnel::Pair;

/// An endpoint that seals so many packets for each superpacket that it gets.
pub struct Sealing {
    pair: Pair,
    sealed_len: usize,
    packets: usize,
    turns_left: usize,
    target: Option<Target>,
    stages: Option<Stages>,
}

impl Sealing {
    /// `packets` packets of `len` bytes in a turn; its batches are timed or not.
    ///
    /// # Panics
    /// As [`Pair::load`].
    #[must_use]
    pub fn new(packets: usize, len: usize, timed: bool) -> Self {
        let mut pair = Pair::connected();
        let sealed_len = pair.load(len);
        let stages = timed.then(Stages::default);
        Self { pair, sealed_len, packets, turns_left: 0, target: None, stages }
    }

    /// Runs the loop for so many turns.
    ///
    /// # Panics
    /// When memory is refused.
    pub fn run(&mut self, turns: usize) {
        self.turns_left = turns;
        let (mut egress, port) = taker::egress();
        let to = ([192, 0, 2, 1], 51_820).into();
        self.target = Some(Target { port, to, from: None, ecn: 0, dont_fragment: false });
        let ends = Ends { signals: None, halt: None };
        driver::run(self, &mut MadeUp, &mut egress, &ends, Duration::ZERO).expect("nothing breaks here");
    }
}

impl Application for Sealing {
    fn default_ingress(&self) -> IngressKind {
        IngressKind::Epoll
    }

    fn start<I: Ingress, E: Egress>(&mut self, _: &mut I, _: &mut E, _: Instant) -> io::Result<()> {
        Ok(())
    }

    fn handle<E: Egress>(&mut self, _: Received<'_>, egress: &mut E, _: Instant) {
        let Some(target) = self.target else { return };
        for _ in 0..self.packets {
            egress.append(&target, self.sealed_len, Class::Data, |slot| {
                self.pair.seal(slot);
                true
            });
        }
    }

    fn handle_timeout<E: Egress>(&mut self, _: &mut E, _: Instant) {}

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    fn maintain<I: Ingress, E: Egress>(&mut self, _: &mut I, _: &mut E, _: Instant) -> Next {
        self.turns_left = self.turns_left.saturating_sub(1);
        if self.turns_left == 0 { Next::Stop } else { Next::Continue }
    }

    fn slow_down<I: Ingress>(&mut self, _: &mut I, _: bool) {}

    fn stop<E: Egress>(&mut self, _: &mut E, _: Instant) {}

    fn drops(&self) -> Drops {
        Drops::default()
    }

    fn stages(&mut self) -> Option<&mut Stages> {
        self.stages.as_mut()
    }
}

/// One superpacket in every turn.
struct MadeUp;

impl Ingress for MadeUp {
    fn add(&mut self, _: Arc<OwnedFd>, _: Token, _: Source) -> io::Result<()> {
        Ok(())
    }

    fn remove(&mut self, _: Token) {}

    fn set_reading(&mut self, _: Token, _: bool) {}

    fn wake_when_writable(&mut self, _: Token) {}

    fn wait(&mut self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn take(&mut self, handler: &mut impl FnMut(Received<'_>)) -> io::Result<()> {
        handler(Received { token: Token(0), meta: Meta::Tun, bytes: &mut [] });
        Ok(())
    }

    fn has_more(&self) -> bool {
        false
    }

    fn finish(&mut self, _: &mut impl FnMut(Received<'_>)) -> io::Result<bool> {
        Ok(false)
    }

    fn stats(&self) -> IngressStats {
        IngressStats::default()
    }

    fn design(&self) -> &'static str {
        "made up"
    }
}
