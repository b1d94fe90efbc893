//! Datagrams on their way back: decides what happens to each, keeps those that have to wait, and books what became of all.
//! Datagrams and `now` in, datagrams that are due out; no clock, no socket.
//!
//! ```text
//!  handle ─► identity ─► fate ─┬─► lost
//!                              ├─► held ──(others of its flow pass)──┐
//!                              └─► due at ──(stall)─────────────────►├─► poll_due ─► sent or refused
//!                                                                       handle_sent
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use super::journal::{Did, Entry, RunId, RunTotals, Totals};
use super::plan::{Deed, Plan};
use crate::run::payload::{self, Parsed, Phase};

/// Most datagrams kept at a time, and most bytes of them.
const DATAGRAMS_MAX: usize = 1 << 16;
const BYTES_MAX: usize = 64 << 20;
/// How long a datagram is held back for others to overtake it.
const HOLD_NS: u64 = 100_000_000;
/// Runs with books of their own at a time. For a further one, of those that are over the one with the fewest datagrams is
/// closed; while there is none, what belongs to further runs is counted as `other`.
const RUNS_MAX: usize = 16;
/// Silence after which a run is taken to be over, when nothing of it is kept: whoever invents runs ends none that goes on.
const OVER_NS: u64 = 2_000_000_000;
/// Flows whose books are made together, when the first of them sends.
const FLOWS_AT_ONCE: u32 = 256;
/// Flows of a run, as many as `--flows` allows; what claims to be of another is not the lab's.
const FLOWS_MAX: u32 = 1 << 16;
/// First byte in which a changed bit leaves a datagram of the lab recognisable as one.
const HARMED_FROM: usize = 8;

/// Where a datagram came from, and so where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Index of the socket.
    pub socket: usize,
    /// Whom it goes to.
    pub to: SocketAddr,
    /// The address it came to.
    pub from: Option<IpAddr>,
}

/// Names a datagram that is kept; valid until [`Queue::handle_sent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept(u32);

/// Datagrams on their way back, and the books.
#[derive(Debug)]
pub struct Queue {
    plan: Plan,
    start_ns: u64,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Due time, order of arrival among equals, index of the slot. One whose slot has another number by now is void.
    due: BinaryHeap<Reverse<(u64, u64, u32)>>,
    next_number: u64,
    bytes: usize,
    /// The latest is the last.
    runs: Vec<Run>,
    closed: VecDeque<RunTotals>,
    entries: VecDeque<Entry>,
}

/// A datagram that is kept.
#[derive(Debug)]
struct Slot {
    bytes: Vec<u8>,
    way: Way,
    name: Option<Name>,
    /// Which of the heap's entries is the valid one.
    number: u64,
    /// Times it has still to be sent.
    copies: u8,
    returned: bool,
    corrupt: bool,
    /// How many have overtaken it, when it was held back.
    overtaken_by: Option<u32>,
    /// Whether its flow's books list it as held back.
    is_held: bool,
}

/// What the books know a datagram by; those of warm-ups and checks have no name and are not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name {
    run: RunId,
    flow: u32,
    seq: u64,
}

/// The books of one run.
#[derive(Debug)]
struct Run {
    id: RunId,
    totals: Totals,
    /// When a datagram of it came last.
    heard_ns: u64,
    /// Datagrams of it that are kept.
    kept: usize,
    /// One above the highest number that was sent back, of [`FLOWS_AT_ONCE`] flows each; made for those that send, so that
    /// a run of few flows takes little, whatever their numbers are.
    next_expected: Vec<Option<Box<[u64; FLOWS_AT_ONCE as usize]>>>,
    /// Slots that are held back, by flow, in the order in which they came.
    held: BTreeMap<u32, VecDeque<u32>>,
}

impl Queue {
    /// An empty queue of a reflector that starts at `start_ns`.
    #[must_use]
    pub fn new(plan: Plan, start_ns: u64) -> Self {
        Self {
            plan,
            start_ns,
            slots: Vec::new(),
            free: Vec::new(),
            due: BinaryHeap::new(),
            next_number: 0,
            bytes: 0,
            runs: Vec::new(),
            closed: VecDeque::new(),
            entries: VecDeque::new(),
        }
    }

    /// Takes a datagram in.
    pub fn handle(&mut self, datagram: &[u8], way: Way, now_ns: u64) {
        let Some(name) = self.name(datagram, now_ns) else {
            let due_ns = self.plan.leaves_at(self.start_ns, now_ns);
            if let Some(slot) = self.keep(datagram, way, None) {
                self.schedule(slot, due_ns);
            }
            return;
        };
        self.totals(name.run).seen += 1;
        let fate = self.plan.fate(name.flow, name.seq);
        if fate.deed == Deed::Lose {
            self.totals(name.run).lost += 1;
            self.enter(name, Did::Lost);
            return;
        }
        let Some(slot) = self.keep(datagram, way, Some(name)) else {
            self.totals(name.run).overflow += 1;
            self.enter(name, Did::Overflow);
            return;
        };
        let kept_until_ns = now_ns + fate.delay_ns;
        let due_ns = self.plan.leaves_at(self.start_ns, kept_until_ns);
        if fate.extra_ns > 0 {
            self.totals(name.run).delayed += 1;
            self.enter(name, Did::Delayed { ns: fate.extra_ns });
        }
        if due_ns > kept_until_ns {
            self.totals(name.run).stalled += 1;
            self.enter(name, Did::Stalled { ns: due_ns - kept_until_ns });
        }
        match fate.deed {
            Deed::Hold => self.hold(slot, name, due_ns),
            Deed::Duplicate => self.slots[slot as usize].copies = 2,
            Deed::Corrupt(bit) => self.harm(slot, bit),
            Deed::Pass | Deed::Lose => {}
        }
        if fate.deed != Deed::Hold {
            self.schedule(slot, due_ns);
            self.overtake(name, due_ns);
        }
    }

    /// A datagram that is due, if there is one. What became of it has to be told to [`Queue::handle_sent`].
    pub fn poll_due(&mut self, now_ns: u64) -> Option<Kept> {
        while let Some(&Reverse((due_ns, number, slot))) = self.due.peek() {
            let is_void = self.slots[slot as usize].number != number;
            if !is_void && due_ns > now_ns {
                return None;
            }
            self.due.pop();
            if !is_void {
                return Some(Kept(slot));
            }
        }
        None
    }

    /// When [`Queue::poll_due`] has something, at the earliest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        self.due.peek().map(|&Reverse((due_ns, _, _))| due_ns)
    }

    /// A datagram that is due, and where it goes.
    #[must_use]
    pub fn datagram(&self, kept: Kept) -> (&[u8], Way) {
        let slot = &self.slots[kept.0 as usize];
        (&slot.bytes, slot.way)
    }

    /// Whether the kernel took it.
    pub fn handle_sent(&mut self, kept: Kept, taken: bool, now_ns: u64) {
        let slot = &mut self.slots[kept.0 as usize];
        let (first, corrupt) = (!slot.returned, slot.corrupt);
        slot.returned |= taken;
        slot.copies -= 1;
        let (again, name) = (slot.copies > 0, slot.name);
        if let Some(name) = name {
            self.book(kept, name, taken, first, corrupt, again);
        }
        if again {
            self.schedule(kept.0, now_ns);
        } else {
            self.release(kept.0);
        }
    }

    /// What is to be logged of single datagrams, oldest first. Take all of it after every input.
    pub fn poll_entry(&mut self) -> Option<Entry> {
        self.entries.pop_front()
    }

    /// Totals of a run that has made room for another.
    pub fn poll_closed(&mut self) -> Option<RunTotals> {
        self.closed.pop_front()
    }

    /// Gives up what is still kept, and answers the totals of all runs that are not closed.
    pub fn finish(&mut self) -> Vec<RunTotals> {
        for slot in std::mem::take(&mut self.slots) {
            if let Some(name) = slot.name
                && slot.copies > 0
                && !slot.returned
            {
                self.totals(name.run).discarded += 1;
                self.enter(name, Did::Discarded);
            }
        }
        (self.free, self.due, self.bytes) = Default::default();
        std::mem::take(&mut self.runs).into_iter().map(|run| run.close()).collect()
    }

    /// Datagrams kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the books know it by. A warm-up's or check's has no name.
    fn name(&mut self, datagram: &[u8], now_ns: u64) -> Option<Name> {
        match payload::parse(datagram) {
            Parsed::Good(header) if header.flow < FLOWS_MAX => {
                if header.phase != Phase::Measured {
                    return None;
                }
                let id = RunId(header.run_id);
                if self.open(id, now_ns) {
                    return Some(Name { run: id, flow: header.flow, seq: header.seq });
                }
            }
            Parsed::Good(_) | Parsed::Corrupt | Parsed::Foreign => {}
        }
        self.open(RunId::OTHER, now_ns);
        Some(Name { run: RunId::OTHER, flow: 0, seq: self.run(RunId::OTHER).totals.seen })
    }

    /// Makes sure that a run of which a datagram came has books, unless there are too many that go on.
    fn open(&mut self, id: RunId, now_ns: u64) -> bool {
        if let Some(run) = self.runs.iter_mut().rev().find(|run| run.id == id) {
            run.heard_ns = now_ns;
            return true;
        }
        let of_lab = self.runs.iter().filter(|run| run.id != RunId::OTHER).count();
        if id != RunId::OTHER && of_lab == RUNS_MAX {
            let is_over = |run: &Run| {
                run.id != RunId::OTHER && run.kept == 0 && now_ns.saturating_sub(run.heard_ns) >= OVER_NS
            };
            let over = self.runs.iter().enumerate().filter(|(_, run)| is_over(run));
            let Some((least, _)) = over.min_by_key(|(_, run)| run.totals.seen) else { return false };
            let closed = self.runs.remove(least);
            self.closed.push_back(closed.close());
        }
        let (totals, held) = Default::default();
        self.runs.push(Run { id, totals, heard_ns: now_ns, kept: 0, next_expected: Vec::new(), held });
        true
    }

    /// The books of a run that has some: of the datagram that was just taken in, or of one that is kept.
    fn run(&mut self, id: RunId) -> &mut Run {
        let run = self.runs.iter_mut().rev().find(|run| run.id == id);
        run.expect("a run is not closed while a datagram of it is kept")
    }

    fn totals(&mut self, run: RunId) -> &mut Totals {
        &mut self.run(run).totals
    }

    fn enter(&mut self, name: Name, did: Did) {
        self.entries.push_back(Entry { run: name.run, flow: name.flow, seq: name.seq, did });
    }

    /// A slot for a copy of the datagram, unless there are too many.
    fn keep(&mut self, datagram: &[u8], way: Way, name: Option<Name>) -> Option<u32> {
        if self.len() >= DATAGRAMS_MAX || self.bytes + datagram.len() > BYTES_MAX {
            return None;
        }
        self.bytes += datagram.len();
        if let Some(name) = name {
            self.run(name.run).kept += 1;
        }
        let new = Slot {
            bytes: Vec::new(),
            way,
            name,
            number: 0,
            copies: 1,
            returned: false,
            corrupt: false,
            overtaken_by: None,
            is_held: false,
        };
        let index = match self.free.pop() {
            Some(index) => {
                // The memory of the one before is used again.
                let bytes = std::mem::take(&mut self.slots[index as usize].bytes);
                self.slots[index as usize] = Slot { bytes, ..new };
                index
            }
            None => {
                self.slots.push(new);
                self.slots.len() as u32 - 1
            }
        };
        self.slots[index as usize].bytes.extend_from_slice(datagram);
        Some(index)
    }

    fn release(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        self.bytes -= slot.bytes.len();
        slot.bytes.clear();
        slot.number = 0;
        slot.copies = 0;
        let (name, was_held) = (slot.name.take(), std::mem::take(&mut slot.is_held));
        self.free.push(index);
        let Some(name) = name else { return };
        let run = self.run(name.run);
        run.kept -= 1;
        if was_held {
            run.let_go(name.flow, index);
        }
    }

    /// Lets it leave at `due_ns`, and no longer when it was to leave before.
    fn schedule(&mut self, slot: u32, due_ns: u64) {
        self.next_number += 1;
        self.slots[slot as usize].number = self.next_number;
        self.due.push(Reverse((due_ns, self.next_number, slot)));
    }

    /// Holds it back until others have passed, or for a while.
    fn hold(&mut self, slot: u32, name: Name, due_ns: u64) {
        self.schedule(slot, self.plan.leaves_at(self.start_ns, due_ns + HOLD_NS));
        let kept = &mut self.slots[slot as usize];
        (kept.overtaken_by, kept.is_held) = (Some(0), true);
        let run = self.run(name.run);
        run.held.entry(name.flow).or_default().push_back(slot);
        run.totals.held += 1;
    }

    /// One of its flow has passed those that are held back.
    fn overtake(&mut self, name: Name, due_ns: u64) {
        let Some(mut held) = self.run(name.run).held.remove(&name.flow) else { return };
        let extent = self.plan.reorder.extent;
        held.retain(|&slot| {
            let kept = &mut self.slots[slot as usize];
            let passed = kept.overtaken_by.unwrap_or(0) + 1;
            kept.overtaken_by = Some(passed);
            let goes = passed >= extent;
            if goes {
                kept.is_held = false;
                self.schedule(slot, due_ns);
            }
            !goes
        });
        if !held.is_empty() {
            self.run(name.run).held.insert(name.flow, held);
        }
    }

    /// Changes a bit, in what does not tell whose datagram it is.
    fn harm(&mut self, slot: u32, bit: u64) {
        let kept = &mut self.slots[slot as usize];
        let from = if kept.bytes.len() > HARMED_FROM { HARMED_FROM } else { 0 };
        let bits = (kept.bytes.len() - from) as u64 * 8;
        if bits > 0 {
            let bit = bit % bits;
            kept.bytes[from + (bit / 8) as usize] ^= 1 << (bit % 8);
            kept.corrupt = true;
        }
    }

    fn book(&mut self, kept: Kept, name: Name, taken: bool, first: bool, corrupt: bool, again: bool) {
        if !taken {
            // Of two copies, it is refused when neither went.
            if first && !again {
                self.totals(name.run).refused += 1;
                self.enter(name, Did::Refused);
            }
            return;
        }
        if !first {
            self.totals(name.run).duplicate += 1;
            self.enter(name, Did::Duplicate);
            return;
        }
        if corrupt {
            self.totals(name.run).corrupt += 1;
            self.enter(name, Did::Corrupt);
            return;
        }
        if let Some(overtaken_by) = self.slots[kept.0 as usize].overtaken_by {
            self.enter(name, Did::Held { overtaken_by });
        }
        let run = self.run(name.run);
        let next_expected = run.next_expected(name.flow);
        let reordered = name.seq < *next_expected;
        *next_expected = name.seq.saturating_add(1).max(*next_expected);
        run.totals.returned += 1;
        run.totals.reordered += u64::from(reordered);
    }
}

impl Run {
    /// One above the highest number of a flow that was sent back.
    fn next_expected(&mut self, flow: u32) -> &mut u64 {
        let (chunk, within) = ((flow / FLOWS_AT_ONCE) as usize, (flow % FLOWS_AT_ONCE) as usize);
        if self.next_expected.len() <= chunk {
            self.next_expected.resize_with(chunk + 1, || None);
        }
        let flows = self.next_expected[chunk].get_or_insert_with(|| Box::new([0; FLOWS_AT_ONCE as usize]));
        &mut flows[within]
    }

    /// A slot is held back no more. Those that leave by time are the first of their flow.
    fn let_go(&mut self, flow: u32, slot: u32) {
        let Some(held) = self.held.get_mut(&flow) else { return };
        if let Some(at) = held.iter().position(|&other| other == slot) {
            held.remove(at);
        }
        if held.is_empty() {
            self.held.remove(&flow);
        }
    }

    fn close(self) -> RunTotals {
        RunTotals { run: self.id, totals: self.totals }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
