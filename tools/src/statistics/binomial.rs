//! What some of many say of the share: the exact interval of Clopper and Pearson, and the rule of three.

use super::distribution::beta_quantile;

/// Some of many, such as lost of sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proportion {
    /// How many have it.
    pub some: u64,
    /// Of how many.
    pub all: u64,
}

impl Proportion {
    /// The share; 0 of nothing.
    #[must_use]
    pub fn share(self) -> f64 {
        if self.all == 0 { 0.0 } else { self.some as f64 / self.all as f64 }
    }

    /// The interval of Clopper and Pearson for the true share, each end at `alpha` on its own (Biometrika 26, 1934).
    /// It takes the events to be independent, which losses of one burst are not: it is the least doubt there can be.
    #[must_use]
    pub fn interval(self, alpha: f64) -> (f64, f64) {
        let (some, all) = (self.some as f64, self.all as f64);
        if self.all == 0 {
            return (0.0, 1.0);
        }
        let low = if self.some == 0 { 0.0 } else { beta_quantile(some, all - some + 1.0, alpha) };
        let high =
            if self.some >= self.all { 1.0 } else { beta_quantile(some + 1.0, all - some, 1.0 - alpha) };
        (low, high)
    }

    /// The share that the true one is below with 95 % confidence when none of `all` were seen: 3 / all, which is
    /// -ln 0.05 / all rounded up.
    #[must_use]
    pub fn rule_of_three(all: u64) -> f64 {
        if all == 0 { 1.0 } else { (3.0 / all as f64).min(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_of_many_is_the_rule_of_three() {
        let none = Proportion { some: 0, all: 100_000 };
        let (low, high) = none.interval(0.05);
        let three = Proportion::rule_of_three(100_000);
        assert_eq!(low, 0.0);
        assert!(high < three && high > 0.99 * three, "{high} {three}");
        assert_eq!((Proportion::rule_of_three(0), Proportion::rule_of_three(2)), (1.0, 1.0));
    }

    #[test]
    fn all_and_nothing_have_their_ends() {
        assert_eq!(Proportion { some: 7, all: 7 }.interval(0.025).1, 1.0);
        assert_eq!(Proportion::default().interval(0.025), (0.0, 1.0));
        assert_eq!(Proportion::default().share(), 0.0);
    }
}
