//! The few operators that an encoder spends its time in, over packed rows: no padding tokens anywhere.
//!
//! Each exists three times: composed of candle's operators ([`Kernels::Reference`]: any device, differentiable),
//! as a fused CPU kernel ([`Kernels::Fast`]), and as a fused CPU kernel with a backward pass
//! ([`Kernels::Training`]). The choice is made once, when weights are loaded; a model does not know which one runs.
//! The module `backend` dispatches, and says how another implementation is added.
//!
//! No operator or layer holds gradients: the [`Tape`] that records a training step finds them by the weight.
//!
//! Sequences are packed: `[T, D]` holds the tokens of all sequences one after the other, and
//! `cu_seqlens` (0, then the running sum of lengths) says where each begins.

mod attention;
mod backend;
mod embeddings;
mod fast;
#[cfg(feature = "flash-attn")]
mod flash;
mod linear;
mod reference;
mod training;

use std::fmt;

use candle_core::{CpuStorage, Device, Layout, Result, Storage, Tensor};

pub use attention::{Attention, FirstTokenAttention, attention, attention_with_dropout};
pub use backend::Kernels;
pub use embeddings::{Embeddings, ProjectedEmbeddings};
pub use linear::{Linear, feed_forward, linear_many};

pub use fast::{FastKernels, Isa};
pub use reference::ReferenceKernels;
pub use training::{
    Dropout, Gradient, Noise, PackedWeight, Parameter, Parameters, Place, Rates, Tape, TrainingKernels, mix64,
};

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

    /// Returns the name in pipelines and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Int16 => "int16",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Whether there are kernels for it on a device, and f32 is not quicker.
    #[must_use]
    pub fn runs_on(self, device: &Device) -> bool {
        Kernels::with_precision(device, self).is_some()
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
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

impl Pointwise {
    fn of_number(self) -> fn(f32) -> f32 {
        match self {
            Self::Relu => |x| if x < 0.0 { 0.0 } else { x },
            Self::Tanh => f32::tanh,
        }
    }

    /// The derivative, as a function of the value.
    fn slope(self) -> fn(f32) -> f32 {
        match self {
            Self::Relu => |y| if y > 0.0 { 1.0 } else { 0.0 },
            Self::Tanh => |y| 1.0 - y * y,
        }
    }
}

/// Scale and shift of a layer normalisation: `[T, D] → [T, D]`.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Takes weight and bias `[D]` and the ε that is added to the variance.
    #[must_use]
    pub fn new(weight: Tensor, bias: Tensor, eps: f64) -> Self {
        Self { weight, bias, eps }
    }

    /// Returns true if it normalizes rows of `dim` columns.
    fn fits(&self, dim: usize) -> bool {
        [self.weight.dims(), self.bias.dims()] == [[dim]; 2]
    }

    fn eps_f32(&self) -> f32 {
        self.eps as f32
    }

    /// Normalises rows that no layer was fused with: `[T, D] → [T, D]`.
    ///
    /// # Errors
    /// An `x` that is not `[T, D]`.
    pub fn normalise(&self, x: &Tensor, kernels: Kernels) -> Result<Tensor> {
        kernels.backend().normalise(x, self)
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

/// One result per layer.
fn array<T, const N: usize>(of: Vec<T>) -> Result<[T; N]> {
    of.try_into().map_err(|_| candle_core::Error::Msg("one product per layer".into()))
}
