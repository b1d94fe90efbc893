//! In which order the tests run, and how many at a time: most of them wait for most of their time, and the harness of the language
//! runs one for each core.

use std::process::ExitCode;
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};
use std::time::Instant;

use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::left_out::left_out;
use crate::world::{self, World};

/// Set for the process that runs inside the namespaces, to the name of its test.
const INSIDE: &str = "TOWPATH_TEST_INSIDE_WORLD";
/// Tests that wait, for each core, at a time.
const WAITING_PER_CORE: usize = 4;

/// How a test shares the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It waits for most of its time.
    Waiting,
    /// It keeps the cores busy for some of its time: one at a time, beside those that wait.
    Busy,
    /// It measures, or loses packets where it does not get a core: when all others have ended.
    Alone,
    /// It waits so long that it has to be asked for.
    AskedFor,
}

/// One test.
#[derive(Clone, Copy)]
pub struct Test {
    turn: Turn,
    name: &'static str,
    body: fn(World),
}

impl Test {
    pub fn new(turn: Turn, name: &'static str, body: fn(World)) -> Self {
        Self { turn, name, body }
    }
}

/// Runs the tests that the arguments ask for; in the process of one of them, runs that.
pub fn run(tests: Vec<Test>) -> ExitCode {
    if let Some(name) = std::env::var_os(INSIDE) {
        let test = tests.iter().find(|test| name == test.name).unwrap();
        (test.body)(World::new());
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    let at_a_time = if lock_memory_for_all() { WAITING_PER_CORE } else { 0 };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let shown = arguments.nocapture;
    let trial = |test: Test, turns: Arc<Turns>| {
        Trial::test(test.name, move || {
            let _turn = turns.take(test.turn);
            outside(test, shown)
        })
        .with_ignored_flag(test.turn == Turn::AskedFor)
    };
    let nobody = Arc::new(Turns::new(at_a_time * cores, 0));
    let is_shared = |test: &&Test| {
        let trial = trial(**test, Arc::clone(&nobody));
        test.turn != Turn::Alone && !arguments.is_filtered_out(&trial) && !arguments.is_ignored(&trial)
    };
    let turns = Arc::new(Turns::new(at_a_time * cores, tests.iter().filter(is_shared).count()));
    // Each has a thread, on which it waits for its turn.
    arguments.test_threads.get_or_insert(tests.len());
    let trials = tests.into_iter().map(|test| trial(test, Arc::clone(&turns))).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The limit on locked memory, which is counted per user and not per process, is that of one test times those that run at a time.
/// `false` where that is not allowed: then they run one after the other.
fn lock_memory_for_all() -> bool {
    const BYTES: u64 = 128 << 20;
    let Rlimit { current, maximum } = getrlimit(Resource::Memlock);
    let limit = Rlimit {
        current: current.map(|bytes| bytes.max(BYTES)),
        maximum: maximum.map(|bytes| bytes.max(BYTES)),
    };
    setrlimit(Resource::Memlock, limit).is_ok()
}

/// Who runs, and who is still to come.
struct Turns {
    counts: Mutex<Counts>,
    changed: Condvar,
    waiting_max: usize,
}

struct Counts {
    waiting: usize,
    busy: usize,
    alone: usize,
    /// Tests of the first two kinds that have not ended.
    shared_left: usize,
}

impl Counts {
    fn of(&mut self, turn: Turn) -> &mut usize {
        match turn {
            Turn::Waiting | Turn::AskedFor => &mut self.waiting,
            Turn::Busy => &mut self.busy,
            Turn::Alone => &mut self.alone,
        }
    }
}

impl Turns {
    /// Of no more than one at all, when `waiting_max` is zero.
    fn new(waiting_max: usize, shared_left: usize) -> Self {
        let counts = Counts { waiting: 0, busy: 0, alone: 0, shared_left };
        Self { counts: Mutex::new(counts), changed: Condvar::new(), waiting_max }
    }

    /// Waits until a test of this kind may run.
    fn take(&self, turn: Turn) -> Taken<'_> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let one_by_one = self.waiting_max == 0;
        let has_to_wait = |counts: &mut Counts| match turn {
            _ if one_by_one => counts.waiting + counts.busy + counts.alone > 0,
            Turn::Waiting | Turn::AskedFor => counts.waiting >= self.waiting_max,
            Turn::Busy => counts.busy > 0,
            Turn::Alone => counts.shared_left > 0 || counts.alone > 0,
        };
        let mut counts = self.changed.wait_while(counts, has_to_wait).unwrap_or_else(PoisonError::into_inner);
        *counts.of(turn) += 1;
        Taken { turns: self, turn }
    }
}

/// A test's turn, until it ends.
struct Taken<'a> {
    turns: &'a Turns,
    turn: Turn,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut counts = self.turns.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.of(self.turn) -= 1;
        if self.turn != Turn::Alone {
            counts.shared_left -= 1;
        }
        drop(counts);
        self.turns.changed.notify_all();
    }
}

/// Runs a test in namespaces of its own, and fails with what it has printed.
fn outside(test: Test, shown: bool) -> Result<(), Failed> {
    static MISSING: LazyLock<Option<String>> = LazyLock::new(world::missing);
    if let Some(missing) = &*MISSING {
        left_out(missing);
        return Ok(());
    }
    #[expect(clippy::disallowed_methods, reason = "a test may read the clock")]
    let began = Instant::now();
    let output = world::unshare().arg(std::env::current_exe()?).env(INSIDE, test.name).output()?;
    let [printed, errors] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    if !output.status.success() {
        return Err(format!("{}\n{printed}\n{errors}", output.status).into());
    }
    if shown {
        println!("{} took {:.1?}:\n{printed}", test.name, began.elapsed());
    }
    // What it could not do is said, whether anything else is shown or not.
    errors.lines().filter_map(|line| line.strip_prefix("left out: ")).for_each(left_out);
    Ok(())
}
