//! The families of encoders, as data: all differences between them.
//!
//! To add a family whose blocks have BERT's arithmetic (post-layer-norm, absolute positions), add a static here and
//! list it in [`Family::ALL`]. A property that no existing family has needs a new field and one place that reads it:
//!
//! - `RoBERTa` numbers positions from 2: an offset; `Encoder::load` skips that many rows of the position embeddings.
//! - ELECTRA projects narrow embeddings to the hidden size: the name of a layer; `Encoder::load` adds it after the
//!   embeddings.
//! - `ModernBERT` and `DeBERTa` have other blocks: an encoder of their own, see [`super::classifier`].
//!
//! Then add a golden checkpoint to `tests/it/goldens`. Its logits must match those of transformers within 1e-4.

use super::ModelConfig;
use crate::ops::{Pointwise, Rates};

/// A family of encoders.
///
/// **Source** of the default values: `BertConfig` and `DistilBertConfig` of transformers 5.24.
#[derive(Debug)]
pub struct Family {
    /// The display name.
    pub name: &'static str,
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// The prefix of its class names in transformers.
    pub(crate) class_prefix: &'static str,
    /// The prefix of the encoder's tensor names.
    pub(crate) tensor_prefix: &'static str,
    pub(crate) keys: ConfigKeys,
    /// The key of the ε of all layer normalizations. `None` if it is always 1e-12, independent of `config.json`.
    pub(crate) layer_norm_eps: Option<&'static str>,
    /// The key of the number of token types. `None` for a family without token types.
    pub(crate) token_types: Option<&'static str>,
    pub(crate) dropout: DropoutKeys,
    pub(crate) block: BlockNames,
    pub(crate) head: HeadNames,
    pub(crate) masked_words: MaskedWordsNames,
    /// Additional entries of `config.json`, as a JSON object, for an imported encoder whose token types are folded into
    /// this family; see `model/import.rs`. `None` if the family does not support that.
    pub(crate) folded: Option<&'static str>,
}

/// The keys in `config.json` of the sizes in [`ModelConfig`].
#[derive(Debug)]
pub(crate) struct ConfigKeys {
    pub(crate) dim: &'static str,
    pub(crate) n_layers: &'static str,
    /// The number of layers if the key is missing.
    pub(crate) default_layers: usize,
    pub(crate) n_heads: &'static str,
    pub(crate) hidden_dim: &'static str,
    pub(crate) activation: &'static str,
}

/// The keys in `config.json` of the dropout [`Rates`].
#[derive(Debug)]
pub(crate) struct DropoutKeys {
    /// The rates of missing keys.
    pub(crate) defaults: Rates,
    /// The key of the rate of the embeddings and of the feed-forward output.
    pub(crate) hidden: &'static str,
    pub(crate) attention: &'static str,
    /// True if the `hidden` rate also applies to the output of attention.
    pub(crate) attention_output: bool,
    pub(crate) head: &'static str,
    /// True if the `hidden` rate applies to the head when its key is missing.
    pub(crate) head_as_hidden: bool,
}

/// The names of a block's layers and normalizations, without `.weight` and `.bias`.
#[derive(Debug)]
pub(crate) struct BlockNames {
    /// The prefix of all blocks, followed by the index of the block.
    pub(crate) prefix: &'static str,
    pub(crate) q_lin: &'static str,
    pub(crate) k_lin: &'static str,
    pub(crate) v_lin: &'static str,
    pub(crate) out_lin: &'static str,
    pub(crate) sa_layer_norm: &'static str,
    pub(crate) lin1: &'static str,
    pub(crate) lin2: &'static str,
    pub(crate) output_layer_norm: &'static str,
}

/// The classification head: a dense layer `[D, D]`, an activation, and the layer `classifier`.
#[derive(Debug)]
pub(crate) struct HeadNames {
    /// The dense layer `[D, D]`.
    pub(crate) dense: &'static str,
    /// True if the name of the dense layer has the encoder's prefix, as BERT's pooler does.
    pub(crate) has_prefix: bool,
    pub(crate) activation: Pointwise,
}

/// The names of the masked-LM head's tensors. Its projection is the table of word embeddings.
#[derive(Debug)]
pub(crate) struct MaskedWordsNames {
    /// The dense layer `[D, D]`.
    pub(crate) transform: &'static str,
    pub(crate) norm: &'static str,
    /// The bias of the logits.
    pub(crate) bias: &'static str,
}

/// Sanh et al. 2019: no token types. The head is `pre_classifier`, `ReLU` and `classifier` on the first token.
pub static DISTILBERT: Family = Family {
    name: "DistilBERT",
    model_type: "distilbert",
    class_prefix: "DistilBert",
    tensor_prefix: "distilbert.",
    keys: ConfigKeys {
        dim: "dim",
        n_layers: "n_layers",
        default_layers: 6,
        n_heads: "n_heads",
        hidden_dim: "hidden_dim",
        activation: "activation",
    },
    layer_norm_eps: None,
    token_types: None,
    dropout: DropoutKeys {
        defaults: Rates::DISTILBERT,
        hidden: "dropout",
        attention: "attention_dropout",
        attention_output: false,
        head: "seq_classif_dropout",
        head_as_hidden: false,
    },
    block: BlockNames {
        prefix: "transformer.layer",
        q_lin: "attention.q_lin",
        k_lin: "attention.k_lin",
        v_lin: "attention.v_lin",
        out_lin: "attention.out_lin",
        sa_layer_norm: "sa_layer_norm",
        lin1: "ffn.lin1",
        lin2: "ffn.lin2",
        output_layer_norm: "output_layer_norm",
    },
    head: HeadNames { dense: "pre_classifier", has_prefix: false, activation: Pointwise::Relu },
    masked_words: MaskedWordsNames {
        transform: "vocab_transform",
        norm: "vocab_layer_norm",
        bias: "vocab_projector.bias",
    },
    folded: Some(
        r#"{"seq_classif_dropout": 0.2, "qa_dropout": 0.1, "sinusoidal_pos_embds": false, "tie_word_embeddings": true}"#,
    ),
};

/// Devlin et al. 2019: token types. The head is the pooler, tanh and `classifier` on the first token.
pub static BERT: Family = Family {
    name: "BERT",
    model_type: "bert",
    class_prefix: "Bert",
    tensor_prefix: "bert.",
    keys: ConfigKeys {
        dim: "hidden_size",
        n_layers: "num_hidden_layers",
        default_layers: 12,
        n_heads: "num_attention_heads",
        hidden_dim: "intermediate_size",
        activation: "hidden_act",
    },
    layer_norm_eps: Some("layer_norm_eps"),
    token_types: Some("type_vocab_size"),
    dropout: DropoutKeys {
        defaults: Rates::BERT,
        hidden: "hidden_dropout_prob",
        attention: "attention_probs_dropout_prob",
        attention_output: true,
        head: "classifier_dropout",
        head_as_hidden: true,
    },
    block: BlockNames {
        prefix: "encoder.layer",
        q_lin: "attention.self.query",
        k_lin: "attention.self.key",
        v_lin: "attention.self.value",
        out_lin: "attention.output.dense",
        sa_layer_norm: "attention.output.LayerNorm",
        lin1: "intermediate.dense",
        lin2: "output.dense",
        output_layer_norm: "output.LayerNorm",
    },
    head: HeadNames { dense: "pooler.dense", has_prefix: true, activation: Pointwise::Tanh },
    masked_words: MaskedWordsNames {
        transform: "cls.predictions.transform.dense",
        norm: "cls.predictions.transform.LayerNorm",
        bias: "cls.predictions.bias",
    },
    folded: None,
};

impl Family {
    /// All families.
    pub const ALL: [&'static Self; 2] = [&DISTILBERT, &BERT];

    /// Returns the family with that `model_type`, if it is supported.
    #[must_use]
    pub fn of(model_type: &str) -> Option<&'static Self> {
        Self::ALL.into_iter().find(|family| family.model_type == model_type)
    }

    /// Returns the name of a class in transformers, such as `BertModel` for the suffix `Model`.
    #[must_use]
    pub fn class(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.class_prefix)
    }

    /// Returns true if a tensor belongs to a head rather than to the encoder. A head may be missing.
    pub(crate) fn is_head(&self, name: &str) -> bool {
        let first = |name: &'static str| name.split('.').next();
        let MaskedWordsNames { transform, norm, bias } = self.masked_words;
        let heads = ["classifier", self.head.dense, transform, norm, bias].map(first);
        heads.contains(&name.split('.').next())
    }

    /// Returns the name in the file of a tensor with a canonical name: tensors of the encoder have the prefix.
    #[must_use]
    pub fn full_name(&self, name: &str) -> String {
        let has_prefix = !self.is_head(name) || self.head.has_prefix && name.starts_with(self.head.dense);
        format!("{}{name}", if has_prefix { self.tensor_prefix } else { "" })
    }
}

/// Families are equal if their `model_type` is: each family has one static value.
impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.model_type == other.model_type
    }
}

impl BlockNames {
    /// Returns the names of a block's layers and normalizations with the shapes of their weights. The order is the same
    /// for every family.
    pub(crate) fn shapes(&self, config: &ModelConfig) -> [(&'static str, Vec<usize>); 8] {
        let (dim, hidden) = (config.dim, config.hidden_dim);
        [
            (self.q_lin, vec![dim, dim]),
            (self.k_lin, vec![dim, dim]),
            (self.v_lin, vec![dim, dim]),
            (self.out_lin, vec![dim, dim]),
            (self.sa_layer_norm, vec![dim]),
            (self.lin1, vec![hidden, dim]),
            (self.lin2, vec![dim, hidden]),
            (self.output_layer_norm, vec![dim]),
        ]
    }
}
