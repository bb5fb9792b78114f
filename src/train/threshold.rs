//! The decision threshold of two labels: from which probability on a row has the second. Which of the two is the
//! positive one, whose precision and recall matter, is another question.
//!
//! A threshold matters only by the rows that it separates, so every value between two neighbouring probabilities is as
//! good as any other. Of the thresholds that reach the objective best, the widest unbroken interval is taken (of
//! equally wide ones the one whose middle is nearest to a half, then the lower one), and of that the middle: the same
//! for the same rows in any order, and as far from the rows on either side as can be.

use std::fmt;

use thiserror::Error;

use super::metrics::{MetricError, check_length};

/// Differences of an objective that are only rounding.
const ROUNDING: f64 = 1e-12;

/// What a threshold is to do best.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Objective {
    /// The highest F1.
    F1,
    /// The highest accuracy.
    Accuracy,
    /// The highest Matthews correlation.
    Matthews,
    /// At least this precision, and with it the highest recall.
    Precision(f64),
    /// At least this recall, and with it the highest precision.
    Recall(f64),
}

/// An objective that is not known.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "unknown objective {written:?}{problem}; known are \"f1\", \"accuracy\", \"matthews\", \"precision >= 0.9\" and \"recall >= 0.9\", with any share"
)]
pub struct ObjectiveError {
    /// The objective as it was written.
    pub written: String,
    /// What is wrong with it, where that is plain.
    pub problem: String,
}

/// Why there is no threshold.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ThresholdError {
    /// All rows have the same label.
    #[error(
        "all {rows} validation rows have the {} label; a threshold needs rows of both", if *.positive { "second" } else { "first" }
    )]
    OneLabel {
        /// Validation rows.
        rows: usize,
        /// Whether it is the second label.
        positive: bool,
    },
    /// No threshold reaches what is asked for.
    #[error(
        "no threshold gives the validation rows {objective}: the best precision is {best:.4}, at recall {recall:.4}; ask for less"
    )]
    Unreachable {
        /// What was asked for.
        objective: Objective,
        /// The best that there is.
        best: f64,
        /// The highest recall that goes with it.
        recall: f64,
    },
    /// Rows that cannot be used.
    #[error(transparent)]
    Rows(#[from] MetricError),
}

/// A threshold with the interval whose middle it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    /// Rows have the second label from this probability of it on.
    pub value: f64,
    /// What it does best.
    pub objective: Objective,
    /// What it reaches on the rows it was fitted on: F1, accuracy or Matthews; the recall for a least precision; the
    /// precision for a least recall.
    pub reached: f64,
    /// Any threshold above this one ...
    pub from: f64,
    /// ... and up to this one does the same, or as well.
    pub to: f64,
}

impl Objective {
    /// Reads an objective: `f1`, `accuracy`, `matthews`, `precision >= 0.9` or `recall >= 0.9`.
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
            ("precision" | "recall", None) => Err(error(": it needs a least value, as it alone is best at an extreme")),
            _ => Err(error("")),
        }
    }

    /// How good a threshold is; none where it does not reach what is asked for.
    fn value(self, cut: &Cut, positives: u64, rows: u64) -> Option<f64> {
        let (hits, false_alarms) = (cut.positive as f64, cut.negative as f64);
        let negatives = (rows - positives) as f64;
        let (positives, rows, guessed) = (positives as f64, rows as f64, hits + false_alarms);
        let (precision, recall) = (if guessed > 0.0 { hits / guessed } else { 0.0 }, hits / positives);
        match self {
            Self::F1 => Some(2.0 * hits / (guessed + positives)),
            Self::Accuracy => Some((hits + negatives - false_alarms) / rows),
            Self::Matthews => {
                let spread = (guessed / rows) * (1.0 - guessed / rows) * (positives / rows) * (negatives / rows);
                let covariance = hits / rows - (guessed / rows) * (positives / rows);
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

/// The thresholds above `from` and up to `to`, and the rows that they make positive: those that are so, and those that
/// are not.
#[derive(Debug, Clone, Copy)]
struct Cut {
    from: f64,
    to: f64,
    positive: u64,
    negative: u64,
}

impl Cut {
    /// The same thresholds where the first label is the positive one, of rows of which so many have the second: those
    /// below them are positive then.
    fn turned(self, seconds: u64, rows: u64) -> Self {
        Self { positive: rows - seconds - self.negative, negative: seconds - self.positive, ..self }
    }
}

impl Threshold {
    /// Finds the threshold on the probabilities of the second label that does best on rows whose label is known; the
    /// second label is the positive one.
    ///
    /// # Errors
    /// No rows, columns of different lengths, numbers that are no probabilities; rows that all have one label; a
    /// precision that no threshold reaches.
    pub fn fit(objective: Objective, probabilities: &[f32], second: &[bool]) -> Result<Self, ThresholdError> {
        Self::fit_for(1, objective, probabilities, second)
    }

    /// The same where the label in the place `positive` is the positive one; the probabilities are still those of the
    /// second.
    ///
    /// # Errors
    /// As [`Threshold::fit`].
    pub fn fit_for(
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
                *cut = cut.turned(seconds, rows);
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
                // From the highest threshold down: the interval before grows downwards.
                Some(interval) if i > 0 && is_best(i - 1) => interval.0 = cut.from,
                _ => intervals.push((cut.from, cut.to)),
            }
        }
        let off_centre = |(from, to): (f64, f64)| (f64::midpoint(from, to) - 0.5).abs();
        let widest = intervals.into_iter().reduce(|best, other| {
            let wider = (other.1 - other.0) - (best.1 - best.0);
            let nearer = off_centre(best) - off_centre(other);
            // The intervals come from the highest down, so that of equals the lower one is taken.
            let better = wider > ROUNDING || (wider.abs() <= ROUNDING && nearer >= -ROUNDING);
            if better { other } else { best }
        });
        let Some((from, to)) = widest else { return Err(unreachable(objective, &cuts, positives)) };
        Ok(Self { value: f64::midpoint(from, to), objective, reached: best, from, to })
    }
}

/// All thresholds that differ by what they do, the highest first: the one that makes no row positive is left out where
/// a probability is 1, as no threshold is above that.
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
    // At the lowest probability and below it all rows are positive.
    cuts.push(Cut { from: 0.0, ..next });
    cuts
}

fn unreachable(objective: Objective, cuts: &[Cut], positives: u64) -> ThresholdError {
    let guessing = cuts.iter().filter(|cut| cut.positive + cut.negative > 0);
    let precision = |cut: &Cut| cut.positive as f64 / (cut.positive + cut.negative) as f64;
    let better =
        |left: &Cut, right: &Cut| precision(left).total_cmp(&precision(right)).then(left.positive.cmp(&right.positive));
    let best = guessing.max_by(|left, right| better(left, right));
    ThresholdError::Unreachable {
        objective,
        best: best.map_or(0.0, precision),
        recall: best.map_or(0.0, |cut| cut.positive as f64 / positives as f64),
    }
}
