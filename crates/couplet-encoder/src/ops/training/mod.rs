//! The operators with gradients: the fused kernels with a backward pass, on a [`Tape`] of our own.
//!
//! Weights are not on the tape: an operator adds the gradients of its weights to the [`Gradient`] that each
//! [`Parameter`] was made with, so that no gradient of a whole vocabulary is made for a few tokens.

mod attention;
mod dropout;
mod linear;
mod loss;
mod operators;
mod parameter;
mod tape;
#[cfg(test)]
mod tests;
mod transposed;

use std::sync::Arc;

use candle_core::{Result, Tensor};

pub use dropout::{Dropout, mix64};
pub use dropout::{Noise, Place, Rates};
pub use loss::softmax_rows;
pub(super) use operators::{gather, layers};
pub use parameter::Parameter;
pub use parameter::{Gradient, PackedWeight};

use super::attention::Attention;
use super::linear::Weights;
use super::{Activation, FastKernels, Kernels, LayerNorm, Linear, Pointwise, array, read, reference};
pub use tape::Tape;

/// A layer's parameters where they are learned on the CPU.
#[derive(Debug, Clone)]
pub(super) struct Learned {
    pub(super) kernels: FastKernels,
    weight: Parameter,
    bias: Parameter,
}

impl Linear {
    /// Takes a weight `[out, in]` and a bias `[out]`, with gradients if the kernels have them.
    ///
    /// # Errors
    /// A shape or type that is not as above; a weight to be learned that is not packed.
    pub fn from_parameters(weight: Parameter, bias: Parameter, kernels: Kernels) -> Result<Self> {
        match kernels {
            Kernels::Training(kernels) => {
                let outputs = bias.tensor.elem_count();
                if weight.panels.as_ref().is_none_or(|panels| panels.outputs != outputs) {
                    candle_core::bail!("no packed weight of {outputs} outputs to learn");
                }
                Ok(Self(Weights::Learned(Arc::new(Learned { kernels, weight, bias }))))
            }
            Kernels::Fast(_) | Kernels::Reference(_) => Self::new(&weight.tensor, &bias.tensor, kernels),
        }
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
        match (&self.0, dropout) {
            (Weights::Learned(layer), dropout) => operators::add_norm(layer, x, dropout, residual, norm),
            (_, None) => self.forward_add_norm(x, residual, norm),
            (Weights::Plain(..), Some(dropout)) => {
                norm.forward(&(drop_plain(&self.forward(x)?, &dropout)? + residual)?)
            }
            (Weights::Packed(..), Some(_)) => candle_core::bail!("kernels without gradients drop nothing"),
        }
    }
}

impl Learned {
    fn outputs(&self) -> usize {
        self.bias.tensor.elem_count()
    }

    fn check(&self, x: &Tensor) -> Result<()> {
        match &self.weight.panels {
            Some(panels) if x.dims2()?.1 == panels.inputs => Ok(()),
            _ => candle_core::bail!("x {:?} does not fit a weight of {:?}", x.dims(), self.weight.tensor.dims()),
        }
    }

    pub(super) fn forward(self: &Arc<Self>, x: &Tensor, activation: Option<Activation>) -> Result<Tensor> {
        let [out] = array(layers(x, &[self], activation)?)?;
        Ok(out)
    }
}

impl LayerNorm {
    /// Takes weight and bias `[D]` and the ε that is added to the variance.
    #[must_use]
    pub fn from_parameters(weight: Parameter, bias: Parameter, eps: f64) -> Self {
        let gradients = weight.gradient.zip(bias.gradient);
        Self { weight: weight.tensor, bias: bias.tensor, eps, gradients }
    }

    /// Normalises rows that no layer was fused with: `[T, D] → [T, D]`.
    ///
    /// # Errors
    /// An `x` that is not `[T, D]`.
    pub fn normalise(&self, x: &Tensor, kernels: Kernels) -> Result<Tensor> {
        match kernels {
            Kernels::Training(FastKernels { isa, .. }) => operators::norm(isa, self, x),
            Kernels::Fast(_) | Kernels::Reference(_) => self.forward(x),
        }
    }
}

/// Where the gradients of embedding tables go.
#[derive(Debug, Clone)]
pub struct TableGradients {
    /// Of the table of words, `[vocabulary, D]`.
    pub words: Arc<Gradient>,
    /// Of the table of positions, `[positions, D]`.
    pub positions: Arc<Gradient>,
    /// Of the table of token types, `[types, D]`, where the model has one.
    pub token_types: Option<Arc<Gradient>>,
}

/// [`super::attention()`] with probabilities dropped; shapes are checked.
pub(super) fn attention(of: &Attention, dropout: Option<Dropout>, kernels: FastKernels) -> Result<Tensor> {
    let Attention { query, key, value, cu_queries, cu_keys, heads } = *of;
    let attention = operators::Attention {
        isa: kernels.isa,
        cu_queries: cu_queries.into(),
        cu_keys: cu_keys.into(),
        heads,
        dropout,
    };
    attention.forward(query, key, value)
}

/// Drops elements of `x [T, D]`, if there are any to drop.
///
/// # Errors
/// A dropout of other rows than those of `x`.
pub fn drop_elements(x: &Tensor, dropout: Option<Dropout>, kernels: Kernels) -> Result<Tensor> {
    match (dropout, kernels) {
        (None, _) => Ok(x.clone()),
        (Some(dropout), Kernels::Training(FastKernels { isa, .. })) => {
            check_rows(x, &dropout)?;
            operators::drop(isa, x, dropout)
        }
        (Some(dropout), _) => drop_plain(x, &dropout),
    }
}

/// The given rows of `x [T, D]`: `[R, D]`.
///
/// # Errors
/// A row that is not there.
pub fn select_rows(x: &Tensor, rows: &[u32], kernels: Kernels) -> Result<Tensor> {
    match kernels {
        Kernels::Training(_) => operators::select_rows(x, rows),
        Kernels::Fast(_) | Kernels::Reference(_) => x.index_select(&Tensor::new(rows, x.device())?, 0),
    }
}

/// A function of each element of `x [B, D]`.
///
/// # Errors
/// A failure of the device.
pub fn pointwise(x: &Tensor, function: Pointwise, kernels: Kernels) -> Result<Tensor> {
    let (f, slope): (fn(f32) -> f32, fn(f32) -> f32) = match function {
        Pointwise::Relu => (positive, |y| if y > 0.0 { 1.0 } else { 0.0 }),
        Pointwise::Tanh => (f32::tanh, |y| 1.0 - y * y),
    };
    match (kernels, function) {
        (Kernels::Training(_), _) => operators::elementwise(x, f, slope),
        (Kernels::Fast(_), _) => map(x, f),
        // candle's `relu` makes a number of what is none; times zero, it stays none.
        (Kernels::Reference(_), Pointwise::Relu) => x.relu()? + (x * 0.0)?,
        (Kernels::Reference(_), Pointwise::Tanh) => x.tanh(),
    }
}

/// `max(x, 0)`, and NaN of NaN.
fn positive(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// On this thread: candle would hand many elements to threads of its own.
fn map(x: &Tensor, f: impl Fn(f32) -> f32) -> Result<Tensor> {
    let out = read([x], |[x]| x.iter().map(|x| f(*x)).collect::<Vec<_>>())?;
    Tensor::from_vec(out, x.shape(), x.device())
}

fn drop_plain(x: &Tensor, dropout: &Dropout) -> Result<Tensor> {
    check_rows(x, dropout)?;
    x * dropout.factors(x.dim(1)?, x.device())?.to_dtype(x.dtype())?
}

fn check_rows(x: &Tensor, dropout: &Dropout) -> Result<()> {
    if x.dim(0)? != dropout.rows() {
        candle_core::bail!("a dropout of {} rows does not fit x {:?}", dropout.rows(), x.dims());
    }
    Ok(())
}

/// Attention with dropout for the kernels that have gradients: see [`super::attention()`].
///
/// # Errors
/// As [`super::attention()`]; fused kernels without gradients.
pub fn attention_with_dropout(of: &Attention, dropout: Option<Dropout>, kernels: Kernels) -> Result<Tensor> {
    let Some(dropout) = dropout else {
        return super::attention(of, kernels);
    };
    of.check()?;
    check_rows(of.query, &dropout)?;
    match kernels {
        Kernels::Training(kernels) => attention(of, Some(dropout), kernels),
        Kernels::Reference(_) => reference::attention(of, Some(&dropout)),
        Kernels::Fast(_) => candle_core::bail!("kernels without gradients drop nothing"),
    }
}
