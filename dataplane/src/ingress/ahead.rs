//! Opening ahead: superpackets that wait for their turn are opened by the crypto threads meanwhile.
//!
//! A batch of completions is looked through before the first is dealt with, and what can be opened ahead goes to the crypto threads.
//! When the turn of one comes that is not opened yet, the loop looks after what else there is, and comes back. Sockets are read on
//! meanwhile, so that the threads do not run out of work between two batches.

use std::collections::VecDeque;

use super::Handler;
use crate::crypto::aead::Bodies;
use crate::crypto::crew::{Boss, Stalled};
use crate::sys::receive_ring::{Buffer, PAYLOAD_FROM, ReceiveRing, Taken, parse_datagram};

/// Less than this is opened by the loop: to hand it over would cost more, bytes.
const HANDED_MIN: usize = 8 * 1024;

/// A completion that waits for its turn.
struct Held {
    taken: Taken,
    /// Number of the buffer that a crypto thread has.
    away: Option<usize>,
}

/// The batch that is being dealt with.
pub(super) struct Ahead {
    boss: Boss,
    held: VecDeque<Held>,
    /// By number: buffers that the crypto threads are through with.
    back: Box<[Option<(Buffer, Bodies)>]>,
}

impl Ahead {
    pub fn new(boss: Boss, buffers: usize, batch: usize) -> Self {
        Self { boss, held: VecDeque::with_capacity(batch), back: (0..buffers).map(|_| None).collect() }
    }

    /// Takes up to `batch` completions, and hands over what `is_datagram` says to be a datagram and `handler` that it can be opened.
    /// `is_datagram` sees each as soon as it is taken, and may deal with what it says of its receive.
    pub fn look_through(
        &mut self,
        ring: &mut ReceiveRing,
        batch: usize,
        mut is_datagram: impl FnMut(&mut Taken) -> bool,
        handler: &mut impl Handler,
    ) {
        // Where nobody is at work, the first one is for the loop: it would only wait for it.
        let mut seen = !self.held.is_empty();
        while self.held.len() < batch
            && let Some(mut taken) = ring.next_completion()
        {
            let can_be_opened = is_datagram(&mut taken);
            let mut held = Held { taken, away: None };
            if let Some(mut buffer) = held.taken.buffer.take_if(|_| can_be_opened) {
                let sealed = parse_datagram(ring.buffers().bytes(&mut buffer))
                    .filter(|datagram| datagram.payload.len() >= HANDED_MIN)
                    .and_then(|datagram| {
                        let segment_size = datagram.info.segment_size?;
                        handler.foresee(datagram.from?, datagram.payload, segment_size)
                    });
                match sealed {
                    Some(sealed) if std::mem::replace(&mut seen, true) && self.boss.may_hand_over() => {
                        held.away = Some(buffer.index());
                        self.boss.open(ring.buffers(), buffer, PAYLOAD_FROM, sealed);
                    }
                    _ => held.taken.buffer = Some(buffer),
                }
            }
            self.held.push_back(held);
        }
    }

    /// How many wait for their turn.
    pub fn waiting(&self) -> usize {
        self.held.len()
    }

    /// Those among them that are superpackets.
    #[cfg(test)]
    pub fn superpackets_waiting(&self) -> usize {
        self.held.iter().filter(|held| held.away.is_some() || held.taken.buffer.is_some()).count()
    }

    /// The next completion whose turn it is, opened if it was handed over. `None` when there is none, and also, with `patient`, when
    /// it is not opened yet: its turn comes again, and there is other work to do.
    pub fn next(&mut self, patient: bool) -> Result<Option<(Taken, Bodies)>, Stalled> {
        let Some(away) = self.held.front().map(|held| held.away) else { return Ok(None) };
        let mut bodies = Bodies::default();
        if let Some(index) = away {
            let Some(opened) = self.opened(index, patient)? else { return Ok(None) };
            if let Some(held) = self.held.front_mut() {
                held.taken.buffer = Some(opened.0);
            }
            bodies = opened.1;
        }
        Ok(self.held.pop_front().map(|held| (held.taken, bodies)))
    }

    /// Buffer number `index`, when it has come back.
    fn opened(&mut self, index: usize, patient: bool) -> Result<Option<(Buffer, Bodies)>, Stalled> {
        let mut naps = 0;
        while naps < Boss::NAPS_MAX {
            while let Some((buffer, bodies)) = self.boss.take_opened() {
                let index = buffer.index();
                self.back[index] = Some((buffer, bodies));
            }
            let opened = self.back.get_mut(index).and_then(Option::take);
            if opened.is_some() || patient {
                return Ok(opened);
            }
            naps += usize::from(self.boss.help_to_open());
        }
        Err(Stalled)
    }
}
