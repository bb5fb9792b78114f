//! Dropout with a counter-based random number generator. The mask is a function of the seed, the step, the place in the
//! network, the example and the element only. Therefore:
//!
//! - the forward and the backward pass compute the same mask, so none is stored;
//! - the mask does not depend on threads, on the order of work, or on how a batch is split;
//! - a resumed run has the same masks as an uninterrupted one.

use candle_core::{Device, Result, Tensor};

/// A place in the network where dropout applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The normalized sum of the embeddings.
    Embeddings,
    /// The attention probabilities of a block.
    Attention(usize),
    /// The output of a block's attention, before the residual.
    AttentionOutput(usize),
    /// The output of a block's feed-forward layer, before the residual.
    FeedForward(usize),
    /// The input of the classification head.
    Head,
}

impl Place {
    /// Returns a number that identifies the place. The masks depend on it.
    fn code(self) -> u64 {
        let of_block = |kind: u64, block: usize| kind + 4 * block as u64;
        match self {
            Self::Embeddings => 0,
            Self::Attention(block) => of_block(1, block),
            Self::AttentionOutput(block) => of_block(2, block),
            Self::FeedForward(block) => of_block(3, block),
            Self::Head => 4,
        }
    }
}

/// The dropout rates: the probability that a value is dropped, in [0, 1), by kind of place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// The rate at [`Place::Embeddings`].
    pub embeddings: f32,
    /// The rate at [`Place::Attention`].
    pub attention: f32,
    /// The rate at [`Place::AttentionOutput`].
    pub attention_output: f32,
    /// The rate at [`Place::FeedForward`].
    pub feed_forward: f32,
    /// The rate at [`Place::Head`].
    pub head: f32,
}

impl Rates {
    /// No dropout.
    pub const NONE: Self =
        Self { embeddings: 0.0, attention: 0.0, attention_output: 0.0, feed_forward: 0.0, head: 0.0 };
    /// The rates of the released `DistilBERT` (Sanh et al. 2019), which has no dropout at the attention's output.
    pub const DISTILBERT: Self =
        Self { embeddings: 0.1, attention: 0.1, attention_output: 0.0, feed_forward: 0.1, head: 0.2 };
    /// The rates of BERT (Devlin et al. 2019, appendix A.2).
    pub const BERT: Self =
        Self { embeddings: 0.1, attention: 0.1, attention_output: 0.1, feed_forward: 0.1, head: 0.1 };

    fn at(&self, place: Place) -> f32 {
        match place {
            Place::Embeddings => self.embeddings,
            Place::Attention(_) => self.attention,
            Place::AttentionOutput(_) => self.attention_output,
            Place::FeedForward(_) => self.feed_forward,
            Place::Head => self.head,
        }
    }
}

/// The dropout of one training step, for some of its examples.
#[derive(Debug, Clone)]
pub struct Noise {
    key: u64,
    rates: Rates,
    /// The index within the step of each sequence in the batch.
    examples: Vec<u64>,
}

impl Noise {
    /// Takes the seed, the step, the rates, and the index within the step of each sequence in the batch.
    #[must_use]
    pub fn new(seed: u64, step: u64, rates: Rates, examples: Vec<u64>) -> Self {
        Self { key: mix64(mix64(seed) ^ step), rates, examples }
    }

    /// Returns the mask at a place for the rows of all sequences; none if the rate is 0. `cu_rows` are the offsets of
    /// the sequences in the rows, `[B + 1]`.
    #[must_use]
    pub fn at(&self, place: Place, cu_rows: &[u32]) -> Option<Dropout> {
        let rate = self.rates.at(place);
        if rate <= 0.0 {
            return None;
        }
        let place_key = mix64(self.key ^ place.code());
        let rows = cu_rows.windows(2).zip(&self.examples).flat_map(|(bounds, example)| {
            let key = mix64(place_key ^ *example);
            (0..bounds[1] - bounds[0]).map(move |row| Row { key: [key as u32, (key >> 32) as u32], row })
        });
        let threshold = ((1.0 - f64::from(rate)) * f64::from(u32::MAX)) as u32;
        Some(Dropout { threshold, scale: 1.0 / (1.0 - rate), rows: rows.collect() })
    }
}

/// The dropout mask of some rows. Elements that are not dropped are scaled by `1 / (1 - rate)` to keep the mean.
#[derive(Debug, Clone)]
pub struct Dropout {
    threshold: u32,
    scale: f32,
    rows: Vec<Row>,
}

/// The generator's key for a sequence, and the row's index in the sequence.
#[derive(Debug, Clone, Copy)]
struct Row {
    key: [u32; 2],
    row: u32,
}

impl Dropout {
    /// Returns the number of rows.
    pub(super) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Checks that the mask has as many rows as `x [T, _]`.
    pub(in crate::ops) fn check(&self, x: &Tensor) -> Result<()> {
        if x.dim(0)? != self.rows() {
            candle_core::bail!("a dropout of {} rows does not fit x {:?}", self.rows(), x.dims());
        }
        Ok(())
    }

    /// Applies dropout to row `r`, given its values.
    #[inline(always)]
    pub(super) fn apply(&self, r: usize, values: &mut [f32]) {
        let Row { key, row } = self.rows[r];
        self.apply_from(key, row.wrapping_mul(values.len() as u32), values);
    }

    /// Applies dropout to the attention probabilities of the query in row `r`, for head `head` of `heads`.
    #[inline(always)]
    pub(in crate::ops) fn apply_to_head(&self, r: usize, head: usize, heads: usize, values: &mut [f32]) {
        let Row { key, row } = self.rows[r];
        let query = row.wrapping_mul(heads as u32).wrapping_add(head as u32);
        self.apply_from(key, query.wrapping_mul(values.len() as u32), values);
    }

    #[inline(always)]
    fn apply_from(&self, key: [u32; 2], first: u32, values: &mut [f32]) {
        let mut element = first;
        for value in values {
            let keep = random(key, element) <= self.threshold;
            *value = if keep { *value * self.scale } else { 0.0 };
            element = element.wrapping_add(1);
        }
    }

    /// Returns the factors of all elements, `[rows, columns]`; 0 for a dropped element.
    pub(in crate::ops) fn factors(&self, columns: usize, device: &Device) -> Result<Tensor> {
        let mut factors = vec![1.0; self.rows.len() * columns];
        for (r, row) in factors.chunks_exact_mut(columns).enumerate() {
            self.apply(r, row);
        }
        Tensor::from_vec(factors, (self.rows.len(), columns), device)
    }
}

/// Returns 32 random bits for a counter: two keyed rounds of a bijection with full avalanche.
///
/// **Source**: the constants of "lowbias32" (Wellons 2018, hash-prospector), whose bias is below that of Murmur3's.
#[inline(always)]
fn random(key: [u32; 2], counter: u32) -> u32 {
    mix32(mix32(counter ^ key[0]).wrapping_add(key[1]))
}

#[inline(always)]
fn mix32(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

/// Hashes 64 bits to 64 bits, bijectively.
///
/// **Source**: the output function of `SplitMix64` (Steele, Lea & Flood 2014).
#[must_use]
pub fn mix64(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropout(seed: u64, step: u64, place: Place, examples: Vec<u64>) -> Dropout {
        let cu_rows: Vec<u32> = (0..=examples.len() as u32).map(|s| 100 * s).collect();
        Noise::new(seed, step, Rates::BERT, examples).at(place, &cu_rows).unwrap()
    }

    fn kept(dropout: &Dropout) -> Vec<bool> {
        let factors = dropout.factors(384, &Device::Cpu).unwrap().flatten_all().unwrap();
        factors.to_vec1::<f32>().unwrap().iter().map(|factor| *factor > 0.0).collect()
    }

    #[test]
    fn a_tenth_is_dropped_everywhere() {
        let kept = kept(&dropout(1, 2, Place::Attention(3), (0..20).collect()));
        let share = |kept: &[bool]| kept.iter().filter(|kept| **kept).count() as f64 / kept.len() as f64;
        assert!((share(&kept) - 0.9).abs() < 0.002, "{}", share(&kept));
        for example in kept.chunks(38_400) {
            assert!((share(example) - 0.9).abs() < 0.008, "{}", share(example));
        }
    }

    #[test]
    fn neighbours_and_streams_are_independent() {
        // Of two independent masks, both keep 0.81 of the elements.
        let masks = [
            dropout(1, 2, Place::Attention(3), vec![0]),
            dropout(1, 2, Place::Attention(3), vec![1]),
            dropout(1, 2, Place::AttentionOutput(3), vec![0]),
            dropout(1, 3, Place::Attention(3), vec![0]),
            dropout(2, 2, Place::Attention(3), vec![0]),
        ]
        .map(|dropout| kept(&dropout));
        let both = |a: &[bool], b: &[bool]| {
            a.iter().zip(b).filter(|(a, b)| **a && **b).count() as f64 / a.len().min(b.len()) as f64
        };
        for (i, mask) in masks.iter().enumerate() {
            for other in &masks[..i] {
                assert!((both(mask, other) - 0.81).abs() < 0.01, "{}", both(mask, other));
            }
            for lag in [1, 2, 16, 384] {
                assert!((both(mask, &mask[lag..]) - 0.81).abs() < 0.01, "lag {lag}: {}", both(mask, &mask[lag..]));
            }
        }
    }

    #[test]
    fn a_mask_does_not_depend_on_the_other_examples() {
        let together = kept(&dropout(1, 2, Place::Head, vec![7, 3, 9]));
        assert_eq!(together[38_400..76_800], kept(&dropout(1, 2, Place::Head, vec![3])));
    }
}
