//! Single-label predictions: the confusion matrix, and the metrics computed from it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{MetricError, check_labels, check_length, ratio};

/// A confusion matrix: the number of rows by gold and predicted label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    /// The non-zero cells, by gold label, then predicted label: of thousands of labels, few are ever confused.
    cells: Vec<(Cell, u64)>,
    /// The number of rows per label: with it as gold label, as predicted label, and as both.
    support: Vec<u64>,
    predicted: Vec<u64>,
    hits: Vec<u64>,
}

/// A cell of the matrix: a gold label and a predicted label.
type Cell = (u32, u32);

/// The cell of the confusion matrix for each row.
#[derive(Debug, Clone)]
pub(super) struct Cells {
    labels: usize,
    /// The cells with rows, in order.
    distinct: Vec<Cell>,
    /// The index of each row's cell in `distinct`.
    rows: Vec<u32>,
}

impl Cells {
    /// Takes labels that [`check`] has validated.
    pub(super) fn new(labels: usize, gold: &[u32], predicted: &[u32]) -> Self {
        let cells = || gold.iter().copied().zip(predicted.iter().copied());
        let numbers: BTreeMap<Cell, u32> = cells().map(|cell| (cell, 0)).collect();
        let numbers: BTreeMap<Cell, u32> = numbers.into_keys().zip(0..).collect();
        Self { labels, rows: cells().map(|cell| numbers[&cell]).collect(), distinct: numbers.into_keys().collect() }
    }

    /// Counts the rows, each as many times as `counts` gives.
    pub(super) fn count(&self, counts: &[u32]) -> Confusion {
        let size = self.distinct.len();
        // Neighbouring rows mostly fall into the same few cells, and an addition depends on the previous one in its
        // cell. Four interleaved matrices halve the time.
        let mut parts = vec![0_u64; 4 * size];
        let (cell_fours, cell_rest) = self.rows.as_chunks::<4>();
        let (count_fours, count_rest) = counts.as_chunks::<4>();
        for (cells, counts) in cell_fours.iter().zip(count_fours) {
            for (part, (cell, count)) in cells.iter().zip(counts).enumerate() {
                parts[part * size + *cell as usize] += u64::from(*count);
            }
        }
        for (cell, count) in cell_rest.iter().zip(count_rest) {
            parts[*cell as usize] += u64::from(*count);
        }
        let count = |index: usize| (0..4).map(|part| parts[part * size + index]).sum();
        Confusion::of_cells(self.labels, self.distinct.iter().enumerate().map(|(index, cell)| (*cell, count(index))))
    }
}

/// The number of rows of one label.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// The number of rows with the label that are predicted to have it.
    pub hits: u64,
    /// The number of rows with the label.
    pub support: u64,
    /// The number of rows predicted to have the label.
    pub predicted: u64,
}

impl Tally {
    /// Returns precision, recall and F1 of the label.
    #[must_use]
    pub fn scores(self) -> ClassScores {
        let Self { hits, support, predicted } = self;
        let share = |part, whole| ratio(part, whole).unwrap_or(0.0);
        ClassScores {
            support,
            predicted,
            precision: share(hits, predicted),
            recall: share(hits, support),
            f1: share(2 * hits, support + predicted),
        }
    }
}

/// The rows and the scores of one label; scores are from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ClassScores {
    /// The number of rows with the label.
    #[serde(rename = "rows")]
    pub support: u64,
    /// The number of rows predicted to have the label.
    pub predicted: u64,
    /// Share of the rows predicted to have the label that have it; 0 if none is predicted, as in scikit-learn.
    pub precision: f64,
    /// Share of the rows with the label that are predicted to have it; 0 if none has it.
    pub recall: f64,
    /// Harmonic mean of precision and recall; 0 if no row has the label or is predicted to have it.
    pub f1: f64,
}

/// The scores of a label with its name.
#[derive(Debug, Serialize)]
pub struct LabelScores {
    /// The name of the label.
    pub label: String,
    /// Its scores.
    #[serde(flatten)]
    pub scores: ClassScores,
}

impl Confusion {
    /// Counts gold and predicted labels, given as indices from 0.
    ///
    /// # Errors
    /// No rows; columns of different lengths; a label beyond `labels`.
    pub fn new(labels: usize, gold: &[u32], predicted: &[u32]) -> Result<Self, MetricError> {
        check(labels, gold, predicted)?;
        Ok(Cells::new(labels, gold, predicted).count(&vec![1; gold.len()]))
    }

    /// Takes cells, each a gold and a predicted label with the number of rows, in ascending order.
    ///
    /// # Panics
    /// If a label is beyond `labels`.
    #[must_use]
    pub fn of_cells(labels: usize, cells: impl IntoIterator<Item = ((u32, u32), u64)>) -> Self {
        let cells: Vec<_> = cells.into_iter().filter(|(_, count)| *count > 0).collect();
        let [mut support, mut predicted, mut hits] = [(); 3].map(|()| vec![0; labels]);
        for ((gold, guess), count) in &cells {
            support[*gold as usize] += count;
            predicted[*guess as usize] += count;
            if gold == guess {
                hits[*gold as usize] += count;
            }
        }
        Self { cells, support, predicted, hits }
    }

    /// Returns the number of labels.
    #[must_use]
    pub fn labels(&self) -> usize {
        self.support.len()
    }

    /// Returns the number of rows with this gold label and this predicted label.
    #[must_use]
    pub fn count(&self, gold: usize, predicted: usize) -> u64 {
        let found = self.cells.binary_search_by_key(&(gold as u32, predicted as u32), |(cell, _)| *cell);
        found.map_or(0, |cell| self.cells[cell].1)
    }

    /// Returns the most frequent mistakes as (gold label, predicted label, rows), the most frequent first.
    #[must_use]
    pub fn mistakes(&self, most: usize) -> Vec<(usize, usize, u64)> {
        let wrong = self.cells.iter().filter(|((gold, predicted), _)| gold != predicted);
        let mut wrong: Vec<_> =
            wrong.map(|((gold, predicted), count)| (*gold as usize, *predicted as usize, *count)).collect();
        wrong.sort_by_key(|(.., count)| std::cmp::Reverse(*count));
        wrong.truncate(most);
        wrong
    }

    /// Returns the number of all rows.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.support.iter().sum()
    }

    /// Returns the number of rows with this gold label.
    #[must_use]
    pub fn support(&self, label: usize) -> u64 {
        self.support[label]
    }

    /// Returns the number of rows predicted to have this label.
    #[must_use]
    pub fn predicted(&self, label: usize) -> u64 {
        self.predicted[label]
    }

    fn hits(&self) -> u64 {
        self.hits.iter().sum()
    }

    /// Returns the share of the rows with the correct label; none without rows.
    ///
    /// This is also the F1 of all labels pooled ("micro"), as each row has one label and gets one.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        ratio(self.hits(), self.total())
    }

    /// Returns precision, recall and F1 of one label.
    #[must_use]
    pub fn class(&self, label: usize) -> ClassScores {
        Tally { hits: self.hits[label], support: self.support(label), predicted: self.predicted(label) }.scores()
    }

    /// Returns the scores of all labels; `names` are their names, in order.
    #[must_use]
    pub fn by_label(&self, names: &[String]) -> Vec<LabelScores> {
        let scores = (0..self.labels()).map(|label| self.class(label));
        names.iter().zip(scores).map(|(name, scores)| LabelScores { label: name.clone(), scores }).collect()
    }

    /// Returns all counts, by gold label, then by predicted label.
    #[must_use]
    pub fn matrix(&self) -> Vec<Vec<u64>> {
        let mut matrix = vec![vec![0; self.labels()]; self.labels()];
        for ((gold, predicted), count) in &self.cells {
            matrix[*gold as usize][*predicted as usize] = *count;
        }
        matrix
    }

    /// Returns the mean F1 over the labels that occur as gold or predicted labels; none without rows.
    ///
    /// A label that never occurs is left out, as in `sklearn.metrics.f1_score(average="macro")`.
    #[must_use]
    pub fn f1_macro(&self) -> Option<f64> {
        let occur = (0..self.labels()).filter(|&label| self.support(label) + self.predicted(label) > 0);
        let (sum, n) = occur.fold((0.0, 0_u64), |(sum, n), label| (sum + self.class(label).f1, n + 1));
        (n > 0).then(|| sum / n as f64)
    }

    /// Returns the mean F1 over the labels, weighted by the rows that have them; none without rows.
    #[must_use]
    pub fn f1_weighted(&self) -> Option<f64> {
        let classes = (0..self.labels()).map(|label| self.class(label));
        let sum: f64 = classes.map(|class| class.f1 * class.support as f64).sum();
        let total = self.total();
        (total > 0).then(|| sum / total as f64)
    }

    /// Returns the Matthews correlation of gold and predicted labels, -1 to 1; 0 if either are all equal; none without
    /// rows.
    ///
    /// **Source**: Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient"; for
    /// two labels this is Matthews 1975.
    #[must_use]
    pub fn matthews(&self) -> Option<f64> {
        let total = self.total() as f64;
        if total == 0.0 {
            return None;
        }
        let shares = (0..self.labels()).map(|label| {
            // Shares rather than counts, as products of counts exceed the 53 bits of a float's mantissa.
            (self.support(label) as f64 / total, self.predicted(label) as f64 / total)
        });
        let (mut both, mut gold, mut predicted) = (0.0, 0.0, 0.0);
        for (support, guessed) in shares {
            both += support * guessed;
            gold += support * support;
            predicted += guessed * guessed;
        }
        // A single label has a share of exactly 1.
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
    fn no_rows_and_unknown_labels_are_errors() {
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
        let repeated = Confusion::new(3, &repeat(gold), &repeat(predicted)).unwrap();
        assert_eq!(Cells::new(3, &gold, &predicted).count(&counts), repeated);
        let dense = repeated.matrix();
        assert_eq!((dense.iter().flatten().sum::<u64>(), repeated.total()), (12, 12));
        assert_eq!((dense[1][0], repeated.count(1, 0)), (4, 4));
        assert_eq!(repeated.mistakes(2), [(1, 0, 4), (2, 1, 3)]);
    }

    #[test]
    fn memory_does_not_grow_with_the_square_of_labels() {
        let gold: Vec<u32> = (0..70_000).collect();
        let predicted: Vec<u32> = gold.iter().map(|label| label - label % 2).collect();
        let confusion = Confusion::new(70_000, &gold, &predicted).unwrap();
        assert_eq!((confusion.accuracy(), confusion.count(69_999, 69_998)), (Some(0.5), 1));
    }

    #[test]
    fn predicting_all_positive_raises_f1_but_not_matthews() {
        let confusion = Confusion::new(2, &[1, 1, 0], &[1, 1, 1]).unwrap();
        assert!((confusion.class(1).f1 - 0.8).abs() < 1e-12);
        assert_eq!(confusion.matthews(), Some(0.0));
    }
}
