//! Metrics by name, and a set of metric values.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::statistics::names::{UnknownName, same_name};

/// A metric of predictions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Metric {
    /// Share of the rows with the correct label.
    Accuracy,
    /// Precision of the positive one of two labels: the share of the rows predicted positive that are positive.
    Precision,
    /// Recall of the positive one of two labels: the share of the positive rows that are predicted positive.
    Recall,
    /// F1 of the positive one of two labels, as in GLUE.
    F1,
    /// Mean F1 over the labels.
    F1Macro,
    /// F1 of all labels pooled.
    F1Micro,
    /// Mean F1 over the labels, weighted by their rows.
    F1Weighted,
    /// Matthews correlation coefficient.
    Matthews,
    /// Share of the rows whose set of labels is correct.
    SubsetAccuracy,
    /// Area under the receiver operating characteristic.
    RocAuc,
    /// Average precision.
    AveragePrecision,
    /// Mean negative logarithm of the gold label's probability, in nats.
    LogLoss,
    /// Brier score.
    Brier,
    /// Expected calibration error.
    CalibrationError,
    /// Pearson correlation.
    Pearson,
    /// Spearman rank correlation.
    Spearman,
    /// Mean squared error.
    Mse,
    /// Root of the mean squared error, in the unit of the label.
    Rmse,
    /// Mean absolute error, in the unit of the label.
    Mae,
}

/// The direction in which a metric improves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Higher is better.
    Higher,
    /// Lower is better: losses and errors.
    Lower,
}

/// Each metric with its name, its aliases, and true if it never exceeds 1.
const METRICS: [(Metric, &str, &[&str], bool); 19] = [
    (Metric::Accuracy, "accuracy", &["acc"], true),
    (Metric::Precision, "precision", &[], true),
    (Metric::Recall, "recall", &[], true),
    (Metric::F1, "f1", &[], true),
    (Metric::F1Macro, "f1_macro", &["macro_f1"], true),
    (Metric::F1Micro, "f1_micro", &["micro_f1"], true),
    (Metric::F1Weighted, "f1_weighted", &["weighted_f1"], true),
    (Metric::Matthews, "matthews", &["mcc", "matthews_correlation", "matthews_corrcoef"], true),
    (Metric::SubsetAccuracy, "subset_accuracy", &["exact_match"], true),
    (Metric::RocAuc, "roc_auc", &["auc"], true),
    (Metric::AveragePrecision, "average_precision", &["ap", "pr_auc"], true),
    (Metric::LogLoss, "log_loss", &["nll", "cross_entropy"], false),
    (Metric::Brier, "brier", &["brier_score"], false),
    (Metric::CalibrationError, "calibration_error", &["ece", "expected_calibration_error"], true),
    (Metric::Pearson, "pearson", &["pearsonr"], true),
    (Metric::Spearman, "spearman", &["spearmanr"], true),
    (Metric::Mse, "mse", &["mean_squared_error"], false),
    (Metric::Rmse, "rmse", &["root_mean_squared_error"], false),
    (Metric::Mae, "mae", &["mean_absolute_error"], false),
];

impl Metric {
    /// Returns all metrics.
    pub fn all() -> impl Iterator<Item = Self> + Clone {
        METRICS.iter().map(|(metric, ..)| *metric)
    }

    /// Finds a metric by its name or alias, ignoring case and dashes: `f1`, `mcc`, `ROC-AUC`.
    ///
    /// # Errors
    /// An unknown name, with the closest one and a list of all names.
    pub fn parse(name: &str) -> Result<Self, UnknownName> {
        Self::parse_among(name, Self::all())
    }

    /// Finds a metric among the given ones, as [`Metric::parse`] does.
    ///
    /// # Errors
    /// A name that none of them has, with the closest one and a list of all their names.
    pub fn parse_among(name: &str, metrics: impl Iterator<Item = Self> + Clone) -> Result<Self, UnknownName> {
        let named = |metric: &Self| {
            let (_, own, others, _) = metric.row();
            same_name(own, name) || others.iter().any(|other| same_name(other, name))
        };
        metrics.clone().find(named).ok_or_else(|| UnknownName::new("metric", name, metrics.map(Self::name)))
    }

    fn row(self) -> &'static (Self, &'static str, &'static [&'static str], bool) {
        METRICS.iter().find(|(metric, ..)| *metric == self).expect("the table has every metric")
    }

    /// Returns the metric's name in reports and in `promote_if`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Returns true if the metric never exceeds 1.
    #[must_use]
    pub fn at_most_one(self) -> bool {
        self.row().3
    }

    /// Returns the direction in which the metric improves.
    #[must_use]
    pub fn better(self) -> Better {
        match self {
            Self::LogLoss | Self::Brier | Self::CalibrationError | Self::Mse | Self::Rmse | Self::Mae => Better::Lower,
            _ => Better::Higher,
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Metric values in the order of a report; none for a metric that is undefined for the rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics(Vec<(Metric, Option<f64>)>);

impl Metrics {
    /// Returns the metrics and their values.
    pub fn iter(&self) -> impl Iterator<Item = (Metric, Option<f64>)> + Clone {
        self.0.iter().copied()
    }

    /// Returns the value of a metric; none if it was not measured, or is undefined.
    #[must_use]
    pub fn get(&self, metric: Metric) -> Option<f64> {
        self.iter().find(|(measured, _)| *measured == metric).and_then(|(_, value)| value)
    }

    /// Returns true if a metric was measured, even if undefined.
    #[must_use]
    pub fn has(&self, metric: Metric) -> bool {
        self.iter().any(|(measured, _)| measured == metric)
    }
}

/// A map by name, with `null` for an undefined metric.
impl Serialize for Metrics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(metric, value)| (metric.name(), value)))
    }
}

impl FromIterator<(Metric, Option<f64>)> for Metrics {
    fn from_iter<I: IntoIterator<Item = (Metric, Option<f64>)>>(metrics: I) -> Self {
        Self(metrics.into_iter().collect())
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (metric, value)) in self.iter().enumerate() {
            let comma = if i == 0 { "" } else { " · " };
            match value {
                Some(value) => write!(f, "{comma}{metric} {value:.4}")?,
                None => write!(f, "{comma}{metric} not defined")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_found_by_name_and_alias() {
        for metric in Metric::all() {
            assert_eq!(Metric::parse(metric.name()), Ok(metric));
        }
        assert_eq!(Metric::parse("ROC-AUC"), Ok(Metric::RocAuc));
        assert_eq!(Metric::parse("MCC"), Ok(Metric::Matthews));
        let error = Metric::parse("acuracy").unwrap_err();
        assert_eq!(error.suggestion, Some("accuracy"));
        assert!(
            error.to_string().starts_with(
                "unknown metric \"acuracy\" (did you mean `accuracy`?); known are accuracy, precision, recall, f1,"
            ),
            "{error}"
        );
    }
}
