//! What the head's logits say about one row, or why the row could not be scored.

use std::fmt;

use crate::model::{ModelConfig, Problem};

/// The prediction for a text or a pair.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Place of the most probable label in [`ModelConfig::labels`]; none for regression.
    pub label: Option<usize>,
    /// Probability of that label; the value for regression.
    pub score: f32,
    /// Probability of each label; empty for regression.
    pub probabilities: Box<[f32]>,
    /// Tokens that the encoder read.
    pub tokens: usize,
    /// Whether tokens beyond `max_length` were cut off.
    pub truncated: bool,
}

impl Prediction {
    /// Turns the logits of one row into probabilities: softmax, a sigmoid each, or the value as it is.
    pub(super) fn of_logits(logits: &[f32], config: &ModelConfig, tokens: usize, truncated: bool) -> Self {
        let probabilities: Box<[f32]> = match config.problem {
            Problem::Regression => {
                let score = logits.first().copied().unwrap_or(f32::NAN);
                return Self { label: None, score, probabilities: Box::default(), tokens, truncated };
            }
            Problem::SingleLabel => softmax(logits),
            Problem::MultiLabel => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        };
        let label = (0..probabilities.len()).reduce(|best, i| {
            // The first of equals, as argmax does.
            if probabilities[i] > probabilities[best] { i } else { best }
        });
        let score = label.map_or(f32::NAN, |label| probabilities[label]);
        Self { label, score, probabilities, tokens, truncated }
    }
}

fn softmax(logits: &[f32]) -> Box<[f32]> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f32> = logits.iter().map(|x| (x - max).exp()).collect();
    let sum: f32 = exp.iter().sum();
    exp.into_iter().map(|x| x / sum).collect()
}

/// Why a row was not scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// A text is NULL.
    Null {
        /// The text's column.
        column: String,
    },
    /// The first text has nothing but white space.
    Empty {
        /// The text's column.
        column: String,
    },
    /// A text is larger than [`super::MAX_TEXT_BYTES`].
    TooLarge {
        /// The text's column.
        column: String,
        /// Its size.
        bytes: usize,
    },
    /// The tokenizer gave up on the text.
    Untokenizable {
        /// What the tokenizer said.
        problem: String,
    },
}

impl Rejection {
    /// The kinds of rejection, in the order in which [`super::Tally`] counts them.
    pub const KINDS: [&str; 4] = ["NULL text", "empty text", "text too large", "text the tokenizer refused"];

    /// Place of this rejection's kind in [`Rejection::KINDS`].
    #[must_use]
    pub fn kind(&self) -> usize {
        match self {
            Self::Null { .. } => 0,
            Self::Empty { .. } => 1,
            Self::TooLarge { .. } => 2,
            Self::Untokenizable { .. } => 3,
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null { column } => write!(f, "{column} is NULL"),
            Self::Empty { column } => write!(f, "{column} is empty"),
            Self::TooLarge { column, bytes } => {
                write!(f, "{column} has {bytes} bytes, more than the {} that are scored", super::MAX_TEXT_BYTES)
            }
            Self::Untokenizable { problem } => write!(f, "the tokenizer refused the text: {problem}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Architecture;

    fn config(problem: Problem, labels: usize) -> ModelConfig {
        ModelConfig {
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
        }
    }

    #[test]
    fn one_label_of_many_is_a_softmax() {
        let prediction = Prediction::of_logits(&[-2.0996, 2.1842], &config(Problem::SingleLabel, 2), 9, false);
        assert_eq!(prediction.label, Some(1));
        assert!((prediction.score - 0.986_398).abs() < 1e-5, "{}", prediction.score);
        assert!((prediction.probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn many_labels_are_a_sigmoid_each() {
        let prediction = Prediction::of_logits(&[0.0, 2.0, -2.0], &config(Problem::MultiLabel, 3), 9, true);
        assert_eq!(prediction.label, Some(1));
        assert!((prediction.score - 0.880_797).abs() < 1e-6);
        assert!((prediction.probabilities[2] - 0.119_203).abs() < 1e-6);
    }

    #[test]
    fn a_regression_has_a_value_and_no_label() {
        let prediction = Prediction::of_logits(&[3.25], &config(Problem::Regression, 0), 9, false);
        assert_eq!((prediction.label, prediction.score), (None, 3.25));
        assert!(prediction.probabilities.is_empty());
    }
}
