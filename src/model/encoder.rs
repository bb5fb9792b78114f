//! The encoder of Devlin et al. 2019 (BERT) and Sanh et al. 2019 (DistilBERT), over packed sequences.
//!
//! The two differ in token types and in the names of their tensors; the arithmetic is one. Fields bear
//! DistilBERT's names. Post-layer-norm, as in the papers: every sublayer is `LayerNorm(x + sublayer(x))`.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::checkpoint::Checkpoint;
use super::config::{Architecture, ModelConfig};
use super::error::LoadError;
use crate::ops::{Embeddings, FirstTokenAttention, Kernels, LayerNorm, Linear, attention, feed_forward, linear_many};

/// Sequences one after the other, without padding.
#[derive(Debug, Clone, Default)]
pub struct PackedBatch {
    /// Token ids of all sequences, `[T]`.
    pub input_ids: Vec<u32>,
    /// 0 for the first text and its special tokens, 1 for the second, `[T]`.
    pub token_type_ids: Vec<u32>,
    /// Place of each token in its sequence, `[T]`.
    pub position_ids: Vec<u32>,
    /// Where each sequence begins, and the end of the last: `[B + 1]`, from 0, rising.
    pub cu_seqlens: Vec<u32>,
}

impl PackedBatch {
    /// Appends a sequence of at least one token.
    ///
    /// # Panics
    /// If the batch grows to 2^32 tokens.
    pub fn push(&mut self, input_ids: &[u32], token_type_ids: &[u32]) {
        debug_assert!(!input_ids.is_empty() && input_ids.len() == token_type_ids.len());
        if self.cu_seqlens.is_empty() {
            self.cu_seqlens.push(0);
        }
        self.input_ids.extend_from_slice(input_ids);
        self.token_type_ids.extend_from_slice(token_type_ids);
        self.position_ids.extend((0..).take(input_ids.len()));
        self.cu_seqlens.push(u32::try_from(self.input_ids.len()).expect("a batch has fewer than 2^32 tokens"));
    }

    /// How many sequences there are.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len().saturating_sub(1)
    }
}

/// Token ids to hidden states.
#[derive(Debug)]
pub struct Encoder {
    embeddings: Embeddings,
    layer: Vec<TransformerBlock>,
    /// The last block's keys and values, for its first tokens.
    first_tokens: FirstTokenAttention,
    kernels: Kernels,
}

impl Encoder {
    pub(super) fn load(
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        device: &Device,
        kernels: Kernels,
    ) -> std::result::Result<Self, LoadError> {
        let tensor = |name: &str, rows: usize| -> std::result::Result<Tensor, LoadError> {
            Ok(checkpoint.tensor(name, &[rows, config.dim], device)?.to_dtype(kernels.dtype())?)
        };
        let embeddings = Embeddings {
            words: tensor("embeddings.word_embeddings.weight", config.vocab_size)?,
            positions: tensor("embeddings.position_embeddings.weight", config.max_position_embeddings)?,
            token_types: match config.architecture {
                Architecture::DistilBert => None,
                Architecture::Bert => Some(tensor("embeddings.token_type_embeddings.weight", config.type_vocab_size)?),
            },
            norm: load_norm(checkpoint, "embeddings.LayerNorm", config, device)?,
        };
        let layer = (0..config.n_layers)
            .into_par_iter()
            .map(|i| TransformerBlock::load(checkpoint, i, config, device, kernels))
            .collect::<std::result::Result<_, _>>()?;
        let first_tokens = load_first_tokens(checkpoint, config, device, kernels)?;
        Ok(Self { embeddings, layer, first_tokens, kernels })
    }

    /// Computes the last hidden state of every token: `[T] → [T, D]`.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn forward(&self, batch: &PackedBatch) -> Result<Tensor> {
        let mut hidden_states = self.embed(batch)?;
        for block in &self.layer {
            hidden_states = block.forward(&hidden_states, &batch.cu_seqlens)?;
        }
        Ok(hidden_states)
    }

    /// Computes the last hidden state of each sequence's first token only: `[T] → [B, D]`.
    ///
    /// The last block is then computed for one token a sequence, which saves nearly all of it and loses nothing:
    /// see [`FirstTokenAttention`] for its keys and values.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn forward_first(&self, batch: &PackedBatch) -> Result<Tensor> {
        let sequences = batch.sequences();
        let first_rows = Tensor::new(&batch.cu_seqlens[..sequences], self.embeddings.words.device())?;
        let mut hidden_states = self.embed(batch)?;
        let Some((last, blocks)) = self.layer.split_last() else {
            return hidden_states.index_select(&first_rows, 0);
        };
        for block in blocks {
            hidden_states = block.forward(&hidden_states, &batch.cu_seqlens)?;
        }
        let first = hidden_states.index_select(&first_rows, 0)?;
        let query = last.attention.q_lin.forward(&first)?;
        let context = self.first_tokens.forward(&query, &hidden_states, &batch.cu_seqlens)?;
        last.finish(&context, &first)
    }

    fn embed(&self, batch: &PackedBatch) -> Result<Tensor> {
        self.embeddings.forward(&batch.input_ids, &batch.position_ids, &batch.token_type_ids, self.kernels)
    }
}

#[derive(Debug)]
struct TransformerBlock {
    attention: MultiHeadSelfAttention,
    sa_layer_norm: LayerNorm,
    ffn: FeedForward,
    output_layer_norm: LayerNorm,
}

impl TransformerBlock {
    fn load(
        checkpoint: &Checkpoint,
        index: usize,
        config: &ModelConfig,
        device: &Device,
        kernels: Kernels,
    ) -> std::result::Result<Self, LoadError> {
        let names = BlockNames::of(config.architecture);
        let prefix = format!("{}.{index}", names.block);
        let (dim, hidden_dim) = (config.dim, config.hidden_dim);
        let linear = |name: &str, outputs: usize, inputs: usize| {
            load_linear(checkpoint, &format!("{prefix}.{name}"), outputs, inputs, device, kernels)
        };
        Ok(Self {
            attention: MultiHeadSelfAttention {
                q_lin: linear(names.q_lin, dim, dim)?,
                k_lin: linear(names.k_lin, dim, dim)?,
                v_lin: linear(names.v_lin, dim, dim)?,
                out_lin: linear(names.out_lin, dim, dim)?,
                n_heads: config.n_heads,
                kernels,
            },
            sa_layer_norm: load_norm(checkpoint, &format!("{prefix}.{}", names.sa_layer_norm), config, device)?,
            ffn: FeedForward { lin1: linear(names.lin1, hidden_dim, dim)?, lin2: linear(names.lin2, dim, hidden_dim)? },
            output_layer_norm: load_norm(checkpoint, &format!("{prefix}.{}", names.output_layer_norm), config, device)?,
        })
    }

    /// `[T, D] → [T, D]`
    fn forward(&self, x: &Tensor, cu_seqlens: &[u32]) -> Result<Tensor> {
        let context = self.attention.context(x, cu_seqlens)?;
        self.finish(&context, x)
    }

    fn finish(&self, context: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let x = self.attention.out_lin.forward_add_norm(context, residual, &self.sa_layer_norm)?;
        feed_forward(&x, &self.ffn.lin1, &self.ffn.lin2, &self.output_layer_norm)
    }
}

/// Vaswani et al. 2017, section 3.2.
#[derive(Debug)]
struct MultiHeadSelfAttention {
    q_lin: Linear,
    k_lin: Linear,
    v_lin: Linear,
    out_lin: Linear,
    n_heads: usize,
    kernels: Kernels,
}

impl MultiHeadSelfAttention {
    fn context(&self, x: &Tensor, cu_seqlens: &[u32]) -> Result<Tensor> {
        let [q, k, v] = linear_many(x, [&self.q_lin, &self.k_lin, &self.v_lin])?;
        attention(&q, &k, &v, cu_seqlens, cu_seqlens, self.n_heads, self.kernels)
    }
}

/// Vaswani et al. 2017, section 3.3, with GELU.
#[derive(Debug)]
struct FeedForward {
    lin1: Linear,
    lin2: Linear,
}

/// How an architecture calls the tensors of a block.
struct BlockNames {
    block: &'static str,
    q_lin: &'static str,
    k_lin: &'static str,
    v_lin: &'static str,
    out_lin: &'static str,
    sa_layer_norm: &'static str,
    lin1: &'static str,
    lin2: &'static str,
    output_layer_norm: &'static str,
}

impl BlockNames {
    fn of(architecture: Architecture) -> Self {
        match architecture {
            Architecture::DistilBert => Self {
                block: "transformer.layer",
                q_lin: "attention.q_lin",
                k_lin: "attention.k_lin",
                v_lin: "attention.v_lin",
                out_lin: "attention.out_lin",
                sa_layer_norm: "sa_layer_norm",
                lin1: "ffn.lin1",
                lin2: "ffn.lin2",
                output_layer_norm: "output_layer_norm",
            },
            Architecture::Bert => Self {
                block: "encoder.layer",
                q_lin: "attention.self.query",
                k_lin: "attention.self.key",
                v_lin: "attention.self.value",
                out_lin: "attention.output.dense",
                sa_layer_norm: "attention.output.LayerNorm",
                lin1: "intermediate.dense",
                lin2: "output.dense",
                output_layer_norm: "output.LayerNorm",
            },
        }
    }
}

fn load_first_tokens(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    device: &Device,
    kernels: Kernels,
) -> std::result::Result<FirstTokenAttention, LoadError> {
    let names = BlockNames::of(config.architecture);
    let load = |name: &str| {
        let name = format!("{}.{}.{name}", names.block, config.n_layers - 1);
        load_weight_and_bias(checkpoint, &name, config.dim, config.dim, device)
    };
    let ((key, key_bias), (value, value_bias)) = (load(names.k_lin)?, load(names.v_lin)?);
    Ok(FirstTokenAttention::new((&key, &key_bias), (&value, &value_bias), config.n_heads, kernels)?)
}

pub(super) fn load_linear(
    checkpoint: &Checkpoint,
    name: &str,
    outputs: usize,
    inputs: usize,
    device: &Device,
    kernels: Kernels,
) -> std::result::Result<Linear, LoadError> {
    let (weight, bias) = load_weight_and_bias(checkpoint, name, outputs, inputs, device)?;
    Ok(Linear::new(&weight, &bias, kernels)?)
}

fn load_weight_and_bias(
    checkpoint: &Checkpoint,
    name: &str,
    outputs: usize,
    inputs: usize,
    device: &Device,
) -> std::result::Result<(Tensor, Tensor), LoadError> {
    let weight = checkpoint.tensor(&format!("{name}.weight"), &[outputs, inputs], device)?;
    let bias = checkpoint.tensor(&format!("{name}.bias"), &[outputs], device)?;
    Ok((weight, bias))
}

fn load_norm(
    checkpoint: &Checkpoint,
    name: &str,
    config: &ModelConfig,
    device: &Device,
) -> std::result::Result<LayerNorm, LoadError> {
    let weight = checkpoint.tensor(&format!("{name}.weight"), &[config.dim], device)?;
    let bias = checkpoint.tensor(&format!("{name}.bias"), &[config.dim], device)?;
    Ok(LayerNorm::new(weight, bias, config.layer_norm_eps))
}
