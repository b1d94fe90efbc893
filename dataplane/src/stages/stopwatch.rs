//! What an egress measures of itself while a batch is timed, because the loop sees it from outside only.

use std::time::{Duration, Instant};

/// What of a batch's time was not spent in the program's own code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    /// Submitting and waiting because no slot was free, while input was being handed over.
    pub making_room: Duration,
    /// System calls that submit or write, until their results were known; those while room was made too.
    pub kernel: Duration,
}

/// Runs while a batch is timed, and costs a look at a flag while none is.
#[derive(Debug, Default)]
pub struct Stopwatch {
    running: bool,
    outside: Outside,
}

/// The beginning of something that is measured; nothing while the stopwatch stands.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Since(Option<Instant>);

impl Stopwatch {
    /// A batch that is timed begins.
    pub fn start(&mut self) {
        *self = Self { running: true, outside: Outside::default() };
    }

    /// It is over.
    pub fn stop(&mut self) -> Outside {
        self.running = false;
        self.outside
    }

    /// Something begins that ends with [`Stopwatch::made_room`] or [`Stopwatch::in_kernel`].
    pub fn begin(&self) -> Since {
        Since(self.running.then(now))
    }

    /// There is room again.
    pub fn made_room(&mut self, since: Since) {
        self.outside.making_room += since.elapsed();
    }

    /// The results are known.
    pub fn in_kernel(&mut self, since: Since) {
        self.outside.kernel += since.elapsed();
    }
}

impl Since {
    fn elapsed(self) -> Duration {
        self.0.map_or(Duration::ZERO, |since| now().saturating_duration_since(since))
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a few times in a batch that is timed, and not at all in others"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_happens_while_it_runs_is_measured() {
        let mut stopwatch = Stopwatch::default();
        let since = stopwatch.begin();
        stopwatch.in_kernel(since);
        stopwatch.start();
        let (room, kernel) = (stopwatch.begin(), stopwatch.begin());
        std::thread::sleep(Duration::from_millis(2));
        stopwatch.in_kernel(kernel);
        std::thread::sleep(Duration::from_millis(2));
        stopwatch.made_room(room);
        let outside = stopwatch.stop();
        assert!(outside.kernel >= Duration::from_millis(2));
        assert!(outside.making_room >= outside.kernel + Duration::from_millis(2));
        stopwatch.start();
        assert_eq!(stopwatch.stop(), Outside::default());
    }
}
