//! Matrix multiplication for activations times weights, on one thread.
//!
//! The right-hand side is packed once into panels that are as wide as a register tile; the left-hand
//! side is packed block by block. Every element of the product is one chain of fused multiply-adds
//! over `k` in ascending order, whatever the shape, the row's place in the batch or the width of the
//! machine's vectors: a result does not depend on what else is in the batch, and is the same to the
//! last bit on every machine that has fused multiply-add.

use pulp::Simd;

/// Most rows in a register tile, on any instruction set.
const MAX_TILE_ROWS: usize = 12;
/// Most columns in a register tile, on any instruction set.
const MAX_TILE_COLUMNS: usize = 32;

/// Packs `rows` into tiles of `[k, height]`, each value times `scale`; missing rows of the last tile are zero.
pub(super) fn pack_rows<'a>(
    tiles: &mut Vec<f32>,
    rows: impl ExactSizeIterator<Item = &'a [f32]>,
    k: usize,
    height: usize,
    scale: f32,
) {
    tiles.clear();
    tiles.resize(rows.len().div_ceil(height) * height * k, 0.0);
    for (r, row) in rows.enumerate() {
        let tile = &mut tiles[(r / height) * height * k + r % height..];
        for (packed, value) in tile.iter_mut().step_by(height).zip(row) {
            *packed = *value * scale;
        }
    }
}

/// Packs the columns `[k]` of a matrix `[k, n]`, given one by one, into panels of `[k, width]`.
pub(super) fn pack_columns<'a>(
    panels: &mut Vec<f32>,
    columns: impl ExactSizeIterator<Item = &'a [f32]>,
    k: usize,
    width: usize,
) {
    panels.clear();
    panels.resize(columns.len().div_ceil(width) * width * k, 0.0);
    for (j, column) in columns.enumerate() {
        let panel = &mut panels[(j / width) * width * k + j % width..];
        for (packed, value) in panel.iter_mut().step_by(width).zip(column) {
            *packed = *value;
        }
    }
}

/// Packs the rows `[n]` of a matrix `[k, n]`, given one by one, into panels of `[k, width]`.
pub(super) fn pack_panel_rows<'a>(
    panels: &mut Vec<f32>,
    rows: impl ExactSizeIterator<Item = &'a [f32]>,
    n: usize,
    width: usize,
) {
    let k = rows.len();
    panels.clear();
    panels.resize(n.div_ceil(width) * width * k, 0.0);
    for (i, row) in rows.enumerate() {
        for (p, part) in row.chunks(width).enumerate() {
            panels[(p * k + i) * width..][..part.len()].copy_from_slice(part);
        }
    }
}

/// Multiplies packed rows by packed panels: `tiles [rows, k] x panels [k, n] → out [rows, n]`, rows of `out` `stride`
/// apart, in register tiles of `R` rows and `C` vectors.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the shape of a matrix product")]
pub(super) fn multiply<S: Simd, const R: usize, const C: usize>(
    simd: S,
    tiles: &[f32],
    rows: usize,
    k: usize,
    panels: &[f32],
    n: usize,
    out: &mut [f32],
    stride: usize,
) {
    let width = C * S::F32_LANES;
    debug_assert!(R <= MAX_TILE_ROWS && width <= MAX_TILE_COLUMNS);
    debug_assert_eq!(tiles.len(), rows.div_ceil(R) * R * k);
    debug_assert_eq!(panels.len(), n.div_ceil(width) * width * k);
    debug_assert!(rows == 0 || out.len() >= (rows - 1) * stride + n);
    if k == 0 {
        return;
    }
    // A panel stays in the first-level cache while every tile of rows passes by it.
    for (p, panel) in panels.chunks_exact(k * width).enumerate() {
        let columns = width.min(n - p * width);
        for (t, tile) in tiles.chunks_exact(k * R).enumerate() {
            let live = R.min(rows - t * R);
            let corner = &mut out[t * R * stride + p * width..];
            if live == R && columns == width {
                multiply_tile::<S, R, C>(simd, tile, panel, corner, stride);
            } else {
                let mut whole = [0.0; MAX_TILE_ROWS * MAX_TILE_COLUMNS];
                multiply_tile::<S, R, C>(simd, tile, panel, &mut whole, width);
                for (r, row) in whole.chunks_exact(width).take(live).enumerate() {
                    corner[r * stride..][..columns].copy_from_slice(&row[..columns]);
                }
            }
        }
    }
}

/// The register tile: `tile [k, R] x panel [k, C vectors] → out [R, C vectors]`.
#[inline(always)]
fn multiply_tile<S: Simd, const R: usize, const C: usize>(
    simd: S,
    tile: &[f32],
    panel: &[f32],
    out: &mut [f32],
    stride: usize,
) {
    let mut sums = [[simd.splat_f32s(0.0); C]; R];
    let (tile, _) = tile.as_chunks::<R>();
    let (panel, _) = S::as_simd_f32s(panel);
    let (panel, _) = panel.as_chunks::<C>();
    for (a, b) in tile.iter().zip(panel) {
        for (a, sums) in a.iter().zip(&mut sums) {
            let a = simd.splat_f32s(*a);
            for (b, sum) in b.iter().zip(sums) {
                *sum = simd.mul_add_f32s(a, *b, *sum);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        let (row, _) = S::as_mut_simd_f32s(&mut out[r * stride..][..C * S::F32_LANES]);
        row.copy_from_slice(sums);
    }
}
