//! When each datagram leaves and on which flow: fixed by the seed before the run starts.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use super::spec::{Arrivals, RunSpec};

/// Datagrams that are due at the same instant on one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Burst {
    /// Nanoseconds since the start of the phase.
    pub due_ns: u64,
    /// Index of the flow.
    pub flow: u32,
    /// How many datagrams; at least 1.
    pub datagrams: u32,
}

/// The bursts of one phase in order of time.
#[derive(Clone, Debug)]
pub struct Schedule {
    random: Xoshiro256PlusPlus,
    law: Arrivals,
    gap_ns: f64,
    /// Kept as a float so that periodic gaps do not accumulate rounding.
    next_ns: f64,
    end_ns: f64,
    flows: u32,
    next_flow: u32,
    datagrams: u32,
}

impl Schedule {
    /// The schedule of the warm-up (`stream` 0) or of the measured phase (`stream` 1), lasting `length_ns`.
    #[must_use]
    pub fn new(spec: &RunSpec, stream: u64, length_ns: u64) -> Self {
        let gap_ns = 1e9 * f64::from(spec.burst) / spec.rate_pps;
        let mut random = Xoshiro256PlusPlus::seed_from_u64(spec.seed);
        for _ in 0..stream {
            random.jump();
        }
        let mut schedule = Self {
            random,
            law: spec.arrivals,
            gap_ns,
            next_ns: 0.0,
            end_ns: length_ns as f64,
            flows: spec.flows,
            next_flow: 0,
            datagrams: spec.burst,
        };
        if spec.arrivals == Arrivals::Poisson {
            schedule.next_ns = schedule.gap();
        }
        schedule
    }

    /// How many datagrams each flow has in the whole schedule.
    #[must_use]
    pub fn count_by_flow(self) -> Vec<u64> {
        let mut counts = vec![0; self.flows as usize];
        for burst in self {
            counts[burst.flow as usize] += u64::from(burst.datagrams);
        }
        counts
    }

    fn gap(&mut self) -> f64 {
        match self.law {
            Arrivals::Periodic => self.gap_ns,
            // Inverse of the exponential distribution; 1 - u is in (0, 1], so the logarithm is finite.
            Arrivals::Poisson => -(1.0 - self.unit()).ln() * self.gap_ns,
        }
    }

    /// Uniform in [0, 1) with 53 random bits.
    fn unit(&mut self) -> f64 {
        (self.random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Poisson arrivals choose a flow at random, so that each flow is Poisson too; periodic ones go round.
    fn flow(&mut self) -> u32 {
        match self.law {
            Arrivals::Poisson => (self.unit() * f64::from(self.flows)) as u32,
            Arrivals::Periodic => {
                let flow = self.next_flow;
                self.next_flow = (flow + 1) % self.flows;
                flow
            }
        }
    }
}

/// Tells schedules apart: a checksum over every burst of warm-up and measured phase.
#[must_use]
pub fn digest(spec: &RunSpec) -> String {
    use std::hash::{Hash as _, Hasher};
    let mut hasher = crc32fast::Hasher::new();
    for (stream, length) in [(0, spec.warmup), (1, spec.duration)] {
        Schedule::new(spec, stream, length.as_nanos() as u64).for_each(|burst| burst.hash(&mut hasher));
    }
    format!("{:08x}", Hasher::finish(&hasher))
}

impl Iterator for Schedule {
    type Item = Burst;

    fn next(&mut self) -> Option<Burst> {
        if self.next_ns >= self.end_ns {
            return None;
        }
        let burst = Burst { due_ns: self.next_ns as u64, flow: self.flow(), datagrams: self.datagrams };
        self.next_ns += self.gap();
        Some(burst)
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::Kind;
    use super::*;

    fn spec(arrivals: Arrivals) -> RunSpec {
        let target = "127.0.0.1:9".parse().unwrap();
        RunSpec { rate_pps: 100_000.0, flows: 4, arrivals, ..RunSpec::new(Kind::Udp, target) }
    }

    #[test]
    fn poisson_gaps_have_the_mean_and_the_spread_of_the_exponential_law() {
        let due: Vec<u64> =
            Schedule::new(&spec(Arrivals::Poisson), 1, 10_000_000_000).map(|burst| burst.due_ns).collect();
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
        let bursts: Vec<Burst> = Schedule::new(&spec, 1, 1_000_000_000).collect();
        assert_eq!(bursts.len(), 12_500);
        assert_eq!(bursts[5], Burst { due_ns: 400_000, flow: 1, datagrams: 8 });
        assert_eq!(Schedule::new(&spec, 1, 1_000_000_000).count_by_flow(), [25_000; 4]);
    }

    #[test]
    fn the_seed_fixes_the_schedule_and_phases_differ() {
        let take = |seed, stream| {
            let spec = RunSpec { seed, ..spec(Arrivals::Poisson) };
            Schedule::new(&spec, stream, 1_000_000_000).take(100).collect::<Vec<_>>()
        };
        assert_eq!(take(1, 1), take(1, 1));
        assert_ne!(take(1, 1), take(2, 1));
        assert_ne!(take(1, 0), take(1, 1));
    }

    #[test]
    fn random_flows_are_used_evenly() {
        let counts = Schedule::new(&spec(Arrivals::Poisson), 1, 1_000_000_000).count_by_flow();
        assert!(counts.iter().all(|&count| count.abs_diff(25_000) < 1_000), "{counts:?}");
    }
}
