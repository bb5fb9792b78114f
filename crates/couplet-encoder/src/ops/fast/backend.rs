//! Implements the operators with the CPU kernels.

use candle_core::{Device, Result, Tensor};

use super::{AddNorm, Attention, Embed, Epilogue, FeedForward, Int16Kernel, Isa, Layer, Linear as Multiply};
use crate::ops::backend::Backend;
use crate::ops::embeddings::read_tables;
use crate::ops::linear::{self, Weights};
use crate::ops::training::{Dropout, SoftmaxRows};
use crate::ops::{self, Activation, LayerNorm, Linear, Pointwise, array, read};

/// The fused CPU kernels for inference, in f32 or in 16-bit integers. A value proves that this CPU supports the
/// instruction set.
#[derive(Debug, Clone, Copy)]
pub struct FastKernels {
    pub(in crate::ops) isa: Isa,
    pub(in crate::ops) int16: Option<Int16Kernel>,
}

impl Backend for FastKernels {
    fn prepare(&self, weight: &Tensor, bias: &Tensor) -> Result<Weights> {
        let pack = |[weight, bias]: [&[f32]; 2]| Layer::pack(self.isa, self.int16, weight, bias);
        Ok(Weights::Packed(read([weight, bias], pack)?))
    }

    fn linear(&self, x: &Tensor, layers: &[&Linear], activation: Option<Activation>) -> Result<Vec<Tensor>> {
        let layers = layers.iter().map(|layer| packed(layer)).collect::<Result<Vec<_>>>()?;
        multiply(x, &layers, activation.map_or(Epilogue::None, Epilogue::Activation))
    }

    fn add_norm(&self, x: &Tensor, layer: &Linear, sum: linear::AddNorm) -> Result<Tensor> {
        let linear::AddNorm { dropout, residual, norm } = sum;
        reject_dropout(dropout.as_ref())?;
        let layer = packed(layer)?;
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
        let [out] = array(read([residual, &norm.weight, &norm.bias], |[residual, weight, bias]| {
            multiply(x, &[layer], Epilogue::AddNorm(AddNorm { residual, weight, bias, eps }))
        })??)?;
        Ok(out)
    }

    fn feed_forward(&self, x: &Tensor, lin: [&Linear; 2], f: Activation, norm: &LayerNorm) -> Result<Tensor> {
        let (lin1, lin2, dim) = (packed(lin[0])?, packed(lin[1])?, x.dim(1)?);
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
            self.isa.run(FeedForward { lin1, activation: f, lin2, norm })
        })?;
        Tensor::from_vec(out, x.dims(), &Device::Cpu)
    }

    fn attention(&self, of: &ops::Attention, dropout: Option<Dropout>) -> Result<Tensor> {
        reject_dropout(dropout.as_ref())?;
        let ops::Attention { query, key, value, cu_queries, cu_keys, heads } = *of;
        let (rows, dim) = query.dims2()?;
        let context = read([query, key, value], |[query, key, value]| {
            self.isa.run(Attention { query, key, value, cu_queries, cu_keys, dim, heads })
        })?;
        Tensor::from_vec(context, (rows, dim), &Device::Cpu)
    }

    fn embed(&self, tables: &[(&Tensor, &[u32])], norm: &LayerNorm) -> Result<Tensor> {
        Ok(embed(self.isa, tables, norm)?.0)
    }

    fn pointwise(&self, x: &Tensor, function: Pointwise) -> Result<Tensor> {
        // Runs on this thread: candle would use its own threads for large tensors.
        let f = function.of_number();
        let out = read([x], |[x]| x.iter().map(|x| f(*x)).collect::<Vec<_>>())?;
        Tensor::from_vec(out, x.shape(), x.device())
    }

    fn softmax_rows(&self, rows: SoftmaxRows) -> Vec<f32> {
        self.isa.run(rows)
    }
}

fn packed(layer: &Linear) -> Result<&Layer> {
    match &layer.weights {
        Weights::Packed(layer) => Ok(layer),
        Weights::Plain(..) => candle_core::bail!("these kernels read packed layers only, and this one is not packed"),
    }
}

fn reject_dropout(dropout: Option<&Dropout>) -> Result<()> {
    match dropout {
        None => Ok(()),
        Some(_) => candle_core::bail!("kernels without gradients do not support dropout"),
    }
}

fn multiply(x: &Tensor, layers: &[&Layer], epilogue: Epilogue) -> Result<Vec<Tensor>> {
    let (rows, inputs) = x.dims2()?;
    if let Some(layer) = layers.iter().find(|layer| layer.inputs != inputs) {
        candle_core::bail!("x {:?} does not fit a weight of {} inputs", x.dims(), layer.inputs);
    }
    let Some(isa) = layers.first().map(|layer| layer.isa) else { return Ok(Vec::new()) };
    let outs = read([x], |[x]| isa.run(Multiply { x, layers, epilogue }))?;
    let outs = outs.into_iter().zip(layers);
    outs.map(|(out, layer)| Tensor::from_vec(out, (rows, layer.outputs), &Device::Cpu)).collect()
}

/// Computes normalized embeddings `[T, D]`, and the factor `[T]` that each row was scaled by. The ids must be valid.
pub(in crate::ops) fn embed(isa: Isa, tables: &[(&Tensor, &[u32])], norm: &LayerNorm) -> Result<(Tensor, Vec<f32>)> {
    let (LayerNorm { weight, bias, .. }, eps) = (norm, norm.eps_f32());
    let (out, scales) = read_tables(tables, |tables| {
        read([weight, bias], |[weight, bias]| isa.run(Embed { tables, weight, bias, eps }))
    })??;
    Ok((Tensor::from_vec(out, (scales.len(), weight.elem_count()), &Device::Cpu)?, scales))
}
