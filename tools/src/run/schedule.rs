//! When each datagram leaves, how long it is and on which flow: fixed by the seed before the run starts.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use super::sizes::Share;
use super::spec::{Arrivals, RunSpec};
use super::trace::Point;

/// One datagram of a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Datagram {
    /// Nanoseconds since the start of the phase.
    pub due_ns: u64,
    /// UDP payload in bytes.
    pub size: usize,
}

/// Datagrams of one flow that leave together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Burst<'a> {
    /// Index of the flow.
    pub flow: u32,
    /// In order of time; at least one. They leave when the last of them is due: a superpacket carries nothing before its
    /// time.
    pub datagrams: &'a [Datagram],
}

impl Burst<'_> {
    /// When it leaves, in nanoseconds since the start of the phase.
    #[must_use]
    pub fn leave_ns(&self) -> u64 {
        self.datagrams.last().map_or(0, |datagram| datagram.due_ns)
    }
}

/// The bursts of one phase in order of time.
#[derive(Clone, Debug)]
pub struct Schedule<'a> {
    times: Times<'a>,
    random: Xoshiro256PlusPlus,
    /// Of its own, so that the same seed gives the same times whatever the sizes are.
    random_sizes: Xoshiro256PlusPlus,
    /// Whether flows are drawn; else they take turns.
    draws_flows: bool,
    end_ns: f64,
    flows: u32,
    next_flow: u32,
    burst: u32,
    gather: u32,
    size: usize,
    mix: &'a [Share],
    weights: u64,
    /// Whether all datagrams of a burst have one size, which a superpacket needs.
    equal: bool,
    datagrams: Vec<Datagram>,
}

/// The times at which something is due, in nanoseconds. Floats, so that equal gaps do not add up their rounding.
#[derive(Clone, Debug)]
enum Times<'a> {
    Periodic {
        next_ns: f64,
        gap_ns: f64,
    },
    Poisson {
        next_ns: f64,
        gap_ns: f64,
    },
    /// Poisson in a time that stands still while the source is silent: `busy_ns` counts only time in which it sends.
    OnOff {
        busy_ns: f64,
        gap_ns: f64,
        on_ns: f64,
        off_ns: f64,
    },
    /// The points again and again.
    Trace {
        points: &'a [Point],
        next: usize,
        round_ns: f64,
        start_ns: f64,
    },
}

impl Times<'_> {
    /// When the next is due, and its size where the law says so.
    fn peek(&self) -> (f64, Option<usize>) {
        match self {
            Self::Periodic { next_ns, .. } | Self::Poisson { next_ns, .. } => (*next_ns, None),
            Self::OnOff { busy_ns, on_ns, off_ns, .. } => {
                let rounds = (busy_ns / on_ns).floor();
                (busy_ns + rounds * off_ns, None)
            }
            Self::Trace { points, next, start_ns, .. } => {
                let point = points[*next];
                (start_ns + point.due_ns as f64, point.size)
            }
        }
    }

    fn advance(&mut self, random: &mut Xoshiro256PlusPlus) {
        match self {
            Self::Periodic { next_ns, gap_ns } => *next_ns += *gap_ns,
            Self::Poisson { next_ns, gap_ns } => *next_ns += exponential(random) * *gap_ns,
            Self::OnOff { busy_ns, gap_ns, .. } => *busy_ns += exponential(random) * *gap_ns,
            Self::Trace { points, next, round_ns, start_ns } => {
                *next += 1;
                if *next == points.len() {
                    *next = 0;
                    *start_ns += *round_ns;
                }
            }
        }
    }
}

impl<'a> Schedule<'a> {
    /// The schedule of the warm-up (`stream` 0) or of the measured phase (`stream` 1), lasting `length_ns`.
    ///
    /// # Panics
    /// When `spec` asks for a trace that was not loaded: [`super::run`] does that.
    #[must_use]
    pub fn new(spec: &'a RunSpec, stream: u64, length_ns: u64) -> Self {
        let gap_ns = 1e9 * f64::from(spec.burst) / spec.rate_pps;
        let mut random = Xoshiro256PlusPlus::seed_from_u64(spec.seed);
        for _ in 0..stream {
            random.jump();
        }
        let mut random_sizes = random.clone();
        random_sizes.long_jump();
        let mut times = match spec.arrivals {
            Arrivals::Periodic => Times::Periodic { next_ns: 0.0, gap_ns },
            Arrivals::Poisson => Times::Poisson { next_ns: 0.0, gap_ns },
            Arrivals::OnOff { on, off } => {
                let (on_ns, off_ns) = (on.as_nanos() as f64, off.as_nanos() as f64);
                // The rate is the mean over all time, so that while it sends it sends faster.
                Times::OnOff { busy_ns: 0.0, gap_ns: gap_ns * on_ns / (on_ns + off_ns), on_ns, off_ns }
            }
            Arrivals::Trace => {
                let trace =
                    spec.trace.as_ref().and_then(|trace| trace.points()).expect("the trace is loaded");
                let round_ns = trace.round_ns() as f64;
                Times::Trace { points: trace.list(), next: 0, round_ns, start_ns: 0.0 }
            }
        };
        let draws_flows = matches!(spec.arrivals, Arrivals::Poisson | Arrivals::OnOff { .. });
        if draws_flows {
            // Not all sources begin at once.
            times.advance(&mut random);
        }
        Self {
            times,
            random,
            random_sizes,
            draws_flows,
            end_ns: length_ns as f64,
            flows: spec.flows,
            next_flow: 0,
            burst: spec.burst,
            gather: spec.gather,
            size: spec.size,
            mix: &spec.mix,
            weights: spec.mix.iter().map(|share| u64::from(share.weight)).sum(),
            equal: spec.superpackets(),
            datagrams: Vec::with_capacity(spec.burst.max(spec.gather) as usize),
        }
    }

    /// How many datagrams each flow has in the whole schedule.
    #[must_use]
    pub fn count_by_flow(mut self) -> Vec<u64> {
        let mut counts = vec![0; self.flows as usize];
        while let Some(burst) = self.next_burst() {
            counts[burst.flow as usize] += burst.datagrams.len() as u64;
        }
        counts
    }

    /// The next burst, or `None` at the end.
    pub fn next_burst(&mut self) -> Option<Burst<'_>> {
        let (due, _) = self.times.peek();
        if due >= self.end_ns {
            return None;
        }
        let flow = self.flow();
        self.datagrams.clear();
        let first = self.take();
        self.datagrams.push(first);
        for _ in 1..self.burst {
            let size = if self.equal { first.size } else { self.draw_size(None) };
            self.datagrams.push(Datagram { due_ns: first.due_ns, size });
        }
        for _ in 1..self.gather {
            if self.times.peek().0 >= self.end_ns {
                break;
            }
            let next = self.take();
            self.datagrams.push(Datagram { size: first.size, ..next });
        }
        Some(Burst { flow, datagrams: &self.datagrams })
    }

    /// Takes what is due next.
    fn take(&mut self) -> Datagram {
        let (due, said) = self.times.peek();
        let size = self.draw_size(said);
        self.times.advance(&mut self.random);
        Datagram { due_ns: due as u64, size }
    }

    fn draw_size(&mut self, said: Option<usize>) -> usize {
        if let Some(size) = said {
            return size;
        }
        if self.weights == 0 {
            return self.size;
        }
        let mut ticket = (unit(&mut self.random_sizes) * self.weights as f64) as u64;
        for share in self.mix {
            match ticket.checked_sub(u64::from(share.weight)) {
                Some(rest) => ticket = rest,
                None => return share.size,
            }
        }
        self.size
    }

    /// Random arrivals choose a flow at random, so that each flow is as random as all together; others go round.
    fn flow(&mut self) -> u32 {
        if self.draws_flows {
            return (unit(&mut self.random) * f64::from(self.flows)) as u32;
        }
        let flow = self.next_flow;
        self.next_flow = (flow + 1) % self.flows;
        flow
    }
}

/// Tells schedules apart: a checksum over every burst of warm-up and measured phase.
#[must_use]
pub fn digest(spec: &RunSpec) -> String {
    use std::hash::{Hash as _, Hasher};
    let mut hasher = crc32fast::Hasher::new();
    for (stream, length) in [(0, spec.warmup), (1, spec.duration)] {
        let mut schedule = Schedule::new(spec, stream, length.as_nanos() as u64);
        while let Some(burst) = schedule.next_burst() {
            burst.hash(&mut hasher);
        }
    }
    format!("{:08x}", Hasher::finish(&hasher))
}

/// Uniform in [0, 1) with 53 random bits.
fn unit(random: &mut Xoshiro256PlusPlus) -> f64 {
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// By the inverse of the exponential distribution, mean 1; 1 - u is in (0, 1], so the logarithm is finite.
fn exponential(random: &mut Xoshiro256PlusPlus) -> f64 {
    -(1.0 - unit(random)).ln()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::kind::Kind;
    use super::super::trace::Trace;
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn spec(arrivals: Arrivals) -> RunSpec {
        let target = "127.0.0.1:9".parse().unwrap();
        RunSpec { rate_pps: 100_000.0, flows: 4, arrivals, ..RunSpec::new(Kind::Udp, target) }
    }

    /// Flow and datagrams of every burst.
    fn bursts(spec: &RunSpec, stream: u64, length_ns: u64) -> Vec<(u32, Vec<Datagram>)> {
        let mut schedule = Schedule::new(spec, stream, length_ns);
        let mut all = Vec::new();
        while let Some(burst) = schedule.next_burst() {
            all.push((burst.flow, burst.datagrams.to_vec()));
        }
        all
    }

    fn times(spec: &RunSpec, length_ns: u64) -> Vec<u64> {
        bursts(spec, 1, length_ns).into_iter().flat_map(|(_, all)| all).map(|one| one.due_ns).collect()
    }

    #[test]
    fn poisson_gaps_have_the_mean_and_the_spread_of_the_exponential_law() {
        let due = times(&spec(Arrivals::Poisson), 10 * SECOND);
        let gaps: Vec<f64> = due.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // One million gaps: the standard error of the mean is 0.1 %.
        assert!((mean / 10_000.0 - 1.0).abs() < 0.005, "{mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.01, "{variance}");
        let above_mean = gaps.iter().filter(|&&gap| gap > mean).count() as f64 / gaps.len() as f64;
        assert!((above_mean - (-1.0_f64).exp()).abs() < 0.003, "{above_mean}");
    }

    #[test]
    fn periodic_bursts_keep_the_rate_in_datagrams_and_go_round_the_flows() {
        let spec = RunSpec { burst: 8, ..spec(Arrivals::Periodic) };
        let all = bursts(&spec, 1, SECOND);
        assert_eq!(all.len(), 12_500);
        assert_eq!(all[5], (1, vec![Datagram { due_ns: 400_000, size: 200 }; 8]));
        assert_eq!(Schedule::new(&spec, 1, SECOND).count_by_flow(), [25_000; 4]);
    }

    #[test]
    fn an_on_off_source_is_silent_when_it_is_off_and_keeps_the_mean_rate() {
        let law = Arrivals::OnOff { on: Duration::from_millis(20), off: Duration::from_millis(80) };
        let due = times(&spec(law), 10 * SECOND);
        assert!(due.iter().all(|due| due % 100_000_000 < 20_000_000));
        // One million datagrams, as without pauses: the standard error is 0.1 %.
        assert!((due.len() as f64 / 1e6 - 1.0).abs() < 0.005, "{}", due.len());
        assert!(due.is_sorted());
    }

    #[test]
    fn a_trace_is_repeated_with_its_times_and_sizes() {
        let trace = Trace::parse("x", "0.0,60\n0.001,1400\n0.003\n").unwrap();
        let spec = RunSpec { trace: Some(trace), flows: 2, ..spec(Arrivals::Trace) };
        let all = bursts(&spec, 1, 9_000_000);
        // Its round is the last time and one mean gap more: 4.5 ms.
        let expected = [(0, 60), (1_000_000, 1_400), (3_000_000, 200), (4_500_000, 60), (5_500_000, 1_400)];
        for (index, (due_ns, size)) in expected.into_iter().enumerate() {
            assert_eq!(all[index], (index as u32 % 2, vec![Datagram { due_ns, size }]));
        }
        assert_eq!(all.len(), 6);
    }

    #[test]
    fn what_is_gathered_is_due_at_its_own_time_and_leaves_with_the_last() {
        let gathered = RunSpec { gather: 16, ..spec(Arrivals::Poisson) };
        let mut schedule = Schedule::new(&gathered, 1, SECOND);
        let (mut count, mut last) = (0, 0);
        while let Some(burst) = schedule.next_burst() {
            assert!(burst.datagrams.is_sorted_by_key(|one| one.due_ns));
            assert!(burst.datagrams.iter().all(|one| one.due_ns <= burst.leave_ns() && one.due_ns >= last));
            assert!(burst.datagrams.len() == 16 || SECOND - burst.leave_ns() < 1_000_000);
            (count, last) = (count + burst.datagrams.len(), burst.leave_ns());
        }
        assert!(count.abs_diff(100_000) < 2_000, "{count}");
    }

    #[test]
    fn a_mix_has_its_sizes_as_often_as_they_weigh_and_leaves_the_times_alone() {
        let mix = vec![
            Share { size: 64, weight: 7 },
            Share { size: 594, weight: 4 },
            Share { size: 1_472, weight: 1 },
        ];
        let mixed = RunSpec { mix, size: 1_472, ..spec(Arrivals::Poisson) };
        let all = bursts(&mixed, 1, 2 * SECOND);
        let count =
            |size| all.iter().filter(|(_, burst)| burst[0].size == size).count() as f64 / all.len() as f64;
        for (size, share) in [(64, 7.0 / 12.0), (594, 4.0 / 12.0), (1_472, 1.0 / 12.0)] {
            // 200,000 draws: the standard error is below 0.0012.
            assert!((count(size) - share).abs() < 0.005, "{size}: {}", count(size));
        }
        assert_eq!(times(&mixed, SECOND), times(&spec(Arrivals::Poisson), SECOND));
        let together = RunSpec { burst: 8, gso: true, ..mixed };
        assert!(
            bursts(&together, 1, SECOND)
                .iter()
                .all(|(_, burst)| burst.iter().all(|one| one.size == burst[0].size))
        );
    }

    #[test]
    fn the_seed_fixes_the_schedule_and_phases_differ() {
        let take = |seed, stream| {
            let spec = RunSpec { seed, ..spec(Arrivals::Poisson) };
            bursts(&spec, stream, SECOND / 100)
        };
        assert_eq!(take(1, 1), take(1, 1));
        assert_ne!(take(1, 1), take(2, 1));
        assert_ne!(take(1, 0), take(1, 1));
    }

    #[test]
    fn random_flows_are_used_evenly() {
        let counts = Schedule::new(&spec(Arrivals::Poisson), 1, SECOND).count_by_flow();
        assert!(counts.iter().all(|&count| count.abs_diff(25_000) < 1_000), "{counts:?}");
    }
}
