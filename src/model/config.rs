//! `config.json`: the sizes, the labels and the task of a checkpoint.

use std::collections::HashSet;
use std::path::Path;

use serde_json::Value;

use super::LoadError;
use super::files::ModelFiles;
use crate::ops::Rates;

/// The two encoders that couplet runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Sanh et al. 2019: no token types; the head reads the first token through `pre_classifier` and a rectifier.
    DistilBert,
    /// Devlin et al. 2019: token types; the head reads the first token through the pooler and tanh.
    Bert,
}

impl Architecture {
    /// The class of `transformers` that writes and reads such a checkpoint.
    #[must_use]
    pub fn class_name(self) -> &'static str {
        match self {
            Self::DistilBert => "DistilBertForSequenceClassification",
            Self::Bert => "BertForSequenceClassification",
        }
    }

    /// The same for an encoder without a head.
    #[must_use]
    pub fn encoder_name(self) -> &'static str {
        match self {
            Self::DistilBert => "DistilBertModel",
            Self::Bert => "BertModel",
        }
    }

    /// What the names of the encoder's tensors begin with.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::DistilBert => "distilbert.",
            Self::Bert => "bert.",
        }
    }
}

/// What the logits mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// One of the labels: softmax.
    SingleLabel,
    /// Any number of the labels: a sigmoid each.
    MultiLabel,
    /// The one logit is the value.
    Regression,
}

impl Problem {
    /// The probability from which on a row has a label, where it may have any number of them.
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

/// The sizes, labels and task of a checkpoint, in DistilBERT's words.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which encoder.
    pub architecture: Architecture,
    /// Word pieces in the vocabulary.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub dim: usize,
    /// Transformer blocks.
    pub n_layers: usize,
    /// Attention heads in a block.
    pub n_heads: usize,
    /// Width of the feed-forward layer.
    pub hidden_dim: usize,
    /// The most tokens in a sequence.
    pub max_position_embeddings: usize,
    /// Token types: 0 for DistilBERT, which has none.
    pub type_vocab_size: usize,
    /// Added to the variance in every layer normalisation.
    pub layer_norm_eps: f64,
    /// What the logits mean.
    pub problem: Problem,
    /// The name of each logit, in order; empty for regression.
    pub labels: Vec<String>,
    /// What training drops, by default as in the architecture's paper.
    pub dropout: Rates,
    /// Standard deviation of weights that begin at random.
    pub initializer_range: f64,
}

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// A file that is missing or no JSON; a key that is missing, or whose value couplet cannot run.
    pub(crate) fn load(files: &ModelFiles) -> Result<Self, LoadError> {
        let (path, json) = (&files.path(files.config()), read_json(files, files.config())?);
        let keys = Keys { path, json: &json };
        let architecture = architecture(&keys)?;
        let names: Names = match architecture {
            Architecture::DistilBert => DISTILBERT,
            Architecture::Bert => BERT,
        };
        if json.get(names.activation).and_then(Value::as_str) != Some("gelu") {
            return Err(keys.error(names.activation, "\"gelu\""));
        }
        if !matches!(json.get("position_embedding_type").and_then(Value::as_str), None | Some("absolute")) {
            return Err(keys.error("position_embedding_type", "\"absolute\""));
        }
        let config = Self {
            architecture,
            vocab_size: keys.size("vocab_size")?,
            dim: keys.size(names.dim)?,
            n_layers: keys.size(names.n_layers)?,
            n_heads: keys.size(names.n_heads)?,
            hidden_dim: keys.size(names.hidden_dim)?,
            max_position_embeddings: keys.size("max_position_embeddings")?,
            type_vocab_size: match architecture {
                Architecture::DistilBert => 0,
                Architecture::Bert => keys.size("type_vocab_size")?,
            },
            layer_norm_eps: match architecture {
                // A constant of its code, whatever its `config.json` says.
                Architecture::DistilBert => 1e-12,
                Architecture::Bert => keys.number("layer_norm_eps", 1e-12)?,
            },
            problem: problem(&keys)?,
            labels: labels(&keys)?,
            dropout: dropout(&keys, architecture)?,
            // Source: Devlin et al. 2019's code.
            initializer_range: keys.number("initializer_range", 0.02)?,
        };
        if !config.dim.is_multiple_of(config.n_heads) {
            return Err(keys.error(names.n_heads, &format!("a divisor of {} = {}", names.dim, config.dim)));
        }
        Ok(config)
    }

    /// Settles the task and the labels by the number of logits that the classifier has.
    ///
    /// # Errors
    /// A label list that does not fit.
    pub(super) fn settle_outputs(&mut self, path: &Path, outputs: usize) -> Result<(), LoadError> {
        if self.problem == Problem::SingleLabel && outputs == 1 {
            self.problem = Problem::Regression;
        }
        match self.problem {
            Problem::Regression if outputs == 1 => self.labels.clear(),
            Problem::Regression => {
                return Err(LoadError::Key {
                    path: path.to_owned(),
                    key: "problem_type".into(),
                    expected: format!("a classification, as `classifier.weight` has {outputs} outputs"),
                    found: "\"regression\"".into(),
                });
            }
            _ if self.labels.len() == outputs => {}
            _ => {
                return Err(LoadError::Key {
                    path: path.to_owned(),
                    key: "id2label".into(),
                    expected: format!(
                        "a name for each of the {outputs} outputs of `classifier.weight`, such as {{\"0\": \"no\", \"1\": \"yes\"}}"
                    ),
                    found: match self.labels.len() {
                        0 => "nothing".into(),
                        n => format!("{n} names"),
                    },
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
impl ModelConfig {
    /// One of no size, for what depends on the labels alone.
    pub(crate) fn smallest(problem: Problem, labels: usize) -> Self {
        Self {
            architecture: Architecture::DistilBert,
            vocab_size: 8,
            dim: 4,
            n_layers: 1,
            n_heads: 1,
            hidden_dim: 4,
            max_position_embeddings: 8,
            type_vocab_size: 0,
            layer_norm_eps: 1e-12,
            problem,
            labels: (0..labels).map(|i| i.to_string()).collect(),
            dropout: Rates::NONE,
            initializer_range: 0.02,
        }
    }
}

/// How an architecture calls the sizes that both have.
struct Names {
    dim: &'static str,
    n_layers: &'static str,
    n_heads: &'static str,
    hidden_dim: &'static str,
    activation: &'static str,
}

const DISTILBERT: Names =
    Names { dim: "dim", n_layers: "n_layers", n_heads: "n_heads", hidden_dim: "hidden_dim", activation: "activation" };
const BERT: Names = Names {
    dim: "hidden_size",
    n_layers: "num_hidden_layers",
    n_heads: "num_attention_heads",
    hidden_dim: "intermediate_size",
    activation: "hidden_act",
};

/// Reads a JSON file of a checkpoint: an object.
pub(crate) fn read_json(files: &ModelFiles, name: &str) -> Result<Value, LoadError> {
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

/// The keys of a JSON file, for errors about them.
pub(super) struct Keys<'a> {
    pub(super) path: &'a Path,
    pub(super) json: &'a Value,
}

impl Keys<'_> {
    pub(super) fn error(&self, key: &str, expected: &str) -> LoadError {
        self.error_about(key, self.json.get(key), expected)
    }

    fn error_about(&self, key: &str, found: Option<&Value>, expected: &str) -> LoadError {
        let found = found.map_or_else(|| "nothing".to_owned(), |value| clipped(&value.to_string()));
        LoadError::Key { path: self.path.to_owned(), key: key.to_owned(), expected: expected.to_owned(), found }
    }

    /// A switch; none where the key is missing or null.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, LoadError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.error(key, "true or false")),
        }
    }

    /// A number that is small and not negative; `default` where the key is missing or null.
    fn number(&self, key: &str, default: f64) -> Result<f64, LoadError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(number) => match number.as_f64() {
                Some(number) if (0.0..1.0).contains(&number) => Ok(number),
                _ => Err(self.error(key, "a number from 0, below 1")),
            },
        }
    }

    fn size(&self, key: &str) -> Result<usize, LoadError> {
        let size = self.json.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        match size {
            Some(n @ 1..=1_000_000_000) => Ok(n),
            _ => Err(self.error(key, "a whole number from 1")),
        }
    }
}

/// The start of a text that would fill the screen.
fn clipped(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn architecture(keys: &Keys) -> Result<Architecture, LoadError> {
    let architecture = match keys.json.get("model_type").and_then(Value::as_str) {
        Some("distilbert") => Architecture::DistilBert,
        Some("bert") => Architecture::Bert,
        _ => return Err(keys.error("model_type", "\"distilbert\" or \"bert\"")),
    };
    let expected = architecture.class_name();
    let Some(classes) = keys.json.get("architectures").filter(|classes| !classes.is_null()) else {
        return Ok(architecture);
    };
    let classes: Vec<&str> = classes.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    // A base encoder is told apart by its tensors, which say more than a class name.
    if classes.iter().any(|class| *class == expected || class.ends_with("Model") || class.ends_with("ForMaskedLM")) {
        Ok(architecture)
    } else {
        Err(keys.error("architectures", &format!("[\"{expected}\"]")))
    }
}

/// What `transformers` drops in training, by the keys that each architecture has for it.
fn dropout(keys: &Keys, architecture: Architecture) -> Result<Rates, LoadError> {
    let rate = |key: &str, default: f32| keys.number(key, f64::from(default)).map(|rate| rate as f32);
    Ok(match architecture {
        Architecture::DistilBert => {
            let paper = Rates::DISTILBERT;
            let hidden = rate("dropout", paper.embeddings)?;
            Rates {
                embeddings: hidden,
                attention: rate("attention_dropout", paper.attention)?,
                attention_output: paper.attention_output,
                feed_forward: hidden,
                head: rate("seq_classif_dropout", paper.head)?,
            }
        }
        Architecture::Bert => {
            let hidden = rate("hidden_dropout_prob", Rates::BERT.embeddings)?;
            Rates {
                embeddings: hidden,
                attention: rate("attention_probs_dropout_prob", Rates::BERT.attention)?,
                attention_output: hidden,
                feed_forward: hidden,
                head: rate("classifier_dropout", hidden)?,
            }
        }
    })
}

fn problem(keys: &Keys) -> Result<Problem, LoadError> {
    match keys.json.get("problem_type") {
        None | Some(Value::Null) => Ok(Problem::SingleLabel),
        Some(value) => match value.as_str() {
            Some("single_label_classification") => Ok(Problem::SingleLabel),
            Some("multi_label_classification") => Ok(Problem::MultiLabel),
            Some("regression") => Ok(Problem::Regression),
            _ => Err(keys.error(
                "problem_type",
                "\"single_label_classification\", \"multi_label_classification\" or \"regression\"",
            )),
        },
    }
}

/// `id2label` as a list; empty where the key is missing.
fn labels(keys: &Keys) -> Result<Vec<String>, LoadError> {
    let map = match keys.json.get("id2label") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(_) => return Err(keys.error("id2label", "an object such as {\"0\": \"no\", \"1\": \"yes\"}")),
    };
    let (mut labels, mut names) = (Vec::with_capacity(map.len()), HashSet::new());
    for id in 0..map.len() {
        let found = map.get(&id.to_string());
        let wrong = |expected: String| Err(keys.error_about(&format!("id2label.{id}"), found, &expected));
        match found {
            // Rows are counted, compared and written by the names.
            Some(Value::String(label)) if names.insert(label) => labels.push(label.clone()),
            Some(Value::String(_)) => return wrong("a name that no other label has".into()),
            _ => return wrong(format!("a label, as the {} ids must run from 0 without a gap", map.len())),
        }
    }
    Ok(labels)
}
