//! Fully connected layers, with what follows them.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::fast::{self, AddNorm, Epilogue, Layer};
use super::training::{self, Learned};
use super::{Activation, FastKernels, Kernels, LayerNorm, array, read};

/// A fully connected layer: `[T, in] → [T, out]`.
#[derive(Debug, Clone)]
pub struct Linear(pub(super) Weights);

#[derive(Debug, Clone)]
pub(super) enum Weights {
    Packed(Layer),
    Learned(Arc<Learned>),
    /// Weight `[out, in]` and bias `[out]`.
    Plain(Tensor, Tensor),
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
        Ok(Self(match kernels {
            Kernels::Fast(FastKernels { isa, int16 }) => {
                Weights::Packed(read([weight, bias], |[weight, bias]| Layer::pack(isa, int16, weight, bias))?)
            }
            Kernels::Training(_) => candle_core::bail!("what is learned is a parameter"),
            Kernels::Reference(dtype) => Weights::Plain(weight.to_dtype(dtype)?, bias.to_dtype(dtype)?),
        }))
    }

    /// `x · weightᵀ + bias`
    ///
    /// # Errors
    /// An `x` that is not `[T, in]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.0 {
            Weights::Packed(layer) => forward_packed(layer, x, Epilogue::None),
            Weights::Learned(layer) => layer.forward(x, None),
            Weights::Plain(weight, bias) => forward_plain(weight, bias, x),
        }
    }

    /// `activation(x · weightᵀ + bias)`
    ///
    /// # Errors
    /// An `x` that is not `[T, in]`.
    pub fn forward_activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        match &self.0 {
            Weights::Packed(layer) => forward_packed(layer, x, Epilogue::Activation(activation)),
            Weights::Learned(layer) => layer.forward(x, Some(activation)),
            Weights::Plain(weight, bias) => activation.forward(&forward_plain(weight, bias, x)?),
        }
    }

    /// `norm(x · weightᵀ + bias + residual)`, the residual `[T, out]`
    ///
    /// # Errors
    /// An `x` that is not `[T, in]`, a residual that is not `[T, out]`.
    pub fn forward_add_norm(&self, x: &Tensor, residual: &Tensor, norm: &LayerNorm) -> Result<Tensor> {
        match &self.0 {
            Weights::Packed(layer) => {
                if residual.dims2()? != (x.dim(0)?, layer.outputs) || !norm.fits(layer.outputs) {
                    candle_core::bail!(
                        "residual {:?} and norm {:?} do not fit x {:?} and {} outputs",
                        residual.dims(),
                        norm.weight.dims(),
                        x.dims(),
                        layer.outputs
                    );
                }
                let eps = norm.eps_f32();
                read([residual, &norm.weight, &norm.bias], |[residual, weight, bias]| {
                    forward_packed(layer, x, Epilogue::AddNorm(AddNorm { residual, weight, bias, eps }))
                })?
            }
            Weights::Learned(_) => self.forward_dropout_add_norm(x, None, residual, norm),
            Weights::Plain(weight, bias) => norm.forward(&(forward_plain(weight, bias, x)? + residual)?),
        }
    }
}

fn forward_plain(weight: &Tensor, bias: &Tensor, x: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.t()?)?.broadcast_add(bias)
}

fn forward_packed(layer: &Layer, x: &Tensor, epilogue: Epilogue) -> Result<Tensor> {
    let [out] = array(forward_packed_many(&[layer], x, epilogue)?)?;
    Ok(out)
}

fn forward_packed_many(layers: &[&Layer], x: &Tensor, epilogue: Epilogue) -> Result<Vec<Tensor>> {
    let (rows, inputs) = x.dims2()?;
    if let Some(layer) = layers.iter().find(|layer| layer.inputs != inputs) {
        candle_core::bail!("x {:?} does not fit a weight of {} inputs", x.dims(), layer.inputs);
    }
    let Some(isa) = layers.first().map(|layer| layer.isa) else { return Ok(Vec::new()) };
    let outs = read([x], |[x]| isa.run(fast::Linear { x, layers, epilogue }))?;
    let outs = outs.into_iter().zip(layers);
    outs.map(|(out, layer)| Tensor::from_vec(out, (rows, layer.outputs), &Device::Cpu)).collect()
}

/// Applies several layers to the same rows, which are read and packed once.
///
/// # Errors
/// An `x` that is not `[T, in]`.
pub fn linear_many<const N: usize>(x: &Tensor, layers: [&Linear; N]) -> Result<[Tensor; N]> {
    let (mut packed, mut learned) = (Vec::new(), Vec::new());
    for layer in layers {
        match &layer.0 {
            Weights::Packed(layer) => packed.push(layer),
            Weights::Learned(layer) => learned.push(layer),
            Weights::Plain(..) => {}
        }
    }
    array(if packed.len() == N {
        forward_packed_many(&packed, x, Epilogue::None)?
    } else if learned.len() == N {
        training::layers(x, &learned, None)?
    } else {
        layers.iter().map(|layer| layer.forward(x)).collect::<Result<_>>()?
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
    match (&lin1.0, &lin2.0) {
        (Weights::Packed(lin1), Weights::Packed(lin2)) => {
            let dim = x.dim(1)?;
            let fit = [lin1.inputs, lin2.outputs] == [dim; 2] && lin1.outputs == lin2.inputs;
            if !fit || !norm.fits(dim) {
                candle_core::bail!(
                    "layers {} to {} and {} to {} with a norm {:?} do not fit x {:?}",
                    lin1.inputs,
                    lin1.outputs,
                    lin2.inputs,
                    lin2.outputs,
                    norm.weight.dims(),
                    x.dims()
                );
            }
            let eps = norm.eps_f32();
            let out = read([x, &norm.weight, &norm.bias], |[residual, weight, bias]| {
                let norm = AddNorm { residual, weight, bias, eps };
                lin1.isa.run(fast::FeedForward { lin1, activation, lin2, norm })
            })?;
            Tensor::from_vec(out, x.dims(), &Device::Cpu)
        }
        _ => lin2.forward_add_norm(&lin1.forward_activated(x, activation)?, x, norm),
    }
}
