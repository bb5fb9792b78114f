//! Matrix multiplication for activations times weights, on one thread.
//!
//! The right-hand side is packed once into panels that are as wide as a register tile; the left-hand
//! side is read where it lies. Every element of the product is one chain of fused multiply-adds
//! over `k` in ascending order, whatever the shape, the row's place in the batch or the width of the
//! machine's vectors: a result does not depend on what else is in the batch, and is the same to the
//! last bit on every machine that has fused multiply-add.

use pulp::Simd;

use super::elementwise::{gelu, gelu_tanh, relu, silu};
use crate::ops::Activation;

/// Most rows in a register tile, on any instruction set.
pub(in crate::ops) const MAX_TILE_ROWS: usize = 12;
/// Most columns in a register tile, on any instruction set.
const MAX_TILE_COLUMNS: usize = 32;
/// Rows of the tiles that finish what the last whole tile leaves.
pub(in crate::ops) const REST_ROWS: usize = 4;

/// The right-hand side `[k, n]` of a product: panels of `[k, width]`, the last padded with zeros.
#[derive(Debug, Clone, Default)]
pub(in crate::ops) struct Panels {
    values: Vec<f32>,
    k: usize,
    pub(in crate::ops) n: usize,
    pub(in crate::ops) width: usize,
}

impl Panels {
    /// Packs the columns `[k]` of a matrix `[k, n]`, given one by one, each value times `scale`.
    #[inline(always)]
    pub(in crate::ops) fn pack_columns<'a>(
        &mut self,
        mut columns: impl ExactSizeIterator<Item = &'a [f32]>,
        k: usize,
        width: usize,
        scale: f32,
    ) {
        /// Columns that are read side by side, so that what is written lies together.
        const GROUP: usize = 8;
        debug_assert!(width.is_multiple_of(GROUP));
        self.reset(k, columns.len(), width);
        for panel in self.values.chunks_exact_mut((k * width).max(1)) {
            for j in (0..width).step_by(GROUP) {
                let group: [&[f32]; GROUP] = std::array::from_fn(|_| columns.next().map_or(&[][..], |c| &c[..k]));
                if group.iter().all(|column| column.len() == k) {
                    for (i, row) in panel.chunks_exact_mut(width).enumerate() {
                        for (packed, column) in row[j..][..GROUP].iter_mut().zip(&group) {
                            *packed = column[i] * scale;
                        }
                    }
                } else {
                    for (c, column) in group.iter().enumerate() {
                        for (row, value) in panel.chunks_exact_mut(width).zip(*column) {
                            row[j + c] = *value * scale;
                        }
                    }
                }
            }
        }
    }

    /// Packs the rows `[n]` of a matrix `[k, n]`, given one by one.
    #[inline(always)]
    pub(in crate::ops) fn pack_rows<'a>(
        &mut self,
        rows: impl ExactSizeIterator<Item = &'a [f32]>,
        n: usize,
        width: usize,
    ) {
        let k = rows.len();
        self.reset(k, n, width);
        for (i, row) in rows.enumerate() {
            for (p, part) in row.chunks(width).enumerate() {
                let packed = &mut self.values[(p * k + i) * width..][..part.len()];
                // Whole vectors in a loop: a call for the few bytes of a row would cost more than the copy.
                let (vectors, rest) = part.as_chunks::<16>();
                let (packed_vectors, packed_rest) = packed.as_chunks_mut::<16>();
                for (packed, vector) in packed_vectors.iter_mut().zip(vectors) {
                    *packed = *vector;
                }
                packed_rest.copy_from_slice(rest);
            }
        }
    }

    /// The panels, each `[k, width]`.
    pub(in crate::ops) fn iter(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact((self.k * self.width).max(1))
    }

    fn reset(&mut self, k: usize, n: usize, width: usize) {
        (self.k, self.n, self.width) = (k, n, width);
        self.values.clear();
        self.values.resize(n.div_ceil(width) * width * k, 0.0);
    }
}

/// The left-hand side of a register tile.
pub(in crate::ops) trait Left<const R: usize>: Copy {
    /// The value of row `r` in step `k`.
    fn at(self, k: usize, r: usize) -> f32;
}

/// Rows `[R, k]` where they lie.
#[derive(Clone, Copy)]
struct InPlace<'a, const R: usize>([&'a [f32]; R]);

impl<'a, const R: usize> InPlace<'a, R> {
    /// The rows from `top`; the last row stands in for those that are missing.
    #[inline(always)]
    fn new(x: &'a [f32], stride: usize, rows: usize, top: usize, k: usize) -> Self {
        let mut tile = [[].as_slice(); R];
        for (r, row) in tile.iter_mut().enumerate() {
            *row = &x[(top + r).min(rows - 1) * stride..][..k];
        }
        Self(tile)
    }
}

impl<const R: usize> Left<R> for InPlace<'_, R> {
    #[inline(always)]
    fn at(self, k: usize, r: usize) -> f32 {
        self.0[r][k]
    }
}

/// What happens to each element of a product.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) enum Finish<'a> {
    /// Nothing.
    None,
    /// `+ bias[column]`
    Bias(&'a [f32]),
    /// `activation(+ bias[column])`
    BiasActivation(&'a [f32], Activation),
}

impl<'a> Finish<'a> {
    /// A bias, and what follows it.
    pub(super) fn with_bias(bias: &'a [f32], activation: Option<Activation>) -> Self {
        activation.map_or(Self::Bias(bias), |activation| Self::BiasActivation(bias, activation))
    }

    /// Finishes part of a row that begins at a column.
    #[inline(always)]
    pub(super) fn apply(self, part: &mut [f32], column: usize) {
        match self {
            Self::None => {}
            Self::Bias(bias) => {
                for (x, b) in part.iter_mut().zip(&bias[column..]) {
                    *x += *b;
                }
            }
            Self::BiasActivation(bias, activation) => {
                let bias = &bias[column..];
                match activation {
                    Activation::Gelu => add_then(part, bias, gelu),
                    Activation::GeluTanh => add_then(part, bias, gelu_tanh),
                    Activation::Relu => add_then(part, bias, relu),
                    Activation::Silu => add_then(part, bias, silu),
                }
            }
        }
    }
}

/// `f(x + b)` of each element; one loop for each function.
#[inline(always)]
fn add_then(part: &mut [f32], bias: &[f32], f: impl Fn(f32) -> f32) {
    for (x, b) in part.iter_mut().zip(bias) {
        *x = f(*x + *b);
    }
}

/// A matrix of rows that lie `stride` apart.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Rows<'a> {
    pub(in crate::ops) values: &'a [f32],
    pub(in crate::ops) stride: usize,
    pub(in crate::ops) count: usize,
}

impl<'a> Rows<'a> {
    /// Rows of `k` values without a gap.
    pub(super) fn new(values: &'a [f32], k: usize) -> Self {
        Self { values, stride: k, count: values.len() / k }
    }

    /// The first `k` values of each row.
    #[inline(always)]
    pub(super) fn iter(self, k: usize) -> impl Iterator<Item = &'a [f32]> {
        self.values.chunks(self.stride).take(self.count).map(move |row| &row[..k])
    }
}

/// Multiplies rows by panels: `x [rows, k] · panels [k, n] → out [rows, n]`, rows of `out` `stride` apart, in
/// register tiles of `R` rows and `C` vectors.
#[inline(always)]
pub(in crate::ops) fn multiply<S: Simd, const R: usize, const C: usize>(
    simd: S,
    x: Rows,
    panels: &Panels,
    finish: Finish,
    out: &mut [f32],
    stride: usize,
) {
    let &Panels { k, n, width, .. } = panels;
    debug_assert!(R <= MAX_TILE_ROWS && width <= MAX_TILE_COLUMNS && width == C * S::F32_LANES);
    debug_assert!(x.count == 0 || out.len() >= (x.count - 1) * stride + n);
    // A panel stays in the first-level cache while every tile of rows passes by it.
    for (p, panel) in panels.iter().enumerate() {
        let column = p * width;
        let columns = width.min(n - column);
        let mut top = 0;
        while top < x.count {
            let corner = &mut out[top * stride + column..];
            let left = x.count - top;
            if left > REST_ROWS {
                let tile = InPlace::<R>::new(x.values, x.stride, x.count, top, k);
                let rows = R.min(left);
                store_tile::<S, R, C, _>(simd, tile, panel, corner, stride, rows, columns);
                for r in 0..rows {
                    finish.apply(&mut corner[r * stride..][..columns], column);
                }
                top += R;
            } else {
                let tile = InPlace::<REST_ROWS>::new(x.values, x.stride, x.count, top, k);
                store_tile::<S, REST_ROWS, C, _>(simd, tile, panel, corner, stride, left, columns);
                for r in 0..left {
                    finish.apply(&mut corner[r * stride..][..columns], column);
                }
                top += REST_ROWS;
            }
        }
    }
}

/// Multiplies a tile by a panel and stores the part of the product that is wanted.
#[inline(always)]
pub(in crate::ops) fn store_tile<S: Simd, const R: usize, const C: usize, L: Left<R>>(
    simd: S,
    tile: L,
    panel: &[f32],
    out: &mut [f32],
    stride: usize,
    rows: usize,
    columns: usize,
) {
    let width = C * S::F32_LANES;
    let sums = multiply_tile::<S, R, C, L>(simd, tile, panel);
    if columns == width {
        for (r, sums) in sums.iter().enumerate().take(rows) {
            let (row, _) = S::as_mut_simd_f32s(&mut out[r * stride..][..width]);
            row.copy_from_slice(sums);
        }
    } else {
        for (r, sums) in sums.iter().enumerate().take(rows) {
            let mut whole = [0.0; MAX_TILE_COLUMNS];
            let (row, _) = S::as_mut_simd_f32s(&mut whole[..width]);
            row.copy_from_slice(sums);
            out[r * stride..][..columns].copy_from_slice(&whole[..columns]);
        }
    }
}

/// The register tile: `tile [R, k] · panel [k, C vectors] → [R, C vectors]`.
#[inline(always)]
fn multiply_tile<S: Simd, const R: usize, const C: usize, L: Left<R>>(
    simd: S,
    tile: L,
    panel: &[f32],
) -> [[S::f32s; C]; R] {
    let mut sums = [[simd.splat_f32s(0.0); C]; R];
    let (panel, _) = S::as_simd_f32s(panel);
    let (panel, _) = panel.as_chunks::<C>();
    for (k, b) in panel.iter().enumerate() {
        for (r, sums) in sums.iter_mut().enumerate() {
            let a = simd.splat_f32s(tile.at(k, r));
            for (b, sum) in b.iter().zip(sums) {
                *sum = simd.mul_add_f32s(a, *b, *sum);
            }
        }
    }
    sums
}
