//! Reaping: takes completions, records their outcome and returns their slots; and the thread that does so.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Reap;
use super::handover::Handover;
use crate::sys::slab::Slot;

/// What one operation is expected to do, written by the submitter before it hands the slot over.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Bytes the kernel reports when all went well.
    pub len: usize,
    /// Packets in it.
    pub segments: usize,
}

/// Shared by submitter and completion thread.
pub struct Completer<R> {
    /// Slots on their way back.
    pub handover: Handover<Slot>,
    reaper: Mutex<R>,
    /// By slot: segments in the upper half, bytes in the lower. Ordered by the ring's own release and acquire.
    expected: Box<[AtomicU64]>,
    sent: AtomicU64,
    sent_bytes: AtomicU64,
}

impl<R: Reap> Completer<R> {
    /// For `slots` slots.
    pub fn new(reaper: R, slots: usize, threshold: usize) -> Self {
        Self {
            handover: Handover::new(slots, threshold),
            reaper: Mutex::new(reaper),
            expected: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            sent: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
        }
    }

    /// Notes what the operation in a slot is expected to do.
    pub fn expect(&self, slot: usize, expected: Expected) {
        let packed = (expected.segments as u64) << 32 | expected.len as u64;
        self.expected[slot].store(packed, Ordering::Relaxed);
    }

    /// Packets and bytes that the kernel took, as far as they have been reaped.
    pub fn sent(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.sent_bytes.load(Ordering::Relaxed))
    }

    /// Keeps everybody from reaping for as long as the answer lives.
    pub fn hold(&self) -> MutexGuard<'_, R> {
        self.reaper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reaps what is there. The answer is how many completions there were.
    pub fn reap(&self) -> usize {
        self.reap_with(self.hold())
    }

    /// Reaps unless somebody else is at it.
    pub fn try_reap(&self) -> usize {
        match self.reaper.try_lock() {
            Ok(reaper) => self.reap_with(reaper),
            Err(TryLockError::Poisoned(poisoned)) => self.reap_with(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => 0,
        }
    }

    /// Shows the results of the last `count` operations without consuming them; `false` when they are not all there, or
    /// somebody is reaping.
    pub fn peek_last(&self, count: usize, each: impl FnMut(i32)) -> bool {
        match self.reaper.try_lock() {
            Ok(mut reaper) => reaper.peek_last(count, each),
            Err(_) => false,
        }
    }

    /// Waits in the kernel for a completion, at most `timeout`, and reaps.
    ///
    /// # Errors
    /// What the kernel answers: fatal.
    pub fn wait(&self, timeout: Duration) -> io::Result<usize> {
        let reaper = self.hold();
        reaper.wait(timeout)?;
        Ok(self.reap_with(reaper))
    }

    fn reap_with(&self, mut reaper: MutexGuard<'_, R>) -> usize {
        let (mut sent, mut sent_bytes) = (0, 0);
        let count = reaper.reap(|slot, result| {
            let packed = self.expected[slot.index()].load(Ordering::Relaxed);
            let len = packed & u64::from(u32::MAX);
            if u64::try_from(result) == Ok(len) {
                sent += packed >> 32;
                sent_bytes += len;
                self.handover.give_back(slot);
            } else {
                self.handover.give_back_failed(slot, result);
            }
        });
        self.sent.fetch_add(sent, Ordering::Relaxed);
        self.sent_bytes.fetch_add(sent_bytes, Ordering::Relaxed);
        self.handover.reaped(count);
        count
    }
}

/// Starts the completion thread. It owns nothing but its share of the completer, and stops when `Handover::stop` is
/// called and it is unparked.
///
/// # Errors
/// When no thread can be started.
pub fn start<R: Reap>(completer: Arc<Completer<R>>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("towpath-reap".into()).stack_size(64 * 1024).spawn(move || {
        while completer.handover.next_work(thread::park) {
            if completer.reap() == 0 {
                // Submitted but not complete: the kernel has not posted them inline. Wait there, not in a loop.
                if completer.wait(Duration::from_millis(1)).is_err() {
                    // The submitter meets the same error on its next enter and ends the program.
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
    })
}
