//! The operators in which an encoder spends most of its time, on packed rows without padding tokens.
//!
//! Each operator has three implementations: a composition of candle's operators ([`Kernels::Reference`]: any device,
//! differentiable), a fused CPU kernel ([`Kernels::Fast`]), and a fused CPU kernel with a backward pass
//! ([`Kernels::Training`]). The implementation is chosen once, when weights are loaded; models do not depend on the
//! choice. The module `backend` dispatches, and explains how to add an implementation.
//!
//! Operators and layers hold no gradients: the [`Tape`] that records a training step looks them up by weight.
//!
//! Sequences are packed: `[T, D]` holds the tokens of all sequences, concatenated. `cu_seqlens` holds their offsets: 0,
//! then the cumulative sum of the sequence lengths.

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

/// The numeric precision of an encoder's linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// 16-bit integers with exact sums in the linear layers, 32-bit floats elsewhere; CPUs only.
    Int16,
    /// IEEE 16-bit floats, except for sums over a row; GPUs only.
    F16,
    /// bfloat16 (the exponent range of f32), except for sums over a row; GPUs only.
    Bf16,
}

impl Precision {
    /// All precisions.
    pub const ALL: [Self; 4] = [Self::F32, Self::Int16, Self::F16, Self::Bf16];

    /// Returns the name used in pipelines and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Int16 => "int16",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Returns true if the device has kernels for this precision that are not slower than f32.
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

/// The activation between the two layers of a feed-forward sublayer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// GELU with the exact `erf` (Hendrycks & Gimpel 2016).
    Gelu,
    /// The tanh approximation of GELU, from the same paper.
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `x · sigmoid(x)`
    Silu,
}

impl Activation {
    /// All activations.
    pub const ALL: [Self; 4] = [Self::Gelu, Self::GeluTanh, Self::Relu, Self::Silu];

    /// Applies the activation with candle's operators.
    fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            Self::Relu => x.relu(),
            Self::Silu => x.silu(),
        }
    }
}

/// The activation between the two layers of a classification head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pointwise {
    /// `max(x, 0)`; NaN stays NaN.
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

    /// Returns the derivative as a function of the activation's output.
    fn slope(self) -> fn(f32) -> f32 {
        match self {
            Self::Relu => |y| if y > 0.0 { 1.0 } else { 0.0 },
            Self::Tanh => |y| 1.0 - y * y,
        }
    }
}

/// Layer normalization: `[T, D] → [T, D]`.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Takes the weight `[D]`, the bias `[D]`, and the ε that is added to the variance.
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

    /// Normalizes rows, without fusing another layer: `[T, D] → [T, D]`.
    ///
    /// # Errors
    /// `x` is not `[T, D]`.
    pub fn normalise(&self, x: &Tensor, kernels: Kernels) -> Result<Tensor> {
        kernels.backend().normalise(x, self)
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        reference::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

/// Calls `f` with the elements of contiguous f32 tensors on the CPU, without copying them.
///
/// # Errors
/// A tensor that is not f32, not on the CPU, or not contiguous.
pub fn read<const N: usize, R>(tensors: [&Tensor; N], f: impl FnOnce([&[f32]; N]) -> R) -> Result<R> {
    let guards = tensors.map(Tensor::storage_and_layout);
    let mut all: [&[f32]; N] = [&[]; N];
    for (values, (storage, layout)) in all.iter_mut().zip(&guards) {
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

/// Converts the results of `N` layers to an array.
fn array<T, const N: usize>(results: Vec<T>) -> Result<[T; N]> {
    results.try_into().map_err(|_| candle_core::Error::Msg("one product per layer".into()))
}
