//! One label of many: the confusion matrix, and what is computed from nothing else.

use super::{MetricError, check_labels, check_length, f1, ratio};

/// How often each label was predicted for each gold label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    labels: usize,
    /// Gold label by predicted label, row by row.
    counts: Vec<u64>,
}

/// What a confusion matrix says about one label; all from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassScores {
    /// Share of the rows predicted so that are so; 0 where none is predicted so, as scikit-learn has it.
    pub precision: f64,
    /// Share of the rows that are so that are predicted so; 0 where none is.
    pub recall: f64,
    /// Harmonic mean of the two; 0 where no row is so or is predicted so.
    pub f1: f64,
    /// Rows that are so.
    pub support: u64,
}

impl Confusion {
    /// Counts gold and predicted labels, each the label's place from 0.
    ///
    /// # Errors
    /// No rows; columns of different lengths; a label beyond `labels`.
    pub fn new(labels: usize, gold: &[u32], predicted: &[u32]) -> Result<Self, MetricError> {
        check(labels, gold, predicted)?;
        let mut confusion = Self { labels, counts: vec![0; labels * labels] };
        for (gold, predicted) in gold.iter().zip(predicted) {
            confusion.counts[*gold as usize * labels + *predicted as usize] += 1;
        }
        Ok(confusion)
    }

    /// Takes the counts as they are, gold label by predicted label, row by row.
    ///
    /// # Panics
    /// For other than `labels` times `labels` counts.
    #[must_use]
    pub fn of_counts(labels: usize, counts: Vec<u64>) -> Self {
        assert_eq!(counts.len(), labels * labels, "a count a cell");
        Self { labels, counts }
    }

    /// Counts rows, given as cells of the matrix, under counts.
    pub(super) fn of_cells(labels: usize, cells: &[u32], counts: &[u32]) -> Self {
        let size = labels * labels;
        // Neighbours mostly fall into the same few cells, and an addition waits for the one before it in its cell.
        // Four matrices side by side halve the time.
        let mut parts = vec![0_u64; 4 * size];
        let (cell_fours, cell_rest) = cells.as_chunks::<4>();
        let (count_fours, count_rest) = counts.as_chunks::<4>();
        for (cells, counts) in cell_fours.iter().zip(count_fours) {
            for (part, (cell, count)) in cells.iter().zip(counts).enumerate() {
                parts[part * size + *cell as usize] += u64::from(*count);
            }
        }
        for (cell, count) in cell_rest.iter().zip(count_rest) {
            parts[*cell as usize] += u64::from(*count);
        }
        let counts = (0..size).map(|cell| (0..4).map(|part| parts[part * size + cell]).sum()).collect();
        Self { labels, counts }
    }

    /// Number of labels.
    #[must_use]
    pub fn labels(&self) -> usize {
        self.labels
    }

    /// Rows with this gold label that were predicted to have that label.
    #[must_use]
    pub fn count(&self, gold: usize, predicted: usize) -> u64 {
        self.counts[gold * self.labels + predicted]
    }

    /// All rows.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Rows with this gold label.
    #[must_use]
    pub fn support(&self, label: usize) -> u64 {
        (0..self.labels).map(|predicted| self.count(label, predicted)).sum()
    }

    /// Rows predicted to have this label.
    #[must_use]
    pub fn predicted(&self, label: usize) -> u64 {
        (0..self.labels).map(|gold| self.count(gold, label)).sum()
    }

    fn hits(&self) -> u64 {
        (0..self.labels).map(|label| self.count(label, label)).sum()
    }

    /// Share of the rows whose label is right; none without rows.
    ///
    /// This is also the F1 of all labels together ("micro"), as each row has one label and gets one.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        ratio(self.hits(), self.total())
    }

    /// Precision, recall and F1 of one label.
    #[must_use]
    pub fn class(&self, label: usize) -> ClassScores {
        let (hits, support, predicted) = (self.count(label, label), self.support(label), self.predicted(label));
        ClassScores {
            precision: ratio(hits, predicted).unwrap_or(0.0),
            recall: ratio(hits, support).unwrap_or(0.0),
            f1: f1(hits, predicted - hits, support - hits),
            support,
        }
    }

    /// Mean F1 of the labels that occur, in the gold labels or among the predicted; none without rows.
    ///
    /// A label of the model that occurs nowhere is left out, as `sklearn.metrics.f1_score(average="macro")` does.
    #[must_use]
    pub fn f1_macro(&self) -> Option<f64> {
        let occur = (0..self.labels).filter(|&label| self.support(label) + self.predicted(label) > 0);
        let (sum, n) = occur.fold((0.0, 0_u64), |(sum, n), label| (sum + self.class(label).f1, n + 1));
        (n > 0).then(|| sum / n as f64)
    }

    /// Mean F1 of the labels, weighted by the rows that have them; none without rows.
    #[must_use]
    pub fn f1_weighted(&self) -> Option<f64> {
        let classes = (0..self.labels).map(|label| self.class(label));
        let sum: f64 = classes.map(|class| class.f1 * class.support as f64).sum();
        let total = self.total();
        (total > 0).then(|| sum / total as f64)
    }

    /// Matthews' correlation of gold and predicted labels, -1 to 1; 0 where either are all the same; none without rows.
    ///
    /// **Source**: Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient"; for
    /// two labels this is Matthews 1975.
    #[must_use]
    pub fn matthews(&self) -> Option<f64> {
        let total = self.total() as f64;
        if total == 0.0 {
            return None;
        }
        let shares = (0..self.labels).map(|label| {
            // Shares rather than counts: the products of counts leave the 53 bits that a float has.
            (self.support(label) as f64 / total, self.predicted(label) as f64 / total)
        });
        let (mut both, mut gold, mut predicted) = (0.0, 0.0, 0.0);
        for (support, guessed) in shares {
            both += support * guessed;
            gold += support * support;
            predicted += guessed * guessed;
        }
        // A single label has the share 1 exactly.
        if gold >= 1.0 || predicted >= 1.0 {
            return Some(0.0);
        }
        let covariance = self.hits() as f64 / total - both;
        Some((covariance / ((1.0 - gold) * (1.0 - predicted)).sqrt()).clamp(-1.0, 1.0))
    }
}

/// Checks gold and predicted labels.
pub(super) fn check(labels: usize, gold: &[u32], predicted: &[u32]) -> Result<(), MetricError> {
    if gold.is_empty() {
        return Err(MetricError::Empty);
    }
    check_length("predicted labels", predicted.len(), gold.len())?;
    check_labels("the gold label", gold, labels)?;
    check_labels("the predicted label", predicted, labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_row_and_no_such_label_are_errors() {
        assert_eq!(Confusion::new(2, &[], &[]), Err(MetricError::Empty));
        let error = Confusion::new(2, &[0, 1], &[0, 2]).unwrap_err();
        assert_eq!(error.to_string(), "row 2: the predicted label is 2, expected one of the 2 labels from 0");
        let error = Confusion::new(2, &[0, 1], &[0]).unwrap_err();
        assert_eq!(error.to_string(), "predicted labels: 1 values, expected 2");
    }

    #[test]
    fn cells_under_counts_are_rows_repeated() {
        let (gold, predicted) = ([0, 1, 2, 1, 0, 2, 1], [0, 1, 1, 1, 2, 2, 0]);
        let counts = [1, 0, 3, 2, 1, 1, 4];
        let repeat = |column: [u32; 7]| -> Vec<u32> {
            column.iter().zip(counts).flat_map(|(label, n)| std::iter::repeat_n(*label, n as usize)).collect()
        };
        let cells: Vec<u32> = gold.iter().zip(predicted).map(|(g, p)| g * 3 + p).collect();
        assert_eq!(
            Confusion::of_cells(3, &cells, &counts),
            Confusion::new(3, &repeat(gold), &repeat(predicted)).unwrap()
        );
    }

    #[test]
    fn everything_positive_flatters_f1_and_not_matthews() {
        let confusion = Confusion::new(2, &[1, 1, 0], &[1, 1, 1]).unwrap();
        assert!((confusion.class(1).f1 - 0.8).abs() < 1e-12);
        assert_eq!(confusion.matthews(), Some(0.0));
    }
}
