//! Where the tape begins: logits to probabilities, and a gradient by hand.

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};
use pulp::Simd;

use crate::ops::elementwise::{exp, max, sum_by};
use crate::ops::fast::Operator;
use crate::ops::{FastKernels, Kernels};

/// Replaces each row of logits `[_, columns]` by its softmax, and returns the logarithm of each row's sum of
/// exponentials.
pub(crate) fn softmax_rows(logits: &mut [f32], columns: usize, kernels: Kernels) -> Vec<f32> {
    let operator = SoftmaxRows { logits, columns };
    match kernels {
        Kernels::Training(FastKernels { isa, .. }) | Kernels::Fast(FastKernels { isa, .. }) => isa.run(operator),
        Kernels::Reference => operator.run_plain(),
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

/// A scalar whose gradient with respect to `x` is the given one, whatever its value.
///
/// # Errors
/// A gradient of another size than `x`.
pub(crate) fn with_gradient(x: &Tensor, gradient: Vec<f32>, kernels: Kernels) -> Result<Tensor> {
    let gradient = Tensor::from_vec(gradient, x.shape(), x.device())?;
    match kernels {
        Kernels::Training(_) => x.apply_op1(WithGradient(gradient)),
        Kernels::Fast(_) | Kernels::Reference => (x * gradient)?.sum_all(),
    }
}

struct WithGradient(Tensor);

impl CustomOp1 for WithGradient {
    fn name(&self) -> &'static str {
        "loss"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        self.0.to_device(&Device::Cpu).map(Some)
    }
}
