//! Threshold-free metrics of the scores of two labels: ROC AUC and average precision.

use super::{MetricError, check_finite, check_length};

/// Rows in descending order of their scores.
#[derive(Debug, Clone)]
pub struct Ranking {
    /// The rows in descending order of score, encoded as: index shifted left by two, flag for positive, flag for the
    /// last of its ties.
    rows: Vec<u32>,
}

const POSITIVE: u32 = 1;
const LAST_OF_TIES: u32 = 2;
const FLAGS: u32 = 2;

impl Ranking {
    /// Sorts rows by score.
    ///
    /// # Errors
    /// No rows; columns of different lengths; a score that is not finite.
    ///
    /// # Panics
    /// If there are 2^30 rows or more.
    pub fn new(positive: &[bool], scores: &[f64]) -> Result<Self, MetricError> {
        if positive.is_empty() {
            return Err(MetricError::Empty);
        }
        check_length("scores", scores.len(), positive.len())?;
        check_finite("the score", scores, 1)?;
        assert!(scores.len() >> (u32::BITS - FLAGS) == 0, "a ranking has fewer than 2^30 rows");
        let mut order: Vec<u32> = (0..scores.len() as u32).collect();
        // Adding 0 turns -0 into 0, which is the same score.
        let score = |row: u32| scores[row as usize] + 0.0;
        order.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
        let rows = order.iter().enumerate().map(|(place, &row)| {
            let last = order.get(place + 1).is_none_or(|&next| score(next) < score(row));
            let flags = if positive[row as usize] { POSITIVE } else { 0 } | if last { LAST_OF_TIES } else { 0 };
            (row << FLAGS) | flags
        });
        Ok(Self { rows: rows.collect() })
    }

    /// Returns ROC AUC and average precision under counts.
    ///
    /// ROC AUC, the area under the receiver operating characteristic, is the probability that a positive row scores
    /// higher than a negative one, with ties counted as half. None if all rows are positive, or none is (scikit-learn
    /// returns NaN).
    ///
    /// In the average precision, each precision is weighted by the gain in recall, without interpolation. 0 if no row
    /// is positive, as in scikit-learn; none without rows.
    #[must_use]
    pub fn measure(&self, counts: &[u32]) -> (Option<f64>, Option<f64>) {
        // Twice the number of pairs won, so that ties are integers: at most half the square of the number of rows.
        let (mut won, mut precision) = (0_u64, 0.0);
        let (mut positives, mut all) = (0_u64, 0_u64);
        let (mut tied_positives, mut tied) = (0_u64, 0_u64);
        for &row in &self.rows {
            let count = u64::from(counts[(row >> FLAGS) as usize]);
            tied += count;
            tied_positives += count * u64::from(row & POSITIVE);
            if row & LAST_OF_TIES != 0 {
                won += (tied - tied_positives) * (2 * positives + tied_positives);
                positives += tied_positives;
                all += tied;
                if tied_positives > 0 {
                    precision += tied_positives as f64 * (positives as f64 / all as f64);
                }
                (tied_positives, tied) = (0, 0);
            }
        }
        let pairs = positives * (all - positives);
        let average = if positives == 0 { 0.0 } else { precision / positives as f64 };
        ((pairs > 0).then(|| won as f64 / (2 * pairs) as f64), (all > 0).then_some(average))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_label_have_no_roc_auc() {
        let measured = |positive: &[bool], scores: &[f64]| Ranking::new(positive, scores).unwrap().measure(&[1, 1]);
        assert_eq!(measured(&[true, true], &[0.1, 0.2]), (None, Some(1.0)));
        assert_eq!(measured(&[false, false], &[0.1, 0.2]), (None, Some(0.0)));
        assert_eq!(measured(&[true, false], &[0.0, -0.0]), (Some(0.5), Some(0.5)));
        assert!(Ranking::new(&[true, false], &[0.1, f64::NAN]).is_err());
    }
}
