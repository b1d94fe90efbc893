//! What is known of one way to a peer.

use std::time::{Duration, Instant};

use super::SILENCE;
use crate::tunnel::peer::Path;

/// The answer to an initiation on a suspect way is waited for twice its round trip, within these bounds. With
/// [`SILENCE`] they keep below two seconds, and where the round trip is short, before the moment at which TCP tries for the third
/// time (0.2, 0.6 and 1.4 s after it was cut; the next is after 3 s).
const PATIENCE_MIN: Duration = Duration::from_millis(200);
pub(super) const PATIENCE_MAX: Duration = Duration::from_millis(900);
/// The same while the round trip is not known.
const PATIENCE: Duration = Duration::from_millis(500);
/// Without an answer to more than one message, silence is suspect only behind so many batches of messages that were no
/// more than [`SILENCE`] apart: most exchanges end with a message that nobody answers.
const BUSY: u8 = 16;

/// What is known of one way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Leg {
    pub(super) path: Option<Path>,
    /// When something was sent that nothing was heard after, and how often since, up to two.
    pub(super) unanswered: Option<(Instant, u8)>,
    /// When an initiation was sent that nothing was heard after.
    pub(super) initiated: Option<Instant>,
    pub(super) heard: Option<Instant>,
    /// Batches heard with no more than [`SILENCE`] between them.
    run: u8,
    /// When the initiation was sent whose response is awaited, for the round trip.
    asked: Option<Instant>,
    round_trip: Option<Duration>,
}

impl Leg {
    pub(super) fn new(path: Option<Path>) -> Self {
        Self { path, ..Self::default() }
    }

    pub(super) fn sent(&mut self, now: Instant) {
        let (since, count) = self.unanswered.unwrap_or((now, 0));
        self.unanswered = Some((since, (count + 1).min(2)));
    }

    pub(super) fn initiated(&mut self, now: Instant) {
        self.unanswered.get_or_insert((now, 1));
        self.initiated.get_or_insert(now);
        // The response to the one before may still come, and is then told from this one's by nothing.
        let may_come = self.asked.is_some_and(|at| now.saturating_duration_since(at) < PATIENCE_MAX);
        if !may_come {
            self.asked = Some(now);
        }
    }

    pub(super) fn heard(&mut self, now: Instant) {
        let in_a_run = self.heard.is_some_and(|last| now.saturating_duration_since(last) <= SILENCE);
        self.run = if in_a_run { self.run.saturating_add(1) } else { 0 };
        self.heard = Some(now);
        self.unanswered = None;
        self.initiated = None;
    }

    /// The response to an initiation came. Only it tells how long an answer takes: what a peer sends on its own may come at once.
    pub(super) fn answered(&mut self, now: Instant) {
        if let Some(asked) = self.asked.take() {
            let sample = now.saturating_duration_since(asked);
            self.round_trip = Some(self.round_trip.map_or(sample, |known| (known * 3 + sample) / 4));
        }
    }

    /// When silence makes it suspect, if it does.
    pub(super) fn suspect_at(&self) -> Option<Instant> {
        let (since, count) = self.unanswered?;
        (count >= 2 || self.run >= BUSY || self.initiated.is_some()).then(|| since + SILENCE)
    }

    pub(super) fn patience(&self) -> Duration {
        self.round_trip.map_or(PATIENCE, |time| (time * 2).clamp(PATIENCE_MIN, PATIENCE_MAX))
    }

    /// What is asked next is a matter of what comes.
    pub(super) fn forget(&mut self) {
        (self.unanswered, self.initiated, self.asked, self.run) = (None, None, None, 0);
    }
}
