//! Labelled rows with their predictions, and all metrics that suit the kind of problem, for all rows or a part of them.

use couplet_encoder::model::Problem;

use super::confusion::{self, Cells, Confusion};
use super::correlation::{self, Correlation};
use super::probability::{self, Bin, Reliability, RowMeans};
use super::{LabelSets, Metric, MetricError, Metrics, Ranking, check_length, check_probabilities};

/// The default number of bins of the calibration error and of the reliability diagram.
pub const DEFAULT_BINS: usize = 10;

const TWO_LABELS: &[Metric] = &[
    Metric::Accuracy,
    // F1 alone is misleading if most rows are positive, so Matthews is always reported with it.
    Metric::F1,
    Metric::Matthews,
    Metric::Precision,
    Metric::Recall,
    Metric::F1Macro,
    Metric::RocAuc,
    Metric::AveragePrecision,
    Metric::LogLoss,
    Metric::Brier,
    Metric::CalibrationError,
];
const MANY_LABELS: &[Metric] = &[
    Metric::Accuracy,
    Metric::F1Macro,
    Metric::Matthews,
    Metric::F1Micro,
    Metric::F1Weighted,
    Metric::LogLoss,
    Metric::Brier,
    Metric::CalibrationError,
];
const VALUES: &[Metric] = &[Metric::Pearson, Metric::Spearman, Metric::Mse, Metric::Rmse, Metric::Mae];
const SETS: &[Metric] = &[Metric::F1Micro, Metric::F1Macro, Metric::SubsetAccuracy];

/// Returns the metrics that a [`Sample`] of a kind of problem has, in its order; without a number of labels, all those
/// that it may have.
#[must_use]
pub fn measured(problem: Problem, labels: Option<usize>) -> Vec<Metric> {
    match (problem, labels) {
        (Problem::Regression, _) => VALUES.to_vec(),
        (Problem::MultiLabel, _) => SETS.to_vec(),
        (Problem::SingleLabel, Some(2)) => TWO_LABELS.to_vec(),
        (Problem::SingleLabel, Some(_)) => MANY_LABELS.to_vec(),
        (Problem::SingleLabel, None) => {
            let more = MANY_LABELS.iter().filter(|metric| !TWO_LABELS.contains(metric));
            TWO_LABELS.iter().chain(more).copied().collect()
        }
    }
}

/// Labelled rows with their predictions.
#[derive(Debug, Clone)]
pub enum Sample {
    /// One label of several.
    Classes(Classes),
    /// Values.
    Values(Values),
    /// Any number of labels.
    Sets(Sets),
}

/// Rows with one label of several.
#[derive(Debug, Clone)]
pub struct Classes {
    labels: usize,
    gold: Vec<u32>,
    predicted: Vec<u32>,
    probabilities: Vec<f64>,
    bins: usize,
    /// Each row's cell in the confusion matrix.
    cells: Cells,
    log_loss: RowMeans,
    brier: RowMeans,
    reliability: Reliability,
    /// The index of the positive one of two labels, which precision, recall, F1 and average precision refer to.
    positive: usize,
    /// The rows ranked by the probability of the positive label; for two labels only.
    ranking: Option<Ranking>,
}

/// Rows with a value.
#[derive(Debug, Clone)]
pub struct Values {
    gold: Vec<f64>,
    predicted: Vec<f64>,
    correlation: Correlation,
    squared: RowMeans,
    absolute: RowMeans,
}

/// Rows with any number of labels.
#[derive(Debug, Clone)]
pub struct Sets {
    labels: usize,
    gold: Vec<bool>,
    predicted: Vec<bool>,
    counted: LabelSets,
}

impl Classes {
    /// Takes gold labels and probabilities, `labels` per row. Predicted labels are needed only if they are not the most
    /// probable ones (the first of equals). The second of two labels is the positive one.
    ///
    /// # Errors
    /// No rows; columns of different lengths; labels beyond `labels`; invalid probabilities of a row.
    pub fn new(
        labels: usize,
        gold: Vec<u32>,
        probabilities: Vec<f64>,
        predicted: Option<Vec<u32>>,
        bins: usize,
    ) -> Result<Self, MetricError> {
        probability::check(labels, &gold, &probabilities)?;
        let predicted = predicted
            .unwrap_or_else(|| probabilities.chunks_exact(labels).map(|row| probability::argmax(row) as u32).collect());
        confusion::check(labels, &gold, &predicted)?;
        let positive = 1;
        let ranking = if labels == 2 { Some(ranking(positive, &gold, &probabilities)?) } else { None };
        Ok(Self {
            cells: Cells::new(labels, &gold, &predicted),
            log_loss: RowMeans::log_loss(labels, &gold, &probabilities)?,
            brier: RowMeans::brier(labels, &gold, &probabilities)?,
            reliability: Reliability::new(bins, labels, &gold, &probabilities)?,
            positive,
            ranking,
            labels,
            gold,
            predicted,
            probabilities,
            bins,
        })
    }

    /// Sets the index of the positive one of two labels; does nothing for other numbers of labels.
    ///
    /// # Errors
    /// None, as [`Classes::new`] has validated the rows.
    pub fn with_positive(mut self, label: Option<usize>) -> Result<Self, MetricError> {
        if let Some(label) = label.filter(|label| self.labels == 2 && *label != self.positive) {
            self.ranking = Some(ranking(label, &self.gold, &self.probabilities)?);
            self.positive = label;
        }
        Ok(self)
    }

    /// Returns the confusion matrix of all rows.
    #[must_use]
    pub fn confusion(&self) -> Confusion {
        self.cells.count(&ones(self.gold.len()))
    }

    /// Returns the bins of the reliability diagram of all rows.
    #[must_use]
    pub fn reliability(&self) -> Vec<Bin> {
        self.reliability.sums(&ones(self.gold.len())).bins()
    }

    fn measure(&self, counts: &[u32]) -> (&'static [Metric], Vec<Option<f64>>) {
        let confusion = self.cells.count(counts);
        let mut values = vec![confusion.accuracy()];
        if let Some(ranking) = &self.ranking {
            let positive = (confusion.total() > 0).then(|| confusion.class(self.positive));
            let (roc_auc, average_precision) = ranking.measure(counts);
            values.extend([
                positive.map(|class| class.f1),
                confusion.matthews(),
                positive.map(|class| class.precision),
                positive.map(|class| class.recall),
                confusion.f1_macro(),
                roc_auc,
                average_precision,
            ]);
        } else {
            values.extend([
                confusion.f1_macro(),
                confusion.matthews(),
                // With one label per row, micro F1 is the accuracy.
                confusion.accuracy(),
                confusion.f1_weighted(),
            ]);
        }
        values.extend([
            self.log_loss.mean(counts),
            self.brier.mean(counts),
            self.reliability.sums(counts).expected_calibration_error(),
        ]);
        (if self.ranking.is_some() { TWO_LABELS } else { MANY_LABELS }, values)
    }
}

impl Values {
    /// Takes gold and predicted values.
    ///
    /// # Errors
    /// No rows; columns of different lengths; a value that is not finite.
    pub fn new(gold: Vec<f64>, predicted: Vec<f64>) -> Result<Self, MetricError> {
        correlation::check(&gold, &predicted)?;
        Ok(Self {
            correlation: Correlation::new(&gold, &predicted)?,
            squared: RowMeans::squared_error(&gold, &predicted),
            absolute: RowMeans::absolute_error(&gold, &predicted),
            gold,
            predicted,
        })
    }

    fn measure(&self, counts: &[u32]) -> (&'static [Metric], Vec<Option<f64>>) {
        let (pearson, spearman) = self.correlation.measure(counts);
        let mse = self.squared.mean(counts);
        (VALUES, vec![pearson, spearman, mse, mse.map(f64::sqrt), self.absolute.mean(counts)])
    }
}

impl Sets {
    /// Takes gold sets, one flag per row and label, row by row, and probabilities of the labels. A label is predicted
    /// if its probability is at least 0.5.
    ///
    /// # Errors
    /// No rows or no labels; columns of different lengths; a value that is not a probability.
    pub fn new(labels: usize, gold: Vec<bool>, probabilities: &[f64]) -> Result<Self, MetricError> {
        if labels == 0 || gold.is_empty() {
            return Err(MetricError::Empty);
        }
        check_length("probabilities", probabilities.len(), gold.len())?;
        check_probabilities(probabilities, labels)?;
        let predicted: Vec<bool> = probabilities.iter().map(|&p| p >= f64::from(Problem::HAS_LABEL)).collect();
        Ok(Self { counted: LabelSets::new(labels, &gold, &predicted)?, labels, gold, predicted })
    }

    fn measure(&self, counts: &[u32]) -> (&'static [Metric], Vec<Option<f64>>) {
        let accuracy = self.counted.subset_accuracy(counts);
        let f1 = accuracy.map(|_| self.counted.f1(counts));
        (SETS, vec![f1.map(|(micro, _)| micro), f1.map(|(_, macro_mean)| macro_mean), accuracy])
    }
}

impl Sample {
    /// Returns the number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        match self {
            Self::Classes(classes) => classes.gold.len(),
            Self::Values(values) => values.gold.len(),
            Self::Sets(sets) => sets.counted.rows(),
        }
    }

    /// Returns the index of the positive one of two labels; none unless there are two.
    #[must_use]
    pub fn positive(&self) -> Option<usize> {
        match self {
            Self::Classes(classes) => classes.ranking.as_ref().map(|_| classes.positive),
            Self::Values(_) | Self::Sets(_) => None,
        }
    }

    /// Computes all metrics on all rows.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.metrics_under(&ones(self.rows()))
    }

    /// Computes all metrics with each row taken as many times as `counts` gives.
    #[must_use]
    pub fn metrics_under(&self, counts: &[u32]) -> Metrics {
        let (metrics, values) = match self {
            Self::Classes(classes) => classes.measure(counts),
            Self::Values(values) => values.measure(counts),
            Self::Sets(sets) => sets.measure(counts),
        };
        metrics.iter().copied().zip(values).collect()
    }

    /// Returns the sample of some rows, by their indices from 0.
    ///
    /// # Errors
    /// No rows.
    ///
    /// # Panics
    /// If a row does not exist.
    pub fn select(&self, rows: &[usize]) -> Result<Self, MetricError> {
        Ok(match self {
            Self::Classes(all) => {
                let (gold, probabilities) = (take(&all.gold, 1, rows), take(&all.probabilities, all.labels, rows));
                let predicted = Some(take(&all.predicted, 1, rows));
                let some = Classes::new(all.labels, gold, probabilities, predicted, all.bins)?;
                Self::Classes(some.with_positive(Some(all.positive))?)
            }
            Self::Values(all) => Self::Values(Values::new(take(&all.gold, 1, rows), take(&all.predicted, 1, rows))?),
            Self::Sets(all) => {
                let (gold, predicted) = (take(&all.gold, all.labels, rows), take(&all.predicted, all.labels, rows));
                let counted = LabelSets::new(all.labels, &gold, &predicted)?;
                Self::Sets(Sets { labels: all.labels, gold, predicted, counted })
            }
        })
    }
}

/// Ranks the rows by the probability of the positive one of two labels.
fn ranking(positive: usize, gold: &[u32], probabilities: &[f64]) -> Result<Ranking, MetricError> {
    let is_positive: Vec<bool> = gold.iter().map(|&label| label as usize == positive).collect();
    let scores: Vec<f64> = probabilities.chunks_exact(2).map(|row| row[positive]).collect();
    Ranking::new(&is_positive, &scores)
}

fn ones(rows: usize) -> Vec<u32> {
    vec![1; rows]
}

/// Returns some rows of a column with `width` values per row.
fn take<T: Copy>(column: &[T], width: usize, rows: &[usize]) -> Vec<T> {
    rows.iter().flat_map(|row| &column[row * width..(row + 1) * width]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_values_are_measured_as_are_named() {
        let classes = |labels, probabilities| {
            Sample::Classes(Classes::new(labels, vec![0, 1], probabilities, None, DEFAULT_BINS).unwrap())
        };
        let values = Sample::Values(Values::new(vec![1.0], vec![2.0]).unwrap());
        let sets = Sample::Sets(Sets::new(1, vec![true], &[0.5]).unwrap());
        for (problem, labels, sample) in [
            (Problem::SingleLabel, 2, classes(2, vec![0.5; 4])),
            (Problem::SingleLabel, 4, classes(4, vec![0.25; 8])),
            (Problem::Regression, 0, values),
            (Problem::MultiLabel, 1, sets),
        ] {
            let names: Vec<Metric> = sample.metrics().iter().map(|(metric, _)| metric).collect();
            assert_eq!(names, measured(problem, Some(labels)));
            assert!(names.iter().all(|name| measured(problem, None).contains(name)));
        }
    }

    #[test]
    fn two_labels_always_show_accuracy_f1_and_matthews_first() {
        let classes = Classes::new(2, vec![0, 1], vec![0.9, 0.1, 0.2, 0.8], None, DEFAULT_BINS).unwrap();
        let names: Vec<&str> = Sample::Classes(classes).metrics().iter().take(3).map(|(m, _)| m.name()).collect();
        assert_eq!(names, ["accuracy", "f1", "matthews"]);
    }

    #[test]
    fn the_metrics_of_some_rows_are_those_under_their_counts() {
        let gold = vec![0, 1, 1, 0, 1];
        let probabilities = [0.3, 0.6, 0.8, 0.8, 0.1].iter().flat_map(|p| [1.0 - p, *p]).collect();
        let classes = Sample::Classes(Classes::new(2, gold, probabilities, None, DEFAULT_BINS).unwrap());
        let values = Sample::Values(Values::new(vec![1.0, 2.0, 4.0, 8.0, 9.0], vec![1.5, 2.5, 2.0, 9.0, 1.0]).unwrap());
        let gold = [true, false].repeat(5);
        let sets = Sample::Sets(Sets::new(2, gold, &[0.9, 0.6, 0.2, 0.5, 0.4, 0.1, 0.7, 0.7, 0.1, 0.2]).unwrap());
        for sample in [classes, values, sets] {
            let (some, counted) =
                (sample.select(&[4, 0, 2, 2]).unwrap().metrics(), sample.metrics_under(&[1, 0, 2, 0, 1]));
            for ((metric, some), (_, counted)) in some.iter().zip(counted.iter()) {
                assert!((some.unwrap() - counted.unwrap()).abs() < 1e-12, "{metric}: {some:?} {counted:?}");
            }
            assert_eq!(sample.select(&[]).unwrap_err(), MetricError::Empty);
        }
    }

    /// Swapping the labels, and the positive one with them, changes no metric.
    #[test]
    fn the_positive_label_may_have_either_index() {
        let (gold, p) = ([0, 1, 1, 0, 1, 1], [0.3, 0.6, 0.8, 0.8, 0.1, 0.7]);
        let probabilities = |first: fn(f64) -> [f64; 2]| p.iter().flat_map(|p| first(*p)).collect::<Vec<f64>>();
        let usual = Classes::new(2, gold.to_vec(), probabilities(|p| [1.0 - p, p]), None, DEFAULT_BINS).unwrap();
        let turned = gold.iter().map(|label| 1 - label).collect();
        let turned = Classes::new(2, turned, probabilities(|p| [p, 1.0 - p]), None, DEFAULT_BINS).unwrap();
        let second = Sample::Classes(turned.clone());
        let (usual, turned) = (Sample::Classes(usual), Sample::Classes(turned.with_positive(Some(0)).unwrap()));
        assert_eq!((usual.positive(), turned.positive(), second.positive()), (Some(1), Some(0), Some(1)));
        let rows = [0, 1, 1, 2, 3, 5];
        for (left, right) in [
            (usual.metrics(), turned.metrics()),
            (usual.select(&rows).unwrap().metrics(), turned.select(&rows).unwrap().metrics()),
        ] {
            for ((metric, left), (_, right)) in left.iter().zip(right.iter()) {
                assert!((left.unwrap() - right.unwrap()).abs() < 1e-12, "{metric}: {left:?} {right:?}");
            }
        }
        let of_second = second.metrics();
        for metric in [Metric::F1, Metric::Precision, Metric::Recall, Metric::AveragePrecision] {
            assert_ne!(of_second.get(metric), turned.metrics().get(metric), "{metric}");
        }
        let many = Classes::new(3, vec![0, 1], vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0], None, DEFAULT_BINS).unwrap();
        assert_eq!(Sample::Classes(many.with_positive(Some(0)).unwrap()).positive(), None);
    }

    #[test]
    fn no_rows_have_no_metrics() {
        let classes = Classes::new(2, vec![0, 1], vec![0.9, 0.1, 0.2, 0.8], None, DEFAULT_BINS).unwrap();
        assert!(Sample::Classes(classes).metrics_under(&[0, 0]).iter().all(|(_, value)| value.is_none()));
    }
}
