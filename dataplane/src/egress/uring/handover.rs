//! The hand-over of slots between the submitting thread and whoever reaps, and when the completion thread is woken.
//!
//! Slots come back through two bounded queues: those whose operation succeeded are free, those that failed go to the
//! submitter with their result. Both hold every slot there is, so a push never fails.
//!
//! The completion thread sleeps until half the ring waits to be reaped: with sparse traffic it costs nothing.

use super::sync::{AtomicBool, AtomicIsize, Ordering, Queue};

/// What submitter and reaper share besides the ring. `T` owns a slot.
pub struct Handover<T> {
    free: Queue<T>,
    failed: Queue<(T, i32)>,
    /// Completions that nobody has reaped yet. Below zero for a moment when a reaper is faster than the submitter counts.
    unreaped: AtomicIsize,
    /// The completion thread is woken when so many wait.
    threshold: isize,
    /// The completion thread is parked, or about to.
    asleep: AtomicBool,
    stopped: AtomicBool,
}

impl<T> Handover<T> {
    /// For `slots` slots, waking the completion thread at `threshold` completions.
    pub fn new(slots: usize, threshold: usize) -> Self {
        Self {
            free: Queue::new(slots),
            failed: Queue::new(slots),
            unreaped: AtomicIsize::new(0),
            threshold: threshold.max(1).cast_signed(),
            asleep: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        }
    }

    /// The submitter has handed `operations` to the kernel. `true`: unpark the completion thread now.
    #[must_use]
    pub fn submitted(&self, operations: usize) -> bool {
        let operations = operations.cast_signed();
        let unreaped = self.unreaped.fetch_add(operations, Ordering::AcqRel) + operations;
        // Of the swap here and the one in `next_work`, the later sees what was done before the earlier: either this finds
        // the thread asleep, or the thread finds the new count.
        unreaped >= self.threshold && self.asleep.swap(false, Ordering::AcqRel)
    }

    /// As [`Handover::submitted`] for operations that the submitter reaps itself, at once: the completion thread is left
    /// alone. Its flag is not touched, because who clears it has to unpark the thread.
    pub fn submitted_to_reap(&self, operations: usize) {
        self.unreaped.fetch_add(operations.cast_signed(), Ordering::AcqRel);
    }

    /// A reaper gives back a slot whose operation succeeded.
    ///
    /// # Panics
    /// When more slots come back than there are: a slot was duplicated.
    pub fn give_back(&self, slot: T) {
        assert!(self.free.push(slot).is_ok(), "more free slots than there are");
    }

    /// A reaper gives back a slot whose operation failed, for the submitter to judge.
    ///
    /// # Panics
    /// As [`Handover::give_back`].
    pub fn give_back_failed(&self, slot: T, result: i32) {
        assert!(self.failed.push((slot, result)).is_ok(), "more failed slots than there are");
    }

    /// A reaper has taken `operations` completions and given all their slots back.
    pub fn reaped(&self, operations: usize) {
        self.unreaped.fetch_sub(operations.cast_signed(), Ordering::AcqRel);
    }

    /// The submitter takes a free slot.
    pub fn take_free(&self) -> Option<T> {
        self.free.pop()
    }

    /// The submitter takes a failed slot and its result.
    pub fn take_failed(&self) -> Option<(T, i32)> {
        self.failed.pop()
    }

    /// The completion thread waits for work. `park` must return at the latest when the thread is unparked, also when
    /// that came first. `false`: stop.
    pub fn next_work(&self, mut park: impl FnMut()) -> bool {
        loop {
            if self.stopped.load(Ordering::Acquire) {
                return false;
            }
            if self.unreaped.load(Ordering::Acquire) >= self.threshold {
                return true;
            }
            self.asleep.swap(true, Ordering::AcqRel);
            let work = self.unreaped.load(Ordering::Acquire) >= self.threshold
                || self.stopped.load(Ordering::Acquire);
            if !work {
                park();
            }
            // Not a store: it would hide a submitter's swap, and the count before it, from the swap of the next round.
            self.asleep.swap(false, Ordering::AcqRel);
        }
    }

    /// Tells the completion thread to stop; unpark it afterwards.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }
}
