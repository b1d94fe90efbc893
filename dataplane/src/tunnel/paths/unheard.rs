//! The direct way when it carries one direction only: the peer is heard, and does not hear us.
//!
//! As long as a peer sends on its own, nothing is silent. But whoever implements WireGuard starts a handshake when it has sent for
//! 15 s and heard nothing, and repeats it after 5 s when it does not get our answer. So an initiation that comes again is the
//! sign; it may be that one answer was lost. Then we ask, and only a handshake's response, which a peer sends that has heard us, is
//! an answer.

use std::time::{Duration, Instant};

use super::leg::PATIENCE_MAX;
use super::{Action, Kind, Paths, Policy};
use crate::tunnel::peer::Path;

/// An initiation is repeated after 5 s and a jitter of a third of a second (WireGuard paper, section 6.1); what comes sooner is a
/// question about this way, and not a repetition.
const REPEATED_MIN: Duration = Duration::from_secs(4);
const REPEATED_MAX: Duration = Duration::from_secs(8);

/// Whether the peer hears us.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hearing {
    /// When its last initiation came.
    called: Option<Instant>,
    doubt: Option<Doubt>,
}

#[derive(Clone, Copy, Debug)]
enum Doubt {
    /// It is to be asked, at once.
    Ask(Instant),
    /// It has been asked, and is believed not to hear us if it has not answered by then.
    Asked(Instant),
}

impl Paths {
    /// The peer has started a handshake by `path`; [`Paths::heard`] is told as well.
    pub fn called(&mut self, path: Path, now: Instant) {
        let alone = self.policy != Policy::Auto || self.relayed.path.is_none();
        if alone || (self.active, Kind::from(path)) != (Kind::Direct, Kind::Direct) {
            self.hearing = Hearing::default();
            return;
        }
        let last = self.hearing.called.replace(now);
        let again = last
            .is_some_and(|last| (REPEATED_MIN..=REPEATED_MAX).contains(&now.saturating_duration_since(last)));
        if again && self.hearing.doubt.is_none() {
            self.hearing.doubt = Some(Doubt::Ask(now));
        }
    }

    /// The peer has answered a handshake of ours by `path`; [`Paths::heard`] is told as well.
    pub fn answered(&mut self, path: Path, now: Instant) {
        let kind = Kind::from(path);
        self.leg_mut(kind).answered(now);
        if kind == Kind::Direct {
            self.hearing = Hearing::default();
        }
    }

    /// When there is something to be done about it, while the direct way is in use and the relay could be.
    pub(super) fn doubt_at(&self) -> Option<Instant> {
        self.hearing.doubt.map(|(Doubt::Ask(at) | Doubt::Asked(at))| at)
    }

    /// Does what is due, if anything is. Afterwards the relay may be in use.
    pub(super) fn poll_doubt(&mut self, now: Instant) -> Option<Action> {
        match self.hearing.doubt? {
            Doubt::Ask(at) if at <= now => {
                self.hearing.doubt = Some(Doubt::Asked(now + PATIENCE_MAX));
                self.probe()
            }
            Doubt::Asked(until) if until <= now => {
                self.switch(Kind::Relayed, now);
                None
            }
            _ => None,
        }
    }
}
