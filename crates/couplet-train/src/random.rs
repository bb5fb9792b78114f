//! Random numbers as a function of a seed, a purpose and a place (an epoch, an example).
//!
//! A training run that is killed and resumed draws the same numbers, in any order of the work, because there is no
//! shared stream. The generator is implemented here rather than taken from a crate because its
//! output is part of the meaning of a seed: it must not change when a dependency is updated.

use couplet_encoder::ops::mix64;

/// Weyl increment of `SplitMix64`: 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A stream of random numbers; the n-th number is a hash of the key and n.
///
/// **Source**: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (`SplitMix64`).
#[derive(Debug, Clone)]
pub struct Random {
    key: u64,
    drawn: u64,
}

impl Random {
    /// Opens the stream for a seed, a purpose and a place; streams that differ in any of them are unrelated.
    #[must_use]
    pub fn new(seed: u64, purpose: &str, place: &[u64]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.update(&(purpose.len() as u64).to_le_bytes());
        hasher.update(purpose.as_bytes());
        for number in place {
            hasher.update(&number.to_le_bytes());
        }
        Self { key: first_u64(&hasher.finalize()), drawn: 0 }
    }

    /// Draws 64 random bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.drawn = self.drawn.wrapping_add(1);
        mix64(self.key.wrapping_add((self.drawn.wrapping_sub(1)).wrapping_mul(GOLDEN)))
    }

    /// Draws an integer from 0 to below `bound`, uniformly; 0 if `bound` is 0.
    ///
    /// **Source**: Lemire 2019, "Fast random integer generation in an interval".
    #[inline]
    pub fn below(&mut self, bound: u32) -> u32 {
        loop {
            if let Some(number) = scaled((self.next_u64() >> 32) as u32, bound) {
                return number;
            }
        }
    }

    /// Draws two numbers as [`Random::below`] does, from one step of the generator.
    #[inline]
    pub(super) fn two_below(&mut self, bound: u32) -> (u32, u32) {
        let bits = self.next_u64();
        let one = |random: &mut Self, half: u32| scaled(half, bound).unwrap_or_else(|| random.below(bound));
        let first = one(self, (bits >> 32) as u32);
        (first, one(self, bits as u32))
    }

    /// Draws a number from 0 to below 1, in steps of 2^-53.
    #[inline]
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Shuffles the items; every order is equally likely.
    ///
    /// # Panics
    /// If there are more than 2^32 - 1 items.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let bound = u32::try_from(last + 1).expect("there are fewer than 2^32 items");
            items.swap(last, self.below(bound) as usize);
        }
    }
}

/// Maps 32 random bits to a number below `bound`; none for the few values that would bias the result.
#[inline]
fn scaled(bits: u32, bound: u32) -> Option<u32> {
    let product = u64::from(bits) * u64::from(bound);
    let rest = product as u32;
    // The division is needed only if the rest is small enough to matter.
    if rest < bound && rest < bound.wrapping_neg() % bound { None } else { Some((product >> 32) as u32) }
}

/// Returns the first eight bytes of a hash as a number.
pub(super) fn first_u64(hash: &blake3::Hash) -> u64 {
    let (first, _) = hash.as_bytes().split_first_chunk::<8>().expect("a hash has 32 bytes");
    u64::from_le_bytes(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_depends_on_its_key_alone() {
        let draw = |seed, purpose, place: &[u64]| Random::new(seed, purpose, place).next_u64();
        assert_eq!(draw(1, "mask", &[2, 3]), draw(1, "mask", &[2, 3]));
        let streams = [
            draw(1, "mask", &[2, 3]),
            draw(2, "mask", &[2, 3]),
            draw(1, "order", &[2, 3]),
            draw(1, "mask", &[3, 2]),
            draw(1, "mask", &[2]),
        ];
        for (i, left) in streams.iter().enumerate() {
            assert!(streams[..i].iter().all(|right| left != right));
        }
    }

    /// The generator of Steele et al. with the seed 1234567, checked against published test vectors.
    #[test]
    fn the_numbers_are_those_of_splitmix64() {
        let mut random = Random { key: 1_234_567, drawn: 0 };
        let drawn: Vec<u64> = (0..3).map(|_| random.next_u64()).collect();
        assert_eq!(drawn, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn numbers_below_a_bound_are_equally_likely() {
        let mut random = Random::new(7, "test", &[]);
        let mut counts = [0_u32; 7];
        for _ in 0..70_000 {
            counts[random.below(7) as usize] += 1;
            let (a, b) = random.two_below(7);
            counts[a as usize] += 1;
            counts[b as usize] += 1;
        }
        // The standard deviation of a count is 161.
        assert!(counts.iter().all(|n| n.abs_diff(30_000) < 700), "{counts:?}");
        assert_eq!(random.below(1), 0);
        assert_eq!(random.below(0), 0);
        let mean = (0..10_000).map(|_| random.unit()).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.015, "{mean}");
    }

    #[test]
    fn every_order_is_equally_likely() {
        let mut counts = std::collections::BTreeMap::new();
        for i in 0..12_000 {
            let mut items = [0, 1, 2];
            Random::new(i, "test", &[]).shuffle(&mut items);
            *counts.entry(items).or_insert(0_u32) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|n| n.abs_diff(2_000) < 200), "{counts:?}");
    }
}
