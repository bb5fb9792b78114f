//! Matrix products with a transposed left-hand side.

use pulp::Simd;

use crate::ops::fast::gemm::{Left, MAX_TILE_ROWS, Panels, REST_ROWS, store_tile};

/// The number of values after the last row of a matrix that [`multiply_transposed`] may read, and ignores.
pub(super) const PADDING: usize = MAX_TILE_ROWS;

/// A row-major matrix `[k, count]`, followed by [`PADDING`] values.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    pub(super) values: &'a [f32],
    pub(super) count: usize,
}

/// A tile whose rows are consecutive columns of a matrix.
#[derive(Clone, Copy)]
struct Tile<'a> {
    values: &'a [f32],
    stride: usize,
}

impl<const R: usize> Left<R> for Tile<'_> {
    #[inline(always)]
    fn at(self, k: usize, r: usize) -> f32 {
        self.values[k * self.stride..][..R][r]
    }
}

/// Computes `columnsᵀ [count, k] · panels [k, n] → out [count, n]`; `stride` is the row stride of `out`.
#[inline(always)]
pub(super) fn multiply_transposed<S: Simd, const R: usize, const C: usize>(
    simd: S,
    columns: Columns,
    panels: &Panels,
    out: &mut [f32],
    stride: usize,
) {
    let Columns { values, count } = columns;
    for (p, panel) in panels.iter().enumerate() {
        let width = panels.width.min(panels.n - p * panels.width);
        let mut top = 0;
        while top < count {
            let tile = Tile { values: &values[top..], stride: count };
            let corner = &mut out[top * stride + p * panels.width..];
            let rows = count - top;
            if rows > REST_ROWS {
                store_tile::<S, R, C, _>(simd, tile, panel, corner, stride, R.min(rows), width);
                top += R;
            } else {
                store_tile::<S, REST_ROWS, C, _>(simd, tile, panel, corner, stride, rows, width);
                top += REST_ROWS;
            }
        }
    }
}
