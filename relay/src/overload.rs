//! Whether the relay keeps up: looked at once in 10 ms.

use std::time::{Duration, Instant};

/// How often it is looked at: the driver's control interval.
const INTERVAL: Duration = Duration::from_millis(10);

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Overload {
    next: Option<Instant>,
    kernel_drops_skbs: u64,
    client_socket_busy: bool,
}

impl Overload {
    /// A socket that all clients share could not take what it was given.
    pub fn client_socket_busy(&mut self) {
        self.client_socket_busy = true;
    }

    /// Whether an interval is over; if so, whether anything was lost in it because the relay was not there in time.
    pub fn poll(&mut self, kernel_drops_skbs: impl FnOnce() -> u64, now: Instant) -> Option<bool> {
        if self.next.is_some_and(|next| now < next) {
            return None;
        }
        self.next = Some(now + INTERVAL);
        let drops = kernel_drops_skbs();
        let overflowed = drops != std::mem::replace(&mut self.kernel_drops_skbs, drops);
        Some(std::mem::take(&mut self.client_socket_busy) || overflowed)
    }
}
