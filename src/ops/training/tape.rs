//! The kernels as operators of candle's tape.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Tensor};

use super::linear::{self, Normalised};
use super::parameter::RowGradients;
use super::{Dropout, Gradient, Learned, Panels, attention};
use crate::ops::fast::Isa;
use crate::ops::{LayerNorm, read, read2, read3};

/// `x · weightᵀ + bias`, through GELU or not.
pub(super) struct Layer {
    layer: Arc<Learned>,
    gelu: bool,
    before_gelu: OnceLock<Vec<f32>>,
}

impl Layer {
    pub(super) fn new(layer: Arc<Learned>, gelu: bool) -> Self {
        Self { layer, gelu, before_gelu: OnceLock::new() }
    }
}

impl CustomOp1 for Layer {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, weight, gelu) = (slice(x, layout)?, self.layer.panels()?, self.gelu);
        let (out, before) = read(&self.layer.bias.tensor, |bias| {
            self.layer.kernels.isa.run(linear::Forward { x, weight, bias, gelu })
        })?;
        if let Some(before) = before {
            keep(&self.before_gelu, before)?;
        }
        Ok(result(out, self.layer.outputs()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        read2(x, &gradient.contiguous()?, |x, gradient| {
            let d_x = if self.gelu {
                let before = kept(&self.before_gelu)?;
                let gradient = self.layer.kernels.isa.run(linear::BackwardGelu { gradient, before });
                self.layer.backward(x, &gradient)
            } else {
                self.layer.backward(x, gradient)
            };
            tensor(d_x?, self.layer.panels()?.inputs).map(Some)
        })?
    }
}

impl Learned {
    fn panels(&self) -> Result<&Panels> {
        self.weight.panels.as_deref().ok_or_else(|| candle_core::Error::Msg("a weight to learn is packed".into()))
    }

    /// Adds the gradients of weight and bias, and computes that of `x`.
    fn backward(&self, x: &[f32], gradient: &[f32]) -> Result<Vec<f32>> {
        let weight = self.panels()?;
        let isa = self.kernels.isa;
        if let (Some(d_weight), Some(d_bias)) = (&self.weight.gradient, &self.bias.gradient) {
            let weight_gradient = &mut *d_weight.dense_of(weight.outputs * weight.inputs);
            let bias_gradient = &mut *d_bias.dense_of(weight.outputs);
            isa.run(linear::BackwardWeight { x, gradient, weight_gradient, bias_gradient });
        }
        Ok(isa.run(linear::BackwardInput { gradient, weight }))
    }
}

/// `norm(dropout(x · weightᵀ + bias) + residual)`
pub(super) struct AddNorm {
    layer: Arc<Learned>,
    norm: LayerNorm,
    dropout: Option<Dropout>,
    normalised: OnceLock<Normalised>,
}

impl AddNorm {
    pub(super) fn new(layer: Arc<Learned>, norm: LayerNorm, dropout: Option<Dropout>) -> Self {
        Self { layer, norm, dropout, normalised: OnceLock::new() }
    }
}

impl CustomOp2 for AddNorm {
    fn name(&self) -> &'static str {
        "linear-add-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, residual) = (slice(x, x_layout)?, slice(residual, residual_layout)?);
        let (weight, dropout) = (self.layer.panels()?, self.dropout.as_ref());
        if dropout.is_some_and(|dropout| dropout.rows() != x.len() / weight.inputs) {
            candle_core::bail!("a dropout of other rows than x");
        }
        let (out, normalised) = read(&self.layer.bias.tensor, |bias| {
            self.norm.read(|norm| {
                let operator = linear::ForwardAddNorm { x, weight, bias, dropout, residual, norm };
                self.layer.kernels.isa.run(operator)
            })
        })??;
        keep(&self.normalised, normalised)?;
        Ok(result(out, self.layer.outputs()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let isa = self.layer.kernels.isa;
        let d_sum = self.norm.backward(isa, gradient, kept(&self.normalised)?)?;
        let d_x = read(x, |x| match &self.dropout {
            None => self.layer.backward(x, &d_sum),
            Some(dropout) => self.layer.backward(x, &isa.run(linear::Drop { values: &d_sum, dropout })),
        })??;
        Ok((Some(tensor(d_x, self.layer.panels()?.inputs)?), Some(tensor(d_sum, self.layer.outputs())?)))
    }
}

impl LayerNorm {
    fn read<R>(&self, f: impl FnOnce(linear::Norm) -> R) -> Result<R> {
        read2(&self.weight, &self.bias, |weight, bias| f(linear::Norm { weight, bias, eps: self.eps as f32 }))
    }

    /// Adds the gradients of scale and shift, and computes that of the input.
    fn backward(&self, isa: Isa, gradient: &Tensor, normalised: &Normalised) -> Result<Vec<f32>> {
        let Some((d_weight, d_bias)) = &self.gradients else {
            candle_core::bail!("a normalisation without gradients in training");
        };
        let dim = self.weight.elem_count();
        let (weight_gradient, bias_gradient) = (&mut *d_weight.dense_of(dim), &mut *d_bias.dense_of(dim));
        read2(&gradient.contiguous()?, &self.weight, |gradient, weight| {
            isa.run(linear::BackwardNorm { gradient, normalised, weight, weight_gradient, bias_gradient })
        })
    }
}

/// A normalisation by itself.
pub(super) struct Norm {
    isa: Isa,
    norm: LayerNorm,
    normalised: OnceLock<Normalised>,
}

impl Norm {
    pub(super) fn new(isa: Isa, norm: LayerNorm) -> Self {
        Self { isa, norm, normalised: OnceLock::new() }
    }
}

impl CustomOp1 for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, layout)?.to_vec();
        let (out, normalised) = self.norm.read(|norm| self.isa.run(linear::ForwardNorm { x, norm }))?;
        keep(&self.normalised, normalised)?;
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let d_x = self.norm.backward(self.isa, gradient, kept(&self.normalised)?)?;
        Tensor::from_vec(d_x, x.shape(), &Device::Cpu).map(Some)
    }
}

/// Dropout by itself.
pub(super) struct Drop {
    pub(super) isa: Isa,
    pub(super) dropout: Dropout,
}

impl CustomOp1 for Drop {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = self.isa.run(linear::Drop { values: slice(x, layout)?, dropout: &self.dropout });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let d_x =
            read(&gradient.contiguous()?, |values| self.isa.run(linear::Drop { values, dropout: &self.dropout }))?;
        Tensor::from_vec(d_x, x.shape(), &Device::Cpu).map(Some)
    }
}

/// Attention of packed sequences.
pub(super) struct Attention {
    pub(super) isa: Isa,
    pub(super) cu_queries: Vec<u32>,
    pub(super) cu_keys: Vec<u32>,
    pub(super) heads: usize,
    pub(super) dropout: Option<Dropout>,
}

impl Attention {
    fn sequences<'a>(
        &'a self,
        query: &'a [f32],
        key: &'a [f32],
        value: &'a [f32],
        dim: usize,
    ) -> attention::Sequences<'a> {
        let Self { cu_queries, cu_keys, heads, dropout, .. } = self;
        attention::Sequences { query, key, value, cu_queries, cu_keys, dim, heads: *heads, dropout: dropout.as_ref() }
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        query: &CpuStorage,
        query_layout: &Layout,
        key: &CpuStorage,
        key_layout: &Layout,
        value: &CpuStorage,
        value_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let dim = query_layout.shape().dims2()?.1;
        let (query, key, value) = (slice(query, query_layout)?, slice(key, key_layout)?, slice(value, value_layout)?);
        Ok(result(self.isa.run(attention::Forward(self.sequences(query, key, value, dim))), dim))
    }

    fn bwd(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dim = query.dim(1)?;
        let [d_query, d_key, d_value] = read(&gradient.contiguous()?, |gradient| {
            read3(query, key, value, |query, key, value| {
                let sequences = self.sequences(query, key, value, dim);
                self.isa.run(attention::Backward { sequences, gradient })
            })
        })??;
        Ok((Some(tensor(d_query, dim)?), Some(tensor(d_key, dim)?), Some(tensor(d_value, dim)?)))
    }
}

/// The sum of rows of tables, each with its ids and the place for its gradient.
pub(super) struct Gather {
    pub(super) tables: Vec<(Tensor, Vec<u32>, Arc<Gradient>)>,
}

impl CustomOp1 for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((first, ids, _)) = self.tables.first() else { candle_core::bail!("no table to gather from") };
        let dim = first.dim(1)?;
        let mut out = vec![0.0; ids.len() * dim];
        for (table, ids, _) in &self.tables {
            read(table, |table| {
                for (row, id) in out.chunks_exact_mut(dim).zip(ids) {
                    for (sum, x) in row.iter_mut().zip(&table[*id as usize * dim..]) {
                        *sum += *x;
                    }
                }
            })?;
        }
        Ok(result(out, dim))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradients = Arc::new(gradient.flatten_all()?.to_vec1::<f32>()?);
        for (_, ids, sum) in &self.tables {
            sum.push_rows(RowGradients { ids: ids.clone(), gradients: gradients.clone() });
        }
        Ok(None)
    }
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("the CPU kernels read contiguous tensors"),
    }
}

/// Rows of so many columns.
fn result(values: Vec<f32>, columns: usize) -> (CpuStorage, Shape) {
    let rows = values.len() / columns;
    (CpuStorage::F32(values), Shape::from((rows, columns)))
}

fn tensor(values: Vec<f32>, columns: usize) -> Result<Tensor> {
    let rows = values.len() / columns;
    Tensor::from_vec(values, (rows, columns), &Device::Cpu)
}

/// Keeps something of the forward pass for the backward pass.
fn keep<T>(cell: &OnceLock<T>, value: T) -> Result<()> {
    cell.set(value).map_err(|_| candle_core::Error::Msg("an operator runs forwards once".into()))
}

fn kept<T>(cell: &OnceLock<T>) -> Result<&T> {
    cell.get().ok_or_else(|| candle_core::Error::Msg("an operator runs forwards first".into()))
}
