//! Fully connected layers, optionally fused with activation, dropout, residual connection and layer norm.

use candle_core::{Result, Tensor};

use super::fast::Layer;
use super::training::Dropout;
use super::{Activation, Kernels, LayerNorm, array};

/// A fully connected layer: `[T, in] → [T, out]`.
#[derive(Debug, Clone)]
pub struct Linear {
    pub(super) weights: Weights,
    kernels: Kernels,
}

/// The weights of a layer, in the format of its kernels.
#[derive(Debug, Clone)]
pub(super) enum Weights {
    /// Packed, and perhaps quantized, for the inference kernels on a CPU.
    Packed(Layer),
    /// Weight `[out, in]` and bias `[out]`.
    Plain(Tensor, Tensor),
}

/// The end of a sublayer: dropout, the residual connection and the layer norm.
pub(super) struct AddNorm<'a> {
    pub(super) dropout: Option<Dropout>,
    pub(super) residual: &'a Tensor,
    pub(super) norm: &'a LayerNorm,
}

impl Linear {
    /// Takes a weight `[out, in]` and a bias `[out]`, and packs them if the kernels need it.
    ///
    /// # Errors
    /// A weight or bias of another shape, without elements, or of an unsupported type.
    pub fn new(weight: &Tensor, bias: &Tensor, kernels: Kernels) -> Result<Self> {
        if bias.dims() != [weight.dims2()?.0] {
            candle_core::bail!("bias {:?} does not fit weight {:?}", bias.dims(), weight.dims());
        }
        if weight.elem_count() == 0 {
            candle_core::bail!("weight {:?} has no elements", weight.dims());
        }
        Ok(Self { weights: kernels.backend().prepare(weight, bias)?, kernels })
    }

    /// Returns the layer's kernels.
    #[must_use]
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// Returns the weight `[out, in]` and the bias `[out]`, for kernels that do not pack them.
    pub(super) fn plain(&self) -> Result<(&Tensor, &Tensor)> {
        match &self.weights {
            Weights::Plain(weight, bias) => Ok((weight, bias)),
            Weights::Packed(_) => candle_core::bail!("these kernels cannot read a packed layer"),
        }
    }

    /// Computes `x · weightᵀ + bias`: `[T, in] → [T, out]`.
    ///
    /// # Errors
    /// `x` is not `[T, in]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [out] = linear_many(x, [self])?;
        Ok(out)
    }

    /// Computes `activation(x · weightᵀ + bias)`: `[T, in] → [T, out]`.
    ///
    /// # Errors
    /// `x` is not `[T, in]`.
    pub fn forward_activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let [out] = array(self.kernels.backend().linear(x, &[self], Some(activation))?)?;
        Ok(out)
    }

    /// Computes `norm(x · weightᵀ + bias + residual)`, with a residual `[T, out]`: `[T, in] → [T, out]`.
    ///
    /// # Errors
    /// `x` is not `[T, in]`, or `residual` is not `[T, out]`.
    pub fn forward_add_norm(&self, x: &Tensor, residual: &Tensor, norm: &LayerNorm) -> Result<Tensor> {
        self.forward_dropout_add_norm(x, None, residual, norm)
    }

    /// Computes `norm(dropout(x · weightᵀ + bias) + residual)`: [`Linear::forward_add_norm`] with dropout.
    ///
    /// # Errors
    /// As [`Linear::forward_add_norm`]; a dropout mask whose number of rows is not `T`; dropout with the inference
    /// kernels on a CPU.
    pub fn forward_dropout_add_norm(
        &self,
        x: &Tensor,
        dropout: Option<Dropout>,
        residual: &Tensor,
        norm: &LayerNorm,
    ) -> Result<Tensor> {
        self.kernels.backend().add_norm(x, self, AddNorm { dropout, residual, norm })
    }
}

/// Applies several layers to the same rows `x [T, in]`, which are read and quantized only once. The layers must have
/// the same kernels.
///
/// # Errors
/// `x` is not `[T, in]`.
pub fn linear_many<const N: usize>(x: &Tensor, layers: [&Linear; N]) -> Result<[Tensor; N]> {
    array(match layers.first() {
        Some(layer) => layer.kernels.backend().linear(x, &layers, None)?,
        None => Vec::new(),
    })
}

/// Computes the feed-forward sublayer, `norm(x + lin2(activation(lin1(x))))`: `[T, D] → [T, D]`.
///
/// # Errors
/// `x` is not `[T, D]`; the shapes of the layers or of the norm do not match.
pub fn feed_forward(
    x: &Tensor,
    lin1: &Linear,
    activation: Activation,
    lin2: &Linear,
    norm: &LayerNorm,
) -> Result<Tensor> {
    lin2.kernels.backend().feed_forward(x, [lin1, lin2], activation, norm)
}
