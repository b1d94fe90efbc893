//! The I/O designs under test, and the rules that each is exempt from.

use dataplane::egress::uring::{Reap, SlotCount, Submit};
use dataplane::egress::{Direct, Egress, Port, Runtime, Threaded, Uring, WhenBusy};
use dataplane::engine::Completions;

use super::here::{has_io_uring, now};

/// A design and its variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Design {
    UringThread,
    UringInline,
    Threaded,
    Suspend,
    Drop,
    Runtime,
}

/// A rule that the suite checks, apart from those that bind all: the exact ledger, the order of every flow, and a
/// shutdown that loses nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// `free + filling + in flight = capacity`, and a waiting queue within its bound.
    SlotAccounting,
    /// What is busy is waited for, never dropped.
    BusyIsNoLoss,
    /// A busy socket holds up no other.
    OthersDoNotNotice,
    /// After a flush that answers `Done`, errors included, the fate of every packet is known without closing.
    KnownAfterFlush,
    /// Neighbours to one destination leave as one superpacket.
    Superpackets,
    /// The source address asked for is the one used.
    SourceAddress,
    /// So is the traffic class.
    TrafficClass,
}

/// Which design is exempt from which rule, and why.
pub const EXEMPT: &[(Design, Rule, &str)] = &[
    (
        Design::Threaded,
        Rule::SlotAccounting,
        "its packets are in channels of 1,000, and its slots in a writer thread",
    ),
    (Design::Suspend, Rule::SlotAccounting, "it has no ring: nothing is in flight between two calls"),
    (Design::Drop, Rule::SlotAccounting, "it has no ring, like suspend"),
    (Design::Runtime, Rule::SlotAccounting, "its packets are in channels and on the heap"),
    (Design::Drop, Rule::BusyIsNoLoss, "dropping is what it stands for; it counts each as `busy`"),
    (Design::Threaded, Rule::OthersDoNotNotice, "its writer thread waits for the busy socket by definition"),
    (Design::Suspend, Rule::OthersDoNotNotice, "the loop is suspended by definition"),
    (Design::Threaded, Rule::KnownAfterFlush, "the writer thread is behind the loop"),
    (Design::Runtime, Rule::KnownAfterFlush, "the runtime's tasks are behind the loop"),
    (Design::Runtime, Rule::Superpackets, "tokio-uring sends one owned buffer at a time"),
    (Design::Runtime, Rule::SourceAddress, "tokio-uring passes no control messages with send_to"),
    (Design::Runtime, Rule::TrafficClass, "tokio-uring passes no control messages with send_to"),
];

impl Design {
    /// Whether the rule binds this design.
    pub fn keeps(self, rule: Rule) -> bool {
        !EXEMPT.iter().any(|&(design, exempt, _)| (design, exempt) == (self, rule))
    }
}

/// An egress as the suite sees it.
pub trait Subject: Egress {
    /// Where its slots are, for designs with a ring.
    fn slots(&mut self) -> Option<SlotCount> {
        None
    }
    /// Bytes in a waiting queue, for designs that have one.
    fn waiting_len(&self, _port: Port) -> usize {
        0
    }
    /// Reaps what a completion thread would reap in its own time.
    fn reap(&mut self) {}
}

impl<S: Submit, R: Reap> Subject for Uring<S, R> {
    fn slots(&mut self) -> Option<SlotCount> {
        Some(Uring::slots(self))
    }
    fn waiting_len(&self, port: Port) -> usize {
        Uring::waiting_len(self, port)
    }
    fn reap(&mut self) {
        Uring::reap(self);
    }
}
impl Subject for Direct {}
impl Subject for Threaded {}
impl Subject for Runtime {}

/// A test of any egress.
pub trait Scenario {
    /// Runs it.
    fn run<E: Subject>(&self, egress: E, design: Design);
}

/// Builds the design and runs the scenario on it, if the machine has what it takes.
pub fn run(design: Design, gso: bool, scenario: &impl Scenario) {
    let needs_ring = matches!(design, Design::UringThread | Design::UringInline | Design::Runtime);
    if needs_ring && !has_io_uring() {
        return;
    }
    let uring = |completions| Uring::new(gso, completions, true, now()).expect("uring");
    match design {
        Design::UringThread => scenario.run(uring(Completions::Thread), design),
        Design::UringInline => scenario.run(uring(Completions::Inline), design),
        Design::Threaded => scenario.run(Threaded::new(gso).expect("threaded"), design),
        Design::Suspend => scenario.run(Direct::new(WhenBusy::Suspend, gso).expect("suspend"), design),
        Design::Drop => scenario.run(Direct::new(WhenBusy::Drop, gso).expect("drop"), design),
        Design::Runtime => scenario.run(Runtime::new().expect("runtime"), design),
    }
}
