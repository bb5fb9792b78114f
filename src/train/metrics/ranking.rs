//! The scores of two labels: how well they put the positive rows before the others, wherever the threshold is.

use super::{MetricError, check_finite, check_length};

/// Rows in the order of their scores, the highest first.
#[derive(Debug, Clone)]
pub struct Ranking {
    /// The rows, the highest score first, each with whether it is positive (bit 0) and ends its ties (bit 1).
    rows: Vec<(u32, u8)>,
}

const POSITIVE: u8 = 1;
const LAST_OF_TIES: u8 = 2;

impl Ranking {
    /// Sorts rows by score.
    ///
    /// # Errors
    /// No rows; columns of different lengths; a score that is not finite.
    ///
    /// # Panics
    /// For 2^32 rows or more.
    pub fn new(positive: &[bool], scores: &[f64]) -> Result<Self, MetricError> {
        if positive.is_empty() {
            return Err(MetricError::Empty);
        }
        check_length("scores", scores.len(), positive.len())?;
        check_finite("the score", scores, 1)?;
        let mut order: Vec<u32> = (0..u32::try_from(scores.len()).expect("rows are counted in 32 bits")).collect();
        // Adding 0 turns -0 into 0, which is the same score.
        let score = |row: u32| scores[row as usize] + 0.0;
        order.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
        let rows = order.iter().enumerate().map(|(place, &row)| {
            let last = order.get(place + 1).is_none_or(|&next| score(next) < score(row));
            let flags = if positive[row as usize] { POSITIVE } else { 0 } | if last { LAST_OF_TIES } else { 0 };
            (row, flags)
        });
        Ok(Self { rows: rows.collect() })
    }

    /// Calls `each` for every distinct score, the highest first, with the positive and the negative rows that have it.
    #[inline]
    fn for_each_score(&self, counts: &[u32], mut each: impl FnMut(u64, u64)) {
        let (mut positive, mut all) = (0_u64, 0_u64);
        for &(row, flags) in &self.rows {
            let count = u64::from(counts[row as usize]);
            all += count;
            positive += count * u64::from(flags & POSITIVE);
            if flags & LAST_OF_TIES != 0 {
                each(positive, all - positive);
                (positive, all) = (0, 0);
            }
        }
    }

    /// Area under the receiver operating characteristic: how often a positive row scores higher than a negative one,
    /// ties counted half; none where all rows are positive, or none is (scikit-learn gives NaN).
    #[must_use]
    pub fn roc_auc(&self, counts: &[u32]) -> Option<f64> {
        // Twice the number of pairs, so that ties stay whole.
        let (mut won, mut positives, mut negatives) = (0_u128, 0_u64, 0_u64);
        self.for_each_score(counts, |positive, negative| {
            won += u128::from(negative) * u128::from(2 * positives + positive);
            positives += positive;
            negatives += negative;
        });
        let pairs = u128::from(positives) * u128::from(negatives);
        (pairs > 0).then(|| won as f64 / (2 * pairs) as f64)
    }

    /// Average precision, each precision weighted by the recall gained there, without interpolation; 0 where no row is
    /// positive, as scikit-learn has it, and none without rows.
    #[must_use]
    pub fn average_precision(&self, counts: &[u32]) -> Option<f64> {
        let (mut sum, mut positives, mut rows) = (0.0, 0_u64, 0_u64);
        self.for_each_score(counts, |positive, negative| {
            positives += positive;
            rows += positive + negative;
            if positive > 0 {
                sum += positive as f64 * (positives as f64 / rows as f64);
            }
        });
        (rows > 0).then(|| if positives == 0 { 0.0 } else { sum / positives as f64 })
    }
}

/// [`Ranking::roc_auc`] of the rows as they are.
///
/// # Errors
/// As [`Ranking::new`].
pub fn roc_auc(positive: &[bool], scores: &[f64]) -> Result<Option<f64>, MetricError> {
    Ok(Ranking::new(positive, scores)?.roc_auc(&vec![1; scores.len()]))
}

/// [`Ranking::average_precision`] of the rows as they are.
///
/// # Errors
/// As [`Ranking::new`].
pub fn average_precision(positive: &[bool], scores: &[f64]) -> Result<Option<f64>, MetricError> {
    Ok(Ranking::new(positive, scores)?.average_precision(&vec![1; scores.len()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_kind_of_rows_has_no_area() {
        assert_eq!(roc_auc(&[true, true], &[0.1, 0.2]), Ok(None));
        assert_eq!(average_precision(&[false, false], &[0.1, 0.2]), Ok(Some(0.0)));
        assert_eq!(roc_auc(&[true, false], &[0.0, -0.0]), Ok(Some(0.5)));
        assert!(roc_auc(&[true, false], &[0.1, f64::NAN]).is_err());
    }
}
