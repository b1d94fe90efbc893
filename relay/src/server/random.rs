//! Unpredictable numbers from one seed: relayed ports, reservation tokens and nonce keys must not be guessable
//! (CVE-2025-69217 was a relay whose were), and tests need them repeatable.

use ring::hmac;

/// HMAC-SHA256 of a counter under the seed.
#[derive(Debug)]
pub struct Random {
    key: hmac::Key,
    counter: u64,
    block: [u8; 32],
    used: usize,
}

impl Random {
    /// A generator whose output is as unpredictable as its seed.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, seed), counter: 0, block: [0; 32], used: 32 }
    }

    /// The next `N` bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        for byte in &mut out {
            if self.used == self.block.len() {
                self.block.copy_from_slice(hmac::sign(&self.key, &self.counter.to_be_bytes()).as_ref());
                self.counter += 1;
                self.used = 0;
            }
            *byte = self.block[self.used];
            self.used += 1;
        }
        out
    }

    /// A number below `bound`; the bias is at most `bound` / 2^64.
    ///
    /// # Panics
    /// When `bound` is zero.
    pub fn below(&mut self, bound: u32) -> u32 {
        (u64::from_be_bytes(self.bytes()) % u64::from(bound)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_numbers_and_another_seed_others() {
        let draw = |seed: u8| {
            let mut random = Random::from_seed(&[seed; 32]);
            (random.bytes::<40>(), random.below(10))
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1).0, draw(2).0);
        assert_ne!(draw(1).0[..8], draw(1).0[32..]);
        assert!(draw(1).1 < 10);
    }
}
