//! The randomness of a run: one generator a concern, each forked by label from the seed.
//!
//! A label names what is drawn for (`"workload"`, `"schedule"`, ..), so that a new draw in one
//! concern moves nothing in another. Probabilities are integers. What is drawn here never reaches a
//! trace as a seed: traces spell out what was drawn.

use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// A deterministic generator, the same on every machine.
#[derive(Clone, Debug)]
#[must_use]
pub struct Prng {
    origin: u64,
    stream: ChaCha8Rng,
}

impl Prng {
    /// The generator that `seed` stands for.
    pub fn from_seed(seed: u64) -> Self {
        Self::at(seed, "")
    }

    /// A generator for the concern `label`: a function of the seed and of the labels that lead here,
    /// not of what was drawn before.
    pub fn fork(&self, label: &str) -> Self {
        Self::at(self.origin, label)
    }

    /// A generator for member `index` of the concern `label`.
    pub fn fork_indexed(&self, label: &str, index: u64) -> Self {
        Self::at(Self::at(self.origin, label).origin, &index.to_string())
    }

    fn at(origin: u64, label: &str) -> Self {
        let mut key = [0; 32];
        let low = xxh3_128_with_seed(label.as_bytes(), origin);
        let high = xxh3_128_with_seed(&low.to_le_bytes(), origin);
        key[..16].copy_from_slice(&low.to_le_bytes());
        key[16..].copy_from_slice(&high.to_le_bytes());
        let mut stream = ChaCha8Rng::from_seed(key);
        Self {
            origin: stream.next_u64(),
            stream,
        }
    }

    /// Any number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.stream.random_range(0..bound)
    }

    /// Any number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        self.stream.random_range(low..=high)
    }

    /// Any index into something of `len` members, which is not empty.
    pub fn index(&mut self, len: usize) -> usize {
        let bound = u64::try_from(len).expect("a length fits 64 bits");
        usize::try_from(self.below(bound)).expect("less than a length")
    }

    /// Any member of `members`, which is not empty.
    pub fn pick<'a, T>(&mut self, members: &'a [T]) -> &'a T {
        &members[self.index(members.len())]
    }

    /// True in `numerator` cases of `denominator`.
    pub fn chance(&mut self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }

    /// An index, each drawn in proportion to its weight; at least one weight is not 0.
    pub fn weighted(&mut self, weights: &[u64]) -> usize {
        let mut ticket = self.below(weights.iter().sum());
        for (index, &weight) in weights.iter().enumerate() {
            if ticket < weight {
                return index;
            }
            ticket -= weight;
        }
        unreachable!("the ticket is less than the sum of the weights")
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.stream.next_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_in_one_concern_moves_nothing_in_another() {
        let root = Prng::from_seed(7);
        let mut workload = root.fork("workload");
        let expected = root.fork("schedule").bits();
        workload.bits();
        assert_eq!(root.fork("schedule").bits(), expected);
        assert_ne!(root.fork("workload").bits(), expected);
    }

    #[test]
    fn members_of_a_concern_differ() {
        let root = Prng::from_seed(7);
        assert_ne!(
            root.fork_indexed("run", 0).bits(),
            root.fork_indexed("run", 1).bits()
        );
    }

    #[test]
    fn seeds_differ() {
        assert_ne!(Prng::from_seed(1).bits(), Prng::from_seed(2).bits());
    }

    #[test]
    fn the_stream_of_a_seed_never_changes() {
        let mut prng = Prng::from_seed(1).fork("workload");
        assert_eq!(
            [prng.below(1000), prng.below(1000), prng.below(1000)],
            [336, 842, 421]
        );
    }

    #[test]
    fn weights_of_zero_are_never_drawn() {
        let mut prng = Prng::from_seed(3);
        let mut seen = [0; 3];
        for _ in 0..1000 {
            seen[prng.weighted(&[1, 0, 3])] += 1;
        }
        assert_eq!(seen[1], 0);
        assert!(seen[0] > 150 && seen[0] < 350, "{seen:?}");
    }
}
