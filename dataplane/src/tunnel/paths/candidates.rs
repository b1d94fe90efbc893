//! Addresses by which a peer says that it may be reached directly, of which one may turn out to work.

use std::net::SocketAddr;
use std::time::Instant;

use super::{IDLE, Kind, Leg, Paths};
use crate::tunnel::Path;

impl Paths {
    /// The peer says by which addresses it may be reached directly. All of them are asked, as the peer asks all of ours:
    /// what leaves opens the way through a NAT for what comes. Until one is heard from, the relay is in use.
    pub fn set_candidates(&mut self, addresses: impl Iterator<Item = SocketAddr>, now: Instant) {
        if !self.policy.allows(Kind::Direct) {
            return;
        }
        self.candidates = addresses.map(|to| Path::Direct { to, from: None }).collect();
        let works = self.direct.heard.is_some_and(|heard| now.saturating_duration_since(heard) < IDLE);
        if !works {
            self.direct = Leg::default();
            (self.verdict_at, self.quiet, self.forced, self.probed) = (None, None, None, None);
            (self.probe_at, self.passed, self.failures) = (Some(now), Some(now), 0);
        }
        self.settle();
    }

    /// A round of questions begins: to all candidates, and by the way that answered last.
    pub(super) fn ask_all(&mut self) {
        self.to_ask.clone_from(&self.candidates);
        let is_new = |path: &Path| self.candidates.iter().all(|known| known.remote() != path.remote());
        self.to_ask.extend(self.direct.path.filter(is_new));
    }
}
