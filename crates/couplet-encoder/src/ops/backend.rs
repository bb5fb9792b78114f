//! One dispatch for all implementations of the operators.
//!
//! [`Kernels`] says which one runs, and is chosen once, when weights are loaded; the operators tell them apart only in
//! [`Kernels::backend`]. The default methods of [`Backend`] are composed of candle's operators, which run on any
//! device in any type and have gradients.
//!
//! To add a backend, such as fused kernels for a GPU:
//!
//! 1. implement [`Backend`] for a `Copy` struct in a module beside [`super::fast`], overriding what it fuses;
//! 2. give it a variant of [`Kernels`], a line in [`Kernels::backend`] and in [`Kernels::with_f32`], and a device or a
//!    precision in [`Kernels::for_device`] or [`Kernels::with_precision`];
//! 3. say in `Trainer::learn` of couplet who computes its gradients: the [`super::Tape`], if it records the backward
//!    pass of what it overrides as [`super::training`] does, or candle, through the default methods;
//! 4. add it to the lists of kernels in `tests/it/ops.rs` and `tests/it/parity.rs`.

use candle_core::{DType, Device, Result, Tensor};

use super::attention::Attention;
use super::fast::{FastKernels, Int16Kernel, Isa};
use super::linear::{AddNorm, Weights};
use super::reference::{self, ReferenceKernels};
use super::training::{Dropout, SoftmaxRows, TrainingKernels};
use super::{Activation, LayerNorm, Linear, Pointwise, Precision};

/// An implementation of the operators; shapes that involve one layer only are checked by it, others by the caller.
pub(super) trait Backend {
    /// The type of the tensors between the operators.
    fn dtype(&self) -> DType {
        DType::F32
    }

    /// Brings a weight `[out, in]` and a bias `[out]` into the form that [`Self::linear`] reads.
    fn prepare(&self, weight: &Tensor, bias: &Tensor) -> Result<Weights> {
        Ok(Weights::Plain(weight.to_dtype(self.dtype())?, bias.to_dtype(self.dtype())?))
    }

    /// `activation(x · weightᵀ + bias)` of each layer, all with the same inputs.
    fn linear(&self, x: &Tensor, layers: &[&Linear], activation: Option<Activation>) -> Result<Vec<Tensor>> {
        layers.iter().map(|layer| reference::linear(x, layer, activation)).collect()
    }

    /// `norm(dropout(x · weightᵀ + bias) + residual)`
    fn add_norm(&self, x: &Tensor, layer: &Linear, sum: AddNorm) -> Result<Tensor> {
        let out = reference::drop_elements(reference::linear(x, layer, None)?, sum.dropout.as_ref())?;
        sum.norm.forward(&(out + sum.residual)?)
    }

    /// `norm(x + lin2(f(lin1(x))))`
    fn feed_forward(&self, x: &Tensor, lin: [&Linear; 2], f: Activation, norm: &LayerNorm) -> Result<Tensor> {
        lin[1].forward_add_norm(&lin[0].forward_activated(x, f)?, x, norm)
    }

    /// See [`attention`](crate::ops::attention::attention).
    fn attention(&self, of: &Attention, dropout: Option<Dropout>) -> Result<Tensor> {
        reference::attention(of, dropout.as_ref())
    }

    /// The normalised sum of rows of tables `[_, D]`, each with its ids: `[T] → [T, D]`.
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
            // candle's `relu` makes a number of what is none; times zero, it stays none.
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

/// Which implementation of the operators a model uses.
#[derive(Debug, Clone, Copy)]
pub enum Kernels {
    /// Fused kernels on the calling CPU thread, without gradients.
    Fast(FastKernels),
    /// Fused kernels on the calling CPU thread, with gradients.
    Training(TrainingKernels),
    /// candle's operators, with gradients in f32.
    Reference(ReferenceKernels),
}

impl Kernels {
    /// The implementation.
    pub(super) fn backend(&self) -> &dyn Backend {
        match self {
            Self::Fast(kernels) => kernels,
            Self::Training(kernels) => kernels,
            Self::Reference(kernels) => kernels,
        }
    }

    /// candle's operators in a floating-point type.
    #[must_use]
    pub fn reference(dtype: DType) -> Self {
        Self::Reference(ReferenceKernels(dtype))
    }

    /// The quickest kernels for the device in f32: fused ones on a CPU with fused multiply-add, candle's elsewhere.
    #[must_use]
    pub fn for_device(device: &Device) -> Self {
        match Isa::detect() {
            Some(isa) if device.is_cpu() => Self::Fast(FastKernels { isa, int16: None }),
            _ => Self::reference(DType::F32),
        }
    }

    /// The quickest kernels with gradients for the device.
    #[must_use]
    pub fn for_training(device: &Device) -> Self {
        match Self::for_device(device) {
            Self::Fast(FastKernels { isa, .. }) => Self::Training(TrainingKernels { isa }),
            other => other,
        }
    }

    /// The quickest kernels for the device in a precision; none where f32 is quicker or the only one.
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

    /// These kernels in f32, as the layers that decide between labels always are.
    #[must_use]
    pub fn with_f32(self) -> Self {
        match self {
            Self::Fast(FastKernels { isa, .. }) => Self::Fast(FastKernels { isa, int16: None }),
            Self::Training(_) => self,
            Self::Reference(_) => Self::reference(DType::F32),
        }
    }

    /// The quickest kernels with the results of these, for weights that are not learned.
    #[must_use]
    pub fn without_gradients(self) -> Self {
        match self {
            Self::Training(TrainingKernels { isa }) => Self::Fast(FastKernels { isa, int16: None }),
            other => other,
        }
    }

    /// The f32 kernels without AVX-512, where this machine has both: the results must not differ.
    #[must_use]
    #[cfg(target_arch = "x86_64")]
    pub fn avx2() -> Option<Self> {
        pulp::x86::V3::try_new().map(|v3| Self::Fast(FastKernels { isa: Isa::Avx2(v3), int16: None }))
    }

    /// The type of the tensors between the operators.
    #[must_use]
    pub fn dtype(self) -> DType {
        self.backend().dtype()
    }

    /// Drops elements of `x [T, D]`, if there are any to drop.
    ///
    /// # Errors
    /// A dropout of other rows than those of `x`.
    pub fn drop_elements(self, x: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
        match dropout {
            None => Ok(x.clone()),
            Some(dropout) => {
                dropout.check(x)?;
                self.backend().drop_elements(x, dropout)
            }
        }
    }

    /// Selects rows of `x [T, D]`: `[R, D]`.
    ///
    /// # Errors
    /// A row that is not there.
    pub fn select_rows(self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        self.backend().select_rows(x, rows)
    }

    /// Applies a function to each element of `x [B, D]`.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn pointwise(self, x: &Tensor, function: Pointwise) -> Result<Tensor> {
        self.backend().pointwise(x, function)
    }

    /// Replaces each row of logits `[_, columns]` by its softmax, and returns the logarithm of each row's sum of
    /// exponentials.
    pub fn softmax_rows(self, logits: &mut [f32], columns: usize) -> Vec<f32> {
        self.backend().softmax_rows(SoftmaxRows { logits, columns })
    }
}
