//! Linear layers in 16-bit integers with exact 32-bit sums.
//!
//! Quantization is symmetric: per output channel for weights, when they are loaded, and per row for activations, when a
//! block of rows is read. [`super::quantize`] chooses the scales such that no sum overflows. Sums are exact, and their
//! conversion to f32 rounds twice. So a result does not depend on the rest of the batch, and is bit-identical on all
//! machines.
//!
//! `vpmaddwd` and `vpdpwssd` multiply pairs of 16-bit integers and add the products, while the CPU's adders are idle.
//! Winograd's inner product (1968) replaces multiplications with additions: for two values `a`, `b` and their weights
//! `v`, `w`, `a·v + b·w = (a + w)·(b + v) - a·b - v·w`. `Σ a·b` depends only on the row and `Σ v·w` only on the
//! channel, so each is computed once. All arithmetic wraps modulo 2^32, so the sums equal those of the plain product.

use pulp::NullaryFnOnce;
use pulp::bytemuck::Zeroable;

#[cfg(test)]
use super::dot::Portable;
use super::dot::{Dot, Int16Kernel};
use super::elementwise::activate;
use super::gemm::Finish;
use super::quantize::{COLUMNS, GROUP, Int16Layer, Int16Rows, Line};
use crate::ops::Activation;

/// Multiplies quantized rows with a layer: `[rows, inputs] → out [rows, outputs]`. `stride` is the row stride of `out`.
pub(super) fn multiply(
    kernel: Int16Kernel,
    rows: &Int16Rows,
    layer: &Int16Layer,
    finish: Finish,
    out: &mut [f32],
    stride: usize,
) {
    debug_assert!(rows.largest <= layer.largest, "{} could overflow", rows.largest);
    match kernel {
        #[cfg(test)]
        Int16Kernel::Portable => Multiply::<_, 4, 1, false> { dot: Portable, rows, layer, finish, out, stride }.call(),
        #[cfg(target_arch = "x86_64")]
        Int16Kernel::Avx2(dot) => dot.vectorize(Multiply::<_, 4, 1, true> { dot, rows, layer, finish, out, stride }),
        #[cfg(target_arch = "x86_64")]
        Int16Kernel::Avx512(dot) => dot.vectorize(Multiply::<_, 8, 2, true> { dot, rows, layer, finish, out, stride }),
        #[cfg(target_arch = "x86_64")]
        Int16Kernel::VnniWinograd(dot) => {
            dot.vectorize(Multiply::<_, 8, 2, true> { dot, rows, layer, finish, out, stride });
        }
        #[cfg(target_arch = "x86_64")]
        Int16Kernel::Vnni(dot) => dot.vectorize(Multiply::<_, 8, 2, false> { dot, rows, layer, finish, out, stride }),
    }
}

/// [`multiply`] in register tiles of `R` rows and `P` panels.
struct Multiply<'a, D, const R: usize, const P: usize, const WINOGRAD: bool> {
    dot: D,
    rows: &'a Int16Rows,
    layer: &'a Int16Layer,
    finish: Finish<'a>,
    out: &'a mut [f32],
    stride: usize,
}

impl<D: Dot, const R: usize, const P: usize, const WINOGRAD: bool> NullaryFnOnce for Multiply<'_, D, R, P, WINOGRAD> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { rows, layer, finish, .. } = self;
        let (bias, activation) = match finish {
            Finish::None => ([].as_slice(), None),
            Finish::Bias(bias) => (bias, None),
            Finish::BiasActivation(bias, activation) => (bias, Some(activation)),
        };
        let (panels, _) = layer.panels.as_chunks::<2>();
        // A panel stays in the L1 cache while it is multiplied with all tiles of rows.
        for (p, panels) in panels.chunks_exact(P * rows.quads).enumerate() {
            let column = p * P * COLUMNS;
            let columns = layer.outputs.saturating_sub(column).min(P * COLUMNS);
            if columns == 0 {
                break;
            }
            let scales: &[[f32; COLUMNS]; P] = layer.scales[p * P..].first_chunk().expect("panels come in pairs");
            let mut biases = [[0.0; COLUMNS]; P];
            let bias = bias.get(column..).unwrap_or_default();
            for (padded, bias) in biases.as_flattened_mut().iter_mut().zip(bias) {
                *padded = *bias;
            }
            for (tile, row_scales) in rows.scales.chunks(R).enumerate() {
                let sums = self.tile(panels, p * P, tile * R);
                let out = self.out.get_mut(tile * R * self.stride + column..).unwrap_or_default();
                for ((sums, scale), out) in sums.iter().zip(row_scales).zip(out.chunks_mut(self.stride)) {
                    let finished = dequantize(sums, *scale, scales, &biases, activation);
                    if let Some(out) = out[..columns].as_chunks_mut().0.first_chunk_mut() {
                        *out = finished;
                    } else {
                        out[..columns].copy_from_slice(&finished.as_flattened()[..columns]);
                    }
                }
            }
        }
    }
}

/// Computes `sum · (row scale · channel scale) + bias`, with an optional activation.
#[inline(always)]
fn dequantize<const P: usize>(
    sums: &[[i32; COLUMNS]; P],
    scale: f32,
    scales: &[[f32; COLUMNS]; P],
    biases: &[[f32; COLUMNS]; P],
    activation: Option<Activation>,
) -> [[f32; COLUMNS]; P] {
    let mut out = [[0.0; COLUMNS]; P];
    for p in 0..P {
        for i in 0..COLUMNS {
            out[p][i] = sums[p][i] as f32 * (scale * scales[p][i]) + biases[p][i];
        }
    }
    if let Some(activation) = activation {
        activate(out.as_flattened_mut(), activation);
    }
    out
}

impl<D: Dot, const R: usize, const P: usize, const WINOGRAD: bool> Multiply<'_, D, R, P, WINOGRAD> {
    /// Computes a register tile `[R, P, 16]` from the rows at `top` and the panels `[P, quads, 2]`; `first` is the
    /// index of the first panel.
    ///
    /// Loops rather than closures, as the compiler does not inline closures into `Dot::vectorize` by default.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "constant bounds keep the sums in registers")]
    fn tile(&self, panels: &[[Line; 2]], first: usize, top: usize) -> [[[i32; COLUMNS]; P]; R] {
        let Self { dot, rows, layer, .. } = self;
        let mut sums = [[D::Vector::zeroed(); P]; R];
        if WINOGRAD {
            for r in 0..R {
                for p in 0..P {
                    let channel = pulp::cast(layer.corrections[first + p]);
                    sums[r][p] = dot.add_32(channel, dot.splat(rows.corrections[top + r]));
                }
            }
        }
        let group = &rows.lines[top / GROUP * rows.quads..][..rows.quads];
        let part = top % GROUP / R;
        let mut weights = [[].as_slice(); P];
        for p in 0..P {
            weights[p] = &panels[p * rows.quads..];
        }
        // Indexing with its bounds check: without it, the compiler loads all rows in advance and runs out of registers.
        for (i, line) in group.iter().enumerate() {
            let mut w = [[D::Vector::zeroed(); 2]; P];
            for p in 0..P {
                w[p] = [pulp::cast(weights[p][i][0].0), pulp::cast(weights[p][i][1].0)];
            }
            for r in 0..R {
                let [a, b] = line.0[part * R + r];
                let a = [dot.splat(a), dot.splat(b)];
                for p in 0..P {
                    sums[r][p] = if WINOGRAD {
                        dot.add_dot(sums[r][p], dot.add_16(a[0], w[p][1]), dot.add_16(a[1], w[p][0]))
                    } else {
                        dot.add_dot(dot.add_dot(sums[r][p], a[0], w[p][0]), a[1], w[p][1])
                    };
                }
            }
        }
        let mut out = [[[0; COLUMNS]; P]; R];
        for r in 0..R {
            for p in 0..P {
                out[r][p] = pulp::cast(sums[r][p]);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::gemm::Rows;
    use super::super::quantize::line_of_pair;
    use super::*;

    fn kernels() -> Vec<Int16Kernel> {
        let mut kernels = vec![Int16Kernel::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            kernels.extend(pulp::x86::V3::try_new().map(Int16Kernel::Avx2));
            kernels.extend(pulp::x86::V4::try_new().map(Int16Kernel::Avx512));
            kernels.extend(super::super::dot::Vnni::try_new().map(Int16Kernel::Vnni));
            kernels.extend(super::super::dot::Vnni::try_new().map(Int16Kernel::VnniWinograd));
        }
        kernels
    }

    /// Returns approximately normal random numbers.
    fn random(n: usize, mut seed: u64) -> Vec<f32> {
        let mut uniform = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..n).map(|_| uniform() + uniform() + uniform() + uniform()).collect()
    }

    /// Asserts that every kernel computes exact sums. Returns the largest sum and the product.
    fn check(x: &[f32], weight: &[f32], k: usize) -> (i64, Vec<f32>) {
        let (m, n) = (x.len() / k, weight.len() / k);
        let layer = Int16Layer::quantize(weight, n);
        let mut rows = Int16Rows::default();
        // Leaves stale values in the buffers.
        rows.quantize(Rows::new(&random(50 * 70, 9), 70), 70, 32_000);
        rows.quantize(Rows::new(x, k), k, layer.largest);
        let (mut largest, mut product) = (0, Vec::new());
        for r in 0..m {
            for j in 0..n {
                let panel = &layer.panels[j / COLUMNS * rows.quads * 2..];
                let w = |i: usize| panel[line_of_pair(i / 2)].0[j % COLUMNS * 2 + i % 2];
                let sum: i64 = (0..k).map(|i| i64::from(rows.at(r, i)) * i64::from(w(i))).sum();
                largest = largest.max(sum.abs());
                product.push(sum as i32 as f32 * (rows.scales[r] * layer.scales[j / COLUMNS][j % COLUMNS]));
            }
        }
        assert!(largest <= i64::from(i32::MAX), "{largest} in {m} x {n} x {k}");
        for kernel in kernels() {
            let stride = n + 3;
            let mut out = vec![7.0; m * stride];
            multiply(kernel, &rows, &layer, Finish::None, &mut out, stride);
            for (out, exact) in out.chunks(stride).zip(product.chunks(n)) {
                assert!(
                    out[..n]
                        .iter()
                        .zip(exact)
                        .all(|(out, exact)| out.to_bits() == exact.to_bits() || exact.is_nan() && out.is_nan()),
                    "{kernel:?} {m} x {n} x {k}"
                );
                assert_eq!(out[n..], [7.0; 3]);
            }
        }
        (largest, product)
    }

    #[test]
    fn sums_are_exact_in_every_shape_on_every_instruction_set() {
        for (m, n, k) in
            [(1, 1, 1), (1, 33, 2), (13, 1, 31), (5, 17, 33), (25, 48, 64), (12, 32, 95), (96, 50, 384), (7, 15, 1536)]
        {
            check(&random(m * k, 1), &random(n * k, 2), k);
        }
    }

    #[test]
    fn no_sum_overflows_for_the_largest_inputs_of_equal_sign() {
        for k in [1, 2, 40, 384, 3072] {
            for spread in [0.0, 0.3, 100.0] {
                // Without spread, every weight has the same magnitude and rounds in the same direction.
                let weight: Vec<f32> = random(20 * k, 3).iter().map(|w| w.signum() + spread * w).collect();
                let x: Vec<f32> = weight.iter().map(|w| w.signum()).chain(vec![-1.0; k]).collect();
                let (largest, _) = check(&x, &weight, k);
                assert!(k < 40 || largest > i64::from(i32::MAX) * 9 / 10, "{largest} leaves bits unused at {k}");
            }
        }
    }

    #[test]
    fn a_weight_far_above_the_others_does_not_overflow_its_pair() {
        let k = 384;
        let mut weight = random(17 * k, 4).iter().map(|w| w * 1e-4).collect::<Vec<f32>>();
        let mut x = random(3 * k, 5);
        for i in (0..weight.len()).step_by(k) {
            weight[i] = 1.0;
            weight[i + 16] = -1.0;
        }
        for i in (0..x.len()).step_by(k) {
            x[i] = 9.0;
            x[i + 16] = -9.0;
        }
        check(&x, &weight, k);
    }

    #[test]
    fn error_is_hundred_thousandths_of_the_norms() {
        for k in [384, 1536] {
            let (x, weight) = (random(24 * k, 6), random(40 * k, 7));
            let (_, product) = check(&x, &weight, k);
            let norm = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let mut squares = 0.0;
            for (r, x) in x.chunks(k).enumerate() {
                for (j, w) in weight.chunks(k).enumerate() {
                    let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    squares += ((f64::from(product[r * 40 + j]) - exact) / norm(x) / norm(w)).powi(2);
                }
            }
            let error = (squares / product.len() as f64).sqrt();
            assert!(error < 3e-5, "{error:e} at {k}");
        }
    }

    #[test]
    fn zeros_give_zero_and_nan_is_not_lost() {
        let weight = random(16 * 40, 8);
        assert_eq!(check(&[0.0; 40], &weight, 40).1, [0.0; 16]);
        assert_eq!(check(&random(40, 8), &[0.0; 40], 40).1, [0.0]);
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY] {
            let mut bad_weight = weight.clone();
            bad_weight[3] = bad;
            assert!(check(&random(40, 8), &bad_weight, 40).1.iter().all(|y| y.is_nan()));
            let mut x = random(2 * 40, 8);
            x[3] = bad;
            let layer = Int16Layer::quantize(&weight, 16);
            let mut rows = Int16Rows::default();
            rows.quantize(Rows::new(&x, 40), 40, layer.largest);
            let mut out = [0.0; 32];
            multiply(Int16Kernel::Portable, &rows, &layer, Finish::None, &mut out, 16);
            assert!(out[..16].iter().all(|y| y.is_nan()) && out[16..].iter().all(|y| y.is_finite()));
        }
    }
}
