//! The CPU kernel of the embeddings.

use pulp::Simd;

use super::Operator;
use super::elementwise::{add, layer_norm};

/// The sum of each token's embeddings, normalised, and what each was scaled with.
///
/// Shapes: `input_ids`, `position_ids` `[T]`, tables `[_, D]` → `[T, D]`, `[T]`; `token_types` holds the ids and their table.
/// Source: Devlin et al. 2019, figure 2.
pub(crate) struct Embed<'a> {
    pub(crate) input_ids: &'a [u32],
    pub(crate) position_ids: &'a [u32],
    pub(crate) tables: Tables<'a>,
}

/// What [`Embed`] adds up, and the normalisation `[D]` after it.
pub(crate) struct Tables<'a> {
    pub(crate) words: &'a [f32],
    pub(crate) positions: &'a [f32],
    pub(crate) token_types: Option<(&'a [u32], &'a [f32])>,
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) eps: f32,
}

impl Operator for Embed<'_> {
    type Output = (Vec<f32>, Vec<f32>);

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, _: S) -> (Vec<f32>, Vec<f32>) {
        let Self { input_ids, position_ids, tables } = self;
        let dim = tables.weight.len();
        let entry = |id: u32| id as usize * dim..(id as usize + 1) * dim;
        let mut out = Vec::with_capacity(input_ids.len() * dim);
        let mut scales = Vec::with_capacity(input_ids.len());
        for (t, (&id, &position)) in input_ids.iter().zip(position_ids).enumerate() {
            let row_start = out.len();
            out.extend_from_slice(&tables.words[entry(id)]);
            let row = &mut out[row_start..];
            // PyTorch adds the token types before the positions; the order decides the last bit.
            if let Some((ids, table)) = tables.token_types {
                add(row, &table[entry(ids[t])]);
            }
            add(row, &tables.positions[entry(position)]);
            scales.push(layer_norm(row, tables.weight, tables.bias, tables.eps));
        }
        (out, scales)
    }
}
