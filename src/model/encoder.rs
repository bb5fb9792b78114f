//! The encoder of Devlin et al. 2019 (BERT) and Sanh et al. 2019 (DistilBERT), over packed sequences.
//!
//! The two differ in token types and in the names of their tensors; the arithmetic is one. Fields bear
//! DistilBERT's names. Post-layer-norm, as in the papers: every sublayer is `LayerNorm(x + sublayer(x))`.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::config::ModelConfig;
use super::error::LoadError;
use super::family::BlockNames;
use super::source::{Source, load_linear, load_norm};
use crate::ops::{
    Activation, Attention, Embeddings, FastKernels, FirstTokenAttention, Kernels, LayerNorm, Linear, Noise, Parameter,
    Place, ProjectedEmbeddings, TableGradients, attention_with_dropout, drop_elements, feed_forward, linear_many,
    select_rows,
};

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

/// The table that a masked-LM head shares.
pub(crate) const WORD_EMBEDDINGS: &str = "embeddings.word_embeddings.weight";

/// Token ids to hidden states.
#[derive(Debug)]
pub struct Encoder {
    embeddings: Embeddings,
    layer: Vec<TransformerBlock>,
    /// Where the fused kernels run a model that does not learn.
    shortcuts: Option<Shortcuts>,
    kernels: Kernels,
}

impl Encoder {
    pub(crate) fn load<S: Source>(
        source: &S,
        config: &ModelConfig,
        kernels: Kernels,
    ) -> std::result::Result<Self, LoadError> {
        let table = |name: &str, rows: usize| -> std::result::Result<Parameter, LoadError> {
            let table = source.parameter(name, &[rows, config.dim])?;
            Ok(Parameter { tensor: table.tensor.to_dtype(kernels.dtype())?, ..table })
        };
        let words = table(WORD_EMBEDDINGS, config.vocab_size)?;
        let positions = table("embeddings.position_embeddings.weight", config.max_position_embeddings)?;
        let token_types = match config.type_vocab_size {
            0 => None,
            types => Some(table("embeddings.token_type_embeddings.weight", types)?),
        };
        let (token_types, d_token_types) = token_types.map(|table| (table.tensor, table.gradient)).unzip();
        let gradients = words.gradient.zip(positions.gradient).map(|(words, positions)| TableGradients {
            words,
            positions,
            token_types: d_token_types.flatten(),
        });
        let embeddings = Embeddings {
            words: words.tensor,
            positions: positions.tensor,
            token_types,
            norm: load_norm(source, "embeddings.LayerNorm", config)?,
            gradients,
        };
        let load = |i: usize| TransformerBlock::load(source, i, config, kernels);
        let layer = if S::IN_ANY_ORDER {
            (0..config.n_layers).into_par_iter().map(load).collect::<std::result::Result<_, _>>()?
        } else {
            (0..config.n_layers).map(load).collect::<std::result::Result<_, _>>()?
        };
        let shortcuts = match kernels {
            Kernels::Fast(kernels) if config.n_layers > 0 => {
                Some(Shortcuts::load(source, config, &embeddings, kernels)?)
            }
            _ => None,
        };
        Ok(Self { embeddings, layer, shortcuts, kernels })
    }

    /// Computes the last hidden state of every token: `[T] → [T, D]`.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn forward(&self, batch: &PackedBatch) -> Result<Tensor> {
        let mut hidden_states = self.embed(batch, None)?;
        for block in &self.layer {
            hidden_states = block.forward(&hidden_states, &batch.cu_seqlens, None)?;
        }
        Ok(hidden_states)
    }

    /// Computes the last hidden state of each sequence's first token only: `[T] → [B, D]`.
    ///
    /// The last block is then computed for one token a sequence, which saves nearly all of it and loses nothing. The fused
    /// kernels save its keys and values too, see [`FirstTokenAttention`], and most of the first block's products, see
    /// [`ProjectedEmbeddings`].
    ///
    /// # Errors
    /// A failure of the device.
    pub fn forward_first(&self, batch: &PackedBatch) -> Result<Tensor> {
        let PackedBatch { input_ids, token_type_ids, position_ids, cu_seqlens } = batch;
        let sequences = batch.sequences();
        let rows = &cu_seqlens[..sequences];
        let (Some(shortcuts), Some((last, blocks))) = (&self.shortcuts, self.layer.split_last()) else {
            let one_each: Vec<u32> = (0..).take(sequences + 1).collect();
            return self.forward_at(batch, rows, &one_each, None);
        };
        let mut hidden_states = match blocks.first() {
            Some(block) => {
                let (x, projected) = shortcuts.embeddings.forward(input_ids, position_ids, token_type_ids)?;
                block.forward_projected(&x, &projected, cu_seqlens, cu_seqlens, None)?
            }
            None => self.embed(batch, None)?,
        };
        for block in blocks.iter().skip(1) {
            hidden_states = block.forward(&hidden_states, cu_seqlens, None)?;
        }
        let first = select_rows(&hidden_states, rows, self.kernels)?;
        let query = last.attention.q_lin.forward(&first)?;
        let context = shortcuts.first_tokens.forward(&query, &hidden_states, cu_seqlens)?;
        last.finish(&context, &first, None)
    }

    /// Computes the last hidden state of some tokens only, and in training drops what `noise` says: `[T] → [R, D]`.
    ///
    /// `rows [R]` are places in the batch in ascending order, and `cu_rows` bounds the sequences in them.
    pub(crate) fn forward_at(
        &self,
        batch: &PackedBatch,
        rows: &[u32],
        cu_rows: &[u32],
        noise: Option<&Noise>,
    ) -> Result<Tensor> {
        let mut hidden_states = self.embed(batch, noise)?;
        let Some((last, blocks)) = self.layer.split_last() else {
            return select_rows(&hidden_states, rows, self.kernels);
        };
        for block in blocks {
            hidden_states = block.forward(&hidden_states, &batch.cu_seqlens, noise)?;
        }
        let selected = select_rows(&hidden_states, rows, self.kernels)?;
        last.forward_rows(&selected, cu_rows, &hidden_states, &batch.cu_seqlens, noise)
    }

    fn embed(&self, batch: &PackedBatch, noise: Option<&Noise>) -> Result<Tensor> {
        let PackedBatch { input_ids, token_type_ids, position_ids, cu_seqlens } = batch;
        let x = self.embeddings.forward(input_ids, position_ids, token_type_ids, self.kernels)?;
        drop_elements(&x, noise.and_then(|noise| noise.at(Place::Embeddings, cu_seqlens)), self.kernels)
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
    fn load(
        source: &impl Source,
        index: usize,
        config: &ModelConfig,
        kernels: Kernels,
    ) -> std::result::Result<Self, LoadError> {
        let names = &config.family.block;
        let prefix = format!("{}.{index}", names.prefix);
        let (dim, hidden_dim) = (config.dim, config.hidden_dim);
        let linear = |name: &str, outputs: usize, inputs: usize| {
            load_linear(source, &format!("{prefix}.{name}"), outputs, inputs, kernels)
        };
        Ok(Self {
            index,
            attention: MultiHeadSelfAttention {
                q_lin: linear(names.q_lin, dim, dim)?,
                k_lin: linear(names.k_lin, dim, dim)?,
                v_lin: linear(names.v_lin, dim, dim)?,
                out_lin: linear(names.out_lin, dim, dim)?,
                n_heads: config.n_heads,
                kernels,
            },
            sa_layer_norm: load_norm(source, &format!("{prefix}.{}", names.sa_layer_norm), config)?,
            ffn: FeedForward {
                lin1: linear(names.lin1, hidden_dim, dim)?,
                activation: config.activation,
                lin2: linear(names.lin2, dim, hidden_dim)?,
            },
            output_layer_norm: load_norm(source, &format!("{prefix}.{}", names.output_layer_norm), config)?,
        })
    }

    /// `[T, D] → [T, D]`
    fn forward(&self, x: &Tensor, cu_seqlens: &[u32], noise: Option<&Noise>) -> Result<Tensor> {
        self.forward_projected(x, &self.attention.project(x)?, cu_seqlens, cu_seqlens, noise)
    }

    /// Computes only the rows that are asked for: `rows [Tq, D]` of `x [T, D]` → `[Tq, D]`.
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

    /// The same of queries, keys and values that are there already.
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

    /// What follows attention, for rows `[Tq, D]`; the noise goes with their sequences' bounds.
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
    /// Queries, keys and values of `x [T, D]`.
    fn project(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        linear_many(x, [&self.q_lin, &self.k_lin, &self.v_lin])
    }

    /// Queries of `rows [Tq, D]`, keys and values of `x [T, D]`.
    fn project_rows(&self, rows: &Tensor, x: &Tensor) -> Result<[Tensor; 3]> {
        let [k, v] = linear_many(x, [&self.k_lin, &self.v_lin])?;
        Ok([self.q_lin.forward(rows)?, k, v])
    }
}

/// Vaswani et al. 2017, section 3.3, with GELU or another activation.
#[derive(Debug)]
struct FeedForward {
    lin1: Linear,
    activation: Activation,
    lin2: Linear,
}

/// What spares work where weights stay as they are: parts of the first and of the last block in other forms.
#[derive(Debug)]
struct Shortcuts {
    /// With the queries, keys and values of the first block.
    embeddings: ProjectedEmbeddings<3>,
    /// Over the keys and values of the last block.
    first_tokens: FirstTokenAttention,
}

impl Shortcuts {
    /// Of an encoder that has blocks.
    fn load(
        source: &impl Source,
        config: &ModelConfig,
        embeddings: &Embeddings,
        kernels: FastKernels,
    ) -> std::result::Result<Self, LoadError> {
        let BlockNames { prefix, q_lin, k_lin, v_lin, .. } = config.family.block;
        let load = |index: usize, name: &str| -> std::result::Result<(Tensor, Tensor), LoadError> {
            let name = format!("{prefix}.{index}.{name}");
            let weight = source.parameter(&format!("{name}.weight"), &[config.dim, config.dim])?;
            let bias = source.parameter(&format!("{name}.bias"), &[config.dim])?;
            Ok((weight.tensor, bias.tensor))
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
