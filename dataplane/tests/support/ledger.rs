//! The checks that every run ends in, and some make at every step.

use dataplane::drops::Cause;
use dataplane::egress::EgressStats;
use dataplane::egress::uring::SlotCount;

/// `offered = sent + Σ drops + pending`.
pub fn check(stats: &EgressStats, pending: u64) {
    let explained = stats.sent + stats.drops.total() + pending;
    assert_eq!(stats.offered, explained, "unexplained: {stats:?}, {pending} pending");
}

/// Only these causes may have lost anything.
pub fn check_causes(stats: &EgressStats, allowed: &[Cause]) {
    for (cause, packets) in stats.drops.iter() {
        assert!(allowed.contains(&cause), "{packets} packets lost to {}: {stats:?}", cause.name());
    }
}

/// `free + filling + in flight = capacity`.
pub fn check_slots(slots: SlotCount) {
    assert_eq!(slots.free + slots.filling + slots.in_flight, slots.capacity, "slots: {slots:?}");
}
