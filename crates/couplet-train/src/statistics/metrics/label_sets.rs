//! Metrics of multi-label predictions: subset accuracy and F1.

use super::{MetricError, Tally, check_length, ratio};

/// Gold and predicted sets of labels.
#[derive(Debug, Clone)]
pub struct LabelSets {
    /// True for each row whose set is correct.
    correct: Vec<bool>,
    /// One column per label, with a code for each row: summing columns is much faster than scanning rows.
    columns: Vec<Vec<u8>>,
}

const GOLD: u8 = 1;
const PREDICTED: u8 = 2;

impl LabelSets {
    /// Takes the sets of all rows: one flag per row and label, row by row.
    ///
    /// # Errors
    /// No rows, or no labels; columns whose lengths differ or are not a multiple of `labels`.
    pub fn new(labels: usize, gold: &[bool], predicted: &[bool]) -> Result<Self, MetricError> {
        if labels == 0 || gold.is_empty() {
            return Err(MetricError::Empty);
        }
        check_length("gold labels", gold.len(), gold.len().next_multiple_of(labels))?;
        check_length("predicted labels", predicted.len(), gold.len())?;
        let codes: Vec<u8> = gold
            .iter()
            .zip(predicted)
            .map(|(&gold, &guess)| u8::from(gold) * GOLD + u8::from(guess) * PREDICTED)
            .collect();
        let column = |label| codes.iter().skip(label).step_by(labels).copied().collect();
        let rows = gold.chunks_exact(labels).zip(predicted.chunks_exact(labels));
        Ok(Self {
            correct: rows.map(|(gold, guess)| gold == guess).collect(),
            columns: (0..labels).map(column).collect(),
        })
    }

    /// Returns the number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.correct.len()
    }

    /// Returns the share of the rows whose labels are all correct; none without rows.
    #[must_use]
    pub fn subset_accuracy(&self, counts: &[u32]) -> Option<f64> {
        let (mut correct, mut all) = (0, 0);
        for (&row, &count) in self.correct.iter().zip(counts) {
            all += u64::from(count);
            correct += u64::from(count) * u64::from(row);
        }
        ratio(correct, all)
    }

    fn tally(column: &[u8], counts: &[u32]) -> Tally {
        // A resample has as many rows as the sample, which fit in 32 bits; 32-bit sums are vectorized.
        let (mut hits, mut gold, mut predicted) = (0_u32, 0_u32, 0_u32);
        for (&code, &count) in column.iter().zip(counts) {
            let (is, guess) = (u32::from(code & GOLD), u32::from(code >> 1));
            gold += count * is;
            predicted += count * guess;
            hits += count * (is & guess);
        }
        Tally { hits: hits.into(), support: gold.into(), predicted: predicted.into() }
    }

    /// Returns [`f1_averages`] under counts.
    #[must_use]
    pub fn f1(&self, counts: &[u32]) -> (f64, f64) {
        f1_averages(self.columns.iter().map(|column| Self::tally(column, counts)))
    }
}

/// Returns F1 of all labels pooled ("micro"), and the mean F1 over the labels ("macro").
///
/// F1 is 0 if no row has a label and none is predicted to have it (for macro: per label), as in scikit-learn.
#[must_use]
pub fn f1_averages(labels: impl ExactSizeIterator<Item = Tally>) -> (f64, f64) {
    let (mut all, mut sum, n) = (Tally::default(), 0.0, labels.len());
    for tally in labels {
        sum += tally.scores().f1;
        all.hits += tally.hits;
        all.support += tally.support;
        all.predicted += tally.predicted;
    }
    (all.scores().f1, sum / n as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_correct_only_if_all_labels_are() {
        let sets = LabelSets::new(2, &[true, false, true, true], &[true, false, true, false]).unwrap();
        assert_eq!(sets.subset_accuracy(&[1, 1]), Some(0.5));
        assert_eq!(sets.subset_accuracy(&[3, 1]), Some(0.75));
        assert_eq!(sets.subset_accuracy(&[0, 0]), None);
        let (micro, macro_mean) = sets.f1(&[1, 1]);
        assert!((micro - 0.8).abs() < 1e-12 && (macro_mean - 0.5).abs() < 1e-12);
    }

    #[test]
    fn a_row_that_is_cut_short_is_an_error() {
        assert!(LabelSets::new(2, &[true, false, true], &[true, false, true]).is_err());
        assert!(LabelSets::new(0, &[], &[]).is_err());
    }
}
