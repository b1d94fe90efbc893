//! The queue in virtual time, against its own log and against a plan that is worked out by hand.

use std::collections::HashMap;

use proptest::prelude::*;

use super::super::plan::{Delay, Reorder, Share, Stall};
use super::*;
use crate::run::payload::Header;

const MS: u64 = 1_000_000;
const RUN: u64 = 0xfeed;

fn way() -> Way {
    Way { socket: 0, to: "127.0.0.1:9".parse().unwrap(), from: None }
}

fn datagram(run_id: u64, phase: Phase, flow: u32, seq: u64) -> Vec<u8> {
    let header =
        Header { phase, returned: false, run_id, flow, seq, intended_ns: seq, actual_ns: seq, turned_ns: 0 };
    let mut datagram = vec![0x5a; 80];
    payload::write(&mut datagram, &header);
    datagram
}

fn measured(flow: u32, seq: u64) -> Vec<u8> {
    datagram(RUN, Phase::Measured, flow, seq)
}

/// What left: when, and flow and number; of harmed ones nothing.
type Left = Vec<(u64, Option<(u32, u64)>)>;

/// Sends what is due, every millisecond, in a time in which the kernel takes what `takes` says.
fn pass(queue: &mut Queue, from_ms: u64, to_ms: u64, mut takes: impl FnMut() -> bool) -> Left {
    let mut left = Vec::new();
    for ms in from_ms..to_ms {
        while let Some(kept) = queue.poll_due(ms * MS) {
            let taken = takes();
            if taken {
                let parsed = payload::parse(queue.datagram(kept).0);
                let known = match parsed {
                    Parsed::Good(header) => Some((header.flow, header.seq)),
                    Parsed::Corrupt | Parsed::Foreign => None,
                };
                left.push((ms, known));
            }
            queue.handle_sent(kept, taken, ms * MS);
        }
    }
    left
}

fn entries(queue: &mut Queue) -> Vec<Entry> {
    std::iter::from_fn(|| queue.poll_entry()).collect()
}

#[test]
fn a_held_datagram_leaves_after_as_many_of_its_flow_as_planned_or_by_time() {
    let plan = |share: f64| Plan { reorder: Reorder { share: Share(share), extent: 2 }, ..Plan::default() };
    // A seed with which number 0 of flow 0 is held, and nothing else of both flows.
    let is_so = |plan: &Plan| {
        let held = |flow, seq| plan.fate(flow, seq).deed == Deed::Hold;
        held(0, 0) && !(1..4).any(|seq| held(0, seq)) && !(0..4).any(|seq| held(1, seq))
    };
    let plan = (0..).map(|seed| Plan { seed, ..plan(0.1) }).find(is_so).unwrap();
    let mut queue = Queue::new(plan, 0);
    for (flow, seq) in [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (0, 3)] {
        queue.handle(&measured(flow, seq), way(), 0);
    }
    let order: Vec<_> =
        pass(&mut queue, 0, 1, || true).into_iter().map(|(_, known)| known.unwrap()).collect();
    assert_eq!(order, [(1, 0), (0, 1), (1, 1), (0, 2), (0, 0), (0, 3)]);
    let held = |queue: &mut Queue| entries(queue).into_iter().map(|entry| entry.did).collect::<Vec<_>>();
    assert_eq!(held(&mut queue), [Did::Held { overtaken_by: 2 }]);
    // Nobody comes to overtake it.
    queue.handle(&measured(0, 0), way(), 10 * MS);
    assert_eq!(pass(&mut queue, 10, 300, || true), [(110, Some((0, 0)))]);
    assert_eq!(held(&mut queue), [Did::Held { overtaken_by: 0 }]);
    let totals = queue.finish()[0].totals;
    assert_eq!((totals.held, totals.returned, totals.reordered), (2, 7, 2));
    assert!(queue.is_empty());
}

#[test]
fn checks_and_warm_ups_wait_for_a_stall_and_are_not_counted_and_others_are_numbered() {
    let stall = Some(Stall { length_ns: 20 * MS, every_ns: 100 * MS });
    let mut queue = Queue::new(Plan { loss: Share(1.0), stall, ..Plan::default() }, 0);
    for phase in [Phase::Probe, Phase::Warmup] {
        queue.handle(&datagram(RUN, phase, 0, 0), way(), 5 * MS);
    }
    assert_eq!(pass(&mut queue, 5, 50, || true).iter().map(|left| left.0).collect::<Vec<_>>(), [20, 20]);
    queue.handle(b"hello", way(), 0);
    queue.handle(&[], way(), 0);
    queue.handle(&datagram(RUN, Phase::Measured, FLOWS_MAX, 0), way(), 0);
    let lost: Vec<_> = entries(&mut queue).iter().map(|entry| (entry.run, entry.seq)).collect();
    assert_eq!(lost, [0, 1, 2].map(|seq| (RunId::OTHER, seq)));
    assert_eq!(queue.finish().len(), 1);
}

#[test]
fn too_many_datagrams_are_refused_and_too_many_runs_closed() {
    let plan = Plan { delay: vec![Delay::All { ns: 1_000 * MS }], ..Plan::default() };
    let mut queue = Queue::new(plan, 0);
    for seq in 0..DATAGRAMS_MAX as u64 + 3 {
        queue.handle(&measured(0, seq), way(), 0);
    }
    assert_eq!(queue.len(), DATAGRAMS_MAX);
    assert_eq!(entries(&mut queue).iter().filter(|entry| entry.did == Did::Overflow).count(), 3);
    pass(&mut queue, 1_000, 1_001, || true);
    let long = vec![0; 65_507];
    for _ in 0..2_000 {
        queue.handle(&long, way(), 0);
    }
    assert_eq!(queue.len(), BYTES_MAX / long.len());
    pass(&mut queue, 3_000, 3_001, || true);
    // One after the other, each over when the next begins.
    for run in 1..=100 {
        let begin_ms = 5_000 * run;
        queue.handle(&datagram(run, Phase::Measured, 0, 0), way(), begin_ms * MS);
        pass(&mut queue, begin_ms + 1_000, begin_ms + 1_001, || true);
    }
    let closed = std::iter::from_fn(|| queue.poll_closed()).collect::<Vec<_>>();
    let left = queue.finish();
    assert_eq!((closed.len(), left.len()), (85, RUNS_MAX + 1));
    // What was counted most is kept to the end.
    let totals = left.iter().find(|run| run.run == RunId(RUN)).unwrap().totals;
    assert_eq!((totals.returned, totals.overflow), (DATAGRAMS_MAX as u64, 3));
}

#[test]
fn invented_runs_end_none_that_goes_on_and_take_little_memory() {
    let mut queue = Queue::new(Plan { delay: vec![Delay::All { ns: MS }], ..Plan::default() }, 0);
    let send = |queue: &mut Queue, run: u64, flow: u32, seq: u64, ms: u64| {
        queue.handle(&datagram(run, Phase::Measured, flow, seq), way(), ms * MS);
        pass(queue, ms, ms + 2, || true);
    };
    for ms in 0..10_000 {
        if ms % 1_000 == 0 {
            send(&mut queue, RUN, 7, ms / 1_000, ms);
        }
        send(&mut queue, 1_000_000 + ms, FLOWS_MAX - 1, ms, ms);
    }
    // Of those that were over, one with one datagram each made room.
    let closed: Vec<RunTotals> = std::iter::from_fn(|| queue.poll_closed()).collect();
    assert!(!closed.is_empty() && closed.iter().all(|run| run.totals.seen == 1), "{closed:?}");
    let flows = |run: &Run| run.next_expected.iter().flatten().count();
    assert!(queue.runs.iter().all(|run| flows(run) <= 1), "books for flows that sent nothing");
    let left = queue.finish();
    let totals = |id: RunId| left.iter().find(|run| run.run == id).unwrap().totals;
    assert_eq!((totals(RunId(RUN)).seen, totals(RunId(RUN)).returned), (10, 10));
    assert_eq!(left.len(), RUNS_MAX + 1);
    // The rest is not forgotten.
    let seen: u64 = left.iter().chain(&closed).map(|run| run.totals.seen).sum();
    assert_eq!(seen, 10_010);
}

#[test]
fn a_run_of_which_datagrams_are_kept_is_not_closed() {
    let plan = Plan { delay: vec![Delay::All { ns: 30_000 * MS }], ..Plan::default() };
    let mut queue = Queue::new(plan, 0);
    queue.handle(&measured(0, 0), way(), 0);
    for run in 1..=20 {
        queue.handle(&datagram(run, Phase::Measured, 0, 0), way(), 10_000 * MS);
    }
    assert_eq!(queue.poll_closed(), None);
    assert_eq!(pass(&mut queue, 30_000, 30_001, || true).len(), 1);
    assert_eq!(queue.finish()[0].totals.returned, 1);
}

#[test]
fn books_of_what_is_held_back_end_with_it() {
    let plan = Plan { reorder: Reorder { share: Share(1.0), extent: 3 }, ..Plan::default() };
    let mut queue = Queue::new(plan, 0);
    for seq in 0..1_000 {
        queue.handle(&measured(seq as u32 % 7, seq), way(), seq * MS);
        pass(&mut queue, seq, seq + 1, || true);
        assert!(queue.runs[0].held.values().map(VecDeque::len).sum::<usize>() <= queue.len());
    }
    pass(&mut queue, 1_000, 1_101, || true);
    assert!(queue.is_empty() && queue.runs[0].held.is_empty());
}

/// Plans of every kind, with times of up to 50 ms.
fn plans() -> impl Strategy<Value = Plan> {
    let share = || (0.0..0.25_f64).prop_map(Share);
    let delay = prop_oneof![
        (0..50 * MS).prop_map(|ns| Delay::All { ns }),
        (0..5 * MS).prop_map(|mean_ns| Delay::Exponential { mean_ns }),
        (share(), 0..50 * MS).prop_map(|(share, ns)| Delay::Some { share, ns }),
    ];
    let reorder = (share(), 1..5_u32).prop_map(|(share, extent)| Reorder { share, extent });
    let stall = prop::option::of((1..10_u64, 11..40_u64)).prop_map(|times| {
        times.map(|(length, every)| Stall { length_ns: length * MS, every_ns: every * MS })
    });
    let harm = (any::<u64>(), share(), share(), reorder, share());
    (harm, prop::collection::vec(delay, 0..3), stall).prop_map(
        |((seed, loss, duplicate, reorder, corrupt), delay, stall)| Plan {
            seed,
            loss,
            duplicate,
            reorder,
            corrupt,
            delay,
            stall,
        },
    )
}

proptest! {
    #[test]
    fn books_log_and_what_left_agree_whatever_the_kernel_refuses(
        plan in plans(),
        arrivals in prop::collection::vec((0..3_u32, 0..5_u64), 1..200),
        refused in prop::collection::vec(any::<bool>(), 1..50),
        end_ms in 100..2_000_u64,
    ) {
        let (mut queue, mut seqs, mut at_ms) = (Queue::new(plan, 0), [0; 3], 0);
        let mut left = Left::new();
        let mut refusals = refused.iter().cycle();
        let mut takes = || !(refusals.next().unwrap() & refusals.next().unwrap());
        for &(flow, gap_ms) in &arrivals {
            left.extend(pass(&mut queue, at_ms, at_ms + gap_ms, &mut takes));
            at_ms += gap_ms;
            queue.handle(&measured(flow, seqs[flow as usize]), way(), at_ms * MS);
            seqs[flow as usize] += 1;
        }
        left.extend(pass(&mut queue, at_ms, at_ms + end_ms, &mut takes));
        let totals = queue.finish()[0].totals;
        let log = entries(&mut queue);
        prop_assert_eq!(totals.seen, arrivals.len() as u64);
        prop_assert_eq!(
            totals.seen,
            totals.returned + totals.lost + totals.corrupt + totals.overflow + totals.refused + totals.discarded
        );
        let logged = |is: fn(&Did) -> bool| log.iter().filter(|entry| is(&entry.did)).count() as u64;
        prop_assert_eq!(totals.lost, logged(|did| *did == Did::Lost));
        prop_assert_eq!(totals.duplicate, logged(|did| *did == Did::Duplicate));
        prop_assert_eq!(totals.corrupt, logged(|did| *did == Did::Corrupt));
        prop_assert_eq!(totals.refused, logged(|did| *did == Did::Refused));
        prop_assert_eq!(totals.discarded, logged(|did| *did == Did::Discarded));
        prop_assert_eq!(totals.delayed, logged(|did| matches!(did, Did::Delayed { .. })));
        prop_assert_eq!(totals.stalled, logged(|did| matches!(did, Did::Stalled { .. })));

        // What left, counted by somebody who knows nothing of the plan.
        let mut copies: HashMap<(u32, u64), u64> = HashMap::new();
        let (mut next, mut reordered) = ([0; 3], 0);
        for &(flow, seq) in left.iter().filter_map(|(_, known)| known.as_ref()) {
            let copy = copies.entry((flow, seq)).or_default();
            *copy += 1;
            let next = &mut next[flow as usize];
            reordered += u64::from(*copy == 1 && seq < *next);
            *next = (*next).max(seq + 1);
        }
        prop_assert_eq!(totals.returned, copies.len() as u64);
        prop_assert_eq!(totals.duplicate, copies.values().sum::<u64>() - copies.len() as u64);
        prop_assert_eq!(totals.corrupt, left.iter().filter(|(_, known)| known.is_none()).count() as u64);
        prop_assert_eq!(totals.reordered, reordered);
        prop_assert!(log.iter().all(|entry| entry.did != Did::Lost || !copies.contains_key(&(entry.flow, entry.seq))));
    }

    #[test]
    fn the_same_datagrams_meet_the_same_fate_whenever_they_come(
        plan in plans(),
        first in prop::collection::vec((0..3_u32, 0..40_u64), 1..60),
        shift_ms in 1..1_000_u64,
    ) {
        let fates = |order: &mut dyn Iterator<Item = &(u32, u64)>, at_ms: u64| {
            let mut queue = Queue::new(plan.clone(), 0);
            order.for_each(|&(flow, seq)| queue.handle(&measured(flow, seq), way(), at_ms * MS));
            pass(&mut queue, at_ms, at_ms + 3_000, || true);
            let mut done: Vec<_> = entries(&mut queue)
                .into_iter()
                .filter(|entry| matches!(entry.did, Did::Lost | Did::Duplicate | Did::Corrupt | Did::Delayed { .. }))
                .map(|entry| (entry.flow, entry.seq, format!("{:?}", entry.did)))
                .collect();
            done.sort();
            done
        };
        prop_assert_eq!(fates(&mut first.iter(), 0), fates(&mut first.iter().rev(), shift_ms));
    }

    #[test]
    fn no_bytes_from_outside_panic_or_are_forgotten(
        plan in plans(),
        datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 1..50),
    ) {
        let mut queue = Queue::new(plan, 0);
        datagrams.iter().for_each(|bytes| queue.handle(bytes, way(), 0));
        pass(&mut queue, 0, 1_000, || true);
        let totals = queue.finish()[0].totals;
        prop_assert_eq!(totals.seen, datagrams.len() as u64);
        prop_assert_eq!(totals.seen, totals.returned + totals.lost + totals.corrupt + totals.discarded);
    }
}
