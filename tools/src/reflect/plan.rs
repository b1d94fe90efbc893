//! What a reflector does to datagrams: by chance, but the same for the same seed, flow and sequence number.

use std::str::FromStr;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use serde::Serialize;

/// Datagrams of the same flow that overtake one that is held back, unless the plan says otherwise: RFC 4737 section 5.3
/// calls it 3-reordered then, which TCP takes for loss.
const EXTENT_DEFAULT: u32 = 3;
/// Most datagrams that may overtake one.
const EXTENT_MAX: u32 = 1_000;
/// Longest delay or stall.
const TIME_MAX_NS: u64 = 60_000_000_000;

/// A share of the datagrams, 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize)]
pub struct Share(pub f64);

impl FromStr for Share {
    type Err = String;

    /// Reads `1%`, `.5%` or `0.01`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a share; write it like 1% or 0.01");
        let (digits, unit) = text.strip_suffix('%').map_or((text, 1.0), |digits| (digits, 100.0));
        let share = digits.trim().parse::<f64>().map_err(|_| wrong())? / unit;
        if (0.0..=1.0).contains(&share) { Ok(Self(share)) } else { Err(wrong()) }
    }
}

/// Datagrams that are held back until others of their flow have overtaken them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Reorder {
    /// How many are held back.
    pub share: Share,
    /// How many of the same flow overtake each.
    pub extent: u32,
}

impl Default for Reorder {
    fn default() -> Self {
        Self { share: Share(0.0), extent: EXTENT_DEFAULT }
    }
}

impl FromStr for Reorder {
    type Err = String;

    /// Reads `1%` or `1%:5`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (share, extent) = match text.split_once(':') {
            None => (text, EXTENT_DEFAULT),
            Some((share, extent)) => {
                let wrong = || format!("{extent:?} is not a number of datagrams; use 1 to {EXTENT_MAX}");
                (share, extent.parse().map_err(|_| wrong())?)
            }
        };
        if !(1..=EXTENT_MAX).contains(&extent) {
            return Err(format!("{extent} datagrams cannot overtake one; use 1 to {EXTENT_MAX}"));
        }
        Ok(Self { share: share.parse()?, extent })
    }
}

/// How long datagrams are kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Delay {
    /// All of them, as long.
    All {
        /// How long.
        ns: u64,
    },
    /// All of them, with an exponential law.
    Exponential {
        /// How long on average.
        mean_ns: u64,
    },
    /// Some of them, as long.
    Some {
        /// How many.
        share: Share,
        /// How long.
        ns: u64,
    },
}

impl FromStr for Delay {
    type Err = String;

    /// Reads `5ms`, `exp:200us` or `1%:750ms`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None => Ok(Self::All { ns: time(text)? }),
            Some(("exp", mean)) => Ok(Self::Exponential { mean_ns: time(mean)? }),
            Some((share, ns)) => Ok(Self::Some { share: share.parse()?, ns: time(ns)? }),
        }
    }
}

/// Times in which nothing leaves, again and again; what is due then leaves at their end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Stall {
    /// How long nothing leaves.
    pub length_ns: u64,
    /// From the beginning of one to the beginning of the next.
    pub every_ns: u64,
}

impl FromStr for Stall {
    type Err = String;

    /// Reads `100ms/1s`.
    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} is not a stall; write it like 100ms/1s, for 100 ms in every second");
        let (length, every) = text.split_once('/').ok_or_else(form)?;
        let stall = Self { length_ns: time(length)?, every_ns: time(every)? };
        if stall.length_ns < stall.every_ns { Ok(stall) } else { Err(form()) }
    }
}

impl Stall {
    /// When what is due at `due_ns` may leave. The first stall begins at `start_ns`.
    fn end_of(self, start_ns: u64, due_ns: u64) -> u64 {
        let within = due_ns.saturating_sub(start_ns) % self.every_ns;
        due_ns + self.length_ns.saturating_sub(within)
    }
}

/// A time of up to a minute, in nanoseconds.
fn time(text: &str) -> Result<u64, String> {
    let time = humantime::parse_duration(text.trim())
        .map_err(|error| format!("{text:?} is not a time ({error}); write it like 5ms or 200us"))?;
    let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    if ns <= TIME_MAX_NS { Ok(ns) } else { Err(format!("{text} is longer than a minute")) }
}

/// What is done to datagrams. Of loss, duplication, reordering and corruption, at most one happens to each.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Plan {
    /// Fixes what happens to which datagram.
    pub seed: u64,
    /// Not sent back.
    pub loss: Share,
    /// Sent back twice.
    pub duplicate: Share,
    /// Sent back after later ones.
    pub reorder: Reorder,
    /// Sent back with a bit changed.
    pub corrupt: Share,
    /// Sent back later; several add up.
    pub delay: Vec<Delay>,
    /// Times in which nothing is sent back.
    pub stall: Option<Stall>,
}

/// What happens to a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Nothing.
    Pass,
    /// It is not sent back.
    Lose,
    /// It is sent back twice.
    Duplicate,
    /// It waits until others have overtaken it.
    Hold,
    /// The bit of this number, modulo those that there are, is changed.
    Corrupt(u64),
}

/// What happens to a datagram, and how long it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fate {
    /// What happens.
    pub deed: Deed,
    /// How long it is kept, by all delays.
    pub delay_ns: u64,
    /// The part of it that only a share of the datagrams has.
    pub extra_ns: u64,
}

impl Plan {
    /// Whether every datagram is sent back at once as it came.
    #[must_use]
    pub fn is_faithful(&self) -> bool {
        self.total().0 == 0.0 && self.delay.is_empty() && self.stall.is_none()
    }

    /// Refuses shares that leave less than nothing.
    ///
    /// # Errors
    /// The sum, when it is above 100 %.
    pub fn check(&self) -> Result<(), String> {
        let Share(total) = self.total();
        // The sum of decimal fractions may be a little above 1.
        if total <= 1.0 + 1e-9 {
            return Ok(());
        }
        Err(format!(
            "--loss, --duplicate, --reorder and --corrupt add up to {:.1} %, of which at most one happens to each datagram; \
             lower them to 100 % together",
            100.0 * total
        ))
    }

    fn total(&self) -> Share {
        Share(self.loss.0 + self.duplicate.0 + self.reorder.share.0 + self.corrupt.0)
    }

    /// What happens to a datagram, whenever it comes.
    #[must_use]
    pub fn fate(&self, flow: u32, seq: u64) -> Fate {
        let mut random = self.random(flow, seq);
        let deed = self.deed(&mut random);
        let (mut delay_ns, mut extra_ns) = (0, 0);
        for delay in &self.delay {
            // Drawn in any case, so that one delay does not change what another one does.
            let draw = unit(&mut random);
            match *delay {
                Delay::All { ns } => delay_ns += ns,
                // Inverse of the exponential law; 1 - draw is in (0, 1], so that the logarithm is finite.
                Delay::Exponential { mean_ns } => delay_ns += (-(1.0 - draw).ln() * mean_ns as f64) as u64,
                Delay::Some { share, ns } if draw < share.0 => extra_ns += ns,
                Delay::Some { .. } => {}
            }
        }
        Fate { deed, delay_ns: delay_ns + extra_ns, extra_ns }
    }

    fn deed(&self, random: &mut Xoshiro256PlusPlus) -> Deed {
        let (mut draw, bit) = (unit(random), random.next_u64());
        for (share, deed) in [
            (self.loss, Deed::Lose),
            (self.duplicate, Deed::Duplicate),
            (self.reorder.share, Deed::Hold),
            (self.corrupt, Deed::Corrupt(bit)),
        ] {
            if draw < share.0 {
                return deed;
            }
            draw -= share.0;
        }
        Deed::Pass
    }

    /// A generator for one datagram. The numbers go through a generator one after the other, so that neighbours have
    /// nothing in common.
    fn random(&self, flow: u32, seq: u64) -> Xoshiro256PlusPlus {
        let of_flow = Xoshiro256PlusPlus::seed_from_u64(self.seed).next_u64() ^ u64::from(flow);
        let of_datagram = Xoshiro256PlusPlus::seed_from_u64(of_flow).next_u64() ^ seq;
        Xoshiro256PlusPlus::seed_from_u64(of_datagram)
    }

    /// When what is due at `due_ns` may leave, for a reflector that runs since `start_ns`.
    #[must_use]
    pub fn leaves_at(&self, start_ns: u64, due_ns: u64) -> u64 {
        self.stall.map_or(due_ns, |stall| stall.end_of(start_ns, due_ns))
    }
}

/// Uniform in [0, 1) with 53 random bits.
fn unit(random: &mut Xoshiro256PlusPlus) -> f64 {
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read_and_what_is_wrong_is_answered_with_what_is_right() {
        assert_eq!(("1%".parse(), ".5%".parse()), (Ok(Share(0.01)), Ok(Share(0.005))));
        assert_eq!("0.25".parse(), Ok(Share(0.25)));
        assert_eq!("2%".parse(), Ok(Reorder { share: Share(0.02), extent: 3 }));
        assert_eq!("2%:1".parse(), Ok(Reorder { share: Share(0.02), extent: 1 }));
        assert_eq!("5ms".parse(), Ok(Delay::All { ns: 5_000_000 }));
        assert_eq!("exp:200us".parse(), Ok(Delay::Exponential { mean_ns: 200_000 }));
        assert_eq!("1%:2s".parse(), Ok(Delay::Some { share: Share(0.01), ns: 2_000_000_000 }));
        let stall = Stall { length_ns: 100_000_000, every_ns: 1_000_000_000 };
        assert_eq!("100ms/1s".parse(), Ok(stall));
        for (error, fix) in [
            ("101%".parse::<Share>().unwrap_err(), "1%"),
            ("-1%".parse::<Share>().unwrap_err(), "0.01"),
            ("nan".parse::<Share>().unwrap_err(), "0.01"),
            ("1%:0".parse::<Reorder>().unwrap_err(), "1 to 1000"),
            ("5".parse::<Delay>().unwrap_err(), "5ms"),
            ("1h".parse::<Delay>().unwrap_err(), "minute"),
            ("1s/100ms".parse::<Stall>().unwrap_err(), "100ms/1s"),
            ("100ms".parse::<Stall>().unwrap_err(), "100ms/1s"),
        ] {
            assert!(error.contains(fix), "{error}");
        }
        let plan = Plan { loss: Share(0.7), duplicate: Share(0.4), ..Plan::default() };
        assert!(plan.check().unwrap_err().contains("110.0 %"));
        assert!(Plan { loss: Share(1.0), ..Plan::default() }.check().is_ok());
    }

    #[test]
    fn shares_are_kept_in_one_flow_and_over_many_and_neighbours_are_independent() {
        let plan = Plan {
            seed: 7,
            loss: "3%".parse().unwrap(),
            duplicate: "5%".parse().unwrap(),
            reorder: "2%".parse().unwrap(),
            corrupt: "10%".parse().unwrap(),
            delay: vec!["5%:1ms".parse().unwrap(), "exp:1ms".parse().unwrap()],
            ..Plan::default()
        };
        for place in [|index| (3, index), |index| (index as u32, 3)] {
            let fates: Vec<Fate> = (0..100_000).map(place).map(|(flow, seq)| plan.fate(flow, seq)).collect();
            let count = |is: fn(&Fate) -> bool| fates.iter().filter(|fate| is(fate)).count() as f64;
            // Four standard errors of a share of 10 % of 100,000 are 380.
            for (found, expected) in [
                (count(|fate| fate.deed == Deed::Lose), 3_000.0),
                (count(|fate| fate.deed == Deed::Duplicate), 5_000.0),
                (count(|fate| fate.deed == Deed::Hold), 2_000.0),
                (count(|fate| matches!(fate.deed, Deed::Corrupt(_))), 10_000.0),
                (count(|fate| fate.extra_ns > 0), 5_000.0),
            ] {
                assert!((found - expected).abs() < 380.0, "{found} for {expected}");
            }
            let mean = fates.iter().map(|fate| (fate.delay_ns - fate.extra_ns) as f64).sum::<f64>() / 1e5;
            assert!((mean / 1e6 - 1.0).abs() < 0.02, "{mean}");
            let pairs = fates.windows(2).filter(|pair| pair.iter().all(|fate| fate.deed == Deed::Duplicate));
            // 250 expected.
            assert!((180..320).contains(&pairs.count()));
        }
        let before = plan.fate(0, 1);
        assert_ne!(before, Plan { seed: 8, ..plan }.fate(0, 1));
    }

    #[test]
    fn nothing_leaves_in_a_stall_and_nothing_is_touched_outside() {
        let plan = Plan { stall: Some("100ms/1s".parse().unwrap()), ..Plan::default() };
        let leaves = |due_ms: u64| plan.leaves_at(5_000_000_000, due_ms * 1_000_000) / 1_000_000;
        assert_eq!([5_000, 5_050, 5_100, 5_999].map(leaves), [5_100, 5_100, 5_100, 5_999]);
        assert_eq!([6_000, 6_050, 6_099, 6_100].map(leaves), [6_100, 6_100, 6_100, 6_100]);
        assert_eq!([6_101, 6_999, 7_001].map(leaves), [6_101, 6_999, 7_100]);
    }
}
