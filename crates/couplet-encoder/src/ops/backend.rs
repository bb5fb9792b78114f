//! Dispatch of the operators to their implementations.
//!
//! [`Kernels`] selects the implementation once, when weights are loaded; [`Kernels::backend`] is the only place that
//! matches on it to run an operator. The default methods of [`Backend`] are composed of candle's operators, which run
//! on any device, in any type, and have gradients.
//!
//! To add a backend, such as fused kernels for a GPU:
//!
//! 1. implement [`Backend`] for a `Copy` struct in a module next to [`super::fast`], and override the operators that it
//!    fuses;
//! 2. add a variant to [`Kernels`], a line to [`Kernels::backend`] and to [`Kernels::with_f32`], and a device or a
//!    precision to [`Kernels::for_device`] or [`Kernels::with_precision`];
//! 3. select in `Trainer::learn` (in couplet-train) what computes its gradients: the [`super::Tape`], if the overridden
//!    operators record their backward pass as [`super::training`] does, or else candle, through the default methods;
//! 4. add it to the lists of kernels in `tests/it/ops.rs` and `tests/it/parity.rs`.

use candle_core::{DType, Device, Result, Tensor};

use super::attention::Attention;
use super::fast::{FastKernels, Int16Kernel, Isa};
use super::linear::{AddNorm, Weights};
use super::reference::{self, ReferenceKernels};
use super::training::{Dropout, SoftmaxRows, TrainingKernels};
use super::{Activation, LayerNorm, Linear, Pointwise, Precision};

/// An implementation of the operators. It checks shapes that involve a single layer; the caller checks all others.
pub(super) trait Backend {
    /// Returns the type of the tensors between the operators.
    fn dtype(&self) -> DType {
        DType::F32
    }

    /// Converts a weight `[out, in]` and a bias `[out]` to the format that [`Self::linear`] reads.
    fn prepare(&self, weight: &Tensor, bias: &Tensor) -> Result<Weights> {
        Ok(Weights::Plain(weight.to_dtype(self.dtype())?, bias.to_dtype(self.dtype())?))
    }

    /// Computes `activation(x · weightᵀ + bias)` for each layer, all with the same number of inputs.
    fn linear(&self, x: &Tensor, layers: &[&Linear], activation: Option<Activation>) -> Result<Vec<Tensor>> {
        layers.iter().map(|layer| reference::linear(x, layer, activation)).collect()
    }

    /// Computes `norm(dropout(x · weightᵀ + bias) + residual)`.
    fn add_norm(&self, x: &Tensor, layer: &Linear, sum: AddNorm) -> Result<Tensor> {
        let out = reference::drop_elements(reference::linear(x, layer, None)?, sum.dropout.as_ref())?;
        sum.norm.forward(&(out + sum.residual)?)
    }

    /// Computes `norm(x + lin2(f(lin1(x))))`.
    fn feed_forward(&self, x: &Tensor, lin: [&Linear; 2], f: Activation, norm: &LayerNorm) -> Result<Tensor> {
        lin[1].forward_add_norm(&lin[0].forward_activated(x, f)?, x, norm)
    }

    /// See [`attention`](crate::ops::attention::attention).
    fn attention(&self, of: &Attention, dropout: Option<Dropout>) -> Result<Tensor> {
        reference::attention(of, dropout.as_ref())
    }

    /// Sums the rows with the given ids of each table `[_, D]`, and normalizes the sum: ids `[T]` → `[T, D]`.
    fn embed(&self, tables: &[(&Tensor, &[u32])], norm: &LayerNorm) -> Result<Tensor> {
        let gathered = tables.iter().map(|(table, ids)| select(table, ids));
        let Some(sum) = gathered.reduce(|sum, rows| sum? + rows?) else {
            candle_core::bail!("no table to gather from")
        };
        norm.forward(&sum?)
    }

    /// See [`LayerNorm::normalise`].
    fn normalise(&self, x: &Tensor, norm: &LayerNorm) -> Result<Tensor> {
        norm.forward(x)
    }

    /// See [`Kernels::drop_elements`].
    fn drop_elements(&self, x: &Tensor, dropout: Dropout) -> Result<Tensor> {
        reference::drop_elements(x.clone(), Some(&dropout))
    }

    /// See [`Kernels::select_rows`].
    fn select_rows(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        select(x, rows)
    }

    /// See [`Kernels::pointwise`].
    fn pointwise(&self, x: &Tensor, function: Pointwise) -> Result<Tensor> {
        match function {
            // candle's `relu` maps NaN to 0; adding x · 0 restores the NaN.
            Pointwise::Relu => x.relu()? + (x * 0.0)?,
            Pointwise::Tanh => x.tanh(),
        }
    }

    /// See [`Kernels::softmax_rows`].
    fn softmax_rows(&self, rows: SoftmaxRows) -> Vec<f32> {
        rows.run_plain()
    }
}

fn select(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    x.index_select(&Tensor::new(rows, x.device())?, 0)
}

/// The implementation of the operators that a model uses.
#[derive(Debug, Clone, Copy)]
pub enum Kernels {
    /// Fused CPU kernels that run on the calling thread, without gradients.
    Fast(FastKernels),
    /// Fused CPU kernels that run on the calling thread, with gradients.
    Training(TrainingKernels),
    /// candle's operators, with gradients in f32.
    Reference(ReferenceKernels),
}

impl Kernels {
    /// Returns the implementation.
    pub(super) fn backend(&self) -> &dyn Backend {
        match self {
            Self::Fast(kernels) => kernels,
            Self::Training(kernels) => kernels,
            Self::Reference(kernels) => kernels,
        }
    }

    /// Returns candle's operators in a floating-point type.
    #[must_use]
    pub fn reference(dtype: DType) -> Self {
        Self::Reference(ReferenceKernels(dtype))
    }

    /// Returns the fastest f32 kernels for a device: fused ones on a CPU with fused multiply-add, candle's elsewhere.
    #[must_use]
    pub fn for_device(device: &Device) -> Self {
        match Isa::detect() {
            Some(isa) if device.is_cpu() => Self::Fast(FastKernels { isa, int16: None }),
            _ => Self::reference(DType::F32),
        }
    }

    /// Returns the fastest f32 kernels with gradients for a device.
    #[must_use]
    pub fn for_training(device: &Device) -> Self {
        match Self::for_device(device) {
            Self::Fast(FastKernels { isa, .. }) => Self::Training(TrainingKernels { isa }),
            other => other,
        }
    }

    /// Returns the fastest kernels for a device in a precision; none if the device has no kernels in that precision, or
    /// f32 is faster.
    #[must_use]
    pub fn with_precision(device: &Device, precision: Precision) -> Option<Self> {
        match (precision, Self::for_device(device)) {
            (Precision::F32, kernels) => Some(kernels),
            (Precision::Int16, Self::Fast(FastKernels { isa, .. })) => {
                Some(Self::Fast(FastKernels { isa, int16: Some(Int16Kernel::for_isa(isa)?) }))
            }
            (Precision::F16, Self::Reference(_)) if !device.is_cpu() => Some(Self::reference(DType::F16)),
            (Precision::Bf16, Self::Reference(_)) if !device.is_cpu() => Some(Self::reference(DType::BF16)),
            _ => None,
        }
    }

    /// Returns these kernels in f32, which the classification head always uses.
    #[must_use]
    pub fn with_f32(self) -> Self {
        match self {
            Self::Fast(FastKernels { isa, .. }) => Self::Fast(FastKernels { isa, int16: None }),
            Self::Training(_) => self,
            Self::Reference(_) => Self::reference(DType::F32),
        }
    }

    /// Returns the fastest kernels with the same results, for inference.
    #[must_use]
    pub fn without_gradients(self) -> Self {
        match self {
            Self::Training(TrainingKernels { isa }) => Self::Fast(FastKernels { isa, int16: None }),
            other => other,
        }
    }

    /// Returns the f32 kernels for AVX2, even on a CPU with AVX-512; none without AVX2. For tests: both must give the
    /// same results.
    #[must_use]
    #[cfg(target_arch = "x86_64")]
    pub fn avx2() -> Option<Self> {
        pulp::x86::V3::try_new().map(|v3| Self::Fast(FastKernels { isa: Isa::Avx2(v3), int16: None }))
    }

    /// Returns the type of the tensors between the operators.
    #[must_use]
    pub fn dtype(self) -> DType {
        self.backend().dtype()
    }

    /// Applies dropout to `x [T, D]`; without dropout, returns `x`.
    ///
    /// # Errors
    /// A dropout mask whose number of rows is not `T`.
    pub fn drop_elements(self, x: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
        match dropout {
            None => Ok(x.clone()),
            Some(dropout) => {
                dropout.check(x)?;
                self.backend().drop_elements(x, dropout)
            }
        }
    }

    /// Selects `R` rows of `x` by their indices: `[T, D] → [R, D]`.
    ///
    /// # Errors
    /// An index out of range.
    pub fn select_rows(self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        self.backend().select_rows(x, rows)
    }

    /// Applies a function to each element of `x`: `[B, D] → [B, D]`.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn pointwise(self, x: &Tensor, function: Pointwise) -> Result<Tensor> {
        self.backend().pointwise(x, function)
    }

    /// Replaces each row of logits `[_, columns]` with its softmax, and returns the log-sum-exp of each row.
    pub fn softmax_rows(self, logits: &mut [f32], columns: usize) -> Vec<f32> {
        self.backend().softmax_rows(SoftmaxRows { logits, columns })
    }
}
