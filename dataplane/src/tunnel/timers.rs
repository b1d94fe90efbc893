//! The timers of one peer (WireGuard paper, section 6), on the caller's clock.
//!
//! | timer | started by | ends in |
//! |---|---|---|
//! | retransmit | an initiation was sent | another one, until 90 s are over |
//! | keepalive | data arrived | an empty message, unless something is sent within 10 s |
//! | new handshake | data was sent | an initiation, unless something arrives within 15 s |
//! | persistent keepalive | anything authentic passed | an empty message |
//! | erase | a session was made | all keys are wiped after 180 s without another one: none is good any more. The paper gives them 540 s |

use std::time::{Duration, Instant};

use super::noise::REJECT_AFTER_TIME;

/// The initiator makes a new session when it sends on one of this age.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// A new session is made after this many messages.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// An unanswered initiation is repeated after this time, plus jitter.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Initiations stop after this time without an answer.
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// Received data is answered within this time, if only by a keepalive.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The initiator makes a new session when it receives on one of this age.
pub const REKEY_ON_RECEIVE: Duration =
    REJECT_AFTER_TIME.saturating_sub(KEEPALIVE_TIMEOUT).saturating_sub(REKEY_TIMEOUT);
/// Upper bound of the random addition to repeated initiations, milliseconds.
pub const JITTER_MS: u32 = 333;

const ERASE_AFTER: Duration = REJECT_AFTER_TIME;
const ATTEMPTS_MAX: u32 = (REKEY_ATTEMPT_TIME.as_secs() / REKEY_TIMEOUT.as_secs()) as u32;

/// What a timer that has run out asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Send an initiation; it does not count as a repetition.
    Initiate,
    /// Send the initiation again.
    Retransmit,
    /// Send an empty message, or an initiation if there is no session and the keepalive is a persistent one.
    Keepalive {
        /// It is due because the configuration asks for it.
        persistent: bool,
    },
    /// Nobody answers: forget the packets that wait.
    GiveUp,
    /// Wipe the session keys.
    Erase,
}

/// The timers of one peer.
#[derive(Debug)]
pub struct Timers {
    persistent_interval: Option<Duration>,
    attempts: u32,
    last_initiation: Option<Instant>,
    /// The last initiation was repeated for a cookie.
    repeated: bool,
    retransmit: Option<Instant>,
    keepalive: Option<Instant>,
    new_handshake: Option<Instant>,
    persistent: Option<Instant>,
    erase: Option<Instant>,
}

impl Timers {
    /// `persistent_keepalive` is in seconds.
    #[must_use]
    pub fn new(persistent_keepalive: Option<u16>) -> Self {
        let seconds = persistent_keepalive.filter(|&seconds| seconds > 0);
        Self {
            persistent_interval: seconds.map(|seconds| Duration::from_secs(seconds.into())),
            attempts: 0,
            last_initiation: None,
            repeated: false,
            retransmit: None,
            keepalive: None,
            new_handshake: None,
            persistent: None,
            erase: None,
        }
    }

    /// Changes the persistent keepalive, in seconds; one that was off is sent at once.
    pub fn set_persistent(&mut self, persistent_keepalive: u16, now: Instant) {
        let interval = (persistent_keepalive > 0).then(|| Duration::from_secs(persistent_keepalive.into()));
        match (self.persistent_interval, interval) {
            (old, new) if old == new => {}
            (None, Some(_)) => {
                self.persistent_interval = interval;
                self.persistent_now(now);
            }
            _ => {
                self.persistent_interval = interval;
                self.start_persistent(now);
            }
        }
    }

    /// Seconds between persistent keepalives, 0 for none.
    #[must_use]
    pub fn persistent_keepalive(&self) -> u16 {
        // It was made of that many seconds.
        self.persistent_interval.map_or(0, |interval| interval.as_secs() as u16)
    }

    /// Stops all timers.
    pub fn stop(&mut self) {
        *self = Self { persistent_interval: self.persistent_interval, ..Self::new(None) };
    }

    /// Forgets the handshake that was under way: the next initiation may leave at once.
    pub fn stop_handshake(&mut self) {
        (self.attempts, self.last_initiation, self.retransmit) = (0, None, None);
        self.new_handshake = None;
    }

    /// Whether an initiation may be sent now: not within 5 s of the last.
    #[must_use]
    pub fn may_initiate(&self, now: Instant) -> bool {
        self.last_initiation.is_none_or(|last| now.saturating_duration_since(last) >= REKEY_TIMEOUT)
    }

    /// Whether an initiation is waiting for its answer.
    #[must_use]
    pub fn handshake_in_progress(&self) -> bool {
        self.retransmit.is_some()
    }

    /// Whether the initiation that waits for its answer may be repeated before its time; says so once.
    pub fn may_repeat(&mut self) -> bool {
        self.handshake_in_progress() && !std::mem::replace(&mut self.repeated, true)
    }

    /// An initiation that is not a repetition begins a new series of attempts.
    pub fn restart_attempts(&mut self) {
        self.attempts = 0;
    }

    /// An initiation was sent. `jitter` is up to [`JITTER_MS`] long and different each time.
    pub fn initiation_sent(&mut self, jitter: Duration, now: Instant) {
        self.last_initiation = Some(now);
        self.repeated = false;
        self.retransmit = Some(now + REKEY_TIMEOUT + jitter);
        self.anything_sent(now);
    }

    /// Session keys were made.
    pub fn session_made(&mut self, now: Instant) {
        self.erase = Some(now + ERASE_AFTER);
    }

    /// The handshake is over on both sides.
    pub fn handshake_complete(&mut self) {
        self.retransmit = None;
        self.attempts = 0;
    }

    /// A data message that is not empty was sent.
    pub fn data_sent(&mut self, jitter: Duration, now: Instant) {
        self.new_handshake.get_or_insert(now + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + jitter);
    }

    /// A data message that is not empty arrived. The answer is whether that started a timer.
    pub fn data_received(&mut self, now: Instant) -> bool {
        let starts = self.keepalive.is_none();
        self.keepalive.get_or_insert(now + KEEPALIVE_TIMEOUT);
        starts
    }

    /// Any message was sent.
    pub fn anything_sent(&mut self, now: Instant) {
        self.keepalive = None;
        self.start_persistent(now);
    }

    /// Any authentic message arrived.
    pub fn anything_received(&mut self, now: Instant) {
        self.new_handshake = None;
        self.start_persistent(now);
    }

    /// Starts the persistent keepalive, if the configuration asks for one.
    pub fn start_persistent(&mut self, now: Instant) {
        self.persistent = self.persistent_interval.map(|interval| now + interval);
    }

    /// Asks for a persistent keepalive at once, if the configuration asks for them at all: a tunnel that has one
    /// comes up by itself.
    pub fn persistent_now(&mut self, now: Instant) {
        self.persistent = self.persistent_interval.map(|_| now);
    }

    /// When [`Timers::poll`] has something to say next.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        [self.retransmit, self.keepalive, self.new_handshake, self.persistent, self.erase]
            .into_iter()
            .flatten()
            .min()
    }

    /// One thing that is due; call again until there is none.
    pub fn poll(&mut self, now: Instant) -> Option<Due> {
        if take_due(&mut self.erase, now) {
            return Some(Due::Erase);
        }
        if take_due(&mut self.retransmit, now) {
            self.attempts += 1;
            if self.attempts >= ATTEMPTS_MAX {
                self.keepalive = None;
                self.erase.get_or_insert(now + ERASE_AFTER);
                return Some(Due::GiveUp);
            }
            return Some(Due::Retransmit);
        }
        if take_due(&mut self.new_handshake, now) {
            return Some(Due::Initiate);
        }
        if take_due(&mut self.keepalive, now) {
            return Some(Due::Keepalive { persistent: false });
        }
        if take_due(&mut self.persistent, now) {
            // Started again here as well, so that a keepalive that cannot be sent does not end the series.
            self.start_persistent(now);
            return Some(Due::Keepalive { persistent: true });
        }
        None
    }
}

/// Stops a timer that has run out.
fn take_due(timer: &mut Option<Instant>, now: Instant) -> bool {
    timer.take_if(|deadline| *deadline <= now).is_some()
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn unanswered_initiations_are_repeated_for_90_seconds() {
        let start = Instant::now();
        let mut timers = Timers::new(None);
        timers.initiation_sent(Duration::ZERO, start);
        let mut sent = 1;
        let given_up = loop {
            let now = timers.next().expect("a timer runs");
            match timers.poll(now) {
                Some(Due::Retransmit) => {
                    sent += 1;
                    timers.initiation_sent(Duration::ZERO, now);
                }
                Some(Due::GiveUp) => break now,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(sent, 18);
        assert_eq!(given_up - start, REKEY_ATTEMPT_TIME);
        assert!(!timers.handshake_in_progress());
    }

    #[test]
    fn received_data_is_answered_after_ten_seconds_unless_something_is_sent() {
        let start = Instant::now();
        let mut timers = Timers::new(None);
        timers.data_received(start);
        timers.anything_sent(start + SECOND);
        assert_eq!(timers.poll(start + 20 * SECOND), None);

        timers.data_received(start);
        timers.data_received(start + SECOND);
        assert_eq!(timers.poll(start + 9 * SECOND), None);
        assert_eq!(timers.poll(start + 10 * SECOND), Some(Due::Keepalive { persistent: false }));
        assert_eq!(timers.next(), None, "one keepalive answers both");
    }

    #[test]
    fn silence_after_sending_starts_a_handshake() {
        let start = Instant::now();
        let mut timers = Timers::new(None);
        timers.data_sent(Duration::ZERO, start);
        timers.data_sent(Duration::ZERO, start + 10 * SECOND);
        assert_eq!(timers.poll(start + 14 * SECOND), None);
        assert_eq!(timers.poll(start + 15 * SECOND), Some(Due::Initiate));

        timers.data_sent(Duration::ZERO, start);
        timers.anything_received(start + SECOND);
        assert_eq!(timers.poll(start + 60 * SECOND), None);
    }

    #[test]
    fn persistent_keepalives_are_counted_from_the_last_message() {
        let start = Instant::now();
        let mut timers = Timers::new(Some(25));
        timers.persistent_now(start);
        assert_eq!(timers.poll(start), Some(Due::Keepalive { persistent: true }));
        timers.anything_received(start + 20 * SECOND);
        assert_eq!(timers.poll(start + 44 * SECOND), None);
        assert_eq!(timers.poll(start + 45 * SECOND), Some(Due::Keepalive { persistent: true }));

        let mut off = Timers::new(Some(0));
        off.persistent_now(start);
        assert_eq!(off.next(), None);
    }

    #[test]
    fn keys_are_wiped_when_their_time_is_over() {
        let start = Instant::now();
        let mut timers = Timers::new(None);
        timers.session_made(start);
        assert_eq!(timers.poll(start + 179 * SECOND), None);
        assert_eq!(timers.poll(start + 180 * SECOND), Some(Due::Erase));
        assert_eq!(timers.next(), None);
    }
}
