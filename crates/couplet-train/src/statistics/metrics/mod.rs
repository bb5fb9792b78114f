//! Metrics of predictions: those of GLUE and of calibration, equal to scikit-learn and `SciPy` to 1e-6.
//!
//! Everything works on slices and is bit-reproducible. Each family has a type that is prepared once from the rows
//! (sorted, centred, counted) and then evaluated under *counts*, the number of times that each row is taken. Counts of
//! one select the rows themselves; the bootstrap draws other counts, without sorting or copying anything again.
//!
//! | Family | Type | Metrics |
//! |---|---|---|
//! | one label of several | [`Confusion`] | accuracy, precision, recall, F1, Matthews |
//! | any number of labels | [`LabelSets`] | subset accuracy, F1 |
//! | the scores of two labels | [`Ranking`] | ROC AUC, average precision |
//! | probabilities | [`RowMeans`], [`Reliability`] | log loss, Brier, expected calibration error |
//! | values | [`Correlation`], [`RowMeans`] | Pearson, Spearman, MSE, MAE, RMSE |
//!
//! A metric that is undefined for the given rows is `None`; where scikit-learn returns 0 with a warning, so does this
//! module. [`Sample`] computes all metrics that suit one kind of problem.

mod confusion;
mod correlation;
mod label_sets;
mod metric;
mod probability;
mod ranking;
mod sample;

pub use confusion::{ClassScores, Confusion, LabelScores, Tally};
pub use correlation::Correlation;
pub use label_sets::{LabelSets, f1_averages};
pub use metric::{Better, Metric, Metrics};
pub use probability::{Bin, BinSums, Reliability, RowMeans};
pub use ranking::Ranking;
pub use sample::{Classes, DEFAULT_BINS, Sample, Sets, Values, measured};

use thiserror::Error;

/// Errors that prevent metrics from being computed.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum MetricError {
    /// There are no rows.
    #[error("there are no rows to measure")]
    Empty,
    /// Two columns have different numbers of rows.
    #[error("{what}: {found} values, expected {expected}")]
    Length {
        /// The column.
        what: &'static str,
        /// The number of its values.
        found: usize,
        /// The required number.
        expected: usize,
    },
    /// A value is NaN, infinite, or not a probability.
    #[error("row {}: {what} is {value}, expected {expected}", row + 1)]
    Value {
        /// The row, from 0; the message counts from 1.
        row: usize,
        /// The kind of value.
        what: &'static str,
        /// The value.
        value: f64,
        /// The allowed values.
        expected: &'static str,
    },
    /// A label is outside the range of labels.
    #[error("row {}: {what} is {label}, expected one of the {labels} labels from 0", row + 1)]
    Label {
        /// The row, from 0; the message counts from 1.
        row: usize,
        /// The kind of label.
        what: &'static str,
        /// The label.
        label: u32,
        /// The number of labels.
        labels: usize,
    },
}

/// Checks that a column has one value per row.
pub(super) fn check_length(what: &'static str, found: usize, expected: usize) -> Result<(), MetricError> {
    if found == expected { Ok(()) } else { Err(MetricError::Length { what, found, expected }) }
}

/// Checks that every label is in range.
pub(super) fn check_labels(what: &'static str, column: &[u32], labels: usize) -> Result<(), MetricError> {
    match column.iter().position(|&label| label as usize >= labels) {
        Some(row) => Err(MetricError::Label { row, what, label: column[row], labels }),
        None => Ok(()),
    }
}

/// Checks that every value is finite; `width` values per row.
fn check_finite(what: &'static str, values: &[f64], width: usize) -> Result<(), MetricError> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(i) => Err(MetricError::Value { row: i / width, what, value: values[i], expected: "a finite number" }),
        None => Ok(()),
    }
}

/// Checks that every value is a probability; `width` values per row.
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

/// Divides; returns none if the divisor is 0.
fn ratio(part: u64, total: u64) -> Option<f64> {
    (total > 0).then(|| part as f64 / total as f64)
}
