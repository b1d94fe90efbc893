//! Figures of the engine as they are shown: in JSON, as metrics, in a terminal.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::drops::{Cause, Drops};
use crate::egress::EgressStats;
pub use crate::ingress::IngressStats as Ingress;

/// Counters by name.
pub type Counts = BTreeMap<String, u64>;

/// How packets leave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Egress {
    /// Packets appended.
    pub offered: u64,
    /// Packets the kernel took.
    pub sent: u64,
    /// Bytes the kernel took.
    pub sent_bytes: u64,
    /// Packets whose fate is not known yet.
    pub pending: u64,
    /// Operations that carried them.
    pub operations: u64,
    /// Packets of an operation on average.
    pub segments_per_operation: f64,
    /// System calls that submitted them.
    pub system_calls: u64,
    /// Packets that had to wait for a busy socket.
    pub waited: u64,
    /// Times the ring was full and waited for.
    pub ring_full: u64,
    /// Slots of the ring; 0 for the designs without one.
    pub slots: u64,
    /// Slots the kernel has.
    pub slots_in_flight: u64,
    /// Times the completion thread was woken.
    pub completion_wakeups: u64,
    /// Superpackets sent again one by one.
    pub gso_fallbacks: u64,
    /// Times that the kernel had more completions than the ring has room for.
    pub cq_overflows: u64,
}

impl Egress {
    /// The figures of one moment, with `pending` packets on their way.
    #[must_use]
    pub fn new(stats: &EgressStats, pending: u64) -> Self {
        Self {
            offered: stats.offered,
            sent: stats.sent,
            sent_bytes: stats.sent_bytes,
            pending,
            operations: stats.operations,
            segments_per_operation: stats.sent as f64 / stats.operations.max(1) as f64,
            system_calls: stats.enters,
            waited: stats.waited,
            ring_full: stats.ring_full,
            slots: stats.slots,
            slots_in_flight: stats.slots_in_flight,
            completion_wakeups: stats.completion_wakeups,
            gso_fallbacks: stats.gso_fallbacks,
            cq_overflows: stats.cq_overflows,
        }
    }
}

/// What the application, the egress and the kernel lost, in one list that names every cause. In packets, unless the name
/// says skbs.
#[must_use]
pub fn losses(application: &Drops, egress: &EgressStats, ingress: &Ingress) -> Counts {
    let mut drops = application.clone();
    drops.merge(&egress.drops);
    drops.add(Cause::KernelReceiveBuffer, ingress.kernel_drops_skbs);
    drops.add(Cause::Truncated, ingress.truncated);
    Cause::ALL.iter().map(|&cause| (cause.name().to_owned(), drops.get(cause))).collect()
}

/// Three digits and a factor of a thousand.
#[must_use]
pub fn short_number(value: f64) -> String {
    let steps = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let (size, letter) = steps.into_iter().find(|&(size, _)| value >= size).unwrap_or((1.0, ""));
    let scaled = value / size;
    let digits = if letter.is_empty() && scaled.fract() == 0.0 || scaled >= 100.0 { 0 } else { 1 };
    format!("{scaled:.digits$}{letter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_short() {
        for (value, expected) in
            [(0.0, "0"), (0.5, "0.5"), (999.0, "999"), (1234.0, "1.2k"), (123_456.0, "123k"), (2.5e9, "2.5G")]
        {
            assert_eq!(short_number(value), expected);
        }
    }

    #[test]
    fn losses_of_all_stages_are_one_list_without_gaps() {
        let mut application = Drops::default();
        application.add(Cause::NoRoute, 3);
        let mut egress = EgressStats { sent: 40, operations: 10, ..EgressStats::default() };
        egress.drops.add(Cause::NoRoute, 1);
        egress.drops.add(Cause::EgressExpired, 4);
        let ingress = Ingress { kernel_drops_skbs: 2, truncated: 5, ..Ingress::default() };
        let losses = losses(&application, &egress, &ingress);
        assert_eq!(losses.len(), Cause::ALL.len());
        let of = |name: &str| losses[name];
        assert_eq!((of("no_route"), of("egress_expired"), of("replay")), (4, 4, 0));
        assert_eq!((of("kernel_rcvbuf_skbs"), of("truncated")), (2, 5));
        let shown = Egress::new(&egress, 6);
        assert!((shown.segments_per_operation - 4.0).abs() < 1e-9 && shown.pending == 6);
    }
}
