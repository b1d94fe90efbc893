//! Whether the server is still there: data was sent through it, and nothing came back. A relay that was started again
//! knows nothing of us and drops what we send without a word; a Refresh makes it speak.

use std::time::{Duration, Instant};

/// Silence after which the server is asked.
const SILENCE: Duration = Duration::from_millis(500);
/// A server that is well, and whose peers only listen, is asked again after 0.5 and then every 1 s: so long nobody notices
/// that it was started again.
const QUIET_MAX: Duration = Duration::from_secs(1);

/// Peers that have been heard and are no more may have nothing to say, or a server that was started again: it is asked after 1,
/// 2, 4, 8 and 16 s, by those too who send nothing themselves.
const LULL_MIN: Duration = Duration::from_secs(1);
const LULL_MAX: Duration = Duration::from_secs(16);

/// Watches the server.
#[derive(Debug)]
pub(super) struct Watch {
    /// When data was sent that nothing was heard after.
    unanswered: Option<Instant>,
    /// The server is not asked before this.
    not_before: Option<Instant>,
    pause: Duration,
    /// Peers have fallen silent, perhaps because the server has: it is asked then, and the pause is that long.
    silent_at: Option<(Instant, Duration)>,
    /// It was asked, and has not answered yet.
    asked: bool,
}

impl Default for Watch {
    fn default() -> Self {
        Self { unanswered: None, not_before: None, pause: SILENCE, silent_at: None, asked: false }
    }
}

impl Watch {
    /// Data was sent through the server.
    pub(super) fn sent(&mut self, now: Instant) {
        self.unanswered.get_or_insert(now);
    }

    /// A peer's data came.
    pub(super) fn heard_data(&mut self, now: Instant) {
        *self = Self { silent_at: Some((now + LULL_MIN, LULL_MIN)), ..Self::default() };
    }

    /// The server answered a request.
    pub(super) fn heard(&mut self, now: Instant) {
        self.unanswered = None;
        if let Some((at, pause)) = self.silent_at.filter(|(at, _)| *at <= now) {
            let pause = pause * 2;
            self.silent_at = (pause <= LULL_MAX).then_some((at.max(now) + pause, pause));
        }
        if std::mem::take(&mut self.asked) {
            self.not_before = Some(now + self.pause);
            self.pause = (self.pause * 2).min(QUIET_MAX);
        }
    }

    /// When the server is to be asked.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.asked {
            return None;
        }
        let due = self.unanswered.map(|since| since + SILENCE);
        let due = due.map(|due| self.not_before.map_or(due, |at| at.max(due)));
        due.into_iter().chain(self.silent_at.map(|(at, _)| at)).min()
    }

    /// The server is asked now.
    pub(super) fn ask(&mut self) {
        self.asked = true;
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use super::*;

    #[test]
    fn silence_asks_and_answers_make_it_patient() {
        let start = Instant::now();
        let mut watch = Watch::default();
        assert_eq!(watch.due(), None, "nothing was sent");
        let mut now = start;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            watch.sent(now);
            let due = watch.due().expect("unanswered");
            pauses.push((due - now).as_millis());
            now = due;
            watch.ask();
            assert_eq!(watch.due(), None, "asked once");
            watch.heard(now);
        }
        assert_eq!(pauses, [500, 500, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000]);
        watch.heard_data(now);
        watch.sent(now);
        assert_eq!(watch.due(), Some(now + SILENCE), "data makes it as alert as at first");
    }

    #[test]
    fn peers_that_fall_silent_make_it_ask_a_few_times() {
        let start = Instant::now();
        let mut watch = Watch::default();
        watch.heard_data(start);
        let mut asked = Vec::new();
        while let Some(due) = watch.due() {
            asked.push((due - start).as_secs());
            watch.ask();
            assert_eq!(watch.due(), None);
            watch.heard(due);
        }
        assert_eq!(asked, [1, 3, 7, 15, 31]);
    }
}
