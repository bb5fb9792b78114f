//! Quantization to 16-bit integers for linear layers: of weights when they are loaded, and of activations row by row.
//!
//! No sum overflows 32 bits, whatever the activations are. As `|Σ a·w| ≤ max|a| · Σ|w|`, a layer sums the `|w|` of each
//! channel and limits quantized activations to [`Int16Layer::largest`], `(2^31 - 1) / max Σ|w|`. The split of the bits
//! between weights and activations affects the error, but not the safety.

use super::dot::LANES;
use super::gemm::Rows;

/// The number of columns in a panel; their pairs fill a cache line.
pub(super) const COLUMNS: usize = LANES;
/// The number of inputs in a block; those of one row fill a cache line.
const BLOCK: usize = 2 * COLUMNS;
/// The number of quads in a block. A quad is two inputs and the two half a block after them, which Winograd's product
/// combines.
const QUADS: usize = BLOCK / 4;
/// The number of rows in a group, which share cache lines; a multiple of the rows of every register tile.
pub(super) const GROUP: usize = 8;
/// The largest quantized weight: its sum with the largest activation fits in 16 bits.
const MAX_WEIGHT: f64 = 16_383.0;
const MAX_ACTIVATION: f64 = 16_384.0;

/// A cache line of a panel: two inputs of its 16 columns, `[16, 2]`.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line(pub(super) [i16; BLOCK]);

/// A cache line of a group of rows: one quad of each row, as two pairs of 16-bit integers.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct RowsLine(pub(super) [[i32; 2]; GROUP]);

/// The weight `[outputs, inputs]` of a layer, padded with zeros: panels `[outputs / 16, quads, 2, 16, 2]`.
#[derive(Debug, Clone)]
pub(super) struct Int16Layer {
    pub(super) panels: Vec<Line>,
    /// The scale of each channel (the f32 value of one quantized unit), by panel.
    pub(super) scales: Vec<[f32; COLUMNS]>,
    /// `-Σ v·w` of each channel.
    pub(super) corrections: Vec<[i32; COLUMNS]>,
    pub(super) outputs: usize,
    /// The largest quantized activation for which no sum overflows.
    pub(super) largest: i16,
}

impl Int16Layer {
    /// Quantizes a row-major weight `[outputs, inputs]`.
    ///
    /// Each channel gets the smallest unit for which `Σ|w|` stays below `2^31 / largest`. Rounding adds to the variance
    /// of the output: `u²/12 · Σ a²` for a unit `u` of the weights, and `max a² / largest² / 12 · Σ w²` for the
    /// activations. `largest` minimizes the total over all channels. It assumes `max a² / Σ a²` = 1/8, which
    /// corresponds to an outlier of 7 standard deviations in a row (14 in a wide layer); only the fourth root of that
    /// assumption matters.
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
                panel[line_of_pair(k / 2)].0[j % COLUMNS * 2 + k % 2] = w;
                sum += i32::from(w.unsigned_abs());
            }
            scales[j / COLUMNS][j % COLUMNS] = unit as f32;
            largest_sum = largest_sum.max(sum);
        }
        let corrections = panels.chunks_exact(panel_lines).map(channel_corrections).collect();
        let largest = (i32::MAX / largest_sum).min(largest as i32) as i16;
        Self { panels, scales, corrections, outputs, largest }
    }
}

/// Returns the index of a pair of inputs' cache line in a panel.
pub(super) fn line_of_pair(pair: usize) -> usize {
    let (block, pair) = (pair / COLUMNS, pair % COLUMNS);
    block * COLUMNS + pair % QUADS * 2 + pair / QUADS
}

fn channel_corrections(panel: &[Line]) -> [i32; COLUMNS] {
    let mut corrections = [0_i32; COLUMNS];
    for [v, w] in panel.as_chunks().0 {
        for (i, (v, w)) in v.0.iter().zip(&w.0).enumerate() {
            corrections[i / 2] = corrections[i / 2].wrapping_sub(i32::from(*v) * i32::from(*w));
        }
    }
    corrections
}

/// Quantized rows, padded with zeros: `[rows / 8, quads, 8, 4]`.
///
/// The values that a tile reads are contiguous, because of the L1 cache: lines a few kilobytes apart compete for the
/// same few sets, and two loads in a cycle conflict if they read the same bank of two lines.
#[derive(Debug, Default)]
pub(super) struct Int16Rows {
    pub(super) lines: Vec<RowsLine>,
    /// The scale of each row: the f32 value of one quantized unit.
    pub(super) scales: Vec<f32>,
    /// `-Σ a·b` of each row.
    pub(super) corrections: Vec<i32>,
    /// The number of quads in a row, which is the number of lines in a group.
    pub(super) quads: usize,
    /// The quantized value of the largest element in each row.
    pub(super) largest: i16,
    /// A buffer for one quantized row.
    row: Vec<[i16; BLOCK]>,
}

impl Int16Rows {
    /// Quantizes rows `[rows, k]`. The largest element of each row becomes `largest`, which must be the minimum of
    /// [`Int16Layer::largest`] over the layers that read the rows.
    #[inline(always)]
    pub(super) fn quantize(&mut self, x: Rows, k: usize, largest: i16) {
        self.largest = largest;
        self.quads = k.div_ceil(BLOCK) * QUADS;
        self.lines.resize(x.count.div_ceil(GROUP) * self.quads, RowsLine([[0; 2]; GROUP]));
        self.row.clear();
        self.row.resize(k.div_ceil(BLOCK), [0; BLOCK]);
        self.scales.clear();
        self.corrections.clear();
        for (r, row) in x.iter(k).enumerate() {
            let (scale, inverse) = row_scale(row, f32::from(largest));
            self.scales.push(scale);
            round(row, inverse, self.row.as_flattened_mut());
            self.corrections.push(row_correction(&self.row));
            store(&self.row, &mut self.lines[r / GROUP * self.quads..], r % GROUP);
        }
        self.corrections.resize(x.count.next_multiple_of(GROUP), 0);
    }

    /// Returns a quantized value.
    #[cfg(test)]
    pub(super) fn at(&self, row: usize, input: usize) -> i16 {
        let (block, pair) = (input / BLOCK, input % BLOCK / 2);
        let line = row / GROUP * self.quads + block * QUADS + pair % QUADS;
        pulp::cast::<i32, [i16; 2]>(self.lines[line].0[row % GROUP][pair / QUADS])[input % 2]
    }
}

/// Returns the scale of a row and the inverse scale; both 0 for a row without significant values.
#[inline(always)]
#[expect(clippy::cast_possible_wrap, clippy::cast_sign_loss, reason = "the sign bit is clear")]
fn row_scale(row: &[f32], largest: f32) -> (f32, f32) {
    // The bit patterns of positive floats have the order of the floats, and NaN, which must be preserved, is the
    // highest.
    let max = row.iter().fold(0, |max, x| i32::max(max, x.abs().to_bits() as i32));
    let max = f32::from_bits(max as u32);
    // For smaller values the inverse would overflow.
    if max < 1e-30 { (0.0, 0.0) } else { (max / largest, largest / max) }
}

/// Rounds a row to integer multiples of its scale.
#[inline(always)]
fn round(row: &[f32], inverse: f32, out: &mut [i16]) {
    // 1.5 · 2^23: adding it to a number below 2^22 puts the number, rounded to the nearest even integer, in the lowest
    // bits.
    const ROUND: f32 = 12_582_912.0;
    for (q, x) in out.iter_mut().zip(row) {
        let low = (*x * inverse + ROUND).to_bits() as i16;
        *q = low;
    }
}

/// Returns `-Σ a·b` of a row.
#[inline(always)]
fn row_correction(row: &[[i16; BLOCK]]) -> i32 {
    let mut corrections = [0_i32; BLOCK / 2];
    for block in row {
        let (a, b) = block.split_at(BLOCK / 2);
        for (correction, (a, b)) in corrections.iter_mut().zip(a.iter().zip(b)) {
            *correction = correction.wrapping_sub(i32::from(*a) * i32::from(*b));
        }
    }
    corrections.iter().fold(0, |sum, c| sum.wrapping_add(*c))
}

/// Stores a row in the lines of its group.
///
/// Not inlined: with AVX-512, the compiler would use scatter instructions, which are several times slower.
#[inline(never)]
fn store(row: &[[i16; BLOCK]], lines: &mut [RowsLine], in_group: usize) {
    for (block, lines) in row.iter().zip(lines.as_chunks_mut::<QUADS>().0) {
        let [a, b]: [[i32; QUADS]; 2] = pulp::cast(*block);
        for ((line, a), b) in lines.iter_mut().zip(a).zip(b) {
            line.0[in_group] = [a, b];
        }
    }
}
