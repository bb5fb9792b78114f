//! The few operators that an encoder spends its time in, over packed rows: no padding tokens anywhere.
//!
//! Each exists three times: composed of candle's operators ([`Kernels::Reference`]: any device, differentiable),
//! as a fused CPU kernel ([`Kernels::Fast`]), and as a fused CPU kernel with a backward pass
//! ([`Kernels::Training`]). The choice is made once, when weights are loaded; a model does not know which one runs.
//!
//! Sequences are packed: `[T, D]` holds the tokens of all sequences one after the other, and
//! `cu_seqlens` (0, then the running sum of lengths) says where each begins.

mod dot;
mod elementwise;
mod fast;
mod gemm;
mod int16;
mod quantize;
mod reference;
mod training;

use std::sync::Arc;

use candle_core::{DType, Device, Result, Storage, Tensor};

pub(crate) use training::{
    Gradient, Panels, Tape, attention_with_dropout, drop_elements, mix64, rectify, select_rows, softmax_rows, tanh,
};
pub use training::{Noise, Parameter, Place, Rates, TableGradients};

use dot::Int16Kernel;
pub(crate) use fast::Isa;
use fast::{Epilogue, Layer};
use training::Learned;

/// Which implementation of the operators a model uses.
#[derive(Debug, Clone, Copy)]
pub enum Kernels {
    /// Fused kernels on the calling CPU thread, without gradients.
    Fast(FastKernels),
    /// Fused kernels on the calling CPU thread, with gradients.
    Training(FastKernels),
    /// candle's operators.
    Reference,
}

/// Proof that this CPU can run the fused kernels, and how they multiply by weights.
#[derive(Debug, Clone, Copy)]
pub struct FastKernels {
    isa: Isa,
    int16: Option<Int16Kernel>,
}

impl FastKernels {
    /// The instruction set that they were compiled for.
    pub(crate) fn isa(self) -> Isa {
        self.isa
    }
}

impl Kernels {
    /// The quickest f32 kernels for the device: fused ones on a CPU with fused multiply-add, candle's elsewhere.
    #[must_use]
    pub fn for_device(device: &Device) -> Self {
        match Isa::detect() {
            Some(isa) if device.is_cpu() => Self::Fast(FastKernels { isa, int16: None }),
            _ => Self::Reference,
        }
    }

    /// The quickest kernels with gradients for the device.
    #[must_use]
    pub fn for_training(device: &Device) -> Self {
        match Self::for_device(device) {
            Self::Fast(kernels) => Self::Training(kernels),
            other => other,
        }
    }

    /// The same with linear layers in 16-bit integers, where this machine multiplies those quicker than floats.
    #[must_use]
    pub fn with_int16(self) -> Option<Self> {
        match self {
            Self::Fast(FastKernels { isa, .. }) => {
                let int16 = Int16Kernel::for_isa(isa)?;
                Some(Self::Fast(FastKernels { isa, int16: Some(int16) }))
            }
            Self::Training(_) | Self::Reference => None,
        }
    }

    /// The same with linear layers in f32, as the layers that decide between labels always are.
    #[must_use]
    pub fn with_f32(self) -> Self {
        match self {
            Self::Fast(FastKernels { isa, .. }) => Self::Fast(FastKernels { isa, int16: None }),
            Self::Training(_) | Self::Reference => self,
        }
    }

    /// The same kernels without AVX-512, where this machine has both: the results must not differ.
    #[must_use]
    #[cfg(target_arch = "x86_64")]
    pub fn avx2() -> Option<Self> {
        pulp::x86::V3::try_new().map(|v3| Self::Fast(FastKernels { isa: Isa::Avx2(v3), int16: None }))
    }
}

/// A fully connected layer: `[T, in] → [T, out]`.
#[derive(Debug, Clone)]
pub struct Linear(Weights);

#[derive(Debug, Clone)]
enum Weights {
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
    pub fn new(weight: Tensor, bias: Tensor, kernels: Kernels) -> Result<Self> {
        if bias.dims() != [weight.dims2()?.0] {
            candle_core::bail!("bias {:?} does not fit weight {:?}", bias.dims(), weight.dims());
        }
        Ok(Self(match kernels {
            Kernels::Fast(FastKernels { isa, int16 }) => {
                let pack = |weight: &[f32], bias: &[f32]| match int16 {
                    None => Layer::pack(isa, weight, bias),
                    Some(kernel) => Layer::quantize(kernel, weight, bias),
                };
                Weights::Packed(isa, read2(&weight, &bias, pack)?)
            }
            Kernels::Training(_) => candle_core::bail!("what is learned is a parameter"),
            Kernels::Reference => Weights::Plain(weight, bias),
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
                if residual.dims2()? != (x.dim(0)?, layer.outputs) || norm.weight.dims() != [layer.outputs] {
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
                    forward_packed(*isa, layer, x, Epilogue::AddNorm { residual, weight, bias, eps })
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

/// Scale and shift of a layer normalisation: `[T, D] → [T, D]`.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
    /// Of weight and bias, where the CPU kernels learn them.
    gradients: Option<(Arc<Gradient>, Arc<Gradient>)>,
}

impl LayerNorm {
    /// Takes weight and bias `[D]` and the ε that is added to the variance.
    #[must_use]
    pub fn new(weight: Tensor, bias: Tensor, eps: f64) -> Self {
        Self { weight, bias, eps, gradients: None }
    }

    fn eps_f32(&self) -> f32 {
        self.eps as f32
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        reference::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

/// Softmax attention of each sequence's queries over its own keys and values, in `heads` heads.
///
/// **Shapes**: `query [Tq, D]`, `key` and `value` `[T, D]` → `[Tq, D]`; `cu_queries` and `cu_keys` bound
/// the sequences in the rows of the queries and of the keys.
/// **Source**: Vaswani et al. 2017, section 3.2.
///
/// # Errors
/// Shapes that are not as above.
pub fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    cu_queries: &[u32],
    cu_keys: &[u32],
    heads: usize,
    kernels: Kernels,
) -> Result<Tensor> {
    let (rows, dim) = check_attention(query, key, value, cu_queries, cu_keys, heads)?;
    match kernels {
        Kernels::Fast(FastKernels { isa, .. }) => {
            let context = read3(query, key, value, |query, key, value| {
                isa.run(fast::Attention { query, key, value, cu_queries, cu_keys, dim, heads })
            })?;
            Tensor::from_vec(context, (rows, dim), &Device::Cpu)
        }
        Kernels::Training(kernels) => {
            training::attention([query, key, value], cu_queries, cu_keys, heads, None, kernels)
        }
        Kernels::Reference => reference::attention(query, key, value, cu_queries, cu_keys, heads, None),
    }
}

/// Checks the shapes that attention has, and returns that of the queries.
fn check_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    cu_queries: &[u32],
    cu_keys: &[u32],
    heads: usize,
) -> Result<(usize, usize)> {
    let (rows, dim) = query.dims2()?;
    let ends = (cu_queries.last().map(|t| *t as usize), cu_keys.last().map(|t| *t as usize));
    let bounds_fit = cu_queries.len() == cu_keys.len() && cu_queries.is_sorted() && cu_keys.is_sorted();
    if key.dims() != value.dims() || ends != (Some(rows), Some(key.dim(0)?)) || key.dim(1)? != dim || !bounds_fit {
        candle_core::bail!(
            "query {:?}, key {:?} and value {:?} do not fit {ends:?} tokens of {} and {} bounds",
            query.dims(),
            key.dims(),
            value.dims(),
            cu_queries.len(),
            cu_keys.len()
        );
    }
    if heads == 0 || !dim.is_multiple_of(heads) {
        candle_core::bail!("{dim} columns cannot be shared out among {heads} heads");
    }
    Ok((rows, dim))
}

/// Tables of word, position and (in BERT) token-type embeddings with the normalisation after their sum.
#[derive(Debug, Clone)]
pub struct Embeddings {
    /// `[vocabulary, D]`
    pub words: Tensor,
    /// `[positions, D]`
    pub positions: Tensor,
    /// `[types, D]`
    pub token_types: Option<Tensor>,
    /// Over `D`.
    pub norm: LayerNorm,
    /// Of the tables, where the CPU kernels learn them.
    pub gradients: Option<TableGradients>,
}

impl Embeddings {
    /// Adds up and normalises each token's embeddings: ids `[T]` → `[T, D]`.
    ///
    /// # Errors
    /// An id that is not in its table.
    pub fn forward(
        &self,
        input_ids: &[u32],
        position_ids: &[u32],
        token_type_ids: &[u32],
        kernels: Kernels,
    ) -> Result<Tensor> {
        let types = self.token_types.as_ref();
        let tokens = input_ids.len();
        if position_ids.len() != tokens || (types.is_some() && token_type_ids.len() != tokens) {
            candle_core::bail!(
                "{tokens} tokens have {} positions and {} types",
                position_ids.len(),
                token_type_ids.len()
            );
        }
        for (ids, table) in
            [(input_ids, Some(&self.words)), (position_ids, Some(&self.positions)), (token_type_ids, types)]
        {
            let Some(table) = table else { continue };
            if let Some(id) = ids.iter().find(|id| **id as usize >= table.dims()[0]) {
                candle_core::bail!("id {id} is not in an embedding table of {}", table.dims()[0]);
            }
        }
        match kernels {
            Kernels::Fast(FastKernels { isa, .. }) => {
                let dim = self.words.dim(1)?;
                let embed = |token_types: Option<(&[u32], &[f32])>| {
                    read2(&self.words, &self.positions, |words, positions| {
                        read2(&self.norm.weight, &self.norm.bias, |weight, bias| {
                            let eps = self.norm.eps_f32();
                            let tables = fast::Tables { words, positions, token_types, weight, bias, eps };
                            isa.run(fast::Embed { input_ids, position_ids, tables })
                        })
                    })?
                };
                let out = match types {
                    Some(types) => read(types, |table| embed(Some((token_type_ids, table))))??,
                    None => embed(None)?,
                };
                Tensor::from_vec(out, (input_ids.len(), dim), &Device::Cpu)
            }
            Kernels::Training(_) => {
                let Some(gradients) = &self.gradients else {
                    candle_core::bail!("embeddings without gradients in training");
                };
                let mut tables = vec![(&self.words, input_ids, gradients.words.clone())];
                if let Some((table, gradient)) = types.zip(gradients.token_types.clone()) {
                    tables.push((table, token_type_ids, gradient));
                }
                tables.push((&self.positions, position_ids, gradients.positions.clone()));
                self.norm.normalise(&training::gather(&tables)?, kernels)
            }
            Kernels::Reference => {
                let device = self.words.device();
                let mut sum = self.words.index_select(&Tensor::new(input_ids, device)?, 0)?;
                if let Some(table) = types {
                    sum = (sum + table.index_select(&Tensor::new(token_type_ids, device)?, 0)?)?;
                }
                sum = (sum + self.positions.index_select(&Tensor::new(position_ids, device)?, 0)?)?;
                self.norm.forward(&sum)
            }
        }
    }
}

/// Gives `f` the elements of a contiguous f32 tensor on the CPU.
pub(crate) fn read<R>(x: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(storage), Some((start, end))) if x.dtype() == DType::F32 => {
            Ok(f(&storage.as_slice::<f32>()?[start..end]))
        }
        _ => candle_core::bail!("the CPU kernels read contiguous f32 tensors on the CPU, not {x:?}"),
    }
}

fn read2<R>(x: &Tensor, y: &Tensor, f: impl FnOnce(&[f32], &[f32]) -> R) -> Result<R> {
    read(x, |x| read(y, |y| f(x, y)))?
}

fn read3<R>(x: &Tensor, y: &Tensor, z: &Tensor, f: impl FnOnce(&[f32], &[f32], &[f32]) -> R) -> Result<R> {
    read2(x, y, |x, y| read(z, |z| f(x, y, z)))?
}
