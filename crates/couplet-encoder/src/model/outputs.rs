//! What the logits of a checkpoint mean: their labels, or the score that its one logit becomes.
//!
//! **Source** of the score: `CrossEncoder` of sentence-transformers 6.2 (`get_default_activation_fn`,
//! `_parse_model_config`) and the text-classification pipeline of transformers 5.24.

use std::collections::HashSet;

use serde_json::Value;

use super::LoadError;
use super::config::{Keys, ModelConfig, Problem, classes, read_json};
use super::family::Family;
use super::files::ModelFiles;

pub use couplet_storage::hub::SENTENCE_TRANSFORMERS;

/// Where `config.json` names the activation of the score: since sentence-transformers 4.0, and before.
const ACTIVATION_KEYS: [&str; 2] = ["sentence_transformers.activation_fn", "sbert_ce_default_activation_function"];

const SIGMOID_CLASS: &str = "torch.nn.modules.activation.Sigmoid";

/// Turns the one logit of a model into its score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreActivation {
    /// The score is the logit.
    Identity,
    /// The score is the logistic function of the logit, from 0 to 1.
    Sigmoid,
}

impl ScoreActivation {
    /// The class by which `config.json` names that the score is the logit.
    pub const IDENTITY_CLASS: &str = "torch.nn.modules.linear.Identity";

    /// The score of a logit.
    #[must_use]
    pub fn apply(self, logit: f32) -> f32 {
        match self {
            Self::Identity => logit,
            Self::Sigmoid => 1.0 / (1.0 + (-logit).exp()),
        }
    }

    /// The name, in a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Sigmoid => "sigmoid",
        }
    }

    /// The activation that a class of PyTorch computes, by its full name.
    fn of_class(class: &str) -> Option<Self> {
        match class {
            Self::IDENTITY_CLASS | "torch.nn.Identity" => Some(Self::Identity),
            SIGMOID_CLASS | "torch.nn.Sigmoid" => Some(Self::Sigmoid),
            _ => None,
        }
    }
}

/// What `config.json` says of the logits. It is judged when it is known how many logits there are.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Stated {
    /// A class that has another head than couplet's, where no other class is named.
    class: Option<String>,
    num_labels: Option<u64>,
    /// The key that names the activation of the score, and its value.
    activation: Option<(&'static str, Value)>,
}

impl Stated {
    pub(super) fn read(keys: &Keys, family: &Family) -> Result<Self, LoadError> {
        // A base encoder with a classifier is one of the class that reads both.
        let ours = family.class("ForSequenceClassification");
        let suits = |class: &&str| *class == ours || class.ends_with("Model") || class.ends_with("ForMaskedLM");
        let classes = classes(keys);
        let class = if classes.iter().any(suits) { None } else { classes.first().map(|class| (*class).to_owned()) };
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
    /// Settles the task, the labels and the score by the number of logits that the classifier has.
    ///
    /// # Errors
    /// A class with another head, labels that do not fit, an unknown activation of the score.
    pub(super) fn settle_outputs(&mut self, files: &ModelFiles, outputs: usize) -> Result<(), LoadError> {
        let path = files.path(files.config());
        let refuse = |key: &str, expected: String, found: String| {
            Err(LoadError::Key { path: path.clone(), key: key.into(), expected, found })
        };
        if let Some(class) = &self.stated.class {
            return refuse(
                "architectures",
                format!("[\"{}\"]", self.family.class("ForSequenceClassification")),
                format!("[{class:?}]"),
            );
        }
        if self.problem == Problem::Regression && outputs != 1 {
            let expected = format!("a classification, as `classifier.weight` has {outputs} outputs");
            return refuse("problem_type", expected, "\"regression\"".into());
        }
        if !self.labels.is_empty() && self.labels.len() != outputs {
            let example = "such as {\"0\": \"no\", \"1\": \"yes\"}";
            let expected = format!("a name for each of the {outputs} outputs of `classifier.weight`, {example}");
            return refuse("id2label", expected, format!("{} names", self.labels.len()));
        }
        if self.labels.is_empty() {
            if let Some(n) = self.stated.num_labels.filter(|n| *n != outputs as u64) {
                let expected = format!("{outputs}, the number of outputs of `classifier.weight`");
                return refuse("num_labels", expected, n.to_string());
            }
            self.labels = (0..outputs).map(|output| format!("LABEL_{output}")).collect();
        }
        if outputs == 1 { self.settle_score(files) } else { Ok(()) }
    }

    /// Settles what the one logit becomes: what an activation says that is named, else what the problem type says.
    fn settle_score(&mut self, files: &ModelFiles) -> Result<(), LoadError> {
        let beside = match files.get(SENTENCE_TRANSFORMERS) {
            Some(_) => read_json(files, SENTENCE_TRANSFORMERS)?.get("activation_fn").cloned(),
            None => None,
        };
        let named = match (beside.filter(|class| !class.is_null()), &self.stated.activation) {
            (Some(class), _) => Some((files.path(SENTENCE_TRANSFORMERS), "activation_fn", class)),
            (None, Some((key, class))) => Some((files.path(files.config()), *key, class.clone())),
            (None, None) => None,
        };
        let named = named.map(|(path, key, class)| {
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
        let score = named.transpose()?.unwrap_or(default);
        // A label that a row has or has not keeps its name: its probability is the same sigmoid.
        if self.problem != Problem::MultiLabel || score != ScoreActivation::Sigmoid {
            self.problem = Problem::Regression;
            self.score = score;
            self.labels.clear();
        }
        Ok(())
    }
}

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

/// `id2label` as a list; empty where the key is missing.
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
            // Rows are counted, compared and written by the names.
            Some(Value::String(label)) if names.insert(label) => labels.push(label.clone()),
            Some(Value::String(_)) => return wrong("a name that no other label has".into()),
            _ => return wrong(format!("a label, as the {} ids must run from 0 without a gap", map.len())),
        }
    }
    Ok(labels)
}
