//! Fully connected layers, with what follows them.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::fast::{self, AddNorm, Epilogue, Isa, Layer};
use super::training::{self, Learned};
use super::{FastKernels, Kernels, LayerNorm, read, read2, read3};

/// A fully connected layer: `[T, in] → [T, out]`.
#[derive(Debug, Clone)]
pub struct Linear(pub(super) Weights);

#[derive(Debug, Clone)]
pub(super) enum Weights {
    Packed(Isa, Layer),
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
                let pack = |weight: &[f32], bias: &[f32]| match int16 {
                    None => Layer::pack(isa, weight, bias),
                    Some(kernel) => Layer::quantize(kernel, weight, bias),
                };
                Weights::Packed(isa, read2(weight, bias, pack)?)
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
            Weights::Packed(isa, layer) => forward_packed(*isa, layer, x, Epilogue::None),
            Weights::Learned(layer) => layer.forward(x, false),
            Weights::Plain(weight, bias) => forward_plain(weight, bias, x),
        }
    }

    /// `gelu(x · weightᵀ + bias)` with the exact `erf`
    ///
    /// # Errors
    /// An `x` that is not `[T, in]`.
    pub fn forward_gelu(&self, x: &Tensor) -> Result<Tensor> {
        match &self.0 {
            Weights::Packed(isa, layer) => forward_packed(*isa, layer, x, Epilogue::Gelu),
            Weights::Learned(layer) => layer.forward(x, true),
            Weights::Plain(weight, bias) => forward_plain(weight, bias, x)?.gelu_erf(),
        }
    }

    /// `norm(x · weightᵀ + bias + residual)`, the residual `[T, out]`
    ///
    /// # Errors
    /// An `x` that is not `[T, in]`, a residual that is not `[T, out]`.
    pub fn forward_add_norm(&self, x: &Tensor, residual: &Tensor, norm: &LayerNorm) -> Result<Tensor> {
        match &self.0 {
            Weights::Packed(isa, layer) => {
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
                read3(residual, &norm.weight, &norm.bias, |residual, weight, bias| {
                    forward_packed(*isa, layer, x, Epilogue::AddNorm(AddNorm { residual, weight, bias, eps }))
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

fn forward_packed(isa: Isa, layer: &Layer, x: &Tensor, epilogue: Epilogue) -> Result<Tensor> {
    let mut outs = forward_packed_many(isa, &[layer], x, epilogue)?;
    outs.pop().ok_or_else(|| candle_core::Error::Msg("one product a layer".into()))
}

fn forward_packed_many(isa: Isa, layers: &[&Layer], x: &Tensor, epilogue: Epilogue) -> Result<Vec<Tensor>> {
    let (rows, inputs) = x.dims2()?;
    if let Some(layer) = layers.iter().find(|layer| layer.inputs != inputs) {
        candle_core::bail!("x {:?} does not fit a weight of {} inputs", x.dims(), layer.inputs);
    }
    let outs = read(x, |x| isa.run(fast::Linear { x, layers, epilogue }))?;
    outs.into_iter()
        .zip(layers)
        .map(|(out, layer)| Tensor::from_vec(out, (rows, layer.outputs), &Device::Cpu))
        .collect()
}

/// Applies several layers to the same rows, which are read and packed once.
///
/// # Errors
/// An `x` that is not `[T, in]`.
pub fn linear_many<const N: usize>(x: &Tensor, layers: [&Linear; N]) -> Result<[Tensor; N]> {
    let packed: Vec<(Isa, &Layer)> = layers
        .iter()
        .filter_map(|linear| match &linear.0 {
            Weights::Packed(isa, layer) => Some((*isa, layer)),
            Weights::Learned(_) | Weights::Plain(..) => None,
        })
        .collect();
    let learned: Vec<&Arc<Learned>> = layers
        .iter()
        .filter_map(|linear| match &linear.0 {
            Weights::Learned(layer) => Some(layer),
            Weights::Packed(..) | Weights::Plain(..) => None,
        })
        .collect();
    let outs = match packed.first() {
        None if learned.len() == N => training::forward_many(&learned, x)?,
        Some((isa, _)) if packed.len() == N => {
            let layers: Vec<&Layer> = packed.iter().map(|(_, layer)| *layer).collect();
            forward_packed_many(*isa, &layers, x, Epilogue::None)?
        }
        _ => layers.iter().map(|linear| linear.forward(x)).collect::<Result<Vec<_>>>()?,
    };
    outs.try_into().map_err(|_| candle_core::Error::Msg("one product a layer".into()))
}

/// The feed-forward sublayer, `norm(x + lin2(gelu(lin1(x))))`: `[T, D] → [T, D]`.
///
/// # Errors
/// An `x` that is not `[T, D]`, layers or a norm that do not fit it and each other.
pub fn feed_forward(x: &Tensor, lin1: &Linear, lin2: &Linear, norm: &LayerNorm) -> Result<Tensor> {
    match (&lin1.0, &lin2.0) {
        (Weights::Packed(isa, lin1), Weights::Packed(_, lin2)) => {
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
            let out = read3(x, &norm.weight, &norm.bias, |residual, weight, bias| {
                isa.run(fast::FeedForward { lin1, lin2, norm: AddNorm { residual, weight, bias, eps } })
            })?;
            Tensor::from_vec(out, x.dims(), &Device::Cpu)
        }
        _ => lin2.forward_add_norm(&lin1.forward_gelu(x)?, x, norm),
    }
}
