//! Any number of labels: whole sets and single labels that are right.

use super::{MetricError, check_length, f1, ratio};

/// Gold and predicted sets of labels: row by row, whether each label is there.
#[derive(Debug, Clone)]
pub struct LabelSets {
    labels: usize,
    gold: Vec<bool>,
    predicted: Vec<bool>,
}

/// True positives, false positives and false negatives of one label.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    right: u64,
    false_alarms: u64,
    misses: u64,
}

impl LabelSets {
    /// Takes the sets of all rows, `labels` values a row.
    ///
    /// # Errors
    /// No rows, or no labels; columns whose lengths differ or are no multiple of `labels`.
    pub fn new(labels: usize, gold: &[bool], predicted: &[bool]) -> Result<Self, MetricError> {
        if labels == 0 || gold.is_empty() {
            return Err(MetricError::Empty);
        }
        check_length("gold labels", gold.len(), gold.len().next_multiple_of(labels))?;
        check_length("predicted labels", predicted.len(), gold.len())?;
        Ok(Self { labels, gold: gold.to_vec(), predicted: predicted.to_vec() })
    }

    /// Rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.gold.len() / self.labels
    }

    fn rows_of(&self) -> impl Iterator<Item = (&[bool], &[bool])> {
        self.gold.chunks_exact(self.labels).zip(self.predicted.chunks_exact(self.labels))
    }

    /// Share of the rows all of whose labels are right; none without rows.
    #[must_use]
    pub fn subset_accuracy(&self, counts: &[u32]) -> Option<f64> {
        let (mut right, mut all) = (0, 0);
        for ((gold, predicted), &count) in self.rows_of().zip(counts) {
            all += u64::from(count);
            right += if gold == predicted { u64::from(count) } else { 0 };
        }
        ratio(right, all)
    }

    fn tallies(&self, counts: &[u32]) -> Vec<Tally> {
        let mut all = vec![Tally::default(); self.labels];
        for ((gold, predicted), &count) in self.rows_of().zip(counts) {
            let count = u64::from(count);
            for ((tally, &gold), &predicted) in all.iter_mut().zip(gold).zip(predicted) {
                tally.right += if gold && predicted { count } else { 0 };
                tally.false_alarms += if !gold && predicted { count } else { 0 };
                tally.misses += if gold && !predicted { count } else { 0 };
            }
        }
        all
    }

    /// F1 of all labels of all rows together; 0 where no label is there or predicted, as scikit-learn has it.
    #[must_use]
    pub fn f1_micro(&self, counts: &[u32]) -> f64 {
        let tallies = self.tallies(counts);
        let sum = |part: fn(&Tally) -> u64| tallies.iter().map(part).sum();
        f1(sum(|tally| tally.right), sum(|tally| tally.false_alarms), sum(|tally| tally.misses))
    }

    /// Mean F1 of all labels; a label that no row has and none is predicted to have counts 0, as scikit-learn has it.
    #[must_use]
    pub fn f1_macro(&self, counts: &[u32]) -> f64 {
        let tallies = self.tallies(counts);
        tallies.iter().map(|tally| f1(tally.right, tally.false_alarms, tally.misses)).sum::<f64>() / self.labels as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_whole_or_wrong() {
        let sets = LabelSets::new(2, &[true, false, true, true], &[true, false, true, false]).unwrap();
        assert_eq!(sets.subset_accuracy(&[1, 1]), Some(0.5));
        assert_eq!(sets.subset_accuracy(&[3, 1]), Some(0.75));
        assert_eq!(sets.subset_accuracy(&[0, 0]), None);
        assert!((sets.f1_micro(&[1, 1]) - 0.8).abs() < 1e-12);
        assert!((sets.f1_macro(&[1, 1]) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn a_row_that_is_cut_short_is_an_error() {
        assert!(LabelSets::new(2, &[true, false, true], &[true, false, true]).is_err());
        assert!(LabelSets::new(0, &[], &[]).is_err());
    }
}
