//! Where a sender stood still: how long it did nothing although something was due, and for how much of that other threads had its core.

use super::environment::waited_for_core_ns;

/// What is shorter than this is no stall, in nanoseconds: a sleeper's wake-up takes some tens of microseconds.
const STALL_MIN_NS: u64 = 100_000;
/// How often a sender with time to spare notes for how long it has waited so far, in nanoseconds: short waits before a stall are not
/// why it stood still.
const NOTE_NS: u64 = 10_000_000;
/// The time to spare that this needs.
const SPARE_NS: u64 = 200_000;

/// What a sender stood still for, in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stalls {
    /// In nanoseconds.
    pub still_ns: u64,
    /// Of that, ready to run while something else had its core, in nanoseconds; `None` where the kernel does not say so.
    pub waited_ns: Option<u64>,
}

impl Stalls {
    /// Whether other threads are why: at least half of the time. `None` where the kernel does not tell.
    #[must_use]
    pub fn of_others(&self) -> Option<bool> {
        self.waited_ns.map(|waited| waited > 0 && waited >= self.still_ns / 2)
    }
}

/// Finds stalls as they happen, on the sender's own thread.
#[derive(Debug)]
pub struct Watch {
    looked_ns: u64,
    noted_ns: u64,
    /// The wait of this thread until the last note.
    waited_ns: Option<u64>,
    stalls: Stalls,
}

impl Watch {
    /// Begins with the waits of the calling thread so far.
    #[must_use]
    pub fn start() -> Self {
        let waited_ns = waited_for_core_ns();
        let stalls = Stalls { still_ns: 0, waited_ns: waited_ns.map(|_| 0) };
        Self { looked_ns: 0, noted_ns: 0, waited_ns, stalls }
    }

    /// It is `now_ns`, and what is next is, or was, due at `due_ns`. Reads a file only behind a stall, or now and then while nothing
    /// is due soon.
    #[inline]
    pub fn look(&mut self, now_ns: u64, due_ns: u64) {
        let still_ns = now_ns.saturating_sub(due_ns.max(self.looked_ns));
        self.looked_ns = now_ns;
        let has_time = due_ns > now_ns + SPARE_NS && now_ns >= self.noted_ns + NOTE_NS;
        if still_ns >= STALL_MIN_NS || has_time {
            self.note(now_ns, still_ns, waited_for_core_ns());
        }
    }

    fn note(&mut self, now_ns: u64, still_ns: u64, waited_ns: Option<u64>) {
        self.noted_ns = now_ns;
        self.stalls.still_ns += still_ns;
        let since_ns = waited_ns.zip(self.waited_ns).map(|(after, before)| after - before);
        self.stalls.waited_ns =
            self.stalls.waited_ns.zip(since_ns).map(|(all, since)| all + since.min(still_ns));
        self.waited_ns = waited_ns;
    }

    /// What was found.
    #[must_use]
    pub fn stalls(&self) -> Stalls {
        self.stalls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn watch() -> Watch {
        Watch {
            looked_ns: 0,
            noted_ns: 0,
            waited_ns: Some(0),
            stalls: Stalls { still_ns: 0, waited_ns: Some(0) },
        }
    }

    #[test]
    fn a_stall_is_counted_once_and_not_for_each_datagram_behind_it() {
        let mut watch = watch();
        // 10 ms late; what was due meanwhile leaves behind it, within a microsecond each.
        for number in 0..10 {
            watch.look(11 * MS + 1_000 * number, (1 + number) * MS);
        }
        assert_eq!(watch.stalls().still_ns, 10 * MS);
    }

    #[test]
    fn short_waits_before_a_stall_are_not_why_it_was() {
        // A second of short waits, then 10 ms in which the thread was not even ready.
        let mut kernel = watch();
        kernel.note(1_000 * MS, 0, Some(100 * MS));
        kernel.note(1_010 * MS, 10 * MS, Some(100 * MS));
        assert_eq!(kernel.stalls(), Stalls { still_ns: 10 * MS, waited_ns: Some(0) });
        assert_eq!(kernel.stalls().of_others(), Some(false));
        let mut others = watch();
        others.note(1_000 * MS, 0, Some(100 * MS));
        others.note(1_010 * MS, 10 * MS, Some(109 * MS));
        assert_eq!(others.stalls().of_others(), Some(true));
        // Nor does one long wait explain others.
        others.note(1_500 * MS, 100 * MS, Some(110 * MS));
        assert_eq!(others.stalls().of_others(), Some(false));
        let unknown = Stalls { still_ns: 10 * MS, waited_ns: None };
        assert_eq!(unknown.of_others(), None);
    }
}
