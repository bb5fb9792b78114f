//! The outcome of a row: a prediction computed from the logits, or the reason why the row cannot be scored.

use std::fmt;

use crate::model::{Calibration, ModelConfig, Problem, ScoreActivation};

/// The prediction of a text or a pair.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The index of the label in [`ModelConfig::labels`]: the most probable label, unless a calibrated threshold
    /// selects another one. `None` for regression.
    pub label: Option<usize>,
    /// The probability of that label. For regression, the logit after [`ModelConfig::score`].
    pub score: f32,
    /// The probability of each label, `[L]`, calibrated if the model has a calibration. Empty for regression.
    pub probabilities: Box<[f32]>,
    /// The uncalibrated probability of each label, `[L]`; empty if the model has no calibration. For regression, the
    /// logit; empty if the score is the logit.
    pub raw: Box<[f32]>,
    /// The number of tokens in the sequence, special tokens included.
    pub tokens: usize,
    /// True if the sequence was truncated to `max_length`.
    pub truncated: bool,
}

impl Prediction {
    /// Computes the prediction from the logits of one row: probabilities by softmax or sigmoid, calibrated if there is
    /// a calibration, or the score of a regression.
    pub(super) fn of_logits(
        logits: &[f32],
        config: &ModelConfig,
        calibration: Option<&Calibration>,
        tokens: usize,
        truncated: bool,
    ) -> Self {
        let raw: Box<[f32]> = match config.problem {
            Problem::Regression => {
                let logit = logits.first().copied().unwrap_or(f32::NAN);
                let score = config.score.apply(logit);
                let raw: Box<[f32]> =
                    if config.score == ScoreActivation::Identity { Box::default() } else { [logit].into() };
                return Self { label: None, score, probabilities: Box::default(), raw, tokens, truncated };
            }
            Problem::SingleLabel => softmax(logits),
            Problem::MultiLabel => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        };
        let most_probable = (0..raw.len()).reduce(|best, i| {
            // The first of equal maxima, like argmax.
            if raw[i] > raw[best] { i } else { best }
        });
        let (label, probabilities, raw) = match calibration {
            None => (most_probable, raw, Box::default()),
            Some(calibration) => {
                let probabilities = calibration.probabilities(config.problem, logits);
                // A temperature does not change the label. A threshold can.
                (calibration.decide(&probabilities).or(most_probable), probabilities, raw)
            }
        };
        let score = label.map_or(f32::NAN, |label| probabilities[label]);
        Self { label, score, probabilities, raw, tokens, truncated }
    }
}

fn softmax(logits: &[f32]) -> Box<[f32]> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f32> = logits.iter().map(|x| (x - max).exp()).collect();
    let sum: f32 = exp.iter().sum();
    exp.into_iter().map(|x| x / sum).collect()
}

/// The reason why a row cannot be scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// A text is NULL.
    Null {
        /// The name of the column.
        column: String,
    },
    /// The first text contains only white space.
    Empty {
        /// The name of the column.
        column: String,
    },
    /// A text is larger than [`super::MAX_TEXT_BYTES`].
    TooLarge {
        /// The name of the column.
        column: String,
        /// The size of the text in bytes.
        bytes: usize,
    },
    /// The tokenizer rejected the text.
    Untokenizable {
        /// The error of the tokenizer.
        problem: String,
    },
}

impl Rejection {
    /// The names of the kinds of rejection, in the order of [`super::Counts::rejected`].
    pub const KINDS: [&str; 4] = ["NULL text", "empty text", "text too large", "text the tokenizer refused"];

    /// Returns the index of this rejection in [`Rejection::KINDS`].
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

    #[test]
    fn single_label_probabilities_are_a_softmax() {
        let prediction =
            Prediction::of_logits(&[-2.0996, 2.1842], &ModelConfig::minimal(Problem::SingleLabel, 2), None, 9, false);
        assert_eq!(prediction.label, Some(1));
        assert!((prediction.score - 0.986_398).abs() < 1e-5, "{}", prediction.score);
        assert!((prediction.probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn calibration_keeps_raw_probabilities_and_threshold_decides() {
        let config = ModelConfig::minimal(Problem::SingleLabel, 2);
        let mut calibration =
            Calibration { temperature: 2.0, threshold: None, objective: None, fitted_on: None, bound: None };
        let raw = Prediction::of_logits(&[1.0, 0.0], &config, None, 9, false);
        let prediction = Prediction::of_logits(&[1.0, 0.0], &config, Some(&calibration), 9, false);
        assert_eq!((prediction.label, &prediction.raw), (Some(0), &raw.probabilities));
        assert!((prediction.score - 0.622_459).abs() < 1e-6 && (raw.score - 0.731_059).abs() < 1e-6);
        calibration.threshold = Some(0.3);
        let prediction = Prediction::of_logits(&[1.0, 0.0], &config, Some(&calibration), 9, false);
        assert_eq!((prediction.label, prediction.score), (Some(1), prediction.probabilities[1]));
    }

    #[test]
    fn multi_label_probabilities_are_sigmoids() {
        let prediction =
            Prediction::of_logits(&[0.0, 2.0, -2.0], &ModelConfig::minimal(Problem::MultiLabel, 3), None, 9, true);
        assert_eq!(prediction.label, Some(1));
        assert!((prediction.score - 0.880_797).abs() < 1e-6);
        assert!((prediction.probabilities[2] - 0.119_203).abs() < 1e-6);
    }

    #[test]
    fn a_regression_has_a_value_and_no_label() {
        let prediction = Prediction::of_logits(&[3.25], &ModelConfig::minimal(Problem::Regression, 0), None, 9, false);
        assert_eq!((prediction.label, prediction.score), (None, 3.25));
        assert!(prediction.probabilities.is_empty() && prediction.raw.is_empty());
    }

    #[test]
    fn a_sigmoid_score_keeps_the_raw_logit() {
        let mut config = ModelConfig::minimal(Problem::Regression, 0);
        config.score = ScoreActivation::Sigmoid;
        let prediction = Prediction::of_logits(&[3.25], &config, None, 9, false);
        assert!((prediction.score - 0.962_673).abs() < 1e-6, "{}", prediction.score);
        assert_eq!((prediction.label, &*prediction.raw), (None, &[3.25][..]));
        assert!(prediction.probabilities.is_empty());
    }
}
