//! Addresses by which a peer says that it may be reached directly, of which one may turn out to work.

use std::net::SocketAddr;
use std::time::Instant;

use super::{IDLE, Kind, Leg, Paths};
use crate::tunnel::Path;

impl Paths {
    /// The peer says by which addresses it may be reached directly, and `until` when. All of them are asked, as the peer asks
    /// all of ours: what leaves opens the way through a NAT for what comes. Until one is heard from, the relay is in
    /// use. Where the peer was said to be so far is asked too: whoever names other addresses takes nothing away.
    pub fn set_candidates(
        &mut self,
        addresses: impl Iterator<Item = SocketAddr>,
        until: Instant,
        now: Instant,
    ) {
        if !self.policy.allows(Kind::Direct) {
            return;
        }
        self.candidates = addresses.map(|to| Path::Direct { to, from: None }).collect();
        self.candidates_until = Some(until);
        let works = self.direct.heard.is_some_and(|heard| now.saturating_duration_since(heard) < IDLE);
        if !works {
            self.known = self.direct.path.or(self.known);
            self.direct = Leg::default();
            (self.verdict_at, self.forced, self.probed) = (None, None, None);
            self.to_ask.clear();
            (self.probe_at, self.passed, self.failures) = (Some(now), Some(now), 0);
        }
        self.settle();
    }

    /// They are not needed any more.
    pub(super) fn forget_candidates(&mut self) {
        (self.candidates, self.candidates_until, self.known) = (Vec::new(), None, None);
    }
}
