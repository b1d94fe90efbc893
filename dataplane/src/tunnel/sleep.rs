//! What follows when the machine has slept. The caller's clock stands still meanwhile, and with it every timer; the far ends' go
//! on, and so does the age of sessions.

use std::time::{Duration, Instant};

use super::Tunnel;

/// How often there is a look. No more than this passes under sessions whose time is over.
const LOOK: Duration = Duration::from_millis(10);
/// Shorter sleeps are noticed when they have come to this much.
const NOTICED: Duration = Duration::from_secs(1);

/// How long the machine had slept when that was last acted upon.
#[derive(Default)]
pub(super) struct Sleep {
    known: Option<Duration>,
    next: Option<Instant>,
}

impl Tunnel {
    /// Looks whether the machine has slept, and acts on it for all peers: sessions that have outlived their time are wiped,
    /// and persistent keepalives are due, or the handshakes in their place. A look costs two clocks, once in 10 ms; the rest
    /// is proportional to the peers.
    pub fn notice_sleep(&mut self, now: Instant) {
        if self.sleep.next.is_some_and(|next| now < next) {
            return;
        }
        self.sleep.next = Some(now + LOOK);
        let slept = self.world.slept();
        if slept < *self.sleep.known.get_or_insert(slept) + NOTICED {
            return;
        }
        self.sleep.known = Some(slept);
        for place in 0..self.peers.places() {
            let Some(index) = self.peers.at(place) else {
                continue;
            };
            self.peers[index].noise.forget_outlived(&self.world, now);
            self.forget_indices(index);
            if self.running {
                self.peers[index].timers.persistent_now(now);
                self.arm(index, now);
            }
        }
    }
}
