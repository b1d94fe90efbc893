//! Figures with units, read and written: rates, times, shares.

use std::str::FromStr;

/// A rate as given on the command line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// Datagrams per second.
    Packets(f64),
    /// Bits of UDP payload per second.
    Bits(f64),
}

impl Rate {
    /// Datagrams per second when each has `size` bytes of payload in the mean.
    #[must_use]
    pub fn packets_per_second(self, size: f64) -> f64 {
        match self {
            Self::Packets(rate) => rate,
            Self::Bits(rate) => rate / (8.0 * size.max(1.0)),
        }
    }
}

impl FromStr for Rate {
    type Err = String;

    /// Reads `20kpps`, `1.5Mpps`, `500pps`, `500`, `100Mbit`, `2.5Gbit`. Prefixes are decimal.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a rate; write it like 20kpps, 500pps, 100Mbit or 2.5Gbit");
        let lower = text.to_ascii_lowercase();
        let (rest, bits) = if let Some(rest) = lower.strip_suffix("bit/s").or(lower.strip_suffix("bit")) {
            (rest, true)
        } else {
            (lower.strip_suffix("pps").unwrap_or(&lower), false)
        };
        let (digits, factor) = match rest.char_indices().next_back() {
            Some((at, 'k')) => (&rest[..at], 1e3),
            Some((at, 'm')) => (&rest[..at], 1e6),
            Some((at, 'g')) => (&rest[..at], 1e9),
            _ => (rest, 1.0),
        };
        let number: f64 = digits.trim().parse().map_err(|_| wrong())?;
        if !(number.is_finite() && number > 0.0) {
            return Err(wrong());
        }
        Ok(if bits { Self::Bits(number * factor) } else { Self::Packets(number * factor) })
    }
}

/// A number of things: `1 run`, `2 runs`.
#[must_use]
pub fn count(number: impl Into<u64>, thing: &str) -> String {
    let number = number.into();
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// A rate with a prefix: `20.0 kpps`.
#[must_use]
pub fn rate(packets_per_second: f64) -> String {
    match packets_per_second {
        rate if rate >= 1e6 => format!("{:.2} Mpps", rate / 1e6),
        rate if rate >= 1e3 => format!("{:.2} kpps", rate / 1e3),
        rate => format!("{rate:.1} pps"),
    }
}

/// Bits per second with a prefix: `20.0 Mbit/s`.
#[must_use]
pub fn bits(per_second: f64) -> String {
    match per_second {
        rate if rate >= 1e9 => format!("{:.2} Gbit/s", rate / 1e9),
        rate if rate >= 1e6 => format!("{:.2} Mbit/s", rate / 1e6),
        rate => format!("{:.1} kbit/s", rate / 1e3),
    }
}

/// A share of one as a person writes it: `5%`, `0.5 %`, `0.05`.
///
/// # Errors
/// What is wrong with it, with a right one.
pub fn parse_share(text: &str) -> Result<f64, String> {
    let (digits, factor) = match text.trim().strip_suffix('%') {
        Some(percent) => (percent.trim(), 0.01),
        None => (text.trim(), 1.0),
    };
    let share =
        digits.parse().ok().map(|number: f64| number * factor).filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("{text:?} is not a share; write it like 5% or 0.05"))
}

/// A time with three significant digits: `61.2 µs`.
#[must_use]
pub fn nanoseconds(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    match value {
        value if value < 9.995 => format!("{value:.2} {unit}"),
        value if value < 99.95 => format!("{value:.1} {unit}"),
        value => format!("{value:.0} {unit}"),
    }
}

/// A share as a percentage, or as a power of ten where that would be mostly zeros.
#[must_use]
pub fn share(share: f64) -> String {
    if share == 0.0 || share >= 1e-4 { format!("{:.2} %", 100.0 * share) } else { format!("{share:.1e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_with_their_unit() {
        for (text, rate) in [
            ("20kpps", Rate::Packets(20_000.0)),
            ("1.5Mpps", Rate::Packets(1.5e6)),
            ("500", Rate::Packets(500.0)),
            ("100Mbit", Rate::Bits(1e8)),
            ("2.5 Gbit/s", Rate::Bits(2.5e9)),
        ] {
            assert_eq!(text.parse(), Ok(rate), "{text}");
        }
        assert_eq!(Rate::Bits(8e6).packets_per_second(1_000.0), 1_000.0);
    }

    #[test]
    fn a_wrong_rate_is_answered_with_a_right_one() {
        for text in ["", "fast", "-5kpps", "0", "20kbytes", "inf", "k", "µpps", "20 µ"] {
            let error = text.parse::<Rate>().unwrap_err();
            assert!(error.contains("20kpps"), "{text}: {error}");
        }
    }

    #[test]
    fn shares_are_read_as_percent_or_as_they_are() {
        assert_eq!(
            [parse_share("5%"), parse_share("0.5 %"), parse_share("1")],
            [Ok(0.05), Ok(0.005), Ok(1.0)]
        );
        for text in ["", "%", "101%", "-1%", "nan", "much"] {
            assert!(parse_share(text).unwrap_err().contains("5%"), "{text}");
        }
        assert_eq!([bits(12_000.0), bits(2e8), bits(1.5e9)], ["12.0 kbit/s", "200.00 Mbit/s", "1.50 Gbit/s"]);
    }

    #[test]
    fn figures_have_three_digits_and_a_unit() {
        let times = [999, 1_000, 9_994, 61_234, 999_499, 1_500_000, 2_000_000_000].map(nanoseconds);
        assert_eq!(times, ["999 ns", "1.00 µs", "9.99 µs", "61.2 µs", "999 µs", "1.50 ms", "2.00 s"]);
        assert_eq!([share(0.0), share(0.125), share(2e-6)], ["0.00 %", "12.50 %", "2.0e-6"]);
        assert_eq!(
            [count(0_u32, "run"), count(1_u32, "run"), count(2_u32, "run")],
            ["0 runs", "1 run", "2 runs"]
        );
        assert_eq!([rate(5.0), rate(20_000.0), rate(2.5e6)], ["5.0 pps", "20.00 kpps", "2.50 Mpps"]);
    }
}
