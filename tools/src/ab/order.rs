//! In which order the sides take their turns.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// The sides of each block, every side once in each. Every second block is the one before it in reverse (A B B A), so that
/// a drift of the machine weighs on all sides alike; the order of the first of each pair is random.
#[must_use]
pub fn order(sides: usize, blocks: u32, seed: u64) -> Vec<Vec<usize>> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut order: Vec<Vec<usize>> = Vec::new();
    for block in 0..blocks {
        let mut next: Vec<usize> = (0..sides).collect();
        match order.last() {
            Some(before) if block % 2 == 1 => next = before.iter().rev().copied().collect(),
            _ => {
                for at in (1..sides).rev() {
                    let other = (random.next_u64() % (at as u64 + 1)) as usize;
                    next.swap(at, other);
                }
            }
        }
        order.push(next);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_side_has_its_turn_in_every_block_and_pairs_of_blocks_mirror_each_other() {
        let order = order(3, 6, 7);
        for block in &order {
            let mut sides = block.clone();
            sides.sort_unstable();
            assert_eq!(sides, [0, 1, 2]);
        }
        for pair in order.chunks(2) {
            let mirrored: Vec<usize> = pair[0].iter().rev().copied().collect();
            assert_eq!(mirrored, pair[1]);
        }
    }

    #[test]
    fn the_seed_decides_and_both_sides_come_first_about_as_often() {
        assert_eq!(order(2, 20, 1), order(2, 20, 1));
        assert_ne!(order(2, 20, 1), order(2, 20, 2));
        let first = order(2, 400, 3).iter().step_by(2).filter(|block| block[0] == 0).count();
        assert!((70..=130).contains(&first), "{first} of 200");
    }
}
