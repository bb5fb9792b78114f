//! The vectorised part of losses: logits to probabilities.

use pulp::Simd;

use crate::ops::fast::Operator;
use crate::ops::fast::elementwise::{exp, max, sum_by};
use crate::ops::{FastKernels, Kernels};

/// Replaces each row of logits `[_, columns]` by its softmax, and returns the logarithm of each row's sum of
/// exponentials.
pub fn softmax_rows(logits: &mut [f32], columns: usize, kernels: Kernels) -> Vec<f32> {
    let operator = SoftmaxRows { logits, columns };
    match kernels {
        Kernels::Training(FastKernels { isa, .. }) | Kernels::Fast(FastKernels { isa, .. }) => isa.run(operator),
        Kernels::Reference(_) => operator.run_plain(),
    }
}

struct SoftmaxRows<'a> {
    logits: &'a mut [f32],
    columns: usize,
}

impl SoftmaxRows<'_> {
    #[inline(always)]
    fn run_plain(self) -> Vec<f32> {
        let mut sums = Vec::with_capacity(self.logits.len() / self.columns);
        for row in self.logits.chunks_exact_mut(self.columns) {
            let max = max(row);
            for x in row.iter_mut() {
                *x = exp(*x - max);
            }
            let sum = sum_by(row, |x| x);
            let scale = 1.0 / sum;
            for x in row.iter_mut() {
                *x *= scale;
            }
            sums.push(max + sum.ln());
        }
        sums
    }
}

impl Operator for SoftmaxRows<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, _: S) -> Vec<f32> {
        self.run_plain()
    }
}
