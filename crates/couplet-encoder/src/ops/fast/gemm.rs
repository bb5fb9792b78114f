//! Single-threaded matrix multiplication of activations and weights.
//!
//! The right-hand side is packed once into panels of the register tile's width; the left-hand side is read in place.
//!
//! Every element of the product is one chain of fused multiply-adds over `k` in ascending order. It does not depend on
//! the shape, on the row's position in the batch, or on the width of the vectors. So a result does not depend on the
//! rest of the batch, and is bit-identical on all machines with fused multiply-add.

use pulp::Simd;

use super::elementwise::{gelu, gelu_tanh, relu, silu};
use crate::ops::Activation;

/// The maximum number of rows in a register tile, for all instruction sets.
pub(in crate::ops) const MAX_TILE_ROWS: usize = 12;
/// The maximum number of columns in a register tile, for all instruction sets.
const MAX_TILE_COLUMNS: usize = 32;
/// The number of rows in the smaller tiles that cover the rows after the last full tile.
pub(in crate::ops) const REST_ROWS: usize = 4;

/// The right-hand side `[k, n]` of a product, in panels `[k, width]`; the last panel is padded with zeros.
#[derive(Debug, Clone, Default)]
pub(in crate::ops) struct Panels {
    values: Vec<f32>,
    k: usize,
    pub(in crate::ops) n: usize,
    pub(in crate::ops) width: usize,
}

impl Panels {
    /// Packs a matrix `[k, n]` from its columns `[k]`, and multiplies it by `scale`.
    #[inline(always)]
    pub(in crate::ops) fn pack_columns<'a>(
        &mut self,
        mut columns: impl ExactSizeIterator<Item = &'a [f32]>,
        k: usize,
        width: usize,
        scale: f32,
    ) {
        /// The number of columns that are read together, so that writes are contiguous.
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

    /// Packs a matrix `[k, n]` from its rows `[n]`.
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
                // A loop over vectors: for these few bytes, a call of memcpy costs more than the copy.
                let (vectors, rest) = part.as_chunks::<16>();
                let (packed_vectors, packed_rest) = packed.as_chunks_mut::<16>();
                for (packed, vector) in packed_vectors.iter_mut().zip(vectors) {
                    *packed = *vector;
                }
                packed_rest.copy_from_slice(rest);
            }
        }
    }

    /// Returns the panels, each `[k, width]`.
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
    /// Returns the value of row `r` and column `k`.
    fn at(self, k: usize, r: usize) -> f32;
}

/// A tile `[R, k]` whose rows are read in place.
#[derive(Clone, Copy)]
struct InPlace<'a, const R: usize>([&'a [f32]; R]);

impl<'a, const R: usize> InPlace<'a, R> {
    /// Takes the rows from `top`. The last row is repeated if there are fewer than `R`.
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

/// The operation on each element of a product.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) enum Finish<'a> {
    /// No operation.
    None,
    /// Adds `bias[column]`.
    Bias(&'a [f32]),
    /// Adds `bias[column]`, then applies an activation.
    BiasActivation(&'a [f32], Activation),
}

impl<'a> Finish<'a> {
    /// Returns the addition of a bias, followed by an optional activation.
    pub(super) fn with_bias(bias: &'a [f32], activation: Option<Activation>) -> Self {
        activation.map_or(Self::Bias(bias), |activation| Self::BiasActivation(bias, activation))
    }

    /// Applies to the part of a row that starts at `column`.
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
                    Activation::Gelu => add_bias_then(part, bias, gelu),
                    Activation::GeluTanh => add_bias_then(part, bias, gelu_tanh),
                    Activation::Relu => add_bias_then(part, bias, relu),
                    Activation::Silu => add_bias_then(part, bias, silu),
                }
            }
        }
    }
}

/// Replaces each element with `f(x + b)`. Generic, so that each function gets a loop of its own.
#[inline(always)]
fn add_bias_then(part: &mut [f32], bias: &[f32], f: impl Fn(f32) -> f32) {
    for (x, b) in part.iter_mut().zip(bias) {
        *x = f(*x + *b);
    }
}

/// A matrix of `count` rows with the given row stride.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Rows<'a> {
    pub(in crate::ops) values: &'a [f32],
    pub(in crate::ops) stride: usize,
    pub(in crate::ops) count: usize,
}

impl<'a> Rows<'a> {
    /// Takes contiguous rows of `k` values.
    pub(super) fn new(values: &'a [f32], k: usize) -> Self {
        Self { values, stride: k, count: values.len() / k }
    }

    /// Returns the first `k` values of each row.
    #[inline(always)]
    pub(super) fn iter(self, k: usize) -> impl Iterator<Item = &'a [f32]> {
        self.values.chunks(self.stride).take(self.count).map(move |row| &row[..k])
    }
}

/// Computes `x [rows, k] · panels [k, n] → out [rows, n]` in register tiles of `R` rows and `C` vectors. `stride` is
/// the row stride of `out`.
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
    // A panel stays in the L1 cache while it is multiplied with all tiles of rows.
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

/// Multiplies a tile with a panel, and stores the first `rows` rows and `columns` columns of the product.
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
            let mut full_row = [0.0; MAX_TILE_COLUMNS];
            let (row, _) = S::as_mut_simd_f32s(&mut full_row[..width]);
            row.copy_from_slice(sums);
            out[r * stride..][..columns].copy_from_slice(&full_row[..columns]);
        }
    }
}

/// Computes a register tile: `tile [R, k] · panel [k, C vectors] → [R, C vectors]`.
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
