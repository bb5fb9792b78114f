//! The CPU kernel of the embeddings.

use pulp::Simd;

use super::Operator;
use super::elementwise::{add, layer_norm};

/// Computes the normalized sum of each token's embeddings, `[T, D]`, and the factor that each row was scaled by, `[T]`.
///
/// **Source**: Devlin et al. 2019, figure 2.
pub struct Embed<'a> {
    /// Each table `[_, D]` with the ids `[T]` in it, in the order in which they are added.
    pub tables: &'a [(&'a [f32], &'a [u32])],
    /// The weight of the layer norm, `[D]`.
    pub weight: &'a [f32],
    /// The bias of the layer norm, `[D]`.
    pub bias: &'a [f32],
    pub eps: f32,
}

impl Operator for Embed<'_> {
    type Output = (Vec<f32>, Vec<f32>);

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, _: S) -> (Vec<f32>, Vec<f32>) {
        let Self { tables, weight, bias, eps } = self;
        let Some(((words, input_ids), others)) = tables.split_first() else { return (Vec::new(), Vec::new()) };
        let dim = weight.len();
        let entry = |id: u32| id as usize * dim..(id as usize + 1) * dim;
        let mut out = Vec::with_capacity(input_ids.len() * dim);
        let mut scales = Vec::with_capacity(input_ids.len());
        for (t, id) in input_ids.iter().enumerate() {
            let row_start = out.len();
            out.extend_from_slice(&words[entry(*id)]);
            let row = &mut out[row_start..];
            for (table, ids) in others {
                add(row, &table[entry(ids[t])]);
            }
            scales.push(layer_norm(row, weight, bias, eps));
        }
        (out, scales)
    }
}
