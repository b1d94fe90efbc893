//! What must hold for the demo to succeed.

use serde::Serialize;

use super::cell::{Cell, Measured};
use super::plan::Load;

/// What became of a cell.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was measured.
    Measured(Box<Measured>),
    /// This machine cannot do it; the reason ends with the fix.
    Unavailable(String),
    /// It should have worked.
    Failed(String),
}

/// Everything that should not be, one sentence each.
#[must_use]
pub fn failures(cells: &[(Cell, Outcome)]) -> Vec<String> {
    cells.iter().flat_map(|(cell, outcome)| failures_of(cell, outcome)).collect()
}

/// What should not be of one cell.
#[must_use]
pub fn failures_of(cell: &Cell, outcome: &Outcome) -> Vec<String> {
    let mut found = Vec::new();
    let measured = match outcome {
        Outcome::Measured(measured) => measured,
        Outcome::Unavailable(_) => return found,
        Outcome::Failed(reason) => return vec![format!("{}: {reason}", cell.name())],
    };
    let mut fail = |sentence: String| found.push(format!("{}: {sentence}", cell.name()));
    let lost = measured.lost();
    let bottleneck_drops = measured.elsewhere.get("bottleneck").copied().unwrap_or(0);
    if bottleneck_drops > 0 {
        fail(format!(
            "the token bucket dropped {bottleneck_drops} packets: its limit is below the send buffer"
        ));
    }
    if !measured.run.ledger.balances() {
        fail("the load's ledger does not balance".to_owned());
    }
    for process in measured.processes.iter().filter(|process| process.figures.unexplained != 0) {
        fail(format!("{} cannot say what became of {} packets", process.name, process.figures.unexplained));
    }
    if cell.design == "uring" {
        if lost > 0 {
            fail(format!("{lost} datagrams lost below the queue bound"));
        }
        if measured.run.ledger.reordered > 0 {
            fail(format!("{} datagrams reordered", measured.run.ledger.reordered));
        }
        let workers: usize = measured.processes.iter().map(|process| process.workers()).sum();
        if workers > 0 {
            fail(format!("{workers} kernel workers: operations were not done at once"));
        }
    }
    if cell.design == "drop" && cell.load == Load::Bottleneck {
        let busy = measured.causes().get("busy").copied().unwrap_or(0);
        if busy == 0 {
            fail("nothing was dropped as `busy`: the burst did not overflow the send buffer".to_owned());
        }
        if let Some(unexplained @ 1..) = measured.unexplained {
            fail(format!("{unexplained} lost datagrams have no cause"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use super::*;
    use crate::demo::cell::Process;
    use crate::demo::ledger::Figures;
    use crate::demo::plan::Route;
    use crate::demo::usage::Usage;
    use crate::reflect::Reflector;
    use crate::run::{Kind, RunSpec, run};

    /// A real, short run on loopback, whose ledger the tests then change.
    fn measured() -> Measured {
        let reflector = Reflector::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
        let done = AtomicBool::new(false);
        let mut spec = RunSpec::new(Kind::Udp, reflector.local_addrs()[0]);
        spec.duration = Duration::from_millis(30);
        spec.warmup = Duration::ZERO;
        let run = std::thread::scope(|scope| {
            scope.spawn(|| reflector.run(None, &done));
            let run = run(&spec, |_| ());
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            run.unwrap()
        });
        let process =
            Process { name: "tunnel A".to_owned(), figures: Figures::default(), usage: Usage::default() };
        Measured { run, processes: vec![process], elsewhere: BTreeMap::new(), unexplained: Some(0) }
    }

    fn judge(design: &'static str, load: Load, measured: &Measured) -> Vec<String> {
        let cell = Cell { design, route: Route::Direct, load };
        failures_of(&cell, &Outcome::Measured(Box::new(measured.clone())))
    }

    fn lose(measured: &mut Measured, datagrams: u64) {
        measured.run.ledger.received -= datagrams;
        measured.run.ledger.lost += datagrams;
    }

    #[test]
    fn uring_may_lose_and_reorder_nothing_and_need_no_worker() {
        let mut measured = measured();
        assert!(judge("uring", Load::Bottleneck, &measured).is_empty());
        lose(&mut measured, 1);
        measured.run.ledger.reordered = 2;
        measured.processes[0].usage.uring_workers = 3;
        let found = judge("uring", Load::Steady, &measured).join(" ");
        assert!(found.contains("1 datagrams lost") && found.contains("2 datagrams reordered"), "{found}");
        assert!(found.contains("3 kernel workers"), "{found}");
        assert!(judge("suspend", Load::Steady, &measured).is_empty(), "the others show, they do not promise");
    }

    #[test]
    fn drop_has_to_show_its_losses_by_cause() {
        let mut measured = measured();
        assert!(judge("drop", Load::Bottleneck, &measured)[0].contains("did not overflow"));
        lose(&mut measured, 5);
        measured.processes[0].figures.egress_drops.insert("busy".to_owned(), 3);
        measured.unexplained = Some(2);
        assert!(judge("drop", Load::Bottleneck, &measured)[0].contains("2 lost datagrams have no cause"));
        measured.unexplained = Some(0);
        assert!(judge("drop", Load::Bottleneck, &measured).is_empty());
    }

    #[test]
    fn a_bottleneck_that_drops_by_itself_voids_any_design() {
        let mut measured = measured();
        measured.elsewhere.insert("bottleneck", 1);
        assert!(judge("threaded", Load::Bottleneck, &measured)[0].contains("limit is below the send buffer"));
    }

    #[test]
    fn what_did_not_come_up_fails_and_what_cannot_does_not() {
        let cell = Cell { design: "uring", route: Route::Relayed, load: Load::Steady };
        let failed = failures_of(&cell, &Outcome::Failed("no key".to_owned()));
        assert_eq!(failed, ["uring relayed steady: no key"]);
        assert!(failures_of(&cell, &Outcome::Unavailable("disabled".to_owned())).is_empty());
    }
}
