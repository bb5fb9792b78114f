//! The kernels as operators on tensors that record themselves on the tape.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::linear::{self, Normalised};
use super::parameter::RowGradients;
use super::tape::{only, parameter, push};
use super::{Dropout, Gradient, PackedWeight, Parameter, attention};
use crate::ops::fast::Isa;
use crate::ops::linear::AddNorm;
use crate::ops::{Activation, LayerNorm, Linear, read};

/// A layer as the recording learns it.
struct Learned {
    panels: Arc<PackedWeight>,
    d_weight: Arc<Gradient>,
    bias: Vec<f32>,
    d_bias: Arc<Gradient>,
}

impl Learned {
    /// Looks up a layer that is applied to `x [T, in]`.
    fn of(layer: &Linear, x: &Tensor) -> Result<Self> {
        let (weight, bias) = layer.plain()?;
        let Parameter { gradient: d_weight, panels } = parameter(weight)?;
        let (bias, d_bias) = (bias.to_vec1()?, parameter(bias)?.gradient);
        match panels.filter(|panels| [panels.outputs, panels.inputs] == weight.dims()) {
            Some(panels) if x.dims2()?.1 == panels.inputs => Ok(Self { panels, d_weight, bias, d_bias }),
            Some(_) => candle_core::bail!("x {:?} does not fit a weight of {:?}", x.dims(), weight.dims()),
            None => candle_core::bail!("no packed weight of {:?} to learn", weight.dims()),
        }
    }

    fn weight(&self) -> linear::Weight<'_> {
        linear::Weight { panels: &self.panels, bias: &self.bias }
    }
}

/// `x · weightᵀ + bias` of each layer, through an activation or not.
pub(super) fn layers(isa: Isa, x: &Tensor, layers: &[&Linear], activation: Option<Activation>) -> Result<Vec<Tensor>> {
    let x = x.contiguous()?;
    let learned = layers.iter().map(|layer| Learned::of(layer, &x)).collect::<Result<Vec<_>>>()?;
    let weights: Vec<linear::Weight> = learned.iter().map(Learned::weight).collect();
    let (outs, before) = read([&x], |[x]| isa.run(linear::Forward { x, layers: &weights, activation }))?;
    let results: Vec<Tensor> =
        outs.into_iter().zip(&learned).map(|(out, layer)| tensor(out, layer.bias.len())).collect::<Result<_>>()?;
    push("linear", &[&x.clone()], &results, move |mut gradients| {
        if let Some(activation) = activation {
            for (gradient, before) in gradients.iter_mut().zip(&before) {
                isa.run(linear::BackwardActivation { gradient, before, activation });
            }
        }
        Ok(vec![backward(isa, &learned, &x, &gradients)?])
    });
    Ok(results)
}

/// Adds the gradients of the layers' weights and biases, and computes that of `x`.
fn backward(isa: Isa, layers: &[Learned], x: &Tensor, gradients: &[Vec<f32>]) -> Result<Vec<f32>> {
    let mut sums: Vec<_> = layers
        .iter()
        .map(|Learned { panels, d_weight, d_bias, .. }| {
            (d_weight.dense_of(panels.outputs * panels.inputs), d_bias.dense_of(panels.outputs))
        })
        .collect();
    let sums = sums.iter_mut().map(|(weight, bias)| linear::Sums { weight, bias }).collect();
    read([x], |[x]| isa.run(linear::BackwardWeight { x, gradients, sums }))?;
    let weights: Vec<&PackedWeight> = layers.iter().map(|layer| &*layer.panels).collect();
    Ok(isa.run(linear::BackwardInput { gradients, weights: &weights }))
}

/// `norm(dropout(x · weightᵀ + bias) + residual)`
pub(super) fn add_norm(isa: Isa, x: &Tensor, layer: &Linear, sum: AddNorm) -> Result<Tensor> {
    let AddNorm { dropout, residual, norm } = sum;
    let (x, residual) = (x.contiguous()?, residual.contiguous()?);
    let learned = Learned::of(layer, &x)?;
    let outputs = learned.bias.len();
    if residual.dims2()? != (x.dim(0)?, outputs) || !norm.fits(outputs) {
        candle_core::bail!("residual {:?} and norm {:?} do not fit x {:?}", residual, norm.weight, x);
    }
    if let Some(dropout) = &dropout {
        dropout.check(&x)?;
    }
    let eps = norm.eps_f32();
    let (out, normalised) = read([&x, &residual, &norm.weight, &norm.bias], |[x, residual, weight, bias]| {
        let (dropout, norm) = (dropout.as_ref(), linear::Norm { weight, bias, eps });
        isa.run(linear::ForwardAddNorm { x, weight: learned.weight(), dropout, residual, norm })
    })?;
    let result = tensor(out, outputs)?;
    let norm = LearnedNorm::of(norm)?;
    push("linear-add-norm", &[&x.clone(), &residual], std::slice::from_ref(&result), move |gradients| {
        let d_sum = norm.backward(isa, &only(gradients)?, &normalised)?;
        let mut gradients = [d_sum.clone()];
        if let Some(dropout) = &dropout {
            isa.run(linear::Drop { values: &mut gradients[0], dropout });
        }
        Ok(vec![backward(isa, &[learned], &x, &gradients)?, d_sum])
    });
    Ok(result)
}

/// A normalisation as the recording learns it.
struct LearnedNorm {
    weight: Tensor,
    d_weight: Arc<Gradient>,
    d_bias: Arc<Gradient>,
}

impl LearnedNorm {
    fn of(LayerNorm { weight, bias, .. }: &LayerNorm) -> Result<Self> {
        let (d_weight, d_bias) = (parameter(weight)?.gradient, parameter(bias)?.gradient);
        Ok(Self { weight: weight.clone(), d_weight, d_bias })
    }

    /// Adds the gradients of scale and shift, and computes that of the input.
    fn backward(&self, isa: Isa, gradient: &[f32], normalised: &Normalised) -> Result<Vec<f32>> {
        let dim = self.weight.elem_count();
        let (weight_gradient, bias_gradient) = (&mut *self.d_weight.dense_of(dim), &mut *self.d_bias.dense_of(dim));
        read([&self.weight], |[weight]| {
            isa.run(linear::BackwardNorm { gradient, normalised, weight, weight_gradient, bias_gradient })
        })
    }
}

/// A normalisation by itself.
pub(super) fn norm(isa: Isa, norm: &LayerNorm, x: &Tensor) -> Result<Tensor> {
    if !norm.fits(x.dims2()?.1) {
        candle_core::bail!("x {:?} does not fit a norm of {:?}", x.dims(), norm.weight.dims());
    }
    let (x_values, eps) = (values(x)?, norm.eps_f32());
    let (out, normalised) = read([&norm.weight, &norm.bias], |[weight, bias]| {
        isa.run(linear::ForwardNorm { x: x_values, norm: linear::Norm { weight, bias, eps } })
    })?;
    let result = tensor(out, x.dim(1)?)?;
    let norm = LearnedNorm::of(norm)?;
    push("norm", &[x], std::slice::from_ref(&result), move |gradients| {
        Ok(vec![norm.backward(isa, &only(gradients)?, &normalised)?])
    });
    Ok(result)
}

/// Dropout by itself.
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

/// Bounds and heads of packed sequences, and what is dropped from their probabilities.
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
            let gradient = only(gradients)?;
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

/// The sum of rows of tables `[_, D]`, each with its ids: `[T] → [T, D]`.
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
    let places = tables.iter().map(|(table, ids)| Ok((ids.to_vec(), parameter(table)?.gradient)));
    let places = places.collect::<Result<Vec<_>>>()?;
    push("gather", &[], std::slice::from_ref(&result), move |gradients| {
        let gradients = Arc::new(only(gradients)?);
        for (ids, sum) in places {
            sum.push_rows(RowGradients { ids, gradients: gradients.clone() });
        }
        Ok(Vec::new())
    });
    Ok(result)
}

/// The given rows of `x [T, D]`: `[R, D]`.
pub(super) fn select_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let (tokens, dim) = x.dims2()?;
    let values = values(x)?;
    let place = move |row: &u32| *row as usize * dim..(*row as usize + 1) * dim;
    let mut out = Vec::with_capacity(rows.len() * dim);
    for row in rows {
        match values.get(place(row)) {
            Some(row) => out.extend_from_slice(row),
            None => candle_core::bail!("there is no row {row} in {tokens}"),
        }
    }
    let result = tensor(out, dim)?;
    let rows = rows.to_vec();
    push("select", &[x], std::slice::from_ref(&result), move |gradients| {
        let mut d_x = vec![0.0; tokens * dim];
        for (gradient, row) in only(gradients)?.chunks_exact(dim).zip(&rows) {
            for (sum, x) in d_x[place(row)].iter_mut().zip(gradient) {
                *sum += *x;
            }
        }
        Ok(vec![d_x])
    });
    Ok(result)
}

/// A function of each element, and its derivative as a function of the value.
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

/// A matrix of rows with `columns` values each.
fn tensor(values: Vec<f32>, columns: usize) -> Result<Tensor> {
    let rows = values.len() / columns;
    Tensor::from_vec(values, (rows, columns), &Device::Cpu)
}
