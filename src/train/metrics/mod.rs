//! How good predictions are: the metrics of GLUE and of calibration, equal to scikit-learn and `SciPy` to 1e-6.
//!
//! Everything works on slices and gives the same bits every time. Each family has a type that is prepared once from the
//! rows (sorted, centred, counted) and then measured under *counts*, how often each row is taken: all ones are the rows
//! themselves, and the bootstrap draws others without sorting or copying anything again.
//!
//! | Family | Type | Metrics |
//! |---|---|---|
//! | one label of many | [`Confusion`] | accuracy, precision, recall, F1, Matthews |
//! | any number of labels | [`LabelSets`] | subset accuracy, F1 |
//! | the scores of two labels | [`Ranking`] | ROC AUC, average precision |
//! | probabilities | [`RowMeans`], [`Reliability`] | log loss, Brier, expected calibration error |
//! | values | [`Correlation`], [`RowMeans`] | Pearson, Spearman, MSE, MAE, RMSE |
//!
//! A metric that is not defined for the rows at hand is `None`; where scikit-learn gives 0 with a warning, so do these.
//! [`Sample`] gives all metrics that suit one kind of problem.

mod confusion;
mod correlation;
mod label_sets;
mod metric;
mod probability;
mod ranking;
mod sample;

pub use confusion::{ClassScores, Confusion};
pub use correlation::{Correlation, pearson, spearman};
pub use label_sets::LabelSets;
pub use metric::{Better, Metric, Metrics};
pub use probability::{Bin, Reliability, RowMeans, brier, log_loss};
pub use ranking::{Ranking, average_precision, roc_auc};
pub use sample::{Classes, DEFAULT_BINS, Sample, Sets, Values, measured};

use thiserror::Error;

/// Why rows cannot be measured.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum MetricError {
    /// There are no rows.
    #[error("there are no rows to measure")]
    Empty,
    /// Two columns do not have the same number of rows.
    #[error("{what}: {found} values, expected {expected}")]
    Length {
        /// Whose values are counted.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there must be.
        expected: usize,
    },
    /// A number is not a number, is infinite, or is no probability.
    #[error("row {}: {what} is {value}, expected {expected}", row + 1)]
    Value {
        /// The row, from 0; the message counts from 1.
        row: usize,
        /// What the number is.
        what: &'static str,
        /// The number.
        value: f64,
        /// What would do.
        expected: &'static str,
    },
    /// A label has no place among the labels.
    #[error("row {}: {what} is {label}, expected one of the {labels} labels from 0", row + 1)]
    Label {
        /// The row, from 0; the message counts from 1.
        row: usize,
        /// Whose label it is.
        what: &'static str,
        /// The label.
        label: u32,
        /// How many labels there are.
        labels: usize,
    },
}

/// Checks that a column has one value a row.
pub(super) fn check_length(what: &'static str, found: usize, expected: usize) -> Result<(), MetricError> {
    if found == expected { Ok(()) } else { Err(MetricError::Length { what, found, expected }) }
}

/// Checks that every label has a place among the labels.
pub(super) fn check_labels(what: &'static str, column: &[u32], labels: usize) -> Result<(), MetricError> {
    match column.iter().position(|&label| label as usize >= labels) {
        Some(row) => Err(MetricError::Label { row, what, label: column[row], labels }),
        None => Ok(()),
    }
}

/// Checks that every value is finite; `width` values make a row.
fn check_finite(what: &'static str, values: &[f64], width: usize) -> Result<(), MetricError> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(i) => Err(MetricError::Value { row: i / width, what, value: values[i], expected: "a finite number" }),
        None => Ok(()),
    }
}

/// Checks that every value is a probability; `width` values make a row.
pub(super) fn check_probabilities(values: &[f64], width: usize) -> Result<(), MetricError> {
    match values.iter().position(|value| !(0.0..=1.0).contains(value)) {
        Some(i) => Err(MetricError::Value {
            row: i / width,
            what: "a probability",
            value: values[i],
            expected: "a number from 0 to 1",
        }),
        None => Ok(()),
    }
}

/// Divides; none where there is nothing to divide by.
fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// F1 of true positives, false positives and false negatives: 0 where there are none of any, as scikit-learn has it.
fn f1(hits: u64, false_alarms: u64, misses: u64) -> f64 {
    ratio(2 * hits, 2 * hits + false_alarms + misses).unwrap_or(0.0)
}
