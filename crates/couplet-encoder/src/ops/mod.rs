//! The few operators that an encoder spends its time in, over packed rows: no padding tokens anywhere.
//!
//! Each exists three times: composed of candle's operators ([`Kernels::Reference`]: any device, differentiable),
//! as a fused CPU kernel ([`Kernels::Fast`]), and as a fused CPU kernel with a backward pass
//! ([`Kernels::Training`]). The choice is made once, when weights are loaded; a model does not know which one runs.
//!
//! Sequences are packed: `[T, D]` holds the tokens of all sequences one after the other, and
//! `cu_seqlens` (0, then the running sum of lengths) says where each begins.

mod attention;
mod embeddings;
mod fast;
#[cfg(feature = "flash-attn")]
mod flash;
mod linear;
mod reference;
mod training;

use std::fmt;
use std::sync::Arc;

use candle_core::{CpuStorage, DType, Device, Layout, Result, Storage, Tensor};

pub use attention::{Attention, FirstTokenAttention, attention};
pub use embeddings::{Embeddings, ProjectedEmbeddings};
pub use linear::{Linear, feed_forward, linear_many};

pub use fast::Isa;
pub use training::{
    Gradient, PackedWeight, Tape, attention_with_dropout, drop_elements, mix64, pointwise, select_rows, softmax_rows,
};
pub use training::{Noise, Parameter, Place, Rates, TableGradients};

use fast::Int16Kernel;

/// The numbers in which an encoder's linear layers multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// 16-bit integers with exact sums, and 32-bit floats everywhere else; on CPUs.
    Int16,
    /// 16-bit floats of the IEEE, everywhere but in sums over a row; on GPUs.
    F16,
    /// 16-bit floats with the exponents of f32, everywhere but in sums over a row; on GPUs.
    Bf16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::F32, Self::Int16, Self::F16, Self::Bf16];
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Int16 => "int16",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// The function between the two layers of a feed-forward sublayer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// GELU with the exact `erf` (Hendrycks & Gimpel 2016).
    Gelu,
    /// GELU by its tanh approximation, of the same paper.
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `x · sigmoid(x)`
    Silu,
}

impl Activation {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Gelu, Self::GeluTanh, Self::Relu, Self::Silu];

    /// The function by candle's operators.
    fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            Self::Relu => x.relu(),
            Self::Silu => x.silu(),
        }
    }
}

/// The function between the two layers of a classification head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pointwise {
    /// `max(x, 0)`, and NaN of NaN.
    Relu,
    /// The hyperbolic tangent.
    Tanh,
}

/// Which implementation of the operators a model uses.
#[derive(Debug, Clone, Copy)]
pub enum Kernels {
    /// Fused kernels on the calling CPU thread, without gradients.
    Fast(FastKernels),
    /// Fused kernels on the calling CPU thread, with gradients.
    Training(FastKernels),
    /// candle's operators in a floating-point type.
    Reference(DType),
}

/// Proof that this CPU can run the fused kernels, and how they multiply by weights.
#[derive(Debug, Clone, Copy)]
pub struct FastKernels {
    isa: Isa,
    int16: Option<Int16Kernel>,
}

impl FastKernels {
    /// The instruction set that they were compiled for.
    #[must_use]
    pub fn isa(self) -> Isa {
        self.isa
    }
}

impl Kernels {
    /// The quickest kernels for the device in f32: fused ones on a CPU with fused multiply-add, candle's elsewhere.
    #[must_use]
    pub fn for_device(device: &Device) -> Self {
        match Isa::detect() {
            Some(isa) if device.is_cpu() => Self::Fast(FastKernels { isa, int16: None }),
            _ => Self::Reference(DType::F32),
        }
    }

    /// The quickest kernels with gradients for the device.
    #[must_use]
    pub fn for_training(device: &Device) -> Self {
        match Self::for_device(device) {
            Self::Fast(kernels) => Self::Training(kernels),
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
            (Precision::F16, Self::Reference(_)) if !device.is_cpu() => Some(Self::Reference(DType::F16)),
            (Precision::Bf16, Self::Reference(_)) if !device.is_cpu() => Some(Self::Reference(DType::BF16)),
            _ => None,
        }
    }

    /// The same in f32, as the layers that decide between labels always are.
    #[must_use]
    pub fn with_f32(self) -> Self {
        match self {
            Self::Fast(FastKernels { isa, .. }) => Self::Fast(FastKernels { isa, int16: None }),
            Self::Training(_) => self,
            Self::Reference(_) => Self::Reference(DType::F32),
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
        match self {
            Self::Fast(_) | Self::Training(_) => DType::F32,
            Self::Reference(dtype) => dtype,
        }
    }
}

/// Scale and shift of a layer normalisation: `[T, D] → [T, D]`.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
    /// Of weight and bias, where the CPU kernels learn them.
    gradients: Option<(Arc<Gradient>, Arc<Gradient>)>,
}

impl LayerNorm {
    /// Takes weight and bias `[D]` and the ε that is added to the variance.
    #[must_use]
    pub fn new(weight: Tensor, bias: Tensor, eps: f64) -> Self {
        Self { weight, bias, eps, gradients: None }
    }

    /// Whether it is of rows of so many columns.
    fn fits(&self, dim: usize) -> bool {
        [self.weight.dims(), self.bias.dims()] == [[dim]; 2]
    }

    fn eps_f32(&self) -> f32 {
        self.eps as f32
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        reference::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

/// Gives `f` the elements of contiguous f32 tensors on the CPU.
///
/// # Errors
/// Tensors that are not f32, on another device or not contiguous.
pub fn read<const N: usize, R>(tensors: [&Tensor; N], f: impl FnOnce([&[f32]; N]) -> R) -> Result<R> {
    let held = tensors.map(Tensor::storage_and_layout);
    let mut all: [&[f32]; N] = [&[]; N];
    for (values, (storage, layout)) in all.iter_mut().zip(&held) {
        *values = elements(storage, layout)?;
    }
    Ok(f(all))
}

fn elements<'s>(storage: &'s Storage, layout: &Layout) -> Result<&'s [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => Ok(&values[start..end]),
        _ => candle_core::bail!(
            "the CPU kernels read contiguous f32 tensors on the CPU, not {:?} on {:?} as {layout:?}",
            storage.dtype(),
            storage.device().location()
        ),
    }
}

/// The results of so many layers.
fn array<T, const N: usize>(of: Vec<T>) -> Result<[T; N]> {
    of.try_into().map_err(|_| candle_core::Error::Msg("one product a layer".into()))
}
