//! Tensor operators that run the kernels and record themselves on the tape.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::linear::{self, Normalised};
use super::parameter::RowGradients;
use super::tape::{parameter, push, single};
use super::{Dropout, Gradient, PackedWeight, Parameter, attention};
use crate::ops::fast::Isa;
use crate::ops::linear::AddNorm;
use crate::ops::{Activation, LayerNorm, Linear, read};

/// A linear layer with the gradients of its weight and bias.
struct TrainableLinear {
    panels: Arc<PackedWeight>,
    d_weight: Arc<Gradient>,
    bias: Vec<f32>,
    d_bias: Arc<Gradient>,
}

impl TrainableLinear {
    /// Looks up the packed weight and the gradients of a layer, and checks that it fits `x [T, in]`.
    fn of(layer: &Linear, x: &Tensor) -> Result<Self> {
        let (weight, bias) = layer.plain()?;
        let Parameter { gradient: d_weight, panels } = parameter(weight)?;
        let (bias, d_bias) = (bias.to_vec1()?, parameter(bias)?.gradient);
        match panels.filter(|panels| [panels.outputs, panels.inputs] == weight.dims()) {
            Some(panels) if x.dims2()?.1 == panels.inputs => Ok(Self { panels, d_weight, bias, d_bias }),
            Some(_) => candle_core::bail!("x {:?} does not fit a weight of {:?}", x.dims(), weight.dims()),
            None => candle_core::bail!("the weight {:?} is not packed for training", weight.dims()),
        }
    }

    fn weight(&self) -> linear::Weight<'_> {
        linear::Weight { panels: &self.panels, bias: &self.bias }
    }
}

/// Computes `x · weightᵀ + bias` for each layer, with an optional activation.
pub(super) fn layers(isa: Isa, x: &Tensor, layers: &[&Linear], activation: Option<Activation>) -> Result<Vec<Tensor>> {
    let x = x.contiguous()?;
    let trainable = layers.iter().map(|layer| TrainableLinear::of(layer, &x)).collect::<Result<Vec<_>>>()?;
    let weights: Vec<linear::Weight> = trainable.iter().map(TrainableLinear::weight).collect();
    let (outs, pre_activations) = read([&x], |[x]| isa.run(linear::Forward { x, layers: &weights, activation }))?;
    let results: Vec<Tensor> =
        outs.into_iter().zip(&trainable).map(|(out, layer)| tensor(out, layer.bias.len())).collect::<Result<_>>()?;
    push("linear", &[&x.clone()], &results, move |mut gradients| {
        if let Some(activation) = activation {
            for (gradient, pre_activation) in gradients.iter_mut().zip(&pre_activations) {
                isa.run(linear::BackwardActivation { gradient, pre_activation, activation });
            }
        }
        Ok(vec![backward(isa, &trainable, &x, &gradients)?])
    });
    Ok(results)
}

/// Accumulates the gradients of the layers' weights and biases, and returns the gradient of `x`.
fn backward(isa: Isa, layers: &[TrainableLinear], x: &Tensor, gradients: &[Vec<f32>]) -> Result<Vec<f32>> {
    let mut sums: Vec<_> = layers
        .iter()
        .map(|TrainableLinear { panels, d_weight, d_bias, .. }| {
            (d_weight.dense_mut(panels.outputs * panels.inputs), d_bias.dense_mut(panels.outputs))
        })
        .collect();
    let sums = sums.iter_mut().map(|(weight, bias)| linear::Sums { weight, bias }).collect();
    read([x], |[x]| isa.run(linear::BackwardWeight { x, gradients, sums }))?;
    let weights: Vec<&PackedWeight> = layers.iter().map(|layer| &*layer.panels).collect();
    Ok(isa.run(linear::BackwardInput { gradients, weights: &weights }))
}

/// Computes `norm(dropout(x · weightᵀ + bias) + residual)`.
pub(super) fn add_norm(isa: Isa, x: &Tensor, layer: &Linear, sum: AddNorm) -> Result<Tensor> {
    let AddNorm { dropout, residual, norm } = sum;
    let (x, residual) = (x.contiguous()?, residual.contiguous()?);
    let trainable = TrainableLinear::of(layer, &x)?;
    let outputs = trainable.bias.len();
    if residual.dims2()? != (x.dim(0)?, outputs) || !norm.fits(outputs) {
        candle_core::bail!("residual {:?} and norm {:?} do not fit x {:?}", residual, norm.weight, x);
    }
    if let Some(dropout) = &dropout {
        dropout.check(&x)?;
    }
    let eps = norm.eps_f32();
    let (out, normalised) = read([&x, &residual, &norm.weight, &norm.bias], |[x, residual, weight, bias]| {
        let (dropout, norm) = (dropout.as_ref(), linear::Norm { weight, bias, eps });
        isa.run(linear::ForwardAddNorm { x, weight: trainable.weight(), dropout, residual, norm })
    })?;
    let result = tensor(out, outputs)?;
    let norm = TrainableNorm::of(norm)?;
    push("linear-add-norm", &[&x.clone(), &residual], std::slice::from_ref(&result), move |gradients| {
        let d_sum = norm.backward(isa, &single(gradients)?, &normalised)?;
        let mut gradients = [d_sum.clone()];
        if let Some(dropout) = &dropout {
            isa.run(linear::Drop { values: &mut gradients[0], dropout });
        }
        Ok(vec![backward(isa, &[trainable], &x, &gradients)?, d_sum])
    });
    Ok(result)
}

/// A layer norm with the gradients of its weight and bias.
struct TrainableNorm {
    weight: Tensor,
    d_weight: Arc<Gradient>,
    d_bias: Arc<Gradient>,
}

impl TrainableNorm {
    fn of(LayerNorm { weight, bias, .. }: &LayerNorm) -> Result<Self> {
        let (d_weight, d_bias) = (parameter(weight)?.gradient, parameter(bias)?.gradient);
        Ok(Self { weight: weight.clone(), d_weight, d_bias })
    }

    /// Accumulates the gradients of the weight and the bias, and returns the gradient of the input.
    fn backward(&self, isa: Isa, gradient: &[f32], normalised: &Normalised) -> Result<Vec<f32>> {
        let dim = self.weight.elem_count();
        let (weight_gradient, bias_gradient) = (&mut *self.d_weight.dense_mut(dim), &mut *self.d_bias.dense_mut(dim));
        read([&self.weight], |[weight]| {
            isa.run(linear::BackwardNorm { gradient, normalised, weight, weight_gradient, bias_gradient })
        })
    }
}

/// Applies a layer norm.
pub(super) fn norm(isa: Isa, norm: &LayerNorm, x: &Tensor) -> Result<Tensor> {
    if !norm.fits(x.dims2()?.1) {
        candle_core::bail!("x {:?} does not fit a norm of {:?}", x.dims(), norm.weight.dims());
    }
    let (x_values, eps) = (values(x)?, norm.eps_f32());
    let (out, normalised) = read([&norm.weight, &norm.bias], |[weight, bias]| {
        isa.run(linear::ForwardNorm { x: x_values, norm: linear::Norm { weight, bias, eps } })
    })?;
    let result = tensor(out, x.dim(1)?)?;
    let norm = TrainableNorm::of(norm)?;
    push("norm", &[x], std::slice::from_ref(&result), move |gradients| {
        Ok(vec![norm.backward(isa, &single(gradients)?, &normalised)?])
    });
    Ok(result)
}

/// Applies dropout.
pub(super) fn drop(isa: Isa, x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    let mut values = values(x)?;
    isa.run(linear::Drop { values: &mut values, dropout: &dropout });
    let result = tensor(values, x.dim(1)?)?;
    push("dropout", &[x], std::slice::from_ref(&result), move |mut gradients| {
        for values in &mut gradients {
            isa.run(linear::Drop { values, dropout: &dropout });
        }
        Ok(gradients)
    });
    Ok(result)
}

/// Attention over packed sequences, with optional dropout of the probabilities.
pub(super) struct Attention {
    pub(super) isa: Isa,
    pub(super) cu_queries: Vec<u32>,
    pub(super) cu_keys: Vec<u32>,
    pub(super) heads: usize,
    pub(super) dropout: Option<Dropout>,
}

impl Attention {
    pub(super) fn forward(self, query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor> {
        let dim = query.dim(1)?;
        let inputs = [query.contiguous()?, key.contiguous()?, value.contiguous()?];
        let out = self.read(&inputs, |sequences| self.isa.run(attention::Forward(sequences)))?;
        let result = tensor(out, dim)?;
        let arguments = inputs.clone();
        push("attention", &arguments.each_ref(), std::slice::from_ref(&result), move |gradients| {
            let gradient = single(gradients)?;
            let gradients =
                self.read(&inputs, |sequences| self.isa.run(attention::Backward { sequences, gradient: &gradient }))?;
            Ok(gradients.into())
        });
        Ok(result)
    }

    fn read<R>(&self, inputs: &[Tensor; 3], f: impl FnOnce(attention::Sequences) -> R) -> Result<R> {
        let dim = inputs[0].dim(1)?;
        let Self { cu_queries, cu_keys, heads, dropout, .. } = self;
        let (heads, dropout) = (*heads, dropout.as_ref());
        read(inputs.each_ref(), |[query, key, value]| {
            f(attention::Sequences { query, key, value, cu_queries, cu_keys, dim, heads, dropout })
        })
    }
}

/// Sums the rows with the given ids of each table `[_, D]`: ids `[T]` → `[T, D]`.
pub(super) fn gather(tables: &[(&Tensor, &[u32])]) -> Result<Tensor> {
    let Some((first, ids)) = tables.first() else { candle_core::bail!("no table to gather from") };
    let dim = first.dim(1)?;
    let mut out = vec![0.0; ids.len() * dim];
    for (table, ids) in tables {
        read([*table], |[table]| {
            for (row, id) in out.chunks_exact_mut(dim).zip(*ids) {
                for (sum, x) in row.iter_mut().zip(&table[*id as usize * dim..]) {
                    *sum += *x;
                }
            }
        })?;
    }
    let result = tensor(out, dim)?;
    let sums = tables.iter().map(|(table, ids)| Ok((ids.to_vec(), parameter(table)?.gradient)));
    let sums = sums.collect::<Result<Vec<_>>>()?;
    push("gather", &[], std::slice::from_ref(&result), move |gradients| {
        let gradients = Arc::new(single(gradients)?);
        for (ids, sum) in sums {
            sum.push_rows(RowGradients { ids, gradients: gradients.clone() });
        }
        Ok(Vec::new())
    });
    Ok(result)
}

/// Selects rows of `x` by their indices: `[T, D] → [R, D]`.
pub(super) fn select_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let (tokens, dim) = x.dims2()?;
    let values = values(x)?;
    let range = move |row: &u32| *row as usize * dim..(*row as usize + 1) * dim;
    let mut out = Vec::with_capacity(rows.len() * dim);
    for row in rows {
        match values.get(range(row)) {
            Some(row) => out.extend_from_slice(row),
            None => candle_core::bail!("row {row} is out of range: there are {tokens} rows"),
        }
    }
    let result = tensor(out, dim)?;
    let rows = rows.to_vec();
    push("select", &[x], std::slice::from_ref(&result), move |gradients| {
        let mut d_x = vec![0.0; tokens * dim];
        for (gradient, row) in single(gradients)?.chunks_exact(dim).zip(&rows) {
            for (sum, x) in d_x[range(row)].iter_mut().zip(gradient) {
                *sum += *x;
            }
        }
        Ok(vec![d_x])
    });
    Ok(result)
}

/// Applies `f` to each element of `x`. `slope` is the derivative of `f` as a function of its output.
pub(super) fn elementwise(x: &Tensor, f: fn(f32) -> f32, slope: fn(f32) -> f32) -> Result<Tensor> {
    let out: Vec<f32> = values(x)?.into_iter().map(f).collect();
    let result = tensor(out.clone(), x.dims2()?.1)?;
    push("elementwise", &[x], std::slice::from_ref(&result), move |mut gradients| {
        for (g, y) in gradients.iter_mut().flatten().zip(&out) {
            *g *= slope(*y);
        }
        Ok(gradients)
    });
    Ok(result)
}

fn values(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

/// Creates a tensor `[_, columns]` from row-major values.
fn tensor(values: Vec<f32>, columns: usize) -> Result<Tensor> {
    let rows = values.len() / columns;
    Tensor::from_vec(values, (rows, columns), &Device::Cpu)
}
