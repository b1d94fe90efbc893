//! What became of each datagram, to the last one: a bit for each that was sent and each that arrived.

use serde::{Deserialize, Serialize};

use super::order::{Order, Reordering};

/// Counts of datagrams on one leg. `intended = sent + refused + unsent` and `sent = received + late + lost`, always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// In the schedule.
    pub intended: u64,
    /// Accepted by the kernel.
    pub sent: u64,
    /// Refused by the kernel (EAGAIN, ECONNRESET and the like); not tried again, so that the load stays open-loop.
    pub refused: u64,
    /// Never tried, because the sender could not keep up or was stopped.
    pub unsent: u64,
    /// Arrived in time; each counted once.
    pub received: u64,
    /// Arrived after the drain.
    pub late: u64,
    /// Never arrived unharmed.
    pub lost: u64,
    /// Further copies of datagrams that had arrived.
    pub duplicate: u64,
    /// Arrived after one of the same flow that was sent later (RFC 4737 section 3.3, Type-P-Reordered).
    pub reordered: u64,
    /// Arrived with a wrong length or checksum; also counted as lost when no good copy arrived.
    pub corrupt: u64,
}

impl Ledger {
    /// Whether both sums hold.
    #[must_use]
    pub fn balances(&self) -> bool {
        self.intended == self.sent + self.refused + self.unsent
            && self.sent == self.received + self.late + self.lost
    }

    /// Datagrams that were to be sent when their time came, whether or not the kernel took them.
    #[must_use]
    pub fn tried(&self) -> u64 {
        self.sent + self.refused
    }

    /// Those of [`Self::tried`] that did not arrive in time. A refused one is among them: a connection that was reset, or a queue that
    /// is full, carries nothing, and must not look better by it. One that was never tried is not: that is the sender's fault alone,
    /// and makes the run GENERATOR-LIMITED.
    #[must_use]
    pub fn gone(&self) -> u64 {
        self.lost + self.late + self.refused
    }

    /// Share of the datagrams tried that did not arrive in time, 0 to 1.
    #[must_use]
    pub fn loss_fraction(&self) -> f64 {
        if self.tried() == 0 { 0.0 } else { self.gone() as f64 / self.tried() as f64 }
    }

    /// Adds the counts of another ledger to this one.
    pub fn add(&mut self, other: &Self) {
        self.intended += other.intended;
        self.sent += other.sent;
        self.refused += other.refused;
        self.unsent += other.unsent;
        self.received += other.received;
        self.late += other.late;
        self.lost += other.lost;
        self.duplicate += other.duplicate;
        self.reordered += other.reordered;
        self.corrupt += other.corrupt;
    }
}

/// What the loss says about the true loss rate: the share itself, or the bound that zero losses allow.
///
/// With none of `n` lost, the rate is below 3/n with 95 % confidence (the rule of three).
#[must_use]
pub fn loss_statement(ledger: &Ledger) -> String {
    let (gone, tried) = (ledger.gone(), ledger.tried());
    if tried == 0 {
        return "nothing was sent".to_owned();
    }
    if gone == 0 {
        return format!("0 of {tried} lost: loss < {:.1e} at 95 %", 3.0 / tried as f64);
    }
    let refused = match ledger.refused {
        0 => String::new(),
        refused => format!(" ({refused} refused)"),
    };
    format!("{gone} of {tried} lost{refused}: {:.3e}", ledger.loss_fraction())
}

/// How an arrival was booked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The first good copy, in time: its latency counts.
    First,
    /// The first good copy, after the drain.
    Late,
    /// A further copy.
    Duplicate,
    /// A flow or sequence number that the schedule does not have.
    Unknown,
}

/// Books arrivals of all flows of one leg.
#[derive(Debug)]
pub struct Arrivals {
    flows: Vec<Flow>,
    corrupt: u64,
}

#[derive(Debug)]
struct Flow {
    seen: Box<[u64]>,
    intended: u64,
    order: Order,
    received: u64,
    late: u64,
    duplicate: u64,
}

impl Arrivals {
    /// Room for as many datagrams of each flow as the schedule has.
    #[must_use]
    pub fn new(intended_by_flow: &[u64]) -> Self {
        let flow = |&intended: &u64| Flow {
            seen: vec![0; intended.div_ceil(64) as usize].into_boxed_slice(),
            intended,
            order: Order::default(),
            received: 0,
            late: 0,
            duplicate: 0,
        };
        Self { flows: intended_by_flow.iter().map(flow).collect(), corrupt: 0 }
    }

    /// Books a good datagram.
    pub fn arrive(&mut self, flow: u32, seq: u64, late: bool) -> Arrival {
        let Some(flow) = self.flows.get_mut(flow as usize) else { return Arrival::Unknown };
        if seq >= flow.intended {
            return Arrival::Unknown;
        }
        let (word, bit) = ((seq / 64) as usize, 1 << (seq % 64));
        if flow.seen[word] & bit != 0 {
            flow.duplicate += 1;
            return Arrival::Duplicate;
        }
        flow.seen[word] |= bit;
        flow.order.arrive(seq);
        if late {
            flow.late += 1;
            return Arrival::Late;
        }
        flow.received += 1;
        Arrival::First
    }

    /// Books a datagram whose content was harmed on the way.
    pub fn corrupt(&mut self) {
        self.corrupt += 1;
    }

    /// Good datagrams so far, each counted once.
    #[must_use]
    pub fn unique(&self) -> u64 {
        self.flows.iter().map(|flow| flow.received + flow.late).sum()
    }

    /// How datagrams were overtaken, over all flows.
    #[must_use]
    pub fn reordering(&self) -> Reordering {
        let mut total = Reordering::default();
        for flow in &self.flows {
            total.add(&flow.order.found());
        }
        total
    }

    /// Datagrams that have not come although later ones of their flow have.
    #[must_use]
    pub fn overtaken(&self) -> u64 {
        self.flows.iter().map(|flow| flow.order.next_expected() - flow.received - flow.late).sum()
    }

    /// Balances arrivals against what each flow sent: one ledger for each flow, and their sum with what no flow owns.
    #[must_use]
    pub fn close(&self, sent: &[Sent]) -> (Vec<Ledger>, Ledger) {
        let by_flow: Vec<Ledger> = self.flows.iter().zip(sent).map(|(flow, sent)| flow.close(sent)).collect();
        let mut total = Ledger::default();
        for ledger in &by_flow {
            total.add(ledger);
        }
        total.corrupt = self.corrupt;
        (by_flow, total)
    }
}

impl Arrivals {
    /// As [`Arrivals::close`] for what the sender sent: intended is what the schedule has, whatever the sender says of itself.
    #[must_use]
    pub fn close_scheduled(&self, sent: &[Sent]) -> (Vec<Ledger>, Ledger) {
        let (mut by_flow, mut total) = self.close(sent);
        for (ledger, flow) in by_flow.iter_mut().zip(&self.flows) {
            ledger.intended = flow.intended;
        }
        total.intended = self.flows.iter().map(|flow| flow.intended).sum();
        (by_flow, total)
    }
}

impl Flow {
    fn close(&self, sent: &Sent) -> Ledger {
        Ledger {
            intended: sent.sent + sent.refused + sent.unsent,
            sent: sent.sent,
            refused: sent.refused,
            unsent: sent.unsent,
            received: self.received,
            late: self.late,
            // Saturating: more arrivals than sends would be a forgery, and the sums then do not balance.
            lost: sent.sent.saturating_sub(self.received + self.late),
            duplicate: self.duplicate,
            reordered: self.order.found().reordered,
            corrupt: 0,
        }
    }
}

/// What one flow's sender did with its part of the schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Accepted by the kernel.
    pub sent: u64,
    /// Refused by the kernel.
    pub refused: u64,
    /// Never tried.
    pub unsent: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sent(sent: u64) -> Sent {
        Sent { sent, ..Sent::default() }
    }

    #[test]
    fn only_packets_below_the_next_expected_number_are_reordered() {
        // Three packets overtake three others: the overtaken ones are reordered (RFC 4737 section 3.3), the gap is not.
        let mut arrivals = Arrivals::new(&[10]);
        for number in [1, 2, 3, 7, 8, 9, 4, 5, 6, 10] {
            assert_eq!(arrivals.arrive(0, number - 1, false), Arrival::First);
        }
        let (_, total) = arrivals.close(&[sent(10)]);
        assert_eq!((total.reordered, total.lost, total.received), (3, 0, 10));
    }

    #[test]
    fn what_the_schedule_does_not_have_is_not_booked() {
        let mut arrivals = Arrivals::new(&[2]);
        assert_eq!(arrivals.arrive(1, 0, false), Arrival::Unknown);
        assert_eq!(arrivals.arrive(0, 2, false), Arrival::Unknown);
        assert_eq!(arrivals.arrive(0, u64::MAX, false), Arrival::Unknown);
        assert_eq!(arrivals.unique(), 0);
    }

    #[test]
    fn zero_losses_are_a_bound_and_not_a_zero() {
        let ledger = Ledger { sent: 3_000_000, received: 3_000_000, ..Ledger::default() };
        assert_eq!(loss_statement(&ledger), "0 of 3000000 lost: loss < 1.0e-6 at 95 %");
        assert!(
            loss_statement(&Ledger { sent: 1_000, lost: 10, ..Ledger::default() }).contains("10 of 1000")
        );
    }

    #[test]
    fn what_was_refused_is_lost_and_what_was_not_tried_is_not() {
        let ledger = Ledger {
            intended: 1_000,
            sent: 890,
            refused: 10,
            unsent: 100,
            received: 872,
            late: 3,
            lost: 15,
            ..Ledger::default()
        };
        assert!(ledger.balances());
        assert_eq!((ledger.tried(), ledger.gone()), (900, 28));
        assert_eq!(ledger.loss_fraction(), 28.0 / 900.0);
        assert_eq!(loss_statement(&ledger), "28 of 900 lost (10 refused): 3.111e-2");
        let dead = Ledger { intended: 10, refused: 10, ..Ledger::default() };
        assert_eq!(dead.loss_fraction(), 1.0);
    }

    proptest! {
        #[test]
        fn any_arrivals_balance_and_equal_a_naive_count(
            events in prop::collection::vec((0_u32..4, 0_u64..40, any::<bool>()), 0..300),
        ) {
            let mut arrivals = Arrivals::new(&[40, 40, 40, 40]);
            let mut seen = std::collections::HashSet::new();
            let (mut late_count, mut duplicates) = (0, 0);
            for &(flow, seq, late) in &events {
                arrivals.arrive(flow, seq, late);
                if !seen.insert((flow, seq)) {
                    duplicates += 1;
                } else if late {
                    late_count += 1;
                }
            }
            let (by_flow, total) = arrivals.close(&[sent(40); 4]);
            prop_assert!(by_flow.iter().all(Ledger::balances) && total.balances());
            prop_assert_eq!((total.late, total.duplicate), (late_count, duplicates));
            prop_assert_eq!(total.lost, 160 - seen.len() as u64);
        }
    }
}
