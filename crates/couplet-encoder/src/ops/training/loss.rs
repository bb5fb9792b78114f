//! The vectorized part of losses: softmax of logits.

use pulp::Simd;

use crate::ops::fast::Operator;
use crate::ops::fast::elementwise::softmax;

/// See [`crate::ops::Kernels::softmax_rows`].
pub(in crate::ops) struct SoftmaxRows<'a> {
    pub(in crate::ops) logits: &'a mut [f32],
    pub(in crate::ops) columns: usize,
}

impl SoftmaxRows<'_> {
    /// Runs without selecting an instruction set.
    #[inline(always)]
    pub(in crate::ops) fn run_plain(self) -> Vec<f32> {
        let mut sums = Vec::with_capacity(self.logits.len() / self.columns);
        for row in self.logits.chunks_exact_mut(self.columns) {
            let (max, sum) = softmax(row);
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
