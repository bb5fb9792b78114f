//! The encoder of Devlin et al. 2019 (BERT) and Sanh et al. 2019 (DistilBERT), over packed sequences.
//!
//! The two differ in token types and in the names of their tensors, which are in [`super::family`]; the arithmetic is
//! the same. Fields have DistilBERT's names. As in the papers, every sublayer is post-layer-norm:
//! `LayerNorm(x + sublayer(x))`.
//!
//! Shapes: `T` tokens in `B` sequences, `D` the width of the hidden states, `R` selected rows.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::classifier::PackedBatch;
use super::error::LoadError;
use super::family::BlockNames;
use super::source::Loader;
use crate::ops::{
    Activation, Attention, Embeddings, FastKernels, FirstTokenAttention, Kernels, LayerNorm, Linear, Noise, Place,
    ProjectedEmbeddings, attention_with_dropout, feed_forward, linear_many,
};

/// The name of the word embeddings, which are also the output projection of a masked-LM head.
pub const WORD_EMBEDDINGS: &str = "embeddings.word_embeddings.weight";

/// The encoder: token ids to hidden states.
#[derive(Debug)]
pub struct Encoder {
    embeddings: Embeddings,
    layer: Vec<TransformerBlock>,
    /// Precomputed weights for inference with the fused kernels.
    precomputed: Option<Precomputed>,
    kernels: Kernels,
}

impl Encoder {
    /// Loads the weights.
    ///
    /// # Errors
    /// Returns an error if a tensor is missing or has another shape.
    pub fn load(loader: &Loader) -> std::result::Result<Self, LoadError> {
        let Loader { source, config, kernels } = *loader;
        let words = loader.table(WORD_EMBEDDINGS, config.vocab_size)?;
        let positions = loader.table("embeddings.position_embeddings.weight", config.max_position_embeddings)?;
        let token_types = match config.type_vocab_size {
            0 => None,
            types => Some(loader.table("embeddings.token_type_embeddings.weight", types)?),
        };
        let norm = loader.norm("embeddings.LayerNorm")?;
        let embeddings = Embeddings { words, positions, token_types, norm };
        let load = |i: usize| TransformerBlock::load(loader, i);
        let layer = if source.in_any_order() {
            (0..config.n_layers).into_par_iter().map(load).collect::<std::result::Result<_, _>>()?
        } else {
            (0..config.n_layers).map(load).collect::<std::result::Result<_, _>>()?
        };
        let precomputed = match kernels {
            Kernels::Fast(kernels) if config.n_layers > 0 => Some(Precomputed::load(loader, &embeddings, kernels)?),
            _ => None,
        };
        Ok(Self { embeddings, layer, precomputed, kernels })
    }

    /// Computes the last hidden state of every token: `[T] → [T, D]`.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub(crate) fn forward(&self, batch: &PackedBatch) -> Result<Tensor> {
        let mut hidden_states = self.embed(batch, None)?;
        for block in &self.layer {
            hidden_states = block.forward(&hidden_states, &batch.cu_seqlens, None)?;
        }
        Ok(hidden_states)
    }

    /// Computes the last hidden state of each sequence's first token only: `[T] → [B, D]`.
    ///
    /// The result is exact, but the last block is computed for one token per sequence only, which saves most of its
    /// cost. The fused kernels also avoid the keys and values of the last block (see [`FirstTokenAttention`]) and most
    /// of the matrix products of the first block (see [`ProjectedEmbeddings`]).
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub fn forward_first(&self, batch: &PackedBatch) -> Result<Tensor> {
        let PackedBatch { input_ids, token_type_ids, position_ids, cu_seqlens } = batch;
        let sequences = batch.sequences();
        let rows = &cu_seqlens[..sequences];
        let (Some(precomputed), Some((last, blocks))) = (&self.precomputed, self.layer.split_last()) else {
            let one_each: Vec<u32> = (0..).take(sequences + 1).collect();
            return self.forward_at(batch, rows, &one_each, None);
        };
        let mut hidden_states = match blocks.first() {
            Some(block) => {
                let (x, projected) = precomputed.embeddings.forward(input_ids, position_ids, token_type_ids)?;
                block.forward_projected(&x, &projected, cu_seqlens, cu_seqlens, None)?
            }
            None => self.embed(batch, None)?,
        };
        for block in blocks.iter().skip(1) {
            hidden_states = block.forward(&hidden_states, cu_seqlens, None)?;
        }
        let first = self.kernels.select_rows(&hidden_states, rows)?;
        let query = last.attention.q_lin.forward(&first)?;
        let context = precomputed.first_tokens.forward(&query, &hidden_states, cu_seqlens)?;
        last.finish(&context, &first, None)
    }

    /// Computes the last hidden state of selected tokens only: `[T] → [R, D]`. In training, applies dropout by `noise`.
    ///
    /// `rows: [R]` are indices of tokens in the batch in ascending order. `cu_rows: [B + 1]` are the bounds of the
    /// sequences in `rows`.
    ///
    /// # Errors
    /// Returns an error if an operator fails.
    pub fn forward_at(
        &self,
        batch: &PackedBatch,
        rows: &[u32],
        cu_rows: &[u32],
        noise: Option<&Noise>,
    ) -> Result<Tensor> {
        let mut hidden_states = self.embed(batch, noise)?;
        let Some((last, blocks)) = self.layer.split_last() else {
            return self.kernels.select_rows(&hidden_states, rows);
        };
        for block in blocks {
            hidden_states = block.forward(&hidden_states, &batch.cu_seqlens, noise)?;
        }
        let selected = self.kernels.select_rows(&hidden_states, rows)?;
        last.forward_rows(&selected, cu_rows, &hidden_states, &batch.cu_seqlens, noise)
    }

    fn embed(&self, batch: &PackedBatch, noise: Option<&Noise>) -> Result<Tensor> {
        let PackedBatch { input_ids, token_type_ids, position_ids, cu_seqlens } = batch;
        let x = self.embeddings.forward(input_ids, position_ids, token_type_ids, self.kernels)?;
        self.kernels.drop_elements(&x, noise.and_then(|noise| noise.at(Place::Embeddings, cu_seqlens)))
    }
}

#[derive(Debug)]
struct TransformerBlock {
    index: usize,
    attention: MultiHeadSelfAttention,
    sa_layer_norm: LayerNorm,
    ffn: FeedForward,
    output_layer_norm: LayerNorm,
}

impl TransformerBlock {
    fn load(loader: &Loader, index: usize) -> std::result::Result<Self, LoadError> {
        let (names, dim, hidden_dim) = (&loader.config.family.block, loader.config.dim, loader.config.hidden_dim);
        let prefix = format!("{}.{index}", names.prefix);
        let linear =
            |name: &str, outputs: usize, inputs: usize| loader.linear(&format!("{prefix}.{name}"), outputs, inputs);
        let norm = |name: &str| loader.norm(&format!("{prefix}.{name}"));
        Ok(Self {
            index,
            attention: MultiHeadSelfAttention {
                q_lin: linear(names.q_lin, dim, dim)?,
                k_lin: linear(names.k_lin, dim, dim)?,
                v_lin: linear(names.v_lin, dim, dim)?,
                out_lin: linear(names.out_lin, dim, dim)?,
                n_heads: loader.config.n_heads,
                kernels: loader.kernels,
            },
            sa_layer_norm: norm(names.sa_layer_norm)?,
            ffn: FeedForward {
                lin1: linear(names.lin1, hidden_dim, dim)?,
                activation: loader.config.activation,
                lin2: linear(names.lin2, dim, hidden_dim)?,
            },
            output_layer_norm: norm(names.output_layer_norm)?,
        })
    }

    /// Computes the block for all rows: `[T, D] → [T, D]`.
    fn forward(&self, x: &Tensor, cu_seqlens: &[u32], noise: Option<&Noise>) -> Result<Tensor> {
        self.forward_projected(x, &self.attention.project(x)?, cu_seqlens, cu_seqlens, noise)
    }

    /// Computes the block for selected rows only: `rows [Tq, D]` of `x [T, D]` → `[Tq, D]`.
    fn forward_rows(
        &self,
        rows: &Tensor,
        cu_rows: &[u32],
        x: &Tensor,
        cu_seqlens: &[u32],
        noise: Option<&Noise>,
    ) -> Result<Tensor> {
        self.forward_projected(rows, &self.attention.project_rows(rows, x)?, cu_rows, cu_seqlens, noise)
    }

    /// Computes the block for `rows [Tq, D]` from existing queries, keys and values: `→ [Tq, D]`.
    fn forward_projected(
        &self,
        rows: &Tensor,
        [query, key, value]: &[Tensor; 3],
        cu_rows: &[u32],
        cu_seqlens: &[u32],
        noise: Option<&Noise>,
    ) -> Result<Tensor> {
        let MultiHeadSelfAttention { n_heads: heads, kernels, .. } = self.attention;
        let dropout = noise.and_then(|noise| noise.at(Place::Attention(self.index), cu_rows));
        let of = Attention { query, key, value, cu_queries: cu_rows, cu_keys: cu_seqlens, heads };
        let context = attention_with_dropout(&of, dropout, kernels)?;
        self.finish(&context, rows, noise.map(|noise| (noise, cu_rows)))
    }

    /// Computes the part of the block after attention: `context [Tq, D]`, `residual [Tq, D]` → `[Tq, D]`. `noise` comes
    /// with the bounds of the sequences in these rows.
    fn finish(&self, context: &Tensor, residual: &Tensor, noise: Option<(&Noise, &[u32])>) -> Result<Tensor> {
        let dropout = |place: Place| noise.and_then(|(noise, cu_rows)| noise.at(place, cu_rows));
        let FeedForward { lin1, activation, lin2 } = &self.ffn;
        let drop_output = dropout(Place::AttentionOutput(self.index));
        let x = self.attention.out_lin.forward_dropout_add_norm(context, drop_output, residual, &self.sa_layer_norm)?;
        match dropout(Place::FeedForward(self.index)) {
            None => feed_forward(&x, lin1, *activation, lin2, &self.output_layer_norm),
            dropout => {
                let hidden = lin1.forward_activated(&x, *activation)?;
                lin2.forward_dropout_add_norm(&hidden, dropout, &x, &self.output_layer_norm)
            }
        }
    }
}

/// Multi-head self-attention. Source: Vaswani et al. 2017, section 3.2.
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
    /// Computes the queries, keys and values of `x [T, D]`, each `[T, D]`.
    fn project(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        linear_many(x, [&self.q_lin, &self.k_lin, &self.v_lin])
    }

    /// Computes the queries of `rows [Tq, D]`, and the keys and values of `x [T, D]`.
    fn project_rows(&self, rows: &Tensor, x: &Tensor) -> Result<[Tensor; 3]> {
        let [k, v] = linear_many(x, [&self.k_lin, &self.v_lin])?;
        Ok([self.q_lin.forward(rows)?, k, v])
    }
}

/// The feed-forward sublayer. Source: Vaswani et al. 2017, section 3.3, with GELU or another activation.
#[derive(Debug)]
struct FeedForward {
    lin1: Linear,
    activation: Activation,
    lin2: Linear,
}

/// Weights of the first and the last block in a precomputed form, which saves work if the weights do not change.
#[derive(Debug)]
struct Precomputed {
    /// The embeddings with the queries, keys and values of the first block.
    embeddings: ProjectedEmbeddings<3>,
    /// The attention of first tokens in the last block.
    first_tokens: FirstTokenAttention,
}

impl Precomputed {
    /// Precomputes the weights of an encoder with at least one block.
    fn load(
        Loader { source, config, .. }: &Loader,
        embeddings: &Embeddings,
        kernels: FastKernels,
    ) -> std::result::Result<Self, LoadError> {
        let BlockNames { prefix, q_lin, k_lin, v_lin, .. } = config.family.block;
        let load = |index: usize, name: &str| -> std::result::Result<(Tensor, Tensor), LoadError> {
            let name = format!("{prefix}.{index}.{name}");
            let weight = source.tensor(&format!("{name}.weight"), &[config.dim, config.dim])?;
            Ok((weight, source.tensor(&format!("{name}.bias"), &[config.dim])?))
        };
        let [(q, q_bias), (k, k_bias), (v, v_bias)] = [load(0, q_lin)?, load(0, k_lin)?, load(0, v_lin)?];
        let first = [(&q, &q_bias), (&k, &k_bias), (&v, &v_bias)];
        let last = config.n_layers - 1;
        let ((key, _), (value, bias)) = (load(last, k_lin)?, load(last, v_lin)?);
        Ok(Self {
            embeddings: ProjectedEmbeddings::new(embeddings.clone(), first, kernels)?,
            first_tokens: FirstTokenAttention::new(&key, (&value, &bias), config.n_heads, kernels)?,
        })
    }
}
