//! Attention forwards and backwards, a head of a sequence at a time.
//!
//! The backward pass computes the probabilities again instead of keeping them: they grow with the square of the
//! length, and computing them is a small part of a block's work.
//!
//! Source: Vaswani et al. 2017, section 3.2; the gradients are those of `dropout(softmax(Q Kᵀ / √d)) V`.

use std::cell::RefCell;
use std::ops::Range;

use pulp::Simd;

use super::dropout::Dropout;
use super::linear::dot;
use crate::ops::elementwise::softmax;
use crate::ops::fast::Operator;
use crate::ops::gemm::{multiply, pack_columns, pack_panel_rows, pack_rows};

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    tiles: Vec<f32>,
    panels: Vec<f32>,
    scores: Vec<f32>,
    dropped: Vec<f32>,
    slopes: Vec<f32>,
}

/// Queries `[Tq, D]`, keys and values `[T, D]` of sequences, as for [`super::attention`].
#[derive(Clone, Copy)]
pub(super) struct Sequences<'a> {
    pub(super) query: &'a [f32],
    pub(super) key: &'a [f32],
    pub(super) value: &'a [f32],
    pub(super) cu_queries: &'a [u32],
    pub(super) cu_keys: &'a [u32],
    pub(super) dim: usize,
    pub(super) heads: usize,
    pub(super) dropout: Option<&'a Dropout>,
}

/// The rows and columns of a head of a sequence.
struct Head {
    number: usize,
    queries: Range<usize>,
    keys: Range<usize>,
    columns: Range<usize>,
}

impl<'a> Sequences<'a> {
    fn all_heads(self) -> impl Iterator<Item = Head> + use<'a> {
        let Self { cu_queries, cu_keys, dim, heads, .. } = self;
        let head_dim = dim / heads;
        let bounds = cu_queries.windows(2).zip(cu_keys.windows(2));
        bounds.filter(|(queries, _)| queries[0] < queries[1]).flat_map(move |(queries, keys)| {
            (0..heads).map(move |head| Head {
                number: head,
                queries: queries[0] as usize..queries[1] as usize,
                keys: keys[0] as usize..keys[1] as usize,
                columns: head * head_dim..(head + 1) * head_dim,
            })
        })
    }

    /// `softmax(Q Kᵀ / √d) → scores [queries, keys]`
    #[inline(always)]
    fn probabilities<S: Simd, const R: usize, const C: usize>(
        self,
        simd: S,
        head: &Head,
        tiles: &mut Vec<f32>,
        panels: &mut Vec<f32>,
        scores: &mut Vec<f32>,
    ) {
        let (head_dim, rows, n) = (head.columns.len(), head.queries.len(), head.keys.len());
        let scale = 1.0 / (head_dim as f32).sqrt();
        pack_rows(tiles, self.rows(self.query, &head.queries, &head.columns), head_dim, R, scale);
        pack_columns(panels, self.rows(self.key, &head.keys, &head.columns), head_dim, C * S::F32_LANES);
        scores.resize(rows * n, 0.0);
        multiply::<S, R, C>(simd, tiles, rows, head_dim, panels, n, scores, n);
        for row in scores.chunks_exact_mut(n) {
            softmax(row);
        }
    }

    #[inline(always)]
    fn drop(self, head: &Head, probabilities: &mut [f32]) {
        if let Some(dropout) = self.dropout {
            for (row, query) in probabilities.chunks_exact_mut(head.keys.len()).zip(head.queries.clone()) {
                dropout.apply_to_head(query, head.number, self.heads, row);
            }
        }
    }

    fn rows<'x>(
        self,
        x: &'x [f32],
        rows: &Range<usize>,
        columns: &Range<usize>,
    ) -> impl ExactSizeIterator<Item = &'x [f32]> + use<'x> {
        let columns = columns.clone();
        x[rows.start * self.dim..rows.end * self.dim].chunks_exact(self.dim).map(move |row| &row[columns.clone()])
    }
}

/// `[Tq, D]`
pub(super) struct Forward<'a>(pub(super) Sequences<'a>);

impl Operator for Forward<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, simd: S) -> Vec<f32> {
        let Self(sequences) = self;
        let dim = sequences.dim;
        let mut context = vec![0.0; sequences.query.len()];
        let mut scratch = SCRATCH.take();
        let Scratch { tiles, panels, scores, .. } = &mut scratch;
        for head in sequences.all_heads() {
            sequences.probabilities::<S, R, C>(simd, &head, tiles, panels, scores);
            sequences.drop(&head, scores);
            let (rows, n, head_dim) = (head.queries.len(), head.keys.len(), head.columns.len());
            pack_rows(tiles, scores.chunks_exact(n), n, R, 1.0);
            let value = sequences.rows(sequences.value, &head.keys, &head.columns);
            pack_panel_rows(panels, value, head_dim, C * S::F32_LANES);
            let out = &mut context[head.queries.start * dim + head.columns.start..];
            multiply::<S, R, C>(simd, tiles, rows, n, panels, head_dim, out, dim);
        }
        SCRATCH.set(scratch);
        context
    }
}

/// From the gradient `[Tq, D]` of the result to those of queries, keys and values.
pub(super) struct Backward<'a> {
    pub(super) sequences: Sequences<'a>,
    pub(super) gradient: &'a [f32],
}

impl Operator for Backward<'_> {
    type Output = [Vec<f32>; 3];

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, simd: S) -> [Vec<f32>; 3] {
        let Self { sequences, gradient } = self;
        let dim = sequences.dim;
        let width = C * S::F32_LANES;
        let mut d_query = vec![0.0; sequences.query.len()];
        let mut d_key = vec![0.0; sequences.key.len()];
        let mut d_value = vec![0.0; sequences.value.len()];
        let mut scratch = SCRATCH.take();
        let Scratch { tiles, panels, scores, dropped, slopes } = &mut scratch;
        for head in sequences.all_heads() {
            let (rows, n, head_dim) = (head.queries.len(), head.keys.len(), head.columns.len());
            let scale = 1.0 / (head_dim as f32).sqrt();
            let query_corner = head.queries.start * dim + head.columns.start;
            let key_corner = head.keys.start * dim + head.columns.start;
            sequences.probabilities::<S, R, C>(simd, &head, tiles, panels, scores);
            dropped.clear();
            dropped.extend_from_slice(scores);
            sequences.drop(&head, dropped);

            // dV = droppedᵀ · dO
            let d_out = || sequences.rows(gradient, &head.queries, &head.columns);
            pack_panel_rows(tiles, dropped.chunks_exact(n), n, R);
            pack_panel_rows(panels, d_out(), head_dim, width);
            multiply::<S, R, C>(simd, tiles, n, rows, panels, head_dim, &mut d_value[key_corner..], dim);

            // The gradient of the probabilities, dO · Vᵀ, less what was dropped.
            pack_rows(tiles, d_out(), head_dim, R, 1.0);
            pack_columns(panels, sequences.rows(sequences.value, &head.keys, &head.columns), head_dim, width);
            slopes.resize(rows * n, 0.0);
            multiply::<S, R, C>(simd, tiles, rows, head_dim, panels, n, slopes, n);
            sequences.drop(&head, slopes);

            // Through the softmax, and the scale with it.
            for (slopes, p) in slopes.chunks_exact_mut(n).zip(scores.chunks_exact(n)) {
                let mean = dot(slopes, p);
                for (slope, p) in slopes.iter_mut().zip(p) {
                    *slope = (*slope - mean) * *p * scale;
                }
            }

            // dQ = dS · K, dK = dSᵀ · Q
            pack_rows(tiles, slopes.chunks_exact(n), n, R, 1.0);
            pack_panel_rows(panels, sequences.rows(sequences.key, &head.keys, &head.columns), head_dim, width);
            multiply::<S, R, C>(simd, tiles, rows, n, panels, head_dim, &mut d_query[query_corner..], dim);
            pack_panel_rows(tiles, slopes.chunks_exact(n), n, R);
            pack_panel_rows(panels, sequences.rows(sequences.query, &head.queries, &head.columns), head_dim, width);
            multiply::<S, R, C>(simd, tiles, n, rows, panels, head_dim, &mut d_key[key_corner..], dim);
        }
        SCRATCH.set(scratch);
        [d_query, d_key, d_value]
    }
}
