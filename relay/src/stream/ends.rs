//! Why connections end or are not taken at all: one closed list, counted, and logged every ten seconds at most for
//! all workers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dataplane::stream::transport::Broken;

/// How often a line may be repeated.
const INTERVAL: Duration = Duration::from_secs(10);

/// Declares the enum, its names, meanings and list in one place.
macro_rules! ends {
    ($($(#[$doc:meta])* $variant:ident => $name:literal, $is_trouble:literal;)*) => {
        /// Why a connection came to its end.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum End { $($(#[$doc])* $variant,)* }

        impl End {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name used in logs and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Whether an operator may want to hear of it.
            #[must_use]
            pub const fn is_trouble(self) -> bool {
                match self { $(Self::$variant => $is_trouble,)* }
            }
        }
    };
}

ends! {
    /// The client closed or reset it, or the network gave up on it.
    ByClient => "by_client", false;
    /// It carried something that is neither STUN nor ChannelData.
    Malformed => "malformed", true;
    /// TLS failed: another protocol, no version or cipher in common, a broken record.
    Tls => "tls", true;
    /// The TLS handshake took too long.
    HandshakeTimeout => "handshake_timeout", true;
    /// It had no allocation for too long, or nothing to say meanwhile.
    Idle => "idle", false;
    /// It asked and did not listen: answers alone filled its queue.
    Unread => "unread", true;
    /// It was not taken: there are as many connections as there may be.
    RefusedTotal => "refused_total", true;
    /// It was not taken: its address has as many connections as one may have.
    RefusedAddress => "refused_address", true;
    /// It was not taken: no certificate is loaded, or the system has no room for another socket.
    RefusedSystem => "refused_system", true;
    /// The relay ends.
    Shutdown => "shutdown", false;
}

impl From<Broken> for End {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Closed | Broken::Failed(_) => Self::ByClient,
            Broken::Tls(_) => Self::Tls,
        }
    }
}

/// One counter for each [`End`], of one worker.
#[derive(Debug)]
pub struct Ends {
    counts: [u64; End::ALL.len()],
    /// What the log has been told of them.
    told: [u64; End::ALL.len()],
    next: Option<Instant>,
    log: Arc<Mutex<Log>>,
}

/// What all workers have told and is not logged yet.
#[derive(Debug)]
struct Log {
    news: [u64; End::ALL.len()],
    next: Option<Instant>,
    /// Who may still tell something.
    workers: usize,
}

impl Log {
    /// The answer is whether there was anything.
    fn write(&mut self) -> bool {
        let news = std::mem::take(&mut self.news);
        for (end, connections) in End::ALL.iter().zip(news).filter(|&(_, connections)| connections > 0) {
            tracing::warn!(reason = end.name(), connections, "connections closed or refused");
        }
        news.iter().any(|&connections| connections > 0)
    }
}

impl Default for Ends {
    fn default() -> Self {
        let counts = [0; End::ALL.len()];
        let log = Arc::new(Mutex::new(Log { news: counts, next: None, workers: 1 }));
        Self { counts, told: counts, next: None, log }
    }
}

impl Ends {
    /// Counts one connection.
    pub fn count(&mut self, end: End) {
        self.counts[end as usize] += 1;
    }

    /// The count of one reason.
    #[must_use]
    pub fn get(&self, end: End) -> u64 {
        self.counts[end as usize]
    }

    /// The reasons there were, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (End, u64)> + '_ {
        End::ALL.iter().map(|&end| (end, self.get(end))).filter(|&(_, count)| count > 0)
    }

    /// Counts nothing yet, for a worker with the same log.
    #[must_use]
    pub fn of_another(&self) -> Self {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).workers += 1;
        Self { log: self.log.clone(), ..Self::default() }
    }

    /// Tells the trouble there was since the last time, and logs what all have told, if it is time.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.next.is_some_and(|next| now < next) || self.next.is_none() && !self.has_news() {
            return;
        }
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        Self::tell(&self.counts, &mut self.told, &mut log);
        if log.next.is_none_or(|next| now >= next) {
            // Without news no loop need wake for this.
            log.next = log.write().then(|| now + INTERVAL);
        }
        self.next = log.next;
    }

    fn has_news(&self) -> bool {
        End::ALL.iter().any(|&end| end.is_trouble() && self.counts[end as usize] > self.told[end as usize])
    }

    fn tell(counts: &[u64], told: &mut [u64], log: &mut Log) {
        for &end in End::ALL.iter().filter(|end| end.is_trouble()) {
            log.news[end as usize] += counts[end as usize] - told[end as usize];
        }
        told.copy_from_slice(counts);
    }

    /// When there may be something to log.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// Tells the trouble there was since the last time, at the end. The last worker logs what all have told.
    pub fn finish(&mut self) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        Self::tell(&self.counts, &mut self.told, &mut log);
        log.workers -= 1;
        if log.workers == 0 {
            log.write();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_own_counter_and_name() {
        let mut ends = Ends::default();
        for (index, &end) in End::ALL.iter().enumerate() {
            assert_eq!(end as usize, index);
            (0..=index).for_each(|_| ends.count(end));
        }
        let counts: Vec<_> = ends.iter().map(|(_, count)| count).collect();
        assert_eq!(counts, (1..=End::ALL.len() as u64).collect::<Vec<_>>());
        let names: std::collections::BTreeSet<_> = End::ALL.iter().map(|end| end.name()).collect();
        assert_eq!(names.len(), End::ALL.len());
    }

    #[test]
    fn the_readme_has_a_row_for_every_end_and_those_that_are_logged_in_bold() {
        let readme = include_str!("../../README.md");
        for &end in End::ALL {
            let bold = if end.is_trouble() { "**" } else { "" };
            let row = format!("\n| {bold}`{}`{bold} | ", end.name());
            assert!(readme.contains(&row), "{row} is not in the README");
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for virtual time")]
    fn trouble_wakes_the_loop_and_everyday_life_does_not() {
        let (mut ends, start) = (Ends::default(), Instant::now());
        ends.count(End::ByClient);
        ends.handle_timeout(start);
        assert_eq!(ends.poll_timeout(), None);
        ends.count(End::Malformed);
        ends.handle_timeout(start);
        assert_eq!(ends.poll_timeout(), Some(start + INTERVAL));
        ends.handle_timeout(start + INTERVAL);
        assert_eq!(ends.poll_timeout(), None);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for virtual time")]
    fn what_one_worker_tells_too_early_is_logged_when_it_is_time() {
        let (mut first, start) = (Ends::default(), Instant::now());
        let mut second = first.of_another();
        first.count(End::Tls);
        first.handle_timeout(start);
        second.count(End::Idle);
        second.handle_timeout(start + INTERVAL / 2);
        assert_eq!(second.poll_timeout(), None);
        second.count(End::Tls);
        second.handle_timeout(start + INTERVAL / 2);
        assert_eq!(second.poll_timeout(), Some(start + INTERVAL));
        assert_eq!(second.log.lock().unwrap().news[End::Tls as usize], 1);
        second.handle_timeout(start + INTERVAL);
        assert_eq!(first.log.lock().unwrap().news, [0; End::ALL.len()]);
        first.handle_timeout(start + INTERVAL);
        assert_eq!(first.poll_timeout(), Some(start + 2 * INTERVAL), "somebody has just logged");
        first.handle_timeout(start + 2 * INTERVAL);
        assert_eq!(first.poll_timeout(), None);
    }
}
