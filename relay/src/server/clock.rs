//! The time of day, which expiry times in user names are in, without reading a clock.

use std::time::{Duration, Instant};

use super::Server;

/// The time of day as it was when somebody told it, counted on from there.
///
/// The server never reads a clock: whoever owns the loop tells it the time of day now and then
/// ([`Server::set_wall_clock`]). In between it is what it was plus what has passed on the monotonic clock, which is
/// right until the wall clock is stepped or the machine is suspended; after that it is right again from the next telling.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WallClock {
    told: Option<(Instant, Duration)>,
}

impl WallClock {
    /// It is `wall` after 1970, UTC, at `now`.
    pub fn set(&mut self, wall: Duration, now: Instant) {
        self.told = Some((now, wall));
    }

    /// The time since 1970, UTC; `None` when nobody has told it.
    #[must_use]
    pub fn at(&self, now: Instant) -> Option<Duration> {
        let (then, wall) = self.told?;
        Some(wall.saturating_add(now.saturating_duration_since(then)))
    }
}

impl Server {
    /// Tells the time of day: it is `wall` after 1970, UTC, at `now`. User names from shared secrets are refused until this
    /// is called once. Call it again every few seconds, so that a clock that is set or a machine that was suspended does
    /// not matter for long.
    pub fn set_wall_clock(&mut self, wall: Duration, now: Instant) {
        self.wall_clock.set(wall, now);
    }
}
