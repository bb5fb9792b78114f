//! The meaning of a checkpoint's logits: their labels, or the activation that turns a single logit into a score.
//!
//! **Source** of the activation: `CrossEncoder` of sentence-transformers 6.2 (`get_default_activation_fn`,
//! `_parse_model_config`) and the text-classification pipeline of transformers 5.24.

use std::collections::HashSet;

use serde_json::Value;

use super::LoadError;
use super::config::{Keys, ModelConfig, Problem, classes, read_json};
use super::family::Family;
use super::files::ModelFiles;

pub use couplet_storage::hub::SENTENCE_TRANSFORMERS;

/// The keys of `config.json` for the activation of the score: since sentence-transformers 4.0, and before.
const ACTIVATION_KEYS: [&str; 2] = ["sentence_transformers.activation_fn", "sbert_ce_default_activation_function"];

const SIGMOID_CLASS: &str = "torch.nn.modules.activation.Sigmoid";

/// The activation that turns the only logit of a model into its score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreActivation {
    /// The score is the logit.
    Identity,
    /// The score is the logistic function of the logit, from 0 to 1.
    Sigmoid,
}

impl ScoreActivation {
    /// The PyTorch class of the identity, as `config.json` contains it.
    pub const IDENTITY_CLASS: &str = "torch.nn.modules.linear.Identity";

    /// Returns the score of a logit.
    #[must_use]
    pub fn apply(self, logit: f32) -> f32 {
        match self {
            Self::Identity => logit,
            Self::Sigmoid => 1.0 / (1.0 + (-logit).exp()),
        }
    }

    /// Returns the name: `identity` or `sigmoid`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Sigmoid => "sigmoid",
        }
    }

    /// Returns the activation with the full name of a PyTorch class.
    fn of_class(class: &str) -> Option<Self> {
        match class {
            Self::IDENTITY_CLASS | "torch.nn.Identity" => Some(Self::Identity),
            SIGMOID_CLASS | "torch.nn.Sigmoid" => Some(Self::Sigmoid),
            _ => None,
        }
    }
}

/// The declarations of `config.json` about the logits. They are checked once the number of logits is known.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct DeclaredOutputs {
    /// The declared class, if none of the declared classes has a supported head.
    class: Option<String>,
    /// The declared number of labels.
    num_labels: Option<u64>,
    /// The key that names the activation of the score, and its value.
    activation: Option<(&'static str, Value)>,
}

impl DeclaredOutputs {
    /// Reads the declarations of `config.json`.
    pub(super) fn read(keys: &Keys, family: &Family) -> Result<Self, LoadError> {
        // A base encoder or masked-LM checkpoint can also have a classifier.
        let expected = family.class("ForSequenceClassification");
        let is_supported =
            |class: &&str| *class == expected || class.ends_with("Model") || class.ends_with("ForMaskedLM");
        let classes = classes(keys);
        let class =
            if classes.iter().any(is_supported) { None } else { classes.first().map(|class| (*class).to_owned()) };
        let num_labels = match keys.json.get("num_labels") {
            None | Some(Value::Null) => None,
            Some(n) => Some(n.as_u64().ok_or_else(|| keys.error("num_labels", "a whole number"))?),
        };
        let nested = keys.json.get("sentence_transformers").and_then(|settings| settings.get("activation_fn"));
        let values = [nested, keys.json.get(ACTIVATION_KEYS[1])];
        let activation = ACTIVATION_KEYS.into_iter().zip(values).find_map(|(key, value)| {
            let value = value.filter(|value| !value.is_null())?;
            Some((key, value.clone()))
        });
        Ok(Self { class, num_labels, activation })
    }
}

impl ModelConfig {
    /// Determines the problem, the labels and the activation of the score from the number of logits, `outputs`.
    ///
    /// # Errors
    /// Returns an error if the head is unsupported, the labels do not match `outputs`, or the activation is unknown.
    pub(super) fn resolve_outputs(&mut self, files: &ModelFiles, outputs: usize) -> Result<(), LoadError> {
        let path = files.path(files.config());
        let reject = |key: &str, expected: String, found: String| {
            Err(LoadError::Key { path: path.clone(), key: key.into(), expected, found })
        };
        if let Some(class) = &self.declared.class {
            return reject(
                "architectures",
                format!("[\"{}\"]", self.family.class("ForSequenceClassification")),
                format!("[{class:?}]"),
            );
        }
        if self.problem == Problem::Regression && outputs != 1 {
            let expected = format!("a classification, as `classifier.weight` has {outputs} outputs");
            return reject("problem_type", expected, "\"regression\"".into());
        }
        if !self.labels.is_empty() && self.labels.len() != outputs {
            let example = "such as {\"0\": \"no\", \"1\": \"yes\"}";
            let expected = format!("a name for each of the {outputs} outputs of `classifier.weight`, {example}");
            return reject("id2label", expected, format!("{} names", self.labels.len()));
        }
        if self.labels.is_empty() {
            if let Some(n) = self.declared.num_labels.filter(|n| *n != outputs as u64) {
                let expected = format!("{outputs}, the number of outputs of `classifier.weight`");
                return reject("num_labels", expected, n.to_string());
            }
            self.labels = (0..outputs).map(|output| format!("LABEL_{output}")).collect();
        }
        if outputs == 1 { self.resolve_score(files) } else { Ok(()) }
    }

    /// Determines the activation of a single logit: the declared one, or the default of the problem type.
    fn resolve_score(&mut self, files: &ModelFiles) -> Result<(), LoadError> {
        let from_file = match files.get(SENTENCE_TRANSFORMERS) {
            Some(_) => read_json(files, SENTENCE_TRANSFORMERS)?.get("activation_fn").cloned(),
            None => None,
        };
        let declared = match (from_file.filter(|class| !class.is_null()), &self.declared.activation) {
            (Some(class), _) => Some((files.path(SENTENCE_TRANSFORMERS), "activation_fn", class)),
            (None, Some((key, class))) => Some((files.path(files.config()), *key, class.clone())),
            (None, None) => None,
        };
        let declared = declared.map(|(path, key, class)| {
            class.as_str().and_then(ScoreActivation::of_class).ok_or_else(|| LoadError::Key {
                path,
                key: key.into(),
                expected: format!("\"{}\" or \"{SIGMOID_CLASS}\"", ScoreActivation::IDENTITY_CLASS),
                found: class.to_string(),
            })
        });
        let default = match self.problem {
            Problem::Regression => ScoreActivation::Identity,
            Problem::SingleLabel | Problem::MultiLabel => ScoreActivation::Sigmoid,
        };
        let score = declared.transpose()?.unwrap_or(default);
        // A multi-label model with one label and a sigmoid keeps its label, because the score equals the label's
        // probability.
        if self.problem != Problem::MultiLabel || score != ScoreActivation::Sigmoid {
            self.problem = Problem::Regression;
            self.score = score;
            self.labels.clear();
        }
        Ok(())
    }
}

/// Reads `problem_type`. The default is single-label classification.
pub(super) fn problem(keys: &Keys) -> Result<Problem, LoadError> {
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

/// Reads `id2label` as a list. It is empty if the key is missing.
pub(super) fn labels(keys: &Keys) -> Result<Vec<String>, LoadError> {
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
            // Names must be unique, because rows are counted, compared and written by label name.
            Some(Value::String(label)) if names.insert(label) => labels.push(label.clone()),
            Some(Value::String(_)) => return wrong("a name that no other label has".into()),
            _ => return wrong(format!("a label, as the {} ids must run from 0 without a gap", map.len())),
        }
    }
    Ok(labels)
}
