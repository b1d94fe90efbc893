//! Which of two ways a peer is reached by: straight, or over the relay. Messages sent and heard, and the time, go in; the
//! way in use and what is to be sent to find out more come out. Works with peers that know nothing of it.
//!
//! ```text
//!              silent for 1 s, and no answer to an initiation
//!     Direct ───────────────────────────────────────────────► Relayed
//!        ▲                                                       │ hold, then initiations on the direct way,
//!        └────────────── two of them in a row answered ◄─────────┘ less and less often
//! ```
//!
//! Whoever implements WireGuard answers an initiation at once, to where it came from, and sends to where it heard last.
//! So an initiation is the question whether a way carries both directions, and the peer follows us with the next message.
//! The answer makes a new session; the packets on the way that is left belong to the one before, and its replay window
//! does not move on without them: whatever either way delivers is accepted, however much one is faster.
//!
//! A peer that sends on its own is not silent when it is only our messages that are lost: see [`unheard`].

mod candidates;
mod leg;
mod regain;
#[cfg(test)]
mod tests;
mod unheard;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use self::leg::Leg;
use self::unheard::Hearing;
use super::peer::Path;

/// A way on which something was sent and nothing heard for this long is suspect.
pub const SILENCE: Duration = Duration::from_secs(1);
/// The direct way is left alone for this long after it was given up, ...
const HOLD_MIN: Duration = Duration::from_secs(5);
/// ... and up to this long when it is given up again and again, ...
const HOLD_MAX: Duration = Duration::from_secs(320);
/// ... which is soon after it was taken back.
const STABLE: Duration = Duration::from_secs(60);
/// Time between two initiations on the direct way while the relay is in use: at first, and at most.
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBE_MAX: Duration = Duration::from_secs(60);
/// How many are sent before the pauses grow.
const PROBES_AT_FIRST: u32 = 6;
/// How long one is waited for.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);
/// How many in a row have to be answered, ...
const ANSWERS: u8 = 2;
/// ... this far apart.
const ANSWER_SPACING: Duration = Duration::from_secs(1);
/// Nothing is probed for a peer that nothing passed to or from for this long.
const IDLE: Duration = Duration::from_secs(30);
/// A peer that may still have to follow us is not taken to refuse it for this long.
const FOLLOWING: Duration = Duration::from_secs(2);
/// How long after a switch messages that come by the other way are counted: its reorder window.
pub const OVERLAP: Duration = Duration::from_secs(1);

/// Which ways may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Only the direct one.
    Direct,
    /// Only the relay.
    Relay,
    /// The direct one while it works, else the relay.
    #[default]
    Auto,
}

impl Policy {
    fn allows(self, kind: Kind) -> bool {
        match self {
            Self::Direct => kind == Kind::Direct,
            Self::Relay => kind == Kind::Relayed,
            Self::Auto => true,
        }
    }
}

/// One of the two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From socket to socket.
    Direct,
    /// Over a channel of the relay.
    Relayed,
}

impl From<Path> for Kind {
    fn from(path: Path) -> Self {
        match path {
            Path::Direct { .. } => Self::Direct,
            Path::Relayed { .. } => Self::Relayed,
        }
    }
}

/// What is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// An initiation by this path, whatever other handshake is under way, and no repetition of it.
    Probe(Path),
    /// A keepalive by this path, which is in use now and which the peer follows. Over the relay an initiation as well: the
    /// session it makes has a replay window of its own, as the one by which the direct way was asked had.
    Announce(Path),
}

/// Counters of one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathFigures {
    /// How often another way was taken.
    pub switches: u64,
    /// Messages that came by the way that was left within [`OVERLAP`] of a switch: they may have been overtaken.
    pub overlapped: u64,
    /// Initiations sent to find out whether a way works.
    pub probes: u64,
}

impl PathFigures {
    /// Adds another peer's.
    pub fn add(&mut self, other: &Self) {
        // Named one by one, so that a new figure cannot be forgotten here.
        let Self { switches, overlapped, probes } = other;
        self.switches += switches;
        self.overlapped += overlapped;
        self.probes += probes;
    }
}

/// The ways to one peer; see the module.
#[derive(Debug)]
pub struct Paths {
    policy: Policy,
    active: Kind,
    direct: Leg,
    relayed: Leg,
    /// Where the peer says that it may be reached directly, until one of them has turned out to work or their time is over.
    candidates: Vec<Path>,
    candidates_until: Option<Instant>,
    /// Where it was said to be before.
    known: Option<Path>,
    /// Of these, what is still to be asked in this round, the first one last, and when.
    to_ask: Vec<Path>,
    ask_at: Option<Instant>,
    /// The next one is the second of two that may be answered in any order.
    in_pair: bool,
    /// The direct way is in use and suspect: until then its answer is waited for.
    verdict_at: Option<Instant>,
    hearing: Hearing,
    /// The direct way is in use because there was no other, since then.
    forced: Option<Instant>,
    hold: Duration,
    taken_back: Option<Instant>,
    /// While the relay is in use: when the direct way is asked next, and since when its answer is outstanding.
    probe_at: Option<Instant>,
    probed: Option<Instant>,
    last_probe: Option<Instant>,
    failures: u32,
    answers: u8,
    /// The peer uses the direct way by itself.
    invited: bool,
    /// When anything last passed.
    passed: Option<Instant>,
    switched: Option<Instant>,
    /// The peer has not been told yet, since then, that another way is in use.
    untold: Option<Instant>,
    figures: PathFigures,
}

impl Paths {
    /// `direct` is where the peer is said to be, if anyone says so.
    #[must_use]
    pub fn new(policy: Policy, direct: Option<Path>) -> Self {
        let active = if policy == Policy::Relay { Kind::Relayed } else { Kind::Direct };
        Self {
            policy,
            active,
            direct: Leg::new(direct.filter(|_| policy.allows(Kind::Direct))),
            relayed: Leg::default(),
            candidates: Vec::new(),
            candidates_until: None,
            known: None,
            to_ask: Vec::new(),
            ask_at: None,
            in_pair: false,
            verdict_at: None,
            hearing: Hearing::default(),
            forced: None,
            hold: HOLD_MIN,
            taken_back: None,
            probe_at: None,
            probed: None,
            last_probe: None,
            failures: 0,
            answers: 0,
            invited: false,
            passed: None,
            switched: None,
            untold: None,
            figures: PathFigures::default(),
        }
    }

    /// What the configuration asks for.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Where messages go; `None` while there is no way.
    #[must_use]
    pub fn active(&self) -> Option<Path> {
        self.leg(self.active).path
    }

    /// Whether anything authentic has ever come by the way in use.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.leg(self.active).heard.is_some()
    }

    /// Its counters.
    #[must_use]
    pub fn figures(&self) -> PathFigures {
        self.figures
    }

    /// Whether messages may go by such a way.
    #[must_use]
    pub fn allows(&self, path: Path) -> bool {
        self.policy.allows(path.into())
    }

    /// Somebody says where the peer is reached directly, or that it is not known.
    pub fn set_direct(&mut self, path: Option<Path>) {
        if !self.policy.allows(Kind::Direct) {
            return;
        }
        self.direct = Leg::new(path);
        (self.verdict_at, self.forced, self.probed) = (None, None, None);
        self.hearing = Hearing::default();
        self.known = None;
        self.to_ask.clear();
        // The direct way is tried first.
        self.active = Kind::Direct;
        self.settle();
    }

    /// The relay has a channel to the peer, or has none any more.
    pub fn set_relayed(&mut self, path: Option<Path>, now: Instant) {
        if !self.policy.allows(Kind::Relayed) {
            return;
        }
        let known = std::mem::replace(&mut self.relayed.path, path);
        if path.is_none() && known.is_some() {
            self.relayed.forget();
            self.hearing = Hearing::default();
            if self.active == Kind::Relayed && self.direct.path.is_some() {
                self.switch(Kind::Direct, now);
                (self.forced, self.taken_back) = (Some(now), None);
            }
        } else if path.is_some() && self.active == Kind::Direct {
            // Nothing says that the direct way works again.
            let since = self.forced.take();
            if since.is_some_and(|since| self.direct.heard.is_none_or(|heard| heard < since)) {
                self.switch(Kind::Relayed, now);
            }
        }
        self.settle();
        if path.is_some() && path != known && self.active == Kind::Relayed {
            self.untold = Some(now);
        }
    }

    /// The local address that the peer once sent to may be gone: the kernel chooses again.
    pub fn forget_source(&mut self) {
        if let Some(Path::Direct { from, .. }) = &mut self.direct.path {
            *from = None;
        }
    }

    /// Data was sent by the way in use.
    pub fn sent(&mut self, now: Instant) {
        self.passed = Some(now);
        self.leg_mut(self.active).sent(now);
    }

    /// An initiation was sent by `path`.
    pub fn initiated(&mut self, path: Path, now: Instant) {
        let kind = Kind::from(path);
        if kind == self.active {
            self.passed = Some(now);
        }
        self.leg_mut(kind).initiated(now);
        if kind == Kind::Relayed && !self.to_ask.is_empty() {
            // It makes the first of two as well.
            self.ask_at = self.ask_at.max(Some(now + PROBE_PATIENCE));
        }
    }

    /// An authentic message arrived by `path`. Afterwards [`Paths::active`] may be another.
    pub fn heard(&mut self, path: Path, now: Instant) {
        let kind = Kind::from(path);
        if !self.policy.allows(kind) {
            return;
        }
        self.passed = Some(now);
        let silent_since = self.direct.unanswered.map(|(since, _)| since);
        let leg = self.leg_mut(kind);
        leg.path = Some(path);
        leg.heard(now);
        if kind == Kind::Direct {
            self.to_ask.clear();
        }
        match (self.active, kind) {
            // As was hoped.
            (Kind::Direct, Kind::Direct) => (self.forced, self.verdict_at) = (None, None),
            (Kind::Relayed, Kind::Relayed) => {}
            (Kind::Relayed, Kind::Direct) => self.heard_directly(now),
            (Kind::Direct, Kind::Relayed) => {
                self.count_overlap(now);
                // The peer is there, and does not answer where it was asked.
                let patience = self.direct.patience();
                let follows = self.switched.is_some_and(|at| now.saturating_duration_since(at) < FOLLOWING);
                let silent =
                    silent_since.is_some_and(|since| now.saturating_duration_since(since) >= patience);
                if silent && !follows {
                    self.switch(Kind::Relayed, now);
                }
            }
        }
        self.settle();
    }

    /// When [`Paths::poll`] has something to say.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        if self.untold.is_some() && self.active().is_some() {
            return self.untold;
        }
        if self.policy == Policy::Relay {
            return None;
        }
        if !self.to_ask.is_empty() {
            return self.ask_at;
        }
        match self.looks_for() {
            Kind::Direct => {
                self.relayed.path?;
                let silent = self.direct.suspect_at().map(|suspect| self.verdict_at.unwrap_or(suspect));
                silent.into_iter().chain(self.doubt_at()).min()
            }
            Kind::Relayed => {
                if let Some(probed) = self.probed {
                    return Some(probed + PROBE_PATIENCE);
                }
                let at = self.next_probe()?;
                self.passed.filter(|passed| at.saturating_duration_since(*passed) < IDLE).map(|_| at)
            }
        }
    }

    /// One thing to do that is due; call again until there is none. Afterwards [`Paths::active`] may be another.
    pub fn poll(&mut self, now: Instant) -> Option<Action> {
        if self.next_timeout().is_none_or(|due| due > now) {
            return None;
        }
        if self.untold.is_some() && self.active().is_some() {
            self.untold = None;
            return self.active().map(Action::Announce);
        }
        if let Some(action) = self.ask_next(now) {
            return Some(action);
        }
        match self.looks_for() {
            Kind::Direct if self.doubt_at().is_some_and(|at| at <= now) => {
                self.poll_doubt(now).or_else(|| self.poll(now))
            }
            Kind::Direct => self.poll_direct(now),
            Kind::Relayed => self.poll_relayed(now),
        }
    }

    /// The direct way is suspect.
    fn poll_direct(&mut self, now: Instant) -> Option<Action> {
        let patience = self.direct.patience();
        let verdict_at = self.direct.initiated.map(|asked| asked + patience);
        if verdict_at.is_some_and(|at| at <= now) {
            self.switch(Kind::Relayed, now);
            return self.poll(now);
        }
        self.verdict_at = verdict_at.or(Some(now + patience));
        // Asked already, and lately.
        if verdict_at.is_some() {
            return None;
        }
        self.probe()
    }

    /// Which way is in use, or would be: without any, the direct one is looked for as while the relay is in use.
    fn looks_for(&self) -> Kind {
        if self.active().is_none() { Kind::Relayed } else { self.active }
    }

    fn probe(&mut self) -> Option<Action> {
        self.figures.probes += 1;
        self.direct.path.map(Action::Probe)
    }

    /// Whether a switch is recent; then a message by the other way counts.
    fn count_overlap(&mut self, now: Instant) -> bool {
        let recent = self.switched.is_some_and(|at| now.saturating_duration_since(at) < OVERLAP);
        self.figures.overlapped += u64::from(recent);
        recent
    }

    fn switch(&mut self, kind: Kind, now: Instant) {
        self.active = kind;
        self.switched = Some(now);
        self.untold = Some(now);
        self.figures.switches += 1;
        (self.verdict_at, self.probed) = (None, None);
        self.hearing = Hearing::default();
        self.to_ask.clear();
        (self.answers, self.failures, self.invited) = (0, 0, false);
        self.leg_mut(kind).forget();
        match kind {
            Kind::Direct => (self.taken_back, self.probe_at) = (Some(now), None),
            Kind::Relayed => {
                self.direct.forget();
                let again =
                    self.taken_back.take().is_some_and(|at| now.saturating_duration_since(at) < STABLE);
                self.hold = if again { (self.hold * 2).min(HOLD_MAX) } else { HOLD_MIN };
                self.probe_at = Some(now + self.hold);
            }
        }
    }

    /// Where the way in use is not there, the other one is: nobody has to be told.
    fn settle(&mut self) {
        let other = match self.active {
            Kind::Direct => Kind::Relayed,
            Kind::Relayed => Kind::Direct,
        };
        if self.active().is_none() && self.leg(other).path.is_some() {
            self.active = other;
            self.verdict_at = None;
        }
    }

    fn leg(&self, kind: Kind) -> &Leg {
        match kind {
            Kind::Direct => &self.direct,
            Kind::Relayed => &self.relayed,
        }
    }

    fn leg_mut(&mut self, kind: Kind) -> &mut Leg {
        match kind {
            Kind::Direct => &mut self.direct,
            Kind::Relayed => &mut self.relayed,
        }
    }

    /// The way over the relay, while there is one.
    #[must_use]
    pub fn relayed(&self) -> Option<Path> {
        self.relayed.path
    }

    /// The relay is missed: there is no way over it, and nothing says that the direct way works.
    #[must_use]
    pub fn misses_relay(&self, now: Instant) -> bool {
        let doubtful = self.direct.path.is_none()
            || self.forced.is_some()
            || self.direct.suspect_at().is_some_and(|at| at <= now);
        self.relayed.path.is_none() && doubtful && self.policy.allows(Kind::Relayed)
    }

    /// Wherever the peer is, or may be, reached directly.
    pub fn direct_addresses(&self) -> impl Iterator<Item = SocketAddr> + Clone + use<'_> {
        self.direct.path.iter().chain(&self.known).chain(&self.candidates).map(Path::remote)
    }

    /// Where the peer is reached directly, as far as is known.
    #[must_use]
    pub fn direct(&self) -> Option<SocketAddr> {
        self.direct.path.map(|path| path.remote())
    }
}
