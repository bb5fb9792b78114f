//! The decision threshold for two labels: the lowest probability of the second label for which it is predicted. Either
//! label may be the positive one, whose precision and recall count.
//!
//! A threshold only matters through the rows that it separates, so all values between two neighbouring probabilities
//! are equivalent. The widest contiguous interval of optimal thresholds is selected; of equally wide ones the one whose
//! middle is closest to 0.5, then the lower one. Its middle is the threshold. It does not depend on the order of the
//! rows, and is as far as possible from the rows on either side.

use std::fmt;

use thiserror::Error;

use super::metrics::{MetricError, check_length};

/// Differences of an objective below this are rounding errors.
const ROUNDING: f64 = 1e-12;

/// The objective that a threshold optimizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Objective {
    /// The highest F1.
    F1,
    /// The highest accuracy.
    Accuracy,
    /// The highest Matthews correlation.
    Matthews,
    /// At least this precision, with the highest recall.
    Precision(f64),
    /// At least this recall, with the highest precision.
    Recall(f64),
}

/// An unknown objective.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "unknown objective {written:?}{problem}; known are \"f1\", \"accuracy\", \"matthews\", \"precision >= 0.9\" and \"recall >= 0.9\", with any share"
)]
pub struct ObjectiveError {
    /// The objective as written.
    pub written: String,
    /// The reason, if it is known.
    pub problem: String,
}

/// Errors of fitting a threshold.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ThresholdError {
    /// All rows have the same label.
    #[error(
        "all {rows} validation rows have the {} label; a threshold needs rows of both", if *.positive { "second" } else { "first" }
    )]
    OneLabel {
        /// The number of validation rows.
        rows: usize,
        /// True if all rows have the second label.
        positive: bool,
    },
    /// No threshold reaches the required precision.
    #[error(
        "no threshold reaches {objective} on the validation rows: the best precision is {best:.4}, at recall {recall:.4}; lower the requirement"
    )]
    Unreachable {
        /// The objective.
        objective: Objective,
        /// The highest precision that a threshold reaches.
        best: f64,
        /// The highest recall at that precision.
        recall: f64,
    },
    /// The rows cannot be used.
    #[error(transparent)]
    Rows(#[from] MetricError),
}

/// A threshold, with the interval that it is the middle of.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    /// The lowest probability of the second label for which it is predicted.
    pub value: f64,
    /// The objective.
    pub objective: Objective,
    /// The value on the rows it was fitted on: F1, accuracy or Matthews; the recall for a minimum precision; the
    /// precision for a minimum recall.
    pub reached: f64,
    /// Lower end of the interval, exclusive. All thresholds in the interval are equally good.
    pub from: f64,
    /// Upper end of the interval, inclusive.
    pub to: f64,
}

impl Objective {
    /// Parses an objective: `f1`, `accuracy`, `matthews`, `precision >= 0.9` or `recall >= 0.9`.
    ///
    /// # Errors
    /// Anything else; a share that is not above 0 and at most 1.
    pub fn parse(text: &str) -> Result<Self, ObjectiveError> {
        let error = |problem: &str| ObjectiveError { written: text.to_owned(), problem: problem.to_owned() };
        let (name, share) = match text.split_once(">=") {
            Some((name, share)) => {
                let share: Option<f64> = share.trim().parse().ok().filter(|share| *share > 0.0 && *share <= 1.0);
                (name, Some(share.ok_or_else(|| error(": the number must be above 0 and at most 1"))?))
            }
            None => (text, None),
        };
        match (name.trim().to_lowercase().as_str(), share) {
            ("f1", None) => Ok(Self::F1),
            ("accuracy", None) => Ok(Self::Accuracy),
            ("matthews" | "mcc", None) => Ok(Self::Matthews),
            ("precision", Some(share)) => Ok(Self::Precision(share)),
            ("recall", Some(share)) => Ok(Self::Recall(share)),
            ("precision" | "recall", None) => {
                Err(error(": it needs a minimum, as an extreme threshold always maximizes it alone"))
            }
            _ => Err(error("")),
        }
    }

    /// Returns the value of a threshold; none if it does not meet the required minimum.
    fn value(self, cut: &Cut, positives: u64, rows: u64) -> Option<f64> {
        let (true_positives, false_positives) = (cut.positive as f64, cut.negative as f64);
        let negatives = (rows - positives) as f64;
        let (positives, rows, predicted_positive) = (positives as f64, rows as f64, true_positives + false_positives);
        let (precision, recall) = (
            if predicted_positive > 0.0 { true_positives / predicted_positive } else { 0.0 },
            true_positives / positives,
        );
        match self {
            Self::F1 => Some(2.0 * true_positives / (predicted_positive + positives)),
            Self::Accuracy => Some((true_positives + negatives - false_positives) / rows),
            Self::Matthews => {
                let spread = (predicted_positive / rows)
                    * (1.0 - predicted_positive / rows)
                    * (positives / rows)
                    * (negatives / rows);
                let covariance = true_positives / rows - (predicted_positive / rows) * (positives / rows);
                Some(if spread > 0.0 { covariance / spread.sqrt() } else { 0.0 })
            }
            Self::Precision(least) => (precision >= least).then_some(recall),
            Self::Recall(least) => (recall >= least).then_some(precision),
        }
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F1 => f.write_str("f1"),
            Self::Accuracy => f.write_str("accuracy"),
            Self::Matthews => f.write_str("matthews"),
            Self::Precision(least) => write!(f, "precision >= {least}"),
            Self::Recall(least) => write!(f, "recall >= {least}"),
        }
    }
}

/// The thresholds above `from` and up to `to`, with the counts of rows above them: `positive` rows that have the label,
/// and `negative` rows that do not.
#[derive(Debug, Clone, Copy)]
struct Cut {
    from: f64,
    to: f64,
    positive: u64,
    negative: u64,
}

impl Cut {
    /// Converts the counts for the first label as the positive one: the rows below the threshold are predicted positive
    /// then. `seconds` of `rows` rows have the second label.
    fn for_first_label(self, seconds: u64, rows: u64) -> Self {
        Self { positive: rows - seconds - self.negative, negative: seconds - self.positive, ..self }
    }
}

impl Threshold {
    /// Finds the best threshold on the probabilities of the second label, given the gold labels; `positive` is the
    /// index of the positive label.
    ///
    /// # Errors
    /// No rows, columns of different lengths, invalid probabilities; rows that all have the same label; a precision
    /// that no threshold reaches.
    pub fn fit(
        positive: usize,
        objective: Objective,
        probabilities: &[f32],
        second: &[bool],
    ) -> Result<Self, ThresholdError> {
        check_length("probabilities", probabilities.len(), second.len())?;
        let scores: Vec<f64> = probabilities.iter().copied().map(f64::from).collect();
        super::metrics::check_probabilities(&scores, 1)?;
        let rows = second.len() as u64;
        let seconds = second.iter().filter(|second| **second).count() as u64;
        if rows == 0 {
            return Err(MetricError::Empty.into());
        }
        if seconds == 0 || seconds == rows {
            return Err(ThresholdError::OneLabel { rows: second.len(), positive: seconds > 0 });
        }
        let mut cuts = cuts(&scores, second);
        let positives = if positive == 0 {
            for cut in &mut cuts {
                *cut = cut.for_first_label(seconds, rows);
            }
            rows - seconds
        } else {
            seconds
        };
        let values: Vec<Option<f64>> = cuts.iter().map(|cut| objective.value(cut, positives, rows)).collect();
        let best = values.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
        let is_best = |i: usize| values[i].is_some_and(|value| value >= best - ROUNDING);
        let mut intervals: Vec<(f64, f64)> = Vec::new();
        for (i, cut) in cuts.iter().enumerate().filter(|(i, _)| is_best(*i)) {
            match intervals.last_mut() {
                // Cuts are in descending order, so the previous interval grows downwards.
                Some(interval) if i > 0 && is_best(i - 1) => interval.0 = cut.from,
                _ => intervals.push((cut.from, cut.to)),
            }
        }
        let off_centre = |(from, to): (f64, f64)| (f64::midpoint(from, to) - 0.5).abs();
        let widest = intervals.into_iter().reduce(|best, other| {
            let wider = (other.1 - other.0) - (best.1 - best.0);
            let nearer = off_centre(best) - off_centre(other);
            // Intervals are in descending order, so of equals the lower one is selected.
            let better = wider > ROUNDING || (wider.abs() <= ROUNDING && nearer >= -ROUNDING);
            if better { other } else { best }
        });
        let Some((from, to)) = widest else { return Err(unreachable(objective, &cuts, positives)) };
        Ok(Self { value: f64::midpoint(from, to), objective, reached: best, from, to })
    }
}

/// Returns all thresholds with distinct effects, the highest first. If a probability is 1, no threshold predicts every
/// row negative, as no threshold is above 1.
fn cuts(scores: &[f64], positive: &[bool]) -> Vec<Cut> {
    let mut rows: Vec<(f64, bool)> = scores.iter().copied().zip(positive.iter().copied()).collect();
    rows.sort_by(|(left, _), (right, _)| right.total_cmp(left));
    let mut cuts = Vec::new();
    let mut next = Cut { from: 0.0, to: 1.0, positive: 0, negative: 0 };
    for (score, positive) in rows {
        if score < next.to {
            cuts.push(Cut { from: score, ..next });
            next.to = score;
        }
        if positive {
            next.positive += 1;
        } else {
            next.negative += 1;
        }
    }
    // At or below the lowest probability, all rows are predicted positive.
    cuts.push(Cut { from: 0.0, ..next });
    cuts
}

fn unreachable(objective: Objective, cuts: &[Cut], positives: u64) -> ThresholdError {
    let predicting = cuts.iter().filter(|cut| cut.positive + cut.negative > 0);
    let precision = |cut: &Cut| cut.positive as f64 / (cut.positive + cut.negative) as f64;
    let better =
        |left: &Cut, right: &Cut| precision(left).total_cmp(&precision(right)).then(left.positive.cmp(&right.positive));
    let best = predicting.max_by(|left, right| better(left, right));
    ThresholdError::Unreachable {
        objective,
        best: best.map_or(0.0, precision),
        recall: best.map_or(0.0, |cut| cut.positive as f64 / positives as f64),
    }
}
