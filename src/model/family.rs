//! The families of encoders, as data: everything in which one differs from another.
//!
//! To add a family whose blocks compute what BERT's do (post-layer-norm, absolute positions), write another static
//! here and list it in [`Family::ALL`]; nothing matches on a family by name. A family that needs something these two do
//! not have adds a field, and the one place that reads it:
//!
//! - RoBERTa numbers positions from 2: a field beside [`Family::layer_norm_eps`], read by `Encoder::embed`.
//! - ELECTRA projects narrow embeddings: a tensor name in [`BlockNames`]' neighbourhood, read by `Encoder::load`.
//! - ModernBERT and DeBERTa compute other blocks: their own encoder beside [`super::encoder`], which
//!   [`super::classifier::load`] chooses by a field. See there.
//!
//! Then add a golden checkpoint to `tests/it/goldens`: its logits must be those of transformers within 1e-4.

use super::ModelConfig;
use crate::ops::{Pointwise, Rates};

/// A family of encoders.
///
/// **Source** of the default values: `BertConfig` and `DistilBertConfig` of transformers 5.24.
#[derive(Debug)]
pub struct Family {
    /// The name in prose.
    pub name: &'static str,
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Prefix of its classes in transformers.
    pub class_prefix: &'static str,
    /// Prefix of the encoder's tensors.
    pub tensor_prefix: &'static str,
    /// Keys of the sizes in `config.json`.
    pub keys: ConfigKeys,
    /// Key of the ε of all normalisations; none where it is always 1e-12, whatever `config.json` says.
    pub layer_norm_eps: Option<&'static str>,
    /// Key of the number of token types; none for a family without token types.
    pub token_types: Option<&'static str>,
    /// Dropout in training.
    pub dropout: DropoutKeys,
    /// Tensors of a transformer block.
    pub block: BlockNames,
    /// The classification head.
    pub head: HeadNames,
    /// Tensors of the masked-LM head.
    pub masked_words: MaskedWordsNames,
}

/// Keys of the sizes in `config.json`.
#[derive(Debug)]
pub struct ConfigKeys {
    /// Width of the hidden states.
    pub dim: &'static str,
    /// Number of transformer blocks.
    pub n_layers: &'static str,
    /// Number of transformer blocks where the key is missing.
    pub default_layers: usize,
    /// Number of attention heads.
    pub n_heads: &'static str,
    /// Width of the feed-forward layer.
    pub hidden_dim: &'static str,
    /// Activation of the feed-forward layer.
    pub activation: &'static str,
}

/// Keys of the dropout rates in `config.json`.
#[derive(Debug)]
pub struct DropoutKeys {
    /// Rates where a key is missing.
    pub defaults: Rates,
    /// Rate of hidden states: of the embeddings and of the feed-forward output.
    pub hidden: &'static str,
    /// Rate of attention probabilities.
    pub attention: &'static str,
    /// Whether the rate of hidden states applies to the output of attention too.
    pub attention_output: bool,
    /// Rate of the classifier's input.
    pub head: &'static str,
    /// Whether the classifier's input has the rate of hidden states where the key is missing.
    pub head_as_hidden: bool,
}

/// Names of a block's tensors, without `.weight` and `.bias`.
#[derive(Debug)]
pub struct BlockNames {
    /// Prefix of all blocks; the number of the block follows.
    pub prefix: &'static str,
    /// Projection to queries.
    pub q_lin: &'static str,
    /// Projection to keys.
    pub k_lin: &'static str,
    /// Projection to values.
    pub v_lin: &'static str,
    /// Projection of the attention's output.
    pub out_lin: &'static str,
    /// Normalisation after attention.
    pub sa_layer_norm: &'static str,
    /// First layer of the feed-forward sublayer.
    pub lin1: &'static str,
    /// Second layer of the feed-forward sublayer.
    pub lin2: &'static str,
    /// Normalisation after the feed-forward sublayer.
    pub output_layer_norm: &'static str,
}

/// The classification head: a square layer, an activation, and the layer `classifier`.
#[derive(Debug)]
pub struct HeadNames {
    /// Name of the square layer.
    pub dense: &'static str,
    /// Whether the name of the square layer has the encoder's prefix, as BERT's pooler.
    pub has_prefix: bool,
    /// Function after the square layer.
    pub activation: Pointwise,
}

/// Names of the masked-LM head's tensors; its projection is the table of word embeddings.
#[derive(Debug)]
pub struct MaskedWordsNames {
    /// Square layer.
    pub transform: &'static str,
    /// Normalisation after it.
    pub norm: &'static str,
    /// Bias of the logits.
    pub bias: &'static str,
}

/// Sanh et al. 2019: no token types; the head reads the first token through `pre_classifier` and a rectifier.
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
};

/// Devlin et al. 2019: token types; the head reads the first token through the pooler and tanh.
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
};

impl Family {
    /// All families.
    pub const ALL: [&'static Self; 2] = [&DISTILBERT, &BERT];

    /// Finds the family with that `model_type`.
    #[must_use]
    pub fn of(model_type: &str) -> Option<&'static Self> {
        Self::ALL.into_iter().find(|family| family.model_type == model_type)
    }

    /// The class of transformers for an encoder without a head.
    #[must_use]
    pub fn encoder_class(&self) -> String {
        format!("{}Model", self.class_prefix)
    }

    /// The class of transformers for an encoder with a classification head.
    #[must_use]
    pub fn classifier_class(&self) -> String {
        format!("{}ForSequenceClassification", self.class_prefix)
    }

    /// The class of transformers for an encoder with a masked-LM head.
    #[must_use]
    pub fn masked_words_class(&self) -> String {
        format!("{}ForMaskedLM", self.class_prefix)
    }

    /// Whether a tensor belongs to a head, which may be missing, rather than to the encoder.
    pub(crate) fn is_head(&self, name: &str) -> bool {
        let first = |name: &'static str| name.split('.').next();
        let MaskedWordsNames { transform, norm, bias } = self.masked_words;
        let heads = ["classifier", self.head.dense, transform, norm, bias].map(first);
        heads.contains(&name.split('.').next())
    }

    /// The name of a tensor in a file: that of an encoder's tensor has the prefix.
    pub(crate) fn full_name(&self, name: &str) -> String {
        let has_prefix = !self.is_head(name) || self.head.has_prefix && name.starts_with(self.head.dense);
        format!("{}{name}", if has_prefix { self.tensor_prefix } else { "" })
    }
}

/// There is one value of each family.
impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.model_type == other.model_type
    }
}

impl BlockNames {
    /// The names of a block's layers and normalisations, with the shape of each weight; in every family the same order.
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
