//! Fully connected layers, with what follows them.

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

/// The weights of a layer, in the form that its kernels read.
#[derive(Debug, Clone)]
pub(super) enum Weights {
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
    /// Takes a weight `[out, in]` and a bias `[out]`, packing them if the kernels want them packed.
    ///
    /// # Errors
    /// A shape or type that is not as above.
    pub fn new(weight: &Tensor, bias: &Tensor, kernels: Kernels) -> Result<Self> {
        if bias.dims() != [weight.dims2()?.0] {
            candle_core::bail!("bias {:?} does not fit weight {:?}", bias.dims(), weight.dims());
        }
        if weight.elem_count() == 0 {
            candle_core::bail!("weight {:?} has no element", weight.dims());
        }
        Ok(Self { weights: kernels.backend().prepare(weight, bias)?, kernels })
    }

    /// The kernels that run it.
    #[must_use]
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// Weight and bias, for kernels that do not pack them.
    pub(super) fn plain(&self) -> Result<(&Tensor, &Tensor)> {
        match &self.weights {
            Weights::Plain(weight, bias) => Ok((weight, bias)),
            Weights::Packed(_) => candle_core::bail!("a packed layer in kernels that do not read it"),
        }
    }

    /// `x · weightᵀ + bias`
    ///
    /// # Errors
    /// An `x` that is not `[T, in]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [out] = linear_many(x, [self])?;
        Ok(out)
    }

    /// `activation(x · weightᵀ + bias)`
    ///
    /// # Errors
    /// An `x` that is not `[T, in]`.
    pub fn forward_activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let [out] = array(self.kernels.backend().linear(x, &[self], Some(activation))?)?;
        Ok(out)
    }

    /// `norm(x · weightᵀ + bias + residual)`, the residual `[T, out]`
    ///
    /// # Errors
    /// An `x` that is not `[T, in]`, a residual that is not `[T, out]`.
    pub fn forward_add_norm(&self, x: &Tensor, residual: &Tensor, norm: &LayerNorm) -> Result<Tensor> {
        self.forward_dropout_add_norm(x, None, residual, norm)
    }

    /// `norm(dropout(x · weightᵀ + bias) + residual)`, as [`Linear::forward_add_norm`] if nothing is dropped.
    ///
    /// # Errors
    /// As [`Linear::forward_add_norm`]; a dropout of other rows; fused kernels without gradients.
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

/// Applies several layers of the same kernels to the same rows, which are read and packed once.
///
/// # Errors
/// An `x` that is not `[T, in]`.
pub fn linear_many<const N: usize>(x: &Tensor, layers: [&Linear; N]) -> Result<[Tensor; N]> {
    array(match layers.first() {
        Some(layer) => layer.kernels.backend().linear(x, &layers, None)?,
        None => Vec::new(),
    })
}

/// The feed-forward sublayer, `norm(x + lin2(activation(lin1(x))))`: `[T, D] → [T, D]`.
///
/// # Errors
/// An `x` that is not `[T, D]`, layers or a norm that do not fit it and each other.
pub fn feed_forward(
    x: &Tensor,
    lin1: &Linear,
    activation: Activation,
    lin2: &Linear,
    norm: &LayerNorm,
) -> Result<Tensor> {
    lin2.kernels.backend().feed_forward(x, [lin1, lin2], activation, norm)
}
