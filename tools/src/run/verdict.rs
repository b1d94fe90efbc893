//! Whether a run can be believed: a generator that could not keep its schedule, or lost datagrams itself, says so.

use serde::{Deserialize, Serialize};

use super::distribution::{Distribution, Grade};
use super::ledger::Ledger;
use super::stall::Stalls;
use crate::units;

/// Smallest share of the schedule that must have been sent.
const OFFERED_MIN: f64 = 0.999;
/// What of the sender's or receiver's lateness is looked at, and how many times the limit each may be: the limit is that of p99.9. Half of the datagrams
/// must not be late by much of that, and no stall be much longer, which a fraction of a thousand would hide.
const LATENESS: [(&str, f64); 4] = [("p50", 0.1), ("p99.9", 1.0), ("p99.99", 10.0), ("max", 10.0)];

/// Whether a run can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING-KEBAB-CASE")]
pub enum Validity {
    /// The figures are the device's.
    Valid,
    /// The sender could not keep the schedule: the figures are for less load than asked, or for a burstier one. Or the receiver was late
    /// to read: the latency is its own.
    GeneratorLimited,
    /// The figures are wrong.
    Invalid,
}

impl Validity {
    /// As printed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Valid => "VALID",
            Self::GeneratorLimited => "GENERATOR-LIMITED",
            Self::Invalid => "INVALID",
        }
    }
}

/// What can spoil a run and is looked for, of that which tests provoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The sender's lateness.
    Sender,
    /// The receiver's lateness.
    Receiver,
    /// How much of the schedule was sent.
    Offered,
    /// What the generator's own sockets dropped.
    OwnDrops,
    /// What the hypervisor took.
    Steal,
    /// Steps of the clock.
    ClockStep,
}

/// A validity with its reasons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The worst that was found.
    pub validity: Validity,
    /// One sentence for each thing found, worst first; empty when valid.
    pub reasons: Vec<String>,
    /// What does not void the run but helps to read it.
    pub notes: Vec<String>,
}

impl Verdict {
    /// `VALID`, or the validity with its reasons.
    #[must_use]
    pub fn line(&self) -> String {
        if self.reasons.is_empty() {
            return self.validity.name().to_owned();
        }
        format!("{}: {}", self.validity.name(), self.reasons.join("; "))
    }
}

/// What the generator observed about itself.
#[derive(Clone, Debug, Default)]
pub struct Observations {
    /// There and back.
    pub ledger: Ledger,
    /// Whether the ledgers of both legs balance, where there are any.
    pub legs_balance: bool,
    /// Datagrams (superpackets count once) that our own sockets dropped because their receive buffers were full.
    pub own_socket_drops: u64,
    /// Datagrams that arrived before they were sent.
    pub clock_backwards: u64,
    /// Time the host was suspended during the run, in nanoseconds.
    pub suspended_ns: u64,
    /// Arrivals with this run's id that the schedule does not have.
    pub unknown_arrivals: u64,
    /// The largest step of CLOCK_REALTIME during the run, in nanoseconds.
    pub clock_step_ns: u64,
    /// Share that the hypervisor took of the core that it took most of, 0 to 1.
    pub steal: Option<f64>,
    /// What could not be found out, and so is no fault above.
    pub unchecked: Vec<&'static str>,
    /// Datagrams refused when the in-process peer sent them back.
    pub peer_refused: u64,
    /// Whether the run was ended early.
    pub interrupted: bool,
    /// How long the sender did nothing although something was due, and why.
    pub stalls: Stalls,
    /// Why the kernel refused the first send that it did.
    pub refusal: Option<String>,
    /// Datagrams that it refused because of the far end, or the way there: what is measured lost them.
    pub refused_far: u64,
    /// Why the timer slack could not be lowered.
    pub slack_error: Option<String>,
}

/// What is still believed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// p99.9 of the sender's lateness and of the receiver's in nanoseconds; a tenth of it is the limit of p50, ten times that of p99.99 and of the
    /// longest. What is below a quarter of the same figure of the service latency hardly moves it, and is believed all the same.
    pub lateness_ns: u64,
    /// Share that the hypervisor may take of any core, 0 to 1.
    pub steal: f64,
    /// A check that is not made. No option sets it: by it the test that provokes a fault shows that it would fail without the check.
    pub blind: Option<Check>,
}

impl Tolerance {
    fn sees(&self, check: Check) -> bool {
        self.blind != Some(check)
    }
}

/// The delays by which a run is judged.
#[derive(Clone, Copy, Debug)]
pub struct Delays<'a> {
    /// The sender's own lateness.
    pub lateness: &'a Distribution,
    /// The receiver's own lateness, where it is known.
    pub receiving: Option<&'a Distribution>,
    /// From actual send to arrival, the receiver's lateness included.
    pub service: &'a Distribution,
}

/// Judges a run.
#[must_use]
pub fn judge(observed: &Observations, delays: Delays<'_>, tolerance: Tolerance) -> Verdict {
    let faults = faults(observed, tolerance);
    let limits = limits(observed, delays, tolerance);
    let validity = match (faults.is_empty(), limits.is_empty()) {
        (false, _) => Validity::Invalid,
        (true, false) => Validity::GeneratorLimited,
        (true, true) => Validity::Valid,
    };
    let reasons = faults.into_iter().chain(limits).collect();
    let mut notes = notes(observed);
    notes.extend(own(delays));
    Verdict { validity, reasons, notes }
}

/// What makes the figures wrong.
fn faults(observed: &Observations, tolerance: Tolerance) -> Vec<String> {
    let mut faults = Vec::new();
    let ledger = &observed.ledger;
    if !(ledger.balances() && observed.legs_balance) {
        faults.push(format!("the ledger does not balance: {ledger:?}"));
    }
    if observed.own_socket_drops > 0 && tolerance.sees(Check::OwnDrops) {
        faults.push(format!(
            "the generator's own sockets dropped {} skbs on receipt; raise net.core.rmem_max, use more --flows or lower --rate",
            observed.own_socket_drops
        ));
    }
    if observed.clock_backwards > 0 {
        faults.push(format!(
            "{} datagrams arrived before they were sent: the clock is broken",
            observed.clock_backwards
        ));
    }
    if observed.clock_step_ns > 0 && tolerance.sees(Check::ClockStep) {
        faults.push(format!(
            "the clock was set by {} during the run; let no program step it meanwhile (chronyd: `makestep`)",
            units::nanoseconds(observed.clock_step_ns)
        ));
    }
    if let Some(steal) =
        observed.steal.filter(|&steal| steal > tolerance.steal && tolerance.sees(Check::Steal))
    {
        faults.push(format!(
            "the hypervisor took {:.1} % of a core's time (limit {:.1} %: --steal-limit); measure when the host is less busy",
            100.0 * steal,
            100.0 * tolerance.steal
        ));
    }
    if observed.suspended_ns > 1_000_000 {
        faults.push(format!("the host was suspended for {} ms", observed.suspended_ns / 1_000_000));
    }
    if observed.unknown_arrivals > 0 {
        let unknown = observed.unknown_arrivals;
        faults.push(format!("{unknown} datagrams carry this run's id but were never sent"));
    }
    if ledger.sent == 0 {
        let refusal = refusal(observed);
        faults.push(format!("nothing was sent: {} sends were refused{refusal}", ledger.refused));
    }
    faults
}

/// What makes the load another than the one that was asked for.
fn limits(observed: &Observations, delays: Delays<'_>, tolerance: Tolerance) -> Vec<String> {
    let mut limits = Vec::new();
    let ledger = &observed.ledger;
    let offered = ledger.sent + observed.refused_far;
    let enough = offered as f64 >= OFFERED_MIN * ledger.intended as f64;
    if !observed.interrupted && !enough && tolerance.sees(Check::Offered) {
        limits.push(format!(
            "only {:.3} % of the scheduled datagrams were sent ({} refused by the kernel{}, {} not tried in time); \
             lower --rate, or use --burst with --gso",
            100.0 * ledger.sent as f64 / ledger.intended as f64,
            ledger.refused,
            refusal(observed),
            ledger.unsent
        ));
    }
    let no_room = ledger.refused.saturating_sub(observed.refused_far);
    if no_room > 0 && enough && tolerance.sees(Check::Offered) {
        limits.push(format!(
            "{} found no room on this host{}, and would count as lost; lower --rate, or raise --send-buffer",
            units::count(no_room, "datagram"),
            refusal(observed)
        ));
    }
    let too_late = |lateness: &Distribution| {
        // One tells of the others.
        LATENESS.into_iter().find_map(|(name, times)| {
            let needed = figure(delays.service, name).unwrap_or(0);
            let limit = ((tolerance.lateness_ns as f64 * times) as u64).max(needed / 4);
            let late = figure(lateness, name).filter(|&late| late > limit)?;
            Some((name, units::nanoseconds(late), units::nanoseconds(limit)))
        })
    };
    limits.extend(Some(delays.lateness).filter(|_| tolerance.sees(Check::Sender)).and_then(too_late).map(
        |(name, late, limit)| {
            let whose = whose(observed);
            format!("{name} of the sender's lateness is {late} (limit {limit}); {whose}")
        },
    ));
    limits.extend(delays.receiving.filter(|_| tolerance.sees(Check::Receiver)).and_then(too_late).map(|(name, late, limit)| {
        format!("{name} of the receiver's lateness is {late} (limit {limit}), and the latency has it; free a core, or send less")
    }));
    if observed.peer_refused > 0 {
        limits.push(format!("the in-process peer could not send {} datagrams back", observed.peer_refused));
    }
    limits
}

/// Who made the sender late, as far as the host tells, and what to do about it.
fn whose(observed: &Observations) -> String {
    let Stalls { still_ns, waited_ns } = observed.stalls;
    let [waited, still] = [waited_ns.unwrap_or(0), still_ns].map(units::nanoseconds);
    match observed.stalls.of_others() {
        Some(true) => format!(
            "other threads had its core for {waited} of the {still} that it stood still: free a core, or send less"
        ),
        Some(false) => format!(
            "other threads had its core for {waited} only of the {still} that it stood still, so it was the kernel, the hypervisor or \
             the load itself: send less"
        ),
        None => "free a core, or send less".to_owned(),
    }
}

/// What helps to read a run and does not void it.
fn notes(observed: &Observations) -> Vec<String> {
    let refused = observed.ledger.refused;
    let slack = observed.slack_error.as_ref();
    let unchecked = &observed.unchecked;
    [
        (!unchecked.is_empty()).then(|| format!("not checked: {}", unchecked.join("; "))),
        (refused > 0).then(|| format!("{refused} sends were refused by the kernel{}", refusal(observed))),
        observed
            .steal
            .filter(|&steal| steal > 0.01)
            .map(|steal| format!("the hypervisor took {:.1} % of a core's time", 100.0 * steal)),
        slack.map(|error| format!("timer slack stays at its default: {error}")),
        observed.interrupted.then(|| "interrupted: the figures cover what was sent until then".to_owned()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Which figures of the response are the lab's own in good part.
fn own(delays: Delays<'_>) -> Option<String> {
    let known = delays.service.quantiles.iter().filter(|quantile| quantile.grade != Grade::Omitted);
    let names = known.map(|quantile| quantile.name.as_str()).chain(["max"]);
    let own: Vec<&str> = names.filter(|name| is_own(delays, name)).collect();
    (!own.is_empty()).then(|| {
        format!(
            "the lateness of the lab's own sender and receiver is more than a quarter of what the service took in {}",
            own.join(", ")
        )
    })
}

/// Why the kernel refused the first send, to be put behind how many it refused.
fn refusal(observed: &Observations) -> String {
    observed.refusal.as_ref().map(|error| format!(" with {error:?}")).unwrap_or_default()
}

/// A quantile in nanoseconds, or the largest value where samples are too few for it; `None` without any.
#[must_use]
pub fn figure(distribution: &Distribution, name: &str) -> Option<u64> {
    let quantile = distribution.quantile(name).filter(|quantile| quantile.grade != Grade::Omitted);
    quantile.and_then(|quantile| quantile.value_ns).or(distribution.max_ns)
}

/// Whether more than a quarter of what the service took in a figure, `p50` and the like or `max`, is as much as the lateness of the sender
/// and the receiver together in the same figure. Differences between devices are then smaller in the response than they are.
#[must_use]
pub fn is_own(delays: Delays<'_>, name: &str) -> bool {
    let late = |lateness: &Distribution| figure(lateness, name).unwrap_or(0);
    let own = late(delays.lateness).saturating_add(delays.receiving.map_or(0, late));
    figure(delays.service, name).is_some_and(|needed| own > needed / 4)
}

/// Which of the generator's own faults it could not look for.
#[must_use]
pub fn unchecked(tells_drops: bool, tells_arrival: bool, steal: Option<f64>) -> Vec<&'static str> {
    let drops = (!tells_drops).then_some("what its own sockets dropped (the kernel has no SO_MEMINFO here)");
    let steal = steal.is_none().then_some("what the hypervisor took (/proc/stat does not say)");
    let arrival =
        (!tells_arrival).then_some("how late the receiver was (the kernel stamps no arrivals here)");
    drops.into_iter().chain(arrival).chain(steal).collect()
}

#[cfg(test)]
mod tests {
    use super::super::distribution::histogram;
    use super::*;

    fn constant(value: u64) -> Distribution {
        let mut histogram = histogram();
        histogram.record_n(value, 1_000).unwrap();
        Distribution::new(&histogram, 0)
    }

    fn fine() -> Observations {
        Observations {
            ledger: Ledger { intended: 1_000, sent: 1_000, received: 1_000, ..Ledger::default() },
            legs_balance: true,
            own_socket_drops: 0,
            clock_backwards: 0,
            suspended_ns: 0,
            unknown_arrivals: 0,
            clock_step_ns: 0,
            steal: None,
            unchecked: Vec::new(),
            peer_refused: 0,
            interrupted: false,
            stalls: Stalls::default(),
            refusal: None,
            refused_far: 0,
            slack_error: None,
        }
    }

    const TOLERANCE: Tolerance = Tolerance { lateness_ns: 1_000_000, steal: 0.05, blind: None };

    fn judged(observed: &Observations, lateness: &Distribution, service_ns: u64) -> Verdict {
        let service = &constant(service_ns);
        judge(observed, Delays { lateness, receiving: None, service }, TOLERANCE)
    }

    fn verdict(observed: &Observations, lateness_ns: u64, service_ns: u64) -> Verdict {
        judged(observed, &constant(lateness_ns), service_ns)
    }

    #[test]
    fn a_run_in_time_without_own_losses_is_valid() {
        assert_eq!(verdict(&fine(), 1_000, 50_000).line(), "VALID");
    }

    #[test]
    fn each_fault_of_the_generator_alone_voids_the_run_and_is_named() {
        let drops = Observations { own_socket_drops: 7, ..fine() };
        let backwards = Observations { clock_backwards: 7, ..fine() };
        let suspended = Observations { suspended_ns: 7_000_000, ..fine() };
        let unknown = Observations { unknown_arrivals: 7, ..fine() };
        let unbalanced = Observations { ledger: Ledger { received: 7, ..fine().ledger }, ..fine() };
        let stepped = Observations { clock_step_ns: 7_000_000, ..fine() };
        let stolen = Observations { steal: Some(0.07), ..fine() };
        for observed in [drops, backwards, suspended, unknown, unbalanced, stepped, stolen] {
            let verdict = verdict(&observed, 1_000, 50_000);
            assert_eq!(verdict.validity, Validity::Invalid, "{observed:?}");
            assert!(verdict.reasons.len() == 1 && verdict.reasons[0].contains('7'), "{verdict:?}");
        }
    }

    #[test]
    fn a_sender_behind_its_schedule_limits_the_run() {
        let ledger = Ledger { intended: 1_000, sent: 998, unsent: 2, received: 998, ..Ledger::default() };
        let behind = Observations { ledger, ..fine() };
        assert_eq!(verdict(&behind, 1_000, 50_000).validity, Validity::GeneratorLimited);
        let interrupted = Observations { interrupted: true, ..behind };
        assert_eq!(verdict(&interrupted, 1_000, 50_000).validity, Validity::Valid);
        let refused = Observations { peer_refused: 1, ..fine() };
        assert_eq!(verdict(&refused, 1_000, 50_000).validity, Validity::GeneratorLimited);
    }

    #[test]
    fn a_refused_send_is_named_with_the_kernel_s_word() {
        let ledger = Ledger { intended: 1_000, sent: 990, refused: 10, received: 990, ..Ledger::default() };
        let refused = Observations { ledger, refusal: Some("no room".to_owned()), ..fine() };
        let found = verdict(&refused, 1_000, 50_000);
        assert_eq!(found.validity, Validity::GeneratorLimited);
        assert!(found.reasons[0].contains("10 refused by the kernel with \"no room\""), "{found:?}");
    }

    #[test]
    fn sends_that_the_far_end_refused_are_its_own_loss() {
        let ledger = Ledger { intended: 1_000, sent: 500, refused: 500, received: 500, ..Ledger::default() };
        let reset = |refused_far| {
            let refusal = Some("reset".to_owned());
            verdict(&Observations { ledger, refused_far, refusal, ..fine() }, 1_000, 50_000)
        };
        assert_eq!(reset(500).line(), "VALID");
        assert_eq!(reset(500).notes, ["500 sends were refused by the kernel with \"reset\""]);
        assert_eq!(reset(490).validity, Validity::GeneratorLimited, "ten found no room here");
        // One of a thousand is enough: it counts as lost, and the device never had it.
        let ledger =
            Ledger { intended: 9_999, sent: 9_998, refused: 1, received: 9_998, ..Ledger::default() };
        let one = verdict(&Observations { ledger, ..fine() }, 1_000, 50_000);
        assert_eq!(one.validity, Validity::GeneratorLimited);
        assert!(one.reasons[0].starts_with("1 datagram found no room on this host"), "{one:?}");
    }

    #[test]
    fn a_little_steal_is_a_note() {
        let found = verdict(&Observations { steal: Some(0.03), ..fine() }, 1_000, 50_000);
        assert_eq!((found.validity, found.notes.len()), (Validity::Valid, 1));
    }

    #[test]
    fn what_could_not_be_checked_is_a_note() {
        let unchecked = vec!["what the hypervisor took", "the moon"];
        let found = verdict(&Observations { unchecked, ..fine() }, 1_000, 50_000);
        assert_eq!(found.validity, Validity::Valid);
        assert_eq!(found.notes, ["not checked: what the hypervisor took; the moon"]);
    }

    /// So many of each.
    fn mixture(values: &[(u64, u64)]) -> Distribution {
        let mut histogram = histogram();
        values.iter().for_each(|&(value, count)| histogram.record_n(value, count).unwrap());
        Distribution::new(&histogram, 0)
    }

    #[test]
    fn lateness_of_the_half_of_the_last_and_of_the_longest_counts_as_that_of_a_thousandth_does() {
        let limited = |lateness: &[(u64, u64)]| {
            let found = judged(&fine(), &mixture(lateness), 50_000);
            (found.validity == Validity::GeneratorLimited, found.reasons.join("; "))
        };
        let on_time = 100;
        assert_eq!(limited(&[(on_time, 1_000_000)]), (false, String::new()));
        assert!(!limited(&[(90_000, 1_000_000)]).0, "a little late, always");
        let (found, why) = limited(&[(on_time, 400_000), (200_000, 600_000)]);
        assert!(found && why.starts_with("p50 of the sender's lateness is 200"), "{why}");
        let (found, why) = limited(&[(on_time, 990_000), (2_000_000, 10_000)]);
        assert!(found && why.starts_with("p99.9 of the sender's lateness is 2.00 ms"), "{why}");
        let (found, why) = limited(&[(on_time, 999_500), (20_000_000, 500)]);
        assert!(found && why.starts_with("p99.99 of the sender's lateness is 20.0 ms"), "{why}");
        let (found, why) = limited(&[(on_time, 999_999), (20_000_000, 1)]);
        assert!(found && why.starts_with("max of the sender's lateness is 20.0 ms (limit 10.0 ms)"), "{why}");
        assert!(!limited(&[(on_time, 999_900), (8_000_000, 100)]).0, "a stall that is no longer than others");
    }

    #[test]
    fn a_receiver_that_is_late_limits_the_run_as_a_sender_does() {
        let found = |receiving: &[(u64, u64)], service_ns| {
            let (lateness, receiving, service) =
                (&constant(100), Some(&mixture(receiving)), &constant(service_ns));
            judge(&fine(), Delays { lateness, receiving, service }, TOLERANCE)
        };
        assert_eq!(found(&[(30_000, 1_000_000)], 50_000).line(), "VALID", "so long takes a wake-up");
        let late = found(&[(30_000, 990_000), (2_000_000, 10_000)], 50_000);
        assert_eq!(late.validity, Validity::GeneratorLimited);
        assert!(
            late.reasons[0].starts_with("p99.9 of the receiver's lateness is 2.00 ms (limit 1.00 ms)"),
            "{late:?}"
        );
        assert_eq!(found(&[(30_000, 999_999), (20_000_000, 1)], 50_000).validity, Validity::GeneratorLimited);
        assert_eq!(found(&[(2_000_000, 1_000_000)], 20_000_000).line(), "VALID", "a tenth of what there is");
    }

    #[test]
    fn figures_that_are_the_labs_own_are_named() {
        let found = verdict(&fine(), 40_000, 50_000);
        assert_eq!(found.validity, Validity::Valid);
        assert!(found.notes[0].ends_with("in p50, p90, p99, max"), "{found:?}");
        assert!(verdict(&fine(), 10_000, 50_000).notes.is_empty());
        // Neither the sender nor the receiver alone: the two together.
        let found = |receiving_ns| {
            let (lateness, receiving, service) =
                (&constant(10_000), Some(&constant(receiving_ns)), &constant(50_000));
            judge(&fine(), Delays { lateness, receiving, service }, TOLERANCE)
        };
        assert!(found(5_000).notes[0].contains("sender and receiver"), "{:?}", found(5_000));
        assert!(found(2_000).notes.is_empty());
    }

    #[test]
    fn who_had_the_core_of_a_late_sender_is_named() {
        let why = |still_ns, waited_ns| {
            let stalls = Stalls { still_ns, waited_ns };
            let found = verdict(&Observations { stalls, ..fine() }, 2_000_000, 50_000);
            assert_eq!(found.validity, Validity::GeneratorLimited);
            found.reasons.join("; ")
        };
        let (much, little) = (why(9_000_000, Some(7_000_000)), why(90_000_000, Some(7_000_000)));
        assert!(much.contains("had its core for 7.00 ms of the 9.00 ms that it stood still: free"), "{much}");
        assert!(little.contains("for 7.00 ms only of the 90.0 ms"), "{little}");
        assert!(why(0, Some(0)).contains("so it was the kernel"), "the load itself");
        assert!(why(2_000_000, None).ends_with("; free a core, or send less"));
    }

    #[test]
    fn lateness_counts_only_where_it_moves_the_figures() {
        assert_eq!(verdict(&fine(), 2_000_000, 50_000).validity, Validity::GeneratorLimited);
        assert_eq!(verdict(&fine(), 2_000_000, 20_000_000).validity, Validity::Valid);
    }

    #[test]
    fn a_check_that_cannot_be_made_is_named() {
        assert_eq!(unchecked(true, true, Some(0.0)), Vec::<&str>::new());
        let said = |drops, arrival, steal| unchecked(drops, arrival, steal).join("; ");
        assert!(said(false, true, Some(0.0)).starts_with("what its own sockets dropped"));
        assert!(said(true, false, Some(0.0)).starts_with("how late the receiver was"));
        assert!(said(true, true, None).starts_with("what the hypervisor took"));
        assert_eq!(unchecked(false, false, None).len(), 3);
    }
}
