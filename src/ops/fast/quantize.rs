//! 16-bit integers for linear layers: weights as they are loaded, activations row by row.
//!
//! No sum can leave the 32 bits, whatever the activations: `|Σ a·w| ≤ max|a| · Σ|w|`, so a layer adds up
//! the `|w|` of each of its channels and admits no activation above [`Int16Layer::largest`],
//! `(2^31 - 1) / max Σ|w|`. How the bits are shared out below decides the error, never the safety.

use super::dot::LANES;
use super::gemm::Rows;

/// Columns of a panel: their pairs fill a cache line.
pub(super) const COLUMNS: usize = LANES;
/// Inputs that are packed together: those of one row fill a cache line, and have `COLUMNS` pairs.
pub(super) const BLOCK: usize = 2 * COLUMNS;
/// A multiple of the rows of every register tile.
const TILE_ROWS: usize = 24;
/// Largest weight: with the largest activation in a layer it does not leave the 16 bits.
const MAX_WEIGHT: f64 = 16_383.0;
const MAX_ACTIVATION: f64 = 16_384.0;

/// A cache line: 32 inputs of a row, or two inputs (`[16, 2]`) of the 16 columns of a panel.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line(pub(super) [i16; BLOCK]);

/// The weight `[outputs, inputs]` of a layer: panels `[outputs / 16, inputs / 2, 16, 2]`, padded with zeros.
#[derive(Debug, Clone)]
pub(super) struct Int16Layer {
    pub(super) panels: Vec<Line>,
    /// What a unit of each channel's weights is worth, panel by panel.
    pub(super) scales: Vec<[f32; COLUMNS]>,
    /// `-Σ v·w` of each channel.
    pub(super) corrections: Vec<[i32; COLUMNS]>,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// The largest activation that cannot overflow a sum.
    pub(super) largest: i16,
}

impl Int16Layer {
    /// Quantises a row-major weight `[outputs, inputs]`.
    ///
    /// Each channel spends the whole of its budget: the finest unit with which `Σ|w|` stays below
    /// `2^31 / largest`. A unit `u` of the weights adds `u²/12 · Σ a²` to the variance of the output, one of
    /// the activations `max a² / largest² / 12 · Σ w²`; `largest` makes their sum the least over the channels.
    /// It takes `max a² / Σ a²` for 1/8, which stands for an outlier of 7 (14 in a wide layer) standard
    /// deviations in a row and counts by its fourth root only.
    pub(super) fn quantize(weight: &[f32], outputs: usize) -> Self {
        let inputs = weight.len() / outputs;
        debug_assert!(inputs > 0 && weight.len() == outputs * inputs);
        let sum = |row: &[f32], f: fn(f64) -> f64| row.iter().map(|w| f(f64::from(*w))).sum::<f64>();
        let limit = f64::from(i32::MAX);
        let squares = sum(weight, |w| w * w);
        let squared_sums: f64 = weight.chunks_exact(inputs).map(|row| sum(row, f64::abs).powi(2)).sum();
        let largest = (limit * (squares / squared_sums.max(f64::MIN_POSITIVE) / 8.0).sqrt())
            .sqrt()
            .clamp(1.0, MAX_ACTIVATION)
            .floor();
        // Rounding adds at most one half to each |w|.
        let budget = (limit / largest - inputs as f64 / 2.0).max(1.0);

        let panel_lines = inputs.div_ceil(BLOCK) * COLUMNS;
        let panel_count = outputs.div_ceil(COLUMNS).next_multiple_of(2);
        let mut panels = vec![Line([0; BLOCK]); panel_count * panel_lines];
        let mut scales = vec![[0.0; COLUMNS]; panel_count];
        let mut largest_sum = 1;
        for (j, row) in weight.chunks_exact(inputs).enumerate() {
            let max = row.iter().fold(0.0, |max, w| f64::max(max, f64::from(w.abs())));
            let unit = (sum(row, f64::abs) / budget).max(max / MAX_WEIGHT).max(f64::from(f32::MIN_POSITIVE));
            let panel = &mut panels[j / COLUMNS * panel_lines..][..panel_lines];
            let mut sum = 0;
            for (k, w) in row.iter().enumerate() {
                let w = (f64::from(*w) / unit).round_ties_even() as i16;
                panel[k / 2].0[j % COLUMNS * 2 + k % 2] = w;
                sum += i32::from(w.unsigned_abs());
            }
            scales[j / COLUMNS][j % COLUMNS] = unit as f32;
            largest_sum = largest_sum.max(sum);
        }
        let corrections = panels.chunks_exact(panel_lines).map(channel_corrections).collect();
        let largest = (i32::MAX / largest_sum).min(largest as i32) as i16;
        Self { panels, scales, corrections, inputs, outputs, largest }
    }
}

fn channel_corrections(panel: &[Line]) -> [i32; COLUMNS] {
    let mut corrections = [0_i32; COLUMNS];
    for block in panel.chunks_exact(COLUMNS) {
        let (v, w) = block.split_at(COLUMNS / 2);
        for (v, w) in v.iter().zip(w) {
            for (i, (v, w)) in v.0.iter().zip(&w.0).enumerate() {
                corrections[i / 2] = corrections[i / 2].wrapping_sub(i32::from(*v) * i32::from(*w));
            }
        }
    }
    corrections
}

/// A block of quantised rows `[inputs / 32, rows, 32]`, padded with zeros.
#[derive(Debug, Default)]
pub(super) struct Int16Rows {
    pub(super) lines: Vec<Line>,
    /// What a unit of each row is worth.
    pub(super) scales: Vec<f32>,
    /// `-Σ a·b` of each row.
    pub(super) corrections: Vec<i32>,
    /// Rows in `lines`, with those that fill up a tile.
    pub(super) height: usize,
    pub(super) largest: i16,
}

impl Int16Rows {
    /// Quantises rows `[rows, k]` so that the largest of each becomes `largest`, which is the least of the layers' to come.
    #[inline(always)]
    pub(super) fn quantize(&mut self, x: Rows, k: usize, largest: i16) {
        self.largest = largest;
        self.height = x.count.next_multiple_of(TILE_ROWS);
        self.lines.resize(k.div_ceil(BLOCK) * self.height, Line([0; BLOCK]));
        self.scales.clear();
        self.corrections.clear();
        for (r, row) in x.iter(k).enumerate() {
            let (scale, inverse) = row_scale(row, f32::from(largest));
            self.scales.push(scale);
            let mut lines = self.lines.iter_mut().skip(r).step_by(self.height);
            let (blocks, rest) = row.as_chunks::<BLOCK>();
            let mut correction = quantize_blocks(lines.by_ref(), blocks, inverse);
            if !rest.is_empty() {
                let mut block = [0.0; BLOCK];
                block[..rest.len()].copy_from_slice(rest);
                correction = correction.wrapping_add(quantize_blocks(lines, &[block], inverse));
            }
            self.corrections.push(correction);
        }
        self.corrections.resize(self.height, 0);
    }
}

/// What a unit of a row is worth, and its inverse.
#[inline(always)]
#[expect(clippy::cast_possible_wrap, clippy::cast_sign_loss, reason = "the sign bit is clear")]
fn row_scale(row: &[f32], largest: f32) -> (f32, f32) {
    // Bits of positive floats are ordered like the floats, with NaN, which must not get lost, above them.
    let max = row.iter().fold(0, |max, x| i32::max(max, x.abs().to_bits() as i32));
    let max = f32::from_bits(max as u32);
    // Below, the inverse would be infinite.
    if max < 1e-30 { (0.0, 0.0) } else { (max / largest, largest / max) }
}

/// Quantises a row, or part of it, line by line → its `-Σ a·b`.
#[inline(always)]
fn quantize_blocks<'a>(lines: impl Iterator<Item = &'a mut Line>, blocks: &[[f32; BLOCK]], inverse: f32) -> i32 {
    // 1.5 · 2^23: added to a number below 2^22 it leaves the number, rounded to even, in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let mut corrections = [0_i32; BLOCK / 2];
    for (block, line) in blocks.iter().zip(lines) {
        let mut halves = [[0_i16; BLOCK / 2]; 2];
        for (half, x) in halves.iter_mut().zip(block.as_chunks::<{ BLOCK / 2 }>().0) {
            for (q, x) in half.iter_mut().zip(x) {
                let low = (*x * inverse + ROUND).to_bits() as i16;
                *q = low;
            }
        }
        for (correction, (a, b)) in corrections.iter_mut().zip(halves[0].iter().zip(&halves[1])) {
            *correction = correction.wrapping_sub(i32::from(*a) * i32::from(*b));
        }
        line.0 = pulp::cast(halves);
    }
    corrections.iter().fold(0, |sum, c| sum.wrapping_add(*c))
}
