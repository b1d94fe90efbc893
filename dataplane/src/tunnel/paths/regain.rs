//! The direct way while the relay is in use: how it is asked, and when it is taken back.
//!
//! Of our initiations only the last two can still be answered, and a peer drops one that comes soon after another. So two are
//! asked with a little time between them, first of all the way that is known to have worked, and the next two when these can be
//! taken not to answer.

use std::time::{Duration, Instant};

use super::{
    ANSWER_SPACING, ANSWERS, Action, Kind, PROBE_EVERY, PROBE_MAX, PROBE_PATIENCE, PROBES_AT_FIRST, Paths,
};

/// Time between the two; who implements WireGuard takes an initiation 20 ms after the last.
const QUESTION_SPACING: Duration = Duration::from_millis(50);

impl Paths {
    /// It is time to ask whether the direct way works again, or an answer is overdue.
    pub(super) fn poll_relayed(&mut self, now: Instant) -> Option<Action> {
        if self.probed.take().is_some() {
            (self.answers, self.invited) = (0, false);
            self.failures += 1;
            self.direct.forget();
            let doublings = self.failures.saturating_sub(PROBES_AT_FIRST).min(8);
            self.probe_at = Some(now + (PROBE_EVERY * (1 << doublings)).min(PROBE_MAX));
            return self.poll(now);
        }
        self.begin_round(now);
        self.poll(now)
    }

    /// A round of questions begins: by the way that answered last, and where that has not answered in the last round, to all
    /// addresses by which the peer may be reached.
    fn begin_round(&mut self, now: Instant) {
        if self.candidates_until.is_some_and(|until| until <= now) {
            (self.candidates_until, self.candidates) = (None, Vec::new());
        }
        let first = self.direct.path;
        self.to_ask.clear();
        if self.answers == 0 || first.is_none() {
            let others = self.known.iter().chain(&self.candidates).rev();
            self.to_ask
                .extend(others.filter(|path| first.is_none_or(|first| first.remote() != path.remote())));
        }
        self.to_ask.extend(first);
        (self.ask_at, self.in_pair) = (Some(now), false);
        (self.probed, self.last_probe, self.probe_at) = (Some(now), Some(now), None);
    }

    /// The next question of a round.
    pub(super) fn ask_next(&mut self, now: Instant) -> Option<Action> {
        let path = self.to_ask.pop()?;
        let pause = if self.in_pair { PROBE_PATIENCE } else { QUESTION_SPACING };
        (self.probed, self.ask_at, self.in_pair) = (Some(now), Some(now + pause), !self.in_pair);
        self.figures.probes += 1;
        Some(Action::Probe(path))
    }

    /// When the direct way is asked next: earlier than planned when the relay is silent as well.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        if self.direct.path.is_none() && self.known.is_none() && self.candidates.is_empty() {
            return None;
        }
        let at = self.probe_at?;
        let rested = self.last_probe.max(self.switched).map(|last| last + PROBE_EVERY);
        let early = self.relayed.suspect_at().map(|at| rested.map_or(at, |rested| at.max(rested)));
        Some(early.map_or(at, |early| at.min(early)))
    }

    /// Something came by the direct way, which is not in use.
    pub(super) fn heard_directly(&mut self, now: Instant) {
        let in_window = self.count_overlap(now);
        if self.probed.take().is_some() {
            self.answers += 1;
            let silent = self.relayed.path.is_none() || self.relayed.suspect_at().is_some_and(|at| at <= now);
            if silent || self.invited || self.answers >= ANSWERS {
                self.switch(Kind::Direct, now);
                // One that works is enough.
                self.forget_candidates();
            } else {
                self.probe_at = Some(now + ANSWER_SPACING);
            }
        } else if !in_window && !self.invited {
            // The peer finds that it works, or it would not come this way: one answer is enough.
            self.invited = true;
            let at = self.last_probe.map_or(now, |last| now.max(last + ANSWER_SPACING));
            self.probe_at = Some(self.probe_at.map_or(at, |planned| planned.min(at)));
        }
    }
}
