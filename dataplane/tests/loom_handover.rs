//! A loom model of the slot hand-over: every interleaving, up to three preemptions, of the submitting thread and the
//! completion thread, on the production source of `handover.rs`. A lost wake-up is a deadlock, which loom reports; a
//! lost slot, a slot at the wrong time or a lost stop is an assertion here.
//!
//! The mutants are the same source over a `sync` module with one defect each. Every one of them must fail, or the model
//! would prove nothing.

#![allow(
    dead_code,
    clippy::duplicate_mod,
    unreachable_pub,
    reason = "every build of the source is compiled whole, and not every model runs on each"
)]

#[path = "support/handover_leaky.rs"]
mod leaky;
#[path = "support/loom_queue.rs"]
mod queue;
#[path = "support/handover_relaxed.rs"]
mod relaxed;
#[path = "support/handover_sleepless.rs"]
mod sleepless;
#[path = "support/handover_sound.rs"]
mod sound;

/// Slots, and operations submitted: as many again, so that slots come round.
const SLOTS: usize = 2;

/// The models for one build of the hand-over.
macro_rules! models {
    ($build:ident) => {
        pub mod $build {
            use std::collections::VecDeque;

            use loom::sync::atomic::{AtomicUsize, Ordering};
            use loom::sync::{Arc, Mutex};
            use loom::thread;

            use super::super::SLOTS;
            use super::super::$build::Handover;

            /// A kernel that completes at once: what is submitted can be reaped.
            struct Ring {
                handover: Handover<usize>,
                completed: Mutex<VecDeque<(usize, i32)>>,
                reaped: AtomicUsize,
            }

            impl Ring {
                fn new(threshold: usize) -> Arc<Self> {
                    Arc::new(Self {
                        handover: Handover::new(SLOTS, threshold),
                        completed: Mutex::new(VecDeque::new()),
                        reaped: AtomicUsize::new(0),
                    })
                }

                /// As `Completer::reap`: whoever reaps holds the lock until the slots are given back.
                fn reap(&self) -> usize {
                    let mut completed = self.completed.lock().expect("loom");
                    let count = completed.len();
                    for (slot, result) in completed.drain(..) {
                        match result {
                            0 => self.handover.give_back(slot),
                            _ => self.handover.give_back_failed(slot, result),
                        }
                    }
                    self.handover.reaped(count);
                    self.reaped.fetch_add(count, Ordering::Relaxed);
                    count
                }

                /// As the submitter does: to the kernel first, then the count, then the wake-up.
                fn submit(&self, slots: &[(usize, i32)], reaper: &thread::Thread) {
                    self.completed.lock().expect("loom").extend(slots);
                    if self.handover.submitted(slots.len()) {
                        reaper.unpark();
                    }
                }
            }

            fn start_reaper(ring: &Arc<Ring>, until: usize) -> thread::JoinHandle<()> {
                let ring = ring.clone();
                thread::spawn(move || {
                    while ring.reaped.fetch_add(0, Ordering::Relaxed) < until
                        && ring.handover.next_work(thread::park)
                    {
                        if ring.reap() == 0 {
                            // The submitter has counted what it then reaped itself, or not yet: in production the
                            // kernel waits here.
                            thread::yield_now();
                        }
                    }
                })
            }

            fn model(run: impl Fn() + Sync + Send + 'static) {
                let mut builder = loom::model::Builder::new();
                builder.preemption_bound = Some(3);
                builder.check(run);
            }

            /// The completion thread gets to reap whenever the threshold is reached, in one submit or in several: it
            /// is woken if it sleeps. Nobody else reaps and nobody stops it.
            pub fn wake_up() {
                model(|| {
                    let ring = Ring::new(SLOTS);
                    let reaper = start_reaper(&ring, SLOTS);
                    for slot in 0..SLOTS {
                        ring.submit(&[(slot, 0)], reaper.thread());
                    }
                    reaper.join().expect("reaper");
                    assert_eq!(ring.reaped.load(Ordering::Relaxed), SLOTS);
                });
            }

            /// As above when the submitter has reaped the first batch itself, so that the thread wakes for nothing.
            pub fn wake_up_again() {
                model(|| {
                    let ring = Ring::new(1);
                    let reaper = start_reaper(&ring, 2);
                    ring.submit(&[(0, 0)], reaper.thread());
                    ring.reap();
                    ring.submit(&[(1, 0)], reaper.thread());
                    reaper.join().expect("reaper");
                });
            }

            /// A batch that the submitter reaps itself, as when it sends again what was busy, takes the threshold to
            /// pieces: the thread sleeps on, and the next batch that reaches it wakes it all the same.
            pub fn wake_up_behind_own_work() {
                model(|| {
                    let ring = Ring::new(1);
                    let reaper = start_reaper(&ring, 2);
                    ring.completed.lock().expect("loom").extend([(0, 0)]);
                    ring.handover.submitted_to_reap(1);
                    ring.reap();
                    ring.submit(&[(1, 0)], reaper.thread());
                    reaper.join().expect("reaper");
                });
            }

            /// Every slot comes back once, in its own queue, whoever reaps.
            pub fn hand_over() {
                model(|| {
                    let ring = Ring::new(1);
                    let reaper = start_reaper(&ring, usize::MAX);
                    ring.submit(&[(0, 0), (1, -11)], reaper.thread());
                    ring.reap();
                    let free = ring.handover.take_free();
                    let failed = ring.handover.take_failed();
                    assert_eq!((free, failed), (Some(0), Some((1, -11))), "reaped by one or the other");
                    ring.submit(&[(1, 0), (0, 0)], reaper.thread());
                    ring.reap();
                    ring.handover.stop();
                    reaper.thread().unpark();
                    reaper.join().expect("reaper");
                    let mut back = [ring.handover.take_free(), ring.handover.take_free()];
                    back.sort();
                    assert_eq!(back, [Some(0), Some(1)], "a slot is lost");
                    assert_eq!((ring.handover.take_free(), ring.handover.take_failed()), (None, None));
                });
            }

            /// A stop reaches the completion thread wherever it is, also while work comes in.
            pub fn shut_down() {
                model(|| {
                    let ring = Ring::new(SLOTS);
                    let reaper = start_reaper(&ring, usize::MAX);
                    ring.submit(&[(0, 0)], reaper.thread());
                    ring.submit(&[(1, 0)], reaper.thread());
                    ring.handover.stop();
                    reaper.thread().unpark();
                    reaper.join().expect("reaper");
                    ring.reap();
                    let back = [ring.handover.take_free(), ring.handover.take_free()];
                    assert_eq!(back, [Some(0), Some(1)], "a slot is lost");
                });
            }
        }
    };
}

mod of {
    models!(leaky);
    models!(relaxed);
    models!(sleepless);
    models!(sound);
}

#[test]
fn no_wake_up_is_lost() {
    of::sound::wake_up();
    of::sound::wake_up_again();
    of::sound::wake_up_behind_own_work();
}

#[test]
fn every_slot_comes_back_once() {
    of::sound::hand_over();
}

#[test]
fn a_stop_is_seen() {
    of::sound::shut_down();
}

#[test]
fn a_wake_up_that_is_left_out_is_found() {
    is_found("a_wake_up_that_is_left_out_is_found", "deadlock", of::sleepless::wake_up);
}

#[test]
fn relaxed_orderings_are_found() {
    is_found("relaxed_orderings_are_found", "deadlock", of::relaxed::wake_up);
}

#[test]
fn a_leaked_slot_is_found() {
    is_found("a_leaked_slot_is_found", "a slot is lost", of::leaky::shut_down);
}

/// Runs the model of a mutant in a process of its own, because loom cannot unwind out of a deadlock, and asks that it
/// fails for the reason expected.
fn is_found(test: &str, reason: &str, model: fn()) {
    const INSIDE: &str = "TOWPATH_TEST_MUTANT";
    if std::env::var_os(INSIDE).is_some() {
        return model();
    }
    #[expect(clippy::disallowed_methods, reason = "a test may start a program")]
    let mut command = std::process::Command::new(std::env::current_exe().expect("this test"));
    let output = command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1").output().expect("started");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "loom did not notice");
    assert!(text.contains(reason), "found, but for another reason: {text}");
}
