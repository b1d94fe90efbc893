//! Why connections end or are not taken at all: one closed list, counted, and logged every ten seconds at most.

use std::time::{Duration, Instant};

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
    /// It had no allocation and nothing to say for too long.
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

/// One counter for each [`End`].
#[derive(Clone, Debug, Default)]
pub struct Ends {
    counts: [u64; End::ALL.len()],
    logged: [u64; End::ALL.len()],
    next: Option<Instant>,
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

    /// Logs the trouble there was since the last time, if it is time.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.next.is_none_or(|next| now >= next) {
            // Without news the loop need not wake for this.
            self.next = self.log().then(|| now + INTERVAL);
        }
    }

    /// When there may be something to log.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// Logs the trouble there was since the last time, whenever that was. The answer is whether there was any.
    pub fn log(&mut self) -> bool {
        let mut news = false;
        for &end in End::ALL {
            let new = self.counts[end as usize] - self.logged[end as usize];
            if new > 0 && end.is_trouble() {
                news = true;
                tracing::warn!(reason = end.name(), connections = new, "connections closed or refused");
            }
        }
        self.logged = self.counts;
        news
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
}
