//! The CPU kernels of attention: for all queries of packed sequences, and for one query per sequence.

use std::ops::Range;

use pulp::Simd;

use super::elementwise::{exp, softmax};
use super::gemm::{Finish, Left, Panels, REST_ROWS, Rows, multiply, store_tile};
use super::{Isa, Operator, Scratch};

/// The number of queries in a block: two cache lines of scores per key, so that long sequences stay in the cache.
const QUERIES: usize = 32;
/// The number of queries in a smaller block, for the last queries of a sequence.
const FEW_QUERIES: usize = 16;

/// Computes softmax attention head by head. The queries of a sequence attend to the keys and values of the same
/// sequence.
///
/// **Shapes**: `query [Tq, D]`, `key` and `value` `[T, D]` → `[Tq, D]`. `cu_queries` and `cu_keys` are the offsets of
/// the sequences in the rows of the queries and of the keys.
/// **Source**: Vaswani et al. 2017, section 3.2.
///
/// Scores are computed transposed, `[keys, queries]`. The softmax then runs over columns, for all queries of a block at
/// once, and its result has the layout of the second product's left-hand side.
pub struct Attention<'a> {
    pub query: &'a [f32],
    pub key: &'a [f32],
    pub value: &'a [f32],
    pub cu_queries: &'a [u32],
    pub cu_keys: &'a [u32],
    pub dim: usize,
    pub heads: usize,
}

impl Operator for Attention<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, simd: S) -> Vec<f32> {
        let Self { query, key, value, cu_queries, cu_keys, dim, heads } = self;
        let head_dim = dim / heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut context = vec![0.0; query.len()];
        let mut scratch = Scratch::take();
        let Scratch { keys: queries, values, scores, .. } = &mut scratch;
        for (rows, tokens) in cu_queries.windows(2).zip(cu_keys.windows(2)) {
            let rows = rows[0] as usize..rows[1] as usize;
            let tokens = tokens[0] as usize * dim..tokens[1] as usize * dim;
            let n = tokens.len() / dim;
            if rows.is_empty() || n == 0 {
                continue;
            }
            scores.resize(scores.len().max(n * QUERIES), 0.0);
            for head in 0..heads {
                let columns = head * head_dim..(head + 1) * head_dim;
                let keys = Rows { values: &key[tokens.start + columns.start..tokens.end], stride: dim, count: n };
                values.pack_rows(head_rows(&value[tokens.clone()], dim, &columns), head_dim, C * S::F32_LANES);
                let mut block = rows.start..rows.start;
                while block.end < rows.end {
                    block = block.end..rows.end.min(block.end + QUERIES);
                    let few = block.len() <= FEW_QUERIES;
                    let query = head_rows(&query[block.start * dim..block.end * dim], dim, &columns);
                    let width = if few { FEW_QUERIES.min(C * S::F32_LANES) } else { C * S::F32_LANES };
                    queries.pack_columns(query, head_dim, width, scale);
                    let out = &mut context[block.start * dim + columns.start..block.end * dim];
                    if few {
                        attend::<S, R, C, FEW_QUERIES>(simd, keys, queries, values, scores, block.len(), out, dim);
                    } else {
                        attend::<S, R, C, QUERIES>(simd, keys, queries, values, scores, block.len(), out, dim);
                    }
                }
            }
        }
        scratch.put();
        context
    }
}

/// Computes one head of up to `W` queries of a sequence: `keys [n, d]`, scaled `queries [d, count]`, `values [n, d]` →
/// `out [count, d]`. `stride` is the row stride of `out`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of attention")]
fn attend<S: Simd, const R: usize, const C: usize, const W: usize>(
    simd: S,
    keys: Rows,
    queries: &Panels,
    values: &Panels,
    scores: &mut [f32],
    count: usize,
    out: &mut [f32],
    stride: usize,
) {
    let (scores, _) = scores.as_chunks_mut::<W>();
    let scores = &mut scores[..keys.count];
    // A panel of a smaller block is one vector wide if a tile is wider than the block.
    if C * S::F32_LANES > W {
        multiply::<S, R, 1>(simd, keys, queries, Finish::None, scores.as_flattened_mut(), W);
    } else {
        multiply::<S, R, C>(simd, keys, queries, Finish::None, scores.as_flattened_mut(), W);
    }
    let inverse_sums = exp_columns(scores);
    let width = C * S::F32_LANES;
    for (p, panel) in values.iter().enumerate() {
        let columns = width.min(values.n - p * width);
        let mut top = 0;
        while top < count {
            let tile_rows = if count - top > REST_ROWS && top + R <= W { R } else { REST_ROWS };
            // The last tile may overlap the previous one.
            top = top.min(W - tile_rows);
            let rows = tile_rows.min(count - top);
            let corner = &mut out[top * stride + p * width..];
            if tile_rows == R {
                store_tile::<S, R, C, _>(simd, Columns(scores, top), panel, corner, stride, rows, columns);
            } else {
                store_tile::<S, REST_ROWS, C, _>(simd, Columns(scores, top), panel, corner, stride, rows, columns);
            }
            for (r, scale) in inverse_sums[top..top + rows].iter().enumerate() {
                for x in &mut corner[r * stride..][..columns] {
                    *x *= *scale;
                }
            }
            top += tile_rows;
        }
    }
}

/// Replaces each column of scores with `exp(score - max)`, and returns the inverse of each column's sum.
#[inline(always)]
fn exp_columns<const W: usize>(scores: &mut [[f32; W]]) -> [f32; W] {
    let mut max = [f32::NEG_INFINITY; W];
    for row in scores.iter() {
        for (max, x) in max.iter_mut().zip(row) {
            *max = if *x > *max { *x } else { *max };
        }
    }
    let mut sums = [0.0; W];
    for row in scores.iter_mut() {
        for ((x, sum), max) in row.iter_mut().zip(&mut sums).zip(&max) {
            *x = exp(*x - *max);
            *sum += *x;
        }
    }
    sums.map(|sum| 1.0 / sum)
}

/// A tile whose rows are columns of a matrix, from the given column.
#[derive(Clone, Copy)]
struct Columns<'a, const W: usize>(&'a [[f32; W]], usize);

impl<const R: usize, const W: usize> Left<R> for Columns<'_, W> {
    #[inline(always)]
    fn at(self, k: usize, r: usize) -> f32 {
        self.0[k][self.1 + r]
    }
}

/// Returns the columns of one head in each row.
fn head_rows<'a>(
    x: &'a [f32],
    dim: usize,
    columns: &Range<usize>,
) -> impl ExactSizeIterator<Item = &'a [f32]> + use<'a> {
    let columns = columns.clone();
    x.chunks_exact(dim).map(move |row| &row[columns.clone()])
}

/// The key and value weights of a layer with one query per sequence, for attention without computing keys and values.
///
/// With `K = x·Wkᵀ + bk`, the scores of a head are `q·Kᵀ = (q·Wk)·xᵀ + q·bk`. The last term is the same for all tokens,
/// so the softmax cancels it. With `V = x·Wvᵀ + bv` and probabilities `p`, whose sum is 1, `p·V = (p·x)·Wvᵀ + bv`. Both
/// products then have one row per head instead of one per token.
#[derive(Debug, Clone)]
pub struct FirstTokens {
    /// `Wk [d, D]` of each head.
    key: Vec<Panels>,
    /// `Wvᵀ [D, d]` of each head.
    value: Vec<Panels>,
    /// `bv [D]`.
    value_bias: Vec<f32>,
}

impl FirstTokens {
    /// Returns the number of columns of `x`.
    pub fn dim(&self) -> usize {
        self.value_bias.len()
    }

    /// Takes row-major weights `[D, D]` and a bias `[D]`.
    pub fn pack(isa: Isa, key: &[f32], value: &[f32], value_bias: &[f32], heads: usize) -> Self {
        let (dim, width) = (value_bias.len(), isa.panel_width());
        let head_dim = dim / heads;
        let key = key.chunks_exact(head_dim * dim).map(|weight| {
            let mut panels = Panels::default();
            panels.pack_rows(weight.chunks_exact(dim), dim, width);
            panels
        });
        let value = value.chunks_exact(head_dim * dim).map(|weight| {
            let mut panels = Panels::default();
            panels.pack_columns(weight.chunks_exact(dim), dim, width, 1.0);
            panels
        });
        Self { key: key.collect(), value: value.collect(), value_bias: value_bias.to_vec() }
    }
}

/// Computes softmax attention of one query per sequence: `query [B, D]`, `x [T, D]` → `[B, D]`.
pub struct AttendFirst<'a> {
    pub weights: &'a FirstTokens,
    pub query: &'a [f32],
    pub x: &'a [f32],
    pub cu_seqlens: &'a [u32],
}

impl Operator for AttendFirst<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, simd: S) -> Vec<f32> {
        let Self { weights, query, x, cu_seqlens } = self;
        let (dim, heads, sequences) = (weights.value_bias.len(), weights.key.len(), cu_seqlens.len() - 1);
        let head_dim = dim / heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut scratch = Scratch::take();
        let Scratch { keys, values, scores, .. } = &mut scratch;
        // `[B, heads, D]`: first `q·Wk`, then `p·x`.
        let mut rows = vec![0.0; sequences * heads * dim];
        for (head, panels) in weights.key.iter().enumerate() {
            let query = Rows { values: &query[head * head_dim..], stride: dim, count: sequences };
            multiply::<S, R, C>(simd, query, panels, Finish::None, &mut rows[head * dim..], heads * dim);
        }
        for (rows, tokens) in rows.chunks_exact_mut(heads * dim).zip(cu_seqlens.windows(2)) {
            let tokens = x[tokens[0] as usize * dim..tokens[1] as usize * dim].chunks_exact(dim);
            let n = tokens.len();
            keys.pack_columns(tokens.clone(), dim, C * S::F32_LANES, scale);
            values.pack_rows(tokens, dim, C * S::F32_LANES);
            scores.resize(scores.len().max(heads * n), 0.0);
            let scores = &mut scores[..heads * n];
            let query = Rows { values: rows, stride: dim, count: heads };
            multiply::<S, R, C>(simd, query, keys, Finish::None, scores, n);
            for scores in scores.chunks_exact_mut(n) {
                softmax(scores);
            }
            let scores = Rows { values: scores, stride: n, count: heads };
            multiply::<S, R, C>(simd, scores, values, Finish::None, rows, dim);
        }
        let mut context = vec![0.0; sequences * dim];
        for (head, panels) in weights.value.iter().enumerate() {
            let columns = head * head_dim..(head + 1) * head_dim;
            let sums = Rows { values: &rows[head * dim..], stride: heads * dim, count: sequences };
            let bias = Finish::Bias(&weights.value_bias[columns.clone()]);
            multiply::<S, R, C>(simd, sums, panels, bias, &mut context[columns.start..], dim);
        }
        scratch.put();
        context
    }
}
