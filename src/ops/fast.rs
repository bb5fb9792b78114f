//! The CPU kernels: each operator fused over a block of rows that stays in the cache.
//!
//! Everything here runs on the calling thread and on plain slices. [`pulp`] picks the instruction
//! set at run time and inlines the bodies below under it, so one binary uses AVX-512 where it is
//! present and AVX2 or NEON elsewhere.

use std::cell::RefCell;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::elementwise::{gelu, layer_norm, softmax};
use super::gemm::{multiply, pack_columns, pack_panel_rows, pack_rows, tile_columns};

/// Rows whose products and epilogue are finished before the next block begins; a multiple of every
/// tile height. 96 rows of a 384 x 1536 layer are 0.7 MB: they stay in a second-level cache of 1 MB.
const ROW_BLOCK: usize = 96;

/// Query rows whose attention scores are held at a time, so that long sequences stay in the cache too.
const QUERY_BLOCK: usize = 48;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Buffers that a thread keeps from one call to the next.
#[derive(Default)]
struct Scratch {
    tiles: Vec<f32>,
    block: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
}

/// The best instruction set of this machine that has fused multiply-add; none on a machine without it.
pub(super) fn detect() -> Option<Arch> {
    match Arch::new() {
        Arch::Scalar => None,
        arch => Some(arch),
    }
}

/// A fully connected layer `[in] → [out]` with its weight as panels for [`multiply`].
#[derive(Debug, Clone)]
pub(super) struct Layer {
    panels: Vec<f32>,
    bias: Vec<f32>,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

impl Layer {
    /// Packs a row-major weight `[out, in]` for the instruction set that will read it.
    pub(super) fn pack(arch: Arch, weight: &[f32], bias: &[f32]) -> Self {
        let outputs = bias.len();
        let inputs = weight.len() / outputs;
        debug_assert_eq!(weight.len(), outputs * inputs);
        let mut panels = Vec::new();
        pack_columns(&mut panels, weight.chunks_exact(inputs), inputs, arch.dispatch(PanelWidth));
        Self { panels, bias: bias.to_vec(), inputs, outputs }
    }
}

struct PanelWidth;

impl WithSimd for PanelWidth {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        tile_columns::<S>()
    }
}

/// What happens to a row of products after its bias was added.
#[derive(Clone, Copy)]
pub(super) enum Epilogue<'a> {
    None,
    Gelu,
    /// `LayerNorm(row + residual)`, the residual `[rows, out]`.
    AddNorm {
        residual: &'a [f32],
        weight: &'a [f32],
        bias: &'a [f32],
        eps: f32,
    },
}

/// `x [T, in] · weightᵀ + bias`, then the epilogue, for several layers of the same number of inputs.
pub(super) struct Linear<'a> {
    pub(super) x: &'a [f32],
    pub(super) layers: &'a [&'a Layer],
    pub(super) epilogue: Epilogue<'a>,
}

impl WithSimd for Linear<'_> {
    /// One product a layer.
    type Output = Vec<Vec<f32>>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<Vec<f32>> {
        let Self { x, layers, epilogue } = self;
        let Some(inputs) = layers.first().map(|layer| layer.inputs) else { return Vec::new() };
        let rows = x.len() / inputs;
        let mut outs: Vec<Vec<f32>> = layers.iter().map(|layer| Vec::with_capacity(rows * layer.outputs)).collect();
        // Not `with_borrow_mut`: its closure would be compiled without this function's instruction set.
        let mut scratch = SCRATCH.take();
        let Scratch { tiles, block, .. } = &mut scratch;
        for (b, x) in x.chunks(ROW_BLOCK * inputs).enumerate() {
            let rows = x.len() / inputs;
            pack_rows::<S>(tiles, x.chunks_exact(inputs), inputs, 1.0);
            for (layer, out) in layers.iter().zip(&mut outs) {
                let n = layer.outputs;
                block.resize(block.len().max(rows * n), 0.0);
                let block = &mut block[..rows * n];
                multiply(simd, tiles, rows, inputs, &layer.panels, n, block, n);
                for (r, row) in block.chunks_exact_mut(n).enumerate() {
                    finish_row(row, &layer.bias, epilogue, b * ROW_BLOCK + r);
                }
                out.extend_from_slice(block);
            }
        }
        SCRATCH.set(scratch);
        outs
    }
}

#[inline(always)]
fn finish_row(row: &mut [f32], bias: &[f32], epilogue: Epilogue, index: usize) {
    match epilogue {
        Epilogue::None => {
            for (x, b) in row.iter_mut().zip(bias) {
                *x += *b;
            }
        }
        Epilogue::Gelu => {
            for (x, b) in row.iter_mut().zip(bias) {
                *x = gelu(*x + *b);
            }
        }
        Epilogue::AddNorm { residual, weight, bias: shift, eps } => {
            let residual = &residual[index * row.len()..][..row.len()];
            for ((x, b), r) in row.iter_mut().zip(bias).zip(residual) {
                *x += *b + *r;
            }
            layer_norm(row, weight, shift, eps);
        }
    }
}

/// Softmax attention of each sequence's queries over its own keys and values, head by head.
///
/// Shapes: `query [Tq, D]`, `key`, `value` `[T, D]` → `[Tq, D]`; `cu_queries` and `cu_keys` bound the
/// sequences in the rows of queries and of keys.
/// Source: Vaswani et al. 2017, section 3.2.
pub(super) struct Attention<'a> {
    pub(super) query: &'a [f32],
    pub(super) key: &'a [f32],
    pub(super) value: &'a [f32],
    pub(super) cu_queries: &'a [u32],
    pub(super) cu_keys: &'a [u32],
    pub(super) dim: usize,
    pub(super) heads: usize,
}

impl WithSimd for Attention<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { query, key, value, cu_queries, cu_keys, dim, heads } = self;
        let head_dim = dim / heads;
        #[expect(clippy::cast_precision_loss, reason = "a head has far fewer than 2^24 dimensions")]
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut context = vec![0.0; query.len()];
        let mut scratch = SCRATCH.take();
        let Scratch { tiles, keys, values, scores, .. } = &mut scratch;
        for (queries, tokens) in cu_queries.windows(2).zip(cu_keys.windows(2)) {
            let queries = queries[0] as usize * dim..queries[1] as usize * dim;
            let tokens = tokens[0] as usize * dim..tokens[1] as usize * dim;
            let n = tokens.len() / dim;
            for head in 0..heads {
                let columns = head * head_dim..(head + 1) * head_dim;
                let key = head_rows(&key[tokens.clone()], dim, &columns);
                let value = head_rows(&value[tokens.clone()], dim, &columns);
                pack_columns(keys, key, head_dim, tile_columns::<S>());
                pack_panel_rows(values, value, head_dim, tile_columns::<S>());
                for start in queries.clone().step_by(QUERY_BLOCK * dim) {
                    let block = start..queries.end.min(start + QUERY_BLOCK * dim);
                    let rows = block.len() / dim;
                    pack_rows::<S>(tiles, head_rows(&query[block.clone()], dim, &columns), head_dim, scale);
                    scores.resize(scores.len().max(rows * n), 0.0);
                    let scores = &mut scores[..rows * n];
                    multiply(simd, tiles, rows, head_dim, keys, n, scores, n);
                    for row in scores.chunks_exact_mut(n) {
                        softmax(row);
                    }
                    pack_rows::<S>(tiles, scores.chunks_exact(n), n, 1.0);
                    let out = &mut context[block.start + columns.start..block.end];
                    multiply(simd, tiles, rows, n, values, head_dim, out, dim);
                }
            }
        }
        SCRATCH.set(scratch);
        context
    }
}

/// The columns of one head in each row.
fn head_rows<'a>(
    x: &'a [f32],
    dim: usize,
    columns: &Range<usize>,
) -> impl ExactSizeIterator<Item = &'a [f32]> + use<'a> {
    let columns = columns.clone();
    x.chunks_exact(dim).map(move |row| &row[columns.clone()])
}

/// The sum of each token's embeddings, normalised.
///
/// Shapes: `input_ids`, `position_ids` `[T]`, tables `[_, D]` → `[T, D]`; `token_types` holds the ids and their table.
/// Source: Devlin et al. 2019, figure 2.
pub(super) struct Embed<'a> {
    pub(super) input_ids: &'a [u32],
    pub(super) position_ids: &'a [u32],
    pub(super) tables: Tables<'a>,
}

/// What [`Embed`] adds up, and the normalisation `[D]` after it.
pub(super) struct Tables<'a> {
    pub(super) words: &'a [f32],
    pub(super) positions: &'a [f32],
    pub(super) token_types: Option<(&'a [u32], &'a [f32])>,
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) eps: f32,
}

impl WithSimd for Embed<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Vec<f32> {
        let Self { input_ids, position_ids, tables } = self;
        let dim = tables.weight.len();
        let entry = |id: u32| id as usize * dim..(id as usize + 1) * dim;
        let mut out = Vec::with_capacity(input_ids.len() * dim);
        for (t, (&id, &position)) in input_ids.iter().zip(position_ids).enumerate() {
            let row_start = out.len();
            out.extend_from_slice(&tables.words[entry(id)]);
            let row = &mut out[row_start..];
            // PyTorch adds the token types before the positions; the order decides the last bit.
            if let Some((ids, table)) = tables.token_types {
                add(row, &table[entry(ids[t])]);
            }
            add(row, &tables.positions[entry(position)]);
            layer_norm(row, tables.weight, tables.bias, tables.eps);
        }
        out
    }
}

#[inline(always)]
fn add(row: &mut [f32], other: &[f32]) {
    for (x, y) in row.iter_mut().zip(other) {
        *x += *y;
    }
}
