//! The time of day for the server, which knows no clock: read at start and then every few seconds.

use std::time::{Duration, Instant, SystemTime};

use crate::server::Server;

/// How soon a clock that was set, or a machine that was suspended, is noticed. Expiry times are hours away and wrong by
/// seconds anyway.
const INTERVAL: Duration = Duration::from_secs(10);

/// When the server is told the time of day next.
#[derive(Debug, Default)]
pub struct TimeOfDay {
    /// Unset before the start.
    next: Option<Instant>,
}

impl TimeOfDay {
    /// Tells the server the time of day, now and from now on.
    pub fn start(&mut self, server: &mut Server, now: Instant) {
        tell(server, now);
        self.next = Some(now + INTERVAL);
    }

    /// Tells the server the time of day, if it is time.
    pub fn handle_timeout(&mut self, server: &mut Server, now: Instant) {
        if self.next.is_some_and(|next| now >= next) {
            self.start(server, now);
        }
    }

    /// When [`TimeOfDay::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }
}

#[expect(clippy::disallowed_methods, reason = "the server's time of day comes from here, every ten seconds")]
fn tell(server: &mut Server, now: Instant) {
    // A clock before 1970 is one that nobody has set: no name is in time then.
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    server.set_wall_clock(wall, now);
}
