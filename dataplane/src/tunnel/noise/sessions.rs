//! Which of a peer's sessions is used.
//!
//! One is current and used for sending. Besides it there is room for the one before, under which packets are still on
//! their way, and for two that the peer has initiated and not used yet: a peer that tries two ways at a time begins two handshakes,
//! and goes on with whichever is answered first.

use std::time::{Duration, Instant};

use super::session::{Origin, Session};
use crate::wire::wireguard::SessionIndex;

const PLACES: usize = 4;
/// Sessions that the peer may have initiated and not used.
const UNCONFIRMED_MAX: usize = 2;

/// The sessions with one peer, each with when it was made, counted.
#[derive(Default)]
pub(super) struct Sessions {
    /// With the index that we chose: most messages need only one session to be looked at.
    places: [Option<(SessionIndex, u64, Box<Session>)>; PLACES],
    /// The place of the session used for sending.
    current: Option<usize>,
    made: u64,
}

impl Sessions {
    /// The one used for sending.
    pub fn current(&self) -> Option<&Session> {
        self.places[self.current?].as_ref().map(|(_, _, session)| &**session)
    }

    /// The same.
    pub fn current_mut(&mut self) -> Option<&mut Session> {
        self.places[self.current?].as_mut().map(|(_, _, session)| &mut **session)
    }

    /// The one with this index of ours.
    pub fn get(&self, local: SessionIndex) -> Option<&Session> {
        self.places.iter().flatten().find(|(index, ..)| *index == local).map(|(_, _, session)| &**session)
    }

    /// The same.
    pub fn get_mut(&mut self, local: SessionIndex) -> Option<&mut Session> {
        self.places
            .iter_mut()
            .flatten()
            .find(|(index, ..)| *index == local)
            .map(|(_, _, session)| &mut **session)
    }

    /// Whether there is one with this index of ours.
    pub fn has(&self, local: SessionIndex) -> bool {
        self.places.iter().flatten().any(|(index, ..)| *index == local)
    }

    /// Whether one came about like this.
    pub fn any(&self, is_so: impl Fn(&Origin) -> bool) -> bool {
        self.places.iter().flatten().any(|(_, _, session)| is_so(&session.origin))
    }

    /// All of them, for tests.
    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = &Session> {
        self.places.iter().flatten().map(|(_, _, session)| &**session)
    }

    /// Adds a session that was just made, and sends under it if it is confirmed.
    pub fn add(&mut self, session: Session, now: Instant) {
        self.retain(|session| !session.expired(now));
        let place = self.places.iter().position(Option::is_none).unwrap_or_else(|| self.least());
        self.made += 1;
        if session.confirmed {
            self.current = Some(place);
        }
        self.places[place] = Some((session.origin.local, self.made, Box::new(session)));
    }

    /// The peer has used the session with this index. It is sent under from now on, unless it is older than what is. `true`
    /// when the peer had not used it before.
    pub fn confirm(&mut self, local: SessionIndex) -> bool {
        let current =
            self.current.and_then(|place| self.places[place].as_ref()).map_or(0, |(_, made, _)| *made);
        let places = self.places.iter_mut().enumerate();
        for (place, (index, made, session)) in
            places.filter_map(|(place, held)| Some((place, held.as_mut()?)))
        {
            if *index == local {
                if *made >= current {
                    self.current = Some(place);
                }
                return !std::mem::replace(&mut session.confirmed, true);
            }
        }
        false
    }

    /// Wipes what has outlived its time in sleep.
    pub fn forget_outlived(&mut self, now: Instant, slept: Duration) {
        self.retain(|session| !session.outlived(now, slept));
    }

    /// Wipes all.
    pub fn clear(&mut self) {
        self.retain(|_| false);
    }

    fn retain(&mut self, keep: impl Fn(&Session) -> bool) {
        for place in 0..PLACES {
            if self.places[place].take_if(|(_, _, session)| !keep(session)).is_some()
                && self.current == Some(place)
            {
                self.current = None;
            }
        }
    }

    /// The place of what is missed least, when all are taken: the oldest of those never used if they are too many, else the oldest.
    fn least(&self) -> usize {
        let others = || {
            let held =
                self.places.iter().enumerate().filter_map(|(place, held)| Some((place, held.as_ref()?)));
            held.filter(|(place, _)| Some(*place) != self.current)
        };
        let unused = || others().filter(|(_, (_, _, session))| !session.confirmed);
        let oldest = |(place, (_, made, _)): (usize, &(SessionIndex, u64, Box<Session>))| (*made, place);
        let unused_many = unused().count() >= UNCONFIRMED_MAX;
        let least = if unused_many { unused().map(oldest).min() } else { others().map(oldest).min() };
        least.map_or(0, |(_, place)| place)
    }
}
