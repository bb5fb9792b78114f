//! The fused CPU kernels with a backward pass, recorded on a [`Tape`] instead of candle's.
//!
//! Weights are not on the tape. The recording has a [`Gradient`] for each weight ([`Parameters`]), to which operators
//! add. So a batch with a few tokens needs no gradient of the whole vocabulary, and inference and training share the
//! same layers.

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

use candle_core::{Result, Tensor};

pub use dropout::{Dropout, Noise, Place, Rates, mix64};
pub(super) use loss::SoftmaxRows;
pub use parameter::{Gradient, PackedWeight, Parameter, Parameters};
pub use tape::Tape;

use super::backend::Backend;
use super::fast::Isa;
use super::linear::AddNorm;
use super::{Activation, Attention, LayerNorm, Linear, Pointwise};

/// The fused CPU kernels with gradients. A value proves that this CPU supports the instruction set.
#[derive(Debug, Clone, Copy)]
pub struct TrainingKernels {
    pub(super) isa: Isa,
}

impl TrainingKernels {
    /// Returns the instruction set of the kernels.
    #[must_use]
    pub fn isa(self) -> Isa {
        self.isa
    }
}

impl Backend for TrainingKernels {
    fn linear(&self, x: &Tensor, layers: &[&Linear], activation: Option<Activation>) -> Result<Vec<Tensor>> {
        operators::layers(self.isa, x, layers, activation)
    }

    fn add_norm(&self, x: &Tensor, layer: &Linear, sum: AddNorm) -> Result<Tensor> {
        operators::add_norm(self.isa, x, layer, sum)
    }

    fn attention(&self, of: &Attention, dropout: Option<Dropout>) -> Result<Tensor> {
        let Attention { query, key, value, cu_queries, cu_keys, heads } = *of;
        let (cu_queries, cu_keys) = (cu_queries.into(), cu_keys.into());
        operators::Attention { isa: self.isa, cu_queries, cu_keys, heads, dropout }.forward(query, key, value)
    }

    fn embed(&self, tables: &[(&Tensor, &[u32])], norm: &LayerNorm) -> Result<Tensor> {
        self.normalise(&operators::gather(tables)?, norm)
    }

    fn normalise(&self, x: &Tensor, norm: &LayerNorm) -> Result<Tensor> {
        operators::norm(self.isa, norm, x)
    }

    fn drop_elements(&self, x: &Tensor, dropout: Dropout) -> Result<Tensor> {
        operators::drop(self.isa, x, dropout)
    }

    fn select_rows(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        operators::select_rows(x, rows)
    }

    fn pointwise(&self, x: &Tensor, function: Pointwise) -> Result<Tensor> {
        operators::elementwise(x, function.of_number(), function.slope())
    }

    fn softmax_rows(&self, rows: SoftmaxRows) -> Vec<f32> {
        self.isa.run(rows)
    }
}
