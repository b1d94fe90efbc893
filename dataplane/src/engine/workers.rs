//! Several loops in one process: each on a thread of its own, with its own ingress, egress and sockets.
//!
//! The first one has the calling thread, the signals, and is started last: what it does when it starts, every other loop is
//! ready for. When one ends, all do.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::{EngineArgs, Place, Plan, figures, prepare, run_loop};
use crate::driver::{Application, Ends, Ledger};
use crate::halt::Halt;

/// Runs every application on a loop of its own until one of them stops, by itself or, the first, at a signal. Then all of them
/// drain, and the ledger of all together is logged.
///
/// # Errors
/// As [`super::run`], of the first that fails; the others are stopped.
///
/// # Panics
/// When there is none, and when a loop does.
pub fn run_workers<A: Application + Send>(mut workers: Vec<A>, args: &EngineArgs) -> io::Result<()> {
    let count = workers.len();
    let others = workers.split_off(1);
    let mut first = workers.pop().expect("there is a first worker");
    if others.is_empty() {
        return super::run(first, args);
    }
    let (signals, plan) = prepare(&first, args)?;
    let halt = Halt::new()?;
    let ledgers = thread::scope(|scope| {
        let (started, others_started) = channel();
        let mut threads = Vec::new();
        for (index, application) in others.into_iter().enumerate() {
            let number = index + 1;
            let (started, plan, halt) = (started.clone(), &plan, &halt);
            // Owns its application, sockets and rings; ends with its loop, for which `halt` is enough.
            let thread = thread::Builder::new()
                .name(format!("towpath-{number}"))
                .spawn_scoped(scope, move || other(application, number, plan, args, halt, started));
            match thread {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    halt.set();
                    return Err(error);
                }
            }
        }
        drop(started);
        let own = {
            let _all_end = halt.on_drop();
            let place = Place {
                number: 0,
                ends: Ends { signals: Some(&signals), halt: Some(&halt) },
                before_start: || wait_for(&others_started, count - 1),
                after_start: || {},
            };
            run_loop(&mut first, &plan, args, place)
        };
        // The reason why another one failed comes before what the first one noticed of it.
        let results: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .chain([own])
            .collect();
        results.into_iter().collect::<io::Result<Vec<Ledger>>>()
    })?;
    let mut ledgers = ledgers.into_iter();
    let mut sum = ledgers.next().expect("there is a first worker");
    ledgers.for_each(|ledger| sum.merge(&ledger));
    tracing::info!(figures = %figures(&sum, count), "ledger");
    Ok(())
}

/// Any loop but the first.
fn other<A: Application>(
    mut application: A,
    number: usize,
    plan: &Plan,
    args: &EngineArgs,
    halt: &Halt,
    started: Sender<()>,
) -> io::Result<Ledger> {
    let _all_end = halt.on_drop();
    let place = Place {
        number,
        ends: Ends { signals: None, halt: Some(halt) },
        before_start: || Ok(()),
        after_start: move || {
            // The first one may have failed meanwhile, and then `halt` is set.
            let _ = started.send(());
        },
    };
    run_loop(&mut application, plan, args, place)
}

/// Waits until so many loops are started.
fn wait_for(started: &Receiver<()>, count: usize) -> io::Result<()> {
    for _ in 0..count {
        // Whoever fails drops its end without a word.
        started.recv().map_err(|_| io::Error::other("another worker could not be started"))?;
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an application that ends by the clock")]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::driver::Next;
    use crate::drops::{Cause, Drops};
    use crate::egress::Egress;
    use crate::engine::{IngressKind, Io, Switch};
    use crate::ingress::{Ingress, Received};

    /// Counts that it was started and stopped.
    struct Counting {
        started: Arc<AtomicUsize>,
        stopped: Arc<AtomicUsize>,
        /// Others that have to be started before.
        after: usize,
        fails: bool,
        ends_at: Option<Instant>,
    }

    impl Application for Counting {
        fn default_ingress(&self) -> IngressKind {
            IngressKind::Epoll
        }
        fn start<I: Ingress, E: Egress>(&mut self, _: &mut I, _: &mut E, _: Instant) -> io::Result<()> {
            if self.fails {
                return Err(io::Error::other("no"));
            }
            assert!(self.started.fetch_add(1, Ordering::SeqCst) >= self.after);
            Ok(())
        }
        fn handle<E: Egress>(&mut self, _: Received<'_>, _: &mut E, _: Instant) {}
        fn handle_timeout<E: Egress>(&mut self, _: &mut E, _: Instant) {}
        fn poll_timeout(&self) -> Option<Instant> {
            self.ends_at
        }
        fn maintain<I: Ingress, E: Egress>(&mut self, _: &mut I, _: &mut E, now: Instant) -> Next {
            if self.ends_at.is_some_and(|at| at <= now) { Next::Stop } else { Next::Continue }
        }
        fn slow_down<I: Ingress>(&mut self, _: &mut I, _: bool) {}
        fn stop<E: Egress>(&mut self, _: &mut E, _: Instant) {
            self.stopped.fetch_add(1, Ordering::SeqCst);
        }
        fn drops(&self) -> Drops {
            let mut drops = Drops::default();
            drops.count(Cause::NoRoute);
            drops
        }
    }

    /// Four workers, of which one fails where that is asked for, and one ends; how many were started, and stopped.
    fn run(failing: Option<usize>, ending: usize) -> (io::Result<()>, usize, usize) {
        let (started, stopped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let soon = Instant::now() + Duration::from_millis(20);
        let worker = |number| Counting {
            started: started.clone(),
            stopped: stopped.clone(),
            after: if number == 0 { 3 } else { 0 },
            fails: failing == Some(number),
            ends_at: (number == ending).then_some(soon),
        };
        let args = EngineArgs {
            io: Io::Suspend,
            ingress: None,
            gso: Switch::On,
            no_offload: None,
            completions: None,
            busy_poll: 0,
        };
        let result = run_workers((0..4).map(worker).collect(), &args);
        (result, started.load(Ordering::SeqCst), stopped.load(Ordering::SeqCst))
    }

    #[test]
    fn the_first_is_started_last_and_all_end_with_any() {
        for ending in [0, 2] {
            let (result, started, stopped) = run(None, ending);
            assert!(result.is_ok());
            assert_eq!((started, stopped), (4, 4));
        }
    }

    #[test]
    fn one_that_cannot_be_started_ends_all_and_its_reason_is_told() {
        for failing in [0, 3] {
            let (result, started, stopped) = run(Some(failing), 1);
            assert_eq!(result.unwrap_err().to_string(), "no");
            assert!(started == 3 || failing == 3 && started < 3, "{started}");
            assert_eq!(started, stopped);
        }
    }
}
