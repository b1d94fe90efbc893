//! How urgently the server is asked: when others wait for it, when it is silent, and when it hints at something.

use std::time::{Duration, Instant};

use super::super::channels::RETRY_WANTED_AFTER;
use super::{Allocation, Client, Input};

/// How long a server that has gone away is asked for more urgently than RFC 8489 does by default.
const URGENT: Duration = Duration::from_secs(60);
/// For how long somebody counts as waiting for it, and how often that may be said.
const WANTED: Duration = Duration::from_secs(5);
const WANTED_EVERY: Duration = Duration::from_secs(1);
/// How soon a hint is followed, at most, and how often.
const HINT_JITTER: Duration = Duration::from_secs(2);
const HINT_EVERY: Duration = Duration::from_secs(3);

impl Client {
    /// Somebody waits for the server: for a minute it is asked often, and found silent soon.
    pub fn hurry(&mut self, now: Instant) {
        self.urgent_until = Some(now + URGENT);
        for transaction in &mut self.transactions {
            transaction.hurry(now);
        }
        self.deadline = self.next_deadline();
    }

    /// Data waits for an allocation. A server that has gone away is asked often for as long as this is said, so that it is found
    /// soon after it is back; one that refuses is not. O(1) when it was said lately.
    ///
    /// With an allocation, what is missed is a peer that the server has refused: those are asked for again, every 5 seconds.
    pub fn wanted(&mut self, now: Instant) {
        if let Allocation::Established { .. } = self.allocation {
            if self.retried.is_none_or(|last| now >= last + RETRY_WANTED_AFTER) {
                self.retried = Some(now);
                if self.channels.retry_refused(now) {
                    self.advance(now);
                }
            }
            return;
        }
        let lately = self.urgent_until.is_some_and(|until| until >= now + WANTED - WANTED_EVERY);
        if lately || matches!(self.allocation, Allocation::Closed) {
            return;
        }
        self.urgent_until = self.urgent_until.max(Some(now + WANTED));
        for transaction in &mut self.transactions {
            transaction.hurry(now);
        }
        // Clients that lost the same server do not return in step.
        let soon = now + self.jitter(WANTED_EVERY / 2);
        match &mut self.allocation {
            Allocation::Absent { retry_at } if self.away => *retry_at = (*retry_at).min(soon),
            _ => {}
        }
        self.deadline = self.next_deadline();
    }

    /// Data was sent to the server, and something is expected to come back: if nothing does, it is asked whether it still
    /// has the allocation. O(1).
    pub fn sent(&mut self, now: Instant) {
        self.watch.sent(now);
        self.look_at_watch();
    }

    /// Data that came through the server turned out to be a peer's: both are there. Not said of what anybody could have sent,
    /// who would hide with it that the server is gone. O(1).
    pub fn heard_data(&mut self, now: Instant) {
        self.watch.heard_data(now);
        self.look_at_watch();
    }

    fn look_at_watch(&mut self) {
        if let (Allocation::Established { .. }, Some(due)) = (&self.allocation, self.watch.due()) {
            self.deadline = Some(self.deadline.map_or(due, |deadline| deadline.min(due)));
        }
    }

    /// The server shall be asked whether it wants us elsewhere. Anybody could have sent this, so that it is done once in a while
    /// only, and the answer counts.
    pub(super) fn handle_hint(&mut self, now: Instant) -> Input {
        let jitter = self.jitter(HINT_JITTER);
        if let Allocation::Established { refresh_at: Some(refresh_at), .. } = &mut self.allocation
            && self.hinted.is_none_or(|last| now >= last + HINT_EVERY)
        {
            // All clients of a server hear of it in the same moment.
            *refresh_at = (*refresh_at).min(now + jitter);
            self.hinted = Some(now);
            self.deadline = self.next_deadline();
        }
        Input::Consumed
    }

    pub(super) fn is_urgent(&self, now: Instant) -> bool {
        self.urgent_until.is_some_and(|until| now < until)
    }
}
