//! Forward and backward passes of attention, one head of one sequence at a time.
//!
//! The backward pass recomputes the probabilities instead of storing them. They grow with the square of the sequence
//! length, and computing them takes a small part of a layer's time.
//!
//! **Source**: Vaswani et al. 2017, section 3.2; the gradients are those of `dropout(softmax(Q Kᵀ / √d)) V`.

use std::cell::RefCell;
use std::ops::Range;

use pulp::Simd;

use super::dropout::Dropout;
use super::linear::dot;
use super::transposed::{Columns, PADDING, multiply_transposed};
use crate::ops::fast::Operator;
use crate::ops::fast::elementwise::softmax;
use crate::ops::fast::gemm::{Finish, Panels, Rows, multiply};

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    panels: Panels,
    scores: Vec<f32>,
    dropped: Vec<f32>,
    slopes: Vec<f32>,
}

/// Queries `[Tq, D]`, keys and values `[T, D]` of sequences, as for [`attention`](crate::ops::attention::attention).
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

/// One head of one sequence: its index, and its rows and columns.
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

    /// Computes `softmax(Q Kᵀ / √d) → scores [queries, keys]`.
    #[inline(always)]
    fn probabilities<S: Simd, const R: usize, const C: usize>(
        self,
        simd: S,
        head: &Head,
        panels: &mut Panels,
        scores: &mut Vec<f32>,
    ) {
        let (head_dim, n) = (head.columns.len(), head.keys.len());
        let scale = 1.0 / (head_dim as f32).sqrt();
        panels.pack_columns(self.rows(self.key, &head.keys, &head.columns), head_dim, C * S::F32_LANES, scale);
        scores.resize(head.queries.len() * n + PADDING, 0.0);
        let query = self.lhs(self.query, &head.queries, &head.columns);
        multiply::<S, R, C>(simd, query, panels, Finish::None, scores, n);
        for (row, _) in scores.chunks_exact_mut(n).zip(head.queries.clone()) {
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

    /// Returns a head's columns of some rows, as the left-hand side of a product.
    #[inline(always)]
    fn lhs<'x>(self, x: &'x [f32], rows: &Range<usize>, columns: &Range<usize>) -> Rows<'x> {
        let values = &x[rows.start * self.dim + columns.start..rows.end * self.dim];
        Rows { values, stride: self.dim, count: rows.len() }
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

/// Computes attention: `[Tq, D]`.
pub(super) struct Forward<'a>(pub(super) Sequences<'a>);

impl Operator for Forward<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, simd: S) -> Vec<f32> {
        let Self(sequences) = self;
        let dim = sequences.dim;
        let mut context = vec![0.0; sequences.query.len()];
        let mut scratch = SCRATCH.take();
        let Scratch { panels, scores, .. } = &mut scratch;
        for head in sequences.all_heads() {
            sequences.probabilities::<S, R, C>(simd, &head, panels, scores);
            sequences.drop(&head, scores);
            let value = sequences.rows(sequences.value, &head.keys, &head.columns);
            panels.pack_rows(value, head.columns.len(), C * S::F32_LANES);
            let probabilities = Rows { values: scores, stride: head.keys.len(), count: head.queries.len() };
            let out = &mut context[head.queries.start * dim + head.columns.start..];
            multiply::<S, R, C>(simd, probabilities, panels, Finish::None, out, dim);
        }
        SCRATCH.set(scratch);
        context
    }
}

/// The backward pass: from the gradient `[Tq, D]` of the result to the gradients of queries, keys and values.
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
        let Scratch { panels, scores, dropped, slopes } = &mut scratch;
        for head in sequences.all_heads() {
            let (rows, n, head_dim) = (head.queries.len(), head.keys.len(), head.columns.len());
            let scale = 1.0 / (head_dim as f32).sqrt();
            let query_corner = head.queries.start * dim + head.columns.start;
            let key_corner = head.keys.start * dim + head.columns.start;
            sequences.probabilities::<S, R, C>(simd, &head, panels, scores);
            dropped.clear();
            dropped.extend_from_slice(scores);
            sequences.drop(&head, dropped);

            // dV = droppedᵀ · dO
            panels.pack_rows(sequences.rows(gradient, &head.queries, &head.columns), head_dim, width);
            let columns = Columns { values: dropped, count: n };
            multiply_transposed::<S, R, C>(simd, columns, panels, &mut d_value[key_corner..], dim);

            // The gradient of the probabilities: dropout(dO · Vᵀ).
            let value = sequences.rows(sequences.value, &head.keys, &head.columns);
            panels.pack_columns(value, head_dim, width, 1.0);
            slopes.resize(rows * n + PADDING, 0.0);
            let d_out = sequences.lhs(gradient, &head.queries, &head.columns);
            multiply::<S, R, C>(simd, d_out, panels, Finish::None, slopes, n);
            sequences.drop(&head, slopes);

            // The gradient of the scores: backward through the softmax and the scale.
            for (slopes, p) in slopes.chunks_exact_mut(n).zip(scores.chunks_exact(n)).take(rows) {
                let mean = dot(slopes, p);
                for (slope, p) in slopes.iter_mut().zip(p) {
                    *slope = (*slope - mean) * *p * scale;
                }
            }

            // dQ = dS · K, dK = dSᵀ · Q
            panels.pack_rows(sequences.rows(sequences.key, &head.keys, &head.columns), head_dim, width);
            let d_scores = Rows { values: slopes, stride: n, count: rows };
            multiply::<S, R, C>(simd, d_scores, panels, Finish::None, &mut d_query[query_corner..], dim);
            panels.pack_rows(sequences.rows(sequences.query, &head.queries, &head.columns), head_dim, width);
            let columns = Columns { values: slopes, count: n };
            multiply_transposed::<S, R, C>(simd, columns, panels, &mut d_key[key_corner..], dim);
        }
        SCRATCH.set(scratch);
        [d_query, d_key, d_value]
    }
}
