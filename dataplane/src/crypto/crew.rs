//! The crypto threads: they seal what the loop has written into slots while the loop reads on, and open what has arrived while
//! the loop deals with what came before.
//!
//! Work goes to whoever takes it first, and the loop takes some itself whenever it would have to wait: where no other core
//! is free it does everything, as it would without them. What comes back comes back in any order; the loop puts it in order.
//!
//! A job owns the memory it works on, so that nobody else reaches it meanwhile, and has its share of the key. The key itself stays in
//! one place: queues leave copies of what passes through them behind.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use rustix::thread::sched_getcpu;

use super::aead::{self, Bodies, Key};
use crate::sys::receive_buffers::{Buffer, Buffers};
use crate::sys::slab::{Slab, Slot};

/// Looks for work before a thread goes to sleep, some 30 ns each: between two batches of a stream it stays awake, unless it has
/// the loop's core.
const LOOKS: usize = 1_000;
/// Looks for finished work before the loop sleeps: longer than any piece of work takes.
const BOSS_LOOKS: usize = 4_000;
/// How long the loop sleeps then. Whoever took the work has lost its core.
const NAP: Duration = Duration::from_micros(100);
/// Pieces of work that the loop keeps to itself after it had to sleep: at first, and at most. That is some 10 ms and 1 s of a full
/// stream, so that a machine with no core to spare is not slower with crypto threads than without.
const KEPT_MIN: u64 = 128;
const KEPT_MAX: u64 = 16_384;
/// Pieces of work done in time until the loop has forgotten that it had to sleep.
const FORGIVEN: u64 = 4_096;

/// The crypto threads have done nothing for 10 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stalled;

impl From<Stalled> for io::Error {
    fn from(_: Stalled) -> Self {
        Self::new(io::ErrorKind::TimedOut, "the crypto threads have done nothing for 10 s")
    }
}

/// Messages in a slot that are written and not sealed yet.
#[derive(Debug)]
pub struct Messages {
    /// The key they are sealed under.
    pub key: Key,
    /// Where the first segment starts, bytes from the start of the slot.
    pub from: usize,
    /// Where the last one ends.
    pub to: usize,
    /// Length of a segment, bytes; the last may be shorter.
    pub segment_size: usize,
    /// Bytes in front of the message in each segment.
    pub front: usize,
}

impl Messages {
    /// Seals them, in the memory of their slot.
    pub fn seal(&self, memory: &mut [u8]) {
        aead::seal_segments(&self.key, &mut memory[self.from..self.to], self.segment_size, self.front);
    }

    /// How many bytes there are to seal.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.to - self.from
    }
}

/// Messages of one session in a buffer that may be opened ahead.
#[derive(Debug)]
pub struct Sealed {
    /// The key they were sealed under, if they are authentic.
    pub key: Key,
    /// Length of a segment, bytes; the last may be shorter.
    pub segment_size: usize,
    /// Bytes in front of the message in each segment.
    pub front: usize,
}

/// One piece of work.
enum Task {
    Seal { slab: Arc<Slab>, slot: Slot, messages: Messages },
    Open { buffers: Arc<Buffers>, buffer: Buffer, from: usize, sealed: Sealed },
}

/// What loop and threads share: what is on its way to them and back.
struct Crew {
    todo: ArrayQueue<Task>,
    sealed: ArrayQueue<Slot>,
    opened: ArrayQueue<(Buffer, Bodies)>,
    /// By thread: it sleeps, or is about to.
    asleep: Box<[AtomicBool]>,
    /// The core that the loop was on when it handed something over last.
    core: AtomicUsize,
    stopped: AtomicBool,
    handed_over: AtomicU64,
    taken_back: AtomicU64,
    naps: AtomicU64,
}

/// The threads. Dropping it stops them.
struct Threads {
    crew: Arc<Crew>,
    joins: Vec<JoinHandle<()>>,
}

/// The loop's end. Egress and ingress have one each, to the same threads; these stop with the last.
#[derive(Clone)]
pub struct Boss {
    threads: Arc<Threads>,
    trust: Trust,
}

/// Whether the threads are in time. They are not while others want their cores.
#[derive(Clone, Copy, Debug, Default)]
struct Trust {
    /// So many pieces of work are not handed over.
    to_keep: u64,
    /// How many they were the last time.
    kept: u64,
    /// Pieces of work handed over since.
    in_time: u64,
}

impl Trust {
    /// Whether the next piece of work may be handed over.
    fn extends_to_one_more(&mut self) -> bool {
        if self.to_keep > 0 {
            self.to_keep -= 1;
            return false;
        }
        self.in_time += 1;
        if self.in_time >= FORGIVEN {
            self.kept = 0;
        }
        true
    }

    /// The loop had to sleep.
    fn abused(&mut self) {
        if self.to_keep == 0 {
            self.kept = (self.kept * 2).clamp(KEPT_MIN, KEPT_MAX);
            (self.to_keep, self.in_time) = (self.kept, 0);
        }
    }
}

/// What the crypto threads have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CryptoStats {
    /// How many there are.
    pub threads: u64,
    /// Superpackets handed over to them.
    pub handed_over: u64,
    /// Of those, what the loop has done after all, because nobody had begun with it when it was needed.
    pub taken_back: u64,
    /// Times that the loop has slept until one of them had its core back.
    pub naps: u64,
}

impl CryptoStats {
    /// Adds another loop's to these.
    pub fn merge(&mut self, other: &Self) {
        let Self { threads, handed_over, taken_back, naps } = other;
        self.threads += threads;
        self.handed_over += handed_over;
        self.taken_back += taken_back;
        self.naps += naps;
    }
}

impl Boss {
    /// Naps in vain, one after the other, until the threads are given up: 10 s at least.
    pub const NAPS_MAX: usize = 100_000;

    /// Starts so many threads, for at most so many slots and buffers.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(threads: usize, slots: usize, buffers: usize) -> io::Result<Self> {
        let crew = Arc::new(Crew {
            todo: ArrayQueue::new(slots + buffers),
            sealed: ArrayQueue::new(slots),
            opened: ArrayQueue::new(buffers),
            asleep: (0..threads).map(|_| AtomicBool::new(false)).collect(),
            core: AtomicUsize::new(usize::MAX),
            stopped: AtomicBool::new(false),
            handed_over: AtomicU64::new(0),
            taken_back: AtomicU64::new(0),
            naps: AtomicU64::new(0),
        });
        let mut this = Threads { crew, joins: Vec::with_capacity(threads) };
        for number in 0..threads {
            let crew = this.crew.clone();
            let builder = thread::Builder::new().name("towpath-crypto".into()).stack_size(256 * 1024);
            this.joins.push(builder.spawn(move || crew.work(number))?);
        }
        Ok(Self { threads: Arc::new(this), trust: Trust::default() })
    }

    fn crew(&self) -> &Crew {
        &self.threads.crew
    }

    /// Whether the next piece of work is to be handed over. It is not for a while after the loop had to wait for somebody who had
    /// lost its core.
    pub fn may_hand_over(&mut self) -> bool {
        self.trust.extends_to_one_more()
    }

    /// Hands a slot over; it comes back by [`Boss::take_sealed`].
    pub fn seal(&self, slab: &Arc<Slab>, slot: Slot, messages: Messages) {
        self.hand_over(Task::Seal { slab: slab.clone(), slot, messages });
    }

    /// Hands a buffer over whose bytes behind the first `from` are messages; it comes back by [`Boss::take_opened`].
    pub fn open(&self, buffers: &Arc<Buffers>, buffer: Buffer, from: usize, sealed: Sealed) {
        self.hand_over(Task::Open { buffers: buffers.clone(), buffer, from, sealed });
    }

    fn hand_over(&self, task: Task) {
        let crew = self.crew();
        assert!(crew.todo.push(task).is_ok(), "more slots than there are");
        crew.handed_over.fetch_add(1, Ordering::Relaxed);
        crew.core.store(sched_getcpu(), Ordering::Relaxed);
        // Of this fence and the one in `next`, the later sees what was done before the earlier: either this finds the thread
        // asleep, or the thread finds the work.
        fence(Ordering::SeqCst);
        for (asleep, join) in crew.asleep.iter().zip(&self.threads.joins) {
            if asleep.load(Ordering::Relaxed) && asleep.swap(false, Ordering::Relaxed) {
                return join.thread().unpark();
            }
        }
    }

    /// What has been done so far, by all who have these threads.
    #[must_use]
    pub fn stats(&self) -> CryptoStats {
        let crew = self.crew();
        CryptoStats {
            threads: self.threads.joins.len() as u64,
            handed_over: crew.handed_over.load(Ordering::Relaxed),
            taken_back: crew.taken_back.load(Ordering::Relaxed),
            naps: crew.naps.load(Ordering::Relaxed),
        }
    }

    /// A slot that is sealed.
    #[must_use]
    pub fn take_sealed(&self) -> Option<Slot> {
        self.crew().sealed.pop()
    }

    /// A buffer that was opened, and what is in it.
    #[must_use]
    pub fn take_opened(&self) -> Option<(Buffer, Bodies)> {
        self.crew().opened.pop()
    }

    /// Does some of the work itself, or waits a moment where all of it is taken. Look for what you wait for next: `has_come` says
    /// whether it is there. `true`: it has slept in vain.
    fn help(&mut self, has_come: impl Fn(&Crew) -> bool) -> bool {
        let crew = &self.threads.crew;
        if let Some(task) = crew.todo.pop() {
            crew.taken_back.fetch_add(1, Ordering::Relaxed);
            crew.perform(task);
            return false;
        }
        for _ in 0..BOSS_LOOKS {
            if has_come(crew) {
                return false;
            }
            std::hint::spin_loop();
        }
        crew.naps.fetch_add(1, Ordering::Relaxed);
        self.trust.abused();
        thread::park_timeout(NAP);
        !has_come(crew)
    }

    /// Until a slot comes back, or a moment has passed, or some of the work is done. As [`Boss::help`].
    pub fn help_to_seal(&mut self) -> bool {
        self.help(|crew| !crew.sealed.is_empty())
    }

    /// Likewise for a buffer.
    pub fn help_to_open(&mut self) -> bool {
        self.help(|crew| !crew.opened.is_empty())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.crew.stopped.store(true, Ordering::SeqCst);
        self.joins.iter().for_each(|join| join.thread().unpark());
        for join in self.joins.drain(..) {
            let _ = join.join();
        }
    }
}

impl Crew {
    fn perform(&self, task: Task) {
        match task {
            Task::Seal { slab, mut slot, messages } => {
                messages.seal(slab.bytes(&mut slot));
                assert!(self.sealed.push(slot).is_ok(), "more slots than there are");
            }
            Task::Open { buffers, mut buffer, from, sealed: Sealed { key, segment_size, front } } => {
                let bytes = buffers.bytes(&mut buffer);
                let bytes = bytes.get_mut(from..).unwrap_or_default();
                let bodies = aead::open_segments(&key, bytes, segment_size, front);
                assert!(self.opened.push((buffer, bodies)).is_ok(), "more buffers than there are");
            }
        }
    }

    fn work(&self, number: usize) {
        while let Some(task) = self.next(number) {
            self.perform(task);
        }
    }

    /// Waits for work; `None` at the end.
    fn next(&self, number: usize) -> Option<Task> {
        let asleep = &self.asleep[number];
        loop {
            let looks = if self.core.load(Ordering::Relaxed) == sched_getcpu() { 1 } else { LOOKS };
            for _ in 0..looks {
                if let Some(task) = self.todo.pop() {
                    return Some(task);
                }
                std::hint::spin_loop();
            }
            asleep.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.stopped.load(Ordering::SeqCst) {
                return None;
            }
            if self.todo.is_empty() {
                thread::park();
            }
            asleep.store(false, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::crypto::aead::KEY_LEN;
    use crate::wire::wireguard::DATA_OVERHEAD;

    const SIZE: usize = 64 + DATA_OVERHEAD;
    const COUNT: usize = 40;

    fn unsealed() -> Messages {
        Messages {
            key: Arc::new(Zeroizing::new([3; KEY_LEN])),
            from: 0,
            to: COUNT * SIZE,
            segment_size: SIZE,
            front: 0,
        }
    }

    /// Messages in the clear, each with a counter of its own.
    fn written(slot: usize) -> Vec<u8> {
        let mut bytes = vec![slot as u8; COUNT * SIZE];
        for (index, segment) in bytes.chunks_mut(SIZE).enumerate() {
            segment[8..16].copy_from_slice(&((slot * COUNT + index) as u64).to_le_bytes());
        }
        bytes
    }

    /// Hands every slot over several times, and checks what comes back.
    fn every_slot_comes_back_sealed(threads: usize) -> CryptoStats {
        let (slab, mut slots) = Slab::new(16).expect("mapped");
        let slab = Arc::new(slab);
        let mut boss = Boss::start(threads, slots.len(), 1).expect("threads");
        for _ in 0..200 {
            let count = slots.len();
            for mut slot in slots.drain(..) {
                let bytes = written(slot.index());
                slab.bytes(&mut slot)[..COUNT * SIZE].copy_from_slice(&bytes);
                boss.seal(&slab, slot, unsealed());
            }
            while slots.len() < count {
                match boss.take_sealed() {
                    Some(slot) => slots.push(slot),
                    None => _ = boss.help_to_seal(),
                }
            }
            for slot in &mut slots {
                let mut expected = written(slot.index());
                unsealed().seal(&mut expected);
                assert_eq!(slab.bytes(slot)[..COUNT * SIZE], expected);
            }
        }
        boss.stats()
    }

    #[test]
    fn what_is_handed_over_comes_back_sealed() {
        let stats = every_slot_comes_back_sealed(2);
        assert_eq!((stats.threads, stats.handed_over), (2, 3_200));
        assert!(stats.taken_back <= stats.handed_over);
    }

    #[test]
    fn without_anybody_to_take_it_the_loop_does_it_all() {
        let stats = every_slot_comes_back_sealed(0);
        assert_eq!((stats.handed_over, stats.taken_back), (3_200, 3_200));
    }

    #[test]
    fn what_has_come_of_one_kind_does_not_keep_who_waits_for_the_other_awake() {
        let (slab, mut slots) = Slab::new(1).expect("mapped");
        let slab = Arc::new(slab);
        let mut boss = Boss::start(0, 1, 1).expect("no threads");
        let mut slot = slots.pop().expect("a slot");
        slab.bytes(&mut slot)[..COUNT * SIZE].copy_from_slice(&written(0));
        boss.seal(&slab, slot, unsealed());
        assert!(!boss.help_to_open(), "it seals first");
        assert!(!boss.help_to_seal() && boss.stats().naps == 0, "what it waits for is there");
        assert!(boss.help_to_open() && boss.stats().naps == 1, "nobody opens anything");
        assert!(boss.take_sealed().is_some() && boss.help_to_seal());
    }

    #[test]
    fn who_was_late_gets_nothing_for_a_while_that_doubles_and_is_forgotten() {
        let kept = |trust: &mut Trust| (0..).take_while(|_| !trust.extends_to_one_more()).count() as u64;
        let mut trust = Trust::default();
        assert_eq!(kept(&mut trust), 0);
        for expected in [KEPT_MIN, 2 * KEPT_MIN, 4 * KEPT_MIN] {
            trust.abused();
            // All of one batch are late at once.
            trust.abused();
            assert_eq!(kept(&mut trust), expected);
        }
        (0..20).for_each(|_| {
            trust.abused();
            kept(&mut trust);
        });
        assert_eq!(trust.kept, KEPT_MAX);
        assert!((0..FORGIVEN).all(|_| trust.extends_to_one_more()));
        trust.abused();
        assert_eq!(kept(&mut trust), KEPT_MIN);
    }
}
