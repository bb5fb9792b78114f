//! Correlations of predicted and gold values.

use super::{MetricError, check_finite, check_length};

/// Gold and predicted values, centred for Pearson and grouped into ties for Spearman.
#[derive(Debug, Clone)]
pub struct Correlation {
    /// The rows by ascending gold value, so that memory is read in order for one of the two columns.
    order: Vec<u32>,
    gold: Vec<f64>,
    predicted: Vec<f64>,
    gold_ties: Ties,
    predicted_ties: Ties,
}

/// The rank of each row's value among the distinct values, in ascending order.
#[derive(Debug, Clone)]
struct Ties {
    place: Vec<u32>,
    distinct: usize,
}

impl Correlation {
    /// Centres and sorts the values.
    ///
    /// # Errors
    /// No rows; columns of different lengths; a value that is not finite.
    ///
    /// # Panics
    /// If there are 2^31 rows or more.
    pub fn new(gold: &[f64], predicted: &[f64]) -> Result<Self, MetricError> {
        check(gold, predicted)?;
        let order = order(gold);
        let ordered = |values: &[f64]| -> Vec<f64> { order.iter().map(|row| values[*row as usize]).collect() };
        let (gold, predicted) = (ordered(gold), ordered(predicted));
        Ok(Self {
            gold: centred(&gold),
            predicted: centred(&predicted),
            gold_ties: Ties::new(&gold),
            predicted_ties: Ties::new(&predicted),
            order,
        })
    }

    /// Returns the Pearson and the Spearman rank correlation under counts, -1 to 1. Ties share the mean of their ranks.
    /// None for fewer than two rows, or if either values are all equal.
    #[must_use]
    pub fn measure(&self, counts: &[u32]) -> (Option<f64>, Option<f64>) {
        let counts: Vec<u32> = self.order.iter().map(|row| counts[*row as usize]).collect();
        if self.gold_ties.all_same(&counts) || self.predicted_ties.all_same(&counts) {
            return (None, None);
        }
        (correlation(&self.gold, &self.predicted, &counts), self.rank_correlation(&counts))
    }

    fn rank_correlation(&self, counts: &[u32]) -> Option<f64> {
        let (gold, predicted) = (self.gold_ties.ranks(counts), self.predicted_ties.ranks(counts));
        let places = self.gold_ties.place.iter().zip(&self.predicted_ties.place).zip(counts);
        let products = places.map(|((x, y), count)| {
            f64::from(*count) * f64::from(gold.doubled[*x as usize]) * f64::from(predicted.doubled[*y as usize])
        });
        let product = gold.squares * predicted.squares;
        (product > 0.0).then(|| (products.sum::<f64>() / product.sqrt()).clamp(-1.0, 1.0))
    }
}

/// The ranks of distinct values and the sum of the squares of all ranks, both for twice the rank less the mean rank.
/// That is an integer, even for ties, which share the mean of their ranks.
struct Ranks {
    doubled: Vec<i32>,
    squares: f64,
}

impl Ties {
    fn new(values: &[f64]) -> Self {
        let order = order(values);
        let mut place = vec![0; values.len()];
        let mut distinct = 0;
        for (i, &row) in order.iter().enumerate() {
            if i > 0 && values[order[i - 1] as usize] < values[row as usize] {
                distinct += 1;
            }
            place[row as usize] = distinct;
        }
        Self { place, distinct: distinct as usize + 1 }
    }

    /// Returns true if all counted rows have the same value, or none is counted.
    fn all_same(&self, counts: &[u32]) -> bool {
        let mut counted = self.place.iter().zip(counts).filter(|(_, count)| **count > 0).map(|(place, _)| place);
        let first = counted.next();
        counted.all(|place| Some(place) == first)
    }

    fn ranks(&self, counts: &[u32]) -> Ranks {
        let mut tied = vec![0_i32; self.distinct];
        for (place, count) in self.place.iter().zip(counts) {
            tied[*place as usize] += count.cast_signed();
        }
        // Twice the mean rank is the number of rows plus one.
        let mut before = -tied.iter().sum::<i32>();
        let mut squares = 0.0;
        for tied in &mut tied {
            let n = *tied;
            *tied += before;
            before += 2 * n;
            squares += f64::from(n) * f64::from(*tied).powi(2);
        }
        Ranks { doubled: tied, squares }
    }
}

/// Returns the rows by ascending value.
fn order(values: &[f64]) -> Vec<u32> {
    assert!(values.len() < 1 << 31, "a correlation has fewer than 2^31 rows");
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    // Adding 0 turns -0 into 0, which is the same value.
    let value = |row: u32| values[row as usize] + 0.0;
    order.sort_by(|a, b| value(*a).total_cmp(&value(*b)));
    order
}

/// Returns the values minus their mean, in units of the largest deviation, so that no square overflows or underflows.
fn centred(values: &[f64]) -> Vec<f64> {
    let mean = values.iter().map(|value| value / values.len() as f64).sum::<f64>();
    let largest = values.iter().map(|value| (value - mean).abs()).fold(0.0, f64::max);
    let unit = if largest > 0.0 { largest } else { 1.0 };
    values.iter().map(|value| (value - mean) / unit).collect()
}

/// Returns the Pearson correlation under counts of values whose mean is about 0.
fn correlation(xs: &[f64], ys: &[f64], counts: &[u32]) -> Option<f64> {
    let (mut n, mut x, mut y, mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
    for ((&a, &b), &count) in xs.iter().zip(ys).zip(counts) {
        let count = f64::from(count);
        n += count;
        x += count * a;
        y += count * b;
        xx += count * a * a;
        yy += count * b * b;
        xy += count * a * b;
    }
    let product = (xx - x * x / n) * (yy - y * y / n);
    (product > 0.0).then(|| ((xy - x * y / n) / product.sqrt()).clamp(-1.0, 1.0))
}

/// Checks gold and predicted values.
pub(super) fn check(gold: &[f64], predicted: &[f64]) -> Result<(), MetricError> {
    if gold.is_empty() {
        return Err(MetricError::Empty);
    }
    check_length("predicted values", predicted.len(), gold.len())?;
    check_finite("the gold value", gold, 1)?;
    check_finite("the predicted value", predicted, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(gold: &[f64], predicted: &[f64]) -> (Option<f64>, Option<f64>) {
        Correlation::new(gold, predicted).unwrap().measure(&vec![1; gold.len()])
    }

    #[test]
    fn values_that_are_all_the_same_have_no_correlation() {
        assert_eq!(measured(&[0.1; 3], &[1.0, 2.0, 3.0]), (None, None));
        assert_eq!(measured(&[1.0, 2.0, 3.0], &[0.1; 3]), (None, None));
        assert_eq!(measured(&[1.0], &[1.0]), (None, None));
        assert!(Correlation::new(&[1.0, f64::INFINITY], &[1.0, 2.0]).is_err());
    }

    #[test]
    fn a_large_mean_and_huge_values_keep_precision() {
        let (gold, predicted) = ([1e9, 1e9 + 1.0, 1e9 + 2.0], [1.0, 2.0, 3.0]);
        assert!((measured(&gold, &predicted).0.unwrap() - 1.0).abs() < 1e-9);
        assert!((measured(&[1e300, -1e300, 0.0], &[1.0, -1.0, 0.0]).0.unwrap() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn counts_are_rows_repeated() {
        let (gold, predicted, counts) = ([1.0, 2.0, 2.0, 5.0], [0.3, 0.1, 0.9, 0.9], [2, 0, 1, 3]);
        let repeat = |column: [f64; 4]| -> Vec<f64> {
            column.iter().zip(counts).flat_map(|(value, n)| std::iter::repeat_n(*value, n as usize)).collect()
        };
        let counted = Correlation::new(&gold, &predicted).unwrap();
        let (gold, predicted) = (repeat(gold), repeat(predicted));
        let near = |a: Option<f64>, b: Option<f64>| (a.unwrap() - b.unwrap()).abs() < 1e-12;
        let ((linear, ranked), (pearson, spearman)) = (counted.measure(&counts), measured(&gold, &predicted));
        assert!(near(linear, pearson) && near(ranked, spearman));
        assert_eq!(counted.measure(&[0, 4, 0, 0]), (None, None));
    }
}
