//! A set of ports: one bit each, so that a look-up costs the same for any set.

use std::fmt;
use std::ops::RangeInclusive;

/// A set of ports. An empty one takes no memory.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PortSet(Option<Box<[u64; 1024]>>);

impl PortSet {
    /// The set of all ports in these ranges.
    #[must_use]
    pub fn of(ranges: &[RangeInclusive<u16>]) -> Self {
        let mut set = Self::default();
        for port in ranges.iter().cloned().flatten() {
            let bits = set.0.get_or_insert_with(|| Box::new([0; 1024]));
            bits[usize::from(port) / 64] |= 1 << (port % 64);
        }
        set
    }

    /// Whether a port is in it.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0.as_ref().is_some_and(|bits| bits[usize::from(port) / 64] & 1 << (port % 64) != 0)
    }
}

impl PortSet {
    /// The ranges of ports in it, in order.
    fn ranges(&self) -> Vec<(u16, u16)> {
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for port in (0..=u16::MAX).filter(|&port| self.contains(port)) {
            match ranges.last_mut().filter(|(_, high)| high.checked_add(1) == Some(port)) {
                Some((_, high)) => *high = port,
                None => ranges.push((port, port)),
            }
        }
        ranges
    }
}

/// As flags and files have it.
impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self.ranges();
        if ranges.is_empty() {
            return f.write_str("none");
        }
        for (index, &(low, high)) in ranges.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match low == high {
                true => write!(f, "{comma}{low}")?,
                false => write!(f, "{comma}{low}-{high}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count: u32 = self.0.iter().flat_map(|bits| bits.iter()).map(|word| word.count_ones()).sum();
        write!(f, "{count} ports")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_its_ranges_hold_and_nothing_else() {
        let set = PortSet::of(&[1..=442, 444..=1023, 65_535..=65_535]);
        for port in 0..=u16::MAX {
            let expected = port != 0 && port != 443 && port < 1024 || port == u16::MAX;
            assert_eq!(set.contains(port), expected, "{port}");
        }
        assert!(!PortSet::default().contains(1));
        assert_eq!(set.to_string(), "1-442,444-1023,65535");
        assert_eq!(PortSet::default().to_string(), "none");
    }
}
