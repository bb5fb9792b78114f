//! `config.json`: the sizes, the labels and the task of a checkpoint.

use std::path::Path;

use serde_json::Value;

use super::LoadError;
use super::family::{DropoutKeys, Family};
use super::files::ModelFiles;
use super::outputs::{self, ScoreActivation};
use crate::ops::{Activation, Rates};

/// The kind of problem: the meaning of the logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// Exactly one of the labels: softmax.
    SingleLabel,
    /// Any number of the labels: one sigmoid per label.
    MultiLabel,
    /// A score computed from the only logit; see [`ScoreActivation`].
    Regression,
}

impl Problem {
    /// The smallest probability at which a row has a label in multi-label classification.
    pub const HAS_LABEL: f32 = 0.5;
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::SingleLabel => "single-label classification",
            Self::MultiLabel => "multi-label classification",
            Self::Regression => "regression",
        })
    }
}

/// The sizes, labels and task of a checkpoint. The fields have DistilBERT's names.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family of the encoder.
    pub family: &'static Family,
    /// The number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// The width of the hidden states.
    pub dim: usize,
    /// The number of transformer blocks.
    pub n_layers: usize,
    /// The number of attention heads per block.
    pub n_heads: usize,
    /// The width of the feed-forward layer.
    pub hidden_dim: usize,
    /// The most tokens of a sequence.
    pub max_position_embeddings: usize,
    /// The number of token types; 0 for DistilBERT.
    pub type_vocab_size: usize,
    /// The ε that every layer normalization adds to the variance.
    pub layer_norm_eps: f64,
    /// The activation between the two layers of the feed-forward sublayer.
    pub activation: Activation,
    /// The meaning of the logits.
    pub problem: Problem,
    /// The name of each logit, in order; empty for regression.
    pub labels: Vec<String>,
    /// The activation that turns the logit of a regression into the score.
    pub score: ScoreActivation,
    /// The declarations of `config.json` about the logits, to be checked against the number of logits.
    pub(super) declared: outputs::DeclaredOutputs,
    /// The class of the tokenizer, if `config.json` contains it.
    pub(super) tokenizer_class: Option<String>,
    /// The dropout rates in training. The defaults are those of the family's paper.
    pub dropout: Rates,
    /// The standard deviation of randomly initialized weights.
    pub initializer_range: f64,
}

impl ModelConfig {
    /// Reads and validates `config.json`.
    ///
    /// # Errors
    /// Returns an error if the file is missing or is not a JSON object, or if a key is missing or its value unsupported.
    pub fn load(files: &ModelFiles) -> Result<Self, LoadError> {
        let (path, json) = (&files.path(files.config()), read_json(files, files.config())?);
        let keys = Keys { path, json: &json };
        let family = family(&keys)?;
        let names = &family.keys;
        if !matches!(json.get("position_embedding_type").and_then(Value::as_str), None | Some("absolute")) {
            return Err(keys.error("position_embedding_type", "\"absolute\""));
        }
        if keys.flag("is_decoder")? == Some(true) {
            return Err(keys.error("is_decoder", "false, as couplet runs encoders only"));
        }
        let config = Self {
            family,
            vocab_size: keys.size("vocab_size", 30_522)?,
            dim: keys.size(names.dim, 768)?,
            n_layers: keys.size(names.n_layers, names.default_layers)?,
            n_heads: keys.size(names.n_heads, 12)?,
            hidden_dim: keys.size(names.hidden_dim, 3072)?,
            max_position_embeddings: keys.size("max_position_embeddings", 512)?,
            type_vocab_size: family.token_types.map_or(Ok(0), |key| keys.size(key, 2))?,
            activation: activation(&keys, names.activation)?,
            layer_norm_eps: family.layer_norm_eps.map_or(Ok(1e-12), |key| keys.number(key, 1e-12))?,
            problem: outputs::problem(&keys)?,
            labels: outputs::labels(&keys)?,
            score: ScoreActivation::Identity,
            declared: outputs::DeclaredOutputs::read(&keys, family)?,
            tokenizer_class: json.get("tokenizer_class").and_then(Value::as_str).map(str::to_owned),
            dropout: dropout(&keys, &family.dropout)?,
            // Source: the code of Devlin et al. 2019.
            initializer_range: keys.number("initializer_range", 0.02)?,
        };
        if !config.dim.is_multiple_of(config.n_heads) {
            return Err(keys.error(names.n_heads, &format!("a divisor of {} = {}", names.dim, config.dim)));
        }
        Ok(config)
    }
}

#[cfg(test)]
impl ModelConfig {
    /// Creates a tiny configuration for tests that depend on the labels alone.
    pub(crate) fn minimal(problem: Problem, labels: usize) -> Self {
        Self {
            family: &super::family::DISTILBERT,
            vocab_size: 8,
            dim: 4,
            n_layers: 1,
            n_heads: 1,
            hidden_dim: 4,
            max_position_embeddings: 8,
            type_vocab_size: 0,
            layer_norm_eps: 1e-12,
            activation: Activation::Gelu,
            problem,
            labels: (0..labels).map(|i| i.to_string()).collect(),
            score: ScoreActivation::Identity,
            declared: outputs::DeclaredOutputs::default(),
            tokenizer_class: None,
            dropout: Rates::NONE,
            initializer_range: 0.02,
        }
    }
}

/// Parses a JSON file of a checkpoint, which must contain an object.
///
/// # Errors
/// Returns an error if the file is missing or is not a JSON object.
pub fn read_json(files: &ModelFiles, name: &str) -> Result<Value, LoadError> {
    let Some(bytes) = files.get(name) else {
        return Err(LoadError::NoFile { folder: files.folder().to_owned(), expected: "config.json" });
    };
    let unreadable = |problem: String| LoadError::Unreadable { path: files.path(name), problem };
    match serde_json::from_slice(bytes) {
        Ok(json @ Value::Object(_)) => Ok(json),
        Ok(_) => Err(unreadable("not a JSON object".into())),
        Err(e) => Err(unreadable(format!("not JSON: {e}"))),
    }
}

/// The keys of a JSON file. Errors name the file and the key.
pub(super) struct Keys<'a> {
    pub(super) path: &'a Path,
    pub(super) json: &'a Value,
}

impl Keys<'_> {
    /// Returns the error for the value of a key.
    pub(super) fn error(&self, key: &str, expected: &str) -> LoadError {
        self.error_about(key, self.json.get(key), expected)
    }

    /// Returns the error for a value, such as one in a nested object.
    pub(super) fn error_about(&self, key: &str, found: Option<&Value>, expected: &str) -> LoadError {
        let found = found.map_or_else(|| "nothing".to_owned(), |value| clipped(&value.to_string()));
        LoadError::Key { path: self.path.to_owned(), key: key.to_owned(), expected: expected.to_owned(), found }
    }

    /// Reads a boolean. Returns `None` if the key is missing or null.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, LoadError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.error(key, "true or false")),
        }
    }

    /// Reads a number in `0..1`. Returns `default` if the key is missing or null.
    fn number(&self, key: &str, default: f64) -> Result<f64, LoadError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(number) => match number.as_f64() {
                Some(number) if (0.0..1.0).contains(&number) => Ok(number),
                _ => Err(self.error(key, "a number from 0, below 1")),
            },
        }
    }

    /// Reads a size of at least 1. Returns `default` if the key is missing.
    fn size(&self, key: &str, default: usize) -> Result<usize, LoadError> {
        let Some(size) = self.json.get(key) else { return Ok(default) };
        match size.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n @ 1..=1_000_000_000) => Ok(n),
            _ => Err(self.error(key, "a whole number from 1")),
        }
    }
}

/// Truncates a long text for display.
fn clipped(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Returns the family that `model_type` names, after checking the class in `architectures`.
fn family(keys: &Keys) -> Result<&'static Family, LoadError> {
    let Some(family) = keys.json.get("model_type").and_then(Value::as_str).and_then(Family::of) else {
        let known = Family::ALL.map(|family| format!("{:?}", family.model_type));
        return Err(keys.error("model_type", &known.join(" or ")));
    };
    // A base encoder is detected by its tensors, which are more reliable than a class name.
    let is_supported = |class: &&str| class.starts_with(family.class_prefix) || class.ends_with("Model");
    match classes(keys) {
        classes if classes.is_empty() || classes.iter().any(is_supported) => Ok(family),
        _ => Err(keys.error("architectures", &format!("[\"{}\"]", family.class("ForSequenceClassification")))),
    }
}

/// Returns the `transformers` classes in `architectures`.
pub(super) fn classes<'a>(keys: &Keys<'a>) -> Vec<&'a str> {
    let classes = keys.json.get("architectures").and_then(Value::as_array);
    classes.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Reads the activation of the feed-forward sublayer. The names are those of `ACT2FN` in `transformers`.
fn activation(keys: &Keys, key: &str) -> Result<Activation, LoadError> {
    match keys.json.get(key) {
        None => Ok(Activation::Gelu),
        Some(name) => match name.as_str() {
            Some("gelu" | "gelu_python") => Ok(Activation::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Activation::GeluTanh),
            Some("relu") => Ok(Activation::Relu),
            Some("silu" | "swish") => Ok(Activation::Silu),
            _ => Err(keys.error(key, "\"gelu\", \"gelu_new\", \"gelu_pytorch_tanh\", \"relu\" or \"silu\"")),
        },
    }
}

/// Reads the dropout rates of training.
fn dropout(keys: &Keys, names: &DropoutKeys) -> Result<Rates, LoadError> {
    let rate = |key: &str, default: f32| keys.number(key, f64::from(default)).map(|rate| rate as f32);
    let defaults = names.defaults;
    let hidden = rate(names.hidden, defaults.embeddings)?;
    Ok(Rates {
        embeddings: hidden,
        attention: rate(names.attention, defaults.attention)?,
        attention_output: if names.attention_output { hidden } else { defaults.attention_output },
        feed_forward: hidden,
        head: rate(names.head, if names.head_as_hidden { hidden } else { defaults.head })?,
    })
}
