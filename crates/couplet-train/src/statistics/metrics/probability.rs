//! Metrics of probabilities: log loss, Brier score and calibration error.

use serde::Serialize;

use super::{MetricError, check_labels, check_length, check_probabilities};

/// The maximum distance of the sum of a row's probabilities from 1; they come from single-precision arithmetic.
const SUM_TOLERANCE: f64 = 1e-3;

/// One value per row whose mean is a metric, such as a loss or a squared error.
#[derive(Debug, Clone)]
pub struct RowMeans {
    values: Vec<f64>,
}

impl RowMeans {
    /// Computes the negative logarithm of the probability of each row's gold label, in nats.
    ///
    /// A probability of 0 counts as 2.2e-16, the machine epsilon of a double, as in scikit-learn.
    ///
    /// # Errors
    /// No rows; columns of different lengths; a label beyond `labels`; a value that is not a probability; a row whose
    /// probabilities do not sum to 1.
    pub fn log_loss(labels: usize, gold: &[u32], probabilities: &[f64]) -> Result<Self, MetricError> {
        check(labels, gold, probabilities)?;
        let rows = gold.iter().zip(probabilities.chunks_exact(labels));
        let loss = |(gold, row): (&u32, &[f64])| -row[*gold as usize].clamp(f64::EPSILON, 1.0 - f64::EPSILON).ln();
        Ok(Self { values: rows.map(loss).collect() })
    }

    /// Computes the terms of the Brier score. For two labels they are the squared errors of the second label's
    /// probability, 0 to 1. For more they are the sums of the squared errors of all labels, 0 to 2
    /// (`sklearn.metrics.brier_score_loss` with `scale_by_half="auto"`).
    ///
    /// # Errors
    /// As [`RowMeans::log_loss`].
    pub fn brier(labels: usize, gold: &[u32], probabilities: &[f64]) -> Result<Self, MetricError> {
        check(labels, gold, probabilities)?;
        let rows = gold.iter().zip(probabilities.chunks_exact(labels));
        let error = |(gold, row): (&u32, &[f64])| {
            if let [_, second] = row {
                return (f64::from(*gold) - second).powi(2);
            }
            let truth = |label: usize| if label == *gold as usize { 1.0 } else { 0.0 };
            row.iter().enumerate().map(|(label, p)| (p - truth(label)).powi(2)).sum()
        };
        Ok(Self { values: rows.map(error).collect() })
    }

    /// Computes the squared error of each row.
    pub(super) fn squared_error(gold: &[f64], predicted: &[f64]) -> Self {
        Self { values: gold.iter().zip(predicted).map(|(gold, predicted)| (gold - predicted).powi(2)).collect() }
    }

    /// Computes the absolute error of each row.
    pub(super) fn absolute_error(gold: &[f64], predicted: &[f64]) -> Self {
        Self { values: gold.iter().zip(predicted).map(|(gold, predicted)| (gold - predicted).abs()).collect() }
    }

    /// Returns the mean over the rows under counts; none without rows.
    #[must_use]
    pub fn mean(&self, counts: &[u32]) -> Option<f64> {
        let (mut sum, mut n) = (0.0, 0_u64);
        for (value, &count) in self.values.iter().zip(counts) {
            sum += value * f64::from(count);
            n += u64::from(count);
        }
        (n > 0).then(|| sum / n as f64)
    }
}

/// Checks gold labels and the probabilities of all labels.
pub(super) fn check(labels: usize, gold: &[u32], probabilities: &[f64]) -> Result<(), MetricError> {
    if gold.is_empty() || labels == 0 {
        return Err(MetricError::Empty);
    }
    check_length("probabilities", probabilities.len(), gold.len() * labels)?;
    check_labels("the gold label", gold, labels)?;
    check_probabilities(probabilities, labels)?;
    let sums = probabilities.chunks_exact(labels).map(|row| row.iter().sum::<f64>());
    match sums.enumerate().find(|(_, sum)| (sum - 1.0).abs() > SUM_TOLERANCE) {
        Some((row, value)) => {
            Err(MetricError::Value { row, what: "the sum of the probabilities", value, expected: "1" })
        }
        None => Ok(()),
    }
}

/// Rows in bins of equal width by their highest probability, for the reliability diagram.
#[derive(Debug, Clone)]
pub struct Reliability {
    bins: usize,
    rows: Vec<Row>,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    confidence: f64,
    bin: u32,
    correct: bool,
}

/// The rows whose highest probability lies in one bin.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bin {
    /// Lower end, exclusive.
    pub above: f64,
    /// Upper end, inclusive.
    pub up_to: f64,
    /// The number of rows in the bin.
    #[serde(rename = "rows")]
    pub count: u64,
    /// Mean of the rows' highest probabilities; none without rows.
    pub confidence: Option<f64>,
    /// Share of the rows whose most probable label is correct; none without rows.
    pub accuracy: Option<f64>,
}

/// The sums over the rows of each bin.
#[derive(Debug, Clone)]
pub struct BinSums(Vec<(u64, u64, f64)>);

impl BinSums {
    /// Creates empty bins.
    #[must_use]
    pub fn new(bins: usize) -> Self {
        Self(vec![(0, 0, 0.0); bins])
    }

    /// Adds rows to a bin: their number, the number of correct ones, and the sum of their highest probabilities.
    pub fn add(&mut self, bin: usize, rows: u64, correct: u64, confidence: f64) {
        let sums = &mut self.0[bin];
        sums.0 += rows;
        sums.1 += correct;
        sums.2 += confidence;
    }

    /// Returns the bins in ascending order.
    #[must_use]
    pub fn bins(&self) -> Vec<Bin> {
        let width = self.0.len() as f64;
        let bin = |(i, &(count, correct, confidence)): (usize, &(u64, u64, f64))| Bin {
            above: i as f64 / width,
            up_to: (i + 1) as f64 / width,
            count,
            confidence: (count > 0).then(|| confidence / count as f64),
            accuracy: (count > 0).then(|| correct as f64 / count as f64),
        };
        self.0.iter().enumerate().map(bin).collect()
    }

    /// Returns the expected calibration error: the mean difference of confidence and accuracy over the bins, weighted
    /// by their rows, 0 to 1; none without rows.
    ///
    /// **Source**: Guo, Pleiss, Sun, Weinberger 2017, "On calibration of modern neural networks", section 2.
    #[must_use]
    pub fn expected_calibration_error(&self) -> Option<f64> {
        let n: u64 = self.0.iter().map(|(n, _, _)| n).sum();
        let gaps: f64 = self.0.iter().map(|(_, correct, confidence)| (confidence - *correct as f64).abs()).sum();
        (n > 0).then(|| gaps / n as f64)
    }
}

impl Reliability {
    /// Assigns rows to `bins` bins of equal width; of equally probable labels the first is used.
    ///
    /// # Errors
    /// As [`RowMeans::log_loss`]; no bins.
    pub fn new(bins: usize, labels: usize, gold: &[u32], probabilities: &[f64]) -> Result<Self, MetricError> {
        check(labels, gold, probabilities)?;
        check_length("bins", bins, bins.max(1))?;
        let rows = gold.iter().zip(probabilities.chunks_exact(labels)).map(|(gold, row)| {
            let argmax = argmax(row);
            let confidence = row[argmax];
            // Bins include their upper end, so that 1 falls into the last.
            let bin = ((confidence * bins as f64).ceil() as u32).saturating_sub(1);
            Row { confidence, bin: bin.min(bins as u32 - 1), correct: argmax == *gold as usize }
        });
        Ok(Self { bins, rows: rows.collect() })
    }

    /// Returns the sums of the bins under counts.
    #[must_use]
    pub fn sums(&self, counts: &[u32]) -> BinSums {
        let mut sums = BinSums::new(self.bins);
        for (row, &count) in self.rows.iter().zip(counts) {
            let n = u64::from(count);
            sums.add(row.bin as usize, n, n * u64::from(row.correct), f64::from(count) * row.confidence);
        }
        sums
    }
}

/// Returns the most probable label, the first of equals.
pub(super) fn argmax(row: &[f64]) -> usize {
    (0..row.len()).reduce(|best, i| if row[i] > row[best] { i } else { best }).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_are_rejected() {
        let error = RowMeans::log_loss(2, &[0, 1], &[0.3, 0.7, -2.1, 2.2]).unwrap_err();
        assert_eq!(error.to_string(), "row 2: a probability is -2.1, expected a number from 0 to 1");
        let error = RowMeans::log_loss(2, &[0, 1], &[0.3, 0.7, 0.5, 0.6]).unwrap_err();
        assert_eq!(error.to_string(), "row 2: the sum of the probabilities is 1.1, expected 1");
        assert!(RowMeans::brier(2, &[0], &[f64::NAN, 1.0]).is_err());
        assert!(Reliability::new(0, 2, &[0], &[0.5, 0.5]).is_err());
    }

    #[test]
    fn bins_include_their_upper_end() {
        let reliability = Reliability::new(10, 2, &[0, 1, 1], &[1.0, 0.0, 0.5, 0.5, 0.1, 0.9]).unwrap();
        let sums = reliability.sums(&[1, 1, 1]);
        let bins = sums.bins();
        let counts: Vec<u64> = bins.iter().map(|bin| bin.count).collect();
        assert_eq!(counts, [0, 0, 0, 0, 1, 0, 0, 0, 1, 1]);
        assert_eq!((bins[4].above, bins[4].up_to, bins[4].accuracy), (0.4, 0.5, Some(0.0)));
        assert_eq!(bins[0].confidence, None);
        assert!((sums.expected_calibration_error().unwrap() - 0.2).abs() < 1e-12);
    }
}
